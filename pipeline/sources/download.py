"""The bytes behind a URL, fetched so that neither a list of URLs nor a server can do harm.

Only http and https are spoken, and only to public addresses: the addresses that a name stands for are checked where the
connection is made, at every redirect anew, so that a name cannot be checked as one address and used as another. Bodies
have a cap, and every wait has an end.
"""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

from pipeline.config import FetchSettings
from pipeline.errors import SettingsError

try:
    import aiohttp
    from aiohttp.abc import AbstractResolver, ResolveResult
except ImportError as error:
    raise SettingsError(
        "fetch needs an HTTP client; install it with pip install 'cached-feature-pipeline[fetch]'"
    ) from error

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

REDIRECTS = 5
CHUNK = 2**16
#: Seconds before the first retry; they double, with some chance, so that not all come back at once.
FIRST_PAUSE = 0.5
#: Seconds that a server's Retry-After is obeyed for at most.
LONGEST_PAUSE = 60.0
#: Answers after which it is worth to ask again.
TRANSIENT = frozenset((408, 425, 429, 500, 502, 503, 504))


class Refused(Exception):
    """There is no image behind a URL: a `reason` that can be counted, and the `detail` of this one.

    A `transient` one may go another time, after `pause` seconds where the server says so.
    """

    def __init__(self, reason: str, detail: str = "", *, transient: bool = False, pause: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.transient = transient
        self.pause = pause


def is_public(address: Address) -> bool:
    """Tell whether an address is one of the internet, also where IPv6 wraps one of IPv4.

    >>> [is_public(ipaddress.ip_address(text)) for text in ("1.1.1.1", "10.0.0.1", "::ffff:127.0.0.1")]
    [True, False, False]
    """
    inner = _wrapped(address)
    return address.is_global and not address.is_multicast and (inner is None or is_public(inner))


def _wrapped(address: Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 one leads to: mapped, 6to4, Teredo or NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in ipaddress.ip_network("64:ff9b::/96"):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


class CheckedResolver(AbstractResolver):
    """Names to addresses, all of which must be allowed: the connection goes to one of those returned here."""

    def __init__(self, inner: AbstractResolver, allowed: Callable[[Address], bool]) -> None:
        self._inner = inner
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raise `Refused` where one of the addresses is not allowed."""
        found = await self._inner.resolve(host, port, family)
        for one in found:
            self.check(host, one["host"])
        return found

    def check(self, host: str, address: str) -> None:
        """Raise `Refused` for an address that is not allowed; a scope such as %eth0 is never public."""
        if "%" in address or not self._allowed(ipaddress.ip_address(address)):
            raise Refused("private address", f"{host} is {address}; --allow-private lets it in")

    async def close(self) -> None:
        """Close the resolver that does the work."""
        await self._inner.close()


class Downloader:
    """An HTTP client with limits: `settings` say how large, how long, how often and how many at once."""

    def __init__(self, session: aiohttp.ClientSession, resolver: CheckedResolver, settings: FetchSettings) -> None:
        self._session = session
        self._resolver = resolver
        self._settings = settings
        self._hosts: dict[str, asyncio.Semaphore] = {}

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: FetchSettings, *, allowed: Callable[[Address], bool] = is_public, agent: str = "pipeline-fetch"
    ) -> AsyncIterator[Downloader]:
        """Open a client; its connections are closed with the block. `allowed` tells which addresses it may talk to."""
        every: Callable[[Address], bool] = lambda _: True  # noqa: E731
        resolver = CheckedResolver(aiohttp.ThreadedResolver(), every if settings.allow_private else allowed)
        connector = aiohttp.TCPConnector(limit=settings.connections, resolver=resolver, use_dns_cache=False)
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": agent, "Accept": "image/*, */*;q=0.1", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None),  # the clock runs in `_attempt`, once it is our turn
            auto_decompress=False,
            trust_env=False,
        ) as session:
            yield cls(session, resolver, settings)

    async def get(self, url: str) -> bytes:
        """Return the body behind `url`, after as many attempts as the settings allow; raises `Refused`."""
        host = _host(url)
        async with self._hosts.setdefault(host, asyncio.Semaphore(self._settings.per_host)):
            for attempt in range(self._settings.retries + 1):
                try:
                    return await self._attempt(url)
                except Refused as refused:
                    if not refused.transient or attempt == self._settings.retries:
                        raise
                    pause = FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.5)
                    await asyncio.sleep(max(pause, min(refused.pause or 0, LONGEST_PAUSE)))
        raise AssertionError("unreachable")

    async def _attempt(self, url: str) -> bytes:
        try:
            async with asyncio.timeout(self._settings.timeout):
                return await self._follow(url)
        except TimeoutError:
            seconds = f"not done within {self._settings.timeout:g} s"
            raise Refused("timed out", seconds, transient=True) from None
        except aiohttp.ClientPayloadError:
            raise Refused("cut off", "the body is shorter than the server said", transient=True) from None
        except aiohttp.InvalidURL:
            raise Refused("no URL", "it cannot be parsed") from None
        except (aiohttp.ClientConnectionError, OSError) as error:
            raise Refused("no connection", str(error) or type(error).__name__, transient=True) from None
        except aiohttp.ClientError as error:
            raise Refused("bad answer", str(error) or type(error).__name__, transient=True) from None

    async def _follow(self, url: str) -> bytes:
        """Return the body at the end of the redirects, each of which is checked like the first URL."""
        for _ in range(REDIRECTS + 1):
            host = _host(url)
            if _is_address(host):  # no resolver is asked for those
                self._resolver.check(host, host)
            async with self._session.get(url, allow_redirects=False) as answer:
                if answer.status in (301, 302, 303, 307, 308) and "Location" in answer.headers:
                    url = urljoin(url, answer.headers["Location"])
                    continue
                _refuse_status(answer)
                return await self._body(answer)
        raise Refused("too many redirects", f"more than {REDIRECTS}")

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        self._refuse_larger(answer.content_length or 0)
        body = bytearray()
        async for chunk in answer.content.iter_chunked(CHUNK):
            body += chunk
            self._refuse_larger(len(body))
        return bytes(body)

    def _refuse_larger(self, size: int) -> None:
        # Raised where it is made: an error that a local name of its own frame holds keeps the body until a collection.
        if size > int(self._settings.max_mb * 1e6):
            raise Refused("too large", f"over {self._settings.max_mb:g} MB; --max-mb lets more in")


def _refuse_status(answer: aiohttp.ClientResponse) -> None:
    if answer.status != 200:
        transient = answer.status in TRANSIENT
        raise Refused(f"HTTP {answer.status}", answer.reason or "", transient=transient, pause=_retry_after(answer))


def _retry_after(answer: Any) -> float | None:
    """Return the seconds that the server asks us to wait, which it says as a number or as a date."""
    given = answer.headers.get("Retry-After", "")
    if given.isascii() and given.isdigit():
        return float(given[:9])
    try:
        return email.utils.parsedate_to_datetime(given).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None


def _host(url: str) -> str:
    """Return the host of an http(s) URL; raises `Refused` for anything else."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        parts.port  # noqa: B018 - raises where it is no number
    except ValueError:
        raise Refused("no URL", "it cannot be parsed") from None
    if parts.scheme not in ("http", "https"):
        raise Refused("no URL", "only http and https are fetched")
    if not host or any(sign.isspace() or not sign.isprintable() for sign in url):
        raise Refused("no URL", "it names no host" if not host else "it holds a blank")
    if parts.username is not None or parts.password is not None:
        raise Refused("no URL", "it holds a password")
    return host


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
