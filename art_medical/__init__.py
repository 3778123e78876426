# SPDX-License-Identifier: Apache-2.0
"""Adversarial robustness of medical image classifiers, as an extension of ART.

>>> import art_medical
>>> art_medical.list_models("phantom-*")
['phantom-hotelling', 'phantom-nodule']

Importing the package is cheap; torch, MONAI and ART are imported when a name is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from art_medical.domain import PixelDomain
    from art_medical.errors import ArtMedicalError
    from art_medical.estimators.classifier import MedicalClassifier
    from art_medical.zoo.registry import list_models, load, register_model

__version__ = "0.1.0"

_HOMES = {
    "ArtMedicalError": "art_medical.errors",
    "MedicalClassifier": "art_medical.estimators.classifier",
    "PixelDomain": "art_medical.domain",
    "list_models": "art_medical.zoo.registry",
    "load": "art_medical.zoo.registry",
    "register_model": "art_medical.zoo.registry",
}

__all__ = [
    "ArtMedicalError",
    "MedicalClassifier",
    "PixelDomain",
    "__version__",
    "list_models",
    "load",
    "register_model",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
