# SPDX-License-Identifier: Apache-2.0
"""Cells of a study as rows of tables: every figure as text with its interval, every rate with its denominator."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]

CONTROLS = frozenset({"noise", "natural-patch"})
"""Attacks that show what chance and occlusion do; they are no attackers."""

_NOT_RATES = frozenset({"auroc", "confidence"})
_LABELLED = re.compile(r"(?P<metric>\w+)\[(?P<label>.*)\]", re.DOTALL)
_OWN_COLUMN = frozenset({"attack", "norm", "eps", "seed", "batch_size"})


@dataclass(frozen=True)
class Metric:
    """How a metric is called and defined.

    :param heading: Column heading.
    :param among: What the images in its denominator are.
    :param definition: In words, as a fraction where it is one.
    """

    heading: str
    among: str
    definition: str


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", "images", "images decided rightly at the operating point / all images"),
    "auroc": Metric(
        "AUROC",
        "images",
        "area under the ROC curve of the scores of the images as they are, so under attack of the images that the "
        "attack returned (as run); the worst case only for attacks that do not stop at the first flip; of a whole "
        "model with several labels or classes, their unweighted mean",
    ),
    "sensitivity": Metric("sensitivity", "with the finding", "finding reported / images with the finding"),
    "specificity": Metric("specificity", "without the finding", "finding not reported / images without the finding"),
    "attack_success_rate": Metric(
        "attack success", "right before", "right before and wrong under attack / images that were right before"
    ),
    "hide": Metric(
        "findings hidden",
        "reported before",
        "true finding no longer reported / true findings that were reported before",
    ),
    "inject": Metric(
        "findings injected",
        "rightly clear before",
        "false finding now reported / images without the finding that were not reported before",
    ),
    "confidence": Metric(
        "mean confidence", "images", "mean over all images of the probability of the most probable class, no threshold"
    ),
    "robust_accuracy": Metric("robust accuracy", "images", "right before and still right under attack / all images"),
    "attack_success_rate_all": Metric(
        "attack success, all", "images", "wrong before, or right before and wrong under attack / all images"
    ),
    "accuracy_argmax": Metric(
        "accuracy, no threshold", "images", "images decided rightly by the most probable class / all images"
    ),
    "ppv": Metric(
        "PPV", "reported", "images with the finding / images reported; holds for the prevalence of these images"
    ),
    "npv": Metric(
        "NPV",
        "not reported",
        "images without the finding / images not reported; holds for the prevalence of these images",
    ),
}
"""Metrics in the order of their columns; the first eight are the main table."""

MAIN = tuple(METRICS)[:8]


def metric(name: str) -> Metric:
    """The entry of a metric, or one made from its name if there is none."""
    return METRICS.get(name, Metric(name.replace("_", " "), "images", "see the documentation of this version"))


# -- figures -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """One figure as text.

    :param value: The number, ``undefined`` where it has none.
    :param unit: Follows the number in prose; tables have it in their heading.
    :param interval: ``[low, high]``; ``None`` where there is none.
    :param clustered: The same from resampled patients.
    :param n: Images in the denominator.
    :param count: Images in the numerator of a rate.
    :param method: How the interval was made, or why there is no value.
    """

    value: str
    unit: str
    interval: str | None
    clustered: str | None
    n: int
    count: int | None
    method: str

    @property
    def prose(self) -> str:
        """The number with its unit and interval."""
        return f"{self.value}{self.unit}" + (f" {self.interval}" if self.interval else "")


def show(name: str, estimate: Record) -> Shown:
    """A figure of the JSON record as text: rates in per cent with one decimal, anything else with three."""
    base = name.partition("[")[0]
    percent, value = base not in _NOT_RATES, estimate["value"]
    if value is None:
        return Shown("undefined", "", None, None, estimate["n"], None, estimate["method"])
    return Shown(
        value=digits(value, percent=percent),
        unit=" %" if percent else "",
        interval=_interval(estimate["low"], estimate["high"], percent),
        clustered=_interval(estimate.get("clustered_low"), estimate.get("clustered_high"), percent),
        n=estimate["n"],
        count=round(value * estimate["n"]) if percent else None,
        method=estimate["method"],
    )


def _interval(low: float | None, high: float | None, percent: bool) -> str | None:
    if low is None or high is None:
        return None
    return f"[{digits(low, percent=percent)}, {digits(high, percent=percent)}]"


def digits(value: float, *, percent: bool) -> str:
    """A number from 0 to 1; rounding never turns nearly none into none, or nearly all into all."""
    scale, places = (100, 1) if percent else (1, 3)
    text, least = f"{value * scale:.{places}f}", 10.0**-places
    if value > 0 and float(text) == 0:
        return f"<{least:.{places}f}"
    if value < 1 and float(text) == scale:
        return f">{scale - least:.{places}f}"
    return text


# -- rows and tables ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One cell, or one label of it.

    :param title: Budget, seed or label: what tells it from the other rows of its group.
    :param cell: The record.
    :param figures: By name of the column; without an entry where the cell does not have that metric.
    """

    title: str
    cell: Record
    figures: dict[str, Shown]


@dataclass(frozen=True)
class Group:
    """The rows of one attack; the clean images are one as well.

    :param label: Name of the attack in the study.
    :param control: Whether it is no attacker but a control.
    :param threat_model: Key of the threat model, ``None`` for clean images.
    :param defence: What protected the model.
    :param effort: Steps and starts, in words.
    :param parameters: Every parameter as ``name = value``, budgets and seeds excepted.
    :param rows: In the order of the study.
    """

    label: str
    control: bool
    threat_model: str | None
    defence: str
    effort: str
    parameters: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Column:
    """A column of figures.

    :param name: Metric in the JSON record, without label.
    :param heading: Name for people.
    :param unit: ``%`` or nothing.
    :param among: The denominator, with its number where it is the same in every row.
    :param n: That number, ``None`` where rows differ and show their own.
    """

    name: str
    heading: str
    unit: str
    among: str
    n: int | None


@dataclass(frozen=True)
class Table:
    """Columns, groups of rows, and notes on figures that are not what one expects."""

    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...]


def main_table(cells: Sequence[Record], seeds: int) -> Table:
    """Accuracy, AUROC, sensitivity, specificity, success, hide, inject, confidence."""
    return _table(_groups(cells, seeds), lambda name: name in MAIN)


def further_table(cells: Sequence[Record], seeds: int) -> Table:
    """Every metric of whole cells that the main table does not have."""
    return _table(_groups(cells, seeds), lambda name: name not in MAIN)


def label_table(cells: Sequence[Record], seeds: int) -> Table:
    """The metrics of each label of a multi-label model; without rows for any other model."""
    groups = []
    for group in _groups(cells, seeds):
        rows = []
        for row in group.rows:
            for label, figures in _by_label(row.cell).items():
                title = f"{row.title}: {label}" if row.title else label
                rows.append(Row(title, row.cell, figures))
        if rows:
            groups.append(_with_rows(group, rows))
    return _table(groups, lambda name: True)


def _table(groups: Iterable[Group], wanted: Any) -> Table:
    rows = [row for group in groups for row in group.rows]
    names = dict.fromkeys(name for row in rows for name in row.figures if wanted(name))
    ordered = sorted(names, key=lambda name: [*METRICS, name].index(name))
    columns = tuple(_column(name, [row.figures[name] for row in rows if name in row.figures]) for name in ordered)
    shown = [row.figures[name] for row in rows for name in ordered if name in row.figures]
    reasons = dict.fromkeys(figure.method for figure in shown if figure.value == "undefined")
    without = dict.fromkeys(f.method for f in shown if f.value != "undefined" and f.interval is None)
    return Table(columns, tuple(groups), (*reasons, *without))


def _column(name: str, figures: Sequence[Shown]) -> Column:
    entry, sizes = metric(name), {figure.n for figure in figures}
    n = sizes.pop() if len(sizes) == 1 else None
    among = f"of {n} {entry.among}" if n is not None else f"of those {entry.among}"
    if entry.among == "images" and n is None:
        among = "of images"
    return Column(name, entry.heading, "" if name in _NOT_RATES else "%", among, n)


def _groups(cells: Sequence[Record], seeds: int) -> list[Group]:
    labels = dict.fromkeys((cell["attack"], cell["defence"]) for cell in cells)
    return [_group([c for c in cells if (c["attack"], c["defence"]) == key], seeds) for key in labels]


def _group(cells: Sequence[Record], seeds: int) -> Group:
    first = cells[0]
    settings = [cell["settings"] for cell in cells if cell["settings"]]
    return Group(
        label=first["attack"],
        control=is_control(first),
        threat_model=first["threat_model"],
        defence=first["defence"],
        effort=_effort(settings[0]) if settings else "",
        parameters=_parameters(settings),
        rows=tuple(Row(_title(cell, seeds), cell, _whole(cell)) for cell in cells),
    )


def _with_rows(group: Group, rows: Sequence[Row]) -> Group:
    return Group(
        group.label, group.control, group.threat_model, group.defence, group.effort, group.parameters, tuple(rows)
    )


def is_control(cell: Record) -> bool:
    """Whether a cell is a control: noise, or a natural patch."""
    return bool(cell["settings"]) and cell["settings"]["attack"] in CONTROLS


def _title(cell: Record, seeds: int) -> str:
    if cell["settings"] is None:
        return "clean images, not attacked"
    budget = cell["budget"]["text"] if cell["budget"] else "no budget: replaces pixels"
    return f"{budget}, seed {cell['seed']}" if seeds > 1 else budget


def _whole(cell: Record) -> dict[str, Shown]:
    return {name: show(name, estimate) for name, estimate in cell["metrics"].items() if "[" not in name}


def _by_label(cell: Record) -> dict[str, dict[str, Shown]]:
    labels: dict[str, dict[str, Shown]] = {}
    for name, estimate in cell["metrics"].items():
        found = _LABELLED.fullmatch(name)
        if found:
            labels.setdefault(found["label"], {})[found["metric"]] = show(name, estimate)
    return labels


# -- words for settings ------------------------------------------------------------------------------------------------


def _effort(settings: Record) -> str:
    """What was spent, where the attack has steps and starts; curves of different effort must not be compared."""
    words = []
    starts = settings.get("num_random_init")
    if settings.get("max_iter"):
        words.append(_plural(settings["max_iter"], "step"))
        words.append(_plural(starts, "random start") if starts else "started at the image")
    elif starts:
        words.append(_plural(starts, "random draw"))
    if settings.get("confidence") == "inf" and words:
        words.append("does not stop at the first flip")
    return ", ".join(words)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _parameters(settings: Sequence[Record]) -> str:
    names = dict.fromkeys(name for one in settings for name in one if name not in _OWN_COLUMN)
    parts = []
    for name in names:
        values = dict.fromkeys(_plain(one.get(name)) for one in settings)
        parts.append(f"{name} = {' / '.join(values)}")
    return "; ".join(parts)


def _plain(value: Any) -> str:
    words = {None: "default", True: "yes", False: "no"}
    if value is None or isinstance(value, bool):
        return words[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
