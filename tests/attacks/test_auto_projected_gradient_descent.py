# SPDX-License-Identifier: Apache-2.0
"""APGD: its schedule, its state for each sample, what it costs and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from art_medical.attacks import AutoProjectedGradientDescent, ProjectedGradientDescent
from art_medical.attacks.auto_steps import AutoSparseSteps, AutoSteps, checkpoints
from art_medical.attacks.perturbations import additive
from art_medical.domain import PixelDomain
from art_medical.errors import InputError
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.heads import Head
from tests.attacks.linear_models import LinearModel

OPEN = PixelDomain(-1e4, 1e4, None, "unit")


def curved(classes: int = 4, seed: int = 0) -> tuple[MedicalClassifier, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A small network with curvature, images, and its own decisions on them."""
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(2, 8, 3), torch.nn.Tanh(), torch.nn.Conv2d(8, 8, 3), torch.nn.Tanh(),
        torch.nn.Flatten(), torch.nn.Linear(8 * 36, classes),
    )  # fmt: skip
    for parameter in network.parameters():
        parameter.data *= 3
    classifier = MedicalClassifier(
        torch.nn.Sequential(Scaled(), network),
        domain=PixelDomain(0, 255),
        head=Head(kind="softmax", labels=tuple("abcdef"[:classes])),
        input_shape=(2, 10, 10),
    )
    x = np.random.default_rng(seed).integers(0, 256, (16, 2, 10, 10)).astype(np.float32)
    return classifier, x, classifier.predict(x).argmax(1)


class Scaled(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 127.5 - 1


def test_checkpoints_are_those_of_the_paper():
    assert checkpoints(100) == (0, 22, 41, 57, 70, 80, 87, 93, 99)
    assert checkpoints(50) == (0, 11, 21, 29, 35, 40, 44, 47, 50)
    assert checkpoints(1) == (0, 1)


def walk(steps: AutoSteps, values: list[list[float]], gradient: float = 1.0) -> list[Tensor]:
    """Positions of an optimiser that is told objectives instead of evaluating any."""
    n = len(values[0])
    x = torch.zeros(n, 1, 1)
    perturbation = additive("linf", x, torch.full((n,), 1000.0), OPEN, False, None)
    theta, seen = perturbation.start(None), []
    for value in values:
        seen.append(theta.clone())
        theta = steps.advance(theta, torch.full_like(theta, gradient), torch.tensor(value).double(), perturbation)
    return seen


def test_momentum_is_that_of_the_paper():
    # x1 = x0 - eta; then x + alpha (z - x) + (1 - alpha) (x - x_before), all on a line.
    positions = [p.item() for p in walk(AutoSteps(torch.tensor([8.0]), "linf", 100), [[-k] for k in range(5)])]
    expected = [0.0, -8.0]
    for _ in range(3):
        expected.append(expected[-1] - 0.75 * 8 + 0.25 * (expected[-1] - expected[-2]))
    assert positions == pytest.approx(expected)


def test_a_sample_that_stops_improving_halves_its_steps_and_goes_back_while_its_neighbour_goes_on():
    # Checkpoint at k = 22. One sample improves at every look, the other at the fifth for the last time.
    values = [[-k, -min(k, 5)] for k in range(25)]
    steps = AutoSteps(torch.tensor([8.0, 8.0]), "linf", 100)
    positions = torch.stack(walk(steps, values))[:, :, 0, 0]
    assert steps.eps_step.tolist() == [8, 4]
    best = positions[5, 1]
    momentum = 0.25 * (best - positions[21, 1])
    assert positions[23, 1].item() == pytest.approx((best - 0.75 * 4 + momentum).item())
    assert positions[23, 0] < positions[22, 0]


def test_condition_1_counts_three_quarters_and_condition_2_needs_an_earlier_unhalved_checkpoint():
    def eta_after(improvements: int, checkpoint: int = 22) -> float:
        down = [-float(k) for k in range(improvements + 1)]
        flat = [[v] for v in (down + [down[-1]] * checkpoint)[: checkpoint + 1]]
        steps = AutoSteps(torch.tensor([8.0]), "linf", 100)
        walk(steps, flat)
        return float(steps.eps_step)

    assert eta_after(17) == 8  # 17 of 22 are more than 75 %
    assert eta_after(16) == 4
    # Up and down below an early best value: always "improving" often enough is impossible, so only condition 2 sees
    # a rise of the objective that is followed by slow improvements.
    early = [[0.0], [-100.0]] + [[50.0 - k] for k in range(60)]
    steps = AutoSteps(torch.tensor([8.0]), "linf", 100)
    walk(steps, early[:23])
    assert float(steps.eps_step) == 8  # 21 of 22 improved, and nothing is known of an earlier checkpoint
    walk_on = AutoSteps(torch.tensor([8.0]), "linf", 100)
    walk(walk_on, early[:42])
    assert float(walk_on.eps_step) == 4  # the best value stood still between two checkpoints


def test_sparse_steps_follow_the_best_change():
    clean = torch.zeros(2, 1, 100)
    steps = AutoSparseSteps(torch.tensor([10.0, 10.0]), clean, 100)
    assert (steps.every, steps.count.tolist()) == (4, [20, 20])
    perturbation = additive("l1", clean, torch.tensor([10.0, 10.0]), OPEN, False, None)
    best = torch.zeros_like(clean)
    best[0, 0, :9], best[1, 0, :90] = 1, 0.1
    gradient = torch.linspace(1, 2, 100).expand(2, 1, 100)
    for k in range(5):
        theta = best if k == 1 else torch.full_like(clean, 0.01)
        following = steps.advance(theta.clone(), gradient.clone(), torch.full((2,), -float(k == 1)), perturbation)
    # Nine values became six: fewer than before, so long steps from the best point. Ninety became sixty: no fewer.
    assert steps.count.tolist() == [6, 60]
    assert steps.eps_step.tolist() == pytest.approx([10, 10 / 1.5])
    changed = (following[0] != best[0]).sum()
    assert changed == 15 and (following[0, 0, -6:] < 0).all()
    for _ in range(40):
        steps.advance(torch.full_like(clean, 0.01), gradient.clone(), torch.zeros(2), perturbation)
    assert steps.eps_step[0].item() == pytest.approx(1)  # never below a tenth


def test_state_leaves_with_its_sample():
    steps = AutoSteps(torch.tensor([8.0, 8.0, 8.0]), "linf", 10)
    walk(steps, [[-k, 0.0, -min(k, 1)] for k in range(4)])
    left = steps.select(torch.tensor([2, 0]))
    assert left.f_best.tolist() == [-1, -3]
    assert left.eps_step.tolist() == steps.eps_step[[2, 0]].tolist()
    assert len(left.theta_best) == len(left.gradient_best) == len(left.x_before) == 2
    assert len(steps.f_best) == 3


@pytest.mark.parametrize("norm", [np.inf, 2, 1])
def test_one_forward_and_one_backward_pass_for_each_step(norm):
    classifier, x, y = curved()
    calls = {"forward": 0, "backward": 0}
    classifier.network.register_forward_hook(lambda *_: calls.__setitem__("forward", calls["forward"] + 1))
    classifier.network.register_full_backward_hook(lambda *_: calls.__setitem__("backward", calls["backward"] + 1))
    attack = AutoProjectedGradientDescent(
        classifier, norm=norm, eps=3, max_iter=12, num_random_init=2, confidence=math.inf
    )
    attack.generate(x, y)
    assert calls == {"forward": 2 * 13, "backward": 2 * 12}
    assert (attack.cost.forward == 26).all() and (attack.cost.backward == 24).all()


@pytest.mark.parametrize(("norm", "eps"), [(np.inf, 2), (2, 20), (1, 60)])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr"])
def test_a_sample_alone_ends_as_in_a_batch_whatever_the_others_do(norm, eps, loss):
    classifier, x, y = curved()

    def run(rows):
        attack = AutoProjectedGradientDescent(classifier, norm=norm, eps=eps, max_iter=15, loss_type=loss)
        attacked = attack.generate(x[rows], y[rows], ids=[f"i{i}" for i in rows])
        return attacked, attack.record.success

    everything, success = run(range(len(x)))
    assert success.sum() > 0
    for rows in ([3], [9, 1, 4]):
        assert (run(rows)[0] == everything[rows]).all()


@pytest.mark.parametrize(("norm", "eps"), [(np.inf, 1), (2, 12), (1, 40)])
def test_is_not_weaker_than_pgd_where_the_surface_is_curved(norm, eps):
    classifier, x, y = curved()
    common = {"norm": norm, "eps": eps, "loss_type": "margin", "confidence": math.inf}

    def margins(attack):
        z = classifier.predict(attack.generate(x, y))
        own = z[np.arange(len(z)), y]
        z[np.arange(len(z)), y] = -np.inf
        return own - z.max(1)

    auto = margins(AutoProjectedGradientDescent(classifier, max_iter=60, **common))
    plain = margins(ProjectedGradientDescent(classifier, max_iter=60, num_random_init=1, **common))
    assert np.mean(auto) <= np.mean(plain) + 0.02 * np.abs(plain).mean()
    assert (auto < 0).sum() >= (plain < 0).sum()


@pytest.mark.parametrize(
    ("head", "targeted", "needed"),
    [("one-logit", False, 3), ("softmax", False, 3), ("multi-label", False, 3), ("three-classes", True, 4)],
)
def test_dlr_is_refused_where_it_is_not_defined(head, targeted, needed):
    classifier = LinearModel(2, head).classifier
    for kind in (AutoProjectedGradientDescent, ProjectedGradientDescent):
        with pytest.raises(InputError) as caught:
            kind(classifier, loss_type="dlr", targeted=targeted)
        assert str(caught.value).startswith(f"loss_type 'dlr' needs {needed} exclusive classes")
        assert str(caught.value).endswith("use loss_type='margin'")
    AutoProjectedGradientDescent(LinearModel(2, "three-classes").classifier, loss_type="dlr")


@pytest.mark.parametrize("norm", [0, "l1", 3, None, True, False, np.nan])
def test_norms_that_it_does_not_know_are_refused(norm):
    classifier = LinearModel(2, "softmax").classifier
    with pytest.raises(InputError, match=r"norm must be np\.inf, 2 or 1, got"):
        AutoProjectedGradientDescent(classifier, norm=norm)
    if norm is False or norm != 0:
        with pytest.raises(InputError, match=r"norm must be np\.inf, 2, 1 or 0, got"):
            ProjectedGradientDescent(classifier, norm=norm)
