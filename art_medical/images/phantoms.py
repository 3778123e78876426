# SPDX-License-Identifier: Apache-2.0
"""A seeded detection task with a known best linear answer: a Gaussian nodule in a lumpy background, 12 bit, 2-D or 3-D.

The background is the lumpy model of Rolland and Barrett (J. Opt. Soc. Am. A 9(5):649-658, 1992) with a Poisson number
of lumps; task, covariance and observer follow Barrett and Myers, *Foundations of Image Science* (Wiley, 2004),
chapters 8 (random processes) and 13 (statistical decision theory). Lumps fall on the pixels of a torus with equal
probability, so background plus noise is stationary without any edge effect, its covariance is circulant, and the
discrete Fourier transform diagonalises it. With ``L`` and ``S`` the transforms of lump and nodule:

- noise power spectrum ``P(f) = density |L(f)|**2 + noise**2 + step**2 / 12``, the last term from rounding;
- Hotelling template ``w = K**-1 s``, which is ``F**-1[S / P]``, and detectability ``d'**2 = s . w``.

The Hotelling observer is the best *linear* observer of this task. The ideal observer is not linear, because the
background is not Gaussian. For an attack it is an oracle: how far an image is from a linear decision is known exactly.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import fft
from scipy.optimize import minimize_scalar
from scipy.special import ndtr

from art_medical.domain import Norm, PixelDomain
from art_medical.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

TWELVE_BIT = PixelDomain(0, 4095, 1, "stored value")
"""Stored pixels of a 12-bit detector."""

STREAM = 1
"""Number of the recipe that turns a seed into pixels; it is part of :meth:`LumpyPhantom.identity`."""

MOST_CLIPPING = 1e-3
"""Largest bound on the share of images with a clipped pixel: the closed forms know nothing of clipping."""


@dataclass(frozen=True)
class LumpyPhantom:
    """Nodule (class 1) or no nodule (class 0) at a known place of a lumpy background; all grey values in stored values.

    The defaults give 64 x 64 pixels with a Hotelling AUC of 0.97; :data:`VOLUME` is the same task in 3-D.

    :param shape: Pixels along each of the 2 or 3 axes.
    :param level: Mean of an image without nodule.
    :param density: Expected number of lumps for one pixel; the number of lumps of an image is Poisson.
    :param lump_amplitude: Height of one lump.
    :param lump_width: Standard deviation of the Gaussian lump, in pixels.
    :param noise: Standard deviation of the white Gaussian noise, at least one storage step: then rounding adds white
        noise of variance ``step**2 / 12`` (Sripad and Snyder, IEEE Trans. ASSP 25(5):442-448, 1977; what is left over
        is below 1e-6 of it).
    :param signal_amplitude: Height of the nodule.
    :param signal_width: Standard deviation of the Gaussian nodule, in pixels; its centre is pixel ``shape // 2``.
    :param domain: Stored pixels.
    :raises InputError: If a parameter is out of range, or pixels may clip in more than one of 1000 images.
    """

    shape: tuple[int, ...] = (64, 64)
    level: float = 1600.0
    density: float = 0.02
    lump_amplitude: float = 180.0
    lump_width: float = 5.0
    noise: float = 50.0
    signal_amplitude: float = 86.0
    signal_width: float = 2.5
    domain: PixelDomain = TWELVE_BIT

    def __post_init__(self) -> None:
        if len(self.shape) not in (2, 3) or any(n != int(n) or n < 1 for n in self.shape):
            raise InputError(f"a phantom has 2 or 3 axes of one pixel or more, got shape {self.shape}")
        for name in (field.name for field in fields(self) if field.name not in ("shape", "domain")):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} of a phantom must be finite and above 0, got {value!r}")
        if self.domain.step is not None and self.noise < self.domain.step:
            raise InputError(f"noise {self.noise!r} must be at least one storage step, {self.domain.step!r}")
        if (bound := self.clipping_probability()) > MOST_CLIPPING:
            raise InputError(
                f"up to {100 * bound:.2g} % of the images may clip at {self.domain.low:g} or {self.domain.high:g}, "
                f"more than {100 * MOST_CLIPPING:g} %: move level {self.level:g}, or lower the amplitudes"
            )

    # -- closed forms --------------------------------------------------------------------------------------------

    def lump(self) -> Floats:
        """One lump at the first pixel of the torus, array of ``shape``."""
        return self.lump_amplitude * _periodic_gaussian(self.shape, self.lump_width)

    def signal(self) -> Floats:
        """The nodule, array of ``shape``: class means are ``level`` and ``level + signal()``."""
        nodule = _periodic_gaussian(self.shape, self.signal_width)
        centre = [n // 2 for n in self.shape]
        return self.signal_amplitude * np.roll(nodule, centre, axis=tuple(range(nodule.ndim)))

    def power_spectrum(self) -> Floats:
        """Noise power spectrum of both classes: the transform (``fftn``) of the autocovariance, array of ``shape``."""
        rounding = (self.domain.step or 0.0) ** 2 / 12
        transfer: Floats = abs(fft.fftn(self.lump()))
        return self.density * transfer**2 + self.noise**2 + rounding

    def hotelling(self) -> HotellingObserver:
        """The Hotelling observer with its threshold at equal distance from both class means.

        The template ``K**-1 s`` makes the statistic a log-likelihood ratio as far as pixels are Gaussian: its class
        means are ``-d'**2 / 2`` and ``d'**2 / 2``, its variance in both classes is ``d'**2``.
        """
        signal = self.signal()
        template = fft.ifftn(fft.fftn(signal) / self.power_spectrum()).real
        template.setflags(write=False)
        offset = -float((template * (self.level + signal / 2)).sum())
        return HotellingObserver(template, offset, math.sqrt(float((template * signal).sum())))

    def clipping_probability(self) -> float:
        """Upper bound on the probability that one image, of either class, has a pixel outside the domain."""
        lump = self.lump()
        above = self.domain.high - self.level - float(self.signal().max())
        below = self.level - self.domain.low
        # The nodule only lifts pixels, so class 1 is the worse one above and class 0 the worse one below.
        tails = _tail(lump, self.density, self.noise, above) + _tail(-lump, self.density, self.noise, below)
        return min(1.0, math.prod(self.shape) * tails)

    def identity(self) -> str:
        """Stable sha256 (hexadecimal) of all parameters and :data:`STREAM`; equal phantoms have equal identities.

        With seed, split and index it names an image. NumPy may change the streams of its distributions (NEP 19), so
        who needs the bytes of an image should hash them too.
        """
        numbers = {f.name: float(getattr(self, f.name)) for f in fields(self) if f.name not in ("shape", "domain")}
        domain = {k: v if v is None or isinstance(v, str) else float(v) for k, v in asdict(self.domain).items()}
        record = {"phantom": "lumpy", "stream": STREAM, "shape": [int(n) for n in self.shape], "domain": domain}
        text = json.dumps(record | numbers, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    # -- images --------------------------------------------------------------------------------------------------

    def sample(
        self, n: int, *, seed: int, split: str = "test", start: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Images ``start, ..., start + n - 1`` of a split.

        Image and label of an index depend on ``seed``, ``split`` and the index alone, so a part of a split has the
        same bytes as in the whole. Images ``2 k`` and ``2 k + 1`` are of different classes in random order: every even
        number of images from an even ``start`` is balanced, and no shard by index, for instance every second
        image, is of one class.

        :param n: Number of images.
        :param seed: Seed of the data set, 0 or more.
        :param split: Name of the split, for instance ``train``; splits are independent of each other.
        :param start: Index of the first image.
        :return: Stored pixels ``(n, 1, *shape)`` and labels ``(n,)``.
        :raises InputError: If ``n``, ``seed`` or ``start`` is negative.
        """
        if n < 0 or seed < 0 or start < 0:
            raise InputError(f"n, seed and start must be 0 or more, got n={n!r}, seed={seed!r}, start={start!r}")
        stream = int.from_bytes(hashlib.sha256(split.encode()).digest()[:4], "big")
        lump = self.lump()
        transfer, signal = fft.rfftn(lump), self.signal()
        ground = self.level - self.density * float(lump.sum())
        x = np.empty((n, 1, *self.shape), np.float32)
        y = np.empty(n, np.int64)
        for row, index in enumerate(range(start, start + n)):
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream, 0, index))))
            y[row] = _label(seed, stream, index)
            # Poisson counts in each pixel are a Poisson number of lumps at uniform places. One transform for each image
            # and not for the batch: its last bits must not depend on the size of the batch.
            counts = rng.poisson(self.density, self.shape).astype(np.float64)
            lumps = fft.irfftn(fft.rfftn(counts) * transfer, self.shape)
            grey = ground + lumps + self.noise * rng.standard_normal(self.shape) + y[row] * signal
            x[row, 0] = self.domain.quantise(grey)
        return x, y


@dataclass(frozen=True, eq=False)
class HotellingObserver:
    """A linear decision, nodule if ``sum(template * x) + offset > 0``, and its exact distance from every image.

    Distances are lengths of the smallest change that puts the statistic on the decision boundary; any longer one can
    flip the decision. They hold up to float64 rounding.

    :param template: Weights of the pixels, array of the phantom's ``shape``, in 1 / stored value.
    :param offset: Constant of the statistic.
    :param detectability: ``d'``, the distance of the class means of the statistic in standard deviations.
    """

    template: Floats
    offset: float
    detectability: float

    @property
    def auc(self) -> float:
        """Area under the ROC curve, ``Phi(d' / sqrt 2)``, for a Gaussian statistic (Barrett and Myers, ch. 13)."""
        return float(ndtr(self.detectability / math.sqrt(2)))

    def statistic(self, x: ArrayLike) -> Floats:
        """Decision statistic ``(n,)`` of images ``(n, 1, *shape)``.

        :raises InputError: If the shape does not fit the template.
        """
        pixels = np.asarray(x, np.float64)
        if pixels.shape[1:] != (1, *self.template.shape):
            expected = ", ".join(map(str, self.template.shape))
            raise InputError(f"expected images of shape (n, 1, {expected}), got {pixels.shape}")
        return pixels.reshape(-1, self.template.size) @ self.template.ravel() + self.offset

    def decide(self, x: ArrayLike) -> NDArray[np.int64]:
        """Decisions ``(n,)``, 1 for nodule; the boundary itself is 0."""
        return (self.statistic(x) > 0).astype(np.int64)

    def smallest_change(self, x: ArrayLike, norm: Norm, domain: PixelDomain | None = None) -> Floats:
        """The change of least norm that puts the statistic of each image on the boundary.

        Without a box it is ``-t sign(w) / ||w||_1`` or ``-t w / ||w||_2**2``. With a box pixels stop at its faces, and
        what they cannot give is shared by the others (the conditions of Karush, Kuhn and Tucker for one equation).

        :param x: Images ``(n, 1, *shape)``, inside ``domain``.
        :param norm: ``linf`` or ``l2``.
        :param domain: Box that the changed image must stay in; its grid plays no role here. ``None``: no box.
        :return: ``(n, 1, *shape)``; NaN where no image of the box reaches the boundary.
        :raises InputError: If ``norm`` is unknown, the shape is wrong or a pixel lies outside ``domain``.
        """
        gain = abs(self.template).ravel()
        units = {"linf": np.ones_like(gain), "l2": gain}
        if norm not in units:
            raise InputError(f"norm must be linf or l2, got {norm!r}")
        unit = units[norm]
        statistic = self.statistic(x)
        pixels = np.asarray(x, np.float64).reshape(-1, gain.size)
        change = np.empty_like(pixels)
        for row, t in enumerate(statistic):
            towards = np.sign(self.template).ravel() * (-1 if t > 0 else 1)
            room = _room(pixels[row], towards, domain)
            size = _water_level(gain, unit, room, abs(t))
            change[row] = towards * np.minimum(size * unit, room) if math.isfinite(size) else np.nan
        return change.reshape(np.shape(x))

    def smallest_perturbation(self, x: ArrayLike, norm: Norm, domain: PixelDomain | None = None) -> Floats:
        """Norm ``(n,)`` of :meth:`smallest_change`, in stored values; infinite where the box holds no such image."""
        change = self.smallest_change(x, norm, domain).reshape(-1, self.template.size)
        length = abs(change).max(1) if norm == "linf" else np.sqrt((change**2).sum(1))
        return np.where(np.isnan(length), np.inf, length)

    def smallest_stored_perturbation(self, x: ArrayLike, domain: PixelDomain) -> Floats:
        """Smallest L-infinity budget ``(n,)``, a whole number of steps, in which a stored image is decided otherwise.

        For whole steps and stored pixels the best change of a linear statistic is itself on the grid, so the answer of
        the continuous problem, rounded up, is exact; a decision for 0 flips only beyond the boundary.

        :param x: Stored images ``(n, 1, *shape)``.
        :param domain: Box and grid.
        :return: Budgets in the unit of ``domain``; infinite where no stored image is decided otherwise.
        :raises InputError: If ``domain`` has no grid, or ``x`` is not on it.
        """
        if domain.step is None or not domain.on_grid(np.asarray(x, np.float64)):
            raise InputError(f"expected stored pixels {domain.low:g}, ..., {domain.high:g} in steps of {domain.step}")
        statistic = self.statistic(x)
        steps = self.smallest_perturbation(x, "linf", domain) / domain.step
        steps = np.where(statistic > 0, np.ceil(steps), np.floor(steps) + 1)
        furthest = (self.template > 0) * domain.high + (self.template < 0) * domain.low
        never = float((self.template * furthest).sum()) + self.offset <= 0
        return np.where((statistic <= 0) & never, np.inf, steps * domain.step)


def _label(seed: int, stream: int, index: int) -> int:
    """One fair coin for each pair of images says which of the two has the nodule."""
    coin = np.random.SeedSequence(seed, spawn_key=(stream, 1, index // 2)).generate_state(1)[0]
    return (int(coin) + index) % 2


def _periodic_gaussian(shape: tuple[int, ...], width: float) -> Floats:
    """Gaussian of height 1 around the first pixel, summed over all periods of the torus ``shape``."""

    def along(n: int) -> Floats:
        # 9 widths away a Gaussian is below the resolution of float64.
        periods = math.ceil(9 * width / n)
        distance = np.arange(n)[:, None] + n * np.arange(-periods - 1, periods + 1)
        return np.asarray(np.exp(-((distance / width) ** 2) / 2).sum(1))

    return reduce(np.multiply.outer, [along(n) for n in shape])


def _tail(lump: Floats, density: float, noise: float, excess: float) -> float:
    """Bound on ``P(v >= mean + excess)`` of one pixel ``v``, shot noise of ``lump`` plus Gaussian noise.

    Chernoff's bound; by Campbell's theorem the cumulant generating function of centred shot noise is
    ``density * sum(exp(slope * lump) - 1 - slope * lump)``. Give ``-lump`` for the lower tail.
    """
    variance = density * float((lump**2).sum()) + noise**2
    if excess <= 0 or variance == 0:
        return float(excess <= 0)

    def exponent(slope: float) -> float:
        u = slope * lump
        return density * float((np.expm1(u) - u).sum()) + (noise * slope) ** 2 / 2 - slope * excess

    # Every slope above 0 gives a valid bound, so the search may be coarse; exp(500) does not overflow.
    steepest = 500 / max(float(abs(lump).max()), noise)
    best: Any = minimize_scalar(exponent, bounds=(0.0, steepest), method="bounded")
    return math.exp(min(0.0, float(best.fun)))


def _room(pixels: Floats, towards: Floats, domain: PixelDomain | None) -> Floats:
    """How far each pixel can move towards its side (-1, 0 or 1) of the box."""
    if domain is None:
        return np.full_like(pixels, np.inf)
    if pixels.size and not (pixels.min() >= domain.low and pixels.max() <= domain.high):
        raise InputError(
            f"pixels must lie between {domain.low:g} and {domain.high:g}, got {pixels.min():g} to {pixels.max():g}"
        )
    return np.where(towards > 0, domain.high - pixels, pixels - domain.low)


def _water_level(gain: Floats, unit: Floats, room: Floats, target: float) -> float:
    """Smallest ``a >= 0`` with ``sum(gain * min(a * unit, room)) = target``, infinite if there is none.

    The left side grows with ``a``, piecewise linear with a knot where a pixel has used up its room: sort the knots,
    find the first one that is not before the target, and solve the linear piece that ends there.
    """
    if target == 0:
        return 0.0
    moving = gain > 0
    gain, unit, room = gain[moving], unit[moving], room[moving]
    order = np.argsort(room / unit, kind="stable")
    gain, unit, room = gain[order], unit[order], room[order]
    slope = np.cumsum((gain * unit)[::-1])[::-1]
    spent = np.concatenate([[0.0], np.cumsum(gain * room)[:-1]])
    beyond = np.flatnonzero(spent + slope * (room / unit) >= target)
    if beyond.size == 0:
        return math.inf
    return float((target - spent[beyond[0]]) / slope[beyond[0]])


PLANE = LumpyPhantom()
"""The default task in 2-D."""

VOLUME = LumpyPhantom(
    shape=(24, 24, 24), density=0.005, lump_amplitude=230.0, lump_width=3.0, signal_amplitude=71.0, signal_width=1.5
)
"""The default task in 3-D: a small volume of the same difficulty."""
