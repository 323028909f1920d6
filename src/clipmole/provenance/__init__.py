"""Where an image says that it comes from: content credentials, IPTC fields, prompts, camera data.

In: a path or the bytes of a file. Out: a `Provenance` record. It is evidence apart from a detector's score, and
never mixed into it. Nothing is fetched, and no pixel is judged. It knows nothing of networks.
"""

from __future__ import annotations

import os

from clipmole.errors import MissingDependency
from clipmole.images.loading import DEFAULT_LIMITS, ImageLimits, open_image, source_name
from clipmole.plumbing.text import one_line
from clipmole.provenance.camera import find_camera
from clipmole.provenance.credentials import find_credentials
from clipmole.provenance.findings import CAUTION, Finding, Provenance
from clipmole.provenance.generators import find_generators
from clipmole.provenance.metadata import Metadata, read_metadata
from clipmole.provenance.source_type import source_type

__all__ = ["CAUTION", "Finding", "Provenance", "read_provenance"]

MAX_FINDINGS = 40
_ORDER = {"strong": 0, "moderate": 1, "weak": 2}


def read_provenance(source: str | os.PathLike[str] | bytes, *, limits: ImageLimits = DEFAULT_LIMITS) -> Provenance:
    """What the metadata of an image file say of where it comes from.

    Args:
        source: a path, or the bytes of a file.
        limits: the largest file to admit.

    Raises `ImageError` if there is no such file, or if it is not an image of a format that is read. Whatever is
    wrong with the metadata is not an error: `not_checked` names it.
    """
    data, found, image = open_image(source, limits=limits)
    metadata = read_metadata(data, found, image)
    findings = find_generators(metadata.texts) + _source_types(metadata) + find_camera(metadata)
    not_checked = list(metadata.damaged)
    remote = [text.value for text in metadata.texts if text.place == "XMP" and text.name == "provenance"]
    if metadata.credentials:
        try:
            findings += find_credentials(data, found)
        except MissingDependency as error:
            not_checked.append(f"content credentials (C2PA): {error}")
    elif remote:
        not_checked.append(f"content credentials (C2PA) kept elsewhere are not fetched: {remote[0]}")
    unique = list(dict.fromkeys(findings))
    return Provenance(
        source=one_line(source_name(source), 1000),
        format=found,
        findings=tuple(sorted(unique, key=lambda finding: _ORDER[finding.strength])[:MAX_FINDINGS]),
        not_checked=tuple(one_line(line) for line in not_checked[:10]),
    )


def _source_types(metadata: Metadata) -> list[Finding]:
    """The digital source types that IPTC's property in XMP states."""
    found = []
    for text in metadata.texts:
        kind = source_type(text.value) if text.name.lower() in ("digitalsourcetype", "digitalsourcefiletype") else None
        if kind is not None:
            found.append(
                Finding(
                    kind="digital_source_type",
                    title=f"IPTC digital source type: {kind.words}",
                    detail=one_line(text.value),
                    points_to=kind.points_to,
                    strength=kind.strength,
                    key=text.key,
                )
            )
    return found
