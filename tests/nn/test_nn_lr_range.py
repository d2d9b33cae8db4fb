"""The learning-rate range test."""

import numpy as np
import pytest

import fastopt
from fastopt import nn
from fastopt.schedules import bind, exponential


@pytest.fixture
def samples(rng):
    y = np.arange(65) % 3
    return rng.normal(size=(65, 5)) + 1.5 * y[:, None], y


def mlp():
    layers = [nn.Dense(16), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2), nn.Dense(3)]
    return nn.Sequential(layers, (5,))


def quadratic():
    """A model and data whose loss has the curvature 4 in one direction only: gradient descent diverges above 1/2."""
    model = nn.Sequential([nn.Dense(1)], (1,), dtype=np.float64)
    return model, np.tile([[1.0], [-1.0]], (32, 1)) * np.sqrt(2), np.zeros((64, 1))


def bits(model):
    return {name: a.tobytes() for name, a in (model.params | model.state).items()}


def test_model_and_optimizer_stay_as_they_are(samples):
    model = mlp()
    optimizer = fastopt.Adam(model.params, lr=0.25)
    model.fit(*samples, optimizer=optimizer)
    before, state = bits(model), repr(optimizer.state_dict())
    found = nn.lr_find(model, *samples, optimizer=optimizer)
    assert bits(model) == before
    assert repr(optimizer.state_dict()) == state
    again = nn.lr_find(model, *samples, optimizer=optimizer)
    np.testing.assert_array_equal(found.losses, again.losses)


def test_a_schedule_stays(samples):
    model = mlp()
    optimizer = fastopt.Adam(model.params, lr=bind(exponential, peak=0.1, gamma=0.5))
    model.fit(*samples, optimizer=optimizer)
    before, rate = repr(optimizer.state_dict()), optimizer.lr
    nn.lr_find(model, *samples, optimizer=optimizer)
    assert repr(optimizer.state_dict()) == before
    assert optimizer.lr == rate


def test_they_do_so_when_the_loss_raises(samples):
    model = mlp()
    calls = []

    def loss(output, targets):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("in the middle")
        return nn.softmax_cross_entropy(output, targets)

    before = bits(model)
    with pytest.raises(RuntimeError, match="in the middle"):
        nn.lr_find(model, *samples, loss=loss)
    assert bits(model) == before


def test_the_suggestion_lies_below_where_it_diverges():
    model, x, y = quadratic()
    found = nn.lr_find(model, x, y, optimizer="sgd", loss=nn.SquaredError(), low=1e-4, high=100.0)
    assert len(found.rates) < 150  # it was stopped
    assert found.rates[-1] > 0.5
    assert 0.01 < found.suggestion < 0.5
    assert found.steepest < found.lowest
    np.testing.assert_allclose(found.rates[1:] / found.rates[:-1], (100 / 1e-4) ** (1 / 149))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_suggestion_trains(samples, optimizer):
    model = mlp()
    found = nn.lr_find(model, *samples, optimizer=optimizer)
    bound = fastopt.optimizers.OPTIMIZERS[optimizer](model.params, lr=found.suggestion)
    history = model.fit(*samples, epochs=20, optimizer=bound)
    assert history["loss"][-1] < 0.75 * history["loss"][0]


def test_smoothing(samples):
    found = nn.lr_find(mlp(), *samples, steps=20, high=1e-3, smoothing=0.0)
    np.testing.assert_array_equal(found.losses, found.smoothed)
    found = nn.lr_find(mlp(), *samples, steps=20, high=1e-3, smoothing=0.5)
    weights = 0.5 ** np.arange(20)[::-1]
    assert found.smoothed[-1] == pytest.approx(weights @ found.losses / weights.sum())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 0.0}, r"low must be in \(0, inf\), got 0.0"),
        ({"low": 1.0, "high": 1.0}, "high must be above low, 1.0, got 1.0"),
        ({"steps": 1}, "steps must be at least 2, got 1"),
        ({"smoothing": 1.0}, r"smoothing must be in \[0, 1\), got 1.0"),
        ({"optimizer": "lion-tamer"}, "optimizer must be one of"),
        ({"optimizer": fastopt.Adam(mlp().params)}, "optimizer must be bound to model.params"),
        ({"low": 1e30, "high": 1e31, "optimizer": "sgd"}, "low must be a rate at which the model trains"),
    ],
)
def test_arguments_are_checked(samples, options, message):
    with pytest.raises(ValueError, match=message):
        nn.lr_find(mlp(), *samples, **options)


def test_the_picture(samples, tmp_path):
    pytest.importorskip("matplotlib")
    found = nn.lr_find(mlp(), *samples)
    found.plot(tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert f"<!-- suggestion, {found.suggestion:.2g} -->" in drawn
    assert found.plot().axes[0].get_title() == "learning-rate range test"
