# SPDX-License-Identifier: Apache-2.0
"""How an attack gets there: one step of the parameters against the gradient, in place.

Steps are in the unit of the stored pixel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Optimiser(ABC):
    """A rule for one step.

    :param eps_step: Length of a step for each sample ``(n,)``, in the unit of the domain.
    """

    def __init__(self, eps_step: Tensor) -> None:
        self.eps_step = eps_step

    @abstractmethod
    def step(self, theta: Tensor, gradient: Tensor) -> Tensor:
        """Parameters after one step that lowers the objective; works in place on both arguments."""

    def select(self, keep: Tensor) -> Optimiser:
        """The same for the samples at the indices ``keep``."""
        return type(self)(self.eps_step[keep])


class SignSteps(Optimiser):
    """Steepest descent in the L-infinity norm: every pixel moves by ``eps_step``."""

    def step(self, theta: Tensor, gradient: Tensor) -> Tensor:
        return theta.addcmul_(gradient.sign_(), self.eps_step.view(-1, *(1,) * (theta.ndim - 1)), value=-1)


class NormalisedSteps(Optimiser):
    """Steepest descent in the L-2 norm: the image moves by ``eps_step`` along the gradient."""

    def step(self, theta: Tensor, gradient: Tensor) -> Tensor:
        length = gradient.flatten(1).norm(dim=1).clamp(min=1e-30)
        return theta.addcmul_(gradient, (self.eps_step / length).view(-1, *(1,) * (theta.ndim - 1)), value=-1)


STEEPEST: dict[str, type[Optimiser]] = {"linf": SignSteps, "l2": NormalisedSteps}
"""The optimiser that takes steepest-descent steps in a norm."""
