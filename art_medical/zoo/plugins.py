# SPDX-License-Identifier: Apache-2.0
"""Models of other packages: folders behind the entry points of the group ``art_medical.models``.

An entry point of that group names a path, several paths, or a function without arguments that returns either. Each
path is a model folder or a folder of model folders:

.. code-block:: ini

   [options.entry_points]
   art_medical.models =
       my-models = my_package:MODELS

with ``MODELS = Path(__file__).parent / "models"`` in ``my_package``. A plug-in is code that somebody installed with
pip, and is imported as such; the model folders that it names are read like any other and nothing in them is executed.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from art_medical.errors import ModelError, PluginWarning
from art_medical.zoo.cards import read_card

GROUP = "art_medical.models"


def models_in(path: Path) -> dict[str, Path]:
    """Folder of each model that a path holds, by the name on its card.

    :param path: A model folder, or a folder of model folders; what has no ``card.json`` is passed over.
    :raises ModelError: If there is no model, a card is not valid, or two models have one name.
    """
    try:
        single = (path / "card.json").is_file()
        folders = [path] if single else sorted(f for f in path.iterdir() if (f / "card.json").is_file())
    except OSError as error:
        raise ModelError(f"cannot read the model folders in {path}: {error.strerror}") from error
    if not folders:
        raise ModelError(f"there is no model in {path}: neither a card.json nor folders with one")
    found: dict[str, Path] = {}
    for folder in folders:
        name = read_card(folder).name
        if name in found:
            raise ModelError(f"{found[name]} and {folder} both name the model {name!r}")
        found[name] = folder.absolute()
    return found


def plugin_models(taken: Mapping[str, Path]) -> dict[str, Path]:
    """Folder of each model that installed packages bring, by name.

    A plug-in that fails, or a model whose name is taken, gives one :class:`~art_medical.errors.PluginWarning` and is
    left out; everything else is there. An equal card under a taken name is the same model and no reason to warn.

    :param taken: Models that no plug-in may replace.
    """
    found: dict[str, Path] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: (_owner(p), p.name)):
        try:
            models = _load(point)
        except Exception as error:  # others' code, which promises no type
            _warn(point, f"{type(error).__name__}: {error}; its models are left out")
            continue
        except SystemExit:
            _warn(point, "it ends the program when imported; its models are left out")
            continue
        for name, folder in models.items():
            other = taken.get(name) or found.get(name)
            if other is None:
                found[name] = folder
            elif not same_card(folder, other):
                _warn(point, f"its model {name!r} is left out because {other} has that name already")
    return found


def same_card(one: Path, other: Path) -> bool:
    """Whether two model folders hold the same card, however it is written."""
    try:
        return read_card(one) == read_card(other)
    except ModelError:
        return False


def _load(point: EntryPoint) -> dict[str, Path]:
    value: Any = point.load()
    if callable(value):
        value = value()
    paths = [value] if isinstance(value, str | os.PathLike) else value
    if not isinstance(paths, Iterable) or isinstance(paths, bytes):
        raise ModelError(f"expected a path, several, or a function that returns them, got {type(value).__name__}")
    found: dict[str, Path] = {}
    for path in paths:
        for name, folder in models_in(Path(path)).items():
            if found.setdefault(name, folder) != folder:
                raise ModelError(f"{found[name]} and {folder} both name the model {name!r}")
    return found


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else ""


def _warn(point: EntryPoint, reason: str) -> None:
    text = " ".join(f"plug-in {point.name!r} of the package {_owner(point) or 'unknown'!r}: {reason}".split())
    warnings.warn(text[:1000], PluginWarning, stacklevel=2)
