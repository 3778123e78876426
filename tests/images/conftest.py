# SPDX-License-Identifier: Apache-2.0
"""Image files for these tests, made by means that the package does not use, and what every refusal must look like."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from art_medical.errors import ImageError


@pytest.fixture(scope="session")
def refused() -> Callable[[str], AbstractContextManager[None]]:
    """``with refused("words"):`` demands an ``ImageError`` of one line that contains them."""

    @contextmanager
    def check(match: str) -> Iterator[None]:
        with pytest.raises(ImageError, match=match) as caught:
            yield
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600

    return check


def dicom(cells: bytes, shape: tuple[int, ...], **header: Any) -> Dataset:
    """A DICOM object around raw bytes; keywords become elements, or delete them when they are ``None``.

    :param shape: Rows and columns.
    :param header: Elements; ``syntax`` is the transfer syntax and ``vr`` that of the pixel data.
    """
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = header.pop("syntax", ExplicitVRLittleEndian)
    ct = header.get("Modality") == "CT"
    ds.SOPClassUID = CTImageStorage if ct else SecondaryCaptureImageStorage
    ds.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.Rows, ds.Columns = shape
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.PixelRepresentation = 0
    vr = header.pop("vr", None)
    for keyword, value in header.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    if "HighBit" not in ds:
        ds.HighBit = max(ds.get("BitsStored", 16) - 1, 0)
    ds.PixelData = cells
    ds["PixelData"].VR = vr or ("OW" if ds.BitsAllocated > 8 or ds.file_meta.TransferSyntaxUID.is_implicit_VR else "OB")
    return ds


@pytest.fixture(scope="session")
def make_dicom() -> Callable[..., Dataset]:
    """The function :func:`dicom`."""
    return dicom


@pytest.fixture
def dicom_file(tmp_path: Path) -> Callable[..., Path]:
    """Write :func:`dicom` of the same arguments to a file of a folder of its own, and return its name."""

    def write(cells: bytes, shape: tuple[int, ...], **header: Any) -> Path:
        path = tmp_path / "reference.dcm"
        dicom(cells, shape, **header).save_as(path, enforce_file_format=True)
        return path

    return write


def png(pixels: NDArray[Any], colour_type: int, depth: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG file without filters, written down from ISO/IEC 15948; ``pixels`` are rows of bytes as they go into it."""
    height, columns = pixels.shape[0], pixels.shape[1]
    rows = pixels.astype(">u2").tobytes() if depth == 16 else pixels.astype("u1").tobytes()
    stride = len(rows) // height
    raw = b"".join(b"\0" + rows[i * stride : (i + 1) * stride] for i in range(height))
    width = columns * 8 // depth if depth < 8 else columns
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)),
        *extra,
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ]
    packed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.fixture(scope="session")
def make_png() -> Callable[..., bytes]:
    """The function :func:`png`."""
    return png


_CODES = {"u1": (2, 8), "i1": (256, 8), "u2": (512, 16), "i2": (4, 16), "u4": (768, 32), "i4": (8, 32)}
_CODES |= {"f4": (16, 32), "f8": (64, 64), "c8": (32, 64)}


def nifti(
    voxels: NDArray[Any],
    *,
    scale: tuple[float, float] = (0.0, 0.0),
    cal: tuple[float, float] = (0.0, 0.0),
    extension: bytes = b"",
    magic: bytes = b"n+1\0",
) -> bytes:
    """A NIfTI-1 file, written down from nifti1.h; byte order and type are those of ``voxels``.

    :param scale: ``scl_slope`` and ``scl_inter``.
    :param cal: ``cal_min`` and ``cal_max``.
    :param extension: Bytes of header extensions, a multiple of 16.
    """
    order = ">" if voxels.dtype.byteorder == ">" else "<"
    code, bits = _CODES[voxels.dtype.str[1:]]
    header = bytearray(348)

    def put(offset: int, kind: str, *values: Any) -> None:
        struct.pack_into(order + kind, header, offset, *values)

    put(0, "i", 348)
    put(40, "8h", voxels.ndim, *voxels.shape, *(1,) * (7 - voxels.ndim))
    put(70, "2h", code, bits)
    put(76, "8f", *(1.0,) * 8)
    put(108, "3f", 352 + len(extension), *scale)
    put(124, "2f", cal[1], cal[0])
    header[148:160] = b"phantom \xe9 1\0"
    header[344:348] = magic
    flag = b"\1\0\0\0" if extension else b"\0\0\0\0"
    return bytes(header) + flag + extension + voxels.tobytes(order="F")


@pytest.fixture(scope="session")
def make_nifti() -> Callable[..., bytes]:
    """The function :func:`nifti`."""
    return nifti


@pytest.fixture(scope="session")
def bundled() -> Callable[[str], Path]:
    """A test file inside the installed pydicom package."""
    import pydicom.data

    folder = Path(pydicom.data.__file__).parent / "test_files"

    def find(name: str) -> Path:
        assert (folder / name).is_file(), f"pydicom has no {name} any more"
        return folder / name

    return find


@pytest.fixture(scope="session")
def random_pixels() -> Callable[[Any, int], NDArray[np.float32]]:
    """Uniform integers of the domain of a ``StoredImage``, as float32: ``random_pixels(image, seed)``."""

    def draw(image: Any, seed: int) -> NDArray[np.float32]:
        low, high = int(image.domain.low), int(image.domain.high)
        pixels: NDArray[np.float32] = (
            np.random.default_rng(seed).integers(low, high + 1, image.pixels.shape).astype("f4")
        )
        return pixels

    return draw
