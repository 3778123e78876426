# SPDX-License-Identifier: Apache-2.0
"""Changes whose parameters are no pixels: ``x' = R(x, theta)``, with ``R`` differentiable in ``theta``.

The loop hands over the gradient in stored pixels; it is pulled back through ``R``, and the step is taken in the
parameters: ``theta <- project(theta - step * steepest(dR/dtheta^T g))``. Rounding is straight-through, clipping is not.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from art_medical.attacks.base import Batch, StoredPixelAttack
from art_medical.attacks.loop import Found, search
from art_medical.attacks.noise import Noise
from art_medical.attacks.objectives import Margin
from art_medical.attacks.optimisers import STEEPEST, Optimiser
from art_medical.attacks.perturbations import Perturbation
from art_medical.domain import PixelDomain
from art_medical.errors import InputError

if TYPE_CHECKING:
    from art_medical.estimators.classifier import MedicalClassifier


class Effect(ABC):
    """What parameters do to images of one shape. ``theta = 0`` is no change.

    :cvar norm: The set of parameters: the box ``[lower * radius, radius]`` or the ball of that radius.
    :cvar lower: Lower side of the box, -1 or 0.
    """

    norm: Literal["linf", "l2"] = "linf"
    lower: float = -1.0

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameters of one image."""

    @abstractmethod
    def render(self, x: Tensor, theta: Tensor) -> Tensor:
        """Images ``(n, C, *spatial)``, neither rounded nor clipped, for parameters ``(n, *shape)``."""

    def effective(self, theta: Tensor) -> Tensor:
        """The part of parameters that changes images; a random start has no other."""
        return theta

    def to_grid(self, x: Tensor, changed: Tensor, domain: PixelDomain, mask: Tensor | None) -> Tensor:
        """Stored values for the unrounded images ``changed``."""
        return domain.quantise(changed)


class Rendered(Perturbation):
    """The changes that an effect can make of a batch.

    :param effect: From parameters to images.
    :param x: Clean stored pixels ``(n, C, *spatial)``.
    :param radius: Size of the set of parameters for each sample ``(n,)``, in the unit of the effect.
    :param domain: The box and the grid.
    :param quantise: Return values that the file can hold.
    :param mask: 1 where a pixel may change, of the shape of ``x``; ``None`` for everywhere.
    """

    def __init__(
        self, effect: Effect, x: Tensor, radius: Tensor, domain: PixelDomain, quantise: bool, mask: Tensor | None
    ) -> None:
        self.effect, self.x, self.radius = effect, x, radius
        self.domain, self.quantise, self.mask = domain, quantise, mask

    def start(self, noise: Noise | None) -> Tensor:
        shape = self.effect.shape
        if noise is None:
            return self.x.new_zeros(len(self.x), *shape)
        if self.effect.norm == "linf":
            u = noise.uniform(shape).to(self.x)
            return (self.effect.lower + u * (1 - self.effect.lower)) * _beside(self.radius, u)
        # On the sphere, where the volume of a ball of that many dimensions is.
        direction = self.effect.effective(noise.normal(shape).to(self.x))
        return direction * _beside(self.radius / _length(direction), direction)

    def project(self, theta: Tensor) -> Tensor:
        if self.effect.norm == "linf":
            radius = _beside(self.radius, theta)
            return torch.minimum(torch.maximum(theta, self.effect.lower * radius), radius)
        return theta * _beside((self.radius / _length(theta)).clamp(max=1), theta)

    def stored(self, theta: Tensor) -> Tensor:
        with torch.no_grad():
            changed = self._inside(theta)
            if self.quantise:
                changed = self.effect.to_grid(self.x, changed, self.domain, self.mask)
            if self.mask is not None:
                changed = torch.where(self.mask != 0, changed, self.x)
            # No parameters, no change: not even the rounding error of a transform and its inverse.
            return torch.where(_beside(theta.flatten(1).any(1), changed), changed, self.x)

    def pull_back(self, theta: Tensor, gradient: Tensor) -> Tensor:
        """Gradient in the parameters of a gradient in stored pixels."""
        with torch.enable_grad():
            theta = theta.detach().requires_grad_(True)
            (pulled,) = torch.autograd.grad(self._inside(theta), theta, gradient)
        return pulled

    def _inside(self, theta: Tensor) -> Tensor:
        changed = self.effect.render(self.x, theta).clamp(self.domain.low, self.domain.high)
        return changed if self.mask is None else self.x + self.mask * (changed - self.x)

    def select(self, keep: Tensor) -> Rendered:
        mask = None if self.mask is None else self.mask[keep]
        return type(self)(self.effect, self.x[keep], self.radius[keep], self.domain, self.quantise, mask)


class PulledBack(Optimiser):
    """An optimiser of parameters, behind the gradient in stored pixels that the loop has."""

    def __init__(self, inner: Optimiser) -> None:
        super().__init__(inner.eps_step)
        self.inner = inner

    def step(self, theta: Tensor, gradient: Tensor) -> Tensor:
        return self.inner.step(theta, gradient)

    def advance(self, theta: Tensor, gradient: Tensor, objective: Tensor, perturbation: Perturbation) -> Tensor:
        assert isinstance(perturbation, Rendered)
        return self.inner.advance(theta, perturbation.pull_back(theta, gradient), objective, perturbation)

    def select(self, keep: Tensor) -> PulledBack:
        return type(self)(self.inner.select(keep))


class RenderedAttack(StoredPixelAttack):
    """Base of the gradient attacks on the parameters of an effect.

    :ivar max_iter: Steps in each start, each ``2.5 / max_iter`` of the radius.
    :ivar num_random_init: Random starts; 0 starts once, at the clean image. Random starts without steps
        (``max_iter=0``) are the control.
    """

    attack_params = [*StoredPixelAttack.attack_params, "max_iter", "num_random_init", "confidence"]

    def __init__(
        self,
        estimator: MedicalClassifier,
        *,
        max_iter: int,
        num_random_init: int,
        confidence: float,
        targeted: bool,
        batch_size: int,
        quantise: bool,
        seed: int,
        verbose: bool,
    ) -> None:
        super().__init__(
            estimator,
            targeted=targeted,
            quantise=quantise,
            batch_size=batch_size,
            seed=seed,
            verbose=verbose,
        )
        self.max_iter = max_iter
        self.num_random_init = num_random_init
        self.confidence = confidence

    @abstractmethod
    def _effect(self, shape: tuple[int, ...], device: torch.device) -> Effect:
        """The effect on images of ``shape`` ``(C, *spatial)``."""

    def _radius(self, batch: Batch) -> Tensor:
        """Size of the set of parameters for each sample ``(n,)``; 1 where the effect has the units."""
        return batch.x.new_ones(len(batch.x))

    def _optimiser(self, effect: Effect, eps_step: Tensor) -> Optimiser:
        """How the parameters move; by default steepest descent in their norm."""
        return PulledBack(STEEPEST[effect.norm](eps_step))

    def _attack(self, batch: Batch) -> Found:
        if self.quantise:
            require_grid(batch.x, self.domain)
        effect = self._effect(tuple(batch.x.shape[1:]), batch.x.device)
        radius = self._radius(batch)
        perturbation = Rendered(effect, batch.x, radius, self.domain, self.quantise, batch.mask)
        found = Found.nothing_yet(batch.x)
        for restart in range(max(1, self.num_random_init)):
            search(
                self.scores,
                perturbation,
                Margin(self.targeted),
                self._optimiser(effect, 2.5 * radius / max(self.max_iter, 1)),
                batch.y,
                found,
                max_iter=self.max_iter,
                confidence=self.confidence,
                noise=Noise(self.seed, batch.ids, f"restart-{restart}") if self.num_random_init else None,
            )
        return found

    def _check_params(self) -> None:
        super()._check_params()
        for name in ("max_iter", "num_random_init"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise InputError(f"{name} must be a whole number of 0 or more, got {value!r}")
        if not self.confidence >= 0:
            raise InputError(f"confidence is a margin in logits of 0 or more, got {self.confidence!r}")


def require_grid(x: Tensor, domain: PixelDomain) -> None:
    """Clean images must be storable when the attacked ones have to be.

    :raises InputError: If they are not.
    """
    if domain.step is not None and not domain.on_grid(x):
        raise InputError(
            f"images are not on the storage grid of {domain.step:g} {domain.unit}s; quantise them with "
            "domain.quantise(x), or attack with quantise=False and lose the file"
        )


def along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """``matrix @ x`` along one axis of ``x``."""
    result: Tensor = torch.tensordot(x, matrix, dims=([axis], [1])).movedim(-1, axis)
    return result


def positive(value: float, name: str, unit: str, *, zero: Sequence[str] = ()) -> None:
    """Refuse what is not a finite number above 0 (or not below 0, for names in ``zero``)."""
    if not (isinstance(value, int | float) and math.isfinite(value) and (value > 0 or (name in zero and value == 0))):
        raise InputError(f"{name} must be {'0 or more' if name in zero else 'positive'}, in {unit}, got {value!r}")


def _beside(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (x.ndim - 1))


def _length(theta: Tensor) -> Tensor:
    length: Tensor = theta.flatten(1).norm(dim=1).clamp(min=1e-30)
    return length
