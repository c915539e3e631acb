"""A store against a model in memory: images come, change, move and go, runs are killed, in any order."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from cheap import everything, extract, features_of, manifest_of
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from pipeline import files
from pipeline.commands.verify import verify
from pipeline.store import FeatureStore

CALLS = ("create", "reserve", "write_at", "sync_data", "sync", "rename", "remove")


class Killed(BaseException):
    """The process is no more: nothing of it reaches the disk after this."""


class StoreMachine(RuleBasedStateMachine):
    """Images in a folder, and the store that is made of them."""

    names = Bundle("names")

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.images = self.root / "images"
        self.images.mkdir()
        self.path = self.root / "F.h5"
        self.flipped: frozenset[str] = frozenset()
        self.contents: dict[bytes, bytes] = {}
        self.published: dict[str, Any] | None = None
        self.now = 10**18

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    # --- the images

    def _put(self, name: str, content: bytes) -> None:
        """Write a file at a time of its own: a change within one tick of the clock cannot be seen."""
        (self.images / name).write_bytes(content)
        self.contents[hashlib.sha256(content).digest()] = content
        self.now += 1
        os.utime(self.images / name, ns=(self.now, self.now))

    @rule(target=names, name=st.sampled_from("abcdefgh"), content=st.sampled_from([b"1", b"22", b"33", b"bad", b"4"]))
    def add_or_change(self, name: str, content: bytes) -> str:
        self._put(name, content)
        return name

    @rule(first=st.integers(0, 20), count=st.integers(3, 9))
    def add_many(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            self._put(f"many{number:02}", b"content %d" % number)

    @rule(name=names)
    def delete(self, name: str) -> None:
        (self.images / name).unlink(missing_ok=True)

    @rule(name=names, other=st.sampled_from("abcdefghij"))
    def rename(self, name: str, other: str) -> None:
        if (self.images / name).exists():
            (self.images / name).rename(self.images / other)

    @rule(name=names)
    def touch(self, name: str) -> None:
        if (self.images / name).exists():
            self._put(name, (self.images / name).read_bytes())

    @rule(name=names)
    def relabel(self, name: str) -> None:
        self.flipped ^= {name}

    # --- the store

    @rule(rehash=st.booleans())
    def extract(self, rehash: bool) -> None:
        if not any(self.images.iterdir()):
            return
        manifest = manifest_of(self.images, flipped=self.flipped)
        known = self._known_contents()
        computed = extract(manifest, self.path, batch=2, rehash=rehash)
        assert not {self._content_of(name) for name in computed} & known
        assert sorted(left.name for left in self.root.iterdir()) == ["F.h5", "images"]
        self.published = everything(self.path)
        assert self.published["ids"] == sorted(path.name for path in self.images.iterdir())
        assert self.published["targets"][0][2] == manifest.targets["class"].values.tobytes()
        digests = [hashlib.sha256(record.image.read(100)).digest() for record in manifest.records]
        assert self.published["sha256"] == b"".join(digests)
        assert extract(manifest, self.path) == []

    @rule(moment=st.integers(0, 80))
    def extract_and_kill(self, moment: int) -> None:
        if not any(self.images.iterdir()):
            return
        manifest, known = manifest_of(self.images, flipped=self.flipped), self._known_contents()
        with pytest.MonkeyPatch.context() as patch:
            _kill_after(patch, moment)
            with contextlib.suppress(Killed):
                extract(manifest, self.path, batch=2)
        if self.path.exists() and not self._is_published():
            self.published = everything(self.path)  # killed after the last rename
        assert known <= self._known_contents() or known - self._known_contents() <= self._unused(known)

    def _is_published(self) -> bool:
        return self.published is not None and everything(self.path)["fingerprint"] == self.published["fingerprint"]

    def _unused(self, known: set[bytes]) -> set[bytes]:
        """Contents that no image has any more: a new unfinished file does not keep them."""
        return known - {self._content_of(path.name) for path in self.images.iterdir()}

    @rule()
    def verify(self) -> None:
        if self.path.exists():
            assert verify(self.path).problems == []

    def _content_of(self, name: str) -> bytes:
        return hashlib.sha256((self.images / name).read_bytes()).digest()

    def _known_contents(self) -> set[bytes]:
        """What no run may compute again: contents of rows that have features, in a finished or unfinished file."""
        known: set[bytes] = set()
        for path in self.path, self.path.with_name("F.h5.partial"):
            if path.exists():
                with h5py.File(path) as file:
                    known |= {row.tobytes() for row in file["source/sha256"][:][file["status"][:] == 1]}
        return known

    # --- what holds at any time

    @invariant()
    def every_final_row_is_right(self) -> None:
        for path in self.path, self.path.with_name("F.h5.partial"):
            if path.exists():
                with h5py.File(path) as file:
                    for row in np.flatnonzero(file["status"][:]):
                        content = self.contents[file["source/sha256"][row].tobytes()]
                        if content == b"bad":
                            assert file["status"][row] == 7
                            assert np.isnan(file["features/conv"][row]).all()
                        else:
                            assert file["status"][row] == 1
                            for layer, value in features_of(content).items():
                                np.testing.assert_array_equal(file[f"features/{layer}"][row], value)

    @invariant()
    def a_published_store_stays_until_the_next_is_complete(self) -> None:
        if self.published is not None:
            with FeatureStore.open(self.path) as store:
                assert store.fingerprint == self.published["fingerprint"]


def _kill_after(patch: pytest.MonkeyPatch, calls: int) -> None:
    left = [calls]

    def mortal(real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*arguments)

        return call

    for name in CALLS:
        patch.setattr(files, name, mortal(getattr(files, name)))


def run_histories() -> None:
    """Run the machine."""
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=int(os.environ.get("PIPELINE_HISTORIES", "12")),
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize="PIPELINE_HISTORIES" not in os.environ,
        ),
    )


def test_a_store_is_what_the_model_says() -> None:
    """In a process of its own: Hypothesis draws from constants of the modules that are loaded, here always the same."""
    here = Path(__file__)
    paths = os.pathsep.join(str(folder) for folder in (here.parents[2], here.parents[1], here.parent))
    code = f"import {here.stem}; {here.stem}.run_histories()"
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
