# SPDX-License-Identifier: Apache-2.0
"""A loopback Hub, a model to publish on it, and a cache of one's own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from art_medical.zoo import hub as zoo_hub
from art_medical.zoo.cards import Card, read_card
from tests.hub.server import LoopbackHub
from tests.zoo.models import write_model

REPO = "org/tiny"
WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits up to half a minute between its attempts."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@dataclass
class Published:
    """The model ``tiny`` at one commit, and a cache that knows nothing of it yet."""

    hub: LoopbackHub
    folder: Path
    cache: Path
    commit: str

    @property
    def ref(self) -> str:
        return f"hf://{REPO}@{self.commit}"

    @property
    def storage(self) -> Path:
        return self.cache / "models--org--tiny"

    @property
    def options(self) -> dict[str, Any]:
        return {"endpoint": self.hub.endpoint, "cache_dir": self.cache}

    @property
    def registered(self) -> Card:
        """The card as it would come with the package."""
        return read_card(self.folder).model_copy(update={"hub": self._entry(self.commit)})

    @staticmethod
    def _entry(revision: str | None) -> Any:
        from art_medical.zoo.cards import HubEntry

        return HubEntry(repo=REPO, revision=revision)

    def fetch(self, ref: Any = None, **options: Any) -> zoo_hub.Fetched:
        return zoo_hub.fetch(ref or self.ref, **{**self.options, **options})

    def cached(self, name: str = WEIGHTS) -> Path:
        """Where the cache shows a file: a link to its bytes."""
        return self.storage / "snapshots" / self.commit / name

    def change_cached(self, name: str = WEIGHTS) -> None:
        """Invert the last byte of a file in the cache."""
        blob = self.cached(name).resolve()
        data = blob.read_bytes()
        blob.write_bytes(data[:-1] + bytes([data[-1] ^ 0xFF]))


@pytest.fixture
def published(hub: LoopbackHub, tmp_path: Path) -> Published:
    folder = write_model(tmp_path / "tiny")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    commit = hub.commit(REPO, {**files, "README.md": b"# tiny\n"})
    return Published(hub, folder, tmp_path / "cache", commit)


def republish(published: Published, more: dict[str, bytes] | None = None, /, **changes: Any) -> str:
    """A further commit with another card; the reference to it."""
    card = json.loads((published.folder / "card.json").read_text())
    content = {"card.json": json.dumps({**card, **changes}).encode(), **(more or {})}
    return f"hf://{REPO}@{published.hub.commit(REPO, content)}"
