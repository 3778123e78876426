# SPDX-License-Identifier: Apache-2.0
"""Linear probe: the read-out of a network fitted on its frozen features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from art_medical.estimators.module import ClassifierModule
from art_medical.images.datasets import Dataset
from art_medical.training.scores import scores


def linear_probe(
    module: ClassifierModule,
    readout: nn.Linear,
    train: Dataset,
    val: Dataset,
    report: Callable[[int], None],
) -> list[tuple[float, float]]:
    """Fit the last layer on the frozen features of the network: standardise, logistic regression, C chosen on ``val``.

    :param readout: The last layer, with one output for each finding; its weights are replaced.
    :param report: Called with the number of images seen since the last call.
    :return: For each finding the chosen C and its validation AUROC.
    """
    seen = {name: features(module, readout, data.x, report) for name, data in (("train", train), ("val", val))}
    truth = {name: data.y.reshape(len(data), -1) for name, data in (("train", train), ("val", val))}
    chosen = []
    for k in range(truth["train"].shape[1]):
        c, auroc, probe = _best(seen, {name: y[:, k] for name, y in truth.items()})
        scaler, regression = probe[0], probe[1]
        weight = regression.coef_ / scaler.scale_
        with torch.no_grad():
            readout.weight[k].copy_(torch.from_numpy(weight[0]))
            readout.bias[k].copy_(torch.from_numpy(regression.intercept_ - weight @ scaler.mean_)[0])
        chosen.append((c, auroc))
    return chosen


def _best(x: dict[str, NDArray[np.float64]], y: dict[str, NDArray[np.int64]]) -> tuple[float, float, Any]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    best: tuple[float, float, Any] | None = None
    for c in (1e-4, 1e-3, 1e-2, 1e-1):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000, class_weight="balanced"))
        probe.fit(x["train"], y["train"])
        auroc = float(roc_auc_score(y["val"], probe.decision_function(x["val"])))
        if best is None or auroc > best[1]:
            best = (c, auroc, probe)
    assert best is not None
    return best


def features(
    module: ClassifierModule, readout: nn.Module, x: NDArray[np.float32], report: Callable[[int], None]
) -> NDArray[np.float64]:
    """What ``readout`` gets for stored pixels ``x``: ``(N, width)``."""
    kept: list[Tensor] = []
    handle = readout.register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0]))
    try:
        for start in range(0, len(x), 64):
            scores(module, x[start : start + 64])
            report(min(64, len(x) - start))
    finally:
        handle.remove()
    return torch.cat(kept).double().cpu().numpy()
