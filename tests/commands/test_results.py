"""What every command prints with --json, key by key: programs of users read it."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.commands.results
from pipeline.commands.bases import BaseInfo
from pipeline.commands.demo import DemoResult
from pipeline.commands.doctor import DoctorResult
from pipeline.commands.evaluate import EvaluateResult
from pipeline.commands.extract import ExtractResult, RehearseResult
from pipeline.commands.finetune import FinetuneResult
from pipeline.commands.fit_head import FitResult
from pipeline.commands.info import InfoResult
from pipeline.commands.merge import MergeResult
from pipeline.commands.predict import PredictResult
from pipeline.commands.run import ExperimentResult, Step
from pipeline.commands.verify import VerifyResult
from pipeline.sources import Target
from pipeline.training.loop import Epoch

SECONDS = 1.23456
MERGED = MergeResult(Path("all.h5"), parts=2, rows=7)
MERGED_KEYS = {"store": "all.h5", "parts": 2, "rows": 7}
SCORES = {"val": {"accuracy": 0.98765, "per_class": [{"name": "ants", "f1": 1.0}]}}

RESULTS: list[tuple[Any, dict[str, Any]]] = [
    (
        ExtractResult(
            store=Path("a.h5"),
            rows=3,
            bad={"b.jpg": "corrupt"},
            computed=2,
            reused=1,
            seconds={"total": SECONDS},
            engine="torch",
            device="cpu",
            layers={"avgpool": (512,)},
            dropped=4,
            targets={"kind": Target("kind", np.array([0, 1, -1]), ("ants", "bees"))},
            notes=["a note"],
        ),
        {
            "store": "a.h5",
            "rows": 3,
            "good": 2,
            "bad": 1,
            "computed": 2,
            "reused": 1,
            "dropped": 4,
            "seconds": {"total": 1.235},
            "engine": "torch",
            "device": "cpu",
            "layers": {"avgpool": [512]},
            "bad_images": {"b.jpg": "corrupt"},
            "targets": {"kind": {"kind": "class", "known": 2, "classes": {"ants": 1, "bees": 1}}},
            "notes": ["a note"],
        },
    ),
    (
        RehearseResult(
            rows=3,
            image_bytes=10,
            store_bytes=20,
            free_bytes=30,
            seconds=SECONDS,
            sample=2,
            bad_in_sample=1,
            computed=2,
            reused=1,
        ),
        {
            "rows": 3,
            "image_bytes": 10,
            "store_bytes": 20,
            "free_bytes": 30,
            "seconds": SECONDS,
            "sample": 2,
            "bad_in_sample": 1,
            "computed": 2,
            "reused": 1,
        },
    ),
    (
        FitResult(
            model=Path("m"),
            head="linear",
            target="kind",
            layers=("avgpool", "fc6"),
            metrics=SCORES,
            chosen={"head": "linear", "C": 0.1},
            ranking=[{"head": "linear", "interval": (0.1, 0.2)}],
            compared_by="folds",
            notices=["a notice"],
            doubtful=2,
        ),
        {
            "model": "m",
            "head": "linear",
            "target": "kind",
            "layers": ["avgpool", "fc6"],
            "metrics": SCORES,
            "chosen": {"head": "linear", "C": 0.1},
            "ranking": [{"head": "linear", "interval": [0.1, 0.2]}],
            "compared_by": "folds",
            "notices": ["a notice"],
            "doubtful": 2,
            "unknown": None,
            "learning_curve": [],
        },
    ),
    (
        FinetuneResult(
            model=Path("m"),
            head="linear",
            target="kind",
            layers=("avgpool",),
            metrics=SCORES,
            chosen={"epoch": 1},
            epochs=[Epoch(1, {"loss": 0.123456}, {"loss": 0.5}, lr=0.001, seconds=SECONDS)],
            best_epoch=1,
            resumed=0,
            rows={"train": 2, "val": 1},
            bad={"b.jpg": "corrupt"},
            seconds=SECONDS,
            notices=["a notice"],
        ),
        {
            "model": "m",
            "head": "linear",
            "target": "kind",
            "layers": ["avgpool"],
            "metrics": SCORES,
            "chosen": {"epoch": 1},
            "epochs": [{"epoch": 1, "train_loss": 0.123456, "val_loss": 0.5, "lr": 0.001, "seconds": 1.235}],
            "best_epoch": 1,
            "cached": False,
            "looks": 1,
            "recipe": "",
            "cache": "",
            "resumed": 0,
            "verdict": None,
            "rows": {"train": 2, "val": 1},
            "bad": 1,
            "bad_images": {"b.jpg": "corrupt"},
            "seconds": 1.235,
            "notices": ["a notice"],
        },
    ),
    (
        EvaluateResult(Path("m"), rows=2, bad=1, split="val", metrics=SCORES, notices=["n"], output=Path("scored")),
        {
            "model": "m",
            "rows": 2,
            "bad": 1,
            "split": "val",
            "metrics": SCORES,
            "seen": 0,
            "notices": ["n"],
            "output": "scored",
            "threshold": None,
        },
    ),
    (
        EvaluateResult(Path("m"), rows=2, bad=0, split="all", metrics={}),
        {"model": "m", "rows": 2, "bad": 0, "split": "all", "metrics": {}, "seen": 0, "notices": [], "output": None}
        | {"threshold": None},
    ),
    (
        PredictResult([{"id": "a.jpg", "value": 1.23456, "interval": None}]),
        {"predictions": [{"id": "a.jpg", "value": 1.23456, "interval": None}], "threshold": None, "notices": []},
    ),
    (
        VerifyResult(["row 5 is wrong"], recomputed=3, largest_difference=1.23456e-5),
        {"ok": False, "problems": ["row 5 is wrong"], "recomputed": 3, "largest_difference": 1.23456e-5},
    ),
    (VerifyResult(), {"ok": True, "problems": [], "recomputed": 0, "largest_difference": 0.0}),
    (InfoResult({"store": "a.h5", "rows": 3}), {"store": "a.h5", "rows": 3}),
    (MERGED, MERGED_KEYS),
    (
        DoctorResult(engines={"torch": "works"}, failed={"blas": "ImportError: none"}),
        {
            "ok": True,
            "versions": {},
            "system": {},
            "blas": [],
            "engines": {"torch": "works"},
            "devices": {},
            "caches": {},
            "free": {},
            "failed": {"blas": "ImportError: none"},
            "cleaned": None,
        },
    ),
    (
        DemoResult(Path("d"), images=2, metrics={"svm": {"accuracy": 0.98765}}, seconds=SECONDS),
        {"folder": "d", "images": 2, "metrics": {"svm": {"accuracy": 0.98765}}, "seconds": 1.2},
    ),
    (
        ExperimentResult(Path("c.toml"), [Step("merge", Path("all.h5"), "it was not there", MERGED)]),
        {
            "config": "c.toml",
            "steps": [
                {"merge": MERGED_KEYS, "name": "merge", "ran": True, "why": "it was not there", "result": MERGED_KEYS}
            ],
        },
    ),
    (
        Step("fit-head", Path("m"), "up to date"),
        {"fit-head": {"output": "m"}, "name": "fit-head", "ran": False, "why": "up to date", "result": {"output": "m"}},
    ),
    (
        BaseInfo("resnet18", ("avgpool",), dimensions=512, parameters=11, weights=("V1",)),
        {"name": "resnet18", "layers": ["avgpool"], "dimensions": 512, "parameters": 11, "weights": ["V1"]},
    ),
]


@pytest.mark.parametrize(("result", "printed"), RESULTS, ids=lambda one: type(one).__name__)
def test_json_has_these_keys_and_values(result: Any, printed: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result.to_json())) == printed


def test_its_example_runs() -> None:
    assert doctest.testmod(pipeline.commands.results).failed == 0
