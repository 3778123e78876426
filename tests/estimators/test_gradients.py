# SPDX-License-Identifier: Apache-2.0
"""Gradients and layers of the estimator, and what a call leaves behind: nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet, ResNet
from numpy.typing import NDArray
from torch import Tensor, nn

from art_medical.errors import InputError
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.heads import Head
from art_medical.estimators.steps import Normalise
from tests.conformance.networks import DOMAINS, HEADS, SHAPES, case, linear, untrained
from tests.estimators.doors import calls, dimensional, every

# -- gradients -------------------------------------------------------------------------------------------------------


@every
def test_loss_gradient_equals_finite_differences(head: str, dimensions: int) -> None:
    """Against central differences of a float64 copy of the same module, at the pixels that matter most."""
    classifier, x, *_ = case(head, dimensions)
    y = np.roll(classifier.predict(x).argmax(1), 1)
    gradient = classifier.loss_gradient(x, classifier.encode(y)).reshape(4, -1)
    module = copy.deepcopy(classifier.module).double().eval()
    target = torch.from_numpy(y)

    def loss(pixels: NDArray[np.float64]) -> float:
        with torch.no_grad():
            z = module(torch.from_numpy(pixels))
        return float(nn.functional.cross_entropy(z, target))  # the mean over the images, as ART has it

    for image in range(4):
        for pixel in np.argsort(-np.abs(gradient[image]))[:3]:
            step = np.zeros(gradient.shape)
            step[image, pixel] = 1e-3
            step = step.reshape(x.shape)
            slope = (loss(x + step) - loss(x - step)) / 2e-3
            assert gradient[image, pixel] == pytest.approx(slope, rel=1e-2, abs=1e-7)


@every
def test_class_gradients(head: str, dimensions: int) -> None:
    """All classes at once, one class, and one for each image: the same numbers."""
    classifier, x, *_ = case(head, dimensions)
    every_class = classifier.class_gradient(x)
    assert every_class.shape == (4, classifier.nb_classes, *x.shape[1:])
    labels = classifier.predict(x).argmax(1)
    np.testing.assert_allclose(classifier.class_gradient(x, label=1)[:, 0], every_class[:, 1], rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(
        classifier.class_gradient(x, label=labels)[:, 0], every_class[np.arange(4), labels], rtol=1e-4, atol=1e-8
    )


def test_labels_of_gradients_and_losses() -> None:
    """Multi-hot rows, set numbers and one-hot sets mean the same; the loss is the sum of binary cross-entropies."""
    classifier, x, *_ = case("multi-label", 2)
    hot = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    numbers = hot @ [1, 2, 4]
    formats = [hot, hot.astype(np.float32), hot.astype(bool), numbers, np.eye(8)[numbers], numbers.tolist()]
    gradients = [classifier.loss_gradient(x, y) for y in formats]
    losses = [classifier.compute_loss(x, y) for y in formats]
    for gradient, value in zip(gradients, losses, strict=True):
        np.testing.assert_array_equal(gradient, gradients[0])
        np.testing.assert_array_equal(value, losses[0])
    z = torch.from_numpy(classifier.predict_logits(x)) - torch.tensor(classifier.head.shifts)
    binary = nn.functional.binary_cross_entropy_with_logits(z, torch.from_numpy(hot).float(), reduction="none").sum(1)
    np.testing.assert_allclose(losses[0], binary.numpy(), rtol=1e-4, atol=1e-5)
    # ART's own way, the arg-max of the multi-hot row, is another loss.
    assert np.abs(losses[0] - classifier.compute_loss(x, hot.argmax(1))).max() > 1
    with pytest.raises(InputError, match="outside the model's card"):
        classifier.loss_gradient(x, np.array([8, 0, 0, 0]))
    with pytest.raises(InputError, match="cannot read labels"):
        classifier.compute_loss(x, np.zeros((4, 5)))


def test_soft_labels_pass() -> None:
    """Rows of probabilities are ART's business: the loss of a mixture is the mixture of the losses."""
    classifier, x, *_ = case("softmax-3", 2)
    soft = np.array([[0.25, 0.75, 0.0]] * 4, np.float32)
    parts = [classifier.compute_loss(x, np.full(4, label)) for label in (0, 1)]
    np.testing.assert_allclose(classifier.compute_loss(x, soft), 0.25 * parts[0] + 0.75 * parts[1], rtol=1e-5)


def test_confident_decisions_keep_their_gradient() -> None:
    """Logits some 60 apart in float32: the gradient has the direction of the label that flips first, as in float64."""
    classifier = linear(Head(kind="multi-label", labels=("a", "b", "c")))
    layer = classifier.network[1]  # type: ignore[index]
    with torch.no_grad():
        layer.weight.mul_(0.1)
        layer.bias.copy_(torch.tensor([60.0, -55.0, 30.0]))
    x = np.full((1, 1, 4, 4), 130, np.float32)
    gradient = classifier.loss_gradient(x, np.array([[1, 0, 1]])).ravel()
    weakest = -layer.weight.detach().numpy()[2]
    np.testing.assert_allclose(gradient / np.linalg.norm(gradient), weakest / np.linalg.norm(weakest), atol=1e-3)


def test_torch_gradients() -> None:
    """ART's torch attacks pass tensors: the same gradient, as a tensor."""
    classifier, x, *_ = case("one-logit", 3)
    y = classifier.encode([0, 1, 1, 0])
    gradient = classifier.loss_gradient(torch.from_numpy(x), torch.from_numpy(y))
    assert isinstance(gradient, Tensor)
    np.testing.assert_array_equal(gradient.numpy(), classifier.loss_gradient(x, y))


# -- what it leaves behind -------------------------------------------------------------------------------------------


def state(classifier: MedicalClassifier) -> list[Any]:
    """Modes, gradient switches and gradients of the whole module, hooks included."""
    module = classifier.module
    return [
        [m.training for m in module.modules()],
        [p.requires_grad for p in module.parameters()],
        [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        [p.detach().clone() for p in module.parameters()],
        [len(m._forward_hooks) + len(m._backward_hooks) for m in module.modules()],
    ]


def same(a: list[Any], b: list[Any]) -> bool:
    """Equality of states."""
    return all(
        torch.equal(p, q) if isinstance(p, Tensor) and isinstance(q, Tensor) else p is q if p is None else p == q
        for one, other in zip(a, b, strict=True)
        for p, q in zip(one, other, strict=True)
    )


def mixed() -> MedicalClassifier:
    """A classifier in the midst of a fine-tuning: part frozen, part in training mode, a gradient accumulated."""
    classifier = untrained("softmax-2", 2)
    module = classifier.module.train()
    network = classifier.network
    assert isinstance(network, DenseNet)
    network.features.eval()
    for parameter in network.features.parameters():
        parameter.requires_grad_(False)
    next(network.class_layers.parameters()).grad = torch.full((2, network.class_layers.out.in_features), 3.0)
    assert {m.training for m in module.modules()} == {p.requires_grad for p in module.parameters()} == {True, False}
    return classifier


@calls
def test_nothing_is_left_behind(call: Callable[..., Any]) -> None:
    """Modes, switches, accumulated gradients, weights and hooks are as before; an absent gradient stays absent."""
    classifier = mixed()
    before = state(classifier)
    call(classifier, case("softmax-2", 2).x)
    assert same(state(classifier), before)


@calls
def test_nothing_is_left_behind_by_a_failure(call: Callable[..., Any]) -> None:
    """The same when the network raises in the middle."""
    classifier = mixed()
    network = classifier.network
    assert isinstance(network, DenseNet)

    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

    network.class_layers.out = Breaks()
    before = state(classifier)
    with pytest.raises(RuntimeError, match="out of memory"):
        call(classifier, case("softmax-2", 2).x)
    assert same(state(classifier), before)


@calls
def test_parameters_get_no_gradient(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for a moment: no backward pass computes one."""
    classifier = untrained("softmax-2", 2)
    reached: list[bool] = []
    for parameter in classifier.module.parameters():
        parameter.register_hook(lambda gradient: reached.append(True))
    call(classifier, case("softmax-2", 2).x)
    assert not reached
    assert all(parameter.grad is None for parameter in classifier.module.parameters())


def test_dropout_is_off_and_batch_statistics_stay() -> None:
    """A network in training mode predicts as in evaluation mode, and its running statistics do not move."""
    torch.manual_seed(0)
    network = DenseNet(2, 1, 2, init_features=4, growth_rate=4, block_config=(2,), bn_size=2, dropout_prob=0.5).train()
    classifier = MedicalClassifier(network, domain=DOMAINS[2], head=HEADS["softmax-2"], input_shape=SHAPES[2])
    x = case("softmax-2", 2).x
    buffers = copy.deepcopy(network.state_dict())
    first, again = classifier.predict(x), classifier.predict(x)
    np.testing.assert_array_equal(first, again)
    for name, value in network.state_dict().items():
        assert torch.equal(value, buffers[name]), name


# -- layers ----------------------------------------------------------------------------------------------------------


@dimensional
def test_activations(dimensions: int) -> None:
    """By dotted name and by index, against the layers called by hand; in batches; as a tensor with a gradient."""
    classifier, x, *_ = case("softmax-3", dimensions)
    network = classifier.network.eval()
    assert isinstance(network, DenseNet)
    names = classifier.layer_names
    assert names[0] == "features.conv0" and names[-1] == "class_layers.out"
    with torch.no_grad():
        inputs = torch.from_numpy(x)
        for step in classifier.steps:
            inputs = step.apply(inputs)
        first, features = network.features.conv0(inputs), network.features(inputs)
    # Equal although the next layer but one is a ReLU that works in place.
    np.testing.assert_allclose(classifier.get_activations(x, 0), first.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(classifier.get_activations(x, "features.conv0", batch_size=3), first.numpy(), atol=1e-5)
    np.testing.assert_allclose(classifier.get_activations(x, "features"), features.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(classifier.get_activations(x, -1), classifier.predict_logits(x))
    pixels = torch.from_numpy(x).requires_grad_()
    tensor = classifier.get_activations(pixels, "features", framework=True)
    (gradient,) = torch.autograd.grad(tensor.sum(), pixels)
    assert gradient.abs().max() > 0
    tensor = classifier.get_activations(x, "features", framework=True)
    assert isinstance(tensor, Tensor)
    np.testing.assert_allclose(tensor.detach().numpy(), features.numpy(), rtol=1e-4, atol=1e-5)


@dimensional
def test_a_layer_that_is_called_twice(dimensions: int) -> None:
    """MONAI's ResNet blocks use one activation twice: one row for each image, that of the last call."""
    torch.manual_seed(0)
    network = ResNet(
        "basic", [1, 1, 1, 1], [4, 4, 4, 4], spatial_dims=dimensions, n_input_channels=1, conv1_t_size=3, num_classes=2
    )
    classifier = MedicalClassifier(
        network,
        domain=DOMAINS[dimensions],
        head=HEADS["softmax-2"],
        input_shape=SHAPES[dimensions],
        steps=(Normalise(mean=(100,), std=(50,)),),
    )
    x = case("softmax-2", dimensions).x
    names = [name for name in classifier.layer_names if name.startswith("layer1.0.")]
    shared = next(name for name in names if "relu" in name or "act" in name)
    block = classifier.get_activations(x, "layer1.0")
    for batch_size in (2, 4):
        np.testing.assert_allclose(classifier.get_activations(x, shared, batch_size=batch_size), block, rtol=1e-5)


def test_a_layer_without_a_part() -> None:
    """MONAI's networks have layers that some settings leave out of the forward pass."""
    classifier, x, *_ = case("softmax-2", 2)
    network = copy.deepcopy(classifier.network)
    network.add_module("spare", nn.Linear(2, 2))
    other = MedicalClassifier(network, domain=DOMAINS[2], head=HEADS["softmax-2"], input_shape=SHAPES[2])
    with pytest.raises(InputError, match="'spare' takes no part"):
        other.get_activations(x, "spare")


@pytest.mark.parametrize("layer", ["features.conv9", "", 1000, -1000, None, 1.5])
def test_unknown_layers(layer: Any) -> None:
    """Names some layers that there are."""
    classifier, x, *_ = case("softmax-2", 2)
    with pytest.raises(InputError, match=r"no layer .* layers are features\.conv0"):
        classifier.get_activations(x, layer)
