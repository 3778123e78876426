# SPDX-License-Identifier: Apache-2.0
"""Verified copies of models in a folder of their own, for machines without a network: ``ART_MEDICAL_ZOO=folder``."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from art_medical.errors import HubError, IntegrityError, ModelError
from art_medical.zoo.cards import MOST_BYTES, WeightFile
from art_medical.zoo.hub_client import changed
from art_medical.zoo.plain_file import below, open_plain_file, read_plain_file
from art_medical.zoo.tensor_header import CHUNK, hash_file

if TYPE_CHECKING:
    from art_medical.zoo.hub import Fetched

CARD = "card.json"
DRAFTS = ".art-medical-drafts"
"""Folder for what is being written; two levels deep, so that no registry takes a draft for a model."""


def is_copy(target: Path, found: Fetched) -> bool:
    """Whether a folder holds exactly this model already, as its bytes tell."""
    try:
        if read_plain_file(target / CARD, MOST_BYTES) != found.card_bytes:
            return False
        for name, entry in found.expected.items():
            if hash_file(below(target, name)).sha256 != entry.sha256:
                return False
    except (OSError, ModelError):
        return False
    return True


def install(found: Fetched, companions: Mapping[str, Path], target: Path) -> None:
    """Write a model into the folder ``target``, as a whole or not at all; what is there is replaced.

    :param companions: Further files by name; nobody vouches for them.
    :raises IntegrityError: If a file is not the one on the card.
    :raises HubError: If it cannot be written.
    """
    drafts = target.parent / DRAFTS / secrets.token_hex(8)
    draft, old = drafts / "new", drafts / "old"
    try:
        draft.mkdir(parents=True)
        for name, path in found.files.items():
            _copy(path, draft / name, found.expected[name], name, found.reference)
        for name, path in companions.items():
            _write(draft / name, read_plain_file(path, MOST_BYTES))
        _write(draft / CARD, found.card_bytes)
        if os.path.lexists(target):
            os.rename(target, old)
        os.rename(draft, target)
    except OSError as error:
        if old.exists() and not os.path.lexists(target):
            os.rename(old, target)
        raise HubError(f"cannot write {found.card.name} into {target.parent}: {error.strerror}") from error
    finally:
        shutil.rmtree(drafts, ignore_errors=True)
        with suppress(OSError):  # another process may be writing there
            drafts.parent.rmdir()


def _copy(source: Path, target: Path, expected: WeightFile, name: str, ref: str) -> None:
    """Copy a file in pieces; what was hashed is what is written."""
    digest, size = hashlib.sha256(), 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_plain_file(source) as reader, target.open("xb") as writer:
        while chunk := reader.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    if (digest.hexdigest(), size) != (expected.sha256, expected.size):
        raise IntegrityError(changed(source, name, f"sha256 {digest.hexdigest()}", str(expected.sha256), ref))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
