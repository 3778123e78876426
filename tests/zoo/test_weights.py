# SPDX-License-Identifier: Apache-2.0
"""Weights: nothing is parsed before length and hash matched, pickles never run, tensors fit exactly or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
from pathlib import Path
from typing import Any, Literal, NoReturn

import pytest
import torch
from safetensors.torch import save

from art_medical.errors import ModelError, UnpinnedError
from art_medical.zoo import weights
from art_medical.zoo.cards import parse_card
from art_medical.zoo.networks import LinearObserver
from art_medical.zoo.weights import check_parameter_count, load_weights, read_weights
from tests.zoo.models import fields

TENSORS = {"readout.weight": torch.tensor([[1.0, -2.0, 3.0, 0.5]]), "readout.bias": torch.tensor([0.25])}


def named(data: bytes) -> dict[str, Any]:
    """What a card says of these bytes."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    file.write_bytes(save(TENSORS))
    return file


def refusal(path: Path, sha256: str, size: int) -> str:
    with pytest.raises(ModelError) as caught:
        read_weights(path, sha256=sha256, size=size)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_round_trip(path: Path) -> None:
    found = read_weights(path, **named(path.read_bytes()))
    assert sorted(found) == sorted(TENSORS)
    assert all(torch.equal(found[key], TENSORS[key]) for key in TENSORS)


def test_nothing_is_parsed_before_the_hash_matched(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(_: bytes) -> NoReturn:
        raise AssertionError("parsed bytes that nobody vouched for")

    monkeypatch.setattr(weights, "tensors_in", parse)
    data = path.read_bytes()
    other = data[:-1] + bytes([data[-1] ^ 1])
    digest = named(other)["sha256"]
    path.write_bytes(other)
    assert f"has sha256 {digest}, the card says {named(data)['sha256']}" in refusal(path, **named(data))
    path.write_bytes(data + b"\0")
    assert f"has {len(data) + 1} bytes, the card says {len(data)}" in refusal(path, **named(data))
    path.write_bytes(data)
    with pytest.raises(AssertionError, match="nobody vouched"):
        read_weights(path, **named(data))


def test_the_bytes_that_were_hashed_are_the_bytes_that_are_parsed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is swapped right after it was read."""
    data = path.read_bytes()
    read = Path.read_bytes

    def read_and_swap(self: Path) -> bytes:
        content = read(self)
        self.write_bytes(save({key: value * 2 for key, value in TENSORS.items()}))
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_swap)
    found = read_weights(path, **named(data))
    assert torch.equal(found["readout.bias"], TENSORS["readout.bias"])


def test_links_are_refused(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    assert "is a symbolic link; weights must be a plain file" in refusal(link, **named(path.read_bytes()))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert "No such file or directory" in refusal(tmp_path / "absent", "0" * 64, 1)
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "Is a directory" in refusal(folder, "0" * 64, folder.stat().st_size)


HEADER = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        save(TENSORS)[:-3],
        save(TENSORS)[:20],
        save(TENSORS) + b"tail",
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", len(HEADER)) + HEADER + bytes(12),
        struct.pack("<Q", 4) + b"oops",
        struct.pack("<Q", 2) + b"\xff\xfe",
    ],
)
def test_damaged_files_with_the_right_hash(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    assert "is no valid safetensors file" in refusal(path, **named(data))


def test_sizes_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the file before it is read, of the header before it is parsed."""
    data = path.read_bytes()
    monkeypatch.setattr(weights, "MOST_FILE", len(data) - 1)
    assert f"has {len(data)} bytes; weights have at most {len(data) - 1}" in refusal(path, **named(data))
    monkeypatch.undo()
    # A million tensors of no numbers: a small file that would take a gigabyte as objects.
    entries = {f"w{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}
    header = json.dumps(entries).encode()
    bomb = struct.pack("<Q", len(header)) + header
    path.write_bytes(bomb)
    assert f"has a safetensors header of {len(header):,} bytes, more than 1,048,576" in refusal(path, **named(bomb))


def test_a_file_that_is_not_pinned_is_read_only_when_that_is_allowed(path: Path) -> None:
    with pytest.raises(UnpinnedError, match=r"the card has no sha256 of .*; allow_unpinned=True reads it all the same"):
        read_weights(path, sha256=None, size=None)
    found = read_weights(path, sha256=None, size=None, allow_unpinned=True)
    assert torch.equal(found["readout.bias"], TENSORS["readout.bias"])
    with pytest.raises(ModelError, match="refused before parsing"):
        read_weights(path, sha256="0" * 64, size=path.stat().st_size, allow_unpinned=True)


def test_the_format_is_the_one_of_the_card(path: Path) -> None:
    """A pickle under a safetensors card is no safetensors file, and the other way round; nothing is guessed."""
    assert "is no valid safetensors file" in refusal_of_bytes(path, saved(TENSORS), "safetensors")
    assert "is no archive; weights must be a state dict" in refusal_of_bytes(path, save(TENSORS), "state_dict")
    path.write_bytes(saved(TENSORS))
    found = read_weights(path, **named(path.read_bytes()), format="state_dict")
    assert torch.equal(found["readout.weight"], TENSORS["readout.weight"])


def saved(tensors: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def refusal_of_bytes(path: Path, data: bytes, format: Literal["safetensors", "state_dict"]) -> str:
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        read_weights(path, **named(data), format=format)
    return str(caught.value)


class Canary:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "executed"))


def test_a_pickle_with_the_right_hash_does_not_run(path: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save({"readout.weight": Canary(canary)}, path)
    for data in (path.read_bytes(), pickle.dumps(Canary(canary))):
        path.write_bytes(data)
        assert "is no valid safetensors file" in refusal(path, **named(data))
    assert not canary.exists()
    pickle.loads(data)
    assert canary.read_text() == "executed"  # the canary is alive


# -- into the network --------------------------------------------------------------------------------------------------


def unfit(tensors: dict[str, torch.Tensor]) -> str:
    network = LinearObserver((1, 2, 2))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load_weights(network, tensors, "here")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("here: ")
    if "NaN" in str(caught.value):
        assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    return str(caught.value)


def test_tensors_that_do_not_fit() -> None:
    weight, bias = TENSORS["readout.weight"], TENSORS["readout.bias"]
    assert 'Missing key(s) in state_dict: "readout.bias"' in unfit({"readout.weight": weight})
    assert 'Unexpected key(s) in state_dict: "extra"' in unfit({**TENSORS, "extra": bias})
    assert "size mismatch for readout.weight" in unfit({"readout.weight": weight.T, "readout.bias": bias})
    assert "tensor 'readout.bias' holds NaN" in unfit({**TENSORS, "readout.bias": torch.tensor([float("nan")])})
    assert "tensor 'readout.bias' holds NaN or inf" in unfit({**TENSORS, "readout.bias": torch.tensor([float("inf")])})


def test_half_precision_is_loaded_as_float32() -> None:
    network = LinearObserver((1, 2, 2))
    load_weights(network, {key: value.half() for key, value in TENSORS.items()}, "here")
    assert network.readout.weight.dtype == torch.float32
    assert torch.equal(network.readout.weight, TENSORS["readout.weight"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.uint8])
def test_only_half_precision_is_widened(dtype: torch.dtype) -> None:
    message = unfit({**TENSORS, "readout.bias": torch.ones(1, dtype=dtype)})
    assert f"tensor 'readout.bias' has type {dtype}, the network has torch.float32" in message


def test_the_parameter_count_is_a_second_statement() -> None:
    card = parse_card(json.dumps(fields()), "card.json")
    check_parameter_count(LinearObserver((1, 2, 2)), card)
    with pytest.raises(ModelError, match="tiny: LinearObserver has 7 parameters, the card says 5"):
        check_parameter_count(LinearObserver((1, 2, 3)), card)
