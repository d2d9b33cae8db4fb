"""The micro-benchmarks: every kernel is measured, and against opponents that do the same work."""

import itertools
import math

import numpy as np
import pytest

import fastopt
from fastopt import _kernels, bench, cases, inplace, reference
from fastopt.bench import racing
from fastopt.optimizers import OPTIMIZERS

QUICK = bench.catalogue(quick=True)
#: Of the contests that are not among the quick ones, one of each kind.
MORE = ("adam ResNet-20", "clipped_adam 1,000,000", "denormals 1,000,000", "threads 10,000", *(
    f"batch_norm_{way} (32, 14, 14, 256) channels last" for way in ("forward", "backward")
))  # fmt: skip
CHOSEN = QUICK | {key: bench.catalogue(threads=2)[key] for key in MORE}


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = fastopt.get_num_threads()
    yield
    fastopt.set_num_threads(before)


# ---- Contests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [False, True])
def test_every_kernel_has_a_contest(quick):
    names = {key.split(" ")[0] for key in bench.catalogue(quick=quick)}
    makers = bench.steps()
    assert names >= set(OPTIMIZERS) - {"look_ahead_nesterov"}  # momentum's kernel
    assert {makers[name](np.zeros(1)).kernel for name in names & set(makers)} == set(_kernels.STEPS)
    covered = {kernel for name in names & set(bench.LAYERS) for kernel in cases.LAYERS[bench.LAYERS[name].case].kernels}
    # What another kernel is the measure of, or is measured by.
    beside = {
        "stream",
        "random_bits",
        "gather_pixels",
        "mix_images",
        "fused_multiply_add",
        "transposed_matmul",
        "batch_norm_inference",
        "factored_root",
        "conv_pack",
        "conv_forward",
    }
    assert covered == set(_kernels.LAYERS) - beside - {"conv_weight_grad"}


def test_no_rival_of_a_backward_pass_computes_the_forward_pass():
    """What a case of one expects begins with that, where there is a cache: such a contest has rivals of its own."""
    of_caches = set()
    for name, layer in bench.LAYERS.items():
        case = cases.LAYERS[layer.case]
        if "cache" in case.arguments(cases.normal(), case.edges[1]):
            contenders = bench.layer_contest(name, case.edges[1]).contenders.values()
            assert case.expected is None or case.expected not in [getattr(each, "func", None) for each in contenders]
            of_caches.add(name)
    assert of_caches >= {"batch_norm_backward", "group_norm_backward", "rms_norm_backward"}


@pytest.mark.slow
def test_keys_say_which_contest():
    for key, make in CHOSEN.items():
        contest = make()
        assert f"{contest.name} {contest.size}" == key
        assert "fastopt" in contest.contenders
        assert len(contest.contenders) > 1
        assert set(contest.results) <= set(contest.contenders)
        assert set(contest.before) <= set(contest.contenders)


def test_sizes_that_must_be_asked_for():
    assert "adam 50,000,000" not in bench.catalogue()
    assert "adam 50,000,000" in bench.catalogue(large=True)
    assert not any(key.startswith("threads") for key in bench.catalogue())


def test_models_have_the_parameters_of_theirs():
    resnet, mlp = bench.resnet20(), bench.mlp()
    assert (len(resnet), sum(map(math.prod, resnet))) == (59, 269_722)
    assert (len(mlp), sum(map(math.prod, mlp))) == (6, 669_706)


def test_a_contest_knows_its_elements():
    assert bench.model_contest("sgd", "MLP").elements == 669_706
    assert bench.layer_contest("relu_forward", (100,)).elements == 100


def test_the_bytes_of_a_step():
    """What must cross memory: parameter, gradient and state read, parameter and state written."""
    per_parameter = {"sgd": 12, "momentum": 20, "adam": 28, "amsgrad": 36, "lamb": 40}
    assert {name: bench.step_contest(name, 50).floor / 50 for name in per_parameter} == per_parameter


def outcome(contest, name):
    """What a contender computes: arrays, those of a step in one, and numbers such as a loss."""
    if name in contest.before:
        contest.before[name]()
    returned = contest.contenders[name]()
    if contest.params:
        arrays = contest.results.get(name, returned)
        return [np.concatenate([a.ravel() for a in (arrays if isinstance(arrays, list) else [arrays])])], []
    left = [contest.results[name]] if name in contest.results else []
    values = left + list(returned if isinstance(returned, tuple) else (returned,))
    arrays = [value.copy() for value in values if isinstance(value, np.ndarray)]
    return arrays, [value for value in values if isinstance(value, float)]


@pytest.mark.parametrize("key", CHOSEN)
def test_contenders_do_the_same_work(key, close):
    contest = CHOSEN[key]()
    is_step = bool(contest.params)
    inputs = [*contest.arrays.values(), *contest.params, *contest.grads]
    before = [array.copy() for array in inputs]
    for name in contest.contenders.keys() & set(bench.OF_OTHER_NUMBERS):
        contest.contenders[name]()
    wanted, wanted_numbers = [outcome(contest, "fastopt") for _ in range(3 if is_step else 1)][-1]
    if contest.name.endswith("_forward"):
        del wanted[1:]  # beside the result, each keeps what it likes for its way back
    for name in contest.contenders.keys() - {"fastopt", *bench.OF_OTHER_NUMBERS}:
        if not is_step and name in contest.results:
            contest.results[name].fill(np.nan)  # it may be where fastopt wrote
        arrays, numbers = [outcome(contest, name) for _ in range(3 if is_step else 1)][-1]
        if contest.undropped is not None:  # of other random numbers
            dropped = (arrays[0] == 0) & (contest.undropped != 0)
            assert 0.48 < dropped.sum() / np.count_nonzero(contest.undropped) < 0.52
            np.testing.assert_array_equal(arrays[0], np.where(dropped, 0, contest.undropped))
            continue
        assert len(arrays) >= len(wanted)
        for array, other in zip(arrays, wanted, strict=False):
            close(array.reshape(other.shape), other, 1e-5)
        assert numbers == pytest.approx(wanted_numbers, rel=1e-5)
    for array, other in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize("name", [name for name in bench.steps() if hasattr(inplace, name)])
def test_steps_in_place_are_those_of_the_reference(name, rng, close):
    """To the accuracy of float64, in which no constant can differ unseen."""
    maker, param = bench.steps()[name], rng.normal(size=50)
    optimizer = maker(param)
    arrays = [param.copy(), *(state.copy() for state in optimizer.state["param"].values())]
    wanted, scalars = [array.copy() for array in arrays], optimizer.scalars
    hyper = {key: getattr(optimizer, key) for key in optimizer._setting_names()}
    a, b = np.empty((2, 50))
    for t in range(1, 9):  # RAdam's sixth step is the first that is rectified
        grad = rng.normal(size=50) * 1e-4  # so that eps counts
        getattr(inplace, name)(arrays[0], grad, *arrays[1:], t=t, a=a, b=b)
        computed, scalars = reference.scalars_after(optimizer.name, hyper, scalars, t)
        counted = {"t": t} if optimizer.counts_steps else {}
        wanted = getattr(reference, optimizer.name)(
            wanted[0], grad, *wanted[1:], **maker.keywords, **computed, **counted
        )
        for array, other in zip(arrays, wanted, strict=True):
            close(array, other, 1e-13)


# ---- Races and tables -----------------------------------------------------------------------------------


def race(monkeypatch, seconds):
    """A race of contenders whose calls take the given seconds, the first to find out how many calls to make."""
    scripts = {name: itertools.chain([1e-3], values) for name, values in seconds.items()}
    monkeypatch.setattr(racing, "_time", lambda call, number: number * next(scripts[call()]))
    return racing.race({name: lambda name=name: name for name in seconds}, rounds=len(next(iter(seconds.values()))))


def test_a_disturbed_round_is_dropped_from_all(monkeypatch):
    times = race(monkeypatch, {"a": [1, 1.1, 9, 1, 1], "b": [3, 3, 3, 3.3, 3]})
    assert times == {"a": pytest.approx([1, 1.1, 1, 1]), "b": pytest.approx([3, 3, 3.3, 3])}


def test_half_of_the_rounds_stay_whatever_happens(monkeypatch):
    times = race(monkeypatch, {"a": [5, 1, 1, 1], "b": [1, 5, 1, 1], "c": [1, 1, 5, 9]})
    assert len(times["a"]) == len(times["b"]) == len(times["c"]) >= 2


def test_slow_and_quick_calls_get_equal_time(monkeypatch):
    calls = []
    monkeypatch.setattr(racing, "_time", lambda call, number: calls.append((call(), number)) or number * call())
    bench.race({"slow": lambda: 1e-2, "quick": lambda: 1e-6}, rounds=3)
    assert [number for seconds, number in calls[-6:] if seconds == 1e-2] == [1] * 3
    assert [number for seconds, number in calls[-6:] if seconds == 1e-6] == [2000] * 3


def test_results_and_table(monkeypatch):
    seconds = {"fastopt": 2e-6, "NumPy in place": 8e-6, bench.STREAM: 1e-6}
    monkeypatch.setattr(racing, "race", lambda contenders, **_: {name: [seconds[name]] * 7 for name in contenders})
    arrays = {"x": np.zeros((2, 3))}
    contest = bench.Contest("adam", "1,000", 28_000, arrays, dict.fromkeys(seconds, lambda: None))
    plain = bench.Contest("relu", "(2, 3)", 4_000, arrays, {"fastopt": lambda: None})
    result = bench.measure(contest)
    assert result == {
        "name": "adam",
        "size": "1,000",
        "elements": 6,
        "rounds": 7,
        "seconds": {name: dict.fromkeys(("q1", "median", "q3"), pytest.approx(s)) for name, s in seconds.items()},
        "bytes_per_second": pytest.approx(14e9),
        "times_faster": {"NumPy in place": pytest.approx(4), bench.STREAM: pytest.approx(0.5)},
        "share_of_streaming": pytest.approx(0.5),
    }
    lines = bench.table([result, bench.measure(plain)]).splitlines()
    assert [line.split() for line in lines] == [
        ["kernel", "size", "fastopt", "quartiles", "GB/s", "×", "NumPy", "in", "place", "×", "streaming"],
        ["adam", "1,000", "2", "µs", "2–2", "14.0", "4.00", "0.50"],
        ["relu", "(2,", "3)", "2", "µs", "2–2", "2.0", "–", "–"],
    ]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [(2.5, "2.5 s"), (0.0125, "12.5 ms"), (1e-3, "1 ms"), (3.456e-6, "3.46 µs"), (7.89e-8, "78.9 ns"), (0.0, "0 ns")],
)
def test_duration(seconds, wanted):
    assert bench.duration(seconds) == wanted
