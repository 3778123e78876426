# SPDX-License-Identifier: Apache-2.0
"""Measure a model again and compare with what its card says; nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from art_medical.errors import ModelError
from art_medical.evaluation.progress import Progress
from art_medical.evaluation.scorecard import measure
from art_medical.zoo.cards import Card, CleanEvaluation, Score, read_card

TOLERANCE = 1e-6
"""Largest difference of two figures that counts as none."""


@dataclass(frozen=True)
class Difference:
    """A statement of the card beside what was found.

    :param what: For instance ``auroc`` or ``auroc, lower limit``.
    :param stated: On the card; ``None`` where the card says nothing.
    :param found: In the new measurement; ``None`` where that says nothing.
    """

    what: str
    stated: float | str | None
    found: float | str | None


def recheck(folder: Path, data: Path | None, *, progress: Progress | None = None) -> tuple[Difference, ...]:
    """Measure the model in ``folder`` on its test images and compare every figure with the card.

    :param data: The model's own data set (folder or npz file); ``None`` for models of phantoms.
    :return: Nothing if all agree to :data:`TOLERANCE`.
    :raises ArtMedicalError: If model or images cannot be used, or the card has no figures on these images.
    """
    card = read_card(folder)
    found = measure(folder, data, progress=progress)
    for stated in card.clean_eval:
        if (stated.dataset, stated.split) == (found.dataset, found.split):
            return differences(stated, found)
    raise ModelError(f"the card of {card.name} has no figures on {found.dataset}, {found.split}: run zoo score")


def data_of(card: Card, root: Path | None) -> Path | None:
    """Where the data set of a model lies below the folder that holds all of them; ``None`` for models of phantoms.

    :raises ModelError: If the card names no data set, or it is not there.
    """
    if card.input.modality == "phantom":
        return None
    if card.data.folder is None:
        raise ModelError(f"the card of {card.name} does not say which data set it was measured on (data.folder)")
    if root is None:
        raise ModelError(f"{card.name} was measured on {card.data.folder}: say where the data sets are with --data DIR")
    path = root / card.data.folder
    if not path.exists():
        raise ModelError(f"{card.name} was measured on {card.data.folder}, which is not in {root}")
    return path


def differences(stated: CleanEvaluation, found: CleanEvaluation) -> tuple[Difference, ...]:
    """Every statement of one evaluation that another does not share, to :data:`TOLERANCE`."""
    result = [
        Difference(what, old, new)
        for what, old, new in (
            ("sha256 of the index", stated.index_sha256, found.index_sha256),
            ("images", stated.n, found.n),
        )
        if old != new
    ]
    old_scores, new_scores = ({score.metric: score for score in e.scores} for e in (stated, found))
    for metric in dict.fromkeys([*old_scores, *new_scores]):
        old_figures, new_figures = _figures(old_scores.get(metric)), _figures(new_scores.get(metric))
        for part, old, new in zip(("", ", lower limit", ", upper limit"), old_figures, new_figures, strict=True):
            if old is None or new is None or not abs(old - new) <= TOLERANCE:
                result.append(Difference(metric + part, old, new))
    return tuple(result)


def _figures(score: Score | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if score is None else (score.value, score.low, score.high)
