"""How unlike the training pictures an image is: scores against plain formulas, error rates on fresh draws, the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.spatial.distance import cdist, mahalanobis
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from pipeline.errors import ModelError
from pipeline.heads.unlikeness import (
    DIRECTIONS,
    FILE,
    FLOATS,
    Covariance,
    Neighbours,
    Unlikeness,
    area_between,
    kept_rows,
    unit_rows,
)


def drawn(rows, *, seed, classes=3, dimensions=40, shift=0.0):
    """Classes around centres that are the same for every seed, in a few directions; `shift` moves all of them away."""
    centres = np.random.default_rng(0).normal(size=(classes, dimensions))
    random = np.random.default_rng(seed)
    y = random.integers(0, classes, rows)
    wide = np.where(np.arange(dimensions) < 5, 1.0, 0.15)
    features = centres[y] + wide * random.normal(size=(rows, dimensions))
    return (features + shift * np.random.default_rng(1).normal(size=dimensions)).astype(np.float32), y


def learned(rows=300, **options):
    features, y = drawn(rows, seed=2, **options)
    return Unlikeness.of(features, y, [f"{number}.jpg" for number in range(rows)], (features.shape[1],))


def test_neighbours_are_the_mean_of_the_nearest_cosine_distances():
    rows, asked = unit_rows(drawn(50, seed=3)[0], (40,)), unit_rows(drawn(9, seed=4)[0], (40,))
    distances = np.sort(cdist(asked, rows, "cosine"), axis=1)[:, :5].mean(axis=1)
    measure = Neighbours.fit(rows, np.zeros(50, np.int64))
    np.testing.assert_allclose(measure.scores(asked), distances, atol=1e-6)
    others = [Neighbours(np.delete(rows, row, axis=0)).scores(rows[[row]])[0] for row in range(50)]
    found = Neighbours.out_of_fold(rows, np.zeros(50, np.int64), np.arange(50))
    np.testing.assert_allclose(found, others, atol=1e-6)


@pytest.mark.parametrize("rows", [30, 200], ids=["fewer rows than features", "more"])
def test_covariance_is_the_mahalanobis_distance_of_ledoit_and_wolf(rows):
    features, y = drawn(rows, seed=5)
    means = np.stack([features[y == code].mean(axis=0) for code in range(3)])
    precision = LedoitWolf(assume_centered=True).fit(features.astype(np.float64) - means[y]).precision_
    asked = drawn(20, seed=6)[0]
    nearest = [min(mahalanobis(row, mean, precision) ** 2 for mean in means) for row in asked]
    np.testing.assert_allclose(Covariance.fit(features, y).scores(asked), nearest, rtol=2e-3)


def test_directions_beyond_those_kept_have_their_mean_variance():
    features = np.random.default_rng(7).normal(size=(900, DIRECTIONS + 150)).astype(np.float32)
    measure = Covariance.fit(features, np.zeros(900, np.int64))
    assert measure.directions.shape == (DIRECTIONS, DIRECTIONS + 150)
    total = np.square(features - features.mean(axis=0)).sum() / 900
    assert measure.variances.sum() + 150 * measure.rest == pytest.approx(total, rel=1e-3)


def test_one_in_twenty_of_the_same_kind_is_unknown_and_strangers_are():
    found = learned()
    own = found.of_images(drawn(4000, seed=8)[0])[0]
    strange = found.of_images(drawn(200, seed=9, shift=1.5)[0])[0]
    assert 0.015 <= (own > 1).mean() <= 0.09  # of 300 rows the rank of the 95 % quantile is sure to ± 2.5 %
    assert (strange > 1).mean() > 0.95
    assert area_between(own, strange) > 0.99
    assert found.caught > 0.5


def test_the_measure_is_the_one_that_tells_left_out_classes():
    """Strangers in a direction of little variance are told by covariance; clusters in clusters by their neighbours."""
    random = np.random.default_rng(10)
    y = np.repeat([0, 1], 150)
    wide = random.normal(size=(300, 30)) * np.where(np.arange(30) < 15, 1.0, 0.02)
    wide[:, 29] += np.where(y == 1, 0.6, -0.6)
    ids = [str(number) for number in range(300)]
    order = random.permutation(300)
    told = Unlikeness.of(wide[order].astype(np.float32), y[order], ids, (30,))
    assert told.measure.name == "covariance"
    assert told.caught > 0.9
    spots = random.normal(size=(24, 30))
    many = spots[(np.arange(300) % 12) + 12 * y] + 0.05 * random.normal(size=(300, 30))
    told = Unlikeness.of(many[order].astype(np.float32), y[order], ids, (30,))
    assert told.measure.name == "neighbours"
    assert told.caught == 1


@pytest.mark.parametrize("code", [0, 1], ids=["neighbours", "whichever is better"])
def test_pictures_of_a_group_do_not_show_how_unlike_others_are(code):
    """Bursts of ten nearly equal pictures: new bursts are of the same kind, though no picture is as near as those."""
    bursts, y = drawn(80, seed=15)
    features = np.repeat(bursts, 10, axis=0) + 0.01 * np.random.default_rng(16).normal(size=(800, 40)).astype(
        np.float32
    )
    groups, codes, ids = np.repeat(np.arange(80), 10), code * np.repeat(y, 10), [str(row) for row in range(800)]
    fresh = drawn(1000, seed=17)[0]
    grouped = Unlikeness.of(features, codes, ids, (40,), groups=groups)
    apart = Unlikeness.of(features, codes, ids, (40,))
    assert (
        grouped.of_images(fresh)[0] > 1
    ).mean() < 0.13  # of 80 bursts the rank of the 95 % quantile is sure to ± 5 %
    assert (apart.of_images(fresh)[0] > 1).mean() > 0.5
    assert Unlikeness.of(features[:180], codes[:180], ids[:180], (40,), groups=groups[:180]) is None


def test_numbers_have_no_classes_to_leave_out():
    features, _ = drawn(100, seed=11)
    found = Unlikeness.of(features, np.zeros(100, np.int64), [str(number) for number in range(100)], (40,))
    assert (found.measure.name, found.caught) == ("neighbours", None)


def test_a_training_picture_is_nearest_to_itself_and_never_unknown_alone():
    found, (features, _) = learned(), drawn(300, seed=2)
    scores, nearest = found.of_images(features[:20])
    assert nearest == [f"{number}.jpg" for number in range(20)]
    assert found.of_images(features[3:4])[0] == pytest.approx(scores[3:4], rel=1e-5)


def test_few_rows_tell_nothing():
    features, y = drawn(19, seed=12)
    ids = [str(number) for number in range(19)]
    assert Unlikeness.of(features[:18], y[:18], ids[:18], (40,)) is None
    found = Unlikeness.of(features, y, ids, (40,))
    assert np.isfinite(found.of_images(features)[0]).all()


def test_features_that_are_all_alike_are_no_numbers_to_fear():
    alike, other = np.ones((40, 8), np.float32), np.arange(16, dtype=np.float32).reshape(2, 8)
    found = Unlikeness.of(alike, np.arange(40) % 2, [str(number) for number in range(40)], (8,))
    assert (found.of_images(other)[0] > 1).all()
    assert np.isfinite(found.of_images(np.zeros((1, 8), np.float32))[0]).all()
    assert np.isfinite(found.of_images(np.full((1, 8), 3e38, np.float32))[0]).all()


def test_every_layer_has_its_share_whatever_its_size():
    small, large = np.random.default_rng(13).normal(size=(2, 6, 10))
    rows = unit_rows(np.concatenate([small, 1000 * large], axis=1), (10, 10))
    np.testing.assert_allclose(np.square(rows).sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.square(rows[:, :10]).sum(axis=1), 0.5, rtol=1e-6)


def test_each_content_is_kept_once_and_no_more_than_the_file_should_have():
    assert sorted(kept_rows(np.array([5, 5, 7, 7, 1]), dimensions=512, seed=13)) == [0, 2, 4]
    assert len(kept_rows(np.arange(9000), dimensions=512, seed=13)) == 2000
    assert len(kept_rows(np.arange(9000), dimensions=4096, seed=13)) == FLOATS // 4096
    assert len(kept_rows(np.arange(9000), dimensions=25_088, seed=13)) == 256


def test_the_area_under_the_curve_counts_ties_as_half():
    random = np.random.default_rng(14)
    low, high = random.integers(0, 9, 50), random.integers(3, 12, 40)
    expected = roc_auc_score(np.repeat([0, 1], [50, 40]), np.concatenate([low, high]))
    assert area_between(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("measure", [Neighbours, Covariance])
def test_what_is_read_answers_as_what_was_written(tmp_path: Path, measure):
    found, (features, y) = learned(), drawn(300, seed=2)
    ids = [*found.ids[:-1], "odd \udcff\n.jpg"]
    found = Unlikeness(measure.fit(found.rows, y), found.rows, ids, (40,), 0.5, 0.25)
    found.write(tmp_path)
    again = Unlikeness.read(tmp_path)
    scores, nearest = found.of_images(features)
    np.testing.assert_array_equal(again.of_images(features)[0], scores)
    assert again.of_images(features)[1] == nearest
    assert again.describe() == found.describe()


@pytest.mark.parametrize(
    ("name", "forged", "message"),
    [
        ("rows", np.ones(40, np.float16), "rows of shape"),
        ("rows", np.full((300, 40), np.nan, np.float16), "rows holds NaN"),
        ("widths", np.array([39]), "widths do not fit"),
        ("widths", np.array([50, -10]), "widths do not fit"),
        ("threshold", np.array([0.0]), "threshold holds what is not positive"),
        ("ids", np.frombuffer(b'["a"]', np.uint8), "its ids do not fit 300 rows"),
        ("ids", np.frombuffer(b"[" * 9999, np.uint8), "cannot be read"),
        ("ids", np.frombuffer(b"\xff", np.uint8), "cannot be read"),
        ("means", np.ones((3, 7), np.float32), "means of shape|directions"),
        ("caught", np.array([np.nan]), "caught holds NaN"),
    ],
)
def test_a_forged_file_is_refused(tmp_path: Path, name, forged, message):
    learned().write(tmp_path)
    save_file({**load_file(tmp_path / FILE), name: forged}, tmp_path / FILE)
    with pytest.raises(ModelError, match=message):
        Unlikeness.read(tmp_path)
