"""Numbers that are not finite: in the data, in a loss, in gradients."""

import copy
import io
import math
import types

import numpy as np
import pytest

import fastopt
from fastopt import cases, environment, nn
from fastopt.nn.preprocessing import adapt, unadapted
from fastopt.nn.program import Program, Targets
from fastopt.nn.targets import check_finite

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, about the same


def mlp(seed=0):
    return nn.Sequential([nn.Dense(16), nn.BatchNorm(), nn.ReLU(), nn.Dense(3)], (5,), seed=seed)


@pytest.fixture
def samples(rng):
    y = np.arange(64) % 3
    return rng.normal(size=(64, 5)) + 1.5 * y[:, None], y


@pytest.fixture(params=["own", "blas"])
def products(request, monkeypatch):
    """By C alone, and with calls of Python between."""
    monkeypatch.setattr(environment, "PRODUCTS", request.param)


def bits(model):
    return {name: a.tobytes() for name, a in (model.params | model.state).items()}


class Bad(nn.Layer):
    """A layer with a bias whose passes go wrong from a call on, for some of them."""

    def __init__(self, where, calls=(3,)):
        super().__init__()
        self.where, self.calls, self.call = where, calls, -1

    def _build(self, input_shape, rng, dtype):
        self.params["bias"] = np.zeros(input_shape, dtype)

    def forward(self, x, *, training=False, counter=0):
        if training:
            self.call += "forward" not in vars(self)  # where it is not looked for what went wrong
        y = x + self.params["bias"]
        if self._now("output"):
            y[0, 0] = np.inf
        return y, None

    def _now(self, where):
        return self.where == where and self.call in self.calls

    def backward(self, dy, cache):
        dx, bias = dy.copy(), dy.sum(axis=0)
        if self._now("gradient of the input"):
            dx[0, 0] = np.nan
        if self._now("gradient of bias"):
            bias[0] = np.nan
        return dx, {"bias": bias}


def bad(where, calls=(3,)):
    return nn.Sequential([nn.Dense(8), nn.BatchNorm(), Bad(where, calls), nn.ReLU(), nn.Dense(3)], (5,))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("output", r"the forward pass of layer 2 \(Bad\): in its output, 1 infinite of 64 values"),
        (
            "gradient of the input",
            r"the backward pass of layer 2 \(Bad\): in the gradient of the input, 1 NaN of 64 values",
        ),
        ("gradient of bias", r"the backward pass of layer 2 \(Bad\): in the gradient of bias, 1 NaN of 8 values"),
    ],
)
def test_a_run_stops_before_the_step(where, message, samples, products):
    model, twin = bad(where), bad("nowhere")
    with pytest.raises(nn.NonFiniteError, match=f"^epoch 1, batch 4: {message}") as raised:
        model.fit(*samples, batch_size=8)
    assert isinstance(raised.value, ValueError)
    assert raised.value.epochs == 0

    class Stop(nn.Callback):
        def on_train_begin(self, run):
            self.run = run

        def on_batch_end(self, batch, logs):
            if batch == 2:
                self.run.stop("here")

    twin.fit(*samples, batch_size=8, callbacks=[Stop()])
    assert bits(model) == bits(twin)


@pytest.mark.parametrize("where", ["output", "gradient of the input", "gradient of bias"])
def test_bad_steps_are_skipped(where, samples, products):
    model = bad(where, (1, 3, 9))
    optimizer = fastopt.Adam(model.params)
    told = []

    class Watch(nn.Callback):
        def on_batch_end(self, batch, logs):
            told.append(np.isnan(logs["loss"]))

    history = model.fit(
        *samples,
        epochs=2,
        batch_size=8,
        optimizer=optimizer,
        on_nonfinite="skip",
        validation_data=samples,
        callbacks=[Watch()],
    )
    assert [i for i, skipped in enumerate(told) if skipped] == [1, 3, 9]
    assert history["skipped"] == [2, 1]
    assert optimizer.t == 13
    assert all(np.isfinite(array).all() for array in (model.params | model.state).values())
    assert np.isfinite([history[key] for key in ("loss", "accuracy", "val_loss")]).all()


@pytest.fixture(params=cases.NN, ids=lambda case: f"{case[0]!r}-{case[1]}")
def case(request):
    return copy.deepcopy(request.param[0]), request.param[1]


@pytest.fixture(params=["kernels", "layers"])
def by(request):
    """Has the passes of a layer taken by kernels, or by Python."""

    def choose(layer):
        if request.param == "layers":
            layer.forward = types.MethodType(type(layer).forward, layer)  # as if somebody had given it another one
        return layer

    return choose


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_every_gradient_is_looked_at(bad, case, by, rng):
    """Those of each parameter of each layer, up to the last element."""
    layer, shape = case
    model = nn.Sequential([by(layer)], shape)
    x = rng.integers(3, size=(6, *shape)) if isinstance(layer, nn.Embedding) else rng.normal(size=(6, *shape))
    y = np.zeros((6, *model.shapes[-1]))
    adapt(model, model.converted(x), anew=False)
    made = Program(model, 6, loss=nn.SquaredError(), targets=Targets(y, model.dtype, False))
    made.feed(model.converted(x), y)
    assert [made.run_phase(phase, None, 0, 0) for phase in range(3)] == [-1] * 3
    assert made.grads.keys() == model.params.keys()
    for grad in made.grads.values():
        before = grad.flat[-1]
        grad.flat[-1] = bad
        assert made.run_phase(2, None, 0, 0) >= 0
        grad.flat[-1] = before
    assert made.run_phase(2, None, 0, 0) == -1


@pytest.mark.filterwarnings("ignore:x of shape .* looks like:UserWarning")
def test_a_nan_before_any_layer_stops_the_step(case, by):
    """None of them makes a number of it."""
    layer, shape = case
    if isinstance(layer, nn.Embedding):
        return  # it takes whole numbers
    model = nn.Sequential([nn.Dense(2), nn.Dense(math.prod(shape)), nn.Reshape(shape), by(layer)], (1,))
    if unadapted(model):
        return  # it would be refused before
    model.params["0.weight"][...] = 10
    model.params["1.weight"][:, 0] = 1, -1  # infinity minus infinity
    x, before = np.full((64, 1), 3e38, np.float32), bits(model)
    with pytest.raises(nn.NonFiniteError, match=r"^epoch 1, batch 1: the forward pass of layer 0 \(Dense\)"):
        model.fit(x, np.zeros((64, *model.shapes[-1])), batch_size=32, loss="squared_error")
    assert bits(model) == before


def test_a_gradient_that_overflows_alone_stops_the_step(products):
    """That of the weight, where the loss and the gradient of the bias are finite."""
    model = nn.Sequential([nn.Dense(1, init=nn.Constant(0))], (3,))
    optimizer = fastopt.Adam(model.params)
    with pytest.raises(
        nn.NonFiniteError,
        match=r"^epoch 1, batch 1: the backward pass of layer 0 \(Dense\): in the gradient of weight, 3 infinite of 3",
    ):
        model.fit(np.full((8, 3), 1e30), np.full((8, 1), 1e9), loss="squared_error", optimizer=optimizer, epochs=2)
    assert optimizer.t == 0
    assert not model.params["0.weight"].any()


def test_what_would_be_skipped_for_ever_is_an_error(samples):
    model = bad("output", range(99))
    with pytest.raises(
        nn.NonFiniteError, match=r"^epoch 1, batch 8: all steps of the epoch were skipped; the last one for the f"
    ):
        model.fit(*samples, batch_size=8, on_nonfinite="skip")


def test_they_can_be_ignored(samples):
    model = bad("output")
    history = model.fit(*samples, batch_size=8, on_nonfinite="ignore")
    assert not np.isfinite(history["loss"][0])


def test_an_optimizer_that_skips_decides(samples):
    model = bad("gradient of bias")
    history = model.fit(*samples, batch_size=8, optimizer=fastopt.Adam(model.params, skip_nonfinite=True))
    assert history["skipped"] == [1]
    with pytest.raises(nn.NonFiniteError):
        bad("output").fit(*samples, batch_size=8, optimizer="adam")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_learning_rate_that_is_too_high(accumulate, samples, products):
    model = mlp()
    with pytest.raises(nn.NonFiniteError, match=r"^epoch \d+, (after )?batch \d+: ") as raised:
        model.fit(
            *samples, epochs=50, batch_size=8, accumulate=accumulate, optimizer=fastopt.SGD(model.params, lr=1e30)
        )
    if "after" not in str(raised.value):
        assert all(np.isfinite(array).all() for array in (model.params | model.state).values())


def test_a_loss_of_ones_own_that_is_wrong_backwards(samples, products):
    def loss(output, targets):
        value, dy = nn.SoftmaxCrossEntropy()(output, targets)
        dy[3, 1] = np.nan
        return value, dy

    model = mlp()
    before = bits(model)
    with pytest.raises(
        nn.NonFiniteError, match=r"^epoch 1, batch 1: the backward pass of the loss: in the gradient, 1 NaN"
    ):
        model.fit(*samples, loss=loss)
    assert bits(model) == before


def test_gradients_that_a_callback_repairs_are_taken(samples):
    model = bad("gradient of bias")

    class Repair(nn.Callback):
        def on_gradients(self, batch, grads):
            np.nan_to_num(grads["2.bias"], copy=False)

    model.fit(*samples, batch_size=8, callbacks=[Repair()])


def test_gradients_that_a_callback_replaces_are_those_of_its_step(samples, monkeypatch):
    """And of no other."""

    class Replace(nn.Callback):
        def on_gradients(self, batch, grads):
            if batch == 2:
                grads["0.weight"] = np.zeros_like(grads["0.weight"])

    class Fill(nn.Callback):
        def on_gradients(self, batch, grads):
            if batch == 2:
                grads["0.weight"][...] = 0

    models = [mlp() for _ in range(2)]
    models[0].fit(*samples, batch_size=8, callbacks=[Replace()])
    models[1].fit(*samples, batch_size=8, callbacks=[Fill()])
    assert bits(models[0]) == bits(models[1])


def test_a_last_step_that_overflows(samples):
    """No batch follows in which it would be seen."""

    class Scale(nn.Callback):
        def on_gradients(self, batch, grads):
            for grad in grads.values():
                grad *= np.float32(1e6)

    model = mlp()
    with pytest.raises(nn.NonFiniteError, match=r"^epoch 1, after batch 1: params\[\d\.\w+\] is not finite"):
        model.fit(*samples, batch_size=64, optimizer=fastopt.SGD(model.params, lr=3e38), callbacks=[Scale()])


# ---- The data -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("x", r"x must be finite, got {value} at x\[40, 2\]"),
        ("y", r"y must be finite, got {value} at y\[40, 1\]"),
        ("validation x", r"validation x must be finite, got {value} at validation x\[40, 2\]"),
        ("validation y", r"validation y must be finite, got {value} at validation y\[40, 1\]"),
        ("sample_weight", r"sample_weight must be in \[0, inf\), got {value}"),
    ],
)
def test_data_that_is_not_finite_is_refused(which, message, value, rng, refuses):
    x, y, weight = rng.normal(size=(64, 5)), rng.normal(size=(64, 2)), np.ones(64)
    given = {"x": x, "y": y, "validation x": x.copy(), "validation y": y.copy(), "sample_weight": weight}
    {"x": x, "y": y, **given}[which][(40,) if which == "sample_weight" else (40, 2 if which.endswith("x") else 1)] = (
        value
    )
    model = nn.Sequential([nn.Dense(2)], (5,))
    refuses(
        lambda: model.fit(
            x,
            y,
            sample_weight=weight,
            validation_data=(given["validation x"], given["validation y"]),
            loss=nn.SquaredError(),
        ),
        message.format(value=value),
        *model.params.values(),
    )


def test_data_need_not_be_finite_where_that_is_ignored(rng):
    """A layer of one's own may know what to do."""

    class Known(nn.Layer):
        def forward(self, x, *, training=False, counter=0):
            return np.nan_to_num(x), None

        def backward(self, dy, cache):
            return dy, {}

    x = rng.normal(size=(64, 5))
    x[::7, 0] = np.nan
    history = nn.Sequential([Known(), nn.Dense(3)], (5,)).fit(x, np.arange(64) % 3, on_nonfinite="ignore")
    assert np.isfinite(history["loss"]).all()


def test_data_that_overflows_the_models_type(rng, refuses):
    x = rng.normal(size=(64, 5))
    x[7, 3] = 1e300
    refuses(lambda: mlp().fit(x, np.arange(64) % 3), r"x must be finite as float32, got 1e\+300 at x\[7, 3\]")


def test_finite_numbers_are_looked_for_in_parts(tmp_path):
    """The array is larger than a part, and mapped into memory."""
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (70_000, 2, 3))
    check_finite("x", array)
    array[69_999, 1, 2] = np.nan
    with pytest.raises(ValueError, match=r"^x must be finite, got nan at x\[69999, 1, 2\]"):
        check_finite("x", array)
    check_finite("x", np.arange(4))
    check_finite("x", array[:0])


def test_the_range_test_refuses_it_too(samples, refuses):
    x, y = samples
    x[5, 0] = np.nan
    refuses(lambda: nn.lr_find(mlp(), x, y), r"x must be finite, got nan at x\[5, 0\]")


# ---- The last layer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [nn.softmax_cross_entropy, nn.SoftmaxCrossEntropy(0.1)], ids=["plain", "smoothed"])
@pytest.mark.parametrize("nested", [False, True])
def test_softmax_in_front_of_its_loss_is_refused(loss, nested, samples, refuses):
    last = [nn.Dense(3), nn.Softmax()]
    model = nn.Sequential([nn.Dense(4), nn.Sequential(last)] if nested else last, (5,))
    message = r"the model must end before its Softmax, .*nn.Softmax\(\).forward\(model.predict\(x\)\)\[0\]"
    for call in (model.fit, model.evaluate):
        refuses(lambda call=call: call(*samples, loss=loss), message, *model.params.values())
    model.fit(samples[0], np.eye(3)[samples[1]], loss=nn.SquaredError())


def test_sigmoid_in_front_of_its_loss_is_refused(samples, refuses):
    model = nn.Sequential([nn.Dense(3), nn.Sigmoid()], (5,))
    y = np.eye(3)[samples[1]]
    refuses(lambda: model.fit(samples[0], y, loss=nn.SigmoidCrossEntropy()), "the model must end before its Sigmoid")
    model.fit(samples[0], y, loss=nn.SquaredError())


# ---- What runs beside it --------------------------------------------------------------------------------


def test_a_monitor_keeps_its_records_aligned(samples):
    record = (
        bad("output")
        .fit(
            *samples,
            batch_size=8,
            on_nonfinite="skip",
            callbacks=[nn.monitor.Monitor(every=1), nn.Lines(io.StringIO())],
        )
        .monitor
    )
    assert len(record["gradient_norm"]) == len(record["step"]) == len(record["loss"]) == 8
