"""Runs whose parameters are averaged: schedule-free optimizers, EMA and SWA."""

import copy
import pickle

import numpy as np
import pytest

import fastopt
from fastopt import nn


def mlp():
    return nn.Sequential([nn.Dense(16), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2), nn.Dense(3)], (5,))


@pytest.fixture
def samples(rng):
    y = np.arange(65) % 3
    return rng.normal(size=(65, 5)) + 1.5 * y[:, None], y


def bits(model):
    return {name: a.tobytes() for name, a in (model.params | model.state).items()}


def schedule_free(model):
    return {"optimizer": fastopt.ScheduleFreeAdamW(model.params, lr=0.05)}


def schedule_free_sgd(model):
    return {"optimizer": fastopt.ScheduleFreeSGD(model.params, lr=0.5)}


def averaged(make, **options):
    def how(model):
        average = nn.WeightAverage(make(model.params), **options)
        return {"optimizer": fastopt.Adam(model.params, lr=0.05), "callbacks": [average]}

    return how


#: Ways to average, as arguments of `fit`.
HOW = {
    "schedule-free AdamW": schedule_free,
    "schedule-free SGD": schedule_free_sgd,
    "EMA": averaged(lambda params: fastopt.EMA(params, 0.8)),
    "late EMA": averaged(lambda params: fastopt.EMA(params, 0.8), begin=1),
    "SWA": averaged(fastopt.SWA),
    "late SWA": averaged(fastopt.SWA, begin=1, every="epoch"),
    "SWA of steps": averaged(fastopt.SWA, every="step"),
}


@pytest.fixture(params=HOW.values(), ids=HOW)
def how(request):
    return request.param


def average_of(given):
    return given["callbacks"][0].average if "callbacks" in given else given["optimizer"]


def test_the_model_that_is_left_is_the_one_that_was_validated(how, samples):
    """Training itself goes on from other parameters, and has the bits of a run that nobody validates."""
    model, twin = mlp(), mlp()
    given, plain = how(model), how(twin)
    history = model.fit(*samples, epochs=3, batch_size=16, validation_data=samples, **given)
    measured = model.evaluate(*samples)
    assert (measured["loss"], measured["accuracy"]) == (history["val_loss"][-1], history["val_accuracy"][-1])
    average = average_of(given)
    assert average.is_applied
    left = bits(model)
    average.restore()
    assert left != bits(model)
    twin.fit(*samples, epochs=3, batch_size=16, **plain)
    average_of(plain).restore()
    assert bits(model) == bits(twin)


def test_a_further_fit_goes_on_from_what_was_trained(how, samples):
    models = mlp(), mlp()
    whole, parts = how(models[0]), how(models[1])
    models[0].fit(*samples, epochs=4, batch_size=16, **whole)
    if "callbacks" in parts:
        parts["callbacks"][0].begin = min(parts["callbacks"][0].begin, 1)
    models[1].fit(*samples, epochs=3, batch_size=16, **parts)
    if "callbacks" in parts:
        parts["callbacks"][0].begin = 0
    models[1].fit(*samples, epochs=1, batch_size=16, **parts)
    assert bits(models[0]) == bits(models[1])


def test_a_resumed_run_has_the_same_bits(how, samples, tmp_path):
    def run(path, *epochs):
        for count in epochs:
            model = mlp()
            given = how(model)
            given["callbacks"] = [*given.get("callbacks", ()), nn.ModelCheckpoint(tmp_path / path, resume=True)]
            history = model.fit(*samples, epochs=count, batch_size=16, validation_data=samples, **given)
        return model, history

    model, history = run("parts.npz", 1, 2, 4)
    whole, wanted = run("whole.npz", 4)
    assert bits(model) == bits(whole)
    for key in ("loss", "val_loss", "val_accuracy"):
        assert history[key] == wanted[key]
    assert bits(nn.load(tmp_path / "parts.npz")) == bits(model)  # what is saved is what was validated


def test_early_stopping_restores_averages(how, samples):
    model = mlp()
    given = how(model)
    kept = []

    class Keep(nn.Callback):
        def on_train_begin(self, run):
            self.run = run

        def on_epoch_end(self, epoch, logs):
            kept.append(bits(self.run.model))

    stopping = nn.EarlyStopping("val_accuracy", mode="min", patience=1)  # the first epoch is the best
    callbacks = [*given.pop("callbacks", ()), stopping, Keep()]
    history = model.fit(*samples, epochs=9, batch_size=16, validation_data=samples, callbacks=callbacks, **given)
    best = int(np.argmin(history["val_accuracy"]))
    assert bits(model) == kept[best]
    assert model.evaluate(*samples)["accuracy"] == history["val_accuracy"][best]


@pytest.mark.parametrize("make", [schedule_free, schedule_free_sgd])
def test_a_step_from_averages_is_refused(make, samples, refuses):
    model = mlp()
    optimizer = make(model)["optimizer"]
    model.fit(*samples, optimizer=optimizer)
    grads = {name: np.ones_like(param) for name, param in model.params.items()}
    refuses(lambda: optimizer.step(grads), "the parameters must be those that are trained", *model.params.values())
    refuses(optimizer.apply, "the parameters must be those that are trained", *model.params.values())
    optimizer.restore()
    optimizer.step(grads)
    refuses(optimizer.restore, "the parameters must hold averages to be restored")


def test_averages_of_averages_are_refused(samples, refuses):
    model = mlp()
    ema = fastopt.EMA(model.params)
    model.fit(*samples, callbacks=[nn.WeightAverage(ema)])
    refuses(ema.update, "the parameters must be those that are trained")
    refuses(ema.reset, "the parameters must be those that are trained")


@pytest.mark.parametrize("make", [schedule_free, schedule_free_sgd])
@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o)), "file"], ids=["copy", "pickle", "file"]
)
def test_an_optimizer_is_kept_together_with_what_it_trains(make, again, samples, tmp_path):
    model = mlp()
    optimizer = make(model)["optimizer"]
    model.fit(*samples, optimizer=optimizer)
    twin = model.copy()
    if again == "file":
        fastopt.save(optimizer, tmp_path / "optimizer.npz")
        other = make(twin)["optimizer"]
        fastopt.load(other, tmp_path / "optimizer.npz")
    else:
        pair = again((model, optimizer))
        twin, other = pair
    assert other.is_applied
    for each, bound in ((model, optimizer), (twin, other)):
        bound.restore()
        bound.step({name: np.ones_like(param) for name, param in each.params.items()})
    assert bits(model) == bits(twin)


def test_parameters_that_were_changed_meanwhile_are_not_overwritten(how, samples, refuses):
    model = mlp()
    given = how(model)
    model.fit(*samples, epochs=2, **given)
    model.params["4.bias"] = np.ones(3, np.float32)
    refuses(lambda: model.fit(*samples, **given), "the parameters were changed since", *model.params.values())
    average_of(given).restore()
    model.fit(*samples, **given)


def test_a_run_without_an_epoch_changes_nothing(how, samples):
    model = mlp()
    before = bits(model)
    given = how(model)
    model.fit(*samples, epochs=0, **given)
    assert bits(model) == before
    model.fit(*samples, epochs=1, **given)


def test_a_run_that_fails_leaves_what_is_trained(how, samples):
    class Fail(nn.Callback):
        def on_epoch_end(self, epoch, logs):
            if epoch == 1:
                raise OSError("no space")

    model = mlp()
    given = how(model)
    with pytest.raises(OSError, match="no space"):
        model.fit(*samples, epochs=3, **given | {"callbacks": [*given.get("callbacks", ()), Fail()]})
    assert not average_of(given).is_applied


def test_the_range_test_leaves_averages_as_they_are(samples):
    model = mlp()
    optimizer = schedule_free(model)["optimizer"]
    model.fit(*samples, optimizer=optimizer)
    before, state = bits(model), optimizer.state_dict()
    nn.lr_find(model, *samples, optimizer=optimizer, steps=10)
    assert bits(model) == before
    assert optimizer.is_applied
    for name, array in optimizer.state_dict()["trained"].items():
        np.testing.assert_array_equal(array, state["trained"][name])


def test_one_average_at_a_time(samples, refuses):
    model = mlp()
    averages = [nn.WeightAverage(fastopt.EMA(model.params)), nn.WeightAverage(fastopt.SWA(model.params))]
    for given in ({"callbacks": averages}, {"callbacks": averages[:1], **schedule_free(model)}):
        refuses(lambda given=given: model.fit(*samples, **given), "callbacks and optimizer must have one average")
    other = nn.WeightAverage(fastopt.EMA(mlp().params))
    refuses(lambda: model.fit(*samples, callbacks=[other]), "average must be of model.params")
    refuses(lambda: nn.WeightAverage(model.params), "average must be an EMA or an SWA, got Params")
    refuses(lambda: nn.WeightAverage(fastopt.EMA(model.params), every="batch"), "every must be one of")
    refuses(lambda: nn.WeightAverage(fastopt.EMA(model.params), begin=-1), "begin must be at least 0")


def test_what_an_average_is_of(samples):
    """By the definitions, from the parameters after each step and each epoch."""
    steps, epochs = [], []

    class Watch(nn.Callback):
        def on_train_begin(self, run):
            self.run = run

        def on_batch_end(self, batch, logs):
            steps.append(self.run.model.params["0.weight"].astype(np.float64))
            if batch + 1 == self.run.batches:
                epochs.append(steps[-1])

    for make, options, wanted in (
        (fastopt.SWA, {"begin": 1}, lambda first: np.mean(epochs[1:], axis=0)),
        (fastopt.SWA, {"every": "step"}, lambda first: np.mean(steps, axis=0)),
        (lambda p: fastopt.EMA(p, 0.75), {}, lambda first: ema([first, *steps])),
        (lambda p: fastopt.EMA(p, 0.75), {"begin": 2}, lambda first: ema(steps[8:])),
        (lambda p: fastopt.EMA(p, 0.75), {"every": "epoch"}, lambda first: ema([first, *epochs])),
    ):
        model = mlp()
        first = model.params["0.weight"].copy()
        steps.clear()
        epochs.clear()
        model.fit(
            *samples, epochs=3, batch_size=16, callbacks=[Watch(), nn.WeightAverage(make(model.params), **options)]
        )
        np.testing.assert_allclose(model.params["0.weight"], wanted(first), rtol=1e-5, atol=1e-6)


def ema(values):
    average = values[0]
    for value in values[1:]:
        average = 0.75 * average + 0.25 * value
    return average
