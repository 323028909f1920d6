"""One text of a file's metadata, and how texts are decoded and parsed.

In: bytes and strings that somebody else wrote. Out: `Text`, strings, parsed JSON. It knows nothing of what they mean.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

MAX_JSON = 2**21  # most characters that are parsed: Python objects take up to thirty times as many bytes


class Text(NamedTuple):
    """One text of a file's metadata.

    Attributes:
        place: the part of the file that it stands in: "EXIF", "XMP", "PNG text", "IPTC", ...
        name: its name there; "" if it has none.
        value: the text itself.
    """

    place: str
    name: str
    value: str

    @property
    def key(self) -> str:
        """Place and name, such as "PNG text parameters"."""
        return f"{self.place} {self.name}".strip()


def decoded(value: bytes, otherwise: str = "latin-1") -> str:
    """Bytes as text: as UTF-8 if they are that, since many programs write it whatever a format says, else `otherwise`.

    What `otherwise` does not have becomes U+FFFD.
    """
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode(otherwise, "replace")


def untrusted_json(value: str) -> Any:
    """The value of a JSON object or list, which a NUL may follow; None for any other text, or if it is too large."""
    if len(value) > MAX_JSON or value.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(value.rstrip("\0 \t\r\n"))
    except (ValueError, RecursionError):
        return None
