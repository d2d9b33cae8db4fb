"""Declarations: what follows from one, in subclasses as well, and what is refused."""

import copy
import inspect
import pickle

import numpy as np
import pytest

import fastopt
from fastopt.hyper import REQUIRED, Choice, Flag, Hyper, Limit, Number, Whole
from fastopt.optimizer import Optimizer
from fastopt.optimizers import OPTIMIZERS

CLASSES = [*OPTIMIZERS.values(), fastopt.Adafactor, fastopt.MuonMatrices]


class Cautious(fastopt.Adam):
    """Adam with other defaults, and one hyperparameter more.

    Notes
    -----
    It is of these tests.
    """

    lr = fastopt.Adam.lr.replace(default=1e-5)
    beta2 = fastopt.Adam.beta2.replace(default=0.5, doc="Forgets soon.")
    weight_decay = fastopt.Optimizer.weight_decay.replace(default=0.25)
    patience: Whole = Whole(1, default=3, per_group=False, doc="How long it waits.")


class WithConstructor(Optimizer):
    """Adagrad by a class that has a constructor, and defaults in its signature."""

    kernel = "adagrad"
    eps = Number("[0, inf)")
    eps_mode = Choice("outside", "inside")
    root = Flag(default=True)

    def __init__(self, params, lr=0.5, *, eps=1e-9, eps_mode="inside", **common):
        super().__init__(params, lr=lr, eps=eps, eps_mode=eps_mode, **common)


def entries(cls):
    """The parameters that a docstring lists, and what it says of their types and defaults."""
    doc = inspect.getdoc(cls)
    section = doc.partition("Parameters\n----------\n")[2].partition("\n\n")[0]
    heads = [line.partition(" : ") for line in section.split("\n") if not line.startswith(" ")]
    return {name: kind for name, _, kind in heads}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_signature_docstring_and_keywords_are_of_the_declarations(cls):
    signature, listed = inspect.signature(cls).parameters, entries(cls)
    assert list(signature)[:2] == ["params", "lr"]
    assert list(signature)[-1] == "common"
    constructed = [name for name in listed if name not in cls.computed]
    assert {*constructed} == {*signature} - {"common"} | {"**common"}
    for name, parameter in signature.items():
        if name in ("params", "common"):
            continue
        declared = cls.declared[name]
        assert declared.doc
        assert parameter.default is declared.default
        assert (parameter.kind is parameter.KEYWORD_ONLY) == (name != "lr")
        if isinstance(declared, (Number, Limit)):
            assert listed[name].startswith(f"float in {declared.bounds}")
        if declared.default is not REQUIRED:
            shown = f'"{declared.default}"' if isinstance(declared, Choice) else repr(declared.default)
            assert listed[name].endswith(f", default {shown}")
    assert cls.keywords() == {name: cls.declared[name].default for name in cls.hyper_names()}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_subclass_takes_what_its_base_takes(cls):
    """Or it is no subclass: what it decides itself is all that may be missing."""
    for base in filter(lambda base: issubclass(base, Optimizer), cls.__mro__[1 : cls.__mro__.index(Optimizer)]):
        assert {*base.declared} <= {*cls.declared}
        lacking = {name for name, each in base.declared.items() if each.init and not cls.declared[name].init}
        assert lacking <= {*cls.fixed}
        assert all(type(cls.declared[name]) is type(each) for name, each in base.declared.items())


def test_every_default_keeps_its_rule():
    for cls in CLASSES:
        for each in cls.declared.values():
            if isinstance(each, Hyper) and each.default is not REQUIRED:
                assert each.decode(each.encode(each.default)) == each.default


def test_defaults_of_a_subclass(same_bits, rng):
    param, grad = rng.standard_normal((2, 9))
    twin = param.copy()
    optimizer = Cautious(param)
    other = fastopt.Adam(twin, 1e-5, beta2=0.5, weight_decay=0.25)
    optimizer.step(grad)
    other.step(grad)
    same_bits(param, twin)
    assert (optimizer.patience, fastopt.Adam.lr.default, fastopt.Adam.beta2.default) == (3, 1e-3, 0.999)
    assert str(inspect.signature(Cautious)).endswith("weight_decay=0.25, patience=3, **common)")
    assert entries(Cautious)["beta2"] == "float in [0, 1), default 0.5"
    assert entries(Cautious)["patience"] == "int, at least 1, default 3"
    assert "Forgets soon." in Cautious.__doc__
    assert Cautious.__doc__.rstrip().endswith("It is of these tests.")
    for again in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert repr(again) == repr(optimizer)
    with pytest.raises(ValueError, match=r"patience must be in \[1, .*\], got 0"):
        Cautious(param, patience=0)
    with pytest.raises(ValueError, match=r"a group must have settings among lr, .*; got 'patience'"):
        Cautious(param, groups=[{"params": "*", "patience": 2}])


def test_a_class_with_a_constructor_of_its_own(same_bits, rng):
    param, grad = rng.standard_normal((2, 9))
    twin = param.copy()
    optimizer, other = WithConstructor(param, l1=0.1), fastopt.Adagrad(twin, 0.5, eps=1e-9, eps_mode="inside", l1=0.1)
    optimizer.step(grad)
    other.step(grad)
    same_bits(param, twin)
    assert list(inspect.signature(WithConstructor).parameters) == ["params", "lr", "eps", "eps_mode", "common"]
    assert WithConstructor.keywords() == {**fastopt.Adagrad.keywords(), "lr": 0.5, "eps": 1e-9, "eps_mode": "inside"}
    assert "Parameters" not in WithConstructor.__doc__
    assert repr(copy.copy(optimizer)) == repr(optimizer)


def test_what_a_class_decides_can_be_read_but_not_set():
    adamw, nadam = fastopt.AdamW(np.ones(3)), fastopt.NAdam(np.ones(3))
    assert adamw.decoupled is True
    assert fastopt.AdamW.fixed == {"decoupled": 1.0}
    assert "decoupled" not in fastopt.AdamW.keywords()
    with pytest.raises(AttributeError, match="decoupled is what AdamW decides, and cannot be set"):
        adamw.decoupled = False
    with pytest.raises(AttributeError, match="mu_product is worked out before each step"):
        nadam.mu_product  # noqa: B018
    with pytest.raises(TypeError, match="AdamW has no keyword 'decoupled'; it takes lr, "):
        fastopt.AdamW(np.ones(3), decoupled=True)


def test_what_a_constructor_refuses(refuses):
    w = np.ones(3)
    refuses(lambda: fastopt.SGD(w), r"SGD\.__init__\(\) missing 1 required positional argument: 'lr'", w)
    refuses(lambda: fastopt.Adam(w, rate=1.0), "Adam has no keyword 'rate'; it takes lr, beta1, beta2, ", w)
    refuses(lambda: fastopt.Adam(w, 0.1, lr=0.2), r".*multiple values for argument 'lr'", w)
    refuses(lambda: fastopt.Adam(w, 0.1, 0.9), r".*takes from 2 to 3 positional arguments but 4 were given", w)


@pytest.mark.parametrize(
    ("body", "instead"),
    [
        ({"of_class": ("initial_accumulator_value",)}, "each x with per_group=False"),
        ({"defaults": {"weight_decay": 0.1}}, "x = Optimizer.x.replace(default=…)"),
        ({"fixed": {"decoupled": 1.0}}, "x = Optimizer.x.replace(default=…, init=False)"),
        ({"computed": ("mu_product",)}, "each x with init=False, and without a default"),
    ],
    ids=["of_class", "defaults", "fixed", "computed"],
)
def test_what_classes_had_in_tuples_is_refused(body, instead):
    with pytest.raises(TypeError) as caught:
        type("Old", (fastopt.Adagrad,), body)
    assert str(caught.value) == f"Old must not have {next(iter(body))!r}: declare {instead}"


def test_one_declaration_has_one_name():
    with pytest.raises((TypeError, RuntimeError)) as caught:  # which Python 3.11 wraps

        class Twice(fastopt.Adam):
            gamma: Number = fastopt.Adam.beta1

    text = str(caught.value.__cause__ or caught.value)
    assert text == "gamma must be declared anew, or be beta1.replace(): this one is beta1"
    assert fastopt.Adam.beta1.name == "beta1"
    with pytest.raises(TypeError, match="a Number has no 'defualt'"):
        fastopt.Adam.beta1.replace(defualt=0.5)
    assert Flag(default=True).replace(doc="Some.").default is True


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_a_class_decides_is_no_keyword(name):
    """What is declared with ``init=False`` belongs to the kernel's row, not to the user."""
    cls = OPTIMIZERS[name]
    decided = {key for key, each in cls.declared.items() if isinstance(each, Hyper) and not each.init}
    assert not decided & cls.keywords().keys()
    params = np.ones(3)
    for key in {*decided, *({"at_look_ahead"} if hasattr(cls, "nesterov") else ())}:
        with pytest.raises(TypeError, match=key):
            cls(params, lr=0.1, **{key: 1.0})
