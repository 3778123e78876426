# SPDX-License-Identifier: Apache-2.0
"""Running a study: cut runs continue to the same bytes, cells are named by what decides them, transfer is transfer."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from art_medical import __version__
from art_medical.attacks.projected_gradient_descent import ProjectedGradientDescent
from art_medical.errors import InputError, ModelError, StudyError
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.evaluation.progress import Silent
from art_medical.evaluation.results import Results
from art_medical.evaluation.runner import evaluate
from art_medical.evaluation.store import Store
from art_medical.evaluation.study import Study
from art_medical.images.phantoms import LumpyPhantom
from art_medical.zoo.registry import ZOO_VARIABLE, find_card, load
from tests.zoo.models import RESNET, biased, fields, write_model

MODEL = "phantom-hotelling"
PGD = {"attack": "pgd", "label": "PGD", "threat_model": "white", "norm": "linf", "eps": [2, 8]}
PATCH = {"attack": "natural-patch", "label": "patch", "threat_model": "white", "fit_images": 4}
WHITE = {"white": {"knowledge": "white-box"}}
PHANTOM_INPUT = {"shape": [1, 64, 64], "high": 4095, "unit": "stored value"}


def study(*attacks: dict[str, Any], **changes: Any) -> Study:
    content = {
        "schema": "art-medical/study@1",
        "name": "tiny",
        "models": [MODEL],
        "data": {"kind": "phantom", "n": 10},
        "threat_models": WHITE,
        "attacks": [{"options": {"max_iter": 3}, **a} if a["attack"] == "pgd" else a for a in attacks],
        "batch_size": 4,
    }
    return Study.model_validate({**content, **changes})


def ids(results: Results) -> list[str]:
    return [cell["id"] for cell in results.cells]


class Counting(Silent):
    """Progress: what was begun, and how many images of it were done."""

    def __init__(self) -> None:
        self.tasks: list[list[Any]] = []

    def begin(self, task: str, images: int) -> None:
        self.tasks.append([task, images, 0])

    def advance(self, images: int) -> None:
        self.tasks[-1][2] += images


@pytest.fixture
def no_attack(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, whoever attacks or predicts fails."""

    def forbid() -> None:
        def fail(*_: Any, **__: Any) -> NoReturn:
            raise AssertionError("computed what was already there")

        monkeypatch.setattr(ProjectedGradientDescent, "generate", fail)
        monkeypatch.setattr(MedicalClassifier, "predict_logits", fail)

    return forbid


# -- what is measured --------------------------------------------------------------------------------------------------


def test_figures_equal_those_of_a_direct_attack() -> None:
    """The runner's numbers, from the attack run by hand on the same images."""
    results = evaluate(study(PGD, seeds=[5]))
    estimator = load(MODEL)
    x, y = LumpyPhantom().sample(10, seed=0, split="test")
    clean = estimator.predict(x).argmax(1)
    for cell, eps in zip(results.cells, (None, 2, 8), strict=True):
        attacked = x
        if eps is not None:
            attack = ProjectedGradientDescent(estimator, norm=np.inf, eps=eps, max_iter=3, seed=5, batch_size=10)
            attacked = attack.generate(x, y, ids=[f"test-0-{i}" for i in range(10)])
        decisions = estimator.predict(attacked).argmax(1)
        assert cell["metrics"]["accuracy"]["value"] == (decisions == y).mean()
        if eps is not None:
            flipped = (decisions != y)[clean == y].mean()
            assert cell["metrics"]["attack_success_rate"]["value"] == flipped
    assert results.cells[2]["metrics"]["accuracy"]["value"] < results.cells[0]["metrics"]["accuracy"]["value"]


def test_success_follows_the_closed_form() -> None:
    """An image of the Hotelling observer flips exactly when the budget exceeds its known distance."""
    attack = {**PGD, "eps": [4], "options": {"max_iter": 20}}
    results = evaluate(study(attack, data={"kind": "phantom", "n": 40}))
    phantom = LumpyPhantom()
    x, y = phantom.sample(40, seed=0, split="test")
    observer = phantom.hotelling()
    statistic = (x[:, 0].astype(np.float64) * observer.template).sum((1, 2)) + observer.offset
    distance = abs(statistic) / abs(observer.template).sum()
    right = (statistic > 0) == (y == 1)
    certain = abs(distance - 4) > 0.2  # away from rounding
    success = results.arrays[ids(results)[1]]["success"]
    assert certain.sum() > 30
    assert np.array_equal(success[right & certain], (distance < 4)[right & certain])
    assert 0 < success[right].mean() < 1


def test_results_have_the_schema_of_the_issue() -> None:
    results = evaluate(study(PGD, PATCH))
    content = json.loads(results.to_json())
    assert sorted(content) == ["cells", "checks", "provenance", "schema", "study"]
    assert content["schema"] == "art-medical/results@1"
    assert [cell["attack"] for cell in content["cells"]] == ["clean", "PGD", "PGD", "patch"]
    for cell in content["cells"]:
        assert {"id", "model", "data", "defence", "attack", "budget", "n", "seed", "metrics"} <= set(cell)
        assert len(cell["id"]) == 64
        assert (cell["model"], cell["data"], cell["defence"], cell["n"], cell["seed"]) == (
            MODEL,
            "phantom",
            "none",
            10,
            0,
        )
        for metric in cell["metrics"].values():
            assert {"value", "low", "high"} <= set(metric)
            if metric["value"] is not None and metric["low"] is not None:
                assert metric["low"] <= metric["value"] <= metric["high"]
        assert {"accuracy", "auroc", "sensitivity", "specificity", "confidence"} <= set(cell["metrics"])
        assert ("attack_success_rate" in cell["metrics"]) == (cell["attack"] != "clean")
    assert content["cells"][0]["budget"] is None
    assert content["cells"][1]["budget"] == {
        "norm": "linf", "eps": 2.0, "unit": "stored value", "text": "2 stored values (0.049 % of the range)",
    }  # fmt: skip
    assert [cell["threat_model"] for cell in content["cells"]] == [None, "white", "white", "white"]
    provenance = content["provenance"]
    assert provenance["versions"]["art-medical"] == __version__
    assert {"python", "torch", "monai", "numpy", "adversarial-robustness-toolbox"} <= set(provenance["versions"])
    card = find_card(MODEL)[0]
    assert provenance["models"][MODEL]["weights"] == card.files[card.weights].sha256
    assert provenance["models"][MODEL]["version"] == card.version
    assert provenance["data"][MODEL]["index"] == LumpyPhantom().identity()
    assert provenance["data"][MODEL]["n"] == 10
    assert provenance["device"] == "cpu"


def test_results_name_nothing_of_this_machine(tmp_path: Path) -> None:
    store = Store(tmp_path / "cells")
    text = evaluate(study(PGD), store=store).to_json()
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text


def test_evidence_and_arrays_agree() -> None:
    results = evaluate(study(PGD))
    for cell in results.cells[1:]:
        arrays, evidence = results.arrays[cell["id"]], cell["evidence"]
        assert evidence["linf_max"] == arrays["linf"].max() <= cell["budget"]["eps"]
        assert evidence["within_budget"] is True
        assert evidence["on_storage_grid"] is True
        assert evidence["success_on_attacked_model"] == arrays["success"].sum()
        change = arrays["exemplar_attacked"] - arrays["exemplar_clean"]
        assert abs(change).max() <= cell["budget"]["eps"]
        shown = arrays["exemplars"]
        assert set(arrays["truth"][shown].tolist()) == {0, 1}
        assert np.array_equal(arrays["linf"][shown], abs(change).reshape(len(shown), -1).max(1))


# -- cut and continued -------------------------------------------------------------------------------------------------


def test_a_second_run_computes_nothing(tmp_path: Path, no_attack: Callable[[], None]) -> None:
    store = Store(tmp_path)
    first = evaluate(study(PGD, PATCH), store=store)
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert sorted(written) == sorted(f"{key}{suffix}" for key in ids(first) for suffix in (".json", ".npz"))
    no_attack()
    second = evaluate(study(PGD, PATCH), store=store)
    assert second.to_json() == first.to_json()
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written
    for key, arrays in first.arrays.items():
        assert all(np.array_equal(second.arrays[key][name], array) for name, array in arrays.items())


@pytest.mark.parametrize("calls", [0, 1, 4, 5])
def test_a_cut_run_continues_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Cut in the middle of a cell (three batches each) and between two of them."""
    whole = evaluate(study(PGD, PATCH, seeds=[0, 1]), store=Store(tmp_path / "whole"))
    generate, left = ProjectedGradientDescent.generate, [calls]

    def cut(self: ProjectedGradientDescent, *args: Any, **kwargs: Any) -> NDArray[np.float32]:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return generate(self, *args, **kwargs)

    store = Store(tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(ProjectedGradientDescent, "generate", cut)
        with pytest.raises(KeyboardInterrupt):
            evaluate(study(PGD, PATCH, seeds=[0, 1]), store=store)
    assert len(list(store.folder.glob("*.json"))) == 1 + calls // 3
    assert not list(store.folder.glob("*.part"))
    resumed = evaluate(study(PGD, PATCH, seeds=[0, 1]), store=store)
    assert resumed.to_json().encode() == whole.to_json().encode()
    names = sorted(path.name for path in store.folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "whole").iterdir())
    for name in names:
        if name.endswith(".json"):
            assert (store.folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_a_damaged_cell_is_computed_again(tmp_path: Path, suffix: str) -> None:
    store = Store(tmp_path)
    first = evaluate(study(PGD), store=store)
    damaged = tmp_path / f"{ids(first)[1]}{suffix}"
    damaged.write_bytes(damaged.read_bytes()[:50])
    progress = Counting()
    again = evaluate(study(PGD), store=store, progress=progress)
    assert again.to_json() == first.to_json()
    assert progress.tasks == [["phantom-hotelling: PGD, eps 2", 10, 10]]
    assert store.read(ids(first)[1]) is not None


def test_without_a_store_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evaluate(study(PGD))
    assert list(tmp_path.iterdir()) == []


def test_batches_of_any_size_give_the_same_figures() -> None:
    """Signs of gradients that are zero but for rounding may differ."""
    small, large = (evaluate(study(PGD, batch_size=size)) for size in (3, 10))
    assert ids(small) == ids(large)
    for a, b in zip(small.cells, large.cells, strict=True):
        assert a["metrics"]["accuracy"] == b["metrics"]["accuracy"]
        assert a["metrics"]["confidence"]["value"] == pytest.approx(b["metrics"]["confidence"]["value"], abs=1e-4)


def test_a_limit_takes_the_first_phantoms() -> None:
    results = evaluate(study(PGD), limit=4)
    assert [cell["n"] for cell in results.cells] == [4, 4, 4]
    assert results.arrays[ids(results)[0]]["ids"].tolist() == [f"test-0-{i}" for i in range(4)]
    assert ids(evaluate(study(), limit=99)) == ids(evaluate(study()))


def test_progress_counts_every_image() -> None:
    progress = Counting()
    # Two epochs of four training images, for a patch of each of the two classes.
    patch = {"attack": "patch", "label": "P", "threat_model": "white", "fit_images": 4, "options": {"nb_epochs": 2}}
    evaluate(study(PGD, patch), progress=progress)
    assert progress.tasks == [
        ["phantom-hotelling: clean", 10, 0],
        ["phantom-hotelling: PGD, eps 2", 10, 10],
        ["phantom-hotelling: PGD, eps 8", 10, 10],
        ["phantom-hotelling: making P", 16, 16],
        ["phantom-hotelling: P", 10, 10],
    ]


# -- names of cells ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def names() -> list[str]:
    return ids(evaluate(study(PGD)))


@pytest.mark.parametrize(
    "changed",
    [
        study({**PGD, "label": "another name"}),
        study({**PGD, "threat_model": "words"}, threat_models={"words": {"knowledge": "white-box", "goal": "any"}}),
        study(PGD, name="other", description="words", batch_size=5),
        study({**PGD, "eps": [2, 8, 9]}),
        study(PGD, PATCH),
    ],
    ids=["label", "threat model", "study", "more budgets", "more attacks"],
)
def test_names_and_company_do_not_change_a_cell(names: list[str], changed: Study) -> None:
    assert ids(evaluate(changed))[:3] == names


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        (study({**PGD, "eps": [2, 9]}), [True, True, False]),
        (study({**PGD, "eps": [3, 8]}), [True, False, True]),
        (study({**PGD, "norm": "l2"}), [True, False, False]),
        (study({**PGD, "eps_step": 1}), [True, False, False]),
        (study({**PGD, "options": {"max_iter": 4}}), [True, False, False]),
        (study({**PGD, "attack": "noise", "options": {}}), [True, False, False]),
        (study(PGD, seeds=[1]), [False, False, False]),
        (study(PGD, data={"kind": "phantom", "n": 9}), [False, False, False]),
        (study(PGD, data={"kind": "phantom", "n": 10, "seed": 1}), [False, False, False]),
        (study(PGD, data={"kind": "phantom", "n": 10, "split": "val"}), [False, False, False]),
        (study(PGD, models=["phantom-nodule"]), [False, False, False]),
    ],
    ids=["eps", "eps 1", "norm", "step", "options", "attack", "seed", "n", "data seed", "split", "model"],
)
def test_what_decides_the_numbers_changes_the_name(names: list[str], changed: Study, same: list[bool]) -> None:
    found = ids(evaluate(changed))
    assert [a == b for a, b in zip(found, names, strict=True)] == same
    assert len(set(found)) == len(found)


def test_weights_and_executed_card_change_the_name(tmp_path: Path) -> None:
    """Other words on the card do not."""
    arguments: dict[str, Any] = {"args": {"shape": [1, 64, 64]}, "input": PHANTOM_INPUT}
    folders = {
        "base": write_model(tmp_path / "base" / "m", **arguments),
        "words": write_model(tmp_path / "words" / "m", **arguments, intended_use="Other.", version="2"),
        "weights": write_model(tmp_path / "weights" / "m", **arguments, seed=1),
        "steps": write_model(
            tmp_path / "steps" / "m",
            args={"shape": [1, 64, 64]},
            input={**PHANTOM_INPUT, "steps": [{"kind": "rescale", "scale": 0.5}]},
        ),
    }
    found = {name: ids(evaluate(study(models=[str(folder)])))[0] for name, folder in folders.items()}
    assert found["base"] == found["words"]
    assert len(set(found.values())) == 3


def test_files_with_the_same_index_and_other_pixels_are_other_cells(tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "data")
    model = write_model(tmp_path / "tiny")
    on_files = study(models=[str(model)], data={"kind": "folder"})
    before = ids(evaluate(on_files, data=folder))
    assert before == ids(evaluate(on_files, data=folder))
    Image.fromarray(np.full((2, 2), 9, np.uint8)).save(folder / "images" / "0.png")
    assert before != ids(evaluate(on_files, data=folder))


# -- transfer ----------------------------------------------------------------------------------------------------------


def test_transfer_uses_the_gradients_of_the_surrogate() -> None:
    """The images are those made on the surrogate, scored on the victim."""
    black = {"black": {"knowledge": "transfer", "surrogate": MODEL}}
    attack = {**PGD, "threat_model": "black", "eps": [8]}
    results = evaluate(study(attack, models=["phantom-nodule"], threat_models=black))
    x, y = LumpyPhantom().sample(10, seed=0, split="test")
    maker = ProjectedGradientDescent(load(MODEL), norm=np.inf, eps=8, max_iter=3)
    attacked = maker.generate(x, y, ids=[f"test-0-{i}" for i in range(10)])
    arrays = results.arrays[ids(results)[1]]
    assert np.array_equal(arrays["exemplar_attacked"], attacked[arrays["exemplars"]])
    assert np.array_equal(arrays["logits"], load("phantom-nodule").predict_logits(attacked, 4))
    assert maker.record is not None
    assert np.array_equal(arrays["success"], maker.record.success)  # on the surrogate
    white = evaluate(study({**PGD, "eps": [8]}, models=["phantom-nodule"]))
    assert ids(white)[1] != ids(results)[1]
    assert ids(white)[0] == ids(results)[0]
    assert MODEL in results.provenance["models"]


def test_a_surrogate_must_take_the_same_images(tmp_path: Path) -> None:
    other = write_model(tmp_path / "other")
    black = {"black": {"knowledge": "transfer", "surrogate": str(other)}}
    with pytest.raises(ModelError, match="takes other images or labels than phantom-hotelling and cannot be its surr"):
        evaluate(study({**PGD, "threat_model": "black"}, threat_models=black))


# -- images from files -------------------------------------------------------------------------------------------------


def folder_of_images(folder: Path, n: int = 6, labels: list[int] | None = None) -> Path:
    (folder / "images").mkdir(parents=True)
    rows = ["file,label,split"]
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 256, (2, 2), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        rows.append(f"{i}.png,{i % 2 if labels is None else labels[i]},test")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


def test_folder_and_npz_hold_the_same_images(tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "data")
    model = write_model(tmp_path / "tiny")
    pixels = np.stack([np.asarray(Image.open(folder / "images" / f"{i}.png")) for i in range(6)])
    np.savez(tmp_path / "data.npz", test_images=pixels, test_labels=np.arange(6)[:, None] % 2)
    results = [
        evaluate(study(PGD, models=[str(model)], data={"kind": kind}), data=path)
        for kind, path in (("folder", folder), ("npz", tmp_path / "data.npz"))
    ]
    assert results[0].cells[0]["metrics"] == results[1].cells[0]["metrics"]
    named = study(PGD, models=[str(model)], data={"kind": "folder", "path": str(folder)})
    assert ids(evaluate(named)) == ids(results[0])
    index = hashlib.sha256((folder / "labels.csv").read_bytes()).hexdigest()
    assert results[0].provenance["data"][str(model)]["index"] == index


@pytest.mark.parametrize(
    ("changes", "data", "error", "message"),
    [
        ({"data": {"kind": "folder"}}, None, InputError, "'tiny' runs on files: say where they are with --data DIR"),
        ({"data": {"kind": "folder"}}, "absent", InputError, "no data at absent"),
        ({"data": {"kind": "npz", "path": "gone.npz"}}, None, InputError, "no data at gone.npz"),
        ({}, "anything", InputError, "'tiny' runs on generated phantoms and takes no --data"),
        ({"models": ["nope"]}, None, ModelError, "unknown model 'nope'"),
    ],
)
def test_studies_that_cannot_start(
    changes: dict[str, Any], data: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        evaluate(study(PGD, **changes), data=None if data is None else Path(data))
    assert message in str(caught.value)


def test_images_that_the_model_does_not_take(tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "data")
    shape = write_model(tmp_path / "shape", args={"shape": [1, 3, 3]}, input={"shape": [1, 3, 3]})
    levels = write_model(tmp_path / "levels", input={"high": 4095, "unit": "stored value"})
    with pytest.raises(InputError, match=r"expected images of shape \(N, 1, 3, 3\), got \(6, 1, 2, 2\)"):
        evaluate(study(models=[str(shape)], data={"kind": "folder"}), data=folder)
    with pytest.raises(InputError, match="data stores 0 to 255 grey levels, the model takes 0 to 4095 stored values"):
        evaluate(study(models=[str(levels)], data={"kind": "folder"}), data=folder)
    outside = folder_of_images(tmp_path / "labels", labels=[0, 1, 0, 1, 0, 2])
    with pytest.raises(InputError, match="label 2 is outside the model's card: it has 2 classes"):
        evaluate(study(models=[str(write_model(tmp_path / "m"))], data={"kind": "folder"}), data=outside)
    with pytest.raises(InputError, match="has no image of split 'train'"):
        evaluate(study(PATCH, models=[str(write_model(tmp_path / "n"))], data={"kind": "folder"}), data=folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 3}, "attack 'PGD': ProjectedGradientDescent refused its options: .*'strength'"),
        ({"max_iter": "many"}, "attack 'PGD': max_iter must be a whole number of 0 or more, got 'many'"),
        ({"confidence": "high"}, "attack 'PGD': ProjectedGradientDescent refused its options"),
        ({"loss_type": "hinge"}, "attack 'PGD': loss_type must be one of cross_entropy, margin, dlr, got 'hinge'"),
    ],
)
def test_options_that_an_attack_refuses(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        evaluate(study({**PGD, "options": options}), store=Store(tmp_path))


def test_infinity_among_the_options_is_written_as_a_word() -> None:
    results = evaluate(study({**PGD, "options": {"max_iter": 2, "confidence": math.inf}}))
    content = json.loads(results.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert content["cells"][1]["settings"]["confidence"] == "inf"
    assert content["study"]["attacks"][0]["options"]["confidence"] == "inf"


def test_models_with_other_heads_are_summarised_by_their_own(tmp_path: Path) -> None:
    """A softmax network with three classes: labels from the files, a random network, figures from the metrics."""
    folder = folder_of_images(tmp_path / "data", labels=[0, 1, 2, 0, 1, 2])
    model = write_model(
        tmp_path / "three",
        target="ResNet",
        args={**RESNET, "num_classes": 3},
        prepare=biased(0.0),
        input={"shape": [1, 2, 2], "steps": [{"kind": "resize", "size": [16, 16]}]},
        head={"kind": "softmax", "labels": ["a", "b", "c"]},
    )
    results = evaluate(study(PGD, models=[str(model)], data={"kind": "folder"}), data=folder)
    assert "sensitivity" not in results.cells[0]["metrics"]
    logits = results.arrays[ids(results)[0]]["logits"]
    assert logits.shape == (6, 3)
    right = logits.argmax(1) == np.array([0, 1, 2, 0, 1, 2])
    assert results.cells[0]["metrics"]["accuracy"]["value"] == right.mean()


def test_a_models_folder_may_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are named by hashes, not by places."""
    source = find_card(MODEL)[1][0]
    shutil.copytree(source, tmp_path / "zoo" / "copy", ignore=shutil.ignore_patterns("checkpoints"))
    monkeypatch.setenv(ZOO_VARIABLE, str(tmp_path / "zoo"))
    assert ids(evaluate(study(models=[str(tmp_path / "zoo" / "copy")]))) == ids(evaluate(study()))


def test_summaries_use_the_card() -> None:
    """The operating point of the card decides, not one half."""
    results = evaluate(study(models=["phantom-nodule"], data={"kind": "phantom", "n": 60}))
    card = find_card("phantom-nodule")[0]
    assert card.head.thresholds is not None
    arrays = results.arrays[ids(results)[0]]
    positive = card.head.probabilities(arrays["logits"])[:, 1] > card.head.thresholds[0]
    truth = arrays["truth"] == 1
    assert results.cells[0]["metrics"]["sensitivity"]["value"] == positive[truth].mean()
    assert results.cells[0]["metrics"]["specificity"]["value"] == 1 - positive[~truth].mean()


def test_each_model_meets_its_own_data_and_its_own_surrogate(tmp_path: Path) -> None:
    """``kind: zoo`` takes the data set from the card, ``{model}`` in a surrogate stands for the evaluated model."""
    for i, name in enumerate(("a", "b")):
        folder_of_images(tmp_path / "data" / f"set-{name}", n=4 + 2 * i)
        for twin in (name, f"{name}-surrogate"):
            write_model(tmp_path / twin, data={**fields()["data"], "folder": f"set-{name}"})
    models = [str(tmp_path / name) for name in ("a", "b")]
    black = {"black": {"knowledge": "transfer", "surrogate": "{model}-surrogate"}}
    attack = {**PGD, "threat_model": "black", "eps": [8]}
    whole = study(attack, models=models, data={"kind": "zoo"}, threat_models=black)
    found = evaluate(whole, data=tmp_path / "data")
    assert [(cell["data"], cell["n"]) for cell in found.cells] == [("set-a", 4)] * 2 + [("set-b", 6)] * 2
    assert list(found.provenance["models"]) == [*models, *(f"{model}-surrogate" for model in models)]
    with pytest.raises(InputError, match="the card of a names no data set"):
        write_model(tmp_path / "a")
        evaluate(whole, data=tmp_path / "data")
