# SPDX-License-Identifier: Apache-2.0
"""Watermark: the blend by its formula, the place against every place that there is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from art_medical.attacks import WatermarkAttack
from art_medical.errors import InputError

SQUARE = np.ones((2, 2))


def footprint(change: np.ndarray) -> tuple[slice, slice]:
    """Smallest rectangle that holds a change of a plane."""
    rows, columns = change.any(1).nonzero()[0], change.any(0).nonzero()[0]
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def test_image_is_the_blend_of_the_formula_at_one_place(linear_phantoms):
    classifier, _, x, _ = linear_phantoms(2)
    mark = np.array([[1.0, 0.5], [0.0, 1.0]])
    attack = WatermarkAttack(
        classifier, mark=mark, size=0.25, opacity=(0.2, 0.4), ink=4000, confidence=math.inf, quantise=False
    )
    attack.set_params(population=10, generations=2)
    attacked = attack.generate(x[:3])
    for clean, marked in zip(x[:3, 0], attacked[:, 0], strict=True):
        place = footprint(marked != clean)
        assert [s.stop - s.start for s in place] == [16, 16]
        share = (marked[place] - clean[place]) / (4000 - clean[place])
        opacity = share[0, 0]
        assert 0.2 - 1e-5 <= opacity <= 0.4 + 1e-5
        np.testing.assert_allclose(share, opacity * np.kron(mark, np.ones((8, 8))), atol=1e-4)


@pytest.mark.parametrize("ink", [0.0, 4095.0])
def test_place_and_opacity_come_close_to_the_best_that_there_is(linear_phantoms, ink):
    classifier, observer, x, _ = linear_phantoms(2)
    x, side = x[:3], 4
    y = observer.decide(x)
    attack = WatermarkAttack(classifier, SQUARE, side / 64, (0.1, 0.5), ink, confidence=math.inf, batch_size=64)
    shift = (observer.statistic(attack.generate(x, y)) - observer.statistic(x)) * np.where(y == 1, -1, 1)
    for row in range(len(x)):
        pointwise = observer.template * (ink - x[row, 0]) * (-1 if y[row] == 1 else 1)
        summed = np.lib.stride_tricks.sliding_window_view(pointwise, (side, side)).sum((2, 3))
        best = max(0.5 * summed.max(), 0.1 * summed.max())  # linear in the opacity: one of its ends
        assert 0.9 * best <= shift[row] <= best + 0.05


def test_evolution_beats_random_places_at_equal_queries(linear_phantoms):
    classifier, observer, x, _ = linear_phantoms(2)
    y = observer.decide(x[:6])
    evolved, drawn = (
        WatermarkAttack(classifier, population=p, generations=g, confidence=math.inf, batch_size=64)
        for p, g in ((20, 9), (200, 0))
    )
    right = np.eye(2)[y].astype(bool)
    by_evolution, by_chance = (classifier.predict(a.generate(x[:6], y))[right] for a in (evolved, drawn))
    assert (evolved.cost.forward == drawn.cost.forward).all() and not evolved.cost.backward.any()
    assert by_evolution.mean() < by_chance.mean()


def test_text_lies_on_every_slice_of_a_volume(linear_phantoms):
    classifier, _, x, _ = linear_phantoms(3)
    attack = WatermarkAttack(classifier, "MR", ink=4095, population=5, generations=1, confidence=math.inf)
    attacked = attack.generate(x[:2])
    for change in (attacked != x[:2])[:, 0]:
        covered = footprint(change.any(0))
        assert max(s.stop - s.start for s in covered) <= 12  # half of 24 pixels
        assert (change.mean(0)[change.any(0)] > 0.9).mean() > 0.9
    assert classifier.domain.on_grid(attacked, tolerance=0)


def test_it_takes_no_mask_and_leaves_wrong_images(linear_phantoms):
    classifier, observer, x, _ = linear_phantoms(2)
    attack = WatermarkAttack(classifier, population=5, generations=1)
    with pytest.raises(InputError, match="WatermarkAttack chooses its own place; mask is not supported"):
        attack.generate(x, mask=np.ones((64, 64)))
    assert (attack.generate(x[:4], 1 - observer.decide(x[:4])) == x[:4]).all()
    assert (attack.cost.forward == 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mark": "  "}, "the text '  ' shows nothing"),
        ({"mark": np.zeros((2, 2))}, "a mark is coverage"),
        ({"mark": np.full((2, 2), 2.0)}, "a mark is coverage"),
        ({"mark": np.ones(4)}, "a mark is coverage .* got shape"),
        ({"size": 0}, "size is a share of the image"),
        ({"opacity": (0.5, 0.2)}, "opacity is an ordered range"),
        ({"opacity": (0.0, 0.0)}, "opacity is an ordered range"),
        ({"ink": 5000}, "ink must lie in the domain, 0 to 4095, got 5000"),
        ({"population": 3}, "population must be"),
    ],
)
def test_wrong_parameters_are_refused(linear_phantoms, arguments, message):
    with pytest.raises(InputError, match=message):
        WatermarkAttack(linear_phantoms(2)[0], **arguments)
