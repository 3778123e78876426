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
        _code(card),
        "## What it takes and gives",
        _table(_facts(card)),
        "## Measured on unattacked images",
        _scores(card),
        "## Known faults",
        "\n".join(f"- {fault}" for fault in card.known_faults),
        "## Where it comes from",
        _data(card),
        _training(card),
        "Cite: " + "; ".join(card.citation) + ".",
        "This page is generated from `card.json`.",
    ]
    return "\n\n".join(sections) + "\n"


def _code(card: Card) -> str:
    call = f'art_medical.load("{card.name}")  # an ART estimator over stored pixels'
    if not card.pinned:
        call = f'art_medical.load("{card.name}", allow_unpinned=True)  # the hash is not known'
    return f"```python\nimport art_medical\n\nclassifier = {call}\n```"


def _data(card: Card) -> str:
    data = card.data
    source = ", ".join([data.name, *([f"doi {data.doi}"] if data.doi else []), data.licence])
    used = ", ".join(f"{name} {n:,}" for name, n in data.splits.items())
    if not used:
        used = "none" if card.training is not None else "not published"
    return f"Data: {source}; images used: {used}; splits without common patients: {data.patient_disjoint}."


def _training(card: Card) -> str:
    if card.training is not None:
        training = card.training
        return f"Recipe: `{training.recipe}`, seed {training.seed}, started from {training.started_from}."
    if card.hub is None:
        return "The recipe of these weights is not published."
    revision = "at no known commit" if card.hub.revision is None else f"at commit `{card.hub.revision}`"
    return f"Weights: `{card.weights}` of the repository `{card.hub.repo}` on the Hub, {revision}, by its authors."


def _front_matter(card: Card) -> dict[str, Any]:
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": entry.dataset, "type": entry.dataset, "split": entry.split},
            "metrics": [{"type": score.metric, "value": round(score.value, 4)} for score in entry.scores],
        }
        for entry in card.clean_eval
    ]
    index = {"model-index": [{"name": card.name, "results": results}]} if card.training or results else {}
    return {
        "license": "apache-2.0",
        "library_name": "art-medical",
        "pipeline_tag": "image-classification",
        "tags": ["medical", "adversarial-robustness", "monai", card.input.modality.lower()],
        **index,
    }


def _facts(card: Card) -> list[tuple[str, str]]:
    source, point = card.input, card.operating_point
    facts = [
        ("network", f"{card.architecture.target}, {card.architecture.num_parameters:,} parameters"),
        ("input", f"{source.modality}, shape {' x '.join(map(str, source.shape))}"),
        ("stored pixels", f"{source.low:g} to {source.high:g} {source.unit}s, step {source.step}"),
        *_channels(card),
        ("output", f"{card.head.kind}; {card.head.describe()}"),
    ]
    if card.head.thresholds is not None and point is not None:
        thresholds = ", ".join(f"{tau:.4f}" for tau in card.head.thresholds)
        rule = f"{point.rule} {point.target:g} on {point.n} images of the {point.split} split"
        facts.append(("operating point", f"probability above {thresholds} ({rule})"))
    return [*facts, ("licence", card.licence)]


def _channels(card: Card) -> list[tuple[str, str]]:
    channels = card.input.attackable_channels
    return [] if channels is None else [("channels an attacker may change", ", ".join(map(str, channels)))]


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
