# SPDX-License-Identifier: Apache-2.0
"""Bytes read once and seen as tensors: what the safetensors library reads, without its copies."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from art_medical.errors import IntegrityError, ModelError
from art_medical.zoo import tensor_bytes
from art_medical.zoo.tensor_bytes import read_hashed, tensors_in
from art_medical.zoo.weights import load_weights

TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool]


@given(
    st.dictionaries(st.text(max_size=5), st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 4), max_size=4))),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_the_library_reads_the_same(
    layout: dict[str, tuple[torch.dtype, list[int]]], seed: int, writable: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    data = save(
        {
            name: torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=generator).to(dtype)
            for name, (dtype, shape) in layout.items()
        }
    )
    found, expected = tensors_in(memoryview(bytearray(data)) if writable else data), load(data)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)


def test_tensors_off_their_boundary() -> None:
    """The library pads its headers and sorts by width; the format does not ask for it."""
    header = json.dumps(
        {
            "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
            "b": {"dtype": "F64", "shape": [2], "data_offsets": [3, 19]},
        }
    ).encode()
    for spaces in range(8):
        padded = header + b" " * spaces
        data = struct.pack("<Q", len(padded)) + padded + b"\1\2\3" + np.array([0.5, -2.0]).tobytes()
        found = tensors_in(data)
        assert found["a"].tolist() == load(data)["a"].tolist() == [1, 2, 3]
        assert found["b"].tolist() == load(data)["b"].tolist() == [0.5, -2.0]


def test_tensors_share_the_bytes() -> None:
    data = bytearray(save({"w": torch.arange(4.0)}))
    found = tensors_in(memoryview(data))["w"]
    data[-4:] = struct.pack("<f", 7.0)
    assert found.tolist() == [0, 1, 2, 7]


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"{}", struct.pack("<Q", 1 << 40) + b"{}", save({})[:-1]])
def test_what_is_no_safetensors_file(data: bytes) -> None:
    with pytest.raises(ModelError):
        tensors_in(data)
    assert tensors_in(save({})) == {}


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1000])
def test_every_byte_is_read_and_hashed(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_bytes, "PIECE", 64)
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    found, digest = read_hashed(tmp_path / "file", size)
    assert bytes(found) == data
    assert digest == hashlib.sha256(data).hexdigest()
    for wrong in {size - 1, size + 1} - {-1}:
        with pytest.raises(IntegrityError, match=f"changed its length while it was read; expected {wrong} bytes"):
            read_hashed(tmp_path / "file", wrong)


def test_what_was_read_does_not_change_any_more(tmp_path: Path) -> None:
    """Unlike a mapping: whoever writes to the file afterwards changes nothing that was vouched for."""
    data = save({"w": torch.arange(4.0)})
    (tmp_path / "file").write_bytes(data)
    found, digest = read_hashed(tmp_path / "file", len(data))
    (tmp_path / "file").write_bytes(bytes(len(data)))
    assert tensors_in(found)["w"].tolist() == [0, 1, 2, 3]
    assert hashlib.sha256(found).hexdigest() == digest


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="needs O_NOFOLLOW")
def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(OSError, match=r"[Ll]ink"):
        read_hashed(tmp_path / "link", 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 4, 8])
def test_one_bad_number_anywhere_is_found(dtype: torch.dtype, value: float, place: int) -> None:
    tensor = torch.linspace(-3, 3, 9).to(dtype)
    tensor[place] = value
    with pytest.raises(ModelError, match="here: tensor 'w' holds NaN or infinity"):
        load_weights(torch.nn.Linear(3, 3), {"w": tensor.reshape(3, 3)}, "here")


@pytest.mark.parametrize("tensor", [torch.empty(0, 3), torch.full((2,), 3.4e38), torch.full((2,), 65504.0).half()])
def test_large_numbers_and_none_are_no_bad_numbers(tensor: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="the tensors do not fit the network"):
        load_weights(torch.nn.Linear(3, 3), {"w": tensor}, "here")
