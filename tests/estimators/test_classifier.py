# SPDX-License-Identifier: Apache-2.0
"""The estimator: what may come in, and what comes out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray
from torch import Tensor, nn

from art_medical.domain import PixelDomain
from art_medical.errors import DomainWarning, InputError, ModelError
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.estimators.heads import Head
from art_medical.estimators.module import ClassifierModule
from art_medical.estimators.steps import Rescale, Resize
from tests.conformance.networks import DOMAINS, HEADS, SHAPES, case, linear, untrained
from tests.estimators.doors import calls, dimensional, every

# -- what comes in and out -------------------------------------------------------------------------------------------


@every
def test_predictions(head: str, dimensions: int) -> None:
    """Decision logits, network logits and probabilities against the modules called by hand."""
    classifier, x, *_ = case(head, dimensions)
    with torch.no_grad():
        z = torch.from_numpy(x)
        for step in classifier.steps:
            z = step.apply(z)
        logits = classifier.network.eval()(z)
    np.testing.assert_allclose(classifier.predict_logits(x), logits.numpy(), rtol=1e-4, atol=1e-5)
    decision = classifier.predict(x)
    assert decision.dtype == np.float32 and decision.shape == (4, classifier.nb_classes)
    np.testing.assert_allclose(decision, HEADS[head].decision_logits(logits).numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        classifier.predict_proba(x), HEADS[head].probabilities(logits.numpy()), rtol=1e-4, atol=1e-6
    )
    # Smaller batches, the same numbers.
    np.testing.assert_allclose(classifier.predict(x, batch_size=3), decision, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(classifier.predict_logits(x, batch_size=3), logits.numpy(), rtol=1e-4, atol=1e-5)


def test_the_operating_point_decides() -> None:
    """Probabilities between 0.5 and the threshold: a decision that the plain sign of the logit would not take."""
    head = Head(kind="one-logit", labels=("clear", "lesion"), thresholds=(0.9,))
    classifier = linear(head)
    x = np.random.default_rng(0).integers(0, 256, (200, 1, 4, 4)).astype(np.float32)
    positive = classifier.predict_proba(x)[:, 1]
    assert ((positive > 0.5) & (positive < 0.9)).sum() > 20
    np.testing.assert_array_equal(classifier.predict(x).argmax(1), positive > 0.9)


@dimensional
@pytest.mark.parametrize("dtype", [np.float64, np.int16, np.float16, ">f4", "<i4"])
def test_other_number_types(dimensions: int, dtype: Any) -> None:
    """Stored pixels of every type that a file may have give the predictions of float32, and float32 results."""
    classifier, x, *_ = case("softmax-2", dimensions)
    other = x.astype(dtype)
    assert np.array_equal(other.astype(np.float32), x)
    np.testing.assert_array_equal(classifier.predict(other), classifier.predict(x))
    np.testing.assert_array_equal(classifier.predict_logits(other), classifier.predict_logits(x))
    y = classifier.encode([0, 1, 0, 1])
    gradient = classifier.loss_gradient(other, y)
    assert gradient.dtype == np.float32
    np.testing.assert_array_equal(gradient, classifier.loss_gradient(x, y))
    np.testing.assert_array_equal(classifier.class_gradient(other, label=1), classifier.class_gradient(x, label=1))


def test_uint8_and_lists() -> None:
    """8-bit grey levels as they are in memory; a list of lists as ART's wrapper turns it into an array."""
    classifier, x, *_ = case("softmax-2", 2)
    np.testing.assert_array_equal(classifier.predict(x.astype(np.uint8)), classifier.predict(x))
    np.testing.assert_array_equal(classifier.predict(x.tolist()), classifier.predict(x))


def test_no_images() -> None:
    """No rows in, no rows out."""
    classifier = case("softmax-3", 2).classifier
    nothing = np.zeros((0, *SHAPES[2]), np.float32)
    assert classifier.predict(nothing).shape == classifier.predict_logits(nothing).shape == (0, 3)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((1, 16, 16)), r"expected images of shape \(N, 1, 16, 16\), got \(1, 16, 16\)"),
        (np.zeros((1, 3, 16, 16)), r"got \(1, 3, 16, 16\)"),
        (np.zeros((1, 1, 16, 15)), r"got \(1, 1, 16, 15\)"),
        (np.zeros((1, 1, 16, 16, 16)), r"got \(1, 1, 16, 16, 16\)"),
        (np.full((1, 1, 16, 16), np.nan), "finite"),
        (np.full((1, 1, 16, 16), np.inf), "finite"),
        (np.full((1, 1, 16, 16), -np.inf), "finite"),
        (np.full((1, 1, 16, 16), 1e300), "finite"),
        (np.full((1, 1, 16, 16), None), "real numbers"),
        (np.full((1, 1, 16, 16), "a"), "real numbers"),
        (np.full((1, 1, 16, 16), 1j), "real numbers"),
        (np.full((1, 1, 16, 16), np.datetime64("2024-01-01")), "real numbers"),
    ],
)
@calls
def test_refused_images(x: NDArray[Any], words: str, call: Callable[..., Any]) -> None:
    """One line at every door, before the network is asked."""
    classifier = untrained("softmax-2", 2)
    with pytest.raises(InputError, match=words) as caught:
        call(classifier, x)
    assert "\n" not in str(caught.value)


def test_one_bad_pixel_is_found() -> None:
    """Among many images, in the last one."""
    classifier, x, *_ = case("softmax-2", 3)
    spoilt = x.copy()
    spoilt[-1, -1, -1, -1, -1] = np.nan
    with pytest.raises(InputError, match="finite"):
        classifier.predict(spoilt)


def test_a_resize_step_lets_other_sizes_in() -> None:
    """Then only channels and the number of axes are fixed."""
    classifier = untrained("softmax-2", 2, steps=(Rescale(scale=1 / 255), Resize(size=(16, 16))))
    rng = np.random.default_rng(0)
    assert classifier.predict(rng.uniform(0, 255, (2, 1, 31, 20))).shape == (2, 2)
    with pytest.raises(InputError, match="expected images"):
        classifier.predict(np.zeros((2, 3, 31, 20)))
    with pytest.raises(InputError, match="expected images"):
        classifier.predict(np.zeros((2, 1, 31, 20, 16)))


# -- the range of the pixels -----------------------------------------------------------------------------------------


def ramp(low: float, high: float, dimensions: int) -> NDArray[np.float32]:
    """An image with all values from low to high."""
    shape = SHAPES[dimensions]
    return np.linspace(low, high, int(np.prod(shape)), dtype=np.float32).reshape(1, *shape)


@pytest.mark.parametrize(
    ("dimensions", "low", "high"),
    [
        (2, 0, 1),
        (2, 0, 0.97),
        (2, -1, 1),
        (2, 0.2, 0.2),
        (2, 0, 4095),
        (2, -3, 255),
        (3, 0, 1),
        (3, -1, 1),
        (3, -2048, 0),
    ],
)
def test_a_foreign_range_is_told_once(dimensions: int, low: float, high: float) -> None:
    """Scaled pixels, more bits than the domain has, padding outside the range: one warning, at the caller's line."""
    classifier = untrained("softmax-2", dimensions)
    x = ramp(low, high, dimensions)
    with pytest.warns(DomainWarning, match="but this model takes stored pixels from") as caught:
        classifier.predict(x)
    assert [warning.filename for warning in caught] == [__file__]
    assert str(caught[0].message).count("\n") == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier.predict(x)


def test_warning_names_the_unit() -> None:
    """HU stays HU."""
    with pytest.warns(DomainWarning, match=r"from -1 to 1, but .* from -1024 to 3071 HU; convert"):
        untrained("softmax-2", 3).predict(ramp(-1, 1, 3))


@pytest.mark.parametrize(("dimensions", "low", "high"), [(2, 0, 255), (2, -1, 256), (3, -1024, 3071), (3, -40, 60)])
def test_no_warning_inside_the_range(dimensions: int, low: float, high: float) -> None:
    """Neither for the whole range and the rounding of an attack beyond it, nor for a part of it."""
    untrained("softmax-2", dimensions).predict(ramp(low, high, dimensions))


def test_no_warning_for_dark_images() -> None:
    """Black images and images with a few counts are stored pixels; on a domain of fractions nothing is suspicious."""
    classifier = untrained("softmax-2", 2)
    x = np.zeros((1, *SHAPES[2]), np.float32)
    classifier.predict(x)
    x[..., 3] = 1
    classifier.predict(x)
    fractions = untrained("softmax-2", 2, domain=PixelDomain(0, 1, None), steps=())
    fractions.predict(ramp(0, 1, 2))


# -- networks --------------------------------------------------------------------------------------------------------


class Tagged(nn.Module):
    """A network that hands on what MONAI's data loaders produce; it demands and returns ``MetaTensor``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        assert type(x) is Tensor
        return MetaTensor(self.network(MetaTensor(x)), meta={"spacing": 1.0})


def test_meta_tensors() -> None:
    """In and out: the same numbers, and gradients of plain type."""
    plain, x, *_ = case("softmax-2", 3)
    tagged = MedicalClassifier(
        Tagged(plain.network), domain=plain.domain, head=plain.head, input_shape=plain.input_shape, steps=plain.steps
    )
    meta = MetaTensor(torch.from_numpy(x), meta={"spacing": 2.0})
    assert type(tagged.module(meta)) is Tensor
    np.testing.assert_allclose(tagged.predict(np.asarray(meta)), plain.predict(x), rtol=1e-6)
    np.testing.assert_allclose(tagged.predict_logits(np.asarray(meta)), plain.predict_logits(x), rtol=1e-6)
    y = plain.encode([0, 1, 1, 0])
    np.testing.assert_allclose(tagged.loss_gradient(x, y), plain.loss_gradient(x, y), rtol=1e-5, atol=1e-9)
    activations = tagged.get_activations(x, "network.class_layers.out")
    np.testing.assert_allclose(activations, plain.predict_logits(x), rtol=1e-6)


class WithStates(nn.Module):
    """Returns logits and hidden states, as MONAI's ViT does (which needs a package that this one does not)."""

    def __init__(self, network: nn.Module, kind: type) -> None:
        super().__init__()
        self.network = network
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        return self.kind([self.network(x), [x]])


@dimensional
@pytest.mark.parametrize("kind", [tuple, list])
def test_tuple_returning_network(dimensions: int, kind: type) -> None:
    """The first entry counts, and the gradient runs through it; in the view of one label and in its layers, too."""
    plain, x, *_ = case("multi-label", dimensions)
    wrapped = MedicalClassifier(
        WithStates(plain.network, kind),
        domain=plain.domain,
        head=plain.head,
        input_shape=plain.input_shape,
        steps=plain.steps,
    )
    y = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    logits = plain.predict_logits(x)
    np.testing.assert_allclose(wrapped.predict(x), plain.predict(x), rtol=1e-6)
    np.testing.assert_allclose(wrapped.predict_logits(x), logits, rtol=1e-6)
    np.testing.assert_allclose(wrapped.loss_gradient(x, y), plain.loss_gradient(x, y), rtol=1e-5, atol=1e-9)
    view = wrapped.view(1)
    np.testing.assert_allclose(view.predict_logits(x), logits[:, 1:2], rtol=1e-6)
    np.testing.assert_allclose(view.get_activations(x, "network"), logits, rtol=1e-6)


def test_squeezed_output() -> None:
    """A network that returns ``(N,)`` is a one-logit network."""
    head = HEADS["one-logit"]
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.Flatten(0))
    classifier = MedicalClassifier(network, domain=DOMAINS[2], head=head, input_shape=(1, 4, 4))
    assert classifier.predict(np.full((3, 1, 4, 4), 9.0)).shape == (3, 2)


class Returns(nn.Module):
    """A network that returns something else."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Any:
        return self.value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(2, 3), r"shape \(2, 3\); its softmax head needs \(N, 2\)"),
        (torch.zeros(2, 2, 4, 4), r"shape \(2, 2, 4, 4\)"),
        (torch.zeros(2), r"shape \(2,\)"),
        ({"logits": torch.zeros(2, 2)}, "returns dict"),
    ],
)
def test_wrong_outputs(value: Any, words: str) -> None:
    """The network and its head disagree: said at the first prediction."""
    classifier = MedicalClassifier(Returns(value), domain=DOMAINS[2], head=HEADS["softmax-2"], input_shape=SHAPES[2])
    with pytest.raises(ModelError, match=words):
        classifier.predict(np.full((2, *SHAPES[2]), 9.0))


@dimensional
def test_it_is_an_art_estimator(dimensions: int) -> None:
    """What ART's attacks and tools read from an estimator."""
    classifier = case("multi-label", dimensions).classifier
    assert isinstance(classifier, PyTorchClassifier)
    assert isinstance(classifier.model, ClassifierModule)
    assert (classifier.nb_classes, classifier.input_shape, classifier.channels_first) == (8, SHAPES[dimensions], True)
    np.testing.assert_array_equal(classifier.clip_values, np.array(DOMAINS[dimensions].clip_values, np.float32))
    parameters = classifier.get_params()
    assert parameters["head"] is classifier.head and parameters["domain"] is classifier.domain
    assert "MedicalClassifier" in repr(classifier)
