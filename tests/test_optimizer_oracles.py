"""Optimizers against other libraries: PyTorch, Optax, Keras, scikit-learn. Each is looked for, and may be absent."""

import functools
import warnings

import numpy as np
import pytest

import fastopt

SHAPES = [(7, 5), (33,), (2, 3, 4)]
STEPS = 200


def follow(optimizer, their_step, dtype, rng):
    """Steps down noisy quadratics (up, for those that maximize), from the parameters that `optimizer` holds.

    Both sides are given the same gradients, those of our parameters; `their_step` takes them and returns its own.
    """
    params = optimizer.params
    begin = [p.copy() for p in params]
    targets = [rng.standard_normal(p.shape) for p in params]
    sign = -1 if optimizer.maximize else 1
    for _ in range(STEPS):
        noise = [0.5 * rng.standard_normal(p.shape) for p in params]
        grads = [(sign * (p - t + e)).astype(dtype) for p, t, e in zip(params, targets, noise, strict=True)]
        optimizer.step(grads)
        theirs = their_step(grads)
    tolerance = 1e-10 if dtype == np.float64 else 1e-5
    for param, expected, old in zip(params, theirs, begin, strict=True):
        assert np.linalg.norm(param - old) > 0.1 * np.linalg.norm(old)
        assert param.shape == expected.shape
        assert np.linalg.norm(param - expected) <= tolerance * np.linalg.norm(expected)
        np.testing.assert_allclose(param, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def starts(rng, dtype):
    return [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]


def cases(table):
    """Test parameters: ours, its options, theirs, its options, from rows with a list of options that both have."""
    for ours, fixed, theirs, their_fixed, names, variants in table:
        for options in variants:
            their_options = their_fixed | {names.get(key, key): value for key, value in options.items()}
            if pair := names.get("both betas"):
                betas = [their_options.pop(key, usual) for key, usual in (("beta1", 0.9), ("beta2", 0.999))]
                their_options[pair] = tuple(betas)
            label = "-".join([theirs, *(f"{key}={value}" for key, value in options.items())])
            yield pytest.param(ours, fixed | options, theirs, their_options, id=label)


def mixed(own, *around):
    """Options to test together: each of its own alone, and the last of them with each of those around it."""
    return [*own, *(own[-1] | options for options in around)]


# ---- PyTorch ------------------------------------------------------------------------------------------------


@pytest.fixture
def torch(dtype):
    """PyTorch with scalars of the tested type: NAdam keeps one in its state."""
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype.name))
    yield torch
    torch.set_default_dtype(before)


DECAY = {"weight_decay": 0.03}
COUPLED = (DECAY, DECAY | {"maximize": True})
EITHER = (*COUPLED, DECAY | {"decoupled": True}, DECAY | {"decoupled": True, "maximize": True})
BETAS = [{}, {"beta1": 0.0, "beta2": 0.99, "eps": 1e-3}, {"beta1": 0.5, "beta2": 0.95}]
OF_TORCH = {"both betas": "betas", "decoupled": "decoupled_weight_decay"}
OF_RMS = {"decay": "alpha"}
RMS = [{}, {"decay": 0.9, "eps": 1e-3}]
RAPID = {"momentum": 0.9}
TORCH = [
    (fastopt.SGD, {"lr": 0.01}, "SGD", {"lr": 0.01}, {}, mixed([{}], *COUPLED)),
    (
        fastopt.Momentum,
        {"lr": 0.01},
        "SGD",
        {"lr": 0.01},
        {},
        [
            *mixed([RAPID], *COUPLED),
            *mixed([{"momentum": 0.6, "dampening": 0.4}], *COUPLED),
            *mixed([{"momentum": 0.8, "nesterov": True}], *COUPLED),
        ],
    ),
    (fastopt.RMSProp, {}, "RMSprop", {"lr": 1e-3}, OF_RMS, mixed(RMS, *COUPLED)),
    (fastopt.RMSPropMomentum, {}, "RMSprop", {"lr": 1e-3}, OF_RMS, [RAPID | o for o in mixed(RMS, *COUPLED)]),
    (
        fastopt.CenteredRMSProp,
        {},
        "RMSprop",
        {"lr": 1e-3, "centered": True},
        OF_RMS,
        [*mixed(RMS, *COUPLED), *(RAPID | o for o in mixed(RMS, *COUPLED))],
    ),
    (
        fastopt.Adagrad,
        {"lr": 0.1},
        "Adagrad",
        {"lr": 0.1},
        {},
        mixed([{}, {"eps": 1e-3, "initial_accumulator_value": 0.1}], *COUPLED),
    ),
    (
        fastopt.Adadelta,
        {},
        "Adadelta",
        {},
        {"decay": "rho"},
        mixed([{}, {"decay": 0.95, "eps": 1e-3, "lr": 0.5}], *COUPLED),
    ),
    (fastopt.Adam, {}, "Adam", {}, OF_TORCH, mixed(BETAS, *EITHER)),
    (fastopt.AdamW, {}, "AdamW", {}, OF_TORCH, mixed(BETAS, *COUPLED)),
    (fastopt.AMSGrad, {}, "Adam", {"amsgrad": True}, OF_TORCH, mixed(BETAS, *EITHER)),
    (fastopt.AMSGrad, {"decoupled": True}, "AdamW", {"amsgrad": True}, OF_TORCH, [DECAY]),
    (fastopt.Adamax, {"eps_mode": "inside"}, "Adamax", {}, OF_TORCH, mixed(BETAS, *COUPLED)),
    (fastopt.NAdam, {}, "NAdam", {}, OF_TORCH, mixed([*BETAS, {"momentum_decay": 0.1}], *EITHER)),
    (
        fastopt.RAdam,
        {"lr": 0.01, "eps_mode": "hat", "threshold": 5},
        "RAdam",
        {"lr": 0.01},
        OF_TORCH,
        mixed(BETAS, *EITHER),
    ),
    (fastopt.Rprop, {}, "Rprop", {}, {}, [{}, {"maximize": True}]),
    (
        fastopt.Rprop,
        {"eta_minus": 0.6, "eta_plus": 1.3, "min_step": 1e-3, "max_step": 0.2},
        "Rprop",
        {"etas": (0.6, 1.3), "step_sizes": (1e-3, 0.2)},
        {},
        [{"lr": 0.05}],
    ),
]


@pytest.mark.parametrize(("ours", "options", "name", "their_options"), [*cases(TORCH)])
def test_optimizers_of_pytorch(dtype, ours, options, name, their_options, torch, rng):
    optimizer = ours(starts(rng, dtype), **options)
    tensors = [torch.nn.Parameter(torch.tensor(p)) for p in optimizer.params]
    theirs = getattr(torch.optim, name)(tensors, **their_options)

    def step(grads):
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = torch.from_numpy(grad)
        theirs.step()
        return [t.detach().numpy() for t in tensors]

    follow(optimizer, step, dtype, rng)


@pytest.mark.parametrize(
    ("option", "clip"),
    [
        ({"clip_global_norm": 8.0, "clip_eps": 1e-6}, lambda torch, ts: torch.nn.utils.clip_grad_norm_(ts, 8.0)),
        (
            {"clip_norm": 5.0, "clip_eps": 1e-6},
            lambda torch, ts: [torch.nn.utils.clip_grad_norm_([t], 5.0) for t in ts],
        ),
        ({"clip_value": 1.0}, lambda torch, ts: torch.nn.utils.clip_grad_value_(ts, 1.0)),
    ],
    ids=["global norm", "norm", "value"],
)
def test_clipping_of_pytorch(dtype, option, clip, torch, rng):
    """Gradients that begin above the limit and end below it, so that both cases come about."""
    optimizer = fastopt.Adam(starts(rng, dtype), lr=0.03, weight_decay=0.01, **option)
    tensors = [torch.nn.Parameter(torch.tensor(p)) for p in optimizer.params]
    theirs = torch.optim.Adam(tensors, lr=0.03, weight_decay=0.01)
    norms = []

    def step(grads):
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = torch.from_numpy(grad)
        norms.append(torch.nn.utils.get_total_norm([t.grad for t in tensors]).item())
        clip(torch, tensors)
        theirs.step()
        if "clip_value" not in option:
            assert optimizer.grad_norm == pytest.approx(norms[-1], rel=1e-6)
        return [t.detach().numpy() for t in tensors]

    follow(optimizer, step, dtype, rng)
    assert norms[0] > 10
    assert norms[-1] < 6


def test_groups_of_pytorch(dtype, torch, rng):
    """A pretrained layer at a tenth of the rate, no decay on what is no matrix, and one parameter that is frozen."""
    shapes = {"body.w": (5, 4), "body.b": (4,), "head.w": (4, 3), "head.b": (3,), "fixed": (6,)}
    params = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    tensors = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in params.items()}
    optimizer = fastopt.AdamW(
        params,
        lr=0.01,
        weight_decay=0.1,
        groups=[
            {"params": "body.*", "lr_factor": 0.1},
            {"params": fastopt.vectors, "weight_decay": 0.0, "beta2": 0.9},
            {"params": "fixed", "frozen": True},
        ],
    )
    theirs = torch.optim.AdamW(
        [
            {"params": tensors["head.w"]},
            {"params": tensors["body.w"], "lr": 0.001},
            {"params": tensors["body.b"], "lr": 0.001, "weight_decay": 0.0, "betas": (0.9, 0.9)},
            {"params": tensors["head.b"], "weight_decay": 0.0, "betas": (0.9, 0.9)},
        ],
        lr=0.01,
        weight_decay=0.1,
    )
    before = params["fixed"].copy()
    for step in range(STEPS):
        if step == 100:
            optimizer.lr = 0.005
            optimizer.groups[1].weight_decay = 0.2
            for group, scale in zip(theirs.param_groups, (1, 0.1, 0.1, 1), strict=True):
                group["lr"] = 0.005 * scale
            for group in theirs.param_groups[2:]:
                group["weight_decay"] = 0.2
        grads = {name: (p + rng.standard_normal(p.shape)).astype(dtype) for name, p in params.items()}
        for name, tensor in tensors.items():
            tensor.grad = torch.from_numpy(grads[name])
        optimizer.step(grads)
        theirs.step()
    tolerance = 1e-10 if dtype == np.float64 else 1e-5
    np.testing.assert_array_equal(params.pop("fixed"), before)
    for name, param in params.items():
        np.testing.assert_allclose(param, tensors[name].detach(), rtol=tolerance, atol=tolerance)


# ---- The forms of Nesterov ------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_three_forms_of_nesterov_take_gradients_at_the_same_points(momentum, rng):
    """The look-ahead form, the rearranged one with the step in v, and PyTorch's, at a constant rate.

    What they hold differs: the iterate w, and the two others the point w + momentum·v, ahead of it.
    """
    curvature = rng.uniform(0.1, 2, 20)
    start = rng.standard_normal(20)
    made = {
        "look-ahead": fastopt.LookAheadNesterov(start.copy(), 0.1, momentum=momentum),
        "step in v": fastopt.Momentum(start.copy(), 0.1, momentum=momentum, nesterov=True, lr_in_velocity=True),
        "gradient in v": fastopt.Momentum(start.copy(), 0.1, momentum=momentum, nesterov=True),
    }
    points = {name: [] for name in made}
    for name, optimizer in made.items():
        for _ in range(STEPS):
            if name == "look-ahead":
                optimizer.look_ahead()
            points[name].append(optimizer.params.copy())
            optimizer.step(curvature * optimizer.params)
    for name in ("step in v", "gradient in v"):
        np.testing.assert_allclose(points[name], points["look-ahead"], rtol=1e-10, atol=1e-12)
    iterate = made["look-ahead"]
    ahead = iterate.params + momentum * iterate.state["param"]["velocity"]
    np.testing.assert_allclose(made["gradient in v"].params, ahead, rtol=1e-10, atol=1e-12)


def test_the_look_ahead_form_is_pytorchs(torch, dtype, rng):
    """PyTorch's own, each with its gradients at its own points."""
    optimizer = fastopt.LookAheadNesterov(rng.standard_normal(20).astype(dtype), 0.05, momentum=0.9)
    tensor = torch.nn.Parameter(torch.tensor(optimizer.params))
    theirs = torch.optim.SGD([tensor], lr=0.05, momentum=0.9, nesterov=True)
    for noise in rng.standard_normal((STEPS, 20)).astype(dtype):
        optimizer.look_ahead()
        tolerance = 1e-10 if dtype == np.float64 else 1e-5
        np.testing.assert_allclose(optimizer.params, tensor.detach(), rtol=0, atol=5 * tolerance)
        optimizer.step(optimizer.params + noise)
        tensor.grad = tensor.detach() + torch.tensor(noise)
        theirs.step()


# ---- Optax ----------------------------------------------------------------------------------------------------

B1_B2 = {"beta1": "b1", "beta2": "b2"}
OWN = {"beta1": 0.8, "beta2": 0.99, "eps": 1e-4}
RATE = {"learning_rate": 1e-3}
OPTAX = [
    (
        fastopt.Lion,
        {"lr": 1e-3},
        "lion",
        RATE | {"weight_decay": 0.0},
        B1_B2,
        [{"beta1": 0.5, "beta2": 0.95, "weight_decay": 0.3}],
    ),
    (fastopt.LAMB, {}, "lamb", RATE, B1_B2, [OWN | {"weight_decay": 0.3}]),
    (fastopt.Yogi, {"lr": 1e-3}, "yogi", RATE, B1_B2, [OWN]),
    (fastopt.AdaBelief, {}, "adabelief", RATE, B1_B2, [OWN | {"eps_root": 1e-8}]),
    (fastopt.NAdam, {"lr": 1e-3, "momentum_decay": 1e6}, "nadam", RATE, B1_B2, [OWN]),
    (
        fastopt.RAdam,
        {"lr": 0.01, "threshold": 5.0},
        "radam",
        {"learning_rate": 0.01},
        B1_B2,
        [{}, OWN | {"threshold": 6.5}],
    ),
    (fastopt.AMSGrad, {"corrected_max": True}, "amsgrad", RATE, B1_B2, [OWN]),
    (fastopt.Adamax, {"lr": 0.01, "eps_mode": "inside"}, "adamax", {"learning_rate": 0.01}, B1_B2, [OWN]),
    (
        fastopt.Adadelta,
        {},
        "adadelta",
        {"learning_rate": 1.0},
        {"decay": "rho"},
        [{"decay": 0.95, "eps": 1e-3, "weight_decay": 0.03}],
    ),
    (
        fastopt.ScheduleFreeSGD,
        {"lr": 0.1},
        "contrib.schedule_free_sgd",
        {"learning_rate": 0.1},
        {"beta": "b1", "lr_power": "weight_lr_power"},
        [{}, {"beta": 0.5, "weight_decay": 0.03, "lr_power": 0.5}],
    ),
    (
        fastopt.ScheduleFreeAdamW,
        {"lr": 0.01},
        "contrib.schedule_free_adamw",
        {"learning_rate": 0.01},
        B1_B2 | {"lr_power": "weight_lr_power"},
        [OWN | {"weight_decay": 0.3}],
    ),
]


@pytest.fixture
def optax():
    """Optax in double precision: a test must not leave that to others."""
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    with jax.enable_x64(True):
        yield optax


# Not Rprop: Optax 0.2.8 takes each step one call late.
@pytest.mark.slow
@pytest.mark.parametrize(("ours", "options", "name", "their_options"), [*cases(OPTAX)])
def test_optimizers_of_optax(dtype, ours, options, name, their_options, optax, rng):
    import jax

    optimizer = ours(starts(rng, dtype), **options)
    home, _, name = name.rpartition(".")
    theirs = getattr(optax.contrib if home else optax, name)(**their_options)
    held = [jax.numpy.array(p) for p in optimizer.params], theirs.init([jax.numpy.array(p) for p in optimizer.params])
    if ours is fastopt.Yogi:  # Optax begins both moments at 1e-6
        for state in optimizer.state.values():
            state["m"][...] = state["v"]

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # it is compiled for few steps
    def update(grads, params, state):
        updates, state = theirs.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def step(grads):
        nonlocal held
        held = update([jax.numpy.array(g) for g in grads], *held)
        return [np.asarray(p) for p in held[0]]

    follow(optimizer, step, dtype, rng)
    if home:
        expected = optax.contrib.schedule_free_eval_params(held[1], held[0])
        tolerance = 1e-10 if dtype == np.float64 else 1e-5
        for average, wanted in zip(optimizer.averaged().values(), expected, strict=True):
            np.testing.assert_allclose(average, wanted, rtol=tolerance, atol=tolerance)


# ---- Keras ----------------------------------------------------------------------------------------------------

OF_KERAS = {"lr": "learning_rate", "beta1": "beta_1", "beta2": "beta_2", "eps": "epsilon", "decay": "rho"}
KERAS_BETAS = [{"eps": 1e-7}, {"eps": 1e-3, "beta1": 0.5, "beta2": 0.95}]
KERAS = [
    (
        fastopt.Momentum,
        {"lr_in_velocity": True, "decoupled": True},
        "SGD",
        {},
        OF_KERAS,
        mixed([{"lr": 0.01, "momentum": 0.8}, {"lr": 0.01, "momentum": 0.8, "nesterov": True}], DECAY),
    ),
    (
        fastopt.RMSProp,
        {"eps_mode": "inside", "decoupled": True},
        "RMSprop",
        {},
        OF_KERAS,
        mixed([{"lr": 1e-3, "decay": 0.9, "eps": 1e-7}], DECAY),
    ),
    (
        fastopt.RMSPropMomentum,
        {"eps_mode": "inside", "lr_in_velocity": True},
        "RMSprop",
        {},
        OF_KERAS,
        [{"lr": 1e-3, "decay": 0.9, "eps": 1e-7, "momentum": 0.8}],
    ),
    (
        fastopt.CenteredRMSProp,
        {"eps_mode": "inside", "lr_in_velocity": True},
        "RMSprop",
        {"centered": True},
        OF_KERAS,
        [{"lr": 1e-3, "decay": 0.9, "eps": 1e-7, "momentum": momentum} for momentum in (0.0, 0.8)],
    ),
    (
        fastopt.Adagrad,
        {"eps_mode": "inside"},
        "Adagrad",
        {},
        OF_KERAS,
        [{"lr": 0.1, "eps": 1e-7, "initial_accumulator_value": 0.1}],
    ),
    (fastopt.Adadelta, {}, "Adadelta", {}, OF_KERAS, [{"lr": 1.0, "decay": 0.95, "eps": 1e-7}]),
    (fastopt.Adam, {"eps_mode": "hat", "lr": 1e-3}, "Adam", {}, OF_KERAS, KERAS_BETAS),
    (
        fastopt.AdamW,
        {"eps_mode": "hat"},
        "AdamW",
        {},
        OF_KERAS,
        [{"lr": 1e-3, "weight_decay": 0.03} | options for options in KERAS_BETAS],
    ),
    (fastopt.AMSGrad, {"eps_mode": "hat", "lr": 1e-3}, "Adam", {"amsgrad": True}, OF_KERAS, KERAS_BETAS),
    (fastopt.Adamax, {"lr": 0.01}, "Adamax", {"learning_rate": 0.01}, OF_KERAS, KERAS_BETAS),
    (fastopt.NAdam, {"momentum_decay": 1.0, "lr": 1e-3}, "Nadam", {}, OF_KERAS, KERAS_BETAS),
    (fastopt.Lion, {}, "Lion", {}, OF_KERAS, mixed([{"lr": 1e-3}, {"lr": 1e-3, "beta1": 0.5}], DECAY)),
    (fastopt.LAMB, {"lr": 1e-3, "decay_outside": True}, "Lamb", {}, OF_KERAS, mixed(KERAS_BETAS, DECAY)),
]


@pytest.fixture
def keras(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    with warnings.catch_warnings(action="ignore"):
        return pytest.importorskip("keras")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("ours", "options", "name", "their_options"), [*cases(KERAS)])
def test_optimizers_of_keras(dtype, ours, options, name, their_options, keras, rng):
    optimizer = ours(starts(rng, dtype), **options)
    variables = [keras.Variable(p.copy(), dtype=dtype.name) for p in optimizer.params]
    before = keras.config.floatx()
    keras.config.set_floatx(dtype.name)  # of the optimizer's own scalars
    try:
        theirs = getattr(keras.optimizers, name)(**their_options)
        theirs.build(variables)

        def step(grads):
            theirs.apply([keras.ops.convert_to_tensor(g) for g in grads])
            return [np.asarray(v.numpy()) for v in variables]

        follow(optimizer, step, dtype, rng)
    finally:
        keras.config.set_floatx(before)


# ---- scikit-learn -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "options", "name", "their_options"),
    [
        (
            fastopt.Adam,
            {"lr": 0.01, "eps_mode": "hat", "eps": 1e-4, "beta1": 0.8},
            "AdamOptimizer",
            {"learning_rate_init": 0.01, "epsilon": 1e-4, "beta_1": 0.8},
        ),
        *(
            (
                fastopt.Momentum,
                {"lr": 0.01, "momentum": 0.8, "nesterov": nesterov, "lr_in_velocity": True},
                "SGDOptimizer",
                {"learning_rate_init": 0.01, "momentum": 0.8, "nesterov": nesterov},
            )
            for nesterov in (False, True)
        ),
    ],
    ids=["adam", "momentum", "nesterov"],
)
def test_optimizers_of_scikit_learn(ours, options, name, their_options, rng):
    stochastic = pytest.importorskip("sklearn.neural_network._stochastic_optimizers")
    optimizer = ours(starts(rng, np.float64), **options)
    held = [p.copy() for p in optimizer.params]
    theirs = getattr(stochastic, name)(held, **their_options)

    def step(grads):
        theirs.update_params(held, grads)
        return held

    follow(optimizer, step, np.dtype(np.float64), rng)


# ---- What NumPy alone can tell ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "options"), [(fastopt.SGD, {}), (fastopt.Momentum, {"momentum": 0.7})])
def test_l1_and_max_norm_by_numpy(dtype, ours, options, rng):
    """Gradient descent with |w| in the loss, and the incoming weights of each unit held within a ball."""
    optimizer = ours(starts(rng, dtype), lr=0.05, l1=0.1, max_norm=0.8, **options)
    held = [p.astype(np.float64) for p in optimizer.params]
    velocities = [np.zeros(p.shape) for p in held]
    bounded = 0

    def step(grads):
        nonlocal bounded
        for i, grad in enumerate(grads):
            velocities[i] = options.get("momentum", 0) * velocities[i] + grad + 0.1 * np.sign(held[i])
            held[i] = held[i] - 0.05 * velocities[i]
            if held[i].ndim > 1:
                units = held[i].reshape(-1, held[i].shape[-1])
                for unit in units.T:
                    if np.linalg.norm(unit) > 0.8:
                        unit *= 0.8 / np.linalg.norm(unit)
                        bounded += 1
        return held

    follow(optimizer, step, dtype, rng)
    assert 0 < bounded < STEPS * sum(shape[-1] for shape in SHAPES if len(shape) > 1)
