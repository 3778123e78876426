# SPDX-License-Identifier: Apache-2.0
"""The training loop: seeded, resumable, with a moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from art_medical.errors import InputError
from art_medical.estimators.module import ClassifierModule
from art_medical.images.datasets import Dataset
from art_medical.training.adversary import Adversary
from art_medical.training.scores import mean_auroc, scores

Augment = Callable[[Tensor, torch.Generator], Tensor]


class Schedule(BaseModel):
    """Hyperparameters of one fine-tuning.

    :param epochs: Passes over the training split.
    :param batch_size: Images in one step.
    :param learning_rate: Peak rate of AdamW; linear warm-up over the first tenth, then a cosine to zero.
    :param weight_decay: Decoupled weight decay.
    :param average: Decay of the moving average of the weights for each step, the weights that are kept.
    :param frozen_norm: Keep batch-norm statistics as they were.
    :param bfloat16: Train in bfloat16 autocast; decisions are always taken in float32.
    :param adversary: Who attacks the training images, for adversarial training.
    :param seed: Seeds order, augmentation and dropout.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0, default=1e-2)
    average: float = Field(ge=0, lt=1, default=0.99)
    frozen_norm: bool = False
    bfloat16: bool = False
    adversary: Adversary | None = None
    seed: int = 0


def fit(
    module: ClassifierModule,
    train: Dataset,
    val: Dataset,
    schedule: Schedule,
    augment: Augment,
    checkpoint: Path,
    report: Callable[[int, int, float], None],
) -> list[dict[str, float]]:
    """Fine-tune ``module`` in place and leave the averaged weights of the last epoch in it.

    The loss weighs presence and absence of each finding equally. An interrupted run continues after its last whole
    epoch and ends with the same weights.

    :param module: A yes-or-no or multi-label classifier with sigmoid outputs.
    :param augment: What happens to a batch of training images.
    :param checkpoint: File for the state after each epoch.
    :param report: Called after each step with (epoch, step, loss).
    :return: One record for each epoch: training loss and validation AUROC of the averaged weights.
    :raises InputError: If the head is a softmax.
    """
    if module.head.kind == "softmax":
        raise InputError("recipes train one-logit and multi-label heads; write a two-class softmax as one logit")
    steps = math.ceil(len(train) / schedule.batch_size)
    optimizer = torch.optim.AdamW(module.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, steps * schedule.epochs))
    averaged = {k: v.clone() for k, v in module.network.state_dict().items()}
    history: list[dict[str, float]] = []
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=next(module.parameters()).device)
        module.network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        rate.load_state_dict(saved["rate"])
        averaged, history = saved["averaged"], saved["history"]
    for epoch in range(len(history), schedule.epochs):
        torch.manual_seed(schedule.seed * 1000 + epoch)
        losses = []
        for step, (x, y, weight) in enumerate(_batches(module, train, schedule, augment, epoch)):
            _training_mode(module, schedule)
            with _autocast(x.device, schedule):
                logits = module.logits(x).float()
            loss = (functional.binary_cross_entropy_with_logits(logits, y, reduction="none") * weight).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            rate.step()
            losses.append(loss.item())
            _average(averaged, module.network.state_dict(), schedule.average, len(history) * steps + step)
            report(epoch, step, losses[-1])
        live = {k: v.clone() for k, v in module.network.state_dict().items()}
        module.network.load_state_dict(averaged)
        auroc = mean_auroc(val.y, scores(module, val.x))
        module.network.load_state_dict(live)
        history.append({"loss": float(np.mean(losses)), "val_auroc": auroc})
        state = {
            "network": live,
            "averaged": averaged,
            "optimizer": optimizer.state_dict(),
            "rate": rate.state_dict(),
            "history": history,
        }
        part = checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(checkpoint)
    module.network.load_state_dict(averaged)
    return history


def fit_with_progress(
    module: ClassifierModule,
    data: dict[str, Dataset],
    schedule: Schedule,
    augment: Augment,
    checkpoint: Path,
    console: Console,
) -> list[dict[str, float]]:
    """:func:`fit` with a progress bar and one line for each epoch."""
    steps = math.ceil(len(data["train"]) / schedule.batch_size)
    with Progress(console=console) as progress:
        bar = progress.add_task("training", total=steps * schedule.epochs)

        def report(epoch: int, step: int, loss: float) -> None:
            progress.update(bar, completed=epoch * steps + step + 1, description=f"epoch {epoch + 1}, loss {loss:.3f}")

        history = fit(module, data["train"], data["val"], schedule, augment, checkpoint, report)
    for number, row in enumerate(history, start=1):
        console.print(f"epoch {number}: loss {row['loss']:.4f}, validation AUROC {row['val_auroc']:.4f}")
    return history


def _training_mode(module: ClassifierModule, schedule: Schedule) -> None:
    module.train()
    if schedule.frozen_norm:
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()


def _autocast(device: torch.device, schedule: Schedule) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=schedule.bfloat16)


def _batches(
    module: ClassifierModule, data: Dataset, schedule: Schedule, augment: Augment, epoch: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Stored pixels, multi-hot truth and weights ``(N, K)`` of one epoch in random order."""
    device = next(module.parameters()).device
    generator = torch.Generator().manual_seed(schedule.seed * 1000 + epoch)
    order = torch.randperm(len(data), generator=generator).numpy()
    truth = data.y.reshape(len(data), -1)
    present = truth.sum(0)
    weights = np.where(truth == 1, len(data) / (2 * present), len(data) / (2 * (len(data) - present)))
    for start in range(0, len(data), schedule.batch_size):
        rows = order[start : start + schedule.batch_size]
        x = augment(torch.from_numpy(data.x[rows]), generator).to(device)
        y = torch.from_numpy(truth[rows]).float().to(device)
        if schedule.adversary is not None:
            x = schedule.adversary.attack(module, x, y, data.domain, generator, _autocast(device, schedule))
        yield x, y, torch.from_numpy(weights[rows]).float().to(device)


def _warm_cosine(step: int, total: int) -> float:
    warm = max(1, total // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _average(averaged: dict[str, Tensor], current: dict[str, Tensor], decay: float, step: int) -> None:
    decay = min(decay, (1 + step) / (10 + step))
    for key, value in current.items():
        if value.is_floating_point():
            averaged[key].lerp_(value, 1 - decay)
        else:
            averaged[key].copy_(value)
