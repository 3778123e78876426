# SPDX-License-Identifier: Apache-2.0
"""Every additive perturbation: what it hands out is inside budget, box and mask, and on the grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from art_medical.attacks.noise import Noise
from art_medical.attacks.perturbations import additive
from art_medical.domain import PixelDomain
from art_medical.errors import InputError

NORMS = ("linf", "l2", "l1", "l0")
DOMAINS = [PixelDomain(0, 255), PixelDomain(-1024, 3071, 1, "HU"), PixelDomain(0, 1, 1 / 255), PixelDomain(-2, 2, 0.25)]
SHAPES = [(1, 5, 4), (3, 4, 4), (2, 3, 3, 3)]


def size(delta: torch.Tensor, norm: str) -> torch.Tensor:
    """The norm of each change; for L-0 the number of changed positions."""
    if norm == "l0":
        return (delta != 0).any(1).flatten(1).sum(1)
    order = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    return delta.double().flatten(1).norm(p=order, dim=1)


@settings(max_examples=120)
@given(
    norm=st.sampled_from(NORMS),
    domain=st.sampled_from(DOMAINS),
    shape=st.sampled_from(SHAPES),
    quantise=st.booleans(),
    masked=st.booleans(),
    seed=st.integers(0, 10**6),
    reach=st.sampled_from([0.01, 1.0, 100.0]),
)
def test_start_and_every_projected_image_fit(norm, domain, shape, quantise, masked, seed, reach):
    rng = np.random.default_rng(seed)
    x = domain.quantise(torch.tensor(rng.uniform(domain.low, domain.high, (3, *shape)), dtype=torch.float32))
    x[:, :, 0] = domain.low  # background
    mask = torch.tensor(rng.random(x.shape) < 0.5).float() if masked else None
    eps = torch.tensor(rng.choice([1.0, 2.5, 7.0, 40.0], 3), dtype=torch.float32)
    if norm != "l0":
        eps *= domain.step
    perturbation = additive(norm, x, eps, domain, quantise, mask)
    # Off the grid a float32 image holds each change up to its last bit only.
    slack = eps.double() * 1e-5 + domain.span * 1e-7 * x[0].numel()
    noise = Noise(seed, ["a", "b", "c"], "start")
    towards = torch.tensor(rng.normal(size=x.shape), dtype=torch.float32) * reach * domain.span
    for theta in (perturbation.start(None), perturbation.start(noise), perturbation.project(x + towards)):
        stored = perturbation.stored(theta.clone())
        assert (size(stored - x, norm) <= eps.double() + slack).all()
        assert ((stored >= domain.low) & (stored <= domain.high)).all()
        if mask is not None:
            assert (stored == x)[mask == 0].all()
        if quantise:
            assert domain.on_grid(stored, tolerance=0)
            steps = ((stored - x) / domain.step).round()
            allowed = eps if norm == "l0" else (eps / domain.step).round(decimals=4)
            assert (size(steps, norm) <= allowed).all()
        again = perturbation.project(theta.clone())
        torch.testing.assert_close(again, theta, atol=1e-4 * domain.span, rtol=1e-5)
    assert (perturbation.stored(perturbation.start(None)) == x).all()
    keep = torch.tensor([2, 0])
    alone = perturbation.select(keep)
    torch.testing.assert_close(alone.project((x + towards)[keep]), perturbation.project(x + towards)[keep])


@pytest.mark.parametrize("norm", ["l1", "l0"])
def test_random_starts_use_their_budget_inside_the_mask(norm):
    x = torch.full((50, 2, 8, 8), 100.0)
    mask = torch.zeros_like(x)
    mask[..., :4] = 1
    eps = torch.full((50,), 30.0)
    theta = additive(norm, x, eps, PixelDomain(0, 4095), False, mask).start(Noise(0, [str(i) for i in range(50)], "n"))
    used = size(theta - x, norm)
    assert used.double().mean() > 28
    assert len(used.unique()) == (50 if norm == "l1" else 1)  # the radius of an L-1 draw is random, near the surface
    if norm == "l0":
        assert (used == 30).all()
        assert 1500 < theta[theta != x].mean() < 2600


def test_what_cannot_follow_the_gradient_is_named():
    x = torch.tensor([[[0.0, 0.0, 255.0, 255.0, 9.0, 9.0]]])
    mask = torch.tensor([[[1.0, 1, 1, 1, 1, 0]]])
    gradient = torch.tensor([[[1.0, -1, 1, -1, 1, 1]]])
    for norm in ("l2", "l1", "l0"):
        perturbation = additive(norm, x, torch.tensor([5.0]), PixelDomain(0, 255), True, mask)
        assert perturbation.movable(x, gradient).tolist() == [[[0.0, -1, 1, 0, 1, 0]]]


def test_l1_rounding_spends_all_of_a_thin_change():
    x = torch.full((1, 1, 100), 50.0)
    perturbation = additive("l1", x, torch.tensor([10.0]), PixelDomain(0, 255), True, None)
    theta = perturbation.project(x + torch.linspace(0.3, 0.5, 100))  # a tenth of a level each: naively nothing
    stored = perturbation.stored(theta)
    assert (stored - x)[0, 0].tolist() == [0.0] * 90 + [1.0] * 10


def test_budgets_too_small_to_matter_are_refused():
    x, one = torch.zeros(1, 1, 4), torch.tensor([0.5])
    with pytest.raises(InputError, match=r"an L-0 budget of 0.5 is below one pixel: no image can change; raise eps"):
        additive("l0", x, one, PixelDomain(0, 255, None), False, None)
    with pytest.raises(InputError, match=r"a budget of 0.5 grey levels is below one stored step of 1"):
        additive("l1", x, one, PixelDomain(0, 255), True, None)
    with pytest.raises(InputError, match="images are not on the storage grid"):
        additive("l0", x + 0.5, 2 * one, PixelDomain(0, 255), True, None)
