# SPDX-License-Identifier: Apache-2.0
"""The door of every attack: ART's contract outside, tensors on the estimator's device inside."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from rich.progress import track
from torch import Tensor

from art_medical.attacks.facts import Facts
from art_medical.attacks.loop import Found, Scores
from art_medical.domain import PixelDomain
from art_medical.errors import ArtMedicalError, InputError
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.module import inference

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Record:
    """Evidence of one run of ``generate``, one entry for each sample unless stated otherwise.

    :param success: Whether the goal was reached on the estimator that was attacked.
    :param forward: Forward passes.
    :param backward: Backward passes.
    :param zero_gradient: Whether some gradient was exactly zero everywhere.
    :param unchanged: Whether the returned image equals the clean one.
    :param linf: Largest change of a pixel, in the unit of the domain.
    :param l2: Length of the change over all pixels, in the unit of the domain.
    :param traces: Mean objective at each forward pass, one tuple for each batch, restarts one after the other.
    """

    success: NDArray[np.bool_]
    forward: NDArray[np.int64]
    backward: NDArray[np.int64]
    zero_gradient: NDArray[np.bool_]
    unchanged: NDArray[np.bool_]
    linf: NDArray[np.float64]
    l2: NDArray[np.float64]
    traces: tuple[tuple[float, ...], ...]

    def per_sample(self) -> dict[str, NDArray[Any]]:
        """The entries for each sample, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "traces"}

    @staticmethod
    def join(records: Sequence[Record]) -> Record:
        """One record for several batches, of the kind that these are."""
        rows = [record.per_sample() for record in records]
        arrays = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        return type(records[0])(traces=tuple(trace for record in records for trace in record.traces), **arrays)


@dataclass(frozen=True)
class Batch:
    """What an attack gets at once, on the device of the estimator.

    :param x: Stored pixels ``(n, C, *spatial)``.
    :param y: Class indices ``(n,)``.
    :param mask: 1.0 where a pixel may change, of the shape of ``x``; ``None`` for everywhere. Never more than the
        channels that the estimator lets anybody attack.
    :param ids: One name for each sample.
    :param rows: Where the samples lie in the call.
    :param total: Images of the call.
    """

    x: Tensor
    y: Tensor
    mask: Tensor | None
    ids: Sequence[str]
    rows: slice | NDArray[np.intp]
    total: int

    def select(self, keep: Tensor) -> Batch:
        """The samples at the indices ``keep``."""
        places = keep.cpu().numpy()
        return Batch(
            x=self.x[keep],
            y=self.y[keep],
            mask=None if self.mask is None else self.mask[keep],
            ids=[self.ids[place] for place in places],
            rows=np.arange(self.total)[self.rows][places],
            total=self.total,
        )

    def per_sample(self, name: str, value: float | NDArray[Any]) -> Tensor:
        """A parameter that is one number, or one for each sample of the call, as float32 ``(n,)``.

        :raises InputError: If there are more or fewer numbers than images.
        """
        array = np.asarray(value, np.float32)
        if array.shape not in ((), (self.total,)):
            raise InputError(f"{name} must be one number or one for each of {self.total} images, got {array.shape}")
        part = np.broadcast_to(array, (len(self.ids),)) if array.ndim == 0 else array[self.rows]
        return torch.from_numpy(part.copy()).to(self.x.device)


@dataclass(frozen=True)
class Cost:
    """Passes per sample of the last run."""

    forward: NDArray[np.int64]
    backward: NDArray[np.int64]


class StoredPixelAttack(EvasionAttack):  # type: ignore[misc]  # ART ships no types
    """Base of the attacks on :class:`~art_medical.estimators.classifier.MedicalClassifier`.

    ``generate`` checks images, labels and mask, hands batches to :meth:`_attack`, and afterwards checks for itself
    that the result is inside domain and mask. What an attack did is in :attr:`record` and :attr:`cost`. Channels that
    the estimator declares as not attackable come back unchanged, whatever the mask says.
    """

    facts: ClassVar[Facts]

    chooses_place = False
    """Whether the attack decides where it changes an image; such an attack takes no mask."""

    attack_params = [*EvasionAttack.attack_params, "targeted", "quantise", "batch_size", "seed", "verbose"]
    _estimator_requirements = (MedicalClassifier,)

    def __init__(
        self,
        estimator: MedicalClassifier,
        *,
        targeted: bool,
        quantise: bool,
        batch_size: int,
        seed: int,
        verbose: bool,
    ) -> None:
        super().__init__(estimator=estimator)
        self._targeted = targeted
        self.quantise = quantise
        self.batch_size = batch_size
        self.seed = seed
        self.verbose = verbose
        self.record: Record | None = None

    @property
    def cost(self) -> Cost:
        """Forward and backward passes per sample of the last run.

        :raises InputError: Before the first run.
        """
        if self.record is None:
            raise InputError("the attack has not run yet: call generate first")
        return Cost(self.record.forward, self.record.backward)

    def generate(self, x: NDArray[Any], y: NDArray[Any] | None = None, **kwargs: Any) -> NDArray[np.float32]:
        """Attacked images.

        :param x: Stored pixels ``(N, C, *spatial)``.
        :param y: True labels, or target labels when ``targeted``: class indices ``(N,)``, one-hot rows, or multi-hot
            rows of a multi-label model. ``None``: the model's own decisions (not when ``targeted``).
        :param kwargs: ``mask``: 1 (or true) where a pixel may change, broadcastable to ``x``. ``ids``: one name for
            each sample, which seeds it; by default its index.
        :return: float32, same shape as ``x``, on the storage grid when ``quantise``.
        :raises InputError: If an argument does not fit the estimator.
        """
        mask, ids = kwargs.pop("mask", None), kwargs.pop("ids", None)
        if kwargs:
            raise InputError(f"generate takes no argument {sorted(kwargs)[0]!r}; it takes x, y, mask and ids")
        images = self.estimator.check(x)
        classes = self._classes(images, y)
        names = [str(i) for i in range(len(images))] if ids is None else [str(i) for i in ids]
        if len(names) != len(images):
            raise InputError(f"got {len(names)} ids for {len(images)} images")
        allowed = self._mask(mask, images)
        result: NDArray[np.float32] = images.copy()
        records = []
        with inference(self.estimator.model):
            starts = range(0, len(images), self.batch_size)
            for start in track(starts, type(self).__name__, disable=not self.verbose, transient=True):
                rows = slice(start, start + self.batch_size)
                batch = Batch(
                    x=self._tensor(images[rows]),
                    y=self._tensor(classes[rows]),
                    mask=None if allowed is None else self._tensor(allowed[rows]),
                    ids=names[rows],
                    rows=rows,
                    total=len(images),
                )
                found = self._attack(batch)
                records.append(self._recorded(batch, found))
                result[rows] = found.x.cpu().numpy()
        if records:
            self.record = Record.join(records)
        return result

    @abstractmethod
    def _attack(self, batch: Batch) -> Found:
        """Attack one batch; the model is in evaluation mode and its parameters need no gradient."""

    @property
    def domain(self) -> PixelDomain:
        """Domain of the estimator."""
        domain: PixelDomain = self.estimator.domain
        return domain

    @property
    def scores(self) -> Scores:
        """Stored pixels to decision logits, through the estimator's preprocessing defences."""
        module = self.estimator.module
        if not self.estimator.preprocessing_operations:
            return module  # type: ignore[no-any-return]
        return lambda x: module(self.estimator._apply_preprocessing(x, y=None, fit=False, no_grad=False)[0])

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.estimator.device)

    def _classes(self, x: NDArray[np.float32], y: NDArray[Any] | None) -> NDArray[np.int64]:
        if y is None:
            if self.targeted:
                raise InputError("a targeted attack needs y, the labels to reach")
            decisions: NDArray[np.int64] = self.estimator.predict(x, batch_size=self.batch_size).argmax(1)
            return decisions.astype(np.int64)
        classes: NDArray[np.int64] = self.estimator.encode(y).argmax(1).astype(np.int64)
        if len(classes) != len(x):
            raise InputError(f"got {len(classes)} labels for {len(x)} images")
        return classes

    def _mask(self, mask: NDArray[Any] | None, x: NDArray[np.float32]) -> NDArray[np.float32] | None:
        channels: NDArray[np.bool_] = self.estimator.module.attackable(torch.from_numpy(x[:1])).numpy()
        if mask is None:
            return None if channels.all() else np.broadcast_to(channels, x.shape).astype(np.float32)
        if self.chooses_place:
            raise InputError(f"{type(self).__name__} chooses its own place; mask is not supported")
        array = np.asarray(mask)
        if not np.isin(array, (0, 1)).all():
            raise InputError("a mask holds 0 (keep) and 1 (may change) only")
        try:
            return np.asarray(np.broadcast_to(array, x.shape) * channels, dtype=np.float32)
        except ValueError as error:
            raise InputError(f"a mask of shape {array.shape} does not fit images of shape {x.shape}") from error

    def _recorded(self, batch: Batch, found: Found) -> Record:
        delta = (found.x - batch.x).flatten(1)
        outside = (found.x < self.domain.low) | (found.x > self.domain.high)
        if batch.mask is not None:
            outside |= batch.mask == 0
        if bool((outside & (found.x != batch.x)).any()):
            raise ArtMedicalError(
                f"{type(self).__name__} left the domain or the mask: a fault of the attack, report it"
            )
        return Record(
            success=(found.distance < 0).cpu().numpy(),
            forward=found.forward.cpu().numpy(),
            backward=found.backward.cpu().numpy(),
            zero_gradient=found.zero_gradient.cpu().numpy(),
            unchanged=(~delta.any(1)).cpu().numpy(),
            linf=delta.abs().amax(1).double().cpu().numpy(),
            l2=delta.double().norm(dim=1).cpu().numpy(),
            traces=(tuple(found.trace),),
        )

    def _check_params(self) -> None:
        for name in ("targeted", "quantise", "verbose"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise InputError(f"batch_size must be a positive whole number, got {self.batch_size!r}")
        if not isinstance(self.seed, int):
            raise InputError(f"seed must be a whole number, got {self.seed!r}")
