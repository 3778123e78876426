# SPDX-License-Identifier: Apache-2.0
"""Where clean images have their features: a Gaussian mixture for one layer and class, differentiable."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_LEAST_WEIGHT = 1e-12
"""Of a component, so that its logarithm is finite."""


@dataclass(frozen=True)
class FeatureMixture:
    """Weights ``pi_k``, means ``mu_k`` and factors ``P_k`` of the precisions ``P_k P_k^T``; float64, ``d`` dimensions.

    :param log_density: ``log pi_k + sum_i log (P_k)_ii``, shape ``(k,)``.
    :param means: ``(k, d)``.
    :param factors: ``(k, d, d)``.
    :param origin: What is subtracted from features ``(channels,)`` before they are projected.
    :param projection: ``(channels, d)``; principal axes of a layer that is too wide, otherwise the identity.
    """

    log_density: Tensor
    means: Tensor
    factors: Tensor
    origin: Tensor
    projection: Tensor

    @classmethod
    def fit(
        cls, features: Floats, *, n_components: int = 1, shrinkage: float = 0.1, widest: int = 512, seed: int = 0
    ) -> FeatureMixture:
        """Variational Bayesian mixture, 2 initialisations and up to 1000 iterations as in the paper's code (HFC).

        Each covariance is shrunk to ``(1 - s) S + s tr(S) / d I``, so that it can be inverted with fewer images than
        channels; a channel that never varies counts with a millionth of the mean variance.

        :param features: ``(N, channels)``, two rows or more.
        :param n_components: At most this many, and at most one for two rows.
        :param shrinkage: ``s`` in [0, 1].
        :param widest: Largest ``d``.
        :param seed: Seeds the initialisation.
        """
        from sklearn.mixture import BayesianGaussianMixture

        origin = features.mean(0)
        centred = features - origin
        axes = np.eye(features.shape[1])
        if features.shape[1] > widest:
            axes = np.linalg.svd(centred, full_matrices=False)[2][:widest].T
        z = centred @ axes
        # On the scale of the layer, sklearn's absolute tolerances mean the same for every layer.
        scale = max(float(np.sqrt((z**2).mean())), 1e-6 * (1 + float(np.abs(origin).max())))
        mixture = BayesianGaussianMixture(
            n_components=min(n_components, max(1, len(z) // 2)),
            covariance_type="full",
            n_init=2,
            max_iter=1000,
            reg_covar=1e-6,
            random_state=seed,
        ).fit(z / scale)
        d = z.shape[1]
        mean_variance = np.trace(mixture.covariances_, axis1=1, axis2=2)[:, None, None] / d
        covariances = (1 - shrinkage) * mixture.covariances_ + shrinkage * mean_variance * np.eye(d)
        factors = np.linalg.inv(np.linalg.cholesky(covariances)).transpose(0, 2, 1) / scale
        log_density = np.log(np.maximum(mixture.weights_, _LEAST_WEIGHT))
        log_density = log_density + np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(1)
        return cls(*map(torch.from_numpy, (log_density, mixture.means_ * scale, factors, origin, axes)))

    def distance(self, features: Tensor) -> Tensor:
        """``mean_d ((z - mu_k) P_k)_d^2`` for the likeliest ``k``: features ``(n, channels)`` to float64 ``(n,)``.

        Clean images have 1 on average. The choice of ``k`` has no gradient.
        """
        z = (features.double() - self.origin) @ self.projection
        squares = torch.einsum("nkd,kde->nke", z[:, None] - self.means, self.factors) ** 2
        best = (self.log_density - squares.sum(2) / 2).argmax(1)
        return squares.mean(2).gather(1, best[:, None])[:, 0]

    def to(self, device: torch.device) -> FeatureMixture:
        """The same on a device."""
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))
