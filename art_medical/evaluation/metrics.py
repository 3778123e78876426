# SPDX-License-Identifier: Apache-2.0
"""What an attack did to the decisions of a model: rates with named denominators, each with its interval.

Every function takes predictions and a seed and returns an :class:`~art_medical.evaluation.intervals.Estimate`. A new
metric is one function and one row in :func:`summarise`.

*Positive* is class 1 of a binary head, and for each label of a multi-label head the presence of that label. *Before* is
the clean prediction, *after* the one under attack, both at the operating point of the head unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from art_medical.errors import InputError
from art_medical.evaluation.intervals import (
    Estimate,
    bootstrap_auroc,
    bootstrap_macro_auroc,
    bootstrap_mean,
    bootstrap_rate,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from art_medical.estimators.heads import Head


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What a model said about N images, and what is true.

    :param probabilities: ``(N, K)`` in [0, 1], before any threshold, as
        :meth:`~art_medical.estimators.heads.Head.probabilities` returns them.
    :param decisions: ``(N,)`` class number at the operating point: arg-max of the decision logits.
    :param truth: ``(N,)`` class number as in :meth:`~art_medical.estimators.heads.Head.encode`; for multi-label models
        the number of the label set.
    :param groups: ``(N,)`` patient of each image; the name of the image where patients are unknown.
    :raises InputError: If lengths differ or a probability is none.
    """

    probabilities: NDArray[np.float64]
    decisions: NDArray[np.int64]
    truth: NDArray[np.int64]
    groups: NDArray[np.str_]

    def __post_init__(self) -> None:
        n = len(self.truth)
        shapes = [np.shape(a) for a in (self.decisions, self.truth, self.groups)]
        if np.ndim(self.probabilities) != 2 or len(self.probabilities) != n or any(s != (n,) for s in shapes):
            raise InputError(
                f"predictions need (N, K) probabilities and N decisions, truths and groups, got "
                f"{np.shape(self.probabilities)}, {shapes[0]}, {shapes[1]} and {shapes[2]}"
            )
        _check_probabilities(self.probabilities)


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """The predictions for one yes-or-no question.

    :param present: Boolean ``(N,)``, the truth.
    :param reported: Boolean ``(N,)``, the decision at the operating point.
    :param score: ``(N,)`` probability of the finding, before the threshold.
    :param groups: ``(N,)`` patients.
    """

    present: NDArray[np.bool_]
    reported: NDArray[np.bool_]
    score: NDArray[np.float64]
    groups: NDArray[np.str_]


def findings(head: Head, predictions: Predictions) -> dict[str, Finding]:
    """One entry for each yes-or-no question, under the suffix of its metrics.

    ``""`` for a binary head, ``[label]`` for each label of a multi-label head, none for exclusive classes.
    """
    p = predictions
    if head.kind == "multi-label":
        return {
            f"[{label}]": Finding(
                (p.truth >> k & 1).astype(bool), (p.decisions >> k & 1).astype(bool), p.probabilities[:, k], p.groups
            )
            for k, label in enumerate(head.labels)
        }
    if head.binary:
        return {"": Finding(p.truth == 1, p.decisions == 1, p.probabilities[:, 1], p.groups)}
    return {}


def summarise(head: Head, after: Predictions, before: Predictions | None, seed: int) -> dict[str, Estimate]:
    """All metrics of one cell, under their names in the JSON record.

    :param head: Meaning of the outputs.
    :param after: Predictions of the cell: under attack, or clean for the clean cell itself.
    :param before: Clean predictions for the same images in the same order, ``None`` for the clean cell.
    :param seed: Seed of all resampling.
    :raises InputError: If the predictions do not fit the head or each other.
    """
    _check_fit(head, after)
    estimates = {
        "accuracy": accuracy(after, seed),
        "accuracy_argmax": accuracy_argmax(head, after, seed),
        "confidence": confidence(head, after, seed),
    }
    if not head.binary:
        estimates["auroc"] = macro_auroc(head, after, seed)
    questions = findings(head, after)
    for suffix, finding in questions.items():
        estimates[f"auroc{suffix}"] = auroc(finding, seed)
        estimates[f"sensitivity{suffix}"] = sensitivity(finding, seed)
        estimates[f"specificity{suffix}"] = specificity(finding, seed)
        estimates[f"ppv{suffix}"] = positive_predictive_value(finding, seed)
        estimates[f"npv{suffix}"] = negative_predictive_value(finding, seed)
    if before is None:
        return estimates
    _check_fit(head, before)
    _check_same_images(after, before)
    estimates["robust_accuracy"] = robust_accuracy(after, before, seed)
    estimates["attack_success_rate"] = attack_success_rate(after, before, seed)
    estimates["attack_success_rate_all"] = attack_success_rate_all(after, before, seed)
    for suffix, finding in findings(head, before).items():
        estimates[f"hide{suffix}"] = hide(questions[suffix], finding, seed)
        estimates[f"inject{suffix}"] = inject(questions[suffix], finding, seed)
    return estimates


# -- all decisions of one prediction -----------------------------------------------------------------------------------


def accuracy(p: Predictions, seed: int) -> Estimate:
    """Images whose decision at the operating point is right / all images.

    For multi-label models the whole set of labels must be right.
    """
    return bootstrap_rate(p.decisions == p.truth, p.groups, seed)


def accuracy_argmax(head: Head, p: Predictions, seed: int) -> Estimate:
    """Images that are right without any threshold / all images.

    The decision is the most probable class, or of a multi-label model the set of labels with a probability above 0.5.
    A tie is decided as ART's arg-max decides it: the lower class number, the label absent.
    """
    if head.kind == "multi-label":
        decisions = ((p.probabilities > 0.5).astype(np.int64) << np.arange(head.outputs)).sum(1)
    else:
        decisions = p.probabilities.argmax(1)
    return bootstrap_rate(decisions == p.truth, p.groups, seed)


def confidence(head: Head, p: Predictions, seed: int) -> Estimate:
    """Mean over all images of the probability of the most probable class, before any threshold.

    The classes of a multi-label model are the sets of labels; the most probable one has ``prod_k max(p_k, 1 - p_k)``.
    """
    if head.kind == "multi-label":
        top = np.maximum(p.probabilities, 1 - p.probabilities).prod(1)
    else:
        top = p.probabilities.max(1)
    return bootstrap_mean(top, p.groups, seed)


def macro_auroc(head: Head, p: Predictions, seed: int) -> Estimate:
    """Unweighted mean of the AUROC of each label, or of each exclusive class against the rest; see :func:`auroc`."""
    if head.kind == "multi-label":
        truth = (p.truth[:, None] >> np.arange(head.outputs) & 1).astype(bool)
    else:
        truth = p.truth[:, None] == np.arange(head.nb_classes)
    return bootstrap_macro_auroc(p.probabilities, truth, p.groups, seed)


# -- one yes-or-no question --------------------------------------------------------------------------------------------


def auroc(finding: Finding, seed: int) -> Estimate:
    """AUROC of the probability of the finding, of the images as they are.

    Under attack this is the *as-run* AUROC. It is the worst case only if the attack drove every positive down and every
    negative up, the misclassified ones included, without stopping at the first flip.
    """
    return bootstrap_auroc(finding.score, finding.present, finding.groups, seed)


def sensitivity(finding: Finding, seed: int) -> Estimate:
    """Reported / images with the finding."""
    return _rate(finding.reported, finding.present, finding, seed)


def specificity(finding: Finding, seed: int) -> Estimate:
    """Not reported / images without the finding."""
    return _rate(~finding.reported, ~finding.present, finding, seed)


def positive_predictive_value(finding: Finding, seed: int) -> Estimate:
    """Images with the finding / reported; holds for the prevalence of these images."""
    return _rate(finding.present, finding.reported, finding, seed)


def negative_predictive_value(finding: Finding, seed: int) -> Estimate:
    """Images without the finding / not reported; holds for the prevalence of these images."""
    return _rate(~finding.present, ~finding.reported, finding, seed)


# -- two predictions of the same images --------------------------------------------------------------------------------


def robust_accuracy(after: Predictions, before: Predictions, seed: int) -> Estimate:
    """Right before and still right after / all images.

    An image that was wrong and that the attack happens to put right does not count as robust.
    """
    right = (before.decisions == before.truth) & (after.decisions == after.truth)
    return bootstrap_rate(right, after.groups, seed)


def attack_success_rate(after: Predictions, before: Predictions, seed: int) -> Estimate:
    """Right before and wrong after / right before.

    For multi-label models an image is right if its whole set of labels is, and wrong if any label is.
    """
    right = before.decisions == before.truth
    return bootstrap_rate((after.decisions != after.truth)[right], after.groups[right], seed)


def attack_success_rate_all(after: Predictions, before: Predictions, seed: int) -> Estimate:
    """(Wrong before + right before and wrong after) / all images: 1 - robust accuracy."""
    wrong = (before.decisions != before.truth) | (after.decisions != after.truth)
    return bootstrap_rate(wrong, after.groups, seed)


def hide(after: Finding, before: Finding, seed: int) -> Estimate:
    """Missed findings: present, reported before and not reported after / present and reported before."""
    return _rate(~after.reported, before.present & before.reported, after, seed)


def inject(after: Finding, before: Finding, seed: int) -> Estimate:
    """False alarms: absent, not reported before and reported after / absent and not reported before."""
    return _rate(after.reported, ~before.present & ~before.reported, after, seed)


def _rate(hits: NDArray[np.bool_], among: NDArray[np.bool_], finding: Finding, seed: int) -> Estimate:
    return bootstrap_rate(hits[among], finding.groups[among], seed)


# -- arguments ---------------------------------------------------------------------------------------------------------


def _check_probabilities(probabilities: NDArray[np.float64]) -> None:
    wrong = np.asarray(probabilities)[~((probabilities >= 0) & (probabilities <= 1))]
    if wrong.size:
        raise InputError(f"probabilities must lie in [0, 1], got {wrong[0]}; pass them before any threshold or logit")


def _check_fit(head: Head, p: Predictions) -> None:
    if p.probabilities.shape[1] != len(head.labels):
        raise InputError(f"{p.probabilities.shape[1]} probabilities for each image do not fit {head.describe()}")
    for name, numbers in (("decision", p.decisions), ("truth", p.truth)):
        wrong = numbers[(numbers < 0) | (numbers >= head.nb_classes)]
        if wrong.size:
            raise InputError(f"{name} {wrong[0]} is outside the {head.nb_classes} classes of {head.describe()}")


def _check_same_images(after: Predictions, before: Predictions) -> None:
    if not (np.array_equal(after.truth, before.truth) and np.array_equal(after.groups, before.groups)):
        raise InputError(
            f"clean and attacked predictions must be of the same images in the same order, got {len(before.truth)} and "
            f"{len(after.truth)} with different truth or patients"
        )
