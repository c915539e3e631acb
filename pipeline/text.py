"""Text for a person: counts with their nouns, and names that cannot move the cursor or fake a line.

Names of files and classes, and the strings of a header, are escaped with `shown` where a line is composed of them; the
command line passes all that it prints through `lines_shown`, which knows no exception but the ends of our own lines.
"""

from __future__ import annotations

import re

#: Control characters (ESC among them), marks that turn the direction of writing, other ends of lines, stray bytes.
_UNSAFE = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_IN_A_NAME, _IN_LINES = f"[\t\n{_UNSAFE}]", f"[{_UNSAFE}]"  # compiled at the first use: `--help` has none


def shown(name: object) -> str:
    r"""Escape a name for a line of text: whatever is no plain character becomes its escape sequence.

    >>> print(shown("a\x1b[2Jb\nc"))
    a\x1b[2Jb\nc
    """
    return re.sub(_IN_A_NAME, _escaped, str(name))


def lines_shown(text: str) -> str:
    """Escape text for a terminal as `shown` does, but for ends of lines and tabs, which are those of a table."""
    return re.sub(_IN_LINES, _escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return repr(found[0])[1:-1]


def plural(count: int, noun: str) -> str:
    """Return `count` and the noun in its form.

    >>> plural(1, "row"), plural(3, "row"), plural(1200, "class")
    ('1 row', '3 rows', '1,200 classes')
    """
    ending = "" if count == 1 else "es" if noun.endswith(("s", "x", "sh")) else "s"
    return f"{count:,} {noun}{ending}"
