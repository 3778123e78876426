# SPDX-License-Identifier: Apache-2.0
"""What a training leaves behind: weights, operating point and provenance."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_safetensors
from torch import nn

from art_medical.errors import ModelError
from art_medical.estimators.heads import Head
from art_medical.estimators.module import ClassifierModule
from art_medical.images.datasets import Dataset
from art_medical.training.scores import scores
from art_medical.zoo.cards import OperatingPoint, TrainingEntry, WeightFile
from art_medical.zoo.networks import build
from art_medical.zoo.operating_point import threshold_at_sensitivity


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
    """The head with its thresholds fixed on clean validation images, and the record of that.

    :param sensitivity: Smallest sensitivity on ``val``, for each label.
    """
    found = scores(module, val.x)
    truth = val.y.reshape(len(val), -1) == 1
    thresholds = tuple(threshold_at_sensitivity(found[:, k], truth[:, k], sensitivity) for k in range(truth.shape[1]))
    head = module.head.model_copy(update={"thresholds": thresholds})
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
