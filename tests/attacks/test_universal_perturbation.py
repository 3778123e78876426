# SPDX-License-Identifier: Apache-2.0
"""Universal perturbation: eps * sign(w) on linear models, success on images it has not seen, and its file."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from art_medical.attacks import UniversalPerturbation
from art_medical.domain import PixelDomain
from art_medical.errors import InputError
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.heads import Head
from art_medical.images.phantoms import PLANE

HU = PixelDomain(-1000, 1000, 2, "HU")


@pytest.fixture(scope="module")
def three_bands() -> MedicalClassifier:
    """Class k is the brightest of three bands of rows; in HU, steps of 2."""

    class Bands(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((1, 3)).unflatten(1, (3, 3)).mean(2) / 10

    return MedicalClassifier(
        Bands(), domain=HU, head=Head(kind="softmax", labels=("top", "middle", "bottom")), input_shape=(1, 9, 6)
    )


def bands(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    x = rng.normal(0, 20, (n, 1, 9, 6))
    for i, c in enumerate(y):
        x[i, :, 3 * c : 3 * c + 3] += 30
    return HU.quantise(x.astype(np.float32)), y


# -- closed forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("head", ["one-logit", "softmax", "multi-label"])
def test_targeted_on_a_linear_model_is_eps_times_the_sign_of_the_weights(linear_phantoms, axes, head):
    classifier, observer, x, _ = linear_phantoms(axes, head)
    attack = UniversalPerturbation(classifier, eps=4, targeted=True, confidence=math.inf, nb_epochs=5)
    attack.fit(x[:12])
    sign = np.sign(observer.template).astype(np.float32)
    on, off = (3, 2) if head == "multi-label" else (1, 0)
    visible = np.abs(classifier.network.readout.weight.detach().numpy()).reshape(-1, *sign.shape).max(0) > 0
    assert visible.all()
    assert (attack.deltas[on, 0] == 4 * sign).all() and (attack.deltas[off, 0] == -4 * sign).all()
    for target in (on, off):
        attacked = attack.generate(x[12:], np.full(12, target))
        expected = observer.decide(x[12:] + (4 if target == on else -4) * sign)
        assert (attack.record.success == (expected == target % 2)).all()
        assert (attacked == x[12:] + attack.deltas[target]).all()


def test_l2_on_a_linear_model_lies_along_the_weights(linear_phantoms):
    classifier, observer, x, _ = linear_phantoms(2)
    arguments = {"norm": 2, "eps": 100.0, "targeted": True, "confidence": math.inf}
    exact = UniversalPerturbation(classifier, quantise=False, **arguments)
    exact.fit(x[:8])
    expected = 100 * observer.template / np.linalg.norm(observer.template)
    np.testing.assert_allclose(exact.deltas[1, 0], expected, atol=1e-2)
    whole = UniversalPerturbation(classifier, **arguments)
    whole.fit(x[:8])
    assert (whole.deltas == whole.deltas.round()).all() and 90 < np.linalg.norm(whole.deltas[1]) <= 100
    # The part along the weights that rounding leaves.
    assert float((whole.deltas[1, 0] * expected).sum()) / 100 > 75


def test_untargeted_is_the_best_that_one_change_can_do_to_a_linear_model(linear_phantoms):
    classifier, observer, x, _ = linear_phantoms(2)
    y = observer.decide(x)
    sign = np.sign(observer.template)
    for rows in (slice(0, 24), slice(0, 15)):
        attack = UniversalPerturbation(classifier, eps=6, seed=1)
        attack.fit(x[rows], y[rows])
        attack.generate(x[rows], y[rows])
        at_best = max((observer.decide(x[rows] + s * 6 * sign) != y[rows]).mean() for s in (-1, 1))
        assert 0.2 < at_best < 0.9
        assert attack.record.success.mean() == at_best


# -- other images, other models ----------------------------------------------------------------------------------------


def test_it_fools_images_it_has_not_seen_and_a_random_change_of_equal_size_does_not(three_bands):
    (train, truth), (test, y) = bands(60, 1), bands(90, 2)
    rates = {}
    for epochs in (15, 0):
        attack = UniversalPerturbation(three_bands, eps=30, nb_epochs=epochs, fit_batch_size=20)
        attack.fit(train, truth)
        attacked = attack.generate(test, y)
        assert attack.deltas.shape == (1, 1, 9, 6) and np.abs(attack.deltas).max() == 30
        assert (attack.record.success == (three_bands.predict(attacked).argmax(1) != y)).all()
        rates[epochs] = attack.record.success.mean()
    assert rates[15] >= 2 / 3 and rates[0] < 0.1  # one sink takes the two other classes
    targeted = UniversalPerturbation(three_bands, eps=30, targeted=True)
    targeted.fit(train)
    for c in range(3):
        others = y != c
        targeted.generate(test[others], np.full(others.sum(), c))
        assert targeted.record.success.mean() > 0.9


def test_random_control_has_the_full_norm_and_depends_on_the_seed(three_bands):
    x, y = bands(6, 1)
    made = []
    for seed in (0, 0, 1):
        attack = UniversalPerturbation(three_bands, eps=30, nb_epochs=0, seed=seed)
        attack.fit(x, y)
        assert (np.abs(attack.deltas) == 30).all()
        made.append(attack.deltas)
    assert (made[0] == made[1]).all() and (made[0] != made[2]).any()
    length = UniversalPerturbation(three_bands, norm=2, eps=300.0, nb_epochs=0, quantise=False)
    length.fit(x, y)
    assert np.linalg.norm(length.deltas) == pytest.approx(300)


def test_one_change_for_all_clipped_after_adding_and_inside_the_mask(three_bands):
    x, y = bands(12, 3)
    attack = UniversalPerturbation(three_bands, eps=101, nb_epochs=0)
    attack.fit(x, y)
    assert np.abs(attack.deltas).max() == 100  # whole steps of 2
    x[0], x[1, :, :, :3] = 998, -1000
    attacked = attack.generate(x, y)
    assert (attacked == (x + attack.deltas).clip(-1000, 1000)).all()
    assert (attacked[1] >= -1000).all() and HU.on_grid(attacked, tolerance=0)
    mask = np.zeros((9, 6))
    mask[:, 2] = 1
    assert (attack.generate(x, y, mask=mask) == np.where(mask == 1, attacked, x)).all()
    assert (attack.cost.forward == 1).all() and (attack.cost.backward == 0).all()


def test_only_images_that_are_not_fooled_and_pixels_that_can_move_have_a_say(three_bands):
    x, y = bands(3, 5)
    attack = UniversalPerturbation(three_bands, eps=30)

    def gradient(rows: list[int], classes: np.ndarray, delta: float = 0.0) -> np.ndarray:
        return attack._gradient(x[rows], classes, False, torch.full((1, 1, 9, 6), delta)).numpy()

    alone = [gradient([i], y[[i]]) for i in range(3)]
    assert all(np.abs(a).max() > 0 for a in alone)
    wrong = y.copy()
    wrong[0] = 1  # fooled already
    np.testing.assert_allclose(gradient([0, 1, 2], wrong), alone[1] + alone[2], atol=1e-6)
    assert np.abs(gradient([0], wrong[:1])).max() > 0  # when all are, all are heard
    x[0, 0, 0, 0] = 1000
    assert alone[0][0, 0, 0, 0] != 0
    assert gradient([0], y[:1], 10.0)[0, 0, 0, 0] == 0 and gradient([0], y[:1], -10.0)[0, 0, 0, 0] != 0


def test_progress_counts_every_promised_pass(three_bands):
    x, y = bands(12, 4)
    for targeted, most in ((False, 15 * 4), (True, 15 * 3)):
        attack, seen = UniversalPerturbation(three_bands, eps=60, targeted=targeted), []
        attack.fit(x, y, report=seen.append)
        assert attack.passes == most
        assert sum(seen) == 12 * most


# -- its file ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(three_bands) -> UniversalPerturbation:
    attack = UniversalPerturbation(three_bands, eps=30, nb_epochs=0)
    attack.fit(*bands(12, 1))
    return attack


def test_file_brings_the_change_to_another_attack(made, three_bands, tmp_path):
    made.save(tmp_path / "v.npz")
    with np.load(tmp_path / "v.npz", allow_pickle=False) as file:
        assert file["unit"].item() == "HU" and file["norm"].item() == "linf"
    other = UniversalPerturbation(three_bands, eps=30)
    other.load(tmp_path / "v.npz")
    x, y = bands(6, 2)
    assert (other.generate(x, y) == made.generate(x, y)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 28}, "has the norm 30, over the budget eps = 28"),
        ({"norm": 2, "eps": 900}, "has norm 'linf', this attack has 'l2'"),
        ({"targeted": True}, "has targeted False, this attack has True"),
    ],
)
def test_file_of_another_attack_is_refused(made, three_bands, tmp_path, arguments, message):
    made.save(tmp_path / "v.npz")
    other = UniversalPerturbation(three_bands, **{"eps": 30, **arguments})
    with pytest.raises(InputError, match=message):
        other.load(tmp_path / "v.npz")
    assert other.deltas is None


def test_file_of_another_domain_is_refused(made, linear_phantoms, tmp_path):
    made.save(tmp_path / "v.npz")
    classifier, *_ = linear_phantoms(2)
    with pytest.raises(InputError, match=r"has low -1000\.0, this attack has 0\.0"):
        UniversalPerturbation(classifier, eps=30).load(tmp_path / "v.npz")


def test_files_that_are_no_such_thing_are_refused(made, tmp_path):
    path = tmp_path / "v.npz"
    with pytest.raises(InputError, match="cannot read a universal perturbation from"):
        made.load(path)
    path.write_bytes(pickle.dumps({"deltas": 1}))
    with pytest.raises(InputError, match="cannot read a universal perturbation from"):
        made.load(path)
    made.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot read a universal perturbation from"):
        made.load(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(InputError, match="has format 'nothing', this attack has 'art-medical/universal@1'"):
        made.load(path)
    np.save(tmp_path / "v.npy", np.zeros(3))
    with pytest.raises(InputError, match="cannot read a universal perturbation from"):
        made.load(tmp_path / "v.npy")
    for deltas, message in (
        (np.full((1, 1, 9, 6), np.nan, np.float32), "holds no finite float32 array"),
        (np.array(["a"], object), "cannot read"),
        (np.full((1, 1, 9, 6), 3, np.float32), "not made of whole steps of 2"),
        (np.zeros((2, 1, 9, 6), np.float32), "these images need"),
    ):
        np.savez(path, deltas=deltas, **made._belongs_to())
        with pytest.raises(InputError, match=message):
            made.load(path)
    with pytest.raises(InputError, match="call fit with training images first"):
        UniversalPerturbation(made.estimator).save(path)


# -- wrong use ---------------------------------------------------------------------------------------------------------


def test_wrong_use_is_refused(made, linear_phantoms):
    x, y = bands(6, 1)
    with pytest.raises(InputError, match="call fit with training images, or load one"):
        UniversalPerturbation(made.estimator).generate(x, y)
    with pytest.raises(InputError, match="needs training images, got none"):
        made.fit(x[:0])
    made.set_params(eps=20)
    with pytest.raises(InputError, match="has the norm 30, over the budget eps = 20: fit again"):
        made.generate(x, y)
    made.set_params(eps=30)
    with pytest.raises(InputError, match="not on the storage grid of 2 HUs"):
        made.generate(x + 1, y)
    many = MedicalClassifier(
        nn.Sequential(nn.Flatten(), nn.Linear(4096, 5)),
        domain=PLANE.domain,
        head=Head(kind="multi-label", labels=tuple("abcde")),
        input_shape=(1, 64, 64),
    )
    _, _, planes, _ = linear_phantoms(2)
    with pytest.raises(InputError, match="each of 32 classes is too many, at most 16"):
        UniversalPerturbation(many, targeted=True).fit(planes[:2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": 1}, "norm must be np.inf or 2, got 1"),
        ({"eps": 0}, "eps must be one positive number, in HU, got 0"),
        ({"eps": np.ones(3)}, "eps must be one positive number"),
        ({"eps_step": -1}, "eps_step must be one positive number"),
        ({"nb_epochs": -1}, "nb_epochs must be a whole number of 0 or more"),
        ({"fit_batch_size": 0}, "fit_batch_size must be a whole number of 1 or more"),
        ({"confidence": -1}, "confidence is a margin"),
    ],
)
def test_wrong_parameters_are_refused(three_bands, arguments, message):
    with pytest.raises(InputError, match=message):
        UniversalPerturbation(three_bands, **arguments)
