# SPDX-License-Identifier: Apache-2.0
"""Any file: recognised by content, written complete or not at all, never over its reference."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from art_medical.errors import ImageError
from art_medical.images import files, image
from art_medical.images.files import read_image, write_like

Refused = Callable[[str], AbstractContextManager[None]]

PIXELS = np.arange(16, dtype=np.float32).reshape(1, 4, 4)


@pytest.fixture
def samples(
    make_dicom: Callable[..., Any], make_nifti: Callable[..., bytes], make_png: Callable[..., bytes], tmp_path: Path
) -> dict[str, Path]:
    """One file of each kind with the same pixels, under names that say nothing, in a folder of their own."""
    folder = tmp_path / "references"
    folder.mkdir()
    cells = PIXELS.astype("<u2")
    make_dicom(cells.tobytes(), (4, 4), BitsStored=12).save_as(folder / "dicom", enforce_file_format=True)
    (folder / "nifti").write_bytes(make_nifti(cells[0]))
    (folder / "nifti-gz").write_bytes(gzip.compress(make_nifti(cells[0])))
    (folder / "png").write_bytes(make_png(cells[0], 0, 16))
    return {path.name: path for path in folder.iterdir()}


FITS = {"dicom": "new.dcm", "nifti": "new.nii", "nifti-gz": "new.nii.gz", "png": "new.png"}


@pytest.mark.parametrize("kind", FITS)
def test_kind_is_recognised_by_content_and_kept(samples: dict[str, Path], tmp_path: Path, kind: str) -> None:
    stored = read_image(samples[kind])
    np.testing.assert_array_equal(stored.pixels, PIXELS)
    assert stored.path == samples[kind]
    target = tmp_path / FITS[kind]
    for reference in (stored, samples[kind], str(samples[kind])):
        write_like(reference, 4095 - PIXELS, str(target))
        again = read_image(target)
        np.testing.assert_array_equal(again.pixels, 4095 - PIXELS)
        assert type(again.domain) is type(stored.domain) and again.domain == stored.domain
        assert target.read_bytes()[:4] == samples[kind].read_bytes()[:4]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["references", target.name])


def test_an_attack_can_start_from_the_grey_levels_of_any_kind(samples: dict[str, Path]) -> None:
    """The steps in front of a classifier that was trained on 8-bit pictures differ, but end in one scale."""
    import torch

    for kind, full in (("dicom", 4095), ("nifti", 65535), ("png", 65535)):
        stored = read_image(samples[kind])
        x = torch.from_numpy(stored.pixels)[None].requires_grad_()
        y = x
        for step in stored.to_grey:
            y = step.apply(y)
        torch.testing.assert_close(y[0].detach(), torch.from_numpy(PIXELS) * 255 / full, rtol=1e-5, atol=1e-5)
        y.sum().backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None and (x.grad > 0).all()


@pytest.mark.parametrize("kind", FITS)
@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".jp2", ".webp", ".npy", ".dcm", ".png", ".nii", ".tar.gz"])
def test_suffixes_that_do_not_fit(
    samples: dict[str, Path], tmp_path: Path, refused: Refused, kind: str, suffix: str
) -> None:
    if suffix in FITS[kind]:
        return
    with refused("may lose" if suffix in image.LOSSY else "does not fit"):
        write_like(samples[kind], PIXELS, tmp_path / f"new{suffix}")
    assert [p.name for p in tmp_path.iterdir()] == ["references"]


@pytest.mark.parametrize("kind", FITS)
def test_the_reference_is_never_overwritten(
    samples: dict[str, Path], tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = samples[kind].rename(tmp_path / FITS[kind])
    before = path.read_bytes()
    link = tmp_path / ("link-" + path.name)
    link.symlink_to(path)
    hard = tmp_path / ("hard-" + path.name)
    hard.hardlink_to(path)
    monkeypatch.chdir(tmp_path)
    for name in (path, link, hard, Path(path.name), tmp_path / "references" / ".." / path.name):
        with refused("is the reference itself"):
            write_like(path, PIXELS, name)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 4


def fail(*_args: Any, **_kwargs: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("kind", FITS)
@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failing_disk_leaves_everything_as_it_was(
    samples: dict[str, Path],
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    function: str,
    existing: bool,
) -> None:
    target = tmp_path / FITS[kind]
    if existing:
        target.write_bytes(b"older result")
    monkeypatch.setattr(os, function, fail)
    with refused("No space left on device"):
        write_like(samples[kind], PIXELS, target)
    assert [p.name for p in tmp_path.iterdir() if p.name != "references"] == ([target.name] if existing else [])
    assert not existing or target.read_bytes() == b"older result"


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_no_file(
    samples: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    def interrupt(*_args: Any) -> None:
        raise error

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else ImageError):
        write_like(samples["png"], PIXELS, tmp_path / "new.png")
    assert [p.name for p in tmp_path.iterdir()] == ["references"]


@pytest.mark.parametrize("kind", FITS)
def test_bytes_that_a_disk_turns_over_are_noticed(
    samples: dict[str, Path], tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The written file is read back: here the last data byte changes after it was written."""
    real = os.fsync

    def corrupt(descriptor: int) -> None:
        (part,) = tmp_path.glob(".*.part")
        content = bytearray(part.read_bytes())
        at = content.index(b"IDAT") + 12 if kind == "png" else -1
        content[at] ^= 1
        part.write_bytes(content)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", corrupt)
    with refused("."):
        write_like(samples[kind], PIXELS, tmp_path / FITS[kind])
    assert [p.name for p in tmp_path.iterdir()] == ["references"]


def test_an_older_result_is_replaced(samples: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "new.png"
    target.write_bytes(b"older result")
    write_like(samples["png"], PIXELS, target)
    np.testing.assert_array_equal(read_image(target).pixels, PIXELS)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no image of a known kind"),
        (b"\0" * 4096, "no image of a known kind"),
        (b"BM" + bytes(100), "no image of a known kind"),
        (b"\x1f\x8b", "cannot read"),
        (gzip.compress(b"", mtime=0), "no image of a known kind"),
        (gzip.compress(b"no volume" * 99, mtime=0), "no image of a known kind"),
        (b"\x89PNG\r\n\x1a\n", "cannot read|kind"),
        (b"\xff\xd8\xff\xe0", "cannot read"),
        (b"\0" * 128 + b"DICM", "no integer pixel data"),
        (b"\x08\0\x05\0garbage", "."),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, refused: Refused, content: Any, words: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with refused(words):
        read_image(tmp_path / "x")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from(
        [b"", b"\0" * 128 + b"DICM", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x1f\x8b", b"\x08\0\x16\0"]
    ),
    body=st.binary(max_size=600),
)
def test_random_bytes_are_refused(tmp_path: Path, head: Any, body: Any) -> None:
    (tmp_path / "x").write_bytes(head + body)
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / "x")
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(samples: dict[str, Path], tmp_path: Path, refused: Refused) -> None:
    with refused("is missing"):
        read_image(tmp_path / "absent.dcm")
    with refused("no regular file"):
        read_image(tmp_path)
    with refused("is missing"):
        write_like(tmp_path / "absent.dcm", PIXELS, tmp_path / "new.dcm")
    with refused("No such file or directory"):
        write_like(samples["png"], PIXELS, tmp_path / "absent" / "new.png")
    target = tmp_path / "folder.png"
    target.mkdir()
    with refused("cannot write"):
        write_like(samples["png"], PIXELS, target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.png", "references"]


def test_no_kind_is_taken_for_another(samples: dict[str, Path]) -> None:
    for name, path in samples.items():
        head = path.read_bytes()[:540]
        assert sum(one.matches(head) for one in files._FORMATS) == (0 if name == "nifti-gz" else 1)
