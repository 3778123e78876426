# SPDX-License-Identifier: Apache-2.0
"""FMN against the smallest changes of linear models, which are known for every norm."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from art_medical.attacks import FastMinimumNorm, ProjectedGradientDescent
from art_medical.domain import PixelDomain
from art_medical.errors import InputError
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.heads import Head

NORMS = {"linf": np.inf, "l2": 2, "l1": 1, "l0": 0}
AXES_AND_HEADS = [(2, "one-logit"), (2, "softmax"), (2, "multi-label"), (3, "one-logit"), (3, "softmax")]
N = 8


def optimum(observer, x, norm, domain):
    """The smallest norm of a change of each image that reaches the decision boundary inside the box."""
    if norm in ("linf", "l2"):
        return observer.smallest_perturbation(x, norm, domain)
    w = observer.template.ravel()
    smallest = []
    for pixels, t in zip(x.reshape(len(x), -1), observer.statistic(x), strict=True):
        towards = -np.sign(t) * np.sign(w)
        room = np.where(towards > 0, domain.high - pixels, pixels - domain.low)
        # Fractional knapsack: L-1 buys |w| a level, L-0 buys |w| room a pixel, the best first.
        price = np.ones_like(w) if norm == "l1" else 1 / np.maximum(room, 1e-300)
        order = np.argsort(-abs(w) / price)
        gain = (abs(w) * room)[order].cumsum()
        full = np.searchsorted(gain, abs(t))
        if norm == "l0":
            smallest.append(full + 1)
        else:
            left = abs(t) - (gain[full - 1] if full else 0)
            smallest.append(room[order][:full].sum() + left / abs(w[order[full]]))
    return np.array(smallest, float)


def norm_of(delta, norm):
    flat = delta.reshape(len(delta), -1).astype(float)
    return (flat != 0).sum(1) if norm == "l0" else np.linalg.norm(flat, NORMS[norm], axis=1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("axes", "head"), AXES_AND_HEADS)
def test_median_is_within_1_05_of_the_optimum_and_none_is_below_it(linear_phantoms, axes, head, norm):
    classifier, observer, x, _ = linear_phantoms(axes, head)
    x = x[:N]
    attack = FastMinimumNorm(classifier, norm=NORMS[norm], max_iter=60, quantise=False)
    attacked = attack.generate(x)
    assert (classifier.predict(attacked).argmax(1) != classifier.predict(x).argmax(1)).all()
    assert attack.record.success.all()
    np.testing.assert_allclose(attack.record.norm, norm_of(attacked - x, norm), rtol=1e-6)
    best = optimum(observer, x, norm, classifier.domain)
    assert (attack.record.norm >= best * 0.99).all()  # the scores are float32
    assert np.median(attack.record.norm / best) <= 1.05


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("axes", [2, 3])
def test_stored_images_fool_and_are_as_near_as_storage_allows(linear_phantoms, axes, norm):
    classifier, observer, x, _ = linear_phantoms(axes)
    x = x[:N]
    attack = FastMinimumNorm(classifier, norm=NORMS[norm], max_iter=60)
    attacked = attack.generate(x)
    assert classifier.domain.on_grid(attacked, tolerance=0)
    assert (classifier.predict(attacked).argmax(1) != classifier.predict(x).argmax(1)).all()
    np.testing.assert_allclose(attack.record.norm, norm_of(attacked - x, norm), rtol=1e-6)
    if norm == "linf":
        assert (attack.record.norm == observer.smallest_stored_perturbation(x, classifier.domain)).all()
    else:
        assert np.median(attack.record.norm / optimum(observer, x, norm, classifier.domain)) <= 1.05


@settings(max_examples=12, deadline=None)
@given(
    weight=st.lists(st.floats(0.2, 5).map(lambda w: round(w, 2)), min_size=8, max_size=14, unique=True),
    reach=st.floats(0.1, 0.8),
    seed=st.integers(0, 10**6),
)
def test_l1_and_l0_optimum_where_the_box_limits_single_pixels(two_pixels, weight, reach, seed):
    # Unlike in the phantom, no single pixel can do it: the attack has to find the pixels, and fill them to the face.
    x = np.random.default_rng(seed).integers(20, 236, (1, 1, 1, len(weight))).astype(np.float32)
    w = np.array(weight) * np.random.default_rng(seed + 1).choice([-1, 1], len(weight))
    up = np.where(w > 0, 255 - x.ravel(), x.ravel()) * abs(w)
    classifier = two_pixels(w.tolist(), float(-(x.ravel() * w).sum() - reach * up.sum()))
    t = reach * up.sum()
    gain, room = abs(w), up / abs(w)
    order = np.argsort(-gain)
    bought, smallest_l1 = 0.0, 0.0
    for i in order:
        part = min(1.0, (t - bought) / (gain[i] * room[i]))
        bought, smallest_l1 = bought + part * gain[i] * room[i], smallest_l1 + part * room[i]
        if part < 1:
            break
    smallest_l0 = int(np.searchsorted(np.sort(up)[::-1].cumsum(), t)) + 1
    for norm, smallest in ((1, smallest_l1), (0, smallest_l0)):
        attack = FastMinimumNorm(classifier, norm=norm, max_iter=60, quantise=False)
        attack.generate(x, np.array([0]))
        assert attack.record.success.all()
        assert smallest * (1 - 1e-3) <= attack.record.norm[0] <= 1.05 * smallest


def test_a_limit_is_kept_and_what_needs_more_comes_back_unchanged(linear_phantoms):
    classifier, observer, x, _ = linear_phantoms(2)
    need = observer.smallest_stored_perturbation(x, classifier.domain)
    limit = float(np.median(need))
    attack = FastMinimumNorm(classifier, eps=limit, max_iter=40)
    attacked = attack.generate(x)
    assert (attack.record.success == (need <= limit)).all()
    assert (attacked[need > limit] == x[need > limit]).all()
    assert (attack.record.norm == np.where(need <= limit, need, 0)).all()
    one_each = FastMinimumNorm(classifier, eps=need, max_iter=40)
    one_each.generate(x)
    assert one_each.record.success.all()


def test_images_that_are_wrong_already_cost_one_look(linear_phantoms):
    classifier, _, x, _ = linear_phantoms(2)
    decided = classifier.predict(x).argmax(1)
    attack = FastMinimumNorm(classifier, max_iter=5)
    wrong = np.arange(len(x)) % 3 == 0
    attacked = attack.generate(x, np.where(wrong, 1 - decided, decided))
    assert (attacked[wrong] == x[wrong]).all() and attack.record.success[wrong].all()
    assert (attack.record.norm[wrong] == 0).all()
    assert (attack.cost.forward[wrong] == 1).all() and (attack.cost.backward[wrong] <= 1).all()
    goes_on = attack.record.norm > 1
    assert goes_on.sum() > N
    assert (attack.cost.forward[goes_on] == 6).all() and (attack.cost.backward[goes_on] == 5).all()


def test_confidence_is_the_margin_that_is_kept(linear_phantoms):
    classifier, observer, x, _ = linear_phantoms(2)
    x = x[:N]
    attack = FastMinimumNorm(classifier, norm=2, confidence=3.0, max_iter=60, quantise=False)
    attacked = attack.generate(x)
    signed = np.sign(observer.statistic(x)) * observer.statistic(attacked)
    assert (signed <= -3 + 1e-3).all()
    assert np.median(signed) >= -3.3


def test_mask_and_target(linear_phantoms):
    classifier, _, x, _ = linear_phantoms(2)
    mask = np.zeros((64, 64))
    mask[20:44, 20:44] = 1
    target = np.zeros(len(x), np.int64)
    for norm in NORMS.values():
        attack = FastMinimumNorm(classifier, norm=norm, targeted=True, max_iter=15)
        attacked = attack.generate(x, target, mask=mask)
        assert (classifier.predict(attacked).argmax(1) == 0).all()
        assert not (attacked != x)[..., mask == 0].any()


def curved(seed=0):
    """A small network whose boundary is not flat, over 8 x 8 pixels."""
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)
    )  # fmt: skip
    return MedicalClassifier(
        network,
        domain=PixelDomain(-1, 1, None),
        head=Head(kind="softmax", labels=("a", "b", "c")),
        input_shape=(1, 8, 8),
    )


def test_restarts_never_make_it_worse_and_count():
    classifier = curved()
    x = np.random.default_rng(0).uniform(-0.5, 0.5, (6, 1, 8, 8)).astype(np.float32)
    once, often = (FastMinimumNorm(classifier, norm=2, max_iter=20, nb_restarts=n) for n in (1, 3))
    for attack in (once, often):
        attack.generate(x)
    assert (often.record.norm <= once.record.norm).all()
    assert (often.record.norm < once.record.norm).any()
    assert (often.cost.forward == 63).all() and (once.cost.forward == 21).all()


def test_pgd_fails_just_below_the_norm_that_was_found_and_succeeds_just_above_it():
    classifier = curved()
    x = np.random.default_rng(1).uniform(-0.5, 0.5, (6, 1, 8, 8)).astype(np.float32)
    for norm in (np.inf, 2):
        attack = FastMinimumNorm(classifier, norm=norm, max_iter=100)
        attack.generate(x)
        assert attack.record.success.all()
        for factor, wins in ((0.95, False), (1.02, True)):
            pgd = ProjectedGradientDescent(
                classifier, norm=norm, eps=attack.record.norm * factor, max_iter=60, loss_type="margin"
            )
            pgd.generate(x)
            assert (pgd.record.success == wins).mean() >= 5 / 6


def test_a_flat_model_gives_up_with_the_clean_image(two_pixels):
    classifier = two_pixels([0.0, 0.0], 1.0)
    x = np.full((2, 1, 1, 2), 7, np.float32)
    for norm in NORMS.values():
        attack = FastMinimumNorm(classifier, norm=norm, max_iter=3)
        assert (attack.generate(x) == x).all()
        assert not attack.record.success.any() and attack.record.zero_gradient.all()
        assert (attack.record.norm == 0).all()


def test_pixels_count_once_for_all_their_channels():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16, 1))
    torch.nn.init.constant_(network[1].weight, 1.0)
    torch.nn.init.constant_(network[1].bias, -3 * 16 * 100 - 300.5)
    classifier = MedicalClassifier(
        network, domain=PixelDomain(0, 255), head=Head(kind="one-logit", labels=("no", "yes")), input_shape=(3, 4, 4)
    )
    x = np.full((1, 3, 4, 4), 100, np.float32)
    attack = FastMinimumNorm(classifier, norm=0, max_iter=20)
    attacked = attack.generate(x)
    # 301 levels are missing, a pixel of three channels can give 465.
    assert attack.record.success.all() and attack.record.norm[0] == 1
    assert (attacked != x).sum() in (2, 3) and (attacked != x).any(1).sum() == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": 3}, "norm must be np.inf, 2, 1 or 0, got 3"),
        ({"eps": 0}, "eps must be positive, in stored values"),
        ({"eps": -1, "norm": 0}, "eps must be positive, in pixels"),
        ({"max_iter": 0}, "max_iter must be a positive whole number"),
        ({"nb_restarts": 1.5}, "nb_restarts must be a positive whole number"),
        ({"alpha": 0}, "alpha must be a positive length in stored values"),
        ({"gamma": 1}, r"gamma must be in \(0, 1\)"),
        ({"confidence": math.inf}, "confidence is a finite margin"),
    ],
)
def test_wrong_parameters_are_refused(linear_phantoms, arguments, message):
    classifier, *_ = linear_phantoms(2)
    with pytest.raises(InputError, match=message):
        FastMinimumNorm(classifier, **arguments)


def test_a_limit_below_one_stored_step_is_refused(linear_phantoms):
    classifier, _, x, _ = linear_phantoms(2)
    with pytest.raises(InputError, match="below one stored step of 1"):
        FastMinimumNorm(classifier, eps=0.4).generate(x)
