# SPDX-License-Identifier: Apache-2.0
"""The canary: an audit hook (PEP 578) that notes everything that no loader has a reason to do, while it is watching."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import art_medical

TRUSTED = tuple(
    str(Path(folder).resolve()) + os.sep
    for folder in {
        *sysconfig.get_paths().values(),
        *site.getsitepackages(),
        *(str(Path(module.__file__ or "").parent) for module in (os, art_medical)),
    }
)
"""Where code may come from: Python, what is installed, and this package."""

NEVER = {
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "os.putenv",
    "os.unsetenv",
    "subprocess.Popen",
    "pty.spawn",
    "pickle.find_class",
    "builtins.input",
    "webbrowser.open",
    "socket.bind",
    "shutil.rmtree",
    "urllib.Request",
}
"""Nothing that is loaded needs these; torch's reader of state dicts looks no name up by ``pickle.find_class``."""

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate"}


@dataclass
class Watch:
    """What is allowed while a model is loaded, and what happened that is not.

    :param writable: Folder below which files may be written: the cache, and where a model is copied to.
    :param secret: File outside of every model, which nobody may open.
    :param port: Of the loopback Hub, 0 for none.
    """

    writable: Path
    secret: Path
    port: int = 0
    alarms: list[str] = field(default_factory=list)

    def sees(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note an event if it is one of those that must not happen."""
        if event in NEVER:
            # rmtree is how a draft of a copy is removed
            if not (event == "shutil.rmtree" and self._may_write(arguments[0])):
                self._alarm(event, arguments)
        elif event in ("exec", "compile"):
            code = arguments[0] if event == "exec" else None
            file = str(getattr(code, "co_filename", "") if event == "exec" else arguments[1])
            if not file.startswith(TRUSTED) and not file.startswith("<frozen "):
                self._alarm(event, (file,))
        elif event == "import":
            if arguments[1] is not None and not str(arguments[1]).startswith(TRUSTED):
                self._alarm(event, arguments[:2])
        elif event == "open":
            path, mode, flags = arguments
            self._opened(path, mode, flags or 0)
        elif event in _CHANGES:
            if not all(self._may_write(path) for path in _changed(event, arguments)):
                self._alarm(event, arguments)
        elif event == "socket.connect":
            address = arguments[1]
            if not (isinstance(address, tuple) and address[0] in ("127.0.0.1", "::1") and address[1] == self.port):
                self._alarm(event, (address,))

    def _opened(self, path: Any, mode: Any, flags: int) -> None:
        if isinstance(path, int):
            return
        writes = bool(flags & _WRITES) or (isinstance(mode, str) and bool(set(mode) & set("wax+")))
        if not flags & getattr(os, "O_NOFOLLOW", 0) and os.path.realpath(os.fsdecode(path)) == str(self.secret):
            self._alarm("open of the secret", (path,))
        if writes and not self._may_write(path):
            self._alarm("open to write", (path,))

    def _may_write(self, path: Any) -> bool:
        if isinstance(path, int):
            return True
        full = os.path.realpath(os.fsdecode(path))
        return full == os.devnull or Path(full).is_relative_to(self.writable)

    def _alarm(self, event: str, arguments: tuple[Any, ...]) -> None:
        self.alarms.append(f"{event} {arguments!r}"[:300])


def _changed(event: str, arguments: tuple[Any, ...]) -> list[str]:
    """Paths that an event is about to change; names relative to an open folder are completed."""
    names = {"os.rename": (0, 1), "os.symlink": (1,), "os.link": (1,)}.get(event, (0,))
    folder = arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
    start = f"/proc/self/fd/{folder}" if isinstance(folder, int) and folder >= 0 else ""
    return [os.path.join(start, os.fsdecode(p)) for p in (arguments[n] for n in names) if not isinstance(p, int)]


_watching: list[Watch] = []
_installed: list[bool] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching or threading.current_thread() is not threading.main_thread():
        return  # the loopback Hub has threads of its own
    watch = _watching.pop()  # looking at an event may cause others
    try:
        watch.sees(event, arguments)
    finally:
        _watching.append(watch)


@contextmanager
def watching(writable: Path, secret: Path, port: int = 0) -> Iterator[Watch]:
    """Watch the main thread; a payload runs there, since it has to start somewhere."""
    if not _installed:  # an audit hook stays for good
        sys.addaudithook(_hook)
        _installed.append(True)
    watch = Watch(writable.resolve(), secret.resolve(), port)
    tempfile.gettempdir()  # tries the folder out the first time
    _watching.append(watch)
    try:
        yield watch
    finally:
        _watching.clear()
