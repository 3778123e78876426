# SPDX-License-Identifier: Apache-2.0
"""Fast minimum-norm attack (Pintor et al. 2021, arXiv 2102.12827) in the domain of stored pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from art_medical.attacks.base import Batch, Record, StoredPixelAttack
from art_medical.attacks.facts import Facts
from art_medical.attacks.loop import Found
from art_medical.attacks.noise import Noise
from art_medical.attacks.objectives import Margin, Value, evaluate
from art_medical.attacks.perturbations import Perturbation, additive
from art_medical.attacks.projected_gradient_descent import NORMS
from art_medical.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from art_medical.estimators.classifier import MedicalClassifier

_ORDER = {"linf": math.inf, "l2": 2, "l1": 1}
_DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
_ALPHA_FALLS_TO = 1 / 100
_GAMMA_FALLS_TO = 1 / 50


@dataclass(frozen=True)
class MinimumNormRecord(Record):
    """A record that also has the figure that a minimum-norm attack is for.

    :param norm: Norm of the change that is returned, in the attack's own norm: in the unit of the domain, for L-0 a
        number of pixels. It is the smallest that was found where ``success``; elsewhere the image is the clean one.
    """

    norm: NDArray[np.float64]


class FastMinimumNorm(StoredPixelAttack):
    """The smallest change that flips the decision: steps along the gradient in a ball whose radius finds the boundary.

    ``delta <- Pi_eps(delta - alpha g / ||g||_2)``. While ``x + delta`` keeps its label, the radius ``eps`` grows, first
    to the distance of the boundary of the linearised model, ``||delta||_p + |margin| / ||g||_q``, later by a factor
    ``1 + gamma``; once it has lost it, ``eps`` shrinks by ``1 - gamma``. Both ``alpha`` and ``gamma`` fall with a
    cosine.

    Three things differ from the paper. Every image that is looked at is on the storage grid, and the radius moves by
    one grid step (or pixel) at least where only such radii differ. The first estimate overshoots by ``1 + gamma``, or
    it would approach a curved boundary for ever. And for L-0 it is the number of pixels that the linearised model needs
    inside the box, where the paper counts up from one.
    """

    facts = Facts(
        models="Whoever can change pixels, knows the weights and wants the change to be as small as possible.",
        bound="none; the smallest linf, l2, l1 or l0 change is looked for",
        access="white",
        dimensions=(2, 3),
        paper="Pintor et al. 2021, arXiv 2102.12827",
    )

    attack_params = [
        *StoredPixelAttack.attack_params,
        "norm",
        "eps",
        "max_iter",
        "nb_restarts",
        "alpha",
        "gamma",
        "confidence",
    ]

    def __init__(
        self,
        estimator: MedicalClassifier,
        norm: int | float | str = np.inf,
        eps: float | NDArray[Any] | None = None,
        max_iter: int = 100,
        targeted: bool = False,
        nb_restarts: int = 1,
        alpha: float | None = None,
        gamma: float = 0.05,
        batch_size: int = 32,
        confidence: float = 0.0,
        quantise: bool = True,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param estimator: The classifier to attack.
        :param norm: ``np.inf`` (or ``"inf"``), 2, 1 or 0. For 0 a pixel counts once, however many of its channels
            change.
        :param eps: Largest norm that is of interest, one number or one for each sample: the search stays inside, and an
            image that needs more comes back unchanged. In the unit of the stored pixel, for L-0 in pixels. ``None``:
            no limit.
        :param max_iter: Steps in each start.
        :param targeted: Whether ``y`` is the label to reach.
        :param nb_restarts: Starts: the first at the clean image, each further one at a random image of the ball that
            the best one so far has left.
        :param alpha: Length (L-2) of the first step in the unit of the stored pixel; falls to a hundredth of it. By
            default the whole range as in the paper; for L-0 so long that pixels compete with what they can give inside
            the box, and not with their gradient alone.
        :param gamma: Relative change of the radius in the first step, in (0, 1); falls to a fiftieth of it.
        :param batch_size: Images in one pass.
        :param confidence: Margin in logits by which the decision must be wrong; finite.
        :param quantise: Look only at images that the file can hold.
        :param seed: Seeds the random starts, together with the ids of the samples.
        :param verbose: Show a progress bar over batches.
        """
        super().__init__(
            estimator,
            targeted=targeted,
            quantise=quantise,
            batch_size=batch_size,
            seed=seed,
            verbose=verbose,
        )
        self.norm = norm
        self.eps = eps
        self.max_iter = max_iter
        self.nb_restarts = nb_restarts
        self.alpha = alpha
        self.gamma = gamma
        self.confidence = confidence
        self._check_params()

    def _attack(self, batch: Batch) -> Found:
        found = Found.nothing_yet(batch.x)
        smallest = torch.full((len(batch.x),), math.inf, dtype=torch.float64, device=batch.x.device)
        limit = self._limit(batch)
        eps = torch.zeros_like(limit)
        for start in range(self.nb_restarts):
            if start:
                eps = torch.minimum(smallest, limit).clamp(min=self._least)
            ball = self._ball(batch, eps if start else limit)
            theta = ball.start(Noise(self.seed, batch.ids, f"restart-{start}") if start else None)
            rows = torch.arange(len(batch.x), device=batch.x.device)
            self._descend(_Walk(batch, rows, theta, ball, eps, limit), found, smallest)
        return found

    def _descend(self, walk: _Walk, found: Found, smallest: Tensor) -> None:
        """One start: improves ``found`` and ``smallest``, the norm of its change where it fools, in place."""
        objective = Margin(self.targeted)
        for k in range(self.max_iter + 1):
            going = smallest[walk.rows] > self._least
            if not bool(going.any()):
                return
            if not bool(going.all()):
                walk = walk.select(going.nonzero()[:, 0])
            last = k == self.max_iter
            x = walk.ball.stored(walk.theta).detach()
            with torch.set_grad_enabled(not last):
                z = self.scores(x.requires_grad_(not last))
            value = evaluate(objective, z, walk.batch.y)
            size = self._keep_smaller(walk, x.detach(), value, found, smallest)
            found.forward[walk.rows] += 1
            found.trace.append(float(value.objective.mean()))
            if last:
                return
            (gradient,) = torch.autograd.grad(z, x, value.direction)
            found.backward[walk.rows] += 1
            found.zero_gradient[walk.rows] |= ~gradient.flatten(1).any(1)
            self._step(walk, gradient, value.distance + self.confidence, size, smallest[walk.rows], k / self.max_iter)

    def _keep_smaller(self, walk: _Walk, x: Tensor, value: Value, found: Found, smallest: Tensor) -> Tensor:
        """Takes over images that fool with less change than the best one so far; the norm of the change of each."""
        size = length(x - walk.batch.x, self._kind)
        better = (value.distance < -self.confidence) & (size < smallest[walk.rows])
        smallest[walk.rows[better]] = size[better]
        found.x[walk.rows[better]] = x[better]
        # What is seen first is the clean image, which comes back where nothing fools.
        seen = better | torch.isinf(found.distance[walk.rows])
        found.distance[walk.rows[seen]] = value.distance[seen]
        return size

    def _step(
        self, walk: _Walk, gradient: Tensor, distance: Tensor, size: Tensor, smallest: Tensor, progress: float
    ) -> None:
        """``eps_k`` and ``delta_k`` of the paper's algorithm 1."""
        cosine = (1 + math.cos(math.pi * progress)) / 2
        gamma = self.gamma * (_GAMMA_FALLS_TO + (1 - _GAMMA_FALLS_TO) * cosine)
        alpha = self._first_step(gradient[0].numel()) * (_ALPHA_FALLS_TO + (1 - _ALPHA_FALLS_TO) * cosine)
        g = walk.ball.movable(walk.theta, gradient)
        unit = self._unit
        found_one = torch.isfinite(smallest)
        boundary = (size + self._to_boundary(walk, g, distance.clamp(min=0))) * (1 + gamma)
        shrunk = torch.minimum(walk.eps - unit, _whole(walk.eps * (1 - gamma), unit))
        grown = torch.maximum(walk.eps + unit, _whole(walk.eps * (1 + gamma), unit))
        # Where nothing fools yet the radius grows in any case: stored images may all fall short of the boundary.
        first = torch.maximum(boundary, walk.eps * (1 + self.gamma))
        eps = torch.where(found_one, grown, -_whole(-first, unit))
        eps = torch.where(distance < 0, shrunk, eps)
        # What is not smaller than the best image so far is of no use any more.
        walk.eps = torch.minimum(torch.minimum(eps, smallest - unit), walk.limit).clamp(min=self._least)
        walk.ball = self._ball(walk.batch, walk.eps)
        # The length is that of what can move. What is at a face of the box is pushed on all the same: the projection,
        # which takes from everything, would draw it back.
        scale = alpha / g.flatten(1).norm(dim=1).clamp(min=1e-30)
        walk.theta = walk.ball.project(walk.theta - gradient * scale.view(-1, *(1,) * (g.ndim - 1)))

    def _first_step(self, numbers: int) -> float:
        if self.alpha is not None:
            return self.alpha
        return self.domain.span * (100 * math.sqrt(numbers) if self._kind == "l0" else 1)

    def _to_boundary(self, walk: _Walk, gradient: Tensor, distance: Tensor) -> Tensor:
        """How far the linearised model is from another decision, ``(n,)``."""
        if self._kind != "l0":
            dual: Tensor = gradient.flatten(1).double().norm(_DUAL[self._kind], dim=1)
            return distance / dual.clamp(min=1e-300)
        room = torch.where(gradient < 0, self.domain.high - walk.theta, walk.theta - self.domain.low)
        gain = (gradient.abs() * room).sum(1).flatten(1).double().sort(1, descending=True).values.cumsum(1)
        return (gain <= distance[:, None]).sum(1).double() + 1

    def _ball(self, batch: Batch, eps: Tensor) -> Perturbation:
        return additive(self._kind, batch.x, eps.float(), self.domain, self.quantise, batch.mask)

    def _limit(self, batch: Batch) -> Tensor:
        """The largest radius ``(n,)``: that of the box, or what the caller is interested in."""
        span, numbers = self.domain.span, batch.x[0].numel()
        box = {"linf": span, "l2": span * math.sqrt(numbers), "l1": span * numbers, "l0": batch.x[0, 0].numel()}
        limit = torch.full((len(batch.x),), float(box[self._kind]), dtype=torch.float64, device=batch.x.device)
        return limit if self.eps is None else torch.minimum(limit, batch.per_sample("eps", self.eps).double())

    @property
    def _kind(self) -> str:
        return NORMS[self.norm]

    @property
    def _least(self) -> float:
        """The smallest norm that a change can have."""
        if self._kind == "l0":
            return 1.0
        return (self.domain.step or 0.0) if self.quantise else 0.0

    @property
    def _unit(self) -> float:
        """Radii between multiples of it hold the same images."""
        return 0.0 if self._kind == "l2" else self._least

    def _recorded(self, batch: Batch, found: Found) -> Record:
        record = super()._recorded(batch, found)
        entries = {field.name: getattr(record, field.name) for field in fields(Record)}
        return MinimumNormRecord(**entries, norm=length(found.x - batch.x, self._kind).cpu().numpy())

    def _check_params(self) -> None:
        super()._check_params()
        if isinstance(self.norm, bool) or self.norm not in NORMS:
            raise InputError(f"norm must be np.inf, 2, 1 or 0, got {self.norm!r}")
        if self.eps is not None and not (np.isfinite(self.eps) & (np.asarray(self.eps) > 0)).all():
            raise InputError(
                f"eps must be positive, in {'pixels' if self._kind == 'l0' else self.domain.units}, got {self.eps!r}"
            )
        for name in ("max_iter", "nb_restarts"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a positive whole number, got {value!r}")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise InputError(f"alpha must be a positive length in {self.domain.units}, got {self.alpha!r}")
        if not 0 < self.gamma < 1:
            raise InputError(f"gamma must be in (0, 1), got {self.gamma!r}")
        if not 0 <= self.confidence < math.inf:
            raise InputError(f"confidence is a finite margin in logits of 0 or more, got {self.confidence!r}")


@dataclass
class _Walk:
    """The samples that the search still goes on for.

    :param batch: These samples.
    :param rows: Where they are in the whole batch.
    :param theta: ``x + delta``, not rounded.
    :param ball: What ``delta`` must stay in.
    :param eps: Its radius.
    :param limit: The largest radius.
    """

    batch: Batch
    rows: Tensor
    theta: Tensor
    ball: Perturbation
    eps: Tensor
    limit: Tensor

    def select(self, keep: Tensor) -> _Walk:
        """The same for the samples at the indices ``keep``."""
        return _Walk(
            self.batch.select(keep),
            self.rows[keep],
            self.theta[keep],
            self.ball.select(keep),
            self.eps[keep],
            self.limit[keep],
        )


def length(delta: Tensor, norm: str) -> Tensor:
    """Norm of a change ``(n, C, *spatial)``, float64 ``(n,)``; for ``l0`` the number of changed positions."""
    if norm == "l0":
        return (delta != 0).any(1).flatten(1).sum(1).double()
    size: Tensor = delta.flatten(1).double().norm(_ORDER[norm], dim=1)
    return size


def _whole(value: Tensor, unit: float) -> Tensor:
    """The next multiple of ``unit`` below; everything is one of 0."""
    return torch.floor(value / unit + 1e-9) * unit if unit else value
