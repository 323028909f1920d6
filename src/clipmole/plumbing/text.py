"""Text written by others (file names, metadata, errors of libraries), made safe to show.

In: any text, or an exception. Out: text in which every character can be printed. It knows nothing of where it is shown.
"""

from __future__ import annotations

import re
import unicodedata

MAX_LINE = 300  # characters that one line is cut to
_ESCAPE = re.compile(r"\\u([0-9a-f]{4})")
_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # of writing
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})  # controls, half a surrogate (a byte that is not UTF-8), line ends
_GUARDED = re.compile(r"\s*[=+\-@]|[\t\r']")


def escaped(text: str) -> str:
    r"""`text` on one line, without loss: characters that a terminal acts on become `\u` and four hexadecimal digits.

    These are control characters, line breaks, changes of the direction of writing, and the bytes of a file name that
    are not UTF-8, such as `\udcff` for 0xFF. A backslash that would begin such an escape is itself escaped, so that
    `unescaped` gives any text back. A text without any of these stays as it is.
    """
    if text.isprintable() and "\\u" not in text:
        return text
    marked = _ESCAPE.sub(r"\\u005cu\1", text)
    return "".join(f"\\u{ord(c):04x}" if _acts(c) else c for c in marked)


def unescaped(text: str) -> str:
    """The text that `escaped` was given; if it is a file's name, `os.fsencode` then gives the bytes."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)


def csv_cell(text: str) -> str:
    """`text` for a CSV cell: an apostrophe goes before = + - @, with which a formula begins, and before another one."""
    return f"'{text}" if _GUARDED.match(text) else text


def printable(text: str, keep: str = "") -> str:
    """`text` with each character that a terminal would act on, or that no XML may hold, replaced by U+FFFD.

    Characters in `keep` stay. The result of `escaped` stays as it is.
    """
    if text.isprintable():
        return text
    return "".join("\N{REPLACEMENT CHARACTER}" if c not in keep and _acts(c) else c for c in text)


def _acts(character: str) -> bool:
    """Whether a terminal acts on a character instead of showing it, or no encoding has it."""
    code = ord(character)
    return unicodedata.category(character) in _UNPRINTABLE or character in _DIRECTION or code & 0xFFFE == 0xFFFE


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """`text` on one line of at most `limit` characters: each run of spaces or unprintable characters becomes one
    space."""
    head = text[: 8 * limit]
    line = " ".join("".join(c if c.isprintable() else " " for c in head).split())
    return line if len(line) <= limit and len(head) == len(text) else line[: limit - 3].rstrip() + "..."


def plural(count: int, noun: str) -> str:
    """A number and its noun: "1 set", "2 sets"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters, or the name of its type if it has no message."""
    lines = str(error).strip().splitlines() if error.args else []  # that of a SyntaxError would be "None"
    return one_line(lines[0], 200) if lines else type(error).__name__
