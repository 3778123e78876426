# SPDX-License-Identifier: Apache-2.0
"""Every model in ``zoo/``, by wildcard: the public conformance check, and what holds for models of our own besides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from art_medical.images.phantoms import LumpyPhantom
from art_medical.testing import check_card
from art_medical.zoo.cards import read_card
from art_medical.zoo.registry import list_models
from art_medical.zoo.verify import verify

ZOO = Path(__file__).resolve().parents[2] / "zoo"
FOLDERS = sorted(path.parent for path in ZOO.glob("*/card.json"))
EMBEDDED = "phantom-"  # models with this prefix come with the wheel
every_card = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def test_there_are_cards() -> None:
    assert {"phantom-hotelling", "phantom-nodule", "cxr-pneumonia"} <= {folder.name for folder in FOLDERS}
    assert {folder.name for folder in FOLDERS} <= set(list_models())


@every_card
def test_the_model_is_one_that_others_can_rely_on(folder: Path) -> None:
    check_card(folder)


@every_card
def test_it_is_verified_unless_others_publish_it(folder: Path) -> None:
    """Our own weights are in the repository; those of the Hub may be on this machine or not."""
    published = {"not fetched"} if read_card(folder).hub is not None else set()
    assert verify(folder.name).state in {"verified"} | published


@every_card
def test_the_recipe_is_there(folder: Path) -> None:
    """A model without recipe is one that others trained."""
    card = read_card(folder)
    if card.training is None:
        assert card.hub is not None
    else:
        assert (ZOO.parent / card.training.recipe).is_file()
        assert (folder / "README.md").is_file()


def test_phantoms_are_in_the_range_of_their_models() -> None:
    x, _ = LumpyPhantom().sample(4, seed=0, split="test")
    for folder in FOLDERS:
        card = read_card(folder)
        if card.input.modality == "phantom":
            assert card.input.shape == x.shape[1:]
            assert card.input.domain == LumpyPhantom().domain
            assert card.input.domain.on_grid(x, tolerance=0)
            assert x.dtype == np.float32


@pytest.mark.parametrize("folder", [f for f in FOLDERS if f.name.startswith(EMBEDDED)], ids=lambda folder: folder.name)
def test_embedded_models_are_small(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) < 300_000


def test_the_zoo_is_small() -> None:
    assert sum(path.stat().st_size for path in ZOO.glob("*/*.safetensors")) < 150_000_000
