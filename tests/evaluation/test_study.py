# SPDX-License-Identifier: Apache-2.0
"""Study files: every rule names file, line and place; hostile files are refused quickly; budgets convert exactly."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from art_medical.attacks import CATALOGUE
from art_medical.domain import PixelDomain
from art_medical.errors import StudyError
from art_medical.evaluation.cells import plan, stored
from art_medical.evaluation.study import MOST_BYTES, MOST_NODES, Study, embedded_study, parse_study, read_study

VALID = """\
schema: art-medical/study@1
name: tiny
models: [phantom-nodule]
data: {kind: phantom, n: 8}
seeds: [0, 1]
threat_models:
  white:
    knowledge: white-box
  black:
    knowledge: transfer
    surrogate: phantom-hotelling
attacks:
  - attack: pgd
    label: PGD
    threat_model: white
    norm: linf
    eps: [1, 2.5]
  - attack: patch
    label: patch
    threat_model: black
    fit_images: 4
"""


def refusal(text: str) -> str:
    with pytest.raises(StudyError) as caught:
        parse_study(text, "s.yaml")
    message = str(caught.value)
    assert message.startswith("s.yaml")
    assert "\n" not in message
    assert len(message) < 700
    return message


def line_of(text: str, words: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), start=1) if words in line)


def test_the_study_that_the_others_differ_from_is_valid() -> None:
    study = parse_study(VALID, "s.yaml")
    assert study.attacks[0].eps == (1, 2.5)
    assert study.seeds == (0, 1)
    assert study.data.split == "test"
    assert study.batch_size == 32


@pytest.mark.parametrize(
    ("old", "new", "place", "rule"),
    [
        ("study@1", "study@2", "schema: schema", "Input should be 'art-medical/study@1'"),
        ("name: tiny", "name: '<b>'", "name: name", "String should match pattern"),
        ("name: tiny", "name: tiny\ncolour: blue", "colour: colour", "Extra inputs are not permitted"),
        ("models: [phantom-nodule]", "models: []", "models: models", "Tuple should have at least 1 item"),
        ("models: [phantom-nodule]", "models: phantom-nodule", "models: models", "Input should be a valid tuple"),
        ("models: [phantom-nodule]", "models: [a, b, a]", "schema: study", "model 'a' is given twice"),
        ("kind: phantom, n: 8", "kind: dicom", "data: data", "Input tag 'dicom'"),
        ("kind: phantom, n: 8", "kind: phantom, n: 0", "data: data.n", "Input should be greater than 0"),
        ("kind: phantom, n: 8", "kind: phantom", "data: data.n", "Field required"),
        ("kind: phantom, n: 8", "kind: folder, n: 8", "data: data.n", "Extra inputs are not permitted"),
        (
            "kind: phantom, n: 8",
            "kind: npz, split: all",
            "data: data.split",
            "Input should be 'train', 'val' or 'test'",
        ),
        ("seeds: [0, 1]", "seeds: [0, -1]", "seeds: seeds.1", "greater than or equal to 0"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "schema: study", "seed 0 is given twice"),
        ("seeds: [0, 1]", "seeds: []", "seeds: seeds", "at least 1 item"),
        ("knowledge: white-box", "knowledge: grey-box", "grey-box: threat_models.white.knowledge", "'white-box' or"),
        (
            "    surrogate: phantom-hotelling\n",
            "",
            "black:: threat_models.black",
            "a transfer attacker needs a surrogate",
        ),
        ("white-box", "white-box\n    surrogate: x", "white:: threat_models.white", "a white-box attacker has none"),
        ("attack: pgd", "attack: fgsm", "fgsm: attacks.0", f"unknown attack 'fgsm'; there are {', '.join(CATALOGUE)}"),
        (
            "threat_model: white",
            "threat_model: grey",
            "schema: study",
            "'PGD' names the threat model 'grey'; there are",
        ),
        ("label: patch", "label: PGD", "schema: study", "attack label 'PGD' is given twice"),
        ("label: patch", "label: clean", "schema: study", "the label 'clean' is taken"),
        ("label: PGD", "label: 'a\\e'", "label: 'a: attacks.0.label", "String should match pattern"),
        ("norm: linf", "norm: l7", "norm: attacks.0.norm", "Input should be 'linf' or 'l2'"),
        ("    norm: linf\n", "", "attack: pgd: attacks.0", "norm and eps go together"),
        ("    norm: linf\n    eps: [1, 2.5]\n", "", "attack: pgd: attacks.0", "an additive attack needs norm and eps"),
        ("fit_images: 4", "norm: l2\n    eps: [1]", "attack: patch: attacks.1", "a patch has none"),
        ("    fit_images: 4\n", "", "attack: patch: attacks.1", "a patch needs fit_images"),
        ("eps: [1, 2.5]", "eps: [1, 2.5]\n    fit_images: 3", "attack: pgd: attacks.0", "others have none"),
        ("eps: [1, 2.5]", "eps: [1, .nan]", "eps: attacks.0.eps.1", "Input should be a finite number"),
        ("eps: [1, 2.5]", "eps: [.inf]", "eps: attacks.0.eps.0", "Input should be a finite number"),
        ("eps: [1, 2.5]", "eps: [0]", "eps: attacks.0.eps.0", "Input should be greater than 0"),
        ("eps: [1, 2.5]", "eps:\n      - 1\n      - one", "- one: attacks.0.eps.1", "Input should be a valid number"),
        ("eps: [1, 2.5]", "eps: [1, 1.0]", "attack: pgd: attacks.0", "eps names a budget twice: [1.0, 1.0]"),
        ("eps: [1, 2.5]", f"eps: {list(range(1, 66))}", "eps: attacks.0.eps", "at most 64 items"),
        ("eps: [1, 2.5]", "eps: [1]\n    eps_step: .nan", "eps_step: attacks.0.eps_step", "a finite number"),
        (
            "eps: [1, 2.5]",
            "eps: [1]\n    scale: [1, -1]",
            "attack: pgd: attacks.0",
            "scale must be ordered, got [1.0, -1",
        ),
        ("eps: [1, 2.5]", "eps: [1]\n    scale: [0, .inf]", "scale: attacks.0.scale.1", "a finite number"),
        (
            "eps: [1, 2.5]",
            "eps: [1]\n    options: {seed: 3}",
            "attack: pgd: attacks.0",
            "option 'seed' is set by the st",
        ),
        ("eps: [1, 2.5]", "eps: [1]\n    options: 3", "options: attacks.0.options", "should be a valid dictionary"),
        (
            "eps: [1, 2.5]",
            "eps: [1]\n    strength: 3",
            "strength: attacks.0.strength",
            "Extra inputs are not permitted",
        ),
    ],
)
def test_each_rule_names_its_line(old: str, new: str, place: str, rule: str) -> None:
    """``place`` is a word of the line that must be named, and the path into the study."""
    assert VALID.count(old) == 1
    text = VALID.replace(old, new)
    words, _, path = place.rpartition(": ")
    message = refusal(text)
    assert message.startswith(f"s.yaml, line {line_of(text, words)}: {path}: ")
    assert rule in message


def test_errors_are_counted() -> None:
    message = refusal(VALID.replace("n: 8", "n: 0").replace("[0, 1]", "[-1, -2]"))
    assert message == "s.yaml, line 4: data.n: Input should be greater than 0 (and 3 more)"


@pytest.mark.parametrize(
    ("old", "new", "line", "key"),
    [
        ("name: tiny", "name: tiny\nname: other", 3, "name"),
        ("    knowledge: white-box", "    knowledge: white-box\n    knowledge: transfer", 9, "knowledge"),
        ("kind: phantom, n: 8", "kind: phantom, n: 8, n: 9", 4, "n"),
        ("    label: PGD", "    label: PGD\n    label: more", 15, "label"),
    ],
)
def test_repeated_keys(old: str, new: str, line: int, key: str) -> None:
    assert refusal(VALID.replace(old, new)) == f"s.yaml, line {line}: key {key!r} is given twice"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "s.yaml is empty"),
        ("# nothing\n", "s.yaml is empty"),
        ("hello", "line 1: study: Input should be a valid dictionary"),
        ("- a\n- b\n", "line 1: study: Input should be a valid dictionary"),
        ("a: [1,\n", "line 2: not YAML: expected the node content"),
        (VALID.replace("    label: PGD", "\tlabel: PGD"), "line 14: not YAML: found character '\\t' that cannot start"),
        (
            VALID.replace("tiny", "!!python/object/apply:os.system [true]"),
            "line 2: not YAML: could not determine a con",
        ),
        (VALID.replace("tiny", "*missing"), "line 2: not YAML: found undefined alias"),
        (VALID.replace("tiny", "\0"), "not YAML: unacceptable character"),
        (VALID.replace("tiny", "2020-13-45"), "not YAML: month must be in 1..12"),
        (VALID.replace("tiny", "!!int x"), "not YAML: invalid literal for int"),
        (VALID.replace("tiny", "!!bool x"), "not YAML: 'x'"),
        (VALID.replace("tiny", "9" * 5000), "not YAML: "),
        ("? {a: b}\n: c\n", "line 1: a key must be a plain word"),
        ("? [a]\n: c\n", "line 1: a key must be a plain word"),
        ("a: &a [*a]\n", f"more than {MOST_NODES} entries"),
        ("[" * 5000, "is nested too deeply"),
        ("a: 1\n---\nb: 2\n", "line 2: not YAML: but found another document"),
    ],
)
def test_texts_that_are_no_study(text: str, message: str) -> None:
    assert message in refusal(text)


def test_a_bomb_of_aliases_is_refused_at_once() -> None:
    """Nine levels of nine aliases would be 387 million entries."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    before = time.perf_counter()
    assert f"more than {MOST_NODES} entries; a study is a short file" in refusal("\n".join(levels))
    assert time.perf_counter() - before < 1


def test_aliases_and_merges_are_fine() -> None:
    text = VALID.replace("eps: [1, 2.5]", "eps: &budgets [1, 2.5]").replace("seeds: [0, 1]", "seeds: [3]")
    entry = "  - &base {attack: noise, label: a, threat_model: white, norm: linf, eps: *budgets}\n"
    text = text.replace("  - attack: patch", entry + "  - <<: *base\n    label: b\n  - attack: patch")
    study = parse_study(text, "s.yaml")
    assert [entry.label for entry in study.attacks] == ["PGD", "a", "b", "patch"]
    assert study.attacks[2].eps == (1, 2.5)


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#" * (MOST_BYTES + 1), f"has more than {MOST_BYTES} bytes"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    with pytest.raises(StudyError) as caught:
        read_study(path)
    assert message in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"cannot read the study .*absent: No such file or directory"):
        read_study(tmp_path / "absent")
    with pytest.raises(StudyError, match=r"cannot read the study .*: Is a directory"):
        read_study(tmp_path)


def test_relative_paths_are_taken_from_the_folder_of_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    text = VALID.replace("kind: phantom, n: 8", "kind: folder, path: ../images").replace("[ph", "[./mine, /abs/m, ph")
    (tmp_path / "deep" / "s.yaml").write_text(text.replace("surrogate: phantom-hotelling", "surrogate: ../other"))
    study = read_study(Path("deep/s.yaml"))
    assert study.models == ("deep/mine", "/abs/m", "phantom-nodule")
    assert study.threat_models["black"].surrogate == "deep/../other"
    assert study.threat_models["white"].surrogate is None
    assert study.data.model_dump() == {"kind": "folder", "split": "test", "path": "deep/../images", "targets": None}


# -- what is run -------------------------------------------------------------------------------------------------------


def with_scale(**entry: Any) -> Study:
    study = parse_study(VALID, "s.yaml")
    return study.model_copy(update={"attacks": (study.attacks[0].model_copy(update=entry),), "seeds": (0,)})


def test_the_budget_of_finlayson_in_grey_levels() -> None:
    """0.02 on [-1, 1] are 2.55 of 255 grey levels, the step of 0.01 is 1.275."""
    study = with_scale(eps=(0.02,), eps_step=0.01, scale=(-1, 1))
    domain = PixelDomain(0, 255)
    (clean, cell) = plan(study, "m", domain)
    assert clean.budget is None
    assert cell.budget is not None
    assert (cell.budget.norm, cell.budget.unit) == ("linf", "grey level")
    assert cell.budget.eps == pytest.approx(2.55, rel=1e-12)
    assert stored(domain, study.attacks[0], 0.01) == pytest.approx(1.275, rel=1e-12)
    assert stored(PixelDomain(-1024, 3071), study.attacks[0], 0.02) == pytest.approx(40.95)


def test_every_attack_meets_every_budget_and_seed() -> None:
    cells = plan(parse_study(VALID, "s.yaml"), "m", PixelDomain(0, 255))
    found = [(c.attack, None if c.budget is None else c.budget.eps, c.seed) for c in cells]
    assert found == [
        ("clean", None, 0),
        ("PGD", 1, 0), ("PGD", 1, 1), ("PGD", 2.5, 0), ("PGD", 2.5, 1),
        ("patch", None, 0), ("patch", None, 1),
    ]  # fmt: skip


def test_the_embedded_study_has_controls_and_both_kinds_of_knowledge() -> None:
    study = embedded_study()
    assert study.data.kind == "phantom"
    assert {entry.attack for entry in study.attacks} == {"pgd", "noise", "patch", "natural-patch"}
    assert {threat.knowledge for threat in study.threat_models.values()} == {"white-box", "transfer"}


@pytest.mark.parametrize("path", sorted((Path(__file__).resolve().parents[2] / "studies").glob("*.yaml")), ids=str)
def test_published_studies_are_valid(path: Path) -> None:
    assert read_study(path).attacks
