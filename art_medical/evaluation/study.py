# SPDX-License-Identifier: Apache-2.0
"""The study file: which models, on which images, against which attackers; validated, with errors that name the line."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError, model_validator

from art_medical.attacks import CATALOGUE
from art_medical.domain import Norm
from art_medical.errors import StudyError
from art_medical.images.targets import Target

SCHEMA = "art-medical/study@1"
MOST_BYTES = 1 << 20
MOST_NODES = 10_000
"""Most entries of a study with its aliases written out: a few lines can stand for billions."""

Positive = Annotated[FiniteFloat, Field(gt=0)]
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+/()-]*$", max_length=80)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PhantomData(_Part):
    """Phantoms generated from their seed; nothing is read."""

    kind: Literal["phantom"]
    split: Literal["train", "val", "test"] = "test"
    n: PositiveInt
    seed: Annotated[int, Field(ge=0)] = 0


class FolderData(_Part):
    """A folder with ``labels.csv`` and ``images/``, or an npz file; ``--data`` says where, unless ``path`` does.

    :param targets: Labels of a folder from other columns than ``label``, by their names and in the model's order.
    """

    kind: Literal["folder", "npz"]
    split: Literal["train", "val", "test"] = "test"
    path: str | None = None
    targets: dict[str, Target] | None = None


class ZooData(_Part):
    """The data set that each model's own card names, below the folder that ``--data`` names."""

    kind: Literal["zoo"]
    split: Literal["train", "val", "test"] = "test"


class ThreatModel(_Part):
    """The attacker, in the words of NIST AI 100-2: knowledge, goal, capability.

    :param knowledge: ``white-box``: gradients of the evaluated weights. ``transfer``: gradients of a surrogate only.
    :param surrogate: Model that a ``transfer`` attacker has; ``{model}`` in it stands for the evaluated model.
    :param goal: What the attacker wants.
    :param capability: What the attacker can touch.
    """

    knowledge: Literal["white-box", "transfer"]
    surrogate: str | None = None
    goal: str = "flip the decision at the operating point"
    capability: str = "changes stored pixels of the image before it reaches the model"

    @model_validator(mode="after")
    def _surrogate_where_needed(self) -> ThreatModel:
        if (self.knowledge == "transfer") != (self.surrogate is not None):
            raise ValueError("a transfer attacker needs a surrogate model, a white-box attacker has none")
        return self

    def surrogate_of(self, model: str) -> str | None:
        """The surrogate of an evaluated model."""
        return None if self.surrogate is None else self.surrogate.replace("{model}", model)


class AttackEntry(_Part):
    """One attack at one or more budgets.

    :param attack: Short name in the catalogue of attacks.
    :param label: Name in tables; unique.
    :param threat_model: Key of ``threat_models``.
    :param norm: Norm of the budget; none for patches.
    :param eps: Budgets, on ``scale``.
    :param eps_step: Step on ``scale``; by default the attack's own rule.
    :param scale: Range on which budgets are stated, for instance ``[-1, 1]``; by default the unit of the stored pixel.
    :param options: Further parameters of the attack's constructor.
    :param fit_images: Images of the training split that a patch is made from.
    """

    attack: str
    label: Key
    threat_model: str
    norm: Norm | None = None
    eps: Annotated[tuple[Positive, ...], Field(max_length=64)] = ()
    eps_step: Positive | None = None
    scale: tuple[FiniteFloat, FiniteFloat] | None = None
    options: dict[str, Any] = {}
    fit_images: PositiveInt | None = None

    @model_validator(mode="after")
    def _consistent(self) -> AttackEntry:
        if self.attack not in CATALOGUE:
            raise ValueError(f"unknown attack {self.attack!r}; there are {', '.join(CATALOGUE)}")
        if (self.norm is None) != (not self.eps):
            raise ValueError("norm and eps go together: give both, or neither for a patch")
        if ("patch" in self.attack) != (self.norm is None):
            raise ValueError("an additive attack needs norm and eps, a patch has none")
        if ("patch" in self.attack) != (self.fit_images is not None):
            raise ValueError(
                "a patch needs fit_images, the number of training images it is made from; others have none"
            )
        if len(set(self.eps)) != len(self.eps):
            raise ValueError(f"eps names a budget twice: {list(self.eps)}")
        if self.scale is not None and not self.scale[0] < self.scale[1]:
            raise ValueError(f"scale must be ordered, got {list(self.scale)}")
        taken = {"estimator", "norm", "eps", "eps_step", "seed", "batch_size", "verbose"} & set(self.options)
        if taken:
            raise ValueError(f"option {sorted(taken)[0]!r} is set by the study, not under options")
        return self


class Study(_Part):
    """A study: every model meets every attack at every budget and seed."""

    schema_: Literal["art-medical/study@1"] = Field(alias="schema")
    name: Key
    description: str = ""
    models: Annotated[tuple[str, ...], Field(min_length=1)]
    data: Annotated[PhantomData | FolderData | ZooData, Field(discriminator="kind")]
    threat_models: dict[str, ThreatModel]
    attacks: tuple[AttackEntry, ...]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        for entry in self.attacks:
            if entry.threat_model not in self.threat_models:
                known = ", ".join(self.threat_models) or "none"
                raise ValueError(
                    f"attack {entry.label!r} names the threat model {entry.threat_model!r}; there are {known}"
                )
        labels = [entry.label for entry in self.attacks]
        for values, what in ((labels, "attack label"), (self.models, "model"), (self.seeds, "seed")):
            repeated = [value for value in values if list(values).count(value) > 1]
            if repeated:
                raise ValueError(f"{what} {repeated[0]!r} is given twice")
        if "clean" in labels:
            raise ValueError("the label 'clean' is taken by the unattacked images")
        return self


def embedded_study() -> Study:
    """The study on embedded phantoms that needs neither data nor network."""
    text = resources.files("art_medical.evaluation").joinpath("phantom.yaml").read_text(encoding="utf-8")
    return parse_study(text, "phantom.yaml")


def read_study(path: Path) -> Study:
    """Read and validate a study file.

    A relative ``path`` of the data, and a model that is named by a relative path such as ``./my-model``, are taken from
    the folder of the study.

    :raises StudyError: If it is missing, too long, no YAML, or not a valid study.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise StudyError(f"{path} has more than {MOST_BYTES} bytes; a study is a short file")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StudyError(f"cannot read the study {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StudyError(f"{path} is not UTF-8 text") from error
    return _anchored(parse_study(text, str(path)), path.parent)


def _anchored(study: Study, folder: Path) -> Study:
    """Relative paths of a study in ``folder`` as paths from the current directory."""

    def model(ref: str | None) -> str | None:
        return str(folder / ref) if ref is not None and ("/" in ref or "\\" in ref) else ref

    threats = {k: t.model_copy(update={"surrogate": model(t.surrogate)}) for k, t in study.threat_models.items()}
    data = study.data
    if isinstance(data, FolderData) and data.path is not None:
        data = data.model_copy(update={"path": str(folder / data.path)})
    models = tuple(model(ref) for ref in study.models)
    return study.model_copy(update={"models": models, "threat_models": threats, "data": data})


def parse_study(text: str, where: str) -> Study:
    """Validate the text of a study; ``where`` names it in errors."""
    root, content = _load(text, where)
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        line, place = _find(root, first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        message = first["msg"].removeprefix("Value error, ")
        raise StudyError(f"{where}, line {line}: {place[:200] or 'study'}: {message[:300]}{more}") from error


def _load(text: str, where: str) -> tuple[yaml.Node, Any]:
    """The nodes of a YAML text, which know their lines, and its content."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            raise StudyError(f"{where} is empty; see the documentation of study files")
        _check_nodes(root, where, {})
        return root, yaml.safe_load(text)
    except StudyError:
        raise
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise StudyError(f"{where}, line {line}: not YAML: {error.problem}") from error
    except RecursionError as error:
        raise StudyError(f"{where} is nested too deeply") from error
    except (yaml.YAMLError, ValueError, LookupError, ArithmeticError, TypeError) as error:
        # PyYAML lets what datetime, int and float raise pass: 2020-13-45 looks like a date.
        raise StudyError(f"{where}: not YAML: {' '.join(str(error).split())[:300]}") from error


def _find(root: yaml.Node, loc: tuple[int | str, ...]) -> tuple[int, str]:
    """Line of the deepest node on the path of an error, and that path; union tags of pydantic are passed over."""
    node, line, path = root, root.start_mark.line + 1, []
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            entry = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if entry is None:
                if not isinstance(part, str) or part not in ("phantom", "folder", "npz", "zoo"):
                    path.append(str(part))
                continue
            line, node = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            continue
        path.append(str(part))
    return line, ".".join(path)


def _check_nodes(node: yaml.Node, where: str, sizes: dict[int, int]) -> int:
    """Number of nodes below ``node`` with aliases written out; refuses repeated keys and texts that expand.

    :param sizes: Of the nodes that were visited; the most for those being visited, which hold themselves.
    """
    if id(node) in sizes:
        return sizes[id(node)]
    line = node.start_mark.line + 1
    sizes[id(node)] = MOST_NODES
    size = 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise StudyError(f"{where}, line {line}: a key must be a plain word")
            if key.value in seen:
                raise StudyError(f"{where}, line {line}: key {key.value!r} is given twice")
            seen.add(key.value)
            size += 1 + _check_nodes(value, where, sizes)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_check_nodes(value, where, sizes) for value in node.value)
    if size > MOST_NODES:
        raise StudyError(f"{where}, line {line}: more than {MOST_NODES} entries; a study is a short file")
    sizes[id(node)] = size
    return size
