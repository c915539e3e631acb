"""Images that harm the process that reads them: they hang it, end it, or eat its memory."""

from __future__ import annotations

import os
import re
import resource
import signal
from dataclasses import dataclass, replace

from pipeline.sources import FileImage, Manifest


@dataclass(frozen=True)
class Harmful:
    """A file that does what its name begins with, and is an ordinary image where it begins with anything else."""

    file: FileImage

    @property
    def where(self) -> str:
        return self.file.where

    def stat(self) -> tuple[int, int]:
        return self.file.stat()

    def read(self, limit: int) -> bytes:
        name = self.file.path.rsplit("/", 1)[-1]
        if name.startswith("hang"):
            re.match(r"(a+)+$", "a" * 60 + "b")  # years, in which no other thread of Python runs either
        elif name.startswith("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        elif name.startswith("eat"):
            _eat()
        return self.file.read(limit)


def _eat() -> None:
    """Take more memory than there is; where nothing limits it, the system would end the process."""
    if resource.getrlimit(resource.RLIMIT_DATA)[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    bytearray(64 << 30)


def harmful(manifest: Manifest) -> Manifest:
    """The same images of files, each as a `Harmful` one."""
    found = [(record, record.image) for record in manifest.records]
    return replace(
        manifest,
        records=[replace(record, image=Harmful(image)) for record, image in found if isinstance(image, FileImage)],
    )
