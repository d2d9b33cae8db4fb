"""The modules of fastopt import each other in one direction, and at their beginning."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fastopt

ROOT = Path(fastopt.__file__).parent

#: Who may know whom, the parts of fastopt from the top down: each imports only from what is further down.
CHAIN = (
    ("cli",),
    ("bench", "gallery"),
    ("cases",),
    ("sklearn",),
    ("onnx", "optuna"),
    ("landscape", "nn", "plots", "reference", "inplace"),
    ("data",),
    ("fastopt",),
    ("interchange", "functional", "averaging", "matrices", "lbfgs", "penalties"),
    ("optimizers", "extending"),
    ("optimizer",),
    ("hyper", "gradients", "arena", "mpi"),
    ("schedules", "kernel", "applied", "files", "threads", "drawing"),
    ("environment", "messages"),
    ("checks",),
    ("dialects",),
    ("_kernels",),
)
#: What is for tests and benchmarks: the parts of fastopt that may import it.
FOR_TESTS = {"reference": {"bench", "cases"}, "inplace": {"bench"}, "cases": {"bench"}}

#: Imports of fastopt's modules inside of functions that have a reason, as (module, imported module): the reason.
ALLOWED: dict[tuple[str, str], str] = {}


def name_of(path: Path) -> str:
    parts = ("fastopt", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}
#: The compiled bridge has a stub in place of a source.
MODULES = {*SOURCES, "fastopt._kernels"}


def targets(module: str, node: ast.AST) -> set[str]:
    """The modules of fastopt that an import statement names: of ``from package import part``, the part."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names} & MODULES
    if not isinstance(node, ast.ImportFrom):
        return set()
    base = node.module or ""
    if node.level:
        package = module if SOURCES[module].name == "__init__.py" else module.rpartition(".")[0]
        for _ in range(node.level - 1):
            package = package.rpartition(".")[0]
        base = f"{package}.{base}".rstrip(".")
    if base not in MODULES:
        return set()
    return {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}


def imports(module: str) -> tuple[dict[str, int], list[tuple[str, int]]]:
    """Line numbers of a module's imports of fastopt's modules: those at its level (also under ``if TYPE_CHECKING``)
    by module, and those inside of functions."""
    outside: dict[str, int] = {}
    inside: list[tuple[str, int]] = []

    def visit(node: ast.AST, function: bool) -> None:
        for target in targets(module, node):
            if function:
                inside.append((target, node.lineno))
            else:
                outside.setdefault(target, node.lineno)
        function = function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(SOURCES[module].read_text()), False)
    return outside, inside


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module, or of one that imports itself (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1 or node in graph.get(node, ()):
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def test_cycles_are_found():
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set(), "e": {"e"}, "f": {"a"}}
    assert cycles(graph) == [["a", "b", "c"], ["e"]]
    assert cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_module_imports_itself_by_way_of_others():
    graph = {module: imports(module)[0] for module in SOURCES}
    circles = cycles({module: set(found) for module, found in graph.items()})
    arrows = [
        f"{module}:{line} imports {target}"
        for circle in circles
        for module in circle
        for target, line in graph[module].items()
        if target in circle
    ]
    assert not circles, "import circles:\n" + "\n".join(arrows)


def part_of(module: str) -> str:
    """The part of fastopt that a module belongs to: ``nn`` of ``fastopt.nn.layers``."""
    return module.split(".")[min(1, module.count("."))]


def test_imports_go_down_the_chain():
    rank = {"__main__": -1} | {part: place for place, parts in enumerate(CHAIN) for part in parts}
    arrows = {
        (part_of(module), part_of(target)): f"{module}:{line} imports {target}"
        for module in SOURCES
        for target, line in imports(module)[0].items()
        if part_of(target) != part_of(module)
    }
    assert {part_of(module) for module in MODULES} == {*rank}, "each part has its place in CHAIN"
    assert not [text for (part, other), text in arrows.items() if rank[part] >= rank[other]]
    assert not [text for (part, other), text in arrows.items() if part not in FOR_TESTS.get(other, {part})]


def test_the_chain_is_that_of_the_page():
    page = Path(__file__).parents[1] / "CONTRIBUTING.md"
    if not page.exists():
        pytest.skip("the page is not beside the tests")
    assert " → ".join(", ".join(parts) for parts in CHAIN) in " ".join(page.read_text().split())


def test_imports_of_fastopt_stand_at_the_beginning_of_a_module():
    """What is imported inside of a function hides a circle; extras, which are other packages, may be."""
    found = {(module, target): line for module in SOURCES for target, line in imports(module)[1]}
    wrong = [f"{pair[0]}:{line} imports {pair[1]}" for pair, line in found.items() if pair not in ALLOWED]
    assert not wrong, "imports inside of functions:\n" + "\n".join(wrong)
    assert not ALLOWED.keys() - found.keys(), "allowed, but not there"


def test_what_is_imported_later_is_what_type_checkers_see():
    """`fastopt.__init__` says it twice: for them, and for `__getattr__`."""
    tree = ast.parse(SOURCES["fastopt"].read_text())
    (checking,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {node.module: [alias.name for alias in node.names] for node in checking.body}
    modules = [alias.name for node in checking.body if node.module == "fastopt" for alias in node.names]
    del seen["fastopt"]
    assert {module: [*names] for module, names in fastopt._LATER.items()} == {
        module.removeprefix("fastopt."): names for module, names in seen.items()
    }
    assert set(modules) <= fastopt._LATER.keys()
    for module, names in fastopt._LATER.items():
        for name in names:
            assert getattr(fastopt, name) is getattr(getattr(fastopt, module), name)
    for module in ("averaging", "interchange", "penalties", "extending"):
        assert sorted(fastopt._LATER[module]) == sorted(getattr(fastopt, module).__all__)
    with pytest.raises(AttributeError, match=r"module 'fastopt' has no attribute 'Adan'"):
        _ = fastopt.Adan
    assert set(fastopt.__all__) <= set(dir(fastopt))
