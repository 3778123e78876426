# SPDX-License-Identifier: Apache-2.0
"""FMN against foolbox's implementation, which one of the authors wrote, at the same number of steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import art_medical
from art_medical.attacks import FastMinimumNorm
from art_medical.images.phantoms import PLANE

STEPS = 60
NORMS = {"LInf": np.inf, "L2": 2, "L1": 1, "L0": 0}


def norm_of(delta: np.ndarray, norm: float) -> np.ndarray:
    flat = delta.reshape(len(delta), -1).astype(float)
    return (np.abs(flat) > 1e-2).sum(1) if norm == 0 else np.linalg.norm(flat, norm, axis=1)


@pytest.mark.parametrize("name", NORMS)
def test_median_norm_is_not_larger_than_foolbox(name):
    foolbox = pytest.importorskip("foolbox", reason="needs the package foolbox")
    classifier = art_medical.load("phantom-nodule")
    high = classifier.domain.high
    x, _ = PLANE.sample(24, seed=12, split="peers")
    y = classifier.predict(x).argmax(1)

    class UnitInterval(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = classifier.module(x * high)
            return scores

    model = foolbox.PyTorchModel(UnitInterval().eval(), bounds=(0, 1), device="cpu")
    peer = getattr(foolbox.attacks, f"{name}FMNAttack")(steps=STEPS)
    attacked, _, fooled = peer(model, torch.from_numpy(x / high), torch.from_numpy(y), epsilons=None)
    theirs = np.where(fooled.numpy(), norm_of(attacked.numpy() * high - x, NORMS[name]), np.inf)

    attack = FastMinimumNorm(classifier, norm=NORMS[name], max_iter=STEPS - 1, quantise=False)
    attack.generate(x)
    assert (attack.cost.forward <= STEPS).all()  # what foolbox spends
    mine = np.where(attack.record.success, attack.record.norm, np.inf)
    # One part in a thousand, and one pixel: where both are at the optimum, their last digits differ.
    assert np.median(mine) <= np.median(theirs) * 1.001
    assert np.mean(mine <= theirs * 1.01 + (NORMS[name] == 0)) >= 0.9
