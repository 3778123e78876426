# SPDX-License-Identifier: Apache-2.0
"""Attacks that describe a change by a few numbers and find them by differential evolution, from scores alone.

Storn and Price, J. Global Optim. 11:341-359 (1997), in scipy's implementation: a new candidate is
``v = p_a + F (p_b - p_c)``, with two random others and the best one so far (or a random third) as ``p_a``, and replaces
the one at its place when it scores better. One generation is scored at once, in passes of ``batch_size`` images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import differential_evolution
from torch import Tensor

from art_medical.attacks.base import Batch, StoredPixelAttack
from art_medical.attacks.loop import Found
from art_medical.attacks.noise import Noise
from art_medical.attacks.objectives import Margin
from art_medical.attacks.rendered import require_grid
from art_medical.domain import PixelDomain
from art_medical.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from art_medical.estimators.classifier import MedicalClassifier

FEWEST_CANDIDATES = 5
"""Differential evolution combines three candidates that differ from the one to replace; scipy asks for five."""


class Candidates(ABC):
    """What the numbers of a candidate mean for one image.

    :param x: The image to change ``(C, *spatial)``, in the unit of the domain.
    :param allowed: Where it may change, of the same shape, or ``None`` for everywhere.
    """

    def __init__(self, x: Tensor, allowed: Tensor | None) -> None:
        self.x = x
        self.allowed = allowed

    @property
    @abstractmethod
    def bounds(self) -> list[tuple[float, float]]:
        """Range of each number."""

    @property
    @abstractmethod
    def whole(self) -> list[bool]:
        """Whether each number is a whole one."""

    @abstractmethod
    def render(self, parameters: NDArray[np.float64]) -> Tensor:
        """Images ``(S, C, *spatial)`` of candidates ``(S, D)``, neither rounded nor clipped."""

    def first(self, noise: Noise, count: int) -> NDArray[np.float64]:
        """First generation ``(count, D)``; uniform in the ranges unless a paper says otherwise."""
        low, high = np.asarray(self.bounds, np.float64).T
        u = noise.uniform((count, len(low)))[0].double().numpy()
        return np.asarray(low + u * (high - low))

    def stored(self, parameters: NDArray[np.float64], domain: PixelDomain, quantise: bool) -> Tensor:
        """Images of candidates, inside domain and mask, on the grid if asked; what a candidate leaves alone is kept."""
        rendered = self.render(parameters)
        inside = domain.quantise(rendered) if quantise else rendered.clamp(domain.low, domain.high)
        changed = rendered != self.x
        return torch.where(changed if self.allowed is None else changed & (self.allowed != 0), inside, self.x)


class EvolutionAttack(StoredPixelAttack):
    """Base: first a look at the clean image, then one search after the other until the goal is reached.

    :ivar population: Candidates in one generation.
    :ivar generations: Generations after the first; 0 makes it a random search, the control.
    """

    attack_params = [*StoredPixelAttack.attack_params, "population", "generations", "confidence"]

    mutation = 0.5
    """``F``, as in Su et al. 2017 (arXiv 1710.08864, section 3.2); no crossover, as there."""

    def __init__(
        self,
        estimator: MedicalClassifier,
        *,
        population: int,
        generations: int,
        confidence: float,
        targeted: bool,
        batch_size: int,
        quantise: bool,
        seed: int,
        verbose: bool,
    ) -> None:
        super().__init__(
            estimator,
            targeted=targeted,
            quantise=quantise,
            batch_size=batch_size,
            seed=seed,
            verbose=verbose,
        )
        self.population = population
        self.generations = generations
        self.confidence = confidence

    @property
    def strategy(self) -> str:
        """SciPy's name of the rule for ``p_a``: the best candidate, which needs fewer queries than a random one."""
        return "best1bin"

    @abstractmethod
    def _candidates(self, number: int, x: Tensor, allowed: Tensor | None) -> Candidates | None:
        """What the search of a number, from 0, looks through; ``None`` when there is no further one.

        :param x: Best image so far ``(C, *spatial)``.
        :param allowed: Where it may change, of the same shape, or ``None`` for everywhere.
        """

    def _attack(self, batch: Batch) -> Found:
        if self.quantise:
            require_grid(batch.x, self.domain)
        found = Found.nothing_yet(batch.x)
        for row in range(len(batch.x)):
            search = _Search(self, batch, row, found)
            search.look(batch.x[row : row + 1])
            allowed = None if batch.mask is None else batch.mask[row]
            number = 0
            while not search.done and (candidates := self._candidates(number, found.x[row].clone(), allowed)):
                search.evolve(candidates, Noise(self.seed, [batch.ids[row]], f"evolution-{number}"))
                number += 1
        return found

    def _check_params(self) -> None:
        super()._check_params()
        if not isinstance(self.population, int) or self.population < FEWEST_CANDIDATES:
            raise InputError(f"population must be a whole number from {FEWEST_CANDIDATES} on, got {self.population!r}")
        if not isinstance(self.generations, int) or self.generations < 0:
            raise InputError(f"generations must be a whole number of 0 or more, got {self.generations!r}")
        if not self.confidence >= 0:
            raise InputError(f"confidence is a margin in logits of 0 or more, got {self.confidence!r}")


class _Search:
    """The search for one image: scores candidates, keeps the best one and counts."""

    def __init__(self, attack: EvolutionAttack, batch: Batch, row: int, found: Found) -> None:
        self.attack, self.batch, self.found = attack, batch, found
        self.row = torch.tensor([row], device=batch.x.device)
        self.objective = Margin(attack.targeted)

    @property
    def done(self) -> bool:
        """Whether the goal is reached with the margin that was asked for."""
        return bool(self.found.distance[self.row] < -self.attack.confidence)

    def look(self, x: Tensor) -> NDArray[np.float64]:
        """Signed distances to success ``(S,)`` of images that replace the sample; the best one is kept."""
        with torch.no_grad():
            z = self.attack.scores(x)
        distance = self.objective.distance(z.double(), self.batch.y[self.row].expand(len(x)))
        best = distance.argmin()
        self.found.keep_better(self.row, x[best][None], distance[best][None])
        self.found.forward[self.row] += len(x)
        self.found.trace.append(float(distance.mean()))
        return distance.cpu().numpy()

    def evolve(self, candidates: Candidates, noise: Noise) -> None:
        """Differential evolution over one set of candidates, until done or at the last generation."""
        attack = self.attack

        def energies(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
            rows, result = parameters.T, np.zeros(parameters.shape[1])
            if self.done:  # scipy asks once more before it looks at the callback: that must cost nothing
                return result
            # Always the whole generation: what is found must not depend on the size of a pass.
            for start in range(0, len(rows), attack.batch_size):
                part = slice(start, start + attack.batch_size)
                result[part] = self.look(candidates.stored(rows[part], attack.domain, attack.quantise))
            return result

        # Seeds of 24 bits each: what a float32 uniform number holds.
        seeds = (noise.uniform((4,))[0].double() * 2**24).long().tolist()
        differential_evolution(
            energies,
            candidates.bounds,
            strategy=attack.strategy,
            maxiter=attack.generations,
            init=candidates.first(noise, attack.population),
            mutation=attack.mutation,
            recombination=1.0,
            tol=0.0,
            atol=0.0,
            polish=False,
            callback=lambda *_: self.done,
            updating="deferred",
            vectorized=True,
            integrality=candidates.whole,
            seed=np.random.default_rng(seeds),
        )
