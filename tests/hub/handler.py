# SPDX-License-Identifier: Apache-2.0
"""What the loopback Hub answers: one method per endpoint, as the client of huggingface_hub 0.36 to 2.x calls them."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any
from urllib.parse import parse_qs

from tests.hub.connection import Connection, Refusal
from tests.hub.repositories import Blob, Commit, Repository, is_lfs

_MODEL = r"/api/models/(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    ("POST", r"/api/repos/create", "create_repo"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("GET", r"/api/whoami-v2", "whoami"),
    ("GET", rf"{_MODEL}(?:/revision/(?P<rev>[^/]+))?", "model_info"),
    ("GET", rf"{_MODEL}/tree/(?P<rev>[^/]+)(?:/(?P<path>.*))?", "tree"),
    ("GET", rf"{_MODEL}/refs", "refs"),
    ("GET", rf"{_MODEL}/commits/(?P<rev>[^/]+)", "commits"),
    ("POST", rf"{_MODEL}/paths-info/(?P<rev>[^/]+)", "paths_info"),
    ("POST", rf"{_MODEL}/preupload/(?P<rev>[^/]+)", "preupload"),
    ("POST", rf"{_MODEL}/commit/(?P<rev>[^/]+)", "commit"),
    ("POST", rf"{_MODEL}/tag/(?P<rev>[^/]+)", "create_tag"),
    ("DELETE", rf"{_MODEL}/tag/(?P<tag>[^/]+)", "delete_tag"),
    ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
    ("HEAD GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    ("HEAD GET", r"/cdn/(?P<oid>[0-9a-f]{64})", "cdn"),
]


class Handler(Connection):
    """The endpoints."""

    routes = ROUTES

    # Reading.

    def whoami(self) -> None:
        self._only_with_token()
        self._send_json({"type": "user", "name": "loopback", "fullname": "Loopback", "orgs": [], "auth": {}})

    def model_info(self, repo: str, rev: str = "main") -> None:
        repository = self._repository(repo)
        commit = self._commit(repository, rev)
        blobs = "blobs" in self.query
        siblings = []
        for path, blob in sorted(commit.files.items()):
            more = {"size": blob.size, "blobId": blob.oid} if blobs else {}
            if blobs and blob.lfs:
                entry = blob.entry(path)["lfs"]
                more["lfs"] = {"sha256": entry["oid"], "size": blob.size, "pointerSize": entry["pointerSize"]}
            siblings.append({"rfilename": path, **more})
        self._send_json(
            {
                "_id": commit.id[:24],
                "id": repo,
                "modelId": repo,
                "author": repo.split("/")[0],
                "sha": commit.id,
                "private": repository.private,
                "gated": "manual" if repository.gated else False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "lastModified": "2026-11-01T00:00:00.000Z",
                "createdAt": "2026-11-01T00:00:00.000Z",
                "siblings": siblings,
            }
        )

    def tree(self, repo: str, rev: str, path: str = "") -> None:
        commit = self._commit(self._repository(repo), rev)
        inside = f"{path}/" if path else ""
        deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        rows = [
            row
            for row in _listing(commit)
            if row["path"].startswith(inside) and (deep or "/" not in row["path"][len(inside) :])
        ]
        if path and not rows:
            raise Refusal(404, f"{path} does not exist on {rev}", "EntryNotFound")
        start = int(self.query.get("cursor", ["0"])[0])
        headers = {}
        if start + self.hub.page < len(rows):
            flag = f"recursive={str(deep).lower()}"
            here = self.path.partition("?")[0]
            headers["Link"] = f'<{self.hub.endpoint}{here}?{flag}&cursor={start + self.hub.page}>; rel="next"'
        self._send_json(rows[start : start + self.hub.page], headers=headers)

    def paths_info(self, repo: str, rev: str) -> None:
        commit = self._commit(self._repository(repo), rev)
        form = self.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded")
        wanted = parse_qs(self.body.decode()).get("paths", []) if form else self._json()["paths"]
        self._send_json([row for row in _listing(commit) if row["path"] in wanted])

    def refs(self, repo: str) -> None:
        repository = self._repository(repo)
        shown = {
            kind: [{"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": c} for name, c in names.items()]
            for kind, folder, names in (
                ("branches", "heads", repository.branches),
                ("tags", "tags", repository.tags),
            )
        }
        self._send_json({**shown, "converts": []})

    def commits(self, repo: str, rev: str) -> None:
        repository = self._repository(repo)
        commit: Commit | None = self._commit(repository, rev)
        rows = []
        while commit is not None:
            shown = {"id": commit.id, "title": commit.message, "message": "", "authors": [{"user": "loopback"}]}
            rows.append({**shown, "date": "2026-11-01T00:00:00.000Z"})
            commit = repository.commits[commit.parent] if commit.parent else None
        self._send_json(rows)

    def resolve(self, repo: str, rev: str, path: str) -> None:
        repository = self._repository(repo)
        if repository.gated and not self._knows_token():
            raise Refusal(403, f"Access to model {repo} is restricted", "GatedRepo")
        commit = self._commit(repository, rev)
        blob = commit.files.get(path)
        if blob is None:
            raise Refusal(404, f"{path} does not exist on {rev}", "EntryNotFound", **{"X-Repo-Commit": commit.id})
        headers = {"X-Repo-Commit": commit.id, "ETag": f'"{blob.oid}"'}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        self._lie_about(path, headers, blob)
        if self.hub.redirect and blob.lfs:
            location = f"http://localhost:{self.hub.port}/cdn/{blob.sha256}"
            self._send_json({}, 302, headers | {"Location": location})
        else:
            self._send_file(path, blob, headers)

    def _lie_about(self, path: str, headers: dict[str, str], blob: Blob) -> None:
        """Faults of the headers."""
        if self.hub.strikes("wrong-etag", path, self.command):
            headers |= {"ETag": '"' + "e" * 40 + '"'} | ({"X-Linked-Etag": '"' + "e" * 64 + '"'} if blob.lfs else {})
        if self.hub.strikes("wrong-size", path, self.command):
            headers["X-Linked-Size"] = str(blob.size + 1)
        if self.hub.strikes("wrong-commit", path, self.command):
            headers["X-Repo-Commit"] = "c" * 40
        if self.hub.strikes("no-commit", path, self.command):
            del headers["X-Repo-Commit"]

    def cdn(self, oid: str) -> None:
        blob = self.hub.store.blob(oid, lfs=True)
        self._send_file(oid, blob, {"ETag": f'"{oid}"'})

    # Writing.

    def validate_yaml(self) -> None:
        content = self._json()["content"]
        front = content.startswith("---\n") and "\n---" in content[4:]
        warnings = [] if front else [{"message": "empty or missing yaml metadata in repo card"}]
        self._send_json({"errors": [], "warnings": warnings})

    def create_repo(self) -> None:
        self._only_with_token()
        asked = self._json()
        name = f"{asked.get('organization') or 'loopback'}/{asked['name']}"
        answer = {"url": f"{self.hub.endpoint}/{name}", "name": name}
        with self.hub.lock:
            if name in self.hub.repositories:
                self._send_json({**answer, "error": "You already created this model repo"}, 409)
                return
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            repository = self.hub.repositories[name] = Repository(name, private=private)
            attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
            repository.commit({".gitattributes": self.hub.store.add(attributes, lfs=False)}, "initial commit")
        self._send_json(answer)

    def preupload(self, repo: str, rev: str) -> None:
        commit = self._repository(repo, write=True).find(rev)
        rows = []
        for asked in self._json()["files"]:
            lfs = self.hub.lfs_uploads and is_lfs(asked["path"])
            old = commit.files.get(asked["path"]) if commit else None
            row = {"path": asked["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            rows.append(row | ({"oid": old.etag} if old and old.lfs == lfs else {}))
        self._send_json({"files": rows})

    def lfs_batch(self, repo: str) -> None:
        self._repository(repo, write=True)
        objects = []
        for asked in self._json()["objects"]:
            known = self.hub.store.path(asked["oid"]).is_file()
            href = {"href": f"{self.hub.endpoint}/lfs/{asked['oid']}"}
            objects.append({**asked, **({} if known else {"actions": {"upload": href}})})
        self._send_json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if self.hub.store.add(self.body, lfs=True).sha256 != oid:
            raise Refusal(400, "the content does not have the announced sha256")
        self._send_json({})

    def commit(self, repo: str, rev: str) -> None:
        repository = self._repository(repo, write=True)
        with self.hub.lock:
            head = repository.find(rev)
            files = dict(head.files) if head else {}
            message = "a commit"
            for line in self.body.splitlines():
                row = json.loads(line)
                if row["key"] == "header":
                    message = row["value"]["summary"]
                    parent = row["value"].get("parentCommit")
                    if parent is not None and (head is None or parent != head.id):
                        raise Refusal(412, "The expected parent commit is not the head of the branch")
                else:
                    self._change(files, row["key"], row["value"])
            made = repository.commit(files, message, rev)
        url = f"{self.hub.endpoint}/{repo}/commit/{made.id}"
        self._send_json({"success": True, "commitUrl": url, "commitOid": made.id, "hookOutput": ""})

    def _change(self, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if path.startswith("/") or any(part in ("", ".", "..", ".git") for part in path.rstrip("/").split("/")):
            raise Refusal(400, f"invalid path {path!r}")
        if key == "file":
            try:
                data = base64.b64decode(value["content"], validate=True)
            except binascii.Error as error:
                raise Refusal(400, f"{path}: {error}") from error
            files[path] = self.hub.store.add(data, lfs=is_lfs(path))
        elif key == "lfsFile":
            if not self.hub.store.path(value["oid"]).is_file():
                raise Refusal(400, f"{path}: LFS object {value['oid']} was not uploaded")
            files[path] = self.hub.store.blob(value["oid"], lfs=True)
        elif key == "deletedFile":
            files.pop(path, None)
        elif key == "deletedFolder":
            for name in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
                del files[name]
        else:
            raise Refusal(400, f"unknown operation {key!r}")

    def create_tag(self, repo: str, rev: str) -> None:
        repository = self._repository(repo, write=True)
        commit = self._commit(repository, rev)
        name = self._json()["tag"]
        if name in repository.tags:
            raise Refusal(409, f"Tag {name} already exists")
        repository.tags[name] = commit.id
        self._send_json({})

    def delete_tag(self, repo: str, tag: str) -> None:
        if self._repository(repo, write=True).tags.pop(tag, None) is None:
            raise Refusal(404, f"Invalid rev id: {tag}", "RevisionNotFound")
        self._send_json({})


def _listing(commit: Commit) -> list[dict[str, Any]]:
    """Files and folders of a commit, as the tree endpoint shows them."""
    rows = [blob.entry(path) for path, blob in commit.files.items()]
    rows += [{"type": "directory", "oid": oid, "size": 0, "path": path} for path, oid in commit.folders.items()]
    return sorted(rows, key=lambda row: str(row["path"]))
