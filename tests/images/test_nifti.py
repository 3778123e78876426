# SPDX-License-Identifier: Apache-2.0
"""NIfTI: values against hand-made files and nibabel, written files against the bytes of their reference."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from art_medical.errors import ImageError
from art_medical.estimators.steps import Rescale, Step, Window
from art_medical.images.nifti import read_nifti, write_nifti_like

Refused = Callable[[str], AbstractContextManager[None]]

LIMITS: dict[str, tuple[int, int]] = {"u1": (0, 255), "i1": (-128, 127), "u2": (0, 65535), "i2": (-32768, 32767)}
LIMITS |= {"u4": (0, 2**24 - 1), "i4": (1 - 2**24, 2**24 - 1)}


def comment(order: str) -> bytes:
    """A header extension of 32 bytes, code 6, that is no text in any encoding."""
    return np.array([32, 6], order + "i4").tobytes() + b"a comment, \xff\xfe, kept".ljust(24)


def through(steps: tuple[Step, ...], x: Any) -> NDArray[Any]:
    t = torch.from_numpy(np.asarray(x, np.float64))[None]
    for step in steps:
        t = step.apply(t)
    result: NDArray[Any] = t[0].numpy()
    return result


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from([*LIMITS, "f4"]),
    order=st.sampled_from("<>"),
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    scale=st.sampled_from([(0.0, 0.0), (1.0, 0.0), (2.5, -1024.0), (float("nan"), 3.0)]),
    extended=st.booleans(),
    packed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_only_the_voxel_bytes_change(
    tmp_path: Path,
    make_nifti: Callable[..., Any],
    kind: str,
    order: Any,
    shape: Any,
    scale: Any,
    extended: bool,
    packed: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    low, high = LIMITS.get(kind, (-3, 7))

    def draw() -> NDArray[Any]:
        drawn = rng.integers(low, high + 1, shape) if kind != "f4" else rng.uniform(low, high, shape)
        drawn.flat[0], drawn.flat[-1] = low, high
        result: NDArray[Any] = drawn.astype(order + kind)
        return result

    old, new = draw(), draw()
    if old.size == 1 and kind == "f4":
        return
    extension = comment("<" if kind[1] == "1" else order) if extended else b""
    content = make_nifti(old, scale=scale, extension=extension) + b"behind"
    reference = tmp_path / "old.nii"
    reference.write_bytes(gzip.compress(content) if packed else content)

    image = read_nifti(reference)
    channels_first = np.moveaxis if len(shape) == 4 else lambda voxels, *_: voxels[None]
    np.testing.assert_array_equal(image.pixels, channels_first(old, -1, 0))
    assert (image.domain.low, image.domain.high) == (low, high)
    assert image.domain.step == (None if kind == "f4" else 1) and image.domain.unit == "stored value"
    assert image.modality == ((Rescale(scale=2.5, offset=-1024),) if scale[0] == 2.5 else ())
    fdata = nib.Nifti1Image.from_bytes(content).get_fdata()
    np.testing.assert_allclose(through(image.modality, image.pixels), channels_first(fdata, -1, 0), rtol=1e-6)

    target = tmp_path / "new.nii"
    write_nifti_like(reference, channels_first(new, -1, 0), target)
    assert target.read_bytes() == make_nifti(new, scale=scale, extension=extension) + b"behind"
    write_nifti_like(reference, channels_first(new, -1, 0), tmp_path / "new.nii.gz")
    assert gzip.decompress((tmp_path / "new.nii.gz").read_bytes()) == target.read_bytes()
    np.testing.assert_array_equal(read_nifti(tmp_path / "new.nii.gz").pixels, read_nifti(target).pixels)


def test_nifti_2_and_compression_without_time_stamp(tmp_path: Path) -> None:
    voxels = np.arange(-12, 12, dtype=np.int16).reshape(2, 3, 4)
    nib.Nifti2Image(voxels, np.eye(4)).to_filename(tmp_path / "old.nii.gz")  # type: ignore[no-untyped-call]
    for name in ("1.nii.gz", "2.nii.gz"):
        write_nifti_like(tmp_path / "old.nii.gz", -voxels[None], tmp_path / name)
    assert (tmp_path / "1.nii.gz").read_bytes() == (tmp_path / "2.nii.gz").read_bytes()
    assert (tmp_path / "1.nii.gz").read_bytes()[4:8] == bytes(4)
    again = nib.load(tmp_path / "1.nii.gz")
    assert isinstance(again, nib.Nifti2Image)
    np.testing.assert_array_equal(np.asarray(again.dataobj), -voxels)


def test_display_from_the_header(tmp_path: Path, make_nifti: Callable[..., Any]) -> None:
    """nifti1.h: values at or below cal_min are the darkest, at or above cal_max the brightest, after scaling."""
    voxels = np.arange(0, 256, dtype="u1").reshape(4, 8, 8)
    path = tmp_path / "x.nii"
    path.write_bytes(make_nifti(voxels, scale=(2.0, -10.0), cal=(40.0, 240.0)))
    image = read_nifti(path)
    assert isinstance(image.display[0], Window) and image.physical_unit == "scaled value"
    expected = np.clip((2.0 * voxels - 10 - 40) / 200, 0, 1) * 255
    np.testing.assert_allclose(through(image.to_grey, image.pixels)[0], expected, atol=1e-9)
    path.write_bytes(make_nifti(voxels, scale=(-2.0, 0.0)))
    np.testing.assert_allclose(through(read_nifti(path).to_grey, image.pixels)[0], 255.0 - voxels, atol=1e-9)
    path.write_bytes(make_nifti(voxels))
    assert read_nifti(path).to_grey == ()


ZEROS = np.zeros((2, 2, 2), "<i2")


@pytest.mark.parametrize(
    ("voxels", "options", "words"),
    [
        (ZEROS.astype("<f8"), {}, "float64"),
        (ZEROS.astype("<c8"), {}, "complex64"),
        (np.full((2, 2, 2), 2**24, "<i4"), {}, "at most 24 bits"),
        (np.full((2, 2, 2), -(2**24), ">i4"), {}, "at most 24 bits"),
        (np.full((2, 2, 2), np.nan, "<f4"), {}, "not finite"),
        (np.array([[0, np.inf]], "<f4"), {}, "not finite"),
        (np.full((2, 2, 2), 5, "<f4"), {}, "single value 5"),
        (np.zeros((2, 2, 1, 1, 3), "<i2"), {}, "two to four"),
        (np.zeros((0, 2), "<i2"), {}, "."),
        (ZEROS, {"magic": b"ni1\0"}, "pairs"),
        (ZEROS, {"magic": b"\0\0\0\0"}, "no single-file"),
    ],
)
def test_what_has_no_exact_float32_is_refused(
    tmp_path: Path, make_nifti: Callable[..., Any], refused: Refused, voxels: Any, options: Any, words: str
) -> None:
    (tmp_path / "x.nii").write_bytes(make_nifti(voxels, **options))
    with refused(words):
        read_nifti(tmp_path / "x.nii")


@pytest.mark.parametrize("packed", [False, True])
def test_every_truncation_is_refused(
    tmp_path: Path, make_nifti: Callable[..., Any], refused: Refused, packed: bool
) -> None:
    content = make_nifti(np.arange(60, dtype="<i2").reshape(3, 4, 5), extension=comment("<"))
    content = gzip.compress(content) if packed else content
    path = tmp_path / "cut.nii"
    for length in [*range(0, len(content) - 1, 7), len(content) - 1]:
        path.write_bytes(content[:length])
        with refused("."):
            read_nifti(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_headers_give_an_image_or_one_error(tmp_path: Path, make_nifti: Callable[..., Any], data: Any) -> None:
    content = bytearray(make_nifti(np.arange(60, dtype="<i2").reshape(3, 4, 5)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 351))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.nii"
    path.write_bytes(content)
    try:
        read_nifti(path)
    except ImageError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("value", "words"), [(32768, "outside"), (-32769, "outside"), (0.25, "no value"), (np.nan, "not finite")]
)
def test_voxels_that_the_type_cannot_hold(
    tmp_path: Path, make_nifti: Callable[..., Any], refused: Refused, value: Any, words: str
) -> None:
    (tmp_path / "old.nii").write_bytes(make_nifti(ZEROS))
    with refused(words):
        write_nifti_like(tmp_path / "old.nii", np.full((1, 2, 2, 2), value), tmp_path / "new.nii")
    assert len(list(tmp_path.iterdir())) == 1


def test_float_voxels_must_be_float32_inside_the_range_of_the_reference(
    tmp_path: Path, make_nifti: Callable[..., Any], refused: Refused
) -> None:
    (tmp_path / "old.nii").write_bytes(make_nifti(np.array([[0.0, 1.0]], "<f4")))
    with refused("outside"):
        write_nifti_like(tmp_path / "old.nii", [[[0.5, 1.5]]], tmp_path / "new.nii")
    with refused("no value"):
        write_nifti_like(tmp_path / "old.nii", [[[0.5, 0.1]]], tmp_path / "new.nii")  # 0.1 is no float32
    write_nifti_like(tmp_path / "old.nii", np.array([[[0.5, 0.1]]], np.float32), tmp_path / "new.nii")
    assert read_nifti(tmp_path / "new.nii").pixels.tolist() == [[[0.5, float(np.float32(0.1))]]]
