"""Names of files -> text that can be printed, stored and turned back; cells of a CSV file that no program runs.

In: a name as `os.fsdecode` gives it, which may hold any bytes. Out: printable text in one line, and back. It knows
nothing of files.
"""

from __future__ import annotations

import re
import unicodedata

BACKSLASH = "\\u005c"
ESCAPE = re.compile(r"\\u([0-9a-f]{4})")
DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # of writing
UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})  # controls, half a surrogate (a byte that is not UTF-8), line ends
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def escape_name(name: str) -> str:
    r"""`name` on one line in valid UTF-8: what cannot be printed is written as `\u` and four hexadecimal digits.

    That is: control characters, line breaks, changes of the direction of writing, and bytes that are not UTF-8, such
    as `\udcff` for 0xFF. A backslash that would begin such an escape is one itself, so `unescape_name` gives the name
    back whatever it is. A name without any of these stays as it is.
    """
    if name.isprintable() and "\\u" not in name:
        return name
    marked = ESCAPE.sub(lambda match: f"{BACKSLASH}u{match[1]}", name)
    return "".join(
        f"\\u{ord(c):04x}" if unicodedata.category(c) in UNPRINTABLE or c in DIRECTION else c for c in marked
    )


def unescape_name(text: str) -> str:
    """The name of which `escape_name` made `text`."""
    return ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)


def csv_cell(text: str) -> str:
    """`text` for a CSV cell; an apostrophe goes first where it begins with = + - @, which a spreadsheet would run."""
    return f"'{text}" if text.startswith(FORMULA) else text
