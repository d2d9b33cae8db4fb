"""What docs/training.md says of the loop, run as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest

from fastopt import data, nn

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.fixture(scope="module")
def blocks():
    if not PAGE.exists():
        pytest.skip("the docs are not beside the tests")
    loop = PAGE.read_text().split("\n## The loop\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", loop, re.DOTALL)


def test_the_loop(blocks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        blocks = [re.sub(r"^nn\.monitor\.plot.*$", "", block, flags=re.MULTILINE) for block in blocks]
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["model"].evaluate(names["x_test"], names["y_test"])["accuracy"] > 0.9
    assert "epoch  1/30" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} >= {"run.npz", "run.csv"}
    assert names["history"].monitor["step"]


def test_a_loop_of_your_own_is_fit(blocks):
    """But for the order of samples, which is made the same here."""
    own = next(block for block in blocks if "optimizer.step(grads)" in block)
    x, y, x_test, y_test = data.load("digits")
    models = [
        nn.Sequential([nn.Flatten(), nn.Dense(32), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2), nn.Dense(10)], (8, 8, 1))
        for _ in range(2)
    ]
    steps = len(list(nn.batches(len(x), 32, np.random.default_rng(0))))
    own = own.replace("default_rng(epoch)", f"default_rng([0, epoch * {steps}])")
    exec(own, {"nn": nn, "model": models[0], "x": x, "y": y, "x_test": x_test, "y_test": y_test})
    models[1].fit(x, y, epochs=3)
    for name, param in models[0].params.items():
        np.testing.assert_array_equal(param, models[1].params[name])
