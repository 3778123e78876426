# SPDX-License-Identifier: Apache-2.0
"""Frequencies: the transform against SciPy's, both bounds against their optimum on a linear model."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from art_medical.attacks import FrequencyAttack
from art_medical.attacks.frequency_attack import SCANNED, BlockDCT
from art_medical.domain import PixelDomain
from art_medical.errors import InputError
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.heads import Head
from art_medical.zoo.networks import LinearObserver

CPU = torch.device("cpu")


def blocks_of(image: np.ndarray, b: int) -> list[np.ndarray]:
    """Blocks of an image whose sides are whole multiples of ``b``, in order."""
    starts = itertools.product(*(range(0, side, b) for side in image.shape))
    return [image[tuple(slice(s, s + b) for s in start)] for start in starts]


def spectra(image: np.ndarray, b: int = 8) -> np.ndarray:
    """Orthonormal coefficients of each block by SciPy, ``(blocks, b, ...)``."""
    return np.stack([dctn(block.astype(np.float64), norm="ortho") for block in blocks_of(image, b)])


def in_band(axes: int, band: tuple[float, float], b: int = 8) -> np.ndarray:
    highest = np.indices((b,) * axes).max(0) / b
    return (highest >= band[0]) & (highest < band[1])


def small(shape: tuple[int, ...], seed: int = 0) -> tuple[MedicalClassifier, np.ndarray]:
    """``z = w . (x - 2048)`` on 12 bits, and ``w``."""
    network = LinearObserver(shape)
    weight = np.random.default_rng(seed).normal(size=shape).astype(np.float32) / 100
    network.readout.weight.data = torch.from_numpy(weight.reshape(1, -1))
    network.readout.bias.data = torch.tensor([-2048 * float(weight.sum())])
    domain, head = PixelDomain(0, 4095), Head(kind="one-logit", labels=("no", "yes"))
    return MedicalClassifier(network, domain=domain, head=head, input_shape=shape), weight


@pytest.mark.parametrize("spatial", [(16, 24), (8, 16, 8), (13, 10), (5, 9, 17)])
def test_transform_is_that_of_scipy_and_orthonormal(spatial):
    blocks = BlockDCT(spatial, 8, CPU)
    image = torch.randn(2, 3, *spatial, generator=torch.Generator().manual_seed(0))
    padded = blocks.pad(image)
    coefficients = blocks.forward(padded)
    assert torch.allclose(blocks.crop(blocks.inverse(coefficients)), image, atol=1e-5)
    assert float(coefficients.norm()) == pytest.approx(float(padded.norm()), rel=1e-5)
    if all(side % 8 == 0 for side in spatial):
        axes = len(spatial)
        order = [2 * a for a in range(axes)] + [2 * a + 1 for a in range(axes)]
        ours = coefficients[1, 2].permute(order).reshape(-1, *(8,) * axes)
        np.testing.assert_allclose(ours.numpy(), spectra(image[1, 2].numpy()), atol=1e-5)


def test_padding_repeats_the_border_and_an_image_can_be_one_block():
    blocks = BlockDCT((3, 5), 4, CPU)
    assert blocks.padded == (3, 8)
    assert blocks.pad(torch.arange(15.0).view(1, 1, 3, 5))[0, 0, 1].tolist() == [5, 6, 7, 8, 9, 9, 9, 9]
    assert BlockDCT((3, 5), None, CPU).padded == (3, 5)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("band", [(0.0, 0.25), (0.5, 1.0)])
def test_band_reaches_the_projection_of_the_template(linear_phantoms, axes, band):
    classifier, observer, x, _ = linear_phantoms(axes)
    x, eps = x[:3], 120.0
    y = observer.decide(x)
    kept = np.linalg.norm(spectra(observer.template)[:, in_band(axes, band)])
    for quantise, least in ((False, 1 - 1e-4), (True, 0.95)):
        attack = FrequencyAttack(classifier, eps=eps, band=band, max_iter=2, confidence=math.inf, quantise=quantise)
        attacked = attack.generate(x, y)
        shift = np.abs(observer.statistic(attacked) - observer.statistic(x))
        assert (shift >= least * eps * kept).all()
        # Rounding may add what lies outside the band, but the length holds; float32 images miss it by their last bits.
        assert (shift <= (1 + 1e-4) * eps * (np.linalg.norm(observer.template) if quantise else kept)).all()
        assert (attack.record.l2 <= eps * (1 if quantise else 1 + 1e-5)).all()


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("max_iter", [0, 3])
def test_band_has_no_other_frequencies(linear_phantoms, axes, max_iter):
    classifier, _, x, _ = linear_phantoms(axes)
    for quantise, most in ((False, 1e-6), (True, 0.1)):
        attack = FrequencyAttack(
            classifier, eps=[150.0, 300.0], band=(0.25, 0.5), num_random_init=1, confidence=math.inf, quantise=quantise
        )
        attack.set_params(max_iter=max_iter)
        delta = attack.generate(x[:2]) - x[:2]
        np.testing.assert_allclose(attack.record.l2, [150, 300], rtol=0.01)
        for change in delta[:, 0]:
            energy = spectra(change) ** 2
            assert energy[:, ~in_band(axes, (0.25, 0.5))].sum() <= most * energy.sum()


def best_table(weight: np.ndarray, x: np.ndarray, towards: int, q_min: float, q_max: float, b: int) -> float:
    """Largest shift of ``w . x`` by one table of scanned entries for all blocks: entries are independent."""
    coefficients, gain = spectra(x, b), towards * spectra(weight, b)
    scanned = q_min + np.arange(SCANNED + 1) / SCANNED * (q_max - q_min)
    shifts = [(gain * (np.round(coefficients / q) * q - coefficients)).sum(0) for q in scanned]
    return float(np.max(shifts, axis=0).sum())


@pytest.mark.parametrize("shape", [(1, 8, 12), (1, 4, 8, 4)])
def test_table_of_a_linear_model_is_the_best_of_the_scanned_ones(shape):
    classifier, weight = small(shape)
    x = np.random.default_rng(1).integers(1000, 3000, (3, *shape)).astype(np.float32)
    y = classifier.predict(x).argmax(1)
    attack = FrequencyAttack(
        classifier, bound="table", q_min=1, q_max=60, block=4, max_iter=1, confidence=math.inf, quantise=False
    )
    attacked = attack.generate(x, y)
    for row in range(len(x)):
        towards = -1 if y[row] == 1 else 1
        shift = towards * float((weight.astype(np.float64) * (attacked[row] - x[row])).sum())
        assert shift == pytest.approx(best_table(weight[0], x[row, 0], towards, 1, 60, 4), rel=1e-3)
    # An entry of q moves a coefficient by half of q at most.
    moved = [spectra(change, 4) for change in (attacked - x)[:, 0]]
    assert np.abs(moved).max() <= 30 + 1e-2


@pytest.mark.parametrize("arguments", [{"bound": "band", "eps": 50.0}, {"bound": "table", "q_max": 40.0}])
def test_beats_random_parameters_at_equal_looks(linear_phantoms, arguments):
    classifier, _, x, _ = linear_phantoms(2)
    y = classifier.predict(x[:8]).argmax(1)
    attack = FrequencyAttack(classifier, max_iter=5, confidence=math.inf, **arguments)
    control = FrequencyAttack(classifier, max_iter=0, num_random_init=6, confidence=math.inf, **arguments)
    right = np.eye(2)[y].astype(bool)
    by_attack, by_chance = (classifier.predict(a.generate(x[:8], y))[right] for a in (attack, control))
    clean = classifier.predict(x[:8])[right]
    assert (attack.cost.forward == control.cost.forward).all()
    assert (clean - by_attack).mean() > 2 * (clean - by_chance).mean()


@pytest.mark.parametrize("bound", ["band", "table"])
def test_odd_sizes_masks_and_the_grid(bound):
    classifier, _ = small((1, 13, 10))
    x = np.random.default_rng(2).integers(1000, 3000, (4, 1, 13, 10)).astype(np.float32)
    mask = np.zeros((13, 10))
    mask[5:, 3:] = 1
    attack = FrequencyAttack(classifier, bound=bound, confidence=math.inf, max_iter=3)
    attacked = attack.generate(x, mask=mask)
    assert (attacked != x)[..., mask == 1].any() and not (attacked != x)[..., mask == 0].any()
    assert classifier.domain.on_grid(attacked, tolerance=0)


def test_images_that_are_wrong_already_are_left_alone(linear_phantoms):
    classifier, observer, x, _ = linear_phantoms(2)
    for arguments in ({"bound": "table"}, {"bound": "band", "quantise": False}):
        attack = FrequencyAttack(classifier, **arguments)
        assert (attack.generate(x, 1 - observer.decide(x)) == x).all()
        assert (attack.cost.forward == 1).all() and (attack.cost.backward == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bound": "linf"}, "bound must be one of band, table"),
        ({"eps": 0}, "eps must be positive, in stored values"),
        ({"band": (0.5, 0.5)}, "band must be ordered"),
        ({"band": (0.0, 1.5)}, "band must be ordered"),
        ({"q_min": 0}, "q_min must be positive, in stored values"),
        ({"q_max": math.inf}, "q_max must be positive"),
        ({"q_min": 5.0, "q_max": 2.0}, "q_max 2.0 must not be below q_min 5.0"),
        ({"block": 0}, "block is a side of 1 pixel or more"),
        ({"max_iter": -1}, "max_iter must be a whole number"),
        ({"confidence": -1}, "confidence is a margin"),
    ],
)
def test_wrong_parameters_are_refused(linear_phantoms, arguments, message):
    with pytest.raises(InputError, match=message):
        FrequencyAttack(linear_phantoms(2)[0], **arguments)


def test_empty_band_and_images_off_the_grid_are_refused(linear_phantoms):
    classifier, _, x, _ = linear_phantoms(2)
    with pytest.raises(InputError, match="no frequency of a block"):
        FrequencyAttack(classifier, band=(0.01, 0.1)).generate(x[:1])
    with pytest.raises(InputError, match="not on the storage grid of 1 stored values"):
        FrequencyAttack(classifier).generate(x[:1] + 0.5)
