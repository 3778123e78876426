# SPDX-License-Identifier: Apache-2.0
"""Models of other packages: what an installed distribution declares loads by name; a broken one breaks nothing."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import art_medical
from art_medical.errors import ModelError, PluginWarning
from art_medical.zoo import registry
from art_medical.zoo.registry import ZOO_VARIABLE, find_card, list_models, load, register_model
from tests.zoo.models import write_model

Install = Callable[..., Path]


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The package's own zoo and the user's, and nothing registered."""
    found = {name: tmp_path / name for name in ("own", "user", "cwd")}
    for place in found.values():
        place.mkdir()
    monkeypatch.setattr(registry, "_own_zoo", lambda: found["own"])
    monkeypatch.setattr(registry, "_REGISTERED", {})
    monkeypatch.setenv(ZOO_VARIABLE, str(found["user"]))
    monkeypatch.chdir(found["cwd"])
    return found


@pytest.fixture
def install(places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """``install("pack", "MODELS = ...")``: a distribution on the path as pip leaves it, and its package's folder."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    before = set(sys.modules)

    def call(package: str, source: str, value: str | None = None, models: tuple[str, ...] = ()) -> Path:
        folder = site / package
        folder.mkdir()
        (folder / "__init__.py").write_text(f"from pathlib import Path\n{source}\n")
        for name in models:
            write_model(folder / "models" / name)
        info = site / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[art_medical.models]\n{package}s = {value or package + ':MODELS'}\n")
        return folder

    yield call
    for name in set(sys.modules) - before:
        if name.startswith("pack"):
            del sys.modules[name]


HERE = "MODELS = Path(__file__).parent / 'models'"


@pytest.mark.parametrize(
    "source",
    [
        HERE,
        "MODELS = str(Path(__file__).parent / 'models')",
        "MODELS = [Path(__file__).parent / 'models' / name for name in ('a', 'b')]",
        "def MODELS():\n    return Path(__file__).parent / 'models'",
        "def MODELS():\n    for name in ('a', 'b'):\n        yield Path(__file__).parent / 'models' / name",
    ],
)
def test_models_of_an_installed_package(install: Install, places: dict[str, Path], source: str) -> None:
    write_model(places["own"] / "ours")
    folder = install("pack", source, models=("a", "b"))
    assert list_models() == ["a", "b", "ours"]
    assert list_models("[ab]") == ["a", "b"]
    assert find_card("a")[1][0] == folder / "models" / "a"
    estimator = art_medical.load("a")
    assert estimator.predict(np.zeros((1, 1, 2, 2), np.float32)).shape == (1, 2)


@pytest.mark.parametrize(
    ("source", "value", "reason"),
    [
        ("raise RuntimeError('no\\nluck')", None, "RuntimeError: no luck; its models are left out"),
        ("import nothing_of_this_name", None, "No module named 'nothing_of_this_name'; its models"),
        ("", None, "AttributeError: module 'pack' has no attribute 'MODELS'"),
        ("", "pack.gone:MODELS", "No module named 'pack.gone'"),
        ("raise SystemExit(0)", None, "it ends the program when imported; its models are left out"),
        ("MODELS = 7", None, "expected a path, several, or a function that returns them, got int"),
        ("MODELS = b'x'", None, "got bytes"),
        ("MODELS = [7]", None, "TypeError"),
        ("def MODELS(needed): ...", None, "TypeError"),
        ("MODELS = Path(__file__).parent / 'gone'", None, "ModelError: cannot read the model folders in "),
        ("MODELS = Path(__file__).parent", None, "there is no model in "),
        ("MODELS = Path(__file__).parent / 'broken'", None, "card.json, line 1: not JSON"),
    ],
)
def test_a_broken_plugin_is_named_and_breaks_nothing(
    install: Install, places: dict[str, Path], source: str, value: str | None, reason: str
) -> None:
    write_model(places["own"] / "ours")
    folder = install("pack", source, value)
    (folder / "broken" / "m").mkdir(parents=True)
    (folder / "broken" / "m" / "card.json").write_text("{")
    install("pack2", HERE, models=("theirs",))
    with pytest.warns(PluginWarning) as caught:
        assert list_models() == ["ours", "theirs"]
    (message,) = {str(warning.message) for warning in caught}
    assert message.startswith("plug-in 'packs' of the package 'pack': ")
    assert reason in message
    assert "\n" not in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("ours")  # no plug-in is imported for a model that is ours


def test_a_plugin_cannot_replace_a_model(install: Install, places: dict[str, Path]) -> None:
    own = write_model(places["own"] / "ours", version="own")
    user = write_model(places["user"] / "mine", version="user")
    folder = install("pack", HERE, models=("mine", "ours", "theirs"))
    with pytest.warns(PluginWarning) as caught:
        assert list_models() == ["mine", "ours", "theirs"]
    assert sorted({str(warning.message) for warning in caught}) == [
        f"plug-in 'packs' of the package 'pack': its model 'mine' is left out because {user} has that name already",
        f"plug-in 'packs' of the package 'pack': its model 'ours' is left out because {own} has that name already",
    ]
    assert find_card("ours")[0].version == "own"
    assert find_card("mine")[0].version == "user"
    assert find_card("ours")[1][0] == own
    assert folder / "models" / "ours" not in find_card("ours")[1]


def test_of_two_plugins_the_first_has_the_name(install: Install) -> None:
    first = install("pack1", HERE, models=("m",))
    second = install("pack2", HERE, models=("m", "n"))
    card = json.loads((second / "models" / "m" / "card.json").read_text())
    (second / "models" / "m" / "card.json").write_text(json.dumps({**card, "version": "other"}))
    with pytest.warns(PluginWarning, match=f"package 'pack2': its model 'm' is left out because {first}"):
        assert list_models() == ["m", "n"]
    with pytest.warns(PluginWarning, match="pack2"):
        assert find_card("m")[1][0] == first / "models" / "m"


def test_a_copy_of_a_plugins_model_is_no_conflict(install: Install, places: dict[str, Path]) -> None:
    """As ``fetch --all --to DIR`` leaves it, with the card in its canonical form."""
    install("pack", HERE, models=("m",))
    copy = write_model(places["user"] / "m")
    (copy / "card.json").write_text(find_card("m")[0].to_json())
    assert list_models() == ["m"]
    assert find_card("m")[1][0] == copy


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_a_registered_folder_is_known_by_the_name_on_its_card(places: dict[str, Path], tmp_path: Path) -> None:
    folder = write_model(tmp_path / "mine").rename(tmp_path / "export-7")
    assert art_medical.register_model is register_model
    assert register_model(folder) == ("mine",)
    assert register_model(str(folder)) == ("mine",)  # again is no conflict
    assert list_models() == ["mine"]
    assert load("mine").input_shape == (1, 2, 2)


def test_a_folder_of_models_is_registered_as_a_whole_or_not_at_all(places: dict[str, Path], tmp_path: Path) -> None:
    write_model(places["own"] / "c")
    for name in ("a", "b"):
        write_model(tmp_path / "some" / name)
    (tmp_path / "some" / "no-card").mkdir()
    assert register_model(tmp_path / "some") == ("a", "b")
    for name in ("c", "d"):
        write_model(tmp_path / "more" / name, version="2")
    with pytest.raises(ModelError, match=f"more/c cannot be registered: {places['own']}/c is the model 'c' already"):
        register_model(tmp_path / "more")
    assert list_models() == ["a", "b", "c"]


def test_what_cannot_be_registered(places: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no model in .*: neither a card.json nor folders with one"):
        register_model(tmp_path / "cwd")
    with pytest.raises(ModelError, match=r"cannot read the model folders in .*/gone: No such file"):
        register_model(tmp_path / "gone")
    folder = write_model(tmp_path / "twice" / "a")
    write_model(tmp_path / "twice" / "b")
    (tmp_path / "twice" / "b" / "card.json").write_text((folder / "card.json").read_text())
    with pytest.raises(ModelError, match=r"twice/a and .*twice/b both name the model 'a'"):
        register_model(tmp_path / "twice")
    (folder / "card.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        register_model(folder)
    assert list_models() == []


# -- choosing ----------------------------------------------------------------------------------------------------------


def test_models_by_task_and_modality(places: dict[str, Path]) -> None:
    binary = {"kind": "one-logit", "labels": ["normal", "Pneumonia"]}
    write_model(places["own"] / "chest", head=binary, input={"modality": "CR"})
    many = {"kind": "softmax", "labels": ["a", "b", "c"]}
    write_model(places["own"] / "skin", head=many, input={"modality": "XC"})
    write_model(places["own"] / "eye", head={"kind": "multi-label", "labels": ["a", "b"]}, input={"modality": "OP"})
    assert list_models(task="pneumonia") == ["chest"]
    assert list_models(task="binary") == ["chest"]
    assert list_models(task="multi-class: a / b") == ["skin"]
    assert list_models(task="multi") == ["eye", "skin"]
    assert list_models(modality="cr") == ["chest"]
    assert list_models("s*", task="multi", modality="XC") == ["skin"]
    assert list_models("s*", modality="CR") == []
