"""What the rows of kernels.def say of layer kernels: how Python reads it, how C checks it, and what messages say."""

import numpy as np
import pytest

from fastopt import _kernels, functional
from fastopt.hyper import Choice
from fastopt.kernel import Argument, Axis, Signature, dimension, kernel, read
from fastopt.optimizers import OPTIMIZERS

SIGNATURES = {name: Signature(name, *read(text)) for name, text in _kernels.LAYERS.items()}


# ---- Rows ---------------------------------------------------------------------------------------------------


def test_a_row_is_read():
    assert read(
        "const real *x SHAPE(rows..., n), *scale OPTIONAL SHAPE(n);"
        " double *sum IN_PLACE(x) SHAPE((n + 1) / 2, f(n, 3)); extent rows, n; int64_t k; double eps"
    ) == (
        (
            Argument("x", "real", False, False, "", (Axis("rows..."), Axis("n"))),
            Argument("scale", "real", True, False, "", (Axis("n"),)),
            Argument("sum", "double", False, True, "x", (Axis("(n + 1) / 2"), Axis("f(n, 3)"))),
        ),
        {"rows": "extent", "n": "extent", "k": "int64_t", "eps": "double"},
    )


@pytest.mark.parametrize("signature", SIGNATURES.values(), ids=list(SIGNATURES))
def test_a_row_is_sound(signature):
    """Arrays that are read come first; names are known; extents follow from arrays that are always read."""
    written = [argument.written for argument in signature.arrays]
    assert written == sorted(written)
    assert any(written)
    told = {
        axis.name
        for argument in signature.arrays
        if not argument.written and not argument.optional and sum(axis.fold for axis in argument.axes) <= 1
        for axis in argument.axes
    }
    extents = {name for name, kind in signature.numbers.items() if kind == "extent"}
    assert extents <= told
    known = dict.fromkeys(signature.numbers, 1)
    for argument in signature.arrays:
        assert argument.in_place in ("", *(other.name for other in signature.arrays if not other.written))
        for axis in argument.axes:
            assert axis.length(known) is not None, axis.text


def test_the_order_of_a_struct_is_pointers_integers_doubles():
    for signature in SIGNATURES.values():
        kinds = [("extent", "int64_t", "uint64_t").count(kind) for kind in signature.numbers.values()]
        assert kinds == sorted(kinds, reverse=True), signature.name


def test_choices_are_those_of_the_functions():
    assert _kernels.CHOICES["activation"] == functional.ACTIVATIONS


@pytest.mark.parametrize("cls", OPTIMIZERS.values(), ids=lambda cls: cls.__name__)
def test_choices_are_those_of_the_optimizers(cls):
    """In the same order: the number of a word is its place. An optimizer may leave out the last ones."""
    for name, declared in cls.declared.items():
        if isinstance(declared, Choice):
            words = _kernels.CHOICES[name]
            assert declared.options == words[: len(declared.options)]


def test_choices_of_optimizers_are_all_taken():
    taken = {word for cls in OPTIMIZERS.values() if "eps_mode" in cls.declared for word in cls.eps_mode.options}
    assert taken == {*_kernels.CHOICES["eps_mode"]}


# ---- Expressions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((28, 3, 1, 1, 1), 28),
        ((5, 5, 1, 0, 1), 1),
        ((4, 5, 1, 0, 1), None),
        ((9, 3, 2, 1, 2), 4),
        ((5, 3, 0, 0, 1), None),
        ((2**62, 3, 1, 2**62, 1), None),
    ],
)
def test_windows(sizes, expected):
    assert dimension("windows", *sizes) == expected


def test_c_computes_the_same_lengths():
    """Of the windows of pooling: whatever C makes, Python expects."""
    pool = kernel("average_pool_forward")
    rng = np.random.default_rng(20)
    for h, w, kh, kw, sh, sw in rng.integers(1, 12, (300, 6)).tolist():
        wanted = dimension("windows", h, kh, sh, 0, 1), dimension("windows", w, kw, sw, 0, 1)
        x = np.zeros((2, h, w, 3), np.float32)
        if None in wanted:
            with pytest.raises(_kernels.Misfit):
                pool(x, None, kh, kw, sh, sw)
        else:
            assert pool(x, None, kh, kw, sh, sw).shape == (2, *wanted, 3)


# ---- Sizes beyond what C counts -----------------------------------------------------------------------------

IMAGE = np.ones((1, 4, 4, 1), np.float32)
WEIGHT = np.ones((3, 3, 1, 16), np.float32)
VAST = [2**31, 2**32, 2**62, 2**63, 2**64, 2**64 + 1, 2**70]
WITH_WINDOWS = {
    "conv2d": lambda **how: functional.conv2d(IMAGE, WEIGHT, **how),
    "conv2d_weight_grad": lambda **how: functional.conv2d_weight_grad(
        IMAGE, np.ones((1, 2, 2, 16), np.float32), 3, **how
    ),
    "im2col": lambda **how: functional.im2col(IMAGE, 2, **how),
    "col2im": lambda **how: functional.col2im(np.ones((1, 3, 3, 2, 2, 1), np.float32), (1, 4, 4, 1), 2, **how),
    "depthwise_forward": lambda **how: functional.depthwise_forward(IMAGE, np.ones((2, 2, 1), np.float32), **how),
    "max_pool_forward": lambda **how: functional.max_pool_forward(IMAGE, **{"size": 2} | how),
    "average_pool_forward": lambda **how: functional.average_pool_forward(IMAGE, **{"size": 2} | how),
}
OPTIONS = dict.fromkeys(WITH_WINDOWS, ("stride", "padding")) | {
    **dict.fromkeys(("im2col", "col2im", "depthwise_forward"), ("stride", "padding", "dilation")),
    **dict.fromkeys(("max_pool_forward", "average_pool_forward"), ("stride", "size")),
}


@pytest.mark.parametrize(("name", "option"), [(name, option) for name in WITH_WINDOWS for option in OPTIONS[name]])
@pytest.mark.parametrize("value", VAST)
def test_vast_windows_are_refused(name, option, value, refuses):
    for given in (value, (1, value)):
        refuses(lambda given=given: WITH_WINDOWS[name](**{option: given}), f"{option} must be at most ")


@pytest.mark.parametrize("value", [2**62, 2**63, 2**64, 2**64 + 1])
def test_vast_shapes_are_refused(value, refuses):
    pooled = np.ones((1, 2, 2, 1), np.float32)
    shape = (1, value, 4, 1)
    refuses(lambda: functional.average_pool_backward(pooled, shape, 2), "shape must be |dy must have shape")
    refuses(
        lambda: functional.col2im(np.ones((1, 3, 3, 2, 2, 1), np.float32), shape, 2), "shape must|columns must have"
    )
    refuses(
        lambda: functional.embedding_backward(np.ones((2, 3)), np.zeros(2, int), value),
        "count must|out must|Maximum|array is too",
    )


# ---- The bridge ---------------------------------------------------------------------------------------------


def test_the_number_of_arguments():
    with pytest.raises(TypeError, match="dense_forward takes 4 arrays and 1 options"):
        kernel("dense_forward")(np.ones((2, 3)))


def test_an_option_that_is_no_number(refuses):
    x = np.ones((2, 3))
    refuses(lambda: kernel("dense_forward")(x, x.T.copy(), None, None, "yes"), "relu must be an integer, got 'yes'")
    refuses(lambda: kernel("dense_forward")(x, x.T.copy(), None, None, -1), r"relu must be in \[0, ")


def test_a_check_writes_nothing_and_returns_what_a_call_would():
    x, out = -np.ones(9), np.full(9, 7.0)
    run = kernel("relu_forward", y="out")
    assert run.check(x, out) is out
    assert (out == 7).all()
    assert run.check(x, None).shape == (9,)
    with pytest.raises(ValueError, match=r"out must have shape \(9,\), got \(8,\)"):
        run.check(x, out[1:])


def test_absent_outputs():
    x, dy = np.ones((2, 3)), np.ones((2, 4))
    dweight, dbias = kernel("dense_weight_grad")(x, dy, None, None)
    assert dweight.shape == (3, 4)
    assert dbias is None


def test_messages_call_arguments_as_the_function_does(refuses):
    run = kernel("softmax_backward", dy="cotangent", dx="out")
    refuses(lambda: run(1, 2, None), "cotangent must be a NumPy array, got int")
    refuses(lambda: run(np.ones((2, 3)), np.ones((3, 2)), None), r"y must have shape \(2, 3\), got \(3, 2\)")
    refuses(lambda: run(np.ones(()), np.ones(()), None), r"cotangent must have at least one dimension")


def test_a_row_that_needs_more_than_the_bridge_has_room_for():
    with pytest.raises(ValueError, match="more arguments than the bridge has room for"):
        _kernels.Layer("relu_forward", [(0, False, False, -1, -1, [])] * 13, [], -1, print)
