"""What can be called: every public function, class and method, with arguments that fit.

`CALLS` has a function for each that makes a `Call` anew, given a `Memory` for its arrays and a generator of random
choices. Kernels come from `fastopt.cases`, optimizers from the registry, layers and the like from their classes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from values import Memory

import fastopt
from fastopt import _kernels, cases, checks, data, gradients, landscape, matrices, mpi, nn, plots, schedules, threads
from fastopt import functional as F  # noqa: N812
from fastopt.cases import Case, map_arrays
from fastopt.checks import Array
from fastopt.data import augment
from fastopt.hyper import Choice, Flag, Hyper, Number
from fastopt.nn.init import Initializer
from fastopt.nn.layers import Layer
from fastopt.optimizers import OPTIMIZERS

REALS = (np.float32, np.float64)

# An import that is interrupted, since a call takes long, leaves a package that is half there.
for _name in ("matplotlib.figure", "matplotlib.backends.backend_agg", "sklearn.metrics"):
    with contextlib.suppress(ImportError):
        importlib.import_module(_name)


@dataclass
class Call:
    """A call that is right."""

    function: Callable[..., Any]
    #: By name; those that are given by position are named "0", "1", …
    arguments: dict[str, Any]
    #: The arguments that it may write to.
    written: Iterable[str] = ()
    #: Further arrays that it may write to.
    more: Iterable[np.ndarray] = ()
    #: What must be the same after a call that is refused, as something to compare.
    state: Callable[[], Any] = lambda: None

    def __call__(self, arguments: dict[str, Any]) -> Any:
        by_name = dict(arguments)
        by_place = [by_name.pop(name) for name in list(by_name) if name.isdecimal()]
        return self.function(*by_place, **by_name)

    def names(self) -> list[str]:
        """Of all arguments, those among them that are not given."""
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except (TypeError, ValueError):  # of Cython
            return list(self.arguments)
        named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        return list(dict.fromkeys([*self.arguments, *([] if "0" in self.arguments else named)]))


Maker = Callable[[Memory, random.Random], Call]
CALLS: dict[str, Maker] = {}


def bits(value: Any) -> Any:
    """Something that is equal for equal bits."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return repr(value)


def plain(name: str, function: Callable[..., Any], arguments: Callable[..., dict[str, Any]], **more: Any) -> None:
    """Add a function whose arguments are made by a function of (a function for arrays, random choices)."""

    def make(memory: Memory, rng: random.Random) -> Call:
        dtype = rng.choice(REALS)
        draw = np.random.default_rng(rng.randrange(2**32))
        x = lambda *shape: memory.array(draw.standard_normal(shape).astype(dtype))  # noqa: E731
        return Call(function, arguments(x, rng), **more)

    CALLS[name] = make


# ---- Kernels ------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1000)
def _template(name: str, dtype: type, size: int, option: int, threads: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of a case, and places for its results."""
    case = cases.CASES[name]
    sizes = case.threads if threads else case.edges
    draw = cases.normal(dtype)
    arguments = case.arguments(draw, sizes[size % len(sizes)], case.options[option])
    return arguments, case.places(case.run(map_arrays(np.copy, arguments)))


def _of_case(case: Case) -> Maker:
    def make(memory: Memory, rng: random.Random) -> Call:
        large = rng.random() < 0.005
        option = rng.randrange(len(case.options))
        arguments, places = _template(case.name, rng.choice(REALS), rng.randrange(2 if large else 8), option, large)
        given = arguments | (places if rng.random() < 0.5 else {})
        copies = {
            key: map_arrays(lambda a: memory.array(a, rng.choice((0, 16, 32))), value) for key, value in given.items()
        }
        return Call(case.function, copies, written=(*case.outputs, *case.updates))

    return make


for _case in cases.CASES.values():
    CALLS[f"functional.{_case.name}"] = _of_case(_case)

_IMAGES, _WEIGHT = (2, 6, 7, 16), (3, 3, 16, 32)
_SECOND = {"x": (2, 5, 6, 7), "weight": (3, 5, 2, 3), "dy": (2, 3, 5, 5)}
plain("functional.Counter", F.Counter, lambda x, rng: {"value": 2**63})
plain("functional.dropout, a generator", F.dropout,
      lambda x, rng: {"x": x(33), "p": 0.3, "rng": np.random.default_rng(1), "out": x(33)},
      written=("out",))  # fmt: skip
plain("functional.dropout, a counter", F.dropout,
      lambda x, rng: {"x": x(33), "p": 0.3, "seed": 1, "counter": F.Counter(), "out": x(33)},
      written=("out",))  # fmt: skip
plain("functional.conv2d, channels second", F.conv2d,
      lambda x, rng: {"x": x(*_SECOND["x"]), "weight": x(*_SECOND["weight"]), "bias": x(3), "layout": "nchw",
                      "out": x(*_SECOND["dy"])}, written=("out", "packed"))  # fmt: skip
plain("functional.conv2d_input_grad, channels second", F.conv2d_input_grad,
      lambda x, rng: {"dy": x(*_SECOND["dy"]), "weight": x(*_SECOND["weight"]), "shape": _SECOND["x"],
                      "layout": "nchw", "out": x(*_SECOND["x"])}, written=("out", "packed"))  # fmt: skip
plain("functional.conv2d_weight_grad, channels second", F.conv2d_weight_grad,
      lambda x, rng: {"x": x(*_SECOND["x"]), "dy": x(*_SECOND["dy"]), "size": (2, 3), "dbias": x(3), "layout": "nchw",
                      "out": x(*_SECOND["weight"])}, written=("out", "sums", "dbias"))  # fmt: skip
plain("functional.depthwise_forward, channels second", F.depthwise_forward,
      lambda x, rng: {"x": x(*_SECOND["x"]), "weight": x(5, 1, 2, 3), "layout": "nchw", "out": x(2, 5, 5, 5)},
      written=("out",))  # fmt: skip
plain("functional.max_pool_forward, channels second", F.max_pool_forward,
      lambda x, rng: {"x": x(*_SECOND["x"]), "size": (2, 3), "stride": 1, "layout": "nchw", "out": x(2, 5, 5, 5)},
      written=("out", "winner"))  # fmt: skip
plain("functional.im2col, channels second", F.im2col,
      lambda x, rng: {"x": x(*_SECOND["x"]), "size": (2, 3), "layout": "nchw", "out": x(2, 5, 5, 5, 2, 3)},
      written=("out",))  # fmt: skip
plain("functional.group_norm_forward, channels second", F.group_norm_forward,
      lambda x, rng: {"x": x(2, 6, 5), "groups": 3, "scale": x(6), "shift": x(6), "layout": "nchw",
                      "out": x(2, 6, 5)}, written=("out", "mean", "inv_std"))  # fmt: skip
plain("functional.batch_norm_sums_shape", F.batch_norm_sums_shape, lambda x, rng: {"shape": (9001, 3), "axis": 1})
plain("functional.conv2d_fits", F.conv2d_fits,
      lambda x, rng: {"shape": _IMAGES, "filters": 16, "size": 3, "stride": 1, "padding": (1, 0)})  # fmt: skip
plain("functional.kept_share", F.kept_share, lambda x, rng: {"p": 0.3, "p_is": "drop"})
plain("functional.packed_shape", F.packed_shape,
      lambda x, rng: {"weight": _WEIGHT, "reverse": True, "winograd": False})  # fmt: skip
plain("functional.patches_shape", F.patches_shape,
      lambda x, rng: {"shape": _IMAGES, "size": (3, 2), "stride": 1, "padding": 1, "dilation": 2})  # fmt: skip
plain("functional.winner_type", F.winner_type, lambda x, rng: {"real": np.dtype(np.float32)})
plain("functional.winograd_fits", F.winograd_fits, lambda x, rng: {"weight": _WEIGHT, "stride": 1})
plain("functional.plan", F.plan,
      lambda x, rng: {"0": "adam", "1": x(5), "2": x(5), "3": x(5), "4": abs(x(5)), "lr": 0.1})  # fmt: skip


def _prepared(memory: Memory, rng: random.Random) -> Call:
    param, grad, m, v = (memory.array(np.ones(5)) for _ in range(4))
    step = F.plan("adam", param, grad, m, v, lr=0.1)
    return Call(step, {"lr": 0.5, "t": 3, "grad_scale": 2.0}, more=(param, m, v), state=lambda: bits([param, m, v]))


CALLS["functional.plan, a step"] = _prepared


# ---- Optimizers ---------------------------------------------------------------------------------------------


def _structure(memory: Memory, rng: random.Random, dtype: type, *, alone: bool = True) -> Any:
    """Parameters, or gradients of the same shapes."""
    arrays = [memory.array(np.arange(1.0, 1 + np.prod(s)).reshape(s).astype(dtype)) for s in ((3, 4), (5,), (2, 2))]
    w, b, v = arrays
    kind = rng.randrange(5 if alone else 4)
    return (arrays, dict(zip("wbv", arrays, strict=True)), [(w, b), [v]], {"w": {"x": w, "y": (b,)}, "b": v}, w)[kind]


def _like(memory: Memory, params: Any) -> Any:
    return checks.structured(params, map(memory.array, _arrays(params)))


def _arrays(params: Any) -> list[np.ndarray]:
    return list(checks.named("param", params).values())


class Written(fastopt.NumPyOptimizer):
    """Momentum, in NumPy."""

    momentum: Number = Number("[0, 1]", default=0.9)
    states = ("velocity",)

    def update(self, param: Any, grad: Any, state: Any, *, lr: float, momentum: float) -> None:
        state["velocity"] = momentum * state["velocity"] + grad
        param -= lr * state["velocity"]


#: Every optimizer, and classes with a step like theirs.
STEPPERS: dict[str, Callable[..., Any]] = {
    **{cls.__name__: cls for cls in OPTIMIZERS.values()},
    "Adafactor": fastopt.Adafactor,
    "Muon": fastopt.Muon,
    "MuonMatrices": fastopt.MuonMatrices,
    "Ranger": fastopt.Ranger,
    "NumPyOptimizer": Written,
}


def _keywords(cls: Any, rng: random.Random) -> dict[str, Any]:
    """Some keywords of an optimizer, with values that are right."""
    values: dict[str, Any] = {"clip_global_norm": 1.0, "clip_norm": 2.0, "skip_nonfinite": True, "clip_value": 3.0}
    every = cls.declared if issubclass(cls, fastopt.Optimizer) else {}
    declared = {name: each for name, each in every.items() if getattr(each, "init", False) and name != "lr"}
    values |= {name: cases.values_of(each)[0] for name, each in declared.items() if isinstance(each, Flag | Choice)}
    values |= {name: each.default for name, each in declared.items() if isinstance(each, Number)}
    return {name: value for name, value in values.items() if name in declared and rng.random() < 0.15}


def _parameters(name: str, memory: Memory, rng: random.Random) -> Any:
    params = _structure(memory, rng, rng.choice(REALS))
    if name == "MuonMatrices":
        return [a for a in _arrays(params) if a.ndim == 2]
    return params


def _made(name: str, memory: Memory, rng: random.Random) -> tuple[Any, Any]:
    """An optimizer that has taken a step or none, and its parameters."""
    params = _parameters(name, memory, rng)
    optimizer = STEPPERS[name](params, lr=0.1, **_keywords(STEPPERS[name], rng))
    ahead = getattr(optimizer, "look_ahead", lambda: None)
    if rng.random() < 0.5:
        ahead()
        optimizer.step(_like(Memory(), params))
    ahead()
    return optimizer, params


def _state_of(optimizer: Any, params: Any) -> Callable[[], Any]:
    return lambda: (bits(_arrays(params)), bits(optimizer.state_dict()))


def _construct(name: str) -> Maker:
    def make(memory: Memory, rng: random.Random) -> Call:
        params = _parameters(name, memory, rng)
        arguments = {"params": params, "lr": 0.1, **_keywords(STEPPERS[name], rng)}
        if rng.random() < 0.3 and isinstance(params, dict) and name not in ("Muon", "Ranger"):
            arguments["groups"] = [{"params": ["w"], "lr": 0.2}, {"params": "b*", "frozen": True}]
        return Call(STEPPERS[name], arguments)

    return make


def _step(name: str) -> Maker:
    def make(memory: Memory, rng: random.Random) -> Call:
        optimizer, params = _made(name, memory, rng)
        arguments = {"grads": _like(memory, params), "grad_scale": 0.5, "strict": rng.random() < 0.7}
        return Call(optimizer.step, arguments, more=_arrays(params), state=_state_of(optimizer, params))

    return make


def _updated(name: str) -> Maker:
    def make(memory: Memory, rng: random.Random) -> Call:
        optimizer, params = _made(name, memory, rng)
        arguments = {"params": _like(memory, params), "grads": _like(memory, params), "grad_scale": 0.5}
        return Call(optimizer.updated, arguments, state=_state_of(optimizer, params))

    return make


def _setting(name: str) -> Maker:
    def make(memory: Memory, rng: random.Random) -> Call:
        optimizer, params = _made(name, memory, rng)
        cls = type(optimizer)
        declared = cls.declared if issubclass(cls, fastopt.Optimizer) else {}
        key = rng.choice([name for name, each in declared.items() if isinstance(each, Hyper) and each.init] or ["lr"])
        return Call(lambda value: setattr(optimizer, key, value), {"value": getattr(optimizer, key)},
                    state=_state_of(optimizer, params))  # fmt: skip

    return make


def _loading(name: str) -> Maker:
    def make(memory: Memory, rng: random.Random) -> Call:
        optimizer, params = _made(name, memory, rng)
        return Call(optimizer.load_state_dict, {"0": optimizer.state_dict()}, state=_state_of(optimizer, params))

    return make


def _adding(memory: Memory, rng: random.Random) -> Call:
    params = _structure(memory, rng, np.float32, alone=False)
    optimizer = fastopt.Adam(params, lr=0.1)
    more = [memory.array(np.ones(3, np.float32))]
    return Call(optimizer.add_params, {"more": more if isinstance(params, list) else {"n": more[0]}, "lr": 0.3},
                state=_state_of(optimizer, params))  # fmt: skip


for _name in STEPPERS:
    CALLS[_name] = _construct(_name)
    CALLS[f"{_name}.step"] = _step(_name)
    CALLS[f"{_name}.updated"] = _updated(_name)
    CALLS[f"{_name}, a setting"] = _setting(_name)
    CALLS[f"{_name}.load_state_dict"] = _loading(_name)
CALLS["Optimizer.add_params"] = _adding


def _average(cls: Any, method: str) -> Maker:
    def make(memory: Memory, rng: random.Random) -> Call:
        params = _structure(memory, rng, rng.choice(REALS))
        if cls is fastopt.LookAhead:
            optimizer = fastopt.SGD(params, lr=0.1)
            arguments = {"optimizer": optimizer, "k": 2, "alpha": 0.5}
        else:
            arguments = {"params": params} | ({"decay": 0.9, "warmup": True} if cls is fastopt.EMA else {})
        if not method:
            return Call(cls, arguments)
        average = cls(**arguments)
        if method == "step":
            return Call(average.step, {"grads": _like(memory, params), "grad_scale": 0.5}, more=_arrays(params),
                        state=_state_of(average, params))  # fmt: skip
        return Call(average.load_state_dict, {"0": average.state_dict()}, state=_state_of(average, params))

    return make


for _cls in (fastopt.EMA, fastopt.SWA, fastopt.LookAhead):
    for _method in ("", "load_state_dict", *["step"] * (_cls is fastopt.LookAhead)):
        CALLS[".".join(filter(None, (_cls.__name__, _method)))] = _average(_cls, _method)


def _lbfgs(memory: Memory, rng: random.Random) -> Call:
    return Call(fastopt.LBFGS, {"params": _structure(memory, rng, np.float64), "max_iter": 3, "bounds": (-1.0, None)})


def _lbfgs_step(memory: Memory, rng: random.Random) -> Call:
    param = memory.array(np.ones(3))
    optimizer = fastopt.LBFGS(param, max_iter=2)

    def step(loss: Any, grads: Any) -> float:
        return optimizer.step(lambda: (loss, grads))

    return Call(step, {"loss": 1.0, "grads": memory.array(np.ones(3))}, more=(param,), state=lambda: bits(param))


CALLS |= {"LBFGS": _lbfgs, "LBFGS.step": _lbfgs_step}


# ---- Gradients and parameters -------------------------------------------------------------------------------


def _of_gradients(name: str, function: Callable[..., Any], written: Iterable[str] = ("grads",), **more: Any) -> None:
    first = next(iter(inspect.signature(function).parameters))

    def make(memory: Memory, rng: random.Random) -> Call:
        arrays = _structure(memory, rng, rng.choice(REALS), alone=function is not fastopt.flatten)
        return Call(function, {first: arrays} | more, written=written)

    CALLS[name] = make


for _function, _more in {
    gradients.add_noise: {"t": 3, "eta": 0.1, "gamma": 0.5, "seed": 1},
    gradients.all_finite: {},
    gradients.centralize: {},
    gradients.clip_by_global_norm: {"limit": 1.0, "eps": 1e-6},
    gradients.clip_by_norm: {"limit": 1.0, "eps": 1e-6},
    gradients.clip_by_value: {"limit": 1.0},
    gradients.global_norm: {},
    gradients.Accumulator: {},
}.items():
    _of_gradients(f"gradients.{_function.__name__}", _function, **_more)
_of_gradients("flatten", fastopt.flatten, ())
_of_gradients("penalty", fastopt.penalty, (), weight_decay=0.1, l1=0.2)
plain("gradients.square_sum", gradients.square_sum, lambda x, rng: {"x": x(5, 6)})
plain("gradients.square_sums", gradients.square_sums, lambda x, rng: {"x": x(5, 6)})


def _accumulate(memory: Memory, rng: random.Random) -> Call:
    params = _structure(memory, rng, np.float32)
    accumulator = gradients.Accumulator(params)
    return Call(accumulator.add, {"grads": _like(memory, params), "weight": 0.5},
                state=lambda: (accumulator.count, bits(accumulator.grads)))  # fmt: skip


CALLS["gradients.Accumulator.add"] = _accumulate
plain("elastic_net", fastopt.elastic_net, lambda x, rng: {"strength": 0.1, "l2": 0.2})
plain("vectors", fastopt.vectors, lambda x, rng: {"name": "w", "param": x(3, 4)})
plain("matrices.orthogonalize", matrices.orthogonalize, lambda x, rng: {"x": x(3, 4), "steps": 5, "eps": 1e-7})
plain("matrices.muon", matrices.muon,
      lambda x, rng: {"param": x(3, 4), "grad": x(3, 4), "momentum_avg": x(3, 4), "lr": 0.1, "steps": 2},
      written=("param", "momentum_avg"))  # fmt: skip


def _adafactor(memory: Memory, rng: random.Random) -> Call:
    param, grad = (memory.array(np.ones((3, 4), np.float32)) for _ in range(2))
    state = map_arrays(memory.array, dict(fastopt.Adafactor(param.copy()).state["param"]))
    return Call(matrices.adafactor, {"param": param, "grad": grad, "state": state, "t": 1, "lr": 0.1},
                written=("param", "state"), state=lambda: bits(state))  # fmt: skip


CALLS["matrices.adafactor"] = _adafactor


# ---- Settings of the library --------------------------------------------------------------------------------

plain("isa", fastopt.isa, lambda x, rng: {})
plain("isas", fastopt.isas, lambda x, rng: {})
plain("get_num_threads", threads.get_num_threads, lambda x, rng: {})
plain("mpi.world", mpi.world, lambda x, rng: {})
plain("set_num_threads", threads.set_num_threads, lambda x, rng: {"n": 2})


# ---- Schedules ----------------------------------------------------------------------------------------------

_SCHEDULED: dict[str, dict[str, Any]] = {
    "constant": {"value": 0.1},
    "cosine": {"peak": 0.1, "steps": 100, "floor": 0.01},
    "cosine_restarts": {"peak": 0.1, "steps": 10, "t_mul": 2.0, "m_mul": 0.5},
    "cyclical": {"floor": 0.1, "peak": 1.0, "steps_up": 10, "mode": "exp_range", "gamma": 0.9},
    "exponential": {"peak": 0.1, "gamma": 0.9, "steps": 3},
    "inverse_sqrt": {"peak": 0.1, "warmup_steps": 10},
    "inverse_time": {"peak": 0.1, "decay": 0.1, "staircase": True},
    "linear": {"peak": 0.1, "steps": 10},
    "multi_step": {"peak": 0.1, "milestones": (3, 7)},
    "one_cycle": {"peak": 0.1, "steps": 100, "three_phase": True},
    "one_cycle_momentum": {"steps": 100},
    "piecewise_constant": {"boundaries": (3, 7), "values": (0.1, 0.2, 0.3)},
    "polynomial": {"peak": 0.1, "steps": 10, "power": 2.0, "cycle": True},
    "step_decay": {"peak": 0.1, "steps": 10},
    "warmup": {"steps": 10, "then": schedules.bind(schedules.cosine, peak=0.1, steps=100)},
}
for _name, _options in _SCHEDULED.items():
    _function = schedules.SCHEDULES[_name]
    plain(f"schedules.{_name}", _function, lambda x, rng, o=_options: {"0": rng.choice((0, 5, 1000)), **o})
    plain(f"schedules.bind {_name}", schedules.bind, lambda x, rng, f=_function, o=_options: {"0": f, **o})
_SCHEDULE = schedules.bind(schedules.warmup, **_SCHEDULED["warmup"])
plain("schedules.Schedule", _SCHEDULE, lambda x, rng: {"0": 5})
plain("schedules.Schedule.from_dict", schedules.Schedule.from_dict, lambda x, rng: {"values": _SCHEDULE.as_dict()})
plain("schedules.linear_scaling", schedules.linear_scaling,
      lambda x, rng: {"rate": 0.1, "batch_size": 64, "base_batch_size": 32, "power": 0.5})  # fmt: skip
_PLATEAU = {"lr": 0.1, "mode": "max", "factor": 0.5, "patience": 1, "threshold_mode": "abs", "cooldown": 1}
plain("schedules.ReduceOnPlateau", schedules.ReduceOnPlateau, lambda x, rng: dict(_PLATEAU))


def _plateau(method: str) -> Maker:
    def make(memory: Memory, rng: random.Random) -> Call:
        plateau = schedules.ReduceOnPlateau(**_PLATEAU)
        argument = 0.5 if method == "update" else plateau.state_dict()
        return Call(getattr(plateau, method), {"0": argument}, state=lambda: repr(plateau.state_dict()))

    return make


for _method in ("update", "load_state_dict"):
    CALLS[f"schedules.ReduceOnPlateau.{_method}"] = _plateau(_method)


# ---- Files --------------------------------------------------------------------------------------------------


def _file(name: str) -> Maker:
    def make(memory: Memory, rng: random.Random) -> Call:
        optimizer, params = _made("Adam", memory, rng)
        path = f"state{rng.choice(('.npz', '.safetensors', ''))}"
        if name != "save":
            with contextlib.suppress(ImportError, ValueError):
                fastopt.save(optimizer, path)
        if name == "describe_file":
            return Call(fastopt.describe_file, {"path": path}, state=_state_of(optimizer, params))
        return Call(getattr(fastopt, name), {"optimizer": optimizer, "path": path}, state=_state_of(optimizer, params))

    return make


def _without_torch(optimizer: Any) -> Any:
    return fastopt.to_torch(optimizer, tensors=False)


def _torch(name: str) -> Maker:
    def make(memory: Memory, rng: random.Random) -> Call:
        optimizer, params = _made(rng.choice(("SGD", "Momentum", "Adagrad")), memory, rng)
        with contextlib.suppress(ValueError):
            state = fastopt.to_torch(optimizer, tensors=False)
            function = {"load_torch": fastopt.load_torch, "to_torch": _without_torch}[name]
            more = {"state_dict": state, "t": None} if name == "load_torch" else {}
            return Call(function, {"optimizer": optimizer} | more, state=_state_of(optimizer, params))
        return make(memory, rng)  # its options are none of PyTorch's

    return make


CALLS |= {name: _file(name) for name in ("save", "load", "describe_file")}
CALLS |= {name: _torch(name) for name in ("to_torch", "load_torch")}
plain("data.digits", data.digits, lambda x, rng: {})
plain("data.load", data.load, lambda x, rng: {"source": rng.choice((".", "none"))})
plain("data.read_idx", data.read_idx, lambda x, rng: {"path": rng.choice((".", "none", "state.npz"))})
plain("data.read_cifar10", data.read_cifar10, lambda x, rng: {"path": rng.choice((".", "none", "state.npz"))})
plain("data.read_cifar100", data.read_cifar100,
      lambda x, rng: {"path": rng.choice((".", "none", "state.npz")), "labels": "coarse"})  # fmt: skip
plain("data.read_cifar_archive", data.read_cifar_archive, lambda x, rng: {"path": rng.choice((".", "none"))})
plain("data.read_npz", data.read_npz, lambda x, rng: {"path": rng.choice((".", "none", "state.npz"))})
plain("data.read_csv", data.read_csv,
      lambda x, rng: {"path": rng.choice((".", "none", "log.csv")), "target": -1, "delimiter": ",", "header": True,
                      "missing": 0.0})  # fmt: skip
plain(
    "data.ImageFolder",
    data.ImageFolder,
    lambda x, rng: {"path": rng.choice((".", "none")), "size": (4, 4), "mode": "L"},
)
plain("data.split", data.split,
      lambda x, rng: {"x": x(60, 2), "y": np.arange(60) % 3, "train": 0.5, "validation": 0.2, "test": 0.2,
                      "stratify": True, "seed": 1})  # fmt: skip
plain("data.rng_of", data.rng_of, lambda x, rng: {"seed": 1, "epoch": 2, "batch": 3})


def _unit(x: Array) -> Array:
    """Images, in the memory that they have, with values in [0, 1]."""
    np.minimum(np.abs(x, out=x), 1, out=x)
    return x


def _batches(**given: Any) -> None:
    """Go through an epoch of a loader."""
    with data.Loader(**given).epoch(0) as batches:
        for _ in batches:
            pass


plain("data.Loader", _batches,
      lambda x, rng: {"source": (x(30, 4), np.arange(30) % 3, abs(x(30))), "batch_size": 8, "transform": None,
                      "workers": rng.choice((0, 2)), "shuffle": True, "seed": 1, "ahead": 3})  # fmt: skip


def _augmentation(cls: type[Any]) -> Maker:
    """A batch through an augmentation of the given options."""
    needed = {
        "Compose": {"augmentations": [augment.HorizontalFlip(), augment.Noise()]},
        "OneOf": {"augmentations": [augment.HorizontalFlip(), augment.Noise()], "weights": (1, 2)},
        "Each": {"function": lambda image, rng: image[::-1]},
        "Cutout": {"size": (2, 3)},
        "RandomCrop": {"padding": (1, 2), "size": 4},
        "Affine": {"translate": 0.1, "rotate": (0, 10), "scale": 1.1, "shear": 5.0, "stretch": (0.9, 1.2)},
        "ColorJitter": {"brightness": 0.1, "contrast": (0.8, 1.2), "saturation": 0.1, "hue": 0.1},
    }.get(cls.__name__, {})
    defaults = {p.name: p.default for p in inspect.signature(cls).parameters.values() if p.default is not p.empty}
    options = defaults | needed | ({"classes": 3} if "classes" in defaults else {})

    def use(x: Any, y: Any, rng: Any, **given: Any) -> None:
        cls(**given)(x, y, rng)

    def make(memory: Memory, rng: random.Random) -> Call:
        draw = np.random.default_rng(rng.randrange(2**32))
        x = memory.array(draw.random((4, 6, 5, 3)).astype(rng.choice(REALS)))
        if rng.random() < 0.3:
            x = memory.array((255 * x).astype(np.uint8))
        return Call(use, {"x": x, "y": memory.array(np.arange(4) % 3), "rng": draw, **options})

    return make


for _name in augment.__all__:
    if issubclass(type(getattr(augment, _name)), type) and issubclass(getattr(augment, _name), augment.Augmentation):
        CALLS[f"augment.{_name}"] = _augmentation(getattr(augment, _name))
del CALLS["augment.Augmentation"]  # the base
plain(
    "augment.ten_crop", lambda size, x: list(augment.ten_crop(size)(x)), lambda x, rng: {"size": 3, "x": x(2, 5, 4, 3)}
)
plain("augment.flips", lambda vertical, x: list(augment.flips(vertical)(x)),
      lambda x, rng: {"vertical": True, "x": x(2, 5, 4, 3)})  # fmt: skip
plain("augment.scales", lambda factors, x: list(augment.scales(factors)(x)),
      lambda x, rng: {"factors": (0.5, 1.5), "x": x(2, 5, 4, 3)})  # fmt: skip
plain("augment.Views", lambda text, functions, x: list(augment.Views(text, functions)(x)),
      lambda x, rng: {"text": "views", "functions": [np.negative], "x": x(2, 5, 4, 3)})  # fmt: skip
plain("augment.average", augment.average,
      lambda x, rng: {"predict": lambda x: x[:, 0, 0], "x": x(2, 5, 4, 3), "views": augment.flips()})  # fmt: skip
plain("augment.preview", augment.preview,
      lambda x, rng: {"x": _unit(x(1, 5, 4, 3)), "augmentation": augment.Noise(), "y": np.arange(1), "draws": 1,
                      "names": ["a"], "seed": 1, "path": None})  # fmt: skip
_DESCENT = {"optimizer": "adam", "surface": next(iter(landscape.SURFACES)), "lr": 0.1, "steps": 3, "seed": 1}
plain("landscape.descend", landscape.descend, lambda x, rng: dict(_DESCENT))
plain("landscape.best", landscape.best,
      lambda x, rng: {key: value for key, value in _DESCENT.items() if key != "lr"} | {"rates": (0.1,)})  # fmt: skip
plain("landscape.surface", landscape.surface,
      lambda x, rng: {"function": lambda x, y: x**2 + y**2, "start": (1.0, 1.0), "limits": (-2.0, 2.0, -2.0, 2.0),
                      "steps": 3, "optimizers": ("sgd",), "noise": 0.0})  # fmt: skip
plain("landscape.expression", landscape.expression, lambda x, rng: {"text": "x**2 + sin(y)"})


# ---- The trainer --------------------------------------------------------------------------------------------

_VECTORS, _SQUARES = (6,), (6, 6, 4)
#: Layers with the arguments that they need, and the shape of their inputs.
LAYERS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "Conv1D": ({"filters": 16}, (6, 4)),
    "Conv2D": ({"filters": 16, "size": 3}, _SQUARES),
    "Conv2DTranspose": ({"filters": 4}, _SQUARES),
    "Reshape": ({"shape": (3, -1)}, _VECTORS),
    "DecorrelatedBatchNorm": ({"size": 3}, _VECTORS),
    "Dense": ({"units": 3}, _VECTORS),
    "Dropout": ({"p": 0.5}, _VECTORS),
    "Embedding": ({"entries": 5, "width": 3}, (4,)),
    "GroupNorm": ({"groups": 2}, _SQUARES),
    "Residual": ({"body": nn.Dense(6)}, _VECTORS),
    "SpatialDropout": ({"p": 0.5}, _SQUARES),
    "VanillaDropout": ({"p": 0.5}, _VECTORS),
    "WeightNorm": ({"layer": nn.Dense(3)}, _VECTORS),
    **{
        name: ({}, _SQUARES)
        for name in (
            "AveragePool2D",
            "Flatten",
            "GlobalAveragePool2D",
            "GlobalMaxPool2D",
            "InstanceNorm",
            "MaxPool2D",
            "ZeroPadding2D",
        )
    },
}


def _passes(layer: Layer, shape: tuple[int, ...], dtype: Any, training: bool) -> None:
    """Build a layer, and go through it and back."""
    layer.build(shape, np.random.default_rng(0), dtype)
    x = np.ones((2, *shape), dtype)
    y, cache = layer.forward(x % 1 if isinstance(layer, nn.Embedding) else x, training=training)
    if training:
        layer.backward(np.ones_like(y), cache)


def _layer(cls: type[Layer]) -> Maker:
    def make(memory: Memory, rng: random.Random) -> Call:
        arguments, shape = LAYERS.get(cls.__name__, ({}, _VECTORS))

        def use(**given: Any) -> None:
            _passes(cls(**given), shape, np.dtype(np.float32), True)

        call = Call(use, {key: fresh(value) for key, value in arguments.items()})
        defaults = {p.name: p.default for p in inspect.signature(cls).parameters.values() if p.default is not p.empty}
        call.arguments |= {key: fresh(value) for key, value in defaults.items()}
        return call

    return make


def fresh(value: Any) -> Any:
    """The same, or where it is a layer a new one, which is not built."""
    return type(value)(**value.config()) if isinstance(value, Layer) else value


def _constructor(cls: type[Any], **needed: Any) -> Maker:
    def make(memory: Memory, rng: random.Random) -> Call:
        defaults = {p.name: p.default for p in inspect.signature(cls).parameters.values() if p.default is not p.empty}
        return Call(cls, defaults | needed)

    return make


_OF_OTHERS = ("Composite", "Sequential")
for _cls in Layer.classes.values():
    if _cls.__module__.startswith("fastopt.") and _cls.__name__ in nn.__all__ and _cls.__name__ not in _OF_OTHERS:
        CALLS[f"nn.{_cls.__name__}"] = _layer(_cls)
_NEEDED: dict[str, dict[str, Any]] = {
    "CSVLogger": {"path": "log.csv"},
    "LearningRateScheduler": {"schedule": lambda epoch, lr: 0.1},
    "ModelCheckpoint": {"path": "checkpoint.npz"},
    "Snapshots": {"cycles": 3},
    "TensorBoard": {"folder": "board"},
    "WeightAverage": {"average": fastopt.EMA([np.ones(3)])},
}
_FEW = [nn.CSVLogger, nn.EarlyStopping, nn.LearningRateScheduler, nn.Lines, nn.ModelCheckpoint, nn.ReduceLROnPlateau]
_FEW += [nn.TensorBoard, nn.Hinge, nn.Huber, nn.L1, nn.SigmoidCrossEntropy, nn.SoftmaxCrossEntropy, nn.SquaredError]
_FEW += [nn.Snapshots, nn.WeightAverage]
_FEW += [cls for name, cls in Initializer.classes.items() if cls.__module__.startswith("fastopt.")]
for _cls in _FEW:
    CALLS[f"nn.{_cls.__name__}"] = _constructor(_cls, **_NEEDED.get(_cls.__name__, {}))


def _loss(cls: type[Any]) -> Maker:
    def make(memory: Memory, rng: random.Random) -> Call:
        output = memory.array(np.ones((4, 3), rng.choice(REALS)))
        integers = cls in (nn.SoftmaxCrossEntropy, nn.Hinge)
        targets = memory.array(np.arange(4) % 3 if integers else np.ones((4, 3)))
        return Call(cls(), {"output": output, "targets": targets, "sample_weight": memory.array(np.ones(4))})

    return make


for _cls in (nn.Hinge, nn.Huber, nn.L1, nn.SigmoidCrossEntropy, nn.SoftmaxCrossEntropy, nn.SquaredError):
    CALLS[f"nn.{_cls.__name__}, called"] = _loss(_cls)
CALLS["nn.softmax_cross_entropy"] = CALLS["functional.softmax_cross_entropy"]


def _model() -> nn.Sequential:
    return nn.Sequential([nn.Dense(5, activation="relu"), nn.Dropout(0.5), nn.BatchNorm(), nn.Dense(3)], (6,), seed=1)


def _sequential(memory: Memory, rng: random.Random) -> Call:
    layers = [nn.Dense(5), nn.ReLU(), nn.Dense(3)]
    return Call(nn.Sequential, {"layers": layers, "input_shape": (6,), "seed": 1, "dtype": np.float32})


def _samples(memory: Memory) -> dict[str, Any]:
    return {"x": memory.array(np.ones((8, 6), np.float32)), "y": memory.array(np.arange(8) % 3)}


def _of_model(method: str) -> Maker:
    def make(memory: Memory, rng: random.Random) -> Call:
        model, arguments = _model(), _samples(memory)
        if method == "features":
            arguments = {"layer": -2}
        elif method == "with_head":
            arguments = {"layers": [nn.Dense(2)], "drop": 1, "seed": 3}
        elif method == "adapt":
            model = nn.Sequential([nn.Standardize(), nn.Dense(3)], (6,))
            arguments = {"x": arguments["x"]}
        elif method == "fit":
            weights = {"sample_weight": memory.array(np.ones(8)), "class_weight": [1.0, 2.0, 3.0]}
            arguments |= {"epochs": 1, "batch_size": 4, "optimizer": "adam", "seed": 3, "accumulate": 1} | (
                weights if rng.random() < 0.3 else {}
            )
            if rng.random() < 0.3:
                arguments["validation_data"] = tuple(_samples(memory).values())
        elif method == "evaluate":
            arguments |= {"batch_size": 4}
        elif method == "predict":
            arguments = {"x": arguments["x"], "batch_size": 4, "views": None}
        elif method == "compile":
            arguments = {"batch_size": 4, "loss": "softmax_cross_entropy", "y": arguments["y"]}
        elif method == "trainer":
            arguments = {"optimizer": "adam", "loss": "softmax_cross_entropy", "lr": 0.1, "on_nonfinite": "stop"}
        elif method == "copy":
            arguments = {"dtype": np.float64}
        elif method == "save":
            arguments = {"path": "model.npz"}
        return Call(getattr(model, method), arguments, state=lambda: bits([model.params, model.state]))

    return make


def _fit_state(memory: Memory, rng: random.Random) -> Call:
    """Of `fit`, whose epochs before an error may stay: no more than arguments must be what they were."""
    call = _of_model("fit")(memory, rng)
    call.state = lambda: None
    return call


def _trainer(memory: Memory, rng: random.Random) -> Call:
    model, weight = _model(), memory.array(np.ones(8))
    step = model.trainer("adam")
    return Call(step, _samples(memory) | {"sample_weight": weight}, state=lambda: bits([model.params, model.state]))


def _load_model(memory: Memory, rng: random.Random) -> Call:
    _model().save("model.npz")
    return Call(nn.load, {"path": rng.choice(("model.npz", "none", "."))})


_METHODS = ("evaluate", "predict", "compile", "trainer", "copy", "save", "adapt", "features", "with_head")
CALLS |= {"nn.Sequential": _sequential, "nn.Sequential.fit": _fit_state, "nn.load": _load_model}
CALLS |= {f"nn.Sequential.{name}": _of_model(name) for name in _METHODS}
CALLS["nn.Sequential.trainer, called"] = _trainer
for _name in ("accuracy", "confusion_matrix", "top_k"):
    plain(
        f"nn.metrics.{_name}",
        getattr(nn.metrics, _name),
        lambda x, rng, name=_name: {"y": np.arange(8) % 3, "scores": x(8, 5), **({"k": 2} if name == "top_k" else {})},
    )
plain("nn.Shuffled", nn.Shuffled, lambda x, rng: {"n": 20, "batch_size": 4})
plain("nn.InOrder", nn.InOrder, lambda x, rng: {"n": 20, "batch_size": 4})
plain("nn.Stratified", nn.Stratified, lambda x, rng: {"y": np.arange(20) % 3, "batch_size": 4})


def _fit_many(memory: Memory, rng: random.Random) -> Call:
    arguments = {"models": [_model(), _model()], **_samples(memory)}
    arguments |= {"optimizer": "adam", "samples": [[0, 1, 2], [3, 4, 5]], "each": [{}, {"seed": 3}], "threads": 2}
    return Call(nn.fit_many, arguments | {"epochs": 1, "batch_size": 4, "on_error": "keep"})


def _ensemble(method: str) -> Maker:
    def make(memory: Memory, rng: random.Random) -> Call:
        models = [_model(), _model()]
        if method == "made":
            return Call(nn.Ensemble, {"models": models, "loss": nn.SoftmaxCrossEntropy()})
        made, arguments = nn.Ensemble(models), _samples(memory) | {"batch_size": 4}
        if method == "predict":
            del arguments["y"]
        elif method == "save":
            arguments = {"path": "ensemble.npz"}
        elif method == "load":
            made.save("ensemble.npz")
            arguments = {"path": rng.choice(("ensemble.npz", "none", "."))}
        return Call(getattr(made, method), arguments)

    return make


CALLS |= {"nn.fit_many": _fit_many, "nn.Ensemble": _ensemble("made")}
CALLS |= {f"nn.Ensemble.{name}": _ensemble(name) for name in ("evaluate", "predict", "save", "load")}
plain("nn.load_torch", nn.load_torch,
      lambda x, rng: {"model": _model(), "state": nn.to_torch_state(_model()), "names": {"0": "0"}})  # fmt: skip
plain("nn.to_torch_state", nn.to_torch_state,
      lambda x, rng: {"model": _model(), "like": nn.to_torch_state(_model()), "names": {"0": "0"}})  # fmt: skip


def _keras(name: str) -> Maker:
    def make(memory: Memory, rng: random.Random) -> Call:
        with contextlib.suppress(ImportError):
            nn.save_keras(_model(), "model.weights.h5")
        arguments = {"model": _model(), "path": rng.choice(("model.weights.h5", "none", "."))}
        if name == "save_keras":
            arguments |= {"path": "other.weights.h5", "like": "model.weights.h5"}
        return Call(getattr(nn, name), arguments | {"names": {"0": "dense"}})

    return make


CALLS |= {f"nn.{name}": _keras(name) for name in ("load_keras", "save_keras")}
plain("nn.groups_by_depth", nn.groups_by_depth, lambda x, rng: {"model": _model(), "factor": 0.5})
plain("nn.preprocessing_picture", nn.preprocessing_picture,
      lambda x, rng: {"x": x(8, 2), "path": None})  # fmt: skip


# ---- Pictures of scores and searches --------------------------------------------------------------------------

_LABELS, _CURVES = (
    np.arange(6) % 2,
    {"train_scores": [0.9, 0.8], "test_scores": [0.5, 0.6], "score": "f1", "path": None},
)
for _name in ("roc", "precision_recall"):
    plain(f"plots.{_name}", getattr(plots, _name),
          lambda x, rng: {"y": _LABELS, "scores": x(6, 2), "names": ["a", "b"], "path": None})  # fmt: skip
plain("plots.confusion", plots.confusion,
      lambda x, rng: {"y": _LABELS, "predicted": _LABELS[::-1], "names": ["a", "b"], "path": None})  # fmt: skip
plain("plots.learning_curve", plots.learning_curve, lambda x, rng: {"sizes": [10, 100]} | _CURVES)
plain("plots.validation_curve", plots.validation_curve,
      lambda x, rng: {"values": [0.1, 1.0], "parameter": "lr"} | _CURVES)  # fmt: skip
plain("plots.histories", plots.histories,
      lambda x, rng: {"runs": {"a": {"loss": [1.0, 0.5]}}, "metrics": ("loss",), "path": None})  # fmt: skip
plain("plots.trials", plots.trials,
      lambda x, rng: {"results": {"params": [{"lr": 0.1}, {"lr": 0.2}], "mean_test_score": [0.1, 0.2]},
                      "kind": rng.choice(("parallel", "scatter")), "score": "mean_test_score",
                      "path": None})  # fmt: skip


# ---- The bridge: private, and yet it refuses -----------------------------------------------------------------

plain("_kernels.address", _kernels.address, lambda x, rng: {"0": x(3)})
plain("_kernels.all_below", _kernels.all_below, lambda x, rng: {"0": np.arange(5), "1": 7})
plain("_kernels.use_isa", _kernels.use_isa, lambda x, rng: {"0": _kernels.isa()})
plain("_kernels.Memoised", _kernels.Memoised(lambda *values: 1), lambda x, rng: {"0": 1, "1": (2, 3), "2": "x"})


def _kernel(memory: Memory, rng: random.Random) -> Call:
    """A kernel by itself."""
    name = rng.choice(("random_bits", "stream", "relu_forward"))
    given = _of_case(cases.LAYERS[name])(memory, rng).arguments
    values = {
        "random_bits": lambda: [given["bits"], len(given["bits"]), 1, 2, 3],
        "stream": lambda: [*(given[key] for key in "xabcd"), 0.5],
        "relu_forward": lambda: [given["x"], given.get("out")],
    }[name]()
    written = {"random_bits": "0", "stream": "1234", "relu_forward": "1"}[name]
    return Call(fastopt.kernel.kernel(name), {str(i): value for i, value in enumerate(values)}, written=written)


def _layer_of_the_bridge(memory: Memory, rng: random.Random) -> Call:
    """A `Layer` as `fastopt.kernel.kernel` makes one."""
    made: list[Any] = []
    with _patched(_kernels, "Layer", lambda *arguments: made.extend(arguments)):
        fastopt.kernel.kernel(rng.choice(("relu_forward", "dense_forward", "max_pool_forward", "batch_norm_forward")))
    return Call(_kernels.Layer, {str(i): value for i, value in enumerate(made)})


@contextlib.contextmanager
def _patched(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _plan_of_the_bridge(memory: Memory, rng: random.Random) -> Call:
    params = [memory.array(np.ones(3)), memory.array(np.ones((2, 2)))]
    states = [(memory.array(np.ones_like(param)), memory.array(np.ones_like(param))) for param in params]
    hyper = [0.0, 1.0, *[0.5] * (len(_kernels.STEPS["adam"][1]) - 2)]
    return Call(_kernels.Plan, {"0": "adam", "1": params, "2": states, "3": [hyper, hyper], "4": [0, 1]})


def _of_plan(method: str) -> Maker:
    def make(memory: Memory, rng: random.Random) -> Call:
        call = _plan_of_the_bridge(memory, rng)
        plan = call(call.arguments)
        params, states = call.arguments["1"], call.arguments["2"]
        grads = [memory.array(param) for param in params]
        arguments = {
            "step": {"0": grads},
            "check": {"0": grads},
            "squares": {"0": grads},
            "scale_each": {"0": [0.5, 2.0]},
            "get_hyper": {"0": 3, "1": 1},
            "set_hyper": {"0": 3, "1": 0.5, "2": 1},
        }[method]
        arrays = [*params, *(a for each in states for a in each)]
        return Call(getattr(plan, method), arguments, more=arrays, state=lambda: bits(arrays))

    return make


CALLS |= {
    "_kernels.Layer": _layer_of_the_bridge,
    "_kernels.Layer, called": _kernel,
    "_kernels.Plan": _plan_of_the_bridge,
}
CALLS |= {f"_kernels.Plan.{name}": _of_plan(name)
          for name in ("step", "check", "squares", "scale_each", "get_hyper", "set_hyper")}  # fmt: skip
