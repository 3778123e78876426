# SPDX-License-Identifier: Apache-2.0
"""Stabilised medical image attack, SMIA (Qi et al. 2021, arXiv 2103.05232, ICLR)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from art_medical.attacks.base import Batch, StoredPixelAttack
from art_medical.attacks.facts import Facts
from art_medical.attacks.joint_search import search_jointly
from art_medical.attacks.loop import Found
from art_medical.attacks.objectives import CrossEntropy
from art_medical.attacks.optimisers import SignSteps
from art_medical.attacks.perturbations import additive
from art_medical.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from art_medical.estimators.classifier import MedicalClassifier


def gaussian_blur(delta: Tensor, size: int, sigma: float) -> Tensor:
    """``G * delta``: a normalised Gaussian of ``size`` pixels along every spatial axis of ``(n, C, *spatial)``.

    Beyond its edge a change goes on as at the edge, so that a constant one stays what it is.

    :param size: Pixels of the kernel, odd.
    :param sigma: Standard deviation in pixels.
    """
    reach = size // 2
    offset = torch.arange(size, dtype=delta.dtype, device=delta.device) - reach
    kernel = torch.exp(-(offset**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    for axis in range(2, delta.ndim):
        pixels = delta.shape[axis]
        at = torch.arange(pixels, device=delta.device)
        shifted = (delta.index_select(axis, (at + j - reach).clamp(0, pixels - 1)) for j in range(size))
        delta = torch.stack([weight * part for weight, part in zip(kernel, shifted, strict=True)]).sum(0)
    return delta


class Stabilised(CrossEntropy):
    """``J = -CE(f(x'), y) + alpha KL(f(x + G delta) || f(x'))`` of both decision logits side by side, ``(n, 2 K)``.

    The divergence is the paper's cross-entropy with the soft output of the smoothed branch, less its own entropy: it is
    0 where both agree. Both branches have a gradient.

    :param targeted: Whether ``y`` is the class to reach.
    :param alpha: Weight of the stabilisation.
    """

    def __init__(self, targeted: bool, alpha: float) -> None:
        super().__init__(targeted)
        self.alpha = alpha

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        attacked, smoothed = z.chunk(2, 1)
        log_p, log_q = functional.log_softmax(attacked, 1), functional.log_softmax(smoothed, 1)
        return super().__call__(attacked, y) + self.alpha * (log_q.exp() * (log_q - log_p)).sum(1)

    def distance(self, z: Tensor, y: Tensor) -> Tensor:
        return super().distance(z.chunk(2, 1)[0], y)


class StabilizedMedicalImageAttack(StoredPixelAttack):
    """Deviation of the prediction, and stabilisation: the change must work when it is smoothed.

    Differs from the published code as follows: what is smoothed is the accumulated change and not the sign of one
    gradient, the comparison is with the soft output, every step is projected on the budget, and the stabilisation is
    on. With ``alpha=0`` it is projected gradient descent that spends all its steps.
    """

    facts = Facts(
        models="Whoever changes pixels ahead of a denoising or resampling filter, and knows the weights.",
        bound="linf",
        access="white",
        dimensions=(2, 3),
        paper="Qi et al. 2021, arXiv 2103.05232",
    )

    attack_params = [
        *StoredPixelAttack.attack_params,
        "eps",
        "eps_step",
        "max_iter",
        "alpha",
        "kernel_size",
        "sigma",
        "confidence",
    ]

    def __init__(
        self,
        estimator: MedicalClassifier,
        eps: float | NDArray[Any] = 2.0,
        eps_step: float | NDArray[Any] | None = None,
        max_iter: int = 20,
        alpha: float = 1.0,
        kernel_size: int = 3,
        sigma: float = 1.0,
        confidence: float = 0.0,
        batch_size: int = 32,
        targeted: bool = False,
        quantise: bool = True,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param estimator: The classifier to attack.
        :param eps: L-infinity budget in the unit of the stored pixel, one number or one for each sample. With
            ``quantise`` it is rounded down to whole steps of the storage grid.
        :param eps_step: Length of one step in the same unit; by default ``2.5 * eps / max_iter``.
        :param max_iter: Steps.
        :param alpha: Weight of the stabilisation, 0 or more.
        :param kernel_size: Pixels of the Gaussian kernel along each axis, odd.
        :param sigma: Its standard deviation in pixels.
        :param confidence: Margin in logits by which the decision must be wrong; of the images that reach it the one
            with the lowest objective is returned. Infinity returns the most wrong one.
        :param batch_size: Images in one pass; the network sees twice as many.
        :param targeted: Whether ``y`` is the label to reach.
        :param quantise: Return images that the file can hold.
        :param seed: Not used: nothing here is random.
        :param verbose: Show a progress bar over batches.
        """
        super().__init__(
            estimator, targeted=targeted, quantise=quantise, batch_size=batch_size, seed=seed, verbose=verbose
        )
        self.eps = eps
        self.eps_step = eps_step
        self.max_iter = max_iter
        self.alpha = alpha
        self.kernel_size = kernel_size
        self.sigma = sigma
        self.confidence = confidence
        self._check_params()

    def _attack(self, batch: Batch) -> Found:
        eps = batch.per_sample("eps", self.eps)
        eps_step = 2.5 * eps / max(self.max_iter, 1)
        if self.eps_step is not None:
            eps_step = batch.per_sample("eps_step", self.eps_step)

        def scores(x: Tensor, rows: Tensor) -> Tensor:
            clean = batch.x[rows]
            if not self.alpha:
                z = self.scores(x)
                return torch.cat([z, z.detach()], 1)
            smoothed = clean + gaussian_blur(x - clean, self.kernel_size, self.sigma)
            smoothed = smoothed.clamp(self.domain.low, self.domain.high)
            return torch.cat(self.scores(torch.cat([x, smoothed])).chunk(2), 1)

        found = Found.nothing_yet(batch.x)
        search_jointly(
            scores,
            additive("linf", batch.x, eps, self.domain, self.quantise, batch.mask),
            Stabilised(self.targeted, self.alpha),
            SignSteps(eps_step),
            batch.y,
            found,
            max_iter=self.max_iter,
            confidence=self.confidence,
            passes=2 if self.alpha else 1,
        )
        return found

    def _check_params(self) -> None:
        super()._check_params()
        for name in ("eps", "eps_step"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) & (np.asarray(value) > 0)).all():
                raise InputError(f"{name} must be positive, in {self.domain.units}, got {value!r}")
        if not isinstance(self.max_iter, int) or self.max_iter < 0:
            raise InputError(f"max_iter must be a whole number of 0 or more, got {self.max_iter!r}")
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise InputError(f"alpha must be 0 or more, got {self.alpha!r}")
        if not isinstance(self.kernel_size, int) or self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise InputError(f"kernel_size must be an odd number of pixels, got {self.kernel_size!r}")
        if not self.sigma > 0:
            raise InputError(f"sigma is in pixels, above 0, got {self.sigma!r}")
        if not self.confidence >= 0:
            raise InputError(f"confidence is a margin in logits of 0 or more, got {self.confidence!r}")
