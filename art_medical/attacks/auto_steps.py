# SPDX-License-Identifier: Apache-2.0
"""Steps that adapt to their own progress: the optimisers of APGD, one state for each sample."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from art_medical.attacks.optimisers import STEEPEST, Optimiser, sparse_step
from art_medical.attacks.perturbations import Perturbation


def checkpoints(n_iter: int) -> tuple[int, ...]:
    """``w_0, w_1, ...`` of Croce and Hein (2020), section 3.1, up to ``n_iter``.

    ``w_j = ceil(p_j n_iter)`` with ``p_0 = 0``, ``p_1 = 0.22`` and ``p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)``,
    reckoned in hundredths, for in floating point 0.58 of 100 steps may be 59.
    """
    found, p, length = [0], 22, 22
    while p <= 100:
        found.append(-(-p * n_iter // 100))
        length = max(length - 3, 6)
        p += length
    return tuple(dict.fromkeys(found))


class AdaptiveSteps(Optimiser):
    """Base of the rules that go back to the best point so far, with its gradient: going back costs no pass."""

    theta_best: Tensor
    gradient_best: Tensor
    f_best: Tensor

    def __init__(self, eps_step: Tensor) -> None:
        super().__init__(eps_step)
        self.k = 0

    def advance(self, theta: Tensor, gradient: Tensor, objective: Tensor, perturbation: Perturbation) -> Tensor:
        if self.k == 0:
            self.theta_best, self.gradient_best, self.f_best = theta.clone(), gradient.clone(), objective.clone()
        else:
            better = objective < self.f_best
            self.theta_best = _choose(better, theta, self.theta_best)
            self.gradient_best = _choose(better, gradient, self.gradient_best)
            self.f_best = torch.where(better, objective, self.f_best)
        following = self.follow(theta, gradient, objective, perturbation)
        self.k += 1
        return following

    @abstractmethod
    def follow(self, theta: Tensor, gradient: Tensor, objective: Tensor, perturbation: Perturbation) -> Tensor:
        """As :meth:`advance`, when the best point is known; not in place on ``theta``."""


class AutoSteps(AdaptiveSteps):
    """Algorithm 1 of Croce and Hein (2020, arXiv 2003.01690) for the L-infinity and L-2 norm.

    The paper looks at a point that it then leaves for the best one; here the decision of a checkpoint falls when its
    value is known, before the next step, which saves that pass.

    :param eps_step: ``eta`` at the start, one for each sample.
    :param norm: ``linf`` or ``l2``.
    :param n_iter: Steps of the whole search, for the checkpoints.
    """

    ALPHA = 0.75
    RHO = 0.75

    x_before: Tensor
    f_before: Tensor
    improved: Tensor
    halved: Tensor
    f_checkpoint: Tensor

    def __init__(self, eps_step: Tensor, norm: str, n_iter: int) -> None:
        super().__init__(eps_step)
        self.norm = norm
        self.w = checkpoints(n_iter)

    def step(self, theta: Tensor, gradient: Tensor) -> Tensor:
        return STEEPEST[self.norm](self.eps_step).step(theta, gradient)

    def follow(self, theta: Tensor, gradient: Tensor, objective: Tensor, perturbation: Perturbation) -> Tensor:
        x = theta
        if self.k == 0:
            self.improved = torch.zeros_like(objective)
            self.halved = torch.ones_like(objective, dtype=torch.bool)
            self.f_checkpoint = objective.clone()
            self.x_before = x
        else:
            self.improved = self.improved + (objective < self.f_before)
        self.f_before = objective
        if self.k in self.w[1:]:
            back = self._checkpoint()
            x, gradient = _choose(back, self.theta_best, x), _choose(back, self.gradient_best, gradient)
            self.f_before = torch.where(back, self.f_best, objective)
        z = STEEPEST[self.norm](self.eps_step).advance(x.clone(), gradient, objective, perturbation)
        if self.k > 0:
            z = perturbation.project(x + self.ALPHA * (z - x) + (1 - self.ALPHA) * (x - self.x_before))
        self.x_before = x
        return z

    def _checkpoint(self) -> Tensor:
        """Halve the steps of the samples that need it, by condition 1 or 2, and say which these are."""
        past = self.k - self.w[self.w.index(self.k) - 1]
        few = self.improved < self.RHO * past
        stuck = ~self.halved & (self.f_best >= self.f_checkpoint)
        back = few | stuck
        self.eps_step = torch.where(back, self.eps_step / 2, self.eps_step)
        self.halved, self.f_checkpoint = back, self.f_best
        self.improved = torch.zeros_like(self.improved)
        return back


class AutoSparseSteps(AdaptiveSteps):
    """L-1 APGD (Croce and Hein 2021, arXiv 2103.01208, algorithm 1): steps on fewer values as the best change thins.

    At each checkpoint the next steps move as many values as 2/3 of those that the best change so far has. While that
    number falls, the step is long and starts from the best point; when it stands, the step shrinks. The paper's 2/3
    takes its 3072 values to a single one in 60 % of the steps; with more values or fewer checkpoints the share is
    smaller, so that this stays so.

    Unlike the paper, the count leaves out values at a face of the box, which no step moves, and those that rounding
    takes back: with them the number of values stops falling too early, and even a linear model is not solved.

    :param eps_step: ``eta`` at the start, one for each sample; the smallest step is a tenth of it.
    :param clean: Clean images, from which the change counts.
    :param n_iter: Steps of the whole search.
    """

    SHORTER = 1.5
    STANDS = 0.95
    SMALLEST = 0.1

    def __init__(self, eps_step: Tensor, clean: Tensor, n_iter: int) -> None:
        super().__init__(eps_step)
        self.eps_step_first = eps_step
        self.clean = clean
        widest = max(clean[0].numel() / 5, 1.0)
        self.count = torch.full_like(eps_step, widest)
        self.every = max(1, math.ceil(n_iter / 25))
        self.fewer = max(1.5, widest ** (self.every / (0.6 * max(n_iter, 1))))

    def step(self, theta: Tensor, gradient: Tensor) -> Tensor:
        return sparse_step(theta, gradient, gradient, self.eps_step, self.count)

    def follow(self, theta: Tensor, gradient: Tensor, objective: Tensor, perturbation: Perturbation) -> Tensor:
        if self.k > 0 and self.k % self.every == 0:
            back = self._checkpoint(perturbation)
            theta, gradient = _choose(back, self.theta_best, theta), _choose(back, self.gradient_best, gradient)
        movable = perturbation.movable(theta, gradient)
        return perturbation.project(sparse_step(theta.clone(), gradient, movable, self.eps_step, self.count))

    def _checkpoint(self, perturbation: Perturbation) -> Tensor:
        """Set number and length for the next steps, and say which samples go back to their best point."""
        changed = perturbation.stored(self.theta_best.clone()) != self.clean
        changed &= perturbation.movable(self.theta_best, self.gradient_best) != 0
        count = (changed.flatten(1).sum(1) / self.fewer).clamp(min=1).to(self.count.dtype)
        falls: Tensor = count < self.STANDS * self.count
        shorter = torch.maximum(self.eps_step / self.SHORTER, self.eps_step_first * self.SMALLEST)
        self.eps_step = torch.where(falls, self.eps_step_first, shorter)
        self.count = count
        return falls


def _choose(rows: Tensor, there: Tensor, here: Tensor) -> Tensor:
    """``there`` in the samples ``rows``, ``here`` in the others."""
    chosen: Tensor = torch.where(rows.view(-1, *(1,) * (here.ndim - 1)), there, here)
    return chosen
