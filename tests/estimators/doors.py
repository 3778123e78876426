# SPDX-License-Identifier: Apache-2.0
"""Every way into an estimator that runs the network, and the cases that most tests are about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from art_medical.estimators.classifier import MedicalClassifier
from tests.conformance.networks import HEADS

every = pytest.mark.parametrize(("head", "dimensions"), [(head, d) for head in HEADS for d in (2, 3)])
dimensional = pytest.mark.parametrize("dimensions", [2, 3], ids=["2-D", "3-D"])
# Gradients in the three ways that ART asks for them, and everything else that runs the network.
CALLS: dict[str, Callable[[MedicalClassifier, NDArray[np.float32]], Any]] = {
    "predict": lambda k, x: k.predict(x),
    "predict in training mode": lambda k, x: k.predict(x, training_mode=True),
    "predict_logits": lambda k, x: k.predict_logits(x),
    "loss_gradient": lambda k, x: k.loss_gradient(x, k.encode(np.zeros(len(x), int))),
    "class_gradient": lambda k, x: k.class_gradient(x, label=0),
    "compute_loss": lambda k, x: k.compute_loss(x, k.encode(np.zeros(len(x), int))),
    "get_activations": lambda k, x: k.get_activations(x, 0),
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
