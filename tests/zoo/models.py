# SPDX-License-Identifier: Apache-2.0
"""Model folders as a recipe leaves them, small and untrained, for tests of everything that reads one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from art_medical.zoo.networks import build

RESNET: dict[str, Any] = {
    "block": "basic",
    "layers": [1, 1, 1, 1],
    "block_inplanes": [4, 4, 8, 8],
    "spatial_dims": 2,
    "n_input_channels": 1,
    "conv1_t_size": 3,
    "conv1_t_stride": 2,
    "no_max_pool": True,
    "num_classes": 1,
}


def fields(**changes: Any) -> dict[str, Any]:
    """A valid card as data, of a linear observer over four 8-bit pixels."""
    card: dict[str, Any] = {
        "schema": "art-medical/card@1",
        "name": "tiny",
        "version": "1.0.0",
        "files": {"model.safetensors": {"sha256": "0" * 64, "size": 1}},
        "format": "safetensors",
        "architecture": {"target": "LinearObserver", "args": {"shape": [1, 2, 2]}, "num_parameters": 5},
        "input": {
            "modality": "phantom",
            "shape": [1, 2, 2],
            "low": 0,
            "high": 255,
            "step": 1,
            "unit": "grey level",
            "steps": [],
        },
        "head": {"kind": "one-logit", "labels": ["no", "yes"]},
        "licence": "Apache-2.0",
        "authors": ["nobody"],
        "data": {"name": "none", "doi": "", "licence": "", "splits": {}, "patient_disjoint": "unknown"},
        "training": {"recipe": "", "seed": 0, "started_from": "random weights", "versions": {}},
        "citation": [],
        "intended_use": "Tests.",
        "known_faults": [],
    }
    return {**card, **changes}


def write_model(
    folder: Path,
    *,
    target: str = "LinearObserver",
    args: dict[str, Any] | None = None,
    prepare: Callable[[nn.Module], None] = lambda network: None,
    input: dict[str, Any] | None = None,
    seed: int = 0,
    **card: Any,
) -> Path:
    """A folder with card and weights that :func:`art_medical.load` takes; its name is the model's.

    :param args: Arguments of the network, by default a linear observer over four pixels.
    :param prepare: Called with the network before its weights are written.
    :param input: Changes of the card's ``input``.
    :param seed: Of the random weights.
    :param card: Changes of the card.
    """
    content = fields(name=folder.name, **card)
    arguments = content["architecture"]["args"] if args is None else args
    torch.manual_seed(seed)
    network = build(target, arguments)
    prepare(network)
    data = save({key: value.contiguous() for key, value in network.state_dict().items()})
    content["files"] = {"model.safetensors": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}}
    count = sum(p.numel() for p in network.parameters())
    content["architecture"] = {"target": target, "args": arguments, "num_parameters": count}
    content["input"] = {**content["input"], **(input or {})}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(data)
    (folder / "card.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def biased(bias: float) -> Callable[[nn.Module], None]:
    """For ``prepare``: a last bias that sets the logit of an average image, so that a decision is near or far."""

    def prepare(network: nn.Module) -> None:
        last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
        with torch.no_grad():
            last.bias.fill_(bias)

    return prepare
