# SPDX-License-Identifier: Apache-2.0
"""Cells: one figure's worth of work, named by the hash of what it measures."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from art_medical.domain import Budget, PixelDomain
from art_medical.evaluation.study import AttackEntry, Study

CLEAN = "clean"
UNDEFENDED = "none"


@dataclass(frozen=True)
class Cell:
    """What is measured once.

    :param model: Reference of the model.
    :param entry: The attack, ``None`` for the clean images.
    :param budget: In the unit of the model's stored pixel; ``None`` for clean images and patches.
    :param seed: Seed of attack and resampling.
    """

    model: str
    entry: AttackEntry | None
    budget: Budget | None
    seed: int

    @property
    def attack(self) -> str:
        """Label in tables, ``clean`` where there is no attack."""
        return CLEAN if self.entry is None else self.entry.label


def plan(study: Study, model: str, domain: PixelDomain) -> list[Cell]:
    """All cells of one model: the clean one first, then every attack at every budget and seed."""
    cells = [Cell(model, None, None, study.seeds[0])]
    for entry in study.attacks:
        budgets: list[Budget | None] = [
            Budget(entry.norm, stored(domain, entry, eps), domain.unit) for eps in entry.eps if entry.norm is not None
        ]
        cells += [Cell(model, entry, budget, seed) for budget in budgets or [None] for seed in study.seeds]
    return cells


def stored(domain: PixelDomain, entry: AttackEntry, value: float) -> float:
    """A budget or step of the entry in the unit of the stored pixel."""
    return value if entry.scale is None else domain.from_scale(value, entry.scale)


def cell_id(cell: Cell, *, model: dict[str, Any], data: dict[str, Any], surrogate: dict[str, Any] | None) -> str:
    """sha256 of the canonical JSON of everything that decides the numbers: no date, host, device or batch size.

    :param model: Hashes of card and weights of the evaluated model.
    :param data: Hash of the index, split, and hash of the names of the images.
    :param surrogate: As ``model``, for transfer attacks.
    """
    import art_medical

    entry = cell.entry
    content = {
        "model": model,
        "data": data,
        "surrogate": surrogate,
        "defence": UNDEFENDED,
        "attack": None if entry is None else entry.model_dump(mode="json", exclude={"eps", "label", "threat_model"}),
        "budget": None if cell.budget is None else [cell.budget.norm, cell.budget.eps, cell.budget.unit],
        "seed": cell.seed,
        "version": art_medical.__version__,
    }
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def canonical(content: Any) -> str:
    """JSON with sorted keys, no spaces and shortest round-trip floats."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
