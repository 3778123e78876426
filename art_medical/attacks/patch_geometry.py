# SPDX-License-Identifier: Apache-2.0
"""Where a patch lies in an image, and how it gets there: a soft disc, scaled, rotated and shifted, differentiable."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from art_medical.attacks.noise import Noise

_SOFTNESS = 40
"""Exponent of the disc ``M = 1 - clip((u^2 + v^2)^40, 0, 1)`` (Finlayson et al. 2018, published code)."""


@dataclass(frozen=True)
class Placement:
    """One similarity transform for each sample.

    :param scale: Diameter of the disc over the side of the image ``(n,)``.
    :param angle: Rotation in radians ``(n,)``.
    :param centre: Centre of the disc in coordinates where the image spans [-1, 1], ``(n, 2)`` as (column, row).
    """

    scale: Tensor
    angle: Tensor
    centre: Tensor

    @classmethod
    def draw(cls, noise: Noise, scale: tuple[float, float], rotation_max: float) -> Placement:
        """Scale and rotation uniform, centre uniform over the places that keep the disc inside the frame.

        :param scale: Range of the scale, in (0, 1].
        :param rotation_max: Largest rotation in degrees.
        """
        u = noise.uniform((4,))
        size = scale[0] + (scale[1] - scale[0]) * u[:, 0]
        angle = torch.deg2rad((2 * u[:, 1] - 1) * rotation_max)
        return cls(size, angle, (2 * u[:, 2:] - 1) * (1 - size)[:, None])

    def paste(self, x: Tensor, patch: Tensor) -> Tensor:
        """``(1 - T(M)) x + T(M) T(p)``.

        :param x: Images ``(n, C, H, W)``.
        :param patch: Patch ``(C, h, w)``, same unit.
        :return: ``(n, C, H, W)``.
        """
        cos, sin = torch.cos(self.angle) / self.scale, torch.sin(self.angle) / self.scale
        rotation = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
        shift = -(rotation @ self.centre[:, :, None])
        theta = torch.cat([rotation, shift], 2).to(x.device)
        grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
        disc = 1 - (grid.square().sum(3) ** _SOFTNESS).clamp(0, 1)[:, None]
        placed = functional.grid_sample(
            patch.expand(len(x), *patch.shape), grid, padding_mode="border", align_corners=False
        )
        return x + disc * (placed - x)
