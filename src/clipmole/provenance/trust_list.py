"""Certificates of signers to trust: from a file that the user names, or C2PA's published list.

In: a PEM file, or the address of one. Out: `TrustList`. The published list is fetched only when the user asks for it,
and kept in the cache with its date and sha256. This module knows nothing of images.

Source: https://github.com/c2pa-org/conformance-public, trust-list/C2PA-TRUST-LIST.pem: the certificate authorities of
signers. The list of authorities for time stamps beside it is not used: c2pa-python cannot keep the two apart, and an
authority for time stamps must not vouch for signers.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from clipmole.errors import ConfigError, TrustListError
from clipmole.plumbing.files import cache_folder, write_texts
from clipmole.plumbing.json_toml import NotReadable, read_regular_file
from clipmole.plumbing.text import escaped, first_line

URL = "https://raw.githubusercontent.com/c2pa-org/conformance-public/refs/heads/main/trust-list/C2PA-TRUST-LIST.pem"
_PEM, _RECORD = "c2pa-trust-list.pem", "c2pa-trust-list.json"
_MAX_BYTES = 2**24
_SECONDS = 30.0
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\s+(.*?)-----END CERTIFICATE-----", re.DOTALL)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class TrustList:
    """Certificates that a signer's certificate must lead back to.

    Attributes:
        name: the file's name, or "C2PA trust list".
        date: when it was fetched, YYYY-MM-DD; "" for a file that the user names.
        sha256: of `pem`, in hexadecimal digits.
        pem: the certificates.
        n_certificates: how many there are.
    """

    name: str
    date: str
    sha256: str
    pem: str
    n_certificates: int

    def __str__(self) -> str:
        return f"{self.name}{f' of {self.date}' if self.date else ''}, sha256 {self.sha256[:12]}"


def read_trust_list(path: str | os.PathLike[str]) -> TrustList:
    """The certificates of a PEM file. Raises `ConfigError` if it cannot be read or holds none."""
    shown = escaped(os.fsdecode(path))
    try:
        data = read_regular_file(Path(path), _MAX_BYTES)
    except NotReadable as error:
        raise ConfigError(f"{shown}: {error}; give a PEM file of certificates") from error
    return _parsed(data.decode("utf-8", "replace"), escaped(Path(os.fsdecode(path)).name), "", shown)


def chosen_trust_list(path: str | os.PathLike[str] | None) -> TrustList | None:
    """The list in a file; if no file is given, the list in the cache, or None if there is none.

    Raises `ConfigError` as `read_trust_list` and `kept_trust_list` do.
    """
    return kept_trust_list() if path is None else read_trust_list(path)


def kept_trust_list() -> TrustList | None:
    """The list that `get_trust_list` keeps in the cache; None if it was never fetched.

    Raises `ConfigError` if it is damaged.
    """
    folder = cache_folder("trust")
    shown, again = escaped(str(folder / _PEM)), "get it again: clipmole provenance trust-list get"
    try:
        text, record = (folder / _PEM).read_bytes(), json.loads((folder / _RECORD).read_bytes())
        kept = _parsed(text.decode("ascii"), "C2PA trust list", str(record["date"])[:10], shown)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{shown}: damaged ({first_line(error)}); {again}") from error
    if kept.sha256 != record["sha256"]:
        raise ConfigError(f"{shown}: is not what was fetched; {again}")
    return kept


def get_trust_list(url: str = URL) -> TrustList:
    """Fetch a list of certificates and keep it in the cache, in place of an older one.

    Args:
        url: https, or http on this machine.

    Raises:
        ConfigError: the address is of another kind.
        TrustListError: the list cannot be fetched, or is not a list of certificates; the older one is then still there.
    """
    try:
        parts = urlsplit(url)
        allowed = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    except ValueError:  # brackets that do not match, for example
        allowed = False
    if not allowed:
        raise ConfigError(f"{escaped(url)}: give an address that begins with https://")
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as response:
            data = response.read(_MAX_BYTES + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        detail = first_line(reason) if isinstance(reason, BaseException) else str(reason)
        raise TrustListError(
            f"{escaped(url)}: cannot be fetched: {detail}; check the network, or give a file"
        ) from error
    date = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"{escaped(url)}: over {_MAX_BYTES / 2**20:g} MiB; no list of certificates is so large")
        found = _parsed(data.decode("utf-8", "replace"), "C2PA trust list", date[:10], escaped(url))
    except ConfigError as error:
        raise TrustListError(str(error)) from error
    record = {"url": url, "date": date, "sha256": found.sha256, "certificates": found.n_certificates}
    write_texts(cache_folder("trust"), {_PEM: found.pem, _RECORD: json.dumps(record, indent=1) + "\n"})
    return found


def _parsed(text: str, name: str, date: str, shown: str) -> TrustList:
    """The certificates in PEM text; comments between them are dropped.

    Args:
        text: PEM.
        name, date: as in `TrustList`.
        shown: the file or address, for messages.

    Raises `ConfigError` if there are none.
    """
    bodies = ["".join(body.split()) for body in _CERTIFICATE.findall(text)]
    try:
        whole = all(base64.b64decode(body, validate=True)[:1] == b"\x30" for body in bodies)  # DER: a sequence
    except binascii.Error:
        whole = False
    if not bodies or not whole:
        raise ConfigError(f"{shown}: not a list of certificates; give a PEM file with -----BEGIN CERTIFICATE-----")
    lines = ["\n".join(body[at : at + 64] for at in range(0, len(body), 64)) for body in bodies]
    pem = "".join(f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n" for body in lines)
    return TrustList(name, date, hashlib.sha256(pem.encode()).hexdigest(), pem, len(bodies))
