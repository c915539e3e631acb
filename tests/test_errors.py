"""The exception tree: one root, below it what a user can cause."""

from __future__ import annotations

import inspect

from pipeline import errors


def test_every_error_is_the_packages_own_and_says_what_it_is() -> None:
    found = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
    assert len(found) > 10
    for kind in found:
        assert issubclass(kind, errors.PipelineError)
        assert (kind.__doc__ or "").strip()
    assert errors.PipelineError.__bases__ == (Exception,)


def test_a_damaged_or_locked_store_is_a_store_that_cannot_be_used() -> None:
    assert issubclass(errors.StoreDamagedError, errors.StoreError)
    assert issubclass(errors.StoreLockedError, errors.StoreError)


def test_a_system_that_locks_files_is_supported() -> None:
    errors.require_posix()
