# SPDX-License-Identifier: Apache-2.0
"""What every test stands on: no network, a home of its own, one thread, and the way to the real images."""

from __future__ import annotations

import atexit
import ipaddress
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]


def _isolate() -> None:
    """Give this process and its children a home, one thread and no way out; before anything imports ART or torch."""
    assert "art" not in sys.modules, "ART was imported before tests/conftest.py: it has already written into the home"
    home = tempfile.mkdtemp(prefix="art-medical-home-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    for name in ("HF_HOME", "MPLCONFIGDIR", "TORCH_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        os.environ.pop(name, None)
    os.environ.update(HOME=home, USERPROFILE=home, MPLBACKEND="Agg", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    # Child processes do not have the blocked sockets: their requests end at a port that nobody listens on.
    os.environ.update(http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9", no_proxy="127.0.0.1,localhost")


_isolate()

# The same examples in every run: what a run finds, the next one finds again.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


class NetworkError(RuntimeError):
    """A test tried to leave this machine."""


def _stays_here(host: Any) -> bool:
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _guard(name: str) -> Callable[..., Any]:
    original = getattr(socket.socket, name)

    def guarded(self: socket.socket, address: Any, *args: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _stays_here(address[0]):
            raise NetworkError(f"tests must not reach the network: {name} to {address!r}")
        return original(self, address, *args)

    return guarded


def pytest_configure(config: pytest.Config) -> None:
    """Block every connection and look-up but loopback, for collection as well as for the tests."""
    patch = pytest.MonkeyPatch()
    for name in ("connect", "connect_ex"):
        patch.setattr(socket.socket, name, _guard(name))
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _stays_here(host):
            raise NetworkError(f"tests must not reach the network: look-up of {host!r}")
        return look_up(host, *args, **kwargs)

    patch.setattr(socket, "getaddrinfo", getaddrinfo)
    config.add_cleanup(patch.undo)


def pytest_report_header() -> str:
    """Versions that a result depends on, read without importing anything."""
    names = ("adversarial-robustness-toolbox", "monai", "torch", "numpy", "pydicom")
    return ", ".join(f"{name} {version(name)}" for name in names)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what reads real images, so that ``-m "not data"`` leaves it out."""
    for item in items:
        if "data_dir" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.data)


@pytest.fixture(scope="session")
def data_dir() -> Callable[[str], Path]:
    """Folder of one set of real images, as in ``data_dir("cxr-kermany")``.

    The sets are in the folder that ``ART_MEDICAL_DATA`` names (a set that is absent there is a failure), else in
    ``../shared/data`` beside the checkout (a set that is absent there skips the test).
    """
    named = os.environ.get("ART_MEDICAL_DATA")
    base = Path(named) if named else ROOT.parent / "shared" / "data"

    def find(name: str) -> Path:
        if (base / name).is_dir():
            return base / name
        if named:
            pytest.fail(f"ART_MEDICAL_DATA is set, but the data set {name} is not in {base}")
        pytest.skip(f"the data set {name} is absent: put it into ../shared/data or set ART_MEDICAL_DATA")

    return find
