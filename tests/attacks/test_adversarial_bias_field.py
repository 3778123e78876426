# SPDX-License-Identifier: Apache-2.0
"""Bias field: basis against scipy, optimum against brute force and L-BFGS-B, and a bound that rounding keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline
from scipy.optimize import minimize
from torch import nn

from art_medical.attacks import AdversarialBiasField
from art_medical.attacks.adversarial_bias_field import Basis, MultiplicativeField, bernstein_axis, bspline_axis
from art_medical.domain import PixelDomain
from art_medical.errors import InputError
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.heads import Head
from art_medical.estimators.steps import ZScore
from art_medical.zoo.networks import LinearObserver

GREY = PixelDomain(0, 255)


def linear(shape: tuple[int, ...], domain: PixelDomain = GREY, seed: int = 0, **more: object) -> MedicalClassifier:
    """Random weights with a middle that is neither bright nor dark; undecided at half the range."""
    network = LinearObserver(shape)
    weight = np.random.default_rng(seed).normal(size=math.prod(shape)) / 100
    network.readout.weight.data = torch.tensor(weight[None], dtype=torch.float32)
    network.readout.bias.data = torch.tensor([-weight.sum() * (domain.low + domain.span / 2)], dtype=torch.float32)
    head = Head(kind="one-logit", labels=("no", "yes"))
    return MedicalClassifier(network, domain=domain, head=head, input_shape=shape, **more)


def pixels(n: int, shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape)).astype(np.float32)


# -- the basis ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "spacing"), [(64, 16), (37, 10), (7, 100), (1, 4), (24, 5.5)])
def test_splines_are_those_of_scipy_and_reach_both_edges(length, spacing):
    axis = bspline_axis(length, spacing)
    intervals = max(1, math.ceil(length / spacing))
    at = (np.arange(length) + 0.5) * intervals / length
    expected = BSpline.design_matrix(at, np.arange(-3.0, intervals + 4), 3).toarray()
    np.testing.assert_allclose(axis, expected, atol=1e-12)
    assert length / intervals <= spacing or intervals == 1


@pytest.mark.parametrize(
    "axis", [bspline_axis(37, 10), bernstein_axis(37, 0), bernstein_axis(37, 3), bernstein_axis(5, 5)]
)
def test_rows_are_convex_weights_symmetric_about_the_middle(axis):
    assert float(axis.min()) >= 0
    assert torch.allclose(axis.sum(1), torch.ones(len(axis), dtype=torch.float64))
    assert torch.allclose(axis.flip(0).flip(1), axis)


def test_bernstein_spans_the_polynomials():
    at = (torch.arange(20, dtype=torch.float64) + 0.5) / 20
    cubic = (1 - 2 * at + 7 * at**3)[:, None]
    axis = bernstein_axis(20, 3)
    assert torch.allclose(axis @ torch.linalg.lstsq(axis, cubic).solution, cubic)


@pytest.mark.parametrize("spatial", [(9, 14), (5, 6, 7)])
def test_adjoint_is_the_transpose_and_field_the_product(spatial):
    basis = Basis(tuple(bspline_axis(n, 4) for n in spatial))
    rng = torch.Generator().manual_seed(0)
    c = torch.randn((2, *basis.shape), generator=rng, dtype=torch.float64)
    f = torch.randn((2, *spatial), generator=rng, dtype=torch.float64)
    field = basis.field(c)
    assert field.shape == f.shape
    assert float((field * f).sum()) == pytest.approx(float((c * basis.adjoint(f)).sum()))
    matrix = basis.axes[0]
    for axis in basis.axes[1:]:
        matrix = torch.kron(matrix, axis)
    assert torch.allclose(field.flatten(1), c.flatten(1) @ matrix.T)


def test_gradient_is_that_of_finite_differences_and_zero_where_clipped():
    x = torch.tensor(pixels(2, (3, 6, 5)))
    x[0, 0, 0, 0] = 255.0
    limits = torch.tensor([[-0.3, 0.3]] * 2, dtype=torch.float64)
    basis = Basis(tuple(bspline_axis(n, 3) for n in (6, 5)))
    field = MultiplicativeField(x, basis, limits, 0.0, PixelDomain(0, 300, None), False, None)
    theta = field.start(None) + 0.12
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value(c: torch.Tensor) -> torch.Tensor:
        return (weight * (field.gain(c) * x.double()).clamp(0, 300)).sum()

    c = theta.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(value(c), c)
    assert float(field.gain(theta).max() * x.max()) < 300
    assert torch.allclose(field.pull_back(theta, weight), expected)
    brighter = theta + 0.1
    assert float(field.gain(brighter).max() * x.max()) > 300
    c = brighter.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(value(c), c)
    assert torch.allclose(field.pull_back(brighter, weight), expected)


# -- the optimum -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gain", "starts"), [(5.0, 0), (30.0, 0), (30.0, 5)])
def test_one_coefficient_is_the_brute_force_optimum_of_a_linear_model(gain, starts):
    shape = (1, 8, 8)
    classifier, x = linear(shape), pixels(12, shape)
    if not starts:
        x = np.clip(x, 0, 190)  # where pixels clip there is an optimum on either side, and one start finds one of them
    y = classifier.predict(x).argmax(1)
    attack = AdversarialBiasField(
        classifier, gain=gain, field="polynomial", degree=0, num_random_init=starts, confidence=math.inf
    )
    attacked = attack.generate(x, y)

    def margin(images: np.ndarray) -> np.ndarray:
        return classifier.predict_logits(images)[:, 0] * (2 * y - 1)

    tried = np.stack([margin(GREY.quantise(x * b)) for b in np.linspace(1 - gain / 100, 1 + gain / 100, 201)])
    # The attack also keeps pixels from being rounded beyond the gain, which brute force does not.
    np.testing.assert_allclose(margin(attacked), tried.min(0), atol=0.2)
    assert (margin(attacked) < margin(x)).all()


def test_one_coefficient_finds_an_optimum_inside_the_interval():
    class Dip(nn.Module):  # lowest at a mean of 110
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.flatten(1).mean(1, keepdim=True) - 110).abs() - 0.5

    classifier = MedicalClassifier(
        Dip(), domain=GREY, head=Head(kind="one-logit", labels=("no", "yes")), input_shape=(1, 6, 6)
    )
    x = np.full((3, 1, 6, 6), 100, np.float32)
    x[1], x[2] = 125, 80
    attack = AdversarialBiasField(classifier, gain=20, field="polynomial", degree=0, max_iter=40, confidence=math.inf)
    attacked = attack.generate(x, np.ones(3, np.int64))
    assert np.abs(attacked[:2] - 110).max() <= 1  # one step is 1.25 %, and rounding
    assert (attacked[2] == 96).all()
    assert attack.record.success[:2].any() and not attack.record.success[2]


@pytest.mark.parametrize("shape", [(2, 12, 9), (1, 6, 5, 7)])
@pytest.mark.parametrize("arguments", [{"spacing": 4.0}, {"field": "polynomial", "degree": 2}])
def test_optimum_is_that_of_another_optimiser(shape, arguments):
    classifier, x = linear(shape), pixels(3, shape)
    x = np.clip(x, 0, 190)  # away from the box, so that the problem is smooth
    y = classifier.predict(x).argmax(1)
    attack = AdversarialBiasField(classifier, gain=20, max_iter=40, confidence=math.inf, quantise=False, **arguments)
    by_attack = classifier.predict_logits(attack.generate(x, y))[:, 0] * (2 * y - 1)
    clean = classifier.predict_logits(x)[:, 0] * (2 * y - 1)
    basis = attack._basis(torch.from_numpy(x))
    weight = classifier.network.readout.weight.detach().double().numpy().reshape(shape)
    for i in range(len(x)):
        slope = (2 * y[i] - 1) * (weight * x[i]).sum(0)

        def change(c: np.ndarray, slope: np.ndarray = slope) -> tuple[float, np.ndarray]:
            b = basis.field(torch.from_numpy(c.reshape(1, *basis.shape)))[0].exp().numpy()
            back = basis.adjoint(torch.from_numpy((slope * b)[None]))
            return float((slope * (b - 1)).sum()), back.numpy().ravel()

        size = math.prod(basis.shape)
        best = minimize(change, np.zeros(size), jac=True, bounds=[(math.log(0.8), math.log(1.2))] * size)
        assert by_attack[i] - clean[i] <= 0.97 * best.fun


# -- properties --------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    gain=st.floats(0.5, 90),
    low=st.sampled_from([0, -1000, -1024]),
    step=st.sampled_from([1.0, 2.0, 0.5]),
    side=st.integers(1, 13),
    axes=st.integers(2, 3),
    field=st.sampled_from(["bspline", "polynomial"]),
)
def test_gain_is_kept_after_rounding_and_padding_stays(gain, low, step, side, axes, field):
    domain = PixelDomain(low, low + 2000, step, "HU" if low else "stored value")
    shape = (1, side, *(5,) * (axes - 1))
    classifier = linear(shape, domain)
    x = domain.quantise(np.random.default_rng(0).uniform(low, low + 1500, (3, *shape)).astype(np.float32))
    zero = -1000.0 if low else 0.0
    attacked = AdversarialBiasField(classifier, gain=gain, field=field, max_iter=4, confidence=math.inf).generate(x)
    signal = np.maximum(x.astype(np.float64) - zero, 0)
    change = np.abs(attacked.astype(np.float64) - x)
    assert (change <= gain / 100 * signal * (1 + 1e-6) + 1e-6).all()
    assert domain.on_grid(attacked, tolerance=0)
    assert (attacked[x <= zero] == x[x <= zero]).all()


def test_field_is_smooth_and_the_same_in_all_channels():
    shape = (3, 48, 40)
    classifier, x = linear(shape), np.full((2, *shape), 100, np.float32)
    attack = AdversarialBiasField(classifier, gain=30, spacing=16, quantise=False, confidence=math.inf)
    b = attack.generate(x, np.array([0, 1])) / x
    assert (np.ptp(b, axis=1) == 0).all() and np.ptp(b) > 0.4
    # Second difference of a cubic B-spline: at most 4 times the range of the coefficients over the spacing squared.
    bend = np.abs(np.diff(np.log(b.astype(np.float64)), 2, axis=2)).max()
    assert bend <= 4 * (math.log(1.3) - math.log(0.7)) / 16**2


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("head", ["one-logit", "softmax", "multi-label"])
def test_it_beats_random_fields(linear_phantoms, axes, head):
    classifier, observer, x, _ = linear_phantoms(axes, head)
    x = x[:8]
    y = classifier.predict(x).argmax(1)
    arguments = {"gain": 30.0, "spacing": 6.0, "confidence": math.inf}
    attack = AdversarialBiasField(classifier, max_iter=10, **arguments)
    control = AdversarialBiasField(classifier, max_iter=0, num_random_init=11, **arguments)
    by_attack, by_chance = (
        (2 * observer.decide(x) - 1) * observer.statistic(a.generate(x, y)) for a in (attack, control)
    )
    assert (by_attack < by_chance).all() and (by_attack < 0).all()
    assert (attack.cost.forward == 11).all() and (control.cost.forward == 11).all()
    assert (control.cost.backward == 0).all()


def test_a_network_that_normalises_each_image_is_blind_to_one_gain():
    shape = (1, 8, 8)
    classifier, x = linear(shape, steps=(ZScore(),)), pixels(4, shape)
    y = classifier.predict(x).argmax(1)
    margins = []
    for degree in (0, 3):
        attack = AdversarialBiasField(
            classifier, gain=20, field="polynomial", degree=degree, quantise=False, confidence=math.inf
        )
        margins.append(classifier.predict_logits(attack.generate(np.clip(x, 0, 200), y))[:, 0] * (2 * y - 1))
    clean = classifier.predict_logits(np.clip(x, 0, 200))[:, 0] * (2 * y - 1)
    np.testing.assert_allclose(margins[0], clean, atol=1e-4)
    assert (margins[1] < clean - 0.01).all()


def test_targeted_mask_and_gain_of_each_sample():
    shape = (1, 12, 12)
    classifier, x = linear(shape), pixels(3, shape)
    y = classifier.predict(x).argmax(1)
    mask = np.zeros((12, 12))
    mask[3:9] = 1
    gains = np.array([1.0, 10.0, 40.0])
    plain = AdversarialBiasField(classifier, gain=gains, confidence=math.inf).generate(x, y, mask=mask)
    attack = AdversarialBiasField(classifier, gain=gains, targeted=True, confidence=math.inf)
    assert (attack.generate(x, 1 - y, mask=mask) == plain).all()
    assert not (plain != x)[..., mask == 0].any()
    gain = np.abs(plain / np.maximum(x, 1) - 1).max((1, 2, 3)) * 100
    assert (gain <= gains).all() and (gain > 0.8 * gains).all()


def test_a_domain_without_a_known_zero_is_refused():
    scored = PixelDomain(-5, 5, None, "standard deviation")
    with pytest.raises(InputError, match="pixels start at -5 standard deviations: a gain needs the value of no signal"):
        AdversarialBiasField(linear((1, 4, 4), scored))
    attack = AdversarialBiasField(linear((1, 4, 4), scored), zero=-2.0, gain=50, confidence=math.inf)
    x = np.full((1, 1, 4, 4), -2, np.float32)
    x[0, 0, 0] = 1
    attacked = attack.generate(x)
    assert (attacked[0, 0, 1:] == -2).all() and (attacked[0, 0, 0] != 1).all()
    assert AdversarialBiasField(linear((1, 4, 4), PixelDomain(-1024, 3071, 1, "HU"))).no_signal == -1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gain": 0}, "gain is in per cent, above 0 and below 100, got 0"),
        ({"gain": 100}, "gain is in per cent"),
        ({"gain": np.array([3.0, np.nan])}, "gain is in per cent"),
        ({"field": "wavelet"}, "field must be bspline or polynomial, got 'wavelet'"),
        ({"spacing": 0.5}, "spacing is in pixels, 1 or more"),
        ({"degree": 6}, "degree must be a whole number from 0 to 5"),
        ({"max_iter": -1}, "max_iter must be a whole number"),
        ({"num_random_init": 0.5}, "num_random_init must be a whole number"),
        ({"confidence": -1}, "confidence is a margin"),
        ({"zero": 255}, "zero must lie from 0 to below 255 grey levels, got 255"),
    ],
)
def test_wrong_parameters_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        AdversarialBiasField(linear((1, 4, 4)), **arguments)


def test_images_off_the_grid_are_refused():
    with pytest.raises(InputError, match="not on the storage grid"):
        AdversarialBiasField(linear((1, 4, 4))).generate(pixels(1, (1, 4, 4)) * 0.9 + 0.3)
