"""How each kernel is called: one table, which the tests and the benchmarks walk.

A `Case` is a public function with arguments that fit, made for sizes of three kinds: *edges*, around the width of a
vector and of whatever a kernel takes at a time; *threads*, so large that dispatch.c gives work to eight of them; and
those of the *benchmarks*. Of each case the tests check the values (against `fastopt.reference`), the bits (on every
instruction set, for any number of threads), that nothing else is written, and that what does not fit is refused.

A new kernel is a new entry here. Only tests and benchmarks import this module.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastopt import functional as F  # noqa: N812
from fastopt import gradients, nn, reference
from fastopt._kernels import LIMITS
from fastopt.checks import Array
from fastopt.hyper import Choice, Flag, Limit, Number
from fastopt.kernel import kernel
from fastopt.nn.layers import Layer
from fastopt.optimizer import REQUIRED, Optimizer
from fastopt.optimizers import OPTIMIZERS

#: A function x(*shape) that makes arrays, the same ones in the same order each time that it is made.
Draw = Callable[..., Array]
Arguments = dict[str, Any]
Size = tuple[Any, ...]

PER_THREAD = LIMITS["WORTH_A_THREAD"]  #: bytes of all arrays for which a kernel gets one more thread
LARGE = 8 * PER_THREAD  #: work for eight threads


# ---- Arrays -------------------------------------------------------------------------------------------------


def normal(dtype: Any = np.float32) -> Draw:
    rng = np.random.default_rng(20)
    return lambda *shape: rng.standard_normal(shape).astype(dtype)


def whole(dtype: Any, factor: int = 1) -> Draw:
    """Whole numbers, so that no sum is rounded."""
    rng = np.random.default_rng(20)
    return lambda *shape: factor * rng.integers(-9, 10, shape).astype(dtype)


def hostile(dtype: Any, share: float = 0.1, *, corner: bool = False) -> Draw:
    """Normal numbers with NaN, infinities, denormal and huge numbers and zeros among them; where a sum over everything
    would leave nothing finite, in a `corner` alone: the first eight columns of the first row."""
    rng, info = np.random.default_rng(20), np.finfo(dtype)
    small = [0.0, info.tiny, info.tiny / 4]
    special = np.array([np.nan, np.inf, -np.inf, info.max, *small, *(-value for value in small)], dtype)

    def x(*shape: int) -> Array:
        values = rng.standard_normal(shape).astype(dtype)
        inside = values[(slice(1),) * (len(shape) > 1) + (..., slice(8))] if corner and shape else values
        where = rng.random(inside.shape) < share
        inside[where] = rng.choice(special, np.count_nonzero(where))
        return values

    return x


def map_arrays(function: Callable[[Array], Any], value: Any) -> Any:
    """A value, or what a cache or a dict holds, with each array replaced by the function's result."""
    if isinstance(value, np.ndarray):
        return function(value)
    if isinstance(value, dict):
        return {key: map_arrays(function, item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return type(value)._make(map_arrays(function, item) for item in value)
    return value


def arrays_in(value: Any) -> Iterator[Array]:
    """The arrays of arguments, those in caches included."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (dict, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from arrays_in(item)


def _widen(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _flat(value: Any) -> Iterator[Array]:
    """The results in what a function returns: of caches what the function computed."""
    if hasattr(value, "computed"):
        yield from value.computed
    elif isinstance(value, tuple):
        for item in value:
            yield from _flat(item)
    elif value is not None:
        yield value if isinstance(value, np.ndarray) else np.asarray(value)


# ---- Cases --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """How a function is called."""

    #: That of the function, with a word for a further way to call it.
    name: str
    function: Callable[..., Any]
    #: Makes the arguments by name, given a function x(*shape) for arrays, and a size.
    make: Callable[..., Arguments]
    #: Takes the arguments, in float64, and returns results to compare with; None in place of those that it lacks.
    expected: Callable[..., Any] | None
    #: The kernels that it runs.
    kernels: tuple[str, ...]
    #: The first three are the cross-section; on the second, refusals are tested.
    edges: Sequence[Size]
    threads: Sequence[Size]
    bench: Sequence[Size] = ()
    #: Arguments beside those that `make` makes, or in their place.
    options: Sequence[Arguments] = ({},)
    #: The arguments that say where to write results, in the order of these; "" for a result without one.
    outputs: tuple[str, ...] = ("out",)
    #: The arguments that are written to and not returned.
    updates: tuple[str, ...] = ()
    #: The argument that the first output may be.
    in_place: str = ""
    #: The arguments whose shape the others follow, beside the first.
    free: tuple[str, ...] = ()
    #: The arguments of which only the number of elements counts.
    any_shape: tuple[str, ...] = ()
    #: Whether the reference, computed in the real type, has the same bits.
    exact: bool = False
    #: If not 0, values are compared for multiples of this number, with no difference allowed.
    whole: int = 0
    #: How large the numbers are that each result is the sum of; where absent, as large as the largest result.
    magnitudes: Callable[..., tuple[float, ...]] | None = None
    #: What the rounding errors are multiplied by.
    factor: float = 1.0

    def arguments(self, x: Draw, size: Size, options: Mapping[str, Any] | None = None) -> Arguments:
        return self.make(x, *size) | dict(options or {})

    def values(self, dtype: Any, size: Size, options: Mapping[str, Any]) -> Arguments:
        """Arguments on which results are compared with those of the reference."""
        return self.arguments(whole(dtype, self.whole) if self.whole else normal(dtype), size, options)

    def run(self, arguments: Arguments) -> list[Array]:
        """All results: what is returned, and then what is updated."""
        returned = self.function(**arguments)
        return [*_flat(returned), *self._updated(arguments)]

    def _updated(self, arguments: Arguments) -> list[Array]:
        return [arguments[name] for name in self.updates if arguments.get(name) is not None]

    def places(self, results: Sequence[Array]) -> Arguments:
        """New arrays for the outputs, given results of the same size."""
        return {name: np.full_like(result, 7) for name, result in zip(self.outputs, results, strict=False) if name}

    def reference(self, arguments: Arguments) -> list[Array | None]:
        """What `run` should return: empty where nothing is known."""
        if self.expected is None:
            return []
        given = arguments if self.exact else map_arrays(_widen, arguments)
        with np.errstate(all="ignore"):
            expected = self.expected(**given)
        expected = expected if isinstance(expected, tuple) else (expected,)
        return [None if value is None else np.asarray(value) for value in expected]

    def __str__(self) -> str:
        return self.name


#: The layer kernels by the names of their cases.
LAYERS: dict[str, Case] = {}


def _add(name: str, make: Callable[..., Arguments], expected: Callable[..., Any] | None, **more: Any) -> None:
    word = name.partition(" ")[0]
    given: dict[str, Any] = {"kernels": (word,)} | ({} if "function" in more else {"function": getattr(F, word)}) | more
    LAYERS[name] = Case(name=name, make=make, expected=expected, **given)


# fmt: off
# ---- Layer kernels: element by element ----------------------------------------------------------------------

_FLAT = [(0,), (33,), (1000,), (1,), (7,), (8,), (9,), (31,), (32,), (65,), (127,), (129,), (1025,), (10_007,)]
_FLAT_THREADS = [(LARGE // 8 + 3,), (LARGE // 8 + 129,)]
_FLAT_BENCH = [(32_768,), (1_048_576,), (8_388_608,)]
_ALPHAS: list[Arguments] = [{"kind": "leaky_relu", "alpha": 0.3}, {"kind": "elu", "alpha": 0.7}]
_KINDS: list[Arguments] = [{"kind": kind} for kind in F.ACTIVATIONS]
_elementwise = {"edges": _FLAT, "threads": _FLAT_THREADS, "bench": _FLAT_BENCH}

_add("relu_forward", lambda x, n: {"x": x(n)}, reference.relu_forward, in_place="x", exact=True, **_elementwise)
_add("relu_backward", lambda x, n: {"dy": x(n), "y": x(n)}, reference.relu_backward,
     in_place="dy", exact=True, **_elementwise)
_add("activation_forward", lambda x, n: {"x": x(n), "kind": "gelu_tanh"}, reference.activation_forward,
     in_place="x", options=[*_KINDS, *_ALPHAS, {"kind": "leaky_relu", "alpha": 0}],
     **_elementwise | {"bench": _FLAT_BENCH[:2]})
_add("activation_backward", lambda x, n: {"dy": x(n), "seen": x(n), "kind": "gelu_tanh"}, reference.activation_backward,
     in_place="dy", options=[*_KINDS, *_ALPHAS], **_elementwise | {"bench": _FLAT_BENCH[:2]})

_add("add", lambda x, n: {"a": x(n), "b": x(n)}, lambda a, b, relu=False: np.maximum(a + b, 0) if relu else a + b,
     in_place="a", exact=True, options=[{}, {"relu": True}], **_elementwise)
_add("scale", lambda x, n: {"x": x(n), "factor": 0.3}, lambda x, factor: x * x.dtype.type(factor),
     in_place="x", exact=True, **_elementwise)


# ---- Dropout ------------------------------------------------------------------------------------------------


def _bits(n: int) -> Array:
    return np.packbits(np.arange(n) % 3 > 0, bitorder="little")


def _share(p: float, p_is: str) -> float:
    return p if p_is == "drop" else 1 - p


def _dropout(x: Any, p: float, *, p_is: str = "drop", inverted: bool = True, **key: int) -> tuple[Array, Array]:
    y, kept = reference.dropout(x, _share(p, p_is), **key)
    return y if inverted else np.where(kept, x, 0), np.packbits(kept, bitorder="little")


def _masked(by: Any, x: Any, mask: Any, p: float, *, p_is: str = "drop", inverted: bool = True) -> Array:
    kept = np.unpackbits(mask, count=x.size, bitorder="little").view(bool) if mask.dtype == np.uint8 else mask
    return by(x, kept, _share(p, p_is)) if inverted else np.where(kept, x, 0)


_HOW: list[Arguments] = [{}, {"inverted": False}, {"p": 0.75, "p_is": "keep"}, {"p": 0.0}]
_drops = {"options": _HOW, "edges": [*_FLAT, (63,), (64,), (95,), (97,), (128,), (1023,), (1024,), (2049,)],
          "threads": [(LARGE // 8 + more,) for more in (0, 1, 127, 999)], "bench": _FLAT_BENCH}

_add("dropout", lambda x, n: {"x": x(n), "p": 0.5, "seed": 2**64 - n - 1, "counter": n}, _dropout,
     kernels=("dropout_forward",), outputs=("out", "mask"), in_place="x", **_drops)
_add("dropout first", lambda x, n: {"x": x(n), "p": 0.5, "seed": n, "counter": 2**64 - 1, "first": 2**40 + n}, _dropout,
     kernels=("dropout_forward",), outputs=("out", "mask"), in_place="x", **_drops | {"bench": ()})
_add("dropout_apply", lambda x, n: {"x": x(n), "mask": np.arange(n) % 3 > 0, "p": 0.3},
     functools.partial(_masked, reference.dropout_apply), in_place="x", **_drops | {"bench": ()})
_add("dropout_backward", lambda x, n: {"dy": x(n), "mask": _bits(n), "p": 0.5},
     lambda dy, **how: _masked(reference.dropout_backward, dy, **how),
     kernels=("dropout_apply",), in_place="dy", **_drops)


# ---- Rows ---------------------------------------------------------------------------------------------------
#
# Shapes that a kernel's units of work cut in other ways: few and many rows, narrow and wide, and ends in odd places.

_ROWS = [(0, 33), (3, 33), (65, 100), (1, 0), (1, 1), (63, 2), (7, 31), (64, 32), (130, 45), (3, 1061), (1000, 16)]
_ROWS_THREADS = [(LARGE // 8 + 9, 1), (6007, 45), (501, 517), (7, 37_013), (2, 131_075)]
_DENSE = [(64, 512), (1024, 1024)]
_rows = {"edges": _ROWS, "threads": _ROWS_THREADS, "bench": _DENSE}
_sums = {"magnitudes": lambda dy, **_: (1.0, math.sqrt(len(dy)))}

_add("bias_forward", lambda x, n, d: {"x": x(n, d), "bias": x(d)}, lambda x, bias: x + bias,
     in_place="x", exact=True, **_rows)
_add("bias_relu_forward", lambda x, n, d: {"x": x(n, d), "bias": x(d)}, reference.bias_relu_forward,
     in_place="x", exact=True, **_rows)
_add("bias_backward", lambda x, n, d: {"dy": x(n, d)}, lambda dy: dy.sum(axis=0),
     magnitudes=lambda dy: (math.sqrt(len(dy)),), **_rows)
_add("bias_relu_backward", lambda x, n, d: {"dy": x(n, d), "y": x(n, d)}, reference.bias_relu_backward,
     outputs=("out", "dbias"), in_place="dy", **_sums, **_rows)
_add("bias_relu_dropout_forward",
     lambda x, n, d: {"x": x(n, d), "bias": x(d), "p": 0.5, "seed": 2**64 - 1 - n, "counter": d},
     lambda x, bias, p, p_is="drop", **key: reference.bias_relu_dropout_forward(x, bias, _share(p, p_is), **key),
     in_place="x", options=[{}, {"p": 0.75, "p_is": "keep"}], **_rows | {"edges": [*_ROWS, (9, 2500), (130, 512)]})
_add("bias_relu_dropout_forward first",
     lambda x, n, d: {"x": x(n, d), "bias": x(d), "p": 0.5, "seed": n, "counter": d, "first": 128 * n + 77},
     reference.bias_relu_dropout_forward, in_place="x",
     **_rows | {"edges": [*_ROWS, (9, 2500), (130, 512)], "bench": ()})
_add("bias_relu_dropout_backward", lambda x, n, d: {"dy": x(n, d), "y": x(n, d), "p": 0.3},
     lambda dy, y, p, p_is="drop": reference.bias_relu_dropout_backward(dy, y, _share(p, p_is)),
     kernels=("bias_relu_backward",), outputs=("out", "dbias"), in_place="dy", **_sums,
     options=[{}, {"p": 0.75, "p_is": "keep"}], **_rows | {"bench": ()})

_add("prelu_forward", lambda x, n, d: {"x": x(n, d), "slope": x(d)}, reference.prelu_forward,
     in_place="x", exact=True, **_rows)
_add("prelu_backward", lambda x, n, d: {"dy": x(n, d), "x": x(n, d), "slope": x(d)}, reference.prelu_backward,
     outputs=("out", "terms"), in_place="dy", exact=True, **_rows)

_add("scale_channels", lambda x, n, *shape: {"x": x(n, *shape), "factor": x(n, shape[-1])},
     lambda x, factor: x * factor.reshape(len(x), *(1,) * (x.ndim - 2), x.shape[-1]), in_place="x", exact=True,
     edges=[(0, 3, 4), (2, 5, 33), (3, 4, 2, 16), (3, 7), (1, 1, 1), (2, 0, 5), (2, 5, 0), (4, 3, 3, 70)],
     threads=[(17, 33, 31, 45), (6007, 45), (2, 45_001, 3)], bench=[(64, 28, 28, 64)])
_add("swap_axes", lambda x, *shape: {"x": x(*shape)}, lambda x: x.swapaxes(0, 1), exact=True,
     edges=[(0, 3, 4), (5, 7, 33), (70, 3, 5), (3, 130, 1), (130, 3, 1), (1, 1, 1), (65, 64, 2), (3, 4, 0),
            (16, 200, 8)],
     threads=[(1031, 17, 16), (17, 1031, 16), (709, 517, 1), (2, 3, 45_001)], bench=[(50_176, 4, 16)])


def _softmax(x: Any, log_sum: Any) -> Any:
    if not x.size:
        return None
    sums = x.max(axis=-1) + np.log(np.exp(x - x.max(axis=-1, keepdims=True)).sum(axis=-1))
    return reference.softmax_forward(x), None if log_sum is None else sums


_LOSS = [(0, 4), (3, 33), (65, 10), (1, 1), (5, 1), (1, 2), (500, 17), (2, 4096), (3, 4501)]
_softmax_sizes = {"edges": [*_LOSS, (4, 0)], "threads": _ROWS_THREADS, "bench": [(64, 10), (128, 1000)]}
_add("softmax_forward", lambda x, n, d: {"x": x(n, d), "log_sum": np.zeros(n)}, _softmax,
     in_place="x", updates=("log_sum",), options=[{}, {"log_sum": None}], **_softmax_sizes)
_add("softmax_backward", lambda x, n, d: {"dy": x(n, d), "y": x(n, d)}, reference.softmax_backward, in_place="dy",
     magnitudes=lambda dy, y: (max(1.0, abs(y).max(initial=0)) * math.sqrt(dy.shape[1]),), **_softmax_sizes)
_add("softmax_cross_entropy",
     lambda x, n, c: {"logits": x(n, c), "labels": np.arange(n) ** 2 % c, "losses": x(n)},
     lambda logits, labels, losses: (*reference.softmax_cross_entropy(logits, labels), None) if len(logits) else None,
     kernels=("softmax_cross_entropy", "mean_loss"), outputs=("", "out"), updates=("losses",), in_place="logits",
     options=[{}, {"losses": None}],
     magnitudes=lambda logits, **_: (1.0, 1 / max(len(logits), 1)), **_softmax_sizes | {"edges": _LOSS})


def _of_loss(function: Callable[..., Any]) -> Callable[..., Any]:
    """A reference that takes weights, and returns the gradient of the mean."""

    def expected(x: Any, targets: Any, *kind: Any, weight: Any = None, losses: Any = None, **how: Any) -> Any:
        if not len(x):
            return None
        own = {key: 1.0 if value is None else value for key, value in how.items()}
        each, gradient, *mass = function(x, targets, *kind, **own)
        factors = (1.0 if weight is None else weight, *mass)
        return each, reference.mean_loss_backward(gradient, *factors), *mass * (how.get("class_weight") is not None)

    return expected


def _of_rows_loss(x: Draw, *shape: int) -> Arguments:
    return {"weight": abs(x(shape[0])), "losses": x(shape[0])}


_losses = {"outputs": ("", "out"), "updates": ("losses",), "in_place": "x", "edges": _LOSS, "threads": _ROWS_THREADS,
           "magnitudes": lambda x, **_: (1.0, 1 / max(len(x), 1))}
_unweighted: Arguments = {"weight": None, "losses": None}


def _of_labels(x: Draw, n: int, c: int) -> Arguments:
    return {"x": x(n, c), "targets": np.arange(n) ** 2 % c}


def _of_targets(x: Draw, n: int, c: int) -> Arguments:
    logits, targets = x(n, c), abs(x(n, c))
    sums = np.cumsum(targets, axis=1, dtype=np.float64)[:, -1:]  # in an order that no version of NumPy changes
    return {"x": logits, "targets": (targets / sums).astype(targets.dtype)}


for _word, _targets in (("", _of_targets), (" of labels", _of_labels)):
    _add(f"softmax_loss{_word}",
         lambda x, n, c, make=_targets: make(x, n, c) | _of_rows_loss(x, n) | {"class_weight": abs(x(c))},
         _of_loss(reference.softmax_loss), options=[{"label_smoothing": 0.1}, {}, _unweighted],
         bench=() if _word else _softmax_sizes["bench"], **_losses | {"outputs": ("", "out", "mass")})
    _add(f"softmax_loss{_word} with equal classes", lambda x, n, c, make=_targets: make(x, n, c) | _of_rows_loss(x, n),
         _of_loss(reference.softmax_loss), options=[{}, {"label_smoothing": 0.1}, _unweighted | {"label_smoothing": 1}],
         kernels=("softmax_loss",), **_losses)
_add("softmax_loss of labels alone", _of_labels, _of_loss(reference.softmax_loss),
     kernels=("softmax_cross_entropy",), **_losses | {"updates": ()})
_add("hinge_loss", lambda x, n, c: {"x": x(n, c), "targets": np.arange(n) ** 2 % c, **_of_rows_loss(x, n)},
     _of_loss(lambda x, targets, **how: reference.hinge_loss(x, targets, **how)),
     options=[{}, _unweighted, {"margin": 0.3}], bench=_softmax_sizes["bench"], **_losses)
_add("element_loss",
     lambda x, *shape: {"x": x(*shape), "targets": x(*shape), "kind": "huber", "delta": 0.3,
                        **_of_rows_loss(x, *shape)},
     _of_loss(lambda x, targets, kind, **how: reference.element_loss(x, targets, kind, **how)),
     options=[{}, _unweighted, *({"kind": kind} for kind in F.ELEMENT_LOSSES)], bench=_DENSE,
     **_losses | {"edges": [(0, 4), (3, 33), (65, 10), *_LOSS[3:], (2500,), (1,), (3, 2, 5), (3, 0), (2, 1023),
                            (2, 1024), (2, 1025)]})
_add("mean_loss", lambda x, n: {"losses": x(n), "weight": abs(x(n)), "mass": abs(x(n))},
     lambda losses, weight, mass: reference.mean_loss(
         losses, *(1.0 if factor is None else factor for factor in (weight, mass))),
     outputs=("result",), options=[{}, {"weight": None}, {"mass": None}, {"weight": None, "mass": None}],
     edges=[(0,), (35,), *_FLAT[2:]], threads=_FLAT_THREADS, bench=[(64,), (4096,)])
_add("count_right", lambda x, n, c: {"scores": x(n, c), "labels": np.arange(n) ** 2 % max(c, 1)},
     lambda scores, labels: np.array([(scores.argmax(axis=1) == labels).sum()]) if scores.size else np.zeros(1, int),
     edges=[*_LOSS, (4, 0)], threads=_ROWS_THREADS, bench=_softmax_sizes["bench"])
_add("embedding_forward",
     lambda x, n, count, d: {"x": (np.arange(n) ** 2 % count).astype(x(0).dtype), "weight": x(count, d)},
     lambda x, weight: (reference.embedding_forward(x, weight), x.astype(np.int64)),
     kernels=("wrong_entries", "embedding_forward"), outputs=("out", "entry"), free=("weight",),
     edges=[(0, 17, 3), (70, 17, 33), (44, 9, 16), (70, 17, 1), (44, 9, 7), (13, 40, 100), (5, 3, 0)],
     threads=[(LARGE // 8, 17, 1), (6007, 17, 45), (501, 17, 517)], bench=[(2048, 1000, 64)])
_add("embedding_backward",
     lambda x, n, count, d: {"dy": x(n, d), "entries": np.arange(n) ** 2 % count, "count": count},
     reference.embedding_backward,
     edges=[(0, 17, 3), (70, 17, 33), (44, 9, 16), (70, 17, 1), (44, 9, 7), (13, 40, 100)],
     threads=[(LARGE // 8, 17, 1), (6007, 17, 45), (501, 17, 517)], bench=[(2048, 1000, 64)])


# ---- Dense layers -------------------------------------------------------------------------------------------

_MATRICES = [(0, 4, 40), (26, 70, 33), (5, 600, 64), (1, 1, 1), (1, 3, 10), (7, 3, 10), (64, 33, 32), (13, 7, 45),
             (25, 40, 96), (12, 5, 513), (3, 1100, 70), (530, 4, 33), (29, 5, 600), (5, 0, 40), (5, 4, 0),
             (1, 70, 300), (1, 600, 450)]
_dense = {"whole": 1, "edges": _MATRICES, "threads": [(1031, 70, 517), (90, 6007, 45)],
          "bench": [(64, 784, 256), (64, 256, 128), (128, 784, 512), (32, 64, 100), (64, 64, 32), (200, 100, 100),
                    (512, 512, 512)]}


def _dense_forward(x: Any, weight: Any, bias: Any, *, relu: bool = False) -> Any:
    y = x @ weight + (0 if bias is None else bias)
    return np.maximum(y, 0) if relu else y


_add("dense_forward", lambda x, n, d, k: {"x": x(n, d), "weight": x(d, k), "bias": x(k)}, _dense_forward,
     options=[{}, {"relu": True}, {"bias": None}], free=("weight",), **_dense)
_add("dense_input_grad", lambda x, n, d, k: {"dy": x(n, k), "weight": x(d, k)}, lambda dy, weight: dy @ weight.T,
     free=("weight",), **_dense)
_add("matmul", lambda x, n, d, k: {"a": x(n, d), "b": x(d, k)}, lambda a, b: a @ b,
     kernels=("dense_forward",), free=("b",), **_dense | {"bench": ()})
_add("matmul transpose_a", lambda x, n, d, k: {"a": x(d, n), "b": x(d, k), "transpose_a": True},
     lambda a, b, transpose_a: a.T @ b, kernels=("dense_weight_grad",), free=("b",), **_dense | {"bench": ()})
_add("matmul transpose_b", lambda x, n, d, k: {"a": x(n, d), "b": x(k, d), "transpose_b": True},
     lambda a, b, transpose_b: a @ b.T, kernels=("dense_input_grad",), free=("b",), **_dense | {"bench": ()})
_add("matmul of both transposed",
     lambda x, n, d, k: {"a": x(d, n), "b": x(k, d), "transpose_a": True, "transpose_b": True},
     lambda a, b, **_: a.T @ b.T, kernels=("transposed_matmul",), free=("b",), **_dense | {"bench": ()})
_add("dense_weight_grad", lambda x, n, d, k: {"x": x(n, d), "dy": x(n, k), "dbias": x(k)},
     lambda x, dy, dbias: (x.T @ dy, None if dbias is None else dy.sum(axis=0)),
     updates=("dbias",), options=[{}, {"dbias": None}], free=("dy",), **_dense)


# ---- Norms --------------------------------------------------------------------------------------------------

_BATCHES: list[Size] = [
    ((0, 3), 1), ((5, 3, 33), 1), ((70, 33), -1), ((3, 0), 1), ((2, 3, 0), 1),
    *(((n, c), 1) for n in (2, 37) for c in (1, 2, 3, 16, 20, 31, 32, 33, 40, 100)), ((500, 10), 1), ((500, 64), 1),
    *(((3, c, *inner), 1) for c in (1, 3, 33) for inner in ((2,), (31,), (32,), (7, 7), (32, 32), (5, 1, 13), (1, 1))),
    ((70, 1061), 1), ((3, 2100), 1), ((1, 4, 33), 1), ((200, 2, 3), 1), ((2, 2, 9001), 1), ((9001, 3), 1),
    ((20_000, 1), 1), *(((9, c), 1) for c in (128, 256, 1024, 1056, 1057, 1088)), ((40, 37, 9, 11), 1),
    ((2, 3, 64, 64), 1), ((2, 1, 4097), 1), ((6, 40), -1), ((5, 7, 9, 3), -1), ((5, 7, 9, 40), 3),
    ((2, 3, 4, 5, 32), -1),
]
_BATCHES_THREADS = [((6001, 45), 1), ((253, 1061), 1), ((130_001, 2), -1), ((17, 47, 331), 1), ((2, 3, 45_001), 1),
                    ((3, 1049, 9, 9), 1), ((17, 47, 331), -1), ((70_001, 9), -1)]
_BATCHES_BENCH = [
    *((shape, 1) for shape in (
        (64, 512), (256, 1024), (4096, 1024), (128, 16, 32, 32), (64, 64, 28, 28), (32, 256, 14, 14))),
    *((shape, -1) for shape in ((128, 32, 32, 16), (64, 28, 28, 64), (32, 14, 14, 256))),
]
_EPILOGUES: list[Arguments] = [{}, {"relu": True}, {"relu": True, "dropout": 0.4, "seed": 7, "counter": 9}]


def _batch(x: Draw, shape: tuple[int, ...], axis: int) -> Arguments:
    c = shape[axis]
    vectors = {"scale": x(c), "shift": x(c), "running_mean": x(c), "running_var": abs(x(c))}
    return {"x": x(*shape), **vectors, "axis": axis}


def _batch_norm(
    x: Any, scale: Any, shift: Any, running_mean: Any, running_var: Any, *, axis: int, relu: bool = False,
    dropout: float = 0.0, seed: int = 0, counter: int = 0, training: bool = True, max_pool: Any = None,
) -> tuple[Any, ...] | None:
    if not x.size:
        return None
    learnt = 1.0 if scale is None else scale, 0.0 if shift is None else shift
    y, cache, *running = reference.batch_norm_forward(
        x, *learnt, running_mean, running_var, axis=axis, relu=relu, training=training
    )
    if dropout and training:
        y, _ = reference.dropout(y, dropout, seed=seed, counter=counter)
    if max_pool:
        y, _ = reference.max_pool_forward(y, max_pool, max_pool)
    if not training:
        return (y,)
    mean = x.mean(axis=tuple(i for i in range(x.ndim) if i != axis % x.ndim))
    return y, mean, cache[1].ravel(), *[None] * (max_pool is not None), *running


def _batch_backward(x: Draw, shape: tuple[int, ...], axis: int, **how: Any) -> Arguments:
    arguments = _batch(x, shape, axis)
    y, cache = F.batch_norm_forward(**arguments, **how)
    return {"dy": x(*y.shape), "cache": cache}


def _batch_norm_backward(dy: Any, cache: Any) -> tuple[Array, Array, Array] | None:
    """Without an epilogue: rounding decides where a ReLU lets gradients pass."""
    if cache.relu or not dy.size:
        return None
    by_reference = reference.batch_norm_forward(cache.x, cache.scale, cache.shift, axis=cache.axis)[1]
    return reference.batch_norm_backward(dy, by_reference)


def _norm_magnitudes(dy: Any, cache: Any, inverse: str = "inv_std", **_: Any) -> tuple[float, float, float]:
    """dx = a (dy − …) may cancel to next to nothing."""
    scale = np.ones(1) if cache.scale is None else cache.scale
    a = abs(scale).max(initial=0) * abs(getattr(cache, inverse)).max(initial=0)
    return a * abs(dy).max(initial=0), math.sqrt(dy.size), math.sqrt(dy.size)


_batch_sizes = {"edges": _BATCHES, "threads": _BATCHES_THREADS}
_learnt_grads = {"outputs": ("out", "dscale", "dshift"), "magnitudes": _norm_magnitudes}
_add("batch_norm_forward", _batch, _batch_norm, kernels=("batch_norm_forward", "batch_norm_sums"),
     outputs=("out", "mean", "inv_std"), updates=("running_mean", "running_var"),
     options=[*_EPILOGUES, {"scale": None, "shift": None}], bench=_BATCHES_BENCH, **_batch_sizes)
_add("batch_norm_forward inference", lambda x, *size: _batch(x, *size) | {"training": False}, _batch_norm,
     kernels=("batch_norm_inference",), options=[*_EPILOGUES, {"scale": None}], **_batch_sizes)
for _word, _options in zip(("", " relu", " dropout"), _EPILOGUES, strict=True):
    _add(f"batch_norm_backward{_word}", functools.partial(_batch_backward, **_options), _batch_norm_backward,
         kernels=("batch_norm_backward", "batch_norm_grad_sums"), **_learnt_grads, **_batch_sizes,
         bench=() if _word else _BATCHES_BENCH)

_add("batch_norm_inference_backward",
     lambda x, *shape: {"dy": x(*shape), **{key: value for key, value in _batch(x, shape, -1).items()
                                           if key not in ("shift", "axis")}},
     lambda dy, x, scale, **how: reference.batch_norm_inference_backward(
         dy, x, 1.0 if scale is None else scale, **how),
     options=[{}, {"scale": None}, {"eps": 0.1}], outputs=("out", "dscale", "dshift"),
     magnitudes=lambda dy, running_var, **how: (
         1 / math.sqrt(running_var.min(initial=1) + 1e-5), math.sqrt(dy.size / running_var.min(initial=1)),
         math.sqrt(dy.size)),
     edges=[(0, 33), (5, 33), (2, 3, 65), (1, 1), (130, 64), (37, 2, 3), (500, 10), (3, 0), (9, 300)],
     threads=[(6001, 45), (253, 1061), (130_001, 2), (2, 131_075)], bench=[(64, 28, 28, 64)])

_POOLED_BATCHES: list[Size] = [
    ((0, 4, 4, 3), (2, 2)), ((2, 5, 7, 33), (2, 2)), ((2, 5, 7, 3), (2, 2)), ((1, 9, 4, 45), (3, 2)),
    ((3, 8, 8, 16), (2, 2)), ((2, 6, 6, 1), (6, 6)), ((4, 7, 5, 40), (1, 3)), ((2, 5, 5, 300), (2, 2)),
    ((3, 2, 3, 32), (1, 1)), ((1, 4, 4, 300), (2, 2)),
]
_IMAGES = [(64, 28, 28, 16), (64, 14, 14, 32)]
_windows = {"edges": _POOLED_BATCHES, "threads": [((9, 33, 31, 30), (3, 2)), ((60, 33, 61, 30), (2, 2))],
            "bench": [(shape, (2, 2)) for shape in _IMAGES]}
_add("batch_norm_forward max_pool", lambda x, shape, size: _batch(x, shape, -1) | {"max_pool": size}, _batch_norm,
     kernels=("batch_norm_forward", "batch_norm_sums", "batch_norm_max_pool_forward"),
     outputs=("out", "mean", "inv_std", "chosen"),
     updates=("running_mean", "running_var"), options=[{"relu": True}, {}], **_windows)
_add("batch_norm_forward max_pool inference",
     lambda x, shape, size: _batch(x, shape, -1) | {"max_pool": size, "training": False}, _batch_norm,
     kernels=("batch_norm_max_pool_forward",), options=[{"relu": True}, {}], **_windows | {"bench": ()})
_add("batch_norm_backward max_pool",
     lambda x, shape, size: _batch_backward(x, shape, -1, relu=True, max_pool=size), None,
     kernels=("batch_norm_backward", "batch_norm_grad_sums", "batch_norm_max_pool_backward"),
     outputs=("out", "dscale", "dshift"), **_windows)

_GROUPS: list[Size] = [
    ((0, 3, 4), 2), ((4, 5, 6, 8), 2), ((70, 33), 3), ((2, 0, 4), 1), ((1, 1), 1), ((9, 45), 1), ((130, 33), 1),
    ((7, 6), 3), ((7, 32), 4), ((70, 3), 3), ((5, 31, 3), 1), ((3, 7, 29, 4), 2), ((4, 5, 6, 8), 1),
    ((2, 9, 700), 7), ((2, 3, 3, 700), 350), ((2, 40, 41, 3), 1), ((70, 2, 2, 4), 2),
]
_GROUPS_THREADS = [((6007, 45), 1), ((501, 517), 1), ((501, 517), 11), ((17, 47, 331), 331), ((3, 1049, 81), 3)]
_GROUPS_BENCH = [*((shape, 1) for shape in _DENSE), *((shape, 4) for shape, _ in _BATCHES_BENCH[-3:])]


def _affine(x: Draw, *shape: int) -> Arguments:
    return {"scale": x(*shape), "shift": x(*shape)}


def _of_groups(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A reference that also returns the statistics."""

    def expected(x: Any, scale: Any, shift: Any, **how: Any) -> Any:
        if not x.size:
            return None
        y, (x_hat, inv_std, _) = forward(x, 1.0 if scale is None else scale, 0.0 if shift is None else shift, **how)
        mean = (x.reshape(x_hat.shape) - x_hat / inv_std).mean(axis=(1, 3))
        return y, mean.ravel(), inv_std.ravel()

    return expected


_statistics = {"outputs": ("out", "mean", "inv_std"), "options": [{}, {"scale": None, "shift": None}, {"eps": 1e-3}],
               "kernels": ("group_norm_forward",)}
_add("group_norm_forward", lambda x, shape, groups: {"x": x(*shape), "groups": groups, **_affine(x, shape[-1])},
     _of_groups(lambda x, scale, shift, groups, **how: reference.group_norm_forward(x, groups, scale, shift, **how)),
     edges=_GROUPS, threads=_GROUPS_THREADS, bench=_GROUPS_BENCH, **_statistics)
_add("layer_norm_forward",
     lambda x, shape, axes: {"x": x(*shape), "axes": axes, **_affine(x, *shape[len(shape) - axes :])},
     _of_groups(reference.layer_norm_forward), threads=[((501, 517), 1), ((17, 47, 331), 2)],
     edges=[((0, 33), 1), ((3, 33), 1), ((3, 4, 5, 6), 3), ((1, 1), 1), ((5, 7), 1), ((130, 33), 1), ((3, 5000), 1),
            ((2, 30_001), 1), ((3, 4, 5, 6), 1), ((4, 0), 1)], **_statistics)
_add("instance_norm_forward", lambda x, *shape: {"x": x(*shape), **_affine(x, shape[-1])},
     _of_groups(reference.instance_norm_forward), threads=[(17, 47, 331)],
     edges=[(0, 3, 4), (2, 9, 33), (4, 5, 6, 8), (1, 20, 20, 300), (2, 3, 0)], **_statistics)


def _group_backward(x: Draw, shape: tuple[int, ...], groups: int) -> Arguments:
    _, cache = F.group_norm_forward(x(*shape), groups, *_affine(x, shape[-1]).values())
    return {"dy": x(*shape), "cache": cache, "parts": x(*cache.parts_shape)}


def _group_norm_backward(dy: Any, cache: Any, parts: Any) -> Any:
    if not dy.size:
        return None
    scale = 1.0 if cache.scale is None else cache.scale
    by_reference = reference.group_norm_forward(cache.x, cache.groups, scale)[1]
    dx, *dlearnt = reference.group_norm_backward(dy.reshape(cache.x.shape), by_reference)
    return dx.reshape(dy.shape), *dlearnt


_add("group_norm_backward", _group_backward, _group_norm_backward, outputs=("out", "dscale", "dshift"),
     kernels=("group_norm_backward", "group_norm_learnt_grads"),
     magnitudes=_norm_magnitudes, updates=("parts",), options=[{}, {"parts": None}],
     any_shape=("dscale", "dshift"),
     edges=_GROUPS, threads=_GROUPS_THREADS, bench=_GROUPS_BENCH)


_of_rows: dict[str, list[tuple[int, ...]]]
_of_rows = {"edges": [(0, 33), (3, 33), (130, 32), (1, 1), (5, 7), (2, 3, 65), (3, 5000), (4, 0)],
         "threads": [(501, 517), (17, 30_011)], "bench": [*_DENSE]}
_add("rms_norm_forward", lambda x, *shape: {"x": x(*shape), "scale": x(shape[-1])},
     lambda x, scale, **how: (
         (y := reference.rms_norm_forward(x, 1.0 if scale is None else scale, **how))[0], y[1][1].ravel()
     ) if x.size else None,
     outputs=("out", "inv_rms"), options=[{}, {"scale": None}, {"eps": 1e-3}], **_of_rows)
_add("rms_norm_backward",
     lambda x, *shape: {"dy": x(*shape), "cache": F.rms_norm_forward(x(*shape), x(shape[-1]))[1]},
     lambda dy, cache: (
         reference.rms_norm_backward(dy, reference.rms_norm_forward(cache.x, cache.scale)[1]) if dy.size else None
     ),
     outputs=("out", "dscale"), magnitudes=functools.partial(_norm_magnitudes, inverse="inv_rms"), **_of_rows)

_of_weights = _of_rows | {"edges": [(4, 0), *_of_rows["edges"][1:-1]]}
_add("weight_norm_forward", lambda x, *shape: {"direction": x(*shape), "gain": x(shape[-1])},
     lambda direction, gain: (
         reference.weight_norm_forward(direction, gain), np.sqrt((direction**2).sum(axis=(*range(direction.ndim - 1),)))
     ) if direction.size else None, outputs=("out", "norm"), **_of_weights)
_add("weight_norm_backward",
     lambda x, *shape: {"dweight": x(*shape), "cache": F.weight_norm_forward(x(*shape), x(shape[-1]))[1]},
     lambda dweight, cache: (
         reference.weight_norm_backward(dweight, cache.direction, cache.gain) if dweight.size else None
     ),
     outputs=("out", "dgain"), in_place="dweight",
     magnitudes=lambda dweight, cache: (
         abs(cache.gain).max(initial=0) / (cache.norm.min(initial=1) or 1.0) * abs(dweight).max(initial=0), 3.0),
     **_of_weights)


# ---- Images -------------------------------------------------------------------------------------------------

_ONE, _NONE = (1, 1), (0, 0)
_SHAPES = [(1, 1, 1, 1), (2, 5, 7, 3), (1, 8, 8, 16), (3, 9, 4, 33), (2, 6, 6, 1)]
_WINDOWS = [((2, 2), (2, 2)), (_ONE, _ONE), ((3, 3), _ONE), ((3, 2), (2, 1)), ((2, 3), (3, 4)), ((1, 4), (1, 2))]
_FITTING = [(shape, size, stride) for shape in _SHAPES for size, stride in _WINDOWS
            if size[0] <= shape[1] and size[1] <= shape[2]]
_LARGE_IMAGES = (9, 33, 31, 30)
_pools = {"edges": [((0, 4, 4, 3), (2, 2), (2, 2)), ((2, 5, 7, 33), (2, 2), (2, 2)), ((2, 9, 11, 5), (3, 2), (2, 1)),
                    *_FITTING, ((2, 4, 4, 0), (2, 2), (2, 2))],
          "threads": [(_LARGE_IMAGES, (3, 2), (2, 1))], "bench": [(shape, (2, 2), (2, 2)) for shape in _IMAGES]}


def _pooled(shape: tuple[int, ...], size: Any, stride: Any) -> tuple[int, ...]:
    return (*F.patches_shape(shape, size, stride)[:3], shape[3])


def _unpool(x: Draw, shape: tuple[int, ...], size: Any, stride: Any) -> Arguments:
    _, winner = F.max_pool_forward(x(*shape), size, stride)
    return {"dy": x(*winner.shape), "winner": winner, "shape": shape, "size": size, "stride": stride}


_borders = {"edges": [((0, 4, 4, 3), ((1, 2), (0, 1))), ((2, 5, 7, 33), ((1, 0), (2, 3))), ((2, 3, 4, 2), 1),
                      ((1, 1, 1, 1), (2, 0)), ((2, 3, 3, 2), 0), ((2, 0, 3, 2), 1), ((2, 3, 0, 2), 1),
                      ((2, 3, 3, 0), 1)],
            "threads": [((9, 33, 31, 30), ((1, 2), (3, 0)))], "bench": [(shape, 1) for shape in _IMAGES]}


def _sides(padding: Any) -> Any:
    return F.images.border("padding", padding)


def _bordered(shape: tuple[int, ...], padding: Any) -> tuple[int, ...]:
    rows, columns = _sides(padding)
    return shape[0], shape[1] + sum(rows), shape[2] + sum(columns), shape[3]


_add("pad_forward", lambda x, shape, padding: {"x": x(*shape), "padding": padding},
     lambda x, padding, value=0.0: reference.pad_forward(x, _sides(padding), value),
     exact=True, options=[{}, {"value": -math.inf}], **_borders)
_add("pad_backward",
     lambda x, shape, padding: {"dy": x(*_bordered(shape, padding)), "shape": shape, "padding": padding},
     lambda dy, shape, padding: reference.pad_backward(dy, shape, _sides(padding)), exact=True, **_borders)
_add("max_pool_forward", lambda x, shape, size, stride: {"x": x(*shape), "size": size, "stride": stride},
     reference.max_pool_forward, outputs=("out", "winner"), whole=1, **_pools)
_add("max_pool_backward", _unpool, reference.max_pool_backward, whole=1, **_pools)
_add("average_pool_forward", lambda x, shape, size, stride: {"x": x(*shape), "size": size, "stride": stride},
     reference.average_pool_forward, **_pools)
_add("average_pool_backward",
     lambda x, shape, size, stride: {"dy": x(*_pooled(shape, size, stride)), "shape": shape, "size": size,
                                     "stride": stride}, reference.average_pool_backward, **_pools)

# Shape, window, filters, stride and padding.
_CONVOLUTIONS: list[Size] = [
    ((0, 5, 5, 16), (3, 3), 16, _ONE, _ONE), ((2, 7, 33, 5), (3, 3), 48, _ONE, _ONE),
    ((2, 5, 9, 3), (3, 3), 16, _ONE, _ONE), ((1, 6, 5, 1), (3, 3), 80, _ONE, _NONE),
    ((2, 9, 40, 1), (3, 3), 16, _ONE, _ONE), ((2, 7, 6, 3), (3, 1), 16, _ONE, (1, 0)),
    ((3, 1, 1, 35), (3, 3), 16, _ONE, _ONE), ((2, 9, 10, 4), (2, 5), 32, _ONE, (1, 4)),
    ((2, 9, 10, 4), (4, 1), 32, _ONE, (3, 0)), ((1, 2, 2, 2), (3, 3), 16, _ONE, (2, 2)),
    ((1, 3, 150, 2), (3, 3), 16, _ONE, _ONE), ((1, 70, 1, 2), _ONE, 16, _ONE, _NONE),
    ((1, 4, 339, 16), (3, 3), 16, _ONE, _NONE),  # as large as fits
    ((2, 5, 5, 0), (3, 3), 16, _ONE, _ONE),
]
_STRIDED: list[Size] = [((3, 8, 9, 1), (3, 3), 48, (2, 3), (2, 1)), ((2, 9, 21, 4), (3, 2), 16, (2, 3), (1, 2)),
                        ((2, 9, 11, 5), (3, 2), 80, (2, 1), (1, 2))]
_FEW_FILTERS: list[Size] = [((2, 9, 11, 5), (3, 2), k, (2, 1), (1, 2)) for k in (1, 7, 15, 23, 77)]
_CONVOLVED = [(shape, (3, 3), shape[3], _ONE, _ONE) for shape in _IMAGES]
# Those that Winograd's way takes.
_WINOGRAD: list[Size] = [
    ((0, 5, 5, 16), (3, 3), 16, _ONE, _ONE), ((2, 9, 11, 16), (3, 3), 80, _ONE, (1, 2)),
    ((1, 3, 3, 48), (3, 3), 16, _ONE, _NONE), ((2, 9, 8, 16), (3, 3), 32, _ONE, _NONE),
    ((3, 14, 7, 16), (3, 3), 80, _ONE, _ONE), ((2, 6, 33, 128), (3, 3), 112, _ONE, (2, 1)),
    ((2, 9, 11, 80), (3, 3), 16, _ONE, (1, 2)),
]
_WINOGRAD_THREADS: list[Size] = [((9, 33, 31, 48), (3, 3), 32, _ONE, _ONE), ((9, 33, 31, 80), (3, 3), 48, _ONE, _NONE)]


def _relu_if(relu: bool, y: Array) -> Array:
    return np.maximum(y, 0) if relu else y


def _conv(winograd: bool, x: Draw, shape: Any, size: Any, filters: int, stride: Any, padding: Any) -> Arguments:
    weight = x(*size, shape[3], filters)
    packed = x(*F.packed_shape(weight.shape, winograd=winograd))
    arrays = {"x": x(*shape), "weight": weight, "bias": x(filters), "packed": packed}
    return {**arrays, "stride": stride, "padding": padding, "winograd": winograd}


def _conv_input(winograd: bool, x: Draw, shape: Any, size: Any, filters: int, stride: Any, padding: Any) -> Arguments:
    weight = x(*size, shape[3], filters)
    packed = x(*F.packed_shape(weight.shape, reverse=True, winograd=winograd))
    dy = x(*F.patches_shape(shape, size, stride, padding)[:3], filters)
    return {"dy": dy, "weight": weight, "packed": packed, "shape": shape, "padding": padding, "winograd": winograd}


def _conv_weight(winograd: bool, x: Draw, shape: Any, size: Any, filters: int, stride: Any, padding: Any) -> Arguments:
    dy = x(*F.patches_shape(shape, size, stride, padding)[:3], filters)
    how = {"size": size, "stride": stride, "padding": padding, "winograd": winograd}
    return {"x": x(*shape), "dy": dy, "dbias": x(filters), **how} | (
        {"sums": x(16, shape[3], filters)} if winograd else {}
    )


def _conv_forward(
    x: Any, weight: Any, bias: Any, *, packed: Any, winograd: bool, relu: bool = False, **how: Any
) -> Any:
    y = reference.conv2d_forward(x, weight, np.zeros(1) if bias is None else bias, **how)
    return (_relu_if(relu, y), None) if packed is not None else _relu_if(relu, y)


def _conv_input_grad(dy: Any, weight: Any, shape: Any, *, padding: Any, packed: Any, winograd: bool) -> tuple[Any, ...]:
    columns = np.einsum("nyxf,hwcf->nyxhwc", dy, weight)
    return reference.col2im(columns, shape, weight.shape[:2], _ONE, padding), None


def _conv_weight_grad(x: Any, dy: Any, dbias: Any, *, winograd: bool, sums: Any = None, **how: Any) -> tuple[Any, ...]:
    dweight = np.einsum("nyxhwc,nyxf->hwcf", reference.im2col(x, **how), dy)
    return dweight, *[dy.sum(axis=(0, 1, 2))] * (dbias is not None)


_conv_options: list[Arguments] = [{"relu": True}, {}, {"bias": None, "packed": None}]
for _word, _way, _sizes in (
    ("", "conv", ([*_CONVOLUTIONS, *_STRIDED], [(_LARGE_IMAGES, (3, 2), 48, (2, 1), (1, 2)),
                                               ((9, 65, 60, 1), (3, 3), 80, _ONE, _ONE)], ())),
    (" winograd", "winograd", (_WINOGRAD, _WINOGRAD_THREADS, _CONVOLVED)),
):
    _edges, _threads, _bench = _sizes
    _more = {"whole": 4 if _word else 1, "threads": _threads, "bench": _bench}
    _add(f"conv2d{_word}", functools.partial(_conv, bool(_word)), _conv_forward, updates=("packed",),
         kernels=(f"{_way}_pack", f"{_way}_forward"), free=("weight",), options=_conv_options,
         edges=_edges if _word else [*_edges, *_FEW_FILTERS], **_more)
    _add(f"conv2d_input_grad{_word}", functools.partial(_conv_input, bool(_word)), _conv_input_grad,
         kernels=(f"{_way}_pack", f"{_way}_forward"), free=("weight",), updates=("packed",),
         edges=[(shape, size, k, stride, pads) for shape, size, k, stride, pads in _edges
                if stride == _ONE and pads[0] < size[0] and pads[1] < size[1]],
         **_more | {"threads": [(shape, (3, 3), k, _ONE, _NONE) for shape, _, k, _, _ in _threads], "bench": ()})
    _add(f"conv2d_weight_grad{_word}", functools.partial(_conv_weight, bool(_word)), _conv_weight_grad,
         kernels=(f"{_way}_weight_grad",), free=("dy",), updates=("dbias",) + ("sums",) * bool(_word),
         options=[{}, {"dbias": None}], edges=[edge for edge in _edges if edge[2] % 16 == 0], **_more)

# What has no kernel of its own: shape, window, filters, stride, padding and dilation.
_BY_COLUMNS: list[Size] = [
    ((0, 5, 5, 16), (3, 3), 5, (2, 2), _ONE, (2, 1)), ((2, 9, 11, 5), (3, 2), 7, (2, 1), (3, 2), (1, 2)),
    ((3, 8, 9, 1), (3, 3), 1, (2, 3), (2, 1), (2, 2)), ((1, 6, 8, 33), _ONE, 33, (1, 2), _ONE, (3, 1)),
    ((2, 5, 5, 0), (3, 3), 4, (2, 2), _ONE, (2, 2)), ((1, 3, 400, 16), (3, 3), 16, _ONE, _ONE, _ONE),
    ((2, 40, 3, 2), (33, 1), 3, (3, 2), (34, 0), _ONE),
]
_BY_COLUMNS_THREADS: list[Size] = [((9, 33, 31, 30), (3, 2), 31, (2, 1), (1, 2), (1, 3))]
_columns: Any = {"whole": 1, "edges": _BY_COLUMNS, "threads": _BY_COLUMNS_THREADS}


def _with_dilation(make: Callable[..., Arguments], x: Draw, *size: Any) -> Arguments:
    shape, window, filters, *how = size
    arguments = make(False, x, shape, window, filters, *how[:2]) | {"stride": how[0], "dilation": how[2]}
    if "dy" in arguments:
        arguments["dy"] = x(*F.patches_shape(shape, window, *how)[:3], filters)
    return {name: value for name, value in arguments.items() if name not in ("winograd", "packed")}


def _columns_input_grad(dy: Any, weight: Any, shape: Any, **how: Any) -> Array:
    return reference.col2im(np.einsum("nyxf,hwcf->nyxhwc", dy, weight), shape, weight.shape[:2], **how)


_add("conv2d by columns", functools.partial(_with_dilation, _conv),
     lambda x, weight, bias, *, relu=False, **how: _relu_if(
         relu, reference.conv2d_forward(x, weight, np.zeros(1) if bias is None else bias, **how)),
     kernels=("im2col", "dense_forward"), free=("weight",), options=[{"relu": True}, {}, {"bias": None}], **_columns)
_add("conv2d_input_grad by columns", functools.partial(_with_dilation, _conv_input), _columns_input_grad,
     kernels=("dense_input_grad", "col2im"), free=("weight",), **_columns)
_add("conv2d_weight_grad by columns", functools.partial(_with_dilation, _conv_weight),
     functools.partial(_conv_weight_grad, winograd=False), kernels=("im2col", "dense_weight_grad", "bias_backward"),
     free=("dy",), updates=("dbias",), options=[{}, {"dbias": None}], **_columns)

# Shape, window, stride, padding and dilation.
_PATCHES: list[Size] = [
    ((0, 4, 4, 3), (3, 3), _ONE, _ONE, _ONE), ((2, 9, 8, 33), (3, 2), (2, 1), _NONE, _ONE),
    ((2, 9, 8, 5), (2, 3), _ONE, _NONE, (2, 1)), ((2, 9, 11, 5), (3, 2), (2, 1), (1, 2), _ONE),
    *((*fitting, _NONE, _ONE) for fitting in _FITTING),
    *((*fitting, ((1, 1), (2, 0), (0, 3))[i % 3], _ONE) for i, fitting in enumerate(_FITTING)),
    *(((2, 9, 8, 5), *how, dilation) for how in (((2, 3), _ONE, _NONE), ((3, 2), (2, 3), (2, 4)))
      for dilation in ((2, 1), (1, 2), (3, 2))),
    ((2, 4, 4, 0), (3, 3), _ONE, _ONE, _ONE),
]
_patches = {"whole": 1, "edges": _PATCHES, "threads": [(_LARGE_IMAGES, (3, 2), (2, 1), (1, 2), _ONE)],
            "bench": [(shape, (3, 3), _ONE, _ONE, _ONE) for shape in _IMAGES]}


def _window(size: Any, stride: Any, padding: Any, dilation: Any) -> Arguments:
    return {"size": size, "stride": stride, "padding": padding, "dilation": dilation}


_add("im2col", lambda x, shape, *how: {"x": x(*shape), **_window(*how)}, reference.im2col, **_patches)
_add("col2im", lambda x, shape, *how: {"columns": x(*F.patches_shape(shape, *how)), "shape": shape, **_window(*how)},
     reference.col2im, **_patches)

_AROUND = ((3, 2), (2, 1), (1, 2), (1, 3))
_DEPTHWISE: list[Size] = [
    ((0, 4, 4, 3), (3, 3), _ONE, _NONE, _ONE), ((3, 7, 8, 33), (3, 3), _ONE, _ONE, _ONE), ((2, 9, 11, 5), *_AROUND),
    *(((3, 7, 8, c), *how) for c in (1, 5, 32, 100) for how in (
        ((3, 3), _ONE, _ONE, _ONE), ((2, 3), (2, 1), (0, 2), _ONE), ((3, 2), (1, 3), (4, 0), (2, 3)),
        (_ONE, (2, 2), _NONE, _ONE), ((2, 2), _ONE, (5, 6), _ONE))),
    ((2, 4, 4, 0), (3, 3), _ONE, _NONE, _ONE),
]
_depthwise = {"edges": _DEPTHWISE, "threads": [(_LARGE_IMAGES, *_AROUND)], "bench": _patches["bench"],
              "free": ("weight", "x")}


def _depth(x: Draw, shape: Any, size: Any, *how: Any) -> Arguments:
    return {"x": x(*shape), "weight": x(*size, shape[3])} | dict(
        zip(("stride", "padding", "dilation"), how, strict=True)
    )


def _depth_backward(x: Draw, shape: Any, *how: Any) -> Arguments:
    return {"dy": x(*F.patches_shape(shape, *how)[:3], shape[3]), **_depth(x, shape, *how)}


_add("depthwise_forward", _depth, reference.depthwise_forward, **_depthwise)
_add("depthwise_backward", _depth_backward, reference.depthwise_backward, outputs=("out", "dweight"),
     kernels=("depthwise_backward", "depthwise_weight_backward"), factor=2, **_depthwise)


# ---- Kernels without a public function ----------------------------------------------------------------------


_random_bits_kernel, _stream_kernel = kernel("random_bits"), kernel("stream")
_gather_pixels_kernel, _mix_images_kernel = kernel("gather_pixels", y="out"), kernel("mix_images", y="out")
_fused_multiply_add_kernel = kernel("fused_multiply_add", y="out")
_factored_root_kernel = kernel("factored_root", y="out")


def _random_bits(bits: Array, seed: int, counter: int, first_block: int) -> Array:
    return _random_bits_kernel(bits, len(bits), seed, counter, first_block)


def _gather_pixels(x: Array, fill: Array, row: Array, column: Array, out: Array | None = None) -> Array:
    return _gather_pixels_kernel(x, fill, row, column, out)


def _places_of_pixels(x: Draw, n: int, h: int, w: int, c: int, high: int, wide: int) -> Arguments:
    """Bytes, and rows and columns in order, backwards and anyhow, some of them beyond the images."""
    rng = np.random.default_rng(7)
    first = rng.integers(-3, 3, (n, 1)) + np.arange(wide)
    column = np.array([first, w - 1 - first, rng.integers(-1, w + 1, (n, wide))])[rng.integers(3, size=n), np.arange(n)]
    return {"x": rng.integers(256, size=(n, h, w, c), dtype=np.uint8), "fill": np.arange(c, dtype=np.uint8),
            "row": rng.integers(-2, h + 2, (n, high)), "column": column}


def _mix_images(x: Array, partner: Array, kept: Array, out: Array | None = None) -> Array:
    return _mix_images_kernel(x, partner, kept, out)


def _shares(n: int) -> Array:
    return np.arange(n) % 5 / 4


def _factored_root(x: Array, of_rows: Array, of_columns: Array, out: Array | None = None) -> Array:
    return _factored_root_kernel(x, of_rows, of_columns, out, 1e-6)


def fused_multiply_add(a: Array, b: Array, c: Array, out: Array | None = None) -> Array:
    """a b + c, rounded once: what sums of products are made of."""
    return _fused_multiply_add_kernel(a, b, c, out)


def stream(x: Array, *arrays: Array) -> None:
    """Each array (up to four of them) is half of itself and x: the yardstick of the benchmarks."""
    _stream_kernel(x, *arrays, *[None] * (4 - len(arrays)), 0.5)


def _stream(x: Array, **arrays: Array) -> None:
    stream(x, *arrays.values())


_add("square_sums", lambda x, n, d: {"x": x(n, d)},
     lambda x: (np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->j", x, x)),
     function=gradients.square_sums, outputs=(), edges=_ROWS, threads=_ROWS_THREADS, bench=_DENSE)
_add("random_bits",
     lambda x, blocks: {"bits": np.zeros((blocks, 4), np.uint32), "seed": 2**63 + 1, "counter": 2**64 - 1,
                        "first_block": 2**64 - 5},
     lambda bits, seed, counter, first_block: reference.philox(
         np.arange(len(bits), dtype=np.uint64) + np.uint64(first_block), seed, counter),
     function=_random_bits, outputs=("bits",),
     edges=[(0,), (33,), (37,), (1,), (15,), (16,), (17,), (31,), (32,), (100,)],
     threads=[(LARGE // 16 + blocks,) for blocks in (0, 1, 31)])
_add("gather_pixels", _places_of_pixels, reference.gather_pixels, function=_gather_pixels, exact=True,
     edges=[(0, 3, 4, 3, 3, 4), (9, 5, 6, 12, 7, 9), (7, 6, 5, 3, 6, 5), (3, 1, 1, 1, 1, 1), (5, 4, 9, 4, 4, 9),
            (5, 3, 7, 8, 3, 7), (5, 3, 7, 24, 3, 7), (5, 3, 7, 5, 3, 7), (2, 3, 4, 0, 3, 4), (2, 3, 4, 3, 0, 4),
            (2, 3, 4, 3, 3, 0), (2, 0, 4, 3, 3, 4), (2, 3, 0, 3, 3, 4)],
     threads=[(40, 65, 66, 12, 63, 67)])
_add("mix_images", lambda x, n, *shape: {"x": x(n, *shape), "partner": (np.arange(n) * 3 + 1) % (n + 2) - 1,
                                         "kept": _shares(n)},
     reference.mix_images, function=_mix_images, exact=True,
     edges=[(0, 4), (7, 33), (5, 3, 4, 3), (1, 1), (9, 8, 8, 3), (6, 100), (3, 0)], threads=[(70, 33, 31, 30)])
_add("factored_root", lambda x, n, d: {"x": x(n, d), "of_rows": abs(x(n)), "of_columns": abs(x(d))},
     lambda x, of_rows, of_columns: x / np.sqrt(np.maximum(np.outer(of_rows, of_columns), 1e-6)),
     function=_factored_root, in_place="x", edges=_ROWS, threads=_ROWS_THREADS)
_add("fused_multiply_add", lambda x, n: {"a": x(n), "b": x(n), "c": x(n)}, lambda a, b, c: a * b + c,
     function=fused_multiply_add, edges=_FLAT, threads=_FLAT_THREADS)
_add("stream", lambda x, n: {name: x(n) for name in "xabcd"}, lambda x, *_, **arrays: tuple(
         a.dtype.type(0.5) * a + x for a in arrays.values()),
     function=_stream, outputs=(), updates=("a", "b", "c", "d"), exact=True,
     edges=[(0,), (33,), (1000,), (1,), (1001,)], threads=[(LARGE // 16 + 3,)])


# fmt: on
# ---- Optimizer steps ----------------------------------------------------------------------------------------
#
# Every optimizer is found in the registry, and its options in its declarations: a new one needs no line here.


@dataclass(frozen=True)
class Rule:
    """An optimizer with a choice of all its options."""

    name: str
    hyper: dict[str, Any]

    @property
    def cls(self) -> Any:
        return OPTIMIZERS[self.name]

    @property
    def states(self) -> tuple[str, ...]:
        return self.cls.state_names()

    def by_hand(self, t: int) -> dict[str, Any]:
        """What the class knows, and the functional form asks for."""
        return by_hand(self.cls, t)

    def step(self, param: Array, grad: Array, *states: Array, t: int, **more: Any) -> Any:
        """The functional form."""
        return getattr(F, self.name)(param, grad, *states, **self.by_hand(t) | self.hyper | more)

    def expected(self, param: Any, grad: Any, *states: Any, t: int, **more: Any) -> tuple[Array, ...]:
        """The new parameter and state by the reference."""
        return getattr(reference, self.name)(param, grad, *states, **self.by_hand(t) | self.hyper | more)

    def case(self) -> Case:
        """Its second step."""
        how = self.by_hand(2) | self.hyper
        return Case(
            name=str(self),
            function=getattr(F, self.name),
            kernels=(self.cls.kernel,),
            make=lambda x, n: {"param": x(n), "grad": x(n), **{name: abs(x(n)) for name in self.states}} | how,
            expected=None,
            outputs=(),
            updates=("param", *self.states),
            edges=_FLAT,
            threads=_FLAT_THREADS,
        )

    def __str__(self) -> str:
        usual = self.cls.keywords()
        return "-".join([self.name, *(f"{name}={value}" for name, value in self.hyper.items() if value != usual[name])])


def by_hand(cls: Any, t: int) -> dict[str, Any]:
    """What a class knows of step t, and the functional form asks for: its number, and some scalars."""
    return ({"t": t} if cls.counts_steps else {}) | dict.fromkeys(cls.computed, 0.3)


#: Values amid their intervals at which every term of a formula counts, where 0.3 above the least one is none.
LIVELY = {"min_step": 0.05, "max_step": 3.0}


def values_of(declared: Any) -> tuple[Any, ...]:
    """Some values of a hyperparameter: all where they are few, else one amid its interval and the ends."""
    match declared:
        case Flag():
            return (False, True)
        case Choice():
            return tuple(declared.options)
        case Limit():
            return (0.3, None)
        case Number():
            low, high = (float(end) for end in declared.bounds[1:-1].split(","))
            inner = LIVELY.get(declared.name, low + (0.3 if high == np.inf else 0.3 * (high - low)))
            closed = declared.bounds[0] == "[", declared.bounds[-1] == "]"
            return (inner, *[low] * closed[0], *[high] * closed[1])
    raise TypeError(f"{declared} is a new kind of hyperparameter: say here what values to test")


def rules(name: str) -> Iterator[Rule]:
    """Each optimizer: its own flags and choices in all combinations, and each of all others at each of its values."""
    cls = OPTIMIZERS[name]
    default = {key: 0.1 if value is REQUIRED else value for key, value in cls.keywords().items()}
    declared = {key: getattr(cls, key) for key in default}
    own = {key: d for key, d in declared.items() if key == "lr" or key not in Optimizer.declared}
    lively = default | {"weight_decay": 0.3} | {key: values_of(d)[0] for key, d in own.items() if isinstance(d, Number)}
    words = {key: values_of(d) for key, d in own.items() if not isinstance(d, Number)}
    yield Rule(name, default)
    for chosen in itertools.product(*words.values()):
        yield Rule(name, lively | dict(zip(words, chosen, strict=True)))
    for key, d in declared.items():
        for value in values_of(d) if key not in words else ():
            if value != default[key]:
                yield Rule(name, (default if key in own else lively) | {key: value})


def lively_rule(name: str) -> Rule:
    """An optimizer with no number at a special value, so that every term of its formula counts."""
    return list(rules(name))[1]


def _plan(name: str, *, param: Array, grad: Array, **more: Any) -> None:
    F.plan(name, param, grad, *(more.pop(key) for key in OPTIMIZERS[name].state_names()), **more)()


#: The optimizer steps, as functions and as plans.
STEPS: dict[str, Case] = {}
for _name in OPTIMIZERS:
    _case = replace(Rule(_name, {"lr": 0.1}).case(), name=_name)
    STEPS[_name] = _case
    STEPS[f"plan {_name}"] = replace(
        _case,
        name=f"plan {_name}",
        function=functools.partial(_plan, _name),
        make=lambda x, n, make=_case.make: {key: value for key, value in make(x, n).items() if key != "t"},
    )

CASES = LAYERS | STEPS

# ---- Layers of fastopt.nn -----------------------------------------------------------------------------------


def _channels_second(x: Any) -> Any:
    return x.permute(0, 3, 1, 2)


def _channels_last(x: Any) -> Any:
    return x.permute(0, 2, 3, 1)


def _torch_conv(torch: Any, x: Any, weight: Any, bias: Any, **options: Any) -> Any:
    """A convolution of arrays laid out as ours."""
    y = torch.nn.functional.conv2d(_channels_second(x), weight.permute(3, 2, 0, 1), bias, **options)
    return _channels_last(y)


def _torch_group_norm(torch: Any, x: Any, groups: Any, p: Any, **options: Any) -> Any:
    """Of (n, …, c)."""
    y = torch.nn.functional.group_norm(x.movedim(-1, 1), groups, p["scale"], p["shift"], **options)
    return y.movedim(1, -1)


def _weight_of(torch: Any, p: Any) -> Any:
    """The weight that weight normalisation makes, outputs on the last axis."""
    direction = p["direction"].movedim(-1, 0)
    gain = p["gain"].reshape(-1, *(1,) * (direction.ndim - 1))
    return torch._weight_norm(direction, gain, 0).movedim(0, -1)


def _whitened(torch: Any, x: Any, size: Any, eps: Any, p: Any) -> Any:
    rows = x.reshape(-1, x.shape[-1])
    centred = (rows - rows.mean(dim=0)).reshape(len(rows), -1, size).movedim(0, 1)
    covariance = centred.transpose(1, 2) @ centred / len(rows) + eps * torch.eye(size, dtype=x.dtype)
    values, vectors = torch.linalg.eigh(covariance)
    white = centred @ (vectors / values.sqrt()[:, None]) @ vectors.transpose(1, 2)
    return p["scale"] * white.movedim(0, 1).reshape(x.shape) + p["shift"]


_conv1d: Any = nn.Conv1D


def _fitted(layer: Any, *shape: int) -> Any:
    """A layer that has learnt statistics of data that are neither centred nor alike."""
    return layer.fit(_unlike(*shape))


def _unlike(*shape: int) -> Array:
    x = normal(np.float64)(40, *shape)
    return x * np.linspace(0.5, 2, shape[-1]) + x.mean(axis=-1, keepdims=True) + np.linspace(-1, 3, shape[-1])


def _by_moments(torch: Any, x: Any, axes: tuple[int, ...], *, scaled: bool) -> Any:
    """Without the mean of those data over some axes, and by their deviation."""
    seen = torch.tensor(_unlike(*x.shape[1:]))
    y = x - seen.mean(dim=axes)
    return y / seen.std(dim=axes, correction=0) if scaled else y


def _by_eigenvectors(torch: Any, x: Any, kind: str, components: int | None, eps: float) -> Any:
    seen = torch.tensor(_unlike(*x.shape[1:])).flatten(1)
    _, sizes, turned = torch.linalg.svd(seen - seen.mean(dim=0), full_matrices=False)
    turned = turned[:components]
    turned = turned * turned.gather(1, turned.abs().argmax(dim=1, keepdim=True)).sign()
    y = (x.flatten(1) - seen.mean(dim=0)) @ turned.T
    if kind != "decorrelate":
        y = y / (sizes[:components] ** 2 / (len(seen) - 1) + eps).sqrt()
    return (y @ turned).reshape(x.shape) if kind == "zca" else y


#: Layers and the shape of an input to each; and where PyTorch has the same, that, of an input and parameters by name.
NN: list[tuple[Layer, tuple[int, ...], Callable[[Any, Any, Any], Any] | None]] = [
    (nn.Dense(5, activation="relu"), (7,), lambda t, x, p: t.relu(x @ p["weight"] + p["bias"])),
    *(
        (nn.Conv2D(**ours), shape, lambda t, x, p, o=options: _torch_conv(t, x, p["weight"], p["bias"], **o))
        for ours, shape, options in (
            ({"filters": 4}, (6, 7, 3), {"padding": 1}),
            ({"filters": 4, "size": (2, 3), "stride": (2, 1), "padding": (1, 0)}, (6, 7, 3),
             {"stride": (2, 1), "padding": (1, 0)}),
            ({"filters": 4, "dilation": 2}, (6, 7, 3), {"dilation": 2, "padding": 2}),
            ({"filters": 4, "dilation": (1, 3), "stride": 2, "padding": 3}, (6, 7, 3),
             {"dilation": (1, 3), "stride": 2, "padding": 3}),
            ({"filters": 6, "groups": 3}, (6, 7, 9), {"groups": 3, "padding": 1}),
            ({"filters": 8, "groups": 4, "stride": 2}, (6, 7, 4), {"groups": 4, "padding": 1, "stride": 2}),
            ({"filters": 6, "groups": 6, "dilation": 2, "padding": "valid"}, (6, 7, 6), {"groups": 6, "dilation": 2}),
        )
    ),
    (nn.MaxPool2D((3, 2), (2, 1)), (6, 7, 3),
     lambda t, x, p: _channels_last(t.nn.functional.max_pool2d(_channels_second(x), (3, 2), (2, 1)))),
    (nn.AveragePool2D((3, 2), (2, 1)), (6, 7, 3),
     lambda t, x, p: _channels_last(t.nn.functional.avg_pool2d(_channels_second(x), (3, 2), (2, 1)))),
    *(
        (kind((3, 2), (2, 1), (1, 1), **ours), (6, 7, 3), lambda t, x, p, f=f, o=options: _channels_last(
            getattr(t.nn.functional, f)(_channels_second(x), (3, 2), (2, 1), (1, 1), **o)))
        for kind, f, ours, options in (
            (nn.MaxPool2D, "max_pool2d", {}, {}),
            (nn.AveragePool2D, "avg_pool2d", {}, {}),
            (nn.AveragePool2D, "avg_pool2d", {"count_padding": False}, {"count_include_pad": False}),
        )
    ),
    (nn.GlobalMaxPool2D(), (6, 7, 3), lambda t, x, p: x.amax(dim=(1, 2))),
    (nn.ZeroPadding2D(((1, 0), (2, 3))), (6, 7, 3), lambda t, x, p: t.nn.functional.pad(x, (0, 0, 2, 3, 1, 0))),
    (nn.Reshape((3, -1)), (6, 7), lambda t, x, p: x.reshape(-1, 3, 14)),
    *(
        (_conv1d(**ours), (9, 6), lambda t, x, p, o=options: t.nn.functional.conv1d(
            x.movedim(-1, 1), p["weight"].permute(2, 1, 0), p["bias"], **o).movedim(1, -1))
        for ours, options in (
            ({"filters": 4}, {"padding": 1}),
            ({"filters": 6, "size": 2, "stride": 2, "padding": 3, "dilation": 3, "groups": 3},
             {"stride": 2, "padding": 3, "dilation": 3, "groups": 3}),
        )
    ),
    *(
        (nn.Conv2DTranspose(**ours), (4, 5, 3), lambda t, x, p, o=options: _channels_last(
            t.nn.functional.conv_transpose2d(_channels_second(x), p["weight"].permute(3, 2, 0, 1), p["bias"], **o)))
        for ours, options in (
            ({"filters": 4}, {"padding": 1}),
            ({"filters": 4, "stride": 2, "output_padding": 1}, {"stride": 2, "padding": 1, "output_padding": 1}),
            ({"filters": 2, "size": (2, 3), "stride": (3, 2), "padding": "valid", "dilation": (2, 1)},
             {"stride": (3, 2), "dilation": (2, 1)}),
        )
    ),
    (nn.PReLU(), (6, 7, 3), lambda t, x, p: t.nn.functional.prelu(_channels_second(x), p["slope"]).movedim(1, -1)),
    (nn.PReLU(0.1, shared=True), (6, 7, 3), lambda t, x, p: t.nn.functional.prelu(x, p["slope"])),
    (nn.GlobalAveragePool2D(), (6, 7, 3), lambda t, x, p: x.mean(dim=(1, 2))),
    (nn.Embedding(9, 4), (5,), lambda t, x, p: t.nn.functional.embedding(x.long(), p["weight"])),
    (nn.ReLU(), (6, 7, 3), lambda t, x, p: t.relu(x)),
    (nn.LeakyReLU(0.2), (9,), lambda t, x, p: t.nn.functional.leaky_relu(x, 0.2)),
    (nn.ELU(0.7), (9,), lambda t, x, p: t.nn.functional.elu(x, 0.7)),
    (nn.GELU(), (9,), lambda t, x, p: t.nn.functional.gelu(x)),
    (nn.GELU("tanh"), (9,), lambda t, x, p: t.nn.functional.gelu(x, approximate="tanh")),
    (nn.SiLU(), (9,), lambda t, x, p: t.nn.functional.silu(x)),
    (nn.Tanh(), (9,), lambda t, x, p: t.tanh(x)),
    (nn.Sigmoid(), (9,), lambda t, x, p: t.sigmoid(x)),
    (nn.Softplus(), (9,), lambda t, x, p: t.nn.functional.softplus(x, threshold=1000)),
    (nn.Softmax(), (9,), lambda t, x, p: t.softmax(x, -1)),
    (nn.BatchNorm(), (6, 7, 3),
     lambda t, x, p: _channels_last(
         t.nn.functional.batch_norm(_channels_second(x), None, None, p["scale"], p["shift"], training=True))),
    (nn.LayerNorm(), (9,), lambda t, x, p: t.nn.functional.layer_norm(x, (9,), p["scale"], p["shift"])),
    (nn.LayerNorm(axes=3, eps=0.1), (6, 7, 3),
     lambda t, x, p: t.nn.functional.layer_norm(x, (6, 7, 3), p["scale"], p["shift"], eps=0.1)),
    (nn.RMSNorm(), (6, 7, 8), lambda t, x, p: t.nn.functional.rms_norm(x, (8,), p["scale"], 1e-5)),
    (nn.RMSNorm(eps=0.01), (9,), lambda t, x, p: t.nn.functional.rms_norm(x, (9,), p["scale"], 0.01)),
    (nn.GroupNorm(4), (6, 7, 8), lambda t, x, p: _torch_group_norm(t, x, 4, p)),
    (nn.GroupNorm(2, eps=0.1), (8,), lambda t, x, p: _torch_group_norm(t, x, 2, p, eps=0.1)),
    (nn.InstanceNorm(), (6, 7, 8),
     lambda t, x, p: _channels_last(
         t.nn.functional.instance_norm(_channels_second(x), weight=p["scale"], bias=p["shift"]))),
    (nn.WeightNorm(nn.Dense(5)), (7,), lambda t, x, p: x @ _weight_of(t, p) + p["layer.bias"]),
    (nn.WeightNorm(nn.Conv2D(4)), (6, 7, 3),
     lambda t, x, p: _torch_conv(t, x, _weight_of(t, p), p["layer.bias"], padding=1)),
    (nn.DecorrelatedBatchNorm(4, eps=1e-3), (8,), lambda t, x, p: _whitened(t, x, 4, 1e-3, p)),
    (nn.DecorrelatedBatchNorm(4, eps=1e-3), (3, 2, 4), lambda t, x, p: _whitened(t, x, 4, 1e-3, p)),
    (_fitted(nn.Center(), 6), (6,), lambda t, x, p: _by_moments(t, x, (0,), scaled=False)),
    (_fitted(nn.Center("pixel"), 4, 5, 3), (4, 5, 3), lambda t, x, p: _by_moments(t, x, (0,), scaled=False)),
    (nn.Center("image"), (4, 5, 3), lambda t, x, p: x - x.mean(dim=(1, 2, 3), keepdim=True)),
    (_fitted(nn.Standardize(), 4, 5, 3), (4, 5, 3), lambda t, x, p: _by_moments(t, x, (0, 1, 2), scaled=True)),
    (_fitted(nn.Standardize("feature"), 6), (6,), lambda t, x, p: _by_moments(t, x, (0,), scaled=True)),
    (nn.Standardize("image"), (4, 5, 3),
     lambda t, x, p: t.nn.functional.layer_norm(x, (4, 5, 3), eps=1e-12)),
    *(
        (_fitted(nn.Whiten(*options), 2, 3, 2), (2, 3, 2), lambda t, x, p, o=options: _by_eigenvectors(t, x, *o))
        for options in (("pca", 5, 0.0), ("zca", None, 0.1), ("zca", 3, 1e-5), ("decorrelate", None, 0.0))
    ),
    (nn.Residual(nn.Conv2D(3), nn.Conv2D(3, 1)), (6, 7, 3),
     lambda t, x, p: t.relu(_torch_conv(t, x, p["body.weight"], p["body.bias"], padding=1)
                            + _torch_conv(t, x, p["shortcut.weight"], p["shortcut.bias"]))),
    *((layer, shape, None) for layer, shape in (
        (nn.Dense(5), (7,)),
        (nn.Dense(5, activation="relu", init="xavier"), (7,)),
        (nn.Conv2D(4), (5, 6, 3)),
        (nn.Conv2D(3, size=(2, 3), stride=(2, 1), padding=(1, 0), activation="relu"), (5, 4, 2)),
        (nn.Conv2D(2, size=1, stride=3, padding="valid", init="xavier"), (4, 7, 2)),
        (nn.Conv2D(2, size=(4, 2), activation="relu"), (3, 5, 1)),
        (nn.Conv2D(2, dilation=2, activation="relu"), (5, 6, 2)),
        (nn.Conv2D(2, size=(2, 3), stride=2, padding=2, dilation=(1, 3)), (4, 5, 1)),
        (nn.Conv2D(6, groups=3, size=(3, 2), activation="relu"), (4, 4, 6)),
        (nn.Conv2D(4, groups=4, stride=2), (5, 4, 4)),
        (nn.Conv2D(4, groups=2, padding=1, dilation=(2, 1)), (5, 4, 2)),
        (nn.Conv2D(4, groups=2, size=(1, 2)), (2, 3, 2)),
        (nn.Conv2D(3, groups=3, size=(2, 3), padding=1, dilation=(2, 1), activation="relu"), (5, 4, 3)),
        (nn.Conv2D(16), (3, 4, 2)),
        (nn.Conv2D(16, size=2, stride=2, activation="relu"), (3, 5, 2)),
        (nn.Conv2D(32, size=(1, 2), padding=(0, 2)), (2, 3, 1)),
        (nn.MaxPool2D(), (5, 4, 3)),
        (nn.MaxPool2D(size=(3, 2), stride=(1, 1)), (5, 4, 2)),
        (nn.MaxPool2D(2, stride=3), (6, 7, 2)),
        (nn.MaxPool2D(3, stride=2, padding="same"), (5, 4, 2)),
        (nn.AveragePool2D(3, stride=1, padding="same", count_padding=False), (5, 4, 2)),
        (nn.GlobalMaxPool2D(), (3, 4, 5)),
        (nn.ZeroPadding2D(), (3, 4, 2)),
        (nn.ZeroPadding2D(0), (3, 4, 2)),
        (nn.Reshape((4, 1, 2)), (8,)),
        (nn.Conv1D(16, 4, activation="relu", padding="valid"), (6, 2)),
        (nn.Conv2DTranspose(3, (2, 3), activation="relu", bias_init=0.5), (2, 3, 2)),
        (nn.PReLU(), (5,)),
        (nn.Flatten(), (3, 4, 2)),
        (nn.Flatten(), (6,)),
        (nn.ReLU(), (9,)),
        (nn.ReLU(), (3, 2, 4)),
        (nn.Dropout(0.4), (70,)),
        (nn.Dropout(0.4, p_is="keep"), (3, 5, 5)),
        (nn.BatchNorm(), (6,)),
        (nn.BatchNorm(eps=0.01, momentum=0.9, momentum_of="old", unbiased=False), (3, 4, 2)),
        *(
            (layer, shape)
            for shape in ((9,), (3, 2, 4))
            for layer in (
                nn.LeakyReLU(),
                nn.LeakyReLU(slope=0.3),
                nn.ELU(),
                nn.ELU(alpha=0.7),
                nn.GELU(),
                nn.GELU("tanh"),
                nn.SiLU(),
                nn.Tanh(),
                nn.Sigmoid(),
                nn.Softplus(),
                nn.Softmax(),
            )
        ),
        (nn.AveragePool2D(), (5, 4, 3)),
        (nn.AveragePool2D(size=(3, 2), stride=(1, 1)), (5, 4, 2)),
        (nn.GlobalAveragePool2D(), (3, 4, 5)),
        (nn.VanillaDropout(0.4), (70,)),
        (nn.VanillaDropout(0.4, p_is="keep"), (3, 5, 5)),
        (nn.SpatialDropout(0.4), (3, 4, 20)),
        (nn.Embedding(7, 3), (5,)),
        (nn.Embedding(5, 2, init="he"), (2, 3)),
        (nn.LayerNorm(), (6,)),
        (nn.LayerNorm(eps=0.01), (3, 2, 4)),
        (nn.LayerNorm(axes=3), (3, 2, 4)),
        (nn.LayerNorm(axes=2), (3, 2, 4)),
        (nn.GroupNorm(3), (6,)),
        (nn.GroupNorm(2, eps=0.01), (3, 2, 4)),
        (nn.InstanceNorm(), (3, 2, 4)),
        (nn.WeightNorm(nn.Dense(3, activation="relu")), (5,)),
        (nn.WeightNorm(nn.Conv2D(4, size=(3, 2), stride=2, groups=2)), (4, 5, 2)),
        (nn.DecorrelatedBatchNorm(), (3,)),
        (nn.Center(per="pixel"), (3, 2, 4)),
        (_fitted(nn.Standardize(eps=0.1), 5), (5,)),
        (nn.Whiten(components=3), (5,)),
        (nn.DecorrelatedBatchNorm(2, eps=0.01, momentum=0.3), (4,)),
        (nn.DecorrelatedBatchNorm(size=2), (3, 2, 4)),
        (nn.Residual(nn.Dense(4, init=nn.Orthogonal(2.0))), (4,)),
        (
            nn.Residual(
                nn.Sequential([nn.Conv2D(3), nn.ReLU(), nn.Dropout(0.2)]), nn.Conv2D(3, size=1, bias_init=0.5), None
            ),
            (3, 2, 2),
        ),
        (nn.Residual(nn.Dropout(0.3), nn.Dropout(0.3)), (30,)),
        (nn.Dense(3, init=nn.Xavier("in", "uniform"), bias_init=[0.1, 0.2, 0.3]), (4,)),
        (nn.Sequential([nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.3), nn.Dense(3)]), (5,)),
        (nn.Sequential([nn.Conv2D(2), nn.Sequential([nn.ReLU(), nn.MaxPool2D()]), nn.Flatten()]), (4, 5, 2)),
    )),
]  # fmt: skip
