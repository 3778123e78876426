# SPDX-License-Identifier: Apache-2.0
"""The contract of every attack in the catalogue; a new attack is tested the day it is listed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from art.attacks.attack import EvasionAttack

import art_medical.attacks as attacks
from art_medical.attacks import CATALOGUE, attack_class
from art_medical.errors import InputError

N = 6


@pytest.fixture(params=CATALOGUE)
def name(request):
    return request.param


@pytest.fixture
def ready(name, linear_phantoms, quick):
    """A factory of attacks of that name on the linear phantoms, fitted."""
    classifier, observer, x, _ = linear_phantoms(2)

    def make(**arguments):
        attack = attack_class(name)(classifier, **{**quick.get(name, {}), **arguments})
        if hasattr(attack, "fit"):
            attack.fit(x[N : 2 * N])
        return attack

    return make, classifier, x[:N], observer.decide(x[:N])


def test_is_an_art_attack_with_art_conventions(name, ready):
    make, *_ = ready
    attack = make()
    assert isinstance(attack, EvasionAttack)
    assert set(attack.attack_params) >= {"targeted", "quantise", "batch_size", "seed", "verbose"}
    assert all(hasattr(attack, parameter) for parameter in attack.attack_params)
    assert type(attack).__name__ in attacks.__all__ and getattr(attacks, type(attack).__name__) is type(attack)
    attack.set_params(batch_size=2)
    with pytest.raises((InputError, ValueError)):
        attack.set_params(batch_size=0)


def test_result_is_storable_like_the_input_and_the_record_is_true(ready):
    make, classifier, x, y = ready
    attack = make()
    before = x.copy()
    attacked = attack.generate(x, y)
    assert attacked.shape == x.shape and attacked.dtype == np.float32
    assert (x == before).all()
    assert classifier.domain.on_grid(attacked, tolerance=0)
    flipped = classifier.predict(attacked).argmax(1) != y
    assert (attack.record.success == flipped).all()
    assert (attack.record.unchanged == (attacked == x).all((1, 2, 3))).all()
    np.testing.assert_allclose(attack.record.linf, np.abs(attacked - x).max((1, 2, 3)))
    np.testing.assert_allclose(attack.record.l2, np.linalg.norm((attacked - x).reshape(N, -1), axis=1), rtol=1e-6)
    assert attack.cost.forward.shape == attack.cost.backward.shape == (N,)


def test_same_seed_same_bytes_and_alone_as_in_a_batch(ready):
    make, _, x, y = ready
    whole = make(seed=7).generate(x, y)
    assert (make(seed=7).generate(x, y) == whole).all()
    assert (make(seed=7).generate(x[2:3], y[2:3], ids=["2"]) == whole[2:3]).all()
    small = make(seed=7)
    small.set_params(batch_size=4)
    assert (small.generate(x, y) == whole).all()


def test_labels_in_every_form_mean_the_same(ready):
    make, classifier, x, y = ready
    expected = make().generate(x, y)
    for form in (y[:, None], classifier.encode(y), None):
        assert (make().generate(x, form) == expected).all()


def test_model_is_left_as_it_was(ready):
    make, classifier, x, y = ready
    classifier.network.train()
    random = torch.random.get_rng_state()
    make().generate(x, y)
    assert (torch.random.get_rng_state() == random).all()
    assert classifier.network.training
    assert all(p.requires_grad and p.grad is None for p in classifier.network.parameters())


def test_no_images_give_no_images(ready):
    make, _, x, y = ready
    assert make().generate(x[:0], y[:0]).shape == (0, *x.shape[1:])


def test_wrong_images_are_refused(ready):
    make, _, x, y = ready
    attack = make()
    for wrong, message in ((x[:, :, :32], "expected images of shape"), (np.full_like(x, np.nan), "must be finite")):
        with pytest.raises(InputError, match=message):
            attack.generate(wrong, y)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="unknown attack 'fgsm'; there are pgd"):
        attack_class("fgsm")
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = attacks.Nothing
