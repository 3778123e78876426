# SPDX-License-Identifier: Apache-2.0
"""Deformation: interpolation against SciPy's, bounds and smoothness as stated, rigid motions against exact ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from art_medical.attacks import SpatialDeformation
from art_medical.attacks.spatial_deformation import Deformation, interpolate
from art_medical.errors import InputError

CPU = torch.device("cpu")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("spatial", [(7, 9), (4, 5, 6), (1, 5)])
def test_interpolation_is_that_of_scipy(spatial):
    x = torch.rand(2, 3, *spatial, generator=generator())
    grid = torch.from_numpy(np.indices(spatial, np.float32))
    places = grid + 6 * torch.rand(2, len(spatial), *spatial, generator=generator()) - 3
    ours = interpolate(x, places)
    for row in range(2):
        for channel in range(3):
            expected = map_coordinates(x[row, channel].numpy(), places[row].numpy(), order=1, mode="nearest")
            np.testing.assert_allclose(ours[row, channel].numpy(), expected, atol=1e-5)
    assert torch.equal(interpolate(x, grid.expand(2, *grid.shape)), x)


@pytest.mark.parametrize("spatial", [(33, 20), (12, 9, 17)])
@pytest.mark.parametrize("spacing", [4.0, 7.5])
def test_field_is_bounded_and_smooth(spatial, spacing):
    effect = Deformation(spatial, 2.0, spacing, 0.0, 0.0, CPU)
    for theta in (torch.ones(1, *effect.shape), torch.rand(4, *effect.shape, generator=generator()).round() * 2 - 1):
        u = effect.displacement(theta)
        assert float(u.abs().max()) <= 2.0 + 1e-5
        # The slope of a cubic B-spline is at most the largest difference of neighbouring control points by spacing.
        for axis in range(len(spatial)):
            assert float(u.diff(dim=2 + axis).abs().max()) <= 2 * 2.0 / spacing + 1e-5
    assert torch.allclose(effect.displacement(torch.ones(1, *effect.shape)), torch.tensor(2.0))


def rigid(effect: Deformation, angles: list[float], shift: list[float]) -> torch.Tensor:
    theta = torch.zeros(1, *effect.shape)
    theta[0, effect.shape[0] - len(angles) - len(shift) :] = torch.tensor([*angles, *shift])
    return theta


def test_rigid_motions_are_the_exact_ones():
    x = torch.rand(1, 2, 9, 9, generator=generator())
    effect = Deformation((9, 9), 0.0, 4.0, 90.0, 3.0, CPU)
    assert torch.allclose(effect.render(x, rigid(effect, [1.0], [0, 0])), torch.rot90(x, -1, (2, 3)), atol=1e-5)
    assert torch.allclose(effect.render(x, rigid(effect, [-1.0], [0, 0])), torch.rot90(x, 1, (2, 3)), atol=1e-5)
    moved = effect.render(x, rigid(effect, [0.0], [1.0, -1.0]))
    assert torch.equal(moved[..., :-3, 3:], x[..., 3:, :-3])
    assert torch.equal(moved[..., -3:, 3:], x[..., -1:, :-3].expand(1, 2, 3, 6))  # border values


def test_rotation_of_a_volume_keeps_distances_and_turns_each_plane():
    effect = Deformation((5, 5, 5), 0.0, 4.0, 90.0, 0.0, CPU)
    assert effect.planes == ((0, 1), (0, 2), (1, 2))
    x = torch.rand(1, 1, 5, 5, 5, generator=generator())
    for k, (i, j) in enumerate(effect.planes):
        turned = effect.render(x, rigid(effect, [float(a == k) for a in range(3)], [0, 0, 0]))
        assert torch.allclose(turned, torch.rot90(x, -1, (2 + i, 2 + j)), atol=1e-5)
    rotation = effect._rotation(torch.tensor([[0.3, -0.7, 1.1]])) + torch.eye(3)
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3), atol=1e-6)


def test_gradient_is_the_derivative():
    effect = Deformation((16, 16), 2.0, 5.0, 5.0, 1.0, CPU)
    rows, columns = np.indices((16, 16))
    x = torch.from_numpy(np.sin(rows / 5) * np.cos(columns / 4)).float()[None, None]
    theta = (torch.rand(1, *effect.shape, generator=generator()) - 0.5).requires_grad_(True)
    weight, direction = torch.randn(x.shape, generator=generator()), torch.randn(theta.shape, generator=generator())
    (gradient,) = torch.autograd.grad((effect.render(x, theta) * weight).sum(), theta)
    h = 1e-3
    with torch.no_grad():
        ends = [(effect.render(x, theta + s * h * direction) * weight).sum().double() for s in (1, -1)]
    assert float((gradient * direction).sum()) == pytest.approx(float(ends[0] - ends[1]) / (2 * h), rel=0.02)


@pytest.mark.parametrize("axes", [2, 3])
def test_beats_random_deformations_at_equal_looks(linear_phantoms, axes):
    classifier, observer, x, _ = linear_phantoms(axes)
    x = x[:4]
    y = observer.decide(x)
    attack = SpatialDeformation(classifier, max_iter=7, confidence=math.inf)
    control = SpatialDeformation(classifier, max_iter=0, num_random_init=8, confidence=math.inf)
    right = np.eye(2)[y].astype(bool)
    by_attack, by_chance = (classifier.predict(a.generate(x, y))[right] for a in (attack, control))
    clean = classifier.predict(x)[right]
    assert (attack.cost.forward == control.cost.forward).all()
    assert (clean - by_attack).mean() > 1.5 * (clean - by_chance).mean() > 0


@pytest.mark.parametrize("only", ["eps", "rotation_max", "translation_max"])
def test_each_part_can_work_alone_inside_a_mask(linear_phantoms, only):
    classifier, _, x, _ = linear_phantoms(2)
    mask = np.zeros((64, 64))
    mask[16:48, 16:48] = 1
    arguments = {"eps": 0.0, "rotation_max": 0.0, "translation_max": 0.0, only: 2.0}
    attack = SpatialDeformation(classifier, max_iter=3, confidence=math.inf, **arguments)
    attacked = attack.generate(x[:3], mask=mask)
    assert (attacked != x[:3]).any((1, 2, 3)).all() and not (attacked != x[:3])[..., mask == 0].any()
    assert classifier.domain.on_grid(attacked, tolerance=0)


def test_images_that_are_wrong_already_are_left_alone(linear_phantoms):
    classifier, observer, x, _ = linear_phantoms(2)
    attack = SpatialDeformation(classifier, quantise=False)
    assert (attack.generate(x[:4], 1 - observer.decide(x[:4])) == x[:4]).all()
    assert (attack.cost.forward == 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": -1}, "eps must be 0 or more, in pixels, got -1"),
        ({"rotation_max": math.nan}, "rotation_max must be 0 or more, in degrees"),
        ({"rotation_max": 270}, "rotation_max is in degrees from 0 to 180"),
        ({"translation_max": "1"}, "translation_max must be 0 or more"),
        ({"spacing": 0}, "spacing must be positive, in pixels"),
        ({"eps": 0, "rotation_max": 0, "translation_max": 0}, "nothing may move"),
        ({"num_random_init": -1}, "num_random_init must be a whole number"),
    ],
)
def test_wrong_parameters_are_refused(linear_phantoms, arguments, message):
    with pytest.raises(InputError, match=message):
        SpatialDeformation(linear_phantoms(2)[0], **arguments)
