# SPDX-License-Identifier: Apache-2.0
"""The loopback Hub against the real client and against git: the other tests of this folder stand on it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.repositories import AUTHOR, FIRST_SECOND, pointer
from tests.hub.server import TOKEN, LoopbackHub, Symlink

ROOT = Path(__file__).resolve().parents[2]
README = "---\nlicense: apache-2.0\n---\n\n# A model\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "models").mkdir(parents=True)
    (folder / "README.md").write_text(README)
    (folder / "card.json").write_text("{}")
    (folder / "models" / "model.safetensors").write_bytes(bytes(range(256)) * 800)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_what_the_client_uploads_it_gets_back(
    hub: LoopbackHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    assert api.whoami()["name"] == "loopback"
    api.create_repo("org/model")
    api.create_repo("org/model", exist_ok=True)
    first = api.model_info("org/model").sha
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.endpoint)  # by which clients before 1.33 read the answer
        made = api.upload_folder(repo_id="org/model", folder_path=folder, commit_message="publish").oid
    api.create_tag("org/model", tag="v1", revision=made)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag("org/model", tag="v1")
    refs = api.list_repo_refs("org/model")
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", made)]
    assert [(branch.name, branch.target_commit) for branch in refs.branches] == [("main", made)]
    assert api.model_info("org/model").sha == api.model_info("org/model", revision=made[:8]).sha == made != first
    names = {".gitattributes", "README.md", "card.json", "models/model.safetensors"}
    assert set(api.list_repo_files("org/model")) == names
    assert api.list_repo_files("org/model", revision=first) == [".gitattributes"]
    assert [commit.commit_id for commit in api.list_repo_commits("org/model")] == [made, first]
    for number, revision in enumerate((made, "v1", "main")):
        got = snapshot_download("org/model", revision=revision, endpoint=hub.endpoint, cache_dir=tmp_path / str(number))
        assert Path(got).name == made
        assert {k: v for k, v in content(Path(got)).items() if k != ".gitattributes"} == content(folder)
    (info,) = api.get_paths_info("org/model", ["models/model.safetensors"], revision=made)
    assert info.lfs is not None
    assert info.lfs.sha256 == hashlib.sha256((folder / "models" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # the client's own use of httpx
def test_large_files_go_through_large_file_storage(
    hub: LoopbackHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub.lfs_uploads = True
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    api.create_repo("org/model", private=True)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        made = api.upload_folder(repo_id="org/model", folder_path=folder).oid
    assert [request.method for request in hub.requests if request.path.startswith("/lfs/")] == ["PUT"]
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.endpoint, token=False).model_info("org/model")
    got = hf_hub_download(
        "org/model",
        "models/model.safetensors",
        revision=made,
        endpoint=hub.endpoint,
        cache_dir=tmp_path / "cache",
        token=TOKEN,
    )
    assert Path(got).read_bytes() == (folder / "models" / "model.safetensors").read_bytes()
    hub.requests.clear()
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    api.upload_folder(repo_id="org/model", folder_path=folder)
    assert not [request for request in hub.requests if request.path.startswith("/lfs/")]


def test_writing_needs_the_token_and_a_path_inside(hub: LoopbackHub, folder: Path) -> None:
    stranger = HfApi(endpoint=hub.endpoint, token="hf_wrong")
    with pytest.raises(HfHubHTTPError, match="401"):
        stranger.create_repo("org/model")
    hub.commit("org/model", {"a": b"a"})
    with pytest.raises(HfHubHTTPError, match="401"):
        stranger.upload_folder(repo_id="org/model", folder_path=folder)
    with pytest.raises(HfHubHTTPError, match="412"):
        HfApi(endpoint=hub.endpoint, token=TOKEN).upload_file(
            repo_id="org/model", path_or_fileobj=b"", path_in_repo="b", parent_commit="0" * 40
        )


@pytest.mark.parametrize("redirect", [False, True])
def test_a_single_file_by_id_tag_and_branch(hub: LoopbackHub, tmp_path: Path, redirect: bool) -> None:
    hub.redirect = redirect
    old = hub.commit("org/model", {"sub/model.safetensors": b"old", "readme.txt": b"same"})
    new = hub.commit("org/model", {"sub/model.safetensors": b"new"})
    hub.tag("org/model", "v1", old)
    for revision, commit, data in (
        (old, old, b"old"),
        ("v1", old, b"old"),
        (new, new, b"new"),
        ("main", new, b"new"),
        (new[:7], new, b"new"),
    ):
        got = Path(
            hf_hub_download(
                "org/model",
                "sub/model.safetensors",
                revision=revision,
                endpoint=hub.endpoint,
                cache_dir=tmp_path / revision,
                token=TOKEN,
            )
        )
        assert got.read_bytes() == data
        assert got.parts[-3] == commit
        assert got.resolve().name == hashlib.sha256(data).hexdigest()
    on_cdn = [request for request in hub.requests if request.path.startswith("/cdn/")]
    assert bool(on_cdn) == redirect
    assert all("authorization" not in request.headers for request in on_cdn)  # not sent to another host


def test_a_full_commit_id_in_a_warm_cache_costs_no_request(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.commit("org/model", {"card.json": b"{}"})
    for _ in range(2):
        hf_hub_download("org/model", "card.json", revision=commit, endpoint=hub.endpoint, cache_dir=tmp_path)
        count = len(hub.requests)
    assert count == len(hub.requests) == 2
    assert [request.method for request in hub.requests] == ["HEAD", "GET"]


def test_what_is_missing_is_named(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.commit("org/model", {"card.json": b"{}"})
    hub.commit("org/gated", {"card.json": b"{}"})
    hub.repositories["org/gated"].gated = True
    for repo, file, revision, error in (
        ("org/none", "card.json", "main", RepositoryNotFoundError),
        ("org/gated", "card.json", "main", GatedRepoError),
        ("org/model", "card.json", "v9", RevisionNotFoundError),
        ("org/model", "card.json", "0" * 40, RevisionNotFoundError),
        ("org/model", "other.json", "main", EntryNotFoundError),
    ):
        with pytest.raises(error):
            hf_hub_download(repo, file, revision=revision, endpoint=hub.endpoint, cache_dir=tmp_path)


def test_pages_of_the_tree(hub: LoopbackHub) -> None:
    hub.page = 3
    hub.commit("org/model", {f"folder{n % 2}/{n}": b"x" for n in range(8)})
    api = HfApi(endpoint=hub.endpoint)
    paths = [entry.path for entry in api.list_repo_tree("org/model", recursive=True)]
    assert len(paths) == len(set(paths)) == 10
    assert [entry.path for entry in api.list_repo_tree("org/model")] == ["folder0", "folder1"]
    assert [entry.path for entry in api.list_repo_tree("org/model", "folder1")] == [
        f"folder1/{n}" for n in (1, 3, 5, 7)
    ]


def test_hostile_names_are_kept(hub: LoopbackHub) -> None:
    """The server does not protect the client."""
    hub.commit("org/model", {"../outside": b"x", "link": Symlink("/etc/passwd"), "a/../../b": b"y"})
    assert set(HfApi(endpoint=hub.endpoint).list_repo_files("org/model")) == {"../outside", "link", "a/../../b"}


def test_a_cut_connection_is_resumed(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    data = os.urandom(300_000)
    commit = hub.commit("org/model", {"model.safetensors": data})
    hub.fault("cut", "model.safetensors", times=1)
    for _ in range(2):  # clients before 1.33 give up at first, and go on when they are asked again
        with contextlib.suppress(Exception):
            got = hf_hub_download(
                "org/model", "model.safetensors", revision=commit, endpoint=hub.endpoint, cache_dir=tmp_path / "cache"
            )
    assert Path(got).read_bytes() == data
    ranges = [request.headers["range"] for request in hub.requests if "range" in request.headers]
    assert len(ranges) == 1
    assert 100_000 < int(ranges[0].removeprefix("bytes=").removesuffix("-")) <= 150_000


def test_the_client_believes_wrong_bytes(hub: LoopbackHub, tmp_path: Path) -> None:
    """Why this package hashes everything itself."""
    commit = hub.commit("org/model", {"model.safetensors": b"honest"})
    hub.fault("wrong-bytes", "model.safetensors")
    got = hf_hub_download("org/model", "model.safetensors", revision=commit, endpoint=hub.endpoint, cache_dir=tmp_path)
    assert Path(got).read_bytes() == b"hones" + bytes([ord("t") ^ 0xFF])
    assert Path(got).resolve().name == hashlib.sha256(b"honest").hexdigest()


def test_a_stopped_hub_answers_nobody(tmp_path: Path) -> None:
    hub = LoopbackHub(tmp_path / "hub")
    with hub:
        hub.commit("org/model", {"card.json": b"{}"})
        api = HfApi(endpoint=hub.endpoint)
        api.model_info("org/model")
        hub.stop()
        with pytest.raises(Exception, match=r"refused|disconnected|closed|reset"):
            api.model_info("org/model")


def test_an_unknown_fault_is_refused(hub: LoopbackHub) -> None:
    with pytest.raises(ValueError, match="unknown fault 'typo'"):
        hub.fault("typo")  # type: ignore[arg-type]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_ids_are_those_of_git(hub: LoopbackHub, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()

    def git(*arguments: str, seconds: int = 0) -> str:
        name, mail = AUTHOR.removesuffix(">").split(" <")
        who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in
               (("NAME", name), ("EMAIL", mail), ("DATE", f"{FIRST_SECOND + seconds} +0000"))}  # fmt: skip
        clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
        done = subprocess.run(
            ["git", *arguments], cwd=work, env=clean | who, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "--quiet", "--initial-branch=main")
    ids = []
    for number, files in enumerate(
        (
            {"a": b"1", "a.b/c": b"2", "a-b": b"3", "z/y/x.txt": b"4", "m.safetensors": b"weights"},
            {"a": b"changed", "link": Symlink("a")},
        )
    ):
        commit = hub.commit("org/model", files, message=f"commit {number}")
        for path, data in files.items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(data, Symlink):
                (work / path).symlink_to(data.target)
            else:
                stored = pointer(hashlib.sha256(data).hexdigest(), len(data)) if "safetensors" in path else data
                (work / path).write_bytes(stored)
        git("add", "--all")
        git("commit", "--quiet", "--message", f"commit {number}", seconds=number)
        assert git("rev-parse", "HEAD") == commit
        assert git("rev-parse", "HEAD^{tree}") == hub.repositories["org/model"].commits[commit].tree
        ids.append(commit)
    shown = {entry.path: entry for entry in HfApi(endpoint=hub.endpoint).list_repo_tree("org/model", recursive=True)}
    assert shown["a.b"].tree_id == git("rev-parse", "HEAD:a.b")
    for path in ("a", "a.b/c", "z/y/x.txt", "m.safetensors", "link"):
        assert shown[path].blob_id == git("rev-parse", f"HEAD:{path}")


def test_environment_variables_work_too(hub: LoopbackHub, tmp_path: Path) -> None:
    """As a program that is not ours would use it."""
    commit = hub.commit("org/model", {"card.json": b"{}"})
    code = "from huggingface_hub import hf_hub_download as d; print(d('org/model', 'card.json'))"
    child = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"snapshots/{commit}/card.json" in child.stdout
