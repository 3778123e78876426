# SPDX-License-Identifier: Apache-2.0
"""``StoredImage``: what an image file holds, as arrays and as data; and the one safe way to write a file back."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from art_medical.domain import PixelDomain
from art_medical.errors import ArtMedicalError, ImageError
from art_medical.estimators.steps import Rescale, Step

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

MOST_BITS = 24
"""Significant bits of a float32: every integer of at most so many bits is one (IEEE 754-2019, table 3.5)."""

DISPLAY_HIGH = 255.0
"""Largest displayed grey."""

NOTICE = "Synthetic adversarial test image. Not for clinical use."
"""What every written file says about itself, where its format has a place for it."""

LOSSY = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".jp2",
    ".j2k",
    ".j2c",
    ".jpf",
    ".jpx",
    ".jls",
    ".jxl",
    ".webp",
    ".avif",
    ".heic",
)
"""Suffixes of formats that are, or may be, lossy."""


@dataclass(frozen=True, eq=False)
class StoredImage:
    """One image file: the stored values, what they mean, and where an attack may change them.

    :param pixels: Stored values ``(C, *spatial)``, float32: not rescaled, windowed or inverted. Integers are exact.
    :param domain: What the file can hold; from the header alone, except for floating point files, which state no range.
    :param modality: Steps from stored value to ``physical_unit``; empty when the two are the same.
    :param physical_unit: Unit behind ``modality``: ``HU``, the header's word, or that of ``domain``.
    :param display: Steps from physical value to displayed grey in [0, 255], linear or clamped linear.
    :param attackable: ``(C, *spatial)``, bool. ``False`` where the value is no measurement (pixel padding).
    :param path: The file, which :func:`art_medical.images.files.write_like` takes as reference.
    """

    pixels: NDArray[np.float32]
    domain: PixelDomain
    modality: tuple[Step, ...]
    physical_unit: str
    display: tuple[Step, ...]
    attackable: NDArray[np.bool_]
    path: Path

    @property
    def to_grey(self) -> tuple[Step, ...]:
        """Steps from stored value to displayed grey in [0, 255]: what a network trained on exported images expects."""
        return (*self.modality, *self.display)

    def exactly(self, pixels: ArrayLike) -> NDArray[np.float32]:
        """``pixels`` if this file can hold every one of them without change.

        :param pixels: Stored values of the shape of :attr:`pixels`, of any real type.
        :return: The same values as float32, exact.
        :raises ImageError: If the shape differs, or a value is not finite, out of the domain or off its grid.
        """
        values = np.asarray(pixels)
        if values.dtype.kind not in "iuf":
            raise ImageError(f"pixels must be real numbers, got type {values.dtype}")
        if values.shape != self.pixels.shape:
            raise ImageError(f"{self.path} holds pixels of shape {self.pixels.shape}, got {values.shape}")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ImageError("pixels hold a value that is not finite, which no image file can show")
        domain = self.domain
        # Compared in the caller's type: a cast first could round a value that is out of range back into it.
        outside = values[(values < domain.low) | (values > domain.high)]
        if outside.size:
            raise ImageError(
                f"{outside.size} pixels are outside what {self.path} can hold, {domain.low:g} to {domain.high:g}, "
                f"for instance {outside[0]:g}: clip them first"
            )
        exact = values.astype(np.float32)
        between = values[(exact != values) | (domain.step is not None and exact != np.rint(exact))]
        if between.size:
            raise ImageError(
                f"{between.size} pixels are no value that {self.path} can hold, for instance {between[0]!r}: "
                "use PixelDomain.quantise first"
            )
        return exact


def linear_display(low: float, high: float) -> tuple[Step, ...]:
    """The step from physical values in ``[low, high]`` to displayed grey in [0, 255]; none when they are the same."""
    scale = DISPLAY_HIGH / (high - low)
    step = Rescale(scale=scale, offset=-low * scale)
    return () if (step.scale, step.offset) == (1.0, 0.0) else (step,)


def integer_domain(bits: int, signed: bool, unit: str, path: Path) -> PixelDomain:
    """All integers of ``bits`` bits, two's complement when ``signed``.

    :raises ImageError: If float32 cannot hold them all.
    """
    if not 1 <= bits <= MOST_BITS:
        raise ImageError(
            f"{path} stores {bits} significant bits; pixels are computed in float32, exact for 1 to {MOST_BITS}"
        )
    low = -(2 ** (bits - 1)) if signed else 0
    return PixelDomain(low, low + 2**bits - 1, unit=unit)


@contextmanager
def one_error(action: str, path: Path) -> Iterator[None]:
    """Turn whatever a parser raises on damaged bytes into one ``ImageError`` of one line, and silence its warnings.

    :param action: What is being done, for the message: ``read`` or ``write``.
    :param path: The file, for the message.
    """
    try:
        with warnings.catch_warnings():
            # Parsers warn about oddities that they repair; what changes a pixel is checked by the callers.
            warnings.simplefilter("ignore")
            yield
    except ArtMedicalError:
        raise
    except Exception as error:  # the parsers document no common base class
        text = (error.strerror if isinstance(error, OSError) else None) or str(error)
        # pydicom puts a whole traceback into some messages.
        reason = " ".join(text.partition("Traceback (")[0].split()) or type(error).__name__
        raise ImageError(f"cannot {action} {path}: {reason[:300]}") from error


def write_verified(
    content: bytes,
    path: Path,
    *,
    reference: StoredImage,
    pixels: NDArray[np.float32],
    read: Callable[[Path], StoredImage],
) -> None:
    """Write ``content`` so that ``path`` is either the complete, verified new file or what it was before.

    The bytes go to a temporary file in the same folder, reach the disk (``fsync``), are read back, and all pixels are
    compared with ``pixels`` before the file gets its name. The temporary file never stays.

    :param content: The complete new file.
    :param path: Where it goes; an existing file is replaced, unless it is the reference.
    :param reference: The image that the file was made from.
    :param pixels: Stored values that the file must hold.
    :param read: Reader of the format.
    :raises ImageError: If ``path`` is the reference, the file cannot be written, or it does not read back.
    """
    if path.exists() and path.samefile(reference.path):
        raise ImageError(f"{path} is the reference itself, which is never overwritten: choose another name")
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    with one_error("write", path):
        try:
            with part.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if not np.array_equal(read(part).pixels, pixels):
                raise ImageError(f"{path} was not written: the new file reads back with other pixels (please report)")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def suffix_of(path: Path) -> str:
    """The lower-case suffix, ``.nii.gz`` in one piece."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def check_suffix(path: Path, allowed: tuple[str, ...], kind: str) -> None:
    """Refuse a target whose name promises another format.

    :param allowed: Suffixes that fit, the recommended one first.
    :param kind: The format that will be written, for the message.
    :raises ImageError: If the suffix is not among them.
    """
    suffix = suffix_of(path)
    if suffix in allowed:
        return
    if suffix in LOSSY:
        raise ImageError(f"{path}: {suffix} may lose what was attacked; write {kind} to a name ending in {allowed[0]}")
    raise ImageError(f"{path}: the suffix {suffix!r} does not fit {kind}; use a name ending in {allowed[0]}")


def as_path(path: Any) -> Path:
    """``path`` as :class:`pathlib.Path`, refused when no file is there.

    :raises ImageError: If it is missing or no regular file.
    """
    result = Path(path)
    if not result.is_file():
        raise ImageError(f"{result} is {'no regular file' if result.exists() else 'missing'}: pass an image file")
    return result
