"""Tests of scored rows: the same metrics, lines and plots for classes and for numbers."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

from pipeline import metrics
from pipeline.scores import Scored, probabilities
from pipeline.sources import Target

IDS = ("a.jpg", "b.jpg", "c.jpg")
SHARES = np.array([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]])
VALUES = np.array([1.5, 2.0, 4.0])


def classes(codes: list[int], **options: Any) -> Scored:
    target = Target("kind", np.array(codes), ("ant", "bee"))
    return Scored(ids=IDS, target=target, scores=SHARES, **{"part": "val", **options})


def numbers(**options: Any) -> Scored:
    target = Target("length", np.array([1.0, 2.0, 3.0]))
    return Scored(ids=IDS, target=target, scores=VALUES, **{"part": "test", **options})


def texts(figure: Figure) -> list[str]:
    figure.savefig(io.BytesIO())
    return [text.get_text() for text in figure.findobj(Text)]


def test_metrics_are_of_the_kind_of_the_target() -> None:
    assert classes([0, 1, 1]).metrics == metrics.classification(np.array([0, 1, 1]), SHARES, ("ant", "bee"))
    assert numbers().metrics == metrics.regression(np.array([1.0, 2.0, 3.0]), VALUES)
    assert len(numbers()) == 3


def test_cautions_name_the_part() -> None:
    assert [caution.split(":")[0] for caution in classes([0, 0, 0]).cautions()] == ["held-out rows"] * 2
    assert numbers(part="all").cautions()[0].startswith("all rows: only 3 rows")


def test_a_row_has_truth_and_answer() -> None:
    rows = list(classes([1, 1, 1]).rows(split=True))
    assert rows[0] == {
        "id": "a.jpg",
        "split": "val",
        "true": "bee",
        "label": "ant",
        "score": 0.75,
        "p:ant": 0.75,
        "p:bee": 0.25,
    }
    assert [row["label"] for row in rows] == ["ant", "ant", "bee"]
    assert next(numbers().rows()) == {"id": "a.jpg", "true": 1.0, "value": 1.5, "low": None, "high": None}
    assert list(numbers(half_width=0.5).rows())[2] == {
        "id": "c.jpg",
        "true": 3.0,
        "value": 4.0,
        "low": 3.5,
        "high": 4.5,
    }


def test_classes_are_drawn_as_a_matrix_that_says_its_part_and_rows() -> None:
    assert "held-out rows: 66.7% of 3 rows right" in texts(classes([0, 1, 1]).plots()["confusion"]())


def test_numbers_are_drawn_with_their_interval() -> None:
    found = texts(numbers(half_width=1.0, coverage=0.8).plots()["predicted"]())
    assert "test rows: R2 0.375 (3 rows)" in found
    assert "80 % interval" in found


def test_of_many_classes_the_five_best_are_listed() -> None:
    names = tuple(f"kind {code}" for code in range(30))
    scores = np.arange(30.0)[None] / 435
    row = next(Scored(["a"], Target("kind", np.array([3]), names), scores, "val").rows())
    assert [row[key] for key in ("label", "label2", "label5")] == ["kind 29", "kind 28", "kind 25"]
    assert (row["score"], row["p5"], len(row)) == (29 / 435, 25 / 435, 4 + 8)
    empty = probabilities(names, [])
    assert list(empty) == [key for key in row if key[-1] in "2345"]
    assert set(empty.values()) == {None}


def test_labels_that_look_wrong_come_first_with_a_better_one() -> None:
    """The rows labelled bee have 0.1, 0.8 and 0.9 of it; 0.1 is the flipped one, and ant has its usual 0.9."""
    shares = np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.8, 0.2]])
    target = Target("kind", np.array([1, 1, 1, 0]), ("ant", "bee"))
    rows = Scored(["a", "b", "c", "d"], target, shares, "cv").rows_by_quality()
    assert [(row["id"], row["quality"], row["suggested"]) for row in rows] == [
        ("a", 0.1, "ant"),
        ("b", 0.8, ""),
        ("d", 0.8, ""),
        ("c", 0.9, ""),
    ]
    assert list(rows[0])[:6] == ["id", "true", "quality", "suggested", "label", "score"]
    assert numbers().rows_by_quality() == list(numbers().rows())
