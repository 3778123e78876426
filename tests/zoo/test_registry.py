# SPDX-License-Identifier: Apache-2.0
"""The registry: which card a name stands for, where its weights may lie, and what is said when something is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import art_medical
from art_medical.domain import PixelDomain
from art_medical.errors import InputError, ModelError
from art_medical.zoo import registry
from art_medical.zoo.registry import ZOO_VARIABLE, find_card, find_weights, list_models, load
from tests.zoo.models import fields, write_model


@pytest.fixture
def zoos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Three places, all empty: the package's own zoo, the user's, and the current directory."""
    places = {name: tmp_path / name for name in ("own", "user", "cwd")}
    for place in places.values():
        place.mkdir()
    monkeypatch.setattr(registry, "_own_zoo", lambda: places["own"])
    monkeypatch.setenv(ZOO_VARIABLE, str(places["user"]))
    monkeypatch.chdir(places["cwd"])
    return places


def refusal(ref: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(ref)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_package_comes_with_its_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ZOO_VARIABLE, raising=False)
    assert {"phantom-hotelling", "phantom-nodule"} <= set(list_models())
    assert list_models("phantom-*") == sorted(name for name in list_models() if name.startswith("phantom-"))
    assert list_models("nothing-*") == []


def test_models_of_both_zoos_are_listed_once(zoos: dict[str, Path]) -> None:
    for place, name in (("own", "b"), ("user", "a"), ("user", "b")):
        write_model(zoos[place] / name)
    (zoos["user"] / "no-card").mkdir()
    assert list_models() == ["a", "b"]
    assert list_models("A*") == []


def test_an_estimator_is_what_the_card_says(zoos: dict[str, Path]) -> None:
    write_model(zoos["user"] / "mine", head={"kind": "one-logit", "labels": ["no", "yes"]})
    estimator = load("mine")
    assert estimator.domain == PixelDomain(0, 255, 1, "grey level")
    assert estimator.input_shape == (1, 2, 2)
    assert estimator.head.labels == ("no", "yes")
    assert not any(module.training for module in estimator.network.modules())
    assert art_medical.load is load


def test_the_packages_own_card_wins(zoos: dict[str, Path]) -> None:
    own = write_model(zoos["own"] / "model", version="own")
    write_model(zoos["user"] / "model", version="user", seed=1)
    write_model(zoos["cwd"] / "model", version="cwd", seed=2)
    card, folders = find_card("model")
    assert card.version == "own"
    assert find_weights(card, folders) == own / "model.safetensors"


@pytest.mark.parametrize("ref", ["./model", "../cwd/model", Path("model")])
def test_a_folder_is_loaded_by_its_path(zoos: dict[str, Path], ref: str | Path) -> None:
    write_model(zoos["own"] / "model", version="own")
    write_model(zoos["cwd"] / "model", version="cwd", seed=2)
    assert find_card(ref)[0].version == "cwd"


def test_a_bare_name_that_is_not_registered_may_be_a_folder(zoos: dict[str, Path]) -> None:
    write_model(zoos["cwd"] / "mine", version="cwd")
    assert find_card("mine")[0].version == "cwd"


def test_a_folder_may_have_another_name_than_its_model_a_registered_one_may_not(zoos: dict[str, Path]) -> None:
    write_model(zoos["cwd"] / "tiny").rename(zoos["cwd"] / "moved")
    assert find_card("./moved")[0].name == "tiny"
    shutil.copytree(zoos["cwd"] / "moved", zoos["user"] / "alias")
    assert "names the model 'tiny', its folder 'alias'" in refusal("alias")


@pytest.mark.parametrize(
    "ref",
    [
        "nope",
        "",
        ".",
        "..",
        "../own",
        "user/../nope",
        "a\\b",
        "/nowhere",
        "x" * 5000,
        "a/" * 3000,
        "nul\0byte",
        "*",
        "%",
    ],
)
def test_unknown_models(zoos: dict[str, Path], ref: str) -> None:
    write_model(zoos["own"] / "known")
    message = refusal(ref)
    assert message == (f"unknown model {ref[:200]!r}: neither a folder with a card.json nor a registered model (known)")


def test_names_cannot_leave_the_zoo(zoos: dict[str, Path]) -> None:
    """``..`` in a reference is a path from the current directory, never from a zoo."""
    write_model(zoos["user"].parent / "outside")
    (zoos["cwd"] / "deep").mkdir()
    assert "unknown model '../../outside'" in refusal("../../outside")
    assert find_card("../outside")[0].name == "outside"


def test_an_empty_registry_says_so(zoos: dict[str, Path]) -> None:
    assert refusal("model").endswith("registered model (none)")


def test_weights_may_lie_elsewhere(zoos: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The card is the package's; the weights are found in the user's zoo, then in ``./zoo``."""
    write_model(zoos["own"] / "large")
    weights = zoos["own"] / "large" / "model.safetensors"
    message = refusal("large") if weights.rename(zoos["own"] / "kept") else ""
    assert message == (
        "the weights of large are not installed; put model.safetensors into a folder large/ and name its parent in the "
        "environment variable ART_MEDICAL_ZOO"
    )
    for place in (zoos["cwd"] / "zoo" / "large", zoos["user"] / "large"):
        place.mkdir(parents=True)
        shutil.copy(zoos["own"] / "kept", place / "model.safetensors")
        card, folders = find_card("large")
        assert find_weights(card, folders).resolve() == place / "model.safetensors"
        assert load("large").input_shape == (1, 2, 2)
    monkeypatch.delenv(ZOO_VARIABLE)
    assert find_weights(*find_card("large")) == Path("zoo/large/model.safetensors")


def test_weights_in_the_current_directory_count_only_with_the_right_hash(zoos: dict[str, Path]) -> None:
    """The card in ``./zoo`` is not believed, and neither are weights that the package's card does not name."""
    write_model(zoos["own"] / "large")
    (zoos["own"] / "large" / "model.safetensors").unlink()
    write_model(zoos["cwd"] / "zoo" / "large", seed=1)
    message = refusal("large")
    assert "refused before parsing" in message
    assert "zoo/large/model.safetensors has sha256 " in message


def test_cards_that_do_not_fit_their_weights(zoos: dict[str, Path]) -> None:
    folder = write_model(zoos["user"] / "mine")
    card = json.loads((folder / "card.json").read_text())
    card["architecture"]["num_parameters"] = 6
    (folder / "card.json").write_text(json.dumps(card))
    assert refusal("mine") == "mine: LinearObserver has 5 parameters, the card says 6"
    card["architecture"] = {"target": "LinearObserver", "args": {"shape": [1, 5]}, "num_parameters": 6}
    (folder / "card.json").write_text(json.dumps(card))
    assert "the tensors do not fit the network" in refusal("mine")
    (folder / "card.json").write_text("{")
    assert "line 1: not JSON" in refusal("mine")


def test_the_card_is_refused_before_torch_is_needed(zoos: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that can be refused from the card alone is refused before weights are opened."""
    folder = zoos["user"] / "mine"
    folder.mkdir()
    (folder / "card.json").write_text(json.dumps(fields(name="mine", architecture={"target": "LinearObserver"})))
    monkeypatch.setattr(registry, "find_weights", lambda *_: pytest.fail("looked for weights"))
    assert "architecture.args: Field required" in refusal("mine")


def test_loading_twice_gives_the_same_numbers(zoos: dict[str, Path]) -> None:
    write_model(zoos["user"] / "mine")
    x = np.array([[[[0, 50], [100, 255]]]], np.float32)
    assert np.array_equal(load("mine").predict(x), load("mine").predict(x))


@pytest.mark.parametrize("device", ["cpu2", "graphics", "", "cuda:x"])
def test_an_unknown_device_is_refused(zoos: dict[str, Path], device: str) -> None:
    write_model(zoos["own"] / "known")
    with pytest.raises(InputError, match=f"unknown device '{device}'; use cpu, gpu or"):
        load("known", device=device)
