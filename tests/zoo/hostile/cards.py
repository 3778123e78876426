# SPDX-License-Identifier: Apache-2.0
"""Cards that ask for too much, hide what they say, or name what is not theirs."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from art_medical.errors import ModelError
from art_medical.zoo.cards import read_card
from tests.zoo.hostile.stage import Stage, Victim, attack


def text_of(stage: Stage) -> str:
    return (stage.folder / "card.json").read_text(encoding="utf-8")


def rewrite(stage: Stage, text: str | bytes) -> Victim:
    """Load with another text of the card."""
    data = text.encode() if isinstance(text, str) else text
    (stage.folder / "card.json").write_bytes(data)
    return stage.loads(stage.folder)


def named(stage: Stage, name: str) -> Victim:
    """Load with another name of the weights file on the card."""
    return stage.loads(stage.edit(files={name: {"sha256": "0" * 64, "size": 11}}))


# -- names of files ----------------------------------------------------------------------------------------------------


@attack("weights named by a way out of the folder", "CWE-22", ModelError, "files.../outside/secret.txt.[key]")
def _(stage: Stage) -> Victim:
    return named(stage, "../outside/secret.txt")


@attack("weights named by an absolute path", "CWE-36", ModelError, "files./etc/passwd.[key]")
def _(stage: Stage) -> Victim:
    return named(stage, "/etc/passwd")


@attack("weights on a Windows drive", "CWE-39", ModelError, "files.C:/secret.txt.[key]")
def _(stage: Stage) -> Victim:
    return named(stage, "C:/secret.txt")


@attack(
    "weights named with backslashes", "CWE-29; Zip Slip, Snyk 2018", ModelError, "files...\\outside\\secret.txt.[key]"
)
def _(stage: Stage) -> Victim:
    return named(stage, "..\\outside\\secret.txt")


@attack("weights on a network share", "CWE-40 (UNC path, leaks credentials)", ModelError, "files.//host/share/x.[key]")
def _(stage: Stage) -> Victim:
    return named(stage, "//host/share/x")


@attack("name with a NUL, behind which others stop reading", "CWE-158", ModelError, "has the character U+0000")
def _(stage: Stage) -> Victim:
    return named(stage, "model.safetensors\0.txt")


@attack(
    "name of a Windows device",
    "CVE-2025-27210",
    ModelError,
    "files.nul.safetensors.[key]: Value error, 'nul.safetensors' cannot be the name of a file on every system",
)
def _(stage: Stage) -> Victim:
    return named(stage, "nul.safetensors")


@attack(
    "name that Windows takes for another one",
    "CWE-42 (trailing dot)",
    ModelError,
    "'model.safetensors.' cannot be the name of a file on every system",
)
def _(stage: Stage) -> Victim:
    return named(stage, "model.safetensors.")


@attack("hidden file as weights", "CWE-22; .git/config, .env", ModelError, "files..git/config.[key]")
def _(stage: Stage) -> Victim:
    return named(stage, ".git/config")


@attack(
    "weights that are the card where case does not count",
    "CVE-2014-9390 (.GIT)",
    ModelError,
    "CARD.JSON is a file of the model folder and cannot be its weights",
)
def _(stage: Stage) -> Victim:
    return named(stage, "CARD.JSON")


@attack(
    "signature that is the card where case does not count",
    "CVE-2014-9390 (.GIT)",
    ModelError,
    "Card.json is a file of the model folder and cannot be its signature",
)
def _(stage: Stage) -> Victim:
    return stage.loads(stage.edit(signature={"file": "Card.json", "key_sha256": "0" * 64}))


@attack("model name that is a way out", "CWE-22, through fetch --to", ModelError, ": name: String should match pattern")
def _(stage: Stage) -> Victim:
    return stage.loads(stage.edit(name="../../outside"))


@attack(
    "TorchScript named as the weights",
    "rule 7 of safe bundle reading: TorchScript is a program",
    ModelError,
    "model.ts: TorchScript and ONNX files are programs",
)
def _(stage: Stage) -> Victim:
    return named(stage, "model.ts")


@attack(
    "ONNX named as the weights, whose external data may be any file",
    "CVE-2024-27318; CVE-2022-25882",
    ModelError,
    "model.onnx: TorchScript and ONNX files are programs",
)
def _(stage: Stage) -> Victim:
    return named(stage, "model.onnx")


# -- text --------------------------------------------------------------------------------------------------------------


@attack(
    "text that a terminal obeys", "CVE-2003-0063; CWE-150", ModelError, "has the character U+001B; write it without"
)
def _(stage: Stage) -> Victim:
    return stage.loads(stage.edit(intended_use="\x1b]0;harmless\x07\x1b[2J"))


@attack("text that reads differently than it is", "CVE-2021-42574 (Trojan Source)", ModelError, "the character U+202E")
def _(stage: Stage) -> Victim:
    return stage.loads(stage.edit(licence="\u202etfosorciM"))


@attack("half a character, at which writers fail later", "CWE-176", ModelError, "the character U+D800")
def _(stage: Stage) -> Victim:
    return rewrite(stage, text_of(stage).replace('"Tests."', '"\\ud800"'))


@attack("key given twice, one for the reviewer", "CVE-2017-12635", ModelError, "key 'licence' is given twice")
def _(stage: Stage) -> Victim:
    return rewrite(stage, text_of(stage).replace('"licence": "Apache-2.0"', '"licence": "MIT", "licence": "x"', 1))


@attack(
    "key that looks like another one", "CVE-2021-42694 (homoglyphs)", ModelError, "f\u0456les: Extra inputs are not"
)
def _(stage: Stage) -> Victim:
    return stage.loads(stage.edit(**{"f\u0456les": {}}))


@attack("NaN for a bound", "CWE-20; JSON has no NaN", ModelError, "card.json: NaN is no finite number")
def _(stage: Stage) -> Victim:
    return stage.loads(stage.edit_input(high=float("nan")))


@attack(
    "number too large for a float",
    "CWE-681; JSON has no infinity, readers make one",
    ModelError,
    "1e999 is no finite number",
)
def _(stage: Stage) -> Victim:
    return rewrite(stage, text_of(stage).replace('"high": 255', '"high": 1e999'))


@attack("number of a million digits", "CVE-2020-10735", ModelError, "Exceeds the limit (4300 digits) for integer")
def _(stage: Stage) -> Victim:
    return rewrite(stage, text_of(stage).replace('"high": 255', '"high": ' + "9" * 1_000_000))


@attack("step so small that its count overflows", "CWE-681", ModelError, "is no whole number of steps of 1e-308")
def _(stage: Stage) -> Victim:
    return stage.loads(stage.edit_input(high=1e308, step=1e-308))


@attack("a hundred thousand brackets", "CWE-674", ModelError, "maximum recursion depth exceeded")
def _(stage: Stage) -> Victim:
    return rewrite(stage, "[" * 100_000)


@attack("card of a gigabyte", "CWE-400", ModelError, "card.json has 1000000000 bytes; a card has at most 1048576")
def _(stage: Stage) -> Victim:
    os.truncate(stage.folder / "card.json", 1_000_000_000)
    return stage.loads(stage.folder)


@attack("card that is no UTF-8", "CWE-176", ModelError, "card.json is not UTF-8 text")
def _(stage: Stage) -> Victim:
    return rewrite(stage, text_of(stage).encode("utf-16"))


@attack(
    "card that is a link to a file outside",
    "CWE-59",
    ModelError,
    "card.json: Too many levels of symbolic links; a model folder needs",
)
def _(stage: Stage) -> Victim:
    (stage.folder / "card.json").unlink()
    (stage.folder / "card.json").symlink_to(stage.secret)
    return stage.loads(stage.folder)


@attack("card that is a pipe, on which readers wait for ever", "CWE-400", ModelError, "card.json: Is no regular file")
def _(stage: Stage) -> Victim:
    (stage.folder / "card.json").unlink()
    os.mkfifo(stage.folder / "card.json")
    return partial(read_card, stage.folder)


# -- numbers -----------------------------------------------------------------------------------------------------------


def network(stage: Stage, target: str, **args: Any) -> Victim:
    return stage.loads(stage.edit(architecture={"target": target, "args": args, "num_parameters": 5}))


@attack("network by an importable name", "CVE-2025-1550 (Keras config)", ModelError, "network 'os.system' is not on")
def _(stage: Stage) -> Victim:
    return network(stage, "os.system", command=stage.shell)


@attack(
    "argument that downloads",
    "EfficientNetBN goes online when it is built",
    ModelError,
    "DenseNet121 takes no argument 'pretrained'",
)
def _(stage: Stage) -> Victim:
    return network(stage, "DenseNet121", spatial_dims=2, in_channels=1, out_channels=1, pretrained=True)


@attack("call hidden in an argument", "GHSA-873f-pvrv-4x83 (MONAI)", ModelError, "architecture.args.shape")
def _(stage: Stage) -> Victim:
    return network(stage, "LinearObserver", shape={"_target_": "os.system", "command": stage.shell})


@attack("network of a terabyte", "CWE-789", ModelError, "parameters, more than 200,000,000")
def _(stage: Stage) -> Victim:
    return network(stage, "LinearObserver", shape=[8192, 8192, 4096])


@attack("network with a million layers", "CWE-400", ModelError, "argument 'layers' asks for more than 512")
def _(stage: Stage) -> Victim:
    return network(stage, "ResNet", block="basic", layers=[8000] * 4, block_inplanes=[1] * 4)


@attack("width beyond all bounds", "CWE-789", ModelError, "argument 'init_features' is 1000000000000, more than 8192")
def _(stage: Stage) -> Victim:
    return network(stage, "DenseNet121", spatial_dims=2, in_channels=1, out_channels=1, init_features=10**12)


@attack("resize to a terabyte", "CWE-789", ModelError, "one image would have 1,099,511,627,776 values")
def _(stage: Stage) -> Victim:
    return stage.loads(stage.edit_input(steps=[{"kind": "resize", "size": [1 << 20, 1 << 20]}]))


@attack("forty thousand input steps", "CWE-400", ModelError, "should have at most 32 items")
def _(stage: Stage) -> Victim:
    return stage.loads(stage.edit_input(steps=[{"kind": "minmax"}] * 40_000))


@attack("input step that is a command", "GHSA-x6pr-233j-x5cw (MONAI)", ModelError, "input.steps.0: Input tag 'shell'")
def _(stage: Stage) -> Victim:
    return stage.loads(stage.edit_input(steps=[{"kind": "shell", "run": stage.shell}]))


@attack(
    "weights of a terabyte, to fill the disk before anything is compared",
    "CWE-400",
    ModelError,
    "files.model.safetensors.size: Input should be less than or equal to 1000000000",
)
def _(stage: Stage) -> Victim:
    return stage.loads(stage.edit(files={"model.safetensors": {"sha256": "0" * 64, "size": 1 << 40}}))


@attack("two to the power of 40 classes", "CWE-789", ModelError, "40 labels give 2**40 label sets")
def _(stage: Stage) -> Victim:
    return stage.loads(stage.edit(head={"kind": "multi-label", "labels": [f"l{n}" for n in range(40)]}))


@attack(
    "lie about the size of the network",
    "CWE-345; the count is a second statement",
    ModelError,
    "the card says 7,000,000",
)
def _(stage: Stage) -> Victim:
    architecture = {"target": "LinearObserver", "args": {"shape": [1, 2, 2]}, "num_parameters": 7_000_000}
    return stage.loads(stage.edit(architecture=architecture))
