"""Every head of the registry goes through the same tests: a new head is tested by being there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from examples import blobs, line, problem_of
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from pipeline.config import FitSettings
from pipeline.errors import HeadError, ModelError, PipelineError
from pipeline.heads import HEADS, Head, Search, load_head
from pipeline.splits import make_folds

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


def arrays(value: Any, path: str = "") -> dict[str, NDArray[Any]]:
    """Every array that a head holds, by where it is; those of its search are not asked when it scores."""
    if isinstance(value, np.ndarray):
        return {path: value}
    if isinstance(value, Search | FitSettings):
        return {}
    value = getattr(value, "__dict__", value)
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple | list) else ()
    return {name: array for key, one in inner for name, array in arrays(one, f"{path}/{key}").items()}


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_a_trained_head_is_laid_out_in_memory_as_a_loaded_one(heads, name, task, tmp_path):
    """Products of other types, or in another order, call other kernels of BLAS, which may round otherwise."""
    head = heads[name, task]
    again = load_head(tmp_path, json.loads(json.dumps({"name": name, **head.save(tmp_path)})))
    trained, loaded = arrays(head), arrays(again)
    assert trained
    assert trained.keys() == loaded.keys()
    for where, array in trained.items():
        other = loaded[where]
        assert array.dtype == other.dtype, where
        assert array.strides == other.strides, where
        assert array.flags.c_contiguous, where
        assert array.flags == other.flags, where
        np.testing.assert_array_equal(array, other, err_msg=where)


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_saves_and_loads_the_same(heads, name, task, tmp_path):
    head = heads[name, task]
    config = json.loads(json.dumps({"name": name, **head.save(tmp_path)}))
    again = load_head(tmp_path, config)
    features, _ = data(task, 50, seed=1)
    # Exact: the same calls on arrays of one layout, which the test above asserts.
    np.testing.assert_array_equal(again.predict_proba(features), head.predict_proba(features))
    assert again.task == task
    assert (again.dimensions, again.outputs) == (head.dimensions, head.outputs) == (24, 3 if task == "classes" else 1)
    assert again.inverse_temperature == head.inverse_temperature
    assert again.interval_half_width == head.interval_half_width
    assert (again.least_in_set, again.coverage) == (head.least_in_set, head.coverage)


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_writes_arrays_alone(heads, name, task, tmp_path):
    heads[name, task].save(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {file.name for file in files} == {"head.safetensors"}
    assert len(files) == len(getattr(heads[name, task], "members", "1"))
    assert all(load_file(file) for file in files)


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_same_seed_same_head(heads, name, task):
    """Not to the last bit: BLAS may round otherwise where an array begins elsewhere in memory, and solvers go on until
    the gradient has shrunk to 1e-7 of itself, wherever that is."""
    features, _ = data(task, 50, seed=1)
    again = trained(name, task)
    assert again.search.chosen == heads[name, task].search.chosen
    np.testing.assert_allclose(
        again.predict_proba(features), heads[name, task].predict_proba(features), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_one_row_scores_as_in_a_batch(heads, name, task):
    features, _ = data(task, 20, seed=1)
    together = heads[name, task].predict_proba(features)
    alone = np.concatenate([heads[name, task].predict_proba(features[i : i + 1]) for i in range(20)])
    np.testing.assert_allclose(alone, together, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_scores_are_probabilities(heads, name):
    features, _ = data("classes", 50, seed=1)
    scores = heads[name, "classes"].predict_proba(features)
    assert scores.shape == (50, 3)
    assert scores.min() >= 0
    np.testing.assert_allclose(scores.sum(axis=1), 1)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_temperature_does_not_raise_the_log_loss_that_it_was_fitted_on(heads, name):
    head = heads[name, "classes"]
    _, y = data("classes")
    plain = type(head)("classes")
    rows = np.arange(len(y))
    before = -np.log(plain.calibrated(head.search.scores)[rows, y]).mean()
    after = -np.log(head.calibrated(head.search.scores)[rows, y]).mean()
    assert after <= before + 1e-9


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_class_of_one_row_leaves_the_others_their_probabilities(name):
    """A fold without an example of it says nothing of it, which says nothing of how sure the head is."""
    features, y = blobs(400, 24, 2, apart=4)
    features[0], y[0] = 5, 2
    head = HEADS[name]("classes", QUICK).fit(problem_of(features[:60], y[:60]))
    said = head.predict_proba(features[60:])
    assert (said.argmax(axis=1) == y[60:]).mean() > 0.9
    assert np.median(said.max(axis=1)) > 0.8


@pytest.mark.parametrize("name", REGRESSORS)
def test_intervals_cover_new_rows(heads, name):
    features, y = data("numbers", 3000)
    head = heads[name, "numbers"]
    inside = np.abs(head.predict(features[240:]) - y[240:]) <= head.interval_half_width
    assert 0.84 <= inside.mean() <= 0.97  # of 240 residuals, the rank of the 90 % quantile is sure to ± 4 %


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_sets_cover_new_rows_and_hold_the_likeliest_class(heads, name):
    features, y = data("classes", 3000)
    head = heads[name, "classes"]
    chances = head.predict_proba(features[240:])
    sets = head.prediction_sets(chances)
    covered = sets[np.arange(len(sets)), y[240:]].mean()
    right = (chances.argmax(axis=1) == y[240:]).mean()
    assert max(0.84, right) <= covered <= max(0.96, right + 0.02)
    assert sets[np.arange(len(sets)), chances.argmax(axis=1)].all()


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_scores_views_as_their_mean(heads, name, task):
    features, _ = data(task, 40, seed=1)
    head = heads[name, task]
    said = head.decision_function(features.reshape(20, 2, 24))
    if name == "binned":  # of what its classifier says
        logits = (
            head.classifier.decision_function(features[0::2]) + head.classifier.decision_function(features[1::2])
        ) / 2
        mean = head.classifier.calibrated(logits) @ head.values
    elif name == "blend":  # of what each member says
        mean = head._mean([one.predict_proba(features.reshape(20, 2, 24)) for one in head.members.values()])
    else:
        mean = (head.decision_function(features[0::2]) + head.decision_function(features[1::2])) / 2
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
    assert head.inverse_temperature == 1
    assert "too few examples" in head.search.notices[-1]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_class_of_one_example_takes_part_without_being_judged(name):
    features, y = blobs(90, 12, 3)
    y = np.where(y == 2, 1, y)
    y[0] = 2
    head = HEADS[name]("classes", QUICK).fit(problem_of(features, y))
    assert head.predict_proba(features).shape == (90, 3)
    assert np.isfinite(head.predict_proba(features)).all()
    assert 0 < head.inverse_temperature < 1e4


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_more_dimensions_than_rows(name, task):
    features, y = data(task, 40)
    wide = np.concatenate([features, np.zeros((40, 300), np.float32), features], axis=1)
    head = HEADS[name](task, QUICK).fit(problem_of(wide, y))
    assert np.isfinite(head.predict_proba(wide)).all()


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_features_that_are_not_finite_are_refused(name, task):
    features, y = data(task, 40)
    for value in (np.nan, np.inf, -np.inf):
        features[3, 4] = value
        with pytest.raises(HeadError, match="NaN"):
            HEADS[name](task, QUICK).fit(problem_of(features, y))


@pytest.mark.parametrize("name", REGRESSORS)
@pytest.mark.parametrize("size", [1e31, 1e200, 1.7e308, np.inf])
def test_numbers_that_are_too_large_are_refused(name, size):
    features, y = line(40, 24)
    y[::2] = size
    with pytest.raises(HeadError, match=r"heads learn up to 1e\+30; take another unit"):
        HEADS[name]("numbers", QUICK).fit(problem_of(features, y))


@pytest.mark.parametrize("name", REGRESSORS)
def test_numbers_that_hardly_differ_are_refused(name):
    features, y = line(40, 24)
    with pytest.raises(HeadError, match="tell 1e-30 apart; take another unit"):
        HEADS[name]("numbers", QUICK).fit(problem_of(features, y * 1e-40))


@pytest.mark.parametrize("name", REGRESSORS)
@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_the_unit_of_numbers_makes_no_difference(heads, name, unit):
    """rtol: training rounds in single precision, and the decay of mlp knows no unit but the standard deviation."""
    features, y = line(240, 24)
    fresh, _ = line(50, 24, seed=1)
    said = HEADS[name]("numbers", QUICK).fit(problem_of(features, y * unit)).predict(fresh)
    np.testing.assert_allclose(said / unit, heads[name, "numbers"].predict(fresh), rtol=2e-2)


@pytest.mark.parametrize("name", REGRESSORS)
def test_numbers_that_vary_little_around_a_large_one(name):
    """Times in seconds since 1970: a bias in single precision would be off by a minute."""
    features, y = line(240, 24)
    said = HEADS[name]("numbers", QUICK).fit(problem_of(features, y + 1.7e9)).predict(features)
    assert np.square(said - 1.7e9 - y).mean() < 0.6 * y.var()


@pytest.mark.parametrize("name", REGRESSORS)
@pytest.mark.parametrize("rows", [1, 2, 3, 12])
def test_few_or_equal_numbers(name, rows):
    for y in (np.full(rows, 7.0), np.arange(rows, dtype=np.float64)):
        features, _ = line(rows, 24)
        head = HEADS[name]("numbers", QUICK).fit(problem_of(features, y))
        said = head.predict(features)
        assert np.isfinite(said).all()
        if y[0] == y[-1]:
            np.testing.assert_allclose(said, y[0], atol=1e-3)


FEW = [(30, 1), (30, 2), (2, 2), (3, 1), (2, 1), (1, 1), (1,) * 5, (2,) * 5, (6, 1, 1, 1)]


def few(counts: tuple[int, ...]) -> tuple[Any, Any]:
    y = np.repeat(np.arange(len(counts)), counts)
    return (np.random.default_rng(0).normal(size=(len(y), 12)) + 3 * y[:, None]).astype(np.float32), y


@pytest.mark.parametrize("counts", FEW, ids=str)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_few_rows_of_a_class(name, counts):
    """Warnings are errors here, so none of scikit-learn's is seen either."""
    features, y = few(counts)
    head = HEADS[name]("classes", QUICK).fit(problem_of(features, y))
    said = head.predict_proba(features)
    assert np.isfinite(said).all()
    assert said.shape == (len(y), len(counts))
    assert 0 < head.inverse_temperature < 1e4


@pytest.mark.parametrize("cv", [2, 5, 20])
def test_a_fold_that_leaves_one_class_judges_nothing(cv):
    """To say the only class that is left is no merit: it would make any head look sure."""
    _, y = few((30, 1))
    problem = problem_of(np.zeros((31, 3), np.float32), y)
    folds = problem.folds(cv, 13)
    assert folds is not None
    assert (problem.known(folds) == (folds != folds[30])).all()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_one_class_is_refused(name):
    features, y = few((9,))
    with pytest.raises(HeadError, match="a head needs two classes"):
        HEADS[name]("classes", QUICK).fit(problem_of(features, y, classes=2))


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_rows_of_other_dimensions_are_refused(heads, name, task):
    with pytest.raises(ModelError, match="takes 24 features a row, not 25"):
        heads[name, task].predict_proba(np.zeros((3, 25), np.float32))


DAMAGES: dict[str, Callable[[NDArray[Any]], NDArray[Any] | None]] = {
    "missing": lambda _: None,
    "cut": lambda array: array[:-1],
    "empty": lambda array: array[:0],
    "deeper": lambda array: array[None],
    "flat": lambda array: array.reshape(-1, 1, 1),
    "NaN": lambda array: np.full(array.shape, np.nan),
    "huge": lambda array: np.full(array.shape, -(2**62)) if array.dtype.kind == "i" else np.full(array.shape, -np.inf),
    "truth": lambda array: array > 0,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_forged_arrays_are_refused(heads, name, task, damage, tmp_path):
    """Whatever a file holds, nothing is multiplied or handed to a library that does not fit."""
    config = {"name": name, **heads[name, task].save(tmp_path)}
    for file in tmp_path.rglob("head.safetensors"):
        tensors = load_file(file)
        for tensor, array in tensors.items():
            forged = {key: other for key, other in tensors.items() if key != tensor}
            if (bad := DAMAGES[damage](array)) is not None:
                forged[tensor] = np.ascontiguousarray(bad)
            save_file(forged, file)
            with pytest.raises(ModelError):
                load_head(tmp_path, config)
        save_file(tensors, file)


@pytest.mark.parametrize("value", [None, "x", [], {}, -1, 0, float("nan"), float("inf"), 10**400, 10**12])
@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_forged_settings_are_refused_or_do_no_harm(heads, name, task, value, tmp_path):
    config = {"name": name, **heads[name, task].save(tmp_path)}
    features, _ = data(task, 5)
    for key in config:
        with contextlib.suppress(PipelineError):
            head = load_head(tmp_path, {**config, key: value})
            assert head.outputs > 3 or np.isfinite(head.predict_proba(features)).all()


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
