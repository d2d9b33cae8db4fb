"""Runs as scikit-learn makes them: its order of samples, its batches, its penalty, its stopping rule."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from fastopt.checks import Array
from fastopt.nn.feed import Arrays, Block, Data
from fastopt.nn.orders import Batches, Indices
from fastopt.nn.program import Compiled
from fastopt.nn.trainer import Taken
from fastopt.nn.training import Callback, History, Run, _Epoch
from fastopt.optimizer import Varying

#: Elements of rows of a sparse matrix that are made dense at a time.
MOST_DENSE = 2**22


class Chunks(Batches):
    """Rows in an order, by batches of a size, of which the last may be smaller."""

    def __init__(self, order: Indices, size: int) -> None:
        super().__init__(order, size)
        self._count = -(-len(order) // size)

    def part(self, begin: int, end: int) -> Batches:
        return Chunks(np.arange(self.start(end) - self.start(begin)), self._size)


class Rows:
    """The rows of a sparse matrix, dense when they are asked for."""

    def __init__(self, matrix: Any, dtype: np.dtype[Any]) -> None:
        self._matrix, self._dtype = sparse.csr_array(matrix), dtype

    def __len__(self) -> int:
        return int(self._matrix.shape[0])

    def __getitem__(self, rows: Indices) -> Array:
        return self._matrix[rows].toarray().astype(self._dtype, copy=False)

    def at_once(self, rows: int) -> int:
        """How many batches of so many rows to make dense at a time."""
        return max(1, MOST_DENSE // max(1, rows * self._matrix.shape[1]))


class Ordered(Arrays):
    """Batches of the rows of arrays, or of a sparse matrix, in orders of scikit-learn's.

    Parameters
    ----------
    data : tuple
        Inputs, which may be `Rows`, targets, and sample weights or None.
    order : callable
        Returns the order of samples of the next epoch.
    size : int
        The size of batches.
    join : bool
        Whether a single last sample joins the batch before.
    singly : bool
        Whether each batch is a block of its own.

    Attributes
    ----------
    of_batches : int64 ndarray (batches,)
        Their sizes, which are those of each epoch.
    seeds : dict
        Filled by the estimator, whose ``random_state`` decides the order.
    """

    def __init__(
        self,
        data: tuple[Any, Array, Array | None],
        order: Callable[[], Indices],
        size: int,
        *,
        join: bool,
        singly: bool,
    ) -> None:
        self._order, self.size, self._join, self._singly = order, size, join, singly
        each = self._split(np.arange(len(data[0])))
        super().__init__(data, each, None, size)
        self.order, self.seeds = f"scikit-learn's({size})", {}
        self.of_batches = np.diff([each.start(i) for i in range(len(each) + 1)])
        self._drawn: dict[int, Batches] = {}  # by the number of steps before them

    def first(self) -> Data:
        return self._dense(np.arange(1)) if isinstance(self.data[0], Rows) else self.data

    @contextlib.contextmanager
    def epoch(self, seed: int, steps: int, epoch: int) -> Iterator[Iterator[Block]]:
        yield self._blocks(*self.orders(seed, [steps]))

    @property
    def sizes(self) -> list[tuple[int, int]]:
        if isinstance(self.data[0], Rows) or self._singly:
            return []
        return [(size, len([*same])) for size, same in itertools.groupby(self.of_batches.tolist())]

    def orders(self, seed: int, steps: Sequence[int]) -> list[Batches]:
        held, self._drawn = self._drawn, {}
        for each in sorted({*steps, *(t for t in held if t >= steps[0])}):
            self._drawn[each] = held.get(each) or self._split(self._order())
        return [self._drawn[each] for each in steps]

    def _split(self, order: Indices) -> Batches:
        return (Batches if self._join else Chunks)(order, self.size)

    def _blocks(self, each: Batches) -> Iterator[Block]:
        x: Any = self.data[0]
        if not isinstance(x, Rows) and not self._singly:
            yield Block(*self.data, each)
            return
        most = 1 if self._singly else x.at_once(self.size)
        for begin in range(0, len(each), most):
            end = min(begin + most, len(each))
            rows = each.order[each.start(begin) : each.start(end)]
            if isinstance(x, Rows):
                yield Block(*self._dense(rows), each.part(begin, end))
            else:
                yield Block(*self.data, Chunks(rows, len(rows)))

    def _dense(self, rows: Indices) -> Data:
        x, y, weight = self.data
        return x[rows], y[rows], None if weight is None else weight[rows]


class PenalisedRun(Run):
    """A run with scikit-learn's order of samples, batches, and penalty.

    Parameters
    ----------
    model, optimizer, loss
        As of `Run`; the loss is that of `fastopt.sklearn.losses`.
    data, order, join
        As of `Ordered`.
    alpha : float
        The penalty of a batch is ``alpha/2·Σw² / (total sample weight)``.
    penalised : object or None
        The group of the optimizer whose decay is that penalty.
    epochs, batch_size, callbacks
        As of `Run`.
    """

    def __init__(
        self,
        model: Compiled,
        data: tuple[Any, Array, Array | None],
        optimizer: Any,
        loss: Any,
        *,
        order: Callable[[], Indices],
        alpha: float,
        penalised: Any,
        epochs: int,
        batch_size: int,
        callbacks: Sequence[Callback],
        join: bool = False,
    ) -> None:
        singly = penalised is not None and data[2] is not None  # as the total weight of each batch is another
        feed = Ordered(data, order, batch_size, join=join, singly=singly)
        super().__init__(
            model,
            feed,
            optimizer,
            loss,
            epochs=epochs,
            accumulate=1,
            seed=0,
            validation=None,
            callbacks=callbacks,
            on_nonfinite="ignore",
            metrics={},
        )
        self._alpha, self._penalised, self._sizes = alpha, penalised, feed.of_batches
        if penalised is not None and not singly:
            self._varying = Varying(penalised, "weight_decay", alpha / self._sizes)

    def go(self) -> History:
        try:
            return super().go()
        except KeyboardInterrupt:  # as in scikit-learn, where it ends a fit
            self.interrupted = True
            return self.history

    def _one_epoch(self, epoch: _Epoch) -> Generator[None, None, dict[str, float] | None]:
        logs = yield from super()._one_epoch(epoch)
        if logs is None:
            return None
        loss = epoch.all("loss") * self.loss.factor(self.model.shapes[-1][0])  # type: ignore[attr-defined]
        if self._penalised is not None:
            loss = loss + 0.5 * self._alpha * np.add.reduce(epoch.all("extras"), axis=1) / epoch.all("weight")
        return logs | {"loss": float(np.sum(loss * self._sizes) / self.samples)}

    def _many(self, each: Batches, at: int) -> Taken | None:
        if self._penalised is not None:
            chosen, weight = each[at], self._data[2]
            total = len(chosen) if weight is None else float(np.sum(weight[chosen], dtype=np.float64))
            decay = self._alpha / total
            if self._penalised.weight_decay != decay:
                self._penalised.weight_decay = decay
        return super()._many(each, at)
