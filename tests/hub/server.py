# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face Hub on the loopback interface: what the client asks for, what it uploads, and every kind of fault.

    with LoopbackHub(tmp_path / "hub") as hub:
        commit = hub.commit("org/model", {"card.json": b"{}", "model.safetensors": data})
        hf_hub_download("org/model", "card.json", revision=commit, endpoint=hub.endpoint, cache_dir=...)

Standard library only. It stands for the real Hub as far as the client can tell: ids are git's, files of Large File
Storage are announced by their sha256, several revisions are kept, a request is answered over a kept connection.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import ThreadingHTTPServer
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Literal, get_args

from tests.hub.handler import Handler
from tests.hub.repositories import Blob, Repository, Store, Symlink, is_lfs

TOKEN = "hf_loopback"
"""What a client must present to write, or to read what is private or gated."""

Kind = Literal[
    "unavailable",  # 503
    "unauthorised",  # 401
    "drop",  # the connection is closed without an answer
    "wrong-bytes",  # same length (or ``content``), everything else honest
    "short",  # announces and sends half of the file, although HEAD said all of it
    "cut",  # announces the whole file, closes the connection at the middle
    "long",  # sends the file and 1 KiB more, without announcing a length
    "slow",  # waits ``seconds`` before each 64 KiB
    "wrong-etag",
    "wrong-size",  # HEAD announces one byte more
    "wrong-commit",  # the answer names another commit than the one asked for
    "no-commit",  # the answer names no commit at all
]


@dataclass
class Fault:
    """One fault: where it strikes and how often.

    :param path: Shell pattern of the file's path in the repository; for other requests, of the URL's path.
    :param method: ``HEAD``, ``GET``, ... or ``*``.
    :param times: How often, ``None`` for always.
    :param content: What ``wrong-bytes`` sends in place of the file with its last byte inverted.
    :param seconds: Of ``slow``.
    """

    kind: Kind
    path: str = "*"
    method: str = "*"
    times: int | None = None
    content: bytes | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Request:
    """One request as it came in; names of headers are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class LoopbackHub:
    """The server, which runs in threads of its own from ``with`` to the end of the block or :meth:`stop`.

    :param root: Folder for the bytes of the repositories.
    :param lfs_uploads: Ask for large files by Large File Storage. A client with ``hf_xet`` would then look for a Xet
        server, so set ``HF_HUB_DISABLE_XET=1`` before it is imported; without it all uploads are part of the commit.
    :param redirect: Answer requests for LFS files as the real Hub does, by a redirect to another host.
    :param page: Entries of one page of a tree listing.
    """

    root: Path
    lfs_uploads: bool = False
    redirect: bool = False
    page: int = 1000
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = Store(self.root)
        self.lock = threading.RLock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> LoopbackHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self.errors:
            raise AssertionError("the loopback Hub itself failed") from self.errors[0]

    def stop(self) -> None:
        """Go away: nobody listens any more and kept connections are closed."""
        self._server.stop()

    def commit(
        self,
        repo: str,
        files: Mapping[str, bytes | Path | Symlink | None],
        *,
        branch: str = "main",
        message: str = "a commit",
    ) -> str:
        """Publish a revision without the client: ``files`` on top of what the branch holds, ``None`` removes one.

        Any name is taken, also one that the real Hub would refuse, such as ``../outside``.

        :return: The commit id.
        """
        with self.lock:
            repository = self.repositories.setdefault(repo, Repository(repo))
            head = repository.find(branch)
            content: dict[str, Blob] = dict(head.files) if head else {}
            for path, data in files.items():
                content.pop(path, None)
                if data is not None:
                    content[path] = self.store.add(data, lfs=is_lfs(path))
            return repository.commit(content, message, branch).id

    def tag(self, repo: str, name: str, commit: str) -> None:
        """Set a tag, also one that was somewhere else before."""
        self.repositories[repo].tags[name] = commit

    def fault(
        self,
        kind: Kind,
        path: str = "*",
        *,
        method: str = "*",
        times: int | None = None,
        content: bytes | None = None,
        seconds: float = 0.0,
    ) -> None:
        """Answer wrongly from now on; see :class:`Fault`."""
        if kind not in get_args(Kind):
            raise ValueError(f"unknown fault {kind!r}; choose from {', '.join(get_args(Kind))}")
        self.faults.append(Fault(kind, path, method, times, content, seconds))

    def strikes(self, kind: Kind, target: str, method: str) -> Fault | None:
        """The fault of this kind that concerns a request, and count it."""
        with self.lock:
            for fault in self.faults:
                if fault.kind != kind or fault.times == 0:
                    continue
                if fnmatch(target, fault.path) and fnmatch(method, fault.method):
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    """Knows its connections, so that it can close them: a client keeps them open otherwise."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: LoopbackHub) -> None:
        self.hub = hub
        self._connections: set[socket.socket] = set()
        self._stopped = False
        super().__init__(("127.0.0.1", 0), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, ConnectionError):
            self.hub.errors.append(error)

    def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):  # it may be gone already
                connection.shutdown(socket.SHUT_RDWR)


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until something that another thread or process does has happened."""
    end = monotonic() + seconds
    while not condition():
        if monotonic() > end:
            raise TimeoutError(f"it did not happen within {seconds} s")
        sleep(0.01)


__all__ = ["TOKEN", "Fault", "LoopbackHub", "Request", "Symlink", "wait_for"]
