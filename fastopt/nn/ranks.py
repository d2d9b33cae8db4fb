"""Training by several processes: each, a *rank*, takes a part of the rows of every batch, and gradients are added up.

All ranks have all samples, draw the same order, and take the same steps, so that their parameters stay the same bits.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from fastopt import _kernels, arena
from fastopt.checks import Array
from fastopt.mpi import Group
from fastopt.nn.layers import Grads
from fastopt.nn.lowering import Shared
from fastopt.nn.metrics import Metric
from fastopt.nn.orders import Indices
from fastopt.nn.program import Compiled, Program
from fastopt.nn.trainer import NonFinite, Steps, Taken

#: Of `fastopt.nn.training`, which imports this module.
Run: TypeAlias = Any
Callback: TypeAlias = Any
Validation: TypeAlias = Any


class Alone:
    """What a run asks of its ranks, where it has one.

    Attributes
    ----------
    is_first : bool
        Whether this is rank 0, which alone writes and prints.
    """

    is_first = True

    def steps(self, model: Compiled, optimizer: Any, *, check: bool, outputs: bool, accumulate: int) -> Steps:
        """What takes the steps of the run."""
        return Steps(model, optimizer, check=check, outputs=outputs, accumulate=accumulate)

    def told(self, callbacks: Sequence[Callback]) -> Sequence[Callback]:
        """The callbacks that are called on this rank."""
        return callbacks

    def agree(self, run: Run, data: Sequence[Any], hooks: set[str]) -> set[str]:
        """See that all have been given the same; returns the `hooks`, methods of callbacks, that any rank has."""
        return hooks

    def together(self, function: Callable[[], Any]) -> Any:
        """Call a function on all ranks, or have it fail on all."""
        return function()

    def take_over(self, run: Run) -> None:
        """Begin with what rank 0 has: the model, the optimizer, and what a checkpoint holds."""

    def stops(self, run: Run, epoch: bool = False) -> bool:
        """Whether the run is to end, after a step or an epoch."""
        return bool(run.stopped)

    def summed(self, sums: list[float]) -> list[float]:
        """Sums over the samples that this rank has taken, over all."""
        return sums

    def measured(self, validation: Validation, model: Compiled, metrics: Mapping[str, Metric]) -> dict[str, float]:
        """What validation gives."""
        return validation.measure(model, metrics)

    def logged(self, run: Run, logs: dict[str, float]) -> dict[str, float]:
        """The metrics of an epoch that all ranks have."""
        return logs


class Ranks(Alone):
    """The same, of several.

    Parameters
    ----------
    group : Group
    """

    def __init__(self, group: Group) -> None:
        self._group, self.is_first = group, group.rank == 0
        self._over = self._by_step = False

    def steps(self, model: Compiled, optimizer: Any, *, check: bool, outputs: bool, accumulate: int) -> SharedSteps:
        self._steps = SharedSteps(model, optimizer, self._group, check=check, outputs=outputs)
        return self._steps

    def told(self, callbacks: Sequence[Callback]) -> Sequence[Callback]:
        return [each for each in callbacks if each.on_every_rank or self.is_first]

    def together(self, function: Callable[[], Any]) -> Any:
        return self._group.together(function)

    def agree(self, run: Run, data: Sequence[Any], hooks: set[str]) -> set[str]:
        if getattr(run.loss, "label_smoothing", 0) and 0 in (run.loss.class_weight or ()):
            # Losses of a part that weighs nothing are then no mean of anything, but count.
            raise ValueError("loss must not have class weights of 0 beside label_smoothing where comm is given")
        given = self._group.everyone((_settings(run, data), hooks))
        first = given[0][0]
        for rank, (settings, _) in enumerate(given):
            for name, value in first.items():
                if settings[name] != value:
                    one, other = _difference(value, settings[name])
                    where = f"{one} on rank 0, {other} on rank {rank}"
                    raise ValueError(f"{name} must be the same on all ranks, got {where}")
        union = set[str]().union(*(each for _, each in given))
        self._by_step = bool(union)
        self._steps.at_once = self._by_step or getattr(run.optimizer, "needs_closure", False)
        self._steps.wants_to_stop = lambda: bool(run.stopped)
        return union

    def take_over(self, run: Run) -> None:
        group, model, optimizer = self._group, run.model, run.optimizer
        for array in (*model.params.values(), *model.state.values()):
            value = np.ascontiguousarray(array)
            group.copy_first(value)
            np.copyto(array, value)
        if len(set(group.everyone(_digest(optimizer.state_dict())))) > 1:
            state = group.of_first(optimizer.state_dict())
            optimizer.load_state_dict(state)
        history = run.history
        resumed = group.of_first((run.epoch, dict(history), history.monitor, run.stopped, history.provenance))
        history.provenance = resumed[4] | {"ranks": group.size}
        if resumed[0] > 0:  # by rank 0, from its file
            names = [type(each).__name__ for each in run.callbacks]
            theirs = group.of_first([(type(each).__name__, each.state_dict()) for each in run.callbacks])
            others = group.everyone(names)
            if any(other != others[0] for other in others):
                raise ValueError(f"callbacks must be the same on all ranks where a run is resumed, got {others}")
            run.epoch, run.stopped = resumed[0], resumed[3]
            history.update(resumed[1])
            history.monitor = resumed[2]
            for callback, (_, state) in zip(run.callbacks, theirs, strict=True):
                if state and not self.is_first and callback.on_every_rank:
                    callback.load_state_dict(state)
        self._over = bool(run.stopped)

    def stops(self, run: Run, epoch: bool = False) -> bool:
        if epoch or self._by_step or self._steps.is_asked_to_stop:
            reasons = self._group.everyone((run.stopped, run.interrupted))
            run.stopped = next((reason for reason, _ in reasons if reason), "")
            run.interrupted = any(interrupted for _, interrupted in reasons)
            self._over = bool(run.stopped)
        return self._over

    def summed(self, sums: list[float]) -> list[float]:
        return sums if self._steps.at_once else self._group.sum(np.array(sums)).tolist()

    def measured(self, validation: Validation, model: Compiled, metrics: Mapping[str, Metric]) -> dict[str, float]:
        return validation.measure(model, metrics, self._outputs)

    def _outputs(self, of_rows: Callable[[int, int], Array], n: int) -> Array:
        """The outputs of n rows, of which this rank computes its part."""
        begin, end = self._group.rows(n)
        own = of_rows(begin, end)
        return self._group.sum(_placed(own, begin, n))

    def logged(self, run: Run, logs: dict[str, float]) -> dict[str, float]:
        arrays = [*run.model.params.values(), *run.model.state.values()]
        if len(set(self._group.everyone(_digest(arrays)))) > 1:
            raise RuntimeError(
                "the ranks' parameters are no longer the same: a callback, say, must do the same on all of them"
            )
        return self._group.of_first(logs)


def _placed(own: Array, begin: int, n: int) -> Array:
    """The outputs of some of n rows, in their place among zeros."""
    whole = np.zeros((n, *own.shape[1:]), own.dtype)
    whole[begin : begin + len(own)] = own
    return whole


# ---- Steps ------------------------------------------------------------------------------------------------------


class SharedSteps(Steps):
    """Steps on the rows of some arrays, of which each rank takes a part.

    A rank for which there is none, as there are fewer rows than ranks, takes the first one, which does not count.

    Parameters
    ----------
    model, optimizer, check, outputs
        As for `Steps`.
    group : Group

    Attributes
    ----------
    at_once : bool
        Whether what a batch gave is that of all ranks at once, rather than at the end of the epoch.
    wants_to_stop : callable
        Whether this rank is to end the run.
    is_asked_to_stop : bool
        Whether any rank was to, at the last step.
    """

    def __init__(self, model: Compiled, optimizer: Any, group: Group, *, check: bool, outputs: bool = False) -> None:
        super().__init__(model, optimizer, check=check, outputs=outputs)
        self._group, self.at_once, self.is_asked_to_stop = group, False, False
        self.wants_to_stop: Callable[[], bool] = bool
        # One block: two flags, and the gradients from the last layer to the first, as the first ones may be frozen, and
        # are then beyond the end of what is added up.
        self._flags = np.zeros(2, model.dtype)
        flat = arena.flatten({"flags": self._flags, **dict(reversed(model.params.items()))})
        self._block: Array = flat.grad
        self._flags, self._own_grads = flat.grads.pop("flags"), flat.grads
        #: By the number of rows, the first one, and how many count: programs, and where gradients end in the block.
        self._parts: dict[tuple[int, int, int], tuple[Program, int]] = {}
        self._fed_parts: set[tuple[int, int, int]] = set()

    def close(self) -> None:
        super().close()
        self._parts.clear()
        self._fed_parts.clear()

    def feed(self, x: Array, y: Array, weight: Array | None, loss: Any) -> None:
        super().feed(x, y, weight, loss)
        self._fed_parts.clear()

    def many(self, order: Indices | None, n: int, most: int, counter: int) -> Taken | None:
        return None

    def epochs(self, sizes: Any, most: int, orders: Any, varying: Any = None) -> list[Taken]:
        return []

    def _part(self, n: int, first: int, count: int) -> tuple[Program, int]:
        """The program of n rows from number `first` of a batch on, fed, and where its gradients end."""
        assert self._data is not None
        key = n, first, count
        found, end = self._parts.get(key, (None, 0))
        if found is None or not found.holds():
            shared = Shared(self._group, first, count, self._own_grads)
            # Whether numbers are finite, ranks look at together.
            how: dict[str, Any] = {"check": False, "outputs": self._outputs, "shared": shared}
            found = Program(self._model, n, loss=self._loss, targets=self._targets, **how)
            begin = _kernels.address(self._block)
            ends = [_kernels.address(grad) + grad.nbytes - begin for grad in found.grads.values()]
            end = max(ends, default=self._flags.nbytes) // self._block.itemsize
            self._parts[key] = found, end
            self._fed_parts.discard(key)
        if key not in self._fed_parts:
            found.feed(*self._data)
            self._fed_parts.add(key)
        return found, end

    def gradients(self, parts: list[Indices], counter: int) -> tuple[Taken, Grads]:
        totals = [self._total_weight(chosen) for chosen in parts]
        whole, sums = sum(totals) or 1.0, np.zeros(3)  # of losses, their weights, and right answers
        outputs: list[Array] = []
        added: Array | None = None
        for i, chosen in enumerate(parts):
            first, end = self._group.rows(len(chosen))
            count = end - first
            own = chosen[first:end] if count else chosen[:1]
            program, end = self._part(len(own), first, count)
            if i == 0:
                self._begin(program)
            of_step = i, len(parts), len(parts) - 1 - i
            output = self._aim(program, 1)
            self._phase(program, 0, own, counter + i, of_step)
            value, weight = program.result[0, :2].tolist() if count else (0.0, 0.0)
            program.doutput[...] *= weight / whole
            self._phase(program, 1, own, counter + i, of_step)
            sums += value * weight, weight, program.right[0] if count else 0
            if output is not None:
                outputs.append(_placed(output[:count], first, len(chosen)))
            if len(parts) > 1:
                added = self._block.copy() if added is None else np.add(added, self._block, out=added)
        if added is not None:
            self._block[...] = added
        grads = dict(program.grads)
        taken = self._exchange(end, sums, outputs)
        if self._check and (self._flags[1] or not _kernels.all_finite([*grads.values()])):
            self._restore()
            raise NonFinite
        return taken, grads

    def _exchange(self, end: int, sums: Array, outputs: list[Array]) -> Taken:
        """Add up over all ranks: gradients, which are in the block before its `end`, and what else they must know."""
        self._flags[...] = self.wants_to_stop(), not math.isfinite(sums[0])
        self._group.sum(self._block[:end])
        self.is_asked_to_stop = bool(self._flags[0])
        if self.at_once:
            self._group.sum(sums)
        output = self._group.sum(np.concatenate(outputs)) if outputs else None
        loss = sums[:1] / (sums[1] or 1.0)
        return Taken(loss, sums[1:2], sums[2:].astype(np.int64), np.empty((1, 0)), output)


# ---- What must be the same --------------------------------------------------------------------------------------


def _settings(run: Run, data: Sequence[Any]) -> dict[str, str]:
    """What all ranks must have been given, as text; of the data, some rows."""
    made = {
        "model": repr(run.model),
        "optimizer": repr(run.optimizer),
        "loss": repr(run.loss),
        "epochs": str(run.epochs),
        "batch_size": str(run.batch_size),
        "accumulate": str(run.accumulate),
        "seed": str(run.seed),
        "on_nonfinite": run.on_nonfinite,
        "metrics, validation_data": ", ".join(run.measures),
        "average": type(run.average).__name__,
        "the number of samples": str(run.samples),
        "the number of batches": str(run.batches),
    }
    for name, array in zip(("x", "y", "sample_weight"), data, strict=True):
        made[name] = "None" if array is None else _sample(array)
    return {name: re.sub(r" at 0x[0-9a-f]+", "", text) for name, text in made.items()}


def _difference(one: str, other: str) -> tuple[str, str]:
    """The first lines of two texts that differ."""
    lines = zip(one.splitlines(), other.splitlines(), strict=False)
    found = next(((a.strip(), b.strip()) for a, b in lines if a != b), (one, other))
    return f"{found[0]:.200}", f"{found[1]:.200}"


def _sample(array: Array) -> str:
    """Type, shape, and a checksum of evenly spaced rows."""
    rows = array[:: max(1, len(array) // 256)]
    return f"{array.dtype} {array.shape} with checksum {_digest([rows])}"


def _digest(value: Any) -> str:
    """A checksum of nested values."""
    made = hashlib.blake2b(digest_size=8)

    def add(value: Any) -> None:
        if isinstance(value, np.ndarray):
            made.update(np.ascontiguousarray(value).data)
        elif isinstance(value, Mapping):
            add([*value.items()])
        elif isinstance(value, (list, tuple)):
            for each in value:
                add(each)
        else:
            made.update(repr(value).encode())

    add(value)
    return made.hexdigest()
