# SPDX-License-Identifier: Apache-2.0
"""What an attack may change: parameters, the stored pixels they make, and the set they must stay in.

A perturbation is bound to a batch. The loop hands it parameters ``theta`` and gets back stored pixels that a file can
hold; rounding is straight-through: the image that is scored is the rounded one and the gradient there is applied to the
unrounded parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from art_medical.attacks.noise import Noise
from art_medical.domain import PixelDomain
from art_medical.errors import InputError


class Perturbation(ABC):
    """A family of changes of one batch of images."""

    @abstractmethod
    def start(self, noise: Noise | None) -> Tensor:
        """First parameters: no change, or a random one when ``noise`` is given."""

    @abstractmethod
    def stored(self, theta: Tensor) -> Tensor:
        """Stored pixels ``(n, C, *spatial)`` for parameters; inside domain, budget and mask, on the grid if asked."""

    @abstractmethod
    def project(self, theta: Tensor) -> Tensor:
        """Nearest allowed parameters; may work in place."""

    @abstractmethod
    def select(self, keep: Tensor) -> Perturbation:
        """The same for the samples at the indices ``keep``."""


class AdditiveLinf(Perturbation):
    """``|x' - x| <= eps`` for every pixel; ``theta`` is the unrounded image.

    :param x: Clean stored pixels ``(n, C, *spatial)``.
    :param eps: Budget of each sample ``(n,)`` in the unit of the domain.
    :param domain: The box and the grid.
    :param quantise: Return values that the file can hold.
    :param mask: 1 where a pixel may change, 0 elsewhere, of the shape of ``x``; ``None`` for everywhere.
    """

    def __init__(self, x: Tensor, eps: Tensor, domain: PixelDomain, quantise: bool, mask: Tensor | None) -> None:
        self.x, self.eps, self.domain, self.quantise, self.mask = x, eps, domain, quantise, mask
        reach = _per_sample(eps, x) if mask is None else _per_sample(eps, x) * mask
        self.low = (x - reach).clamp_(min=domain.low)
        self.high = (x + reach).clamp_(max=domain.high)

    def start(self, noise: Noise | None) -> Tensor:
        if noise is None:
            return self.x.clone()
        uniform = noise.uniform(self.x.shape[1:]).to(self.x.device) * 2 - 1
        return self.project(self.x + uniform * _per_sample(self.eps, self.x))

    def stored(self, theta: Tensor) -> Tensor:
        return self.domain.quantise(theta) if self.quantise else theta

    def project(self, theta: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(theta, self.low, out=theta), self.high, out=theta)

    def select(self, keep: Tensor) -> Perturbation:
        return type(self)(self.x[keep], self.eps[keep], self.domain, self.quantise, _select(self.mask, keep))


class AdditiveL2(Perturbation):
    """``||x' - x||_2 <= eps`` over all pixels of a sample; parameters as in :class:`AdditiveLinf`.

    Rounding keeps the length of the change: ``delta`` is scaled by the largest factor ``s`` with
    ``||round(s delta)|| <= ||delta||`` before it is rounded, otherwise a budget below half a step for each pixel would
    round to no change at all. The left side grows with ``s``, so bisection finds it.
    """

    _BISECTIONS = 16

    def __init__(self, x: Tensor, eps: Tensor, domain: PixelDomain, quantise: bool, mask: Tensor | None) -> None:
        self.x, self.eps, self.domain, self.quantise, self.mask = x, eps, domain, quantise, mask

    def start(self, noise: Noise | None) -> Tensor:
        if noise is None:
            return self.x.clone()
        direction = noise.normal(self.x.shape[1:]).to(self.x.device)
        if self.mask is not None:
            direction *= self.mask
        size = self.x[0].numel()
        radius = noise.uniform((1,)).to(self.x.device)[:, 0] ** (1 / size)
        length = _norm(direction).clamp(min=1e-30)
        return self.project(self.x + direction * _per_sample(radius * self.eps / length, self.x))

    def project(self, theta: Tensor) -> Tensor:
        delta = theta.clamp_(self.domain.low, self.domain.high).sub_(self.x)
        if self.mask is not None:
            delta *= self.mask
        factor = (self.eps / _norm(delta).clamp(min=1e-30)).clamp(max=1)
        return delta.mul_(_per_sample(factor, delta)).add_(self.x)

    def stored(self, theta: Tensor) -> Tensor:
        if not self.quantise or self.domain.step is None:
            return theta
        steps = (theta - self.x) / self.domain.step
        # A hair below the exact length: float32 sums must not carry the rounded change over the budget.
        length = _norm(steps) * (1 - 1e-6)
        below = torch.zeros_like(length)
        above = 1 + 1 / steps.abs().flatten(1).amax(1).clamp(min=1e-30)
        for _ in range(self._BISECTIONS):
            middle = (below + above) / 2
            fits = _norm(self._rounded(steps, middle)) <= length
            below, above = torch.where(fits, middle, below), torch.where(fits, above, middle)
        return self.x + self._rounded(steps, below) * self.domain.step

    def _rounded(self, steps: Tensor, scale: Tensor) -> Tensor:
        assert self.domain.step is not None
        low = (self.domain.low - self.x) / self.domain.step
        high = (self.domain.high - self.x) / self.domain.step
        return torch.minimum(torch.maximum((steps * _per_sample(scale, steps)).round(), low), high)

    def select(self, keep: Tensor) -> Perturbation:
        return type(self)(self.x[keep], self.eps[keep], self.domain, self.quantise, _select(self.mask, keep))


def additive(
    norm: str, x: Tensor, eps: Tensor, domain: PixelDomain, quantise: bool, mask: Tensor | None
) -> Perturbation:
    """The additive perturbation of a norm, ``linf`` or ``l2``.

    :raises InputError: If images are off the grid that the result must be on, or the budget is below one step.
    """
    if not quantise or domain.step is None:
        return _ADDITIVE[norm](x, eps, domain, False, mask)
    if not domain.on_grid(x):
        raise InputError(
            f"images are not on the storage grid of {domain.step:g} {domain.unit}s; quantise them with "
            "domain.quantise(x), or attack with quantise=False and lose the file"
        )
    if float(eps.min()) < domain.step:
        raise InputError(
            f"a budget of {float(eps.min()):g} {domain.unit}s is below one stored step of {domain.step:g}: no file can "
            "hold that change; raise eps or use quantise=False"
        )
    if norm == "linf":
        eps = torch.floor(eps / domain.step + 1e-6) * domain.step
    return _ADDITIVE[norm](x, eps, domain, True, mask)


_ADDITIVE: dict[str, type[AdditiveLinf] | type[AdditiveL2]] = {"linf": AdditiveLinf, "l2": AdditiveL2}


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (x.ndim - 1))


def _norm(delta: Tensor) -> Tensor:
    length: Tensor = delta.flatten(1).norm(dim=1)
    return length


def _select(mask: Tensor | None, keep: Tensor) -> Tensor | None:
    return None if mask is None else mask[keep]
