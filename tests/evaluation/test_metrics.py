# SPDX-License-Identifier: Apache-2.0
"""Metrics against tables worked out by hand, against each other, and against the head that takes the decisions."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score

from art_medical.errors import InputError
from art_medical.estimators.heads import Head
from art_medical.evaluation.intervals import Estimate, bootstrap_rate, delong, wilson
from art_medical.evaluation.metrics import Predictions, summarise

BINARY = Head(kind="one-logit", labels=("healthy", "pneumonia"), thresholds=(0.3,))
CLASSES = Head(kind="softmax", labels=("a", "b", "c"))
LABELS = Head(kind="multi-label", labels=("nodule", "effusion"))


def predictions(probabilities: ArrayLike, decisions: ArrayLike, truth: ArrayLike) -> Predictions:
    """One patient for each image."""
    groups = np.array([f"p{i:04d}" for i in range(len(np.asarray(truth)))], dtype=np.str_)
    return Predictions(
        np.asarray(probabilities, dtype=np.float64),
        np.asarray(decisions, dtype=np.int64),
        np.asarray(truth, dtype=np.int64),
        groups,
    )


def binary(positive: ArrayLike, truth: ArrayLike, tau: float = 0.3) -> Predictions:
    p = np.asarray(positive, dtype=np.float64)
    return predictions(np.stack([1 - p, p], axis=1), p > tau, truth)


def predicted(head: Head, logits: ArrayLike, truth: ArrayLike) -> Predictions:
    """As an evaluation makes them: network logits in float32, through the head."""
    z = np.asarray(logits, dtype=np.float32)
    decisions = head.decision_logits(torch.from_numpy(z)).argmax(1).numpy()
    return predictions(head.probabilities(z), decisions, truth)


def counts(estimates: dict[str, Estimate]) -> dict[str, tuple[int, int]]:
    """Successes and denominator of each rate."""
    return {
        name: (round((estimate.value or 0) * estimate.n), estimate.n)
        for name, estimate in estimates.items()
        if not name.startswith(("auroc", "confidence"))
    }


# -- by hand -----------------------------------------------------------------------------------------------------------

# image      0    1    2    3    4    5    6    7    8    9
TRUTH = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
CLEAN = [0.9, 0.8, 0.4, 0.2, 0.1, 0.2, 0.1, 0.2, 0.6, 0.7]  # 3 found, 1 missed; 4 quiet, 2 false alarms
ATTACKED = [0.1, 0.7, 0.2, 0.6, 0.9, 0.1, 0.2, 0.35, 0.9, 0.1]
# 0 and 2 hidden, 1 kept, 3 found by luck; 4 and 7 false alarms, 5 and 6 quiet, 8 still wrong, 9 put right by luck


def test_binary_table() -> None:
    estimates = summarise(BINARY, binary(ATTACKED, TRUTH), binary(CLEAN, TRUTH), seed=0)
    assert counts(estimates) == {
        "accuracy": (5, 10),  # 1, 3, 5, 6, 9
        "accuracy_argmax": (6, 10),  # 7 is quiet at 0.5
        "sensitivity": (2, 4),
        "specificity": (3, 6),
        "ppv": (2, 5),
        "npv": (3, 5),
        "robust_accuracy": (3, 10),  # 1, 5, 6: luck does not count
        "attack_success_rate": (4, 7),  # 0, 2, 4, 7 of the seven that were right
        "attack_success_rate_all": (7, 10),  # three wrong before and four successes
        "hide": (2, 3),
        "inject": (2, 4),
    }
    for name, (k, n) in counts(estimates).items():
        assert estimates[name] == wilson(k, n), name
    assert estimates["confidence"].value == pytest.approx((5 * 0.9 + 2 * 0.8 + 0.7 + 0.65 + 0.6) / 10)
    assert estimates["auroc"] == delong(np.array(ATTACKED), np.array(TRUTH) == 1)
    assert estimates["auroc"].value == pytest.approx((1 + 4 + 2.5 + 4) / 24)  # negatives below 0.1, 0.7, 0.2, 0.6


def test_clean_cell_has_no_attack_rates() -> None:
    estimates = summarise(BINARY, binary(CLEAN, TRUTH), None, seed=0)
    assert list(estimates) == [
        "accuracy", "accuracy_argmax", "confidence", "auroc", "sensitivity", "specificity", "ppv", "npv",
    ]  # fmt: skip
    assert counts(estimates)["accuracy"] == (7, 10)


def test_exclusive_classes_table() -> None:
    clean = predictions(np.eye(3)[[0, 1, 2, 0, 1]], [0, 1, 2, 0, 1], [0, 1, 2, 1, 2])
    attacked = predictions(np.full((5, 3), 1 / 3), [1, 1, 0, 1, 0], [0, 1, 2, 1, 2])
    estimates = summarise(CLASSES, attacked, clean, seed=0)
    assert counts(estimates) == {
        "accuracy": (2, 5),
        "accuracy_argmax": (1, 5),  # all tied: class 0
        "robust_accuracy": (1, 5),
        "attack_success_rate": (2, 3),
        "attack_success_rate_all": (4, 5),
    }
    assert estimates["auroc"].value == 0.5
    assert estimates["confidence"].value == pytest.approx(1 / 3)
    assert estimates["confidence"].low is None


def test_label_sets_table() -> None:
    """Class number = 1 x nodule + 2 x effusion."""
    truth = [3, 3, 1, 0, 2]
    clean = predictions([[0.9, 0.9], [0.9, 0.1], [0.8, 0.2], [0.1, 0.1], [0.1, 0.9]], [3, 1, 1, 0, 2], truth)
    attacked = predictions([[0.2, 0.9], [0.1, 0.9], [0.7, 0.6], [0.5, 0.9], [0.5, 0.9]], [2, 2, 3, 2, 2], truth)
    estimates = summarise(LABELS, attacked, clean, seed=0)
    assert counts(estimates) == {
        "accuracy": (1, 5),
        "accuracy_argmax": (1, 5),  # 0.5 is no nodule
        "sensitivity[nodule]": (1, 3),
        "specificity[nodule]": (2, 2),
        "ppv[nodule]": (1, 1),
        "npv[nodule]": (2, 4),
        "sensitivity[effusion]": (3, 3),
        "specificity[effusion]": (0, 2),
        "ppv[effusion]": (3, 5),
        "npv[effusion]": (0, 0),
        "robust_accuracy": (1, 5),
        "attack_success_rate": (3, 4),
        "attack_success_rate_all": (4, 5),
        "hide[nodule]": (2, 3),
        "inject[nodule]": (0, 2),
        "hide[effusion]": (0, 2),  # effusion of image 1 was missed before: not in the denominator
        "inject[effusion]": (2, 2),
    }
    assert estimates["npv[effusion]"].value is None
    assert estimates["auroc[nodule]"].value == pytest.approx(2 / 6)  # negatives below 0.2, 0.1, 0.7: 0, 0, 2
    mean = (0.8 * 0.9 + 0.9 * 0.9 + 0.7 * 0.6 + 0.5 * 0.9 + 0.5 * 0.9) / 5
    assert estimates["confidence"].value == pytest.approx(mean)
    areas = [estimates[f"auroc[{label}]"].value for label in LABELS.labels]
    assert estimates["auroc"].value == pytest.approx(sum(a for a in areas if a is not None) / 2)


def test_patients_with_several_images_get_a_second_interval() -> None:
    patients = np.array([f"p{i // 2}" for i in range(10)])
    after, before = (replace(binary(p, TRUTH), groups=patients) for p in (ATTACKED, CLEAN))
    estimates = summarise(BINARY, after, before, seed=7)
    right = after.decisions == after.truth
    assert estimates["accuracy"] == bootstrap_rate(right, patients, seed=7)
    kept = np.array([0, 1, 2])  # positives found before, of patients 0, 0 and 1
    assert estimates["hide"] == bootstrap_rate(~right[kept], patients[kept], seed=7)
    was = np.array([0, 1, 2, 4, 5, 6, 7])
    assert estimates["attack_success_rate"] == bootstrap_rate(~right[was], patients[was], seed=7)
    alone = {name for name, estimate in estimates.items() if estimate.clustered_low is None}
    assert alone == {"confidence", "ppv", "npv"}  # already a bootstrap; five images of five patients each
    assert summarise(BINARY, after, before, seed=7) == estimates


# -- identities --------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([BINARY, CLASSES, LABELS]), st.integers(0, 40))
def test_identities_hold_for_every_head_and_size(seed: int, head: Head, n: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(head.nb_classes, size=n)
    before = predicted(head, rng.normal(size=(n, head.outputs)), truth)
    after = predicted(head, rng.normal(size=(n, head.outputs)), truth)
    estimates = summarise(head, after, before, seed=0)
    json.dumps({name: estimate.to_json() for name, estimate in estimates.items()}, allow_nan=False)
    table = counts(estimates)
    wrong_before = int((before.decisions != truth).sum())
    successes, right_before = table["attack_success_rate"]
    assert right_before == n - wrong_before
    assert table["attack_success_rate_all"] == (wrong_before + successes, n)
    assert table["robust_accuracy"] == (n - wrong_before - successes, n)
    if head.thresholds is None:
        assert estimates["accuracy_argmax"] == estimates["accuracy"]
    if head is BINARY:  # an attack success of a binary model is a hidden or an injected finding
        assert table["hide"][0] + table["inject"][0] == successes
        assert table["hide"][1] + table["inject"][1] == right_before
        assert table["sensitivity"][0] + table["specificity"][0] == table["accuracy"][0]
    if n == 0:
        assert all(estimate.value is None for estimate in estimates.values())


def test_one_label_of_a_multi_label_model_is_the_binary_model_of_its_view() -> None:
    head = Head(kind="multi-label", labels=("a", "b", "c"), thresholds=(0.2, 0.5, 0.7))
    rng = np.random.default_rng(0)
    truth = rng.integers(8, size=60)
    clean, attacked = rng.normal(size=(2, 60, 3))
    whole = summarise(head, predicted(head, attacked, truth), predicted(head, clean, truth), seed=0)
    for k, label in enumerate(head.labels):
        view, bit = head.view(label), truth >> k & 1
        part = summarise(
            view, predicted(view, attacked[:, k : k + 1], bit), predicted(view, clean[:, k : k + 1], bit), seed=0
        )
        for name in ("auroc", "sensitivity", "specificity", "ppv", "npv", "hide", "inject"):
            assert whole[f"{name}[{label}]"] == part[name]


def test_macro_auroc_of_exclusive_classes_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=80)
    p = predicted(CLASSES, rng.normal(size=(80, 3)) + np.eye(3)[truth], truth)
    estimate = summarise(CLASSES, p, None, seed=0)["auroc"]
    expected = roc_auc_score(truth, p.probabilities, multi_class="ovr", average="macro")
    assert estimate.value == pytest.approx(expected, abs=1e-12)
    assert estimate.low is not None
    assert estimate.high is not None
    assert 0.05 < estimate.high - estimate.low < 0.25


# -- arguments ---------------------------------------------------------------------------------------------------------


def test_predictions_that_do_not_fit_are_refused() -> None:
    clean, attacked = binary(CLEAN, TRUTH), binary(ATTACKED, TRUTH)
    with pytest.raises(InputError, match=r"got \(2, 2\), \(2,\), \(1,\) and \(1,\)"):
        predictions(np.zeros((2, 2)), [0, 1], [0])
    with pytest.raises(InputError, match=r"\[0, 1\], got -2.0"):
        predictions([[-2.0, 3.0]], [0], [0])
    with pytest.raises(InputError, match="2 probabilities for each image do not fit 3 classes"):
        summarise(CLASSES, clean, None, seed=0)
    with pytest.raises(InputError, match="truth 2 is outside the 2 classes"):
        summarise(BINARY, replace(clean, truth=clean.truth * 2), None, seed=0)
    with pytest.raises(InputError, match="the same images in the same order"):
        summarise(BINARY, attacked, replace(clean, groups=clean.groups[::-1]), seed=0)
    with pytest.raises(InputError, match="got 9 and 10"):
        summarise(BINARY, attacked, binary(CLEAN[1:], TRUTH[1:]), seed=0)


def test_metrics_need_no_torch() -> None:
    """A report is made from records, on machines without a deep learning framework."""
    code = "import sys, art_medical.evaluation.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
