# SPDX-License-Identifier: Apache-2.0
"""Cards of MONAI's published classification bundles: true of MONAI's own pipeline, refused while they are not pinned.

The published weights cannot be had here. Random weights of the right architecture go through the real file format, and
the logits are compared with MONAI's own network behind MONAI's own transforms, on the same image file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai import transforms
from monai.apps.nuclick.transforms import AddLabelAsGuidanced, SplitLabeld
from monai.networks import nets
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import art_medical
from art_medical.attacks import ProjectedGradientDescent
from art_medical.errors import InputError, ModelError, UnpinnedError
from art_medical.estimators.steps import Repeat
from art_medical.zoo.cards import read_card
from art_medical.zoo.model_card import model_card

ZOO = Path(__file__).resolve().parents[2] / "zoo"
NAMES = ("monai-breast-density", "monai-endoscopic-inbody", "monai-pathology-nuclei", "monai-pathology-tumour")
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # MONAI looks for a reader that nobody needs

NEEDS_TORCHVISION = "torchvision is not installed: it is in the extra art-medical[torchvision]"


def network_of_monai(name: str) -> nn.Module:
    """The network as the published configuration builds it, without the download."""
    if name == "monai-endoscopic-inbody":
        return nets.SEResNet50(spatial_dims=2, in_channels=3, num_classes=2)  # type: ignore[no-any-return]
    if name == "monai-pathology-nuclei":
        return nets.DenseNet121(spatial_dims=2, in_channels=4, out_channels=4)  # type: ignore[no-any-return]
    pytest.importorskip("torchvision", reason=NEEDS_TORCHVISION)
    if name == "monai-pathology-tumour":
        return nets.TorchVisionFCModel("resnet18", num_classes=1, use_conv=True)  # type: ignore[no-any-return]
    # What pretrained: true of the configuration leaves behind, once its weights are overwritten.
    inception = {"transform_input": True, "init_weights": False}
    return nets.TorchVisionFCModel(  # type: ignore[no-any-return]
        "inception_v3", num_classes=4, pool=None, use_conv=False, bias=True, **inception
    )


def preprocessing(name: str) -> transforms.Compose:
    """The transforms of the published configurations, without those that only move data about."""
    load = transforms.LoadImaged(keys="image", image_only=True)
    to_range = transforms.ScaleIntensityRanged(keys="image", a_min=0.0, a_max=255.0, b_min=-1.0, b_max=1.0)
    steps: dict[str, list[Any]] = {
        "monai-breast-density": [
            load,
            transforms.EnsureChannelFirstd(keys="image", channel_dim=2),
            transforms.ScaleIntensityd(keys="image", minv=0.0, maxv=1.0),
            transforms.Resized(keys="image", spatial_size=[299, 299]),
        ],
        "monai-endoscopic-inbody": [
            load,
            transforms.EnsureChannelFirstd(keys="image", channel_dim=-1),
            transforms.Resized(keys="image", spatial_size=[256, 256], mode="bilinear"),
            transforms.CastToTyped(keys="image", dtype=torch.float32),
            transforms.NormalizeIntensityd(keys="image", nonzero=True, channel_wise=True),
        ],
        "monai-pathology-nuclei": [
            transforms.LoadImaged(keys=["image", "label"], dtype="uint8", image_only=True),
            transforms.EnsureChannelFirstd(keys=["image", "label"]),
            SplitLabeld(keys="label", mask_value="", others_value=255, to_binary_mask=False),
            to_range,
            AddLabelAsGuidanced(keys="image", source="label"),
        ],
        "monai-pathology-tumour": [transforms.CastToTyped(keys="image", dtype="float32"), to_range],
    }
    return transforms.Compose(steps[name])


def lively(network: nn.Module) -> nn.Module:
    """Random weights that let the image through to the logits; MONAI's and torchvision's own let it fade away."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]
            module.num_batches_tracked.fill_(7)  # type: ignore[union-attr,operator]
    return network.eval()


def picture(size: int) -> NDArray[np.uint8]:
    """An 8-bit RGB picture ``(row, column, channel)`` that is its own image in no mirror, with black pixels in it."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:size, :size] / size
    waves = np.stack([np.sin(7 * x + 3 * y * y + k) for k in range(3)], 2) * 90 + 110
    image = (waves + rng.normal(0, 20, waves.shape)).clip(3, 250)
    image[: size // 5, : size // 3] = 0
    return image.astype(np.uint8)


def nucleus(size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A label file of the bundle (class 3; MONAI needs scikit-image for neighbours), and the mask of the card."""
    y, x = np.mgrid[:size, :size]
    inside = (x - 50) ** 2 + 3 * (y - 70) ** 2 < 500
    return (inside * 3).astype(np.uint8), (inside * 255).astype(np.uint8)


def with_weights(name: str, network: nn.Module, folder: Path) -> Path:
    """The model folder of a card, pinned to a state dict in the format of ``torch.save``."""
    card = json.loads((ZOO / name / "card.json").read_text(encoding="utf-8"))
    file = folder / name / next(iter(card["files"]))
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    data = file.read_bytes()
    card["files"] = {"models/model.pt": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}}
    (folder / name / "card.json").write_text(json.dumps(card), encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_monais_own_pipeline(name: str, tmp_path: Path) -> None:
    network = lively(network_of_monai(name))
    classifier = art_medical.load(with_weights(name, network, tmp_path))
    size = classifier.input_shape[1]
    image = picture(size)
    Image.fromarray(image).save(tmp_path / "image.png")
    stored = image.transpose(2, 0, 1)
    sample: dict[str, Any] = {"image": str(tmp_path / "image.png")}
    if name == "monai-pathology-nuclei":
        labels, mask = nucleus(size)
        Image.fromarray(labels).save(tmp_path / "label.png")
        sample["label"] = str(tmp_path / "label.png")
        stored = np.concatenate([stored, mask[None]])
    if name == "monai-pathology-tumour":  # readers of whole slides hand over arrays, rows first
        sample["image"] = stored
    prepared = torch.as_tensor(preprocessing(name)(sample)["image"])
    with torch.no_grad():
        expected = network(prepared[None]).flatten(1).numpy()
    found = classifier.predict_logits(stored[None].astype(np.float32))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    other = classifier.predict_logits(stored[None, :, ::-1].astype(np.float32))
    assert np.abs(other - expected).max() > 1e-2 * np.abs(expected).max()  # the weights do look at the image


@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_that_of_the_card(name: str) -> None:
    card = read_card(ZOO / name)
    assert (ZOO / name / "README.md").read_text(encoding="utf-8") == model_card(card)
    assert card.hub is not None
    assert card.hub.repo.startswith("MONAI/")
    assert (card.format, card.weights, card.training) == ("state_dict", "models/model.pt", None)
    assert any(fault.startswith("Corrects the metadata: ") for fault in card.known_faults)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_pinned_is_said_and_refused(name: str, tmp_path: Path) -> None:
    card = read_card(ZOO / name)
    assert not card.pinned
    assert "could not be established" in card.known_faults[0]
    assert ("so the revision is not pinned" in card.known_faults[1]) is (card.hub is not None and not card.hub.revision)
    assert "allow_unpinned=True" in (ZOO / name / "README.md").read_text(encoding="utf-8")
    folder = tmp_path / name
    (folder / "models").mkdir(parents=True)
    (folder / "card.json").write_text(card.to_json(), encoding="utf-8")
    (folder / "models" / "model.pt").write_bytes(b"whatever somebody put there")
    with pytest.raises(UnpinnedError, match="allow_unpinned"):
        art_medical.load(folder)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
@pytest.mark.parametrize("name", ["monai-breast-density", "monai-pathology-tumour"])
def test_without_torchvision_the_extra_is_named(name: str, tmp_path: Path) -> None:
    folder = with_weights(name, nn.Linear(1, 1), tmp_path)
    with pytest.raises(ModelError, match=r"install it with pip install 'art-medical\[torchvision\]'"):
        art_medical.load(folder)


def test_the_bundles_configuration_is_that_of_the_peer(data_dir: Callable[[str], Path]) -> None:
    """The transforms above are the published ones: kind by kind and number by number, as far as they change pixels."""
    for bundle, name in (("breast_density", NAMES[0]), ("endoscopic_inbody", NAMES[1])):
        text = (data_dir("bundles") / f"{bundle}_classification" / "configs" / "inference.json").read_text()
        published = json.loads(text)["preprocessing"]["transforms"]
        kinds = [step["_target_"] for step in published if step["_target_"] != "EnsureTyped"]
        assert kinds == [type(step).__name__ for step in preprocessing(name).transforms]
        resize = next(step for step in published if step["_target_"] == "Resized")
        assert tuple(resize["spatial_size"]) == read_card(ZOO / name).input.shape[1:]
        assert resize.get("mode", "area") == {"breast_density": "area", "endoscopic_inbody": "bilinear"}[bundle]


def test_only_the_image_of_the_nucleus_may_be_attacked(tmp_path: Path) -> None:
    network = lively(network_of_monai("monai-pathology-nuclei"))
    classifier = art_medical.load(with_weights("monai-pathology-nuclei", network, tmp_path))
    assert classifier.attackable_channels == (0, 1, 2)
    x = np.concatenate([picture(128).transpose(2, 0, 1), nucleus(128)[1][None]])[None].astype(np.float32)
    without = x.copy()
    without[:, 3] = 0
    assert np.abs(classifier.predict_logits(x) - classifier.predict_logits(without)).max() > 0.01  # the mask counts
    attacked = ProjectedGradientDescent(classifier, eps=8, max_iter=2).generate(x)
    assert (attacked[:, 3] == x[:, 3]).all()
    assert (attacked[:, :3] != x[:, :3]).mean() > 0.5
    with pytest.raises(InputError, match="which of the 1 new channels these are cannot be told"):
        classifier.behind([Repeat(channels=4)], domain=classifier.domain, input_shape=(1, 128, 128))
