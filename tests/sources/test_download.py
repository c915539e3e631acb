"""Which addresses are talked to, and how long a server makes us wait."""

from __future__ import annotations

import email.utils
import ipaddress
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("aiohttp")
from pipeline.sources.download import _retry_after, is_public


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("1.1.1.1", True),
        ("2606:4700::1111", True),
        ("64:ff9b::101:101", True),
        ("10.0.0.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::1", False),
    ],
)
def test_the_addresses_of_the_internet(address: str, *, expected: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is expected


@pytest.mark.parametrize(("given", "seconds"), [("7", 7.0), ("", None), ("soon", None), ("-3", None), ("\u0663", None)])
def test_how_long_to_wait(given: str, seconds: float | None) -> None:
    assert _retry_after(SimpleNamespace(headers={"Retry-After": given})) == seconds


def test_when_to_come_back() -> None:
    then = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert _retry_after(SimpleNamespace(headers={"Retry-After": then})) == pytest.approx(100, abs=3)
