# SPDX-License-Identifier: Apache-2.0
"""Safetensors files that say one thing and hold another, and files that are not what their names say."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import Any

import torch
from safetensors.torch import save

from art_medical.errors import ModelError, UnsafeBundleError
from tests.zoo.hostile.pickles import called
from tests.zoo.hostile.stage import TENSORS, WEIGHTS, Stage, Victim, attack, safetensors

AUDIT = "Trail of Bits, audit of safetensors, 2023"


def entry(start: int, stop: int, *shape: int, dtype: str = "F32") -> dict[str, Any]:
    """What a header says of one tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@attack(
    "header that is said to be 8 exabytes long",
    "safetensors, Format (limit of the header); CWE-789",
    ModelError,
    "or the header is too long (9223372036854775808 bytes)",
)
def _(stage: Stage) -> Victim:
    return stage.loads_weights(struct.pack("<Q", 1 << 63) + b"{}" + bytes(16))


@attack(
    "header of a megabyte: tensors without numbers",
    "CWE-400",
    ModelError,
    "has a safetensors header of 1,",
)
def _(stage: Stage) -> Victim:
    return stage.loads_weights(safetensors({f"w{n}": entry(0, 0, 0) for n in range(20_000)}))


@attack("two tensors that overlap", AUDIT, ModelError, "tensor 'b' begins at 8, the one before it ends at 16")
def _(stage: Stage) -> Victim:
    return stage.loads_weights(safetensors({"a": entry(0, 16, 4), "b": entry(8, 16, 2)}, bytes(16)))


@attack("a hole between tensors, to hide in", AUDIT, ModelError, "tensor 'a' begins at 8, the one before it ends at 0")
def _(stage: Stage) -> Victim:
    return stage.loads_weights(safetensors({"a": entry(8, 16, 2)}, bytes(16)))


@attack("tensor that ends behind the file", AUDIT, ModelError, "the tensors take 1600 bytes, the file has 16 for them")
def _(stage: Stage) -> Victim:
    return stage.loads_weights(safetensors({"a": entry(0, 1600, 400)}, bytes(16)))


@attack(
    "one name for two tensors: readers differ in which they take",
    "CWE-436; JSON parsers differ on repeated keys, Miller, Bishop Fox 2021",
    ModelError,
    "is no safetensors file: the header gives a key twice",
)
def _(stage: Stage) -> Victim:
    """The library of safetensors takes the last one without a word."""
    one, other = (json.dumps(entry(0, 16, *shape)).encode() for shape in ((4,), (2, 2)))
    return stage.loads_weights(safetensors(b'{"w":' + one + b',"w":' + other + b"}", bytes(16)))


@attack(
    "shape whose product is not its length",
    "CWE-190; safetensors, Format",
    ModelError,
    "tensor 'a' of shape [1099511627776, 4] and type F32 takes 16 bytes",
)
def _(stage: Stage) -> Victim:
    return stage.loads_weights(safetensors({"a": entry(0, 16, 1 << 40, 4)}, bytes(16)))


@attack("type that there is not", AUDIT, ModelError, "tensor 'a' has the unknown type 'PICKLE'")
def _(stage: Stage) -> Victim:
    return stage.loads_weights(safetensors({"a": entry(0, 16, 4, dtype="PICKLE")}, bytes(16)))


@attack("negative offsets", "CWE-125", ModelError, "tensor 'a': shape and offsets must be whole numbers from 0")
def _(stage: Stage) -> Victim:
    return stage.loads_weights(safetensors({"a": entry(-16, 0, 4)}, bytes(16)))


@attack("header that is no UTF-8", "safetensors, Format", ModelError, "'utf-8' codec can't decode byte 0xff")
def _(stage: Stage) -> Victim:
    return stage.loads_weights(safetensors(b'{"\xff": 1}', bytes(16)))


@attack(
    "zip archive behind the tensors: two formats in one file",
    AUDIT + " (polyglots)",
    ModelError,
    "the tensors take 20 bytes, the file has",
)
def _(stage: Stage) -> Victim:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", called("posix", "system", stage.shell))
    return stage.loads_weights(save(TENSORS) + buffer.getvalue())


@attack(
    "safetensors file that is a zip archive as well, under the card of a state dict",
    AUDIT + " (polyglots)",
    UnsafeBundleError,
    "polyglot.pt: is no archive; weights must be a state dict",
)
def _(stage: Stage) -> Victim:
    """A zip archive is read from its end; here it is the content of a tensor."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", called("posix", "system", stage.shell))
    content = buffer.getvalue()
    data = safetensors({"w": entry(0, len(content), len(content), dtype="U8")}, content)
    assert zipfile.is_zipfile(io.BytesIO(data))
    return stage.loads_state_dict(data, "polyglot.pt")


@attack(
    "pickle under the name of safetensors",
    "CVE-2025-1889; Hub scanners go by the suffix",
    ModelError,
    "or the header is too long (8676593079570072192 bytes)",
)
def _(stage: Stage) -> Victim:
    return stage.loads_weights(called("posix", "system", stage.shell))


@attack(
    "numbers in place of the weights: bytes that torch would reinterpret",
    "CWE-843",
    ModelError,
    "tensor 'readout.bias' has type torch.int32, the network has torch.float32",
)
def _(stage: Stage) -> Victim:
    return stage.loads_weights(save({**TENSORS, "readout.bias": torch.zeros(1, dtype=torch.int32)}))


@attack(
    "weights with an infinity, which no finite perturbation can undo",
    "CWE-20",
    ModelError,
    "tensor 'readout.weight' holds NaN or infinity",
)
def _(stage: Stage) -> Victim:
    return stage.loads_weights(save({**TENSORS, "readout.weight": torch.full((1, 4), torch.inf)}))


@attack(
    "tensor that the network does not have, to carry something along",
    "Wang et al., EvilModel, 2021, arXiv 2107.08590",
    ModelError,
    'Unexpected key(s) in state_dict: "payload"',
)
def _(stage: Stage) -> Victim:
    return stage.loads_weights(save({**TENSORS, "payload": torch.zeros(4096, dtype=torch.uint8)}))


@attack(
    "half a million dimensions",
    "CWE-400",
    ModelError,
    "tensor 'a' has 200000 dimensions, more than 8",
)
def _(stage: Stage) -> Victim:
    return stage.loads_weights(safetensors({"a": entry(0, 4, *(1,) * 200_000)}, bytes(4)))


@attack(
    "length that is too large for torch, of a tensor without numbers",
    "CWE-190",
    ModelError,
    "tensor 'a' has a length of 1180591620717411303424",
)
def _(stage: Stage) -> Victim:
    return stage.loads_weights(safetensors({"a": entry(0, 0, 1 << 70, 0), "b": entry(0, 4, 1)}, bytes(4)))


@attack(
    "weights that are a link to a file outside",
    "CWE-59; Hub snapshots hold links",
    ModelError,
    "is a symbolic link; weights must be a plain file",
)
def _(stage: Stage) -> Victim:
    stage.put(stage.secret.read_bytes())
    (stage.folder / WEIGHTS).unlink()
    (stage.folder / WEIGHTS).symlink_to(stage.secret)
    return stage.loads(stage.folder)


@attack(
    "weights below a folder that is a link to outside",
    "CWE-59",
    ModelError,
    "models is a symbolic link; the folders of a model must be real ones",
)
def _(stage: Stage) -> Victim:
    stage.put(stage.secret.read_bytes(), "models/secret.txt")
    (stage.folder / "models" / "secret.txt").unlink()
    (stage.folder / "models").rmdir()
    (stage.folder / "models").symlink_to(stage.outside)
    return stage.loads(stage.folder)
