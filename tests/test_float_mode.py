"""The floating-point mode: kernels round to nearest and trap nothing, whatever the caller's mode, and put that back."""

import ctypes
import ctypes.util
import platform

import numpy as np
import pytest
from test_dispatch import python

import fastopt
from fastopt import cases, functional, nn

X86, GLIBC = platform.machine() in ("x86_64", "AMD64"), platform.libc_ver()[0] == "glibc"
pytestmark = pytest.mark.skipif(
    not GLIBC or not (X86 or platform.machine() == "aarch64"), reason="the numbers of fenv.h are not known here"
)
NEAREST = 0
ROUNDING = dict(zip(("downward", "upward", "to zero"), (0x400, 0x800, 0xC00) if X86 else (0x800000, 0x400000, 0xC00000),
                    strict=True))  # fmt: skip
EVERY_FLAG, INEXACT = (0x3D, 0x20) if X86 else (0x1F, 0x10)

#: Those that add up in NumPy, in the caller's mode, what a kernel has computed.
IN_NUMPY, IN_KERNELS = {"group_norm_backward"}, cases.LAYERS.values()
IN_KERNELS = [case for case in IN_KERNELS if case.name not in IN_NUMPY]


@pytest.fixture
def libm():
    library = ctypes.CDLL(ctypes.util.find_library("m"))
    threads = fastopt.get_num_threads()
    yield library
    library.fesetround(NEAREST)
    library.feclearexcept(EVERY_FLAG)
    fastopt.set_num_threads(threads)


@pytest.fixture(params=ROUNDING)
def rounded(request, libm):
    """Calls a function with another rounding mode, which is then still the caller's."""

    def call(function):
        libm.fesetround(ROUNDING[request.param])
        try:
            result = function()
            assert libm.fegetround() == ROUNDING[request.param]
        finally:
            libm.fesetround(NEAREST)
        return result

    return call


@pytest.mark.bits
@pytest.mark.parametrize("case", IN_KERNELS, ids=str)
def test_layers_round_to_nearest(case, isa, rounded, same_bits):
    arguments = case.arguments(cases.normal(np.float32), case.edges[1], case.options[0])
    expected = case.run(cases.map_arrays(np.copy, arguments))
    copies = cases.map_arrays(np.copy, arguments)
    for one, other in zip(rounded(lambda: case.run(copies)), expected, strict=True):
        same_bits(one, other)


@pytest.mark.bits
def test_steps_round_to_nearest(any_rule, isa, dtype, rounded, rng, same_bits):
    arrays = [abs(rng.standard_normal(9001)).astype(dtype) for _ in range(2 + len(any_rule.states))]
    others = [a.copy() for a in arrays]
    any_rule.step(*others, t=2)
    rounded(lambda: any_rule.step(*arrays, t=2))
    for one, other in zip(arrays, others, strict=True):
        same_bits(one, other)


def test_norms_of_gradients_round_to_nearest(rounded, rng):
    """The sums of blocks are added up by the calling thread."""
    grad = rng.standard_normal(100_003)
    plan = fastopt.SGD(np.zeros_like(grad), lr=0.1)._plan
    expected = plan.squares(grad)
    assert rounded(lambda: plan.squares(grad)) == expected


def test_every_thread_rounds_to_nearest(rounded, same_bits):
    """Those that had begun before the mode was set, and the calling one."""
    case = cases.LAYERS["softmax_forward"]
    x = case.arguments(cases.normal(np.float32), case.threads[1], {})["x"]
    fastopt.set_num_threads(8)
    expected = functional.softmax_forward(x)
    same_bits(rounded(lambda: functional.softmax_forward(x)), expected)


def test_programs_round_to_nearest(rounded, rng):
    """Rows that are converted, the loss, and a step that clips."""
    x, y = rng.normal(size=(40, 9)), np.arange(40) % 3

    def train():
        model = nn.Sequential([nn.Dense(3)], (9,))
        optimizer = fastopt.NAdam(model.params, lr=0.125, clip_norm=0.25)
        step = model.trainer(optimizer)
        losses = [step(x[i : i + 8], y[i : i + 8]) for i in range(0, 40, 8)]
        return losses, model.params["0.weight"].tobytes(), model.predict(x).tobytes()

    expected = train()
    identity = nn.Sequential([nn.Flatten()], (9,))
    np.testing.assert_array_equal(rounded(lambda: identity.predict(x)), x.astype(np.float32))
    model = nn.Sequential([nn.Dense(3)], (9,))
    step = model.trainer(fastopt.NAdam(model.params, lr=0.125, clip_norm=0.25))
    losses = [rounded(lambda i=i: step(x[i : i + 8], y[i : i + 8])) for i in range(0, 40, 8)]
    assert (losses, model.params["0.weight"].tobytes(), model.predict(x).tobytes()) == expected


def test_flags_are_those_of_before(isa, libm):
    """A kernel raises none, and takes none back."""
    x, y = np.full((2, 1000), 1e-30, np.float32)
    for before in (0, INEXACT):
        libm.feclearexcept(EVERY_FLAG)
        libm.feraiseexcept(before)
        functional.activation_forward(x, "gelu", out=y)
        assert libm.fetestexcept(EVERY_FLAG) == before


@pytest.mark.skipif(not X86, reason="the CPU may have no traps")
@pytest.mark.parametrize("threads", [1, 2])
def test_traps_of_the_caller_do_not_fire(threads):
    """Of invalid operations, division by zero and overflow; and they are armed again after each call."""
    code = f"""
import ctypes, ctypes.util, os
import numpy as np, fastopt
from fastopt import functional as F
x = np.tile(np.float32([np.nan, np.inf, -np.inf, 3e38, 0.0, 1e-40]), (100_000, 1))
y, grad = np.empty_like(x), x.copy()
optimizer = fastopt.Adam(x.copy(), lr=0.1, eps=0.0)
fastopt.set_num_threads({threads})
libm = ctypes.CDLL(ctypes.util.find_library("m"))
assert libm.feenableexcept(0x0D) == 0
F.softmax_forward(x, out=y)
F.activation_forward(x, "gelu", out=y)
optimizer.step(grad)
assert libm.fegetexcept() == 0x0D
print("done", flush=True)
ctypes.c_double.from_buffer(bytearray(8)).value / 1.0
np.divide(x[:1, :5], np.float32(0.0))
"""
    done = python(code)
    assert done.stdout.split() == ["done"]
    assert done.returncode == -8  # SIGFPE, by NumPy's own division
