# SPDX-License-Identifier: Apache-2.0
"""Projections and rounding against what defines them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from art_medical.attacks import projections

CONVEX = {"l1": projections.l1_ball, "l2": projections.l2_ball}


def cases(seed: int, size: int, scale: float, n: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Changes, room for them (some none, some more than enough, some equal) and budgets below, near and above."""
    rng = np.random.default_rng(seed)
    delta = rng.normal(size=(n, 1, size)) * scale
    delta[rng.random(delta.shape) < 0.2] = 0
    delta[rng.random(delta.shape) < 0.2] = scale
    room = rng.choice([0, 0.3, 1, 5], size=delta.shape) * scale
    eps = rng.choice([0.1, 1, 3, 100], size=n) * scale
    return (torch.tensor(array, dtype=torch.float32) for array in (delta, room, eps))  # type: ignore[return-value]


@settings(max_examples=60)
@given(
    norm=st.sampled_from(sorted(CONVEX)),
    seed=st.integers(0, 10**6),
    size=st.integers(1, 40),
    scale=st.sampled_from([1e-3, 1.0, 500.0]),
)
def test_convex_projections_are_the_nearest_feasible_points(norm, seed, size, scale):
    delta, room, eps = cases(seed, size, scale)
    z = CONVEX[norm](delta, room, eps).double()
    order = 1 if norm == "l1" else 2
    length = z.flatten(1).norm(p=order, dim=1)
    assert (z.abs() <= room * (1 + 1e-6)).all()
    assert (length <= eps * (1 + 1e-5)).all()
    # z is the projection on a convex set if and only if no feasible point lies beyond it, seen from delta.
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        point = (torch.rand(delta.shape, generator=generator).double() ** 4) * room * delta.sign()
        point *= (eps / point.flatten(1).norm(p=order, dim=1).clamp(min=1e-30)).clamp(max=1).view(-1, 1, 1)
        beyond = ((delta.double() - z) * (point - z)).flatten(1).sum(1)
        assert (beyond <= 1e-4 * scale**2 * size).all()


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 60))
def test_l1_projection_has_the_threshold_that_bisection_finds(seed, size):
    delta, room, eps = cases(seed, size, 1.0)
    z = projections.l1_ball(delta, room, eps)
    for row in range(len(delta)):
        a, r = delta[row].double().abs(), room[row].double()
        below, above = 0.0, float(a.max())
        for _ in range(60):
            middle = (below + above) / 2
            over = float(torch.minimum((a - middle).clamp(min=0), r).sum()) > float(eps[row])
            below, above = (middle, above) if over else (below, middle)
        expected = torch.minimum((a - above).clamp(min=0), r) * delta[row].sign()
        torch.testing.assert_close(z[row].double(), expected, atol=1e-5, rtol=1e-5)


def test_a_change_within_the_budget_is_only_cut_at_its_faces():
    delta, room, eps = torch.tensor([[[1.0, -2.0, 0.5]]]), torch.tensor([[[3.0, 1.0, 0.0]]]), torch.tensor([50.0])
    for project in CONVEX.values():
        assert project(delta, room, eps).tolist() == [[[1.0, -1.0, 0.0]]]


def test_what_a_face_leaves_over_goes_to_the_others():
    # Naive: clip (3, 1) to (1, 1), then shrink. Exact: the first value stays at its face.
    delta, room = torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[1.0, 9.0]]])
    assert projections.l1_ball(delta, room, torch.tensor([1.5])).tolist() == [[[1.0, 0.5]]]
    z = projections.l2_ball(delta, room, torch.tensor([1.25]))
    np.testing.assert_allclose(z, [[[1.0, 0.75]]], rtol=1e-6)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), pixels=st.integers(1, 5), channels=st.integers(1, 3))
def test_l0_projection_is_the_nearest_of_all_choices_of_pixels(seed, pixels, channels):
    rng = np.random.default_rng(seed)
    delta = torch.tensor(rng.normal(size=(3, channels, 5)))
    room = torch.tensor(rng.choice([0, 0.3, 1, 5], size=delta.shape))
    z = projections.l0_ball(delta, room, torch.tensor([float(pixels)] * 3))
    assert ((z != 0).any(1).sum(1) <= pixels).all()
    clipped = torch.minimum(delta.abs(), room) * delta.sign()
    for row in range(3):
        distances = []
        for chosen in combinations(range(5), pixels):
            point = torch.zeros_like(delta[row])
            point[:, list(chosen)] = clipped[row][:, list(chosen)]
            distances.append(float((delta[row] - point).square().sum()))
        assert float((delta[row] - z[row]).square().sum()) == pytest.approx(min(distances))


def test_largest_never_marks_more_than_asked():
    values = torch.tensor([[1.0, 1.0, 1.0, 0.0], [4.0, 3.0, 2.0, 1.0]])
    assert projections.largest(values, torch.tensor([2, 0])).sum(1).tolist() == [2, 0]
    assert projections.largest(values, torch.tensor([9, 3])).sum(1).tolist() == [4, 3]


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 50), scale=st.sampled_from([0.02, 0.7, 40.0]))
def test_apportioned_steps_are_the_nearest_with_their_sum(seed, size, scale):
    rng = np.random.default_rng(seed)
    room = torch.tensor(rng.integers(0, 60, (3, 1, size)), dtype=torch.float32)
    delta = torch.tensor(rng.normal(size=(3, 1, size)) * scale, dtype=torch.float32)
    delta = torch.minimum(delta.abs(), room) * delta.sign()
    total = torch.tensor([10**6, 10**6, int(delta[2].abs().sum())], dtype=torch.float32)
    steps = projections.apportion(delta, room, total)
    assert (steps == steps.round()).all() and (steps.abs() <= room).all()
    assert (steps.abs().flatten(1).sum(1) == (delta.abs().flatten(1).sum(1) + 1e-3).floor()).all()
    assert ((steps - delta).abs() < 1 + 1e-4).all()
    # No exchange of one step between two values brings it nearer.
    up, down = steps.abs() > delta.abs() + 1e-5, steps.abs() < delta.abs() - 1e-5
    for row in range(3):
        remainder = delta[row].abs() - delta[row].abs().floor()
        if up[row].any() and down[row].any():
            assert remainder[up[row]].min() >= remainder[down[row]].max() - 1e-4
