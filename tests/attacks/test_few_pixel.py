# SPDX-License-Identifier: Apache-2.0
"""Few pixels: on a linear model the best ones are known, by sorting what each can give inside the box."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from art_medical.attacks import FewPixel
from art_medical.domain import PixelDomain
from art_medical.errors import InputError
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.heads import Head
from art_medical.zoo.networks import LinearObserver

HU = PixelDomain(-1024, 3071, 1, "HU")


def linear(shape: tuple[int, ...], seed: int, domain: PixelDomain = HU) -> tuple[MedicalClassifier, np.ndarray]:
    """``z = w . x`` over a small image, and ``w``."""
    network = LinearObserver(shape)
    weight = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    network.readout.weight.data = torch.from_numpy(weight.reshape(1, -1))
    network.readout.bias.data = torch.zeros(1)
    head = Head(kind="one-logit", labels=("no", "yes"))
    return MedicalClassifier(network, domain=domain, head=head, input_shape=shape), weight


def images(shape: tuple[int, ...], seed: int, n: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(-900, 2900, (n, *shape)).astype(np.float32)


def gains(weight: np.ndarray, x: np.ndarray, y: int) -> np.ndarray:
    """How far each place can move the logit of one image towards the other class, all channels together."""
    towards = weight * (-1 if y == 1 else 1)
    room = np.where(towards > 0, HU.high - x, x - HU.low)
    return (np.abs(weight) * room).sum(0)


def decrease(classifier: MedicalClassifier, x: np.ndarray, attacked: np.ndarray, y: np.ndarray) -> np.ndarray:
    z = [classifier.predict_logits(array).astype(np.float64)[:, 0] for array in (x, attacked)]
    return (z[0] - z[1]) * np.where(y == 1, 1, -1)


@pytest.mark.parametrize("shape", [(1, 4, 5), (1, 3, 2, 4)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_best_pixel_of_a_linear_model_is_found(shape, seed):
    classifier, weight = linear(shape, seed)
    x = images(shape, seed)
    y = classifier.predict(x).argmax(1)
    attack = FewPixel(classifier, population=60, generations=25, confidence=math.inf, seed=seed)
    attacked = attack.generate(x, y)
    reached = decrease(classifier, x, attacked, y)
    for row in range(len(x)):
        gain = gains(weight, x[row], y[row])
        assert ((attacked[row] != x[row]).any(0) == (gain == gain.max())).all()
        assert reached[row] == pytest.approx(gain.max(), rel=1e-3)


@pytest.mark.parametrize(("search", "least"), [("greedy", 0.999), ("joint", 0.8)])
def test_three_pixels_come_close_to_the_best_three(search, least):
    classifier, weight = linear((1, 4, 5), 3)
    x = images((1, 4, 5), 3, n=1)
    y = classifier.predict(x).argmax(1)
    attack = FewPixel(classifier, 3, search, population=60, generations=25, confidence=math.inf)
    best = np.sort(gains(weight, x[0], y[0]).ravel())[-3:].sum()
    assert least * best <= decrease(classifier, x, attack.generate(x, y), y)[0] <= best * (1 + 1e-5)


def test_a_pixel_is_a_place_with_all_its_channels():
    classifier, weight = linear((3, 3, 4), 0)
    x = images((3, 3, 4), 0, n=1)
    y = classifier.predict(x).argmax(1)
    attack = FewPixel(classifier, population=100, generations=25, confidence=math.inf)
    attacked = attack.generate(x, y)
    assert (attacked != x).any(1).sum() == 1 and (attacked != x).sum() == 3
    assert decrease(classifier, x, attacked, y)[0] >= 0.9 * gains(weight, x[0], y[0]).max()


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("head", ["one-logit", "softmax", "multi-label"])
def test_budget_and_grid_with_every_head(linear_phantoms, axes, head):
    classifier, _, x, _ = linear_phantoms(axes, head)
    for search, queries in (("greedy", 2 * 10 * 3), ("joint", 10 * 3)):
        attack = FewPixel(classifier, 2, search, population=10, generations=2, confidence=math.inf)
        attacked = attack.generate(x[:2])
        changed = (attacked != x[:2]).reshape(2, -1).sum(1)
        assert ((changed >= 1) & (changed <= 2)).all()
        assert classifier.domain.on_grid(attacked, tolerance=0)
        assert (attack.cost.forward == 1 + queries).all() and not attack.cost.backward.any()


def test_values_have_the_resolution_of_the_file_and_not_eight_bits():
    domain = PixelDomain(0, 1000, 0.25, "mSv")
    classifier, _ = linear((1, 4, 4), 0, domain)
    x = np.full((8, 1, 4, 4), 500.25, np.float32)
    attacked = FewPixel(classifier, population=5, generations=0, confidence=math.inf).generate(x)
    assert domain.on_grid(attacked, tolerance=0)
    assert (attacked[attacked != x] % 1 != 0).any()
    free = FewPixel(classifier, population=5, generations=0, confidence=math.inf, quantise=False).generate(x)
    assert not domain.on_grid(free, tolerance=0) and free.min() >= 0 and free.max() <= 1000


def test_mask_is_kept_and_its_best_pixel_found():
    classifier, weight = linear((2, 4, 5), 4)
    x = images((2, 4, 5), 4, n=1)
    y = classifier.predict(x).argmax(1)
    mask = np.zeros((2, 4, 5))
    mask[0, 1, 1:4] = mask[1, 3, 0] = mask[0, 0, 4] = 1
    attacked = FewPixel(classifier, population=80, generations=25, confidence=math.inf).generate(x, y, mask=mask)
    assert (mask[(attacked != x)[0]] == 1).all()
    best = gains(weight * mask, x[0], y[0]).max()
    assert decrease(classifier, x, attacked, y)[0] == pytest.approx(best, rel=1e-2)
    nothing = FewPixel(classifier, population=5, generations=1).generate(x, y, mask=np.zeros((4, 5)))
    assert (nothing == x).all()


def test_no_more_pixels_than_needed_and_wrong_images_are_left(two_pixels):
    # z = a + b + c - 1.5 with pixels in 0..1: one pixel is enough for (1, 1, 0), two for (1, 1, 1); the last is wrong.
    classifier = two_pixels([1.0, 1.0, 1.0], -1.5, PixelDomain(0, 1))
    x = np.array([[[[1, 1, 0]]], [[[1, 1, 1]]], [[[0, 0, 1]]]], np.float32)
    attack = FewPixel(classifier, pixels=3, population=10, generations=4, batch_size=5)
    attacked = attack.generate(x, np.array([1, 1, 1]))
    assert (attacked != x).sum((1, 2, 3)).tolist() == [1, 2, 0]
    assert attack.record.success.all() and attack.record.linf.tolist() == [1, 1, 0]
    # A look at the clean image and whole generations of ten; evolution for the first pixel of two is in vain.
    forward = attack.cost.forward
    assert forward[2] == 1 and 11 <= forward[0] <= 1 + 50 and forward[0] < forward[1] <= 1 + 2 * 50
    assert (forward % 10 == 1).all()
    assert (attack.generate(x[::-1].copy(), np.array([1, 1, 1]), ids=["2", "1", "0"])[::-1] == attacked).all()


def test_evolution_beats_random_search_at_equal_queries(linear_phantoms):
    classifier, _, x, _ = linear_phantoms(2)
    y = classifier.predict(x[:6]).argmax(1)
    evolved = FewPixel(classifier, 3, population=30, generations=9, confidence=math.inf, batch_size=64)
    drawn = FewPixel(classifier, 3, "joint", population=900, generations=0, confidence=math.inf, batch_size=64)
    by_evolution, by_chance = (decrease(classifier, x[:6], a.generate(x[:6], y), y) for a in (evolved, drawn))
    assert (evolved.cost.forward == drawn.cost.forward).all()
    assert by_evolution.mean() > 1.5 * by_chance.mean()


def test_targeted_is_the_same_for_two_classes():
    classifier, _ = linear((1, 4, 5), 0)
    x = images((1, 4, 5), 0)
    y = classifier.predict(x).argmax(1)
    away, towards = (FewPixel(classifier, population=20, generations=3, targeted=t) for t in (False, True))
    assert (away.generate(x, y) == towards.generate(x, 1 - y)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pixels": 0}, "pixels must be a whole number from 1 on, got 0"),
        ({"pixels": 2.5}, "pixels must be a whole number from 1 on"),
        ({"search": "random"}, "search must be one of greedy, joint, got 'random'"),
        ({"population": 4}, "population must be a whole number from 5 on"),
        ({"generations": -1}, "generations must be a whole number of 0 or more"),
        ({"confidence": -1}, "confidence is a margin"),
    ],
)
def test_wrong_parameters_are_refused(linear_phantoms, arguments, message):
    with pytest.raises(InputError, match=message):
        FewPixel(linear_phantoms(2)[0], **arguments)


def test_images_off_the_grid_are_refused():
    classifier, _ = linear((1, 4, 5), 0)
    with pytest.raises(InputError, match="not on the storage grid of 1 HUs"):
        FewPixel(classifier).generate(images((1, 4, 5), 0) + 0.3)
