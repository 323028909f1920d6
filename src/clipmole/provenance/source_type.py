"""IPTC digital source types: what an image says about how it was made.

In: a term or its address, as XMP and C2PA hold it. Out: its meaning in words, and what it speaks for. It knows nothing
of files.

Source: the IPTC NewsCodes scheme "digitalsourcetype", http://cv.iptc.org/newscodes/digitalsourcetype/
"""

from __future__ import annotations

from typing import NamedTuple

from clipmole.provenance.findings import PointsTo, Strength


class SourceType(NamedTuple):
    """What a term means in words, what it speaks for, and how strongly."""

    description: str
    points_to: PointsTo
    strength: Strength


_TYPES = {
    "trainedAlgorithmicMedia": SourceType("made by a trained AI model", "ai-generated", "strong"),
    "compositeWithTrainedAlgorithmicMedia": SourceType("edited with a trained AI model", "edited", "strong"),
    "algorithmicMedia": SourceType("made by an algorithm that was not trained", "neither", "moderate"),
    "algorithmicallyEnhanced": SourceType("enhanced by an algorithm", "edited", "moderate"),
    "compositeSynthetic": SourceType("composed, with synthetic elements", "edited", "strong"),
    "digitalCapture": SourceType("captured by a digital camera", "photograph", "moderate"),
    "computationalCapture": SourceType("captured by a camera that combines exposures", "photograph", "moderate"),
    "compositeCapture": SourceType("composed of captured images", "edited", "moderate"),
    "composite": SourceType("composed of several elements", "edited", "moderate"),
    "negativeFilm": SourceType("scanned from a negative", "photograph", "moderate"),
    "positiveFilm": SourceType("scanned from a slide", "photograph", "moderate"),
    "print": SourceType("scanned from a print", "photograph", "moderate"),
    "humanEdits": SourceType("edited by a person", "edited", "moderate"),
    "minorHumanEdits": SourceType("edited by a person, lightly", "edited", "moderate"),
    "digitalCreation": SourceType("drawn by a person with software", "neither", "moderate"),
    "digitalArt": SourceType("drawn by a person with software", "neither", "moderate"),
    "dataDrivenMedia": SourceType("drawn from data", "neither", "moderate"),
    "softwareImage": SourceType("made by software", "neither", "moderate"),
    "screenCapture": SourceType("a screenshot", "neither", "moderate"),
    "virtualRecording": SourceType("recorded from a virtual scene", "neither", "moderate"),
}
_BY_LOWER = {name.lower(): kind for name, kind in _TYPES.items()}


def source_type(term: str) -> SourceType | None:
    """The meaning of `term`, an address of the scheme or the last part of one, in any case; None if it is unknown."""
    last = term.strip().rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1].rsplit("#", 1)[-1]
    return _BY_LOWER.get(last.lower())
