"""Runs the chapters, and writes what they print into them, what they draw beside them, and all as a notebook.

The notebook follows from the chapters alone, which `tests/test_tutorial.py` checks.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent


class Part(NamedTuple):
    """A part of a chapter: text, code, what the code above prints, or the picture that it draws."""

    kind: str
    text: str


def chapters() -> list[Path]:
    """The chapters in their order."""
    return sorted(HERE.glob("[0-9]-*.md"))


def parts(chapter: Path) -> list[Part]:
    """A chapter in parts, of which pictures are single lines."""
    found = []
    pattern = r"^```(python|text)\n(.*?)^```\n|^(!\[[^\]\n]*\]\([^)\s]+\)\n)"
    end, content = 0, chapter.read_text()
    for match in re.finditer(pattern, content, re.DOTALL | re.MULTILINE):
        found.append(Part("prose", content[end : match.start()].strip("\n")))
        found.append(Part("picture", match[3]) if match[3] else Part(match[1], match[2]))
        end = match.end()
    found.append(Part("prose", content[end:].strip("\n")))
    return [part for part in found if part.text.strip() or part.kind == "text"]


def run(code: str, names: dict[str, Any]) -> tuple[str, Any]:
    """Run code as a cell of a notebook is run: what it prints, and the value of an expression in the end."""
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "chapter", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "chapter", "eval"), names) if last is not None else None
    return printed.getvalue(), value


def refresh(chapter: Path) -> None:
    """Write what a chapter prints into it, and what it draws beside it."""
    names: dict[str, Any] = {}
    printed, drawn = "", None
    pieces = []
    for part in parts(chapter):
        if part.kind == "python":
            printed, drawn = run(part.text, names)
            pieces.append(f"```python\n{part.text}```")
        elif part.kind == "text":
            pieces.append(f"```text\n{printed}```")
        elif part.kind == "picture":
            path = HERE / re.findall(r"\((\S+)\)", part.text)[-1]
            drawn.savefig(path, dpi=80)
            pieces.append(part.text.strip())
        else:
            pieces.append(part.text)
    chapter.write_text("\n\n".join(pieces) + "\n")


def notebook() -> str:
    """All chapters as a notebook, without outputs: prose and code."""
    cells: list[dict[str, Any]] = []
    for path in (HERE / "README.md", *chapters()):
        kept = [part for part in parts(path) if part.kind in ("prose", "python")]
        for part in kept:
            text = _linked(part.text) if part.kind == "prose" else part.text.strip("\n")
            cell: dict[str, Any] = {"cell_type": "markdown" if part.kind == "prose" else "code"}
            if part.kind == "python":
                cell |= {"execution_count": None, "outputs": []}
            cells.append(cell | {"id": f"part-{len(cells)}", "metadata": {}, "source": text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _linked(text: str) -> str:
    """Prose whose links to chapters, and to the notebook, which is all of them, are plain text."""
    return re.sub(r"\[([^]]*)\]\((?:\d-[\w-]+\.md|tutorial\.ipynb)\)", r"\1", text)


def main() -> None:
    here = os.getcwd()
    for chapter in chapters():
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                refresh(chapter)
            finally:
                os.chdir(here)
    (HERE / "tutorial.ipynb").write_text(notebook())


if __name__ == "__main__":
    main()
