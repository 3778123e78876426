# SPDX-License-Identifier: Apache-2.0
"""Square attack (Andriushchenko et al. 2020, arXiv 1912.00049): random search on scores, in stored pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from art_medical.attacks.base import Batch, StoredPixelAttack
from art_medical.attacks.facts import Facts
from art_medical.attacks.loop import Found
from art_medical.attacks.noise import Noise
from art_medical.attacks.objectives import Margin
from art_medical.attacks.perturbations import additive
from art_medical.attacks.projected_gradient_descent import NORMS
from art_medical.attacks.square_geometry import Area, Windows, share, tiles
from art_medical.domain import PixelDomain
from art_medical.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from art_medical.estimators.classifier import MedicalClassifier

_BLOCK = 64
"""Queries whose random numbers are drawn at once."""


class Square(StoredPixelAttack):
    """Change one square (in volumes: cube) at a time, and keep it when the margin falls.

    Each step costs one query, and no gradient. In L-infinity every pixel is at a face of the ball from the first query
    on, which shows stripes; in L-2 windows with a hill and a valley take budget from each other. The window gets
    smaller as the search goes on. Each sample has windows and random numbers of its own.
    """

    facts = Facts(
        models="Whoever can have images scored, for instance through a viewer, and does not know the weights.",
        bound="linf, l2",
        access="score",
        dimensions=(2, 3),
        paper="Andriushchenko et al. 2020, arXiv 1912.00049",
    )

    attack_params = [
        *StoredPixelAttack.attack_params,
        "norm",
        "eps",
        "max_iter",
        "p_init",
        "nb_restarts",
        "confidence",
    ]

    def __init__(
        self,
        estimator: MedicalClassifier,
        norm: int | float | str = np.inf,
        eps: float | NDArray[Any] = 2.0,
        max_iter: int = 1000,
        p_init: float = 0.8,
        targeted: bool = False,
        nb_restarts: int = 1,
        batch_size: int = 32,
        confidence: float = 0.0,
        quantise: bool = True,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param estimator: The classifier to attack.
        :param norm: ``np.inf`` (or ``"inf"``) or 2.
        :param eps: Budget in the unit of the stored pixel, one number or one for each sample, as in
            :class:`~art_medical.attacks.projected_gradient_descent.ProjectedGradientDescent`.
        :param max_iter: Queries of each start, after one look at the clean image.
        :param p_init: Share of the pixels in the first windows, in (0, 1].
        :param targeted: Whether ``y`` is the label to reach.
        :param nb_restarts: Starts, for samples that are not done yet.
        :param batch_size: Images in one pass.
        :param confidence: A sample is done, and left alone, when its decision is wrong by this margin in logits; 0
            stops at the first flip, infinity spends all queries on every sample.
        :param quantise: Return images that the file can hold.
        :param seed: Seeds the search, together with the ids of the samples.
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
        self.p_init = p_init
        self.nb_restarts = nb_restarts
        self.confidence = confidence
        self._check_params()

    def _attack(self, batch: Batch) -> Found:
        found = Found.nothing_yet(batch.x)
        eps = batch.per_sample("eps", self.eps)
        # Made for all, so that images off the grid and budgets below one step are refused whatever the model decides.
        search = _SEARCHES[NORMS[self.norm]](batch, eps, self.domain, self.quantise)
        self._query(batch.x, batch.y, torch.arange(len(batch.x), device=batch.x.device), found)
        for start in range(self.nb_restarts):
            rows = (found.distance >= -self.confidence).nonzero()[:, 0]
            if len(rows):
                self._search(search.select(rows), rows, found, start)
        return found

    def _search(self, search: _Search, rows: Tensor, found: Found, start: int) -> None:
        """One start; improves ``found`` in place."""
        theta = proposal = search.start(Noise(self.seed, search.batch.ids, f"start-{start}"))
        reached = theta.new_full((len(theta),), torch.inf, dtype=torch.float64)
        numbers = theta.new_empty((len(theta), 0, 0))
        for query in range(self.max_iter):
            if query > 0:
                block, place = divmod(query - 1, _BLOCK)
                if place == 0:
                    noise = Noise(self.seed, search.batch.ids, f"windows-{start}-{block}")
                    numbers = noise.uniform((_BLOCK, search.numbers)).to(theta.device)
                proposal = search.propose(theta, share(self.p_init, query - 1, self.max_iter), numbers[:, place])
            distance = self._query(search.ball.stored(proposal), search.batch.y, rows, found)
            better = distance < reached
            reached = reached.where(~better, distance)
            theta = theta.where(~better.view(-1, *(1,) * (theta.ndim - 1)), proposal)
            going = found.distance[rows] >= -self.confidence
            if not bool(going.all()):
                keep = going.nonzero()[:, 0]
                if len(keep) == 0:
                    return
                search, rows = search.select(keep), rows[keep]
                theta, reached, numbers = theta[keep], reached[keep], numbers[keep]

    def _query(self, x: Tensor, y: Tensor, rows: Tensor, found: Found) -> Tensor:
        """Signed distance of images to success; keeps the best of each sample and counts."""
        with torch.no_grad():
            z = self.scores(x).double()
        distance = Margin(self.targeted).distance(z, y)
        found.keep_better(rows, x, distance)
        found.forward[rows] += 1
        found.trace.append(float(distance.mean()))
        return distance

    def _check_params(self) -> None:
        super()._check_params()
        if isinstance(self.norm, bool) or NORMS.get(self.norm) not in _SEARCHES:
            raise InputError(f"norm must be np.inf or 2, got {self.norm!r}")
        if not (np.isfinite(self.eps) & (np.asarray(self.eps) > 0)).all():
            raise InputError(f"eps must be positive, in {self.domain.units}, got {self.eps!r}")
        for name in ("max_iter", "nb_restarts"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a positive whole number, got {value!r}")
        if not 0 < self.p_init <= 1:
            raise InputError(f"p_init is a share of the pixels in (0, 1], got {self.p_init!r}")
        if not self.confidence >= 0:
            raise InputError(f"confidence is a margin in logits of 0 or more, got {self.confidence!r}")


class _Search(ABC):
    """Where the search starts and what it tries next, for the samples of a batch.

    :param batch: The samples.
    :param eps: Budget of each ``(n,)``.
    :param domain: The box and the grid.
    :param quantise: Whether images have to be on the grid.
    """

    _norm: str

    def __init__(self, batch: Batch, eps: Tensor, domain: PixelDomain, quantise: bool) -> None:
        self.batch, self.eps, self.domain, self.quantise = batch, eps, domain, quantise
        self.ball = additive(self._norm, batch.x, eps, domain, quantise, batch.mask)
        self.area = Area.around(batch.mask, batch.x)
        self.channels, self.shape = batch.x.shape[1], tuple(batch.x.shape[2:])

    @property
    @abstractmethod
    def numbers(self) -> int:
        """Uniform numbers that one proposal takes."""

    @abstractmethod
    def start(self, noise: Noise) -> Tensor:
        """The first proposal: an image, not yet rounded."""

    @abstractmethod
    def propose(self, theta: Tensor, p: float, numbers: Tensor) -> Tensor:
        """The next one after ``theta``, which is the best so far.

        :param p: Share of the pixels in a window.
        :param numbers: Uniform on [0, 1), ``(n, self.numbers)``.
        """

    def select(self, keep: Tensor) -> _Search:
        """The same for the samples at the indices ``keep``."""
        return type(self)(self.batch.select(keep), self.eps[keep], self.domain, self.quantise)

    def _for_channels(self, values: Tensor) -> Tensor:
        """``(n, C)`` or ``(n,)``, broadcastable to images."""
        return values.view(len(values), -1, *(1,) * len(self.shape))


class _LinfSearch(_Search):
    """Algorithm 2 of the paper: a square in which each channel is at one face of the ball."""

    _norm = "linf"

    def __init__(self, batch: Batch, eps: Tensor, domain: PixelDomain, quantise: bool) -> None:
        super().__init__(batch, eps, domain, quantise)
        self.up = self.ball.project(torch.full_like(batch.x, domain.high))
        self.down = self.ball.project(torch.full_like(batch.x, domain.low))

    @property
    def numbers(self) -> int:
        return len(self.shape) + self.channels

    def start(self, noise: Noise) -> Tensor:
        """Stripes one pixel wide across the last axis."""
        stripes = noise.uniform((self.channels, *(1,) * (len(self.shape) - 1), self.shape[-1])).to(self.up.device)
        return torch.where(stripes < 0.5, self.up, self.down)

    def propose(self, theta: Tensor, p: float, numbers: Tensor) -> Tensor:
        place, sign = numbers[:, : len(self.shape)], numbers[:, len(self.shape) :]
        inside = self.area.windows(p, place).inside()
        up = self._for_channels(sign < 0.5)
        tried = torch.where(inside, torch.where(up, self.up, self.down), theta)
        # A square that is there already would waste the query: then its opposite is tried.
        same = (tried == theta).flatten(1).all(1)
        if not bool(same.any()):
            return tried
        return torch.where(inside, torch.where(up ^ self._for_channels(same), self.up, self.down), theta)


class _L2Search(_Search):
    """Algorithm 3 of the paper: a hill and a valley in one window, paid for by what another window gives up."""

    _norm = "l2"

    @property
    def numbers(self) -> int:
        return 2 * len(self.shape) + 1 + self.channels

    def start(self, noise: Noise) -> Tensor:
        """A grid of hills and valleys."""
        axes = len(self.shape)
        grid = tiles(self.shape)
        numbers = noise.uniform((len(grid), 1 + self.channels)).to(self.batch.x.device)
        sides = torch.tensor([[part.stop - part.start for part in grid[0]]] * axes, device=numbers.device)
        tile = Windows(torch.zeros_like(sides), sides, tuple(sides[0].tolist()))
        eta = tile.bumps(torch.arange(axes, device=numbers.device))
        delta = torch.zeros_like(self.batch.x)
        for place, drawn in zip(grid, numbers.unbind(1), strict=True):
            axis, sign = (drawn[:, 0] * axes).long(), self._for_channels(_signs(drawn[:, 1:]))
            tile_of_all = (slice(None), slice(None), *place)
            delta[tile_of_all] = eta[axis] * sign
        return self._spent(delta)

    def propose(self, theta: Tensor, p: float, numbers: Tensor) -> Tensor:
        axes = len(self.shape)
        place1, place2, axis, sign = torch.split(numbers, [axes, axes, 1, self.channels], dim=1)
        window1, window2 = (self.area.windows(p, place, least=3) for place in (place1, place2))
        eta = window1.bumps((axis[:, 0] * axes).long())
        inside1, inside2 = window1.inside(), window2.inside()
        nu = theta - self.batch.x
        unused = (self.eps**2 - nu.flatten(1).square().sum(1)).clamp(min=0)
        # nu_temp = rho eta + nu_W1 / ||nu_W1||, eps_avail = sqrt(||nu_(W1 u W2)||**2 + eps_unused**2 / c): per channel
        there = nu * inside1
        temp = self._for_channels(_signs(sign)) * eta + there / self._lengths(there).clamp(min=1e-12)
        spent = self._lengths(nu * (inside1 | inside2)).square()
        available = (spent + self._for_channels(unused / self.channels)).sqrt()
        moved = temp * (available / self._lengths(temp).clamp(min=1e-12))
        return self._spent(torch.where(inside1, moved, nu.masked_fill(inside2, 0)))

    def _lengths(self, delta: Tensor) -> Tensor:
        """Length of each channel ``(n, C, 1, ...)``."""
        return self._for_channels(delta.flatten(2).norm(dim=2))

    def _spent(self, delta: Tensor) -> Tensor:
        """The image at the end of the budget in a direction, inside box and mask.

        Too long a change is projected: values at a face of the box then leave what they cannot use to the others.
        """
        if self.batch.mask is not None:
            delta = delta * self.batch.mask
        scale = 4 * self.eps / delta.flatten(1).norm(dim=1).clamp(min=1e-12)
        return self.ball.project(self.batch.x + delta * self._for_channels(scale))


_SEARCHES: dict[str, type[_Search]] = {"linf": _LinfSearch, "l2": _L2Search}


def _signs(uniform: Tensor) -> Tensor:
    """-1 or 1 with equal probability."""
    return torch.where(uniform < 0.5, -1.0, 1.0)
