# SPDX-License-Identifier: Apache-2.0
"""All attacks, in one order whichever module was imported first."""

from __future__ import annotations

from tests.zoo.hostile import archives, bundles, cards, folders, hubs, pickles, signatures, stage, tensors

_MODULES = (pickles, archives, tensors, bundles, cards, folders, hubs, signatures)
_ORDER = [module.__name__ for module in _MODULES]

TABLE = sorted(stage.TABLE, key=lambda case: _ORDER.index(case.make.__module__))
