"""Single images of a source by their id, for pictures of a few of them; what cannot be had is left out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from PIL import Image

from pipeline.config import SourceSettings
from pipeline.errors import ImageError, PipelineError
from pipeline.files import digest_bytes
from pipeline.images import decoding
from pipeline.sources import FileImage, ImageRef, read_manifest

#: Pixels of the shorter side that a JPEG is decoded to at least: enough for a small picture, and quick.
LEAST = 200
#: Kinds of source that are listed in no time. An archive is read from end to end.
QUICK = (".csv", ".tsv", ".txt", ".lst", ".list")


class Album:
    """The images of `source`, which was listed with `settings`, by id.

    An image whose content is not the sha256 in `contents`, where that has its id, is not the one that was meant. Only
    what is listed in no time is looked through, unless `thorough`.
    """

    def __init__(
        self,
        source: str,
        settings: SourceSettings,
        *,
        contents: Mapping[str, bytes] | None = None,
        thorough: bool = False,
    ) -> None:
        self._source = source
        self._settings = settings
        self._contents = contents or {}
        self._thorough = thorough

    def __call__(self, id: str) -> Image.Image | None:
        """Return the image, decoded small where it is a JPEG; None where it cannot be had."""
        data = self.read(id)
        try:
            return None if data is None else decoding.decode(data, at_least=(LEAST, LEAST))
        except ImageError:
            return None

    def read(self, id: str) -> bytes | None:
        """Return the bytes of the file; None where it is not there, or another one is."""
        data = self._bytes(FileImage(f"{self._source}/{id}")) if self._is_folder else None
        if data is None and id in self._listed:
            data = self._bytes(self._listed[id])
        if data is None or (id in self._contents and self._contents[id] != digest_bytes(data)):
            return None
        return data

    def _bytes(self, image: ImageRef) -> bytes | None:
        try:
            return image.read(decoding.Limits().max_bytes)
        except ImageError:
            return None

    @cached_property
    def _is_folder(self) -> bool:
        """True where an id is the path of a file below the source."""
        return Path(self._source).is_dir()

    @cached_property
    def _listed(self) -> Mapping[str, ImageRef]:
        if not (self._thorough or (self._source.lower().endswith(QUICK) and Path(self._source).is_file())):
            return {}
        try:
            return {record.id: record.image for record in read_manifest(self._source, self._settings).records}
        except PipelineError:
            return {}
