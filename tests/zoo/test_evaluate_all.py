# SPDX-License-Identifier: Apache-2.0
"""``zoo/evaluate_all.py``: the figures on the cards are what weights and data give, and a false one is found."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from art_medical.evaluation.recheck import Difference, differences
from art_medical.evaluation.scorecard import score
from art_medical.zoo.cards import CleanEvaluation, Score
from tests.zoo.models import write_model

ZOO = Path(__file__).resolve().parents[2] / "zoo"
SMALL = ["phantom-hotelling", "phantom-nodule"]


@pytest.fixture
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluate_all", ZOO / "evaluate_all.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_models_of_phantoms_are_as_stated(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: contents(ZOO / name) for name in SMALL}
    assert program.main(SMALL) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:2]] == [[name, "agrees"] for name in SMALL]
    assert lines[2:] == ["tolerance 1e-06: all is as stated"]
    assert {name: contents(ZOO / name) for name in SMALL} == before  # no card is rewritten


@pytest.mark.slow
def test_fundus_is_as_stated(program: ModuleType, data_dir: Callable[[str], Path]) -> None:
    """103 images: the smallest of the real data sets; one binary and one multi-label model."""
    names = [name for name in ("fundus-referable-dr", "fundus-findings") if (ZOO / name / "card.json").is_file()]
    if not names:
        pytest.skip("no fundus model in this checkout")
    assert program.main(["--data", str(data_dir("fundus-idrid").parent), *names]) == 0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of data sets: images of four pixels, those of class 1 brighter."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    images = (rng.integers(0, 200, (60, 2, 2)) + 40 * labels[:, None, None]).astype(np.uint8)
    (tmp_path / "data" / "toys").mkdir(parents=True)
    np.savez(tmp_path / "data" / "toys" / "squares.npz", test_images=images, test_labels=labels[:, None])
    return tmp_path / "data"


def entry(**changes: Any) -> dict[str, Any]:
    """``data`` of a card."""
    return {"name": "s", "doi": "", "licence": "", "splits": {}, "patient_disjoint": "unknown", **changes}


@pytest.fixture
def zoo(tmp_path: Path, data: Path, program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo with one scored model."""
    folder = tmp_path / "zoo"
    write_model(folder / "toy", input={"modality": "XC"}, data=entry(folder="toys/squares.npz"))
    score(folder / "toy", data / "toys" / "squares.npz")
    monkeypatch.setattr(program, "ZOO", folder)
    return folder


def change(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, **changes}))


def test_a_false_figure_is_found(
    zoo: Path, data: Path, program: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(["--data", str(data)]) == 0
    measured = json.loads((zoo / "toy" / "card.json").read_text())["clean_eval"]
    for part, words in (("value", ""), ("low", ", lower limit"), ("high", ", upper limit")):
        for step, code in ((5e-7, 0), (-2e-6 if part == "low" else 2e-6, 1)):
            wrong = json.loads(json.dumps(measured))
            figures = wrong[0]["scores"][1]
            figures[part] += step
            change(zoo / "toy", clean_eval=wrong)
            capsys.readouterr()
            assert program.main(["--data", str(data)]) == code
            out = capsys.readouterr().out
            if code:
                row = f"  {figures['metric'] + words:32} card {figures[part]!s:24} now {measured[0]['scores'][1][part]}"
                assert out.splitlines()[0].split() == ["toy", "DIFFERS"]
                assert [line.rstrip() for line in out.splitlines()[1:-1]] == [row]
                assert out.endswith("at least one card is not reproduced\n")


def test_other_weights_are_found(zoo: Path, data: Path, program: ModuleType) -> None:
    """Card and weights agree with each other, but the scores are those of other weights."""
    figures = json.loads((zoo / "toy" / "card.json").read_text())["clean_eval"]
    write_model(
        zoo / "toy", seed=5, input={"modality": "XC"}, data=entry(folder="toys/squares.npz"), clean_eval=figures
    )
    assert program.main(["--data", str(data)]) == 1


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, [], "toy was measured on toys/squares.npz: say where the data sets are with --data DIR"),
        ({}, ["--data", "."], "toy was measured on toys/squares.npz, which is not in ."),
        ({"data": entry()}, ["--data", "."], "does not say which data set it was measured on (data.folder)"),
        ({"colour": "blue"}, ["--data", "."], "colour: Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_measured_fails(
    zoo: Path,
    program: ModuleType,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    arguments: list[str],
    message: str,
) -> None:
    change(zoo / "toy", **changes)
    assert program.main(arguments) == 1
    line = capsys.readouterr().out.splitlines()[0]
    assert line.split()[:3] == ["toy", "NOT", "MEASURED:"]
    assert message in line


def test_figures_on_other_images_and_no_figures(
    zoo: Path, data: Path, program: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = json.loads((zoo / "toy" / "card.json").read_text())["clean_eval"]
    change(zoo / "toy", clean_eval=[{**figures[0], "dataset": "circles"}])
    assert program.main(["--data", str(data)]) == 1
    assert "has no figures on squares, test: run zoo score" in capsys.readouterr().out
    change(zoo / "toy", clean_eval=[])
    assert program.main(["--data", str(data)]) == 1
    change(zoo / "toy", hub={"repo": "owner/toy", "revision": None})
    capsys.readouterr()
    assert program.main(["--data", str(data), "toy"]) == 0
    assert "states no figures: others publish it" in capsys.readouterr().out


def test_an_unknown_name(zoo: Path, program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        program.main(["nope"])
    assert left.value.code == 2
    assert f"no model 'nope' in {zoo}" in capsys.readouterr().err


def test_every_statement_is_compared() -> None:
    def evaluation(n: int = 3, index: str = "0", **scores: float) -> CleanEvaluation:
        made = tuple(Score(metric=name, value=value, low=0.1, high=0.9) for name, value in scores.items())
        return CleanEvaluation(
            dataset="d", split="test", index_sha256=index * 64, n=n, scores=made, package_version=str(n)
        )

    same = evaluation(auroc=0.5)
    assert differences(same, evaluation(auroc=0.5)) == ()
    assert differences(same, evaluation(n=4, auroc=0.5)) == (Difference("images", 3, 4),)
    assert differences(same, evaluation(index="1", auroc=0.5)) == (
        Difference("sha256 of the index", "0" * 64, "1" * 64),
    )
    assert [d.what for d in differences(same, evaluation())] == ["auroc", "auroc, lower limit", "auroc, upper limit"]
    assert differences(evaluation(), same)[0] == Difference("auroc", None, 0.5)


def test_an_installed_copy_checks_its_own_cards(tmp_path: Path) -> None:
    """The wheel has the program beside the cards: it looks at those of its own folder."""
    shutil.copy(ZOO / "evaluate_all.py", tmp_path)
    spec = importlib.util.spec_from_file_location("evaluate_all_copy", tmp_path / "evaluate_all.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert tmp_path == module.ZOO
