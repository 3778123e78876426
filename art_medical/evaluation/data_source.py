# SPDX-License-Identifier: Apache-2.0
"""The images of a study: generated phantoms, a folder or an npz file, checked against the model that takes them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from art_medical.errors import InputError
from art_medical.evaluation.progress import Progress
from art_medical.evaluation.study import Study
from art_medical.evaluation.subjects import Subject
from art_medical.images.datasets import Dataset, read_folder, read_npz, sample_phantoms
from art_medical.images.phantoms import LumpyPhantom


class Source:
    """Where the images of a study come from, in the shape that one model takes; each split is read once."""

    def __init__(self, study: Study, data: Path | None, subject: Subject, progress: Progress) -> None:
        self._study, self._progress = study, progress
        self._card, self._estimator = subject.card, subject.estimator
        self._path = self._find(data)
        self._read: dict[tuple[str, int | None], Dataset] = {}

    def _find(self, data: Path | None) -> Path | None:
        entry = self._study.data
        if entry.kind == "phantom":
            if data is not None:
                raise InputError(f"the study {self._study.name!r} runs on generated phantoms and takes no --data")
            return None
        path = data if entry.kind == "zoo" else data or (Path(entry.path) if entry.path is not None else None)
        if path is None:
            raise InputError(f"the study {self._study.name!r} runs on files: say where they are with --data DIR")
        if entry.kind == "zoo":
            if self._card.data.folder is None:
                raise InputError(f"the card of {self._card.name} names no data set: use data of another kind")
            path = path / self._card.data.folder
        if not path.exists():
            raise InputError(f"no data at {path}")
        return path

    def read(self, split: str, limit: int | None) -> Dataset:
        """A split, checked against the model."""
        if (split, limit) not in self._read:
            self._read[split, limit] = self._checked(self._load(split, limit))
        return self._read[split, limit]

    def _load(self, split: str, limit: int | None) -> Dataset:
        entry = self._study.data
        if entry.kind == "phantom":
            n = entry.n if limit is None else min(limit, entry.n)
            if split == "train":
                n = limit or entry.n
            return sample_phantoms(LumpyPhantom(), split, n, seed=entry.seed)
        assert self._path is not None
        if entry.kind == "npz" or self._path.suffix == ".npz":
            return read_npz(self._path, split, limit=limit)
        self._progress.begin(f"reading {split} images", 0)
        channels = self._estimator.input_shape[0]
        targets = (self._card.data.targets if entry.kind == "zoo" else entry.targets) or {}
        return read_folder(
            self._path,
            split,
            channels=channels,
            targets=tuple(targets.values()),
            limit=limit,
            progress=self._progress.advance,
        )

    def _checked(self, data: Dataset) -> Dataset:
        estimator = self._estimator
        if data.domain != estimator.domain:
            raise InputError(
                f"{data.name} stores {data.domain.low:g} to {data.domain.high:g} {data.domain.units}, "
                f"the model takes {estimator.domain.low:g} to {estimator.domain.high:g} {estimator.domain.units}"
            )
        estimator.check(data.x)
        estimator.encode(data.y)
        return data


def data_hashes(data: Dataset) -> dict[str, Any]:
    """What names a set of images in a record: hashes of its index, of the names and of the pixels."""
    names = hashlib.sha256("\n".join(data.ids).encode()).hexdigest()
    pixels = hashlib.sha256(np.ascontiguousarray(data.x).tobytes()).hexdigest()
    return {
        "name": data.name,
        "split": data.split,
        "n": len(data),
        "index": data.sha256,
        "ids": names,
        "pixels": pixels,
    }
