"""Settings, one validated class a stage, and the recipe that identifies the content of a feature file.

A field's type, default, limits and description are written here once: the library's keyword arguments, the
options of the command line and the keys of a configuration file are all read from these classes.

options.py     the same as keyword arguments, for type checkers and editors; generated
signatures.py  the same as a function's signature, and the options in its docstring
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from pipeline.devices import KINDS
from pipeline.errors import RecipeMismatchError, SettingsError
from pipeline.registry import unknown

Pool = Literal["none", "avg", "max", "flatten"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
Device = str  # auto, cpu, cuda, cuda:1, mps

#: The augmentations, here for the help, which loads no images; a test holds them to their registry.
AUGMENTATIONS = ("crop", "flip", "vflip", "mirror", "rotate", "brightness")
#: The kinds of source and what each looks like, in the order of the help; a test holds the names to their registry.
SOURCES = {
    "folder": "a folder (flat, one folder a class, or train/val/test with class folders)",
    "csv": "a .csv or .tsv file with a column of image paths",
    "parquet": "a .parquet file with a column of image paths or image bytes",
    "list": "a .txt file with one path a line",
    "tar": "a .tar file (WebDataset's, or of folders), or a folder of them",
    "zip": "a .zip file, of folders as above",
    "torchvision": "torchvision:NAME?root=DIR, a dataset of torchvision",
}
#: The layers that have a name of their own in some family of bases.
LAYERS = ("avgpool", "pool5", "fc6", "fc7", "cls", "tokens")
_DEVICES = f"auto, {', '.join(KINDS)} or cuda:N"
#: The heads, a file of `pipeline.heads` each: a name is registered by standing here.
HEADS = ("linear", "svm", "ridge", "knn", "mlp", "binned", "blend")
#: What stands for the best of several heads.
CHOOSERS = ("regressor", "auto")


def _listed(value: Any) -> Any:
    """Make one text a list of one, as it is on the command line."""
    return (value,) if isinstance(value, str) else value


def _parted(value: Any) -> Any:
    """Make one text a list, in which a comma separates values."""
    values = _listed(value)
    if not isinstance(values, Sequence) or not all(isinstance(one, str) for one in values):
        return values
    return tuple(part.strip() for one in values for part in one.split(","))


def _pattern_checked(group: str) -> str:
    """Return the name of a column, or ``regex:`` and a pattern, as it is. Raises `ValueError` where that is none."""
    if group.startswith("regex:"):
        try:
            re.compile(group.removeprefix("regex:"))
        except re.error as error:
            raise ValueError(f"group={group!r} is no pattern: {error}") from None
    return group


_GROUP = "Column or regex:PATTERN over ids; equal ones (patient, camera, video) are never parted."
_TEST = "Share held out for the last word, where there is no test split; 0: none."

Columns = Annotated[tuple[str, ...], BeforeValidator(_listed)]  # the name of a column may hold a comma
Names = Annotated[tuple[str, ...], BeforeValidator(_parted)]
GroupText = Annotated[str, AfterValidator(_pattern_checked)]
#: Marks a text that names a file or a folder, which may be given as a path.
PATH = "path"
PathText = Annotated[str, PATH]
Count = Annotated[int, Field(ge=1, le=512)]  # of threads or processes
Images = Annotated[int, Field(ge=1, le=65_536)]
Gigabytes = Annotated[float, Field(gt=0, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


class Settings(BaseModel):
    """Base of all settings: an unknown key is an error that names the nearest known one."""

    # A command builds the validator of its own settings only: `--help` needs the fields of all and no validator.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Validate `options`; raise `SettingsError` with one line for the first thing that is wrong."""
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "settings"
            if first["type"] == "extra_forbidden":
                raise SettingsError(unknown("option", name, cls.model_fields)) from None
            if first["type"] == "value_error":
                raise SettingsError(first["msg"].removeprefix("Value error, ")) from None
            wanted = _wanted(cls.model_fields[name]) if name in cls.model_fields else first["msg"]
            raise SettingsError(f"{name}={options.get(name)!r}: give {wanted}") from None

    @model_validator(mode="before")
    @classmethod
    def _paths_are_texts_without_nul(cls, options: Any) -> Any:
        if not isinstance(options, dict):
            return options
        texts = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in options.items()}
        for name, value in texts.items():
            if isinstance(value, str) and "\0" in value:
                raise ValueError(f"{name} holds a NUL character, which no file or column name can hold")
        return texts


#: How a kind of value is called.
_KINDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}


def _wanted(field: FieldInfo) -> str:
    """Describe the values of a field: ``auto, or a whole number, at least 1 and at most 512``."""
    if get_origin(field.annotation) is tuple:
        return "a list of texts"
    if get_origin(field.annotation) is Literal:
        return _described(field.annotation, [])
    parts = get_args(field.annotation) or (field.annotation,)
    return ", or ".join(_described(part, field.metadata) for part in parts if part is not type(None))


def _described(annotation: Any, limits: Sequence[Any]) -> str:
    if get_origin(annotation) is Annotated:
        kind, *more = get_args(annotation)
        return _described(kind, [*limits, *(one for field in more for one in getattr(field, "metadata", [field]))])
    if get_origin(annotation) is Literal:
        return " or ".join(get_args(annotation))
    words = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
    found = {word: getattr(limit, word) for limit in limits for word in words if hasattr(limit, word)}
    said = " and ".join(words[word].format(value) for word, value in found.items())
    return f"{_KINDS[annotation]}, {said}" if said else _KINDS[annotation]


#: Pixels of an image, unless max_pixels says otherwise: 8192 x 8192.
MAX_PIXELS = 64 * 2**20
#: What max_pixels may be: past this Pillow itself refuses.
MOST_PIXELS = 2**29


class ImageSettings(Settings):
    """Limits on the images that are decoded."""

    max_pixels: int = Field(MAX_PIXELS, ge=1, le=MOST_PIXELS, description="Pixels of the largest image decoded.")


class EngineSettings(Settings):
    """Engine, device and share of the machine that run a base; features are the same within rounding with any."""

    engine: Literal["auto", "torch", "onnxruntime", "openvino"] = Field(
        "auto", description="Engine that runs the base."
    )
    device: Device = Field("auto", description=f"{_DEVICES}.")
    compile: bool = Field(False, description="Compile the base with torch, on a GPU: slower to start, faster to run.")
    batch_size: Literal["auto"] | Images = Field("auto", description="Images a forward pass; auto: measured.")
    memory: Literal["auto"] | Gigabytes = Field(
        "auto", description="GB for forward passes; auto: half of what is free."
    )
    workers: Literal["auto"] | Count = Field("auto", description="Decoding threads.")

    def batch_or(self, auto: int) -> int:
        """Return the images a batch, `auto` where that is left to us."""
        return auto if self.batch_size == "auto" else self.batch_size


class RunSettings(EngineSettings, ImageSettings):
    """Settings of any run of a recipe: the limits on its images, and its engine."""


class RerunSettings(RunSettings):
    """Settings of a second run of the recipe of a model or of a feature file."""

    weights: PathText | None = Field(None, description="The base's weights, where the recorded file has moved.")


class SourceSettings(Settings):
    """Settings of a source: columns, folders and the table of labels."""

    image_column: str | None = Field(None, description="Column of the table that names the image files.")
    target: Columns = Field((), description="Target column(s) of the table; numbers or classes.")
    id_column: str | None = Field(None, description="Column with a unique id; the image path otherwise.")
    split_column: str | None = Field(None, description="Column with train, val or test.")
    image_root: PathText | None = Field(None, description="Folder that image paths are relative to.")
    labels: PathText | None = Field(None, description="CSV or Parquet table with labels for the images.")
    depth: Literal["first", "any"] = Field(
        "first", description="Folder that is an image's class: the first on its path, or any: the one it is in."
    )


class FetchSettings(Settings):
    """Settings of a download of images from a list of URLs."""

    max_mb: float = Field(50.0, gt=0, le=100_000, description="MB of the largest file taken.")
    timeout: float = Field(60.0, gt=0, le=86_400, description="Seconds that one attempt may take in all.")
    retries: int = Field(3, ge=0, le=20, description="Further attempts after what may pass, such as HTTP 503.")
    connections: Count = Field(16, description="Connections at once.")
    per_host: Count = Field(4, description="Connections at once to one host.")
    allow_private: bool = Field(False, description="Also fetch from private and local addresses.")


class LabelSettings(SourceSettings):
    """Settings of the numbers that are drawn for the classes of images."""

    normal: Columns = Field((), description="CLASS=MEAN,SPREAD,FLOOR, for every class.")
    column: str = Field("value", min_length=1, description="Name of the column of numbers.")
    seed: Seed = Field(13, description="Seed of everything random.")


class PlotSettings(SourceSettings):
    """Settings of the pictures of a model, a feature file or a source."""

    kind: Names = Field((), description="predictions, mistakes, confusion, predicted, learning, ranking, batch, ...")
    source: PathText | None = Field(None, description="Where the images are, if not where the model or file says.")
    augment: Names = Field((), description="Random views of the batch of a source, such as crop,flip.")
    seed: Seed = Field(13, description="Seed of everything random.")

    def of_source(self) -> SourceSettings:
        """Return the settings of the source alone."""
        return SourceSettings.of({name: getattr(self, name) for name in SourceSettings.model_fields})


class CompareSettings(Settings):
    """Settings of the comparison of models."""

    split: Literal["auto", "val", "test"] = Field("auto", description="Held-out rows of models; auto: test, else val.")
    seed: Seed = Field(13, description="Seed of everything random.")


class BaseSettings(Settings):
    """Settings of a base: its name, its weights and the size of its input."""

    base: str = Field(
        "resnet18", description="Frozen base: a torchvision model, timm:NAME, scratch:NAME, or a fine-tuned model."
    )
    weights: PathText = Field(
        "DEFAULT",
        description="DEFAULT, a published name, embedded, none (random) or a file.",
        examples=["DEFAULT", "embedded", "none"],
    )
    size: int | None = Field(None, ge=1, le=1024, description="Pixels of the input's shorter side, not the base's own.")
    fit: Literal["shortest", "longest", "stretch"] | None = Field(
        None,
        description="Side of an image that fits: shortest (the rest is cut), longest (filled up), or stretch; as made.",
    )


class EvaluateSettings(RerunSettings, SourceSettings):
    """Settings of the evaluation of a model on labelled images."""

    group: GroupText | None = Field(None, description=_GROUP)


class ExtractSettings(RunSettings, SourceSettings, BaseSettings):
    """Settings of stage one: images to features."""

    layer: Names = Field(
        ("avgpool",),
        description=f"Layer(s) to keep: {', '.join(LAYERS)}, or a module.",
        examples=[*LAYERS],
    )
    pool: Pool = Field("none", description="How a layer's map becomes a row.")
    views: int = Field(0, ge=0, le=64, description="Random views to cache beside the plain one.")
    augment: Names = Field(
        (),
        description=f"Augmentations of a random view: {','.join(AUGMENTATIONS)}.",
        examples=[*AUGMENTATIONS],
    )
    decode: Literal["exact", "fast"] = Field("exact", description="fast: scaled JPEG decoding, another recipe.")
    precision: Precision = Field("fp32", description="Arithmetic of the forward pass.")
    dtype: Literal["float32", "float16"] = Field("float32", description="Numbers kept in the file.")
    device: Device = Field("auto", description=f"{_DEVICES}; several: cuda:0,cuda:1 or all.")
    rows: str | None = Field(None, description="START:STOP, only these rows: a part, to be merged.")
    part: str | None = Field(None, description="K/N, the K-th of N parts of the rows.")
    on: str | None = Field(
        None, description="ray[:ADDRESS]: work as parts on a Ray cluster, or on this machine; -o is their folder."
    )
    part_rows: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="Rows of such a part; auto: about 10,000."
    )
    merge: bool = Field(False, description="Make one file, -o, of the parts that --on makes.")
    image_seconds: float = Field(
        300, gt=0, le=86_400, description="Seconds without one more image after which --on looks for the one at fault."
    )
    rehash: bool = Field(False, description="Read every file again, whatever its size and time say.")
    max_bad: float = Field(0.1, ge=0, le=1, description="Largest share of bad images that is not an error.")
    seed: Seed = Field(13, description="Seed of everything random.")

    @model_validator(mode="after")
    def _parts_are_cut_once(self) -> Self:
        if self.on is None:
            given = [name for name in ("merge", "part_rows", "image_seconds") if self._is_changed(name)]
            if given:
                raise ValueError(f"{given[0]} is for the parts that on makes; give on=ray, or leave it out")
            return self
        if re.fullmatch(r"ray(:.+)?", self.on) is None:
            raise ValueError(f"on={self.on!r} is no cluster; give ray (this machine), ray:auto or ray:HOST:PORT")
        if self.rows is not None or self.part is not None:
            raise ValueError("on cuts the rows into parts by itself; leave out rows and part")
        if self.device not in ("auto", *KINDS):
            raise ValueError(f"device={self.device!r} is for one process; with on=ray give auto, cpu or cuda")
        return self

    def _is_changed(self, name: str) -> bool:
        return bool(getattr(self, name) != ExtractSettings.model_fields[name].default)

    @model_validator(mode="after")
    def _views_need_augment(self) -> Self:
        if self.views and not self.augment:
            raise ValueError("views > 0 needs augment: every random view would be the plain one")
        if self.augment and not self.views:
            raise ValueError("augment needs views > 0: the plain view is never augmented")
        return self


class FinetuneSettings(SourceSettings, BaseSettings, ImageSettings):
    """Settings of stage three: train the base too, wholly or in part. What is left out is decided by the recipe."""

    recipe: Literal["default", "tutorial"] = Field(
        "default",
        description="What decides the settings left out: default, by rows and input, keeping the head where it is not "
        "beaten; tutorial, PyTorch's.",
    )

    head: PathText | None = Field(None, description="Model folder of a fitted linear head to start from, and its base.")
    layer: Names = Field(("avgpool",), description="Layer(s) that a fresh head takes.", examples=[*LAYERS])
    pool: Pool = Field("none", description="How a layer's map becomes a row.")
    train: Names = Field(
        (),
        description="Parameters to train: head, all, last:N blocks, or modules such as layer4 or features.1?.",
        examples=["head", "all"],
    )
    freeze_norm: bool | None = Field(None, description="Keep batch norm as in evaluation where the rest is trained.")
    beat_head: bool | None = Field(None, description="Keep the model of the head unless training is surely better.")
    epochs: int | None = Field(None, ge=1, description="Passes over the training rows.")
    patience: int = Field(0, ge=0, description="Epochs without a better one that end the training; 0: none do.")
    batch_size: int | None = Field(None, ge=1, description="Images a step.")
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] | None = Field(None, description="Optimizer.")
    lr: float | None = Field(None, gt=0, description="Learning rate of the head, and of the base times its decay.")
    base_lr: float | None = Field(None, gt=0, description="Learning rate of the base's last block, where another.")
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="Factor of the rate from each block to that before."
    )
    warmup: float | None = Field(None, ge=0, lt=1, description="Share of the steps in which the rate rises to its own.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd.")
    weight_decay: float | None = Field(None, ge=0, description="Weight decay; norms and biases have none.")
    label_smoothing: float | None = Field(None, ge=0, lt=1, description="Share of a label that all classes share.")
    step: int | None = Field(None, ge=0, description="Epochs until the rate drops; 0: never; no number: by a cosine.")
    gamma: float = Field(0.1, gt=0, le=1, description="Factor of the learning rate at each drop.")
    class_weight: Literal["none", "balanced"] = Field("none", description="balanced: rare classes count more.")
    clip: float = Field(5.0, ge=0, description="Clip gradients to this norm; 0 disables clipping.")
    augment: Names = Field(
        ("crop", "flip"),
        description=f"Augmentations of training rows: {','.join(AUGMENTATIONS)}; or none.",
        examples=[*AUGMENTATIONS, "none"],
    )
    cache: Literal["auto", "always", "never"] = Field(
        "auto", description="Compute what is frozen once, and train the rest from there; auto: where that is faster."
    )
    cache_dtype: Literal["float32", "float16"] = Field("float32", description="Type of what is cached.")
    memory: Literal["auto"] | Gigabytes = Field(
        "auto", description="GB of images, or of what is cached, to hold; auto: half of what is free."
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the steps; rows are judged in fp32.")
    views: int = Field(4, ge=1, le=64, description="Random views of a training image that are cached for the epochs.")
    val: float = Field(0.1, ge=0, lt=1, description="Share held out where the source has no split; not 0.")
    test: float = Field(0.0, ge=0, lt=1, description=_TEST)
    group: GroupText | None = Field(None, description=_GROUP)
    max_bad: float = Field(0.1, ge=0, le=1, description="Largest share of bad images that is not an error.")
    device: Device = Field("auto", description=f"{_DEVICES}.")
    workers: Literal["auto"] | Count = Field("auto", description="Decoding threads.")
    seed: Seed = Field(13, description="Seed of everything random.")

    @property
    def is_balanced(self) -> bool:
        """Equal weights for all classes, however often each occurs."""
        return self.class_weight == "balanced"

    @model_validator(mode="after")
    def _head_brings_its_base(self) -> Self:
        given = {name for name in self.model_fields_set if getattr(self, name) is not None}
        twice = [name for name in ("base", "size", "fit", "layer", "pool") if name in given]
        if self.head is not None and twice:
            raise ValueError(f"{twice[0]} comes from the model folder that head names; leave it out")
        return self

    @model_validator(mode="after")
    def _there_is_a_head_to_beat(self) -> Self:
        if self.beat_head and self.head is None and (self.recipe == "tutorial" or self.weights == "none"):
            raise ValueError("beat_head needs head: a fitted head to compare with")
        return self

    @model_validator(mode="after")
    def _some_rows_judge(self) -> Self:
        if self.val == 0:
            raise ValueError("val=0: held-out rows decide which epoch is kept; hold some out, such as val=0.1")
        return self

    @model_validator(mode="after")
    def _words_stand_alone(self) -> Self:
        for name, word in (("train", "all"), ("train", "head"), ("augment", "none")):
            values = getattr(self, name)
            if word in values and len(values) > 1:
                raise ValueError(f"{name}={word} stands alone; leave out the rest")
        return self


class FitSettings(Settings):
    """Settings of stage two: a head on cached features. Options left out are searched or follow from the data."""

    head: str = Field("linear", description=f"{', '.join([*HEADS, *CHOOSERS])}.", examples=[*HEADS, *CHOOSERS])
    target: str | None = Field(None, description="Target to predict, where the file has several.")
    layer: Names = Field((), description="Layer(s) to train on, side by side; all where none is named.")
    val: float = Field(0.1, ge=0, lt=1, description="Share held out where the file has no split; 0: train on all.")
    test: float = Field(0.0, ge=0, lt=1, description=_TEST)
    cv: int = Field(5, ge=2, le=50, description="Folds of the search, within training rows.")
    group: GroupText | None = Field(None, description=_GROUP)
    near: Literal["report", "group", "off"] = Field(
        "report", description="Near-twins by their features: report counts them, group never parts them."
    )
    score_views: Literal["plain", "mean"] = Field(
        "plain", description="Answer by the plain view of an image, or by the mean over its views, also in predict."
    )
    class_weight: Literal["none", "balanced"] = Field("none", description="balanced: rare classes count more.")
    sample_weight: str | None = Field(None, description="Numeric target of the file that weighs its rows.")
    learning_curve: bool = Field(False, description="Also score a ridge head against the number of training rows.")
    contest: bool = Field(False, description="For auto: rank heads by nested cross-validation; six times the work.")
    minutes: float | None = Field(
        None, gt=0, le=1_000_000, description="For auto and regressor: time after which no head is searched."
    )
    power: Literal["auto", "none", "sqrt"] = Field(
        "auto", description="Features as they are, or their root with rows of length 1; auto: if clearly better."
    )
    solver: Literal["lbfgs", "sgd"] = Field(
        "lbfgs", description="For linear: the exact optimum, or the tutorials' epochs."
    )
    kernel: Literal["auto", "linear", "rbf"] = Field("auto", description="For svm; auto takes the better one.")
    hidden: int = Field(256, ge=1, description="Hidden units of mlp.")
    optimizer: Literal["sgd", "adam", "rmsprop"] | None = Field(
        None, description="For mlp (rmsprop) and for linear with solver=sgd (sgd)."
    )
    epochs: int | None = Field(None, ge=1, description="Most epochs; 40 for mlp, 25 for solver=sgd.")
    batch_size: int | None = Field(None, ge=1, description="Rows a step; 4 for solver=sgd, for mlp by their number.")
    lr: float = Field(0.001, gt=0, description="Learning rate of mlp and of solver=sgd.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of optimizer=sgd.")
    step: int = Field(7, ge=0, description="For solver=sgd: epochs until lr drops to a tenth; 0: never.")
    coverage: float = Field(0.9, gt=0, lt=1, description="Share of truths in intervals of numbers and sets of classes.")
    no_unknown: bool = Field(False, description="Say nothing of how unlike the training pictures an image is.")
    memory: Gigabytes = Field(2.0, description="GB of features to hold; more are streamed from the file.")
    device: Device = Field("auto", description="Of linear, svm, binned: auto, cpu, cuda, cuda:N; MPS has no doubles.")
    jobs: Literal["auto"] | Count = Field("auto", description="Threads where svm learns numbers; auto: one a core.")
    seed: Seed = Field(13, description="Seed of everything random.")

    @model_validator(mode="after")
    def _only_choosers_compare(self) -> Self:
        if self.contest and self.head != "auto":
            raise ValueError(f"contest is for head=auto, which compares heads; head={self.head} is not compared")
        if self.minutes is not None and self.head not in ("auto", "regressor"):
            raise ValueError(f"minutes is for head=auto and regressor, which can leave heads out; not for {self.head}")
        return self


class Calibration(Settings):
    """Ranges of activations, by their names in the graph, from which an int8 graph is made beside the base.

    They were measured on so many `images`, in the graph of all `layers`, of which a model may take fewer.
    """

    version: Literal[1] = 1
    images: int = Field(ge=1)
    layers: tuple[str, ...]
    ranges: dict[str, tuple[float, float]] = Field(min_length=1, max_length=100_000)

    def fingerprint(self) -> str:
        """Return the sha256 of all of it, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


class Recipe(Settings):
    """Everything that decides the numbers in a feature file: the same recipe gives the same features."""

    version: int = 1
    base: str
    weights: str = Field(description="sha256 of the weights' tensors")
    layers: tuple[str, ...]
    pool: Pool
    transform: dict[str, Any]
    pixels: int = Field(description="version of the pixel policy")
    decode: Literal["exact", "fast"]
    views: int
    augment: tuple[str, ...]
    seed: int | None = Field(description="of the random views; None without")
    precision: Precision
    dtype: Literal["float32", "float16"]
    calibration: Calibration | None = Field(default=None, description="of int8; None of any other precision")

    @model_serializer(mode="wrap")
    def _as_before_int8(self, serialize: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        """Leave out a calibration that is none: other recipes are the same text in any version of this package."""
        fields = serialize(self)
        return fields if self.calibration else {name: fields[name] for name in fields if name != "calibration"}

    @classmethod
    def plain(
        cls, *, base: str, weights: str, layers: Sequence[str], pool: str, transform: dict[str, Any], pixels: int
    ) -> Self:
        """Make a recipe without random views: exact decoding, single precision; raise `SettingsError`."""
        given = {"base": base, "weights": weights, "layers": layers, "pool": pool, "transform": transform}
        fixed = {"decode": "exact", "views": 0, "augment": (), "seed": None, "precision": "fp32", "dtype": "float32"}
        return cls.of({**given, "pixels": pixels, **fixed})

    def canonical(self) -> str:
        """Return the recipe as JSON with sorted keys: the text that is written to the file and hashed."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def fingerprint(self) -> str:
        """Return the sha256 of `canonical`, in hexadecimal."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def first_difference(self, other: Recipe) -> tuple[str, Any, Any] | None:
        """Return the first field in which two recipes differ, with both values; None where they agree."""
        mine, theirs = _flat(self), _flat(other)
        names = (name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name))
        return next(((name, mine.get(name), theirs.get(name)) for name in names), None)

    def refuse_other(self, other: Recipe, *, where: str | Path, way_out: str) -> None:
        """Raise `RecipeMismatchError` with the first field in which `other`, by which `where` was made, differs."""
        if difference := self.first_difference(other):
            name, asked, found = difference
            raise RecipeMismatchError(f"{where} was made with {name}={found!r}, and {asked!r} is asked for; {way_out}")

    def refuse_without(self, other: Recipe, *, where: str | Path, way_out: str, views: bool = False) -> None:
        """Raise `RecipeMismatchError` unless features made by `other` hold this recipe's layers, beside any others.

        With `views` they have to hold the same views too.
        """
        missing = next((layer for layer in self.layers if layer not in other.layers), None)
        if missing is not None:
            raise RecipeMismatchError(f"{where} has no layer {missing!r}; extract with --layer {missing}, or {way_out}")
        free = ("layers",) if views else ("layers", "views", "augment", "seed")
        same = {name: getattr(self, name) for name in free}
        self.refuse_other(other.model_copy(update=same), where=where, way_out=way_out)


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Return the fields with those of the transform beside the others, as transform.crop and so on.

    The fit comes first of those, since it decides on others. Ranges of activations are named by their digest.
    """
    fields = recipe.model_dump(mode="json")
    if recipe.calibration:
        fields["calibration"] = recipe.calibration.fingerprint()[:12]
    transform = sorted(fields.pop("transform").items(), key=lambda item: item[0] != "fit")
    inner = {f"transform.{name}": value for name, value in transform}
    return {**fields, **inner}
