"""The rounding errors of docs/accuracy.md, on fewer inputs. Other instruction sets have the same bits."""

import math

import accuracy
import numpy as np
import pytest

INPUTS = 5000


def table() -> dict[str, list[str]]:
    if not accuracy.DOCS.exists():
        return {}
    rows = accuracy.DOCS.read_text().partition(accuracy.HEAD)[2].splitlines()
    return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in row.split("|")[1:-1]] for row in rows)}


@pytest.mark.skipif(not accuracy.DOCS.exists(), reason="tested away from the repository")
def test_the_table_is_whole():
    """A row for each optimizer, and for each case but those whose values are tested otherwise."""
    beside = {name for name in accuracy.names() if name.startswith("batch_norm_backward ")}
    assert set(accuracy.names()) - beside <= set(table()) <= set(accuracy.names())


@pytest.mark.skipif(not accuracy.WIDE, reason="a long double is a double here")
@pytest.mark.parametrize("name", table())
def test_rounding_errors(name):
    if name.endswith(("gelu", "gelu_tanh")):
        pytest.importorskip("mpmath")
    for dtype, column in ((np.float32, 0), (np.float64, 3)):
        bound = float(table()[name][column])
        error = accuracy.measured(name, dtype, INPUTS)[0]
        assert not math.isnan(error)
        assert error <= 1.5 * bound, dtype


def test_errors_are_told():
    """In ulp: of each number, or of a scale; of what is neither huge nor next to zero."""
    one = np.array([1.0, 2.0, -4.0, 1e-310, np.inf])
    assert accuracy.ulps(np.float64, one, one) == 0
    assert accuracy.ulps(np.float64, np.nextafter(one[:3], 9), one[:3]) == 1
    assert accuracy.ulps(np.float32, np.array([1 + 2**-23]), np.array([1.0])) == 1
    assert accuracy.ulps(np.float32, np.array([1 + 2**-23]), np.array([1.0]), 8.0) == 1 / 8
