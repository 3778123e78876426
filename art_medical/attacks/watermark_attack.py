# SPDX-License-Identifier: Apache-2.0
"""Visible watermark whose place and opacity are searched (Jia et al. 2020, ACM Multimedia, arXiv 2008.01919).

The invisible watermark in Krawtchouk moments of Apostolidis and Papakostas (J. Imaging 8:155, 2022) is another attack:
it asks no model, and a change of equal length is its control.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from art_medical.attacks.evolution import Candidates, EvolutionAttack
from art_medical.attacks.facts import Facts
from art_medical.attacks.lettering import at, letters, scaled
from art_medical.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from art_medical.estimators.classifier import MedicalClassifier


class WatermarkAttack(EvolutionAttack):
    """``x' = (1 - o T(M)) x + o T(M) v``: mark ``M``, place ``T``, opacity ``o`` and ink ``v``.

    Place and opacity are found by differential evolution (the paper uses basin hopping with evolution). In a volume the
    mark lies on every slice of the first axis, as when a viewer burns it in.
    """

    facts = Facts(
        models="A logo or notice that a viewer, an archive or a teaching file lays over images.",
        bound="a translucent mark of fixed shape",
        access="score",
        dimensions=(2, 3),
        paper="Jia et al. 2020, arXiv 2008.01919",
    )

    attack_params = [*EvolutionAttack.attack_params, "mark", "size", "opacity", "ink"]
    chooses_place = True

    def __init__(
        self,
        estimator: MedicalClassifier,
        mark: str | NDArray[Any] = "TEACHING FILE",
        size: float = 0.5,
        opacity: tuple[float, float] = (0.1, 0.5),
        ink: float | None = None,
        population: int = 40,
        generations: int = 20,
        confidence: float = 0.0,
        targeted: bool = False,
        batch_size: int = 32,
        quantise: bool = True,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param estimator: The classifier to attack.
        :param mark: Text, or coverage ``(h, w)`` between 0 and 1, for instance a logo.
        :param size: Width (or height, if that is reached first) of the mark as a share of the image, in (0, 1].
        :param opacity: Range of the opacity, in [0, 1].
        :param ink: Value of the mark in the unit of the stored pixel; by default the largest of the domain.
        :param population: Candidates in one generation.
        :param generations: Generations after the first; 0 is a random search.
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
        self.mark = mark
        self.size = size
        self.opacity = opacity
        self.ink = ink
        self._check_params()

    @property
    def coverage(self) -> NDArray[np.float32]:
        """The mark before it is brought to size, ``(h, w)``."""
        return letters(self.mark) if isinstance(self.mark, str) else np.asarray(self.mark, np.float32)

    def _candidates(self, number: int, x: Tensor, allowed: Tensor | None) -> Candidates | None:
        if number:
            return None
        mark = self.coverage
        scale = self.size * min(x.shape[-2] / mark.shape[0], x.shape[-1] / mark.shape[1])
        return _Mark(x, allowed, scaled(mark, scale), self.opacity, self.domain.high if self.ink is None else self.ink)

    def _check_params(self) -> None:
        super()._check_params()
        mark = self.coverage
        if mark.ndim != 2 or not mark.size or not ((mark >= 0) & (mark <= 1)).all() or not mark.any():
            raise InputError(f"a mark is coverage (h, w) between 0 and 1, not 0 everywhere, got shape {mark.shape}")
        if not 0 < self.size <= 1:
            raise InputError(f"size is a share of the image, in (0, 1], got {self.size!r}")
        if len(self.opacity) != 2 or not 0 <= self.opacity[0] <= self.opacity[1] <= 1 or not self.opacity[1]:
            raise InputError(f"opacity is an ordered range in [0, 1], got {self.opacity!r}")
        if self.ink is not None and not self.domain.low <= self.ink <= self.domain.high:
            raise InputError(f"ink must lie in the domain, {self.domain.low:g} to {self.domain.high:g}, got {self.ink}")


class _Mark(Candidates):
    """Row and column of the mark's corner, and its opacity."""

    def __init__(
        self,
        x: Tensor,
        allowed: Tensor | None,
        mark: NDArray[np.float32],
        opacity: tuple[float, float],
        ink: float,
    ) -> None:
        super().__init__(x, allowed)
        self.mark, self.opacity, self.ink = mark, opacity, ink

    @property
    def bounds(self) -> list[tuple[float, float]]:
        rows, columns = (side - size for side, size in zip(self.x.shape[-2:], self.mark.shape, strict=True))
        return [(0.0, rows), (0.0, columns), self.opacity]

    @property
    def whole(self) -> list[bool]:
        return [True, True, False]

    def render(self, parameters: NDArray[np.float64]) -> Tensor:
        plane = tuple(self.x.shape[-2:])
        covers = [o * at(self.mark, plane, round(row), round(column)) for row, column, o in parameters]
        cover = torch.from_numpy(np.stack(covers).astype(np.float32)).to(self.x)
        cover = cover.view(len(parameters), *(1,) * (self.x.ndim - 2), *plane)
        return self.x + cover * (self.ink - self.x)
