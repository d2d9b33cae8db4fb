"""Optimizers that are written in NumPy, on the base for them."""

import copy
import pickle
from typing import Literal

import numpy as np
import pytest

import fastopt
from fastopt import nn
from fastopt.hyper import Choice, Flag, Limit, Number, Whole
from fastopt.schedules import bind, inverse_time


class TextbookAdam(fastopt.NumPyOptimizer):
    """Adam [1]_, in NumPy.

    References
    ----------
    .. [1] D. Kingma and J. Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.
    """

    beta1: Number = Number("[0, 1)", default=0.9, doc="Decay rate of the mean.")
    beta2: Number = Number("[0, 1)", default=0.999, doc="Decay rate of the mean of squares.")
    eps: Number = Number("[0, inf)", default=1e-8, doc="Is added to the root.")
    states = ("m", "v")

    def update(self, param, grad, state, *, t, lr, beta1, beta2, eps):
        state["m"] = beta1 * state["m"] + (1 - beta1) * grad
        state["v"] *= beta2
        state["v"] += (1 - beta2) * grad**2
        m, v = state["m"] / (1 - beta1**t), state["v"] / (1 - beta2**t)
        param -= lr * m / (np.sqrt(v) + eps)


def draw(rng, dtype=np.float64):
    shapes = {"w": (5, 7), "b": (7,), "s": ()}
    return {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}


def copied(params):
    return {name: array.copy() for name, array in params.items()}


FALLING = bind(inverse_time, peak=0.1, decay=0.5)
OPTIONS = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decoupled": True},
    "l1": {"l1": 0.1},
    "max_norm": {"max_norm": 0.7},
    "clip_value": {"clip_value": 0.3, "weight_decay": 0.05, "l1": 0.02},
    "maximize": {"maximize": True, "weight_decay": 0.1},
    "clip_norm": {"clip_norm": 0.5, "clip_global_norm": 0.8, "clip_eps": 1e-6},
    "schedule": {"lr": FALLING, "beta1": bind(inverse_time, peak=0.9, decay=0.1)},
    "groups": {
        "groups": [{"params": "w", "lr": 0.2, "beta1": 0.5, "weight_decay": 0.3}, {"params": "b", "frozen": True}]
    },
    "schedule of a group": {"groups": [{"params": fastopt.vectors, "lr": FALLING, "lr_factor": 0.5}]},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_it_has_what_every_optimizer_has(name, dtype, rng, close):
    """A textbook's Adam beside the kernel's."""
    params = draw(rng, dtype)
    others, options = copied(params), {"lr": 0.1} | OPTIONS[name]
    ours, kernels = TextbookAdam(params, **options), fastopt.Adam(others, **options)
    for _ in range(6):
        grads = draw(rng, dtype)
        ours.step(grads, grad_scale=0.5)
        kernels.step(grads, grad_scale=0.5)
    tolerance = 1e-12 if dtype == np.float64 else 3e-5
    for key in params:
        close(params[key], others[key], tolerance)
        assert params[key].dtype == dtype
        for state in ours.state.get(key, ()):
            close(ours.state[key][state], kernels.state[key][state], tolerance)
    assert ours.t == kernels.t == 6
    assert (ours.grad_norm, ours.frozen, list(ours.state)) == (kernels.grad_norm, kernels.frozen, list(kernels.state))


def test_it_is_pytorchs(rng):
    torch = pytest.importorskip("torch")
    params = [(rng.standard_normal((4, 3)), rng.standard_normal(3))]
    theirs = [torch.tensor(a, requires_grad=True) for a in params[0]]
    ours, peer = TextbookAdam(params, lr=0.1, weight_decay=0.2), torch.optim.Adam(theirs, lr=0.1, weight_decay=0.2)
    for _ in range(9):
        grads = [rng.standard_normal(a.shape) for a in params[0]]
        for tensor, grad in zip(theirs, grads, strict=True):
            tensor.grad = torch.tensor(grad)
        ours.step([grads])
        peer.step()
    for mine, their in zip(params[0], theirs, strict=True):
        np.testing.assert_allclose(mine, their.detach().numpy(), rtol=1e-12, atol=1e-13)


def test_its_signature_and_docstring():
    assert str(TextbookAdam.__signature__) == "(params, lr=0.001, *, beta1=0.9, beta2=0.999, eps=1e-08, **common)"
    assert "Decay rate of the mean of squares." in TextbookAdam.__doc__
    optimizer = TextbookAdam(np.ones(2), 0.5, eps=1e-3)
    assert repr(optimizer) == "TextbookAdam(lr=0.5, beta1=0.9, beta2=0.999, eps=0.001, t=0)"
    optimizer.beta1 = 0.5
    assert optimizer.beta1 == 0.5
    with pytest.raises(ValueError, match=r"beta1 must be in \[0, 1\)"):
        optimizer.beta1 = 1.0
    with pytest.raises(TypeError, match="TextbookAdam has no keyword 'beta3'"):
        TextbookAdam(np.ones(2), beta3=0.5)


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_it_goes_on_to_the_same_bits(ending, rng, tmp_path, same_bits):
    if ending == "safetensors":
        pytest.importorskip("safetensors")
    params, more = draw(rng), {"lr": FALLING, "groups": [{"params": "w", "eps": 1e-3}], "clip_norm": 1.0}
    optimizer = TextbookAdam(params, **more)
    optimizer.step(draw(rng))
    fastopt.save(optimizer, tmp_path / f"state.{ending}")
    again = TextbookAdam(copied(params), groups=[{"params": "w", "eps": 1.0}])
    fastopt.load(again, tmp_path / f"state.{ending}")
    others = [again, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    for _ in range(2):
        grads = draw(rng)
        for each in (optimizer, *others):
            each.step(grads)
    for each in others:
        for name in params:
            same_bits(each.params[name], params[name])
    with pytest.raises(ValueError, match="optimizer must be one of 'Adam'"):
        fastopt.Adam(params).load_state_dict(optimizer.state_dict())


def test_nests_late_parameters_rests_and_steps_out_of_place(rng, close):
    arrays = [rng.standard_normal(shape) for shape in ((3, 4), (4,), (2,))]
    nest = lambda arrays: {"l1": [arrays[0], arrays[1]], "l2": (arrays[2],)}  # noqa: E731
    others = nest([a.copy() for a in arrays])
    optimizers = TextbookAdam(nest(arrays), lr=0.1), fastopt.Adam(others, lr=0.1)

    def step(absent=None, **more):
        grads = [rng.standard_normal(a.shape) for a in arrays]
        if absent is not None:
            grads[absent] = None
        for optimizer in optimizers:
            optimizer.step(nest(grads) | more, strict=absent is None)

    step()
    step(absent=1)
    step()
    for optimizer in optimizers:
        optimizer.rebind(copy.deepcopy(optimizer.params))
        optimizer.add_params({"late": np.full(3, 5.0)}, lr=0.5)
    step(late=np.ones(3))
    grads = {"late": np.ones(3)} | nest([rng.standard_normal(a.shape) for a in arrays])
    old = optimizers[0].params["late"]
    before = old.copy()
    new = [optimizer.updated(optimizer.params, grads) for optimizer in optimizers]
    np.testing.assert_array_equal(old, before)
    mine, their = (fastopt.checks.named("param", each) for each in new)
    for name in mine:
        close(mine[name], their[name], 1e-12)
    assert optimizers[0].state_dict()["born"] == optimizers[1].state_dict()["born"]


def test_look_ahead_around_it(rng, close):
    params = draw(rng)
    others = copied(params)
    ours = fastopt.LookAhead(TextbookAdam(params, lr=0.1), k=2)
    kernels = fastopt.LookAhead(fastopt.Adam(others, lr=0.1), k=2)
    for _ in range(5):
        grads = draw(rng)
        ours.step(grads)
        kernels.step(grads)
    for name in params:
        close(params[name], others[name], 1e-12)


def test_fit_with_it(rng, tmp_path, close):
    x, y = rng.standard_normal((60, 4)).astype(np.float32), rng.integers(3, size=60)

    def run(make, epochs, *callbacks):
        model = nn.Sequential([nn.Dense(5), nn.ReLU(), nn.Dense(3)], (4,))
        history = model.fit(x, y, epochs=epochs, optimizer=make(model.params), callbacks=callbacks)
        return model, history["loss"]

    scheduled = nn.LearningRateScheduler(FALLING)
    model, losses = run(TextbookAdam, 4, scheduled)
    _, expected = run(fastopt.Adam, 4, scheduled)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    path = tmp_path / "run.npz"
    run(TextbookAdam, 2, scheduled, nn.ModelCheckpoint(path))
    resumed, _ = run(TextbookAdam, 4, scheduled, nn.ModelCheckpoint(path, resume=True))
    for name, param in model.params.items():
        np.testing.assert_array_equal(resumed.params[name], param)
    frozen = nn.Sequential([nn.Dense(5), nn.ReLU(), nn.Dense(3)], (4,))
    frozen.freeze("0.*")
    before = frozen.params["0.weight"].copy()
    frozen.fit(x, y, epochs=1, optimizer=TextbookAdam(frozen.params))
    np.testing.assert_array_equal(frozen.params["0.weight"], before)


# ---- Declarations and state -------------------------------------------------------------------------------------


class Rich(fastopt.NumPyOptimizer):
    """Every kind of hyperparameter, and state of other shapes and types."""

    power: Whole = Whole(1, default=2)
    signed: Flag = Flag(default=False)
    mode: Choice[Literal["add", "drop"]] = Choice("add", "drop", default="add")
    limit: Limit = Limit("(0, inf)", default=None)

    def initial_state(self, param):
        return {"sum": np.zeros((), np.float64), "steps": np.zeros(1, np.int64), "start": param}

    def update(self, param, grad, state, **hyper):
        self.seen.append(hyper)
        state["sum"] += grad.sum()
        state["steps"] += 1
        param[...] = state["start"] - state["steps"]

    seen: list = []  # noqa: RUF012


def test_settings_come_as_they_were_given(rng):
    params = {"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.float32)}
    optimizer = Rich(params, lr=0.5, groups=[{"params": "b", "limit": 2.0, "mode": "drop", "signed": True, "power": 3}])
    Rich.seen.clear()
    for _ in range(2):
        optimizer.step({name: 2 * np.ones_like(a) for name, a in params.items()})
    common = {"lr": 0.5, "power": 2, "signed": False, "mode": "add", "limit": None}
    assert Rich.seen[0] == {"t": 1} | common
    assert Rich.seen[3] == {"t": 2} | common | {"limit": 2.0, "mode": "drop", "signed": True, "power": 3}
    assert type(Rich.seen[3]["power"]) is int
    assert type(Rich.seen[3]["signed"]) is bool
    (params["a"] == -1).all()
    state = optimizer.state["b"]
    assert (state["sum"].shape, state["sum"].dtype, state["sum"]) == ((), np.float64, 16)
    assert (state["steps"].dtype, state["steps"][0]) == (np.int64, 2)
    assert (params["a"] == -1).all()
    assert (state["start"] == 1).all()


def test_such_state_is_saved(tmp_path, rng):
    params = {"a": np.ones(3, np.float32)}
    optimizer = Rich(params)
    optimizer.step({"a": np.ones(3, np.float32)})
    fastopt.save(optimizer, tmp_path / "state.npz")
    again = Rich({"a": params["a"].copy()})
    fastopt.load(again, tmp_path / "state.npz")
    assert {key: (a.dtype, a.tolist()) for key, a in again.state["a"].items()} == {
        key: (a.dtype, a.tolist()) for key, a in optimizer.state["a"].items()
    }


def declared(update, **body):
    """A class with an `update`."""
    return lambda: type("Own", (fastopt.NumPyOptimizer,), {"update": update, **body})


WRONG_CLASSES = {
    "no update": (lambda: type("Own", (fastopt.NumPyOptimizer,), {}), "Own must have a method update"),
    "too few arguments": (
        declared(lambda self, param, grad: None), r"Own.update must take \(self, param, grad, state, \*, …\), got",
    ),
    "an argument that is not declared": (
        declared(lambda self, param, grad, state, *, lr, rho: None),
        "Own.update asks for 'rho', but may ask for t, lr: declare it, as in rho: Number",
    ),
    "what is done around it": (
        declared(lambda self, param, grad, state, weight_decay: None), "Own.update asks for 'weight_decay', but may",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_CLASSES)
def test_classes_that_are_refused(name, refuses):
    make, message = WRONG_CLASSES[name]
    refuses(make, message)


def test_the_base_is_none_itself(refuses):
    refuses(lambda: fastopt.NumPyOptimizer(np.ones(2)), "NumPyOptimizer is what optimizers share; use one of them")
    refuses(lambda: fastopt.Optimizer(np.ones(2)), "Optimizer is what optimizers share; use one of them")


def fails(self, param, grad, state):
    param += 1
    state["m"] += 1
    raise ZeroDivisionError("in the formula")


def put(key, value):
    def update(self, param, grad, state):
        param += 1
        state["m"] += 1
        state[key] = value

    return update


WRONG_UPDATES = {
    "returns the parameter": (
        lambda self, param, grad, state: param - grad,
        r"Own.update must return nothing, and change param in place, by param -= … or param\[...\] = …; got ndarray",
    ),
    "raises": (fails, "in the formula"),
    "a further state": (put("n", 1), r"state must have the keys \['m'\] after update, got \['m', 'n'\]"),
    "a state of another shape": (
        put("m", np.ones(2)), r"state\[a\]\[m\] must be float64 of shape \(3,\) after update, got float64 of shape",
    ),
    "a state of another kind": (put("m", 1j * np.ones(3)), r"state\[a\]\[m\] must be float64 .* got complex128"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_UPDATES)
def test_updates_that_go_wrong_change_nothing(name, refuses):
    update, message = WRONG_UPDATES[name]
    params = {"first": np.ones(2), "a": np.ones(3)}

    def only_at_a(self, param, grad, state):
        if param.shape == (3,):
            return update(self, param, grad, state)
        param += 1
        return None

    optimizer = declared(only_at_a, states=("m",))()(params)
    held = [*params.values(), *(a for state in optimizer.state.values() for a in state.values())]
    grads = {"first": np.ones(2), "a": np.ones(3)}
    refuses(lambda: optimizer.step(grads), message, *held, error=(TypeError, ValueError, ZeroDivisionError))
    assert optimizer.t == 0


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([np.ones(3)], "initial_state must be a dict, got list"),
        ({"m": 1.0}, "initial_state must return arrays of numbers by name, got 'm': 1.0"),
        ({0: np.ones(3)}, "initial_state must return arrays of numbers by name, got 0:"),
        ({"m": np.array(["x"])}, "initial_state must return arrays of numbers by name, got 'm'"),
    ],
)
def test_states_that_are_refused(state, message, refuses):
    cls = declared(lambda self, param, grad, state: None, initial_state=lambda self, param: state)()
    refuses(lambda: cls(np.ones(3)), message)


def test_gradients_and_parameters_that_are_refused(rng, refuses):
    params = draw(rng)
    optimizer = TextbookAdam(params)
    held = list(params.values())
    refuses(
        lambda: optimizer.step({"w": params["w"]}), "grads must hold one array per parameter, but lacks b, s", *held
    )
    refuses(lambda: optimizer.step(draw(rng) | {"b": np.ones(3)}), r"grads\[b\] must have shape \(7,\)", *held)
    refuses(lambda: optimizer.step(params), r"grads\[w\] and params\[w\] must not overlap|params\[w\] and grads", *held)
    refuses(lambda: optimizer.step(draw(rng), grad_scale="2"), "grad_scale must be a number", *held)
    refuses(lambda: TextbookAdam({"w": np.ones((2, 3)).T}), r"params\[w\] must be C-contiguous")
    params["w"] = np.ones((5, 7))
    refuses(lambda: optimizer.step(draw(rng)), r'params\["w"\] must be the array that the optimizer steps', *held)


def test_a_gradient_in_another_order_in_memory(rng, same_bits):
    params = {"w": rng.standard_normal((4, 3))}
    others, grad = copied(params), rng.standard_normal((3, 4))
    TextbookAdam(params).step({"w": grad.T})
    TextbookAdam(others).step({"w": np.ascontiguousarray(grad.T)})
    same_bits(params["w"], others["w"])


def test_a_step_without_finite_gradients_is_skipped(rng, same_bits):
    params = draw(rng)
    before = copied(params)
    optimizer = TextbookAdam(params, skip_nonfinite=True)
    optimizer.step({name: np.full_like(a, np.nan) for name, a in params.items()})
    assert (optimizer.t, optimizer.skipped) == (0, 1)
    for name in params:
        same_bits(params[name], before[name])
