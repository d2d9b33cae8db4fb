"""Runs as scikit-learn makes them: its order of samples, its batches, its penalty, its stopping rule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from fastopt.checks import Array
from fastopt.nn.feed import Block, Data
from fastopt.nn.orders import Batches, Indices
from fastopt.nn.program import Compiled
from fastopt.nn.trainer import Taken
from fastopt.nn.training import Callback, History, Run, _Epoch

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


class Ordered:
    """Batches of the rows of arrays, or of a sparse matrix, in orders of scikit-learn's: a `fastopt.nn.feed.Feed`.

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
    sizes : int64 ndarray (batches,)
        Of the batches of each epoch.
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
        self._data, self._order, self.size, self._join, self._singly = data, order, size, join, singly
        self.order = f"scikit-learn's({size})"
        self.seeds: Mapping[str, int | None] | None = {}
        self.samples = len(data[0])
        each = self._split(np.arange(self.samples))
        self.batches = len(each)
        self.sizes = np.diff([each.start(i) for i in range(len(each) + 1)])

    def first(self) -> Data:
        return self._dense(np.arange(1)) if isinstance(self._data[0], Rows) else self._data

    @contextlib.contextmanager
    def epoch(self, seed: int, steps: int, epoch: int) -> Iterator[Iterator[Block]]:
        yield self._blocks(self._split(self._order()))

    def _split(self, order: Indices) -> Batches:
        return (Batches if self._join else Chunks)(order, self.size)

    def _blocks(self, each: Batches) -> Iterator[Block]:
        x = self._data[0]
        if not isinstance(x, Rows) and not self._singly:
            yield Block(*self._data, each)
            return
        most = 1 if self._singly else x.at_once(self.size)
        for begin in range(0, len(each), most):
            end = min(begin + most, len(each))
            rows = each.order[each.start(begin) : each.start(end)]
            if isinstance(x, Rows):
                yield Block(*self._dense(rows), each.part(begin, end))
            else:
                yield Block(*self._data, Chunks(rows, len(rows)))

    def _dense(self, rows: Indices) -> Data:
        x, y, weight = self._data
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
        self._alpha, self._penalised, self._sizes = alpha, penalised, feed.sizes

    def go(self) -> History:
        try:
            return super().go()
        except KeyboardInterrupt:  # as in scikit-learn, where it ends a fit
            self.interrupted = True
            return self.history

    def _one_epoch(self, epoch: _Epoch) -> Generator[None, None, dict[str, float] | None]:
        self._gave: list[tuple[Taken, Array]] = []  # with the squares of weights
        logs = yield from super()._one_epoch(epoch)
        if logs is None:
            return None
        loss = np.concatenate([taken.loss for taken, _ in self._gave])
        loss = loss * self.loss.factor(self.model.shapes[-1][0])  # type: ignore[attr-defined]
        if self._penalised is not None:
            weight = np.concatenate([taken.weight for taken, _ in self._gave])
            loss = loss + 0.5 * self._alpha * np.concatenate([squares for _, squares in self._gave]) / weight
        return logs | {"loss": float(np.sum(loss * self._sizes) / self.samples)}

    def _many(self, each: Batches, at: int) -> Taken | None:
        if self._penalised is not None:
            chosen, weight = each[at], self._data[2]
            total = len(chosen) if weight is None else float(np.sum(weight[chosen], dtype=np.float64))
            decay = self._alpha / total
            if self._penalised.weight_decay != decay:
                self._penalised.weight_decay = decay
        return self._noted(super()._many(each, at))

    def _one(self, step: int) -> Taken:
        return self._noted(super()._one(step))

    def _noted(self, taken: Any) -> Any:
        """Steps that were taken, if any, and kept for the loss of the epoch."""
        if taken is not None:
            self._gave.append((taken, self.loss.penalty(len(taken.loss))))  # type: ignore[attr-defined]
        return taken
