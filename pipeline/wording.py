"""Small matters of language, the same in every message."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """`count` and the noun in its form.

    >>> plural(1, "row"), plural(3, "row"), plural(1200, "class")
    ('1 row', '3 rows', '1,200 classes')
    """
    ending = "" if count == 1 else "es" if noun.endswith(("s", "x", "sh")) else "s"
    return f"{count:,} {noun}{ending}"
