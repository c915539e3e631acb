"""One matrix and one vector: what they answer, and what is kept of them."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import HeadError, ModelError
from pipeline.heads import LinearHead, load_head

WEIGHT, BIAS = np.array([[1.0, 0, 0], [0, 2.0, 0]]), np.array([0.5, -1.0])


def test_scores_are_a_product_and_a_sum():
    head = LinearHead.from_weights(WEIGHT, BIAS, task="classes")
    assert (head.dimensions, head.outputs) == (3, 2)
    said = head.decision_function(np.array([[1, 1, 9], [2, 0, 9]], np.float32))
    np.testing.assert_array_equal(said, [[1.5, 1.0], [2.5, -1.0]])


def test_a_bias_keeps_what_single_precision_loses(tmp_path):
    head = LinearHead.from_weights(WEIGHT, BIAS + 1.7e9, task="classes")
    again = load_head(tmp_path, {"name": "linear", **head.save(tmp_path)})
    assert again.bias.tolist() == (BIAS + 1.7e9).tolist()
    assert again.weight.dtype == np.float32


def test_a_vector_of_another_length_is_refused(tmp_path):
    with pytest.raises(HeadError, match="bias"):
        LinearHead.from_weights(WEIGHT, BIAS[:1], task="classes")
    head = LinearHead.from_weights(WEIGHT, BIAS, task="classes")
    config = {"name": "linear", **head.save(tmp_path)}
    head.bias = head.bias[:1]
    head.save(tmp_path)
    with pytest.raises(ModelError, match="bias"):
        load_head(tmp_path, config)
