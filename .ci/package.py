"""Check the wheel and the sdist in a folder, and run the demo from the wheel: python .ci/package.py DIST

The demo runs offline, in an environment that has the wheel and what the wheel asks for, taken from this one: no test
tool, no extra, and not this checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.metadata import Metadata
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pipeline"


def shipped() -> set[str]:
    """Every file of the package, as the wheel names it."""
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in files}


def check_wheel(wheel: Path) -> Metadata:
    """Its files are the package and no other, and what it says of itself is what an index takes."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = next(name.partition("/")[0] for name in names if name.partition("/")[0].endswith(".dist-info"))
        described = Metadata.from_email(archive.read(f"{info}/METADATA"), validate=True)
    found = {name for name in names if not name.startswith(f"{info}/")}
    assert found == shipped(), f"the wheel differs from the package in {', '.join(sorted(found ^ shipped()))}"
    licences = {f"{info}/licenses/{name}" for name in described.license_files or ()}
    assert licences <= names, f"the wheel lacks {', '.join(sorted(licences - names))}"
    assert "LICENSE" in (described.license_files or ())
    assert len(licences) > 1, "the licence of the embedded weights is missing"
    assert "pipeline/py.typed" in names
    assert described.description_content_type == "text/markdown"
    assert (described.description or "").startswith("# pipeline")
    return described


def check_sdist(sdist: Path) -> None:
    """It holds what the wheel is built from."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = shipped() | {"pyproject.toml", "README.md", "LICENSE"}
    assert missing <= names, f"the sdist lacks {', '.join(sorted(missing - names))}"


def required(requirements: Iterable[str]) -> dict[str, metadata.Distribution]:
    """What these requirements bring here, by name, and what those bring in turn; extras only where they are named."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        if wanted.name in found or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        found[wanted.name] = metadata.distribution(wanted.name)
        waiting += [Requirement(text) for text in found[wanted.name].requires or ()]
    return found


def make_environment(folder: Path, wheel: Path, requirements: Iterable[str]) -> Path:
    """An environment with the wheel and links to what it requires; returns its folder of programs."""
    venv.create(folder, symlinks=True)
    programs = folder / "bin"
    links = folder / "required"
    links.mkdir()
    for distribution in required(requirements).values():
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."} - {"__pycache__"}:
            if not (links / top).exists():
                (links / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "required.pth").write_text(f"{links}\n")
    install = ["-m", "pip", "--python", programs / "python", "install", "--quiet", "--no-deps", "--no-index", wheel]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, *install], check=True, env=alone)
    return programs


def run_demo(programs: Path, folder: Path) -> None:
    """From a folder with nothing in it, as a user who has just installed the wheel."""
    reached = folder / "reached.txt"
    kept = {name: os.environ[name] for name in ("LANG", "OMP_NUM_THREADS") if name in os.environ}
    home = {"HOME": str(folder), "PATH": f"{programs}:/usr/bin:/bin"}
    offline = {"PYTHONPATH": str(ROOT / "tests" / "offline"), "REACHED": str(reached)}
    where = "import pipeline; print(pipeline.__file__)"
    for command in ([programs / "python", "-P", "-c", where], [programs / "pipeline", "demo", "-o", "demo"]):
        done = subprocess.run(command, cwd=folder, env={**kept, **home, **offline}, stdout=subprocess.PIPE, text=True)
        assert done.returncode == 0, f"{command} ends with {done.returncode}"
        print(done.stdout, end="")
        assert str(ROOT) not in done.stdout, "it is not the wheel that ran"
    asked = reached.read_text() if reached.exists() else ""
    assert not asked, f"the demo asks for the network:\n{asked}"


def main(dist: Path) -> None:
    started = time.monotonic()
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    described = check_wheel(wheel)
    check_sdist(sdist)
    with tempfile.TemporaryDirectory() as folder:
        programs = make_environment(Path(folder) / "empty", wheel, map(str, described.requires_dist or ()))
        work = Path(folder) / "work"
        work.mkdir()
        run_demo(programs, work)
    print(f"{wheel.name} and {sdist.name} are whole; checked in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
