"""The exception tree. Every error that a user can cause is one of these, and its message is one line.

PipelineError                 anything this package refuses; the command line prints it and exits with 1
├── SettingsError             an option or a name that does not exist or does not fit
├── SourceError               the images or their labels cannot be listed
├── ImageError                one image is bad; ``reason`` is one of ``BAD_IMAGE``
├── BaseError                 a base, its weights or one of its layers cannot be had
├── EngineError               the forward pass cannot run as asked
├── StoreError                a feature file cannot be read or written
│   ├── StoreLockedError      somebody else is writing it
│   ├── StoreDamagedError     its bytes are not those that were written, or are not ours at all
│   └── RecipeMismatchError   it was made by another recipe
├── HeadError                 a head cannot be trained on this data
├── ModelError                a model folder cannot be read or written
├── OutputExistsError         the output is there already and nobody said to replace it
└── UnsupportedSystemError    this system lacks what the package is built on
"""

from __future__ import annotations

#: Why an image has no features, in the order of their codes in a store (code = 2 + position). Append only:
#: the codes are part of the file format.
BAD_IMAGE = (
    "missing",  # no such file
    "unreadable",  # it cannot be read here and now, though it may be fine: no permission, memory or decoder
    "empty",  # zero bytes
    "not-an-image",  # the bytes are of none of the allowed formats
    "truncated",  # the file ends before the image does
    "corrupt",  # the decoder gives up
    "too-large",  # over the cap on bytes, on pixels or on the work of decoding
    "non-finite",  # the base's output for it holds NaN or infinity
)


class PipelineError(Exception):
    """Base of all errors of this package."""


class SettingsError(PipelineError):
    """An option or a name that does not exist or does not fit."""


class SourceError(PipelineError):
    """A source whose images or labels cannot be listed."""


class ImageError(PipelineError):
    """A bad image; `reason` is one of `BAD_IMAGE`, `detail` a line for a person."""

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in BAD_IMAGE:
            raise ValueError(f"{reason!r} is not a reason of BAD_IMAGE")
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        """Rebuild the error from both its arguments in another process."""
        return ImageError, (self.reason, self.detail)


class BaseError(PipelineError):
    """A base, weights or a layer that cannot be had."""


class EngineError(PipelineError):
    """A forward pass that cannot run as asked."""


class StoreError(PipelineError):
    """A feature file that cannot be read or written."""


class StoreLockedError(StoreError):
    """A feature file that another process is writing."""


class StoreDamagedError(StoreError):
    """A feature file whose bytes are not those that were written, or are not ours at all."""


class RecipeMismatchError(StoreError):
    """A feature file made by another recipe than the one asked for."""


class HeadError(PipelineError):
    """A head that cannot be trained on this data."""


class ModelError(PipelineError):
    """A model folder that cannot be read or written."""


class OutputExistsError(PipelineError):
    """An output that is there already and may not be replaced."""


class UnsupportedSystemError(PipelineError, ImportError):
    """A system that lacks what the package is built on."""


def require_posix() -> None:
    """Raise `UnsupportedSystemError` on Windows, where files cannot be locked as this package locks them."""
    try:
        import fcntl  # noqa: F401
    except ImportError:
        raise UnsupportedSystemError(
            "pipeline runs on Linux and macOS; on Windows, install and run it in WSL"
        ) from None
