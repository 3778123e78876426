# SPDX-License-Identifier: Apache-2.0
"""Labelled sets: what a folder or an npz file holds comes out exactly, and whatever is wrong with it is said."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from art_medical.domain import PixelDomain
from art_medical.errors import ImageError
from art_medical.images.datasets import as_channels, read_folder, read_npz, sample_phantoms
from art_medical.images.phantoms import LumpyPhantom

Refused = Callable[[str], AbstractContextManager[None]]
GREY = PixelDomain(0, 255, 1, "grey level")


def picture(number: int, shape: tuple[int, ...] = (6, 5)) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """A data folder with pictures ``0.png``, ``1.png``, ... and an index; other names get no picture."""

    def make(rows: list[str], header: str = "file,label,split,group", **pictures: NDArray[Any]) -> Path:
        root = tmp_path / "set"
        (root / "images").mkdir(parents=True)
        (root / "labels.csv").write_text("\n".join([header, *rows, ""]), encoding="utf-8")
        for row in rows:
            name = row.split(",")[0]
            if name.removesuffix(".png").isdigit():
                Image.fromarray(picture(int(name.removesuffix(".png")))).save(root / "images" / name)
        for name, pixels in pictures.items():
            Image.fromarray(pixels).save(root / "images" / f"{name}.png")
        return root

    return make


# -- folders -----------------------------------------------------------------------------------------------------------


def test_a_split_of_a_folder(folder: Callable[..., Path]) -> None:
    root = folder(["0.png,1,test,p1", "1.png,0,train,p2", "2.png,0,test,p1", "3.png,2,test,"])
    progress: list[int] = []
    data = read_folder(root, "test", channels=1, progress=progress.append)
    assert (data.name, data.split, data.domain, len(data)) == ("set", "test", GREY, 3)
    assert data.ids == ("0.png", "2.png", "3.png")
    assert data.x.dtype == np.float32
    assert np.array_equal(data.x[:, 0], [picture(n) for n in (0, 2, 3)])
    assert data.y.tolist() == [1, 0, 2]
    assert data.groups.tolist() == ["p1", "p1", "3.png"]  # without a patient an image is its own group
    assert data.sha256 == hashlib.sha256((root / "labels.csv").read_bytes()).hexdigest()
    assert progress == [1, 1, 1]


def test_groups_are_optional_and_columns_may_come_in_any_order(folder: Callable[..., Path]) -> None:
    root = folder([], "split,note,label,file")
    (root / "labels.csv").write_text('split,note,label,file\ntest,"a, b",1,0.png\n')
    Image.fromarray(picture(0)).save(root / "images" / "0.png")
    data = read_folder(root, "test", channels=1)
    assert (data.ids, data.groups.tolist(), data.y.tolist()) == (("0.png",), ["0.png"], [1])


def test_a_byte_order_mark_is_no_part_of_the_first_column(folder: Callable[..., Path]) -> None:
    """Spreadsheets write one."""
    root = folder(["0.png,1,test,p"])
    index = root / "labels.csv"
    index.write_bytes(b"\xef\xbb\xbf" + index.read_bytes())
    assert read_folder(root, "test", channels=1).ids == ("0.png",)


@pytest.mark.parametrize(
    ("limit", "chosen"),
    [(1, [0]), (2, [0, 9]), (3, [0, 4, 9]), (4, [0, 3, 6, 9]), (10, list(range(10))), (99, list(range(10)))],
)
def test_a_limit_is_spread_over_the_split(folder: Callable[..., Path], limit: int, chosen: list[int]) -> None:
    """Index files are often sorted by label: the first images would be of one class."""
    root = folder([f"{n}.png,{int(n > 4)},test," for n in range(10)])
    part = read_folder(root, "test", channels=1, limit=limit)
    assert part.ids == tuple(f"{n}.png" for n in chosen)
    whole = read_folder(root, "test", channels=1).first(limit)
    assert whole.ids == part.ids
    assert whole.y.tolist() == part.y.tolist()
    assert np.array_equal(whole.x, part.x)


def test_grey_stored_as_colour_is_grey(folder: Callable[..., Path]) -> None:
    grey, colour = np.repeat(picture(1)[:, :, None], 3, axis=2), picture(2, (6, 5, 3))
    root = folder(["a.png,0,test,", "b.png,0,train,"], a=grey, b=colour)
    assert np.array_equal(read_folder(root, "test", channels=1).x[0, 0], picture(1))
    assert read_folder(root, "test", channels=3).x.shape == (1, 3, 6, 5)
    assert np.array_equal(read_folder(root, "train", channels=3).x[0], np.moveaxis(colour, -1, 0))
    with pytest.raises(ImageError, match=r"b\.png has 3 channels, the model takes 1"):
        read_folder(root, "train", channels=1)
    with pytest.raises(ImageError, match=r"a\.png has 1 channels, the model takes 3"):
        as_channels(picture(0)[None].astype(np.float32), 3, "a.png")


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["0.png,1,test"], "name,label,split", "lacks the column 'file'"),
        (["0.png,test"], "file,split", "lacks the column 'label'"),
        (["0.png,1"], "file,label", "lacks the column 'split'"),
        ([], "", "lacks the column 'file'"),
        ([], "file,label,split", "has no image of split 'test'"),
        (["0.png,1,train"], "file,label,split", "has no image of split 'test'"),
        (
            ["0.png,1,test", "../0.png,1,test"],
            "file,label,split",
            r"line 3: file '\.\./0\.png' must lie inside images/",
        ),
        (["a/../../0.png,1,test"], "file,label,split", "must lie inside images/"),
        (["/etc/passwd,1,test"], "file,label,split", "must lie inside images/"),
        ([",1,test"], "file,label,split", "line 2: file '' must lie inside images/"),
        (["0.png,1,test", "''"], "label,split,file", "file None must lie inside images/"),
        (["0.png,one,test"], "file,label,split", r"label 'one' of 0\.png is no whole number"),
        (["0.png,1.0,test"], "file,label,split", r"label '1\.0' of 0\.png is no whole number"),
        (["0.png,,test"], "file,label,split", r"label '' of 0\.png is no whole number"),
        (["0.png," + "9" * 30 + ",test"], "file,label,split", "is no whole number"),
        (["absent.png,1,test"], "file,label,split", r"absent\.png is missing"),
        (["0.png,1,test", '"' + "x" * 200_000], "file,label,split", "is no readable CSV file: field larger than"),
    ],
)
def test_a_wrong_index(
    folder: Callable[..., Path], refused: Refused, rows: list[str], header: str, message: str
) -> None:
    root = folder(rows, header)
    with refused(message):
        read_folder(root, "test", channels=1)


def test_a_missing_or_binary_index(tmp_path: Path, refused: Refused) -> None:
    with refused(r"labels\.csv: No such file or directory; a data folder needs labels\.csv and images/"):
        read_folder(tmp_path, "test", channels=1)
    (tmp_path / "labels.csv").write_bytes(b"\xff\xfe\0")
    with refused("is no readable CSV file"):
        read_folder(tmp_path, "test", channels=1)
    with refused("Not a directory; a data folder needs"):
        read_folder(tmp_path / "labels.csv", "test", channels=1)


def test_images_that_do_not_belong_together(folder: Callable[..., Path], refused: Refused) -> None:
    root = folder(
        ["0.png,0,test,", "wide.png,0,test,", "1.png,0,train,", "deep.png,1,train,", "cut.png,1,val,"],
        wide=picture(0, (6, 7)),
        deep=picture(1).astype(np.uint16) * 257,
    )
    with refused(r"images differ in shape, \(1, 6, 5\) and \(1, 6, 7\); resize them first"):
        read_folder(root, "test", channels=1)
    with refused("images differ in their stored range"):
        read_folder(root, "train", channels=1)
    (root / "images" / "cut.png").write_bytes((root / "images" / "0.png").read_bytes()[:60])
    with refused(r"cannot read .*cut\.png"):
        read_folder(root, "val", channels=1)


# -- npz ---------------------------------------------------------------------------------------------------------------


def write_npz(path: Path, images: Any, labels: Any, split: str = "test") -> Path:
    np.savez_compressed(path, **{f"{split}_images": images, f"{split}_labels": labels})
    return path


@pytest.mark.parametrize(
    ("shape", "expected"), [((7, 6), (1, 7, 6)), ((7, 6, 3), (3, 7, 6)), ((4, 5, 6), (1, 4, 5, 6))], ids=str
)
def test_the_medmnist_layout(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    images = picture(0, (5, *shape))
    path = write_npz(tmp_path / "some.npz", images, np.arange(5, dtype=np.uint8)[:, None])
    data = read_npz(path, "test")
    assert data.x.shape == (5, *expected)
    assert data.x.dtype == np.float32
    last = np.moveaxis(data.x, 1, -1)
    assert np.array_equal(last if expected[0] == 3 else last[..., 0], images)
    assert data.y.tolist() == [0, 1, 2, 3, 4]
    assert (data.name, data.split, data.domain) == ("some", "test", GREY)
    assert data.ids == tuple(f"test-{n}" for n in range(5))
    assert data.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    part = read_npz(path, "test", limit=2)
    assert part.ids == ("test-0", "test-4")
    assert np.array_equal(part.x, data.x[[0, 4]])


def test_multi_hot_labels(tmp_path: Path) -> None:
    hot = np.array([[0, 1], [1, 1], [0, 0]])
    data = read_npz(write_npz(tmp_path / "a.npz", picture(0, (3, 4, 4)), hot), "test")
    assert data.y.dtype == np.int64
    assert np.array_equal(data.y, hot)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4), np.float32), [0, 1], r"expected uint8 images .*, got test_images float32 \(2, 4, 4\)"),
        (np.full((2, 4, 4), np.nan), [0, 1], "expected uint8 images .*, got test_images float64"),
        (np.zeros((2, 4), np.uint8), [0, 1], r"got test_images uint8 \(2, 4\)"),
        (np.uint8(3), [0], r"got test_images uint8 \(\)"),
        (np.zeros((0, 4, 4), np.uint8), [], r"got test_images uint8 \(0, 4, 4\)"),
        (np.zeros((2, 4, 4), np.uint8), [0], r"one row for each of 2 images, got test_labels int64 \(1,\)"),
        (np.zeros((2, 4, 4), np.uint8), 0, r"got test_labels int64 \(\)"),
        (np.zeros((2, 4, 4), np.uint8), [0.5, np.nan], "expected whole-number labels, .* got test_labels float64"),
        (np.zeros((2, 4, 4), np.uint8), ["a", "b"], "expected whole-number labels, .* got test_labels <U1"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros((2, 1, 1), int), r"got test_labels int64 \(2, 1, 1\)"),
    ],
)
def test_arrays_of_another_kind(tmp_path: Path, refused: Refused, images: Any, labels: Any, message: str) -> None:
    path = write_npz(tmp_path / "a.npz", images, np.asarray(labels))
    with refused(message):
        read_npz(path, "test")


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_object_arrays_are_never_unpickled(tmp_path: Path, refused: Refused) -> None:
    canary = tmp_path / "canary"
    objects = np.array([Canary(canary)], dtype=object)
    with refused("is no readable npz file: Object arrays cannot be loaded"):
        read_npz(write_npz(tmp_path / "a.npz", objects, [0]), "test")
    np.save(tmp_path / "b.npy", objects, allow_pickle=True)
    with refused("is no readable npz file"):
        read_npz(tmp_path / "b.npy", "test")
    assert not canary.exists()


def test_damaged_and_incomplete_files(tmp_path: Path, refused: Refused) -> None:
    path = write_npz(tmp_path / "a.npz", picture(0, (20, 8, 8)), np.zeros(20, int))
    with refused("has no array val_images and val_labels"):
        read_npz(path, "val")
    whole = path.read_bytes()
    for content in (whole[:-30], whole[:100], b"", b"PK\3\4", whole[:300] + bytes(40) + whole[340:]):
        path.write_bytes(content)
        with refused("is no readable npz file"):
            read_npz(path, "test")
    with refused("cannot read .*absent"):
        read_npz(tmp_path / "absent.npz", "test")
    with refused("cannot read .*Is a directory"):
        read_npz(tmp_path, "test")


# -- phantoms ----------------------------------------------------------------------------------------------------------


def test_phantoms_are_a_data_set_of_their_own() -> None:
    phantom = LumpyPhantom()
    data = sample_phantoms(phantom, "val", 4, seed=3)
    x, y = phantom.sample(4, seed=3, split="val")
    assert np.array_equal(data.x, x)
    assert np.array_equal(data.y, y)
    assert data.domain == phantom.domain
    assert data.sha256 == phantom.identity()
    assert len(set(data.groups.tolist())) == 4
    assert set(data.ids).isdisjoint(sample_phantoms(phantom, "val", 4, seed=4).ids)


# -- real images -------------------------------------------------------------------------------------------------------


def test_kermany_counts(data_dir: Callable[[str], Path]) -> None:
    """Counts of the data set's own description: all splits from the index, pixels of a few."""
    root = data_dir("cxr-kermany")
    rows = [line.split(",") for line in (root / "labels.csv").read_text().splitlines()[1:]]
    counts = {split: [r[1] for r in rows if r[2] == split].count("1") for split in ("train", "val", "test")}
    assert counts == {"train": 3483, "val": 367, "test": 387}
    assert len(rows) == 5808
    data = read_folder(root, "test", channels=1, limit=9)
    assert data.sha256 == "f1e4ebe370771c1684f41c9f8f3918749e83f55f862b6797c98067e2478eba8b"
    assert data.x.shape == (9, 1, 224, 224)
    assert data.domain == GREY
    assert set(data.y.tolist()) == {0, 1}


def test_medmnist_counts(data_dir: Callable[[str], Path]) -> None:
    root = data_dir("medmnist")
    flat = read_npz(root / "pneumoniamnist.npz", "test")
    assert flat.x.shape == (624, 1, 28, 28)
    assert np.bincount(flat.y).tolist() == [234, 390]
    deep = read_npz(root / "adrenalmnist3d.npz", "val")
    assert deep.x.shape == (98, 1, 28, 28, 28)
    assert np.bincount(deep.y).tolist() == [76, 22]
    assert set(np.unique(deep.x)) == {0, 255}
