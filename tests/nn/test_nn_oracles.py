"""Whole networks beside PyTorch and scikit-learn, in float64."""

import numpy as np
import pytest

import fastopt
from fastopt import functional, nn


@pytest.fixture
def agree():
    def check(actual, expected, tolerance):
        """Differ by at most `tolerance` of the largest value."""
        expected = np.asarray(expected)
        assert actual.shape == expected.shape
        assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()

    return check


# ---- PyTorch --------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    """PyTorch on one thread: more are no faster on arrays this small, and slow where others use the cores."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(before)


@pytest.fixture
def cnn(rng):
    """A CNN with no parameter at a special value."""
    layers = [nn.Conv2D(6, size=(3, 5), stride=(1, 2)), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(3, stride=2)]
    layers += [nn.Conv2D(5, padding="valid", activation="relu"), nn.Flatten(), nn.Dense(7), nn.BatchNorm(), nn.Dense(4)]
    model = nn.Sequential(layers, (12, 18, 2), dtype=np.float64)
    for name, param in model.params.items():
        if not name.endswith("weight"):
            param[...] = rng.normal(1 if name.endswith("scale") else 0, 0.3, param.shape)
    return model


def tensors(torch, model):
    """Copies of a model's parameters, to be differentiated by, and of its running statistics."""
    params = {name: torch.tensor(a, requires_grad=True) for name, a in model.params.items()}
    return params, {name: torch.tensor(a) for name, a in model.state.items()}


def torch_forward(torch, x, p, state, training):
    """The network of `cnn`. Arrays are laid out as ours are, so that gradients are too."""
    functions = torch.nn.functional

    def batch_norm(x, i):
        running = state[f"{i}.running_mean"], state[f"{i}.running_var"]
        return functions.batch_norm(x, *running, p[f"{i}.scale"], p[f"{i}.shift"], training=training)

    def conv(x, i, **options):
        return functions.conv2d(x, p[f"{i}.weight"].permute(3, 2, 0, 1), p[f"{i}.bias"], **options)

    x = conv(x.permute(0, 3, 1, 2), 0, stride=(1, 2), padding=(1, 2))
    x = functions.max_pool2d(functions.relu(batch_norm(x, 1)), 3, stride=2)
    x = functions.relu(conv(x, 4)).permute(0, 2, 3, 1).flatten(1)
    x = batch_norm(x @ p["6.weight"] + p["6.bias"], 7)
    return x @ p["8.weight"] + p["8.bias"]


def test_a_cnn_beside_torch(torch, cnn, rng, agree):
    x, y = rng.normal(size=(9, 12, 18, 2)), rng.integers(4, size=9)
    params, state = tensors(torch, cnn)
    inputs = torch.tensor(x, requires_grad=True)
    wanted = torch_forward(torch, inputs, params, state, training=True)
    wanted_loss = torch.nn.functional.cross_entropy(wanted, torch.tensor(y))
    wanted_loss.backward()

    output, caches = cnn.forward(x, training=True)
    loss, dy = functional.softmax_cross_entropy(output, y)
    dx, grads = cnn.backward(dy, caches)
    agree(output, wanted.detach(), 1e-10)
    assert loss == pytest.approx(wanted_loss.item(), rel=1e-10)
    agree(dx, inputs.grad, 1e-10)
    largest = max(float(p.grad.abs().max()) for p in params.values())
    for name, p in params.items():
        if name in ("0.bias", "6.bias"):  # batch norm takes these off again
            assert max(np.abs(grads[name]).max(), float(p.grad.abs().max())) < 1e-14 * largest
        else:
            agree(grads[name], p.grad, 1e-10)
    for name, array in cnn.state.items():
        agree(array, state[name], 1e-10)
    agree(cnn.predict(x), torch_forward(torch, inputs, params, state, training=False).detach(), 1e-10)


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("Adam", {"lr": 0.01, "eps": 1e-4}, {"lr": 0.01, "eps": 1e-4}),
        ("AdamW", {"lr": 0.01, "eps": 1e-4}, {"lr": 0.01, "eps": 1e-4}),
        ("SGD", {"lr": 0.05, "weight_decay": 0.1}, {"lr": 0.05, "weight_decay": 0.1}),
    ],
)
def test_a_training_run_beside_torch(torch, cnn, rng, agree, name, ours, theirs):
    """Twenty steps. (The larger eps hides the noise that is the whole gradient of a bias before batch norm.)"""
    params, state = tensors(torch, cnn)
    mine = getattr(fastopt, name)(cnn.params, **ours)
    other = getattr(torch.optim, name)(params.values(), **theirs)
    for _ in range(20):
        x, y = rng.normal(size=(9, 12, 18, 2)), rng.integers(4, size=9)
        output, caches = cnn.forward(x, training=True)
        mine.step(cnn.backward(functional.softmax_cross_entropy(output, y)[1], caches)[1])
        other.zero_grad()
        wanted = torch_forward(torch, torch.tensor(x), params, state, training=True)
        torch.nn.functional.cross_entropy(wanted, torch.tensor(y)).backward()
        other.step()
    for key, array in cnn.params.items():
        agree(array, params[key].detach(), 1e-9)
    for key, array in cnn.state.items():
        agree(array, state[key], 1e-9)


# ---- scikit-learn ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")  # that twenty epochs are few
@pytest.mark.parametrize(
    ("options", "optimizer", "hyper"),
    [
        ({"solver": "sgd", "momentum": 0.8}, "Momentum", {"momentum": 0.8, "nesterov": True, "lr_in_velocity": True}),
        ({"solver": "sgd", "nesterovs_momentum": False}, "Momentum", {"lr_in_velocity": True}),
        ({"solver": "adam", "epsilon": 1e-3}, "Adam", {"eps": 1e-3, "eps_mode": "hat"}),
    ],
)
def test_an_mlp_beside_scikit_learn(rng, agree, options, optimizer, hyper):
    neural_network = pytest.importorskip("sklearn.neural_network")
    x, y = rng.normal(size=(40, 6)), rng.integers(3, size=40)
    model = nn.Sequential([nn.Dense(8, activation="relu"), nn.Dense(3)], (6,), dtype=np.float64)
    names = ["0.weight", "1.weight", "0.bias", "1.bias"]

    options = {"learning_rate_init": 0.05, "alpha": 0.0, "shuffle": False, "tol": 0.0, "warm_start": True} | options
    theirs = neural_network.MLPClassifier((8,), batch_size=40, max_iter=1, random_state=0, **options).fit(x, y)
    own = [model.params[name].copy() for name in names]
    theirs.coefs_, theirs.intercepts_ = own[:2], own[2:]  # from which a warm start goes on, with a new solver
    theirs.set_params(max_iter=20, n_iter_no_change=20).fit(x, y)

    history = model.fit(
        x, y, epochs=20, batch_size=40, optimizer=getattr(fastopt, optimizer)(model.params, lr=0.05, **hyper)
    )
    for name, wanted in zip(names, theirs.coefs_ + theirs.intercepts_, strict=True):
        agree(model.params[name], wanted, 1e-10)
    np.testing.assert_allclose(history["loss"], theirs.loss_curve_[-20:], rtol=1e-10)
