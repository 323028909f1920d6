"""Content credentials: whether the file is as it was signed, whether the signer is trusted, and what the claims say."""

from __future__ import annotations

from typing import Any

import pytest

from clipmole.provenance.credentials import checks, claims
from clipmole.provenance.trust_list import TrustList

AI = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
LIST = TrustList("list.pem", "", "0" * 64, "", 1)
HELD = {"activeManifest": {"success": [{"code": "claimSignature.validated"}, {"code": "assertion.dataHash.match"}]}}


def manifest(*actions: dict[str, Any], ingredients: Any = (), program: str = "") -> dict[str, Any]:
    return {
        "signature_info": {"issuer": "Test Press"},
        "claim_generator_info": [{"name": program}] if program else [],
        "ingredients": list(ingredients),
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": list(actions)}}],
    }


def store(active: dict[str, Any], *amiss: dict[str, str], others: Any = None, held: bool = True) -> dict[str, Any]:
    return {
        "active_manifest": "a",
        "manifests": {"a": active} | (others or {}),
        "validation_status": list(amiss),
        "validation_results": HELD if held else {},
    }


def said(given: dict[str, Any], state: str = "Valid") -> list[tuple[str, str, str]]:
    found = claims(given, checks(given, state, None))
    return [(each.points_to, each.strength, each.title) for each in found]


@pytest.mark.parametrize(
    "code",
    [
        "signingCredential.expired",
        "signingCredential.untrusted",
        "signingCredential.invalid",
        "cawg.ica.did_unavailable",
        "assertion.action.malformed",
    ],
)
def test_remarks_on_profile_trust_and_identity_break_nothing(code: str) -> None:
    checked = checks(store(manifest(), {"code": code}), "Invalid", None)
    assert (checked.integrity, checked.trust, checked.status) == ("holds", "not_checked", "valid, trust not checked")
    assert checked.remarks == (code,)


@pytest.mark.parametrize("code", ["assertion.dataHash.mismatch", "claimSignature.mismatch"])
def test_a_hash_or_a_signature_that_does_not_fit_is_broken(code: str) -> None:
    checked = checks(store(manifest(), {"code": code}, held=False), "Invalid", LIST)
    assert (checked.integrity, checked.status) == ("broken", "broken")


def test_a_hash_that_was_not_compared_is_not_broken() -> None:
    remark = {
        "code": "assertion.dataHash.mismatch",
        "explanation": "data hash exclusion does not match the manifest location in the asset",
    }
    checked = checks(store(manifest(), remark, held=False), "Invalid", None)
    assert (checked.integrity, checked.status) == ("unknown", "integrity not checked")


@pytest.mark.parametrize(
    ("state", "trust_list", "status"),
    [
        ("Trusted", LIST, "trusted"),
        ("Valid", LIST, "valid, signer not on the list"),
        ("Valid", None, "valid, trust not checked"),
    ],
)
def test_trust_is_an_answer_of_its_own(state: str, trust_list: TrustList | None, status: str) -> None:
    checked = checks(store(manifest()), state, trust_list)
    assert (checked.integrity, checked.status) == ("holds", status)


def test_a_watermark_is_no_edit() -> None:
    created = {"action": "c2pa.created", "digitalSourceType": AI}
    assert said(store(manifest(created, {"action": "c2pa.watermarked.unbound"}))) == [
        ("ai-generated", "strong", "Content credentials say: made by a trained AI model")
    ]


def test_an_only_ingredient_that_is_called_a_part_is_the_whole_image() -> None:
    """As ChatGPT's files of 2025 have it: an outer manifest without actions around the one that says who made it."""
    inner = manifest({"action": "c2pa.created", "digitalSourceType": AI}, {"action": "c2pa.converted"})
    ingredient = {"relationship": "componentOf", "active_manifest": "inner"}
    outer = store(manifest(ingredients=[ingredient]), others={"inner": inner})
    ((points_to, strength, title),) = said(outer)
    assert (points_to, strength) == ("ai-generated", "strong")
    assert title.endswith("of the file it was made from")
    placed = store(manifest({"action": "c2pa.placed"}, ingredients=[ingredient]), others={"inner": inner})
    assert ("edited", "moderate", "Content credentials say: made by a trained AI model, of a part") in said(placed)


def test_a_generator_that_gives_no_source_type_is_known_by_its_name() -> None:
    """As Bing's Image Creator writes it."""
    created = {"action": "c2pa.created", "softwareAgent": "Image Creator from Designer"}
    ((points_to, _, title),) = said(store(manifest(created)))
    assert points_to == "ai-generated"
    assert "Image Creator from Designer" in title
