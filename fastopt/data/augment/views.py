"""Views of images at test time, over which predictions are averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fastopt import checks
from fastopt.checks import Array, Pair
from fastopt.data.augment.base import images
from fastopt.data.augment.warp import grid, warp

View = Callable[[Array], Array]


class Views:
    """Several views of the same images: ``views(x)`` yields a batch for each.

    Made by `ten_crop`, `flips` and `scales`; the product of two has each view of the second one of each view of the
    first: ``scales((1, 1.1)) * flips()``.

    Parameters
    ----------
    text : str
        The call that makes them, for the repr.
    functions : sequence of callable
        Each from images (n, h, w, c) to images of the same number.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> views = augment.flips() * augment.scales((1.0, 1.2))
    >>> views, len(views)
    (flips() * scales((1.0, 1.2)), 4)
    >>> [view.shape for view in views(np.zeros((5, 8, 8, 3)))]
    [(5, 8, 8, 3), (5, 8, 8, 3), (5, 8, 8, 3), (5, 8, 8, 3)]
    """

    def __init__(self, text: str, functions: Sequence[View]) -> None:
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__}")
        if not isinstance(functions, (tuple, list)) or not functions or not all(map(callable, functions)):
            raise TypeError(f"functions must be a sequence of one callable or more, got {functions!r:.80}")
        self._text, self._functions = text, tuple(functions)

    def __len__(self) -> int:
        return len(self._functions)

    def __call__(self, x: Array) -> Iterator[Array]:
        """Yield the views of images (n, h, w, c), each (n, h', w', c), C-contiguous."""
        x = images(x)
        return (np.ascontiguousarray(function(x)) for function in self._functions)

    def __mul__(self, other: Views) -> Views:
        if not isinstance(other, Views):
            return NotImplemented
        pairs = [_after(first, second) for first in self._functions for second in other._functions]
        return Views(f"{self} * {other}", pairs)

    def __repr__(self) -> str:
        return self._text


def _after(first: View, second: View) -> View:
    return lambda x: second(first(x))


def _mirrored(x: Array) -> Array:
    return x[:, :, ::-1]


def _unchanged(x: Array) -> Array:
    return x


def ten_crop(size: Pair) -> Views:
    """The four corners and the centre of images, and the mirror images of these [1]_.

    Parameters
    ----------
    size : int or (int, int)
        Height and width of a crop: what the model takes.

    Returns
    -------
    Views
        Ten.

    Raises
    ------
    TypeError, ValueError
        Where `size` breaks its rule; in a call, where it is larger than the images.

    References
    ----------
    .. [1] A. Krizhevsky, I. Sutskever and G. E. Hinton, "ImageNet classification with deep convolutional neural
       networks", 2012, section 4.1.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> x = np.arange(9.0).reshape(1, 3, 3, 1)
    >>> [int(view[0, 0, 0, 0]) for view in augment.ten_crop(1)(x)]
    [0, 2, 6, 8, 4, 0, 2, 6, 8, 4]
    """
    height, width = checks.pair("size", size, 1)

    def crop(down: int, right: int) -> View:  # in halves of what is left over
        def view(x: Array) -> Array:
            h, w = x.shape[1:3]
            if h < height or w < width:
                raise ValueError(f"size must be at most that of the images, {(h, w)}, got {(height, width)}")
            top, left = (h - height) * down // 2, (w - width) * right // 2
            return x[:, top : top + height, left : left + width]

        return view

    five = [crop(down, right) for down, right in ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1))]
    return Views(f"ten_crop({size!r})", [*five, *(_after(each, _mirrored) for each in five)])


def flips(vertical: bool = False) -> Views:
    """Images, and their mirror images.

    Parameters
    ----------
    vertical : bool, default False
        Whether those with top and bottom swapped are among them.

    Returns
    -------
    Views
        Two, or four.

    Raises
    ------
    TypeError
        Where `vertical` is no bool.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> x = np.arange(3.0).reshape(1, 1, 3, 1)
    >>> [view.ravel().tolist() for view in augment.flips()(x)]
    [[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]]
    """
    both: list[View] = [_unchanged, _mirrored]
    if not checks.flag("vertical", vertical):
        return Views("flips()", both)
    upside_down = [_after(each, lambda x: x[:, ::-1]) for each in both]
    return Views("flips(vertical=True)", [*both, *upside_down])


def scales(factors: Sequence[float]) -> Views:
    """Images that are scaled about their centre, by bilinear interpolation; their size stays.

    Parameters
    ----------
    factors : sequence of float
        In [0.001, 1000]: above 1 things grow, and what is beyond the sides is cut off; below 1, the outermost pixels
        are repeated.

    Returns
    -------
    Views
        As many as factors.

    Raises
    ------
    TypeError, ValueError
        Where `factors` breaks its rule.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> x = np.arange(5.0).reshape(1, 1, 5, 1)
    >>> [view.ravel().tolist() for view in augment.scales((1, 2))(x)]
    [[0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 1.5, 2.0, 2.5, 3.0]]
    """
    if isinstance(factors, (str, bytes)) or not isinstance(factors, (Sequence, np.ndarray)) or not len(factors):
        raise TypeError(f"factors must be a sequence of numbers, got {factors!r:.80}")
    numbers = tuple(checks.number("factors", factor, "[0.001, 1000]") for factor in factors)

    def scaled(factor: float) -> View:
        def view(x: Array) -> Array:
            h, w = x.shape[1:3]
            rows, columns = grid(h, w)
            places = rows[None] / factor + (h - 1) / 2, columns[None] / factor + (w - 1) / 2
            return warp(x, (h, w), lambda some: places, "edge")

        return _unchanged if factor == 1 else view

    return Views(f"scales({numbers!r})", [scaled(factor) for factor in numbers])


def average(predict: Callable[[Array], Any], x: Array, views: Views) -> Array:
    """The mean of the predictions for several views of images.

    Parameters
    ----------
    predict : callable
        From images (n, h', w', c) to predictions (n, …): ``model.predict``, whose logits are then averaged, or a
        function that returns probabilities.
    x : ndarray (n, h, w, c), uint8, float32 or float64
    views : Views

    Returns
    -------
    ndarray (n, …)
        In the type of the predictions; the sum is in float64.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or predictions for two views differ in shape.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.data import augment
    >>> x = np.array([[[[1.0], [5.0]]]])
    >>> augment.average(lambda x: x[:, 0, 0], x, augment.flips()).tolist()
    [[3.0]]
    """
    if not callable(predict):
        raise TypeError(f"predict must be callable, got {type(predict).__name__}")
    if not isinstance(views, Views):
        raise TypeError(f"views must be Views, such as augment.flips(), got {type(views).__name__}")
    total: Array | None = None
    dtype: np.dtype[Any] = np.dtype(np.float64)
    for view in views(x):
        output = np.asarray(predict(view))
        if output.dtype.kind not in "fiub" or output.ndim == 0 or len(output) != len(x):
            raise ValueError(
                f"predict must return numbers (n, …) for {len(x)} images, got {output.dtype} {output.shape}"
            )
        if total is None:
            total, dtype = np.zeros(output.shape), output.dtype if output.dtype.kind == "f" else dtype
        if output.shape != total.shape:
            raise ValueError(f"predict must return one shape for all views, got {total.shape} and {output.shape}")
        total += output
    assert total is not None
    return (total / len(views)).astype(dtype)
