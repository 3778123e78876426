# SPDX-License-Identifier: Apache-2.0
"""``.. json-table:: file.json``: a table of a committed JSON file, so that no figure here is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata


def _columns(text: str) -> list[tuple[str, str, str]]:
    """``Heading = key`` or ``Heading = key:format`` for each line, ``key`` dotted where the objects are nested."""
    rows = []
    for line in filter(None, map(str.strip, text.splitlines())):
        heading, _, path = line.partition("=")
        key, _, spec = path.strip().partition(":")
        rows.append((heading.strip(), key, spec))
    return rows


def _cell(record: Any, key: str, spec: str) -> str:
    """Text of one value; an absent one is empty, and a format is for numbers only."""
    for part in filter(None, key.split(".")):
        record = record.get(part) if isinstance(record, dict) else None
    if record is None:
        return ""
    return format(record, spec) if spec else str(record)


class JsonTable(SphinxDirective):
    """Rows are the entries of a list in the file; ``:rows:`` is the dotted way there, ``:columns:`` what to show."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {
        "rows": directives.unchanged,
        "columns": directives.unchanged_required,
        "caption": directives.unchanged,
    }

    def run(self) -> list[nodes.Node]:
        relative, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(relative)
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
        for part in filter(None, self.options.get("rows", "").split(".")):
            rows = rows[part]
        columns = _columns(self.options["columns"])
        lines = [f".. list-table:: {self.options.get('caption', '')}".rstrip(), "   :header-rows: 1", ""]
        for record in [None, *rows]:
            cells = [heading if record is None else _cell(record, key, spec) for heading, key, spec in columns]
            lines += [f"   {'*' if n == 0 else ' '} - {text}" for n, text in enumerate(cells)]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("json-table", JsonTable)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
