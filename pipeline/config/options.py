"""The keyword arguments of the library's functions, for type checkers and editors, which run no code.

Generated from the settings classes of `pipeline.config`, where each has its default, limits and meaning, by
``python tests/generated.py --write``; a test holds it to them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, TypedDict


class ExtractOptions(TypedDict, total=False):
    """The fields of `ExtractSettings`."""

    base: str
    weights: str | os.PathLike[str]
    size: int | None
    fit: Literal["shortest", "longest", "stretch"] | None
    image_column: str | None
    target: str | Sequence[str]
    id_column: str | None
    split_column: str | None
    image_root: str | os.PathLike[str] | None
    labels: str | os.PathLike[str] | None
    depth: Literal["first", "any"]
    max_pixels: int
    engine: Literal["auto", "torch", "onnxruntime", "openvino"]
    device: str
    compile: bool
    batch_size: Literal["auto"] | int
    memory: Literal["auto"] | float
    workers: Literal["auto"] | int
    layer: str | Sequence[str]
    pool: Literal["none", "avg", "max", "flatten"]
    views: int
    augment: str | Sequence[str]
    decode: Literal["exact", "fast"]
    precision: Literal["fp32", "bf16", "fp16", "int8"]
    dtype: Literal["float32", "float16"]
    rows: str | None
    part: str | None
    on: str | None
    part_rows: Literal["auto"] | int
    merge: bool
    image_seconds: float
    rehash: bool
    max_bad: float
    seed: int


class FitOptions(TypedDict, total=False):
    """The fields of `FitSettings`."""

    head: str
    target: str | None
    layer: str | Sequence[str]
    val: float
    test: float
    cv: int
    group: str | None
    near: Literal["report", "group", "off"]
    score_views: Literal["plain", "mean"]
    class_weight: Literal["none", "balanced"]
    sample_weight: str | None
    learning_curve: bool
    contest: bool
    minutes: float | None
    power: Literal["auto", "none", "sqrt"]
    solver: Literal["lbfgs", "sgd"]
    kernel: Literal["auto", "linear", "rbf"]
    hidden: int
    optimizer: Literal["sgd", "adam", "rmsprop"] | None
    epochs: int | None
    batch_size: int | None
    lr: float
    momentum: float
    step: int
    coverage: float
    no_unknown: bool
    memory: float
    device: str
    jobs: Literal["auto"] | int
    seed: int


class FinetuneOptions(TypedDict, total=False):
    """The fields of `FinetuneSettings`."""

    max_pixels: int
    base: str
    weights: str | os.PathLike[str]
    size: int | None
    fit: Literal["shortest", "longest", "stretch"] | None
    image_column: str | None
    target: str | Sequence[str]
    id_column: str | None
    split_column: str | None
    image_root: str | os.PathLike[str] | None
    labels: str | os.PathLike[str] | None
    depth: Literal["first", "any"]
    recipe: Literal["default", "tutorial"]
    head: str | os.PathLike[str] | None
    layer: str | Sequence[str]
    pool: Literal["none", "avg", "max", "flatten"]
    train: str | Sequence[str]
    freeze_norm: bool | None
    beat_head: bool | None
    epochs: int | None
    patience: int
    batch_size: int | None
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] | None
    lr: float | None
    base_lr: float | None
    layer_decay: float | None
    warmup: float | None
    momentum: float
    weight_decay: float | None
    label_smoothing: float | None
    step: int | None
    gamma: float
    class_weight: Literal["none", "balanced"]
    clip: float
    augment: str | Sequence[str]
    cache: Literal["auto", "always", "never"]
    cache_dtype: Literal["float32", "float16"]
    memory: Literal["auto"] | float
    precision: Literal["fp32", "bf16"]
    views: int
    val: float
    test: float
    group: str | None
    max_bad: float
    device: str
    workers: Literal["auto"] | int
    seed: int


class EvaluateOptions(TypedDict, total=False):
    """The fields of `EvaluateSettings`."""

    image_column: str | None
    target: str | Sequence[str]
    id_column: str | None
    split_column: str | None
    image_root: str | os.PathLike[str] | None
    labels: str | os.PathLike[str] | None
    depth: Literal["first", "any"]
    max_pixels: int
    engine: Literal["auto", "torch", "onnxruntime", "openvino"]
    device: str
    compile: bool
    batch_size: Literal["auto"] | int
    memory: Literal["auto"] | float
    workers: Literal["auto"] | int
    weights: str | os.PathLike[str] | None
    group: str | None


class RerunOptions(TypedDict, total=False):
    """The fields of `RerunSettings`."""

    max_pixels: int
    engine: Literal["auto", "torch", "onnxruntime", "openvino"]
    device: str
    compile: bool
    batch_size: Literal["auto"] | int
    memory: Literal["auto"] | float
    workers: Literal["auto"] | int
    weights: str | os.PathLike[str] | None


class FetchOptions(TypedDict, total=False):
    """The fields of `FetchSettings`."""

    max_mb: float
    timeout: float
    retries: int
    connections: int
    per_host: int
    allow_private: bool


class LabelOptions(TypedDict, total=False):
    """The fields of `LabelSettings`."""

    image_column: str | None
    target: str | Sequence[str]
    id_column: str | None
    split_column: str | None
    image_root: str | os.PathLike[str] | None
    labels: str | os.PathLike[str] | None
    depth: Literal["first", "any"]
    normal: str | Sequence[str]
    column: str
    seed: int


class CompareOptions(TypedDict, total=False):
    """The fields of `CompareSettings`."""

    split: Literal["auto", "val", "test"]
    seed: int


class PlotOptions(TypedDict, total=False):
    """The fields of `PlotSettings`."""

    image_column: str | None
    target: str | Sequence[str]
    id_column: str | None
    split_column: str | None
    image_root: str | os.PathLike[str] | None
    labels: str | os.PathLike[str] | None
    depth: Literal["first", "any"]
    kind: str | Sequence[str]
    source: str | os.PathLike[str] | None
    augment: str | Sequence[str]
    seed: int
