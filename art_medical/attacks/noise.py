# SPDX-License-Identifier: Apache-2.0
"""Random numbers that depend on the sample alone: not on batch size, order, shard or device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


class Noise:
    """One generator for each sample of a batch, on the CPU.

    :param seed: Base seed.
    :param ids: Identity of each sample.
    :param purpose: What the numbers are for, for instance ``restart-2``; different purposes are independent.
    """

    def __init__(self, seed: int, ids: Sequence[str], purpose: str) -> None:
        self._generators = []
        for name in ids:
            digest = hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest()
            self._generators.append(torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True)))

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform on [0, 1), float32 ``(n, *shape)``."""
        return torch.stack([torch.rand(tuple(shape), generator=g) for g in self._generators])

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal, float32 ``(n, *shape)``."""
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self._generators])
