"""MKL's JIT: code for one product of matrices of one shape, made beforehand and called through ctypes.

On CPUs that it makes no code for (AMD's), MKL puts its BLAS in that place, and is entered as such. It always runs on
one thread. Bias and ReLU, which it has not, are fastopt's own kernel, the fastest there is.
"""

import ctypes
import functools
import importlib.metadata
import os

import numpy as np

from fastopt import functional as F  # noqa: N812

VERSION = importlib.metadata.version("mkl")
os.environ["MKL_THREADING_LAYER"] = "SEQUENTIAL"
_library = next(file for file in importlib.metadata.files("mkl") or () if "mkl_rt" in file.name)
_mkl = ctypes.CDLL(str(_library.locate()))

_create, _get = _mkl.mkl_cblas_jit_create_sgemm, _mkl.mkl_jit_get_sgemm_ptr
_int, _float, _pointer = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
_create.argtypes = [ctypes.POINTER(_pointer), *[_int] * 6, _float, _int, _int, _float, _int]
_get.argtypes, _get.restype = [_pointer], _pointer
_ROW_MAJOR, _PLAIN, _TRANSPOSED = 101, 111, 112
#: What it is called by the status of a creation; another one is an error.
_NAMES = {0: "MKL JIT", 1: "MKL"}
_KERNEL = ctypes.CFUNCTYPE(None, _pointer, _pointer, _pointer, _pointer)


def product(a, b, out):
    """Its name, and a call that writes the product of two matrices, C-contiguous or transposes of such."""
    jitter = _pointer()
    sides = [(_PLAIN, x) if x.flags.c_contiguous else (_TRANSPOSED, x.T) for x in (a, b)]
    (of_a, stored_a), (of_b, stored_b) = sides
    rows, columns = out.shape
    status = _create(jitter, _ROW_MAJOR, of_a, of_b, rows, columns, a.shape[1],
                     1, stored_a.shape[1], stored_b.shape[1], 0, columns)  # fmt: skip
    arguments = [_pointer(x.ctypes.data) for x in (stored_a, stored_b, out)]
    return _NAMES[status], functools.partial(_KERNEL(_get(jitter)), jitter, *arguments)


def contenders(contest):
    """What MKL enters into a contest: a function, and where it leaves its result."""
    if contest.name not in LAYERS:
        return {}
    a, b = LAYERS[contest.name](**contest.arrays)
    out = np.empty((a.shape[0], b.shape[1]), np.float32)
    name, multiply = product(a, b, out)
    bias = contest.arrays.get("bias")

    def with_epilogue():
        multiply()
        F.bias_relu_forward(out, bias, out=out)

    return {name: (multiply if bias is None else with_epilogue, out)}


LAYERS = {
    "dense_forward": lambda x, weight, bias: (x, weight),
    "dense_input_grad": lambda dy, weight: (dy, weight.T),
    "dense_weight_grad": lambda x, dy: (x.T, dy),
}
