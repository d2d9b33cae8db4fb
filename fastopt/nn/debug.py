"""Checks that find bugs before a long training run does [1]_.

>>> from fastopt import data, nn
>>> x, y = data.digits()
>>> model = nn.Sequential([nn.Flatten(), nn.Dense(64, activation="relu"), nn.Dense(10)], x.shape[1:])
>>> bool(nn.debug.gradient_check(model, x[:32], y[:32]))
True
>>> bool(nn.debug.overfit_tiny(model, x, y))
True

Each works on a copy of the model, without dropout where that would disturb it, and returns a `Finding`.

.. [1] A. Karpathy, "A recipe for training neural networks", 2019; and the course CS231n, "Learning and evaluation".
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastopt import checks
from fastopt.checks import Array
from fastopt.drawing import RED, figure
from fastopt.nn.arguments import samples
from fastopt.nn.layers import Dropout, Grads
from fastopt.nn.losses import Loss, LossLike, loss_of, softmax_cross_entropy
from fastopt.nn.model import Sequential
from fastopt.nn.targets import accuracy, are_labels
from fastopt.nn.trainer import Steps
from fastopt.optimizer import Optimizer
from fastopt.optimizers import SGD, Adam


class Finding(NamedTuple):
    """The result of a check; true where it passed.

    Attributes
    ----------
    passed : bool
    message : str
        What was measured, and what it means.
    values : dict of float
        The measured values.

    Examples
    --------
    >>> finding = Finding(False, "the loss is too high", {"loss": 3.0})
    >>> bool(finding), str(finding)
    (False, 'FAILED: the loss is too high')
    """

    passed: bool
    message: str
    values: dict[str, float]

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        return f"{'passed' if self.passed else 'FAILED'}: {self.message}"


def without_dropout(model: Sequential, dtype: Any = None) -> Sequential:
    """A copy of a model in which dropout is the identity.

    Parameters
    ----------
    model : Sequential
    dtype : numpy.dtype, optional
        That of the copy; of the model where absent.

    Returns
    -------
    Sequential

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dropout(0.5)], (4,))
    >>> twin = nn.debug.without_dropout(model)
    >>> twin.forward(np.ones((1, 4), np.float32), training=True)[0]
    array([[1., 1., 1., 1.]], dtype=float32)
    """
    twin = model.copy(dtype=dtype)
    for layer in twin.walk():
        if isinstance(layer, Dropout):
            layer.p = 1.0 if layer.p_is == "keep" else 0.0
    return twin


def _pass(model: Sequential, x: Array, y: Array, loss: Loss) -> tuple[float, Array, Any, Grads]:
    """Loss, output, and the gradients with respect to the input and the parameters, in training."""
    output, cache = model.forward(x, training=True, counter=0)
    value, dy = loss_of(loss, output, y)
    return value, output, *model.backward(dy, cache)


# ---- Gradients ----------------------------------------------------------------------------------------------------


def gradient_check(
    model: Sequential,
    x: Array,
    y: Array,
    loss: LossLike = softmax_cross_entropy,
    *,
    inputs: bool = True,
    places: int = 20,
    step: float = 1e-5,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> Finding:
    """Compare the gradients of a copy in float64 with central differences, ``(L(p + h) − L(p − h)) / 2h``.

    The gradients are those of the layers, one by one, and of the program that `fit` runs.

    Parameters
    ----------
    model : Sequential
        Its dropout layers use the same mask in each pass.
    x, y : ndarray
        A small batch.
    loss : callable, default softmax_cross_entropy
    inputs : bool, default True
        Whether to check the gradient of the input, too; not where the input is integers, as for `Embedding`.
    places : int, default 20
        The number of elements of each parameter, and of the input, to compare; drawn at random.
    step : float, default 1e-5
        h, in (0, inf). A tenth of it is tried, too, in case a kink (of ReLU, say) is between the two points.
    tolerance : float, default 1e-6
        The largest error allowed in a parameter, relative to its largest gradient.
    seed : int, default 0

    Returns
    -------
    Finding
        `values`: that error by parameter, and of the input as ``"x"``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(4), nn.Tanh(), nn.Dense(2)], (3,))
    >>> finding = nn.debug.gradient_check(model, np.eye(3), np.array([0, 1, 0]))
    >>> finding.passed, sorted(finding.values)
    (True, ['0.bias', '0.weight', '2.bias', '2.weight', 'x'])
    """
    places, step = checks.integer("places", places, 1), checks.number("step", step, "(0, inf)")
    tolerance = checks.number("tolerance", tolerance, "(0, inf)")
    rng = np.random.default_rng(checks.integer("seed", seed, 0))
    twin = model.copy(dtype=np.float64)
    x, y, loss = samples(twin, x, y, loss)
    x = twin.converted(x)
    x = x.copy()
    _, _, dx, grads = _pass(twin, x, y, loss)
    with Steps(twin, None, check=False) as taken:
        taken.feed(x, y, None, loss)
        for _ in range(2):  # the second time, buffers hold what the pass before has left in them
            compiled = {name: grad.copy() for name, grad in taken.gradients([np.arange(len(x))], 0)[1].items()}
    given = {"x": x} if checks.flag("inputs", inputs) else {}
    arrays = {**given, **twin.params}
    ways = [{"x": dx, **grads}, {"x": dx, **compiled}]

    def value() -> float:
        return loss_of(loss, twin.forward(x, training=True, counter=0)[0], y)[0]

    differences, largest = {}, {}
    for name, array in arrays.items():
        chosen = rng.permutation(array.size)[:places]
        flat, gradients = array.reshape(-1), [exact[name].reshape(-1) for exact in ways]
        found = [_differences(flat, i, [gradient[i] for gradient in gradients], value, step) for i in chosen]
        differences[name] = float(np.max(found, initial=0.0))
        largest[name] = float(np.abs(gradients[0]).max(initial=0.0))
    floor = 1e-2 * max(largest.values()) or 1.0  # for gradients that are 0 up to rounding
    errors = {name: differences[name] / max(largest[name], floor) for name in arrays}
    worst = max(errors, key=errors.__getitem__)
    passed = not any(not error <= tolerance for error in errors.values())
    return Finding(passed, f"the largest relative error of a gradient is {errors[worst]:.1e}, in {worst}", errors)


def _differences(
    flat: Array, place: int, gradients: Sequence[float], value: Callable[[], float], step: float
) -> list[float]:
    """The distance of each gradient from the closer of two central differences."""
    kept, results = flat[place], []
    for h in (step, step / 10):
        ends = []
        for moved in (kept + h, kept - h):
            flat[place] = moved
            ends.append(value())
        results.append((ends[0] - ends[1]) / (2 * h))
    flat[place] = kept
    return [float(np.min([abs(result - gradient) for result in results])) for gradient in gradients]


# ---- Losses -------------------------------------------------------------------------------------------------------


def check_initial_loss(
    model: Sequential,
    x: Array,
    y: Array,
    loss: LossLike = softmax_cross_entropy,
    *,
    tolerance: float = 0.25,
) -> Finding:
    """Whether the loss before training is that of guessing, which is that of outputs that are all 0.

    For softmax cross-entropy of C classes that is ``log C``. A higher one says that the last layer's initial weights
    are too large, so that the first steps only shrink them (or that targets are wrong).

    Parameters
    ----------
    model : Sequential
        Not trained yet.
    x, y : ndarray
        A batch of about 100 samples.
    loss : callable, default softmax_cross_entropy
    tolerance : float, default 0.25
        The allowed distance from the expected loss, relative to it.

    Returns
    -------
    Finding
        `values`: ``loss``, ``expected``.

    Examples
    --------
    >>> from fastopt import data, nn
    >>> x, y = data.digits()
    >>> for init in ("zeros", "large"):
    ...     model = nn.Sequential([nn.Flatten(), nn.Dense(10, init=init)], x.shape[1:])
    ...     print(bool(nn.debug.check_initial_loss(model, x[:100], y[:100])))
    True
    False
    """
    tolerance = checks.number("tolerance", tolerance, "[0, inf)")
    twin = without_dropout(model)
    x, y, loss = samples(twin, x, y, loss)
    x = twin.converted(x)
    output, _ = twin.forward(x, training=True, counter=0)
    found, expected = loss_of(loss, output, y)[0], loss_of(loss, np.zeros_like(output), y)[0]
    passed = abs(found - expected) <= tolerance * expected
    message = f"the initial loss is {found:.4g}, that of guessing {expected:.4g}"
    return Finding(passed, message, {"loss": found, "expected": expected})


def overfit_tiny(
    model: Sequential,
    x: Array,
    y: Array,
    loss: LossLike = softmax_cross_entropy,
    *,
    n: int = 20,
    steps: int = 500,
    lr: float = 3e-3,
    target: float = 0.02,
    seed: int = 0,
) -> Finding:
    """Whether the model can overfit a few samples, by Adam on all of them at once.

    Where it cannot, something is wrong: a gradient, the loss, the targets, the order of samples and targets.

    Parameters
    ----------
    model : Sequential
    x, y : ndarray
        `n` samples are drawn from them.
    loss : callable, default softmax_cross_entropy
        Its minimum must be 0.
    n : int, default 20
    steps : int, default 500
        The largest number of steps.
    lr : float, default 3e-3
    target : float, default 0.02
        The share of the first loss that must be reached.
    seed : int, default 0

    Returns
    -------
    Finding
        `values`: ``first`` and ``loss`` (in training), ``steps``, and ``accuracy`` where there are labels.

    Examples
    --------
    >>> from fastopt import data, nn
    >>> x, y = data.digits()
    >>> model = nn.Sequential([nn.Flatten(), nn.Dense(64, activation="relu"), nn.Dense(10)], x.shape[1:])
    >>> finding = nn.debug.overfit_tiny(model, x, y)
    >>> finding.passed, finding.values["accuracy"]
    (True, 1.0)
    """
    x, y, loss = _few(model, x, y, loss, n, seed)
    twin = without_dropout(model)
    return _overfitted(twin, x, y, loss, Adam(twin.params, lr=lr), steps, target)


def _few(model: Sequential, x: Array, y: Array, loss: LossLike, n: int, seed: int) -> tuple[Array, Array, Loss]:
    """`n` random samples, and the loss."""
    n = checks.integer("n", n, 1)
    x, y, loss = samples(model, x, y, loss)
    x = model.converted(x)
    chosen = np.random.default_rng(checks.integer("seed", seed, 0)).permutation(len(x))[:n]
    return x[chosen], y[chosen], loss


def _overfitted(
    model: Sequential, x: Array, y: Array, loss: Loss, optimizer: Optimizer, steps: int, target: float
) -> Finding:
    steps = checks.integer("steps", steps, 1)
    target = checks.number("target", target, "[0, 1)")
    first = math.nan
    for step in range(steps + 1):
        value, output, _, grads = _pass(model, x, y, loss)
        first = value if step == 0 else first
        if not math.isfinite(value) or value <= target * first or step == steps:
            break
        optimizer.step(grads)
    values = {"first": first, "loss": value, "steps": float(step)}
    message = f"{len(x)} samples learnt by heart: loss {first:.4g} → {value:.4g} in {step} steps"
    if are_labels(y):
        values["accuracy"] = accuracy(output, y)
        message += f", accuracy {values['accuracy']:.3f}"
    return Finding(value <= target * first, message, values)


def check_regularisation(
    model: Sequential,
    x: Array,
    y: Array,
    loss: LossLike = softmax_cross_entropy,
    *,
    optimizer: Callable[[Mapping[str, Array], float], Optimizer] | None = None,
    weight_decay: float = 0.1,
    n: int = 20,
    steps: int = 200,
    seed: int = 0,
) -> Finding:
    """Whether regularisation has an effect: it must raise the loss on samples that the model overfits.

    Trains copies on a few samples, without regularisation and with weight decay; then applies dropout, where the model
    has any, to the copy that was trained without it. Where a loss is not above that without regularisation, the
    regularisation is not used, or too weak to matter.

    Parameters
    ----------
    model : Sequential
    x, y : ndarray
        `n` samples are drawn from them.
    loss : callable, default softmax_cross_entropy
    optimizer : callable, optional
        ``optimizer(params, weight_decay) -> Optimizer``: yours, with that decay; SGD with ``lr=0.1`` where absent.
    weight_decay : float, default 0.1
    n : int, default 20
    steps : int, default 200
    seed : int, default 0

    Returns
    -------
    Finding
        `values`: the last loss, ``plain``, with ``weight_decay``, and with ``dropout`` (the mean over 20 masks).

    Examples
    --------
    >>> from fastopt import data, nn
    >>> x, y = data.digits()
    >>> layers = [nn.Flatten(), nn.Dense(32, activation="relu"), nn.Dropout(0.3), nn.Dense(10)]
    >>> finding = nn.debug.check_regularisation(nn.Sequential(layers, x.shape[1:]), x, y)
    >>> finding.passed, sorted(finding.values)
    (True, ['dropout', 'plain', 'weight_decay'])
    """
    decay = checks.number("weight_decay", weight_decay, "(0, inf)")
    x, y, loss = _few(model, x, y, loss, n, seed)
    make = optimizer or (lambda params, decay: SGD(params, lr=0.1, weight_decay=decay))

    values: dict[str, float] = {}
    for name, strength in (("plain", 0.0), ("weight_decay", decay)):
        twin = without_dropout(model)
        values[name] = _overfitted(twin, x, y, loss, make(twin.params, strength), steps, 0.0).values["loss"]
        if name == "plain" and any(isinstance(layer, Dropout) for layer in model.walk()):
            dropping = model.copy()
            for key, param in dropping.params.items():
                np.copyto(param, twin.params[key])
            passes = (dropping.forward(x, training=True, counter=counter)[0] for counter in range(20))
            values["dropout"] = float(np.mean([loss_of(loss, output, y)[0] for output in passes]))
    rounding = 1e-6 * abs(values["plain"])
    idle = [name for name, value in values.items() if name != "plain" and not value > values["plain"] + rounding]
    losses = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    return Finding(
        not idle, f"last losses: {losses}" + (f"; {' and '.join(idle)} did not raise it" if idle else ""), values
    )


# ---- Mistakes -----------------------------------------------------------------------------------------------------


class Mistakes(NamedTuple):
    """The samples with the highest loss, the worst first.

    Attributes
    ----------
    indices : ndarray (k,)
    losses : ndarray (k,)
    outputs : ndarray (k, …)
        The model's outputs in inference.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> model = nn.Sequential([nn.Dense(2, init="zeros", bias_init=[1.0, 0.0])], (1,))  # always answers 0
    >>> found = nn.debug.worst_mistakes(model, np.zeros((4, 1)), np.array([0, 0, 1, 0]), k=2)
    >>> found.indices, found.losses.round(2)
    (array([2, 0]), array([1.31, 0.31]))
    """

    indices: NDArray[np.int64]
    losses: Array
    outputs: Array


def worst_mistakes(
    model: Sequential, x: Array, y: Array, loss: LossLike = softmax_cross_entropy, *, k: int = 25
) -> Mistakes:
    """The samples with the highest loss in inference.

    Parameters
    ----------
    model : Sequential
    x, y : ndarray
    loss : callable, default softmax_cross_entropy
    k : int, default 25
        The number of samples.

    Returns
    -------
    Mistakes

    Examples
    --------
    >>> from fastopt import data, nn
    >>> x, y, x_test, y_test = data.load("digits")
    >>> model = nn.Sequential([nn.Flatten(), nn.Dense(10)], x.shape[1:])
    >>> history = model.fit(x, y, epochs=5)
    >>> found = nn.debug.worst_mistakes(model, x_test, y_test, k=3)
    >>> bool((found.outputs.argmax(axis=1) != y_test[found.indices]).all())
    True
    """
    k = checks.integer("k", k, 1)
    x, y, loss = samples(model, x, y, loss)
    x = model.converted(x)
    outputs = model.predict(x)
    losses = np.array([loss_of(loss, outputs[i : i + 1], y[i : i + 1])[0] for i in range(len(x))])
    worst = np.argsort(-losses, kind="stable")[:k]
    return Mistakes(worst, losses[worst], outputs[worst])


def plot_mistakes(
    model: Sequential,
    x: Array,
    y: Array,
    path: str | os.PathLike[str] | None = None,
    loss: LossLike = softmax_cross_entropy,
    *,
    k: int = 25,
    names: Sequence[str] | None = None,
) -> Any:
    """Plot the images with the highest loss, each with its label, the predicted one, and its loss.

    Parameters
    ----------
    model : Sequential
    x : ndarray (n, h, w, c)
        Images, of one channel or three.
    y : ndarray (n,)
        Integer labels.
    path : path, optional
        Where to write the page. Its suffix decides the format.
    loss : callable, default softmax_cross_entropy
    k : int, default 25
    names : sequence of str, optional
        The names of the classes.

    Returns
    -------
    Mistakes or matplotlib.figure.Figure
        Without a path, the page, which a notebook shows.

    Raises
    ------
    ImportError
        Where matplotlib is missing: it is the extra ``plot``.

    Examples
    --------
    >>> from fastopt import data, nn
    >>> x, y, x_test, y_test = data.load("digits")
    >>> model = nn.Sequential([nn.Flatten(), nn.Dense(10)], x.shape[1:])
    >>> history = model.fit(x, y, epochs=5)
    >>> found = nn.debug.plot_mistakes(model, x_test, y_test, "mistakes.png", k=9)
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 4 or x.shape[3] not in (1, 3):
        raise ValueError(f"x must be images (n, h, w, 1 or 3), got shape {x.shape}")
    if not are_labels(y):
        raise ValueError("y must be integer labels (n,)")
    found = worst_mistakes(model, x, y, loss, k=k)
    columns = math.ceil(math.sqrt(len(found.indices))) or 1
    rows = math.ceil(len(found.indices) / columns) or 1
    page = figure((1.6 * columns, 1.9 * rows))
    low, high = float(x.min(initial=0.0)), float(x.max(initial=1.0))
    for place, (i, value, output) in enumerate(zip(*found, strict=True)):
        axes = page.add_subplot(rows, columns, place + 1)
        axes.imshow((x[i] - low) / (high - low), cmap="gray_r", vmin=0, vmax=1)
        truth, taken = (str(c) if names is None else names[c] for c in (int(y[i]), int(output.argmax())))
        said = f"{truth}, taken for {taken}" if truth != taken else truth
        axes.set_title(f"{said}\n#{i}, loss {value:.2f}", fontsize=8, color=RED if truth != taken else "black")
        axes.axis("off")
    if path is None:
        return page
    page.savefig(path, dpi=120)
    return found
