# SPDX-License-Identifier: Apache-2.0
"""Lumpy phantoms: statistics of the images against their closed forms, and the observer against independent solvers."""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import linprog, minimize
from sklearn.metrics import roc_auc_score

from art_medical.domain import Norm, PixelDomain
from art_medical.errors import InputError
from art_medical.images.phantoms import MOST_CLIPPING, PLANE, VOLUME, HotellingObserver, LumpyPhantom

Floats = NDArray[np.float64]

# Noise of one step makes the 1/12 of rounding 8 % of the high frequencies: large enough to be measured.
SMALL = LumpyPhantom(
    (16, 16), level=500, density=0.05, lump_amplitude=60, lump_width=1.5, noise=1, signal_amplitude=5, signal_width=1
)
TINY_2D = LumpyPhantom((6, 5), lump_width=1.2, density=0.1, signal_width=0.9)
TINY_3D = LumpyPhantom((4, 3, 5), lump_width=1.1, density=0.05, signal_width=0.8)
GOLDEN_LABELS = [0, 1, 1, 0]
GOLDEN_IMAGES = "88b2a394823a7b17d15a52b2604ebc24850312e6351c7c6e3a5c271e9b0efc1a"
GOLDEN_IDENTITY = "183f66e72839b926fad71bb8047eeb7e7a6aa734caefed4d198fc74eb4bb8094"
BOTH = pytest.mark.parametrize("norm", ["linf", "l2"])


# -- images against closed forms -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def residuals() -> Floats:
    """4000 small images less the mean of their class, ``(4000, 16, 16)``."""
    x, y = SMALL.sample(4000, seed=3)
    return x[:, 0] - SMALL.level - y[:, None, None] * SMALL.signal()


def periodogram_z(residuals: Floats, phantom: LumpyPhantom) -> Floats:
    """Standard scores of the mean periodogram against ``phantom``, one for each frequency of a half plane.

    The variance of one periodogram value is exact: ``P**2``, twice that where the transform is real, and the fourth
    cumulant of Poisson shot noise, ``density |L|**4 / pixels``.
    """
    n, pixels = len(residuals), residuals[0].size
    measured = (abs(np.fft.fft2(residuals)) ** 2).mean(0) / pixels
    expected = phantom.power_spectrum()
    i, j = np.indices(phantom.shape)
    conjugate = (-i % phantom.shape[0]) * phantom.shape[1] + -j % phantom.shape[1]
    own = i * phantom.shape[1] + j
    cumulant = phantom.density * abs(np.fft.fft2(phantom.lump())) ** 4 / pixels
    variance = (expected**2 * (1 + (own == conjugate)) + cumulant) / n
    z: Floats = ((measured - expected) / np.sqrt(variance))[own <= conjugate]
    return z


def test_power_spectrum_of_images_is_the_closed_form(residuals: Floats) -> None:
    z = periodogram_z(residuals, SMALL)
    assert z.size == 130
    assert abs(z).max() < 4.5  # P = 0.1 % for 130 standard normal scores
    assert 0.6 < (z**2).mean() < 1.4  # standard deviation sqrt(2 / 130) = 0.12


@pytest.mark.parametrize("wrong", [{"density": 0.055}, {"lump_width": 1.55}, {"noise": 1.05}])
def test_power_spectrum_test_notices_wrong_models(residuals: Floats, wrong: dict[str, Any]) -> None:
    assert (periodogram_z(residuals, replace(SMALL, **wrong)) ** 2).mean() > 2


def test_rounding_adds_a_twelfth(residuals: Floats) -> None:
    unrounded = replace(SMALL, domain=PixelDomain(0, 4095, None, "stored value"))
    assert SMALL.power_spectrum() - unrounded.power_spectrum() == pytest.approx(1 / 12)
    assert (periodogram_z(residuals, unrounded) ** 2).mean() > 10
    x, _ = unrounded.sample(4, seed=3)
    stored, _ = SMALL.sample(4, seed=3)
    assert stored == pytest.approx(x, abs=0.5 + 1e-3)
    assert not unrounded.domain.step and (x != np.round(x)).any()


def test_covariance_of_neighbours_is_the_inverse_transform(residuals: Floats) -> None:
    covariance = np.fft.ifft2(SMALL.power_spectrum()).real
    for shift in [(0, 0), (0, 1), (2, 1), (8, 8)]:
        # One value for each image: the average over the torus; its spread gives the standard error.
        products = (residuals * np.roll(residuals, shift, (1, 2))).mean((1, 2))
        error = products.std(ddof=1) / math.sqrt(len(products))
        assert products.mean() == pytest.approx(covariance[shift], abs=4 * error), shift


def test_class_means_are_level_and_level_plus_signal() -> None:
    x, y = SMALL.sample(4000, seed=4)
    for label in (0, 1):
        images = x[y == label, 0].astype(np.float64)
        off = images.mean(0) - SMALL.level - label * SMALL.signal()
        # Whitened, the mean of n images is chi squared with one degree of freedom for each pixel.
        chi2 = len(images) * (abs(np.fft.fft2(off)) ** 2 / off.size / SMALL.power_spectrum()).sum()
        low, high = stats.chi2.interval(0.9999, off.size)
        assert low < chi2 < high
        # Without the nodule in the expectation the same test fails by far.
        if label:
            missed = off + SMALL.signal()
            assert len(images) * (abs(np.fft.fft2(missed)) ** 2 / off.size / SMALL.power_spectrum()).sum() > 5 * high


@pytest.mark.parametrize("phantom", [PLANE, VOLUME], ids=["plane", "volume"])
def test_stored_values_stay_inside_and_do_not_clip(phantom: LumpyPhantom) -> None:
    assert phantom.clipping_probability() < 1e-6
    x, y = phantom.sample(200, seed=0)
    assert x.dtype == np.float32 and x.shape == (200, 1, *phantom.shape)
    assert y.dtype == np.int64 and y.shape == (200,)
    assert (x == np.round(x)).all()
    assert phantom.domain.low < x.min() and x.max() < phantom.domain.high


@pytest.mark.parametrize("level", [420.0, 500.0, 204.5])
def test_clipping_bound_holds_and_is_not_empty(level: float) -> None:
    """Lumps of one pixel: the exact probability is a sum over Poisson counts."""
    phantom = LumpyPhantom((4, 4), level, 2.0, 100.0, 0.05, 1.0, 1e-3, 1.0, PixelDomain(0, 1500, 1, "stored value"))
    counts = np.arange(60)
    mean = level + 100 * (counts - 2)
    p = (stats.poisson.pmf(counts, 2) * (stats.norm.sf(1500 - mean) + stats.norm.cdf(0 - mean))).sum()
    exact = -math.expm1(16 * math.log1p(-p))
    assert exact <= phantom.clipping_probability() <= 100 * exact
    assert phantom.clipping_probability() < MOST_CLIPPING


# -- seeds ---------------------------------------------------------------------------------------------------------


def test_part_of_a_split_has_the_bytes_of_the_whole() -> None:
    x, y = SMALL.sample(10, seed=5, split="train")
    for start, n in [(0, 5), (0, 10), (3, 4), (9, 1), (2, 0)]:
        part, labels = SMALL.sample(n, seed=5, split="train", start=start)
        assert part.tobytes() == x[start : start + n].tobytes()
        assert (labels == y[start : start + n]).all()


def test_splits_seeds_and_images_differ() -> None:
    sets = [SMALL.sample(20, seed=s, split=name)[0] for s, name in itertools.product((0, 1), ("train", "test"))]
    images = {image.tobytes() for x in sets for image in x}
    assert len(images) == 80


def test_pairs_are_balanced_in_random_order() -> None:
    _, y = replace(SMALL, shape=(2, 2)).sample(2000, seed=0)
    pairs = y.reshape(-1, 2)
    assert (pairs.sum(1) == 1).all()
    assert stats.binomtest(int(pairs[:, 0].sum()), 1000).pvalue > 1e-4
    assert stats.binomtest(int((pairs[1:, 0] == pairs[:-1, 0]).sum()), 999).pvalue > 1e-4


def test_stream_is_the_recorded_one() -> None:
    """Fails when the recipe or NumPy's streams change: then ``STREAM`` and every recorded result must change too."""
    x, y = PLANE.sample(4, seed=0)
    assert y.tolist() == GOLDEN_LABELS
    assert hashlib.sha256(x.tobytes()).hexdigest() == GOLDEN_IMAGES


def test_identity_is_a_function_of_the_parameters() -> None:
    assert PLANE.identity() == GOLDEN_IDENTITY
    assert LumpyPhantom(level=1600, domain=PixelDomain(0.0, 4095.0, 1.0, "stored value")).identity() == GOLDEN_IDENTITY
    changed: list[dict[str, Any]] = [
        {"shape": (64, 63)},
        {"level": 1601.0},
        {"density": 0.021},
        {"lump_amplitude": 181.0},
        {"lump_width": 5.1},
        {"noise": 51.0},
        {"signal_amplitude": 87.0},
        {"signal_width": 2.6},
        {"domain": PixelDomain(0, 4096, 1, "stored value")},
        {"domain": PixelDomain(0, 4095, None, "stored value")},
    ]
    identities = {replace(PLANE, **change).identity() for change in changed}
    assert len(identities | {PLANE.identity()}) == len(changed) + 1


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"shape": (64,)}, "2 or 3 axes"),
        ({"shape": (64, 0)}, "2 or 3 axes"),
        ({"density": -0.1}, "density of a phantom"),
        ({"lump_width": math.nan}, "lump_width of a phantom"),
        ({"noise": 0.5}, "at least one storage step"),
        ({"level": 500.0}, "may clip"),
        ({"level": 4095.0}, "may clip"),
    ],
)
def test_bad_parameters_are_refused(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        replace(PLANE, **wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"n": -1}, {"seed": -1}, {"start": -1}])
def test_negative_counts_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="0 or more"):
        SMALL.sample(**{"n": 1, "seed": 0, **wrong})


# -- Hotelling observer against a dense solver and measured performance --------------------------------------------


def torus_gaussian(shape: tuple[int, ...], centre: tuple[int, ...], width: float) -> Floats:
    """Sum over neighbouring periods of the whole N-dimensional Gaussian, pixel by pixel."""
    total = np.zeros(shape)
    for pixel in np.ndindex(shape):
        for period in itertools.product(range(-3, 4), repeat=len(shape)):
            squared = sum((p - c + k * n) ** 2 for p, c, k, n in zip(pixel, centre, period, shape, strict=True))
            total[pixel] += math.exp(-squared / (2 * width**2))
    return total


@pytest.mark.parametrize("phantom", [TINY_2D, TINY_3D], ids=["2-D", "3-D"])
def test_template_is_the_dense_solution(phantom: LumpyPhantom) -> None:
    pixels = math.prod(phantom.shape)
    one = torus_gaussian(phantom.shape, (0,) * len(phantom.shape), phantom.lump_width)
    axes = tuple(range(one.ndim))
    lumps = phantom.lump_amplitude * np.stack([np.roll(one, c, axes).ravel() for c in np.ndindex(phantom.shape)])
    covariance = phantom.density * lumps.T @ lumps + (phantom.noise**2 + 1 / 12) * np.eye(pixels)
    centre = tuple(n // 2 for n in phantom.shape)
    signal = phantom.signal_amplitude * torus_gaussian(phantom.shape, centre, phantom.signal_width).ravel()
    template = np.linalg.solve(covariance, signal)

    observer = phantom.hotelling()
    assert observer.template.ravel() == pytest.approx(template, rel=1e-9, abs=1e-15)
    assert observer.detectability**2 == pytest.approx(signal @ template, rel=1e-10)
    assert observer.offset == pytest.approx(-template @ (phantom.level + signal / 2), rel=1e-10)
    for label in (0, 1):
        mean = (phantom.level + label * signal).reshape(1, 1, *phantom.shape)
        expected = (label - 0.5) * observer.detectability**2
        assert observer.statistic(mean) == pytest.approx([expected], rel=1e-8)
        assert observer.decide(mean).tolist() == [label]


@pytest.mark.parametrize(("phantom", "n"), [(PLANE, 2000), (VOLUME, 1000)], ids=["plane", "volume"])
def test_measured_performance_is_the_predicted_one(phantom: LumpyPhantom, n: int) -> None:
    observer = phantom.hotelling()
    assert observer.auc == pytest.approx(0.971, abs=0.001)
    assert observer.auc == pytest.approx(stats.norm.cdf(observer.detectability / math.sqrt(2)))
    x, y = phantom.sample(n, seed=11)
    t = observer.statistic(x)
    absent, present = t[y == 0], t[y == 1]
    # Standard error of the area after DeLong et al. (Biometrics 44:837-845, 1988).
    wins = present[:, None] > absent[None, :]
    error = math.sqrt(wins.mean(1).var(ddof=1) / len(present) + wins.mean(0).var(ddof=1) / len(absent))
    assert roc_auc_score(y, t) == pytest.approx(observer.auc, abs=4 * error)
    assert error < 0.006
    # Standardised statistics have mean 0 and variance 1: 4 standard errors of each.
    z = (t - (y - 0.5) * observer.detectability**2) / observer.detectability
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    correct = stats.binomtest(int((observer.decide(x) == y).sum()), n, stats.norm.cdf(observer.detectability / 2))
    assert correct.pvalue > 1e-4


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-4, 10))
def test_no_other_template_detects_better(seed: int, size: float) -> None:
    observer, spectrum, signal = SMALL.hotelling(), SMALL.power_spectrum(), SMALL.signal()
    noise = np.random.default_rng(seed).standard_normal(SMALL.shape)
    other = observer.template + size * abs(observer.template).max() * noise
    variance = (abs(np.fft.fft2(other)) ** 2 * spectrum).sum() / other.size
    assert abs((other * signal).sum()) / math.sqrt(variance) < observer.detectability


# -- distances -----------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("phantom", [PLANE, VOLUME], ids=["plane", "volume"])
def test_smallest_change_ends_on_the_boundary(phantom: LumpyPhantom, norm: Norm) -> None:
    observer = phantom.hotelling()
    x = phantom.sample(20, seed=2)[0].astype(np.float64)
    t, before = observer.statistic(x), observer.decide(x)
    change = observer.smallest_change(x, norm)
    assert observer.statistic(x + change) == pytest.approx(np.zeros(20), abs=1e-9)
    assert (observer.decide(x + 0.999 * change) == before).all()
    assert (observer.decide(x + 1.001 * change) == 1 - before).all()
    dual = np.linalg.norm(observer.template.ravel(), 1 if norm == "linf" else 2)
    length = observer.smallest_perturbation(x, norm)
    assert length == pytest.approx(abs(t) / dual, rel=1e-10)
    order = np.inf if norm == "linf" else 2
    assert np.linalg.norm(change.reshape(20, -1), order, axis=1) == pytest.approx(length, rel=1e-12)
    # Far from the faces of the box it changes nothing.
    assert observer.smallest_perturbation(x, norm, phantom.domain) == pytest.approx(length, rel=1e-10)


@BOTH
def test_shorter_changes_never_flip(norm: Norm) -> None:
    observer = TINY_2D.hotelling()
    x = TINY_2D.sample(50, seed=6)[0].astype(np.float64)
    length = observer.smallest_perturbation(x, norm).reshape(-1, 1, 1, 1)
    rng = np.random.default_rng(0)
    for _ in range(40):
        step = rng.standard_normal(x.shape)
        size = abs(step).max((1, 2, 3)) if norm == "linf" else np.sqrt((step**2).sum((1, 2, 3)))
        step *= 0.999 * length / size.reshape(-1, 1, 1, 1)
        assert (observer.decide(x + step) == observer.decide(x)).all()


def test_stored_distance_without_near_faces_is_the_rounded_closed_form() -> None:
    observer = PLANE.hotelling()
    x, _ = PLANE.sample(200, seed=8)
    steps = observer.smallest_stored_perturbation(x, PLANE.domain)
    ratio = abs(observer.statistic(x)) / abs(observer.template).sum()
    assert (steps == np.floor(ratio) + 1).all()
    assert len(set(steps.tolist())) > 5
    # The best image of the grid really is one: all pixels move by that many steps, or by one less.
    towards = np.sign(observer.template) * np.where(observer.statistic(x) > 0, -1, 1).reshape(-1, 1, 1, 1)
    for steps_taken, flips in [(steps, 1), (steps - 1, 0)]:
        attacked = x + steps_taken.reshape(-1, 1, 1, 1) * towards
        assert PLANE.domain.on_grid(attacked)
        assert ((observer.decide(attacked) != observer.decide(x)) == flips).all()


weights = st.lists(st.integers(-3, 3), min_size=4, max_size=4)


@settings(max_examples=60, deadline=None)
@given(weights, st.integers(-12, 12), st.sampled_from([1.0, 0.5]))
def test_stored_distance_is_that_of_exhaustive_search(weights: list[int], offset: int, step: float) -> None:
    """All 256 images of four pixels with four values each, ties on the boundary and unreachable decisions included."""
    domain = PixelDomain(1, 1 + 3 * step, step)
    observer = HotellingObserver(np.array(weights, np.float64).reshape(2, 2), float(offset), 1.0)
    images = np.array(list(itertools.product(1 + step * np.arange(4), repeat=4)))
    decisions = images @ weights + offset > 0
    distance = abs(images[:, None] - images[None]).max(2)
    expected = np.where(decisions[:, None] != decisions[None], distance, np.inf).min(1)
    x = images.reshape(-1, 1, 2, 2)
    assert (observer.smallest_stored_perturbation(x, domain) == expected).all()


numbers = st.floats(-3, 3).map(lambda v: round(v, 2))


@settings(max_examples=80, deadline=None)
@given(st.lists(numbers, min_size=6, max_size=6), numbers, st.integers(0, 2**32 - 1))
def test_boxed_distances_are_those_of_general_solvers(weights: list[float], offset: float, seed: int) -> None:
    template = np.array(weights).reshape(2, 3)
    observer = HotellingObserver(template, offset, 1.0)
    domain = PixelDomain(0, 1, None)
    # Half of the pixels sit on a face of the box.
    x = np.clip(np.random.default_rng(seed).uniform(-0.5, 1.5, (1, 1, 2, 3)), 0, 1)
    t = float(observer.statistic(x)[0])
    flat, w = x.ravel(), template.ravel()
    furthest = w @ np.where((w > 0) == (t <= 0), 1, 0) + offset
    assume(abs(furthest) > 1e-6)  # a box that just touches the boundary is a matter of rounding

    # Linear programme in (change, eps): least eps with |change| <= eps, the box and the statistic on the boundary.
    eye, column = np.eye(6), np.ones((6, 1))
    upper = np.block([[eye, -column], [-eye, -column]])
    limits = [*zip(-flat, 1 - flat, strict=True), (0, None)]
    best = linprog([0] * 6 + [1], upper, np.zeros(12), [[*w, 0]], [-t], limits)
    found = {norm: float(observer.smallest_perturbation(x, norm, domain)[0]) for norm in ("linf", "l2")}
    if not best.success:
        assert found == {"linf": math.inf, "l2": math.inf}
        assert np.isnan(observer.smallest_change(x, "l2", domain)).all()
        return
    assert found["linf"] == pytest.approx(best.fun, abs=1e-6)
    start = best.x[:6]
    constraint = {"type": "eq", "fun": lambda d: w @ d + t, "jac": lambda _: w}
    quadratic = minimize(
        lambda d: d @ d, start, jac=lambda d: 2 * d, bounds=limits[:6], constraints=constraint, method="SLSQP"
    )
    assert found["l2"] <= np.linalg.norm(start) + 1e-6
    if quadratic.success:
        assert found["l2"] == pytest.approx(np.linalg.norm(quadratic.x), abs=1e-3)
    for norm in ("linf", "l2"):
        change = observer.smallest_change(x, norm, domain)
        assert observer.statistic(x + change) == pytest.approx([0], abs=1e-9)
        assert (x + change).min() >= -1e-12 and (x + change).max() <= 1 + 1e-12


def test_box_lengthens_the_way_of_images_at_its_faces() -> None:
    """By hand: of two equal weights one pixel cannot move, so the other goes twice as far."""
    observer = HotellingObserver(np.array([[1.0, 1.0]]), -4.0, 1.0)
    x = np.array([[[[4.0, 2.0]]]])
    domain = PixelDomain(0, 4)
    low = np.array([[[[0.0, 0.0]]]])
    assert observer.smallest_perturbation(x, "linf", domain).tolist() == [1.0]
    assert observer.smallest_perturbation(low, "linf", domain).tolist() == [2.0]
    assert observer.smallest_stored_perturbation(low, domain).tolist() == [3.0]  # at 2 + 2 the decision is still 0
    stuck = HotellingObserver(np.array([[1.0, 1.0]]), -5.0, 1.0)
    top = np.array([[[[4.0, 0.0]]]])
    assert stuck.smallest_perturbation(top, "linf").tolist() == [0.5]
    assert stuck.smallest_perturbation(top, "linf", domain).tolist() == [1.0]
    assert stuck.smallest_perturbation(top, "l2", domain).tolist() == [1.0]
    assert stuck.smallest_perturbation(top, "l2").tolist() == [pytest.approx(math.sqrt(0.5))]


def test_image_on_the_boundary_is_decided_0_at_distance_0() -> None:
    domain = PixelDomain(0, 4)
    x = np.array([[[[2.0, 2.0]]]])
    for weights, stored in [([1.0, 1.0], 1.0), ([0.0, 0.0], math.inf)]:
        observer = HotellingObserver(np.array([weights]), -4 * weights[0], 1.0)
        assert observer.decide(x).tolist() == [0]
        assert observer.smallest_perturbation(x, "linf", domain).tolist() == [0.0]
        assert observer.smallest_perturbation(x, "l2").tolist() == [0.0]
        assert observer.smallest_stored_perturbation(x, domain).tolist() == [stored]


def test_no_images_have_no_distances() -> None:
    observer = SMALL.hotelling()
    x, y = SMALL.sample(0, seed=0)
    assert x.shape == (0, 1, 16, 16) and y.shape == (0,)
    assert observer.smallest_change(x, "l2").shape == (0, 1, 16, 16)
    assert observer.smallest_perturbation(x, "linf", SMALL.domain).shape == (0,)
    assert observer.smallest_stored_perturbation(x, SMALL.domain).shape == (0,)


def test_observer_refuses_what_it_cannot_judge() -> None:
    observer = SMALL.hotelling()
    x, _ = SMALL.sample(2, seed=0)
    with pytest.raises(InputError, match=r"shape \(n, 1, 16, 16\), got \(2, 16, 16\)"):
        observer.statistic(x[:, 0])
    with pytest.raises(InputError, match="linf or l2, got 'l1'"):
        observer.smallest_perturbation(x, "l1")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="between 0 and 100"):
        observer.smallest_perturbation(x, "linf", PixelDomain(0, 100))
    with pytest.raises(InputError, match="stored pixels"):
        observer.smallest_stored_perturbation(x + 0.5, SMALL.domain)
    with pytest.raises(InputError, match="stored pixels"):
        observer.smallest_stored_perturbation(x, PixelDomain(0, 4095, None))
    with pytest.raises(ValueError, match="read-only"):
        observer.template[0, 0] = 0
