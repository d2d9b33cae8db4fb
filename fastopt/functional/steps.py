"""Optimizer steps as plain functions, derived from the classes of `fastopt.optimizers`; prepared steps."""

from __future__ import annotations

import functools
import inspect
import linecache
import operator
from typing import TYPE_CHECKING, Any, Protocol, overload

from fastopt import _kernels, checks
from fastopt.checks import Array
from fastopt.optimizer import REQUIRED, Looks, Optimizer, check_looks, looks_of
from fastopt.optimizers import OPTIMIZERS

__all__ = [*OPTIMIZERS, "plan"]


class Step(Protocol):
    """An optimizer step, in place or to `out`: see the class of the same name for its keywords."""

    @overload
    def __call__(self, param: Array, grad: Array, *state: Array, out: None = None, **hyper: Any) -> None: ...
    @overload
    def __call__(self, param: Array, grad: Array, *state: Array, out: Array, **hyper: Any) -> Array: ...


def _step(name: str, optimizer: type[Optimizer]) -> Step:
    """The functional form of an optimizer, with the signature that follows from the class."""
    states = optimizer.state_names()
    defaults = dict.fromkeys(optimizer.computed, REQUIRED) | optimizer.keywords()
    hyper = list(defaults)

    @_kernels.Memoised
    def encode(*values: Any) -> tuple[float, ...]:
        return optimizer.encode(dict(zip(hyper, values, strict=True)))

    def run(param: Array, grad: Array, state: tuple[Array, ...], t: int, grad_scale: float, *values: Any) -> None:
        checks.array("param", param, writable=True)
        if optimizer.counts_steps:
            t = _step_number(t)
        if not (type(grad_scale) is float and grad_scale == 1.0):
            grad_scale = checks.number("grad_scale", grad_scale)
        encoded = encode(*values)
        try:
            _kernels.Plan(optimizer.kernel, param, [state], [(t - 1, 1.0, *encoded)]).step(grad, grad_scale=grad_scale)
        except _kernels.Misfit:
            _explain(states, param, grad, state)
            raise

    def run_to(
        out: Array, param: Array, grad: Array, state: tuple[Array, ...], t: int, grad_scale: float, *values: Any
    ) -> Array:
        checks.array("param", param)
        checks.array("out", out, dtype=param.dtype, shape=param.shape, writable=True)
        encoded = encode(*values)
        t = _step_number(t) if optimizer.counts_steps else t
        scale = checks.number("grad_scale", grad_scale)
        try:
            step = _kernels.Plan(optimizer.kernel, out, [state], [(t - 1, 1.0, *encoded)])
            step.check(grad)
        except _kernels.Misfit:
            _explain(states, out, grad, state, "out")
            raise
        if _kernels.address(out) != _kernels.address(param):
            checks.apart({"out": out, "param": param})
        checks.apart({"param": param, **dict(zip(states, state, strict=True))})
        _kernels.uninterrupted([(operator.setitem, (out, ..., param)), (step.advance, (grad, scale, [1.0], [], t - 1))])
        return out

    # As dataclasses do: the text of a function is the only way to a signature that costs nothing to call.
    arrays = ", ".join(["param", "grad", *states])
    keywords = ["t"] if optimizer.counts_steps else []
    keywords += [key if default is REQUIRED else f"{key}=defaults[{key!r}]" for key, default in defaults.items()]
    packed = f"({''.join(state + ', ' for state in states)})"
    given = ", ".join(["param", "grad", packed, "t" if optimizer.counts_steps else "2", "grad_scale", *hyper])
    text = (
        f"def {name}({arrays}, *, {', '.join(keywords)}, grad_scale=1.0, out=None):\n"
        f"    if out is not None:\n        return run_to(out, {given})\n"
        f"    run({given})\n"
    )
    filename = f"<fastopt.functional.{name}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    namespace = {"run": run, "run_to": run_to, "defaults": defaults}
    exec(compile(text, filename, "exec"), namespace)
    function: Any = namespace[name]
    function.__module__ = __name__
    function.__doc__ = _step_doc(optimizer, states)
    return function


def plan(name: str, param: Array, grad: Array, *state: Array, **hyper: Any) -> _kernels.PreparedStep:
    """Prepare a step of the functional form on arrays of your own: it then costs no more than that of a class.

    Parameters
    ----------
    name : str
        Of a step in this module, such as ``"adam"``.
    param, grad, *state : ndarray
        Its arrays, in its order. They stay bound: each call reads and writes these very arrays.
    **hyper
        Its keywords, those without a default included, but for `t`.

    Returns
    -------
    step : callable
        ``step(**changes)`` takes a step. Each keyword (one of the step's) holds from then on; `t`, which begins at 1,
        is one more than the last where it is not given.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> w, g, m, v = np.ones((4, 3))
    >>> m[:] = v[:] = 0
    >>> step = plan("adam", w, g, m, v, lr=0.1)
    >>> for _ in range(10):
    ...     g[:] = 2 * w                   # in place: the arrays are bound
    ...     step()
    >>> step(t=1, lr=0.01)
    """
    optimizer = OPTIMIZERS[checks.choice("name", name, tuple(OPTIMIZERS))]
    states = optimizer.state_names()
    if len(state) != len(states):
        raise TypeError(f"state must be {len(states)} arrays ({', '.join(states)}) for {name}, got {len(state)}")
    grad_scale = hyper.pop("grad_scale", 1.0)
    allowed = [*optimizer.computed, *optimizer.keywords()]
    values = {key: value for key, value in optimizer.keywords().items() if value is not REQUIRED} | hyper
    missing = [key for key in allowed if key not in values]
    unknown = [key for key in values if key not in allowed]
    if missing or unknown:
        problem = f"lacks the keyword {missing[0]}" if missing else f"has no keyword {unknown[0]}"
        raise TypeError(f"{name} {problem}; it takes {', '.join(allowed)}, grad_scale")
    scale = functools.partial(checks.number, "grad_scale")
    declared = {key: getattr(optimizer, key) for key in values}
    encoders: dict[str, Any] = {key: (optimizer._place[key], d.kind, d.encode) for key, d in declared.items()}
    encoders |= {"grad_scale": (1, float, scale), **({"t": (0, int, _step_number)} if optimizer.counts_steps else {})}
    taken = 0.0 if optimizer.counts_steps else 1.0  # as in the function, no step is the first where none is counted
    checks.array("param", param, writable=True)
    row = (taken, scale(grad_scale), *optimizer.encode(values))
    looks: list[Any] = []  # filled when all arrays are known to be some
    explain = functools.partial(_changed, looks, states, param, grad, state)
    try:
        bound = _kernels.Plan(optimizer.kernel, param, [state], [row], None, explain)
        looks += looks_of({"param": param, **dict(zip(states, state, strict=True))})
        return _kernels.PreparedStep(bound, grad, encoders)
    except _kernels.Misfit:
        _explain(states, param, grad, state)
        raise


def _step_number(t: int) -> int:
    return checks.integer("t", t, 1, 2**53)


def _explain(
    states: tuple[str, ...], param: Array, grad: Array, state: tuple[Array, ...], label: str = "param"
) -> None:
    """Say which array of a step does not fit."""
    named = dict(zip(states, state, strict=True))
    checks.array(label, param, writable=True)
    for key, array in named.items():
        checks.array(key, array, dtype=param.dtype, shape=param.shape, writable=True)
    checks.apart({label: param, **named})
    checks.gradients(param, grad, {label: param, **named})


def _changed(
    looks: Looks, states: tuple[str, ...], param: Array, grad: Array, state: tuple[Array, ...],
    plan: _kernels.Plan, grads: Any, grad_scale: Any,
) -> None:  # fmt: skip
    """Say how the arrays of a prepared step have changed since, or why they never fitted."""
    check_looks(looks)
    _explain(states, param, grad, state)


def _step_doc(optimizer: type[Optimizer], states: tuple[str, ...]) -> str:
    """The docstring of a class, with the arrays of the functional form for the parameters of the class."""
    head, _, rest = (inspect.getdoc(optimizer) or "").partition("Parameters\n----------\n")
    arrays = [
        "param : ndarray\n    The parameter: float32 or float64, C-contiguous. Updated in place, but for `out`.",
        "grad : ndarray like `param`\n    The gradient.",
    ]
    if states:
        arrays.append(
            f"{', '.join(states)} : ndarray like `param`\n    The state, {optimizer.begins}. Updated in place."
        )
    if optimizer.counts_steps:
        arrays.append("t : int\n    The number of this step, counted from 1.")
    hyper = [getattr(optimizer, key).entry() for key in (*optimizer.computed, *optimizer.keywords())]
    hyper.append("grad_scale : float, default 1.0\n    The gradient is multiplied by this first, on the fly.")
    hyper.append(
        "out : ndarray like `param`, optional\n    The new parameter is written to it, and it is returned; `param` is "
        "left as it is."
    )
    raises = "\nRaises\n------\nTypeError, ValueError\n    Where an argument breaks its rule; nothing was changed then."
    rest = rest.partition("\n\nExamples\n")[0]
    _, found, references = rest.partition("\n\nReferences\n")
    sources = [f"\nReferences\n{references}"] if found else []
    first = f"One step of `fastopt.{optimizer.__name__}`, in place or to `out`."
    example = _step_example(optimizer, states)
    return "\n".join([f"{first}\n\n{head}Parameters\n----------", *arrays, *hyper, raises, *sources, example]) + "\n"


def _step_example(optimizer: type[Optimizer], states: tuple[str, ...]) -> str:
    begin = {"z": "param.copy()", "step_size": "np.full(3, 0.1)"}
    made = ", ".join(begin.get(state, "np.zeros(3)") for state in states)
    keywords = ["t=1"] * optimizer.counts_steps + ["lr=0.1"] + [f"{name}=0.5" for name in optimizer.computed]
    lines = [
        ">>> import numpy as np",
        ">>> param, grad = np.ones(3), np.full(3, 0.5)",
        *[f">>> {', '.join(states)} = {made}"] * bool(states),
        f">>> {optimizer.name}({', '.join(['param', 'grad', *states, *keywords])})",
        ">>> bool((param < 1).all())",
        "True",
    ]
    return "\n".join(["\nExamples\n--------", *lines])


for _name, _optimizer in OPTIMIZERS.items():
    globals()[_name] = _step(_name, _optimizer)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Step: ...
