"""Pages to draw on, by matplotlib: the extra ``plot``."""

from __future__ import annotations

import functools
import io
from typing import Any


def figure(size: tuple[float, float]) -> Any:
    """An empty figure.

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
    """The class of figures, which notebooks show without pyplot."""
    from matplotlib.figure import Figure

    class Page(Figure):  # type: ignore[misc,unused-ignore]
        def _repr_png_(self) -> bytes:
            drawn = io.BytesIO()
            self.savefig(drawn, format="png", dpi=80)
            return drawn.getvalue()

    return Page


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
