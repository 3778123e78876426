# SPDX-License-Identifier: Apache-2.0
"""Training: a cut training ends with the same weights, augmentation stays in the domain, what is written is loaded."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as parse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from art_medical.errors import ModelError
from art_medical.estimators.heads import Head
from art_medical.estimators.module import ClassifierModule
from art_medical.estimators.steps import Normalise
from art_medical.images.datasets import Dataset, sample_phantoms
from art_medical.images.phantoms import LumpyPhantom
from art_medical.training.augment import affine, tone
from art_medical.training.fit import Schedule, _warm_cosine, fit
from art_medical.training.probe import linear_probe
from art_medical.training.publish import at_sensitivity, count_parameters, training_entry, write_weights
from art_medical.training.scores import scores
from art_medical.zoo.networks import LinearObserver, build
from art_medical.zoo.weights import load_weights, read_weights
from tests.zoo.models import RESNET

PHANTOM = LumpyPhantom(shape=(16, 16), signal_amplitude=200)
STEPS = (Normalise(mean=(1600.0,), std=(230.0,)),)
HEAD = Head(kind="one-logit", labels=("no", "yes"))


class Cut(Exception):
    """The training is interrupted."""


def phantoms(split: str, n: int) -> Dataset:
    return sample_phantoms(PHANTOM, split, n, seed=1)


def module(seed: int) -> ClassifierModule:
    """Batch norm and dropout, so that statistics and random numbers have to be right as well."""
    torch.manual_seed(seed)
    network = nn.Sequential(build("ResNet", {**RESNET, "num_classes": 8}), nn.Dropout(0.2), nn.Linear(8, 1))
    return ClassifierModule(network, STEPS, HEAD)


def mirror(x: Tensor, generator: torch.Generator) -> Tensor:
    return affine(x, generator, degrees=5, zoom=(0.9, 1.1), shift=0.05, flip=True)


def train(net: ClassifierModule, checkpoint: Path, cut: tuple[int, int] | None = None, **schedule: object) -> list[int]:
    """Three epochs of four steps; raises after step ``cut[1]`` of epoch ``cut[0]``. Returns the epochs that ran."""
    seen: list[int] = []

    def report(epoch: int, step: int, loss: float) -> None:
        assert math.isfinite(loss)
        seen.append(epoch)
        if (epoch, step) == cut:
            raise Cut

    plan = Schedule(**{"epochs": 3, "batch_size": 16, "learning_rate": 1e-2, **schedule})  # type: ignore[arg-type]
    history = fit(net, phantoms("train", 60), phantoms("val", 20), plan, mirror, checkpoint, report)
    assert len(history) == 3
    assert all(0 <= row["val_auroc"] <= 1 for row in history)
    return seen


@pytest.mark.parametrize("frozen_norm", [False, True])
def test_a_cut_training_ends_with_the_same_weights(tmp_path: Path, frozen_norm: bool) -> None:
    whole, cut = module(0), module(0)
    assert train(whole, tmp_path / "whole.pt", frozen_norm=frozen_norm) == [0] * 4 + [1] * 4 + [2] * 4
    with pytest.raises(Cut):
        train(cut, tmp_path / "cut.pt", cut=(1, 2), frozen_norm=frozen_norm)
    resumed = module(7)  # another process would start from other weights
    assert train(resumed, tmp_path / "cut.pt", frozen_norm=frozen_norm) == [1] * 4 + [2] * 4
    expected, found = whole.network.state_dict(), resumed.network.state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert train(module(8), tmp_path / "cut.pt") == []  # nothing is left to do
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.pt", "whole.pt"]


def test_seeds_and_frozen_statistics_matter(tmp_path: Path) -> None:
    nets = {name: module(0) for name in ("a", "b", "frozen")}
    before = {key: value.clone() for key, value in nets["frozen"].network.state_dict().items() if "running" in key}
    train(nets["a"], tmp_path / "a.pt", seed=0)
    train(nets["b"], tmp_path / "b.pt", seed=1)
    train(nets["frozen"], tmp_path / "c.pt", frozen_norm=True)
    weights = [net.network[2].weight for net in nets.values()]  # type: ignore[index,union-attr]
    assert not torch.equal(weights[0], weights[1])
    after = nets["frozen"].network.state_dict()
    assert before
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not all(torch.equal(before[key], nets["a"].network.state_dict()[key]) for key in before)


def test_training_comes_near_the_ideal_linear_observer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = ClassifierModule(LinearObserver((1, 16, 16)), STEPS, HEAD)
    plan = Schedule(epochs=10, batch_size=100, learning_rate=3e-3, weight_decay=0.3)
    data = {split: phantoms(split, 2000) for split in ("train", "val")}
    history = fit(net, data["train"], data["val"], plan, lambda x, _: x, tmp_path / "c.pt", lambda *_: None)
    ideal = PHANTOM.hotelling().auc
    assert 0.5 < history[0]["val_auroc"] < history[-1]["val_auroc"] < ideal + 0.02
    assert history[-1]["val_auroc"] > ideal - 0.05
    assert history[-1]["val_auroc"] == roc_auc_score(data["val"].y, scores(net, data["val"].x)[:, 0])


def test_rate_warms_up_and_ends_near_zero() -> None:
    rates = [_warm_cosine(step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_linear_probe_equals_logistic_regression_on_the_pixels() -> None:
    """In front of a linear observer the features are the pixels: scikit-learn can do the same from outside."""
    network = LinearObserver((1, 16, 16))
    net = ClassifierModule(network, STEPS, HEAD)
    train_set, val = phantoms("train", 120), phantoms("val", 80)
    seen: list[int] = []
    [(c, auroc)] = linear_probe(net, network.readout, train_set, val, seen.append)
    pixels = {data.split: (data.x.reshape(len(data), -1).astype(np.float64) - 1600) / 230 for data in (train_set, val)}
    mean, std = pixels["train"].mean(0), pixels["train"].std(0)
    peer = LogisticRegression(C=c, max_iter=2000, class_weight="balanced").fit(
        (pixels["train"] - mean) / std, train_set.y
    )
    expected = peer.predict_proba((pixels["val"] - mean) / std)[:, 1]
    assert scores(net, val.x)[:, 0] == pytest.approx(expected, abs=1e-4)
    assert auroc == pytest.approx(roc_auc_score(val.y, expected), abs=1e-9)
    assert sum(seen) == 200


# -- augmentation ------------------------------------------------------------------------------------------------------


def test_affine_without_freedom_changes_nothing() -> None:
    x = torch.from_numpy(phantoms("train", 3).x)
    same = affine(x, torch.Generator(), degrees=0, zoom=(1, 1), shift=0, flip=False)
    assert torch.allclose(same, x, rtol=0, atol=0.02)  # float32 coordinates of a grid point are not quite whole


def test_affine_mirrors_half_of_the_images() -> None:
    x = torch.from_numpy(phantoms("train", 40).x)
    found = affine(x, torch.Generator().manual_seed(0), degrees=0, zoom=(1, 1), shift=0, flip=True)
    kept = (found - x).abs().flatten(1).amax(1) < 0.1
    turned = (found - x.flip(3)).abs().flatten(1).amax(1) < 0.1
    assert torch.equal(turned, ~kept)
    assert 10 < int(turned.sum()) < 30


def test_affine_turns_by_the_angle() -> None:
    """A bright point on the right of the centre, turned at random up to 45 degrees, keeps its distance from it."""
    x = torch.zeros(20, 1, 65, 65)
    x[:, :, 31:34, 51:54] = 1
    turned = affine(x, torch.Generator().manual_seed(0), degrees=45, zoom=(1, 1), shift=0, flip=False)
    rows, columns = torch.meshgrid(torch.arange(65.0) - 32, torch.arange(65.0) - 32, indexing="ij")
    mass = turned[:, 0]
    centre = torch.stack([(mass * axis).sum((1, 2)) / mass.sum((1, 2)) for axis in (rows, columns)], 1)
    assert torch.allclose(centre.norm(dim=1), torch.full((20,), 20.0), atol=0.1)
    angles = torch.rad2deg(torch.atan2(centre[:, 0], centre[:, 1]))
    assert float(angles.abs().max()) <= 45.1
    assert float(angles.max() - angles.min()) > 45


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.floats(1, 3), st.floats(0, 1), st.floats(0, 1))
def test_tone_stays_in_the_domain(seed: int, gamma: float, contrast: float, brightness: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(4, 1, 5, 5, generator=generator) * 4095 - 1024
    found = tone(x, generator, low=-1024, high=3071, gamma=gamma, contrast=contrast, brightness=brightness)
    assert found.shape == x.shape
    assert float(found.min()) >= -1024
    assert float(found.max()) <= 3071.001  # float32 of a sum


def test_tone_without_freedom_changes_nothing() -> None:
    x = torch.linspace(0, 255, 50).reshape(2, 1, 5, 5)
    same = tone(x, torch.Generator(), low=0, high=255, gamma=1, contrast=0, brightness=0)
    assert torch.allclose(same, x, atol=1e-3)


# -- what is left behind -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [True, False])
def test_written_weights_are_loaded_and_are_those_in_memory(tmp_path: Path, half: bool) -> None:
    network = build("ResNet", RESNET)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    entry = write_weights(network, tmp_path / "model.safetensors", half=half)
    tensors = read_weights(tmp_path / "model.safetensors", sha256=entry.sha256, size=entry.size)
    kinds = {tensor.dtype for tensor in tensors.values()}
    assert kinds == {torch.float16 if half else torch.float32, torch.int64}  # batch norm counts in int64
    fresh = build("ResNet", RESNET)
    load_weights(fresh, tensors, "here")
    now = network.state_dict()
    assert all(torch.equal(value, now[key]) for key, value in fresh.state_dict().items())
    rounded = {k: v.half().float() if half and v.is_floating_point() else v for k, v in before.items()}
    assert all(torch.equal(value, rounded[key]) for key, value in now.items())
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_weights_that_half_precision_cannot_hold_are_refused(tmp_path: Path) -> None:
    network = LinearObserver((1, 2, 2))
    with torch.no_grad():
        network.readout.bias.fill_(70_000.0)
    with pytest.raises(ModelError, match=r"tensor 'readout\.bias' is not finite in float16"):
        write_weights(network, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
    write_weights(network, tmp_path / "model.safetensors", half=False)
    assert parse((tmp_path / "model.safetensors").read_bytes())["readout.bias"].item() == 70_000


def test_the_operating_point_is_that_of_the_validation_images() -> None:
    net = module(0)
    val = phantoms("val", 50)
    head, point = at_sensitivity(net, val, 0.9)
    assert head.thresholds is not None
    found = scores(net, val.x)[:, 0] > head.thresholds[0]
    assert found[val.y == 1].mean() == math.ceil(0.9 * 25) / 25
    assert point.model_dump() == {"split": "val", "rule": "sensitivity at least", "target": 0.9, "n": 50}


def test_provenance_names_versions() -> None:
    entry = training_entry("zoo/tiny/train.py", 3, "random weights")
    assert entry.seed == 3
    assert entry.versions["torch"] == torch.__version__
    assert set(entry.versions) == {"python", "torch", "monai", "numpy"}
    assert count_parameters("LinearObserver", {"shape": [1, 2, 2]}) == 5
