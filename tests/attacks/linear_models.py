# SPDX-License-Identifier: Apache-2.0
"""Linear classifiers of several channels, and what the best change of each norm gains on them, in closed form."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from art_medical.domain import PixelDomain
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.heads import Head

DOMAIN = PixelDomain(0, 60)
SHAPES = {2: (3, 6, 7), 3: (2, 4, 5, 4)}
HEADS = {
    "one-logit": Head(kind="one-logit", labels=("no", "yes")),
    "softmax": Head(kind="softmax", labels=("no", "yes")),
    "three-classes": Head(kind="softmax", labels=("no", "yes", "never")),
    "multi-label": Head(kind="multi-label", labels=("yes", "always")),
}


class LinearModel:
    """``t = w . x + b`` decides, behind any head, with nothing else that could flip.

    :ivar w: Weights of one image.
    :ivar x: Stored images: some pixels at each face of the box.
    :ivar towards: For each image the sign of the change of ``t`` that its attacker wants.
    """

    def __init__(self, axes: int, head: str, n: int = 5) -> None:
        rng = np.random.default_rng(axes)
        shape = SHAPES[axes]
        self.w = rng.normal(size=shape)
        x = rng.integers(-10, 71, (n, *shape)).clip(DOMAIN.low, DOMAIN.high)
        self.x: NDArray[np.float32] = x.astype(np.float32)
        b = -float(np.median((self.x * self.w).sum(tuple(range(1, self.x.ndim)))))
        self.y = (self.statistic() + b > 0).astype(np.int64)
        self.towards = np.where(self.y == 1, -1, 1)
        rows = {
            "one-logit": ([1.0], [0.0]),
            "softmax": ([-0.5, 0.5], [0.0, 0.0]),
            "three-classes": ([-0.5, 0.5, 0.0], [0.0, 0.0, -1e5]),
            "multi-label": ([1.0, 0.0], [0.0, 1e5]),
        }
        factors, offsets = rows[head]
        linear = torch.nn.Linear(self.w.size, len(factors))
        linear.weight.data = torch.tensor(np.outer(factors, self.w.ravel()), dtype=torch.float32)
        linear.bias.data = torch.tensor(np.array(factors) * b + offsets, dtype=torch.float32)
        self.classifier = MedicalClassifier(
            torch.nn.Sequential(torch.nn.Flatten(), linear), domain=DOMAIN, head=HEADS[head], input_shape=shape
        )
        # Multi-label classes are numbers of label sets: "always" is in all of them.
        self.labels = self.y + 2 if head == "multi-label" else self.y

    def statistic(self, x: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
        """``w . x`` of images, by default the clean ones."""
        pixels = np.asarray(self.x if x is None else x, np.float64)
        return (pixels * self.w).sum(tuple(range(1, pixels.ndim)))

    def gained(self, attacked: NDArray[np.float32]) -> NDArray[np.float64]:
        """How far an attack moved the statistic the way that it wants."""
        return self.towards * (self.statistic(attacked) - self.statistic())

    def best(self, norm: str, eps: float, mask: NDArray[np.float64] | float = 1.0) -> NDArray[np.float64]:
        """Most that any change within budget, box and mask gains ``(n,)``.

        For whole budgets the best change in L-infinity, L-1 and L-0 is itself made of whole steps.
        """
        found = []
        for x, towards in zip(self.x.astype(np.float64), self.towards, strict=True):
            direction = np.sign(self.w) * towards
            room = np.where(direction > 0, DOMAIN.high - x, x - DOMAIN.low) * mask
            found.append(_best(norm, eps, abs(self.w), room))
        return np.array(found)


def _best(norm: str, eps: float, w: NDArray[np.float64], room: NDArray[np.float64]) -> float:
    if norm == "linf":
        return float((w * np.minimum(eps, room)).sum())
    if norm == "l0":
        return float(np.sort((w * room).sum(0).ravel())[::-1][: int(eps)].sum())
    w, room = w.ravel(), room.ravel()
    if norm == "l1":
        order = np.argsort(-w)
        before = np.concatenate([[0.0], np.cumsum(room[order])[:-1]])
        return float((w[order] * np.clip(eps - before, 0, room[order])).sum())
    below, above = 0.0, 1e6
    for _ in range(100):
        middle = (below + above) / 2
        fits = np.linalg.norm(np.minimum(middle * w, room)) <= eps
        below, above = (middle, above) if fits else (below, middle)
    return float((w * np.minimum(below * w, room)).sum())
