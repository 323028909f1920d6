"""What a camera writes into a file, and where that contradicts itself.

In: `Metadata`. Out: findings. Many photographs have no such data, and a contradiction often has an innocent cause
(editing, a wrong clock): the wording says so. It knows nothing of C2PA or of generators.

Sources: EXIF 3.0 (CIPA DC-008-2023) and its earlier versions; years of release from the makers' announcements.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from clipmole.plumbing.text import one_line
from clipmole.provenance.findings import Finding, PointsTo, Strength
from clipmole.provenance.metadata import Metadata

_EXPOSURE = ("ExposureTime", "FNumber", "ISOSpeedRatings", "FocalLength")
_DATES = ("DateTimeOriginal", "DateTimeDigitized", "DateTime")
_EXIF_YEAR = 1995  # EXIF 1.0
_FORMAT_YEAR = {"WebP": 2010, "HEIC": 2017, "AVIF": 2019}  # no camera could write it earlier
_RELEASED = (  # pattern of a model's name, and for each number that it matches the year of release
    (re.compile(r"^iPhone (\d{1,2})\b"), {4: 2010, 5: 2012, 6: 2014, 7: 2016, 8: 2017, 11: 2019, 12: 2020, 13: 2021,
                                          14: 2022, 15: 2023, 16: 2024, 17: 2025}),
    (re.compile(r"^Pixel (\d{1,2})\b"), {2: 2017, 3: 2018, 4: 2019, 5: 2020, 6: 2021, 7: 2022, 8: 2023, 9: 2024,
                                         10: 2025}),
)  # fmt: skip
_NO_CAMERA = re.compile(
    r"workflow:|prompt:|Black Forest Labs|flux", re.IGNORECASE
)  # generators write it as Make, Model


def find_camera(metadata: Metadata, now: datetime | None = None) -> list[Finding]:
    """What speaks for a camera, and what contradicts it.

    Args:
        metadata: of the file.
        now: the time after which dates lie in the future; None: now.
    """
    exif = metadata.exif
    make, model = _text(exif.get("Make")), _text(exif.get("Model"))
    found = []
    is_camera = bool(make or model) and not _NO_CAMERA.search(f"{make} {model}")
    exposure = [name for name in _EXPOSURE if exif.get(name) not in (None, "")]
    if is_camera:
        found.append(_camera(exif, f"{make} {model}".strip(), exposure, bool(metadata.gps.get("GPSLatitude"))))
    years = {name: year for name in _DATES if (year := _year(exif.get(name))) is not None}
    found += _dates(metadata, model, years, now or datetime.now(UTC))
    found += _geometry(metadata)
    return found


def _text(value: Any) -> str:
    return one_line(value, 60) if isinstance(value, str) else ""


def _finding(title: str, detail: str, key: str, points_to: PointsTo = "edited", strength: Strength = "weak") -> Finding:
    """A finding of the kind "contradiction"."""
    return Finding(
        kind="contradiction",
        title=one_line(title, 160),
        detail=one_line(detail),
        points_to=points_to,
        strength=strength,
        key=key,
    )


def _camera(exif: dict[str, Any], name: str, exposure: list[str], gps: bool) -> Finding:
    """A finding on the camera: with exposure data, as cameras write them; or without, as no camera does."""
    if len(exposure) < 2:
        detail = f"{name}; of exposure time, aperture, sensitivity and focal length it holds {len(exposure)}; editors "
        return _finding("A camera without exposure data", detail + "and sites drop them too", "EXIF Make", "neither")
    values = [f"{label} {value}" for label, value in _exposure(exif)]
    extras = [label for label, there in (("maker note", exif.get("MakerNote")), ("position", gps)) if there]
    if "DateTimeOriginal" in exif:
        extras.append(f"taken {_text(exif['DateTimeOriginal'])}")
    return Finding(
        kind="camera",
        title=f"Camera data: {one_line(name, 80)}",
        detail=one_line(", ".join(values + extras)),
        points_to="photograph",
        strength="moderate",
        key="EXIF Make, Model",
    )


def _exposure(exif: dict[str, Any]) -> list[tuple[str, str]]:
    """(label, value) of each setting of the exposure, in words for people."""
    found = []
    time, aperture = _number(exif.get("ExposureTime")), _number(exif.get("FNumber"))
    if time:
        found.append(("exposure", f"1/{round(1 / time)} s" if time < 0.5 else f"{time:g} s"))
    if aperture:
        found.append(("aperture", f"f/{aperture:.3g}"))
    if exif.get("ISOSpeedRatings") is not None:
        found.append(("ISO", _text(str(exif["ISOSpeedRatings"]))))
    focal = _number(exif.get("FocalLength"))
    if focal:
        found.append(("focal length", f"{focal:.4g} mm"))
    return found


def _number(value: Any) -> float | None:
    """A number of a size that a camera can mean, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return number if 1e-9 < number < 1e9 else None


def _year(value: Any) -> int | None:
    """The year of "YYYY:MM:DD HH:MM:SS"; None if it is not such a date, or its year is 0000, which means unknown."""
    match = re.match(r"^(\d{4})[:\-/](\d{2})[:\-/](\d{2})", value.strip()) if isinstance(value, str) else None
    return int(match[1]) if match and match[1] != "0000" else None


def _dates(metadata: Metadata, model: str, years: dict[str, int], now: datetime) -> list[Finding]:
    found = []
    taken = years.get("DateTimeOriginal")
    for name, year in years.items():
        if year > now.year + 1:
            found.append(
                _finding("A date in the future", f"{name}: {year}; the clock may have been wrong", f"EXIF {name}")
            )
    if taken is not None and taken < _EXIF_YEAR:
        detail = f"taken {taken}, but EXIF is of {_EXIF_YEAR}; scans and wrong clocks have such dates too"
        found.append(_finding("A date before EXIF existed", detail, "EXIF DateTimeOriginal", "neither"))
    first = _FORMAT_YEAR.get(metadata.format)
    if taken is not None and first is not None and _EXIF_YEAR <= taken < first:
        detail = f"taken {taken}, but {metadata.format} is of {first}; it was converted since"
        found.append(_finding("A format younger than the photograph", detail, "EXIF DateTimeOriginal"))
    released = _released(model)
    if taken is not None and released is not None and taken < released:
        detail = f"{model} is of {released}, taken {taken}; the clock may have been wrong"
        found.append(_finding("A date before the camera existed", detail, "EXIF DateTimeOriginal", strength="moderate"))
    if taken is not None and years.get("DateTime", taken) < taken:
        detail = f"changed {years['DateTime']}, taken {taken}"
        found.append(_finding("Changed before it was taken", detail, "EXIF DateTime"))
    return found


def _released(model: str) -> int | None:
    for pattern, years in _RELEASED:
        match = pattern.match(model)
        if match:
            return years.get(int(match[1]))
    return None


def _geometry(metadata: Metadata) -> list[Finding]:
    """Where the sizes that EXIF states differ from the file's; width and height may be swapped by a rotation."""
    width, height = metadata.size or (0, 0)
    if not width or not height:  # the header cannot be read, or names no pixels
        return []
    found = []
    stated = (_number(metadata.exif.get("ExifImageWidth")), _number(metadata.exif.get("ExifImageHeight")))
    if None not in stated and {int(side) for side in stated if side} != {width, height}:
        detail = f"{stated[0]:.0f} x {stated[1]:.0f} stated, {width} x {height} found: cropped or resized since"
        found.append(_finding("Not the size that EXIF states", detail, "EXIF PixelXDimension"))
    if metadata.thumbnail is not None and min(metadata.thumbnail) > 0:
        ratio, own = max(metadata.thumbnail) / min(metadata.thumbnail), max(width, height) / min(width, height)
        padded = abs(ratio - 4 / 3) < 0.02  # EXIF's 160 x 120, with bars where the photograph has another shape
        if abs(ratio / own - 1) > 0.1 and not padded:
            detail = f"preview {metadata.thumbnail[0]} x {metadata.thumbnail[1]}, image {width} x {height}"
            found.append(_finding("A preview of another shape", f"{detail}: cropped since", "EXIF thumbnail"))
    return found
