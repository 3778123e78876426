# SPDX-License-Identifier: Apache-2.0
"""``import art_medical`` is cheap, and imports inside the package point one way (docs/architecture.rst)."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import art_medical

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "torchvision", "monai", "art", "huggingface_hub", "matplotlib", "sklearn", "scipy"}

# What each part may import besides itself. A new part needs a line of its own here.
BASE = {"domain", "errors"}
OFFERED = BASE | {"estimators", "zoo"}  # homes of what art_medical/__init__.py offers
ALLOWED = {
    "errors": set(),
    "console": set(),
    "domain": {"errors"},
    "estimators": BASE,
    "images": BASE | {"estimators.steps"},
    "zoo": BASE | {"estimators", "images"},
    "training": BASE | {"estimators", "images", "zoo"},
    "attacks": BASE | {"estimators", "images", "zoo"},
    "evaluation": BASE | {"estimators", "images", "zoo", "attacks"},
    "testing": BASE | {"estimators", "images", "zoo", "attacks", "evaluation"},
    "cli_zoo": BASE | {"console", "estimators", "images", "zoo", "training", "attacks", "evaluation"},
    "cli": BASE | {"cli_zoo", "console", "estimators", "images", "zoo", "training", "attacks", "evaluation"},
}


def imports(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """Full names of what a module imports anywhere in it: at the top, in functions, and for type checkers only."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            prefix = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports of ``art_medical.<part>...`` that the table above does not allow to a module of another part."""
    part = module.split(".")[1]
    found = []
    for name in imports(source, module, is_package):
        top, _, inner = name.partition(".")
        if top != "art_medical" or inner.split(".")[0] == part or inner == "__version__":
            continue
        # The package's front door stands for everything that it hands out.
        targets = OFFERED if inner == "" or inner in art_medical.__all__ else {inner}
        if not all(any(f"{t}.".startswith(f"{allowed}.") for allowed in ALLOWED[part]) for t in targets):
            found.append(f"{module} imports {name}")
    return found


def modules() -> list[tuple[str, Path]]:
    package = ROOT / "art_medical"
    names = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return [(name, path) for name, path in names if name != "art_medical"]


@pytest.mark.parametrize("module", ["art_medical", "art_medical.cli"])
def test_import_is_cheap(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert HEAVY.intersection(json.loads(child.stdout)) == set()


def test_every_part_has_a_rule() -> None:
    assert {name.split(".")[1] for name, _ in modules()} == set(ALLOWED)


def test_rules_have_no_cycle() -> None:
    order: list[str] = []
    while len(order) < len(ALLOWED):
        ready = [p for p in ALLOWED if p not in order and {t.split(".")[0] for t in ALLOWED[p]} <= set(order)]
        assert ready, f"a cycle among {sorted(set(ALLOWED) - set(order))}"
        order += ready
    assert order[-1] == "cli"


def test_the_front_door_offers_what_the_rules_say() -> None:
    source = (ROOT / "art_medical" / "__init__.py").read_text(encoding="utf-8")
    homes = {
        name.split(".")[1]
        for name in imports(source, "art_medical", is_package=True)
        if name.startswith("art_medical.")
    }
    assert homes == OFFERED


def test_imports_point_one_way() -> None:
    found = [v for name, path in modules() for v in violations(path.read_text(), name, path.name == "__init__.py")]
    assert found == []


@pytest.mark.parametrize(
    ("module", "source", "count"),
    [
        ("art_medical.estimators.heads", "from art_medical.zoo import cards", 1),
        ("art_medical.estimators.heads", "def f():\n    import art_medical.images.dicom", 1),
        ("art_medical.estimators.heads", "if TYPE_CHECKING:\n    from ..attacks.loop import run", 1),
        ("art_medical.estimators.heads", "from .. import zoo, attacks", 2),
        ("art_medical.estimators.heads", "from art_medical import load", 1),
        ("art_medical.images.dicom", "from art_medical.estimators.classifier import MedicalClassifier", 1),
        ("art_medical.images.dicom", "from art_medical.estimators.steps import Window", 0),
        ("art_medical.zoo.cards", "from . import weights\nfrom art_medical.images.image import read", 0),
        ("art_medical.domain", "from art_medical.errors import InputError\nimport numpy as np", 0),
        ("art_medical.evaluation.study", "from art_medical import __version__", 0),
        ("art_medical.evaluation.study", "import art_medical", 0),
        ("art_medical.images.dicom", "import art_medical", 1),
    ],
)
def test_the_check_sees_what_it_must(module: str, source: str, count: int) -> None:
    assert len(violations(source, module)) == count
