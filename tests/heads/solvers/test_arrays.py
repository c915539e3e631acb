"""Arrays of both libraries by one name, and the device that a solver takes."""

from __future__ import annotations

import sys

import numpy as np
import torch

from pipeline.heads.solvers.arrays import cast, device_of, library, places, put, solver_device, take_home, zeros


def test_the_solver_runs_on_the_cpu_where_it_is_asked_to():
    assert solver_device("cpu") is None


def test_mps_has_no_double_precision(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert solver_device("auto") is solver_device("mps") is None
    monkeypatch.setattr(sys, "platform", "darwin")
    assert solver_device("auto") is None


def test_what_is_put_on_a_device_is_of_torch_and_comes_home_again():
    array = np.arange(6.0).reshape(2, 3).T
    there = put(array, torch.device("cpu"))
    assert (library(there), library(put(array, None))) == (torch, np)
    np.testing.assert_array_equal(take_home(there), array)
    for one in (array, there):
        assert zeros((2,), one).dtype == one.dtype
        assert cast(one, zeros((1,), put(np.zeros(1, np.float32), device_of(one)))).dtype != one.dtype
        assert take_home(places(one[:, 0] > 0)).tolist() == [1, 2]
