# SPDX-License-Identifier: Apache-2.0
"""DICOM: values against other decoders, written objects against the bytes of their reference."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

import art_medical
from art_medical.errors import ImageError
from art_medical.estimators.steps import Rescale, Window
from art_medical.images.dicom import read_dicom, write_dicom_like
from art_medical.images.image import StoredImage

Find = Callable[[str], Path]
Refused = Callable[[str], AbstractContextManager[None]]

MR = (
    "MR_small.dcm",
    "MR_small_implicit.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_RLE.dcm",
    "MR_small_jp2klossless.dcm",
)
NATIVE = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
JPEG_2000 = {
    "J2K_pixelrep_mismatch.dcm": (-2000, 1896),
    "explicit_VR-UN.dcm": (-1024, 1186),
    "RG1_J2KI.dcm": (803, 26512),
    "RG3_J2KI.dcm": (0, 1023),
    "MR2_J2KR.dcm": (0, 595),
}


def grey(image: StoredImage) -> NDArray[Any]:
    """The displayed grey levels, by the differentiable steps that a classifier will use, in float64."""
    x = torch.from_numpy(image.pixels.astype(np.float64))[None]
    for step in image.to_grey:
        x = step.apply(x)
    result: NDArray[Any] = x[0].numpy()
    return result


def code_streams(path: Path) -> list[bytes]:
    ds = pydicom.dcmread(path)
    return [*generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames") or 1))]


def raw(path: Path) -> dict[Any, Any]:
    """Every element of a data set as the bytes in the file, sequences of undefined length item by item."""

    def plain(ds: Dataset) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for tag in ds.keys():  # noqa: SIM118  values would be decoded
            element = ds.get_item(tag)
            items = isinstance(element.value, Sequence)
            result[tag] = (element.VR, [plain(item) for item in element.value] if items else element.value or b"")
        return result

    return plain(pydicom.dcmread(path))


# -- reading: values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MR)
def test_the_same_image_in_every_encoding(bundled: Find, name: str) -> None:
    content = bundled("MR_small.dcm").read_bytes()
    start = content.index(struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 8192)) + 12
    expected = np.frombuffer(content[start : start + 8192], "<i2").reshape(1, 64, 64)
    image = read_dicom(bundled(name))
    assert image.pixels.dtype == np.float32
    np.testing.assert_array_equal(image.pixels, expected)
    assert (image.domain.low, image.domain.high, image.domain.step) == (-32768, 32767, 1)
    assert image.domain.unit == image.physical_unit == "stored value"
    assert image.modality == () and image.attackable.all()
    assert image.display == (Window(centre=600, width=1600, low=0, high=255),)


@pytest.mark.parametrize("name", ["SC_rgb_small_odd.dcm", "SC_rgb_small_odd_big_endian.dcm"])
def test_odd_colour_pixels_also_when_swapped_in_words(bundled: Find, tmp_path: Path, name: str) -> None:
    content = bundled("SC_rgb_small_odd.dcm").read_bytes()
    start = content.rindex(struct.pack("<HH", 0x7FE0, 0x10)) + 12
    expected = np.frombuffer(content[start : start + 27], "u1").reshape(3, 3, 3).transpose(2, 0, 1)
    np.testing.assert_array_equal(read_dicom(bundled(name)).pixels, expected)
    write_dicom_like(bundled(name), expected, tmp_path / "new.dcm")
    assert pydicom.dcmread(tmp_path / "new.dcm").PixelData == pydicom.dcmread(bundled(name)).PixelData


@pytest.mark.parametrize("name", JPEG_2000)
def test_jpeg_2000_of_any_sign(data_dir: Find, name: str) -> None:
    """Pillow decodes the code stream, which fills 16 bits from above; the header says what the bits mean."""
    path = data_dir("dicom") / name
    ds = pydicom.dcmread(path)
    stream = code_streams(path)[0]
    size = stream.index(b"\xff\x51") + 40  # Ssiz of the SIZ marker, ISO/IEC 15444-1 A.5.1
    signed, precision = stream[size] >> 7, (stream[size] & 127) + 1
    assert bool(signed) == bool(ds.PixelRepresentation) or name.startswith("J2K")
    with Image.open(BytesIO(stream)) as picture:
        values = np.array(picture).astype(np.int64) >> (16 - precision)
    if signed:  # Pillow adds half of the range
        values -= 2 ** (precision - 1)
    elif ds.PixelRepresentation:
        values -= (values >> (precision - 1)) << precision
    image = read_dicom(path)
    np.testing.assert_array_equal(image.pixels[0], values)
    assert (image.pixels.min(), image.pixels.max()) == JPEG_2000[name]


def test_jpeg_2000_colour(bundled: Find) -> None:
    path = bundled("examples_jpeg2k.dcm")
    with Image.open(BytesIO(code_streams(path)[0])) as picture:
        expected = np.array(picture.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(read_dicom(path).pixels, expected)


@pytest.mark.parametrize(
    "name",
    ["SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_rgb_small_odd_jpeg.dcm", "examples_ybr_color.dcm"],
)
def test_baseline_jpeg_becomes_rgb(bundled: Find, name: str, tmp_path: Path) -> None:
    """libjpeg converts YBR in fixed point, pydicom in floating point: they may differ by rounding."""
    path = bundled(name)
    image = read_dicom(path)
    frames = image.pixels.transpose(1, 2, 3, 0) if image.pixels.ndim == 4 else image.pixels.transpose(1, 2, 0)[None]
    for frame, stream in zip(frames, code_streams(path), strict=True):
        with Image.open(BytesIO(stream)) as picture:
            assert abs(frame - np.array(picture.convert("RGB"))).max() <= 1
    assert image.display == () and (image.domain.low, image.domain.high) == (0, 255)
    write_dicom_like(path, image.pixels, tmp_path / "new.dcm")
    new = pydicom.dcmread(tmp_path / "new.dcm")
    assert new.PhotometricInterpretation == "RGB" and new.PlanarConfiguration == 0
    assert new.LossyImageCompression == "01"
    assert new.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


def test_expected_facts_of_the_real_images(data_dir: Find) -> None:
    folder = data_dir("dicom")
    shapes = {path.name: read_dicom(path).pixels.shape for path in sorted(folder.glob("*.dcm"))}
    assert len(shapes) == 10
    assert shapes["RG1_J2KI.dcm"] == (1, 1955, 1841) and shapes["emri_small.dcm"] == (1, 10, 64, 64)
    ct = read_dicom(folder / "693_UNCR.dcm")
    assert (ct.domain.low, ct.domain.high) == (-8192, 8191)
    assert ct.physical_unit == "HU" and ct.modality == (Rescale(scale=1, offset=-1024),)
    np.testing.assert_array_equal(ct.attackable, ct.pixels != -2000)
    assert 0 < (~ct.attackable).sum() < ct.pixels.size / 2
    assert read_dicom(folder / "CT_small.dcm").physical_unit == "HU"
    mr = read_dicom(folder / "MR2_J2KR.dcm")
    assert mr.modality == (Rescale(scale=3.774114, offset=0.000061),) and mr.physical_unit == "unspecified unit"


# -- reading: meaning -----------------------------------------------------------------------------------------------

RAMP = np.arange(0, 4096, dtype="<u2")


def voi(x: float, centre: float, width: float, function: str | None = None) -> float:
    """The pseudo-code of PS3.3 C.11.2.1.2.1 and C.11.2.1.3.2, pixel by pixel."""
    low, high = 0.0, 255.0
    if function == "LINEAR_EXACT":
        if x <= centre - width / 2:
            return low
        return high if x > centre + width / 2 else ((x - centre) / width + 0.5) * (high - low) + low
    if x <= centre - 0.5 - (width - 1) / 2:
        return low
    if x > centre - 0.5 + (width - 1) / 2:
        return high
    return ((x - (centre - 0.5)) / (width - 1) + 0.5) * (high - low) + low


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT"])
def test_display_is_rescale_then_window_then_inversion(
    dicom_file: Callable[..., Any], photometric: str, function: Any
) -> None:
    header = {"VOILUTFunction": function} if function else {}
    path = dicom_file(
        RAMP.tobytes(), (64, 64), BitsStored=12, PhotometricInterpretation=photometric, RescaleSlope="-0.5",
        RescaleIntercept="900", WindowCenter=["200.5", "1"], WindowWidth=["301", "2"], **header,
    )  # fmt: skip
    expected = np.array([voi(-0.5 * float(x) + 900, 200.5, 301, function) for x in RAMP]).reshape(1, 64, 64)
    if photometric == "MONOCHROME1":
        expected = 255 - expected
    np.testing.assert_allclose(grey(read_dicom(path)), expected, atol=1e-9)


def test_without_window_the_display_depends_on_the_header_alone(dicom_file: Callable[..., Any]) -> None:
    for cells in (RAMP[:256], RAMP[1000:1256]):
        image = read_dicom(
            dicom_file(cells.tobytes(), (16, 16), BitsStored=12, RescaleSlope="-2", RescaleIntercept="7")
        )
        np.testing.assert_allclose(grey(image)[0], 255 - cells.reshape(16, 16) * (255 / 4095), atol=1e-9)


@pytest.mark.skipif(shutil.which("dcm2pnm") is None, reason="dcmtk is not installed")
@pytest.mark.parametrize("name", ["MR_small.dcm", "examples_overlay.dcm", "693_J2KI.dcm", "mono1"])
def test_display_as_dcmtk_shows_it(bundled: Find, dicom_file: Callable[..., Any], tmp_path: Path, name: str) -> None:
    """The written copy is what dcmtk gets, so this checks the writer, compressed references included, at once."""
    if name == "mono1":
        header = {"WindowCenter": "1800", "WindowWidth": "2500", "PhotometricInterpretation": "MONOCHROME1"}
        path = dicom_file(RAMP.tobytes(), (64, 64), BitsStored=12, RescaleSlope="1", RescaleIntercept="-100", **header)
    else:
        path = bundled(name)
    image = read_dicom(path)
    write_dicom_like(path, image.pixels, tmp_path / "new.dcm")
    command = ["dcm2pnm", "--no-overlays", "+Wi", "1", "+op", str(tmp_path / "new.dcm"), str(tmp_path / "new.pgm")]
    subprocess.run(command, check=True, timeout=30)
    with Image.open(tmp_path / "new.pgm") as picture:
        shown = np.array(picture).astype(float)
    assert abs(shown - grey(image)[0]).max() < 1.001  # dcmtk truncates


@pytest.mark.parametrize(
    ("header", "unit"),
    [
        ({"Modality": "CT", "RescaleSlope": "1", "RescaleIntercept": "0"}, "HU"),
        ({"Modality": "PT", "RescaleSlope": "2", "RescaleIntercept": "0", "RescaleType": "BQML"}, "BQML"),
        ({"Modality": "MR", "RescaleSlope": "2", "RescaleIntercept": "0"}, "unspecified unit"),
        ({"Modality": "CT"}, "stored value"),
    ],
)
def test_physical_unit(dicom_file: Callable[..., Any], header: Any, unit: str) -> None:
    image = read_dicom(dicom_file(bytes(8), (2, 2), **header))
    assert image.physical_unit == unit
    assert image.modality == (() if header.get("RescaleSlope", "1") == "1" else (Rescale(scale=2, offset=0),))


@pytest.mark.parametrize(
    ("signed", "header", "padding"),
    [
        (1, {"PixelPaddingValue": -2000}, [-2000]),
        (1, {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1998}, [-2000, -1999, -1998]),
        (1, {"PixelPaddingValue": -1998, "PixelPaddingRangeLimit": -2000}, [-2000, -1999, -1998]),
        (0, {"PixelPaddingValue": 63536}, [2096]),  # a writer that put -2000 into 16 bits, of which 12 are stored
        (0, {}, []),
    ],
)
def test_padding_is_not_attackable(dicom_file: Callable[..., Any], signed: int, header: Any, padding: Any) -> None:
    stored = RAMP.astype(np.int64) - (2048 if signed else 0)
    path = dicom_file(stored.astype("<i2").tobytes(), (64, 64), BitsStored=12, PixelRepresentation=signed, **header)
    image = read_dicom(path)
    np.testing.assert_array_equal(image.pixels.ravel(), stored)
    assert image.pixels[~image.attackable].tolist() == padding


def test_padding_of_a_writer_that_confuses_us_and_ss(dicom_file: Callable[..., Any]) -> None:
    path = dicom_file(np.array([-2000, 0, 5, -2000], "<i2").tobytes(), (2, 2), PixelRepresentation=1)
    ds = pydicom.dcmread(path)
    ds.add_new("PixelPaddingValue", "US", 63536)
    ds.save_as(path)
    assert read_dicom(path).attackable.tolist() == [[[False, True], [True, False]]]


def frame_groups(*slopes: str, frame_type: list[str] | None = None) -> Sequence:
    groups = []
    for slope in slopes:
        values, group = Dataset(), Dataset()
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slope, "-3", "US"
        group.PixelValueTransformationSequence = Sequence([values])
        window = Dataset()
        window.WindowCenter, window.WindowWidth = "10", "20"
        group.FrameVOILUTSequence = Sequence([window])
        if frame_type:
            kind = Dataset()
            kind.FrameType = frame_type
            group.MRImageFrameTypeSequence = Sequence([kind])
        groups.append(group)
    return Sequence(groups)


def test_functional_groups(dicom_file: Callable[..., Any], refused: Refused, tmp_path: Path) -> None:
    groups = frame_groups("2", "2", frame_type=["ORIGINAL", "PRIMARY", "M", "NONE"])
    cells = np.arange(24, dtype="<u2")
    path = dicom_file(cells.tobytes(), (3, 4), NumberOfFrames=2, PerFrameFunctionalGroupsSequence=groups)
    image = read_dicom(path)
    np.testing.assert_array_equal(image.pixels, cells.reshape(1, 2, 3, 4))
    assert image.to_grey == (Rescale(scale=2, offset=-3), Window(centre=10, width=20, low=0, high=255))
    write_dicom_like(path, image.pixels[:, ::-1], tmp_path / "new.dcm")
    new = pydicom.dcmread(tmp_path / "new.dcm")
    for group in new.PerFrameFunctionalGroupsSequence:
        assert group.MRImageFrameTypeSequence[0].FrameType == ["DERIVED", "PRIMARY", "M", "NONE"]
    np.testing.assert_array_equal(new.pixel_array, cells.reshape(2, 3, 4)[::-1])
    path = dicom_file(
        cells.tobytes(), (3, 4), NumberOfFrames=2, PerFrameFunctionalGroupsSequence=frame_groups("2", "3")
    )
    with refused("2 different rescale transforms"):
        read_dicom(path)


# -- reading: refusals ----------------------------------------------------------------------------------------------

LUT = Dataset()
LUT.add_new("LUTDescriptor", "US", [2, 0, 16])
LUT.add_new("LUTData", "US", [0, 1])


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"BitsAllocated": 32, "BitsStored": 32}, "32 significant bits"),
        ({"BitsAllocated": 1, "BitsStored": 1}, "Bits Allocated 1"),
        ({"BitsStored": 12, "HighBit": 15}, "up to bit 15"),
        ({"BitsStored": 17}, "17 of 16 bits"),
        ({"BitsStored": 0}, "0 of 16 bits"),
        ({"BitsStored": None}, "BitsStored"),
        ({"Rows": None}, "Rows"),
        ({"NumberOfFrames": 3}, "less than expected"),
        ({"ModalityLUTSequence": Sequence([LUT])}, "modality look-up table"),
        ({"VOILUTSequence": Sequence([LUT])}, "VOI look-up table"),
        ({"RescaleSlope": "0", "RescaleIntercept": "1"}, "Rescale Slope 0"),
        ({"WindowCenter": "1", "WindowWidth": "1"}, "width 1"),
        ({"WindowCenter": "1", "WindowWidth": "9", "VOILUTFunction": "SIGMOID"}, "SIGMOID"),
        ({"syntax": JPEGLSLossless}, "JPEG-LS Lossless"),
        ({"syntax": RLELossless}, "cannot read"),
    ],
)
def test_what_cannot_be_shown_faithfully_is_refused(
    make_dicom: Callable[..., Any], tmp_path: Path, refused: Refused, header: Any, words: str
) -> None:
    ds = make_dicom(bytes(8), (2, 2), **header)
    if ds.file_meta.TransferSyntaxUID.is_compressed:
        ds.PixelData = encapsulate([b"\0" * 70])
        ds["PixelData"].is_undefined_length = True
    path = tmp_path / "x.dcm"
    ds.save_as(path, enforce_file_format=True)
    with refused(words):
        read_dicom(path)


def test_a_window_wins_over_a_look_up_table_as_an_alternative(dicom_file: Callable[..., Any]) -> None:
    """PS3.3 C.11.2.1: several views are alternatives; the reader takes the first window."""
    path = dicom_file(bytes(8), (2, 2), VOILUTSequence=Sequence([LUT]), WindowCenter="3", WindowWidth="5")
    assert read_dicom(path).display == (Window(centre=3, width=5, low=0, high=255),)


def test_floating_point_pixels_are_refused(make_dicom: Callable[..., Any], tmp_path: Path, refused: Refused) -> None:
    ds = make_dicom(bytes(8), (2, 2), BitsAllocated=32, BitsStored=32)
    del ds.PixelData
    ds.FloatPixelData = bytes(16)
    ds.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    with refused("FloatPixelData"):
        read_dicom(tmp_path / "x.dcm")


@pytest.mark.parametrize("name", ["rtplan.dcm", "test-SR.dcm", "waveform_ecg.dcm", "UN_sequence.dcm"])
def test_objects_without_image_are_refused(bundled: Find, refused: Refused, name: str) -> None:
    with refused("no integer pixel data"):
        read_dicom(bundled(name))


@pytest.mark.parametrize("size", [(1, 1), (2, 8), (4, 3)])
@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000"])
def test_code_streams_of_another_size_are_refused(
    make_dicom: Callable[..., Any], tmp_path: Path, refused: Refused, kind: str, size: tuple[int, int]
) -> None:
    """One pixel would be spread over the image, and 2 x 8 pixels reshaped to 4 x 4."""
    buffer = BytesIO()
    with Image.fromarray(np.zeros(size, np.uint8)) as picture:
        picture.save(buffer, kind, **({"no_jp2": True} if kind == "JPEG2000" else {}))
    syntax = JPEG2000Lossless if kind == "JPEG2000" else JPEGBaseline8Bit
    ds = make_dicom(b"", (4, 4), BitsAllocated=8, BitsStored=8, syntax=syntax)
    ds.PixelData = encapsulate([buffer.getvalue()])
    ds["PixelData"].is_undefined_length = True
    ds.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    with refused("states 4 x 4 pixels"):
        read_dicom(tmp_path / "x.dcm")


def test_code_streams_of_more_bits_than_stated_are_refused(
    make_dicom: Callable[..., Any], tmp_path: Path, refused: Refused
) -> None:
    buffer = BytesIO()
    with Image.fromarray(np.arange(56, 72, dtype=np.uint8).reshape(4, 4)) as picture:
        picture.save(buffer, "JPEG2000", no_jp2=True)
    ds = make_dicom(b"", (4, 4), BitsAllocated=8, BitsStored=6, syntax=JPEG2000Lossless)
    ds.PixelData = encapsulate([buffer.getvalue()])
    ds["PixelData"].is_undefined_length = True
    ds.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    with refused("holds 56 to 71, but its header allows 0 to 63"):
        read_dicom(tmp_path / "x.dcm")


def test_more_frames_than_stated_are_refused(bundled: Find, tmp_path: Path, refused: Refused) -> None:
    ds = pydicom.dcmread(bundled("examples_ybr_color.dcm"))
    ds.NumberOfFrames = 29
    ds.save_as(tmp_path / "x.dcm")
    with refused("states 29 frames and holds 30"):
        read_dicom(tmp_path / "x.dcm")


@pytest.mark.parametrize(("name", "behind"), [("MR_small.dcm", 0), ("MR_small_RLE.dcm", 0), ("image_dfl.dcm", 8)])
def test_every_truncation_is_refused(bundled: Find, tmp_path: Path, refused: Refused, name: str, behind: int) -> None:
    """The deflated file has ``behind`` bytes after its stream, which mean nothing."""
    content = bundled(name).read_bytes()
    content = content[: len(content) - behind]
    path = tmp_path / "cut.dcm"
    for length in [0, 1, 127, 131, 132, 133, *range(140, len(content) - 1, len(content) // 60), len(content) - 1]:
        path.write_bytes(content[:length])
        with refused("."):
            read_dicom(path)


def test_a_cut_behind_the_pixels_is_seen_as_well(bundled: Find, tmp_path: Path, refused: Refused) -> None:
    """The last element of this file follows the pixel data; losing it would be a silent change when writing."""
    content = bundled("CT_small.dcm").read_bytes()
    for cut in (1, 60, 126, 128, 130, 134):
        (tmp_path / "cut.dcm").write_bytes(content[:-cut])
        with refused("truncated|buffer"):
            read_dicom(tmp_path / "cut.dcm")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("undefined", [False, True])
def test_a_sequence_behind_the_pixels_may_not_be_cut(
    make_dicom: Callable[..., Any], tmp_path: Path, refused: Refused, undefined: bool, compressed: bool
) -> None:
    """It would be lost without notice when the file is written again; pydicom reads on over every such cut."""
    ds = make_dicom(bytes(8), (2, 2))
    item = Dataset()
    item.DigitalSignatureUID = "1.2.3"
    item.is_undefined_length_sequence_item = undefined
    item.DigitalSignaturePurposeCodeSequence = Sequence([Dataset()])
    item["DigitalSignaturePurposeCodeSequence"].is_undefined_length = undefined
    ds.DigitalSignaturesSequence = Sequence([item])
    ds["DigitalSignaturesSequence"].is_undefined_length = undefined
    ds.private_block(0x7FE1, "TEST", create=True).add_new(1, "SQ", Sequence([Dataset()]))
    ds[0x7FE11001].is_undefined_length = undefined
    if compressed:
        ds.compress(RLELossless, generate_instance_uid=False)
    path = tmp_path / "x.dcm"
    ds.save_as(path, enforce_file_format=True)
    assert read_dicom(path).pixels.shape == (1, 2, 2)
    content = path.read_bytes()
    for length in range(content.rindex(struct.pack("<HH", 0xFFFA, 0xFFFA)) + 1, len(content)):
        path.write_bytes(content[:length])
        with refused("."):
            read_dicom(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["MR_small_RLE.dcm", "MR_small_implicit.dcm", "SC_rgb_small_odd_jpeg.dcm"]))
def test_damaged_bytes_give_an_image_or_one_error(bundled: Find, tmp_path: Path, data: Any, name: str) -> None:
    content = bytearray(bundled(name).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(132, min(len(content), 1800) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "x.dcm").write_bytes(content)
    try:
        image = read_dicom(tmp_path / "x.dcm")
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert image.domain.on_grid(image.pixels)


def test_without_preamble(bundled: Find, tmp_path: Path) -> None:
    """A bare data set, as some old archives hold it, gets its file meta information when written."""
    content = bundled("MR_small_implicit.dcm").read_bytes()
    length = struct.unpack_from("<I", content, 140)[0]
    (tmp_path / "bare").write_bytes(content[144 + length :])
    image = read_dicom(tmp_path / "bare")
    np.testing.assert_array_equal(image.pixels, read_dicom(bundled("MR_small.dcm")).pixels)
    write_dicom_like(tmp_path / "bare", image.pixels, tmp_path / "new")
    new = pydicom.dcmread(tmp_path / "new")
    assert new.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert new.file_meta.MediaStorageSOPInstanceUID == new.SOPInstanceUID


# -- writing --------------------------------------------------------------------------------------------------------


@st.composite
def objects(draw: Any) -> tuple[dict[str, Any], int, int, bool]:
    """Layout of a small object: bits, sign, colour, planes, frames, encoding."""
    allocated = draw(st.sampled_from([8, 16, 32]))
    colour = draw(st.booleans()) and allocated < 32
    header = {
        "BitsAllocated": allocated,
        "BitsStored": draw(st.integers(1, min(allocated, 24))),
        "PixelRepresentation": 0 if colour else draw(st.integers(0, 1)),
        "PhotometricInterpretation": "RGB" if colour else draw(st.sampled_from(["MONOCHROME1", "MONOCHROME2"])),
        "SamplesPerPixel": 3 if colour else 1,
        "syntax": draw(st.sampled_from(NATIVE)),
    }
    if colour:
        header["PlanarConfiguration"] = draw(st.integers(0, 1))
    if draw(st.booleans()):
        header["NumberOfFrames"] = draw(st.integers(1, 3))
    if allocated == 8 and not header["syntax"].is_implicit_VR:
        header["vr"] = draw(st.sampled_from(["OB", "OW"]))
    return header, draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.booleans())


def cells_of(values: NDArray[Any], header: dict[str, Any], high_bits: list[int] | None = None) -> bytes:
    """Raw bytes of ``values`` ``(frames, rows, columns, samples)``, packed by Python integers alone."""
    allocated, stored = header["BitsAllocated"], header["BitsStored"]
    if header.get("PlanarConfiguration"):
        values = values.transpose(0, 3, 1, 2)
    order = "little" if header["syntax"].is_little_endian else "big"
    data = b""
    for i, value in enumerate(values.ravel().tolist()):
        cell = value % 2**allocated if high_bits is None else value % 2**stored | high_bits[i] << stored
        data += cell.to_bytes(allocated // 8, order)
    data += b"\0" * (len(data) % 2)
    if header.get("vr") == "OW" and order == "big":
        data = b"".join(data[i : i + 2][::-1] for i in range(0, len(data), 2))
    return data


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=objects(), seed=st.integers(0, 2**32 - 1))
def test_round_trip_of_any_layout(
    dicom_file: Callable[..., Any], tmp_path: Path, random_pixels: Callable[..., Any], drawn: Any, seed: int
) -> None:
    """Read what was packed by hand; write other pixels; find them packed the same way, with foreign bits untouched."""
    header, rows, columns, foreign = drawn
    rng = np.random.default_rng(seed)
    frames, samples = header.get("NumberOfFrames", 1), header["SamplesPerPixel"]
    bits = header["BitsStored"]
    low = -(2 ** (bits - 1)) if header["PixelRepresentation"] else 0
    values = rng.integers(low, low + 2**bits, (frames, rows, columns, samples))
    spare = header["BitsAllocated"] - bits
    high_bits = rng.integers(0, 2**spare, values.size).tolist() if foreign and spare else None
    path = dicom_file(cells_of(values, header, high_bits), (rows, columns), **header)

    image = read_dicom(path)
    expected = np.moveaxis(values, -1, 0)
    np.testing.assert_array_equal(image.pixels, expected if frames > 1 else expected[:, 0])
    assert (image.domain.low, image.domain.high) == (low, low + 2**bits - 1)

    pixels = random_pixels(image, seed)
    target = tmp_path / "new.dcm"
    write_dicom_like(path, pixels, target)
    np.testing.assert_array_equal(read_dicom(target).pixels, pixels)
    again = np.moveaxis(pixels.reshape(samples, frames, rows, columns), 0, -1).astype(np.int64)
    if high_bits is not None and header["PixelRepresentation"]:
        extended = all(h == (2**spare - 1 if v < 0 else 0) for h, v in zip(high_bits, values.ravel(), strict=True))
        high_bits = None if extended else high_bits
    new = pydicom.dcmread(target)
    assert new.PixelData == cells_of(again, header, high_bits)
    assert new.file_meta.TransferSyntaxUID == header["syntax"]
    target.unlink()


def test_overlays_in_unused_bits_survive_compression_too(make_dicom: Callable[..., Any], tmp_path: Path) -> None:
    cells = RAMP[:256] | (np.arange(256, dtype="<u2") % 3 << 12).astype("<u2")
    ds = make_dicom(cells.tobytes(), (16, 16), BitsStored=12)
    ds.compress(RLELossless, generate_instance_uid=False)
    ds.save_as(tmp_path / "rle.dcm", enforce_file_format=True)
    image = read_dicom(tmp_path / "rle.dcm")
    np.testing.assert_array_equal(image.pixels.ravel(), RAMP[:256])
    write_dicom_like(tmp_path / "rle.dcm", 4095 - image.pixels, tmp_path / "new.dcm")
    words = np.frombuffer(pydicom.dcmread(tmp_path / "new.dcm").PixelData, "<u2")
    np.testing.assert_array_equal(words & 0xFFF, 4095 - RAMP[:256])
    np.testing.assert_array_equal(words >> 12, cells >> 12)


CHANGED = {
    "SOPInstanceUID", "ImageType", "DerivationDescription", "InstanceCreationDate", "InstanceCreationTime",
    "InstanceCreatorUID", "SmallestImagePixelValue", "LargestImagePixelValue", "PixelData",
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["CT_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "examples_overlay.dcm", "693_J2KI.dcm",
     "image_dfl.dcm", "JPEG2000.dcm", "explicit_VR-UN.dcm"],
)  # fmt: skip
def test_all_other_elements_keep_their_bytes(bundled: Find, data_dir: Find, tmp_path: Path, name: str) -> None:
    path = data_dir("dicom") / name if name.startswith("explicit_VR") else bundled(name)
    image = read_dicom(path)
    write_dicom_like(path, image.pixels, tmp_path / "new.dcm")
    before, after = raw(path), raw(tmp_path / "new.dcm")
    if before[0x00080016][0] == "UN":  # known to every writer, because the file meta information repeats it
        before[0x00080016] = ("UI", before[0x00080016][1])
    changed = {tag for tag in before | after if before.get(tag) != after.get(tag)}
    lengths = {tag for tag in before if tag.element == 0}
    assert {pydicom.datadict.keyword_for_tag(tag) for tag in changed - lengths} <= CHANGED
    if pydicom.dcmread(path).file_meta.TransferSyntaxUID in NATIVE:
        assert before[0x7FE00010] == after[0x7FE00010]
    assert len(before) >= 29


def test_the_header_says_what_the_image_is(make_dicom: Callable[..., Any], tmp_path: Path) -> None:
    ds = make_dicom(RAMP[:16].tobytes(), (4, 4), ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], PixelRepresentation=1)
    ds.DerivationDescription = "Resampled"
    ds.SeriesDescription = "Thorax"
    ds.LossyImageCompression = "01"
    ds.InstanceCreationDate = "20200101"
    ds.SmallestImagePixelValue, ds.LargestImagePixelValue, ds.LargestPixelValueInSeries = 0, 15, 99
    signature = Dataset()
    signature.MACIDNumber = 1
    ds.DigitalSignaturesSequence = ds.MACParametersSequence = Sequence([signature])
    ds.PixelDataProviderURL = "http://example.org/pixels"
    ds.save_as(tmp_path / "old.dcm", enforce_file_format=True)
    write_dicom_like(tmp_path / "old.dcm", np.full((1, 4, 4), -7), tmp_path / "new.dcm")
    new = pydicom.dcmread(tmp_path / "new.dcm")
    assert new.ImageType == ["DERIVED", "PRIMARY", "AXIAL"]
    notice = f"Synthetic adversarial test image. Not for clinical use. Made with art-medical {art_medical.__version__}."
    assert new.DerivationDescription == f"{notice} Before: Resampled"
    assert new.SeriesDescription == "Thorax" and new.LossyImageCompression == "01"
    assert (new.SmallestImagePixelValue, new.LargestImagePixelValue) == (-7, -7)
    assert new["SmallestImagePixelValue"].VR == "SS"
    assert new.file_meta.MediaStorageSOPInstanceUID == new.SOPInstanceUID != ds.SOPInstanceUID
    gone = ["DigitalSignaturesSequence", "MACParametersSequence", "PixelDataProviderURL", "LargestPixelValueInSeries"]
    assert not [keyword for keyword in [*gone, "InstanceCreationDate"] if keyword in new]


def test_the_name_of_an_object_follows_from_reference_and_pixels(
    dicom_file: Callable[..., Any], tmp_path: Path
) -> None:
    path = dicom_file(bytes(8), (2, 2))
    first, again, other = (tmp_path / name for name in ("1.dcm", "2.dcm", "3.dcm"))
    write_dicom_like(path, np.zeros((1, 2, 2)), first)
    write_dicom_like(path, np.zeros((1, 2, 2), np.int16), again)
    write_dicom_like(path, np.eye(2)[None], other)
    assert first.read_bytes() == again.read_bytes()
    uids = [pydicom.dcmread(p).SOPInstanceUID for p in (first, other)]
    assert uids[0] != uids[1] and all(uid.startswith("2.25.") and uid.is_valid for uid in uids)
    assert pydicom.dcmread(first).ImageType == ["DERIVED", "SECONDARY"]


@pytest.mark.skipif(shutil.which("dcmdump") is None, reason="dcmtk is not installed")
@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_bigendian.dcm", "JPEG2000.dcm", "SC_rgb_jpeg.dcm"])
def test_dcmtk_reads_the_same_pixels(bundled: Find, tmp_path: Path, name: str) -> None:
    """dcmdump extracts the pixel cells of the written file, in the byte order of the machine."""
    path = bundled(name)
    image = read_dicom(path)
    pixels = image.domain.quantise(image.pixels + np.random.default_rng(1).integers(-3, 4, image.pixels.shape))
    write_dicom_like(path, pixels, tmp_path / "new.dcm")
    subprocess.run(["dcmdump", "-q", "+W", str(tmp_path), str(tmp_path / "new.dcm")], check=True, timeout=30,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    (cells,) = tmp_path.glob("*.raw")
    expected = np.moveaxis(pixels, 0, -1).astype("i2" if image.domain.high > 255 else "u1")
    assert cells.read_bytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.full((1, 2, 2), 4096.0), "4 pixels are outside"),
        (np.full((1, 2, 2), -1), "outside what"),
        (np.full((1, 2, 2), 0.5), "no value that"),
        (np.full((1, 2, 2), 1 + 1e-12), "no value that"),
        (np.full((1, 2, 2), 4095 + 1e-12), "outside what"),
        (np.full((1, 2, 2), np.nan), "not finite"),
        (np.zeros((2, 2)), "shape"),
        (np.zeros((1, 1, 2, 2)), "shape"),
        (np.zeros((1, 2, 2), complex), "real numbers"),
        (np.zeros((1, 2, 2), bool), "real numbers"),
    ],
)
def test_pixels_that_the_file_cannot_hold(
    dicom_file: Callable[..., Any], refused: Refused, tmp_path: Path, pixels: Any, words: str
) -> None:
    path = dicom_file(bytes(8), (2, 2), BitsStored=12)
    with refused(words):
        write_dicom_like(path, pixels, tmp_path / "new.dcm")
    assert [p.name for p in tmp_path.iterdir()] == ["reference.dcm"]


@pytest.mark.parametrize("name", ["new", "new.dcm", "NEW.DCM", "1.2.840.10008"])
def test_names_that_fit(dicom_file: Callable[..., Any], tmp_path: Path, name: str) -> None:
    path = dicom_file(bytes(8), (2, 2))
    write_dicom_like(path, np.ones((1, 2, 2)), tmp_path / name)
    assert read_dicom(tmp_path / name).pixels.sum() == 4
