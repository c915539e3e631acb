"""Lists of URLs to a folder of images, with a line for every URL that says what became of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Unpack
from urllib.parse import urlsplit

from pipeline import files
from pipeline.commands.results import Result
from pipeline.config import FetchSettings
from pipeline.config.options import FetchOptions
from pipeline.config.signatures import takes
from pipeline.errors import ImageError, SettingsError, SourceError
from pipeline.images import decoding
from pipeline.models.predictions import write_rows
from pipeline.progress import Bar
from pipeline.progress import progress as progress_bar
from pipeline.sources.download import Address, Downloader, Refused, is_public
from pipeline.text import plural, shown

TABLE, JOURNAL = "images.csv", ".fetch.jsonl"
#: From so many URLs on, one content is a picture that says that there is none. Two may well be the same photo.
PLACEHOLDER = 3
#: Reasons that other options, or another moment, may do away with.
PASSING = ("private address", "too large", "unreadable")
SUFFIXES = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "AVIF": ".avif",
    "HEIF": ".heic",
}


@dataclass(frozen=True)
class Outcome:
    """The outcome of a URL: kept, or refused for a `reason`; `again` tells that another run may have more luck."""

    url: str
    reason: str = ""
    detail: str = ""
    sha256: str = ""
    path: str = ""
    again: bool = False


@dataclass(frozen=True)
class FetchResult(Result):
    """Counts of what `fetch` did; `csv` has a line for each URL and is a source for `extract`."""

    urls: int
    kept: int
    refused: dict[str, int]
    reused: int
    csv: Path

    def summary(self) -> str:
        """Return the counts, a line each."""
        lines = [f"{self.csv}: {plural(self.kept, 'image')} of {plural(self.urls, 'URL')}, {self.reused} were here"]
        lines += [f"  {count:>6,} {reason}" for reason, count in sorted(self.refused.items(), key=lambda one: -one[1])]
        return "\n".join(lines)


@takes(FetchSettings)
def fetch(
    lists: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    progress: bool = False,
    **options: Unpack[FetchOptions],
) -> FetchResult:
    """Download the images of lists of URLs, one a line, to the folder `output`.

    `lists` are text files, or CLASS=FILE, whose images go to a folder of that class. `options` are the fields of
    `FetchSettings`. What is there already is not downloaded again: the same call goes on after a stop.

    Raises `SourceError` for a list that cannot be read, `SettingsError` for an option or the name of a class.
    """
    settings = FetchSettings.of(options)
    given = [lists] if isinstance(lists, str | Path) else lists
    return Fetch(Path(output), settings, show=progress).run([line for one in given for line in read_list(str(one))])


@dataclass(frozen=True)
class Line:
    """A line of a list: a URL and the class of its list, empty where that has none."""

    url: str
    label: str


def read_list(name: str) -> list[Line]:
    """Read the lines of ``FILE`` or ``CLASS=FILE``; blank ones, and comments after a #, are none."""
    label, equals, path = name.partition("=")
    if not equals or Path(name).exists():
        label, path = "", name
    elif not label or re.search(r"[/\\\0]|^\.|^\s|\s$", label):
        raise SettingsError(f"{shown(label)!r} cannot be the name of a class: it is to be the name of a folder")
    try:
        text = Path(path).read_text(encoding="utf-8-sig", errors="replace")
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot read {shown(path)}: {getattr(error, 'strerror', None) or error}") from None
    lines = [line.strip() for line in text.splitlines()]
    if not (urls := [line for line in lines if line and not line.startswith("#")]):
        raise SourceError(f"{shown(path)} names no URL: it is to be a text file with one a line")
    return [Line(url, label) for url in urls]


class Fetch:
    """One run of `fetch` into `folder`."""

    def __init__(
        self, folder: Path, settings: FetchSettings, *, show: bool, allowed: Callable[[Address], bool] = is_public
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._show = show
        self._allowed = allowed

    def run(self, lines: Sequence[Line]) -> FetchResult:
        """Download what is missing, and write the table of all lines."""
        table = self._folder / TABLE
        self._folder.mkdir(parents=True, exist_ok=True)
        with files.lock(table):
            first = {line.url: line for line in reversed(lines)}
            known = {url: one for url, one in self._known(first.values()).items() if not one.again}
            missing = [line for line in first.values() if line.url not in known]
            fetched = asyncio.run(self._download(missing)) if missing else {}
            outcomes = without_repeats({url: (known.get(url) or fetched[url]) for url in first})
            self._remove_refused(outcomes.values())
            rows = list(_rows(lines, outcomes))
            write_rows(table, rows)
        kept = sum(row["status"] == "kept" for row in rows)
        refused = Counter(row["reason"].partition(":")[0] for row in rows if row["status"] != "kept")
        reused = sum(url in known and not one.reason for url, one in outcomes.items())
        return FetchResult(len(rows), kept, dict(refused), reused, table)

    def _known(self, lines: Iterable[Line]) -> dict[str, Outcome]:
        """Return what earlier runs found out, as far as their files are still there."""
        known = {one.url: one for one in self._journal()}
        for line in lines:
            before = known.pop(line.url, None)
            if before is not None and before.reason:
                known[line.url] = before
            elif (path := self._file_of(line)) is not None:  # also where the run was killed before it noted it
                sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
                if before is None or before.sha256 == sha256:
                    known[line.url] = Outcome(line.url, sha256=sha256, path=self._relative(path))
        return known

    def _journal(self) -> Iterator[Outcome]:
        """Return the outcomes that were noted; a line that a kill cut short is none."""
        try:
            text = (self._folder / JOURNAL).read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        for line in text.splitlines():
            try:
                yield Outcome(**json.loads(line))
            except (ValueError, TypeError):
                continue

    def _file_of(self, line: Line) -> Path | None:
        names = (self._path(line, suffix) for suffix in SUFFIXES.values())
        return next((path for path in names if path.is_file()), None)

    def _path(self, line: Line, suffix: str) -> Path:
        """Return the file of a URL: named by the URL's digest, it can neither collide nor lead elsewhere."""
        return self._folder / line.label / (hashlib.sha256(line.url.encode()).hexdigest()[:20] + suffix)

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    async def _download(self, lines: Sequence[Line]) -> dict[str, Outcome]:
        """Return the outcome of each URL, once its line is in the journal."""
        waiting, outcomes = iter(by_turns(lines)), dict[str, Outcome]()
        with (self._folder / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write("\n")  # after what a kill may have cut short

            async def work(client: Downloader, bar: Bar) -> None:
                for line in waiting:
                    outcome = await self._fetch(client, line)
                    outcomes[line.url] = outcome
                    journal.write(json.dumps(asdict(outcome)) + "\n")
                    journal.flush()
                    bar.advance()

            async with Downloader.open(self._settings, allowed=self._allowed) as client, asyncio.TaskGroup() as group:
                with progress_bar(len(lines), "fetching", show=self._show) as bar:
                    tasks = [group.create_task(work(client, bar)) for _ in range(self._settings.connections)]
                    await asyncio.wait(tasks)
        return outcomes

    async def _fetch(self, client: Downloader, line: Line) -> Outcome:
        try:
            data = await client.get(line.url)
            suffix = await asyncio.to_thread(_suffix, data)
        except Refused as refused:
            again = refused.transient or refused.reason in PASSING
            return Outcome(line.url, refused.reason, refused.detail, again=again)
        path = self._path(line, suffix)
        path.parent.mkdir(exist_ok=True)
        with files.atomic_write(path) as file:
            file.write(data)
        return Outcome(line.url, sha256=hashlib.sha256(data).hexdigest(), path=self._relative(path))

    def _remove_refused(self, outcomes: Iterable[Outcome]) -> None:
        """Remove the files of pictures that turned out to be placeholders, and note that they are."""
        with (self._folder / JOURNAL).open("a", encoding="utf-8") as journal:
            for one in outcomes:
                if one.reason and one.path:
                    (self._folder / one.path).unlink(missing_ok=True)
                    journal.write(json.dumps(asdict(replace(one, path=""))) + "\n")


def by_turns(lines: Sequence[Line]) -> Iterator[Line]:
    """Order lines so that hosts take turns: the first of each host, then the second of each, ...

    >>> [line.url for line in by_turns([Line("http://a/1", ""), Line("http://a/2", ""), Line("http://b/1", "")])]
    ['http://a/1', 'http://b/1', 'http://a/2']
    """
    hosts = defaultdict(list)
    for line in lines:
        hosts[_host_part(line.url)].append(line)
    for turn in zip_longest(*hosts.values()):
        yield from (line for line in turn if line is not None)


def _host_part(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def without_repeats(outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """Refuse content that stands behind several URLs: all of a placeholder's, all but the first of a twin's."""
    same = defaultdict(list)
    for one in outcomes.values():
        if one.sha256:
            same[one.sha256].append(one)
    refused = dict(outcomes)
    for urls in same.values():
        if len(urls) >= PLACEHOLDER:
            detail = f"the same picture stands behind {len(urls)} URLs"
            refused |= {one.url: replace(one, reason="placeholder", detail=detail) for one in urls}
        elif not urls[0].reason:
            detail = f"the same picture as {urls[0].url}"
            refused |= {one.url: replace(one, reason="duplicate", detail=detail) for one in urls[1:]}
    return refused


def _suffix(data: bytes) -> str:
    """Return the suffix that the bytes of a whole image ask for; raises `Refused`."""
    try:
        decoding.decode(data)
    except ImageError as error:
        if error.reason == "not-an-image" and re.match(rb"\s*(<!|<html|<head|<\?xml)", data[:200], re.IGNORECASE):
            raise Refused("HTML", "a page and no image") from None
        raise Refused(error.reason, error.detail) from None
    return SUFFIXES[decoding.kind_of(data)]


def _rows(lines: Sequence[Line], outcomes: Mapping[str, Outcome]) -> Iterator[dict[str, str]]:
    """Return a line of the table for each line of the lists."""
    labelled, seen = any(line.label for line in lines), set[str]()
    for line in lines:
        one = outcomes[line.url]
        if line.url in seen:
            one = Outcome(line.url, "repeated", "this URL stands in the lists before")
        seen.add(line.url)
        reason = f"{one.reason}: {one.detail}" if one.detail else one.reason
        kept = {"sha256": one.sha256, "path": "" if one.reason else one.path}
        label = {"class": line.label} if labelled else {}
        yield {"url": line.url, **label, "status": "refused" if one.reason else "kept", "reason": reason, **kept}
