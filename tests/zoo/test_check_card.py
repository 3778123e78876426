# SPDX-License-Identifier: Apache-2.0
"""The conformance check: a model that keeps every rule passes; each broken rule is told, all of them at once."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn

from art_medical.estimators.classifier import MedicalClassifier
from art_medical.evaluation.scorecard import score
from art_medical.testing import check_card
from art_medical.zoo.cards import parse_card, read_card
from art_medical.zoo.model_card import model_card
from tests.zoo.models import RESNET, write_model

ZOO = Path(__file__).resolve().parents[2] / "zoo"
DATA = {
    "name": "Squares",
    "doi": "",
    "licence": "CC0-1.0",
    "splits": {"train": 3},
    "patient_disjoint": "yes",
}
WORDS = {"data": DATA, "known_faults": ["Knows nothing."]}


def settle(folder: Path, **changes: Any) -> Path:
    """Card and page in their canonical form, after changes of the card."""
    card = parse_card(json.dumps({**json.loads((folder / "card.json").read_text()), **changes}), "card")
    (folder / "card.json").write_text(card.to_json(), encoding="utf-8")
    (folder / "README.md").write_text(model_card(card), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return settle(write_model(tmp_path / "tiny", prepare=look, input={"modality": "XC"}, **WORDS))


def look(network: nn.Module) -> None:
    """Weights that read the image without saturating."""
    for name, parameter in network.named_parameters():
        parameter.data = torch.linspace(-0.01, 0.01, parameter.numel()).reshape(parameter.shape)
        assert name


def faults(folder: Path, data: Path | str | None = None) -> list[str]:
    with pytest.raises(AssertionError) as caught:
        check_card(folder, data)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{folder} is not a model that others can rely on:"
    assert all(line.startswith("- ") for line in lines)
    return [line[2:] for line in lines]


def test_a_model_that_keeps_the_rules(folder: Path) -> None:
    check_card(folder)
    check_card(str(folder))


def test_a_network_with_normalisation_layers(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "net", target="ResNet", args=RESNET, input={"shape": [1, 16, 16]}, **WORDS)
    check_card(settle(folder))


def test_every_fault_is_told_at_once(folder: Path) -> None:
    settle(folder, known_faults=[], intended_use="", data={**DATA, "licence": ""})
    (folder / "extra.pt").write_bytes(b"x")
    (folder / "README.md").write_text("A page.")
    path = folder / "card.json"
    path.write_text(path.read_text() + "\n")
    assert faults(folder) == [
        "card.json: is not in its canonical form; write it with Card.to_json(), so that its hash can be reproduced",
        "card.json: intended_use is empty",
        "card.json: known_faults is empty",
        "card.json: data.licence is empty",
        "extra.pt: is a file that the card does not name; remove it",
        "README.md: is not the page that the card gives; write it again from card.json",
    ]


def test_another_name_than_the_folders(folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "moved")
    assert faults(moved) == ["card.json: names the model 'tiny', its folder is 'moved'"]


def test_no_card(tmp_path: Path) -> None:
    (line,) = faults(tmp_path)
    assert line.endswith("card.json: No such file or directory; a model folder needs a card.json")


def test_scores_of_other_splits_or_ranges(folder: Path) -> None:
    entry = {"dataset": "d", "index_sha256": "0" * 64, "n": 3, "package_version": "1"}
    settle(
        folder,
        clean_eval=[
            {**entry, "split": "train", "scores": []},
            {**entry, "split": "test", "scores": [{"metric": "auroc", "value": 1.0, "low": 0.9, "high": 1.1}]},
        ],
    )
    assert faults(folder) == [
        "card.json: clean_eval has scores on the split 'train', which the model was made with",
        "card.json: clean_eval: auroc from 0.9 to 1.1 leaves the range 0 to 1",
    ]


def test_weights_that_are_not_there(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert faults(folder) == ["model.safetensors: is missing"]
    check_card(settle(folder, hub={"repo": "owner/tiny", "revision": "0" * 40}))
    (folder / "card.json").write_text((folder / "card.json").read_text() + " ")
    assert len(faults(folder)) == 1  # what can be checked without weights still is


def test_a_model_that_does_not_look_at_the_image(tmp_path: Path) -> None:
    def blind(network: nn.Module) -> None:
        network.get_submodule("readout").weight.data.zero_()  # type: ignore[operator,union-attr]

    folder = settle(write_model(tmp_path / "blind", prepare=blind, **WORDS))
    assert faults(folder) == [
        "model: the logits of 4 different images are equal: it does not look at the image",
        "model: the gradient with respect to the stored pixels is zero: white-box attacks would fail for no good "
        "reason",
    ]


def test_weights_that_cannot_be_loaded(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["readout.bias"][:] = float("nan")
    data = save(tensors)
    (folder / "model.safetensors").write_bytes(data)
    settle(folder, files={"model.safetensors": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}})
    (line,) = faults(folder)
    assert "tensor 'readout.bias' holds NaN" in line


@pytest.mark.parametrize(
    ("method", "wrong", "fault"),
    [
        (
            "predict_logits",
            lambda x, z: z + np.float32(0.1) * len(x),
            "an image alone has other logits than in a batch",
        ),
        ("predict_logits", lambda x, z: z + np.random.default_rng().normal(), "the same images have other logits"),
        ("predict_logits", lambda x, z: z * np.nan, "a logit is not finite"),
        ("predict_proba", lambda x, z: z + 1, "a probability is not between 0 and 1"),
        ("predict_logits", lambda x, z: (x.__setitem__(0, 0), z)[1], "predict changed the images that it was given"),
        ("loss_gradient", lambda x, z: z[:, :, :1], "has another shape than the images"),
        ("loss_gradient", lambda x, z: z + np.inf, "or is not finite"),
        ("loss_gradient", lambda x, z: z * 0, "the gradient with respect to the stored pixels is zero"),
    ],
)
def test_an_estimator_that_breaks_a_rule(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, wrong: Any, fault: str
) -> None:
    right = getattr(MedicalClassifier, method)
    monkeypatch.setattr(MedicalClassifier, method, lambda self, x, *rest: wrong(x, right(self, x, *rest)))
    assert any(fault in line for line in faults(folder))


# -- with data ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Images of four pixels; those of class 1 are brighter."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    images = (rng.integers(0, 200, (40, 2, 2)) + 40 * labels[:, None, None]).astype(np.uint8)
    path = tmp_path / "squares.npz"
    np.savez(path, test_images=images, test_labels=labels[:, None])
    return path


def test_scores_are_measured_again(folder: Path, squares: Path) -> None:
    (line,) = faults(folder, squares)
    assert line == "the card of tiny has no figures on squares, test: run zoo score"
    card = score(folder, squares)
    check_card(folder, squares)
    entry = json.loads(card.to_json())["clean_eval"][0]
    wrong = json.loads(json.dumps(entry))
    wrong["scores"][0]["value"] += 2e-6
    settle(folder, clean_eval=[wrong])
    (line,) = faults(folder, squares)
    measured, stated = entry["scores"][0]["value"], wrong["scores"][0]["value"]
    name = entry["scores"][0]["metric"]
    assert line == f"clean_eval: {name} is {stated} on the card and {measured} in a new measurement"
    wrong["scores"][0]["value"] = measured + 5e-7
    check_card(settle(folder, clean_eval=[wrong]), squares)


def test_a_phantom_model_is_measured_when_asked(tmp_path: Path) -> None:
    copy = shutil.copytree(ZOO / "phantom-hotelling", tmp_path / "phantom-hotelling")
    check_card(settle(copy), "phantom")
    entry = json.loads((copy / "card.json").read_text())["clean_eval"][0]
    settle(copy, clean_eval=[{**entry, "n": entry["n"] + 1}])
    assert faults(copy, "phantom") == [
        f"clean_eval: images is {entry['n'] + 1} on the card and {entry['n']} in a new measurement"
    ]


def test_the_data_is_not_written_to(folder: Path, squares: Path, tmp_path: Path) -> None:
    score(folder, squares)
    copy = shutil.copytree(folder, tmp_path / "copy" / "tiny")
    check_card(folder, squares)
    assert read_card(folder) == read_card(copy)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "card.json", "model.safetensors"]
