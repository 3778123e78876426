# SPDX-License-Identifier: Apache-2.0
"""Training recipes: a seeded, resumable loop that fine-tunes a classifier over stored pixels and writes its card.

Recipes read the splits ``train`` and ``val`` only. Scores on the test split are measured afterwards, by
:mod:`art_medical.evaluation`.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save as to_safetensors
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from art_medical.errors import ModelError
from art_medical.estimators.heads import Head
from art_medical.estimators.module import ClassifierModule, inference
from art_medical.images.datasets import Dataset
from art_medical.zoo.cards import OperatingPoint, TrainingEntry, WeightFile
from art_medical.zoo.networks import build
from art_medical.zoo.operating_point import threshold_at_sensitivity

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Schedule:
    """Hyperparameters of one fine-tuning.

    :param epochs: Passes over the training split.
    :param batch_size: Images in one step.
    :param learning_rate: Peak rate of AdamW; linear warm-up over the first tenth, then a cosine to zero.
    :param weight_decay: Decoupled weight decay.
    :param average: Decay of the moving average of the weights for each step, the weights that are kept.
    :param frozen_norm: Keep batch-norm statistics as they were.
    :param bfloat16: Train in bfloat16 autocast; decisions are always taken in float32.
    :param seed: Seeds order, augmentation and dropout.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 1e-2
    average: float = 0.99
    frozen_norm: bool = False
    bfloat16: bool = False
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

    The loss weighs both classes equally. An interrupted run continues after its last whole epoch and ends with the same
    weights.

    :param checkpoint: File for the state after each epoch.
    :param report: Called after each step with (epoch, step, loss).
    :return: One record for each epoch: training loss and validation AUROC of the averaged weights.
    """
    steps = math.ceil(len(train) / schedule.batch_size)
    optimizer = torch.optim.AdamW(module.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, steps * schedule.epochs))
    averaged = {k: v.clone() for k, v in module.network.state_dict().items()}
    history: list[dict[str, float]] = []
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        module.network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        rate.load_state_dict(saved["rate"])
        averaged, history = saved["averaged"], saved["history"]
    for epoch in range(len(history), schedule.epochs):
        torch.manual_seed(schedule.seed * 1000 + epoch)
        module.train()
        if schedule.frozen_norm:
            for layer in module.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()
        losses = []
        for step, (x, y, weight) in enumerate(_batches(train, schedule, epoch, augment)):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=schedule.bfloat16):
                logits = module.logits(x).float()
            loss = (_loss(logits, y) * weight).mean()
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
        auroc = float(roc_auc_score(val.y, positive_scores(module, val.x)))
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


def positive_scores(module: ClassifierModule, x: NDArray[np.float32], batch_size: int = 64) -> NDArray[np.float64]:
    """Probability of the positive class, float32 arithmetic, ``(N,)``."""
    rows = []
    with inference(module), torch.no_grad():
        for start in range(0, len(x), batch_size):
            rows.append(module.logits(torch.from_numpy(x[start : start + batch_size])).numpy())
    return module.head.probabilities(np.concatenate(rows))[:, -1]


def linear_probe(
    module: ClassifierModule,
    readout: nn.Linear,
    train: Dataset,
    val: Dataset,
    report: Callable[[int], None],
) -> tuple[float, float]:
    """Fit the last layer on the frozen features of the network: standardise, logistic regression, C chosen on ``val``.

    :param readout: The last layer, with one output; its weights are replaced.
    :return: The chosen C and its validation AUROC.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = {name: _features(module, readout, data.x, report) for name, data in (("train", train), ("val", val))}
    best: tuple[float, float, Any] | None = None
    for c in (1e-4, 1e-3, 1e-2, 1e-1):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000, class_weight="balanced"))
        probe.fit(features["train"], train.y)
        auroc = float(roc_auc_score(val.y, probe.decision_function(features["val"])))
        if best is None or auroc > best[1]:
            best = (c, auroc, probe)
    assert best is not None
    scaler, regression = best[2][0], best[2][1]
    weight = regression.coef_ / scaler.scale_
    with torch.no_grad():
        readout.weight.copy_(torch.from_numpy(weight))
        readout.bias.copy_(torch.from_numpy(regression.intercept_ - weight @ scaler.mean_))
    return best[0], best[1]


def _features(
    module: ClassifierModule, readout: nn.Linear, x: NDArray[np.float32], report: Callable[[int], None]
) -> NDArray[np.float64]:
    kept: list[Tensor] = []
    handle = readout.register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0]))
    try:
        for start in range(0, len(x), 64):
            positive_scores(module, x[start : start + 64])
            report(min(64, len(x) - start))
    finally:
        handle.remove()
    return torch.cat(kept).double().numpy()


def _batches(
    data: Dataset, schedule: Schedule, epoch: int, augment: Augment
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(schedule.seed * 1000 + epoch)
    order = torch.randperm(len(data), generator=generator).numpy()
    counts = np.bincount(data.y)
    weights = len(data) / (len(counts) * counts)
    for start in range(0, len(data), schedule.batch_size):
        rows = order[start : start + schedule.batch_size]
        x = augment(torch.from_numpy(data.x[rows]), generator)
        yield x, torch.from_numpy(data.y[rows]), torch.from_numpy(weights[data.y[rows]]).float()


def _loss(logits: Tensor, y: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits[:, 0], y.float(), reduction="none")
    return functional.cross_entropy(logits, y, reduction="none")


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


# -- augmentation of stored pixels ---------------------------------------------------------------------------------


def affine(
    x: Tensor, generator: torch.Generator, *, degrees: float, zoom: tuple[float, float], shift: float, flip: bool
) -> Tensor:
    """Random rotation, zoom, shift and horizontal flip of 2-D images, bilinear, one draw for each image.

    :param x: ``(N, C, H, W)``.
    :param degrees: Largest rotation.
    :param zoom: Range of the zoom factor.
    :param shift: Largest shift as a fraction of half the side.
    """
    n = len(x)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    angle, scale = torch.deg2rad(uniform(-degrees, degrees)), 1 / uniform(*zoom)
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0) if flip else torch.ones(n)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = [
        torch.stack([cos * mirror, -sin, uniform(-shift, shift)], 1),
        torch.stack([sin * mirror, cos, uniform(-shift, shift)], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def tone(
    x: Tensor,
    generator: torch.Generator,
    *,
    low: float,
    high: float,
    gamma: float,
    contrast: float,
    brightness: float,
) -> Tensor:
    """Random gamma, contrast and brightness of each image inside its domain ``[low, high]``.

    :param gamma: Gamma is drawn log-uniformly from ``[1/gamma, gamma]``.
    :param contrast: Contrast factor is drawn from ``1 +- contrast``, about the mean of the image.
    :param brightness: Offset is drawn from ``+- brightness`` times the range.
    """
    shape = (len(x),) + (1,) * (x.ndim - 1)

    def draw() -> Tensor:
        return (torch.rand(len(x), generator=generator) * 2 - 1).view(shape)

    unit = ((x - low) / (high - low)).clamp(0, 1) ** (gamma ** draw())
    mean = unit.mean(dim=tuple(range(1, x.ndim)), keepdim=True)
    unit = (unit - mean) * (1 + contrast * draw()) + mean + brightness * draw()
    return unit.clamp(0, 1) * (high - low) + low


# -- what a recipe leaves behind -------------------------------------------------------------------------------------


def write_weights(network: nn.Module, path: Path, *, half: bool = True) -> WeightFile:
    """Write safetensors (float16 by default) and return what the card says of them.

    The network keeps the rounded weights, so that thresholds are fixed on what will be loaded.

    :raises ModelError: If a weight is not finite, or too large for float16.
    """
    state = {}
    for key, value in network.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        state[key] = tensor.half() if half and tensor.is_floating_point() else tensor
        if not bool(state[key].isfinite().all()):
            raise ModelError(f"tensor {key!r} is not finite in {str(state[key].dtype)[6:]}: nobody could load it")
    data = to_safetensors(state)
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.replace(path)
    network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return WeightFile(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def at_sensitivity(module: ClassifierModule, val: Dataset, sensitivity: float) -> tuple[Head, OperatingPoint]:
    """The head with its threshold fixed on clean validation images, and the record of that.

    :param sensitivity: Smallest sensitivity on ``val``.
    """
    tau = threshold_at_sensitivity(positive_scores(module, val.x), val.y == 1, sensitivity)
    head = module.head.model_copy(update={"thresholds": (tau,)})
    return head, OperatingPoint(split="val", rule="sensitivity at least", target=sensitivity, n=len(val))


def training_entry(recipe: str, seed: int, started_from: str) -> TrainingEntry:
    """Provenance of a training run on this machine."""
    versions = {name: version(name) for name in ("torch", "monai", "numpy")}
    return TrainingEntry(
        recipe=recipe, seed=seed, started_from=started_from, versions={"python": platform.python_version(), **versions}
    )


def count_parameters(target: str, args: dict[str, Any]) -> int:
    """Number of parameters of an allow-listed network."""
    return sum(p.numel() for p in build(target, args).parameters())
