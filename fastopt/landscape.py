"""Optimizers on functions of two variables, and plots of their paths: `fastopt landscape`.

>>> from fastopt import landscape
>>> adam = landscape.best("adam", "rosenbrock", steps=300)
>>> bool(adam.losses[-1] < 1e-2 * adam.losses[0])
True
>>> mine = landscape.surface(lambda x, y: x**2 + 10 * y**2, start=(-2, 1), limits=(-3, 3, -2, 2))
>>> heavy = landscape.descend("momentum", mine, 0.01, momentum=0.5)
>>> page = landscape.picture(mine, [heavy, landscape.best("sgd", mine)])
"""

from __future__ import annotations

import ast
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fastopt import checks, files
from fastopt.checks import Array
from fastopt.drawing import COLOURS, YELLOW, figure, require_matplotlib, save_png
from fastopt.optimizers import OPTIMIZERS, LookAheadNesterov

# ---- Surfaces -----------------------------------------------------------------------------------------------


class Surface(NamedTuple):
    """A function of x and y to minimise.

    Attributes
    ----------
    title : str
        Its name, and its difficulty.
    function, gradient : callable
        The value at (x, y), and both partial derivatives, for numbers and arrays alike.
    start : tuple of float
    limits : tuple of float
        Left, right, bottom and top of the plot.
    minima : tuple of tuple of float
        All local minima, the lowest first; none where the function has none within the limits.
    steps : int
        The default number of steps.
    optimizers : tuple of str
        The default optimizers.
    noise : float, default 0.0
        The standard deviation of the noise that is added to each derivative.

    Examples
    --------
    >>> from fastopt import landscape
    >>> rosenbrock = landscape.SURFACES["rosenbrock"]
    >>> rosenbrock.minima, rosenbrock.excess(1.0, 1.0), rosenbrock.excess(1.0, 2.0)
    (((1.0, 1.0),), 0.0, 100.0)
    """

    title: str
    function: Callable[[Any, Any], Any]
    gradient: Callable[[Any, Any], tuple[Any, Any]]
    start: tuple[float, float]
    limits: tuple[float, float, float, float]
    minima: tuple[tuple[float, float], ...]
    steps: int
    optimizers: tuple[str, ...]
    noise: float = 0.0

    def excess(self, x: Any, y: Any) -> Any:
        """The difference from the value at the lowest minimum, or from the lowest one within the limits."""
        lowest = self.minima[0] if self.minima else _lowest(self.function, self.limits)
        return self.function(x, y) - self.function(*lowest)


def _saddle(x: Any, y: Any) -> Any:
    """Y. Nesterov, "Introductory lectures on convex optimization", 2004, chapter 1; steeper in x, wider in y."""
    return 4 * x**2 - y**2 / 2 + y**4 / 8


def _saddle_gradient(x: Any, y: Any) -> tuple[Any, Any]:
    return 8 * x, y**3 / 2 - y


#: The direction of the ravine, 30 degrees from the axis of x.
_COS, _SIN = math.cos(math.pi / 6), math.sin(math.pi / 6)


def _ravine(x: Any, y: Any) -> Any:
    """A quadratic with a condition number of 80, as in B. Polyak, "Some methods of speeding up the convergence of
    iteration methods", 1964; rotated, since it is easy for methods that scale each coordinate otherwise."""
    along, across = _COS * x + _SIN * y, _COS * y - _SIN * x
    return (along**2 + 80 * across**2) / 2


def _ravine_gradient(x: Any, y: Any) -> tuple[Any, Any]:
    along, across = _COS * x + _SIN * y, 80 * (_COS * y - _SIN * x)
    return _COS * along - _SIN * across, _SIN * along + _COS * across


def _beale(x: Any, y: Any) -> Any:
    """E. Beale, "On an iterative method for finding a local minimum of a function of more than one variable", 1958."""
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def _beale_gradient(x: Any, y: Any) -> tuple[Any, Any]:
    a, b, c = 1.5 - x + x * y, 2.25 - x + x * y**2, 2.625 - x + x * y**3
    return 2 * (a * (y - 1) + b * (y**2 - 1) + c * (y**3 - 1)), 2 * x * (a + 2 * b * y + 3 * c * y**2)


def _rosenbrock(x: Any, y: Any) -> Any:
    """H. Rosenbrock, "An automatic method for finding the greatest or least value of a function", 1960."""
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def _rosenbrock_gradient(x: Any, y: Any) -> tuple[Any, Any]:
    return -2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)


def _two_minima(x: Any, y: Any) -> Any:
    """The double well of G. Duffing, "Erzwungene Schwingungen bei veränderlicher Eigenfrequenz", 1918; tilted."""
    return (x**2 - 1) ** 2 + 0.3 * x + 6 * y**2


def _two_minima_gradient(x: Any, y: Any) -> tuple[Any, Any]:
    return 4 * x * (x**2 - 1) + 0.3, 12 * y


def _bowl(x: Any, y: Any) -> Any:
    """The noisy quadratic of T. Schaul, S. Zhang and Y. LeCun, "No more pesky learning rates", 2013."""
    return (x**2 + 8 * y**2) / 2


def _bowl_gradient(x: Any, y: Any) -> tuple[Any, Any]:
    return x, 8 * y


def _plateau(x: Any, y: Any) -> Any:
    """A Gaussian well: far from it, the gradient is nearly 0."""
    return 1 - np.exp(-(x**2 + 2 * y**2) / 2)


def _plateau_gradient(x: Any, y: Any) -> tuple[Any, Any]:
    well = np.exp(-(x**2 + 2 * y**2) / 2)
    return x * well, 2 * y * well


#: The minima: roots of 4x(x² − 1) + 0.3, but for the maximum in between.
_WELLS = tuple(sorted(float(root) for root in np.roots([4, 0, -4, 0.3]).real if abs(root) > 0.5))

_USUAL = ("sgd", "momentum", "look_ahead_nesterov", "adagrad", "rmsprop", "adam")

#: Every surface by its name.
SURFACES = {
    "saddle": Surface(
        "Saddle: the way out begins flat",
        _saddle,
        _saddle_gradient,
        (-0.8, 0.001),
        (-1.2, 1.2, -0.6, 2.2),
        ((0.0, math.sqrt(2)), (0.0, -math.sqrt(2))),
        60,
        _USUAL,
    ),
    "plateau": Surface(
        "Plateau: at the start, the gradient is nearly 0",
        _plateau,
        _plateau_gradient,
        (-3.2, 1.0),
        (-3.6, 1.6, -1.6, 1.6),
        ((0.0, 0.0),),
        100,
        _USUAL,
    ),
    "ravine": Surface(
        "Ravine: eighty times as steep across as along",
        _ravine,
        _ravine_gradient,
        (-2.0, -0.5),
        (-2.5, 1.0, -1.6, 0.9),
        ((0.0, 0.0),),
        100,
        _USUAL,
    ),
    "beale": Surface(
        "Beale's function: a plain between steep walls",
        _beale,
        _beale_gradient,
        (1.0, 1.5),
        (-0.5, 4.5, -1.5, 2.0),
        ((3.0, 0.5),),
        200,
        _USUAL,
    ),
    "rosenbrock": Surface(
        "Rosenbrock's function: a bent valley with a nearly flat floor",
        _rosenbrock,
        _rosenbrock_gradient,
        (-1.2, 1.0),
        (-1.8, 1.6, -0.6, 2.2),
        ((1.0, 1.0),),
        300,
        (*_USUAL, "nadam"),
    ),
    "two-minima": Surface(
        "Two minima: the nearer is not the lower",
        _two_minima,
        _two_minima_gradient,
        (1.6, 0.6),
        (-1.9, 1.9, -0.9, 0.9),
        ((_WELLS[0], 0.0), (_WELLS[1], 0.0)),
        80,
        _USUAL,
    ),
    "noisy-bowl": Surface(
        "Noisy bowl: every gradient is off by chance",
        _bowl,
        _bowl_gradient,
        (-2.0, 1.0),
        (-2.4, 1.2, -1.0, 1.4),
        ((0.0, 0.0),),
        400,
        (*_USUAL, "schedule_free_sgd"),
        noise=1.0,
    ),
}

# ---- Surfaces of your own -----------------------------------------------------------------------------------


def surface(
    function: Callable[[Any, Any], Any],
    *,
    start: tuple[float, float],
    limits: tuple[float, float, float, float],
    gradient: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    steps: int = 100,
    optimizers: Sequence[str] = _USUAL,
    noise: float = 0.0,
    title: str = "",
) -> Surface:
    """A surface of your own function.

    Parameters
    ----------
    function : callable
        ``f(x, y)``, of numbers and of arrays alike.
    start : (float, float)
        Within the limits.
    limits : (float, float, float, float)
        Left, right, bottom and top of the plot.
    gradient : callable, optional
        Both partial derivatives; where absent, central differences in float64.
    steps : int, default 100
    optimizers : sequence of str
        What is compared where nothing else is asked for.
    noise : float, default 0.0
        The standard deviation of the noise that is added to each derivative, in [0, inf).
    title : str, optional

    Returns
    -------
    Surface
        Its lowest minimum is searched on a grid that gets finer; where it is on the edge, there is none.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, `function` does not return finite numbers within the limits, or the start is
        its lowest point there.

    Examples
    --------
    >>> from fastopt import landscape
    >>> bowl = landscape.surface(lambda x, y: (x - 1) ** 2 + y**2, start=(-1, 1), limits=(-2, 2, -2, 2))
    >>> [round(float(value), 6) + 0.0 for value in bowl.minima[0]]
    [1.0, 0.0]
    """
    if not callable(function):
        raise TypeError(f"function must be callable as f(x, y), got {function!r:.80}")
    left, right, bottom, top = (checks.number("limits", each, "(-inf, inf)") for each in _numbers("limits", limits, 4))
    ends = left, right, bottom, top
    if not (left < right and bottom < top):
        raise ValueError(f"limits must be left < right, bottom < top, got {ends}")
    x, y = (checks.number("start", each, "(-inf, inf)") for each in _numbers("start", start, 2))
    if not (left <= x <= right and bottom <= y <= top):
        raise ValueError(f"start must lie within the limits {ends}, got {(x, y)}")
    try:
        with np.errstate(all="ignore"):
            values = np.asarray(function(*_grid(ends, 41)))
    except ArithmeticError:
        values = np.zeros(0)
    if values.shape != (41, 41) or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise ValueError("function must return a finite number for each point within the limits")
    a, b = _lowest(function, ends)
    if not function(x, y) > function(a, b):
        raise ValueError(f"start must be higher than the lowest point within the limits, {(a, b)}, got {(x, y)}")
    inside = 1e-3 * (right - left) < min(a - left, right - a) and 1e-3 * (top - bottom) < min(b - bottom, top - b)
    return Surface(
        title or "Your function",
        function,
        functools.partial(_differences, function) if gradient is None else gradient,
        (x, y),
        ends,
        ((a, b),) if inside else (),
        checks.integer("steps", steps, 1),
        tuple(checks.choice("optimizers", name, tuple(OPTIMIZERS)) for name in optimizers),
        checks.number("noise", noise, "[0, inf)"),
    )


def _numbers(name: str, values: Any, count: int) -> Sequence[Any]:
    if isinstance(values, (str, bytes)) or not hasattr(values, "__len__") or len(values) != count:
        raise ValueError(f"{name} must be {count} numbers, got {values!r:.80}")
    return list(values)


def _grid(limits: Sequence[float], points: int) -> Any:
    left, right, bottom, top = limits
    return np.meshgrid(np.linspace(left, right, points), np.linspace(bottom, top, points))


def _lowest(function: Callable[[Any, Any], Any], limits: Sequence[float]) -> tuple[float, float]:
    """Where a function is lowest: by grids, each a tenth as wide as the one before, about its lowest point."""
    own = list(limits)
    for _ in range(9):
        x, y = _grid(own, 81)
        with np.errstate(all="ignore"):
            values = np.asarray(function(x, y), float)
        place = int(np.argmin(np.where(np.isfinite(values), values, np.inf)))
        a, b = float(x.flat[place]), float(y.flat[place])
        wide, high = (own[1] - own[0]) / 20, (own[3] - own[2]) / 20
        own = [max(a - wide, limits[0]), min(a + wide, limits[1]), max(b - high, limits[2]), min(b + high, limits[3])]
    return a, b


def _differences(function: Callable[[Any, Any], Any], x: Any, y: Any) -> tuple[Any, Any]:
    """Central differences of the step for which rounding and truncation errors are alike."""
    h = 6e-6
    return (
        (function(x + h, y) - function(x - h, y)) / (2 * h),
        (function(x, y + h) - function(x, y - h)) / (2 * h),
    )


#: What an expression may be made of, beside numbers, x and y.
_NAMES: dict[str, Any] = {
    "pi": math.pi,
    "e": math.e,
    **{name: getattr(np, name) for name in ("abs", "cos", "cosh", "exp", "log", "sin", "sinh", "sqrt", "tan", "tanh")},
    **{name: getattr(np, name) for name in ("arctan", "maximum", "minimum", "sign")},
}
_PARTS = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Call, ast.Name, ast.Load, ast.Constant, ast.Add, ast.Sub, ast.Mult,
    ast.Div, ast.Pow, ast.Mod, ast.USub, ast.UAdd,
)  # fmt: skip


def expression(text: str) -> Callable[[Any, Any], Any]:
    """A function of x and y, from its formula in Python.

    Parameters
    ----------
    text : str
        Of numbers, x, y, pi, e, ``+ - * / % **`` and functions of NumPy: abs, cos, cosh, exp, log, sin, sinh, sqrt,
        tan, tanh, arctan, maximum, minimum, sign.

    Returns
    -------
    callable

    Raises
    ------
    TypeError, ValueError
        Where it is no text, or there is anything else in it.

    Examples
    --------
    >>> from fastopt import landscape
    >>> f = landscape.expression("x**2 + sin(3*y)")
    >>> float(f(2.0, 0.0))
    4.0
    """
    if not isinstance(text, str):
        raise TypeError(f"function must be a formula as text, got {type(text).__name__}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"function must be a formula of x and y, such as 'x**2 + 10*y**2', got {text!r}") from error
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        fine = isinstance(node, _PARTS)
        if isinstance(node, ast.Name):
            fine = node.id in {"x", "y", *_NAMES} and (node in called or not callable(_NAMES.get(node.id)))
        elif isinstance(node, ast.Constant):
            fine = type(node.value) in (int, float)
            if fine:
                node.value = float(node.value)  # type: ignore[arg-type]
        elif isinstance(node, ast.Call):
            function = _NAMES.get(node.func.id) if isinstance(node.func, ast.Name) else None
            fine = isinstance(function, np.ufunc) and len(node.args) == function.nin and not node.keywords
        if not fine:
            raise ValueError(
                f"function must be made of x, y, numbers, + - * / % ** and {', '.join(_NAMES)}; got "
                f"{ast.unparse(node) if isinstance(node, ast.expr) else text!r}"
            )
    code = compile(tree, "function", "eval")

    def function_of(x: Any, y: Any) -> Any:
        x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
        return np.zeros(x.shape) + eval(code, {"__builtins__": {}}, _NAMES | {"x": x, "y": y})

    return function_of


# ---- Descent ------------------------------------------------------------------------------------------------

#: The learning rates that `best` tries: 1, 2 and 5 times the powers of ten.
RATES = tuple(float(f"{digit}e{power}") for power in range(-4, 2) for digit in (1, 2, 5))


class Descent(NamedTuple):
    """A run of an optimizer on a surface.

    Attributes
    ----------
    optimizer : str
    lr : float
        NaN where there is none.
    points : ndarray (steps + 1, 2)
        The start, and the parameters after each step, or their average where the optimizer has one.
    losses : ndarray (steps + 1,)
        The values of the function there, without noise.
    hyper : dict, default {}
        The other hyperparameters that were set.
    is_best : bool, default False
        Whether the learning rate is the best of several.

    Examples
    --------
    >>> from fastopt import landscape
    >>> run = landscape.descend("adam", "beale", 0.1, steps=50)
    >>> run.points.shape, run.losses.shape, run.is_best
    ((51, 2), (51,), False)
    >>> run.label
    'adam, 0.1'
    """

    optimizer: str
    lr: float
    points: Array
    losses: Array
    hyper: Mapping[str, Any] = MappingProxyType({})
    is_best: bool = False

    @property
    def label(self) -> str:
        """Optimizer, learning rate, and what else was set."""
        rate = [] if math.isnan(self.lr) else [f"{self.lr:g}"]
        return ", ".join([self.optimizer, *rate, *(f"{key} {value}" for key, value in self.hyper.items())])


def _known(surface: str | Surface) -> Surface:
    if isinstance(surface, Surface):
        return surface
    return SURFACES[checks.choice("surface", surface, tuple(SURFACES))]


def descend(
    optimizer: str, surface: str | Surface, lr: float, *, steps: int | None = None, seed: int = 0, **hyper: Any
) -> Descent:
    """Run an optimizer on a surface, in float64.

    Parameters
    ----------
    optimizer : str
        A name in `fastopt.optimizers.OPTIMIZERS`.
    surface : str or Surface
        A name in `SURFACES`, or a result of `surface`.
    lr : float
        In [0, inf).
    steps : int, optional
        At least 1; the surface's default where absent.
    seed : int, default 0
        Decides the noise, which is the same for every optimizer.
    **hyper
        Hyperparameters of the optimizer; its defaults where absent.

    Returns
    -------
    Descent
        With infinite or NaN values where the run diverges.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> from fastopt import landscape
    >>> run = landscape.descend("sgd", "ravine", 0.02, steps=50)
    >>> run.points.shape, bool(run.losses[-1] < run.losses[0])
    ((51, 2), True)
    """
    make = OPTIMIZERS[checks.choice("optimizer", optimizer, tuple(OPTIMIZERS))]
    ground = _known(surface)
    steps = ground.steps if steps is None else checks.integer("steps", steps, 1)
    noise = ground.noise * np.random.default_rng(checks.integer("seed", seed, 0)).normal(size=(steps, 2))
    param = np.array(ground.start)
    bound: Any = make(param, lr=lr, **hyper)
    points = np.empty((steps + 1, 2))
    points[0] = param
    with np.errstate(all="ignore"):
        for step in range(steps):
            if isinstance(bound, LookAheadNesterov):
                bound.look_ahead()
            bound.step(np.array(ground.gradient(*param)) + noise[step])
            points[step + 1] = bound.averaged()["param"] if hasattr(bound, "averaged") else param
        return Descent(optimizer, bound.lr, points, ground.function(*points.T), hyper)


def best(
    optimizer: str,
    surface: str | Surface,
    *,
    steps: int | None = None,
    seed: int = 0,
    rates: Sequence[float] = RATES,
    **hyper: Any,
) -> Descent:
    """The best of an optimizer's runs with several learning rates.

    A run is judged by the mean logarithm, over all steps, of the largest loss from that step on. Runs that leave the
    plot are excluded, unless all do.

    Parameters
    ----------
    optimizer, surface, steps, seed, **hyper
        See `descend`.
    rates : sequence of float, default RATES

    Returns
    -------
    Descent

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> from fastopt import landscape
    >>> run = landscape.best("momentum", "ravine", rates=(0.001, 0.01, 1.0))
    >>> run.lr, run.is_best
    (0.01, True)
    """
    if not len(rates):
        raise ValueError("rates must hold at least one learning rate, got none")
    runs = [descend(optimizer, surface, lr, steps=steps, seed=seed, **hyper) for lr in rates]
    return min(runs, key=lambda run: _badness(run, _known(surface)))._replace(is_best=True)


#: Losses above the minimum are clipped to this, relative to the start: smaller ones are rounding errors.
_FLOOR = 1e-12


def _badness(run: Descent, surface: Surface) -> tuple[bool, float]:
    left, right, bottom, top = surface.limits
    x, y = run.points.T
    inside = bool(np.all((left <= x) & (x <= right) & (bottom <= y) & (y <= top)))  # which NaN is not
    bounds = np.maximum.accumulate(np.nan_to_num(_relative(run, surface), nan=np.inf)[::-1])
    return not inside, float(np.log(bounds).mean())


def _relative(run: Descent, surface: Surface) -> Array:
    """The loss above the minimum, relative to that at the start."""
    with np.errstate(all="ignore"):
        return np.maximum(surface.excess(*run.points.T) / surface.excess(*surface.start), _FLOOR)


# ---- Plots --------------------------------------------------------------------------------------------------

#: The lower limit of the axis of losses, relative to the loss at the start.
_SHOWN = 1e-8
#: The upper one, for runs that diverge.
_HIGHEST = 1e6
#: The number of steps that losses are averaged over where gradients are noisy.
_WINDOW = 20
#: The largest number of frames of an animation; the duration of each, and of the last, in milliseconds.
_FRAMES, _DURATION, _LAST_DURATION = 80, 70, 2500


def check_path(path: str | os.PathLike[str]) -> None:
    """See whether `draw` could write a picture there, as far as can be seen before.

    Parameters
    ----------
    path : path

    Raises
    ------
    TypeError, ValueError, OSError, ImportError
        As in `draw`.

    Examples
    --------
    >>> from fastopt import landscape
    >>> landscape.check_path("paths.gif")
    >>> landscape.check_path("paths.txt")
    Traceback (most recent call last):
        ...
    ValueError: the ending of path must be one of '.png', '.svg', '.pdf', '.gif'; got '.txt'
    """
    files.check(path)
    checks.choice("the ending of path", Path(os.fsdecode(path)).suffix.lower(), (".png", ".svg", ".pdf", ".gif"))
    require_matplotlib()


def draw(surface: str | Surface, runs: Sequence[Descent], path: str | os.PathLike[str]) -> None:
    """Plot the paths of runs on contours of the surface, and their losses beside it, to a file.

    Parameters
    ----------
    surface, runs
        See `picture`.
    path : path
        Its suffix decides the format: ``.png``, ``.svg``, ``.pdf``; ``.gif`` is an animation.

    Raises
    ------
    ValueError
        Where the suffix is another one, or `surface` no name.
    OSError
        Where no file can be written there.
    ImportError
        Where matplotlib is missing: it is the extra ``plot``.

    Examples
    --------
    >>> from fastopt import landscape
    >>> runs = [landscape.best(name, "saddle") for name in ("sgd", "momentum")]
    >>> landscape.draw("saddle", runs, "paths.png")
    """
    check_path(path)
    page, moving, steps = _drawn(_known(surface), runs)
    suffix = Path(os.fsdecode(path)).suffix.lower()
    if suffix == ".gif":
        _animate(page, moving, steps, path)
    elif suffix == ".png":
        save_png(page, path, dpi=110)
    else:
        page.savefig(path)


def picture(surface: str | Surface, runs: Sequence[Descent]) -> Any:
    """Plot the paths of runs on contours of the surface, and their losses beside it. Needs the extra ``plot``.

    Parameters
    ----------
    surface : str or Surface
        A name in `SURFACES`, or a result of `surface`.
    runs : sequence of Descent
        Results of `best` or `descend`: at least one, all on this surface, with the same number of steps.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        Where `surface` is no name, or there is no run.
    ImportError
        Where matplotlib is missing.

    Examples
    --------
    >>> from fastopt import landscape
    >>> runs = [landscape.descend("sgd", "ravine", rate) for rate in (0.01, 0.02)]
    >>> landscape.picture("ravine", runs).savefig("ravine.png")
    """
    return _drawn(_known(surface), runs)[0]


def _drawn(ground: Surface, runs: Sequence[Descent]) -> tuple[Any, list[tuple[Any, Array, Array, bool]], int]:
    """The page; its artists, with their x and y, and whether they show the whole path; and the number of steps."""
    if not runs or len({len(run.losses) for run in runs}) > 1:
        raise ValueError(f"runs must be at least one, all of the same number of steps, got {len(runs)}")
    page = figure((11.5, 5))
    left, right = page.subplots(1, 2, width_ratios=[1.15, 1])
    _draw_ground(left, ground)
    losses = [_relative(run, ground) for run in runs]
    title = "loss above the minimum (start: 1)"
    if ground.noise:
        losses = [_running_mean(loss) for loss in losses]
        title += f",\nmean of {_WINDOW} steps"
    steps = len(losses[0]) - 1
    order = sorted(range(len(runs)), key=lambda i: -_last(losses[i]))  # of the last losses, from above
    styles = _styles(ground, runs, losses)
    moving: list[tuple[Any, Array, Array, bool]] = []
    for place, i in enumerate(order):
        run, (x, y), style = runs[i], runs[i].points.T, styles[i]
        diverges = "" if math.isfinite(_last(losses[i])) else ": diverges"
        dots = {"marker": ".", "markersize": 2 + 1.5 * style["linewidth"]} if style["linestyle"] == "-" else {}
        way = left.plot(x, y, **dots, **style)[0]  # where others shine through gaps, dots would fill them
        size = 13 - 8 * place / len(runs)  # smaller ones on top, so that equal ones are all seen
        end = {"color": style["color"], "markersize": size, "markeredgecolor": "white", "zorder": 4}
        last = left.plot(x[-1], y[-1], "o", **end)[0]
        loss = right.plot(losses[i], label=f"{run.label}{diverges}", **style)[0]
        moving += [(way, x, y, True), (last, x, y, False), (loss, np.arange(steps + 1), losses[i], True)]
    right.set(yscale="log", xlabel="step", title=title)
    right.set(xlim=(0, steps), ylim=(max(_SHOWN, right.get_ylim()[0]), min(max(2, right.get_ylim()[1]), _HIGHEST)))
    handles = right.get_legend_handles_labels()[0] + left.get_legend_handles_labels()[0]
    page.legend(
        handles=handles, title="optimizer, learning rate", loc="outside right center", handlelength=3, frameon=False
    )
    page.suptitle(f"{ground.title}\n{_summary(runs, losses)}")
    return page, moving, steps


#: The period of dashes in points; how close lines are that hide each other, of the width of the plot; and on what share
#: of their length.
_PERIOD, _NEAR, _SHARE = 16.0, 0.008, 0.35


def _styles(ground: Surface, runs: Sequence[Descent], losses: Sequence[Array]) -> list[dict[str, Any]]:
    """A style for each line: of lines that lie on each other, the upper ones are narrower and have longer gaps."""
    left, right, bottom, top = ground.limits
    steps = len(losses[0]) - 1
    paths = [(run.points - (left, bottom)) / max(right - left, top - bottom) for run in runs]
    clipped = [np.clip(np.nan_to_num(loss, nan=_HIGHEST, posinf=_HIGHEST), _SHOWN, _HIGHEST) for loss in losses]
    lowest = math.log10(min(loss.min() for loss in clipped)) - 0.5
    curves = [np.stack([np.arange(steps + 1) / steps, 1 - np.log10(loss) / lowest], axis=1) for loss in clipped]
    depths: list[int] = []
    for i in range(len(runs)):
        near = {depths[j] for j in range(i) if any(_alike(lines[i], lines[j]) for lines in (paths, curves))}
        depths.append(min(set(range(len(runs))) - near))
    count = max(depths) + 1
    styles = []
    for i, depth in enumerate(depths):
        width, on = 3.0 - 1.4 * depth / count, _PERIOD * (1 - 0.65 * depth / count)
        dash: Any = (0, (on / width, (_PERIOD - on) / width)) if depth else "-"
        styles.append(
            {"color": COLOURS[i % len(COLOURS)], "linestyle": dash, "linewidth": width, "zorder": 2 + depth / count}
        )
    return styles


def _alike(a: Array, b: Array) -> bool:
    """Whether two lines lie on each other for a good part of the shorter one."""
    (points, lengths), (others, other_lengths) = _fine(a), _fine(b)
    if not (len(points) and len(others)):
        return False
    if lengths.sum() > other_lengths.sum():
        points, lengths, others = others, other_lengths, points
    near = np.array([((others - point) ** 2).sum(axis=1).min() < _NEAR**2 for point in points])
    return bool(lengths[near].sum() >= _SHARE * lengths.sum())


def _fine(line: Array) -> tuple[Array, Array]:
    """Points on a line where it is within the plot, no two far apart, and the length that each stands for."""
    line = line[np.isfinite(line).all(axis=1)]
    sizes = np.sqrt((np.diff(line, axis=0) ** 2).sum(axis=1))
    walked = np.concatenate([[0.0], np.cumsum(sizes)])
    places = np.arange(0, min(walked[-1], 10.0) + 1e-9, _NEAR) if len(line) else np.zeros(0)
    points = np.stack([np.interp(places, walked, axis) for axis in line.T], axis=1) if len(line) else np.zeros((0, 2))
    inside = ((points > -0.05) & (points < 1.5)).all(axis=1)
    return points[inside], np.full(int(inside.sum()), _NEAR)


def _summary(runs: Sequence[Descent], losses: Sequence[Array]) -> str:
    lowest = min(map(_last, losses))
    if not math.isfinite(lowest):
        return f"{len(losses[0]) - 1} steps: {'it diverges' if len(runs) == 1 else 'all diverge'}"
    once = len({run.optimizer for run in runs}) == len(runs)
    names = [run.optimizer if once else run.label for run, loss in zip(runs, losses, strict=True) if loss[-1] == lowest]
    ending = f"{names[0]} ends lowest" if len(names) == 1 else f"{' and '.join(names)} end lowest"
    tuned = ", each optimizer at its best rate" if all(run.is_best for run in runs) else ""
    return f"{len(losses[0]) - 1} steps{tuned}: {ending}"


def _last(loss: Array) -> float:
    """The last loss; of a run that has diverged, infinity."""
    return float(loss[-1]) if math.isfinite(loss[-1]) else math.inf


def _running_mean(loss: Array) -> Array:
    """The mean of the last `_WINDOW` steps, or of all so far."""
    sums = np.concatenate([np.zeros(_WINDOW), np.cumsum(loss)])
    return (sums[_WINDOW:] - sums[:-_WINDOW]) / np.minimum(np.arange(1, len(loss) + 1), _WINDOW)


def _draw_ground(axes: Any, ground: Surface) -> None:
    """Draw contours in logarithmic steps, the start and the minima."""
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    left, right, bottom, top = ground.limits
    x, y = _grid(ground.limits, 301)
    height = np.maximum(ground.excess(x, y), 0)
    low, high = np.quantile(height, 0.001), height.max()
    levels = np.geomspace(max(low, 1e-9 * high), high, 22)
    greys = LinearSegmentedColormap.from_list("", ["#ffffff", "#dfe7ec", "#9fb2bf"])
    axes.contourf(x, y, np.maximum(height, levels[0]), levels, norm=LogNorm(), cmap=greys)
    axes.contour(x, y, height, levels, colors="#7d8a94", linewidths=0.4)
    for (a, b), label, fill in zip(ground.minima, ("minimum", "higher minimum"), (YELLOW, "white"), strict=False):
        if left < a < right and bottom < b < top:
            axes.plot(a, b, "*", color=fill, markersize=20, markeredgecolor="black", zorder=3, label=label)
    axes.plot(*ground.start, "s", color="black", markersize=7, zorder=5, label="start")
    axes.set(xlim=(left, right), ylim=(bottom, top), xlabel="x", ylabel="y", aspect="equal")
    axes.grid(False)
    axes.locator_params(nbins=6)


def _animate(page: Any, moving: Sequence[tuple[Any, Array, Array, bool]], steps: int, path: Any) -> None:
    """Write an animation, with more frames of the first steps, in which losses fall fastest.

    The background is drawn once, and all frames have the palette of the last, so that the file is small.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    page.set_dpi(80)
    canvas: Any = FigureCanvasAgg(page)
    moving = sorted(moving, key=lambda row: row[0].get_zorder())
    for artist, *_ in moving:
        artist.set_animated(True)
    canvas.draw()
    ground = canvas.copy_from_bbox(page.bbox)
    frames = []
    for step in np.unique((steps * np.linspace(0, 1, _FRAMES) ** 1.5).astype(int)):
        canvas.restore_region(ground)
        for artist, x, y, whole in moving:
            shown = slice(0 if whole else step, step + 1)
            artist.set_data(x[shown], y[shown])
            artist.axes.draw_artist(artist)
        frames.append(Image.fromarray(np.array(canvas.buffer_rgba())[..., :3]))
    palette = frames[-1].quantize(256, kmeans=3)
    first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [_DURATION] * len(others) + [_LAST_DURATION]
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0)
