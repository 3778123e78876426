# SPDX-License-Identifier: Apache-2.0
"""Trust on first use: what a file was when it was fetched for the first time, where nothing else vouches for it.

A reference without the sha256 of ``card.json`` leaves the first word to the server. It has no second one: the hash is
kept beside the cache, in ``<cache>.art-medical/``, survives the cache, and is compared on every load.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path

from art_medical.errors import IntegrityError
from art_medical.zoo.hub_client import HubClient, Place

_LOG = logging.getLogger(__name__)


def record_of(client: HubClient, place: Place, name: str) -> Path:
    """File that keeps the first hash of a file of a revision; the endpoint counts, a mirror is trusted by itself."""
    key = json.dumps([client.endpoint, place.repo, place.commit, name])
    folder = client.cache_dir.with_name(f"{client.cache_dir.name}.art-medical")
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def check_first_seen(client: HubClient, place: Place, name: str, sha256: str) -> None:
    """Compare a hash with that of the first time, or keep it if this is the first time.

    :raises IntegrityError: If it is another one, or the record cannot be read.
    """
    record = record_of(client, place, name)
    try:
        first = json.loads(record.read_text(encoding="utf-8"))["sha256"]
    except (FileNotFoundError, NotADirectoryError):
        keep_first_seen(client, place, name, sha256)
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{record}, the record of {name} of {place.ref}, cannot be read: {error}") from error
    if first != sha256:
        raise IntegrityError(
            f"{name} of {place.repo}@{place.commit} has sha256 {sha256}, when first seen it had {first}; if the cache "
            f"was changed, {place.repair}; otherwise the server did, and nothing is wrong with {record}"
        )


def keep_first_seen(client: HubClient, place: Place, name: str, sha256: str) -> None:
    """Keep a hash, which replaces an earlier one; in a folder that cannot be written, a warning is logged."""
    record = record_of(client, place, name)
    content = {"endpoint": client.endpoint, "repo": place.repo, "revision": place.commit, "file": name}
    draft = record.with_name(f"{record.name}.{secrets.token_hex(4)}")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps({**content, "sha256": sha256}, indent=1) + "\n", encoding="utf-8")
        os.replace(draft, record)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        _LOG.warning("cannot keep the sha256 of %s of %s in %s: %s", name, place.ref, record.parent, error.strerror)
