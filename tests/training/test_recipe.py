# SPDX-License-Identifier: Apache-2.0
"""Recipes as data: what they may say, what extending means, and a training from a file to a model that loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from art_medical.errors import ModelError
from art_medical.images.datasets import read_npz
from art_medical.training.recipe import read_recipe
from art_medical.training.run import read_split, train
from art_medical.zoo.cards import read_card
from art_medical.zoo.model_card import model_card
from art_medical.zoo.registry import load
from tests.zoo.models import RESNET

ZOO = Path(__file__).resolve().parents[2] / "zoo"
RECIPES = sorted(path.parent.name for path in ZOO.glob("*/recipe.yaml"))


def recipe(**changes: Any) -> dict[str, Any]:
    """A training of seconds on 16 x 16 images."""
    return {
        "schema": "art-medical/recipe@1",
        "name": "tiny",
        "version": "1.0.0",
        "data": {"path": "set.npz"},
        "network": {"target": "ResNet", "args": RESNET, "readout": "fc"},
        "input": {
            "modality": "CR",
            "shape": [1, 16, 16],
            "low": 0,
            "high": 255,
            "step": 1,
            "unit": "grey level",
            "steps": [{"kind": "normalise", "mean": [100.0], "std": [50.0]}],
        },
        "head": {"kind": "one-logit", "labels": ["dark", "bright"]},
        "start": {"kind": "random"},
        "probe": True,
        "augment": {"mirror": [0]},
        "fit": {"epochs": 8, "batch_size": 16, "learning_rate": 0.01, "average": 0.5, "seed": 3},
        "average_with_start": False,
        "sensitivity": 0.9,
        "card": {
            "licence": "Apache-2.0",
            "data_name": "made up",
            "data_doi": "none",
            "data_licence": "CC0 1.0",
            "patient_disjoint": "yes",
            "citation": ["nobody"],
            "intended_use": "Tests.",
            "known_faults": ["Made up."],
        },
        **changes,
    }


def write(folder: Path, data: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    return folder


def images(path: Path, labels: int = 1) -> None:
    """Bright squares on noise; with two labels the second one is a bright left border."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 96), ("val", 40)):
        y = generator.integers(0, 2, (n, labels))
        x = generator.integers(0, 120, (n, 16, 16))
        x[:, 4:12, 4:12] += 60 * y[:, :1, None]
        if labels == 2:
            x[:, :, :4] += 60 * y[:, 1:, None]
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = x.astype(np.uint8), y
    np.savez(path, **arrays)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_of_the_zoo_is_valid_and_agrees_with_its_card(name: str) -> None:
    found, card = read_recipe(ZOO / name), read_card(ZOO / name)
    assert found.name == name == card.name
    assert (found.input, found.network.target) == (card.input, card.architecture.target)
    assert found.head == card.head.model_copy(update={"thresholds": None})
    assert card.training is not None
    assert card.training.recipe == f"zoo/{name}/recipe.yaml"
    assert found.fit is not None
    assert card.training.seed == found.fit.seed
    assert card.data.folder == found.data.path
    assert card.known_faults == found.card.known_faults


def test_a_recipe_becomes_a_model_that_loads_and_tells_the_classes_apart(tmp_path: Path) -> None:
    images(tmp_path / "set.npz")
    folder = write(tmp_path / "tiny", recipe())
    card = train(read_recipe(folder), folder, tmp_path, tmp_path / "work", Console(quiet=True))
    assert read_card(folder) == card
    assert (folder / "README.md").read_text(encoding="utf-8") == model_card(card)
    assert card.data.splits == {"train": 96, "val": 40}
    val = read_npz(tmp_path / "set.npz", "val")
    found = load(folder).predict(val.x).argmax(1)
    assert found[val.y == 1].mean() >= 0.9  # the operating point
    assert (found == val.y).mean() > 0.9


def test_several_findings_get_a_probe_and_a_threshold_each(tmp_path: Path) -> None:
    images(tmp_path / "set.npz", labels=2)
    head = {"kind": "multi-label", "labels": ["square", "border"]}
    network = {"target": "ResNet", "args": {**RESNET, "num_classes": 2}, "readout": "fc"}
    folder = write(tmp_path / "tiny", recipe(head=head, network=network))
    card = train(read_recipe(folder), folder, tmp_path, tmp_path / "work", Console(quiet=True))
    assert card.head.thresholds is not None
    assert len(card.head.thresholds) == 2
    assert card.positive_label is None
    val = read_npz(tmp_path / "set.npz", "val")
    sets = load(folder).predict(val.x).argmax(1)
    decided = np.stack([sets & 1, sets >> 1], 1)
    for label in (0, 1):
        assert decided[val.y[:, label] == 1, label].mean() >= 0.9
    assert (decided == val.y).mean() > 0.8


def test_starting_from_a_model_without_training_gives_its_weights(tmp_path: Path) -> None:
    images(tmp_path / "set.npz")
    first = write(tmp_path / "tiny", recipe())
    card = train(read_recipe(first), first, tmp_path, tmp_path / "work", Console(quiet=True))
    second = write(
        tmp_path / "twin",
        {
            "extends": "../tiny/recipe.yaml",
            "name": "twin",
            "start": {"kind": "model", "name": "tiny"},
            "probe": False,
            "fit": None,
        },
    )
    twin = train(read_recipe(second), second, tmp_path, tmp_path / "work2", Console(quiet=True))
    assert twin.files == card.files
    assert twin.head == card.head
    assert twin.training is not None
    assert twin.training.started_from == f"tiny 1.0.0, sha256 {card.files['model.safetensors'].sha256}"


def test_the_halves_of_a_set_share_no_group_and_are_all_of_it(tmp_path: Path) -> None:
    images(tmp_path / "set.npz")
    folder = write(tmp_path / "tiny", recipe())
    whole = read_recipe(folder)
    parts = {
        half: read_split(
            whole.model_copy(update={"data": whole.data.model_copy(update={"half": half})}), tmp_path, "train"
        )
        for half in ("first", "second")
    }
    first, second = set(parts["first"].groups), set(parts["second"].groups)
    assert not first & second
    assert len(parts["first"]) + len(parts["second"]) == 96
    assert 30 < len(parts["first"]) < 66


def test_extending_merges_mappings_and_replaces_what_is_of_another_kind(tmp_path: Path) -> None:
    write(tmp_path / "tiny", recipe())
    child = write(
        tmp_path / "child",
        {
            "extends": "../tiny/recipe.yaml",
            "name": "child",
            "fit": {"epochs": 5},
            "network": {"target": "LinearObserver", "args": {"shape": [1, 16, 16]}, "readout": "readout"},
            "augment": {"mirror": []},
        },
    )
    found = read_recipe(child)
    assert found.name == "child"
    assert found.fit is not None
    assert (found.fit.epochs, found.fit.batch_size, found.fit.seed) == (5, 16, 3)
    assert found.network.args == {"shape": (1, 16, 16)}
    assert found.augment.mirror == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"fit": {"epochs": 0, "batch_size": 1, "learning_rate": 1.0}}, "fit.epochs: Input should be greater than"),
        ({"head": {"kind": "one-logit", "labels": ["a", "b"], "thresholds": [0.5]}}, "leave the thresholds out"),
        ({"data": {"path": "x", "targets": {"other": {"column": "c"}}}}, r"data\.targets names \['other'\]"),
        ({"average_with_start": True, "probe": False}, "needs a start that classifies"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = write(tmp_path / "tiny", recipe(**changes))
    with pytest.raises(ModelError, match=message):
        read_recipe(folder)


def test_recipes_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*recipe\.yaml: No such file"):
        read_recipe(tmp_path)
    (tmp_path / "recipe.yaml").write_text("a: [")
    with pytest.raises(ModelError, match="is no YAML"):
        read_recipe(tmp_path)
    (tmp_path / "recipe.yaml").write_text("- a")
    with pytest.raises(ModelError, match="must hold a mapping"):
        read_recipe(tmp_path)
    loop = tmp_path / "loop"
    loop.mkdir()
    (loop / "recipe.yaml").write_text("extends: ../loop/recipe.yaml")
    with pytest.raises(ModelError, match="extends more than 4 recipes in a row"):
        read_recipe(loop)


@pytest.mark.parametrize("parent", ["recipe.yaml", "/etc/recipe.yaml", "../../other/recipe.yaml", "../a/b.yaml", 3])
def test_a_recipe_extends_its_neighbours_only(tmp_path: Path, parent: Any) -> None:
    folder = write(tmp_path / "tiny", {"extends": parent})
    with pytest.raises(ModelError, match=r"tiny.recipe\.yaml extends .*; it may extend \.\./<model>/recipe\.yaml"):
        read_recipe(folder)


@pytest.mark.parametrize("path", ["/etc", "../elsewhere", ".hidden", "C:/data"])
def test_the_images_are_below_the_data_folder(tmp_path: Path, path: str) -> None:
    folder = write(tmp_path / "tiny", recipe(data={"path": path}))
    with pytest.raises(ModelError, match=r"data\.path: String should match pattern"):
        read_recipe(folder)


def test_the_readout_must_be_linear(tmp_path: Path) -> None:
    images(tmp_path / "set.npz")
    folder = write(tmp_path / "tiny", recipe(network={"target": "ResNet", "args": RESNET, "readout": "conv1"}))
    with pytest.raises(ModelError, match="layer 'conv1' is a Conv2d, not the linear read-out"):
        train(read_recipe(folder), folder, tmp_path, tmp_path / "work", Console(quiet=True))
    assert sorted(path.name for path in folder.iterdir()) == ["recipe.yaml"]
    assert torch.is_grad_enabled()
