"""Batches that are read and transformed ahead of their use, in threads."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fastopt import checks

#: Inputs and targets, or these and sample weights.
Batch = tuple[Any, ...]
#: (x, y, rng) -> (x, y)
Transform = Callable[[Any, Any, np.random.Generator], tuple[Any, Any]]
Indices = NDArray[np.int64]


@runtime_checkable
class Source(Protocol):
    """What a `Loader` reads from, but for arrays: samples by their numbers. `ImageFolder` is one.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import data
    >>> class Squares:
    ...     def __len__(self):
    ...         return 100
    ...
    ...     def read(self, indices):
    ...         return indices[:, None].astype(np.float32), indices**2
    >>> x, y = next(iter(data.Loader(Squares(), 4, shuffle=False)))
    >>> x.ravel().tolist(), y.tolist()
    ([0.0, 1.0, 2.0, 3.0], [0, 1, 4, 9])
    """

    def __len__(self) -> int:
        """The number of samples."""

    def read(self, indices: Indices, /) -> Batch:
        """Some samples: new arrays x (k, …), y (k, …) and, where there are such, weights (k,). Called in threads."""


class _Arrays:
    """Arrays in memory, or mapped to it: inputs, targets and weights of the same length."""

    def __init__(self, arrays: tuple[Any, ...]) -> None:
        if not 2 <= len(arrays) <= 3:
            raise ValueError(f"source must be (x, y) or (x, y, weights), got {len(arrays)} values")
        for name, array in zip(("x", "y", "weights"), arrays, strict=False):
            if not isinstance(array, np.ndarray):
                raise TypeError(f"source must hold NumPy arrays, got {type(array).__name__} for {name}")
            checks.plain(name, array)
            if array.ndim == 0:
                raise ValueError(f"source must hold arrays (n, …), got shape () for {name}")
            if len(array) != len(arrays[0]):
                raise ValueError(
                    f"source must hold arrays of one length, got {len(arrays[0])} and {len(array)} ({name})"
                )
        self.arrays = tuple(np.ndarray.view(array, np.ndarray) for array in arrays)

    def __len__(self) -> int:
        return len(self.arrays[0])

    def read(self, indices: Indices) -> Batch:
        return tuple(array[indices] for array in self.arrays)


class Loader:
    """Batches of a source in random order, each read and transformed ahead of its use, in threads.

    Order and numbers follow from the seed, the epoch and the number of the batch, whatever the number of threads.

    Parameters
    ----------
    source : tuple of ndarray, or Source
        ``(x, y)`` or ``(x, y, weights)``, each with n samples along its first axis, memory maps among them; or an
        object with ``len`` and ``read(indices)``, such as `ImageFolder`.
    batch_size : int, default 32
        A single sample that is left over in the end joins the batch before.
    transform : callable, optional
        ``(x, y, rng) -> (x, y)``, such as an augmentation of `fastopt.data.augment`; `rng` is `rng_of` the batch.
        Called in several threads at once where there are several workers. Weights go beside it.
    workers : int, default 1
        Threads. With 0, a batch is made when it is asked for.
    shuffle : bool, default True
        A new random order in each epoch, or that of the source.
    seed : int, default 0
    ahead : int, optional
        How many batches may wait to be used, at least `workers`; by default 2 for each worker.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Notes
    -----
    NumPy leaves Python's lock while it computes, so threads overlap with training, which leaves it too; functions in
    pure Python do not overlap.

    Examples
    --------
    >>> from fastopt import data
    >>> from fastopt.data import augment
    >>> loader = data.Loader(data.digits(), 64, augment.Affine(rotate=10), workers=2)
    >>> len(loader)
    29
    >>> for x, y in loader.epoch(0):
    ...     pass  # a training step
    >>> x.shape, y.shape
    ((5, 8, 8, 1), (5,))
    >>> x, y = loader.batch(0, 3)  # the fourth one of the first epoch, without threads
    >>> bool((y == data.digits()[1][loader.order(0)[3 * 64 : 4 * 64]]).all())
    True
    """

    def __init__(
        self,
        source: tuple[Any, ...] | Source,
        batch_size: int = 32,
        transform: Transform | None = None,
        *,
        workers: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        ahead: int | None = None,
    ) -> None:
        if isinstance(source, (tuple, list)):
            self.source: Source = _Arrays(tuple(source))
        elif isinstance(source, type) or not isinstance(source, Source):
            kind = "the class " + source.__name__ if isinstance(source, type) else type(source).__name__
            raise TypeError(f"source must be (x, y), or an object with len and read(indices), got {kind}")
        else:
            self.source = source
        if transform is not None and (isinstance(transform, type) or not callable(transform)):
            raise TypeError(f"transform must be callable as (x, y, rng), got {transform!r:.80}")
        self.samples = operator.index(len(self.source))
        if not self.samples:
            raise ValueError("source must hold at least one sample, got none")
        self.batch_size = checks.integer("batch_size", batch_size, 1)
        self.transform = transform
        self.workers = checks.integer("workers", workers, 0, 1024)
        self.shuffle = checks.flag("shuffle", shuffle)
        self.seed = checks.integer("seed", seed, 0)
        self.ahead = 2 * self.workers if ahead is None else checks.integer("ahead", ahead, self.workers, 2**20)
        self._epochs = 0

    def __len__(self) -> int:
        """The number of batches of an epoch."""
        lone = self.samples > self.batch_size and (self.samples - 1) % self.batch_size == 0
        return -(-self.samples // self.batch_size) - lone

    def __iter__(self) -> Epoch:
        """The batches of the next epoch, counted from 0 by the calls of this method."""
        self._epochs += 1
        return self.epoch(self._epochs - 1)

    def epoch(self, epoch: int) -> Epoch:
        """The batches of an epoch.

        Parameters
        ----------
        epoch : int
            Counted from 0. The same one has the same batches each time.

        Returns
        -------
        Epoch
            An iterator of ``(x, y)`` or ``(x, y, weights)``, new arrays each time, which also closes in a ``with``.

        Raises
        ------
        TypeError, ValueError
            Where `epoch` breaks its rule.
        """
        return Epoch(self, checks.integer("epoch", epoch, 0, 2**63 - 1))

    def order(self, epoch: int) -> Indices:
        """The numbers of all samples in the order of an epoch, int64 (n,)."""
        epoch = checks.integer("epoch", epoch, 0, 2**63 - 1)
        if not self.shuffle:
            return np.arange(self.samples)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(epoch,))).permutation(self.samples)

    def batch(self, epoch: int, batch: int, order: Indices | None = None) -> Batch:
        """One batch, made by the calling thread.

        Parameters
        ----------
        epoch, batch : int
            Counted from 0.
        order : ndarray (n,), optional
            That of the epoch, where it is at hand.

        Returns
        -------
        tuple
            ``(x, y)`` or ``(x, y, weights)``.

        Raises
        ------
        TypeError, ValueError
            Where an argument breaks its rule, or the transform returns what is no batch. What the source or the
            transform raises comes out as it is, with a note of the epoch and the batch.
        """
        batch = checks.integer("batch", batch, 0, len(self) - 1)
        order = self.order(epoch) if order is None else order
        start = batch * self.batch_size
        end = len(order) if batch == len(self) - 1 else start + self.batch_size
        try:
            made = self.source.read(order[start:end])
            if not isinstance(made, tuple) or not 2 <= len(made) <= 3:
                raise TypeError(f"source.read must return (x, y) or (x, y, weights), got {type(made).__name__}")
            if self.transform is None:
                return made
            changed = self.transform(made[0], made[1], rng_of(self.seed, epoch, batch))
            if not isinstance(changed, tuple) or len(changed) != 2:
                raise TypeError(f"transform must return (x, y), got {type(changed).__name__}")
            count = end - start
            if any(part is not None and np.shape(part)[:1] != (count,) for part in changed):
                shapes = " and ".join(str(np.shape(part)) for part in changed)
                raise ValueError(f"transform must return {count} samples for {count}, got shapes {shapes}")
            return (*changed, *made[2:])
        except Exception as error:
            error.add_note(f"in batch {batch} of epoch {epoch} (samples {order[start:end][:5].tolist()} …)")
            raise

    def __repr__(self) -> str:
        shown = f"{self.samples} samples" if isinstance(self.source, _Arrays) else repr(self.source)
        options = f"{self.transform!r}, workers={self.workers}, shuffle={self.shuffle}, seed={self.seed}"
        return f"Loader({shown}, {self.batch_size}, {options})"


def rng_of(seed: int, epoch: int, batch: int) -> np.random.Generator:
    """The source of randomness of a batch: independent of all others, whoever makes it.

    Parameters
    ----------
    seed, epoch, batch : int
        At least 0.

    Returns
    -------
    numpy.random.Generator

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> from fastopt import data
    >>> data.rng_of(0, 3, 7).random() == data.rng_of(0, 3, 7).random()
    True
    """
    numbers = [checks.integer(name, n, 0) for name, n in (("seed", seed), ("epoch", epoch), ("batch", batch))]
    return np.random.default_rng(np.random.SeedSequence(numbers[0], spawn_key=(*numbers[1:],)))


class Epoch:
    """The batches of one epoch, in order: an iterator, made by `Loader.epoch`.

    Its threads end with the last batch, with an exception of a batch, with `close`, at the end of a ``with``, and when
    nothing refers to it any more; Ctrl-C while a batch is waited for closes it, too.

    Parameters
    ----------
    loader : Loader
    epoch : int

    Examples
    --------
    >>> from fastopt import data
    >>> with data.Loader(data.digits(), 600, seed=1).epoch(0) as batches:  # its threads end with the block
    ...     print([len(x) for x, y in batches])
    [600, 600, 597]
    >>> batches = data.Loader(data.digits(), 600).epoch(0)
    >>> batches.close()  # or so, where there is no with
    >>> list(batches)
    []
    """

    def __init__(self, loader: Loader, epoch: int) -> None:
        self._loader, self._epoch = loader, epoch
        self._order = loader.order(epoch)
        self._next, self._batches = 0, len(loader)
        self._waiting: deque[Future[Batch]] = deque()
        self._threads: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        """The number of batches that are still to come."""
        return self._batches - self._next + len(self._waiting)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if not len(self):
            self.close()
            raise StopIteration
        try:
            if not self._loader.workers:
                self._next += 1
                return self._loader.batch(self._epoch, self._next - 1, self._order)
            self._fill()
            made = self._waiting.popleft().result()
            self._fill()
        except BaseException:
            self.close()
            raise
        if not len(self):
            self.close()
        return made

    def _fill(self) -> None:
        """Ask for batches, until as many as may wait are on their way."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._loader.workers, "fastopt-loader")
        while self._next < self._batches and len(self._waiting) < self._loader.ahead:
            made = self._threads.submit(self._loader.batch, self._epoch, self._next, self._order)
            self._waiting.append(made)
            self._next += 1

    def close(self) -> None:
        """End the threads, after the batches that they are at; no batch comes any more."""
        self._next = self._batches
        self._waiting.clear()
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        threads = getattr(self, "_threads", None)
        if threads is not None:  # not waited for: this may be one of them
            threads.shutdown(wait=False, cancel_futures=True)
