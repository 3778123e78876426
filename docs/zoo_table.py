# SPDX-License-Identifier: Apache-2.0
"""Write ``zoo.md``, the page with one table of all models, from the cards in ``zoo/``: ``python docs/zoo_table.py``."""

from __future__ import annotations

from pathlib import Path

from art_medical.zoo.cards import Card, read_card
from art_medical.zoo.summary import summarise

ZOO = Path(__file__).resolve().parents[1] / "zoo"
TARGET = Path(__file__).with_name("zoo.md")
HEADINGS = ("model", "task", "data", "licence", "architecture", "parameters", "clean AUROC")
PAGE = """\
<!-- Written by docs/zoo_table.py from the cards in zoo/; change a card and run it again. -->

# The models

`art-medical zoo list` shows this table for what is registered on your machine, models of
[other packages](own-models.rst) among them, and `art_medical.load("NAME")` loads a model. `zoo/NAME` holds its card,
page, weights and recipe.

{table}

Licence is that of the weights; behind the data set is its own. Clean AUROC is measured on unattacked images of the test
split, with its 95 % interval, the mean over them where a model has several labels. Where a choice was made after a test
score had been seen, the card says so.
`python zoo/evaluate_all.py --data DIR` measures every figure on the cards again. Models whose name begins with `monai-`
are those that MONAI publishes on the Hub; this project has not measured them, so their cards state no figure.

`...-surrogate` is an independent training of the same architecture, `...-densenet` and `...-resnet` are of another
family, both for black-box attacks; `...-at` is trained on attacked images.

None of these models is a medical device. How they are kept from doing harm to the machine that loads them is in
[Safe loading](safe-loading.rst), what a card says in [Model cards](model-cards.rst).
"""


def page() -> str:
    """The text of the page for the cards as they are."""
    cards = sorted((read_card(path.parent) for path in ZOO.glob("*/card.json")), key=lambda card: card.name)
    rows = [HEADINGS, *(_row(card) for card in cards)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("---:" if name == "parameters" else "---" for name in HEADINGS) + "|")
    return PAGE.format(table="\n".join(lines))


def _row(card: Card) -> tuple[str, ...]:
    summary = summarise(card)
    data = _plain(summary.data)
    if card.data.doi:
        data = f"[{data}](https://doi.org/{card.data.doi})"
    if card.data.licence:
        data += f"; {_plain(card.data.licence)}"
    score = summary.auroc
    auroc = "-" if score is None else f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
    return (
        f"`{summary.name}`",
        _plain(summary.task),
        data,
        _plain(summary.licence.split(" (")[0]),
        summary.architecture,
        f"{summary.parameters:,}",
        auroc,
    )


def _plain(text: str) -> str:
    """Text of a card as text in a cell."""
    for sign in "\\|[]*_`<":
        text = text.replace(sign, "\\" + sign)
    return text


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    print(f"wrote {TARGET}")
