# SPDX-License-Identifier: Apache-2.0
"""Models from the Hub: only the files that a card names, at one commit, and no byte of them is parsed unchecked.

What is trusted: for a registered model the card that came with the package; for ``hf://owner/repo@commit#sha256`` the
reference; for ``hf://owner/repo@commit`` the server, once (:mod:`art_medical.zoo.first_seen`). Never trusted: the
client's cache, the name of a branch or tag, the list of a repository's files, anything in them but numbers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from art_medical.errors import HubError, IntegrityError, ModelError, UnpinnedError
from art_medical.zoo.cards import MOST_BYTES, MOST_FILE_BYTES, Card, WeightFile, parse_card
from art_medical.zoo.first_seen import check_first_seen, keep_first_seen, record_of
from art_medical.zoo.hub_client import AbsentFileError, HubClient, Place, changed
from art_medical.zoo.installation import CARD, install, is_copy
from art_medical.zoo.plain_file import below, read_plain_file
from art_medical.zoo.references import SCHEME, HubRef, is_hub_ref
from art_medical.zoo.registry import find_card
from art_medical.zoo.tensor_header import HashedFile, hash_file


@dataclass(frozen=True, slots=True)
class Fetched:
    """A model on this machine, in the client's cache or in a folder.

    :param card: The card, valid and trusted as the module says.
    :param card_bytes: The bytes that the card was parsed from.
    :param folder: The commit's folder in the cache; its files may be links. Nothing should be read from there: use
        ``files``, and hash what is read.
    :param revision: The full commit id, empty for a model that is not from the Hub.
    :param reference: The model once more, pinned if it is from the Hub.
    :param files: Plain file of each file on the card.
    :param expected: Hash and length that each of them must have, also for a file that the card leaves open.
    """

    card: Card
    card_bytes: bytes
    folder: Path
    revision: str
    reference: str
    files: Mapping[str, Path]
    expected: Mapping[str, WeightFile]


def fetch(
    ref_or_card: HubRef | Card | str | Path,
    *,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
    allow_unpinned: bool = False,
    token: str | None = None,
    force: bool = False,
) -> Fetched:
    """Get a model onto this machine, unless it is there, and check every byte of it.

    With a full commit id and everything in the cache, no request is sent.

    :param ref_or_card: ``hf://owner/repo@commit``, a registered name, a folder, or a card.
    :param endpoint: The Hub, HTTPS (or loopback); ``None`` for the client's (``HF_ENDPOINT``).
    :param cache_dir: The client's cache; ``None`` for its default (``HF_HUB_CACHE``).
    :param offline: Send no request; ``None`` for what ``HF_HUB_OFFLINE`` says.
    :param allow_unpinned: Take a branch or tag for a commit, and files whose hash the card leaves open.
    :param token: Of the Hub; ``None`` for the client's.
    :param force: Fetch again what is in the cache.
    :raises UnpinnedError: If the revision is no full commit id, or the card leaves a hash open.
    :raises HubError: If the Hub, the repository, the revision or a file cannot be had.
    :raises IntegrityError: If a file is not the one that was promised.
    :raises ModelError: If the card is not valid, or there is no such model.
    """
    found = locate(
        ref_or_card,
        endpoint=endpoint,
        cache_dir=cache_dir,
        offline=offline,
        allow_unpinned=allow_unpinned,
        token=token,
        force=force,
    )
    for name, path in found.files.items():
        check_file(path, found.expected[name], name, found.reference)
    return found


def locate(
    ref_or_card: HubRef | Card | str | Path,
    *,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
    allow_unpinned: bool = False,
    token: str | None = None,
    force: bool = False,
) -> Fetched:
    """:func:`fetch` for a caller who hashes what it reads: card and lengths are checked, content of files is not."""
    source = HubRef.parse(str(ref_or_card)) if is_hub_ref(ref_or_card) else ref_or_card
    if isinstance(source, str | Path):
        card, folders = find_card(source)
        installed = [folder for folder in folders if all((folder / name).is_file() for name in card.files)]
        if card.hub is None or (installed and not force):
            return _installed(folders[0], [*installed, *folders][0], str(source), allow_unpinned)
        source = card
    wanted = _wanted(source)
    ref = source.name if isinstance(source, Card) else str(source)
    if not wanted.pinned and not allow_unpinned:
        raise UnpinnedError(_not_pinned(ref, wanted))
    if isinstance(source, Card):
        check_pinned(source, allow_unpinned)
    client = HubClient.open(endpoint, cache_dir, offline, token)
    revision = wanted.revision or "main"
    if not wanted.pinned:
        probe = source.weights if isinstance(source, Card) else CARD
        revision = client.commit_of(wanted.repo, revision, probe, ref)
    return _on_hub(client, Place(wanted.repo, revision, ref), source, allow_unpinned, force)


def _on_hub(client: HubClient, place: Place, source: HubRef | Card, allow_unpinned: bool, force: bool) -> Fetched:
    reference = f"{SCHEME}{place.repo}@{place.commit}"
    if isinstance(source, Card):
        card, data = source, source.to_json().encode()
    else:
        card, data = _fetch_card(client, place, source.card_sha256, force)
        check_pinned(card, allow_unpinned)
        reference += f"#{hashlib.sha256(data).hexdigest()}"
    files, expected = {}, {}
    for name, entry in card.files.items():
        found = client.has(place, name)
        files[name] = client.download(
            place, name, sha256=entry.sha256, size=entry.size, most=MOST_FILE_BYTES, force=force
        )
        expected[name] = entry if entry.pinned else _first_seen(client, place, name, files[name], found and not force)
    folder = client.storage(place.repo) / "snapshots" / place.commit
    return Fetched(card, data, folder, place.commit, reference, files, expected)


def _installed(home: Path, folder: Path, ref: str, allow_unpinned: bool) -> Fetched:
    """A model that is not from the Hub: its card is in ``home``, its other files are in ``folder``."""
    try:
        data = read_plain_file(home / CARD, MOST_BYTES)
    except OSError as error:
        raise IntegrityError(f"cannot read {home / CARD}: {error.strerror}") from error
    card = _parse(data, str(home / CARD))
    check_pinned(card, allow_unpinned)
    files = {name: below(folder, name) for name in card.files}
    expected = {
        name: entry if entry.pinned else _measured(files[name], name, ref) for name, entry in card.files.items()
    }
    return Fetched(card, data, folder, "", ref, files, expected)


def fetch_to(
    refs: Iterable[str | Path],
    folder: str | Path,
    *,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
    allow_unpinned: bool = False,
    token: str | None = None,
    force: bool = False,
) -> tuple[Path, ...]:
    """Copy models into ``folder/<name>/``, hashed while they are copied, each as a whole or not at all.

    A copy holds ``card.json`` and the files on the card; for a signed model from the Hub also what its signature
    covers, as far as it is there. Other parameters and errors are those of :func:`fetch`.

    :param refs: Registered names, folders and ``hf://`` references.
    :param force: Replace a copy that is there and differs, and fetch again what is in the cache.
    :return: Folder of each model, in the order of ``refs``.
    :raises ModelError: If another model of that name is there, or two references have one name.
    """
    made: list[Path] = []
    client = HubClient.open(endpoint, cache_dir, offline, token)
    for ref in refs:
        found = locate(
            ref,
            endpoint=endpoint,
            cache_dir=cache_dir,
            offline=offline,
            allow_unpinned=allow_unpinned,
            token=token,
            force=force,
        )
        target = Path(folder) / found.card.name
        if target in made:
            raise ModelError(f"two of the models to fetch are called {found.card.name!r}; fetch them to two folders")
        companions = _companions(client, found) if is_hub_ref(found.reference) else {}
        if not is_copy(target, found):
            if os.path.lexists(target) and not force:
                raise ModelError(f"{target} exists and is not {found.reference}; force=True (--force) replaces it")
            install(found, companions, target)
        made.append(target)
    return tuple(made)


def _companions(client: HubClient, found: Fetched) -> dict[str, Path]:
    """Files that the signature of a model on the Hub may cover besides those on the card, by their fixed names."""
    if found.card.signature is None:
        return {}
    from art_medical.zoo.verify import COMPANIONS

    pinned = HubRef.parse(found.reference)
    place = Place(pinned.repo, found.revision, found.reference)
    absent = HubError if client.offline else AbsentFileError
    files = {}
    for name in sorted({*COMPANIONS, found.card.signature.file} - {CARD, *found.card.files}):
        with suppress(absent):
            files[name] = client.download(place, name, sha256=None, size=None, most=MOST_BYTES)
    return files


def check_file(path: Path, expected: WeightFile, name: str, ref: str) -> None:
    """Hash a file, a piece at a time.

    :raises IntegrityError: If its length or hash is another one.
    """
    found = _hashed(path, name, ref)
    if (found.sha256, found.size) != (expected.sha256, expected.size):
        raise IntegrityError(changed(path, name, f"sha256 {found.sha256}", f"{expected.sha256}", ref))


def _wanted(source: HubRef | Card) -> HubRef:
    if isinstance(source, HubRef):
        return source
    if source.hub is None:
        raise HubError(f"the card of {source.name} names no repository on the Hub; its files must be installed by hand")
    revision = "" if source.hub.revision is None else f"@{source.hub.revision}"
    return HubRef.parse(f"hf://{source.hub.repo}{revision}")


def _not_pinned(ref: str, wanted: HubRef) -> str:
    what = "names no revision" if wanted.revision is None else f"names the branch or tag {wanted.revision!r}"
    return (
        f"{ref} {what}, whose files may change; name the commit, hf://{wanted.repo}@<40 hex digits>, "
        "or allow it with allow_unpinned=True (--allow-unpinned)"
    )


def check_pinned(card: Card, allow_unpinned: bool) -> None:
    """Refuse a card that leaves the hash of a file open.

    :raises UnpinnedError: If it does, unless that is allowed.
    """
    loose = [name for name, entry in card.files.items() if not entry.pinned]
    if loose and not allow_unpinned:
        raise UnpinnedError(
            f"the card of {card.name} gives no sha256 for {loose[0]}, so nobody can say whether it is the right file; "
            "allow it with allow_unpinned=True (--allow-unpinned)"
        )


def _fetch_card(client: HubClient, place: Place, sha256: str | None, force: bool) -> tuple[Card, bytes]:
    found_there = client.has(place, CARD) and not force
    path = client.download(place, CARD, sha256=None, size=None, most=MOST_BYTES, force=force)
    try:
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise IntegrityError(f"cannot read {path}: {error.strerror}; {place.repair}") from error
    if len(data) > MOST_BYTES:
        raise IntegrityError(f"{path} has more than {MOST_BYTES} bytes; {place.repair}")
    found = hashlib.sha256(data).hexdigest()
    if sha256 is None:
        _check_origin(client, place, CARD, path, found_there)
        check_first_seen(client, place, CARD, found)
    elif found != sha256:
        raise IntegrityError(changed(path, CARD, f"sha256 {found}", sha256, place.ref))
    else:
        keep_first_seen(client, place, CARD, found)
    return _parse(data, f"{CARD} of {place.repo}@{place.commit}"), data


def _parse(data: bytes, where: str) -> Card:
    try:
        return parse_card(data.decode("utf-8"), where)
    except UnicodeDecodeError:
        raise ModelError(f"{where} is not UTF-8 text") from None


def _first_seen(client: HubClient, place: Place, name: str, path: Path, found_there: bool) -> WeightFile:
    """Hash and length of a file that the card leaves open; from its second time on, they are fixed."""
    entry = _measured(path, name, place.ref)
    _check_origin(client, place, name, path, found_there)
    check_first_seen(client, place, name, str(entry.sha256))
    return entry


def _check_origin(client: HubClient, place: Place, name: str, path: Path, found_there: bool) -> None:
    """What somebody else left in the cache is not this server's first word; offline there is no other."""
    if found_there and not client.offline and not record_of(client, place, name).exists():
        client.check_cached(place, name, path)


def _measured(path: Path, name: str, ref: str) -> WeightFile:
    found = _hashed(path, name, ref)
    if found.size == 0:
        raise IntegrityError(f"{path} ({name} of {ref}) is empty")
    return WeightFile(sha256=found.sha256, size=found.size)


def _hashed(path: Path, name: str, ref: str) -> HashedFile:
    try:
        return hash_file(path)
    except OSError as error:
        raise IntegrityError(f"cannot read {path} ({name} of {ref}): {error.strerror}") from error
