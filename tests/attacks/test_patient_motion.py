# SPDX-License-Identifier: Apache-2.0
"""Motion: the shift theorem line by line, energy, and a patient who never moves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from art_medical.attacks import PatientMotion
from art_medical.attacks.patient_motion import Motion
from art_medical.domain import PixelDomain
from art_medical.errors import InputError

CPU = torch.device("cpu")


def pictures(*spatial: int) -> torch.Tensor:
    return torch.rand(2, 1, *spatial, generator=torch.Generator().manual_seed(0)) * 100


@pytest.mark.parametrize("spatial", [(8, 9), (5, 6, 4)])
def test_a_patient_who_moved_once_is_shifted(spatial):
    x = pictures(*spatial)
    effect = Motion(spatial, 2.0, 3, 1, CPU)
    theta = torch.zeros(2, *effect.shape)
    theta[:, :, 0], theta[:, :, 1] = 1.0, -0.5  # in every block: two rows down, one column left
    assert torch.allclose(effect.render(x, theta), torch.roll(x, (2, -1), (2, 3)), atol=1e-3)


@pytest.mark.parametrize("phase_axis", [0, 1])
def test_each_line_carries_the_phase_of_its_block(phase_axis):
    spatial, blocks, eps = (8, 6), 3, 1.5
    x = pictures(*spatial)
    effect = Motion(spatial, eps, blocks, phase_axis, CPU)
    theta = torch.rand(2, *effect.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    lines = spatial[phase_axis]
    for row in range(2):
        k_space = np.fft.fftshift(np.fft.fft2(x[row, 0].double().numpy()))
        frequencies = [np.fft.fftshift(np.fft.fftfreq(side)) for side in spatial]
        for line in range(lines):  # in the order of acquisition
            shift = theta[row, line * blocks // lines].double().numpy() * eps
            for other in range(spatial[1 - phase_axis]):
                at = (line, other) if phase_axis == 0 else (other, line)
                cycles = sum(frequencies[a][at[a]] * shift[a] for a in range(2))
                k_space[at] *= np.exp(-2j * np.pi * cycles)
        expected = np.abs(np.fft.ifft2(np.fft.ifftshift(k_space)))
        np.testing.assert_allclose(effect.render(x, theta)[row, 0].numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("spatial", [(16, 15), (8, 6, 7)])
def test_energy_is_kept(spatial):
    x = pictures(*spatial)
    effect = Motion(spatial, 3.0, 4, 0, CPU)
    theta = torch.rand(2, *effect.shape, generator=torch.Generator().manual_seed(2)) * 2 - 1
    moved = effect.render(x, theta)
    assert not torch.allclose(moved, x, atol=1)
    assert torch.allclose(moved.square().flatten(1).sum(1), x.square().flatten(1).sum(1), rtol=1e-5)
    assert bool((moved >= 0).all())


@pytest.mark.parametrize("axes", [2, 3])
def test_beats_random_motion_at_equal_looks(linear_phantoms, axes):
    classifier, observer, x, _ = linear_phantoms(axes)
    x = x[:4]
    y = observer.decide(x)
    attack = PatientMotion(classifier, max_iter=7, num_random_init=1, confidence=math.inf)
    control = PatientMotion(classifier, max_iter=0, num_random_init=8, confidence=math.inf)
    right = np.eye(2)[y].astype(bool)
    by_attack, by_chance = (classifier.predict(a.generate(x, y))[right] for a in (attack, control))
    clean = classifier.predict(x)[right]
    assert (attack.cost.forward == control.cost.forward).all()
    assert (clean - by_attack).mean() > 1.2 * (clean - by_chance).mean() > 0


def test_more_starts_are_never_worse_and_the_result_is_storable(linear_phantoms):
    classifier, observer, x, _ = linear_phantoms(2)
    x = x[:3]
    y = observer.decide(x)
    right = np.eye(2)[y].astype(bool)
    once, often = (
        PatientMotion(classifier, max_iter=3, num_random_init=n, phase_axis=1, confidence=math.inf) for n in (1, 3)
    )
    first, more = (attack.generate(x, y) for attack in (once, often))
    assert (classifier.predict(more)[right] <= classifier.predict(first)[right]).all()
    assert classifier.domain.on_grid(more, tolerance=0)
    assert (often.cost.forward == 12).all() and (often.cost.backward == 9).all()


def test_mask_and_images_that_are_wrong_already(linear_phantoms):
    classifier, observer, x, _ = linear_phantoms(2)
    mask = np.zeros((64, 64))
    mask[16:48, 16:48] = 1
    attacked = PatientMotion(classifier, max_iter=2, confidence=math.inf).generate(x[:2], mask=mask)
    assert (attacked != x[:2]).any((1, 2, 3)).all() and not (attacked != x[:2])[..., mask == 0].any()
    still = PatientMotion(classifier, num_random_init=0, quantise=False)
    assert (still.generate(x[:4], 1 - observer.decide(x[:4])) == x[:4]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 0}, "eps must be positive, in pixels"),
        ({"blocks": 0}, "blocks must be from 1 to the 64 phase-encode lines"),
        ({"blocks": 65}, "blocks must be from 1 to the 64 phase-encode lines, got 65"),
        ({"phase_axis": 2}, "phase_axis must be a spatial axis, 0 to 1, got 2"),
        ({"max_iter": 2.5}, "max_iter must be a whole number"),
    ],
)
def test_wrong_parameters_are_refused(linear_phantoms, arguments, message):
    with pytest.raises(InputError, match=message):
        PatientMotion(linear_phantoms(2)[0], **arguments)


def test_signed_pixels_are_no_magnitudes(two_pixels):
    with pytest.raises(InputError, match="magnitude images, but this domain begins at -1024"):
        PatientMotion(two_pixels([1.0, 2.0], 0.0, PixelDomain(-1024, 3071, 1, "HU")), blocks=1)
