"""One text of a file's metadata, and how texts are decoded and parsed.

In: bytes and strings that somebody else wrote. Out: `Text`, strings, parsed JSON. It knows nothing of what they mean.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

MAX_JSON = 2**21  # characters that are parsed: Python objects take up to thirty times as many bytes


class Text(NamedTuple):
    """One text: where it stands ("EXIF", "XMP", "PNG text", "IPTC", ...), under which name, and what it says."""

    place: str
    name: str
    value: str

    @property
    def key(self) -> str:
        """Place and name, such as "PNG text parameters"."""
        return f"{self.place} {self.name}".strip()


def decoded(value: bytes, otherwise: str = "latin-1") -> str:
    """Text of bytes: many programs write UTF-8 where another encoding is meant, so that comes before `otherwise`."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode(otherwise, "replace")


def untrusted_json(value: str) -> Any:
    """A JSON object or list, also with a NUL behind it; None of anything else, and of hostile depth or size."""
    if len(value) > MAX_JSON or value.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(value.rstrip("\0 \t\r\n"))
    except (ValueError, RecursionError):
        return None
