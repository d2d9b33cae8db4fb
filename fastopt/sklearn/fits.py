"""Fits that have begun: their runs, which may be done together with those of others, and what is to be done after."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastopt.nn.many import train
from fastopt.nn.training import Run


class Fit:
    """A fit, all arguments checked, before its first step.

    Parameters
    ----------
    runs : sequence of Run
        Of different networks; none where all is done in the end.
    estimators : sequence of object
        Of which network each run is.
    end : callable
        ``end(is_last)`` does what is to be done when the runs have ended, for now or for good.
    """

    def __init__(self, runs: Sequence[Run], estimators: Sequence[Any], end: Callable[[bool], None]) -> None:
        self.runs, self.estimators, self.end = list(runs), list(estimators), end

    def go(self) -> None:
        """All of it."""
        if len(self.runs) == 1:
            self.runs[0].go()
        elif self.runs:
            errors, _ = train(self.runs)
            for error in errors.values():
                raise error
        self.end(True)

    @contextlib.contextmanager
    def ended(self) -> Iterator[None]:
        """Within the block, the estimators are as they would be if the fit had ended; after it, the runs can go on."""
        before = []
        for estimator in self.estimators:
            network = _network(estimator)
            arrays = [*network.params.values(), *network.state.values()]
            before.append((estimator, dict(vars(estimator)), [(array, array.copy()) for array in arrays]))
        try:
            self.end(False)
            yield
        finally:
            for estimator, attributes, arrays_before in before:
                vars(estimator).clear()
                vars(estimator).update(attributes)
                for array, kept in arrays_before:
                    array[...] = kept

    def go_on(self, epochs: int) -> None:
        """Let the runs have so many epochs in all."""
        for run in self.runs:
            run.epochs, run.is_over = epochs, False


def _network(estimator: Any) -> Any:
    return estimator.network_ if hasattr(estimator, "network_") else estimator.model_
