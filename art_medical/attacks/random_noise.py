# SPDX-License-Identifier: Apache-2.0
"""Random noise of the same norm: the control that every attack must beat (Carlini et al. 2019, arXiv 1902.06705)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from art_medical.attacks.facts import Facts
from art_medical.attacks.projected_gradient_descent import ProjectedGradientDescent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from art_medical.estimators.classifier import MedicalClassifier


class RandomNoise(ProjectedGradientDescent):
    """The best of several random draws, without a single gradient.

    Uniform in the ball for L-infinity, L-2 and L-1; for L-0, random pixels with values uniform in the domain. What a
    draw from the L-1 ball gives to a pixel is mostly below one storage step, so its stored form is the draw's largest
    values.
    """

    facts = Facts(
        models="No attacker at all: what a change of this size does by chance.",
        bound="linf, l2, l1, l0",
        access="score",
        dimensions=(2, 3),
        paper="Carlini et al. 2019, arXiv 1902.06705",
    )

    def __init__(
        self,
        estimator: MedicalClassifier,
        norm: int | float | str = np.inf,
        eps: float | NDArray[Any] = 2.0,
        num_random_init: int = 1,
        batch_size: int = 32,
        targeted: bool = False,
        confidence: float = 0.0,
        quantise: bool = True,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param estimator: The classifier to attack.
        :param norm: ``np.inf`` (or ``"inf"``), 2, 1 or 0.
        :param eps: Budget as in :class:`~art_medical.attacks.projected_gradient_descent.ProjectedGradientDescent`.
        :param num_random_init: Draws for each image; the one that serves the attacker best is returned.
        :param batch_size: Images in one pass.
        :param targeted: Whether ``y`` is the label to reach.
        :param confidence: As in the attack.
        :param quantise: Return images that the file can hold.
        :param seed: Seeds the draws, together with the ids of the samples.
        :param verbose: Show a progress bar over batches.
        """
        super().__init__(
            estimator,
            norm=norm,
            eps=eps,
            max_iter=0,
            num_random_init=num_random_init,
            batch_size=batch_size,
            targeted=targeted,
            confidence=confidence,
            quantise=quantise,
            seed=seed,
            verbose=verbose,
        )
