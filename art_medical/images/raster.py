# SPDX-License-Identifier: Apache-2.0
"""PNG and JPEG: read both, write PNG."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, PngImagePlugin

from art_medical import __version__
from art_medical.domain import PixelDomain
from art_medical.errors import ImageError
from art_medical.images.image import (
    NOTICE,
    StoredImage,
    as_path,
    check_suffix,
    linear_display,
    one_error,
    write_verified,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

SUFFIXES = (".png",)

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_ORIENTATION = 0x0112
# Bit depth and colour type of the PNG header (ISO/IEC 15948, 11.2.2) that Pillow returns without converting them.
_PNG_KINDS = {(8, 0): "L", (16, 0): "I;16", (8, 2): "RGB"}


def read_raster(path: str | Path) -> StoredImage:
    """Read the grey levels of a PNG (8 or 16 bits grey, 8 bits RGB) or JPEG (grey, RGB) file.

    Pixels are ``(1, H, W)`` or ``(3, H, W)``. ``domain`` is 0 to 255, or 0 to 65535 for 16 bits, whose ``display``
    divides by 257. Colour profiles and gamma are not applied.

    :param path: The file; its content decides, not its name.
    :raises ImageError: If it is damaged, has a palette, transparency, another depth, several pictures or an EXIF
        orientation that asks for another order of pixels than the stored one.
    """
    file = as_path(path)
    with one_error("read", file):
        array, _ = _load(file)
        return _image(array, file)


def write_png_like(reference: str | Path, pixels: ArrayLike, path: str | Path) -> None:
    """Write ``pixels`` as PNG of the depth of a PNG or JPEG reference, with its colour profile and a notice.

    Other metadata, for instance EXIF, are not carried over.

    :param reference: PNG or JPEG file that ``pixels`` were made from.
    :param pixels: Grey levels as :func:`read_raster` returns them.
    :param path: New file, ``.png``; a JPEG would lose what was attacked.
    :raises ImageError: If the pixels are no grey levels of that depth, or ``path`` is the reference or no ``.png``.
    """
    source, target = as_path(reference), Path(path)
    check_png_target(target)
    with one_error("read", source):
        array, profile = _load(source)
        image = _image(array, source)
    values = image.exactly(pixels)
    plane = np.moveaxis(values, 0, -1).reshape(array.shape).astype(array.dtype)
    notice = PngImagePlugin.PngInfo()
    notice.add_text("Description", NOTICE)
    notice.add_text("Software", f"art-medical {__version__}")
    buffer = BytesIO()
    with one_error("write", target):
        Image.fromarray(plane).save(buffer, "PNG", pnginfo=notice, icc_profile=profile)
    write_verified(buffer.getvalue(), target, reference=image, pixels=values, read=read_raster)


def check_png_target(path: Path) -> None:
    """Refuse a name that promises another format.

    :raises ImageError: If the suffix does not fit.
    """
    check_suffix(path, SUFFIXES, "PNG")


def looks_like_raster(head: bytes) -> bool:
    """Whether a file that begins so is PNG or JPEG."""
    return head.startswith((_PNG, _JPEG))


def _load(path: Path) -> tuple[NDArray[Any], bytes | None]:
    """Stored pixels ``(H, W)`` or ``(H, W, 3)``, uint8 or uint16, and the colour profile."""
    content = path.read_bytes()
    if not looks_like_raster(content):
        raise ImageError(f"{path} is neither PNG nor JPEG")
    with Image.open(BytesIO(content), formats=("PNG", "JPEG")) as image:
        # Pillow quietly reduces 16-bit colour to 8 bits and stretches 2 and 4 bits to 8, so its mode is no evidence.
        kind = (content[24], content[25]) if content.startswith(_PNG) else image.mode
        expected = _PNG_KINDS.get(kind) if isinstance(kind, tuple) else kind
        if expected not in ("L", "I;16", "RGB") or image.mode != expected or "transparency" in image.info:
            raise ImageError(
                f"{path} is an image of kind {kind}; supported are 8 or 16 bits grey and 8 bits RGB, opaque"
            )
        if getattr(image, "n_frames", 1) != 1:
            raise ImageError(f"{path} holds {image.n_frames} pictures: extract one first")
        orientation = image.getexif().get(_ORIENTATION, 1)
        if orientation not in (0, 1):
            raise ImageError(f"{path} has EXIF orientation {orientation}: turn the pixels first, and drop the tag")
        return np.array(image), image.info.get("icc_profile")


def _image(array: NDArray[Any], path: Path) -> StoredImage:
    planes = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    domain = PixelDomain(0, 255 if array.dtype == np.uint8 else 65535)
    return StoredImage(
        pixels=np.ascontiguousarray(planes, dtype=np.float32),
        domain=domain,
        modality=(),
        physical_unit=domain.unit,
        display=linear_display(domain.low, domain.high),
        attackable=np.ones(planes.shape, dtype=np.bool_),
        path=path,
    )
