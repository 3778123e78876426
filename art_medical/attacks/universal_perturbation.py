# SPDX-License-Identifier: Apache-2.0
"""Universal perturbation: one change for all images (Hirano, Minagi and Takemoto 2021, BMC Med Imaging 21:9).

Made from training images, shown on others. The loop is the paper's, over mini-batches and with steps of steepest
descent on the margin for its inner attack: as in Moosavi-Dezfooli et al. 2017 (arXiv 1610.08401) only the images that
the present change does not fool yet have a say in the next step. Where the paper stops, because no training image is
left, here all of them have a say again until the passes are spent: what fools them with room to spare fools more
others.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from art_medical.attacks.base import Batch, StoredPixelAttack
from art_medical.attacks.facts import Facts
from art_medical.attacks.loop import Found
from art_medical.attacks.noise import Noise
from art_medical.attacks.objectives import Margin, evaluate
from art_medical.attacks.optimisers import STEEPEST
from art_medical.attacks.perturbations import Perturbation, additive
from art_medical.attacks.rendered import require_grid
from art_medical.domain import PixelDomain
from art_medical.errors import InputError
from art_medical.estimators.module import inference

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from art_medical.estimators.classifier import MedicalClassifier

_NORMS: dict[Any, str] = {np.inf: "linf", "inf": "linf", 2: "l2"}
_MOST_TARGETS = 16
_MOST_SINKS = 8
_FORMAT = "art-medical/universal@1"

_Fooled = tuple[float, float]
"""Share of the training images that is decided as wanted, then their mean margin: the larger, the better."""


class UniversalPerturbation(StoredPixelAttack):
    """``x' = clip(x + v)`` with ``||v||_p <= eps``: one ``v`` for all images, or one for each target class.

    Untargeted, :meth:`fit` trains one ``v`` to lead away from the true class, and one towards each of the most
    frequent classes, and keeps the one that fools the most training images: with two classes the images of both pull
    a change in opposite directions, and the best that one change can do is to send all of them to one class.

    With ``nb_epochs=0`` it is its own control, a random change of the full norm. The paper's budget is
    ``eps = 0.04 * mean_i ||x_i||_2`` over one channel of the training images in grey levels, for ``norm=2``.
    """

    facts = Facts(
        models="A change that is computed once and added to every image in passing, by malware in a modality or PACS.",
        bound="linf, l2",
        access="white",
        dimensions=(2, 3),
        paper="Hirano et al. 2021, BMC Med Imaging 21:9",
    )

    attack_params = [
        *StoredPixelAttack.attack_params,
        "norm",
        "eps",
        "eps_step",
        "nb_epochs",
        "fit_batch_size",
        "confidence",
    ]

    def __init__(
        self,
        estimator: MedicalClassifier,
        norm: int | float | str = np.inf,
        eps: float = 2.0,
        eps_step: float | None = None,
        nb_epochs: int = 15,
        fit_batch_size: int = 32,
        confidence: float = 0.0,
        batch_size: int = 32,
        targeted: bool = False,
        quantise: bool = True,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param estimator: The classifier that the change is trained and shown on.
        :param norm: ``np.inf`` (or ``"inf"``) or 2.
        :param eps: Budget of the change in the unit of the stored pixel.
        :param eps_step: Length of one step in the same unit; by default ``eps / 5``.
        :param nb_epochs: Passes over the training images for each change that is tried; 0 for the random control.
        :param fit_batch_size: Training images in one step.
        :param confidence: A training image has no say while its decision is wrong by this margin in logits, as long as
            others are not; infinity for all images in every step.
        :param batch_size: Images in one pass of ``generate``.
        :param targeted: Whether ``y`` of ``generate`` is the label to reach.
        :param quantise: Return images that the file can hold: the change is made of whole storage steps.
        :param seed: Seeds the order of the training images and the random control.
        :param verbose: Show a progress bar over batches of ``generate``.
        """
        super().__init__(
            estimator, targeted=targeted, quantise=quantise, batch_size=batch_size, seed=seed, verbose=verbose
        )
        self.norm = norm
        self.eps = eps
        self.eps_step = eps_step
        self.nb_epochs = nb_epochs
        self.fit_batch_size = fit_batch_size
        self.confidence = confidence
        self.deltas: NDArray[np.float32] | None = None
        self._check_params()

    @property
    def passes(self) -> int:
        """How often :meth:`fit` looks at each training image at most, not counting the look after each pass."""
        candidates = self.estimator.nb_classes if self.targeted else 1 + min(_MOST_SINKS, self.estimator.nb_classes)
        return self.nb_epochs * int(candidates)

    # -- making it -------------------------------------------------------------------------------------------------

    def fit(
        self,
        x: NDArray[Any],
        y: NDArray[Any] | None = None,
        report: Callable[[int], None] = lambda images: None,
    ) -> None:
        """Make ``deltas``, ``(1, C, *spatial)``, or when ``targeted`` ``(classes, C, *spatial)``.

        :param x: Stored pixels ``(N, C, *spatial)`` of training images; never those that it will be shown on.
        :param y: True labels; ``None``: the model's own decisions. Not used when ``targeted``.
        :param report: Called with the number of images seen since the last call.
        """
        images = self.estimator.check(x)
        if len(images) == 0:
            raise InputError("a universal perturbation needs training images, got none")
        with inference(self.estimator.model):
            if self.targeted:
                made = [self._train(images, self._all(images, c), True, report)[0] for c in self._targets()]
            else:
                made = [self._untargeted(images, self._classes(images, y), report)]
        self.deltas = torch.cat(made).cpu().numpy()

    def _untargeted(
        self, images: NDArray[np.float32], classes: NDArray[np.int64], report: Callable[[int], None]
    ) -> Tensor:
        best, fooled = self._train(images, classes, False, report)
        frequent = np.argsort(-np.bincount(classes, minlength=self.estimator.nb_classes), kind="stable")
        for sink in frequent[: _MOST_SINKS if self.nb_epochs else 0]:
            if (classes == sink).all():
                continue
            delta, _ = self._train(images, self._all(images, int(sink)), True, report)
            now = self._fooled(images, classes, delta, targeted=False)
            if now > fooled:
                best, fooled = delta, now
        return best

    def _train(
        self, images: NDArray[np.float32], classes: NDArray[np.int64], targeted: bool, report: Callable[[int], None]
    ) -> tuple[Tensor, _Fooled]:
        """Best change of all epochs ``(1, C, *spatial)``, and how well it does on the training images."""
        ball = self._ball(images)
        if not self.nb_epochs:
            noise = Noise(self.seed, ["control"], f"universal-{int(classes[0]) if targeted else 'any'}")
            # Far outside the ball: projected to its surface.
            far = noise.normal(images.shape[1:]).to(self.estimator.device) * 1e3 * self.domain.span
            delta = ball.stored(ball.project(far))
            return delta, self._fooled(images, classes, delta, targeted)
        length = torch.tensor([self.eps_step or self.eps / 5], device=self.estimator.device)
        step = STEEPEST[_NORMS[self.norm]](length)
        order = torch.Generator().manual_seed(self.seed)
        theta = ball.start(None)
        best, fooled = ball.stored(theta), (-1.0, -math.inf)
        for _ in range(self.nb_epochs):
            shuffled = torch.randperm(len(images), generator=order).numpy()
            for start in range(0, len(images), self.fit_batch_size):
                rows = shuffled[start : start + self.fit_batch_size]
                gradient = self._gradient(images[rows], classes[rows], targeted, ball.stored(theta))
                theta = step.advance(theta, gradient, gradient.new_zeros(1), ball)
            delta = ball.stored(theta).clone()
            now = self._fooled(images, classes, delta, targeted)
            if now > fooled:
                best, fooled = delta, now
            report(len(images))
        return best, fooled

    def _gradient(
        self, images: NDArray[np.float32], classes: NDArray[np.int64], targeted: bool, delta: Tensor
    ) -> Tensor:
        """Sum of the gradients of the images that are not fooled yet, of all when all are: ``(1, C, *spatial)``."""
        x = self._tensor(images)
        moved = self._moved(x, delta).requires_grad_(True)
        z = self.scores(moved)
        value = evaluate(Margin(targeted), z, self._tensor(classes))
        waiting = value.distance >= -self.confidence
        heard = waiting if bool(waiting.any()) else ~waiting
        (gradient,) = torch.autograd.grad(z, moved, value.direction * heard[:, None])
        free = (x + delta >= self.domain.low) & (x + delta <= self.domain.high)
        return (gradient * free).sum(0, keepdim=True)

    def _fooled(
        self, images: NDArray[np.float32], classes: NDArray[np.int64], delta: Tensor, targeted: bool
    ) -> _Fooled:
        objective = Margin(targeted)
        parts = []
        with torch.no_grad():
            for start in range(0, len(images), self.batch_size):
                rows = slice(start, start + self.batch_size)
                z = self.scores(self._moved(self._tensor(images[rows]), delta)).double()
                parts.append(objective.distance(z, self._tensor(classes[rows])))
        distance = torch.cat(parts)
        return float((distance < 0).double().mean()), -float(distance.mean())

    def _ball(self, images: NDArray[np.float32]) -> Perturbation:
        """What ``v`` may be: changes between the ends of the domain, on the grid, of the channels that may change."""
        zero = torch.zeros((1, *images.shape[1:]), device=self.estimator.device)
        around = PixelDomain(-self.domain.span, self.domain.span, self.domain.step, self.domain.unit)
        allowed = self.estimator.module.attackable(zero).expand_as(zero).float()
        return additive(_NORMS[self.norm], zero, zero.new_tensor([self.eps]), around, self.quantise, allowed)

    def _targets(self) -> range:
        count = int(self.estimator.nb_classes)
        if count > _MOST_TARGETS:
            raise InputError(
                f"a change towards each of {count} classes is too many, at most {_MOST_TARGETS}; "
                "attack one label of the model: estimator.view(label)"
            )
        return range(count)

    @staticmethod
    def _all(images: NDArray[np.float32], target: int) -> NDArray[np.int64]:
        return np.full(len(images), target, np.int64)

    # -- showing it ------------------------------------------------------------------------------------------------

    def _moved(self, x: Tensor, delta: Tensor) -> Tensor:
        return torch.where(delta == 0, x, (x + delta).clamp(self.domain.low, self.domain.high))

    def _attack(self, batch: Batch) -> Found:
        if self.deltas is None:
            raise InputError("the change has not been made yet: call fit with training images, or load one")
        self._check_deltas(self.deltas, batch.x.shape[1:])
        if self.quantise:
            require_grid(batch.x, self.domain)
        deltas = self._tensor(self.deltas)
        delta = deltas[batch.y] if self.targeted else deltas
        x = self._moved(batch.x, delta if batch.mask is None else delta * batch.mask)
        with torch.no_grad():
            z = self.scores(x).double()
        found = Found.nothing_yet(batch.x)
        found.keep_better(torch.arange(len(x), device=x.device), x, Margin(self.targeted).distance(z, batch.y))
        found.forward += 1
        found.trace.append(float(found.distance.mean()))
        return found

    # -- keeping it ------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the change, with the domain and budget that it belongs to, as npz without pickled objects.

        :raises InputError: If there is none yet.
        """
        if self.deltas is None:
            raise InputError("the change has not been made yet: call fit with training images first")
        with Path(path).open("wb") as file:
            np.savez(file, deltas=self.deltas, **self._belongs_to())

    def load(self, path: str | Path) -> None:
        """Read what :meth:`save` wrote; the attack must have the same domain and norm, and at least its budget.

        :raises InputError: If the file holds something else, or belongs to another attack.
        """
        expected = self._belongs_to()
        content = self._content(Path(path), ["deltas", *expected])
        for name, mine in expected.items():
            stated = content[name].item() if name in content and content[name].shape == () else "nothing"
            if stated != mine:
                raise InputError(f"the change in {path} has {name} {stated!r}, this attack has {mine!r}")
        deltas = content.get("deltas")
        if deltas is None or deltas.dtype != np.float32 or not np.isfinite(deltas).all():
            raise InputError(f"{path} holds no finite float32 array named deltas; write it with save")
        self._check_deltas(deltas, deltas.shape[1:])
        self.deltas = deltas

    @staticmethod
    def _content(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The arrays of these names in an npz file; pickled objects are not read."""
        try:
            data = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
            if not isinstance(data, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array and is no npz file")
            return {name: data[name] for name in names if name in data.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"cannot read a universal perturbation from {path}: {error}") from error

    def _belongs_to(self) -> dict[str, Any]:
        domain = self.domain
        return {
            "format": _FORMAT,
            "targeted": self.targeted,
            "norm": _NORMS[self.norm],
            "low": float(domain.low),
            "high": float(domain.high),
            "step": 0.0 if domain.step is None else float(domain.step),
            "unit": domain.unit,
        }

    def _check_deltas(self, deltas: NDArray[np.float32], shape: tuple[int, ...]) -> None:
        count = int(self.estimator.nb_classes) if self.targeted else 1
        if deltas.shape != (count, *shape):
            raise InputError(f"the change has shape {deltas.shape}; these images need {(count, *shape)}: fit again")
        flat = deltas.astype(np.float64).reshape(count, -1)
        size = np.abs(flat).max() if _NORMS[self.norm] == "linf" else np.sqrt((flat**2).sum(1)).max()
        if size > self.eps * (1 + 1e-5):
            raise InputError(f"the change has the norm {size:g}, over the budget eps = {self.eps:g}: fit again")
        if self.quantise and not PixelDomain(-self.domain.span, self.domain.span, self.domain.step).on_grid(deltas):
            raise InputError(f"the change is not made of whole steps of {self.domain.step:g}: fit with quantise=True")

    def _check_params(self) -> None:
        super()._check_params()
        if self.norm not in _NORMS:
            raise InputError(f"norm must be np.inf or 2, got {self.norm!r}")
        for name in ("eps", "eps_step"):
            value = getattr(self, name)
            if value is not None and not (np.ndim(value) == 0 and math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be one positive number, in {self.domain.units}, got {value!r}")
        for name, least in (("nb_epochs", 0), ("fit_batch_size", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be a whole number of {least} or more, got {value!r}")
        if not self.confidence >= 0:
            raise InputError(f"confidence is a margin in logits of 0 or more, got {self.confidence!r}")
