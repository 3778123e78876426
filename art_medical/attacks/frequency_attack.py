# SPDX-License-Identifier: Apache-2.0
"""Attacks on the coefficients of a block-wise discrete cosine transform (DCT-II, orthonormal), in 2-D and 3-D.

Two bounds. ``band``: the change has no other frequencies than those of a band, and a length (Guo, Frank and Weinberger
2018, arXiv 1809.08758, with any band). ``table``: nothing is added, coefficients are rounded more coarsely than they
need be, as a codec does, and the attacker chooses the quantisation table (AdvDrop, Duan et al. 2021, arXiv 2108.09034;
VAFA for volumes, Hanif et al. 2023, arXiv 2303.08236).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor
from torch.nn import functional

from art_medical.attacks.base import Batch
from art_medical.attacks.facts import Facts
from art_medical.attacks.optimisers import Optimiser
from art_medical.attacks.perturbations import AdditiveL2, Perturbation
from art_medical.attacks.rendered import Effect, Rendered, RenderedAttack, along, positive
from art_medical.domain import PixelDomain
from art_medical.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from art_medical.estimators.classifier import MedicalClassifier

BOUNDS = ("band", "table")

SCANNED = 32
"""Values of an entry of a table that are tried, besides ``q_min``."""


class FrequencyAttack(RenderedAttack):
    """``band``: ``x' = x + IDCT(theta)``; ``table``: ``x' = IDCT(q round(DCT(x) / q))``.

    ``theta`` is zero outside the band and ``||theta||_2 <= eps``; ``q_min <= q <= q_max``.

    Both minimise the margin, ``band`` by steepest descent: for a linear model ``w`` it goes along the projection of
    ``w`` on the band. ``table`` scans the entries, see :class:`TableSteps`. A table belongs to one image and channel
    and is shared by the blocks, as in a codec.
    """

    facts = Facts(
        models="Whoever recompresses images, or hides a change where codecs and eyes do not look.",
        bound="l2 in a frequency band, or quantisation table",
        access="white",
        dimensions=(2, 3),
        paper="Hanif et al. 2023, arXiv 2303.08236; Duan et al. 2021, arXiv 2108.09034",
    )

    attack_params = [*RenderedAttack.attack_params, "bound", "eps", "band", "q_min", "q_max", "block"]

    def __init__(
        self,
        estimator: MedicalClassifier,
        bound: str = "band",
        eps: float | NDArray[Any] = 100.0,
        band: tuple[float, float] = (0.0, 0.25),
        q_min: float = 1.0,
        q_max: float = 20.0,
        block: int | None = 8,
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
        :param bound: ``band`` or ``table``.
        :param eps: Of ``band``: length (L-2) of the change over all pixels, in the unit of the stored pixel, one number
            or one for each sample.
        :param band: Of ``band``: frequencies ``low <= max_i k_i / b_i < high`` of the indices ``k_i`` in a block of
            sides ``b_i``, both from 0 (the block's mean) to 1 (all).
        :param q_min: Of ``table``: finest entry, in the unit of the stored pixel.
        :param q_max: Of ``table``: coarsest entry. 20 grey levels are VAFA's for 8-bit images.
        :param block: Side of a block in pixels, in every direction; images are padded to whole blocks by repeating
            their border, and cropped again. ``None``: the whole image is one block.
        :param max_iter: Steps in each start.
        :param num_random_init: Random starts; 0 starts once, at the clean image.
        :param confidence: An image is done when its decision is wrong by this margin in logits.
        :param targeted: Whether ``y`` is the label to reach.
        :param batch_size: Images in one pass.
        :param quantise: Return images that the file can hold: a ``band`` keeps its length but for what rounding adds
            outside the band.
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
        self.bound = bound
        self.eps = eps
        self.band = band
        self.q_min = q_min
        self.q_max = q_max
        self.block = block
        self._check_params()

    def _effect(self, shape: tuple[int, ...], device: torch.device) -> Effect:
        blocks = BlockDCT(shape[1:], self.block, device)
        if self.bound == "band":
            return BandLimited(shape[0], blocks, self.band)
        return QuantisationTable(shape[0], blocks, self.q_min, self.q_max)

    def _optimiser(self, effect: Effect, eps_step: Tensor) -> Optimiser:
        return super()._optimiser(effect, eps_step) if self.bound == "band" else TableSteps(eps_step)

    def _radius(self, batch: Batch) -> Tensor:
        return batch.per_sample("eps", self.eps) if self.bound == "band" else super()._radius(batch)

    def _check_params(self) -> None:
        super()._check_params()
        if self.bound not in BOUNDS:
            raise InputError(f"bound must be one of {', '.join(BOUNDS)}, got {self.bound!r}")
        if not (np.isfinite(self.eps) & (np.asarray(self.eps) > 0)).all():
            raise InputError(f"eps must be positive, in {self.domain.unit}s, got {self.eps!r}")
        if len(self.band) != 2 or not 0 <= self.band[0] < self.band[1] <= 1:
            raise InputError(f"band must be ordered and in [0, 1], got {self.band!r}")
        positive(self.q_min, "q_min", f"{self.domain.unit}s")
        positive(self.q_max, "q_max", f"{self.domain.unit}s")
        if self.q_max < self.q_min:
            raise InputError(f"q_max {self.q_max!r} must not be below q_min {self.q_min!r}")
        if self.block is not None and (not isinstance(self.block, int) or self.block < 1):
            raise InputError(f"block is a side of 1 pixel or more, or None for the whole image, got {self.block!r}")


class BlockDCT:
    """Orthonormal DCT-II of every block, and back.

    :param spatial: Shape of the images.
    :param block: Side of the blocks, or ``None`` for one block; an axis that is shorter is one block.
    """

    def __init__(self, spatial: tuple[int, ...], block: int | None, device: torch.device) -> None:
        self.spatial = spatial
        self.sides = tuple(side if block is None else min(block, side) for side in spatial)
        self.counts = tuple(-(-side // b) for side, b in zip(spatial, self.sides, strict=True))
        self._matrices = [
            torch.from_numpy(dct(np.eye(b), axis=0, norm="ortho").astype(np.float32)).to(device) for b in self.sides
        ]

    @property
    def padded(self) -> tuple[int, ...]:
        """Shape of the images in whole blocks."""
        return tuple(count * b for count, b in zip(self.counts, self.sides, strict=True))

    def pad(self, x: Tensor) -> Tensor:
        """Images in whole blocks, the border repeated."""
        extra = [p - side for p, side in zip(self.padded, self.spatial, strict=True)]
        amounts = [amount for e in reversed(extra) for amount in (0, e)]
        return functional.pad(x, amounts, mode="replicate") if any(extra) else x

    def fill(self, x: Tensor) -> Tensor:
        """Images in whole blocks, zeros added."""
        extra = [p - side for p, side in zip(self.padded, self.spatial, strict=True)]
        return functional.pad(x, [amount for e in reversed(extra) for amount in (0, e)])

    def crop(self, x: Tensor) -> Tensor:
        """Images without what :meth:`pad` added."""
        window = (slice(None), slice(None), *(slice(side) for side in self.spatial))
        return x[window]

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(n, C, *padded)`` to coefficients ``(n, C, count, b, count, b, ...)``."""
        x = x.reshape(*x.shape[:2], *(n for pair in zip(self.counts, self.sides, strict=True) for n in pair))
        for axis, matrix in enumerate(self._matrices):
            x = along(matrix, x, 3 + 2 * axis)
        return x

    def inverse(self, coefficients: Tensor) -> Tensor:
        """The images of coefficients."""
        for axis, matrix in enumerate(self._matrices):
            coefficients = along(matrix.T, coefficients, 3 + 2 * axis)
        return coefficients.reshape(*coefficients.shape[:2], *self.padded)

    @property
    def layout(self) -> tuple[int, ...]:
        """Shape ``(count, b, count, b, ...)`` of the coefficients of one channel."""
        return tuple(n for pair in zip(self.counts, self.sides, strict=True) for n in pair)

    @property
    def table(self) -> tuple[int, ...]:
        """Shape ``(1, b, 1, b, ...)`` of what the blocks share."""
        return tuple(n for b in self.sides for n in (1, b))


class BandLimited(Effect):
    """``x + IDCT(band * theta)``: as the transform is orthonormal, the change is no longer than ``theta``."""

    norm = "l2"

    def __init__(self, channels: int, blocks: BlockDCT, band: tuple[float, float]) -> None:
        self.channels, self.blocks = channels, blocks
        relative = [np.arange(b) / b for b in blocks.sides]
        highest = np.max(np.meshgrid(*relative, indexing="ij"), axis=0)
        inside = (highest >= band[0]) & (highest < band[1])
        if not inside.any():
            raise InputError(f"no frequency of a block of {blocks.sides} pixels is in the band {band}")
        self.inside = torch.from_numpy(inside.astype(np.float32)).to(blocks._matrices[0].device).view(blocks.table)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, *self.blocks.layout)

    def render(self, x: Tensor, theta: Tensor) -> Tensor:
        return x + self.blocks.crop(self.blocks.inverse(self.effective(theta)))

    def effective(self, theta: Tensor) -> Tensor:
        return theta * self.inside

    def to_grid(self, x: Tensor, changed: Tensor, domain: PixelDomain, mask: Tensor | None) -> Tensor:
        """Rounding that keeps the length, as for any L-2 budget."""
        return AdditiveL2(x, (changed - x).flatten(1).norm(dim=1), domain, True, mask).stored(changed)


class QuantisationTable(Effect):
    """``IDCT(q round(DCT(x) / q))`` with ``q = q_min + theta (q_max - q_min)``, ``0 <= theta <= 1``.

    ``theta = 0`` everywhere stands for the image that was never compressed.
    """

    lower = 0.0

    def __init__(self, channels: int, blocks: BlockDCT, q_min: float, q_max: float) -> None:
        self.channels, self.blocks, self.q_min, self.q_max = channels, blocks, q_min, q_max

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, *self.blocks.table)

    def render(self, x: Tensor, theta: Tensor) -> Tensor:
        coefficients = self.blocks.forward(self.blocks.pad(x))
        changed: Tensor = self.blocks.crop(self.blocks.inverse(coefficients + self.error(coefficients, theta)))
        return changed

    def error(self, coefficients: Tensor, theta: Tensor | float) -> Tensor:
        """What rounding with a table adds to coefficients."""
        q = self.q_min + theta * (self.q_max - self.q_min)
        return (coefficients / q).round() * q - coefficients

    def gains(self, coefficients: Tensor, gradient: Tensor, theta: Tensor | float) -> Tensor:
        """First-order change of the objective by each entry of a table, ``(n, *shape)``."""
        blockwise = tuple(range(2, coefficients.ndim, 2))
        return (gradient * self.error(coefficients, theta)).sum(blockwise, keepdim=True)


class TableSteps(Optimiser):
    """Entry by entry the value that a scan finds best to first order.

    The error of a rounded coefficient is a saw-tooth in ``q``: its slope says nothing about the next tooth, and sign
    steps as in the papers do not beat random tables. But to first order the objective is a sum over entries, so a scan
    of each is exact. At step ``t`` the ``2 / (t + 2)`` of the entries that gain most are moved, as in the method of
    Frank and Wolfe; for a linear model the first step is the optimum on the scanned values.

    :param eps_step: Distance of the scanned values of ``theta`` for each sample ``(n,)``; all samples have the same.
    """

    def __init__(self, eps_step: Tensor) -> None:
        super().__init__(eps_step)
        self.taken = torch.zeros_like(eps_step)

    def step(self, theta: Tensor, gradient: Tensor) -> Tensor:
        raise NotImplementedError("a scan needs the images: use advance")

    def advance(self, theta: Tensor, gradient: Tensor, objective: Tensor, perturbation: Perturbation) -> Tensor:
        assert isinstance(perturbation, Rendered) and isinstance(perturbation.effect, QuantisationTable)
        effect, blocks = perturbation.effect, perturbation.effect.blocks
        coefficients = blocks.forward(blocks.pad(perturbation.x))
        if perturbation.mask is not None:
            gradient = gradient * perturbation.mask
        direction = blocks.forward(blocks.fill(gradient))
        now = effect.gains(coefficients, direction, theta)
        least, best = now.clone(), theta
        for j in range(SCANNED + 1):
            gain = effect.gains(coefficients, direction, j / SCANNED)
            best = torch.where(gain < least, j / SCANNED, best)
            least = torch.minimum(gain, least)
        share = 2 / (float(self.taken[0]) + 2)
        self.taken += 1
        gained = (now - least).flatten(1)
        kept = gained.topk(max(1, round(share * gained.shape[1])), dim=1).values[:, -1]
        moved = gained >= kept[:, None]
        return torch.where(moved.view(theta.shape), best, theta)
