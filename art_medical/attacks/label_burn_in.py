# SPDX-License-Identifier: Apache-2.0
"""Burnt-in marker letters, as on radiographs: which text, where, how large and how bright is searched.

Classifiers of radiographs learn such markers as short cuts (Zech et al. 2018, PLOS Med. 15(11):e1002683; DeGrave et al.
2021, Nat. Mach. Intell. 3:610-619). The attack asks whether a decision follows them: every image that it makes is one
that a department could have made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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


class LabelBurnIn(EvolutionAttack):
    """``x' = (1 - T(M)) x + T(M) v`` for a text ``M`` of a vocabulary, in a frame along the border of the image.

    Opaque, unlike a watermark, and away from the anatomy. In a volume the label lies on every slice of the first axis.
    """

    facts = Facts(
        models="A side marker or projection label on a radiograph, set by a technologist or by malware.",
        bound="letters in a frame along the border",
        access="score",
        dimensions=(2, 3),
        paper="Zech et al. 2018, PLOS Med. 15(11):e1002683 (the short cut; the search is ours)",
    )

    attack_params = [*EvolutionAttack.attack_params, "texts", "height", "intensity", "border"]
    chooses_place = True

    def __init__(
        self,
        estimator: MedicalClassifier,
        texts: Sequence[str] = ("L", "R", "AP", "PA", "ERECT", "SUPINE", "PORTABLE"),
        height: tuple[float, float] = (0.05, 0.12),
        intensity: tuple[float, float] = (0.7, 1.0),
        border: float = 0.25,
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
        :param texts: The vocabulary; one text is burnt in.
        :param height: Range of the height of the letters as a share of the height of the image; a text that would be
            wider than the image is made smaller.
        :param intensity: Range of the value of the letters as a share of the domain: 0 is its lowest, 1 its highest.
        :param border: Width of the frame that the label lies in as a share of the sides, in (0, 0.5]; a label that is
            larger touches the edge. 0.5 lets it lie anywhere.
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
        self.texts = texts
        self.height = height
        self.intensity = intensity
        self.border = border
        self._check_params()

    def _candidates(self, number: int, x: Tensor, allowed: Tensor | None) -> Candidates | None:
        if number:
            return None
        low, span = self.domain.low, self.domain.span
        values = (low + self.intensity[0] * span, low + self.intensity[1] * span)
        return _Label(x, allowed, [letters(text) for text in self.texts], self.height, values, self.border)

    def _check_params(self) -> None:
        super()._check_params()
        if isinstance(self.texts, str) or not self.texts:
            raise InputError(f"texts is a list of one text or more, got {self.texts!r}")
        for text in self.texts:
            letters(text)
        if len(self.height) != 2 or not 0 < self.height[0] <= self.height[1] <= 1:
            raise InputError(f"height is an ordered range of shares of the image in (0, 1], got {self.height!r}")
        if len(self.intensity) != 2 or not 0 <= self.intensity[0] <= self.intensity[1] <= 1:
            raise InputError(f"intensity is an ordered range in [0, 1], got {self.intensity!r}")
        if not 0 < self.border <= 0.5:
            raise InputError(f"border is a share of the sides in (0, 0.5], got {self.border!r}")


class _Label(Candidates):
    """Text, side of the frame, place along it and away from the edge, height and value of the letters."""

    def __init__(
        self,
        x: Tensor,
        allowed: Tensor | None,
        vocabulary: list[NDArray[np.float32]],
        height: tuple[float, float],
        values: tuple[float, float],
        border: float,
    ) -> None:
        super().__init__(x, allowed)
        self.vocabulary, self.height, self.values, self.border = vocabulary, height, values, border

    @property
    def bounds(self) -> list[tuple[float, float]]:
        return [(0.0, len(self.vocabulary) - 1.0), (0.0, 3.0), (0.0, 1.0), (0.0, 1.0), self.height, self.values]

    @property
    def whole(self) -> list[bool]:
        return [True, True, False, False, False, False]

    def render(self, parameters: NDArray[np.float64]) -> Tensor:
        covers = [self._cover(*row[:5]) for row in parameters]
        line = (len(parameters), *(1,) * (self.x.ndim - 2))
        cover = torch.from_numpy(np.stack(covers)).to(self.x).view(*line, *self.x.shape[-2:])
        value = torch.from_numpy(parameters[:, 5].astype(np.float32)).to(self.x).view(*line, 1, 1)
        return self.x + cover * (value - self.x)

    def _cover(self, text: float, side: float, along: float, inwards: float, height: float) -> NDArray[np.float32]:
        plane = (self.x.shape[-2], self.x.shape[-1])
        coverage = self.vocabulary[round(text)]
        mark = scaled(coverage, min(height * plane[0] / coverage.shape[0], plane[1] / coverage.shape[1]))
        rows, columns = plane[0] - mark.shape[0], plane[1] - mark.shape[1]
        if round(side) < 2:  # above or below
            depth = max(0.0, self.border * plane[0] - mark.shape[0])
            return at(mark, plane, _from_edge(inwards * depth, rows, round(side)), round(along * columns))
        depth = max(0.0, self.border * plane[1] - mark.shape[1])
        return at(mark, plane, round(along * rows), _from_edge(inwards * depth, columns, round(side) - 2))


def _from_edge(distance: float, furthest: int, far: int) -> int:
    """First pixel of a label at a distance from the near or the far edge."""
    first = min(int(distance), furthest)
    return furthest - first if far else first
