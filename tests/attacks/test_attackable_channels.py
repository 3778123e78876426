# SPDX-License-Identifier: Apache-2.0
"""Channels that are no image: they count in the prediction, have no gradient, and no attack of ours moves them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import DeepFool, FastGradientMethod
from numpy.typing import NDArray
from torch import nn

from art_medical.attacks import CATALOGUE, attack_class
from art_medical.domain import PixelDomain
from art_medical.errors import InputError
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.heads import Head
from art_medical.estimators.steps import MinMax, Normalise, Step, ZScore

SHAPE = (4, 12, 12)
FIXED = [1, 3]


def classifier(
    channels: tuple[int, ...] | None = (0, 2), steps: tuple[Step, ...] = (), **more: Any
) -> MedicalClassifier:
    """A small network over four channels that mixes all of them."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(4, 6, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)
    )  # fmt: skip
    return MedicalClassifier(
        network,
        domain=PixelDomain(0, 255),
        head=Head(kind="softmax", labels=("a", "b", "c")),
        input_shape=SHAPE,
        steps=steps or (Normalise(mean=(127.5,), std=(127.5,)),),
        attackable_channels=channels,
        **more,
    )


@pytest.fixture
def x() -> NDArray[np.float32]:
    return np.random.default_rng(0).integers(5, 250, (6, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize("steps", [(), (MinMax(),), (ZScore(nonzero=True),)])
def test_gradients_of_the_other_channels_are_exactly_zero(x: NDArray[np.float32], steps: tuple[Step, ...]) -> None:
    some, every = classifier(steps=steps), classifier(None, steps=steps)
    y = some.predict(x).argmax(1)
    assert np.array_equal(some.predict(x), every.predict(x))
    for of_some, of_all, axis in (
        (some.loss_gradient(x, y), every.loss_gradient(x, y), 1),
        (some.class_gradient(x), every.class_gradient(x), 2),
    ):
        fixed, free = np.take(of_some, FIXED, axis), np.take(of_some, [0, 2], axis)
        assert not fixed.any()
        assert np.abs(np.take(of_all, FIXED, axis)).max() > 0
        if not steps:  # per-image statistics tie the channels together
            np.testing.assert_array_equal(free, np.take(of_all, [0, 2], axis))


def test_the_other_channels_count_in_the_prediction(x: NDArray[np.float32]) -> None:
    other = x.copy()
    other[:, 3] = 255 - other[:, 3]
    some = classifier()
    assert np.abs(some.predict(x) - some.predict(other)).max() > 1e-3


def test_gradients_are_zero_behind_a_defence_that_mixes_channels(x: NDArray[np.float32]) -> None:
    from art.preprocessing.preprocessing import PreprocessorPyTorch

    class Mixed(PreprocessorPyTorch):  # type: ignore[misc]  # ART ships no types
        def forward(self, x: torch.Tensor, y: Any = None) -> tuple[torch.Tensor, Any]:
            return x.mean(1, keepdim=True).expand_as(x), y

    estimator = classifier(preprocessing_defences=Mixed(device_type="cpu"))
    gradient = estimator.loss_gradient(x, np.zeros(len(x), int))
    assert not gradient[:, FIXED].any()
    assert gradient[:, [0, 2]].any()


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.parametrize("arguments", [{}, {"quantise": False}, {"norm": 2, "eps": 300.0}])
def test_no_attack_of_the_catalogue_changes_the_other_channels(
    name: str, arguments: dict[str, Any], x: NDArray[np.float32], quick: dict[str, dict[str, Any]]
) -> None:
    attack_type = attack_class(name)
    if "norm" in arguments and "norm" not in attack_type.attack_params:
        pytest.skip(f"{name} knows no norm")
    if "quantise" in arguments:
        x[:, FIXED] += 0.25  # off the grid, and returned as it is
    if "generations" in attack_type.attack_params:
        arguments = {**arguments, "generations": 2}
    some, every = classifier(), classifier(None)
    for estimator in (some, every):
        attack = attack_type(estimator, **{**quick.get(name, {}), **arguments})
        if hasattr(attack, "fit"):
            attack.fit(np.concatenate([x[3:], x[3:] // 5]))  # bright and dark: of two classes
        attacked = attack.generate(x[:3], estimator.predict(x[:3]).argmax(1))
        changed = (attacked != x[:3]).any((0, 2, 3))
        assert changed.tolist() == ([True, False, True, False] if estimator is some else [True] * 4)


def test_a_mask_can_take_away_but_not_add(x: NDArray[np.float32]) -> None:
    attack = attack_class("pgd")(classifier(), eps=8.0, confidence=np.inf)
    mask = np.zeros(SHAPE)
    mask[:, :, :6] = 1
    attacked = attack.generate(x, mask=mask)
    changed = (attacked != x).any(0)
    assert changed[[0, 2], :, :6].mean() > 0.9
    assert not changed[FIXED].any()
    assert not changed[:, :, 6:].any()


def test_patches_still_take_no_mask(x: NDArray[np.float32]) -> None:
    attack = attack_class("natural-patch")(classifier())
    attack.fit(x)
    with pytest.raises(InputError, match="NaturalPatch chooses its own place; mask is not supported"):
        attack.generate(x, np.zeros(len(x), int), mask=np.ones(SHAPE))


@pytest.mark.parametrize("attack", [FastGradientMethod, DeepFool])
def test_attacks_of_art_that_follow_the_gradient_leave_them_alone(attack: Any, x: NDArray[np.float32]) -> None:
    arguments = {"verbose": False} if attack is DeepFool else {"eps": 8.0}
    attacked = attack(classifier(), **arguments).generate(x)
    assert np.array_equal(attacked[:, FIXED], x[:, FIXED])
    assert (attacked[:, [0, 2]] != x[:, [0, 2]]).any()


def test_copies_keep_the_channels(x: NDArray[np.float32]) -> None:
    some = classifier(channels=(2, 0))
    assert some.attackable_channels == (0, 2)
    assert some.get_params()["attackable_channels"] == (0, 2)
    copies = [pickle.loads(pickle.dumps(some)), copy.deepcopy(some), some.clone_for_refitting()]
    copies.append(some.behind([Normalise(mean=(0.0,), std=(2.0,))], domain=PixelDomain(0, 510), input_shape=SHAPE))
    for other in copies:
        assert other.attackable_channels == (0, 2)
        assert not other.loss_gradient(x, np.zeros(len(x), int))[:, FIXED].any()
    assert classifier(None).attackable_channels is None


@pytest.mark.parametrize("channels", [(), (0, 0), (4,), (-1,), (0, 1, 2, 3, 4), (0.5,), ("0",)])
def test_channels_that_do_not_exist_are_refused(channels: Any) -> None:
    with pytest.raises(
        InputError, match="attackable_channels must be different channels from 0 to 3, at least one, got"
    ):
        classifier(channels)


def test_other_images_need_another_statement() -> None:
    with pytest.raises(InputError, match=r"only channels \(0, 2\) of 4 may be attacked; which of the 1 new channels"):
        classifier().behind([], domain=PixelDomain(0, 1, None), input_shape=(1, 12, 12))
