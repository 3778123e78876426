# SPDX-License-Identifier: Apache-2.0
"""The network of a MONAI bundle, read from its configuration without running it.

A bundle's configuration is a small programming language (MONAI, "Bundle specification" and "Configuration syntax"):
strings that start with ``$`` are evaluated, ``_target_`` calls anything that can be imported, ``%`` includes other
files. Here it is data. One entry is taken, its ``_target_`` is looked up in :data:`TARGETS`, its arguments are literals
or references to literals, and everything else is refused by name; the rest of the file is not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from art_medical.errors import ModelError, UnsafeBundleError
from art_medical.zoo.networks import NETWORKS, check_arguments
from art_medical.zoo.plain_yaml import load_yaml, shown, unique

CONFIGURATIONS = tuple(
    f"configs/{stem}.{suffix}" for stem in ("inference", "train") for suffix in ("json", "yaml", "yml")
)
"""Files that may describe the network, in the order in which they are looked at."""

MOST_BYTES = {".json": 1 << 20, ".yaml": 1 << 17, ".yml": 1 << 17}
"""Length that is read: PyYAML takes 10 seconds for one MiB."""

MOST_REFERENCES = 8  # references that lead to references
MOST_DEPTH = 4  # lists and mappings inside an argument
MOST_VALUES = 1024

_ENTRIES = ("network_def", "net", "network")
_SWITCHES = frozenset({"pretrained", "progress", "weights"})  # of downloads; ours are off whatever the bundle says

TARGETS: dict[str, str] = {
    spelling: name
    for name, row in NETWORKS.items()
    if row.module is not None
    for spelling in (name, f"monai.networks.nets.{name}", f"monai.networks.nets.{row.module}.{name}")
}
"""Every ``_target_`` that a bundle may have, to the row of the allow-list that it means."""


@dataclass(frozen=True)
class BundleNetwork:
    """What a bundle says of its network, in the words of a card.

    :param target: A key of :data:`~art_medical.zoo.networks.NETWORKS`.
    :param args: Literals, as in the card's ``architecture.args``.
    """

    target: str
    args: dict[str, Any]


def read_bundle(configurations: Mapping[str, bytes]) -> BundleNetwork:
    """The network of a bundle from the first of :data:`CONFIGURATIONS` that there is.

    :param configurations: Contents by name, for instance ``configs/inference.json``.
    :raises UnsafeBundleError: If there is none, or it breaks a rule; a later file does not make up for an earlier one.
    """
    for name in CONFIGURATIONS:
        if name in configurations:
            return read_network(configurations[name], name)
    raise UnsafeBundleError(f"the bundle has none of {', '.join(CONFIGURATIONS)}")


def read_network(text: bytes, name: str) -> BundleNetwork:
    """The network of one configuration file.

    :param text: Content of the file.
    :param name: Its name, which tells JSON from YAML and stands in every error.
    :raises UnsafeBundleError: With file, key and rule, if the file cannot be read as data.
    """
    config = _parse(text, name)
    key = _entry(config, name)
    where = f"{name}: {key}"
    entry: dict[Any, Any] = config[key]
    target = entry.get("_target_")
    if not isinstance(target, str) or target not in TARGETS:
        raise UnsafeBundleError(
            f"{where}._target_: {shown(target)} is not on the allow-list: {', '.join(sorted(set(TARGETS.values())))}"
        )
    literals = _Literals(config)
    arguments = {
        argument: literals.value(value, f"{where}.{argument}")
        for argument, value in entry.items()
        if _is_argument(argument, where)
    }
    row = NETWORKS[TARGETS[target]]
    try:
        arguments = row.from_bundle(arguments)
        arguments = {argument: value for argument, value in arguments.items() if argument not in _SWITCHES}
        check_arguments(TARGETS[target], arguments)
    except ModelError as error:
        raise UnsafeBundleError(f"{where}: {error}") from error
    return BundleNetwork(TARGETS[target], arguments)


# -- text to data ------------------------------------------------------------------------------------------------------


def _parse(text: bytes, name: str) -> dict[str, Any]:
    """The file as a mapping, without repeated keys and aliases."""
    suffix = PurePosixPath(name).suffix
    if suffix not in MOST_BYTES:
        raise UnsafeBundleError(f"{name}: only .json, .yaml and .yml configurations are read")
    if len(text) > MOST_BYTES[suffix]:
        raise UnsafeBundleError(f"{name} has {len(text)} bytes; a {suffix} file has at most {MOST_BYTES[suffix]}")
    try:
        if suffix == ".json":
            data = json.loads(text.decode(), object_pairs_hook=unique, parse_constant=_not_finite)
        else:
            data = load_yaml(text.decode())
    except (yaml.YAMLError, ValueError, RecursionError, ArithmeticError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UnsafeBundleError(f"{name} cannot be read as data: {reason}") from error
    if not isinstance(data, dict):
        raise UnsafeBundleError(f"{name}: a configuration is a mapping, got {shown(data)}")
    return data


def _not_finite(text: str) -> float:
    raise ValueError(f"{text} is no finite number")


# -- the one entry -----------------------------------------------------------------------------------------------------


def _entry(config: dict[str, Any], name: str) -> str:
    """Key of the network: ``network_def``, else the one of ``net`` and ``network`` that is a mapping."""
    for key in config:
        root = str(key).lstrip("+").replace("#", "::").partition("::")[0]
        if str(key).startswith("+") or (root != key and root in _ENTRIES):
            raise UnsafeBundleError(f"{name}: {shown(key)}: keys that merge into another entry are refused")
    if "network_def" in config:
        found = ["network_def"]
    else:
        found = [key for key in _ENTRIES if isinstance(config.get(key), dict)]
    if len(found) != 1 or not isinstance(config[found[0]], dict):
        raise UnsafeBundleError(
            f"{name}: one of {', '.join(_ENTRIES)} must be a mapping; {', '.join(found) or 'none'} is found"
        )
    return found[0]


def _is_argument(key: Any, where: str) -> bool:
    """Whether a key of a component is an argument; reserved keys and keys that change others are refused."""
    if not isinstance(key, str):
        raise UnsafeBundleError(f"{where}: {shown(key)}: names of arguments are strings")
    if key in ("_target_", "_desc_"):
        return False
    if key.startswith("_"):
        raise UnsafeBundleError(
            f"{where}.{key}: the reserved key {key!r} is refused; only _target_ and _desc_ are read"
        )
    if key.startswith("+"):
        raise UnsafeBundleError(f"{where}.{key}: keys that merge into another entry are refused")
    return True


@dataclass
class _Literals:
    """Values of arguments, with references replaced by the literals that they lead to.

    :param config: The whole file, for references.
    :param left: Values that may still be looked at: references to lists of references multiply.
    """

    config: dict[str, Any]
    left: int = MOST_VALUES

    def value(self, value: Any, where: str, seen: tuple[str, ...] = (), depth: int = 0) -> Any:
        """:param seen: References on the way here."""
        self.left -= 1
        if self.left < 0:
            raise UnsafeBundleError(f"{where}: the arguments hold more than {MOST_VALUES} values")
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return self._string(value, where, seen, depth)
        if not isinstance(value, dict | list):
            raise UnsafeBundleError(f"{where}: an argument must be a literal, got {shown(value)}")
        if depth == MOST_DEPTH:
            raise UnsafeBundleError(f"{where}: arguments are nested deeper than {MOST_DEPTH} levels")
        if isinstance(value, list):
            return [self.value(v, f"{where}[{i}]", seen, depth + 1) for i, v in enumerate(value)]
        if "_target_" in value:
            raise UnsafeBundleError(f"{where}._target_: a component inside a component is refused")
        return {
            key: self.value(v, f"{where}.{key}", seen, depth + 1)
            for key, v in value.items()
            if _is_argument(key, where)
        }

    def _string(self, value: str, where: str, seen: tuple[str, ...], depth: int) -> Any:
        if value.startswith("$"):
            raise UnsafeBundleError(f"{where}: {shown(value)} is an expression; expressions are refused")
        if value.startswith("%"):
            raise UnsafeBundleError(f"{where}: {shown(value)} includes another text; includes are refused")
        if not value.startswith("@"):
            return value
        if value in seen:
            raise UnsafeBundleError(f"{where}: the reference {shown(value)} leads back to itself")
        if len(seen) == MOST_REFERENCES:
            raise UnsafeBundleError(f"{where}: more than {MOST_REFERENCES} references lead to one another")
        found = self.config
        for part in _path(value, where):
            if not isinstance(found, dict) or part not in found:
                raise UnsafeBundleError(f"{where}: the reference {shown(value)} leads to no entry of the file")
            found = found[part]
        return self.value(found, where, (*seen, value), depth)


def _path(reference: str, where: str) -> Iterator[str]:
    """Keys that a reference goes through: ``@a``, ``@a::b`` and the old ``@a#b``."""
    for part in reference[1:].replace("#", "::").split("::"):
        if not part.isidentifier() or part.startswith("_"):
            raise UnsafeBundleError(f"{where}: the reference {shown(reference)} is no plain name of an entry")
        yield part
