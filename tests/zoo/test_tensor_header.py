# SPDX-License-Identifier: Apache-2.0
"""The header of safetensors files: what we read is what the library reads; what it refuses, we refuse."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from art_medical.errors import ModelError
from art_medical.zoo import tensor_header
from art_medical.zoo.tensor_header import DTYPES, HashedFile, TensorEntry, hash_file, read_header

TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool]


def hashed(data: bytes) -> HashedFile:
    return HashedFile(hashlib.sha256(data).hexdigest(), len(data), data)


def raw(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@given(st.dictionaries(st.text(max_size=5), st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 4), max_size=4))))
def test_the_library_reads_the_same(tensors: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    data = save({name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in tensors.items()})
    expected = {name: TensorEntry(str(dtype)[6:], tuple(shape)) for name, (dtype, shape) in tensors.items()}
    assert read_header(hashed(data), "here") == expected
    assert {n: TensorEntry(str(t.dtype)[6:], tuple(t.shape)) for n, t in load(data).items()} == expected


def test_every_type_is_torchs() -> None:
    for name, width in DTYPES.values():
        assert torch.empty(0, dtype=getattr(torch, name)).element_size() == width


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it ends before its header does"),
        (b"\0" * 7, "it ends before its header does"),
        (struct.pack("<Q", 100) + b"{}", "it ends before its header does"),
        (struct.pack("<Q", 1 << 62) + b"{}", "it ends before its header does, or the header is too long"),
        (raw(b"oops"), "here is no safetensors file: Expecting value"),
        (raw(b"\xff\xfe"), "here is no safetensors file: 'utf-8' codec"),
        (raw([1]), "here is no safetensors file"),
        (raw({"w": 1}), "here is no safetensors file"),
        (raw(b"[" * 5000), "here is no safetensors file"),
        (raw({"w": {**ENTRY, "dtype": "F31"}}, bytes(8)), "tensor 'w' has the unknown type 'F31'"),
        (raw({"w": {**ENTRY, "shape": [-2]}}, bytes(8)), "tensor 'w': shape and offsets must be whole numbers"),
        (raw({"w": {**ENTRY, "shape": [2.0]}}, bytes(8)), "tensor 'w': shape and offsets must be whole numbers"),
        (raw({"w": {**ENTRY, "shape": [3]}}, bytes(8)), "tensor 'w' of shape [3] and type F32 takes 8 bytes"),
        (raw({"w": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12)), "tensor 'w' begins at 4, the one before it ends"),
        (raw({"v": ENTRY, "w": ENTRY}, bytes(8)), "tensor 'w' begins at 0, the one before it ends at 8"),
        (raw({"w": ENTRY}, bytes(7)), "the tensors take 8 bytes, the file has 7 for them"),
        (raw({"w": ENTRY}, bytes(9)), "the tensors take 8 bytes, the file has 9 for them"),
        (raw(b'{"w":' + json.dumps(ENTRY).encode() + b',"w":' + json.dumps(ENTRY).encode() + b"}", bytes(8)), "twice"),
    ],
)
def test_what_is_no_safetensors_file(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        read_header(hashed(data), "here")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    if "twice" not in message:  # the library takes the second
        path = tmp_path / "file"
        path.write_bytes(data)
        with pytest.raises(SafetensorError), safe_open(path, "pt"):
            pass


def test_a_file_is_hashed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = save({"a": torch.arange(5.0), "b": torch.ones(3, 4)}, {"format": "pt"})
    path = tmp_path / "file"
    path.write_bytes(data)
    for chunk in (8, 9, 64, 1 << 20):
        monkeypatch.setattr(tensor_header, "CHUNK", chunk)
        found = hash_file(path)
        assert (found.sha256, found.size) == (hashlib.sha256(data).hexdigest(), len(data))
        assert sorted(read_header(found, "here")) == ["a", "b"]


def test_hashing_takes_the_same_memory_for_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    peaks = []
    for size in (4 << 20, 64 << 20):
        with path.open("wb") as stream:
            stream.truncate(size)
        tracemalloc.start()
        assert hash_file(path).size == size
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + (1 << 20)
    assert peaks[1] < 8 << 20


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="needs O_NOFOLLOW")
def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(OSError, match=r"[Ll]ink"):
        hash_file(tmp_path / "link")
