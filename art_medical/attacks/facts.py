# SPDX-License-Identifier: Apache-2.0
"""What each attack says of itself, for the command line, the documentation and the contract tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Facts:
    """What a person has to know to choose an attack.

    :param models: What it stands for in a hospital, one sentence.
    :param bound: What limits the change: ``linf``, ``l2``, ``l1``, ``l0``, several of them, or words such as
        ``smooth field``.
    :param access: What the attacker needs: ``white`` gradients, ``score`` outputs, ``decision`` the label, ``none``.
    :param dimensions: Spatial dimensions of the images that it takes.
    :param paper: Authors, year and identifier of its source.
    """

    models: str
    bound: str
    access: Literal["white", "score", "decision", "none"]
    dimensions: tuple[int, ...]
    paper: str
