"""Heads that version 0.1.0 kept in head.skops open and answer as they did; forged ones are refused in one line."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import blobs, line
from sklearn.base import clone
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR, LinearSVC, LinearSVR
from skops import io

from pipeline.errors import ModelError
from pipeline.heads import Head, load_head
from pipeline.heads.rows import ArrayRows
from pipeline.heads.standard import Standard

CLASSES, NUMBERS = blobs(80, 12, 3), line(80, 12)
TWO = CLASSES[0], CLASSES[1] % 2
MACHINES = {
    "rbf": (SVC(C=3, gamma=0.02), CLASSES),
    "linear": (SVC(C=0.1, kernel="linear"), CLASSES),
    "rbf of two": (SVC(C=3, gamma=0.02), TWO),
    "linear of two": (SVC(C=0.1, kernel="linear"), TWO),
    "without a kernel": (LinearSVC(C=0.1), CLASSES),
    "two without a kernel": (LinearSVC(C=0.1), TWO),
    "rbf of numbers": (SVR(C=3, gamma=0.02), NUMBERS),
    "linear of numbers": (SVR(C=0.1, kernel="linear"), NUMBERS),
    "numbers without a kernel": (LinearSVR(C=0.1, max_iter=20000), NUMBERS),
}
VOTES = {
    f"{kind.__name__}, {metric}, {weights}": (kind(3, metric=metric, weights=weights, algorithm="brute"), data)
    for kind, data in ((KNeighborsClassifier, CLASSES), (KNeighborsRegressor, NUMBERS))
    for metric in ("cosine", "euclidean")
    for weights in ("uniform", "distance")
}


def old_pipeline(machine: Any, features: Any, y: Any) -> Any:
    """What 0.1.0 trained: a scaler that does what `Standard` says, and an estimator.

    Mean and scale are of single precision, with which every scikit-learn scales alike: with more digits, releases
    differ in whether they are rounded before they are used, or only what comes out is.
    """
    machine = clone(machine)
    standard, scaler = Standard.of(ArrayRows(features)), StandardScaler()
    scaler.mean_, scaler.scale_ = (of.astype(np.float32).astype(float) for of in (standard.mean, standard.scale))
    scaler.n_features_in_ = len(standard.mean)
    single = scaler.transform(features).astype(np.float32)
    machine.fit(single if hasattr(machine, "n_neighbors") else single.astype(np.float64), y)
    if hasattr(machine, "n_neighbors"):
        machine.row_weights_ = np.linspace(0.5, 1.5, len(y))
    return make_pipeline(scaler, machine)


def old_config(name: str, task: str) -> dict[str, Any]:
    """What 0.1.0 wrote into model.json."""
    config: dict[str, Any] = {"name": name, "task": task, "classes": 3 if task == "classes" else None}
    config |= {"sharpness": 1.5} if task == "classes" else {"interval_half_width": 2.0, "interval_coverage": 0.9}
    return config | ({"offset": 50.0, "unit": 3.5} if name == "svm" else {})


def opened(folder: Path, pipeline: Any, name: str, task: str) -> Head:
    io.dump(pipeline, folder / "head.skops")
    return load_head(folder, old_config(name, task))


def task_of(machine: Any) -> str:
    return "classes" if hasattr(machine, "classes_") else "numbers"


@pytest.mark.parametrize("case", MACHINES)
def test_a_machine_says_what_scikit_learn_says(case, tmp_path):
    machine, (features, y) = MACHINES[case]
    pipeline = old_pipeline(machine, features, y)
    machine = pipeline[1]
    head = opened(tmp_path, pipeline, "svm", task_of(machine))
    fresh = blobs(300, 12, 3, seed=7)[0]
    standard = pipeline[0].transform(fresh).astype(np.float64)
    said = head.decision_function(fresh)
    if head.task == "numbers":
        np.testing.assert_allclose(said, machine.predict(standard) * 3.5 + 50, atol=1e-9, rtol=0)
        return
    scores = machine.decision_function(standard)
    known = scores if scores.ndim == 2 else np.stack([-scores, scores], axis=1)
    np.testing.assert_allclose(said[:, machine.classes_], known, atol=1e-9, rtol=0)
    assert (head.predict(fresh) == machine.classes_[known.argmax(axis=1)]).all()


@pytest.mark.parametrize("case", VOTES)
def test_neighbours_vote_as_they_did(case, tmp_path):
    """The votes of 0.1.0: each neighbour with its row's weight, over its distance where that counts."""
    machine, (features, y) = VOTES[case]
    pipeline = old_pipeline(machine, features, y)
    machine = pipeline[1]
    head = opened(tmp_path, pipeline, "knn", task_of(machine))
    fresh = blobs(300, 12, 3, seed=7)[0]
    distances, nearest = machine.kneighbors(pipeline[0].transform(fresh))
    voices = machine.row_weights_[nearest]
    if machine.weights == "distance":
        voices = voices / np.maximum(distances, 1e-9)
    voices /= voices.sum(axis=1, keepdims=True)
    if head.task == "numbers":
        wanted = (voices * y[nearest]).sum(axis=1)
    else:
        shares = np.stack([(voices * (y[nearest] == code)).sum(axis=1) for code in range(3)], axis=1)
        wanted = np.log(0.98 * shares + 0.02 / 3)
    np.testing.assert_allclose(head.decision_function(fresh), wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("case", ["rbf", "without a kernel", "numbers without a kernel"])
def test_an_old_machine_is_saved_in_the_new_form(case, tmp_path):
    machine, (features, y) = MACHINES[case]
    pipeline = old_pipeline(machine, features, y)
    head = opened(tmp_path, pipeline, "svm", task_of(pipeline[1]))
    (tmp_path / "new").mkdir()
    again = load_head(tmp_path / "new", {"name": "svm", **head.save(tmp_path / "new")})
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["head.safetensors"]
    np.testing.assert_array_equal(again.decision_function(features), head.decision_function(features))


def forge(estimator: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(estimator, name, value)
    return estimator


FORGED = {
    "many vectors of no columns": {
        "support_vectors_": np.zeros((10**7, 0)),
        "_n_support": np.array([10**7, 0, 0], np.int32),
        "dual_coef_": np.zeros((2, 0)),
        "_dual_coef_": np.zeros((2, 0)),
    },
    "short coefficients": {"dual_coef_": np.zeros((2, 3)), "_dual_coef_": np.zeros((2, 3))},
    "no intercept": {"intercept_": np.zeros(0), "_intercept_": np.zeros(0)},
    "counts of others": {"_n_support": np.array([80, 80, 80], np.int32)},
    "counts below none": {"_n_support": np.array([-10, 20, 70], np.int32)},
    "counts that overflow": {"_n_support": np.array([2**63 - 1, 2**63 - 1, 2], np.int64)},
    "vectors of other dimensions": {"support_vectors_": np.zeros((80, 500))},
    "vectors of text": {"support_vectors_": np.full((80, 12), "x")},
    "vectors that are none": {"support_vectors_": "abc"},
    "no vectors at all": {"support_vectors_": None},
    "NaN": {"dual_coef_": np.full((2, 80), np.nan), "_dual_coef_": np.full((2, 80), np.nan)},
    "classes that fall": {"classes_": np.array([2, 1, 0])},
    "classes there are none of": {"classes_": np.array([0, 1, 7])},
    "classes below none": {"classes_": np.array([-1, 0, 1])},
    "another kernel": {"kernel": "precomputed"},
    "a kernel that is a list": {"kernel": [1, 2]},
    "gamma of infinity": {"_gamma": float("inf")},
    "gamma of text": {"_gamma": "wide"},
}
FORGED_SCALER = {
    "a short scaler": {"mean_": np.zeros(3), "scale_": np.ones(3)},
    "a scale of zero": {"scale_": np.zeros(12)},
    "a scale of NaN": {"scale_": np.full(12, np.nan)},
    "no scale": {"scale_": None},
    "a mean of infinity": {"mean_": np.full(12, np.inf)},
}
FORGED_VOTES = {
    "a row short": {"_fit_X": np.zeros((79, 12), np.float32)},
    "rows of other dimensions": {"_fit_X": np.zeros((80, 13), np.float32)},
    "targets beyond the classes": {"_y": np.full(80, 9)},
    "targets below the classes": {"_y": np.full(80, -1)},
    "targets in columns": {"_y": np.zeros((80, 2), np.int64)},
    "more neighbours than rows": {"n_neighbors": 81},
    "no neighbours": {"n_neighbors": 0},
    "neighbours of text": {"n_neighbors": "many"},
    "another metric": {"metric": "haversine"},
    "weights of none": {"row_weights_": np.zeros(80)},
    "no weights": {"row_weights_": None},
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_machine_is_refused(case, tmp_path):
    """scikit-learn hands these arrays to libsvm as they are, which then reads what is not theirs."""
    pipeline = old_pipeline(*MACHINES["rbf"][:1], *CLASSES)
    forge(pipeline[1], **FORGED[case])
    with pytest.raises(ModelError):
        opened(tmp_path, pipeline, "svm", "classes")


@pytest.mark.parametrize("case", FORGED_SCALER)
@pytest.mark.parametrize("name", ["svm", "knn"])
def test_a_forged_scaler_is_refused(case, name, tmp_path):
    machine = MACHINES["rbf"][0] if name == "svm" else next(iter(VOTES.values()))[0]
    pipeline = old_pipeline(machine, *CLASSES)
    forge(pipeline[0], **FORGED_SCALER[case])
    with pytest.raises(ModelError):
        opened(tmp_path, pipeline, name, "classes")


@pytest.mark.parametrize("case", FORGED_VOTES)
def test_forged_neighbours_are_refused(case, tmp_path):
    pipeline = old_pipeline(next(iter(VOTES.values()))[0], *CLASSES)
    forge(pipeline[1], **FORGED_VOTES[case])
    with pytest.raises(ModelError):
        opened(tmp_path, pipeline, "knn", "classes")


@pytest.mark.parametrize(
    "pipeline",
    [
        StandardScaler(),
        SVC(),
        make_pipeline(StandardScaler()),
        make_pipeline(StandardScaler(), LinearSVR()),
        make_pipeline(StandardScaler(), KNeighborsClassifier()),
        make_pipeline(SVC(), StandardScaler()),
        {"steps": []},
        [1, 2],
    ],
    ids=repr,
)
def test_other_content_is_refused(pipeline, tmp_path):
    with pytest.raises(ModelError, match="not a head that this program trains"):
        opened(tmp_path, pipeline, "svm", "classes")


def test_a_file_that_unpacks_to_more_than_its_size_is_refused(tmp_path):
    """0.1.0 compressed nothing, so a file of it never does."""
    io.dump(old_pipeline(*MACHINES["rbf"][:1], *CLASSES), tmp_path / "plain.skops")
    file = tmp_path / "head.skops"
    with zipfile.ZipFile(tmp_path / "plain.skops") as plain, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
        packed.writestr("padding", bytes(10**7))
    with pytest.raises(ModelError, match="unpacks to more than its size"):
        load_head(tmp_path, old_config("svm", "classes"))


def test_a_schema_of_great_depth_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "head.skops", "w") as archive:
        archive.writestr("schema.json", "[" * 10**5 + "]" * 10**5)
    with pytest.raises(ModelError, match="cannot be read"):
        load_head(tmp_path, old_config("svm", "classes"))


@pytest.mark.parametrize("cut", [0, 10, 100, 1000])
def test_a_file_that_ends_early_is_refused(cut, tmp_path):
    io.dump(old_pipeline(*MACHINES["rbf"][:1], *CLASSES), tmp_path / "head.skops")
    content = (tmp_path / "head.skops").read_bytes()
    (tmp_path / "head.skops").write_bytes(content[:cut])
    with pytest.raises(ModelError, match="cannot be read"):
        load_head(tmp_path, old_config("svm", "classes"))
