# SPDX-License-Identifier: Apache-2.0
"""Results of a study: JSON is the record, everything else is rendered from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from art_medical.evaluation.store import Arrays, to_json
from art_medical.evaluation.study import Study

SCHEMA = "art-medical/results@1"


@dataclass(frozen=True)
class Results:
    """What a study found.

    :param study: The study as validated.
    :param cells: One record for each cell, in the order of the study.
    :param checks: Checks over several cells: name, whether it passed, what was seen.
    :param provenance: Versions, hashes of models and images.
    :param arrays: Per-sample records of each cell, by its id.
    """

    study: Study
    cells: tuple[dict[str, Any], ...]
    checks: tuple[dict[str, Any], ...]
    provenance: dict[str, Any]
    arrays: dict[str, Arrays]

    def to_json(self) -> str:
        """Text of ``results.json``, schema ``art-medical/results@1``."""
        return to_json(
            {
                "schema": SCHEMA,
                "study": _finite(self.study.model_dump(mode="python", by_alias=True)),
                "cells": list(self.cells),
                "checks": list(self.checks),
                "provenance": self.provenance,
            }
        )


def _finite(value: Any) -> Any:
    """JSON has no infinity; a study may ask for it (``confidence: .inf``)."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return "inf" if value == float("inf") else value
