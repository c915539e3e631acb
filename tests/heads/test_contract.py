"""Every head of the registry goes through the same tests: a new head is tested by being there."""

from __future__ import annotations

import json
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import blobs, line

from pipeline.config import FitSettings
from pipeline.errors import HeadError, ModelError
from pipeline.heads import HEADS, Head, load_head, problem_of
from pipeline.heads.folds import make_folds

PAIRS = [(name, task) for name in HEADS for task in HEADS[name].learns]
CLASSIFIERS = [name for name in HEADS if "classes" in HEADS[name].learns]
REGRESSORS = [name for name in HEADS if "numbers" in HEADS[name].learns]
QUICK = FitSettings.of({"epochs": 6, "hidden": 32})


def data(task: str, rows: int = 240, *, seed: int = 0) -> tuple[Any, Any]:
    return blobs(rows, 24, 3, seed=seed, apart=1.5) if task == "classes" else line(rows, 24, seed=seed)


def trained(name: str, task: Any, *, seed: int = 0) -> Head:
    return HEADS[name](task, QUICK).fit(problem_of(*data(task, seed=seed)))


@pytest.fixture(scope="module")
def heads() -> dict[tuple[str, str], Head]:
    return {pair: trained(*pair) for pair in PAIRS}


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_learns(heads, name, task):
    features, y = data(task, 600)
    said = heads[name, task].predict(features[240:])
    if task == "classes":
        assert (said == y[240:]).mean() > 0.8
    else:
        assert np.square(said - y[240:]).mean() < 0.6 * y[240:].var()


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_saves_and_loads_the_same(heads, name, task, tmp_path):
    head = heads[name, task]
    config = json.loads(json.dumps({"name": name, **head.save(tmp_path)}))
    again = load_head(tmp_path, config)
    features, _ = data(task, 50, seed=1)
    np.testing.assert_array_equal(again.scores(features), head.scores(features))
    assert again.task == task
    assert again.sharpness == head.sharpness
    assert again.interval_half_width == head.interval_half_width


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_writes_no_pickle(heads, name, task, tmp_path):
    heads[name, task].save(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {file.suffix for file in files} <= {".safetensors", ".skops"}
    assert len(files) == len(getattr(heads[name, task], "members", "1"))
    for content in (content for file in files for content in _contents(file)):
        with pytest.raises((ValueError, IndexError, UnicodeDecodeError)):
            list(pickletools.genops(content))


def _contents(file: Path) -> list[bytes]:
    if file.suffix != ".skops":
        return [file.read_bytes()]
    with zipfile.ZipFile(file) as archive:
        return [archive.read(name) for name in archive.namelist()]


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_same_seed_same_head(heads, name, task):
    features, _ = data(task, 50, seed=1)
    np.testing.assert_array_equal(trained(name, task).scores(features), heads[name, task].scores(features))


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_one_row_scores_as_in_a_batch(heads, name, task):
    features, _ = data(task, 20, seed=1)
    together = heads[name, task].scores(features)
    alone = np.concatenate([heads[name, task].scores(features[i : i + 1]) for i in range(20)])
    np.testing.assert_allclose(alone, together, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_scores_are_probabilities(heads, name):
    features, _ = data("classes", 50, seed=1)
    scores = heads[name, "classes"].scores(features)
    assert scores.shape == (50, 3)
    assert scores.min() >= 0
    np.testing.assert_allclose(scores.sum(axis=1), 1)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_temperature_does_not_raise_the_log_loss_that_it_was_fitted_on(heads, name):
    head = heads[name, "classes"]
    _, y = data("classes")
    plain = type(head)("classes")
    rows = np.arange(len(y))
    before = -np.log(plain.probabilities(head.search.scores)[rows, y]).mean()
    after = -np.log(head.probabilities(head.search.scores)[rows, y]).mean()
    assert after <= before + 1e-9


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_class_of_one_row_leaves_the_others_their_probabilities(name):
    """A fold without an example of it says nothing of it, which says nothing of how sure the head is."""
    features, y = blobs(400, 24, 2, apart=4)
    features[0], y[0] = 5, 2
    head = HEADS[name]("classes", QUICK).fit(problem_of(features[:60], y[:60]))
    said = head.scores(features[60:])
    assert (said.argmax(axis=1) == y[60:]).mean() > 0.9
    assert np.median(said.max(axis=1)) > 0.8


@pytest.mark.parametrize("name", REGRESSORS)
def test_intervals_cover_new_rows(heads, name):
    features, y = data("numbers", 3000)
    head = heads[name, "numbers"]
    inside = np.abs(head.predict(features[240:]) - y[240:]) <= head.interval_half_width
    assert 0.84 <= inside.mean() <= 0.97  # of 240 residuals, the rank of the 90 % quantile is sure to ± 4 %


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_scores_views_as_their_mean(heads, name, task):
    features, _ = data(task, 40, seed=1)
    head = heads[name, task]
    said = head.decisions(features.reshape(20, 2, 24))
    if name == "binned":  # of what its classifier says
        logits = (head.classifier.decision(features[0::2]) + head.classifier.decision(features[1::2])) / 2
        mean = head.classifier.probabilities(logits) @ head.values
    elif name == "blend":  # of what each member says
        mean = head._mean([one.scores(features.reshape(20, 2, 24)) for one in head.members.values()])
    else:
        mean = (head.decision(features[0::2]) + head.decision(features[1::2])) / 2
    np.testing.assert_allclose(said, mean, rtol=1e-6)


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_views_of_an_image_are_never_on_both_sides(name, task):
    """Views are exact copies and the target is noise: whoever sees a twin knows the answer, nobody else does."""
    random = np.random.default_rng(3)
    features = np.repeat(random.normal(size=(120, 1, 200)), 2, axis=1).astype(np.float32)
    y = random.integers(0, 2, 120) if task == "classes" else random.normal(size=120)
    search = HEADS[name](task, QUICK).fit(problem_of(features, y)).search
    if task == "classes":
        assert (search.scores.argmax(axis=1) == y).mean() < 0.68
    else:
        assert np.square(search.scores - y).mean() > 0.75 * y.var()


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_identical_content_is_never_on_both_sides(name, task):
    random = np.random.default_rng(3)
    groups = np.repeat(np.arange(60), 2)
    features = np.repeat(random.normal(size=(60, 200)), 2, axis=0).astype(np.float32)
    y = np.repeat(random.integers(0, 2, 60) if task == "classes" else random.normal(size=60), 2)
    search = HEADS[name](task, QUICK).fit(problem_of(features, y, groups=groups)).search
    if task == "classes":
        assert (search.scores.argmax(axis=1) == y).mean() < 0.72
    else:
        assert np.square(search.scores - y).mean() > 0.75 * y.var()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_weights_count_as_copies_do(name):
    """A row of weight 3 pulls the boundary as far as three rows do, where nothing is searched."""
    features, y = blobs(80, 6, 2, seed=5)
    weights = np.where(y == 1, 8.0, 1.0)
    plain = HEADS[name]("classes", QUICK).fit(problem_of(features, y))
    weighted = HEADS[name]("classes", QUICK).fit(problem_of(features, y, sample_weight=weights))
    fresh, _ = blobs(2000, 6, 2, seed=5)
    assert weighted.predict(fresh).mean() > plain.predict(fresh).mean() + 0.01


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_one_example_a_class_is_enough_and_says_what_is_missing(name):
    features, y = blobs(5, 12, 5)
    head = HEADS[name]("classes", QUICK).fit(problem_of(features, y))
    assert (head.predict(features) == y).all()
    assert head.sharpness == 1
    assert "too few examples" in head.search.notices[-1]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_class_of_one_example_takes_part_without_being_judged(name):
    features, y = blobs(90, 12, 3)
    y = np.where(y == 2, 1, y)
    y[0] = 2
    head = HEADS[name]("classes", QUICK).fit(problem_of(features, y))
    assert head.scores(features).shape == (90, 3)
    assert np.isfinite(head.scores(features)).all()
    assert 0 < head.sharpness < 1e4


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_more_dimensions_than_rows(name, task):
    features, y = data(task, 40)
    wide = np.concatenate([features, np.zeros((40, 300), np.float32), features], axis=1)
    head = HEADS[name](task, QUICK).fit(problem_of(wide, y))
    assert np.isfinite(head.scores(wide)).all()


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_features_that_are_not_finite_are_refused(name, task):
    features, y = data(task, 40)
    features[3, 4] = np.nan
    with pytest.raises((HeadError, ValueError), match="NaN"):
        HEADS[name](task, QUICK).fit(problem_of(features, y))


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_a_damaged_file_is_one_line(heads, name, task, tmp_path):
    config = {"name": name, **heads[name, task].save(tmp_path)}
    file = next(tmp_path.rglob("head.*"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be read"):
        load_head(tmp_path, config)
    file.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        load_head(tmp_path, config)


def test_an_unknown_head_names_the_nearest(tmp_path):
    with pytest.raises(ModelError, match="did you mean 'linear'"):
        load_head(tmp_path, {"name": "linaer", "task": "classes"})


def test_folds_have_all_classes_and_whole_groups():
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 3)
    y = np.repeat(random.integers(0, 4, 100), 3)
    folds = make_folds(y, groups, folds=5, seed=13)
    for fold in range(5):
        assert set(groups[folds == fold]).isdisjoint(groups[folds != fold])
        shares = np.bincount(y[folds == fold], minlength=4) / np.bincount(y, minlength=4)
        np.testing.assert_allclose(shares, 0.2, atol=0.06)
    np.testing.assert_array_equal(folds, make_folds(y, groups, folds=5, seed=13))
    assert (folds != make_folds(y, groups, folds=5, seed=14)).any()
