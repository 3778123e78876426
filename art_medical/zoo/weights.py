# SPDX-License-Identifier: Apache-2.0
"""Weights: read once, hash those bytes, parse those bytes, load strictly."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import nn

from art_medical.errors import ModelError
from art_medical.zoo.cards import Card


def read_weights(path: Path, *, sha256: str, size: int) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file whose length and hash are known beforehand.

    :raises ModelError: If the file is missing, a link, of another length or hash, or not safetensors.
    """
    try:
        if path.is_symlink():
            raise ModelError(f"{path} is a symbolic link; weights must be a plain file")
        found = path.stat().st_size
        if found != size:
            raise ModelError(f"{path} has {found} bytes, the card says {size}: the file is not the one that was carded")
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the weights {path}: {error.strerror}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise ModelError(f"{path} has sha256 {digest}, the card says {sha256}: refused before parsing")
    try:
        return parse_safetensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"{path} is no valid safetensors file: {error}") from error


def load_weights(network: nn.Module, tensors: dict[str, torch.Tensor], where: str) -> None:
    """Load float16 or float32 tensors into ``network``, strictly, as float32.

    :raises ModelError: If a name or shape differs, or a number is not finite.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{where}: tensor {name!r} holds NaN or infinity")
    state = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        message = " ".join(str(error).split())[:300]
        raise ModelError(f"{where}: the tensors do not fit the network: {message}") from error


def check_parameter_count(network: nn.Module, card: Card) -> None:
    """The card's count is a second, independent statement about the architecture."""
    count = sum(p.numel() for p in network.parameters())
    if count != card.architecture.num_parameters:
        raise ModelError(
            f"{card.name}: {card.architecture.target} has {count:,} parameters, "
            f"the card says {card.architecture.num_parameters:,}"
        )
