"""No kernel touches what is beside an array: pages there may not be touched. And no call leaves memory behind."""

import gc
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from conftest import is_quick

import fastopt
from fastopt import functional as F  # noqa: N812
from fastopt import nn

PROGRAM = """
import ctypes, itertools, mmap, sys
import numpy as np
from fastopt import _kernels, cases
from fastopt.cases import map_arrays

libc = ctypes.CDLL(None, use_errno=True)
PAGE = mmap.PAGESIZE

class Pages:
    '''Memory between two pages that may not be touched.'''
    def __init__(self, size):
        self.size = -(-size // PAGE) * PAGE
        self.map = mmap.mmap(-1, self.size + 2 * PAGE)
        self.all = np.frombuffer(self.map, np.uint8)
        begin = self.all.ctypes.data
        for page in (begin, begin + PAGE + self.size):
            assert libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0) == 0
        self.room = self.all[PAGE : PAGE + self.size]

    def place(self, values, at):
        inside = self.room[at : at + values.nbytes].view(values.dtype).reshape(values.shape)
        inside[...] = values
        return inside

free = {}
def guarded(values, offset, behind):
    '''A copy so many bytes after the first page, or before the last one.'''
    size = values.nbytes + 64
    key = -(-size // PAGE)
    own = free.setdefault((key, guarded.number), None) or Pages(size)
    free[key, guarded.number] = own
    guarded.number += 1
    return own.place(values, own.size - values.nbytes - offset if behind else offset)

def same(one, other):
    return one.tobytes() == other.tobytes() or np.array_equal(one, other, equal_nan=one.dtype.kind == "f")

calls = 0
for name, case in cases.CASES.items():
    for dtype in (np.float32, np.float64):
        for number, size in enumerate(case.edges):
            arguments = case.arguments(cases.normal(dtype), size, case.options[0])
            first = case.run(map_arrays(np.copy, arguments))
            for isa in _kernels.isas():
                _kernels.use_isa(isa)
                item = np.dtype(dtype).itemsize
                offsets = range(0, 64, item) if number < 2 else (0,)  # of the first sizes, at every place
                for offset, behind in itertools.product(offsets, (False, True)):
                    if (offset and not behind) and offset % 16:
                        continue  # before an array, only what is next to it is read by mistake
                    print(name, size, isa, offset, behind, file=sys.stderr)
                    guarded.number = 0
                    # an array of smaller elements stands at a multiple of its own size
                    place = lambda a: guarded(a, offset // a.itemsize * a.itemsize, behind)
                    given = map_arrays(place, arguments | case.places(first))
                    for one, other in zip(case.run(given), first, strict=True):
                        assert same(one, other), (name, size, isa, offset)
                    calls += 1
print(calls)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mprotect")
def test_pages_that_may_not_be_touched():
    """Before and behind each array, on every instruction set; of the first sizes, at every place in its cache line."""
    more = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    ran = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PROGRAM], env=more, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert int(ran.stdout) > 10_000


# ---- Leaks ------------------------------------------------------------------------------------------------------


def trained():
    model = nn.Sequential([nn.Dense(4), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2), nn.Dense(2)], (3,))
    trainer = model.trainer(fastopt.NAdam(model.params, lr=1e-3, clip_global_norm=1.0), "softmax_cross_entropy")
    x, y = np.eye(3, dtype=np.float32), np.arange(3) % 2
    return lambda: trainer(x, y)


def stepped():
    params = {"w": np.ones((40, 7), np.float32), "b": np.ones(7, np.float32)}
    adam = fastopt.AdamW(params, lr=1e-3, clip_global_norm=1.0)
    grads = {key: np.ones_like(param) for key, param in params.items()}
    return lambda: adam.step(grads)


def called():
    x, w, labels = np.ones((9, 5), np.float32), np.ones((5, 5), np.float32), np.arange(9) % 5

    def call():
        y, cache = F.batch_norm_forward(F.dense_forward(x, w))
        F.batch_norm_backward(F.softmax_cross_entropy(y, labels)[1], cache)

    return call


def refused():
    x = np.ones((9, 5), np.float32)

    def call():
        with pytest.raises(ValueError, match="must"):
            F.dense_forward(x, x)
        with pytest.raises(TypeError, match="must"):
            F.relu_forward([1, 2])

    return call


@pytest.mark.parametrize("make", [trained, stepped, called, refused])
def test_ten_thousand_steps_leave_no_memory_behind(make, request):
    """What Python, NumPy and the bridge have allocated is what it was after some hundred."""
    step, steps = make(), 1000 if is_quick(request.node) else 10_000
    for _ in range(300):
        step()
    tracemalloc.start()
    try:
        for _ in range(200):
            step()
        gc.collect()  # which empties the free lists of tuples, of up to 2000 each
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(steps):
            step()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2 * steps
