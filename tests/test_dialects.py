"""The table of other libraries' names; and the rows of docs/dialects.md whose numbers are those of a program that is
not at hand, by a loop of that program."""

import copy
import inspect
import pickle
import re

import numpy as np
import pytest

import fastopt
import fastopt.data
from fastopt import checks, dialects, nn
from fastopt.dialects import ATTRIBUTES, KEYWORDS, VALUES, rows
from fastopt.extending import InNumPy
from fastopt.nn.arguments import BY_NAME
from fastopt.nn.init import INITIALIZERS
from fastopt.nn.losses import LOSSES
from fastopt.schedules import bind, inverse_sqrt

STEPS = 60


def coursera_momentum(x, grad, *, alpha=0.02, beta=0.9):
    """Also that of ML-From-Scratch, whose momentum is this beta."""
    v = np.zeros_like(x)
    for t in range(STEPS):
        v = beta * v + (1 - beta) * grad(x, t)
        x = x - alpha * v
    return x


def autograd_sgd(x, grad, *, step_size=0.1, mass=0.9):
    velocity = np.zeros(len(x))
    for i in range(STEPS):
        g = grad(x, i)
        velocity = mass * velocity - (1.0 - mass) * g
        x = x + step_size * velocity
    return x


def autograd_rmsprop(x, grad, *, step_size=0.1, gamma=0.9, eps=10**-8):
    avg_sq_grad = np.ones(len(x))
    for i in range(STEPS):
        g = grad(x, i)
        avg_sq_grad = avg_sq_grad * gamma + g**2 * (1 - gamma)
        x = x - step_size * g / (np.sqrt(avg_sq_grad) + eps)
    return x


def autograd_adam(x, grad, *, step_size=0.001, b1=0.9, b2=0.999, eps=10**-8):
    m, v = np.zeros(len(x)), np.zeros(len(x))
    for i in range(STEPS):
        g = grad(x, i)
        m = (1 - b1) * g + b1 * m
        v = (1 - b2) * g**2 + b2 * v
        x = x - step_size * (m / (1 - b1 ** (i + 1))) / (np.sqrt(v / (1 - b2 ** (i + 1))) + eps)
    return x


def torch_1_2_adam(x, grad, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-3, weight_decay=0.1):
    """An eps that counts."""
    m = v = np.zeros_like(x)
    for step in range(1, STEPS + 1):
        g = grad(x, step - 1) + weight_decay * x
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        step_size = lr * np.sqrt(1 - beta2**step) / (1 - beta1**step)
        x = x - step_size * m / (np.sqrt(v) + eps)
    return x


def char_rnn_adagrad(x, grad, *, learning_rate=1e-1, inside=1e-8):
    mem = np.zeros_like(x)
    for t in range(STEPS):
        dx = np.clip(grad(x, t), -5, 5)
        mem = mem + dx * dx
        x = x - learning_rate * dx / np.sqrt(mem + inside)
    return x


def adagrad_without_root(x, grad, *, alpha=0.5, eps=1e-3):
    gains = np.zeros_like(x)
    for t in range(STEPS):
        g = grad(x, t)
        gains = gains + g * g
        x = x - alpha / (gains + eps) * g
    return x


def falling_by_the_root_of_t(x, grad, *, alpha=0.1):
    for t in range(1, STEPS + 1):
        x = x - alpha / np.sqrt(t) * grad(x, t - 1)
    return x


def l2_penalty(x, grad, *, alpha=0.05, lam=0.03):
    """Of lam·w², whose gradient is 2·lam·w."""
    for t in range(STEPS):
        x = x - alpha * (grad(x, t) + 2 * lam * x)
    return x


def keras_lamb(x, grad, *, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-7, weight_decay=0.004):
    m = v = np.zeros_like(x)
    for t in range(1, STEPS + 1):
        g = grad(x, t - 1)
        x = x - x * weight_decay * lr
        m = m + (g - m) * (1 - beta1)
        v = v + (g * g - v) * (1 - beta2)
        u = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
        of_x, of_u = np.linalg.norm(x), np.linalg.norm(u)
        x = x - lr * (of_x / of_u if of_x > 0 and of_u > 0 else 1.0) * u
    return x


PROGRAMS = [
    (coursera_momentum, lambda w: fastopt.Momentum(w, 0.02, average=True)),
    (autograd_sgd, lambda w: fastopt.Momentum(w, 0.1, average=True)),
    (autograd_rmsprop, lambda w: fastopt.RMSProp(w, 0.1, decay=0.9, initial_accumulator_value=1.0)),
    (autograd_adam, lambda w: fastopt.Adam(w, 1e-3)),
    (torch_1_2_adam, lambda w: fastopt.Adam(w, 1e-3, eps=1e-3, weight_decay=0.1, eps_mode="hat")),
    (char_rnn_adagrad, lambda w: fastopt.Adagrad(w, 0.1, eps=1e-8, eps_mode="inside", clip_value=5.0)),
    (adagrad_without_root, lambda w: fastopt.Adagrad(w, 0.5, eps=1e-3, root=False)),
    (falling_by_the_root_of_t, lambda w: fastopt.SGD(w, bind(inverse_sqrt, peak=0.1, warmup_steps=1))),
    (l2_penalty, lambda w: fastopt.SGD(w, 0.05, weight_decay=2 * 0.03)),
    (keras_lamb, lambda w: fastopt.LAMB(w, 0.01, eps=1e-7, weight_decay=0.004, decay_outside=True)),
]


@pytest.mark.parametrize(("program", "make"), PROGRAMS, ids=lambda each: getattr(each, "__name__", "").strip("<>"))
def test_a_program(program, make, rng):
    """From the same point, by the same gradients: of a bowl, and noise that is the same for both."""
    start, noise = rng.standard_normal(7), rng.standard_normal((STEPS, 7))

    def grad(x, t):
        return 3 * x + noise[t]

    w = start.copy()
    optimizer = make(w)
    for t in range(STEPS):
        optimizer.step(grad(w, t))
    np.testing.assert_allclose(w, program(start, grad), rtol=1e-11)
    assert abs(w - start).max() > 1e-3


def test_decay_outside_of_lambs_ratio():
    """Keras's p - lr·λ·p stays, where the paper's ratio makes a step of the whole parameter of it."""
    for outside, expected in ((True, 1.992), (False, 0.0)):
        w = np.array([2.0])
        fastopt.LAMB(w, 1.0, weight_decay=0.004, decay_outside=outside).step(np.zeros(1))
        np.testing.assert_allclose(w, [expected], atol=1e-15)
        w, m, v = np.array([2.0]), np.zeros(1), np.zeros(1)
        fastopt.functional.lamb(w, np.zeros(1), m, v, t=1, lr=1.0, weight_decay=0.004, decay_outside=outside)
        np.testing.assert_allclose(w, [expected], atol=1e-15)


def test_an_average_begins_with_its_share():
    """From the first step on, where dampening does not act."""
    for options, expected in (({"average": True}, -0.1), ({"dampening": 0.9}, -1.0)):
        w = np.zeros(1)
        fastopt.Momentum(w, 1.0, momentum=0.9, **options).step(np.ones(1))
        np.testing.assert_allclose(w, [expected], rtol=1e-15)


def test_a_setting_that_would_change_nothing():
    """The decay of schedule-free SGD is the same, coupled or not."""
    with pytest.raises(TypeError, match="ScheduleFreeSGD has no keyword 'decoupled'"):
        fastopt.ScheduleFreeSGD(np.ones(3), decoupled=True)
    optimizer = fastopt.ScheduleFreeSGD(np.ones(3))
    with pytest.raises(AttributeError, match="decoupled is what ScheduleFreeSGD decides"):
        optimizer.decoupled = False


def test_a_state_of_before_an_option_has_its_default():
    w = np.ones(3)
    optimizer = fastopt.Momentum(w, 0.1, average=True)
    state = optimizer.state_dict()
    del state["hyper"]["average"]
    optimizer.load_state_dict(state)
    assert optimizer.average is False
    free = fastopt.ScheduleFreeSGD(np.ones(3))
    state = free.state_dict()
    free.load_state_dict({**state, "hyper": {**state["hyper"], "decoupled": False}})
    assert free.state_dict()["hyper"] == state["hyper"]


# ---- Names of values ------------------------------------------------------------------------------------

OPTIONS = {
    "optimizer": tuple(BY_NAME),
    "loss": tuple(LOSSES),
    "init": tuple(INITIALIZERS),
    "activation": ("relu",),
}

#: Calls and attributes of ours in what is written instead.
OURS = re.compile(r"\b(?:nn|fastopt)(?:\.\w+)+")


def exists(text):
    """Whether all of ours that a text names is there."""
    for path in OURS.findall(text):
        thing = {"nn": nn, "fastopt": fastopt}[path.split(".")[0]]
        for name in path.split(".")[1:]:
            thing = getattr(thing, name)


def test_the_arguments_of_the_table():
    assert set(VALUES) == set(OPTIONS)


@pytest.mark.parametrize("row", [*rows(VALUES)], ids=str)
def test_a_value_is_taken_or_refused_with_what_to_write(row):
    options = OPTIONS[row.of]
    for word in (row.word, row.word.upper(), row.word.replace("_", "-")):
        if row.instead in options:
            assert checks.word(row.of, word, options) == row.instead
            continue
        with pytest.raises(ValueError, match=rf"^{row.of} must be one of .*: write {re.escape(row.instead)}$"):
            checks.word(row.of, word, options)
    exists(row.instead)
    assert row.instead in options or not row.instead.isidentifier() or row.instead == "None"
    assert dialects.plain(row.word) not in map(dialects.plain, options), "the row does nothing"


@pytest.mark.parametrize(("of", "names"), OPTIONS.items())
def test_own_names_in_any_writing(of, names):
    for name in names:
        assert checks.word(of, name.title().replace("_", ""), names) == checks.word(of, name.upper(), names) == name


def test_what_is_like_a_name():
    for word, meant in (
        ("adamm", "adam"),
        ("rms_pop", "rmsprop"),
        ("ADAGARD", "adagrad"),
        ("mom", None),
        ("xyz", None),
    ):
        said = f": did you mean {meant!r}?" if meant else ""
        with pytest.raises(ValueError, match=rf"; got '{word}'{re.escape(said)}$"):
            checks.word("optimizer", word, tuple(BY_NAME))
    with pytest.raises(
        ValueError, match=r"eps_mode must be one of 'outside', .*; got 'insides': did you mean 'inside'\?$"
    ):
        fastopt.Adam(np.ones(3), eps_mode="insides")
    with pytest.raises(ValueError, match=r"padding must be one of 'same', 'valid'; got 'SAME': did you mean 'same'\?$"):
        nn.Conv2D(4, padding="SAME")
    for value in (3, None, b"adam"):
        with pytest.raises(ValueError, match="optimizer must be one of "):
            checks.word("optimizer", value, tuple(BY_NAME))


@pytest.mark.parametrize("row", [row for row in rows(VALUES) if row.of == "init"], ids=str)
def test_an_initialisation_by_anothers_name(row):
    if row.instead not in INITIALIZERS:
        return
    one, other = (nn.Sequential([nn.Dense(4, init=init)], (3,)) for init in (row.word, row.instead))
    np.testing.assert_array_equal(one.params["0.weight"], other.params["0.weight"])
    assert repr(one) == repr(other)  # it is held, and saved, by our name


def test_classes_of_initializers(tmp_path):
    for layer in (nn.Dense(4, init=nn.Orthogonal), nn.Embedding(5, 4, init=nn.Orthogonal)):
        assert repr(layer.init) == "Orthogonal()"
    nn.Sequential([nn.Dense(4, init=nn.Xavier), nn.Dense(2, init="lecun_normal")], (3,)).save(tmp_path / "m.npz")
    assert [layer.init for layer in nn.load(tmp_path / "m.npz").layers][1] == "xavier_in"


@pytest.mark.parametrize("layer", [nn.Dense, nn.Conv2D])
def test_activations_of_other_names(layer):
    assert layer(4, activation="ReLU").activation == "relu"
    with pytest.raises(
        ValueError, match=r"activation must be one of 'relu'; got 'tanh': write None, and nn.Tanh\(\) as the"
    ):
        layer(4, activation="tanh")


# ---- Keywords -------------------------------------------------------------------------------------------

METHODS = {name: getattr(nn.Sequential, name) for name in ("fit", "evaluate", "predict", "compile", "trainer")}


def named(name):
    if name in METHODS:
        return getattr(nn.Sequential([nn.Dense(3)], (2,)), name)
    return getattr(nn, name, None) or getattr(fastopt, name, None)


def taken_by(thing):
    if inspect.isclass(thing) and issubclass(thing, fastopt.Optimizer):
        return {*thing._hyper_names, *thing._whole_names}
    return {*inspect.signature(thing).parameters} | (taken_by(fastopt.RAdam) if thing is fastopt.Ranger else set())


#: What a call needs beside.
GIVEN = {
    "Dense": (3,), "Conv2D": (3,), "Dropout": (0.5,), "GroupNorm": (2,), "Embedding": (4, 3), "CSVLogger": ("a.csv",),
    "ModelCheckpoint": ("m.npz",), "TensorBoard": ("folder",), "Sequential": ([nn.Dense(3)], (2,)),
    "LookAhead": (fastopt.Adam(np.ones(3)),), "EMA": (np.ones(3),), "Ranger": (np.ones(3),),
    "Muon": ([np.ones((3, 3))],), "LBFGS": (np.ones(3),), "fit": (np.ones((4, 2)), np.arange(4) % 3),
    "evaluate": (np.ones((4, 2)), np.arange(4) % 3), "predict": (np.ones((4, 2)),), "compile": (4,),
}  # fmt: skip


def heirs(thing):
    """A class, and what is derived from it; of the bases, one that is not abstract."""
    every = [thing]
    for each in every:
        every += each.__subclasses__() if inspect.isclass(each) else []
    return [
        each
        for each in every
        if each not in (fastopt.Optimizer, InNumPy, fastopt.NumPyOptimizer, nn.Layer, nn.Callback, nn.Initializer)
    ]


@pytest.mark.parametrize("row", [*rows(KEYWORDS)], ids=str)
def test_a_keyword_is_refused_with_what_to_write(row):
    """By each class that does not take it; where another keyword is meant, one at least has that."""
    thing = named(row.of)
    assert thing is not None, "the table names what is not there"
    exists(row.instead)
    said = 0
    for each in heirs(thing) if inspect.isclass(thing) else [thing]:
        if getattr(each, "__module__", "").startswith("tests") or each.__name__.startswith("_"):
            continue
        if inspect.isclass(each) and issubclass(each, fastopt.Optimizer) and not hasattr(each, "name"):
            continue  # what others derive from
        if each is nn.Composite or not each.__module__.startswith("fastopt") or row.word in taken_by(each):
            continue
        is_name = row.instead.isidentifier()
        if is_name and row.instead not in taken_by(each):
            continue
        params = (np.ones((3, 3)),) if inspect.isclass(each) and issubclass(each, fastopt.Optimizer) else ()
        with pytest.raises(
            TypeError, match=rf"^{each.__name__ if inspect.isclass(each) else 'Sequential.' + row.of} has"
        ) as e:
            each(*GIVEN.get(each.__name__, params), **{row.word: 0.5})
        assert f"has no keyword {row.word!r}: " in str(e.value)
        wanted = f"write {row.instead}=0.5" if is_name else row.instead
        said += str(e.value).endswith(wanted)
    assert said, "nothing says so"


def test_a_name_means_one_thing():
    """In one place, libraries do not differ."""
    for table in (VALUES, KEYWORDS, ATTRIBUTES):
        found = {}
        for row in rows(table):
            key = (row.of, dialects.plain(row.word))
            assert found.setdefault(key, row.instead) == row.instead
            assert row.word.strip() == row.word


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fastopt.Adam(np.ones(3), betas=(0.9, 0.99)), "Adam has no keyword 'betas': write beta1=…, beta2=…"),
        (lambda: fastopt.SGD(np.ones(3), learning_rate=0.1), "SGD has no keyword 'learning_rate': write lr=0.1"),
        (lambda: fastopt.SGD(np.ones(3), 0.1, momentum=0.9), "SGD has no keyword 'momentum': write fastopt.Momentum("),
        (lambda: fastopt.Adam(np.ones(3), momentum=0.9), "Adam has no keyword 'momentum': write beta1=0.9"),
        (lambda: fastopt.Adam(np.ones(3), nesterov=True), "Adam has no keyword 'nesterov': write fastopt.Momentum("),
        (
            lambda: fastopt.Adam(np.ones(3), weight_deacy=1),
            "Adam has no keyword 'weight_deacy': did you mean 'weight_decay'?",
        ),
        (lambda: fastopt.Adam(np.ones(3), patience=1), "Adam has no keyword 'patience'; it takes lr, beta1, beta2"),
        (lambda: fastopt.Ranger(np.ones(3), learning_rate=1), "Ranger has no keyword 'learning_rate': write lr=1"),
        (
            lambda: fastopt.LBFGS(np.ones(3), weight_decay=1),
            "LBFGS has no keyword 'weight_decay': write fastopt.penalty",
        ),
        (
            lambda: fastopt.LookAhead(np.ones(3)),
            "optimizer must be an Optimizer, got ndarray: write LookAhead(fastopt.Ad",
        ),
        (lambda: nn.Conv2D(8, kernel_size=(3, 3)), "Conv2D has no keyword 'kernel_size': write size=(3, 3)"),
        (lambda: nn.Conv2D(8, kernelsize=3), "Conv2D has no keyword 'kernelsize': write size=3"),
        (lambda: nn.Dense(unit=8), "Dense has no keyword 'unit': did you mean 'units'?"),
        (
            lambda: nn.Dense(8, input_dim=3),
            "Dense has no keyword 'input_dim': write nn.Sequential(layers, input_shape=(…,))",
        ),
        (lambda: nn.Dropout(rate=0.5), "Dropout has no keyword 'rate': write p=0.5"),
        (lambda: nn.SpatialDropout(rate=0.5), "SpatialDropout has no keyword 'rate': write p=0.5"),
        (
            lambda: nn.Flatten(input_shape=(3,)),
            "Flatten has no keyword 'input_shape': write nn.Sequential(layers, input_",
        ),
        (lambda: nn.ReLU(spam=1), "ReLU has no keyword 'spam'; it takes none"),
        (
            lambda: nn.SigmoidCrossEntropy(from_logits=True),
            "SigmoidCrossEntropy has no keyword 'from_logits': leave it out: l",
        ),
        (
            lambda: nn.EarlyStopping(restore_best_weights=True),
            "EarlyStopping has no keyword 'restore_best_weights': write re",
        ),
        (
            lambda: nn.Sequential([nn.Dense(3)], input_dim=3),
            "Sequential has no keyword 'input_dim': write input_shape=(…,)",
        ),
        (lambda: nn.Sequential(nn.Dense(3)), "layers must be a sequence of Layer, got Dense: write them in a list"),
        (lambda: nn.Sequential([nn.Dense(3)], 4), "input_shape must be a tuple of int, got 4: write (4,)"),
        (lambda: named("fit")(learning_rate=0.1), "Sequential.fit has no keyword 'learning_rate': write lr=0.1"),
        (
            lambda: named("fit")(None, None, callback=[]),
            "Sequential.fit has no keyword 'callback': did you mean 'callbacks'?",
        ),
        (
            lambda: fastopt.Adam(np.ones(3), lr=lambda t: 0.1),
            "lr must be a number, or a schedule that fastopt.schedules.bind",
        ),
    ],
)
def test_what_is_said_of_a_keyword(call, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        call()


def test_arguments_by_place():
    model = nn.Sequential([nn.Dense(3)], (2,))
    with pytest.raises(
        TypeError, match=r"^Sequential.fit takes x, y by place, got 4 arguments: write the names of epochs"
    ):
        model.fit(np.ones((4, 2)), np.arange(4) % 3, 100, 32)
    with pytest.raises(
        TypeError, match=r"^Sequential.predict takes x by place, got 2 arguments: write the names of batch_size$"
    ):
        model.predict(np.ones((4, 2)), 32)


def test_settings_of_other_names():
    """Of groups, and of an optimizer that is there."""
    with pytest.raises(ValueError, match=r"^a group must have settings among .*; got 'learning_rate': write lr=0.1$"):
        fastopt.Adam([np.ones(3)], groups=[{"params": "*", "learning_rate": 0.1}])
    adam = fastopt.Adam(np.ones(3))
    with pytest.raises(AttributeError, match=r"^Adam has no hyperparameter 'learning_rate': write lr=0.1$"):
        adam.learning_rate = 0.1
    with pytest.raises(AttributeError, match=r"^Adam has no hyperparameter 'momentum': write beta1=0.5$"):
        adam.momentum = 0.5


@pytest.mark.parametrize("row", [*rows(ATTRIBUTES)], ids=str)
def test_an_attribute_is_missed_with_what_to_write(row):
    model = nn.Sequential([nn.Dense(3)], (2,))
    with pytest.raises(
        AttributeError, match=rf"^'Sequential' object has no attribute '{row.word}': .*{re.escape(row.instead)}$"
    ):
        getattr(model, row.word)
    exists(row.instead)
    first = re.match(r"\w+", row.instead).group()
    assert first in ("nn", "leave") or hasattr(model, first)


def test_an_attribute_that_nobody_has():
    model = nn.Sequential([nn.Dense(3)], (2,))
    with pytest.raises(AttributeError, match=r"^'Sequential' object has no attribute 'spam'$"):
        model.spam  # noqa: B018
    assert not hasattr(model, "__array__")
    assert isinstance(pickle.loads(pickle.dumps(model)), nn.Sequential)
    assert copy.deepcopy(model).shapes == model.shapes


def test_keywords_of_classes_of_ones_own():
    class Scale(nn.Layer):
        def __init__(self, factor, **more):
            super().__init__()
            self.more = more

    class Shift(nn.Layer):
        def __init__(self, offset):
            super().__init__()

    class Tap(Scale):
        pass

    class Held(nn.Callback, dict):
        pass

    assert Held(a=1) == {"a": 1}
    assert list(inspect.signature(nn.Callback).parameters) == []
    with pytest.raises(TypeError, match=r"^SigmoidCrossEntropy takes no arguments, got 1$"):
        nn.SigmoidCrossEntropy(3)
    assert Scale(2, name="s").more == Tap(2, name="s").more == {"name": "s"}
    assert list(inspect.signature(Shift).parameters) == ["offset"]
    with pytest.raises(TypeError, match=r"^Shift has no keyword 'ofset': did you mean 'offset'\?"):
        Shift(ofset=1)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'offset'"):
        Shift()
