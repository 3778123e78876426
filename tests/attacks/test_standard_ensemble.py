# SPDX-License-Identifier: Apache-2.0
"""The standard ensemble: the true robust accuracy of linear models with every head, and what it is made of."""

from __future__ import annotations

import math

import numpy as np
import pytest

from art_medical.attacks import (
    AutoProjectedGradientDescent,
    FastMinimumNorm,
    Square,
    StandardEnsemble,
)
from art_medical.errors import InputError

NORMS = {"linf": np.inf, "l2": 2}
HEADS = [(2, "one-logit"), (2, "softmax"), (2, "multi-label"), (3, "one-logit"), (3, "softmax"), (3, "multi-label")]
SHORT = {"max_iter": 12, "max_queries": 10}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("axes", "head"), HEADS)
def test_finds_the_true_robust_accuracy_of_a_linear_model(linear_phantoms, axes, head, norm):
    classifier, observer, x, _ = linear_phantoms(axes, head)
    need = observer.smallest_perturbation(x, norm, classifier.domain)
    budget = float(np.median(need))
    attack = StandardEnsemble(classifier, norm=NORMS[norm], eps=budget, quantise=False, **SHORT)
    attacked = attack.generate(x)
    fooled = classifier.predict(attacked).argmax(1) != classifier.predict(x).argmax(1)
    assert (attack.record.success == fooled).all()
    assert fooled[need < budget / 1.05].all() and not fooled[need > budget].any()
    length = np.abs(attacked - x).reshape(len(x), -1).max(1) if norm == "linf" else attack.record.l2
    assert (length <= budget + 1e-3).all()  # pixels of some 1600 in float32


def test_stored_images_at_every_whole_budget(linear_phantoms):
    classifier, observer, x, _ = linear_phantoms(2)
    need = observer.smallest_stored_perturbation(x, classifier.domain)
    for budget in (1, 4, 16):
        attack = StandardEnsemble(classifier, eps=budget, **SHORT)
        attacked = attack.generate(x)
        assert classifier.domain.on_grid(attacked, tolerance=0)
        assert (attack.record.success == (need <= budget)).all()


def test_is_made_of_what_it_says_and_follows_its_parameters(linear_phantoms):
    classifier, *_ = linear_phantoms(2)
    attack = StandardEnsemble(classifier, norm=2, eps=50, nb_restarts=2, seed=4, targeted=True)
    attack.set_params(eps=60.0, max_queries=70)
    members = attack.members()
    kinds = [AutoProjectedGradientDescent, AutoProjectedGradientDescent, FastMinimumNorm, Square]
    assert [type(member) for member in members] == kinds
    assert [member.loss_type for member in members[:2]] == ["cross_entropy", "margin"]
    assert [member.max_iter for member in members] == [100, 100, 100, 70]
    assert {(member.norm, member.eps, member.seed, member.targeted) for member in members} == {(2, 60.0, 4, True)}
    assert [member.num_random_init for member in members[:2]] == [2, 2]
    assert [member.nb_restarts for member in members[2:]] == [2, 2]
    patient = StandardEnsemble(classifier, confidence=math.inf)
    assert [member.confidence for member in patient.members()] == [math.inf, math.inf, 0, math.inf]


def test_costs_of_all_attacks_are_paid_by_what_stands(linear_phantoms):
    classifier, observer, x, _ = linear_phantoms(2)
    need = observer.smallest_stored_perturbation(x, classifier.domain)
    attack = StandardEnsemble(classifier, eps=4, **SHORT)
    attack.generate(x)
    robust = need > 4
    assert robust.any() and not robust.all()
    # Two APGDs and FMN of 12 steps and a look each, Square with 10 queries and a look.
    assert (attack.cost.forward[robust] == 3 * 13 + 11).all()
    assert (attack.cost.backward[robust] == 3 * 12).all()
    assert (attack.cost.forward[~robust] < 3 * 13 + 11).all() and (attack.record.winner[~robust] >= 0).all()


def test_never_calls_itself_by_the_name_of_the_published_ensemble():
    assert "AutoAttack" not in StandardEnsemble.__name__
    assert "not the published" in StandardEnsemble.facts.paper
    assert "not" in StandardEnsemble.__doc__ and "AutoAttack itself" in StandardEnsemble.__doc__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": 1}, "norm must be np.inf or 2, got 1"),
        ({"eps": 0}, "eps must be positive"),
        ({"max_iter": 0}, "max_iter must be a positive whole number"),
        ({"max_queries": 0}, "max_queries must be a positive whole number"),
        ({"nb_restarts": 0}, "nb_restarts must be a positive whole number"),
        ({"confidence": -1}, "confidence is a margin"),
    ],
)
def test_wrong_parameters_are_refused(linear_phantoms, arguments, message):
    classifier, *_ = linear_phantoms(2)
    with pytest.raises(InputError, match=message):
        StandardEnsemble(classifier, **arguments)
