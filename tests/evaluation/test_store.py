# SPDX-License-Identifier: Apache-2.0
"""The result store: what is read is what was written, and a file is whole or not there, whatever interrupts it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from art_medical.errors import ArtMedicalError
from art_medical.evaluation.cells import canonical
from art_medical.evaluation.store import Store, to_json, write_atomically

KEY = "0" * 64
RECORD = {"id": KEY, "model": "Zähler", "metrics": {"accuracy": {"value": 0.1, "low": None, "high": 1e-300}}}
ARRAYS = {
    "logits": np.array([[0.1], [-3e38]], np.float32),
    "ids": np.array(["a", "Ähre"]),
    "success": np.array([True, False]),
}


def test_round_trip(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "cells")
    assert store.read(KEY) is None
    store.write(KEY, RECORD, ARRAYS)
    found = store.read(KEY)
    assert found is not None
    record, arrays = found
    assert record == RECORD
    assert list(record) == list(RECORD)
    assert sorted(arrays) == sorted(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert np.array_equal(arrays[name], array)
    assert sorted(p.name for p in store.folder.iterdir()) == [f"{KEY}.json", f"{KEY}.npz"]


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".json", b""),
        (".json", b"{"),
        (".json", b"[]"),
        (".json", b"\xff"),
        (".json", json.dumps({**RECORD, "id": "1" * 64}).encode()),
        (".json", None),
        (".npz", b""),
        (".npz", b"PK\3\4 cut"),
        (".npz", None),
    ],
)
def test_a_damaged_cell_counts_as_missing(tmp_path: Path, suffix: str, content: bytes | None) -> None:
    store = Store(tmp_path)
    store.write(KEY, RECORD, ARRAYS)
    path = tmp_path / f"{KEY}{suffix}"
    path.unlink() if content is None else path.write_bytes(content)
    assert store.read(KEY) is None
    store.write(KEY, RECORD, ARRAYS)
    assert store.read(KEY) is not None


def test_one_wrong_byte_in_an_array_is_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(KEY, RECORD, {"logits": np.random.default_rng(0).random(1000)})
    path = tmp_path / f"{KEY}.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert store.read(KEY) is None


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_arrays_are_never_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    store = Store(tmp_path)
    store.write(KEY, RECORD, {"logits": np.array([Canary(canary)], dtype=object)})
    assert store.read(KEY) is None
    assert not canary.exists()


def test_the_json_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is cut between the two files leaves no cell."""
    replaced: list[str] = []
    replace = os.replace

    def cut_after_the_first(source: str, target: Path) -> None:
        if replaced:
            raise KeyboardInterrupt
        replaced.append(Path(target).suffix)
        replace(source, target)

    monkeypatch.setattr(os, "replace", cut_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).write(KEY, RECORD, ARRAYS)
    assert replaced == [".npz"]
    assert [p.name for p in tmp_path.iterdir()] == [f"{KEY}.npz"]
    assert Store(tmp_path).read(KEY) is None


@pytest.mark.parametrize("function", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: BaseException
) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, b"old")

    def fail(*_: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(os, function, fail)
    expected = ArtMedicalError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write_atomically(path, b"new")
    if expected is ArtMedicalError:
        assert str(caught.value) == f"cannot write {path}: No space left on device"
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"x")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtMedicalError, match=r"cannot write .*results\.json: "):
        write_atomically(tmp_path / "file" / "results.json", b"x")


def test_nan_is_no_result() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"value": float("nan")})


@given(st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.none()))
def test_canonical_json_is_exact_and_independent_of_order(content: dict[str, Any]) -> None:
    text = canonical(content)
    assert text == canonical(dict(reversed(content.items())))
    assert text.isascii()
    assert json.loads(text) == content
    assert json.loads(to_json(content)) == content
