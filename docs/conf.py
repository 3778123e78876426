# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration; ``tox -e docs`` builds the pages and treats every warning as an error."""

from __future__ import annotations

import sys
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains import Domain

import art_medical

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "art-medical"
author = "The art-medical authors"
project_copyright = "The art-medical authors, Apache-2.0"
version = release = art_medical.__version__

extensions = ["sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.doctest", "json_table", "myst_parser"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {
    "description": "Adversarial robustness of medical image classifiers",
    "fixed_sidebar": True,
    "page_width": "70rem",
}
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]

# The reference is generated from the tree, so that a new module is documented the day it is written.
apidoc_modules = [
    {
        "path": "../art_medical",
        "destination": "api",
        "separate_modules": True,
        "module_first": True,
        "no_headings": True,
    }
]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "model_config, model_post_init"}

autodoc_inherit_docstrings = False

# Bases in other libraries and private bases have no page here; what prose refers to must have one.
nitpick_ignore_regex = [
    (r"py:.*", r"(abc|art|collections|monai|numpy|pathlib|pydantic|torch)\..*"),
    (r"py:.*", r"(.*\.)?_\w+"),
]


def _from_annotation(app: Sphinx, domain: Domain, node: pending_xref) -> bool | None:
    """Let names in type annotations be plain text where they are not ours; a role in prose has a literal inside."""
    return None if isinstance(node[0], nodes.literal) else True


def setup(app: Sphinx) -> None:
    app.connect("warn-missing-reference", _from_annotation)
