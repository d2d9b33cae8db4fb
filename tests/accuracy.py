"""Rounding errors of every step and layer kernel, against the reference in 80 bits, beside NumPy's and PyTorch's.

python tests/accuracy.py [INPUTS]    # writes the table of docs/accuracy.md anew; a million inputs each, if not said

Inputs are log-normal, uniform, or heavy-tailed (Student's t of two degrees of freedom). What is element by element is
measured in ulp of each exact result, a derivative in ulp of dy; a parameter after three steps, in ulp of the larger one
of its old and new value; what is a sum, in ulp of the largest result of its kind, or of the numbers that are added up,
where these cancel (`Case.magnitudes`).
"""

import inspect
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from fastopt import cases, reference
from fastopt.cases import Case, map_arrays
from fastopt.optimizers import OPTIMIZERS

DOCS = Path(__file__).parents[1] / "docs" / "accuracy.md"
HEAD = "| kernel | float32 | NumPy | PyTorch | float64 | NumPy | PyTorch |\n|---|---|---|---|---|---|---|\n"
TYPES = (np.float32, np.float64)
#: Where a long double is no longer than a double (Windows, ARM), there is nothing to measure doubles by.
WIDE = np.finfo(np.longdouble).eps < 2**-60
STEPS = 3

Draw = cases.Draw


def draws(seed: int, dtype: Any) -> dict[str, Draw]:
    """Functions that draw arrays, by what the numbers are like."""
    rng = np.random.default_rng(seed)

    def signed(x: Any) -> Any:
        return x * rng.choice([-1.0, 1.0], np.shape(x))

    return {
        "log-normal": lambda *shape: np.asarray(signed(rng.lognormal(0, 2, shape))).astype(dtype),
        "uniform": lambda *shape: np.asarray(rng.uniform(-4, 4, shape)).astype(dtype),
        "heavy-tailed": lambda *shape: np.asarray(rng.standard_t(2, shape)).astype(dtype),
    }


def ulps(dtype: Any, y: Any, exact: Any, scale: Any = None) -> float:
    """The largest error, in a type's ulp of each exact number, or of a scale; but of numbers beyond the type, or within
    2¹⁰ of its smallest normal number: products with what is below that are zero."""
    y, exact = np.asarray(y), np.asarray(exact, np.longdouble)
    info = np.finfo(dtype)
    size = np.abs(exact) if scale is None else np.maximum(np.abs(exact), scale)
    told = np.isfinite(exact) & (np.abs(exact) < info.max) & (size >= 1024 * info.tiny)
    if not told.any():
        return 0.0
    ulp = np.ldexp(np.longdouble(1), np.frexp(size[told])[1] - 1 - info.nmant)
    return float((np.abs(y[told].astype(np.longdouble) - exact[told]) / ulp).max())


def _long(array: Any) -> Any:
    return array.astype(np.longdouble) if array.dtype.kind == "f" else array


# ---- Layer kernels ----------------------------------------------------------------------------------------------

#: Measured in ulp of each result; but not where a random mask takes part, or an approximation says its own error.
ELEMENTWISE = {
    *("relu_forward", "relu_backward", "activation_forward", "activation_backward", "add", "scale", "dropout_apply"),
    *("bias_forward", "bias_relu_forward", "prelu_forward", "prelu_backward", "scale_channels", "dropout_backward"),
    *("fused_multiply_add", "stream"),
}
#: Results that are no reals, and copies; `random_bits` is compared bit by bit elsewhere.
COPIES = {
    *("swap_axes", "count_right", "random_bits", "im2col", "embedding_forward", "pad_forward", "pad_backward"),
    "gather_pixels",
}
#: Draw the mask anew, by float64's threshold.
_BESIDE = {"dropout", "bias_relu_dropout_forward"}


def _normal_cdf(x: Any) -> Any:
    """Φ(x): the reference has erf in 64 bits, and subtracts it from 1."""
    import mpmath

    with mpmath.workprec(80):
        values = [mpmath.ncdf(mpmath.mpf(float(v))) for v in np.clip(x, -100, 100).ravel()]
        return np.array([np.longdouble(mpmath.nstr(v, 25)) for v in values]).reshape(x.shape)


def _exact_activation(name: str, arguments: dict[str, Any]) -> Any:
    """Of the two forms of GELU, without the cancellation in the textbook's; None for others."""
    word, _, kind = name.partition(" ")
    if kind not in ("gelu", "gelu_tanh"):
        return None
    x = arguments["x" if word == "activation_forward" else "seen"].astype(np.longdouble)
    pi = 4 * np.arctan(np.longdouble(1))
    argument = 2 * np.sqrt(2 / pi) * (x + np.longdouble("0.044715") * x**3)
    below = np.exp(-np.abs(argument))
    cdf = _normal_cdf(x) if kind == "gelu" else np.where(argument < 0, below, 1) / (1 + below)
    if word == "activation_forward":
        return x * cdf
    if kind == "gelu":
        slope = cdf + x * np.exp(-(x**2) / 2) / np.sqrt(2 * pi)
    else:
        slope = cdf + x * below / (1 + below) ** 2 * 2 * np.sqrt(2 / pi) * (1 + 3 * np.longdouble("0.044715") * x**2)
    return arguments["dy"].astype(np.longdouble) * slope


def layer_cases() -> Iterator[tuple[str, Case, dict[str, Any]]]:
    for name, case in cases.LAYERS.items():
        if name.split()[0] in COPIES | _BESIDE or case.expected is None:
            continue
        for options in case.options if name.startswith("activation") else case.options[:1]:
            kind = f" {options['kind']}" if "kind" in options and "alpha" not in options else ""
            if name.startswith("activation") and not kind:
                continue
            yield name + kind, case, dict(options)


def _torch_of(torch: Any, name: str) -> Callable[..., Any] | None:
    f = torch.nn.functional
    kinds = {
        "leaky_relu": f.leaky_relu, "elu": f.elu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "gelu": f.gelu,
        "gelu_tanh": lambda x: f.gelu(x, approximate="tanh"), "silu": f.silu,
        "softplus": f.softplus,
    }  # fmt: skip
    word, _, kind = name.partition(" ")
    if word == "activation_forward":
        return lambda x, **_: kinds[kind](x)
    if word == "activation_backward" and kind not in ("leaky_relu", "elu", "tanh", "sigmoid"):

        def backward(dy: Any, seen: Any, **_: Any) -> Any:
            x = seen.requires_grad_()
            return torch.autograd.grad(kinds[kind](x), x, dy)[0]

        return backward
    return {
        "relu_forward": lambda x: torch.relu(x),
        "add": lambda a, b, **_: a + b,
        "softmax_forward": lambda x, **_: torch.softmax(x, -1),
        "dense_forward": lambda x, weight, bias=None, **_: f.linear(x, weight.T, bias),
        "bias_forward": lambda x, bias: x + bias,
        "bias_backward": lambda dy: dy.sum(0),
        "layer_norm_forward": None,
        "rms_norm_forward": lambda x, scale=None, **_: f.rms_norm(x, x.shape[-1:], scale, 1e-5),
    }.get(name)


def layer_errors(
    name: str, case: Case, options: dict[str, Any], dtype: Any, inputs: int
) -> Iterator[tuple[float, ...]]:
    """For each batch of inputs: the error of the kernel, of NumPy, of PyTorch (NaN where that is not compared)."""
    try:
        import torch
    except ImportError:
        torch = None
    rival = _torch_of(torch, name) if torch is not None else None
    for draw in draws(len(name), dtype).values():
        done = 0
        while done < inputs / 3:
            size = case.edges[1] if case.edges[1] != (33,) else (min(max(inputs // 3, 33), 100_000),)
            arguments = case.arguments(draw, size, options)
            done += sum(a.size for a in cases.arrays_in(arguments) if a.dtype.kind == "f") or inputs
            with np.errstate(all="ignore"):
                given = map_arrays(np.copy, arguments)
                exact = case.expected(**map_arrays(_long, arguments))  # type: ignore[misc]
                plain = case.expected(**map_arrays(np.copy, arguments))  # type: ignore[misc]
                better = _exact_activation(name, arguments)
                exact = exact if better is None else better
            results = case.run(given)
            exact = exact if isinstance(exact, tuple) else (exact,)
            plain = plain if isinstance(plain, tuple) else (plain,)
            theirs = None
            if rival is not None:
                tensors = {
                    k: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for k, v in arguments.items()
                }
                theirs = (
                    rival(**{k: v for k, v in tensors.items() if k not in ("kind", "relu", "log_sum")}).detach().numpy()
                )
            magnitudes = case.magnitudes(**arguments) if case.magnitudes else ()
            worst = [math.nan, math.nan, math.nan]
            for k, (y, wanted) in enumerate(zip(results, exact, strict=False)):
                if wanted is None or y.dtype.kind != "f" or not y.size:
                    continue
                scale = None
                if name.startswith("activation_backward"):
                    scale = np.abs(arguments["dy"])
                elif name.split()[0] not in ELEMENTWISE:
                    finite = np.abs(np.asarray(wanted, np.longdouble))
                    scale = max(float(finite[np.isfinite(finite)].max(initial=0)), *magnitudes[k : k + 1], 0.0)
                worst[0] = np.fmax(worst[0], ulps(dtype, y, wanted, scale))
                worst[1] = np.fmax(worst[1], ulps(dtype, plain[k], wanted, scale))
                if k == 0 and theirs is not None:
                    worst[2] = ulps(dtype, theirs, wanted, scale)
            yield tuple(worst)


# ---- Steps ------------------------------------------------------------------------------------------------------

#: PyTorch's, with the settings that its optimizers and ours share.
TORCH = {
    "sgd": ("SGD", {}), "momentum": ("SGD", {"momentum": 0.9}), "adam": ("Adam", {}), "adamw": ("AdamW", {}),
    "rmsprop": ("RMSprop", {}), "adagrad": ("Adagrad", {}), "adadelta": ("Adadelta", {}), "adamax": ("Adamax", {}),
    "nadam": ("NAdam", {}), "radam": ("RAdam", {}),
}  # fmt: skip


def step_errors(name: str, dtype: Any, inputs: int) -> Iterator[tuple[float, ...]]:
    try:
        import torch
    except ImportError:
        torch = None
    cls = OPTIMIZERS[name]
    for draw in draws(len(name), dtype).values():
        n = max(inputs // 3, 8)
        start, grads = draw(n), [draw(n) for _ in range(STEPS)]
        param = start.copy()
        optimizer = cls({"param": param}, lr=0.01)
        begun = {k: v.copy() for k, v in optimizer.state["param"].items()}
        by_reference, by_numpy = (_stepped(name, cls, start, grads, begun, t) for t in (np.longdouble, dtype))
        for grad in grads:
            if hasattr(optimizer, "look_ahead"):
                optimizer.look_ahead()
            optimizer.step({"param": grad})
        theirs = math.nan
        scale = np.maximum(np.abs(start), np.abs(by_reference).astype(dtype))
        if torch is not None and name in TORCH:
            word, options = TORCH[name]
            tensor = torch.from_numpy(start.copy())
            other = getattr(torch.optim, word)([tensor], lr=0.01, **options)
            for grad in grads:
                tensor.grad = torch.from_numpy(grad.copy())
                other.step()
            own = cls({"param": start.copy()}, lr=0.01)
            defaults = {"weight_decay": other.defaults.get("weight_decay", 0), "eps": other.defaults.get("eps")}
            if all(getattr(own, k, v) == v for k, v in defaults.items() if v is not None):
                theirs = ulps(dtype, tensor.numpy(), by_reference, scale)
        yield ulps(dtype, param, by_reference, scale), ulps(dtype, by_numpy, by_reference, scale), theirs


def _stepped(name: str, cls: Any, start: Any, grads: Any, begun: dict[str, Any], dtype: Any) -> Any:
    """The parameter after some steps of the reference."""
    param, state = start.astype(dtype), [begun[key].astype(dtype) for key in cls.state_names()]
    optimizer = cls({"param": start.copy()}, lr=0.01)
    (scalars,) = {tuple(each.items()) for each in optimizer.state_dict()["scalars"].values()} or {()}
    scalars = dict(scalars)
    keywords = {key: getattr(optimizer, key) for key in cls.keywords()}
    hyper = {key: getattr(optimizer, key) for key in cls._setting_names()}
    formula = getattr(reference, name)
    takes = set(cls.keywords()) | {"t"}
    for t, grad in enumerate(grads, 1):
        now, scalars_after = reference.scalars_after(name, hyper, scalars, t)
        scalars = scalars | scalars_after
        how = {k: v for k, v in keywords.items() if k in takes and k in _arguments_of(name)} | now
        if cls.counts_steps:
            how["t"] = t
        with np.errstate(all="ignore"):
            if name == "look_ahead_nesterov":  # whose formula is of the point that it looks at
                param = param + keywords["momentum"] * state[0]
            param, *state = formula(param, grad.astype(dtype), *state, **how)
    return param


def _arguments_of(name: str) -> set[str]:
    own = set(inspect.signature(getattr(reference, name)).parameters)
    if "hyper" in own:  # those of Adam
        own |= _arguments_of("adam")
    return own | {"weight_decay", "decoupled", "l1", "max_norm", "clip_value", "maximize"}


# ---- The table --------------------------------------------------------------------------------------------------


def names() -> list[str]:
    return [*OPTIMIZERS, *(name for name, _, _ in layer_cases())]


def measured(name: str, dtype: Any, inputs: int) -> tuple[float, float, float]:
    """The largest errors over all inputs: of the kernel, of NumPy, of PyTorch."""
    if name in OPTIMIZERS:
        errors = step_errors(name, dtype, inputs)
    else:
        case, options = next((case, options) for other, case, options in layer_cases() if other == name)
        errors = layer_errors(name, case, options, dtype, inputs)
    table = np.array(list(errors)).reshape(-1, 3)
    with np.errstate(all="ignore"):
        return tuple(float(np.nanmax(column)) if not np.isnan(column).all() else math.nan for column in table.T)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "" if math.isnan(value) else "∞"
    return f"{value:.2g}" if value < 100 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def main() -> None:
    inputs = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    rows = []
    for name in names():
        errors = [measured(name, dtype, inputs) for dtype in TYPES]
        if math.isnan(errors[0][0]):  # a case whose values are tested otherwise
            continue
        cells = [_number(value) for each in errors for value in each]
        rows.append(f"| {name} | {' | '.join(cells)} |\n")
        print(rows[-1], end="", flush=True)
    DOCS.write_text(DOCS.read_text().partition(HEAD)[0] + HEAD + "".join(rows))


if __name__ == "__main__":
    main()
