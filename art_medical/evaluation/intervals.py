# SPDX-License-Identifier: Apache-2.0
"""Estimates with their 95 % intervals: Wilson for rates, DeLong for AUROC, patients resampled for everything else.

Images of one patient are not independent. Wilson and DeLong assume that they are, so wherever a patient has several
images a second interval from resampled patients stands beside the first. With fewer than about twenty patients that
one is itself too narrow.

No interval here has zero width: where a method breaks down (all scores tied, AUROC of 0 or 1, resamples that do not
vary), a bound that holds for any distribution replaces it, or there is no interval, and ``method`` says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import norm, rankdata

from art_medical.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALPHA = 0.05
"""Probability that an interval may miss the truth, half of it on either side."""

DRAWS = 2000
"""Resamples of a bootstrap."""

_Z = float(norm.ppf(1 - ALPHA / 2))
_CELLS = 2_000_000  # largest array of one chunk of resamples, in elements


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval.

    :param value: Estimate, ``None`` when it is undefined, for instance a rate among no images.
    :param low: Lower bound, ``None`` when there is no interval.
    :param high: Upper bound, ``None`` when there is no interval.
    :param n: Images in the denominator; for AUROC the images of both classes.
    :param method: How the interval was made and, where it applies, why a fallback was needed.
    :param clustered_low: Lower bound from resampled patients, where a patient has several images.
    :param clustered_high: Upper bound from resampled patients, where a patient has several images.
    :raises InputError: If a number is not finite, or an interval is empty or does not contain the value.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str
    clustered_low: float | None = None
    clustered_high: float | None = None

    def __post_init__(self) -> None:
        if not all(math.isfinite(x) for x in (self.value, *self._bounds) if x is not None):
            raise InputError(f"an estimate must be finite, got {self.value} with bounds {self._bounds}; use None")
        for low, high in (self._bounds[:2], self._bounds[2:]):
            if low is None and high is None:
                continue
            if self.value is None or low is None or high is None or not low <= self.value <= high or low == high:
                raise InputError(f"[{low}, {high}] is no interval around {self.value}; report the value without one")

    @property
    def _bounds(self) -> tuple[float | None, float | None, float | None, float | None]:
        return self.low, self.high, self.clustered_low, self.clustered_high

    def to_json(self) -> dict[str, float | int | str | None]:
        """All fields under their names; what is undefined is ``None``."""
        return asdict(self)


def undefined(n: int, reason: str) -> Estimate:
    """An estimate without value, for ``n`` images, because of ``reason``."""
    return Estimate(None, None, None, n, f"undefined: {reason}")


# -- rates -------------------------------------------------------------------------------------------------------------


def wilson(successes: int, n: int) -> Estimate:
    """A rate with the score interval of Wilson (J. Am. Stat. Assoc. 22, 1927), without continuity correction.

    :param successes: Count, 0 to ``n``.
    :param n: Denominator; 0 gives an undefined estimate.
    :raises InputError: If the counts are impossible.
    """
    if not 0 <= successes <= n:
        raise InputError(f"a rate needs 0 <= successes <= n, got {successes} of {n}")
    if n == 0:
        return undefined(0, "no image in the denominator")
    rate = float(successes / n)
    return Estimate(rate, *_wilson_bounds(rate, n), int(n), "wilson")


def bootstrap_rate(successes: NDArray[np.bool_], groups: NDArray[Any], seed: int, draws: int = DRAWS) -> Estimate:
    """A rate with its Wilson interval and, if a group has several images, the bootstrap over groups beside it.

    Where resampled rates do not vary, for instance because there was no success at all, the clustered bounds are those
    of Wilson with each group counted as one image.

    :param successes: Boolean ``(N,)``, one entry for each image of the denominator.
    :param groups: Patient of each image, ``(N,)``.
    :param seed: Seed of the resampling.
    :param draws: Number of resamples.
    :raises InputError: If the lengths differ.
    """
    hits = np.asarray(successes, dtype=bool)
    codes, count = _codes(groups, len(hits))
    estimate = wilson(int(hits.sum()), len(hits))
    if count == len(hits) or estimate.value is None:
        return estimate
    bounds = _percentiles(_resampled_means(hits.astype(np.float64), codes, count, seed, draws), estimate.value)
    label = _bootstrap_label(count, seed, draws)
    if bounds is None:
        bounds = _wilson_bounds(estimate.value, count)
        label = f"wilson with n = {count} patients (resamples do not vary)"
    low, high = bounds
    return replace(estimate, method=f"wilson; clustered: {label}", clustered_low=low, clustered_high=high)


def _wilson_bounds(rate: float, n: int) -> tuple[float, float]:
    centre = (rate + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(rate * (1 - rate) / n + _Z**2 / (4 * n**2))
    low = 0.0 if rate == 0 else max(0.0, centre - half)
    return low, 1.0 if rate == 1 else min(1.0, centre + half)


# -- means -------------------------------------------------------------------------------------------------------------


def bootstrap_mean(values: NDArray[np.float64], groups: NDArray[Any], seed: int, draws: int = DRAWS) -> Estimate:
    """Mean over images with the percentile interval of a bootstrap over groups (Efron & Tibshirani 1993, ch. 13).

    Paired differences, for instance of correctness after and before an attack, are values like any others.

    :param values: Finite numbers ``(N,)``.
    :param groups: Patient of each image, ``(N,)``; all images of a resampled patient come together.
    :param seed: Seed of the resampling.
    :param draws: Number of resamples.
    :return: Without interval if there is one group only or resampled means do not vary.
    :raises InputError: If the lengths differ or a value is not finite.
    """
    numbers = _finite(values)
    codes, count = _codes(groups, len(numbers))
    if not len(numbers):
        return undefined(0, "no image")
    # The order of the sum is that of the values: shuffled images give the same bits.
    value = float(np.sort(numbers).sum() / len(numbers))
    bounds = _percentiles(_resampled_means(numbers, codes, count, seed, draws), value)
    if bounds is None:
        return Estimate(value, None, None, len(numbers), f"no interval: means of {count} patients do not vary")
    return Estimate(value, *bounds, len(numbers), _bootstrap_label(count, seed, draws))


def _resampled_means(
    numbers: NDArray[np.float64], codes: NDArray[np.int64], count: int, seed: int, draws: int
) -> NDArray[np.float64]:
    order = np.lexsort((numbers, codes))
    sums = np.bincount(codes[order], weights=numbers[order], minlength=count)
    sizes = np.bincount(codes, minlength=count).astype(np.float64)
    # No matrix product: its rounding depends on the number of threads.
    return np.concatenate(
        [(times * sums).sum(1) / (times * sizes).sum(1) for times in _resamples(count, count, seed, draws)]
    )


# -- AUROC -------------------------------------------------------------------------------------------------------------


def delong(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> Estimate:
    """AUROC with the interval of DeLong, DeLong & Clarke-Pearson (Biometrics 44, 1988), clipped to [0, 1].

    The placement values come from mid-ranks (Sun & Xu, IEEE Signal Process. Lett. 21, 2014), so that a tie counts one
    half. Where the variance is zero or undefined a bound for any distribution takes its place, over ``k``, the size of
    the smaller class: see :func:`_any_distribution`.

    :param scores: Finite numbers ``(N,)``; only their order matters.
    :param positive: Boolean ``(N,)``.
    :return: Undefined if a class is absent.
    :raises InputError: If the lengths differ or a score is not finite.
    """
    numbers, truth = _scored(scores, positive)
    m, n = int(truth.sum()), int((~truth).sum())
    if m == 0 or n == 0:
        return undefined(m + n, f"no {'positive' if m == 0 else 'negative'} image")
    ranks = rankdata(numbers)
    value = float((ranks[truth].sum() - m * (m + 1) / 2) / (m * n))
    above = np.sort(ranks[truth] - rankdata(numbers[truth])) / n
    below = np.sort(ranks[~truth] - rankdata(numbers[~truth])) / m
    if min(m, n) < 2 or (np.ptp(above) == 0 and np.ptp(below) == 0):
        low, high, why = _any_distribution(value, min(m, n))
        return Estimate(value, low, high, m + n, f"{why} (DeLong variance is zero or undefined)")
    error = _Z * math.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n)
    return Estimate(value, max(0.0, value - error), min(1.0, value + error), m + n, "delong")


def bootstrap_auroc(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], groups: NDArray[Any], seed: int, draws: int = DRAWS
) -> Estimate:
    """AUROC with its DeLong interval and, if a group has several images, the bootstrap over groups beside it.

    :param scores: Finite numbers ``(N,)``.
    :param positive: Boolean ``(N,)``.
    :param groups: Patient of each image, ``(N,)``.
    :param seed: Seed of the resampling.
    :param draws: Number of resamples; those without either class are left out.
    :raises InputError: If the lengths differ or a score is not finite.
    """
    numbers, truth = _scored(scores, positive)
    codes, count = _codes(groups, len(numbers))
    estimate = delong(numbers, truth)
    if count == len(numbers) or estimate.value is None:
        return estimate
    resampled = _resampled_macro(numbers[:, None], truth[:, None], codes, count, seed, draws)
    bounds = _percentiles(resampled, estimate.value)
    label = _bootstrap_label(count, seed, draws)
    if bounds is None:
        low, high, label = _any_distribution(estimate.value, _independent_pairs(truth, codes))
        bounds = low, high
    method = f"{estimate.method}; clustered: {label}"
    return replace(estimate, method=method, clustered_low=bounds[0], clustered_high=bounds[1])


def bootstrap_macro_auroc(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], groups: NDArray[Any], seed: int, draws: int = DRAWS
) -> Estimate:
    """Unweighted mean of the AUROC of K columns, with the percentile interval of a bootstrap over groups.

    A column in which one class is absent has no AUROC and is left out, of the value and of each resample; ``method``
    counts the columns in the value. If resamples do not vary, the bounds are the means of the columns' bounds for any
    distribution at level ``1 - ALPHA / K``, which hold together.

    :param scores: Finite numbers ``(N, K)``.
    :param positive: Boolean ``(N, K)``.
    :param groups: Patient of each image, ``(N,)``.
    :param seed: Seed of the resampling.
    :param draws: Number of resamples.
    :return: Undefined if no column has both classes.
    :raises InputError: If the shapes differ or a score is not finite.
    """
    numbers, truth = _scored(scores, positive)
    codes, count = _codes(groups, len(numbers))
    defined = [k for k in range(numbers.shape[1]) if 0 < truth[:, k].sum() < len(truth)]
    name = f"macro over {len(defined)} of {numbers.shape[1]} labels"
    if not defined:
        return undefined(len(numbers), f"{name} with both classes")
    once = np.ones((1, len(numbers)))
    values = [float(_weighted_auroc(numbers[:, k], truth[:, k], once)[0]) for k in defined]
    value = sum(values) / len(values)
    bounds = _percentiles(_resampled_macro(numbers, truth, codes, count, seed, draws), value)
    if bounds is not None:
        return Estimate(value, *bounds, len(numbers), f"{name}; {_bootstrap_label(count, seed, draws)}")
    each = [
        _any_distribution(v, _independent_pairs(truth[:, k], codes), ALPHA / len(defined))
        for k, v in zip(defined, values, strict=True)
    ]
    low, high = min(value, sum(e[0] for e in each) / len(each)), max(value, sum(e[1] for e in each) / len(each))
    return Estimate(value, low, high, len(numbers), f"{name}; mean of bounds for any distribution, Bonferroni")


def _any_distribution(value: float, pairs: int, alpha: float = ALPHA) -> tuple[float, float, str]:
    """Bounds of an AUROC that hold for any distribution of the scores, and their name.

    ``pairs`` is the number of independent pairs of a positive and a negative. If the AUROC is 1, every one of them is
    in order, which has a probability of at most ``AUROC ** pairs``: the lower bound is that of Clopper and Pearson,
    ``(alpha / 2) ** (1 / pairs)``; an AUROC of 0 is its mirror image. Otherwise Hoeffding's inequality for two-sample
    U-statistics applies (J. Am. Stat. Assoc. 58, 1963, section 5).
    """
    if pairs < 1:
        return 0.0, 1.0, "no independent pair, no bound better than [0, 1]"
    if value in (0.0, 1.0):
        bound = (alpha / 2) ** (1 / pairs)
        low, high = (bound, 1.0) if value == 1 else (0.0, 1 - bound)
        return low, high, f"exact binomial bound from {pairs} independent pairs"
    half = math.sqrt(math.log(2 / alpha) / (2 * pairs))
    return max(0.0, value - half), min(1.0, value + half), f"Hoeffding bound from {pairs} independent pairs"


def _independent_pairs(truth: NDArray[np.bool_], codes: NDArray[np.int64]) -> int:
    """Most pairs of a positive and a negative image in which no patient occurs twice."""
    with_positive, with_negative = set(codes[truth].tolist()), set(codes[~truth].tolist())
    return min(len(with_positive), len(with_negative), len(with_positive | with_negative) // 2)


def _resampled_macro(
    scores: NDArray[np.float64],
    truth: NDArray[np.bool_],
    codes: NDArray[np.int64],
    count: int,
    seed: int,
    draws: int,
) -> NDArray[np.float64]:
    """Macro AUROC of each resample in which any column of ``(N, K)`` has both classes."""
    means = []
    for times in _resamples(count, len(codes), seed, draws):
        weights = times[:, codes]
        columns = [_weighted_auroc(scores[:, k], truth[:, k], weights) for k in range(scores.shape[1])]
        defined = np.isfinite(columns)
        some = defined.any(0)
        means.append(np.where(defined, columns, 0.0).sum(0)[some] / defined.sum(0)[some])
    return np.concatenate(means)


def _weighted_auroc(
    scores: NDArray[np.float64], truth: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """AUROC ``(D,)`` for image weights ``(D, N)``, NaN where a class has no weight; a tie counts one half."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    ordered = weights[:, order]
    positives = np.add.reduceat(ordered * truth[order], starts, axis=1)
    negatives = np.add.reduceat(ordered * ~truth[order], starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    with np.errstate(invalid="ignore"):
        result: NDArray[np.float64] = (positives * below).sum(1) / (positives.sum(1) * negatives.sum(1))
    return result


# -- resampling --------------------------------------------------------------------------------------------------------


def _resamples(count: int, width: int, seed: int, draws: int) -> Iterator[NDArray[np.float64]]:
    """How often each of ``count`` groups occurs in each resample, ``(chunk, count)``, in chunks of bounded memory."""
    generator = np.random.default_rng(seed)
    rows = max(1, _CELLS // max(count, width))
    for start in range(0, draws, rows):
        chunk = min(rows, draws - start)
        picks = generator.integers(count, size=(chunk, count)) + count * np.arange(chunk)[:, None]
        yield np.bincount(picks.ravel(), minlength=chunk * count).reshape(chunk, count).astype(np.float64)


def _percentiles(resampled: NDArray[np.float64], value: float) -> tuple[float, float] | None:
    """Percentile bounds, widened to contain ``value``, or ``None`` when resamples differ by rounding only."""
    if not len(resampled):
        return None
    low, high = np.quantile(resampled, (ALPHA / 2, 1 - ALPHA / 2))
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        return None
    return min(float(low), value), max(float(high), value)


def _bootstrap_label(count: int, seed: int, draws: int) -> str:
    return f"percentile bootstrap of {count} patients, {draws} draws, seed {seed}"


# -- arguments ---------------------------------------------------------------------------------------------------------


def _codes(groups: NDArray[Any], n: int) -> tuple[NDArray[np.int64], int]:
    """Number of the group of each image, ``(N,)``, and the number of groups."""
    if np.shape(groups) != (n,):
        raise InputError(f"every image needs one group: got {n} images and groups of shape {np.shape(groups)}")
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    return codes.astype(np.int64), len(names)


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise InputError(f"{int((~np.isfinite(numbers)).sum())} of {numbers.size} numbers are NaN or infinite")
    return numbers


def _scored(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    numbers, truth = _finite(scores), np.asarray(positive, dtype=bool)
    if numbers.shape != truth.shape:
        raise InputError(f"every score needs one truth: got scores {numbers.shape} and truth {truth.shape}")
    return numbers, truth
