# SPDX-License-Identifier: Apache-2.0
"""References to models on the Hub: ``hf://owner/repo@commit#sha256-of-card.json``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from art_medical.errors import HubError

SCHEME = "hf://"
COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REFERENCE = re.compile(rf"hf://({_PART}/{_PART})(?:@([A-Za-z0-9_][A-Za-z0-9_./-]{{0,254}}))?(?:#([0-9a-f]{{64}}))?")


@dataclass(frozen=True, slots=True)
class HubRef:
    """One model on the Hub.

    :param repo: ``owner/name``.
    :param revision: Full commit id, or a branch or tag, or ``None`` where the reference names none; only a full
        commit id always means the same files.
    :param card_sha256: sha256 of ``card.json``, if the reference carries it. It is then known before anything is
        fetched what every byte has to be; without it, the server is trusted once, with the card.
    """

    repo: str
    revision: str | None = None
    card_sha256: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubRef:
        """Read a reference.

        :raises HubError: If the text is none.
        """
        found = _REFERENCE.fullmatch(text)
        # "--" and ".." are refused by the Hub, and are what folders of the cache are made of.
        if found is None or any(twice in found[1] for twice in ("--", "..")) or ".." in (found[2] or ""):
            raise HubError(
                f"{text[:200]!r} is no reference to a model on the Hub; write hf://owner/repo@<40 hex digits of the "
                "commit>, optionally with #<64 hex digits of the sha256 of card.json>"
            )
        return cls(found[1], found[2], found[3])

    @property
    def pinned(self) -> bool:
        """Whether the revision is a full commit id."""
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision is not None else ""
        return f"{SCHEME}{self.repo}{revision}" + (f"#{self.card_sha256}" if self.card_sha256 is not None else "")


def is_hub_ref(ref: object) -> bool:
    """Whether a reference means the Hub, be it well-formed or not."""
    return isinstance(ref, str) and ref.startswith(SCHEME)
