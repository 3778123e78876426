# SPDX-License-Identifier: Apache-2.0
"""Nearest points of ball and box: exact projections of a change, and its rounding to whole steps of the storage grid.

All functions take a change ``delta`` and how far each value may move in its direction, ``room`` (0 where a mask or a
face of the box holds it), both ``(n, *shape)``, and a budget for each sample ``(n,)``. They return magnitudes or
changes of the same shape. ``room`` may be infinite.
"""

from __future__ import annotations

import torch
from torch import Tensor


def l1_ball(delta: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """Euclidean projection on ``||z||_1 <= eps`` and ``|z_i| <= room_i`` (Croce and Hein 2021, proposition 2.1).

    The solution is ``|z_i| = min(room_i, max(|delta_i| - lam, 0))`` for the smallest ``lam >= 0`` that keeps the
    budget. The sum of these falls with ``lam``, linear between the knots ``|delta_i| - room_i``, where a value leaves
    its face, and ``|delta_i|``, where it is back at zero: sort the knots, find the piece, solve it.

    :return: ``z``.
    """
    size, space = delta.flatten(1).abs(), room.flatten(1)
    over = torch.minimum(size, space).sum(1, dtype=torch.float64) > eps
    kept = torch.minimum(size, space)
    if bool(over.any()):
        # In float64: of a long step, the difference to the threshold is all that counts.
        lam = _shrinkage(size[over], space[over], eps[over])
        kept[over] = torch.minimum((size[over] - lam[:, None]).clamp_(min=0), space[over]).to(kept.dtype)
    return kept.view_as(delta) * delta.sign()


def _shrinkage(size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """``lam`` of :func:`l1_ball` for samples that are over budget, float64 ``(n,)``."""
    # Values that stay where they are have no knot: sparse changes of large images need a short sort only.
    moving = int((size > 0).sum(1).max())
    size, order = size.topk(moving, dim=1)
    size, room = size.double(), room.gather(1, order).double()
    knots = torch.cat([(size - room).clamp(min=0), size], 1)
    turns = torch.cat([-torch.ones_like(size), torch.ones_like(size)], 1)
    knots, order = knots.sort(1)
    slope = turns.gather(1, order).cumsum(1)
    at_zero = torch.minimum(size, room).sum(1, keepdim=True)
    fallen = torch.cat([torch.zeros_like(at_zero), (slope[:, :-1] * knots.diff(dim=1)).cumsum(1)], 1)
    total = at_zero + fallen
    last = ((total >= eps[:, None]).sum(1, keepdim=True) - 1).clamp(min=0)
    steep = -slope.gather(1, last).clamp(max=-1)
    lam = knots.gather(1, last) + (total.gather(1, last) - eps[:, None]) / steep
    return lam[:, 0]


def l2_ball(delta: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """Euclidean projection on ``||z||_2 <= eps`` and ``|z_i| <= room_i``.

    The solution is ``|z_i| = min(room_i, s |delta_i|)`` for the largest ``s <= 1`` that keeps the budget. Values at
    their face leave budget to the others, which raises ``s``, which can only bring more values to their face: the
    iteration ends, usually within a few rounds.

    :return: ``z``.
    """
    shape = (-1, *(1,) * (delta.ndim - 1))
    size = delta.abs()
    square, limit = size.square().flatten(1), room.square().flatten(1)
    budget = eps.double().square()
    at_face = torch.zeros_like(square, dtype=torch.bool)
    while True:
        spent = limit.where(at_face, limit.new_zeros(())).sum(1, dtype=torch.float64)
        free = square.masked_fill(at_face, 0).sum(1, dtype=torch.float64)
        scale = ((budget - spent).clamp(min=0) / free.clamp(min=1e-60)).sqrt().clamp(max=1).to(delta.dtype)
        now_at_face = size * scale.view(shape) > room
        if bool((now_at_face.flatten(1) <= at_face).all()):
            return torch.minimum(size * scale.view(shape), room) * delta.sign()
        at_face |= now_at_face.flatten(1)


def l0_ball(delta: Tensor, room: Tensor, pixels: Tensor) -> Tensor:
    """Euclidean projection on at most ``pixels`` changed positions, all channels of one together, in the box.

    A position that stays brings the distance down by ``|delta|**2 - |delta - clip(delta)|**2``, summed over channels:
    those that bring most are kept (Croce and Hein 2019, section 3.1).

    :param delta: ``(n, C, *spatial)``.
    :param pixels: Whole numbers ``(n,)``.
    :return: ``z``.
    """
    kept = torch.minimum(delta.abs(), room) * delta.sign()
    gain = (kept * (2 * delta - kept)).sum(1, keepdim=True)
    return kept * largest(gain, pixels)


def largest(values: Tensor, count: Tensor) -> Tensor:
    """True at the ``count[i]`` largest entries of sample ``i``, never at more; the shape of ``values``."""
    flat = values.flatten(1)
    most = min(int(count.max()), flat.shape[1])
    order = flat.topk(most, dim=1).indices
    chosen = torch.arange(most, device=values.device)[None, :] < count[:, None]
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, chosen).view_as(values)


def apportion(delta: Tensor, room: Tensor, total: Tensor) -> Tensor:
    """Whole numbers nearest to ``delta`` whose magnitudes add up to its L-1 norm rounded down, at most ``total``.

    The method of largest remainders. Rounding each value by itself would overspend the budget, or leave nothing of a
    change below one half everywhere.

    :param delta: Change in storage steps.
    :param room: Whole numbers of steps.
    :param total: Budget in whole steps ``(n,)``.
    """
    size = torch.minimum(delta.abs(), room)
    # A hair is added: a sum of 100 must not become 99 in float32.
    spend = torch.minimum((size.flatten(1).sum(1, dtype=torch.float64) + 1e-3).floor(), total.double())
    whole = (size + 1e-6).floor()
    left = (spend - whole.flatten(1).sum(1, dtype=torch.float64)).clamp(min=0)
    remainder = (size - whole).masked_fill(whole + 1 > room, -1)
    return torch.minimum(whole + largest(remainder, left), room) * delta.sign()
