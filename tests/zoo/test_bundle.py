# SPDX-License-Identifier: Apache-2.0
"""Bundle configurations: the published ones are read, each rule refuses one hostile one by name, and nothing runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from monai.bundle import ConfigParser

from art_medical.errors import UnsafeBundleError
from art_medical.zoo.bundle import (
    CONFIGURATIONS,
    MOST_BYTES,
    MOST_DEPTH,
    MOST_REFERENCES,
    MOST_VALUES,
    TARGETS,
    BundleNetwork,
    read_bundle,
    read_network,
)
from art_medical.zoo.cards import read_card
from art_medical.zoo.networks import NETWORKS

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"_target_": "DenseNet121", "spatial_dims": 2, "in_channels": 1, "out_channels": 2}
RUN = "$__import__('pathlib').Path('canary').write_text('ran')"
CALL: dict[str, Any] = {"_target_": "pathlib.Path.touch", "self": "$__import__('pathlib').Path('canary')"}


@pytest.fixture(autouse=True)
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that hostile configurations write when they are run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "canary"


def text(network: dict[str, Any] | None = None, **more: Any) -> bytes:
    """A configuration with this network, which also runs code wherever MONAI would."""
    config = {"imports": [RUN], "initialize": [RUN], "network_def": {**GOOD, **(network or {})}, **more}
    return json.dumps(config).encode()


def refusal(content: bytes, name: str = "configs/inference.json") -> str:
    with pytest.raises(UnsafeBundleError) as caught:
        read_network(content, name)
    message = str(caught.value)
    assert message.startswith(name)
    assert "\n" not in message
    assert len(message) < 700
    assert not Path("canary").exists()
    return message


# -- what is read ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bundle", "card"),
    [
        ("breast_density_classification", "monai-breast-density"),
        ("endoscopic_inbody_classification", "monai-endoscopic-inbody"),
    ],
)
def test_published_configurations_say_what_the_cards_say(
    data_dir: Callable[[str], Path], bundle: str, card: str
) -> None:
    content = (data_dir("bundles") / bundle / "configs" / "inference.json").read_bytes()
    found = read_network(content, "configs/inference.json")
    architecture = read_card(ROOT / "zoo" / card).architecture
    assert (found.target, found.args) == (architecture.target, architecture.args)


def test_the_rest_of_the_file_is_not_looked_at(canary: Path) -> None:
    found = read_network(text(evaluator={"_target_": "os.system", "command": RUN}), "inference.json")
    assert found == BundleNetwork("DenseNet121", {"spatial_dims": 2, "in_channels": 1, "out_channels": 2})
    assert not canary.exists()


@pytest.mark.parametrize("hostile", [{"network_def": {"a": RUN}}, {"network_def": CALL}])
def test_the_canary_is_alive(hostile: dict[str, Any], canary: Path) -> None:
    """MONAI's own parser runs what is refused here."""
    ConfigParser(config=hostile).get_parsed_content("network_def")
    assert canary.exists()


@pytest.mark.parametrize(
    "spelling", ["DenseNet121", "monai.networks.nets.DenseNet121", "monai.networks.nets.densenet.DenseNet121"]
)
def test_every_exact_spelling_of_a_target(spelling: str) -> None:
    assert read_network(text({"_target_": spelling}), "inference.json").target == "DenseNet121"


def test_targets_are_the_networks_of_monai() -> None:
    from monai.networks import nets

    assert set(TARGETS.values()) == {name for name, row in NETWORKS.items() if row.module is not None}
    assert set(NETWORKS) - set(TARGETS.values()) == {"LinearObserver", "EfficientNetLite0"}
    for name in set(TARGETS.values()):
        module = NETWORKS[name].module
        assert f"monai.networks.nets.{module}.{name}" in TARGETS
        assert getattr(nets, name).__module__ == f"monai.networks.nets.{module}"


def test_the_entry_may_be_called_net_or_network() -> None:
    for key in ("net", "network"):
        content = json.dumps(
            {key: GOOD, "network": GOOD} if key == "network" else {key: GOOD, "network": "$@net.to(0)"}
        )
        assert read_network(content.encode(), "inference.json").target == "DenseNet121"
    content = json.dumps({"network_def": GOOD, "net": CALL, "network": RUN})
    assert read_network(content.encode(), "inference.json").target == "DenseNet121"


def test_references_lead_to_literals() -> None:
    more = {"size": "@shape::channels", "shape": {"channels": 3, "classes": "@old#count"}, "old": {"count": 4}}
    network = {"in_channels": "@size", "out_channels": "@shape::classes", "_desc_": "$not looked at"}
    assert read_network(text(network, **more), "inference.json").args == {
        "spatial_dims": 2,
        "in_channels": 3,
        "out_channels": 4,
    }
    chain = {f"a{i}": f"@a{i + 1}" for i in range(MOST_REFERENCES - 1)} | {f"a{MOST_REFERENCES - 1}": 5}
    assert read_network(text({"in_channels": "@a0"}, **chain), "inference.json").args["in_channels"] == 5


def test_switches_of_downloads_are_dropped() -> None:
    assert "pretrained" not in read_network(text({"pretrained": True, "progress": True}), "inference.json").args


def test_the_order_of_the_files() -> None:
    train = text({"out_channels": 7})
    assert read_bundle({"configs/train.json": train, "configs/inference.json": text()}).args["out_channels"] == 2
    assert read_bundle({"configs/train.json": train}).args["out_channels"] == 7
    assert CONFIGURATIONS[0] == "configs/inference.json"
    assert CONFIGURATIONS[-1] == "configs/train.yml"
    with pytest.raises(UnsafeBundleError, match=r"configs/inference\.json: network_def\.a: .* is an expression"):
        read_bundle({"configs/train.json": train, "configs/inference.json": text({"a": RUN})})
    with pytest.raises(UnsafeBundleError, match=r"the bundle has none of configs/inference\.json, "):
        read_bundle({"configs/other.json": train})


def test_yaml_is_read_like_json() -> None:
    content = yaml.safe_dump(json.loads(text())).encode()
    assert read_network(content, "configs/inference.yaml") == read_network(text(), "configs/inference.json")


@pytest.mark.parametrize(
    ("network", "args"),
    [
        ({"model_name": "inception_v3", "pool": None, "pretrained": True}, {"pool": "model", "transform_input": True}),
        ({"model_name": "inception_v3", "pool": None}, {"pool": "model", "transform_input": False}),
        ({"model_name": "inception_v3", "pretrained": True, "transform_input": False}, {"transform_input": False}),
        ({"model_name": "resnet18", "weights": "DEFAULT"}, {}),
    ],
)
def test_torchvision_networks_keep_what_pretrained_changes_besides_the_weights(
    network: dict[str, Any], args: dict[str, Any]
) -> None:
    content = json.dumps({"network_def": {"_target_": "TorchVisionFCModel", **network}}).encode()
    assert read_network(content, "inference.json").args == {"model_name": network["model_name"], **args}


# -- what is refused ---------------------------------------------------------------------------------------------------

NETWORK = "configs/inference.json: network_def"
LOOP = {"a": "@b", "b": "@a"}
CHAIN = {f"a{i}": f"@a{i + 1}" for i in range(MOST_REFERENCES + 1)} | {f"a{MOST_REFERENCES + 1}": 5}
MULTIPLYING = {"a": ["@b"] * 100, "b": ["@c"] * 100, "c": [1] * 100}


@pytest.mark.parametrize(
    ("network", "more", "message"),
    [
        ({"_target_": "os.system", "command": "touch canary"}, {}, f"{NETWORK}._target_: 'os.system' is not on"),
        ({"_target_": "monai.networks.nets.densenet.os.system"}, {}, "densenet.os.system' is not on the allow"),
        ({"_target_": "monai.networks.nets.DenseNet121 "}, {}, "_target_: 'monai.networks.nets.DenseNet121 ' is"),
        ({"_target_": "monai.networks.nets.ViT"}, {}, "_target_: 'monai.networks.nets.ViT' is not on the allow-list"),
        ({"_target_": "scripts.network.Net"}, {}, "_target_: 'scripts.network.Net' is not on the allow-list"),
        ({"_target_": "LinearObserver"}, {}, "_target_: 'LinearObserver' is not on the allow-list"),
        ({"_target_": RUN}, {}, f"{NETWORK}._target_: \"$__import__"),
        ({"_target_": "@t"}, {"t": "DenseNet121"}, "_target_: '@t' is not on the allow-list"),
        ({"_target_": ["DenseNet121"]}, {}, f"{NETWORK}._target_: a list is not on the allow-list"),
        ({"_target_": None}, {}, f"{NETWORK}._target_: None is not on the allow-list"),
        ({"in_channels": RUN}, {}, f"{NETWORK}.in_channels: \"$__import__"),
        ({"in_channels": RUN}, {}, "is an expression; expressions are refused"),
        ({"in_channels": [RUN]}, {}, f"{NETWORK}.in_channels[0]: "),
        ({"in_channels": {"a": [{"b": RUN}]}}, {}, f"{NETWORK}.in_channels.a[0].b: "),
        ({"in_channels": "@a"}, {"a": RUN}, "is an expression; expressions are refused"),
        ({"in_channels": "%other.json::a"}, {}, f"{NETWORK}.in_channels: '%other.json::a' includes another text"),
        ({"in_channels": "@a"}, {"a": "%/etc/passwd"}, "'%/etc/passwd' includes another text; includes are refused"),
        ({"in_channels": CALL}, {}, f"{NETWORK}.in_channels._target_: a component inside"),
        ({"in_channels": [CALL]}, {}, f"{NETWORK}.in_channels[0]._target_: a component inside"),
        ({"in_channels": "@a"}, {"a": CALL}, f"{NETWORK}.in_channels._target_: a component inside"),
        ({"_mode_": "callable"}, {}, f"{NETWORK}._mode_: the reserved key '_mode_' is refused"),
        ({"_requires_": RUN}, {}, f"{NETWORK}._requires_: the reserved key '_requires_' is refused"),
        ({"_disabled_": RUN}, {}, f"{NETWORK}._disabled_: the reserved key '_disabled_' is refused"),
        ({"_imports_": RUN}, {}, f"{NETWORK}._imports_: the reserved key '_imports_' is refused"),
        ({"in_channels": {"_mode_": "debug"}}, {}, f"{NETWORK}.in_channels._mode_: the reserved key"),
        ({"+in_channels": 3}, {}, f"{NETWORK}.+in_channels: keys that merge into another entry are refused"),
        ({}, {"+network_def": {"in_channels": RUN}}, "'+network_def': keys that merge into another entry are refused"),
        ({}, {"network_def::in_channels": RUN}, "'network_def::in_channels': keys that merge into another entry"),
        ({}, {"network_def#in_channels": RUN}, "'network_def#in_channels': keys that merge into another entry"),
        ({"in_channels": "@a"}, LOOP, f"{NETWORK}.in_channels: the reference '@a' leads back to itself"),
        ({"in_channels": "@network_def::in_channels"}, {}, "'@network_def::in_channels' leads back to itself"),
        ({"in_channels": "@a0"}, CHAIN, f"more than {MOST_REFERENCES} references lead to one another"),
        ({"in_channels": "@a"}, {}, f"{NETWORK}.in_channels: the reference '@a' leads to no entry of the file"),
        ({"in_channels": "@a::b"}, {"a": 1}, "the reference '@a::b' leads to no entry of the file"),
        ({"in_channels": "@__class__"}, {}, "the reference '@__class__' is no plain name of an entry"),
        ({"in_channels": "@##a"}, {"a": 1}, "the reference '@##a' is no plain name of an entry"),
        ({"in_channels": "@a + 1"}, {"a": 1}, "the reference '@a + 1' is no plain name of an entry"),
        ({"in_channels": "@a"}, MULTIPLYING, f"the arguments hold more than {MOST_VALUES} values"),
        ({"in_channels": [[[[[1]]]]]}, {}, f"arguments are nested deeper than {MOST_DEPTH} levels"),
        ({"in_channels": {"a": 1}}, {}, f"{NETWORK}: DenseNet121: argument 'in_channels' must be a literal, got dict"),
        ({"in_channels": None}, {}, f"{NETWORK}: DenseNet121: argument 'in_channels' must be a literal, got NoneType"),
        ({"in_channels": 1 << 40}, {}, f"{NETWORK}: DenseNet121: argument 'in_channels' is 1099511627776, more"),
        ({"block_config": [6, 12, 24, 16]}, {}, f"{NETWORK}: DenseNet121 takes no argument 'block_config'"),
        ({"act": "relu"}, {}, f"{NETWORK}: DenseNet121 takes no argument 'act'"),
        ({"_target_": "TorchVisionFCModel", "pool": ["avg", {}]}, {}, "argument 'pool' is ['avg', {}]; only null"),
        ({"_target_": "ResNet", "pretrained": RUN}, {}, f"{NETWORK}.pretrained: "),
    ],
)  # fmt: skip
def test_each_rule_refuses_by_file_key_and_rule(network: dict[str, Any], more: dict[str, Any], message: str) -> None:
    assert message in refusal(text(network, **more))


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({}, "none is found"),
        ({"network": RUN}, "none is found"),
        ({"network_def": RUN, "net": GOOD}, "network_def is found"),
        ({"network_def": [GOOD]}, "network_def is found"),
        ({"net": GOOD, "network": GOOD}, "net, network is found"),
    ],
)
def test_the_network_must_be_one_mapping(config: dict[str, Any], found: str) -> None:
    assert refusal(json.dumps(config).encode()).endswith(f"one of network_def, net, network must be a mapping; {found}")


JSON, YAML = "configs/inference.json", "configs/inference.yaml"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (JSON, b'{"network_def": {}, "network_def": {}}', "ValueError: key 'network_def' is given twice"),
        (JSON, b'{"network_def": {"a": 1, "a": 2}}', "ValueError: key 'a' is given twice"),
        (JSON, b'{"a": NaN}', "ValueError: NaN is no finite number"),
        (JSON, b"{", "JSONDecodeError"),
        (JSON, b"[]", "a configuration is a mapping, got a list"),
        (JSON, b"\xff", "UnicodeDecodeError"),
        (JSON, b"[" * 100_000, "RecursionError"),
        (JSON, b"1" * 100_000, "ValueError"),
        (JSON, b" " * (MOST_BYTES[".json"] + 1), f"a .json file has at most {1 << 20}"),
        (YAML, b"a: &x [1]\nb: *x", "ValueError: line 2 has an alias; aliases are refused"),
        (YAML, b"a: &a [*a]", "has an alias; aliases are refused"),
        (YAML, b"a: 1\na: 2", "ValueError: key 'a' is given twice"),
        (YAML, b"a: {b: 1, b: 2}", "ValueError: key 'b' is given twice"),
        (YAML, b"a: {<<: {b: 1}, c: 2}", "ConstructorError"),
        (YAML, b"!!python/object/apply:os.system ['touch canary']", "ConstructorError"),
        (YAML, b"network_def: !!python/name:os.system", "ConstructorError"),
        (YAML, b"? [a]\n: b", "TypeError: unhashable type: 'list'"),
        (YAML, b"a: {" * 20_000, "RecursionError"),
        (YAML, b"a: 1\n---\nb: 2", "ComposerError"),
        (YAML, b"- a", "a configuration is a mapping, got a list"),
        (YAML, b"network_def: {_target_: DenseNet121, in_channels: 2020-01-01}", "must be a literal, got a date"),
        (YAML, b"network_def: {_target_: DenseNet121, 1: 2}", "network_def: 1: names of arguments are strings"),
        (YAML, b" " * (MOST_BYTES[".yaml"] + 1), f"a .yaml file has at most {1 << 17}"),
        ("configs/inference.py", b"open('canary', 'w')", "only .json, .yaml and .yml configurations are read"),
        ("models/model.ts", b"PK", "only .json, .yaml and .yml configurations are read"),
    ],
)  # fmt: skip
def test_texts_that_are_no_plain_data(name: str, content: bytes, message: str) -> None:
    assert message in refusal(content, name)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4) | st.just(RUN),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["_target_", "in_channels", "out_channels", "pretrained", "_mode_", "+in_channels", "@a", "$x"])


@given(network=st.dictionaries(KEYS | st.text(max_size=5), VALUES), more=st.dictionaries(st.text(max_size=5), VALUES))
def test_any_configuration_is_read_as_bounded_literals_or_refused(
    network: dict[str, Any], more: dict[str, Any]
) -> None:
    try:
        found = read_network(text(network, **more), "configs/inference.json")
    except UnsafeBundleError as error:
        assert str(error).startswith("configs/inference.json")
    else:
        assert found.target in NETWORKS
        assert set(found.args) <= NETWORKS[found.target].arguments
        assert not any(isinstance(value, str) and value.startswith(("$", "%", "@")) for value in found.args.values())
    assert not Path("canary").exists()
