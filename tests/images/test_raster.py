# SPDX-License-Identifier: Apache-2.0
"""PNG and JPEG: values against hand-made files, and everything that a decoder would convert is refused."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from art_medical.errors import ImageError
from art_medical.estimators.steps import Rescale
from art_medical.images.raster import read_raster, write_png_like

Find = Callable[[str], Path]
Refused = Callable[[str], AbstractContextManager[None]]

KINDS = {"grey 8": (0, 8, 1), "grey 16": (0, 16, 1), "RGB 8": (2, 8, 3)}


def chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Names and bodies of the chunks of a PNG file."""
    found, at = [], 8
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def unfilter(content: bytes) -> NDArray[Any]:
    """Samples of a PNG file, decoded as ISO/IEC 15948 clause 9 says, as ``(H, W, samples)``."""
    pieces = chunks(content)
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", pieces[0][1])
    assert interlace == 0
    samples = {0: 1, 2: 3}[colour]
    step = samples * depth // 8
    data = zlib.decompress(b"".join(body for name, body in pieces if name == b"IDAT"))
    above, rows = [0] * (width * step), []
    for y in range(height):
        start = y * (width * step + 1)
        kind, line = data[start], list(data[start + 1 : start + 1 + width * step])
        for x in range(len(line)):
            a, b, c = (line[x - step] if x >= step else 0), above[x], (above[x - step] if x >= step else 0)
            paeth = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            line[x] = (line[x] + [0, a, b, (a + b) // 2, paeth][kind]) % 256
        rows.append(bytes(line))
        above = line
    return np.frombuffer(b"".join(rows), f">u{depth // 8}").reshape(height, width, samples)


def layout(image: NDArray[Any]) -> NDArray[Any]:
    """``(C, H, W)`` to the layout of a file, ``(H, W)`` or ``(H, W, 3)``."""
    return image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(list(KINDS)), height=st.integers(1, 6), width=st.integers(1, 6), seed=st.integers(0, 2**32 - 1)
)
def test_round_trip(
    tmp_path: Path,
    make_png: Callable[..., Any],
    random_pixels: Callable[..., Any],
    kind: str,
    height: int,
    width: int,
    seed: int,
) -> None:
    colour, depth, channels = KINDS[kind]
    values = np.random.default_rng(seed).integers(0, 2**depth, (channels, height, width))
    path, target = tmp_path / "old.png", tmp_path / "new.png"
    path.write_bytes(make_png(layout(values), colour, depth))
    image = read_raster(path)
    np.testing.assert_array_equal(image.pixels, values)
    assert image.pixels.dtype == np.float32 and image.attackable.all() and image.modality == ()
    assert (image.domain.low, image.domain.high, image.domain.step) == (0, 2**depth - 1, 1)
    assert image.display == ((Rescale(scale=255 / 65535, offset=0),) if depth == 16 else ())
    assert image.domain.unit == image.physical_unit == "grey level"

    pixels = random_pixels(image, seed)
    write_png_like(path, pixels, target)
    np.testing.assert_array_equal(read_raster(target).pixels, pixels)
    np.testing.assert_array_equal(np.moveaxis(unfilter(target.read_bytes()), -1, 0), pixels)
    assert target.read_bytes()[24:26] == bytes([depth, colour])


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_is_written_as_png(tmp_path: Path, refused: Refused, mode: Any) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "photo.jpeg"
    with Image.fromarray(rng.integers(0, 256, (8, 9, 3), np.uint8)) as picture:
        picture.convert(mode).save(path, quality=60, icc_profile=b"a profile")
    with Image.open(path) as picture:
        expected = np.array(picture)
    image = read_raster(path)
    np.testing.assert_array_equal(layout(image.pixels), expected)
    assert (image.domain.low, image.domain.high) == (0, 255)
    with refused(r"\.jpg may lose what was attacked; write PNG to a name ending in \.png"):
        write_png_like(path, image.pixels, tmp_path / "new.jpg")
    write_png_like(path, image.pixels, tmp_path / "new.PNG")
    np.testing.assert_array_equal(unfilter((tmp_path / "new.PNG").read_bytes()).reshape(expected.shape), expected)
    with Image.open(tmp_path / "new.PNG") as picture:
        assert picture.info["icc_profile"] == b"a profile"
        assert picture.info["Description"] == "Synthetic adversarial test image. Not for clinical use."


def test_real_photographs(data_dir: Find) -> None:
    folder = data_dir("fundus-idrid") / "images"
    for path in sorted(folder.iterdir())[:3]:
        with Image.open(path) as picture:
            np.testing.assert_array_equal(layout(read_raster(path).pixels), np.array(picture))


BYTES = np.arange(16, dtype=np.uint8).reshape(4, 4)
PALETTE = (b"PLTE", bytes(range(48)))


@pytest.mark.parametrize(
    ("pixels", "colour", "depth", "extra"),
    [
        (BYTES, 3, 8, [PALETTE]),
        (BYTES, 0, 1, []),
        (BYTES, 0, 2, []),
        (BYTES, 0, 4, []),
        (np.zeros((2, 2, 2), np.uint8), 4, 8, []),
        (np.zeros((2, 2, 4), np.uint8), 6, 8, []),
        (np.zeros((2, 2, 3), np.uint16), 2, 16, []),
        (BYTES, 0, 8, [(b"tRNS", b"\0\5")]),
        (np.zeros((2, 2, 3), np.uint8), 2, 8, [(b"tRNS", bytes(6))]),
    ],
    ids=["palette", "1 bit", "2 bits", "4 bits", "grey alpha", "RGBA", "RGB 16", "grey key", "RGB key"],
)
def test_kinds_that_pillow_would_convert_are_refused(
    tmp_path: Path, make_png: Callable[..., Any], refused: Refused, pixels: Any, colour: Any, depth: Any, extra: Any
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(make_png(pixels, colour, depth, *extra))
    with Image.open(path) as picture:
        picture.load()  # a sound file, only not one that this package takes
    with refused("supported are"):
        read_raster(path)


def test_cmyk_orientation_and_several_pictures_are_refused(tmp_path: Path, refused: Refused) -> None:
    with Image.fromarray(np.zeros((4, 4, 4), np.uint8), "CMYK") as picture:
        picture.save(tmp_path / "cmyk.jpg")
    with Image.fromarray(BYTES) as picture:
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(tmp_path / "turned.jpg", exif=exif)
        with Image.fromarray(255 - BYTES) as second:
            picture.save(tmp_path / "moving.png", save_all=True, append_images=[second])
    for name, words in [("cmyk.jpg", "CMYK"), ("turned.jpg", "EXIF orientation 6"), ("moving.png", "2 pictures")]:
        with refused(words):
            read_raster(tmp_path / name)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_files_are_refused(tmp_path: Path, refused: Refused, kind: str) -> None:
    buffer = BytesIO()
    with Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)) as picture:
        picture.save(buffer, kind)
    content = buffer.getvalue()
    whole = content.index(b"IEND") - 20 if kind == "PNG" else len(content) - 20
    for length in range(0, whole, 5):
        (tmp_path / "cut").write_bytes(content[:length])
        with refused("."):
            read_raster(tmp_path / "cut")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG"]))
def test_damaged_bytes_give_an_image_or_one_error(tmp_path: Path, data: Any, kind: str) -> None:
    buffer = BytesIO()
    with Image.fromarray(BYTES) as picture:
        picture.save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "x").write_bytes(content)
    try:
        read_raster(tmp_path / "x")
    except ImageError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["new.jpg", "new.JPEG", "new.jp2", "new.webp", "new.dcm", "new.bmp", "new"])
def test_only_png_is_written(tmp_path: Path, make_png: Callable[..., Any], refused: Refused, name: str) -> None:
    (tmp_path / "old.png").write_bytes(make_png(BYTES, 0, 8))
    with refused(r"\.png"):
        write_png_like(tmp_path / "old.png", BYTES[None], tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 1
