"""What metadata say of where an image comes from: the records, and text made fit to be shown.

In: what a file's metadata hold, any text. Out: `Finding` and `Provenance`, which turn into JSON. It knows nothing of
file formats or of detectors.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from clipmole.records import Record

Kind = Literal["content_credentials", "digital_source_type", "generator", "camera", "software", "contradiction"]
PointsTo = Literal["ai-generated", "photograph", "edited", "neither"]
Strength = Literal["strong", "moderate", "weak"]

CAUTION = (
    "Metadata are evidence apart from the detector's score and do not change it. Anybody can write, copy or remove "
    "them, and most sites strip them: that there are none proves nothing."
)


class Finding(Record):
    """One thing that the metadata say.

    Attributes:
        kind: what sort of evidence it is.
        title: one line for a person.
        detail: what was read, cut to 300 characters, on one line, without control characters.
        points_to: what it speaks for, if it is true; "neither" is context.
        strength: "strong": says it outright or is a whole record that only such a program writes; "moderate": what
            such files usually hold; "weak": a hint. It does not say how hard it is to forge.
        key: where it stands in the file, such as "PNG text parameters".
    """

    kind: Kind
    title: str
    detail: str = ""
    points_to: PointsTo = "neither"
    strength: Strength = "weak"
    key: str = ""


class Provenance(Record):
    """What the metadata of one file say.

    Attributes:
        source: the path as given, or "<bytes>".
        format: "JPEG", "PNG", ...
        findings: the strongest first; () says nothing about the image.
        not_checked: what could not be looked at, and why, a line each.
        caution: what metadata do not prove.
    """

    source: str
    format: str
    findings: tuple[Finding, ...] = ()
    not_checked: tuple[str, ...] = Field(())
    caution: str = CAUTION
