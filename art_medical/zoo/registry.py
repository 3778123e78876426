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

from art_medical.errors import InputError, ModelError
from art_medical.zoo.cards import Card, read_card

if TYPE_CHECKING:
    from art_medical.estimators.classifier import MedicalClassifier

ZOO_VARIABLE = "ART_MEDICAL_ZOO"


def list_models(pattern: str = "*") -> list[str]:
    """Names of registered models that match a shell pattern, sorted.

    :param pattern: For instance ``cxr-*``.
    """
    names = {folder.name for root in _roots() for folder in _model_folders(root)}
    return sorted(name for name in names if fnmatch(name, pattern))


def find_card(ref: str | Path) -> tuple[Card, tuple[Path, ...]]:
    """Card of a model and the folders in which its weights may lie, best first.

    A registered name wins over a folder of that name in the current directory, which is ``./name``.

    :param ref: A registered name, or the path of a folder with a ``card.json``.
    :raises ModelError: If there is no such model or its card is not valid.
    """
    name = ref if isinstance(ref, str) and _is_name(ref) else None
    places = [root / name for root in _roots() if _has_card(root / name)] if name is not None else []
    if name is not None and places:
        card = read_card(places[0])
        if card.name != name:
            raise ModelError(f"{places[0] / 'card.json'} names the model {card.name!r}, its folder {name!r}")
        return card, (places[0], *(root / name for root in _weight_roots()))
    folder = Path(ref)
    if ref != "" and _has_card(folder):
        return read_card(folder), (folder,)
    known = ", ".join(list_models()) or "none"
    raise ModelError(
        f"unknown model {str(ref)[:200]!r}: neither a folder with a card.json nor a registered model ({known})"
    )


def find_weights(card: Card, folders: tuple[Path, ...]) -> Path:
    """The first weights file of a model that exists.

    :raises ModelError: If there is none.
    """
    candidates = [folder / card.weights for folder in folders]
    for path in candidates:
        if path.is_file():
            return path
    raise ModelError(
        f"the weights of {card.name} are not installed; put {card.weights} into a folder {card.name}/ and "
        f"name its parent in the environment variable {ZOO_VARIABLE}"
    )


def load(ref: str | Path, *, device: str = "cpu") -> MedicalClassifier:
    """Load a classifier as an ART estimator.

    Nothing that a model folder holds is executed: the network comes from an allow-list, weights are safetensors whose
    sha256 is checked before a byte is parsed, and they are loaded strictly.

    :param ref: A registered name such as ``cxr-pneumonia``, or a folder with a ``card.json``.
    :param device: ``cpu``, ``gpu`` or a torch device such as ``cuda:1``.
    :return: The estimator, in evaluation mode.
    :raises ModelError: If the model is unknown, or its card or weights are not what they should be.
    :raises InputError: If torch knows no such device.
    """
    card, folders = find_card(ref)
    path = find_weights(card, folders)
    # The heavy imports come after everything that can be refused without them.
    from art_medical.estimators.classifier import MedicalClassifier
    from art_medical.zoo.networks import build
    from art_medical.zoo.weights import check_parameter_count, load_weights, read_weights

    _check_device(device)
    entry = card.files[card.weights]
    tensors = read_weights(path, sha256=entry.sha256, size=entry.size)
    network = build(card.architecture.target, card.architecture.args)
    check_parameter_count(network, card)
    load_weights(network, tensors, str(path))
    network.eval()
    return MedicalClassifier(
        network,
        domain=card.input.domain,
        head=card.head,
        input_shape=card.input.shape,
        steps=card.input.steps,
        device_type=device,
    )


def _check_device(device: str) -> None:
    """ART takes whatever is not ``cpu`` for a graphics card, and the processor where there is none."""
    import torch

    try:
        torch.device("cuda" if device == "gpu" else device)
    except RuntimeError as error:
        raise InputError(f"unknown device {device!r}; use cpu, gpu or a torch device such as cuda:1") from error


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


def _is_name(ref: str) -> bool:
    return ref not in ("", ".", "..") and "/" not in ref and "\\" not in ref
