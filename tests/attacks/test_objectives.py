# SPDX-License-Identifier: Apache-2.0
"""Objectives against their definitions, and the direction that enters the network."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from art_medical.attacks.objectives import CrossEntropy, DifferenceOfLogitsRatio, Margin, evaluate, margin
from art_medical.errors import InputError


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3), min_size=1, max_size=5),
    data=st.data(),
)
def test_margin_is_own_score_minus_best_other(rows, data):
    z = torch.tensor(rows)
    y = torch.tensor([data.draw(st.integers(0, 2)) for _ in rows])
    for value, row, label in zip(margin(z, y), rows, y.tolist(), strict=True):
        others = [score for k, score in enumerate(row) if k != label]
        assert value.item() == pytest.approx(row[label] - max(others), abs=1e-5)


@pytest.mark.parametrize("kind", [CrossEntropy, Margin, DifferenceOfLogitsRatio])
@pytest.mark.parametrize("targeted", [False, True])
def test_descent_moves_logits_towards_success(kind, targeted):
    objective = kind(targeted)
    z = torch.tensor([[2.0, 1.0, -1.0, -3.0], [0.3, 0.1, 0.2, 0.0], [-50.0, 40.0, 0.0, -60.0]])
    y = torch.tensor([1, 0, 2]) if targeted else torch.tensor([0, 0, 1])
    value = evaluate(objective, z, y)
    moved = z - 1e-3 * value.direction
    assert (objective.distance(moved, y) < objective.distance(z, y)).all()
    assert (objective(moved.double(), y) < value.objective).all()
    assert (value.distance == objective.distance(z.double(), y)).all()


def test_direction_survives_saturation_in_both_directions():
    z = torch.tensor([[-200.0, 200.0], [200.0, -200.0]])
    y = torch.tensor([1, 0])
    value = evaluate(CrossEntropy(), z, y)
    assert value.direction.tolist() == [[-1.0, 1.0], [1.0, -1.0]]
    plain = z.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(CrossEntropy()(plain, y).sum(), plain)
    assert not gradient.any()


def test_cross_entropy_and_margin_agree_on_the_sign_of_success():
    z = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1]])
    y = torch.zeros(3, dtype=torch.int64)
    assert (Margin().distance(z, y) < 0).tolist() == [False, False, True]
    assert (Margin(targeted=True).distance(z, y) < 0).tolist() == [False, True, False]


@settings(max_examples=60)
@given(
    row=st.lists(st.floats(-20, 20, width=32), min_size=4, max_size=6, unique=True),
    shift=st.floats(-50, 50),
    scale=st.floats(0.1, 100),
    data=st.data(),
)
def test_dlr_is_its_formula_and_knows_neither_shift_nor_scale(row, shift, scale, data):
    z = torch.tensor([row], dtype=torch.float64)
    label = data.draw(st.integers(0, len(row) - 1))
    y = torch.tensor([label])
    a, _, c, d = sorted(row, reverse=True)[:4]
    other = max(score for k, score in enumerate(row) if k != label)
    for targeted, expected in (
        (False, (row[label] - other) / (a - c)),
        (True, (other - row[label]) / (a - (c + d) / 2)),
    ):
        objective = DifferenceOfLogitsRatio(targeted)
        assert objective(z, y).item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
        if a - c > 1e-3:
            assert objective(z * scale + shift, y).item() == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("targeted", "classes"), [(False, 3), (True, 4)])
def test_dlr_refuses_fewer_classes_than_it_is_defined_for(targeted, classes):
    y = torch.tensor([0])
    DifferenceOfLogitsRatio(targeted)(torch.eye(classes)[:1], y)
    with pytest.raises(InputError, match=f"needs {classes} classes or more, got {classes - 1}; use Margin"):
        DifferenceOfLogitsRatio(targeted)(torch.eye(classes - 1)[:1], y)


def test_dlr_survives_equal_logits():
    value = evaluate(DifferenceOfLogitsRatio(), torch.zeros(1, 3), torch.tensor([0]))
    assert torch.isfinite(value.objective).all() and torch.isfinite(value.direction).all()
    assert value.direction.abs().max() == 1
