# SPDX-License-Identifier: Apache-2.0
"""Ensembles: per-sample worst case, only on samples that stand, with all costs and the winner on record."""

from __future__ import annotations

import math

import numpy as np
import pytest

from art_medical.attacks import (
    AdversarialPatch,
    FastMinimumNorm,
    ProjectedGradientDescent,
    RandomNoise,
    Square,
    WorstCase,
)
from art_medical.attacks.worst_case import WorstCaseRecord
from art_medical.errors import InputError


@pytest.fixture
def phantom(linear_phantoms):
    return linear_phantoms(2)


def test_each_attack_runs_on_what_the_ones_before_left(phantom):
    classifier, observer, x, _ = phantom
    need = observer.smallest_stored_perturbation(x, classifier.domain)
    small, large = (float(np.quantile(need, q)) // 1 for q in (0.3, 0.7))
    members = [ProjectedGradientDescent(classifier, eps=eps, eps_step=1, max_iter=int(eps)) for eps in (small, large)]
    ensemble = WorstCase(members)
    attacked = ensemble.generate(x)
    assert (ensemble.record.success == (need <= large)).all()
    assert isinstance(ensemble.record, WorstCaseRecord)
    assert (ensemble.record.winner == np.where(need <= small, 0, 1)).all()
    alone = [member.generate(x) for member in members]
    first = members[0].record
    left = need > small
    assert (attacked[~left] == alone[0][~left]).all() and (attacked[left] == alone[1][left]).all()
    # The union of costs: everything of the first attack, and of the second where the first has failed.
    for name in ("forward", "backward"):
        spent = getattr(first, name) + np.where(left, getattr(members[1].record, name), 0)
        assert (getattr(ensemble.cost, name)[left] == spent[left]).all()
        assert (np.abs(getattr(ensemble.cost, name) - spent) <= 1).all()  # company may carry a finished one on


def test_worst_of_all_when_every_attack_runs_on_every_sample(phantom):
    classifier, _, x, y = phantom
    members = [
        RandomNoise(classifier, eps=2, num_random_init=3, confidence=math.inf, seed=1),
        Square(classifier, eps=2, max_iter=20, confidence=math.inf),
        ProjectedGradientDescent(classifier, eps=2, max_iter=5, confidence=math.inf),
    ]
    ensemble = WorstCase(members, confidence=math.inf)
    attacked = ensemble.generate(x, y)
    right = np.eye(2)[y].astype(bool)
    own = np.stack([classifier.predict(member.generate(x, y))[right] for member in members])
    np.testing.assert_allclose(classifier.predict(attacked)[right], own.min(0), rtol=1e-5, atol=1e-5)
    assert (ensemble.record.winner == 2).all()  # a linear model: the gradient is the best there is
    assert (ensemble.cost.forward == sum(member.cost.forward for member in members)).all()


def test_clean_image_that_is_wrong_has_no_winner(phantom):
    classifier, _, x, _ = phantom
    wrong = 1 - classifier.predict(x).argmax(1)
    ensemble = WorstCase([ProjectedGradientDescent(classifier), FastMinimumNorm(classifier)])
    assert (ensemble.generate(x, wrong) == x).all()
    assert (ensemble.record.winner == -1).all() and ensemble.record.success.all()


def test_budget_for_each_sample_reaches_every_attack(phantom):
    classifier, observer, x, _ = phantom
    need = observer.smallest_stored_perturbation(x, classifier.domain)
    weak = RandomNoise(classifier, eps=np.ones(len(x)))
    ensemble = WorstCase([weak, FastMinimumNorm(classifier, eps=need, max_iter=40)], batch_size=7)
    attacked = ensemble.generate(x)
    assert ensemble.record.success.all()
    assert (np.abs(attacked - x).max((1, 2, 3)) <= need).all()


def test_mask_holds_for_all_and_patches_take_none(phantom):
    classifier, _, x, y = phantom
    mask = np.zeros((64, 64))
    mask[20:40, 20:40] = 1
    ensemble = WorstCase([RandomNoise(classifier, eps=9), ProjectedGradientDescent(classifier, eps=9)])
    assert not (ensemble.generate(x, y, mask=mask) != x)[..., mask == 0].any()
    patch = AdversarialPatch(classifier, nb_epochs=1)
    patch.fit(x[:4])
    with pytest.raises(InputError, match="WorstCase chooses its own place; mask is not supported"):
        WorstCase([patch, ProjectedGradientDescent(classifier)]).generate(x, y, mask=mask)


def test_same_alone_as_in_a_batch(phantom):
    classifier, _, x, y = phantom
    ensemble = WorstCase([RandomNoise(classifier, eps=2, seed=3), Square(classifier, eps=2, max_iter=20)])
    whole = ensemble.generate(x, y)
    assert (ensemble.generate(x[5:6], y[5:6], ids=["5"]) == whole[5:6]).all()
    ensemble.set_params(batch_size=5)
    assert (ensemble.generate(x, y) == whole).all()


def test_ensembles_that_make_no_sense_are_refused(phantom, linear_phantoms):
    classifier, *_ = phantom
    pgd = ProjectedGradientDescent(classifier)
    with pytest.raises(InputError, match="needs attacks, got none"):
        WorstCase([])
    with pytest.raises(InputError, match="takes attacks of this package, got str"):
        WorstCase([pgd, "square"])
    with pytest.raises(InputError, match="must be on one estimator"):
        WorstCase([pgd, ProjectedGradientDescent(linear_phantoms(2)[0])])
    with pytest.raises(InputError, match="some attacks of the ensemble are targeted"):
        WorstCase([pgd, ProjectedGradientDescent(classifier, targeted=True)])
    with pytest.raises(InputError, match="confidence is a margin"):
        WorstCase([pgd], confidence=-1)
