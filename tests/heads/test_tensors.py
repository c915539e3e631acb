"""Arrays of a head, checked as they are taken."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import HeadError, ModelError
from pipeline.heads.tensors import Tensors, write_tensors


def test_arrays_come_back_from_a_file_in_one_layout(tmp_path):
    write_tensors(tmp_path, {"weight": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "codes": np.array([1, 2])})
    tensors = Tensors.read(tmp_path)
    weight = tensors.take("weight", (2, None), np.float32)
    assert weight.flags.c_contiguous
    assert weight.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors.take("codes", (None,), np.int64).dtype == np.int64


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "message"),
    [
        ("bias", (None,), np.float64, "there is no 'bias'"),
        ("weight", (3, None), np.float64, "which should be 3 x any"),
        ("weight", (None,), np.float64, "does not fit"),
        ("weight", (2, 3), np.int64, "is of type float64"),
        ("holes", (2,), np.float64, "NaN or infinity"),
        ("large", (1,), np.float32, "NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_one_line(name, shape, dtype, message):
    found = {"weight": np.zeros((2, 3)), "holes": np.array([0, np.nan]), "large": np.array([1e300])}
    with pytest.raises(ModelError, match=message):
        Tensors(found, "here").take(name, shape, dtype)
    with pytest.raises(HeadError, match=message):
        Tensors.trained(found).take(name, shape, dtype)


def test_divisors_are_positive_and_may_be_infinite():
    tensors = Tensors({"scale": np.array([1, np.inf]), "zero": np.array([0.0])}, "here")
    assert tensors.divisors("scale", (2,)).tolist() == [1, np.inf]
    with pytest.raises(ModelError, match="not positive"):
        tensors.divisors("zero", (1,))


def test_a_file_that_is_missing_or_damaged_is_one_line(tmp_path):
    with pytest.raises(ModelError, match="there is no such file"):
        Tensors.read(tmp_path)
    (tmp_path / "head.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="cannot be read"):
        Tensors.read(tmp_path)
