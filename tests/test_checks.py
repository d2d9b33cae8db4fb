"""What is refused: the message names the argument and the rule, and nothing at all has been changed."""

import inspect
import itertools
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from conftest import by_hand

import fastopt
from fastopt import _kernels, checks, functional
from fastopt.hyper import Choice, Flag, Limit
from fastopt.optimizers import OPTIMIZERS

# ---- Numbers, words and integers --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        (
            "[0, 1)",
            [0, -0.0, 0.5, False, np.float32(0.25), np.int8(0)],
            [1, 1.0, True, -1, -5e-324, np.float64(1)],
        ),
        ("(0, 1]", [1, 5e-324, np.nextafter(1, 0)], [0, 0.0, -0.0, np.nextafter(1, 2)]),
        ("[0, inf)", [0, 3.4e38, 10**15], [-1, -1e-300]),
        ("(-inf, inf)", [0, -3.4e38], []),
    ],
)
def test_number(bounds, inside, outside):
    for value in inside:
        result = checks.number("beta", value, bounds)
        assert type(result) is float
        assert result == value
    for value in [*outside, np.nan, np.inf, -np.inf, np.float32("nan")]:
        with pytest.raises(ValueError, match=re.escape(f"beta must be in {bounds}, got {value!r}")):
            checks.number("beta", value, bounds)
    if "inf" in bounds:
        with pytest.raises(ValueError, match=re.escape("beta must be at most 3.4e+38 in size, got 1e+39")):
            checks.number("beta", 1e39, bounds)
    for value in ["0.5", b"0.5", None, [0.5], {}, 0.5j, np.array([0.25, 0.5]), 10**400]:
        with pytest.raises(TypeError, match=re.escape(f"beta must be a number in {bounds}, got {value!r}")):
            checks.number("beta", value, bounds)


def test_integer():
    assert [checks.integer("t", value, 1, 9) for value in (1, np.int64(9), np.uint8(5))] == [1, 9, 5]
    assert checks.integer("t", 10**30, 1) == 10**30
    for value in (0, -1, 10):
        with pytest.raises(ValueError, match=re.escape(f"t must be in [1, 9], got {value}")):
            checks.integer("t", value, 1, 9)
    with pytest.raises(ValueError, match=r"^t must be at least 1, got 0"):
        checks.integer("t", 0, 1)
    for value in (1.0, "1", None, np.float64(1), np.array([1, 2])):
        with pytest.raises(TypeError, match=r"^t must be an integer, got "):
            checks.integer("t", value, 1)


def test_flag_choice_and_pair():
    assert checks.flag("nesterov", np.True_) is True
    for value in (1, 0.0, "True", None):
        with pytest.raises(TypeError, match=r"^nesterov must be True or False, got "):
            checks.flag("nesterov", value)
    assert checks.choice("p_is", "keep", ("drop", "keep")) == "keep"
    for value in ("Keep", "", None, 1, ["keep"]):
        with pytest.raises(ValueError, match=r"^p_is must be one of 'drop', 'keep'; got "):
            checks.choice("p_is", value, ("drop", "keep"))
    assert checks.pair("size", 3, 1) == (3, 3)
    assert checks.pair("size", [3, 4], 1) == (3, 4)
    for value in ((1, 2, 3), (), 0, (1, 0), 1.0, (1, 2.0), "ab", None):
        with pytest.raises((TypeError, ValueError), match=r"^size must be "):
            checks.pair("size", value, 1)


# ---- Arrays -----------------------------------------------------------------------------------------


def unaligned(a):
    return (
        np.concatenate([np.zeros(1, np.uint8), np.frombuffer(a.tobytes(), np.uint8)])[1:].view(a.dtype).reshape(a.shape)
    )


def every_other(a):
    return np.repeat(a, 2, axis=-1)[..., ::2]


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def other_real(a):
    return a.astype(np.float32 if a.dtype == np.float64 else np.float64)


# How an array can be wrong: what it becomes, and what is said of it.
WRONG = {
    "list": (lambda a: a.tolist(), "must "),
    "int": (lambda a: a.astype(np.int32), "must be "),
    "bool": (lambda a: a > 0, "must be "),
    "float16": (lambda a: a.astype(np.float16), "must be "),
    "complex": (lambda a: a.astype(complex), "must be "),
    "object": (lambda a: a.astype(object), "must be "),
    "text": (lambda a: a.astype(str), "must be "),
    "byte-swapped": (
        lambda a: a.astype(a.dtype.newbyteorder()),
        r"must be in native byte order, got .*\.astype\(",
    ),
    "gaps": (every_other, r"must be C-contiguous, got strides .*np\.ascontiguousarray\("),
    "unaligned": (unaligned, "must be aligned to its element size"),
}
# Wrong beside another argument that sets type and shape; and wrong where it is written to.
WRONG_BESIDE = {
    "other type": (other_real, "must be float32, got float64"),
    "longer": (lambda a: np.concatenate([a, a]), "must have shape "),
    "one axis more": (lambda a: a[None], "must have shape "),
}
WRONG_TO_WRITE = {"read-only": (read_only, "must be writable, got a read-only array")}


def test_a_transposed_matrix_is_not_contiguous():
    with pytest.raises(ValueError, match=r"make it so with np.ascontiguousarray\(w\)"):
        checks.array("w", np.ones((2, 3)).T)


class Call(NamedTuple):
    """A function of float32 arrays by name, with arrays that fit, of which it writes to some."""

    function: Callable
    arrays: dict[str, np.ndarray]
    written: tuple[str, ...] = ("out",)

    def refuses_array(self, refuses, wrong: dict[str, object], message: str) -> None:
        arrays = self.arrays | wrong
        refuses(
            lambda: self.function(**arrays),
            message,
            *(a for a in arrays.values() if isinstance(a, np.ndarray)),
        )


def optimizer_call(name: str) -> Call:
    states = OPTIMIZERS[name].state_names()

    def step(**arrays):
        getattr(functional, name)(**arrays, lr=0.1, **by_hand(OPTIMIZERS[name], 1))

    return Call(step, {key: ramp(6, 4) for key in ("param", "grad", *states)}, ("param", *states))


def ramp(*shape: int) -> np.ndarray:
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def plan_call(name: str) -> Call:
    call = optimizer_call(name)
    computed = dict.fromkeys(OPTIMIZERS[name].computed, 0.3)

    def step(**arrays):
        functional.plan(name, *arrays.values(), lr=0.1, **computed)()

    return Call(step, call.arrays, call.written)


MASK = np.arange(24) % 3 > 0
CACHE = functional.batch_norm_forward(ramp(6, 4), np.ones(4, np.float32))[1]
GROUP_CACHE = functional.group_norm_forward(ramp(6, 4), 2, np.ones(4, np.float32))[1]
WINNER = functional.max_pool_forward(ramp(1, 4, 3, 2), 2)[1]
ROWS = {"out": ramp(6, 4)}
VECTORS = {name: ramp(4) for name in ("scale", "shift", "running_mean", "running_var")}
AFFINE = {name: VECTORS[name] for name in ("scale", "shift")}
IMAGE, POOLED, COLUMNS = ramp(1, 4, 3, 2), ramp(1, 2, 1, 2), ramp(1, 3, 2, 2, 2, 2)
POOL_CACHE = functional.batch_norm_forward(IMAGE.copy(), axis=-1, max_pool=2)[1]

STEPS = {name: optimizer_call(name) for name in OPTIMIZERS} | {f"plan {name}": plan_call(name) for name in OPTIMIZERS}
CALLS = STEPS | {
    "relu_forward": Call(functional.relu_forward, {"x": ramp(6, 4)} | ROWS),
    "relu_backward": Call(functional.relu_backward, {"dy": ramp(6, 4), "y": ramp(6, 4)} | ROWS),
    "bias_forward": Call(functional.bias_forward, {"x": ramp(6, 4), "bias": ramp(4)} | ROWS),
    "bias_relu_forward": Call(functional.bias_relu_forward, {"x": ramp(6, 4), "bias": ramp(4)} | ROWS),
    "bias_backward": Call(functional.bias_backward, {"dy": ramp(6, 4), "out": ramp(4)}),
    "bias_relu_backward": Call(functional.bias_relu_backward, {"dy": ramp(6, 4), "y": ramp(6, 4)} | ROWS),
    "activation_forward": Call(
        lambda **arrays: functional.activation_forward(kind="silu", **arrays), {"x": ramp(6, 4)} | ROWS
    ),
    "activation_backward": Call(
        lambda **arrays: functional.activation_backward(kind="silu", **arrays),
        {"dy": ramp(6, 4), "seen": ramp(6, 4)} | ROWS,
    ),
    "softmax_forward": Call(functional.softmax_forward, {"x": ramp(6, 4)} | ROWS),
    "softmax_backward": Call(functional.softmax_backward, {"dy": ramp(6, 4), "y": ramp(6, 4)} | ROWS),
    "softmax_cross_entropy": Call(
        lambda **arrays: functional.softmax_cross_entropy(labels=np.arange(6) % 4, **arrays),
        {"logits": ramp(6, 4)} | ROWS,
    ),
    "dropout": Call(
        lambda **arrays: functional.dropout(p=0.5, seed=1, counter=1, **arrays),
        {"x": ramp(24), "out": ramp(24)},
    ),
    "dropout_apply": Call(
        lambda **arrays: functional.dropout_apply(mask=MASK, p=0.5, **arrays),
        {"x": ramp(24), "out": ramp(24)},
    ),
    "dropout_backward": Call(
        lambda **arrays: functional.dropout_backward(mask=MASK, p=0.5, **arrays),
        {"dy": ramp(24), "out": ramp(24)},
    ),
    "bias_relu_dropout_forward": Call(
        lambda **arrays: functional.bias_relu_dropout_forward(p=0.5, seed=1, counter=1, **arrays),
        {"x": ramp(6, 4), "bias": ramp(4)} | ROWS,
    ),
    "bias_relu_dropout_backward": Call(
        lambda **arrays: functional.bias_relu_dropout_backward(p=0.5, **arrays),
        {"dy": ramp(6, 4), "y": ramp(6, 4)} | ROWS,
    ),
    "batch_norm_forward": Call(
        functional.batch_norm_forward,
        {"x": ramp(6, 4)} | VECTORS | ROWS,
        ("running_mean", "running_var", "out"),
    ),
    "batch_norm_inference": Call(
        lambda **arrays: functional.batch_norm_forward(training=False, **arrays),
        {"x": ramp(6, 4)} | VECTORS | ROWS,
    ),
    "batch_norm_backward": Call(
        lambda **arrays: functional.batch_norm_backward(cache=CACHE, **arrays), {"dy": ramp(6, 4)} | ROWS
    ),
    "batch_norm_forward max_pool": Call(
        lambda **arrays: functional.batch_norm_forward(axis=-1, max_pool=2, **arrays),
        {"x": IMAGE, "out": POOLED, "chosen": POOLED.copy()} | {name: ramp(2) for name in VECTORS},
        ("running_mean", "running_var", "out", "chosen"),
    ),
    "batch_norm_backward max_pool": Call(
        lambda **arrays: functional.batch_norm_backward(cache=POOL_CACHE, **arrays),
        {"dy": POOLED, "out": IMAGE.copy(), "dscale": ramp(2), "dshift": ramp(2)},
        ("out", "dscale", "dshift"),
    ),
    "layer_norm_forward": Call(functional.layer_norm_forward, {"x": ramp(6, 4)} | AFFINE | ROWS),
    "group_norm_forward": Call(
        lambda **arrays: functional.group_norm_forward(groups=2, **arrays), {"x": ramp(6, 4)} | AFFINE | ROWS
    ),
    "instance_norm_forward": Call(functional.instance_norm_forward, {"x": ramp(6, 4)} | AFFINE | ROWS),
    "group_norm_backward": Call(
        lambda **arrays: functional.group_norm_backward(cache=GROUP_CACHE, **arrays), {"dy": ramp(6, 4)} | ROWS
    ),
    "embedding_backward": Call(
        lambda **arrays: functional.embedding_backward(entries=np.arange(6) % 5, count=6, **arrays),
        {"dy": ramp(6, 4)} | ROWS,
    ),
    "depthwise_forward": Call(
        lambda **arrays: functional.depthwise_forward(weight=ramp(2, 3, 2), **arrays),
        {"x": IMAGE, "out": ramp(1, 3, 1, 2)},
    ),
    "depthwise_backward": Call(
        lambda **arrays: functional.depthwise_backward(x=IMAGE, weight=ramp(2, 3, 2), **arrays),
        {"dy": ramp(1, 3, 1, 2), "out": IMAGE.copy(), "dweight": ramp(2, 3, 2)},
        ("out", "dweight"),
    ),
    "average_pool_forward": Call(
        lambda **arrays: functional.average_pool_forward(size=2, **arrays), {"x": IMAGE, "out": POOLED}
    ),
    "average_pool_backward": Call(
        lambda **arrays: functional.average_pool_backward(shape=IMAGE.shape, size=2, **arrays),
        {"dy": POOLED, "out": IMAGE},
    ),
    "max_pool_forward": Call(
        lambda **arrays: functional.max_pool_forward(size=2, **arrays), {"x": IMAGE, "out": POOLED}
    ),
    "max_pool_backward": Call(
        lambda **arrays: functional.max_pool_backward(winner=WINNER, shape=IMAGE.shape, size=2, **arrays),
        {"dy": POOLED, "out": IMAGE},
    ),
    "conv2d": Call(
        lambda **arrays: functional.conv2d(weight=ramp(2, 2, 2, 16), **arrays),
        {"x": IMAGE, "bias": ramp(16), "out": ramp(1, 3, 2, 16)},
    ),
    "conv2d_input_grad": Call(
        lambda **arrays: functional.conv2d_input_grad(weight=ramp(2, 2, 2, 16), shape=IMAGE.shape, **arrays),
        {"dy": ramp(1, 3, 2, 16), "out": IMAGE},
    ),
    "conv2d_weight_grad": Call(
        lambda **arrays: functional.conv2d_weight_grad(size=2, **arrays),
        {"x": IMAGE, "dy": ramp(1, 3, 2, 16), "out": ramp(2, 2, 2, 16), "dbias": ramp(16)},
        ("out", "dbias"),
    ),
    "dense_forward": Call(
        lambda **arrays: functional.dense_forward(weight=ramp(3, 4), **arrays),
        {"x": ramp(6, 3), "bias": ramp(4), "out": ramp(6, 4)},
    ),
    "dense_input_grad": Call(
        lambda **arrays: functional.dense_input_grad(weight=ramp(3, 4), **arrays),
        {"dy": ramp(6, 4), "out": ramp(6, 3)},
    ),
    "dense_weight_grad": Call(
        functional.dense_weight_grad,
        {"x": ramp(6, 3), "dy": ramp(6, 4), "out": ramp(3, 4), "dbias": ramp(4)},
        ("out", "dbias"),
    ),
    "im2col": Call(lambda **arrays: functional.im2col(size=2, **arrays), {"x": IMAGE, "out": COLUMNS}),
    "col2im": Call(
        lambda **arrays: functional.col2im(shape=IMAGE.shape, size=2, **arrays),
        {"columns": COLUMNS, "out": IMAGE},
    ),
}


def test_every_function_is_in_the_table_above():
    functions = {name for name in functional.__all__ if inspect.isroutine(getattr(functional, name))}
    assert functions - {
        "batch_norm_sums_shape",
        "conv2d_fits",
        "dense_pays",
        "kept_share",
        "packed_shape",
        "patches_shape",
        "winner_type",
        "winograd_fits",
    } <= {word for name in CALLS for word in name.split()}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_fits_is_taken(call):
    arrays = {key: a.copy() for key, a in call.arrays.items()}
    call.function(**arrays)
    assert any(arrays[key].tobytes() != call.arrays[key].tobytes() for key in call.written)


def wrong_arrays():
    for name, call in CALLS.items():
        for place, key in enumerate(call.arrays):
            ways = WRONG | (WRONG_BESIDE if place else {}) | (WRONG_TO_WRITE if key in call.written else {})
            for way, (spoil, message) in ways.items():
                yield pytest.param(call, key, spoil, message, id=f"{name}-{key}-{way}")


@pytest.mark.parametrize(("call", "key", "spoil", "message"), list(wrong_arrays()))
def test_a_wrong_array(call, key, spoil, message, refuses):
    # A gradient that is no array at all has the wrong structure: those are called grads.
    call.refuses_array(refuses, {key: spoil(call.arrays[key])}, f"{key}s? {message}")


def overlaps():
    for name, call in CALLS.items():
        for one, other in itertools.combinations(call.arrays, 2):
            if {one, other} & set(call.written):
                yield pytest.param(call, one, other, id=f"{name}-{one}-{other}")


@pytest.mark.parametrize("shift", [1, -1])
@pytest.mark.parametrize(("call", "one", "other"), list(overlaps()))
def test_overlapping_arrays(call, one, other, shift, refuses):
    a, b = call.arrays[one], call.arrays[other]
    memory = np.zeros(a.size + b.size + 2, a.dtype)
    over = {
        one: memory[1 : 1 + a.size].reshape(a.shape),
        other: memory[1 + shift : 1 + shift + b.size].reshape(b.shape),
    }
    message = f"({one} and {other}|{other} and {one}) must not overlap in memory; copy one of them"
    call.refuses_array(refuses, over, message)


@pytest.mark.parametrize("name", ["batch_norm_forward", "batch_norm_inference", "batch_norm_backward"])
def test_batch_norm_is_not_done_in_place(name, refuses):
    call = CALLS[name]
    key = next(iter(call.arrays))
    x = call.arrays[key].copy()
    call.refuses_array(refuses, {key: x, "out": x}, f"({key} and out|out and {key}) must not overlap")


@pytest.mark.parametrize("name", sorted(set(CALLS) - set(STEPS)))
def test_out_is_returned(name):
    call = CALLS[name]
    arrays = {key: a.copy() for key, a in call.arrays.items()}
    result = call.function(**arrays)
    results = result if isinstance(result, tuple) else (result,)
    assert any(array is arrays["out"] for array in results)


# ---- Arguments of the layer functions ---------------------------------------------------------------

X, LABELS = ramp(6, 4), np.arange(6) % 4
OUT = {"out": np.full_like(X, 7)}
F = functional
ENTROPY = F.softmax_cross_entropy, {"logits": X, "labels": LABELS} | OUT
DROPOUT = F.dropout, {"x": X, "p": 0.5, "seed": 1, "counter": 1} | OUT
KEEP = F.dropout, DROPOUT[1] | {"p_is": "keep"}
APPLY = F.dropout_apply, {"x": X, "mask": X > 0, "p": 0.5} | OUT
FUSED = F.bias_relu_dropout_forward, {"x": X, "bias": ramp(4), "p": 0.5, "seed": 1, "counter": 1} | OUT
FUSED_KEEP = F.bias_relu_dropout_forward, FUSED[1] | {"p_is": "keep"}
FUSED_BACKWARD = F.bias_relu_dropout_backward, {"dy": X, "y": X, "p": 0.5} | OUT
DROPOUTS = DROPOUT, FUSED, FUSED_BACKWARD
BACKWARD = F.dropout_backward, {"dy": X, "mask": X > 0, "p": 0.5} | OUT
NORM = F.batch_norm_forward, {"x": X} | OUT
RUNNING = F.batch_norm_forward, {"x": X, "running_mean": ramp(4), "running_var": ramp(4)} | OUT
NORM_POOL = (
    F.batch_norm_forward,
    {"x": IMAGE, "axis": -1, "relu": True, "max_pool": 2, "out": POOLED.copy()},
)
NORM_BACKWARD = F.batch_norm_backward, {"dy": X, "cache": CACHE} | OUT
TO_COLUMNS = F.im2col, {"x": IMAGE, "size": 2, "stride": 1, "padding": 0, "out": COLUMNS.copy()}
TO_IMAGE = F.col2im, {"columns": COLUMNS, "shape": IMAGE.shape, "size": 2, "out": IMAGE.copy()}
POOL = F.max_pool_forward, {"x": IMAGE, "size": 2, "out": POOLED.copy()}
UNPOOL = (
    F.max_pool_backward,
    {"dy": POOLED, "winner": WINNER, "shape": (1, 4, 3, 2), "size": 2, "out": IMAGE * 1},
)

NO_NUMBER = [np.nan, np.inf, -np.inf, "0.5", None, [0.5]]
NO_SIZE = [0, -1, (2, 0), (1, 2, 3), (), 1.5, None, "2"]
NO_SHAPE = [None, 4, (), (1, 4, 3), (1, 4, 3, -2), (1, 4.0, 3, 2)]
NO_INTEGER = [-1, 2**64, 1.0, None, "1"]
NO_MASK = [None, X, X.T > 0, X[:5] > 0, (X > 0).tolist(), np.zeros(4, np.uint8), np.zeros(3, np.int8)]

BAD_ARGUMENTS = [  # a call, one of its arguments, bad values, and what is said of them
    (ENTROPY, "labels", [LABELS + 1, LABELS - 1], r"labels must be in \[0, 4\), got (4|-1)"),
    (ENTROPY, "labels", [LABELS[:5], LABELS[:, None]], r"labels must have shape \(6,\)"),
    (ENTROPY, "labels", [LABELS / 2, LABELS > 0, [1] * 6, None], "labels must be an array of integers"),
    (ENTROPY, "logits", [ramp(24), ramp(6, 2, 2)], "logits must have 2 dimensions"),
    (ENTROPY, "logits", [ramp(6, 0)], r"labels must be in \[0, 0\)"),
    *((call, "p", [1, 1.5, -0.1, *NO_NUMBER], "p must be ") for call in (*DROPOUTS, APPLY, BACKWARD)),
    *((call, "p", [0, 1.5, -0.1, *NO_NUMBER], "p must be ") for call in (KEEP, FUSED_KEEP)),
    *((call, "p_is", ["drops", None, 1], "p_is must be one of") for call in (*DROPOUTS, APPLY, BACKWARD)),
    *((call, "mask", NO_MASK, r"mask must be uint8 bits of shape \(3,\)") for call in (APPLY, BACKWARD)),
    (DROPOUT, "mask_format", ["bit", None, bool], "mask_format must be one of 'bits', 'bytes'"),
    *((call, "seed", NO_INTEGER, "seed must be ") for call in (DROPOUT, FUSED)),
    *((call, "counter", NO_INTEGER, "counter must be ") for call in (DROPOUT, FUSED)),
    (FUSED, "x", [np.array(1.0)], "x must have at least one dimension"),
    (FUSED, "bias", [ramp(5), ramp(1, 4)], r"bias must have shape \(4,\)"),
    (FUSED_BACKWARD, "dy", [np.array(1.0)], "dy must have at least one dimension"),
    (NORM, "x", [ramp(24), np.array(1.0)], "x must have shape"),
    (NORM, "eps", [-1e-5, *NO_NUMBER], "eps must be "),
    (NORM, "momentum", [-0.1, 1.1, *NO_NUMBER], "momentum must be "),
    (NORM, "momentum_of", ["mean", None], "momentum_of must be one of 'new', 'old'"),
    (NORM, "unbiased", [1, None], "unbiased must be True or False"),
    (NORM, "training", [1, None, "no"], "training must be True or False"),
    (NORM, "relu", [1, None, "yes"], "relu must be True or False"),
    (NORM, "dropout", [1.0, -0.1, *NO_NUMBER], "dropout must be "),
    (NORM, "dropout", [0.5], "dropout must be 0 without relu=True, got 0.5"),
    (NORM, "axis", [None, 1.0, "last", (1,)], "axis must be an integer"),
    (NORM, "axis", [2, -2], r"axis must be in \[-1, 1\]"),
    (NORM, "axis", [0], "axis must be 1, or the last axis, 1 or -1, got 0"),
    (NORM, "training", [False], "running_mean and running_var must be given for training=False"),
    (RUNNING, "running_var", [None], "running_mean and running_var must be given both or not at all"),
    (RUNNING, "running_mean", [None], "running_mean and running_var must be given both or not at all"),
    (NORM_POOL, "max_pool", [5, (2, 4), *(value for value in NO_SIZE if value is not None)], "max_pool must be "),
    (NORM_POOL, "axis", [1], "axis must be -1 with max_pool, got 1"),
    (NORM_POOL, "dropout", [0.5], "dropout must be 0 with max_pool, got 0.5"),
    (NORM_POOL, "x", [X, IMAGE[0]], "x must have 4 dimensions"),
    (NORM_BACKWARD, "cache", [None, tuple(CACHE), X], "cache must come from batch_norm_forward in training"),
    *((call, "x", [X, IMAGE[0], IMAGE[None]], "x must have 4 dimensions") for call in (TO_COLUMNS, POOL)),
    *((f, "size", [5, (4, 4), *NO_SIZE], "size must be ") for f in (TO_COLUMNS, TO_IMAGE, POOL, UNPOOL)),
    (TO_COLUMNS, "stride", NO_SIZE, "stride must be "),
    *((call, "padding", [-1, 0.5, (1, -1), None], "padding must be ") for call in (TO_COLUMNS, TO_IMAGE)),
    *((call, "dilation", NO_SIZE, "dilation must be ") for call in (TO_COLUMNS, TO_IMAGE)),
    (
        TO_COLUMNS,
        "dilation",
        [(4, 1), 4],
        r"size must be at most that of the padded image \(4, 3\), got \(2, 2\) spread",
    ),
    *((call, "shape", NO_SHAPE, "shape must be ") for call in (TO_IMAGE, UNPOOL)),
    (TO_IMAGE, "columns", [COLUMNS[:, 1:], X], "columns must have shape"),
    (UNPOOL, "dy", [POOLED[:, 1:], X], "dy must have shape"),
    (UNPOOL, "winner", [None, WINNER.tolist(), WINNER.astype(np.int64), WINNER / 2], "winner must be "),
    (UNPOOL, "winner", [WINNER[:, :1]], "winner must have shape"),
]


@pytest.mark.parametrize(
    ("call", "key", "value", "message"),
    [
        pytest.param(call, key, value, message, id=f"{call[0].__name__}-{key}-{i}")
        for call, key, values, message in BAD_ARGUMENTS
        for i, value in enumerate(values)
    ],
)
def test_a_bad_argument(call, key, value, message, refuses):
    function, arguments = call
    arguments = arguments | {key: value}
    refuses(lambda: function(**arguments), message, arguments["out"])


def test_bias_relu_needs_columns(refuses):
    refuses(lambda: F.bias_relu_forward(np.array(1.0), np.ones(1)), "x must have at least one dimension")
    refuses(lambda: F.bias_relu_backward(np.array(1.0), np.array(1.0)), "dy must have at least one dimension")


@pytest.mark.parametrize("axis", [0, 2])
def test_channels_are_second_or_last(axis, refuses):
    message = f"axis must be 1, or the last axis, 3 or -1, got {axis}"
    refuses(lambda: F.batch_norm_forward(IMAGE, axis=axis, out=OUT["out"]), message, OUT["out"])


def test_one_value_per_channel_has_no_unbiased_variance(refuses):
    running = ramp(4), ramp(4)
    message = "x must have at least 2 values per channel for an unbiased variance, got 1"
    refuses(lambda: F.batch_norm_forward(ramp(1, 4), None, None, *running), message, *running)


# ---- Optimizers -------------------------------------------------------------------------------------


def bad_values(declared):
    """Values that break the rule of a hyperparameter."""
    match declared:
        case Flag():
            return [0, 1, None, "True", np.nan]
        case Choice():
            return ["", "hats", None, 0, True]
    low, high = declared.bounds[1:-1].split(",")
    ends = [float(low)] * (declared.bounds[0] == "(") + [float(high)] * (declared.bounds[-1] == ")")
    beyond = [float(low) - 1, float(high) + 1]
    none = [] if isinstance(declared, Limit) else [None]
    return [np.nan, np.inf, -np.inf, *ends, *beyond, "0.5", *none, [0.1], 0.1j]


def bad_hypers():
    for name, cls in OPTIMIZERS.items():
        for key in cls.hyper_names():
            for value in bad_values(getattr(cls, key)):
                yield pytest.param(name, key, value, id=f"{name}-{key}={value}")


@pytest.mark.parametrize(("name", "key", "value"), list(bad_hypers()))
def test_a_bad_hyperparameter(name, key, value, refuses):
    cls, call = OPTIMIZERS[name], optimizer_call(name)
    arrays = call.arrays
    counter = by_hand(cls, 1)
    hyper = {"lr": 0.5} | {key: value}
    message = f"{key} must be "
    # Values that are equal must not stand in for each other: 1 is not True.
    getattr(functional, name)(**{k: a.copy() for k, a in arrays.items()}, lr=0.5, **counter)
    refuses(lambda: getattr(functional, name)(**arrays, **hyper, **counter), message, *arrays.values())
    refuses(lambda: cls(arrays["param"], **hyper), message, arrays["param"])

    optimizer = cls(arrays["param"], lr=0.5)
    before = optimizer.state_dict()["hyper"]
    refuses(lambda: setattr(optimizer, key, value), message)
    assert optimizer.state_dict()["hyper"] == before


@pytest.mark.parametrize("name", ["beta1", "beta2"])
def test_a_moment_that_never_forgets_is_refused(name, refuses):
    """Its bias correction would divide by zero. (What the other tests refuse, they take from the declarations.)"""
    refuses(lambda: fastopt.Adam(ramp(3), **{name: 1.0}), rf"{name} must be in \[0, 1\), got 1\.0")


@pytest.mark.parametrize("t", [0, -1, 1.0, 1.5, np.nan, "1", None])
@pytest.mark.parametrize("name", [name for name, cls in OPTIMIZERS.items() if cls.counts_steps])
def test_a_bad_step_number(name, t, refuses):
    arrays, more = optimizer_call(name).arrays, by_hand(OPTIMIZERS[name], 1) | {"t": t}
    refuses(lambda: getattr(functional, name)(**arrays, lr=0.1, **more), "t must be ", *arrays.values())


@pytest.mark.parametrize("grad_scale", [np.nan, np.inf, -np.inf, "1", None, np.ones(3), [1.0]], ids=str)
def test_a_bad_grad_scale(any_rule, grad_scale, refuses):
    arrays = optimizer_call(any_rule.name).arrays
    refuses(
        lambda: any_rule.step(*arrays.values(), t=1, grad_scale=grad_scale),
        "grad_scale must be ",
        *arrays.values(),
    )
    refuses_step(any_rule.make(arrays["param"]), arrays["grad"], "grad_scale must be ", refuses, grad_scale=grad_scale)


def refuses_step(optimizer, grads, message, refuses, **more):
    """Asserts that a step is refused with parameters, gradients, state and counter what they were."""
    arrays = checks.labelled(checks.named("param", optimizer.params), optimizer.state).values()
    t = optimizer.t
    refuses(lambda: optimizer.step(grads, **more), message, *arrays)
    assert optimizer.t == t


STRUCTURES = {  # two arrays in each structure, and what the second is called as a parameter and as a gradient
    "list": (lambda a, b: [a, b], r"params\[1\]", r"grads\[1\]"),
    "tuple": (lambda a, b: (a, b), r"params\[1\]", r"grads\[1\]"),
    "dict": (lambda a, b: {"w": a, "b": b}, r"params\[b\]", r"grads\[b\]"),
}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("way", WRONG | WRONG_BESIDE | WRONG_TO_WRITE)
def test_a_wrong_array_among_several(any_rule, structure, way, refuses, same_bits):
    """The last array is the wrong one: nothing has been written when it is found."""
    of, param_label, grad_label = STRUCTURES[structure]
    first, second, grad = ramp(5), ramp(6, 4), ramp(6, 4)
    spoil, message = (WRONG | WRONG_BESIDE | WRONG_TO_WRITE)[way]
    if way not in ("longer", "one axis more"):
        refuses(lambda: any_rule.make(of(first, spoil(second))), f"{param_label} {message}", first, second)
    optimizer = any_rule.make(of(first, second))
    if way in WRONG_TO_WRITE:
        optimizer.step(of(-first, spoil(grad)))  # which is only read
    else:
        refuses_step(optimizer, of(-first, spoil(grad)), f"{grad_label} {message}", refuses)
        optimizer.step(of(-first, grad))
    assert optimizer.t == 1


@pytest.mark.parametrize("structure", STRUCTURES)
def test_overlaps_among_several(any_rule, structure, refuses):
    of, param_label, grad_label = STRUCTURES[structure]
    memory = ramp(20)
    apart_, over = memory[:8], memory[7:15]
    refuses(lambda: any_rule.make(of(apart_, over)), rf"params\[.*\] and {param_label} must not overlap", memory)
    optimizer = any_rule.make(of(memory[:8], memory[8:16]))
    grad = ramp(8)
    arrays = [memory[1:9], memory[12:20], *optimizer.state.get("0", optimizer.state.get("w")).values()]
    for wrong in arrays:
        refuses_step(optimizer, of(grad, wrong), f".*{grad_label}.* must not overlap", refuses)


@pytest.mark.parametrize(
    ("params", "grads", "message"),
    [
        (ramp(3), [ramp(3)], "grads must have the structure of params, ndarray, got list"),
        (ramp(3), {"param": ramp(3)}, "grads must have the structure of params, ndarray, got dict"),
        (ramp(3), None, "grads must have the structure of params, ndarray, got NoneType"),
        ([ramp(3)], ramp(3), "grads must have the structure of params, list, got ndarray"),
        ([ramp(3)], {"0": ramp(3)}, "grads must have the structure of params, list, got dict"),
        ([ramp(3)], None, "grads must have the structure of params, list, got NoneType"),
        ([ramp(3)], "a", "grads must have the structure of params, list, got str"),
        ({"a": ramp(3)}, [ramp(3)], "grads must have the structure of params, dict, got list"),
        ([ramp(3), ramp(3)], [ramp(3)], "grads must hold one array per parameter, but lacks 1"),
        ([ramp(3)], [ramp(3), ramp(3)], "grads must hold one array per parameter, but also has 1"),
        ([], [ramp(3)], "grads must hold one array per parameter, but also has 0"),
        ({"a": ramp(3)}, {}, "grads must hold one array per parameter, but lacks a"),
        ({"a": ramp(3)}, {"b": ramp(3)}, "grads must hold one array per parameter, but lacks a"),
        (
            {"a": ramp(3)},
            {"a": ramp(3), "b": ramp(3)},
            "grads must hold one array per parameter, but also has b",
        ),
    ],
)
def test_gradients_in_another_structure(params, grads, message, any_rule, refuses):
    refuses_step(any_rule.make(params), grads, message, refuses)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (None, "param must be an array, or a list or a dict of arrays, got NoneType"),
        ("w", "param must be an array, or a list or a dict of arrays, got str"),
        (1.0, "param must be an array, or a list or a dict of arrays, got float"),
        ([[1.0, 2.0]], r"params\[0\] must be a NumPy array, got list"),
        ([ramp(3), None], r"params\[1\] must be a NumPy array, got NoneType"),
        ({"a": [ramp(3)]}, r"params\[a\] must be a NumPy array, got list"),
        ({1: ramp(3), "1": ramp(3)}, "param must have keys that differ as text"),
    ],
)
def test_parameters_that_are_no_arrays(params, message, any_rule, refuses):
    refuses(lambda: any_rule.make(params), message)


@pytest.mark.parametrize("several", [[ramp(3), ramp(3)], {"a": ramp(3), "b": ramp(3)}], ids=["list", "dict"])
def test_the_functional_form_takes_one_array(any_rule, several, refuses):
    states = [ramp(3) for _ in any_rule.states]
    refuses(lambda: any_rule.step(several, several, *states, t=1), "param must be a NumPy array", *states)


def test_an_unknown_keyword_is_refused(any_rule):
    with pytest.raises(TypeError, match="learning_rate"):
        any_rule.cls(ramp(3), lr=0.1, learning_rate=0.1)


# ---- What is no plain array ----------------------------------------------------------------------------------


def test_masked_arrays_are_refused():
    param, masked = np.ones(3), np.ma.masked_array(np.ones(3), [1, 0, 0])
    optimizer = fastopt.SGD(param, lr=1.0)
    for call in (lambda: optimizer.step(masked), lambda: F.sgd(param, masked, lr=1.0), lambda: F.relu_forward(masked)):
        with pytest.raises(TypeError, match="must be a plain array, got a masked one"):
            call()
    np.testing.assert_array_equal(param, 1)


def test_a_lone_array_in_a_list_is_no_parameter():
    with pytest.raises(TypeError, match="param must be a NumPy array, got list"):
        F.sgd([np.ones(3)], [np.ones(3)], lr=1.0)


def test_the_output_of_a_loss_apart_from_its_labels():
    memory = np.zeros((2, 4))
    labels = memory.view(np.int64)[0, :2]
    with pytest.raises(ValueError, match="labels and out must not overlap"):
        F.softmax_cross_entropy(np.ones((2, 4)), labels, out=memory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": np.zeros(1)}, r"cache\.mean must have shape \(3,\)"),
        ({"inv_std": np.zeros(3, np.float32)}, r"cache\.inv_std must be float64"),
        ({"scale": np.ones(2)}, r"cache\.scale must have shape \(3,\)"),
        ({"shift": np.ones(3, np.float32)}, r"cache\.shift must be float64"),
        ({"axis": 0}, r"cache\.axis must be 1"),
        ({"relu": 1}, r"cache\.relu must be True or False"),
        ({"x": np.ones((3, 4)).T}, r"cache\.x must be C-contiguous"),
        ({"y": np.ones((4, 2))}, r"cache\.y must have shape \(4, 3\)"),
        ({"factor": "2"}, r"cache\.factor must be a number"),
    ],
)
def test_a_wrong_cache(change, message):
    _, cache = F.batch_norm_forward(np.arange(12.0).reshape(4, 3), np.ones(3))
    with pytest.raises((TypeError, ValueError), match=message):
        F.batch_norm_backward(np.ones((4, 3)), cache._replace(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": None}, r"cache\.chosen must be a NumPy array"),
        ({"chosen": np.ones((1, 2, 2, 2), np.float32)}, r"cache\.chosen must have shape \(1, 2, 1, 2\)"),
        ({"x": np.ones((4, 3))}, r"cache\.x must have 4 dimensions"),
        ({"axis": 1}, r"cache\.axis must be -1 with max_pool, got 1"),
        ({"max_pool": (5, 1)}, r"cache\.max_pool must be at most the size of the images, \(4, 3\), got \(5, 1\)"),
    ],
)
def test_a_wrong_cache_of_max_pooling(change, message):
    dscale, before = np.ones(2, np.float32), np.ones(2, np.float32)
    with pytest.raises((TypeError, ValueError), match=message):
        F.batch_norm_backward(POOLED, POOL_CACHE._replace(**change), dscale=dscale)
    np.testing.assert_array_equal(dscale, before)


def test_what_max_pooling_refuses_beside(refuses):
    """And what it takes: one array for scale and shift, which is only read."""
    vector = ramp(2)
    F.batch_norm_forward(IMAGE, vector, vector, axis=-1, max_pool=2)
    running = ramp(2), ramp(2)
    memory = np.ones(POOLED.size, np.float32)
    refuses(
        lambda: F.batch_norm_forward(
            IMAGE, None, None, memory[:2], running[1], axis=-1, max_pool=2, out=memory.reshape(POOLED.shape)
        ),
        "(out and running_mean|running_mean and out) must not overlap",
        memory,
        running[1],
    )
    refuses(
        lambda: F.batch_norm_forward(IMAGE, axis=-1, chosen=POOLED), "chosen must not be given without max_pool", IMAGE
    )
    x = POOL_CACHE.x
    refuses(
        lambda: F.batch_norm_backward(POOLED, POOL_CACHE, dscale=x.reshape(-1)[:2]),
        r"(dscale and cache\.x|cache\.x and dscale) must not overlap",
        x,
    )


# ---- What a cache or a shortcut must not hide ------------------------------------------------------


def test_what_is_remembered():
    calls = []
    function = _kernels.Remembered(lambda *values: calls.append(values) or len(calls))
    assert [function(1, (2, 3)), function(1, (2, 3)), function(True, (2, 3)), function(1.0, (2, 3))] == [1, 1, 2, 3]
    assert [function(1, (2, 3)), function([]), function([])] == [1, 4, 5]
    number = Changing(0.0)
    assert [function(number), function(number), function(np.float64(2)), function(np.float64(2))] == [6, 7, 8, 9]
    assert [function(i) for i in range(100)] == list(range(10, 110))
    assert [function(99), function(0)] == [109, 110]


class Changing:
    """A number that is another one at each reading, as a tensor of another library may be."""

    def __init__(self, *values):
        self.values = list(values)

    def __float__(self):
        return self.values.pop(0)


def test_a_number_that_changes_is_read_each_time():
    param, lr = np.zeros(3), Changing(1.0, 0.25)
    for _ in range(2):
        functional.sgd(param, -np.ones(3), lr=lr)
    np.testing.assert_array_equal(param, 1.25)
    p = Changing(0.0, 0.75)
    kept = [functional.dropout(np.ones(4096), p, seed=0, counter=0, mask_format="bytes")[1].mean() for _ in range(2)]
    assert kept[0] == 1
    assert kept[1] < 0.5


def test_an_unhashable_number():
    param = np.zeros(3)
    functional.sgd(param, -np.ones(3), lr=np.array(0.5))
    np.testing.assert_array_equal(param, 0.5)


def test_a_refused_array_takes_no_memory(refuses):
    vast = np.broadcast_to(np.float32(1), (10**14,))
    refuses(lambda: functional.relu_forward(vast), "x must be C-contiguous")


def test_an_output_is_an_array(refuses):
    out = memoryview(np.zeros(4, np.float32))
    refuses(
        lambda: functional.relu_forward(np.ones(4, np.float32), out=out), "out must be a NumPy array, got memoryview"
    )


def test_images_without_channels():
    shape = (1, 1 << 12, 1 << 12, 0)
    y, winner = functional.max_pool_forward(np.empty(shape), 2)
    assert functional.max_pool_backward(y, winner, shape, 2).shape == shape
    columns = functional.im2col(np.empty(shape), 3)
    assert functional.col2im(columns, shape, 3).shape == shape
