# SPDX-License-Identifier: Apache-2.0
"""How the estimator travels: copies, pickles, views, training; and defences in front of it."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from monai.networks.nets import DenseNet
from torch import Tensor, nn

from art_medical.domain import PixelDomain
from art_medical.errors import InputError
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.steps import Repeat, Rescale, Resize
from tests.conformance.networks import DOMAINS, HEADS, case, draw, untrained
from tests.estimators.doors import dimensional, every

# -- defences --------------------------------------------------------------------------------------------------------


class Dim(PreprocessorPyTorch):  # type: ignore[misc]  # ART ships no types
    """Halves the distance to 100; float64 in between, as careless preprocessors have it."""

    def __init__(self) -> None:
        super().__init__(device_type="cpu", is_fitted=True, apply_fit=True, apply_predict=True)

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return (x.double() + 100) / 2, y


@every
def test_preprocessing_defences(head: str, dimensions: int) -> None:
    """As if the defence were an input step: predictions, logits, gradients and activations."""
    whole, x, *_ = case(head, dimensions)
    arguments = {"domain": whole.domain, "head": whole.head, "input_shape": whole.input_shape}
    defended = MedicalClassifier(whole.network, steps=whole.steps, preprocessing_defences=[Dim()], **arguments)
    inside = MedicalClassifier(whole.network, steps=(Rescale(scale=0.5, offset=50), *whole.steps), **arguments)
    y = whole.encode(np.zeros(4, int))
    close: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-5}
    assert np.abs(defended.predict(x) - whole.predict(x)).max() > 0.1
    np.testing.assert_allclose(defended.predict(x), inside.predict(x), **close)
    np.testing.assert_allclose(defended.predict_logits(x), inside.predict_logits(x), **close)
    np.testing.assert_allclose(defended.predict_proba(x), inside.predict_proba(x), **close)
    np.testing.assert_allclose(defended.loss_gradient(x, y), inside.loss_gradient(x, y), **close)
    np.testing.assert_allclose(defended.class_gradient(x), inside.class_gradient(x), **close)
    np.testing.assert_allclose(defended.compute_loss(x, y), inside.compute_loss(x, y), **close)
    np.testing.assert_allclose(defended.get_activations(x, 0), inside.get_activations(x, 0), **close)
    copied = copy.deepcopy(defended)
    np.testing.assert_array_equal(copied.predict(x), defended.predict(x))


# -- copies ----------------------------------------------------------------------------------------------------------


@every
def test_copies(head: str, dimensions: int, tmp_path: Path) -> None:
    """Deep copy, copy and pickle predict the same, and write no file (ART's own pickling writes into the home)."""
    classifier, x, *_ = case(head, dimensions)
    before = sorted(Path.home().rglob("*"))
    copies = [copy.deepcopy(classifier), copy.copy(classifier), pickle.loads(pickle.dumps(classifier))]
    assert sorted(Path.home().rglob("*")) == before
    for other in copies:
        np.testing.assert_array_equal(other.predict(x), classifier.predict(x))
        assert (other.domain, other.head, other.steps) == (classifier.domain, classifier.head, classifier.steps)
        assert type(other) is MedicalClassifier
    assert copies[1].network is classifier.network
    for other in (copies[0], copies[2]):
        with torch.no_grad():
            next(other.network.parameters()).zero_()
    assert next(classifier.network.parameters()).abs().max() > 0


def test_copies_after_activations_and_with_an_optimiser() -> None:
    """Where ART fails: after get_activations. The copy's optimiser drives the copy's weights, from the same state."""
    classifier = trainable()
    x, y = draw("softmax-2", 2, 32, seed=7)
    classifier.get_activations(x, 0)
    classifier.fit(x, y, nb_epochs=1, batch_size=16)
    for other in (copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))):
        assert other.optimizer.state_dict()["state"][0]["step"] == 2
        weights = next(other.network.parameters()).detach().clone()
        kept = next(classifier.network.parameters()).detach().clone()
        other.fit(x, y, nb_epochs=1)
        assert not torch.equal(next(other.network.parameters()), weights)
        assert torch.equal(next(classifier.network.parameters()), kept)


def test_worker_process() -> None:
    """A spawned process, which shares nothing, predicts the same from the pickle alone."""
    classifier, x, *_ = case("multi-label", 3)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        # ART wraps its methods so that a bound method cannot be pickled; its estimators can.
        result = pool.submit(methodcaller("predict", x), classifier).result(timeout=120)
    np.testing.assert_allclose(result, classifier.predict(x), rtol=1e-5, atol=1e-6)


def trainable(kind: type[torch.optim.Optimizer] = torch.optim.Adam, **options: Any) -> MedicalClassifier:
    """Untrained weights with an optimiser."""
    fresh = untrained("softmax-2", 2)
    return untrained_with(fresh.network, kind(fresh.network.parameters(), **{"lr": 0.02, **options}))


def untrained_with(network: nn.Module, optimizer: torch.optim.Optimizer) -> MedicalClassifier:
    """The estimator of ``untrained`` over this network."""
    fresh = untrained("softmax-2", 2)
    return MedicalClassifier(
        network,
        domain=fresh.domain,
        head=fresh.head,
        input_shape=fresh.input_shape,
        steps=fresh.steps,
        optimizer=optimizer,
    )


def test_fit() -> None:
    """ART's training loop on the decision logits learns the task; positional arguments are ART's."""
    torch.manual_seed(0)
    classifier = trainable()
    x, y = draw("softmax-2", 2, 96, seed=8)
    held_out, truth = draw("softmax-2", 2, 64, seed=9)
    before = classifier.compute_loss(held_out, truth).mean()
    classifier.fit(x, y, 32, 8)
    assert classifier.compute_loss(held_out, truth).mean() < before / 2
    assert (classifier.predict(held_out).argmax(1) == truth).mean() > 0.95
    with pytest.raises(InputError, match="outside the model's card"):
        classifier.fit(x, y + 1)


def test_fit_takes_soft_labels() -> None:
    """Trainers that mix images hand in mixed labels; with one step of gradient descent both halves count."""
    classifier = trainable(torch.optim.SGD, lr=0.1)
    x, _ = draw("softmax-2", 2, 8, seed=8)
    soft = np.tile(np.array([[0.3, 0.7]], np.float32), (8, 1))
    before = classifier.compute_loss(x, soft).mean()
    classifier.fit(x, soft, nb_epochs=5)
    assert classifier.compute_loss(x, soft).mean() < before


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"lr": 0.125, "momentum": 0.75}),
        (torch.optim.Adam, {"lr": 0.125, "betas": (0.5, 0.75)}),
        (torch.optim.AdamW, {"lr": 0.125, "weight_decay": 0.5}),
    ],
)
def test_clone_for_refitting(kind: type[torch.optim.Optimizer], options: dict[str, Any]) -> None:
    """Fresh weights, the same steps and head, an optimiser of the same options that drives the clone alone."""
    classifier = trainable(kind, **options)
    x, y = draw("softmax-2", 2, 32, seed=7)
    weights = copy.deepcopy(classifier.network.state_dict())
    torch.manual_seed(123)
    clone = classifier.clone_for_refitting()
    assert type(clone.optimizer) is kind
    assert {name: clone.optimizer.param_groups[0][name] for name in options} == options
    assert (clone.domain, clone.head, clone.steps) == (classifier.domain, classifier.head, classifier.steps)
    assert np.abs(clone.predict(x) - classifier.predict(x)).max() > 0
    first = next(clone.network.parameters()).detach().clone()
    clone.fit(x, y, nb_epochs=1)
    assert not torch.equal(first, next(clone.network.parameters()))
    for name, value in classifier.network.state_dict().items():
        assert torch.equal(value, weights[name])
    assert untrained("softmax-2", 2).clone_for_refitting().optimizer is None


@dimensional
@pytest.mark.parametrize("label", [0, 1, 2, "left", "middle", "right"])
def test_view_of_one_label(dimensions: int, label: str | int) -> None:
    """The view is a one-logit classifier over the same weights, with the decisions of its label."""
    whole, x, *_ = case("multi-label", dimensions)
    view = whole.view(label)
    index = label if isinstance(label, int) else whole.head.labels.index(label)
    np.testing.assert_allclose(view.predict_logits(x)[:, 0], whole.predict_logits(x)[:, index], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(view.predict_proba(x)[:, 1], whole.predict_proba(x)[:, index], rtol=1e-5)
    np.testing.assert_array_equal(view.predict(x).argmax(1), whole.predict(x).argmax(1) >> index & 1)
    assert next(view.network.parameters()) is next(whole.network.parameters())
    z = view.predict(x)
    np.testing.assert_array_equal(z[:, 0], -z[:, 1])


@every
def test_behind_other_steps(head: str, dimensions: int) -> None:
    """Seen through a rescaling, the classifier takes the other pixels, with the same decisions and the chain rule."""
    whole, x, *_ = case(head, dimensions)
    halves = PixelDomain(2 * whole.domain.low, 2 * whole.domain.high, 2, whole.domain.unit)
    behind = whole.behind((Rescale(scale=0.5),), domain=halves, input_shape=whole.input_shape)
    assert behind.clip_values[1] == halves.high and behind.steps[1:] == whole.steps
    np.testing.assert_allclose(behind.predict(2 * x), whole.predict(x), rtol=1e-5, atol=1e-5)
    y = whole.encode(np.zeros(4, int))
    np.testing.assert_allclose(behind.loss_gradient(2 * x, y), whole.loss_gradient(x, y) / 2, rtol=1e-3, atol=1e-7)


def test_behind_a_change_of_shape() -> None:
    """Grey files of another size before a network that wants three channels."""
    torch.manual_seed(0)
    network = DenseNet(2, 3, 2, init_features=4, growth_rate=4, block_config=(2,), bn_size=2)
    colour = MedicalClassifier(network, domain=DOMAINS[2], head=HEADS["softmax-2"], input_shape=(3, 16, 16))
    grey = colour.behind(
        (Repeat(channels=3), Resize(size=(16, 16))), domain=PixelDomain(0, 255), input_shape=(1, 32, 24)
    )
    x = np.random.default_rng(0).integers(0, 256, (2, 1, 32, 24)).astype(np.float32)
    by_hand = Resize(size=(16, 16)).apply(torch.from_numpy(x)).repeat(1, 3, 1, 1).numpy()
    np.testing.assert_allclose(grey.predict(x), colour.predict(by_hand), rtol=1e-4, atol=1e-5)
    assert grey.loss_gradient(x, np.array([0, 1])).shape == x.shape


def test_behind_refuses_to_move_a_defence() -> None:
    """A defence is made for certain pixels; before other steps it would get others."""
    whole = case("softmax-2", 2).classifier
    defended = MedicalClassifier(
        whole.network,
        domain=whole.domain,
        head=whole.head,
        input_shape=whole.input_shape,
        steps=whole.steps,
        preprocessing_defences=Dim(),
    )
    with pytest.raises(InputError, match="preprocessing defences"):
        defended.behind((Rescale(scale=0.5),), domain=PixelDomain(0, 510, 2), input_shape=whole.input_shape)
