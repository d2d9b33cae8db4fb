"""The site's sources, as docs/site/build.py puts them together; `make docs` takes warnings for errors."""

from __future__ import annotations

import inspect
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
HERE = ROOT / "docs/site"


@pytest.fixture(scope="module")
def build():
    if not HERE.exists():
        pytest.skip("the pages are not beside the tests")
    path = [*sys.path]
    try:
        yield SimpleNamespace(**runpy.run_path(str(HERE / "build.py")))
    finally:
        sys.path[:] = path
        sys.modules.pop("public", None)


@pytest.fixture(scope="module")
def source(build, tmp_path_factory):
    """The sources; without the extras, the reference lacks what needs them."""
    folder = tmp_path_factory.mktemp("site")
    try:
        build.stage(folder)
    except ImportError as error:
        pytest.skip(f"the reference needs all extras: {error}")
    return folder


def listed(page: Path) -> list[Path]:
    """The pages that the lists of contents of a page name."""
    text = page.read_text()
    lists = re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lists += re.findall(r"^\.\. toctree::\n((?:   .*\n|\n)*)", text, re.MULTILINE)
    entries = [line.strip() for each in lists for line in each.splitlines() if line.strip()[:1] not in ("", ":")]
    names = [re.sub(r"^.*<(.*)>$", r"\1", entry) for entry in entries]
    return [page.parent / (name if name.endswith((".md", ".rst")) else f"{name}.rst") for name in names]


def test_each_page_is_listed_once(source):
    pages = {path for path in source.rglob("*") if path.suffix in (".md", ".rst")}
    found = [each.resolve() for page in pages for each in listed(page)]
    assert sorted({page.resolve() for page in pages} - {(source / "index.md").resolve()}) == sorted(found)


def test_the_first_page_runs(build, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in re.findall(r"^```python\n(.*?)^```", build.INDEX, re.DOTALL | re.MULTILINE):
        exec(code, names)
    assert names["model"].evaluate(names["x_test"], names["y_test"])["accuracy"] > 0.9
    assert names["adam"].t == 1


def test_pages_are_those_of_the_repository(build, source):
    """But for titles, links to folders, and lists of contents."""
    assert {"README.md", "CONTRIBUTING.md", "docs/training.md", "docs/tutorial/5-a-cnn.md"} <= set(build.pages())
    for name in build.pages():
        text = (source / name).read_text().partition("\n```{toctree}")[0]
        before = (ROOT / name).read_text()
        assert len(text.splitlines()) >= len(before.splitlines())
        for link, file in build._links(name, text):
            assert (source / file).is_file(), f"{name}: {link}"


def test_every_public_name_is_in_the_reference_once(build, source):
    text = "\n".join(page.read_text() for page in (source / "api").glob("*.rst"))
    shown = re.findall(r"^\.\. auto(?:class|function|data|module):: (\S+)", text, re.MULTILINE)
    names = build.public.public_names()
    assert sorted(shown) == sorted(names)


def test_broken_links_are_found(build, tmp_path):
    (tmp_path / "a.html").write_text('<h1 id="here">a</h1><a href="b.html#there"></a><a href="https://x.org/y"></a>')
    links = '<p id="there"><a href="a.html#here"></a><a href="a.html#nowhere"></a><a href="#there"></a>'
    (tmp_path / "b.html").write_text(links + '<img src="c%20d.png"><script src="s.js?v=1"></script>')
    (tmp_path / "c d.png").touch()
    assert build.broken(tmp_path) == ["b.html: a.html#nowhere", "b.html: s.js?v=1"]


def test_the_source_of_the_formulas_is_shown(build, source):
    page = (source / "api/fastopt.reference.rst").read_text()
    assert "   def adam(" in page
    assert inspect.getsource(build.public.public_names()["fastopt.reference"]).splitlines()[-1].strip() in page
