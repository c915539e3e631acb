"""The best of many settings, and scores that do not flatter it."""

from __future__ import annotations

import numpy as np
from examples import problem_of

from pipeline.heads.criterion import Best

ROWS = 300


def offered(y: np.ndarray, guesses: list[np.ndarray]) -> tuple[Best, list[dict[str, float]]]:
    folds = np.arange(ROWS) % 5
    best = Best(problem_of(np.ones((ROWS, 1), np.float32), y), folds, np.ones(ROWS, dtype=bool))
    return best, [best.offer({"guess": number}, scores) for number, scores in enumerate(guesses)]


def test_choosing_among_guesses_does_not_make_them_look_better():
    """All 200 settings are chance: the best of them has less than the error of chance, the scores kept have not."""
    kept, flattered = [], []
    for seed in range(5):
        random = np.random.default_rng(seed)
        y = random.normal(size=ROWS)
        best, found = offered(y, [0.3 * random.normal(size=ROWS) for _ in range(200)])
        kept.append(np.square(best.scores - y).mean() / np.square(y).mean())
        flattered.append(min(entry["loss"] for entry in found) / np.square(y).mean())
    assert np.mean(flattered) < 1.0
    assert 1.05 < np.mean(kept) < 1.13  # 1.09 is the truth


def test_the_best_setting_is_that_of_the_least_loss_and_scores_of_a_clear_winner_are_its_own():
    random = np.random.default_rng(0)
    y = random.normal(size=ROWS)
    guesses = [y + spread * random.normal(size=ROWS) for spread in (1.0, 0.2, 0.6)]
    best, found = offered(y, guesses)
    assert best.setting == {"guess": 1}
    assert best.loss == found[1]["loss"] == np.square(guesses[1] - y).mean()
    np.testing.assert_array_equal(best.scores, guesses[1])


def test_scores_of_classes_are_all_of_the_best_setting():
    random = np.random.default_rng(0)
    y = random.integers(0, 2, ROWS)
    guesses = [np.stack([-sign, sign], axis=1) * scale for scale, sign in ((1.0, 1.8 * y - 1), (50.0, 2.0 * y - 1))]
    guesses = [
        scores + scale * random.normal(size=scores.shape) for scores, scale in zip(guesses, (1, 50), strict=True)
    ]
    best, found = offered(y, guesses)
    chosen = int(found[1]["loss"] < found[0]["loss"])
    np.testing.assert_array_equal(best.scores, guesses[chosen])


def test_a_setting_that_is_hardly_better_does_not_take_the_place_of_one_before_it():
    """The first of two that differ by chance, and the second where the difference is clear."""
    random = np.random.default_rng(0)
    y = random.normal(size=ROWS)
    first, chance, clear = (y + size * random.normal(size=ROWS) for size in (1.0, 0.99, 0.8))
    problem = problem_of(np.ones((ROWS, 1), np.float32), y)
    for errors, guess, kept in ((0.0, chance, True), (5.0, chance, False), (1.0, clear, True)):
        best = Best(problem, np.arange(ROWS) % 5, np.ones(ROWS, dtype=bool), errors=errors)
        losses = [best.offer({"guess": number}, scores)["loss"] for number, scores in enumerate((first, guess))]
        assert (best.setting == {"guess": 1}) == (kept and losses[1] < losses[0])
