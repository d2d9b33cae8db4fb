"""The same bits on every instruction set, whatever the values; how a set is chosen; what a call leaves."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import fastopt
from fastopt import _kernels, cases, functional

KINDS = {
    "tame": {"share": 0},
    "rare": {"share": 0.003},
    "many": {"share": 0.1},
    "corner": {"share": 0.1, "corner": True},
}


def all_results(case, sizes, dtype, **kind):
    """What a case computes of hostile values for all sizes, with one of the options after the other."""
    results = []
    with np.errstate(all="ignore"):  # of what prepares the arguments
        for i in range(max(len(sizes), len(case.options))):
            size, options = sizes[i % len(sizes)], case.options[i % len(case.options)]
            results += case.run(case.arguments(cases.hostile(dtype, **kind), size, options))
    return results


@pytest.mark.bits
@pytest.mark.parametrize("kind", KINDS)
def test_layers_have_the_same_bits_on_every_isa(case, dtype, kind, edges, on_each_isa, same_bits):
    first, *others = on_each_isa(lambda: all_results(case, edges(case), dtype, **KINDS[kind]))
    assert any(np.isfinite(result).any() for result in first)
    for results in others:
        for actual, expected in zip(results, first, strict=True):
            same_bits(actual, expected)


@pytest.mark.bits
@pytest.mark.parametrize("relu", [False, True])
def test_norms_of_shared_rows_have_the_same_bits_on_every_isa(dtype, relu, on_each_isa, same_bits):
    """On so many rows that they are shared out, of which the first channel holds whatever there is."""
    case, threads = cases.LAYERS["batch_norm_forward"], fastopt.get_num_threads()
    x = case.arguments(cases.normal(dtype), ((43_700, 3), -1))
    x["x"][:, 0] = cases.hostile(dtype)(43_700)
    dy = x["x"][::-1].copy()

    def both():
        arguments = cases.map_arrays(np.copy, x)
        _, cache = functional.batch_norm_forward(**arguments, relu=relu)
        return [*case.run(cases.map_arrays(np.copy, x) | {"relu": relu}), *functional.batch_norm_backward(dy, cache)]

    fastopt.set_num_threads(2)
    try:
        first, *others = on_each_isa(both)
    finally:
        fastopt.set_num_threads(threads)
    assert np.isfinite(first[0][:, 1:]).all()
    for results in others:
        for actual, expected in zip(results, first, strict=True):
            same_bits(actual, expected)


@pytest.mark.bits
def test_steps_have_the_same_bits_on_every_isa(rule, dtype, on_each_isa, same_bits):
    def steps(share):
        x = cases.hostile(dtype, share)
        results = []
        for n in (1, 7, 31, 33, 1000):
            arrays = [x(n) for _ in ("param", *rule.states)]
            for t in (1, 2, 3):
                rule.step(arrays[0], x(n), *arrays[1:], t=t)
            results += arrays
        return results

    for share in (0, 0.1):
        first, *others = on_each_isa(lambda share=share: steps(share))
        for results in others:
            for actual, expected in zip(results, first, strict=True):
                same_bits(actual, expected)


# ---- Denormals -----------------------------------------------------------------------------------


def denormals_work() -> bool:
    return all(np.finfo(t).tiny.astype(t) / t(2) > 0 for t in (np.float32, np.float64))


def test_a_layer_leaves_the_float_mode_alone(case, isa):
    case.run(case.arguments(cases.normal(np.float32), case.edges[1]))
    assert denormals_work()


def test_a_step_leaves_the_float_mode_alone(any_rule, isa, dtype):
    any_rule.step(*np.ones((2 + len(any_rule.states), 40), dtype), t=2)
    assert denormals_work()


def test_denormals_are_zero_within_a_kernel(isa, dtype):
    x = np.full(40, np.finfo(dtype).tiny / 4, dtype)
    functional.sgd(x, np.zeros_like(x), lr=0.5)
    assert not x.any()


# ---- The choice ----------------------------------------------------------------------------------


def python(code, **environment):
    """Run code in a new process."""
    clean = {key: value for key, value in os.environ.items() if key not in ("FASTOPT_ISA", "FASTOPT_TUNING")}
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_strongest_set_is_the_default():
    assert python("import fastopt; print(fastopt.isa())").stdout.split() == [fastopt.isas()[0]]


@pytest.mark.slow
@pytest.mark.parametrize("name", _kernels.isas())
def test_the_environment_chooses(name):
    assert python("import fastopt; print(fastopt.isa())", FASTOPT_ISA=name).stdout.split() == [name]


@pytest.mark.slow
def test_baseline_is_a_name_everywhere():
    assert python("import fastopt; print(fastopt.isa())", FASTOPT_ISA="baseline").stdout.split() == [fastopt.isas()[-1]]


@pytest.mark.slow
def test_an_empty_name_is_none():
    assert python("import fastopt; print(fastopt.isa())", FASTOPT_ISA="").stdout.split() == [fastopt.isas()[0]]


@pytest.mark.parametrize("name", ["nonsense", *({"avx512", "avx2", "neon"} - set(_kernels.isas()))])
def test_the_environment_names_no_such_set(name):
    result = python("import fastopt", FASTOPT_ISA=name)
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert message.startswith("ImportError: FASTOPT_ISA: the instruction set must be one that this machine supports")
    assert message.endswith(f"{', '.join(_kernels.isas())}; got {name!r}")


def test_an_unknown_set_is_refused_and_the_old_one_kept(isa):
    with pytest.raises(ValueError, match="nonsense"):
        _kernels.use_isa("nonsense")
    assert fastopt.isa() == isa


# ---- Import and threads --------------------------------------------------------------------------


@pytest.mark.slow
def test_import_brings_in_numpy_and_nothing_else():
    code = """
import sys
before = set(sys.modules)
import fastopt
new = [name for name in set(sys.modules) - before if getattr(sys.modules[name], "__spec__", None)]
print(*sorted({name.split(".")[0] for name in new} - sys.stdlib_module_names))
print(*sorted(name for name in new if name.startswith("fastopt.")))
"""
    top, own = python(code).stdout.splitlines()
    assert top.split() == ["fastopt", "numpy"]
    lazy = "averaging bench cases cli data drawing files functional gallery inplace interchange landscape matrices nn"
    assert "fastopt._kernels" in own.split()
    assert not set(own.split()) & {f"fastopt.{name}" for name in lazy.split()}


def test_two_threads_step_two_optimizers(any_rule, rng, same_bits):
    n, steps = 30_000, 30  # large enough that a step gives up the GIL
    start, grads = rng.standard_normal((2, n)), rng.standard_normal((steps, n))

    def train(param):
        optimizer = any_rule.make(param)
        for grad in grads:
            optimizer.step(grad)

    alone, together = start.copy(), start.copy()
    for param in alone:
        train(param)
    threads = [threading.Thread(target=train, args=(param,)) for param in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    same_bits(together, alone)


def test_two_threads_cannot_step_one_optimizer():
    """Each step is either taken whole or refused."""
    params = [np.zeros(20_000) for _ in range(50)]
    optimizer = fastopt.SGD(params, lr=1.0)
    refused = []

    def train():
        grads = [np.ones_like(param) for param in params]
        for _ in range(50):
            try:
                optimizer.step(grads)
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=train) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert optimizer.t == 100 - len(refused)
    assert all("another thread" in message for message in refused)
    for param in params:
        np.testing.assert_array_equal(param, -float(optimizer.t))
