# SPDX-License-Identifier: Apache-2.0
"""The conformance check of model folders: what a model must keep so that every attack and report can rely on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from art_medical.errors import ArtMedicalError, ModelError
from art_medical.zoo.cards import Card, read_card
from art_medical.zoo.verify import verify_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from art_medical.estimators.classifier import MedicalClassifier

IMAGES = 4
SHARES = frozenset({"accuracy", "auroc", "sensitivity", "specificity", "ppv", "npv"})
RELATIVE = 1e-4
"""Largest difference of a logit between a batch and one image alone, relative to the largest logit."""


def check_card(path: str | Path, data: str | Path | None = None) -> None:
    """Check a model folder; every fault is reported at once.

    - The card is valid, in its canonical form and named as the folder; it says who may use the model, for what, and
      what is wrong with it; no score is of images that the model was trained on.
    - All that ``art-medical zoo verify`` checks: hashes, unexpected files, page, network, tensors.
    - The model loads, gives finite probabilities that depend on the image and not on its neighbours in the batch,
      leaves the image alone, and has a finite gradient that is not zero: without one, no white-box attack means
      anything.
    - With ``data``: every clean score of the card, measured again, is the same to 1e-6, and the images are on the grid
      that the card states.

    Weights that the folder lacks are a fault unless the card says that the Hub has them; the model is then not loaded.

    :param path: Folder with ``card.json``.
    :param data: The data set that the scores are of: a folder with ``labels.csv``, or an npz file. Models of
        phantoms need none and are measured if ``data`` is ``phantom``.
    :raises AssertionError: With one line for each fault.
    """
    folder = Path(path)
    faults = list(_faults(folder, data))
    if faults:
        raise AssertionError("\n".join([f"{folder} is not a model that others can rely on:", *faults]))


def _faults(folder: Path, data: str | Path | None) -> Iterator[str]:
    try:
        card = read_card(folder)
    except ModelError as error:
        yield f"- {error}"
        return
    yield from (f"- card.json: {text}" for text in _statements(card, folder))
    absent = [name for name in card.files if not (folder / name).is_file()]
    published = bool(absent) and card.hub is not None
    found = [f for f in verify_model(folder) if f.severity == "error" and not (published and f.file in absent)]
    yield from (f"- {f.file}: {f.message}" for f in found)
    if found or absent:
        return
    try:
        yield from (f"- model: {text}" for text in _behaviour(card, folder))
        if data is not None:
            yield from (f"- clean_eval: {text}" for text in _figures(folder, data))
    except ArtMedicalError as error:
        yield f"- {error}"


def _statements(card: Card, folder: Path) -> Iterator[str]:
    """What the schema cannot say."""
    if (folder / "card.json").read_text(encoding="utf-8") != card.to_json():
        yield "is not in its canonical form; write it with Card.to_json(), so that its hash can be reproduced"
    if card.name != folder.absolute().name:
        yield f"names the model {card.name!r}, its folder is {folder.absolute().name!r}"
    for name in ("licence", "authors", "intended_use", "known_faults"):
        if not getattr(card, name):
            yield f"{name} is empty"
    for name in ("name", "licence"):
        if not getattr(card.data, name):
            yield f"data.{name} is empty"
    for entry in card.clean_eval:
        if entry.split in ("train", "val"):
            yield f"clean_eval has scores on the split {entry.split!r}, which the model was made with"
        for score in entry.scores:
            if score.metric in SHARES and not 0 <= score.low <= score.high <= 1:
                yield f"clean_eval: {score.metric} from {score.low} to {score.high} leaves the range 0 to 1"


def _behaviour(card: Card, folder: Path) -> Iterator[str]:
    from art_medical.zoo.registry import load

    estimator = load(folder)
    images = _images(card)
    before = images.copy()
    logits = estimator.predict_logits(images)
    probabilities = estimator.predict_proba(images)
    if not np.isfinite(logits).all() or not ((probabilities >= 0) & (probabilities <= 1)).all():
        yield "a logit is not finite, or a probability is not between 0 and 1"
        return
    if not np.array_equal(images, before):
        yield "predict changed the images that it was given"
    if (logits == logits[:1]).all():
        yield f"the logits of {IMAGES} different images are equal: it does not look at the image"
    alone = np.concatenate([estimator.predict_logits(images[i : i + 1]) for i in range(len(images))])
    if np.abs(alone - logits).max() > RELATIVE * max(1.0, float(np.abs(logits).max())):
        yield "an image alone has other logits than in a batch: a layer is in training mode or mixes images"
    if not np.array_equal(estimator.predict_logits(images), logits):
        yield "the same images have other logits the second time"
    yield from _gradient(card, estimator, images)


def _gradient(card: Card, estimator: MedicalClassifier, images: NDArray[np.float32]) -> Iterator[str]:
    unlikely = estimator.predict(images).argmin(1)  # the loss of a confident decision has no gradient in float32
    labels = np.eye(estimator.nb_classes, dtype=np.float32)[unlikely]
    gradient: NDArray[Any] = estimator.loss_gradient(images, labels)
    channels = list(card.input.attackable_channels or range(card.input.shape[0]))
    if gradient.shape != images.shape or not np.isfinite(gradient).all():
        yield "the gradient with respect to the stored pixels has another shape than the images, or is not finite"
    elif not gradient[:, channels].any(axis=tuple(range(1, gradient.ndim))).all():
        yield "the gradient with respect to the stored pixels is zero: white-box attacks would fail for no good reason"


def _images(card: Card) -> NDArray[np.float32]:
    """Phantoms where the model takes them, else random images of few large squares over the stored range."""
    if card.input.modality == "phantom":
        from art_medical.images.phantoms import LumpyPhantom

        phantom = LumpyPhantom()
        if card.input.shape == (1, 64, 64) and card.input.domain == phantom.domain:
            return phantom.sample(IMAGES, seed=0, split="test")[0]
    rng, domain = np.random.default_rng(0), card.input.domain
    coarse = rng.uniform(domain.low, domain.high, (IMAGES, card.input.shape[0], *(4 for _ in card.input.shape[1:])))
    for axis, length in enumerate(card.input.shape[1:], start=2):
        coarse = coarse.take(np.arange(length) * 4 // length, axis=axis)
    quantised: NDArray[np.float32] = domain.quantise(coarse.astype(np.float32)).astype(np.float32)
    return quantised


def _figures(folder: Path, data: str | Path) -> Iterator[str]:
    from art_medical.evaluation.recheck import recheck

    for row in recheck(folder, None if str(data) == "phantom" else Path(data)):
        yield f"{row.what} is {row.stated} on the card and {row.found} in a new measurement"
