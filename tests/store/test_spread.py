"""One list as parts on a real cluster of several nodes on this machine: the same store as one process makes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import clusterfaults
import numpy as np
import pytest
import raycluster
from pictures import write_photos
from raycluster import Nodes, extract

from pipeline.errors import EngineError
from pipeline.sources import read_manifest
from pipeline.store import FeatureStore
from pipeline.store.spread import Witness, part_count, withdraw

#: Parts of three images, and counts to read.
SMALL_PARTS = ("--part-rows", 3, "--json")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with raycluster.nodes(1, 1) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, one of them bad and two alike, and their store as one process makes it."""
    desk = tmp_path_factory.mktemp("desk")
    write_photos(desk / "photos/ants", 14, first_seed=0, colour=(200, 60, 40))
    write_photos(desk / "photos/bees", 14, first_seed=100, colour=(40, 60, 200))
    (desk / "photos/ants/bad.jpg").write_bytes(b"no image")
    (desk / "photos/bees/twin.jpg").write_bytes(next((desk / "photos/ants").glob("*.jpg")).read_bytes())
    done = extract("photos", "-o", "one.h5", folder=desk)
    assert done.returncode == 0, done.stderr
    return desk


def test_a_node_that_sees_other_files_says_which(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    manifest = read_manifest(tmp_path / "photos")
    with Witness.of(manifest, tmp_path) as witness:
        witness.check()
        (tmp_path / "photos/001.jpg").write_bytes(b"another")
        with pytest.raises(EngineError, match=r"it has another version of .*001\.jpg; every node has to see the same"):
            witness.check()
        (tmp_path / "photos/000.jpg").unlink()
        with pytest.raises(EngineError, match=r"it has no .*000\.jpg"):
            witness.check()
    with pytest.raises(EngineError, match="of the others; -o has to be shared storage"):
        witness.check()
    assert not list(tmp_path.glob(".seen-*"))


def assert_same(path: Path, other: Path) -> None:
    """Ids, splits, statuses, digests and targets are equal, and features within rounding."""
    with FeatureStore.open(path) as found, FeatureStore.open(other) as expected:
        assert found.ids == expected.ids
        assert found.splits.tolist() == expected.splits.tolist()
        assert found.statuses.tolist() == expected.statuses.tolist()
        assert found.sha256.tobytes() == expected.sha256.tobytes()
        assert found.recipe == expected.recipe
        assert {name: target.values.tolist() for name, target in found.targets.items()} == {
            name: target.values.tolist() for name, target in expected.targets.items()
        }
        for layer in expected.layers:
            np.testing.assert_allclose(found.features(layer), expected.features(layer), atol=1e-5, rtol=0)


def test_a_cluster_makes_the_store_of_one_process_and_again_computes_nothing(cluster: Nodes, desk: Path) -> None:
    asked = ("photos", "-o", "parts", "--on", cluster.on, "--part-rows", 6, "--json")
    done = extract(*asked, folder=desk)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["rows"], result["good"], result["computed"]) == (30, 29, 29)
    assert result["bad_images"] == {"ants/bad.jpg": "not-an-image"}
    assert sum(node["parts"] for node in result["nodes"]) == 5
    assert [line for line in done.stderr.splitlines() if not line.startswith("extracting: ")] == []
    assert sorted(path.name for path in (desk / "parts").iterdir()) == [f"part-{k}-of-5.h5" for k in range(1, 6)]
    assert_same(desk / "parts", desk / "one.h5")

    withdraw(desk / "parts/part-2-of-5.h5")
    (desk / "parts/part-3-of-5.h5").unlink()
    again = json.loads(extract(*asked, folder=desk).stdout)
    assert (again["computed"], again["reused"]) == (5, 24)  # and the bad image, which is looked at again
    assert_same(desk / "parts", desk / "one.h5")


def test_a_dry_run_says_what_the_nodes_at_hand_would_take(cluster: Nodes, desk: Path) -> None:
    asked = ("photos", "-o", "never", "--on", cluster.on, "--part-rows", 6, "--dry-run")
    found = json.loads(extract(*asked, "--json", folder=desk).stdout)
    assert (found["rows"], found["computed"], found["reused"], found["parts"]) == (30, 30, 0, 5)
    assert [node["actors"] for node in found["nodes"]] == [1, 1]
    assert found["seconds"] > 0
    assert found["store_bytes"] == 30 * 512 * 4
    assert not (desk / "never").exists()


def test_merged_parts_are_one_file_whose_rows_are_kept_when_images_come(cluster: Nodes, desk: Path) -> None:
    shutil.copytree(desk / "photos", desk / "more")
    asked = ("more", "-o", "whole.h5", "--on", cluster.on, "--part-rows", 10, "--merge", "--json")
    done = extract(*asked, folder=desk)
    assert done.returncode == 0, done.stderr
    assert_same(desk / "whole.h5", desk / "one.h5")
    assert not (desk / "whole.h5.parts").exists()
    write_photos(desk / "more/ants/new", 1, first_seed=900, colour=(90, 90, 90))
    grown = json.loads(extract(*asked, folder=desk).stdout)
    assert (grown["rows"], grown["computed"], grown["dropped"]) == (31, 1, 0)
    with FeatureStore.open(desk / "whole.h5") as store:
        assert len(store) == 31


@pytest.mark.slow
@pytest.mark.parametrize("cores", [(1,), (2,), (4,), (1, 0, 0), (1, 1, 0), (2, 1, 1)], ids=str)
def test_any_number_of_actors_on_any_number_of_nodes_makes_the_store_of_one_process(
    cores: tuple[int, ...], desk: Path
) -> None:
    output = f"parts-{'-'.join(map(str, cores))}"
    with raycluster.nodes(*cores) as cluster:
        done = extract("photos", "-o", output, "--on", cluster.on, *SMALL_PARTS, "--workers", 1, folder=desk)
    assert done.returncode == 0, done.stderr
    assert sum(node["actors"] for node in json.loads(done.stdout)["nodes"]) == sum(cores)
    assert_same(desk / output, desk / "one.h5")


@pytest.mark.slow
def test_int8_has_the_ranges_of_the_driver_everywhere_and_keeps_them(cluster: Nodes, desk: Path) -> None:
    asked = ("photos", "--precision", "int8", "--json")
    one = json.loads(extract(*asked, "-o", "int8.h5", folder=desk).stdout)
    spread = (*asked, "-o", "int8", "--on", cluster.on, "--part-rows", 10)
    done = extract(*spread, folder=desk)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["drift"] == pytest.approx(one["drift"])
    assert_same(desk / "int8", desk / "int8.h5")
    (desk / "int8/part-2-of-3.h5").unlink()
    again = json.loads(extract(*spread, folder=desk).stdout)
    assert (again["reused"], again["drift"]) == (20, result["drift"])
    assert_same(desk / "int8", desk / "int8.h5")


@pytest.mark.slow
def test_the_same_command_goes_on_after_the_driver_was_killed_and_a_node_went(desk: Path) -> None:
    with raycluster.nodes(1, 1) as cluster:
        asked = ("photos", "-o", "again", "--on", cluster.on, *SMALL_PARTS)
        driver = started(*asked, folder=desk)
        wait_for_a_part(desk / "again")
        driver.kill()
        driver.communicate()
        cluster.ask("remove 0")
        cluster.ask("settle 0")
        done = extract(*asked, folder=desk)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["rows"] == 30
        assert result["reused"] > 0
        assert sorted(path.name for path in (desk / "again").iterdir()) == sorted(
            f"part-{number}-of-10.h5" for number in range(1, 11)
        )
        assert_same(desk / "again", desk / "one.h5")


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_computed(cluster: Nodes, desk: Path) -> None:
    asked = ("photos", "-o", "stopped", "--on", cluster.on, *SMALL_PARTS)
    driver = started(*asked, folder=desk)
    wait_for_a_part(desk / "stopped")
    driver.send_signal(signal.SIGINT)
    out, said = driver.communicate(timeout=30)
    assert (driver.returncode, out) == (130, "")
    assert "the same command goes on from there" in said
    assert not list((desk / "stopped").glob(".seen-*"))
    done = extract(*asked, folder=desk)
    assert json.loads(done.stdout)["reused"] > 0
    assert_same(desk / "stopped", desk / "one.h5")


@pytest.mark.slow
def test_nodes_that_cannot_work_are_left_out_and_the_others_go_on(desk: Path, tmp_path: Path) -> None:
    shutil.copytree(raycluster.HERE / "pipeline", tmp_path / "pipeline")
    (tmp_path / "pipeline/more.py").touch()
    with raycluster.nodes(1) as cluster:
        cluster.ask(f"add 1 PYTHONPATH={tmp_path}")
        cluster.ask(f"add 1 {raycluster.odd(LARGEST_FILE=1 << 14)}")
        reasons = ["it has another version of this package", "part-.* cannot be written: File too large"]
        if os.geteuid() == 0:
            cluster.ask(f"add 1 {raycluster.odd(HIDDEN_FOLDER=desk / 'photos')}")
            reasons.append("it has no .*photos/ants/000.jpg; every node has to see the same files")
        done = extract("photos", "-o", "left", "--on", cluster.on, *SMALL_PARTS, folder=desk)
    assert done.returncode == 0, done.stderr
    refused = [node["refused"] for node in json.loads(done.stdout)["nodes"] if node["refused"]]
    assert len(refused) == len(reasons), refused
    for reason in reasons:
        assert any(re.search(reason, why) for why in refused), (reason, refused)
        assert re.search(f"node 127.0.0.2 is left out: .*{reason}", done.stderr), done.stderr
    assert_same(desk / "left", desk / "one.h5")


@pytest.mark.slow
def test_an_image_that_hangs_or_ends_actors_costs_itself_alone(cluster: Nodes, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos/m", 120)
    for name in ("a/hang.jpg", "z/crash.jpg", "z/eat.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes((tmp_path / "photos/m/000.jpg").read_bytes())
    asked = (str(tmp_path / "photos"), str(tmp_path / "parts"), cluster.on, str(tmp_path / "log"), 0.0, 20.0)
    driver = clusterfaults.driver(*asked)
    out, said = driver.communicate()
    assert driver.returncode == 0, said
    assert json.loads(out)["bad"] == {"a/hang.jpg": "unreadable", "z/crash.jpg": "corrupt", "z/eat.jpg": "too-large"}
    assert re.search(r"an actor on node 127\.0\.0\.2 stood still at part 1; .* each image is tried alone", said)
    assert re.search(r"photos/z/crash\.jpg: corrupt: .*SIGSEGV", said)
    with FeatureStore.open(tmp_path / "parts") as store:
        assert (len(store), int((store.statuses == 1).sum())) == (123, 120)


@pytest.mark.slow
def test_a_straggler_s_part_is_made_by_another_actor(cluster: Nodes, desk: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 300)
    clusterfaults.extract(tmp_path / "photos", tmp_path / "one.h5", **clusterfaults.SMALL)
    log = tmp_path / "log"
    asked = (str(tmp_path / "photos"), str(tmp_path / "parts"), cluster.on, str(log), 0.02)
    driver = clusterfaults.driver(*asked)
    wait_until(lambda: log.exists() and len(log.with_suffix(".pids").read_text().splitlines()) == 2)
    process = int(log.with_suffix(".pids").read_text().split()[0])
    os.kill(process, signal.SIGSTOP)
    try:
        _, said = driver.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    assert driver.returncode == 0, said
    assert "takes long and is given to a second actor, on node 127.0.0.2" in said
    assert_same(tmp_path / "parts", tmp_path / "one.h5")


@pytest.mark.slow
def test_nodes_that_are_lost_and_that_join_at_work_cost_no_row(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 700)
    clusterfaults.extract(tmp_path / "photos", tmp_path / "one.h5", **clusterfaults.SMALL)
    asked = (str(tmp_path / "photos"), str(tmp_path / "parts"))
    with raycluster.nodes(1, 1) as cluster:
        driver = clusterfaults.driver(*asked, cluster.on, str(tmp_path / "log"), 0.03)
        wait_until((tmp_path / "log").exists)
        cluster.ask("remove 0")
        cluster.ask("add 1")
        out, said = driver.communicate()
    assert driver.returncode == 0, said
    assert "node 127.0.0.2 was lost; its work is given out again" in said
    assert "node 127.0.0.2 joined" in said
    assert re.search(r"extracting: \d actors? at work, \d bad, \d+\.\d/s, \d+ %, \d+ s", said)
    assert json.loads(out)["nodes"][-1]["parts"] > 0
    assert_same(tmp_path / "parts", tmp_path / "one.h5")


def started(*arguments: object, folder: Path) -> subprocess.Popen[str]:
    """Start an extraction that is watched."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command, environment = raycluster.command(*arguments), raycluster.environment()
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes)


def wait_for_a_part(folder: Path) -> None:
    wait_until(lambda: any(folder.glob("*.h5")))


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not is_so():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("total", "rows", "actors", "parts"),
    [(1, "auto", 8, 1), (100, "auto", 1, 2), (10**6, "auto", 4, 100), (10**9, "auto", 4, 10_000), (7, 2, 1, 4)],
)
def test_parts_are_minutes_of_work_and_no_more_than_a_folder_holds(
    total: int, rows: int, actors: int, parts: int
) -> None:
    assert part_count(total, rows, actors) == parts  # type: ignore[arg-type]
