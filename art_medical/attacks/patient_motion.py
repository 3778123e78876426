# SPDX-License-Identifier: Apache-2.0
"""Motion of the patient during an MR acquisition, chosen by an adversary: phase errors of blocks of k-space lines.

k-space is acquired line by line. When the patient moves between lines, the later ones belong to a shifted image: by the
Fourier shift theorem they carry a linear phase (Zaitsev, Maclaren and Herbst 2015, J. Magn. Reson. Imaging 42:887-901).
We know of no published attack of this kind on classifiers; for attacks on reconstruction by noise in k-space and by
rotation see Morshuis et al. 2022 (MICCAI workshop MLMIR, arXiv 2208.03161).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from art_medical.attacks.facts import Facts
from art_medical.attacks.rendered import Effect, RenderedAttack, positive
from art_medical.errors import InputError

if TYPE_CHECKING:
    from art_medical.estimators.classifier import MedicalClassifier


class PatientMotion(RenderedAttack):
    """``x' = | F^-1[ F[x](k) exp(-2 pi i k . s_j(k)) ] |``, one shift ``|s_ja| <= eps`` for each block of lines.

    The patient rests while a block of phase-encode lines is acquired, and jumps between blocks; lines are acquired in
    order, from one end of k-space to the other. Phases alone change, so before clipping and rounding the energy of the
    image stays what it was (Parseval). All channels, taken as contrasts of one examination, move together.

    Images are magnitudes: the domain must not reach below 0. Pixel values must be proportional to the signal.
    """

    facts = Facts(
        models="A patient who moves during an MR examination, at the worst moments.",
        bound="rigid shift of each block of k-space lines, in pixels",
        access="white",
        dimensions=(2, 3),
        paper="Zaitsev et al. 2015, J. Magn. Reson. Imaging 42:887-901 (the artefact; the attack is ours)",
    )

    attack_params = [*RenderedAttack.attack_params, "eps", "blocks", "phase_axis"]

    def __init__(
        self,
        estimator: MedicalClassifier,
        eps: float = 2.0,
        blocks: int = 8,
        phase_axis: int = 0,
        max_iter: int = 20,
        num_random_init: int = 3,
        confidence: float = 0.0,
        targeted: bool = False,
        batch_size: int = 32,
        quantise: bool = True,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param estimator: The classifier to attack.
        :param eps: Largest shift along each axis, in pixels.
        :param blocks: Rests of the patient: blocks of neighbouring phase-encode lines with one shift each.
        :param phase_axis: Phase-encode direction: index of the spatial axis, from 0.
        :param max_iter: Steps in each start.
        :param num_random_init: Random starts; 0 starts once, at the clean image.
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
        self.eps = eps
        self.blocks = blocks
        self.phase_axis = phase_axis
        self._check_params()

    def _effect(self, shape: tuple[int, ...], device: torch.device) -> Effect:
        return Motion(shape[1:], self.eps, self.blocks, self.phase_axis, device)

    def _check_params(self) -> None:
        super()._check_params()
        positive(self.eps, "eps", "pixels")
        spatial = self.estimator.input_shape[1:]
        if not isinstance(self.phase_axis, int) or not 0 <= self.phase_axis < len(spatial):
            raise InputError(f"phase_axis must be a spatial axis, 0 to {len(spatial) - 1}, got {self.phase_axis!r}")
        lines = spatial[self.phase_axis]
        if not isinstance(self.blocks, int) or not 1 <= self.blocks <= lines:
            raise InputError(f"blocks must be from 1 to the {lines} phase-encode lines, got {self.blocks!r}")
        if self.domain.low < 0:
            raise InputError(
                f"motion acts on magnitude images, but this domain begins at {self.domain.low:g}; use another attack"
            )


class Motion(Effect):
    """Shifts ``(blocks, axes)`` between -1 and 1, in units of ``eps`` pixels."""

    def __init__(
        self, spatial: tuple[int, ...], eps: float, blocks: int, phase_axis: int, device: torch.device
    ) -> None:
        self.spatial, self.eps, self.blocks, self.phase_axis = spatial, eps, blocks, phase_axis
        self._axes = tuple(range(2, 2 + len(spatial)))
        self._frequencies = [torch.fft.fftfreq(side, device=device) for side in spatial]
        lines = spatial[phase_axis]
        # Acquired from the lowest frequency to the highest; fftfreq begins at zero.
        acquired = torch.fft.ifftshift(torch.arange(lines, device=device))
        self._block = acquired * blocks // lines

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.blocks, len(self.spatial))

    def render(self, x: Tensor, theta: Tensor) -> Tensor:
        shift = theta[:, self._block] * self.eps  # of each line
        cycles = theta.new_zeros(())
        for axis, frequency in enumerate(self._frequencies):
            cycles = cycles + self._beside(shift[:, :, axis], self.phase_axis) * self._beside(frequency[None], axis)
        phase = torch.polar(torch.ones_like(cycles), -2 * torch.pi * cycles)[:, None]
        magnitude: Tensor = torch.fft.ifftn(torch.fft.fftn(x, dim=self._axes) * phase, dim=self._axes).abs()
        return magnitude

    def _beside(self, values: Tensor, axis: int) -> Tensor:
        """Values ``(n, side)`` of an axis, to be multiplied with ``(n, *spatial)``."""
        return values.view(len(values), *(side if a == axis else 1 for a, side in enumerate(self.spatial)))
