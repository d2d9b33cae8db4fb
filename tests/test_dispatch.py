"""The same bits on every instruction set, whatever the values; how a set is chosen; what a call leaves."""

import itertools
import math
import os
import subprocess
import sys
import threading
from unittest import mock

import numpy as np
import pytest

import fastopt
from fastopt import _kernels, functional, gradients
from fastopt.kernel import kernel as layer_kernel

# How to run the kernel of each row of LAYERS, given a function x(*shape) that makes hostile values.
SHAPE, WINDOW = (2, 9, 11, 5), {"size": (3, 2), "stride": (2, 1)}
COLUMNS = functional.patches_shape(SHAPE, (3, 2), (2, 1), (1, 2))
POOLED = (*functional.patches_shape(SHAPE, (3, 2), (2, 1))[:3], SHAPE[3])
BATCHES = [(9, 1), (45, 2), (70, 3), (70, 16), (7, 32), (9, 45), (20, 1061), (5, 3, 31), (3, 2, 32), (4, 3, 7, 29)]


WAYS = ({"axis": 1}, {"axis": -1, "relu": True}, {"axis": 1, "relu": True, "dropout": 0.4, "seed": 7, "counter": 9})
NORMS = list(itertools.product(BATCHES, WAYS))


def batch_norm_forward(x, shape, how):
    c = shape[how["axis"]]
    running = x(c), x(c)
    y, cache = functional.batch_norm_forward(x(*shape), x(c), x(c), *running, **how)
    return y, cache.mean, cache.inv_std, *running


def batch_norm_inference(x, shape, how):
    vectors = [x(shape[how["axis"]]) for _ in range(4)]
    return functional.batch_norm_forward(x(*shape), *vectors, **how, training=False)[0]


def batch_norm_backward(x, shape, how):
    c = shape[how["axis"]]
    _, cache = functional.batch_norm_forward(x(*shape), x(c), x(c), **how)
    return functional.batch_norm_backward(x(*shape), cache)


#: Images, and windows.
POOLS = [((2, 5, 7, 3), (2, 2)), ((1, 9, 4, 45), (3, 2)), ((1, 4, 4, 300), (2, 2))]


def batch_norm_max_pool(x, shape, size):
    c = shape[-1]
    y, cache = functional.batch_norm_forward(x(*shape), x(c), x(c), axis=-1, relu=True, max_pool=size)
    return y, cache.chosen, *functional.batch_norm_backward(x(*y.shape), cache)


def on_two_threads(function, x, shape, how):
    """On so many rows that they are shared out, of which only the first channel holds whatever x makes."""

    def mostly_tame(*shape):
        made = x(*shape)
        made[:, 1:] = np.sin(np.arange(math.prod(shape))).reshape(shape)[:, 1:]
        return made

    before = fastopt.get_num_threads()
    fastopt.set_num_threads(2)
    try:
        return function(lambda *shape: mostly_tame(*shape) if len(shape) > 1 else x(*shape), shape, how)
    finally:
        fastopt.set_num_threads(before)


WINDOW_AROUND = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 3)}


def depthwise_backward(x, shape):
    image, weight = x(*shape), x(3, 2, shape[3])
    y = functional.depthwise_forward(image, weight, **WINDOW_AROUND)
    return functional.depthwise_backward(x(*y.shape), image, weight, **WINDOW_AROUND)


#: Shapes, and the groups of their channels.
GROUPS = [
    ((9, 45), 1),
    ((130, 33), 1),
    ((7, 32), 4),
    ((70, 3), 3),
    ((5, 31, 3), 1),
    ((3, 7, 29, 4), 2),
    ((2, 9, 700), 7),
]


def group_norm_forward(x, shape, groups):
    y, cache = functional.group_norm_forward(x(*shape), groups, x(shape[-1]), x(shape[-1]))
    return y, cache.mean, cache.inv_std


def group_norm_backward(x, shape, groups):
    _, cache = functional.group_norm_forward(x(*shape), groups, x(shape[-1]), x(shape[-1]))
    return functional.group_norm_backward(x(*shape), cache)


def images(x, *shape):
    """Two, of which only some channels of the first hold whatever x makes: a sum takes in so many that none is left."""
    made = x(2, *shape)
    made[1], made[..., 8:] = 0.5, np.arange(shape[-1] - 8)
    return made


def weights(x, c, filters):
    """The same for (3, 3, c, filters), in some channels for some filters."""
    made = x(3, 3, c, filters)
    made[:, :, 8:], made[..., 8:] = 0.5, np.arange(filters - 8)
    return made


def weight_and_bias_grad(x, dy, *how, **options):
    dbias = np.empty(dy.shape[-1], dy.dtype)
    return functional.conv2d_weight_grad(x, dy, *how, **options, dbias=dbias), dbias


#: Rows, inputs, and columns of dense layers.
MATRICES = [(1, 3, 10), (13, 7, 45), (26, 70, 32), (5, 600, 64), (29, 5, 600), (530, 4, 33)]


def dense_weight_and_bias_grad(x, dy):
    dbias = np.empty(dy.shape[-1], dy.dtype)
    return functional.dense_weight_grad(x, dy, dbias=dbias), dbias


RUN = {
    "relu_forward": lambda x: [functional.relu_forward(x(n)) for n in (1, 33, 1000)],
    "relu_backward": lambda x: [functional.relu_backward(x(n), x(n)) for n in (1, 33, 1000)],
    "bias_forward": lambda x: [functional.bias_forward(x(7, n), x(n)) for n in (1, 31, 45, 100)],
    "bias_relu_forward": lambda x: [functional.bias_relu_forward(x(7, n), x(n)) for n in (1, 31, 45, 100)],
    "bias_backward": lambda x: [functional.bias_backward(x(7, n)) for n in (1, 8, 31, 45, 100)],
    "bias_relu_backward": lambda x: [
        out for n in (1, 31, 45, 100) for out in functional.bias_relu_backward(x(201, n), x(201, n))
    ],
    "random_bits": lambda x: [random_bits(blocks=37, seed=2**63 + 1, counter=2**64 - 1, first=2**64 - 5)],
    "dropout_forward": lambda x: [
        out for n in (1, 8, 31, 65, 1000) for out in functional.dropout(x(n), 0.3, seed=n, counter=3)
    ],
    "dropout_apply": lambda x: [functional.dropout_apply(x(n), np.arange(n) % 3 > 0, 0.3) for n in (1, 31, 65, 1000)],
    "bias_relu_dropout_forward": lambda x: [
        functional.bias_relu_dropout_forward(x(7, n), x(n), 0.3, seed=n, counter=3) for n in (1, 31, 45, 100, 1061)
    ],
    "batch_norm_sums": lambda x: on_two_threads(batch_norm_forward, x, (43_700, 3), WAYS[1]),
    "batch_norm_grad_sums": lambda x: on_two_threads(batch_norm_backward, x, (43_700, 3), WAYS[1]),
    "batch_norm_forward": lambda x: [out for norm in NORMS for out in batch_norm_forward(x, *norm)],
    "batch_norm_inference": lambda x: [batch_norm_inference(x, *norm) for norm in NORMS],
    "batch_norm_backward": lambda x: [out for norm in NORMS for out in batch_norm_backward(x, *norm)],
    "batch_norm_max_pool_forward": lambda x: [out for pool in POOLS for out in batch_norm_max_pool(x, *pool)[:2]],
    "batch_norm_max_pool_backward": lambda x: [out for pool in POOLS for out in batch_norm_max_pool(x, *pool)[2:]],
    "activation_forward": lambda x: [functional.activation_forward(x(1003), kind) for kind in functional.ACTIVATIONS],
    "activation_backward": lambda x: [
        functional.activation_backward(x(1003), x(1003), kind) for kind in functional.ACTIVATIONS
    ],
    "group_norm_forward": lambda x: [out for norm in GROUPS for out in group_norm_forward(x, *norm)],
    "group_norm_backward": lambda x: [out for norm in GROUPS for out in group_norm_backward(x, *norm)],
    "softmax_forward": lambda x: [
        functional.softmax_forward(x(*shape)) for shape in ((13, 1), (13, 10), (3, 33), (2, 5000))
    ],
    "softmax_backward": lambda x: [
        functional.softmax_backward(x(*shape), x(*shape)) for shape in ((13, 1), (13, 10), (3, 33), (2, 5000))
    ],
    "average_pool_forward": lambda x: [functional.average_pool_forward(x(*SHAPE), **WINDOW)],
    "average_pool_backward": lambda x: [functional.average_pool_backward(x(*POOLED), SHAPE, **WINDOW)],
    "depthwise_forward": lambda x: [functional.depthwise_forward(x(*SHAPE), x(3, 2, SHAPE[3]), **WINDOW_AROUND)],
    "depthwise_backward": lambda x: [depthwise_backward(x, SHAPE)[0]],
    "depthwise_weight_backward": lambda x: [depthwise_backward(x, (1, 4, 7, 45))[1]],
    "embedding_backward": lambda x: [
        functional.embedding_backward(x(n, width), np.arange(n) ** 2 % 17, 17) for n, width in ((70, 1), (70, 37))
    ],
    "softmax_cross_entropy": lambda x: [
        np.asarray(out, dlogits.dtype)
        for n in (1, 2, 10, 33, 5000)
        for loss, dlogits in [functional.softmax_cross_entropy(x(13, n), np.arange(13) % n)]
        for out in (loss, dlogits)
    ],
    "max_pool_forward": lambda x: functional.max_pool_forward(x(*SHAPE), **WINDOW),
    "max_pool_backward": lambda x: [
        functional.max_pool_backward(x(*POOLED), functional.max_pool_forward(x(*SHAPE), **WINDOW)[1], SHAPE, **WINDOW)
    ],
    "conv_pack": lambda x: [functional.conv2d_input_grad(x(2, 7, 9, 16), x(3, 3, 5, 16), (2, 9, 11, 5))],
    "conv_forward": lambda x: [
        functional.conv2d(x(*SHAPE), x(3, 2, 5, k), x(k), (2, 1), (1, 2), relu=k > 16) for k in (1, 16, 23, 48, 77)
    ],
    "conv_weight_grad": lambda x: [
        *(functional.conv2d_weight_grad(x(*SHAPE), x(*COLUMNS[:3], k), (3, 2), (2, 1), (1, 2)) for k in (16, 80)),
        *weight_and_bias_grad(x(2, 9, 11, 1), x(2, 9, 11, 48), 3, 1, 1),
    ],
    "dense_forward": lambda x: [functional.dense_forward(x(n, d), x(d, k), x(k), relu=k > 40) for n, d, k in MATRICES],
    "dense_input_grad": lambda x: [functional.dense_input_grad(x(n, k), x(d, k)) for n, d, k in MATRICES],
    "dense_weight_grad": lambda x: [
        out for n, d, k in MATRICES for out in dense_weight_and_bias_grad(x(n, d), x(n, k))
    ],
    "winograd_pack": lambda x: [
        functional.conv2d_input_grad(images(x, 7, 9, 48), weights(x, 16, 48), (2, 9, 11, 16), winograd=True)
    ],
    "winograd_forward": lambda x: [
        functional.conv2d(images(x, 9, 11, c), weights(x, c, k), x(k), 1, (1, 2), relu=k > 16, winograd=True)
        for c, k in ((16, 80), (80, 16))
    ],
    "winograd_weight_grad": lambda x: [
        grad
        for c, k in ((16, 80), (80, 16))
        for grad in weight_and_bias_grad(images(x, 9, 11, c), images(x, 7, 9, k), 3, winograd=True)
    ],
    "im2col": lambda x: [functional.im2col(x(*SHAPE), **WINDOW, padding=(1, 2))],
    "square_sums": lambda x: [*gradients.square_sums(x(37, 70)), np.float64(gradients.square_sum(x(5001)))],
    "factored_root": lambda x: [factored_root(x(7, 33), x(7), x(33))],
    "stream": lambda x: stream(x(1001)),
    "col2im": lambda x: [functional.col2im(x(*COLUMNS), SHAPE, **WINDOW, padding=(1, 2))],
}


def factored_root(x, of_rows, of_columns):
    return layer_kernel("factored_root")(x, of_rows, of_columns, None, 1e-6)


def stream(x):
    out = [x[::-1].copy() for _ in range(4)]
    layer_kernel("stream")(x, *out, 0.5)
    return out


def random_bits(blocks, seed, counter, first):
    return layer_kernel("random_bits")(None, blocks, seed, counter, first)


@pytest.fixture(params=RUN)
def kernel(request):
    return request.param


def test_every_layer_kernel_is_in_the_table_above():
    assert set(RUN) == set(_kernels.LAYERS)


@pytest.mark.parametrize("kernel", sorted(set(RUN) - {"factored_root", "random_bits", "square_sums", "stream"}))
def test_the_table_runs_the_kernel_that_it_names(kernel, hostile, monkeypatch):
    spy = mock.Mock(wraps=getattr(functional, f"_{kernel}"))
    monkeypatch.setattr(functional, f"_{kernel}", spy)
    RUN[kernel](hostile(np.float64))
    assert spy.called


@pytest.mark.parametrize("share", [0, 0.003, 0.1], ids="hostile={}".format)
def test_layers_have_the_same_bits_on_every_isa(kernel, dtype, share, hostile, on_each_isa, same_bits):
    first, *others = on_each_isa(lambda: RUN[kernel](hostile(dtype, share)))
    assert any(np.isfinite(result).any() for result in first)
    for results in others:
        for actual, expected in zip(results, first, strict=True):
            same_bits(actual, expected)


@pytest.mark.parametrize("kernel", [k for k in RUN if k.startswith(("conv_", "dense_", "winograd_"))])
def test_products_have_the_same_bits_by_one_vector_and_by_two(kernel, dtype, hostile, same_bits):
    before, results = _kernels.isa(), []
    try:
        for vectors in (1, 2):
            _kernels.use_product_vectors(vectors)
            results.append(RUN[kernel](hostile(dtype, 0.003)))
    finally:
        _kernels.use_isa(before)
    for actual, expected in zip(*results, strict=True):
        same_bits(actual, expected)


@pytest.mark.parametrize("share", [0, 0.1], ids="hostile={}".format)
def test_steps_have_the_same_bits_on_every_isa(rule, dtype, share, hostile, on_each_isa, same_bits):
    def steps():
        x = hostile(dtype, share)
        results = []
        for n in (1, 7, 31, 33, 1000):
            arrays = [x(n) for _ in ("param", *rule.states)]
            for t in (1, 2, 3):
                rule.step(arrays[0], x(n), *arrays[1:], t=t)
            results += arrays
        return results

    first, *others = on_each_isa(steps)
    for results in others:
        for actual, expected in zip(results, first, strict=True):
            same_bits(actual, expected)


# ---- Denormals -----------------------------------------------------------------------------------


def denormals_work() -> bool:
    return all(np.finfo(t).tiny.astype(t) / t(2) > 0 for t in (np.float32, np.float64))


def test_a_layer_leaves_the_float_mode_alone(kernel, isa, hostile):
    RUN[kernel](hostile(np.float32))
    assert denormals_work()


def test_a_step_leaves_the_float_mode_alone(any_rule, isa, dtype):
    any_rule.step(*np.ones((2 + len(any_rule.states), 40), dtype), t=2)
    assert denormals_work()


def test_denormals_are_zero_within_a_kernel(isa, dtype):
    x = np.full(40, np.finfo(dtype).tiny / 4, dtype)
    functional.sgd(x, np.zeros_like(x), lr=0.5)
    assert not x.any()


# ---- The choice ----------------------------------------------------------------------------------


def python(code, **environment):
    """Run code in a new process."""
    clean = {key: value for key, value in os.environ.items() if key != "FASTOPT_ISA"}
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("products", "pays"), [("own", True), ("blas", False)])
def test_the_environment_chooses_products(products, pays):
    done = python("from fastopt import functional; print(functional.dense_pays())", FASTOPT_PRODUCTS=products)
    assert done.stdout.strip() == str(pays)


def test_unknown_products_are_refused():
    done = python("import fastopt", FASTOPT_PRODUCTS="mine")
    assert done.returncode != 0
    assert "ImportError: FASTOPT_PRODUCTS: it must be one of" in done.stderr


def test_products_pay_whatever_the_instruction_set(isa):
    """Or bits would depend on it."""
    before = _kernels.products_pay()
    for name in _kernels.isas():
        _kernels.use_isa(name)
        assert _kernels.products_pay() == before


def test_the_strongest_set_is_the_default():
    assert python("import fastopt; print(fastopt.isa())").stdout.split() == [fastopt.isas()[0]]


@pytest.mark.parametrize("name", _kernels.isas())
def test_the_environment_chooses(name):
    assert python("import fastopt; print(fastopt.isa())", FASTOPT_ISA=name).stdout.split() == [name]


def test_baseline_is_a_name_everywhere():
    assert python("import fastopt; print(fastopt.isa())", FASTOPT_ISA="baseline").stdout.split() == [fastopt.isas()[-1]]


def test_an_empty_name_is_none():
    assert python("import fastopt; print(fastopt.isa())", FASTOPT_ISA="").stdout.split() == [fastopt.isas()[0]]


@pytest.mark.parametrize("name", ["nonsense", *({"avx512", "avx2", "neon"} - set(_kernels.isas()))])
def test_the_environment_names_no_such_set(name):
    result = python("import fastopt", FASTOPT_ISA=name)
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert message.startswith("ImportError: FASTOPT_ISA: the instruction set must be one that this machine supports")
    assert message.endswith(f"{', '.join(_kernels.isas())}; got {name!r}")


def test_an_unknown_set_is_refused_and_the_old_one_kept(isa):
    with pytest.raises(ValueError, match="nonsense"):
        _kernels.use_isa("nonsense")
    assert fastopt.isa() == isa


# ---- Import and threads --------------------------------------------------------------------------


def test_import_brings_in_numpy_and_nothing_else():
    code = """
import sys
before = set(sys.modules)
import fastopt
new = [name for name in set(sys.modules) - before if getattr(sys.modules[name], "__spec__", None)]
print(*sorted({name.split(".")[0] for name in new} - sys.stdlib_module_names))
print(*sorted(name for name in new if name.startswith("fastopt.")))
"""
    top, own = python(code).stdout.splitlines()
    assert top.split() == ["fastopt", "numpy"]
    lazy = "bench cli data inplace nn reference"
    assert "fastopt._kernels" in own.split()
    assert not set(own.split()) & {f"fastopt.{name}" for name in lazy.split()}


def test_two_threads_step_two_optimizers(any_rule, rng, same_bits):
    n, steps = 30_000, 30  # large enough that a step gives up the GIL
    start, grads = rng.standard_normal((2, n)), rng.standard_normal((steps, n))

    def train(param):
        optimizer = any_rule.make(param)
        for grad in grads:
            optimizer.step(grad)

    alone, together = start.copy(), start.copy()
    for param in alone:
        train(param)
    threads = [threading.Thread(target=train, args=(param,)) for param in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    same_bits(together, alone)


def test_two_threads_cannot_step_one_optimizer():
    """Each step is either taken whole or refused."""
    params = [np.zeros(20_000) for _ in range(50)]
    optimizer = fastopt.SGD(params, lr=1.0)
    refused = []

    def train():
        grads = [np.ones_like(param) for param in params]
        for _ in range(50):
            try:
                optimizer.step(grads)
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=train) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert optimizer.t == 100 - len(refused)
    assert all("another thread" in message for message in refused)
    for param in params:
        np.testing.assert_array_equal(param, -float(optimizer.t))
