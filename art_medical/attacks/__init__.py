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
    from art_medical.attacks.adversarial_bias_field import AdversarialBiasField
    from art_medical.attacks.adversarial_exposure import AdversarialExposure
    from art_medical.attacks.auto_projected_gradient_descent import AutoProjectedGradientDescent
    from art_medical.attacks.base import StoredPixelAttack
    from art_medical.attacks.ct_noise import CTNoise
    from art_medical.attacks.fast_minimum_norm import FastMinimumNorm
    from art_medical.attacks.few_pixel import FewPixel
    from art_medical.attacks.frequency_attack import FrequencyAttack
    from art_medical.attacks.hierarchical_feature_constraint import HierarchicalFeatureConstraint
    from art_medical.attacks.label_burn_in import LabelBurnIn
    from art_medical.attacks.patch import AdversarialPatch, NaturalPatch
    from art_medical.attacks.patient_motion import PatientMotion
    from art_medical.attacks.projected_gradient_descent import ProjectedGradientDescent
    from art_medical.attacks.random_noise import RandomNoise
    from art_medical.attacks.spatial_deformation import SpatialDeformation
    from art_medical.attacks.square import Square
    from art_medical.attacks.stabilized_medical_image_attack import StabilizedMedicalImageAttack
    from art_medical.attacks.standard_ensemble import StandardEnsemble
    from art_medical.attacks.universal_perturbation import UniversalPerturbation
    from art_medical.attacks.watermark_attack import WatermarkAttack
    from art_medical.attacks.worst_case import WorstCase

CATALOGUE: dict[str, tuple[str, str]] = {
    "pgd": ("projected_gradient_descent", "ProjectedGradientDescent"),
    "apgd": ("auto_projected_gradient_descent", "AutoProjectedGradientDescent"),
    "fmn": ("fast_minimum_norm", "FastMinimumNorm"),
    "square": ("square", "Square"),
    "standard": ("standard_ensemble", "StandardEnsemble"),
    "noise": ("random_noise", "RandomNoise"),
    "patch": ("patch", "AdversarialPatch"),
    "natural-patch": ("patch", "NaturalPatch"),
    "few-pixel": ("few_pixel", "FewPixel"),
    "frequency": ("frequency_attack", "FrequencyAttack"),
    "watermark": ("watermark_attack", "WatermarkAttack"),
    "deformation": ("spatial_deformation", "SpatialDeformation"),
    "motion": ("patient_motion", "PatientMotion"),
    "ct-noise": ("ct_noise", "CTNoise"),
    "label": ("label_burn_in", "LabelBurnIn"),
    "bias-field": ("adversarial_bias_field", "AdversarialBiasField"),
    "exposure": ("adversarial_exposure", "AdversarialExposure"),
    "hfc": ("hierarchical_feature_constraint", "HierarchicalFeatureConstraint"),
    "smia": ("stabilized_medical_image_attack", "StabilizedMedicalImageAttack"),
    "universal": ("universal_perturbation", "UniversalPerturbation"),
}
"""Short name to module and class."""

_MADE_OF_ATTACKS = {"WorstCase": "worst_case"}
"""Class to module: what takes attacks instead of an estimator, and so has no short name."""

__all__ = [
    "CATALOGUE",
    "AdversarialBiasField",
    "AdversarialExposure",
    "AdversarialPatch",
    "AutoProjectedGradientDescent",
    "CTNoise",
    "FastMinimumNorm",
    "FewPixel",
    "FrequencyAttack",
    "HierarchicalFeatureConstraint",
    "LabelBurnIn",
    "NaturalPatch",
    "PatientMotion",
    "ProjectedGradientDescent",
    "RandomNoise",
    "SpatialDeformation",
    "Square",
    "StabilizedMedicalImageAttack",
    "StandardEnsemble",
    "UniversalPerturbation",
    "WatermarkAttack",
    "WorstCase",
    "attack_class",
]


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
    if name in _MADE_OF_ATTACKS:
        return getattr(import_module(f"{__name__}.{_MADE_OF_ATTACKS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
