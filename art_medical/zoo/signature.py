# SPDX-License-Identifier: Apache-2.0
"""Signed model folders, in the format of the ``model-signing`` package (OpenSSF Model Signing 1.0).

A signature is one file: a Sigstore bundle v0.3 around a DSSE envelope around an in-toto Statement v1, whose predicate
lists every file of the folder with its sha256. It is made and verified offline with elliptic-curve keys of one's own;
there is no certificate, no transparency log and therefore no date.

Two differences from the verifier of that package, both on purpose: which files may be unsigned is decided here
(:data:`UNSIGNED`) and never by the list that the signature brings along, and what is outside the signature must have
exactly the form that is known.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from art_medical.errors import InputError, IntegrityError
from art_medical.zoo import dsse

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"

BUNDLE_FILE = "model.sig"
"""Name of the signature in the folder when nobody asks for another."""

UNSIGNED = frozenset({".git", ".gitattributes", ".github", ".gitignore"})
"""What git and the Hub put beside a model: all that may be there without being signed. Nothing reads it."""

MOST_BUNDLE_BYTES = 1 << 24
MOST_FILES = 1 << 16
MOST_LEVELS = 32  # folders inside folders
MOST_FILE_BYTES = 1 << 36
_CHUNK = 1 << 20

_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Outer(BaseModel):
    """Outside the signature: nothing unknown is taken."""

    model_config = ConfigDict(extra="forbid")


class _Inner(BaseModel):
    """Inside the signature: readers ignore fields that they don't know (in-toto Statement v1, parsing rules)."""

    model_config = ConfigDict(extra="ignore")


class _PublicKey(_Outer):
    hint: _Digest


class _Material(_Outer):
    public_key: _PublicKey = Field(alias="publicKey")
    # An entry would be a claim about a date that nothing here checks.
    tlog_entries: Annotated[tuple[Any, ...], Field(alias="tlogEntries", max_length=0)] = ()


class _Bundle(_Outer):
    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"] = Field(alias="mediaType")
    verification_material: _Material = Field(alias="verificationMaterial")
    dsse_envelope: dsse.Envelope = Field(alias="dsseEnvelope")


class _SubjectDigest(_Inner):
    sha256: _Digest


class _Subject(_Inner):
    name: str
    digest: _SubjectDigest


class _Resource(_Inner):
    name: str
    algorithm: Literal["sha256"]
    digest: _Digest


class _Serialization(_Inner):
    method: Literal["files"]
    hash_type: Literal["sha256"]


class _Predicate(_Inner):
    serialization: _Serialization
    resources: Annotated[tuple[_Resource, ...], Field(min_length=1, max_length=MOST_FILES)]


class _Statement(_Inner):
    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: Annotated[tuple[_Subject, ...], Field(min_length=1, max_length=1)]
    predicate_type: Literal["https://model_signing/signature/v1.0"] = Field(alias="predicateType")
    predicate: _Predicate


_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Signed:
    """What a valid signature says.

    :param key_sha256: Fingerprint of the key that signed: sha256 of its DER SubjectPublicKeyInfo.
    :param files: sha256 of every signed file by its name relative to the folder, with ``/`` between parts. Whoever
        reads a file later compares with this, since the folder may have changed in between.
    """

    key_sha256: str
    files: Mapping[str, str]


def sign_folder(
    folder: Path, private_key_pem: bytes, *, password: bytes | None = None, file: str = BUNDLE_FILE
) -> Path:
    """Sign every file of a folder, except :data:`UNSIGNED`, and write the signature into it.

    :param private_key_pem: PEM text of a private key on P-256, P-384 or P-521.
    :param password: Of an encrypted key.
    :param file: Name of the signature; an older one of this name is replaced.
    :return: Path of the signature.
    :raises IntegrityError: If the folder holds a symbolic link or anything else but files and folders.
    :raises InputError: If the key cannot be used.
    """
    key = dsse.load_private_key(private_key_pem, password)
    if file != Path(file).name or file.startswith(".") or not file:
        raise InputError(f"the signature must have a plain file name, got {file!r}")
    names = [name for name in _file_names(folder) if name != file and not _may_be_unsigned(name)]
    digests = {name: hash_file(folder / name) for name in names}
    bundle = _sign(digests, folder.resolve().name, key, file)
    return _write(folder / file, bundle)


def sign_digests(
    digests: Mapping[str, str],
    private_key_pem: bytes,
    *,
    model: str,
    password: bytes | None = None,
    file: str = BUNDLE_FILE,
) -> bytes:
    """The signature of files whose sha256 is known, as the content of a bundle file.

    :param digests: Lower-case hex sha256 of each file by its name relative to the folder.
    :param model: Name of the model; it only informs.
    :param file: Name that the signature will have beside the files.
    :raises InputError: If the key cannot be used.
    """
    return _sign(digests, model, dsse.load_private_key(private_key_pem, password), file)


def verify_folder(folder: Path, bundle_file: Path, public_keys: Sequence[bytes]) -> Signed:
    """Check that one of the given keys signed exactly what a folder holds.

    Every file is hashed, in chunks; no name of the signature is ever opened. The signature file itself and
    :data:`UNSIGNED` need not be listed.

    :param bundle_file: The signature, usually inside the folder.
    :param public_keys: PEM texts of the keys that are trusted; from configuration, never from the folder.
    :return: Who signed which bytes.
    :raises IntegrityError: If anything differs, is missing, is not listed, or is not of the known form.
    """
    signed = read_signature(bundle_file, public_keys)
    listed = signed.files
    names = set(_file_names(folder)) - _own_name(folder, bundle_file)
    unlisted = sorted(name for name in names - listed.keys() if not _may_be_unsigned(name))
    if unlisted:
        raise IntegrityError(f"{folder}: {unlisted[0]!r} is not signed{_and_more(unlisted)}; remove it or sign again")
    missing = sorted(listed.keys() - names)
    if missing:
        raise IntegrityError(f"{folder}: the signed file {missing[0]!r} is missing{_and_more(missing)}")
    for name, digest in listed.items():
        found = hash_file(folder / name)
        if found != digest:
            raise IntegrityError(f"{folder}: {name!r} has sha256 {found}, signed was {digest}")
    return signed


def read_signature(bundle_file: Path, public_keys: Sequence[bytes]) -> Signed:
    """What a signature says, once it is found valid; no file is compared with it yet.

    For a caller who has some of the files only, such as the card and the weights, and compares their hashes itself.

    :param bundle_file: The signature.
    :param public_keys: PEM texts of the keys that are trusted.
    :raises IntegrityError: If it is not valid, not of the known form, or not made with one of the keys.
    """
    where = str(bundle_file)
    bundle = _check(_Bundle, dsse.parse_json(_read(bundle_file), where), where)
    key = _chosen_key(public_keys, bundle.verification_material.public_key.hint, where)
    payload = dsse.unseal(bundle.dsse_envelope, PAYLOAD_TYPE, key, where)
    where = f"{where}: signed statement"
    listed = _listed_files(_check(_Statement, dsse.parse_json(payload, where), where), where)
    return Signed(dsse.key_fingerprint(key), listed)


def hash_file(path: Path) -> str:
    """sha256 of a regular file, read in chunks of 1 MiB, as 64 hex digits.

    :raises IntegrityError: If it is a link, no regular file, longer than 64 GiB or cannot be read.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    # Neither follows a link nor waits for the other end of a pipe that replaced the file since it was listed.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(path, flags), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise IntegrityError(f"{path} is no regular file")
            if status.st_size > MOST_FILE_BYTES:
                raise IntegrityError(f"{path} has {status.st_size} bytes; at most {MOST_FILE_BYTES} are read")
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
    except OSError as error:
        raise IntegrityError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()


def _sign(digests: Mapping[str, str], model: str, key: ec.EllipticCurvePrivateKey, file: str) -> bytes:
    names = sorted(digests, key=_order)
    for name in names:
        _check_name(name, model)
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": model, "digest": {"sha256": _subject_digest([digests[name] for name in names])}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": sorted({*UNSIGNED, file}),
            },
            "resources": [{"name": name, "algorithm": "sha256", "digest": digests[name]} for name in names],
        },
    }
    bundle = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": _hint(key.public_key())}, "tlogEntries": []},
        "dsseEnvelope": dsse.seal(_compact(statement), PAYLOAD_TYPE, key),
    }
    return _compact(bundle)


def _compact(data: object) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()


def _subject_digest(digests: Sequence[str]) -> str:
    """sha256 of the raw digests one after another, in the order of the list."""
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()


def _hint(key: ec.EllipticCurvePublicKey) -> str:
    """sha256 of the PEM text: how ``model-signing`` names a key."""
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _chosen_key(public_keys: Sequence[bytes], hint: str, where: str) -> ec.EllipticCurvePublicKey:
    """The trusted key that the bundle says it is signed with; a wrong hint can only lead to a refusal."""
    if not public_keys:
        raise IntegrityError(f"{where}: no trusted key is given; a signature proves nothing without one")
    keys = [dsse.load_public_key(pem) for pem in public_keys]
    for key in keys:
        if _hint(key) == hint:
            return key
    trusted = ", ".join(dsse.key_fingerprint(key)[:16] for key in keys)
    raise IntegrityError(f"{where}: the key that it names (PEM sha256 {hint}) is not trusted; trusted are {trusted}")


def _listed_files(statement: _Statement, where: str) -> dict[str, str]:
    listed: dict[str, str] = {}
    for resource in statement.predicate.resources:
        _check_name(resource.name, where)
        if resource.name in listed:
            raise IntegrityError(f"{where}: the file {resource.name!r} is listed twice")
        listed[resource.name] = resource.digest
    named, found = statement.subject[0].digest.sha256, _subject_digest(list(listed.values()))
    if named != found:
        raise IntegrityError(f"{where}: the subject digest is {named}, the listed files give {found}")
    return listed


def _check_name(name: str, where: str) -> None:
    """A name is a path inside the folder, in the one spelling that the listing of the folder gives."""
    if not name.isprintable() or len(name) > 1024 or any(c in name for c in '\\:*?"<>|'):
        raise IntegrityError(f"{where}: the file name {name[:100]!r} is not one that every system can hold")
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise IntegrityError(f"{where}: the file name {name[:100]!r} is not a plain path inside the folder")


def _check(model: type[_Model], data: object, where: str) -> _Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        # A place may quote keys of the file.
        place = ".".join(str(part) for part in first["loc"])[:200].encode("unicode_escape").decode() or "top level"
        raise IntegrityError(f"{where}: {place}: {first['msg']}") from None


def _file_names(folder: Path) -> list[str]:
    """Names of all files below a folder, relative to it, in the order of a signature."""
    names: list[str] = []
    try:
        for name in _walk(folder, ""):
            names.append(name)
            if len(names) > MOST_FILES:
                raise IntegrityError(f"{folder} has more than {MOST_FILES} files")
    except OSError as error:
        raise IntegrityError(f"cannot read {folder}: {error.strerror}") from error
    return sorted(names, key=_order)


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    if prefix.count("/") > MOST_LEVELS:
        raise IntegrityError(f"{folder} lies more than {MOST_LEVELS} folders deep; no model needs that")
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.is_symlink():
                raise IntegrityError(f"{entry.path} is a symbolic link; a signed folder has none")
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(folder / entry.name, f"{name}/")
            elif entry.is_file(follow_symlinks=False):
                yield name
            else:
                raise IntegrityError(f"{entry.path} is neither a file nor a folder")


def _order(name: str) -> list[str]:
    """Part by part, as paths are sorted: ``a/b`` is before ``a-b``."""
    return name.split("/")


def _may_be_unsigned(name: str) -> bool:
    return PurePosixPath(name).parts[0] in UNSIGNED


def _own_name(folder: Path, bundle_file: Path) -> set[str]:
    """Name of the signature in the folder, if it is there."""
    try:
        return {bundle_file.resolve().relative_to(folder.resolve()).as_posix()}
    except ValueError:
        return set()


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _read(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise IntegrityError(f"{path} is no regular file; a signature must be one")
        with path.open("rb") as file:
            data = file.read(MOST_BUNDLE_BYTES + 1)
    except OSError as error:
        raise IntegrityError(f"cannot read the signature {path}: {error.strerror}") from error
    if len(data) > MOST_BUNDLE_BYTES:
        raise IntegrityError(f"{path} is longer than {MOST_BUNDLE_BYTES} bytes; no signature is")
    return data


def _write(path: Path, data: bytes) -> Path:
    """All of the file or nothing."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.unlink(missing_ok=True)  # of a run that was killed
        try:
            with part.open("xb") as file:
                file.write(data)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write the signature {path}: {error.strerror}") from error
    return path
