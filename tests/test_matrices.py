"""Adafactor, Muon and L-BFGS."""

import functools

import numpy as np
import pytest

import fastopt
from fastopt import matrices, reference

SHAPES = {"tall": (40, 7), "wide": (5, 66), "square": (8, 8), "one": (1, 1)}


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


# ---- Adafactor --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"eps1": 1e-3, "d": 0.5}, {"weight_decay": 0.1, "beta2_decay": -0.5}], ids=str)
def test_adafactor_by_the_reference(shape, options, dtype, rng, close):
    param, *grads = rng.standard_normal((6, *shape)).astype(dtype)
    vector, *slopes = rng.standard_normal((6, 33)).astype(dtype)
    expected = [param.astype(float), np.zeros(shape[0]), np.zeros(shape[1])]
    expected_vector = [vector.astype(float), np.zeros(33)]
    optimizer = fastopt.Adafactor({"w": param, "b": vector}, lr=0.1, **options)
    hyper = {"eps1": float(np.finfo(dtype).eps)} | options
    for t, (grad, slope) in enumerate(zip(grads, slopes, strict=True), start=1):
        optimizer.step({"w": grad, "b": slope})
        expected = reference.adafactor(expected[0], grad.astype(float), *expected[1:], t=t, lr=0.1, **hyper)
        expected_vector = reference.adafactor_vector(
            expected_vector[0], slope.astype(float), expected_vector[1], t=t, lr=0.1, **hyper
        )
    for array, wanted in zip((param, *optimizer.state["w"].values()), expected, strict=True):
        close(array, wanted)
    for array, wanted in zip((vector, *optimizer.state["b"].values()), expected_vector, strict=True):
        close(array, wanted)


@pytest.mark.parametrize("options", [{}, {"d": 1.5, "eps": (1e-4, 1e-2)}, {"weight_decay": 0.1}], ids=str)
def test_adafactor_of_pytorch(options, dtype, rng):
    torch = pytest.importorskip("torch")
    params = {"w": rng.standard_normal((12, 5)).astype(dtype), "b": rng.standard_normal(9).astype(dtype)}
    theirs = [torch.nn.Parameter(torch.tensor(p)) for p in params.values()]
    own = {key: value for key, value in options.items() if key != "eps"}
    own |= dict(zip(("eps1", "eps2"), options.get("eps", ()), strict=False))
    ours, their = fastopt.Adafactor(params, 0.02, **own), torch.optim.Adafactor(theirs, lr=0.02, **options)
    for _ in range(200):
        grads = {key: (p + 0.1 * rng.standard_normal(p.shape)).astype(dtype) for key, p in params.items()}
        ours.step(grads)
        for tensor, grad in zip(theirs, grads.values(), strict=True):
            tensor.grad = torch.tensor(grad)
        their.step()
    for param, tensor in zip(params.values(), theirs, strict=True):
        np.testing.assert_allclose(param, tensor.detach().numpy(), rtol=0, atol=1e-10 if dtype == np.float64 else 1e-5)


def test_adafactor_has_the_same_bits_everywhere(rng, on_each_isa, same_bits):
    start, grads = rng.standard_normal((300, 130)), rng.standard_normal((3, 300, 130))

    def run(threads=1):
        before = fastopt.get_num_threads()
        fastopt.set_num_threads(threads)
        param = start.copy()
        optimizer = fastopt.Adafactor(param, 0.1)
        for grad in grads:
            optimizer.step(grad)
        fastopt.set_num_threads(before)
        return param

    first, *others = [*on_each_isa(run), run(3)]
    for other in others:
        same_bits(other, first)


# ---- Muon -------------------------------------------------------------------------------------------


def test_orthogonalize_keeps_the_singular_vectors(shape, rng):
    x = rng.standard_normal(shape)
    y = matrices.orthogonalize(x)
    left, _, right = np.linalg.svd(x, full_matrices=False)
    inner = left.T @ y @ right.T
    np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=1e-12)
    assert ((np.diag(inner) > 0.3) & (np.diag(inner) < 1.3)).all()
    assert not matrices.orthogonalize(np.zeros(shape)).any()


@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_by_the_reference(shape, nesterov, rng, close):
    param, *grads = rng.standard_normal((5, *shape))
    by_hand, buffer = param.copy(), np.zeros(shape)
    expected = [param.copy(), np.zeros(shape)]
    optimizer = fastopt.MuonMatrices(param, 0.1, nesterov=nesterov, weight_decay=0.3)
    for grad in grads:
        optimizer.step(grad, grad_scale=0.5)
        matrices.muon(by_hand, grad, buffer, lr=0.1, nesterov=nesterov, weight_decay=0.3, grad_scale=0.5)
        expected = reference.muon(expected[0], 0.5 * grad, expected[1], lr=0.1, nesterov=nesterov, weight_decay=0.3)
    for one, other in ((param, optimizer.state["param"]["momentum"]), (by_hand, buffer)):
        close(one, expected[0], 1e-9)
        close(other, expected[1])


@pytest.mark.slow
def test_muon_of_optax(rng, monkeypatch):
    """Without Nesterov's step, where Optax corrects a bias that the others do not, and without an eps beside the norm,
    which that correction would scale."""
    monkeypatch.setattr(matrices, "orthogonalize", functools.partial(matrices.orthogonalize, eps=0.0))
    pytest.importorskip("optax.contrib")
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    with jax.enable_x64(True):
        param = rng.standard_normal((9, 14))
        ours = fastopt.MuonMatrices(param, 0.02, nesterov=False, momentum=0.9)
        theirs = jax.numpy.asarray(param)
        transform = optax.contrib.muon(0.02, beta=0.9, nesterov=False, eps=0.0)
        state = transform.init(theirs)
        update = jax.jit(transform.update, compiler_options={"xla_backend_optimization_level": 0})
        for _ in range(50):
            grad = param + 0.1 * rng.standard_normal(param.shape)
            updates, state = update(jax.numpy.asarray(grad), state, theirs)
            ours.step(grad)
            theirs = optax.apply_updates(theirs, updates)
        np.testing.assert_allclose(param, np.asarray(theirs), rtol=0, atol=1e-10)


def test_muon_leaves_the_rest_to_adamw(rng, same_bits):
    params = {
        "conv": rng.standard_normal((3, 3, 4, 6)),
        "bias": rng.standard_normal(6),
        "out": rng.standard_normal((6, 2)),
    }
    twin = {key: p.copy() for key, p in params.items()}
    muon = fastopt.Muon(params, 0.05, rest_lr=0.01, matrices="conv", weight_decay=0.1)
    adamw = fastopt.AdamW({key: twin[key] for key in ("bias", "out")}, 0.01, beta2=0.95, weight_decay=0.1)
    alone = fastopt.MuonMatrices(twin["conv"].reshape(36, 6), 0.05, weight_decay=0.1)
    for _ in range(4):
        grads = {key: rng.standard_normal(p.shape) for key, p in params.items()}
        muon.step(grads)
        adamw.step({key: grads[key] for key in ("bias", "out")})
        alone.step(grads["conv"].reshape(36, 6))
    for key, param in params.items():
        same_bits(param, twin[key])
    muon.lr = 0.1
    assert (muon.lr, muon.rest.lr) == (0.1, 0.02)
    assert muon.t == 4


def test_muon_refuses_whole(refuses):
    params = {"w": np.ones((2, 3)), "b": np.ones(3)}
    muon = fastopt.Muon(params)
    refuses(lambda: muon.step({"w": np.ones((2, 3)), "b": np.ones(4)}), r"grads\[b\] must have shape", *params.values())
    assert (muon.matrices.t, muon.rest.t) == (0, 0)
    refuses(lambda: fastopt.MuonMatrices(params), r"params\[b\] must have two axes or more", *params.values())


@pytest.mark.parametrize("make", [fastopt.Adafactor, fastopt.MuonMatrices, fastopt.Muon])
def test_the_minimum_is_found(make, rng):
    target, w = rng.standard_normal((6, 4)), np.zeros((6, 4))
    optimizer = make([w], 0.1)
    for t in range(400):
        optimizer.lr = 0.1 * (1 - t / 400)
        optimizer.step([w - target])
    assert np.linalg.norm(w - target) < 0.05 * np.linalg.norm(target)


@pytest.mark.parametrize("make", [fastopt.Adafactor, fastopt.MuonMatrices])
def test_what_every_optimizer_has(make, rng, same_bits):
    """Groups, frozen parameters, schedules and clipping come from the same class."""
    params = {"a": np.ones((3, 4)), "b": np.ones((2, 5)), "c": np.ones((2, 2))}
    schedule = fastopt.schedules.bind(fastopt.schedules.linear, peak=0.1, steps=10)
    optimizer = make(
        params,
        schedule,
        clip_global_norm=1.0,
        groups=[{"params": "b", "frozen": True}, {"params": "c", "lr_factor": 0}],
    )
    for _ in range(3):
        optimizer.step({"a": np.ones((3, 4)), "c": np.ones((2, 2))})
    assert optimizer.lr == pytest.approx(0.08)
    assert optimizer.grad_norm == pytest.approx(4)
    same_bits(params["b"], np.ones((2, 5)))
    same_bits(params["c"], np.ones((2, 2)))
    assert (params["a"] < 1).all()


# ---- L-BFGS -----------------------------------------------------------------------------------------


def test_lbfgs_solves_least_squares(dtype, rng):
    pytest.importorskip("scipy")
    x, y = rng.standard_normal((50, 6)), rng.standard_normal((50, 2))
    params = {"w": np.zeros((6, 2), dtype), "b": np.zeros(2, dtype)}

    def closure():
        error = x @ params["w"] + params["b"] - y
        grads = {"w": (x.T @ error).astype(dtype), "b": error.sum(axis=0).astype(dtype)}
        return float((error**2).sum() / 2), grads

    optimizer = fastopt.LBFGS(params, max_iter=50)
    loss = optimizer.step(closure)
    solution = np.linalg.lstsq(np.column_stack([x, np.ones(50)]), y, rcond=None)[0]
    np.testing.assert_allclose(params["w"], solution[:6], atol=1e-5)
    np.testing.assert_allclose(params["b"], solution[6], atol=1e-5)
    assert loss == pytest.approx(closure()[0], rel=1e-5)
    assert optimizer.t == 1
    assert optimizer.evaluations >= optimizer.iterations > 1
    other = fastopt.LBFGS(params)
    other.load_state_dict(optimizer.state_dict())
    assert other.state_dict() == optimizer.state_dict()


def test_lbfgs_leaves_nothing_half_done(refuses):
    pytest.importorskip("scipy")
    w = np.ones(3)
    calls = []

    def wrong_shape():
        calls.append(w.copy())
        return 1.0, np.ones(3 if len(calls) < 2 else 4)

    refuses(lambda: fastopt.LBFGS(w).step(wrong_shape), r"grad must have shape \(3,\)", w)
    assert (calls[-1] != w).any()
    refuses(lambda: fastopt.LBFGS(w).step(lambda: (np.nan, np.ones(3))), "the loss must be finite", w)


def test_lbfgs_keeps_to_bounds():
    pytest.importorskip("scipy")
    w = np.array([0.5, 0.5])
    fastopt.LBFGS(w, bounds=(0, None)).step(lambda: (float(((w - [2, -1]) ** 2).sum()), 2 * (w - [2, -1])))
    np.testing.assert_allclose(w, [2, 0], atol=1e-6)
