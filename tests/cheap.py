"""An extraction without images or networks: features are a function of a file's bytes, so that tests know them.

Run as a program it is a nursery of children that extract: see there.
"""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from nursery import ForkServer, serve

from pipeline import files
from pipeline.bases import Base
from pipeline.config import Recipe
from pipeline.errors import ImageError, PipelineError
from pipeline.sources import FileImage, Manifest, Record, Target
from pipeline.store import Environment, FeatureStore, LayerSpec, Part, Source, StoreWriter

LAYERS = [LayerSpec("avgpool", (24,)), LayerSpec("conv", (2, 3), "float16")]
CLASSES = ("even", "odd")


def recipe(**changes: Any) -> Recipe:
    """Some recipe."""
    fields = {"base": "cheap", "weights": "0" * 64, "layers": ("avgpool", "conv"), "pool": "none"}
    fields |= {"transform": {"crop": [64, 64]}, "pixels": 1, "decode": "exact", "views": 0, "augment": ()}
    fields |= {"seed": None, "precision": "fp32", "dtype": "float32"}
    return Recipe.of({**fields, **changes})


def recipe_for(base: Base, **changes: Any) -> Recipe:
    """The recipe of the embeddings that `base` gives."""
    fields = {"base": base.name, "weights": base.digest, "layers": ("avgpool",), "transform": base.transform.describe()}
    return recipe(**{**fields, **changes})


def write_images(folder: Path, count: int, *, first: int = 0) -> None:
    """`count` files; every ninth content is bad, and every seventh file has the content of one before."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        content = number - 5 if number % 7 == 6 else number
        (folder / f"{number:05}.jpg").write_bytes(b"bad %d" % content if content % 9 == 4 else b"%d" % content)


def manifest_of(folder: Path, *, flipped: frozenset[str] = frozenset(), missing: Sequence[str] = ()) -> Manifest:
    """The files of `folder` and those `missing`, sorted, with two targets; `flipped` ids have the other class."""
    ids = sorted([path.name for path in folder.iterdir()] + list(missing))
    records = [
        Record(index, name, FileImage(os.fspath(folder / name)), ("train", "val", "")[len(name) % 3])
        for index, name in enumerate(ids)
    ]
    codes = [(sum(name.encode("utf-8", "surrogateescape")) + (name in flipped)) % 2 for name in ids]
    lengths = np.array([float(len(name)) for name in ids])
    targets = {
        "class": Target("class", np.array(codes, np.int64), CLASSES),
        "length": Target("length", np.where(lengths > 20, np.nan, lengths), None),
    }
    return Manifest("images", records, targets)


def features_of(content: bytes) -> dict[str, NDArray[Any]]:
    """One row of each layer."""
    digest = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
    return {"avgpool": digest[:24] / np.float32(7), "conv": (digest[:6].reshape(2, 3) / 3).astype(np.float16)}


def extract(manifest: Manifest, output: Path, *, batch: int = 4, part: Part | None = None, **options: Any) -> list[str]:
    """Bring `output` up to date, and return the ids whose features were computed."""
    computed: list[str] = []
    with open_writer(manifest, output, part=part, **options) as writer:
        waiting: list[tuple[int, bytes, Source]] = []
        for index in writer.pending.tolist():
            record = manifest.records[index]
            try:
                size, mtime_ns = record.image.stat()
                content = record.image.read(1 << 20)
            except ImageError as error:
                writer.fail(index, error.reason)
                continue
            source = Source(size, mtime_ns, hashlib.sha256(content).digest())
            if writer.knows(hashlib.sha256(content).digest()):
                writer.adopt(index, source)
                continue
            computed.append(record.id)
            if content.startswith(b"bad"):
                writer.fail(index, "corrupt", source)
                continue
            waiting.append((index, content, source))
            if len(waiting) == batch:
                _write(writer, waiting)
                writer.flush()
        _write(writer, waiting)
        writer.publish()
    return computed


def _write(writer: StoreWriter, waiting: list[tuple[int, bytes, Source]]) -> None:
    if waiting:
        rows = [features_of(content) for _, content, _ in waiting]
        stacked = {layer.name: np.stack([row[layer.name] for row in rows]) for layer in LAYERS}
        writer.write([index for index, _, _ in waiting], stacked, [source for _, _, source in waiting])
        waiting.clear()


def open_writer(manifest: Manifest, output: Path, **options: Any) -> Any:
    """A `StoreWriter` for the cheap layers."""
    options.setdefault("recipe", recipe())
    return StoreWriter.open(output, manifest=manifest, layers=LAYERS, environment=Environment(by="cheap"), **options)


@contextmanager
def full_disk(file_bytes: int = 0) -> Iterator[None]:
    """No file may grow beyond `file_bytes`: the operating system refuses, as it does where the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- what is right


def assert_rows_right(path: Path, manifest: Manifest) -> int:
    """Every final row of a file, finished or not, as plain h5py reads it, is that of its image. Returns how many."""
    content = {record.id.encode(): record for record in manifest.records}
    with h5py.File(path, "r") as file:
        status, ids = file["status"][:], file["id"][:]
        layers = {layer.name: file[f"features/{layer.name}"][:] for layer in LAYERS}
        digests = file["source/sha256"][:]
    for row in np.flatnonzero(status):
        data = content[ids[row]].image.read(1 << 20)
        assert digests[row].tobytes() == hashlib.sha256(data).digest()
        bad = data.startswith(b"bad")
        assert status[row] == (7 if bad else 1)
        for name, expected in features_of(data).items():
            if bad:
                assert np.isnan(layers[name][row]).all()
            else:
                np.testing.assert_array_equal(layers[name][row], expected)
    return int(np.count_nonzero(status))


def everything(path: Path) -> dict[str, Any]:
    """All that the reading API says of a store, as things that can be compared."""
    with FeatureStore.open(path) as store:
        return {
            "ids": store.ids,
            "splits": store.splits.tolist(),
            "statuses": store.statuses.tobytes(),
            "reasons": store.reasons,
            "targets": [(name, t.names, t.values.tobytes()) for name, t in store.targets.items()],
            "sha256": store.sha256.tobytes(),
            "sizes": store.sizes.tobytes(),
            "mtimes": store.mtimes_ns.tobytes(),
            "layers": store.layers,
            "features": [store.features(layer).tobytes() for layer in store.layers],
            "rows": [store.features(layer, store.select()).tobytes() for layer in store.layers],
            "recipe": store.recipe,
            "environment": store.environment,
            "fingerprint": store.fingerprint,
        }


def datasets(path: Path) -> dict[str, bytes]:
    """The bytes of every dataset, as plain h5py reads them."""
    found: dict[str, bytes] = {}
    with h5py.File(path, "r") as file:
        file.visititems(
            lambda name, thing: found.update({name: thing[()].tobytes()}) if hasattr(thing, "shape") else None
        )
    return found


# --- the nursery


class Nursery(ForkServer):
    """Starts children that extract, from a process that has all modules loaded and no threads."""

    def __init__(self) -> None:
        super().__init__(__file__)

    def start(self, folder: Path, output: Path, **options: Any) -> int:
        """Begin an extraction, as `_child` does it, and return the id of its process."""
        return self.fork({"folder": os.fspath(folder), "output": os.fspath(output), **options})

    def wait(self) -> tuple[int, str]:
        """Wait for the last child; its exit status (negative: the signal) and what it said last."""
        status, said, _ = self.end()
        return status, said

    def run(self, folder: Path, output: Path, **options: Any) -> tuple[int, str]:
        """`start` and `wait`."""
        self.start(folder, output, **options)
        return self.wait()


def _child(options: dict[str, Any], say: int) -> None:
    """Extract `folder` to `output`; say one line and leave with 1 where this is refused."""
    status = 0
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _limit(options)
        if options.get("open"):
            os.write(say, str(len(everything(Path(options["output"]))["ids"])).encode())
        else:
            manifest = manifest_of(Path(options["folder"]))
            with slow_disk(options.get("pause", 0.0)):
                computed = extract(manifest, Path(options["output"]), force=options.get("force", False))
            os.write(say, str(len(computed)).encode())
    except PipelineError as error:
        os.write(say, f"{type(error).__name__}: {error}".encode())
        status = 1
    except KeyboardInterrupt:
        status = 130
    finally:
        os._exit(status)


def _limit(options: dict[str, Any]) -> None:
    if "files" in options:
        resource.setrlimit(resource.RLIMIT_NOFILE, (options["files"], options["files"]))
    if "file_bytes" in options:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options["file_bytes"], options["file_bytes"]))
    if "user" in options:
        os.setgid(options["user"])
        os.setuid(options["user"])


@contextmanager
def slow_disk(pause: float) -> Iterator[None]:
    """Sleep before every system call of the writer, so that a kill finds it anywhere."""
    names = ("create", "reserve", "write_at", "sync_data", "sync", "rename", "remove")
    real = {name: getattr(files, name) for name in names}

    def slowed(call: Any) -> Any:
        def wait_and_call(*arguments: Any) -> Any:
            time.sleep(pause)
            return call(*arguments)

        return wait_and_call

    try:
        for name, call in real.items():
            setattr(files, name, slowed(call))
        yield
    finally:
        for name, call in real.items():
            setattr(files, name, call)


if __name__ == "__main__":
    serve(_child)


def write_store(
    path: Path,
    features: dict[str, Any],
    *,
    splits: Any = None,
    contents: Any = None,
    views: int = 0,
    names: tuple[str, ...] = ("ants", "bees", "wasps"),
    **targets: Any,
) -> Path:
    """A feature file of arrays; equal `contents` are images with the same bytes."""
    rows = len(next(iter(features.values())))
    splits = [""] * rows if splits is None else splits
    contents = np.arange(rows) if contents is None else contents
    records = [Record(i, f"{i:05}.jpg", FileImage(f"{i:05}.jpg"), str(splits[i])) for i in range(rows)]
    labels = {
        name: Target(name, values, names if np.issubdtype(values.dtype, np.integer) else None)
        for name, values in targets.items()
    }
    layers = [LayerSpec(name, values.shape[1:], "float32") for name, values in features.items()]
    made_by = recipe(
        layers=tuple(features), views=views, augment=("flip",) if views else (), seed=13 if views else None
    )
    sources = [Source(1, 1, hashlib.sha256(str(content).encode()).digest()) for content in contents]
    with StoreWriter.open(
        path,
        manifest=Manifest("arrays", records, labels),
        layers=layers,
        recipe=made_by,
        environment=Environment(weights="none", seed=13),
    ) as writer:
        writer.write(np.arange(rows), features, sources)
        return writer.publish()
