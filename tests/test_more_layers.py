"""The kernels of activations other than ReLU, of softmax, group norm, average pooling and embeddings against their
formulas in `fastopt.reference`, on every instruction set."""

import math

import numpy as np
import pytest

from fastopt import functional, reference

# ---- Activations ------------------------------------------------------------------------------------


def spread(rng, shape, dtype):
    """Numbers of all sizes around those at which the functions bend."""
    return (rng.standard_normal(shape) * 10.0 ** rng.integers(-4, 2, shape)).astype(dtype)


SEEING_OUTPUT = ("leaky_relu", "elu", "tanh", "sigmoid")
ALPHAS = [(kind, None) for kind in functional.ACTIVATIONS] + [("leaky_relu", 0.3), ("elu", 0.7), ("leaky_relu", 0)]


@pytest.mark.parametrize(("kind", "alpha"), ALPHAS)
def test_activation(isa, dtype, kind, alpha, size, rng, guarded):
    x, dy = spread(rng, size, dtype), spread(rng, size, dtype)
    y = functional.activation_forward(guarded(x, 1), kind, alpha=alpha, out=guarded(x, 3))
    wanted = reference.activation_forward(x.astype(np.float64), kind, alpha=alpha)
    eps = np.finfo(dtype).eps
    # The tails of GELU are exponentials of a square; and the reference takes the difference of 1 and nearly 1.
    tail = 1 + np.minimum(x.astype(np.float64), 0) ** 2 if kind.startswith("gelu") else 1
    assert (np.abs(y - wanted) <= 8 * (eps * np.abs(wanted) * tail + 2**-53 * np.abs(x))).all()
    seen = y if kind in SEEING_OUTPUT else x
    dx = functional.activation_backward(guarded(dy, 1), guarded(seen, 2), kind, alpha=alpha, out=guarded(x, 3))
    wanted = reference.activation_backward(dy.astype(np.float64), seen.astype(np.float64), kind, alpha=alpha)
    np.testing.assert_allclose(dx, wanted, rtol=8 * eps, atol=8 * eps * np.abs(dy).max(initial=0))


@pytest.mark.parametrize("kind", functional.ACTIVATIONS)
def test_activations_of_special_values(isa, dtype, kind):
    y = functional.activation_forward(np.array([np.nan, 0.0, -0.0, 1e30, -1e30, np.inf], dtype), kind)
    low = {"leaky_relu": -1e28, "elu": -1.0, "tanh": -1.0}.get(kind, 0.0)
    high = 1.0 if kind in ("tanh", "sigmoid") else 1e30
    zero = {"sigmoid": 0.5, "softplus": math.log(2)}.get(kind, 0.0)
    np.testing.assert_allclose(y, [np.nan, zero, zero, high, low, max(high, np.inf if high > 1 else 1)], rtol=1e-6)


def test_the_normal_distribution_keeps_its_digits(isa, dtype):
    """gelu(x) / x far below 0, where 1 + erf has none."""
    x = np.linspace(-12, -0.01, 500) if dtype == np.float64 else np.linspace(-8, -0.01, 500)
    x = x.astype(dtype)
    wanted = np.array([v * math.erfc(-v / math.sqrt(2)) / 2 for v in x.tolist()])
    error = np.abs(functional.activation_forward(x, "gelu") / wanted - 1)
    assert (error <= 4 * np.finfo(dtype).eps * (1 + x.astype(np.float64) ** 2)).all()


# ---- Softmax ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1e4])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (300, 10), (3, 33), (2, 3, 40), (2, 5000), (0, 4), (4, 0)], ids=str)
def test_softmax(isa, dtype, shape, offset, rng, guarded, close):
    x, dy = (offset + 5 * rng.standard_normal(shape)).astype(dtype), rng.standard_normal(shape).astype(dtype)
    log_sum = guarded(np.zeros(math.prod(shape[:-1])), 1)
    y = functional.softmax_forward(guarded(x, 1), out=guarded(x, 2), log_sum=log_sum)
    if not x.size:
        assert y.shape == shape
        assert (log_sum == -np.inf).all()
        return
    exact = x.astype(np.float64)
    wanted = reference.softmax_forward(exact)
    close(y, wanted)
    largest = exact.max(axis=-1)
    np.testing.assert_allclose(
        log_sum, (largest + np.log(np.exp(exact - largest[..., None]).sum(axis=-1))).ravel(), rtol=1e-6
    )
    dx = functional.softmax_backward(guarded(dy, 1), guarded(y, 3), out=guarded(x, 2))
    close(dx, reference.softmax_backward(dy.astype(np.float64), y.astype(np.float64)))


# ---- Layer, group and instance norm -----------------------------------------------------------------

NORMS = [
    ((1, 1), "layer", 1),
    ((5, 7), "layer", 1),
    ((130, 33), "layer", 1),
    ((3, 5000), "layer", 1),
    ((2, 70_001), "layer", 1),
    ((3, 4, 5, 6), "layer", 1),
    ((3, 4, 5, 6), "layer", 3),
    ((7, 6), "group", 3),
    ((4, 5, 6, 8), "group", 2),
    ((4, 5, 6, 8), "group", 1),
    ((2, 3, 3, 700), "group", 2),
    ((2, 3, 3, 700), "group", 350),
    ((2, 40, 41, 3), "group", 1),
    ((70, 2, 2, 4), "group", 2),
    ((4, 5, 6, 8), "instance", 8),
    ((2, 9, 33), "instance", 33),
    ((1, 20, 20, 300), "instance", 300),
]


def norm(module, kind, number, x, *learnt, **options):
    if kind == "layer":
        return module.layer_norm_forward(x, *learnt, axes=number, **options)
    if kind == "group":
        return module.group_norm_forward(x, number, *learnt, **options)
    return module.instance_norm_forward(x, *learnt, **options)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("shape", "kind", "number"), NORMS, ids=str)
def test_norms(isa, dtype, shape, kind, number, affine, rng, guarded, close):
    learnt_shape = shape[len(shape) - number :] if kind == "layer" else shape[-1:]
    x, dy = (3 + 2 * rng.standard_normal(shape)).astype(dtype), rng.standard_normal(shape).astype(dtype)
    learnt = [rng.standard_normal(learnt_shape).astype(dtype) for _ in range(2)] if affine else []
    y, cache = norm(
        functional, kind, number, guarded(x, 1), *(guarded(a, 2) for a in learnt), out=guarded(x, 3), eps=1e-3
    )
    wanted, wanted_cache = norm(
        reference, kind, number, x.astype(np.float64), *(a.astype(np.float64) for a in learnt), eps=1e-3
    )
    tolerance = 1e-12 if dtype == np.float64 else 2e-5
    close(y, wanted, tolerance)
    gradients = functional.group_norm_backward(guarded(dy, 1), cache, out=guarded(x, 3))
    flat = dy.astype(np.float64)
    flat = flat.reshape(-1, math.prod(learnt_shape)) if kind == "layer" else flat
    dx, *dlearnt = reference.group_norm_backward(flat, wanted_cache)
    close(gradients[0], dx.reshape(shape), tolerance)
    for ours, theirs in zip(gradients[1:], dlearnt, strict=True):
        close(ours, theirs, tolerance)


@pytest.mark.parametrize("kind", ["layer", "group", "instance"])
def test_norms_of_a_large_offset_keep_their_digits(isa, dtype, kind, rng):
    offset = 1e4 if dtype == np.float32 else 1e9
    number = {"layer": 1, "group": 2, "instance": 16}[kind]
    x = (offset + rng.standard_normal((4, 20, 16))).astype(dtype)
    y, _ = norm(functional, kind, number, x)
    wanted, _ = norm(reference, kind, number, (x - dtype.type(offset)).astype(np.float64))
    np.testing.assert_allclose(y, wanted, atol=2e-6 if dtype == np.float64 else 2e-3)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
def test_norms_of_nothing(shape):
    for kind, number in (("layer", 2), ("group", 1), ("instance", 4)):
        y, cache = norm(functional, kind, number, np.empty(shape))
        dx, dscale, dshift = functional.group_norm_backward(y, cache)
        assert y.shape == dx.shape == shape
        for zero in (dscale, dshift, cache.mean, cache.inv_std):
            assert not zero.any()


def test_norm_refusals(refuses, rng):
    x, scale = rng.standard_normal((4, 5, 6)), np.ones(6)
    y, cache = functional.group_norm_forward(x, 3, scale)
    group = functional.group_norm_forward
    refuses(lambda: group(x, 4), "groups must divide the number of channels, 6, got 4")
    refuses(lambda: group(x, 0), "groups must be at least 1")
    refuses(lambda: group(x, 2, np.ones(5)), r"scale must have shape \(6,\), got \(5,\)", x)
    refuses(lambda: group(x, 2, eps=-1), r"eps must be in \[0, inf\)")
    refuses(lambda: group(x, 2, scale, out=x), "x and out must not overlap|out and x must not overlap", x)
    refuses(lambda: group(x[:, ::2], 2), "x must be C-contiguous")
    refuses(lambda: group(x, 2, mean=np.ones(3)), r"mean must have shape \(8,\)")
    refuses(lambda: functional.layer_norm_forward(x, axes=4), r"axes must be in \[1, 3\], got 4")
    refuses(lambda: functional.layer_norm_forward(x, np.ones(6), axes=2), r"scale must have shape \(5, 6\)")
    backward = functional.group_norm_backward
    refuses(lambda: backward(y, None), "cache must come from a forward pass of this family, got NoneType")
    refuses(lambda: backward(y[:2].copy(), cache), "dy must have shape", y)
    refuses(lambda: backward(y, cache._replace(groups=4)), "cache.groups must divide", y)
    refuses(lambda: backward(y, cache._replace(mean=np.ones(5))), r"cache.mean must have shape \(12,\)", y)
    refuses(lambda: backward(y, cache, out=x), "out and cache.x must not overlap|cache.x and out", x, y)
    refuses(lambda: backward(y, cache, parts=np.ones(3)), r"parts must have shape", y)
    refuses(lambda: backward(y, cache, dscale=np.ones(5)), "dscale must have 6 elements", y)


# ---- Average pooling and embeddings -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "size", "stride"),
    [
        ((2, 6, 6, 3), (2, 2), (2, 2)),
        ((1, 5, 7, 17), (3, 2), (1, 2)),
        ((3, 4, 4, 33), (4, 4), (4, 4)),
        ((2, 9, 4, 1), (1, 3), (3, 1)),
    ],
)
def test_average_pool(isa, dtype, shape, size, stride, rng, guarded, close):
    x = rng.standard_normal(shape).astype(dtype)
    wanted = reference.average_pool_forward(x.astype(np.float64), size, stride)
    y = functional.average_pool_forward(guarded(x, 1), size, stride, out=guarded(wanted.astype(dtype), 2))
    close(y, wanted)
    dy = rng.standard_normal(y.shape).astype(dtype)
    dx = functional.average_pool_backward(guarded(dy, 1), shape, size, stride, out=guarded(x, 3))
    close(dx, reference.average_pool_backward(dy.astype(np.float64), shape, size, stride))


@pytest.mark.parametrize("channels", [1, 5, 32, 33, 100])
@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation"),
    [
        ((3, 3), (1, 1), (1, 1), (1, 1)),
        ((2, 3), (2, 1), (0, 2), (1, 1)),
        ((3, 2), (1, 3), (4, 0), (2, 3)),
        ((1, 1), (2, 2), (0, 0), (1, 1)),
        ((2, 2), (1, 1), (5, 6), (1, 1)),
    ],
    ids=str,
)
def test_depthwise(isa, dtype, size, stride, padding, dilation, channels, rng, guarded, close):
    x, weight = (
        rng.standard_normal((3, 7, 8, channels)).astype(dtype),
        rng.standard_normal((*size, channels)).astype(dtype),
    )
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    exact = x.astype(np.float64), weight.astype(np.float64)
    wanted = reference.depthwise_forward(*exact, **options)
    out = guarded(wanted.astype(dtype), 2)
    y = functional.depthwise_forward(guarded(x, 1), guarded(weight, 3), out=out, **options)
    close(y, wanted)
    dy = rng.standard_normal(y.shape).astype(dtype)
    dx, dweight = functional.depthwise_backward(
        guarded(dy, 1), x, guarded(weight, 2), out=guarded(x, 3), dweight=guarded(weight, 1), **options
    )
    wanted = reference.depthwise_backward(dy.astype(np.float64), *exact, **options)
    close(dx, wanted[0])
    close(dweight, wanted[1])
    assert functional.depthwise_backward(dy, x, weight, input_grad=False, **options)[0] is None


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (2, 4, 4, 0)], ids=str)
def test_depthwise_of_nothing(shape):
    x, weight = np.empty(shape), np.empty((3, 3, shape[3]))
    y = functional.depthwise_forward(x, weight)
    dx, dweight = functional.depthwise_backward(y, x, weight)
    assert dx.shape == shape
    assert not dweight.any()


def test_depthwise_refusals(refuses, rng):
    x, weight = rng.standard_normal((2, 5, 5, 4)), rng.standard_normal((3, 3, 4))
    forward, backward = functional.depthwise_forward, functional.depthwise_backward
    refuses(lambda: forward(x, weight[:, :, :3].copy()), "weight must have 4 channels, got shape")
    refuses(lambda: forward(x, weight[0]), "weight must have 3 dimensions")
    refuses(lambda: forward(x[0], weight), "x must have 4 dimensions")
    refuses(lambda: forward(x, weight, dilation=3), "size must be at most that of the padded image")
    refuses(lambda: backward(x, x, weight), r"dy must have shape \(2, 3, 3, 4\)", x)
    y = forward(x, weight)
    refuses(
        lambda: backward(y, x, weight, dweight=weight), "dweight and weight must not overlap|weight and dweight", weight
    )


@pytest.mark.parametrize("width", [1, 7, 16, 100])
def test_embedding(isa, dtype, width, rng, guarded, close):
    entries = rng.integers(9, size=(4, 11))
    dy = rng.standard_normal((4, 11, width)).astype(dtype)
    dtable = functional.embedding_backward(
        guarded(dy, 1), entries.astype(np.int16), 9, out=guarded(np.ones((9, width), dtype), 2)
    )
    close(dtable, reference.embedding_backward(dy.astype(np.float64), entries, 9))


def test_embedding_refusals(refuses, rng):
    dy = rng.standard_normal((3, 2))
    refuses(lambda: functional.embedding_backward(dy, np.array([0, 5, 1]), 5), r"entries must be in \[0, 5\), got 5")
    refuses(lambda: functional.embedding_backward(dy, np.array([0, 1]), 5), r"entries must be an array of shape \(3,\)")
    refuses(lambda: functional.embedding_backward(dy, np.ones(3), 5), "entries must be an array of integers")


# ---- Refusals of what is elementwise ----------------------------------------------------------------


def test_activation_refusals(refuses):
    x = np.ones((3, 4))
    refuses(lambda: functional.activation_forward(x, "swish"), "kind must be one of")
    refuses(lambda: functional.activation_forward(x, "elu", alpha=-1), r"alpha must be in \[0, inf\)")
    refuses(lambda: functional.activation_forward(x.astype(int), "elu"), "x must be float32 or float64")
    refuses(lambda: functional.activation_backward(x, np.ones(4), "elu"), r"seen must have shape \(3, 4\)", x)
    refuses(lambda: functional.softmax_forward(x, out=np.ones(4)), r"out must have shape \(3, 4\)")
    refuses(lambda: functional.softmax_forward(x, log_sum=np.ones(4)), r"log_sum must have shape \(3,\)", x)
    refuses(lambda: functional.softmax_backward(x, x[:2]), r"y must have shape \(3, 4\)", x)
