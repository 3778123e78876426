# SPDX-License-Identifier: Apache-2.0
"""Augmentation of stored pixels: random changes of pose and exposure that stay inside the pixel domain."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from art_medical.domain import PixelDomain


class Affine(BaseModel):
    """Random pose of 2-D images, see :func:`affine`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    degrees: float = Field(ge=0, le=180)
    zoom: tuple[float, float]
    shift: float = Field(ge=0, le=1)
    flip: bool


class Tone(BaseModel):
    """Random exposure, see :func:`tone`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gamma: float = Field(ge=1)
    contrast: float = Field(ge=0)
    brightness: float = Field(ge=0)


class Augmentation(BaseModel):
    """What a recipe does to each training image, in this order.

    :param mirror: Spatial axes, counted from 0, each mirrored with probability one half.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mirror: tuple[int, ...] = ()
    affine: Affine | None = None
    tone: Tone | None = None

    def apply(self, x: Tensor, generator: torch.Generator, domain: PixelDomain) -> Tensor:
        """Changed copies of stored pixels ``(N, C, *spatial)``."""
        for axis in self.mirror:
            chosen = torch.rand(len(x), generator=generator) < 0.5
            x = torch.where(chosen.view((-1,) + (1,) * (x.ndim - 1)), x.flip(axis + 2), x)
        if self.affine is not None:
            pose = self.affine
            x = affine(x, generator, degrees=pose.degrees, zoom=pose.zoom, shift=pose.shift, flip=pose.flip)
        if self.tone is not None:
            look = self.tone
            x = tone(
                x,
                generator,
                low=domain.low,
                high=domain.high,
                gamma=look.gamma,
                contrast=look.contrast,
                brightness=look.brightness,
            )
        return x


def affine(
    x: Tensor, generator: torch.Generator, *, degrees: float, zoom: tuple[float, float], shift: float, flip: bool
) -> Tensor:
    """Random rotation, zoom, shift and horizontal flip of 2-D images, bilinear, one draw for each image.

    :param x: ``(N, C, H, W)``.
    :param degrees: Largest rotation.
    :param zoom: Range of the zoom factor.
    :param shift: Largest shift as a fraction of half the side.
    """
    n = len(x)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    angle, scale = torch.deg2rad(uniform(-degrees, degrees)), 1 / uniform(*zoom)
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0) if flip else torch.ones(n)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = [
        torch.stack([cos * mirror, -sin, uniform(-shift, shift)], 1),
        torch.stack([sin * mirror, cos, uniform(-shift, shift)], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def tone(
    x: Tensor,
    generator: torch.Generator,
    *,
    low: float,
    high: float,
    gamma: float,
    contrast: float,
    brightness: float,
) -> Tensor:
    """Random gamma, contrast and brightness of each image inside its domain ``[low, high]``.

    :param gamma: Gamma is drawn log-uniformly from ``[1/gamma, gamma]``.
    :param contrast: Contrast factor is drawn from ``1 +- contrast``, about the mean of the image.
    :param brightness: Offset is drawn from ``+- brightness`` times the range.
    """
    shape = (len(x),) + (1,) * (x.ndim - 1)

    def draw() -> Tensor:
        return (torch.rand(len(x), generator=generator) * 2 - 1).view(shape)

    unit = ((x - low) / (high - low)).clamp(0, 1) ** (gamma ** draw())
    mean = unit.mean(dim=tuple(range(1, x.ndim)), keepdim=True)
    unit = (unit - mean) * (1 + contrast * draw()) + mean + brightness * draw()
    return unit.clamp(0, 1) * (high - low) + low
