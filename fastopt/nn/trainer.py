"""Steps of training: a program for each size of batches, and an optimizer."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastopt import _kernels, checks
from fastopt.checks import Array
from fastopt.nn.arguments import samples, weights
from fastopt.nn.layers import Grads
from fastopt.nn.losses import Loss, LossLike, lowering_of, named_loss
from fastopt.nn.orders import Batches, Indices
from fastopt.nn.program import MOST_BATCHES, Compiled, Program, Targets, fitting
from fastopt.nn.stack import Stack
from fastopt.nn.trace import NonFiniteError, find_anomaly
from fastopt.optimizer import Upcoming, Varying
from fastopt.optimizers import LookAheadNesterov


class NonFinite(Exception):
    """A loss or a gradient is not finite; running statistics are those of before the batch."""


class Taken(NamedTuple):
    """What steps gave: for each the mean loss, the total sample weight, the number of right answers, and what else the
    loss tells of its last batch, (steps, extras); and for all samples the outputs, where they are wanted."""

    loss: Array
    weight: Array
    right: Array
    extras: Array
    output: Array | None = None


class Steps:
    """Steps on the rows of some arrays: many by one call of C, where layers, loss and optimizer are such that it can
    take them alone; else one by one.

    Parameters
    ----------
    model : Sequential
    optimizer : Optimizer
    check : bool
        Whether a loss or a gradient that is not finite ends in `NonFinite`.
    outputs : bool, default False
        Whether what batches gave has the outputs.
    accumulate : int, default 1
        Batches of a step, whose gradients are added up; the last step of an epoch may have fewer.

    Attributes
    ----------
    part : float
        How long a call of C may be, as a part of the usual time.
    """

    part = 1.0

    def __init__(
        self, model: Compiled, optimizer: Any, *, check: bool, outputs: bool = False, accumulate: int = 1
    ) -> None:
        self._model, self._optimizer, self._check, self._outputs = model, optimizer, check, outputs
        self._every = accumulate
        #: By the size of batches, programs, and what gives each back.
        self._programs: dict[int, tuple[Program, contextlib.ExitStack]] = {}
        self._fed: set[int] = set()  # sizes whose programs have the present data
        self._began: Program | None = None  # with which the last step began: it has the running statistics of before
        self._data: tuple[Array, Array, Array | None] | None = None
        self._targets: Targets | None = None
        self._loss: Any = None

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give all programs back."""
        self._fed.clear()
        while self._programs:
            self._programs.popitem()[1][1].close()

    def feed(self, x: Array, y: Array, weight: Array | None, loss: Loss) -> None:
        """Take batches from the rows of these arrays from now on; they were checked."""
        if weight is not None and not _kernels.gathers(weight):
            weight = checks.contiguous(weight, self._model.dtype)
        targets = Targets(y, self._model.dtype, weight is not None)
        if lowering_of(loss) is not None:
            y = y if _kernels.gathers(y) else checks.contiguous(y, targets.dtype)
        if self._targets is None or loss is not self._loss or targets.key != self._targets.key:
            self.close()
        self._data, self._targets, self._loss = (x, y, weight), targets, loss
        self._fed.clear()

    def program(self, n: int) -> Program:
        """The program of batches of a size, fed."""
        assert self._data is not None
        found, in_use = self._programs.get(n, (None, None))
        if found is None or not found.holds():
            if in_use is not None:
                in_use.close()
            with contextlib.ExitStack() as stack:
                how = self._loss, self._targets, self._check, self._outputs, self._every > 1
                own = self._model.program(n, *how)
                found = stack.enter_context(own)
                found.feed(*self._data)
                self._programs[n] = found, stack.pop_all()
            self._fed.add(n)
        elif n not in self._fed:
            found.feed(*self._data)
            self._fed.add(n)
        return found

    # ---- Steps of C alone --------------------------------------------------------------------------------------

    def many(self, order: Indices | None, n: int, most: int, counter: int) -> Taken | None:
        """Some of the next steps on batches of n rows, at most so many batches: as many as C takes in one go; None
        where it cannot take any alone. The counter is the number of steps that were taken before; the last step has
        fewer batches than others, where `most` is no multiple of theirs.

        Raises
        ------
        NonFinite
            With what was taken before as its argument.
        """
        program, every = self.program(n), self._every
        batches = min(most, max(1, program.batches(most, self.part) // every) * every)
        upcoming = self._upcoming(-(-batches // every)) if program.native and batches <= MOST_BATCHES else None
        if upcoming is None:
            return None
        batches = min(batches, upcoming.steps * every)
        if every > 1:
            assert order is not None
            program.shares[:batches] = self._shares([order[i * n : (i + 1) * n] for i in range(batches)])
        output, self._began = self._aim(program, batches), program
        started = time.perf_counter()
        done, stopped, norm = program.calls.run(
            order, n, batches, counter * every, part=(0, every, 0), grads=program.grads, **upcoming.options
        )
        if done:
            program.seconds = (time.perf_counter() - started) / done
        steps = -(-done // every) if stopped < 0 else done // every
        upcoming.finish(steps, norm)
        if stopped >= 0 and program.is_step(stopped):  # Python takes it, or says why it cannot be taken
            self._restore()
            if not steps:
                return None
        whole = min(done, steps * every)
        taken = self._taken(program.result[:whole], program.right[:whole], program.shares[:whole])
        taken = taken._replace(output=None if output is None else output[: whole * n])
        if stopped >= 0 and not program.is_step(stopped):
            self._stop(program, stopped, order, done, taken)
        return taken

    def epochs(
        self,
        sizes: Sequence[tuple[int, int]],
        most: int,
        orders: Callable[[int], Sequence[Batches]],
        varying: Varying | None = None,
    ) -> list[Taken]:
        """All steps of some of the next epochs, as many as C takes in one go; none where it cannot take any alone.

        Parameters
        ----------
        sizes : sequence of (int, int)
            Those of the batches of an epoch, one after the other, and of how many that is.
        most : int
        orders : callable
            Returns the batches of so many epochs, or of fewer, of arrays that it may `feed`.
        varying : Varying, optional
            A setting of the optimizer that differs from step to step of each epoch.

        Returns
        -------
        list of Taken
            Of each epoch. Where a step could not be taken, the last ones are those before it, and `many` says why;
            where parameters or running statistics are not finite after an epoch, it is the last.
        """
        fit = fitting([(self.program(n), count) for n, count in sizes], most, self.part)
        if not fit or self._upcoming(1) is None:
            return []
        each, counts, begin, every = orders(fit), [count for _, count in sizes], 0, self._every
        programs = [self.program(n) for n, _ in sizes]  # which may have been fed anew
        batches, steps = sum(counts), -(-sum(counts) // every)
        epoch, upcoming = [*zip(programs, counts, strict=True)], self._upcoming(len(each) * steps, varying)
        if upcoming is None or upcoming.steps < steps:
            return []
        fit = upcoming.steps // steps
        legs: list[tuple[_kernels.Program, Indices | None, int, int]] = []
        for program, (n, count) in zip(programs, sizes, strict=True):
            end = begin + n * count
            rows = [one.order[begin:end] for one in each[:fit]]
            legs.append((program.calls, np.concatenate(rows) if fit > 1 else rows[0], n, count))
            begin = end
        shares, ends = np.empty((fit, 0)), [*itertools.accumulate(counts)]
        if every > 1:
            shares = np.array([self._shares([one[i] for i in range(batches)]) for one in each[:fit]])
            for (program, count), end in zip(epoch, ends, strict=True):
                program.shares[: fit * count] = shares[:, end - count : end].ravel()
        if self._check:
            legs.append((programs[0].finite, None, 0, 1))
        started = time.perf_counter()
        done, leg, batch, _, norm = _kernels.run_rounds(
            legs, fit, self._optimizer.t * every, every=every, grads=programs[0].grads, **upcoming.options
        )
        seconds = time.perf_counter() - started
        ran = 0 if done == fit else sum(counts[:leg]) + batch  # batches of the next epoch …
        more = steps if ran == batches else ran // every  # … and steps
        upcoming.finish(done * steps + more, norm)
        if done < fit and ran < batches:
            self._began = programs[bisect.bisect(ends, more * every)]
            self._restore()
        else:
            for program in programs:
                program.seconds = seconds / (fit * batches)
        rounds = done + (more > 0)
        of_each = programs[0].result.shape[1]
        result = np.concatenate([p.result[: rounds * k].reshape(rounds, k, of_each) for p, k in epoch], axis=1)
        right = np.concatenate([p.right[: rounds * k].reshape(rounds, k) for p, k in epoch], axis=1)
        taken = [self._taken(*own) for own in zip(result, right, shares[:rounds], strict=True)]
        if more:
            taken[-1] = Taken(*(part[:more] for part in taken[-1][:4]))
        return taken

    def _taken(self, result: Array, right: Array, shares: Array) -> Taken:
        """What steps gave, by what their batches did."""
        every = self._every
        if every == 1:
            result = result.copy()
            return Taken(result[:, 0], result[:, 1], right.copy(), result[:, 2:])
        steps = -(-len(right) // every)
        loss, weight, counts = np.zeros(steps), np.zeros(steps), np.zeros(steps, np.int64)
        extras = np.zeros((steps, result.shape[1] - 2))
        for i in range(every):
            own = slice(i, None, every)
            count = len(right[own])
            loss[:count] += shares[own] * result[own, 0]
            weight[:count] += result[own, 1]
            counts[:count] += right[own]
            extras[:count] = result[own, 2:]
        return Taken(loss, weight, counts, extras)

    def _shares(self, parts: Sequence[Indices]) -> list[float]:
        """The share of each batch in the weight of all samples of its step."""
        totals, shares = [self._total_weight(chosen) for chosen in parts], []  # type: list[float], list[float]
        for begin in range(0, len(parts), self._every):
            own = totals[begin : begin + self._every]
            whole = sum(own) or 1.0
            shares += [total / whole for total in own] if len(own) > 1 else [1.0]
        return shares

    def _upcoming(self, steps: int, varying: Varying | None = None) -> Upcoming | None:
        """The next steps of the optimizer, where C can take them alone."""
        # Of its own class: what wraps an optimizer may pass on whatever is asked of it, but does more in a step.
        return self._optimizer.upcoming(steps, varying) if hasattr(type(self._optimizer), "upcoming") else None

    def _aim(self, program: Program, batches: int) -> Array | None:
        """A new array for the outputs of so many batches, where they are wanted."""
        if not self._outputs:
            return None
        output = np.empty((batches * program.n, *self._model.shapes[-1]), self._model.dtype)
        program.aim(output)
        return output

    def _stop(self, program: Program, item: int, order: Indices | None, batch: int, *taken: Any) -> None:
        try:
            if program.stops_on_input(item):
                assert self._data is not None
                rows = slice(batch * program.n, (batch + 1) * program.n)
                chosen = self._data[0][rows if order is None else order[rows]]
                self._model.forward(self._model.converted(chosen), training=True, counter=0)  # says what is wrong
        finally:
            self._restore()
        raise NonFinite(*taken)

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Within the block, one step is taken; where an exception prevents it, running statistics are put back."""
        self._began, before = None, self._optimizer.t
        try:
            yield
        except BaseException:
            if self._began is not None and self._optimizer.t == before:
                self._restore()
            raise

    def _restore(self) -> None:
        """Put the running statistics back that the step began with."""
        assert self._began is not None
        self._began.restore()

    # ---- One by one --------------------------------------------------------------------------------------------

    def gradients(self, parts: list[Indices], counter: int) -> tuple[Taken, Grads]:
        """The gradients over batches that make one step: what these gave, as one, and the gradients, which the next
        call overwrites."""
        value, right, total = 0.0, 0, 0.0
        outputs: list[Array | None] = []
        for i, (chosen, share) in enumerate(zip(parts, self._shares(parts) if len(parts) > 1 else [1.0], strict=True)):
            program, part = self.program(len(chosen)), (i, len(parts), len(parts) - 1 - i)
            if i == 0:
                self._begin(program)
            program.shares[:1] = share
            outputs.append(self._aim(program, 1))
            started = time.perf_counter()
            for phase in (0, 1):
                self._phase(program, phase, chosen, counter + i, part)
            program.seconds = program.seconds or time.perf_counter() - started
            own, weight, *extras = program.result[0].tolist()
            value, right, total = value + share * own, right + int(program.right[0]), total + weight
        output = np.concatenate([own for own in outputs if own is not None]) if self._outputs else None
        taken = Taken(np.array([value]), np.array([total]), np.array([right]), np.array([extras]), output)
        return taken, dict(program.grads)

    def _begin(self, program: Program) -> None:
        """Begin a step with a batch of that program."""
        program.keep()
        self._began = program

    def _phase(self, program: Program, phase: int, chosen: Indices, counter: int, part: tuple[int, int, int]) -> None:
        try:
            stopped = program.run_phase(phase, chosen, 0, counter, part)
        except BaseException:  # of a layer or a loss of the user's
            self._restore()
            raise
        if stopped >= 0:
            self._stop(program, stopped, chosen, 0)

    def _total_weight(self, chosen: Indices) -> float:
        """The total weight of samples, by which the mean of their losses divides."""
        assert self._data is not None
        _, y, weight = self._data
        own = None if weight is None else weight[chosen]
        if hasattr(self._loss, "total_weight"):
            return float(self._loss.total_weight(y[chosen], own))
        return float(len(chosen) if own is None else own.sum())

    def check(self, grads: Grads) -> None:
        """Raise `NonFinite` where the gradients are not finite."""
        program = self._began
        if not self._check or program is None:
            return
        try:
            finite = _kernels.all_finite(grads.values())
        except _kernels.Misfit:
            return  # the optimizer says what is wrong
        if not finite:
            self._restore()
            raise NonFinite


def look_ahead(optimizer: Any) -> None:
    """Move the parameters to where `LookAheadNesterov` takes the gradient; other optimizers leave them as they are."""
    if isinstance(optimizer, LookAheadNesterov) and not optimizer.ahead:
        optimizer.look_ahead()


class _Training:
    """What a block that trains a model holds: it goes with it, even where an interrupt leaves no time to say so."""


#: Of models that are trained at present, by their process and identity.
_trained: weakref.WeakValueDictionary[tuple[int, int], _Training] = weakref.WeakValueDictionary()


@contextlib.contextmanager
def alone(model: Stack) -> Iterator[None]:
    """Within the block, no other run may train the model."""
    key = os.getpid(), id(model)
    if key in _trained:
        raise RuntimeError("the model is being trained already, by another thread or in a callback: wait, or copy it")
    training = _trained[key] = _Training()
    try:
        yield
    finally:
        if _trained.get(key) is training:
            del _trained[key]


@contextlib.contextmanager
def holding(model: Stack, optimizer: Any = None) -> Iterator[None]:
    """Within the block, the model may know which parameters its optimizer leaves out, and does so at its beginning."""
    frozen = getattr(optimizer, "frozen", ())
    marks = bool(frozen or optimizer is None or model.params.held)  # by a block that was interrupted
    try:
        if marks:
            model.params.mark("held", frozen)
        yield
    finally:
        if marks:
            model.params.mark("held", ())


class Trainer:
    """Training steps of a loop of one's own: see `fastopt.nn.Sequential.trainer`."""

    def __init__(self, model: Compiled, optimizer: Any, loss: LossLike, on_nonfinite: str) -> None:
        self.model, self.optimizer, self.loss, self._on_nonfinite = model, optimizer, named_loss(loss), on_nonfinite
        self._steps = Steps(model, optimizer, check=on_nonfinite != "ignore")

    def __repr__(self) -> str:
        loss = getattr(self.loss, "__name__", repr(self.loss))
        return f"Trainer({self.optimizer!r}, {loss}, on_nonfinite={self._on_nonfinite!r})"

    def __call__(self, x: Array, y: Array, sample_weight: Array | None = None) -> float:
        """A step on one batch.

        Parameters
        ----------
        x, y : ndarray (n, …)
            Inputs and targets.
        sample_weight : ndarray (n,), optional

        Returns
        -------
        float
            The mean loss before the step; NaN where it was skipped.
        """
        model, optimizer = self.model, self.optimizer
        x, y, loss = samples(model, x, y, self.loss)
        if not len(x):
            raise ValueError("x must hold at least one sample, got none")
        weight = weights(sample_weight, None, y, loss, model.dtype)
        steps = self._steps  # whose programs are kept for the next step
        with alone(model), holding(model, optimizer):
            steps.feed(x, y, weight, loss)
            look_ahead(optimizer)
            try:
                taken = steps.many(None, len(x), 1, optimizer.t)
                if taken is not None:
                    return float(taken.loss[0])
                with steps.whole():
                    given, grads = steps.gradients([np.arange(len(x))], optimizer.t)
                    steps.check(grads)
                    optimizer.step(grads)
                return float(given.loss[0])
            except NonFinite:
                if self._on_nonfinite == "skip":
                    return math.nan
                batch = model.converted(x), y, loss
                cause = find_anomaly(model, *batch, sample_weight=weight, counter=optimizer.t)
                raise NonFiniteError(
                    f"step {optimizer.t + 1}: {cause or 'the loss or a gradient is not finite'}"
                ) from None
