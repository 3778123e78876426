# SPDX-License-Identifier: Apache-2.0
"""Small trained MONAI networks, one for each head and number of dimensions, and images that they are sure of."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.networks.nets import DenseNet
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from art_medical.domain import PixelDomain
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.heads import Head
from art_medical.estimators.steps import Normalise, Rescale, Step, Window

HEADS: dict[str, Head] = {
    "softmax-2": Head(kind="softmax", labels=("clear", "lesion")),
    "softmax-3": Head(kind="softmax", labels=("left", "middle", "right")),
    "one-logit": Head(kind="one-logit", labels=("clear", "lesion"), thresholds=(0.3,)),
    "multi-label": Head(kind="multi-label", labels=("left", "middle", "right"), thresholds=(0.5, 0.4, 0.6)),
}
SHAPES: dict[int, tuple[int, ...]] = {2: (1, 16, 16), 3: (1, 8, 8, 8)}
DOMAINS = {2: PixelDomain(0, 255), 3: PixelDomain(-1024, 3071, unit="HU")}
STEPS: dict[int, tuple[Step, ...]] = {
    2: (Rescale(scale=1 / 255), Normalise(mean=(0.5,), std=(0.25,))),
    3: (Window(centre=40, width=400, low=-1, high=1),),
}
# What the networks see of it: all grey levels, in 3-D the window.
SEEN = {2: (0.0, 255.0), 3: (-160.0, 240.0)}
# Background and contrast of a lesion, in the unit of the domain; in 3-D the background is soft tissue.
LEVELS = {2: (100.0, 60.0), 3: (0.0, 100.0)}


class Case(NamedTuple):
    """A classifier and images whose decisions are certain enough to mean something and not so certain as to be stuck.

    :ivar x: Four images ``(4, C, *spatial)``, float32, not all of one decision.
    :ivar other: For each image another one with a different decision, which decision-based attacks start from.
    :ivar seen: Range of pixels that the network tells apart.
    :ivar eps: A budget, in the unit of the pixels: 0.4 of the contrast of a lesion.
    """

    classifier: MedicalClassifier
    x: NDArray[np.float32]
    other: NDArray[np.float32]
    seen: tuple[float, float]
    eps: float


def _places(shape: tuple[int, ...]) -> list[NDArray[np.float32]]:
    """Three lesions: Gaussian spots on the left, in the middle and on the right."""
    size = shape[-1]
    axes = np.meshgrid(*(np.arange(s) for s in shape[1:]), indexing="ij")
    spots = []
    for column in (0.2, 0.5, 0.8):
        centre = [(size - 1) / 2] * (len(axes) - 1) + [(size - 1) * column]
        distance = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True))
        spots.append(np.exp(-distance / (2 * (size / 8) ** 2)).astype(np.float32)[None])
    return spots


def draw(head: str, dimensions: int, n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """``n`` images with noise and their ground truth: class numbers, or multi-hot rows for the multi-label head."""
    rng = np.random.default_rng(seed)
    shape = SHAPES[dimensions]
    background, contrast = LEVELS[dimensions]
    if head == "multi-label":
        present = rng.integers(0, 2, (n, 3))
        y = present
    elif head == "softmax-3":
        y = rng.integers(0, 3, n)
        present = np.eye(3, dtype=np.int64)[y]
    else:
        y = rng.integers(0, 2, n)
        present = y[:, None] * np.array([[0, 1, 0]])
    x = rng.normal(background, contrast / 6, (n, *shape))
    x += contrast * np.einsum("nk,k...->n...", present, np.stack(_places(shape)))
    domain = DOMAINS[dimensions]
    return x.round().clip(domain.low, domain.high).astype(np.float32), y


def _train(classifier: MedicalClassifier, x: NDArray[np.float32], y: NDArray[np.int64]) -> None:
    """Full-batch Adam until the mean loss is 0.05: right on nearly all images, far from saturated."""
    module = classifier.module.train()
    inputs, targets = torch.from_numpy(x), torch.from_numpy(classifier.encode(y))
    optimiser = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(100):
        loss = functional.cross_entropy(module(inputs), targets)
        if loss.item() < 0.05:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        for _ in range(20):  # the running statistics of the batch norms catch up with the weights
            module(inputs)
    module.eval()


def _partner(decisions: NDArray[np.int64], i: int) -> int:
    return int(np.flatnonzero(decisions != decisions[i])[0])


def untrained(head: str, dimensions: int, **changes: Any) -> MedicalClassifier:
    """The estimator of a case with seeded random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DenseNet(
            dimensions, 1, HEADS[head].outputs, init_features=4, growth_rate=4, block_config=(2, 2), bn_size=2
        )
    arguments: dict[str, Any] = {"domain": DOMAINS[dimensions], "head": HEADS[head], "steps": STEPS[dimensions]}
    return MedicalClassifier(network, input_shape=SHAPES[dimensions], **{**arguments, **changes})


def linear(head: Head) -> MedicalClassifier:
    """A linear model of seeded weights over 4 x 4 grey levels, behind a rescaling to [-1, 1]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = nn.Sequential(nn.Flatten(), nn.Linear(16, head.outputs))
    steps = (Rescale(scale=2 / 255, offset=-1),)
    return MedicalClassifier(network, domain=DOMAINS[2], head=head, input_shape=(1, 4, 4), steps=steps)


@cache
def case(head: str, dimensions: int) -> Case:
    """One trained network; a third of a second."""
    classifier = untrained(head, dimensions)
    _train(classifier, *draw(head, dimensions, 128, seed=1))
    x, _ = draw(head, dimensions, 64, seed=2)
    logits = classifier.predict(x)
    decisions = logits.argmax(1)
    certain = np.argsort(-np.diff(np.sort(logits, axis=1)[:, -2:]).ravel())
    # One image of each of the commonest decisions, taken in turn, among the more certain half.
    chosen: list[int] = []
    queues = [[i for i in certain[:48] if decisions[i] == d] for d in np.unique(decisions)]
    while len(chosen) < 4:
        chosen += [queue.pop(len(queue) // 2) for queue in queues if queue]
    chosen = chosen[:4]
    others = [chosen[_partner(decisions[chosen], k)] for k in range(4)]
    return Case(classifier, x[chosen], x[others], SEEN[dimensions], 0.4 * LEVELS[dimensions][1])
