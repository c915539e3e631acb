"""Random views of an image: changes to a photo that do not change what it shows.

A view is drawn from its own random generator, made from the seed, the content of the file and the number of
the view (`view_rng`), so it does not depend on batch size, number of workers or the order of the files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from PIL.Image import Resampling, Transpose

from pipeline.errors import SettingsError
from pipeline.registry import Registry

#: A view takes an RGB image of any size and a random generator; the result has the size it was built for.
View = Callable[[Image.Image, np.random.Generator], Image.Image]
#: The base's own resize and centre crop: RGB image to uint8 (H, W, 3).
Plain = Callable[[Image.Image], NDArray[np.uint8]]

SCALE = (0.08, 1.0)  # share of the area that a crop shows, as in torchvision and the papers since Inception
RATIO = (3 / 4, 4 / 3)
#: The largest rotation either way, and the largest change of brightness as a share: an image keeps its class.
DEGREES, BRIGHTNESS = 15.0, 0.2

#: What can happen to an image, in this order whatever order it is asked in.
CHANGES: Registry[View] = Registry("augmentation")


def build_view(
    names: Sequence[str],
    *,
    size: tuple[int, int],
    plain: Plain,
    interpolation: Resampling = Resampling.BILINEAR,
) -> View:
    """Make a view that applies `names` (members of `CHANGES`) and gives RGB images of `size` (h, w).

    Without ``crop`` the image is brought to its size by `plain`, the base's own transform.
    Raises `SettingsError` for an unknown name, naming the nearest, and for a name given twice.

    >>> half = lambda image: np.asarray(image.resize((4, 4)))
    >>> view = build_view(["crop", "flip"], size=(4, 4), plain=half)
    >>> view(Image.new("RGB", (9, 7)), view_rng(13, bytes(32), 1)).size
    (4, 4)
    """
    check_names(names)
    changes = [CHANGES[name] for name in CHANGES if name in names and name != "crop"]
    height, width = size

    def view(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if "crop" in names:
            changed = random_crop(image, rng).resize((width, height), interpolation)
        else:
            changed = Image.fromarray(plain(image))
        for change in changes:
            changed = change(changed, rng)
        return changed

    return view


def check_names(names: Sequence[str]) -> None:
    """Raise `SettingsError` where `names` holds an unknown name, or one twice."""
    for name in names:
        CHANGES[name]
    repeated = next((name for name in names if list(names).count(name) > 1), None)
    if repeated is not None:
        raise SettingsError(f"augmentation {repeated!r} is given twice; give it once")


def view_rng(seed: int, sha256: bytes, view: int) -> np.random.Generator:
    """Make the random generator of one view of one image, known by the digest of its file's content."""
    entropy = hashlib.sha256(f"{seed}:{view}:".encode() + sha256).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(entropy[:16])))


def random_box(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw left, top, right, bottom of a random crop: area within `SCALE`, width / height within `RATIO`.

    The rule is that of torchvision's RandomResizedCrop: ten tries, then the largest centred box of an allowed ratio.
    """
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = _below(width - wide + 1, rng), _below(height - high + 1, rng)
            return left, top, left + wide, top + high
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    wide = min(width, max(1, round(height * ratio)))
    high = min(height, max(1, round(width / ratio)))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def _below(count: int, rng: np.random.Generator) -> int:
    # Not rng.integers: NumPy promises no fixed stream for it, and views are part of a recipe.
    return int(rng.random() * count)


@CHANGES.register("crop")
def random_crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the part of the image inside a random box; every other change keeps the size, this one does not."""
    return image.crop(random_box(image.size, rng))


@CHANGES.register("flip")
def _flip(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.transpose(Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


@CHANGES.register("vflip")
def _flip_vertically(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.transpose(Transpose.FLIP_TOP_BOTTOM) if rng.random() < 0.5 else image


@CHANGES.register("mirror")
def _mirror(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Flip always: one plain view and one mirrored view are the whole of a flip."""
    return image.transpose(Transpose.FLIP_LEFT_RIGHT)


@CHANGES.register("rotate")
def _rotate(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotate by up to `DEGREES` either way; fill corners by reflection, for black ones would be a feature."""
    angle = rng.uniform(-DEGREES, DEGREES)
    width, height = image.size
    reach = math.ceil(max(image.size) / 2 * math.sin(math.radians(DEGREES))) + 2
    padded = np.pad(np.asarray(image), ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    turned = Image.fromarray(padded).rotate(angle, Resampling.BILINEAR)
    return turned.crop((reach, reach, reach + width, reach + height))


@CHANGES.register("brightness")
def _brighten(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(rng.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS))
