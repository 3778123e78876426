# SPDX-License-Identifier: Apache-2.0
"""Publish a model folder on the Hub: verify, one commit, one tag, read back.

A published version is never changed: a tag that exists is either what the folder holds, or the push is refused. The
client is huggingface_hub 0.36 to 2.x.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from art_medical.errors import ArtMedicalError, HubError, InputError, IntegrityError, ModelError
from art_medical.zoo.cards import MOST_BYTES, Card, parse_card
from art_medical.zoo.hub_client import HubClient, Place
from art_medical.zoo.references import COMMIT, HubRef
from art_medical.zoo.signature import MOST_BUNDLE_BYTES
from art_medical.zoo.verify import COMPANIONS, verify_model

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD, PAGE = "card.json", "README.md"
HUBS_OWN = ".gitattributes"
"""The Hub writes it when it creates a repository; it decides what goes to Large File Storage, so it is left alone."""

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Pushed:
    """A model as it was published.

    :param repo: ``owner/name``.
    :param revision: Full commit id.
    :param reference: ``hf://owner/name@<commit>#<sha256 of card.json>``: by this, nobody has to trust the Hub.
    """

    repo: str
    revision: str
    reference: str


@dataclass(frozen=True, slots=True)
class _File:
    """One file to publish; what is small is held as bytes, so that what was verified is what is sent."""

    content: bytes | Path
    sha256: str
    size: int

    @classmethod
    def of(cls, content: bytes) -> _File:
        return cls(content, hashlib.sha256(content).hexdigest(), len(content))

    def git_id(self) -> str:
        """Name of the file's content in git: sha1 of its kind, length and bytes."""
        digest = hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
        if isinstance(self.content, bytes):
            digest.update(self.content)
            return digest.hexdigest()
        with self.content.open("rb") as file:
            while piece := file.read(_CHUNK):
                digest.update(piece)
        return digest.hexdigest()


def push(
    folder: Path,
    repo: str,
    *,
    endpoint: str | None = None,
    token: str | None = None,
    private: bool = False,
    tag: str | None = None,
    sign_key: bytes | None = None,
    sign_password: bytes | None = None,
) -> Pushed:
    """Publish a model folder and return the reference to load it by.

    The folder is verified first and nothing is sent if anything in it is not as its card says. Exactly its files are
    then the new commit, which is tagged and read back. To push again what is published already changes nothing.

    :param repo: ``owner/name``; created if need be.
    :param endpoint: The Hub, HTTPS (or loopback); ``None`` for the client's (``HF_ENDPOINT``).
    :param token: Of the Hub, with the right to write; ``None`` for the client's.
    :param private: The repository must be private, and is created so.
    :param tag: Name of the tag; ``None`` for the version on the card.
    :param sign_key: PEM text of a private key (P-256, P-384 or P-521) to sign what is published with; the signature
        goes into the commit, not into the folder. The card must name it.
    :param sign_password: Of an encrypted key.
    :raises ModelError: If the folder is not fit to be published.
    :raises InputError: If the name of the repository or tag, or the key, cannot be used.
    :raises HubError: If the Hub refuses, or holds other content under this tag.
    :raises IntegrityError: If the Hub gives back something else than what was sent.
    """
    card, files = _checked(Path(folder))
    tag = _checked_tag(card.version if tag is None else tag)
    _check_repo(repo)
    if sign_key is not None:
        files |= _signature(card, files, sign_key, sign_password)
    client = HubClient.open(endpoint, None, None, token)
    if client.offline:
        raise HubError(f"cannot publish {repo}: the network is switched off (HF_HUB_OFFLINE)")
    with _explained(repo, client.endpoint):
        from huggingface_hub import HfApi

        api = HfApi(endpoint=client.endpoint, token=token, library_name="art-medical")
        head = _prepare(api, repo, private)
        commit = _tagged(api, repo, tag)
        if commit is not None:
            _refuse_differences(api, repo, commit, files, tag)
        else:
            commit = _commit(api, repo, head, files, f"{card.name} {card.version}")
            api.create_tag(repo, tag=tag, revision=commit)
        return _read_back(api, client, repo, tag, commit, files[CARD])


def _checked(folder: Path) -> tuple[Card, dict[str, _File]]:
    """The card and every file that is published, after everything in the folder was verified."""
    errors = [finding for finding in verify_model(folder) if finding.severity == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ModelError(f"{folder}: {errors[0].file} {errors[0].message}{more}; nothing was uploaded")
    data = _read(folder, CARD, MOST_BYTES)
    card = parse_card(data.decode("utf-8"), str(folder / CARD))
    files = {CARD: _File.of(data)}
    for name, entry in card.files.items():
        assert entry.sha256 is not None and entry.size is not None  # verified above
        files[name] = _File(folder / name, entry.sha256, entry.size)
    for name in sorted(COMPANIONS - {CARD, HUBS_OWN}):
        if name == PAGE or (folder / name).exists():
            files[name] = _File.of(_read(folder, name, MOST_BYTES))
    if card.signature is not None and (folder / card.signature.file).exists():
        files[card.signature.file] = _File.of(_read(folder, card.signature.file, MOST_BUNDLE_BYTES))
    return card, files


def _read(folder: Path, name: str, most: int) -> bytes:
    try:
        with (folder / name).open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ModelError(f"{folder}: {name} cannot be read: {error.strerror}; nothing was uploaded") from error
    if len(data) > most:
        raise ModelError(f"{folder}: {name} has more than {most} bytes; nothing was uploaded")
    return data


def _signature(card: Card, files: Mapping[str, _File], pem: bytes, password: bytes | None) -> dict[str, _File]:
    from art_medical.zoo import dsse
    from art_medical.zoo.signature import BUNDLE_FILE, sign_digests

    key = dsse.key_fingerprint(dsse.load_private_key(pem, password).public_key())
    entry = card.signature
    if entry is None or entry.key_sha256 != key:
        named = "names no signature" if entry is None else f"names the key {entry.key_sha256}"
        file = BUNDLE_FILE if entry is None else entry.file
        raise InputError(
            f'{CARD} {named}; write "signature": {{"file": "{file}", "key_sha256": "{key}"}} into it first'
        )
    digests = {name: file.sha256 for name, file in files.items() if name != entry.file}
    return {entry.file: _File.of(sign_digests(digests, pem, model=card.name, password=password, file=entry.file))}


def _checked_tag(tag: str) -> str:
    if not _TAG.fullmatch(tag) or COMMIT.fullmatch(tag) or tag == "main" or ".." in tag or tag.endswith(".lock"):
        raise InputError(f"{tag[:100]!r} cannot be a tag; use letters, digits and . _ + - as in v1.0.0")
    return tag


def _check_repo(repo: str) -> None:
    try:
        if HubRef.parse(f"hf://{repo}").repo == repo:
            return
    except HubError:
        pass
    raise InputError(f"{repo[:200]!r} is no repository on the Hub; write owner/name")


def _prepare(api: HfApi, repo: str, private: bool) -> str:
    """The repository, created if need be; the commit that it is at.

    Not ``create_repo(exist_ok=True)``: 0.36 fails there when the endpoint is not the one of ``HF_ENDPOINT``.
    """
    if not api.repo_exists(repo):
        api.create_repo(repo, private=private)
    info = api.model_info(repo)
    if private and info.private is False:
        raise HubError(f"{repo} exists at {api.endpoint} and is public; make it private there, or push elsewhere")
    if info.sha is None:
        raise HubError(f"{api.endpoint} names no commit for {repo}; it does not answer like a Hub")
    return info.sha


def _tagged(api: HfApi, repo: str, tag: str) -> str | None:
    return next((ref.target_commit for ref in api.list_repo_refs(repo).tags if ref.name == tag), None)


def _commit(api: HfApi, repo: str, head: str, files: Mapping[str, _File], message: str) -> str:
    """One commit with exactly these files, on the commit that was seen before unless that has them; its id."""
    from huggingface_hub import CommitOperationAdd

    others = sorted(set(api.list_repo_files(repo, revision=head)) - files.keys() - {HUBS_OWN})
    if others:
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        raise HubError(f"{repo} holds {others[0]!r}{more}, which this model does not have; delete it there first")
    if not _differences(api, repo, head, files):
        return head  # of a push that was cut before its tag
    operations = []
    for name, file in files.items():
        operation = CommitOperationAdd(name, file.content)
        if operation.upload_info.sha256.hex() != file.sha256:
            raise ModelError(f"{name} was changed while it was published; nothing was uploaded")
        operations.append(operation)
    try:
        api.create_commit(repo, operations, commit_message=message, parent_commit=head)
    except ValueError as error:
        # 0.36 makes the commit and then cannot read its address when the endpoint is not the one of HF_ENDPOINT.
        if "retrieve user and repo ID" not in str(error):
            raise
    commit = api.model_info(repo).sha
    different = _differences(api, repo, str(commit), files)
    if commit is None or different:
        raise IntegrityError(f"{repo}@{commit} at {api.endpoint} does not hold what was sent: {', '.join(different)}")
    return commit


def _refuse_differences(api: HfApi, repo: str, commit: str, files: Mapping[str, _File], tag: str) -> None:
    different = _differences(api, repo, commit, files)
    if different:
        raise HubError(
            f"{tag} of {repo} is published already, as commit {commit}, with other content ({', '.join(different)}); "
            "give the model a new version, or name another tag"
        )


def _differences(api: HfApi, repo: str, commit: str, files: Mapping[str, _File]) -> list[str]:
    """Names of files that a commit does not hold as they are here, by the hashes that the Hub states."""
    from huggingface_hub.hf_api import RepoFile  # at the top of the package only since 1.x

    found = {info.path: info for info in api.get_paths_info(repo, list(files), revision=commit)}

    def differs(name: str, file: _File) -> bool:
        info = found.get(name)
        if not isinstance(info, RepoFile):
            return True
        return info.lfs.sha256 != file.sha256 if info.lfs is not None else info.blob_id != file.git_id()

    return [name for name, file in files.items() if differs(name, file)]


def _read_back(api: HfApi, client: HubClient, repo: str, tag: str, commit: str, card: _File) -> Pushed:
    """Resolve the tag and download the card, as everybody will from now on."""
    resolved = api.model_info(repo, revision=tag).sha
    if resolved != commit:
        raise IntegrityError(f"the tag {tag} of {repo} at {client.endpoint} is commit {resolved}, expected {commit}")
    reference = str(HubRef(repo, commit, card.sha256))
    with tempfile.TemporaryDirectory(prefix="art-medical-") as cache:
        reader = HubClient.open(client.endpoint, cache, False, client.token)
        place = Place(repo, commit, reference)
        if reader.download(place, CARD, sha256=None, size=card.size, most=MOST_BYTES).read_bytes() != card.content:
            raise IntegrityError(f"{client.endpoint} gives back another {CARD} for {repo}@{commit} than was sent")
    return Pushed(repo, commit, reference)


@contextmanager
def _explained(repo: str, endpoint: str) -> Iterator[None]:
    try:
        yield
    except ArtMedicalError:
        raise
    except Exception as error:  # the client lets through what its HTTP library raises, which differs by version
        raise HubError(f"cannot publish {repo} at {endpoint}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    from huggingface_hub import errors as hf

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, hf.RepositoryNotFoundError) or status in (401, 403):
        return f"it answered {status}; log in with `hf auth login`, and use a token that may write there"
    if status in (409, 412):
        return f"it answered {status}: somebody else changed the repository meanwhile; look at it, then push again"
    text = " ".join(str(error).split())[:200]
    return f"it answered {status}: {text}" if status is not None else f"{type(error).__name__}: {text}"
