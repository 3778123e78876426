# SPDX-License-Identifier: Apache-2.0
"""PGD and APGD reach what a linear model allows at all, for each norm, head and number of axes."""

from __future__ import annotations

import numpy as np
import pytest

from art_medical.attacks import AutoProjectedGradientDescent, ProjectedGradientDescent, RandomNoise
from tests.attacks.linear_models import DOMAIN, HEADS, SHAPES, LinearModel

NORMS = {"linf": np.inf, "l2": 2, "l1": 1, "l0": 0}
BUDGETS = {"linf": (1, 7, 70), "l2": (8, 60, 300), "l1": (5, 90, 1200), "l0": (1, 4, 19)}
REACHED = 0.999
"""Least share of the optimum."""

ON_THE_GRID = 0.85
"""The same for L-2 with rounding, where the optimum of whole steps is not known in closed form."""


def attacks(norm: str, **more):
    for kind, steps in ((ProjectedGradientDescent, 40), (AutoProjectedGradientDescent, 100)):
        if norm in kind.NORMS:
            fixed = {"norm": NORMS[norm], "max_iter": steps, "confidence": np.inf}
            yield lambda model, k=kind, f=fixed, **also: k(model.classifier, **(f | more | also))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("axes", "head"), [(2, "one-logit"), (2, "softmax"), (2, "three-classes"), (2, "multi-label"), (3, "one-logit")]
)
def test_stored_pixels_reach_the_optimum_of_each_budget(axes, head, norm):
    model = LinearModel(axes, head)
    for eps in BUDGETS[norm]:
        best = model.best(norm, eps)
        for attack in attacks(norm, eps=eps):
            gained = model.gained(attack(model).generate(model.x, model.labels))
            assert (gained <= best * (1 + 1e-5)).all()
            assert (gained >= (ON_THE_GRID if norm == "l2" else REACHED) * best - 1e-4).all(), (eps, gained / best)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("axes", SHAPES)
def test_inside_a_mask_and_without_a_grid(axes, norm):
    model = LinearModel(axes, "one-logit")
    mask = np.zeros(model.x.shape[1:])
    mask[..., :2] = 1
    eps = BUDGETS[norm][1]
    best = model.best(norm, eps, mask)
    for attack in attacks(norm, eps=eps, quantise=False):
        attacked = attack(model).generate(model.x, model.labels, mask=mask)
        assert (attacked == model.x)[:, mask == 0].all()
        gained = model.gained(attacked)
        assert (gained <= best * (1 + 1e-4)).all()
        assert (gained >= REACHED * best).all(), gained / best


@pytest.mark.parametrize("norm", NORMS)
def test_an_attack_with_the_smallest_budget_flips_and_one_below_it_does_not(norm):
    model = LinearModel(2, "softmax")
    grid = {} if norm != "l2" else {"quantise": False}  # see ON_THE_GRID
    distance = abs(model.classifier.predict(model.x) @ [-1, 1])
    budgets = np.unique(np.geomspace(1, 3000, 60).round())
    best = np.array([model.best(norm, eps) for eps in budgets])
    least = (best > distance * 1.001).argmax(0)
    assert (best[least, range(len(least))] > distance).all()
    below = np.maximum(least - 1, 0)
    hopeless = best[below, range(len(below))] < distance * 0.999
    assert hopeless.any()
    for attack in attacks(norm, confidence=0.0, **grid):
        strong, weak = (attack(model, eps=budgets[column]) for column in (least, below))
        for made in (strong, weak):
            made.generate(model.x, model.labels)
        assert strong.record.success.all()
        assert not weak.record.success[hopeless].any()


@pytest.mark.parametrize("norm", NORMS)
def test_targeted_reaches_the_optimum_too(norm):
    model = LinearModel(2, "three-classes")
    eps = BUDGETS[norm][1]
    for attack in attacks(norm, eps=eps, targeted=True):
        gained = model.gained(attack(model).generate(model.x, 1 - model.y))
        assert (gained >= (0.98 if norm == "l2" else REACHED) * model.best(norm, eps) - 1e-4).all()


@pytest.mark.parametrize("norm", ["l1", "l0"])
def test_noise_of_the_same_norm_keeps_it_and_is_weaker(norm):
    model = LinearModel(2, "one-logit")
    eps = BUDGETS[norm][1]
    noise = RandomNoise(model.classifier, norm=NORMS[norm], eps=eps, num_random_init=20, confidence=np.inf)
    attacked = noise.generate(model.x, model.labels)
    change = attacked - model.x
    used = abs(change).sum((1, 2, 3)) if norm == "l1" else (change != 0).any(1).sum((1, 2))
    assert (used <= eps).all() and (used >= 0.7 * eps).all()
    assert DOMAIN.on_grid(attacked, tolerance=0)
    assert (noise.cost.backward == 0).all()
    gained = model.gained(attacked)
    assert (gained > 0).all() and (gained < 0.7 * model.best(norm, eps)).all()


def test_every_head_is_covered():
    assert {head.kind for head in HEADS.values()} == {"one-logit", "softmax", "multi-label"}
