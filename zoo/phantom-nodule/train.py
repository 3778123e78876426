# SPDX-License-Identifier: Apache-2.0
"""Recipe of ``phantom-nodule``: a small MONAI ResNet trained from scratch on lumpy-background phantoms.

    python zoo/phantom-nodule/train.py [--seed 0]

The phantoms are generated from their seed; the test split is not touched.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from sklearn.metrics import roc_auc_score

from art_medical.estimators.heads import Head
from art_medical.estimators.module import ClassifierModule
from art_medical.estimators.steps import Normalise
from art_medical.images.datasets import sample_phantoms
from art_medical.images.phantoms import LumpyPhantom
from art_medical.training.fit import Schedule, fit_with_progress
from art_medical.training.publish import at_sensitivity, count_parameters, training_entry, write_weights
from art_medical.training.scores import scores
from art_medical.zoo.cards import SCHEMA, ArchitectureEntry, Card, DataEntry, InputEntry
from art_medical.zoo.networks import build

NAME = "phantom-nodule"
HERE = Path(__file__).resolve().parent
TARGET = "ResNet"
ARGS: dict[str, Any] = {
    "block": "basic",
    "layers": [1, 1, 1, 1],
    "block_inplanes": [8, 16, 32, 64],
    "spatial_dims": 2,
    "n_input_channels": 1,
    "conv1_t_size": 5,
    "conv1_t_stride": 2,
    "no_max_pool": True,
    "num_classes": 1,
}
STEPS = (Normalise(mean=(1600.0,), std=(230.0,)),)
SIZES = {"train": 8000, "val": 1000}
SENSITIVITY = 0.9


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror along both axes: the phantom is symmetric about pixel ``side // 2``, so column 0 stays where it is."""
    for axis in (2, 3):
        chosen = (torch.rand(len(x), generator=generator) < 0.5).view(-1, 1, 1, 1)
        x = torch.where(chosen, x.flip(axis).roll(1, axis), x)
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--work", type=Path, default=HERE / "checkpoints", help="delete to start anew")
    parser.add_argument("--out", type=Path, default=HERE, help="where weights and card go")
    options = parser.parse_args()
    console = Console()
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    phantom = LumpyPhantom()
    data = {split: sample_phantoms(phantom, split, n, seed=options.seed) for split, n in SIZES.items()}
    torch.manual_seed(options.seed)
    module = ClassifierModule(build(TARGET, ARGS), STEPS, Head(kind="one-logit", labels=("lumps only", "nodule")))
    schedule = Schedule(epochs=options.epochs, batch_size=64, learning_rate=2e-3, seed=options.seed)
    history = fit_with_progress(module, data, schedule, augment, options.work / "checkpoint.pt", console)
    weights = write_weights(module.network, options.out / "model.safetensors")
    head, operating_point = at_sensitivity(module, data["val"], SENSITIVITY)
    card = Card(
        schema=SCHEMA,
        name=NAME,
        version="1.0.0",
        files={"model.safetensors": weights},
        format="safetensors",
        architecture=ArchitectureEntry(target=TARGET, args=ARGS, num_parameters=count_parameters(TARGET, ARGS)),
        input=InputEntry(
            modality="phantom", shape=(1, 64, 64), low=0, high=4095, step=1, unit="stored value", steps=STEPS
        ),
        head=head,
        positive_label="nodule",
        operating_point=operating_point,
        licence="Apache-2.0",
        authors=("art-medical contributors",),
        data=DataEntry(
            name="Lumpy-background phantoms of art-medical (Rolland and Barrett 1992)",
            doi="10.1364/JOSAA.9.000649",
            licence="Apache-2.0",
            splits=SIZES,
            index_sha256=phantom.identity(),
            patient_disjoint="yes",
        ),
        training=training_entry(f"zoo/{NAME}/train.py", options.seed, "random weights"),
        citation=("Rolland and Barrett 1992, doi 10.1364/JOSAA.9.000649",),
        intended_use="Trying out art-medical without data, and testing attacks. Has no clinical meaning.",
        known_faults=("Synthetic images: what an attack achieves here says nothing about a clinical model.",),
    )
    (options.out / "card.json").write_text(card.to_json(), encoding="utf-8")
    found = scores(module, data["val"].x)[:, 0]
    console.print(
        f"validation AUROC {roc_auc_score(data['val'].y, found):.4f} with the weights as written, "
        f"last epoch {history[-1]['val_auroc']:.4f}; ideal linear observer {phantom.hotelling().auc:.4f}"
    )


if __name__ == "__main__":
    main()
