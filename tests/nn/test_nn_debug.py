"""Checks that find bugs: each passes where all is well, and fails where something is broken."""

import numpy as np
import pytest

import fastopt
from fastopt import data, nn
from fastopt.nn import debug


def mlp(*more, dtype=np.float32, last=0.05):
    layers = [nn.Dense(16), nn.BatchNorm(), nn.ReLU(), *more, nn.Dense(3)]
    model = nn.Sequential(layers, (5,), dtype=dtype)
    model.params[f"{len(layers) - 1}.weight"] *= last  # so that the first outputs are near 0
    return model


def cnn():
    layers = [nn.Conv2D(4), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(), nn.Dropout(0.3), nn.Flatten(), nn.Dense(3)]
    return nn.Sequential(layers, (6, 6, 1))


@pytest.fixture
def samples(rng):
    y = np.arange(60) % 3
    return rng.normal(size=(60, 5)) + y[:, None], y


def bits(model):
    return {name: a.tobytes() for name, a in (model.params | model.state).items()}


class Wrong(nn.Layer):
    """The identity, with a gradient that is a little off."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def forward(self, x, **_):
        return x, None

    def backward(self, dy, cache, **_):
        return dy * self.factor, {}


# ---- Gradients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_right_gradients(samples, dtype):
    model = mlp(nn.Dropout(0.5), dtype=dtype, last=1.0)
    before = bits(model)
    found = debug.gradient_check(model, samples[0][:8], samples[1][:8])
    assert found
    assert set(found.values) == {"x", *model.params}
    assert max(found.values.values()) < 1e-7
    assert bits(model) == before


def test_right_gradients_of_images(rng):
    assert debug.gradient_check(cnn(), rng.normal(size=(4, 6, 6, 1)), np.arange(4) % 3)


def test_right_gradients_of_words(rng):
    model = nn.Sequential([nn.Embedding(9, 4), nn.Flatten(), nn.Dense(3)], (5,))
    found = debug.gradient_check(model, rng.integers(9, size=(8, 5)), np.arange(8) % 3, inputs=False)
    assert found
    assert set(found.values) == set(model.params)


@pytest.mark.parametrize("factor", [1.001, -1.0, 0.0, np.nan])
def test_wrong_gradients(samples, factor):
    found = debug.gradient_check(mlp(Wrong(factor)), *samples)
    assert not found
    assert found.values["4.weight"] < 1e-6  # behind the wrong layer
    assert not found.values["0.weight"] < 5e-4
    assert str(found).startswith("FAILED: the largest relative error of a gradient is ")


def test_a_wrong_loss(samples):
    def loss(output, targets):
        value, dy = nn.softmax_cross_entropy(output, targets)
        return value, 2 * dy

    assert not debug.gradient_check(mlp(), *samples, loss)


def test_other_losses(samples, rng):
    targets = rng.normal(size=(60, 3))
    assert debug.gradient_check(mlp(), samples[0], targets, nn.SquaredError())
    assert debug.gradient_check(mlp(), *samples, nn.Hinge())


# ---- Losses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [3, 7])
def test_the_initial_loss(samples, classes):
    model = nn.Sequential([nn.Dense(classes)], (5,))
    model.params["0.weight"] *= 0.1
    found = debug.check_initial_loss(model, *samples)
    assert found
    assert found.values["expected"] == pytest.approx(np.log(classes))
    assert found.values["loss"] == pytest.approx(np.log(classes), rel=0.25)


def test_a_wrong_initial_loss(samples):
    model = mlp(nn.Dropout(0.5), last=20.0)
    before = bits(model)
    found = debug.check_initial_loss(model, *samples)
    assert not found
    assert found.values["loss"] > 2
    assert bits(model) == before


def test_the_initial_loss_of_other_losses(samples):
    assert debug.check_initial_loss(mlp(), *samples, nn.Hinge(margin=2.0)).values["expected"] == 4.0
    targets = np.full((60, 3), 2.0)
    assert debug.check_initial_loss(mlp(), samples[0], targets, nn.SquaredError()).values["expected"] == 4.0


@pytest.mark.parametrize("build", [mlp, lambda: mlp(nn.Dropout(0.9))])
def test_a_few_samples_are_learnt_by_heart(samples, build):
    model = build()
    before = bits(model)
    found = debug.overfit_tiny(model, *samples)
    assert found
    assert found.values["accuracy"] == 1.0
    assert found.values["loss"] <= 0.02 * found.values["first"]
    assert found.values["steps"] < 500
    assert bits(model) == before


def test_numbers_are_learnt_by_heart(samples, rng):
    found = debug.overfit_tiny(mlp(), samples[0], rng.normal(size=(60, 3)), nn.SquaredError(), n=5, lr=0.03)
    assert found
    assert "accuracy" not in found.values


@pytest.mark.parametrize("factor", [0.0, -1.0])
def test_a_broken_model_learns_nothing_by_heart(samples, factor):
    model = nn.Sequential([nn.Dense(3), Wrong(factor)], (5,))
    assert not debug.overfit_tiny(model, *samples, steps=100)


def test_what_explodes_is_not_learnt(samples):
    with np.errstate(all="ignore"):
        found = debug.overfit_tiny(mlp(), samples[0], np.ones((60, 3)), nn.SquaredError(), lr=1e30, steps=50)
    assert not found


def test_regularisation_raises_the_loss(samples):
    model = mlp(nn.Dropout(0.5))
    before = bits(model)
    found = debug.check_regularisation(model, *samples)
    assert found
    assert set(found.values) == {"plain", "weight_decay", "dropout"}
    assert min(found.values["weight_decay"], found.values["dropout"]) > found.values["plain"]
    assert bits(model) == before
    assert set(debug.check_regularisation(mlp(), *samples).values) == {"plain", "weight_decay"}


def test_regularisation_that_is_not_connected(samples):
    model = mlp(nn.Dropout(0.0))
    forgetful = debug.check_regularisation(model, *samples, optimizer=lambda params, decay: fastopt.SGD(params, lr=0.1))
    assert not forgetful
    assert forgetful.message.endswith("dropout and weight_decay did not raise it")


# ---- Mistakes -------------------------------------------------------------------------------------------


def test_worst_mistakes(samples):
    model = mlp(last=1.0)
    x, y = samples
    found = debug.worst_mistakes(model, x, y, k=7)
    outputs = model.predict(x).astype(float)
    losses = np.log(np.exp(outputs).sum(axis=1)) - outputs[np.arange(60), y]
    np.testing.assert_array_equal(found.indices, np.argsort(-losses)[:7])
    np.testing.assert_allclose(found.losses, np.sort(losses)[::-1][:7], rtol=1e-5)
    np.testing.assert_array_equal(found.outputs, model.predict(x)[found.indices])
    assert len(debug.worst_mistakes(model, x, y, k=100).indices) == 60


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_worst_mistakes_as_a_picture(rng, tmp_path, channels):
    pytest.importorskip("matplotlib")
    x, y = rng.random((9, 6, 6, channels)), np.arange(9) % 3
    model = nn.Sequential([nn.Flatten(), nn.Dense(3)], x.shape[1:])
    found = debug.plot_mistakes(model, x, y, tmp_path / "a.svg", k=5, names=["ape", "bee", "cat"])
    drawn = (tmp_path / "a.svg").read_text()
    for i, value, output in zip(*found, strict=True):
        truth, taken = ("ape", "bee", "cat")[y[i]], ("ape", "bee", "cat")[output.argmax()]
        assert f"<!-- {truth if truth == taken else f'{truth}, taken for {taken}'}" in drawn
        assert f"#{i}, loss {value:.2f} -->" in drawn
    assert len(debug.plot_mistakes(model, x, y, k=5).axes) == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, y: debug.plot_mistakes(m, x, y, "never.png"), r"x must be images .* got shape \(60, 5\)"),
        (lambda m, x, y: debug.worst_mistakes(m, x, y, k=0), "k must be at least 1, got 0"),
        (lambda m, x, y: debug.gradient_check(m, x, y, step=0.0), r"step must be in \(0, inf\), got 0.0"),
        (lambda m, x, y: debug.gradient_check(m, x, y, places=0), "places must be at least 1, got 0"),
        (lambda m, x, y: debug.overfit_tiny(m, x, y, n=0), "n must be at least 1, got 0"),
        (lambda m, x, y: debug.overfit_tiny(m, x, y, target=1.0), r"target must be in \[0, 1\), got 1.0"),
        (lambda m, x, y: debug.check_regularisation(m, x, y, weight_decay=0.0), "weight_decay must be in"),
        (lambda m, x, y: debug.check_initial_loss(m, x, y + 1), r"y must be in \[0, 3\), got 3"),
    ],
)
def test_arguments_are_checked(samples, call, message):
    with pytest.raises(ValueError, match=message):
        call(mlp(), *samples)


def test_the_digits_model_of_the_docstring():
    x, y = data.digits()
    model = nn.Sequential([nn.Flatten(), nn.Dense(64, activation="relu"), nn.Dense(10)], x.shape[1:])
    assert debug.gradient_check(model, x[:32], y[:32])
    assert debug.overfit_tiny(model, x, y)


class Dirty(nn.Layer):
    """A layer that takes for granted that its array begins with zeros, as it does for the first pass."""

    def forward(self, x, *, training=False, counter=0):
        self.dx = getattr(self, "dx", np.zeros_like(x))
        return x, None

    def backward(self, dy, cache):
        self.dx += dy
        return self.dx, {}


def test_gradients_are_those_of_programs_too(rng):
    model = nn.Sequential([nn.Dense(4), Dirty(), nn.Dense(3)], (5,))
    finding = nn.debug.gradient_check(model, rng.normal(size=(6, 5)), np.arange(6) % 3)
    assert not finding
    assert finding.values["2.weight"] < 1e-6 < finding.values["0.weight"]
