# SPDX-License-Identifier: Apache-2.0
"""Which column of ``labels.csv`` is a label, and from which value on."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Target(BaseModel):
    """A label is 1 where the whole number in ``column`` is at least ``at_least``, else 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str
    at_least: int = 1
