# SPDX-License-Identifier: Apache-2.0
"""Every model in ``zoo/``, by wildcard: the card is valid and true of what lies beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from art_medical.estimators.module import ClassifierModule
from art_medical.images.phantoms import LumpyPhantom
from art_medical.zoo.cards import Card, read_card
from art_medical.zoo.networks import build
from art_medical.zoo.registry import list_models, load

ZOO = Path(__file__).resolve().parents[2] / "zoo"
FOLDERS = sorted(path.parent for path in ZOO.glob("*/card.json"))
EMBEDDED = "phantom-"  # models with this prefix come with the wheel
every_card = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def weights(folder: Path) -> Path:
    """The weights file, which a clone without large files may lack."""
    path = folder / read_card(folder).weights
    if not path.is_file():
        assert not folder.name.startswith(EMBEDDED), f"{folder.name} is embedded but has no weights"
        pytest.skip(f"the weights of {folder.name} are not in this checkout")
    return path


def samples(card: Card, n: int = 4) -> NDArray[np.float32]:
    """Phantoms where the model takes them, else seeded noise over the stored range."""
    if card.input.modality == "phantom":
        return LumpyPhantom().sample(n, seed=0, split="test")[0]
    domain = card.input.domain
    noise = np.random.default_rng(0).uniform(domain.low, domain.high, (n, *card.input.shape))
    return domain.quantise(noise).astype(np.float32)


def test_there_are_cards() -> None:
    assert {"phantom-hotelling", "phantom-nodule"} <= {folder.name for folder in FOLDERS}
    assert {folder.name for folder in FOLDERS} <= set(list_models())


@every_card
def test_the_card_is_valid_canonical_and_named_as_its_folder(folder: Path) -> None:
    card = read_card(folder)
    assert card.name == folder.name
    assert (folder / "card.json").read_text(encoding="utf-8") == card.to_json()
    assert (ZOO.parent / card.training.recipe).is_file()
    assert card.known_faults
    assert card.intended_use


@every_card
def test_the_weights_are_those_of_the_card(folder: Path) -> None:
    data, entry = weights(folder).read_bytes(), read_card(folder).files[read_card(folder).weights]
    assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.size, entry.sha256)


@every_card
def test_the_network_is_the_one_of_the_card(folder: Path) -> None:
    """On the meta device: no memory, and no weights needed."""
    card = read_card(folder)
    with torch.device("meta"):
        network = build(card.architecture.target, card.architecture.args).eval()
        module = ClassifierModule(network, card.input.steps, card.head)
        logits = module.logits(torch.zeros(2, *card.input.shape))
    assert sum(p.numel() for p in network.parameters()) == card.architecture.num_parameters
    assert logits.shape == (2, card.head.outputs)


@every_card
def test_the_model_predicts(folder: Path) -> None:
    weights(folder)
    estimator, card = load(folder), read_card(folder)
    probabilities = estimator.predict_proba(samples(card))
    assert probabilities.shape == (4, len(card.head.labels))
    assert np.isfinite(probabilities).all()
    assert len(np.unique(probabilities[:, 0])) == 4  # it looks at the image


@every_card
def test_the_stored_range_holds_a_sample(folder: Path) -> None:
    card = read_card(folder)
    x = samples(card)
    assert x.shape[1:] == card.input.shape
    assert card.input.domain.on_grid(x, tolerance=0)


@pytest.mark.parametrize("folder", [f for f in FOLDERS if f.name.startswith(EMBEDDED)], ids=lambda folder: folder.name)
def test_embedded_models_are_small(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) < 300_000


def test_the_zoo_is_small() -> None:
    assert sum(path.stat().st_size for path in ZOO.glob("*/*.safetensors")) < 150_000_000
