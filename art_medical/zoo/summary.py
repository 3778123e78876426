# SPDX-License-Identifier: Apache-2.0
"""One line about a model: what the tables of the command line and of the documentation show."""

from __future__ import annotations

from dataclasses import dataclass

from art_medical.zoo.cards import Card, Score


@dataclass(frozen=True)
class Summary:
    """A row of the table of models, as text but for the figures.

    :param task: Kind of decision and labels, for instance ``binary: normal / pneumonia``.
    :param data: Name of the data set.
    :param licence: Of the weights.
    :param architecture: Row of the allow-list.
    :param parameters: Number of parameters.
    :param auroc: AUROC on the unattacked test split with its 95 % interval, of several labels the mean, if it was
        measured.
    """

    name: str
    task: str
    modality: str
    data: str
    licence: str
    architecture: str
    parameters: int
    auroc: Score | None


def summarise(card: Card) -> Summary:
    """The row of a card."""
    return Summary(
        name=card.name,
        task=task_of(card),
        modality=card.input.modality,
        data=card.data.name,
        licence=card.licence,
        architecture=card.architecture.target,
        parameters=card.architecture.num_parameters,
        auroc=_auroc(card),
    )


def task_of(card: Card) -> str:
    """Kind of decision and labels: ``binary: normal / pneumonia``, ``multi-class: ...``, ``multi-label: ...``."""
    kind = "multi-label" if card.head.kind == "multi-label" else "binary" if card.head.binary else "multi-class"
    return f"{kind}: {' / '.join(card.head.labels)}"


def _auroc(card: Card) -> Score | None:
    scores = [s for e in card.clean_eval if e.split == "test" for s in e.scores if s.metric == "auroc"]
    return scores[0] if scores else None
