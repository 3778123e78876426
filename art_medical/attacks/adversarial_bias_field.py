# SPDX-License-Identifier: Apache-2.0
"""Adversarial bias field (Tian et al. 2021, arXiv 2009.09247; B-spline form of Chen et al. 2020, arXiv 2006.13322).

A receive coil, an anode or a lamp lights one side of an image more than the other. The field is smooth and multiplies
the signal, so it is written on the logarithm, ``b = exp(U c)`` with few coefficients ``c``, and is multiplied about the
value that stands for no signal at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from art_medical.attacks.base import Batch, StoredPixelAttack
from art_medical.attacks.facts import Facts
from art_medical.attacks.loop import Found, search
from art_medical.attacks.noise import Noise
from art_medical.attacks.objectives import Margin
from art_medical.attacks.optimisers import Optimiser
from art_medical.attacks.perturbations import Perturbation
from art_medical.attacks.rendered import require_grid
from art_medical.domain import PixelDomain
from art_medical.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from art_medical.estimators.classifier import MedicalClassifier

AIR = -1000.0
"""CT number of no attenuation, in HU, by definition of the unit: ``HU = 1000 (mu - mu_water) / mu_water``."""


# -- bases: few coefficients to a field over all pixels ----------------------------------------------------------------


def bspline_axis(pixels: int, spacing: float) -> Tensor:
    """Uniform cubic B-splines at the pixel centres of one axis, float64 ``(pixels, intervals + 3)``.

    The axis is divided into the least number of equal intervals that are not longer than ``spacing`` pixels, so that a
    side of any length is covered from edge to edge. Each row is non-negative and has the sum 1.
    """
    intervals = max(1, math.ceil(pixels / spacing - 1e-9))
    at = (torch.arange(pixels, dtype=torch.float64) + 0.5) * intervals / pixels
    t = (at[:, None] - torch.arange(-1, intervals + 2, dtype=torch.float64)).abs()
    near = 2 / 3 - t**2 + t**3 / 2
    return torch.where(t < 1, near, (2 - t).clamp(min=0) ** 3 / 6)


def bernstein_axis(pixels: int, degree: int) -> Tensor:
    """Bernstein polynomials of a degree at the pixel centres of one axis, float64 ``(pixels, degree + 1)``.

    They span all polynomials up to that degree, and each row is non-negative and has the sum 1.
    """
    at = (torch.arange(pixels, dtype=torch.float64) + 0.5)[:, None] / pixels
    k = torch.arange(degree + 1)
    binomial = torch.tensor([math.comb(degree, j) for j in range(degree + 1)], dtype=torch.float64)
    return binomial * at**k * (1 - at) ** (degree - k)


class Basis:
    """Fields that are products of functions along the axes, ``(U c)(p) = sum_k c_k prod_a A_a[p_a, k_a]``.

    :param axes: ``A_a``, float64 ``(pixels, coefficients)`` for each spatial axis, with rows that are non-negative and
        have the sum 1: then the field lies between its smallest and its largest coefficient.
    """

    def __init__(self, axes: tuple[Tensor, ...]) -> None:
        self.axes = axes

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the coefficients of one image."""
        return tuple(axis.shape[1] for axis in self.axes)

    def field(self, c: Tensor) -> Tensor:
        """``U c``: coefficients ``(n, *shape)`` to values ``(n, *spatial)``."""
        for axis in self.axes:
            c = torch.tensordot(c, axis, dims=([1], [1]))  # the axis that is done goes to the end
        return c

    def adjoint(self, field: Tensor) -> Tensor:
        """``U^T``: values ``(n, *spatial)`` to coefficients ``(n, *shape)``."""
        for axis in self.axes:
            field = torch.tensordot(field, axis, dims=([1], [0]))
        return field

    def within(self, c: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Coefficients whose field keeps ``low <= U c <= high`` (both ``(n,)``): the nearest in the box of them."""
        shape = (-1, *(1,) * len(self.axes))
        return torch.minimum(torch.maximum(c, low.view(shape)), high.view(shape))


# -- the perturbation --------------------------------------------------------------------------------------------------


class MultiplicativeField(Perturbation):
    """``x' = x_0 + exp(U c) (x - x_0)`` with ``low <= U c <= high``; ``theta`` is ``c``, float64.

    One field for all channels. Pixels below ``x_0`` hold no signal (padding) and stay. Rounding keeps the bound: of the
    stored values only those between ``exp(low)`` and ``exp(high)`` times the signal are used.

    :param x: Clean stored pixels ``(n, C, *spatial)``.
    :param basis: ``U``.
    :param limits: ``low`` and ``high`` of each sample, natural logarithm of the gain, float64 ``(n, 2)``.
    :param zero: ``x_0``, the stored value of no signal.
    :param domain: The box and the grid.
    :param quantise: Return values that the file can hold.
    :param mask: 1 where a pixel may change, of the shape of ``x``; ``None`` for everywhere.
    """

    def __init__(
        self,
        x: Tensor,
        basis: Basis,
        limits: Tensor,
        zero: float,
        domain: PixelDomain,
        quantise: bool,
        mask: Tensor | None,
    ) -> None:
        self.x, self.basis, self.limits, self.zero, self.domain, self.mask = x, basis, limits, zero, domain, mask
        self.quantise = quantise
        signal = (x.double() - zero).clamp_(min=0)
        self.signal = signal if mask is None else signal * mask

    def start(self, noise: Noise | None) -> Tensor:
        shape = (len(self.x), *self.basis.shape)
        if noise is None:
            return torch.zeros(shape, dtype=torch.float64, device=self.x.device)
        low, high = (limit.view(-1, *(1,) * (len(shape) - 1)) for limit in self.limits.unbind(1))
        uniform = noise.uniform(self.basis.shape).to(self.x.device, torch.float64)
        return self.project(low + (high - low) * uniform)

    def gain(self, theta: Tensor) -> Tensor:
        """``exp(U c)``, float64 ``(n, 1, *spatial)``."""
        return self.basis.field(theta).exp_()[:, None]

    def stored(self, theta: Tensor) -> Tensor:
        change = (self.gain(theta) - 1) * self.signal
        if self.quantise and self.domain.step is not None:
            # The limits themselves are rounded towards no change; 1e-6 steps forgive the float error of exp.
            low, high = (
                torch.trunc(
                    torch.expm1(limit).view(-1, *(1,) * (change.ndim - 1)) * self.signal / self.domain.step + by
                )
                for limit, by in zip(self.limits.unbind(1), (-1e-6, 1e-6), strict=True)
            )
            change = torch.minimum(torch.maximum((change / self.domain.step).round_(), low), high) * self.domain.step
        moved = (self.x + change).clamp_(self.domain.low, self.domain.high)
        return torch.where(change == 0, self.x, moved.float())

    def project(self, theta: Tensor) -> Tensor:
        return self.basis.within(theta, self.limits[:, 0], self.limits[:, 1])

    def pull_back(self, theta: Tensor, gradient: Tensor) -> Tensor:
        """Gradient of the coefficients from that of the stored pixels, straight through the rounding."""
        change = self.gain(theta) * self.signal
        unclipped = self.zero + change
        inside = (unclipped >= self.domain.low) & (unclipped <= self.domain.high)
        return self.basis.adjoint((gradient * change * inside).sum(1))

    def select(self, keep: Tensor) -> MultiplicativeField:
        mask = None if self.mask is None else self.mask[keep]
        return type(self)(self.x[keep], self.basis, self.limits[keep], self.zero, self.domain, self.quantise, mask)


class FieldSteps(Optimiser):
    """Sign steps of the coefficients: steepest descent in the box that bounds them.

    :param eps_step: Length of a step of each sample ``(n,)``, natural logarithm of the gain.
    :param penalty: Gradient of a further term of the objective at coefficients ``(n, *shape)``.
    """

    def __init__(self, eps_step: Tensor, penalty: Callable[[Tensor], Tensor] = torch.zeros_like) -> None:
        super().__init__(eps_step)
        self.penalty = penalty

    def step(self, theta: Tensor, gradient: Tensor) -> Tensor:
        slope = gradient + self.penalty(theta)
        return theta - slope.sign() * self.eps_step.view(-1, *(1,) * (theta.ndim - 1))

    def advance(self, theta: Tensor, gradient: Tensor, objective: Tensor, perturbation: Perturbation) -> Tensor:
        assert isinstance(perturbation, MultiplicativeField)
        return perturbation.project(self.step(theta, perturbation.pull_back(theta, gradient)))


# -- the attacks -------------------------------------------------------------------------------------------------------


class FieldAttack(StoredPixelAttack):
    """Base of the attacks that multiply the signal with a smooth field; the subclass says which fields there are."""

    attack_params = [*StoredPixelAttack.attack_params, "max_iter", "num_random_init", "confidence", "zero"]

    def __init__(
        self,
        estimator: MedicalClassifier,
        *,
        max_iter: int,
        num_random_init: int,
        confidence: float,
        zero: float | None,
        targeted: bool,
        batch_size: int,
        quantise: bool,
        seed: int,
        verbose: bool,
    ) -> None:
        super().__init__(
            estimator, targeted=targeted, quantise=quantise, batch_size=batch_size, seed=seed, verbose=verbose
        )
        self.max_iter = max_iter
        self.num_random_init = num_random_init
        self.confidence = confidence
        self.zero = zero

    @property
    def no_signal(self) -> float:
        """The stored value that no gain changes.

        :raises InputError: If the domain does not tell and the caller did not say.
        """
        if self.zero is not None:
            return self.zero
        if self.domain.unit == "HU":
            return AIR
        if self.domain.low >= 0:
            return 0.0
        raise InputError(
            f"pixels start at {self.domain.low:g} {self.domain.units}: a gain needs the value of no signal; say it "
            "with zero=, or attack the images as they were before their mean was taken away"
        )

    def _search(self, batch: Batch, basis: Basis, limits: Tensor, penalty: Callable[[Tensor], Tensor]) -> Found:
        """The common loop; ``limits`` are natural logarithms of the gain ``(n, 2)``."""
        if self.quantise:
            require_grid(batch.x, self.domain)
        field = MultiplicativeField(batch.x, basis, limits, self.no_signal, self.domain, self.quantise, batch.mask)
        found = Found.nothing_yet(batch.x)
        for restart in range(max(1, self.num_random_init)):
            search(
                self.scores,
                field,
                Margin(self.targeted),
                FieldSteps(2.5 * limits[:, 1] / max(self.max_iter, 1), penalty),
                batch.y,
                found,
                max_iter=self.max_iter,
                confidence=self.confidence,
                noise=Noise(self.seed, batch.ids, f"restart-{restart}") if self.num_random_init else None,
            )
        return found

    def _check_params(self) -> None:
        super()._check_params()
        for name in ("max_iter", "num_random_init"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise InputError(f"{name} must be a whole number of 0 or more, got {value!r}")
        if not self.confidence >= 0:
            raise InputError(f"confidence is a margin in logits of 0 or more, got {self.confidence!r}")
        if self.zero is not None and not self.domain.low <= self.zero < self.domain.high:
            raise InputError(
                f"zero must lie from {self.domain.low:g} to below {self.domain.high:g} {self.domain.units}, "
                f"got {self.zero!r}"
            )
        assert math.isfinite(self.no_signal)  # refused here, not in the middle of a study


class AdversarialBiasField(FieldAttack):
    """``x' = x_0 + b (x - x_0)`` with ``b = exp(U c)`` and ``|b - 1| <= gain`` at every pixel.

    ``U`` are cubic B-splines on a grid of control points, or polynomials in Bernstein's form. Both lie between their
    smallest and largest coefficient, so bounds on the coefficients keep the bound on the gain. Where the sibling's
    code takes L-2 normalised steps of ``c``, here every coefficient moves by the same step: the bound is a box, and a
    step of fixed L-2 length does not reach its corners. With ``max_iter=0`` and ``num_random_init`` draws it is its own
    control.
    """

    facts = Facts(
        models="A scanner whose coil, anode heel or lamp lights the field of view unevenly, in the worst way.",
        bound="smooth field, largest gain in per cent",
        access="white",
        dimensions=(2, 3),
        paper="Tian et al. 2021, arXiv 2009.09247; Chen et al. 2020, arXiv 2006.13322",
    )

    attack_params = [*FieldAttack.attack_params, "gain", "field", "spacing", "degree"]

    def __init__(
        self,
        estimator: MedicalClassifier,
        gain: float | NDArray[Any] = 30.0,
        field: str = "bspline",
        spacing: float | None = None,
        degree: int = 3,
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
        :param gain: Largest ``|b - 1|`` in per cent, in (0, 100), one number or one for each sample.
        :param field: ``bspline`` or ``polynomial``.
        :param spacing: Largest distance of control points in pixels, for ``bspline``; by default a quarter of the
            longest side.
        :param degree: Degree along each axis from 0 to 5, for ``polynomial``; 0 is one gain for the whole image.
        :param max_iter: Steps in each start; one step is ``2.5 / max_iter`` of the largest gain.
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
        self.gain = gain
        self.field = field
        self.spacing = spacing
        self.degree = degree
        self._check_params()

    def _attack(self, batch: Batch) -> Found:
        part = batch.per_sample("gain", self.gain).double() / 100
        limits = torch.stack([torch.log1p(-part), torch.log1p(part)], 1)
        return self._search(batch, self._basis(batch.x), limits, torch.zeros_like)

    def _basis(self, x: Tensor) -> Basis:
        spatial = tuple(x.shape[2:])
        if self.field == "polynomial":
            return Basis(tuple(bernstein_axis(pixels, self.degree).to(x.device) for pixels in spatial))
        spacing = max(spatial) / 4 if self.spacing is None else self.spacing
        return Basis(tuple(bspline_axis(pixels, spacing).to(x.device) for pixels in spatial))

    def _check_params(self) -> None:
        super()._check_params()
        gain = np.asarray(self.gain)
        if not ((gain > 0) & (gain < 100)).all():
            raise InputError(f"gain is in per cent, above 0 and below 100, got {self.gain!r}")
        if self.field not in ("bspline", "polynomial"):
            raise InputError(f"field must be bspline or polynomial, got {self.field!r}")
        if self.spacing is not None and not self.spacing >= 1:
            raise InputError(f"spacing is in pixels, 1 or more, got {self.spacing!r}")
        if not isinstance(self.degree, int) or not 0 <= self.degree <= 5:
            raise InputError(f"degree must be a whole number from 0 to 5, got {self.degree!r}")
