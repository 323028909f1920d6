"""C2PA content credentials: a signed record of how a file was made, embedded in it.

In: the bytes of a file, and perhaps a list of certificates to trust. Out: findings, and what was checked. Three
questions are answered separately: whether the file is as it was signed (integrity), whether the signer is on the list
(trust), and what the claims say (content). c2pa-python reads and validates. Nothing is fetched: no remote manifest, no
revocation list. Without a list of certificates, a valid signature does not show who signed, because anybody can make a
certificate with any name. It knows nothing of other metadata.

Source: C2PA technical specification 2.2.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

from clipmole.errors import MissingDependency
from clipmole.plumbing.text import one_line
from clipmole.provenance.findings import Credentials, Finding, Integrity, PointsTo, Strength, Trust
from clipmole.provenance.rules import find_generators
from clipmole.provenance.source_type import source_type
from clipmole.provenance.texts import Text, untrusted_json
from clipmole.provenance.trust_list import TrustList

_MIME = {
    "JPEG": "image/jpeg", "PNG": "image/png", "WebP": "image/webp", "GIF": "image/gif", "TIFF": "image/tiff",
    "AVIF": "image/avif", "HEIC": "image/heic",
}  # fmt: skip
_KEY_USAGES = (  # of certificates that sign claims, from C2PA's own configuration
    "1.3.6.1.5.5.7.3.4",  # e-mail protection
    "1.3.6.1.5.5.7.3.36",  # document signing
    "1.3.6.1.5.5.7.3.8",  # time stamping
    "1.3.6.1.5.5.7.3.9",  # OCSP signing
    "1.3.6.1.4.1.311.76.59.1.9",  # Microsoft's C2PA signing
    "1.3.6.1.4.1.62558.2.1",  # C2PA claim signing
)
_MAX_FINDINGS = 20  # of one file
_BROKEN = {  # codes for a hash or a signature that does not match; all others concern profile, trust or identity
    "claimSignature.mismatch", "claimSignature.missing", "claim.missing", "claim.hardBindings.missing",
    "assertion.missing", "assertion.hashedURI.mismatch", "assertion.dataHash.mismatch", "assertion.bmffHash.mismatch",
    "assertion.boxesHash.mismatch", "assertion.collectionHash.mismatch", "assertion.multiAssetHash.mismatch",
}  # fmt: skip
_HELD = {"assertion.dataHash.match", "assertion.bmffHash.match", "assertion.boxesHash.match"}
_NOT_COMPARED = "exclusion does not match the manifest location"  # then the validator compares no hash
_NO_EDITS = {  # actions that leave the pixels as they are, or only add a mark that cannot be seen
    "c2pa.created", "c2pa.opened", "c2pa.published", "c2pa.converted", "c2pa.transcoded", "c2pa.repackaged",
    "c2pa.unknown", "c2pa.redacted", "c2pa.edited.metadata", "c2pa.metadata", "c2pa.version_updated",
    "c2pa.watermarked", "c2pa.watermarked.bound", "c2pa.watermarked.unbound",
}  # fmt: skip
_CREATED = "c2pa.created"
_OWN_CONTENT = {_CREATED, "c2pa.placed"}  # after one of these an image is more than its only ingredient


class CredentialsFound(NamedTuple):
    """What `find_credentials` returns.

    Attributes:
        findings: what the credentials say.
        checked: what was checked; None if there are no credentials that can be read.
        store: the manifest store as the validator gives it; {} if there is none.
    """

    findings: list[Finding]
    checked: Credentials | None
    store: dict[str, Any]


def find_credentials(data: bytes, format: str, trust_list: TrustList | None = None) -> CredentialsFound:
    """What the content credentials of a file say.

    Args:
        data: the file's bytes.
        format: "JPEG", "PNG", ...
        trust_list: certificates to trust; None: the signer is not checked.

    Raises `MissingDependency` if c2pa-python is not installed.
    """
    try:
        import c2pa
    except ImportError as error:
        raise MissingDependency("c2pa-python", "provenance") from error
    nothing = CredentialsFound([], None, {})
    if format not in _MIME:
        return nothing
    try:
        context = c2pa.Context(c2pa.Settings.from_dict(_settings(trust_list)))
        reader = c2pa.Reader.try_create(_MIME[format], io.BytesIO(data), context=context)
        if reader is None:
            return nothing
        with reader:
            text = reader.json()
            state = str(reader.get_validation_state())
        store = untrusted_json(text)
        if store is None:
            raise ValueError(f"the record is too long: {len(text):,} characters")
        checked = checks(store, state, trust_list)
        return CredentialsFound([_signature(checked), *claims(store, checked)][:_MAX_FINDINGS], checked, store)
    except c2pa.C2paError as error:
        if "RemoteManifest" in type(error).__name__ + str(error):
            title = "Content credentials are kept elsewhere, and were not fetched"
            return nothing._replace(findings=[_finding(title, str(error), key="C2PA")])
        return nothing._replace(findings=[_finding("Content credentials that cannot be read", str(error), key="C2PA")])
    except (ValueError, RecursionError, TypeError, AttributeError, KeyError) as error:  # of an unknown shape
        return nothing._replace(findings=[_finding("Content credentials that cannot be read", str(error), key="C2PA")])


def _settings(trust_list: TrustList | None) -> dict[str, Any]:
    """The validator's settings: it fetches nothing, and knows the key usages of claim signers and whom to trust."""
    verify = {
        "verify_after_reading": True,
        "verify_trust": trust_list is not None,
        "ocsp_fetch": False,
        "remote_manifest_fetch": False,
    }
    trust = {"trust_config": "\n".join(_KEY_USAGES)}
    if trust_list is not None:
        trust["trust_anchors"] = trust_list.pem
    return {"verify": verify, "trust": trust}


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


def checks(store: dict[str, Any], state: str, trust_list: TrustList | None) -> Credentials:
    """Integrity and trust of the active manifest.

    Args:
        store: the manifest store as the validator gives it.
        state: the validator's verdict: "Valid", "Trusted" or "Invalid"; any kind of remark makes it "Invalid".
        trust_list: the list that the validator was given.
    """
    manifest = store.get("manifests", {}).get(store.get("active_manifest"), {})
    signature = manifest.get("signature_info") or {}
    results = (store.get("validation_results") or {}).get("activeManifest") or {}
    good = {str(each.get("code")) for each in results.get("success") or ()}
    amiss = results.get("failure") or store.get("validation_status") or ()
    codes = tuple(dict.fromkeys(one_line(str(each.get("code", "")), 80) for each in amiss[:50]))
    broken = [
        each for each in amiss if each.get("code") in _BROKEN and _NOT_COMPARED not in str(each.get("explanation", ""))
    ]
    held = "claimSignature.validated" in good and not _HELD.isdisjoint(good)
    holds = held or state in ("Valid", "Trusted")
    integrity: Integrity = "broken" if broken else "holds" if holds else "unknown"
    trusted = state == "Trusted" or "signingCredential.trusted" in good
    trust: Trust = "not_checked" if trust_list is None else "trusted" if trusted else "not_on_list"
    valid = {"trusted": "trusted", "not_on_list": "valid, signer not on the list"}.get(
        trust, "valid, trust not checked"
    )
    return Credentials(
        status={"broken": "broken", "holds": valid}.get(integrity, "integrity not checked"),
        integrity=integrity,
        trust=trust,
        signer=one_line(str(signature.get("issuer") or signature.get("common_name") or "an unnamed signer"), 120),
        program=one_line(_program(manifest), 120),
        signed=one_line(str(signature.get("time") or ""), 40),
        trust_list=str(trust_list or ""),
        remarks=codes[:10],
    )


def _program(manifest: dict[str, Any]) -> str:
    return _agent(manifest.get("claim_generator_info")) or str(manifest.get("claim_generator") or "")


def _agent(agent: Any) -> str:
    """A program's name, from a string, or an object or a list of objects with `name` and `version`."""
    if isinstance(agent, list):
        return ", ".join(_agent(one) for one in agent[:5])
    if isinstance(agent, dict):
        return " ".join(str(agent[key]) for key in ("name", "version") if agent.get(key))
    return str(agent or "")


def _signature(checked: Credentials) -> Finding:
    """Who signed, whether the file is as it was signed, and whether the signer is on the list."""
    title = f"Content credentials in the name of {checked.signer}"
    integrity = {
        "holds": "the file is as it was signed",
        "unknown": "whether the file is as it was signed could not be checked",
        "broken": "",
    }[checked.integrity]
    if checked.integrity == "broken":
        title += " that do not hold: the file is not as it was signed"
    elif checked.integrity == "unknown":
        title += ": whether they hold could not be checked"
    elif checked.trust != "not_checked":
        title += f": {checked.status}"
    remarks = [code for code in checked.remarks if code != "signingCredential.untrusted"]
    trust = {
        "trusted": f"the signer is on the list ({checked.trust_list})",
        "not_on_list": f"the signer is not on the list ({checked.trust_list})",
        "not_checked": "the signer is not checked against a trust list",
    }[checked.trust]
    parts = [
        f"made by {checked.program}" if checked.program else "",
        f"signed {checked.signed}" if checked.signed else "",
        f"{'fails' if checked.integrity == 'broken' else 'remarks of the validator'}: {', '.join(remarks)}"
        if remarks
        else "",
        integrity,
        trust,
    ]
    points_to: PointsTo = "edited" if checked.integrity == "broken" else "neither"
    return _finding(title, "; ".join(filter(None, parts)), points_to, "moderate", "C2PA signature")


def claims(store: dict[str, Any], checked: Credentials) -> list[Finding]:
    """What the claims of all manifests say about the image: how it was made and how it was edited.

    Arguments: the manifest store, and the result of `checks`.
    """
    active = str(store.get("active_manifest", ""))
    manifests: dict[str, Any] = store.get("manifests", {})
    line = _line_of_descent(manifests, active)
    found: list[Finding] = []
    for label, manifest in manifests.items():
        where = "" if label == active else ", of the file it was made from" if label in line else ", of a part"
        said = _Manifest(where, label in line, checked.integrity, _program(manifest))
        for name, content in _action_assertions(manifest):
            found += said.actions(content, f"C2PA {name}")
    return list(dict.fromkeys(found))


def _action_assertions(manifest: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(label, content) of the assertions that list actions."""
    named = [(str(one.get("label", "")), one.get("data")) for one in manifest.get("assertions", [])[:100]]
    return [(name, data) for name, data in named if name.startswith("c2pa.actions") and isinstance(data, dict)]


def _line_of_descent(manifests: dict[str, Any], active: str) -> list[str]:
    """Labels of the active manifest, of the manifest of the file that the image was made from, and so on.

    Images that were only put in as parts are left out. But if a manifest neither created nor placed anything, its only
    ingredient is the whole image, even where it is called a part.
    """
    line = [active]
    while len(line) < 50:
        manifest = manifests.get(line[-1], {})
        ingredients = [one for one in manifest.get("ingredients") or [] if one.get("relationship") != "inputTo"]
        parents = [one for one in ingredients if one.get("relationship") == "parentOf"]
        if not parents and len(ingredients) == 1:
            done = {str(one.get("action")) for _, data in _action_assertions(manifest) for one in _listed(data)}
            parents = ingredients if _OWN_CONTENT.isdisjoint(done) else []
        label = str(parents[0].get("active_manifest", "")) if parents else ""
        if not label or label in line:
            return line
        line.append(label)
    return line


def _listed(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The actions of an assertion."""
    return [action for action in (content.get("actions") or [])[:200] if isinstance(action, dict)]


class _Manifest(NamedTuple):
    """How a manifest relates to the image.

    Attributes:
        where: what titles say about it: "" for the active manifest, else to which file or part it belongs.
        whole: whether it is about the whole image, not about a part that was put in.
        integrity: of the file.
        program: the program that made the manifest.
    """

    where: str
    whole: bool
    integrity: str
    program: str

    def actions(self, content: dict[str, Any], key: str) -> list[Finding]:
        """What the actions of one assertion say."""
        found: list[Finding] = []
        edits = []
        agents = content.get("softwareAgents") or []
        for action in _listed(content):
            name = str(action.get("action", ""))
            index = action.get("softwareAgentIndex")
            named = (
                agents[index] if isinstance(index, int) and 0 <= index < len(agents) else action.get("softwareAgent")
            )
            agent = _agent(named)
            kind = source_type(str(action.get("digitalSourceType") or ""))
            if kind is not None:
                title = f"Content credentials say: {kind.description}{self.where}"
                detail = "; ".join(filter(None, [name, agent and f"by {agent}", str(action["digitalSourceType"])]))
                found.append(self._said(title, detail, kind.points_to, kind.strength, key))
            elif name == _CREATED:
                found += self._generator(agent, str(action.get("description") or ""), key)
            elif name not in _NO_EDITS:
                edits.append(f"{name} by {agent}" if agent else name)
        if edits:
            title = f"Content credentials list edits{self.where}"
            strength: Strength = "weak" if self.integrity == "broken" or self.where else "moderate"
            found.append(_finding(title, ", ".join(dict.fromkeys(edits)), "edited", strength, key))
        return found

    def _said(self, title: str, detail: str, points_to: PointsTo, strength: Strength, key: str) -> Finding:
        """A finding; it weighs less if it is about a part, or if the file is not known to be as it was signed."""
        if not self.whole:  # the rest of the image may be something else
            points_to, strength = ("edited" if points_to == "ai-generated" else "neither"), "moderate"
        if self.integrity == "broken":
            strength = "weak"
        elif self.integrity == "unknown" and strength == "strong":
            strength = "moderate"
        return _finding(title, detail, points_to, strength, key)

    def _generator(self, agent: str, description: str, key: str) -> list[Finding]:
        """A finding on the program that created an image, for claims without a digital source type."""
        texts = [("softwareAgent", agent), ("claim_generator", self.program), ("description", description)]
        for one in find_generators(Text("C2PA", name, text) for name, text in texts if text):
            return [
                self._said(f"{one.title}{self.where}", f"{_CREATED} by {one.detail}", one.points_to, one.strength, key)
            ]
        return []
