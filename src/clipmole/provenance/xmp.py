"""XMP packets: RDF in XML, which anybody may have written, read without trusting it.

In: the bytes of a packet. Out: its properties as (namespace, name, value). Nothing is fetched. A packet that declares
a document type or an entity is refused as a whole, and size, depth and number of properties are limited. It knows
nothing of what the properties mean.

Source: ISO 16684-1.
"""

from __future__ import annotations

from typing import NamedTuple
from xml.parsers import expat

from clipmole.plumbing.text import first_line

MAX_BYTES = 2**21  # of a packet
MAX_DEPTH = 60  # elements within each other
MAX_PROPERTIES = 5000
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_MARK = "\n"  # between namespace and name; cannot stand in either


class Property(NamedTuple):
    """One value. Each item of a list or a structure is a property of its own, under the innermost name."""

    namespace: str
    name: str
    value: str


class UnsafeXMP(ValueError):
    """The packet is not well-formed, too large or too deep, or declares entities."""


def read_xmp(packet: bytes) -> list[Property]:
    """The properties of an XMP packet, in its order. Raises `UnsafeXMP`."""
    if len(packet) > MAX_BYTES:
        raise UnsafeXMP(f"{len(packet):,} bytes")
    reader = _Reader()
    try:
        reader.parser.Parse(packet.strip(b"\0 \r\n\t"), True)
    except expat.ExpatError as error:
        raise UnsafeXMP(f"not well-formed: {expat.ErrorString(error.code)}") from error
    except UnsafeXMP:
        raise
    except (LookupError, ValueError) as error:  # of Python's codecs
        raise UnsafeXMP(f"in an encoding that XMP cannot have: {first_line(error)}") from error
    return reader.found


class _Reader:
    def __init__(self) -> None:
        self.found: list[Property] = []
        self.open: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.parser = expat.ParserCreate(namespace_separator=_MARK)
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.CharacterDataHandler = self.text.append
        self.parser.StartDoctypeDeclHandler = self.refuse
        self.parser.EntityDeclHandler = self.refuse

    def refuse(self, *_: object) -> None:
        raise UnsafeXMP("declares a document type")

    def start(self, element: str, attributes: dict[str, str]) -> None:
        if len(self.open) >= MAX_DEPTH:
            raise UnsafeXMP(f"deeper than {MAX_DEPTH} elements")
        self.open.append(_split(element))
        self.text.clear()
        resource = attributes.pop(f"{_RDF}{_MARK}resource", None)
        if resource is not None:
            self.add(resource)
        for name, value in attributes.items():
            namespace, local = _split(name)
            if namespace not in ("", _RDF):
                self.append(Property(namespace, local, value))

    def end(self, _: str) -> None:
        value = "".join(self.text).strip()
        self.text.clear()
        if value:
            self.add(value)
        self.open.pop()

    def add(self, value: str) -> None:
        """Add `value` under the innermost name that is not RDF's own (li, Seq, Alt, Bag, Description)."""
        for namespace, name in reversed(self.open):
            if namespace not in (_RDF, "adobe:ns:meta/"):
                self.append(Property(namespace, name, value))
                return

    def append(self, found: Property) -> None:
        if len(self.found) >= MAX_PROPERTIES:
            raise UnsafeXMP(f"more than {MAX_PROPERTIES} properties")
        self.found.append(found)


def _split(name: str) -> tuple[str, str]:
    namespace, _, local = name.rpartition(_MARK)
    return namespace, local
