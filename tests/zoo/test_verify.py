# SPDX-License-Identifier: Apache-2.0
"""Verification: each way in which a folder can differ from its card is one finding, and nothing in it is executed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors.torch import load_file, save

from art_medical.errors import ModelError
from art_medical.zoo import registry
from art_medical.zoo.cards import read_card
from art_medical.zoo.hub import fetch
from art_medical.zoo.model_card import model_card
from art_medical.zoo.registry import ZOO_VARIABLE
from art_medical.zoo.signature import sign_folder
from art_medical.zoo.verify import Finding, verify, verify_model
from tests.hub.server import LoopbackHub
from tests.zoo.models import RESNET, write_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with everything that belongs to one."""
    made = write_model(tmp_path / "tiny")
    write_page(made)
    for name in ("LICENSE", "recipe.yaml", "train.py", ".gitattributes"):
        (made / name).write_text("raise SystemExit('executed')\n")
    return made


def write_page(folder: Path) -> None:
    (folder / "README.md").write_text(model_card(read_card(folder)), encoding="utf-8")


def edit(folder: Path, **changes: Any) -> None:
    """Change the card, and the page with it."""
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, **changes}))
    write_page(folder)


def put(folder: Path, tensors: dict[str, torch.Tensor] | bytes) -> None:
    """Other weights, with the card saying so."""
    data = tensors if isinstance(tensors, bytes) else save(tensors)
    (folder / "model.safetensors").write_bytes(data)
    edit(folder, files={"model.safetensors": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}})


def only(folder: Path) -> tuple[str, str]:
    """File and message of the one error."""
    (found,) = verify_model(folder)
    assert found.severity == "error"
    assert "\n" not in found.message
    return found.file, found.message


def test_a_whole_model_has_no_findings(folder: Path) -> None:
    assert verify_model(folder) == ()


def test_a_card_without_page_is_whole(folder: Path) -> None:
    """A wheel carries cards and weights only."""
    for name in ("README.md", "LICENSE", "recipe.yaml", "train.py", ".gitattributes"):
        (folder / name).unlink()
    assert verify_model(folder) == ()


# -- files -------------------------------------------------------------------------------------------------------------


def test_one_changed_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    said = hashlib.sha256(data).hexdigest()
    other = data[:-1] + bytes([data[-1] ^ 1])
    path.write_bytes(other)
    found = hashlib.sha256(other).hexdigest()
    assert only(folder) == ("model.safetensors", f"has sha256 {found}, the card says {said}")


def test_another_length_and_no_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    size = path.stat().st_size
    with path.open("ab") as stream:
        stream.write(b"x")
    assert only(folder) == ("model.safetensors", f"has {size + 1} bytes, the card says {size}")
    path.unlink()
    assert only(folder) == ("model.safetensors", "is missing")


def make_file(path: Path) -> None:
    path.write_bytes(b"x")


def make_link(path: Path) -> None:
    path.symlink_to("card.json")


def make_link_out(path: Path) -> None:
    path.symlink_to("/")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.skipif(os.name == "nt", reason="needs links and pipes")
@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (make_file, "model.pt", "is a file that the card does not name; remove it"),
        (make_file, ".hidden", "is a file that the card does not name; remove it"),
        (make_file, "MODEL.safetensors", "is a file that the card does not name; remove it"),
        (Path.mkdir, "weights", "is a folder that the card names no file of; remove it"),
        (make_link, "link.json", "is a symbolic link; a model folder holds plain files only"),
        (make_link_out, "out", "is a symbolic link; a model folder holds plain files only"),
        (make_pipe, "pipe", "is no plain file; remove it"),
    ],
)
def test_what_does_not_belong(folder: Path, make: Callable[[Path], None], name: str, message: str) -> None:
    make(folder / name)
    assert only(folder) == (name, message)


def test_what_a_training_left_behind_is_no_error(folder: Path) -> None:
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "checkpoint.pt").write_bytes(b"x")
    assert verify_model(folder) == (
        Finding("checkpoints", "is what a training left behind, and was not looked at", "warning"),
    )


def test_weights_that_are_a_link(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert {f.message for f in verify_model(folder)} == {
        "is a symbolic link; a model folder holds plain files only",
        "must be a plain file",
    }


def test_weights_below_a_folder(folder: Path) -> None:
    (folder / "models").mkdir()
    (folder / "model.safetensors").rename(folder / "models" / "model.safetensors")
    entry = json.loads((folder / "card.json").read_text())["files"]["model.safetensors"]
    edit(folder, files={"models/model.safetensors": entry})
    assert verify_model(folder) == ()
    (folder / "models" / "other.pt").write_bytes(b"x")
    assert only(folder)[0] == "models/other.pt"


def test_the_page_follows_from_the_card(folder: Path) -> None:
    with (folder / "README.md").open("a") as stream:
        stream.write("Cures everything.\n")
    assert only(folder) == ("README.md", "is not the page that the card gives; write it again from card.json")
    (folder / "README.md").write_bytes(b"\xff")
    assert only(folder)[1].startswith("cannot be read: 'utf-8'")


def test_a_card_that_is_none(folder: Path) -> None:
    (folder / "card.json").write_text("{")
    assert only(folder)[0] == "card.json"
    (folder / "card.json").unlink()
    assert only(folder)[1].endswith("No such file or directory; a model folder needs a card.json")


def test_a_file_that_nobody_vouches_for(folder: Path) -> None:
    edit(folder, files={"model.safetensors": {"sha256": None, "size": None}})
    assert only(folder) == ("model.safetensors", "has no sha256 and size on the card: nothing can vouch for it")


# -- network -----------------------------------------------------------------------------------------------------------


def test_tensors_are_those_of_the_network(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    weight, bias = tensors["readout.weight"], tensors["readout.bias"]
    put(folder, {"readout.weight": weight.half(), "readout.bias": bias.half()})
    assert verify_model(folder) == ()
    cases: list[tuple[dict[str, torch.Tensor], str]] = [
        ({"readout.bias": bias}, "lacks the tensor 'readout.weight'"),
        ({"other.bias": bias}, "lacks the tensor 'readout.weight' (and 1 more tensors)"),
        ({**tensors, "extra": bias.clone()}, "has the tensor 'extra', the network does not"),
        (
            {**tensors, "readout.weight": weight.T.contiguous()},
            "has the tensor 'readout.weight' of shape (4, 1), the network of (1, 4)",
        ),
        (
            {**tensors, "readout.bias": bias.double()},
            "has the tensor 'readout.bias' of type float64, the network of float32",
        ),
        (
            {**tensors, "readout.bias": bias.long()},
            "has the tensor 'readout.bias' of type int64, the network of float32",
        ),
    ]
    for changed, message in cases:
        put(folder, changed)
        assert ("model.safetensors", message) in {(f.file, f.message) for f in verify_model(folder)}


def test_counters_keep_their_type(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny", target="ResNet", args=RESNET, input={"shape": [1, 16, 16]})
    write_page(folder)
    assert verify_model(folder) == ()
    tensors = load_file(folder / "model.safetensors")
    counter = next(name for name in tensors if name.endswith("num_batches_tracked"))
    put(folder, {**tensors, counter: tensors[counter].int()})
    assert only(folder)[1] == f"has the tensor {counter!r} of type int32, the network of int64"


def test_no_tensor_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    for name in ("safetensors.torch.load", "art_medical.zoo.weights.tensors_in", "torch.load"):
        monkeypatch.setattr(name, fail)
    assert verify_model(folder) == ()


def test_weights_that_are_no_safetensors(folder: Path) -> None:
    put(folder, b"PK\x03\x04 something else")
    file, message = only(folder)
    assert file == "model.safetensors"
    assert "model.safetensors is no safetensors file" in message


def test_a_network_that_cannot_be(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    edit(folder, architecture={**card["architecture"], "num_parameters": 6})
    assert only(folder) == ("card.json", "tiny: LinearObserver has 5 parameters, the card says 6")
    edit(folder, architecture={**card["architecture"], "target": "os.system"})
    assert "network 'os.system' is not on the allow-list" in only(folder)[1]
    edit(folder, architecture=card["architecture"], input={**card["input"], "shape": [1, 2, 3]})
    assert only(folder)[1].startswith("the network cannot take an image: ")
    edit(folder, input=card["input"], head={"kind": "softmax", "labels": ["a", "b"]})
    assert "its softmax head needs (N, 2)" in only(folder)[1]


def test_a_prefix_is_the_one_of_the_card(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    put(folder, {f"module.{name}": tensor for name, tensor in tensors.items()})
    edit(folder, key_prefix="module.")
    assert verify_model(folder) == ()
    edit(folder, key_prefix="model.")
    assert "lacks the prefix 'model.' that the card states" in only(folder)[1]


def test_a_state_dict_is_compared_too(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "model.pt")
    (folder / "model.safetensors").unlink()
    data = (folder / "model.pt").read_bytes()
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    edit(folder, format="state_dict", files={"model.pt": entry})
    assert verify_model(folder) == ()
    card = json.loads((folder / "card.json").read_text())
    shape = {"target": "LinearObserver", "args": {"shape": [1, 5]}, "num_parameters": 6}
    edit(folder, architecture=shape, input={**card["input"], "shape": [1, 1, 5]})
    messages = [finding.message for finding in verify_model(folder)]
    assert messages == ["has the tensor 'readout.weight' of shape (1, 4), the network of (1, 5)"]


# -- signature ---------------------------------------------------------------------------------------------------------


def key_pair() -> tuple[bytes, bytes, str]:
    """Private key, public key, fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    public = key.public_key().public_bytes(serialization.Encoding.PEM, kind)
    der = key.public_key().public_bytes(serialization.Encoding.DER, kind)
    return private, public, hashlib.sha256(der).hexdigest()


def test_signatures(folder: Path) -> None:
    private, public, fingerprint = key_pair()
    _, stranger, other_fingerprint = key_pair()
    assert verify_model(folder, trusted_keys=[public]) == (
        Finding("card.json", "names no signature, so none of the trusted keys vouches for this model"),
    )
    edit(folder, signature={"file": "model.sig", "key_sha256": fingerprint})
    sign_folder(folder, private)
    assert verify_model(folder, trusted_keys=[stranger, public]) == ()
    (told,) = verify_model(folder)
    assert told == Finding(
        "model.sig", f"was not checked: give the public key whose fingerprint is {fingerprint}", "warning"
    )
    (refused,) = verify_model(folder, trusted_keys=[stranger])
    assert (refused.file, refused.severity) == ("model.sig", "error")
    with (folder / "train.py").open("a") as stream:
        stream.write("# changed after signing\n")
    (refused,) = verify_model(folder, trusted_keys=[public])
    assert "train.py" in refused.message
    edit(folder, signature={"file": "model.sig", "key_sha256": other_fingerprint})
    sign_folder(folder, private)
    (refused,) = verify_model(folder, trusted_keys=[public])
    assert refused.message == f"is made with the key {fingerprint}, the card says {other_fingerprint}"
    (folder / "model.sig").unlink()
    assert [f.file for f in verify_model(folder, trusted_keys=[public])] == ["model.sig"]


# -- registered models -------------------------------------------------------------------------------------------------


@pytest.fixture
def own(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The model as one of the package's own; a second folder is the user's, a third the current one."""
    for name in ("user", "cwd"):
        (tmp_path / name).mkdir()
    place = tmp_path / "own"
    place.mkdir()
    folder.rename(place / "tiny")
    monkeypatch.setattr(registry, "_own_zoo", lambda: place)
    monkeypatch.setenv(ZOO_VARIABLE, str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path / "cwd")
    return place / "tiny"


def test_a_registered_model_is_verified_where_its_weights_lie(own: Path, tmp_path: Path) -> None:
    verdict = verify("tiny")
    assert (verdict.state, verdict.folder, verdict.findings) == ("verified", own, ())
    other = tmp_path / "user" / "tiny"
    shutil.copytree(own, other)
    (own / "model.safetensors").unlink()
    assert (verify("tiny").state, verify("tiny").folder) == ("verified", other)
    (other / "card.json").unlink()
    assert verify("tiny").state == "verified"
    (other / "evil.pt").write_bytes(b"x")
    assert [(f.file, f.severity) for f in verify("tiny").findings] == [("evil.pt", "error")]
    assert verify("tiny").state == "failed"


def test_another_card_beside_the_weights(own: Path, tmp_path: Path) -> None:
    other = tmp_path / "user" / "tiny"
    shutil.copytree(own, other)
    (own / "model.safetensors").unlink()
    edit(other, version="9")
    verdict = verify("tiny")
    assert verdict.state == "failed"
    assert verdict.findings[0] == Finding("card.json", f"differs from the registered card {own / 'card.json'}")


def test_weights_that_are_not_here(own: Path) -> None:
    (own / "model.safetensors").unlink()
    assert (verify("tiny").state, verify("tiny").findings) == ("not installed", ())
    edit(own, hub={"repo": "owner/tiny", "revision": "0" * 40})
    assert verify("tiny").state == "not fetched"
    card = json.loads((own / "card.json").read_text())
    edit(own, architecture={**card["architecture"], "num_parameters": 6})
    assert verify("tiny").state == "failed"  # the card itself is still checked


@pytest.mark.network
def test_weights_in_the_cache_of_the_hubs_client(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with LoopbackHub(tmp_path / "hub") as hub:
        commit = hub.commit("owner/tiny", {"model.safetensors": (own / "model.safetensors").read_bytes()})
        (own / "model.safetensors").unlink()
        edit(own, hub={"repo": "owner/tiny", "revision": commit})
        assert verify("tiny").state == "not fetched"
        (path,) = fetch("tiny", endpoint=hub.endpoint).files.values()
        asked = len(hub.requests)
        assert (verify("tiny").state, verify("tiny").findings) == ("verified", ())
        assert len(hub.requests) == asked
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (found,) = verify("tiny").findings
    assert found.file == "model.safetensors"
    assert "has sha256" in found.message
    path.write_bytes(data[:-1])
    assert verify("tiny").state == "failed"
    path.write_bytes(data)
    private, public, fingerprint = key_pair()
    edit(own, signature={"file": "model.sig", "key_sha256": fingerprint})
    assert private
    assert [f.severity for f in verify("tiny").findings] == ["warning"]
    assert verify("tiny", trusted_keys=[public]).findings == (
        Finding("model.sig", "was not checked: files in the cache are no folder; use zoo fetch --to"),
    )


def test_a_folder_and_an_unknown_name(own: Path, tmp_path: Path) -> None:
    assert verify(str(own)).state == "verified"
    for ref in ("nope", "x" * 5000, "nul\0byte", ""):
        with pytest.raises(ModelError, match="unknown model"):
            verify(ref)
    (own / "card.json").write_text("{")
    assert verify(str(own)).state == "failed"


def test_a_verdict_as_json(own: Path) -> None:
    (own / "extra").write_bytes(b"x")
    assert json.loads(json.dumps(verify("tiny").to_dict())) == {
        "ref": "tiny",
        "state": "failed",
        "folder": str(own),
        "findings": [
            {"file": "extra", "message": "is a file that the card does not name; remove it", "severity": "error"}
        ],
    }
