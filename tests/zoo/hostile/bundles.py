# SPDX-License-Identifier: Apache-2.0
"""MONAI bundles, whose configurations are programs (MONAI documentation, Configuration syntax)."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from art_medical.errors import UnsafeBundleError
from art_medical.zoo.bundle import read_bundle
from tests.zoo.hostile.stage import Stage, Victim, attack

CODE = "GHSA-873f-pvrv-4x83 (MONAI: a configuration is code)"
SYNTAX = "MONAI, Configuration syntax"

CONFIGURATIONS: dict[str, Callable[[Stage], dict[str, Any]]] = {}
"""Configurations that MONAI's parser runs: each has a positive control."""


def network(**arguments: Any) -> dict[str, Any]:
    return {"_target_": "DenseNet121", "spatial_dims": 2, "in_channels": 1, "out_channels": 1, **arguments}


def reads(config: dict[str, Any] | bytes, name: str = "configs/inference.json") -> Victim:
    data = config if isinstance(config, bytes) else json.dumps(config).encode()
    return partial(read_bundle, {name: data})


def bundle(
    name: str, source: str, message: str, config: Callable[[Stage], dict[str, Any]], *, runs: bool = False
) -> None:
    """A case in which a configuration in JSON is read; ``runs`` if MONAI would run the payload in it."""
    if runs:
        CONFIGURATIONS[name] = config
    attack(name, source, UnsafeBundleError, message)(lambda stage: reads(config(stage)))


bundle(
    "bundle with an expression for an argument",
    CODE,
    "network_def.in_channels: \"$__import__('os').system(",
    lambda stage: {"network_def": network(in_channels=f"${stage.python}")},
    runs=True,
)
bundle(
    "bundle with an expression behind a reference",
    "GHSA-x6pr-233j-x5cw (MONAI)",
    'network_def.out_channels: "$import os" is an expression'.replace('"', "'"),
    lambda stage: {"n": "$import os", "network_def": network(out_channels="@n")},
)
bundle(
    "bundle whose network is a system call",
    "MONAI, measured: os.system is called with MONAI_EVAL_EXPR=0 as well",
    "network_def._target_: 'os.system' is not on the allow-list",
    lambda stage: {"network_def": {"_target_": "os.system", "command": stage.shell}},
    runs=True,
)
bundle(
    "bundle whose network begins like an allowed one",
    "CWE-187 (prefix comparison)",
    "'monai.networks.nets.densenet.torch.hub.load' is not on the allow-list",
    lambda stage: {"network_def": {"_target_": "monai.networks.nets.densenet.torch.hub.load", "repo_or_dir": "evil/x"}},
)
bundle(
    "bundle whose network goes through attributes of a module",
    "CWE-470",
    "'monai.networks.nets.__init__.sys.modules' is not on the allow-list",
    lambda stage: {"network_def": {"_target_": "monai.networks.nets.__init__.sys.modules"}},
)
bundle(
    "bundle with a call inside an argument",
    CODE,
    "network_def.in_channels._target_: a component inside a component is refused",
    lambda stage: {"network_def": network(in_channels={"_target_": "os.system", "command": stage.shell})},
    runs=True,
)
bundle(
    "bundle that includes another file",
    SYNTAX + ", %",
    "includes another text; includes are refused",
    lambda stage: {"network_def": network(in_channels=f"%{stage.secret}::x")},
)
bundle(
    "bundle that merges into its network",
    SYNTAX + ", +",
    "'+network_def': keys that merge into another entry are refused",
    lambda stage: {"network_def": network(), "+network_def": {"_target_": "os.system"}},
)
bundle(
    "bundle that replaces an argument from outside",
    SYNTAX + ", ::",
    "'network_def::_target_': keys that merge into another entry are refused",
    lambda stage: {"network_def": network(), "network_def::_target_": "os.system"},
)
bundle(
    "bundle with a requirement that is executed first",
    SYNTAX + ", _requires_",
    "the reserved key '_requires_' is refused",
    lambda stage: {"network_def": network(_requires_=f"${stage.python}")},
    runs=True,
)
bundle(
    "bundle with a condition that is executed first",
    SYNTAX + ", _disabled_",
    "the reserved key '_disabled_' is refused",
    lambda stage: {"network_def": network(_disabled_=f"${stage.python}")},
    runs=True,
)
bundle(
    "bundle that makes of a call a function",
    SYNTAX + ", _mode_",
    "the reserved key '_mode_' is refused",
    lambda stage: {"network_def": network(_mode_="callable")},
)
bundle(
    "bundle whose imports have effects, without a network",
    CODE,
    "one of network_def, net, network must be a mapping; none is found",
    lambda stage: {"imports": [f"${stage.python}"], "initialize": [f"${stage.python}"]},
)
bundle(
    "bundle whose references lead in a circle",
    "CWE-674",
    "the reference '@a' leads back to itself",
    lambda stage: {"a": "@b", "b": "@a", "network_def": network(in_channels="@a")},
)
bundle(
    "bundle whose references multiply",
    "CWE-776",
    "the arguments hold more than 1024 values",
    lambda stage: {
        **{f"a{n}": [f"@a{n - 1}"] * 60 for n in range(1, 4)},
        "a0": 1,
        "network_def": network(in_channels="@a3"),
    },
)
bundle(
    "bundle that refers to attributes",
    "CWE-470",
    "the reference '@network_def::__class__' is no plain name of an entry",
    lambda stage: {"network_def": network(in_channels="@network_def::__class__")},
)
bundle(
    "bundle that names what is loaded from torch.hub",
    "torch.hub documentation, hub_kwargs",
    "DenseNet121 takes no argument 'hub_kwargs'",
    lambda stage: {"network_def": network(hub_kwargs={"trust_repo": True})},
)
bundle(
    "bundle with a terabyte of channels",
    "CWE-789",
    "DenseNet121: argument 'in_channels' is 1099511627776, more than 8192",
    lambda stage: {"network_def": network(in_channels=1 << 40)},
)


@attack(
    "bundle whose configuration gives its network twice",
    "CVE-2017-12635; CWE-436",
    UnsafeBundleError,
    "configs/inference.json cannot be read as data: ValueError: key 'network_def' is given twice",
)
def _(stage: Stage) -> Victim:
    honest, other = json.dumps(network()), json.dumps({"_target_": "os.system"})
    return reads(f'{{"network_def": {honest}, "network_def": {other}}}'.encode())


@attack(
    "bundle with Infinity for a number",
    "CWE-20; JSON has no Infinity",
    UnsafeBundleError,
    "cannot be read as data: ValueError: -Infinity is no finite number",
)
def _(stage: Stage) -> Victim:
    return reads({"network_def": network(dropout_prob=-float("inf"))})


@attack(
    "bundle in YAML that builds an object",
    "CVE-2017-18342; CVE-2020-14343 (PyYAML)",
    UnsafeBundleError,
    "could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/new:os.system'",
)
def _(stage: Stage) -> Victim:
    text = f"network_def: !!python/object/new:os.system [{stage.shell!r}]\n"
    return reads(text.encode(), "configs/train.yaml")


@attack(
    "bundle in YAML of nine laughs",
    "CWE-776; CVE-2003-1564",
    UnsafeBundleError,
    "configs/inference.yaml cannot be read as data: ValueError: line 2 has an alias",
)
def _(stage: Stage) -> Victim:
    lines = ["a0: &a0 [lol]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    return reads("\n".join(lines).encode(), "configs/inference.yaml")


@attack(
    "bundle in YAML that merges a hostile mapping",
    "YAML 1.1, merge key",
    UnsafeBundleError,
    "could not determine a constructor for the tag 'tag:yaml.org,2002:merge'",
)
def _(stage: Stage) -> Victim:
    text = "network_def: {_target_: DenseNet121, <<: {in_channels: 1}}\n"
    return reads(text.encode(), "configs/inference.yml")


@attack("bundle of a gigabyte", "CWE-400", UnsafeBundleError, "a .json file has at most 1048576")
def _(stage: Stage) -> Victim:
    return reads(b" " * ((1 << 20) + 1))


@attack(
    "bundle whose readable configuration hides a hostile one before it",
    "CWE-436",
    UnsafeBundleError,
    "configs/inference.json: a configuration is a mapping, got a list",
)
def _(stage: Stage) -> Victim:
    honest = json.dumps({"network_def": network()}).encode()
    return partial(read_bundle, {"configs/inference.json": b"[]", "configs/train.json": honest})
