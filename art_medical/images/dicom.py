# SPDX-License-Identifier: Apache-2.0
"""DICOM images: stored values out, and back into the same object without touching what was not attacked.

Read: native, RLE, baseline JPEG and JPEG 2000, grey or colour, one frame or many. Refused, because with a guess the
network would see other numbers than the radiologist: palette colour, floating point pixels, look-up tables of modality
or VOI, sigmoid windows, transforms that differ between frames, one bit per pixel.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pydicom import dcmread, uid
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import FileDataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.tag import Tag
from pydicom.uid import UID

from art_medical import __version__
from art_medical.errors import ImageError
from art_medical.images.dicom_header import attackable, display_steps, functional_groups, modality_steps
from art_medical.images.image import (
    NOTICE,
    StoredImage,
    as_path,
    check_suffix,
    integer_domain,
    one_error,
    suffix_of,
    write_verified,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from pydicom.dataset import Dataset

    from art_medical.domain import PixelDomain

SUFFIXES = (".dcm", ".dicom", ".ima", "")

_NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
# Fixed, so that the same file gives the same pixels whatever else is installed: JPEG decoders differ by a grey level.
_DECODERS = {
    uid.RLELossless: ("pydicom",),
    uid.JPEGBaseline8Bit: ("pillow",),
    uid.JPEG2000Lossless: ("pylibjpeg", "pillow"),
    uid.JPEG2000: ("pylibjpeg", "pillow"),
}

# What would be untrue of the new object, or of native pixel data.
_DROPPED = (
    "DigitalSignaturesSequence",
    "MACParametersSequence",
    "InstanceCreationDate",
    "InstanceCreationTime",
    "InstanceCreatorUID",
    "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries",
    "SmallestImagePixelValueInPlane",
    "LargestImagePixelValueInPlane",
    "PixelDataProviderURL",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "EncapsulatedPixelDataValueTotalLength",
)


@dataclass(frozen=True)
class _Decoded:
    """Header and samples of one file; ``samples`` is ``(frames, rows, columns, samples)`` of the allocated type."""

    header: FileDataset
    syntax: UID
    photometric: str
    samples: NDArray[Any]
    domain: PixelDomain

    @property
    def bits_stored(self) -> int:
        return int(self.header.BitsStored)

    @property
    def signed(self) -> bool:
        return bool(self.header.PixelRepresentation)


def read_dicom(path: str | Path) -> StoredImage:
    """Read the stored values of a DICOM image and the header's account of them.

    Pixels are ``(1, rows, columns)``, ``(3, rows, columns)`` or, with more than one frame, ``(C, frames, rows,
    columns)``. YBR colour becomes RGB. ``modality`` is Rescale Slope and Intercept (PS3.3 C.11.1). ``display`` is the
    first window, linear or linear exact (C.11.2.1.2, C.11.2.1.3.2), then the inversion of MONOCHROME1 (C.7.6.3.1.2).
    Without a window it maps everything that the file could hold linearly to [0, 255], as the standard's identity VOI
    does (C.11.2): the image's own minimum and maximum would make the display of one pixel depend on all others.
    Colour has no window. Presentation LUT Shape is not looked at. Pixel padding, one value or a range (C.7.5.1.1.2), is
    not attackable.

    :param path: A DICOM file; one without preamble and file meta information is read when its beginning is plausible.
    :return: The image; ``domain`` follows from Bits Stored and Pixel Representation.
    :raises ImageError: If the file is damaged, holds no image, or one that cannot be shown faithfully (see the module).
    """
    file = as_path(path)
    with one_error("read", file):
        return _image(_decode(file.read_bytes(), file), file)


def write_dicom_like(reference: str | Path, pixels: ArrayLike, path: str | Path) -> None:
    """Write ``pixels`` into a copy of a DICOM object.

    Every element that stays true is copied as the bytes that were read: private and unknown elements, overlays (also
    those in unused bits of the pixel cells), icons, curves. What changes:

    - SOP Instance UID, also in the file meta information: a UUID (PS3.5 B.2) that follows from the reference's UID and
      the pixels, so that the same image has the same name wherever it was made.
    - Image Type value 1 and Frame Type value 1 are DERIVED; Derivation Description says what the image is, before what
      it said already.
    - Smallest and Largest Image Pixel Value, where present, follow the pixels; those of series and plane are dropped.
    - Digital signatures and their MAC parameters are dropped, for they no longer verify; so are the date, time and
      creator of the instance, pixel provider URL, offset tables and (retired) group lengths. The preamble is zero.
    - A native transfer syntax is kept. A compressed reference becomes Explicit VR Little Endian, because a second lossy
      compression would destroy the attack; Lossy Image Compression stays as it was. YBR colour becomes RGB.

    An icon still shows the reference.

    :param reference: DICOM file that ``pixels`` were made from.
    :param pixels: Stored values as :func:`read_dicom` returns them, integers inside the domain.
    :param path: New file, ``.dcm`` or without suffix; reading it gives exactly ``pixels``.
    :raises ImageError: If the file cannot hold the pixels, or ``path`` is the reference or names another format.
    """
    source, target = as_path(reference), Path(path)
    check_dicom_target(target)
    with one_error("read", source):
        content = source.read_bytes()
        decoded = _decode(content, source)
        image = _image(decoded, source)
    values = image.exactly(pixels)
    with one_error("write", target):
        written = _encode(content, decoded, values, source)
    write_verified(written, target, reference=image, pixels=values, read=read_dicom)


# -- reading --------------------------------------------------------------------------------------------------------


def check_dicom_target(path: Path) -> None:
    """Refuse a name that promises another format.

    :raises ImageError: If the suffix does not fit.
    """
    if not suffix_of(path)[1:].isdigit():  # files are often named by a UID
        check_suffix(path, SUFFIXES, "DICOM")


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file that begins so may be DICOM: ``DICM`` at byte 128 (PS3.10 7.1), or a first tag of group 2 or 8."""
    plausible = head[:2] in (b"\x02\0", b"\x08\0", b"\0\x08") and head[2:4] < b"\x20\0"
    return head[128:132] == b"DICM" or plausible


def _parse(content: bytes, path: Path) -> FileDataset:
    """The data set, complete: pydicom by itself accepts a last element that is cut."""
    if not looks_like_dicom(content):
        raise ImageError(f"{path} is no DICOM file: there is no 'DICM' at byte 128 and no data element at byte 0")
    header = dcmread(BytesIO(content), force=content[128:132] != b"DICM")
    end = len(content)
    for tag in header.keys():  # noqa: SIM118  values would be decoded, and encoded anew when written
        element: Any = header.get_item(tag)
        if not element.is_raw:  # a sequence of undefined length, which was parsed to its delimiter (PS3.5 7.5.2)
            end = content.rfind(b"\xfe\xff\xdd\xe0" if header.original_encoding[1] else b"\xff\xfe\xe0\xdd") + 8
            continue
        size = len(element.value or b"")
        if element.length not in (size, 0xFFFFFFFF):
            raise ImageError(f"{path} is truncated: {tag} has {size} of {element.length} bytes")
        end = element.value_tell + size + (0 if element.length == size else 8)  # 8 for the delimiter of fragments
    if _syntax(header) != uid.DeflatedExplicitVRLittleEndian and any(content[end:]):
        raise ImageError(f"{path} is truncated: {len(content) - end} bytes behind its last element are no element")
    return header


def _syntax(header: FileDataset) -> UID:
    """Transfer syntax: of the file meta information or, for data sets without it, as found by trial."""
    stated = header.file_meta.get("TransferSyntaxUID")
    if stated:
        return UID(stated)
    implicit, little = header.original_encoding
    return uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


def _decode(content: bytes, path: Path) -> _Decoded:
    """Parse and decode; colours are RGB, look-up tables are not applied, unused bits are cleared or sign-extended."""
    header = _parse(content, path)
    if "PixelData" not in header:
        held = [name for name in ("FloatPixelData", "DoubleFloatPixelData", "PixelDataProviderURL") if name in header]
        raise ImageError(
            f"{path} holds no integer pixel data{', but ' + held[0] if held else ''}: pass an image object"
        )
    domain = _domain(header, path)
    syntax = _syntax(header)
    _check_sizes(header, syntax, path)
    array, meta = _as_array(header, syntax, path)
    frames, colours = int(meta["number_of_frames"]), int(meta["samples_per_pixel"])
    if frames != int(header.get("NumberOfFrames") or 1):
        raise ImageError(f"{path} states {header.get('NumberOfFrames')} frames and holds {frames}: repair it first")
    photometric = str(meta["photometric_interpretation"])
    if (photometric, colours) not in {("MONOCHROME1", 1), ("MONOCHROME2", 1), ("RGB", 3)}:
        raise ImageError(
            f"{path} is {photometric} with {colours} sample(s) per pixel; supported are grey and RGB or YBR"
        )
    if array.min() < domain.low or array.max() > domain.high:
        raise ImageError(
            f"{path} holds {array.min()} to {array.max()}, but its header allows {domain.low} to {domain.high}"
        )
    samples = array.reshape(frames, header.Rows, header.Columns, colours)
    return _Decoded(header, syntax, photometric, samples, domain)


def _domain(header: FileDataset, path: Path) -> PixelDomain:
    allocated, stored = int(header.BitsAllocated), int(header.BitsStored)
    if allocated not in (8, 16, 32):
        raise ImageError(f"{path} has Bits Allocated {allocated}; supported are 8, 16 and 32")
    high = header.get("HighBit", stored - 1)
    if stored > allocated or high != stored - 1:
        raise ImageError(f"{path} stores {stored} of {allocated} bits up to bit {high}; they must start at bit 0")
    return integer_domain(stored, bool(header.PixelRepresentation), "stored value", path)


def _check_sizes(header: FileDataset, syntax: UID, path: Path) -> None:
    """Refuse JPEG code streams of another size: pydicom reshapes them if the pixels are as many, or only one."""
    if syntax not in (uid.JPEGBaseline8Bit, uid.JPEG2000, uid.JPEG2000Lossless):
        return
    for stream in generate_frames(header.PixelData, number_of_frames=int(header.get("NumberOfFrames") or 1)):
        with Image.open(BytesIO(stream), formats=("JPEG", "JPEG2000")) as picture:
            if picture.size != (header.Columns, header.Rows):
                raise ImageError(f"{path} states {header.Columns} x {header.Rows} pixels and holds {picture.size}")


def _as_array(header: FileDataset, syntax: UID, path: Path, **options: Any) -> tuple[NDArray[Any], dict[str, Any]]:
    """Decode with a pinned decoder."""
    decoder: Any = get_decoder(syntax)
    if syntax not in _NATIVE:
        known = _DECODERS.get(syntax)
        if known is None:
            raise ImageError(f"{path} is stored as {syntax.name}, which is not supported: decompress it first")
        options["decoding_plugin"] = next((name for name in known if name in decoder.available_plugins), known[0])
    array, meta = decoder.as_array(header, **options)
    return array, meta


def _image(decoded: _Decoded, path: Path) -> StoredImage:
    stored = np.moveaxis(decoded.samples, -1, 0)
    if stored.shape[1] == 1:
        stored = stored[:, 0]
    modality, unit = modality_steps(decoded.header, path)
    return StoredImage(
        pixels=np.ascontiguousarray(stored, dtype=np.float32),
        domain=decoded.domain,
        modality=modality,
        physical_unit=unit,
        display=display_steps(decoded.header, decoded.photometric, decoded.domain, modality, path),
        attackable=attackable(decoded.header, decoded.photometric, np.ascontiguousarray(stored)),
        path=path,
    )


def _encode(content: bytes, decoded: _Decoded, values: NDArray[np.float32], path: Path) -> bytes:
    """The new file. The reference is parsed afresh, because an element that was looked at is no longer raw."""
    header = _parse(content, path)
    native = decoded.syntax in _NATIVE
    syntax = decoded.syntax if native else uid.ExplicitVRLittleEndian
    samples = np.moveaxis(values.reshape(-1, *decoded.samples.shape[:-1]), 0, -1)
    _describe(header, decoded, values)
    planar = 0
    if samples.shape[-1] > 1:
        planar = int(decoded.header.get("PlanarConfiguration") or 0) if native else 0
        _put(header, "PlanarConfiguration", "US", planar)
    if header.get("PhotometricInterpretation") != decoded.photometric:
        _put(header, "PhotometricInterpretation", "CS", decoded.photometric)
    allocated = int(decoded.header.BitsAllocated)
    vr = str(decoded.header["PixelData"].VR) if native else "OB" if allocated == 8 else "OW"
    cells = _cells(decoded, samples, path)
    cells = np.moveaxis(cells, -1, 1) if planar else cells
    _put(header, "PixelData", vr, _pack(cells, syntax.is_little_endian, vr))
    _meta(header, syntax)
    if not syntax.is_implicit_VR and any(header.get_item(tag).VR is None for tag in header.keys()):  # noqa: SIM118
        # Implicit VR inside an explicit syntax is against the standard and occurs: such elements have no VR to copy.
        for _ in header.iterall():
            pass
    buffer = BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _put(header: Dataset, keyword: str, vr: str, value: Any) -> None:
    header[keyword] = DataElement(Tag(keyword), vr, value)


def _meta(header: FileDataset, syntax: UID) -> None:
    """File meta information (PS3.10 7.1) of the new file."""
    header.file_meta.TransferSyntaxUID = syntax
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.file_meta.ImplementationClassUID = uid.PYDICOM_IMPLEMENTATION_UID
    header.file_meta.ImplementationVersionName = f"ART_MED {__version__}"[:16]
    header.preamble = bytes(128)


def _describe(header: FileDataset, decoded: _Decoded, values: NDArray[np.float32]) -> None:
    """Make the header true of the new pixels."""
    for keyword in _DROPPED:
        if keyword in header:
            del header[keyword]
    digest = hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()
    name = uuid.uuid5(uuid.NAMESPACE_OID, f"{header.get('SOPInstanceUID')}:{digest}")
    _put(header, "SOPInstanceUID", "UI", f"2.25.{name.int}")
    _derived(header, "ImageType")
    for group in functional_groups(header):
        for tag in group.keys():  # noqa: SIM118  as in _parse
            if keyword_for_tag(tag).endswith(("FrameTypeSequence", "USImageDescriptionSequence")):
                for macro in group[tag].value:
                    _derived(macro, "FrameType")
    notice = f"{NOTICE} Made with art-medical {__version__}."
    earlier = str(header.get("DerivationDescription") or "")
    text = f"{notice} Before: {earlier}" if earlier else notice
    _put(header, "DerivationDescription", "ST", text[:1024])
    for keyword, value in (("SmallestImagePixelValue", values.min()), ("LargestImagePixelValue", values.max())):
        if keyword in header:
            del header[keyword]
            if decoded.bits_stored <= 16:
                _put(header, keyword, "SS" if decoded.signed else "US", int(value))


def _derived(item: Dataset, keyword: str) -> None:
    """Value 1 becomes DERIVED; an absent Image Type gets its two mandatory values (C.7.6.1.1.2)."""
    value = item.get(keyword)
    if value is None or value == "":
        if keyword == "ImageType":
            _put(item, keyword, "CS", ["DERIVED", "SECONDARY"])
        return
    values = [value] if isinstance(value, str) else list(value)
    _put(item, keyword, "CS", ["DERIVED", *values[1:]])


def _cells(decoded: _Decoded, samples: NDArray[np.float32], path: Path) -> NDArray[Any]:
    """Samples as unsigned pixel cells ``(frames, rows, columns, samples)``.

    Bits above Bits Stored are not part of the value (PS3.5 8.1.1) and may hold overlays: they are kept as they were,
    unless all of them repeat the sign.
    """
    allocated, stored = int(decoded.header.BitsAllocated), decoded.bits_stored
    cells: NDArray[Any] = samples.astype(np.int64).astype(f"u{allocated // 8}")
    if stored == allocated or decoded.photometric != decoded.header.PhotometricInterpretation:
        return cells
    kept, _ = _as_array(decoded.header, decoded.syntax, path, raw=True, correct_unused_bits=False)
    before = kept.reshape(cells.shape).astype(kept.dtype.newbyteorder("=")).view(cells.dtype)
    if np.array_equal(before, decoded.samples.astype(cells.dtype)):
        return cells
    mask = cells.dtype.type(2**stored - 1)
    merged: NDArray[Any] = (before & ~mask) | (cells & mask)
    return merged


def _pack(cells: NDArray[Any], little: bool, vr: str) -> bytes:
    """Pixel cells as the value of Pixel Data, of even length; 8-bit cells in big-endian words are swapped pairwise."""
    data = cells.astype(cells.dtype.newbyteorder("<" if little else ">")).tobytes()
    data += b"\0" * (len(data) % 2)
    if cells.dtype.itemsize == 1 and vr == "OW" and not little:
        data = np.frombuffer(data, dtype="u2").byteswap().tobytes()
    return bytes(data)
