# SPDX-License-Identifier: Apache-2.0
"""CT noise: its spectrum by the formula, the budget of the ellipsoid, the optimum of a linear model along ``K w``."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from art_medical.attacks import CTNoise
from art_medical.attacks.ct_noise import KERNELS, ColouredNoise, noise_power_spectrum
from art_medical.errors import InputError

CPU = torch.device("cpu")


def formula(plane: tuple[int, int], kernel: str) -> np.ndarray:
    rows, columns = np.meshgrid(*(np.fft.fftfreq(side) for side in plane), indexing="ij")
    f = np.hypot(rows, columns)  # cycles per pixel; 0.5 is Nyquist's
    apodisation = {"ramp": np.ones_like(f), "hann": (1 + np.cos(2 * np.pi * f)) / 2}[kernel]
    spectrum = np.where(f <= 0.5, f * apodisation**2, 0)
    return spectrum / spectrum.mean()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("plane", [(16, 16), (12, 17)])
def test_spectrum_is_that_of_the_formula(plane, kernel):
    ours = noise_power_spectrum(plane, kernel, CPU).numpy()
    np.testing.assert_allclose(ours, formula(plane, kernel), atol=1e-4)
    assert ours[0, 0] == 0 and ours.mean() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 16, 16, 16)])
def test_white_parameters_make_noise_of_that_spectrum(shape, kernel):
    effect = ColouredNoise(shape, kernel, CPU)
    theta = 10 * torch.randn(400 // shape[1], *shape, generator=torch.Generator().manual_seed(0))
    noise = effect.render(torch.zeros_like(theta), theta)
    assert float(noise.std()) == pytest.approx(10, rel=0.05)
    power = torch.fft.fft2(noise).abs().square().flatten(0, -3).mean(0) / (100 * math.prod(shape[-2:]))
    expected = torch.from_numpy(formula(shape[-2:], kernel)).float()
    samples = noise.flatten(0, -3).shape[0]
    assert float((power - expected).abs().max()) <= 7 * float(expected.max()) / math.sqrt(samples)
    if len(shape) == 4:  # slices are independent
        along_z = (noise[:, :, 1:] * noise[:, :, :-1]).mean() / noise.square().mean()
        assert abs(float(along_z)) < 0.05


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("kernel", KERNELS)
def test_reaches_the_optimum_of_a_linear_model(linear_phantoms, axes, kernel):
    classifier, observer, x, _ = linear_phantoms(axes)
    x, sigma = x[:3], 20.0
    y = observer.decide(x)
    w = np.fft.fft2(observer.template)
    spectrum = formula(observer.template.shape[-2:], kernel)
    coloured = np.fft.ifft2(w * np.sqrt(spectrum)).real  # K^(1/2) w / sigma
    best = sigma * math.sqrt(w.size) * np.linalg.norm(coloured)
    direction = np.fft.ifft2(w * spectrum).real
    for quantise, tolerance in ((False, 1e-3), (True, 0.03)):
        attack = CTNoise(classifier, sigma=sigma, kernel=kernel, max_iter=2, confidence=math.inf, quantise=quantise)
        delta = attack.generate(x, y) - x
        shift = np.abs(observer.statistic(x + delta) - observer.statistic(x))
        np.testing.assert_allclose(shift, best, rtol=tolerance)
        cosine = np.abs((delta[:, 0] * direction).reshape(3, -1).sum(1)) / attack.record.l2 / np.linalg.norm(direction)
        assert (cosine > 1 - tolerance).all()


def test_change_stays_in_the_ellipsoid_and_random_starts_are_noise(linear_phantoms):
    classifier, _, x, _ = linear_phantoms(2)
    sigma = np.array([5.0, 20.0])
    spectrum = formula((64, 64), "hann")
    for arguments in ({"max_iter": 3}, {"max_iter": 0, "num_random_init": 1}):
        attack = CTNoise(classifier, sigma=sigma, quantise=False, confidence=math.inf, **arguments)
        delta = (attack.generate(x[:2]) - x[:2])[:, 0].astype(np.float64)
        power = np.abs(np.fft.fft2(delta)) ** 2 / 64**2
        inside = spectrum > 1e-4
        mahalanobis = (power[:, inside] / spectrum[inside]).sum(1) / sigma**2
        assert (mahalanobis <= 64**2 * 1.001).all()
        assert power[:, ~inside].sum() <= 1e-3 * power.sum()
        if not arguments["max_iter"]:
            np.testing.assert_allclose(delta.std((1, 2)), sigma, rtol=0.05)


def test_beats_noise_at_equal_looks(linear_phantoms):
    classifier, observer, x, _ = linear_phantoms(2)
    y = observer.decide(x[:6])
    attack = CTNoise(classifier, max_iter=4, confidence=math.inf)
    control = CTNoise(classifier, max_iter=0, num_random_init=5, confidence=math.inf)
    right = np.eye(2)[y].astype(bool)
    by_attack, by_chance = (classifier.predict(a.generate(x[:6], y))[right] for a in (attack, control))
    clean = classifier.predict(x[:6])[right]
    assert (attack.cost.forward == control.cost.forward).all()
    assert (clean - by_attack).mean() > 5 * (clean - by_chance).mean() > 0


def test_mask_is_kept_and_wrong_images_are_left(linear_phantoms):
    classifier, observer, x, _ = linear_phantoms(2)
    mask = np.zeros((64, 64))
    mask[24:40, 24:40] = 1
    attacked = CTNoise(classifier, confidence=math.inf, max_iter=3).generate(x[:2], mask=mask)
    assert (attacked != x[:2]).any((1, 2, 3)).all() and not (attacked != x[:2])[..., mask == 0].any()
    attack = CTNoise(classifier, quantise=False)
    assert (attack.generate(x[:4], 1 - observer.decide(x[:4])) == x[:4]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 0}, "sigma must be positive, in stored values"),
        ({"sigma": np.nan}, "sigma must be positive"),
        ({"kernel": "sharp"}, "kernel must be one of ramp, hann, got 'sharp'"),
        ({"batch_size": 0}, "batch_size must be a positive"),
    ],
)
def test_wrong_parameters_are_refused(linear_phantoms, arguments, message):
    with pytest.raises(InputError, match=message):
        CTNoise(linear_phantoms(2)[0], **arguments)


def test_planes_without_frequencies_are_refused(two_pixels):
    classifier = two_pixels([1.0], 0.0)
    with pytest.raises(InputError, match=r"a plane of \(1, 1\) pixels is too small for the hann kernel"):
        CTNoise(classifier).generate(np.full((1, 1, 1, 1), 9, np.float32))
