# SPDX-License-Identifier: Apache-2.0
"""Publishing: what is pushed comes back to the last bit, what is not right is never sent, a version never changes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from huggingface_hub import constants

import art_medical
from art_medical.errors import ArtMedicalError, HubError, InputError, IntegrityError, ModelError
from art_medical.zoo import dsse, push
from art_medical.zoo.cards import read_card
from art_medical.zoo.model_card import model_card
from art_medical.zoo.push import Pushed
from art_medical.zoo.signature import read_signature, verify_folder
from tests.hub.handler import Handler
from tests.hub.server import TOKEN, LoopbackHub
from tests.zoo.models import RESNET, write_model

pytestmark = pytest.mark.network

REPO = "org/tiny"
KEY = ec.derive_private_key(0x5EED, ec.SECP256R1())
PEM = serialization.Encoding.PEM
PRIVATE = KEY.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
PUBLIC = KEY.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
SIGNED = {"file": "model.sig", "key_sha256": dsse.key_fingerprint(KEY.public_key())}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return model(tmp_path / "tiny")


def model(folder: Path, **card: Any) -> Path:
    """A model folder that is fit to be published."""
    write_model(folder, target="ResNet", args=RESNET, input={"shape": [1, 32, 32]}, **card)
    (folder / "README.md").write_text(model_card(read_card(folder)), encoding="utf-8")
    (folder / "LICENSE").write_text("Apache-2.0\n")
    return folder


def publish(folder: Path, hub: LoopbackHub, repo: str = REPO, **options: Any) -> Pushed:
    return push.push(folder, repo, **{"endpoint": hub.endpoint, "token": TOKEN, **options})


def refusal(folder: Path, hub: LoopbackHub, kind: type[ArtMedicalError], repo: str = REPO, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        publish(folder, hub, repo, **options)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert message.isprintable()
    return message.replace(str(folder), "FOLDER").replace(hub.endpoint, "HUB")


def published(hub: LoopbackHub, revision: str = "main", repo: str = REPO) -> dict[str, str]:
    """sha256 of each file of a revision, without the one that the Hub itself wrote."""
    commit = hub.repositories[repo].find(revision)
    assert commit is not None
    return {name: blob.sha256 for name, blob in commit.files.items() if name != ".gitattributes"}


def on_disk(folder: Path) -> dict[str, str]:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def logits(classifier: art_medical.MedicalClassifier) -> np.ndarray:
    x = np.random.default_rng(0).integers(0, 256, (4, 1, 32, 32)).astype(np.float32)
    return classifier.predict(x)


# -- what is right is published ----------------------------------------------------------------------------------------


def test_a_pushed_model_comes_back_to_the_last_bit(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    pushed = publish(folder, hub)
    back = art_medical.load(pushed.reference, endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
    assert np.array_equal(logits(back), logits(art_medical.load(folder)))


def test_one_commit_holds_exactly_the_folder(hub: LoopbackHub, folder: Path) -> None:
    (folder / ".gitattributes").write_text("* -text\n")  # the Hub's own is left alone
    pushed = publish(folder, hub)
    repository = hub.repositories[REPO]
    first, second = repository.commits.values()
    assert (second.id, second.parent) == (pushed.revision, first.id)
    assert repository.branches == {"main": pushed.revision}
    assert repository.tags == {"1.0.0": pushed.revision}
    expected = on_disk(folder)
    del expected[".gitattributes"]
    assert published(hub) == expected
    assert second.files[".gitattributes"] == first.files[".gitattributes"]
    assert second.message == "tiny 1.0.0"
    assert pushed == Pushed(REPO, second.id, f"hf://{REPO}@{second.id}#{expected['card.json']}")


# The client passes the file to its HTTP library by a parameter of the time of requests (2.4.0).
@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
def test_large_file_storage(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with LoopbackHub(tmp_path / "hub", lfs_uploads=True) as hub:
        publish(folder, hub)
        assert published(hub) == on_disk(folder)
        sha256 = read_card(folder).files["model.safetensors"].sha256
        assert [request.path for request in hub.requests if request.method == "PUT"] == [f"/lfs/{sha256}"]


def test_pushing_again_changes_nothing(hub: LoopbackHub, folder: Path) -> None:
    pushed = publish(folder, hub)
    hub.requests.clear()
    assert publish(folder, hub) == pushed
    assert len(hub.repositories[REPO].commits) == 2
    assert {r.method for r in hub.requests if "paths-info" not in r.path} <= {"GET", "HEAD"}


def test_a_new_version_leaves_the_old_one_as_it_was(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    old = publish(folder, hub)
    files = published(hub)
    new = publish(model(folder, version="1.1.0", seed=1), hub)
    assert hub.repositories[REPO].tags == {"1.0.0": old.revision, "1.1.0": new.revision}
    assert published(hub, old.revision) == files
    assert published(hub, new.revision) == on_disk(folder)
    results = [
        logits(art_medical.load(pushed.reference, endpoint=hub.endpoint, cache_dir=tmp_path / "cache"))
        for pushed in (old, new)
    ]
    assert not np.array_equal(*results)


def test_private_repositories_and_tags_of_ones_own(hub: LoopbackHub, folder: Path) -> None:
    publish(folder, hub, "org/hidden", private=True, tag="v1")
    assert hub.repositories["org/hidden"].private
    assert list(hub.repositories["org/hidden"].tags) == ["v1"]
    publish(folder, hub)
    assert not hub.repositories[REPO].private
    message = refusal(model(folder, version="2"), hub, HubError, private=True)
    assert message == f"{REPO} exists at HUB and is public; make it private there, or push elsewhere"


# -- what is not right is not sent -------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def unpin(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    card["files"]["model.safetensors"] = {"sha256": None, "size": None}
    (folder / "card.json").write_text(json.dumps(card))
    (folder / "README.md").write_text(model_card(read_card(folder)), encoding="utf-8")


def link(folder: Path) -> None:
    (folder / "LICENSE").unlink()
    (folder / "LICENSE").symlink_to(os.devnull)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "card.json").unlink(), "cannot read FOLDER/card.json"),
        (lambda folder: (folder / "card.json").write_text("{}"), "FOLDER/card.json: schema: Field required"),
        (lambda folder: flip(folder / "model.safetensors"), "FOLDER: model.safetensors has sha256"),
        (lambda folder: (folder / "model.safetensors").unlink(), "FOLDER: model.safetensors is missing"),
        (unpin, "FOLDER: model.safetensors has no sha256 and size on the card"),
        (lambda folder: (folder / "secret.env").write_text("x"), "FOLDER: secret.env is a file that the card does not"),
        (lambda folder: (folder / ".git").mkdir(), "FOLDER: .git is a folder that the card names no file of"),
        (link, "FOLDER: LICENSE is a symbolic link"),
        (
            lambda folder: (folder / "README.md").write_text("# Better"),
            "FOLDER: README.md is not the page that the car",
        ),
        (lambda folder: (folder / "README.md").unlink(), "FOLDER: README.md cannot be read: No such file"),
        (lambda folder: (folder / "train.py").write_bytes(bytes(1 << 20) + b"x"), "train.py has more than 1048576 byt"),
    ],
)
def test_a_folder_that_is_not_as_its_card_says(
    hub: LoopbackHub, folder: Path, harm: Callable[[Path], Any], message: str
) -> None:
    harm(folder)
    found = refusal(folder, hub, ModelError)
    assert message in found
    assert found.endswith("; nothing was uploaded")
    assert hub.requests == []


def test_a_file_that_changes_after_it_was_verified(
    hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = push.verify_model

    def verify_and_change(path: Path) -> Any:
        findings = verify(path)
        flip(folder / "model.safetensors")
        return findings

    monkeypatch.setattr(push, "verify_model", verify_and_change)
    assert (
        refusal(folder, hub, ModelError) == "model.safetensors was changed while it was published; nothing was uploaded"
    )
    assert published(hub) == {}


@pytest.mark.parametrize("tag", ["", "main", "a b", "a..b", "-v1", "v1\n", "../x", "v1.lock", "0" * 40, "a" * 65])
def test_tags(hub: LoopbackHub, folder: Path, tag: str) -> None:
    assert refusal(folder, hub, InputError, tag=tag).startswith(f"{tag[:100]!r} cannot be a tag")
    assert hub.requests == []


@pytest.mark.parametrize("repo", ["", "tiny", "a/b/c", "../b", "a/b@main", "a/b#1", "a b/c", f"a/b@{'0' * 40}"])
def test_repositories(hub: LoopbackHub, folder: Path, repo: str) -> None:
    assert refusal(folder, hub, InputError, repo) == f"{repo!r} is no repository on the Hub; write owner/name"
    assert hub.requests == []


# -- the Hub holds something else --------------------------------------------------------------------------------------


def test_a_published_version_is_never_changed(hub: LoopbackHub, folder: Path) -> None:
    pushed = publish(folder, hub)
    model(folder, intended_use="Another text.")
    message = refusal(folder, hub, HubError)
    assert message == (
        f"1.0.0 of {REPO} is published already, as commit {pushed.revision}, with other content (card.json, README.md)"
        "; give the model a new version, or name another tag"
    )
    (folder / "recipe.yaml").write_text("seed: 0\n")
    assert "(card.json, README.md, recipe.yaml)" in refusal(folder, hub, HubError)
    assert len(hub.repositories[REPO].commits) == 2
    assert publish(folder, hub, tag="again").revision != pushed.revision


def test_a_repository_with_other_files_is_left_alone(hub: LoopbackHub, folder: Path) -> None:
    commit = hub.commit(REPO, {"thesis.tex": b"x", "pytorch_model.bin": b"x"})
    message = refusal(folder, hub, HubError)
    assert (
        message
        == f"{REPO} holds 'pytorch_model.bin' (and 1 more), which this model does not have; delete it there first"
    )
    assert hub.repositories[REPO].branches == {"main": commit}


def test_somebody_else_pushes_at_the_same_time(hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tagged = push._tagged

    def tagged_and_changed(*arguments: Any) -> Any:
        found = tagged(*arguments)
        hub.commit(REPO, {"LICENSE": b"MIT\n"})
        return found

    monkeypatch.setattr(push, "_tagged", tagged_and_changed)
    assert refusal(folder, hub, HubError) == (
        f"cannot publish {REPO} at HUB: it answered 412: somebody else changed the repository meanwhile; "
        "look at it, then push again"
    )
    assert list(published(hub)) == ["LICENSE"]
    assert hub.repositories[REPO].tags == {}


def test_a_push_that_was_cut_before_its_tag_is_finished_by_the_next(hub: LoopbackHub, folder: Path) -> None:
    hub.fault("unauthorised", f"/api/models/{REPO}/tag/*", times=1)
    assert "it answered 401; log in with `hf auth login`, and use a token" in refusal(folder, hub, HubError)
    assert published(hub) == on_disk(folder)
    pushed = publish(folder, hub)
    assert hub.repositories[REPO].tags == {"1.0.0": pushed.revision}
    assert len(hub.repositories[REPO].commits) == 2


# -- the Hub does something else ---------------------------------------------------------------------------------------


def test_no_right_to_write(hub: LoopbackHub, folder: Path) -> None:
    message = refusal(folder, hub, HubError, token="hf_wrong")
    assert message.startswith(f"cannot publish {REPO} at HUB: it answered 401; log in with `hf auth login`")
    assert "hf_wrong" not in message
    assert hub.repositories == {}


def test_a_hub_that_is_down_or_gone(hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.fault("unavailable", "/api/repos/create")
    assert f"cannot publish {REPO} at HUB: " in refusal(folder, hub, HubError)
    hub.stop()
    assert f"cannot publish {REPO} at HUB: " in refusal(folder, hub, HubError)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refusal(folder, hub, HubError)
    assert message == f"cannot publish {REPO}: the network is switched off (HF_HUB_OFFLINE)"


def test_endpoints_that_would_send_the_token_in_the_clear(hub: LoopbackHub, folder: Path) -> None:
    message = refusal(folder, hub, HubError, endpoint="http://hub.example")
    assert message.startswith("the endpoint 'http://hub.example' is refused")


def test_a_hub_that_keeps_other_bytes(hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = hub.store.add
    monkeypatch.setattr(
        hub.store, "add", lambda data, lfs: add(data + b"\n" if data == b"Apache-2.0\n" else data, lfs=lfs)
    )
    message = refusal(folder, hub, IntegrityError)
    assert message.endswith("at HUB does not hold what was sent: LICENSE")
    assert hub.repositories[REPO].tags == {}


def test_a_hub_that_gives_back_another_card(hub: LoopbackHub, folder: Path) -> None:
    hub.fault("wrong-bytes", "card.json", method="GET")
    message = refusal(folder, hub, IntegrityError)
    assert message.startswith(f"HUB gives back another card.json for {REPO}@")


def test_a_hub_that_puts_the_tag_elsewhere(hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create_tag(self: Handler, repo: str, rev: str) -> None:
        hub.tag(repo, self._json()["tag"], next(iter(hub.repositories[repo].commits)))
        self._send_json({})

    monkeypatch.setattr(Handler, "create_tag", create_tag)
    first = r"the tag 1\.0\.0 of org/tiny at HUB is commit [0-9a-f]{40}, expected [0-9a-f]{40}"
    assert re.fullmatch(first, refusal(folder, hub, IntegrityError))


# -- signatures --------------------------------------------------------------------------------------------------------


def test_signing_while_publishing(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = model(tmp_path / "tiny", signature=SIGNED)
    before = on_disk(folder)
    pushed = publish(folder, hub, sign_key=PRIVATE)
    assert on_disk(folder) == before  # the signature is in the commit alone
    commit = hub.repositories[REPO].commits[pushed.revision]
    clone = tmp_path / "clone"
    for name, blob in commit.files.items():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes(blob.bytes_at.read_bytes())
    assert verify_folder(clone, clone / "model.sig", [PUBLIC]).files == before
    assert read_signature(clone / "model.sig", [PUBLIC]).key_sha256 == SIGNED["key_sha256"]


def test_a_signature_that_is_in_the_folder_is_published(hub: LoopbackHub, tmp_path: Path) -> None:
    from art_medical.zoo.signature import sign_folder

    folder = model(tmp_path / "tiny", signature=SIGNED)
    sign_folder(folder, PRIVATE)
    publish(folder, hub)
    assert published(hub) == on_disk(folder)
    assert "model.sig" in published(hub)


def test_the_card_must_name_the_key(hub: LoopbackHub, folder: Path) -> None:
    entry = f'"signature": {{"file": "model.sig", "key_sha256": "{SIGNED["key_sha256"]}"}}'
    message = refusal(folder, hub, InputError, sign_key=PRIVATE)
    assert message == f"card.json names no signature; write {entry} into it first"
    model(folder, signature={**SIGNED, "key_sha256": "0" * 64})
    message = refusal(folder, hub, InputError, sign_key=PRIVATE)
    assert message == f"card.json names the key {'0' * 64}; write {entry} into it first"
    assert hub.requests == []
