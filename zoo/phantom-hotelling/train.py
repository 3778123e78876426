# SPDX-License-Identifier: Apache-2.0
"""Recipe of ``phantom-hotelling``: the ideal linear observer of the lumpy-background phantom, in closed form.

    python zoo/phantom-hotelling/train.py

Nothing is trained: the template is the signal divided by the noise power spectrum (Barrett and Myers, Foundations of
Image Science, chapter 13). The smallest perturbation that flips this model is known exactly.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from art_medical.estimators.heads import Head
from art_medical.images.phantoms import LumpyPhantom
from art_medical.training.publish import count_parameters, training_entry, write_weights
from art_medical.zoo.cards import SCHEMA, ArchitectureEntry, Card, DataEntry, InputEntry
from art_medical.zoo.networks import LinearObserver

NAME = "phantom-hotelling"
HERE = Path(__file__).resolve().parent
TARGET = "LinearObserver"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="where weights and card go")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    phantom = LumpyPhantom()
    observer = phantom.hotelling()
    args = {"shape": [1, *phantom.shape]}
    network = LinearObserver((1, *phantom.shape))
    with torch.no_grad():
        network.readout.weight.copy_(torch.from_numpy(observer.template).reshape(1, -1))
        network.readout.bias.fill_(observer.offset)
    weights = write_weights(network, options.out / "model.safetensors", half=False)
    card = Card(
        schema=SCHEMA,
        name=NAME,
        version="1.0.0",
        files={"model.safetensors": weights},
        format="safetensors",
        architecture=ArchitectureEntry(target=TARGET, args=args, num_parameters=count_parameters(TARGET, args)),
        input=InputEntry(
            modality="phantom", shape=(1, *phantom.shape), low=0, high=4095, step=1, unit="stored value", steps=()
        ),
        head=Head(kind="one-logit", labels=("lumps only", "nodule")),
        positive_label="nodule",
        licence="Apache-2.0",
        authors=("art-medical contributors",),
        data=DataEntry(
            name="Lumpy-background phantoms of art-medical (Rolland and Barrett 1992)",
            doi="10.1364/JOSAA.9.000649",
            licence="Apache-2.0",
            splits={},
            index_sha256=phantom.identity(),
            patient_disjoint="yes",
        ),
        training=training_entry(f"zoo/{NAME}/train.py", 0, "closed form, nothing was trained"),
        citation=("Rolland and Barrett 1992, doi 10.1364/JOSAA.9.000649",),
        intended_use="Oracle for attacks and surrogate for transfer to phantom-nodule. Has no clinical meaning.",
        known_faults=("Synthetic images: what an attack achieves here says nothing about a clinical model.",),
    )
    (options.out / "card.json").write_text(card.to_json(), encoding="utf-8")


if __name__ == "__main__":
    main()
