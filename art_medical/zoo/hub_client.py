# SPDX-License-Identifier: Apache-2.0
"""One named file at a time through ``huggingface_hub``, whose promises are checked and whose errors are explained.

Supported are huggingface_hub 0.36 to 2.x. The client believes what the server announces, keeps quiet when it returns
a cached file because the server is down, and lets every kind of exception through (reference of the client,
"What is not verified"); so this module compares commit, announced size and announced hash itself, takes a file only
where the cache must have put it, and turns every exception into one line that says what to do.
"""

from __future__ import annotations

import errno
import hashlib
import inspect
import ipaddress
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from art_medical.errors import ArtMedicalError, HubError, IntegrityError
from art_medical.zoo.references import COMMIT

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SLACK = 16 << 20
"""Bytes that a body may be too long before the download is stopped: the client counts in pieces of 10 MiB."""


class AbsentFileError(HubError):
    """The repository is there, the file is not."""


@dataclass(frozen=True, slots=True)
class Place:
    """A revision of a repository, and how the user named the model.

    :param ref: As ``art-medical zoo fetch`` takes it, for messages.
    """

    repo: str
    commit: str
    ref: str

    @property
    def repair(self) -> str:
        """What to do about a cached file that is not right."""
        return f"`art-medical zoo fetch {self.ref} --force` fetches it again"


@dataclass(frozen=True, slots=True)
class HubClient:
    """The client with its settings; see :meth:`open` for the defaults."""

    endpoint: str
    cache_dir: Path
    offline: bool
    token: str | None

    @classmethod
    def open(
        cls, endpoint: str | None, cache_dir: str | Path | None, offline: bool | None, token: str | None
    ) -> HubClient:
        """Settings, with those of ``huggingface_hub`` where ``None`` is given.

        :raises HubError: If the endpoint is not HTTPS, except on the loopback interface.
        """
        from huggingface_hub import constants

        if offline is None:
            offline = constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE
        address = endpoint or constants.ENDPOINT
        _check_endpoint(address)
        folder = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir).expanduser().resolve()
        return cls(address.rstrip("/"), folder, offline, token)

    def storage(self, repo: str) -> Path:
        """The cache's folder of a repository."""
        return self.cache_dir / f"models--{repo.replace('/', '--')}"

    def commit_of(self, repo: str, revision: str, name: str, ref: str) -> str:
        """Full commit id that a branch or tag means now or, offline, meant when the cache last saw it.

        :param name: A file that the repository must have.
        """
        place = Place(repo, revision, ref)
        if self.offline:
            # The name may hold slashes, so the first folder below snapshots/ is the commit.
            path = self._hf_hub_download(place, name, {"local_files_only": True})
            commit: str | None = path.relative_to(self.storage(repo) / "snapshots").parts[0]
        else:
            commit = self._metadata(place, name).commit_hash
        if commit is None or not COMMIT.fullmatch(commit):
            raise HubError(f"{self.endpoint} names no commit for {repo}@{revision}; it does not answer like a Hub")
        if not self.offline:
            _keep_ref(self.storage(repo) / "refs" / revision, commit)
        return commit

    def has(self, place: Place, name: str) -> bool:
        """Whether a file is in the cache, put there by whom ever."""
        return (self.storage(place.repo) / "snapshots" / place.commit / name).exists()

    def check_cached(self, place: Place, name: str, path: Path) -> None:
        """Ask whether a file that was in the cache already is what the server has; another server may have sent it.

        :raises HubError: If the server does not answer.
        :raises IntegrityError: If it is another one, or the server does not name it by its content.
        """
        if self._metadata(place, name).etag not in _content_ids(path):
            raise IntegrityError(
                f"the cache has another {name} of {place.repo}@{place.commit} than {self.endpoint}: another server may "
                f"have sent it; {place.repair}"
            )

    def download(
        self, place: Place, name: str, *, sha256: str | None, size: int | None, most: int, force: bool = False
    ) -> Path:
        """Path of a file in the cache, where it is put first if it is missing.

        The content is **not** hashed here: the caller must do so with the bytes that it parses.

        :param sha256: Expected hash, if known; a server that announces another one is refused before the download.
        :param size: Expected length in bytes, if known.
        :param most: Longest length in bytes that is taken when ``size`` is not known.
        :param force: Fetch again what is there already.
        :return: A plain file inside the cache, with all links resolved.
        :raises HubError: If it cannot be had.
        :raises IntegrityError: If the server announces another commit, length or hash, or the cached file is not inside
            the cache or has another length.
        """
        storage = self.storage(place.repo)
        pointer = storage / "snapshots" / place.commit / name
        options: dict[str, Any] = {"local_files_only": self.offline, "force_download": force and not self.offline}
        if options["force_download"]:
            _forget(pointer, storage)
        if not pointer.exists() and not self.offline:
            self._check_announced(place, name, sha256, size, most)
            options |= _stop_after(2 * (size or most) + _SLACK)
        path = self._hf_hub_download(place, name, options)
        if path != pointer:
            raise IntegrityError(
                f"{self.endpoint} answered the request for {place.repo}@{place.commit} with {path}, which is not of "
                "that commit"
            )
        file = _plain_file(pointer, storage, self.cache_dir, place)
        found = file.stat().st_size
        if found > most if size is None else found != size:
            wanted = f"at most {most}" if size is None else str(size)
            raise IntegrityError(f"{file} ({name}) has {found} bytes, expected {wanted}; {place.repair}")
        return file

    def _hf_hub_download(self, place: Place, name: str, options: dict[str, Any]) -> Path:
        from huggingface_hub import hf_hub_download

        with self._explained(place, name):
            path = hf_hub_download(
                place.repo,
                name,
                revision=place.commit,
                endpoint=self.endpoint,
                cache_dir=self.cache_dir,
                token=self.token,
                library_name="art-medical",
                **options,
            )
        return Path(str(path))

    def _metadata(self, place: Place, name: str) -> Any:
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

        with self._explained(place, name):
            return get_hf_file_metadata(
                hf_hub_url(place.repo, name, revision=place.commit, endpoint=self.endpoint),
                token=self.token,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
                library_name="art-medical",
                endpoint=self.endpoint,
            )

    def _check_announced(self, place: Place, name: str, sha256: str | None, size: int | None, most: int) -> None:
        """Compare what the server says about a file with what is expected, before a byte of it is sent."""
        what = f"{name} of {place.repo}@{place.commit}"
        said = self._metadata(place, name)
        if said.commit_hash is None:
            raise HubError(f"{self.endpoint} names no commit for {what}; it does not answer like a Hub")
        if said.commit_hash != place.commit:
            raise IntegrityError(f"{self.endpoint} answered the request for {what} with commit {said.commit_hash}")
        if said.size is not None and (said.size > most if size is None else said.size != size):
            wanted = f"at most {most}" if size is None else str(size)
            raise IntegrityError(f"{self.endpoint} announces {said.size} bytes for {what}, expected {wanted}: refused")
        if sha256 is not None and re.fullmatch("[0-9a-f]{64}", said.etag or "") and said.etag != sha256:
            raise IntegrityError(f"{self.endpoint} announces sha256 {said.etag} for {what}, expected {sha256}: refused")

    @contextmanager
    def _explained(self, place: Place, name: str) -> Iterator[None]:
        try:
            yield
        except ArtMedicalError:
            raise
        except Exception as error:  # the client lets through what its HTTP library raises, which differs by version
            raise self._explain(error, place, name) from error

    def _explain(self, error: Exception, place: Place, name: str) -> HubError:
        """The one line for an exception of the client, most special class first."""
        from huggingface_hub import errors as hf

        where, revision = f"{place.repo} at {self.endpoint}", f"{place.repo}@{place.commit}"
        if isinstance(error, hf.GatedRepoError):
            return HubError(f"{where} is gated: accept its terms there, then log in with `hf auth login`")
        if isinstance(error, hf.RepositoryNotFoundError):
            return HubError(f"there is no {where}, or not for you: check the name, or log in with `hf auth login`")
        if isinstance(error, hf.RevisionNotFoundError):
            return HubError(f"{where} has no revision {place.commit}: check the reference {place.ref}")
        if self.offline and isinstance(error, (hf.LocalEntryNotFoundError, hf.OfflineModeIsEnabled)):
            return HubError(
                f"{name} of {revision} is not in the cache {self.cache_dir} and the network is switched off; "
                f"run `art-medical zoo fetch {place.ref}` where there is one"
            )
        if isinstance(error, hf.EntryNotFoundError) and not isinstance(error, hf.LocalEntryNotFoundError):
            return AbsentFileError(f"{revision} has no file {name}; a model repository needs a card.json and its files")
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return HubError(f"no space for {name} of {revision} in {self.cache_dir}: free some or name another cache")
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return HubError(
                f"{self.endpoint} answered {status} for {name} of {revision}; {_ADVICE.get(status, _LATER)}"
            )
        if isinstance(error, OSError) and error.strerror and error.filename:
            return HubError(f"cannot keep {name} of {revision} in the cache: {error.filename}: {error.strerror}")
        return HubError(f"cannot fetch {name} of {revision} from {self.endpoint}: {_reason(error)}; {_LATER}")


def changed(path: Path, name: str, found: str, expected: str, ref: str) -> str:
    """What is said of a file of the cache that is not what the card promises."""
    return (
        f"{path} ({name} of {ref}) has {found}, expected {expected}: refused before parsing; "
        f"`art-medical zoo fetch {ref} --force` fetches it again"
    )


_TRUE = {"1", "ON", "YES", "TRUE"}
_LATER = "try again later, or use offline=True (HF_HUB_OFFLINE=1) if it was fetched before"
_ADVICE = {401: "check the token, or log in with `hf auth login`", 403: "your token does not allow it"}


def _reason(error: BaseException) -> str:
    """Type and text of an error and of what is behind it; clients hide the cause two levels deep."""
    cause = error.__cause__ or error
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:200]


def _check_endpoint(endpoint: str) -> None:
    """HTTPS, because a registered card vouches for the bytes but the token would travel in the clear."""
    try:
        parts = urlsplit(endpoint)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        raise HubError(f"the endpoint {endpoint[:200]!r} is no URL; write https://host") from None
    if not host or (parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host))):
        raise HubError(f"the endpoint {endpoint[:200]!r} is refused: use https:// (http:// is for this machine only)")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _stop_after(most: int) -> dict[str, Any]:
    """The option that ends a body which does not end itself; clients before 1.33 have none and fill the disk."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined,unused-ignore]

    if "tqdm_class" not in inspect.signature(hf_hub_download).parameters:
        return {}

    class Limited(tqdm):  # type: ignore[type-arg,misc,unused-ignore]
        received = 0

        def update(self, n: float | None = 1) -> bool | None:
            self.received += int(n or 0)
            if self.received > most:
                raise IntegrityError(f"the server did not stop after {most} bytes: refused")
            moved: bool | None = super().update(n)
            return moved

    return {"tqdm_class": Limited}


def _keep_ref(path: Path, commit: str) -> None:
    """Note which commit a branch or tag meant, where the client looks for it when it is offline."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    with suppress(OSError):  # offline it is then not known, as if it had never been asked for
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(commit, encoding="ascii")
        os.replace(draft, path)


def _forget(pointer: Path, storage: Path) -> None:
    """Remove what stands in the place of a cached file, so that it is fetched anew; never anything outside."""
    try:
        inside = pointer.parent.resolve().is_relative_to(storage.resolve())
        if inside and (pointer.is_symlink() or pointer.is_file()):
            pointer.unlink()
    except OSError as error:
        raise HubError(f"cannot replace {pointer}: {error.strerror}; remove it by hand") from error


def _plain_file(pointer: Path, storage: Path, cache_dir: Path, place: Place) -> Path:
    """Follow the link from a snapshot to its blob, which must be in the same repository's part of the cache.

    Since 2.x, blobs of the Hub's Xet storage may in turn be links to ``<cache>/blobs/<2 digits>/<64 digits>``.
    """
    try:
        file = pointer.resolve(strict=True)
        shared = re.fullmatch(r"blobs/([0-9a-f]{2})/\1[0-9a-f]{62}", _below(file, cache_dir.resolve()))
        if not (shared or file.is_relative_to(storage.resolve())):
            raise IntegrityError(f"{pointer} leads out of the cache, to {file}: refused; {place.repair}")
        if not file.is_file():
            raise IntegrityError(f"{pointer} is no file; remove it by hand")
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
        raise IntegrityError(f"{pointer} cannot be read: {_reason(error)}; {place.repair}") from error
    return file


def _content_ids(path: Path) -> set[str]:
    """By which the Hub names a file: its sha256, or its git id, which is the sha1 of kind, length and bytes."""
    sha256 = hashlib.sha256()
    git = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            sha256.update(piece)
            git.update(piece)
    return {sha256.hexdigest(), git.hexdigest()}


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else ""
