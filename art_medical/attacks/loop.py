# SPDX-License-Identifier: Apache-2.0
"""The loop: perturbation x objective x optimiser, the best image of each sample, its cost and the trace of its work."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from art_medical.attacks.noise import Noise
from art_medical.attacks.objectives import Objective, evaluate
from art_medical.attacks.optimisers import Optimiser
from art_medical.attacks.perturbations import Perturbation

Scores = Callable[[Tensor], Tensor]
"""Stored pixels ``(n, C, *spatial)`` to decision logits ``(n, K)``, differentiable."""


@dataclass
class Found:
    """Best images of a batch so far, with the evidence of the search.

    :param x: Best stored pixels ``(n, C, *spatial)``.
    :param distance: Its signed distance to success ``(n,)``: infinite before the first look, negative on success.
    :param forward: Forward passes spent on each sample ``(n,)``.
    :param backward: Backward passes spent on each sample ``(n,)``.
    :param zero_gradient: Whether a gradient of the sample was exactly zero everywhere ``(n,)``.
    :param trace: Mean objective over the samples still searched, one value for each forward pass.
    """

    x: Tensor
    distance: Tensor
    forward: Tensor
    backward: Tensor
    zero_gradient: Tensor
    trace: list[float]

    @classmethod
    def nothing_yet(cls, x: Tensor) -> Found:
        """Before the first look: the clean images."""
        n, device = len(x), x.device
        return cls(
            x=x.clone(),
            distance=torch.full((n,), math.inf, dtype=torch.float64, device=device),
            forward=torch.zeros(n, dtype=torch.int64, device=device),
            backward=torch.zeros(n, dtype=torch.int64, device=device),
            zero_gradient=torch.zeros(n, dtype=torch.bool, device=device),
            trace=[],
        )

    def keep_better(self, rows: Tensor, x: Tensor, distance: Tensor) -> None:
        """Take over the samples that came closer to success, or further beyond it."""
        better = distance < self.distance[rows]
        self.distance[rows] = torch.where(better, distance, self.distance[rows])
        if bool(better.all()) and len(rows) == len(self.x):
            self.x.copy_(x)
        else:
            self.x[rows[better]] = x[better]


def search(
    scores: Scores,
    perturbation: Perturbation,
    objective: Objective,
    optimiser: Optimiser,
    y: Tensor,
    found: Found,
    *,
    max_iter: int,
    confidence: float,
    noise: Noise | None,
) -> None:
    """Minimise ``objective`` over ``perturbation`` for each sample of a batch; improves ``found`` in place.

    Makes at most ``max_iter + 1`` forward and ``max_iter`` backward passes, all on samples whose distance to success is
    above ``-confidence``; the others have left. Parameters of the model need no gradient.

    :param y: Class indices ``(n,)``.
    :param confidence: Margin in logits at which a sample is done; infinite to spend the whole budget on all.
    :param noise: Random start, or ``None`` to start at the clean image.
    """
    rows = torch.arange(len(y), device=y.device)
    theta = perturbation.start(noise)
    for iteration in range(max_iter + 1):
        active = found.distance[rows] >= -confidence
        if not bool(active.all()):
            keep = active.nonzero()[:, 0]
            if len(keep) == 0:
                return
            rows, theta, y = rows[keep], theta[keep], y[keep]
            perturbation, optimiser = perturbation.select(keep), optimiser.select(keep)
        last = iteration == max_iter
        x = perturbation.stored(theta).detach()
        with torch.set_grad_enabled(not last):
            z = scores(x.requires_grad_(not last))
        value = evaluate(objective, z, y)
        found.keep_better(rows, x.detach(), value.distance)
        found.forward[rows] += 1
        found.trace.append(float(value.objective.mean()))
        if last or bool((found.distance[rows] < -confidence).all()):
            return
        (gradient,) = torch.autograd.grad(z, x, value.direction)
        found.backward[rows] += 1
        found.zero_gradient[rows] |= ~gradient.flatten(1).any(1)
        theta = optimiser.advance(theta, gradient, value.objective, perturbation)
