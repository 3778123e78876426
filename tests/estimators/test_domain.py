# SPDX-License-Identifier: Apache-2.0
"""The stored pixel: grid, range, budgets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from art_medical.domain import PixelDomain
from art_medical.errors import InputError

GREY = PixelDomain(0, 255)
HU = PixelDomain(-1024, 3071, unit="HU")
FLOATS = PixelDomain(-1, 1, step=None, unit="share")
QUARTERS = PixelDomain(-2, 3, step=0.25, unit="mSv")
domains = pytest.mark.parametrize("domain", [GREY, HU, QUARTERS, FLOATS], ids=lambda d: d.unit)


@domains
@given(values=st.lists(st.floats(-5000, 5000, width=32), min_size=1, max_size=20))
def test_quantise_is_the_nearest_stored_value(domain: PixelDomain, values: list[float]) -> None:
    """Against the list of all stored values; the same in NumPy and torch, and a projection."""
    x = np.array(values, np.float32)
    result = domain.quantise(x)
    if domain.step is None:
        np.testing.assert_array_equal(result, np.clip(x, -1, 1))
    else:
        stored = np.arange(domain.low, domain.high + domain.step / 2, domain.step)
        assert np.isin(result, stored).all()
        np.testing.assert_allclose(np.abs(x - result), np.abs(x[:, None] - stored).min(1), rtol=1e-6)
    np.testing.assert_array_equal(domain.quantise(torch.from_numpy(x)).numpy(), result)
    np.testing.assert_array_equal(domain.quantise(result), result)
    assert domain.on_grid(result)


@pytest.mark.parametrize(
    ("domain", "value", "expected"),
    [
        (GREY, 17.0, True),
        (GREY, 17.3, False),
        (GREY, 255.00001, True),
        (GREY, 256.0, False),
        (GREY, -1.0, False),
        (QUARTERS, 0.75, True),
        (QUARTERS, 0.8, False),
        (FLOATS, 0.123, True),
        (FLOATS, 1.1, False),
    ],
)
def test_on_grid(domain: PixelDomain, value: float, expected: bool) -> None:
    """One pixel off the grid, or outside the range, is enough."""
    pixels = np.array([domain.low, value, domain.high], np.float32)
    assert domain.on_grid(pixels) is expected
    assert domain.on_grid(torch.from_numpy(pixels)) is expected


@given(eps=st.floats(0, 100))
def test_whole_steps_is_the_largest_budget_on_the_grid(eps: float) -> None:
    """Never above ``eps``, and one step more would be; up to the tolerance that lets 3 * 0.1 count as 0.3."""
    for domain in (GREY, QUARTERS):
        assert domain.step is not None
        whole = domain.whole_steps(eps)
        assert (whole / domain.step).is_integer()
        assert whole <= eps + 1e-6 * domain.step < whole + domain.step * (1 + 1e-6)
    assert FLOATS.whole_steps(eps) == eps
    assert PixelDomain(0, 1, step=0.1).whole_steps(0.1 + 0.2) == pytest.approx(0.3)


def test_budget_from_another_scale() -> None:
    """Finlayson et al. 2018 state 0.02 on [-1, 1]: 2.55 of 255 grey levels; on CT 40.95 HU."""
    assert GREY.from_scale(0.02, (-1, 1)) == pytest.approx(2.55)
    assert HU.from_scale(0.02, (-1, 1)) == pytest.approx(40.95)
    with pytest.raises(InputError, match="low < high"):
        GREY.from_scale(0.02, (1, -1))


def test_words() -> None:
    """Units take a plural s, abbreviations do not."""
    assert GREY.describe(1) == "1 grey level (0.39 % of the range)"
    assert GREY.describe(2.5) == "2.5 grey levels (0.98 % of the range)"
    assert HU.describe(40.95) == "40.95 HU (1 % of the range)"
    assert (GREY.span, GREY.clip_values, HU.span) == (255, (0, 255), 4095)


@pytest.mark.parametrize(
    "wrong",
    [
        {"low": 1, "high": 1},
        {"low": 2, "high": 1},
        {"low": math.nan, "high": 1},
        {"low": 0, "high": math.inf},
        {"low": 0, "high": 1, "step": 0.3},
        {"low": 0, "high": 1, "step": 0},
        {"low": 0, "high": 1, "step": -1},
        {"low": 0, "high": 1, "step": math.nan},
    ],
)
def test_refusals(wrong: dict[str, Any]) -> None:
    """An empty or endless range, or one that is no whole number of steps, is refused in one line."""
    with pytest.raises(InputError) as caught:
        PixelDomain(**wrong)
    assert "\n" not in str(caught.value)
