# SPDX-License-Identifier: Apache-2.0
"""PGD against closed forms: the Hotelling observer of the phantom, and linear models of two pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from art_medical.attacks import ProjectedGradientDescent, RandomNoise
from art_medical.domain import PixelDomain
from art_medical.errors import InputError

NORMS = {"linf": np.inf, "l2": 2}
EVERY_NORM = [np.inf, 2, 1, 0]
AXES_AND_HEADS = [(2, "one-logit"), (2, "softmax"), (2, "multi-label"), (3, "one-logit"), (3, "softmax")]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("axes", "head"), AXES_AND_HEADS)
def test_flips_every_image_at_1_05_of_the_optimum_and_none_below_it(linear_phantoms, axes, head, norm):
    classifier, observer, x, _ = linear_phantoms(axes, head)
    decided = classifier.predict(x).argmax(1)
    optimum = observer.smallest_perturbation(x, norm)

    def flipped(factor):
        attack = ProjectedGradientDescent(
            classifier, norm=NORMS[norm], eps=optimum * factor, max_iter=40, quantise=False, batch_size=7
        )
        return classifier.predict(attack.generate(x)).argmax(1) != decided

    assert flipped(1.05).all()
    assert not flipped(0.99).any()


def test_stored_pixels_reach_the_exact_integer_optimum(linear_phantoms):
    classifier, observer, x, _ = linear_phantoms(2)
    decided = classifier.predict(x).argmax(1)
    levels = observer.smallest_stored_perturbation(x, classifier.domain)

    def flipped(k):
        reachable = k >= 1
        attacked = ProjectedGradientDescent(classifier, eps=k[reachable], max_iter=20).generate(x[reachable])
        assert classifier.domain.on_grid(attacked, tolerance=0)
        assert (np.abs(attacked - x[reachable]).max((1, 2, 3)) <= k[reachable]).all()
        return classifier.predict(attacked).argmax(1) != decided[reachable]

    assert flipped(levels).all()
    assert not flipped(levels - 1).any()


def test_a_budget_is_rounded_down_to_whole_steps(linear_phantoms):
    classifier, _, x, y = linear_phantoms(2)
    attacks = [ProjectedGradientDescent(classifier, eps=eps, eps_step=1.0, max_iter=5) for eps in (2.0, 2.55)]
    attacked = [attack.generate(x, y) for attack in attacks]
    assert np.abs(attacked[1] - x).max() == 2
    assert (attacked[0] == attacked[1]).all()


def test_l2_rounding_keeps_the_budget_and_most_of_its_use(linear_phantoms):
    classifier, observer, x, y = linear_phantoms(2)
    budget = 60.0  # under one level for each of the 4096 pixels: naive rounding would leave almost nothing
    stored = ProjectedGradientDescent(classifier, norm=2, eps=budget, max_iter=20, confidence=math.inf)
    unrounded = ProjectedGradientDescent(
        classifier, norm=2, eps=budget, max_iter=20, confidence=math.inf, quantise=False
    )
    shift = [np.abs(observer.statistic(a.generate(x, y)) - observer.statistic(x)) for a in (stored, unrounded)]
    assert (stored.record.l2 <= budget).all()
    assert (stored.record.l2 >= 0.95 * budget).all()
    assert (shift[0] >= 0.85 * shift[1]).all()


def test_l2_rounding_spends_a_budget_that_naive_rounding_would_lose(two_pixels):
    # A budget of 2.1 over 16 pixels of nearly equal weight is half a level each; four whole levels fit into it.
    classifier = two_pixels(np.linspace(1.0, 1.15, 16).tolist(), -1600.0)
    x = np.full((1, 1, 1, 16), 100, np.float32)
    attack = ProjectedGradientDescent(classifier, norm=2, eps=2.1, max_iter=1, eps_step=2.1, confidence=math.inf)
    attacked = attack.generate(x, np.array([1]))
    assert (x - attacked).ravel().tolist() == [0] * 12 + [1] * 4


def test_targeted_reaches_the_target_and_leaves_images_that_are_there(linear_phantoms):
    classifier, _, x, _ = linear_phantoms(2)
    target = np.ones(len(x), np.int64)
    there = classifier.predict(x).argmax(1) == 1
    attack = ProjectedGradientDescent(classifier, eps=16, targeted=True)
    attacked = attack.generate(x, target)
    assert (classifier.predict(attacked).argmax(1) == 1).all()
    assert (attacked[there] == x[there]).all()
    assert attack.record.unchanged.tolist() == there.tolist()


def test_mask_holds_at_the_start_and_at_every_step(linear_phantoms):
    classifier, _, x, y = linear_phantoms(2)
    mask = np.zeros((64, 64))
    mask[20:40, 20:40] = 1
    for norm in EVERY_NORM:
        attack = ProjectedGradientDescent(classifier, norm=norm, eps=40, num_random_init=2, confidence=math.inf)
        attacked = attack.generate(x, y, mask=mask)
        changed = attacked != x
        assert changed.any((1, 2, 3)).all()
        assert not changed[..., mask == 0].any()


def test_box_is_kept_and_the_optimum_in_the_box_is_found(two_pixels):
    # z = 3 a + b - 10 at (1, 2): the best pixel can only fall by 1, the other must do the rest.
    classifier = two_pixels([3.0, 1.0], -0.5)
    x = np.array([[[[1.0, 2.0]]]], np.float32)
    attacked = ProjectedGradientDescent(classifier, eps=2, max_iter=5).generate(x, np.array([1]))
    assert attacked.ravel().tolist() == [0, 0]
    assert classifier.predict(attacked).argmax() == 0


@settings(max_examples=40, deadline=None)
@given(
    weight=st.lists(st.floats(-5, 5).filter(lambda w: abs(w) > 0.1), min_size=2, max_size=6),
    eps=st.integers(1, 30),
    low=st.integers(-1200, 0),
    seed=st.integers(0, 10**6),
)
def test_linf_step_of_a_linear_model_is_its_corner(two_pixels, weight, eps, low, seed):
    domain = PixelDomain(low, low + 1000, 1, "HU")
    classifier = two_pixels(weight, 0.0, domain)
    x = np.random.default_rng(seed).integers(low, low + 1001, (3, 1, 1, len(weight))).astype(np.float32)
    y = np.array([0, 1, 1])
    towards = np.where(y == 1, -1, 1)[:, None] * np.sign(weight)
    corner = np.clip(x.reshape(3, -1) + eps * towards, domain.low, domain.high)
    attack = ProjectedGradientDescent(classifier, eps=eps, eps_step=eps, max_iter=1, confidence=math.inf)
    assert (attack.generate(x, y).reshape(3, -1) == corner).all()


def test_saturated_logits_are_attacked_in_both_directions(two_pixels):
    # |z| is about 500: float32 cross-entropy has gradient exactly zero there.
    classifier = two_pixels([20.0, 20.0], -5100.0)
    x = np.array([[[[140.0, 140.0]]], [[[115.0, 115.0]]]], np.float32)
    assert np.abs(classifier.predict_logits(x)).min() == 500
    attack = ProjectedGradientDescent(classifier, eps=20, max_iter=10)
    attacked = attack.generate(x)
    assert (classifier.predict(attacked).argmax(1) != classifier.predict(x).argmax(1)).all()
    assert not attack.record.zero_gradient.any()


def test_passes_are_counted_and_finished_samples_leave(linear_phantoms):
    classifier, observer, x, _ = linear_phantoms(2)
    attack = ProjectedGradientDescent(classifier, eps=8, eps_step=1, max_iter=8)
    attack.generate(x)
    steps = observer.smallest_stored_perturbation(x, classifier.domain)
    reachable = steps <= 8
    # One level a step: a sample is looked at once more than its optimum has levels; the pass that finds it out may
    # carry it backwards once more, together with the samples that go on.
    assert (attack.cost.forward[reachable] == steps[reachable] + 1).all()
    assert np.isin(attack.cost.backward[reachable] - steps[reachable], (0, 1)).all()
    assert (attack.cost.backward[~reachable] == 8).all() and (attack.cost.forward[~reachable] == 9).all()
    patient = ProjectedGradientDescent(classifier, eps=8, eps_step=1, max_iter=8, confidence=math.inf)
    patient.generate(x)
    assert (patient.cost.forward == 9).all() and (patient.cost.backward == 8).all()


def test_restarts_stop_when_all_are_done_and_never_make_it_worse(linear_phantoms):
    classifier, _, x, y = linear_phantoms(2)
    once = ProjectedGradientDescent(classifier, eps=3, max_iter=3, num_random_init=1, confidence=math.inf)
    often = ProjectedGradientDescent(classifier, eps=3, max_iter=3, num_random_init=4, confidence=math.inf)
    right = np.eye(2)[y].astype(bool)
    first, more = (classifier.predict(attack.generate(x, y))[right] for attack in (once, often))
    assert (more <= first).all()
    assert (often.cost.forward == 16).all()
    easy = ProjectedGradientDescent(classifier, eps=400, max_iter=3, num_random_init=4)
    easy.generate(x, y)
    assert easy.cost.forward.max() <= 4


@pytest.mark.parametrize("norm", EVERY_NORM)
def test_result_of_a_sample_depends_on_its_id_and_seed_alone(linear_phantoms, norm):
    classifier, _, x, y = linear_phantoms(2)
    ids = [f"image-{i}" for i in range(len(x))]

    def run(rows, seed=3, batch_size=32):
        attack = ProjectedGradientDescent(
            classifier, norm=norm, eps=30, max_iter=2, num_random_init=1, seed=seed, batch_size=batch_size
        )
        return attack.generate(x[rows], y[rows], ids=[ids[i] for i in rows])

    order = np.random.default_rng(0).permutation(len(x))
    everything = run(range(len(x)))
    assert (run(order, batch_size=5) == everything[order]).all()
    if norm in NORMS.values():  # an L-1 or L-0 change has room for few pixels, and two starts find the same ones
        assert (run(range(len(x)), seed=4) != everything).any((1, 2, 3)).all()


@pytest.mark.parametrize("norm", EVERY_NORM)
def test_draws_differ_from_sample_to_sample_and_from_seed_to_seed(linear_phantoms, norm):
    classifier, _, x, y = linear_phantoms(2)
    same = np.repeat(x[:1], 3, axis=0)
    draws = [RandomNoise(classifier, norm=norm, eps=30, seed=seed).generate(same, y[[0, 0, 0]]) for seed in (0, 1)]
    kinds = {image.tobytes() for image in np.concatenate(draws)}
    assert len(kinds) == 6


def test_best_image_is_returned_not_the_last(two_pixels):
    # The objective has its optimum in the middle: a step of 8 lands on it at once, the next one overshoots.
    import torch

    class Bump(torch.nn.Module):
        def forward(self, x):
            return ((x.flatten(1) - 108).abs().sum(1, keepdim=True) - 3) / 10

    classifier = two_pixels([1.0, 1.0], 0.0)
    classifier.module.network = Bump()
    x = np.full((1, 1, 1, 2), 100, np.float32)
    attack = ProjectedGradientDescent(classifier, eps=24, eps_step=8, max_iter=2, confidence=math.inf)
    assert attack.generate(x, np.array([1])).ravel().tolist() == [108, 108]


def test_noise_is_weaker_than_the_attack_and_uses_no_gradient(linear_phantoms):
    classifier, _, x, y = linear_phantoms(2)
    noise = RandomNoise(classifier, eps=4, num_random_init=5, confidence=math.inf)
    attack = ProjectedGradientDescent(classifier, eps=4, confidence=math.inf)
    right = np.eye(2)[y].astype(bool)
    by_noise, by_attack = (classifier.predict(a.generate(x, y))[right] for a in (noise, attack))
    assert (by_attack < by_noise).all()
    assert (noise.cost.backward == 0).all() and (noise.cost.forward == 5).all()
    assert np.abs(noise.generate(x, y) - x).max() == 4


def test_neither_input_nor_model_is_touched(linear_phantoms):
    classifier, _, x, y = linear_phantoms(2)
    before, weights = x.copy(), [p.clone() for p in classifier.network.parameters()]
    classifier.network.train()
    ProjectedGradientDescent(classifier, eps=4, num_random_init=2).generate(x, y)
    assert (x == before).all()
    assert classifier.network.training
    for parameter, old in zip(classifier.network.parameters(), weights, strict=True):
        assert parameter.grad is None and parameter.requires_grad and (parameter == old).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": 3}, "norm must be np.inf, 2, 1 or 0, got 3"),
        ({"norm": True}, "norm must be np.inf, 2, 1 or 0, got True"),
        ({"norm": 0, "eps": 0}, "eps must be positive, in pixels, got 0"),
        ({"eps": 0}, "eps must be positive, in stored values"),
        ({"eps": np.nan}, "eps must be positive"),
        ({"eps": 2, "eps_step": -1.0}, "eps_step must be positive"),
        ({"max_iter": -1}, "max_iter must be a whole number"),
        ({"num_random_init": 1.5}, "num_random_init must be a whole number"),
        ({"loss_type": "hinge"}, "loss_type must be one of cross_entropy, margin, dlr, got"),
        ({"confidence": -1}, "confidence is a margin"),
        ({"batch_size": 0}, "batch_size must be a positive"),
        ({"targeted": 1}, "targeted must be true or false"),
        ({"seed": "a"}, "seed must be a whole number"),
    ],
)
def test_wrong_parameters_are_refused(linear_phantoms, arguments, message):
    classifier, *_ = linear_phantoms(2)
    with pytest.raises(InputError, match=message):
        ProjectedGradientDescent(classifier, **arguments)


def test_wrong_calls_are_refused(linear_phantoms):
    classifier, _, x, y = linear_phantoms(2)
    attack = ProjectedGradientDescent(classifier, eps=2)
    with pytest.raises(InputError, match="call generate first"):
        _ = attack.cost
    with pytest.raises(InputError, match="needs y"):
        ProjectedGradientDescent(classifier, eps=2, targeted=True).generate(x)
    with pytest.raises(InputError, match="below one stored step of 1"):
        ProjectedGradientDescent(classifier, eps=0.4).generate(x, y)
    with pytest.raises(InputError, match="not on the storage grid"):
        attack.generate(x + 0.3, y)
    with pytest.raises(InputError, match="got 3 labels for 24 images"):
        attack.generate(x, y[:3])
    with pytest.raises(InputError, match="one for each of 24 images"):
        ProjectedGradientDescent(classifier, eps=np.ones(3)).generate(x, y)
    with pytest.raises(InputError, match="does not fit images"):
        attack.generate(x, y, mask=np.ones((3, 3)))
    with pytest.raises(InputError, match="0 \\(keep\\) and 1"):
        attack.generate(x, y, mask=np.full((64, 64), 0.5))
    with pytest.raises(InputError, match="takes no argument 'masks'"):
        attack.generate(x, y, masks=None)
    with pytest.raises(InputError, match="label 2 is outside the model's card"):
        attack.generate(x, np.full(len(x), 2))


def test_art_refuses_another_estimator():
    import torch
    from art.estimators.classification import PyTorchClassifier
    from art.exceptions import EstimatorError

    plain = PyTorchClassifier(torch.nn.Flatten(), torch.nn.CrossEntropyLoss(), (1, 2), 2, device_type="cpu")
    with pytest.raises(EstimatorError):
        ProjectedGradientDescent(plain)
