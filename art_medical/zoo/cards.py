# SPDX-License-Identifier: Apache-2.0
"""Model cards: the validated truth about a model, one ``card.json`` beside its weights."""

from __future__ import annotations

import json
import math
import os
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from art_medical.domain import PixelDomain
from art_medical.errors import ModelError
from art_medical.estimators.heads import Head
from art_medical.estimators.steps import Repeat, Resize, Step, Transpose
from art_medical.images.targets import Target
from art_medical.zoo.plain_file import open_plain_file

SCHEMA = "art-medical/card@1"
MOST_BYTES = 1 << 20
MOST_VALUES = 1 << 28
"""Most values that one image may have on its way to the network: a card could ask for a terabyte."""

MOST_FILE_BYTES = 1_000_000_000
"""Longest file that is fetched or read: a card could fill the disk before a byte is compared."""

MOST_STEPS = 32

_DEVICES = {"con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(10))}
_COMPANIONS = {"card.json", "readme.md", "license", "recipe.yaml", "train.py"}


def _portable(name: str) -> str:
    """A name that means something else on Windows is none (Microsoft, "Naming Files, Paths, and Namespaces")."""
    for part in name.split("/"):
        if part.endswith(".") or part.partition(".")[0].lower() in _DEVICES:
            raise ValueError(f"{part!r} cannot be the name of a file on every system")
    return name


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
# A file below the model folder: every part starts with a letter or a digit, so none is `..`, hidden or absolute.
FileName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*){0,7}$", max_length=128),
    AfterValidator(_portable),
]
ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", max_length=64), AfterValidator(_portable)]
Scalar = bool | int | FiniteFloat | str


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HubEntry(_Part):
    """Where the files of the model are published.

    :param repo: Repository on the Hub, ``owner/name``.
    :param revision: Full commit id, or ``None`` while it is not known: then nothing is fetched unless the caller allows
        a model that is not pinned.
    """

    repo: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=193)]
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None


class WeightFile(_Part):
    """Hash and length of one file of the model; both are checked before a byte is parsed.

    Both are ``None`` for a file of somebody else's repository whose hash is not known; such a file is refused unless
    the caller allows a model that is not pinned.
    """

    sha256: Sha256 | None
    size: Annotated[int, Field(gt=0, le=MOST_FILE_BYTES)] | None

    @model_validator(mode="after")
    def _both_or_none(self) -> WeightFile:
        if (self.sha256 is None) != (self.size is None):
            raise ValueError("sha256 and size must both be given, or both be null for a file that is not pinned")
        return self

    @property
    def pinned(self) -> bool:
        """Whether the card says which bytes the file must hold."""
        return self.sha256 is not None


class SignatureEntry(_Part):
    """The signature of the model folder.

    :param file: Name of the Sigstore bundle in the folder.
    :param key_sha256: Fingerprint of the key: sha256 of the DER ``SubjectPublicKeyInfo``.
    """

    file: FileName
    key_sha256: Sha256


class ArchitectureEntry(_Part):
    """A row of the allow-list of networks with literal arguments."""

    target: str
    args: dict[str, Scalar | tuple[Scalar | tuple[Scalar, ...], ...]]
    num_parameters: PositiveInt


class InputEntry(_Part):
    """What the model takes: the attack box in stored pixels, and everything it does to a pixel before its network.

    :param attackable_channels: Channels that hold the image, in ascending order; the others (a mask, for instance) come
        from elsewhere and no attacker draws on them. ``None`` for all.
    """

    modality: str
    shape: Annotated[tuple[PositiveInt, ...], Field(min_length=3, max_length=4)]
    low: FiniteFloat
    high: FiniteFloat
    step: Annotated[float, Field(gt=0)] | None
    unit: str
    steps: Annotated[tuple[Step, ...], Field(max_length=MOST_STEPS)]
    photometric: Literal["MONOCHROME2", "RGB"] = "MONOCHROME2"
    attackable_channels: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None

    @property
    def domain(self) -> PixelDomain:
        """The pixel domain."""
        return PixelDomain(self.low, self.high, self.step, self.unit)

    @model_validator(mode="after")
    def _can_be_computed(self) -> InputEntry:
        _ = self.domain
        shape = self.shape
        sizes = [math.prod(shape)]
        for step in self.steps:
            if isinstance(step, Resize):
                if len(step.size) != len(shape) - 1:
                    raise ValueError(f"a resize to {step.size} does not fit images of shape {shape}")
                shape = (shape[0], *step.size)
            elif isinstance(step, Repeat):
                shape = (shape[0] * step.channels, *shape[1:])
            elif isinstance(step, Transpose):
                shape = (*shape[:-2], shape[-1], shape[-2])
            sizes.append(math.prod(shape))
        if max(sizes) > MOST_VALUES:
            raise ValueError(f"one image would have {max(sizes):,} values, more than {MOST_VALUES:,}")
        channels = self.attackable_channels
        if channels is not None and (list(channels) != sorted(set(channels)) or channels[-1] >= self.shape[0]):
            raise ValueError(
                f"attackable_channels must be ascending and below the {self.shape[0]} channels of the image, "
                f"got {channels}"
            )
        return self


class OperatingPoint(_Part):
    """Where the thresholds of the head come from; never the test split."""

    split: Literal["val"]
    rule: str
    target: Annotated[float, Field(gt=0, le=1)]
    n: PositiveInt


class DataEntry(_Part):
    """The images that the model was trained on.

    :param folder: Folder or npz file of the data set below the folder that holds all of them.
    :param targets: Labels from other columns than ``label``, by their names.
    """

    name: str
    doi: str
    licence: str
    folder: FileName | None = None
    targets: dict[str, Target] | None = None
    splits: dict[str, int]
    index_sha256: Sha256 | None = None
    patient_disjoint: Literal["yes", "no", "unknown"]


class TrainingEntry(_Part):
    """How the weights came to be."""

    recipe: str
    seed: int
    started_from: str
    versions: dict[str, str]


class Score(_Part):
    """One measured figure with its interval."""

    metric: str
    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat

    @model_validator(mode="after")
    def _ordered(self) -> Score:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"{self.metric}: value {self.value} is outside its interval [{self.low}, {self.high}]")
        return self


class CleanEvaluation(_Part):
    """Scores on unattacked images."""

    dataset: str
    split: str
    index_sha256: Sha256
    n: PositiveInt
    scores: tuple[Score, ...]
    package_version: str


class Card(_Part):
    """Everything that is known about a model.

    :param name: Name in the registry and of the folder.
    :param hub: Repository that publishes the files, if another one than where the card was found.
    :param files: The weights file by name, with hash and size.
    :param format: ``safetensors``, or ``state_dict`` for what ``torch.save`` makes of a state dict.
    :param key_prefix: Prefix that every tensor name in the file has and the network's own names have not, such as
        ``module.``; never guessed.
    :param wrapper: Entry of the saved mapping that holds the tensors, where the mapping does not hold them itself.
    :param training: How the weights came to be; ``None`` for weights that others published without their recipe.
    """

    schema_: Literal["art-medical/card@1"] = Field(alias="schema")
    name: ModelName
    version: str
    hub: HubEntry | None = None
    files: Annotated[dict[FileName, WeightFile], Field(min_length=1, max_length=1)]
    format: Literal["safetensors", "state_dict"]
    key_prefix: Annotated[str, Field(pattern=r"^([A-Za-z_][A-Za-z0-9_]*\.)*$", max_length=64)] = ""
    wrapper: Annotated[str, Field(pattern="^[A-Za-z0-9_]*$", max_length=64)] = ""
    architecture: ArchitectureEntry
    input: InputEntry
    head: Head
    positive_label: str | None = None
    operating_point: OperatingPoint | None = None
    licence: str
    authors: tuple[str, ...]
    data: DataEntry
    training: TrainingEntry | None
    citation: tuple[str, ...]
    intended_use: str
    known_faults: tuple[str, ...]
    clean_eval: tuple[CleanEvaluation, ...] = ()
    signature: SignatureEntry | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        if self.weights.lower().endswith((".ts", ".onnx")):
            raise ValueError(f"{self.weights}: TorchScript and ONNX files are programs; a card names weights only")
        _check_names(self.weights, self.signature.file if self.signature is not None else None)
        if self.wrapper and self.format != "state_dict":
            raise ValueError("wrapper is for format state_dict; a safetensors file has no levels")
        if self.head.thresholds is not None and self.operating_point is None:
            raise ValueError("a head with thresholds needs an operating_point that says where they come from")
        if self.positive_label is not None and self.positive_label not in self.head.labels:
            raise ValueError(f"positive_label {self.positive_label!r} is none of the labels {self.head.labels}")
        return self

    @property
    def weights(self) -> str:
        """Name of the one weights file."""
        return next(iter(self.files))

    @property
    def pinned(self) -> bool:
        """Whether the card says which bytes are meant: hash and size of every file, and the commit if on the Hub."""
        published = self.hub is None or self.hub.revision is not None
        return published and all(entry.pinned for entry in self.files.values())

    def to_json(self) -> str:
        """Canonical text of ``card.json``; what only published models have is left out where it says nothing."""
        data = self.model_dump(mode="json", by_alias=True)
        for part, names in (
            (data, ("hub", "key_prefix", "wrapper", "signature")),
            (data["input"], ("attackable_channels",)),
        ):
            for name in names:
                if part[name] in (None, ""):
                    del part[name]
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def read_card(folder: Path) -> Card:
    """Read and validate ``card.json`` of a model folder.

    :raises ModelError: If it is missing, no plain file, too long, no JSON, repeats a key, or is not a valid card.
    """
    path = folder / "card.json"
    try:
        with open_plain_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST_BYTES:
                raise ModelError(f"{path} has {size} bytes; a card has at most {MOST_BYTES}")
            text = file.read(size).decode("utf-8")
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}; a model folder needs a card.json") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8 text") from error
    return parse_card(text, str(path))


def parse_card(text: str, where: str) -> Card:
    """Validate the text of a card; ``where`` names it in errors."""
    try:
        data = json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
        _check_characters(data)
        return Card.model_validate(data)
    except json.JSONDecodeError as error:
        raise ModelError(f"{where}, line {error.lineno}: not JSON: {error.msg}") from error
    except ValidationError as error:
        raise ModelError(f"{where}: {first_fault(error, 'card')}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where}: {str(error)[:300]}") from error


def first_fault(error: ValidationError, whole: str) -> str:
    """The first thing that is wrong with a document, in one short line; keys of the document are part of it.

    :param whole: What the document is called where the fault has no place in it.
    """
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])[:200] or whole
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return "".join(c if c.isprintable() else "?" for c in f"{place}: {first['msg'][:300]}{more}")


def _check_names(weights: str, signature: str | None) -> None:
    """Files of one folder, each with a name of its own also where case does not count."""
    if weights.lower() in _COMPANIONS:
        raise ValueError(f"{weights} is a file of the model folder and cannot be its weights")
    if signature is None:
        return
    parts = weights.lower().split("/")
    if signature.lower() in _COMPANIONS | {"/".join(parts[:n]) for n in range(1, len(parts) + 1)}:
        raise ValueError(f"{signature} is a file of the model folder and cannot be its signature")


def _check_characters(data: Any) -> None:
    """No character that a terminal obeys or that shows text in another order than it has (CVE-2021-42574)."""
    waiting = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str):
            bad = next((c for c in value if not c.isprintable() and c != "\n" and _hidden(c)), None)
            if bad is not None:
                raise ValueError(f"the text {value[:60]!a} has the character U+{ord(bad):04X}; write it without")


def _hidden(character: str) -> bool:
    """Control characters, direction marks and halves of characters; other odd spaces are typography."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key!r} is given twice")
        result[key] = value
    return result


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number
