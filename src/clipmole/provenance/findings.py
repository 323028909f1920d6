"""The records of what metadata say about where an image comes from.

In: what was found in a file's metadata. Out: `Finding`, `Credentials` and `Provenance`, which turn into JSON. It knows
nothing of file formats or of detectors.
"""

from __future__ import annotations

from typing import Literal

from clipmole.records import Record

Kind = Literal["content_credentials", "digital_source_type", "generator", "camera", "software", "contradiction"]
PointsTo = Literal["ai-generated", "photograph", "edited", "neither"]
Strength = Literal["strong", "moderate", "weak"]
Integrity = Literal["holds", "broken", "unknown"]
Trust = Literal["trusted", "not_on_list", "not_checked"]

CAUTION = (
    "Metadata are evidence apart from the detector's score and do not change it. Anybody can write, copy or remove "
    "them, and most sites strip them: that there are none proves nothing."
)


class Finding(Record):
    """One thing that the metadata say.

    Attributes:
        kind: what sort of evidence it is.
        title: one line for a person.
        detail: what was read, on one line of at most 300 characters, without control characters.
        points_to: what it speaks for, if it is true; "neither": it is only context.
        strength: "strong": it says so outright, or is a whole record that only such a program writes; "moderate": such
            files usually hold it; "weak": a hint. It does not mean that it is hard to forge.
        key: where it stands in the file, such as "PNG text parameters".
    """

    kind: Kind
    title: str
    detail: str = ""
    points_to: PointsTo = "neither"
    strength: Strength = "weak"
    key: str = ""


class Credentials(Record):
    """What was checked of a file's content credentials. What they say about the image is in the findings.

    Attributes:
        status: the checks in one line: "trusted", "valid, signer not on the list", "valid, trust not checked",
            "broken", or "integrity not checked".
        integrity: whether the file is as it was signed, by its hash and the signature: "holds", "broken", or "unknown"
            if that could not be checked.
        trust: whether the signer's certificate leads back to one on the trust list: "trusted", "not_on_list", or
            "not_checked" without a list.
        signer: the name in the certificate; without a list, anybody could have written it.
        program: the program that made the credentials, as they say themselves.
        signed: when, by the time stamp; "" without one.
        trust_list: name, date and sha256 of the list; "" without one.
        remarks: codes of the C2PA specification for the problems that the validator found.
    """

    status: str
    integrity: Integrity
    trust: Trust
    signer: str
    program: str = ""
    signed: str = ""
    trust_list: str = ""
    remarks: tuple[str, ...] = ()


class Provenance(Record):
    """What the metadata of one file say.

    Attributes:
        source: the path as given, or "<bytes>".
        format: "JPEG", "PNG", ...
        findings: the strongest first. That there are none says nothing about the image.
        credentials: what was checked of the content credentials; None if there are none that can be read.
        not_checked: parts that could not be read, and why, one line each.
        caution: what metadata do not prove.
    """

    source: str
    format: str
    findings: tuple[Finding, ...] = ()
    credentials: Credentials | None = None
    not_checked: tuple[str, ...] = ()
    caution: str = CAUTION
