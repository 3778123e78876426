# SPDX-License-Identifier: Apache-2.0
"""Write ``hostile-models.json``: the attacks that ``tests/zoo/test_malicious_repositories.py`` refuses.

python docs/hostile_models.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def rows() -> list[dict[str, str]]:
    """One entry for each attack: who published it, which error refuses it and what that says."""
    sys.path.insert(0, str(HERE.parent))
    from tests.zoo.hostile.attacks import TABLE

    return [
        {
            "attack": _plain(case.name),
            "source": _plain(case.source),
            "refused by": case.error.__name__,
            "message": f"``... {case.message.strip()} ...``",
        }
        for case in TABLE
    ]


def _plain(text: str) -> str:
    """Text in which reStructuredText sees no markup."""
    return "".join(f"\\{c}" if c in "\\*`_|:" else c for c in text)


def text() -> str:
    """The file."""
    return json.dumps(rows(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (HERE / "hostile-models.json").write_text(text(), encoding="utf-8")
