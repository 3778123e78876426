# SPDX-License-Identifier: Apache-2.0
"""Where an attack is set up: a folder with a model that is sound until it is changed, a Hub, and canaries."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from art_medical.errors import ArtMedicalError
from art_medical.zoo.registry import load
from tests.hub.server import LoopbackHub
from tests.zoo.models import write_model

REPO = "org/tiny"
WEIGHTS = "model.safetensors"
TENSORS = {"readout.weight": torch.ones(1, 4), "readout.bias": torch.zeros(1)}
"""What the model of every stage holds: a linear observer over four pixels."""

Victim = Callable[[], Any]
"""What the victim does in the end: load, fetch, verify, register, train."""


@dataclass
class Stage:
    """Everything that one attack may use.

    :param root: An empty folder.
    :param environment: What the victim has in its environment.
    """

    root: Path
    hubs: list[LoopbackHub] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = write_model(self.root / "tiny")
        self.outside = self.root / "outside"
        self.outside.mkdir()
        self.secret.write_text("the secret\n", encoding="utf-8")
        self.cache = self.writable / "cache"

    @property
    def writable(self) -> Path:
        """Where the Hub's client, the record of first hashes and copies of models may be."""
        return self.root / "writable"

    @property
    def canary(self) -> Path:
        """A file that every payload creates."""
        return self.root / "canary"

    @property
    def secret(self) -> Path:
        """A file beside the model that no model may read."""
        return self.outside / "secret.txt"

    @property
    def shell(self) -> str:
        """The command of a payload."""
        return f"touch {self.canary}"

    @property
    def python(self) -> str:
        """The payload as an expression."""
        return f"__import__('os').system({self.shell!r})"

    # The model in the folder.

    def edit(self, **changes: Any) -> Path:
        """Change top entries of the card."""
        path = self.folder / "card.json"
        card = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**card, **changes}), encoding="utf-8")
        return self.folder

    def edit_input(self, **changes: Any) -> Path:
        """Change entries of the card's ``input``."""
        card = json.loads((self.folder / "card.json").read_text(encoding="utf-8"))
        return self.edit(input={**card["input"], **changes})

    def put(self, data: bytes, name: str = WEIGHTS, format: str = "safetensors", **card: Any) -> Path:
        """Other weights, to which the card is honest: length and hash are right, so only the content is hostile."""
        (self.folder / WEIGHTS).unlink(missing_ok=True)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        return self.edit(files={name: entry}, format=format, **card)

    def loads(self, folder: Path) -> Victim:
        return partial(load, folder)

    def loads_weights(self, data: bytes, name: str = WEIGHTS) -> Victim:
        """Load safetensors."""
        return self.loads(self.put(data, name))

    def loads_state_dict(self, data: bytes, name: str = "model.pt") -> Victim:
        """Load what should be a state dict."""
        return self.loads(self.put(data, name, "state_dict"))

    # The Hub.

    def hub(self) -> LoopbackHub:
        hub = LoopbackHub(self.root / f"hub{len(self.hubs)}")
        hub.__enter__()
        self.hubs.append(hub)
        return hub

    def publish(self, hub: LoopbackHub, more: Mapping[str, Any] | None = None) -> str:
        """Publish the folder; the reference to it by its commit."""
        files = {path.name: path.read_bytes() for path in self.folder.iterdir() if path.is_file()}
        return f"hf://{REPO}@{hub.commit(REPO, {**files, **(more or {})})}"

    def loads_from(self, hub: LoopbackHub, ref: str, **options: Any) -> Victim:
        return partial(load, ref, **{"endpoint": hub.endpoint, "cache_dir": self.cache, **options})

    def close(self) -> None:
        for hub in self.hubs:
            hub.stop()


@dataclass(frozen=True)
class Attack:
    """One case.

    :param name: What the repository does.
    :param source: Who published it.
    :param error: The exception that refuses it.
    :param message: What this exception says and no other one of the table does.
    :param make: Sets the stage up.
    """

    name: str
    source: str
    error: type[ArtMedicalError]
    message: str
    make: Callable[[Stage], Victim]


TABLE: list[Attack] = []


def attack(
    name: str, source: str, error: type[ArtMedicalError], message: str
) -> Callable[[Callable[[Stage], Victim]], Callable[[Stage], Victim]]:
    """Put a case into the table."""

    def keep(make: Callable[[Stage], Victim]) -> Callable[[Stage], Victim]:
        TABLE.append(Attack(name, source, error, message, make))
        return make

    return keep


# -- files -------------------------------------------------------------------------------------------------------------


def state_dict(tensors: Mapping[str, torch.Tensor] | None = None) -> bytes:
    """What ``torch.save`` makes of honest weights."""
    buffer = io.BytesIO()
    torch.save(dict(TENSORS if tensors is None else tensors), buffer)
    return buffer.getvalue()


def with_pickle(pickle: bytes) -> bytes:
    """An archive of ``torch.save`` with another pickle in it."""
    return rewritten({"data.pkl": pickle})


def rewritten(records: Mapping[str, bytes], **options: Any) -> bytes:
    """An archive of ``torch.save`` with other or further records."""
    honest = io.BytesIO(state_dict())
    buffer = io.BytesIO()
    with zipfile.ZipFile(honest) as source, zipfile.ZipFile(buffer, "w", **options) as target:
        found = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
        for name, record in {**found, **records}.items():
            target.writestr(f"archive/{name}", record)
    return buffer.getvalue()


def honest_pickle() -> bytes:
    """The pickle of honest weights."""
    with zipfile.ZipFile(io.BytesIO(state_dict())) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        return archive.read(name)


def safetensors(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file with any header, given as bytes or as data."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + data
