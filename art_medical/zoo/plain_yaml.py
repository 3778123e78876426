# SPDX-License-Identifier: Apache-2.0
"""YAML of others as data: no tags that build objects, no aliases, no merges, no repeated keys."""

from __future__ import annotations

from typing import Any

import yaml


def load_yaml(text: str) -> Any:
    """Mappings, lists and scalars; the caller bounds the length, since PyYAML takes 10 seconds for one MiB.

    :raises yaml.YAMLError: If it is no YAML, or has a tag that plain data has not.
    :raises ValueError: If it has an alias or repeats a key; other errors of PyYAML's constructors are
        ``RecursionError``, ``ArithmeticError`` and ``TypeError``.
    """
    return yaml.load(text, Loader=_Loader)  # a SafeLoader that allows less


def unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A mapping of pairs with different keys, for YAML as for JSON.

    :raises ValueError: If a key is given twice.
    """
    result: dict[Any, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {shown(key)} is given twice")
        result[key] = value
    return result


def shown(value: Any) -> str:
    """A value in an error: strings and numbers as they are, shortened; of anything else only the type."""
    return repr(value)[:100] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, merges and repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"line {self.peek_event().start_mark.line + 1} has an alias; aliases are refused")  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        pairs = [(self.construct_object(key, deep=True), value) for key, value in node.value]
        return unique([(key, self.construct_object(value, deep=True)) for key, value in pairs])

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge keys (``<<``) stay what they are written as, and are then no argument that a network takes."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    return loader.construct_mapping(node)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
