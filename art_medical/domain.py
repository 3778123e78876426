# SPDX-License-Identifier: Apache-2.0
"""The stored pixel: range, grid and unit of the values that a hospital keeps on disk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from art_medical.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch

    Array = TypeVar("Array", np.ndarray, torch.Tensor)

Norm = Literal["linf", "l2"]


@dataclass(frozen=True, slots=True)
class PixelDomain:
    """Values that a stored pixel may take: ``low, low + step, ..., high`` in ``unit``.

    :param low: Smallest value, in ``unit``.
    :param high: Largest value, in ``unit``; greater than ``low``.
    :param step: Distance of neighbouring stored values, or ``None`` when the file holds floating point numbers.
    :param unit: Name of one unit, for instance ``grey level``, ``stored value`` or ``HU``.
    :raises InputError: If the range is empty, not finite, or not a whole number of steps.
    """

    low: float
    high: float
    step: float | None = 1.0
    unit: str = "grey level"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InputError(f"a pixel domain needs finite low < high, got low={self.low!r}, high={self.high!r}")
        if self.step is not None:
            if not (math.isfinite(self.step) and self.step > 0):
                raise InputError(f"the step of a pixel domain must be positive, got {self.step!r}; None means no grid")
            steps = self.span / self.step
            if not math.isfinite(steps) or abs(steps - round(steps)) > 1e-6 * max(1.0, steps):
                raise InputError(f"the range {self.low} to {self.high} is no whole number of steps of {self.step}")

    @property
    def span(self) -> float:
        """``high - low``, in ``unit``."""
        return self.high - self.low

    @property
    def units(self) -> str:
        """Name of several units: ``grey levels``, but ``HU``."""
        return self.unit if self.unit.isupper() else f"{self.unit}s"

    @property
    def clip_values(self) -> tuple[float, float]:
        """The box, as ART estimators take it."""
        return (self.low, self.high)

    def quantise(self, x: Array) -> Array:
        """Nearest stored value of each element, inside the range (half to even, as NumPy and torch round)."""
        grid = x if self.step is None else ((x - self.low) / self.step).round() * self.step + self.low
        inside: Array = grid.clip(self.low, self.high)
        return inside

    def on_grid(self, x: Array, tolerance: float = 1e-4) -> bool:
        """Whether every element is a value that the file can hold, up to ``tolerance`` steps."""
        allowed = tolerance * (self.step or self.span)
        return bool((abs(x - self.quantise(x)) <= allowed).all())

    def whole_steps(self, eps: float) -> float:
        """Largest budget on the storage grid that does not exceed ``eps`` (both in ``unit``)."""
        if self.step is None:
            return eps
        return math.floor(eps / self.step + 1e-6) * self.step

    def from_scale(self, eps: float, scale: tuple[float, float]) -> float:
        """Convert a budget that is stated on another scale, for instance 0.02 on ``(-1, 1)``, to ``unit``."""
        low, high = scale
        if not low < high:
            raise InputError(f"a scale needs low < high, got {scale}")
        return eps * self.span / (high - low)

    def describe(self, eps: float) -> str:
        """``eps`` in words: the physical unit and the share of the range."""
        return f"{self.amount(eps)} ({100 * eps / self.span:.2g} % of the range)"

    def amount(self, eps: float) -> str:
        """``eps`` with its unit: ``1 grey level``, ``2 grey levels``, ``3 HU``."""
        return f"{eps:g} {self.unit if eps == 1 else self.units}"


@dataclass(frozen=True, slots=True)
class Budget:
    """How far an attack may go: the norm of the change of one image, in the unit of the stored pixel."""

    norm: Norm
    eps: float
    unit: str = "grey level"
