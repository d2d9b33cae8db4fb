"""Optimizers on functions of two variables, and plots of their paths: `fastopt landscape`.

>>> from fastopt import landscape
>>> adam = landscape.best("adam", "rosenbrock", steps=300)
>>> bool(adam.losses[-1] < 1e-2 * adam.losses[0])
True
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastopt import checks, files
from fastopt.checks import Array
from fastopt.drawing import figure, require_matplotlib
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
        All local minima, the lowest first.
    steps : int
        The default number of steps.
    optimizers : tuple of str
        The default optimizers.
    noise : float, default 0.0
        The standard deviation of the noise that is added to each derivative.
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
        """The difference from the value at the lowest minimum."""
        return self.function(x, y) - self.function(*self.minima[0])


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

# ---- Descent ------------------------------------------------------------------------------------------------

#: The learning rates that `best` tries: 1, 2 and 5 times the powers of ten.
RATES = tuple(float(f"{digit}e{power}") for power in range(-4, 2) for digit in (1, 2, 5))


class Descent(NamedTuple):
    """A run of an optimizer on a surface.

    Attributes
    ----------
    optimizer : str
    lr : float
    points : ndarray (steps + 1, 2)
        The start, and the parameters after each step, or their average where the optimizer has one.
    losses : ndarray (steps + 1,)
        The values of the function there, without noise.
    """

    optimizer: str
    lr: float
    points: Array
    losses: Array


def descend(optimizer: str, surface: str, lr: float, *, steps: int | None = None, seed: int = 0) -> Descent:
    """Run an optimizer on a surface, in float64, with its default hyperparameters.

    Parameters
    ----------
    optimizer, surface : str
        Names in `fastopt.optimizers.OPTIMIZERS` and in `SURFACES`.
    lr : float
        In [0, inf).
    steps : int, optional
        At least 1; the surface's default where absent.
    seed : int, default 0
        Decides the noise, which is the same for every optimizer.

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
    ground = SURFACES[checks.choice("surface", surface, tuple(SURFACES))]
    steps = ground.steps if steps is None else checks.integer("steps", steps, 1)
    noise = ground.noise * np.random.default_rng(checks.integer("seed", seed, 0)).normal(size=(steps, 2))
    param = np.array(ground.start)
    bound: Any = make(param, lr=lr)
    points = np.empty((steps + 1, 2))
    points[0] = param
    with np.errstate(all="ignore"):
        for step in range(steps):
            if isinstance(bound, LookAheadNesterov):
                bound.look_ahead()
            bound.step(np.array(ground.gradient(*param)) + noise[step])
            points[step + 1] = bound.averaged()["param"] if hasattr(bound, "averaged") else param
        return Descent(optimizer, bound.lr, points, ground.function(*points.T))


def best(optimizer: str, surface: str, *, steps: int | None = None, seed: int = 0) -> Descent:
    """The best of an optimizer's runs with the learning rates of `RATES`.

    A run is judged by the mean logarithm, over all steps, of the largest loss from that step on. Runs that leave the
    plot are excluded, unless all do.

    Parameters
    ----------
    optimizer, surface, steps, seed
        See `descend`.

    Returns
    -------
    Descent
    """
    runs = [descend(optimizer, surface, lr, steps=steps, seed=seed) for lr in RATES]
    return min(runs, key=lambda run: _badness(run, SURFACES[surface]))


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

#: A palette for the colour-blind: M. Okabe and K. Ito, "Color universal design", 2008, without yellow.
_COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
_DASHES = ("-", "--", ":", "-.")
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
    """
    files.check(path)
    checks.choice("the ending of path", Path(os.fsdecode(path)).suffix.lower(), (".png", ".svg", ".pdf", ".gif"))
    require_matplotlib()


def draw(surface: str, runs: Sequence[Descent], path: str | os.PathLike[str]) -> None:
    """Plot the paths of runs on contours of the surface, and their losses beside it.

    Parameters
    ----------
    surface : str
        A name in `SURFACES`.
    runs : sequence of Descent
        Results of `best`: at least one, all on this surface, with the same number of steps.
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
    """
    check_path(path)
    ground = SURFACES[checks.choice("surface", surface, tuple(SURFACES))]
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
    moving: list[tuple[Any, Array, Array, bool]] = []  # artists, their x and y, and whether they show the whole path
    for place, i in enumerate(order):
        run, (x, y), colour = runs[i], runs[i].points.T, _COLOURS[i % len(_COLOURS)]
        width = 2.8 - 1.6 * place / len(runs)  # narrower ones on top, so that equal paths are both seen
        diverges = "" if math.isfinite(_last(losses[i])) else ": diverges"
        style = {"color": colour, "linestyle": _DASHES[i // len(_COLOURS) % len(_DASHES)], "linewidth": width}
        way = left.plot(x, y, marker=".", markersize=3.5, **style)[0]
        end = left.plot(x[-1], y[-1], "o", color=colour, markersize=7, markeredgecolor="white", zorder=4)[0]
        loss = right.plot(losses[i], label=f"{run.optimizer}, {run.lr:g}{diverges}", **style)[0]
        moving += [(way, x, y, True), (end, x, y, False), (loss, np.arange(steps + 1), losses[i], True)]
    right.set(yscale="log", xlabel="step", title=title)
    right.set(xlim=(0, steps), ylim=(max(_SHOWN, right.get_ylim()[0]), min(max(2, right.get_ylim()[1]), _HIGHEST)))
    right.grid(alpha=0.3)
    right.spines[["top", "right"]].set_visible(False)
    handles = right.get_legend_handles_labels()[0] + left.get_legend_handles_labels()[0]
    page.legend(handles=handles, title="optimizer, learning rate", loc="outside right center", frameon=False)
    page.suptitle(f"{ground.title}\n{_summary(runs, losses)}")
    if Path(os.fsdecode(path)).suffix.lower() == ".gif":
        _animate(page, moving, steps, path)
    else:
        page.savefig(path, dpi=110)


def _summary(runs: Sequence[Descent], losses: Sequence[Array]) -> str:
    lowest = min(map(_last, losses))
    if not math.isfinite(lowest):
        return f"{len(losses[0]) - 1} steps: {'it diverges' if len(runs) == 1 else 'all diverge'}"
    names = [run.optimizer for run, loss in zip(runs, losses, strict=True) if loss[-1] == lowest]
    ending = f"{names[0]} ends lowest" if len(names) == 1 else f"{' and '.join(names)} end lowest"
    return f"{len(losses[0]) - 1} steps, each optimizer at its best rate: {ending}"


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
    x, y = np.meshgrid(np.linspace(left, right, 301), np.linspace(bottom, top, 301))
    height = ground.excess(x, y)
    levels = np.geomspace(np.quantile(height, 0.001), height.max(), 22)
    greys = LinearSegmentedColormap.from_list("", ["#ffffff", "#dfe7ec", "#9fb2bf"])
    axes.contourf(x, y, np.maximum(height, levels[0]), levels, norm=LogNorm(), cmap=greys)
    axes.contour(x, y, height, levels, colors="#7d8a94", linewidths=0.4)
    for (a, b), label, fill in zip(ground.minima, ("minimum", "higher minimum"), ("#F0E442", "white"), strict=False):
        if bottom < b < top:
            axes.plot(a, b, "*", color=fill, markersize=20, markeredgecolor="black", zorder=3, label=label)
    axes.plot(*ground.start, "s", color="black", markersize=7, zorder=5, label="start")
    axes.set(xlim=(left, right), ylim=(bottom, top), xlabel="x", ylabel="y")
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
