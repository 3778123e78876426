# SPDX-License-Identifier: Apache-2.0
"""Attack one file: through everything between stored pixel and decision, back to a file, and score that file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from art_medical.attacks import attack_class
from art_medical.domain import PixelDomain
from art_medical.errors import ImageError, InputError, ModelError
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.steps import Repeat, Resize, Step
from art_medical.images.datasets import as_channels
from art_medical.images.files import check_target, read_image, write_like
from art_medical.images.image import StoredImage
from art_medical.zoo.registry import load

_NORMS = {"linf": np.inf, "l2": 2}
_ATTACKS = ("pgd", "noise")


@dataclass(frozen=True)
class Decision:
    """What the model says about one file."""

    label: str
    probabilities: dict[str, float]

    def __str__(self) -> str:
        return f"{self.label} ({', '.join(f'{name} {p:.4f}' for name, p in self.probabilities.items())})"


@dataclass(frozen=True)
class Outcome:
    """What an attack on one file achieved; ``after`` is the decision on the file that was written and read back.

    :param success: Whether the re-read file has the decision that was wanted.
    :param changed: Share of pixels that differ.
    :param linf: Largest change of a pixel, in stored values.
    """

    before: Decision
    after: Decision
    success: bool
    budget: str
    changed: float
    linf: float
    path: Path

    def lines(self) -> list[str]:
        """For people."""
        verdict = (
            "the written file has the attacked decision" if self.success else "the attack did NOT change the decision"
        )
        return [
            f"before: {self.before}",
            f"after:  {self.after}",
            f"budget: {self.budget}; largest change {self.linf:g}, {100 * self.changed:.1f} % of pixels",
            f"{verdict}: {self.path}",
        ]


def attack_file(
    image: Path,
    out: Path,
    *,
    model: str,
    attack: str = "pgd",
    norm: str = "linf",
    eps: str = "1%",
    max_iter: int = 40,
    target: str | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Outcome:
    """Attack the stored pixels of one file and write a file of the same kind.

    :param image: DICOM, NIfTI, PNG or JPEG.
    :param out: File to write; nothing is written when anything fails.
    :param model: Registered model or model folder.
    :param attack: ``pgd`` or ``noise``.
    :param norm: ``linf`` or ``l2``.
    :param eps: Budget in stored values of the file, or with ``%`` as a share of what the model sees of the range: for a
        windowed image of the window, else of the stored range.
    :param target: Label to reach; by default the decision is flipped.
    :raises ArtMedicalError: If an argument, the file or the model cannot be used.
    """
    if attack not in _ATTACKS:
        raise InputError(f"attack {attack!r} does not run on a single file; choose one of {', '.join(_ATTACKS)}")
    if norm not in _NORMS:
        raise InputError(f"unknown norm {norm!r}; choose one of {', '.join(_NORMS)}")
    stored = read_image(image)
    check_target(stored, out)
    classifier = behind_file(load(model, device=device), stored)
    budget = parse_budget(eps, stored)
    x = _model_channels(classifier, stored, stored.pixels)
    before = _decide(classifier, x)
    y = None if target is None else np.array([_class_of(classifier, target)])
    options: dict[str, Any] = {"norm": _NORMS[norm], "eps": budget, "targeted": target is not None, "seed": seed}
    if attack == "pgd":
        options |= {"max_iter": max_iter, "num_random_init": 1}
    attacker = attack_class(attack)(classifier, **options)
    mask = _model_channels(classifier, stored, stored.attackable.astype(np.float32))
    attacked = attacker.generate(x, y, mask=mask, ids=[image.name])[0]
    write_like(stored, np.broadcast_to(attacked, stored.pixels.shape), out)
    again = read_image(out)
    after = _decide(classifier, _model_channels(classifier, again, again.pixels))
    change = np.abs(again.pixels - stored.pixels)
    reached = after.label == target if target is not None else after.label != before.label
    return Outcome(
        before=before,
        after=after,
        success=reached,
        budget=stored.domain.describe(budget),
        changed=float((change > 0).mean()),
        linf=float(change.max()),
        path=out,
    )


def behind_file(classifier: MedicalClassifier, image: StoredImage) -> MedicalClassifier:
    """The classifier as a product that takes this kind of file: stored value to what the network gets.

    :raises ModelError: If the model takes another kind of image.
    """
    return classifier.behind(
        bridge(image, classifier.domain, classifier.input_shape),
        domain=image.domain,
        input_shape=(1 if _is_grey(image) else image.pixels.shape[0], *image.pixels.shape[1:]),
    )


def bridge(image: StoredImage, domain: PixelDomain, input_shape: tuple[int, ...]) -> tuple[Step, ...]:
    """Differentiable steps from the stored values of a file to the images that a model takes.

    A model over 8-bit grey levels gets the displayed image (rescale, window, inversion for MONOCHROME1); a model over
    the file's physical unit gets the rescaled values; then both are resized.
    """
    if len(image.pixels.shape) != len(input_shape):
        raise ModelError(
            f"{image.path.name} has {len(image.pixels.shape) - 1} spatial axes, the model takes {len(input_shape) - 1}"
        )
    if domain == image.domain:
        steps: tuple[Step, ...] = ()
    elif (domain.low, domain.high, domain.unit) == (0.0, 255.0, "grey level"):
        steps = image.to_grey
    elif domain.unit == image.physical_unit:
        steps = image.modality
    else:
        raise ModelError(
            f"{image.path.name} holds values in {image.physical_unit}, the model takes {domain.units} from "
            f"{domain.low:g} to {domain.high:g}: there is no defined way from one to the other"
        )
    channels = 1 if _is_grey(image) else image.pixels.shape[0]
    if channels != input_shape[0]:
        if channels != 1:
            raise ImageError(f"{image.path.name} has {channels} channels, the model takes {input_shape[0]}")
        steps = (*steps, Repeat(channels=input_shape[0]))
    return (*steps, Resize(size=input_shape[1:]))


def parse_budget(text: str, image: StoredImage) -> float:
    """A budget in stored values: ``12``, or ``1%`` of the range that is displayed.

    :raises InputError: If it is no positive number.
    """
    share = text.strip().endswith("%")
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise InputError(f"eps must be a positive number of stored values or a percentage such as 1%, got {text!r}")
    return value / 100 * displayed_span(image) if share else value


def displayed_span(image: StoredImage) -> float:
    """Width in stored values of the range that is not clipped on the way to the displayed grey."""
    from art_medical.estimators.steps import Rescale, Window

    span, slope = image.domain.span, 1.0
    for step in image.to_grey:
        if isinstance(step, Rescale):
            slope *= abs(step.scale)
        elif isinstance(step, Window):
            return min(span, (step.width - 1) / slope)
    return span


def _is_grey(image: StoredImage) -> bool:
    return image.pixels.shape[0] == 1 or bool((image.pixels == image.pixels[:1]).all())


def _model_channels(
    classifier: MedicalClassifier, image: StoredImage, values: NDArray[np.float32]
) -> NDArray[np.float32]:
    return as_channels(values, classifier.input_shape[0], image.path.name)[None]


def _decide(classifier: MedicalClassifier, x: NDArray[np.float32]) -> Decision:
    head = classifier.head
    number = int(classifier.predict(x).argmax(1)[0])
    probabilities = classifier.predict_proba(x)[0]
    if head.kind == "multi-label":
        found = [name for k, name in enumerate(head.labels) if number >> k & 1]
        label = ", ".join(found) or "none"
    else:
        label = head.labels[number]
    return Decision(label, {name: float(p) for name, p in zip(head.labels, probabilities, strict=True)})


def _class_of(classifier: MedicalClassifier, target: str) -> int:
    head = classifier.head
    if head.kind == "multi-label":
        raise InputError("targets are defined for models with exclusive labels; leave --target out")
    if target not in head.labels:
        raise InputError(f"label {target!r} is outside the model's card: it has {head.describe()}")
    return head.labels.index(target)
