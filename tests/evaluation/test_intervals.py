# SPDX-License-Identifier: Apache-2.0
"""Intervals against published values, independent definitions, brute force and their own coverage."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, binomtest, norm
from sklearn.metrics import roc_auc_score

from art_medical.errors import InputError
from art_medical.evaluation import intervals
from art_medical.evaluation.intervals import (
    Estimate,
    bootstrap_auroc,
    bootstrap_macro_auroc,
    bootstrap_mean,
    bootstrap_rate,
    delong,
    wilson,
)

Scored = tuple[NDArray[np.float64], NDArray[np.bool_]]


def scored(seed: int, m: int, n: int, shift: float = 1.0, levels: int | None = None) -> Scored:
    """m positives and n negatives from two normal distributions, shuffled, with ties if rounded to ``levels``."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.arange(m + n) < m)
    scores = rng.normal(size=m + n) + shift * truth
    return (scores if levels is None else np.round(scores * levels) / levels), truth


def names(n: int) -> NDArray[np.str_]:
    return np.array([f"p{i:04d}" for i in range(n)])


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def clustered(estimate: Estimate) -> tuple[float, float]:
    assert estimate.clustered_low is not None
    assert estimate.clustered_high is not None
    return estimate.clustered_low, estimate.clustered_high


# few levels: ties, separated classes and constant scores are all likely
ties = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=25).filter(
    lambda rows: len({positive for _, positive in rows}) == 2
)


def columns(rows: list[tuple[int, bool]]) -> Scored:
    return np.array([float(score) for score, _ in rows]), np.array([positive for _, positive in rows])


# -- the record --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "numbers",
    [
        (math.nan, None, None),
        (math.inf, None, None),
        (0.5, 0.5, 0.5),
        (0.5, 0.6, 0.7),
        (0.5, 0.4, None),
        (0.5, math.nan, 0.6),
        (0.5, -math.inf, 0.6),
        (None, 0.4, 0.6),
    ],
)
def test_no_estimate_holds_a_number_that_says_nothing(numbers: tuple[float | None, ...]) -> None:
    value, low, high = numbers
    with pytest.raises(InputError):
        Estimate(value, low, high, 10, "made up")
    if value is not None and math.isfinite(value):
        with pytest.raises(InputError):
            Estimate(value, None, None, 10, "made up", clustered_low=low, clustered_high=high)


def test_json_has_plain_numbers_and_every_field() -> None:
    record = wilson(int(np.int64(3)), int(np.int64(4))).to_json()
    text = json.dumps(record, allow_nan=False)
    assert json.loads(text) == record
    assert list(record) == ["value", "low", "high", "n", "method", "clustered_low", "clustered_high"]
    assert (type(record["value"]), type(record["low"]), type(record["n"])) == (float, float, int)
    assert wilson(0, 0).to_json() == {
        "value": None,
        "low": None,
        "high": None,
        "n": 0,
        "method": "undefined: no image in the denominator",
        "clustered_low": None,
        "clustered_high": None,
    }


# -- Wilson ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n", "percent"), [(98, 100, (93.0, 99.4)), (0, 100, (0, 3.7)), (0, 200, (0, 1.9))])
def test_wilson_published_values(k: int, n: int, percent: tuple[float, float]) -> None:
    assert tuple(round(100 * bound, 1) for bound in bounds(wilson(k, n))) == percent


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_the_inverted_score_test(counts: tuple[int, int]) -> None:
    k, n = counts
    estimate = wilson(k, n)
    reference = binomtest(k, n).proportion_ci(method="wilson")
    assert bounds(estimate) == pytest.approx((reference.low, reference.high), abs=1e-12)
    for bound in bounds(estimate):  # definition: the rates that a score test at 5 % just does not reject
        z = norm.ppf(0.975) * math.sqrt(bound * (1 - bound) / n)
        assert abs(k / n - bound) == pytest.approx(z, abs=1e-9)
    low, high = bounds(wilson(n - k, n))
    assert bounds(estimate) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_coverage_computed_exactly() -> None:
    """Sum of the binomial probabilities of all counts whose interval holds the true rate; no simulation needed."""
    rates = np.linspace(0.02, 0.98, 97)
    limits = np.array([bounds(wilson(k, 50)) for k in range(51)])
    held = (limits[:, :1] <= rates) & (rates <= limits[:, 1:])
    coverage = (binom.pmf(np.arange(51)[:, None], 50, rates) * held).sum(0)
    assert coverage.mean() == pytest.approx(0.95, abs=0.005)
    assert coverage.min() > 0.92


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (1, 0)])
def test_wilson_refuses_impossible_counts(k: int, n: int) -> None:
    with pytest.raises(InputError, match=f"got {k} of {n}"):
        wilson(k, n)


# -- DeLong ------------------------------------------------------------------------------------------------------------


def brute_force(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> tuple[float, float]:
    """AUROC and its DeLong variance from all pairs, as the paper defines them."""
    positives, negatives = scores[truth], scores[~truth]
    kernel = [[1.0 if x > y else 0.5 if x == y else 0.0 for y in negatives] for x in positives]
    area = sum(map(sum, kernel)) / (len(positives) * len(negatives))
    v10 = [sum(row) / len(negatives) for row in kernel]
    v01 = [sum(column) / len(positives) for column in zip(*kernel, strict=True)]
    s10 = sum((v - area) ** 2 for v in v10) / (len(positives) - 1)
    s01 = sum((v - area) ** 2 for v in v01) / (len(negatives) - 1)
    return area, s10 / len(positives) + s01 / len(negatives)


def test_delong_by_hand() -> None:
    """Placement values (1/2, 1) and (1, 1/2): both variances 1/8, so the variance is 1/16 + 1/16 = 1/8."""
    estimate = delong(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    assert estimate.value == 0.75
    assert bounds(estimate) == pytest.approx((0.75 - 1.959964 / math.sqrt(8), 1.0), abs=1e-6)
    assert (estimate.n, estimate.method) == (4, "delong")


@pytest.mark.parametrize("levels", [None, 2, 1])
@pytest.mark.parametrize("sizes", [(2, 2), (3, 40), (60, 25)])
def test_delong_equals_all_pairs_and_scikit_learn(sizes: tuple[int, int], levels: int | None) -> None:
    for seed in range(5):
        scores, truth = scored(seed, *sizes, shift=0.3, levels=levels)
        estimate = delong(scores, truth)
        assert estimate.value == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
        area, variance = brute_force(scores, truth)
        assert estimate.value == pytest.approx(area, abs=1e-12)
        if variance == 0:  # 2 + 2 images: all tied, or separated
            assert "DeLong variance is zero" in estimate.method
            continue
        error = norm.ppf(0.975) * math.sqrt(variance)
        assert bounds(estimate) == pytest.approx((max(0, area - error), min(1, area + error)), abs=1e-12)


def test_delong_agrees_with_the_bootstrap() -> None:
    scores, truth = scored(3, 150, 250, shift=0.8, levels=4)
    resampled = bootstrap_macro_auroc(scores[:, None], truth[:, None], names(400), seed=0)
    assert bounds(delong(scores, truth)) == pytest.approx(bounds(resampled), abs=0.006)


def test_delong_coverage() -> None:
    """Two normal distributions one deviation apart: AUROC = Phi(1 / sqrt(2))."""
    area = norm.cdf(1 / math.sqrt(2))
    held = 0
    for seed in range(1000):
        low, high = bounds(delong(*scored(seed, 30, 70)))
        held += low <= area <= high
    assert 0.92 <= held / 1000 <= 0.97


@given(ties, st.randoms(use_true_random=False))
def test_delong_properties(rows: list[tuple[int, bool]], random: Any) -> None:
    scores, truth = columns(rows)
    estimate = delong(scores, truth)
    low, high = bounds(estimate)
    assert estimate.value is not None
    assert 0 <= low <= estimate.value <= high <= 1
    assert low < high
    assert delong(np.exp(scores / 2) - 7, truth) == estimate  # only the order counts
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert delong(*columns(shuffled)) == estimate
    mirrored = delong(scores, ~truth)
    assert mirrored.value == pytest.approx(1 - estimate.value, abs=1e-12)
    assert bounds(mirrored) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    assert mirrored.method == estimate.method


def test_delong_of_separated_classes_is_exact_and_conservative() -> None:
    """Were the AUROC at the lower bound, separation would occur in at most 2.5 % of samples."""
    estimate = delong(np.arange(11.0), np.arange(11) >= 6)
    low, high = bounds(estimate)
    assert (estimate.value, high) == (1.0, 1.0)
    assert low == pytest.approx(0.025**0.2, abs=1e-12)  # the smaller class has 5
    assert low == pytest.approx(binomtest(5, 5).proportion_ci(method="exact").low, abs=1e-9)
    assert estimate.method.startswith("exact binomial bound from 5 independent pairs")
    rng = np.random.default_rng(0)
    shift = math.sqrt(2) * norm.ppf(low)
    separated = (rng.normal(shift, size=(20_000, 5)).min(1) > rng.normal(size=(20_000, 6)).max(1)).mean()
    assert separated <= 0.025


@pytest.mark.parametrize(
    ("scores", "truth", "value", "interval"),
    [
        # all tied: Hoeffding with k = 8, half-width sqrt(ln 40 / 16)
        ([1.0] * 20, [True] * 8 + [False] * 12, 0.5, (0.5 - 0.480161, 0.5 + 0.480161)),
        ([3, 1, 2, 4], [True, False, False, False], 2 / 3, (0, 1)),  # one positive inside the negatives
        ([9, 1, 2, 4], [True, False, False, False], 1.0, (0.025, 1)),  # one positive above them
        ([0, 1, 2, 4], [True, False, False, False], 0.0, (0, 0.975)),
        ([0, 1], [False, True], 1.0, (0.025, 1)),
    ],
)
def test_delong_fallbacks(scores: list[float], truth: list[bool], value: float, interval: tuple[float, float]) -> None:
    estimate = delong(np.array(scores, dtype=np.float64), np.array(truth))
    assert estimate.value == pytest.approx(value, abs=1e-12)
    assert bounds(estimate) == pytest.approx(interval, abs=1e-6)
    assert estimate.method.endswith("(DeLong variance is zero or undefined)")


@pytest.mark.parametrize(("truth", "word"), [([True] * 3, "negative"), ([False] * 3, "positive")])
def test_an_absent_class_leaves_the_auroc_undefined(truth: list[bool], word: str) -> None:
    for estimate in (
        delong(np.arange(3.0), np.array(truth)),
        bootstrap_auroc(np.arange(3.0), np.array(truth), np.array(["a", "a", "b"]), seed=0),
    ):
        assert (estimate.value, estimate.low, estimate.clustered_low, estimate.n) == (None, None, None, 3)
        assert estimate.method == f"undefined: no {word} image"


# -- resampled patients ------------------------------------------------------------------------------------------------


def resampled_images(groups: NDArray[np.str_], seed: int, draws: int) -> list[NDArray[np.int64]]:
    """Rows of the images of each resample, by plain concatenation."""
    patients = sorted(set(groups.tolist()))
    picks = np.random.default_rng(seed).integers(len(patients), size=(draws, len(patients)))
    rows = [np.flatnonzero(groups == patient) for patient in patients]
    return [np.concatenate([rows[i] for i in draw]) for draw in picks]


def test_bootstrap_equals_plain_resampling(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, truth = scored(5, 30, 40, levels=3)
    groups = np.random.default_rng(1).choice(names(20), size=70)
    draws = resampled_images(groups, seed=11, draws=200)
    quantiles = (0.025, 0.975)
    mean = np.quantile([scores[rows].mean() for rows in draws], quantiles)
    rate = np.quantile([truth[rows].mean() for rows in draws], quantiles)
    area = np.quantile([roc_auc_score(truth[rows], scores[rows]) for rows in draws], quantiles)
    for cells in (2_000_000, 1_000):  # one chunk, many chunks
        monkeypatch.setattr(intervals, "_CELLS", cells)
        assert bounds(bootstrap_mean(scores, groups, 11, draws=200)) == pytest.approx(tuple(mean), abs=1e-12)
        assert clustered(bootstrap_rate(truth, groups, 11, draws=200)) == pytest.approx(tuple(rate), abs=1e-12)
        assert clustered(bootstrap_auroc(scores, truth, groups, 11, draws=200)) == pytest.approx(tuple(area), abs=1e-12)


def test_copies_of_an_image_add_no_information() -> None:
    rng = np.random.default_rng(2)
    hits = rng.random(80) < 0.3
    once = bootstrap_mean(hits.astype(np.float64), names(80), seed=4)
    fivefold = bootstrap_rate(np.repeat(hits, 5), np.repeat(names(80), 5), seed=4)
    assert clustered(fivefold) == bounds(once)
    assert bounds(fivefold) == bounds(wilson(5 * int(hits.sum()), 400))
    assert fivefold.method == "wilson; clustered: percentile bootstrap of 80 patients, 2000 draws, seed 4"
    low, high = clustered(fivefold)
    assert high - low > 2 * (bounds(fivefold)[1] - bounds(fivefold)[0])


def test_one_image_for_each_patient_needs_no_second_interval() -> None:
    hits = np.arange(30) % 3 == 0
    assert bootstrap_rate(hits, names(30), seed=0) == wilson(10, 30)
    scores, truth = scored(0, 10, 20)
    assert bootstrap_auroc(scores, truth, names(30), seed=0) == delong(scores, truth)


def test_clustered_coverage() -> None:
    """60 patients with 5 images each and their own rate of success, Beta(1, 1): the truth is 1/2."""
    rng = np.random.default_rng(0)
    groups = np.repeat(names(60), 5)
    held = np.zeros(2)
    for seed in range(200):
        estimate = bootstrap_rate(rng.random(300) < np.repeat(rng.random(60), 5), groups, seed, draws=400)
        held += [low <= 0.5 <= high for low, high in (bounds(estimate), clustered(estimate))]
    wilson_held, clustered_held = held / 200
    assert wilson_held < 0.87
    assert 0.90 <= clustered_held <= 0.98


def test_resamples_that_do_not_vary_get_the_interval_of_the_patients() -> None:
    groups = np.repeat(names(20), 5)
    never = bootstrap_rate(np.zeros(100, dtype=bool), groups, seed=0)
    assert bounds(never) == bounds(wilson(0, 100))
    assert clustered(never) == bounds(wilson(0, 20))
    alike = bootstrap_rate(np.tile([True, False, False, False, False], 20), groups, seed=0)
    assert clustered(alike) == bounds(wilson(4, 20))
    assert alike.method == "wilson; clustered: wilson with n = 20 patients (resamples do not vary)"
    alone = bootstrap_rate(np.array([True, False, True]), np.array(["a"] * 3), seed=0)
    assert alone.value == pytest.approx(2 / 3)
    assert clustered(alone)[1] - clustered(alone)[0] > 0.7


def test_a_perfect_auroc_counts_pairs_of_different_patients() -> None:
    scores = np.arange(40.0)
    truth = scores >= 20
    both = bootstrap_auroc(scores, truth, np.tile(names(4), 10), seed=0)  # 4 patients with both classes: 2 pairs
    assert clustered(both) == pytest.approx((0.025**0.5, 1.0))
    apart = bootstrap_auroc(scores, truth, np.repeat(names(8), 5), seed=0)  # 4 + 4 patients: 4 pairs
    assert clustered(apart) == pytest.approx((0.025**0.25, 1.0))
    assert apart.method.endswith("clustered: exact binomial bound from 4 independent pairs")
    alone = bootstrap_auroc(scores, truth, np.array(["a"] * 40), seed=0)
    assert clustered(alone) == (0.0, 1.0)


def test_means_without_variation_have_no_interval() -> None:
    for values, groups in ((np.full(50, 0.1), names(50)), (np.array([0.2, 0.9]), np.array(["a", "a"]))):
        estimate = bootstrap_mean(values, groups, seed=0)
        assert estimate.value == pytest.approx(values.mean(), abs=1e-15)
        assert (estimate.low, estimate.high, estimate.n) == (None, None, len(values))
        assert estimate.method.startswith("no interval: ")
    assert bootstrap_mean(np.zeros(0), names(0), seed=0).value is None
    assert bootstrap_rate(np.zeros(0, dtype=bool), names(0), seed=0).value is None


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 6)), min_size=1, max_size=30),
    st.integers(0, 2**32),
    st.randoms(use_true_random=False),
)
def test_bootstrap_properties(rows: list[tuple[float, int]], seed: int, random: Any) -> None:
    values = np.array([value for value, _ in rows])
    groups = np.array([f"p{group}" for _, group in rows])
    estimate = bootstrap_mean(values, groups, seed, draws=50)
    assert estimate == bootstrap_mean(values, groups, seed, draws=50)
    order = np.array(random.sample(range(len(rows)), len(rows)))
    assert estimate == bootstrap_mean(values[order], groups[order], seed, draws=50)  # to the last bit
    if estimate.low is not None and estimate.high is not None:
        slack = 1e-12
        assert values.min() - slack <= estimate.low
        assert estimate.high <= values.max() + slack


def test_shuffled_images_give_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=500), rng.choice(names(7), size=500)
    order = rng.permutation(500)
    assert bootstrap_mean(values, groups, seed=0) == bootstrap_mean(values[order], groups[order], seed=0)


def test_an_interval_from_too_few_draws_still_contains_the_mean() -> None:
    values = np.random.default_rng(0).normal(size=60)
    for seed in range(20):
        low, high = bounds(bootstrap_mean(values, names(60), seed, draws=2))
        assert low <= values.mean() + 1e-12
        assert high >= values.mean() - 1e-12


def test_another_seed_gives_other_draws() -> None:
    values = np.random.default_rng(0).normal(size=60)
    assert bounds(bootstrap_mean(values, names(60), seed=0)) != bounds(bootstrap_mean(values, names(60), seed=1))


# -- macro AUROC -------------------------------------------------------------------------------------------------------


def test_macro_auroc_equals_scikit_learn_and_plain_resampling() -> None:
    rng = np.random.default_rng(0)
    groups = rng.choice(names(30), size=90)
    truth = rng.random((90, 3)) < (0.0, 0.4, 0.7)
    truth[:2, 0] = True  # a label so rare that some resamples have none of it
    scores = np.round(rng.normal(size=(90, 3)) + truth, 1)
    estimate = bootstrap_macro_auroc(scores, truth, groups, seed=3, draws=100)
    assert estimate.value == pytest.approx(roc_auc_score(truth, scores, average="macro"), abs=1e-12)
    areas, used = [], set()
    for rows in resampled_images(groups, seed=3, draws=100):
        some = [k for k in range(3) if 0 < truth[rows, k].sum() < len(rows)]
        used.add(len(some))
        areas.append(np.mean([roc_auc_score(truth[rows, k], scores[rows, k]) for k in some]))
    assert used == {2, 3}
    assert bounds(estimate) == pytest.approx(tuple(np.quantile(areas, (0.025, 0.975))), abs=1e-12)


def test_macro_auroc_leaves_out_labels_without_both_classes_and_says_so() -> None:
    scores, truth = scored(1, 20, 30)
    two = bootstrap_macro_auroc(np.stack([scores, scores], 1), np.stack([truth, truth & False], 1), names(50), seed=0)
    assert two.value == delong(scores, truth).value
    assert two.method.startswith("macro over 1 of 2 labels; percentile bootstrap of 50 patients")
    none = bootstrap_macro_auroc(scores[:, None], truth[:, None] & False, names(50), seed=0)
    assert (none.value, none.low, none.n) == (None, None, 50)
    assert none.method == "undefined: macro over 0 of 1 labels with both classes"
    assert bootstrap_macro_auroc(np.zeros((0, 2)), np.zeros((0, 2), dtype=bool), names(0), seed=0).value is None


def test_perfect_macro_auroc_has_a_simultaneous_bound() -> None:
    truth = np.arange(20)[:, None] >= np.array([10, 15])
    estimate = bootstrap_macro_auroc(truth.astype(np.float64), truth, names(20), seed=0)
    assert estimate.value == 1
    assert bounds(estimate) == pytest.approx(((0.0125**0.1 + 0.0125**0.2) / 2, 1.0))
    assert estimate.method.endswith("Bonferroni")


# -- arguments ---------------------------------------------------------------------------------------------------------


def test_arguments_that_do_not_fit_are_named() -> None:
    truth = np.array([True, False])
    with pytest.raises(InputError, match="1 of 2 numbers are NaN"):
        delong(np.array([0.1, np.nan]), truth)
    with pytest.raises(InputError, match=r"got scores \(3,\) and truth \(2,\)"):
        delong(np.zeros(3), truth)
    with pytest.raises(InputError, match=r"got 2 images and groups of shape \(3,\)"):
        bootstrap_rate(truth, names(3), seed=0)
    with pytest.raises(InputError, match="1 of 1 numbers are NaN"):
        bootstrap_mean(np.array([np.inf]), names(1), seed=0)
