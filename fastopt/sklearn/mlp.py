"""`MLPClassifier` and `MLPRegressor`: scikit-learn's estimators, trained by fastopt's programs.

Validation, initialisation, attributes, warnings and predictions are scikit-learn's own, whose classes these extend;
what is new is how they are trained, and the parameters behind ``max_fun``.
"""

from __future__ import annotations

import copy
import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn import exceptions, neural_network
from sklearn.base import BaseEstimator, _fit_context, clone, is_classifier
from sklearn.metrics import get_scorer
from sklearn.model_selection import train_test_split
from sklearn.neural_network._base import ACTIVATIONS, LOSS_FUNCTIONS
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, BaseOptimizer, SGDOptimizer
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.validation import _check_sample_weight, validate_data

from fastopt import checks, nn
from fastopt.checks import Array
from fastopt.messages import TrainingWarning
from fastopt.nn.arguments import BY_NAME
from fastopt.nn.layers import Layer
from fastopt.optimizer import Optimizer
from fastopt.optimizers import Adam, Momentum
from fastopt.schedules import Schedule
from fastopt.sklearn.fits import Fit
from fastopt.sklearn.losses import Penalised, Poisson
from fastopt.sklearn.runs import PenalisedRun, Rows

__all__ = ["ConvergenceWarning", "MLPClassifier", "MLPRegressor"]


class ConvergenceWarning(TrainingWarning, exceptions.ConvergenceWarning):
    """The largest number of epochs was reached before the loss stopped to improve: scikit-learn's class, and fastopt's.

    Examples
    --------
    >>> import warnings
    >>> from sklearn import exceptions
    >>> from fastopt.sklearn import ConvergenceWarning, MLPClassifier
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     clf = MLPClassifier((4,), max_iter=1).fit([[0.0], [1.0]], [0, 1])
    >>> caught[0].category is ConvergenceWarning, issubclass(ConvergenceWarning, exceptions.ConvergenceWarning)
    (True, True)
    """


#: Activations beside scikit-learn's four, as the layers that they are.
_LAYERS: dict[str, type[Layer]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "logistic": nn.Sigmoid,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}
_NAMES = ("identity", *_LAYERS)

#: What follows ``max_fun`` in the constructors, with what is allowed.
_MORE: dict[str, list[Any]] = {
    "dropout": [Interval(Real, 0, 1, closed="left"), "array-like"],
    "batch_norm": ["boolean"],
    "weight_decay": [Interval(Real, 0, None, closed="left"), None],
    "schedule": [Schedule, None],
    "max_norm": [Interval(Real, 0, None, closed="neither"), None],
    "clip_global_norm": [Interval(Real, 0, None, closed="neither"), None],
    "callbacks": [nn.Callback, list, tuple, None],
    "metrics": [str, callable, list, tuple, dict, None],
    "n_ensemble": [Interval(Integral, 1, None, closed="left")],
}

#: Attributes of one fitted network.
_OF_ONE = (
    "best_loss_", "best_validation_score_", "coefs_", "history_", "intercepts_", "loss_curve_", "network_", "t_",
    "validation_scores_", "_best_coefs", "_best_intercepts", "_built", "_loss_of_run", "_places", "_stepper",
)  # fmt: skip

_PARAMETERS = """
    Parameters
    ----------
    {of_loss}hidden_layer_sizes, activation, solver, alpha, batch_size, learning_rate, learning_rate_init, \
power_t, max_iter, shuffle, random_state, tol, verbose, warm_start, momentum, nesterovs_momentum, early_stopping, \
validation_fraction, beta_1, beta_2, epsilon, n_iter_no_change, max_fun
        As of scikit-learn, with these defaults: the same `random_state` gives the same model, up to rounding. Further
        values of `activation` are ``"elu"``, ``"gelu"``, ``"leaky_relu"``, ``"silu"``, ``"softplus"``, and a list with
        one name per hidden layer. Further values of `solver` are optimizers of fastopt: a name, such as ``"lion"``; a
        class, or another function of the parameters, such as ``functools.partial(fastopt.Lion, lr=1e-4)``; or an
        optimizer whose settings are taken. `learning_rate_init` is the rate of one given by its name or class; the
        penalty `alpha` is left out where an optimizer has no coupled decay.
    dropout : float or sequence of float, default 0.0
        The probability with which units of hidden layers are dropped in training, [0, 1), or one for each layer.
    batch_norm : bool, default False
        Batch norm between each hidden layer and its activation. A single last sample then joins the batch before.
    weight_decay : float, optional
        Decoupled decay of weights (not of biases), in place of `alpha`.
    schedule : fastopt.schedules.Schedule, optional
        The learning rate as a function of the step, in place of `learning_rate` and `learning_rate_init`. A run that
        takes all of `max_iter` is then as planned, and there is no ConvergenceWarning.
    max_norm : float, optional
        Incoming weights of each unit are scaled down to this norm after a step.
    clip_global_norm : float, optional
        The gradient is scaled down to this norm.
{of_classes}    callbacks : fastopt.nn.Callback or sequence of them, optional
        Used as they are, not copied (`sklearn.base.clone` does that).
    metrics : str, callable, or sequence or dict of these, optional
        Measured after each epoch, on validation data where there is some: names of scikit-learn's scorers, or functions
        ``metric(y_true, y_pred)``. They are in ``history_``.
    n_ensemble : int, default 1
        How many networks are trained at once, by `fastopt.get_num_threads` threads, from random states that follow from
        `random_state`, each with copies of the `callbacks`; probabilities, or what is predicted, are averaged. What is
        of one network is then an attribute of each of ``estimators_``. With `warm_start`, and in ``partial_fit``, all
        of them go on.

    Attributes
    ----------
    history_ : fastopt.nn.History
        The metrics of each epoch of the last fit: ``loss``; ``val_loss`` and ``val_score``, where there is validation
        data; those asked for. Not there after ``solver="lbfgs"``.
    network_ : fastopt.nn.Sequential
        The network, whose parameters `coefs_` and `intercepts_` are. Likewise.
    estimators_ : list
        The fitted estimators of an ensemble. Not there where `n_ensemble` is 1.
    loss_, best_loss_, loss_curve_, validation_scores_, best_validation_score_, t_, coefs_, intercepts_, \
n_features_in_, feature_names_in_, n_iter_, n_layers_, n_outputs_, out_activation_{of_attributes}
        As of scikit-learn.
"""


def _per_layer(name: str, value: Any, count: int) -> list[Any]:
    """One value for each hidden layer."""
    if isinstance(value, (str, Real)):
        return [value] * count
    values = list(value)
    if len(values) != count:
        raise ValueError(f"{name} must hold one value per hidden layer, {count}, got {len(values)}")
    return values


class _Rule(nn.Callback):
    """What scikit-learn does after each epoch."""

    rank = -100

    def __init__(self, estimator: Any, early_stopping: bool, validation: Any) -> None:
        self._of, self._early_stopping, self._validation = estimator, early_stopping, validation
        self._scorers = dict(estimator._scorers())
        self._rate: float | None = None

    def on_train_begin(self, run: nn.Run) -> None:
        self.run = run
        more = [*self._scorers] if self._validation is None else ["val_loss", *(f"val_{k}" for k in self._scorers)]
        run.measures = (*run.measures, *(["val_score"] if self._validation else []), *more)

    def epochs_ahead(self) -> int:
        of = self._of
        looks = self._validation is not None or self._scorers or of.verbose
        if looks or (of._follows_rule() and of.learning_rate == "invscaling"):
            return 1
        left = of.n_iter_no_change + 1 - of._no_improvement_count  # partial_fit goes on beyond them
        return int(min(max(1, left), sys.maxsize))  # none before can be the last

    def on_epoch_begin(self, epoch: int) -> None:
        rate = self._of._optimizer.learning_rate
        if self._of._follows_rule() and rate != self._rate:  # else it is that of the optimizer, or of a callback
            self._rate = rate
            if self.run.optimizer.lr != rate:
                self.run.optimizer.lr = rate

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        of, run = self._of, self.run
        of.n_iter_ += 1
        of.loss_ = logs["loss"]
        of.t_ += run.samples
        of.loss_curve_.append(of.loss_)
        if of.verbose:
            print(f"Iteration {of.n_iter_}, loss = {of.loss_:.8f}")
        x, y, weight = self._validation or (None, None, None)
        of._update_no_improvement_count(self._early_stopping, x, y, weight)
        more = self._measured()
        logs.update(more)
        run.history.add(more)
        of._optimizer.iteration_ends(of.t_)
        if of._no_improvement_count > of.n_iter_no_change:
            what = "Validation score" if self._early_stopping else "Training loss"
            message = f"{what} did not improve more than tol={of.tol:f} for {of.n_iter_no_change} consecutive epochs."
            if of._optimizer.trigger_stopping(message, of.verbose):
                run.stop(message.rstrip("."))
            else:
                of._no_improvement_count = 0

    def _measured(self) -> dict[str, float]:
        of, measured = self._of, {}
        if self._validation is None and not self._scorers:
            return {}
        prefix, data = ("", of._trained_on) if self._validation is None else ("val_", self._validation)
        if self._validation is not None:
            x, y, weight = self._validation
            last = of.validation_scores_[-1] if self._early_stopping else of._score(x, y, sample_weight=weight)
            measured["val_loss"] = of._loss_on(x, y, weight)
            measured["val_score"] = float(last)
        names = vars(of).pop("feature_names_in_", None)  # which these arrays do not have
        try:
            return measured | {prefix + name: float(score(of, *data[:2])) for name, score in self._scorers.items()}
        finally:
            if names is not None:
                of.feature_names_in_ = names


@functools.cache
def _parameters_of(kind: type) -> tuple[str, ...]:
    """The names of an estimator's parameters, which scikit-learn reads from the signature in every call of it."""
    read: Any = BaseEstimator._get_param_names
    names: list[str] = read.__func__(kind)
    return tuple(names)


class _Network:
    """What `MLPClassifier` and `MLPRegressor` share: training. The other base of each is scikit-learn's class."""

    # ---- Parameters -----------------------------------------------------------------------------------------------

    def _set(self: Any, given: dict[str, Any]) -> None:
        """Set scikit-learn's parameters by its constructor, and ours."""
        given = {name: value for name, value in given.items() if name not in ("self", "__class__")}
        mine = {name: given.pop(name) for name in (*_MORE, "class_weight") if name in given}
        super().__init__(**given)
        for name, value in mine.items():
            setattr(self, name, value)

    def _hidden(self: Any) -> list[int]:
        sizes = self.hidden_layer_sizes
        return list(sizes) if hasattr(sizes, "__iter__") else [sizes]

    def _is_lbfgs(self: Any) -> bool:
        return isinstance(self.solver, str) and self.solver == "lbfgs"

    @classmethod
    def _get_param_names(cls: Any) -> list[str]:
        return list(_parameters_of(cls))

    def _follows_rule(self: Any) -> bool:
        """Whether the learning rate is scikit-learn's."""
        return self.schedule is None and isinstance(self.solver, str) and self.solver == "sgd"

    def _check_solver(self: Any) -> bool:
        if self._is_lbfgs():
            raise AttributeError("partial_fit is only available for stochastic optimizers. lbfgs is not stochastic.")
        return True

    def _check_more(self: Any) -> None:
        """Refuse parameters that do not fit each other."""
        hidden = self._hidden()
        for name in _per_layer("activation", self.activation, len(hidden)):
            checks.choice("activation", name, _NAMES)
        for p in _per_layer("dropout", self.dropout, len(hidden)):
            checks.number("dropout", p, "[0, 1)")
        if isinstance(self.solver, str) and self.solver not in ("sgd", "adam", "lbfgs"):
            checks.word("solver", self.solver, tuple(BY_NAME))
        if self._is_lbfgs():
            given = {
                "activation": not isinstance(self.activation, str) or self.activation not in ACTIVATIONS,
                "dropout": np.any(self.dropout),
                "batch_norm": self.batch_norm,
                **{name: getattr(self, name) is not None for name in list(_MORE)[2:-1]},
            }
            if wrong := [name for name, there in given.items() if there]:
                raise ValueError(
                    f"{wrong[0]} must be left as scikit-learn has it with solver='lbfgs', whose steps are SciPy's, got "
                    f"{getattr(self, wrong[0])!r}"
                )

    def _scorers(self: Any) -> Iterator[tuple[str, Callable[..., float]]]:
        """The metrics asked for, as functions of estimator, inputs and targets."""
        given = self.metrics
        if given is None:
            return
        if isinstance(given, str) or callable(given):
            given = [given]
        named = given.items() if isinstance(given, Mapping) else [(None, metric) for metric in given]
        for name, metric in named:
            if isinstance(metric, str):
                yield name or metric, get_scorer(metric)
            elif callable(metric):
                yield name or metric.__name__, lambda of, x, y, metric=metric: metric(y, of.predict(x))
            else:
                raise TypeError(f"metrics must be names of scorers or functions (y_true, y_pred), got {metric!r}")

    # ---- The network ----------------------------------------------------------------------------------------------

    def _initialize(self: Any, y: Array, layer_units: list[int], dtype: Any) -> None:
        super()._initialize(y, layer_units, dtype)  # type: ignore[misc]
        self._masks = 0
        if np.any(self.dropout):
            self._masks = int(self._random_state.randint(2**31 - 1))
        if not self._is_lbfgs():
            self.loss_curve_: list[float] = []
            self._no_improvement_count = 0
            self.best_loss_ = None if self.early_stopping else np.inf
            self.validation_scores_: list[float] | None = [] if self.early_stopping else None
            self.best_validation_score_ = -np.inf if self.early_stopping else None
        for name in ("network_", "_built", "_stepper", "history_"):
            vars(self).pop(name, None)

    def _connect(self: Any) -> None:
        """Let there be a network whose parameters `coefs_` and `intercepts_` are."""
        units = [self.coefs_[0].shape[0], *(len(b) for b in self.intercepts_)]
        hidden = len(units) - 2
        activation = _per_layer("activation", self.activation, hidden)
        dropout = _per_layer("dropout", self.dropout, hidden)
        dtype = np.dtype(np.float32 if self.coefs_[0].dtype == np.float32 else np.float64)
        built = (units, activation, dropout, bool(self.batch_norm), dtype.name)
        before = vars(self).get("network_")
        if before is None or self._built != built:
            layers: list[Layer] = []
            places, zero = [], nn.Constant(0.0)
            for count, kind, p in zip(units[1:-1], activation, dropout, strict=True):
                places.append(len(layers))
                fused = kind == "relu" and not self.batch_norm
                layers.append(nn.Dense(count, activation="relu" if fused else None, init=zero))
                if self.batch_norm:
                    layers.append(nn.BatchNorm())
                if not fused and kind != "identity":
                    layers.append(_LAYERS[kind]())
                if p:
                    layers.append(nn.Dropout(float(p)))
            places.append(len(layers))
            layers.append(nn.Dense(units[-1], init=zero))
            self.network_ = nn.Sequential(layers, (units[0],), seed=getattr(self, "_masks", 0), dtype=dtype)
            self._built, self._places = built, places
            vars(self).pop("_loss_of_run", None)
            if before is not None:
                self._keep_others(before)
        params = self.network_.params
        for held, kind in ((self.coefs_, "weight"), (self.intercepts_, "bias")):
            for i, place in enumerate(self._places):
                live = params[f"{place}.{kind}"]
                if held[i] is not live:
                    live[...] = held[i]
                    held[i] = live
        if "_stepper" in vars(self) and self._stepper.params is not params:
            self._stepper.rebind(params)

    def _penalised_weights(self: Any) -> list[str]:
        return [f"{place}.weight" for place in self._places]

    def _make_optimizer(self: Any) -> None:
        """The optimizer of a new run, and what scikit-learn has for its learning rate."""
        rate, params = self.learning_rate_init, self.network_.params
        self._optimizer = BaseOptimizer(rate)
        given = {name: getattr(self, name) for name in ("max_norm", "clip_global_norm")}
        common: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        solver = self.solver
        if isinstance(solver, Optimizer):
            common = _settings_of(solver) | common
            solver = type(solver)
        elif not (callable(solver) and not isinstance(solver, type)):
            common["lr"] = rate
        if self.schedule is not None:
            common["lr"] = self.schedule
        if solver == "adam":
            self._optimizer = AdamOptimizer([], rate, self.beta_1, self.beta_2, self.epsilon)
            common |= {"beta1": self.beta_1, "beta2": self.beta_2, "eps": self.epsilon, "eps_mode": "hat"}
            make: Any = Adam
        elif solver == "sgd":
            rule = (self.learning_rate, self.momentum, self.nesterovs_momentum, self.power_t)
            self._optimizer = SGDOptimizer([], rate, *rule)
            common |= {"momentum": self.momentum, "nesterov": self.nesterovs_momentum, "lr_in_velocity": True}
            make = Momentum
        else:
            make = BY_NAME[checks.word("solver", solver, tuple(BY_NAME))] if isinstance(solver, str) else solver
        cls = make if isinstance(make, type) else getattr(make, "func", None)
        settings = getattr(cls, "_hyper_names", ())
        decay = self.alpha if self.weight_decay is None else self.weight_decay
        coupled = self.weight_decay is None
        self._alpha_in_use = 0.0
        if "weight_decay" in settings and decay and ("decoupled" in settings or not coupled):
            group = {"params": self._penalised_weights(), "weight_decay": decay}
            group |= {"decoupled": not coupled} if "decoupled" in settings else {}
            common["groups"] = [*common.get("groups", ()), group]
            self._alpha_in_use = self.alpha if coupled else 0.0
        elif self.weight_decay:
            raise ValueError(f"weight_decay must be left out with solver={self.solver!r}, which has no such keyword")
        self._stepper = make(params, **common)

    def _loss(self: Any) -> Any:
        weights = [self.network_.params[name] for name in self._penalised_weights()] if self._alpha_in_use else []
        kind = self.out_activation_, bool(weights)
        if vars(self).get("_loss_of_run", (None,))[0] != kind:
            self._loss_of_run = kind, Poisson(weights) if kind[0] == "exp" else Penalised(kind[0], weights)
        return self._loss_of_run[1]

    def _keep_others(self: Any, before: nn.Sequential) -> None:
        """Take what is neither coefficient nor intercept from a network of the same layers, dropout aside."""
        now = self.network_
        for mine, old in ((now.params, before.params), (now.state, before.state)):
            own = [name for name in mine if not name.endswith((".weight", ".bias")) or mine is now.state]
            its = [name for name in old if not name.endswith((".weight", ".bias")) or old is before.state]
            if [mine[name].shape for name in own] == [old[name].shape for name in its]:
                for name, from_name in zip(own, its, strict=True):
                    mine[name][...] = old[from_name]

    def __getstate__(self: Any) -> dict[str, Any]:
        state = dict(super().__getstate__())  # type: ignore[call-overload]
        for name in ("_loss_of_run", "_trained_on", "network_", "_stepper"):
            state.pop(name, None)
        if "network_" in vars(self):
            state["_others"] = [array.copy() for array in self._other_arrays()]
        if hasattr(vars(self).get("_stepper"), "state_dict"):
            state["_steps_taken"] = self._stepper.state_dict()
        return state

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        state = dict(state)
        others, taken = state.pop("_others", None), state.pop("_steps_taken", None)
        super().__setstate__(state)  # type: ignore[misc]
        if others is None:
            return
        self.coefs_, self.intercepts_ = list(self.coefs_), list(self.intercepts_)
        self._connect()
        mine = self._other_arrays()
        if [array.shape for array in mine] == [array.shape for array in others]:  # unless parameters were set since
            for array, kept in zip(mine, others, strict=True):
                array[...] = kept
        if taken is not None:
            rule = self._optimizer
            try:
                self._make_optimizer()
                self._stepper.load_state_dict(taken)
            except (TypeError, ValueError):  # likewise: another solver begins anew
                vars(self).pop("_stepper", None)
            self._optimizer = rule

    # ---- Training -------------------------------------------------------------------------------------------------

    def _fit(
        self: Any, X: Any, y: Any, sample_weight: Any = None, incremental: bool = False, validation_data: Any = None
    ) -> Any:
        self._begin_fit(X, y, sample_weight, incremental, validation_data).go()
        return self

    def _begin_fit(
        self: Any, X: Any, y: Any, sample_weight: Any = None, incremental: bool = False, validation_data: Any = None
    ) -> Fit:
        """The fit, up to its first step."""
        again, before = self.warm_start or incremental, len(vars(self).get("estimators_", [self]))
        if again and hasattr(self, "n_layers_") and before != self.n_ensemble:
            raise ValueError(
                f"n_ensemble must be that of the fit before, {before}, in partial_fit and with warm_start, got "
                f"{self.n_ensemble}: call fit with warm_start=False to begin anew"
            )
        if self.n_ensemble > 1:
            return self._begin_members(X, y, sample_weight, incremental, validation_data)
        self._forget(("estimators_",))
        hidden = self._hidden()
        if np.any(np.array(hidden) <= 0):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {hidden}.")
        self._check_more()
        if validation_data is not None and (incremental or self._is_lbfgs()):
            raise ValueError("validation_data must be left out in partial_fit, and with solver='lbfgs'")
        first_pass = not hasattr(self, "coefs_") or (not self.warm_start and not incremental)
        class_weight = getattr(self, "class_weight", None)
        if class_weight is not None:
            if incremental and isinstance(class_weight, str):
                raise ValueError(
                    "class_weight must be a dict in partial_fit, which does not know how many samples of each class "
                    f"there will be, got {class_weight!r}"
                )
            of_classes = compute_sample_weight(class_weight, y)
            sample_weight = of_classes if sample_weight is None else np.asarray(sample_weight) * of_classes
        X, y = self._validate_input(X, y, incremental, reset=first_pass)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X)
        if y.ndim == 1:
            y = y.reshape((-1, 1))
        self.n_outputs_ = y.shape[1]
        units = [X.shape[1], *hidden, self.n_outputs_]
        self._random_state = check_random_state(self.random_state)
        if first_pass:
            self._initialize(y, units, X.dtype)
        if self._is_lbfgs():
            lists: list[list[Any]] = [[X, *[None] * (len(units) - 1)], *([None] * (len(units) - 1) for _ in range(3))]

            def by_scipy(is_last: bool) -> None:
                self._fit_lbfgs(X, y, sample_weight, *lists, units)
                self._check_coefs()

            return Fit([], [], by_scipy)
        run = self._run(X, y, sample_weight, incremental, validation_data)

        def end(is_last: bool) -> None:
            self._end(run, may_go_on=incremental or not is_last)
            self._check_coefs()

        return Fit([run], [self], end)

    def __sklearn_is_fitted__(self) -> bool:
        return "coefs_" in vars(self) or "estimators_" in vars(self)

    def _forget(self: Any, names: Iterable[str]) -> None:
        for name in names:
            vars(self).pop(name, None)

    def _check_coefs(self: Any) -> None:
        if not all(np.isfinite(w).all() for w in (*self.coefs_, *self.intercepts_)):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
                "preprocessed."
            )

    def _begin_members(self: Any, X: Any, y: Any, sample_weight: Any, incremental: bool, validation_data: Any) -> Fit:
        """The fits of all members of an ensemble as one."""
        again = (self.warm_start or incremental) and "estimators_" in vars(self)
        self._validate_input(X, y, incremental, reset=not again)
        if again:
            members = self.estimators_
            for member in members:
                settings = clone(self).get_params(deep=False)
                member.set_params(**settings | {"n_ensemble": 1, "random_state": member.random_state})
        else:
            seeds = check_random_state(self.random_state).randint(2**31 - 1, size=self.n_ensemble)
            members = [clone(self).set_params(n_ensemble=1, random_state=int(seed)) for seed in seeds]
        if incremental and not again and is_classifier(self):
            for member in members:
                member.classes_, member._label_binarizer = self.classes_, self._label_binarizer
        parts = [member._begin_fit(X, y, sample_weight, incremental, validation_data) for member in members]

        def end(is_last: bool) -> None:
            for part in parts:
                part.end(is_last)
            self._forget(_OF_ONE)
            self.estimators_ = members
            for name in ("n_layers_", "n_outputs_", "out_activation_"):
                setattr(self, name, getattr(members[0], name))
            self.n_iter_ = max(member.n_iter_ for member in members)
            self.loss_ = float(np.mean([member.loss_ for member in members]))

        return Fit([run for part in parts for run in part.runs], members, end)

    def _run(self: Any, X: Any, y: Array, sample_weight: Any, incremental: bool, given: Any) -> PenalisedRun:
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        self._connect()
        if not incremental or "_stepper" not in vars(self):
            self._make_optimizer()
        validation = None if given is None else self._validation(given)
        if self.early_stopping and validation is None:
            X, y, sample_weight, validation = self._split(X, y, sample_weight)
        n = X.shape[0]
        batch_size = min(200, n)
        if not isinstance(self.batch_size, str):
            if self.batch_size > n:
                warnings.warn(
                    "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped",
                    TrainingWarning,
                    stacklevel=6,
                )
            batch_size = int(np.clip(self.batch_size, 1, n))
        net, loss = self.network_, self._loss()
        if self.metrics is not None and validation is None:
            known = self._label_binarizer.inverse_transform(y) if is_classifier(self) else y.squeeze()
            self._trained_on = X, known
        rows = Rows(X, net.dtype) if hasattr(X, "tocsr") else net.rows("X", X)
        if self.out_activation_ == "softmax":
            targets = y.argmax(axis=1).astype(np.int64)
        else:
            targets = np.ascontiguousarray(y, net.dtype)
        weight = None if sample_weight is None else np.ascontiguousarray(sample_weight, net.dtype)
        order = np.arange(n)

        def next_order() -> Array:
            nonlocal order
            if self.shuffle:  # as sklearn.utils.shuffle
                chosen = np.arange(n)
                self._random_state.shuffle(chosen)
                order = order[chosen]
            return order

        groups = [g for g in getattr(self._stepper, "groups", ()) if "weight_decay" in g._settings]
        callbacks = self.callbacks if isinstance(self.callbacks, (list, tuple)) else [self.callbacks]
        run = PenalisedRun(
            net,
            (rows, targets, weight),
            self._stepper,
            loss,
            order=next_order,
            alpha=self._alpha_in_use,
            penalised=groups[-1] if self._alpha_in_use else None,
            epochs=1 if incremental else self.max_iter,
            batch_size=batch_size,
            callbacks=[_Rule(self, self.early_stopping, validation), *(c for c in callbacks if c is not None)],
            join=bool(self.batch_norm),
        )
        self.n_iter_ = 0
        if self.early_stopping:
            self._best_network = None
        self.history_ = run.history
        seed = self.random_state
        self.history_.provenance["seeds"] |= {"random_state": int(seed) if isinstance(seed, Integral) else None}
        return run

    def _end(self: Any, run: PenalisedRun, *, may_go_on: bool) -> None:
        """What is to be done after a run."""
        if run.interrupted:
            warnings.warn("Training interrupted by user.", TrainingWarning, stacklevel=7)
        elif not may_go_on and not run.stopped and self.schedule is None and self.n_iter_ == self.max_iter:
            warnings.warn(
                f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization hasn't "
                "converged yet.",
                ConvergenceWarning,
                stacklevel=7,
            )
        if isinstance(self._optimizer, AdamOptimizer):
            t = self._optimizer.t = self._stepper.t
            ratio = np.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t) if t else 1.0
            self._optimizer.learning_rate = self.learning_rate_init * ratio
        if self.early_stopping:
            best: tuple[Sequence[Array], Sequence[Array]] = self._best_coefs, self._best_intercepts
            for live, kept in zip((*self.coefs_, *self.intercepts_), (*best[0], *best[1]), strict=True):
                live[...] = kept
            if self._best_network is not None:
                for array, kept in zip(self._other_arrays(), self._best_network, strict=True):
                    array[...] = kept
            # As in scikit-learn, where a warm start goes on in the arrays of the best.
            self._best_coefs, self._best_intercepts = list(self.coefs_), list(self.intercepts_)
        self._forget(("_best_network", "_trained_on"))

    def _other_arrays(self: Any) -> list[Array]:
        """Those of the network that are no coefficient or intercept."""
        held = {id(array) for array in (*self.coefs_, *self.intercepts_)}
        net = self.network_
        return [array for array in (*net.params.values(), *net.state.values()) if id(array) not in held]

    def _update_no_improvement_count(self: Any, early_stopping: bool, X: Any, y: Any, weight: Any) -> None:
        before = getattr(self, "best_validation_score_", None)
        super()._update_no_improvement_count(early_stopping, X, y, weight)  # type: ignore[misc]
        if early_stopping and self.best_validation_score_ != before:
            self._best_network = [array.copy() for array in self._other_arrays()]

    def _split(self: Any, X: Any, y: Array, sample_weight: Any) -> tuple[Any, ...]:
        """Parts for training and for validation, as scikit-learn takes them."""
        stratify = y if is_classifier(self) and self.n_outputs_ == 1 else None
        options = {
            "random_state": self._random_state,
            "test_size": self.validation_fraction,
            "stratify": stratify,
        }
        weight, held_weight = None, None
        if sample_weight is None:
            X, held_x, y, held_y = train_test_split(X, y, **options)
        else:
            X, held_x, y, held_y, weight, held_weight = train_test_split(X, y, sample_weight, **options)
        if held_x.shape[0] < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        if is_classifier(self):
            held_y = self._label_binarizer.inverse_transform(held_y)
        return X, y, weight, (held_x, held_y, held_weight)

    def _validation(self: Any, given: Any) -> tuple[Any, Any, Any]:
        """Validation data, checked."""
        if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
            raise ValueError("validation_data must be (X, y) or (X, y, sample_weight)")
        x, y = validate_data(
            self,
            given[0],
            given[1],
            accept_sparse=["csr", "csc"],
            multi_output=True,
            y_numeric=not is_classifier(self),
            dtype=(np.float64, np.float32),
            reset=False,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if (
            is_classifier(self)
            and y.ndim == 1
            and (strange := sorted({*np.unique(y).tolist()} - {*self.classes_.tolist()}))
        ):
            raise ValueError(f"validation_data must have classes of y, got {strange[0]!r}")
        return x, y, None if len(given) == 2 or given[2] is None else _check_sample_weight(given[2], x)

    def _loss_on(self: Any, x: Any, y: Any, weight: Any) -> float:
        """The loss, without penalty."""
        if is_classifier(self):
            y = self._label_binarizer.transform(y)
        name = "binary_log_loss" if self.out_activation_ == "logistic" else self.loss
        y = y.reshape(len(y), -1)
        with np.errstate(all="ignore"):
            return float(LOSS_FUNCTIONS[name](y, self._forward_pass_fast(x, check_input=False), weight))

    # ---- Predicting -----------------------------------------------------------------------------------------------

    def _forward_pass_fast(self: Any, X: Any, check_input: bool = True) -> Array:
        if "estimators_" in vars(self):
            if check_input:
                X = validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)
            outputs = [member._forward_pass_fast(X, check_input=False) for member in self.estimators_]
            return np.mean(outputs, axis=0, dtype=np.float64).astype(outputs[0].dtype, copy=False)
        plain = isinstance(self.activation, str) and self.activation in ACTIVATIONS
        if plain and not self.batch_norm:
            return super()._forward_pass_fast(X, check_input=check_input)  # type: ignore[misc]
        if check_input:
            X = validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)
        self._connect()
        net = self.network_
        if hasattr(X, "tocsr"):
            rows = Rows(X, net.dtype)
            size = rows.at_once(1)
            parts = [net.predict(rows[np.arange(i, min(i + size, len(rows)))]) for i in range(0, len(rows), size)]
            output = np.concatenate(parts)
        else:
            output = net.predict(X)
        ACTIVATIONS[self.out_activation_](output)
        return output


def _settings_of(optimizer: Optimizer) -> dict[str, Any]:
    """The keywords that make such an optimizer."""
    if optimizer.groups:
        raise ValueError("solver must be an optimizer without groups, whose names are those of other parameters")
    own = {**optimizer.state_dict()["hyper"], **optimizer.schedules}
    return {name: copy.deepcopy(value) for name, value in own.items()}


class MLPClassifier(_Network, neural_network.MLPClassifier):
    __doc__ = (
        """scikit-learn's `sklearn.neural_network.MLPClassifier`, trained by fastopt, with more to choose from.
"""
        + _PARAMETERS.format(
            of_loss="",
            of_classes="""    class_weight : dict or "balanced", optional
        The weight of samples of each class; multiplies `sample_weight`.
""",
            of_attributes=", classes_",
        )
        + """
    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastopt.sklearn import MLPClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MLPClassifier((16,), random_state=0, max_iter=1000, learning_rate_init=0.01, dropout=0.1).fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """
    )

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **neural_network.MLPClassifier._parameter_constraints,
        "activation": [StrOptions({*_NAMES}), list, tuple],
        "solver": [str, callable, Optimizer],
        **_MORE,
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: str | Sequence[str] = "relu",
        *,
        solver: Any = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: int = 10,
        max_fun: int = 15000,
        dropout: float | Sequence[float] = 0.0,
        batch_norm: bool = False,
        weight_decay: float | None = None,
        schedule: Schedule | None = None,
        max_norm: float | None = None,
        clip_global_norm: float | None = None,
        class_weight: Any = None,
        callbacks: Any = None,
        metrics: Any = None,
        n_ensemble: int = 1,
    ) -> None:
        self._set(locals())

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, validation_data: Any = None) -> MLPClassifier:
        """Fit to inputs and labels.

        Parameters
        ----------
        X : array_like or sparse matrix (n, features)
            float32 where it is that, else float64.
        y : array_like (n,) or (n, labels)
            Labels of any kind, or indicators of several.
        sample_weight : array_like (n,), optional
        validation_data : (X, y) or (X, y, sample_weight), optional
            What is measured on after each epoch; early stopping goes by it, and sets nothing aside.

        Returns
        -------
        MLPClassifier
            Itself.

        Raises
        ------
        TypeError, ValueError
            Where an argument or a parameter breaks its rule.
        """
        return self._fit(X, y, sample_weight=sample_weight, validation_data=validation_data)


class MLPRegressor(_Network, neural_network.MLPRegressor):
    __doc__ = (
        """scikit-learn's `sklearn.neural_network.MLPRegressor`, trained by fastopt, with more to choose from.
"""
        + _PARAMETERS.format(of_loss="loss, ", of_classes="", of_attributes="")
        + """
    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.sklearn import MLPRegressor
    >>> X = np.random.default_rng(0).uniform(-1, 1, (300, 2))
    >>> y = X[:, 0] * X[:, 1]
    >>> MLPRegressor(random_state=0, max_iter=500, learning_rate_init=0.01).fit(X, y).score(X, y) > 0.95
    True
    """
    )

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **neural_network.MLPRegressor._parameter_constraints,
        "activation": [StrOptions({*_NAMES}), list, tuple],
        "solver": [str, callable, Optimizer],
        **_MORE,
    }

    def __init__(
        self,
        loss: str = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: str | Sequence[str] = "relu",
        *,
        solver: Any = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: int = 10,
        max_fun: int = 15000,
        dropout: float | Sequence[float] = 0.0,
        batch_norm: bool = False,
        weight_decay: float | None = None,
        schedule: Schedule | None = None,
        max_norm: float | None = None,
        clip_global_norm: float | None = None,
        callbacks: Any = None,
        metrics: Any = None,
        n_ensemble: int = 1,
    ) -> None:
        self._set(locals())

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, validation_data: Any = None) -> MLPRegressor:
        """Fit to inputs and targets.

        Parameters
        ----------
        X : array_like or sparse matrix (n, features)
            float32 where it is that, else float64.
        y : array_like (n,) or (n, outputs)
        sample_weight : array_like (n,), optional
        validation_data : (X, y) or (X, y, sample_weight), optional
            What is measured on after each epoch; early stopping goes by it, and sets nothing aside.

        Returns
        -------
        MLPRegressor
            Itself.

        Raises
        ------
        TypeError, ValueError
            Where an argument or a parameter breaks its rule.
        """
        return self._fit(X, y, sample_weight=sample_weight, validation_data=validation_data)
