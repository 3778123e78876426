# SPDX-License-Identifier: Apache-2.0
"""One connection of the loopback Hub below its endpoints: requests, answers, files, and the faults of all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from time import sleep  # by its name: a test may take the waiting out of the client
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qs, unquote

from tests.hub.repositories import Blob, Commit, Repository

if TYPE_CHECKING:
    from tests.hub.server import Fault, LoopbackHub

PIECE = 64 * 1024


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | headers


class Connection(BaseHTTPRequestHandler):
    """One connection; a subclass has the endpoints."""

    routes: ClassVar[Sequence[tuple[str, str, str]]]
    """Methods, pattern of the path, and name of the method here that answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    timeout = 60

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the log is ``hub.requests``."""

    @property
    def hub(self) -> LoopbackHub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def _answer(self) -> None:
        from tests.hub.server import Request

        path, _, query = self.path.partition("?")
        self.query = parse_qs(query)
        self.body = self._read_body()
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append(Request(self.command, self.path, headers))
        try:
            for methods, pattern, name in self.routes:
                found = re.fullmatch(pattern, path)
                if found and self.command in methods.split():
                    # Split before decoding: a revision may hold a slash as %2F.
                    parts = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                    if not self._struck(parts["path"] if name == "resolve" else unquote(path)):
                        getattr(self, name)(**parts)
                    return
            raise Refusal(404, f"no such endpoint: {self.command} {path}")
        except Refusal as refusal:
            self._send_json({"error": str(refusal)}, refusal.status, refusal.headers)

    def _struck(self, target: str) -> bool:
        """Whether a fault takes the place of any answer."""
        if self.hub.strikes("drop", target, self.command):
            self.close_connection = True
            return True
        if self.hub.strikes("unavailable", target, self.command):
            raise Refusal(503, "the Hub is down for maintenance")
        if self.hub.strikes("unauthorised", target, self.command):
            raise Refusal(401, "Invalid credentials in Authorization header")
        return False

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while length := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(length))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(pieces)

    def _json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise Refusal(400, f"not JSON: {error}") from error

    def _send_json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.wfile.flush()

    # Who may do what.

    def _knows_token(self) -> bool:
        from tests.hub.server import TOKEN

        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, repo: str, *, write: bool = False) -> Repository:
        found = self.hub.repositories.get(repo)
        if found is None or (found.private and not self._knows_token()):
            raise Refusal(404 if self._knows_token() else 401, "Repository not found", "RepoNotFound")
        if write:
            self._only_with_token()
        return found

    def _only_with_token(self) -> None:
        if not self._knows_token():
            raise Refusal(401, "Invalid username or password.")

    def _commit(self, repository: Repository, revision: str) -> Commit:
        found = repository.find(revision)
        if found is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    # Files.

    def _send_file(self, path: str, blob: Blob, headers: dict[str, str]) -> None:
        begin, end = self._range(blob.size)
        self.send_response(206 if (begin, end) != (0, blob.size) else 200)
        for name, value in {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}.items():
            self.send_header(name, value)
        if (begin, end) != (0, blob.size):
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{blob.size}")
        if self.command == "HEAD":
            self.send_header("Content-Length", str(end - begin))
            self.end_headers()
        else:
            self._send_content(path, blob, begin, end)
        self.wfile.flush()

    def _range(self, size: int) -> tuple[int, int]:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not found:
            return 0, size
        begin, end = int(found[1]), min(int(found[2]) + 1 if found[2] else size, size)
        if begin >= end:
            raise Refusal(416, f"range {found[0]} of {size} bytes", **{"Content-Range": f"bytes */{size}"})
        return begin, end

    def _send_content(self, path: str, blob: Blob, begin: int, end: int) -> None:
        """The body, with the faults of bodies."""
        strikes = self.hub.strikes
        wrong, slow = strikes("wrong-bytes", path, "GET"), strikes("slow", path, "GET")
        stop = end
        if strikes("short", path, "GET"):
            end = stop = max(begin, blob.size // 2)
        elif strikes("cut", path, "GET"):
            stop = max(begin, blob.size // 2)
            self.close_connection = True
        long = strikes("long", path, "GET")
        if long:
            self.close_connection = True
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(wrong.content) if wrong and wrong.content else end - begin))
        self.end_headers()
        for piece in _pieces(blob, begin, stop, wrong):
            if slow:
                self.wfile.flush()
                sleep(slow.seconds)
            self.wfile.write(piece)
        if long:
            self.wfile.write(b"x" * 1024)


def _pieces(blob: Blob, begin: int, end: int, wrong: Fault | None) -> Iterator[bytes]:
    if wrong and wrong.content is not None:
        yield wrong.content
        return
    with blob.bytes_at.open("rb") as stream:
        stream.seek(begin)
        while begin < end:
            piece = stream.read(min(PIECE, end - begin))
            begin += len(piece)
            if wrong and begin >= blob.size:
                piece = piece[:-1] + bytes([piece[-1] ^ 0xFF])
            yield piece
