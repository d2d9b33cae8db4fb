"""The bits of what users compute, against a table of hashes: none of them changes but on purpose.

python tests/test_bits.py           # writes tests/bits.json anew, and prints what has changed: CHANGELOG says so

Inputs are integers of PCG64 times a power of two, products are fastopt's own, and nothing is hashed that NumPy has
summed up or taken the exponential of: what is left owes nothing to the versions of NumPy, BLAS and Python. Nets also
depend on the order of samples, which `Generator.permutation` draws; should NumPy draw another, they are skipped. One
power is the C library's, NAdam's 0.96^(t ψ).
"""

import functools
import hashlib
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import functional as F  # noqa: N812
from fastopt import nn
from fastopt.optimizers import OPTIMIZERS

pytestmark = pytest.mark.bits

TABLE = Path(__file__).with_name("bits.json")
TYPES = ("float32", "float64")


class Numbers:
    """Draws arrays of a type, in (−4, 4): of all its digits, and the same wherever and whenever."""

    def __init__(self, name: str, dtype) -> None:
        self.bits, self.dtype = np.random.PCG64(zlib.crc32(name.encode())), np.dtype(dtype)

    def __call__(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        """`scale` must be a power of two."""
        digits = 24 if self.dtype == np.float32 else 53
        odd = 2 * (self.raw(*shape) >> (65 - digits)).astype(np.int64) + 1  # so that none is 0
        return ((odd - 2 ** (digits - 1)) * (scale * 2.0 ** (3 - digits))).astype(self.dtype)

    def below(self, limit: int, *shape: int) -> np.ndarray:
        return (self.raw(*shape) % limit).astype(np.int64)

    def raw(self, *shape: int) -> np.ndarray:
        return self.bits.random_raw(int(np.prod(shape, dtype=np.int64))).reshape(shape)


def hashed(arrays) -> str:
    """A hash of arrays: of types, shapes and bits."""
    sha = hashlib.sha256()
    for array in arrays:
        if array is not None:
            assert array.dtype.kind != "f" or np.isfinite(array).all()
            sha.update(f"{array.dtype.str} {array.shape} ".encode())
            sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]


# ---- Layer kernels ------------------------------------------------------------------------------------------
#
# By the function's name, and maybe what is special. Each gets a source of numbers, and returns arrays.


def of_cache(y, cache):
    """The output of a norm, and the statistics of which the backward pass makes use."""
    return y, cache.mean, cache.inv_std


def batch_norm(x, *shape, axis=-1, learnt=True, pool=None, **options):
    """Forward, backward, and inference with the running statistics that came of it."""
    a, channels = x(*shape), shape[axis]
    vectors = [x(channels), x(channels)] if learnt else [None, None]
    running = np.zeros(channels, a.dtype), np.ones(channels, a.dtype)
    y, cache = F.batch_norm_forward(a, *vectors, *running, axis=axis, max_pool=pool, **options)
    yield from (*of_cache(y, cache), *running)
    yield from F.batch_norm_backward(x(*y.shape), cache)
    options.pop("dropout", None)
    yield F.batch_norm_forward(a, *vectors, *running, axis=axis, max_pool=pool, training=False, **options)[0]


def images(x):
    """Images whose number of columns and channels are odd."""
    return x(3, 11, 9, 5)


def conv2d(x, shape, weight, bias=True, stride=1, padding=0, winograd=False):
    a, w = x(*shape), x(*weight, scale=0.25)
    plain = F.conv2d(a, w, x(weight[3]) if bias else None, stride, padding, winograd=winograd)
    yield plain
    yield F.conv2d(a, w, x(weight[3]), stride, padding, winograd=winograd, relu=True)


def conv2d_input_grad(x, shape, weight, padding, winograd=False):
    size = [length + 2 * padding - kernel + 1 for length, kernel in zip(shape[1:3], weight[:2], strict=True)]
    yield F.conv2d_input_grad(x(shape[0], *size, weight[3]), x(*weight, scale=0.25), shape, padding, winograd=winograd)


def conv2d_weight_grad(x, shape, weight, stride=1, padding=0, winograd=False):
    a, dbias = x(*shape), np.empty(weight[3], x.dtype)
    dy = x(*F.patches_shape(shape, weight[:2], stride, padding)[:3], weight[3])
    yield F.conv2d_weight_grad(a, dy, weight[:2], stride, padding, winograd=winograd, dbias=dbias)
    yield dbias


def group_norm(x, *shape, forward=F.layer_norm_forward, learnt, **options):
    y, cache = forward(x(*shape), x(*learnt), x(*learnt), **options)
    yield from of_cache(y, cache)
    yield from F.group_norm_backward(x(*shape), cache)


def groups_of_4(x, *learnt):
    return F.group_norm_forward(x, x.shape[-1] // 4, *learnt)


def dropout(x, **options):
    a = x(1061)
    y, mask = F.dropout(a, 0.3, seed=2**63 + 5, counter=7, **options)
    return y, mask


def softmax_cross_entropy(x):
    for rows, classes in ((33, 10), (3, 1061), (7, 2)):
        losses = np.empty(rows, x.dtype)
        yield F.softmax_cross_entropy(x(rows, classes), x.below(classes, rows), losses=losses)[1]
        yield losses


def softmax_forward(x):
    log_sum = np.empty(33)
    return F.softmax_forward(x(3, 11, 37), log_sum=log_sum), log_sum


CASES = {
    "dense_forward": lambda x: [F.dense_forward(x(13, 37), x(37, 29), x(29)), F.dense_forward(x(1, 3), x(3, 1))],
    "dense_forward relu": lambda x: [F.dense_forward(x(65, 600), x(600, 77), x(77), relu=True)],
    "dense_input_grad": lambda x: [F.dense_input_grad(x(m, n), x(k, n)) for m, n, k in ((13, 29, 37), (65, 600, 77))],
    "dense_weight_grad": lambda x: [
        F.dense_weight_grad(x(13, 37), x(13, 29), dbias=(dbias := np.empty(29, x.dtype))),
        dbias,
        F.dense_weight_grad(x(600, 33), x(600, 17)),
    ],
    "relu_forward": lambda x: [F.relu_forward(x(n)) for n in (1, 33, 1061)],
    "relu_backward": lambda x: [F.relu_backward(x(n), x(n)) for n in (1, 33, 1061)],
    "bias_forward": lambda x: [F.bias_forward(x(7, 5, 37), x(37))],
    "bias_backward": lambda x: [F.bias_backward(x(n, c)) for n, c in ((1, 1), (130, 37), (1061, 3))],
    "bias_relu_forward": lambda x: [F.bias_relu_forward(x(7, 5, 37), x(37))],
    "bias_relu_backward": lambda x: F.bias_relu_backward(x(1061, 37), x(1061, 37)),
    "softmax_cross_entropy": softmax_cross_entropy,
    "softmax_forward": softmax_forward,
    "softmax_backward": lambda x: [F.softmax_backward(x(7, 37), x(7, 37))],
    "dropout": dropout,
    "dropout bytes": lambda x: dropout(x, mask_format="bytes", p_is="keep", inverted=False),
    "dropout_apply": lambda x: [F.dropout_apply(x(1061), x.below(2, 1061), 0.3)],
    "dropout_backward": lambda x: [F.dropout_backward(x(1061), x.below(2, 1061), 0.3)],
    "bias_relu_dropout_forward": lambda x: [
        F.bias_relu_dropout_forward(x(29, 37), x(37), 0.3, seed=2**63 + 5, counter=7)
    ],
    "bias_relu_dropout_backward": lambda x: F.bias_relu_dropout_backward(x(29, 37), x(29, 37), 0.3),
    "batch_norm_forward": lambda x: batch_norm(x, 65, 37),
    "batch_norm_forward neither scale nor shift": lambda x: batch_norm(x, 29, 5, learnt=False, unbiased=False),
    "batch_norm_forward of few channels": lambda x: batch_norm(x, 5, 11, 9, 3),
    "batch_norm_forward of channels second": lambda x: batch_norm(x, 5, 7, 11, 3, axis=1, relu=True),
    "batch_norm_forward relu": lambda x: batch_norm(x, 65, 37, relu=True, momentum=0.9, momentum_of="old"),
    "batch_norm_forward dropout": lambda x: batch_norm(x, 65, 37, relu=True, dropout=0.3, seed=5, counter=7),
    "batch_norm_forward max_pool": lambda x: batch_norm(x, 3, 11, 9, 21, relu=True, pool=(2, 3)),
    "batch_norm_backward": lambda x: [
        *F.batch_norm_backward(x(130, 33), F.batch_norm_forward(x(130, 33), x(33), x(33))[1])
    ],
    "layer_norm_forward": lambda x: group_norm(x, 3, 5, 37, learnt=(5, 37), axes=2),
    "group_norm_forward": lambda x: group_norm(x, 3, 5, 7, 12, forward=groups_of_4, learnt=(12,)),
    "instance_norm_forward": lambda x: group_norm(x, 3, 5, 7, 11, forward=F.instance_norm_forward, learnt=(11,)),
    "group_norm_backward": lambda x: group_norm(x, 200, 37, learnt=(37,)),
    "max_pool_forward": lambda x: F.max_pool_forward(images(x), (3, 2), 2),
    "max_pool_backward": lambda x: [
        F.max_pool_backward(x(3, 5, 4, 5), F.max_pool_forward(images(x), (3, 2), 2)[1], (3, 11, 9, 5), (3, 2), 2)
    ],
    "average_pool_forward": lambda x: [F.average_pool_forward(images(x), (3, 2), 2)],
    "average_pool_backward": lambda x: [F.average_pool_backward(x(3, 5, 4, 5), (3, 11, 9, 5), (3, 2), 2)],
    "conv2d": lambda x: conv2d(x, (2, 9, 11, 3), (3, 5, 3, 37), stride=2, padding=1),
    "conv2d without bias": lambda x: conv2d(x, (2, 6, 5, 17), (3, 3, 17, 33), bias=False),
    "conv2d winograd": lambda x: conv2d(x, (2, 7, 9, 16), (3, 3, 16, 48), padding=1, winograd=True),
    "conv2d_input_grad": lambda x: conv2d_input_grad(x, (2, 9, 7, 5), (3, 3, 5, 33), 1),
    "conv2d_input_grad winograd": lambda x: conv2d_input_grad(x, (2, 9, 7, 32), (3, 3, 32, 16), 1, winograd=True),
    "conv2d_weight_grad": lambda x: conv2d_weight_grad(x, (5, 9, 7, 3), (5, 3, 3, 48), stride=2, padding=1),
    "conv2d_weight_grad winograd": lambda x: conv2d_weight_grad(
        x, (5, 9, 7, 16), (3, 3, 16, 32), padding=1, winograd=True
    ),
    "im2col": lambda x: [F.im2col(images(x), (3, 2), (2, 1), (1, 2), dilation=(2, 1))],
    "col2im": lambda x: [F.col2im(x(3, 11, 9, 3, 3, 5), (3, 11, 9, 5), 3, 1, 1)],
    "depthwise_forward": lambda x: [
        F.depthwise_forward(images(x), x(3, 3, 5), 1, 1),
        F.depthwise_forward(x(2, 9, 9, 37), x(3, 2, 37), 2, 1, dilation=2),
    ],
    "depthwise_backward": lambda x: F.depthwise_backward(x(3, 6, 5, 37), x(3, 11, 9, 37), x(3, 3, 37), 2, 1),
    "embedding_backward": lambda x: [F.embedding_backward(x(7, 29, 5), x.below(11, 7, 29), 11)],
} | {
    f"activation_{way} {kind}": functools.partial(
        lambda x, way, kind: (
            [F.activation_forward(x(1061, scale=4.0), kind)]
            if way == "forward"
            else [F.activation_backward(x(1061), x(1061, scale=0.25), kind)]
        ),
        way=way,
        kind=kind,
    )
    for way in ("forward", "backward")
    for kind in F.ACTIVATIONS
}

#: Functions that compute no arrays.
OTHERS = {
    "batch_norm_sums_shape",
    "conv2d_fits",
    "dense_pays",
    "kept_share",
    "packed_shape",
    "patches_shape",
    "plan",
    "winner_type",
    "winograd_fits",
}


# ---- Optimizers ---------------------------------------------------------------------------------------------

SHAPES = {"one": (1,), "vector": (33,), "matrix": (40, 25)}
#: What is done around a formula, by the kernel and by the class.
AROUND = {"weight_decay": 0.1, "l1": 0.01, "clip_value": 1.5, "max_norm": 4.0, "clip_global_norm": 50.0}


def optimized(name: str, dtype, shapes=SHAPES, steps: int = 50, **options):
    """Parameters and state after some steps."""
    x = Numbers(name, dtype)
    params = {key: x(*shape) for key, shape in shapes.items()}
    optimizer = OPTIMIZERS[name](params, lr=0.01, **options)
    for _ in range(steps):
        if hasattr(optimizer, "look_ahead"):
            optimizer.look_ahead()
        optimizer.step({key: x(*shape) for key, shape in shapes.items()})
    for key, param in params.items():
        yield param
        yield from (optimizer.state[key][state] for state in sorted(optimizer.state[key]))


# ---- Work that is shared out among threads ------------------------------------------------------------------


def large_step(name: str):
    return lambda x: optimized(name, x.dtype, {"long": (700_001,), "matrix": (700, 301)}, 2, clip_global_norm=50.0)


LARGE = {
    "adam": large_step("adam"),
    "lamb": large_step("lamb"),
    "dense": lambda x: [
        F.dense_forward(a := x(301, 600), b := x(600, 253)),
        F.dense_input_grad(c := x(301, 253), b),
        F.dense_weight_grad(a, c),
    ],
    "batch norm by rows": lambda x: batch_norm(x, 131_072, 16, relu=True),
    "batch norm by channels": lambda x: batch_norm(x, 2048, 1061),
    "dropout": lambda x: F.dropout(x(2_100_001), 0.5, seed=1, counter=2),
    "bias": lambda x: F.bias_relu_backward(x(20_001, 111), x(20_001, 111)),
    "conv2d": lambda x: conv2d(x, (64, 12, 12, 3), (5, 5, 3, 32), padding=2),
    "conv2d winograd": lambda x: [
        *conv2d(x, (40, 14, 14, 32), (3, 3, 32, 32), padding=1, winograd=x.dtype == np.float32),
        *conv2d_weight_grad(x, (40, 14, 14, 32), (3, 3, 32, 32), padding=1, winograd=x.dtype == np.float32),
    ],
}


# ---- Nets ---------------------------------------------------------------------------------------------------


def mlp(dtype):
    layers = [
        *(nn.Dense(64), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.3)),
        *(nn.Dense(33, activation="relu"), nn.Dropout(0.2)),
        nn.Dense(10),
    ]
    return nn.Sequential(layers, (37,), dtype=dtype)


def cnn(dtype):
    layers = [
        *(nn.Conv2D(16, 3, activation="relu"), nn.Conv2D(32, 3), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(2)),
        *(nn.Flatten(), nn.Dropout(0.3), nn.Dense(10)),
    ]
    return nn.Sequential(layers, (10, 11, 3), dtype=dtype)


NETS = {"mlp": mlp, "cnn": cnn}
SAMPLES, BATCH, EPOCHS = 160, 32, 10  # 50 steps


def trained(name: str, dtype):
    """The parameters and state of a net after `fit`."""
    model, x = NETS[name](dtype), Numbers(name, dtype)
    for key in sorted(model.params):
        if key.endswith("weight"):
            model.params[key][...] = x(*model.params[key].shape, scale=2.0**-4)
    for seed, layer in enumerate(model.layers):
        if isinstance(layer, nn.Dropout):
            layer.seed = seed
    labels = x.below(10, SAMPLES)
    samples = x(SAMPLES, *model.input_shape)
    model.fit(samples, labels, epochs=EPOCHS, batch_size=BATCH, optimizer=fastopt.Adam(model.params, lr=2.0**-8))
    arrays = model.params | model.state
    return [arrays[key] for key in sorted(arrays)]


def orders():
    """Drawn by NumPy as `fit` has them drawn."""
    return [np.random.default_rng([0, t]).permutation(SAMPLES) for t in range(0, 50, 5)]


def nets(threads: int) -> dict[str, str]:
    fastopt.set_num_threads(threads)
    return {f"{name} {dtype}": hashed(trained(name, dtype)) for name in NETS for dtype in TYPES}


def nets_elsewhere(isa: str, threads: int) -> dict[str, str]:
    """The hashes of a process of its own, whose products are fastopt's."""
    environment = os.environ | {"FASTOPT_PRODUCTS": "own", "FASTOPT_ISA": isa}
    command = [sys.executable, __file__, "nets", str(threads)]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


# ---- The table ----------------------------------------------------------------------------------------------


def of_kernel(name: str, dtype) -> str:
    return hashed(CASES[name](Numbers(name, dtype)))


def of_optimizer(name: str, dtype) -> str:
    return hashed(optimized(name, dtype))


def of_optimizer_and_around(name: str, dtype) -> str:
    return hashed(optimized(name, dtype, **AROUND))


def of_large(name: str, dtype) -> str:
    return hashed(LARGE[name](Numbers(name, dtype)))


IN_PROCESS = {
    "kernels": (of_kernel, CASES),
    "optimizers": (of_optimizer, OPTIMIZERS),
    "optimizers with what is around": (of_optimizer_and_around, OPTIMIZERS),
    "large": (of_large, LARGE),
}


def table() -> dict[str, dict[str, str]]:
    """All hashes, computed anew."""
    sections = {
        section: {f"{name} {dtype}": function(name, dtype) for name in names for dtype in TYPES}
        for section, (function, names) in IN_PROCESS.items()
    }
    return sections | {"nets": nets_elsewhere(fastopt.isa(), 1), "NumPy": {"orders": hashed(orders())}}


def recorded() -> dict[str, dict[str, str]]:
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


HINT = (
    "the bits have changed; if that is meant, `python tests/test_bits.py` writes the table anew, and CHANGELOG says so"
)


def check(section: str, name: str, dtype) -> None:
    function, _ = IN_PROCESS[section]
    assert function(name, dtype) == recorded()[section][f"{name} {dtype}"], HINT


@pytest.mark.parametrize("name", CASES)
def test_kernels(name, isa, dtype):
    check("kernels", name, dtype)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name, isa, dtype):
    check("optimizers", name, dtype)
    check("optimizers with what is around", name, dtype)


@pytest.fixture
def threads():
    before = fastopt.get_num_threads()
    yield fastopt.set_num_threads
    fastopt.set_num_threads(before)


@pytest.mark.parametrize("name", LARGE)
def test_threads(name, dtype, threads):
    for n in (1, 2, 3):
        threads(n)
        check("large", name, dtype)


def test_large_work_on_each_instruction_set(isa, threads):
    threads(2)
    for name in LARGE:
        check("large", name, "float32")


def test_nets(isa):
    if hashed(orders()) != recorded()["NumPy"]["orders"]:
        pytest.skip("this NumPy draws samples in another order")
    for n in (1, 2, 3) if isa == fastopt.isas()[0] else (1,):
        assert nets_elsewhere(isa, n) == recorded()["nets"], f"on {n} threads: {HINT}"


def test_the_table_is_whole():
    """Each public function that computes arrays has hashes, and each hash what it is of."""
    functions = {name for name in F.__all__ if callable(getattr(F, name)) and name == name.lower()}
    assert {name.split()[0] for name in CASES} == functions - {*OPTIMIZERS} - OTHERS
    for section, (_, names) in IN_PROCESS.items():
        assert set(recorded()[section]) == {f"{name} {dtype}" for name in names for dtype in TYPES}


def test_other_numbers_have_other_hashes():
    """One bit of one number, the sign of a zero, the shape and the type."""
    x = np.arange(6.0)
    others = [np.nextafter(x, 9), np.where(x, x, -x), x.reshape(2, 3), x.view(np.int64)]
    assert len({hashed([each]) for each in (x, *others)}) == 5


def main() -> None:
    if sys.argv[1:2] == ["nets"]:
        print(json.dumps(nets(int(sys.argv[2]))))
        return
    before, now = recorded(), table()
    for section, hashes in now.items():
        for name in sorted({*hashes, *before.get(section, {})}):
            old, new = before.get(section, {}).get(name), hashes.get(name)
            if old != new:
                print(f"{section}: {name}: {'new' if old is None else 'gone' if new is None else 'other bits'}")
    TABLE.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
