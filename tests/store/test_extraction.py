from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
from cheap import features_of, manifest_of, open_writer, write_images

from pipeline.engines.embedder import Embedded
from pipeline.engines.workers import Computer
from pipeline.errors import ImageError
from pipeline.files import digest_bytes
from pipeline.images.loading import Loaded, Timings
from pipeline.progress import progress
from pipeline.sources import Record
from pipeline.store import FeatureStore
from pipeline.store.extraction import Extraction


class Cheap:
    """What computes features of bytes, without images."""

    seconds = 0.5
    timings = Timings(read=1.0)

    def run(self, records: Iterable[Record], *, seen: Callable[[bytes], bool]) -> Iterator[Embedded]:
        for record in records:
            content = record.image.read(100)
            sha256 = digest_bytes(content)
            image = Loaded(record.index, *record.image.stat(), sha256)
            image.duplicate = seen(sha256)
            if content.startswith(b"bad"):
                image.error, image.duplicate = ImageError("corrupt", "it says so"), False
            features = features_of(content) if image.is_good else {}
            yield Embedded([image], [one[None].astype(np.float32) for one in features.values()])


def test_each_content_is_computed_once_and_every_row_is_settled(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 20)
    manifest, path = manifest_of(tmp_path / "images"), tmp_path / "F.h5"
    with open_writer(manifest, path) as writer, progress(20, "test", show=False) as bar:
        extraction = Extraction(writer, manifest, cast(Computer, Cheap()), ("avgpool", "conv"))
        extraction.compute(writer.pending, bar)
        assert not len(writer.pending)
        bad = list(writer.bad().values())
        writer.publish()
    assert bad == ["corrupt"]
    assert extraction.computed + extraction.adopted + len(bad) == 20
    assert extraction.adopted == 2
    assert extraction.seconds["read"] == 1.0
    assert extraction.seconds["forward"] == 0.5
    with FeatureStore.open(path) as store:
        for record, row in zip(manifest.records, store.features("avgpool"), strict=True):
            content = record.image.read(100)
            if not content.startswith(b"bad"):
                assert np.array_equal(row, features_of(content)["avgpool"])
