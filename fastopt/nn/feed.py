"""What an epoch is fed with: blocks of batches, from arrays, from arrays that are transformed, or from a loader.

A block is arrays and the batches of their rows: all of an epoch where the arrays are those of `fit`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastopt.checks import Array
from fastopt.nn.orders import Batches, Indices, Shuffled, Uneven, is_own, of_epoch, permutations

#: Inputs, targets, and sample weights or None.
Data = tuple[Array, Array, Array | None]
#: (x, y, rng) -> (x, y)
Transform = Callable[[Array, Array, np.random.Generator], tuple[Array, Array]]


class Block(NamedTuple):
    """Arrays, and batches of their rows, which are those of an epoch from one on."""

    x: Array
    y: Array
    weight: Array | None
    batches: Batches


class Feed(Protocol):
    """Where the batches of a run come from."""

    samples: int
    #: The number of batches of an epoch.
    batches: int
    #: What a checkpoint says of the size of batches.
    size: Any
    #: The order of samples, as text.
    order: str
    #: The seeds that decide it, where that is not the seed of the run.
    seeds: Mapping[str, int | None] | None

    def first(self) -> Data:
        """Arrays that show the types and shapes of all."""

    def epoch(self, seed: int, steps: int, epoch: int) -> contextlib.AbstractContextManager[Iterator[Block]]:
        """The blocks of an epoch, in which as many batches are whole as make steps."""


def described(batches: Any) -> str:
    """What a checkpoint and a history say of batches."""
    return f"{type(batches).__name__}({getattr(batches, 'batch_size', len(batches))})"


class Arrays:
    """Batches of the rows of arrays.

    Parameters
    ----------
    data : tuple
    batches : object
        With a length and a method ``epoch(rng)``, or that is iterated over.
    rows : int64 ndarray, optional
        The rows that `batches` counts; all where absent.
    size : object
    """

    seeds: Mapping[str, int | None] | None = None

    def __init__(self, data: Data, batches: Any, rows: Indices | None, size: Any) -> None:
        self.data, self._each, self._rows, self.size, self.order = data, batches, rows, size, described(batches)
        self.samples = len(data[0]) if rows is None else len(rows)
        self.batches = len(batches)

    def first(self) -> Data:
        return self.data

    @contextlib.contextmanager
    def epoch(self, seed: int, steps: int, epoch: int) -> Iterator[Iterator[Block]]:
        yield iter([Block(*self.data, *self.orders(seed, [steps]))])

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The sizes of the batches of each epoch, and of how many that is, where `several` may be asked for."""
        return self._each.sizes if is_own(self._each) else []

    def orders(self, seed: int, steps: Sequence[int]) -> list[Batches]:
        """The batches of the epochs that begin after so many steps each."""
        if type(self._each) is Shuffled:
            made = [Batches(order, self._each.batch_size) for order in permutations(seed, steps, self.samples)]
        else:
            made = [of_epoch(self._each, np.random.default_rng([seed, each]), self.samples) for each in steps]
        for each in made:
            if len(each) != self.batches:
                raise ValueError(f"batches must have the same length in each epoch, {self.batches}, got {len(each)}")
            if self._rows is not None:
                each.order = self._rows[each.order]
        return made

    def several(self, seed: int, steps: Sequence[int], epoch: int, left: int) -> tuple[Data, list[Batches]]:
        """Arrays, and for each of some epochs its batches of their rows.

        Parameters
        ----------
        seed : int
        steps : sequence of int
            How many were taken before each epoch; of later ones as many as are returned.
        epoch : int
            The number of the first one.
        left : int
            The epochs that are left in the run.
        """
        return self.data, self.orders(seed, steps)

    def rest(self) -> None:
        """Wait for what was begun ahead, and forget it."""


# ---- Transforms -------------------------------------------------------------------------------------------------


def rng_of(seed: int, epoch: int, batch: int) -> np.random.Generator:
    """The source of randomness of a batch, independent of all others."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch, batch)))


class Rng:
    """`rng_of`, but made when it is first used: for functions that do not seem to use it.

    Making one takes longer than a step of a small network.
    """

    __slots__ = ("_batch", "_epoch", "_made", "_seed")

    def __init__(self, seed: int, epoch: int, batch: int) -> None:
        self._seed, self._epoch, self._batch = seed, epoch, batch

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return np.random.Generator

    def __getattr__(self, name: str) -> Any:
        if name == "_made":
            self._made = rng_of(self._seed, self._epoch, self._batch)
            return self._made
        return getattr(self._made, name)

    def __reduce__(self) -> Any:
        return self._made.__reduce__()

    def __repr__(self) -> str:
        return repr(self._made)


#: Batches of the first block, which no thread makes ahead; bytes of inputs, and batches, of a block at most.
FIRST, MOST_BYTES, MOST = 8, 1 << 22, 64
#: Blocks that are made ahead.
AHEAD = 2


class Transformed(Arrays):
    """Batches of the rows of arrays that a function changes, ahead of their use, by a thread.

    Parameters
    ----------
    data, batches, rows, size
        As for `Arrays`.
    transform : callable
    check : callable
        ``check(x, y)`` returns inputs and targets that were changed, checked.
    accumulate : int
        Batches of a step.
    ahead : bool
        Whether a thread makes them.
    """

    def __init__(
        self,
        data: Data,
        batches: Any,
        rows: Indices | None,
        size: Any,
        transform: Transform,
        check: Callable[[Array, Array], tuple[Array, Array]],
        accumulate: int,
        *,
        ahead: bool,
    ) -> None:
        super().__init__(data, batches, rows, size)
        self._transform, self._check, self._accumulate, self._ahead = transform, check, accumulate, ahead
        self._thread = Ahead()
        #: The seed, the steps before it, and the number of the first epoch that the thread was given to make.
        self._begun: tuple[int, int, int] | None = None
        #: What it made of these, if `several` was asked for fewer of them.
        self._made: tuple[Data, list[Batches]] | None = None
        self._rng: Callable[[int, int, int], Any] = rng_of

    def first(self) -> Data:
        """The first samples, transformed; and it is seen whether the function draws random numbers."""
        given = rng_of(0, 0, 0)
        before = given.bit_generator.state
        self._rng = lambda *_: given
        few = min(self.samples, 32)
        rows = np.arange(few) if self._rows is None else self._rows[:few]
        block = self._block(Uneven([rows]), 0, 1, 0, 0)
        self._rng = Rng if given.bit_generator.state == before else rng_of
        return block.x, block.y, block.weight

    @contextlib.contextmanager
    def epoch(self, seed: int, steps: int, epoch: int) -> Iterator[Iterator[Block]]:
        self.rest()
        (each,) = self.orders(seed, [steps])
        cuts = self._cuts(each)
        jobs = [functools.partial(self._block, each, a, b, seed, epoch) for a, b in itertools.pairwise(cuts)]
        if not self._ahead:
            yield (job() for job in jobs)
            return
        with self._thread.working(jobs) as blocks:
            yield blocks

    def several(self, seed: int, steps: Sequence[int], epoch: int, left: int) -> tuple[Data, list[Batches]]:
        """As of `Arrays`, for fewer epochs where all have no room in a block; the thread begins with the next ones."""
        fit = max(1, min(len(steps), MOST_BYTES // (self.samples * max(1, self.data[0][:1].nbytes))))
        if self._begun == (seed, steps[0], epoch):
            self._begun = None
            data, made = self._made or self._thread.take()
            self._made = None
        else:
            self.rest()
            data, made = self._several(seed, steps[:fit], epoch)
        made, more = made[: len(steps)], made[len(steps) :]
        count, each = min(fit, left - len(made)), -(-self.batches // self._accumulate)  # steps of an epoch
        if more or (self._ahead and count > 0):
            self._begun = seed, steps[0] + len(made) * each, epoch + len(made)
        if more:
            self._made = data, more
        elif self._begun is not None:
            later = [self._begun[1] + i * each for i in range(count)]
            self._thread.give(functools.partial(self._several, seed, later, epoch + len(made)))
        return data, made

    def _several(self, seed: int, steps: Sequence[int], epoch: int) -> tuple[Data, list[Batches]]:
        each = self.orders(seed, steps)
        try:
            x, y, weight = self._changed([(one, 0, len(one), epoch + i) for i, one in enumerate(each)], seed)
        except Exception:  # of a later epoch: those before it are trained on first
            if len(steps) == 1:
                raise
            return self._several(seed, steps[:1], epoch)
        for i, one in enumerate(each):
            one.order = np.arange(i * self.samples, (i + 1) * self.samples)
        return (x, y, weight), each

    def rest(self) -> None:
        if self._begun is not None and self._made is None:
            with contextlib.suppress(Exception):  # of an epoch that nobody has come to
                self._thread.take()
        self._begun = self._made = None

    def _cuts(self, each: Batches) -> list[int]:
        """Where blocks begin: a small one first, where the others are made meanwhile."""
        row = max(1, self.data[0][:1].nbytes)
        cuts, size = [0], FIRST if self._ahead else MOST
        while cuts[-1] < len(each):
            begin = cuts[-1]
            rows = max(1, each.start(begin + 1) - each.start(begin))
            fit = max(1, min(size, MOST_BYTES // (row * rows)))
            cuts.append(min(len(each), begin + -(-fit // self._accumulate) * self._accumulate))
            size = MOST
        return cuts

    def _block(self, each: Batches, begin: int, end: int, seed: int, epoch: int) -> Block:
        return Block(*self._changed([(each, begin, end, epoch)], seed), each.part(begin, end))

    def _changed(self, parts: Sequence[tuple[Batches, int, int, int]], seed: int) -> Data:
        """The samples of batches from one to before another of some epochs, changed."""
        rows = [each.order[each.start(begin) : each.start(end)] for each, begin, end, _ in parts]
        order = np.concatenate(rows) if len(rows) > 1 else rows[0]
        x, y, weight = self.data
        x, y, weight = x.take(order, axis=0), y.take(order, axis=0), None if weight is None else weight.take(order)
        made, changed, transform, rng, stop = [], False, self._transform, self._rng, 0
        for each, begin, end, epoch in parts:
            for batch in range(begin, end):
                start, stop = stop, stop + each.start(batch + 1) - each.start(batch)
                given = own_x, own_y = x[start:stop], y[start:stop]
                try:
                    result = transform(own_x, own_y, rng(seed, epoch, batch))
                    same = result.__class__ is tuple and len(result) == 2
                    if not same or result[0] is not own_x or result[1] is not own_y:
                        given, changed = _pair(result, len(own_x)), True
                except Exception as error:
                    error.add_note(f"in the transform of batch {batch + 1} of epoch {epoch + 1}")
                    raise
                made.append(given)
        if changed:
            x, y = self._check(np.concatenate([pair[0] for pair in made]), np.concatenate([pair[1] for pair in made]))
        return x, y, weight


def _pair(result: Any, count: int) -> tuple[Array, Array]:
    """What a transform has returned, checked."""
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        got = type(result).__name__ if not isinstance(result, (tuple, list)) else f"{len(result)} values"
        raise TypeError(f"transform must return (x, y), got {got}")
    x, y = np.asarray(result[0]), np.asarray(result[1])
    for name, array in (("x", x), ("y", y)):
        if array.shape[:1] != (count,):
            raise ValueError(f"transform must return {count} samples for {count}, got {name} of shape {array.shape}")
    return x, y


class Ahead:
    """A thread that does jobs ahead of the use of their results; it ends with this object, or `close`."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Any] | None = None
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()

    @contextlib.contextmanager
    def working(self, jobs: Sequence[Callable[[], Block]]) -> Iterator[Iterator[Block]]:
        """The results of jobs, in order; the caller does the first itself, while the thread begins."""
        waiting = 0

        def results() -> Iterator[Block]:
            nonlocal waiting
            asked = 1
            for i in range(len(jobs)):
                while asked < min(len(jobs), i + 1 + AHEAD):
                    self.give(jobs[asked])
                    asked, waiting = asked + 1, waiting + 1
                if i == 0:
                    yield jobs[0]()
                    continue
                waiting -= 1
                yield self.take()

        try:
            yield results()
        finally:
            for _ in range(waiting):
                self._done.get()

    def give(self, job: Callable[[], Any]) -> None:
        """Have a job done."""
        self._start().put(job)

    def take(self) -> Any:
        """The result of the first job that it has not been taken of."""
        made, error = self._done.get()
        if error is not None:
            raise error
        return made

    def _start(self) -> queue.SimpleQueue[Any]:
        if self._jobs is None:
            self._jobs = queue.SimpleQueue()
            run = contextvars.copy_context().run
            threading.Thread(
                target=run, args=(_work, self._jobs, self._done), name="fastopt-transform", daemon=True
            ).start()
        return self._jobs

    def close(self) -> None:
        """End the thread, after what it is at."""
        jobs, self._jobs = self._jobs, None
        if jobs is not None:
            jobs.put(None)

    __del__ = close


def _work(jobs: queue.SimpleQueue[Any], done: queue.SimpleQueue[Any]) -> None:
    for job in iter(jobs.get, None):
        try:
            done.put((job(), None))
        except BaseException as error:
            done.put((None, error))
        del job


# ---- Loaders ----------------------------------------------------------------------------------------------------


class Loader(Protocol):
    """What `fit` takes in the place of inputs and targets."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, /) -> Iterator[Any]: ...


def is_loader(x: Any) -> bool:
    """Whether `fit` is given batches in the place of inputs: by an object such as `fastopt.data.Loader`."""
    return not isinstance(x, (np.ndarray, type)) and hasattr(x, "__len__") and callable(getattr(x, "epoch", None))


class Loaded:
    """Batches of a loader.

    Parameters
    ----------
    loader : Loader
        Where its iterators have a method ``close``, that is called in the end.
    check : callable
        ``check(x, y, weight)`` returns the arrays of a batch, checked.
    accumulate : int
        Batches of a step.
    """

    def __init__(self, loader: Any, check: Callable[[Any, Any, Any], Data], accumulate: int) -> None:
        self._loader, self._check, self._accumulate = loader, check, accumulate
        self.batches, self.size = len(loader), getattr(loader, "batch_size", None)
        self.order = described(loader)
        self.seeds: Mapping[str, int | None] | None = {"loader": getattr(loader, "seed", None)}
        if self.batches < 1:
            raise ValueError("x must be a loader of at least one batch, got none")
        self._first: Data | None = None
        self.samples = getattr(loader, "samples", self.batches * (self.size or len(self.first()[0])))

    def first(self) -> Data:
        if self._first is None:
            with self._batches(0) as batches:
                self._first = next(batches)
        return self._first

    @contextlib.contextmanager
    def _batches(self, epoch: int) -> Iterator[Iterator[Data]]:
        made = self._loader.epoch(epoch)
        try:
            yield self._checked(iter(made))
        finally:
            if callable(close := getattr(made, "close", None)):
                close()

    def _checked(self, made: Iterator[Any]) -> Iterator[Data]:
        for i in range(self.batches):
            batch = next(made, None)
            if batch is None:
                raise ValueError(f"x must be a loader of as many batches as its length says, {self.batches}, got {i}")
            if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
                raise TypeError(f"x must be a loader of (x, y) or (x, y, weights), got {type(batch).__name__}")
            yield self._check(batch[0], batch[1], batch[2] if len(batch) == 3 else None)

    @contextlib.contextmanager
    def epoch(self, seed: int, steps: int, epoch: int) -> Iterator[Iterator[Block]]:
        with self._batches(epoch) as batches:
            yield self._blocks(batches)

    def _blocks(self, batches: Iterator[Data]) -> Iterator[Block]:
        while step := list(itertools.islice(batches, self._accumulate)):
            x, y, weight = step[0]
            if len(step) > 1:
                x, y = np.concatenate([part[0] for part in step]), np.concatenate([part[1] for part in step])
                own = [part[2] for part in step if part[2] is not None]
                weight = np.concatenate(own) if own else None
            ends = [0, *itertools.accumulate(len(part[0]) for part in step)]
            yield Block(x, y, weight, Uneven([np.arange(a, b) for a, b in itertools.pairwise(ends)]))
