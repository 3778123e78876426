# SPDX-License-Identifier: Apache-2.0
"""Weights: read once, hash those bytes, parse those bytes, load strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from art_medical.errors import IntegrityError, ModelError, UnpinnedError
from art_medical.zoo.cards import Card
from art_medical.zoo.networks import MOST_PARAMETERS
from art_medical.zoo.state_dict import read_state_dict
from art_medical.zoo.tensor_bytes import read_hashed, tensors_in

MOST_FILE = 5 * MOST_PARAMETERS  # bytes: the largest network in float32, and its names
MOST_HEADER = 1 << 20  # bytes of a safetensors header; a large classifier needs some 100 kB


def read_weights(
    path: Path,
    *,
    sha256: str | None,
    size: int | None,
    format: Literal["safetensors", "state_dict"] = "safetensors",
    wrapper: str = "",
    allow_unpinned: bool = False,
) -> dict[str, torch.Tensor]:
    """Tensors of a file whose length and hash are known beforehand.

    :param sha256: Hash on the card, ``None`` if the card does not pin the file.
    :param size: Length on the card in bytes, ``None`` if the card does not pin the file.
    :param format: As on the card.
    :param wrapper: As on the card.
    :param allow_unpinned: Whether a file that the card does not pin is read; its content is bounded all the same.
    :raises ModelError: If the file is missing, a link, of another length or hash, or not safetensors.
    :raises UnpinnedError: If the card does not pin it and that is not allowed.
    :raises UnsafeBundleError: If it is of another format than ``format``, or holds anything but tensors.
    """
    if (sha256 is None or size is None) and not allow_unpinned:
        raise UnpinnedError(f"the card has no sha256 of {path}; allow_unpinned=True reads it all the same")
    try:
        if path.is_symlink():
            raise ModelError(f"{path} is a symbolic link; weights must be a plain file")
        found = path.stat().st_size
        if found > MOST_FILE:
            raise ModelError(f"{path} has {found:,} bytes; weights have at most {MOST_FILE:,}")
        if size is not None and found != size:
            raise IntegrityError(
                f"{path} has {found} bytes, the card says {size}: the file is not the one that was carded"
            )
        data, digest = read_hashed(path, found)
    except OSError as error:
        raise ModelError(f"cannot read the weights {path}: {error.strerror}") from error
    if sha256 is not None and digest != sha256:
        raise IntegrityError(f"{path} has sha256 {digest}, the card says {sha256}: refused before parsing")
    return parse_weights(data, str(path), format=format, wrapper=wrapper)


def parse_weights(
    data: bytes | memoryview,
    where: str,
    *,
    format: Literal["safetensors", "state_dict"] = "safetensors",
    wrapper: str = "",
) -> dict[str, torch.Tensor]:
    """Tensors of bytes that were hashed before; parameters and errors as in :func:`read_weights`."""
    if format == "state_dict":
        return read_state_dict(bytes(data), where, wrapper)
    header = int.from_bytes(data[:8], "little")
    if header > MOST_HEADER and header <= len(data):
        raise ModelError(f"{where} has a safetensors header of {header:,} bytes, more than {MOST_HEADER:,}")
    try:
        return tensors_in(data)
    except ModelError as error:
        raise ModelError(f"{where} is no valid safetensors file: {error}") from error


def load_weights(network: nn.Module, tensors: dict[str, torch.Tensor], where: str, key_prefix: str = "") -> None:
    """Load float16 or float32 tensors into ``network``, strictly, as float32.

    :param key_prefix: Prefix that is taken off every name, as on the card.
    :raises ModelError: If a name, shape or type differs, or a number is not finite.
    """
    for name, tensor in tensors.items():
        if not name.startswith(key_prefix):
            raise ModelError(f"{where}: tensor {name!r} has not the prefix {key_prefix!r} that the card states")
        if tensor.is_floating_point() and not _finite(tensor):
            raise ModelError(f"{where}: tensor {name!r} holds NaN or infinity")
    built = network.state_dict()
    state = type(built)()
    state._metadata = built._metadata  # type: ignore[attr-defined]  # else torch accepts files of older versions
    for name, tensor in tensors.items():
        key = name.removeprefix(key_prefix)
        state[key] = _as_built(tensor, built.get(key), f"{where}: tensor {name!r}")
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        message = " ".join(str(error).split())[:300]
        raise ModelError(f"{where}: the tensors do not fit the network: {message}") from error


def _finite(tensor: torch.Tensor) -> bool:
    """Both ends of its values tell, NaN among them; twenty times faster than a look at each."""
    return tensor.numel() == 0 or all(bool(torch.isfinite(end)) for end in tensor.aminmax())


def _as_built(tensor: torch.Tensor, built: torch.Tensor | None, where: str) -> torch.Tensor:
    """The tensor in the type that the network has; only half precision is widened."""
    if built is None or tensor.dtype == built.dtype:
        return tensor
    if tensor.dtype == torch.float16 and built.dtype == torch.float32:
        return tensor.float()
    raise ModelError(f"{where} has type {tensor.dtype}, the network has {built.dtype}")


def check_parameter_count(network: nn.Module, card: Card) -> None:
    """The card's count is a second, independent statement about the architecture."""
    count = sum(p.numel() for p in network.parameters())
    if count != card.architecture.num_parameters:
        raise ModelError(
            f"{card.name}: {card.architecture.target} has {count:,} parameters, "
            f"the card says {card.architecture.num_parameters:,}"
        )
