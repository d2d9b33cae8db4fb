"""A little of `make fuzz`, and what it has found, each by itself."""

import importlib.util
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from fastopt import functional

FUZZ = Path(__file__).parent / "fuzz"


def module(name: str):
    """A file of tests/fuzz, which is no package."""
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", FUZZ / f"{name}.py")
    made, path = importlib.util.module_from_spec(spec), sys.path.copy()
    spec.loader.exec_module(made)
    sys.path[:] = path
    return made


# ---- A little of it ---------------------------------------------------------------------------------------------


def test_calls_at_random_sizes():
    """Values, and bits on each instruction set and for any number of threads."""
    values, made = module("values"), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # images that look as if channels came second
        for number in range(1000):
            made += values.call(number)
    assert made > 700


@pytest.fixture(scope="module")
def readers():
    pytest.importorskip("safetensors")
    return module("readers")


def test_whole_files_are_read(readers):
    for name, content in readers.seeds().items():
        assert readers.check(content) == (name != "safetensors"), name  # which is no model


@pytest.mark.slow
def test_changed_files(readers):
    """Each is read or refused."""
    rng = np.random.default_rng(0)
    for content in readers.seeds().values():
        for _ in range(25):
            changed = bytearray(content)
            for place in rng.integers(1, len(changed), size=rng.integers(1, 5)):
                changed[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
            if rng.random() < 0.3:
                begin, end = sorted(rng.integers(1, len(changed), size=2))
                changed[begin:end] = b""
            readers.check(bytes(changed))


# ---- What it has found ------------------------------------------------------------------------------------------


def test_denormal_gradients_are_zeros(isa, dtype):
    """A factor that is 1 is one that a compiler leaves out: clang passed the gradient on as it was on some instruction
    sets, gcc did so for PReLU on all."""
    n = 70
    tiny, x = np.full(n, np.finfo(dtype).tiny / 4, dtype), np.ones(n, dtype)
    for kind in ("leaky_relu", "elu"):
        assert not functional.activation_backward(tiny, x, kind).any()
    dx, _ = functional.prelu_backward(tiny[None], x[None], x)
    assert not dx.any()


def test_denormal_hyperparameters_are_zeros(isa):
    """Which of two equal numbers a maximum is, compilers choose; a denormal bound is equal to 0."""
    param, prev_grad = np.ones((2, 70))
    step_size = np.zeros(70)
    functional.rprop(param, np.full(70, 0.5), step_size, prev_grad, min_step=1e-310, max_step=1.0)
    assert not step_size.any()
