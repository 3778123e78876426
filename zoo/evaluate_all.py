# SPDX-License-Identifier: Apache-2.0
"""Recompute the clean metrics of every card from weights and data, and compare to 1e-6; no card is changed.

    python zoo/evaluate_all.py --data DIR [NAME ...]

``DIR`` holds the data sets by the names that the cards give them (``data.folder``); models of phantoms need none. Exit
code 1 when a figure differs or a model cannot be measured. Models that others publish on the Hub, and whose cards state
no figures, are passed over.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from art_medical.errors import ArtMedicalError
from art_medical.evaluation.recheck import TOLERANCE, Difference, data_of, recheck
from art_medical.zoo.cards import read_card

ZOO = Path(__file__).resolve().parent


def outcome(folder: Path, data: Path | None) -> tuple[bool, str, tuple[Difference, ...]]:
    """Whether one model is as stated, that in words, and the figures that differ."""
    try:
        card = read_card(folder)
        if not card.clean_eval and card.hub is not None:
            return True, "states no figures: others publish it", ()
        found = recheck(folder, data_of(card, data))
    except ArtMedicalError as error:
        return False, f"NOT MEASURED: {error}", ()
    return not found, "DIFFERS" if found else "agrees", found


def main(arguments: list[str] | None = None) -> int:
    """Check the models that the command line names, by default all; 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder that holds the data sets")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to check, by default all")
    options = parser.parse_args(arguments)
    present = sorted(path.parent.name for path in ZOO.glob("*/card.json"))
    unknown = sorted(set(options.names) - set(present))
    if unknown:
        parser.error(f"no model {unknown[0]!r} in {ZOO}")
    failed = False
    for name in options.names or present:
        good, text, found = outcome(ZOO / name, options.data)
        failed |= not good
        print(f"{name:32} {text}", flush=True)
        for row in found:
            print(f"  {row.what:32} card {row.stated!s:24} now {row.found!s:24}")
    print(f"tolerance {TOLERANCE:g}: " + ("at least one card is not reproduced" if failed else "all is as stated"))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
