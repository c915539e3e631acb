"""One validated settings class a stage, and the recipe that identifies what a feature file holds.

A field's type, default, limits and description are written here once: the library's keyword arguments, the
options of the command line and the keys of a configuration file are all read from these classes.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import SettingsError
from pipeline.registry import nearest

Pool = Literal["none", "avg", "max", "flatten"]
Device = str  # auto, cpu, cuda, cuda:1, mps
Augmentations = tuple[str, ...]


class Settings(BaseModel):
    """What every settings class shares: unknown keys are errors that name the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def of(cls, options: dict[str, Any]) -> Self:
        """Validate `options`; raise `SettingsError` with one line for the first thing that is wrong."""
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"]) or "settings"
            if first["type"] == "extra_forbidden":
                raise SettingsError(f"unknown option {name!r}{nearest(name, cls.model_fields)}") from None
            if first["type"] == "value_error":
                raise SettingsError(first["msg"].removeprefix("Value error, ")) from None
            raise SettingsError(f"{name}={first['input']!r}: {first['msg']}") from None


class SourceSettings(Settings):
    """How the images and their labels are found."""

    image_column: str | None = Field(None, description="Column of the table that names the image files.")
    target: tuple[str, ...] = Field((), description="Target column(s) of the table; numbers or classes.")
    id_column: str | None = Field(None, description="Column with a unique id; the image path otherwise.")
    split_column: str | None = Field(None, description="Column that says train, val or test.")
    image_root: str | None = Field(None, description="Folder that image paths are relative to.")
    labels: str | None = Field(None, description="CSV with labels for the images of a folder.")


class BaseSettings(Settings):
    """Which frozen base runs, and how."""

    base: str = Field("resnet18", description="Frozen base: a torchvision model, or timm:NAME.")
    weights: str = Field("DEFAULT", description="DEFAULT, an enum name, embedded, none (random) or a file.")


class ExtractSettings(SourceSettings, BaseSettings):
    """Stage one: images to features."""

    layer: tuple[str, ...] = Field(
        ("avgpool",), description="Layer to keep: avgpool, pool5, fc6, fc7, a module."
    )
    pool: Pool = Field("none", description="How a layer's map becomes a row.")
    views: int = Field(0, ge=0, le=64, description="Random views to cache beside the plain one.")
    augment: Augmentations = Field(
        (), description="What a random view does: crop,flip,mirror,rotate,brightness."
    )
    decode: Literal["exact", "fast"] = Field(
        "exact", description="fast: scaled JPEG decoding, another recipe."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Arithmetic of the forward pass.")
    dtype: Literal["float32", "float16"] = Field("float32", description="Numbers kept in the file.")
    engine: Literal["auto", "torch", "onnxruntime"] = Field("auto", description="What runs the base.")
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    batch_size: Literal["auto"] | int = Field("auto", description="Images a forward pass.")
    workers: Literal["auto"] | int = Field("auto", description="Decoding threads.")
    max_bad: float = Field(0.1, ge=0, le=1, description="Largest share of bad images that is not an error.")
    seed: int = Field(13, ge=0, description="Seed of everything random.")

    @model_validator(mode="after")
    def _views_need_augment(self) -> Self:
        if self.views and not self.augment:
            raise ValueError("views > 0 needs augment: every random view would be the plain one")
        if self.augment and not self.views:
            raise ValueError("augment needs views > 0: the plain view is never augmented")
        return self


class Recipe(Settings):
    """Everything that decides the numbers in a feature file; the same recipe gives the same features."""

    version: int = 1
    base: str
    weights: str = Field(description="sha256 of the weights' tensors")
    layers: tuple[str, ...]
    pool: Pool
    transform: dict[str, Any]
    pixels: int = Field(description="version of the pixel policy")
    decode: Literal["exact", "fast"]
    views: int
    augment: Augmentations
    seed: int | None = Field(description="of the random views; None without")
    precision: Literal["fp32", "bf16", "fp16"]
    dtype: Literal["float32", "float16"]

    def canonical(self) -> str:
        """The recipe as JSON with sorted keys: what is written to the file and what is hashed."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def fingerprint(self) -> str:
        """sha256 of `canonical`, in hexadecimal."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def first_difference(self, other: Recipe) -> tuple[str, Any, Any] | None:
        """The first field in which two recipes differ, with both values; None where they agree."""
        mine, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        return next(((name, mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]), None)
