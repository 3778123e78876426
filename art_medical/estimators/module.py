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
    :param attackable_channels: Channels of the stored image whose gradient is let through; the gradient of the others
        is exactly zero, although they count in every prediction. ``None`` for all.
    """

    def __init__(
        self, network: nn.Module, steps: Sequence[Step], head: Head, attackable_channels: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.steps = tuple(steps)
        self.head = head
        self.attackable_channels = None if attackable_channels is None else tuple(sorted(attackable_channels))

    def network_input(self, x: Tensor) -> Tensor:
        """Stored pixels ``(N, C, *spatial)`` of any floating or integer type to what the network gets."""
        x = plain(x)
        reference = next(self.network.parameters(), None)
        x = x.to(torch.float32 if reference is None else reference.dtype)
        if self.attackable_channels is not None:
            x = torch.where(self.attackable(x), x, x.detach())
        for step in self.steps:
            x = step.apply(x)
        return x

    def attackable(self, x: Tensor) -> Tensor:
        """True where an attacker may change a pixel, broadcastable to images ``(N, C, *spatial)``."""
        allowed = torch.full((1, x.shape[1], *(1,) * (x.ndim - 2)), self.attackable_channels is None, device=x.device)
        if self.attackable_channels is not None:
            allowed[:, list(self.attackable_channels)] = True
        return allowed

    def logits(self, x: Tensor) -> Tensor:
        """Stored pixels to the network's own logits ``(N, head.outputs)``.

        :raises ModelError: If the network returns something else.
        """
        z: Any = self.network(self.network_input(x))
        if isinstance(z, tuple | list):
            z = z[0]
        if not isinstance(z, Tensor):
            raise ModelError(f"the network returns {type(z).__name__}; an estimator needs a tensor of logits")
        logits = plain(z)
        if logits.ndim == 1:
            logits = logits[:, None]
        if logits.ndim > 2 and all(length == 1 for length in logits.shape[2:]):  # a last layer that is a convolution
            logits = logits.flatten(1)
        if logits.ndim != 2 or logits.shape[1] != self.head.outputs:
            raise ModelError(
                f"the network returns shape {tuple(z.shape)}; its {self.head.kind} head needs (N, {self.head.outputs})"
            )
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Stored pixels to the decision logits ``(N, head.nb_classes)``."""
        return self.head.decision_logits(self.logits(x))


class CrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy whose gradient keeps its direction for confident predictions in float32.

    There ``p_y - 1`` is rounded to 0 while the other ``p_j`` are not. Subtracting the largest logit changes neither
    value nor gradient, but then the derivative of ``z_y`` is the sum of the ``-p_j`` and not the difference to 1.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """As in torch: logits ``(N, K)`` and class indices ``(N,)`` or rows ``(N, K)`` whose sum is 1."""
        return super().forward(input - input.amax(1, keepdim=True), target)


def plain(x: Tensor) -> Tensor:
    """A MONAI ``MetaTensor`` as the plain tensor that it wraps: its bookkeeping has no place in a gradient loop."""
    tensor: Tensor = x.as_tensor() if hasattr(x, "as_tensor") else x
    return tensor


@contextmanager
def inference(module: nn.Module, training_mode: bool = False) -> Iterator[None]:
    """Evaluation (or training) mode without parameter gradients, which an attack never needs; both come back after.

    The gradients that are there come back too: ART clears them, and an attack may run between the steps of a training.
    """
    training = [(m, m.training) for m in module.modules()]
    trainable = [(p, p.grad) for p in module.parameters() if p.requires_grad]
    module.train(training_mode)
    for parameter, _ in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, gradient in trainable:
            parameter.requires_grad_(True)
            parameter.grad = gradient
        for m, mode in training:
            m.training = mode
