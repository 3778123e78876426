# SPDX-License-Identifier: Apache-2.0
"""The allow-list: nothing else is built, no argument starts a download, and no card can ask for a terabyte."""

from __future__ import annotations

import socket
import warnings
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from art_medical.errors import ModelError
from art_medical.zoo import networks
from art_medical.zoo.networks import MOST_NESTING, NETWORKS, LinearObserver, build, monai_keys
from tests.zoo.models import RESNET

NEEDS_TORCHVISION = "torchvision is not installed: it is in the extra art-medical[torchvision]"

TINY: dict[str, dict[str, Any]] = {
    "DenseNet121": {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "init_features": 4, "growth_rate": 2},
    "DenseNet169": {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "init_features": 4, "growth_rate": 2},
    "EfficientNetLite0": {"in_channels": 1, "num_classes": 3, "image_size": 64},
    "LinearObserver": {"shape": [1, 8, 8]},
    "ResNet": {**RESNET, "num_classes": 3},
    "SEResNet50": {"spatial_dims": 2, "in_channels": 1, "num_classes": 3},
    "TorchVisionFCModel": {"model_name": "resnet18", "num_classes": 3},
    "resnet18": {"spatial_dims": 2, "n_input_channels": 1, "num_classes": 3},
    "resnet50": {"spatial_dims": 2, "n_input_channels": 1, "num_classes": 3},
}


def refusal(target: str, **arguments: Any) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about empty layers before MONAI divides by them
        with pytest.raises(ModelError) as caught:
            build(target, arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 800
    return message


@pytest.mark.parametrize("target", sorted(NETWORKS))
def test_every_row_builds_without_a_network(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("building a network opened a socket")

    if target == "TorchVisionFCModel":
        pytest.importorskip("torchvision", reason=NEEDS_TORCHVISION)
    monkeypatch.setattr(socket, "socket", no_socket)
    with torch.device("meta"):
        network = build(target, TINY[target])
    outputs = [p for name, p in network.named_parameters() if name.endswith("bias")][-1]
    assert outputs.shape == ((1,) if target == "LinearObserver" else (3,))


@pytest.mark.parametrize("target", ["ViT", "EfficientNetBN", "monai.networks.nets.DenseNet121", "os.system", ""])
def test_targets_that_are_not_on_the_list(target: str) -> None:
    assert refusal(target) == f"network {target!r} is not on the allow-list: {', '.join(sorted(NETWORKS))}"


@pytest.mark.parametrize("argument", ["pretrained", "progress", "act", "feed_forward", "_target_", "bogus"])
def test_arguments_that_a_card_may_not_set(argument: str) -> None:
    assert f"resnet18 takes no argument {argument!r}; a card may set" in refusal("resnet18", **{argument: True})


def test_pretrained_is_off_wherever_there_is_such_an_argument() -> None:
    assert all("pretrained" not in row.arguments for row in NETWORKS.values())
    assert {name for name, row in NETWORKS.items() if row.forced == {"pretrained": False}} == {
        "DenseNet121", "DenseNet169", "SEResNet50", "resnet18", "resnet50",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"_target_": "os.system"}, "argument 'shape' must be a literal, got dict"),
        ([1, {"a": 1}], "argument 'shape' must be a literal, got dict"),
        (None, "argument 'shape' must be a literal, got NoneType"),
        (torch.ones(1), "argument 'shape' must be a literal, got Tensor"),
        ([1, 8193], "argument 'shape' is 8193, more than 8192"),
        ([1, -8193], "argument 'shape' is -8193, more than 8192"),
        ([1, float("nan")], "argument 'shape' is nan, more than 8192"),
        ([1, float("inf")], "argument 'shape' is inf, more than 8192"),
        ([1] * 65, "argument 'shape' has 65 entries, more than 64"),
        ([[[[1]]]], f"argument 'shape' is nested deeper than {MOST_NESTING} lists"),
    ],
)
def test_values_that_are_no_bounded_literals(value: Any, message: str) -> None:
    assert message in refusal("LinearObserver", shape=value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_name": "__loader__"}, "argument 'model_name' is '__loader__'; it may be inception_v3, resnet18, "),
        ({"model_name": "vit_b_16"}, "argument 'model_name' is 'vit_b_16'; it may be inception_v3, "),
        ({"pool": "max"}, "argument 'pool' is 'max'; it may be avg7 or model"),
        ({"transform_input": True}, "argument 'transform_input' belongs to inception_v3"),
        ({"pretrained": True}, "TorchVisionFCModel takes no argument 'pretrained'"),
        ({"weights": "DEFAULT"}, "TorchVisionFCModel takes no argument 'weights'"),
        ({"num_classes": 9000}, "argument 'num_classes' is 9000, more than 8192"),
    ],
)
def test_torchvision_networks_take_only_what_is_listed(arguments: dict[str, Any], message: str) -> None:
    assert message in refusal("TorchVisionFCModel", **arguments)


@pytest.mark.parametrize("fault", [ImportError("no module"), RuntimeError("operator torchvision::nms does not exist")])
def test_without_torchvision_the_extra_is_named(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> NoReturn:
        raise fault

    monkeypatch.setattr(networks, "import_module", absent)
    message = refusal("TorchVisionFCModel")
    assert f"cannot be imported ({fault}); install it with pip install 'art-medical[torchvision]'" in message


def test_inception_maps_its_input_only_where_the_card_says_so() -> None:
    pytest.importorskip("torchvision", reason=NEEDS_TORCHVISION)
    x, outputs = torch.rand(1, 3, 299, 299), []
    for mapped in (True, False):
        torch.manual_seed(0)
        arguments = {"model_name": "inception_v3", "pool": "model", "num_classes": 4, "transform_input": mapped}
        network = build("TorchVisionFCModel", arguments).eval()
        for module in network.modules():  # the default weights let the image fade away before the last layer
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
        with torch.no_grad():
            outputs.append(network(x))
    # torchvision's constants: from the mean and deviation of ImageNet to those of 0.5
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    by_hand = (x * std.view(3, 1, 1) + mean.view(3, 1, 1) - 0.5) / 0.5
    with torch.no_grad():
        assert torch.allclose(network(by_hand), outputs[0], rtol=1e-4)
    assert not torch.allclose(outputs[0], outputs[1], rtol=1e-1)


def test_endless_nesting_is_refused_without_recursion() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    assert "nested deeper" in refusal("LinearObserver", shape=value)
    while value:  # taken apart from outside, because Python's own destructor would recurse
        value = value.pop()


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("LinearObserver", {"shape": [8192] * 4}, "has 4,503,599,627,370,497 parameters, more than 200,000,000"),
        ("LinearObserver", {"shape": [8192] * 64}, "LinearObserver cannot be built from"),
        ("DenseNet121", {**TINY["DenseNet121"], "growth_rate": 8192}, "more than 200,000,000"),
        ("ResNet", {**RESNET, "layers": [1, 1, 1, 8000]}, "argument 'layers' asks for more than 512 of them"),
        ("ResNet", {**RESNET, "layers": [-8000, 8000, 1, 1]}, "argument 'layers' asks for more than 512 of them"),
    ],
)
def test_networks_that_are_too_large_are_never_allocated(target: str, arguments: dict[str, Any], message: str) -> None:
    assert message in refusal(target, **arguments)


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        ("LinearObserver", {}),
        ("LinearObserver", {"shape": "ab"}),
        ("LinearObserver", {"shape": [-1, 3]}),
        ("DenseNet121", {**TINY["DenseNet121"], "spatial_dims": 7}),
        ("DenseNet121", {**TINY["DenseNet121"], "in_channels": 1.5}),
        ("ResNet", {**RESNET, "block": "os.system"}),
        ("ResNet", {**RESNET, "layers": [1]}),
        ("ResNet", {**RESNET, "conv1_t_size": [1, 2, 3, 4]}),
        ("EfficientNetLite0", {"num_classes": 0}),
        ("EfficientNetLite0", {"image_size": "x"}),
    ],
)
def test_whatever_a_constructor_raises_is_one_error(target: str, arguments: dict[str, Any]) -> None:
    assert refusal(target, **arguments).startswith(f"{target} cannot be built from ")


def test_the_linear_observer_is_a_scalar_product() -> None:
    network = LinearObserver((1, 2, 3))
    x = torch.arange(12.0).reshape(2, 1, 2, 3)
    expected = x.flatten(1) @ network.readout.weight[0] + network.readout.bias
    assert torch.equal(network(x)[:, 0], expected)


def test_lite_blocks_have_no_squeeze_and_no_swish() -> None:
    network = build("EfficientNetLite0", TINY["EfficientNetLite0"])
    assert [name for name, _ in network.named_parameters() if "_se_" in name] == []
    swishes = [module._swish for module in network.modules() if hasattr(module, "_swish")]
    assert [type(swish) for swish in swishes] == [torch.nn.ReLU6] * 17  # stem and head share one, and 16 blocks


def test_key_mapping_puts_each_block_into_its_stack() -> None:
    mapped = monai_keys({f"_blocks.{i}.w": torch.tensor(i) for i in range(16)} | {"_fc.bias": torch.tensor(-1)})
    stacks: NDArray[np.int64] = np.repeat(np.arange(7), [1, 2, 2, 3, 3, 4, 1])
    assert list(mapped) == [f"_blocks.{stack}.{i}.w" for i, stack in enumerate(stacks)] + ["_fc.bias"]
    own = build("EfficientNetLite0", TINY["EfficientNetLite0"]).state_dict()
    prefixes = {".".join(key.split(".")[:3]) for key in own if key.startswith("_blocks.")}
    assert {key.removesuffix(".w") for key in mapped} - {"_fc.bias"} == prefixes
