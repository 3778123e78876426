# SPDX-License-Identifier: Apache-2.0
"""What setup.cfg, tox.ini, constraints.txt and the documentation say about the tree, compared with the tree."""

from __future__ import annotations

import ast
import configparser
import fnmatch
import hashlib
import json
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import art_medical
from art_medical import errors

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "art_medical"
OPTIONAL = ("torchvision", "train")  # extras whose packages the package imports only where they are needed
EMBEDDED_BYTES = 300_000  # most that the weights of an embedded model may take
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # sha256 of the text as published
PERMISSIVE = r"0BSD|Apache|BSD|BSL-1\.0|CC0-1\.0|ISC|MIT|MPL-2\.0|PSF|Python Software Foundation|Zlib"


def config(name: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser()
    parser.read_string((ROOT / name).read_text(encoding="utf-8"))
    return parser


SETUP = config("setup.cfg")
TOX = config("tox.ini")


def lines(parser: configparser.RawConfigParser, section: str, option: str) -> list[str]:
    return [line.strip() for line in parser[section][option].splitlines() if line.strip()]


def requirements(section: str, option: str) -> list[Requirement]:
    return [Requirement(line) for line in lines(SETUP, section, option)]


INSTALL = requirements("options", "install_requires")
PINS = [Requirement(r) for r in (ROOT / "constraints.txt").read_text().splitlines() if r and not r.startswith("#")]
TREE = sorted(path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def pinned(name: str, python: str) -> list[str]:
    """Versions of one distribution that constraints.txt names for one Python."""
    environment = {"python_version": python}
    found = [p for p in PINS if p.name == canonicalize_name(name)]
    return [str(p.specifier).removeprefix("==") for p in found if not p.marker or p.marker.evaluate(environment)]


def test_every_package_is_listed() -> None:
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in TREE if path.suffix == ".py"}
    assert sorted(lines(SETUP, "options", "packages")) == sorted(folders | {"art_medical._zoo"})


def test_every_data_file_is_listed() -> None:
    patterns = [p.removeprefix("**/") for p in lines(SETUP, "options.package_data", "art_medical")]
    others = [path.name for path in TREE if path.suffix != ".py"]
    assert [name for name in others if not any(fnmatch.fnmatch(name, p) for p in patterns)] == []


def test_the_zoo_holds_one_program() -> None:
    """A module right in ``zoo/`` is part of the wheel as ``art_medical._zoo``: this one checks the cards there too."""
    assert [path.name for path in (ROOT / "zoo").glob("*.py")] == ["evaluate_all.py"]


@pytest.mark.parametrize(
    "model", sorted(p.name for p in (ROOT / "zoo").iterdir() if p.is_dir() and p.name != "__pycache__")
)
def test_a_model_folder_is_complete(model: str) -> None:
    folder = ROOT / "zoo" / model
    weights = list(folder.glob("*.safetensors"))
    assert [name for name in ("card.json", "README.md") if not (folder / name).is_file()] == []
    if "hub" in json.loads((folder / "card.json").read_text(encoding="utf-8")):  # others made and publish the weights
        assert sorted(path.name for path in folder.iterdir()) == ["README.md", "card.json"]
        return
    assert (folder / "recipe.yaml").is_file() != (folder / "train.py").is_file()
    assert weights
    if model.startswith("phantom-"):
        assert sum(path.stat().st_size for path in weights) < EMBEDDED_BYTES


def test_every_import_is_declared() -> None:
    optional = [r for extra in OPTIONAL for r in requirements("options.extras_require", extra)]
    declared = {canonicalize_name(r.name) for r in INSTALL + optional}
    providers = packages_distributions()
    undeclared = set()
    for path in TREE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path.suffix == ".py" else ():
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"art_medical"}:
                if not declared & {canonicalize_name(name) for name in providers.get(top, [top])}:
                    undeclared.add(f"{path.relative_to(ROOT)}: {top}")
    assert undeclared == set()


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_requirement_has_one_pin_that_it_allows(python: str) -> None:
    wanted = INSTALL + [r for extra in ("test", "docs") for r in requirements("options.extras_require", extra)]
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"python_version": python}):
            continue
        versions = pinned(requirement.name, python)
        assert len(versions) == 1, requirement.name
        assert requirement.specifier.contains(versions[0]), f"{requirement} against {versions[0]}"


def test_one_torch_everywhere() -> None:
    assert [str(pin) for pin in PINS if pin.name == "torch"] == ["torch==2.13.0"]


def test_the_art_matrix_is_what_setup_cfg_supports() -> None:
    art = next(r for r in INSTALL if r.name == "adversarial-robustness-toolbox")
    matrix = re.findall(r"art(\d)(\d\d):.*adversarial-robustness-toolbox==(\S+)", (ROOT / "tox.ini").read_text())
    assert [version.split(".")[:2] for _, _, version in matrix] == [[major, minor] for major, minor, _ in matrix]
    assert [minor for _, minor, _ in matrix] == ["18", "19", "20"]
    assert all(art.specifier.contains(version) for _, _, version in matrix)
    assert not art.specifier.contains("1.21.0")
    assert not art.specifier.contains("1.18.1")


def test_every_supported_python_has_an_environment() -> None:
    classifiers = lines(SETUP, "metadata", "classifiers")
    minors = [m[1] for c in classifiers if (m := re.fullmatch(r"Programming Language :: Python :: 3\.(\d+)", c))]
    assert f"testenv:py3{{{','.join(minors)}}}" in TOX.sections()
    assert SETUP["options"]["python_requires"] == f">=3.{minors[0]}"


def test_every_file_names_its_licence() -> None:
    files = [
        path for name in ("art_medical", "benchmarks", "docs", "tests", "zoo") for path in (ROOT / name).rglob("*.py")
    ]
    bare = [
        str(p) for p in files if not p.read_text(encoding="utf-8").startswith("# SPDX-License-Identifier: Apache-2.0\n")
    ]
    assert bare == []
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2


def test_every_dependency_is_permissively_licensed() -> None:
    table = {row["name"]: row for row in json.loads((ROOT / "docs" / "licences.json").read_text(encoding="utf-8"))}
    assert {canonicalize_name(r.name) for r in INSTALL} == {name for name, row in table.items() if row["direct"]}
    stale = {name: row["version"] for name, row in table.items() if pinned(name, "3.11") != [row["version"]]}
    assert stale == {}, "run docs/licences.py again"
    for name, row in table.items():
        terms = re.split(r" AND | OR ", row["licence"])
        assert [term for term in terms if not re.match(PERMISSIVE, term)] == [], name


def test_every_exit_code_is_documented() -> None:
    text = (ROOT / "docs" / "exit-codes.rst").read_text(encoding="utf-8")
    table = {}
    for row in re.split(r"^   \* - ", text, flags=re.M)[2:]:
        code = int(row.split()[0])
        table.update(dict.fromkeys(re.findall(r"errors\.(\w+)`", row), code))
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.ArtMedicalError)]
    assert table == {kind.__name__: kind.exit_code for kind in kinds}


def test_readme_opens_with_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", readme, flags=re.S)
    assert blocks[0] == "pip install -c constraints.txt . && art-medical evaluate\n"
    assert blocks[1] == "pip install -c constraints.txt tox && tox\n"
    assert blocks[1].strip() in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)
    assert headings[0] == art_medical.__version__
