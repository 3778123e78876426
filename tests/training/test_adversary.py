# SPDX-License-Identifier: Apache-2.0
"""The inner maximisation against a linear model, whose worst case is known, and distillation of a linear teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from art_medical.domain import PixelDomain
from art_medical.estimators.heads import Head
from art_medical.estimators.module import ClassifierModule
from art_medical.estimators.steps import Normalise
from art_medical.images.datasets import Dataset
from art_medical.training.adversary import Adversary
from art_medical.training.distil import distil
from art_medical.training.fit import Schedule, fit
from art_medical.training.scores import scores
from art_medical.zoo.networks import LinearObserver

DOMAIN = PixelDomain(0, 255, 1, "grey level")
HEAD = Head(kind="one-logit", labels=("no", "yes"))
OFF = torch.autocast("cpu", enabled=False)


def linear(seed: int) -> ClassifierModule:
    torch.manual_seed(seed)
    return ClassifierModule(LinearObserver((1, 4, 4)), (Normalise(mean=(127.0,), std=(128.0,)),), HEAD)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_worst_case_of_a_linear_model_is_found_in_one_step(share: float) -> None:
    module = linear(0)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, 1, 4, 4, generator=generator) * 255
    y = torch.tensor([[0.0], [1.0]] * 4)
    adversary = Adversary(eps=3, steps=1, step_size=6, share=share)
    found = adversary.attack(module, x, y, DOMAIN, generator, OFF)
    weight = module.network.readout.weight.detach().view(1, 1, 4, 4)  # type: ignore[union-attr]
    worst = (x + 3 * weight.sign() * (1 - 2 * y).view(-1, 1, 1, 1)).clamp(0, 255)
    count = round(share * 8)
    assert torch.allclose(found[:count], worst[:count], atol=1e-4)
    assert torch.equal(found[count:], x[count:])
    assert not found.requires_grad
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


def data(
    x: np.ndarray[tuple[int, ...], np.dtype[np.float32]], y: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> Dataset:
    names = tuple(map(str, range(len(x))))
    return Dataset("made", "train", x, y, names, np.array(names), DOMAIN, "0" * 64)


def test_adversarial_training_prefers_the_robust_feature(tmp_path: Path) -> None:
    """Pixel 0 tells the classes apart by 100 levels, all others together better but by 2 levels each.

    An attacker with 2 levels turns the weak ones round (Tsipras et al. 2019, arXiv 1805.12152, section 2.1).
    """
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 600)
    x = (100 + 0.7 * generator.standard_normal((600, 1, 4, 4)) + 2 * y[:, None, None, None]).astype(np.float32)
    noisy = generator.random(600) < 0.05  # the robust pixel is wrong in 5 % of the images
    x[:, 0, 0, 0] = 50 + 100 * (y ^ noisy)
    made = data(x, y.astype(np.int64))
    robust = {}
    for name, adversary in (("plain", None), ("robust", Adversary(eps=2, steps=2, step_size=2))):
        module = ClassifierModule(LinearObserver((1, 4, 4)), (Normalise(mean=(100.0,), std=(10.0,)),), HEAD)
        schedule = Schedule(epochs=12, batch_size=50, learning_rate=0.05, adversary=adversary)
        torch.manual_seed(0)
        fit(module, made, made, schedule, lambda batch, _: batch, tmp_path / f"{name}.pt", lambda *_: None)
        truth = torch.from_numpy(y[:, None]).float()
        strong = Adversary(eps=2, steps=5, step_size=2)
        worst = strong.attack(module, torch.from_numpy(x), truth, DOMAIN, torch.Generator().manual_seed(1), OFF)
        robust[name] = float(((scores(module, worst.numpy())[:, 0] > 0.5) == y).mean())
    assert robust["robust"] == pytest.approx(0.95, abs=0.03)
    assert robust["plain"] < robust["robust"] - 0.1


def test_a_linear_student_explains_a_linear_teacher() -> None:
    """The teacher's features are a linear map of the pixels, so a linear student can explain all of their variance."""

    class Features(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.body, self.fc = torch.nn.Linear(16, width), torch.nn.Linear(width, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.fc(self.body(x.flatten(1)))
            return out

    torch.manual_seed(0)
    student, teacher = Features(16), Features(5)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    x = np.random.default_rng(0).standard_normal((256, 1, 4, 4)).astype(np.float32)
    explained = distil(
        ClassifierModule(student, (), HEAD),
        student.fc,
        ClassifierModule(teacher, (), HEAD),
        teacher.fc,
        data(x, np.zeros(256, dtype=np.int64)),
        Schedule(epochs=30, batch_size=32, learning_rate=0.02, weight_decay=0.0),
        lambda batch, _: batch,
        lambda *_: None,
    )
    assert explained > 0.99
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
