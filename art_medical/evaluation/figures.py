# SPDX-License-Identifier: Apache-2.0
"""Pictures of the report: security curves as SVG inside the page, image tiles as PNG data URIs.

Everything is drawn with matplotlib's object interface, so that nothing is shared between calls, and the same numbers
give the same bytes.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_INK, _GRID, _CONTROL = "#222222", "#d5d9dd", "#6b7278"
_COLOURS = ("#0b5394", "#b8480e", "#1b7f5c", "#8b3a7a", "#3b8fc4", "#8a6d00")  # apart in hue and in lightness
_MARKERS, _CONTROL_MARKERS = ("o", "s", "^", "D", "v", "P"), ("x", "+", "1")
_STEPS = (1, 2, 5, 10)
_LARGEST_TILE = 256


# -- security curves ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Style:
    """Colour, marker and dashes of one attack, the same in every panel."""

    colour: str
    marker: str
    dashes: Literal["-", "--"]


@dataclass(frozen=True)
class Series:
    """One measured curve.

    :param style: How it is drawn.
    :param points: ``(eps, value, low, high)`` by rising eps; the interval may be ``None``.
    """

    style: Style
    points: tuple[tuple[float, float, float | None, float | None], ...]


@dataclass(frozen=True)
class Panel:
    """What a panel shows.

    :param name: Seeds the ids inside the SVG; unique in the page.
    :param title: Metric, in words.
    :param percent: Whether values are rates, shown in per cent.
    :param unit: Unit of the budget, for the axis below.
    :param span: Range of the stored pixel in that unit; gives the axis above, its share. ``None``: no such axis.
    """

    name: str
    title: str
    percent: bool
    unit: str
    span: float | None


def style(number: int, *, control: bool) -> Style:
    """The style of the attack ``number``, counted among attackers or among controls."""
    if control:
        return Style(_CONTROL, _CONTROL_MARKERS[number % len(_CONTROL_MARKERS)], "--")
    return Style(_COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)], "-")


def security_curve(panel: Panel, series: Sequence[Series]) -> str:
    """SVG of measured points, joined by straight lines, with their intervals as bands."""
    scale = 100.0 if panel.percent else 1.0
    with _drawing(panel.name):
        figure = Figure(figsize=(2.9, 2.6), layout="constrained")
        axes = figure.add_subplot()
        for one in series:
            _draw(axes, one, scale)
        _dress(axes, panel, scale)
        return _svg(figure)


def swatch(name: str, one: Style) -> str:
    """SVG of a piece of a curve, for a legend in the text."""
    look: dict[str, Any] = {"color": one.colour, "linestyle": one.dashes, "marker": one.marker}
    with _drawing(name):
        figure = Figure(figsize=(0.42, 0.15))
        figure.add_artist(Line2D([0.02, 0.5, 0.98], [0.5] * 3, linewidth=1.4, markersize=4.5, markevery=[1], **look))
        return _svg(figure)


@contextmanager
def _drawing(name: str) -> Iterator[None]:
    """Settings for one SVG, whatever the user's own are, undone afterwards.

    Text stays text: it can be searched and takes the font of the page.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc("svg", hashsalt=name, fonttype="none")
        matplotlib.rc("font", size=9)
        matplotlib.rc("text", parse_math=False)
        yield


def _draw(axes: Axes, one: Series, scale: float) -> None:
    eps = [point[0] for point in one.points]
    look = one.style
    axes.plot(
        eps,
        [point[1] * scale for point in one.points],
        color=look.colour,
        marker=look.marker,
        linestyle=look.dashes,
        linewidth=1.3,
        markersize=4,
        clip_on=False,
        zorder=3,
    )
    low = [np.nan if point[2] is None else point[2] * scale for point in one.points]
    high = [np.nan if point[3] is None else point[3] * scale for point in one.points]
    axes.fill_between(eps, low, high, color=look.colour, alpha=0.15, linewidth=0)


def _dress(axes: Axes, panel: Panel, scale: float) -> None:
    axes.set_title(panel.title, fontsize=9.5, loc="left", color=_INK, fontweight="bold")
    axes.set_xlabel(f"budget in {panel.unit}", color=_INK)
    axes.set_ylim(-0.02 * scale, 1.02 * scale)
    axes.set_yticks([tick * scale for tick in (0, 0.25, 0.5, 0.75, 1)])
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, width=0.6, length=3)
    axes.set_ylabel("%" if panel.percent else "", rotation=0, color=_INK)
    if panel.span is not None:
        share = axes.secondary_xaxis("top", functions=_shares(panel.span))
        share.xaxis.set_major_locator(MaxNLocator(4, steps=_STEPS))
        share.xaxis.set_major_formatter("{x:g}")
        share.set_xlabel("% of the range", fontsize=8.5, color=_CONTROL)
        share.tick_params(colors=_CONTROL, width=0.6, length=3, labelsize=8.5)
        share.spines["top"].set_edgecolor(_GRID)


def _shares(span: float) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Budget to per cent of the range, and back."""
    return lambda eps: eps * 100 / span, lambda share: share * span / 100


def _svg(figure: Figure) -> str:
    """The SVG element alone: no prolog, name spaces or metadata, which HTML does not need and which hold addresses."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", text)
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', text))
    text = re.sub(r'\sid="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|', lambda found: found[1] or "", text, count=1)
    return text.replace("<svg", '<svg aria-hidden="true"', 1)


# -- images ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tiles:
    """One image before and after, and what lies between.

    :param clean: PNG data URI.
    :param change: PNG data URI: mid grey where nothing changed, brighter where the value rose.
    :param attacked: PNG data URI, same grey window as ``clean``.
    :param size: Width and height in pixels.
    :param low: Stored value that is black.
    :param high: Stored value that is white.
    :param peak: Largest change in the plane that is shown; black and white in ``change``.
    :param factor: How much the change is amplified relative to the images beside it; ``None`` where nothing changed.
    :param plane: Which slice of a volume it is; empty for planes.
    :param reduced: Whether the tiles have fewer pixels than the image.
    """

    clean: str
    change: str
    attacked: str
    size: tuple[int, int]
    low: float
    high: float
    peak: float
    factor: float | None
    plane: str
    reduced: bool


def tiles(clean: NDArray[np.float32], attacked: NDArray[np.float32], domain: tuple[float, float] | None) -> Tiles:
    """Tiles of one image.

    :param clean: Stored pixels ``(C, H, W)`` or ``(C, D, H, W)``, of which the central slice is shown.
    :param attacked: The same under attack.
    :param domain: Range of the stored pixel, where it is known.
    """
    low, high = grey_window(clean, domain)
    before, after = _plane(clean), _plane(attacked)
    change = after - before
    peak = float(np.abs(change).max())
    width = max(high - low, np.finfo(np.float32).tiny)
    signed = 127.5 + 127.5 * change / peak if peak else np.full_like(change, 127.5)
    small = _png((before - low) / width * 255)
    return Tiles(
        clean=small[0],
        change=_png(signed)[0],
        attacked=_png((after - low) / width * 255)[0],
        size=small[1],
        low=low,
        high=high,
        peak=peak,
        factor=width / 2 / peak if peak else None,
        plane=f"slice {clean.shape[1] // 2 + 1} of {clean.shape[1]}" if clean.ndim == 4 else "",
        reduced=small[1] != (before.shape[1], before.shape[0]),
    )


def grey_window(clean: NDArray[np.float32], domain: tuple[float, float] | None) -> tuple[float, float]:
    """Stored values shown black and white: the range of the file, or, where the image fills less than half of it, the
    percentiles 0.5 and 99.5 of the image."""
    low, high = (float(value) for value in np.percentile(clean, (0.5, 99.5)))
    if domain is not None and high - low >= (domain[1] - domain[0]) / 2:
        return domain
    return (low, high) if low < high else (low, low + 1)


def _plane(image: NDArray[np.float32]) -> NDArray[np.float64]:
    """``(H, W)`` or, for three channels, ``(H, W, 3)``."""
    plane = image[:, image.shape[1] // 2] if image.ndim == 4 else image
    shown = np.moveaxis(plane, 0, -1) if plane.shape[0] == 3 else plane[0]
    return shown.astype(np.float64)


def _png(values: NDArray[np.float64]) -> tuple[str, tuple[int, int]]:
    image = Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))
    image.thumbnail((_LARGEST_TILE, _LARGEST_TILE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(), image.size
