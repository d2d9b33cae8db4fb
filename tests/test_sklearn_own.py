"""scikit-learn's own tests of its MLPs, of ours: their module with our classes in the place of theirs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

sklearn = pytest.importorskip("sklearn")
their_name = "sklearn.neural_network.tests.test_mlp"
try:
    found = importlib.util.find_spec(their_name)
except ImportError:
    found = None
if found is None or found.origin is None:
    pytest.skip("this scikit-learn comes without its tests", allow_module_level=True)

#: Tests of theirs that are left out, and why.
EXCLUDED: dict[str, str] = {}

IMPORT = "from sklearn.neural_network import MLPClassifier, MLPRegressor\n"
source = Path(found.origin).read_text()
assert source.count(IMPORT) == 1
theirs: dict[str, object] = {"__name__": their_name}
code = source.replace(IMPORT, "from fastopt.sklearn import MLPClassifier, MLPRegressor\n")
exec(compile(code, found.origin, "exec"), theirs)
tests = {name: value for name, value in theirs.items() if name.startswith("test_")}
globals().update({name: value for name, value in tests.items() if name not in EXCLUDED})

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def global_random_seed():
    return 42


def test_all_are_here_but_five():
    assert len(tests) >= 40
    assert len(EXCLUDED) <= 5
    assert EXCLUDED.keys() <= tests.keys()
