# SPDX-License-Identifier: Apache-2.0
"""Models from the Hub when all goes well, and references and cards that are refused before anything is sent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants, scan_cache_dir

import art_medical
from art_medical.errors import HubError, IntegrityError, ModelError, UnpinnedError
from art_medical.zoo import registry
from art_medical.zoo.cards import WeightFile
from art_medical.zoo.hub import fetch, fetch_to, locate
from art_medical.zoo.references import HubRef, is_hub_ref
from art_medical.zoo.registry import ZOO_VARIABLE, load
from art_medical.zoo.verify import verify_model
from tests.hub.conftest import REPO, WEIGHTS, Published, republish
from tests.hub.server import TOKEN
from tests.zoo.models import write_model

ROOT = Path(__file__).resolve().parents[2]
X = np.array([[[[0, 50], [100, 255]]]], np.float32)


def refused(error: type[ModelError], *args: object, **options: object) -> str:
    with pytest.raises(error) as caught:
        fetch(*args, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 800
    return message


def test_a_reference_is_read_and_written() -> None:
    commit, sha = "0123456789" * 4, "ab" * 32
    for text, expected, pinned in (
        (f"hf://owner/repo@{commit}", HubRef("owner/repo", commit), True),
        (f"hf://owner/repo@{commit}#{sha}", HubRef("owner/repo", commit, sha), True),
        ("hf://owner/repo", HubRef("owner/repo"), False),
        ("hf://owner/repo@main", HubRef("owner/repo", "main"), False),
        (f"hf://owner/repo@{commit[:39]}", HubRef("owner/repo", commit[:39]), False),
        (f"hf://owner/repo@{commit.replace('1', 'A')}", HubRef("owner/repo", commit.replace("1", "A")), False),
        ("hf://O-w.n_r/r.e-p_o@refs/pr/1", HubRef("O-w.n_r/r.e-p_o", "refs/pr/1"), False),
    ):
        assert HubRef.parse(text) == expected
        assert str(expected) == text
        assert expected.pinned == pinned
        assert is_hub_ref(text)
    assert not is_hub_ref("phantom-nodule")
    assert not is_hub_ref(Path("hf:/owner/repo"))


@pytest.mark.parametrize(
    "text",
    [
        "hf://",
        "hf://repo",
        "hf://a/b/c",
        "hf://../b",
        "hf://a/..",
        "hf://a--b/c",
        "hf://a/b..c",
        "hf://-a/b",
        "hf://a/b.",
        "hf://a/b@",
        "hf://a/b@../main",
        "hf://a/b@v1..v2",
        "hf://a/b@-x",
        "hf://a/b@main\n",
        "hf://a/b#" + "0" * 63,
        "hf://a/b@main#" + "G" * 64,
        "hf://a/b@main?x=1",
        "hf://user:token@host/a/b",
        "hf://a\\b/c",
        "hf://ä/b",
        f"hf://{'a' * 97}/b",
        "hf://a/b@" + "x" * 256,
        "HF://a/b",
        " hf://a/b",
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(
        HubError, match="is no reference to a model on the Hub; write hf://owner/repo@<40 hex"
    ) as caught:
        HubRef.parse(text)
    assert "\n" not in str(caught.value)


def test_a_model_is_loaded_bit_for_bit(published: Published) -> None:
    from_hub = load(published.ref, **published.options).predict(X)
    assert np.array_equal(from_hub, load(published.folder).predict(X))
    assert np.array_equal(from_hub, art_medical.load(published.ref, offline=True, **published.options).predict(X))


def test_what_a_fetch_returns(published: Published) -> None:
    found = published.fetch()
    data = (published.folder / "card.json").read_bytes()
    assert found.card_bytes == data
    assert found.card.name == "tiny"
    assert found.revision == published.commit
    assert found.folder == published.storage / "snapshots" / published.commit
    assert found.reference == f"{published.ref}#{hashlib.sha256(data).hexdigest()}"
    assert found.files[WEIGHTS].read_bytes() == (published.folder / WEIGHTS).read_bytes()
    assert not found.files[WEIGHTS].is_symlink()
    assert dict(found.expected) == dict(found.card.files)
    assert published.fetch(found.reference) == found
    assert published.fetch(HubRef.parse(published.ref)) == found


def test_only_named_files_are_asked_for(published: Published) -> None:
    """The list of a repository's files is never read, so nothing in it can do anything."""
    published.hub.commit(REPO, {"../outside": b"x", "pytorch_model.bin": b"x", "modeling.py": b"raise SystemExit"})
    published.commit = published.hub.repositories[REPO].branches["main"]
    published.fetch()
    asked = [request.path.rsplit("/", 1)[-1] for request in published.hub.requests]
    assert set(asked) == {"card.json", WEIGHTS}
    assert all("/resolve/" in request.path for request in published.hub.requests)
    assert sorted(path.name for path in published.cached().parent.iterdir()) == ["card.json", WEIGHTS]


def test_a_warm_cache_costs_no_request(published: Published) -> None:
    published.fetch()
    published.hub.requests.clear()
    published.fetch()
    load(published.ref, **published.options)
    published.fetch(published.registered)
    assert published.hub.requests == []


def test_the_client_still_understands_its_cache(published: Published) -> None:
    """What this package keeps lies beside the cache, not in it."""
    published.fetch()
    report = scan_cache_dir(published.cache)
    assert report.warnings == []
    assert [repo.repo_id for repo in report.repos] == [REPO]


@pytest.mark.parametrize("tail", ["", "@main", "@v1", "@{short}", "@refs/heads/main"])
def test_what_may_change_is_refused_unless_allowed(published: Published, tail: str) -> None:
    published.hub.tag(REPO, "v1", published.commit)
    ref = f"hf://{REPO}{tail.format(short=published.commit[:12])}"
    message = refused(UnpinnedError, ref, **published.options)
    assert message.startswith(f"{ref} names ")
    assert "name the commit, hf://org/tiny@<40 hex digits>, or allow it with allow_unpinned=True" in message
    assert published.hub.requests == []
    found = published.fetch(ref, allow_unpinned=True)
    assert found.reference == published.fetch().reference  # pinned from here on
    with pytest.raises(UnpinnedError):
        load(ref, **published.options)
    assert load(ref, allow_unpinned=True, **published.options).input_shape == (1, 2, 2)


def test_a_moved_tag_is_followed_only_as_what_it_is(published: Published) -> None:
    """A tag means what it means today; the commit that it meant when it was pinned stays what it was."""
    published.hub.tag(REPO, "v1", published.commit)
    before = published.fetch(f"hf://{REPO}@v1", allow_unpinned=True)
    moved = republish(published, version="2.0.0")
    published.hub.tag(REPO, "v1", moved.partition("@")[2])
    after = published.fetch(f"hf://{REPO}@v1", allow_unpinned=True)
    assert (before.card.version, after.card.version) == ("1.0.0", "2.0.0")
    assert published.fetch(before.reference) == before
    published.hub.stop()
    assert published.fetch(f"hf://{REPO}@v1", allow_unpinned=True, offline=True) == after  # what was seen last


def test_a_registered_model_needs_no_card_in_its_repository(published: Published) -> None:
    """As MONAI's bundles: the card comes with the package, the weights from others."""
    published.hub.commit(
        REPO, {"card.json": None, "models/model.safetensors": (published.folder / WEIGHTS).read_bytes()}
    )
    published.commit = published.hub.repositories[REPO].branches["main"]
    card = published.registered
    card = card.model_copy(update={"files": {"models/model.safetensors": card.files[WEIGHTS]}})
    found = published.fetch(card)
    assert found.card is card
    assert found.reference == published.ref
    assert found.files["models/model.safetensors"].read_bytes() == (published.folder / WEIGHTS).read_bytes()


def test_a_registered_model_is_fetched_when_it_is_not_installed(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = tmp_path / "zoo"
    (zoo / "tiny").mkdir(parents=True)
    (zoo / "tiny" / "card.json").write_text(published.registered.to_json())
    monkeypatch.setenv(ZOO_VARIABLE, str(zoo))
    expected = load(published.folder).predict(X)
    assert np.array_equal(load("tiny", **published.options).predict(X), expected)
    assert {request.method for request in published.hub.requests} == {"HEAD", "GET"}
    assert fetch("tiny", **published.options).reference == published.ref
    published.hub.requests.clear()
    shutil.copy(published.folder / WEIGHTS, zoo / "tiny")
    assert np.array_equal(load("tiny", cache_dir=tmp_path / "other").predict(X), expected)
    assert published.hub.requests == []
    assert fetch("tiny", **published.options).reference == "tiny"  # nothing to fetch


def test_a_card_without_repository_or_hash(published: Published) -> None:
    card = published.registered
    unpublished = card.model_copy(update={"hub": None})
    assert "the card of tiny names no repository on the Hub" in refused(HubError, unpublished, **published.options)
    branch = card.model_copy(update={"hub": published._entry(None)})
    assert refused(UnpinnedError, branch, **published.options).startswith("tiny names no revision, ")
    loose = card.model_copy(update={"files": {WEIGHTS: WeightFile(sha256=None, size=None)}})
    assert "the card of tiny gives no sha256 for model.safetensors" in refused(
        UnpinnedError, loose, **published.options
    )
    assert published.hub.requests == []
    found = published.fetch(loose, allow_unpinned=True)
    assert found.expected == card.files  # what was found, from now on fixed
    published.change_cached()
    message = refused(IntegrityError, loose, allow_unpinned=True, **published.options)
    assert "when first seen it had " in message


def test_a_card_in_a_repository_must_pin_its_files_too(published: Published) -> None:
    ref = republish(published, files={WEIGHTS: {"sha256": None, "size": None}})
    assert "the card of tiny gives no sha256 for model.safetensors" in refused(UnpinnedError, ref, **published.options)
    assert load(ref, allow_unpinned=True, **published.options).input_shape == (1, 2, 2)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", ".hidden", "a/../../b", "a//b", "a\\b", "card.json", "~", "a b", ""]
)
def test_a_card_cannot_name_files_outside_the_model(published: Published, name: str) -> None:
    card = json.loads((published.folder / "card.json").read_text())
    ref = republish(published, files={name: card["files"][WEIGHTS]})
    assert f"card.json of {REPO}@" in refused(ModelError, ref, **published.options)
    assert {request.path.rsplit("/", 1)[-1] for request in published.hub.requests} == {"card.json"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "line 1: not JSON"),
        (b'{"schema": 1, "schema": 2}', "given twice"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"[" * 100_000, "card.json of org/tiny@"),
        (b" " * ((1 << 20) + 1), "announces 1048577 bytes for card.json of org/tiny@"),
        (b"", "card.json of org/tiny@"),
    ],
)
def test_a_card_that_is_none(published: Published, data: bytes, message: str) -> None:
    commit = published.hub.commit(REPO, {"card.json": data})
    assert message in refused(ModelError, f"hf://{REPO}@{commit}", **published.options)


def test_the_hash_in_a_reference_is_checked(published: Published) -> None:
    pinned = published.fetch().reference
    assert published.fetch(pinned, force=True).reference == pinned
    wrong = f"{published.ref}#{'0' * 64}"
    message = refused(IntegrityError, wrong, **published.options)
    assert f"expected {'0' * 64}: refused before parsing" in message


def test_the_first_card_is_remembered_even_without_its_cache(published: Published) -> None:
    """A server that has another card for the same commit lies, now or then."""
    published.fetch()
    shutil.rmtree(published.cache)
    honest = (published.folder / "card.json").read_bytes()
    lie = honest.replace(b"Apache-2.0", b"Apache-2.1")
    published.hub.fault("wrong-bytes", "card.json", content=lie)
    message = refused(IntegrityError, published.ref, **published.options)
    assert hashlib.sha256(lie).hexdigest() in message
    assert f"when first seen it had {hashlib.sha256(honest).hexdigest()}" in message
    # The hash in a reference outweighs what was seen first, and is remembered in its place.
    shutil.rmtree(published.cache)
    published.fetch(f"{published.ref}#{hashlib.sha256(lie).hexdigest()}")
    assert published.fetch().card_bytes == lie


def test_a_record_that_cannot_be_read_or_written(published: Published, caplog: pytest.LogCaptureFixture) -> None:
    records = published.cache.with_name("cache.art-medical")
    records.write_text("in the way")
    published.fetch()
    assert "cannot keep the sha256 of card.json" in caplog.text
    records.unlink()
    published.fetch()
    (record,) = records.iterdir()
    content = json.loads(record.read_text())
    assert (content["repo"], content["revision"], content["file"]) == (REPO, published.commit, "card.json")
    record.write_text("{}")
    assert f"{record}, the record of card.json" in refused(IntegrityError, published.ref, **published.options)


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://huggingface.co",
        "http://10.0.0.1:8080",
        "http://127.0.0.1.example.org",
        "http://localhost.example.org",
        "ftp://127.0.0.1",
        "file:///etc",
        "127.0.0.1:80",
        "https://",
        "https://host:port",
        "//host",
        "http://[::1",
    ],
)
def test_an_endpoint_must_be_https(published: Published, endpoint: str) -> None:
    message = refused(HubError, published.ref, endpoint=endpoint, cache_dir=published.cache)
    assert message.startswith(f"the endpoint {endpoint!r} is ")
    assert not published.cache.exists()


def test_an_endpoint_of_this_machine_may_be_http(published: Published) -> None:
    endpoint = published.hub.endpoint.replace("127.0.0.1", "localhost") + "/"
    assert published.fetch(endpoint=endpoint).revision == published.commit


def test_the_token_is_used_and_not_sent_on(published: Published) -> None:
    published.hub.repositories[REPO].private = True
    published.hub.redirect = True
    assert "there is no org/tiny at http://127.0.0.1:" in refused(HubError, published.ref, **published.options)
    published.fetch(token=TOKEN)
    sent = {"authorization" in request.headers for request in published.hub.requests if "/cdn/" in request.path}
    assert sent == {False}


def test_offline_is_what_the_environment_says(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refused(HubError, published.ref, **published.options)
    assert "is not in the cache" in message
    assert f"run `art-medical zoo fetch {published.ref}` where there is one" in message
    published.fetch(offline=False)
    assert len(published.hub.requests) > 0
    monkeypatch.delenv("HF_HUB_OFFLINE")
    published.hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    published.fetch()
    assert published.hub.requests == []


def test_the_environment_of_the_client_counts(published: Published, tmp_path: Path) -> None:
    """As on the command line: endpoint, cache and offline from variables that the client reads at its import."""
    code = "import sys, art_medical.zoo.hub as h; f = h.fetch(sys.argv[1]);print(f.folder); print(*f.files.values())"
    environment = {**os.environ, "HF_ENDPOINT": published.hub.endpoint, "HF_HOME": str(tmp_path / "home")}

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, published.ref]
        return subprocess.run(command, cwd=ROOT, env=environment | more, capture_output=True, text=True)

    first = run()
    assert first.stdout.startswith(str(tmp_path / "home" / "hub" / "models--org--tiny")), first.stderr
    published.hub.requests.clear()
    assert run(HF_HUB_OFFLINE="1").stdout == first.stdout
    assert published.hub.requests == []


# Copies for machines without a network.


def test_copies_work_without_network(published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = write_model(tmp_path / "local", seed=3)
    made = fetch_to([published.ref, local], tmp_path / "usb", **published.options)
    assert made == (tmp_path / "usb" / "tiny", tmp_path / "usb" / "local")
    published.hub.stop()
    shutil.rmtree(published.cache)
    monkeypatch.setenv(ZOO_VARIABLE, str(tmp_path / "usb"))
    monkeypatch.setattr(registry, "_own_zoo", lambda: tmp_path / "none")
    assert art_medical.list_models() == ["local", "tiny"]
    assert np.array_equal(load("tiny").predict(X), load(published.folder).predict(X))
    assert np.array_equal(load("local").predict(X), load(local).predict(X))
    assert sorted(path.name for path in (tmp_path / "usb").iterdir()) == ["local", "tiny"]
    assert sorted(path.name for path in made[0].iterdir()) == ["card.json", WEIGHTS]
    assert not any(path.is_symlink() for path in made[0].iterdir())
    assert [finding for finding in verify_model(made[0]) if finding.severity == "error"] == []


def test_copies_are_replaced_only_by_force(published: Published, tmp_path: Path) -> None:
    (made,) = fetch_to([published.ref], tmp_path / "usb", **published.options)
    before = (made / WEIGHTS).stat()
    fetch_to([published.ref], tmp_path / "usb", **published.options)
    assert (made / WEIGHTS).stat().st_mtime_ns == before.st_mtime_ns  # untouched: it is the same
    (made / WEIGHTS).write_bytes(b"something else")
    with pytest.raises(ModelError, match=r"tiny exists and is not hf://.*; force=True \(--force\) replaces it"):
        fetch_to([published.ref], tmp_path / "usb", **published.options)
    fetch_to([published.ref], tmp_path / "usb", force=True, **published.options)
    assert (made / WEIGHTS).read_bytes() == (published.folder / WEIGHTS).read_bytes()
    assert [path.name for path in (tmp_path / "usb").iterdir()] == ["tiny"]


def test_two_models_of_one_name_are_not_mixed(published: Published, tmp_path: Path) -> None:
    other = republish(published, version="2.0.0")
    with pytest.raises(ModelError, match="two of the models to fetch are called 'tiny'"):
        fetch_to([published.ref, other], tmp_path / "usb", force=True, **published.options)


def test_a_signed_model_is_copied_with_what_is_signed(published: Published, tmp_path: Path) -> None:
    signature = {"file": "model.sig", "key_sha256": "0" * 64}
    ref = republish(published, {"model.sig": b"{}", "LICENSE": b"Apache-2.0", "evil.py": b"1/0"}, signature=signature)
    (made,) = fetch_to([ref], tmp_path / "usb", **published.options)
    assert sorted(path.name for path in made.iterdir()) == [
        "LICENSE",
        "README.md",
        "card.json",
        "model.safetensors",
        "model.sig",
    ]
    assert (made / "model.sig").read_bytes() == b"{}"
    published.hub.stop()
    (again,) = fetch_to([ref], tmp_path / "usb2", offline=True, **published.options)
    assert {path.name for path in again.iterdir()} == {path.name for path in made.iterdir()}


def test_a_damaged_source_leaves_no_copy(published: Published, tmp_path: Path) -> None:
    published.fetch()
    published.change_cached()
    with pytest.raises(IntegrityError, match="refused before parsing"):
        fetch_to([published.ref], tmp_path / "usb", **published.options)
    assert list((tmp_path / "usb").iterdir()) == []


def test_locating_checks_all_but_the_content(published: Published) -> None:
    found = locate(published.ref, **published.options)
    published.change_cached()
    assert locate(published.ref, **published.options) == found
    assert "refused before parsing" in refused(IntegrityError, published.ref, **published.options)


def test_the_hub_is_imported_only_when_it_is_needed() -> None:
    code = "import sys, art_medical.zoo.registry, art_medical.cli; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_hashing_needs_no_memory(published: Published, tmp_path: Path) -> None:
    """A file of 64 MB, of which no more than a few pieces are in memory at a time."""
    code = (
        "import sys, tracemalloc, pathlib; from art_medical.zoo.hub import check_file;"
        "from art_medical.zoo.cards import WeightFile; import hashlib;"
        "p = pathlib.Path(sys.argv[1]); n = p.stat().st_size;"
        "e = WeightFile(sha256=sys.argv[2], size=n); tracemalloc.start();"
        "check_file(p, e, 'x', 'y'); print(tracemalloc.get_traced_memory()[1])"
    )
    large = tmp_path / "large"
    block = bytes(1 << 20)
    digest = hashlib.sha256()
    with large.open("wb") as stream:
        for _ in range(64):
            stream.write(block)
            digest.update(block)
    command = [sys.executable, "-c", code, str(large), digest.hexdigest()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8 << 20
