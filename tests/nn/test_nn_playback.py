"""Passes that are recorded and played back: the same bits as if each were made anew."""

import threading
import tracemalloc

import numpy as np
import pytest

import fastopt
from fastopt import _kernels, cases, functional, nn
from fastopt.nn import playback
from fastopt.nn.playback import is_recordable


def anew(model, *data, **how):
    """`fit` without playing anything back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(playback, "is_recordable", lambda model: False)
        return model.fit(*data, **how)


def block(filters):
    return nn.Conv2D(filters), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D()


#: Layers, and the shape of an input.
MODELS = {
    "mlp": ([nn.Dense(40), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.3), nn.Dense(21, "relu"), nn.Dropout(0.2),
             nn.Dense(3)], (5,)),
    "cnn": ([*block(16), *block(32), nn.Flatten(), nn.Dense(20), nn.ReLU(), nn.Dropout(0.5), nn.Dense(3)], (8, 8, 1)),
    "direct": ([nn.Conv2D(16, 5, stride=2, padding=1), nn.ReLU(), nn.Dropout(0.1), nn.Conv2D(16, (2, 3)),
                nn.BatchNorm(), nn.AveragePool2D(), nn.GlobalAveragePool2D(), nn.Dense(3)], (13, 13, 2)),
    "activations": ([*(layer for kind in (nn.LeakyReLU, nn.ELU, nn.GELU, nn.Sigmoid, nn.SiLU, nn.Softmax, nn.Softplus,
                                          nn.Tanh, nn.ReLU) for layer in (nn.Dense(9), kind(), nn.Dropout(0.1))),
                     nn.Dense(3)], (5,)),
    "pooling": ([nn.Conv2D(16), nn.MaxPool2D(3, stride=2), nn.Dropout(0.2, p_is="keep"), nn.Flatten(), nn.Dense(3)],
                (9, 7, 3)),
}  # fmt: skip


def build(name, dtype=np.float32):
    layers, shape = MODELS[name]
    return nn.Sequential([type(layer)(**layer.config()) for layer in layers], shape, seed=3, dtype=dtype)


@pytest.fixture
def samples(rng):
    """For a model: several batches of 16, and one of 17 with the lone last sample."""
    return lambda model: (rng.normal(size=(16 * 5 + 1, *model.input_shape)), np.arange(81) % 3)


def bits(model):
    return {name: a.tobytes() for name, a in (model.params | model.state).items()}


def weighted(output, targets, sample_weight=None):
    """A loss of a user's own, whose gradient is a new array each time."""
    loss, gradient = nn.SoftmaxCrossEntropy()(output, targets, sample_weight)
    return loss, 2 * gradient


@pytest.mark.parametrize(
    "how",
    [{}, {"accumulate": 2}, {"sample_weight": np.arange(81) % 4}, {"loss": weighted}],
    ids=["plain", "accumulated", "weighted", "another loss"],
)
@pytest.mark.parametrize("name", MODELS)
def test_playing_back_has_the_bits_of_steps_made_anew(name, how, dtype, samples, monkeypatch):
    models = [build(name, dtype) for _ in range(2)]
    x, y = samples(models[0])
    made = []
    forward = nn.Sequential.forward
    monkeypatch.setattr(nn.Sequential, "forward", lambda self, x, **o: made.append(len(x)) or forward(self, x, **o))
    wanted = anew(models[0], x, y, epochs=3, batch_size=16, **how)
    assert made == [16, 16, 16, 16, 17] * 3
    made.clear()
    played = models[1].fit(x, y, epochs=3, batch_size=16, **how)
    assert made == [16, 17]
    assert bits(models[0]) == bits(models[1])
    for key in ("loss", "accuracy"):
        assert wanted[key] == played[key]


#: The layers that do more than call kernels, or decide by shape, and why.
NOT_ALONE = {
    nn.Conv2D: "kernels take some shapes alone: see `playback._calls_kernels`",
    nn.DecorrelatedBatchNorm: "NumPy whitens",
    nn.Dense: "a BLAS may multiply: see `playback._calls_kernels`",
    nn.Embedding: "NumPy looks entries up, which are checked each time",
    nn.Residual: "NumPy adds the two branches",
    nn.Sequential: "it fuses layers of its own, and is recorded as a whole",
    nn.SpatialDropout: "NumPy spreads the mask over pixels",
    nn.WeightNorm: "NumPy computes the weight",
}


@pytest.mark.parametrize("cls", dict.fromkeys(type(layer) for layer, *_ in cases.NN), ids=lambda cls: cls.__name__)
def test_a_layer_of_kernels_alone_says_so_and_is_replayed_to_the_same_bits(cls, dtype, rng, same_bits, monkeypatch):
    """Behind one that has parameters, so that it takes its gradient as well."""
    assert cls.kernels_alone == (cls not in NOT_ALONE)
    made = []
    forward = nn.Sequential.forward
    monkeypatch.setattr(nn.Sequential, "forward", lambda self, x, **o: made.append(len(x)) or forward(self, x, **o))
    for layer, shape, _ in cases.NN if cls.kernels_alone else ():
        if type(layer) is not cls:
            continue
        models = [nn.Sequential([nn.RMSNorm(), cls(**layer.config())], shape, seed=3, dtype=dtype) for _ in range(2)]
        passes, memory = nn.Passes(models[0]), models[1].workspace()
        for counter in range(4):
            x = rng.normal(size=(9, *shape)).astype(dtype)
            wanted, cache = models[1].forward(x, training=True, counter=counter, memory=memory)
            made.clear()
            same_bits(passes.forward(x, counter), wanted)
            assert made == [9][counter:], "only the first pass calls the layers"
            dy = rng.normal(size=wanted.shape).astype(dtype)
            grads = passes.backward(dy)
            for key, grad in models[1].backward(dy, cache, memory=memory, input_grad=False)[1].items():
                same_bits(grads[key], grad)
        assert bits(models[0]) == bits(models[1])


def test_playing_back_on_several_threads(samples):
    models = [build("cnn") for _ in range(2)]
    x, y = samples(models[0])
    anew(models[0], x, y, epochs=2, batch_size=16)
    fastopt.set_num_threads(2)
    models[1].fit(x, y, epochs=2, batch_size=16)
    assert bits(models[0]) == bits(models[1])


def less_dropout(model):
    for layer in model.layers:
        if isinstance(layer, nn.Dropout):
            layer.p *= 0.8


class MyDense(nn.Dense):
    pass


class MySequential(nn.Sequential):
    pass


class Less(nn.Callback):
    def __init__(self, when):
        setattr(self, when, lambda *_: less_dropout(self.run.model))

    def on_train_begin(self, run):
        self.run = run


def less_while_scheduled(model):
    return {"callbacks": [nn.LearningRateScheduler(step=lambda step, steps: less_dropout(model) or 0.01)]}


def less_while_measured(model):
    def loss(output, targets):
        less_dropout(model)
        return nn.SoftmaxCrossEntropy()(output, targets)

    return {"loss": loss}


def other_arrays(model):
    """The optimizer's stay as they are."""

    class Replace(nn.Callback):
        def on_batch_begin(self, batch):
            if batch == 2:
                model.layers[0].params["bias"] = model.layers[0].params["bias"] + 1
                model.layers[1].state["running_mean"] = np.zeros_like(model.layers[1].state["running_mean"])

    return {"callbacks": [Replace()]}


def other_layers(model):
    class Replace(nn.Callback):
        def on_batch_begin(self, batch):
            if batch == 2:
                model.layers[-1] = MyDense(3)
                model.layers[-1].build((21,), np.random.default_rng(0), model.dtype)

    return {"callbacks": [Replace()]}


def another_backward(model):
    class Double(nn.Callback):
        def on_batch_begin(self, batch):
            if batch == 2:
                model.layers[-1].backward = lambda dy, *a, **o: nn.Dense.backward(model.layers[-1], dy * 2, *a, **o)

    return {"callbacks": [Double()]}


CHANGES = {
    **{when: lambda model, when=when: {"callbacks": [Less(when)]}
       for when in ("on_epoch_end", "on_batch_begin", "on_gradients", "on_batch_end")},
    "schedule": less_while_scheduled,
    "loss": less_while_measured,
    "arrays": other_arrays,
    "layers": other_layers,
    "backward": another_backward,
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_steps_is_heeded(change, samples):
    models = [build("mlp") for _ in range(2)]
    x, y = samples(models[0])
    histories = [
        fit(model, x, y, epochs=3, batch_size=16, **CHANGES[change](model))
        for fit, model in zip((anew, nn.Sequential.fit), models, strict=True)
    ]
    assert bits(models[0]) == bits(models[1])
    assert histories[0]["loss"] == histories[1]["loss"]


@pytest.mark.parametrize("name", MODELS)
def test_a_loop_of_your_own(name, dtype, samples, same_bits):
    """With new arrays each time, and batches of another size among them."""
    models = [build(name, dtype) for _ in range(2)]
    passes, memory = nn.Passes(models[0]), models[1].workspace()
    x, y = samples(models[0])
    x = x.astype(dtype)
    for counter, (begin, end) in enumerate([(0, 16), (16, 32), (7, 23), (0, 9), (3, 12), (0, 16)]):
        rows = slice(begin, end)
        output = passes.forward(x[rows], counter)
        wanted, cache = models[1].forward(x[rows], training=True, counter=counter, memory=memory)
        same_bits(output, wanted)
        _, dy = nn.softmax_cross_entropy(output, y[rows])
        grads = passes.backward(dy)
        _, wanted = models[1].backward(dy, cache, memory=memory, input_grad=False)
        assert grads.keys() == wanted.keys()
        for key in grads:
            same_bits(grads[key], wanted[key])
    assert bits(models[0]) == bits(models[1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda dy: dy[:1], r"loss must return a gradient of the shape of the output, \(16, 3\), got \(1, 3\)"),
        (lambda dy: dy[..., None], r"loss must return a gradient of the shape of the output, .*, got \(16, 3, 1\)"),
        (lambda dy: dy.astype(complex), r"loss must return \(mean loss, .*\), both real numbers, got .* complex128"),
        (lambda dy: None, r"loss must return \(mean loss, .*\), both real numbers, got .* object"),
    ],
)
@pytest.mark.parametrize("step", [0, 2])
def test_a_wrong_gradient_is_refused_at_any_step(wrong, message, step, samples, refuses):
    model = build("mlp")
    x, y = samples(model)
    steps = iter(range(99))

    def loss(output, targets):
        value, dy = nn.SoftmaxCrossEntropy()(output, targets)
        return value, wrong(dy) if next(steps) == step else dy

    refuses(lambda: model.fit(x, y, batch_size=16, loss=loss), message)


def test_one_more_epoch_takes_no_more_memory(samples):
    model = build("mlp")
    x, y = samples(model)
    peaks = []
    for epochs in (1, 1, 4):
        tracemalloc.start()
        try:
            model.fit(x, y, epochs=epochs, batch_size=16, optimizer=fastopt.SGD(model.params, lr=0.1))
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[2] < peaks[1] + 20_000


def test_what_may_do_more_than_call_kernels_is_not_recorded(monkeypatch):
    def model(*layers, shape=(5,)):
        return nn.Sequential(layers, shape)

    assert is_recordable(model(nn.Dense(5), nn.BatchNorm()))
    assert not is_recordable(model(MyDense(5)))
    assert not is_recordable(MySequential([nn.Dense(5)], (5,)))
    columns = model(nn.Dense(5))
    columns.adopt({"0.weight": np.asfortranarray(columns.params["0.weight"])})
    assert not is_recordable(columns)
    assert is_recordable(model(nn.LayerNorm()))
    assert not is_recordable(model(nn.DecorrelatedBatchNorm()))
    assert not is_recordable(model(nn.Sequential([nn.Dense(5)]), nn.Dense(3)))
    assert not is_recordable(model(nn.Conv2D(5), shape=(5, 5, 1)))  # by im2col
    assert not is_recordable(model(nn.Conv2D(16), nn.Conv2D(16, stride=2), shape=(5, 5, 1)))
    assert is_recordable(model(nn.Flatten(), nn.Dense(3), shape=(5, 5, 1)))
    shared = nn.Dense(5)
    assert not is_recordable(model(shared, nn.ReLU(), shared))
    watched = model(nn.Dense(5))
    watched.layers[0].forward = lambda *a, **o: nn.Dense.forward(watched.layers[0], *a, **o)
    assert not is_recordable(watched)
    monkeypatch.setattr(nn.layers, "PRODUCTS", "blas")
    assert not is_recordable(model(nn.Dense(5)))


# ---- Tapes -------------------------------------------------------------------------------------------------------


def test_a_tape_plays_with_higher_counters(rng, same_bits):
    x, y, mask = rng.normal(size=100), np.empty(100), np.empty(13, np.uint8)
    with _kernels.Tape() as tape:
        functional.dropout(x, 0.5, seed=1, counter=3, out=y, mask=mask)
        functional.relu_forward(y, out=y)
    assert len(tape) == 2
    for later in (0, 4, -2):
        x[...] = rng.normal(size=100)
        tape.play(later)
        same_bits(y, np.maximum(functional.dropout(x, 0.5, seed=1, counter=3 + later)[0], 0))
    seconds = {"relu_forward": 1.0}
    tape.play(4, seconds)
    same_bits(y, np.maximum(functional.dropout(x, 0.5, seed=1, counter=7)[0], 0))
    assert seconds.keys() == {"dropout_forward", "relu_forward"}
    assert seconds["relu_forward"] > 1 > seconds["dropout_forward"] > 0


def test_a_tape_holds_what_its_own_thread_calls_meanwhile():
    x = np.ones(5)
    with _kernels.Tape() as outer:
        functional.relu_forward(x)
        with _kernels.Tape() as inner:
            other = threading.Thread(target=functional.relu_forward, args=(x,))
            other.start()
            other.join()
            assert len(inner) == 0
            functional.relu_forward(x)
        with pytest.raises(ValueError, match="alpha"), _kernels.Tape() as failed:
            functional.activation_forward(x, "elu", alpha=-1.0)
        functional.relu_forward(x)
    functional.relu_forward(x)
    assert (len(outer), len(inner), len(failed)) == (2, 1, 0)


def test_a_tape_keeps_its_arrays():
    x = np.ones(100_000)
    with _kernels.Tape() as tape:
        y = functional.relu_forward(x)
    x[...] = 2
    del x
    tape.play()
    assert (y == 2).all()


# ---- The same in a replay as in passes that are made anew ---------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["replayed", "anew"])
def passes(request, monkeypatch, rng):
    """Passes over a model with dropout, its inputs, and gradients of its output, after two batches."""
    if not request.param:
        monkeypatch.setattr(playback, "is_recordable", lambda model: False)
    model = build("mlp")
    x, dy = rng.normal(size=(16, 5)).astype(np.float32), rng.normal(size=(16, 3)).astype(np.float32)
    passes = nn.Passes(model)
    for counter in range(2):
        passes.forward(x, counter)
        passes.backward(dy)
    return passes, model, x, dy


@pytest.mark.parametrize("counter", [-1, 2**64 // 7, 2**63, 2**64, 2**70, 1.5, None])
def test_a_counter_that_cannot_be_one_is_refused(counter, passes, refuses):
    passes, model, x, _ = passes
    assert len(model.layers) == 7
    arrays = [*model.params.values(), *model.state.values()]
    refuses(lambda: passes.forward(x, counter), "counter must be", *arrays)
    if counter is not None:
        refuses(lambda: model.forward(x, training=True, counter=counter), "counter must be", *arrays)


@pytest.mark.parametrize("counter", [0, 2**61, 2**64 // 7 - 1])
def test_large_counters(counter, passes, same_bits):
    passes, model, x, _ = passes
    same_bits(passes.forward(x, counter), model.forward(x, training=True, counter=counter)[0])


def test_a_refused_gradient_may_be_followed_by_a_right_one(passes, refuses, same_bits):
    passes, model, x, dy = passes
    twin = model.copy()
    wanted = twin.backward(dy, twin.forward(x, training=True, counter=5)[1])[1]
    passes.forward(x, 5)
    for wrong in (dy[:3], dy.astype(np.float64), dy.tolist(), None):
        refuses(lambda wrong=wrong: passes.backward(wrong), "dy must")
    grads = passes.backward(dy)
    assert grads.keys() == wanted.keys()
    for name, grad in grads.items():
        same_bits(grad, wanted[name])


def test_a_forward_pass_serves_one_backward_pass(passes, refuses):
    passes, _, x, dy = passes
    refuses(lambda: passes.backward(dy), "backward must follow a forward pass, once")
    passes.forward(x, 3)
    passes.backward(dy)
    refuses(lambda: passes.backward(dy), "backward must follow a forward pass, once")
    for wrong in (x[:, :3], x.tolist()):
        with pytest.raises((TypeError, ValueError, AttributeError)):
            passes.forward(wrong, 4)
        refuses(lambda: passes.backward(dy), "backward must follow a forward pass, once")
    refuses(lambda: nn.Passes(build("mlp")).backward(dy), "backward must follow a forward pass, once")


def test_what_is_done_to_a_dict_of_gradients_stays_there(passes, same_bits):
    passes, _, x, dy = passes
    passes.forward(x, 2)
    first = passes.backward(dy)
    first["0.weight"] = None
    passes.forward(x, 2)
    assert passes.backward(dy)["0.weight"] is not None
