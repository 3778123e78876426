# SPDX-License-Identifier: Apache-2.0
"""Repositories of the loopback Hub: commits, branches and tags with the ids that git would give them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

LFS_PATTERNS = ("*.safetensors", "*.pt", "*.ts", "*.onnx", "*.bin")
AUTHOR = "loopback <loopback@localhost>"
FIRST_SECOND = 1_700_000_000
"""Time of the first commit of a repository; each further commit is one second later."""


def git_id(kind: str, data: bytes) -> str:
    """Name of a git object: sha1 of its kind, length and content."""
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """The text that git stores in the place of a file that is in Large File Storage."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass(frozen=True)
class Symlink:
    """A symbolic link in a commit, as git keeps it: a file of mode 120000 whose content is the target."""

    target: str


@dataclass(frozen=True)
class Blob:
    """One file of a commit; its bytes are in the store."""

    bytes_at: Path
    size: int
    sha256: str
    oid: str
    """Git id of the content, of the pointer file when ``lfs``."""
    lfs: bool
    mode: str = "100644"

    @property
    def etag(self) -> str:
        """By which the client names the file in its cache."""
        return self.sha256 if self.lfs else self.oid

    def entry(self, path: str) -> dict[str, Any]:
        """How the tree listing shows the file."""
        shown: dict[str, Any] = {"type": "file", "oid": self.oid, "size": self.size, "path": path}
        if self.lfs:
            size = len(pointer(self.sha256, self.size))
            shown["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": size}
        return shown


class Store:
    """Bytes by their sha256, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        return self.folder / sha256

    def add(self, content: bytes | Path | Symlink, *, lfs: bool) -> Blob:
        """Keep bytes, a copy of a file, or a link."""
        if isinstance(content, Path):
            sha256 = hashlib.sha256(content.read_bytes()).hexdigest()
            shutil.copyfile(content, self.path(sha256))
        else:
            data = content.target.encode() if isinstance(content, Symlink) else content
            sha256 = hashlib.sha256(data).hexdigest()
            self.path(sha256).write_bytes(data)
        if isinstance(content, Symlink):
            return self.blob(sha256, lfs=False, mode="120000")
        return self.blob(sha256, lfs=lfs)

    def blob(self, sha256: str, *, lfs: bool, mode: str = "100644") -> Blob:
        """Bytes that are in the store, as a file of a commit."""
        path = self.path(sha256)
        size = path.stat().st_size
        stored = pointer(sha256, size) if lfs else path.read_bytes()
        return Blob(path, size, sha256, git_id("blob", stored), lfs, mode)


@dataclass(frozen=True)
class Commit:
    """One revision: every file by its path."""

    id: str
    tree: str
    files: Mapping[str, Blob]
    folders: Mapping[str, str]
    """Git tree id of every folder by its path."""
    parent: str | None
    message: str


@dataclass
class Repository:
    """A model repository.

    :param name: ``owner/name``.
    :param private: Nobody sees it without the token.
    :param gated: Everybody sees it, nobody downloads from it without the token.
    """

    name: str
    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def commit(self, files: Mapping[str, Blob], message: str, branch: str = "main") -> Commit:
        """Put a new revision, which holds exactly ``files``, on a branch."""
        folders: dict[str, str] = {}
        tree = _write_tree(_nested(files), "", folders)
        parent = self.branches.get(branch)
        when = f"{AUTHOR} {FIRST_SECOND + len(self.commits)} +0000"
        lines = [f"tree {tree}", *([f"parent {parent}"] if parent else []), f"author {when}", f"committer {when}"]
        data = ("\n".join(lines) + f"\n\n{message}\n").encode()
        made = Commit(git_id("commit", data), tree, dict(files), folders, parent, message)
        self.commits[made.id] = made
        self.branches[branch] = made.id
        return made

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag, or a full or unique short commit id names."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        found = self.branches.get(name) or self.tags.get(name)
        if found is None and len(revision) >= 7:
            matches = [commit for commit in self.commits if commit.startswith(revision)]
            found = matches[0] if len(matches) == 1 else None
        return None if found is None else self.commits[found]


def is_lfs(path: str) -> bool:
    """Whether the Hub's usual ``.gitattributes`` sends a file to Large File Storage."""
    return any(fnmatch(path.rsplit("/", 1)[-1], pattern) for pattern in LFS_PATTERNS)


def _nested(files: Mapping[str, Blob]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for path, blob in files.items():
        *folders, name = path.split("/")
        level = root
        for folder in folders:
            level = level.setdefault(folder, {})
        level[name] = blob
    return root


def _write_tree(level: Mapping[str, Any], path: str, folders: dict[str, str]) -> str:
    """Git id of a folder; git sorts folders as if their names ended in a slash."""
    rows = []
    for name, value in level.items():
        if isinstance(value, Blob):
            rows.append((name.encode(), f"{value.mode} {name}\0".encode() + bytes.fromhex(value.oid)))
        else:
            inner = f"{path}/{name}" if path else name
            oid = _write_tree(value, inner, folders)
            folders[inner] = oid
            rows.append((name.encode() + b"/", f"40000 {name}\0".encode() + bytes.fromhex(oid)))
    return git_id("tree", b"".join(data for _, data in sorted(rows)))
