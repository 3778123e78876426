# SPDX-License-Identifier: Apache-2.0
"""SMIA: without stabilisation the optimum of a linear model, with it a change that survives smoothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from art_medical.attacks import RandomNoise, StabilizedMedicalImageAttack
from art_medical.attacks.stabilized_medical_image_attack import Stabilised, gaussian_blur
from art_medical.domain import PixelDomain
from art_medical.errors import InputError
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.heads import Head
from art_medical.zoo.networks import LinearObserver


@pytest.fixture(scope="module")
def fine_and_coarse() -> MedicalClassifier:
    """A weak weight on the mean and a strong one on a checkerboard, which a 3 x 3 Gaussian all but removes."""
    network = LinearObserver((1, 8, 8))
    weight = 0.01 + 0.05 * (np.indices((8, 8)).sum(0) % 2 * 2 - 1)
    network.readout.weight.data = torch.tensor(weight.reshape(1, -1), dtype=torch.float32)
    network.readout.bias.data = torch.tensor([0.5 - 64.0])
    return MedicalClassifier(
        network, domain=PixelDomain(0, 255), head=Head(kind="one-logit", labels=("no", "yes")), input_shape=(1, 8, 8)
    )


@pytest.mark.parametrize("shape", [(2, 3, 7, 9), (1, 2, 5, 6, 7)])
@pytest.mark.parametrize(("size", "sigma"), [(1, 1.0), (3, 1.0), (5, 0.7)])
def test_blur_is_that_of_scipy(shape, size, sigma):
    delta = torch.from_numpy(np.random.default_rng(0).normal(size=shape))
    axes = tuple(range(2, len(shape)))
    expected = gaussian_filter(delta.numpy(), sigma, mode="nearest", radius=size // 2, axes=axes)
    np.testing.assert_allclose(gaussian_blur(delta, size, sigma), expected, atol=1e-12)


def test_objective_is_cross_entropy_and_divergence():
    z = torch.tensor([[1.0, 2.0, 0.0, 2.0, -1.0, 0.5], [0.3, 0.1, 0.0, 0.3, 0.1, 0.0]], dtype=torch.float64)
    y = torch.tensor([1, 0])
    p, q = torch.softmax(z[:, :3], 1), torch.softmax(z[:, 3:], 1)
    divergence = (q * (q / p).log()).sum(1)
    cross_entropy = -p.log().gather(1, y[:, None])[:, 0]
    assert torch.allclose(Stabilised(False, 2.0)(z, y), -cross_entropy + 2 * divergence)
    assert torch.allclose(Stabilised(True, 2.0)(z, y), cross_entropy + 2 * divergence)
    assert divergence[1] == 0
    assert Stabilised(False, 2.0).distance(z, y).tolist() == pytest.approx([1.0, 0.2])


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("head", ["one-logit", "softmax", "multi-label"])
def test_without_stabilisation_it_reaches_the_optimum_of_a_linear_model(linear_phantoms, axes, head):
    classifier, observer, x, _ = linear_phantoms(axes, head)
    needed = observer.smallest_stored_perturbation(x, classifier.domain)
    for eps in (2, 4):
        attack = StabilizedMedicalImageAttack(classifier, eps=eps, max_iter=4, alpha=0)
        attack.generate(x)
        assert 0 < (needed <= eps).sum() < len(x)
        assert (attack.record.success == (needed <= eps)).all()
        assert attack.record.linf.max() == eps and attack.cost.forward.max() == 5


def test_stabilised_change_survives_smoothing_and_the_other_does_not(fine_and_coarse):
    x = np.full((1, 1, 8, 8), 100, np.float32)
    survives = {}
    for alpha in (0, 1):
        attack = StabilizedMedicalImageAttack(fine_and_coarse, eps=4, alpha=alpha, max_iter=40)
        attacked = attack.generate(x, np.array([1]))
        assert attack.record.success.all()
        delta = gaussian_blur(torch.from_numpy(attacked - x), 3, 1.0).numpy()
        survives[alpha] = fine_and_coarse.predict(x + delta).argmax() == 0
    assert survives == {0: False, 1: True}


def test_both_branches_are_counted(fine_and_coarse):
    x = np.full((2, 1, 8, 8), 100, np.float32)
    x[1] = 80  # decided as 0: told that it is a 1, this one is wrong from the start
    for alpha, passes in ((0, 1), (1, 2)):
        attack = StabilizedMedicalImageAttack(fine_and_coarse, eps=2, alpha=alpha, max_iter=3)
        attacked = attack.generate(x, np.array([1, 1]))
        assert (attacked[1] == x[1]).all() and attack.record.success[1]
        assert attack.cost.forward.tolist() == [4 * passes, passes]
        assert attack.cost.backward.tolist() == [3 * passes, passes]


def test_it_beats_random_changes_of_its_size(linear_phantoms):
    classifier, observer, x, _ = linear_phantoms(2)
    y = observer.decide(x)
    noise = RandomNoise(classifier, eps=4, num_random_init=21, confidence=math.inf)
    attack = StabilizedMedicalImageAttack(classifier, eps=4, confidence=math.inf)
    right = np.eye(2)[y].astype(bool)
    by_noise, by_attack = (classifier.predict(a.generate(x, y))[right] for a in (noise, attack))
    assert (by_attack < by_noise).all()


def test_targeted_masked_and_per_sample_budgets(linear_phantoms):
    classifier, observer, x, _ = linear_phantoms(2)
    x = x[:4]
    mask = np.zeros((64, 64))
    mask[20:44, 20:44] = 1
    eps = np.array([5.0, 10.0, 20.0, 40.0])
    attack = StabilizedMedicalImageAttack(classifier, eps=eps, targeted=True, confidence=math.inf)
    attacked = attack.generate(x, 1 - observer.decide(x), mask=mask)
    assert not (attacked != x)[..., mask == 0].any()
    assert attack.record.linf.tolist() == eps.tolist()
    assert attack.record.success[-1]
    assert (classifier.predict(attacked).argmax(1) != observer.decide(x)).tolist() == attack.record.success.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 0}, "eps must be positive, in grey levels, got 0"),
        ({"eps_step": -1}, "eps_step must be positive"),
        ({"max_iter": 1.5}, "max_iter must be a whole number"),
        ({"alpha": -1}, "alpha must be 0 or more, got -1"),
        ({"alpha": math.inf}, "alpha must be 0 or more, got inf"),
        ({"kernel_size": 4}, "kernel_size must be an odd number of pixels, got 4"),
        ({"sigma": 0}, "sigma is in pixels, above 0, got 0"),
        ({"confidence": -1}, "confidence is a margin"),
    ],
)
def test_wrong_parameters_are_refused(fine_and_coarse, arguments, message):
    with pytest.raises(InputError, match=message):
        StabilizedMedicalImageAttack(fine_and_coarse, **arguments)
