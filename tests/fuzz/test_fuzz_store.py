"""A short, repeatable run of the store's fuzzer, and the headers that a mistake let in once."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_store import attempt, fuzz, join_header, make_seed_file, read_corpus, split_header

from pipeline.store.inspection import hdf5_differences
from pipeline.store.rows import RowFile


@pytest.fixture(scope="module")
def seed_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_seed_file(tmp_path_factory.mktemp("seed"))


@pytest.mark.parametrize("name", read_corpus())
def test_the_corpus_is_refused(name: str, seed_file: bytes, tmp_path: Path) -> None:
    _, rest = split_header(seed_file)
    size = len(seed_file) - len(rest)
    assert attempt(tmp_path / "F.h5", join_header(read_corpus()[name], rest, size=size), None) == "damaged"


def test_damaged_files_give_what_was_written_or_an_error() -> None:
    outcomes = fuzz(seed=13, count=500)
    assert outcomes.total() == 500
    assert outcomes["bytes: other"] == outcomes["structure: other"] == 0
    assert min(outcomes["bytes: damaged"], outcomes["header: damaged"], outcomes["text: damaged"]) > 50
    assert outcomes["header: other"] > 5


def test_the_same_seed_tries_the_same_files() -> None:
    assert fuzz(seed=1, count=50) == fuzz(seed=1, count=50)


def test_a_structure_that_hdf5_hangs_on_is_given_up(
    seed_file: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.inspection.LONGEST_SECONDS", 0.001)
    monkeypatch.setattr("pipeline.store.rows.RowFile.structure", lambda file: b"forged")
    path = tmp_path / "F.h5"
    path.write_bytes(seed_file)
    monkeypatch.setattr("pipeline.store.rows.RowFile._check_structure", lambda file: None)
    with RowFile.open(path) as file:
        assert list(hdf5_differences(file)) == ["HDF5 cannot read it in 0 seconds"]


@pytest.mark.slow
def test_damaged_files_for_a_minute() -> None:
    assert fuzz(seed=14, seconds=60).total() > 1_000
