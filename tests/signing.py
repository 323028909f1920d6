"""Content credentials made on the spot: an authority, a signer of it, and images that it signs."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

CREATED = {
    "action": "c2pa.created",
    "digitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
    "softwareAgent": {"name": "Painter", "version": "3"},
}


def certificate(name: str, key: Any, issuer: Any = None, issuer_key: Any = None) -> Any:
    """A certificate of `key`: an authority's if there is no issuer, else a signer's as C2PA wants them."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    ca = issuer is None
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test Press")]
    )
    now = datetime.now(UTC)
    usages = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    usage = {one: one in (("key_cert_sign", "crl_sign") if ca else ("digital_signature",)) for one in usages}
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if ca else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key((issuer_key or key).public_key()), critical=False
        )
        .add_extension(x509.KeyUsage(**usage), critical=True)
    )
    if not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(issuer_key or key, hashes.SHA256())


class Signer:
    """Signs the bytes of an image; a test without c2pa-python or cryptography is skipped.

    Attributes:
        authority: the certificate of the signer's authority, PEM.
    """

    def __init__(self) -> None:
        pytest.importorskip("c2pa", reason="needs c2pa-python: pip install 'clipmole[provenance]'")
        pytest.importorskip("cryptography", reason="needs cryptography: pip install 'clipmole[test]'")
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        authority = certificate("Test Authority", authority_key)
        own = certificate("Test Signer", key, authority, authority_key)
        pem = serialization.Encoding.PEM
        self.authority = authority.public_bytes(pem).decode()
        self._chain = own.public_bytes(pem) + authority.public_bytes(pem)
        self._secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

    def __call__(
        self, data: bytes, actions: list[dict[str, Any]], kind: str = "jpeg", parent: bytes | None = None
    ) -> bytes:
        """The image with credentials that list `actions`, made from `parent` if that is given."""
        import c2pa

        manifest = {
            "claim_generator_info": [{"name": "Test Maker", "version": "2"}],
            "assertions": [{"label": "c2pa.actions", "data": {"actions": actions}}],
        }
        builder = c2pa.Builder(manifest)
        if parent is not None:
            builder.add_ingredient(
                json.dumps({"title": "p", "instance_id": "p", "relationship": "parentOf"}),
                "image/jpeg",
                io.BytesIO(parent),
            )
        signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", self._chain, self._secret, None))
        out = io.BytesIO()
        builder.sign(signer, f"image/{kind}", io.BytesIO(data), out)
        return out.getvalue()
