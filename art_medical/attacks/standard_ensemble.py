# SPDX-License-Identifier: Apache-2.0
"""One set of attacks without parameters to tune, for every head; not the published AutoAttack.

AutoAttack (Croce and Hein 2020, arXiv 2003.01690) needs four classes: its DLR loss compares with the third-largest
logit, its targeted variants with the fourth. Medical classifiers have one logit, two classes or independent labels.
This ensemble puts in place of the parts that are not defined there what has the same purpose and always is: the margin
for DLR and for the targeted APGD, FMN for the targeted FAB. Call its figure by the name of the ensemble, never
"AutoAttack robust accuracy".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from art_medical.attacks.auto_projected_gradient_descent import AutoProjectedGradientDescent
from art_medical.attacks.base import StoredPixelAttack
from art_medical.attacks.facts import Facts
from art_medical.attacks.fast_minimum_norm import FastMinimumNorm
from art_medical.attacks.projected_gradient_descent import NORMS
from art_medical.attacks.square import Square
from art_medical.attacks.worst_case import Ensemble
from art_medical.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from art_medical.estimators.classifier import MedicalClassifier


class StandardEnsemble(Ensemble):
    """Per-sample worst case of APGD on cross-entropy, APGD on the margin, FMN and Square, in this order.

    An AutoAttack-equivalent for one-logit, two-class and multi-label models, and for more classes as well; not
    AutoAttack itself, see the module. ``record.winner`` is 0 to 3 in the order above.
    """

    facts = Facts(
        models="The strongest attacker of a fixed budget that this package knows without tuning anything.",
        bound="linf, l2",
        access="white",
        dimensions=(2, 3),
        paper="after Croce and Hein 2020, arXiv 2003.01690; not the published ensemble",
    )

    attack_params = [
        *StoredPixelAttack.attack_params,
        "norm",
        "eps",
        "max_iter",
        "max_queries",
        "nb_restarts",
        "confidence",
    ]

    def __init__(
        self,
        estimator: MedicalClassifier,
        norm: int | float | str = np.inf,
        eps: float | NDArray[Any] = 2.0,
        max_iter: int = 100,
        max_queries: int = 5000,
        targeted: bool = False,
        nb_restarts: int = 1,
        batch_size: int = 32,
        confidence: float = 0.0,
        quantise: bool = True,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param estimator: The classifier to attack.
        :param norm: ``np.inf`` (or ``"inf"``) or 2.
        :param eps: Budget in the unit of the stored pixel, one number or one for each sample.
        :param max_iter: Steps of both APGDs and of FMN in each start.
        :param max_queries: Queries of Square.
        :param targeted: Whether ``y`` is the label to reach.
        :param nb_restarts: Starts of each attack.
        :param batch_size: Images in one pass. Attacks late in the sequence have few samples of each batch left: take a
            larger one than for a single attack.
        :param confidence: As in :class:`~art_medical.attacks.worst_case.WorstCase`; FMN, which looks for the boundary,
            does without where it is infinite.
        :param quantise: Return images that the file can hold.
        :param seed: Seeds the attacks, together with the ids of the samples.
        :param verbose: Show a progress bar over batches.
        """
        super().__init__(
            estimator,
            targeted=targeted,
            quantise=quantise,
            batch_size=batch_size,
            seed=seed,
            verbose=verbose,
        )
        self.norm = norm
        self.eps = eps
        self.max_iter = max_iter
        self.max_queries = max_queries
        self.nb_restarts = nb_restarts
        self.confidence = confidence
        self._check_params()

    def members(self) -> tuple[StoredPixelAttack, ...]:
        common: dict[str, Any] = {
            name: getattr(self, name) for name in ("norm", "eps", "targeted", "batch_size", "quantise", "seed")
        }
        starts, patience = self.nb_restarts, self.confidence
        apgd = {**common, "max_iter": self.max_iter, "num_random_init": starts, "confidence": patience}
        finite = patience if np.isfinite(patience) else 0.0
        return (
            AutoProjectedGradientDescent(self.estimator, loss_type="cross_entropy", **apgd),
            AutoProjectedGradientDescent(self.estimator, loss_type="margin", **apgd),
            FastMinimumNorm(self.estimator, max_iter=self.max_iter, nb_restarts=starts, confidence=finite, **common),
            Square(self.estimator, max_iter=self.max_queries, nb_restarts=starts, confidence=patience, **common),
        )

    def _check_params(self) -> None:
        super()._check_params()
        if isinstance(self.norm, bool) or NORMS.get(self.norm) not in ("linf", "l2"):
            raise InputError(f"norm must be np.inf or 2, got {self.norm!r}")
        if not isinstance(self.max_queries, int) or self.max_queries < 1:
            raise InputError(f"max_queries must be a positive whole number, got {self.max_queries!r}")
        self.members()  # each checks what it gets
