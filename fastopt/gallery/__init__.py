"""The pictures of a course on neural networks, each from real runs of this package: `fastopt gallery`.

Each is a module of fewer than 40 lines to read and to change: ``run(quick=False)`` trains and returns the data,
``draw(data)`` returns a figure (extra ``plot``), and ``claim(data)`` asserts what the caption, its docstring, says.

>>> from fastopt import gallery
>>> picture = gallery.load("zigzag")
>>> data = picture.run(quick=True)
>>> picture.claim(data)
>>> gallery.save(picture.draw(data), "zigzag.png")
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from fastopt import checks, files
from fastopt.drawing import save_png

__all__ = ["caption", "load", "save", "source", "title"]

#: The names of all pictures, by chapter, in the order of a course.
CHAPTERS = {
    "Descent": (
        "zigzag", "learning_rates", "nesterov", "saddle", "plateau", "two_minima", "noisy_bowl", "beale", "rosenbrock",
        "own_function", "newton", "schedules", "warmup",
    ),
    "Signals": (
        "tanh_init", "relu_init", "preprocessing", "zero_centred", "boundaries", "batch_norm", "norm_cubes",
        "decorrelated", "monitor", "loss_surface",
    ),
    "Fitting": (
        "overfitting", "l1_l2", "dropout", "augmentation", "mixing", "learning_curve", "snapshots", "transfer",
    ),
    "Practice": (
        "grid_random", "coarse_to_fine", "log_sampling", "panda_caviar", "roc", "flat_loss", "mistakes",
    ),
}  # fmt: skip
NAMES = tuple(name for names in CHAPTERS.values() for name in names)


def load(name: str) -> ModuleType:
    """The module of a picture.

    Parameters
    ----------
    name : str
        One of `NAMES`, in any writing, or the path of a file of your own, whose name ends in ``.py``.

    Returns
    -------
    module
        With the functions ``run(quick=False)``, ``draw(data)`` and ``claim(data)``.

    Raises
    ------
    ValueError
        Where there is no such picture, or the file lacks one of the functions.
    FileNotFoundError
        Where there is no such file.

    Examples
    --------
    >>> from fastopt import gallery
    >>> print(gallery.title(gallery.load("tanh-init")))
    Ten tanh layers by initialisation
    """
    if not name.endswith(".py"):
        return importlib.import_module(f"fastopt.gallery.{_named(name)}")
    if not os.path.exists(name):
        raise FileNotFoundError(f"no such file: {name!r}")
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for function in ("run", "draw", "claim"):
        if not callable(getattr(module, function, None)):
            raise ValueError(f"{name} must have the functions run, draw and claim; there is no {function}")
    return module


def _named(name: str) -> str:
    return checks.word("name", name, NAMES)


def source(name: str) -> str:
    """The text of a picture's file.

    Parameters
    ----------
    name : str
        As for `load`.

    Returns
    -------
    str

    Raises
    ------
    ValueError, OSError
        As for `load`.

    Examples
    --------
    >>> from fastopt import gallery
    >>> "def claim(" in gallery.source("tanh-init")
    True
    """
    path = Path(name) if name.endswith(".py") else Path(__file__).with_name(f"{_named(name)}.py")
    return path.read_text(encoding="utf-8")


def title(picture: ModuleType) -> str:
    """The first line of the caption, without its full stop.

    Parameters
    ----------
    picture : module
        What `load` returns.

    Returns
    -------
    str

    Examples
    --------
    >>> from fastopt import gallery
    >>> gallery.title(gallery.load("zigzag"))
    'Gradient descent in a ravine, by learning rate'
    """
    return (picture.__doc__ or picture.__name__).strip().splitlines()[0].rstrip(".")


def caption(picture: ModuleType) -> str:
    """What was run and what to see: the caption below its first line, as one paragraph.

    Parameters
    ----------
    picture : module
        What `load` returns.

    Returns
    -------
    str

    Examples
    --------
    >>> from fastopt import gallery
    >>> gallery.caption(gallery.load("zigzag"))[:58]
    'A quadratic that is 80 times as steep across as along, and'
    """
    return " ".join(" ".join((picture.__doc__ or "").strip().splitlines()[1:]).split())


def lines_of_code(text: str) -> int:
    """How many lines a picture's file has, but for its caption and empty ones."""
    tree = ast.parse(text)
    first = tree.body[0] if tree.body else None
    skipped: range | tuple[()] = ()
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        skipped = range(first.lineno, (first.end_lineno or 0) + 1)
    return sum(bool(line.strip()) and number not in skipped for number, line in enumerate(text.splitlines(), 1))


def save(page: Any, path: str | os.PathLike[str]) -> None:
    """Write a picture.

    Parameters
    ----------
    page : matplotlib.figure.Figure
    path : path
        A file that is replaced at once or not at all. Its suffix decides the format: ``.png``, of few colours and so
        small, ``.svg`` or ``.pdf``.

    Raises
    ------
    ValueError, OSError
        Where the suffix is another one, or no file can be written there.

    Examples
    --------
    >>> from fastopt import gallery
    >>> picture = gallery.load("norm_cubes")
    >>> gallery.save(picture.draw(picture.run(quick=True)), "cubes.png")
    """
    suffix = checks.choice("the ending of path", Path(path).suffix.lower(), (".png", ".svg", ".pdf"))
    write = save_png if suffix == ".png" else functools.partial(page.__class__.savefig, format=suffix[1:])
    files.replace(path, lambda file: write(page, file))


_ABOUT = """\
Pictures of a course on neural networks, each from real runs of fastopt. `fastopt gallery --out DIR` draws all of them
(extra `plot`), `fastopt gallery NAME --out DIR` one. `fastopt gallery NAME --source > mine.py` prints the file of fewer
than 40 lines that makes it; change it, and `fastopt gallery mine.py --out DIR` draws yours. `make gallery` makes this
page of the captions in these files; the tests assert what they say."""


def page() -> str:
    """The page of all pictures in Markdown: a contact sheet, and each with its caption."""
    names = {name: load(name) for name in NAMES}
    cells = [
        f'<a href="#{slug(title(picture))}"><img src="{name}.png" width="190" alt="{title(picture)}"></a>'
        for name, picture in names.items()
    ]
    rows = [
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells[i : i + 5]) + "</tr>" for i in range(0, len(cells), 5)
    ]
    parts = [
        "# The gallery",
        _ABOUT,
        "\n".join(["<table>", *rows, "</table>"]),
    ]
    for chapter, own in CHAPTERS.items():
        parts.append(f"## {chapter}")
        for name in own:
            parts += [
                f"### {title(names[name])}",
                caption(names[name]),
                f"![{title(names[name])}]({name}.png)",
                f"[fastopt/gallery/{name}.py](../../fastopt/gallery/{name}.py)",
            ]
    return "\n\n".join(parts) + "\n"


def slug(heading: str) -> str:
    """The anchor that Markdown gives to a heading."""
    return "".join(c for c in heading.lower().replace(" ", "-") if c.isalnum() or c in "-_")
