"""Batch, layer, group and instance norm: lost digits, epilogues, channels by themselves, special values."""

import math

import numpy as np
import pytest
from finite_differences import differences

from fastopt import functional, reference

# ---- Batch norm -----------------------------------------------------------------------------------


def batch(rng, shape, dtype):
    """x, dy; scale, shift, running mean and variance."""
    c = shape[1]
    x = rng.normal(rng.normal(size=(c, *[1] * (len(shape) - 2))), rng.uniform(0.5, 2), shape)
    vectors = [rng.normal(size=c), rng.normal(size=c), rng.normal(size=c), rng.uniform(0.5, 2, c)]
    return x.astype(dtype), rng.standard_normal(shape).astype(dtype), [v.astype(dtype) for v in vectors]


LAST = [(6, 3), (6, 40), (5, 7, 9, 3), (5, 7, 9, 40), (2, 3, 4, 5, 32)]


@pytest.mark.parametrize("shape", LAST, ids=str)
def test_batch_norm_with_channels_last(isa, dtype, shape, rng, guarded, close, same_bits):
    c = shape[-1]
    x, dy, vectors = batch(rng, (math.prod(shape[:-1]), c), dtype)
    images, images_dy = (guarded(a.reshape(shape), i) for i, a in enumerate((x, dy)))
    for axis in (-1, len(shape) - 1):
        flat, own = ([v.copy() for v in vectors] for _ in range(2))
        y, cache = functional.batch_norm_forward(images, *own, axis=axis, out=guarded(images, 3))
        same_bits(y, functional.batch_norm_forward(x, *flat, axis=1)[0].reshape(shape))
        for array, wanted in zip(own, flat, strict=True):
            same_bits(array, wanted)
        wide = [v.astype(np.float64) for v in vectors]
        expected, expected_cache, *_ = reference.batch_norm_forward(images.astype(np.float64), *wide, axis=axis)
        close(y, expected)
        gradients = functional.batch_norm_backward(images_dy, cache)
        wanted = reference.batch_norm_backward(images_dy.astype(np.float64), expected_cache)
        for gradient, right in zip(gradients, wanted, strict=True):
            atol = 1e-5 * np.abs(right).max()
            np.testing.assert_allclose(gradient, right, rtol=1e-5, atol=atol)
        y, _ = functional.batch_norm_forward(images, *flat, axis=axis, training=False)
        same_bits(y, functional.batch_norm_forward(x, *flat, training=False, axis=1)[0].reshape(shape))


FUSED = [(50, 3), (9, 32), (37, 45), (70, 256), (5, 3, 4), (5, 3, 31), (4, 33, 7, 7), (3, 2, 70, 70)]


@pytest.mark.parametrize("shape", FUSED, ids=str)
@pytest.mark.parametrize("absent", [(), (0,), (1,), (0, 1)], ids=str)
def test_batch_norm_with_relu_is_both_one_after_the_other(isa, dtype, shape, absent, rng, same_bits):
    x, dy, (scale, shift, *running) = batch(rng, shape, dtype)
    x[0, 0] += 1e4  # an offset, and zeros of all kinds before the ReLU
    scale[1:2] = shift[1:3] = 0
    scale[2:3] = 1
    learnt = [None if i in absent else v for i, v in enumerate((scale, shift))]
    y, cache = functional.batch_norm_forward(x, *learnt, axis=1)
    y = functional.relu_forward(y)
    fused, fused_cache = functional.batch_norm_forward(x, *learnt, relu=True, axis=1)
    same_bits(fused, y)
    assert (y == 0).any()
    assert (y > 0).any()
    wanted = functional.batch_norm_backward(functional.relu_backward(dy, y), cache)
    for gradient, right in zip(functional.batch_norm_backward(dy, fused_cache), wanted, strict=True):
        same_bits(gradient, right)
    expected, expected_cache, *_ = reference.batch_norm_forward(
        x.astype(np.float64),
        *(1.0 - i if v is None else v.astype(np.float64) for i, v in enumerate(learnt)),
        relu=True,
        axis=1,
    )
    np.testing.assert_allclose(fused, expected, rtol=1e-5, atol=1e-5 * expected.max())
    if dtype == np.float64:  # whose zeros are zeros of the reference, too
        wanted = reference.batch_norm_backward(dy, expected_cache)
        for gradient, right in zip(functional.batch_norm_backward(dy, fused_cache), wanted, strict=True):
            np.testing.assert_allclose(gradient, right, atol=1e-9 * np.abs(right).max())

    y, _ = functional.batch_norm_forward(x, *learnt, *running, training=False, axis=1)
    fused, _ = functional.batch_norm_forward(x, *learnt, *running, training=False, relu=True, axis=1)
    same_bits(fused, functional.relu_forward(y))


@pytest.mark.parametrize("shape", [*FUSED, (300, 1200)], ids=str)
@pytest.mark.parametrize("p", [2**-16, 0.3, 0.9])
def test_batch_norm_with_relu_and_dropout_is_all_three_one_after_the_other(isa, dtype, shape, p, rng, same_bits):
    x, dy, (scale, shift, *running) = batch(rng, shape, dtype)
    scale[:1] = shift[1:2] = 0
    seeds = {"seed": 2**63 + 5, "counter": 2**40 + 3}
    y, cache = functional.batch_norm_forward(x, scale, shift, relu=True, axis=1)
    y, mask = functional.dropout(y, p, **seeds)
    fused, fused_cache = functional.batch_norm_forward(x, scale, shift, relu=True, dropout=p, **seeds, axis=1)
    same_bits(fused, y)
    wanted = functional.batch_norm_backward(functional.dropout_backward(dy, mask, p), cache)
    for gradient, right in zip(functional.batch_norm_backward(dy, fused_cache), wanted, strict=True):
        same_bits(gradient, right)

    y, _ = functional.batch_norm_forward(x, scale, shift, *running, training=False, relu=True, axis=1)
    fused, _ = functional.batch_norm_forward(x, scale, shift, *running, training=False, relu=True, dropout=p, axis=1)
    same_bits(fused, y)


WITH_POOL = [
    ((2, 5, 7, 3), (2, 2)),
    ((3, 8, 8, 16), (2, 2)),
    ((1, 9, 4, 33), (3, 2)),
    ((2, 6, 6, 1), (6, 6)),
    ((4, 7, 5, 40), (1, 3)),
    ((2, 5, 5, 300), (2, 2)),
    ((3, 2, 3, 32), (1, 1)),
]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("absent", [(), (0, 1)], ids=str)
@pytest.mark.parametrize(("shape", "size"), WITH_POOL, ids=str)
def test_batch_norm_with_max_pool_is_both_one_after_the_other(
    isa, dtype, shape, size, absent, relu, rng, guarded, same_bits
):
    c, options = shape[3], {"axis": -1, "relu": relu}
    x = rng.integers(-3, 3, shape).astype(dtype)  # with many ties
    vectors = [v.astype(dtype) for v in (*rng.normal(size=(3, c)), rng.uniform(0.5, 2, c))]
    vectors[0][:1] = 0
    vectors[0][1:2] = 1e-30  # by which different x become the same y
    own = [None if i in absent else v.copy() for i, v in enumerate(vectors)]
    flat = [None if i in absent else v.copy() for i, v in enumerate(vectors)]
    y, cache = functional.batch_norm_forward(x, *flat, **options)
    pooled, winner = functional.max_pool_forward(y, size)
    given = guarded(x, 1)
    places = {"out": guarded(pooled * 0, 2), "chosen": guarded(pooled * 0, 3)}
    fused, fused_cache = functional.batch_norm_forward(given, *own, **options, max_pool=size, **places)
    assert fused is places["out"]
    assert fused_cache.chosen is places["chosen"]
    for one, other in zip([fused, *own[2:], fused_cache.mean], [pooled, *flat[2:], cache.mean], strict=True):
        same_bits(one, other)

    dy = rng.standard_normal(pooled.shape).astype(dtype)
    wanted = functional.batch_norm_backward(functional.max_pool_backward(dy, winner, shape, size), cache)
    gradients = functional.batch_norm_backward(guarded(dy, 1), fused_cache, out=guarded(x, 2))
    tolerance = 1e-13 if dtype == np.float64 else 2e-6
    atol = tolerance * np.sqrt(x.size) * np.abs(dy).max()
    for gradient, right in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(gradient, right, rtol=0, atol=atol * max(1, np.abs(right).max()))
    wide = [1.0 - i if v is None else v.astype(np.float64) for i, v in enumerate(own)]
    expected, expected_cache, *_ = reference.batch_norm_forward(x.astype(np.float64), *wide[:2], **options)
    np.testing.assert_allclose(fused, reference.max_pool_forward(expected, size, size)[0], rtol=1e-5, atol=1e-5)
    by_reference = reference.batch_norm_backward(
        reference.max_pool_backward(dy.astype(np.float64), winner, shape, size, size), expected_cache
    )
    for gradient, right in zip(gradients, by_reference, strict=True):
        np.testing.assert_allclose(gradient, right, rtol=0, atol=atol * max(1, np.abs(right).max()))
    in_place = functional.batch_norm_backward(dy, fused_cache, out=given)
    assert in_place[0] is given
    for one, other in zip(in_place, gradients, strict=True):
        same_bits(one, other)

    y, _ = functional.batch_norm_forward(x, *own, **options, training=False)
    fused, nothing = functional.batch_norm_forward(x, *own, **options, training=False, max_pool=size)
    assert nothing is None
    same_bits(fused, functional.max_pool_forward(y, size)[0])


def test_batch_norm_with_max_pool_keeps_nan(isa, dtype, rng):
    x = rng.standard_normal((2, 6, 4, 19)).astype(dtype)
    x[1, 2, 3, 4] = np.nan
    y, cache = functional.batch_norm_forward(x, axis=-1, relu=True, max_pool=2)
    dx, dscale, _ = functional.batch_norm_backward(np.ones_like(y), cache)
    bad = np.arange(19) == 4
    for result in (y, dx, dscale):
        np.testing.assert_array_equal(np.isnan(result), np.broadcast_to(bad, result.shape))


def test_relu_of_a_batch_norm_keeps_nan(isa, dtype, rng):
    x = rng.standard_normal((40, 35)).astype(dtype)
    x[3, 7] = np.nan
    y, cache = functional.batch_norm_forward(x, relu=True, axis=1)
    assert np.isnan(y[:, 7]).all()
    assert (np.delete(y, 7, 1) >= 0).all()
    dx, _, _ = functional.batch_norm_backward(np.ones_like(x), cache)
    assert np.isnan(dx[:, 7]).all()
    assert np.isfinite(np.delete(dx, 7, 1)).all()


def everything(x, dy, vectors, **options):
    """All that batch norm returns and updates."""
    vectors = [v.copy() for v in vectors]
    y, cache = functional.batch_norm_forward(x, *vectors, **options, axis=1)
    return [y, cache.mean, cache.inv_std, *vectors[2:], *functional.batch_norm_backward(dy, cache)]


def of_channels(results, which):
    """What concerns some channels."""
    return [a[:, which] if a.ndim > 1 else a[which] for a in results]


NEIGHBOURS = {
    "NaN": lambda x: np.full_like(x, np.nan),
    "infinite": lambda x: np.full_like(x, np.inf),
    "far off": lambda x: outlier(x + 1e4, -3e6),
    "an outlier where means are guessed": lambda x: outlier(x.copy(), 1e7),
}


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kind", NEIGHBOURS)
@pytest.mark.parametrize("shape", [(50, 3), (150, 20), (300, 40), (30, 1061), (6, 40, 7, 7), (40, 37, 33), (9, 50, 3)])
def test_a_channel_does_not_depend_on_its_neighbours(isa, dtype, shape, kind, relu, rng, same_bits):
    x, dy, vectors = batch(rng, shape, dtype)
    own = np.arange(shape[1]) % 3 == 1
    expected = of_channels(everything(x, dy, vectors, relu=relu), own)
    with np.errstate(all="ignore"):
        x[:, ~own] = NEIGHBOURS[kind](x[:, ~own])
    for actual, wanted in zip(of_channels(everything(x, dy, vectors, relu=relu), own), expected, strict=True):
        same_bits(actual, wanted)


@pytest.mark.parametrize(
    ("shape", "start", "end"),
    [((70, 1061), 0, 32), ((300, 1061), 64, 1061), ((150, 128), 32, 80), ((150, 40), 0, 32), ((9, 2200), 1024, 2200)]
    + [(shape, c, c + 1) for shape in [(6, 40, 7, 7), (40, 37, 33), (40, 3, 1100), (9, 5, 3)] for c in (0, 2)],
)
def test_channels_alone_have_the_bits_that_they_have_among_others(isa, dtype, shape, start, end, rng, same_bits):
    """To be shared out among threads: where channels lie side by side, at multiples of 32 channels."""
    x, dy, vectors = batch(rng, shape, dtype)
    outlier(x, 1e6)  # has means looked for twice
    expected = of_channels(everything(x, dy, vectors), slice(start, end))
    x, dy = (np.ascontiguousarray(a[:, start:end]) for a in (x, dy))
    for actual, wanted in zip(everything(x, dy, [v[start:end] for v in vectors]), expected, strict=True):
        same_bits(actual, wanted)


@pytest.mark.parametrize("shape", [(37, 256), (37, 133), (50, 16), (3, 5, 196)], ids=str)
def test_batch_norm_does_not_depend_on_where_arrays_lie(isa, dtype, shape, rng, guarded, same_bits):
    x, dy, vectors = batch(rng, shape, dtype)
    expected = everything(x, dy, vectors, relu=True)
    for offset in range(17):
        placed = guarded(x, offset), guarded(dy, offset // 2), [guarded(v, offset) for v in vectors]
        for actual, wanted in zip(everything(*placed, relu=True), expected, strict=True):
            same_bits(actual, wanted)


@pytest.mark.parametrize("absent", [(0,), (1,), (0, 1), (2, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("shape", [(9, 40), (9, 5), (4, 3, 35)], ids=str)
def test_batch_norm_without_some_of_its_vectors(shape, absent, rng, close):
    x, dy, vectors = batch(rng, shape, np.float64)
    vectors = [None if i in absent else v for i, v in enumerate(vectors)]
    stand_ins = [default if v is None else v for v, default in zip(vectors[:2], (1.0, 0.0), strict=True)]
    expected, expected_cache, *running = reference.batch_norm_forward(x, *stand_ins, *vectors[2:], axis=1)
    y, cache = functional.batch_norm_forward(x, *vectors, axis=1)
    close(y, expected)
    for gradient, wanted in zip(
        functional.batch_norm_backward(dy, cache),
        reference.batch_norm_backward(dy, expected_cache),
        strict=True,
    ):
        close(gradient, wanted)
    if vectors[2] is not None:
        close(vectors[2], running[0])
        close(vectors[3], running[1])
        y, _ = functional.batch_norm_forward(x, *vectors, training=False, axis=1)
        close(y, reference.batch_norm_forward(x, *stand_ins, *vectors[2:], training=False, axis=1)[0])


@pytest.mark.parametrize("eps", [0, 1e-5, 10])
@pytest.mark.parametrize("momentum_of", ["new", "old"])
@pytest.mark.parametrize("momentum", [0, 0.1, 0.99, 1])
@pytest.mark.parametrize("unbiased", [True, False])
def test_batch_norm_options(eps, momentum, momentum_of, unbiased, rng, close):
    options = {"eps": eps, "momentum": momentum, "momentum_of": momentum_of, "unbiased": unbiased}
    x, _, vectors = batch(rng, (5, 3), np.float64)
    expected, _, *running = reference.batch_norm_forward(x, *vectors, **options)
    y, _ = functional.batch_norm_forward(x, *vectors, **options)
    for array, wanted in zip((y, *vectors[2:]), (expected, *running), strict=True):
        close(array, wanted)


def test_batch_norm_of_one_value_per_channel(rng):
    """Its variance is 0, so nothing is left but the shift; the biased running variance takes the 0 in."""
    x, _, (scale, shift, mean, var) = batch(rng, (1, 5), np.float64)
    np.testing.assert_array_equal(functional.batch_norm_forward(x, scale, shift, axis=1)[0], shift[None])
    before = var.copy()
    functional.batch_norm_forward(x, scale, shift, mean, var, unbiased=False, axis=1)
    np.testing.assert_allclose(var, 0.9 * before)


HARD = {  # what stands in the way of a sum in float32
    "offset": lambda rng, shape, noise: 1e4 + noise * rng.standard_normal(shape),
    "negative offset": lambda rng, shape, noise: -1e4 + noise * rng.standard_normal(shape),
    "first is an outlier": lambda rng, shape, noise: outlier(1e4 + noise * rng.standard_normal(shape), 2e4),
    "first is far off": lambda rng, shape, noise: outlier(0.1 + noise * rng.standard_normal(shape), -1e4),
}


def outlier(x, value):
    x.reshape(*x.shape[:2], -1)[0, :, 0] = value
    return x


@pytest.mark.parametrize("shape", [(300, 5), (1000, 33), (100_000, 2), (4, 3, 57), (2, 2, 100_003)], ids=str)
@pytest.mark.parametrize("noise", [0.01, 1, 100])
@pytest.mark.parametrize("kind", HARD)
def test_batch_norm_loses_no_digits(isa, kind, noise, shape, rng):
    x = HARD[kind](rng, shape, noise).astype(np.float32)
    dy = rng.standard_normal(shape).astype(np.float32)
    running = np.zeros(shape[1], np.float32), np.ones(shape[1], np.float32)
    y, cache = functional.batch_norm_forward(x, None, None, *running, momentum=1, axis=1)
    expected, expected_cache, *expected_running = reference.batch_norm_forward(
        x.astype(np.float64), 1.0, 0.0, *(r.astype(np.float64) for r in running), momentum=1, axis=1
    )
    gradients = functional.batch_norm_backward(dy, cache)
    wanted = reference.batch_norm_backward(dy.astype(np.float64), expected_cache)
    for actual, right in zip((y, running[1], *gradients), (expected, expected_running[1], *wanted), strict=True):
        np.testing.assert_allclose(actual, right, rtol=1e-4, atol=1e-4 * np.sqrt(np.mean(right**2)))
    np.testing.assert_allclose(running[0], expected_running[0], rtol=1e-6, atol=1e-4 * x.std())


def test_batch_norm_of_a_constant_is_the_shift(isa, dtype):
    for value in (0.1, 1e4 + 0.1, -3e7):
        x = np.full((1000, 7), value, dtype)
        y, _ = functional.batch_norm_forward(x, np.ones(7, dtype), np.full(7, 0.25, dtype), axis=1)
        np.testing.assert_allclose(y, 0.25, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 3), (3, 2, 3), (2, 33), (2, 1, 2, 2)], ids=str)
def test_batch_norm_backward_by_finite_differences(shape, rng):
    x, dy, (scale, shift, *_) = batch(rng, shape, np.float64)
    _, cache = functional.batch_norm_forward(x, scale, shift, axis=1)
    gradients = functional.batch_norm_backward(dy, cache)

    def loss():
        return np.vdot(dy, functional.batch_norm_forward(x, scale, shift, axis=1)[0])

    for array, gradient in zip((x, scale, shift), gradients, strict=True):
        np.testing.assert_allclose(gradient, differences(loss, array), rtol=1e-6, atol=1e-7)


def test_a_nan_spoils_its_channel_alone(isa, dtype, rng):
    for shape, clean in (
        ((50, 40), (slice(None), np.arange(40) != 7)),
        ((5, 4, 45), (slice(None), np.arange(4) != 2)),
    ):
        x = rng.standard_normal(shape).astype(dtype)
        expected = functional.batch_norm_forward(x, axis=1)[0]
        x[1, ~clean[1]] = np.nan
        y = functional.batch_norm_forward(x, axis=1)[0]
        assert np.isnan(y[:, ~clean[1]]).all()
        np.testing.assert_allclose(y[clean], expected[clean], atol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 3, 4), (2, 3, 0)], ids=str)
def test_batch_norm_of_nothing(shape):
    c = shape[1]
    running = np.zeros(c), np.ones(c)
    y, cache = functional.batch_norm_forward(np.empty(shape), np.ones(c), np.ones(c), *running, axis=1)
    dx, dscale, dshift = functional.batch_norm_backward(y, cache)
    assert y.shape == dx.shape == shape
    for zero in (dscale, dshift, running[0], running[1] - 1):
        np.testing.assert_array_equal(zero, np.zeros(c))


# ---- Layer, group and instance norm ---------------------------------------------------------------


def norm(module, kind, number, x, *learnt, **options):
    if kind == "layer":
        return module.layer_norm_forward(x, *learnt, axes=number, **options)
    if kind == "group":
        return module.group_norm_forward(x, number, *learnt, **options)
    return module.instance_norm_forward(x, *learnt, **options)


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
    refuses(lambda: backward(y[:2].copy(), cache), "dy must have 120 elements", y)
    refuses(lambda: backward(y, cache._replace(groups=4)), "cache.groups must divide", y)
    refuses(lambda: backward(y, cache._replace(mean=np.ones(5))), r"cache.mean must have shape \(12,\)", y)
    refuses(lambda: backward(y, cache, out=x), "out and cache.x must not overlap|cache.x and out", x, y)
    refuses(lambda: backward(y, cache, parts=np.ones(3)), r"parts must have shape", y)
    refuses(lambda: backward(y, cache, dscale=np.ones(5)), "dscale must have 6 elements", y)


# ---- Running statistics, and weight norm ----------------------------------------------------------


def test_batch_norm_by_running_statistics_in_pytorch(isa, dtype, rng, close):
    torch = pytest.importorskip("torch")
    dy, x = rng.standard_normal((2, 6, 5, 7)).astype(dtype)
    scale, shift, mean = rng.standard_normal((3, 7)).astype(dtype)
    var = rng.uniform(0.5, 2, 7).astype(dtype)
    given = [torch.tensor(a, requires_grad=True) for a in (x, scale, shift)]
    y = torch.nn.functional.batch_norm(
        given[0].movedim(-1, 1), torch.tensor(mean), torch.tensor(var), *given[1:], eps=1e-3
    )
    y.movedim(1, -1).backward(torch.tensor(dy))
    results = functional.batch_norm_inference_backward(dy, x, scale, mean, var, eps=1e-3)
    for result, tensor in zip(results, given, strict=True):
        close(result, tensor.grad.numpy(), 1e-12 if dtype == np.float64 else 1e-5)


def test_weight_norm_in_pytorch(isa, dtype, rng, close):
    torch = pytest.importorskip("torch")
    direction, dweight = rng.standard_normal((2, 3, 2, 67)).astype(dtype)
    gain = rng.standard_normal(67).astype(dtype)
    given = [torch.tensor(direction, requires_grad=True), torch.tensor(gain, requires_grad=True)]
    weight = torch._weight_norm(given[0].movedim(-1, 0), given[1].reshape(-1, 1, 1), 0).movedim(0, -1)
    weight.backward(torch.tensor(dweight))
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    ours, cache = functional.weight_norm_forward(direction, gain)
    close(ours, weight.detach().numpy(), tolerance)
    for result, tensor in zip(functional.weight_norm_backward(dweight, cache), given, strict=True):
        close(result, tensor.grad.numpy(), tolerance)


def test_a_direction_of_zeros_has_no_weight():
    weight, cache = functional.weight_norm_forward(np.array([[0.0, 3.0], [0.0, 4.0]]), np.array([1.0, 5.0]))
    np.testing.assert_array_equal(weight, [[np.nan, 3], [np.nan, 4]])
    assert cache.norm.tolist() == [0, 5]
    with pytest.raises(TypeError, match="cache must come from weight_norm_forward, got NoneType"):
        functional.weight_norm_backward(weight, None)
