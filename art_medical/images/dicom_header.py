# SPDX-License-Identifier: Apache-2.0
"""What a DICOM header says about its stored values: physical unit, display and padding (PS3.3 C.11, C.7.5.1.1.2)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from art_medical.errors import ImageError
from art_medical.estimators.steps import Rescale, Step, Window
from art_medical.images.image import DISPLAY_HIGH, linear_display

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from art_medical.domain import PixelDomain

GREY = ("MONOCHROME1", "MONOCHROME2")
"""Photometric interpretations of one channel."""


def functional_groups(header: Dataset) -> list[Dataset]:
    """Functional groups of a multi-frame object, shared and per frame (C.7.6.16)."""
    keywords = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    return [item for keyword in keywords for item in header.get(keyword) or ()]


def _macros(header: Dataset, name: str) -> list[Dataset]:
    """Where a transform may stand: in the header itself, and in the macro ``name`` of every functional group."""
    return [header, *(macro for group in functional_groups(header) for macro in group.get(name) or ())]


def _only(found: list[Any], what: str, path: Path) -> Any:
    """The one transform of all frames, or ``None``."""
    different = [x for i, x in enumerate(found) if x not in found[:i]]
    if len(different) > 1:
        raise ImageError(f"{path} has {len(different)} different {what}, for single frames: extract one frame first")
    return different[0] if different else None


def modality_steps(header: Dataset, path: Path) -> tuple[tuple[Step, ...], str]:
    """Modality transform (PS3.3 C.11.1) from stored to physical values, and the unit of the latter.

    :raises ImageError: If it is a look-up table, differs between frames, or makes all pixels equal.
    """
    if header.get("ModalityLUTSequence"):
        raise ImageError(
            f"{path} has a modality look-up table, which is not supported: only rescale slope and intercept"
        )
    found = []
    for item in _macros(header, "PixelValueTransformationSequence"):
        slope, intercept = item.get("RescaleSlope"), item.get("RescaleIntercept")
        if slope is not None or intercept is not None:
            scale, offset = 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
            found.append((scale, offset, str(item.get("RescaleType") or "")))
    rescale = _only(found, "rescale transforms", path)
    if rescale is None:
        return (), "stored value"
    scale, offset, kind = rescale
    if scale == 0:
        raise ImageError(f"{path} has Rescale Slope 0, which makes every pixel the same: correct the header first")
    # A CT without a rescale type is in HU (C.8.2.1); US stands for unspecified (C.11.1.1.2).
    unit = kind or ("HU" if header.get("Modality") == "CT" else "US")
    steps = () if (scale, offset) == (1.0, 0.0) else (Rescale(scale=scale, offset=offset),)
    return steps, "unspecified unit" if unit == "US" else unit


def display_steps(
    header: Dataset, photometric: str, domain: PixelDomain, modality: tuple[Step, ...], path: Path
) -> tuple[Step, ...]:
    """VOI transform (PS3.3 C.11.2) from physical values to displayed grey in [0, 255], and inversion of MONOCHROME1.

    :raises ImageError: If it is a look-up table without a window, differs between frames, or is not linear.
    """
    if photometric not in GREY:
        return linear_display(domain.low, domain.high)
    items = _macros(header, "FrameVOILUTSequence")
    windows = [
        (_first(i, "WindowCenter"), _first(i, "WindowWidth"), i.get("VOILUTFunction") or "LINEAR") for i in items
    ]
    window = _only([w for w in windows if None not in w], "windows", path)
    if window is not None:
        steps: tuple[Step, ...] = (_window(window[0], window[1], window[2], path),)
    elif any(item.get("VOILUTSequence") for item in items):
        raise ImageError(f"{path} has a VOI look-up table and no window, which is not supported: add a window")
    else:
        ends = [domain.low, domain.high]
        for step in modality:
            assert isinstance(step, Rescale)
            ends = [step.scale * end + step.offset for end in ends]
        steps = linear_display(min(ends), max(ends))
    inversion = (Rescale(scale=-1.0, offset=DISPLAY_HIGH),) if photometric == "MONOCHROME1" else ()
    return (*steps, *inversion)


def _first(item: Dataset, keyword: str) -> float | None:
    value = item.get(keyword)
    values = [value] if isinstance(value, int | float | str) else list(value or ())
    return float(values[0]) if values and values[0] not in (None, "") else None


def _window(centre: float, width: float, function: str, path: Path) -> Window:
    """A window of the header as a step; linear exact (C.11.2.1.3.2) is linear with shifted parameters."""
    if function == "LINEAR_EXACT" and width > 0:
        return Window(centre=centre + 0.5, width=width + 1, low=0.0, high=DISPLAY_HIGH)
    if function == "LINEAR" and width > 1:
        return Window(centre=centre, width=width, low=0.0, high=DISPLAY_HIGH)
    raise ImageError(f"{path} has a window of function {function} and width {width:g}: only linear ones wider than 1")


def attackable(header: Dataset, photometric: str, stored: NDArray[Any]) -> NDArray[np.bool_]:
    """``False`` at padding. The header's numbers are read as pixel cells, whatever VR a writer chose for them."""
    value = header.get("PixelPaddingValue")
    if value is None or photometric not in GREY:
        return np.ones(stored.shape, dtype=np.bool_)
    limit = header.get("PixelPaddingRangeLimit")
    bits = int(header.BitsStored)
    ends = [int(end) & (2**bits - 1) for end in (value, value if limit is None else limit)]
    if header.PixelRepresentation:
        ends = [end - 2**bits if end >> (bits - 1) else end for end in ends]
    outside: NDArray[np.bool_] = (stored < min(ends)) | (stored > max(ends))
    return outside


# -- writing --------------------------------------------------------------------------------------------------------
