# SPDX-License-Identifier: Apache-2.0
"""Patches: geometry against first principles, protocol, and an attack that must beat its natural control."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from art_medical.attacks import AdversarialPatch, NaturalPatch
from art_medical.attacks.noise import Noise
from art_medical.attacks.patch_geometry import Placement
from art_medical.domain import PixelDomain
from art_medical.errors import InputError
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.heads import Head


@pytest.fixture(scope="module")
def bright_spot() -> MedicalClassifier:
    """Says yes when the brightest 8 x 8 region is brighter than 128: local evidence, the weakness that patches use."""
    network = torch.nn.Sequential(
        torch.nn.AvgPool2d(8, stride=4), torch.nn.AdaptiveMaxPool2d(1), torch.nn.Flatten(), torch.nn.Linear(1, 1)
    )
    network[3].weight.data[:], network[3].bias.data[:] = 0.1, -12.8
    return MedicalClassifier(
        network, domain=PixelDomain(0, 255), head=Head(kind="one-logit", labels=("no", "yes")), input_shape=(1, 40, 40)
    )


@pytest.fixture(scope="module")
def dark_images() -> np.ndarray:
    return np.random.default_rng(0).integers(60, 100, (16, 1, 40, 40)).astype(np.float32)


def disc(scale: float, centre: tuple[float, float], side: int) -> torch.Tensor:
    """Where a white patch on black shows, by the formula, at pixel centres."""
    at = (torch.arange(side) + 0.5) / side * 2 - 1
    u, v = (at[None, :] - centre[0]) / scale, (at[:, None] - centre[1]) / scale
    return 1 - ((u**2 + v**2) ** 40).clamp(0, 1)


@pytest.mark.parametrize("scale", [0.2, 0.4, 1.0])
@pytest.mark.parametrize("degrees", [0.0, 20.0])
def test_disc_has_the_size_and_place_that_were_asked_for(scale, degrees):
    centre = (0.3 * (1 - scale), -0.5 * (1 - scale))
    place = Placement(torch.tensor([scale]), torch.deg2rad(torch.tensor([degrees])), torch.tensor([centre]))
    shown = place.paste(torch.zeros(1, 1, 120, 120), torch.ones(1, 30, 30))[0, 0]
    assert torch.allclose(shown, disc(scale, centre, 120), atol=1e-4)
    assert float(shown.mean()) == pytest.approx(math.pi / 4 * scale**2, rel=0.03)


def test_rotation_turns_the_patch_about_its_centre():
    patch = torch.zeros(1, 101, 101)
    patch[0, 50, 75:] = 100.0  # a hand that points right
    place = Placement(torch.tensor([1.0]), torch.deg2rad(torch.tensor([90.0])), torch.zeros(1, 2))
    shown = place.paste(torch.zeros(1, 1, 101, 101), patch)[0, 0]
    row, column = divmod(int(shown.argmax()), 101)
    assert column == 50 and abs(row - 50) > 20


def test_places_stay_inside_the_frame_and_cover_it():
    place = Placement.draw(Noise(0, [str(i) for i in range(2000)], "place"), (0.4, 0.4), 22.5)
    assert float(place.centre.abs().max()) <= 0.6
    assert float(place.centre.abs().max()) > 0.59 and abs(float(place.centre.mean())) < 0.02
    assert float(torch.rad2deg(place.angle.abs().max())) == pytest.approx(22.5, abs=0.1)


def test_trained_patch_beats_the_natural_control(bright_spot, dark_images):
    train, test = dark_images[:8], dark_images[8:]
    natural = NaturalPatch(bright_spot, seed=1)
    natural.fit(train)
    attack = AdversarialPatch(bright_spot, nb_epochs=3, seed=1, scale_range=(0.3, 1.0))
    attack.fit(train)
    no = np.zeros(len(test), np.int64)
    before, control, after = (bright_spot.predict(images).argmax(1) for images in (
        test, natural.generate(test, no), attack.generate(test, no)))  # fmt: skip
    assert not before.any() and not control.any()
    assert after.all()
    assert attack.record.success.all()


def test_patch_goes_to_the_known_optimum_of_a_linear_model(dark_images):
    # z is the mean grey: the best patch for "yes" is white wherever the disc shows, the best for "no" black.
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(1, 1))
    network[2].weight.data[:], network[2].bias.data[:] = 0.02, -1.6
    mean_grey = MedicalClassifier(
        network, domain=PixelDomain(0, 255), head=Head(kind="one-logit", labels=("no", "yes")), input_shape=(1, 40, 40)
    )
    attack = AdversarialPatch(mean_grey, nb_epochs=20, learning_rate=500.0)
    attack.fit(dark_images)
    inside = disc(1.0, (0, 0), 40).numpy() > 0.99
    assert (attack.patches[1, 0][inside] == 255).mean() > 0.99
    assert (attack.patches[0, 0][inside] == 0).mean() > 0.99


def test_protocol_of_generate(bright_spot, dark_images):
    attack = AdversarialPatch(bright_spot, nb_epochs=1, seed=2)
    attack.fit(dark_images[:8])
    test, no = dark_images[8:], np.zeros(8, np.int64)
    attacked = attack.generate(test, no)
    assert (attack.generate(test, no) == attacked).all()
    assert bright_spot.domain.on_grid(attacked, tolerance=0)
    assert (attack.generate(test[3:], no[3:], ids=range(3, 8)) == attacked[3:]).all()
    share = (attacked != test).mean((1, 2, 3))
    assert (share <= 0.13 + 0.02).all() and (share > 0.08).all()
    targeted = AdversarialPatch(bright_spot, nb_epochs=1, seed=2, targeted=True)
    targeted.fit(dark_images[:8])
    assert (targeted.generate(test, np.ones(8, np.int64)) == attacked).all()


def test_control_and_attack_of_equal_seed_cover_the_same_places(bright_spot, dark_images):
    places = []
    for kind in (NaturalPatch, AdversarialPatch):
        attack = kind(bright_spot, seed=5)
        attack.patches = np.full((2, 1, 40, 40), 255, np.float32)
        places.append(attack.generate(dark_images, np.zeros(16, np.int64)) == 255)
    assert (places[0] == places[1]).all()


def test_natural_patch_is_the_most_typical_training_image(bright_spot, dark_images):
    train = dark_images.copy()
    train[5] += 80
    train[2] -= 40
    natural = NaturalPatch(bright_spot)
    natural.fit(train)
    assert (natural.patches[1] == train[5]).all() and (natural.patches[0] == train[2]).all()


def test_learning_rate_does_not_depend_on_the_unit(bright_spot, dark_images):
    # The same images and model in 12 bit: the patch must be the same picture, 16 times as large in value.
    class Scaled(torch.nn.Module):
        def forward(self, x):
            return bright_spot.network(x / 16)

    twelve = MedicalClassifier(
        Scaled(), domain=PixelDomain(0, 255 * 16, 16), head=bright_spot.head, input_shape=(1, 40, 40)
    )
    patches = []
    for classifier, images in ((bright_spot, dark_images), (twelve, dark_images * 16)):
        attack = AdversarialPatch(classifier, nb_epochs=1, learning_rate=0.05)
        attack.fit(images[:8])
        patches.append(attack.patches)
    assert np.abs(patches[0] - 127.5).max() > 0.1
    np.testing.assert_allclose(patches[1] / 16, patches[0], rtol=1e-3)


def test_wrong_use_is_refused(bright_spot, dark_images):
    attack = AdversarialPatch(bright_spot)
    with pytest.raises(InputError, match="call fit with training images first"):
        attack.generate(dark_images, np.zeros(16, np.int64))
    with pytest.raises(InputError, match="got none"):
        attack.fit(dark_images[:0])
    for arguments, message in (
        ({"scale": 1.2}, "scale is the diameter"),
        ({"rotation_max": -1}, "rotation_max is in degrees"),
        ({"scale_range": (0.5, 0.2)}, "scale_range must be ordered"),
        ({"learning_rate": 0}, "learning_rate must be positive"),
        ({"nb_epochs": 0}, "nb_epochs must be at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            AdversarialPatch(bright_spot, **arguments)
    natural = NaturalPatch(bright_spot)
    natural.fit(dark_images)
    with pytest.raises(InputError, match="mask is not supported"):
        natural.generate(dark_images, np.zeros(16, np.int64), mask=np.ones((40, 40)))
