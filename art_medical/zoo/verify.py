# SPDX-License-Identifier: Apache-2.0
"""Verify a model folder against its card: every file, the page, the network and the signature; nothing is executed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from art_medical.errors import HubError, IntegrityError, ModelError, UnpinnedError
from art_medical.zoo.cards import MOST_BYTES, Card, read_card
from art_medical.zoo.model_card import model_card
from art_medical.zoo.plain_file import read_plain_file
from art_medical.zoo.plugins import same_card
from art_medical.zoo.registry import find_card, list_models
from art_medical.zoo.tensor_header import HashedFile, TensorEntry, hash_file, read_header

if TYPE_CHECKING:
    from torch import Tensor, nn

COMPANIONS = frozenset({"card.json", "README.md", "LICENSE", "recipe.yaml", "train.py", ".gitattributes"})
"""Files that may lie beside those of the card; no loader reads any but ``card.json``."""

CHECKPOINTS = "checkpoints"
"""Folder of a training that was cut or is done, in the model folder of whoever trains; it is never published."""


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    :param file: Name relative to the model folder.
    :param message: What is wrong, and with which value.
    :param severity: ``error``: the model is not what its card says. ``warning``: something could not be checked.
    """

    file: str
    message: str
    severity: Literal["error", "warning"] = "error"


State = Literal["verified", "failed", "not installed", "not fetched"]


@dataclass(frozen=True)
class Verdict:
    """What verification says of one model.

    :param ref: Name or folder, as it was asked for.
    :param state: ``not installed``: nothing speaks against the card, but its weights are not on this machine.
        ``not fetched``: so, and the Hub has them.
    :param folder: Where the verified files lie.
    """

    ref: str
    state: State
    folder: Path
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "folder": str(self.folder)}


def verify(ref: str, *, trusted_keys: Sequence[bytes] = ()) -> Verdict:
    """Verify a folder, or a registered model where its weights lie: beside its card, in a folder of the user's, or in
    the cache of the Hub's client.

    :param trusted_keys: As for :func:`verify_model`.
    :raises ModelError: If there is no such model.
    """
    if ref not in list_models():
        folder = Path(ref)
        if not os.path.isfile(folder / "card.json"):  # unlike Path, for any text
            find_card(ref)  # which says what there is
        findings = verify_model(folder, trusted_keys=trusted_keys)
        return Verdict(ref, "failed" if _errors(findings) else "verified", folder, findings)
    card, folders = find_card(ref)
    holding = [folder for folder in folders if all((folder / file).is_file() for file in card.files)]
    folder, early = [*holding, *folders][0], []
    files: Mapping[str, Path] | None = None
    if holding:
        files = {name: folder / name for name in card.files}
    elif card.hub is not None:
        try:
            files = cached_files(card)
        except IntegrityError as error:
            early.append(Finding(card.weights, str(error)))
    if (folder / "card.json").is_file() and not same_card(folder, folders[0]):
        early.append(Finding("card.json", f"differs from the registered card {folders[0] / 'card.json'}"))
    findings = (*early, *_examine(card, folder, files, trusted_keys))
    absent: State = "not installed" if card.hub is None else "not fetched"
    state: State = "failed" if _errors(findings) else absent if files is None else "verified"
    return Verdict(ref, state, folder, findings)


def cached_files(card: Card) -> Mapping[str, Path] | None:
    """Files of a model that the Hub publishes, if they are in the cache of its client; no request is sent.

    :raises IntegrityError: If one is in the cache and is not the one on the card.
    """
    from art_medical.zoo.hub import locate

    try:
        return locate(card, offline=True).files
    except (HubError, UnpinnedError):
        return None


def _errors(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == "error"]


def verify_model(folder: Path, *, trusted_keys: Sequence[bytes] = ()) -> tuple[Finding, ...]:
    """Compare everything in a model folder with its card.

    Every file is hashed; a file that the card does not name, a link and a folder are findings. The names, shapes and
    types of the tensors must be those of the network, which is built on the meta device. Of safetensors only the header
    is read; a state dict has to be loaded for it, by the safe reader.

    :param trusted_keys: Public keys (PEM). With keys, the model must be signed with one of them.
    :return: Nothing if all is well.
    """
    try:
        card = read_card(folder)
    except ModelError as error:
        return (Finding("card.json", str(error)),)
    return tuple(_examine(card, folder, {name: folder / name for name in card.files}, trusted_keys))


def _examine(card: Card, folder: Path, files: Mapping[str, Path] | None, keys: Sequence[bytes]) -> Iterator[Finding]:
    """Findings of a card and its folder, and of the files wherever they are, unless they are not on this machine."""
    yield from _unexpected(card, folder)
    yield from _page(card, folder)
    hashed: dict[str, HashedFile] = {}
    for name, path in (files or {}).items():
        found = _hashed(card, path, name)
        if isinstance(found, Finding):
            yield found
        else:
            hashed[name] = found
    yield from _network(card, files or {}, hashed)
    if files is not None:
        beside = all(path == folder / name for name, path in files.items())
        yield from _signature(card, folder if beside else None, keys)


# -- files -------------------------------------------------------------------------------------------------------------


def expected_files(card: Card) -> frozenset[str]:
    """Names that may lie in the folder of a model."""
    signed = {card.signature.file} if card.signature is not None else set()
    return COMPANIONS | set(card.files) | signed


def _unexpected(card: Card, folder: Path) -> Iterator[Finding]:
    """What the card does not name, by a walk that follows no link."""
    expected = expected_files(card)
    parents = {str(parent) for name in expected for parent in Path(name).parents}
    waiting = [folder]
    while waiting:
        try:
            entries = sorted(waiting.pop().iterdir())
        except OSError as error:
            yield Finding(".", f"cannot list {error.filename}: {error.strerror}")
            continue
        for entry in entries:
            name = entry.relative_to(folder).as_posix()
            mode = entry.lstat().st_mode
            if stat.S_ISLNK(mode):
                yield Finding(name, "is a symbolic link; a model folder holds plain files only")
            elif stat.S_ISDIR(mode):
                if name in parents:
                    waiting.append(entry)
                elif name == CHECKPOINTS:
                    yield Finding(name, "is what a training left behind, and was not looked at", "warning")
                else:
                    yield Finding(name, "is a folder that the card names no file of; remove it")
            elif not stat.S_ISREG(mode):
                yield Finding(name, "is no plain file; remove it")
            elif name not in expected:
                yield Finding(name, "is a file that the card does not name; remove it")


def _hashed(card: Card, path: Path, name: str) -> HashedFile | Finding:
    entry = card.files[name]
    if entry.sha256 is None or entry.size is None:
        return Finding(name, "has no sha256 and size on the card: nothing can vouch for it")
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return Finding(name, "must be a plain file")
        found = hash_file(path)
    except FileNotFoundError:
        return Finding(name, "is missing")
    except OSError as error:
        return Finding(name, f"cannot be read: {error.strerror}")
    if found.size != entry.size:
        return Finding(name, f"has {found.size} bytes, the card says {entry.size}")
    if found.sha256 != entry.sha256:
        return Finding(name, f"has sha256 {found.sha256}, the card says {entry.sha256}")
    return found


def _page(card: Card, folder: Path) -> Iterator[Finding]:
    try:
        text = read_plain_file(folder / "README.md", MOST_BYTES).decode("utf-8")
    except FileNotFoundError:
        return  # a wheel carries cards without their pages
    except (OSError, UnicodeDecodeError, ModelError) as error:
        yield Finding("README.md", f"cannot be read: {error}")
        return
    if text != model_card(card):
        yield Finding("README.md", "is not the page that the card gives; write it again from card.json")


# -- network -----------------------------------------------------------------------------------------------------------


def _network(card: Card, files: Mapping[str, Path], hashed: dict[str, HashedFile]) -> Iterator[Finding]:
    """Build the network without memory, and compare its state with what the weights declare."""
    import torch

    from art_medical.estimators.module import ClassifierModule
    from art_medical.zoo.networks import build
    from art_medical.zoo.weights import check_parameter_count

    try:
        with torch.device("meta"), torch.no_grad():
            network = build(card.architecture.target, card.architecture.args).eval()
            check_parameter_count(network, card)
            ClassifierModule(network, card.input.steps, card.head).logits(torch.zeros(2, *card.input.shape))
    except ModelError as error:
        # A network that needs what is not installed is no fault of the model.
        missing = isinstance(error.__cause__, ImportError)
        yield Finding("card.json", str(error), "warning" if missing else "error")
        return
    except Exception as error:  # the networks are others' code and promise no type
        yield Finding("card.json", f"the network cannot take an image: {' '.join(str(error).split())[:300]}")
        return
    if card.weights not in hashed:
        return
    try:
        declared = _declared(card, files[card.weights], hashed[card.weights])
    except ModelError as error:
        yield Finding(card.weights, str(error))
        return
    for message in _differences(network, declared):
        yield Finding(card.weights, message)


def _declared(card: Card, path: Path, file: HashedFile) -> dict[str, TensorEntry]:
    """Tensors of the weights, by the names that the network has for them."""
    if card.format == "safetensors":
        tensors = read_header(file, card.weights)
    else:
        from art_medical.zoo.weights import read_weights

        loaded = read_weights(path, sha256=file.sha256, size=file.size, format=card.format, wrapper=card.wrapper)
        tensors = {name: TensorEntry(_type(t), tuple(t.shape)) for name, t in loaded.items()}
    prefix = card.key_prefix
    strangers = [name for name in tensors if not name.startswith(prefix)]
    if strangers:
        raise ModelError(f"tensor {strangers[0][:100]!r} lacks the prefix {prefix!r} that the card states")
    return {name.removeprefix(prefix): entry for name, entry in tensors.items()}


def _differences(network: nn.Module, declared: dict[str, TensorEntry]) -> Iterator[str]:
    state: dict[str, Tensor] = dict(network.state_dict())
    common = [name for name in state if name in declared]
    shapes = [name for name in common if declared[name].shape != tuple(state[name].shape)]
    types = [name for name in common if not _fits(declared[name].dtype, state[name])]
    yield from _summed("lacks the tensor {}", [name for name in state if name not in declared])
    yield from _summed("has the tensor {}, the network does not", [name for name in declared if name not in state])
    if shapes:
        found, wanted = declared[shapes[0]].shape, tuple(state[shapes[0]].shape)
        yield from _summed(f"has the tensor {{}} of shape {found}, the network of {wanted}", shapes)
    if types:
        kind, wanted_kind = declared[types[0]].dtype, _type(state[types[0]])
        yield from _summed(f"has the tensor {{}} of type {kind}, the network of {wanted_kind}", types)


def _summed(text: str, names: list[str]) -> Iterator[str]:
    """One line for all tensors with the same fault, naming the first."""
    if names:
        more = f" (and {len(names) - 1} more tensors)" if len(names) > 1 else ""
        yield text.replace("{}", repr(names[0][:100])) + more


def _fits(dtype: str, tensor: Tensor) -> bool:
    """As weights are loaded: half precision is widened, nothing else is converted."""
    return dtype == _type(tensor) or (dtype, tensor.dtype.is_floating_point) == ("float16", True)


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


# -- signature ---------------------------------------------------------------------------------------------------------


def _signature(card: Card, folder: Path | None, keys: Sequence[bytes]) -> Iterator[Finding]:
    entry = card.signature
    if entry is None:
        if keys:
            yield Finding("card.json", "names no signature, so none of the trusted keys vouches for this model")
        return
    if not keys:
        text = f"was not checked: give the public key whose fingerprint is {entry.key_sha256}"
        yield Finding(entry.file, text, "warning")
        return
    if folder is None:
        yield Finding(entry.file, "was not checked: files in the cache are no folder; use zoo fetch --to", "error")
        return
    from art_medical.zoo.signature import verify_folder

    try:
        signed = verify_folder(folder, folder / entry.file, keys)
    except ModelError as error:
        yield Finding(entry.file, str(error))
        return
    if signed.key_sha256 != entry.key_sha256:
        yield Finding(entry.file, f"is made with the key {signed.key_sha256}, the card says {entry.key_sha256}")
