# SPDX-License-Identifier: Apache-2.0
"""The report: one HTML file rendered from the results, readable offline, on a phone and on paper.

Nothing in it is measured here, and every figure in it stands in the JSON record. Names and texts of the study are
escaped by the template engine; the only markup that is passed through is the SVG that
:mod:`~art_medical.evaluation.figures` drew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from art_medical.domain import PixelDomain
from art_medical.estimators.heads import Head
from art_medical.evaluation import figures, tables
from art_medical.evaluation.results import Results
from art_medical.evaluation.store import Arrays, write_atomically
from art_medical.evaluation.tables import Group, Record, Row, Shown, Table

_NORMS = {
    "linf": "L-infinity norm: the largest change of any one pixel",
    "l2": "L-2 norm: the root of the summed squares of the changes of all pixels",
}
_KNOWN_ATTACKS = frozenset({"pgd", "noise", "patch", "natural-patch"})
_PICTURES = 2  # images for each attack; with tiles of 256 pixels this keeps the file of a large study below 3 MB
_PICTURED_ATTACKS = 8


def render_report(results: Results, path: Path) -> None:
    """Write the report of a study; the same results give the same bytes.

    :param results: What the study found.
    :param path: File to write.
    :raises ArtMedicalError: If it cannot be written.
    """
    write_atomically(path, report_html(results).encode())


def report_html(results: Results) -> str:
    """The report as text."""
    text = resources.files("art_medical.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text).render(_context(results))


def _context(results: Results) -> dict[str, Any]:
    models = [_model(results, number, ref) for number, ref in enumerate(results.study.models, 1)]
    return {
        "study": results.study,
        "models": models,
        "subjects": {ref: _Subject(results, ref) for ref in results.provenance["models"]},
        "data": list(results.provenance["data"].values()),
        "versions": results.provenance["versions"],
        "platform": results.provenance["platform"],
        "device": results.provenance["device"],
        "checks": results.checks,
        "failed": [check for check in results.checks if not check["passed"]],
        "definitions": _definitions(results.cells),
        "limits": _limits(results),
        "command": _command(results),
        "study_file": _study_file(results),
        "short": _short,
        "fingerprint": hashlib.sha256(results.to_json().encode()).hexdigest(),
    }


# -- one model ---------------------------------------------------------------------------------------------------------


class _Subject:
    """What the record says about a model; ``card`` is empty in records that keep only its hashes."""

    def __init__(self, results: Results, ref: str) -> None:
        self.ref = ref
        self.entry: Record = results.provenance["models"][ref]
        self.card: Record = self.entry.get("card") or {}
        self.head = Head.model_validate(self.card["head"]) if "head" in self.card else None

    @property
    def domain(self) -> PixelDomain | None:
        """The stored pixel, where it is known."""
        entry = self.card.get("input")
        return None if entry is None else PixelDomain(entry["low"], entry["high"], entry["step"], entry["unit"])


@dataclass(frozen=True)
class _Strongest:
    """The cell of one threat model that leaves the least accuracy, with its control."""

    threat_model: str
    attackers: int
    group: Group
    row: Row
    control: tuple[Group, Row] | None


@dataclass(frozen=True)
class _Curves:
    """The panels of one norm, with their legend."""

    norm: str
    panels: tuple[Markup, ...]
    legend: tuple[tuple[Markup, Group], ...]


@dataclass(frozen=True)
class _Picture:
    """One image under one attack: its tiles and what stands below them."""

    name: str
    tiles: figures.Tiles
    truth: str
    score: str
    decision: str
    fooled: bool | None


@dataclass(frozen=True)
class _Model:
    """The section of one model."""

    number: int
    subject: _Subject
    data: str
    n: int
    patients: int | None
    clean: dict[str, Shown]
    strongest: tuple[_Strongest, ...]
    main: Table
    labels: Table
    further: Table
    curves: tuple[_Curves, ...]
    pictures: tuple[tuple[Group, Row, tuple[_Picture, ...]], ...]
    unpictured: int


def _model(results: Results, number: int, ref: str) -> _Model:
    cells = [cell for cell in results.cells if cell["model"] == ref]
    seeds, subject = len(results.study.seeds), _Subject(results, ref)
    main = tables.main_table(cells, seeds)
    pictures = [entry for entry in _pictures(results, subject, main.groups) if entry[2]]
    return _Model(
        number=number,
        subject=subject,
        data=cells[0]["data"],
        n=cells[0]["n"],
        patients=_patients(results.arrays.get(cells[0]["id"], {})),
        clean=next((g.rows[0].figures for g in main.groups if g.rows[0].cell["settings"] is None), {}),
        strongest=tuple(_strongest(results, main.groups)),
        main=main,
        labels=tables.label_table(cells, seeds),
        further=tables.further_table(cells, seeds),
        curves=tuple(_curves(main, subject, f"m{number}")),
        pictures=tuple(pictures[:_PICTURED_ATTACKS]),
        unpictured=max(0, len(pictures) - _PICTURED_ATTACKS),
    )


def _patients(arrays: Arrays) -> int | None:
    return len(np.unique(arrays["groups"])) if "groups" in arrays else None


def _strongest(results: Results, groups: Sequence[Group]) -> Iterator[_Strongest]:
    """For each threat model the lowest accuracy; of equal ones the first, which has the smallest budget."""
    for name in results.study.threat_models:
        mine = [group for group in groups if group.threat_model == name and not group.control]
        rows = [(group, row) for group in mine for row in sorted(group.rows, key=_eps)]
        rows = [(group, row) for group, row in rows if _value(row) is not None]
        if rows:
            group, row = min(rows, key=lambda entry: _value(entry[1]) or 0.0)
            yield _Strongest(name, len(mine), group, row, _control(groups, group, row))


def _control(groups: Sequence[Group], attack: Group, row: Row) -> tuple[Group, Row] | None:
    """The control of the same kind, budget and seed."""
    wanted = "natural-patch" if row.cell["budget"] is None else "noise"
    for group in groups:
        for other in group.rows:
            same = all(other.cell[key] == row.cell[key] for key in ("budget", "seed"))
            if group.control and same and other.cell["settings"]["attack"] == wanted and _value(other) is not None:
                return group, other
    return None


def _value(row: Row) -> float | None:
    value: float | None = row.cell["metrics"]["accuracy"]["value"]
    return value


def _eps(row: Row) -> float:
    return float(row.cell["budget"]["eps"]) if row.cell["budget"] else 0.0


# -- security curves ---------------------------------------------------------------------------------------------------


def _curves(main: Table, subject: _Subject, prefix: str) -> Iterator[_Curves]:
    """One entry for each norm: accuracy, and sensitivity and specificity or else AUROC, against the budget."""
    shown = [c for c in main.columns if c.name in ("accuracy", "sensitivity", "specificity")]
    if len(shown) < 3:
        shown = [c for c in main.columns if c.name in ("accuracy", "auroc")]
    styles = dict(zip((g.label for g in main.groups), _styles(main.groups), strict=True))
    budgets = [row.cell["budget"] for group in main.groups for row in group.rows if row.cell["budget"]]
    for norm in dict.fromkeys(budget["norm"] for budget in budgets):
        groups = [g for g in main.groups if any((row.cell["budget"] or {}).get("norm") == norm for row in g.rows)]
        unit = next(budget["unit"] for budget in budgets if budget["norm"] == norm)
        span = subject.domain.span if subject.domain and norm == "linf" else None
        panels = []
        for column in shown:
            panel = figures.Panel(
                name=f"{prefix}-{norm}-{column.name}",
                title=column.heading,
                percent=column.unit == "%",
                unit=unit if unit.isupper() else f"{unit}s",
                span=span,
            )
            lines = [line for group in groups for line in _lines(main, group, column.name, styles[group.label])]
            panels.append(Markup(figures.security_curve(panel, lines)))  # drawn by us, text escaped
        legend = [(Markup(figures.swatch(f"{prefix}-{norm}-key{i}", styles[g.label])), g) for i, g in enumerate(groups)]
        yield _Curves(_NORMS.get(norm, norm), tuple(panels), tuple(legend))


def _styles(groups: Sequence[Group]) -> Iterator[figures.Style]:
    counts = {True: -1, False: -1}
    for group in groups:
        attacked = group.rows[0].cell["settings"] is not None
        counts[group.control] += attacked
        yield figures.style(max(0, counts[group.control]), control=group.control)


def _lines(main: Table, group: Group, metric: str, style: figures.Style) -> Iterator[figures.Series]:
    """One curve for each seed; the clean images are its point at budget 0."""
    clean = [row.cell for g in main.groups for row in g.rows if row.cell["settings"] is None]
    for seed in dict.fromkeys(row.cell["seed"] for row in group.rows):
        cells = clean + [row.cell for row in sorted(group.rows, key=_eps) if row.cell["seed"] == seed]
        points = []
        for cell in cells:
            found = cell["metrics"].get(metric, {"value": None})
            if found["value"] is not None:
                eps = cell["budget"]["eps"] if cell["budget"] else 0.0
                points.append((float(eps), found["value"], found["low"], found["high"]))
        yield figures.Series(style, tuple(points))


# -- pictures ----------------------------------------------------------------------------------------------------------


def _pictures(
    results: Results, subject: _Subject, groups: Sequence[Group]
) -> Iterator[tuple[Group, Row, tuple[_Picture, ...]]]:
    """For each attack the images of its largest budget, first seed."""
    clean = next((g.rows[0].cell for g in groups if g.rows[0].cell["settings"] is None), None)
    before = results.arrays.get(clean["id"], {}) if clean else {}
    for group in groups:
        row = max(group.rows, key=_eps)
        if row.cell["settings"] is not None:
            yield group, row, tuple(_exemplars(subject, before, results.arrays.get(row.cell["id"], {})))


def _exemplars(subject: _Subject, before: Arrays, after: Arrays) -> Iterator[_Picture]:
    if not {"exemplars", "exemplar_clean", "exemplar_attacked", "ids", "truth", "logits"} <= after.keys():
        return
    shown = after["exemplars"]
    domain = None if subject.domain is None else subject.domain.clip_values
    for i in _one_of_each(after["truth"][shown]):
        image = int(shown[i])
        logits = [a["logits"][image : image + 1] for a in (before, after) if "logits" in a]
        yield _Picture(
            name=str(after["ids"][image]),
            tiles=figures.tiles(after["exemplar_clean"][i], after["exemplar_attacked"][i], domain),
            **_words(subject.head, after["truth"][image : image + 1], logits),
        )


def _one_of_each(truth: Any) -> list[int]:
    """Places of the first images of different labels, then of the others."""
    keys = [tuple(np.atleast_1d(row).tolist()) for row in truth]
    first = [i for i, key in enumerate(keys) if key not in keys[:i]]
    return sorted((first + [i for i in range(len(keys)) if i not in first])[:_PICTURES])


def _words(head: Head | None, truth: Any, logits: Sequence[Any]) -> dict[str, Any]:
    """Truth, score and decision of one image, before and after; what the record does not tell is left out."""
    if head is None:
        return {"truth": " ".join(str(v) for v in np.atleast_1d(truth[0])), "score": "", "decision": "", "fooled": None}
    import torch

    true = int(head.encode(truth).argmax(1)[0])
    chances = [head.probabilities(one)[0] for one in logits]
    decisions = [int(head.decision_logits(torch.from_numpy(one)).argmax(1)[0]) for one in logits]
    shown = 1 if head.binary else true
    if head.kind == "multi-label":
        shown = int(np.abs(chances[-1] - chances[0]).argmax())
    return {
        "truth": _class_name(head, true),
        "score": f"P({head.labels[shown]}) "
        + " → ".join(tables.digits(chance[shown], percent=False) for chance in chances),
        "decision": _change([_class_name(head, decision) for decision in decisions]),
        "fooled": decisions[-1] != true,
    }


def _change(names: Sequence[str]) -> str:
    return f"stays {names[0]}" if len(set(names)) == 1 and len(names) > 1 else " → ".join(names)


def _class_name(head: Head, number: int) -> str:
    if head.kind != "multi-label":
        return head.labels[number]
    return " + ".join(name for k, name in enumerate(head.labels) if number >> k & 1) or "no finding"


# -- the rest of the page ----------------------------------------------------------------------------------------------


def _definitions(cells: Sequence[Record]) -> list[tuple[tables.Metric, tuple[str, ...]]]:
    """Metrics that occur, each with the interval methods that occur with it."""
    methods: dict[str, dict[str, None]] = {}
    for cell in cells:
        for name, estimate in cell["metrics"].items():
            method = estimate["method"].replace("wilson", "Wilson").replace("delong", "DeLong")
            methods.setdefault(name.partition("[")[0], {})[method] = None
    ordered = sorted(methods, key=lambda name: [*tables.METRICS, name].index(name))
    return [(tables.metric(name), tuple(methods[name])) for name in ordered]


def _limits(results: Results) -> dict[str, Any]:
    """Facts that the limits of the study are worded from."""
    attacked = [cell for cell in results.cells if cell["settings"] is not None]
    attackers = [cell for cell in attacked if not tables.is_control(cell)]
    largest: dict[tuple[str, str], Record] = {}
    for cell in attackers:
        if cell["budget"] and cell["budget"]["eps"] >= largest.get(_family(cell), cell)["budget"]["eps"]:
            largest[_family(cell)] = cell
    rates = [e for cell in attacked for name, e in cell["metrics"].items() if name == "accuracy" and e["value"] == 0]
    threats, models = results.study.threat_models.values(), results.study.models
    surrogates = [name for threat in threats for model in models if (name := threat.surrogate_of(model)) is not None]
    return {
        "attackers": list(dict.fromkeys(cell["attack"] for cell in attackers)),
        "controls": list(dict.fromkeys(cell["attack"] for cell in attacked if tables.is_control(cell))),
        "only_known": {cell["settings"]["attack"] for cell in attacked} <= _KNOWN_ATTACKS,
        "survived": [
            (cell, tables.show("accuracy", cell["metrics"]["accuracy"]))
            for cell in largest.values()
            if cell["metrics"]["accuracy"]["value"]
        ],
        "surrogates": list(dict.fromkeys(surrogates)),
        "undefended": all(cell["defence"] == "none" for cell in results.cells),
        "none_of": (rates[0]["n"], tables.show("accuracy", {**rates[0], "value": rates[0]["high"]})) if rates else None,
        "clustered": any(e.get("clustered_low") is not None for c in results.cells for e in c["metrics"].values()),
    }


def _short(value: float) -> str:
    """Four digits, more only for whole thousands; no powers of ten."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _family(cell: Record) -> tuple[str, str]:
    return cell["model"], cell["attack"]


def _command(results: Results) -> str:
    study, counts = results.study.data, [entry["n"] for entry in results.provenance["data"].values()]
    words = ["art-medical evaluate study.yaml"]
    if study.kind != "phantom":
        words.append("--data DIR")
    if counts and (study.kind != "phantom" or min(counts) < study.n):
        words.append(f"--limit {min(counts)}")
    if results.provenance["device"] != "cpu":
        words.append(f"--device {results.provenance['device']}")
    return " ".join([*words, "--out report"])


def _study_file(results: Results) -> str:
    """The study as a file that gives this study again."""
    content = results.study.model_dump(by_alias=True, exclude_defaults=True)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=88)
