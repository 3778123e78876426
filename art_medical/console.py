# SPDX-License-Identifier: Apache-2.0
"""What the commands share: a console that suits people and pipes, progress bars, figures and one-line texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console
    from rich.progress import TaskID


def open_console(stderr: bool = False) -> Console:
    """Colour only for people: rich honours ``NO_COLOR`` and leaves pipes plain. Names in brackets are no markup."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 200
    return console


class Bars:
    """One progress bar for the task at hand; silent when nobody looks."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Bars:
        self._bars.start()
        self._task = self._bars.add_task("loading", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, task: str, images: int) -> None:
        """A task of so many images (or models) begins."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(task, total=images or None)

    def advance(self, images: int) -> None:
        """So many of them are done."""
        if self._task is not None:
            self._bars.advance(self._task, images)


def figure(metric: Mapping[str, float | None] | None) -> str:
    """A measured value with its interval, as far as there are any."""
    if metric is None or metric["value"] is None:
        return "-"
    if metric["low"] is None or metric["high"] is None:
        return f"{metric['value']:.3f}"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def one_line(text: str) -> str:
    """``text`` without line breaks and without what a terminal would obey; names of files and labels may hold both."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)
