"""Transfer learning with the expensive part done once.

>>> import pipeline
>>> store = pipeline.extract("photos", "artifacts/photos.h5")  # doctest: +SKIP
>>> model = pipeline.fit_head("artifacts/photos.h5", "artifacts/svm", head="svm")  # doctest: +SKIP
>>> pipeline.predict("artifacts/svm", ["new.jpg"])  # doctest: +SKIP

Every command of the command line is a function here, with the same options as keyword arguments. They are imported
when first asked for, so that `import pipeline` costs nothing.

Where things are, each package with a map of its own in its ``__init__``:

    cli.py                parse options, call one library function, print its result
    feature_extractor.py  the scikit-learn transformer: a thin coat over the embedder
    commands/             one file a command, named as the command
    models/               a trained model: its folder on disk, and what it answers
    training/             fine-tuning: rows, batches, the network that moves, the loop
    heads/                one file a head; contract.py says what a head is
    store/                feature files: format, writer, reader, parts
    engines/              what runs a base: embedder, workers, runners, batch size, cache
    bases/                networks by name, one file a collection; weights, layers by name
    images/               bytes to pixels to what a base sees
    sources/              one file a kind of source; manifest.py is what all are read into
    scores.py             labelled rows with a model's answers: metrics, rows of a table, plots
    splits.py             which rows are held out, which fold a row is in
    metrics.py            how good predictions are, and how sure that is
    plots.py              plots of a training
    config/               the settings of each stage, and the recipe of features
    errors.py             the exception tree
    registry.py           families of named things, with the near name for an unknown one
    files.py              files that are whole or absent
    devices.py            where the work runs: device and cores
    progress.py           how far the work is, on stderr
    interruption.py       Ctrl-C, obeyed in time
    text.py               what may be printed, and counts with their nouns
    versions.py           what a result was made with

A package imports only what stands left of it; config/ and what is no package are ground, but scores.py is of the heads:

    ground < sources < images < bases < engines < store < heads < models, training < commands < cli
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

# Before anything imports onnxruntime: it reports its use to its maker, and its own switch comes after the first report.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "export": "commands.export",
    "extract": "commands.extract",
    "fit_head": "commands.fit_head",
    "finetune": "commands.finetune",
    "predict": "commands.predict",
    "plot": "commands.plot",
    "evaluate": "commands.evaluate",
    "verify": "commands.verify",
    "info": "commands.info",
    "doctor": "commands.doctor",
    "merge": "commands.merge",
    "FeatureStore": "store",
    "FeatureExtractor": "feature_extractor",
    "load_model": "models.model",
    "run": "commands.run",
    "fetch": "commands.fetch",
    "label": "commands.label",
    "compare": "commands.compare",
    "list_bases": "commands.bases",
    "PipelineError": "errors",
}

__all__ = [
    "FeatureExtractor",
    "FeatureStore",
    "PipelineError",
    "compare",
    "doctor",
    "evaluate",
    "export",
    "extract",
    "fetch",
    "finetune",
    "fit_head",
    "info",
    "label",
    "list_bases",
    "load_model",
    "merge",
    "plot",
    "predict",
    "run",
    "verify",
]

if TYPE_CHECKING:  # the same for type checkers and editors, to which a module's __getattr__ would be Any for every name
    from pipeline.commands.bases import list_bases
    from pipeline.commands.compare import compare
    from pipeline.commands.doctor import doctor
    from pipeline.commands.evaluate import evaluate
    from pipeline.commands.export import export
    from pipeline.commands.extract import extract
    from pipeline.commands.fetch import fetch
    from pipeline.commands.finetune import finetune
    from pipeline.commands.fit_head import fit_head
    from pipeline.commands.info import info
    from pipeline.commands.label import label
    from pipeline.commands.merge import merge
    from pipeline.commands.plot import plot
    from pipeline.commands.predict import predict
    from pipeline.commands.run import run
    from pipeline.commands.verify import verify
    from pipeline.errors import PipelineError
    from pipeline.feature_extractor import FeatureExtractor
    from pipeline.models.model import load_model
    from pipeline.store import FeatureStore

    __version__: str
else:

    def __getattr__(name):
        if name == "__version__":
            from importlib.metadata import version

            return version("cached-feature-pipeline")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
