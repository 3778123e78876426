# SPDX-License-Identifier: Apache-2.0
"""Weights: nothing is parsed before length and hash matched, pickles never run, tensors fit exactly or not at all."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import save

from art_medical.errors import ModelError
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

    monkeypatch.setattr(weights, "parse_safetensors", parse)
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


def test_the_parameter_count_is_a_second_statement() -> None:
    card = parse_card(json.dumps(fields()), "card.json")
    check_parameter_count(LinearObserver((1, 2, 2)), card)
    with pytest.raises(ModelError, match="tiny: LinearObserver has 7 parameters, the card says 5"):
        check_parameter_count(LinearObserver((1, 2, 3)), card)
