# SPDX-License-Identifier: Apache-2.0
"""Adequacy: counts by hand, and each check on cells that pass and cells that must not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from art_medical.attacks.base import Record
from art_medical.domain import Budget, PixelDomain
from art_medical.evaluation.adequacy import cell_evidence, study_checks

DOMAIN = PixelDomain(0, 255)


def record(**changes: Any) -> Record:
    """Three images."""
    fields: dict[str, Any] = {
        "success": np.array([True, False, True]),
        "forward": np.array([4, 9, 9]),
        "backward": np.array([3, 8, 8]),
        "zero_gradient": np.array([False, True, False]),
        "unchanged": np.array([False, True, False]),
        "linf": np.array([2.0, 0.0, 1.0]),
        "l2": np.array([5.0, 0.0, 3.0]),
        "traces": ((1.0, 0.5),),
    }
    return Record(**{**fields, **changes})


def evidence(budget: Budget | None = None, quantise: bool = True, x: float = 3.0, **changes: Any) -> dict[str, Any]:
    return cell_evidence(record(**changes), np.full((3, 1, 2, 2), x, np.float32), DOMAIN, budget, quantise=quantise)


def test_counts_by_hand() -> None:
    assert evidence(Budget("linf", 2.0)) == {
        "success_on_attacked_model": 2,
        "unchanged": 1,
        "zero_gradient": 1,
        "forward_per_image": 7.333,
        "backward_per_image": 6.333,
        "linf_max": 2.0,
        "linf_median": 1.0,
        "l2_median": 3.0,
        "on_storage_grid": True,
        "within_budget": True,
        "converged": None,
    }


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (Budget("linf", 2.0), True),
        (Budget("linf", 1.9999), False),
        (Budget("linf", 1.99999), True),  # float32 sums, not disobedience
        (Budget("l2", 5.0), True),
        (Budget("l2", 4.9), False),
        (None, None),
    ],
)
def test_the_budget_is_checked_in_its_own_norm(budget: Budget | None, kept: bool | None) -> None:
    assert evidence(budget)["within_budget"] is kept


@pytest.mark.parametrize(
    ("x", "quantise", "expected"), [(3.0, True, True), (3.4, True, False), (256.0, True, False), (3.4, False, None)]
)
def test_the_storage_grid(x: float, quantise: bool, expected: bool | None) -> None:
    assert evidence(x=x, quantise=quantise)["on_storage_grid"] is expected


def falling(steps: int, last: float) -> tuple[float, ...]:
    """From 1 to 0; the last ten steps fall by ``last``."""
    return (*np.linspace(1, last, steps - 10), *np.linspace(last, 0, 11)[1:])


@pytest.mark.parametrize(
    ("traces", "expected"),
    [
        ((falling(11, 0.5),), None),  # too short to tell
        ((), None),
        ((falling(40, 0.04),), True),
        ((falling(40, 0.06),), False),
        ((falling(40, 0.08), falling(40, 0.0)), True),  # 0.04 in the mean
        ((falling(40, 0.04), (9.0, -9.0)), True),  # a trace that was left early does not count
        (((1.0,) * 30,), True),  # nothing ever moved
        (((*falling(40, 0.01), 0.9, 0.8),), True),  # a running minimum does not rise
        ((tuple(100 - 50 * t for t in falling(40, 0.04)),), True),  # it only ever rose
        ((tuple(7 + 50 * t for t in falling(40, 0.06)),), False),  # scale and offset do not matter
    ],
)
def test_convergence_is_the_fall_over_the_last_ten_steps(
    traces: tuple[tuple[float, ...], ...], expected: bool | None
) -> None:
    assert evidence(traces=traces)["converged"] is expected


# -- checks over a study -----------------------------------------------------------------------------------------------


def cell(attack: str, eps: float | None, accuracy: float, **changes: Any) -> dict[str, Any]:
    budget = None if eps is None else {"norm": "linf", "eps": eps, "unit": "grey level"}
    found = {"within_budget": True, "on_storage_grid": True, "zero_gradient": 0, "converged": True}
    found |= {"success_on_attacked_model": 7}
    fields = {
        "n": 10,
        "knowledge": "white-box",
        "model": "m",
        "attack": attack,
        "budget": budget,
        "seed": 0,
        "settings": {"attack": attack},
    }
    metrics = {"accuracy": {"value": accuracy}}
    return {**fields, "metrics": metrics, "evidence": {**found, **changes.pop("evidence", {})}, **changes}


CLEAN = cell("clean", None, 0.9, settings=None, evidence={"within_budget": None})


def failed(cells: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(check["name"], check["detail"]) for check in study_checks(cells) if not check["passed"]]


def test_a_sound_study_passes() -> None:
    cells = [CLEAN, cell("noise", 2.0, 0.9), cell("pgd", 1.0, 0.5), cell("pgd", 2.0, 0.1)]
    checks = list(study_checks(cells))
    assert all(check["passed"] for check in checks)
    assert [check["name"] for check in checks] == [
        "budget kept", "files can hold it", "converged", "gradients", "more budget, more success",
        "stronger than its control",
    ]  # fmt: skip
    told = "in all 3 attacked cells where this can be told and matters"
    assert checks[0]["detail"] == f"every returned image is inside its budget, {told}"
    assert checks[3]["detail"] == "no image had an all-zero gradient in 3 cells"
    assert checks[4]["detail"] == "m, pgd: accuracy by budget 1: 0.500, 2: 0.100"
    assert checks[5]["detail"] == "m, pgd, eps 2: accuracy 0.100; m, noise, eps 2: 0.900"


def test_a_study_without_attacks_has_nothing_to_check() -> None:
    assert list(study_checks([CLEAN])) == []


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        ({"within_budget": False}, "budget kept"),
        ({"on_storage_grid": False}, "files can hold it"),
        ({"zero_gradient": 1}, "gradients"),
        ({"converged": False}, "converged"),
    ],
)
def test_one_bad_cell_is_named(broken: dict[str, Any], name: str) -> None:
    cells = [CLEAN, cell("pgd", 1.0, 0.5), cell("pgd", 2.0, 0.1, evidence=broken)]
    assert failed(cells) == [(name, "not so for: m, pgd, eps 2")]


def test_what_is_unknown_does_not_fail() -> None:
    unknown = {"within_budget": None, "on_storage_grid": None, "converged": None}
    assert failed([CLEAN, cell("patch", None, 0.1, evidence=unknown)]) == []


def test_more_budget_must_not_help_the_model() -> None:
    order = [cell("pgd", 2.0, 0.62), cell("pgd", 1.0, 0.6)]
    assert failed(order) == [("more budget, more success", "m, pgd: accuracy by budget 1: 0.600, 2: 0.620")]
    assert failed([cell("pgd", 1.0, 0.6), cell("pgd", 2.0, 0.61)]) == []  # one image in a hundred
    apart = [cell("pgd", 1.0, 0.6), cell("pgd", 2.0, 0.9, seed=1), cell("pgd", 3.0, 0.9, model="other")]
    assert failed(apart) == []  # other seeds and models are other curves


def test_an_attack_must_beat_its_control() -> None:
    assert failed([cell("noise", 1.0, 0.4), cell("pgd", 1.0, 0.5)]) == [
        ("stronger than its control", "m, pgd, eps 1: accuracy 0.500; m, noise, eps 1: 0.400")
    ]
    assert failed([cell("noise", 2.0, 0.4), cell("pgd", 1.0, 0.5)]) == []  # another budget is no control
    assert failed([cell("natural-patch", None, 0.4), cell("patch", None, 0.5)]) == [
        ("stronger than its control", "m, patch: accuracy 0.500; m, natural-patch: 0.400")
    ]


def test_a_falling_objective_is_no_weakness_where_every_image_flipped() -> None:
    checks = {
        flipped: {
            check["name"]: check["passed"]
            for check in study_checks(
                [cell("pgd", 2.0, 0.0, evidence={"converged": False, "success_on_attacked_model": flipped})]
            )
        }
        for flipped in (9, 10)
    }
    assert not checks[9]["converged"] and "converged" not in checks[10]


@pytest.mark.parametrize(("white_box", "passed"), [(0.3, True), (0.4, True), (0.5, False)])
def test_a_white_box_must_not_be_weaker_than_a_transfer(white_box: float, passed: bool) -> None:
    transfer = cell("pgd", 2.0, 0.4, knowledge="transfer")
    elsewhere = cell("pgd", 4.0, 0.1, knowledge="transfer")
    checks = list(study_checks([cell("pgd", 2.0, white_box), transfer, elsewhere]))
    (verdict,) = [check for check in checks if check["name"] == "white box at least as strong as transfer"]
    assert verdict["passed"] is passed
