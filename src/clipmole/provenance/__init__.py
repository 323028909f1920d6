"""What a file's metadata say about its origin: content credentials, IPTC fields, prompts, camera data.

In: a path or the bytes of a file. Out: a `Provenance` record. It is evidence apart from a detector's score, and never
mixed into it. Nothing is fetched, and pixels are not judged: they are decoded only for text that is hidden in the
alpha channel. It knows nothing of networks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

from clipmole.errors import MissingDependency
from clipmole.images.loading import DEFAULT_LIMITS, ImageLimits, open_file, read_file, source_name
from clipmole.plumbing.text import one_line
from clipmole.provenance.camera import find_camera
from clipmole.provenance.credentials import find_credentials
from clipmole.provenance.findings import CAUTION, Credentials, Finding, Provenance
from clipmole.provenance.metadata import WALKED, Metadata, read_metadata
from clipmole.provenance.rules import find_generators
from clipmole.provenance.source_type import source_type
from clipmole.provenance.texts import Text
from clipmole.provenance.trust_list import TrustList

__all__ = ["CAUTION", "Credentials", "Finding", "Provenance", "read_everything", "read_provenance"]

MAX_FINDINGS = 40  # of one file
MAX_CLAIMS = 5000  # most values of a manifest store that are listed
_ORDER = {"strong": 0, "moderate": 1, "weak": 2}


def read_provenance(
    source: str | os.PathLike[str] | bytes,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    trust_list: TrustList | None = None,
) -> Provenance:
    """Read what the metadata of an image file say about its origin.

    Args:
        source: a path, or the bytes of a file.
        limits: the largest file to admit.
        trust_list: certificates to trust; None: who signed content credentials is not checked.

    Returns:
        The findings, what was checked of the content credentials, and what could not be read.

    Raises:
        ImageError: there is no such file, or it is not an image of a supported format. Problems with the metadata are
            not errors: `not_checked` names them.

    Examples:
        >>> from clipmole import read_provenance
        >>> read_provenance("photo.png").findings
        ()
        >>> [finding.points_to for finding in read_provenance("diffusion.png").findings]
        ['ai-generated']
    """
    return _examine(source, limits, trust_list)[0]


def read_everything(
    source: str | os.PathLike[str] | bytes,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    trust_list: TrustList | None = None,
) -> tuple[Provenance, list[Text]]:
    """The record of `read_provenance`, and all metadata as texts, exactly as they stand in the file.

    They may hold anything: escape them before you print them. Arguments and errors are those of `read_provenance`.
    """
    provenance, metadata, store = _examine(source, limits, trust_list)
    return provenance, [*metadata.texts, *metadata.others, *islice(_flattened(store), MAX_CLAIMS)]


def _examine(
    source: str | os.PathLike[str] | bytes, limits: ImageLimits, trust_list: TrustList | None
) -> tuple[Provenance, Metadata, dict[str, Any]]:
    """The record, the metadata that it was made from, and the manifest store of the content credentials."""
    data, found = read_file(source, limits=limits)
    metadata = read_metadata(data, found, None if found in WALKED else open_file(data, found))
    findings = find_generators(metadata.texts) + _source_types(metadata) + find_camera(metadata)
    not_checked = list(metadata.damaged)
    remote = [text.value for text in metadata.texts if text.place == "XMP" and text.name == "provenance"]
    checked: Credentials | None = None
    store: dict[str, Any] = {}
    if metadata.credentials:
        try:
            said, checked, store = find_credentials(data, found, trust_list)
            findings += said
        except MissingDependency as error:
            not_checked.append(f"content credentials (C2PA): {error}")
    elif remote:
        not_checked.append(f"content credentials (C2PA) kept elsewhere are not fetched: {remote[0]}")
    unique = list(dict.fromkeys(findings))
    provenance = Provenance(
        source=one_line(source_name(source), 1000),
        format=found,
        findings=tuple(sorted(unique, key=lambda finding: _ORDER[finding.strength])[:MAX_FINDINGS]),
        credentials=checked,
        not_checked=tuple(one_line(line) for line in not_checked[:10]),
    )
    return provenance, metadata, store


def _flattened(store: dict[str, Any]) -> Iterator[Text]:
    """A manifest store as texts: one for each value that is not an object or a list, named by its path in the store."""
    waiting: list[tuple[str, Any]] = [("", store)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{name}.{key}".lstrip("."), each) for key, each in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [(f"{name}[{k}]", each) for k, each in reversed(list(enumerate(value)))]
        else:
            yield Text("C2PA", name, value if isinstance(value, str) else json.dumps(value))


def _source_types(metadata: Metadata) -> list[Finding]:
    """The digital source types that are stated in XMP."""
    found = []
    for text in metadata.texts:
        kind = source_type(text.value) if text.name.lower() in ("digitalsourcetype", "digitalsourcefiletype") else None
        if kind is not None:
            found.append(
                Finding(
                    kind="digital_source_type",
                    title=f"IPTC digital source type: {kind.description}",
                    detail=one_line(text.value),
                    points_to=kind.points_to,
                    strength=kind.strength,
                    key=one_line(text.key, 80),
                )
            )
    return found
