# SPDX-License-Identifier: Apache-2.0
"""Any image file: read it by what it contains, write it back in its own kind."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from art_medical.errors import ImageError
from art_medical.images.dicom import check_dicom_target, looks_like_dicom, read_dicom, write_dicom_like
from art_medical.images.image import StoredImage, as_path, one_error
from art_medical.images.nifti import check_nifti_target, looks_like_nifti, read_nifti, write_nifti_like
from art_medical.images.raster import check_png_target, looks_like_raster, read_raster, write_png_like

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_HEAD = 540
"""Bytes that decide: the longest header with a magic number is that of NIfTI-2."""


@dataclass(frozen=True)
class _Format:
    """How to recognise one kind of file by its first bytes, and how to read and write it."""

    matches: Callable[[bytes], bool]
    read: Callable[[Path], StoredImage]
    write: Callable[[Path, ArrayLike, Path], None]
    check_target: Callable[[Path], None]


# DICOM last: without its preamble it is only plausible, where the others are certain.
_FORMATS = (
    _Format(looks_like_raster, read_raster, write_png_like, check_png_target),
    _Format(looks_like_nifti, read_nifti, write_nifti_like, check_nifti_target),
    _Format(looks_like_dicom, read_dicom, write_dicom_like, check_dicom_target),
)


def read_image(path: str | Path) -> StoredImage:
    """Read a DICOM, NIfTI, PNG or JPEG file, recognised by its content.

    :param path: The file; its name does not matter.
    :return: Stored values and what the header says about them; see the reader of each format for the conventions.
    :raises ImageError: If it is none of these, is damaged, or cannot be represented faithfully.
    """
    file = as_path(path)
    return _format(file).read(file)


def write_like(reference: StoredImage | str | Path, pixels: ArrayLike, path: str | Path) -> None:
    """Write ``pixels`` as a file of the kind of ``reference``, with all that is still true of its header.

    The new file appears complete or not at all: it is written beside its place, read back, compared pixel by pixel, and
    only then gets its name. The reference is never overwritten. A JPEG reference gives a PNG file.

    :param reference: The image, or its file, that ``pixels`` were made from.
    :param pixels: Stored values ``(C, *spatial)``, exact: on the grid and inside the domain of the reference.
    :param path: The new file, with a suffix that fits: ``.dcm`` or none, ``.nii`` or ``.nii.gz``, ``.png``.
    :raises ImageError: If the pixels do not fit, the suffix is lossy or of another kind, or writing fails.
    """
    source = as_path(reference.path if isinstance(reference, StoredImage) else reference)
    _format(source).write(source, pixels, Path(path))


def check_target(reference: StoredImage, path: Path) -> None:
    """Find out before the work, not after it, that :func:`write_like` would refuse the place or the name of a file.

    :param reference: The image that will be attacked.
    :param path: The file that will be written.
    :raises ImageError: If its folder does not exist, its suffix is lossy or of another kind, or it is the reference.
    """
    if not path.parent.is_dir():
        raise ImageError(f"cannot write {path}: {path.parent} is no folder")
    if path.exists() and path.samefile(reference.path):
        raise ImageError(f"{path} is the reference itself, which is never overwritten: choose another name")
    _format(reference.path).check_target(path)


def _format(path: Path) -> _Format:
    with one_error("read", path):
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if head[:2] == b"\x1f\x8b":
            with gzip.open(path, "rb") as packed:
                head = packed.read(_HEAD)
            found = [_FORMATS[1]] if looks_like_nifti(head) else []
        else:
            found = [one for one in _FORMATS if one.matches(head)]
        if not found:
            raise ImageError(f"{path} is no image of a known kind: DICOM, NIfTI (one file), PNG or JPEG")
        return found[0]
