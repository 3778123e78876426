# SPDX-License-Identifier: Apache-2.0
"""Measure a model on unattacked test images and write the scores into its card and model card README."""

from __future__ import annotations

from pathlib import Path

import art_medical
from art_medical.errors import ModelError
from art_medical.evaluation.progress import Progress
from art_medical.evaluation.runner import evaluate
from art_medical.evaluation.store import write_atomically
from art_medical.evaluation.study import FolderData, PhantomData, Study
from art_medical.zoo.cards import Card, CleanEvaluation, Score, read_card
from art_medical.zoo.model_card import model_card

_PHANTOMS = 2000


def score(folder: Path, data: Path | None, *, device: str = "cpu", progress: Progress | None = None) -> Card:
    """Evaluate the model in ``folder`` on the test split and put the result into its ``card.json`` and ``README.md``.

    An earlier evaluation on the same data set and split is replaced. Hash and size of the weights stay as they are.

    :param folder: Model folder.
    :param data: Folder with ``labels.csv`` or npz file; ``None`` for models of phantoms.
    :return: The new card.
    :raises ArtMedicalError: If model or images cannot be used; the card is then as it was.
    """
    card = read_card(folder)
    entry = measure(folder, data, device=device, progress=progress)
    others = [old for old in card.clean_eval if (old.dataset, old.split) != (entry.dataset, entry.split)]
    scored = card.model_copy(update={"clean_eval": (*others, entry)})
    write_atomically(folder / "card.json", scored.to_json().encode())
    write_atomically(folder / "README.md", model_card(scored).encode())
    return scored


def measure(
    folder: Path, data: Path | None, *, device: str = "cpu", progress: Progress | None = None
) -> CleanEvaluation:
    """Scores of the model in ``folder`` on the unattacked test split; nothing is written.

    :param data: Folder with ``labels.csv`` or npz file; ``None`` for models of phantoms.
    :raises ArtMedicalError: If model or images cannot be used.
    """
    card = read_card(folder)
    if (data is None) != (card.input.modality == "phantom"):
        raise ModelError(
            f"{card.name} takes {card.input.modality} images: models of phantoms, and no others, need no --data"
        )
    source: PhantomData | FolderData = PhantomData(kind="phantom", n=_PHANTOMS)
    if data is not None:
        source = FolderData(kind="npz" if data.suffix == ".npz" else "folder", targets=card.data.targets)
    ref = str(folder.absolute())  # a bare name could be that of a registered model
    study = Study(schema="art-medical/study@1", name="clean", models=(ref,), data=source, threat_models={}, attacks=())
    results = evaluate(study, data=data, device=device, progress=progress)
    cell, images = results.cells[0], next(iter(results.provenance["data"].values()))
    scores = [
        Score(metric=name, value=metric["value"], low=metric["low"], high=metric["high"])
        for name, metric in cell["metrics"].items()
        if metric["value"] is not None and metric["low"] is not None
    ]
    return CleanEvaluation(
        dataset=images["name"],
        split=images["split"],
        index_sha256=images["index"],
        n=images["n"],
        scores=tuple(scores),
        package_version=art_medical.__version__,
    )
