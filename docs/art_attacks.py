# SPDX-License-Identifier: Apache-2.0
"""Write ``art-attacks.json``: the rows of the conformance table that ``tests/conformance/test_art_attacks.py`` runs.

python docs/art_attacks.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def _demand(row: Any) -> str:
    if row.limit is not None and len(row.limit.dimensions) == 2 and len(row.limit.heads) > 3:
        return "none"
    return "all" if row.flips == 1 else f"at least {100 * row.flips:g} %"


def rows() -> list[dict[str, str]]:
    """One entry for each attack: what the test demands of it, and what ART itself cannot do."""
    sys.path.insert(0, str(HERE.parent))
    from tests.conformance.art_attack_table import ROWS

    table = []
    for row in ROWS:
        limit = row.limit
        cannot = ""
        if limit is not None:
            where = [] if len(limit.dimensions) == 2 else [f"{limit.dimensions[0]}-D"]
            where += [] if len(limit.heads) > 3 else list(limit.heads)
            cannot = f"{', '.join(where) + ': ' if where else ''}{limit.because} (ART: {limit.issue})"
        table.append(
            {
                "attack": row.name,
                "flips": _demand(row),
                "seen through": row.door,
                "limit of ART": cannot,
                "note": row.note,
            }
        )
    return table


def masks() -> list[dict[str, str]]:
    """One entry for each attack that takes a mask: whether ART keeps to it."""
    from tests.conformance.art_attack_table import MASKS

    return [
        {"attack": mask.name, "kept": "yes" if mask.kept else "no", "why": f"{mask.because} (ART: {mask.issue})"}
        if not mask.kept
        else {"attack": mask.name, "kept": "yes", "why": ""}
        for mask in MASKS
    ]


def text() -> str:
    """The file."""
    return json.dumps({"attacks": rows(), "masks": masks()}, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (HERE / "art-attacks.json").write_text(text(), encoding="utf-8")
