# SPDX-License-Identifier: Apache-2.0
"""Signatures of model folders: what differs from what was signed does not pass, each difference says which it is."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import random
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from art_medical.errors import InputError, IntegrityError
from art_medical.zoo import dsse, signature
from art_medical.zoo.dsse import pae
from art_medical.zoo.signature import hash_file, sign_digests, sign_folder, verify_folder

PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
FILES = {
    "README.md": b"# A model\n",
    "card.json": b'{"schema": "art-medical/card@1"}\n',
    "models/model.pt": bytes(range(256)),
    "models-old": b"",  # sorts before models/model.pt as text, after it as a path
}


def private_pem(key: Any, password: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem: bytes = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, encryption)
    return pem


def public_pem(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(PEM, SPKI)
    return pem


KEY = ec.derive_private_key(0x5EED, CURVES["P-256"])
PRIVATE, PUBLIC = private_pem(KEY), public_pem(KEY)
STRANGER = ec.derive_private_key(0xBAD, CURVES["P-256"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that KEY has signed."""
    return signed_folder(tmp_path / "model")


def signed_folder(folder: Path) -> Path:
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    sign_folder(folder, PRIVATE)
    return folder


def refusal(folder: Path, keys: tuple[bytes, ...] = (PUBLIC,), file: str = "model.sig") -> str:
    with pytest.raises(IntegrityError) as caught:
        verify_folder(folder, folder / file, keys)
    message = str(caught.value)
    assert message.isprintable()
    return message.replace(str(folder), "FOLDER")


def statement_of(folder: Path) -> Any:
    return json.loads(base64.b64decode(json.loads((folder / "model.sig").read_text())["dsseEnvelope"]["payload"]))


def forge(folder: Path, statement: Any, key: ec.EllipticCurvePrivateKey = KEY) -> None:
    """Sign any statement with the trusted key, as a careless or compromised signer would."""
    payload = statement if isinstance(statement, bytes) else json.dumps(statement).encode()
    bundle = json.loads((folder / "model.sig").read_text())
    bundle["dsseEnvelope"] = dsse.seal(payload, signature.PAYLOAD_TYPE, key)
    (folder / "model.sig").write_text(json.dumps(bundle))


def with_subject(statement: Any) -> Any:
    """The statement with the subject digest that its files give."""
    digests = b"".join(bytes.fromhex(entry["digest"]) for entry in statement["predicate"]["resources"])
    statement["subject"][0]["digest"]["sha256"] = hashlib.sha256(digests).hexdigest()
    return statement


# -- what is right is taken --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", CURVES)
def test_what_is_signed_is_verified(tmp_path: Path, curve: str) -> None:
    folder = signed_folder(tmp_path / "model")
    key = ec.derive_private_key(0xFACE, CURVES[curve])
    (folder / "model.sig").unlink()
    path = sign_folder(folder, private_pem(key, b"secret"), password=b"secret", file="other.sig")
    assert path == folder / "other.sig"
    found = verify_folder(folder, path, [PUBLIC, public_pem(key)])
    assert found.files == {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    assert found.key_sha256 == hashlib.sha256(key.public_key().public_bytes(DER, SPKI)).hexdigest()
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "README.md", "card.json", "models", "models-old", "other.sig"
    ]  # fmt: skip


def test_pre_authentication_encoding_and_signature_of_the_dsse_specification() -> None:
    """Test vector of DSSE 1.0, protocol.md; its signature is raw r and s."""
    kind, body = "http://example.com/HelloWorld", b"hello world"
    assert pae(kind, body) == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pae("é", b"\0") == b"DSSEv1 2 \xc3\xa9 1 \0"  # lengths count bytes
    number = 97358161215184420915383655311931858321456579547487070936769975997791359926199
    key = ec.derive_private_key(number, ec.SECP256R1())
    assert key.public_key().public_numbers().x == (
        46950820868899156662930047687818585632848591499744589407958293238635476079160
    )
    raw = base64.b64decode("A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA==")
    sig = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    envelope = {"payload": "aGVsbG8gd29ybGQ=", "payloadType": kind, "signatures": [{"sig": base64.b64encode(sig)}]}
    assert dsse.unseal(dsse.Envelope.model_validate(envelope), kind, key.public_key(), "here") == body


PEER_KEY = b"""-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAE/7a5Iacoz8U6d3NgYCsoM6d2qrsIHEo+
YEYy3eYBaRk8vZH8H0gl8HzzkQ3d8ItQXikOWFoT3pvBmsrs1yomoZdArRUKrzWM
M0JcqqTgodrmS1oK4RAp/WHEj3lqHC5w
-----END PUBLIC KEY-----
"""
PEER_BUNDLE = (
    '{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"a3'
    '2b5478cf9a7e33e1171bdab7691fd5d6f5e8965c28f99e53f1343060da691b"},"tlogEntries":[]},"dsseEnvelope":{"payload"'
    ':"ewogICJfdHlwZSI6ICJodHRwczovL2luLXRvdG8uaW8vU3RhdGVtZW50L3YxIiwKICAic3ViamVjdCI6IFsKICAgIHsKICAgICAgIm5hbW'
    "UiOiAic2FtcGxlX21vZGVsIiwKICAgICAgImRpZ2VzdCI6IHsKICAgICAgICAic2hhMjU2IjogIjQ0YTUwZThkYzA2ZWUyMGRmYzFkNjk3ND"
    "cxNTg3NjVlMjNiOGRhMDA3Y2FiN2E2MThiMzlhNDQyMGY2YzA2NWIiCiAgICAgIH0KICAgIH0KICBdLAogICJwcmVkaWNhdGVUeXBlIjogIm"
    "h0dHBzOi8vbW9kZWxfc2lnbmluZy9zaWduYXR1cmUvdjEuMCIsCiAgInByZWRpY2F0ZSI6IHsKICAgICJzZXJpYWxpemF0aW9uIjogewogIC"
    "AgICAiaWdub3JlX3BhdGhzIjogWwogICAgICAgICJtb2RlbC5zaWciLAogICAgICAgICIuZ2l0YXR0cmlidXRlcyIsCiAgICAgICAgIi5naX"
    "QiLAogICAgICAgICIuZ2l0aHViIiwKICAgICAgICAiLmdpdGlnbm9yZSIKICAgICAgXSwKICAgICAgImFsbG93X3N5bWxpbmtzIjogZmFsc2"
    "UsCiAgICAgICJoYXNoX3R5cGUiOiAic2hhMjU2IiwKICAgICAgIm1ldGhvZCI6ICJmaWxlcyIKICAgIH0sCiAgICAicmVzb3VyY2VzIjogWw"
    "ogICAgICB7CiAgICAgICAgImRpZ2VzdCI6ICI2N2IyNDY4NjhkYjAwNWFlYTZmZmEwYmI0NjUzZmQwODc1NTkzYzc4YzE3OGJiNmJkNmU3Nz"
    "hlNTEwODU5NWE3IiwKICAgICAgICAibmFtZSI6ICJSRUFETUUubWQiLAogICAgICAgICJhbGdvcml0aG0iOiAic2hhMjU2IgogICAgICB9LA"
    "ogICAgICB7CiAgICAgICAgImRpZ2VzdCI6ICI3NzkxMzczNGE1YjU5NTA2YzJlYTg5MTllYWJkZDY0NjM0YzJmZmUxY2ZiYWYyOGJmMWU0Zm"
    "UzYjRiMzZmMDI3IiwKICAgICAgICAibmFtZSI6ICJjYXJkLmpzb24iLAogICAgICAgICJhbGdvcml0aG0iOiAic2hhMjU2IgogICAgICB9LA"
    "ogICAgICB7CiAgICAgICAgImRpZ2VzdCI6ICI0MGFmZjJlOWQyZDg5MjJlNDdhZmQ0NjQ4ZTY5Njc0OTcxNTg3ODVmYmQxZGE4NzBlNzExMD"
    "I2NmJmOTQ0ODgwIiwKICAgICAgICAibmFtZSI6ICJtb2RlbHMvbW9kZWwucHQiLAogICAgICAgICJhbGdvcml0aG0iOiAic2hhMjU2IgogIC"
    "AgICB9LAogICAgICB7CiAgICAgICAgImRpZ2VzdCI6ICJlM2IwYzQ0Mjk4ZmMxYzE0OWFmYmY0Yzg5OTZmYjkyNDI3YWU0MWU0NjQ5YjkzNG"
    "NhNDk1OTkxYjc4NTJiODU1IiwKICAgICAgICAibmFtZSI6ICJtb2RlbHMtb2xkIiwKICAgICAgICAiYWxnb3JpdGhtIjogInNoYTI1NiIKIC"
    'AgICAgfQogICAgXQogIH0KfQ==","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"MGYCMQCOXPnFv'
    "tKUg53l5rPpH9H44G8DaVebWkWnVdK5JY/MfIyOCQbnxMROxBSx0KE5L8sCMQDk2UfsNQXIbINcWcChUwj1yiRQYFFnn243e6DSKsgV65rg8"
    '3T2vWXGLRxawuCbC4c=","keyid":""}]}}'
)


def test_a_signature_that_model_signing_made(tmp_path: Path) -> None:
    """Recorded from model-signing 1.1.1 on these files; tests/interop runs the tool itself."""
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "model.sig").write_text(PEER_BUNDLE)
    found = verify_folder(tmp_path, tmp_path / "model.sig", [PEER_KEY])
    assert list(found.files) == ["README.md", "card.json", "models/model.pt", "models-old"]
    assert found.files["models-old"] == hashlib.sha256(b"").hexdigest()


def test_the_signature_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    (folder / "model.sig").rename(tmp_path / "far.sig")
    assert len(verify_folder(folder, tmp_path / "far.sig", [PUBLIC]).files) == len(FILES)


def test_a_new_signature_replaces_the_old_one(folder: Path) -> None:
    (folder / "card.json").write_text("{}")
    (folder / ".model.sig.part").write_text("of a run that was killed")
    assert "'.model.sig.part' is not signed" in refusal(folder)
    (folder / ".model.sig.part").unlink()
    sign_folder(folder, PRIVATE)
    assert verify_folder(folder, folder / "model.sig", [PUBLIC]).files["card.json"] == hashlib.sha256(b"{}").hexdigest()


def test_files_of_git_may_be_unsigned_but_when_signed_they_count(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("[core]")
    (folder / ".gitattributes").write_text("* -text")
    verify_folder(folder, folder / "model.sig", [PUBLIC])
    statement = statement_of(folder)
    digest = hashlib.sha256(b"* -text").hexdigest()
    statement["predicate"]["resources"].append({"name": ".gitattributes", "algorithm": "sha256", "digest": digest})
    forge(folder, with_subject(statement))
    assert verify_folder(folder, folder / "model.sig", [PUBLIC]).files[".gitattributes"] == digest
    (folder / ".gitattributes").write_text("* text")
    assert "'.gitattributes' has sha256" in refusal(folder)
    (folder / "models" / ".gitattributes").write_text("")  # only at the top
    assert "FOLDER: 'models/.gitattributes' is not signed; remove it or sign again" in refusal(folder)


def test_unknown_fields_inside_the_signature_are_ignored(folder: Path) -> None:
    """As in-toto asks of readers, so that later versions can add some."""
    statement = statement_of(folder)
    statement["new"] = statement["predicate"]["new"] = statement["predicate"]["resources"][0]["new"] = 1
    forge(folder, statement)
    verify_folder(folder, folder / "model.sig", [PUBLIC])


# -- the folder differs ------------------------------------------------------------------------------------------------


def test_changed_missing_and_added_files(folder: Path) -> None:
    (folder / "extra.py").write_text("import os")
    assert refusal(folder) == "FOLDER: 'extra.py' is not signed; remove it or sign again"
    (folder / "models" / "more").mkdir()
    (folder / "models" / "more" / "extra").write_text("")
    assert refusal(folder) == "FOLDER: 'extra.py' is not signed (and 1 more); remove it or sign again"
    (folder / "extra.py").unlink()
    (folder / "models" / "more" / "extra").unlink()
    (folder / "card.json").unlink()
    assert refusal(folder) == "FOLDER: the signed file 'card.json' is missing"
    (folder / "card.json").write_bytes(b"{}")
    found, signed = (hashlib.sha256(data).hexdigest() for data in (b"{}", FILES["card.json"]))
    assert refusal(folder) == f"FOLDER: 'card.json' has sha256 {found}, signed was {signed}"


def test_the_list_of_ignored_files_is_our_own(folder: Path) -> None:
    """A signature that excuses a file does not excuse it here; the tool itself would follow it."""
    statement = statement_of(folder)
    statement["predicate"]["serialization"]["ignore_paths"] += ["extra.py", "models"]
    forge(folder, statement)
    verify_folder(folder, folder / "model.sig", [PUBLIC])
    (folder / "extra.py").write_text("import os")
    assert "'extra.py' is not signed" in refusal(folder)


def test_links_and_special_files(folder: Path, tmp_path: Path) -> None:
    card = folder / "card.json"
    card.rename(tmp_path / "card.json")
    card.symlink_to(tmp_path / "card.json")
    assert refusal(folder) == "FOLDER/card.json is a symbolic link; a signed folder has none"
    with pytest.raises(IntegrityError, match="is a symbolic link"):
        sign_folder(folder, PRIVATE)
    card.unlink()
    os.mkfifo(card)
    assert refusal(folder) == "FOLDER/card.json is neither a file nor a folder"
    card.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(card))  # a socket's path must be short
        assert refusal(folder) == "FOLDER/card.json is neither a file nor a folder"
    card.unlink()
    card.write_bytes(FILES["card.json"])
    (folder / ".git").symlink_to(tmp_path)
    assert refusal(folder) == "FOLDER/.git is a symbolic link; a signed folder has none"


def test_a_file_that_becomes_a_link_or_a_pipe_after_it_was_listed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(IntegrityError, match=r"cannot read .*link: Too many levels of symbolic links"):
        hash_file(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(IntegrityError, match="pipe is no regular file"):
        hash_file(tmp_path / "pipe")
    with pytest.raises(IntegrityError, match=r"cannot read .*absent: No such file or directory"):
        hash_file(tmp_path / "absent")


def test_names_that_not_every_system_can_hold_are_not_signed(tmp_path: Path) -> None:
    for name in ("a\nb", "a\\b", "C:", "a\u202eb", os.fsdecode(b"\xff")):
        (tmp_path / name).write_text("")
        with pytest.raises(IntegrityError, match="is not one that every system can hold"):
            sign_folder(tmp_path, PRIVATE)
        (tmp_path / name).unlink()
    assert list(tmp_path.iterdir()) == []


# -- the bundle differs ------------------------------------------------------------------------------------------------

Change = Callable[[Any], Any]


def put(path: str, value: Any) -> Change:
    """Replace or add one entry; ``...`` removes it."""

    def change(data: Any) -> None:
        *parents, last = path.split("/")
        for key in parents:
            data = data[int(key) if isinstance(data, list) else key]
        if value is ...:
            del data[last]
        else:
            data[int(last) if isinstance(data, list) else last] = value

    return change


HINT = "verificationMaterial/publicKey/hint"
SIGNATURES = "dsseEnvelope/signatures"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("mediaType", "application/vnd.dev.sigstore.bundle.v0.2+json", "mediaType: Input should be 'application/vnd"),
        ("mediaType", ..., "mediaType: Field required"),
        ("messageSignature", {}, "messageSignature: Extra inputs are not permitted"),
        ("a\nb", {}, "a\\nb: Extra inputs are not permitted"),
        (HINT, "0" * 64, f"the key that it names (PEM sha256 {'0' * 64}) is not trusted; trusted are "),
        (HINT, ..., "verificationMaterial.publicKey.hint: Field required"),
        (HINT, "0", "verificationMaterial.publicKey.hint: String should match pattern"),
        ("verificationMaterial/publicKey/rawBytes", "", "publicKey.rawBytes: Extra inputs are not permitted"),
        ("verificationMaterial/certificate", {}, "verificationMaterial.certificate: Extra inputs are not permitted"),
        ("verificationMaterial/tlogEntries", [{}], "tlogEntries: Tuple should have at most 0 items"),
        ("dsseEnvelope", [], "dsseEnvelope: Input should be a valid dictionary or instance of Envelope"),
        ("dsseEnvelope/payloadType", "text/plain", "the payload type is 'text/plain', expected 'application/vnd.in-t"),
        ("dsseEnvelope/keyid", "", "dsseEnvelope.keyid: Extra inputs are not permitted"),
        ("dsseEnvelope/payload", 1, "dsseEnvelope.payload: Input should be a valid string"),
        ("dsseEnvelope/payload", "", "the signature is not valid for the key "),
        ("dsseEnvelope/payload", "e30", "the payload is not base64"),
        ("dsseEnvelope/payload", "e30=\n", "the payload is not base64"),
        ("dsseEnvelope/payload", "e31=", "the payload is not base64 in its canonical spelling"),
        ("dsseEnvelope/payload", "_-8=", "the payload is not base64"),
        ("dsseEnvelope/payload", "é30=", "the payload is not base64"),
        (SIGNATURES, [], "the envelope has 0 signatures, expected exactly one"),
        (f"{SIGNATURES}/0/sig", "MAA", "the signature is not base64"),
        (f"{SIGNATURES}/0/sig", "", "the signature is not valid for the key "),
        (f"{SIGNATURES}/0/sig", "MAA=", "the signature is not valid for the key "),
        (f"{SIGNATURES}/0/cert", "", "signatures.0.cert: Extra inputs are not permitted"),
    ],
)
def test_each_rule_for_the_bundle(folder: Path, path: str, value: Any, message: str) -> None:
    bundle = json.loads((folder / "model.sig").read_text())
    put(path, value)(bundle)
    (folder / "model.sig").write_text(json.dumps(bundle))
    assert message in refusal(folder)


def test_two_signatures_even_when_both_are_valid(folder: Path) -> None:
    bundle = json.loads((folder / "model.sig").read_text())
    bundle["dsseEnvelope"]["signatures"] *= 2
    (folder / "model.sig").write_text(json.dumps(bundle))
    assert "the envelope has 2 signatures, expected exactly one" in refusal(folder)


def test_a_signature_over_the_payload_without_its_type(folder: Path) -> None:
    """Without the pre-authentication encoding, a payload could be taken for one of another type."""
    bundle = json.loads((folder / "model.sig").read_text())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    for message in (payload, pae("text/plain", payload)):
        sig = KEY.sign(message, ec.ECDSA(signature.dsse.hashes.SHA256()))
        bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(sig).decode()
        (folder / "model.sig").write_text(json.dumps(bundle))
        assert "the signature is not valid for the key" in refusal(folder)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "model.sig, line 1: not JSON: Expecting value"),
        (b"[]", "model.sig: top level: Input should be a valid dictionary or instance of _Bundle"),
        (b'{"a": 1, "a": 1}', "model.sig: key 'a' is given twice"),
        (b'{"a": NaN}', "model.sig: NaN is no JSON number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "model.sig: Exceeds the limit"),
        (b"\xff", "model.sig: not UTF-8 text"),
        ("{}".encode("utf-16"), "model.sig: not UTF-8 text"),
        (b"\xef\xbb\xbf{}", "not JSON: Unexpected UTF-8 BOM"),
        (b"[" * 100_000, "model.sig: not JSON that can be read: nested too deeply"),
    ],
)
def test_bundles_that_are_no_plain_json(folder: Path, data: bytes, message: str) -> None:
    (folder / "model.sig").write_bytes(data)
    assert message in refusal(folder)


def test_every_repeated_key_counts(folder: Path) -> None:
    """Also where the first of the two is the one that was signed."""
    text = (folder / "model.sig").read_text()
    for key in ("payload", "sig", "hint", "payloadType", "dsseEnvelope"):
        (folder / "model.sig").write_text(text.replace(f'"{key}":', f'"{key}":"","{key}":', 1))
        assert f"key '{key}' is given twice" in refusal(folder)


def test_bundles_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(folder, file="none.sig") == "cannot read the signature FOLDER/none.sig: No such file or directory"
    assert refusal(folder, file="models") == "FOLDER/models is no regular file; a signature must be one"
    (folder / "link.sig").symlink_to(folder / "model.sig")
    assert refusal(folder, file="link.sig") == "FOLDER/link.sig is no regular file; a signature must be one"
    monkeypatch.setattr(signature, "MOST_BUNDLE_BYTES", 100)
    assert refusal(folder) == "FOLDER/model.sig is longer than 100 bytes; no signature is"


def test_bounds_of_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(signature, "MOST_FILES", 4)
        assert refusal(folder) == "FOLDER has more than 4 files"  # the signature is the fifth
    (folder / "card.json").unlink()
    with (folder / "card.json").open("wb") as file:
        file.truncate(signature.MOST_FILE_BYTES + 1)  # takes no space
    assert refusal(folder) == f"FOLDER/card.json has {2**36 + 1} bytes; at most {2**36} are read"


# -- the statement differs, although it is signed ----------------------------------------------------------------------

FIRST = "predicate/resources/0"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("_type", "https://in-toto.io/Statement/v0.1", "_type: Input should be 'https://in-toto.io/Statement/v1'"),
        ("predicateType", "https://model_signing/Digests/v0.1", "predicateType: Input should be 'https://model_sig"),
        ("predicate", ..., "predicate: Field required"),
        ("subject", [], "subject: Tuple should have at least 1 item"),
        ("subject/0/digest", {"sha512": "0" * 128}, "subject.0.digest.sha256: Field required"),
        ("subject/0/digest/sha256", "0" * 64, f"the subject digest is {'0' * 64}, the listed files give "),
        ("predicate/serialization/method", "shards", "predicate.serialization.method: Input should be 'files'"),
        ("predicate/serialization/hash_type", "blake3", "serialization.hash_type: Input should be 'sha256'"),
        ("predicate/resources", [], "predicate.resources: Tuple should have at least 1 item"),
        (f"{FIRST}/algorithm", "md5", "predicate.resources.0.algorithm: Input should be 'sha256'"),
        (f"{FIRST}/algorithm", ..., "predicate.resources.0.algorithm: Field required"),
        (f"{FIRST}/digest", "0" * 63, "predicate.resources.0.digest: String should match pattern"),
        (f"{FIRST}/digest", "A" * 64, "predicate.resources.0.digest: String should match pattern"),
        (f"{FIRST}/digest", "0" * 64, "the subject digest is "),
        (f"{FIRST}/name", "../README.md", "the file name '../README.md' is not a plain path inside the folder"),
        (f"{FIRST}/name", "/etc/passwd", "the file name '/etc/passwd' is not a plain path inside the folder"),
        (f"{FIRST}/name", "models/../README.md", "is not a plain path inside the folder"),
        (f"{FIRST}/name", "./README.md", "is not a plain path inside the folder"),
        (f"{FIRST}/name", "models//model.pt", "is not a plain path inside the folder"),
        (f"{FIRST}/name", "models/", "is not a plain path inside the folder"),
        (f"{FIRST}/name", ".", "is not a plain path inside the folder"),
        (f"{FIRST}/name", "", "is not a plain path inside the folder"),
        (f"{FIRST}/name", "..\\README.md", "the file name '..\\\\README.md' is not one that every system can hold"),
        (f"{FIRST}/name", "C:README.md", "is not one that every system can hold"),
        (f"{FIRST}/name", "README.md\0", "is not one that every system can hold"),
        (f"{FIRST}/name", "a" * 1025, "is not one that every system can hold"),
        (f"{FIRST}/name", "card.json", "the file 'card.json' is listed twice"),
        (f"{FIRST}/name", "readme.md", "FOLDER: 'README.md' is not signed"),
        (f"{FIRST}/name", "model.sig", "FOLDER: 'README.md' is not signed"),
    ],
)
def test_each_rule_for_the_statement(folder: Path, path: str, value: Any, message: str) -> None:
    statement = statement_of(folder)
    put(path, value)(statement)
    forge(folder, statement)
    assert message in refusal(folder)


def test_a_statement_that_repeats_a_key_or_is_no_json(folder: Path) -> None:
    text = json.dumps(statement_of(folder))
    forge(folder, text.replace('"digest"', '"digest": "0", "digest"', 1).encode())
    assert "signed statement: key 'digest' is given twice" in refusal(folder)
    forge(folder, b"\xff")
    assert "signed statement: not UTF-8 text" in refusal(folder)


def test_two_subjects_and_another_order(folder: Path) -> None:
    statement = statement_of(folder)
    statement["predicate"]["resources"].reverse()
    forge(folder, statement)
    assert "the subject digest is" in refusal(folder)
    statement["subject"] *= 2
    forge(folder, with_subject(statement))
    assert "subject: Tuple should have at most 1 item" in refusal(folder)


def test_a_listed_name_is_never_opened(folder: Path, tmp_path: Path) -> None:
    """A file outside the folder whose hash is right does not help."""
    (tmp_path / "outside").write_text("")
    statement = statement_of(folder)
    digest = hashlib.sha256(b"").hexdigest()
    statement["predicate"]["resources"].append({"name": "../outside", "algorithm": "sha256", "digest": digest})
    forge(folder, with_subject(statement))
    assert "'../outside' is not a plain path inside the folder" in refusal(folder)


# -- keys --------------------------------------------------------------------------------------------------------------


def test_the_key_must_be_one_that_is_trusted(folder: Path) -> None:
    assert "no trusted key is given; a signature proves nothing without one" in refusal(folder, ())
    assert "is not trusted; trusted are " in refusal(folder, (public_pem(STRANGER),))
    # The stranger's signature under the trusted key's name.
    forge(folder, statement_of(folder), STRANGER)
    assert "the signature is not valid for the key" in refusal(folder)
    # The stranger's name on the trusted key's signature.
    sign_folder(folder, PRIVATE)
    text = (folder / "model.sig").read_text()
    hints = [hashlib.sha256(public_pem(key)).hexdigest() for key in (KEY, STRANGER)]
    (folder / "model.sig").write_text(text.replace(*hints))
    assert "the signature is not valid for the key" in refusal(folder, (PUBLIC, public_pem(STRANGER)))


def kinds() -> dict[str, tuple[Any, str]]:
    only = "only elliptic-curve keys on P-256, P-384 and P-521 are taken"
    curve = "only P-256, P-384 and P-521 are taken"
    return {
        "rsa": (rsa.generate_private_key(65537, 2048), f"is of kind RSA; {only}"),
        "dsa": (dsa.generate_private_key(1024), f"is of kind DSA; {only}"),
        "ed25519": (ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)), f"is of kind Ed25519; {only}"),
        "P-192": (ec.derive_private_key(7, ec.SECP192R1()), f"is on the curve secp192r1; {curve}"),
        "P-224": (ec.derive_private_key(7, ec.SECP224R1()), f"is on the curve secp224r1; {curve}"),
        "secp256k1": (ec.derive_private_key(7, ec.SECP256K1()), f"is on the curve secp256k1; {curve}"),
        "brainpool": (ec.derive_private_key(7, ec.BrainpoolP256R1()), f"is on the curve brainpoolP256r1; {curve}"),
    }


@pytest.mark.parametrize("kind", ["rsa", "dsa", "ed25519", "P-192", "P-224", "secp256k1", "brainpool"])
def test_other_kinds_of_keys(folder: Path, kind: str) -> None:
    key, message = kinds()[kind]
    assert refusal(folder, (PUBLIC, public_pem(key))) == f"a trusted key {message}"
    with pytest.raises(InputError) as caught:
        sign_folder(folder, private_pem(key))
    assert str(caught.value) == f"the private key {message}"


@pytest.mark.parametrize(
    ("pem", "message"),
    [
        (b"", "a trusted key cannot be read: it must be a PEM public key"),
        (PRIVATE, "a trusted key cannot be read: it must be a PEM public key"),
        (KEY.public_key().public_bytes(DER, SPKI), "a trusted key cannot be read: it must be a PEM public key"),
        (PUBLIC.replace(b"A", b"B", 12), "a trusted key cannot be read: it must be a PEM public key"),
        (public_pem(STRANGER) + PUBLIC, "a trusted key must be one PEM public key, got several in one text"),
    ],
)
def test_trusted_keys_that_cannot_be_read(folder: Path, pem: bytes, message: str) -> None:
    assert refusal(folder, (pem,)) == message


def test_private_keys_that_cannot_be_used_and_what_is_said_of_them(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = private_pem(KEY, b"secret")
    broken = PRIVATE.replace(b"M", b"N", 1)
    for pem, password, message in [
        (secret, None, "the private key is encrypted: give its password"),
        (secret, b"wrong", "the private key cannot be read: it must be PEM, with the right password"),
        (PRIVATE, b"secret", "the private key is not encrypted: give no password"),
        (PUBLIC, None, "the private key cannot be read: it must be PEM, with the right password"),
        (broken, None, "the private key cannot be read: it must be PEM, with the right password"),
    ]:
        with pytest.raises(InputError) as caught:
            sign_folder(folder, pem, password=password)
        assert str(caught.value) == message
        assert caught.value.__cause__ is None and caught.value.__suppress_context__
    sign_folder(folder, PRIVATE)
    assert caplog.text == ""


@pytest.mark.parametrize("file", ["../model.sig", "models/model.sig", ".sig", "", ".."])
def test_names_of_the_signature(folder: Path, file: str) -> None:
    with pytest.raises(InputError, match="the signature must have a plain file name, got "):
        sign_folder(folder, PRIVATE, file=file)


def test_a_signature_that_cannot_be_written(folder: Path) -> None:
    (folder / "taken.sig").mkdir()
    with pytest.raises(InputError, match=r"cannot write the signature .*taken\.sig: Is a directory"):
        sign_folder(folder, PRIVATE, file="taken.sig")
    assert not (folder / ".taken.sig.part").exists()


# -- mutations ---------------------------------------------------------------------------------------------------------


def test_any_single_changed_byte_of_the_bundle(folder: Path) -> None:
    """There is no byte that does not count: neither of the JSON nor of what it carries."""
    data = (folder / "model.sig").read_bytes()
    rng = random.Random(0)
    for place in rng.sample(range(len(data)), 400):
        other = bytearray(data)
        other[place] ^= rng.randrange(1, 256)
        (folder / "model.sig").write_bytes(other)
        refusal(folder)
    assert len(data) > 1000
    (folder / "model.sig").write_bytes(data)
    verify_folder(folder, folder / "model.sig", [PUBLIC])


def test_any_single_changed_byte_of_payload_and_signature(folder: Path) -> None:
    """In the decoded bytes, so that base64 and JSON stay whole and the signature alone must notice."""
    bundle = json.loads((folder / "model.sig").read_text())
    envelope = bundle["dsseEnvelope"]
    rng = random.Random(1)
    for holder, key in ((envelope, "payload"), (envelope["signatures"][0], "sig")):
        text = holder[key]
        data = base64.b64decode(text)
        for _ in range(150):
            other = bytearray(data)
            other[rng.randrange(len(data))] ^= rng.randrange(1, 256)
            holder[key] = base64.b64encode(other).decode()
            (folder / "model.sig").write_text(json.dumps(bundle))
            assert "the signature is not valid for the key" in refusal(folder)
        holder[key] = text


def test_any_single_changed_byte_of_a_file(folder: Path) -> None:
    rng = random.Random(2)
    for name, data in FILES.items():
        for _ in range(60 if data else 0):
            other = bytearray(data)
            other[rng.randrange(len(data))] ^= rng.randrange(1, 256)
            (folder / name).write_bytes(other)
            assert f"FOLDER: '{name}' has sha256 {hashlib.sha256(other).hexdigest()}, signed was " in refusal(folder)
        (folder / name).write_bytes(data)
    verify_folder(folder, folder / "model.sig", [PUBLIC])


# -- properties --------------------------------------------------------------------------------------------------------

part = st.text("aZ0-_. ü", min_size=1, max_size=6).filter(lambda text: text not in (".", ".."))
file_names = st.lists(part, min_size=1, max_size=3).map("/".join)


@given(digests=st.dictionaries(file_names, st.binary(max_size=8).map(lambda b: hashlib.sha256(b).hexdigest())))
def test_the_statement_lists_each_file_once_in_the_order_of_paths(digests: dict[str, str]) -> None:
    bundle = json.loads(sign_digests(digests, PRIVATE, model="m"))
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    rows = [(row["name"], row["digest"]) for row in statement["predicate"]["resources"]]
    assert dict(rows) == digests and len(rows) == len(digests)
    assert [Path(name) for name, _ in rows] == sorted(Path(name) for name, _ in rows)
    raw = b"".join(bytes.fromhex(digest) for _, digest in rows)
    assert statement["subject"] == [{"name": "m", "digest": {"sha256": hashlib.sha256(raw).hexdigest()}}]


@given(data=st.binary(max_size=40), cut=st.integers(0, 60))
def test_base64_has_one_spelling(data: bytes, cut: int) -> None:
    text = base64.b64encode(data).decode()
    assert dsse.decode_base64(text, "here") == data
    for other in {text[:cut] + "\n" + text[cut:], text[:cut] + text[cut + 1 :], text + "="} - {text}:
        try:
            assert base64.b64encode(dsse.decode_base64(other, "here")).decode() == other
        except IntegrityError as error:
            assert str(error).startswith("here is not base64")


def test_hashing_streams(tmp_path: Path) -> None:
    """64 MiB are hashed in less than 3 MiB of memory."""
    with (tmp_path / "big").open("wb") as file:
        file.truncate(1 << 26)
    tracemalloc.start()
    try:
        digest = hash_file(tmp_path / "big")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert digest == hashlib.sha256(bytes(1 << 26)).hexdigest()
    assert peak < 3 << 20
