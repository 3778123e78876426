# SPDX-License-Identifier: Apache-2.0
"""Scores go from the test split into the card and its page, and nowhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from sklearn.metrics import roc_auc_score

from art_medical import load
from art_medical.errors import ModelError
from art_medical.evaluation import scorecard
from art_medical.images.phantoms import LumpyPhantom
from art_medical.zoo.cards import read_card
from art_medical.zoo.registry import _own_zoo


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a small model without scores, and fewer phantoms than a real scoring takes."""
    monkeypatch.setattr(scorecard, "_PHANTOMS", 60)
    copy = tmp_path / "phantom-hotelling"
    shutil.copytree(_own_zoo() / "phantom-hotelling", copy)
    card = read_card(copy).model_copy(update={"clean_eval": ()})
    (copy / "card.json").write_text(card.to_json(), encoding="utf-8")
    (copy / "README.md").unlink()
    return copy


def test_scores_are_those_of_the_test_split(folder):
    before = read_card(folder)
    scored = scorecard.score(folder, None)
    assert read_card(folder) == scored
    assert scored.model_copy(update={"clean_eval": ()}) == before
    (entry,) = scored.clean_eval
    x, y = LumpyPhantom().sample(60, seed=0, split="test")
    auroc = next(s for s in entry.scores if s.metric == "auroc")
    assert auroc.value == pytest.approx(roc_auc_score(y, load(folder).predict_proba(x)[:, 1]))
    assert (entry.dataset, entry.split, entry.n) == ("phantom", "test", 60)


def test_scoring_again_replaces_the_entry(folder, monkeypatch):
    scorecard.score(folder, None)
    monkeypatch.setattr(scorecard, "_PHANTOMS", 40)
    assert [entry.n for entry in scorecard.score(folder, None).clean_eval] == [40]


def test_page_states_what_the_card_states(folder):
    scored = scorecard.score(folder, None)
    _, front, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    results = yaml.safe_load(front)["model-index"][0]["results"][0]
    assert {m["type"]: m["value"] for m in results["metrics"]} == {
        s.metric: round(s.value, 4) for s in scored.clean_eval[0].scores
    }
    for score in scored.clean_eval[0].scores:
        assert f"| {score.metric} | {score.value:.3f} [{score.low:.3f}, {score.high:.3f}] |" in body
    assert all(fault in body for fault in scored.known_faults)


def test_wrong_kind_of_images_leaves_the_card_alone(folder, tmp_path):
    before = (folder / "card.json").read_bytes()
    with pytest.raises(ModelError, match="models of phantoms, and no others, need no --data"):
        scorecard.score(folder, tmp_path)
    assert (folder / "card.json").read_bytes() == before
    assert json.loads(before)["clean_eval"] == []
