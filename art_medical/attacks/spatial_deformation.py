# SPDX-License-Identifier: Apache-2.0
"""Smooth deformation with a small rotation and translation, bounded in pixels.

A displacement of every pixel (Xiao et al. 2018, arXiv 1801.02612), made smooth by construction and not by a penalty: it
is a cubic B-spline over control points, as in image registration (Rueckert et al. 1999, IEEE TMI 18(8):712-721). The
rigid part is that of Engstrom et al. 2019 (arXiv 1712.02779).
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.interpolate import BSpline
from torch import Tensor

from art_medical.attacks.facts import Facts
from art_medical.attacks.rendered import Effect, RenderedAttack, along, positive
from art_medical.errors import InputError

if TYPE_CHECKING:
    from art_medical.estimators.classifier import MedicalClassifier


class SpatialDeformation(RenderedAttack):
    """``x'(p) = x(R(p - c) + c + t + u(p))`` with ``|u_i(p)| <= eps``, linear interpolation, border values outside.

    ``u`` is a B-spline with its control points in ``[-eps, eps]``, so the bound holds at every pixel; ``R`` turns about
    the centre ``c``, in a volume about each axis. All parameters take sign steps.
    """

    facts = Facts(
        models="Breathing, positioning or registration error, chosen by an adversary.",
        bound="smooth displacement, rotation and translation",
        access="white",
        dimensions=(2, 3),
        paper="Xiao et al. 2018, arXiv 1801.02612; Engstrom et al. 2019, arXiv 1712.02779",
    )

    attack_params = [*RenderedAttack.attack_params, "eps", "spacing", "rotation_max", "translation_max"]

    def __init__(
        self,
        estimator: MedicalClassifier,
        eps: float = 2.0,
        spacing: float = 16.0,
        rotation_max: float = 2.0,
        translation_max: float = 1.0,
        max_iter: int = 20,
        num_random_init: int = 0,
        confidence: float = 0.0,
        targeted: bool = False,
        batch_size: int = 32,
        quantise: bool = True,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param estimator: The classifier to attack.
        :param eps: Largest displacement by the smooth field along each axis, in pixels; 0 for a rigid motion only.
        :param spacing: Distance of the control points, in pixels; the larger the smoother.
        :param rotation_max: Largest rotation, in degrees; 0 for none.
        :param translation_max: Largest translation along each axis, in pixels; 0 for none.
        :param max_iter: Steps in each start.
        :param num_random_init: Random starts; 0 starts once, at the clean image.
        :param confidence: An image is done when its decision is wrong by this margin in logits.
        :param targeted: Whether ``y`` is the label to reach.
        :param batch_size: Images in one pass.
        :param quantise: Return images that the file can hold.
        :param seed: Seeds the random starts, together with the ids of the samples.
        :param verbose: Show a progress bar over batches.
        """
        super().__init__(
            estimator,
            max_iter=max_iter,
            num_random_init=num_random_init,
            confidence=confidence,
            targeted=targeted,
            batch_size=batch_size,
            quantise=quantise,
            seed=seed,
            verbose=verbose,
        )
        self.eps = eps
        self.spacing = spacing
        self.rotation_max = rotation_max
        self.translation_max = translation_max
        self._check_params()

    def _effect(self, shape: tuple[int, ...], device: torch.device) -> Effect:
        return Deformation(shape[1:], self.eps, self.spacing, self.rotation_max, self.translation_max, device)

    def _check_params(self) -> None:
        super()._check_params()
        bounds = {"eps": "pixels", "translation_max": "pixels", "rotation_max": "degrees"}
        for name, unit in bounds.items():
            positive(getattr(self, name), name, unit, zero=tuple(bounds))
        positive(self.spacing, "spacing", "pixels")
        if not any(getattr(self, name) for name in bounds):
            raise InputError("eps, rotation_max and translation_max are all 0: nothing may move; raise one of them")
        if self.rotation_max > 180:
            raise InputError(f"rotation_max is in degrees from 0 to 180, got {self.rotation_max!r}")


class Deformation(Effect):
    """Parameters between -1 and 1: control points of each axis, then angles, then translations.

    :param spatial: Shape of the images, 2 or 3 axes.
    """

    def __init__(
        self,
        spatial: tuple[int, ...],
        eps: float,
        spacing: float,
        rotation_max: float,
        translation_max: float,
        device: torch.device,
    ) -> None:
        self.spatial, self.eps = spatial, eps
        self.angle_max, self.translation_max = math.radians(rotation_max), translation_max
        self.planes = tuple(itertools.combinations(range(len(spatial)), 2))
        self._splines = [torch.from_numpy(_spline(side, spacing)).to(device) for side in spatial]
        self._places = torch.from_numpy(np.indices(spatial, np.float32)).to(device)

    @property
    def _control(self) -> tuple[int, ...]:
        return (len(self.spatial), *(matrix.shape[1] for matrix in self._splines))

    @property
    def shape(self) -> tuple[int, ...]:
        return (math.prod(self._control) + len(self.planes) + len(self.spatial),)

    def render(self, x: Tensor, theta: Tensor) -> Tensor:
        return interpolate(x, self._places + self.displacement(theta))

    def displacement(self, theta: Tensor) -> Tensor:
        """Where each pixel is taken from, relative to where it is, in pixels ``(n, axes, *spatial)``."""
        axes = len(self.spatial)
        controls, turns = math.prod(self._control), len(self.planes)
        angles, shift = theta[:, controls : controls + turns], theta[:, controls + turns :]
        u = theta[:, :controls].reshape(len(theta), *self._control) * self.eps
        for axis, matrix in enumerate(self._splines):
            u = along(matrix, u, 2 + axis)
        from_centre = self._places - (self._places.new_tensor(self.spatial).view(-1, *(1,) * axes) - 1) / 2
        turned = torch.einsum("nij,j...->ni...", self._rotation(angles * self.angle_max), from_centre)
        displacement: Tensor = u + turned + (shift * self.translation_max).view(-1, axes, *(1,) * axes)
        return displacement

    def _rotation(self, angles: Tensor) -> Tensor:
        """``R - 1``, with ``R`` the product of the rotations in each coordinate plane ``(n, axes, axes)``."""
        one = torch.eye(len(self.spatial), device=angles.device).expand(len(angles), -1, -1)
        rotation = one
        for k, (i, j) in enumerate(self.planes):
            cos, sin = torch.cos(angles[:, k]), torch.sin(angles[:, k])
            generator = one.new_zeros(one.shape[1:])
            generator[i, j], generator[j, i] = -1.0, 1.0
            plane = -(generator @ generator)
            rotation = rotation @ (one + (cos - 1)[:, None, None] * plane + sin[:, None, None] * generator)
        return rotation - one


def interpolate(x: Tensor, places: Tensor) -> Tensor:
    """Values of images at places between pixels, multilinear, the nearest border value outside; exact on pixels.

    :param x: Images ``(n, C, *spatial)``.
    :param places: Coordinates in pixels ``(n, axes, *spatial)``.
    """
    n, channels, *spatial = x.shape
    below, weight, above = [], [], []
    for axis, side in enumerate(spatial):
        at = places[:, axis].clamp(0, side - 1)
        floor = at.detach().floor().clamp(max=max(side - 2, 0))
        below.append(floor.long())
        above.append(floor.long().add(1).clamp(max=side - 1))
        weight.append(at - floor)
    flat = x.flatten(2)
    result = torch.zeros_like(x)
    for corner in itertools.product((False, True), repeat=len(spatial)):
        index, share = torch.zeros_like(below[0]), torch.ones_like(weight[0])
        for axis, up in enumerate(corner):
            index = index * spatial[axis] + (above if up else below)[axis]
            share = share * (weight[axis] if up else 1 - weight[axis])
        value = flat.gather(2, index.view(n, 1, -1).expand(n, channels, -1)).view_as(x)
        result = result + share[:, None] * value
    return result


def _spline(side: int, spacing: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Cubic B-splines at the pixels of an axis ``(side, control points)``: not negative, each row sums to 1."""
    intervals = int((side - 1) // spacing) + 1
    knots = (np.arange(intervals + 7) - 3) * float(spacing)
    matrix: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = (
        BSpline.design_matrix(np.arange(side, dtype=np.float64), knots, 3).toarray().astype(np.float32)
    )
    return matrix
