"""Groups of rows by column, by pattern and by content, and what joins them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.config import FitSettings
from pipeline.errors import SettingsError
from pipeline.sources import Target
from pipeline.sources.groups import Groups, find_groups, joined, without_group
from pipeline.sources.manifest import class_target

IDS = ["p1_a.jpg", "p1_b.jpg", "p2_a.jpg", "p2_b.jpg", "loose.jpg", "p3_a.jpg"]
TARGETS = {
    "patient": class_target("patient", ["x", "x", "y", "y", None, "z"]),
    "camera": Target("camera", np.array([1.0, 2.0, 1.0, 2.0, np.nan, 2.0])),
    "kind": class_target("kind", ["ant", "bee"] * 3),
}
DIFFERENT = np.eye(6, 32, dtype=np.uint8)


def grouped(asked: str | None, contents: Any = DIFFERENT, rows: Any = None) -> Groups:
    rows = np.arange(6) if rows is None else rows
    return find_groups(asked, ids=IDS, targets=TARGETS, contents=contents, rows=rows)


def parts(groups: Groups) -> list[list[int]]:
    return sorted(np.flatnonzero(groups.codes == code).tolist() for code in np.unique(groups.codes))


def test_without_a_group_rows_of_one_content_belong_together() -> None:
    contents = DIFFERENT.copy()
    contents[3] = contents[0]
    found = grouped(None, contents)
    assert parts(found) == [[0, 3], [1], [2], [4], [5]]
    assert (found.alike, found.notices) == ("the same content", ())


@pytest.mark.parametrize("asked", ["patient", r"regex:^(p\d)_", r"regex:p\d"])
def test_a_column_or_a_pattern_groups_and_rows_without_stand_alone(asked: str) -> None:
    found = grouped(asked)
    assert parts(found) == [[0, 1], [2, 3], [4], [5]]
    assert found.notices == (
        f"3 groups by {asked}: none is on both sides of a split or of a fold",
        f"1 row of no group by {asked}: each is one of its own",
    )


def test_numbers_group_as_words_do() -> None:
    assert parts(grouped("camera")) == [[0, 2], [1, 3, 5], [4]]


def test_content_joins_what_a_column_parts() -> None:
    contents = DIFFERENT.copy()
    contents[3] = contents[0]
    found = grouped("patient", contents)
    assert parts(found) == [[0, 1, 2, 3], [4], [5]]
    assert found.alike == "the same content or the same patient"


def test_some_rows_are_grouped_by_their_own_ids() -> None:
    rows = np.array([5, 1, 0])
    assert parts(grouped("regex:^(p.)", DIFFERENT[rows], rows)) == [[0], [1, 2]]
    assert parts(grouped("patient", DIFFERENT[rows], rows)) == [[0], [1, 2]]


def test_long_chains_are_one_group() -> None:
    links = np.arange(1000)
    assert (joined(links // 2, (links + 1) // 2) == 0).all()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("pacient", "unknown group 'pacient' (did you mean 'patient'?); known: patient, camera, kind; name it"),
        ("regex:^zebra", "no row has a group by group=regex:^zebra; take another"),
        ("regex:jpg", "all rows are one group by group=regex:jpg; take another"),
    ],
)
def test_what_tells_no_rows_apart_is_refused(asked: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        grouped(asked)
    assert message in str(caught.value)


def test_the_column_that_groups_is_not_what_is_learned() -> None:
    assert list(without_group(TARGETS, "kind")) == ["patient", "camera"]
    for targets, learned in (({"kind": TARGETS["kind"]}, None), (TARGETS, "kind")):
        with pytest.raises(SettingsError, match="group=kind is the target that is learned"):
            without_group(targets, "kind", learned=learned)


def test_a_pattern_that_is_none_is_refused_before_anything_is_read() -> None:
    with pytest.raises(SettingsError, match=r"'regex:\(' is no pattern: missing \), unterminated subpattern"):
        FitSettings.of({"group": "regex:("})
