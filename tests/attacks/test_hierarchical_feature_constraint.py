# SPDX-License-Identifier: Apache-2.0
"""HFC: the mixture against scikit-learn and scipy, and features that stay where clean images have theirs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.mixture import BayesianGaussianMixture
from torch import nn

from art_medical.attacks import HierarchicalFeatureConstraint, ProjectedGradientDescent, RandomNoise
from art_medical.attacks.feature_mixture import FeatureMixture
from art_medical.attacks.hierarchical_feature_constraint import MomentumSignSteps, TowardsClean
from art_medical.domain import PixelDomain
from art_medical.errors import InputError
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.heads import Head


def channels(axes: int = 2, head: str = "one-logit") -> MedicalClassifier:
    """Features are the means of three channels; the decision looks at the first one and a little at the third."""
    network = nn.Sequential(
        (nn.Conv2d, nn.Conv3d)[axes - 2](3, 3, 1, bias=False),
        (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[axes - 2](1),
        nn.Flatten(),
        nn.Linear(3, 1 if head == "one-logit" else 2),
    )
    network[0].weight.data = torch.eye(3).view(3, 3, *(1,) * axes)
    weight, bias = torch.tensor([[1.0, 0.0, 0.3]]), torch.tensor([-156.0])
    if head == "softmax":
        weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
    if head == "multi-label":
        weight, bias = torch.cat([weight, 0 * weight]), torch.cat([bias, bias * 0 + 400.0])
    network[3].weight.data, network[3].bias.data = weight, bias
    labels = ("no", "yes") if head != "multi-label" else ("finding", "always")
    return MedicalClassifier(
        network, domain=PixelDomain(0, 255), head=Head(kind=head, labels=labels), input_shape=(3, *(6,) * axes)
    )


def images(n: int, seed: int, axes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """In clean images the second channel follows the first one, and the third does not depend on the class."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    level = 110 + 20 * y + rng.normal(0, 2, n)
    means = np.stack([level, level + rng.normal(0, 1, n), 120 + rng.normal(0, 2, n)], 1)
    x = means.reshape(n, 3, *(1,) * axes) + rng.normal(0, 5, (n, 3, *(6,) * axes))
    return x.round().astype(np.float32), y


def features(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.reshape(*x.shape[:2], -1).mean(2).astype(np.float64))


@pytest.fixture(scope="module")
def fitted() -> HierarchicalFeatureConstraint:
    attack = HierarchicalFeatureConstraint(channels(), eps=30, max_iter=40)
    attack.fit(*images(120, seed=1))
    return attack


# -- the mixture -------------------------------------------------------------------------------------------------------


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def two_clouds(n: int, d: int, seed: int = 0) -> np.ndarray:
    clouds = np.concatenate([3 * normal(n, d, seed=seed) + 50, normal(n, d, seed=seed + 1) + 80])
    return clouds @ normal(d, d, seed=9)


def test_distance_is_that_of_mahalanobis_to_the_likeliest_component():
    z = two_clouds(150, 4)
    mixture = FeatureMixture.fit(z, n_components=2, shrinkage=0.0, seed=3)
    scale = math.sqrt(float(((z - z.mean(0)) ** 2).mean()))
    peer = BayesianGaussianMixture(n_components=2, n_init=2, max_iter=1000, random_state=3).fit((z - z.mean(0)) / scale)
    probes = z + 2 * normal(*z.shape, seed=5)
    on_scale = (probes - z.mean(0)) / scale
    logs = [
        np.log(w) - np.linalg.slogdet(s)[1] / 2 - mahalanobis_squares(on_scale, m, s) / 2
        for w, m, s in zip(peer.weights_, peer.means_, peer.covariances_, strict=True)
    ]
    best = np.argmax(logs, 0)
    assert 0.2 < best.mean() < 0.8
    expected = [
        mahalanobis_squares(on_scale[[i]], peer.means_[k], peer.covariances_[k])[0] / 4 for i, k in enumerate(best)
    ]
    np.testing.assert_allclose(mixture.distance(torch.from_numpy(probes)), expected, rtol=1e-5)


def mahalanobis_squares(z: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(covariance)
    return np.array([mahalanobis(row, mean, inverse) ** 2 for row in z])


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_clean_images_are_at_distance_one_whatever_the_scale_of_a_layer(scale):
    z = scale * normal(100, 6) @ normal(6, 6, seed=1) + 7 * scale
    distance = FeatureMixture.fit(z, shrinkage=0.0).distance(torch.from_numpy(z))
    assert float(distance.mean()) == pytest.approx(1, abs=0.1)


def test_shrinkage_covers_directions_that_no_training_image_has():
    z = normal(5, 12)  # fewer images than channels
    off = torch.from_numpy(z[:1] + 3 * normal(1, 12, seed=1))
    little, some, whole = (FeatureMixture.fit(z, shrinkage=s) for s in (1e-6, 0.1, 1.0))
    assert float(little.distance(off)) > 10 * float(some.distance(off))
    variance = float(whole.factors[0, 0, 0]) ** -2
    expected = float(((off - torch.from_numpy(z.mean(0))) ** 2).mean()) / variance
    assert float(whole.distance(off)) == pytest.approx(expected)


def test_channel_that_never_varies():
    z = np.concatenate([normal(40, 3), np.full((40, 1), 7.0)], 1)
    mixture = FeatureMixture.fit(z)
    same, other = torch.tensor([[0.0, 0, 0, 7]]).double(), torch.tensor([[0.0, 0, 0, 9]]).double()
    assert float(mixture.distance(same)) < 1 < 10 < float(mixture.distance(other))
    dead = torch.full((1, 2), 5.0).double()
    assert float(FeatureMixture.fit(np.full((3, 2), 5.0)).distance(dead)) < 1e-6
    assert float(FeatureMixture.fit(np.full((3, 2), 5.0)).distance(dead + 0.1)) > 100


def test_wide_layers_are_seen_through_their_principal_components():
    wide = normal(60, 2) @ normal(2, 40, seed=1) + 5
    mixture = FeatureMixture.fit(wide, widest=2, shrinkage=0.0)
    assert mixture.means.shape == (1, 2)
    assert float(mixture.distance(torch.from_numpy(wide)).mean()) == pytest.approx(1, abs=0.1)


def test_distance_has_the_gradient_of_finite_differences():
    mixture = FeatureMixture.fit(two_clouds(60, 3), n_components=2)
    z = torch.from_numpy(two_clouds(2, 3, seed=4)).requires_grad_(True)
    assert torch.autograd.gradcheck(mixture.distance, (z,))


# -- the parts ---------------------------------------------------------------------------------------------------------


def test_objective_is_cross_entropy_to_the_target_and_the_weighted_feature_term():
    z = torch.tensor([[2.0, 1.0, -1.0, 5.0], [0.0, 0.5, 3.0, 0.2]], dtype=torch.float64)
    y = torch.tensor([[0, 1], [2, 0]])
    cross_entropy = -torch.log_softmax(z[:, :3], 1).gather(1, y[:, 1:])[:, 0]
    assert torch.allclose(TowardsClean(False, 3.0)(z, y), cross_entropy + 3 * z[:, 3])
    assert TowardsClean(False, 3.0).distance(z, y).tolist() == [1.0, 2.5]


def test_momentum_accumulates_unit_gradients():
    steps = MomentumSignSteps(torch.ones(1), momentum=0.5)
    theta = torch.zeros(1, 2)
    for gradient, expected in (([4.0, -4.0], [-1.0, 1.0]), ([-1.0, -3.0], [-1.0, 2.0])):
        theta = steps.step(theta, torch.tensor([gradient]))
        # Second step: g = 0.5 * (1/2, -1/2) + (-1/4, -3/4) = (0, -1).
        assert theta.tolist() == [expected]


# -- the attack --------------------------------------------------------------------------------------------------------


def test_features_stay_inside_the_mixture_while_those_of_pgd_do_not(fitted):
    x, y = images(40, seed=2)
    plain = ProjectedGradientDescent(fitted.estimator, eps=30, max_iter=40)
    by_pgd, by_hfc = plain.generate(x, y), fitted.generate(x, y)
    noise = RandomNoise(fitted.estimator, eps=30, num_random_init=20)
    noise.generate(x, y)
    assert plain.record.success.all() and fitted.record.success.all() and noise.record.success.mean() <= 0.1
    for c in (0, 1):
        mixture = fitted.mixtures[c]["0"]
        clean, hfc, pgd = (mixture.distance(features(a)) for a in (x[y == c], by_hfc[y != c], by_pgd[y != c]))
        assert float(hfc.max()) < float(clean.max())
        assert float(pgd.min()) > 5 * float(clean.max())


def test_without_the_feature_term_it_does_not_hide(fitted):
    x, y = images(10, seed=3)
    bare = HierarchicalFeatureConstraint(fitted.estimator, eps=30, feature_weight=0.0)
    bare.fit(*images(120, seed=1))
    distances = [
        torch.stack([fitted.mixtures[1 - c]["0"].distance(features(a[[i]])) for i, c in enumerate(y)]).max()
        for a in (bare.generate(x, y), fitted.generate(x, y))
    ]
    assert bare.record.success.all() and float(distances[0]) > 10 * float(distances[1])


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("head", ["one-logit", "softmax", "multi-label"])
def test_volumes_and_heads(axes, head):
    attack = HierarchicalFeatureConstraint(channels(axes, head), eps=30, max_iter=20, momentum=0.5)
    attack.fit(images(60, 1, axes)[0])
    x, y = images(6, 2, axes)
    labels = np.stack([y, np.ones_like(y)], 1) if head == "multi-label" else y
    attacked = attack.generate(x, labels)
    assert attack.record.success.all()
    assert np.abs(attacked[:, 1] - x[:, 1]).mean() > 10  # the channel that the decision ignores goes along
    assert attack.record.linf.max() <= 30


def test_targeted_equals_untargeted_with_two_classes_and_masks_hold(fitted):
    x, y = images(6, seed=4)
    targeted = HierarchicalFeatureConstraint(fitted.estimator, eps=30, max_iter=40, targeted=True)
    targeted.fit(*images(120, seed=1))
    assert (targeted.generate(x, 1 - y) == fitted.generate(x, y)).all()
    mask = np.zeros((3, 6, 6))
    mask[:2, 2:] = 1
    assert not (targeted.generate(x, 1 - y, mask=mask) != x)[:, mask == 0].any()


def test_fit_uses_only_what_is_decided_rightly_and_says_so():
    x, y = images(40, seed=5)
    y[0] = 1 - y[0]
    seen = []
    attack = HierarchicalFeatureConstraint(channels(), eps=30, layers=["0", 1], batch_size=7)
    attack.fit(x, y, report=seen.append)
    assert sum(seen) == 40 and list(attack.mixtures[0]) == ["0", "1"]
    expected = FeatureMixture.fit(features(x[2::2]).numpy())
    np.testing.assert_allclose(attack.mixtures[0]["0"].means, expected.means, rtol=1e-4)
    assert not attack.estimator.network[0]._forward_hooks


def test_cost_and_images_that_are_wrong_from_the_start(fitted):
    x, y = images(4, seed=6)
    y[0] = 1 - y[0]
    attacked = fitted.generate(x, y)
    assert (attacked[0] == x[0]).all() and fitted.record.unchanged.tolist() == [True, False, False, False]
    assert fitted.cost.forward.tolist() == [2, 42, 42, 42] and fitted.cost.backward.tolist() == [1, 40, 40, 40]


def test_wrong_use_is_refused(fitted):
    x, y = images(8, seed=7)
    attack = HierarchicalFeatureConstraint(channels(), eps=30)
    with pytest.raises(InputError, match="call fit with training images first"):
        attack.generate(x, y)
    with pytest.raises(InputError, match="no class has two images that are decided rightly among 1; fit on more"):
        attack.fit(x[:1])
    with pytest.raises(InputError, match="got 3 labels for 8 images"):
        attack.fit(x, y[:3])
    attack.fit(x[y == 1])
    with pytest.raises(InputError, match="has seen two images or more of the classes 1 only, and none other than"):
        attack.generate(x, y)
    assert attack.generate(x[y == 0], y[y == 0]).shape == x[y == 0].shape
    with pytest.raises(InputError, match="no layer 'nowhere' in Sequential"):
        HierarchicalFeatureConstraint(channels(), layers=["nowhere"]).fit(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 0}, "eps must be positive, in grey levels, got 0"),
        ({"eps_step": -1}, "eps_step must be positive"),
        ({"max_iter": -1}, "max_iter must be a whole number of 0 or more"),
        ({"n_components": 0}, "n_components must be a whole number of 1 or more"),
        ({"widest": 0}, "widest must be a whole number of 1 or more"),
        ({"layers": "0"}, "layers must be a list of names"),
        ({"layers": []}, "layers must be a list of names"),
        ({"feature_weight": -1}, "feature_weight must be 0 or more"),
        ({"momentum": 1}, "momentum must be in"),
        ({"shrinkage": 2}, "shrinkage must be in"),
        ({"confidence": -1}, "confidence is a margin"),
    ],
)
def test_wrong_parameters_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        HierarchicalFeatureConstraint(channels(), **arguments)
