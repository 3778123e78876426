# SPDX-License-Identifier: Apache-2.0
"""Heads: how the numbers that a network returns become the decision that ART attacks and a clinic acts on.

ART decides by arg-max. A head therefore shows ART *decision logits* whose arg-max is the decision at the operating
point of the device and whose softmax is the model's own probability, moved to that operating point:

- ``softmax``: K >= 2 exclusive classes, ``Z = z``; for K = 2 with a threshold ``tau``, ``Z_1 = z_1 - logit(tau)``.
- ``one-logit``: ``Z = (-z/2, z/2)`` with ``z <- z - logit(tau)``.
- ``multi-label``: K independent labels. Each of the ``2**K`` sets of labels is one class,
  ``Z_S = 1/2 sum_k s_k z_k`` with ``s_k = +1`` for ``k`` in ``S`` and ``-1`` otherwise. This is no approximation:
  ``softmax(Z)_S = prod_k sigmoid(s_k z_k)``, cross-entropy on it is the sum of the binary cross-entropies, its margin
  is the distance of the label that flips first, and its arg-max is the vector of decisions. Class ``S`` has the number
  ``sum_k 2**k [k in S]``.

The symmetric pair is the label-set head for K = 1. Unlike ``(0, z)`` it keeps a gradient for confident positives in
float32.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from art_medical.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

MOST_LABELS = 14
"""Most independent labels that one label-set view may have (2**14 = 16,384 classes); ``view`` takes fewer of them."""


@cache
def _half_signs(outputs: int) -> NDArray[np.float32]:
    """``(2**outputs, outputs)``: +1/2 where the label is in the set, -1/2 where it is not."""
    sets = np.arange(2**outputs)[:, None] >> np.arange(outputs)[None, :] & 1
    return (sets - 0.5).astype(np.float32)


class Head(BaseModel):
    """What the outputs of a network mean.

    :param kind: ``softmax``, ``one-logit`` or ``multi-label``.
    :param labels: Names. ``softmax``: one for each class; ``one-logit``: negative, positive; ``multi-label``: one for
        each finding.
    :param thresholds: Operating point as probabilities in (0, 1): one value for a binary model, one for each label of a
        multi-label model, ``None`` for 0.5 (or arg-max).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["softmax", "one-logit", "multi-label"]
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    thresholds: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Head:
        count = len(self.labels)
        if len(set(self.labels)) != count:
            raise ValueError(f"label names repeat: {self.labels}")
        if self.kind == "softmax" and count < 2:
            raise ValueError("a softmax head needs two labels or more")
        if self.kind == "one-logit" and count != 2:
            raise ValueError(f"a one-logit head needs a negative and a positive label, got {self.labels}")
        if self.kind == "multi-label" and count > MOST_LABELS:
            raise ValueError(f"{count} labels give 2**{count} label sets; at most {MOST_LABELS} can be shown at once")
        expected = 1 if self.binary else count
        if self.thresholds is not None:
            if self.kind == "softmax" and count > 2:
                raise ValueError("a softmax head with more than two classes decides by arg-max and has no threshold")
            if len(self.thresholds) != expected:
                raise ValueError(f"expected {expected} threshold(s), got {len(self.thresholds)}")
        return self

    @property
    def binary(self) -> bool:
        """Whether the model takes one yes-or-no decision."""
        return self.kind == "one-logit" or (self.kind == "softmax" and len(self.labels) == 2)

    @property
    def outputs(self) -> int:
        """Number of outputs that the network must have."""
        return 1 if self.kind == "one-logit" else len(self.labels)

    @property
    def nb_classes(self) -> int:
        """Number of classes that ART sees."""
        return len(self.labels) if self.kind == "softmax" else 1 << self.outputs

    @property
    def shifts(self) -> tuple[float, ...]:
        """``logit(tau)`` for each threshold, 0 where there is none."""
        if self.thresholds is None:
            return (0.0,) * (1 if self.binary else self.outputs)
        return tuple(math.log(tau) - math.log1p(-tau) for tau in self.thresholds)

    def decision_logits(self, logits: Tensor) -> Tensor:
        """Network logits ``(N, outputs)`` to the decision logits ``(N, nb_classes)`` that ART sees."""
        if self.kind == "softmax":
            if self.thresholds is None:
                return logits
            return logits - logits.new_tensor((0.0, *self.shifts))
        shifted = logits - logits.new_tensor(self.shifts)
        return shifted @ shifted.new_tensor(_half_signs(self.outputs)).T

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Network logits to probabilities, before any threshold: ``(N, K)``, for one-logit models ``(N, 2)``."""
        from scipy.special import expit, softmax

        z = logits.astype(np.float64)
        if self.kind == "softmax":
            return np.asarray(softmax(z, axis=1))
        positive = np.asarray(expit(z))
        return np.concatenate([1 - positive, positive], axis=1) if self.kind == "one-logit" else positive

    def encode(self, y: ArrayLike) -> NDArray[np.float32]:
        """Ground truth to the one-hot classes ``(N, nb_classes)`` that ART attacks take.

        :param y: Class index ``(N,)`` or ``(N, 1)``, one-hot ``(N, nb_classes)``, or for multi-label models multi-hot
            ``(N, K)``.
        :raises InputError: If a value is not a label of this head.
        """
        labels = np.asarray(y)
        if labels.dtype == bool:
            labels = labels.astype(np.int64)
        if self.kind == "multi-label" and labels.ndim == 2 and labels.shape[1] == self.outputs:
            odd = labels[~np.isin(labels, (0, 1))]
            if odd.size:
                raise InputError(f"multi-hot labels must be 0 or 1, got {odd[0]} for {self.describe()}")
            labels = (labels.astype(np.int64) << np.arange(self.outputs)).sum(1)
        elif labels.ndim == 2 and labels.shape[1] == self.nb_classes:
            if not (np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()):
                raise InputError("one-hot labels need exactly one 1 in each row")
            return labels.astype(np.float32)
        elif labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.number) or (labels != np.floor(labels)).any():
            raise InputError(f"cannot read labels of shape {np.shape(y)} and type {labels.dtype} for {self.describe()}")
        wrong = labels[(labels < 0) | (labels >= self.nb_classes)]
        if wrong.size:
            raise InputError(f"label {wrong[0]} is outside the model's card: it has {self.describe()}")
        return np.eye(self.nb_classes, dtype=np.float32)[labels.astype(np.int64)]

    def view(self, label: str | int) -> Head:
        """The head of the one-logit model that remains when only ``label`` of a multi-label model matters."""
        if self.kind != "multi-label":
            raise InputError(f"only multi-label models have one view for each label; this one has {self.describe()}")
        index = self.labels.index(label) if isinstance(label, str) and label in self.labels else label
        if not isinstance(index, int) or not 0 <= index < self.outputs:
            raise InputError(f"unknown label {label!r}; the model has {self.describe()}")
        threshold = None if self.thresholds is None else (self.thresholds[index],)
        name = self.labels[index]
        return Head(kind="one-logit", labels=(f"no {name}", name), thresholds=threshold)

    def describe(self) -> str:
        """The labels in words, for messages."""
        names = ", ".join(f"{i} = {name}" for i, name in enumerate(self.labels))
        return f"{len(self.labels)} {'independent labels' if self.kind == 'multi-label' else 'classes'} ({names})"
