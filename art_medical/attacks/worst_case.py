# SPDX-License-Identifier: Apache-2.0
"""The worst of several attacks for each sample: the only robust accuracy that means something.

A sample is robust when none of the attacks succeeds (Croce and Hein 2020, arXiv 2003.01690, section 5). They run one
after the other, each only on samples that still stand.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from art_medical.attacks.base import Batch, Record, StoredPixelAttack
from art_medical.attacks.loop import Found
from art_medical.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class WorstCaseRecord(Record):
    """The record of an ensemble; passes are those of all its attacks together.

    :param winner: Place in the ensemble of the attack whose image is returned, which is one that came closest where
        ``success`` is false; -1 where the clean image is returned.
    """

    winner: NDArray[np.int64]


@dataclass
class _FoundBy(Found):
    winner: Tensor = field(default_factory=lambda: torch.empty(0))


class Ensemble(StoredPixelAttack):
    """Several attacks in sequence; which ones is up to the subclass."""

    confidence: float

    @abstractmethod
    def members(self) -> tuple[StoredPixelAttack, ...]:
        """The attacks in the order in which they run, cheap ones first."""

    def _attack(self, batch: Batch) -> Found:
        found = _FoundBy.nothing_yet(batch.x)
        assert isinstance(found, _FoundBy)
        found.winner = torch.full((len(batch.x),), -1, dtype=torch.int64, device=batch.x.device)
        for number, attack in enumerate(self.members()):
            rows = (found.distance >= -self.confidence).nonzero()[:, 0]
            if len(rows) == 0:
                break
            part = attack._attack(batch.select(rows))
            won = part.distance < found.distance[rows]
            clean = (part.x == batch.x[rows]).flatten(1).all(1)
            found.winner[rows[won]] = torch.where(clean[won], -1, number)
            found.keep_better(rows, part.x, part.distance)
            found.forward[rows] += part.forward
            found.backward[rows] += part.backward
            found.zero_gradient[rows] |= part.zero_gradient
            found.trace += part.trace
        return found

    def _recorded(self, batch: Batch, found: Found) -> Record:
        assert isinstance(found, _FoundBy)
        record = super()._recorded(batch, found)
        entries = {entry.name: getattr(record, entry.name) for entry in fields(Record)}
        return WorstCaseRecord(**entries, winner=found.winner.cpu().numpy())

    def _check_params(self) -> None:
        super()._check_params()
        if not self.confidence >= 0:
            raise InputError(f"confidence is a margin in logits of 0 or more, got {self.confidence!r}")


class WorstCase(Ensemble):
    """Any attacks of this package on one estimator."""

    attack_params = ["attacks", "batch_size", "confidence", "verbose"]

    def __init__(
        self,
        attacks: Sequence[StoredPixelAttack],
        batch_size: int = 32,
        confidence: float = 0.0,
        verbose: bool = False,
    ) -> None:
        """
        :param attacks: Attacks on the same estimator, all targeted or none, in the order in which they are to run; each
            keeps its own budget, seed and ``quantise``, its ``batch_size`` plays no role. Patches must be fitted.
        :param batch_size: Images in one pass.
        :param confidence: A sample stands, and the next attack runs on it, until its decision is wrong by this margin
            in logits; infinity runs every attack on every sample.
        :param verbose: Show a progress bar over batches.
        """
        self.attacks = tuple(attacks)
        _check_attacks(self.attacks)
        first = self.attacks[0]
        super().__init__(
            first.estimator,
            targeted=first.targeted,
            quantise=all(attack.quantise for attack in self.attacks),
            batch_size=batch_size,
            seed=first.seed,
            verbose=verbose,
        )
        self.confidence = confidence
        self._check_params()

    def members(self) -> tuple[StoredPixelAttack, ...]:
        return tuple(self.attacks)

    def _check_params(self) -> None:
        _check_attacks(self.attacks)
        self.chooses_place = any(attack.chooses_place for attack in self.attacks)
        super()._check_params()


def _check_attacks(attacks: Sequence[StoredPixelAttack]) -> None:
    if not attacks:
        raise InputError("an ensemble needs attacks, got none")
    for attack in attacks:
        if not isinstance(attack, StoredPixelAttack):
            raise InputError(f"an ensemble takes attacks of this package, got {type(attack).__name__}")
    if any(attack.estimator is not attacks[0].estimator for attack in attacks):
        raise InputError("the attacks of an ensemble must be on one estimator; take one ensemble for each")
    if any(attack.targeted != attacks[0].targeted for attack in attacks):
        raise InputError("some attacks of the ensemble are targeted and some are not: y cannot mean both")
