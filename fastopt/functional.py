"""The kernels as plain functions on arrays that you own.

**Optimizer steps** update a parameter and its state in place. There is one per class of `fastopt.optimizers`, with
the class's name in lower case, its keywords and its defaults::

    adam(param, grad, m, v, *, t, lr=0.001, beta1=0.9, beta2=0.999, …, grad_scale=1.0)

State arrays begin at zero (but for those of which the docstring says otherwise), and `t` counts steps from 1.
`help(fastopt.functional.adam)` shows the whole. Adafactor's and Muon's steps are in `fastopt.matrices`.

Every function checks all of its arguments before it writes anything, and raises TypeError or ValueError with the
argument's name, the rule, and the value.

**Layer kernels** return new arrays, or fill the `out` that they are given. All arrays are float32 or float64, of one
type per call, and C-contiguous. Images are channels-last, (n, h, w, c); only batch norm takes channels second, too.
"""

from __future__ import annotations

import functools
import inspect
import linecache
import math
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from fastopt import _kernels, checks
from fastopt.checks import Array
from fastopt.optimizer import REQUIRED, Optimizer
from fastopt.optimizers import OPTIMIZERS

__all__ = [
    *OPTIMIZERS,
    "ACTIVATIONS",
    "BatchNormCache",
    "GroupNormCache",
    "activation_backward",
    "activation_forward",
    "average_pool_backward",
    "average_pool_forward",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_sums_shape",
    "bias_backward",
    "bias_forward",
    "bias_relu_backward",
    "bias_relu_dropout_backward",
    "bias_relu_dropout_forward",
    "bias_relu_forward",
    "col2im",
    "conv2d",
    "conv2d_fits",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "dense_forward",
    "dense_input_grad",
    "dense_pays",
    "dense_weight_grad",
    "depthwise_backward",
    "depthwise_forward",
    "dropout",
    "dropout_apply",
    "dropout_backward",
    "embedding_backward",
    "group_norm_backward",
    "group_norm_forward",
    "im2col",
    "instance_norm_forward",
    "kept_share",
    "layer_norm_forward",
    "max_pool_backward",
    "max_pool_forward",
    "packed_shape",
    "patches_shape",
    "plan",
    "relu_backward",
    "relu_forward",
    "softmax_backward",
    "softmax_cross_entropy",
    "softmax_forward",
    "winner_type",
    "winograd_fits",
]


# ---- Optimizer steps ----------------------------------------------------------------------------------------


class Step(Protocol):
    """An optimizer step in place: see the class of the same name for its keywords."""

    def __call__(self, param: Array, grad: Array, *state: Array, **hyper: Any) -> None: ...


def _step(name: str, optimizer: type[Optimizer]) -> Callable[..., None]:
    """The functional form of an optimizer, with the signature that follows from the class."""
    states = optimizer.state_names()
    defaults = dict.fromkeys(optimizer.computed, REQUIRED) | optimizer.keywords()
    hyper = list(defaults)

    @_kernels.Remembered
    def encode(*values: Any) -> tuple[float, ...]:
        return optimizer.encode(dict(zip(hyper, values, strict=True)))

    def run(param: Array, grad: Array, state: tuple[Array, ...], t: int, grad_scale: float, *values: Any) -> None:
        checks.array("param", param)
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

    # As dataclasses do: the text of a function is the only way to a signature that costs nothing to call.
    arrays = ", ".join(["param", "grad", *states])
    keywords = ["t"] if optimizer.counts_steps else []
    keywords += [key if default is REQUIRED else f"{key}=defaults[{key!r}]" for key, default in defaults.items()]
    text = (
        f"def {name}({arrays}, *, {', '.join(keywords)}, grad_scale=1.0):\n"
        f"    run(param, grad, ({''.join(state + ', ' for state in states)}), "
        f"{'t' if optimizer.counts_steps else 2}, grad_scale, {', '.join(hyper)})\n"
    )
    filename = f"<fastopt.functional.{name}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    namespace = {"run": run, "defaults": defaults}
    exec(compile(text, filename, "exec"), namespace)
    function: Any = namespace[name]
    function.__module__ = __name__
    function.__doc__ = _step_doc(optimizer, states)
    return function


def plan(name: str, param: Array, grad: Array, *state: Array, **hyper: Any) -> _kernels.PreparedStep:
    """Prepare a step of the functional form on arrays of your own: it then costs no more than that of a class.

    >>> w, g, m, v = np.ones((4, 3))
    >>> m[:] = v[:] = 0
    >>> step = plan("adam", w, g, m, v, lr=0.1)
    >>> for _ in range(10):
    ...     g[:] = 2 * w                   # in place: the arrays are bound
    ...     step()
    >>> step(t=1, lr=0.01)

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
    checks.array("param", param)
    try:
        bound = _kernels.Plan(optimizer.kernel, param, [state], [(taken, scale(grad_scale), *optimizer.encode(values))])
        return _kernels.PreparedStep(bound, grad, encoders)
    except _kernels.Misfit:
        _explain(states, param, grad, state)
        raise


def _step_number(t: int) -> int:
    return checks.integer("t", t, 1, 2**53)


def _explain(states: tuple[str, ...], param: Array, grad: Array, state: tuple[Array, ...]) -> None:
    """Say which array of a step does not fit."""
    named = dict(zip(states, state, strict=True))
    checks.step_arrays({"param": param}, {"param": named})
    checks.gradients(param, grad, {"param": param, **named})


def _step_doc(optimizer: type[Optimizer], states: tuple[str, ...]) -> str:
    """The docstring of a class, with the arrays of the functional form for the parameters of the class."""
    head, body, references = _parts(optimizer)
    entries = ["param : ndarray\n    The parameter: float32 or float64, C-contiguous. Updated in place."]
    entries.append("grad : ndarray like `param`\n    The gradient.")
    if states:
        entries.append(
            f"{', '.join(states)} : ndarray like `param`\n    The state, {optimizer.begins}. Updated in place."
        )
    if optimizer.counts_steps:
        entries.append("t : int\n    The number of this step, counted from 1.")
    described: set[str] = set()
    for entry in body + _parts(Optimizer)[1]:
        names = set(re.split(", | : ", entry.split("\n")[0])) & {*optimizer.keywords(), *optimizer.computed}
        if names - described:
            entries.append(entry.removeprefix("params, "))
            described |= names
    entries.append("grad_scale : float, default 1.0\n    The gradient is multiplied by this first, on the fly.")
    entries.append(
        "\nRaises\n------\nTypeError, ValueError\n    Where an argument breaks its rule; nothing was changed then."
    )
    if references:
        entries.append(f"\nReferences\n{references}")
    first = f"One step of `fastopt.{optimizer.__name__}`, in place."
    return "\n".join([f"{first}\n\n{head}Parameters\n----------", *entries]) + "\n"


def _parts(optimizer: type[Optimizer]) -> tuple[str, list[str], str]:
    """What a docstring says of a class, of its parameters, one by one, and of its sources."""
    head, _, rest = (inspect.getdoc(optimizer) or "").partition("Parameters\n----------\n")
    body, _, references = rest.partition("\n\nReferences\n")
    return head, re.split(r"\n(?=\S)", body.partition("\n\nAttributes\n")[0]), references


for _name, _optimizer in OPTIMIZERS.items():
    globals()[_name] = _step(_name, _optimizer)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Step: ...


# ---- What layer kernels share -------------------------------------------------------------------------------
#
# The bridge checks the arrays of a layer, and where they do not fit, the function checks them again to say why. What
# the table cannot say (that labels lie in a range, the shapes of pooling and patches) is checked beforehand.


def _like(name: str, x: Array, out: Array | None, shape: tuple[int, ...] | None = None) -> Array:
    """A new array like x (or of `shape`), or the one to write to that was given."""
    if not isinstance(x, np.ndarray) or x.nbytes > 1 << 20:  # memory that a refusal would waste
        checks.array(name, x)
    if out is None:
        return np.empty(x.shape if shape is None else shape, x.dtype)
    return out if isinstance(out, np.ndarray) else checks.array("out", out)


def _explain_alike(out: Array | None, **arrays: Array) -> None:
    """Say which array of an elementwise layer does not fit: all are like the first, which `out` may be, too."""
    (name, first), *others = arrays.items()
    checks.array(name, first)
    for other, value in others:
        checks.array(other, value, dtype=first.dtype, shape=first.shape)
    checks.output("out", out, first, apart_from=arrays, in_place=name)


# ---- Dense layers -------------------------------------------------------------------------------------------

_dense_forward = _kernels.Layer("dense_forward")
_dense_input_grad = _kernels.Layer("dense_input_grad")
_dense_weight_grad = _kernels.Layer("dense_weight_grad")

try:
    PRODUCTS = checks.choice("it", os.environ.get("FASTOPT_PRODUCTS") or "faster", ("faster", "own", "blas"))
except ValueError as error:
    raise ImportError(f"FASTOPT_PRODUCTS: {error}") from None


def dense_pays() -> bool:
    """Whether `fastopt.nn.Dense` computes its products by `dense_forward` and its gradients, and not by NumPy's BLAS.

    It does where they are as fast or faster: on AMD's CPUs since Zen, which multiply and add in units of their own,
    by whatever instruction set. Elsewhere both share units, and a BLAS has them done by one instruction (FMA), so that
    bits depend on which BLAS that is. The environment variable ``FASTOPT_PRODUCTS`` decides otherwise: ``own``,
    ``blas``, or ``faster``, the default.
    """
    return _kernels.products_pay() if PRODUCTS == "faster" else PRODUCTS == "own"


_UNFIT = (AttributeError, IndexError, TypeError)  # that something is no array, or no matrix, or does not fit


@_kernels.Remembered
def _dense_sizes(x: tuple[int, ...], weight: tuple[int, ...], y: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes that the kernels take, of arrays of these shapes."""
    sizes = (*x, *weight[1:])
    if len(sizes) != 3 or weight != sizes[1:] or y != sizes[::2]:
        raise _kernels.Misfit("shapes")
    return sizes


def dense_forward(
    x: Array, weight: Array, bias: Array | None = None, *, relu: bool = False, out: Array | None = None
) -> Array:
    """``y = x @ weight + bias``, with ReLU where wanted, in one pass.

    Each sum goes in order, by one product and one addition after the other (of 512 at a time, where it is longer): bits
    depend neither on the instruction set nor on the number of threads. See `dense_pays` for where it is faster than a
    BLAS.

    Parameters
    ----------
    x : ndarray (n, d)
    weight : ndarray (d, k)
    bias : ndarray (k,), optional
    relu : bool, default False
        Have ``y = max(x @ weight + bias, 0)``, whose gradient `relu_backward` or `bias_relu_backward` takes first.
    out : ndarray (n, k), optional
        Where to write y.

    Returns
    -------
    y : ndarray (n, k)
    """
    relu = checks.flag("relu", relu)
    try:
        shape = (x.shape[0], weight.shape[1]) if out is None else out.shape
        sizes = _dense_sizes(x.shape, weight.shape, shape)
        y = np.empty(shape, x.dtype) if out is None else out
        _dense_forward((x, weight, bias, y), (*sizes, relu))
    except _UNFIT:
        checks.array("x", x, ndim=2)
        checks.array("weight", weight, dtype=x.dtype, ndim=2)
        checks.array("weight", weight, shape=(x.shape[1], weight.shape[1]))
        others = {"x": x, "weight": weight}
        if bias is not None:
            others["bias"] = checks.array("bias", bias, dtype=x.dtype, shape=weight.shape[1:])
        _explain_outputs(others, out=(out, x.dtype, (len(x), weight.shape[1])))
        raise
    return y


def dense_input_grad(dy: Array, weight: Array, out: Array | None = None) -> Array:
    """The gradient of `dense_forward` with respect to x: ``dx = dy @ weight.T``.

    Parameters
    ----------
    dy : ndarray (n, k)
    weight : ndarray (d, k)
    out : ndarray (n, d), optional
        Where to write dx.

    Returns
    -------
    dx : ndarray (n, d)
    """
    try:
        shape = (dy.shape[0], weight.shape[0]) if out is None else out.shape
        sizes = _dense_sizes(shape, weight.shape, dy.shape)
        dx = np.empty(shape, dy.dtype) if out is None else out
        _dense_input_grad((dy, weight, dx), sizes)
    except _UNFIT:
        checks.array("dy", dy, ndim=2)
        checks.array("weight", weight, dtype=dy.dtype, ndim=2)
        checks.array("weight", weight, shape=(len(weight), dy.shape[1]))
        _explain_outputs({"dy": dy, "weight": weight}, out=(out, dy.dtype, (len(dy), len(weight))))
        raise
    return dx


def dense_weight_grad(x: Array, dy: Array, out: Array | None = None, dbias: Array | None = None) -> Array:
    """The gradient of `dense_forward` with respect to the weight, ``x.T @ dy``, and to the bias where wanted.

    Parameters
    ----------
    x : ndarray (n, d)
    dy : ndarray (n, k)
    out : ndarray (d, k), optional
        Where to write dweight.
    dbias : ndarray (k,), optional
        Where to write the gradient of the bias, the sum of dy's rows; without it, that is not computed.

    Returns
    -------
    dweight : ndarray (d, k)
    """
    try:
        shape = (x.shape[1], dy.shape[1]) if out is None else out.shape
        sizes = _dense_sizes(x.shape, shape, dy.shape)
        dweight = np.empty(shape, x.dtype) if out is None else out
        _dense_weight_grad((x, dy, dweight, dbias), sizes)
    except _UNFIT:
        checks.array("x", x, ndim=2)
        checks.array("dy", dy, dtype=x.dtype)
        columns = dy.shape[1] if dy.ndim == 2 else 1
        checks.array("dy", dy, shape=(len(x), columns))
        wanted = (x.shape[1], columns)
        _explain_outputs({"x": x, "dy": dy}, out=(out, x.dtype, wanted), dbias=(dbias, x.dtype, wanted[1:]))
        raise
    return dweight


# ---- Activations and losses ---------------------------------------------------------------------------------

_relu_forward = _kernels.Layer("relu_forward")
_relu_backward = _kernels.Layer("relu_backward")
_bias_relu_forward = _kernels.Layer("bias_relu_forward")
_bias_forward = _kernels.Layer("bias_forward")
_bias_backward = _kernels.Layer("bias_backward")
_bias_relu_backward = _kernels.Layer("bias_relu_backward")
_softmax_cross_entropy = _kernels.Layer("softmax_cross_entropy")


def relu_forward(x: Array, out: Array | None = None) -> Array:
    """``y = max(x, 0)``; NaN stays NaN.

    Parameters
    ----------
    x : ndarray, any shape
    out : ndarray like `x`, optional
        Where to write y; may be `x` itself.

    Returns
    -------
    y : ndarray like `x`
    """
    y = _like("x", x, out)
    try:
        _relu_forward((x, y), (x.size,))
    except _kernels.Misfit:
        _explain_alike(out, x=x)
        raise
    return y


def relu_backward(dy: Array, y: Array, out: Array | None = None) -> Array:
    """The gradient of `relu_forward`: ``dx = 0`` where ``y <= 0``, else ``dy``.

    Parameters
    ----------
    dy : ndarray, any shape
        The gradient with respect to y.
    y : ndarray like `dy`
        What `relu_forward` returned (or its x).
    out : ndarray like `dy`, optional
        Where to write dx; may be `dy` itself.

    Returns
    -------
    dx : ndarray like `dy`
    """
    dx = _like("dy", dy, out)
    try:
        _relu_backward((dy, y, dx), (dy.size,))
    except _kernels.Misfit:
        _explain_alike(out, dy=dy, y=y)
        raise
    return dx


def bias_forward(x: Array, bias: Array, out: Array | None = None) -> Array:
    """``y = x + bias``; see `bias_backward`.

    Parameters
    ----------
    x : ndarray (…, d)
    bias : ndarray (d,)
    out : ndarray like `x`, optional
        Where to write y; may be `x` itself.

    Returns
    -------
    y : ndarray like `x`
    """
    y = _like("x", x, out)
    try:
        _bias_forward((x, bias, y), _rows("x", x))
    except _kernels.Misfit:
        _explain_bias(x, bias, out)
        raise
    return y


def bias_relu_forward(x: Array, bias: Array, out: Array | None = None) -> Array:
    """``y = max(x + bias, 0)`` in one pass.

    Parameters
    ----------
    x : ndarray (…, d)
    bias : ndarray (d,)
    out : ndarray like `x`, optional
        Where to write y; may be `x` itself.

    Returns
    -------
    y : ndarray like `x`
    """
    y = _like("x", x, out)
    try:
        _bias_relu_forward((x, bias, y), _rows("x", x))
    except _kernels.Misfit:
        _explain_bias(x, bias, out)
        raise
    return y


def bias_backward(dy: Array, out: Array | None = None) -> Array:
    """The gradient of a bias that was added to rows: their sum.

    Parameters
    ----------
    dy : ndarray (…, d)
    out : ndarray (d,), optional
        Where to write dbias.

    Returns
    -------
    dbias : ndarray (d,)
    """
    rows, columns = _rows("dy", checks.array("dy", dy))
    dbias = np.empty(columns, dy.dtype) if out is None else out
    try:
        _bias_backward((dy, dbias), (rows, columns))
    except _kernels.Misfit:
        _explain_outputs({"dy": dy}, out=(out, dy.dtype, (columns,)))
        raise
    return dbias


def bias_relu_backward(
    dy: Array, y: Array, out: Array | None = None, dbias: Array | None = None
) -> tuple[Array, Array]:
    """The gradients of `bias_relu_forward`, in one pass.

    Parameters
    ----------
    dy : ndarray (…, d)
        The gradient with respect to y.
    y : ndarray like `dy`
        What `bias_relu_forward` returned.
    out : ndarray like `dy`, optional
        Where to write dx; may be `dy` itself.
    dbias : ndarray (d,), optional
        Where to write that.

    Returns
    -------
    dx : ndarray like `dy`
    dbias : ndarray (d,)
    """
    return _scaled_bias_relu_backward(dy, y, 1.0, out, dbias)


def _scaled_bias_relu_backward(
    dy: Array, y: Array, factor: float, out: Array | None, dbias: Array | None
) -> tuple[Array, Array]:
    dx = _like("dy", dy, out)
    rows, columns = _rows("dy", dy)
    given = dbias
    if dbias is None:
        dbias = np.empty(columns, dy.dtype)
    try:
        _bias_relu_backward((dy, y, dx, dbias), (rows, columns), (factor,))
    except _kernels.Misfit:
        _explain_alike(out, dy=dy, y=y)
        _explain_outputs({"dy": dy, "y": y, "out": dx}, dbias=(given, dy.dtype, (columns,)))
        raise
    return dx, dbias


def _explain_outputs(others: dict[str, Array], **outputs: tuple[Array | None, Any, tuple[int, ...]]) -> None:
    """Say which further output (as given, with the type and the shape that it must have) does not fit."""
    given = {name: out for name, (out, _, _) in outputs.items() if out is not None}
    for name, out in given.items():
        checks.array(name, out, dtype=outputs[name][1], shape=outputs[name][2], writable=True)
        for other, array in others.items():
            checks.apart({name: out, other: array})
    checks.apart(given)


def _explain_bias(x: Array, bias: Array, out: Array | None) -> None:
    """Say which array of a layer with a bias does not fit."""
    checks.array("x", x)
    checks.array("bias", bias, dtype=x.dtype, shape=x.shape[-1:])
    checks.output("out", out, x, apart_from={"x": x, "bias": bias}, in_place="x")


def _rows(name: str, x: Array) -> tuple[int, int]:
    """An array (…, d) as rows of d."""
    if x.ndim == 0:
        raise ValueError(f"{name} must have at least one dimension, got shape ()")
    columns = x.shape[-1]
    return (x.size // columns if columns else 0), columns


def softmax_cross_entropy(
    logits: Array, labels: NDArray[np.integer[Any]], out: Array | None = None, losses: Array | None = None
) -> tuple[float, Array]:
    """Softmax cross-entropy of integer labels: the mean loss and its gradient, in one pass.

    ``loss = mean_i(log Σ_j exp(x_ij) − x_i,label)`` and ``dlogits = (softmax(x) − onehot) / n``. The maximum of
    each row is taken off first, so logits of any finite size are safe. At random initialisation with c classes
    the loss is about ``log c``.

    Parameters
    ----------
    logits : ndarray (n, c)
    labels : integer ndarray (n,)
        Each in [0, c).
    out : ndarray like `logits`, optional
        Where to write dlogits; may be `logits` itself.
    losses : ndarray (n,), optional
        Where to write the loss of each row.

    Returns
    -------
    loss : float
        The mean over the rows, in nats; 0.0 for no rows.
    dlogits : ndarray like `logits`
    """
    dlogits = _like("logits", logits, out)
    if logits.ndim != 2:
        checks.array("logits", logits, ndim=2)
    n, classes = logits.shape
    own_labels = checks.labels("labels", labels, n, classes)  # a copy, so the bridge does not see where they are
    given = losses
    if losses is None:
        losses = np.empty(n, logits.dtype)
    try:
        for name, written in (("out", out), ("losses", given)):
            if written is not None and np.may_share_memory(written, labels):
                checks.apart({name: checks.array(name, written), "labels": labels})
        _softmax_cross_entropy((logits, own_labels, losses, dlogits), (n, classes), (1 / max(n, 1),))
    except _kernels.Misfit:
        checks.array("logits", logits, ndim=2)
        checks.output("out", out, logits, apart_from={"logits": logits, "labels": labels}, in_place="logits")
        _explain_outputs({"logits": logits, "out": dlogits}, losses=(given, logits.dtype, (n,)))
        raise
    return float(np.add.reduce(losses, dtype=np.float64)) / max(n, 1), dlogits


# ---- Further activations ------------------------------------------------------------------------------------

_activation_forward = _kernels.Layer("activation_forward")
_activation_backward = _kernels.Layer("activation_backward")
_softmax_forward = _kernels.Layer("softmax_forward")
_softmax_backward = _kernels.Layer("softmax_backward")

Activation = Literal["leaky_relu", "elu", "tanh", "sigmoid", "gelu", "gelu_tanh", "silu", "softplus"]
#: What `activation_forward` can compute. The gradients of the first four follow from y, those of the others from x.
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


def activation_forward(x: Array, kind: Activation, *, alpha: float | None = None, out: Array | None = None) -> Array:
    """An activation, element by element; NaN stays NaN.

    Parameters
    ----------
    x : ndarray, any shape
    kind : str
        ``"leaky_relu"``: x, or `alpha`·x where x < 0. ``"elu"`` [1]_: x, or `alpha`·(eˣ − 1) where x < 0. ``"tanh"``.
        ``"sigmoid"``: 1 / (1 + e⁻ˣ). ``"gelu"`` [2]_: x·Φ(x), Φ being the normal distribution. ``"gelu_tanh"``: its
        approximation x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))). ``"silu"`` [2]_: x / (1 + e⁻ˣ). ``"softplus"``:
        log(1 + eˣ).
    alpha : float, optional
        In [0, inf); where absent 0.01 for ``"leaky_relu"``, 1 for ``"elu"``.
    out : ndarray like `x`, optional
        Where to write y; may be `x` itself.

    Returns
    -------
    y : ndarray like `x`

    References
    ----------
    .. [1] D.-A. Clevert et al., "Fast and accurate deep network learning by exponential linear units", 2016.
    .. [2] D. Hendrycks and K. Gimpel, "Gaussian error linear units", 2016.
    """
    y = _like("x", x, out)
    options = _activation(kind, alpha)
    try:
        _activation_forward((x, y), (x.size, options[0]), options[1:])
    except _kernels.Misfit:
        _explain_alike(out, x=x)
        raise
    return y


def activation_backward(
    dy: Array, seen: Array, kind: Activation, *, alpha: float | None = None, out: Array | None = None
) -> Array:
    """The gradient of `activation_forward`.

    Parameters
    ----------
    dy : ndarray, any shape
        The gradient with respect to y.
    seen : ndarray like `dy`
        For ``"leaky_relu"``, ``"elu"``, ``"tanh"`` and ``"sigmoid"`` the y that forward returned, for the others its x.
    kind, alpha
        As there.
    out : ndarray like `dy`, optional
        Where to write dx; may be `dy` itself.

    Returns
    -------
    dx : ndarray like `dy`
    """
    dx = _like("dy", dy, out)
    options = _activation(kind, alpha)
    try:
        _activation_backward((dy, seen, dx), (dy.size, options[0]), options[1:])
    except _kernels.Misfit:
        _explain_alike(out, dy=dy, seen=seen)
        raise
    return dx


@_kernels.Remembered
def _activation(kind: str, alpha: Any) -> tuple[int, float]:
    """Place and parameter of an activation."""
    place = ACTIVATIONS.index(checks.choice("kind", kind, ACTIVATIONS))
    if alpha is None:
        return place, 0.01 if kind == "leaky_relu" else 1.0
    return place, checks.number("alpha", alpha, "[0, inf)")


def softmax_forward(x: Array, out: Array | None = None, log_sum: NDArray[np.float64] | None = None) -> Array:
    """Softmax over the last axis: ``y = exp(x) / Σ exp(x)``. The maximum is taken off first, so any finite x is safe.

    Parameters
    ----------
    x : ndarray (…, d)
    out : ndarray like `x`, optional
        Where to write y; may be `x` itself.
    log_sum : float64 ndarray (size / d,), optional
        Where to write ``log Σ exp(x)`` of each row.

    Returns
    -------
    y : ndarray like `x`
    """
    y = _like("x", x, out)
    rows, columns = _rows("x", x)
    try:
        _softmax_forward((x, y, log_sum), (rows, columns))
    except _kernels.Misfit:
        _explain_alike(out, x=x)
        _explain_outputs({"x": x, "out": y}, log_sum=(log_sum, np.dtype(np.float64), (rows,)))
        raise
    return y


def softmax_backward(dy: Array, y: Array, out: Array | None = None) -> Array:
    """The gradient of `softmax_forward`: ``dx = y·(dy − Σ dy·y)``.

    Parameters
    ----------
    dy : ndarray (…, d)
        The gradient with respect to y.
    y : ndarray like `dy`
        What `softmax_forward` returned.
    out : ndarray like `dy`, optional
        Where to write dx; may be `dy` itself.

    Returns
    -------
    dx : ndarray like `dy`
    """
    dx = _like("dy", dy, out)
    try:
        _softmax_backward((dy, y, dx), _rows("dy", dy))
    except _kernels.Misfit:
        _explain_alike(out, dy=dy, y=y)
        raise
    return dx


# ---- Dropout ------------------------------------------------------------------------------------------------

_dropout_forward = _kernels.Layer("dropout_forward")
_dropout_apply = _kernels.Layer("dropout_apply")
_bias_relu_dropout_forward = _kernels.Layer("bias_relu_dropout_forward")

PIs = Literal["drop", "keep"]
Mask = NDArray[np.uint8] | NDArray[np.bool_]
_BYTE = np.dtype(np.uint8)


def dropout(
    x: Array,
    p: float,
    *,
    seed: int,
    counter: int,
    p_is: PIs = "drop",
    mask_format: Literal["bits", "bytes"] = "bits",
    out: Array | None = None,
    mask: NDArray[np.uint8] | None = None,
    inverted: bool = True,
) -> tuple[Array, Mask]:
    """Inverted dropout [1]_: drop each element with probability `p`, and scale the rest by ``1 / (1 − p)``.

    The random bits are Philox4x32-7 [2]_ of (`seed`, `counter`), 16 per element, so the mask depends on these two,
    on `p` and on the number of elements alone: give each call in a training run a `counter` of its own.

    Parameters
    ----------
    x : ndarray, any shape
    p : float
        The probability of dropping, in [0, 1). The nearest multiple of 2⁻¹⁶ (below 1) takes its place, in the scale as
        in the mask, so the expectation of y is x.
    seed, counter : int
        Each in [0, 2**64).
    p_is : {"drop", "keep"}, default "drop"
        ``"keep"`` makes `p` the probability of keeping, in (0, 1] (cs231n).
    mask_format : {"bits", "bytes"}, default "bits"
        ``"bits"``: uint8 (⌈size / 8⌉,), one bit per element, the lowest first, set where kept.
        ``"bytes"``: bool, shaped like `x`, to look at.
    out : ndarray like `x`, optional
        Where to write y; may be `x` itself.
    mask : uint8 ndarray (⌈size / 8⌉,), optional
        Where to write the mask's bits.
    inverted : bool, default True
        False leaves the rest unscaled: in inference, all is then to be scaled by `kept_share`.

    Returns
    -------
    y : ndarray like `x`
    mask : ndarray
        For `dropout_backward`.

    References
    ----------
    .. [1] N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", 2014, sec. 10.
    .. [2] J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
    """
    y = _like("x", x, out)
    given = mask
    if mask is None:
        mask = np.empty((x.size + 7) // 8, np.uint8)
    threshold, factor = _threshold(p, p_is)
    if not checks.flag("inverted", inverted):
        factor = 1.0
    seed, counter = _key(seed, counter)
    if mask_format != "bits":
        checks.choice("mask_format", mask_format, ("bits", "bytes"))
    if given is not None:
        _explain_outputs({}, mask=(given, _BYTE, ((x.size + 7) // 8,)))
    try:
        _dropout_forward((x, y, mask), (x.size, seed, counter, threshold), (factor,))
    except _kernels.Misfit:
        _explain_alike(out, x=x)
        _explain_outputs({"x": x, "out": y}, mask=(given, _BYTE, ((x.size + 7) // 8,)))
        raise
    if mask_format == "bytes":
        return y, np.unpackbits(mask, count=x.size, bitorder="little").view(np.bool_).reshape(x.shape)
    return y, mask


def dropout_apply(
    x: Array, mask: Mask, p: float, *, p_is: PIs = "drop", out: Array | None = None, inverted: bool = True
) -> Array:
    """Dropout with a given mask: ``y = x / (1 − p)`` where the mask is set, else 0.

    Parameters
    ----------
    x : ndarray, any shape
    mask : ndarray
        As `dropout` returned it, or your own: bool or 0/1 integers shaped like `x`, or bits.
    p, p_is, out, inverted
        As in `dropout`.

    Returns
    -------
    y : ndarray like `x`
    """
    return _apply("x", x, mask, p, p_is, out, inverted)


def dropout_backward(
    dy: Array, mask: Mask, p: float, *, p_is: PIs = "drop", out: Array | None = None, inverted: bool = True
) -> Array:
    """The gradient of `dropout`: ``dx = dy / (1 − p)`` where the mask is set, else 0.

    Parameters
    ----------
    dy : ndarray, any shape
        The gradient with respect to y.
    mask : ndarray
        As `dropout` returned it.
    p, p_is, out, inverted
        As in `dropout`; `out` may be `dy` itself.

    Returns
    -------
    dx : ndarray like `dy`
    """
    return _apply("dy", dy, mask, p, p_is, out, inverted)


def kept_share(p: float, p_is: PIs = "drop") -> float:
    """The probability of keeping an element, with `p` rounded as in `dropout`."""
    return 1 / _threshold(p, p_is)[1]


def bias_relu_dropout_forward(
    x: Array, bias: Array, p: float, *, seed: int, counter: int, p_is: PIs = "drop", out: Array | None = None
) -> Array:
    """`bias_relu_forward` and then `dropout`, in one pass: the same numbers, and no mask to keep.

    Parameters
    ----------
    x : ndarray (…, d)
    bias : ndarray (d,)
    p, seed, counter, p_is
        As in `dropout`.
    out : ndarray like `x`, optional
        Where to write y; may be `x` itself.

    Returns
    -------
    y : ndarray like `x`
    """
    y = _like("x", x, out)
    threshold, factor = _threshold(p, p_is)
    seed, counter = _key(seed, counter)
    try:
        _bias_relu_dropout_forward((x, bias, y), (*_rows("x", x), seed, counter, threshold), (factor,))
    except _kernels.Misfit:
        _explain_bias(x, bias, out)
        raise
    return y


def bias_relu_dropout_backward(
    dy: Array, y: Array, p: float, *, p_is: PIs = "drop", out: Array | None = None, dbias: Array | None = None
) -> tuple[Array, Array]:
    """The gradients of `bias_relu_dropout_forward`, in one pass: ``dx = 0`` where ``y <= 0``, else ``dy / (1 − p)``.

    Parameters
    ----------
    dy : ndarray (…, d)
        The gradient with respect to y.
    y : ndarray like `dy`
        What `bias_relu_dropout_forward` returned.
    p, p_is
        As there.
    out : ndarray like `dy`, optional
        Where to write dx; may be `dy` itself.
    dbias : ndarray (d,), optional
        Where to write that.

    Returns
    -------
    dx : ndarray like `dy`
    dbias : ndarray (d,)
    """
    return _scaled_bias_relu_backward(dy, y, _threshold(p, p_is)[1], out, dbias)


def _apply(name: str, x: Array, mask: Mask, p: float, p_is: PIs, out: Array | None, inverted: bool) -> Array:
    y = _like(name, x, out)
    factor = _threshold(p, p_is)[1] if checks.flag("inverted", inverted) else 1.0
    bits = _mask_bits(mask, x)
    try:
        _dropout_apply((x, bits, y), (x.size,), (factor,))
    except _kernels.Misfit:
        checks.array(name, x)
        checks.output("out", out, x, apart_from={name: x, "mask": bits}, in_place=name)
        raise
    return y


def _key(seed: int, counter: int) -> tuple[int, int]:
    return checks.integer("seed", seed, 0, 2**64 - 1), checks.integer("counter", counter, 0, 2**64 - 1)


@_kernels.Remembered
def _threshold(p: float, p_is: PIs) -> tuple[int, float]:
    """Below which of 2¹⁶ numbers an element is dropped, and by what the others are multiplied."""
    if checks.choice("p_is", p_is, ("drop", "keep")) == "keep":
        drop = 1 - checks.number("p", p, "(0, 1]")
    else:
        drop = checks.number("p", p, "[0, 1)")
    threshold = min(round(drop * 2**16), 2**16 - 1)
    return threshold, 2**16 / (2**16 - threshold)


def _mask_bits(mask: Any, x: Array) -> NDArray[np.uint8]:
    """A mask of either format as bits."""
    size = (x.size + 7) // 8
    if type(mask) is np.ndarray and mask.dtype is _BYTE and mask.shape == (size,) != x.shape and mask.strides == (1,):
        return mask  # the usual case quickly
    if isinstance(mask, np.ndarray) and mask.dtype.kind in "biu":
        if mask.shape == x.shape and (mask.dtype != np.uint8 or x.shape != (size,)):
            return np.packbits(mask.ravel() != 0, bitorder="little")
        if mask.shape == (size,) and mask.dtype == np.uint8:
            return np.ascontiguousarray(mask)
    got = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
    raise ValueError(f"mask must be uint8 bits of shape {(size,)}, or bool of shape {x.shape}, got {got}")


# ---- Batch norm ---------------------------------------------------------------------------------------------

_batch_norm_forward = _kernels.Layer("batch_norm_forward")
_batch_norm_inference = _kernels.Layer("batch_norm_inference")
_batch_norm_backward = _kernels.Layer("batch_norm_backward")
_batch_norm_sums = _kernels.Layer("batch_norm_sums")
_batch_norm_grad_sums = _kernels.Layer("batch_norm_grad_sums")
_batch_norm_max_pool_forward = _kernels.Layer("batch_norm_max_pool_forward")
_batch_norm_max_pool_backward = _kernels.Layer("batch_norm_max_pool_backward")


class BatchNormCache(NamedTuple):
    """What the backward pass needs: the arguments of the forward pass; the batch's statistics, float64 (c,); after
    dropout y itself, whose zeros say what was dropped, and by what the rest was multiplied; after max pooling the size
    of the windows, and which number of x each of them chose."""

    x: Array
    scale: Array | None
    shift: Array | None
    mean: NDArray[np.float64]
    inv_std: NDArray[np.float64]
    axis: int = 1
    relu: bool = False
    y: Array | None = None
    factor: float = 1.0
    max_pool: tuple[int, int] | None = None
    chosen: Array | None = None


def batch_norm_forward(
    x: Array,
    scale: Array | None = None,
    shift: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    *,
    axis: int = 1,
    training: bool = True,
    eps: float = 1e-5,
    momentum: float = 0.1,
    momentum_of: Literal["new", "old"] = "new",
    unbiased: bool = True,
    relu: bool = False,
    dropout: float = 0.0,
    seed: int = 0,
    counter: int = 0,
    max_pool: Pair | None = None,
    out: Array | None = None,
    mean: NDArray[np.float64] | None = None,
    inv_std: NDArray[np.float64] | None = None,
    sums: NDArray[np.float64] | None = None,
    chosen: Array | None = None,
) -> tuple[Array, BatchNormCache | None]:
    """Batch normalisation [1]_: ``y = scale·(x − mean) / √(var + eps) + shift``, per channel.

    Parameters
    ----------
    x : ndarray (n, c), (n, c, …) or (n, …, c)
    scale, shift : ndarray (c,), optional
        The learnt scale and shift; 1 and 0 where absent.
    running_mean, running_var : ndarray (c,), optional
        Running statistics: moved towards those of the batch in training, used instead of them in inference.
    axis : int, default 1
        The axis of the channels: 1, or the last (−1), as in images (n, h, w, c).
    training : bool, default True
        Whether to normalise with the statistics of the batch.
    eps : float, default 1e-5
        Added to the variance, in [0, inf).
    momentum : float, default 0.1
        In [0, 1]: ``running ← (1 − momentum)·running + momentum·batch``.
    momentum_of : {"new", "old"}, default "new"
        ``"old"`` makes `momentum` the weight of the old value (Keras: 0.99; cs231n: 0.9).
    unbiased : bool, default True
        Whether the running variance takes the batch's with divisor n − 1 (the paper, PyTorch) or n (Keras, cs231n).
        The batch itself is always normalised with divisor n.
    relu : bool, default False
        Whether to apply `relu_forward` to y, at next to no cost: ``y = max(y, 0)``. `batch_norm_backward` knows of it.
    dropout : float, default 0.0
        With `relu`, and in training: what `dropout` is then to drop of y, in [0, 1), by `seed` and `counter`.
        `batch_norm_backward` knows of that, too, and reads y, which must be unchanged.
    seed, counter : int, default 0
        Those of `dropout`, each in [0, 2**64).
    max_pool : int or (int, int), optional
        For images (n, h, w, c), channels last: the size of the windows of a `max_pool_forward` that is then applied,
        without dropout. It is taken in the same pass, and y (n, h // size, w // size, c) has the same bits as that of
        both one after the other. Gradients are the same but for rounding: dscale and dshift are sums in another order.
    out : ndarray like y, optional
        Where to write y.
    mean, inv_std : float64 ndarray (c,), optional
        Where to write the cache's; not used in inference.
    sums : float64 ndarray of ``batch_norm_sums_shape(x.shape, axis)``, optional
        What the threads are to work in; results do not depend on it.
    chosen : ndarray like y, optional
        Where to write the cache's, with `max_pool` in training.

    Returns
    -------
    y : ndarray like `x`, or as `max_pool` says
    cache : BatchNormCache
        For `batch_norm_backward`; None in inference.

    References
    ----------
    .. [1] S. Ioffe and C. Szegedy, "Batch normalization", 2015, algorithms 1 and 2.
    """
    pool, shape = (None, None) if max_pool is None else _norm_windows(("x", "axis", "max_pool"), x, axis, max_pool)
    if pool is None and chosen is not None:
        raise ValueError("chosen must not be given without max_pool")
    y = _like("x", x, out, shape)
    outer, channels, inner = sizes = _channels("x", x.shape, axis)
    training, eps, new_weight, unbiased, behind, threshold, factor = _norm_options(
        training, eps, momentum, momentum_of, unbiased, relu, dropout
    )
    if threshold:
        if pool is not None:
            raise ValueError(f"dropout must be 0 with max_pool, got {dropout}")
        seed, counter = _key(seed, counter)
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must be given both or not at all")
    if running_mean is None and not training:
        raise ValueError("running_mean and running_var must be given for training=False")
    count = outer * inner
    if training and running_mean is not None and unbiased and count == 1:
        raise ValueError("x must have at least 2 values per channel for an unbiased variance, got 1")

    vectors, work = (scale, shift, running_mean, running_var), (mean, inv_std, sums, chosen)
    try:
        statistics: tuple[Any, Any] = None, None
        if training:
            statistics = (
                np.empty(channels) if mean is None else mean,
                np.empty(channels) if inv_std is None else inv_std,
            )
        if pool is not None:
            chosen = None if not training else np.empty_like(y) if chosen is None else chosen
            pooling = (
                (x, scale, shift, *statistics, running_mean, running_var, y, chosen),
                (*x.shape, *pool, behind),
                (eps,),
            )
            if y.shape != shape:
                raise _kernels.Misfit("shape")
            _batch_norm_max_pool_forward.check(*pooling)  # before the first of several kernels
        if training:
            sums = _norm_sums(x, axis, sums)
            if sums is not None:
                _batch_norm_sums((x, sums), sizes)
            _batch_norm_forward(
                (x, scale, shift, sums, y if pool is None else None, *statistics, running_mean, running_var),
                (*sizes, behind, seed, counter, threshold),
                (eps, new_weight, count / (count - 1) if unbiased and count > 1 else 1.0, factor),
            )
        elif pool is None:
            _batch_norm_inference((x, scale, shift, running_mean, running_var, y), (*sizes, behind), (eps,))
        if pool is not None:
            _batch_norm_max_pool_forward(*pooling)
    except _kernels.Misfit:
        _explain_batch_norm_forward(x, channels, shape, vectors, training, out, y, work)
        raise
    if not training:
        return y, None
    if not count:
        for empty in statistics:
            empty.fill(0)
    relu, y_seen = behind > 0, y if threshold else None
    return y, BatchNormCache(x, scale, shift, *statistics, axis, relu, y_seen, factor, pool, chosen)


def _explain_batch_norm_forward(
    x: Array,
    channels: int,
    shape: tuple[int, ...] | None,
    vectors: tuple[Array | None, ...],
    training: bool,
    out: Array | None,
    y: Array,
    work: tuple[Array | None, ...],
) -> None:
    """Say which array does not fit."""
    checks.array("x", x)
    names = "scale", "shift", "running_mean", "running_var"
    given = {name: vector for name, vector in zip(names, vectors, strict=True) if vector is not None}
    for name, vector in given.items():
        running = name.startswith("running")
        checks.array(name, vector, dtype=x.dtype, shape=(channels,), writable=training and running)
    checks.output("out", out, x, shape=shape, apart_from={"x": x, **given})
    checks.apart({"x": x, **given})
    double = np.dtype(np.float64), (channels,)
    mean, inv_std, sums, chosen = work
    _explain_outputs(
        {"x": x, "out": y, **given},
        mean=(mean, *double),
        inv_std=(inv_std, *double),
        sums=(sums, np.dtype(np.float64), () if sums is None else sums.shape),
        chosen=(chosen, x.dtype, y.shape),
    )


def _norm_windows(
    names: tuple[str, str, str], x: Array, axis: int, max_pool: Pair
) -> tuple[tuple[int, int], tuple[int, ...]]:
    """The size of windows of images whose channels are last, and the shape of what they make of them."""
    n, h, w, channels = checks.array(names[0], x, ndim=4).shape
    if checks.second_or_last(names[1], axis, 4) != 3:
        raise ValueError(f"{names[1]} must be -1 with max_pool, got {axis}")
    size = checks.pair(names[2], max_pool, 1)
    if size[0] > h or size[1] > w:
        raise ValueError(f"{names[2]} must be at most the size of the images, {(h, w)}, got {size}")
    return size, (n, h // size[0], w // size[1], channels)


@_kernels.Remembered
def _norm_options(
    training: bool, eps: float, momentum: float, momentum_of: str, unbiased: bool, relu: bool, dropout: float
) -> tuple[bool, float, float, bool, int, int, float]:
    """The checked options of `batch_norm_forward` as the kernel wants them."""
    new_weight = checks.number("momentum", momentum, "[0, 1]")
    if checks.choice("momentum_of", momentum_of, ("new", "old")) == "old":
        new_weight = 1 - new_weight
    training, unbiased = checks.flag("training", training), checks.flag("unbiased", unbiased)
    threshold, factor = _threshold(checks.number("dropout", dropout, "[0, 1)"), "drop")
    if threshold and not checks.flag("relu", relu):
        raise ValueError(f"dropout must be 0 without relu=True, got {dropout}")
    if not training:
        threshold, factor = 0, 1.0
    behind = checks.flag("relu", relu) + (threshold > 0)
    return training, checks.number("eps", eps, "[0, inf)"), new_weight, unbiased, behind, threshold, factor


def batch_norm_backward(
    dy: Array,
    cache: BatchNormCache,
    out: Array | None = None,
    dscale: Array | None = None,
    dshift: Array | None = None,
    *,
    sums: NDArray[np.float64] | None = None,
) -> tuple[Array, Array, Array]:
    """The gradients of `batch_norm_forward` in training.

    Parameters
    ----------
    dy : ndarray like y
        The gradient with respect to y.
    cache : BatchNormCache
        From `batch_norm_forward`; x, scale and shift, after dropout y and after max pooling `chosen` must be unchanged.
    out : ndarray like x, optional
        Where to write dx; after max pooling this may be x itself.
    dscale, dshift : ndarray (c,), optional
        Where to write those.
    sums : float64 ndarray of ``batch_norm_sums_shape(dy.shape, axis)``, optional
        As in `batch_norm_forward`.

    Returns
    -------
    dx : ndarray like x
    dscale, dshift : ndarray (c,)
    """
    if not isinstance(cache, BatchNormCache):
        raise TypeError(f"cache must come from batch_norm_forward in training, got {type(cache).__name__}")
    x, scale, shift, mean, inv_std, axis, relu, y, factor, max_pool, chosen = cache
    behind = checks.flag("cache.relu", relu) + (y is not None)
    factor = checks.number("cache.factor", factor)
    sizes = _channels("cache.x", x.shape, axis, "cache.axis")
    pool, shape = None, x.shape
    if max_pool is not None:
        pool, shape = _norm_windows(("cache.x", "cache.axis", "cache.max_pool"), x, axis, max_pool)
    dx = _like("cache.x", x, out)
    dlearnt = [np.empty(sizes[1], x.dtype) if given is None else given for given in (dscale, dshift)]
    statistics = scale, shift, mean, inv_std
    try:
        if pool is None:
            sums = _norm_sums(x, axis, sums)
            if sums is not None:
                _batch_norm_grad_sums((dy, x, *statistics, y, sums), (*sizes, behind), (factor,))
            _batch_norm_backward((dy, x, *statistics, y, sums, dx, *dlearnt), (*sizes, behind), (factor,))
        else:
            pooling = (dy, chosen, x, *statistics, *dlearnt, dx), (*x.shape, *pool, behind)
            _batch_norm_max_pool_backward.check(*pooling)  # before the first of several kernels
            if dy.shape != shape or any(np.may_share_memory(given, x) for given in dlearnt):
                raise _kernels.Misfit("shape or memory")
            sizes = dy.size // sizes[1] if sizes[1] else 0, sizes[1], 1
            sums = _norm_sums(dy, axis, sums)
            if sums is not None:
                _batch_norm_grad_sums((dy, chosen, *statistics, None, sums), (*sizes, behind), (1.0,))
            _batch_norm_backward((dy, chosen, *statistics, None, sums, None, *dlearnt), (*sizes, behind), (1.0,))
            _batch_norm_max_pool_backward(*pooling)
    except _kernels.Misfit:
        _explain_batch_norm_backward(dy, cache, shape, out, dx, dscale, dshift, sums)
        raise
    if not x.size:
        for empty in dlearnt:
            empty.fill(0)
    return dx, dlearnt[0], dlearnt[1]


def _explain_batch_norm_backward(
    dy: Array,
    cache: BatchNormCache,
    shape: tuple[int, ...],
    out: Array | None,
    dx: Array,
    dscale: Array | None,
    dshift: Array | None,
    sums: Array | None,
) -> None:
    """Say which array does not fit."""
    x, channels = checks.array("cache.x", cache.x), cache.x.shape[cache.axis]
    inputs = {"dy": checks.array("dy", dy, dtype=x.dtype, shape=shape), "cache.x": x}
    for name in ("mean", "inv_std"):
        inputs[f"cache.{name}"] = checks.array(
            f"cache.{name}", getattr(cache, name), dtype=np.float64, shape=(channels,)
        )
    for name, wanted in (("scale", (channels,)), ("shift", (channels,)), ("y", x.shape), ("chosen", shape)):
        value = getattr(cache, name)
        if value is not None or (name == "chosen" and cache.max_pool is not None):
            inputs[f"cache.{name}"] = checks.array(f"cache.{name}", value, dtype=x.dtype, shape=wanted)
    checks.output("out", out, x, apart_from=inputs, in_place="" if cache.max_pool is None else "cache.x")
    like, work = (x.dtype, (channels,)), (sums, np.dtype(np.float64), () if sums is None else sums.shape)
    _explain_outputs({**inputs, "out": dx}, dscale=(dscale, *like), dshift=(dshift, *like), sums=work)


def batch_norm_sums_shape(shape: tuple[int, ...], axis: int = 1) -> tuple[int, int, int] | None:
    """The shape of the sums by which batch norm of some shape is shared out among threads; None where it is not.

    Usually channels are shared out. Where there are too few of them, rows are, in blocks, whose sums are added up in
    the order that one thread would add them up in.
    """
    sizes, threads = _channels("x", shape, axis), _kernels.get_num_threads()
    return None if threads == 1 else _norm_sums_shape(sizes, threads)


@_kernels.Remembered
def _norm_sums_shape(sizes: tuple[int, int, int], threads: int) -> tuple[int, int, int] | None:
    outer, channels, inner = sizes
    if inner != 1 or not 0 < channels < 128 or threads <= max(1, channels // 32) or outer * channels < 1 << 17:
        return None
    lanes = math.lcm(channels, 32) if channels < 32 else -(-channels // 32) * 32
    return outer // (lanes // channels if channels < 32 else 1) // 128 + 1, 2, lanes


def _norm_sums(x: Array, axis: int, sums: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """Where the sums go, if there are to be any."""
    if (shape := batch_norm_sums_shape(x.shape, axis)) is None:
        return None
    if sums is None:
        return np.empty(shape)
    return checks.array("sums", sums, dtype=np.float64, shape=shape, writable=True)


@_kernels.Remembered
def _channels(name: str, shape: tuple[int, ...], axis: int, axis_name: str = "axis") -> tuple[int, int, int]:
    """The shape (n, c, …), or (n, …, c), as (outer, channels, inner)."""
    if len(shape) < 2:
        raise ValueError(f"{name} must have shape (n, c), (n, c, …) or (n, …, c), got {shape}")
    axis = checks.second_or_last(axis_name, axis, len(shape))
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


# ---- Layer, group and instance norm -------------------------------------------------------------------------

_group_norm_forward = _kernels.Layer("group_norm_forward")
_group_norm_backward = _kernels.Layer("group_norm_backward")


class GroupNormCache(NamedTuple):
    """What `group_norm_backward` needs: x as (rows, pixels, channels), scale (channels,), the number of groups, and the
    statistics of each row and group, float64 (rows · groups,)."""

    x: Array
    scale: Array | None
    mean: NDArray[np.float64]
    inv_std: NDArray[np.float64]
    groups: int

    @property
    def parts_shape(self) -> tuple[int, int, int]:
        """The shape of the `parts` of `group_norm_backward`."""
        rows, _, channels = self.x.shape
        return -(-rows // _block(self.x.shape)), 2, channels


def layer_norm_forward(
    x: Array,
    scale: Array | None = None,
    shift: Array | None = None,
    *,
    axes: int = 1,
    eps: float = 1e-5,
    out: Array | None = None,
    mean: NDArray[np.float64] | None = None,
    inv_std: NDArray[np.float64] | None = None,
) -> tuple[Array, GroupNormCache]:
    """Layer normalisation [1]_: ``y = scale·(x − mean) / √(var + eps) + shift`` over the last `axes` axes.

    Parameters
    ----------
    x : ndarray (…, d)
    scale, shift : ndarray of the shape of the last `axes` axes, optional
        Learnt for each element; 1 and 0 where absent.
    axes : int, default 1
        Over how many axes, the last ones.
    eps : float, default 1e-5
        Added to the variance (that with divisor n), in [0, inf).
    out : ndarray like `x`, optional
        Where to write y.
    mean, inv_std : float64 ndarray (rows,), optional
        Where to write the cache's; rows being the product of the other axes.

    Returns
    -------
    y : ndarray like `x`
    cache : GroupNormCache
        For `group_norm_backward`.

    References
    ----------
    .. [1] J. L. Ba et al., "Layer normalization", 2016, eq. 3 and 4.
    """
    if not isinstance(x, np.ndarray) or x.ndim == 0:
        checks.array("x", x)
        raise ValueError("x must have at least one dimension, got shape ()")
    axes = checks.integer("axes", axes, 1, x.ndim)
    learnt = x.shape[x.ndim - axes :]
    shape = math.prod(x.shape[: x.ndim - axes]), 1, math.prod(learnt)
    return _normalise(x, shape, 1, scale, shift, learnt, eps, out, mean, inv_std)


def group_norm_forward(
    x: Array,
    groups: int,
    scale: Array | None = None,
    shift: Array | None = None,
    *,
    eps: float = 1e-5,
    out: Array | None = None,
    mean: NDArray[np.float64] | None = None,
    inv_std: NDArray[np.float64] | None = None,
) -> tuple[Array, GroupNormCache]:
    """Group normalisation [1]_: ``y = scale·(x − mean) / √(var + eps) + shift``, per sample over a group of channels.

    Parameters
    ----------
    x : ndarray (n, …, c)
    groups : int
        A divisor of c. Group g has the channels from ``g·c/groups`` on.
    scale, shift : ndarray (c,), optional
        Learnt for each channel; 1 and 0 where absent.
    eps, out
        As in `layer_norm_forward`.
    mean, inv_std : float64 ndarray (n · groups,), optional
        Where to write the cache's.

    Returns
    -------
    y : ndarray like `x`
    cache : GroupNormCache
        For `group_norm_backward`.

    References
    ----------
    .. [1] Y. Wu and K. He, "Group normalization", 2018, eq. 1 to 7.
    """
    shape = _pixels(x)
    groups = checks.integer("groups", groups, 1)
    if shape[2] % groups:
        raise ValueError(f"groups must divide the number of channels, {shape[2]}, got {groups}")
    return _normalise(x, shape, groups, scale, shift, shape[2:], eps, out, mean, inv_std)


def instance_norm_forward(
    x: Array,
    scale: Array | None = None,
    shift: Array | None = None,
    *,
    eps: float = 1e-5,
    out: Array | None = None,
    mean: NDArray[np.float64] | None = None,
    inv_std: NDArray[np.float64] | None = None,
) -> tuple[Array, GroupNormCache]:
    """Instance normalisation [1]_: ``y = scale·(x − mean) / √(var + eps) + shift``, per sample and channel.

    Parameters
    ----------
    x : ndarray (n, …, c)
    scale, shift, eps, out, mean, inv_std
        As in `group_norm_forward` with c groups.

    Returns
    -------
    y : ndarray like `x`
    cache : GroupNormCache
        For `group_norm_backward`.

    References
    ----------
    .. [1] D. Ulyanov et al., "Instance normalization", 2016, eq. 2.
    """
    shape = _pixels(x)
    return _normalise(x, shape, max(shape[2], 1), scale, shift, shape[2:], eps, out, mean, inv_std)


def group_norm_backward(
    dy: Array,
    cache: GroupNormCache,
    out: Array | None = None,
    dscale: Array | None = None,
    dshift: Array | None = None,
    parts: Array | None = None,
) -> tuple[Array, Array, Array]:
    """The gradients of `layer_norm_forward`, `group_norm_forward` and `instance_norm_forward`.

    Parameters
    ----------
    dy : ndarray like x
        The gradient with respect to y.
    cache : GroupNormCache
        From forward; x and scale must be unchanged since.
    out : ndarray like `dy`, optional
        Where to write dx.
    dscale, dshift : ndarray of as many elements as scale has or would have, optional
        Where to write those.
    parts : ndarray of the shape ``cache.parts_shape``, optional
        Room for sums over blocks of rows.

    Returns
    -------
    dx : ndarray like `dy`
    dscale, dshift : ndarray (channels,), or as given
    """
    if not isinstance(cache, GroupNormCache):
        raise TypeError(f"cache must come from a forward pass of this family, got {type(cache).__name__}")
    x, scale, mean, inv_std, groups = cache
    dx = _like("dy", dy, out)
    rows, pixels, channels = checks.array("cache.x", x, ndim=3).shape
    sizes = (rows, pixels, channels, checks.integer("cache.groups", groups, 1), rows * groups, _block(x.shape))
    learnt = {name: given for name, given in (("dscale", dscale), ("dshift", dshift)) if given is not None}
    for name, given in learnt.items():
        if checks.array(name, given, dtype=x.dtype, writable=True).size != channels:
            raise ValueError(f"{name} must have {channels} elements, got shape {given.shape}")
    if channels % groups or dy.size != x.size:
        checks.array("dy", dy, dtype=x.dtype, shape=x.shape)
        raise ValueError(f"cache.groups must divide the number of channels, {channels}, got {groups}")
    if out is not None and out.shape != dy.shape:
        checks.output("out", out, dy, apart_from={})
    given_parts = parts
    if parts is None:
        parts = np.empty(cache.parts_shape, x.dtype)
    else:
        _explain_outputs({}, parts=(parts, x.dtype, cache.parts_shape))
    if learnt:
        checks.apart(learnt)
        inputs = {"dy": dy, "cache.x": x, "out": dx, "parts": parts}
        for name, given in learnt.items():
            for other, array in inputs.items():
                if np.may_share_memory(given, array):
                    checks.apart({name: given, other: array})
    try:
        _group_norm_backward((dy.reshape(x.shape), x, scale, mean, inv_std, dx.reshape(x.shape), parts), sizes)
    except _kernels.Misfit:
        inputs = {"dy": checks.array("dy", dy, dtype=x.dtype), "cache.x": x}
        for name, value in (("cache.mean", mean), ("cache.inv_std", inv_std)):
            inputs[name] = checks.array(name, value, dtype=np.float64, shape=(rows * groups,))
        if scale is not None:
            inputs["cache.scale"] = checks.array("cache.scale", scale, dtype=x.dtype, shape=(channels,))
        checks.output("out", out, dy, apart_from=inputs)
        _explain_outputs({**inputs, "out": dx}, parts=(given_parts, x.dtype, cache.parts_shape))
        raise
    dlearnt = [np.empty(channels, x.dtype) if given is None else given for given in (dscale, dshift)]
    with np.errstate(all="ignore"):  # as in a kernel
        sums = np.add.reduce(parts, axis=0, dtype=np.float64) if x.size else np.zeros((2, channels))
        for result, total in zip(dlearnt, sums, strict=True):
            result.reshape(-1)[...] = total
    return dx, dlearnt[0], dlearnt[1]


def _normalise(
    x: Array,
    shape: tuple[int, int, int],
    groups: int,
    scale: Array | None,
    shift: Array | None,
    learnt: tuple[int, ...],
    eps: float,
    out: Array | None,
    mean: NDArray[np.float64] | None,
    inv_std: NDArray[np.float64] | None,
) -> tuple[Array, GroupNormCache]:
    """Group norm of x as (rows, pixels, channels), with scale and shift of the shape `learnt`."""
    checks.array("x", x)
    y = _like("x", x, out)
    eps = checks.number("eps", eps, "[0, inf)")
    for name, value in (("scale", scale), ("shift", shift)):
        if value is not None:
            checks.array(name, value, dtype=x.dtype, shape=learnt)
    count = shape[0] * groups
    statistics = np.empty(count) if mean is None else mean, np.empty(count) if inv_std is None else inv_std
    flat = [None if value is None else value.reshape(-1) for value in (scale, shift)]
    try:
        _group_norm_forward((x, *flat, y, *statistics), (*shape, groups, count), (eps,))
    except _kernels.Misfit:
        given = {name: a for name, a in (("x", x), ("scale", scale), ("shift", shift)) if a is not None}
        checks.output("out", out, x, apart_from=given)
        double = np.dtype(np.float64), (count,)
        _explain_outputs({"out": y, **given}, mean=(mean, *double), inv_std=(inv_std, *double))
        raise
    if not x.size:
        for empty in statistics:
            empty.fill(0)
    return y, GroupNormCache(x.reshape(shape), flat[0], *statistics, groups)


def _pixels(x: Array) -> tuple[int, int, int]:
    """The shape (n, …, c) as (n, pixels, c)."""
    if not isinstance(x, np.ndarray) or x.ndim < 2:
        checks.array("x", x)
        raise ValueError(f"x must have shape (n, …, c), got {x.shape}")
    return x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1]


def _block(shape: tuple[int, ...]) -> int:
    """How many rows of (rows, pixels, channels) are added up before their sum goes to a part of its own."""
    _, pixels, channels = shape
    return max(min(65536 // max(pixels * channels, 1), 64), -(-16 // max(pixels, 1)))


# ---- Images -------------------------------------------------------------------------------------------------

_max_pool_forward = _kernels.Layer("max_pool_forward")
_max_pool_backward = _kernels.Layer("max_pool_backward")
_average_pool_forward = _kernels.Layer("average_pool_forward")
_average_pool_backward = _kernels.Layer("average_pool_backward")
_conv_pack = _kernels.Layer("conv_pack")
_conv_forward = _kernels.Layer("conv_forward")
_winograd_pack = _kernels.Layer("winograd_pack")
_winograd_forward = _kernels.Layer("winograd_forward")
_winograd_weight_grad = _kernels.Layer("winograd_weight_grad")
_conv_weight_grad = _kernels.Layer("conv_weight_grad")
_im2col = _kernels.Layer("im2col")
_col2im = _kernels.Layer("col2im")

Pair = int | tuple[int, int]


def max_pool_forward(
    x: Array, size: Pair, stride: Pair | None = None, out: Array | None = None, winner: NDArray[Any] | None = None
) -> tuple[Array, NDArray[Any]]:
    """The maximum of each window, without padding. NaN wins; of equals, the first.

    Parameters
    ----------
    x : ndarray (n, h, w, c)
    size : int or (int, int)
        Height and width of the window.
    stride : int or (int, int), optional
        Distance from window to window; `size` where absent. What is left over at the border is ignored.
    out : ndarray (n, oh, ow, c), optional
        Where to write y.
    winner : ndarray (n, oh, ow, c) of `winner_type`, optional
        Where to write that.

    Returns
    -------
    y : ndarray (n, oh, ow, c)
        With ``oh = (h − size) // stride + 1``.
    winner : integer ndarray like y
        For `max_pool_backward`: which element of its window won, counted row by row.
    """
    checks.array("x", x, ndim=4)
    sizes, shape = _pooling(x.shape, size, stride)
    y = checks.output("out", out, x, shape=shape, apart_from={"x": x})
    if winner is None:
        winner = np.empty(shape, winner_type(x.dtype))
    else:
        _explain_outputs({"x": x, "out": y}, winner=(winner, winner_type(x.dtype), shape))
    _max_pool_forward((x, y, winner), sizes)
    return y, winner


def max_pool_backward(
    dy: Array,
    winner: NDArray[Any],
    shape: tuple[int, int, int, int],
    size: Pair,
    stride: Pair | None = None,
    out: Array | None = None,
) -> Array:
    """The gradient of `max_pool_forward`: each dy goes to the element that won.

    Parameters
    ----------
    dy : ndarray (n, oh, ow, c)
        The gradient with respect to y.
    winner : integer ndarray like `dy`
        From `max_pool_forward`.
    shape : tuple of int
        The shape (n, h, w, c) of x.
    size, stride
        As in `max_pool_forward`.
    out : ndarray (n, h, w, c), optional
        Where to write dx.

    Returns
    -------
    dx : ndarray (n, h, w, c)
    """
    sizes, pooled = _pooling(shape, size, stride)
    checks.array("dy", dy, shape=pooled)
    checks.array("winner", winner, dtype=winner_type(dy.dtype), shape=pooled)
    dx = checks.output("out", out, dy, shape=tuple(shape), apart_from={"dy": dy, "winner": winner})
    _max_pool_backward((dy, winner, dx), sizes)
    return dx


def average_pool_forward(x: Array, size: Pair, stride: Pair | None = None, out: Array | None = None) -> Array:
    """The mean of each window, without padding.

    Parameters
    ----------
    x : ndarray (n, h, w, c)
    size, stride
        As in `max_pool_forward`.
    out : ndarray (n, oh, ow, c), optional
        Where to write y.

    Returns
    -------
    y : ndarray (n, oh, ow, c)
        With ``oh = (h − size) // stride + 1``.
    """
    checks.array("x", x, ndim=4)
    sizes, shape = _pooling(x.shape, size, stride)
    y = checks.output("out", out, x, shape=shape, apart_from={"x": x})
    _average_pool_forward((x, y), sizes)
    return y


def average_pool_backward(
    dy: Array,
    shape: tuple[int, int, int, int],
    size: Pair,
    stride: Pair | None = None,
    out: Array | None = None,
) -> Array:
    """The gradient of `average_pool_forward`: each dy is shared out among the elements of its window.

    Parameters
    ----------
    dy : ndarray (n, oh, ow, c)
        The gradient with respect to y.
    shape : tuple of int
        The shape (n, h, w, c) of x.
    size, stride
        As in `max_pool_forward`.
    out : ndarray (n, h, w, c), optional
        Where to write dx.

    Returns
    -------
    dx : ndarray (n, h, w, c)
    """
    sizes, pooled = _pooling(shape, size, stride)
    checks.array("dy", dy, shape=pooled)
    dx = checks.output("out", out, dy, shape=tuple(shape), apart_from={"dy": dy})
    _average_pool_backward((dy, dx), sizes)
    return dx


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    *,
    relu: bool = False,
    winograd: bool = False,
    out: Array | None = None,
    packed: Array | None = None,
) -> Array:
    """A convolution without `im2col`: ``y = Σ x[…, s·oy + ky − p, s·ox + kx − p, c] · weight[ky, kx, c, k] + bias``.

    Faster than a matrix product where there are few channels; see `conv2d_fits` for what it takes.

    Parameters
    ----------
    x : ndarray (n, h, w, c)
    weight : ndarray (kh, kw, c, k)
    bias : ndarray (k,), optional
    stride, padding : int or (int, int)
        As in `im2col`.
    relu : bool, default False
        Whether to apply `relu_forward` to y.
    winograd : bool, default False
        Whether to compute by Winograd's F(2 × 2, 3 × 3) [1]_, about twice as fast: see `winograd_fits` for what it
        takes. Sums are rounded in another order; and a NaN or infinity reaches the whole 2 × 2 pixels of a tile.
    out : ndarray (n, oh, ow, k), optional
        Where to write y.
    packed : ndarray of `packed_shape`, optional
        Where to lay out the weights meanwhile.

    Returns
    -------
    y : ndarray (n, oh, ow, k)

    References
    ----------
    .. [1] A. Lavin and S. Gray, "Fast algorithms for convolutional neural networks", 2016, sec. 4.1.
    """
    checks.array("x", x, ndim=4)
    checks.array("weight", weight, dtype=x.dtype, ndim=4)
    sizes, shape, filters = _convolution(x.shape, weight, stride, padding, winograd)
    given = {"x": x, "weight": weight}
    if bias is not None:
        given["bias"] = checks.array("bias", bias, dtype=x.dtype, shape=(filters,))
    relu = checks.flag("relu", relu)
    y = checks.output("out", out, x, shape=(*shape[:3], filters), apart_from=given)
    own = _packed(weight, False, winograd, packed, {**given, "out": y})
    if winograd:
        _winograd_forward((x, own, bias, y), (*sizes[:4], *sizes[8:10], filters, relu))
    else:
        _conv_forward((x, own, bias, y), (*sizes[:10], filters, relu))
    return y


def conv2d_input_grad(
    dy: Array,
    weight: Array,
    shape: tuple[int, int, int, int],
    padding: Pair = 0,
    *,
    winograd: bool = False,
    out: Array | None = None,
    packed: Array | None = None,
) -> Array:
    """The gradient of `conv2d` with respect to x, for a stride of 1 and a padding below the weight's size.

    Parameters
    ----------
    dy : ndarray (n, oh, ow, k)
        The gradient with respect to y.
    weight : ndarray (kh, kw, c, k)
    shape : tuple of int
        The shape (n, h, w, c) of x.
    padding : int or (int, int)
    winograd : bool, default False
        As in `conv2d`.
    out : ndarray (n, h, w, c), optional
        Where to write dx.
    packed : ndarray of ``packed_shape(weight.shape, reverse=True)``, optional
        Where to lay out the weights meanwhile.

    Returns
    -------
    dx : ndarray (n, h, w, c)
    """
    checks.array("dy", dy, ndim=4)
    checks.array("weight", weight, dtype=dy.dtype, ndim=4)
    _, wanted, filters = _convolution(shape, weight, 1, padding, winograd)
    checks.array("dy", dy, shape=(*wanted[:3], filters))
    pads = checks.pair("padding", padding, 0)
    kh, kw, c, _ = weight.shape
    if pads[0] >= kh or pads[1] >= kw:
        raise ValueError(f"padding must be below the weight's size {(kh, kw)}, got {pads}")
    dx = checks.output("out", out, dy, shape=tuple(shape), apart_from={"dy": dy, "weight": weight})
    own = _packed(weight, True, winograd, packed, {"dy": dy, "weight": weight, "out": dx})
    # A convolution of dy, whose weights are those of y with the taps in reverse order.
    pads = (kh - 1 - pads[0], kw - 1 - pads[1])
    if winograd:
        _winograd_forward((dy, own, None, dx), (*dy.shape, *pads, c, False))
    else:
        _conv_forward((dy, own, None, dx), (*dy.shape, kh, kw, 1, 1, *pads, c, False))
    return dx


def conv2d_weight_grad(
    x: Array,
    dy: Array,
    size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    *,
    winograd: bool = False,
    out: Array | None = None,
    sums: Array | None = None,
    dbias: Array | None = None,
) -> Array:
    """The gradient of `conv2d` with respect to the weight, and to the bias where wanted.

    Parameters
    ----------
    x : ndarray (n, h, w, c)
    dy : ndarray (n, oh, ow, k)
        The gradient with respect to y; k must be a multiple of 16.
    size : int or (int, int)
        Height kh and width kw of the weight.
    stride, padding : int or (int, int)
    winograd : bool, default False
        As in `conv2d`.
    out : ndarray (kh, kw, c, k), optional
        Where to write dweight.
    sums : ndarray (16, c, k), optional
        Where to sum up meanwhile, for `winograd`.
    dbias : ndarray (k,), optional
        Where to write the gradient with respect to the bias: the sum of dy over pixels, taken as those of the weights
        are, by blocks in the real type (`bias_backward` goes over to double).

    Returns
    -------
    dweight : ndarray (kh, kw, c, k)
    """
    checks.array("x", x, ndim=4)
    sizes, wanted = _patches(x.shape, size, stride, padding, 1)
    checks.array("dy", dy, dtype=x.dtype)
    filters = dy.shape[-1] if dy.ndim == 4 else 16
    checks.array("dy", dy, shape=(*wanted[:3], filters))
    if not conv2d_fits(x.shape, filters, size, stride, padding) or filters % 16:
        raise ValueError(f"x and dy must fit, and dy have a multiple of 16 filters, got {x.shape} and {dy.shape}")
    _check_winograd(winograd, (*wanted[3:], filters), stride)
    dweight = checks.output("out", out, x, shape=(*wanted[3:], filters), apart_from={"x": x, "dy": dy})
    shape = (16, x.shape[3], filters)
    outputs = {"sums": (sums if winograd else None, x.dtype, shape), "dbias": (dbias, x.dtype, (filters,))}
    _explain_outputs({"x": x, "dy": dy, "out": dweight}, **outputs)
    if not winograd:
        _conv_weight_grad((x, dy, dweight, dbias), (*sizes[:10], filters))
        return dweight
    own = np.empty(shape, x.dtype) if sums is None else sums
    _winograd_weight_grad((x, dy, dweight, own, dbias), (*sizes[:4], *sizes[8:10], filters))
    return dweight


def conv2d_fits(shape: tuple[int, ...], filters: int, size: Pair, stride: Pair = 1, padding: Pair = 0) -> bool:
    """Whether `conv2d` and its gradients take images of a shape (n, h, w, c): a kernel's height of rows, with all the
    padding that each needs, must hold at most 2¹⁴ numbers, in x as in dy."""
    (_, _, w, c, kh, kw, _, sw, *_), patches = _patches(shape, size, stride, padding, 1)
    return kh <= 64 and kh * max(((patches[2] - 1) * sw + kw) * c, (w + kw - 1) * filters) <= 2**14


def winograd_fits(weight: tuple[int, ...], stride: Pair = 1) -> bool:
    """Whether weights of a shape (kh, kw, c, k) can be had with ``winograd=True``: 3 × 3 at a stride of 1, c and k
    multiples of 16 up to 128."""
    kh, kw, *deep = weight
    return (kh, kw) == (3, 3) and stride in (1, (1, 1)) and all(n % 16 == 0 and 0 < n <= 128 for n in deep)


def _check_winograd(winograd: bool, weight: tuple[int, ...], stride: Pair) -> None:
    if checks.flag("winograd", winograd) and not winograd_fits(weight, stride):
        raise ValueError(f"winograd must be False for a weight of shape {weight} at stride {stride}: see winograd_fits")


def packed_shape(
    weight: tuple[int, ...], *, reverse: bool = False, winograd: bool = False
) -> tuple[int, int, int, int]:
    """The shape in which `conv2d` (with `reverse`, `conv2d_input_grad`) lays out weights of a shape (kh, kw, c, k)."""
    kh, kw, c, filters = weight
    wide, deep = (c, filters) if reverse else (filters, c)
    parts = -(-wide // 32)
    return (16, parts, deep, 32) if winograd else (parts, kh * kw, deep, 32)


def _packed(weight: Array, reverse: bool, winograd: bool, packed: Array | None, others: dict[str, Array]) -> Array:
    shape = packed_shape(weight.shape, reverse=reverse, winograd=winograd)
    own = np.empty(shape, weight.dtype) if packed is None else packed
    _explain_outputs(others, packed=(packed, weight.dtype, shape))
    kh, kw, c, filters = weight.shape
    if winograd:
        _winograd_pack((weight, own), (c, filters, reverse))
    else:
        _conv_pack((weight, own), (kh * kw, c, filters, reverse))
    return own


def _convolution(
    shape: Any, weight: Array, stride: Pair, padding: Pair, winograd: bool
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The sizes that the kernels take, the shape of all patches, and the number of filters."""
    kh, kw, c, filters = weight.shape
    sizes, patches = _patches(shape, size := (kh, kw), stride, padding, 1)
    if shape[3] != c:
        raise ValueError(f"weight must have shape (kh, kw, {shape[3]}, k), got {weight.shape}")
    if not conv2d_fits(shape, filters, size, stride, padding):
        raise ValueError(f"x and weight must fit (see conv2d_fits), got {tuple(shape)} and {weight.shape}")
    _check_winograd(winograd, weight.shape, stride)
    return sizes, patches, filters


def im2col(
    x: Array, size: Pair, stride: Pair = 1, padding: Pair = 0, out: Array | None = None, *, dilation: Pair = 1
) -> Array:
    """The patch under each place of a sliding window, as a row: convolution becomes a matrix product.

    Parameters
    ----------
    x : ndarray (n, h, w, c)
    size : int or (int, int)
        Height kh and width kw of the window.
    stride : int or (int, int), default 1
    padding : int or (int, int), default 0
        Zeros on each side.
    out : ndarray (n, oh, ow, kh, kw, c), optional
        Where to write.
    dilation : int or (int, int), default 1
        Distance of neighbours in the window: only each such pixel is taken.

    Returns
    -------
    columns : ndarray (n, oh, ow, kh, kw, c)
        With ``oh = (h + 2·padding − dilation·(kh − 1) − 1) // stride + 1``. A copy:
        ``columns.reshape(-1, kh * kw * c)`` is free.
    """
    checks.array("x", x, ndim=4)
    sizes, shape = _patches(x.shape, size, stride, padding, dilation)
    columns = checks.output("out", out, x, shape=shape, apart_from={"x": x})
    _im2col((x, columns), sizes)
    return columns


def col2im(
    columns: Array,
    shape: tuple[int, int, int, int],
    size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    out: Array | None = None,
    *,
    dilation: Pair = 1,
) -> Array:
    """The transpose of `im2col`, its gradient: rows are added back to the pixels that they came from.

    Parameters
    ----------
    columns : ndarray (n, oh, ow, kh, kw, c)
    shape : tuple of int
        The shape (n, h, w, c) of the image.
    size, stride, padding, dilation
        As in `im2col`.
    out : ndarray (n, h, w, c), optional
        Where to write.

    Returns
    -------
    x : ndarray (n, h, w, c)
    """
    sizes, wanted = _patches(shape, size, stride, padding, dilation)
    checks.array("columns", columns, shape=wanted)
    x = checks.output("out", out, columns, shape=tuple(shape), apart_from={"columns": columns})
    _col2im((columns, x), sizes)
    return x


# ---- Depthwise convolution ----------------------------------------------------------------------------------

_depthwise_forward = _kernels.Layer("depthwise_forward")
_depthwise_backward = _kernels.Layer("depthwise_backward")
_depthwise_weight_backward = _kernels.Layer("depthwise_weight_backward")


def depthwise_forward(
    x: Array, weight: Array, stride: Pair = 1, padding: Pair = 0, out: Array | None = None, *, dilation: Pair = 1
) -> Array:
    """A convolution of each channel by itself: ``y = Σ x[window]·weight``.

    Parameters
    ----------
    x : ndarray (n, h, w, c)
    weight : ndarray (kh, kw, c)
    stride, padding, dilation : int or (int, int)
        As in `im2col`.
    out : ndarray (n, oh, ow, c), optional
        Where to write y.

    Returns
    -------
    y : ndarray (n, oh, ow, c)
        With oh and ow as in `im2col`.
    """
    checks.array("x", x, ndim=4)
    checks.array("weight", weight, dtype=x.dtype, ndim=3)
    sizes, shape = _depthwise(x.shape, weight, stride, padding, dilation)
    y = checks.output("out", out, x, shape=shape, apart_from={"x": x, "weight": weight})
    _depthwise_forward((x, weight, y), sizes)
    return y


def depthwise_backward(
    dy: Array,
    x: Array,
    weight: Array,
    stride: Pair = 1,
    padding: Pair = 0,
    out: Array | None = None,
    dweight: Array | None = None,
    *,
    dilation: Pair = 1,
    input_grad: bool = True,
) -> tuple[Array | None, Array]:
    """The gradients of `depthwise_forward`.

    Parameters
    ----------
    dy : ndarray (n, oh, ow, c)
        The gradient with respect to y.
    x, weight, stride, padding, dilation
        As there.
    out : ndarray (n, h, w, c), optional
        Where to write dx.
    dweight : ndarray (kh, kw, c), optional
        Where to write that.
    input_grad : bool, default True
        False leaves dx out.

    Returns
    -------
    dx : ndarray (n, h, w, c) or None
    dweight : ndarray (kh, kw, c)
    """
    checks.array("x", x, ndim=4)
    checks.array("weight", weight, dtype=x.dtype, ndim=3)
    sizes, shape = _depthwise(x.shape, weight, stride, padding, dilation)
    checks.array("dy", dy, dtype=x.dtype, shape=shape)
    inputs = {"dy": dy, "x": x, "weight": weight}
    dx = checks.output("out", out, x, apart_from=inputs) if checks.flag("input_grad", input_grad) else None
    written = inputs if dx is None else inputs | {"out": dx}
    dweight = checks.output("dweight", dweight, weight, apart_from=written)
    if dx is not None:
        _depthwise_backward((dy, weight, dx), sizes)
    _depthwise_weight_backward((dy, x, dweight), sizes)
    return dx, dweight


def _depthwise(
    shape: tuple[int, ...], weight: Array, stride: Pair, padding: Pair, dilation: Pair
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sizes that the kernels take, and the shape of y."""
    if weight.shape[2] != shape[3]:
        raise ValueError(f"weight must have {shape[3]} channels, got shape {weight.shape}")
    sizes, patches = _patches(shape, (weight.shape[0], weight.shape[1]), stride, padding, dilation)
    return sizes, (*patches[:3], shape[3])


def winner_type(real: np.dtype[Any]) -> np.dtype[Any]:
    """The type of the places that `max_pool_forward` returns beside reals of a type: integers as wide."""
    return np.dtype(np.int32 if real == np.float32 else np.int64)


def _pooling(shape: Any, size: Pair, stride: Pair | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    sizes, patches = _patches(shape, size, size if stride is None else stride, 0, 1)
    return sizes[:8], (*patches[:3], shape[3])


def patches_shape(
    shape: tuple[int, ...], size: Pair, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1
) -> tuple[int, ...]:
    """The shape (n, oh, ow, kh, kw, c) that `im2col` returns for images of a shape (n, h, w, c)."""
    return _patches(shape, size, stride, padding, dilation)[1]


def _patches(
    shape: Any, size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sizes that the kernels take, and the shape (n, oh, ow, kh, kw, c) of all patches of an image."""
    if not (isinstance(shape, (tuple, list)) and len(shape) == 4):
        raise ValueError(f"shape must be (n, h, w, c), got {shape!r}")
    n, h, w, c = (checks.integer("shape", length, 0) for length in shape)
    (kh, kw), (sh, sw) = checks.pair("size", size, 1), checks.pair("stride", stride, 1)
    (ph, pw), (dh, dw) = checks.pair("padding", padding, 0), checks.pair("dilation", dilation, 1)
    room_h, room_w = h + 2 * ph - dh * (kh - 1) - 1, w + 2 * pw - dw * (kw - 1) - 1
    if room_h < 0 or room_w < 0:
        spread = "" if dh == dw == 1 else f" spread over {(dh * (kh - 1) + 1, dw * (kw - 1) + 1)}"
        padded = h + 2 * ph, w + 2 * pw
        raise ValueError(f"size must be at most that of the padded image {padded}, got {(kh, kw)}{spread}")
    sizes = (n, h, w, c, kh, kw, sh, sw, ph, pw, dh, dw)
    return sizes, (n, room_h // sh + 1, room_w // sw + 1, kh, kw, c)


# ---- Embedding ----------------------------------------------------------------------------------------------

_embedding_backward = _kernels.Layer("embedding_backward")


def embedding_backward(dy: Array, entries: NDArray[np.integer[Any]], count: int, out: Array | None = None) -> Array:
    """The gradient of ``y = table[entries]`` with respect to the table: of equal entries, the dy are added up.

    Parameters
    ----------
    dy : ndarray (…, d)
        The gradient with respect to y.
    entries : integer ndarray (…)
        Each in [0, count).
    count : int
        The number of entries of the table.
    out : ndarray (count, d), optional
        Where to write.

    Returns
    -------
    dtable : ndarray (count, d)
    """
    checks.array("dy", dy)
    places, width = _rows("dy", dy)
    count = checks.integer("count", count, 1)
    if not isinstance(entries, np.ndarray) or entries.shape != dy.shape[:-1]:
        got = entries.shape if isinstance(entries, np.ndarray) else type(entries).__name__
        raise ValueError(f"entries must be an array of shape {dy.shape[:-1]}, got {got}")
    own = checks.labels("entries", entries.reshape(-1), math.prod(entries.shape), count)
    dtable = checks.output("out", out, dy, shape=(count, width), apart_from={"dy": dy, "entries": entries})
    _embedding_backward((dy, own, dtable), (places, count, width))
    return dtable
