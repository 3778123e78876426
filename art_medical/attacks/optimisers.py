# SPDX-License-Identifier: Apache-2.0
"""How an attack gets there: one step of the parameters against the gradient.

Steps are in the unit of the stored pixel. An optimiser belongs to one search. What it remembers of the samples are
tensor attributes with one row for each sample, so that samples can leave.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import TypeVar

import torch
from torch import Tensor

from art_medical.attacks.perturbations import Perturbation

Chosen = TypeVar("Chosen", bound="Optimiser")


class Optimiser(ABC):
    """A rule for one step.

    :param eps_step: Length of a step for each sample ``(n,)``, in the unit of the domain.
    """

    def __init__(self, eps_step: Tensor) -> None:
        self.eps_step = eps_step

    @abstractmethod
    def step(self, theta: Tensor, gradient: Tensor) -> Tensor:
        """Parameters after one step that lowers the objective; works in place on both arguments."""

    def advance(self, theta: Tensor, gradient: Tensor, objective: Tensor, perturbation: Perturbation) -> Tensor:
        """Allowed parameters for the next look; may work in place on ``theta`` and ``gradient``.

        :param objective: Value of the objective at ``theta`` ``(n,)``.
        """
        return perturbation.project(self.step(theta, gradient))

    def select(self: Chosen, keep: Tensor) -> Chosen:
        """The same for the samples at the indices ``keep``."""
        other = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(other, name, value[keep])
        return other


class SignSteps(Optimiser):
    """Steepest descent in the L-infinity norm: every pixel moves by ``eps_step``."""

    def step(self, theta: Tensor, gradient: Tensor) -> Tensor:
        return theta.addcmul_(gradient.sign_(), _rows(self.eps_step, theta), value=-1)


class MeasuredSteps(Optimiser):
    """A step whose length is that of the part that can move.

    Values at a face of the box do not use the length up, but are pushed on all the same: the projection, which takes
    from everything, would otherwise draw them back.
    """

    def step(self, theta: Tensor, gradient: Tensor) -> Tensor:
        return self.measured(theta, gradient, gradient)

    def advance(self, theta: Tensor, gradient: Tensor, objective: Tensor, perturbation: Perturbation) -> Tensor:
        return perturbation.project(self.measured(theta, gradient, perturbation.movable(theta, gradient)))

    @abstractmethod
    def measured(self, theta: Tensor, gradient: Tensor, movable: Tensor) -> Tensor:
        """Parameters after one step; ``movable`` is the gradient where they can follow it, zero elsewhere."""


class NormalisedSteps(MeasuredSteps):
    """Steepest descent in the L-2 norm: the image moves by ``eps_step`` along the gradient."""

    def measured(self, theta: Tensor, gradient: Tensor, movable: Tensor) -> Tensor:
        return _along(theta, gradient, self.eps_step, movable.flatten(1).norm(dim=1))


class SparseSteps(MeasuredSteps):
    """Steps of L-1 length ``eps_step``, spread evenly over the values with the largest gradients.

    The sparse descent of Tramer and Boneh (2019, arXiv 1904.13000, section 3), except that the number of values falls
    geometrically. One value is the steepest descent in the L-1 norm but slow; many are fast but all grow alike, and
    the best among them never gets the whole budget.

    :param widest: Number of values in the first step.
    :param narrowing: Factor on that number from step to step, at most 1; it ends at one value.
    """

    def __init__(self, eps_step: Tensor, widest: float, narrowing: float) -> None:
        super().__init__(eps_step)
        self.count = torch.full_like(eps_step, widest)
        self.narrowing = narrowing

    def measured(self, theta: Tensor, gradient: Tensor, movable: Tensor) -> Tensor:
        moved = sparse_step(theta, gradient, movable, self.eps_step, self.count)
        self.count = self.count * self.narrowing
        return moved


class PixelSteps(MeasuredSteps):
    """Steps along the gradient for few pixels that may take any value (Croce and Hein 2019, arXiv 1909.05040).

    The projection keeps the pixels that gain most. In the limit of long steps these are the best ones of the linear
    model, at the end of their range; short steps refine values and need several steps to exchange a pixel.

    :param eps_step: Mean length of the step of one value: in the L-1 norm, divided by the number of values.
    :param narrowing: Factor on the length from step to step, at most 1.
    """

    def __init__(self, eps_step: Tensor, narrowing: float) -> None:
        super().__init__(eps_step)
        self.narrowing = narrowing

    def measured(self, theta: Tensor, gradient: Tensor, movable: Tensor) -> Tensor:
        moving = (movable != 0).flatten(1).sum(1)
        moved = _along(theta, gradient, self.eps_step * moving, movable.flatten(1).norm(p=1, dim=1))
        self.eps_step = self.eps_step * self.narrowing
        return moved


STEEPEST: dict[str, type[Optimiser]] = {"linf": SignSteps, "l2": NormalisedSteps}
"""The optimiser that takes steepest-descent steps in a norm."""


def sparse_step(theta: Tensor, gradient: Tensor, movable: Tensor, length: Tensor, count: Tensor) -> Tensor:
    """A step of L-1 length ``length`` shared by the ``count`` values with the largest gradients among the movable.

    :param count: Numbers ``(n,)``; rounded, one at least.
    """
    size = movable.flatten(1).abs()
    wanted = count.round().clamp(1, size.shape[1]).long()
    ranked = size.topk(int(wanted.max()), dim=1).values
    smallest = ranked.gather(1, wanted[:, None] - 1).clamp(min=torch.finfo(size.dtype).tiny)
    share = length / (size >= smallest).sum(1).clamp(min=1)
    direction = gradient.sign() * (gradient.flatten(1).abs() >= smallest).view_as(gradient)
    return theta.addcmul_(direction, _rows(share, theta), value=-1)


def _along(theta: Tensor, gradient: Tensor, eps_step: Tensor, length: Tensor) -> Tensor:
    """``theta`` minus ``gradient`` scaled so that ``length`` becomes ``eps_step``; a length of 0 moves nothing."""
    factor = torch.where(length > 0, eps_step / length.clamp(min=1e-30), 0)
    return theta.addcmul_(gradient, _rows(factor, theta), value=-1)


def _rows(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (x.ndim - 1))
