# SPDX-License-Identifier: Apache-2.0
"""Scores of a model on images, for choosing on the validation split."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from art_medical.estimators.module import ClassifierModule, inference


def scores(module: ClassifierModule, x: NDArray[np.float32], batch_size: int = 64) -> NDArray[np.float64]:
    """Probability of each finding, float32 arithmetic: ``(N, K)``, ``(N, 1)`` for a yes-or-no model."""
    rows = []
    device = next(module.parameters()).device
    with inference(module), torch.no_grad():
        for start in range(0, len(x), batch_size):
            batch = torch.from_numpy(x[start : start + batch_size]).to(device)
            rows.append(module.logits(batch).cpu().numpy())
    probabilities = module.head.probabilities(np.concatenate(rows))
    return probabilities[:, -1:] if module.head.binary else probabilities


def mean_auroc(y: NDArray[np.int64], found: NDArray[np.float64]) -> float:
    """AUROC of the findings, the mean of them where there are several.

    :param y: Truth ``(N,)`` or multi-hot ``(N, K)``.
    :param found: Scores ``(N, K)``.
    """
    truth = y.reshape(len(y), -1)
    return float(np.mean([roc_auc_score(truth[:, k], found[:, k]) for k in range(truth.shape[1])]))
