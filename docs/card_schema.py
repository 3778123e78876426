# SPDX-License-Identifier: Apache-2.0
"""Write ``card.schema.json``, the JSON schema of model cards: ``python docs/card_schema.py``."""

from __future__ import annotations

import json
from pathlib import Path

from art_medical.zoo.cards import SCHEMA, Card

TARGET = Path(__file__).with_name("card.schema.json")


def schema_text() -> str:
    """The schema as the file holds it; rules that concern several entries are in the documentation of the classes."""
    schema = Card.model_json_schema(by_alias=True)
    header = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA}
    return json.dumps({**header, **schema}, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(schema_text(), encoding="utf-8")
    print(f"wrote {TARGET}")
