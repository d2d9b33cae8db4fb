"""Programs: a model compiled, for batches of one size, into one list of calls, which C runs for many batches.

When all calls are written (`fastopt.nn.lowering`), so are the first and the last that touch each buffer, and memory is
given out by that.

>>> from fastopt import nn
>>> model = nn.Sequential([nn.Dense(3, activation="relu"), nn.Dense(2)], (4,))
>>> print(model.compile(8))
gather         -> x
dense_forward  x, 0.weight, 0.bias -> #1
dense_forward  #1, 1.weight, 1.bias -> #2
copy           #2 -> output
"""

from __future__ import annotations

import collections
import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from fastopt import _kernels, arena, checks
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.data.augment.views import Views, average
from fastopt.dialects import spelled
from fastopt.nn.arguments import samples, weights
from fastopt.nn.layers import Grads
from fastopt.nn.losses import Loss, LossLike, loss_of, lowering_of, named_loss, softmax_cross_entropy
from fastopt.nn.lowering import Buffer, Item, Place, Shared, Writer, lower, resolved
from fastopt.nn.metrics import Metric, MetricsLike, checked_metrics, value_of
from fastopt.nn.orders import Indices
from fastopt.nn.stack import Stack, room_for_convolutions
from fastopt.nn.targets import accuracy, are_labels, count_right

#: Batches of one call of C at most: as many have room in the tables of results.
MOST_BATCHES = 8192
#: Rows of several epochs of one call: a number of eight bytes each in their orders.
MOST_ROWS = 1 << 17
#: Seconds after which a call of C should return, so that Python can serve Ctrl-C and others.
SLICE = 0.05

#: What a model keeps programs for at most, by size, loss and targets; and how many of each, for threads.
MOST_PROGRAMS, MOST_IDLE = 16, 8
#: Programs of more memory are not kept: to make one anew takes no time beside its calls.
MOST_BYTES = 1 << 23

#: Seconds of a batch, as last measured, of programs that do the same for whatever models: the first steps of a model
#: need not show it, where another like it was trained before. Of the last ones that were new.
_seconds: dict[Any, float] = {}
MOST_SECONDS = 1024

LINE = arena.LINE

#: A range of items that C runs, or one that Python calls with the counter and the number of the batch.
Segment = tuple[int, int] | Callable[[int, int], None]


class Targets:
    """What a loss takes beside outputs: the shape and type of targets, and whether there are sample weights."""

    def __init__(self, y: Array, dtype: np.dtype[Any], weighted: bool) -> None:
        self.labels = y.ndim == 1 and y.dtype.kind in "iu"
        self.shape, self.weighted = y.shape[1:], weighted
        self.dtype = np.dtype(np.int64) if self.labels else dtype

    @property
    def key(self) -> tuple[Any, ...]:
        return self.shape, self.dtype, self.weighted


class Program:
    """A pass over a model for n samples, in training or in inference, as one list: `print` shows it.

    Parameters
    ----------
    model : Sequential
    n : int
        The size of batches.
    loss : callable, optional
        For training; inference where absent.
    targets : Targets, optional
        What the loss takes.
    check : bool, default True
        Whether a loss or a gradient that is not finite stops a batch.
    outputs : bool, default False
        Whether outputs are written in training, too: see `aim`.
    shared : Shared, optional
        Which part of a batch it is for.
    accumulate : bool, default False
        Whether a step may be of several batches, whose gradients are added up.

    Attributes
    ----------
    grads : dict of ndarray
        The gradients of the parameters, of the last step.
    shares : float64 ndarray
        For each batch of a run, its share of the weight of all samples of its step, where that may be of several.
    result, right : ndarray
        For each batch of a run, the mean loss and the total sample weight, and the number of right answers.
    native : bool
        Whether C runs all of it, so that a run may have many batches.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(3, activation="relu"), nn.Dense(2)], (4,))
    >>> program = model.compile(8, loss=nn.softmax_cross_entropy)
    >>> program.native, sorted(program.grads)
    (True, ['0.bias', '0.weight', '1.bias', '1.weight'])
    """

    def __init__(
        self,
        model: Stack,
        n: int,
        *,
        loss: Loss | None = None,
        targets: Targets | None = None,
        check: bool = True,
        outputs: bool = False,
        shared: Shared | None = None,
        accumulate: bool = False,
    ) -> None:
        self.n, self.training = n, loss is not None
        self._loss = loss  # held, as programs are found again by the identity of their loss
        self.grads: Mapping[str, Array] = {} if loss is None else shared.grads if shared else model.gradients()
        #: Of each batch the mean loss, the total sample weight, and what else the loss tells.
        self.result = np.zeros((MOST_BATCHES if self.training else 0, 2 + getattr(loss, "extras", 0)))
        self.right = np.zeros(len(self.result), np.int64)
        self.shares = np.ones(len(self.result) if accumulate else 0)
        self._fed: tuple[Any, ...] = ()  # inputs, targets, weights …
        self._order: Any = None  # … and the order of their rows
        self._names: dict[int, str] = {}
        self._kept: list[tuple[Array, Array]] = []
        p = Writer(n, model.dtype, self.grads if loss is not None else None, shared)
        for array in model.state.values() if self.training else ():
            self._kept.append((array, np.empty_like(array)))
            p.add("copy", self._kept[-1][1], array).when = "first"
        x = p.empty((n, *model.check_built()))
        self._gathers = [p.add("gather", x)]
        y, backward = lower(p, Place(), model, collections.deque(), x)
        named: dict[str, Any] = {"x": x}
        self._copy: Item | None = None
        if loss is None or outputs:
            self._target = np.empty(y.shape, y.dtype)
            self._copy = p.add("copy", self._target, y)
        if loss is None:
            marks = []
        else:
            assert targets is not None
            dy = self._write_loss(p, loss, targets, y, named, check)
            marks = [len(p.items)]
            if accumulate:
                p.add("scale", dy, self.shares)
            backward(dy, False)
            p.settle()
            self.grads = {name: grad for name, grad in p.grads.items() if name in p.written}
            if accumulate:
                self.grads = self._write_sums(p, model.gradients(summed=True))
            marks.append(len(p.items))
            for grad in self.grads.values() if check else ():
                p.add("finite", grad).when = "last"
            marks.append(len(p.items))
            p.add("step").when = "last"
        self._looked_at = [
            array for array in (*model.params.values(), *model.state.values()) if array.dtype.kind == "f"
        ]
        p.watch(model)
        of_loss = [] if loss is None or lowering_of(loss) is None else [vars(loss)]  # Python calls others as they are
        self._found = _kernels.Snapshot([*of_loss, *p.watched])
        self._stacks = p.stacks
        self._does = (n, model.dtype, *((i.kind, i.function, *(b.shape for b in i.buffers)) for i in p.items))
        self.nbytes = _allocate(p.items)
        self.calls = _kernels.Program()
        self._record(p.items, marks)
        for name, array in self._known(model, named):
            self._names.setdefault(_kernels.address(array), name)

    def _write_loss(
        self, p: Writer, loss: Loss, targets: Targets, y: Buffer, named: dict[str, Any], check: bool
    ) -> Buffer:
        """The calls of the loss; the gradient of the output is returned."""
        result, right, stride = self.result[0, :2], self.right[:1], self.result.strides[0]
        extras = [self.result[0, i : i + 1] for i in range(2, self.result.shape[1])]
        p.moving = [(right, self.right.strides[0]), *((each, stride) for each in (result, *extras))]
        self._doutput, write = p.like(y), lowering_of(loss)
        if write is None:
            self._own_loss(p, loss, y, self._doutput, targets.labels)
        else:
            given = named["targets"] = p.empty((self.n, *targets.shape), targets.dtype)
            self._gathers.append(p.add("gather", given))
            weight = None
            if targets.weighted:
                weight = named["sample weights"] = p.empty((self.n,))
                self._gathers.append(p.add("gather", weight))
            arrays: Any = y, given, weight, self._doutput
            more: dict[str, Any] = {"extras": extras} if extras else {}
            write(p.call, cast(Any, p.empty), *arrays[:3], out=arrays[3], result=result, **more)
            if targets.labels:
                p.call(F.count_right, y, given, right)
        if check:
            p.add("finite", result)
        return self._doutput

    def _write_sums(self, p: Writer, sums: Grads) -> Grads:
        """The calls that add up gradients of the batches of a step; the sums are returned."""
        for name, grad in self.grads.items():
            p.add("copy", sums[name], grad).when = "first"
            p.call(F.add, sums[name], grad, out=sums[name]).when = "later"
        return {name: sums[name] for name in self.grads}

    def _own_loss(self, p: Writer, loss: Loss, y: Buffer, dy: Buffer, labels: bool) -> None:
        """A loss of the user's, which Python calls with the rows of targets as they are."""

        def call(y: Array, dy: Array, batch: int) -> None:
            _, targets, weight = self._fed
            rows: Any = slice(batch * self.n, (batch + 1) * self.n)
            rows = rows if self._order is None else self._order[rows]
            targets, weight = targets[rows], None if weight is None else weight[rows]
            value, dy[...] = loss_of(loss, y, targets, weight)
            of_loss = getattr(loss, "total_weight", None)
            total = len(y) if weight is None else weight.sum()
            total = total if of_loss is None else of_loss(targets, weight)
            self.result[batch] = value, total, *getattr(loss, "extra_values", ())
            self.right[batch] = count_right(y, targets) if labels else 0

        p.python(call, y, dy, batch=True, label="loss")

    def _record(self, items: list[Item], marks: list[int]) -> None:
        """Make the list that C runs; `phases` are its parts: the pass up to the loss, the backward pass, the checks of
        gradients, and the step."""
        self.phases: list[list[Segment]] = [[]]
        self.places: dict[int, int] = {}  # of gathers and copies among the items of C, by the identity of the item
        begin = 0
        for number, item in enumerate(items):
            while len(self.phases) <= len(marks) and number >= marks[len(self.phases) - 1]:
                begin = self._close(begin)
                self.phases.append([])
            if item.kind == "python":
                begin = self._close(begin)
                self.phases[-1].append(_called(item))
            else:
                self.places[id(item)] = len(self.calls)
                self._add(item)
        self._close(begin)
        self.native = all(isinstance(segment, tuple) for phase in self.phases for segment in phase)
        self._gather_places = [self.places[id(item)] for item in self._gathers]
        self._copy_place = None if self._copy is None else self.places[id(self._copy)]

    def _close(self, begin: int) -> int:
        """End a range of items that C runs."""
        if len(self.calls) > begin:
            self.phases[-1].append((begin, len(self.calls)))
        return len(self.calls)

    def _add(self, item: Item) -> None:
        arguments, options, moving = resolved(item.arguments), resolved(item.options), item.moving or (None, 0)
        begin = len(self.calls)
        if item.kind == "call":
            counts = 0
            if item.place is not None:
                options, counts = options | {"counter": item.place.first}, item.place.each
            assert item.function is not None
            item.made = self.calls.call(item.function, arguments, options, counts, *moving)
        elif item.kind == "finite" and item.moving:
            self.calls.finite(arguments[0], 1, moving[1])
        else:
            getattr(self.calls, item.kind)(*arguments)
        if item.when:
            self.calls.only(begin, item.when)

    def _known(self, model: Stack, named: Mapping[str, Any]) -> Iterator[tuple[str, Array]]:
        """Arrays that have a name."""
        self._gathered = {*named}
        for name, buffer in named.items():
            yield name, buffer.array
        if self._copy is not None:
            yield "output", self._target
        if self.training:
            yield "result", self.result
            yield "right", self.right
        yield from model.params.items()
        yield from model.state.items()
        for name, grad in model.gradients().items() if len(self.shares) else ():
            yield f"gradient of {name} of a batch", grad
        for name, grad in self.grads.items():
            yield f"gradient of {name}", grad

    # ---- Running -------------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """How long a batch takes, as last measured; 0 where it was not."""
        return _seconds.get(self._does, 0.0)

    @seconds.setter
    def seconds(self, value: float) -> None:
        if len(_seconds) >= MOST_SECONDS and self._does not in _seconds:
            _seconds.clear()
        _seconds[self._does] = value

    def holds(self) -> bool:
        """Whether options and arrays of the layers and the loss are those that it was made for."""
        if not self._found.holds():
            return False
        for stack, layers in self._stacks:  # noqa: SIM110 (in less time)
            if stack.layers != layers:
                return False
        return True

    @property
    def doutput(self) -> Array:
        """The gradient of the outputs."""
        return self._doutput.array

    def feed(self, x: Array, y: Any = None, weight: Array | None = None) -> None:
        """Take inputs, targets and weights from the rows of these arrays from now on."""
        self._fed = x, y, weight
        for place, source in zip(self._gather_places, self._fed, strict=False):
            self.calls.feed(place, source)

    def aim(self, output: Array) -> None:
        """Write outputs there from now on, in inference, or in training where they are wanted."""
        assert self._copy_place is not None
        self.calls.aim(self._copy_place, output)

    def once(self, x: Array, output: Array) -> int:
        """Write the outputs of a batch: the item that stopped it, or -1; 0 where Python has a part in it."""
        assert self._copy_place is not None
        return self.calls.once(self._gather_places[0], x, self._copy_place, output) if self.native else 0

    def rest(self) -> None:
        """Let go of the arrays that it was fed with and aimed at."""
        self._fed, self._order = (), None
        self.calls.rest()

    def batches(self, left: int, part: float = 1.0) -> int:
        """How many batches to run in one call, of those that are left; `part` of the usual time long."""
        if not self.native:
            return 1
        fit = int(part * SLICE / self.seconds) if self.seconds else 1
        return max(1, min(left, fit, MOST_BATCHES))

    @functools.cached_property
    def finite(self) -> _kernels.Program:
        """A program that stops where parameters or running statistics are not finite."""
        calls = _kernels.Program()
        for array in self._looked_at:
            calls.finite(array)
        return calls

    def run_phase(
        self, phase: int, order: Any, batch: int, counter: int, part: tuple[int, int, int] = (0, 1, 0)
    ) -> int:
        """Run one phase for one batch, `part` of a step: the item that stopped it, or -1."""
        self._order = order
        for segment in self.phases[phase]:
            if not isinstance(segment, tuple):
                segment(counter, batch)
                continue
            done, stopped, _ = self.calls.run(
                order, self.n, 1, counter, begin=segment[0], end=segment[1], first_batch=batch, part=part
            )
            if not done:
                return stopped
        return -1

    def keep(self) -> None:
        """Keep running statistics as they are for `restore`, as the first calls of a step do, too."""
        for array, kept in self._kept:
            kept[...] = array

    def restore(self) -> None:
        """Put the running statistics back that the last step began with."""
        for array, kept in self._kept:
            array[...] = kept

    def is_step(self, item: int) -> bool:
        """Whether an item is the optimizer's step."""
        return item == len(self.calls) - 1

    def stops_on_input(self, item: int) -> bool:
        """Whether an item stops where inputs of a layer are none that it takes."""
        return self.calls.list()[item][0] == "stop unless zero"

    def __str__(self) -> str:
        items = self.calls.list()
        known, numbers = dict(self._names), {}  # type: dict[int, str], dict[int, str]
        lines: list[tuple[str, str]] = []

        def named(arrays: tuple[Array | None, ...], anew: bool = False) -> str:
            names = []
            for array in arrays:
                if array is not None and array.nbytes:
                    at = _kernels.address(array)
                    if anew and known.get(at) in self._gathered:  # what follows in the same place
                        del known[at]
                    names.append(known.get(at) or numbers.setdefault(at, f"#{len(numbers) + 1}"))
            return ", ".join(names)

        for phase in self.phases:
            for segment in phase:
                if not isinstance(segment, tuple):
                    lines.append((segment.__name__, "called by Python"))
                    continue
                for name, reads, writes in items[slice(*segment)]:
                    of = named(reads)
                    arrow = f" -> {named(writes, name != 'gather')}" if writes else ""
                    lines.append((name, f"{of}{arrow}".strip()))
        wide = max(len(name) for name, _ in lines) + 2
        return "\n".join(f"{name:<{wide}}{arrays}".rstrip() for name, arrays in lines)

    __repr__ = __str__


def _called(item: Item) -> Callable[[int, int], None]:
    """What Python calls in a pass."""
    function, arguments, options = item.function, resolved(item.arguments), resolved(item.options)
    assert function is not None
    place = item.place

    def call(counter: int, batch: int) -> None:
        if place is not None:
            function(*arguments, (place.first + place.each * counter) % 2**64, **options)
        elif item.batch:
            function(*arguments, batch)
        else:
            function(*arguments, **options)

    call.__name__ = item.label
    return call


def _allocate(items: list[Item]) -> int:
    """Give all buffers memory: of two that are touched at the same time, each its own. Returns the bytes."""
    roots = {id(b.root): b.root for item in items for b in item.buffers}.values()
    # One that may be written over another shares its block, if that is not read any more.
    block: dict[int, Buffer] = {}
    spans: dict[int, tuple[int, int]] = {}
    for root in sorted(roots, key=lambda root: root.items[0]):
        first, last = root.items[0], root.items[-1]
        over = root.over
        if over is not None and over.nbytes == root.nbytes and over.items[-1] == first:
            home = block[id(over)]
            if spans[id(home)][1] == first:
                block[id(root)] = home
                spans[id(home)] = spans[id(home)][0], last
                continue
        block[id(root)] = root
        spans[id(root)] = first, last
    # Large ones first, each at the lowest place that is free while it is needed.
    placed: list[tuple[int, int, int, int]] = []  # start, end, first, last
    starts: dict[int, int] = {}
    homes = {id(home): home for home in block.values()}.values()
    for home in sorted(homes, key=lambda home: (-home.nbytes, home.items[0])):
        first, last = spans[id(home)]
        size = -(-home.nbytes // LINE) * LINE
        start = 0
        for other_start, other_end, other_first, other_last in sorted(placed):
            if other_last < first or last < other_first:
                continue
            if other_start - start >= size:
                break
            start = max(start, other_end)
        placed.append((start, start + size, first, last))
        starts[id(home)] = start
    total = max((end for _, end, _, _ in placed), default=0)
    memory = arena.empty((total,), np.uint8)
    for root in roots:
        start = starts[id(block[id(root)])]
        root.memory = memory[start : start + root.nbytes]
    return total


def fitting(epoch: Sequence[tuple[Program, int]], left: int, part: float) -> int:
    """How many epochs to run in one call, of those that are left, by the programs of an epoch and their batches; 0
    where Python has a part in them, or one takes longer than a call should: `part` of the usual time."""
    if not all(program.native and program.seconds for program, _ in epoch):
        return 0
    fit = int(part * SLICE / sum(program.seconds * count for program, count in epoch))
    room = max(1, MOST_ROWS // sum(program.n * count for program, count in epoch))
    return min(left, fit, room, MOST_BATCHES // max(count for _, count in epoch))


# ---- Use -------------------------------------------------------------------------------------------------------


class Compiled(Stack, loadable=False):
    """A stack that is compiled where it is used: see `fastopt.nn.Sequential`."""

    @spelled
    def compile(self, batch_size: int, *, loss: LossLike | None = None, y: Any = None) -> Program:
        """The program of passes over batches of a size, to be looked at: ``print(model.compile(32))``.

        Parameters
        ----------
        batch_size : int
        loss : callable or str, optional
            That of training, as for `fit`; the program is that of inference where absent.
        y : array_like (n, …), optional
            Targets, whose shape and type the program of training depends on; where absent, integer labels, or numbers
            like the outputs, as the loss takes them.

        Returns
        -------
        Program

        Raises
        ------
        TypeError, ValueError
            Where an argument breaks its rule.
        """
        n = checks.integer("batch_size", batch_size, 1)
        self.check_built()
        if loss is None:
            return Program(self, n)
        if y is None:
            takes_labels = loss is softmax_cross_entropy or getattr(named_loss(loss), "takes_labels", True)
            y = np.zeros(1 if takes_labels else (1, *self.shapes[-1]), np.int64 if takes_labels else self.dtype)
        y = np.asarray(y)
        _, y, made = samples(self, np.empty((len(y), *self.check_built()), np.uint8), y, loss)
        return Program(self, n, loss=made, targets=Targets(y, self.dtype, False))

    @contextlib.contextmanager
    def program(
        self,
        n: int,
        loss: Loss | None = None,
        targets: Targets | None = None,
        check: bool = True,
        outputs: bool = False,
        accumulate: bool = False,
    ) -> Iterator[Program]:
        """A program that nobody else uses meanwhile: one that was made before, if it still holds."""
        key: tuple[Any, ...] = (n,)
        if loss is not None and targets is not None:
            of_loss = id(loss) if lowering_of(loss) is None else (type(loss), repr(loss))
            key = n, of_loss, targets.key, check, outputs, accumulate
        how: dict[str, Any] = {"loss": loss, "targets": targets, "check": check, "outputs": outputs}
        found = self._take(key) or Program(self, n, **how, accumulate=accumulate)
        yield found
        self._put(key, found)

    def _take(self, key: tuple[Any, ...]) -> Program | None:
        """A program that was made before, if one is idle and still holds: nobody else uses it until it is put back."""
        idle = self.programs.get(key)
        while idle:
            try:
                found: Program = idle.pop()
            except IndexError:  # where another thread has taken the last one
                break
            if found.holds():
                return found
        return None

    def _put(self, key: tuple[Any, ...], program: Program) -> None:
        """Put a program back, without the arrays that it was fed."""
        program.rest()
        if program.nbytes > MOST_BYTES:
            return
        if len(self.programs) > MOST_PROGRAMS:
            self.programs.clear()
        idle = self.programs.setdefault(key, [])
        if len(idle) < MOST_IDLE:
            idle.append(program)

    @spelled
    def predict(self, x: Array, *, batch_size: int = 256, views: Views | None = None) -> Array:
        """The outputs in inference.

        Parameters
        ----------
        x : ndarray (n, …)
            Inputs; converted to the model's type.
        batch_size : int, default 256
        views : Views, optional
            Several views of images, such as `fastopt.data.augment.ten_crop`, whose outputs are averaged; those then
            have the model's shape, and `x` may be larger.

        Returns
        -------
        ndarray (n, …)
            A new array; for a classifier the logits, whose ``argmax(axis=1)`` is the class.

        Raises
        ------
        TypeError, ValueError
            Where inputs do not fit the model.
        """
        size = checks.integer("batch_size", batch_size, 1)
        if views is not None:
            return average(lambda view: self.predict(view, batch_size=size), x, views)
        return self._outputs(self.rows("x", x), None, size)

    def _outputs(self, x: Array, rows: Indices | None, size: int) -> Array:
        """The outputs in inference, of some rows."""
        n = len(x) if rows is None else len(rows)
        output = np.empty((n, *self.shapes[-1]), self.dtype)
        if n <= size:
            if n:
                self._infer(x, rows, output, n)
            return output
        with room_for_convolutions(self):
            whole = n - n % size
            first, last = (x[:whole], x[whole:]) if rows is None else (x, x)
            self._infer(first, None if rows is None else rows[:whole], output[:whole], size)
            if whole < n:
                self._infer(last, None if rows is None else rows[whole:], output[whole:], n - whole)
        return output

    def _infer(self, x: Array, rows: Indices | None, output: Array, size: int) -> None:
        """Write the outputs for batches of a size, of all rows or some."""
        program, batches = self._take((size,)) or Program(self, size), len(output) // size
        if batches == 1 and rows is None and program.once(x, output) < 0:
            self._put((size,), program)
            return
        program.feed(x)
        program.aim(output)
        done = 0
        while done < batches:
            part = program.batches(batches - done)
            if program.native:
                started = time.perf_counter()
                ran, stopped, _ = program.calls.run(rows, size, part, first_batch=done)
                program.seconds = (time.perf_counter() - started) / part
            else:
                ran, stopped = part, program.run_phase(0, rows, done, 0)
            if stopped >= 0:
                wrong = slice((done + ran) * size, (done + ran + 1) * size)
                self.forward(self.converted(x[wrong if rows is None else rows[wrong]]))  # says what is wrong
            done += part
        self._put((size,), program)

    @spelled
    def evaluate(
        self,
        x: Array,
        y: Array,
        sample_weight: Array | None = None,
        *,
        batch_size: int = 256,
        loss: LossLike = softmax_cross_entropy,
        metrics: MetricsLike | None = None,
    ) -> dict[str, float]:
        """Loss and accuracy in inference.

        Parameters
        ----------
        x : ndarray (n, …)
            Inputs; converted to the model's type.
        y : ndarray (n, …)
            Targets.
        sample_weight : ndarray (n,), optional
            The weight of each sample in the mean loss, ``Σ w·l / Σ w``, in [0, inf). The accuracy is without, as in
            training.
        batch_size : int, default 256
        loss : callable or str, default softmax_cross_entropy
            As for `fit`.
        metrics : str, callable, or sequence or dict of these, optional
            As for `fit`.

        Returns
        -------
        dict of float
            ``"loss"``; and ``"accuracy"``, the share of right labels, where `y` are integer labels; and the `metrics`.

        Raises
        ------
        TypeError, ValueError
            Where inputs, targets or weights do not fit the model or the loss, or a metric returns no number.
        """
        x, y, made = samples(self, x, y, loss)
        weight = weights(sample_weight, None, y, made, self.dtype)
        size = checks.integer("batch_size", batch_size, 1)
        return self.measure(x, y, weight, size=size, loss=made, metrics=checked_metrics(metrics, made, y))

    def measure(
        self,
        x: Array,
        y: Array,
        weight: Array | None,
        rows: Indices | None = None,
        *,
        loss: Loss,
        size: int = 256,
        metrics: Mapping[str, Metric],
        share: Callable[[Callable[[int, int], Array], int], Array] | None = None,
    ) -> dict[str, float]:
        """`evaluate`, of arguments that were checked; with `rows`, those of x are meant, and y and weights are of them
        alone. ``share(outputs, n)`` returns the outputs of all n, of which ``outputs(begin, end)`` computes some."""

        def outputs(begin: int, end: int) -> Array:
            if rows is None:
                return self._outputs(x[begin:end], None, size)
            return self._outputs(x, rows[begin:end], size)

        n = len(x) if rows is None else len(rows)
        output = outputs(0, n) if share is None else share(outputs, n)
        measured = {"loss": loss_of(loss, output, y, weight)[0]}
        if are_labels(y):
            measured["accuracy"] = accuracy(output, y)
        return measured | {name: value_of(name, metric, y, output) for name, metric in metrics.items()}
