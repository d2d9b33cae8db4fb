"""What became of arrays since they were bound: rebinding, attributes that were changed, gradients with gaps."""

import os
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import fastopt
from fastopt import _kernels, functional


@pytest.fixture(autouse=True, params=[True, False], ids=["heads", "buffers"])
def heads(request):
    """Whether arrays are compared by their heads, or, as with a NumPy of another layout, by new buffers."""
    _kernels.read_array_heads(request.param)
    yield
    _kernels.read_array_heads(True)


# ---- Entries of the user's list or dict -------------------------------------------------------------


def made(make, structure):
    params = structure(np.zeros(3), np.zeros((2, 2)))
    return params, make(params)


STRUCTURES = {
    "list": (lambda a, b: [a, b], 1, r"params\[1\]"),
    "dict": (lambda a, b: {"a": a, "b": b}, "b", r'params\["b"\]'),
    "dict by number": (lambda a, b: {0: a, 7: b}, 7, r"params\[7\]"),
}
MAKERS = {
    "SGD": lambda p: fastopt.SGD(p, lr=1.0),
    "clipped": lambda p: fastopt.SGD(p, lr=1.0, clip_norm=9.0),
    "Adam": lambda p: fastopt.Adam(p),
    "NAdam": lambda p: fastopt.NAdam(p),
    "frozen": lambda p: fastopt.Adam(p, groups=[{"params": lambda name, param: param.ndim == 2, "frozen": True}]),
    "LookAhead": lambda p: fastopt.LookAhead(fastopt.Adam(p), k=1),
    "Muon": lambda p: fastopt.Muon(p),
    "Adafactor": lambda p: fastopt.Adafactor(p),
}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("make", MAKERS)
def test_a_new_array_in_an_entry(make, structure):
    """A step names it and both cures; both work."""
    of, key, label = STRUCTURES[structure]
    params, optimizer = made(MAKERS[make], of)
    grads = of(np.ones(3), np.ones((2, 2)))
    optimizer.step(grads)
    old = params[key]
    kept = old.copy()
    params[key] = old - 1
    message = rf"{label} must be the array that the optimizer steps.*{label}\[\.\.\.\] = .*rebind\(params\)"
    with pytest.raises(ValueError, match=message):
        optimizer.step(grads)
    assert optimizer.t == 1
    np.testing.assert_array_equal(old, kept)
    params[key] = old
    optimizer.step(grads)
    params[key] = new = old - 1
    state = {name: {k: a.copy() for k, a in arrays.items()} for name, arrays in optimizer.state.items()}
    optimizer.rebind(params)
    np.testing.assert_equal({name: dict(arrays) for name, arrays in optimizer.state.items()}, state)
    assert optimizer.t == 2
    kept, of_new = old.copy(), new.copy()
    optimizer.step(grads)
    np.testing.assert_array_equal(old, kept)
    assert make == "frozen" or not np.array_equal(new, of_new)
    assert optimizer.t == 3


def test_an_entry_that_is_gone():
    params = {"a": np.zeros(3), "b": np.zeros(2)}
    optimizer = fastopt.SGD(params, lr=1.0)
    grads = {"a": np.ones(3), "b": np.ones(2)}
    b = params.pop("b")
    with pytest.raises(ValueError, match=r'params\["b"\] must be the array .* but is gone'):
        optimizer.step(grads)
    params["b"] = b
    params["a"] = params.pop("a")  # another order
    params["statistics"] = np.ones(1)  # and what is none of the optimizer's
    optimizer.step(grads)
    listed = [np.zeros(3), np.zeros(2)]
    optimizer = fastopt.SGD(listed, lr=1.0)
    del listed[1]
    with pytest.raises(ValueError, match=r"params\[1\] must be the array .* but is gone"):
        optimizer.step([np.ones(3), np.ones(2)])


def test_what_else_binds_anew_looks_at_entries():
    """Or a thawed parameter, or one beside a new one, would be the old array."""
    params = {"a": np.zeros(3), "b": np.zeros(2)}
    optimizer = fastopt.Adam(params, groups=[{"params": "b", "frozen": True}])
    params["b"] = np.ones(2)
    for call in (
        lambda: setattr(optimizer.groups[0], "frozen", False),
        lambda: optimizer.add_params({"c": np.ones(1)}),
        lambda: optimizer.load_state_dict(optimizer.state_dict()),
    ):
        with pytest.raises(ValueError, match=r'params\["b"\] must be the array'):
            call()
    assert optimizer.groups[0].frozen
    optimizer.rebind(params)
    optimizer.groups[0].frozen = False
    optimizer.step({"a": np.ones(3), "b": np.ones(2)})
    assert (params["b"] < 1).all()


def test_what_cannot_be_rebound(refuses):
    params = {"a": np.zeros(3), "b": np.zeros(2)}
    optimizer = fastopt.Adam(params)
    for bad, message in (
        ([np.zeros(3), np.zeros(2)], "params must have the structure that the optimizer was made with, dict, got list"),
        ({"a": np.zeros(3)}, r"params must have the keys \['a', 'b'\], got \['a'\]"),
        ({"a": np.zeros(3), "b": np.zeros(3)}, r"params\[b\] must have shape \(2,\), got \(3,\)"),
        ({"a": np.zeros(3), "b": np.zeros(2, np.float32)}, r"params\[b\] must be float64, got float32"),
        ({"a": np.zeros(3), "b": np.zeros(4)[::2]}, r"params\[b\] must be C-contiguous"),
        ({"a": params["a"], "b": params["a"][:2]}, r"params\[.\] and params\[.\] must not overlap"),
    ):
        refuses(lambda bad=bad: optimizer.rebind(bad), message)
    assert optimizer.params is params
    optimizer.step({"a": np.ones(3), "b": np.ones(2)})
    fastopt.SGD([np.zeros(2)], 1.0).rebind((np.zeros(2),))
    refuses(lambda: fastopt.SGD([np.zeros(2)], 1.0).rebind([]), "params must hold 1 arrays, got 0")


@pytest.mark.parametrize("reordered", [False, True])
def test_rebound_is_gone_on_to_the_same_bits(any_rule, reordered, rng, same_bits):
    """Groups and schedules included."""
    params = {name: rng.standard_normal(5) for name in "ab"}
    twin = {name: a.copy() for name, a in params.items()}
    group = [{"params": "b", "lr_factor": 0.5}]
    options = {k: v for k, v in any_rule.hyper.items() if k != "lr"}
    lr = fastopt.schedules.bind(fastopt.schedules.inverse_time, peak=0.1, decay=1.0)
    any_rule.make(np.ones(1))
    optimizer, other = (any_rule.cls(p, lr, groups=group, **options) for p in (params, twin))
    for t in range(4):
        grads = {name: rng.standard_normal(5) for name in "ab"}
        optimizer.step(grads)
        other.step(grads)
        if t == 1:
            params = {name: a.copy() for name, a in reversed(params.items() if not reordered else [*params.items()])}
            optimizer.rebind(params)
            assert optimizer.params is params
    for name in "ab":
        same_bits(params[name], twin[name])


def test_averages_follow():
    params = {"w": np.zeros(2)}
    ema, ahead = fastopt.EMA(params, 0.5), fastopt.LookAhead(fastopt.SGD(params, 1.0), k=2)
    other = {"w": np.ones(2)}
    ema.rebind(other)
    ema.update()
    np.testing.assert_array_equal(ema.averages["w"], 0.5)
    ahead.rebind(other)
    ahead.step({"w": np.zeros(2)})
    ahead.step({"w": np.zeros(2)})
    np.testing.assert_array_equal(other["w"], 0.5)
    ahead.add_params({"v": np.ones(1)})
    for _ in range(2):
        ahead.step({"w": np.zeros(2), "v": np.ones(1)})
    np.testing.assert_array_equal(ahead.slow["v"], 0.0)  # half of the way from 1 to -1
    params["w"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"params\[w\] must have shape \(2,\), got \(3,\)"):
        fastopt.EMA({"w": np.zeros(2)}).rebind(params)


def test_lbfgs_is_rebound():
    pytest.importorskip("scipy")
    params = {"w": np.array([3.0])}
    optimizer = fastopt.LBFGS(params)
    params["w"] = np.array([5.0])

    def closure():
        return float((params["w"] ** 2).sum()), {"w": 2 * params["w"]}

    with pytest.raises(ValueError, match=r'params\["w"\] must be the array'):
        optimizer.step(closure)
    optimizer.rebind(params)
    pytest.importorskip("scipy")
    optimizer.step(closure)
    assert abs(params["w"]).max() < 1e-6


# ---- Attributes that were changed in place ----------------------------------------------------------


def reshaped(a):
    a.shape = (2, 4)


def retyped(a):
    a.dtype = np.int64


def restrided(a):
    a.strides = (0,)


def read_only(a):
    a.flags.writeable = False


def shrunk(a):
    a.resize(3, refcheck=False)


def moved(a):
    a.resize(100_000, refcheck=False)


CHANGES = {
    reshaped: r"must have shape \(8,\), got \(2, 4\)",
    retyped: "must be float64, got int64",
    restrided: "must be C-contiguous",
    shrunk: r"must have shape \(8,\), got \(3,\)",
    moved: r"must have shape \(8,\), got \(100000,\)",
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("change", [*CHANGES, read_only], ids=lambda each: each.__name__)
@pytest.mark.parametrize("way", ["array", "dict", "clipped"])
def test_a_parameter_that_was_changed(change, way):
    w, grad = np.arange(8.0), np.ones(8)
    params, grads = ({"w": w}, {"w": grad}) if way == "dict" else (w, grad)
    optimizer = fastopt.Adam(params, clip_norm=1.0 if way == "clipped" else None)
    optimizer.step(grads)
    change(w)
    before, label = w.tobytes(), r"params\[w\]" if way == "dict" else "param"
    with pytest.raises((TypeError, ValueError), match=rf"{label} {CHANGES.get(change, 'must be writable')}"):
        optimizer.step(grads)
    assert (w.tobytes(), optimizer.t) == (before, 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("change", CHANGES, ids=lambda each: each.__name__)
def test_a_gradient_that_was_changed(change):
    w, grad = np.zeros(8), np.arange(8.0)
    optimizer = fastopt.SGD(w, lr=1.0)
    optimizer.step(grad)
    change(grad)
    if change is restrided:  # which is a gradient yet, with other numbers
        optimizer.step(grad)
        np.testing.assert_array_equal(w, -np.arange(8.0))
        return
    before = w.copy()
    with pytest.raises((TypeError, ValueError), match=f"grad {CHANGES[change]}"):
        optimizer.step(grad)
    np.testing.assert_array_equal(w, before)
    assert optimizer.t == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("change", [*CHANGES, read_only], ids=lambda each: each.__name__)
@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_arrays_of_a_prepared_step(change, which):
    arrays = [np.arange(1.0, 9.0) for _ in range(4)]
    step = functional.plan("adam", *arrays)
    step()
    change(arrays[which])
    before = [a.tobytes() for a in arrays]
    if which == 1 and change in (restrided, read_only):
        step()
        return
    with pytest.raises((TypeError, ValueError), match=CHANGES.get(change, "must be writable")):
        step()
    assert [a.tobytes() for a in arrays] == before


def test_what_only_looks_changed():
    """A type that is equal, but another object; and what has become writable again."""
    described = np.dtype(np.float64, metadata={"of": "somebody"})
    w, grad = np.zeros(3, described), np.ones(3, described)
    optimizer = fastopt.SGD({"w": w}, lr=1.0)
    for _ in range(2):
        optimizer.step({"w": grad})
    np.testing.assert_array_equal(w, -2)
    w.flags.writeable = False
    with pytest.raises(ValueError, match=r"params\[w\] must be writable"):
        optimizer.step({"w": grad})
    w.flags.writeable = True
    optimizer.step({"w": grad})
    np.testing.assert_array_equal(w, -3)


# ---- Arrays with gaps -------------------------------------------------------------------------------


def transposed(a):
    return np.asfortranarray(a)


def sliced(a):
    return np.repeat(np.repeat(a, 2, axis=0), 3, axis=-1)[::2, ::3]


def backwards(a):
    return a[::-1].copy()[::-1]


def spread(a):
    return np.broadcast_to(a[:1], a.shape)


@pytest.mark.parametrize("form", [transposed, sliced, backwards, spread])
@pytest.mark.parametrize("structure", ["array", "list", "dict"])
def test_gradients_with_gaps(any_rule, form, structure, rng, same_bits):
    """Each step takes the numbers that are there then."""
    of = {"array": lambda a: a, "list": lambda a: [a], "dict": lambda a: {"w": a}}[structure]
    w = rng.standard_normal((4, 3))
    twin = w.copy()
    optimizer, other = any_rule.make(of(w)), any_rule.make(of(twin))
    grad = form(rng.standard_normal((4, 3)))
    for k in range(3):
        optimizer.step(of(grad))
        other.step(of(np.ascontiguousarray(grad)))
        if form is not spread:
            grad *= -1.5 - k
    same_bits(w, twin)


@pytest.mark.parametrize("form", [transposed, sliced, backwards])
def test_gradients_with_gaps_of_functions(any_rule, form, rng, same_bits):
    param, grad, *states = (abs(rng.standard_normal((4, 3))) for _ in range(2 + len(any_rule.states)))
    others, planned = ([a.copy() for a in (param, *states)] for _ in range(2))
    gaps = form(grad)
    scalars = {key: value for key, value in any_rule.by_hand(1).items() if key != "t"}
    step = functional.plan(any_rule.name, planned[0], gaps, *planned[1:], **scalars | any_rule.hyper)
    for t in (1, 2):
        any_rule.step(param, gaps, *states, t=t)
        any_rule.step(others[0], np.ascontiguousarray(gaps), *others[1:], t=t)
        step()
        for given, prepared, expected in zip((param, *states), planned, others, strict=True):
            same_bits(given, expected)
            same_bits(prepared, expected)
        gaps *= -2


@pytest.mark.parametrize("cls", [fastopt.Adafactor, fastopt.MuonMatrices, fastopt.Muon])
def test_gradients_with_gaps_of_matrices(cls, rng, same_bits):
    w, grad = rng.standard_normal((2, 4, 3))
    twin = w.copy()
    optimizer, other = cls({"w": w}), cls({"w": twin})
    for _ in range(3):
        optimizer.step({"w": transposed(grad)})
        other.step({"w": grad})
    same_bits(w, twin)


def test_the_copy_is_allocated_once():
    w, grad = np.zeros((300, 200)), np.ones((200, 300)).T
    optimizer = fastopt.SGD({"w": w}, lr=1.0)
    optimizer.step({"w": grad})
    tracemalloc.start()
    optimizer.step({"w": grad})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < grad.nbytes / 8


def test_parameters_with_gaps(refuses):
    """The cure that is named is one: a copy as the argument would be trained in the place of the parameter."""
    params = {"W": np.zeros((4, 6))[:, ::2], "b": np.zeros(3)}
    for make in (lambda p: fastopt.SGD(p, 1.0), fastopt.Muon, fastopt.LBFGS, fastopt.Adafactor):
        refuses(
            lambda make=make: make(params),
            r"params\[W\] must be C-contiguous, .*params\[\"W\"\] = np\.ascontiguousarray\(params\[\"W\"\]\)",
        )
    params["W"] = np.ascontiguousarray(params["W"])
    fastopt.SGD(params, 1.0).step({"W": np.ones((4, 3)), "b": np.ones(3)})
    np.testing.assert_array_equal(params["W"], -1)
    refuses(
        lambda: fastopt.SGD([np.zeros((2, 3)).T], 1.0), r".*params\[0\] = .*keep the array that this is the transpose"
    )
    refuses(
        lambda: functional.sgd(np.zeros((2, 3)).T, np.zeros((3, 2)), lr=1.0),
        r"param must be C-contiguous, .* param = np\.ascontiguousarray\(param\)",
    )


# ---- Processes, counters, what is given -------------------------------------------------------------


FORKS = """
import os, threading
import numpy as np
import fastopt

w, grad = np.zeros(3_000_000, np.float32), np.ones(3_000_000, np.float32)
optimizer = fastopt.Adam(w)
state = optimizer.state_dict()
for _ in range(200):
    begun = threading.Event()

    def steps():
        begun.set()
        for _ in range(3):
            optimizer.step(grad)

    thread = threading.Thread(target=steps)
    thread.start()
    begun.wait()
    child = os.fork()
    if not child:
        fastopt.set_num_threads(1)
        try:
            optimizer.step(grad)
        except RuntimeError as error:
            w.fill(0)
            optimizer.load_state_dict(state)
            optimizer.step(grad)
            print(error, "--", optimizer.t, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    thread.join()
    optimizer.step(grad)
    if status:
        break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_process_that_is_forked_amid_a_step():
    """The child says so until it has values and a state; the parent goes on. (In a process of its own, without JAX.)"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKS], capture_output=True, text=True, check=True)
    if not done.stdout:
        pytest.skip("no fork came amid a step")
    assert done.stdout.startswith("this process was forked while another thread was in the middle of a step")
    assert done.stdout.endswith("-- 1\n")


def test_the_last_step_of_all(refuses):
    """A double that is counted up from 2**53 stays what it is."""
    for make in (fastopt.Adam, fastopt.NAdam, lambda w: fastopt.SGD(w, 0.1)):
        w = np.ones(3)
        optimizer = make(w)
        state = optimizer.state_dict()
        optimizer.load_state_dict({**state, "t": 2**53 - 1})
        optimizer.step(np.ones(3))
        assert optimizer.t == 2**53
        refuses(lambda optimizer=optimizer: optimizer.step(np.ones(3)), r"t must be below 2\*\*53 before a step", w)
        assert optimizer.t == 2**53
    arrays = [np.ones(3) for _ in range(4)]
    step = functional.plan("adam", *arrays)
    step(t=2**53)
    refuses(step, r"t must be at most 2\*\*53", *arrays)
    step(t=1)


@pytest.mark.parametrize("groups", [[1], 1, "w", {"params": "w"}, [None], ["w"], [[]], None])
def test_groups_that_are_none(groups, refuses):
    rule = r'(groups must be a sequence of mappings|a group must be a mapping), such as \{"params": '
    refuses(lambda: fastopt.Adam({"w": np.ones(3)}, groups=groups), rule, error=TypeError)


@pytest.mark.parametrize("which", [1, [1], None, ["w", 0], 1.5])
def test_parameters_of_a_group_that_are_no_names(which, refuses):
    rule = "a group's params must be a name, a pattern, a list of these, or a function"
    refuses(lambda: fastopt.Adam({"w": np.ones(3)}, groups=[{"params": which}]), rule, error=TypeError)


@pytest.mark.parametrize(
    "schedules",
    [
        {"nothing": {"schedule": "constant", "value": 1.0}},
        {"lr": "constant"},
        {"lr": None},
        {"lr": {"schedule": "constant", "value": "a"}},
        {"decoupled": {"schedule": "constant", "value": 1.0}},
        {"step": {"schedule": "constant", "value": 1.0}},
        {1: {"schedule": "constant", "value": 1.0}},
        ["lr"],
        None,
        7,
    ],
    ids=repr,
)
@pytest.mark.parametrize("of_group", [False, True])
def test_foreign_schedules(schedules, of_group):
    w = {"w": np.ones(3)}
    optimizer = fastopt.Adam(w, groups=[{"params": "w", "lr": 0.5}])
    state = optimizer.state_dict()
    before = pickle.dumps(state)
    if of_group:
        bad = {**state, "groups": [{**state["groups"][0], "schedules": schedules}]}
    else:
        bad = {**state, "schedules": schedules}
    with pytest.raises((TypeError, ValueError)):
        optimizer.load_state_dict(bad)
    assert pickle.dumps(optimizer.state_dict()) == before


@pytest.mark.parametrize(("i", "bucket"), [(-1, 0), (0, -1), (0, 1), (10_000, 0), (0, 10**9)])
def test_a_hyperparameter_that_a_plan_does_not_have(i, bucket):
    plan = fastopt.Adam(np.ones(3))._plan
    for call in (
        lambda: plan.get_hyper(i, bucket),
        lambda: plan.set_hyper(i, 1.0, bucket),
        lambda: plan.assign([(0, 5.0, 0), (i, 1.0, bucket)]),
    ):
        with pytest.raises(ValueError, match="must be one of"):
            call()
    assert plan.get_hyper(0) == 0


def test_entries_are_named_where_norms_are_not_finite():
    optimizer = fastopt.SGD({"a": np.ones(3), "b": np.ones(3)}, 0.1, clip_global_norm=1.0)
    with pytest.raises(ValueError, match=r"grads must be finite .*\(of grads\[b\]\)"):
        optimizer.step({"a": np.ones(3), "b": np.full(3, np.nan)})
