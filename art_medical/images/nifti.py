# SPDX-License-Identifier: Apache-2.0
"""NIfTI-1 and NIfTI-2 volumes in one file (``.nii``, ``.nii.gz``): only the voxel bytes are ever replaced."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from art_medical.domain import PixelDomain
from art_medical.errors import ImageError
from art_medical.estimators.steps import Rescale, Step, Window
from art_medical.images.image import (
    DISPLAY_HIGH,
    MOST_BITS,
    StoredImage,
    as_path,
    check_suffix,
    integer_domain,
    linear_display,
    one_error,
    suffix_of,
    write_verified,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

SUFFIXES = (".nii.gz", ".nii")

_GZIP = b"\x1f\x8b"
_TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "f4")


@dataclass(frozen=True)
class _Volume:
    """Uncompressed file, what its header says, and the stored voxels in the file's own axes and type."""

    content: bytes
    scale: float
    offset: float
    shown: tuple[float, float]
    start: int
    voxels: NDArray[Any]


def read_nifti(path: str | Path) -> StoredImage:
    """Read the stored values of a NIfTI volume.

    Pixels are ``(1, X, Y)``, ``(1, X, Y, Z)`` or, for four dimensions, ``(T, X, Y, Z)``: the last axis becomes the
    channels. The axes stay in file order, without reorientation. ``modality`` is ``scl_slope`` and ``scl_inter`` unless
    the slope is 0 or not finite. ``display`` is linear with clamping from ``cal_min`` to ``cal_max`` where the header
    sets them (they refer to scaled values), else linear over the domain.

    ``domain`` is the range of the integer type. 32-bit integers are accepted while all values fit into 24 bits, and
    their domain is cut to that. A float32 volume states no range: its domain is the closed interval of its own values,
    without grid, so that an attack cannot leave it; score the attacked volume with the domain of the reference.

    :param path: ``.nii`` or ``.nii.gz``.
    :raises ImageError: If the file is damaged, a header-image pair, of another voxel type, not finite or of more than
        four dimensions.
    """
    file = as_path(path)
    with one_error("read", file):
        return _image(_load(file), file)


def write_nifti_like(reference: str | Path, pixels: ArrayLike, path: str | Path) -> None:
    """Write ``pixels`` into a copy of a NIfTI file; header, extensions and trailing bytes stay byte for byte.

    :param reference: File that ``pixels`` were made from, compressed or not.
    :param pixels: Stored values as :func:`read_nifti` returns them.
    :param path: New file; ``.nii.gz`` is compressed (without time stamp: same pixels, same bytes), ``.nii`` is not.
    :raises ImageError: If the voxel type cannot hold the pixels, or ``path`` is the reference or names another format.
    """
    source, target = as_path(reference), Path(path)
    check_nifti_target(target)
    with one_error("read", source):
        volume = _load(source)
        image = _image(volume, source)
    values = image.exactly(pixels)
    axes = np.moveaxis(values, 0, -1).reshape(volume.voxels.shape)
    data = axes.astype(volume.voxels.dtype).tobytes(order="F")
    content = volume.content[: volume.start] + data + volume.content[volume.start + len(data) :]
    if suffix_of(target) == ".nii.gz":
        content = gzip.compress(content, mtime=0)
    write_verified(content, target, reference=image, pixels=values, read=read_nifti)


def check_nifti_target(path: Path) -> None:
    """Refuse a name that promises another format.

    :raises ImageError: If the suffix does not fit.
    """
    check_suffix(path, SUFFIXES, "NIfTI")


def looks_like_nifti(head: bytes) -> bool:
    """Whether a file that begins so is single-file NIfTI, by the magic of version 1 (byte 344) or 2 (byte 4)."""
    return head[344:348] == b"n+1\0" or head[4:12] == b"n+2\0\r\n\x1a\n"


def _load(path: Path) -> _Volume:
    content = path.read_bytes()
    if content[:2] == _GZIP:
        content = gzip.decompress(content)
    if not looks_like_nifti(content[:540]):
        raise ImageError(f"{path} is no single-file NIfTI volume; header and image pairs must be joined first")
    image_type: Any = nib.Nifti1Image if content[344:348] == b"n+1\0" else nib.Nifti2Image
    image = image_type.from_bytes(content)
    dtype = image.header.get_data_dtype()
    if dtype.str[1:] not in _TYPES:
        raise ImageError(f"{path} stores voxels of type {dtype}; supported are integers to 32 bits and float32")
    voxels = np.asarray(image.dataobj.get_unscaled())
    if not 2 <= voxels.ndim <= 4 or not voxels.size:
        raise ImageError(f"{path} has shape {voxels.shape}; supported are two to four dimensions")
    proxy, header = image.dataobj, image.header  # nibabel takes the scaling out of the header
    shown = (float(header["cal_min"]), float(header["cal_max"]))
    return _Volume(
        content, float(proxy.slope), float(proxy.inter), shown, proxy.offset, voxels.astype(dtype, copy=False)
    )


def _image(volume: _Volume, path: Path) -> StoredImage:
    domain = _domain(volume.voxels, path)
    scale, offset = volume.scale, volume.offset
    modality: tuple[Step, ...] = () if (scale, offset) == (1.0, 0.0) else (Rescale(scale=scale, offset=offset),)
    voxels = volume.voxels
    channels = np.moveaxis(voxels, -1, 0) if voxels.ndim == 4 else voxels[None]
    return StoredImage(
        pixels=np.ascontiguousarray(channels, dtype=np.float32),
        domain=domain,
        modality=modality,
        physical_unit="scaled value" if modality else domain.unit,
        display=_display(volume, domain),
        attackable=np.ones(channels.shape, dtype=np.bool_),
        path=path,
    )


def _domain(voxels: NDArray[Any], path: Path) -> PixelDomain:
    low, high = float(voxels.min()), float(voxels.max())
    if voxels.dtype.kind == "f":
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ImageError(f"{path} holds values that are not finite: replace them first")
        if low == high:
            raise ImageError(f"{path} holds the single value {low:g} in float32, which gives no range to attack in")
        return PixelDomain(low, high, step=None, unit="stored value")
    signed, bits = voxels.dtype.kind == "i", 8 * voxels.dtype.itemsize
    if bits < MOST_BITS:
        return integer_domain(bits, signed, "stored value", path)
    most = 2**MOST_BITS - 1
    if low < -most or high > most:
        raise ImageError(f"{path} holds {low:.0f} to {high:.0f}; float32 is exact for at most {MOST_BITS} bits")
    return PixelDomain(-most if signed else 0, most, unit="stored value")


def _display(volume: _Volume, domain: PixelDomain) -> tuple[Step, ...]:
    low, high = volume.shown
    if np.isfinite((low, high)).all() and low < high:
        # Window is DICOM's linear function, which runs over width - 1.
        return (Window(centre=(low + high) / 2 + 0.5, width=high - low + 1, low=0.0, high=DISPLAY_HIGH),)
    ends = [volume.scale * end + volume.offset for end in (domain.low, domain.high)]
    return linear_display(min(ends), max(ends))
