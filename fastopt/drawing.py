"""Pages to draw on, by matplotlib: the extra ``plot``."""

from __future__ import annotations

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
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


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
