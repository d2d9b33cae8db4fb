"""Pages to draw on, by matplotlib: the extra ``plot``; and the colours of all pictures."""

from __future__ import annotations

import functools
import io
import os
from typing import IO, Any

#: The palette of all pictures, which the colour-blind can tell apart: M. Okabe and K. Ito, "Color universal design",
#: 2008, without yellow, which is too light for lines.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
#: The same by name.
BLACK, ORANGE, BLUE, RED, GREEN, PINK, SKY = COLOURS
YELLOW, GREY = "#F0E442", "#9AA5AD"

#: What axes look like: of matplotlib's settings, those that differ.
_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": "medium",
    "grid.color": "#E4E8EA",
}


def figure(size: tuple[float, float]) -> Any:
    """An empty figure, whose axes have the colours of `COLOURS` in turn.

    Parameters
    ----------
    size : (float, float)
        Width and height in inches.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        Where matplotlib is missing.
    """
    require_matplotlib()
    return _page()(figsize=size, layout="constrained")


@functools.cache
def _page() -> Any:
    """The class of figures whose axes are in our style, whatever the settings of the process; notebooks show them
    without pyplot."""
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure

    style: Any = _STYLE | {"axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, RED, PINK, SKY, BLACK])}

    class Page(Figure):  # type: ignore[misc,unused-ignore]
        def add_subplot(self, *args: Any, **options: Any) -> Any:
            with matplotlib.rc_context(style):
                return super().add_subplot(*args, **options)

        def savefig(self, *args: Any, **options: Any) -> None:
            with matplotlib.rc_context(style):  # ticks and legends are made when they are drawn
                super().savefig(*args, **options)

        def _repr_png_(self) -> bytes:
            drawn = io.BytesIO()
            self.savefig(drawn, format="png", dpi=80)
            return drawn.getvalue()

    return Page


def save_png(page: Any, file: str | os.PathLike[str] | IO[bytes], dpi: int = 100) -> None:
    """Write a figure as a PNG of few colours, a third as large as matplotlib's.

    Parameters
    ----------
    page : matplotlib.figure.Figure
    file : path or binary file
    dpi : int, default 100
        Pixels per inch.
    """
    from PIL import Image

    drawn = io.BytesIO()
    page.savefig(drawn, format="png", dpi=dpi)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(128, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE).save(
            file, format="png", optimize=True
        )


def require_matplotlib() -> None:
    """See whether there is matplotlib.

    Raises
    ------
    ImportError
        Where it is missing.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'fastopt[plot]'") from error
