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
        "README.md": "Getting started",
        "docs/install.md": "",
        "docs/tutorial/README.md": "",
        "docs/gallery/README.md": "",
    },
    "User's guide": {
        "docs/training.md": "",
        "docs/data.md": "",
        "docs/schedules.md": "",
        "docs/transfer.md": "",
        "docs/scikit-learn.md": "",
        "docs/extending.md": "",
        "docs/files.md": "",
        "*": "",
    },
    "Reference": {"api/index.rst": "", "docs/coming-from.md": "Coming from …", "docs/dialects.md": ""},
    "Trust": {
        "docs/guarantees.md": "",
        "docs/accuracy.md": "",
        "docs/bits.md": "",
        "docs/performance/README.md": "",
        "benchmarks/README.md": "Benchmarks",
        "SECURITY.md": "",
    },
    "Project": {"CONTRIBUTING.md": "", "docs/decisions/README.md": "", "CHANGELOG.md": ""},
}
#: Pages that have others below them.
FOLDERS = ("docs/tutorial", "docs/gallery", "docs/decisions", "docs/performance")

INDEX = """\
# fastopt

Fused, in-place C kernels for training neural networks with NumPy on the CPU, and a small trainer for MLPs and CNNs on
top of them.

```python
import numpy as np, fastopt

params = {"weight": np.ones((3, 2), np.float32), "bias": np.zeros(2, np.float32)}
optimizer = fastopt.Adam(params, lr=1e-3)
grads = {name: np.ones_like(param) for name, param in params.items()}  # yours
optimizer.step(grads)  # one C call, in place
```

- [Getting started](README.md): install it, step your own arrays, train a model.
- [The tutorial](docs/tutorial/README.md): from an MLP by hand to a CNN, in five short chapters.
- [The trainer](docs/training.md), and the rest of the user's guide.
- [The reference](api/index.rst): every public name, with an example.
- [Coming from](docs/coming-from.md) Keras, PyTorch, scikit-learn or plain NumPy: what they call it.
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
    """A page as the site has it: links to folders are none, and a page with others below it lists them."""
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
