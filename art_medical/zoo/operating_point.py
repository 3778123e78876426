# SPDX-License-Identifier: Apache-2.0
"""The operating point of a binary model, fixed once on clean validation images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from art_medical.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def threshold_at_sensitivity(
    probabilities: NDArray[np.float64], positive: NDArray[np.bool_], sensitivity: float = 0.95
) -> float:
    """The operating point ``tau`` of a binary model, from clean validation images: positive if ``p > tau``.

    Let ``s`` be the largest score such that at least ``sensitivity`` of the positives have ``p >= s``. Every threshold
    from the next lower score of any image up to, but not including, ``s`` decides alike on these images; every higher
    one misses the target. The one returned is half-way between the two (half of ``s`` if no image scores lower), or the
    next lower score itself where floating point has nothing in between.

    :param probabilities: ``(N,)`` probability of the positive class, in [0, 1].
    :param positive: Boolean ``(N,)``, the truth.
    :param sensitivity: Target in (0, 1].
    :return: Threshold in (0, 1), as :class:`~art_medical.estimators.heads.Head` takes it.
    :raises InputError: If there is no positive image, or no threshold in (0, 1) reaches the target.
    """
    scores, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(positive, dtype=bool)
    if not 0 < sensitivity <= 1:
        raise InputError(f"the target sensitivity must lie in (0, 1], got {sensitivity}")
    if scores.ndim != 1 or scores.shape != truth.shape:
        raise InputError(f"every score needs one truth: got scores {scores.shape} and truth {truth.shape}")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise InputError("scores must be probabilities from 0 to 1")
    if not truth.any():
        raise InputError("no image is positive, so no threshold has a sensitivity: add positive validation images")
    count = int(truth.sum())
    needed = math.ceil(sensitivity * count - 1e-9)  # 0.07 * 100 is a little more than 7 in floating point
    lowest = float(np.sort(scores[truth])[count - needed])
    lower = float(scores[scores < lowest].max(initial=0.0))
    tau = lower + (lowest - lower) / 2
    tau = tau if tau < lowest else lower
    if not 0 < tau < 1:
        raise InputError(f"{needed} of {count} positives must pass but one of them scores {lowest}: lower the target")
    return tau
