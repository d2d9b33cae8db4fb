"""Runs as scikit-learn makes them: its order of samples, its batches, its penalty, its stopping rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from fastopt.checks import Array
from fastopt.nn.program import Compiled
from fastopt.nn.trainer import Indices, Taken
from fastopt.nn.training import Batches, Callback, Run

#: Elements of rows of a sparse matrix that are made dense at a time.
MOST_DENSE = 2**22


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


class PenalisedRun(Run):
    """A run with scikit-learn's order of samples, batches, and penalty.

    Parameters
    ----------
    model, data, optimizer, loss
        As of `Run`; inputs may be `Rows`, and the loss is that of `fastopt.sklearn.losses`.
    epochs, batch_size, callbacks, validation_data
        As of `Run`.
    order : callable
        Returns the order of samples of the next epoch.
    alpha : float
        The penalty of a batch is ``alpha/2·Σw² / (total sample weight)``.
    penalised : object or None
        The group of the optimizer whose decay is that penalty.
    join : bool
        Whether a single last sample joins the batch before.
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
        validation_data: Any = None,
        join: bool = False,
    ) -> None:
        super().__init__(
            model,
            data,
            optimizer,
            loss,
            epochs=epochs,
            batch_size=batch_size,
            accumulate=1,
            seed=0,
            validation_data=validation_data,
            callbacks=callbacks,
            on_nonfinite="ignore",
        )
        self._next_order, self._alpha, self._penalised, self._join = order, alpha, penalised, join
        self._sparse = data[0] if isinstance(data[0], Rows) else None
        if self._sparse is not None:
            self._x = np.zeros((self.samples, 0), model.dtype)  # whose rows `_feed` takes the place of
        each = self._split(np.arange(self.samples))
        self.batches = len(each)
        self._rows = np.array([each.rows(i, i + 1) for i in range(len(each))])

    def _split(self, order: Indices) -> Batches:
        return Batches(order, self.batch_size, join=self._join)

    def _batched(self) -> Batches:
        self._squares: list[Array] = []
        return self._split(self._next_order())

    def _feed_first(self) -> None:
        if self._sparse is None:
            super()._feed_first()

    def _feed(self, rows: Indices) -> None:
        """Take batches from these rows of a sparse matrix, in that order."""
        assert self._sparse is not None
        weight = None if self._weight is None else self._weight[rows]
        self._steps.feed(self._sparse[rows], self._y[rows], weight, self.loss)

    def _begin_step(self, each: Batches, at: int) -> None:
        super()._begin_step(each, at)
        if self._sparse is not None:
            self._feed(each[at])
            self._parts = [np.arange(len(each[at]))]

    def _most(self, each: Batches, at: int) -> int:
        if self._penalised is not None and self._weight is not None:
            return 1  # as the total weight of each is another
        return super()._most(each, at)

    def _many(self, each: Batches, at: int) -> Taken | None:
        if self._penalised is not None:
            chosen = each[at]
            total = len(chosen) if self._weight is None else float(np.sum(self._weight[chosen], dtype=np.float64))
            decay = self._alpha / total
            if self._penalised.weight_decay != decay:
                self._penalised.weight_decay = decay
        if self._sparse is None:
            taken = super()._many(each, at)
        elif "on_gradients" in self._hooks:
            taken = None
        else:
            n = each.rows(at, at + 1)
            most = min(self._most(each, at), self._sparse.at_once(n))
            self._feed(each.order[at * each.size : at * each.size + most * n])
            taken = self._steps.many(None, n, most, self.optimizer.t)
        if taken is not None:
            self._squares.append(self.loss.penalty(len(taken.loss)))  # type: ignore[attr-defined]
        return taken

    def _one(self, step: int) -> Taken:
        taken = super()._one(step)
        self._squares.append(self.loss.penalty(1))  # type: ignore[attr-defined]
        return taken

    def _metrics(self, taken: Sequence[Taken], seen: int) -> dict[str, float]:
        logs = super()._metrics(taken, seen)
        loss, weight = (np.concatenate([one[k] for one in taken]) for k in range(2))
        loss = loss * self.loss.factor(self.model.shapes[-1][0])  # type: ignore[attr-defined]
        if self._penalised is not None:
            loss = loss + 0.5 * self._alpha * np.concatenate(self._squares) / weight
        return logs | {"loss": float(np.sum(loss * self._rows) / self.samples)}
