"""Gradients: norms, clipping, accumulation and noise, beside plain NumPy."""

import math

import numpy as np
import pytest

import fastopt
from fastopt import gradients

SHAPES = [(3, 4), (), (17,), (0, 5), (2, 3, 70), (1,), (9000,)]
STRUCTURES = {"list": list, "dict": lambda arrays: {f"w{i}": a for i, a in enumerate(arrays)}}


@pytest.fixture(params=STRUCTURES)
def structure(request):
    return STRUCTURES[request.param]


def draw(rng, dtype=np.float64):
    return [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]


def members(grads):
    return list(grads.values()) if isinstance(grads, dict) else grads


def norm_of(arrays):
    return math.sqrt(sum(float(np.square(a, dtype=float).sum()) for a in arrays))


# ---- Norms ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 31, 33, 4095, 4096, 4097, 100_003])
def test_square_sum(n, dtype, rng, on_each_isa):
    x = rng.standard_normal(n).astype(dtype)
    results = on_each_isa(lambda: gradients.square_sum(x))
    assert results[0] == pytest.approx(float(np.square(x, dtype=float).sum()), rel=1e-13)
    assert set(results) == {results[0]}


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (5, 63), (70, 65), (3, 200), (300, 1)], ids=str)
def test_square_sums(shape, dtype, rng, on_each_isa, same_bits):
    x = rng.standard_normal(shape).astype(dtype)
    results = on_each_isa(lambda: gradients.square_sums(x))
    for axis in (0, 1):
        wanted = np.square(x, dtype=float).sum(axis=1 - axis)
        np.testing.assert_allclose(results[0][axis], wanted, rtol=1e-13)
        for other in results[1:]:
            same_bits(other[axis], results[0][axis])


def test_threads_make_no_difference(rng, same_bits):
    x = rng.standard_normal((3000, 700))
    before = fastopt.get_num_threads()
    results = []
    for count in (1, 2, 5):
        fastopt.set_num_threads(count)
        results.append((*gradients.square_sums(x), np.float64(gradients.global_norm([x, x[:5]]))))
    fastopt.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            same_bits(a, b)


def test_global_norm(structure, dtype, rng):
    grads = draw(rng, dtype)
    assert gradients.global_norm(structure(grads)) == pytest.approx(norm_of(grads), rel=1e-13)
    assert gradients.global_norm([]) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_all_finite(structure, bad, dtype, rng):
    grads = draw(rng, dtype)
    grads[2][3] = np.finfo(dtype).max  # whose square is not finite in float64
    assert gradients.all_finite(structure(grads))
    grads[4][1, 2, 69] = bad
    assert not gradients.all_finite(structure(grads))


# ---- Clipping ---------------------------------------------------------------------------------------


def test_clip_by_value(structure, dtype, rng):
    grads = draw(rng, dtype)
    wanted = [np.clip(g, -0.5, 0.5) for g in grads]
    gradients.clip_by_value(structure(grads), 0.5)
    for grad, clipped in zip(grads, wanted, strict=True):
        np.testing.assert_array_equal(grad, clipped)


@pytest.mark.parametrize("limit", [0.5, 3.0, 1e6])
def test_clip_by_norm(structure, limit, rng, close):
    grads = draw(rng)
    before = [g.copy() for g in grads]
    norms = gradients.clip_by_norm(structure(grads), limit)
    for grad, old, norm in zip(grads, before, norms, strict=True):
        assert norm == pytest.approx(norm_of([old]))
        close(grad, old * min(1.0, limit / norm) if norm else old)


@pytest.mark.parametrize("eps", [0.0, 1e-2])
@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_clip_by_global_norm(structure, limit, eps, rng, close):
    grads = draw(rng)
    before = [g.copy() for g in grads]
    norm = gradients.clip_by_global_norm(structure(grads), limit, eps=eps)
    assert norm == pytest.approx(norm_of(before))
    for grad, old in zip(grads, before, strict=True):
        close(grad, old * min(1.0, limit / (norm + eps)))


@pytest.mark.parametrize("clip", [gradients.clip_by_norm, gradients.clip_by_global_norm])
def test_what_is_not_finite_is_not_clipped(clip, refuses):
    grads = [np.ones(3), np.array([1.0, np.nan])]
    refuses(lambda: clip(grads, 0.1), "grads must be finite to be clipped by their norm, got a norm of nan", *grads)
    for limit in (0, -1, np.nan, np.inf):
        refuses(lambda limit=limit: clip([np.ones(3)], limit), r"limit must be in \(0, inf\)")


# ---- The rest ---------------------------------------------------------------------------------------


def test_centralize(rng, close):
    grads = draw(rng)
    before = [g.copy() for g in grads]
    gradients.centralize(grads)
    for grad, old in zip(grads, before, strict=True):
        if old.ndim < 2 or not old.size:
            np.testing.assert_array_equal(grad, old)
        else:
            close(grad, old - old.mean(axis=tuple(range(old.ndim - 1))))
            np.testing.assert_allclose(grad.mean(axis=tuple(range(old.ndim - 1))), 0, atol=1e-15)


def test_noise_has_the_variance_of_its_step():
    for t, gamma in ((0, 0.55), (99, 0.55), (99, 1.0)):
        grad = np.zeros(100_000)
        gradients.add_noise(grad, t, eta=0.3, gamma=gamma, seed=1)
        assert grad.var() == pytest.approx(0.3 / (1 + t) ** gamma, rel=0.02)
        assert abs(grad.mean()) < 0.01
    again, other = np.zeros(100_000), np.zeros(100_000)
    gradients.add_noise(again, 99, eta=0.3, gamma=1.0, seed=1)
    gradients.add_noise(other, 98, eta=0.3, gamma=1.0, seed=1)
    np.testing.assert_array_equal(again, grad)
    assert abs(np.corrcoef(again, other)[0, 1]) < 0.02


def test_accumulated_gradients_are_those_of_the_large_batch(structure, rng, close):
    params = structure(draw(rng))
    parts = [structure(draw(rng)) for _ in range(4)]
    together = fastopt.gradients.Accumulator(params)
    for part in parts:
        together.add(part)
    assert together.count == 4
    for i, total in enumerate(members(together.grads)):
        close(total, sum(members(part)[i] for part in parts))
    kept = members(together.grads)
    together.reset()
    together.add(parts[0], weight=0.25)
    assert together.count == 1
    for total, same, part in zip(members(together.grads), kept, members(parts[0]), strict=True):
        assert total is same
        close(total, 0.25 * part)


def test_an_accumulator_refuses_whole(refuses):
    together = gradients.Accumulator([np.zeros(3), np.zeros(2)])
    together.add([np.ones(3), np.ones(2)])
    refuses(lambda: together.add([np.ones(3), np.ones(3)]), r"grads\[1\] must have shape \(2,\)", *together.grads)
    assert together.count == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda g: gradients.clip_by_value(g, 0.1),
        lambda g: gradients.clip_by_global_norm(g, 0.1),
        gradients.centralize,
        lambda g: gradients.add_noise(g, 1),
    ],
)
def test_what_is_not_writable_is_refused_whole(call, refuses):
    grads = [np.ones((2, 3)), np.ones((2, 3))]
    grads[1].flags.writeable = False
    refuses(lambda: call(grads), r"grads\[1\] must be writable", *grads)


# ---- Penalties --------------------------------------------------------------------------------------


@pytest.mark.parametrize("keywords", [{"l2": 0.3}, {"beta": 0.7}], ids=str)
def test_elastic_net_is_the_gradient_of_its_penalty(keywords, rng, close):
    """Both notations, by finite differences of the term that they stand for."""
    w, strength, h = rng.standard_normal(9), 0.2, 1e-6

    def term(w):
        if "l2" in keywords:
            return strength * abs(w).sum() + keywords["l2"] * np.square(w).sum()
        return strength * (keywords["beta"] * np.square(w).sum() + abs(w).sum())

    slope = np.array([(term(w + h * e) - term(w - h * e)) / (2 * h) for e in np.eye(9)])
    net = fastopt.elastic_net(strength, **keywords)
    assert fastopt.penalty(w, **net) == pytest.approx(term(w))
    stepped = w.copy()
    fastopt.SGD(stepped, lr=1.0, **net).step(np.zeros(9))
    close(w - stepped, slope, 1e-8)


def test_elastic_net_wants_one_notation(refuses):
    refuses(lambda: fastopt.elastic_net(0.1), "one of l2 and beta must be given")
    refuses(lambda: fastopt.elastic_net(0.1, l2=1, beta=1), "one of l2 and beta must be given")
    refuses(lambda: fastopt.elastic_net(-0.1, l2=1), "strength must be in ")
