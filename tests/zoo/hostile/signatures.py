# SPDX-License-Identifier: Apache-2.0
"""Signatures that do not sign what they seem to."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from art_medical.errors import IntegrityError, ModelError
from art_medical.zoo import dsse
from art_medical.zoo.signature import PAYLOAD_TYPE, sign_folder, verify_folder
from tests.zoo.hostile.stage import WEIGHTS, Stage, Victim, attack


def _key() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    form = serialization.PrivateFormat.PKCS8
    private = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    public = serialization.PublicFormat.SubjectPublicKeyInfo
    return private, key.public_key().public_bytes(serialization.Encoding.PEM, public)


def signed(stage: Stage) -> tuple[Path, bytes, bytes]:
    private, public = _key()
    return sign_folder(stage.folder, private), private, public


def _checked(stage: Stage, signature: Path, *keys: bytes) -> Victim:
    return partial(verify_folder, stage.folder, signature, keys)


def _statement(signature: Path) -> dict[str, Any]:
    bundle = json.loads(signature.read_text(encoding="utf-8"))
    payload = dsse.decode_base64(bundle["dsseEnvelope"]["payload"], "payload")
    return {"bundle": bundle, "statement": json.loads(payload)}


def _resigned(stage: Stage, change: Any) -> Victim:
    """A statement that is changed and signed again by the right key: whoever has the key makes odd claims."""
    signature, private, public = signed(stage)
    found = _statement(signature)
    change(found["statement"])
    payload = json.dumps(found["statement"]).encode()
    found["bundle"]["dsseEnvelope"] = dsse.seal(payload, PAYLOAD_TYPE, dsse.load_private_key(private))
    signature.write_text(json.dumps(found["bundle"]), encoding="utf-8")
    return _checked(stage, signature, public)


@attack("signature by another key", "CWE-347", IntegrityError, "is not trusted; trusted are")
def _(stage: Stage) -> Victim:
    signature, _, _ = signed(stage)
    return _checked(stage, signature, _key()[1])


@attack(
    "signature by another key under the name of the trusted one",
    "CVE-2018-0114 (key in the token)",
    IntegrityError,
    "the signature is not valid for the key",
)
def _(stage: Stage) -> Victim:
    signature, _, _ = signed(stage)
    forged = json.loads(signature.read_text(encoding="utf-8"))
    other, _, public = signed(stage)
    honest = json.loads(other.read_text(encoding="utf-8"))
    forged["verificationMaterial"] = honest["verificationMaterial"]
    signature.write_text(json.dumps(forged), encoding="utf-8")
    return _checked(stage, signature, public)


@attack("signed file that was changed", "CWE-345", IntegrityError, "'model.safetensors' has sha256")
def _(stage: Stage) -> Victim:
    signature, _, public = signed(stage)
    (stage.folder / WEIGHTS).write_bytes(b"evil")
    return _checked(stage, signature, public)


@attack(
    "file that the signature leaves out", "CWE-353", IntegrityError, "'train.py' is not signed; remove it or sign again"
)
def _(stage: Stage) -> Victim:
    signature, _, public = signed(stage)
    (stage.folder / "train.py").write_text(f"import os\nos.system({stage.shell!r})\n")
    return _checked(stage, signature, public)


@attack(
    "signature that brings its own list of what to ignore",
    "model-signing: ignore_paths is part of the payload",
    IntegrityError,
    "'evil.pt' is not signed",
)
def _(stage: Stage) -> Victim:
    def ignore(statement: dict[str, Any]) -> None:
        statement["predicate"]["serialization"]["ignore_paths"].append("evil.pt")

    (stage.root / "evil.pt").write_bytes(b"evil")
    victim = _resigned(stage, ignore)
    (stage.root / "evil.pt").rename(stage.folder / "evil.pt")
    return victim


@attack(
    "signature over a name outside the folder", "CWE-22", IntegrityError, "'../outside/secret.txt' is not a plain path"
)
def _(stage: Stage) -> Victim:
    def escape(statement: dict[str, Any]) -> None:
        statement["predicate"]["resources"][0]["name"] = "../outside/secret.txt"

    return _resigned(stage, escape)


@attack("signature without a signature", "CVE-2015-9235 (alg: none)", IntegrityError, "the envelope has 0 signatures")
def _(stage: Stage) -> Victim:
    signature, _, public = signed(stage)
    bundle = json.loads(signature.read_text(encoding="utf-8"))
    bundle["dsseEnvelope"]["signatures"] = []
    signature.write_text(json.dumps(bundle), encoding="utf-8")
    return _checked(stage, signature, public)


@attack(
    "signature that was taken away",
    "CWE-347 (stripping)",
    ModelError,
    "names no signature, so none of the trusted keys",
)
def _(stage: Stage) -> Victim:
    from art_medical.zoo.verify import verify_model

    signature, _, public = signed(stage)
    signature.unlink()

    def verify() -> None:
        (finding,) = verify_model(stage.folder, trusted_keys=[public])
        raise ModelError(finding.message)

    return verify


@attack(
    "signature that is for another purpose", "DSSE, payloadType", IntegrityError, "the payload type is 'text/plain'"
)
def _(stage: Stage) -> Victim:
    signature, private, public = signed(stage)
    bundle = json.loads(signature.read_text(encoding="utf-8"))
    bundle["dsseEnvelope"] = dsse.seal(b"hello", "text/plain", dsse.load_private_key(private))
    signature.write_text(json.dumps(bundle), encoding="utf-8")
    return _checked(stage, signature, public)


@attack(
    "folders in folders, as deep as the file system goes", "CWE-674", IntegrityError, "lies more than 32 folders deep"
)
def _(stage: Stage) -> Victim:
    signature, _, public = signed(stage)
    path = stage.folder
    for _ in range(40):
        path = path / "d"
        path.mkdir()
    return _checked(stage, signature, public)
