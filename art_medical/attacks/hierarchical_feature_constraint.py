# SPDX-License-Identifier: Apache-2.0
"""Hierarchical feature constraint, HFC (Yao et al. 2021, arXiv 2012.09501, MICCAI; arXiv 2312.01679).

Attacks on medical classifiers move features far from where clean images put them, which is what detectors look for.
This one pulls the features of every layer to where clean images of the *target* class have them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from art_medical.attacks.base import Batch, StoredPixelAttack
from art_medical.attacks.facts import Facts
from art_medical.attacks.feature_mixture import FeatureMixture
from art_medical.attacks.joint_search import search_jointly
from art_medical.attacks.loop import Found
from art_medical.attacks.objectives import Objective, margin
from art_medical.attacks.optimisers import Optimiser
from art_medical.attacks.perturbations import additive
from art_medical.errors import InputError
from art_medical.estimators.module import inference, plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from art_medical.estimators.classifier import MedicalClassifier


@contextmanager
def pooled_features(network: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Features of several layers from the same pass, averaged over space: name to ``(n, channels)``.

    As in :meth:`~art_medical.estimators.classifier.MedicalClassifier.get_activations` the last call of a layer counts,
    of a tuple the first entry, and no hook stays behind; that method makes one pass for each layer.
    """
    modules = dict(network.named_modules())
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_layer: nn.Module, _args: Any, output: Any) -> None:
            first = plain(output[0] if isinstance(output, tuple | list) else output)
            # The mean is a copy, so that the next layer may work in place.
            kept[name] = first.flatten(2).mean(2) if first.ndim > 2 else first.clone()

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in layers]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


class TowardsClean(Objective):
    """``J = CE(f(x'), t) + lambda * sum_l mean_d(...)`` of logits and, behind them, the feature term: ``(n, K + 1)``.

    Labels are rows ``(n, 2)``: the class that decides on success, and the class ``t`` whose features are imitated.
    """

    def __init__(self, targeted: bool, weight: float) -> None:
        super().__init__(targeted)
        self.weight = weight

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        # CE(z, t) = softplus(-margin) for two classes; for more the log-sum takes the place of the largest.
        others = z[:, :-1].scatter(1, y[:, 1:], -torch.inf).logsumexp(1)
        deviation = functional.softplus(others - z.gather(1, y[:, 1:])[:, 0])
        return deviation + self.weight * z[:, -1]

    def distance(self, z: Tensor, y: Tensor) -> Tensor:
        return self.sign * margin(z[:, :-1], y[:, 0])


class MomentumSignSteps(Optimiser):
    """``g <- mu g + grad / ||grad||_1``, ``x <- x - a sign(g)`` (Dong et al. 2018, arXiv 1710.06081, section 3.1).

    :param eps_step: ``a`` of each sample ``(n,)``.
    :param momentum: ``mu``; 0 makes plain sign steps.
    """

    def __init__(self, eps_step: Tensor, momentum: float) -> None:
        super().__init__(eps_step)
        self.momentum = momentum
        self.g: Tensor | None = None

    def step(self, theta: Tensor, gradient: Tensor) -> Tensor:
        shape = (-1, *(1,) * (theta.ndim - 1))
        unit = gradient / gradient.flatten(1).abs().sum(1).clamp(min=1e-30).view(shape)
        self.g = unit if self.g is None else unit.add_(self.g, alpha=self.momentum)
        return theta.addcmul_(self.g.sign(), self.eps_step.view(shape), value=-1)


class HierarchicalFeatureConstraint(StoredPixelAttack):
    """Reach another class with features that a clean image of that class could have; :meth:`fit` learns those.

    Untargeted, ``t`` is the class that the clean image is nearest to among the others that :meth:`fit` has seen; with
    two classes there is only one.
    """

    facts = Facts(
        models="Whoever changes pixels and must also pass a detector that watches the features of the network.",
        bound="linf",
        access="white",
        dimensions=(2, 3),
        paper="Yao et al. 2021, arXiv 2012.09501",
    )

    attack_params = [
        *StoredPixelAttack.attack_params,
        "eps",
        "eps_step",
        "max_iter",
        "layers",
        "feature_weight",
        "momentum",
        "n_components",
        "shrinkage",
        "widest",
        "confidence",
    ]

    def __init__(
        self,
        estimator: MedicalClassifier,
        eps: float | NDArray[Any] = 2.0,
        eps_step: float | NDArray[Any] | None = None,
        max_iter: int = 40,
        layers: Sequence[str | int] | None = None,
        feature_weight: float = 1.0,
        momentum: float = 0.0,
        n_components: int = 1,
        shrinkage: float = 0.1,
        widest: int = 512,
        confidence: float = 0.0,
        batch_size: int = 32,
        targeted: bool = False,
        quantise: bool = True,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param estimator: The classifier to attack.
        :param eps: L-infinity budget in the unit of the stored pixel, one number or one for each sample. With
            ``quantise`` it is rounded down to whole steps of the storage grid. The paper's n / 256 on [0, 1] is about
            n grey levels.
        :param eps_step: Length of one step in the same unit; by default ``2 * eps / max_iter``, the paper's relation.
        :param max_iter: Steps; the paper takes from 16 to 200.
        :param layers: Dotted names (or indices into ``estimator.layer_names``) of the layers whose features are
            constrained; by default all convolutions, or all layers of a network without any.
        :param feature_weight: ``lambda``; 0 leaves the class term alone.
        :param momentum: ``mu`` in [0, 1): 0 for the paper's BIM base, 0.5 for its MI base.
        :param n_components: Gaussians of each layer and class, at most.
        :param shrinkage: Share in [0, 1] of each covariance that is replaced by its mean variance in all directions.
        :param widest: Channels of the widest layer that is modelled as it is; wider ones through this number of
            principal components (the paper's code leaves them out).
        :param confidence: Margin in logits by which the decision must be wrong; of the images that reach it the one
            with the lowest objective is returned. Infinity returns the most wrong one.
        :param batch_size: Images in one pass.
        :param targeted: Whether ``y`` is the label to reach.
        :param quantise: Return images that the file can hold.
        :param seed: Seeds the initialisation of the mixtures.
        :param verbose: Show a progress bar over batches.
        """
        super().__init__(
            estimator, targeted=targeted, quantise=quantise, batch_size=batch_size, seed=seed, verbose=verbose
        )
        self.eps = eps
        self.eps_step = eps_step
        self.max_iter = max_iter
        self.layers = layers
        self.feature_weight = feature_weight
        self.momentum = momentum
        self.n_components = n_components
        self.shrinkage = shrinkage
        self.widest = widest
        self.confidence = confidence
        self.mixtures: Mapping[int, Mapping[str, FeatureMixture]] | None = None
        self._check_params()

    @property
    def passes(self) -> int:
        """:meth:`fit` looks at each image once."""
        return 1

    def fit(
        self,
        x: NDArray[Any],
        y: NDArray[Any] | None = None,
        report: Callable[[int], None] = lambda images: None,
    ) -> None:
        """Learn the features of clean images of each class, into ``mixtures``; class, then layer.

        :param x: Stored pixels ``(N, C, *spatial)`` of training images: those that the attacker can have.
        :param y: True labels; images that the model decides otherwise are left out. ``None``: its own decisions.
        :param report: Called with the number of images seen since the last call.
        :raises InputError: If a layer does not exist, or no class has two images.
        """
        images = self.estimator.check(x)
        labels = None if y is None else self.estimator.encode(y).argmax(1)
        if labels is not None and len(labels) != len(images):
            raise InputError(f"got {len(labels)} labels for {len(images)} images")
        pooled, decisions = self._look(images, self._layer_names(images[:1]), report)
        right = np.ones(len(images), bool) if labels is None else decisions == labels
        members = {int(c): right & (decisions == c) for c in np.unique(decisions)}
        self.mixtures = {
            c: {name: self._mixture(of_layer[chosen]) for name, of_layer in pooled.items()}
            for c, chosen in members.items()
            if chosen.sum() > 1
        }
        if not self.mixtures:
            raise InputError(f"no class has two images that are decided rightly among {len(images)}; fit on more")

    def _look(
        self, images: NDArray[np.float32], layers: Sequence[str], report: Callable[[int], None]
    ) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]:
        """Features of each layer ``(N, channels)`` and decisions ``(N,)``."""
        features: dict[str, list[NDArray[np.float64]]] = {name: [] for name in layers}
        decisions = [np.zeros(0, np.int64)]
        network = self.estimator.network
        with inference(self.estimator.model), torch.no_grad(), pooled_features(network, layers) as kept:
            for start in range(0, len(images), self.batch_size):
                rows = self._tensor(images[start : start + self.batch_size])
                decisions.append(self.scores(rows).argmax(1).cpu().numpy())
                for name in layers:
                    features[name].append(kept[name].double().cpu().numpy())
                report(len(rows))
        return {name: np.concatenate(parts) for name, parts in features.items() if parts}, np.concatenate(decisions)

    def _mixture(self, features: NDArray[np.float64]) -> FeatureMixture:
        mixture = FeatureMixture.fit(
            features,
            n_components=self.n_components,
            shrinkage=self.shrinkage,
            widest=self.widest,
            seed=self.seed,
        )
        return mixture.to(self.estimator.device)

    def _layer_names(self, one: NDArray[np.float32]) -> list[str]:
        """The layers by name; asking the estimator for their activations refuses those that it does not have."""
        names = self.estimator.layer_names
        if self.layers is None:
            modules = dict(self.estimator.network.named_modules())
            convolutions = [name for name in names if isinstance(modules[name], nn.modules.conv._ConvNd)]
            network = self.estimator.network
            with (
                inference(self.estimator.model),
                torch.no_grad(),
                pooled_features(network, convolutions or names) as kept,
            ):
                self.scores(self._tensor(one))
            return list(kept)
        for layer in self.layers:
            self.estimator.get_activations(one, layer)
        return [names[layer] if isinstance(layer, int) else layer for layer in self.layers]

    def _attack(self, batch: Batch) -> Found:
        if self.mixtures is None:
            raise InputError("the features of clean images are not known yet: call fit with training images first")
        eps = batch.per_sample("eps", self.eps)
        eps_step = 2 * eps / max(self.max_iter, 1)
        if self.eps_step is not None:
            eps_step = batch.per_sample("eps_step", self.eps_step)
        found = Found.nothing_yet(batch.x)
        towards = self._towards(batch, found)
        layers = list(next(iter(self.mixtures.values())))
        with pooled_features(self.estimator.network, layers) as kept:
            search_jointly(
                lambda x, rows: self._look_jointly(x, towards[rows], kept),
                additive("linf", batch.x, eps, self.domain, self.quantise, batch.mask),
                TowardsClean(self.targeted, self.feature_weight),
                MomentumSignSteps(eps_step, self.momentum),
                torch.stack([batch.y, towards], 1),
                found,
                max_iter=self.max_iter,
                confidence=self.confidence,
            )
        return found

    def _towards(self, batch: Batch, found: Found) -> Tensor:
        """The class ``t`` of each sample ``(n,)``."""
        assert self.mixtures is not None
        known = torch.tensor(sorted(self.mixtures), device=batch.x.device)
        if self.targeted:
            wanted = batch.y
        else:
            with torch.no_grad():
                z = self.scores(batch.x)
            found.forward += 1
            open_to = torch.full_like(z, -torch.inf)
            open_to[:, known] = z[:, known]
            wanted = open_to.scatter(1, batch.y[:, None], -torch.inf).argmax(1)
        missing = wanted[~torch.isin(wanted, known) | (not self.targeted) & (wanted == batch.y)]
        if len(missing):
            seen = ", ".join(map(str, sorted(self.mixtures)))
            raise InputError(
                f"fit has seen two images or more of the classes {seen} only, and none other than class "
                f"{int(missing[0])} to imitate; fit on images of every class"
            )
        return wanted

    def _look_jointly(self, x: Tensor, towards: Tensor, kept: dict[str, Tensor]) -> Tensor:
        """Decision logits and, in the last column, the distance of the features to clean ones of class ``towards``."""
        assert self.mixtures is not None
        z = self.scores(x)
        term = z.new_zeros(len(z))
        for c in sorted(set(towards.tolist())):
            rows = (towards == c).nonzero()[:, 0]
            for name, mixture in self.mixtures[c].items():
                term = term.index_add(0, rows, mixture.distance(kept[name][rows]).to(term.dtype))
        return torch.cat([z, term[:, None]], 1)

    def _check_params(self) -> None:
        super()._check_params()
        for name in ("eps", "eps_step"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) & (np.asarray(value) > 0)).all():
                raise InputError(f"{name} must be positive, in {self.domain.units}, got {value!r}")
        for name, least in (("max_iter", 0), ("n_components", 1), ("widest", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be a whole number of {least} or more, got {value!r}")
        if self.layers is not None and (isinstance(self.layers, str) or not self.layers):
            raise InputError(f"layers must be a list of names, at least one, got {self.layers!r}")
        if not (math.isfinite(self.feature_weight) and self.feature_weight >= 0):
            raise InputError(f"feature_weight must be 0 or more, got {self.feature_weight!r}")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum must be in [0, 1), got {self.momentum!r}")
        if not 0 <= self.shrinkage <= 1:
            raise InputError(f"shrinkage must be in [0, 1], got {self.shrinkage!r}")
        if not self.confidence >= 0:
            raise InputError(f"confidence is a margin in logits of 0 or more, got {self.confidence!r}")
