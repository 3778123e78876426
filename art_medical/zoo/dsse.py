# SPDX-License-Identifier: Apache-2.0
"""DSSE envelopes over elliptic-curve keys: what is signed, by which key, and strict JSON to carry it.

Follows the Dead Simple Signing Envelope 1.0 (github.com/secure-systems-lab/dsse: protocol.md, envelope.md), with
exactly one signature and, as in Sigstore bundles, the standard alphabet of base64 only. The curves and the hash of each
are those of the ``model-signing`` package: P-256 with SHA-256, P-384 with SHA-384, P-521 with SHA-512.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field

from art_medical.errors import InputError, IntegrityError

_HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}


class EnvelopeSignature(BaseModel):
    """A signature as it stands in an envelope; ``keyid`` is a hint that no decision may rest on (DSSE, protocol.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sig: str
    keyid: str = ""


class Envelope(BaseModel):
    """A DSSE envelope as JSON; nothing in it is checked but its form."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    payload: str
    payload_type: str = Field(alias="payloadType")
    signatures: tuple[EnvelopeSignature, ...]


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding: the bytes that a DSSE signature covers (protocol.md).

    :param payload_type: Media type of the payload; its length counts bytes of UTF-8.
    :param payload: The message itself, not its base64.
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload: bytes, payload_type: str, key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    """A DSSE envelope with one signature, as JSON data.

    :param key: From :func:`load_private_key`.
    """
    signature = key.sign(pae(payload_type, payload), ec.ECDSA(_HASHES[key.curve.name]()))
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
    }


def unseal(envelope: Envelope, payload_type: str, key: ec.EllipticCurvePublicKey, where: str) -> bytes:
    """Payload of an envelope, after its signature was found valid.

    :param payload_type: The only payload type that the caller takes.
    :param key: From :func:`load_public_key`; the caller has chosen to trust it.
    :param where: Names the envelope in errors.
    :raises IntegrityError: If the type differs, there is not exactly one signature, or it is not valid.
    """
    if envelope.payload_type != payload_type:
        raise IntegrityError(f"{where}: the payload type is {envelope.payload_type[:100]!r}, expected {payload_type!r}")
    if len(envelope.signatures) != 1:
        raise IntegrityError(f"{where}: the envelope has {len(envelope.signatures)} signatures, expected exactly one")
    payload = decode_base64(envelope.payload, f"{where}: the payload")
    signature = decode_base64(envelope.signatures[0].sig, f"{where}: the signature")
    try:
        key.verify(signature, pae(payload_type, payload), ec.ECDSA(_HASHES[key.curve.name]()))
    except InvalidSignature:
        raise IntegrityError(
            f"{where}: the signature is not valid for the key {key_fingerprint(key)}: it was made with another key, "
            "or what it covers was changed"
        ) from None
    return payload


def load_private_key(pem: bytes, password: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """The private key of a PEM text. No error quotes any of it.

    :param password: Of an encrypted key.
    :raises InputError: If it is no PEM private key, needs another password, or is not on P-256, P-384 or P-521.
    """
    try:
        key = serialization.load_pem_private_key(pem, password)
    except TypeError:  # one of the two is missing
        wanted = "is encrypted: give its password" if password is None else "is not encrypted: give no password"
        raise InputError(f"the private key {wanted}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise InputError("the private key cannot be read: it must be PEM, with the right password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"the private key {_other_kind(key)}")
    if key.curve.name not in _HASHES:
        raise InputError(f"the private key {_other_curve(key.curve)}")
    return key


def load_public_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a PEM text with one SubjectPublicKeyInfo, from which trust starts.

    :raises IntegrityError: If it is not exactly one PEM public key on P-256, P-384 or P-521.
    """
    if pem.count(b"-----BEGIN ") > 1:
        raise IntegrityError("a trusted key must be one PEM public key, got several in one text")
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise IntegrityError("a trusted key cannot be read: it must be a PEM public key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise IntegrityError(f"a trusted key {_other_kind(key)}")
    if key.curve.name not in _HASHES:
        raise IntegrityError(f"a trusted key {_other_curve(key.curve)}")
    return key


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """sha256 of the DER SubjectPublicKeyInfo, 64 hex digits: what a card names as ``signature.key_sha256``."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def parse_json(data: bytes, where: str) -> Any:
    """UTF-8 JSON (RFC 8259) of which no two readers can have two opinions.

    :raises IntegrityError: If it is not UTF-8, no JSON, repeats a key, or holds NaN or infinity.
    """
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise IntegrityError(f"{where}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise IntegrityError(f"{where}, line {error.lineno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise IntegrityError(f"{where}: not JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise IntegrityError(f"{where}: {str(error)[:200]}") from None


def decode_base64(text: str, where: str) -> bytes:
    """Bytes of base64 (RFC 4648, section 4) in its one canonical spelling: padded, no white space, spare bits zero.

    :raises IntegrityError: If it is written in any other way.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise IntegrityError(f"{where} is not base64") from None
    if base64.b64encode(data).decode() != text:
        raise IntegrityError(f"{where} is not base64 in its canonical spelling")
    return data


def _other_kind(key: object) -> str:
    kind = type(key).__name__.removesuffix("PublicKey").removesuffix("PrivateKey").lstrip("_")
    return f"is of kind {kind}; only elliptic-curve keys on P-256, P-384 and P-521 are taken"


def _other_curve(curve: ec.EllipticCurve) -> str:
    return f"is on the curve {curve.name}; only P-256, P-384 and P-521 are taken"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key!r} is given twice")
        result[key] = value
    return result


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")
