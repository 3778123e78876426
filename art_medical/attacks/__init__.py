# SPDX-License-Identifier: Apache-2.0
"""Attacks on stored pixels, each an ART ``EvasionAttack``.

The one list of attacks is :data:`CATALOGUE`: the command line, study files and the contract tests read it. The classes
are imported when they are asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from art_medical.errors import InputError

if TYPE_CHECKING:
    from art_medical.attacks.base import StoredPixelAttack
    from art_medical.attacks.patch import AdversarialPatch, NaturalPatch
    from art_medical.attacks.projected_gradient_descent import ProjectedGradientDescent
    from art_medical.attacks.random_noise import RandomNoise

CATALOGUE: dict[str, tuple[str, str]] = {
    "pgd": ("projected_gradient_descent", "ProjectedGradientDescent"),
    "noise": ("random_noise", "RandomNoise"),
    "patch": ("patch", "AdversarialPatch"),
    "natural-patch": ("patch", "NaturalPatch"),
}
"""Short name to module and class."""

__all__ = ["CATALOGUE", "AdversarialPatch", "NaturalPatch", "ProjectedGradientDescent", "RandomNoise", "attack_class"]


def attack_class(name: str) -> type[StoredPixelAttack]:
    """The class of a short name.

    :raises InputError: If there is no such attack.
    """
    if name not in CATALOGUE:
        raise InputError(f"unknown attack {name!r}; there are {', '.join(CATALOGUE)}")
    module, attribute = CATALOGUE[name]
    found: type[StoredPixelAttack] = getattr(import_module(f"{__name__}.{module}"), attribute)
    return found


def __getattr__(name: str) -> Any:
    for module, attribute in CATALOGUE.values():
        if attribute == name:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
