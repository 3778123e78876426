# SPDX-License-Identifier: Apache-2.0
"""The loop that goes on after success: which image it keeps, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from art_medical.attacks.joint_search import search_jointly
from art_medical.attacks.loop import Found
from art_medical.attacks.objectives import Objective
from art_medical.attacks.optimisers import SignSteps
from art_medical.attacks.perturbations import additive
from art_medical.domain import PixelDomain


class Near104(Objective):
    """Success is above 102.5, and the objective is lowest at 104."""

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        return (z[:, 0] - 104).abs()

    def distance(self, z: Tensor, y: Tensor) -> Tensor:
        return 102.5 - z[:, 0]


@pytest.mark.parametrize(
    ("confidence", "max_iter", "kept", "passes"),
    [
        (0.0, 2, 103, 3),  # looks at 100, 103, 106: the last is further, the second is better
        (0.0, 3, 103, 4),
        (2.0, 2, 106, 3),  # 103 is not far enough
        (4.0, 2, 106, 3),  # none is far enough: the nearest to it
        (math.inf, 3, 106, 4),
        (0.0, 0, 100, 1),
    ],
)
def test_of_the_wrong_images_the_best_is_kept(confidence, max_iter, kept, passes):
    x = torch.tensor([100.0, 110.0]).view(2, 1, 1, 1)
    seen = []

    def scores(x: Tensor, rows: Tensor) -> Tensor:
        seen.append(rows.tolist())
        return x.flatten(1)

    found = Found.nothing_yet(x)
    search_jointly(
        scores,
        additive("linf", x, torch.full((2,), 20.0), PixelDomain(0, 255), True, None),
        Near104(),
        SignSteps(torch.full((2,), 3.0)),
        torch.zeros(2, dtype=torch.int64),
        found,
        max_iter=max_iter,
        confidence=confidence,
    )
    assert float(found.x[0]) == kept and float(found.distance[0]) == 102.5 - kept
    assert int(found.forward[0]) == passes and int(found.backward[0]) == passes - 1
    if math.isfinite(confidence):  # the second image is wrong from the start, and leaves
        assert float(found.x[1]) == 110 and int(found.forward[1]) == 1
        assert seen == [[0, 1]] + [[0]] * max_iter
    else:
        assert seen == [[0, 1]] * (max_iter + 1)
