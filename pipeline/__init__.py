"""Transfer learning with the expensive part done once.

>>> import pipeline
>>> store = pipeline.extract("photos", "artifacts/photos.h5")  # doctest: +SKIP
>>> model = pipeline.fit_head("artifacts/photos.h5", "artifacts/svm", head="svm")  # doctest: +SKIP
>>> pipeline.predict("artifacts/svm", ["new.jpg"])  # doctest: +SKIP

Every command of the command line is a function here, with the same options as keyword arguments. They are imported
when first asked for, so that `import pipeline` costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

# Before anything imports onnxruntime: it reports its use to its maker, and its own switch comes after the first report.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "extract": "extraction",
    "fit_head": "fitting",
    "finetune": "finetuning",
    "predict": "prediction",
    "evaluate": "evaluation",
    "verify": "verification",
    "info": "description",
    "merge": "merging",
    "FeatureStore": "store",
    "FeatureExtractor": "transformer",
    "load_model": "models.model",
    "run": "experiment",
    "list_bases": "commands.bases",
    "PipelineError": "errors",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("cached-feature-pipeline")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
