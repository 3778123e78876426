# SPDX-License-Identifier: Apache-2.0
"""Few-pixel attack by differential evolution (Su, Vargas and Sakurai 2017, arXiv 1710.08864), on the stored grid.

On histology: Korpihalkola et al. 2020 (arXiv 2012.00517). An attacked pixel is a position, with whole coordinates in 2
or 3 dimensions, and a stored value for each channel, of any bit depth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from art_medical.attacks.evolution import Candidates, EvolutionAttack
from art_medical.attacks.facts import Facts
from art_medical.attacks.noise import Noise
from art_medical.domain import PixelDomain
from art_medical.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from art_medical.estimators.classifier import MedicalClassifier


SEARCHES = {"greedy": "best1bin", "joint": "rand1bin"}
"""How ``K`` pixels are searched, and SciPy's name of the rule of evolution."""


class FewPixel(EvolutionAttack):
    """``min z_y - max_{j != y} z_j`` over images that differ from ``x`` in at most ``K`` pixels.

    The numbers of a candidate are tuples of coordinates and values. As in the paper positions start uniform and values
    normal around the middle of the range with half the range as deviation, ``F = 0.5``, no crossover.

    ``greedy`` adds one pixel after the other, each by an evolution of its own around the best candidate, and stops at
    the first that suffices: a search for the fewest. ``joint`` is the paper's, all ``K`` tuples in one candidate and
    random parents; at equal queries it is the weaker one for more than one pixel.
    """

    facts = Facts(
        models="Dead or stuck detector elements, or whoever can set single pixels of a file and sees scores.",
        bound="l0",
        access="score",
        dimensions=(2, 3),
        paper="Su et al. 2017, arXiv 1710.08864",
    )

    attack_params = [*EvolutionAttack.attack_params, "pixels", "search"]

    def __init__(
        self,
        estimator: MedicalClassifier,
        pixels: int = 1,
        search: str = "greedy",
        population: int = 400,
        generations: int = 100,
        confidence: float = 0.0,
        targeted: bool = False,
        batch_size: int = 32,
        quantise: bool = True,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param estimator: The classifier to attack.
        :param pixels: Budget ``K``, in pixels; all channels of a place are one pixel.
        :param search: ``greedy`` or ``joint``.
        :param population: Candidates in one generation; the paper's 400.
        :param generations: Generations after the first, of each pixel when ``greedy``; the paper's 100. 0 is a random
            search.
        :param confidence: An image is done when its decision is wrong by this margin in logits.
        :param targeted: Whether ``y`` is the label to reach.
        :param batch_size: Candidates in one pass.
        :param quantise: Return images that the file can hold.
        :param seed: Seeds the evolution, together with the ids of the samples.
        :param verbose: Show a progress bar over batches.
        """
        super().__init__(
            estimator,
            population=population,
            generations=generations,
            confidence=confidence,
            targeted=targeted,
            batch_size=batch_size,
            quantise=quantise,
            seed=seed,
            verbose=verbose,
        )
        self.pixels = pixels
        self.search = search
        self._check_params()

    @property
    def strategy(self) -> str:
        """SciPy's name of the rule."""
        return SEARCHES[self.search]

    def _candidates(self, number: int, x: Tensor, allowed: Tensor | None) -> Candidates | None:
        searches, count = (self.pixels, 1) if self.search == "greedy" else (1, self.pixels)
        return _Pixels(x, allowed, count, self.domain, self.quantise) if number < searches else None

    def _check_params(self) -> None:
        super()._check_params()
        if not isinstance(self.pixels, int) or self.pixels < 1:
            raise InputError(f"pixels must be a whole number from 1 on, got {self.pixels!r}")
        if self.search not in SEARCHES:
            raise InputError(f"search must be one of {', '.join(SEARCHES)}, got {self.search!r}")


class _Pixels(Candidates):
    """Tuples ``(coordinates, value of each channel)``; values count steps from ``low`` when there is a grid."""

    def __init__(self, x: Tensor, allowed: Tensor | None, count: int, domain: PixelDomain, quantise: bool) -> None:
        super().__init__(x, allowed)
        self.count, self.domain = count, domain
        self.step = domain.step if quantise else None
        self.nearest = None if allowed is None else _nearest_allowed(allowed)

    @property
    def _top(self) -> float:
        return self.domain.high if self.step is None else self.domain.span / self.step

    @property
    def bounds(self) -> list[tuple[float, float]]:
        bottom = self.domain.low if self.step is None else 0.0
        place = [(0.0, side - 1.0) for side in self.x.shape[1:]]
        return (place + [(bottom, self._top)] * len(self.x)) * self.count

    @property
    def whole(self) -> list[bool]:
        axes = self.x.ndim - 1
        return ([True] * axes + [self.step is not None] * len(self.x)) * self.count

    def first(self, noise: Noise, count: int) -> NDArray[np.float64]:
        start = super().first(noise, count).reshape(count, self.count, -1)
        axes, (low, high) = self.x.ndim - 1, self.bounds[-1]
        normal = noise.normal((count, self.count, len(self.x)))[0].double().numpy()
        start[..., axes:] = np.clip((low + high) / 2 + normal * (high - low) / 2, low, high)
        return start.reshape(count, -1)

    def render(self, parameters: NDArray[np.float64]) -> Tensor:
        axes, spatial = self.x.ndim - 1, tuple(self.x.shape[1:])
        genes = parameters.reshape(len(parameters), self.count, -1)
        at = np.rint(genes[..., :axes]).astype(np.intp)
        if self.nearest is not None:
            everywhere: tuple[Any, ...] = (slice(None), *np.moveaxis(at, -1, 0))
            at = np.moveaxis(self.nearest[everywhere], 0, -1)
        place = torch.from_numpy(np.ravel_multi_index(tuple(np.moveaxis(at, -1, 0)), spatial)).to(self.x.device)
        value = genes[..., axes:] if self.step is None else self.domain.low + np.rint(genes[..., axes:]) * self.step
        values = torch.from_numpy(value).to(self.x)
        images = self.x.flatten(1).repeat(len(genes), 1, 1)
        rows = torch.arange(len(genes), device=self.x.device)
        # One pixel after the other: where two of a candidate meet, the later one counts on every device.
        for k in range(self.count):
            images[rows, :, place[:, k]] = values[:, k]
        return images.view(-1, *self.x.shape)


def _nearest_allowed(allowed: Tensor) -> NDArray[np.intp]:
    """Coordinates of the nearest place where some channel may change; any place when there is none."""
    free = allowed.cpu().numpy().any(0)
    nearest: NDArray[np.intp] = distance_transform_edt(~free, return_distances=False, return_indices=True)
    return nearest if free.any() else np.indices(free.shape)
