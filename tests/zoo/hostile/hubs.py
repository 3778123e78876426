# SPDX-License-Identifier: Apache-2.0
"""Hubs that do not send what they promised, and repositories that change."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from art_medical.errors import HubError, IntegrityError, ModelError, UnpinnedError
from art_medical.zoo.hub import fetch, fetch_to
from art_medical.zoo.hub_client import AbsentFileError
from art_medical.zoo.registry import load
from tests.hub.handler import Handler
from tests.hub.repositories import Blob
from tests.hub.server import LoopbackHub, Symlink
from tests.zoo.hostile.stage import REPO, WEIGHTS, Stage, Victim, attack, safetensors
from tests.zoo.models import write_model

CONTENT = "huggingface_hub issues 2364 and 3643: content is not checked"


def _rewrite_history(stage: Stage, hub: LoopbackHub, ref: str) -> None:
    """Another sound model under the id of the commit."""
    other = write_model(stage.root / "other" / "tiny", seed=1)
    made = hub.commit(REPO, {path.name: path.read_bytes() for path in other.iterdir()})
    commits, wanted = hub.repositories[REPO].commits, ref.partition("@")[2]
    commits[wanted] = replace(commits[made], id=wanted)


HONEST = safetensors(
    {
        "readout.bias": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "readout.weight": {"dtype": "F32", "shape": [1, 4], "data_offsets": [4, 20]},
    },
    bytes(20),
)


@attack(
    "other weights of the same length",
    CONTENT,
    IntegrityError,
    f"the card says {hashlib.sha256(HONEST).hexdigest()[:16]}",
)
def _(stage: Stage) -> Victim:
    hub = stage.hub()
    hub.fault("wrong-bytes", WEIGHTS)
    stage.put(HONEST)
    return stage.loads_from(hub, stage.publish(hub))


@attack(
    "other weights of the same length, into a folder",
    CONTENT,
    IntegrityError,
    ": refused before parsing; `art-medical zoo fetch tiny",
)
def _(stage: Stage) -> Victim:
    """A local folder whose file was changed after it was carded."""
    path = stage.folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")

    def fetched() -> Any:
        return fetch_to([stage.folder], stage.writable / "to")

    def renamed() -> Any:
        try:
            return fetched()
        except IntegrityError as error:
            raise IntegrityError(str(error).replace(str(stage.folder), "tiny")) from error

    return renamed


@attack(
    "branch in place of a commit",
    "Unit 42, Model Namespace Reuse, 2025",
    UnpinnedError,
    "names the branch or tag 'main'",
)
def _(stage: Stage) -> Victim:
    hub = stage.hub()
    stage.publish(hub)
    return stage.loads_from(hub, f"hf://{REPO}@main")


@attack(
    "tag that was moved to another commit", "tags on the Hub can be moved", UnpinnedError, "the branch or tag 'v1.0.0'"
)
def _(stage: Stage) -> Victim:
    hub = stage.hub()
    hub.tag(REPO, "v1.0.0", stage.publish(hub).partition("@")[2])
    hub.tag(REPO, "v1.0.0", hub.commit(REPO, {WEIGHTS: b"evil"}))
    return stage.loads_from(hub, f"hf://{REPO}@v1.0.0")


@attack(
    "beginning of a commit id, which others can share",
    "git, short ids",
    UnpinnedError,
    "names the branch or tag '0123456'",
)
def _(stage: Stage) -> Victim:
    hub = stage.hub()
    stage.publish(hub)
    return stage.loads_from(hub, f"hf://{REPO}@0123456")


@attack("reference that leaves the cache", "CWE-22", HubError, "'hf://org/..%2f..@main' is no reference to a model")
def _(stage: Stage) -> Victim:
    return partial(load, "hf://org/..%2f..@main", cache_dir=stage.cache)


@attack("answer for another commit", "X-Repo-Commit is the server's word", IntegrityError, "with commit cccccccccccc")
def _(stage: Stage) -> Victim:
    hub = stage.hub()
    hub.fault("wrong-commit", WEIGHTS)
    return stage.loads_from(hub, stage.publish(hub))


@attack(
    "card that is another one than the reference says", "CWE-494", IntegrityError, f", expected {'0' * 64}: refused"
)
def _(stage: Stage) -> Victim:
    hub = stage.hub()
    return stage.loads_from(hub, f"{stage.publish(hub)}#{'0' * 64}")


@attack(
    "card that is swapped after the first use, with weights to match",
    "Samuel et al., Survivable Key Compromise, CCS 2010 (arbitrary installation)",
    IntegrityError,
    "when first seen it had",
)
def _(stage: Stage) -> Victim:
    hub = stage.hub()
    ref = stage.publish(hub)
    load(ref, endpoint=hub.endpoint, cache_dir=stage.cache)
    _rewrite_history(stage, hub, ref)
    return partial(fetch, ref, endpoint=hub.endpoint, cache_dir=stage.cache, force=True)


@attack(
    "weights of another length",
    "CWE-494",
    IntegrityError,
    "announces 1000000 bytes for model.safetensors of org/tiny@",
)
def _(stage: Stage) -> Victim:
    hub = stage.hub()
    return stage.loads_from(hub, stage.publish(hub, {WEIGHTS: bytes(1_000_000)}))


@attack("card of ten megabytes", "CWE-400", IntegrityError, "announces 10000000 bytes for card.json of org/tiny@")
def _(stage: Stage) -> Victim:
    hub = stage.hub()
    return stage.loads_from(hub, stage.publish(hub, {"card.json": bytes(10_000_000)}))


@attack("body that goes on after its end", "CWE-770", HubError, "file should be of size 164 but has size 1188")
def _(stage: Stage) -> Victim:
    hub = stage.hub()
    hub.fault("long", WEIGHTS)
    return stage.loads_from(hub, stage.publish(hub))


@attack("hash that is not the card's, before a byte is sent", "CWE-494", IntegrityError, f"announces sha256 {'e' * 64}")
def _(stage: Stage) -> Victim:
    hub = stage.hub()
    hub.fault("wrong-etag", WEIGHTS)
    return stage.loads_from(hub, stage.publish(hub))


@attack("server that names no commit", "not a Hub: a portal, a proxy", HubError, "names no commit for card.json")
def _(stage: Stage) -> Victim:
    hub = stage.hub()
    hub.fault("no-commit", "card.json")
    return stage.loads_from(hub, stage.publish(hub))


@attack(
    "endpoint without encryption", "CWE-319; the token would be readable", HubError, "'http://hub.test' is refused: use"
)
def _(stage: Stage) -> Victim:
    return partial(load, f"hf://{REPO}@{'0' * 40}", endpoint="http://hub.test", cache_dir=stage.cache)


@attack("endpoint that is a file", "CWE-73; file:// in place of https://", HubError, "'file:///etc' is refused: use")
def _(stage: Stage) -> Victim:
    return partial(load, f"hf://{REPO}@{'0' * 40}", endpoint="file:///etc", cache_dir=stage.cache)


@attack(
    "remote code without a card",
    "transformers, auto_map; CVE-2026-9856; only named files are ever asked for",
    AbsentFileError,
    "has no file card.json; a model repository needs a card.json",
)
def _(stage: Stage) -> Victim:
    hub = stage.hub()
    code = f"import os\nos.system({stage.shell!r})\n".encode()
    config = b'{"auto_map": {"AutoModel": "modeling.Evil"}}'
    commit = hub.commit("org/remote", {"config.json": config, "modeling.py": code, "../../evil.py": code})
    return stage.loads_from(hub, f"hf://org/remote@{commit}")


@attack(
    "card that is a link in the repository", "CWE-59; git keeps links", ModelError, "line 1: not JSON: Expecting value"
)
def _(stage: Stage) -> Victim:
    """A checkout would follow it; the Hub's client gets the text of the link."""
    hub = stage.hub()
    return stage.loads_from(hub, stage.publish(hub, {"card.json": Symlink("../../outside/secret.txt")}))


@attack(
    "weights on the card without a hash", "CWE-353", UnpinnedError, "gives no sha256 for model.safetensors, so nobody"
)
def _(stage: Stage) -> Victim:
    hub = stage.hub()
    stage.edit(files={WEIGHTS: {"sha256": None, "size": None}})
    return stage.loads_from(hub, stage.publish(hub))


def _cached(stage: Stage) -> tuple[str, Any, Path]:
    hub = stage.hub()
    ref = stage.publish(hub)
    load(ref, endpoint=hub.endpoint, cache_dir=stage.cache)
    return ref, hub, stage.cache / "models--org--tiny" / "snapshots" / ref.partition("@")[2] / WEIGHTS


@attack("cache that leads out to another file", "CWE-59", IntegrityError, "leads out of the cache, to ")
def _(stage: Stage) -> Victim:
    ref, hub, link = _cached(stage)
    link.unlink()
    link.symlink_to(stage.secret)
    return stage.loads_from(hub, ref)


@attack("cached weights that grew", "CWE-345; caches are not checked", IntegrityError, "(model.safetensors) has")
def _(stage: Stage) -> Victim:
    ref, hub, link = _cached(stage)
    with link.open("ab") as file:
        file.write(b"tail")
    return stage.loads_from(hub, ref)


@attack(
    "mirror that fills the cache for the next server",
    "CWE-349; cache poisoning",
    IntegrityError,
    "the cache has another card.json of org/tiny@",
)
def _(stage: Stage) -> Victim:
    """An honest Hub is asked second, for the same commit, with what the mirror left in the cache."""
    mirror, honest = stage.hub(), stage.hub()
    ref = stage.publish(honest)
    _rewrite_history(stage, mirror, ref)
    load(ref, endpoint=mirror.endpoint, cache_dir=stage.cache)
    return stage.loads_from(honest, ref)


class _RedirectToFile(Handler):
    """Honest about a file until it is fetched, then it is somewhere on the victim's disk."""

    target: ClassVar[str]

    def _send_file(self, path: str, blob: Blob, headers: dict[str, str]) -> None:
        if path == WEIGHTS and self.command == "GET":
            self._send_json({}, 302, {**headers, "Location": self.target})
        else:
            super()._send_file(path, blob, headers)


@attack(
    "redirect to a file of the victim",
    "CVE-2009-0037 (curl follows redirects to file:)",
    HubError,
    "Request URL has an unsupported protocol 'file://'",
)
def _(stage: Stage) -> Victim:
    hub = stage.hub()
    hub._server.RequestHandlerClass = type("Redirect", (_RedirectToFile,), {"target": stage.secret.as_uri()})
    return stage.loads_from(hub, stage.publish(hub))
