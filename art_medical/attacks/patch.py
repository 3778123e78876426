# SPDX-License-Identifier: Apache-2.0
"""Adversarial patch and its natural control, with the protocol of Finlayson et al. 2018 (arXiv 1804.05296).

The patch is that of Brown et al. 2017 (arXiv 1712.09665): one picture for each target class, trained on other images
than those it is shown on, robust to place, size and rotation. The natural control cuts the disc from the training image
that the model finds most typical of the target class, so that occlusion is not mistaken for attack.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from art_medical.attacks.base import Batch, StoredPixelAttack
from art_medical.attacks.facts import Facts
from art_medical.attacks.loop import Found
from art_medical.attacks.noise import Noise
from art_medical.attacks.objectives import Margin
from art_medical.attacks.patch_geometry import Placement
from art_medical.errors import InputError
from art_medical.estimators.module import inference

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from art_medical.estimators.classifier import MedicalClassifier


class PatchAttack(StoredPixelAttack):
    """Paste a patch for the target class at a random place; how the patches come to be is up to the subclass."""

    attack_params = [*StoredPixelAttack.attack_params, "scale", "rotation_max"]
    chooses_place = True

    def __init__(
        self,
        estimator: MedicalClassifier,
        *,
        scale: float,
        rotation_max: float,
        targeted: bool,
        batch_size: int,
        quantise: bool,
        seed: int,
        verbose: bool,
    ) -> None:
        super().__init__(
            estimator,
            targeted=targeted,
            quantise=quantise,
            batch_size=batch_size,
            seed=seed,
            verbose=verbose,
        )
        self.scale = scale
        self.rotation_max = rotation_max
        self.patches: NDArray[np.float32] | None = None

    @property
    @abstractmethod
    def passes(self) -> int:
        """How often :meth:`fit` looks at each training image."""

    @abstractmethod
    def fit(
        self,
        x: NDArray[Any],
        y: NDArray[Any] | None = None,
        report: Callable[[int], None] = lambda images: None,
    ) -> None:
        """Make one patch for each class from training images; never from images that it will be shown on.

        :param x: Stored pixels ``(N, C, H, W)``.
        :param y: Not used: patches are made for classes, and must work on images of any class.
        :param report: Called with the number of images seen since the last call.
        """

    def _attack(self, batch: Batch) -> Found:
        """Untargeted: the patch of the other class that serves best; targeted: the patch of that class."""
        if self.patches is None:
            raise InputError("the patch has not been made yet: call fit with training images first")
        patches = self._tensor(self.patches)
        place = Placement.draw(Noise(self.seed, batch.ids, "place"), (self.scale, self.scale), self.rotation_max)
        objective = Margin(self.targeted)
        found = Found.nothing_yet(batch.x)
        rows = torch.arange(len(batch.x), device=batch.x.device)
        for target in range(len(patches)):
            x = place.paste(batch.x, patches[target])
            x = self.domain.quantise(x) if self.quantise else x
            x = self._on_attackable(batch.x, x)
            with torch.no_grad():
                z = self.scores(x).double()
            distance = objective.distance(z, batch.y)
            meant = batch.y == target if self.targeted else batch.y != target
            found.keep_better(rows, x, distance.where(meant, distance.new_tensor(math.inf)))
            found.forward += meant
        found.trace.append(float(found.distance.mean()))
        return found

    def _on_attackable(self, x: Tensor, pasted: Tensor) -> Tensor:
        """The patch on the channels that may be attacked; the other channels stay as they are."""
        module = self.estimator.module
        return pasted if module.attackable_channels is None else torch.where(module.attackable(x), pasted, x)

    def _need_planes(self, x: NDArray[np.float32]) -> None:
        if x.ndim != 4:
            raise InputError(f"patches are defined for 2-D images, got images of shape {x.shape[1:]}")
        if len(x) == 0:
            raise InputError("a patch needs training images, got none")

    def _check_params(self) -> None:
        super()._check_params()
        if not 0 < self.scale <= 1:
            raise InputError(
                f"scale is the diameter of the disc over the side of the image, in (0, 1], got {self.scale!r}"
            )
        if not 0 <= self.rotation_max <= 180:
            raise InputError(f"rotation_max is in degrees from 0 to 180, got {self.rotation_max!r}")


class AdversarialPatch(PatchAttack):
    """``min_p E_{x,T} CE(f((1 - T(M)) x + T(M) T(p)), target)`` by gradient descent over training images."""

    facts = Facts(
        models="A sticker in the field of view, or a disc pasted into the stored image.",
        bound="a disc of unlimited contrast",
        access="white",
        dimensions=(2,),
        paper="Brown et al. 2017, arXiv 1712.09665; Finlayson et al. 2018, arXiv 1804.05296",
    )

    attack_params = [*PatchAttack.attack_params, "scale_range", "learning_rate", "nb_epochs", "patch_size"]

    def __init__(
        self,
        estimator: MedicalClassifier,
        scale: float = 0.4,
        rotation_max: float = 22.5,
        scale_range: tuple[float, float] = (0.1, 1.0),
        learning_rate: float = 5.0,
        nb_epochs: int = 7,
        patch_size: int | None = None,
        batch_size: int = 8,
        targeted: bool = False,
        quantise: bool = True,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param estimator: The classifier that the patch is trained and shown on.
        :param scale: Diameter of the disc over the side of the image, when it is shown.
        :param rotation_max: Largest rotation in degrees, in training and when it is shown.
        :param scale_range: Range of the scale in training.
        :param learning_rate: Step of plain gradient descent for pixels on the scale [-1, 1], as in the paper's code;
            it is converted to the domain.
        :param nb_epochs: Passes over the training images for each target class.
        :param patch_size: Side of the patch in its own pixels; by default the side of the image.
        :param batch_size: Images in one step.
        :param targeted: Whether ``y`` of ``generate`` is the label to reach.
        :param quantise: Return images that the file can hold.
        :param seed: Seeds order, transforms and places.
        :param verbose: Show a progress bar over batches of ``generate``.
        """
        super().__init__(
            estimator,
            scale=scale,
            rotation_max=rotation_max,
            targeted=targeted,
            batch_size=batch_size,
            quantise=quantise,
            seed=seed,
            verbose=verbose,
        )
        self.scale_range = scale_range
        self.learning_rate = learning_rate
        self.nb_epochs = nb_epochs
        self.patch_size = patch_size
        self._check_params()

    @property
    def passes(self) -> int:
        """Epochs for each class."""
        return self.nb_epochs * int(self.estimator.nb_classes)

    def fit(
        self,
        x: NDArray[Any],
        y: NDArray[Any] | None = None,
        report: Callable[[int], None] = lambda images: None,
    ) -> None:
        """Train one patch for each class; parameters as in :meth:`PatchAttack.fit`."""
        images = self.estimator.check(x)
        self._need_planes(images)
        with inference(self.estimator.model):
            patches = [self._train(images, target, report) for target in range(self.estimator.nb_classes)]
        self.patches = torch.stack(patches).cpu().numpy()

    def _train(self, images: NDArray[np.float32], target: int, report: Callable[[int], None]) -> Tensor:
        low, high = self.domain.clip_values
        side = self.patch_size or images.shape[-1]
        device = self.estimator.device
        patch = torch.full((images.shape[1], side, side), (low + high) / 2, device=device)
        # d/dp on [-1, 1] is span/2 times d/dp in stored units, and so is a step back.
        rate = self.learning_rate * (self.domain.span / 2) ** 2
        order = torch.Generator().manual_seed(self.seed)
        for epoch in range(self.nb_epochs):
            shuffled = torch.randperm(len(images), generator=order).numpy()
            for start in range(0, len(images), self.batch_size):
                rows = shuffled[start : start + self.batch_size]
                noise = Noise(self.seed, [f"{target}-{epoch}-{row}" for row in rows], "training")
                place = Placement.draw(noise, self.scale_range, self.rotation_max)
                patch.requires_grad_(True)
                clean = self._tensor(images[rows])
                z = self.scores(self._on_attackable(clean, place.paste(clean, patch)))
                loss = functional.cross_entropy(z, torch.full((len(rows),), target, device=device))
                (gradient,) = torch.autograd.grad(loss, patch)
                patch = (patch.detach() - rate * gradient).clamp_(low, high)
                report(len(rows))
        return patch

    def _check_params(self) -> None:
        super()._check_params()
        low, high = self.scale_range
        if not 0 < low <= high <= 1:
            raise InputError(f"scale_range must be ordered and in (0, 1], got {self.scale_range!r}")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be positive, got {self.learning_rate!r}")
        if self.nb_epochs < 1:
            raise InputError(f"nb_epochs must be at least 1, got {self.nb_epochs!r}")


class NaturalPatch(PatchAttack):
    """The control: a disc cut from the training image with the highest probability of the target class.

    The disc is the middle of that image at full size, shown at the same scale, rotation and places as the adversarial
    patch of equal seed.
    """

    facts = Facts(
        models="A piece of another patient's image in the same place: the control of the adversarial patch.",
        bound="a disc of unlimited contrast",
        access="score",
        dimensions=(2,),
        paper="Finlayson et al. 2018, arXiv 1804.05296",
    )

    def __init__(
        self,
        estimator: MedicalClassifier,
        scale: float = 0.4,
        rotation_max: float = 22.5,
        batch_size: int = 32,
        targeted: bool = False,
        quantise: bool = True,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """Parameters as in :class:`AdversarialPatch`."""
        super().__init__(
            estimator,
            scale=scale,
            rotation_max=rotation_max,
            targeted=targeted,
            batch_size=batch_size,
            quantise=quantise,
            seed=seed,
            verbose=verbose,
        )
        self._check_params()

    @property
    def passes(self) -> int:
        """Once."""
        return 1

    def fit(
        self,
        x: NDArray[Any],
        y: NDArray[Any] | None = None,
        report: Callable[[int], None] = lambda images: None,
    ) -> None:
        """Choose one training image for each class by the model's opinion; parameters as in the base class."""
        images = self.estimator.check(x)
        self._need_planes(images)
        scores = self.estimator.predict(images, batch_size=self.batch_size)
        others = [np.delete(scores, target, axis=1).max(1) for target in range(scores.shape[1])]
        most_typical = [int(np.argmax(scores[:, target] - other)) for target, other in enumerate(others)]
        self.patches = images[most_typical]
        report(len(images))
