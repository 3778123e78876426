# SPDX-License-Identifier: Apache-2.0
"""Square: its geometry and schedule as in the paper, its cost, and its strength where the optimum is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from art_medical.attacks import RandomNoise, Square
from art_medical.attacks.square_geometry import Area, Windows, share, tiles
from art_medical.domain import PixelDomain
from art_medical.errors import InputError

NORMS = {"linf": np.inf, "l2": 2}


def test_share_follows_the_paper_and_scales_with_the_number_of_queries():
    at = {0: 1, 10: 1, 11: 2, 50: 2, 51: 4, 200: 4, 201: 8, 500: 8, 1000: 16, 2001: 64, 6000: 128, 8000: 256, 9999: 512}
    assert [share(0.8, query, 10_000) for query in at] == [0.8 / halves for halves in at.values()]
    assert [share(0.8, query // 10, 1000) for query in (0, 1000, 8010)] == [0.8, 0.05, 0.8 / 512]


def test_windows_are_cubes_of_the_asked_share_inside_the_area():
    place = torch.tensor([[0.0, 0.0, 0.0], [0.999, 0.5, 0.999]])
    area = Area.around(None, torch.zeros(2, 1, 20, 20, 20))
    inside = area.windows(0.125, place).inside()
    assert inside.shape == (2, 1, 20, 20, 20)
    assert inside.flatten(1).sum(1).tolist() == [1000, 1000]
    assert inside[0, 0, :10, :10, :10].all() and inside[1, 0, 10:, 5:15, 10:].all()


def test_windows_stay_around_the_pixels_that_may_change():
    mask = torch.zeros(2, 3, 12, 16)
    mask[0, 1, 3:9, 4:8] = 1
    area = Area.around(mask, mask)
    assert area.low.tolist() == [[3, 4], [0, 0]] and area.size.tolist() == [[6, 4], [12, 16]]
    inside = area.windows(1.0, torch.rand(2, 2, generator=torch.Generator().manual_seed(0))).inside()
    assert inside[0].nonzero()[:, 1:].min(0).values.tolist()[0] >= 3
    assert not inside[0, 0, :, :4].any() and not inside[0, 0, :, 8:].any() and not inside[0, 0, 9:].any()


@settings(max_examples=40, deadline=None)
@given(
    sides=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    axis=st.integers(0, 1),
    offset=st.integers(0, 3),
)
def test_bumps_have_length_one_and_cancel_along_their_axis(sides, axis, offset):
    shape = tuple(side + 4 for side in sides)
    window = Windows(torch.full((1, len(sides)), offset), torch.tensor([sides]), shape)
    eta = window.bumps(torch.tensor([axis]))
    assert float(eta.norm()) == pytest.approx(1, abs=1e-5)
    assert not eta[~window.inside()].any()
    halves = eta[0, 0].movedim(axis, 0)[offset : offset + sides[axis]].split([sides[axis] // 2, -(-sides[axis] // 2)])
    assert (halves[0] >= 0).all() and (halves[1] <= 0).all()
    if sides[axis] > 1:
        assert [float(half.square().sum()) for half in halves] == pytest.approx([0.5, 0.5], abs=1e-5)


def test_bump_of_six_by_six_is_the_one_of_the_paper():
    # Half of 3 x 6 with its middle at (1, 3): sum_{k=r}^{3} 1 / (k + 1)**2 at Chebyshev distance r.
    heights = [sum(1 / (k + 1) ** 2 for k in range(r, 4)) for r in range(4)]
    distance = np.maximum(abs(np.arange(3) - 1)[:, None], abs(np.arange(6) - 3)[None, :])
    hill = np.array(heights)[distance]
    hill /= np.linalg.norm(hill)
    eta = Windows(torch.zeros(1, 2, dtype=torch.int64), torch.full((1, 2), 6), (6, 6)).bumps(torch.tensor([0]))[0, 0]
    np.testing.assert_allclose(eta.numpy(), np.concatenate([hill, -hill]) / math.sqrt(2), rtol=1e-5)


def test_tiles_cover_the_middle_without_overlap():
    for shape in ((28, 28), (3, 17), (11, 12, 13)):
        seen = np.zeros(shape, int)
        for place in tiles(shape):
            seen[place] += 1
        assert seen.max() == 1 and len(tiles(shape)) == math.prod(min(5, length) for length in shape)
        assert seen.mean() >= 0.4


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("axes", "head"), [(2, "one-logit"), (2, "softmax"), (2, "multi-label"), (3, "one-logit")])
def test_flips_at_a_multiple_of_the_optimum_and_never_below_it(linear_phantoms, axes, head, norm):
    classifier, observer, x, _ = linear_phantoms(axes, head)
    x = x[:6]
    decided = classifier.predict(x).argmax(1)
    optimum = observer.smallest_perturbation(x, norm)

    def flipped(factor):
        attack = Square(classifier, norm=NORMS[norm], eps=optimum * factor, max_iter=100, quantise=False)
        return classifier.predict(attack.generate(x)).argmax(1) != decided

    assert flipped({"linf": 8, "l2": 20}[norm]).all()
    assert not flipped(0.99).any()


@pytest.mark.parametrize(("axes", "norm", "share_found"), [(2, "linf", 0.5), (2, "l2", 0.3), (3, "linf", 0.33)])
def test_finds_its_share_of_the_best_shift_of_a_linear_score(linear_phantoms, axes, norm, share_found):
    classifier, observer, x, _ = linear_phantoms(axes)
    x, eps = x[:4], {"linf": 8.0, "l2": 200.0}[norm]
    attacked = Square(classifier, norm=NORMS[norm], eps=eps, max_iter=500, confidence=math.inf).generate(x)
    best = eps * np.linalg.norm(observer.template.ravel(), {"linf": 1, "l2": 2}[norm])
    shift = np.sign(observer.statistic(x)) * (observer.statistic(x) - observer.statistic(attacked))
    assert (shift >= share_found * best).all() and (shift <= best).all()


@settings(max_examples=15, deadline=None)
@given(
    weight=st.lists(st.floats(-5, 5).filter(lambda w: abs(w) > 0.1), min_size=4, max_size=6),
    eps=st.integers(1, 30),
    low=st.integers(-1200, 0),
    seed=st.integers(0, 10**6),
)
def test_linf_search_of_a_few_pixels_ends_in_the_best_corner(two_pixels, weight, eps, low, seed):
    domain = PixelDomain(low, low + 1000, 1, "HU")
    classifier = two_pixels(weight, 0.0, domain)
    x = np.random.default_rng(seed).integers(low, low + 1001, (2, 1, 1, len(weight))).astype(np.float32)
    y = np.array([0, 1])
    towards = np.where(y == 1, -1, 1)[:, None] * np.sign(weight)
    corner = np.clip(x.reshape(2, -1) + eps * towards, domain.low, domain.high)
    attack = Square(classifier, eps=eps, max_iter=80, confidence=math.inf, seed=seed)
    assert (attack.generate(x, y).reshape(2, -1) == corner).all()


@pytest.mark.parametrize("norm", NORMS)
def test_one_query_for_each_step_and_none_of_a_gradient(linear_phantoms, norm):
    classifier, _, x, y = linear_phantoms(2)
    passes = []
    handle = classifier.network.register_forward_hook(lambda module, args, output: passes.append(len(args[0])))
    try:
        attack = Square(classifier, norm=NORMS[norm], eps=10, max_iter=30, confidence=math.inf)
        attack.generate(x, y)
    finally:
        handle.remove()
    # One look at the clean image, then 30 queries: ART's implementation spends 3 passes on each.
    assert passes == [24] * 31
    assert (attack.cost.forward == 31).all() and (attack.cost.backward == 0).all()


def test_finished_samples_leave(linear_phantoms):
    classifier, observer, x, _ = linear_phantoms(2)
    attack = Square(classifier, eps=6, max_iter=40)
    attack.generate(x)
    hopeless = observer.smallest_stored_perturbation(x, classifier.domain) > 6
    assert hopeless.any() and not hopeless.all()
    assert (attack.cost.forward[hopeless] == 41).all()
    assert (attack.cost.forward[attack.record.success] < 41).any()
    wrong = 1 - classifier.predict(x).argmax(1)
    attack.generate(x, wrong)
    assert (attack.cost.forward == 1).all() and attack.record.unchanged.all()


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_spends_the_budget_on_the_grid_and_inside_the_mask(linear_phantoms, axes, norm):
    classifier, _, x, y = linear_phantoms(axes)
    x, y = x[:4], y[:4]
    mask = np.zeros(x.shape[2:])
    mask[tuple(slice(length // 4, length // 2) for length in x.shape[2:])] = 1
    budget = 5.0 if norm == "linf" else 40.0
    attack = Square(classifier, norm=NORMS[norm], eps=budget, max_iter=20, confidence=math.inf)
    changed = attack.generate(x, y, mask=mask) - x
    assert not changed[..., mask == 0].any()
    tried = ~attack.record.unchanged  # the clean image is the best one where every square is worse
    assert tried.sum() >= 2
    if norm == "linf":
        assert (np.abs(changed[tried][..., mask == 1]) == 5).all()
    else:
        assert (attack.record.l2 <= budget).all() and (attack.record.l2[tried] >= 0.95 * budget).all()


def test_l2_budget_that_the_box_takes_from_some_pixels_goes_to_the_others(two_pixels):
    classifier = two_pixels([1.0] * 16, -800.0, PixelDomain(0, 100, None))
    x = np.full((1, 1, 4, 4), 50, np.float32).reshape(1, 1, 1, 16)
    attack = Square(classifier, norm=2, eps=150.0, max_iter=40, confidence=math.inf)
    attack.generate(x, np.array([0]))
    assert attack.record.l2[0] == pytest.approx(150, rel=1e-3) and attack.record.linf[0] <= 50


@pytest.mark.parametrize("norm", NORMS)
def test_beats_as_many_draws_of_noise(linear_phantoms, norm):
    classifier, _, x, y = linear_phantoms(2)
    x, right = x[:8], np.eye(2)[y[:8]].astype(bool)
    common = {"norm": NORMS[norm], "eps": {"linf": 4, "l2": 120}[norm], "confidence": math.inf}
    by_square = Square(classifier, max_iter=60, **common).generate(x, y[:8])
    by_noise = RandomNoise(classifier, num_random_init=60, **common).generate(x, y[:8])
    assert (classifier.predict(by_square)[right] < classifier.predict(by_noise)[right]).all()


def test_restarts_are_other_searches_and_never_make_it_worse(linear_phantoms):
    classifier, _, x, y = linear_phantoms(2)
    x, y = x[:6], y[:6]
    right = np.eye(2)[y].astype(bool)
    once, twice = (
        Square(classifier, eps=3, max_iter=10, nb_restarts=n, confidence=math.inf).generate(x, y) for n in (1, 2)
    )
    margins = [classifier.predict(images)[right] for images in (once, twice)]
    assert (margins[1] <= margins[0]).all() and (margins[1] < margins[0]).any()


def test_targeted_reaches_the_target(linear_phantoms):
    classifier, _, x, _ = linear_phantoms(2)
    x = x[:6]
    attacked = Square(classifier, eps=40, targeted=True, max_iter=60).generate(x, np.ones(6, np.int64))
    assert (classifier.predict(attacked).argmax(1) == 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": 1}, "norm must be np.inf or 2, got 1"),
        ({"eps": 0}, "eps must be positive, in stored values"),
        ({"max_iter": 0}, "max_iter must be a positive whole number"),
        ({"nb_restarts": 0}, "nb_restarts must be a positive whole number"),
        ({"p_init": 0}, r"p_init is a share of the pixels in \(0, 1\]"),
        ({"confidence": -1}, "confidence is a margin"),
    ],
)
def test_wrong_parameters_are_refused(linear_phantoms, arguments, message):
    classifier, *_ = linear_phantoms(2)
    with pytest.raises(InputError, match=message):
        Square(classifier, **arguments)
