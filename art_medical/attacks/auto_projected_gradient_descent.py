# SPDX-License-Identifier: Apache-2.0
"""APGD (Croce and Hein 2020, arXiv 2003.01690; L-1: 2021, arXiv 2103.01208) in the domain of stored pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from art_medical.attacks.auto_steps import AutoSparseSteps, AutoSteps
from art_medical.attacks.base import Batch
from art_medical.attacks.facts import Facts
from art_medical.attacks.optimisers import Optimiser
from art_medical.attacks.projected_gradient_descent import ProjectedGradientDescent

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from art_medical.estimators.classifier import MedicalClassifier


class AutoProjectedGradientDescent(ProjectedGradientDescent):
    """PGD with momentum whose steps shrink when they stop paying, which go on from the best point then.

    No step size to tune: with the number of steps alone as its budget it is the usual first judge of a defence. Every
    step costs one forward and one backward pass.
    """

    facts = Facts(
        models="Whoever can change pixels between modality and model, knows the weights and takes time.",
        bound="linf, l2, l1",
        access="white",
        dimensions=(2, 3),
        paper="Croce and Hein 2020, arXiv 2003.01690",
    )

    NORMS: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    def __init__(
        self,
        estimator: MedicalClassifier,
        norm: int | float | str = np.inf,
        eps: float | NDArray[Any] = 2.0,
        eps_step: float | NDArray[Any] | None = None,
        max_iter: int = 100,
        targeted: bool = False,
        num_random_init: int = 1,
        batch_size: int = 32,
        loss_type: str = "cross_entropy",
        confidence: float = 0.0,
        quantise: bool = True,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param estimator: The classifier to attack.
        :param norm: ``np.inf`` (or ``"inf"``), 2 or 1.
        :param eps: Budget as in :class:`~art_medical.attacks.projected_gradient_descent.ProjectedGradientDescent`.
        :param eps_step: Length of the first step in the unit of the stored pixel; by default ``2 * eps``, for L-1
            ``eps``, as in the papers.
        :param max_iter: Steps in each start; they also set the checkpoints.
        :param targeted: Whether ``y`` is the label to reach.
        :param num_random_init: Random starts inside the ball; 0 starts once, at the clean image.
        :param batch_size: Images in one pass.
        :param loss_type: ``cross_entropy``, ``margin``, or ``dlr`` (three exclusive classes, targeted four, or more).
        :param confidence: Margin in logits at which a sample is done, as in PGD.
        :param quantise: Return images that the file can hold.
        :param seed: Seeds the random starts, together with the ids of the samples.
        :param verbose: Show a progress bar over batches.
        """
        super().__init__(
            estimator,
            norm=norm,
            eps=eps,
            eps_step=eps_step,
            max_iter=max_iter,
            targeted=targeted,
            num_random_init=num_random_init,
            batch_size=batch_size,
            loss_type=loss_type,
            confidence=confidence,
            quantise=quantise,
            seed=seed,
            verbose=verbose,
        )

    def _optimiser(self, norm: str, batch: Batch, eps: Tensor) -> Optimiser:
        given = None if self.eps_step is None else batch.per_sample("eps_step", self.eps_step)
        if norm == "l1":
            return AutoSparseSteps(eps if given is None else given, batch.x, self.max_iter)
        return AutoSteps(2 * eps if given is None else given, norm, self.max_iter)
