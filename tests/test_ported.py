"""Training loops of other people's programs, in plain NumPy and with fastopt: few lines change, and no loss.

Each program in tests/ported/ was written for these tests, in the style that it names. Its ``train()`` returns the
losses; ``PORT`` is what changes, the lines of a diff; the changed program runs without what is ``REPLACED``.
"""

import difflib
from pathlib import Path

import numpy as np
import pytest

PROGRAMS = sorted((Path(__file__).parent / "ported").glob("*.py"))
MOST_LINES = 3


def changed(source: str, port: str) -> str:
    """The source with the lines of a diff in place; those that go must be in it once."""
    lines = source.splitlines()
    for hunk in port.strip("\n").split("\n\n"):
        old = [line[1:] for line in hunk.split("\n") if line.startswith("-")]
        new = [line[1:] for line in hunk.split("\n") if line.startswith("+")]
        assert len(old) + len(new) == hunk.count("\n") + 1, f"lines that neither go nor come: {hunk}"
        (place,) = (i for i in range(len(lines)) if lines[i : i + len(old)] == old)
        lines[place : place + len(old)] = new
    return "\n".join(lines)


def count_changes(before: str, after: str) -> int:
    """The lines that a difference touches: of a block that is replaced by another, the more."""
    opcodes = difflib.SequenceMatcher(None, before.splitlines(), after.splitlines(), autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in opcodes if tag != "equal")


def run(source: str, name: str, without=()) -> list[float]:
    """The losses of a program, without some of its names."""
    names = {"__name__": name}
    exec(compile(source, name, "exec"), names)
    for each in without:
        del names[each]
    losses = names["train"]()
    assert all(type(loss) is float or loss.dtype == np.float64 for loss in losses)
    return losses


@pytest.fixture
def program(request):
    """The source of a program, and what changes in it."""
    source = request.param.read_text()
    if "import autograd" in source:
        pytest.importorskip("autograd")
    _, before, rest = source.partition('PORT = """')
    port, after, _ = rest.partition('"""')
    assert before
    assert after
    return source, port


def test_changes_are_counted():
    before = "a\nb\nc\nd\ne"
    assert count_changes(before, before) == 0
    assert count_changes(before, "a\nx\nb\nc\nd\ne") == 1  # one is new
    assert count_changes(before, "a\nb\ne") == 2  # two go
    assert count_changes(before, "a\nx\ny\nd\ne") == 2  # two are others
    assert count_changes(before, "a\nx\nc\nd\ny\nz") == 3
    assert changed("x = 1\ny = x\nz = y", "-y = x\n+y = 2\n+w = x\n\n-z = y") == "x = 1\ny = 2\nw = x"


@pytest.mark.parametrize("program", PROGRAMS, indirect=True, ids=lambda path: path.stem)
def test_few_lines_change_and_no_loss(program):
    source, port = program
    plain = source.replace(port, "")
    assert "fastopt" not in plain
    ported = changed(source, port)
    assert 1 <= count_changes(source, ported) <= MOST_LINES
    wanted, names = run(source, "plain"), {}
    exec(source.partition("REPLACED = ")[2].splitlines()[0].join(["replaced = ", ""]), names)
    losses = run(ported, "ported", without=names["replaced"])
    np.testing.assert_allclose(losses, wanted, rtol=1e-12)
    assert len(losses) >= 30
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])  # it learns


def test_there_are_six():
    assert len(PROGRAMS) >= 6


def test_a_step_in_place_would_show():
    """Where weights are kept by reference: the test above would find it."""
    (path,) = (path for path in PROGRAMS if path.stem == "weights_by_reference")
    source = path.read_text()
    port = source.partition('PORT = """')[2].partition('"""')[0]
    wrong = port.replace("self.W, self.w0 = self.opt.updated([self.W, self.w0], [grad_w, grad_w0])",
                         "self.opt.step([grad_w, grad_w0])")  # fmt: skip
    assert wrong != port
    difference = np.abs(np.array(run(changed(source, wrong), "wrong")) / run(source, "plain") - 1)
    assert difference.max() > 1e-6
