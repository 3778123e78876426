# SPDX-License-Identifier: Apache-2.0
"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083) in the domain of stored pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from art_medical.attacks.base import Batch, StoredPixelAttack
from art_medical.attacks.facts import Facts
from art_medical.attacks.loop import Found, search
from art_medical.attacks.noise import Noise
from art_medical.attacks.objectives import CrossEntropy, DifferenceOfLogitsRatio, Margin, Objective
from art_medical.attacks.optimisers import STEEPEST, Optimiser, PixelSteps, SparseSteps
from art_medical.attacks.perturbations import additive
from art_medical.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from art_medical.estimators.classifier import MedicalClassifier

OBJECTIVES: dict[str, type[Objective]] = {
    "cross_entropy": CrossEntropy,
    "margin": Margin,
    "dlr": DifferenceOfLogitsRatio,
}
"""Losses by the name of the parameter ``loss_type``."""

NORMS: dict[Any, str] = {np.inf: "linf", "inf": "linf", 2: "l2", 1: "l1", 0: "l0"}
"""Our name of a norm for each value of the parameter ``norm``."""


FIRST, LAST = 1000.0, 0.04
"""Lengths of the default L-0 steps as multiples of the range of the domain. The first one picks the best pixels of the
linear model; the last is that of Croce and Hein (2019), 30,000 grey levels over the 3072 values of their images."""


class ProjectedGradientDescent(StoredPixelAttack):
    """Gradient steps, each followed by the exact projection on the intersection of ball, domain and mask.

    The steps are steepest descent in the L-infinity and the L-2 norm. In L-1 they are sparse (Tramer and Boneh 2019,
    arXiv 1904.13000) with the projection of Croce and Hein (2021, arXiv 2103.01208), in L-0 they follow PGD0 of Croce
    and Hein (2019, arXiv 1909.05040). L-0 counts spatial positions: all channels of a pixel are one change.

    Keeps the best image of each sample, lets samples leave that are done, and rounds straight-through: the image that
    is scored at every step is one that a file can hold.
    """

    NORMS: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0")

    facts = Facts(
        models="Whoever can change pixels between modality and model, and knows the weights.",
        bound="linf, l2, l1, l0",
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
        :param norm: ``np.inf`` (or ``"inf"``), 2, 1 or 0.
        :param eps: Budget, one number or one for each sample: in the unit of the stored pixel, for L-0 the number of
            pixels. With ``quantise`` L-infinity and L-1 budgets are rounded down to whole steps of the storage grid.
        :param eps_step: Length of one step in the norm, in the unit of the stored pixel; by default ``2.5 * eps /
            max_iter`` as in the paper's code. For L-0 the mean length over the values of an image, which by default
            falls from 1000 times the range of the domain to 0.04 times, the figure of its paper.
        :param max_iter: Steps in each start.
        :param targeted: Whether ``y`` is the label to reach.
        :param num_random_init: Random starts inside the ball; 0 starts once, at the clean image.
        :param batch_size: Images in one pass.
        :param loss_type: ``cross_entropy``, ``margin``, or ``dlr`` (three exclusive classes, targeted four, or more).
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
        norm = NORMS[self.norm]
        eps = batch.per_sample("eps", self.eps)
        found = Found.nothing_yet(batch.x)
        for restart in range(max(1, self.num_random_init)):
            search(
                self.scores,
                additive(norm, batch.x, eps, self.domain, self.quantise, batch.mask),
                OBJECTIVES[self.loss_type](self.targeted),
                self._optimiser(norm, batch, eps),
                batch.y,
                found,
                max_iter=self.max_iter,
                confidence=self.confidence,
                noise=Noise(self.seed, batch.ids, f"restart-{restart}") if self.num_random_init else None,
            )
        return found

    def _optimiser(self, norm: str, batch: Batch, eps: Tensor) -> Optimiser:
        """A fresh optimiser for one start."""
        steps = max(self.max_iter, 1)
        given = None if self.eps_step is None else batch.per_sample("eps_step", self.eps_step)
        if norm == "l0":
            if given is not None:
                return PixelSteps(given, narrowing=1.0)
            return PixelSteps(torch.full_like(eps, FIRST * self.domain.span), (LAST / FIRST) ** (1 / steps))
        eps_step = 2.5 * eps / steps if given is None else given
        if norm == "l1":
            # From 5 % of the values to one after 60 % of the steps; the rest moves what others hold to the best one.
            widest = max(1.0, batch.x[0].numel() / 20)
            return SparseSteps(eps_step, widest, narrowing=(1 / widest) ** (1 / (0.6 * steps)))
        return STEEPEST[norm](eps_step)

    def _check_params(self) -> None:
        super()._check_params()
        offered = [value for value, name in NORMS.items() if name in self.NORMS and not isinstance(value, str)]
        if isinstance(self.norm, bool) or NORMS.get(self.norm) not in self.NORMS:
            raise InputError(f"norm must be {_either(offered)}, got {self.norm!r}")
        for name in ("eps", "eps_step"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) & (np.asarray(value) > 0)).all():
                unit = "pixels" if name == "eps" and self.norm == 0 else f"{self.domain.unit}s"
                raise InputError(f"{name} must be positive, in {unit}, got {value!r}")
        for name in ("max_iter", "num_random_init"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise InputError(f"{name} must be a whole number of 0 or more, got {value!r}")
        if self.loss_type not in OBJECTIVES:
            raise InputError(f"loss_type must be one of {', '.join(OBJECTIVES)}, got {self.loss_type!r}")
        if self.loss_type == "dlr":
            self._check_dlr()
        if not self.confidence >= 0:
            raise InputError(f"confidence is a margin in logits of 0 or more, got {self.confidence!r}")

    def _check_dlr(self) -> None:
        """DLR divides by the distance of the third (targeted: and fourth) largest of exclusive scores."""
        head, needed = self.estimator.head, DifferenceOfLogitsRatio.classes(self.targeted)
        if head.kind != "softmax" or head.nb_classes < needed:
            raise InputError(
                f"loss_type 'dlr' needs {needed} exclusive classes{' when targeted' * self.targeted}, the model's "
                f"{head.kind} head has {head.describe()}; use loss_type='margin'"
            )


def _either(values: list[Any]) -> str:
    *others, last = ["np.inf" if value == np.inf else str(value) for value in values]
    return f"{', '.join(others)} or {last}"
