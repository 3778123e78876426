# SPDX-License-Identifier: Apache-2.0
"""A start for a network that has no published weights: learn to predict the features of a network that has them.

Feature regression without labels, after FitNets (Romero et al. 2015, arXiv 1412.6550, section 2.2), at the last layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from art_medical.estimators.module import ClassifierModule, inference
from art_medical.images.datasets import Dataset
from art_medical.training.fit import Augment, Schedule


class _Features:
    """Keeps what a read-out layer got in the last forward pass."""

    def __init__(self, readout: nn.Module) -> None:
        self.last: Tensor | None = None
        self._handle = readout.register_forward_pre_hook(self._keep)

    def _keep(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.last = inputs[0]

    def of(self, module: ClassifierModule, x: Tensor) -> Tensor:
        module.logits(x)
        assert self.last is not None
        return self.last.float()

    def close(self) -> None:
        self._handle.remove()


def distil(
    student: ClassifierModule,
    student_readout: nn.Linear,
    teacher: ClassifierModule,
    teacher_readout: nn.Linear,
    train: Dataset,
    schedule: Schedule,
    augment: Augment,
    report: Callable[[int, int, float], None],
) -> float:
    """Train ``student`` in place so that a linear map of its features predicts those of ``teacher``; no label is used.

    :param report: Called after each step with (epoch, step, loss).
    :return: Share of the variance of the teacher's features that is explained, mean of the last epoch, at most 1.
    """
    torch.manual_seed(schedule.seed)
    device = student_readout.weight.device
    head = nn.Linear(student_readout.in_features, teacher_readout.in_features).to(device)
    steps = math.ceil(len(train) / schedule.batch_size)
    parameters = [*student.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.learning_rate, total_steps=steps * schedule.epochs + 1, pct_start=0.1
    )
    of_student, of_teacher = _Features(student_readout), _Features(teacher_readout)
    explained: list[float] = []
    try:
        for epoch in range(schedule.epochs):
            explained.clear()
            generator = torch.Generator().manual_seed(schedule.seed * 1000 + epoch)
            order = torch.randperm(len(train), generator=generator)
            for step in range(steps):
                rows = order[step * schedule.batch_size : (step + 1) * schedule.batch_size]
                if len(rows) == 1:
                    continue  # one image has no variance
                x = augment(torch.from_numpy(train.x[rows.numpy()]), generator).to(device)
                with inference(teacher), torch.no_grad(), _autocast(x, schedule):
                    aim = of_teacher.of(teacher, x)
                student.train()
                with _autocast(x, schedule):
                    found = head(of_student.of(student, x))
                loss = functional.mse_loss(found.float(), aim) / aim.var(0, unbiased=False).mean()
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                rate.step()
                explained.append(1 - loss.item())
                report(epoch, step, loss.item())
    finally:
        of_student.close()
        of_teacher.close()
    return sum(explained) / len(explained)


def _autocast(x: Tensor, schedule: Schedule) -> torch.autocast:
    return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=schedule.bfloat16)
