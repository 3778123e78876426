# SPDX-License-Identifier: Apache-2.0
"""Classifiers whose smallest adversarial perturbation is known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from art_medical.domain import PixelDomain
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.heads import Head
from art_medical.images.phantoms import PLANE, VOLUME, HotellingObserver, LumpyPhantom
from art_medical.zoo.networks import LinearObserver

Phantoms = tuple[MedicalClassifier, HotellingObserver, NDArray[np.float32], NDArray[np.int64]]


def observer_as_classifier(phantom: LumpyPhantom, head: str = "one-logit") -> MedicalClassifier:
    """The ideal linear observer as an estimator over stored pixels, behind any head."""
    observer = phantom.hotelling()
    shape = (1, *phantom.shape)
    weight = torch.tensor(observer.template, dtype=torch.float32).reshape(1, -1)
    linear = LinearObserver(shape)
    if head == "one-logit":
        linear.readout.weight.data, linear.readout.bias.data = weight, torch.tensor([observer.offset]).float()
        meaning = Head(kind="one-logit", labels=("lumps only", "nodule"))
    elif head == "softmax":
        linear.readout = torch.nn.Linear(weight.shape[1], 2)
        linear.readout.weight.data = torch.cat([-weight / 2, weight / 2])
        linear.readout.bias.data = torch.tensor([-observer.offset / 2, observer.offset / 2]).float()
        meaning = Head(kind="softmax", labels=("lumps only", "nodule"))
    else:
        # The second label never changes: only the first can be flipped within any budget used here.
        linear.readout = torch.nn.Linear(weight.shape[1], 2)
        linear.readout.weight.data = torch.cat([weight, torch.zeros_like(weight)])
        linear.readout.bias.data = torch.tensor([observer.offset, 50.0]).float()
        meaning = Head(kind="multi-label", labels=("nodule", "always"))
    return MedicalClassifier(linear, domain=phantom.domain, head=meaning, input_shape=shape)


@pytest.fixture(scope="session")
def linear_phantoms() -> Callable[[int, str], Phantoms]:
    """Estimator, observer, images and labels, for 2 or 3 axes and a head."""

    def make(axes: int, head: str = "one-logit") -> Phantoms:
        phantom = PLANE if axes == 2 else VOLUME
        x, y = phantom.sample(24, seed=5, split="oracle")
        return observer_as_classifier(phantom, head), phantom.hotelling(), x, y

    return make


@pytest.fixture(scope="session")
def two_pixels() -> Callable[..., MedicalClassifier]:
    """``z = w . x + b`` over few pixels, for cases worked out by hand."""

    def make(weight: list[float], bias: float, domain: PixelDomain | None = None) -> MedicalClassifier:
        linear = LinearObserver((1, 1, len(weight)))
        linear.readout.weight.data = torch.tensor([weight])
        linear.readout.bias.data = torch.tensor([bias])
        return MedicalClassifier(
            linear,
            domain=domain or PixelDomain(0, 255),
            head=Head(kind="one-logit", labels=("no", "yes")),
            input_shape=(1, 1, len(weight)),
        )

    return make


@pytest.fixture(scope="session")
def quick() -> dict[str, dict[str, Any]]:
    """Parameters, by short name, for attacks of thousands of passes: these prove nothing more about a contract."""
    return {
        "fmn": {"max_iter": 20},
        "square": {"max_iter": 40},
        "standard": {"max_iter": 10, "max_queries": 20},
    }
