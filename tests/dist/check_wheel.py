# SPDX-License-Identifier: Apache-2.0
"""Run by ``tox -e dist``: the wheel holds what it should, and does the main job alone, without a network.

The interpreter that runs this has the wheel and what the wheel declares, and no test tools: only the standard library
and ``packaging`` may be imported here. The working folder is not the checkout.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SEED = {"pip", "setuptools", "wheel"}
SECONDS, BYTES = 120, 2 * 10**9  # the budget of the main job on two cores
BLOCKED = """import socket
def _blocked(*args, **kwargs):
    raise RuntimeError("no network here")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = _blocked
"""


def check(holds: bool, message: str) -> None:
    if not holds:
        sys.exit(f"check_wheel: {message}")


def expected_files() -> set[str]:
    """What the wheel should hold besides its metadata, read off the checkout."""
    package = [p for p in (ROOT / "art_medical").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    patterns = ("*.py", "*/card.json", "phantom-*/*.safetensors")
    zoo = [path for pattern in patterns for path in (ROOT / "zoo").glob(pattern)]
    return {str(p.relative_to(ROOT)) for p in package} | {f"art_medical/_{p.relative_to(ROOT)}" for p in zoo}


def check_contents(wheel: Path) -> None:
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    check(found == expected_files(), f"missing {expected_files() - found}, too many {found - expected_files()}")
    print(f"{wheel.name}: {len(found)} files, {wheel.stat().st_size / 1e6:.2f} MB")


def check_alone() -> None:
    """Nothing is installed that the wheel does not ask for, directly or not."""
    needed, queue = set(SEED), ["art-medical"]
    installed = {canonicalize_name(d.metadata["Name"]) for d in distributions()}
    while queue:
        name = canonicalize_name(queue.pop())
        if name in installed and name not in needed - SEED:
            needed.add(name)
            wanted = [Requirement(text) for text in distribution(name).requires or ()]
            queue += [r.name for r in wanted if not r.marker or r.marker.evaluate({"extra": ""})]
    check(installed <= needed, f"not declared, yet installed: {sorted(installed - needed)}")


def unplugged(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Prefix and environment for a command without a network: an empty network namespace, else blocked sockets."""
    keep = {name: os.environ[name] for name in ("LANG", "SYSTEMROOT", "TMPDIR") if name in os.environ}
    environment = {**keep, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}", "HOME": str(folder)}
    for prefix in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        if shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return prefix, environment
    (folder / "sitecustomize.py").write_text(BLOCKED)
    return [], {**environment, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}


def run(folder: Path, *command: str) -> float:
    """Seconds that a command took; what it prints goes through."""
    prefix, environment = unplugged(folder)
    start = time.monotonic()
    done = subprocess.run([*prefix, *command], cwd=folder, env=environment, timeout=10 * SECONDS)
    check(done.returncode == 0, f"{' '.join(command)} returned {done.returncode}")
    return time.monotonic() - start


def figures(metrics: dict[str, Any]) -> Iterator[tuple[str, float, float, float]]:
    for name, metric in metrics.items():
        yield name, metric["value"], metric["low"], metric["high"]


def check_results(path: Path) -> None:
    results = json.loads(path.read_text(encoding="utf-8"))
    check(results["schema"] == "art-medical/results@1", f"schema {results['schema']!r}")
    attacks = {cell["attack"] for cell in results["cells"]}
    check("clean" in attacks and len(attacks) > 1, f"attacks in the results: {sorted(attacks)}")
    check(bool(results["provenance"]), "no provenance")
    for cell in results["cells"]:
        check(cell["n"] > 0 and bool(cell["metrics"]), f"cell {cell['id']} is empty")
        for name, value, low, high in figures(cell["metrics"]):
            check(math.isfinite(value) and low <= value <= high, f"{cell['id']} {name}: {low}, {value}, {high}")


def check_report(path: Path) -> None:
    remote = re.findall(
        r"""(?:src|srcset|action)\s*=\s*["']?(?!data:)[^"'>\s]+|@import|url\((?!["']?(?:data:|#))""", path.read_text()
    )
    remote += re.findall(r"<link\b[^>]*>|<script\b[^>]*\bsrc\b", path.read_text())
    check(not remote, f"the report asks for {remote[:3]}")


def main() -> None:
    check_contents(Path(os.environ["TOX_PACKAGE"]))
    check_alone()
    check(
        not Path(str(distribution("art-medical").locate_file("art_medical"))).is_relative_to(ROOT / "art_medical"),
        "not the wheel",
    )
    command = str(Path(sys.executable).with_name("art-medical"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(folder, command, "--help")
        print(f"--help, second time: {run(folder, command, '--help'):.2f} s (1 s)")
        seconds = run(folder, command, "evaluate", "--out", "report")
        used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        print(f"main job: {seconds:.0f} s ({SECONDS} s), {used / 1e9:.2f} GB ({BYTES / 1e9:.0f} GB)")
        check_results(folder / "report" / "results.json")
        check_report(folder / "report" / "report.html")
        check(used < BYTES, "the main job takes too much memory")


if __name__ == "__main__":
    main()
