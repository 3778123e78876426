# SPDX-License-Identifier: Apache-2.0
"""Burnt-in labels: letters, frame and values; and a model that reads the marker instead of the patient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from art_medical.attacks import LabelBurnIn
from art_medical.attacks.lettering import letters, scaled
from art_medical.domain import PixelDomain
from art_medical.errors import InputError
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.heads import Head


@pytest.fixture(scope="module")
def marker_reader() -> MedicalClassifier:
    """Says yes when some 5 x 5 pixels are bright on average: a marker does it, wherever it lies."""
    network = torch.nn.Sequential(
        torch.nn.AvgPool2d(5, stride=1), torch.nn.AdaptiveMaxPool2d(1), torch.nn.Flatten(), torch.nn.Linear(1, 1)
    )
    network[3].weight.data[:], network[3].bias.data[:] = 0.1, -14.0
    head = Head(kind="one-logit", labels=("no", "yes"))
    return MedicalClassifier(network, domain=PixelDomain(0, 255), head=head, input_shape=(1, 48, 60))


def radiographs(n: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(20, 90, (n, 1, 48, 60)).astype(np.float32)


def test_letters_look_like_letters():
    left = letters("L")
    half = left.shape[0] // 2
    assert left.max() == 1 and left.min() == 0
    assert left[:, 1:6].mean() > 0.9 and left[-6:-1].mean() > 0.9  # the stem and the foot
    assert not left[:half, left.shape[1] // 2 :].any()
    assert letters("LR").shape[1] > left.shape[1] + letters("R").shape[1]
    with pytest.raises(ValueError, match="read-only"):
        left[0, 0] = 0


def test_scaling_averages_and_never_vanishes():
    assert scaled(np.kron(np.eye(2), np.ones((4, 4))), 0.25).tolist() == [[1, 0], [0, 1]]
    assert scaled(np.eye(2), 0.5).tolist() == [[0.5]]
    assert scaled(letters("R"), 1e-6).shape == (1, 1)


@pytest.mark.parametrize("border", [0.1, 0.25, 0.5])
def test_label_lies_in_the_frame_with_an_allowed_value(marker_reader, border):
    x = radiographs(12)
    attack = LabelBurnIn(
        marker_reader,
        texts=["L", "R"],
        height=(0.08, 0.1),
        intensity=(0.5, 0.6),
        border=border,
        population=5,
        generations=1,
        confidence=math.inf,
    )
    attacked = attack.generate(x)
    changed = (attacked != x)[:, 0]
    inside = np.zeros((48, 60), bool)
    depth = [max(math.ceil(border * side), 6) for side in (48, 60)]
    inside[depth[0] : 48 - depth[0], depth[1] : 60 - depth[1]] = True
    assert changed.any((1, 2)).all()
    assert not changed[:, inside].any()
    assert attacked[attacked != x].max() <= 153
    assert changed.sum((1, 2)).max() <= 36  # at most 5 x 6 pixels of letters, and what rounding adds


def test_a_model_that_reads_markers_is_fooled_by_one(marker_reader):
    x, no = radiographs(), np.zeros(4, np.int64)
    assert not marker_reader.predict(x).argmax(1).any()
    attack = LabelBurnIn(marker_reader, height=(0.1, 0.15))
    attacked = attack.generate(x, no)
    assert marker_reader.predict(attacked).argmax(1).all() and attack.record.success.all()
    assert marker_reader.domain.on_grid(attacked, tolerance=0)
    faint = LabelBurnIn(marker_reader, height=(0.1, 0.15), intensity=(0.0, 0.3), population=10, generations=2)
    assert (faint.generate(x, no) == x).mean() > 0.9 and not faint.record.success.any()


def test_evolution_beats_random_labels_at_equal_queries(linear_phantoms):
    classifier, observer, x, _ = linear_phantoms(2)
    y = observer.decide(x[:6])
    evolved, drawn = (
        LabelBurnIn(classifier, population=p, generations=g, confidence=math.inf, batch_size=64)
        for p, g in ((20, 9), (200, 0))
    )
    right = np.eye(2)[y].astype(bool)
    by_evolution, by_chance = (classifier.predict(a.generate(x[:6], y))[right] for a in (evolved, drawn))
    assert (evolved.cost.forward == drawn.cost.forward).all() and not evolved.cost.backward.any()
    assert by_evolution.mean() < by_chance.mean()


def test_label_lies_on_every_slice_of_a_volume(linear_phantoms):
    classifier, _, x, _ = linear_phantoms(3)
    attack = LabelBurnIn(classifier, population=5, generations=1, height=(0.2, 0.3), confidence=math.inf)
    attacked = attack.generate(x[:2])
    for change in (attacked != x[:2])[:, 0]:
        assert (change.mean(0)[change.any(0)] > 0.9).mean() > 0.9


def test_a_text_wider_than_the_image_is_made_smaller(marker_reader):
    attack = LabelBurnIn(marker_reader, texts=["PORTABLE SUPINE"], height=(0.5, 0.5), population=5, generations=0)
    attack.confidence = math.inf
    changed = (attack.generate(radiographs(1)) != radiographs(1))[0, 0]
    columns = changed.any(0).nonzero()[0]
    assert columns[-1] - columns[0] + 1 >= 58 and changed.any(1).sum() < 10


def test_it_takes_no_mask(marker_reader):
    with pytest.raises(InputError, match="LabelBurnIn chooses its own place; mask is not supported"):
        LabelBurnIn(marker_reader).generate(radiographs(), mask=np.ones((48, 60)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": []}, "texts is a list of one text or more"),
        ({"texts": "L"}, "texts is a list of one text or more, got 'L'"),
        ({"texts": ["L", ""]}, "the text '' shows nothing"),
        ({"height": (0.0, 0.1)}, "height is an ordered range"),
        ({"intensity": (0.5, 1.5)}, "intensity is an ordered range"),
        ({"border": 0.6}, "border is a share of the sides"),
        ({"generations": 1.5}, "generations must be"),
    ],
)
def test_wrong_parameters_are_refused(marker_reader, arguments, message):
    with pytest.raises(InputError, match=message):
        LabelBurnIn(marker_reader, **arguments)
