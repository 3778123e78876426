# SPDX-License-Identifier: Apache-2.0
"""Letters as pixels: text in the font that Matplotlib brings, as coverage between 0 and 1."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from art_medical.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DRAWN = 128
"""Height of the font, in pixels, in which text is drawn before it is brought to size."""


@lru_cache(maxsize=64)
def letters(text: str) -> NDArray[np.float32]:
    """Coverage ``(h, w)`` of a text in DejaVu Sans Bold, cropped to the ink; read-only.

    :raises InputError: If the text shows nothing, or the font lacks a letter.
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf")), _DRAWN)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text))
    if right <= left or bottom <= top:
        raise InputError(f"the text {text!r} shows nothing; give letters")
    canvas = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(canvas).text((-left, -top), text, fill=255, font=font)
    coverage = np.asarray(canvas, np.float32) / 255
    rows, columns = coverage.any(1).nonzero()[0], coverage.any(0).nonzero()[0]
    if not len(rows):
        raise InputError(f"the text {text!r} shows nothing; give letters")
    inked: NDArray[np.float32] = coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    inked.setflags(write=False)
    return inked


def scaled(coverage: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """Coverage brought to another size by averaging areas, one pixel or more; between 0 and 1."""
    from PIL import Image

    height, width = (max(1, round(side * scale)) for side in coverage.shape)
    picture = Image.fromarray(np.ascontiguousarray(coverage, np.float32))
    sized = np.asarray(picture.resize((width, height), Image.Resampling.BOX), np.float32)
    return np.asarray(np.clip(sized, 0, 1))


def at(mark: NDArray[np.float32], plane: tuple[int, ...], row: int, column: int) -> NDArray[np.float32]:
    """Coverage of a whole plane with the mark's corner at a pixel."""
    whole = np.zeros(plane, np.float32)
    whole[row : row + mark.shape[0], column : column + mark.shape[1]] = mark
    return whole
