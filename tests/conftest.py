"""What every test shares: real data where it is at hand, and small pictures made on the spot."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pictures import write_photos


@dataclass(frozen=True)
class Trained:
    """Photos in train and val, their features and models; the same photos with a number each."""

    photos: Path
    store: Path
    linear: Path
    table: Path
    numbers: Path
    ridge: Path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the real photos and weights; tests that need it skip without."""
    root = os.environ.get("PIPELINE_REAL_DATA")
    if not root:
        pytest.skip("PIPELINE_REAL_DATA is not set")
    return Path(root).resolve()


@pytest.fixture(scope="session", autouse=True)
def signals_reach_the_tests() -> None:
    """A shell has its background jobs ignore Ctrl-C, and their children too: here it is heard."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def graphs_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exported graphs are shared by the tests and kept apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """Twelve small JPEGs, a folder a class: reddish ``ants``, bluish ``bees``; any head tells them apart."""
    root = tmp_path / "photos"
    write_photos(root / "ants", 6, first_seed=0, colour=(200, 60, 40))
    write_photos(root / "bees", 6, first_seed=100, colour=(40, 60, 200))
    return root


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    """The same classes under ``train`` (8 a class) and ``val`` (4 a class)."""
    root = tmp_path / "splits"
    for seed, (split, count) in enumerate((("train", 8), ("val", 4))):
        write_photos(root / split / "ants", count, first_seed=1000 * seed, colour=(200, 60, 40))
        write_photos(root / split / "bees", count, first_seed=1000 * seed + 100, colour=(40, 60, 200))
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Photos with splits, their features, and a linear head and a regressor on them: read, never write."""
    from pipeline.commands.extract import extract
    from pipeline.commands.fit_head import fit_head

    root = tmp_path_factory.mktemp("trained")
    for seed, (split, count) in enumerate((("train", 12), ("val", 6))):
        write_photos(root / "photos" / split / "ants", count, first_seed=1000 * seed, colour=(200, 60, 40))
        write_photos(root / "photos" / split / "bees", count, first_seed=1000 * seed + 100, colour=(40, 60, 200))
    table = root / "lengths.csv"
    files = sorted((root / "photos").rglob("*.jpg"))
    lines = [f"{file.relative_to(root)},{100 + 7.5 * ('ants' in file.parts)},{file.parts[-3]}" for file in files]
    table.write_text("\n".join(["image,length,split", *lines]) + "\n")
    base = {"base": "squeezenet1_1", "weights": "embedded"}
    store = extract(root / "photos", root / "photos.h5", **base).store
    numbers = extract(table, root / "lengths.h5", target=("length:number",), **base).store
    return Trained(
        photos=root / "photos",
        store=store,
        linear=fit_head(store, root / "linear", head="linear").model,
        table=table,
        numbers=numbers,
        ridge=fit_head(numbers, root / "ridge", head="ridge").model,
    )


@pytest.fixture
def console_script(tmp_path: Path) -> Path:
    """What pip puts beside Python for `pipeline`: unlike ``-m``, it imports from its folder, not the current one."""
    script = tmp_path / "bin" / "pipeline"
    script.parent.mkdir()
    script.write_text("from pipeline.__main__ import main\n\nif __name__ == '__main__':\n    main()\n")
    return script


@pytest.fixture
def planted(tmp_path: Path) -> Callable[..., Path]:
    """Call it with names of modules to put into `tmp_path`; the file that it returns exists once one has run."""
    ran = tmp_path / "ran"

    def plant(*names: str) -> Path:
        for name in names:
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"open({str(ran)!r}, 'a').write(__name__ + ' ')\n")
        return ran

    return plant


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    """The command line sends the package's log to its own stderr; no test inherits that."""
    yield
    log = logging.getLogger("pipeline")
    log.handlers.clear()
    log.setLevel(logging.NOTSET)
