# SPDX-License-Identifier: Apache-2.0
"""``MedicalClassifier``: a MONAI classification network over stored pixels, as an ART estimator."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_medical.domain import PixelDomain
from art_medical.errors import DomainWarning, InputError
from art_medical.estimators.heads import Head
from art_medical.estimators.module import ClassifierModule, CrossEntropy, inference, plain
from art_medical.estimators.steps import Resize, Step

if TYPE_CHECKING:
    from art.defences.postprocessor import Postprocessor
    from art.defences.preprocessor import Preprocessor
    from numpy.typing import ArrayLike, NDArray


class MedicalClassifier(PyTorchClassifier):  # type: ignore[misc]  # ART ships no types
    """ART classifier whose inputs are float32 arrays ``(N, C, *spatial)`` of stored pixels.

    Everything that a model does to a pixel is inside ``model`` and differentiable, so ``clip_values``, ``eps`` and
    patches are in the unit of the file. ``predict`` returns decision logits: their arg-max is the decision at the
    operating point (see :mod:`art_medical.estimators.heads`), so ART's attacks aim at the clinical decision with any
    head. Gradients with respect to the input skip the parameters.

    Some networks take channels that are no image, for instance the mask of the nucleus to classify. With
    ``attackable_channels`` these others still count in every prediction, but every gradient with respect to them is
    exactly zero and the attacks of this package return them unchanged. ART's own attacks follow the gradient but do not
    know of channels: give those that add noise or steps of their own a ``mask``.

    :param network: Classification network without input transform, for instance from ``monai.networks.nets``.
    :param domain: Range, grid and unit of the stored pixels.
    :param head: Meaning of the network's outputs.
    :param input_shape: Shape ``(C, *spatial)`` of one image.
    :param steps: Input steps from stored pixel to network input, in order.
    :param attackable_channels: Channels that an attacker may change, by index; ``None`` for all.
    :param optimizer: Optimiser for ART's ``fit``; its parameters must be those of ``network``.
    :param preprocessing_defences: As in ART; only torch preprocessors chain without surprises.
    :param postprocessing_defences: As in ART.
    :param device_type: ``cpu``; anything else is the current CUDA device if there is one, as in ART.
    """

    estimator_params: ClassVar[list[str]] = [
        *PyTorchClassifier.estimator_params,
        "domain",
        "head",
        "steps",
        "attackable_channels",
    ]

    def __init__(
        self,
        network: nn.Module,
        *,
        domain: PixelDomain,
        head: Head,
        input_shape: tuple[int, ...],
        steps: Sequence[Step] = (),
        attackable_channels: Sequence[int] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        preprocessing_defences: Preprocessor | list[Preprocessor] | None = None,
        postprocessing_defences: Postprocessor | list[Postprocessor] | None = None,
        device_type: str = "cpu",
    ) -> None:
        self.domain = domain
        self.head = head
        self._warned = False
        _check_channels(attackable_channels, input_shape[0])
        super().__init__(
            model=ClassifierModule(network, steps, head, attackable_channels),
            loss=CrossEntropy(),
            input_shape=tuple(input_shape),
            nb_classes=head.nb_classes,
            optimizer=optimizer,
            channels_first=True,
            clip_values=domain.clip_values,
            preprocessing_defences=preprocessing_defences,
            postprocessing_defences=postprocessing_defences,
            preprocessing=None,
            device_type=device_type,
        )

    @property
    def module(self) -> ClassifierModule:
        """The torch module: stored pixels ``(N, C, *spatial)`` to decision logits ``(N, nb_classes)``."""
        module = self.model
        assert isinstance(module, ClassifierModule)
        return module

    @property
    def network(self) -> nn.Module:
        """The bare network."""
        return self.module.network

    @property
    def steps(self) -> tuple[Step, ...]:
        """Input steps from stored pixel to network input."""
        return self.module.steps

    @property
    def attackable_channels(self) -> tuple[int, ...] | None:
        """Channels that an attacker may change, ascending; ``None`` for all."""
        return self.module.attackable_channels

    # -- predictions ---------------------------------------------------------------------------------------------

    def predict(
        self, x: np.ndarray[Any, Any], batch_size: int = 128, training_mode: bool = False, **kwargs: Any
    ) -> NDArray[np.float32]:
        """Decision logits.

        :param x: Stored pixels ``(N, C, *spatial)``.
        :param batch_size: Images in one forward pass.
        :param training_mode: As in ART.
        :return: ``(N, nb_classes)``, arg-max is the decision at the operating point.
        :raises InputError: If the shape is wrong or a pixel is not finite.
        """
        array = self.check(x)
        if not len(array):
            return np.zeros((0, self.nb_classes), np.float32)
        self._warn_about_range(array)
        with inference(self.model, training_mode), torch.no_grad():
            scores = np.concatenate([self.module(batch).cpu().numpy() for batch in self._batches(array, batch_size)])
        result: NDArray[np.float32] = self._apply_postprocessing(preds=scores.astype(np.float32), fit=False)
        return result

    def predict_logits(self, x: np.ndarray[Any, Any], batch_size: int = 128) -> NDArray[np.float32]:
        """The network's own logits ``(N, head.outputs)``, without threshold, behind the preprocessing defences."""
        array = self.check(x)
        with inference(self.model), torch.no_grad():
            rows = [self.module.logits(batch).cpu().numpy() for batch in self._batches(array, batch_size)]
        return np.concatenate(rows).astype(np.float32) if rows else np.zeros((0, self.head.outputs), np.float32)

    def _batches(self, array: NDArray[np.float32], batch_size: int) -> Iterator[Tensor]:
        """Batches on the device, behind the preprocessing defences.

        ART's own ``predict`` draws a random number for each call, which would tie results to the order of calls.
        """
        for start in range(0, len(array), batch_size):
            batch, _ = self._apply_preprocessing(array[start : start + batch_size], y=None, fit=False)
            yield torch.from_numpy(np.asarray(batch)).to(self.device)

    def predict_proba(self, x: np.ndarray[Any, Any], batch_size: int = 128) -> NDArray[np.float64]:
        """Probabilities before any threshold: ``(N, K)``, one-logit models ``(N, 2)``."""
        return self.head.probabilities(self.predict_logits(x, batch_size))

    def encode(self, y: ArrayLike) -> NDArray[np.float32]:
        """Ground truth (class indices, or multi-hot rows of a multi-label model) to one-hot rows for ART attacks."""
        return self.head.encode(y)

    # -- gradients: of the input only ----------------------------------------------------------------------------

    def loss_gradient(self, x: Any, y: Any, training_mode: bool = False, **kwargs: Any) -> Any:
        """As in ART, with labels checked (multi-hot rows are understood) and without parameter gradients."""
        if isinstance(x, np.ndarray):
            x = self.check(x)
        with inference(self.model):
            gradient = super().loss_gradient(x, self._labels(y), training_mode=training_mode, **kwargs)
        return self._of_attackable(gradient, axis=1)

    def class_gradient(
        self, x: np.ndarray[Any, Any], label: Any = None, training_mode: bool = False, **kwargs: Any
    ) -> NDArray[np.float32]:
        """As in ART, without parameter gradients."""
        with inference(self.model):
            result: NDArray[np.float32] = super().class_gradient(
                self.check(x), label=label, training_mode=training_mode, **kwargs
            )
        return self._of_attackable(result, axis=2)  # type: ignore[no-any-return]

    def _of_attackable(self, gradient: Any, axis: int) -> Any:
        """The gradient without the other channels: a preprocessing defence may have mixed channels on the way back."""
        if self.attackable_channels is not None:
            fixed = [channel for channel in range(gradient.shape[axis]) if channel not in self.attackable_channels]
            gradient[(slice(None),) * axis + (fixed,)] = 0
        return gradient

    def compute_loss(self, x: Any, y: Any, reduction: str = "none", **kwargs: Any) -> Any:
        """As in ART, with labels checked (multi-hot rows are understood)."""
        if isinstance(x, np.ndarray):
            x = self.check(x)
        with inference(self.model):
            return super().compute_loss(x, self._labels(y), reduction=reduction, **kwargs)

    def fit(self, x: np.ndarray[Any, Any], y: Any, batch_size: int = 128, nb_epochs: int = 10, **kwargs: Any) -> None:
        """As in ART; labels as in :meth:`encode`, or soft rows ``(N, nb_classes)``."""
        super().fit(self.check(x), self._labels(y), batch_size=batch_size, nb_epochs=nb_epochs, **kwargs)

    def _labels(self, y: Any) -> Any:
        """Rows that are not soft or one-hot labels of this head are encoded; ART would take their arg-max."""
        if isinstance(y, Tensor):
            return y
        labels = np.asarray(y)
        if labels.ndim == 2 and labels.shape[1] == self.nb_classes and np.issubdtype(labels.dtype, np.floating):
            return labels
        return self.encode(labels)

    # -- layers --------------------------------------------------------------------------------------------------

    @property
    def layer_names(self) -> list[str]:
        """Dotted names of all leaf layers of the network, in order of definition."""
        return [name for name, layer in self.network.named_modules() if name and not list(layer.children())]

    def get_activations(
        self,
        x: Any,
        layer: int | str | None = None,
        batch_size: int = 128,
        framework: bool = False,
    ) -> Any:
        """Output of one layer; no hook stays behind.

        :param x: Stored pixels ``(N, C, *spatial)``, array or tensor.
        :param layer: Dotted name of a module of the network, or index into :attr:`layer_names`.
        :param batch_size: Images in one forward pass.
        :param framework: Return a tensor that carries the gradient.
        :raises InputError: If there is no such layer, or if it takes no part in a prediction.
        """
        names = self.layer_names
        name = names[layer] if isinstance(layer, int) and -len(names) <= layer < len(names) else layer
        modules = dict(self.network.named_modules())
        if not isinstance(name, str) or not name or name not in modules:
            raise InputError(
                f"no layer {layer!r} in {type(self.network).__name__}; layers are {', '.join(names[:5])}, ..."
            )
        if framework:
            tensor = x if isinstance(x, Tensor) else torch.from_numpy(self.check(x)).to(self.device)
            batch, _ = self._apply_preprocessing(tensor, y=None, fit=False, no_grad=False)
            return self._output_of(name, modules[name], batch)
        array = self.check(x)
        rows = []
        with torch.no_grad():
            for start in range(0, len(array), batch_size):
                batch, _ = self._apply_preprocessing(array[start : start + batch_size], y=None, fit=False)
                tensor = torch.from_numpy(np.asarray(batch)).to(self.device)
                rows.append(self._output_of(name, modules[name], tensor).cpu().numpy())
        return np.concatenate(rows)

    def _output_of(self, name: str, layer: nn.Module, batch: Tensor) -> Tensor:
        """Output of a layer; of its last call, as in ART, where one forward pass calls it more than once."""
        kept: list[Tensor] = []

        def keep(_layer: nn.Module, _args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple | list) else output
            kept.append(plain(first).clone())  # the next layer may work in place

        handle = layer.register_forward_hook(keep)
        try:
            with inference(self.model):
                self.model(batch)
        finally:
            handle.remove()
        if not kept:
            raise InputError(f"layer {name!r} takes no part in a prediction; choose another one")
        return kept[-1]

    # -- copies --------------------------------------------------------------------------------------------------

    def view(self, label: str | int) -> MedicalClassifier:
        """One label of a multi-label model as a one-logit classifier that shares the network.

        :param label: Name or index of the label.
        """
        head = self.head.view(label)
        index = self.head.labels.index(label) if isinstance(label, str) else label
        return self._rebuilt(network=_OneOutput(self.network, index), head=head, optimizer=None)

    def behind(self, steps: Sequence[Step], *, domain: PixelDomain, input_shape: tuple[int, ...]) -> MedicalClassifier:
        """The same network seen from further upstream, for instance from the pixels of a DICOM file.

        :param steps: Steps from the new stored pixels to what this classifier takes.
        :param domain: Domain of the new stored pixels.
        :param input_shape: Shape ``(C, *spatial)`` of one new image.
        :raises InputError: If there are preprocessing defences: they are made for this classifier's pixels; or if only
            some channels may be attacked and the new images have another number of them.
        """
        if self.preprocessing_defences:
            raise InputError("preprocessing defences work on this classifier's pixels; add them to the result instead")
        if self.attackable_channels is not None and input_shape[0] != self.input_shape[0]:
            raise InputError(
                f"only channels {self.attackable_channels} of {self.input_shape[0]} may be attacked; "
                f"which of the {input_shape[0]} new channels these are cannot be told"
            )
        return self._rebuilt(steps=(*steps, *self.steps), domain=domain, input_shape=input_shape, optimizer=None)

    def clone_for_refitting(self) -> MedicalClassifier:
        """A copy of equal architecture with fresh weights and, if there is one, the same kind of optimiser."""
        import copy
        import inspect

        network = copy.deepcopy(self.network)
        optimizer = None
        if self.optimizer is not None:
            kind = type(self.optimizer)
            accepted = inspect.signature(kind).parameters
            defaults = {name: value for name, value in self.optimizer.defaults.items() if name in accepted}
            optimizer = kind(network.parameters(), **defaults)
        clone = self._rebuilt(network=network, optimizer=optimizer)
        clone.reset()
        return clone

    def _rebuilt(self, **changes: Any) -> MedicalClassifier:
        return type(self)(**{**self._arguments(), **changes})

    def _arguments(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "domain": self.domain,
            "head": self.head,
            "input_shape": self.input_shape,
            "steps": self.steps,
            "attackable_channels": self.attackable_channels,
            "optimizer": self.optimizer,
            "preprocessing_defences": self.preprocessing_defences,
            "postprocessing_defences": self.postprocessing_defences,
            "device_type": "cpu" if self.device.type == "cpu" else str(self.device),
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle by constructor: ART's own pickling writes the model into the user's home folder."""
        return (_construct, (type(self), self._arguments()))

    # -- the door ------------------------------------------------------------------------------------------------

    def check(self, x: Any) -> NDArray[np.float32]:
        """``x`` as float32 stored pixels.

        :raises InputError: If the shape does not fit the model or a pixel is not finite.
        """
        array: np.ndarray[Any, Any] = np.asarray(x)
        if array.dtype.kind not in "biuf":
            raise InputError(f"pixels must be real numbers, got an array of type {array.dtype}")
        with np.errstate(over="ignore"):  # becomes an infinity, which is refused below
            array = array.astype(np.float32, copy=False)
        expected = self.input_shape
        fits = array.ndim == len(expected) + 1 and array.shape[1] == expected[0]
        if fits and not any(isinstance(step, Resize) for step in self.steps):
            fits = array.shape[1:] == expected
        if not fits:
            raise InputError(f"expected images of shape (N, {', '.join(map(str, expected))}), got {array.shape}")
        if array.size == 0:
            return array
        if not (np.isfinite(array.min()) and np.isfinite(array.max())):
            raise InputError("pixels must be finite, got NaN or infinity")
        return array

    def _warn_about_range(self, array: NDArray[np.float32]) -> None:
        """Once for each estimator: attacks call ``predict`` at every step, some of them outside the box."""
        if self._warned or array.size == 0:
            return
        domain = self.domain
        low, high = float(array.min()), float(array.max())
        slack = 0.01 * domain.span
        outside = low < domain.low - slack or high > domain.high + slack
        # Fractions inside [-1, 1] are most likely pixels that somebody has scaled; a black image holds whole numbers.
        shrunk = domain.span >= 100 and -1 <= low <= high <= 1 and bool((array != array.round()).any())
        if outside or shrunk:
            self._warned = True
            warnings.warn(
                f"pixels range from {low:g} to {high:g}, but this model takes stored pixels from {domain.low:g} to "
                f"{domain.high:g} {domain.units}; convert them to stored pixels, do not rescale the model",
                DomainWarning,
                stacklevel=4,
            )


class _OneOutput(nn.Module):
    """One output of a network with several."""

    def __init__(self, network: nn.Module, index: int) -> None:
        super().__init__()
        self.network = network
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        z = self.network(x)
        z = z[0] if isinstance(z, tuple | list) else z
        one: Tensor = z[:, self.index : self.index + 1]
        return one


def _check_channels(channels: Sequence[int] | None, count: int) -> None:
    if channels is None:
        return
    listed = list(channels)
    if not listed or len(set(listed)) < len(listed) or not set(listed) <= set(range(count)):
        raise InputError(
            f"attackable_channels must be different channels from 0 to {count - 1}, at least one, got {channels!r}"
        )


def _construct(kind: type[MedicalClassifier], arguments: dict[str, Any]) -> MedicalClassifier:
    return kind(**arguments)
