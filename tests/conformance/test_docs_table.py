# SPDX-License-Identifier: Apache-2.0
"""The table in the documentation is the table that is tested."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_committed_table_is_current():
    current = runpy.run_path(str(DOCS / "art_attacks.py"))["text"]()
    assert (DOCS / "art-attacks.json").read_text(encoding="utf-8") == current, "run: python docs/art_attacks.py"
