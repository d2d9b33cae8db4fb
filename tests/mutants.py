"""Mutation testing: changes of the sources, one at a time, each of which a test must notice.

python tests/mutants.py [NAME] [MOST]    # prints those that survive; changes nothing in the sources

Of Python files: comparisons, arithmetic, constants, `and`, `or`, `not`, conditions, raised errors. Of C files, which
are compiled for the baseline instruction set and float alone: operators, comparisons, constants; what does not compile
counts as killed. `EXPLAINED` has those that change nothing that could be seen; docs/guarantees.md has the figures.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: What is changed, and what must notice: arguments of pytest.
TARGETS = {
    "checks": ("fastopt/checks.py", ["tests/test_checks.py", "tests/hostile/test_found.py", "--quick"]),
    "optimizers": (
        "fastopt/optimizers.py",
        ["tests/test_hyper.py", "tests/test_optimizers.py", "tests/test_optimizer_oracles.py", "--quick"],
    ),
    "adam": (
        "csrc/steps/adam.c",
        ["tests/functional/test_steps.py", "tests/test_bits.py", "-k", "adam and not adamax"],
    ),
    "softmax": (
        "csrc/layers/softmax.c",
        ["tests/test_cases.py", "tests/functional/test_losses.py", "tests/test_guards.py", "-k", "softmax or touched"],
    ),
}
#: Survivors that are no gaps, by a part of what is printed of them, and why.
EXPLAINED = {
    "optimizers.py line 62: True": "a base class, which nobody makes, gets a name, which nobody reads",
    "softmax.c line 31: 0 → 1": "the maximum of a row begins with its first element",
    "softmax.c line 195: 1 → 2": "without class weights, nothing reads the mass, and nobody may ask for it",
    "softmax.c line 19: <= → <": "the last whole vector of a row goes the way of what is left over, to the same sums",
}


# ---- Python -----------------------------------------------------------------------------------------------------

_COMPARE = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
            ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}  # fmt: skip
_BINARY = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
           ast.Mod: ast.Add, ast.Pow: ast.Mult}  # fmt: skip


def _other(node: ast.AST) -> ast.AST | None:
    """The node, changed in place; None where there is nothing to change."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in _COMPARE:
            node.ops = [_COMPARE[type(op)]()]
        case ast.BinOp(op=op) if type(op) in _BINARY and not isinstance(node.left, (ast.JoinedStr, ast.Constant)):
            node.op = _BINARY[type(op)]()
        case ast.BoolOp(op=op):
            node.op = ast.Or() if isinstance(op, ast.And) else ast.And()
        case ast.UnaryOp(op=ast.Not()):
            return ast.copy_location(node.operand, node)
        case ast.If() | ast.IfExp():
            node.test = ast.copy_location(ast.UnaryOp(ast.Not(), node.test), node.test)
        case ast.Raise():
            return ast.copy_location(ast.Pass(), node)
        case ast.Constant(value=bool(value)):
            node.value = not value
        case ast.Constant(value=int(value) | float(value)):
            node.value = value + 1
        case _:
            return None
    return node


class _Change(ast.NodeTransformer):
    """Changes the node of a number, in the order of the walk; nothing in docstrings and annotations."""

    def __init__(self, number: int) -> None:
        self.left, self.made = number, ""

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, (ast.arg, ast.AnnAssign)) and getattr(node, "annotation", None):
            if isinstance(node, ast.AnnAssign) and node.value:
                node.value = self.visit(node.value)  # type: ignore[assignment]
            return node
        before = ast.unparse(node) if isinstance(node, (ast.expr, ast.stmt)) and self.left == 0 else ""
        copy = _other(node) if not self.made and not isinstance(node, ast.Expr) else None
        if copy is not None:
            if self.left == 0:
                self.made = f"line {node.lineno}: {before.splitlines()[0][:90]}"  # type: ignore[attr-defined]
                self.left = -1
                return copy
            self.left -= 1
            _undo(node)
        return self.generic_visit(node)


def _undo(node: ast.AST) -> None:
    """`_other` of `_other` is the node again, for what is changed in place."""
    match node:
        case ast.If() | ast.IfExp():
            node.test = node.test.operand  # type: ignore[attr-defined]
        case ast.Constant(value=bool(value)):
            node.value = not value
        case ast.Constant(value=int(value) | float(value)):
            node.value = value - 1
        case ast.Compare() | ast.BoolOp():
            _other(node)


def of_python(source: str) -> Iterator[tuple[str, str]]:
    """Each mutant, with what was changed."""
    number = 0
    while True:
        change = _Change(number)
        tree = change.visit(ast.parse(source))
        if not change.made:
            return
        yield change.made, ast.unparse(ast.fix_missing_locations(tree))
        number += 1


# ---- C ----------------------------------------------------------------------------------------------------------

_TOKENS = [(r" \+ ", " - "), (r" - ", " + "), (r" \* ", " / "), (r" / ", " * "), (r" < ", " <= "), (r" > ", " >= "),
           (r" \+= ", " -= "), (r" -= ", " += "), (r" <= ", " < "), (r" >= ", " > "), (r" && ", " || "),
           (r" \? ", " ? !"),
           (r"\b0\b", "1"), (r"\b1\b", "2"), (r"\b2\b", "3")]  # fmt: skip


def of_c(source: str) -> Iterator[tuple[str, str]]:
    comments = [match.span() for match in re.finditer(r"/\*.*?\*/|^#.*?$", source, re.S | re.M)]
    for pattern, other in _TOKENS:
        for match in re.finditer(pattern, source):
            if not any(begin <= match.start() < end for begin, end in comments):
                line = source.count("\n", 0, match.start()) + 1
                text = source.splitlines()[line - 1].strip()
                changed = source[: match.start()] + other + source[match.end() :]
                yield f"line {line}: {match.group().strip()} → {other.strip()} in {text[:80]}", changed


# ---- Trying them ------------------------------------------------------------------------------------------------


def build(folder: Path) -> bool:
    """Compile the baseline's kernels of float anew, and link them with all else that `make build` has left."""
    setup = (
        "import runpy, setuptools; setuptools.setup = lambda **k: None; print(*runpy.run_path('setup.py')['CFLAGS'])"
    )
    flags = subprocess.run([sys.executable, "-c", setup], cwd=ROOT, capture_output=True, text=True, check=True)
    (left,) = (ROOT / "build").glob("temp.*")
    made, source = folder / "float.o", folder / "csrc" / "isa" / "baseline_float.c"
    command = ["cc", *flags.stdout.split(), "-O1", "-fPIC", "-w", f"-I{folder / 'csrc'}", "-c", "-o", made, source]
    if subprocess.run(command, capture_output=True).returncode:
        return False
    others = [left / "fastopt" / "_kernels.o", *(left / "csrc").glob("*.o"), made]
    others += [left / "csrc" / "isa" / "baseline_double.o"]
    others += [path for path in left.glob("libfastopt_*.a") if "baseline" not in path.name]
    library = next((folder / "fastopt").glob("_kernels*.so"))
    library.unlink()
    subprocess.run(["cc", "-shared", "-pthread", "-o", library, *others, "-lm"], check=True)
    return True


def noticed(folder: Path, tests: list[str]) -> bool:
    environment = os.environ | {"PYTHONPATH": str(folder), "FASTOPT_ISA": "baseline"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=600).returncode != 0
    except subprocess.TimeoutExpired:
        return True


def try_all(name: str, most: int) -> tuple[int, list[str]]:
    """How many mutants were tried, and those that survived."""
    path, tests = TARGETS[name]
    source = (ROOT / path).read_text()
    mutants = list((of_python if path.endswith(".py") else of_c)(source))
    chosen = mutants[:: -(-len(mutants) // most)] if most else mutants
    survivors = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "source"
        tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
        for file in tracked.stdout.split():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / file)
        for library in (ROOT / "fastopt").glob("*.so"):
            shutil.copy(library, folder / "fastopt")
        if path.endswith(".py"):
            (folder / path).write_text(ast.unparse(ast.parse(source)))
        assert not noticed(folder, tests), f"the tests of {name} fail without a change"
        for what, changed in chosen:
            (folder / path).write_text(changed)
            if path.endswith(".c") and not build(folder):
                continue
            if not noticed(folder, tests):
                survivors.append(what)
                reason = next((why for part, why in EXPLAINED.items() if part in f"{path} {what}"), "SURVIVES")
                print(f"{path} {what}: {reason}", flush=True)
    return len(chosen), survivors


def main() -> None:
    names = sys.argv[1:2] or list(TARGETS)
    most = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    gaps = 0
    for name in names:
        tried, survivors = try_all(name, most)
        unexplained = [s for s in survivors if not any(part in f"{TARGETS[name][0]} {s}" for part in EXPLAINED)]
        gaps += len(unexplained)
        print(f"{name}: {tried} mutants, {tried - len(survivors)} killed, {len(survivors)} survive", flush=True)
    sys.exit(gaps > 0)


if __name__ == "__main__":
    main()
