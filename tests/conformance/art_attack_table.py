# SPDX-License-Identifier: Apache-2.0
"""ART's own evasion attacks on a ``MedicalClassifier``: what works, and what ART itself cannot do.

One row is one attack with its options. ``test_art_attacks.py`` runs every row on every head in 2-D and 3-D; the
documentation renders the same rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from art.attacks import EvasionAttack, evasion
from art.defences.postprocessor import Postprocessor
from numpy.typing import NDArray
from scipy.special import softmax

from art_medical.domain import PixelDomain
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.steps import Rescale
from tests.conformance.networks import HEADS, Case

TWO_CLASSES = ("softmax-2", "one-logit")
# Where ART's tracker knows nothing about it.
UNREPORTED = "not reported"


class Limit(NamedTuple):
    """What ART itself cannot do; the test asserts exactly this, so that it fails on the day when ART mends it.

    :ivar because: The cause, in ART.
    :ivar issue: Issue or pull request of Trusted-AI/adversarial-robustness-toolbox.
    :ivar error: What the attack raises, or ``None`` where it returns without having flipped a decision.
    :ivar match: Regular expression for the message.
    :ivar heads: Heads that it concerns.
    :ivar dimensions: Numbers of spatial axes that it concerns.
    """

    because: str
    issue: str = UNREPORTED
    error: type[Exception] | None = None
    match: str = ""
    heads: tuple[str, ...] = tuple(HEADS)
    dimensions: tuple[int, ...] = (2, 3)


class Row(NamedTuple):
    """One attack of ART.

    :ivar name: Name of the row.
    :ivar build: The attack, from a case as the door shows it.
    :ivar flips: Least share of the decisions that must flip.
    :ivar linf: Largest change of a pixel, in budgets of the case, or ``None``.
    :ivar l2: Largest Euclidean change of an image, in budgets of the case, or ``None``.
    :ivar nearer: The attacked image must be nearer than another image that has a different decision: the yardstick for
        attacks without a budget.
    :ivar door: Which view of the classifier the attack needs, a key of :data:`DOORS`.
    :ivar options: Arguments of ``generate`` besides ``x``, from the case as the door shows it.
    :ivar limit: What ART itself cannot do.
    :ivar note: What a user of this attack should know.
    """

    name: str
    build: Callable[[Case], EvasionAttack]
    flips: float = 1.0
    linf: float | None = None
    l2: float | None = None
    nearer: bool = False
    door: str = "stored pixels"
    options: Callable[[Case], dict[str, Any]] = lambda case: {}
    limit: Limit | None = None
    note: str = ""


class Probabilities(Postprocessor):  # type: ignore[misc]  # ART ships no types
    """The probabilities of the decision logits, for attacks that read scores as probabilities."""

    def __call__(self, preds: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(softmax(preds, axis=1), np.float32)


class Raised(Postprocessor):  # type: ignore[misc]
    """One more on every decision logit: the same probabilities and decisions."""

    def __call__(self, preds: NDArray[np.float32]) -> NDArray[np.float32]:
        return preds + 1


def _behind(case: Case, postprocessor: Postprocessor) -> Case:
    whole = case.classifier
    classifier = MedicalClassifier(
        whole.network,
        domain=whole.domain,
        head=whole.head,
        input_shape=whole.input_shape,
        steps=whole.steps,
        postprocessing_defences=postprocessor,
    )
    return case._replace(classifier=classifier)


def _unit_interval(case: Case) -> Case:
    low, span = case.seen[0], case.seen[1] - case.seen[0]
    classifier = case.classifier.behind(
        (Rescale(scale=span, offset=low),),
        domain=PixelDomain(0, 1, None, "share"),
        input_shape=case.classifier.input_shape,
    )
    x, other = ((pixels - np.float32(low)) / np.float32(span) for pixels in (case.x, case.other))
    return Case(classifier, x, other, (0.0, 1.0), case.eps / span)


DOORS: dict[str, Callable[[Case], Case]] = {
    "stored pixels": lambda case: case,
    "unit interval": _unit_interval,
    "probabilities": lambda case: _behind(case, Probabilities()),
    "raised logits": lambda case: _behind(case, Raised()),
}

QUIET: dict[str, Any] = {"verbose": False}
UNIT_SCALE = "Made for pixels in [0, 1]: show it the classifier there, with behind() and a Rescale step."


def _iterative(case: Case) -> dict[str, Any]:
    return {"eps": case.eps, "eps_step": case.eps / 4, "max_iter": 10, "verbose": False}


def _auto(case: Case, loss_type: str | None) -> EvasionAttack:
    return evasion.AutoProjectedGradientDescent(
        case.classifier,
        eps=case.eps,
        eps_step=2 * case.eps,
        max_iter=10,
        nb_random_init=1,
        loss_type=loss_type,
        verbose=False,
    )


def _start(case: Case) -> dict[str, Any]:
    return {"x_adv_init": case.other}


ROWS: tuple[Row, ...] = (
    Row(
        "FastGradientMethod",
        lambda case: evasion.FastGradientMethod(case.classifier, eps=case.eps),
        flips=0.5,
        linf=1,
        note="One step along the sign of the gradient; weak by design.",
    ),
    Row(
        "ProjectedGradientDescent",
        lambda case: evasion.ProjectedGradientDescent(case.classifier, **_iterative(case)),
        linf=1,
        note="Dispatches to ART's torch variant, since all preprocessing is inside the module.",
    ),
    Row(
        "ProjectedGradientDescent, L2, random start",
        lambda case: evasion.ProjectedGradientDescent(
            case.classifier,
            norm=2,
            eps=12 * case.eps,
            eps_step=2 * case.eps,
            max_iter=10,
            num_random_init=1,
            verbose=False,
        ),
        l2=12,
    ),
    Row(
        "BasicIterativeMethod",
        lambda case: evasion.BasicIterativeMethod(case.classifier, **_iterative(case)),
        linf=1,
    ),
    Row(
        "MomentumIterativeMethod",
        lambda case: evasion.MomentumIterativeMethod(case.classifier, **_iterative(case)),
        linf=1,
    ),
    Row(
        "AutoProjectedGradientDescent",
        lambda case: _auto(case, None),
        linf=1,
        note="loss_type=None keeps the estimator. Always pass eps_step = 2 eps: ART's default is the number 0.1.",
    ),
    Row(
        "AutoProjectedGradientDescent, cross_entropy",
        lambda case: _auto(case, "cross_entropy"),
        linf=1,
        note="ART rebuilds a plain PyTorchClassifier around the module, which holds the input steps and the head.",
    ),
    Row(
        "AutoProjectedGradientDescent, difference_logits_ratio",
        lambda case: _auto(case, "difference_logits_ratio"),
        linf=1,
        limit=Limit(
            "the ratio needs three logits", "#2399", IndexError, "index -3 is out of bounds", heads=TWO_CLASSES
        ),
        note="Works on a multi-label head, whose label sets are 2**K classes.",
    ),
    Row(
        "AutoAttack",
        lambda case: evasion.AutoAttack(
            case.classifier,
            eps=case.eps,
            eps_step=2 * case.eps,
            attacks=[_auto(case, "cross_entropy"), evasion.DeepFool(case.classifier, max_iter=10, verbose=False)],
        ),
        linf=1,
        note="Needs the package multiprocess, which ART does not declare. With attacks=None it ends in Square (images "
        "only) and in the ratio loss (three classes or more) as soon as an image survives.",
    ),
    Row(
        "CarliniL2Method",
        lambda case: evasion.CarliniL2Method(
            case.classifier,
            confidence=0.1,
            initial_const=1.0,
            max_iter=20,
            binary_search_steps=4,
            batch_size=4,
            **QUIET,
        ),
        nearer=True,
        door="unit interval",
        note=UNIT_SCALE,
    ),
    Row(
        "CarliniLInfMethod",
        lambda case: _carlini_linf(case),
        linf=1.5,
        nearer=True,
        door="unit interval",
        note=UNIT_SCALE,
    ),
    Row(
        "CarliniLInfMethod on stored pixels",
        lambda case: _carlini_linf(case),
        limit=Limit("keeps only changes below 1.0, whatever the clip values are", "#1380"),
        note="Returns the image unchanged.",
    ),
    Row(
        "ElasticNet",
        lambda case: evasion.ElasticNet(
            case.classifier,
            confidence=0.1,
            initial_const=1.0,
            max_iter=30,
            binary_search_steps=3,
            batch_size=4,
            verbose=False,
        ),
        nearer=True,
        door="unit interval",
        note=UNIT_SCALE,
    ),
    Row(
        "DeepFool",
        lambda case: evasion.DeepFool(case.classifier, epsilon=0.01, max_iter=20, batch_size=4, verbose=False),
        nearer=True,
        door="unit interval",
        note=f"{UNIT_SCALE} On stored pixels each step is too long by the factor of the range (#476).",
    ),
    Row(
        "NewtonFool",
        lambda case: evasion.NewtonFool(case.classifier, eta=0.1, max_iter=20, batch_size=4, verbose=False),
        flips=0.75,
        nearer=True,
        door="raised logits",
        note="Goes on until the score of the class is 1/K. Of two logits +-z/2 that is before the boundary; a "
        "postprocessor that adds 1 to all logits moves it behind.",
    ),
    Row(
        "NewtonFool on decision logits",
        lambda case: evasion.NewtonFool(case.classifier, eta=0.1, max_iter=20, batch_size=4, verbose=False),
        flips=0.25,
        limit=Limit("stops at the score 1/K, that is before the boundary of two logits", heads=TWO_CLASSES),
    ),
    Row(
        "SimBA",
        lambda case: evasion.SimBA(
            case.classifier, attack="px", epsilon=3 * case.eps, max_iter=512, freq_dim=4, verbose=False
        ),
        flips=0.75,
        door="probabilities",
        note='Needs a postprocessor that turns the logits into probabilities; attack="px" works on volumes.',
    ),
    Row(
        "SimBA on decision logits",
        lambda case: evasion.SimBA(case.classifier, attack="px", epsilon=2 * case.eps, freq_dim=4, verbose=False),
        limit=Limit("refuses logits", "#1157", ValueError, "requires an estimator predicting probabilities"),
    ),
    Row(
        "SquareAttack",
        lambda case: evasion.SquareAttack(case.classifier, eps=1.5 * case.eps, max_iter=100, p_init=0.3, verbose=False),
        flips=0.75,
        linf=1.5,
        limit=Limit("no volumes", UNREPORTED, ValueError, "Unrecognized input dimension", dimensions=(3,)),
    ),
    Row(
        "UniversalPerturbation",
        lambda case: evasion.UniversalPerturbation(
            case.classifier,
            attacker="fgsm",
            attacker_params={"eps": case.eps, "eps_step": case.eps / 4},
            eps=2 * case.eps,
            max_iter=10,
            verbose=False,
        ),
        flips=0.5,
        linf=2,
        note="One perturbation for all images. The inner attack needs eps in stored units, too.",
    ),
    Row(
        "FeatureAdversariesPyTorch",
        lambda case: evasion.FeatureAdversariesPyTorch(
            case.classifier,
            delta=3 * case.eps,
            layer="class_layers.flatten",
            step_size=case.eps / 4,
            max_iter=20,
            batch_size=4,
            verbose=False,
        ),
        linf=3,
        options=lambda case: {"y": case.other},
        note="y is the image whose features are imitated; layers by dotted name.",
    ),
    Row(
        "HopSkipJump",
        lambda case: evasion.HopSkipJump(case.classifier, max_iter=5, max_eval=50, init_eval=10, verbose=False),
        nearer=True,
        options=_start,
        note="Give x_adv_init, an image with another decision: its own random starts are not seeded and may never "
        "change a decision, and then it returns the image as it was.",
    ),
    Row(
        "BoundaryAttack",
        lambda case: evasion.BoundaryAttack(
            case.classifier,
            targeted=False,
            max_iter=10,
            num_trial=5,
            sample_size=5,
            delta=0.05,
            epsilon=0.05,
            verbose=False,
        ),
        nearer=True,
        options=_start,
        note="Give x_adv_init, as for HopSkipJump.",
    ),
    Row(
        "SpatialTransformation",
        lambda case: evasion.SpatialTransformation(
            case.classifier, max_translation=40, num_translations=5, max_rotation=30, num_rotations=3, verbose=False
        ),
        flips=0.5,
        limit=Limit(
            "images only",
            UNREPORTED,
            RuntimeError,
            "sequence argument must have length equal to input",
            dimensions=(3,),
        ),
        note="One shift and rotation for all images.",
    ),
    Row(
        "GeoDA",
        lambda case: evasion.GeoDA(case.classifier, max_iter=400, sub_dim=8, verbose=False),
        limit=Limit("calls np.mat, which NumPy 2 removed", UNREPORTED, AttributeError, "np.mat"),
        note="Also writes 2d_dct_basis_*.npy into the current folder, and takes square images only.",
    ),
)


class Mask(NamedTuple):
    """What becomes of the argument ``mask`` of ``generate``, which says where an image may change.

    :ivar name: A row of :data:`ROWS`.
    :ivar kept: Whether nothing changes outside; else the test asserts that something does.
    :ivar because: Why not.
    :ivar issue: As in :class:`Limit`.
    """

    name: str
    kept: bool = True
    because: str = ""
    issue: str = ""


MASKS: tuple[Mask, ...] = (
    Mask("FastGradientMethod"),
    Mask("ProjectedGradientDescent"),
    Mask("ProjectedGradientDescent, L2, random start"),
    Mask("BasicIterativeMethod"),
    Mask("MomentumIterativeMethod"),
    Mask("AutoProjectedGradientDescent", False, "masks the gradient, not the random start", "#704"),
    Mask("AutoProjectedGradientDescent, cross_entropy", False, "masks the gradient, not the start", "#704"),
    Mask("SquareAttack", False, "does not read the mask", UNREPORTED),
    Mask("UniversalPerturbation", False, "does not read the mask", UNREPORTED),
    Mask("DeepFool", False, "does not read the mask", "#652"),
)


def _carlini_linf(case: Case) -> EvasionAttack:
    return evasion.CarliniLInfMethod(
        case.classifier,
        confidence=0.1,
        max_iter=20,
        initial_const=4.0,
        largest_const=8.0,
        const_factor=4.0,
        decrease_factor=0.5,
        learning_rate=0.05,
        verbose=False,
    )
