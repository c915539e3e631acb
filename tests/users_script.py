# mypy: disallow-any-expr
"""A user's script with every public name. It is not run: mypy reads it, to which no expression here may be Any."""

from pathlib import Path
from typing import assert_type

import pipeline
from pipeline import FeatureExtractor, FeatureStore, PipelineError
from pipeline.commands.bases import BaseInfo
from pipeline.commands.compare import CompareResult
from pipeline.commands.evaluate import EvaluateResult
from pipeline.commands.export import ExportResult
from pipeline.commands.extract import ExtractResult
from pipeline.commands.fetch import FetchResult
from pipeline.commands.finetune import FinetuneResult
from pipeline.commands.fit_head import FitResult
from pipeline.commands.info import InfoResult
from pipeline.commands.label import LabelResult
from pipeline.commands.merge import MergeResult
from pipeline.commands.plot import PlotResult
from pipeline.commands.predict import PredictResult
from pipeline.commands.run import ExperimentResult
from pipeline.commands.verify import VerifyResult
from pipeline.models.model import Model

photos = Path("photos")
try:
    extracted = pipeline.extract(photos, "a.h5", batch_size=8, layer=["fc6", "fc7"], labels=Path("labels.csv"))
except PipelineError as error:
    raise SystemExit(str(error)) from error
assert_type(extracted, ExtractResult)
assert_type(extracted.store, Path)
assert_type(pipeline.fit_head(extracted.store, "m", head="svm", kernel="rbf", memory=1.5, force=True), FitResult)
assert_type(pipeline.finetune(photos, "tuned", head=Path("m"), train="all", lr=None), FinetuneResult)
assert_type(pipeline.predict("m", photos, device="cpu", csv="answers.csv"), PredictResult)
assert_type(pipeline.evaluate("m", "a.h5", split="val", target=("kind",)), EvaluateResult)
assert_type(pipeline.verify("a.h5", recompute=3, engine="torch").ok, bool)
assert_type(pipeline.verify("a.h5"), VerifyResult)
assert_type(pipeline.doctor().engines, dict[str, str])
assert_type(pipeline.info("a.h5"), InfoResult)
assert_type(pipeline.merge(["1.h5", Path("2.h5")], "all.h5"), MergeResult)
assert_type(pipeline.run("experiment.toml", force=True), ExperimentResult)
assert_type(pipeline.fetch(["cat=cats.txt"], "images", per_host=2), FetchResult)
assert_type(pipeline.label("images", "images/n.csv", normal=["cat=40,8,10"], column="length"), LabelResult)
assert_type(pipeline.export("m", "m.onnx", input="pixels"), ExportResult)
assert_type(pipeline.compare(["m", Path("tuned")], split="val").rows, int)
assert_type(pipeline.compare("m"), CompareResult)
assert_type(pipeline.plot("m", "pictures", kind=("confusion", "mistakes"), source=photos), PlotResult)
assert_type(pipeline.load_model("m", weights=Path("w.pt"), workers="auto"), Model)
assert_type(pipeline.list_bases("vgg"), list[BaseInfo])
assert_type(pipeline.__version__, str)
with FeatureStore.open("a.h5") as store:
    assert_type(store, FeatureStore)
    assert_type(store.ids, list[str])
extractor = FeatureExtractor("resnet18", weights="embedded", layer="fc6")
assert_type(extractor, FeatureExtractor)
assert_type(extractor.fit_transform(["a.jpg"]).tobytes(), bytes)
assert_type(extractor.fit(["a.jpg"]).transform(["a.jpg"]).tobytes(), bytes)

# What is wrong is found before it runs; where it were not, the comment would be the error.
pipeline.extract(photos, "a.h5", bach_size=8)  # type: ignore[call-arg]
pipeline.extract(photos, "a.h5", batch_size="many")  # type: ignore[arg-type]
pipeline.fit_head("a.h5", "m", kernel="cubic")  # type: ignore[arg-type]
pipeline.FeatureExtractor(engine="fast")  # type: ignore[arg-type]
pipeline.extracd(photos, "a.h5")  # type: ignore[attr-defined]
