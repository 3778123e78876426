# SPDX-License-Identifier: Apache-2.0
"""Input steps: values against MONAI, pydicom and Pillow, gradients against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import NormalizeIntensity, ScaleIntensity
from monai.transforms import Resize as MonaiResize
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from pydicom.dataset import Dataset
from pydicom.pixels import apply_windowing
from torch import Tensor

from art_medical.estimators.steps import (
    MinMax,
    Normalise,
    Repeat,
    Rescale,
    Resize,
    Step,
    Transpose,
    Window,
    ZScore,
)

SHAPES = {2: (3, 2, 7, 6), 3: (2, 2, 5, 4, 6)}
both = pytest.mark.parametrize("shape", SHAPES.values(), ids=["2-D", "3-D"])


def pixels(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Distinct stored values, so that minimum and maximum have one place each; a quarter of them 0."""
    rng = np.random.default_rng(3)
    values = rng.permutation(int(np.prod(shape))).astype(np.float64).reshape(shape)
    values[rng.random(shape) < 0.25] = 0
    return torch.as_tensor(values, dtype=dtype)


def each(transform: Any, x: Tensor) -> Tensor:
    """MONAI transforms take one image at a time."""
    return torch.stack([torch.as_tensor(np.asarray(transform(image))) for image in x])


@both
def test_rescale_and_normalise(shape: tuple[int, ...]) -> None:
    """Closed forms; one value for all channels or one for each."""
    x = pixels(shape)
    torch.testing.assert_close(Rescale(scale=0.5, offset=-1024).apply(x), x / 2 - 1024)
    torch.testing.assert_close(Normalise(mean=(10,), std=(4,)).apply(x), (x - 10) / 4)
    result = Normalise(mean=(10, 20), std=(4, 8)).apply(x)
    torch.testing.assert_close(result[:, 0], (x[:, 0] - 10) / 4)
    torch.testing.assert_close(result[:, 1], (x[:, 1] - 20) / 8)


@pytest.mark.parametrize(("centre", "width"), [(40, 400), (-600, 1500), (50.5, 80), (0, 2)])
def test_window_against_pydicom(centre: float, width: float) -> None:
    """DICOM PS3.3 C.11.2.1.2, on all values of a signed 12-bit image; at the edges and in between."""
    values: NDArray[np.int16] = np.arange(-1024, 3072, dtype=np.int16).reshape(64, 64)
    ds = Dataset()
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsStored, ds.PixelRepresentation = 12, 1
    ds.RescaleSlope, ds.RescaleIntercept = 1, 0
    ds.WindowCenter, ds.WindowWidth = centre, width
    theirs = apply_windowing(values, ds)
    low, high = -2048, 2047  # pydicom's range for 12 signed bits
    ours = Window(centre=centre, width=width, low=low, high=high).apply(torch.from_numpy(values.astype(np.float64)))
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-6 * (high - low))
    np.testing.assert_allclose(theirs.max(), high)


def test_window_has_no_gradient_outside() -> None:
    """A pixel that the window hides cannot be used; one inside has the slope of the window."""
    x = torch.tensor([[[[-500.0, 0.0, 100.0, 900.0]]]], requires_grad=True)
    Window(centre=40, width=401, low=-1, high=1).apply(x).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.flatten(), [0, 2 / 400, 2 / 400, 0])


@both
def test_minmax_against_monai(shape: tuple[int, ...]) -> None:
    """Each image by itself, over all its channels."""
    x = pixels(shape) - 30
    result = MinMax().apply(x)
    torch.testing.assert_close(result, each(ScaleIntensity(0.0, 1.0), x))
    torch.testing.assert_close(MinMax().apply(x[:1]), result[:1])


@both
@pytest.mark.parametrize("nonzero", [False, True])
def test_zscore_against_monai(shape: tuple[int, ...], nonzero: bool) -> None:
    """Each image and channel by itself, also when one image has a channel without any non-zero pixel."""
    x = pixels(shape)
    x[1, 0] = 0
    result = ZScore(nonzero=nonzero).apply(x)
    torch.testing.assert_close(
        result, each(NormalizeIntensity(nonzero=nonzero, channel_wise=True), x), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(ZScore(nonzero=nonzero).apply(x[:1]), result[:1])


def test_resize_2d_against_pillow() -> None:
    """Shrinking averages over the pixels that go into one, growing interpolates: Pillow's triangle filter."""
    image = np.random.default_rng(0).uniform(0, 255, (13, 17)).astype(np.float32)
    for size in ((5, 6), (30, 40), (13, 4)):
        theirs = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
        ours = Resize(size=size).apply(torch.from_numpy(image)[None, None])
        np.testing.assert_allclose(ours[0, 0].numpy(), theirs, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("shape", "size"), [((2, 2, 7, 6), (14, 9)), ((2, 2, 5, 4, 6), (8, 3, 6))])
def test_resize_against_monai(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    """Images grow, volumes grow and shrink, as in MONAI's ``Resize``."""
    x = pixels(shape)
    theirs = each(MonaiResize(size, mode="bilinear" if len(size) == 2 else "trilinear", align_corners=False), x)
    torch.testing.assert_close(Resize(size=size).apply(x), theirs, rtol=1e-5, atol=1e-3)


def test_resize_to_the_same_size_is_nothing() -> None:
    """Not even a copy."""
    x = pixels((1, 1, 4, 5))
    assert Resize(size=(4, 5)).apply(x) is x


@both
def test_repeat(shape: tuple[int, ...]) -> None:
    """Grey becomes grey in all channels."""
    x = pixels(shape)[:, :1]
    result = Repeat(channels=3).apply(x)
    assert result.shape == (shape[0], 3, *shape[2:])
    for channel in range(3):
        torch.testing.assert_close(result[:, [channel]], x)


@both
def test_transpose(shape: tuple[int, ...]) -> None:
    """The last two axes change places: pixel (row, column) is found at (column, row)."""
    x = pixels(shape)
    assert Transpose().apply(x)[1, 1, ..., 2, 0].equal(x[1, 1, ..., 0, 2])
    assert Transpose().apply(Transpose().apply(x)).equal(x)


def steps(dimensions: int) -> list[Any]:
    """One of each kind."""
    return [
        Rescale(scale=0.5, offset=-3),
        Window(centre=40, width=60),
        Normalise(mean=(1, 2), std=(3, 4)),
        MinMax(),
        ZScore(),
        ZScore(nonzero=True),
        Resize(size=(3, 4, 5)[:dimensions]),
        Repeat(channels=3),
        Transpose(),
    ]


@pytest.mark.parametrize("dimensions", [2, 3], ids=["2-D", "3-D"])
@pytest.mark.parametrize("index", range(9))
def test_gradients(dimensions: int, index: int) -> None:
    """Analytic against finite differences in float64, the statistics of per-image steps included."""
    step = steps(dimensions)[index]
    shape = (2, 2, 3, 4) if dimensions == 2 else (1, 2, 3, 2, 3)
    x = pixels(shape, torch.float64)
    # Off the edges of the window and off the zeros that mark the background, where there is no derivative.
    x = (x + 0.3).where(x > 0, x) if index != 1 else x + 0.3
    inside = x != 0

    def apply(changed: Tensor) -> Tensor:
        # Background stays background: finite differences would make it foreground.
        return torch.as_tensor(step.apply(changed.where(inside, x) if index == 5 else changed))

    # MinMax: only one minimum, so that it has a derivative.
    start = (x - torch.arange(x.numel()).view(shape) * 1e-2 if index == 3 else x).clone().requires_grad_()
    assert torch.autograd.gradcheck(apply, (start,), eps=1e-6, atol=1e-6)


@both
@pytest.mark.parametrize("step", [MinMax(), ZScore()], ids=["minmax", "zscore"])
def test_one_pixel_moves_all_others(step: MinMax | ZScore, shape: tuple[int, ...]) -> None:
    """The statistics are inside the graph: an output pixel depends on the extreme pixel, and not on other images."""
    x = pixels(shape)
    low = x.flatten(1).argmax(1)
    x.requires_grad_()
    result = step.apply(x)
    middle = result[0].flatten()[1 if low[0] != 1 else 2]
    (gradient,) = torch.autograd.grad(middle, x)
    assert gradient[0].flatten()[low[0]] != 0 or isinstance(step, ZScore)
    assert gradient[0].count_nonzero() > 1
    assert gradient[1].count_nonzero() == 0


@pytest.mark.parametrize("value", [0.0, 255.0, 0.1, 100.3, -1024.0])
@pytest.mark.parametrize("step", [MinMax(), ZScore(), ZScore(nonzero=True)], ids=["minmax", "zscore", "nonzero"])
@pytest.mark.parametrize("shape", [(1, 1, 224, 224), (1, 2, 24, 24, 24)], ids=["2-D", "3-D"])
def test_constant_images(step: Any, value: float, shape: tuple[int, ...]) -> None:
    """A constant image becomes 0, exactly, and its gradient is bounded: no rounding error divided by itself."""
    x = torch.full(shape, value, requires_grad=True)
    result = step.apply(x)
    assert (result == 0).all()
    weights = torch.linspace(-1, 1, x.numel()).view(shape)
    (gradient,) = torch.autograd.grad((result * weights).sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 10 * weights.abs().sum() / 100


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "rescale", "scale": float("nan")},
        {"kind": "window", "centre": 40, "width": 1},
        {"kind": "normalise", "mean": [0.5], "std": [0.5, 0.5]},
        {"kind": "normalise", "mean": [], "std": []},
        {"kind": "normalise", "mean": [0], "std": [0]},
        {"kind": "resize", "size": [0, 4]},
        {"kind": "repeat", "channels": 0},
        {"kind": "sharpen"},
        {"kind": "minmax", "strength": 2},
    ],
)
def test_refused_steps(wrong: dict[str, Any]) -> None:
    """What a card must not say."""
    with pytest.raises(ValidationError):
        TypeAdapter(Step).validate_python(wrong)


def test_steps_survive_json() -> None:
    """Cards keep steps as JSON."""
    adapter = TypeAdapter(list[Step])
    assert adapter.validate_json(adapter.dump_json(steps(3))) == steps(3)
