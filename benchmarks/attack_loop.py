# SPDX-License-Identifier: Apache-2.0
"""Cost of our attack loop against a bare torch loop, ART, torchattacks and foolbox: same model, images and steps.

    pip install foolbox==3.3.4 eagerpy && pip install --no-deps torchattacks==3.5.1
    python benchmarks/attack_loop.py --out docs/results/attack_loop.json

All run L-infinity PGD of 8 grey levels from the clean image. Times are compared as ratios: in each round every
implementation runs once, in turn, and the figure is the median over rounds of its time over that of the bare loop in
the same round. The bare loop makes exactly the passes that ours makes. Passes are counted by hooks on the network.
Memory is the peak resident set of a fresh process over one run, less what was resident before it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

EPS, STEP = 8.0, 1.0
Attack = Callable[[], Any]


class Counter:
    """Forward and input-gradient passes of a network, per image."""

    def __init__(self, network: nn.Module) -> None:
        self.forward = self.backward = 0
        network.register_forward_hook(self._passed)

    def _passed(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        self.forward += len(output)
        if output.requires_grad:
            output.register_hook(self._returned)

    def _returned(self, gradient: torch.Tensor) -> None:
        self.backward += len(gradient)


def setting(images: int, side: int) -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """DenseNet121 with seeded random weights, 8-bit images and labels."""
    from monai.networks.nets import DenseNet121

    torch.manual_seed(0)
    network = DenseNet121(spatial_dims=2, in_channels=3, out_channels=2).eval()
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (images, 3, side, side)).astype(np.float32)
    return network, x, rng.integers(0, 2, images)


class Unit(nn.Module):
    """The network over [0, 1], for libraries that know no other range."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network((x * 255 - 127) / 128)


def bare(network: nn.Module, x: np.ndarray, y: np.ndarray, steps: int, batch: int) -> Attack:
    """The least that PGD can be in torch, with parameters frozen: what every loop is measured against."""

    def run() -> None:
        for start in range(0, len(x), batch):
            clean = torch.from_numpy(x[start : start + batch])
            label = torch.from_numpy(y[start : start + batch])
            low, high = (clean - EPS).clamp(0, 255), (clean + EPS).clamp(0, 255)
            attacked = clean.clone()
            for _ in range(steps):
                attacked.requires_grad_(True)
                loss = nn.functional.cross_entropy(network((attacked - 127) / 128), label)
                (gradient,) = torch.autograd.grad(loss, attacked)
                attacked = torch.clamp(attacked.detach() + STEP * gradient.sign(), low, high)
            with torch.no_grad():
                network((attacked - 127) / 128)

    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return run


def ours(network: nn.Module, x: np.ndarray, y: np.ndarray, steps: int, batch: int) -> Attack:
    """art-medical with its defaults: stored pixels, best image of each sample; no sample leaves early."""
    from art_medical.attacks import ProjectedGradientDescent
    from art_medical.domain import PixelDomain
    from art_medical.estimators.classifier import MedicalClassifier
    from art_medical.estimators.heads import Head
    from art_medical.estimators.steps import Normalise

    classifier = MedicalClassifier(
        network,
        domain=PixelDomain(0, 255),
        head=Head(kind="softmax", labels=("a", "b")),
        input_shape=x.shape[1:],
        steps=[Normalise(mean=(127.0,), std=(128.0,))],
    )
    attack = ProjectedGradientDescent(
        classifier, eps=EPS, eps_step=STEP, max_iter=steps, batch_size=batch, confidence=float("inf")
    )
    return lambda: attack.generate(x, y)


def art(network: nn.Module, x: np.ndarray, y: np.ndarray, steps: int, batch: int) -> Attack:
    """ART's own PGD on its own estimator."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    estimator = PyTorchClassifier(
        Unit(network), nn.CrossEntropyLoss(), x.shape[1:], 2, clip_values=(0, 1), device_type="cpu"
    )
    attack = ProjectedGradientDescent(
        estimator, eps=EPS / 255, eps_step=STEP / 255, max_iter=steps, batch_size=batch, verbose=False
    )
    unit = x / 255
    return lambda: attack.generate(unit, y)


def torchattacks(network: nn.Module, x: np.ndarray, y: np.ndarray, steps: int, batch: int) -> Attack:
    """torchattacks."""
    import torchattacks as library

    attack = library.PGD(Unit(network), eps=EPS / 255, alpha=STEP / 255, steps=steps, random_start=False)
    unit, label = torch.from_numpy(x / 255), torch.from_numpy(y)

    def run() -> None:
        for start in range(0, len(x), batch):
            attack(unit[start : start + batch], label[start : start + batch])

    return run


def foolbox(network: nn.Module, x: np.ndarray, y: np.ndarray, steps: int, batch: int) -> Attack:
    """foolbox."""
    import foolbox as library

    model = library.PyTorchModel(Unit(network), bounds=(0, 1), device="cpu")
    attack = library.attacks.LinfPGD(abs_stepsize=STEP / 255, steps=steps, random_start=False)
    unit, label = torch.from_numpy(x / 255), torch.from_numpy(y)

    def run() -> None:
        for start in range(0, len(x), batch):
            attack(model, unit[start : start + batch], label[start : start + batch], epsilons=EPS / 255)

    return run


IMPLEMENTATIONS = {
    "bare torch loop": bare,
    "art-medical": ours,
    "ART": art,
    "torchattacks": torchattacks,
    "foolbox": foolbox,
}
PACKAGES = ("torch", "monai", "adversarial-robustness-toolbox", "torchattacks", "foolbox")


def prepared(name: str, options: argparse.Namespace) -> tuple[Attack, Counter]:
    """An attack on a network of its own, and the counter of its passes."""
    network, x, y = setting(options.images, options.side)
    counter = Counter(network)
    return IMPLEMENTATIONS[name](network, x, y, options.steps, options.batch), counter


def resident(field: str) -> float:
    """Resident set (``VmRSS``) or its peak (``VmHWM``) of this process in MB; Linux only."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def peak_growth(name: str, options: argparse.Namespace) -> float:
    """MB by which the peak resident set of a fresh process grows over one run."""
    command = [sys.executable, __file__, "--memory-of", name, "--threads", str(options.threads)]
    for key in ("images", "side", "steps", "batch"):
        command += [f"--{key}", str(getattr(options, key))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    runs = {name: prepared(name, options) for name in IMPLEMENTATIONS}
    for attack, _ in runs.values():
        attack()
    passes = {}
    for name, (attack, counter) in runs.items():
        counter.forward = counter.backward = 0
        attack()
        passes[name] = (counter.forward / options.images, counter.backward / options.images)
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(options.rounds):
        order = list(runs) if number % 2 == 0 else list(runs)[::-1]
        seconds = {}
        for name in order:
            begin = time.perf_counter()
            runs[name][0]()
            seconds[name] = time.perf_counter() - begin
        for name, taken in seconds.items():
            ratios[name].append(taken / seconds["bare torch loop"])
        print(f"round {number + 1}: " + ", ".join(f"{name} {ratios[name][-1]:.3f}" for name in runs), flush=True)
    return {
        "setting": f"DenseNet121, {options.images} images {options.side} x {options.side} x 3, {options.steps} steps, "
        f"batch {options.batch}, {options.threads} thread(s), {options.rounds} rounds",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "rows": [
            {
                "implementation": name,
                "time over bare loop (median)": round(statistics.median(values), 3),
                "lowest": round(min(values), 3),
                "highest": round(max(values), 3),
                "forward passes per image": passes[name][0],
                "input-gradient passes per image": passes[name][1],
                "growth of peak memory in MB": round(peak_growth(name, options)),
            }
            for name, values in ratios.items()
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    if options.memory_of:
        attack, _ = prepared(options.memory_of, options)
        before = resident("VmRSS")
        attack()
        print(resident("VmHWM") - before)
        return
    text = json.dumps(measure(options), indent=1) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
