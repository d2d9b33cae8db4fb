"""What all augmentations share: a probability, checks, a repr; and those that are made of others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import checks
from fastopt.checks import Array

Rng = np.random.Generator
#: (x, y, rng) -> (x, y)
Transform = Callable[[Any, Any, Rng], tuple[Any, Any]]

#: What augmentations take.
TYPES = (np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.float64))


# ---- Checks -------------------------------------------------------------------------------------------------


def images(x: Any, name: str = "x") -> Array:
    """A batch of images (n, h, w, c), bytes or real numbers, C-contiguous."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, got {type(x).__name__}")
    checks.plain(name, x)
    x = np.asarray(x)
    if x.dtype.newbyteorder("=") not in TYPES:
        raise TypeError(f"{name} must be uint8, float32 or float64, got {x.dtype}")
    if x.ndim != 4:
        raise ValueError(f"{name} must be images of shape (n, h, w, c), got {x.shape}")
    if not x.size:
        raise ValueError(f"{name} must hold an image of a pixel or more, got shape {x.shape}")
    return np.ascontiguousarray(x, x.dtype.newbyteorder("="))


def targets(y: Any, n: int) -> Array | None:
    """Targets (n, …), or None."""
    if y is None:
        return None
    if not isinstance(y, np.ndarray):
        raise TypeError(f"y must be a NumPy array or None, got {type(y).__name__}")
    checks.plain("y", y)
    if y.ndim == 0 or len(y) != n:
        raise ValueError(f"y must have one target for each of {n} images, got shape {y.shape}")
    return y


def generator(rng: Any) -> Rng:
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator, got {type(rng).__name__}")
    return rng


def limits(
    name: str,
    value: Any,
    bounds: str,
    spread: Callable[[float], tuple[float, float]] = lambda value: (value, value),
    least: float | None = None,
) -> tuple[float, float]:
    """The ends of the interval that a number is drawn from: a pair, or what a single number, `least` or more, stands
    for."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name} must be a number or a pair (low, high), got {value!r}")
        low, high = (checks.number(name, each, bounds) for each in value)
        if low > high:
            raise ValueError(f"{name} must be (low, high), got {value!r}")
        return low, high
    low, high = spread(checks.number(name, value, bounds if least is None else f"[{least}, inf)"))
    return checks.number(name, low, bounds), checks.number(name, high, bounds)


def drawn(rng: Rng, ends: tuple[float, float], shape: Any) -> Array:
    """Numbers of an interval, uniformly."""
    return rng.uniform(ends[0], ends[1], shape)


def drawn_log(rng: Rng, ends: tuple[float, float], shape: Any) -> Array:
    """Numbers of an interval above 0, log-uniformly."""
    return np.exp(drawn(rng, (math.log(ends[0]), math.log(ends[1])), shape))


def filling(value: float, dtype: np.dtype[Any]) -> Any:
    """The value for pixels that come from nowhere, in the type of the images."""
    if dtype == np.uint8 and not (0 <= value <= 255 and value == int(value)):
        raise ValueError(f"fill must be an integer in [0, 255] where images are uint8, got {value:g}")
    return dtype.type(value)


def as_bytes(values: Array) -> NDArray[np.uint8]:
    """Real numbers, which are changed in place, rounded to bytes."""
    np.clip(values, 0, 255, out=values)
    return np.rint(values, out=values).astype(np.uint8)


#: Numbers of a chunk: they and what is made of them on the way stay in the cache, and in memory that is at hand.
CHUNK = 2**15


def chunks(n: int, size: int) -> Iterator[slice]:
    """Images of a batch that are worked on at a time, of so many numbers each."""
    step = max(CHUNK // size, 1)
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def per_image(values: Array) -> Array:
    """One number per image, beside (n, h, w, c)."""
    return values[:, None, None, None]


# ---- The base -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Augmentation:
    """The base of augmentations: ``augmentation(x, y, rng)`` returns a batch that was changed at random.

    Images are (n, h, w, c), uint8 or real numbers, and stay of their type. x and y are never written to, and
    may be what is returned.

    Parameters
    ----------
    p : float, default 1.0
        The probability for an image to be changed, independently of the others, in [0, 1].

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> @dataclass(frozen=True, repr=False)
    ... class Invert(augment.Augmentation):
    ...     def _images(self, x, rng):
    ...         return 255 - x
    >>> x, y = Invert(p=1.0)(np.zeros((2, 4, 4, 1), np.uint8), np.arange(2), np.random.default_rng(0))
    >>> x.max(), y.tolist()
    (np.uint8(255), [0, 1])
    """

    p: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        self._set(p=checks.number("p", self.p, "[0, 1]"))

    def __call__(self, x: Array, y: Array | None, rng: Rng) -> tuple[Array, Array | None]:
        """Change a batch.

        Parameters
        ----------
        x : ndarray (n, h, w, c), uint8, float32 or float64
        y : ndarray (n, …) or None
            Targets; only mixing changes them.
        rng : numpy.random.Generator
            The source of all randomness: the same state gives the same numbers.

        Returns
        -------
        x : ndarray (n, h', w', c)
        y : ndarray (n, …) or None

        Raises
        ------
        TypeError, ValueError
            Where the batch is not of this form.
        """
        x = images(x)
        return self._apply(x, targets(y, len(x)), generator(rng))

    def _apply(self, x: Array, y: Array | None, rng: Rng) -> tuple[Array, Array | None]:
        chosen = self._chosen(len(x), rng)
        if chosen.all():
            return self._images(x, rng), y
        if not chosen.any():
            return x, y
        out = x.copy()
        out[chosen] = self._images(x[chosen], rng)
        return out, y

    def _chosen(self, n: int, rng: Rng) -> NDArray[np.bool_]:
        """Which images are changed."""
        return rng.random(n) < self.p if self.p < 1 else np.ones(n, bool)

    def _images(self, x: Array, rng: Rng) -> Array:
        """Changed images, in a new array."""
        raise TypeError("a subclass defines what is done to images")

    def _set(self, **values: Any) -> None:
        """Put checked values in the place of those that were given."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        shown = []
        for each in sorted(fields(self), key=lambda each: bool(each.kw_only)):
            value = getattr(self, each.name)
            if each.default is MISSING:
                shown.append(repr(value))
            elif value != each.default:
                shown.append(f"{each.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


# ---- Augmentations made of others -----------------------------------------------------------------------------


def _transforms(name: str, value: Any) -> tuple[Transform, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a sequence of augmentations, got {type(value).__name__}")
    for i, each in enumerate(value):
        if isinstance(each, type):
            raise TypeError(f"{name}[{i}] must be an augmentation, got the class {each.__name__}: call it")
        if not callable(each):
            raise TypeError(f"{name}[{i}] must be callable as (x, y, rng), got {type(each).__name__}")
    return tuple(value)


@dataclass(frozen=True, repr=False)
class Compose(Augmentation):
    """Augmentations one after the other.

    Parameters
    ----------
    augmentations : sequence of callable
        Each called as ``(x, y, rng) -> (x, y)``.
    p : float, default 1.0
        The probability for an image to go through all of them, or none.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; in a call, where images that are left as they are have another shape.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> augmentation = augment.Compose([augment.HorizontalFlip(), augment.RandomCrop(padding=4)])
    >>> augmentation
    Compose((HorizontalFlip(), RandomCrop(padding=4)))
    >>> x, y = augmentation(np.zeros((2, 32, 32, 3), np.uint8), np.arange(2), np.random.default_rng(0))
    >>> x.shape, y.tolist()
    ((2, 32, 32, 3), [0, 1])
    """

    augmentations: Sequence[Transform]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(augmentations=_transforms("augmentations", self.augmentations))

    def _apply(self, x: Array, y: Array | None, rng: Rng) -> tuple[Array, Array | None]:
        chosen = self._chosen(len(x), rng)
        return _apart(x, y, rng, np.where(chosen, 0, -1), [self._through])

    def _through(self, x: Array, y: Array | None, rng: Rng) -> tuple[Array, Array | None]:
        for each in self.augmentations:
            x, y = each(x, y, rng)
        return x, y


@dataclass(frozen=True, repr=False)
class OneOf(Augmentation):
    """For each image one of several augmentations, at random.

    Images for which the choice is the same go through it as a batch of their own: mixing mixes among them.

    Parameters
    ----------
    augmentations : sequence of callable
        Each called as ``(x, y, rng) -> (x, y)``; all must leave images of the same shape.
    weights : sequence of float, optional
        How often each is chosen, relative to the others; by default all alike.
    p : float, default 1.0

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; in a call, where images come to have different shapes.

    Examples
    --------
    >>> from fastopt.data import augment
    >>> augment.OneOf([augment.HorizontalFlip(p=1), augment.VerticalFlip(p=1)], weights=(3, 1))
    OneOf((HorizontalFlip(p=1.0), VerticalFlip(p=1.0)), weights=(3.0, 1.0))
    """

    augmentations: Sequence[Transform]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(augmentations=_transforms("augmentations", self.augmentations))
        if not self.augmentations:
            raise ValueError("augmentations must hold one or more, got none")
        if self.weights is not None:
            if isinstance(self.weights, (str, bytes)) or not isinstance(self.weights, (Sequence, np.ndarray)):
                raise TypeError(f"weights must be a sequence of numbers, got {type(self.weights).__name__}")
            weights = tuple(checks.number("weights", each, "[0, inf)") for each in self.weights)
            if len(weights) != len(self.augmentations) or not sum(weights):
                raise ValueError(
                    f"weights must be {len(self.augmentations)} numbers, one of them above 0, got {self.weights!r}"
                )
            self._set(weights=weights)

    def _apply(self, x: Array, y: Array | None, rng: Rng) -> tuple[Array, Array | None]:
        chosen = self._chosen(len(x), rng)
        shares = np.ones(len(self.augmentations)) if self.weights is None else np.array(self.weights)
        ends = np.cumsum(shares / shares.max())
        choice = np.searchsorted(ends, rng.random(len(x)) * ends[-1], side="right")
        return _apart(x, y, rng, np.where(chosen, np.minimum(choice, len(ends) - 1), -1), self.augmentations)


def _apart(
    x: Array, y: Array | None, rng: Rng, choice: NDArray[np.int64], transforms: Sequence[Transform]
) -> tuple[Array, Array | None]:
    """Each image through the transformation that is chosen for it, -1 for none, and all of them together again."""
    numbers = np.unique(choice)
    if len(numbers) == 1:
        return transforms[numbers[0]](x, y, rng) if numbers[0] >= 0 else (x, y)
    made: list[tuple[Any, Any, Any]] = []
    for number in numbers:
        members = np.flatnonzero(choice == number)
        part = x[members], None if y is None else y[members]
        made.append((members, *(part if number < 0 else transforms[number](*part, rng))))
    shapes = sorted({(part.shape[1:], part.dtype.name) for _, part, _ in made})
    if len(shapes) > 1:
        raise ValueError(f"images must stay of one shape and type, got {shapes[0]} and {shapes[1]}")
    out = np.empty((len(x), *made[0][1].shape[1:]), made[0][1].dtype)
    for members, part, _ in made:
        out[members] = part
    if y is None:
        return out, None
    targets = [part[2] for part in made]
    if any(part.ndim == 2 for part in targets) and y.ndim == 1:  # soft labels came out of mixing
        classes = next(part.shape[1] for part in targets if part.ndim == 2)
        targets = [part if part.ndim == 2 else one_hot(part, classes) for part in targets]
    joined = np.empty((len(x), *targets[0].shape[1:]), np.result_type(*targets))
    for (members, *_), part in zip(made, targets, strict=True):
        joined[members] = part
    return out, joined


def one_hot(y: Array, classes: int) -> NDArray[np.float32]:
    """Labels (n,) as distributions (n, classes), float32."""
    labels = checks.labels("y", np.ascontiguousarray(y), len(y), classes)
    soft = np.zeros((len(y), classes), np.float32)
    soft[np.arange(len(y)), labels] = 1
    return soft


@dataclass(frozen=True, repr=False)
class Each(Augmentation):
    """A function of your own on each image, as ``function(image, rng) -> image``.

    Parameters
    ----------
    function : callable
        Gets an image (h, w, c) and the batch's generator.
    p : float, default 1.0

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; in a call, where images come to have different shapes.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> darker = augment.Each(lambda image, rng: image // 2)
    >>> darker(np.full((2, 4, 4, 1), 100, np.uint8), None, np.random.default_rng(0))[0].max()
    np.uint8(50)
    """

    function: Callable[[Array, Rng], Array]

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.function, type) or not callable(self.function):
            raise TypeError(f"function must be callable as (image, rng), got {self.function!r:.80}")

    def _apply(self, x: Array, y: Array | None, rng: Rng) -> tuple[Array, Array | None]:
        chosen = self._chosen(len(x), rng)
        made: list[Array] = []
        for i, image in enumerate(x):
            result = np.asarray(self.function(image.copy(), rng)) if chosen[i] else image
            if result.ndim != 3 or (made and (result.shape, result.dtype) != (made[0].shape, made[0].dtype)):
                wanted = f"{made[0].shape} {made[0].dtype}" if made else "(h, w, c)"
                raise ValueError(
                    f"function must return images {wanted}, got {result.shape} {result.dtype} for image {i}"
                )
            made.append(result)
        return np.stack(made), y
