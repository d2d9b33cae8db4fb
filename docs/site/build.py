"""Puts the sources of the site together in build/site-source, and builds it: `make docs`.

The pages lie as in the repository, so that their links hold. What is made here: the first page, and the reference, from
the public names and their docstrings.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

import public  # noqa: E402

#: The sections of the site: their pages, with the titles of those whose own is not for a list of contents; "*" stands
#: for pages that no section names.
SECTIONS: dict[str, dict[str, str]] = {
    "First steps": {
        "README.md": "",
        "docs/install.md": "",
        "docs/tutorial/README.md": "Tutorial",
        "docs/coming-from.md": "Coming from Keras, PyTorch, …",
        "docs/gallery/README.md": "Gallery",
    },
    "User's guide": {
        "docs/optimizers.md": "Optimizers and kernels",
        "docs/training.md": "Training",
        "docs/data.md": "Data and augmentation",
        "docs/schedules.md": "Schedules",
        "docs/transfer.md": "Transfer, PyTorch, Keras, ONNX",
        "docs/scikit-learn.md": "",
        "docs/distributed.md": "Several processes, clusters",
        "docs/extending.md": "Extending",
        "docs/files.md": "Files",
        "docs/dialects.md": "Dialects",
        "*": "",
    },
    "Reference": {"api/index.rst": "All public names"},
    "Figures and guarantees": {
        "docs/performance/README.md": "",
        "benchmarks/README.md": "Benchmarks",
        "docs/guarantees.md": "",
        "docs/accuracy.md": "",
        "docs/bits.md": "",
        "SECURITY.md": "",
    },
    "Project": {"CONTRIBUTING.md": "Contributing", "docs/decisions/README.md": "", "CHANGELOG.md": ""},
}
#: Pages that have others below them.
FOLDERS = ("docs/tutorial", "docs/gallery", "docs/decisions", "docs/performance")

INDEX = """\
# fastopt

**fastopt makes neural networks in NumPy train fast on the CPU.** Your arrays and your loop stay; C kernels take
the step of the optimizer, draw dropout, normalise, convolve, each in one pass, in place. On top of them: a small
trainer for MLPs and CNNs. It needs NumPy and nothing else.

```
pip install fastopt
```

A step on arrays of your own:

```python
import numpy as np
import fastopt

params = {"weight": np.ones((3, 2), np.float32), "bias": np.zeros(2, np.float32)}
adam = fastopt.Adam(params, lr=1e-3)
adam.step({name: np.ones_like(param) for name, param in params.items()})  # your gradients; one C call, in place
```

A network, trained on handwritten digits that come with the package:

```python
from fastopt import data, nn

x, y, x_test, y_test = data.load("digits")
model = nn.Sequential([nn.Conv2D(16), nn.ReLU(), nn.MaxPool2D(), nn.Flatten(), nn.Dense(10)], x.shape[1:])
model.fit(x, y, epochs=10)
print(model.evaluate(x_test, y_test))
```

- [Getting started](README.md): what is there, by example, and [how fast it is](docs/performance/README.md).
- [Tutorial](docs/tutorial/README.md): from an MLP by hand to a CNN, in five short chapters.
- [Coming from Keras, PyTorch, scikit-learn or plain NumPy](docs/coming-from.md): name by name.
- [Training](docs/training.md), and the rest of the user's guide.
- [All public names](api/index.rst), each with an example.
"""


def pages() -> list[str]:
    """The Markdown pages of the site, as the repository names them."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks/README.md"]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def stage(source: Path) -> None:
    """Write the sources of the site to a folder, which is emptied first."""
    shutil.rmtree(source, ignore_errors=True)
    names = pages()
    for name in names:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_page(name, (ROOT / name).read_text(), names))
    for name in linked(names):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(HERE / "static", source / "_static")
    shutil.copy(HERE / "conf.py", source)
    (source / "api").mkdir()
    for name, text in reference():
        (source / "api" / name).write_text(text)
    (source / "index.md").write_text(INDEX + "".join(_contents(names)))


def _links(name: str, text: str) -> Iterator[tuple[str, str]]:
    """The links of a page to files: as they stand there, and as the repository names the file."""
    for link in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text):
        if not re.match(r"[a-z]+:", link):
            yield link, os.path.relpath((ROOT / name).parent / link, ROOT).replace(os.sep, "/")


def linked(names: list[str]) -> set[str]:
    """The pictures and other files that pages show or link to."""
    found = {file for name in names for _, file in _links(name, (ROOT / name).read_text())}
    return {file for file in found - set(names) if (ROOT / file).is_file()}


def in_html(names: list[str]) -> set[str]:
    """The pictures that HTML within pages shows, which Sphinx passes over."""
    found = set()
    for name in names:
        for link in re.findall(r'<img src="([^":]+)"', (ROOT / name).read_text()):
            found.add(os.path.relpath((ROOT / name).parent / link, ROOT).replace(os.sep, "/"))
    return found


def _page(name: str, text: str, names: list[str]) -> str:
    """A page as the site has it: README.md has a title of its own, links that show the path of a page show its title,
    links to folders are none, and a page with others below it lists them.
    """
    if name == "README.md":
        text = text.replace("# fastopt\n", "# Getting started\n", 1)
    text = re.sub(r"\[[\w/-]+\.md\]\(", "[](", text)
    for link, file in _links(name, text):
        if not (ROOT / file).is_file():
            text = re.sub(rf"\[([^\]]*)\]\({re.escape(link)}\)", r"\1", text)
    for folder in FOLDERS:
        if name == f"{folder}/README.md":
            below = [Path(other).name for other in names if Path(other).parent.as_posix() == folder and other != name]
            text += _toctree("", below, hidden=True) if below else ""
    return text


def _toctree(caption: str, entries: list[str], hidden: bool = False) -> str:
    options = ([f":caption: {caption}"] if caption else []) + [":hidden:"] * hidden
    return "\n".join(["", "```{toctree}", *options, "", *entries, "```", ""])


def _contents(names: list[str]) -> Iterator[str]:
    """The lists of contents of the first page."""
    named = {name for section in SECTIONS.values() for name in section}
    below = {name for name in names if Path(name).parent.as_posix() in FOLDERS}
    for caption, section in SECTIONS.items():
        entries = []
        for name, title in section.items():
            if name == "*":
                entries += [other for other in names if other not in named | below]
            elif name in names or name.startswith("api/"):
                entries.append(f"{title} <{name}>" if title else name)
        yield _toctree(caption, entries, hidden=True)


# ---- The reference ----------------------------------------------------------------------------------------------


def reference() -> Iterator[tuple[str, str]]:
    """The pages of the reference: the name of each file, and its text."""
    names = public.public_names()
    modules = [name for name, value in names.items() if inspect.ismodule(value)]
    yield "index.rst", _title("Reference") + _listed(modules, depth=2)
    for module in modules:
        own = [name for name in names if name.rpartition(".")[0] == module and name not in modules]
        groups = public.grouped(module, {name: names[name] for name in own})
        head = f"{_title(public.about(module))}\n.. automodule:: {module}\n   :no-members:\n"
        if len(groups) == 1:
            (members,) = groups.values()
            yield f"{module}.rst", "\n".join([head, *_members(module, members, names)])
            continue
        files = {title: f"{module}.{re.sub('[^a-z]+', '-', title.lower())}" for title in groups}
        yield f"{module}.rst", "\n".join([head, _source(names[module]) if not own else "", _listed(files.values())])
        for title, members in groups.items():
            yield f"{files[title]}.rst", "\n".join([_title(title), *_members(module, members, names)])


def _title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n"


def _listed(files: Iterable[str], depth: int = 1) -> str:
    lines = [f".. toctree::\n   :maxdepth: {depth}\n   :titlesonly:\n", *(f"   {file}" for file in files)]
    return "\n".join(["", *lines, ""]) if len(lines) > 1 else ""


def _members(module: str, members: list[str], names: dict[str, Any]) -> Iterator[str]:
    """A list of what a page holds, and all of it."""
    rows = "\n".join(f"   {name.removeprefix(module + '.')}" for name in members)
    yield f".. currentmodule:: {module}\n\n.. autosummary::\n\n{rows}\n"
    for name in members:
        value = names[name]
        kind = "autoclass" if inspect.isclass(value) else "autofunction" if inspect.isroutine(value) else "autodata"
        options = "   :members:\n" if kind == "autoclass" else ""
        options += "   :show-inheritance:\n" if kind == "autoclass" and public.bases(value) else ""
        yield f".. {kind}:: {name}\n{options}"


def _source(module: Any) -> str:
    """The source of a module from its first section on: of the formulas, that is what there is to be read."""
    lines = inspect.getsource(module).splitlines()
    lines = lines[next(i for i, line in enumerate(lines) if line.startswith("# ----")) :]
    return ".. code-block:: python\n\n" + "".join(f"   {line}".rstrip() + "\n" for line in lines)


# ---- The site ---------------------------------------------------------------------------------------------------


class _Anchors(HTMLParser):
    """What a page links to, and where others may link to in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            if name in ("href", "src") and value and not re.match(r"[a-z]+:|//", value):
                self.links.add(value)


def broken(site: Path) -> list[str]:
    """The links of built pages that lead to no file of the site, or to no place in it."""
    pages = {page.resolve(): _Anchors(page) for page in site.rglob("*.html")}
    found = []
    for page, parsed in pages.items():
        for link in sorted(parsed.links):
            file, _, anchor = unquote(link).partition("#")
            target = (page.parent / file.partition("?")[0]).resolve() if file else page
            missing = not target.exists() or (anchor and target in pages and anchor not in pages[target].anchors)
            found += [f"{page.relative_to(site.resolve())}: {link}"] if missing else []
    return found


def main() -> int:
    from sphinx.cmd.build import build_main

    source, site = ROOT / "build/site-source", ROOT / "build/site"
    stage(source)
    shutil.rmtree(site, ignore_errors=True)
    status = build_main(["-q", "-W", "--keep-going", "-j", "auto", "-d", f"{source}/.doctrees", str(source), str(site)])
    for name in in_html(pages()):
        shutil.copy(ROOT / name, site / name)
    lost = [] if status else broken(site)
    for link in lost:
        print(f"leads nowhere: {link}", file=sys.stderr)
    if not (status or lost):
        print(site / "index.html")
    return status or bool(lost)


if __name__ == "__main__":
    sys.exit(main())
