"""A short, repeatable run of the fuzzer of tars, and a long one."""

from __future__ import annotations

import pytest
from fuzz_tars import fuzz


def test_mutated_tars_give_images_or_are_refused() -> None:
    outcomes = fuzz(seed=13, count=80)
    assert set(outcomes) == {"images", "refused"}
    assert min(outcomes.values()) > 8


@pytest.mark.slow
def test_mutated_tars_by_the_thousand() -> None:
    outcomes = fuzz(seed=14, count=2_000)
    assert set(outcomes) == {"images", "refused"}
    assert min(outcomes.values()) > 200
