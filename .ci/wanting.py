"""Which tests may end otherwise where more is installed: those that looked for a module in vain, were skipped, or
started a process. As a plugin of pytest (`-p wanting`) it writes them to the file $WANTING, with what they looked for;
as a program it prints those of such a file whose module is installed here. Which module the latter two want is not
known: they are those of files that ask for any.
"""

import functools
import importlib.util
import os
import sys
from pathlib import Path

ANYTHING = "*"  # in the place of a module's name: it is not known which

path = os.environ.pop("WANTING", "")  # not inherited by pytest in a process that a test starts
found: dict[tuple[str, str], None] = {}  # module, test; in the order of the tests
current = ""  # the test that runs, or the file that is read


def note(module: str) -> None:
    if current:
        found[module, current] = None


class Last:
    """The last of the import system's finders: it is asked for what no other one has found."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        note(name.partition(".")[0])


def pytest_configure() -> None:
    sys.meta_path.append(Last)
    sys.addaudithook(lambda event, _: note(ANYTHING) if event in {"subprocess.Popen", "os.fork"} else None)


def pytest_make_collect_report(collector) -> None:
    global current
    current = collector.nodeid


def pytest_collection_finish() -> None:
    global current
    current = ""


def pytest_runtest_logstart(nodeid) -> None:
    global current
    current = nodeid


def pytest_runtest_logreport(report) -> None:
    if report.skipped:
        note(ANYTHING)


def pytest_collectreport(report) -> None:
    if report.skipped:
        note(ANYTHING)


def pytest_unconfigure() -> None:
    if path:
        Path(path).write_text("".join(f"{module} {test}\n" for module, test in found))


@functools.cache
def is_here(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@functools.cache
def names_modules(file: str) -> bool:
    """Whether a file of tests asks for modules that may not be installed."""
    source = Path(file).read_text()
    return "importorskip" in source or "find_spec" in source


if __name__ == "__main__":
    wanted = [line.split(" ", 1) for line in Path(sys.argv[1]).read_text().splitlines()]
    tests = dict.fromkeys(
        test
        for module, test in wanted
        if (names_modules(test.partition("::")[0]) if module == ANYTHING else is_here(module))
    )
    whole = {test for test in tests if "::" not in test}  # files
    print(*[test for test in tests if test in whole or test.partition("::")[0] not in whole], sep="\n")
