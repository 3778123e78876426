# SPDX-License-Identifier: Apache-2.0
"""Exposure: interpolation against numpy, the closed form where pixels do not share nodes, smoothness by beta."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from art_medical.attacks import AdversarialExposure
from art_medical.attacks.adversarial_exposure import _slope, linear_axis, total_variation
from art_medical.domain import PixelDomain
from art_medical.errors import InputError
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.heads import Head
from art_medical.zoo.networks import LinearObserver


def linear(shape: tuple[int, ...], step: float | None = 1.0, seed: int = 0) -> MedicalClassifier:
    network = LinearObserver(shape)
    weight = np.random.default_rng(seed).normal(size=math.prod(shape)) / 100
    network.readout.weight.data = torch.tensor(weight[None], dtype=torch.float32)
    network.readout.bias.data = torch.tensor([-weight.sum() * 128], dtype=torch.float32)
    return MedicalClassifier(
        network,
        domain=PixelDomain(0, 255, step),
        head=Head(kind="one-logit", labels=("no", "yes")),
        input_shape=shape,
    )


def pixels(n: int, shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape)).astype(np.float32)


@pytest.mark.parametrize(("length", "nodes"), [(64, 16), (37, 5), (8, 8), (1, 1), (9, 2)])
def test_interpolation_is_that_of_numpy(length, nodes):
    values = np.random.default_rng(0).normal(size=nodes)
    expected = np.interp(np.linspace(0, nodes - 1, length), np.arange(nodes), values)
    np.testing.assert_allclose(linear_axis(length, nodes).numpy() @ values, expected, atol=1e-12)


def test_total_variation_and_its_slope():
    e = torch.tensor([[[0.0, 1.0, 1.0], [2.0, 1.0, -1.0]]], dtype=torch.float64)
    assert float(total_variation(e)) == pytest.approx((2 + 0 + 2) / 3 + (1 + 0 + 1 + 2) / 4)
    assert (total_variation(torch.ones(2, 3, 3)) == 0).all()
    by_hand = torch.autograd.functional.jacobian(lambda t: 3 * total_variation(t / math.log(2)).sum(), e)
    assert torch.allclose(_slope(e, 3.0), by_hand)


def test_one_node_for_each_pixel_reaches_the_closed_form():
    # Every pixel has an exposure of its own: the best one is at the end that its weight asks for.
    shape = (1, 6, 7)
    classifier, x = linear(shape), pixels(4, shape)
    y = classifier.predict(x).argmax(1)
    attack = AdversarialExposure(classifier, stops=0.5, beta=0, nodes=7, confidence=math.inf)
    weight = classifier.network.readout.weight.detach().numpy().reshape(shape)
    up = (weight * (1 - 2 * y)[:, None, None, None]) > 0
    best = np.where(up, np.floor(x * math.sqrt(2)), np.ceil(x / math.sqrt(2))).clip(0, 255)
    assert (attack.generate(x, y) == best).all()


def test_exposure_is_kept_and_reaches_its_bound_on_both_sides():
    shape = (1, 9, 6, 7)
    classifier, x = linear(shape), pixels(3, shape)
    stops = np.array([0.1, 0.5, 2.0])
    attack = AdversarialExposure(classifier, stops=stops, nodes=4, beta=0, confidence=math.inf)
    attacked = attack.generate(x).astype(np.float64)
    lit = (x > 0) & (attacked > 0)
    for i, most in enumerate(stops):
        exposure = np.log2(attacked[i][lit[i]] / x[i][lit[i]])
        assert np.abs(exposure).max() <= most + 1e-6
        assert exposure.min() < -0.7 * most and exposure.max() > 0.7 * most
    assert (attacked[x == 0] == 0).all()


def test_beta_buys_smoothness():
    shape = (1, 24, 24)
    classifier, x = linear(shape, step=None), pixels(4, shape) / 2 + 10
    y = classifier.predict(x).argmax(1)
    rough, margins = [], []
    for beta in (0.0, 30.0, 100.0):
        attack = AdversarialExposure(
            classifier, stops=0.3, nodes=12, beta=beta, max_iter=40, quantise=False, confidence=math.inf
        )
        attacked = attack.generate(x, y)
        rough.append(np.abs(np.diff(np.log2(attacked / x), axis=3)).mean())
        margins.append((classifier.predict_logits(attacked)[:, 0] * (2 * y - 1)).mean())
    assert rough[0] > 1.3 * rough[1] and rough[1] > 2 * rough[2]
    assert margins[0] < margins[1] < margins[2] < (classifier.predict_logits(x)[:, 0] * (2 * y - 1)).mean()


@pytest.mark.parametrize("axes", [2, 3])
def test_it_beats_random_exposures(linear_phantoms, axes):
    classifier, observer, x, _ = linear_phantoms(axes)
    x = x[:8]
    y = observer.decide(x)
    arguments = {"stops": 0.1, "nodes": 8, "confidence": math.inf}
    attack = AdversarialExposure(classifier, max_iter=10, **arguments)
    control = AdversarialExposure(classifier, max_iter=0, num_random_init=11, **arguments)
    by_attack, by_chance = ((2 * y - 1) * observer.statistic(a.generate(x, y)) for a in (attack, control))
    assert (by_attack < by_chance).all()
    assert (control.cost.forward == 11).all() and (control.cost.backward == 0).all()


def test_targeted_and_mask():
    shape = (3, 10, 10)
    classifier, x = linear(shape), pixels(3, shape)
    y = classifier.predict(x).argmax(1)
    mask = np.zeros((3, 10, 10))
    mask[1, :5] = 1
    plain = AdversarialExposure(classifier, confidence=math.inf).generate(x, y, mask=mask)
    targeted = AdversarialExposure(classifier, targeted=True, confidence=math.inf)
    assert (targeted.generate(x, 1 - y, mask=mask) == plain).all()
    assert not (plain != x)[:, mask == 0].any() and (plain != x)[:, mask == 1].mean() > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stops": 0}, "stops must be above 0 and at most 8, got 0"),
        ({"stops": 9}, "stops must be above 0 and at most 8, got 9"),
        ({"nodes": 1}, "nodes must be a whole number of 2 or more, got 1"),
        ({"beta": -1}, "beta must be 0 or more, got -1"),
        ({"max_iter": -1}, "max_iter must be a whole number"),
    ],
)
def test_wrong_parameters_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        AdversarialExposure(linear((1, 4, 4)), **arguments)
