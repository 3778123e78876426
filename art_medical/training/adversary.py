# SPDX-License-Identifier: Apache-2.0
"""The inner maximisation of adversarial training (Madry et al. 2018, arXiv 1706.06083, section 2.1)."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from art_medical.domain import PixelDomain
from art_medical.estimators.module import ClassifierModule, inference


class Adversary(BaseModel):
    """L-infinity PGD from a random start, in stored pixels.

    :param eps: Budget in stored values.
    :param steps: Gradient steps for each batch.
    :param step_size: Length of a step in stored values.
    :param share: Share of each batch that is attacked; the rest stays clean.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    eps: float = Field(gt=0)
    steps: int = Field(ge=1)
    step_size: float = Field(gt=0)
    share: float = Field(gt=0, le=1, default=1.0)

    def attack(
        self,
        module: ClassifierModule,
        x: Tensor,
        y: Tensor,
        domain: PixelDomain,
        generator: torch.Generator,
        autocast: torch.autocast,
    ) -> Tensor:
        """A batch of which the first ``share`` has the largest loss that the steps find.

        :param x: Stored pixels ``(N, C, *spatial)``; the order of the batch is random already.
        :param y: Multi-hot truth ``(N, K)``.
        """
        count = max(1, round(self.share * len(x)))
        clean, truth = x[:count], y[:count]
        low, high = (clean - self.eps).clamp(min=domain.low), (clean + self.eps).clamp(max=domain.high)
        noise = (torch.rand(clean.shape, generator=generator).to(x.device) * 2 - 1) * self.eps
        attacked = (clean + noise).clamp(low, high)
        with inference(module):
            for _ in range(self.steps):
                attacked.requires_grad_(True)
                with autocast:
                    logits = module.logits(attacked)
                # Binary cross-entropy in the form whose gradient is not rounded to 0 for confident predictions.
                loss = functional.softplus((1 - 2 * truth) * logits.float()).sum()
                (gradient,) = torch.autograd.grad(loss, attacked)
                attacked = (attacked.detach() + self.step_size * gradient.sign()).clamp(low, high)
        return torch.cat([attacked, x[count:]])
