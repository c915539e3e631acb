"""The registry of heads: every name is one file, and a description that is damaged is one line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import config, heads
from pipeline.errors import ModelError
from pipeline.heads import HEADS, load_head

ROOT = Path(__file__).parents[2]
#: Clouds of one width around the mean of each class: all that a head has to say for itself.
TOY = '''
"""Nearest mean."""

import numpy as np

from pipeline.heads.affine import AffineHead
from pipeline.heads.calibration import ABSENT
from pipeline.heads.contract import Search
from pipeline.heads.tensors import Tensors


class ToyHead(AffineHead):
    name = "toy"
    learns = ("classes",)

    def train(self, problem, folds):
        standard, search = problem.standard(), Search(chosen={"width": 1})
        rows = standard.apply(problem.rows.array()).astype(np.float64)
        if folds is not None:
            scores, row_folds = np.empty((len(rows), problem.classes)), np.repeat(folds, problem.views)
            for fold in range(folds.max() + 1):
                weight, bias = means(problem, rows, row_folds != fold)
                scores[row_folds == fold] = rows[row_folds == fold] @ weight.T + bias
            search.scores = problem.per_image(scores)
            search.scores[~problem.known(folds)] = np.nan
        weight, bias = standard.fold(*means(problem, rows, np.ones(len(rows), bool)))
        self.place(Tensors.trained({"weight": weight, "bias": bias}))
        return search


def means(problem, rows, some):
    share = problem.row_weights * some * (problem.row_y == np.arange(problem.classes)[:, None])
    total = share.sum(axis=1)
    weight = share @ rows / np.maximum(total, 1e-9)[:, None]
    bias = np.log(np.maximum(total, 1e-9)) - np.square(weight).sum(axis=1) / 2
    return weight, np.where(total > 0, bias, ABSENT)
'''


def test_every_head_is_a_file_of_its_name() -> None:
    folder = Path(heads.__file__).parent
    assert set(HEADS) == set(config.HEADS)
    for name in HEADS:
        assert (folder / f"{name}.py").is_file()
        assert HEADS[name].__module__ == f"pipeline.heads.{name}"
        assert HEADS[name].name == name


@pytest.mark.parametrize("config", [{}, {"name": "linear"}, {"name": 3}])
def test_a_description_that_is_none_is_one_line(tmp_path: Path, config: dict[str, object]) -> None:
    with pytest.raises(ModelError) as refused:
        load_head(tmp_path, config)
    assert "\n" not in str(refused.value)


def test_a_new_head_is_one_file_and_one_name_and_is_tested_by_being_there(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests" / "heads").mkdir(parents=True)
    for file in ("pyproject.toml", "tests/heads/examples.py", "tests/heads/test_contract.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "pipeline/heads/toy.py").write_text(TOY)  # the file
    settings = tmp_path / "pipeline/config/__init__.py"
    names = re.compile(r"^HEADS = \(.*\)$", re.MULTILINE)  # its name; the other heads would be trained for nothing
    settings.write_text(names.sub('HEADS = ("linear", "toy")', settings.read_text()))
    contract = ["tests/heads/test_contract.py", "-k", "toy", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *contract], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) > 25
