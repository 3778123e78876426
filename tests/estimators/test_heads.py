# SPDX-License-Identifier: Apache-2.0
"""Heads: decision logits are exact, decide at the operating point, and keep their gradient."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from torch.nn import functional

from art_medical.errors import InputError
from art_medical.estimators.heads import MOST_LABELS, Head
from art_medical.estimators.module import CrossEntropy

SOFTMAX2 = Head(kind="softmax", labels=("clear", "lesion"))
SOFTMAX3 = Head(kind="softmax", labels=("a", "b", "c"))
ONE = Head(kind="one-logit", labels=("clear", "lesion"), thresholds=(0.2,))


def multi(count: int, thresholds: tuple[float, ...] | None = None) -> Head:
    """A multi-label head with labels l0, l1, ..."""
    return Head(kind="multi-label", labels=tuple(f"l{i}" for i in range(count)), thresholds=thresholds)


def subsets(count: int) -> NDArray[np.int64]:
    """Membership ``(2**count, count)`` of each label in each set, by the definition of the class number."""
    rows: list[tuple[int, ...] | None] = [None] * 2**count
    for members in itertools.product((0, 1), repeat=count):
        rows[sum(2**k for k in range(count) if members[k])] = members
    return np.array(rows)


probabilities = st.floats(0.01, 0.99)


@st.composite
def logits_and_thresholds(draw: st.DrawFn) -> tuple[torch.Tensor, tuple[float, ...]]:
    """Logits ``(N, K)`` in float64 and one threshold for each label."""
    count = draw(st.integers(1, 5))
    rows = draw(st.lists(st.lists(st.floats(-30, 30), min_size=count, max_size=count), min_size=1, max_size=4))
    return torch.tensor(rows, dtype=torch.float64), tuple(draw(probabilities) for _ in range(count))


@given(logits_and_thresholds())
def test_label_sets_are_exact(case: tuple[torch.Tensor, tuple[float, ...]]) -> None:
    """Softmax, cross-entropy, margin and arg-max of the label sets against K independent sigmoids."""
    z, thresholds = case
    count = z.shape[1]
    head = multi(count, thresholds)
    decision = head.decision_logits(z)
    assert decision.shape == (len(z), 2**count) == (len(z), head.nb_classes)
    tau = torch.tensor(thresholds, dtype=torch.float64)
    shifted = z - torch.logit(tau)
    positive = torch.sigmoid(shifted)
    members = torch.from_numpy(subsets(count))

    product = torch.where(members[None] == 1, positive[:, None], 1 - positive[:, None]).prod(2)
    torch.testing.assert_close(decision.softmax(1), product, rtol=1e-6, atol=1e-9)

    for number, row in enumerate(members):
        target = row.double().expand_as(shifted)
        binary = functional.binary_cross_entropy_with_logits(shifted, target, reduction="none").sum(1)
        cross = functional.cross_entropy(decision, torch.full((len(z),), number), reduction="none")
        torch.testing.assert_close(cross, binary, rtol=1e-6, atol=1e-6)

    top = decision.sort(1).values
    torch.testing.assert_close(top[:, -1] - top[:, -2], shifted.abs().min(1).values, rtol=1e-6, atol=1e-6)

    assume(shifted.abs().min() > 1e-5)  # float32 shifts and float64 sigmoids may disagree at the threshold itself
    decided = (torch.sigmoid(z) > tau).long()
    torch.testing.assert_close(members[decision.argmax(1)], decided)


@given(z=st.floats(-30, 30), tau=probabilities)
def test_binary_heads_decide_at_the_threshold(z: float, tau: float) -> None:
    """The pair of one logit is symmetric; two softmax logits decide by the same rule."""
    one = Head(kind="one-logit", labels=("n", "p"), thresholds=(tau,))
    two = Head(kind="softmax", labels=("n", "p"), thresholds=(tau,))
    single = torch.tensor([[z]], dtype=torch.float64)
    pair = one.decision_logits(single)
    softmax = two.decision_logits(torch.cat([torch.zeros_like(single), single], 1))
    gap = z - float(np.log(tau / (1 - tau)))
    assert pair[0, 0] == -pair[0, 1]
    assert (pair[0, 1] - pair[0, 0]).item() == pytest.approx(gap, abs=1e-6)
    assert (softmax[0, 1] - softmax[0, 0]).item() == pytest.approx(gap, abs=1e-6)
    assume(abs(gap) > 1e-5)
    assert pair.argmax().item() == softmax.argmax().item() == int(1 / (1 + np.exp(-z)) > tau)


def test_softmax_without_threshold_is_left_alone() -> None:
    """No copy, no change: the network's logits are the decision logits."""
    z = torch.randn(4, 3)
    assert SOFTMAX3.decision_logits(z) is z


CROSS_ENTROPIES = pytest.mark.parametrize(
    ("cross_entropy", "share"), [(functional.cross_entropy, 0.5), (CrossEntropy(), 1.0)], ids=["torch", "ours"]
)


@CROSS_ENTROPIES
@pytest.mark.parametrize("z", [-80.0, 80.0])
def test_symmetric_pair_keeps_the_gradient(z: float, cross_entropy: Any, share: float) -> None:
    """At |z| = 80 in float32 a confident decision still shows the way out of it, whatever its sign.

    In torch's cross-entropy, which ART's attacks may bring along, the winning logit's half is rounded to 0.
    """
    head = Head(kind="one-logit", labels=("n", "p"))
    logit = torch.tensor([[z]], requires_grad=True)
    cross_entropy(head.decision_logits(logit), torch.tensor([int(z > 0)])).backward()
    assert logit.grad is not None
    assert logit.grad.item() == pytest.approx(-np.sign(z) * np.exp(-abs(z)) * share, rel=1e-4, abs=0)


@CROSS_ENTROPIES
@pytest.mark.parametrize("z", [-80.0, 80.0])
def test_wrong_decisions_have_the_whole_gradient(z: float, cross_entropy: Any, share: float) -> None:
    """The other label, at the same logits: sigmoid(z) minus label, which is one."""
    head = Head(kind="one-logit", labels=("n", "p"))
    logit = torch.tensor([[z]], requires_grad=True)
    cross_entropy(head.decision_logits(logit), torch.tensor([int(z < 0)])).backward()
    assert logit.grad is not None
    assert logit.grad.item() == pytest.approx(np.sign(z))


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 60), soft=st.booleans())
def test_cross_entropy_is_exact(seed: int, scale: float, soft: bool) -> None:
    """Value as torch's; gradient in float32 against float64, relative to its largest entry."""
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(3, 4, generator=generator)
    y = torch.randn(3, 4, generator=generator).softmax(1) if soft else z.argmax(1)
    ours = z.clone().requires_grad_()
    exact = z.double().requires_grad_()
    loss = CrossEntropy(reduction="none")(ours, y)
    reference = functional.cross_entropy(exact, y.double() if soft else y, reduction="none")
    torch.testing.assert_close(loss.double(), reference, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(loss.sum(), ours)
    (expected,) = torch.autograd.grad(reference.sum(), exact)
    largest = expected.abs().amax(1)
    assume((largest > 1e-12).all())  # below, float64 has the same rounding
    torch.testing.assert_close(gradient.double() / largest[:, None], expected / largest[:, None], rtol=1e-3, atol=1e-3)


def test_zero_and_logit_loses_the_gradient() -> None:
    """What the symmetric pair is for: the usual pair (0, z) is stuck at confident positives."""
    logit = torch.tensor([[80.0]], requires_grad=True)
    pair = torch.cat([torch.zeros_like(logit), logit], 1)
    functional.cross_entropy(pair, torch.tensor([1])).backward()
    assert logit.grad is not None and logit.grad.item() == 0


def test_label_sets_keep_the_gradient_of_every_label() -> None:
    """Three confident labels in float32: the gradient is that of three binary cross-entropies."""
    z = torch.tensor([[40.0, -40.0, 25.0]], requires_grad=True)
    head = multi(3)
    number = int(head.decision_logits(z).argmax())
    CrossEntropy()(head.decision_logits(z), torch.tensor([number])).backward()
    assert z.grad is not None
    sign = torch.tensor([[1.0, -1.0, 1.0]])
    torch.testing.assert_close(z.grad, -sign * torch.sigmoid(-z.detach().abs()), rtol=1e-3, atol=1e-17)


@pytest.mark.parametrize(
    ("head", "z", "expected"),
    [
        (SOFTMAX3, [[0.0, np.log(2), np.log(5)]], [[1 / 8, 2 / 8, 5 / 8]]),
        (ONE, [[np.log(3)]], [[1 / 4, 3 / 4]]),
        (multi(2, (0.1, 0.9)), [[np.log(3), -np.log(4)]], [[3 / 4, 1 / 5]]),
        (SOFTMAX2, [[1000.0, 0.0]], [[1.0, 0.0]]),
    ],
)
def test_probabilities_know_no_threshold(head: Head, z: Any, expected: Any) -> None:
    """Closed forms; a threshold moves decisions, never probabilities."""
    np.testing.assert_allclose(head.probabilities(np.array(z, np.float32)), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("head", "y", "numbers"),
    [
        (SOFTMAX3, [2, 0], [2, 0]),
        (SOFTMAX3, np.array([[2], [0]]), [2, 0]),
        (SOFTMAX3, np.eye(3)[[2, 0]], [2, 0]),
        (SOFTMAX3, np.array([1.0, 2.0], np.float32), [1, 2]),
        (ONE, np.array([True, False]), [1, 0]),
        (ONE, np.array([[1], [0]], np.uint8), [1, 0]),
        (ONE, np.array([[0, 1], [1, 0]]), [1, 0]),
        (multi(3), [[1, 0, 1], [0, 0, 0]], [5, 0]),
        (multi(3), np.array([[False, True, True]]), [6]),
        (multi(3), [5, 7], [5, 7]),
        (multi(3), np.eye(8)[[3]], [3]),
        (multi(1), [[1], [0]], [1, 0]),
        (SOFTMAX2, np.zeros((0,), int), []),
    ],
)
def test_encode(head: Head, y: Any, numbers: list[int]) -> None:
    """Every format of labels becomes one-hot float32 rows."""
    rows = head.encode(y)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, np.eye(head.nb_classes, dtype=np.float32)[numbers])


@pytest.mark.parametrize(
    ("head", "y", "words"),
    [
        (SOFTMAX3, [0, 3], "label 3 is outside .* 2 = c"),
        (SOFTMAX3, [-1], "label -1 is outside"),
        (ONE, [2], "label 2 is outside"),
        (SOFTMAX3, [0.5], "cannot read labels"),
        (SOFTMAX3, [np.nan], "cannot read labels"),
        (SOFTMAX3, ["a"], "cannot read labels"),
        (SOFTMAX3, [[1, 1, 0]], "exactly one 1"),
        (SOFTMAX3, [[0.2, 0.3, 0.5]], "exactly one 1"),
        (SOFTMAX3, np.zeros((2, 4)), r"cannot read labels of shape \(2, 4\)"),
        (multi(3), [[1, 0, 2]], "0 or 1, got 2"),
        (multi(3), [[1, 0, -1]], "0 or 1, got -1"),
        (multi(3), [8], "label 8 is outside"),
        (multi(3), [[1, 0]], "cannot read labels"),
    ],
)
def test_refused_labels(head: Head, y: Any, words: str) -> None:
    """One line that names the value and the labels of the card."""
    with pytest.raises(InputError, match=words) as caught:
        head.encode(y)
    assert "\n" not in str(caught.value)


def test_view_of_one_label() -> None:
    """The view decides as the column of the whole does; its name and threshold are the label's own."""
    head = multi(3, (0.2, 0.5, 0.9))
    z = torch.linspace(-4, 4, 30).reshape(10, 3)
    decided = subsets(3)[head.decision_logits(z).argmax(1)]
    for index in range(3):
        view = head.view(index)
        assert view == head.view(f"l{index}")
        assert (view.kind, view.labels, view.thresholds) == (
            "one-logit",
            (f"no l{index}", f"l{index}"),
            (head.thresholds[index],),  # type: ignore[index]
        )
        np.testing.assert_array_equal(view.decision_logits(z[:, [index]]).argmax(1), decided[:, index])
    assert multi(2).view(1).thresholds is None


@pytest.mark.parametrize(
    ("head", "label", "words"),
    [
        (SOFTMAX3, "a", "only multi-label"),
        (multi(2), "effusion", "unknown label 'effusion'"),
        (multi(2), 2, "unknown label 2"),
        (multi(2), -1, "unknown label -1"),
    ],
)
def test_refused_views(head: Head, label: str | int, words: str) -> None:
    """A view needs a label of a multi-label head."""
    with pytest.raises(InputError, match=words):
        head.view(label)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kind": "softmax", "labels": ("a",)}, "two labels or more"),
        ({"kind": "softmax", "labels": ("a", "a")}, "repeat"),
        ({"kind": "one-logit", "labels": ("a",)}, "negative and a positive"),
        ({"kind": "multi-label", "labels": tuple("abcdefghijklmno")}, f"at most {MOST_LABELS}"),
        ({"kind": "softmax", "labels": ("a", "b", "c"), "thresholds": (0.5,)}, "has no threshold"),
        ({"kind": "multi-label", "labels": ("a", "b"), "thresholds": (0.5,)}, "expected 2 threshold"),
        ({"kind": "one-logit", "labels": ("a", "b"), "thresholds": (0.5, 0.5)}, "expected 1 threshold"),
        ({"kind": "one-logit", "labels": ("a", "b"), "thresholds": (0.0,)}, "greater than 0"),
        ({"kind": "one-logit", "labels": ("a", "b"), "thresholds": (1.0,)}, "less than 1"),
        ({"kind": "regression", "labels": ("a",)}, "kind"),
        ({"kind": "softmax", "labels": ("a", "b"), "colour": "red"}, "colour"),
    ],
)
def test_refused_heads(wrong: dict[str, Any], words: str) -> None:
    """What a card must not say."""
    with pytest.raises(ValidationError, match=words):
        Head(**wrong)


def test_a_head_survives_json() -> None:
    """Cards keep heads as JSON."""
    for head in (SOFTMAX2, SOFTMAX3, ONE, multi(2, (0.2, 0.8))):
        assert Head.model_validate_json(head.model_dump_json()) == head
