"""Support vector machines from their arrays, against scikit-learn's own answers."""

from __future__ import annotations

import numpy as np
import pytest
from examples import blobs
from sklearn.svm import SVC

from pipeline.errors import ModelError
from pipeline.heads.machines import KernelMachine, LinearMachine, machine_of
from pipeline.heads.tensors import Tensors


def learned(classes):
    features, y = blobs(90, 6, classes)
    svc = SVC(C=1, gamma=0.3, decision_function_shape="ovr").fit(features.astype(np.float64), y)
    arrays = {
        "vectors": svc.support_vectors_.astype(np.float32),
        "counts": svc.n_support_.astype(np.int64),
        "coefficients": svc.dual_coef_,
        "intercept": svc.intercept_,
    }
    return svc, arrays, blobs(50, 6, classes, seed=4)[0]


@pytest.mark.parametrize("classes", [3, 5])
def test_pairs_vote_as_scikit_learns_do(classes):
    svc, arrays, fresh = learned(classes)
    settings = {"kind": "kernel", "kernel": "rbf", "gamma": 0.3}
    machine = machine_of(Tensors(arrays, "here"), settings, dimensions=6, groups=classes)
    np.testing.assert_allclose(machine.decide(fresh), svc.decision_function(fresh), atol=1e-5)
    assert machine.settings() == settings
    assert machine.arrays().keys() == arrays.keys()


def test_a_linear_machine_is_a_product():
    arrays = {"weight": np.array([[1.0, -2.0]]), "intercept": np.array([0.5])}
    machine = LinearMachine.of(Tensors(arrays, "here"), dimensions=2, groups=2)
    np.testing.assert_array_equal(machine.decide(np.array([[1, 1], [4, 0]], np.float32)), [-0.5, 4.5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": "poly"}, "'poly' is no kernel"),
        ({"gamma": -1.0}, "gamma is -1.0"),
        ({"gamma": float("inf")}, "gamma is inf"),
    ],
)
def test_settings_that_no_training_leaves_are_refused(changes, message):
    _, arrays, _ = learned(3)
    with pytest.raises(ModelError, match=message):
        KernelMachine.of(Tensors(arrays, "here"), {"kernel": "rbf", "gamma": 0.3, **changes}, dimensions=6, groups=3)
