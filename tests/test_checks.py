"""What is refused: the message names the argument and the rule, and nothing at all has been changed."""

import functools
import inspect
import itertools
import re

import numpy as np
import pytest
from conftest import noted

import fastopt
from fastopt import _kernels, cases, checks, functional
from fastopt.cases import by_hand
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


class Says:
    """Converts itself to whatever it is told."""

    def __init__(self, value):
        self.value = value

    def __float__(self):
        return self.value

    __index__ = __float__


@pytest.mark.parametrize(
    "value",
    [np.str_("0.5"), np.array("0.5"), np.bytes_(b"1"), np.complex64(0.5 + 1j), np.array(0.5j), np.array("1", object),
     np.array([0.5]), np.array([[0.5]]), Says("0.5"), Says(1), Says(None)],
    ids=repr,
)  # fmt: skip
def test_what_only_looks_like_a_number(value):
    """NumPy reads its text, and drops the imaginary part of its complex numbers."""
    with pytest.raises(TypeError, match=r"^lr must be a number in \[0, 1\], got "):
        checks.number("lr", value, "[0, 1]")
    with pytest.raises(TypeError, match=r"^lr must be a number in "):
        fastopt.SGD(np.ones(3), lr=value)
    assert checks.number("lr", Says(0.5)) == checks.number("lr", np.array(0.5)) == 0.5


@pytest.mark.parametrize("value", [1.5, "1", None, [1], np.nan])
def test_what_only_looks_like_an_integer(value):
    with pytest.raises(TypeError, match=r"^t must be an integer, got "):
        checks.integer("t", Says(value), 0)
    assert checks.integer("t", Says(3), 0) == 3


def test_lengths():
    assert checks.lengths("shape", [3, np.int8(0), 2**62]) == (3, 0, 2**62)
    for value in (3, None, "ab", np.array([1, 2]), {1: 2}):
        with pytest.raises(TypeError, match=r"^shape must be a tuple of integers, got "):
            checks.lengths("shape", value)
    for value in ((-1,), (2**62 + 1,), (2**64, 1)):
        with pytest.raises(ValueError, match=r"^shape must be in "):
            checks.lengths("shape", value)
    with pytest.raises(TypeError, match=r"^shape must be an integer"):
        checks.lengths("shape", (1, 2.0))


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
    "masked": (lambda a: np.ma.masked_array(a), "must be a plain array, got a masked one"),
    "unaligned": (unaligned, "must be aligned to its element size"),
}
# Wrong beside another argument that sets type and shape; and wrong where it is written to.
WRONG_BESIDE = {
    "other type": (other_real, r"must be float(32, got float64|64, got float32)"),
    "longer": (lambda a: np.concatenate([a, a]), r"must have (shape |\d+ elements)"),
    "one axis more": (lambda a: a[None], r"must have (shape |\d+ elements|\d+ dimensions)"),
}
WRONG_TO_WRITE = {"read-only": (read_only, "must be writable, got a read-only array")}


def test_a_transposed_matrix_is_not_contiguous():
    with pytest.raises(ValueError, match=r"make it so with np.ascontiguousarray\(w\)"):
        checks.array("w", np.ones((2, 3)).T)


def ramp(*shape: int) -> np.ndarray:
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


class Call:
    """A case with small float32 arguments that fit, the outputs among them."""

    def __init__(self, case):
        self.case = case
        arguments = case.arguments(cases.normal(np.float32), case.edges[1], case.options[0])
        results = case.run(cases.map_arrays(np.copy, arguments))
        outputs = case.places(results)
        self.arguments = arguments | outputs
        self.written = (*outputs, *case.updates)
        #: What is tested: reals, and where results go. Of masks, labels and the like there are tests below.
        self.arrays = {
            key: value
            for key, value in self.arguments.items()
            if isinstance(value, np.ndarray) and (value.dtype.kind == "f" or key in outputs)
        }
        self.free = (next(iter(arguments)), *case.free)

    def ways(self, key):
        """How an array can be wrong, and what is then said of it."""
        if self.arrays[key].dtype.kind != "f":
            ways = {"gaps": WRONG["gaps"]} if self.arrays[key].size > 1 else {}
        elif key == self.free[0]:
            ways = WRONG
        else:
            ways = WRONG | ({} if key in self.free else WRONG_BESIDE)
            if key == "grad" and "param" in self.arrays:  # a step copies it
                ways = {way: each for way, each in ways.items() if way != "gaps"}
            if key in self.case.any_shape:
                del ways["one axis more"]
        return ways | (WRONG_TO_WRITE if key in self.written else {})

    def refuses(self, refuses, wrong: dict[str, object], message: str) -> None:
        arguments = self.arguments | wrong
        refuses(lambda: self.case.function(**arguments), message, *cases.arrays_in(arguments))


#: Those that tell what does not fit. (The others are run by the functions that do.)
CHECKED = {name: case for name, case in cases.CASES.items() if hasattr(functional, name.split()[0])}


@pytest.fixture(params=CHECKED.values(), ids=str)
def call(request) -> Call:
    return Call(request.param)


def test_what_fits_is_taken(call):
    arguments = cases.map_arrays(np.copy, call.arguments)
    results = call.case.run(arguments)
    assert any(arguments[key].tobytes() != call.arguments[key].tobytes() for key in call.written)
    assert all(np.isfinite(result).all() for result in results)


def test_a_wrong_array(call, refuses):
    for key, a in call.arrays.items():
        for way, (spoil, message) in call.ways(key).items():
            with noted(key, way):
                # A gradient that is no array at all has the wrong structure: those are called grads.
                call.refuses(refuses, {key: spoil(a)}, f"{key}s? {message}")


@pytest.mark.parametrize("shift", [1, -1])
def test_overlapping_arrays(call, shift, refuses):
    """Of all pairs of which one is written to."""
    for one, other in itertools.combinations(call.arrays, 2):
        if not {one, other} & set(call.written):
            continue
        a, b = call.arrays[one], call.arrays[other]
        memory = np.zeros(a.nbytes + b.nbytes + 32, np.uint8)

        def at(start, like, memory=memory):
            return memory[start : start + like.nbytes].view(like.dtype).reshape(like.shape)

        over = {one: at(16, a), other: at(24 if shift > 0 else 16 - min(8, (b.nbytes - 1) // 8 * 8), b)}
        with noted(one, other):
            message = f"({one} and {other}|{other} and {one}) must not overlap in memory; copy one of them"
            call.refuses(refuses, over, message)


NOT_IN_PLACE = [
    case
    for case in cases.LAYERS.values()
    if hasattr(functional, case.name.split()[0]) and not case.in_place and "out" in case.outputs
]


@pytest.mark.parametrize("case", NOT_IN_PLACE, ids=str)
def test_what_is_not_done_in_place(case, refuses):
    """Where the output has the shape of an input, and may not be that input."""
    call = Call(case)
    out = call.arrays["out"]
    for key, a in call.arrays.items():
        if key not in call.written and (a.shape, a.dtype) == (out.shape, out.dtype):
            own = a.copy()
            call.refuses(refuses, {key: own, "out": own}, f"({key} and out|out and {key}) must not overlap")


@pytest.mark.parametrize("name", [name for name, case in CHECKED.items() if case.free])
def test_arrays_of_two_types(name, refuses):
    """Whichever of them is the odd one out, one is named."""
    call = Call(CHECKED[name])
    for key in call.free:
        call.refuses(
            refuses, {key: other_real(call.arrays[key])}, r"\w+ must be float(32, got float64|64, got float32)"
        )


# ---- Arguments of the layer functions ---------------------------------------------------------------

X, LABELS = ramp(6, 4), np.arange(6) % 4
CACHE = functional.batch_norm_forward(ramp(6, 4), np.ones(4, np.float32))[1]
WINNER = functional.max_pool_forward(ramp(1, 4, 3, 2), 2)[1]
IMAGE, POOLED, COLUMNS = ramp(1, 4, 3, 2), ramp(1, 2, 1, 2), ramp(1, 3, 2, 2, 2, 2)
POOL_CACHE = functional.batch_norm_forward(IMAGE.copy(), axis=-1, max_pool=2)[1]
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
INFERENCE = (
    F.batch_norm_forward,
    {"x": X, "running_mean": ramp(4), "running_var": ramp(4), "training": False} | OUT,
)
SCATTER = F.embedding_backward, {"dy": X, "entries": LABELS, "count": 4, "out": ramp(4, 4)}
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
NO_INTEGER = [-1, 2**64, 2**64 + 1, 1.0, np.float64(1), np.nan, None, "1"]
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
    (DROPOUT, "mask", [3, [3], b"abc", memoryview(b"abc")], "mask must be a NumPy array, got "),
    *((call, "mask", [np.ma.masked_array(X > 0)], "mask must be a plain array") for call in (APPLY, BACKWARD)),
    (ENTROPY, "labels", [np.ma.masked_array(LABELS)], "labels must be a plain array"),
    *((call, "mask", NO_MASK, r"mask must be uint8 bits of shape \(3,\)") for call in (APPLY, BACKWARD)),
    (DROPOUT, "mask_format", ["bit", None, bool], "mask_format must be one of 'bits', 'bytes'"),
    *((call, "seed", NO_INTEGER, "seed must be ") for call in (DROPOUT, FUSED)),
    *((call, "counter", NO_INTEGER, "counter must be ") for call in (DROPOUT, FUSED)),
    *((call, "first", [*NO_INTEGER, -1, 2**63], "first must be ") for call in (DROPOUT, FUSED)),
    (FUSED, "x", [np.array(1.0)], "x must have at least one dimension"),
    (FUSED, "bias", [ramp(5), ramp(1, 4)], r"bias must have shape \(4,\)"),
    (FUSED_BACKWARD, "dy", [np.array(1.0)], "dy must have at least one dimension"),
    (NORM, "x", [ramp(24), np.array(1.0)], "x must have shape"),
    *((NORM, key, NO_INTEGER, f"{key} must be ") for key in ("seed", "counter")),
    *((call, "sums", [3, np.ones(3)], "sums must be ") for call in (NORM, NORM_BACKWARD)),
    *((INFERENCE, key, [3, ramp(4)], f"{key} must be ") for key in ("mean", "inv_std")),
    (SCATTER, "count", [0, -1, 2**63, 2**64, 2**64 + 1, 1.5, None], "count must be "),
    (NORM, "eps", [-1e-5, *NO_NUMBER], "eps must be "),
    (NORM, "momentum", [-0.1, 1.1, *NO_NUMBER], "momentum must be "),
    (NORM, "momentum_of", ["mean", None], "momentum_of must be one of 'new', 'old'"),
    (NORM, "unbiased", [1, None], "unbiased must be True or False"),
    (NORM, "training", [1, None, "no"], "training must be True or False"),
    (NORM, "relu", [1, None, "yes"], "relu must be True or False"),
    (NORM, "dropout", [1.0, -0.1, *NO_NUMBER], "dropout must be "),
    (NORM, "dropout", [0.5], "dropout must be 0 without relu=True, got 0.5"),
    (NORM, "axis", [1.0, "last", (1,)], "axis must be an integer"),
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


def test_a_seed_is_an_integer_of_any_kind(same_bits):
    for seed, counter in ((True, False), (np.int64(1), np.uint8(0)), (np.array(1), 0)):
        for one, other in zip(F.dropout(X, 0.5, seed=seed, counter=counter), F.dropout(X, 0.5, seed=1, counter=0),
                              strict=True):  # fmt: skip
            same_bits(one, other)


# ---- Sizes beyond 64 bits ---------------------------------------------------------------------------

#: Functions of windows, with arguments that fit: stride, padding and the like are then beyond all sizes.
OF_WINDOWS = [
    (F.im2col, {"x": IMAGE, "size": 2}),
    (F.col2im, {"columns": COLUMNS, "shape": IMAGE.shape, "size": 2}),
    (F.patches_shape, {"shape": IMAGE.shape, "size": 2}),
    (F.max_pool_forward, {"x": IMAGE, "size": 2}),
    (F.max_pool_backward, {"dy": POOLED, "winner": WINNER, "shape": IMAGE.shape, "size": 2}),
    (F.average_pool_forward, {"x": IMAGE, "size": 2}),
    (F.average_pool_backward, {"dy": POOLED, "shape": IMAGE.shape, "size": 2}),
    (F.conv2d, {"x": IMAGE, "weight": ramp(2, 2, 2, 16)}),
    (F.conv2d_input_grad, {"dy": ramp(1, 3, 2, 16), "weight": ramp(2, 2, 2, 16), "shape": IMAGE.shape}),
    (F.conv2d_weight_grad, {"x": IMAGE, "dy": ramp(1, 3, 2, 16), "size": 2}),
    (F.conv2d_fits, {"shape": IMAGE.shape, "filters": 16, "size": 2}),
    (F.winograd_fits, {"weight": (3, 3, 16, 16)}),
    (F.depthwise_forward, {"x": IMAGE, "weight": ramp(2, 2, 2)}),
    (F.depthwise_backward, {"dy": ramp(1, 3, 2, 2), "x": IMAGE, "weight": ramp(2, 2, 2)}),
    (F.batch_norm_forward, {"x": IMAGE, "axis": -1}),
]
SIZES_OF_WINDOWS = [
    pytest.param(function, arguments, key, id=f"{function.__name__}-{key}")
    for function, arguments in OF_WINDOWS
    for key in ("size", "stride", "padding", "dilation", "max_pool")
    if key in inspect.signature(function).parameters
]


@pytest.mark.parametrize(("function", "arguments", "key"), SIZES_OF_WINDOWS)
def test_a_size_beyond_64_bits(function, arguments, key, refuses):
    function(**arguments)
    for value in (2**31, 2**62, 2**63, 2**64, 2**64 + 1, 2**65, 10**400):
        for each in (value, (1, value), (value, 1), -value):
            refuses(lambda each=each: function(**arguments | {key: each}), f"{key} must be ")


VAST = [
    (2**31, 2**31, 2**31, 2**31), (2**31, 2**31, 2**31, 0), (2**62, 1, 1, 1), (1, 2**62, 2**62, 1),
    (0, 2**62, 2**62, 2), (1, 2**63 - 1, 3, 2), (1, 3, 2**63 - 1, 2), (2**63, 1, 1, 1), (2**64, 4, 3, 2),
    (2**64 + 1, 4, 3, 2),
]  # fmt: skip


MISFITS = "(shape|size|dy|columns|weight|x and weight) must "


@pytest.mark.parametrize("shape", VAST, ids=str)
def test_a_vast_shape(shape, refuses):
    """As that of an image whose gradient is wanted."""
    for function, arguments in OF_WINDOWS:
        if "shape" in arguments and function not in (F.patches_shape, F.conv2d_fits):
            out = IMAGE * 1
            refuses(lambda f=function, a=arguments, o=out: f(**a | {"shape": shape, "out": o}), MISFITS)
    for function, more in ((F.patches_shape, {}), (F.conv2d_fits, {"filters": 16})):
        for padding in (0, 2**31 - 1):
            try:
                function(shape=shape, size=1, padding=padding, **more)
            except ValueError as error:
                assert str(error).startswith("shape must be in [0, 4611686018427387904], got ")  # noqa: PT017


def test_what_holds_no_element_takes_no_time():
    """Though loops over its other axes would."""
    none = functools.partial(np.empty, dtype=np.float32)
    F.relu_forward(none((2**31, 2**20, 0)))
    F.bias_backward(none((2**57, 0)))
    F.dense_weight_grad(none((2**57, 0)), none((2**57, 0)))
    F.im2col(none((2**20, 2**20, 1, 0)), 1)
    F.max_pool_forward(none((2**20, 2**20, 1, 0)), 1)
    F.depthwise_backward(none((2**29, 2**29, 1, 0)), none((2**29, 2**29, 1, 0)), none((1, 1, 0)))
    for x in (none((2**57, 3, 0)), none((0, 3, 2**57))):
        y, cache = F.batch_norm_forward(x, axis=1)
        F.batch_norm_backward(y, cache)
    for x in (none((3, 2**57, 0)), none((0, 2**57, 3))):
        y, cache = F.group_norm_forward(x, 1)
        F.group_norm_backward(y, cache)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: F.packed_shape(3), "weight must be a shape"),
        (lambda: F.packed_shape((3, 3, 16)), "weight must be a shape"),
        (lambda: F.packed_shape((3, 3, "16", 16)), "weight must be an integer"),
        (lambda: F.packed_shape((3, 3, 2**64, 16)), "weight must be in"),
        (lambda: F.packed_shape((3, 3, 16, 16), reverse=1), "reverse must be True or False"),
        (lambda: F.packed_shape((3, 3, 16, 16), winograd="no"), "winograd must be True or False"),
        (lambda: F.winograd_fits((3, 3)), "weight must be a shape"),
        (lambda: F.winograd_fits((3, 3, 16.0, 16)), "weight must be an integer"),
        (lambda: F.winograd_fits((3, 3, 16, 16), "1"), "stride must be an integer"),
        (lambda: F.conv2d_fits(IMAGE.shape, np.nan, 2), "filters must be an integer"),
        (lambda: F.conv2d_fits(IMAGE.shape, -1, 2), "filters must be at least 0"),
        (lambda: F.batch_norm_sums_shape(3), "the shape of x must be a tuple of integers"),
        (lambda: F.batch_norm_sums_shape((-3, 3)), "the shape of x must be in"),
        (lambda: F.batch_norm_sums_shape((3, 3.5)), "the shape of x must be an integer"),
        (lambda: F.winner_type(np.float16), "real must be float32 or float64"),
        (lambda: F.winner_type("x"), "real must be float32 or float64"),
    ],
)
def test_what_shapes_follow_from(call, message, refuses):
    refuses(call, message)


def test_shapes_of_small_integers():
    """Products of NumPy's integers would overflow."""
    small = [np.int16(n) for n in (9001, 6, 7, 16)]
    assert F.patches_shape(small, np.int8(3)) == F.patches_shape((9001, 6, 7, 16), 3)
    assert F.conv2d_fits(small, np.int8(16), np.int8(3)) == F.conv2d_fits((9001, 6, 7, 16), 16, 3)
    assert F.batch_norm_sums_shape(small, -1) == F.batch_norm_sums_shape((9001, 6, 7, 16), -1)
    assert F.packed_shape([np.int8(n) for n in (3, 3, 127, 127)]) == F.packed_shape((3, 3, 127, 127))


def test_winograd_fits_a_stride_in_any_form():
    assert all(F.winograd_fits([3, 3, 16, 16], stride) for stride in (1, (1, 1), [1, 1], np.int8(1)))


@pytest.mark.parametrize("threads", [1, 2])
def test_sums_are_checked_for_any_number_of_threads(threads, refuses):
    x, before = np.ones((70_000, 3), np.float32), fastopt.get_num_threads()
    fastopt.set_num_threads(2)
    shape = F.batch_norm_sums_shape(x.shape)
    fastopt.set_num_threads(threads)
    try:
        _, cache = F.batch_norm_forward(x, sums=np.empty(shape))
        F.batch_norm_backward(x, cache, sums=np.empty(shape))
        out = np.empty(x.shape, np.float32)
        inside = out.reshape(-1)[: 2 * np.prod(shape)].view(np.float64).reshape(shape)
        for sums, message in (
            (3, "sums must be a NumPy array"), (np.empty(shape, np.float32), "sums must be float64"),
            (np.empty((1, 2, 3)), "sums must have shape"), (read_only(np.empty(shape)), "sums must be writable"),
            (inside, "(sums and out|out and sums) must not overlap"),
        ):  # fmt: skip
            refuses(lambda sums=sums: F.batch_norm_forward(x, sums=sums, out=out), message, out)
            refuses(lambda sums=sums: F.batch_norm_backward(x, cache, sums=sums, out=out), message, out)
        refuses(lambda: F.batch_norm_forward(x[:5], sums=np.empty(shape)), "sums must be None where ")
    finally:
        fastopt.set_num_threads(before)


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


def step_arrays(name):
    return {key: ramp(6, 4) for key in ("param", "grad", *OPTIMIZERS[name].state_names())}


HYPERS = [(name, key) for name, cls in OPTIMIZERS.items() for key in cls.hyper_names()]


@pytest.mark.parametrize(("name", "key"), HYPERS)
def test_a_bad_hyperparameter(name, key, refuses):
    cls, arrays = OPTIMIZERS[name], step_arrays(name)
    counter, message = by_hand(cls, 1), f"{key} must be "
    # Values that are equal must not stand in for each other: 1 is not True.
    getattr(functional, name)(**{k: a.copy() for k, a in arrays.items()}, lr=0.5, **counter)
    optimizer = cls(arrays["param"], lr=0.5)
    before = optimizer.state_dict()["hyper"]
    for value in bad_values(getattr(cls, key)):
        with noted(value):
            hyper = {"lr": 0.5} | {key: value}
            refuses(
                lambda hyper=hyper: getattr(functional, name)(**arrays, **hyper, **counter), message, *arrays.values()
            )
            refuses(lambda hyper=hyper: cls(arrays["param"], **hyper), message, arrays["param"])
            refuses(lambda value=value: setattr(optimizer, key, value), message)
            assert optimizer.state_dict()["hyper"] == before


@pytest.mark.parametrize("name", ["beta1", "beta2"])
def test_a_moment_that_never_forgets_is_refused(name, refuses):
    """Its bias correction would divide by zero. (What the other tests refuse, they take from the declarations.)"""
    refuses(lambda: fastopt.Adam(ramp(3), **{name: 1.0}), rf"{name} must be in \[0, 1\), got 1\.0")


@pytest.mark.parametrize("t", [0, -1, 1.0, 1.5, np.nan, "1", None])
@pytest.mark.parametrize("name", [name for name, cls in OPTIMIZERS.items() if cls.counts_steps])
def test_a_bad_step_number(name, t, refuses):
    arrays, more = step_arrays(name), by_hand(OPTIMIZERS[name], 1) | {"t": t}
    refuses(lambda: getattr(functional, name)(**arrays, lr=0.1, **more), "t must be ", *arrays.values())


@pytest.mark.parametrize("grad_scale", [np.nan, np.inf, -np.inf, "1", None, np.ones(3), [1.0]], ids=str)
def test_a_bad_grad_scale(any_rule, grad_scale, refuses):
    arrays = step_arrays(any_rule.name)
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
    if way in WRONG_TO_WRITE or way == "gaps":
        optimizer.step(of(-first, spoil(grad)))  # which is only read, and may be copied
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
        ({"a": [ramp(3), None]}, r"params\[a.1\] must be a NumPy array, got NoneType"),
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
    with pytest.raises(ValueError, match="out and labels must not overlap"):
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


def test_what_is_memoised():
    calls = []
    function = _kernels.Memoised(lambda *values: calls.append(values) or len(calls))
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
