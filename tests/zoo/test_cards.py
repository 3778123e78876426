# SPDX-License-Identifier: Apache-2.0
"""Cards: every rule refuses one card that breaks it and nothing else, in one line; the documented schema is current."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from art_medical.domain import PixelDomain
from art_medical.errors import ModelError
from art_medical.zoo.cards import MOST_BYTES, Card, parse_card, read_card
from tests.zoo.models import fields

ROOT = Path(__file__).resolve().parents[2]


def changed(path: str, value: Any) -> str:
    """The valid card with one entry replaced or added, as JSON text; NaN and infinity in Python's spelling."""
    card = fields()
    *parents, last = path.split("/")
    place = card
    for key in parents:
        place = place[key]
    place[last] = value
    return json.dumps(card)


def refusal(text: str) -> str:
    with pytest.raises(ModelError) as caught:
        parse_card(text, "card.json")
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def test_the_card_that_the_others_differ_from_is_valid() -> None:
    card = parse_card(json.dumps(fields()), "card.json")
    assert card.weights == "model.safetensors"
    assert card.input.domain == PixelDomain(0, 255, 1, "grey level")
    assert parse_card(card.to_json(), "again") == card
    assert card.pinned
    absent = {"hub", "key_prefix", "wrapper", "signature", "attackable_channels"}
    assert not absent & (set(json.loads(card.to_json())) | set(json.loads(card.to_json())["input"]))


@pytest.mark.parametrize(
    ("revision", "sha256", "size", "pinned"),
    [("0" * 40, "0" * 64, 1, True), (None, "0" * 64, 1, False), ("0" * 40, None, None, False)],
)
def test_a_published_model(revision: str | None, sha256: str | None, size: int | None, pinned: bool) -> None:
    published = fields(
        hub={"repo": "MONAI/some_bundle", "revision": revision},
        files={"models/model.pt": {"sha256": sha256, "size": size}},
        format="state_dict",
        key_prefix="module.net.",
        wrapper="state_dict",
        training=None,
        signature={"file": "model.sig", "key_sha256": "0" * 64},
    )
    published["input"]["attackable_channels"] = [0]
    card = parse_card(json.dumps(published), "card.json")
    assert card.pinned is pinned
    assert card.weights == "models/model.pt"
    assert parse_card(card.to_json(), "again") == card
    assert json.loads(card.to_json())["hub"]["revision"] == revision


SCORE = {"metric": "auroc", "value": 0.9, "low": 0.91, "high": 0.95}
CLEAN = {"dataset": "d", "split": "test", "index_sha256": "0" * 64, "n": 3, "package_version": "1"}
FILE = {"sha256": "0" * 64, "size": 1}


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        ("schema", "art-medical/card@2", "schema: Input should be 'art-medical/card@1'"),
        ("colour", "blue", "colour: Extra inputs are not permitted"),
        ("head/colour", "blue", "head.colour: Extra inputs are not permitted"),
        ("name", "../evil", "name: String should match pattern"),
        ("name", "Tiny", "name: String should match pattern"),
        ("name", "tiny\n", "name: String should match pattern"),
        ("format", "pickle", "format: Input should be 'safetensors' or 'state_dict'"),
        ("hub", {"repo": "o/n"}, "hub.revision: Field required"),
        ("hub", {"repo": "o/n", "revision": "main"}, "hub.revision: String should match pattern"),
        ("hub", {"repo": "o/n", "revision": "0" * 39}, "hub.revision: String should match pattern"),
        ("hub", {"repo": "o/n/m", "revision": None}, "hub.repo: String should match pattern"),
        ("hub", {"repo": "../n", "revision": None}, "hub.repo: String should match pattern"),
        ("key_prefix", "module", "key_prefix: String should match pattern"),
        ("key_prefix", ".", "key_prefix: String should match pattern"),
        ("wrapper", "a.b", "wrapper: String should match pattern"),
        ("wrapper", "state_dict", "wrapper is for format state_dict; a safetensors file has no levels"),
        ("signature", {"file": "model.sig"}, "signature.key_sha256: Field required"),
        ("signature", {"file": "../s", "key_sha256": "0" * 64}, "signature.file: String should match pattern"),
        ("training", {}, "training.recipe: Field required"),
        ("input/attackable_channels", [], "input.attackable_channels: Tuple should have at least 1 item"),
        ("input/attackable_channels", [1], "attackable_channels must be ascending and below the 1 channels"),
        ("input/attackable_channels", [0, 0], "attackable_channels must be ascending and below the 1 channels"),
        ("input/attackable_channels", [-1], "attackable_channels.0: Input should be greater than or equal to 0"),
        ("files", {"models/model.ts": FILE}, "models/model.ts: TorchScript and ONNX files are programs"),
        ("files", {"models/model.ONNX": FILE}, "models/model.ONNX: TorchScript and ONNX files are programs"),
        ("files", {"card.json": FILE}, "card.json is a file of the model folder and cannot be its weights"),
        ("files", {"models/../m": FILE}, "files.models/../m.[key]: String should match pattern"),
        ("files", {"models//m": FILE}, "files.models//m.[key]: String should match pattern"),
        ("files", {"models/.m": FILE}, "files.models/.m.[key]: String should match pattern"),
        ("files", {"models/": FILE}, "files.models/.[key]: String should match pattern"),
        ("files", {"/".join("abcdefghi"): FILE}, "files.a/b/c/d/e/f/g/h/i.[key]: String should match pattern"),
        ("files/model.safetensors/sha256", None, "sha256 and size must both be given, or both be null"),
        ("files/model.safetensors/size", None, "sha256 and size must both be given, or both be null"),
        ("files", {}, "files: Dictionary should have at least 1 item"),
        ("files", {"a.safetensors": FILE, "b.safetensors": FILE}, "files: Dictionary should have at most 1 item"),
        ("files", {"../model.safetensors": FILE}, r"files.../model.safetensors.[key]: String should match pattern"),
        ("files", {"/model.safetensors": FILE}, "files./model.safetensors.[key]: String should match pattern"),
        ("files", {"a\\b": FILE}, "files.a\\b.[key]: String should match pattern"),
        ("files", {"..": FILE}, "files....[key]: String should match pattern"),
        ("files/model.safetensors/sha256", "0" * 63, "sha256: String should match pattern"),
        ("files/model.safetensors/sha256", "A" * 64, "sha256: String should match pattern"),
        ("files/model.safetensors/size", 0, "size: Input should be greater than 0"),
        ("input/low", float("nan"), "NaN is no finite number"),
        ("input/high", float("inf"), "Infinity is no finite number"),
        ("input/low", 255, "finite low < high, got low=255.0, high=255.0"),
        ("input/step", 0.7, "the range 0.0 to 255.0 is no whole number of steps of 0.7"),
        ("input/step", -1, "input.step: Input should be greater than 0"),
        ("input/shape", [1, 2], "input.shape: Tuple should have at least 3 items"),
        ("input/shape", [1, 2, 0], "input.shape.2: Input should be greater than 0"),
        ("input/shape", [1, 1 << 20, 1 << 20], "one image would have 1,099,511,627,776 values"),
        ("input/steps", [{"kind": "resize", "size": [1 << 20, 1 << 20]}], "one image would have 1,099,511,627,776 val"),
        ("input/steps", [{"kind": "repeat", "channels": 1 << 40}], "one image would have 4,398,046,511,104 values"),
        ("input/steps", [{"kind": "resize", "size": [4, 4, 4]}], "a resize to (4, 4, 4) does not fit images of shape"),
        ("input/steps", [{"kind": "shell", "run": "true"}], "input.steps.0: Input tag 'shell'"),
        ("input/photometric", "PALETTE", "photometric: Input should be 'MONOCHROME2' or 'RGB'"),
        ("architecture/args", {"shape": None}, "architecture.args.shape"),
        ("architecture/args", {"shape": {"_target_": "os.system"}}, "architecture.args.shape"),
        ("architecture/args", {"shape": [[[1]]]}, "architecture.args.shape"),
        ("architecture/num_parameters", 0, "num_parameters: Input should be greater than 0"),
        ("head", {"kind": "softmax", "labels": ["one"]}, "head: Value error, a softmax head needs two labels"),
        ("head", {"kind": "one-logit", "labels": ["n", "y"], "thresholds": [1.0]}, "thresholds.0: Input should"),
        ("head", {"kind": "one-logit", "labels": ["n", "y"], "thresholds": [0.3]}, "needs an operating_point"),
        ("positive_label", "maybe", "positive_label 'maybe' is none of the labels ('no', 'yes')"),
        ("operating_point", {"split": "test", "rule": "", "target": 0.9, "n": 3}, "split: Input should be 'val'"),
        ("data/patient_disjoint", "perhaps", "patient_disjoint: Input should be 'yes', 'no' or 'unknown'"),
        ("clean_eval", [{**CLEAN, "scores": [SCORE]}], "auroc: value 0.9 is outside its interval [0.91, 0.95]"),
        ("clean_eval", [{**CLEAN, "scores": [], "index_sha256": "x"}], "index_sha256: String should match pattern"),
    ],
)
def test_each_rule_refuses(path: str, value: Any, rule: str) -> None:
    assert rule in refusal(changed(path, value))


def test_numbers_beyond_floating_point_are_refused() -> None:
    assert "1e999 is no finite number" in refusal(json.dumps(fields()).replace('"high": 255', '"high": 1e999'))
    assert "card.json: " in refusal(json.dumps(fields()).replace('"high": 255', '"high": ' + "9" * 5000))


def test_missing_entries_are_counted() -> None:
    card = fields()
    del card["licence"], card["citation"]
    assert "card.json: licence: Field required (and 1 more)" in refusal(json.dumps(card))


def test_repeated_keys_are_refused_at_every_depth() -> None:
    text = json.dumps(fields())
    assert "key 'version' is given twice" in refusal(text.replace('"version"', '"version": "2", "version"', 1))
    assert "key 'sha256' is given twice" in refusal(text.replace('"sha256"', '"sha256": "f", "sha256"', 1))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"schema": ' + "[" * 900 + "]" * 900 + "}"])
def test_nesting_does_not_exhaust_the_stack(text: str) -> None:
    refusal(text)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"\x80\x04 pickle", "is not UTF-8 text"),
        (b"{\n  oops\n}", "line 2: not JSON"),
        (b"[]", "Input should be a valid dictionary"),
        (b" " * (MOST_BYTES + 1), f"has {MOST_BYTES + 1} bytes; a card has at most {MOST_BYTES}"),
    ],
)
def test_files_that_are_no_cards(tmp_path: Path, content: bytes, rule: str) -> None:
    (tmp_path / "card.json").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_card(tmp_path)
    assert rule in str(caught.value)


def test_missing_card(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"No such file or directory; a model folder needs a card\.json"):
        read_card(tmp_path)


def test_a_card_cannot_be_changed_after_it_was_checked() -> None:
    card = parse_card(json.dumps(fields()), "card.json")
    with pytest.raises(ValidationError, match="Instance is frozen"):
        card.name = "other"  # type: ignore[misc]


# -- JSON schema -------------------------------------------------------------------------------------------------------


def exporter() -> ModuleType:
    spec = importlib.util.spec_from_file_location("card_schema", ROOT / "docs" / "card_schema.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "code"),
    [("\x1b[2J", "U+001B"), ("a\x9bb", "U+009B"), ("\u202e", "U+202E"), ("\u2066", "U+2066"), ("\ud800", "U+D800")],
)
def test_text_holds_nothing_that_hides_what_it_says(text: str, code: str) -> None:
    """In values as in keys, at any depth."""
    data = {"name": "none", "doi": "", "licence": "", "splits": {text: 1}, "patient_disjoint": "unknown"}
    for place, value in (("intended_use", text), ("known_faults", [text]), ("data", data)):
        message = refusal(changed(place, value))
        assert f"has the character {code}; write it without" in message
        assert message.isprintable()


def test_typography_is_no_attack() -> None:
    words = "95\u202f% \u2013 \u201eZ\u00fcrich\u201c \u00b5m \u4e2d\u6587\nsecond line"
    assert parse_card(json.dumps(fields(intended_use=words)), "card.json").intended_use == words


@pytest.mark.parametrize("name", ["con", "nul.v2", "com1", "lpt9.x", "a."])
def test_names_that_windows_has_other_plans_for(name: str) -> None:
    assert "cannot be the name of a file on every system" in refusal(changed("name", name))
    assert "cannot be the name of a file on every system" in refusal(changed("files", {f"models/{name}": FILE}))


def test_errors_are_one_short_line_whatever_the_card_holds() -> None:
    message = refusal(changed("head", {"kind": "softmax", "labels": ["x" * 500_000] * 2}))
    assert "label names repeat" in message
    assert len(message) < 700
    assert "files.a?b.[key]" in refusal(changed("files", {"a\nb": FILE}))


def test_the_documented_schema_is_current() -> None:
    found = (ROOT / "docs" / "card.schema.json").read_text(encoding="utf-8")
    assert found == exporter().schema_text(), "run docs/card_schema.py again"


def test_the_schema_says_what_the_model_checks() -> None:
    schema = Card.model_json_schema(by_alias=True)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["schema"]["const"] == "art-medical/card@1"
    assert {"name", "files", "architecture", "input", "head"} <= set(schema["required"])
    assert schema["$defs"]["WeightFile"]["properties"]["sha256"]["anyOf"] == [
        {"pattern": "^[0-9a-f]{64}$", "type": "string"},
        {"type": "null"},
    ]
    assert set(fields()) <= set(schema["properties"])
