# SPDX-License-Identifier: Apache-2.0
"""A change with the texture of CT noise: as likely, under the noise of filtered back-projection, as noise itself.

The noise power spectrum of a reconstruction with ramp filter and apodisation ``A`` is ``NPS(f) = |f| A(f)^2`` up to a
factor (Riederer, Pelc and Chesler 1978, Phys. Med. Biol. 23:446-454; Kijewski and Judy 1987, Phys. Med. Biol.
32:565-575, who add what sampling does near frequency zero). We know of no published attack of this kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from art_medical.attacks.base import Batch
from art_medical.attacks.facts import Facts
from art_medical.attacks.rendered import Effect, RenderedAttack
from art_medical.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from art_medical.estimators.classifier import MedicalClassifier

Apodisation = Callable[[Tensor], Tensor]

KERNELS: dict[str, Apodisation] = {
    "ramp": lambda f: (f <= 1).to(f),
    "hann": lambda f: torch.cos(math.pi / 2 * f).square() * (f <= 1),
}
"""Apodisation over radial frequency in units of Nyquist's: a sharp kernel and a smooth one."""


class CTNoise(RenderedAttack):
    """``x' = x + F^-1[ sqrt(NPS) F[theta] ]`` with ``||theta||_2 <= sigma sqrt(N)`` for ``N`` pixels.

    White ``theta`` of deviation ``sigma`` makes noise of that deviation and spectrum, and has about that length. The
    budget is therefore the ellipsoid ``delta^T K^-1 delta <= N`` that noise of covariance ``K`` itself lies on: the
    attack chooses among changes that are as likely as noise of deviation ``sigma``. The root mean square of its change
    is at most ``sigma sqrt(max NPS)``, with the mean of ``NPS`` over frequencies 1.

    The last two axes are the axial plane; in a volume the slices are independent. For a linear model ``w`` the optimum
    is along ``K w``.
    """

    facts = Facts(
        models="A change that looks like the noise of a lower dose, in the reconstruction or the archive.",
        bound="ellipsoid of the noise covariance, sigma in HU",
        access="white",
        dimensions=(2, 3),
        paper="Riederer et al. 1978, Phys. Med. Biol. 23:446-454 (the noise; the attack is ours)",
    )

    attack_params = [*RenderedAttack.attack_params, "sigma", "kernel"]

    def __init__(
        self,
        estimator: MedicalClassifier,
        sigma: float | NDArray[Any] = 10.0,
        kernel: str = "hann",
        max_iter: int = 20,
        num_random_init: int = 0,
        confidence: float = 0.0,
        targeted: bool = False,
        batch_size: int = 32,
        quantise: bool = True,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param estimator: The classifier to attack.
        :param sigma: Standard deviation of the noise in the unit of the domain (HU of a CT model), one number or one
            for each sample. Rounding to the grid comes on top, half a step at most.
        :param kernel: ``ramp`` (sharp) or ``hann`` (smooth).
        :param max_iter: Steps in each start.
        :param num_random_init: Random starts, each a realisation of the noise scaled to the budget; 0 starts once, at
            the clean image.
        :param confidence: An image is done when its decision is wrong by this margin in logits.
        :param targeted: Whether ``y`` is the label to reach.
        :param batch_size: Images in one pass.
        :param quantise: Return images that the file can hold.
        :param seed: Seeds the random starts, together with the ids of the samples.
        :param verbose: Show a progress bar over batches.
        """
        super().__init__(
            estimator,
            max_iter=max_iter,
            num_random_init=num_random_init,
            confidence=confidence,
            targeted=targeted,
            batch_size=batch_size,
            quantise=quantise,
            seed=seed,
            verbose=verbose,
        )
        self.sigma = sigma
        self.kernel = kernel
        self._check_params()

    def _effect(self, shape: tuple[int, ...], device: torch.device) -> Effect:
        return ColouredNoise(shape, self.kernel, device)

    def _radius(self, batch: Batch) -> Tensor:
        return batch.per_sample("sigma", self.sigma) * math.sqrt(batch.x[0].numel())

    def _check_params(self) -> None:
        super()._check_params()
        if not (np.isfinite(self.sigma) & (np.asarray(self.sigma) > 0)).all():
            raise InputError(f"sigma must be positive, in {self.domain.unit}s, got {self.sigma!r}")
        if self.kernel not in KERNELS:
            raise InputError(f"kernel must be one of {', '.join(KERNELS)}, got {self.kernel!r}")


class ColouredNoise(Effect):
    """``x + F^-1[ sqrt(NPS) F[theta] ]`` with ``theta`` in the unit of the stored pixel.

    :param image: Shape ``(C, *spatial)``.
    :param kernel: Name of the apodisation.
    """

    norm = "l2"

    def __init__(self, image: tuple[int, ...], kernel: str, device: torch.device) -> None:
        self.image = image
        self.amplitude = noise_power_spectrum(image[-2:], kernel, device).sqrt()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.image

    def render(self, x: Tensor, theta: Tensor) -> Tensor:
        noise: Tensor = torch.fft.ifft2(torch.fft.fft2(theta) * self.amplitude).real
        return x + noise


def noise_power_spectrum(plane: tuple[int, ...], kernel: str, device: torch.device) -> Tensor:
    """``|f| A(f)^2`` over the frequencies of ``fft2`` of a plane, scaled to a mean of 1: noise of deviation 1.

    :raises InputError: If the plane has no frequency besides zero below Nyquist's.
    """
    rows, columns = (torch.fft.fftfreq(side, dtype=torch.float64, device=device) for side in plane)
    radial = 2 * torch.hypot(rows[:, None], columns[None, :])  # 1 is Nyquist's frequency
    spectrum = radial * KERNELS[kernel](radial).square()
    if not bool(spectrum.sum() > 0):
        raise InputError(f"a plane of {tuple(plane)} pixels is too small for the {kernel} kernel")
    return (spectrum / spectrum.mean()).float()
