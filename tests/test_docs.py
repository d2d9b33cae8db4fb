"""What the documentation shows, run as it stands there: the doctests of every module, and the examples of the pages."""

from __future__ import annotations

import contextlib
import doctest
import functools
import importlib
import importlib.util
import inspect
import io
import pkgutil
import re
import runpy
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

import fastopt
from fastopt import cli, data, functional, nn, reference, schedules
from fastopt.optimizers import OPTIMIZERS

# ---- Docstrings -------------------------------------------------------------------------------------------------

MODULES = sorted(
    {"fastopt", *(m.name for m in pkgutil.walk_packages(fastopt.__path__, "fastopt."))} - {"fastopt.__main__"}
)


def examples():
    """The examples of each docstring; in the place of those of a module that needs an extra, the error."""
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            yield pytest.param(error, id=name)
            continue
        for test in doctest.DocTestFinder(exclude_empty=True).find(module):
            if test.examples:
                yield pytest.param(test, id=test.name)


def test_functions_are_documented_in_whole():
    """Each public one: with its arguments, results, errors (where it checks anything), and an example."""
    unchecked = {"packed_shape", "winner_type", "winograd_fits"}
    lacking = []
    for name in functional.__all__:
        function = getattr(functional, name)
        if not inspect.isfunction(function):
            continue
        wanted = {"Parameters", "Returns", "Raises", "Examples"}
        wanted -= {"Returns"} if name in OPTIMIZERS else {"Raises"} if name in unchecked else set()
        found = re.findall(r"^(\w+)\n---+$", inspect.getdoc(function), re.MULTILINE)
        lacking += [f"{name}: {section}" for section in sorted(wanted.difference(found))]
        parameters = inspect.getdoc(function).partition("Parameters\n")[2].partition("\n\n")[0]
        listed = {word for line in parameters.split("\n") if line[:1] != " " for word in re.findall(r"\w+", line)}
        lacking += [f"{name}: {each}" for each in inspect.signature(function).parameters if each not in listed]
    assert not lacking


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_example_of_a_step(name):
    """Which doctest does not find by itself: the function is made of a text."""
    function = getattr(functional, name)
    (test,) = doctest.DocTestFinder().find(function, name, module=False, globs={name: function})
    assert doctest.DocTestRunner().run(test).failed == 0
    assert len(test.examples) >= 4


def skip_without_extra(error):
    """Skips a test that an extra is missing for; an import of fastopt's own that fails is an error."""
    if (error.name or "").startswith("fastopt"):
        raise error
    pytest.skip(str(error))


@pytest.mark.parametrize("test", [*examples()])
def test_docstring(test, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if isinstance(test, ImportError):
        skip_without_extra(test)
    try:
        doctest.DebugRunner(verbose=False).run(test)
    except doctest.DocTestFailure as failure:
        place = f"{test.filename}:{(test.lineno or 0) + failure.example.lineno + 1}"
        pytest.fail(
            f"{place}\n{failure.example.source}wanted {failure.example.want!r}, got {failure.got!r}", pytrace=False
        )
    except doctest.UnexpectedException as failure:
        error = failure.exc_info[1]
        if isinstance(error, ImportError):
            skip_without_extra(error)
        raise error from None


# ---- Public names -----------------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[1] / "docs"


@functools.cache
def site():
    """What docs/site/public.py says of the reference."""
    if not (DOCS / "site/public.py").exists():
        pytest.skip("the pages are not beside the tests")
    return SimpleNamespace(**runpy.run_path(str(DOCS / "site/public.py")))


def public_names():
    """The public names that the reference of the site shows, each with its object."""
    return site().public_names(every=False)


def code_of(value):
    """The lines of the examples in a docstring."""
    return "\n".join(re.findall(r"^ *(?:>>>|\.\.\.) (.*)$", inspect.getdoc(value) or "", re.MULTILINE))


def test_public_names_have_examples():
    """All that can have a docstring: modules, classes and functions, which have a section of that name."""
    names = public_names()
    assert len(names) > 250
    lacking = []
    for name, value in names.items():
        heading = "\n" if inspect.ismodule(value) else "\nExamples\n--------\n"
        if inspect.ismodule(value) or inspect.isclass(value) or inspect.isroutine(value):
            has_one = ">>> " in (inspect.getdoc(value) or "").partition(heading)[2]
            lacking += [] if has_one else [name]
    assert not lacking


def test_formulas_have_examples():
    """The functions of `fastopt.reference`, whose source the site shows."""
    place = reference.__name__
    formulas = [f for f in vars(reference).values() if inspect.isfunction(f) and f.__module__ == place]
    names = {f.__name__ for f in formulas if not f.__name__.startswith("_")}
    assert len(names) > 70
    assert not [name for name in names if not re.search(rf"\b{name}\(", code_of(getattr(reference, name)))]
    assert {f"{place}.{name}" for name in names} <= {each.id for each in examples()}


def test_public_methods_are_in_examples():
    """Those that a class does not have from a base: in an example of theirs, of the class, or of an heir."""
    classes = {name: value for name, value in public_names().items() if inspect.isclass(value)}
    lacking = []
    for name, value in classes.items():
        heirs = [other for other in classes.values() if value in other.__mro__]
        shown = "\n".join(code_of(each) for heir in heirs for each in (heir, *site().methods(heir).values()))
        bases = {*value.__mro__[1:], *([fastopt.Optimizer] if hasattr(value, "step") else [])} - {value}
        own = set(site().methods(value)).difference(*map(vars, bases))
        lacking += [f"{name}.{method}" for method in own if not re.search(rf"(\.|def ){method}\b", shown)]
    assert not lacking


def test_internal_methods_are_there():
    classes = [value for value in public_names().values() if inspect.isclass(value)]
    there = {f"{value.__name__}.{method}" for value in classes for method in vars(value)}
    assert not site().INTERNAL - there


def test_names_on_pages_are_public():
    """What pages call ``fastopt.…`` is in the reference, or an attribute of what is there."""
    if not PAGES:
        pytest.skip("the pages are not beside the tests")
    try:
        names = site().public_names()
    except ImportError as error:
        skip_without_extra(error)
    wrong = set()
    for page in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")):
        for found in re.findall(r"`[^`\n]*`|^```python\n.*?^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for name in re.findall(r"\bfastopt(?:\.[a-zA-Z]\w*)+", found):
                owner = name
                while owner not in names and owner:
                    owner = owner.rpartition(".")[0]
                is_attribute = owner != name and inspect.isclass(names.get(owner))
                wrong |= set() if owner == name or is_attribute else {f"{page.name}: {name}"}
    assert not wrong


def test_public_names_have_their_arguments_documented():
    """Of functions and classes: in the section of parameters, or, of results that are tuples, in that of attributes."""
    given = {nn.Histories, nn.Run, schedules.Schedule}  # users get these, and exceptions, and do not make them
    lacking = []
    for name, value in public_names().items():
        is_error = inspect.isclass(value) and issubclass(value, Exception)
        if not (inspect.isclass(value) or inspect.isfunction(value)) or is_error or value in given:
            continue
        text = inspect.getdoc(value) or ""
        sections = [text.partition(f"{title}\n---")[2].partition("\n\n")[0] for title in ("Parameters", "Attributes")]
        lines = [line for section in sections for line in section.split("\n") if line[:1] != " "]
        listed = {word for line in lines for word in re.findall(r"\w+", line)} | {"args", "kwargs", "hyper"}
        lacking += [f"{name}: {each}" for each in inspect.signature(value).parameters if each not in listed]
    assert not lacking


def test_examples_of_public_names_run():
    """They are among those of `test_docstring`, or, of steps, of `test_example_of_a_step`."""
    run = {each.id for each in examples()} | {f"fastopt.functional.steps.{name}" for name in OPTIMIZERS}
    names = {
        name if inspect.ismodule(value) else f"{value.__module__}.{value.__qualname__}"
        for name, value in public_names().items()
        if inspect.ismodule(value) or inspect.isclass(value) or inspect.isroutine(value)
    }
    assert not names - run


def test_public_names_are_all_exported():
    """What packages export is in the reference, and nothing is there twice."""
    names = public_names()
    for module in (fastopt, functional, nn, data, data.augment):
        assert {id(getattr(module, name)) for name in module.__all__} <= {id(value) for value in names.values()}
    values = [value for value in names.values() if inspect.isclass(value) or inspect.isroutine(value)]
    assert len({id(value) for value in values}) == len(values)


# ---- Pages ------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")) if "```python" in path.read_text()) \
    if (ROOT / "README.md").exists() else []  # fmt: skip
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


class Block(NamedTuple):
    """Python of a page, and what the page says that it prints."""

    code: str
    printed: str | None


def with_outputs(page: Path) -> list[Block]:
    """The Python of a page; lines that draw, only where there is matplotlib."""
    pattern = r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?"
    found = [match.groups() for match in re.finditer(pattern, page.read_text(), re.DOTALL | re.MULTILINE)]
    drawing = re.compile(r"^.*\.(plot|preview|plot_mistakes)\(.*\n", re.MULTILINE)
    return [Block(code if HAS_MATPLOTLIB else drawing.sub("", code), printed) for code, printed in found]


def blocks(page: Path) -> list[str]:
    """The Python of a page alone."""
    return [block.code for block in with_outputs(page)]


def same_output(printed: str, shown: str) -> bool:
    """Whether texts are the same, but for numbers that differ as little as those of another BLAS may."""
    number = re.compile(r"\d+(?:\.\d+)?(?:e[-+]\d+)?")
    if number.sub("#", printed) != number.sub("#", shown):
        return False
    pairs = zip(number.findall(printed), number.findall(shown), strict=True)
    return all(float(one) == pytest.approx(float(other), rel=0.05, abs=0.11) for one, other in pairs)


@contextlib.contextmanager
def restored(registry: dict):
    """Afterwards, a registry holds what it held before."""
    before = dict(registry)
    try:
        yield
    finally:
        registry.clear()
        registry.update(before)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Runs a page in a folder of its own, once, and returns the names that it leaves, and the folder."""
    results = {}

    def run(page: Path):
        if page not in results:
            folder, left = tmp_path_factory.mktemp("page"), {}
            with pytest.MonkeyPatch.context() as patch, restored(schedules.SCHEDULES):
                patch.chdir(folder)
                for number, (code, shown) in enumerate(with_outputs(page), start=1):
                    with contextlib.redirect_stdout(io.StringIO()) as printed:
                        exec(compile(code, f"{page.name}, example {number}", "exec"), left)
                    if shown is not None and not same_output(printed.getvalue(), shown):
                        pytest.fail(f"{page.name}, example {number} prints\n{printed.getvalue()}not\n{shown}")
            results[page] = left, folder
        return results[page]

    return run


def test_pages_are_found():
    if not PAGES:
        pytest.skip("the pages are not beside the tests")
    assert {page.name for page in PAGES} >= {"README.md", "training.md", "schedules.md", "data.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(page, names):
    try:
        names(page)
    except ImportError as error:
        skip_without_extra(error)


def test_pages_are_executed():
    """All Python of the pages, but for CONTRIBUTING.md's, which are parts of files that are in the repository."""
    if not PAGES:
        pytest.skip("the pages are not beside the tests")
    every = [path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks/README.md")
             if path not in PAGES]  # fmt: skip
    fenced = {path.name: set(re.findall(r"^ *(```+|~~~+)(.*)$", path.read_text(), re.MULTILINE)) for path in every}
    assert {name for name, found in fenced.items() if any("py" in language for _, language in found)} == {
        "CONTRIBUTING.md"
    }
    for page in PAGES:
        assert len(blocks(page)) == len(re.findall(r"^ *``` *py", page.read_text(), re.MULTILINE)), page.name


def test_commands_are_there():
    """What pages say to a shell: commands of fastopt and their options, targets of make, scripts and extras."""
    if not PAGES:
        pytest.skip("the pages are not beside the tests")
    parser = cli._parser()
    (subs,) = (action for action in parser._actions if isinstance(action.choices, dict))
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pages = [*ROOT.glob("docs/**/*.md"), *map(ROOT.joinpath, ("README.md", "CONTRIBUTING.md", "benchmarks/README.md"))]
    wrong = []
    for page in pages:
        text = page.read_text()
        shell = re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for line in [*"\n".join(shell).splitlines(), *re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)]:
            for name, rest in re.findall(r"(?:^|/|&& |\$ )fastopt ([a-z]+)(?: ([^#&|]*))?", line):
                known = subs.choices[name]._option_string_actions if name in subs.choices else {}
                unknown = [each for each in re.findall(r"--[\w-]+", rest) if each not in known]
                wrong += [f"{page.name}: fastopt {name} {' '.join(unknown)}"] if unknown or not known else []
            made = re.findall(r"^make ([a-z][\w-]*)", line)
            wrong += [f"{page.name}: make {name}" for name in made if name not in targets]
            scripts = re.findall(r"\bpython ((?:benchmarks|tests|docs)/[\w/.]+)", line)
            wrong += [f"{page.name}: {name}" for name in scripts if not (ROOT / name).exists()]
            for several in re.findall(r"(?:fastopt|\.)\[([\w,]+)\]", line) if "pip install" in line else []:
                wrong += [f"{page.name}: the extra {each}" for each in several.split(",") if each not in extras]
    assert not wrong


def test_extras_are_on_the_page_of_installation():
    if not PAGES:
        pytest.skip("the pages are not beside the tests")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for_development = {"test", "oracles", "peers", "docs", "dev", "release", "fuzz"}
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/install.md").read_text(), re.MULTILINE)
    assert {*rows} == {*extras} - for_development


def test_links_lead_somewhere():
    """Files that pages link to are there, and so are the headings in them."""
    broken = []
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            file, _, heading = target.partition("#")
            if re.match(r"[a-z]+:", file):
                continue
            path = (page.parent / file) if file else page
            if not path.exists():
                broken.append(f"{page.name}: {target}")
            elif heading and path.suffix == ".md":
                headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
                if heading not in slugs:
                    broken.append(f"{page.name}: {target}")
    assert not broken


def test_tables_of_performance_stand_once_and_have_their_commands():
    """In the section of each, a command says how it is repeated; no row of figures is on two pages, or twice on one."""
    if not PAGES:
        pytest.skip("the pages are not beside the tests")
    places: dict[str, list[str]] = {}
    for page in (*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md"), ROOT / "benchmarks/README.md"):
        for line in page.read_text().splitlines():
            if line.startswith("|") and len(re.findall(r"\d[\d.,]*", line)) >= 4:
                places.setdefault(line, []).append(page.name)
    assert not {line: names for line, names in places.items() if len(names) > 1}
    pages = [page for page in ROOT.glob("docs/performance/*.md") if page.name != "README.md"]
    lacking = []
    for page in pages:
        for section in re.split(r"^## ", page.read_text(), flags=re.MULTILINE)[1:]:
            if "\n|" in section and "python benchmarks/" not in section.partition("\n|")[0]:
                lacking.append(f"{page.name}: {section.splitlines()[0]}")
    assert len(pages) > 1
    assert not lacking


# ---- What the pages promise -------------------------------------------------------------------------------------


@pytest.fixture
def training(names):
    pages = [page for page in PAGES if page.name == "training.md"]
    if not pages:
        pytest.skip("the pages are not beside the tests")
    return pages[0]


def test_the_loop_of_the_page_learns(training, names):
    left, folder = names(training)
    assert left["model"].evaluate(left["x_test"], left["y_test"])["accuracy"] > 0.9
    assert {path.name for path in folder.iterdir()} >= {"run.npz", "run.csv"}
    assert left["history"].monitor["step"]


def test_a_loop_of_your_own_is_fit(training):
    """But for the order of samples, which is made the same here."""
    own = next(block for block in blocks(training) if "model.trainer(" in block)
    x, y, x_test, y_test = data.load("digits")
    models = [
        nn.Sequential([nn.Flatten(), nn.Dense(32), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2), nn.Dense(10)], (8, 8, 1))
        for _ in range(2)
    ]
    steps = len(nn.Shuffled(len(x), 32))
    own = own.replace("default_rng(epoch)", f"default_rng([0, epoch * {steps}])")
    exec(own, {"nn": nn, "np": np, "model": models[0], "x": x, "y": y, "x_test": x_test, "y_test": y_test})
    models[1].fit(x, y, epochs=3)
    for name, param in models[0].params.items():
        np.testing.assert_array_equal(param, models[1].params[name])


def test_what_is_written_on_the_page_of_extensions_works(names):
    """The layer and the loss have right gradients, the optimizer trains, and goes on with its schedule."""
    pages = [page for page in PAGES if page.name == "extending.md"]
    if not pages:
        pytest.skip("the pages are not beside the tests")
    left, _ = names(pages[0])
    model, x, y = left["model"], left["x"], left["y"]
    for loss in (nn.softmax_cross_entropy, left["focal"]):
        assert nn.debug.gradient_check(model, x[:16], y[:16], loss=loss)
    wrong = lambda output, targets: (left["focal"](output, targets)[0], output)  # noqa: E731
    assert not nn.debug.gradient_check(model, x[:16], y[:16], loss=wrong)
    assert left["history"]["accuracy"][-1] > 0.9
    assert model.evaluate(left["x_test"], left["y_test"])["accuracy"] > 0.9
    schedule = left["signum"].schedules["lr"]
    assert left["resumed"].schedules["lr"] == schedule
    assert left["resumed"].lr == schedule(left["resumed"].t - 1)
    assert left["resumed"].t == left["signum"].t + len(left["x"]) // 32 + (len(left["x"]) % 32 > 1)
    assert left["optimizer"].t == 10
