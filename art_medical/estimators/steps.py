# SPDX-License-Identifier: Apache-2.0
"""What a model does to a stored pixel before its network sees it, as data (for cards) and as differentiable code.

Every step maps a float tensor ``(N, C, *spatial)`` to one of the same number of dimensions. The statistics of per-image
steps stay inside the differentiated graph, because one changed pixel re-scales all others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveFloat, PositiveInt, model_validator

if TYPE_CHECKING:
    from torch import Tensor


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rescale(_Step):
    """``scale * x + offset``, for instance the rescale slope and intercept of DICOM (PS3.3 C.11.1)."""

    kind: Literal["rescale"] = "rescale"
    scale: FiniteFloat
    offset: FiniteFloat = 0.0

    def apply(self, x: Tensor) -> Tensor:
        return x * self.scale + self.offset


class Window(_Step):
    """Linear window to ``[low, high]``, DICOM PS3.3 C.11.2.1.2; pixels outside the window have zero gradient."""

    kind: Literal["window"] = "window"
    centre: FiniteFloat
    width: Annotated[float, Field(gt=1)]
    low: FiniteFloat = 0.0
    high: FiniteFloat = 1.0

    def apply(self, x: Tensor) -> Tensor:
        unit = ((x - (self.centre - 0.5)) / (self.width - 1) + 0.5).clamp(0, 1)
        return unit * (self.high - self.low) + self.low


class Normalise(_Step):
    """``(x - mean) / std``, one value for all channels or one for each."""

    kind: Literal["normalise"] = "normalise"
    mean: tuple[FiniteFloat, ...]
    std: tuple[PositiveFloat, ...]

    @model_validator(mode="after")
    def _same_length(self) -> Normalise:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}: they must be equally many")
        return self

    def apply(self, x: Tensor) -> Tensor:
        if len(self.mean) == 1:
            return (x - self.mean[0]) / self.std[0]
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return (x - x.new_tensor(self.mean).view(shape)) / x.new_tensor(self.std).view(shape)


class MinMax(_Step):
    """Per-image min-max to ``[0, 1]`` over all channels and pixels; a constant image becomes 0."""

    kind: Literal["minmax"] = "minmax"

    def apply(self, x: Tensor) -> Tensor:
        axes = tuple(range(1, x.ndim))
        low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
        span = high - low
        return (x - low) / span.where(span > 0, span.new_ones(()))


class ZScore(_Step):
    """Per-image, per-channel z-score with the population deviation, optionally over non-zero pixels only."""

    kind: Literal["zscore"] = "zscore"
    nonzero: bool = False

    def apply(self, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.ndim))
        inside = (x != 0) if self.nonzero else x.new_ones(x.shape).bool()
        count = inside.sum(axes, keepdim=True).clamp(min=1)
        # Counted from the darkest pixel, a constant image has variance 0 and not the rounding error of its mean.
        origin = x.detach().where(inside, x.new_tensor(float("inf"))).amin(axes, keepdim=True)
        above = (x - origin).where(inside, x.new_zeros(()))
        mean = above.sum(axes, keepdim=True) / count
        variance = (((above - mean) * inside) ** 2).sum(axes, keepdim=True) / count
        deviation = variance.where(variance > 0, variance.new_ones(())).sqrt()
        return ((above - mean) / deviation).where(inside, x)


class Resize(_Step):
    """Linear interpolation to ``size``; in 2-D with an anti-aliasing filter, so that shrinking averages pixels."""

    kind: Literal["resize"] = "resize"
    size: tuple[PositiveInt, ...]

    def apply(self, x: Tensor) -> Tensor:
        from torch.nn import functional

        if x.shape[2:] == self.size:
            return x
        if x.ndim == 4:
            return functional.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=True)
        return functional.interpolate(x, self.size, mode="trilinear", align_corners=False)


class Repeat(_Step):
    """One grey channel shown ``channels`` times, for networks that were trained on RGB."""

    kind: Literal["repeat"] = "repeat"
    channels: PositiveInt

    def apply(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.channels, dim=1)


class Transpose(_Step):
    """Columns before rows, for networks that were trained on what MONAI's ``LoadImage`` reads from PNG and JPEG."""

    kind: Literal["transpose"] = "transpose"

    def apply(self, x: Tensor) -> Tensor:
        return x.transpose(-1, -2)


Step = Annotated[
    Rescale | Window | Normalise | MinMax | ZScore | Resize | Repeat | Transpose,
    Field(discriminator="kind"),
]
