# SPDX-License-Identifier: Apache-2.0
"""The page that people see on the Hub: a model card README, generated from ``card.json`` and never the reverse."""

from __future__ import annotations

from typing import Any

import yaml

from art_medical.zoo.cards import Card


def model_card(card: Card) -> str:
    """README with Hub front matter (licence, tags, evaluation results) and the card in words."""
    front = yaml.safe_dump(_front_matter(card), sort_keys=False, allow_unicode=True, width=100)
    sections = [
        f"---\n{front}---",
        f"# {card.name}",
        card.intended_use,
        "```python\nimport art_medical\n\n"
        f'classifier = art_medical.load("{card.name}")  # an ART estimator over stored pixels\n```',
        "## What it takes and gives",
        _table(_facts(card)),
        "## Measured on unattacked images",
        _scores(card),
        "## Known faults",
        "\n".join(f"- {fault}" for fault in card.known_faults),
        "## Where it comes from",
        f"Data: {card.data.name}, doi {card.data.doi}, {card.data.licence}; images used: "
        + (", ".join(f"{name} {n:,}" for name, n in card.data.splits.items()) or "none")
        + f"; splits without common patients: {card.data.patient_disjoint}.",
        f"Recipe: `{card.training.recipe}`, seed {card.training.seed}, started from {card.training.started_from}.",
        "Cite: " + "; ".join(card.citation) + ".",
        "This page is generated from `card.json`.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(card: Card) -> dict[str, Any]:
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": entry.dataset, "type": entry.dataset, "split": entry.split},
            "metrics": [{"type": score.metric, "value": round(score.value, 4)} for score in entry.scores],
        }
        for entry in card.clean_eval
    ]
    return {
        "license": "apache-2.0",
        "library_name": "art-medical",
        "pipeline_tag": "image-classification",
        "tags": ["medical", "adversarial-robustness", "monai", card.input.modality.lower()],
        "model-index": [{"name": card.name, "results": results}],
    }


def _facts(card: Card) -> list[tuple[str, str]]:
    source, point = card.input, card.operating_point
    facts = [
        ("network", f"{card.architecture.target}, {card.architecture.num_parameters:,} parameters"),
        ("input", f"{source.modality}, shape {' x '.join(map(str, source.shape))}"),
        ("stored pixels", f"{source.low:g} to {source.high:g} {source.unit}s, step {source.step}"),
        ("output", f"{card.head.kind}; {card.head.describe()}"),
    ]
    if card.head.thresholds is not None and point is not None:
        thresholds = ", ".join(f"{tau:.4f}" for tau in card.head.thresholds)
        rule = f"{point.rule} {point.target:g} on {point.n} images of the {point.split} split"
        facts.append(("operating point", f"probability above {thresholds} ({rule})"))
    return [*facts, ("licence", card.licence)]


def _scores(card: Card) -> str:
    if not card.clean_eval:
        return "Nothing yet."
    rows = [
        (
            score.metric,
            f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]",
            f"{entry.dataset}, {entry.split}, n = {entry.n}",
        )
        for entry in card.clean_eval
        for score in entry.scores
    ]
    return _table(rows, ("metric", "value with 95 % interval", "images"))


def _table(rows: list[Any], heading: tuple[str, ...] = ("", "")) -> str:
    lines = [heading, ("---",) * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
