# SPDX-License-Identifier: Apache-2.0
"""Few-pixel attack beside that of torchattacks: with as many queries allowed it fools no fewer images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import art_medical
from art_medical.attacks import FewPixel
from art_medical.images.phantoms import PLANE


class UnitInterval(torch.nn.Module):
    """The classifier on images in [0, 1]."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.module(x * PLANE.domain.span + PLANE.domain.low)
        return logits


# 9 candidates and 10 generations of torchattacks are 99 queries; ours have as many, for three pixels 11 by 3 each.
@pytest.mark.parametrize(("pixels", "population", "generations"), [(1, 9, 10), (3, 11, 2)])
def test_not_weaker_than_torchattacks_with_equally_many_queries(pixels, population, generations):
    torchattacks = pytest.importorskip("torchattacks", reason="needs the package torchattacks")
    classifier = art_medical.load("phantom-nodule")
    x, _ = PLANE.sample(64, seed=3, split="interop")
    y = classifier.predict(x).argmax(1)
    # Decisions that a handful of random pixels overturns compare nothing.
    firm = np.abs(classifier.predict_logits(x)[:, 0]) > 3
    x, y = x[firm], y[firm]
    np.random.seed(0)  # noqa: NPY002  torchattacks draws from the global generator
    peer = torchattacks.OnePixel(UnitInterval(classifier.module.eval()), pixels=pixels, steps=10, popsize=10)
    unit = torch.from_numpy((x - PLANE.domain.low) / PLANE.domain.span)
    theirs = PLANE.domain.quantise(peer(unit, torch.from_numpy(y)).numpy() * PLANE.domain.span + PLANE.domain.low)
    attack = FewPixel(classifier, pixels=pixels, population=population, generations=generations)
    ours = attack.generate(x, y)
    assert (attack.cost.forward <= 1 + 99).all()
    for images in (ours, theirs):
        assert ((images != x).sum((1, 2, 3)) <= pixels).all()
    fooled = [int((classifier.predict(images).argmax(1) != y).sum()) for images in (ours, theirs)]
    assert fooled[0] >= fooled[1] > 0, fooled
