# SPDX-License-Identifier: Apache-2.0
"""Adversarial exposure (Cheng et al. 2020, arXiv 2009.09231), the multiplicative form.

The paper lights a fundus image locally stronger or weaker. It has no published code; this is its first variant, an
exposure map with a smoothness term. Its two variants that fuse brackets of exposures in a pyramid are not here.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from art_medical.attacks.adversarial_bias_field import Basis, FieldAttack
from art_medical.attacks.base import Batch
from art_medical.attacks.facts import Facts
from art_medical.attacks.loop import Found
from art_medical.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from art_medical.estimators.classifier import MedicalClassifier


def linear_axis(pixels: int, nodes: int) -> Tensor:
    """Linear interpolation between ``nodes`` points spread from the first to the last pixel, ``(pixels, nodes)``."""
    at = torch.linspace(0, nodes - 1, pixels, dtype=torch.float64) if pixels > 1 else torch.zeros(1).double()
    return (1 - (at[:, None] - torch.arange(nodes, dtype=torch.float64)).abs()).clamp(min=0)


def total_variation(e: Tensor) -> Tensor:
    """Sum over the axes of the mean absolute difference of neighbours: maps ``(n, *shape)`` to ``(n,)``."""
    total = e.new_zeros(len(e))
    for axis in range(1, e.ndim):
        if e.shape[axis] > 1:
            total = total + e.diff(dim=axis).abs().flatten(1).mean(1)
    return total


def _slope(e: Tensor, weight: float) -> Tensor:
    """Gradient of ``weight * TV(e)``, with ``e`` in stops, for a map in natural logarithms."""
    with torch.enable_grad():
        e = e.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(weight / math.log(2) * total_variation(e).sum(), e)
    return gradient


class AdversarialExposure(FieldAttack):
    """``min_e J(x') + beta TV(e)`` with ``x' = x_0 + 2^U(e) (x - x_0)`` and ``|e| <= stops``.

    ``J`` is the margin in logits and ``e`` a map of low resolution in stops (1 stop is a factor of 2), which ``U``
    interpolates linearly. With ``max_iter=0`` and ``num_random_init`` draws it is its own control.
    """

    facts = Facts(
        models="A camera or detector whose exposure is locally wrong: a flash, a shadow, a badly set automatic.",
        bound="piecewise linear field, largest exposure in stops",
        access="white",
        dimensions=(2, 3),
        paper="Cheng et al. 2020, arXiv 2009.09231",
    )

    attack_params = [*FieldAttack.attack_params, "stops", "nodes", "beta"]

    def __init__(
        self,
        estimator: MedicalClassifier,
        stops: float | NDArray[Any] = 0.5,
        nodes: int = 16,
        beta: float = 1.0,
        max_iter: int = 20,
        num_random_init: int = 0,
        confidence: float = 0.0,
        zero: float | None = None,
        batch_size: int = 32,
        targeted: bool = False,
        quantise: bool = True,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param estimator: The classifier to attack.
        :param stops: Largest ``|e|``, in stops above 0 up to 8, one number or one for each sample; 0.5 is a gain from
            0.71 to 1.41.
        :param nodes: Points of the map along each axis, 2 or more; never more than pixels.
        :param beta: Weight of the total variation, in logits for each stop of mean difference of neighbours; 0 is off.
        :param max_iter: Steps in each start; one step is ``2.5 / max_iter`` of the largest exposure.
        :param num_random_init: Random starts; 0 starts once, at the clean image.
        :param confidence: A sample is done when its decision is wrong by this margin in logits; infinity spends all
            steps.
        :param zero: Stored value of no signal; by default -1000 for HU and 0 for other domains without negative values.
        :param batch_size: Images in one pass.
        :param targeted: Whether ``y`` is the label to reach.
        :param quantise: Return images that the file can hold.
        :param seed: Seeds the random starts, together with the ids of the samples.
        :param verbose: Show a progress bar over batches.
        """
        super().__init__(
            estimator,
            max_iter=max_iter,
            num_random_init=num_random_init,
            confidence=confidence,
            zero=zero,
            targeted=targeted,
            batch_size=batch_size,
            quantise=quantise,
            seed=seed,
            verbose=verbose,
        )
        self.stops = stops
        self.nodes = nodes
        self.beta = beta
        self._check_params()

    def _attack(self, batch: Batch) -> Found:
        most = batch.per_sample("stops", self.stops).double() * math.log(2)
        spatial = batch.x.shape[2:]
        basis = Basis(tuple(linear_axis(n, min(self.nodes, n)).to(batch.x.device) for n in spatial))
        penalty = partial(_slope, weight=self.beta) if self.beta else torch.zeros_like
        return self._search(batch, basis, torch.stack([-most, most], 1), penalty)

    def _check_params(self) -> None:
        super()._check_params()
        stops = np.asarray(self.stops)
        if not ((stops > 0) & (stops <= 8)).all():
            raise InputError(f"stops must be above 0 and at most 8, got {self.stops!r}")
        if not isinstance(self.nodes, int) or self.nodes < 2:
            raise InputError(f"nodes must be a whole number of 2 or more, got {self.nodes!r}")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise InputError(f"beta must be 0 or more, got {self.beta!r}")
