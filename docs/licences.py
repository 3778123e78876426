# SPDX-License-Identifier: Apache-2.0
"""Write ``licences.json``: every distribution that ``pip install art-medical`` brings, with the licence that it states.

    python docs/licences.py

Run it where the package is installed. The statement comes from the metadata of each distribution: the SPDX expression,
else the classifiers, else the first line of the free text.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def required(name: str) -> list[str]:
    """Names of what a distribution needs on this machine, extras left out."""
    found = [Requirement(text) for text in distribution(name).requires or ()]
    return sorted(canonicalize_name(r.name) for r in found if r.marker is None or r.marker.evaluate({"extra": ""}))


def stated_licence(installed: Distribution) -> str:
    """What the metadata says, in one line."""
    meta = installed.metadata.json
    classifiers = [c.split(" :: ")[-1] for c in meta.get("classifier", ()) if c.startswith("License :: ")]
    free = str(meta.get("license", "")).strip().splitlines() or [""]
    return str(meta.get("license_expression") or " AND ".join(classifiers) or free[0] or "not stated")


def table(root: str) -> list[dict[str, object]]:
    """One record for each distribution under ``root``, the direct requirements first."""
    direct, seen, queue = set(required(root)), {root}, [root]
    while queue:
        for name in required(queue.pop()):
            try:
                distribution(name)
            except PackageNotFoundError:
                continue
            if name not in seen:
                seen.add(name)
                queue.append(name)
    records: list[dict[str, object]] = []
    for name in sorted(seen - {root}, key=lambda n: (n not in direct, n)):
        installed = distribution(name)
        version = re.sub(r"\+.*", "", installed.version)
        records.append(
            {"name": name, "version": version, "direct": name in direct, "licence": stated_licence(installed)}
        )
    return records


if __name__ == "__main__":
    target = Path(__file__).with_name("licences.json")
    target.write_text(json.dumps(table("art-medical"), indent=1) + "\n", encoding="utf-8")
