# SPDX-License-Identifier: Apache-2.0
"""ART's own attacks, unmodified, flip the decisions of a ``MedicalClassifier``; on a plain ART classifier many do not.

The attacks, their options and ART's own limits are in ``art_attack_table.py``.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks import evasion
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray
from torch import Tensor, nn

from art_medical.estimators.classifier import MedicalClassifier
from tests.conformance.art_attack_table import DOORS, MASKS, ROWS, Mask, Row
from tests.conformance.networks import HEADS, Case, case

pytestmark = [
    # Attacks that search outside the box are warned, rightly.
    pytest.mark.filterwarnings("ignore::art_medical.errors.DomainWarning"),
]


@pytest.fixture(autouse=True)
def repeatable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Seeds for the global generators that ART draws from, and a folder for what GeoDA writes."""
    monkeypatch.chdir(tmp_path)
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(0)  # UniversalPerturbation shuffles with it
    np.random.seed(0)  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)  # noqa: NPY002


def decisions(classifier: PyTorchClassifier, x: NDArray[np.float32]) -> NDArray[np.int64]:
    """Arg-max of ``predict``: the decision at the operating point."""
    return np.asarray(classifier.predict(x).argmax(1))


def change(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Differences ``(N, pixels)``."""
    return (a.astype(np.float64) - b).reshape(len(a), -1)


def attacked(row: Row, view: Case) -> NDArray[np.float32]:
    """What the attack returns, after the checks that hold for every attack."""
    x = view.x.copy()
    options = row.options(view)
    before = {name: value.copy() for name, value in options.items()}
    result = row.build(view).generate(x, **options)
    np.testing.assert_array_equal(x, view.x, err_msg="the attack has changed its input")
    for name, value in options.items():
        np.testing.assert_array_equal(value, before[name], err_msg=f"the attack has changed {name}")
    assert result.dtype == np.float32 and result.shape == x.shape
    low, high = view.classifier.clip_values
    tolerance = 1e-6 * (high - low)
    assert low - tolerance <= result.min() and result.max() <= high + tolerance
    return np.asarray(result)


def within(row: Row, view: Case, result: NDArray[np.float32]) -> None:
    """The perturbation keeps to what the row states."""
    delta = change(result, view.x)
    length = np.linalg.norm(delta, axis=1)
    if row.linf is not None:
        assert np.abs(delta).max() <= row.linf * view.eps * 1.0001
    if row.l2 is not None:
        assert length.max() <= row.l2 * view.eps * 1.0001
    if row.nearer:
        assert (length < np.linalg.norm(change(view.other, view.x), axis=1)).all()


def stored(view: Case, case_: Case, result: NDArray[np.float32]) -> NDArray[np.float32]:
    """The result in stored pixels."""
    if view.seen == case_.seen:
        return result
    low, high = case_.seen
    return result * np.float32(high - low) + np.float32(low)


@pytest.mark.parametrize("dimensions", [2, 3], ids=["2-D", "3-D"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_attack(row: Row, head: str, dimensions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stated share of decisions flips, inside box and budget; or ART fails exactly as the table says."""
    # AutoAttack imports a package that ART does not declare, and does not use it in one process.
    monkeypatch.setitem(sys.modules, "multiprocess", multiprocessing)
    case_ = case(head, dimensions)
    view = DOORS[row.door](case_)
    limit = row.limit
    limited = limit is not None and head in limit.heads and dimensions in limit.dimensions
    if limit is not None and limited and limit.error is not None:
        with pytest.raises(limit.error, match=limit.match):
            row.build(view).generate(view.x.copy(), **row.options(view))
        return
    result = attacked(row, view)
    flipped = decisions(case_.classifier, stored(view, case_, result)) != decisions(case_.classifier, case_.x)
    if limited:
        assert not flipped.any(), "ART has mended this: take the limit out of the table"
        return
    within(row, view, result)
    assert flipped.mean() >= row.flips


@pytest.mark.parametrize("mask", MASKS, ids=[mask.name for mask in MASKS])
def test_mask(mask: Mask) -> None:
    """Whether an attack that may change the right half of the images only leaves the left half alone."""
    row = next(row for row in ROWS if row.name == mask.name)
    view = DOORS[row.door](case("multi-label", 2))
    allowed = np.zeros(view.x.shape[1:], np.float32)
    allowed[..., 8:] = 1
    result = row.build(view).generate(view.x.copy(), mask=allowed)
    delta = np.abs(result - view.x)
    assert delta[..., 8:].max() > 0
    outside = delta[..., :8].max()
    if mask.kept:
        assert outside == 0
    else:
        assert mask.because and mask.issue
        assert outside > 0.01 * view.eps, "ART has mended this: say so in the table"


class Logits(nn.Module):
    """What somebody without this package wraps: stored pixels to the network's own logits."""

    def __init__(self, classifier: MedicalClassifier) -> None:
        super().__init__()
        self.module = classifier.module

    def forward(self, x: Tensor) -> Tensor:
        return self.module.logits(x)


def plain(case_: Case) -> PyTorchClassifier:
    """ART's classifier over the same network, with the loss that belongs to a sigmoid."""
    classifier = case_.classifier
    return PyTorchClassifier(
        Logits(classifier),
        nn.BCEWithLogitsLoss(),
        classifier.input_shape,
        max(2, classifier.head.outputs),
        clip_values=classifier.clip_values,
        preprocessing=None,
        device_type="cpu",
    )


ON_PLAIN: dict[str, Any] = {
    "FGM": lambda k, eps: evasion.FastGradientMethod(k, eps=eps),
    "PGD": lambda k, eps: evasion.ProjectedGradientDescent(k, eps=eps, eps_step=eps / 4, max_iter=10, verbose=False),
    "APGD": lambda k, eps: evasion.AutoProjectedGradientDescent(
        k, eps=eps, eps_step=2 * eps, max_iter=10, nb_random_init=1, verbose=False
    ),
    "DeepFool": lambda k, eps: evasion.DeepFool(k, max_iter=20, batch_size=4, verbose=False),
    "C&W": lambda k, eps: evasion.CarliniL2Method(
        k, initial_const=1000.0, max_iter=10, binary_search_steps=2, batch_size=4, verbose=False
    ),
    "Square": lambda k, eps: evasion.SquareAttack(k, eps=eps, max_iter=50, p_init=0.3, verbose=False),
    "HopSkipJump": lambda k, eps: evasion.HopSkipJump(k, max_iter=2, max_eval=50, init_eval=10, verbose=False),
    "Boundary": lambda k, eps: evasion.BoundaryAttack(
        k, targeted=False, max_iter=10, num_trial=5, sample_size=5, verbose=False
    ),
}
SHAPE_CLASH = r"Target size .* must be the same as input size"
SINGLE_OUTPUT = "not yet been tested for binary classification with a single output"


@pytest.mark.parametrize(
    ("head", "name", "match"),
    [
        *[("one-logit", name, SINGLE_OUTPUT) for name in ("APGD", "DeepFool", "C&W", "Square")],
        *[("multi-label", name, SHAPE_CLASH) for name in ("FGM", "PGD", "APGD")],
    ],
)
def test_plain_art_refuses(head: str, name: str, match: str) -> None:
    """Attacks that raise on ART's own classifier of a sigmoid model (#2064)."""
    case_ = case(head, 2)
    with pytest.raises(ValueError, match=match):
        ON_PLAIN[name](plain(case_), case_.eps).generate(case_.x.copy())


@pytest.mark.parametrize("name", ["HopSkipJump", "Boundary"])
def test_plain_art_returns_the_image(name: str) -> None:
    """With one output the arg-max is always 0, no start is adversarial and the image comes back without a word."""
    case_ = case("one-logit", 2)
    result = ON_PLAIN[name](plain(case_), case_.eps).generate(case_.x.copy(), x_adv_init=case_.other)
    np.testing.assert_array_equal(result, case_.x)


@pytest.mark.parametrize("name", ["FGM", "PGD"])
def test_plain_art_takes_every_image_as_positive(name: str) -> None:
    """Without labels the only output is "the largest": lesions are hidden, and none is ever injected."""
    case_ = case("one-logit", 2)
    clean = decisions(case_.classifier, case_.x)
    result = ON_PLAIN[name](plain(case_), case_.eps).generate(case_.x.copy())
    assert 0 < clean.sum() < len(clean)
    np.testing.assert_array_equal(decisions(case_.classifier, result) != clean, clean == 1)


@pytest.mark.parametrize("name", ["C&W", "HopSkipJump", "Boundary"])
def test_plain_art_attacks_only_the_largest_label(name: str) -> None:
    """Another label becomes the likeliest, and ART calls it a success, while every finding of some images stands."""
    case_ = case("multi-label", 2)
    art = plain(case_)
    options = {} if name == "C&W" else {"x_adv_init": case_.other}
    result = ON_PLAIN[name](art, case_.eps).generate(case_.x.copy(), **options)
    assert (decisions(art, result) != decisions(art, case_.x)).all()
    assert (decisions(case_.classifier, result) == decisions(case_.classifier, case_.x)).any()


class Uncast(Logits):
    """The same without the cast to the type of the weights, which no network of MONAI has."""

    def forward(self, x: Tensor) -> Tensor:
        for step in self.module.steps:
            x = step.apply(x)
        return self.module.network(x)


class Recorder(MedicalClassifier):
    """Notes the type of what an attack hands in."""

    seen: set[str]

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen.add(str(x.dtype))
        return super().predict(x, *args, **kwargs)


@pytest.mark.skipif(int(np.__version__.split(".")[0]) < 2, reason="NumPy 1 keeps float32 where NumPy 2 does not")
@pytest.mark.parametrize("name", ["HopSkipJump", "Boundary"])
def test_float64_images_of_numpy_2(name: str) -> None:
    """#2475: these attacks hand float64 images to the network, and torch refuses; the cast at our door mends it."""
    case_ = case("softmax-3", 2)
    ours, start = case_.classifier, case_.other
    art = PyTorchClassifier(
        Uncast(ours), nn.CrossEntropyLoss(), ours.input_shape, 3, clip_values=ours.clip_values, device_type="cpu"
    )
    with pytest.raises(RuntimeError, match=r"(?i)double.*float|float.*double"):
        ON_PLAIN[name](art, case_.eps).generate(case_.x.copy(), x_adv_init=start)
    recorder = Recorder(
        ours.network, domain=ours.domain, head=ours.head, input_shape=ours.input_shape, steps=ours.steps
    )
    recorder.seen = set()
    result = ON_PLAIN[name](recorder, case_.eps).generate(case_.x.copy(), x_adv_init=start)
    assert "float64" in recorder.seen
    assert result.dtype == np.float32
    assert (decisions(ours, result) != decisions(ours, case_.x)).all()


def test_autoattack_needs_an_undeclared_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """ART's AutoAttack imports ``multiprocess`` even in one process, and ART does not require it."""
    monkeypatch.setitem(sys.modules, "multiprocess", None)
    case_ = case("softmax-3", 2)
    attack = evasion.AutoAttack(case_.classifier, eps=case_.eps, eps_step=case_.eps, attacks=[])
    with pytest.raises(ModuleNotFoundError, match="multiprocess"):
        attack.generate(case_.x.copy())


def test_deepfool_on_stored_pixels_oversteps() -> None:
    """Why the table shows DeepFool the unit interval: it multiplies its step by the width of the range (#476)."""
    case_ = case("softmax-3", 2)
    row = next(row for row in ROWS if row.name == "DeepFool")
    view = DOORS[row.door](case_)
    minimal = np.linalg.norm(change(attacked(row, view), view.x), axis=1) * (case_.seen[1] - case_.seen[0])
    on_stored = np.linalg.norm(change(attacked(row, case_), case_.x), axis=1)
    assert (on_stored > 5 * minimal).all()
    assert (on_stored > np.linalg.norm(change(case_.other, case_.x), axis=1)).all()


def test_table_names_what_it_must() -> None:
    """The attacks that the project promises, once each at least, and every limit with a cause."""
    promised = (
        "FastGradientMethod ProjectedGradientDescent BasicIterativeMethod MomentumIterativeMethod NewtonFool SimBA "
        "AutoProjectedGradientDescent CarliniL2Method CarliniLInfMethod DeepFool SquareAttack UniversalPerturbation "
        "FeatureAdversariesPyTorch HopSkipJump BoundaryAttack"
    )
    names = [row.name for row in ROWS]
    assert set(promised.split()) <= set(names) and len(set(names)) == len(names)
    assert all(row.limit.because and row.limit.issue for row in ROWS if row.limit)
    assert set(HEADS) == {"softmax-2", "softmax-3", "one-logit", "multi-label"}
