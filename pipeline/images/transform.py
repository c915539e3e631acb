"""Input transforms: resize, centre crop and normalisation, as the makers of a base's weights did.

The work is split in two, so that images travel as bytes: `InputTransform.preprocess` runs where images are decoded
and gives uint8, `InputTransform.normalize` runs on the device of the base and gives float32. One after the
other they equal ``weights.transforms()`` of torchvision, and the evaluation transform of timm, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import BaseError, ImageError
from pipeline.registry import refuse_unknown

if TYPE_CHECKING:
    import torch

Fit = Literal["shortest", "longest", "stretch"]

#: Pixels that a side of the input may have.
LARGEST = 8192
#: Pixels that it may have in all: 1024 x 1024. A recipe may come from a file of anybody, and on two cores a small
#: network takes about a gigabyte for that, four times as much for twice the side.
LARGEST_AREA = 2**20

#: Pixels of a resized image that are all made, though only a crop is kept. More than these are thin images.
RESIZED_WHOLE = 2**23
#: Pixels of the longer side of a resized image, whose weights are computed one by one.
LONGEST_SIDE = 2**22

#: Pixels, before and after, of a thin image that is made smaller.
THIN_PIXELS = 2**27
#: How far each kernel reaches, in pixels of the image before it is enlarged.
_REACH = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0, "hamming": 1.0, "box": 0.5}
#: Bits of the fixed point in which Pillow weighs bytes.
_BITS = 22

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "hamming": Image.Resampling.HAMMING,
    "box": Image.Resampling.BOX,
}


@dataclass(frozen=True)
class InputTransform:
    """Resize, centre crop and normalisation of one set of weights.

    `resize` and `crop` are (height, width) in pixels. `fit` says how an image comes to `resize`: its
    ``shortest`` side fits and the other overhangs, its ``longest`` side fits and the rest is filled with the
    mean colour, or it is ``stretch``ed. `mean` and `std` are for values from 0 to 1.
    """

    resize: tuple[int, int]
    crop: tuple[int, int]
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    fit: Fit = "shortest"

    def __post_init__(self) -> None:
        refuse_unknown("interpolation", self.interpolation, INTERPOLATIONS, error=BaseError)
        refuse_unknown("fit", self.fit, get_args(Fit), error=BaseError)
        for name, sides in (("resize", self.resize), ("crop", self.crop)):
            if len(sides) != 2 or not all(isinstance(side, int) and 0 < side <= LARGEST for side in sides):
                raise BaseError(f"{name} of an input transform is two numbers from 1 to {LARGEST}, not {sides!r}")
        if self.crop[0] * self.crop[1] > LARGEST_AREA:
            raise BaseError(f"crop of an input transform is at most {LARGEST_AREA} pixels in all, not {self.crop!r}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(isinstance(value, int | float) and abs(value) <= 1e6 for value in values):
                raise BaseError(f"{name} of an input transform is a number for each colour, not {values!r}")
        if min(self.std) <= 0:
            raise BaseError(f"std of an input transform is positive, not {self.std!r}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the base's input, in pixels."""
        return self.crop

    def at_size(self, size: int) -> InputTransform:
        """Return a transform that shows the same part of an image with `size` pixels on its shorter side."""
        times = size / min(self.crop)
        height, width = (round(side * times) for side in self.crop)
        to_height, to_width = (round(side * times) for side in self.resize)
        return replace(self, crop=(height, width), resize=(to_height, to_width))

    def with_fit(self, fit: Fit) -> InputTransform:
        """Return a transform that brings an image to the input by `fit`; longest and stretch show the whole image.

        >>> InputTransform(resize=(256, 256), crop=(224, 224)).with_fit("longest").resize
        (224, 224)
        """
        if fit == self.fit:
            return self
        return replace(self, fit=fit, resize=self.resize if fit == "shortest" else self.crop)

    @property
    def least_size(self) -> tuple[int, int]:
        """Width and height that scaled JPEG decoding must not go under, so that nothing is ever enlarged."""
        return self.resize[1], self.resize[0]

    @property
    def resampling(self) -> Image.Resampling:
        """Interpolation, as Pillow calls it."""
        return INTERPOLATIONS[self.interpolation]

    def preprocess(self, image: Image.Image, *, fast: bool = False) -> NDArray[np.uint8]:
        """Resize and crop an RGB image to the base's input before normalisation: uint8 (H, W, 3).

        `fast` resizes only what the crop keeps, in one step and with a box filter first where the image is
        much larger: close to the exact result but not equal, so it belongs to a recipe of its own.

        Raises `ImageError` where the image is so thin that it would have millions of rows after resizing.
        """
        width, height = self._resized(image.width, image.height)
        if fast and width >= self.crop[1] and height >= self.crop[0]:
            return np.asarray(self._preprocess_fast(image, width, height))
        self.refuse_thin(image.width, image.height)
        if width * height > RESIZED_WHOLE and self._enlarges(image.width, image.height):
            return np.asarray(self._crop(self._resize_thin(image, width, height)))
        return np.asarray(self._crop(image.resize((width, height), self.resampling)))

    def refuse_thin(self, width: int, height: int) -> None:
        """Raise `ImageError` where an image of this size would need far more memory resized than it has pixels."""
        to_width, to_height = self._resized(width, height)
        if to_width * to_height <= RESIZED_WHOLE or self.fit != "shortest":
            return
        if self._enlarges(width, height):
            fits = max(to_width, to_height) <= LONGEST_SIDE
        else:
            fits = width * height + 2 * to_width * to_height <= THIN_PIXELS
        if not fits:
            raise ImageError(
                "too-large",
                f"{width} x {height} pixels are so thin that resizing makes {to_width} x {to_height} of them",
            )

    def _enlarges(self, width: int, height: int) -> bool:
        to_width, to_height = self._resized(width, height)
        return to_width >= width and to_height >= height and self.interpolation in _REACH

    def _resize_thin(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """Enlarge only the part that the crop keeps along the longer side, bit for bit as from the whole.

        Where it enlarges, Pillow weighs columns first and rows then, each output pixel by itself, so nothing else has
        to be made. The box of `Image.resize` is no way: its weights differ in the last bits.
        """
        if height > width:
            first, weights = self._weights(image.height, height, self.crop[0])
            lowest, highest = max(0, int(first.min())), min(image.height, int(first.max()) + len(weights))
            rows = image.crop((0, lowest, image.width, highest)).resize((width, highest - lowest), self.resampling)
            return Image.fromarray(_weighed(np.asarray(rows), first - lowest, weights))
        first, weights = self._weights(image.width, width, self.crop[1])
        lowest, highest = max(0, int(first.min())), min(image.width, int(first.max()) + len(weights))
        columns = np.asarray(image.crop((lowest, 0, highest, image.height)))
        thin = _weighed(columns.swapaxes(0, 1), first - lowest, weights).swapaxes(0, 1)
        return Image.fromarray(np.ascontiguousarray(thin)).resize((thin.shape[1], height), self.resampling)

    def _weights(self, source: int, resized: int, kept: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return first source pixels (kept,) and weights (K, kept) of the middle `kept` pixels of a resized side.

        The side goes from `source` to `resized` pixels; the weights are those of the pixels from the first one on, as
        Pillow rounds them. Pillow itself is asked: a line that is 1.0 in fixed point at every K-th pixel, resized, is
        the weights.
        """
        kept = min(kept, resized)
        start = round((resized - kept) / 2)
        reach = _REACH[self.interpolation]
        span = 2 * math.ceil(reach) + 3
        centre = (np.arange(start, start + kept) + 0.5) * (source / resized)
        first = np.floor(centre - reach + 0.5).astype(np.int64) - 1
        found = np.zeros((span, kept), np.int64)
        for offset in range(span):
            comb = np.zeros((1, source), np.int32)
            comb[0, offset::span] = 1 << _BITS
            line = Image.fromarray(comb).resize((resized, 1), self.resampling)
            found[offset] = np.asarray(line.crop((start, 0, start + kept, 1)))[0]
        places = first + np.arange(span)[:, None]
        weights = np.take_along_axis(found, places % span, axis=0)
        return first, np.where((places >= 0) & (places < source), weights, 0)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after resizing; the rounding is torchvision's for a square, else timm's."""
        to_height, to_width = self.resize
        if self.fit == "stretch":
            return to_width, to_height
        if self.fit == "shortest" and to_height == to_width:
            short, long = sorted((width, height))
            overhang = int(to_width * long / short)
            return (to_width, overhang) if width <= height else (overhang, to_height)
        choose = min if self.fit == "shortest" else max
        ratio = choose(height / to_height, width / to_width)
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    def _crop(self, image: Image.Image) -> Image.Image:
        height, width = self.crop
        if image.width < width or image.height < height:
            image = self._pad(image, max(width, image.width), max(height, image.height))
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))

    def _pad(self, image: Image.Image, width: int, height: int) -> Image.Image:
        red, green, blue = (round(255 * value) if self.fit == "longest" else 0 for value in self.mean)
        padded = Image.new("RGB", (width, height), (red, green, blue))
        padded.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        return padded

    def _preprocess_fast(self, image: Image.Image, width: int, height: int) -> Image.Image:
        crop_height, crop_width = self.crop
        left, top = round((width - crop_width) / 2), round((height - crop_height) / 2)
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + crop_width) * across, (top + crop_height) * down)
        return image.resize((crop_width, crop_height), self.resampling, box=box, reducing_gap=2.0)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise uint8 (B, H, W, 3) on any device to float32 (B, 3, H, W), channels last in memory."""
        import torch  # which decoding and resizing do without

        values = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255
        mean = torch.tensor(self.mean, dtype=torch.float32, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32, device=pixels.device).view(1, 3, 1, 1)
        return values.sub_(mean).div_(std)

    def describe(self) -> dict[str, Any]:
        """Return all fields as JSON values, for a recipe."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        """Make the transform that `describe` described; raise `BaseError` for anything else."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in description.items()
        }
        try:
            return cls(**values)
        except TypeError as error:
            raise BaseError(f"not the description of an input transform: {error}") from None


def _weighed(lines: NDArray[np.uint8], first: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Sum `lines` (N, M, 3), those from `first` (kept,) on, by `weights` (K, kept), rounded as Pillow does."""
    half = 1 << (_BITS - 1)  # so that the shift rounds
    sums = np.full((len(first), *lines.shape[1:]), half, np.int64)
    for offset, weight in enumerate(weights):
        sums += lines[np.clip(first + offset, 0, len(lines) - 1)] * weight[:, None, None]
    found: NDArray[np.uint8] = np.clip(sums >> _BITS, 0, 255).astype(np.uint8)
    return found
