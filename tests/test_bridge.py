"""What the bridge takes and refuses, though nobody but this library calls it; and what it does without memory."""

import re

import numpy as np
import pytest
from test_checks import CHECKED, Call, unaligned
from test_dispatch import python

import fastopt
from fastopt import _kernels, cases, functional, kernel
from fastopt.cases import map_arrays
from fastopt.optimizers import OPTIMIZERS

# ---- Formats ------------------------------------------------------------------------------------------------


def ordered(a: np.ndarray) -> np.ndarray:
    """The same native numbers, by NumPy's idiom for foreign ones: their buffer's format says the byte order."""
    foreign = a.astype(a.dtype.newbyteorder(">"))
    native = foreign.byteswap().view(foreign.dtype.newbyteorder())
    assert native.dtype == a.dtype
    assert a.itemsize == 1 or memoryview(native).format[0] == "<"
    return native


@pytest.mark.parametrize("name", CHECKED)
def test_native_numbers_whose_format_says_so(name, dtype, same_bits):
    case = CHECKED[name]
    arguments = case.arguments(cases.normal(dtype), case.edges[1], case.options[0])
    expected = case.run(map_arrays(np.copy, arguments))
    given = map_arrays(ordered, arguments)
    out = map_arrays(ordered, case.places(expected))
    for one, other in zip(case.run(given | out), expected, strict=True):
        same_bits(one, other)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_of_such_numbers(name, same_bits):
    param, other, grad = ordered(np.arange(1.0, 8)), np.arange(1.0, 8), np.full(7, 0.5)
    for params, grads in ((param, grad), (other, ordered(grad))):
        optimizer = OPTIMIZERS[name](params, lr=0.1)
        getattr(optimizer, "look_ahead", int)()
        optimizer.step(grads)
    same_bits(param, other)


@pytest.mark.parametrize("name", CHECKED)
def test_such_numbers_must_be_aligned(name, refuses):
    """Which their format does not say."""
    call = Call(CHECKED[name])
    for key, a in call.arrays.items():
        if a.dtype.kind == "f":
            wrong = unaligned(a).view(a.dtype.newbyteorder(">").newbyteorder())
            call.refuses(refuses, {key: wrong}, f"{key}s? must be aligned to its element size")


# ---- Attributes that are changed in place -------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_attributes_are_looked_at_in_each_call(refuses):
    x, bias = np.ones((4, 6), np.float32), np.ones(6, np.float32)
    for attribute, value, message in (
        ("dtype", np.int32, "x must be float32 or float64, got int32"),
        ("shape", (24,), r"bias must have shape \(24,\), got \(6,\)"),
        ("strides", (0, 0), "x must be C-contiguous"),
    ):
        own = x.copy()
        functional.bias_relu_forward(own, bias)
        setattr(own, attribute, value)
        refuses(lambda own=own: functional.bias_relu_forward(own, bias), message, bias)
    out = x.copy()
    functional.bias_relu_forward(x, bias, out)
    out.flags.writeable = False
    refuses(lambda: functional.bias_relu_forward(x, bias, out), "out must be writable", out)


class Liar(np.ndarray):
    """Says that it is another array."""

    shape = property(lambda self: (2, 3))
    dtype = property(lambda self: np.dtype(np.float32))


@pytest.mark.parametrize("name", CHECKED)
def test_a_subclass_whose_attributes_are_another_s(name, refuses):
    call = Call(CHECKED[name])
    for key, a in call.arrays.items():
        wrong = np.tile(a.reshape(-1), 2).view(Liar)
        with pytest.raises((TypeError, ValueError), match=r"\w* must "):
            call.case.function(**call.arguments | {key: wrong})


class Trap(np.ndarray):
    """Raises where it is asked whether it is masked."""

    @property
    def mask(self):
        raise ZeroDivisionError("of my own")


def test_what_an_array_itself_raises_comes_out():
    trap = np.ones(3).view(Trap)
    for call in (lambda: functional.relu_forward(trap), lambda: fastopt.SGD(np.ones(3), lr=1.0).step(trap)):
        with pytest.raises(ZeroDivisionError, match="of my own"):
            call()


# ---- Layers and plans that are none -------------------------------------------------------------------------


def layer_arguments(name, monkeypatch):
    """What `kernel.kernel` makes a layer of."""
    made = []
    with monkeypatch.context() as patch:
        patch.setattr(_kernels, "Layer", lambda *arguments: made.extend(arguments))
        kernel.kernel(name)
    return made


#: How the arguments of a Layer for dense_forward may be wrong.
NONSENSE = {
    "another layer": lambda name, arrays, numbers, counter: ("relu_forward", arrays, numbers, counter),
    "no layer": lambda name, arrays, numbers, counter: ("dense", arrays, numbers, counter),
    "fewer arrays": lambda name, arrays, numbers, counter: (name, arrays[1:], numbers, counter),
    "fewer numbers": lambda name, arrays, numbers, counter: (name, arrays, numbers[1:], counter),
    "other numbers": lambda name, arrays, numbers, counter: (name, arrays, ["double", *numbers[1:]], counter),
    "another type": lambda name, arrays, numbers, counter: (name, [(3, *arrays[0][1:]), *arrays[1:]], numbers, counter),
    "a counter": lambda name, arrays, numbers, counter: (name, arrays, numbers, 99),
    **{
        f"{what}, {value}": lambda name, arrays, numbers, counter, at=at, value=value: (
            name, [*arrays[:-1], (*arrays[-1][:at], value, *arrays[-1][at + 1 :])], numbers, counter)
        for at, values, what in (
            (3, (-2, 4, 99), "in the place of"),
            (4, (-2, 2, 3, 99), "like"),
            (5, ([(False, 99, [])], [(False, -2, [])], [(False, -1, [])], [(False, -1, [("+", 0)])],
                 [(False, -1, [("N", 99)])], [(False, -1, [("n", 1)] * 2)],
                 [(False, -1, [("n", 1)] * 17 + [("+", 0)] * 16)], [(True, -1, [("n", 1)])],
                 [(False, 0, [])] * 99), "axes"),
        )
        for value in values
    },
}  # fmt: skip


@pytest.mark.parametrize("way", NONSENSE)
def test_a_layer_of_nonsense_is_refused(way, monkeypatch):
    name, arrays, numbers, counter, explain = layer_arguments("dense_forward", monkeypatch)
    _kernels.Layer(name, arrays, numbers, counter, explain)
    with pytest.raises(ValueError, match=r"must|more arguments"):
        _kernels.Layer(*NONSENSE[way](name, arrays, numbers, counter), explain)


@pytest.mark.parametrize("name", _kernels.LAYERS)
def test_every_row_makes_a_layer(name):
    with pytest.raises(TypeError, match=rf"^{name} takes \d+ arrays and \d+ options"):
        kernel.kernel(name)(*range(99))


class Anything(int):
    """Says that it equals everything."""

    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


class Longer(list):
    """Says that it is shorter than it is."""

    def __len__(self):
        return len(_kernels.STEPS["sgd"][1])


def test_a_plan_of_what_is_not_what_it_says():
    hypers, params = [0.0, 1.0, *[0.5] * (len(_kernels.STEPS["sgd"][1]) - 2)], [np.ones(3), np.ones(4)]
    _kernels.Plan("sgd", params, [(), ()], [hypers, hypers], [Anything(1), Anything(7)])
    with pytest.raises(_kernels.Misfit):
        _kernels.Plan("sgd", params, [(), ()], [hypers, Longer(hypers * 99)], [0, 1])


def test_places_beyond_a_plan_are_refused():
    plan = fastopt.SGD(np.ones(3), lr=0.5)._plan
    lr = _kernels.STEPS["sgd"][1].index("lr")
    assert plan.get_hyper(lr) == 0.5
    for at in ((-1, 0), (10**6, 0), (2**40, 0), (lr, 1), (lr, -1), (lr, 2**40)):
        with pytest.raises(ValueError, match="must be one of 1 buckets"):
            plan.get_hyper(*at)
        with pytest.raises(ValueError, match="must be one of 1 buckets"):
            plan.set_hyper(at[0], 1.0, at[1])
    for place in (-1, 24, 2**40):
        step = _kernels.PreparedStep(plan, np.ones(3), {"lr": (place, float, float)})
        with pytest.raises(ValueError, match="lr must have a place in the table"):
            step(lr=1.0)


@pytest.mark.parametrize(
    "wrong", [np.arange(4, dtype=np.int32), np.arange(4.0), unaligned(np.arange(4)), np.arange(8)[::2]]
)
def test_labels_are_int64(wrong):
    assert _kernels.all_below(ordered(np.arange(4)), 4)
    assert not _kernels.all_below(np.arange(4), 3)
    with pytest.raises(_kernels.Misfit):
        _kernels.all_below(wrong, 4)


# ---- Little memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        "F.relu_forward(x)",
        "F.bias_relu_forward(x, b, out)",
        "F.batch_norm_forward(x, b, b, out=out, mean=means, inv_std=means + 0)",
        "F.softmax_cross_entropy(x, labels)",
        "F.sgd(out, x, lr=0.1)",
        "optimizer.step(grads.pop())",
    ],
)
def test_where_there_is_no_memory(call):
    """Each allocation of Python's fails in turn, under its checks of memory."""
    pytest.importorskip("_testcapi")
    code = f"""
import _testcapi
import numpy as np
import fastopt
from fastopt import functional as F
x, out, b, means, labels = *np.ones((2, 4, 6), np.float32), np.ones(6, np.float32), np.ones(6), np.arange(4)
optimizer, grads = fastopt.Adam(np.ones(6)), [np.ones(6) for _ in range(2000)]
failed = 0
for i in range(10):
    {call}
    for n in range(40):
        error = None
        _testcapi.set_nomemory(n, n + 1)
        try:
            {call}
        except SystemError as raised:  # of NumPy, which forgets its error
            error = raised if "numpy" not in str(raised) else None
        except BaseException as raised:
            error = raised
        finally:
            _testcapi.remove_mem_hooks()
        assert error is None or type(error) is MemoryError, repr(error)
        failed += error is not None
assert failed
print("done")
"""
    done = python(code, PYTHONMALLOC="debug")
    assert re.sub(r"\s", "", done.stdout) == "done", done.stderr
