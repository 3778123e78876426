# SPDX-License-Identifier: Apache-2.0
"""The registry: names to cards to estimators.

Cards of registered models come with the package and name the sha256 of their weights; the weights themselves may lie
anywhere, because nothing is parsed before its hash matched. Models of your own live in the folder that the environment
variable ``ART_MEDICAL_ZOO`` names, or are loaded by folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from art_medical.errors import IntegrityError, ModelError
from art_medical.zoo.cards import Card, WeightFile, read_card
from art_medical.zoo.plain_file import below
from art_medical.zoo.plugins import models_in, plugin_models
from art_medical.zoo.references import is_hub_ref
from art_medical.zoo.summary import task_of

if TYPE_CHECKING:
    from art_medical.estimators.classifier import MedicalClassifier

ZOO_VARIABLE = "ART_MEDICAL_ZOO"


_REGISTERED: dict[str, Path] = {}
"""Models that this process registered: the one state of the package, as in any registry."""


def list_models(pattern: str = "*", *, task: str | None = None, modality: str | None = None) -> list[str]:
    """Names of registered models that match a shell pattern, sorted.

    :param pattern: For instance ``cxr-*``.
    :param task: Only models whose task (``binary: normal / pneumonia``) contains this text, in any case.
    :param modality: Only models whose modality contains this text, in any case.
    """
    names = sorted(name for name in _all_models() if fnmatch(name, pattern))
    if task is None and modality is None:
        return names
    cards = {name: find_card(name)[0] for name in names}
    return [n for n in names if _holds(task_of(cards[n]), task) and _holds(cards[n].input.modality, modality)]


def register_model(path: str | Path) -> tuple[str, ...]:
    """Make the model in a folder, or every model in a folder of them, known by name until the process ends.

    Packages that bring models declare an entry point instead (:mod:`art_medical.zoo.plugins`).

    :param path: A folder with a ``card.json``, or a folder of such folders.
    :return: The names.
    :raises ModelError: If there is no valid model, or another one has its name; then none is registered.
    """
    found = models_in(Path(path))
    taken = _own_and_registered()
    for name, folder in found.items():
        if name in taken and taken[name].resolve() != folder.resolve():
            raise ModelError(
                f"{folder} cannot be registered: {taken[name]} is the model {name!r} already; "
                "give the model another name in its card.json"
            )
    _REGISTERED.update(found)
    return tuple(sorted(found))


def find_card(ref: str | Path) -> tuple[Card, tuple[Path, ...]]:
    """Card of a model and the folders in which its weights may lie, best first.

    A registered name wins over a folder of that name in the current directory, which is ``./name``.

    :param ref: A registered name, or the path of a folder with a ``card.json``.
    :raises ModelError: If there is no such model or its card is not valid.
    """
    name = ref if isinstance(ref, str) and _is_name(ref) else None
    place = _find_folder(name) if name is not None else None
    if name is not None and place is not None:
        card = read_card(place)
        if card.name != name:
            raise ModelError(f"{place / 'card.json'} names the model {card.name!r}, its folder {name!r}")
        return card, (place, *(root / name for root in _weight_roots()))
    folder = Path(ref)
    if ref != "" and _has_card(folder):
        return read_card(folder), (folder,)
    known = ", ".join(list_models()) or "none"
    raise ModelError(
        f"unknown model {str(ref)[:200]!r}: neither a folder with a card.json nor a registered model ({known})"
    )


def find_weights(card: Card, folders: tuple[Path, ...]) -> Path:
    """The first weights file of a model that exists.

    :raises ModelError: If there is none, or a link on the way to it.
    """
    candidates = [below(folder, card.weights) for folder in folders]
    for path in candidates:
        if path.is_file():
            return path
    raise ModelError(
        f"the weights of {card.name} are not installed; put {card.weights} into a folder {card.name}/ and "
        f"name its parent in the environment variable {ZOO_VARIABLE}"
    )


def load(
    ref: str | Path,
    *,
    device: str = "cpu",
    cache_dir: str | Path | None = None,
    endpoint: str | None = None,
    offline: bool | None = None,
    allow_unpinned: bool = False,
) -> MedicalClassifier:
    """Load a classifier as an ART estimator.

    Nothing that a model folder or repository holds is executed: the network comes from an allow-list, the weights are
    read once, their sha256 is checked before a byte is parsed, and they are loaded strictly.

    :param ref: A registered name such as ``cxr-pneumonia``, a folder with a ``card.json``, or
        ``hf://owner/repo@<full commit id>``. A registered model whose weights are not on this machine is fetched if its
        card says where they are published.
    :param device: ``cpu``, ``gpu`` or a torch device such as ``cuda:1``.
    :param cache_dir: Cache of the Hub's client; ``None`` for its default.
    :param endpoint: The Hub; ``None`` for the client's default.
    :param offline: Send no request; ``None`` for what ``HF_HUB_OFFLINE`` says.
    :param allow_unpinned: Take a branch or tag for a commit, and weights whose hash the card leaves open.
    :return: The estimator, in evaluation mode.
    :raises ModelError: If the model is unknown, or its card or weights are not what they should be; of its subclasses
        :class:`~art_medical.errors.HubError` if something cannot be fetched,
        :class:`~art_medical.errors.IntegrityError` if a file is not the one that was promised and
        :class:`~art_medical.errors.UnpinnedError` if nothing was promised.
    :raises InputError: If torch knows no such device.
    """
    card, path, entry, fetched = _find(ref, cache_dir, endpoint, offline, allow_unpinned)
    # The heavy imports come after everything that can be refused without them.
    from art_medical.estimators.classifier import MedicalClassifier
    from art_medical.estimators.devices import torch_device
    from art_medical.zoo.networks import build
    from art_medical.zoo.weights import check_parameter_count, load_weights, read_weights

    torch_device(device)
    try:
        tensors = read_weights(
            path,
            sha256=entry.sha256,
            size=entry.size,
            format=card.format,
            wrapper=card.wrapper,
            allow_unpinned=allow_unpinned,
        )
    except IntegrityError as error:
        if not fetched:
            raise
        raise IntegrityError(f"{error}; `art-medical zoo fetch {ref} --force` fetches it again") from error
    network = build(card.architecture.target, card.architecture.args)
    check_parameter_count(network, card)
    load_weights(network, tensors, str(path), card.key_prefix)
    network.eval()
    return MedicalClassifier(
        network,
        domain=card.input.domain,
        head=card.head,
        input_shape=card.input.shape,
        steps=card.input.steps,
        attackable_channels=card.input.attackable_channels,
        device_type=device,
    )


def _find(
    ref: str | Path,
    cache_dir: str | Path | None,
    endpoint: str | None,
    offline: bool | None,
    allow_unpinned: bool,
) -> tuple[Card, Path, WeightFile, bool]:
    """Card, weights file, what the file must be, and whether it is in the cache of the Hub's client."""
    source: Card | str
    if isinstance(ref, str) and is_hub_ref(ref):
        source = ref
    else:
        card, folders = find_card(ref)
        if card.hub is None or any((folder / card.weights).is_file() for folder in folders):
            return card, find_weights(card, folders), card.files[card.weights], False
        source = card
    from art_medical.zoo.hub import locate

    found = locate(source, endpoint=endpoint, cache_dir=cache_dir, offline=offline, allow_unpinned=allow_unpinned)
    name = found.card.weights
    return found.card, found.files[name], found.expected[name], True


def _find_folder(name: str) -> Path | None:
    """Folder of a registered model; plug-ins are imported only for a name that nobody before them has."""
    for root in _roots():
        if _has_card(root / name):
            return root / name
    return _REGISTERED.get(name) or plugin_models(_own_and_registered()).get(name)


def _own_and_registered() -> dict[str, Path]:
    """Folder of each model by name, without those of plug-ins: the package's own, the user's, then registered ones."""
    folders = {folder.name: folder for root in reversed(_roots()) for folder in _model_folders(root)}
    return {**_REGISTERED, **folders}


def _all_models() -> dict[str, Path]:
    """Folder of each model by name; nothing replaces a model that comes before it."""
    known = _own_and_registered()
    return {**plugin_models(known), **known}


def _roots() -> list[Path]:
    """Folders whose cards are trusted: the package's own, then the user's."""
    return [_own_zoo(), *([Path(os.environ[ZOO_VARIABLE])] if os.environ.get(ZOO_VARIABLE) else [])]


def _weight_roots() -> list[Path]:
    """Folders in which the weights of registered models may lie besides; their hash is in the card."""
    return [*_roots(), Path("zoo")]


def _own_zoo() -> Path:
    """``zoo/`` as installed with the package, or of the checkout when the package runs from there."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_zoo"
    return installed if installed.is_dir() else package.parent / "zoo"


def _model_folders(root: Path) -> Iterator[Path]:
    try:
        folders = list(root.iterdir()) if root.is_dir() else []
    except OSError as error:
        raise ModelError(f"cannot read the model folders in {root}: {error.strerror}") from error
    yield from (folder for folder in folders if _has_card(folder))


def _has_card(folder: Path) -> bool:
    try:
        return (folder / "card.json").is_file()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False


def _holds(text: str, part: str | None) -> bool:
    return part is None or part.lower() in text.lower()


def _is_name(ref: str) -> bool:
    return ref not in ("", ".", "..") and "/" not in ref and "\\" not in ref
