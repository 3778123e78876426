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

from art_medical.attacks import projections
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

    def movable(self, theta: Tensor, gradient: Tensor) -> Tensor:
        """The gradient where ``theta`` can follow it downwards, zero where a mask or a bound stops it.

        Steps of a given length measure it there: what cannot move must not use the length up. By default everything
        can move.
        """
        return gradient


class Additive(Perturbation):
    """``x' = x + delta`` with ``delta`` in a ball; ``theta`` is the unrounded image.

    :param x: Clean stored pixels ``(n, C, *spatial)``.
    :param eps: Budget of each sample ``(n,)``.
    :param domain: The box and the grid.
    :param quantise: Return values that the file can hold.
    :param mask: 1 where a pixel may change, 0 elsewhere, of the shape of ``x``; ``None`` for everywhere.
    """

    def __init__(self, x: Tensor, eps: Tensor, domain: PixelDomain, quantise: bool, mask: Tensor | None) -> None:
        self.x, self.eps, self.domain, self.mask = x, eps, domain, mask
        self.quantise = quantise and domain.step is not None

    def select(self, keep: Tensor) -> Perturbation:
        return type(self)(self.x[keep], self.eps[keep], self.domain, self.quantise, _select(self.mask, keep))

    def movable(self, theta: Tensor, gradient: Tensor) -> Tensor:
        stopped = (theta <= self.domain.low) & (gradient > 0) | (theta >= self.domain.high) & (gradient < 0)
        if self.mask is not None:
            stopped |= self.mask == 0
        return gradient.masked_fill(stopped, 0)

    def _room(self, delta: Tensor) -> Tensor:
        """How far each value can go from the clean one in the direction of ``delta``."""
        room = torch.where(delta > 0, self.domain.high - self.x, self.x - self.domain.low).clamp_(min=0)
        return room if self.mask is None else room.mul_(self.mask)

    def _changed(self, delta: Tensor) -> Tensor:
        """The clean image plus a change that fits; float32 sums may miss the box by their last bit."""
        return delta.add_(self.x).clamp_(self.domain.low, self.domain.high)

    def _moved(self, steps: Tensor) -> Tensor:
        """The clean image, moved by whole steps of the grid."""
        assert self.domain.step is not None
        moved = self.domain.quantise(self.x + steps * self.domain.step)
        return torch.where(steps == 0, self.x, moved)


class AdditiveLinf(Additive):
    """``|x' - x| <= eps`` for every value."""

    def __init__(self, x: Tensor, eps: Tensor, domain: PixelDomain, quantise: bool, mask: Tensor | None) -> None:
        super().__init__(x, eps, domain, quantise, mask)
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


class AdditiveL2(Additive):
    """``||x' - x||_2 <= eps`` over all values of a sample.

    Rounding keeps the length of the change: ``delta`` is scaled by the largest factor ``s`` with
    ``||round(s delta)|| <= ||delta||`` before it is rounded, otherwise a budget below half a step for each pixel would
    round to no change at all. The left side grows with ``s``, so bisection finds it.
    """

    _BISECTIONS = 16

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
        delta = theta - self.x
        return self._changed(projections.l2_ball(delta, self._room(delta), self.eps))

    def stored(self, theta: Tensor) -> Tensor:
        if not self.quantise:
            return theta
        assert self.domain.step is not None
        steps = (theta - self.x) / self.domain.step
        # A hair below the exact length: float32 sums must not carry the rounded change over the budget.
        length = _norm(steps) * (1 - 1e-6)
        below = torch.zeros_like(length)
        above = 1 + 1 / steps.abs().flatten(1).amax(1).clamp(min=1e-30)
        for _ in range(self._BISECTIONS):
            middle = (below + above) / 2
            fits = _norm(self._rounded(steps, middle)) <= length
            below, above = torch.where(fits, middle, below), torch.where(fits, above, middle)
        return self._moved(self._rounded(steps, below))

    def _rounded(self, steps: Tensor, scale: Tensor) -> Tensor:
        assert self.domain.step is not None
        low = (self.domain.low - self.x) / self.domain.step
        high = (self.domain.high - self.x) / self.domain.step
        return torch.minimum(torch.maximum((steps * _per_sample(scale, steps)).round(), low), high)


class AdditiveL1(Additive):
    """``sum |x' - x| <= eps`` over all values of a sample, channels included.

    Rounding apportions the budget in whole steps, see :func:`~art_medical.attacks.projections.apportion`.
    """

    def start(self, noise: Noise | None) -> Tensor:
        if noise is None:
            return self.x.clone()
        # Exponential spacings with random signs, and one spacing more for the radius, are uniform in the ball.
        spacings = -torch.log1p(-noise.uniform(self.x.shape[1:]).to(self.x.device))
        sign = noise.uniform(self.x.shape[1:]).to(self.x.device).sub_(0.5).sign_()
        if self.mask is not None:
            spacings *= self.mask
        beyond = -torch.log1p(-noise.uniform((1,)).to(self.x.device)[:, 0])
        total = spacings.flatten(1).sum(1) + beyond
        return self.project(self.x + sign * spacings * _per_sample(self.eps / total, self.x))

    def project(self, theta: Tensor) -> Tensor:
        delta = theta - self.x
        return self._changed(projections.l1_ball(delta, self._room(delta), self.eps))

    def stored(self, theta: Tensor) -> Tensor:
        if not self.quantise:
            return theta
        assert self.domain.step is not None
        steps = (theta - self.x) / self.domain.step
        room = (self._room(steps) / self.domain.step).round()
        return self._moved(projections.apportion(steps, room, (self.eps / self.domain.step).round()))


class AdditiveL0(Additive):
    """At most ``eps`` changed pixels; inside the domain each may take any value.

    A pixel is a spatial position: all its channels count as one.
    """

    def start(self, noise: Noise | None) -> Tensor:
        if noise is None:
            return self.x.clone()
        places = noise.uniform((1, *self.x.shape[2:])).to(self.x.device)
        values = noise.uniform(self.x.shape[1:]).to(self.x.device) * self.domain.span + self.domain.low
        if self.mask is not None:
            places = places.masked_fill(self.mask.amax(1, keepdim=True) == 0, -1)
        return self.project(torch.where(projections.largest(places, self.eps), values, self.x))

    def project(self, theta: Tensor) -> Tensor:
        delta = theta - self.x
        return self._changed(projections.l0_ball(delta, self._room(delta), self.eps))

    def stored(self, theta: Tensor) -> Tensor:
        return torch.where(theta == self.x, theta, self.domain.quantise(theta)) if self.quantise else theta


def additive(
    norm: str, x: Tensor, eps: Tensor, domain: PixelDomain, quantise: bool, mask: Tensor | None
) -> Perturbation:
    """The additive perturbation of a norm: ``linf``, ``l2``, ``l1``, or ``l0``, whose budget is a number of pixels.

    :raises InputError: If images are off the grid that the result must be on, or the budget is below one step or pixel.
    """
    kind = _ADDITIVE[norm]
    if quantise and domain.step is not None and not domain.on_grid(x):
        raise InputError(
            f"images are not on the storage grid of {domain.step:g} {domain.unit}s; quantise them with "
            "domain.quantise(x), or attack with quantise=False and lose the file"
        )
    if norm == "l0":
        if float(eps.min()) < 1:
            raise InputError(
                f"an L-0 budget of {float(eps.min()):g} is below one pixel: no image can change; raise eps"
            )
        return kind(x, torch.floor(eps + 1e-6), domain, quantise, mask)
    if not quantise or domain.step is None:
        return kind(x, eps, domain, False, mask)
    if float(eps.min()) < domain.step:
        raise InputError(
            f"a budget of {float(eps.min()):g} {domain.unit}s is below one stored step of {domain.step:g}: no file can "
            "hold that change; raise eps or use quantise=False"
        )
    if norm != "l2":
        eps = torch.floor(eps / domain.step + 1e-6) * domain.step
    return kind(x, eps, domain, True, mask)


_ADDITIVE: dict[str, type[Additive]] = {
    "linf": AdditiveLinf,
    "l2": AdditiveL2,
    "l1": AdditiveL1,
    "l0": AdditiveL0,
}


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (x.ndim - 1))


def _norm(delta: Tensor) -> Tensor:
    length: Tensor = delta.flatten(1).norm(dim=1)
    return length


def _select(mask: Tensor | None, keep: Tensor) -> Tensor | None:
    return None if mask is None else mask[keep]
