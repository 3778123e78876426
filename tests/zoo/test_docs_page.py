# SPDX-License-Identifier: Apache-2.0
"""``docs/zoo.md`` has one row for each card, says what the card says, and is the one that its program writes."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from art_medical.zoo.cards import read_card

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "zoo.md"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("zoo_table", ROOT / "docs" / "zoo_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_page_is_current(program: ModuleType) -> None:
    assert PAGE.read_text(encoding="utf-8") == program.page(), "run docs/zoo_table.py again"


def test_every_model_is_in_the_one_table() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert cells(lines[0]) == ["model", "task", "data", "licence", "architecture", "parameters", "clean AUROC"]
    rows = {row[0].strip("`"): row for row in map(cells, lines[2:])}
    assert list(rows) == sorted(path.parent.name for path in (ROOT / "zoo").glob("*/card.json"))
    for name, row in rows.items():
        card = read_card(ROOT / "zoo" / name)
        assert len(row) == 7
        assert row[1].endswith(" / ".join(card.head.labels))
        assert row[4] == card.architecture.target
        assert int(row[5].replace(",", "")) == card.architecture.num_parameters
        stated = [s for e in card.clean_eval for s in e.scores if s.metric == "auroc" and e.split == "test"]
        if not stated:
            assert row[6] == "-"
            continue
        value, low, high = (float(text) for text in re.findall(r"[\d.]+", row[6]))
        assert (value, low, high) == tuple(round(x, 3) for x in (stated[0].value, stated[0].low, stated[0].high))


def test_signs_of_the_markup_are_text(program: ModuleType) -> None:
    assert program._plain("a|b [c](d) *e* <f>") == r"a\|b \[c\](d) \*e\* \<f>"
