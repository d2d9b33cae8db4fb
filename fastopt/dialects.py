"""What other libraries call what fastopt has: one table of names, and what is said where one of them is written.

Names of values (of optimizers, losses, initialisations) are taken where they mean the same here; all else is refused,
with what to write instead. docs/dialects.md says which options give whose numbers.

>>> import numpy as np, fastopt
>>> fastopt.Adam(np.zeros(3), learning_rate=0.1)
Traceback (most recent call last):
    ...
TypeError: Adam has no keyword 'learning_rate': write lr=0.1
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

POSITIONAL = inspect.Parameter.POSITIONAL_ONLY
F = TypeVar("F", bound=Callable[..., Any])
Words = Mapping[str, Mapping[str, Mapping[str, str]]]

# ---- The table ----------------------------------------------------------------------------------------------
#
# Whose name it is, and what to write instead: a name of ours, or, where that is no name, words.

_OWN_LOSS = "a function of your own, loss(output, targets) -> (mean loss, gradient)"
_NEXT = "None, and nn.{}() as the next layer"
_NO_RATE = "leave it out: the line search finds the length of each step"
_ALWAYS_FUSED = "leave it out: every step is one fused call"
_SHAPE_OF_MODEL = "nn.Sequential(layers, input_shape=…), for the whole model"
_INSIDE = "fastopt.LookAhead(fastopt.Adam(params, …))"
_INSIDE = "fastopt.LookAhead(fastopt.Adam(params, …))"
_IN_ADAM = "beta1=…, beta2=…"

#: Values of an argument, by its name. Those that become a name of ours are taken.
VALUES: Words = {
    "optimizer": {
        "PyTorch": {
            "ASGD": "callbacks=nn.WeightAverage(fastopt.SWA(model.params))",
            "SparseAdam": "adam",
        },
        "schedulefree": {"AdamWScheduleFree": "schedule_free_adamw", "SGDScheduleFree": "schedule_free_sgd"},
        "SciPy": {"L-BFGS-B": "lbfgs"},
        "elsewhere": {
            "sgdm": "momentum",
            "nesterov": "fastopt.Momentum(model.params, lr, nesterov=True)",
            "sgd_nesterov": "fastopt.Momentum(model.params, lr, nesterov=True)",
            "RectifiedAdam": "radam",
        },
    },
    "loss": {
        "Keras": {
            "categorical_crossentropy": "softmax_cross_entropy",
            "sparse_categorical_crossentropy": "softmax_cross_entropy",
            "binary_crossentropy": "sigmoid_cross_entropy",
            "mse": "squared_error",
            "mean_squared_error": "squared_error",
            "mae": "l1",
            "mean_absolute_error": "l1",
            "kl_divergence": 'loss="softmax_cross_entropy", whose gradient is the same, with distributions for y',
            "categorical_hinge": "nn.Hinge(), which sums over all wrong classes",
            "squared_hinge": _OWN_LOSS,
            "log_cosh": "nn.Huber(), which is like it",
            "poisson": _OWN_LOSS,
            "cosine_similarity": _OWN_LOSS,
            "mean_squared_logarithmic_error": "nn.SquaredError(), with np.log1p(y) for y",
        },
        "PyTorch": {
            "CrossEntropyLoss": "softmax_cross_entropy",
            "cross_entropy": "softmax_cross_entropy",
            "NLLLoss": "softmax_cross_entropy",
            "nll_loss": "softmax_cross_entropy",
            "BCEWithLogitsLoss": "sigmoid_cross_entropy",
            "binary_cross_entropy_with_logits": "sigmoid_cross_entropy",
            "BCELoss": "sigmoid_cross_entropy",
            "binary_cross_entropy": "sigmoid_cross_entropy",
            "MSELoss": "squared_error",
            "mse_loss": "squared_error",
            "L1Loss": "l1",
            "l1_loss": "l1",
            "SmoothL1Loss": "huber",
            "smooth_l1_loss": "huber",
            "HuberLoss": "huber",
            "huber_loss": "huber",
            "KLDivLoss": 'loss="softmax_cross_entropy", whose gradient is the same, with distributions for y',
            "MultiMarginLoss": "nn.Hinge(), which does not divide by the number of classes",
            "MultiLabelSoftMarginLoss": "sigmoid_cross_entropy",
        },
        "scikit-learn": {
            "log_loss": "softmax_cross_entropy",
            "absolute_error": "l1",
            "modified_huber": _OWN_LOSS,
            "perceptron": "nn.Hinge(margin=0.0)",
        },
        "elsewhere": {
            "softmax": "softmax_cross_entropy",
            "crossentropy": "softmax_cross_entropy",
            "bce": "sigmoid_cross_entropy",
            "svm": "hinge",
        },
    },
    "init": {
        "Keras": {
            "glorot_uniform": "xavier_uniform",
            "glorot_normal": "xavier",
            "he_normal": "he",
            "lecun_normal": "xavier_in",
            "lecun_uniform": 'nn.Xavier(fan="in", distribution="uniform")',
            "random_normal": "nn.Normal(0.05)",
            "truncated_normal": "nn.Normal(0.05)",
            "random_uniform": "lambda shape, fan_in, fan_out, rng: rng.uniform(-0.05, 0.05, shape)",
            "ones": "nn.Constant(1.0)",
            "constant": "nn.Constant(value)",
        },
        "PyTorch": {
            "xavier_normal": "xavier",
            "kaiming_normal": "he",
            "kaiming_uniform": "he_uniform",
            "normal": "nn.Normal(std)",
            "uniform": "lambda shape, fan_in, fan_out, rng: rng.uniform(-bound, bound, shape)",
        },
        "elsewhere": {"glorot": "xavier", "kaiming": "he"},
    },
    "activation": {
        "Keras": {
            "linear": "None",
            "tanh": _NEXT.format("Tanh"),
            "sigmoid": f"{_NEXT.format('Sigmoid')} (none before nn.SigmoidCrossEntropy, which has it in it)",
            "softmax": "None: softmax cross-entropy has the softmax in it, and nn.Softmax() makes probabilities",
            "elu": _NEXT.format("ELU"),
            "gelu": _NEXT.format("GELU"),
            "silu": _NEXT.format("SiLU"),
            "swish": _NEXT.format("SiLU"),
            "leaky_relu": _NEXT.format("LeakyReLU"),
            "softplus": _NEXT.format("Softplus"),
        },
        "scikit-learn": {"identity": "None", "logistic": _NEXT.format("Sigmoid")},
    },
}

#: Keywords, by the class or the method that they are given to; those of a class are also for what is derived from it.
KEYWORDS: Words = {
    "compile": {"Keras": dict.fromkeys(("optimizer", "metrics"), "fit(x, y, optimizer=…, loss=…)")},
    "Optimizer": {
        "Keras": {
            "clipnorm": "clip_norm",
            "clipvalue": "clip_value",
            "global_clipnorm": "clip_global_norm",
            "use_ema": "fastopt.EMA(params), beside it",
            "nesterov": "fastopt.Momentum(params, lr, nesterov=True), or fastopt.NAdam(params, …)",
        },
        "PyTorch": {
            "lr_decay": "lr=fastopt.schedules.bind(fastopt.schedules.inverse_time, …)",
            "rho": "decay",
            "alpha": "decay",
        },
        "Optax, autograd": {"mass": "momentum", "gamma": "decay"},
        "elsewhere": {"l2": "weight_decay", "reg": "weight_decay"},
    },
    "Optimizer, Muon": {
        "Keras": {
            "learning_rate": "lr",
            "beta_1": "beta1",
            "beta_2": "beta2",
            "epsilon": "eps",
            "name": "leave it out: optimizers have no names",
        },
        "PyTorch": {
            "foreach": _ALWAYS_FUSED,
            "fused": _ALWAYS_FUSED,
            "capturable": _ALWAYS_FUSED,
            "differentiable": _ALWAYS_FUSED,
        },
        "Optax, autograd": {"step_size": "lr", "b1": "beta1", "b2": "beta2"},
        "scikit-learn": {"learning_rate_init": "lr", "eta0": "lr"},
    },
    "SGD": {
        "Keras, PyTorch": {
            "momentum": "fastopt.Momentum(params, lr, momentum=…)",
            "nesterov": "fastopt.Momentum(params, lr, nesterov=True)",
        }
    },
    "RMSProp": {
        "Keras, PyTorch": {
            "momentum": "fastopt.RMSPropMomentum(params, …)",
            "centered": "fastopt.CenteredRMSProp(params, …)",
        }
    },
    "Adam, Adamax, NAdam, RAdam, AdaBelief, LAMB, Lion, ScheduleFreeAdamW, Muon": {"PyTorch": {"betas": _IN_ADAM}},
    "Adam, Adamax, NAdam, RAdam, AdaBelief, LAMB": {
        "Keras, PyTorch": {"amsgrad": "fastopt.AMSGrad(params, …)"},
        "elsewhere": {"momentum": "beta1"},
    },
    "Rprop": {"PyTorch": {"etas": "eta_minus=…, eta_plus=…", "step_sizes": "min_step=…, max_step=…"}},
    "Muon": {"PyTorch": {"ns_steps": "steps", "adjust_lr_fn": "adjust"}},
    "LookAhead": {
        "Optax, pytorch-optimizer": {"sync_period": "k", "slow_step_size": "alpha", "base_optimizer": "optimizer"},
        "elsewhere": dict.fromkeys(("lr", "learning_rate", "weight_decay"), _INSIDE),
    },
    "LBFGS": {
        "PyTorch": {
            "lr": _NO_RATE,
            "max_eval": "max_iter",
            "line_search_fn": "leave it out: it is SciPy's",
            "weight_decay": "fastopt.penalty, as a term of the loss",
        },
        "Keras": {"learning_rate": _NO_RATE},
        "SciPy": {
            "maxiter": "max_iter",
            "maxcor": "history_size",
            "gtol": "tolerance_grad",
            "ftol": "tolerance_change",
        },
    },
    "EMA": {"elsewhere": {"beta": "decay", "alpha": "decay", "momentum": "decay"}},
    "Layer": {
        "Keras": {
            "name": "leave it out: layers are known by their places",
            "trainable": "model.freeze(…), once the model is made",
            "dtype": "nn.Sequential(layers, input_shape, dtype=…), for the whole model",
            "input_shape": _SHAPE_OF_MODEL,
            "epsilon": "eps",
            "data_format": "leave it out: images are (n, h, w, c)",
        },
        "PyTorch": {
            "device": "leave it out: all is on the CPU",
            "inplace": "leave it out: fit overwrites what is not read any more",
        },
    },
    "Dense, Conv2D": {
        "Keras": {
            "kernel_initializer": "init",
            "bias_initializer": "bias_init",
            "use_bias": 'model.freeze("*bias"), whose values are 0 at first',
            "kernel_regularizer": "optimizer=fastopt.Adam(model.params, weight_decay=…)",
            "bias_regularizer": "optimizer=fastopt.Adam(model.params, weight_decay=…)",
            "kernel_constraint": "optimizer=fastopt.Adam(model.params, max_norm=…)",
            "input_dim": "nn.Sequential(layers, input_shape=(…,)), for the whole model",
        },
        "PyTorch": {"bias": 'model.freeze("*bias"), whose values are 0 at first'},
    },
    "Dense": {
        "PyTorch": {"out_features": "units", "in_features": "leave it out: it follows from the layer before"},
        "elsewhere": {"n_units": "units", "num_units": "units", "output_dim": "units"},
    },
    "Conv2D": {
        "Keras": {"kernel_size": "size", "strides": "stride", "dilation_rate": "dilation"},
        "PyTorch": {
            "out_channels": "filters",
            "in_channels": "leave it out: it follows from the layer before",
            "padding_mode": "leave it out: padding is of zeros",
        },
        "elsewhere": {"kernel": "size", "filter_size": "size", "n_filters": "filters", "num_filters": "filters"},
    },
    "MaxPool2D, AveragePool2D": {
        "Keras": {"pool_size": "size", "strides": "stride"},
        "PyTorch": {"kernel_size": "size"},
    },
    "Dropout": {"Keras": {"rate": "p", "seed": "nn.Sequential(layers, input_shape, seed=…)"},
                "elsewhere": {"prob": "p", "dropout_rate": "p", "keep_prob": 'p=…, p_is="keep"'}},
    "BatchNorm, DecorrelatedBatchNorm, LayerNorm, RMSNorm, GroupNorm, InstanceNorm": {
        "Keras": {
            "axis": "leave it out: channels are the last axis",
            "center": 'model.freeze("*shift")',
            "scale": 'model.freeze("*scale")',
        },
        "PyTorch": {
            "num_features": "leave it out: it follows from the layer before",
            "normalized_shape": "axes, the number of them",
            "num_channels": "leave it out: it follows from the layer before",
            "affine": 'model.freeze(["*scale", "*shift"])',
            "elementwise_affine": 'model.freeze(["*scale", "*shift"])',
            "track_running_stats": "leave it out: they are always kept",
        },
    },
    "GroupNorm": {"PyTorch": {"num_groups": "groups"}},
    "LeakyReLU": {"Keras": {"alpha": "slope"}, "PyTorch": {"negative_slope": "slope"}},
    "GELU": {"Keras, PyTorch": {"approximate": "approximation"}},
    "Softmax": {"Keras, PyTorch": {"axis": "leave it out: it is over the last axis",
                                   "dim": "leave it out: it is over the last axis"}},
    "Embedding": {
        "Keras": {"input_dim": "entries", "output_dim": "width", "embeddings_initializer": "init"},
        "PyTorch": {"num_embeddings": "entries", "embedding_dim": "width"},
    },
    "Initializer": {
        "Keras": {"stddev": "std", "seed": "nn.Sequential(layers, input_shape, seed=…)"},
        "PyTorch": {"val": "value", "mode": "fan"},
    },
    "SoftmaxCrossEntropy, SigmoidCrossEntropy, Hinge, SquaredError, L1, Huber": {
        "Keras": {
            "from_logits": "leave it out: losses take the outputs of a last layer without softmax or sigmoid",
            "name": "leave it out: losses have no names",
            "reduction": "leave it out: losses are means",
        },
        "PyTorch": {
            "size_average": "leave it out: losses are means",
            "pos_weight": "sample_weight=…, of fit",
            "ignore_index": "sample_weight=…, of fit, with zeros",
        },
    },
    "SoftmaxCrossEntropy": {"PyTorch": {"weight": "class_weight"}},
    "SigmoidCrossEntropy": {"PyTorch": {"weight": "sample_weight=…, of fit"}},
    "Huber": {"PyTorch": {"beta": "delta"}},
    "Callback": {"Keras": {"verbose": "callbacks=nn.Lines(), which prints"}},
    "EarlyStopping": {"Keras": {"restore_best_weights": "restore_best"},
                      "scikit-learn": {"n_iter_no_change": "patience", "tol": "min_delta"}},
    "ModelCheckpoint": {
        "Keras": {
            "filepath": "path",
            "save_best_only": "best_only",
            "save_freq": "every",
            "period": "every",
            "save_weights_only": "leave it out: nn.load reads the model of a checkpoint",
        }
    },
    "ReduceLROnPlateau": {"PyTorch": {"threshold": "min_delta"}},
    "CSVLogger": {"Keras": {"filename": "path", "append": "leave it out: a resumed run has each epoch once"}},
    "TensorBoard": {"Keras": {"log_dir": "folder", "histogram_freq": "histograms"}},
    "Sequential": {
        "Keras": {"name": "leave it out: models have no names", "input_dim": "input_shape=(…,)"},
        "scikit-learn": {"random_state": "seed"},
    },
    "trainer": {"Keras": {"learning_rate": "lr"}},
    "fit": {
        "Keras": {
            "verbose": "callbacks=nn.Lines(), which prints",
            "validation_split": "validation_data=(x, y), by fastopt.data.split",
            "shuffle": "batches=nn.Shuffled(len(x), 32), which is the default, or nn.InOrder(len(x), 32)",
            "initial_epoch": "optimizer=…, the optimizer of the run that is continued",
            "steps_per_epoch": "accumulate",
            "validation_freq": "leave it out: validation is in each epoch",
            "validation_batch_size": "leave it out: it makes no difference",
            "learning_rate": "lr",
            "workers": "fastopt.set_num_threads(…)",
        },
        "scikit-learn": {
            "max_iter": "epochs",
            "solver": "optimizer",
            "learning_rate_init": "lr",
            "random_state": "seed",
            "early_stopping": "callbacks=nn.EarlyStopping()",
            "alpha": 'optimizer=fastopt.AdamW(model.params, weight_decay=…)',
            "X": "x",
            "hidden_layer_sizes": "nn.Sequential([nn.Dense(…), …], input_shape)",
        },
        "PyTorch": {
            "weight_decay": "optimizer=fastopt.AdamW(model.params, weight_decay=…)",
            "momentum": "optimizer=fastopt.Momentum(model.params, lr, momentum=…)",
            "betas": f"optimizer=fastopt.Adam(model.params, {_IN_ADAM})",
            "scheduler": "lr=…, or callbacks=nn.LearningRateScheduler(…)",
            "criterion": "loss",
            "loss_fn": "loss",
        },
        "elsewhere": {
            "num_epochs": "epochs", "n_epochs": "epochs", "epoch": "epochs", "batch": "batch_size",
            "eval_set": "validation_data", "val_data": "validation_data", "lr_schedule": "lr",
        },
    },
    "evaluate": {
        "Keras": {
            "verbose": "leave it out: it prints nothing",
            "return_dict": "leave it out: it returns a dict",
        },
        "scikit-learn": {"X": "x"},
    },
    "predict": {"Keras": {"verbose": "leave it out: it prints nothing"}, "scikit-learn": {"X": "x"}},
}  # fmt: skip

#: Attributes, by the class.
ATTRIBUTES: Words = {
    "Sequential": {
        "Keras": {
            "add": "nn.Sequential([…], input_shape)",
            "get_weights": "params",
            "weights": "params",
            "trainable_weights": "params",
            "set_weights": "params.update(…)",
            "save_weights": "save(path)",
            "load_weights": "nn.load(path)",
            "train_on_batch": "trainer(optimizer, loss), and call what it returns with x and y",
            "get_config": "config()",
        },
        "PyTorch": {
            "parameters": "params",
            "named_parameters": "params",
            "state_dict": "params and state",
            "load_state_dict": "nn.load(path), or params.update(…)",
            "train": "forward(x, training=True)",
            "eval": "leave it out: forward(x) and predict(x) are in inference",
            "zero_grad": "leave it out: gradients are not kept",
            "to": "leave it out: all is on the CPU",
            "cuda": "leave it out: all is on the CPU",
        },
        "scikit-learn": {
            "score": 'evaluate(x, y)["accuracy"]',
            "predict_proba": "nn.Softmax().forward(model.predict(x))[0]",
            "partial_fit": "fit(…, optimizer=…), by one optimizer each time",
        },
    }
}


class Row(NamedTuple):
    """A row of the table: whose name, for what, it is, and what to write instead."""

    library: str
    of: str
    word: str
    instead: str


def rows(table: Words) -> Iterator[Row]:
    """All rows of `VALUES`, `KEYWORDS` or `ATTRIBUTES`, one for each class or argument."""
    for names, libraries in table.items():
        for of in names.split(", "):
            for library, words in libraries.items():
                for word, instead in words.items():
                    yield Row(library, of, word, instead)


def plain(word: str) -> str:
    """A name without what differs from library to library: case, and what stands between its words."""
    return re.sub("[^a-z0-9]", "", word.lower())


_VALUES = {(row.of, plain(row.word)): row.instead for row in rows(VALUES)}
_ATTRIBUTES = {(row.of, row.word): row.instead for row in rows(ATTRIBUTES)}
_KEYWORDS = {(row.of, plain(row.word)): row.instead for row in rows(KEYWORDS)}


# ---- What is said -------------------------------------------------------------------------------------------


def near(word: str, options: Iterable[str]) -> str | None:
    """The one of some names that was probably meant."""
    by_plain = {plain(option): option for option in options}
    found = difflib.get_close_matches(plain(word), by_plain, 1, 0.75)
    return by_plain[found[0]] if found else None


def value_of(name: str, word: str, options: Iterable[str]) -> tuple[str | None, str]:
    """The one of some options that a word means, or None; and what to say of it then."""
    by_plain = {plain(option): option for option in options}
    instead = by_plain.get(plain(word)) or _VALUES.get((name, plain(word)))
    if instead is None:
        return None, hint(word, [*by_plain.values(), *(row.word for row in rows(VALUES) if row.of == name)])
    return (instead, "") if instead in by_plain.values() else (None, f": {_written(instead)}")


def _written(instead: str) -> str:
    return instead if instead.startswith("leave it out") else f"write {instead}"


def hint(word: Any, options: Iterable[str]) -> str:
    """Which of some options was probably meant, to end a message; empty where that is not known."""
    meant = near(word, options) if isinstance(word, str) else None
    return f": did you mean {meant!r}?" if meant else ""


def unknown(owner: str, of: Iterable[str], name: str, value: Any, taken: Iterable[str]) -> str:
    """What is said of a keyword that is not taken: see `suggestion`, and `owner` is what it was given to."""
    taken = list(taken)
    said = suggestion(of, name, value, taken) or f"; it takes {', '.join(taken) or 'none'}"
    return f"{owner} has no keyword {name!r}{said}"


def suggestion(of: Iterable[str], name: str, value: Any, taken: Iterable[str]) -> str:
    """What to write instead of a keyword, to end a message; empty where that is not known.

    Parameters
    ----------
    of : iterable of str
        Under which names that stands in `KEYWORDS`, the closest first.
    name, value
        The keyword.
    taken : iterable of str
        The keywords that are taken.
    """
    taken = list(taken)
    for each in of:
        instead = _KEYWORDS.get((each, plain(name)))
        if instead in taken:
            return f": write {instead}={_short(value)}"
        if instead and not instead.isidentifier():
            return f": {_written(instead)}"
    return hint(name, taken)


def no_attribute(cls: type, name: str) -> str:
    """What is said of an attribute that an object has not."""
    found = (_ATTRIBUTES.get((base.__name__, name)) for base in cls.__mro__)
    instead = next((f": {_written(text)}" for text in found if text), "")
    return f"{cls.__name__!r} object has no attribute {name!r}{instead}"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 and "\n" not in shown and " at 0x" not in shown else "…"


#: The packages of other libraries, whose objects are no objects of ours.
_LIBRARIES = {
    "torch": "PyTorch",
    "keras": "Keras",
    "tensorflow": "TensorFlow",
    "optax": "Optax",
    "sklearn": "scikit-learn",
}


def library_of(value: Any) -> str:
    """The library that a class, a function or an object comes from; empty where none is known."""
    module = getattr(value, "__module__", None)
    return _LIBRARIES.get(module.partition(".")[0], "") if isinstance(module, str) else ""


# ---- Keywords of classes and methods ------------------------------------------------------------------------


def spelled(method: F) -> F:
    """A method that says of an unknown keyword what to write instead; a decorator."""
    _, *parameters = inspect.signature(method).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return method
    taken = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    known = frozenset(taken)
    by_place = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    most = len(by_place) if len(by_place) < len(parameters) and by_place else sys.maxsize  # else, Python says it well
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        most = sys.maxsize

    own = [] if method.__name__ == "__init__" else [method.__name__]

    @functools.wraps(method)
    def checked(self: Any, *args: Any, **keywords: Any) -> Any:
        if not known.issuperset(keywords):
            name = next(name for name in keywords if name not in known)
            of = own or [cls.__name__ for cls in type(self).__mro__]
            raise TypeError(unknown(".".join([type(self).__name__, *own]), of, name, keywords[name], taken))
        if len(args) > most:
            named = ", ".join(name for name in taken if name not in by_place)
            got = f"takes {', '.join(by_place)} by place, got {len(args)} arguments"
            raise TypeError(f"{'.'.join([type(self).__name__, *own])} {got}: write the names of {named}")
        return method(self, *args, **keywords)

    return cast(F, checked)


class Spelled:
    """The base of classes whose constructors say of an unknown keyword what to write instead."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = spelled(vars(cls)["__init__"])  # type: ignore[method-assign]

    if TYPE_CHECKING:

        def __init__(self) -> None: ...

    else:

        def __init__(self, *args: Any, **keywords: Any) -> None:
            of = type(self).__mro__
            others = of[of.index(Spelled) + 1 : -1]
            if not any("__init__" in vars(cls) for cls in others):
                if keywords:
                    name, value = next(iter(keywords.items()))
                    raise TypeError(unknown(type(self).__name__, [cls.__name__ for cls in of], name, value, ()))
                if args:
                    raise TypeError(f"{type(self).__name__} takes no arguments, got {len(args)}")
            super().__init__(*args, **keywords)


#: Of a class that has no constructor; what a class takes that is none of ours, beside this one, is its own affair.
vars(Spelled)["__init__"].__signature__ = inspect.Signature([inspect.Parameter("self", POSITIONAL)])
