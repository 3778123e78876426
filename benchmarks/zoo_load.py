# SPDX-License-Identifier: Apache-2.0
"""Cost of safe fetching and loading against plain huggingface_hub and safetensors: same file, server and network.

    python benchmarks/zoo_load.py --folder /dev/shm --out docs/results/zoo_load.json

A safetensors file of 100 MB lies on a Hub on the loopback interface, in a process of its own, which sends it as fast as
it can or at the speed of a 1 Gbit/s line. Both sides fetch it with
its card into a cache of their own (cold) or find it there (warm) and put the tensors into a network that was built
before. Ours compares what the server announces, the commit, the cache's links, length and sha256 with card and
reference, and looks for NaN; the plain side is ``hf_hub_download`` for the same two files, ``load_file`` and
``load_state_dict``. Times are compared as ratios: in each round both run once, in turn, and the figure is the median
over rounds of our time over the plain one in the same round. Memory is the peak resident set of a fresh process over
one call, less what was resident before it; Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from art_medical.zoo.cards import WeightFile  # noqa: E402
from art_medical.zoo.hub import check_file, locate  # noqa: E402
from art_medical.zoo.networks import build  # noqa: E402
from art_medical.zoo.weights import load_weights, read_weights  # noqa: E402
from tests.hub.server import LoopbackHub  # noqa: E402
from tests.zoo.models import fields  # noqa: E402

REPO, WEIGHTS = "bench/large", "model.safetensors"
PACKAGES = ("torch", "safetensors", "huggingface_hub")
Side = Callable[[Path], None]


def shape_of(megabytes: int) -> list[int]:
    """Image of a linear observer whose float32 weights take about so much."""
    return [megabytes, 500, 500]


def write_model(folder: Path, megabytes: int) -> None:
    """A model folder: one linear observer, seeded random weights."""
    folder.mkdir(parents=True)
    shape = shape_of(megabytes)
    network = build("LinearObserver", {"shape": shape})
    torch.manual_seed(0)
    state = {name: torch.randn_like(tensor) for name, tensor in network.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    data = (folder / WEIGHTS).read_bytes()
    count = sum(tensor.numel() for tensor in state.values())
    card = fields(
        name="large",
        files={WEIGHTS: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}},
        architecture={"target": "LinearObserver", "args": {"shape": shape}, "num_parameters": count},
    )
    card["input"]["shape"] = shape
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")


LINES = {"loopback": 0.0, "1 Gbit/s": 64 * 1024 / 125e6}
"""Seconds that the Hub waits before each 64 KiB, by what that stands for."""


def serve(root: str, folder: str, seconds: float, channel: Connection) -> None:
    """The Hub, until the other end of the channel says something."""
    with LoopbackHub(Path(root)) as hub:
        if seconds:
            hub.fault("slow", WEIGHTS, seconds=seconds)
        commit = hub.commit(REPO, {name: Path(folder) / name for name in (WEIGHTS, "card.json")})
        channel.send((hub.endpoint, commit))
        channel.recv()


def ours(network: torch.nn.Module, endpoint: str, commit: str) -> Side:
    def run(cache: Path) -> None:
        found = locate(f"hf://{REPO}@{commit}", endpoint=endpoint, cache_dir=cache)
        entry = found.expected[WEIGHTS]
        tensors = read_weights(found.files[WEIGHTS], sha256=entry.sha256, size=entry.size)
        load_weights(network, tensors, WEIGHTS)

    return run


def plain(network: torch.nn.Module, endpoint: str, commit: str) -> Side:
    from huggingface_hub import hf_hub_download

    def run(cache: Path) -> None:
        paths = [
            hf_hub_download(REPO, name, revision=commit, endpoint=endpoint, cache_dir=cache)
            for name in ("card.json", WEIGHTS)
        ]
        network.load_state_dict(load_file(paths[1]), strict=True)

    return run


SIDES = {"art-medical": ours, "huggingface_hub and safetensors": plain}


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that pass, and seconds that all threads of this process compute."""
    begin, busy = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - begin, time.process_time() - busy


Times = dict[str, dict[str, list[tuple[float, float]]]]


def rounds(work: Path, sides: dict[str, Side], count: int) -> Times:
    """Seconds of each side in each round, with a cold cache and then with the same one, warm."""
    seconds: Times = {kind: {name: [] for name in sides} for kind in ("cold", "warm")}
    for number in range(count + 1):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in order:
            cache = work / "cache"
            first = timed(lambda name=name, cache=cache: sides[name](cache))  # type: ignore[misc]
            second = timed(lambda name=name, cache=cache: sides[name](cache))  # type: ignore[misc]
            shutil.rmtree(cache)
            if number:  # the first round pays for imports and the first touch of everything
                seconds["cold"][name].append(first)
                seconds["warm"][name].append(second)
        os.sync()
    return seconds


def resident(field: str) -> float:
    """Resident set (``VmRSS``) or its peak (``VmHWM``) of this process in MB; Linux only."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def hashing_growth(work: Path, megabytes: int) -> float:
    """MB by which the peak resident set of a fresh process grows while it checks a file."""
    path = work / f"{megabytes} MB"
    with path.open("wb") as stream:
        stream.truncate(megabytes * 1_000_000)
    command = [sys.executable, __file__, "--memory-of", str(path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1])


def check_memory(path: Path) -> None:
    digest = hashlib.sha256()
    small = path.with_name("warm-up")
    small.write_bytes(b"x")
    check_file(small, WeightFile(sha256=hashlib.sha256(b"x").hexdigest(), size=1), "x", "x")
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 16):
            digest.update(chunk)
    before = resident("VmHWM")
    check_file(path, WeightFile(sha256=digest.hexdigest(), size=path.stat().st_size), path.name, "benchmark")
    print(resident("VmHWM") - before)


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All figures."""
    folder = work / "large"
    write_model(folder, options.megabytes)
    network = build("LinearObserver", {"shape": shape_of(options.megabytes)})
    rows = []
    for line, wait in LINES.items():
        here, there = multiprocessing.Pipe()
        arguments = (str(work / "hub"), str(folder), wait, there)
        server = multiprocessing.get_context("spawn").Process(target=serve, args=arguments)
        server.start()
        endpoint, commit = here.recv()
        sides = {name: side(network, endpoint, commit) for name, side in SIDES.items()}
        try:
            seconds = rounds(work, sides, options.rounds)
        finally:
            here.send("stop")
            server.join()
        rows += [row(f"{kind}, {line}" if kind == "cold" else kind, times) for kind, times in seconds.items()]
    return {
        "setting": f"{(folder / WEIGHTS).stat().st_size:,} bytes of float32, {options.threads} thread(s), "
        f"{options.rounds} rounds",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "rows": rows[:1] + rows[2:],  # warm once: no line is involved
        "growth of peak memory in MB while a file is hashed": {
            f"{size} MB": round(hashing_growth(work, size), 1) for size in (options.megabytes, 4 * options.megabytes)
        },
    }


def row(kind: str, seconds: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    (mine, my_work), (theirs, their_work) = (zip(*times, strict=True) for times in seconds.values())
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    return {
        "cache": kind,
        "our time over plain (median)": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
        "our seconds (median)": round(statistics.median(mine), 3),
        "plain seconds (median)": round(statistics.median(theirs), 3),
        "our seconds (lowest)": round(min(mine), 3),
        "plain seconds (lowest)": round(min(theirs), 3),
        "our processor seconds (median)": round(statistics.median(my_work), 3),
        "plain processor seconds (median)": round(statistics.median(their_work), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for caches; one in memory leaves the disk out of the comparison")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        check_memory(options.memory_of)
        return
    torch.set_num_threads(options.threads)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    with tempfile.TemporaryDirectory(dir=options.folder) as work:
        text = json.dumps(measure(options, Path(work)), indent=1) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
