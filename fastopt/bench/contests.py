"""What a contest is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fastopt.checks import Array

#: Contenders that are no rivals but measures: the same bytes moved, the same work under another circumstance.
STREAM, COPY = "streaming", "copy"
FLAT, NORMAL, ONE_THREAD, UNCLIPPED = "flat", "normal values", "one thread", "unclipped"
DIRECT, APART = "direct", "apart"
YARDSTICKS = (STREAM, COPY, FLAT, NORMAL, ONE_THREAD, UNCLIPPED, DIRECT, APART)
#: Those that compute other numbers than fastopt.
OF_OTHER_NUMBERS = (STREAM, COPY, NORMAL, UNCLIPPED)

Call = Callable[[], object]
Shape = tuple[int, ...]


@dataclass
class Contest:
    """One piece of work on one size."""

    name: str
    size: str
    #: The bytes that must cross memory: what is read and what is written, once each.
    floor: int
    #: What a layer reads, by name.
    arrays: dict[str, Array] = field(default_factory=dict)
    #: What a function is that does the work, by contender.
    contenders: dict[str, Call] = field(default_factory=dict)
    #: Where a contender leaves its result, if it does not return it.
    results: dict[str, Array | list[Array]] = field(default_factory=dict)
    #: What a step works on: every contender has its own copies of the parameters, and none may write to a gradient.
    params: list[Array] = field(default_factory=list)
    grads: list[Array] = field(default_factory=list)
    #: Makes the state arrays of each parameter, as they begin.
    states: Callable[[], list[list[Array]]] = list
    #: What takes over the gradients where a contender keeps its own, called when they have changed.
    refresh: list[Call] = field(default_factory=list)
    #: What is called before a contender's turn, off the clock.
    before: dict[str, Call] = field(default_factory=dict)
    #: The calls in a turn; where None, as many as make it long enough to be timed.
    calls: int | None = None
    #: Which axis of x holds the channels.
    axis: int = 1
    #: Where chance has a part in the result, what that is if nothing is dropped.
    undropped: Array | None = None

    @property
    def elements(self) -> int:
        """The number of parameters, or that of elements in a layer's first array."""
        return sum(param.size for param in self.params) or next(iter(self.arrays.values())).size


def together(calls: Sequence[Call]) -> Call:
    """One function that makes all these calls in turn."""
    if len(calls) == 1:
        return calls[0]

    def call() -> list[object]:
        return [each() for each in calls]

    return call
