# SPDX-License-Identifier: Apache-2.0
"""The torch module behind an estimator: stored pixels in, decision logits out, differentiable all the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from art_medical.errors import ModelError
from art_medical.estimators.heads import Head
from art_medical.estimators.steps import Step


class ClassifierModule(nn.Module):
    """Input steps, network and head.

    :param network: A classification network, for instance one of MONAI's; it may take and return ``MetaTensor`` and
        return a tuple whose first entry is the logits.
    :param steps: What happens to a stored pixel before the network sees it.
    :param head: What the outputs of the network mean.
    """

    def __init__(self, network: nn.Module, steps: Sequence[Step], head: Head) -> None:
        super().__init__()
        self.network = network
        self.steps = tuple(steps)
        self.head = head

    def network_input(self, x: Tensor) -> Tensor:
        """Stored pixels ``(N, C, *spatial)`` of any floating or integer type to what the network gets."""
        x = _plain(x)
        reference = next(self.network.parameters(), None)
        x = x.to(torch.float32 if reference is None else reference.dtype)
        for step in self.steps:
            x = step.apply(x)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Stored pixels to the network's own logits ``(N, head.outputs)``.

        :raises ModelError: If the network returns something else.
        """
        z: Any = self.network(self.network_input(x))
        if isinstance(z, tuple | list):
            z = z[0]
        z = _plain(z)
        if z.ndim == 1:
            z = z[:, None]
        if z.ndim != 2 or z.shape[1] != self.head.outputs:
            raise ModelError(
                f"the network returns shape {tuple(z.shape)}; its {self.head.kind} head needs (N, {self.head.outputs})"
            )
        return z

    def forward(self, x: Tensor) -> Tensor:
        """Stored pixels to the decision logits ``(N, head.nb_classes)``."""
        return self.head.decision_logits(self.logits(x))


def _plain(x: Any) -> Tensor:
    """A MONAI ``MetaTensor`` as the plain tensor that it wraps: its bookkeeping has no place in a gradient loop."""
    tensor = x.as_tensor() if hasattr(x, "as_tensor") else x
    assert isinstance(tensor, Tensor)
    return tensor


@contextmanager
def inference(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without parameter gradients, which an attack never needs; the former state comes back after."""
    training = [(m, m.training) for m in module.modules()]
    trainable = [p for p in module.parameters() if p.requires_grad]
    module.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for m, mode in training:
            m.training = mode
