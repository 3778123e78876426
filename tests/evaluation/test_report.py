# SPDX-License-Identifier: Apache-2.0
"""The report against the record that it is rendered from: every figure, every picture, and nothing from elsewhere."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from art_medical.errors import ArtMedicalError
from art_medical.estimators.heads import Head
from art_medical.evaluation import figures, tables
from art_medical.evaluation.intervals import Estimate, undefined, wilson
from art_medical.evaluation.report import render_report, report_html
from art_medical.evaluation.results import Results
from art_medical.evaluation.store import Arrays
from art_medical.evaluation.study import Study, parse_study

BINARY = Head(kind="one-logit", labels=("healthy", "pneumonia"), thresholds=(0.3,))
LABELS = Head(kind="multi-label", labels=("nodule", "effusion [left]"))
CLASSES = Head(kind="softmax", labels=("a", "b", "c"))
N, POSITIVE = 40, 16
NOTHING = "\N{EN DASH}"
VOID = {"meta", "img", "br", "link", "input", "hr"}


# -- synthetic results -------------------------------------------------------------------------------------------------


def study(**changes: Any) -> Study:
    content: dict[str, Any] = {
        "schema": "art-medical/study@1",
        "name": "pilot",
        "models": ["alpha"],
        "data": {"kind": "phantom", "n": N},
        "threat_models": {
            "insider": {"knowledge": "white-box"},
            "outsider": {"knowledge": "transfer", "surrogate": "beta"},
        },
        "attacks": [
            {"attack": "noise", "label": "noise", "threat_model": "insider", "norm": "linf", "eps": [4]},
            {
                "attack": "pgd",
                "label": "PGD",
                "threat_model": "insider",
                "norm": "linf",
                "eps": [1, 4],
                "options": {"confidence": float("inf")},
            },
            {"attack": "pgd", "label": "PGD far", "threat_model": "outsider", "norm": "l2", "eps": [50]},
            {"attack": "patch", "label": "patch", "threat_model": "insider", "fit_images": 5},
        ],
    }
    return Study.model_validate(content | changes)


def metrics(head: Head, random: np.random.Generator, *, attacked: bool) -> dict[str, Any]:
    """Metrics under the names of ``summarise``, with counts drawn at random."""

    def rate(n: int) -> Estimate:
        return wilson(int(random.integers(n + 1)), n)

    def area() -> Estimate:
        value = float(random.uniform(0.2, 0.8))
        return Estimate(value, value - 0.1234, value + 0.1111, N, "delong")

    found = {"accuracy": rate(N), "accuracy_argmax": rate(N), "confidence": area(), "auroc": area()}
    suffixes = {"multi-label": [f"[{label}]" for label in head.labels], "softmax": []}.get(head.kind, [""])
    for suffix in suffixes:
        found[f"auroc{suffix}"] = area()
        found[f"sensitivity{suffix}"] = rate(POSITIVE)
        found[f"specificity{suffix}"] = rate(N - POSITIVE)
        found[f"ppv{suffix}"], found[f"npv{suffix}"] = (
            rate(int(random.integers(1, N))),
            rate(int(random.integers(1, N))),
        )
    if attacked:
        found |= {"robust_accuracy": rate(N), "attack_success_rate": rate(31), "attack_success_rate_all": rate(N)}
        for suffix in suffixes:
            found[f"hide{suffix}"], found[f"inject{suffix}"] = rate(13), rate(19)
    return {name: estimate.to_json() for name, estimate in found.items()}


def records(chosen: Study, head: Head = BINARY, unit: str = "grey level") -> list[dict[str, Any]]:
    """One cell for each model, attack, budget and seed, in the order of the runner."""
    random = np.random.default_rng(7)
    cells: list[dict[str, Any]] = []
    for model in chosen.models:
        plan: list[tuple[Any, float | None, int]] = [(None, None, chosen.seeds[0])]
        for entry in chosen.attacks:
            plan += [(entry, eps, seed) for eps in entry.eps or (None,) for seed in chosen.seeds]
        for entry, eps, seed in plan:
            attacked = entry is not None
            budget = {"norm": entry.norm, "eps": float(eps), "unit": unit, "text": f"{eps:g} {unit}s"} if eps else None
            steps = {"pgd": {"max_iter": 20, "num_random_init": 1}, "noise": {"max_iter": 0, "num_random_init": 5}}
            cells.append(
                {
                    "id": f"{len(cells):064x}",
                    "model": model,
                    "data": "phantom",
                    "defence": "none",
                    "attack": entry.label if attacked else "clean",
                    "budget": budget,
                    "n": N,
                    "seed": seed,
                    "metrics": metrics(head, random, attacked=attacked),
                    "threat_model": entry.threat_model if attacked else None,
                    "settings": {"attack": entry.attack, "eps": eps, **steps.get(entry.attack, {})}
                    if attacked
                    else None,
                    "evidence": {
                        "success_on_attacked_model": int(random.integers(N)),
                        "unchanged": 1,
                        "zero_gradient": 2,
                        "forward_per_image": 21.5,
                        "backward_per_image": 20.0,
                        "linf_max": 3027.0,
                        "linf_median": 3.5,
                        "l2_median": 33394.1337,
                        "on_storage_grid": True,
                        "within_budget": None if budget is None else True,
                        "converged": None,
                    }
                    if attacked
                    else None,
                }
            )
    return cells


def images(head: Head, shape: tuple[int, ...], seed: int) -> Arrays:
    """Per-sample arrays of one cell; even images are of label 0."""
    random = np.random.default_rng(seed)
    clean = random.integers(0, 256, (4, *shape)).astype(np.float32)
    truth = np.arange(N) % 2
    if head.kind == "multi-label":
        truth = np.stack([truth, truth], 1)
    return {
        "ids": np.array([f"image-{i}" for i in range(N)]),
        "groups": np.array([f"patient-{i // 2}" for i in range(N)]),
        "truth": truth,
        "logits": random.normal(size=(N, head.outputs)).astype(np.float32),
        "exemplars": np.array([2, 4, 5, 7]),
        "exemplar_clean": clean,
        "exemplar_attacked": np.clip(clean + random.integers(-4, 5, clean.shape), 0, 255).astype(np.float32),
    }


def build(
    chosen: Study | None = None,
    cells: list[dict[str, Any]] | None = None,
    *,
    head: Head = BINARY,
    card: bool = True,
    shape: tuple[int, ...] | None = (1, 8, 8),
    checks: tuple[dict[str, Any], ...] = ({"name": "budget kept", "passed": True, "detail": "everywhere"},),
) -> Results:
    chosen = chosen or study()
    cells = records(chosen, head) if cells is None else cells
    stored = {"low": 0.0, "high": 255.0, "step": 1.0, "unit": "grey level", "modality": "X-ray", "shape": [1, 8, 8]}
    about = {"card": {"head": head.model_dump(mode="json"), "input": stored}} if card else {}
    return Results(
        study=chosen,
        cells=tuple(cells),
        checks=checks,
        provenance={
            "versions": {"art-medical": "9.8.7", "python": "3.11"},
            "platform": "Linux",
            "device": "cpu",
            "models": {
                ref: {"name": ref, "version": "1.0", "weights": "a" * 64, "definition": "b" * 64} | about
                for ref in (*chosen.models, "beta")
            },
            "data": {"phantom": {"name": "phantom", "split": "test", "n": N, "index": "c" * 64, "ids": "d" * 64}},
        },
        arrays={} if shape is None else {cell["id"]: images(head, shape, i) for i, cell in enumerate(cells)},
    )


class Page(HTMLParser):
    """What a browser sees: text, tags with their attributes, and the text of every element that has an id or data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.metrics: list[tuple[str, str, str]] = []
        self.named: dict[str, str] = {}
        self.rows: dict[str, list[str]] = {}
        self.images: list[tuple[str, str]] = []
        self.captions: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag == "img":
            self.images.append((found["alt"] or "", found["src"] or ""))
        if tag in VOID:
            return
        self.open.append((tag, found))
        if tag == "td" and "data-metric" in found:
            row = next(attributes for name, attributes in reversed(self.open) if name == "tr")
            self.metrics.append((row["data-cell"] or "", found["data-metric"] or "", ""))
        if tag == "figcaption":
            self.captions.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1][0] == tag, f"{tag} closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        names = [tag for tag, _ in self.open]
        if "style" in names or "title" in names:
            return
        self.text.append(data)
        for tag, attributes in self.open:
            if tag == "td" and "data-metric" in attributes:
                cell, name, text = self.metrics[-1]
                self.metrics[-1] = cell, name, text + data
            if tag == "figcaption":
                self.captions[-1] += data
            if attributes.get("id"):
                self.named[attributes["id"] or ""] = self.named.get(attributes["id"] or "", "") + data
            if tag == "tr" and "data-evidence" in attributes and data.strip():
                self.rows.setdefault(attributes["data-evidence"] or "", []).append(data.strip())

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def shown(results: Results) -> Page:
    return Page(report_html(results))


def numbers(text: str) -> list[str]:
    return re.findall(r"[<>]?\d+(?:\.\d+)?", text)


def agrees(text: str, value: float, *, percent: bool) -> bool:
    """Whether a printed number is the value rounded, or the bound that stands for nearly 0 and nearly 1."""
    scale, places = (100, 1) if percent else (1, 3)
    half = 0.5 * 10**-places
    if text[0] in "<>":
        near = value if text[0] == "<" else 1 - value
        return 0 < near * scale <= half * (1 + 1e-9) and float(text[1:]) in (2 * half, scale - 2 * half)
    if len(text.partition(".")[2]) != places:
        return False
    exact = float(text) not in (0, scale) or value in (0, 1)
    return exact and abs(float(text) - value * scale) <= half * (1 + 1e-9)


# -- figures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "head"),
    [({}, BINARY), ({"models": ["alpha", "gamma"], "seeds": [0, 3]}, BINARY), ({}, LABELS), ({}, CLASSES)],
    ids=["binary", "two models, two seeds", "multi-label", "classes"],
)
def test_every_figure_of_the_record_is_shown_once_and_right(changes: dict[str, Any], head: Head) -> None:
    results = build(study(**changes), head=head)
    expected = []
    for cell in results.cells:
        for key, estimate in cell["metrics"].items():
            base = key.partition("[")[0]
            values = [estimate["value"], estimate["low"], estimate["high"]]
            expected.append((cell["id"], base, values))
    found = [(cell, name, text) for cell, name, text in shown(results).metrics if text != NOTHING]
    assert sorted((c, m) for c, m, _ in found) == sorted((c, m) for c, m, _ in expected)
    left = list(expected)
    for cell_id, name, text in found:
        percent = name not in ("auroc", "confidence")
        match = next(
            entry
            for entry in left
            if entry[:2] == (cell_id, name)
            and all(agrees(t, v, percent=percent) for t, v in zip(numbers(text)[:3], entry[2], strict=True))
        )
        left.remove(match)
    assert not left


def test_labels_of_a_multi_label_model_have_rows_of_their_own() -> None:
    results = build(head=LABELS)
    text = report_html(results)
    assert text.count("each label by itself") == 2  # caption, and name of the region
    rows = re.findall(r'<th scope="row" class="first">([^<]*)</th>', text)
    for label in LABELS.labels:
        assert sum(label in row for row in rows) == len(results.cells)


def test_denominators_stand_in_the_heading_where_rows_agree_and_else_in_the_row() -> None:
    results = build()
    page = shown(results)
    for words in ("of 40 images", "of 16 with the finding", "of 24 without the finding", "of 31 right before"):
        assert words in page.words
    ppv = {cell["id"]: cell["metrics"]["ppv"]["n"] for cell in results.cells}
    assert len(set(ppv.values())) > 1
    assert {cell: text.split("of ")[1] for cell, name, text in page.metrics if name == "ppv"} == {
        cell: str(n) for cell, n in ppv.items()
    }


@given(st.floats(0, 1), st.booleans())
def test_rounding_keeps_nearly_apart_from_exactly(value: float, percent: bool) -> None:
    assert agrees(tables.digits(value, percent=percent), value, percent=percent)


def test_intervals_of_resampled_patients_stand_beside_the_others() -> None:
    cells = records(study())
    estimate = cells[0]["metrics"]["accuracy"]
    estimate |= {"clustered_low": estimate["low"] / 2, "clustered_high": 0.98765}
    page = shown(build(cells=cells))
    text = next(text for cell, name, text in page.metrics if (cell, name) == (cells[0]["id"], "accuracy"))
    assert agrees(numbers(text)[3], estimate["low"] / 2, percent=True)
    assert numbers(text)[4] == "98.8"
    assert "the interval from resampled patients is the one to read" in page.words


def test_what_is_undefined_says_so_with_its_reason() -> None:
    cells = records(study())
    for cell in cells:
        for name in ("sensitivity", "hide", "auroc"):
            if name in cell["metrics"]:
                cell["metrics"][name] = undefined(0, "no image in the denominator").to_json()
        cell["metrics"]["confidence"] = Estimate(1.0, None, None, N, "no interval: means do not vary").to_json()
    page = shown(build(cells=cells))
    for cell_id, name, text in page.metrics:
        if name in ("sensitivity", "hide", "auroc") and text != NOTHING:
            assert text.strip() == "undefined", cell_id
        if name == "confidence":
            assert text.strip() == "1.000"
    assert "Undefined: no image in the denominator." in page.words
    assert "No interval: means do not vary." in page.words


def test_a_study_without_attacks_and_checks_is_reported() -> None:
    chosen = study(attacks=[])
    page = shown(build(chosen, checks=()))
    assert "No attack was run on it." in page.words
    assert "No check applies to these cells." in page.words


# -- summary, evidence, limits -----------------------------------------------------------------------------------------


def test_the_summary_names_the_attack_that_leaves_least_and_no_control() -> None:
    cells = records(study())
    accuracy = {"clean": 39, "noise": 1, "PGD": 20, "patch": 12, "PGD far": 30}
    for cell in cells:
        successes = accuracy[cell["attack"]] - (10 if cell["budget"] and cell["budget"]["eps"] == 4 else 0)
        cell["metrics"]["accuracy"] = wilson(max(0, successes), N).to_json()
    strongest = next(cell for cell in cells if cell["attack"] == "PGD" and cell["budget"]["eps"] == 4)
    strongest["metrics"] |= {"hide": wilson(9, 13).to_json(), "inject": wilson(4, 19).to_json()}
    summary = " ".join(shown(build(cells=cells)).named["summary"].split())
    assert "an accuracy of 97.5 %" in summary
    assert "leaves an accuracy of 25.0 %" in summary
    assert "the strongest of the 2 attacks that were run, PGD at 4 grey levels" in summary
    assert "hides 9 of 13" in summary and "into 4 of 19" in summary
    assert "Its control, noise of the same budget, leaves 0.0 %" in summary
    assert "the only attack that was run, PGD far at 50 grey levels" in summary


def test_failed_checks_are_named_in_the_summary_and_in_the_evidence() -> None:
    checks = (
        {"name": "gradients", "passed": False, "detail": "not so for: alpha, PGD"},
        {"name": "budget kept", "passed": True, "detail": "in all cells"},
    )
    page = shown(build(checks=checks))
    assert "1 of 2 checks on the strength of the attacks did not pass." in page.words
    assert "gradients not passed not so for: alpha, PGD" in page.words
    assert "budget kept passed in all cells" in page.words


def test_evidence_is_that_of_the_cells() -> None:
    results = build()
    rows = shown(results).rows
    attacked = [cell for cell in results.cells if cell["settings"]]
    assert list(rows) == [cell["id"] for cell in attacked]
    for cell in attacked:
        assert rows[cell["id"]][1:] == [
            f"{cell['evidence']['success_on_attacked_model']} of 40",
            "21.5 / 20",
            "1",
            "2",
            "3027 / 3.5",
            "33394",
            "yes" if cell["budget"] else "no budget",
            "yes",
            "not measured",
            cell["id"][:8],
        ]


def test_limits_follow_from_the_study() -> None:
    limits = shown(build()).named["limits"]
    assert "3 attacks were run: PGD, PGD far, patch." in limits
    assert "1 control: noise." in limits
    for cell in (cells := records(study())):
        cell["metrics"]["accuracy"] = wilson(0 if cell["attack"] == "PGD" else 10, N).to_json()
    sentences = " ".join(shown(build(cells=cells)).named["limits"].split())
    assert "An accuracy of 0 of 40 is compatible with a true one of up to 8.8 %." in sentences
    assert "PGD far still leaves an accuracy of 25.0 %" in sentences and "PGD still leaves" not in sentences
    assert "The transfer attacker had beta" in limits
    alone = study(threat_models={"insider": {"knowledge": "white-box"}}, attacks=[study().attacks[1].model_dump()])
    limits = " ".join(shown(build(alone)).named["limits"].split())
    assert "1 attack was run: PGD." in limits
    assert "No attacker without access to the weights was simulated" in limits


def test_the_report_claims_no_conformity() -> None:
    words = shown(build()).words.lower()
    for claim in ("complies", "compliant", "certified", "certificate", "approved", "safe"):
        assert not re.search(rf"\b{claim}\b", words), claim
    assert "evidence for" in words


def test_the_study_in_the_report_is_the_study() -> None:
    chosen = study(description="two: lines\n# and a 'quote' <b>")
    page = shown(build(chosen))
    assert parse_study(page.named["study"], "study.yaml") == chosen
    assert "art-medical evaluate study.yaml --out report" in page.words
    fewer = study(data={"kind": "folder", "path": "images"})
    assert f"art-medical evaluate study.yaml --data DIR --limit {N} --out report" in shown(build(fewer)).words


# -- the file ----------------------------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script>"


def test_texts_of_users_stay_text() -> None:
    threat = {f"<img src=x onerror=a()> {EVIL}": {"knowledge": "white-box", "goal": EVIL, "capability": '"><b id=x>'}}
    attacks = [{**entry.model_dump(), "threat_model": next(iter(threat))} for entry in study().attacks]
    chosen = study(description=EVIL + " $x$ {{ 1 + 1 }} {% raw %}", threat_models=threat, attacks=attacks)
    head = Head(kind="one-logit", labels=(EVIL, "</figcaption>"))
    results = build(chosen, records(chosen, unit="<i>$\\frac$</i>"), head=head, checks=(
        {"name": EVIL, "passed": False, "detail": "</table>" + EVIL},
    ))  # fmt: skip
    for arrays in results.arrays.values():
        arrays["ids"] = np.array([f'{EVIL}" onload="a()' for _ in range(N)])
    page = shown(results)
    assert not {"script", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert all(attributes.get("id") != "x" for _, attributes in page.tags)
    assert page.words.count("alert(1)") >= 10
    assert EVIL + " $x$ {{ 1 + 1 }} {% raw %}" in page.words
    assert "budget in <i>$\\frac$</i>s" in page.words


def test_nothing_is_fetched() -> None:
    text = report_html(build())
    page = Page(text)
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        assert str(attributes.get("src", "data:")).startswith("data:image/png;base64,") or "src" not in attributes
        for name in ("href", "xlink:href"):
            assert str(attributes.get(name, "#")).startswith("#")


def test_links_and_references_inside_the_page_lead_somewhere_and_ids_are_unique() -> None:
    tags = Page(report_html(build(study(models=["alpha", "gamma"])))).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {
        str(attributes.get(name)) for _, attributes in tags for name in ("href", "xlink:href") if name in attributes
    }
    assert {target.removeprefix("#") for target in targets} <= set(ids)


def test_the_same_results_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render_report(build(), tmp_path / "a.html")
    figures.swatch("something else", figures.style(0, control=False))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    render_report(build(), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_the_footer_names_the_record_by_its_hash() -> None:
    import hashlib

    results = build()
    assert json.loads(results.to_json())["schema"] == "art-medical/results@1"
    assert hashlib.sha256(results.to_json().encode()).hexdigest() in shown(results).words
    assert "Generated from results.json by art-medical 9.8.7" in shown(results).words


def test_a_path_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtMedicalError, match="cannot write"):
        render_report(build(), tmp_path / "file" / "report.html")


def test_a_large_study_stays_below_three_megabytes() -> None:
    entry = study().attacks[1].model_dump()
    attacks = [{**entry, "label": f"PGD {i}", "eps": (1, 2, 4, 8)} for i in range(6)]
    chosen = study(attacks=attacks)
    assert len(records(chosen)) == 25
    assert len(report_html(build(chosen, shape=(1, 224, 224))).encode()) < 3_000_000


# -- pictures ----------------------------------------------------------------------------------------------------------


def pixels(uri: str) -> NDArray[np.float64]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), dtype=np.float64)


def test_tiles_show_the_images_of_the_record() -> None:
    results = build()
    page = shown(results)
    first = next(cell for cell in results.cells if cell["attack"] == "noise")
    arrays = results.arrays[first["id"]]
    clean, attacked = arrays["exemplar_clean"][0, 0], arrays["exemplar_attacked"][0, 0]
    change = attacked - clean
    assert [alt for alt, _ in page.images[:3]] == [
        "image-2 before the attack", "change of image-2", "image-2 after the attack",
    ]  # fmt: skip
    tiles = [pixels(uri) for _, uri in page.images[:3]]
    assert np.array_equal(tiles[0], clean) and np.array_equal(tiles[2], attacked)  # the window is 0 to 255
    assert np.abs(tiles[1] - (127.5 + 127.5 * change / np.abs(change).max())).max() <= 0.5
    assert f"change \N{MULTIPLICATION SIGN} {127.5 / np.abs(change).max():.3g}" in page.words
    assert "Black to white: 0 to 255" in page.words


def test_one_image_of_each_label_is_shown_for_each_attack_at_its_largest_budget() -> None:
    results = build()
    page = shown(results)
    names = [caption.split(".")[0].split(",")[0] for caption in page.captions]
    assert names == ["image-2", "image-5"] * 4
    largest = results.arrays[
        next(c["id"] for c in results.cells if c["budget"] and c["budget"]["eps"] == 4 and c["attack"] == "PGD")
    ]
    assert np.array_equal(pixels(page.images[8][1]), largest["exemplar_attacked"][0, 0])


def test_a_study_of_many_attacks_pictures_the_first_and_says_so() -> None:
    entry = study().attacks[1].model_dump()
    chosen = study(attacks=[{**entry, "label": f"PGD {i}", "eps": (1,)} for i in range(10)])
    page = shown(build(chosen))
    assert len(page.captions) == 8 * 2
    assert "2 further attacks without pictures here." in page.words


def test_captions_give_score_decision_and_truth_at_the_threshold_of_the_card() -> None:
    results = build()
    before, after = (next(c["id"] for c in results.cells if c["attack"] == label) for label in ("clean", "noise"))
    results.arrays[before]["logits"][:] = np.log(0.4 / 0.6)  # 0.4 is above the threshold of 0.3
    results.arrays[after]["logits"][:] = np.log(0.2 / 0.8)
    captions = shown(results).captions
    words = "P(pneumonia) 0.400 → 0.200. Decision pneumonia → healthy"
    assert f"Truth: healthy. {words}, right." in captions[0]
    assert f"Truth: pneumonia. {words}, wrong." in captions[1]


@pytest.mark.parametrize("head", [LABELS, CLASSES], ids=["multi-label", "classes"])
def test_captions_of_other_heads_name_their_classes(head: Head) -> None:
    results = build(head=head)
    cell = next(c["id"] for c in results.cells if c["attack"] == "noise")
    caption = shown(results).captions[1]
    logits = results.arrays[cell]["logits"][5]
    if head is LABELS:
        decided = " + ".join(name for name, z in zip(head.labels, logits, strict=True) if z > 0) or "no finding"
        assert "Truth: nodule + effusion [left]." in caption
    else:
        decided = head.labels[int(logits.argmax())]
        assert "Truth: b. P(b) " in caption
    assert re.search(rf"Decision .*{re.escape(decided)}, ", caption)


def test_without_a_card_nothing_is_guessed() -> None:
    caption = shown(build(card=False)).captions[0]
    assert "Truth: 0." in caption and "Decision" not in caption and "P(" not in caption


@pytest.mark.parametrize("missing", ["exemplars", "exemplar_clean", "ids", "logits"])
def test_missing_arrays_leave_the_pictures_out(missing: str) -> None:
    results = build()
    for arrays in results.arrays.values():
        del arrays[missing]
    assert "These results hold no images." in shown(results).words
    assert "These results hold no images." in shown(build(shape=None)).words


def test_volumes_are_shown_by_their_central_slice_and_colour_by_its_channels() -> None:
    volume = np.zeros((1, 5, 4, 6), np.float32)
    volume[0, 2] = np.arange(24).reshape(4, 6) * 10
    shown_volume = figures.tiles(volume, volume + 1, (0.0, 230.0))
    assert shown_volume.plane == "slice 3 of 5" and shown_volume.size == (6, 4)
    assert np.array_equal(pixels(shown_volume.clean), np.round(volume[0, 2] / 230 * 255))
    colour = np.random.default_rng(0).integers(0, 256, (3, 4, 6)).astype(np.float32)
    assert np.array_equal(pixels(figures.tiles(colour, colour, (0.0, 255.0)).clean), np.moveaxis(colour, 0, -1))
    large = figures.tiles(np.zeros((1, 600, 300), np.float32), np.ones((1, 600, 300), np.float32), None)
    assert large.size == (128, 256) and large.reduced


def test_an_unchanged_image_has_no_factor_and_a_flat_one_has_a_window() -> None:
    flat = figures.tiles(np.full((1, 4, 4), 7, np.float32), np.full((1, 4, 4), 7, np.float32), None)
    assert flat.factor is None and flat.peak == 0 and (flat.low, flat.high) == (7.0, 8.0)
    assert np.ptp(pixels(flat.change)) == 0


def test_the_grey_window_is_the_range_or_the_percentiles() -> None:
    image = np.linspace(1000, 2000, 1001, dtype=np.float32).reshape(1, 7, 143)
    assert figures.grey_window(image, (900.0, 2100.0)) == (900.0, 2100.0)
    assert figures.grey_window(image, (0.0, 4095.0)) == pytest.approx((1005.0, 1995.0))
    assert figures.grey_window(image, None) == pytest.approx((1005.0, 1995.0))


# -- security curves ---------------------------------------------------------------------------------------------------


def test_markers_of_a_curve_lie_where_they_were_measured() -> None:
    points = ((0.0, 0.95, 0.9, 0.99), (1.0, 0.7, 0.6, 0.8), (4.0, 0.72, None, None), (16.0, 0.0, 0.0, 0.1))
    panel = figures.Panel("p", "accuracy", True, "grey levels", 255.0)
    svg = figures.security_curve(panel, [figures.Series(figures.style(0, control=False), points)])
    # The colour of the curve tells its markers from the ticks, the stroke from the bands.
    uses = re.findall(r'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)" style="fill: #0b5394; stroke: #0b5394', svg)
    at = np.array(uses, dtype=float)
    assert len(at) == len(points)
    for measured, drawn in ((0, at[:, 0]), (1, at[:, 1])):
        values = np.array([point[measured] for point in points])
        line = np.polyfit(values, drawn, 1)
        assert np.abs(np.polyval(line, values) - drawn).max() < 1e-3
        assert (line[0] > 0) == (measured == 0)
    assert "budget in grey levels" in svg and "% of the range" in svg


def test_curves_start_at_the_clean_images_and_have_one_line_for_each_seed() -> None:
    text = report_html(build(study(seeds=[0, 3])))
    panels = re.search(r'<div class="panels".*?</svg>', text, re.DOTALL)
    assert panels is not None
    markers = re.findall(
        r'<use xlink:href="#\w+" x="([\d.]+)" y="[\d.]+" style="fill: #0b5394; stroke: #0b5394', panels[0]
    )
    assert len(markers) == 2 * 3  # clean, 1 and 4, for each of two seeds
    assert len(set(markers)) == 3


def test_controls_are_dashed_and_attacks_are_not() -> None:
    def dashed(one: figures.Style) -> bool:
        return "stroke-dasharray" in figures.swatch("s", one)

    assert dashed(figures.style(1, control=True)) and not dashed(figures.style(1, control=False))
