"""Optimizers on surfaces of two dimensions: `fastopt landscape`.

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

from fastopt import checks
from fastopt.checks import Array
from fastopt.drawing import figure
from fastopt.optimizers import OPTIMIZERS, LookAheadNesterov

# ---- Surfaces -----------------------------------------------------------------------------------------------


class Surface(NamedTuple):
    """A function of x and y to go down on.

    Attributes
    ----------
    title : str
        What it is, and what is hard about it.
    function, gradient : callable
        The value at (x, y), and both derivatives, for numbers and arrays alike.
    start : tuple of float
    limits : tuple of float
        Left, right, bottom and top of the picture.
    minima : tuple of tuple of float
        All local minima, the lowest first.
    steps : int
        How many show what is to be seen.
    optimizers : tuple of str
        Whom it tells apart.
    noise : float, default 0.0
        The standard deviation of what is added to each derivative.
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
        """How far above the lowest minimum it is."""
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
    iteration methods", 1964; turned, since methods that scale each coordinate would not notice otherwise."""
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


#: Where 4x(x² − 1) + 0.3 is 0, apart from the top between both minima.
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

# ---- Going down ---------------------------------------------------------------------------------------------

#: The learning rates that `best` tries: 1, 2 and 5 times the powers of ten.
RATES = tuple(float(f"{digit}e{power}") for power in range(-4, 2) for digit in (1, 2, 5))


class Descent(NamedTuple):
    """A run of an optimizer on a surface.

    Attributes
    ----------
    optimizer : str
    lr : float
    points : ndarray (steps + 1, 2)
        Where it was: the start, and what the optimizer held after each step, or its average where it has one.
    losses : ndarray (steps + 1,)
        The surface there, without noise.
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
        At least 1; as many as suit the surface where absent.
    seed : int, default 0
        Of the noise, which is the same for every optimizer.

    Returns
    -------
    Descent
        What has diverged may be infinite or NaN.
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
    """The best of an optimizer's runs with each of `RATES`, so that it is shown to advantage.

    A run is as good as the bound that its loss keeps under from each step on, in mean logarithm. Runs that leave the
    picture are out, unless all do.

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


#: What a loss above the minimum counts as at least, in units of that at the start: what is below is rounding.
_FLOOR = 1e-12


def _badness(run: Descent, surface: Surface) -> tuple[bool, float]:
    left, right, bottom, top = surface.limits
    x, y = run.points.T
    inside = bool(np.all((left <= x) & (x <= right) & (bottom <= y) & (y <= top)))  # which NaN is not
    bounds = np.maximum.accumulate(np.nan_to_num(_relative(run, surface), nan=np.inf)[::-1])
    return not inside, float(np.log(bounds).mean())


def _relative(run: Descent, surface: Surface) -> Array:
    """The loss above the minimum, as a share of that at the start."""
    with np.errstate(all="ignore"):
        return np.maximum(surface.excess(*run.points.T) / surface.excess(*surface.start), _FLOOR)


# ---- Pictures -----------------------------------------------------------------------------------------------

#: Colours that the colour-blind can tell apart: M. Okabe and K. Ito, "Color universal design", 2008, without yellow.
_COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
_DASHES = ("-", "--", ":", "-.")
#: The least that the axis of losses shows, in units of the loss at the start.
_SHOWN = 1e-8
#: Over how many steps losses are averaged where gradients are noisy.
_WINDOW = 20
#: How many pictures a film has at most, how long each stays, and how long the last, in milliseconds.
_PICTURES, _STAYS, _LAST_STAYS = 80, 70, 2500


def draw(surface: str, runs: Sequence[Descent], path: str | os.PathLike[str]) -> None:
    """Draw where runs went, on contours of the surface, and their losses beside it.

    Parameters
    ----------
    surface : str
        A name in `SURFACES`.
    runs : sequence of Descent
        What `best` returned: at least one, all on this surface, with as many steps.
    path : path
        Its ending decides the format: ``.png``, ``.svg``, ``.pdf``; ``.gif`` is a film of them going down.

    Raises
    ------
    ImportError
        Where matplotlib is missing: it is the extra ``plot``.
    """
    ending = checks.choice("the ending of path", Path(path).suffix.lower(), (".png", ".svg", ".pdf", ".gif"))
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
    order = sorted(range(len(runs)), key=lambda i: -losses[i][-1])  # as their curves end, from above
    moving: list[tuple[Any, Array, Array, bool]] = []  # what is drawn, where, and whether all the way to there
    for place, i in enumerate(order):
        run, (x, y), colour = runs[i], runs[i].points.T, _COLOURS[i % len(_COLOURS)]
        width = 2.8 - 1.6 * place / len(runs)  # so that those below show where two are the same
        style = {"color": colour, "linestyle": _DASHES[i // len(_COLOURS) % len(_DASHES)], "linewidth": width}
        way = left.plot(x, y, marker=".", markersize=3.5, **style)[0]
        end = left.plot(x[-1], y[-1], "o", color=colour, markersize=7, markeredgecolor="white", zorder=4)[0]
        loss = right.plot(losses[i], label=f"{run.optimizer}, {run.lr:g}", **style)[0]
        moving += [(way, x, y, True), (end, x, y, False), (loss, np.arange(steps + 1), losses[i], True)]
    right.set(yscale="log", xlabel="step", title=title)
    right.set(xlim=(0, steps), ylim=(max(_SHOWN, right.get_ylim()[0]), max(2, right.get_ylim()[1])))
    right.grid(alpha=0.3)
    right.spines[["top", "right"]].set_visible(False)
    handles = right.get_legend_handles_labels()[0] + left.get_legend_handles_labels()[0]
    page.legend(handles=handles, title="optimizer, learning rate", loc="outside right center", frameon=False)
    page.suptitle(f"{ground.title}\n{_summary(runs, losses)}")
    if ending == ".gif":
        _film(page, moving, steps, path)
    else:
        page.savefig(path, dpi=110)


def _summary(runs: Sequence[Descent], losses: Sequence[Array]) -> str:
    lowest = min(loss[-1] for loss in losses)
    names = [run.optimizer for run, loss in zip(runs, losses, strict=True) if loss[-1] == lowest]
    ending = f"{names[0]} ends lowest" if len(names) == 1 else f"{' and '.join(names)} end lowest"
    return f"{len(losses[0]) - 1} steps, each optimizer at its best rate: {ending}"


def _running_mean(loss: Array) -> Array:
    """The mean of the last steps, or of those that there are."""
    sums = np.concatenate([np.zeros(_WINDOW), np.cumsum(loss)])
    return (sums[_WINDOW:] - sums[:-_WINDOW]) / np.minimum(np.arange(1, len(loss) + 1), _WINDOW)


def _draw_ground(axes: Any, ground: Surface) -> None:
    """Contours in logarithmic steps, the start and the minima."""
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


def _film(page: Any, moving: Sequence[tuple[Any, Array, Array, bool]], steps: int, path: Any) -> None:
    """Draw it once for each of some steps: most of the first ones, in which most happens.

    What does not move is drawn once, and all pictures have the colours of the last, so that the file is small.
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
    pictures = []
    for step in np.unique((steps * np.linspace(0, 1, _PICTURES) ** 1.5).astype(int)):
        canvas.restore_region(ground)
        for artist, x, y, whole in moving:
            shown = slice(0 if whole else step, step + 1)
            artist.set_data(x[shown], y[shown])
            artist.axes.draw_artist(artist)
        pictures.append(Image.fromarray(np.array(canvas.buffer_rgba())[..., :3]))
    colours = pictures[-1].quantize(256, kmeans=3)
    first, *others = [picture.quantize(palette=colours, dither=Image.Dither.NONE) for picture in pictures]
    stay = [_STAYS] * len(others) + [_LAST_STAYS]
    first.save(path, save_all=True, append_images=others, duration=stay, loop=0)
