# SPDX-License-Identifier: Apache-2.0
"""The operating point against cases worked out by hand, its defining property, and the head that decides by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from art_medical.errors import InputError
from art_medical.estimators.heads import Head
from art_medical.zoo.operating_point import threshold_at_sensitivity


@pytest.mark.parametrize(
    ("scores", "truth", "target", "tau"),
    [
        ([0.9, 0.5, 0.1], [1, 1, 0], 1.0, 0.3),  # half-way between 0.1 and 0.5
        ([0.9, 0.5, 0.1], [1, 1, 0], 0.5, 0.7),  # one positive of two is enough
        ([0.9, 0.5, 0.1], [1, 1, 0], 0.51, 0.3),
        ([0.8, 0.6, 0.6, 0.2], [1, 1, 0, 0], 1.0, 0.4),  # a negative tied with the last positive passes too
        ([0.8, 0.6, 0.6, 0.2], [1, 1, 1, 0], 0.6, 0.4),  # tied positives pass together
        ([0.8, 0.7, 0.6], [1, 0, 1], 0.5, 0.75),  # a negative right below
        ([0.8, 0.6], [1, 1], 1.0, 0.3),  # no score is lower: half of the lowest
        ([1.0, np.nextafter(1, 0)], [1, 0], 1.0, np.nextafter(1, 0)),  # nothing in between
    ],
)
def test_threshold_by_hand(scores: list[float], truth: list[int], target: float, tau: float) -> None:
    assert threshold_at_sensitivity(np.array(scores), np.array(truth) == 1, target) == pytest.approx(tau, abs=1e-16)


@given(
    hnp.arrays(np.float64, st.integers(1, 30), elements=st.sampled_from([0.001, 0.1, 0.2, 0.5, 0.8, 0.9, 1.0])),
    st.floats(0.01, 1.0),
    st.data(),
)
def test_threshold_is_the_largest_that_reaches_the_target(
    scores: NDArray[np.float64], target: float, data: st.DataObject
) -> None:
    truth = data.draw(hnp.arrays(np.bool_, len(scores)).filter(np.any))
    tau = threshold_at_sensitivity(scores, truth, target)
    assert 0 < tau < 1
    assert (scores[truth] > tau).mean() >= target - 1e-9
    higher = np.unique(scores[scores > tau])  # every larger threshold that decides differently
    assert all((scores[truth] > t).mean() < target for t in higher)


def test_threshold_counts_whole_images() -> None:
    """0.07 x 100 exceeds 7 in floating point; 7 of 100 positives still reach 7 %."""
    scores = np.arange(1, 101) / 101
    tau = threshold_at_sensitivity(scores, np.ones(100, dtype=bool), 0.07)
    assert int((scores > tau).sum()) == 7


@pytest.mark.parametrize("scale", [0.01, 1.0, 20.0])
def test_the_head_decides_as_the_threshold_promised(scale: float) -> None:
    """Float32 decision logits, confident and hesitant networks: no image changes sides on the way through the head."""
    rng = np.random.default_rng(0)
    truth = rng.random(400) < 0.3
    z = (scale * (rng.normal(size=400) + truth)).astype(np.float32)[:, None]
    free = Head(kind="one-logit", labels=("no", "yes"))
    tau = threshold_at_sensitivity(free.probabilities(z)[:, 1], truth)
    for head, logits in (
        (Head(kind="one-logit", labels=("no", "yes"), thresholds=(tau,)), z),
        (Head(kind="softmax", labels=("no", "yes"), thresholds=(tau,)), np.concatenate([-z / 2, z / 2], axis=1)),
    ):
        decided = head.decision_logits(torch.from_numpy(logits)).argmax(1).numpy() == 1
        assert decided.tolist() == (free.probabilities(z)[:, 1] > tau).tolist()
        assert decided[truth].sum() == np.ceil(0.95 * truth.sum())


@pytest.mark.parametrize(
    ("scores", "truth", "target", "message"),
    [
        ([0.5], [0], 0.95, "no image is positive"),
        ([0.5], [1], 0.0, r"must lie in \(0, 1\], got 0.0"),
        ([0.0, 0.9], [1, 1], 1.0, "2 of 2 positives must pass but one of them scores 0.0"),
        ([1.5], [1], 0.95, "scores must be probabilities from 0 to 1"),
        ([np.nan], [1], 0.95, "scores must be probabilities from 0 to 1"),
        ([0.5, 0.6], [1], 0.95, r"got scores \(2,\) and truth \(1,\)"),
    ],
)
def test_threshold_refuses(scores: list[float], truth: list[int], target: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        threshold_at_sensitivity(np.array(scores), np.array(truth) == 1, target)
