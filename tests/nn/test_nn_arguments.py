"""What is written to `fit` first: it works, or what is said of it is what to write instead."""

import functools

import numpy as np
import pytest

import fastopt
from fastopt import cli, data, nn
from fastopt.nn.arguments import BY_NAME
from fastopt.nn.losses import LOSSES
from fastopt.optimizers import OPTIMIZERS
from fastopt.schedules import bind, cosine


def model_of(outputs=3, inputs=5, dtype=np.float64):
    return nn.Sequential([nn.Dense(8), nn.Tanh(), nn.Dense(outputs)], (inputs,), dtype=dtype)


@pytest.fixture
def samples(rng):
    """Labelled points of three classes, of which one is seldom."""
    y = np.repeat([0, 1, 2], [30, 25, 10])
    return rng.normal(size=(65, 5)) + 1.5 * y[:, None], y


def bits(model):
    return {name: array.tobytes() for name, array in model.params.items()}


def fitted(x, y, *, outputs=3, dtype=np.float64, **options):
    """The bits of a model after two epochs, and the losses."""
    model = model_of(outputs, dtype=dtype)
    history = model.fit(x, y, **{"epochs": 2, "batch_size": 16, **options})
    return bits(model), history["loss"], history.get("val_loss")


# ---- Optimizers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in ("rprop", "lbfgs")])
def test_an_optimizer_by_its_name_or_its_class(name, samples):
    """Both are the object with the default rate of the class, or that of its constructor."""
    make = {"lookahead": fastopt.LookAhead}.get(name, BY_NAME[name])
    model = model_of()
    if name == "lookahead":
        optimizer = fastopt.LookAhead(fastopt.Adam(model.params))
    else:
        rate = getattr(make, "default_rate", None)
        optimizer = make(model.params, **({} if rate is None else {"lr": rate}))
    model.fit(*samples, epochs=2, batch_size=16, optimizer=optimizer)
    assert fitted(*samples, optimizer=name)[0] == fitted(*samples, optimizer=make)[0] == bits(model)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Adam", "adam"),
        ("ADAMW", "adamw"),
        ("RMSprop", "rmsprop"),
        ("NAdam", "nadam"),
        ("schedule-free SGD", "schedule_free_sgd"),
        ("ScheduleFreeAdamW", "schedule_free_adamw"),
        ("AdamWScheduleFree", "schedule_free_adamw"),
        ("LookAhead", "lookahead"),
        ("look_ahead", "lookahead"),
        ("sgdm", "momentum"),
    ],
)
def test_names_of_optimizers_as_others_write_them(written, name, samples):
    assert fitted(*samples, optimizer=written) == fitted(*samples, optimizer=name)


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "muon", "ranger", "lookahead", fastopt.SGD])
def test_the_rate_of_an_optimizer_by_name(optimizer, samples):
    model, rates = model_of(), []

    class Watch(nn.Callback):
        def on_train_begin(self, run):
            rates.append(run.optimizer.lr)

    model.fit(*samples, optimizer=optimizer, lr=0.125, callbacks=Watch())
    assert rates == [0.125]
    assert fitted(*samples, optimizer=optimizer, lr=0.125) != fitted(*samples, optimizer=optimizer, lr=0.5)


def test_a_schedule_is_a_rate(samples):
    schedule = bind(cosine, peak=0.1, steps=10)
    model = model_of()
    model.fit(*samples, epochs=2, batch_size=16, optimizer=fastopt.Adam(model.params, schedule))
    assert fitted(*samples, lr=schedule)[0] == bits(model)


def refusals(model, x, y):
    """Arguments of `fit`, and what is said of them."""
    adam = fastopt.Adam(model.params)
    return [
        ({"optimizer": adam, "lr": 0.1}, r"lr is for an optimizer .*: write optimizer=Adam\(model.params, lr=…\), or"),
        ({"lr": lambda t: 0.1}, r"lr must be a number, or a schedule that .* returns, .*LearningRateScheduler\(step="),
        ({"lr": -1}, r"lr must be in \[0, inf\), got -1"),
        ({"optimizer": "lbfgs", "lr": 0.1}, "lr must be left out with optimizer 'lbfgs', which has no learning rate"),
        ({"optimizer": "rprop"}, "Rprop is for full batches: .* write batch_size=65 .* got 4 steps for 65 samples"),
        ({"optimizer": fastopt.Rprop(model.params)}, "Rprop is for full batches: .* write batch_size=65"),
        ({"optimizer": fastopt.LookAhead(fastopt.Rprop(model.params))}, "Rprop is for full batches: .* batch_size=65"),
        ({"optimizer": "adm"}, "optimizer must be one of 'sgd', .*; got 'adm': did you mean 'adam'?"),
        ({"optimizer": "nesterov"}, r"optimizer must .* got 'nesterov': write fastopt.Momentum\(.*nesterov=True\)"),
        ({"optimizer": fastopt.MuonMatrices}, r"params\[0.bias\] must have two axes or more"),
        ({"optimizer": fastopt.EMA}, "optimizer must be the name of one, or an optimizer, got the class EMA"),
        ({"optimizer": functools.partial}, "optimizer must be the name of one, or an optimizer, got the class partial"),
        ({"optimizer": NeedsRate}, r"lr must be given, as NeedsRate has no .* of its own: write fit\(…, lr=…\)"),
        ({"loss": "categorical_crosentropy"}, "loss must be one of .*: did you mean 'categorical_crossentropy'?"),
        ({"loss": "poisson"}, r"loss must be one of .*; got 'poisson': write a function of your own, loss\(output, t"),
        ({"loss": "hinges"}, "loss must be one of .*: did you mean 'hinge'?"),
        ({"validation_data": (x, y, y[1:])}, r"sample_weight must have shape \(65,\), got \(64,\)"),
        ({"validation_data": (x,)}, r"validation_data must be a pair \(x, y\), or \(x, y, sample_weight\), got 1 v"),
        ({"class_weight": "balance"}, "class_weight must be 'balanced', a dict or a sequence, got 'balance'"),
        ({"y": y.astype(str)}, r"y must be an array of integers, got <U.*: .* np.unique\(y, return_inverse=True\)"),
        ({"y": y + 0.5}, r"y must be labels of classes, .*, got 0.5 at y\[0\]: .* write loss=nn.SquaredError\(\)"),
        ({"y": np.full(65, 2.0**60)}, r"y must be labels of classes, .*, got 1.15.*e\+18 at y\[0\]"),
        ({"y": np.eye(3)[y], "loss": "hinge"}, "targets must be an array of integers, got float64|targets must have"),
        ({"loss": nn.SquaredError}, r"y must have shape \(65, 3\), got \(65,\): for labels write np.eye\(3\)\[y\], or"),
        ({"y": y + 0.5, "class_weight": "balanced", "loss": numbers}, "class_weight must come with integer labels"),
        ({"y": y - 1, "class_weight": [1, 2, 3], "loss": numbers}, "class_weight must .* of 0 or more"),
        ({"loss": numbers, "class_weight": "balanced"}, r"loss must take weights, as loss\(output, targets, sample_we"),
        ({"loss": numbers, "validation_data": (x, y, np.ones(65))}, "loss must take weights"),
    ]  # fmt: skip


class NeedsRate(fastopt.Adam):
    lr = fastopt.SGD.lr.replace()


def numbers(output, targets):
    """A loss of one's own that knows of no weights."""
    return 0.0, 0 * output


@pytest.mark.parametrize("number", range(28))
def test_refused_with_what_to_write(number, samples, refuses):
    x, y = samples
    model = model_of()
    every = refusals(model, x, y)
    assert len(every) == 28
    options, message = every[number]
    options = {"x": x, "y": y, "batch_size": 20} | options
    refuses(lambda: model.fit(**options), message, *model.params.values())


@pytest.mark.parametrize("library", ["torch", "keras", "optax"])
def test_objects_of_other_libraries(library, samples, refuses):
    kind = type("Adam", (), {"step": lambda self: None, "__module__": f"{library}.optim"})
    for optimizer in (kind, kind()):
        refuses(
            lambda optimizer=optimizer: model_of().fit(*samples, optimizer=optimizer),
            "optimizer must be one of fastopt's, or its name, got .*'s Adam: write 'adam'",
        )
    loss = type("CrossEntropyLoss", (), {"__call__": numbers, "__module__": f"{library}.nn"})
    for each in (loss, loss()):
        refuses(
            lambda each=each: model_of().fit(*samples, loss=each),
            "loss must be one of fastopt's, or its name, got .*'s CrossEntropyLoss: write 'CrossEntropyLoss'",
        )


def test_rprop_on_all_samples(samples):
    assert fitted(*samples, optimizer="rprop", batch_size=65)[1][1] < fitted(*samples, batch_size=65)[1][0]
    assert fitted(*samples, optimizer="rprop", batch_size=13, accumulate=5)[1][1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "cnn"])
@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "lbfgs"])
def test_default_rates_train_the_networks_of_the_command(network, name):
    x, y, x_test, y_test = data.load("digits")
    model = cli.build(network, x.shape[1:], 10, seed=0)
    size = {"epochs": 40, "batch_size": 700} if name == "rprop" else {"epochs": 6}
    model.fit(x[:700], y[:700], optimizer=name, **size)
    assert model.evaluate(x_test, y_test)["accuracy"] > 0.75


def test_what_has_no_rate_of_its_own_has_one_for_fit():
    """A class whose constructor asks for a rate says one for `fit`."""
    lacking = [cls.__name__ for cls in OPTIMIZERS.values() if cls.keywords()["lr"] is fastopt.optimizer.REQUIRED]
    assert lacking == ["SGD", "Momentum", "LookAheadNesterov"]
    assert all(cls.default_rate for cls in OPTIMIZERS.values() if cls.__name__ in lacking)


# ---- Losses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_by_its_name_or_its_class(name, dtype, samples):
    x, y = samples
    y = y if LOSSES[name].takes_labels else np.eye(3)[y]
    wanted = fitted(x, y, loss=LOSSES[name](), dtype=dtype, validation_data=(x, y))
    assert fitted(x, y, loss=name, dtype=dtype, validation_data=(x, y)) == wanted
    assert fitted(x, y, loss=LOSSES[name], dtype=dtype, validation_data=(x, y)) == wanted
    model = model_of(dtype=dtype)
    assert model.evaluate(x, y, loss=name) == model.evaluate(x, y, loss=LOSSES[name]())


@pytest.mark.parametrize(
    "name", ["categorical_crossentropy", "CategoricalCrossentropy", "CrossEntropyLoss", "log_loss"]
)
@pytest.mark.parametrize("one_hot", [False, True])
def test_cross_entropy_by_any_name(name, one_hot, samples):
    """The same bits as the object's, for labels and for distributions."""
    x, y = samples
    y = np.eye(3)[y] if one_hot else y
    wanted = fitted(x, y, loss=nn.SoftmaxCrossEntropy())
    assert fitted(x, y, loss=name) == wanted
    assert fitted(x, y) == wanted  # the default takes distributions, too
    weighted = {"sample_weight": np.linspace(0, 2, 65)}
    assert fitted(x, y, loss=name, **weighted) == fitted(x, y, loss=nn.SoftmaxCrossEntropy(), **weighted)


def test_other_functions_take_names(samples):
    model = model_of()
    x, y = samples
    assert nn.debug.gradient_check(model, x, y, "categorical_crossentropy")
    assert nn.debug.overfit_tiny(model, x, np.eye(3)[y], "mse", steps=3).values["steps"] == 3
    assert nn.lr_find(model, x, y, optimizer="Adam", loss="hinge", steps=9).suggestion > 0
    vector = {name: np.ones_like(param) for name, param in model.params.items()}
    by_name, by_object = (
        nn.curvature.hessian_vector_product(model, x, y, vector, loss)
        for loss in ("CrossEntropyLoss", nn.SoftmaxCrossEntropy())
    )
    for name, product in by_name.items():
        np.testing.assert_array_equal(product, by_object[name])


def test_a_loss_of_ones_own_of_another_type(samples):
    """Its gradient may have another type or order, be a list, and its mean any number."""
    x, y = samples

    def own(change, output, targets):
        value, gradient = nn.SoftmaxCrossEntropy()(output, targets)
        return change(value, gradient)

    wanted = fitted(x, y, loss=nn.SoftmaxCrossEntropy(), dtype=np.float32)
    for change in (
        lambda value, dy: (np.float64(value), dy.astype(np.float64)),
        lambda value, dy: [np.array(value), dy.tolist()],
        lambda value, dy: (value, np.asfortranarray(dy)),
    ):
        assert fitted(x, y, loss=functools.partial(own, change), dtype=np.float32) == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value, dy: value, r"loss must return \(mean loss, .*\), got float"),
        (lambda value, dy: (value, dy, dy), r"loss must return \(mean loss, .*\), got 3 values"),
        (lambda value, dy: (np.ones(16), dy), r"loss must return .*, got losses of shape \(16,\): write losses.mean"),
        (lambda value, dy: (value, dy[:, 0]), r"loss must return a gradient of the shape of the output, .*\(16,\)"),
        (
            lambda value, dy: (value, np.ones((16, 16))),
            r"loss must return a gradient .*is one of the output and the tar",
        ),
        (lambda value, dy: (value, dy > 0), "loss must return .*, both real numbers, got float64 and bool"),
    ],
)
def test_what_a_loss_of_ones_own_must_return(change, message, samples, refuses):
    x, y = samples
    model = model_of()

    def loss(output, targets):
        return change(*nn.SoftmaxCrossEntropy()(output, targets))

    refuses(lambda: model.fit(x[:64], y[:64], batch_size=16, loss=loss), message, *model.params.values())


def test_balanced_is_no_option_of_a_loss(refuses):
    refuses(
        lambda: nn.SoftmaxCrossEntropy(class_weight="balanced"), "class_weight must be a sequence of numbers, got 'bal"
    )
    refuses(
        lambda: nn.SoftmaxCrossEntropy(class_weight={0: 2.0}), r"class_weight must be .*: write fit\(class_weight=…\)"
    )


# ---- Targets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y[:, None],
        lambda y: y + 0.0,
        lambda y: (y + 0.0)[:, None].astype(np.float32),
        lambda y: y.astype(np.uint8),
        lambda y: y.tolist(),
    ],
)
@pytest.mark.parametrize("loss", ["softmax_cross_entropy", nn.SoftmaxCrossEntropy(0.1), "hinge"])
def test_labels_in_other_forms(change, loss, samples):
    x, y = samples
    wanted = fitted(x, y, loss=loss, validation_data=(x, y))
    assert fitted(x, change(y), loss=loss, validation_data=(x, change(y))) == wanted
    assert list(model_of().evaluate(x, change(y))) == ["loss", "accuracy"]


def test_bools_are_labels(samples):
    x, y = samples
    assert fitted(x, y > 0, outputs=2) == fitted(x, (y > 0).astype(int), outputs=2)
    model = model_of(2)
    assert list(model.fit(x, y > 0)) == ["loss", "accuracy", "samples_per_second"]


@pytest.mark.parametrize("loss", ["binary_crossentropy", "mse", "mae", "huber"])
@pytest.mark.parametrize("kind", [bool, int, float])
def test_targets_of_one_output_as_a_row(loss, kind, samples):
    x, y = samples
    y = (y > 0).astype(kind)
    wanted = fitted(x, y[:, None], outputs=1, loss=loss)
    assert fitted(x, y, outputs=1, loss=loss) == wanted
    assert list(model_of(1).fit(x, y, loss=loss)) == ["loss", "samples_per_second"]  # no argmax of one output


def test_softmax_of_one_output(samples, refuses):
    x, y = samples
    for targets in (y > 0, (y > 0)[:, None]):
        refuses(
            lambda targets=targets: model_of(1).fit(x, targets),
            r"the model must have an output for each class, got 1: .* loss=nn.SigmoidCrossEntropy\(\)",
        )


# ---- Weights --------------------------------------------------------------------------------------------


def test_weights_of_validation(samples):
    """The mean by weights: that of the samples as often as they weigh."""
    x, y = samples
    times = np.arange(65) % 3
    for loss in ("softmax_cross_entropy", nn.Hinge(), nn.SoftmaxCrossEntropy(class_weight=[1, 2, 3])):
        *_, weighted = fitted(x, y, loss=loss, validation_data=(x, y, times))
        *_, repeated = fitted(x, y, loss=loss, validation_data=(np.repeat(x, times, axis=0), np.repeat(y, times)))
        np.testing.assert_allclose(weighted, repeated, rtol=1e-12)
        *_, plain = fitted(x, y, loss=loss, validation_data=(x, y))
        assert abs(weighted[0] / plain[0] - 1) > 1e-3
    model = model_of()
    model.fit(x, y)
    output = model.predict(x)
    each = np.array([nn.softmax_cross_entropy(output[i : i + 1], y[i : i + 1])[0] for i in range(65)])
    measured = model.evaluate(x, y, times)
    assert measured["loss"] == pytest.approx((times * each).sum() / times.sum(), rel=1e-12)
    assert measured["accuracy"] == model.evaluate(x, y)["accuracy"] == np.mean(output.argmax(axis=1) == y)
    assert model.evaluate(x, y, sample_weight=times[:, None]) == measured


@pytest.mark.parametrize("form", [lambda y: y, lambda y: y[:, None], lambda y: np.eye(3)[y], lambda y: y * 1.0])
def test_balanced_classes(form, samples):
    """65 / (3 * 30), 65 / (3 * 25) and 65 / (3 * 10)."""
    x, y = samples
    weights = {0: 65 / 90, 1: 65 / 75, 2: 65 / 30}
    wanted = fitted(x, form(y), class_weight=weights)
    assert fitted(x, form(y), class_weight="balanced") == wanted
    assert fitted(x, form(y), sample_weight=np.array([weights[label] for label in y])) == wanted
    assert wanted != fitted(x, form(y))


def test_balanced_as_in_scikit_learn(samples):
    utils = pytest.importorskip("sklearn.utils.class_weight")
    x, y = samples
    y = np.where(y == 1, 4, y)  # and classes that do not occur
    weights = utils.compute_class_weight("balanced", classes=np.unique(y), y=y)
    by_label = dict(zip(np.unique(y).tolist(), weights, strict=True))
    assert fitted(x, y, outputs=5, class_weight="balanced") == fitted(x, y, outputs=5, class_weight=by_label)


def test_balanced_with_weights_of_samples(samples):
    x, y = samples
    weight = np.linspace(0.5, 2, 65)
    balanced = np.array([65 / 90, 65 / 75, 65 / 30])[y]
    assert fitted(x, y, sample_weight=weight, class_weight="balanced") == fitted(x, y, sample_weight=weight * balanced)


# ---- Callbacks ------------------------------------------------------------------------------------------


def test_a_lone_callback_and_none(samples, capsys):
    model_of().fit(*samples, callbacks=nn.Lines())
    assert capsys.readouterr().out.startswith("epoch 1/1  loss ")
    assert fitted(*samples, callbacks=None) == fitted(*samples, callbacks=()) == fitted(*samples)
    assert fitted(*samples, callbacks=iter([nn.Callback()])) == fitted(*samples)


@pytest.mark.parametrize("which", ["x", "y", "sample_weight"])
def test_masked_arrays_are_refused(which):
    """Their masks would be passed over."""
    given = {"x": np.ones((4, 2)), "y": np.arange(4) % 3, "sample_weight": np.ones(4)}
    given[which] = np.ma.array(given[which])
    model = nn.Sequential([nn.Dense(3)], (2,))
    with pytest.raises(TypeError, match=f"^{which} must be a plain array, got a masked one"):
        model.fit(**given)


def test_a_trainer_says_what_it_is_and_takes_a_rate():
    model = nn.Sequential([nn.Dense(3)], (2,))
    step = model.trainer("sgd", "hinge", lr=0.25)
    assert (step.model, step.optimizer.lr, type(step.loss)) == (model, 0.25, nn.Hinge)
    assert repr(step) == "Trainer(SGD(lr=0.25, t=0), Hinge(), on_nonfinite='stop')"
    with pytest.raises(TypeError, match=r"Sequential\.trainer has no keyword 'learning_rate': write lr"):
        model.trainer("sgd", learning_rate=0.1)
