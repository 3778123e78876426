# SPDX-License-Identifier: Apache-2.0
"""The loop for attacks that want more than a wrong decision: quiet features, or a change that survives smoothing.

:func:`~art_medical.attacks.loop.search` stops a sample at success and keeps the image that goes furthest beyond it.
Here success is a condition and the objective goes on: among the images that are decided wrongly the one with the lowest
objective is kept, and until there is one, the one closest to success.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from art_medical.attacks.loop import Found
from art_medical.attacks.objectives import Objective, evaluate
from art_medical.attacks.optimisers import Optimiser
from art_medical.attacks.perturbations import Perturbation

JointScores = Callable[[Tensor, Tensor], Tensor]
"""Stored pixels ``(n, C, *spatial)`` and their rows in the batch ``(n,)`` to what the objective looks at ``(n, M)``:
decision logits, then whatever else; differentiable."""


def search_jointly(
    scores: JointScores,
    perturbation: Perturbation,
    objective: Objective,
    optimiser: Optimiser,
    y: Tensor,
    found: Found,
    *,
    max_iter: int,
    confidence: float,
    passes: int = 1,
) -> None:
    """Minimise ``objective`` for each sample of a batch, from the clean image on; improves ``found`` in place.

    A clean image that is decided wrongly by ``confidence`` leaves at once and stays as it is. All others take
    ``max_iter`` steps.

    :param y: What the objective needs to know of each sample, ``(n,)`` or ``(n, ...)``.
    :param confidence: Margin in logits from which an image counts as decided wrongly; infinite to keep the image that
        goes furthest.
    :param passes: Images that ``scores`` shows the network for each sample.
    """
    rows = torch.arange(len(y), device=y.device)
    lowest = torch.full((len(y),), torch.inf, dtype=torch.float64, device=y.device)
    theta = perturbation.start(None)
    for iteration in range(max_iter + 1):
        last = iteration == max_iter
        x = perturbation.stored(theta).detach()
        with torch.set_grad_enabled(not last):
            z = scores(x.requires_grad_(not last), rows)
        value = evaluate(objective, z, y)
        _keep(found, lowest, rows, x.detach(), value.distance, value.objective, confidence)
        found.forward[rows] += passes
        found.trace.append(float(value.objective.mean()))
        done = value.distance < -confidence
        if last or (iteration == 0 and bool(done.all())):
            return
        (gradient,) = torch.autograd.grad(z, x, value.direction)
        found.backward[rows] += passes
        found.zero_gradient[rows] |= ~gradient.flatten(1).any(1)
        theta = optimiser.advance(theta, gradient, value.objective, perturbation)
        if iteration == 0 and bool(done.any()):
            keep = (~done).nonzero()[:, 0]
            rows, theta, y = rows[keep], theta[keep], y[keep]
            perturbation, optimiser = perturbation.select(keep), optimiser.select(keep)


def _keep(
    found: Found, lowest: Tensor, rows: Tensor, x: Tensor, distance: Tensor, objective: Tensor, confidence: float
) -> None:
    wrong = distance < -confidence
    had = lowest[rows] < torch.inf
    better = torch.where(had | wrong, wrong & (objective < lowest[rows]), distance < found.distance[rows])
    at = rows[better]
    found.x[at], found.distance[at] = x[better], distance[better]
    lowest[rows[better & wrong]] = objective[better & wrong]
