# SPDX-License-Identifier: Apache-2.0
"""The models of a study, each with everything that names it in a record."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from art_medical.errors import ModelError
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.evaluation.cells import canonical
from art_medical.evaluation.study import Study
from art_medical.zoo.cards import Card
from art_medical.zoo.registry import find_card, load


@dataclass(frozen=True)
class Subject:
    """A model with everything that names it in a record."""

    ref: str
    card: Card
    estimator: MedicalClassifier

    @property
    def hashes(self) -> dict[str, Any]:
        """What decides its numbers: weights, and the parts of the card that are executed."""
        executed = self.card.model_dump(mode="json", include={"architecture", "input", "head"})
        return {
            "name": self.card.name,
            "weights": self.card.files[self.card.weights].sha256,
            "definition": hashlib.sha256(canonical(executed).encode()).hexdigest(),
        }

    def check_surrogate(self, surrogate: Subject) -> None:
        """Refuse a surrogate whose images or labels are not those of this model.

        :raises ModelError: If it is so.
        """
        ours, theirs = self.estimator, surrogate.estimator
        if (ours.domain, ours.input_shape, ours.nb_classes) != (theirs.domain, theirs.input_shape, theirs.nb_classes):
            raise ModelError(
                f"{surrogate.ref} takes other images or labels than {self.ref} and cannot be its surrogate"
            )


def load_subjects(study: Study, device: str) -> dict[str, Subject]:
    """Every model that a study names, evaluated or surrogate, by reference.

    :raises ModelError: If one is unknown or not what its card claims.
    """
    surrogates = [threat.surrogate_of(model) for threat in study.threat_models.values() for model in study.models]
    refs = dict.fromkeys([*study.models, *(ref for ref in surrogates if ref is not None)])
    return {ref: Subject(ref, find_card(ref)[0], load(ref, device=device)) for ref in refs}
