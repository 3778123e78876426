# SPDX-License-Identifier: Apache-2.0
"""Whether the attacks were strong enough for their numbers to count (Carlini et al. 2019, arXiv 1902.06705)."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from art_medical.attacks.base import Record
from art_medical.domain import Budget, PixelDomain

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TOLERANCE = 1e-5  # of the budget: float32 sums, not disobedience
_LAST_STEPS = 10
_STILL_FALLING = 0.05


def cell_evidence(
    record: Record, attacked: NDArray[np.float32], domain: PixelDomain, budget: Budget | None, *, quantise: bool
) -> dict[str, Any]:
    """What an attack did in one cell, counted on the images that it returned.

    ``converged`` is indicator 4 of Pintor et al. 2022 (arXiv 2106.09947): the objective, scaled to [0, 1] and as a
    running minimum, falls by no more than 0.05 over the last ten steps.
    """
    sizes = None if budget is None else (record.linf if budget.norm == "linf" else record.l2)
    return {
        "success_on_attacked_model": int(record.success.sum()),
        "unchanged": int(record.unchanged.sum()),
        "zero_gradient": int(record.zero_gradient.sum()),
        "forward_per_image": round(float(record.forward.mean()), 3),
        "backward_per_image": round(float(record.backward.mean()), 3),
        "linf_max": float(record.linf.max()),
        "linf_median": float(np.median(record.linf)),
        "l2_median": round(float(np.median(record.l2)), 4),
        "on_storage_grid": bool(domain.on_grid(attacked)) if quantise else None,
        "within_budget": None
        if sizes is None or budget is None
        else bool((sizes <= budget.eps * (1 + _TOLERANCE)).all()),
        "converged": _converged(record.traces),
    }


def _converged(traces: tuple[tuple[float, ...], ...]) -> bool | None:
    """Over the mean of all whole traces; ``None`` when there are too few steps to tell."""
    longest = max((len(trace) for trace in traces), default=0)
    whole = [trace for trace in traces if len(trace) == longest]
    if longest <= _LAST_STEPS + 1:
        return None
    mean = np.minimum.accumulate(np.mean(np.array(whole), axis=0))
    span = mean[0] - mean[-1]
    return bool(span <= 0 or (mean[-1 - _LAST_STEPS] - mean[-1]) / span <= _STILL_FALLING)


def study_checks(cells: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Checks over the cells of a study: each has ``name``, ``passed`` and ``detail``."""
    attacked = [cell for cell in cells if cell["settings"] is not None]
    if attacked:
        yield from _all("budget kept", "within_budget", "every returned image is inside its budget", attacked)
        yield from _all("files can hold it", "on_storage_grid", "every returned image is on the storage grid", attacked)
        unfinished = [cell for cell in attacked if not _all_flipped(cell)]
        yield from _all("converged", "converged", "the objective had settled", unfinished)
        yield _gradients(attacked)
    families: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for cell in attacked:
        if cell["budget"] is not None:
            families[cell["model"], cell["attack"], cell["budget"]["norm"], cell["seed"]].append(cell)
    for (model, label, _norm, _seed), family in families.items():
        if len(family) > 1:
            yield _monotone(model, label, family)
    for cell in attacked:
        yield from _beats_control(cell, attacked)
        yield from _beats_transfer(cell, attacked)


def _all_flipped(cell: dict[str, Any]) -> bool:
    """Nothing is left that more steps could reach; a falling objective is then no sign of weakness."""
    return bool(cell["evidence"]["success_on_attacked_model"] == cell["n"])


def _all(name: str, key: str, claim: str, cells: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One entry of the evidence over all cells in which it was measured (it is ``None`` in the others), if any."""
    measured = [cell for cell in cells if cell["evidence"][key] is not None]
    if not measured:
        return
    failed = [_label(cell) for cell in measured if not cell["evidence"][key]]
    detail = f"{claim}, in all {len(measured)} attacked cells where this can be told and matters"
    yield {"name": name, "passed": not failed, "detail": f"not so for: {'; '.join(failed)}" if failed else detail}


def _gradients(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """A gradient of exactly zero is a sign of masking, or of a broken graph."""
    stuck = [_label(cell) for cell in cells if cell["evidence"]["zero_gradient"]]
    detail = f"no image had an all-zero gradient in {len(cells)} cells"
    return {
        "name": "gradients",
        "passed": not stuck,
        "detail": f"not so for: {'; '.join(stuck)}" if stuck else detail,
    }


def _monotone(model: str, label: str, family: list[dict[str, Any]]) -> dict[str, Any]:
    """More budget must not leave more images correct; the slack is one image in a hundred."""
    ordered = sorted(family, key=lambda cell: float(cell["budget"]["eps"]))
    curve = [cell["metrics"]["accuracy"]["value"] for cell in ordered]
    passed = all(after <= before + 0.01 for before, after in itertools.pairwise(curve))
    steps = ", ".join(f"{cell['budget']['eps']:g}: {value:.3f}" for cell, value in zip(ordered, curve, strict=True))
    return {
        "name": "more budget, more success",
        "passed": passed,
        "detail": f"{model}, {label}: accuracy by budget {steps}",
    }


def _beats_control(cell: dict[str, Any], cells: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """An attack must do at least as much as its control: noise of the same budget, or the natural patch."""
    control = {"pgd": "noise", "patch": "natural-patch"}.get(cell["settings"]["attack"])
    for other in cells:
        same = all(other[key] == cell[key] for key in ("model", "budget", "seed"))
        if same and other["settings"]["attack"] == control:
            ours, theirs = cell["metrics"]["accuracy"]["value"], other["metrics"]["accuracy"]["value"]
            yield {
                "name": "stronger than its control",
                "passed": ours <= theirs,
                "detail": f"{_label(cell)}: accuracy {ours:.3f}; {_label(other)}: {theirs:.3f}",
            }


def _beats_transfer(cell: dict[str, Any], cells: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Who knows the weights must do at least as much as who knows a surrogate, with the same attack and budget."""
    if cell["knowledge"] != "white-box":
        return
    for other in cells:
        same = all(other[key] == cell[key] for key in ("model", "budget", "seed"))
        if same and other["knowledge"] == "transfer" and other["settings"]["attack"] == cell["settings"]["attack"]:
            ours, theirs = cell["metrics"]["accuracy"]["value"], other["metrics"]["accuracy"]["value"]
            yield {
                "name": "white box at least as strong as transfer",
                "passed": ours <= theirs,
                "detail": f"{_label(cell)}: accuracy {ours:.3f}; {_label(other)}: {theirs:.3f}",
            }


def _label(cell: dict[str, Any]) -> str:
    budget = cell["budget"]
    return f"{cell['model']}, {cell['attack']}" + (f", eps {budget['eps']:g}" if budget else "")
