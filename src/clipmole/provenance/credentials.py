"""C2PA content credentials: a signed record of how a file was made, embedded in it.

In: the bytes of a file. Out: findings. c2pa-python reads and validates; nothing is fetched (no remote manifest, no
revocation list, no trust list), so a valid signature says that the file is as it was signed, not who signed it:
anybody can make a certificate with any name. It knows nothing of other metadata.

Source: C2PA technical specification 2.2.
"""

from __future__ import annotations

import io
import json
from typing import Any

from clipmole.errors import MissingDependency
from clipmole.plumbing.text import one_line
from clipmole.provenance.findings import Finding, PointsTo, Strength
from clipmole.provenance.source_type import source_type

_MIME = {
    "JPEG": "image/jpeg", "PNG": "image/png", "WebP": "image/webp", "GIF": "image/gif", "TIFF": "image/tiff",
    "AVIF": "image/avif", "HEIC": "image/heic",
}  # fmt: skip
_SETTINGS = {
    "verify": {"verify_after_reading": True, "verify_trust": False, "ocsp_fetch": False, "remote_manifest_fetch": False}
}
_NOT_CHECKED = "the signer is not checked against a trust list"
_MAX_FINDINGS = 20  # of one file
_NO_EDITS = {"c2pa.created", "c2pa.opened", "c2pa.published", "c2pa.converted", "c2pa.transcoded", "c2pa.unknown"}


def find_credentials(data: bytes, format: str) -> list[Finding]:
    """What the content credentials of a file say; [] if there are none.

    Raises `MissingDependency` if c2pa-python is not installed.
    """
    try:
        import c2pa
    except ImportError as error:
        raise MissingDependency("c2pa-python", "provenance") from error
    if format not in _MIME:
        return []
    try:
        context = c2pa.Context(c2pa.Settings.from_dict(_SETTINGS))
        reader = c2pa.Reader.try_create(_MIME[format], io.BytesIO(data), context=context)
        if reader is None:
            return []
        with reader:
            store = json.loads(reader.json())
            state = str(reader.get_validation_state())
        return _findings(store, state)
    except c2pa.C2paError as error:
        if "RemoteManifest" in type(error).__name__ + str(error):
            return [_finding("Content credentials are kept elsewhere, and were not fetched", str(error), key="C2PA")]
        return [_finding("Content credentials that cannot be read", str(error), key="C2PA")]
    except (ValueError, RecursionError, TypeError, AttributeError, KeyError) as error:  # of an unknown shape
        return [_finding("Content credentials that cannot be read", str(error), key="C2PA")]


def _finding(
    title: str, detail: str, points_to: PointsTo = "neither", strength: Strength = "weak", key: str = ""
) -> Finding:
    return Finding(
        kind="content_credentials",
        title=one_line(title, 160),
        detail=one_line(detail),
        points_to=points_to,
        strength=strength,
        key=one_line(key, 80),
    )


def _findings(store: dict[str, Any], state: str) -> list[Finding]:
    """Of a manifest store as the reader gives it: who signed, whether it holds, what was done."""
    active = str(store.get("active_manifest", ""))
    manifests: dict[str, Any] = store.get("manifests", {})
    valid = state in ("Valid", "Trusted")
    line = _line_of_descent(manifests, active)
    found = [_signature(manifests.get(active, {}), store, valid)]
    for label, manifest in manifests.items():
        where = "" if label == active else ", of the file it was made from" if label in line else ", of a part"
        for assertion in manifest.get("assertions", [])[:100]:
            name, content = str(assertion.get("label", "")), assertion.get("data")
            if name.startswith("c2pa.actions") and isinstance(content, dict):
                found += _actions(content.get("actions", [])[:200], f"C2PA {name}", where, label in line, valid)
    return list(dict.fromkeys(found))[:_MAX_FINDINGS]


def _line_of_descent(manifests: dict[str, Any], active: str) -> list[str]:
    """The active manifest, the one of the file that it was made from, and so on; parts put in are not of it."""
    line = [active]
    while len(line) < 50:
        parents = [
            str(ingredient.get("active_manifest", ""))
            for ingredient in manifests.get(line[-1], {}).get("ingredients") or []
            if ingredient.get("relationship") == "parentOf"
        ]
        if not parents or parents[0] in line:
            return line
        line.append(parents[0])
    return line


def _agent(agent: Any) -> str:
    """A program's name, from a string, or an object or a list of objects with `name` and `version`."""
    if isinstance(agent, list):
        return ", ".join(_agent(one) for one in agent[:5])
    if isinstance(agent, dict):
        return " ".join(str(agent[key]) for key in ("name", "version") if agent.get(key))
    return str(agent or "")


def _signature(manifest: dict[str, Any], store: dict[str, Any], valid: bool) -> Finding:
    signature = manifest.get("signature_info") or {}
    signer = signature.get("issuer") or signature.get("common_name") or "an unnamed signer"
    program = _agent(manifest.get("claim_generator_info")) or str(manifest.get("claim_generator", ""))
    parts = [f"made by {program}" if program else "", f"signed {signature['time']}" if signature.get("time") else ""]
    if valid:
        parts += ["the file is as it was signed", _NOT_CHECKED]
        title = f"Content credentials in the name of {signer}"
        return _finding(title, "; ".join(filter(None, parts)), strength="moderate", key="C2PA signature")
    codes = [str(status.get("code", "")) for status in store.get("validation_status", [])[:10]]
    parts += [f"fails: {', '.join(dict.fromkeys(codes)) or 'not said why'}", _NOT_CHECKED]
    changed = any("mismatch" in code.lower() for code in codes)
    title = f"Content credentials in the name of {signer} that do not hold"
    if changed:
        title += ": the file is not as it was signed"
    return _finding(
        title, "; ".join(filter(None, parts)), "edited" if changed else "neither", "moderate", "C2PA signature"
    )


def _actions(actions: list[Any], key: str, where: str, whole: bool, valid: bool) -> list[Finding]:
    """What the actions of one manifest say; `whole`: of the whole image, not of a part that was put in."""
    found, edits = [], []
    for action in actions:
        if not isinstance(action, dict):
            continue
        name = str(action.get("action", ""))
        kind = source_type(str(action.get("digitalSourceType") or ""))
        agent = _agent(action.get("softwareAgent"))
        if kind is not None:
            points_to, strength = kind.points_to, kind.strength
            if not whole:  # the rest of the image may be something else
                points_to, strength = ("edited" if points_to == "ai-generated" else "neither"), "moderate"
            title = f"Content credentials say: {kind.words}{where}"
            detail = "; ".join(filter(None, [name, agent and f"by {agent}", str(action["digitalSourceType"])]))
            found.append(_finding(title, detail, points_to, strength if valid else "weak", key))
        elif name not in _NO_EDITS:
            edits.append(f"{name} by {agent}" if agent else name)
    if edits:
        listed = ", ".join(dict.fromkeys(edits))
        title = f"Content credentials list edits{where}"
        found.append(_finding(title, listed, "edited", "moderate" if valid and not where else "weak", key))
    return found
