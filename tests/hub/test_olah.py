# SPDX-License-Identifier: Apache-2.0
"""An independent server, olah, hands out a git repository: the real ids of git, the same logits to the last bit."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import art_medical
from art_medical.errors import HubError, UnpinnedError
from art_medical.zoo.cards import read_card
from art_medical.zoo.hub import fetch
from art_medical.zoo.model_card import model_card
from tests.hub.server import wait_for
from tests.zoo.models import RESNET, write_model

PATHS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
OLAH, GIT = shutil.which("olah-cli", path=PATHS), shutil.which("git")
pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(OLAH is None, reason="needs the server olah-cli (package olah)"),
    pytest.mark.skipif(GIT is None, reason="needs git"),
]

CONFIG = """
[basic]
host = "127.0.0.1"
port = {port}
ssl-key = ""
ssl-cert = ""
repos-path = "{scratch}"
hf-scheme = "http"
hf-netloc = "127.0.0.1:9"
hf-lfs-netloc = "127.0.0.1:9"
mirror-scheme = "http"
mirror-netloc = "127.0.0.1:{port}"
mirror-lfs-netloc = "127.0.0.1:{port}"
mirrors-path = ["{mirrors}"]

[accessibility]
offline = true
"""
REPO = "org/tiny"


def git(folder: Path, *arguments: str) -> str:
    assert GIT is not None
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost", "-c", "commit.gpgsign=false"]
    command = [GIT, "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git checkout with a model of two versions; the second has other weights."""
    folder = tmp_path_factory.mktemp("mirrors") / "models" / REPO
    for seed in (1, 2):
        shape = {"shape": [1, 32, 32]}
        write_model(folder, target="ResNet", args=RESNET, input=shape, seed=seed, version=f"{seed}.0.0")
        (folder / "README.md").write_text(model_card(read_card(folder)), encoding="utf-8")
        if seed == 1:
            git(folder.parent, "init", "--quiet", "--initial-branch=main", folder.name)
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "--message", f"version {seed}")
        git(folder, "tag", f"v{seed}")
    return folder


@pytest.fixture(scope="module")
def endpoint(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """olah serving the checkout; it knows no other Hub."""
    scratch = tmp_path_factory.mktemp("olah")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (scratch / "olah.toml").write_text(CONFIG.format(port=port, scratch=scratch / "cache", mirrors=mirror.parents[2]))
    with (scratch / "log").open("wb") as log:
        command = [str(OLAH), "-c", str(scratch / "olah.toml")]
        server = subprocess.Popen(command, cwd=scratch, stdout=log, stderr=subprocess.STDOUT)

    def answers() -> bool:
        assert server.poll() is None, (scratch / "log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(answers, seconds=60)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=20)


def logits(classifier: art_medical.MedicalClassifier) -> np.ndarray:
    x = np.random.default_rng(0).integers(0, 256, (4, 1, 32, 32)).astype(np.float32)
    return classifier.predict(x)


def test_a_model_from_olah_is_the_model_on_disk(mirror: Path, endpoint: str, tmp_path: Path) -> None:
    commit = git(mirror, "rev-parse", "HEAD")
    found = art_medical.load(f"hf://{REPO}@{commit}", endpoint=endpoint, cache_dir=tmp_path)
    assert np.array_equal(logits(found), logits(art_medical.load(mirror)))


def test_an_older_commit_gives_the_older_weights(mirror: Path, endpoint: str, tmp_path: Path) -> None:
    first = git(mirror, "rev-parse", "v1")
    found = art_medical.load(f"hf://{REPO}@{first}", endpoint=endpoint, cache_dir=tmp_path / "cache")
    git(mirror, "worktree", "add", "--quiet", str(tmp_path / "first"), "v1")
    assert np.array_equal(logits(found), logits(art_medical.load(tmp_path / "first")))
    assert not np.array_equal(logits(found), logits(art_medical.load(mirror)))


def test_a_tag_is_resolved_to_the_id_that_git_gives(mirror: Path, endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(UnpinnedError):
        fetch(f"hf://{REPO}@v1", endpoint=endpoint, cache_dir=tmp_path, offline=False, allow_unpinned=False)
    found = fetch(f"hf://{REPO}@v1", endpoint=endpoint, cache_dir=tmp_path, offline=False, allow_unpinned=True)
    assert found.revision == git(mirror, "rev-parse", "v1")
    assert found.card_bytes == git_file(mirror, "v1", "card.json")


def git_file(folder: Path, revision: str, name: str) -> bytes:
    assert GIT is not None
    command = [GIT, "-C", str(folder), "show", f"{revision}:{name}"]
    return subprocess.run(command, check=True, capture_output=True, timeout=30).stdout


@pytest.mark.usefixtures("no_waiting")  # olah answers 500 for a commit that it does not have, and 0.36 tries again
def test_what_olah_does_not_have(endpoint: str, tmp_path: Path) -> None:
    for revision in (f"{REPO}@{'0' * 40}", f"org/other@{'0' * 40}"):
        with pytest.raises(HubError) as caught:
            art_medical.load(f"hf://{revision}", endpoint=endpoint, cache_dir=tmp_path)
        assert type(caught.value) is not UnpinnedError
        assert revision.split("@")[0] in str(caught.value)
        assert str(caught.value).isprintable()
    assert not list(tmp_path.rglob("card.json"))
