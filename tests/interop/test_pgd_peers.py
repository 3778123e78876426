# SPDX-License-Identifier: Apache-2.0
"""PGD and APGD against the same attacks of other packages: same model, images, budget, number of starts and steps.

Ours starts at the clean image; the APGD of the others starts at a random point, which is now and then luck: of 100
images, L-infinity APGD of theirs has flipped one that ours left with a margin of 0.01 logits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import art_medical
from art_medical.attacks import AutoProjectedGradientDescent, ProjectedGradientDescent
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.images.phantoms import PLANE

N = 32
STEPS = {"pgd": 10, "apgd": 30}
SPAN = PLANE.domain.span
BUDGETS = {"linf": 4.0, "l2": 120.0, "l1": 400.0}
"""Where the model's robust accuracy is neither 0 nor 1."""
ORDERS: dict[str, Any] = {"linf": np.inf, "l2": 2, "l1": 1}

Images = NDArray[np.float32]


class UnitRange(nn.Module):
    """The model behind images on [0, 1], as other packages want them."""

    def __init__(self, classifier: MedicalClassifier) -> None:
        super().__init__()
        self.module = classifier.module
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.module(x * SPAN)
        return logits


@pytest.fixture(scope="module")
def task() -> tuple[MedicalClassifier, Images, NDArray[np.int64]]:
    """Images that the model gets right."""
    classifier = art_medical.load("phantom-nodule")
    x, y = PLANE.sample(N + 16, seed=3, split="peers")
    right = classifier.predict(x).argmax(1) == y
    return classifier, x[right][:N], y[right][:N]


@contextmanager
def quiet() -> Iterator[None]:
    """Other packages warn of what they do themselves, and draw from the global generators."""
    with warnings.catch_warnings(), torch.random.fork_rng(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        state = np.random.get_state()  # noqa: NPY002
        np.random.seed(0)  # noqa: NPY002
        yield
        np.random.set_state(state)  # noqa: NPY002


def margins(classifier: MedicalClassifier, x: Images, y: NDArray[np.int64]) -> NDArray[np.float64]:
    z = classifier.predict(x).astype(np.float64)
    towards = np.where(y == 1, 1, -1)
    return np.asarray((z[:, 1] - z[:, 0]) * towards)


def inside(attacked: Images, x: Images, norm: str) -> NDArray[np.bool_]:
    """Images of a peer that kept the budget and the range."""
    change = np.linalg.norm((attacked - x).reshape(len(x), -1).astype(np.float64), ORDERS[norm], axis=1)
    in_range = (attacked >= -1e-3).all((1, 2, 3)) & (attacked <= SPAN + 1e-3).all((1, 2, 3))
    return np.asarray((change <= BUDGETS[norm] * (1 + 1e-3)) & in_range)


def by_art(kind: str, norm: str, starts: int) -> Callable[..., Images]:
    def attack(classifier: MedicalClassifier, x: Images, y: NDArray[np.int64]) -> Images:
        from art.attacks.evasion import AutoProjectedGradientDescent as Auto
        from art.attacks.evasion import ProjectedGradientDescentPyTorch

        common: dict[str, Any] = {"norm": ORDERS[norm], "eps": BUDGETS[norm], "max_iter": STEPS[kind], "verbose": False}
        if kind == "apgd":
            made = Auto(classifier, eps_step=2 * BUDGETS[norm], nb_random_init=starts, batch_size=N, **common)
        else:
            step = 2.5 * BUDGETS[norm] / STEPS[kind]
            made = ProjectedGradientDescentPyTorch(
                classifier, eps_step=step, num_random_init=starts, batch_size=N, **common
            )
        return np.asarray(made.generate(x, y=classifier.encode(y)), np.float32)

    return attack


def by_foolbox(name: str, norm: str) -> Callable[..., Images]:
    def attack(classifier: MedicalClassifier, x: Images, y: NDArray[np.int64]) -> Images:
        foolbox = pytest.importorskip("foolbox", reason="needs the package foolbox")
        model = foolbox.PyTorchModel(UnitRange(classifier), bounds=(0, 1))
        made = getattr(foolbox.attacks, name)(steps=STEPS["pgd"], rel_stepsize=2.5 / STEPS["pgd"], random_start=False)
        _, clipped, _ = made(model, torch.from_numpy(x) / SPAN, torch.from_numpy(y), epsilons=BUDGETS[norm] / SPAN)
        return np.asarray(clipped.detach().numpy() * SPAN, np.float32)

    return attack


def by_torchattacks(name: str, norm: str) -> Callable[..., Images]:
    def attack(classifier: MedicalClassifier, x: Images, y: NDArray[np.int64]) -> Images:
        torchattacks = pytest.importorskip("torchattacks", reason="needs the package torchattacks")
        eps = BUDGETS[norm] / SPAN
        steps = STEPS["apgd" if name == "APGD" else "pgd"]
        if name == "APGD":
            more: dict[str, Any] = {"norm": {"linf": "Linf", "l2": "L2"}[norm], "n_restarts": 1}
        else:
            more = {"alpha": 2.5 * eps / steps, "random_start": False}
        made = getattr(torchattacks, name)(UnitRange(classifier), eps=eps, steps=steps, **more)
        return np.asarray(made(torch.from_numpy(x) / SPAN, torch.from_numpy(y)).detach().numpy() * SPAN, np.float32)

    return attack


def by_pyautoattack(norm: str) -> Callable[..., Images]:
    def attack(classifier: MedicalClassifier, x: Images, y: NDArray[np.int64]) -> Images:
        pytest.importorskip("pyautoattack", reason="needs the package pyautoattack")
        from pyautoattack.autopgd_base import APGDAttack

        names = {"linf": "Linf", "l2": "L2", "l1": "L1"}
        made = APGDAttack(
            UnitRange(classifier),
            n_iter=STEPS["apgd"],
            norm=names[norm],
            eps=BUDGETS[norm] / SPAN,
            seed=0,
            device="cpu",
        )
        return np.asarray(
            made.perturb(torch.from_numpy(x) / SPAN, torch.from_numpy(y)).detach().numpy() * SPAN, np.float32
        )

    return attack


PEERS = {
    "art-pgd-linf": ("pgd", "linf", by_art("pgd", "linf", 0)),
    "art-pgd-l2": ("pgd", "l2", by_art("pgd", "l2", 0)),
    "art-pgd-l1": ("pgd", "l1", by_art("pgd", "l1", 0)),
    "foolbox-pgd-linf": ("pgd", "linf", by_foolbox("LinfProjectedGradientDescentAttack", "linf")),
    "foolbox-pgd-l2": ("pgd", "l2", by_foolbox("L2ProjectedGradientDescentAttack", "l2")),
    "foolbox-pgd-l1": ("pgd", "l1", by_foolbox("L1ProjectedGradientDescentAttack", "l1")),
    "foolbox-slide": ("pgd", "l1", by_foolbox("SparseL1DescentAttack", "l1")),
    "torchattacks-pgd-linf": ("pgd", "linf", by_torchattacks("PGD", "linf")),
    "torchattacks-pgd-l2": ("pgd", "l2", by_torchattacks("PGDL2", "l2")),
    "torchattacks-apgd-linf": ("apgd", "linf", by_torchattacks("APGD", "linf")),
    "torchattacks-apgd-l2": ("apgd", "l2", by_torchattacks("APGD", "l2")),
    "art-apgd-linf": ("apgd", "linf", by_art("apgd", "linf", 1)),
    "art-apgd-l2": ("apgd", "l2", by_art("apgd", "l2", 1)),
    "art-apgd-l1": ("apgd", "l1", by_art("apgd", "l1", 1)),
    "pyautoattack-apgd-linf": ("apgd", "linf", by_pyautoattack("linf")),
    "pyautoattack-apgd-l2": ("apgd", "l2", by_pyautoattack("l2")),
    "pyautoattack-apgd-l1": ("apgd", "l1", by_pyautoattack("l1")),
}


@pytest.fixture(scope="module")
def ours(task: tuple[MedicalClassifier, Images, NDArray[np.int64]]) -> Callable[[str, str], NDArray[np.float64]]:
    """Margins that our attack of a kind and norm leaves."""
    classifier, x, y = task
    kept: dict[tuple[str, str], NDArray[np.float64]] = {}

    def run(kind: str, norm: str) -> NDArray[np.float64]:
        if (kind, norm) not in kept:
            common: dict[str, Any] = {"norm": ORDERS[norm], "eps": BUDGETS[norm], "max_iter": STEPS[kind]}
            made = {"pgd": ProjectedGradientDescent, "apgd": AutoProjectedGradientDescent}[kind]
            attack = made(classifier, quantise=False, confidence=np.inf, num_random_init=0, batch_size=N, **common)
            attacked = attack.generate(x, y)
            assert inside(attacked, x, norm).all()
            assert (attack.cost.backward == STEPS[kind]).all() and (attack.cost.forward == STEPS[kind] + 1).all()
            kept[kind, norm] = margins(classifier, attacked, y)
        return kept[kind, norm]

    return run


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_never_flips_what_ours_does_not(
    name: str,
    task: tuple[MedicalClassifier, Images, NDArray[np.int64]],
    ours: Callable[[str, str], NDArray[np.float64]],
) -> None:
    kind, norm, attack = PEERS[name]
    classifier, x, y = task
    with quiet():
        attacked = attack(classifier, x, y)
    valid = inside(attacked, x, norm)
    theirs = np.where(valid, margins(classifier, attacked, y), np.inf)
    found = ours(kind, norm)
    assert valid.any(), "the peer left budget or range with every image: nothing was compared"
    assert not ((theirs < 0) & (found >= 0)).any(), f"theirs {(theirs < 0).sum()}, ours {(found < 0).sum()} of {N}"
