# SPDX-License-Identifier: Apache-2.0
"""Labelled sets of images: a folder with ``labels.csv``, or an npz file in the MedMNIST layout."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from art_medical.domain import PixelDomain
from art_medical.errors import ImageError
from art_medical.images.files import read_image
from art_medical.images.phantoms import LumpyPhantom
from art_medical.images.targets import Target


@dataclass(frozen=True)
class Dataset:
    """Images of one split in memory.

    :param name: Name for reports.
    :param split: ``train``, ``val`` or ``test``.
    :param x: Stored pixels, float32 ``(N, C, *spatial)``.
    :param y: Labels, int64 ``(N,)`` or multi-hot ``(N, K)``.
    :param ids: One name for each image.
    :param groups: One patient (or other cluster) for each image.
    :param domain: What the files can hold.
    :param sha256: Hash of the index (``labels.csv``, npz file or generator parameters).
    """

    name: str
    split: str
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    ids: tuple[str, ...]
    groups: NDArray[np.str_]
    domain: PixelDomain
    sha256: str

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: NDArray[np.int64]) -> Dataset:
        """The images at ``indices``."""
        return replace(
            self,
            x=self.x[indices],
            y=self.y[indices],
            ids=tuple(self.ids[i] for i in indices),
            groups=self.groups[indices],
        )

    def first(self, limit: int | None) -> Dataset:
        """At most ``limit`` images, spread evenly over the set so that small limits keep the class mix."""
        if limit is None or limit >= len(self):
            return self
        return self.take(np.linspace(0, len(self) - 1, limit).round().astype(np.int64))


def read_folder(
    folder: Path,
    split: str,
    *,
    channels: int,
    targets: Sequence[Target] = (),
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Dataset:
    """Read one split of a folder that holds ``labels.csv`` and ``images/``.

    ``labels.csv`` has the columns ``file`` (relative to ``images/``), ``label`` and ``split``; ``group`` (the patient)
    is optional.

    :param channels: Channels that the model takes; grey images stored as RGB with equal channels count as grey.
    :param targets: Labels from other columns than ``label``: one for a yes-or-no task, several for a multi-hot ``y``.
    :param limit: Read at most so many images, spread evenly over the split.
    :param progress: Called with the number of images read since the last call.
    :raises ImageError: If the index or an image is missing or malformed, or the images differ in shape.
    """
    index = folder / "labels.csv"
    rows = [row for row in _read_index(index) if row["split"] == split]
    if not rows:
        raise ImageError(f"{index} has no image of split {split!r}")
    if limit is not None and limit < len(rows):
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, limit).round().astype(int)]

    def load(row: dict[str, str]) -> tuple[NDArray[np.float32], PixelDomain]:
        image = read_image(folder / "images" / row["file"])
        return as_channels(image.pixels, channels, row["file"]), image.domain

    pixels: list[NDArray[np.float32]] = []
    domains: set[PixelDomain] = set()
    with ThreadPoolExecutor() as pool:
        for array, domain in pool.map(load, rows):
            if pixels and array.shape != pixels[0].shape:
                raise ImageError(
                    f"{folder}: images differ in shape, {pixels[0].shape} and {array.shape}; resize them first"
                )
            pixels.append(array)
            domains.add(domain)
            if progress is not None:
                progress(1)
    if len(domains) > 1:
        raise ImageError(f"{folder}: images differ in their stored range, for instance {sorted(map(str, domains))[:2]}")
    return Dataset(
        name=folder.name,
        split=split,
        x=np.stack(pixels),
        y=_labels(rows, targets, index),
        ids=tuple(row["file"] for row in rows),
        groups=np.array([row.get("group") or row["file"] for row in rows]),
        domain=domains.pop(),
        sha256=hashlib.sha256(index.read_bytes()).hexdigest(),
    )


def read_npz(path: Path, split: str, *, limit: int | None = None) -> Dataset:
    """Read one split of an npz file in the MedMNIST layout (arXiv 2110.14795).

    :param path: File with the arrays ``{train,val,test}_images`` and ``_labels``; images ``(N, *spatial)`` or
        ``(N, H, W, 3)`` of type uint8, labels ``(N, 1)`` or ``(N, K)``.
    :raises ImageError: If an array is missing or has another type or shape.
    """
    try:
        data = path.read_bytes()
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror or error}") from error
    except KeyError as error:
        raise ImageError(f"{path} has no array {split}_images and {split}_labels") from error
    except Exception as error:  # zip, zlib and struct errors of a damaged archive have no common base
        raise ImageError(f"{path} is no readable npz file: {error}") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
        raise ImageError(f"{path}: expected uint8 images (N, ...), got {split}_images {images.dtype} {images.shape}")
    if labels.dtype.kind not in "biu" or labels.ndim not in (1, 2) or len(labels) != len(images):
        raise ImageError(
            f"{path}: expected whole-number labels, one row for each of {len(images)} images, "
            f"got {split}_labels {labels.dtype} {labels.shape}"
        )
    coloured = images.ndim == 4 and images.shape[-1] == 3
    x = np.moveaxis(images, -1, 1) if coloured else images[:, None]
    y = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    names = tuple(f"{split}-{i}" for i in range(len(x)))
    return Dataset(
        name=path.stem,
        split=split,
        x=x.astype(np.float32),
        y=y.astype(np.int64),
        ids=names,
        groups=np.array(names),
        domain=PixelDomain(0, 255, 1, "grey level"),
        sha256=hashlib.sha256(data).hexdigest(),
    ).first(limit)


def sample_phantoms(phantom: LumpyPhantom, split: str, n: int, *, seed: int = 0) -> Dataset:
    """``n`` phantoms of a split; each image is a group of its own.

    :param phantom: The generator.
    :param seed: Seed of the data set.
    """
    x, y = phantom.sample(n, seed=seed, split=split)
    names = tuple(f"{split}-{seed}-{i}" for i in range(n))
    return Dataset(
        name="phantom",
        split=split,
        x=x,
        y=y,
        ids=names,
        groups=np.array(names),
        domain=phantom.domain,
        sha256=phantom.identity(),
    )


def as_channels(pixels: NDArray[np.float32], channels: int, name: str) -> NDArray[np.float32]:
    """``pixels`` ``(C, *spatial)`` with the number of channels that a model takes, if that loses nothing.

    :raises ImageError: If it would.
    """
    if pixels.shape[0] == channels:
        return pixels
    if channels == 1 and (pixels == pixels[:1]).all():
        return pixels[:1]
    raise ImageError(f"{name} has {pixels.shape[0]} channels, the model takes {channels}")


def _read_index(index: Path) -> list[dict[str, str]]:
    try:
        with index.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
    except OSError as error:
        raise ImageError(
            f"cannot read {index}: {error.strerror}; a data folder needs labels.csv and images/"
        ) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ImageError(f"{index} is no readable CSV file: {error}") from error
    missing = {"file", "label", "split"} - set(reader.fieldnames or ())
    if missing:
        raise ImageError(f"{index} lacks the column {sorted(missing)[0]!r}")
    for number, row in enumerate(rows, start=2):
        parts = Path(row["file"] or "").parts
        if not parts or ".." in parts or Path(row["file"]).is_absolute():
            raise ImageError(f"{index}, line {number}: file {row['file']!r} must lie inside images/")
    return rows


def _labels(rows: list[dict[str, str]], targets: Sequence[Target], index: Path) -> NDArray[np.int64]:
    if not targets:
        return np.array([_number(row, "label", index) for row in rows], dtype=np.int64)
    columns = [[_number(row, target.column, index) >= target.at_least for row in rows] for target in targets]
    y: NDArray[np.int64] = np.array(columns, dtype=np.int64)
    return np.asarray(y[0] if len(targets) == 1 else y.T)


def _number(row: dict[str, str], column: str, index: Path) -> int:
    if column not in row:
        raise ImageError(f"{index} has no column {column!r}; it has {', '.join(row)}")
    try:
        return int(np.int64(int(row[column])))
    except (TypeError, ValueError, OverflowError) as error:
        raise ImageError(f"{index}: {column} {row[column]!r} of {row['file']} is no whole number") from error
