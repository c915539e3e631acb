"""`pipeline fetch` against servers on this machine, which behave as badly as those of the world do."""

from __future__ import annotations

import csv
import hashlib
import ipaddress
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pictures import encoded, photo

import pipeline
from pipeline.commands.fetch import SUFFIXES, Fetch, Line, fetch, read_list
from pipeline.config import FetchSettings
from pipeline.errors import SettingsError, SourceError
from pipeline.images.decoding import FORMATS

pytest.importorskip("aiohttp")


class Server(ThreadingHTTPServer):
    """A server on `address` whose paths say how it answers: /KIND/NUMBER; it counts what it is asked for."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), Handler)
        self.asked: Counter[str] = Counter()
        self.elsewhere = ""
        self.connections = 0
        self.closing = threading.Event()

    def url(self, path: str) -> str:
        return f"http://{self.server_address[0]}:{self.server_address[1]}/{path}"

    def get_request(self) -> tuple[socket.socket, Any]:
        self.connections += 1
        return super().get_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what the tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        kind, _, number = self.path.strip("/").partition("/")
        getattr(self, f"_{kind}")(number)

    def _answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _good(self, number: str) -> None:
        self._answer(picture(int(number)))

    def _png(self, number: str) -> None:
        self._answer(encoded(photo(int(number) + 10_000), "PNG"), Content_Type="image/jpeg")

    def _same(self, number: str) -> None:
        self._answer(picture(999_999))

    def _missing(self, number: str) -> None:
        self._answer(b"no such page", 404)

    def _broken(self, number: str) -> None:
        self._answer(b"", 500)

    def _shaky(self, number: str) -> None:
        """First 503, then good."""
        if self.server.asked[self.path] == 1:
            self._answer(b"", 503, Retry_After="0")
        else:
            self._good(number)

    def _html(self, number: str) -> None:
        self._answer(b"<!DOCTYPE html><html><body>This photo is gone</body></html>", Content_Type="image/jpeg")

    def _cut(self, number: str) -> None:
        """Half of the body that was announced."""
        data = picture(int(number))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.close_connection = True

    def _short(self, number: str) -> None:
        """Half of an image, correctly announced."""
        data = picture(int(number))
        self._answer(data[: len(data) // 2])

    def _endless(self, number: str) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while not self.server.closing.is_set():
            self.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")

    def _huge(self, number: str) -> None:
        """Announced too large, and never sent."""
        self.send_response(200)
        self.send_header("Content-Length", str(10**12))
        self.end_headers()
        self.server.closing.wait(5)

    def _drip(self, number: str) -> None:
        """A byte now and then: every single wait is short."""
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        while not self.server.closing.wait(0.05):
            self.wfile.write(b"\xff")

    def _moved(self, number: str) -> None:
        self._answer(b"", 302, Location=f"/good/{number}")

    def _loop(self, number: str) -> None:
        self._answer(b"", 302, Location=self.path)

    def _inside(self, number: str) -> None:
        """A redirect to a private address, where somebody listens."""
        self._answer(b"", 302, Location=self.server.elsewhere)

    def _file(self, number: str) -> None:
        self._answer(b"", 302, Location="file:///etc/passwd")


def picture(number: int) -> bytes:
    return encoded(photo(number), "JPEG")


@pytest.fixture
def server() -> Iterator[Server]:
    yield from serving(Server())


@pytest.fixture
def private() -> Iterator[Server]:
    """A second server on another address of this machine, which must never hear of anybody."""
    yield from serving(Server("127.0.0.2" if sys.platform == "linux" else "127.0.0.1"))


def serving(one: Server) -> Iterator[Server]:
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield one
    finally:
        one.closing.set()
        one.shutdown()
        thread.join()
        one.socket.close()


def listed(path: Path, *urls: str) -> Path:
    path.write_text("\n".join(urls) + "\n")
    return path


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "images.csv").open(newline="") as file:
        return list(csv.DictReader(file))


QUICK: dict[str, Any] = {"allow_private": True, "retries": 1, "timeout": 2.0, "max_mb": 1.0}

#: Kind of answer -> reason that it is refused for.
REASONS = {
    "missing": "HTTP 404",
    "broken": "HTTP 500",
    "html": "HTML",
    "cut": "cut off",
    "short": "truncated",
    "endless": "too large",
    "huge": "too large",
    "drip": "timed out",
    "loop": "too many redirects",
    "file": "no URL",
}


def test_every_line_is_accounted_for(server: Server, tmp_path: Path) -> None:
    kinds = ["good", "png", "shaky", "moved", *REASONS]
    urls = [server.url(f"{kind}/{number}") for number, kind in enumerate(kinds)]
    result = fetch(
        listed(tmp_path / "urls.txt", "# a comment", "", *urls, "ftp://a/b.jpg", urls[0]), tmp_path / "d", **QUICK
    )
    rows = rows_of(tmp_path / "d")
    assert [row["url"] for row in rows] == [*urls, "ftp://a/b.jpg", urls[0]]
    reasons = [row["reason"].partition(":")[0] for row in rows]
    assert reasons == ["", "", "", "", *REASONS.values(), "no URL", "repeated"]
    assert result.to_json() == {
        "urls": len(kinds) + 2,
        "kept": 4,
        "refused": dict(Counter(reason for reason in reasons if reason)),
        "reused": 0,
        "csv": str(tmp_path / "d" / "images.csv"),
    }
    for row in rows[:4]:
        assert (tmp_path / "d" / row["path"]).is_file()
    assert [Path(row["path"]).suffix for row in rows[:2]] == [".jpg", ".png"]  # by the bytes, whatever the server says
    left = {path.name for path in (tmp_path / "d").iterdir() if path.suffix != ".lock"}
    assert left == {*(row["path"] for row in rows[:4]), "images.csv", ".fetch.jsonl"}


def test_again_nothing_good_is_asked_for(server: Server, tmp_path: Path) -> None:
    urls = [server.url(f"{kind}/{number}") for number, kind in enumerate(["good", "good", "missing", "html", "broken"])]
    options = {**QUICK, "retries": 0}
    fetch(listed(tmp_path / "urls.txt", *urls), tmp_path / "d", **options)
    assert set(server.asked.values()) == {1}
    again = fetch(listed(tmp_path / "urls.txt", *urls, server.url("good/7")), tmp_path / "d", **options)
    assert (again.kept, again.reused) == (3, 2)
    assert {path for path, count in server.asked.items() if count > 1} == {"/broken/4"}  # it may be whole by now
    (tmp_path / "d" / rows_of(tmp_path / "d")[0]["path"]).unlink()
    assert fetch(tmp_path / "urls.txt", tmp_path / "d", **options).kept == 3
    assert server.asked["/good/0"] == 2


def test_what_an_option_refused_is_tried_under_another(server: Server, tmp_path: Path) -> None:
    listing = listed(tmp_path / "urls.txt", server.url("good/1"))
    assert fetch(listing, tmp_path / "d", timeout=2).refused == {"private address": 1}
    assert not server.asked
    assert fetch(listing, tmp_path / "d", **{**QUICK, "max_mb": 0.0001}).refused == {"too large": 1}
    assert fetch(listing, tmp_path / "d", **QUICK).kept == 1


def test_the_same_picture_under_several_urls(server: Server, tmp_path: Path) -> None:
    twins = [server.url("good/1"), server.url("moved/1")]
    urls = [*twins, *(server.url(f"same/{number}") for number in range(3))]
    for _ in range(2):
        result = fetch(listed(tmp_path / "urls.txt", *urls), tmp_path / "d", **QUICK)
        assert result.refused == {"placeholder": 3, "duplicate": 1}
    assert server.asked["/same/0"] == 1
    more = fetch(listed(tmp_path / "urls.txt", *urls, server.url("same/9")), tmp_path / "d", **QUICK)
    assert more.refused == {"placeholder": 4, "duplicate": 1}
    assert len(list((tmp_path / "d").glob("*.jpg"))) == 1


def test_lists_of_classes_become_folders_and_a_source(server: Server, tmp_path: Path) -> None:
    tigers = listed(tmp_path / "t.txt", *(server.url(f"good/{number}") for number in range(4)))
    cats = listed(
        tmp_path / "c.txt", *(server.url(f"good/{number}") for number in range(4, 8)), server.url("missing/1")
    )
    pipeline.fetch([f"tiger={tigers}", f"kittycat={cats}"], tmp_path / "d", **QUICK)
    manifest = pipeline.sources.read_manifest(tmp_path / "d" / "images.csv")
    assert manifest.targets["class"].names == ("kittycat", "tiger")
    assert len(manifest) == 8
    assert any("1 URL gave no image" in note for note in manifest.notices)
    assert {record.id.split("/")[0] for record in manifest.records} == {"kittycat", "tiger"}


def test_a_table_of_refused_urls_is_no_source(server: Server, tmp_path: Path) -> None:
    fetch(listed(tmp_path / "urls.txt", server.url("missing/1")), tmp_path / "d", **QUICK)
    with pytest.raises(SourceError, match="none of its 1 URL gave an image"):
        pipeline.sources.read_manifest(tmp_path / "d" / "images.csv")


def attempt(lines: list[str], folder: Path, public: str) -> list[str]:
    """Fetch where `public` alone is an address of the internet; the reasons."""
    settings = FetchSettings.of({"retries": 0, "timeout": 5})
    allowed = {ipaddress.ip_address(public)}
    Fetch(folder, settings, show=False, allowed=allowed.__contains__).run([Line(url, "") for url in lines])
    return [row["reason"].partition(":")[0] for row in rows_of(folder)]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second address of this machine")
def test_a_redirect_to_a_private_address_is_refused_before_anything_is_sent(
    server: Server, private: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = private.server_address[1]
    asked = []

    def getaddrinfo(host: str, *rest: Any, **options: Any) -> Any:
        asked.append(host)
        address = {"inside.example": "127.0.0.2", "both.example": "127.0.0.2"}.get(host, "127.0.0.1")
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]
        return found * 2 if host != "both.example" else [*found, (*found[0][:4], ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    for number, target in enumerate(
        [
            f"http://127.0.0.2:{port}/good/1",
            f"http://inside.example:{port}/good/1",
            f"http://both.example:{port}/good/1",
        ]
    ):
        server.elsewhere = target
        assert attempt([server.url("inside/1"), target], tmp_path / str(number), "127.0.0.1") == ["private address"] * 2
    assert private.connections == 0
    assert set(asked) == {"inside.example", "both.example"}
    assert server.asked["/inside/1"] == 3


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "[::1]", "10.1.2.3", "192.168.0.1", "169.254.169.254", "[::ffff:10.0.0.1]", "[fd00::1]", "0.0.0.0",
     "[64:ff9b::a00:1]", "[2002:a00:1::1]", "0x7f.1", "localhost", "224.0.0.1", "100.64.0.1"],
)  # fmt: skip
def test_addresses_that_are_none_of_the_internet(host: str, tmp_path: Path) -> None:
    result = fetch(listed(tmp_path / "urls.txt", f"http://{host}:9/a.jpg"), tmp_path / "d", retries=0, timeout=5)
    assert result.refused == {"private address": 1}


@pytest.mark.parametrize(
    "url",
    [
        "no url",
        "http://",
        "http://a b/c.jpg",
        "http://u:p@1.1.1.1/x",
        "http://[::1",
        "javascript:1",
        "http://a:b/",
    ],
)
def test_lines_that_are_no_url(url: str, tmp_path: Path) -> None:
    assert fetch(listed(tmp_path / "urls.txt", url), tmp_path / "d", retries=0).refused == {"no URL": 1}


def test_an_address_written_as_one_number(tmp_path: Path) -> None:
    listed(tmp_path / "urls.txt", "http://2130706433/x")  # 127.0.0.1; older releases of aiohttp take it for a host
    refused = fetch(tmp_path / "urls.txt", tmp_path / "d", retries=0).refused
    assert refused in ({"no URL": 1}, {"private address": 1})


@pytest.mark.parametrize("label", ["..", "a/b", ".hidden", " x", "a\\b"])
def test_names_of_classes_lead_nowhere(label: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be the name of a class"):
        fetch(f"{label}={listed(tmp_path / 'urls.txt', 'http://a/b')}", tmp_path / "d")


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot read .*nothing.txt: No such file"):
        read_list(str(tmp_path / "nothing.txt"))
    with pytest.raises(SourceError, match="names no URL"):
        read_list(str(listed(tmp_path / "empty.txt", "# nothing")))


def command(folder: Path, *more: str) -> list[str]:
    words = ["-P", "-m", "pipeline", "fetch", str(folder / "urls.txt"), "-o", str(folder / "d"), "--allow-private"]
    return [sys.executable, *words, "--timeout", "20", "--json", "-q", *more]


def killed_and_resumed(server: Server, folder: Path, *, count: int, kills: int, seed: int) -> None:
    """Kill a fetch of `count` URLs at random moments and run it to its end: nothing good is fetched twice."""
    mix = ["good"] * 6 + ["shaky", "missing", "html", "moved"]
    chance = random.Random(seed)
    kinds = [chance.choice(mix) for _ in range(count)]
    urls = [server.url(f"{kind}/{number}") for number, kind in enumerate(kinds)]
    listed(folder / "urls.txt", *urls)
    done: set[str] = set()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for _ in range(kills):
        process = subprocess.Popen(command(folder), env=environment, stdout=subprocess.DEVNULL)
        start, aim = time.monotonic(), len(done) + chance.randint(1, max(2, count // (kills + 1)))
        while process.poll() is None and time.monotonic() - start < 30:
            here = {path.stem for path in (folder / "d").glob("*.jpg")}
            if len(here) >= aim:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = {path.stem for path in (folder / "d").glob("*.jpg")}
    before = dict(server.asked)
    named = {hashlib.sha256(url.encode()).hexdigest()[:20]: url for url in urls}
    subprocess.run(command(folder), env=environment, check=True, stdout=subprocess.DEVNULL)
    for stem in done:
        path = "/" + named[stem].split("/", 3)[3]
        assert server.asked[path] == before[path]
    rows = rows_of(folder / "d")
    assert [row["url"] for row in rows] == urls
    wanted = {"good": "kept", "shaky": "kept", "moved": "kept", "missing": "refused", "html": "refused"}
    assert [row["status"] for row in rows] == [wanted[kind] for kind in kinds]
    for number, row in enumerate(rows):
        if row["status"] == "kept":
            assert (folder / "d" / row["path"]).read_bytes() == picture(number)


def test_a_kill_costs_nothing_that_is_there(server: Server, tmp_path: Path) -> None:
    killed_and_resumed(server, tmp_path, count=60, kills=2, seed=1)


@pytest.mark.slow
def test_many_kills(server: Server, tmp_path: Path) -> None:
    killed_and_resumed(server, tmp_path, count=1000, kills=20, seed=2)


#: The command line with these words, and then the peak of this process alone in kB: getrusage begins at the parent's.
PEAK = """
import sys
from pipeline.__main__ import main
try:
    main()
except SystemExit as end:
    assert not end.code
with open("/proc/self/status") as file:
    print(next(int(line.split()[1]) for line in file if line.startswith("VmHWM")))
"""


def peak(server: Server, folder: Path, kinds: list[str], count: int) -> int:
    """Fetch `count` URLs of `kinds` by turns in a process of its own, with each accounted for; its peak in bytes."""
    folder.mkdir()
    listed(folder / "urls.txt", *(server.url(f"{kinds[number % len(kinds)]}/{number}") for number in range(count)))
    words = command(folder, "--timeout", "2", "--retries", "1", "--max-mb", "1")
    words = [sys.executable, "-P", "-c", PEAK, *words[words.index("fetch") :]]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
    for number, row in enumerate(rows_of(folder / "d")):
        kind = kinds[number % len(kinds)]
        assert row["reason"].partition(":")[0] == REASONS.get(kind, ""), kind
    return int(done.stdout.splitlines()[-1]) * 1024


own_peak = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process does not say its own peak")


@own_peak
def test_bodies_that_are_too_large_are_let_go_at_once(server: Server, tmp_path: Path) -> None:
    assert peak(server, tmp_path / "many", ["endless"], 200) < peak(server, tmp_path / "few", ["good"], 20) + 20e6


@own_peak
@pytest.mark.slow
def test_a_thousand_urls_of_every_kind_in_flat_memory(server: Server, tmp_path: Path) -> None:
    kinds = ["good"] * 8 + ["png", "shaky", "moved", *REASONS]
    assert peak(server, tmp_path / "many", kinds, 1000) < peak(server, tmp_path / "few", kinds, 100) + 15e6


def test_every_format_that_is_read_has_a_suffix() -> None:
    assert tuple(SUFFIXES) == FORMATS
