# SPDX-License-Identifier: Apache-2.0
"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083) in the domain of stored pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from art_medical.attacks.base import Batch, StoredPixelAttack
from art_medical.attacks.facts import Facts
from art_medical.attacks.loop import Found, search
from art_medical.attacks.noise import Noise
from art_medical.attacks.objectives import CrossEntropy, Margin, Objective
from art_medical.attacks.optimisers import STEEPEST
from art_medical.attacks.perturbations import additive
from art_medical.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from art_medical.estimators.classifier import MedicalClassifier

OBJECTIVES: dict[str, type[Objective]] = {"cross_entropy": CrossEntropy, "margin": Margin}
_NORMS: dict[Any, str] = {np.inf: "linf", "inf": "linf", 2: "l2"}


class ProjectedGradientDescent(StoredPixelAttack):
    """Steepest-descent steps in the L-infinity or L-2 norm, each followed by projection on ball, domain and mask.

    Keeps the best image of each sample, lets samples leave that are done, and rounds straight-through: the image that
    is scored at every step is one that a file can hold.
    """

    facts = Facts(
        models="Whoever can change pixels between modality and model, and knows the weights.",
        bound="linf, l2",
        access="white",
        dimensions=(2, 3),
        paper="Madry et al. 2018, arXiv 1706.06083",
    )

    attack_params = [
        *StoredPixelAttack.attack_params,
        "norm",
        "eps",
        "eps_step",
        "max_iter",
        "num_random_init",
        "loss_type",
        "confidence",
    ]

    def __init__(
        self,
        estimator: MedicalClassifier,
        norm: int | float | str = np.inf,
        eps: float | NDArray[Any] = 2.0,
        eps_step: float | NDArray[Any] | None = None,
        max_iter: int = 20,
        targeted: bool = False,
        num_random_init: int = 0,
        batch_size: int = 32,
        loss_type: str = "cross_entropy",
        confidence: float = 0.0,
        quantise: bool = True,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param estimator: The classifier to attack.
        :param norm: ``np.inf`` (or ``"inf"``) or 2.
        :param eps: Budget in the unit of the stored pixel, one number or one for each sample. With ``quantise`` the
            L-infinity budget is rounded down to whole steps of the storage grid.
        :param eps_step: Length of one step in the same unit; by default ``2.5 * eps / max_iter`` as in the paper's
            code.
        :param max_iter: Steps in each start.
        :param targeted: Whether ``y`` is the label to reach.
        :param num_random_init: Random starts inside the ball; 0 starts once, at the clean image.
        :param batch_size: Images in one pass.
        :param loss_type: ``cross_entropy`` or ``margin``.
        :param confidence: A sample is done, and left alone, when its decision is wrong by this margin in logits; 0
            stops at the first flip, infinity spends all steps on every sample (needed for a worst-case AUROC).
        :param quantise: Return images that the file can hold.
        :param seed: Seeds the random starts, together with the ids of the samples.
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
        self.eps_step = eps_step
        self.max_iter = max_iter
        self.num_random_init = num_random_init
        self.loss_type = loss_type
        self.confidence = confidence
        self._check_params()

    def _attack(self, batch: Batch) -> Found:
        norm = _NORMS[self.norm]
        eps = batch.per_sample("eps", self.eps)
        eps_step = 2.5 * eps / max(self.max_iter, 1)
        if self.eps_step is not None:
            eps_step = batch.per_sample("eps_step", self.eps_step)
        found = Found.nothing_yet(batch.x)
        for restart in range(max(1, self.num_random_init)):
            search(
                self.scores,
                additive(norm, batch.x, eps, self.domain, self.quantise, batch.mask),
                OBJECTIVES[self.loss_type](self.targeted),
                STEEPEST[norm](eps_step),
                batch.y,
                found,
                max_iter=self.max_iter,
                confidence=self.confidence,
                noise=Noise(self.seed, batch.ids, f"restart-{restart}") if self.num_random_init else None,
            )
        return found

    def _check_params(self) -> None:
        super()._check_params()
        if self.norm not in _NORMS:
            raise InputError(f"norm must be np.inf or 2, got {self.norm!r}")
        for name in ("eps", "eps_step"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) & (np.asarray(value) > 0)).all():
                raise InputError(f"{name} must be positive, in {self.domain.unit}s, got {value!r}")
        for name in ("max_iter", "num_random_init"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise InputError(f"{name} must be a whole number of 0 or more, got {value!r}")
        if self.loss_type not in OBJECTIVES:
            raise InputError(f"loss_type must be one of {', '.join(OBJECTIVES)}, got {self.loss_type!r}")
        if not self.confidence >= 0:
            raise InputError(f"confidence is a margin in logits of 0 or more, got {self.confidence!r}")
