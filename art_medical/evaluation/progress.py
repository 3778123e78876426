# SPDX-License-Identifier: Apache-2.0
"""Who wants to know how far a run is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Who wants to know how far the run is."""

    def begin(self, task: str, images: int) -> None:
        """A task of so many images begins."""

    def advance(self, images: int) -> None:
        """So many images of it are done."""


class Silent:
    """Nobody wants to know."""

    def begin(self, task: str, images: int) -> None: ...

    def advance(self, images: int) -> None: ...
