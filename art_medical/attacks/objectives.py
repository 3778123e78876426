# SPDX-License-Identifier: Apache-2.0
"""What the attacker wants: a number for each sample, to be minimised, from decision logits.

The arg-max of decision logits is the decision at the operating point, so ``margin < 0`` is success with every head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from art_medical.errors import InputError


def margin(z: Tensor, y: Tensor) -> Tensor:
    """``z_y - max_{j != y} z_j``: positive while class ``y`` is decided.

    :param z: Decision logits ``(N, K)``.
    :param y: Class indices ``(N,)``.
    :return: ``(N,)``.
    """
    own = z.gather(1, y[:, None])[:, 0]
    others = z.scatter(1, y[:, None], -torch.inf).amax(1)
    return own - others


class Objective(ABC):
    """A goal and the surrogate that leads to it.

    :param targeted: Whether ``y`` is the class to reach or the class to leave.
    """

    def __init__(self, targeted: bool = False) -> None:
        self.targeted = targeted

    @property
    def sign(self) -> int:
        """+1 to leave ``y``, -1 to reach it."""
        return -1 if self.targeted else 1

    @abstractmethod
    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        """Value ``(N,)`` for decision logits ``(N, K)``; smaller is better for the attacker."""

    def distance(self, z: Tensor, y: Tensor) -> Tensor:
        """Signed distance to success in logits ``(N,)``: negative when the goal is reached."""
        return self.sign * margin(z, y)


class CrossEntropy(Objective):
    """``J = -CE(z, y)``, targeted ``CE(z, t)`` (Madry et al. 2018, arXiv 1706.06083, section 2.1).

    Written as ``CE = softplus(log sum_{j != y} exp z_j - z_y)``, whose value and gradient keep their relative
    precision for confident predictions; ``log softmax`` rounds both to zero there.
    """

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        others = z.scatter(1, y[:, None], -torch.inf).logsumexp(1)
        return -self.sign * functional.softplus(others - z.gather(1, y[:, None])[:, 0])


class Margin(Objective):
    """``J = z_y - max_{j != y} z_j``, targeted its negative: never saturates (Carlini and Wagner, arXiv 1608.04644)."""

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        return self.distance(z, y)


class DifferenceOfLogitsRatio(Objective):
    """``J = (z_y - max_{j != y} z_j) / (z_p1 - z_p3)`` with ``z_p1 >= z_p2 >= ...`` (DLR; Croce and Hein 2020, eq. 6).

    Unmoved by shift and scale of the logits. Targeted, with target ``t``: ``(max_{j != t} z_j - z_t) / (z_p1 - (z_p3 +
    z_p4) / 2)``, which is their equation 7 with the strongest other class in the place of the true one. Needs three
    exclusive classes, targeted four: below that the ratio is constant or has no denominator.
    """

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        needed = self.classes(self.targeted)
        if z.shape[1] < needed:
            raise InputError(f"the DLR objective needs {needed} classes or more, got {z.shape[1]}; use Margin")
        ranked = z.topk(needed, dim=1).values
        spread = ranked[:, 0] - ranked[:, 2:].mean(1)
        return self.distance(z, y) / spread.clamp(min=1e-12)

    @staticmethod
    def classes(targeted: bool) -> int:
        """Fewest exclusive classes for which it is defined."""
        return 4 if targeted else 3


@dataclass(frozen=True)
class Value:
    """Objective, distance to success and the direction in logit space that lowers the objective."""

    objective: Tensor
    distance: Tensor
    direction: Tensor


def evaluate(objective: Objective, z: Tensor, y: Tensor) -> Value:
    """Value and logit gradient in float64, the gradient scaled to a largest entry of 1 for each sample.

    The derivative of cross-entropy falls below the smallest float32 number for confident predictions, and an attack
    that takes sign or normalised steps would then stand still although its direction is well defined. Taking the scale
    out before the gradient enters the network removes that failure. Where even float64 has nothing left (logits some
    700 apart), the direction is that of the distance to success.
    """
    logits = z.detach().double().requires_grad_(True)
    value, distance = objective(logits, y), objective.distance(logits, y)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    scale = gradient.abs().amax(1, keepdim=True)
    if not bool(scale.all()):
        (towards_success,) = torch.autograd.grad(distance.sum(), logits)
        gradient = torch.where(scale > 0, gradient, towards_success)
        scale = gradient.abs().amax(1, keepdim=True)
    direction = gradient / scale.where(scale > 0, scale.new_ones(()))
    return Value(value.detach(), distance.detach(), direction.to(z.dtype))
