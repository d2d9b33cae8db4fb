"""The order of samples: which of them make each batch of an epoch."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import _kernels, checks
from fastopt.checks import Array

__all__ = ["InOrder", "Shuffled", "Stratified"]

Indices = NDArray[np.int64]


# ---- The batches of one epoch ---------------------------------------------------------------------------------------


class Batches(Sequence[Indices]):
    """Rows in an order, by batches of a size. A single last row joins the batch before."""

    def __init__(self, order: Indices, size: int) -> None:
        self.order, self._size = order, size
        self._count = count_batches(len(order), size)

    def __len__(self) -> int:
        return self._count

    def start(self, i: int) -> int:
        """Where a batch begins in the order; the end of the order for one behind the last."""
        return len(self.order) if i >= self._count else i * self._size

    def __getitem__(self, i: Any) -> Any:
        i = range(self._count)[i]
        return self.order[self.start(i) : self.start(i + 1)]

    def part(self, begin: int, end: int) -> Batches:
        """The batches from one to before another, of rows 0, 1, 2, …."""
        return Batches(np.arange(self.start(end) - self.start(begin)), self._size)

    def alike(self, i: int) -> int:
        """The number of batches of the same size from one on."""
        last = self.start(self._count) - self.start(self._count - 1)
        return max(1, self._count - (last != self._size) - i)


class Uneven(Batches):
    """Batches of whatever sizes.

    Parameters
    ----------
    parts : list of int64 ndarray
    """

    def __init__(self, parts: Sequence[Indices]) -> None:
        self.order, self._count = np.concatenate(parts), len(parts)
        self._bounds, self._alike = [0], [1] * len(parts)
        for part in parts:
            self._bounds.append(self._bounds[-1] + len(part))
        for i in range(len(parts) - 2, -1, -1):
            if len(parts[i]) == len(parts[i + 1]):
                self._alike[i] += self._alike[i + 1]

    def start(self, i: int) -> int:
        return self._bounds[min(i, self._count)]

    def part(self, begin: int, end: int) -> Batches:
        bounds = self._bounds[begin : end + 1]
        rows = np.arange(bounds[0], bounds[-1]) - bounds[0]
        return Uneven([rows[a - bounds[0] : b - bounds[0]] for a, b in itertools.pairwise(bounds)])

    def alike(self, i: int) -> int:
        return self._alike[i]


def count_batches(n: int, batch_size: int) -> int:
    """The number of batches of n samples."""
    lone = n > batch_size and (n - 1) % batch_size == 0
    return -(-n // batch_size) - lone


# ---- Orders ---------------------------------------------------------------------------------------------------------


class Shuffled:
    """All samples in a new random order in each epoch, by batches of one size.

    A single last sample joins the batch before, since batch norm needs two.

    Parameters
    ----------
    n : int
        The number of samples.
    batch_size : int, default 32

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> batches = nn.Shuffled(9, 4)
    >>> len(batches), [len(chosen) for chosen in batches.epoch(np.random.default_rng(0))]
    (2, [4, 5])
    """

    def __init__(self, n: int, batch_size: int = 32) -> None:
        self.n, self.batch_size = checks.integer("n", n, 1), checks.integer("batch_size", batch_size, 1)

    def __len__(self) -> int:
        """The number of batches of an epoch."""
        return count_batches(self.n, self.batch_size)

    def epoch(self, rng: np.random.Generator) -> Sequence[Indices]:
        """The batches of one epoch.

        Parameters
        ----------
        rng : numpy.random.Generator
            Decides the order. `Sequential.fit` gives one that follows from the seed and the steps that were taken.

        Returns
        -------
        sequence of int64 ndarray
            The indices of the samples of each batch.
        """
        return Batches(self._order(rng), self.batch_size)

    def _order(self, rng: np.random.Generator) -> Indices:
        return rng.permutation(self.n)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The sizes of the batches of each epoch, one after the other, and of how many that is."""
        whole = len(self) - 1
        last = self.n - whole * self.batch_size
        if last == self.batch_size:
            return [(last, whole + 1)]
        return [(self.batch_size, whole), (last, 1)] if whole else [(last, 1)]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.n}, {self.batch_size})"


class InOrder(Shuffled):
    """All samples in the order that they have, by batches of one size, as `Shuffled` makes them.

    Parameters
    ----------
    n : int
        The number of samples.
    batch_size : int, default 32

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> [chosen.tolist() for chosen in nn.InOrder(5, 3).epoch(np.random.default_rng(0))]
    [[0, 1, 2], [3, 4]]
    """

    def _order(self, rng: np.random.Generator) -> Indices:
        return np.arange(self.n)


class Stratified(Shuffled):
    """All samples in a new random order in each epoch, in which the samples of each class are evenly spread, so that
    each batch has nearly the shares of the classes that all have.

    Parameters
    ----------
    y : ndarray (n,)
        Labels: what `numpy.unique` takes.
    batch_size : int, default 32

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Notes
    -----
    Of a class of k, in random order, sample i stands at ``(i + u) / k``, with a u of the class in [0, 1); the samples
    of all classes are sorted by that (systematic sampling [1]_).

    References
    ----------
    .. [1] W. Cochran, "Sampling techniques", 3rd edition, 1977, chapter 8.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> y = np.repeat([0, 1], [90, 10])
    >>> {int(y[chosen].sum()) for chosen in nn.Stratified(y, 20).epoch(np.random.default_rng(0))}
    {2}
    """

    def __init__(self, y: Array, batch_size: int = 32) -> None:
        y = np.asarray(y)
        if y.ndim != 1:
            raise ValueError(f"y must be labels (n,), got shape {y.shape}")
        super().__init__(len(y), batch_size)
        _, self._labels, self._counts = np.unique(y, return_inverse=True, return_counts=True)

    def _order(self, rng: np.random.Generator) -> Indices:
        order = np.lexsort((rng.random(self.n), self._labels))  # by class, in random order within each
        starts = np.cumsum(self._counts) - self._counts
        within = np.arange(self.n) - np.repeat(starts, self._counts)
        offsets = rng.random(len(self._counts))
        places = (within + np.repeat(offsets, self._counts)) / np.repeat(self._counts, self._counts)
        return order[np.argsort(places, kind="stable")]

    def __repr__(self) -> str:
        return f"Stratified({self.n} labels of {len(self._counts)} classes, {self.batch_size})"


# ---- What `fit` takes -----------------------------------------------------------------------------------------------


def checked(batches: Any, n: int) -> Any:
    """Batches that `fit` is given, of n samples."""
    if isinstance(batches, type):
        raise TypeError(f"batches must be an object with a length, got the class {batches.__name__}: call it")
    yields = callable(getattr(batches, "epoch", None)) or hasattr(batches, "__iter__")
    if not yields or not hasattr(batches, "__len__"):
        raise TypeError(
            "batches must be an object with a length, that of an epoch, and a method epoch(rng) or __iter__ whose "
            f"items are arrays of indices, such as nn.Stratified(y, 32), got {type(batches).__name__}"
        )
    if isinstance(batches, Shuffled) and batches.n != n:
        raise ValueError(f"batches must be of as many samples as x has, {n}, got {batches!r}")
    if len(batches) < 1:
        raise ValueError("batches must have at least one batch, got none")
    return batches


def permutations(seed: int, steps: Sequence[int], n: int) -> Indices:
    """The order of `Shuffled` in each of the epochs that begin after so many steps (epochs, n):
    ``default_rng([seed, steps]).permutation(n)``, drawn by C where this NumPy has what C has."""
    drawn = _kernels.permutations(seed, steps, n) if _draws_alike() else None
    if drawn is None:
        drawn = np.stack([np.random.default_rng([seed, each]).permutation(n) for each in steps])
    return drawn


@functools.cache
def _draws_alike() -> bool:
    """Whether this NumPy and C draw the same permutations, as another NumPy might not (NEP 19)."""
    for seed, step, n in ((0, 0, 200), (2**70 + 3, 2**33, 60)):
        drawn = _kernels.permutations(seed, [step], n)
        if drawn is None or not np.array_equal(drawn[0], np.random.default_rng([seed, step]).permutation(n)):
            return False
    return True


def is_own(batches: Any) -> bool:
    """Whether the batches of each epoch follow from its rng alone, and have the same sizes."""
    return type(batches) in (Shuffled, InOrder, Stratified)


def of_epoch(batches: Any, rng: np.random.Generator, n: int) -> Batches:
    """The batches of an epoch, checked: as many as their length says, of indices of n samples."""
    made = batches.epoch(rng) if callable(getattr(batches, "epoch", None)) else iter(batches)
    if is_own(batches):
        return made
    count = len(batches)
    parts = [_indices(i, part, n) for i, part in enumerate(itertools.islice(made, count + 1))]
    if len(parts) != count:
        raise ValueError(f"batches must yield as many as its length says, {count}, got {_how_many(len(parts), count)}")
    return Uneven(parts)


def _how_many(found: int, count: int) -> str:
    return "more" if found > count else str(found)


def _indices(i: int, part: Any, n: int) -> Indices:
    array = np.asarray(part)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise TypeError(f"batches must yield arrays of indices (k,), got {array.dtype} {array.shape} for batch {i}")
    if not array.size:
        raise ValueError(f"batches must yield batches of at least one sample, got none for batch {i}")
    wrong = array[(array < 0) | (array >= n)]
    if wrong.size:
        raise ValueError(f"batches must yield indices in [0, {n}), got {wrong[0]} for batch {i}")
    return array.astype(np.int64, copy=False)


def rows_of(name: str, chosen: Any, n: int) -> Indices:
    """The samples that are chosen of n: indices (k,), or a mask (n,)."""
    array = np.asarray(chosen)
    if array.dtype == np.bool_ and array.shape == (n,):
        array = np.flatnonzero(array)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise TypeError(f"{name} must be an array of indices (k,), or a mask ({n},), got {array.dtype} {array.shape}")
    if not array.size:
        raise ValueError(f"{name} must choose at least one sample, got none")
    wrong = array[(array < 0) | (array >= n)]
    if wrong.size:
        raise ValueError(f"{name} must be in [0, {n}), got {wrong[0]}")
    return np.ascontiguousarray(array, np.int64)
