"""Text that others wrote (file names, metadata, errors of libraries), made fit to be shown.

In: any text, or an exception. Out: text in which every character can be printed. It knows nothing of where it is shown.
"""

from __future__ import annotations

MAX_LINE = 300  # characters that one line is cut to
_AFTER_BACKSLASH = frozenset("\\nrtxuU")  # what makes a backslash look like the beginning of an escape


def escaped(text: str) -> str:
    r"""`text` on one line that any terminal can print, without loss: a line break is written as \n, a byte as \xff.

    What does not print (control characters, changes of direction, bytes of a file name that are not UTF-8) is escaped
    as Python does it. A backslash is doubled where it would otherwise look like the beginning of an escape, so two
    different texts never look the same. A byte B that is not UTF-8 becomes \udcB.
    """
    if text.isprintable() and "\\" not in text:
        return text
    parts = []
    for at, character in enumerate(text):
        following = text[at + 1 : at + 2]
        if not character.isprintable():
            parts.append(ascii(character)[1:-1])
        elif character == "\\" and following and (following in _AFTER_BACKSLASH or not following.isprintable()):
            parts.append("\\\\")
        else:
            parts.append(character)
    return "".join(parts)


def printable(text: str, keep: str = "") -> str:
    """`text` with each character that does not print replaced by U+FFFD, except those in `keep`."""
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """`text` on one line of at most `limit` characters: each run of what does not print, or of spaces, is one space."""
    head = text[: 8 * limit]
    line = " ".join("".join(c if c.isprintable() else " " for c in head).split())
    return line if len(line) <= limit and len(head) == len(text) else line[: limit - 3].rstrip() + "..."


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters, or the name of its type if it has no message."""
    lines = str(error).strip().splitlines() if error.args else []  # that of a SyntaxError would be "None"
    return one_line(lines[0], 200) if lines else type(error).__name__
