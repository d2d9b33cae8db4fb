"""Parameters in dicts, lists and tuples to any depth; gradients that are not of all; steps out of place."""

import copy
import functools
import gc
import itertools
import pickle
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest

import fastopt
from fastopt import checks, gradients
from fastopt.optimizers import OPTIMIZERS

SHAPES = ((5, 7), (7,), (7, 3), (3,), (2, 2))


class Layer(NamedTuple):
    w: np.ndarray
    b: np.ndarray


#: Nests of five arrays, and the names of these.
NESTS = {
    "pairs": (lambda a, b, c, d, e: [(a, b), (c, d), e], ("0.0", "0.1", "1.0", "1.1", "2")),
    "dicts": (
        lambda a, b, c, d, e: {"l1": {"W": a, "b": b}, "l2": {"W": c, "b": d}, "scale": e},
        ("l1.W", "l1.b", "l2.W", "l2.b", "scale"),
    ),
    "named tuples": (
        lambda a, b, c, d, e: (Layer(a, b), Layer(c, d), [[[e]]]),
        ("0.0", "0.1", "1.0", "1.1", "2.0.0.0"),
    ),
    "mixed": (
        lambda a, b, c, d, e: OrderedDict(empty={}, deep=[{"x": ({3: a}, [b, c])}, ()], d=d, e=(e,)),
        ("deep.0.x.0.3", "deep.0.x.1.0", "deep.0.x.1.1", "d", "e.0"),
    ),
}


@pytest.fixture(params=NESTS)
def nest(request):
    return NESTS[request.param][0]


def draw(rng, dtype=np.float64, shapes=SHAPES):
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def copied(arrays):
    return [array.copy() for array in arrays]


def leaves(nest):
    return list(checks.named("param", nest).values())


def all_same(same_bits, actual, expected):
    for one, other in zip(actual, expected, strict=True):
        same_bits(one, other)


# ---- Flattening -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NESTS)
def test_names_are_the_keys_that_lead_to_an_array(name, rng):
    make, names = NESTS[name]
    arrays = draw(rng)
    found = checks.named("param", make(*arrays))
    assert tuple(found) == names
    assert all(one is other for one, other in zip(found.values(), arrays, strict=True))
    for of, array in found.items():
        assert eval(checks.in_code(make(*arrays), of), {"params": make(*arrays)}) is array


def test_the_structure_is_kept(nest, rng):
    arrays, others = draw(rng), draw(rng)
    rebuilt = checks.structured(nest(*arrays), others)
    assert repr(rebuilt) == repr(nest(*others)).replace("OrderedDict({", "{").replace("})", "}") or isinstance(
        nest(*arrays), OrderedDict
    )
    assert all(one is other for one, other in zip(leaves(rebuilt), others, strict=True))
    if isinstance(nest(*arrays), tuple):
        assert isinstance(rebuilt[0], Layer)


def cyclic():
    nest = [np.ones(2)]
    nest.append({"again": nest})
    return nest


def deep(depth):
    nest = np.ones(2)
    for _ in range(depth):
        nest = [nest]
    return nest


REFUSED = {
    "a cycle": (cyclic, "param must not contain itself, but a list does"),
    "too deep": (lambda: deep(100), "param must be at most 64 nests deep"),
    "a collision": (
        lambda: {"a.b": np.ones(2), "a": {"b": np.ones(2)}},
        "param must have one array of each name, but two are called a.b: rename a key",
    ),
    "keys alike": (lambda: [{1: np.ones(2), "1": np.ones(2)}], "param must have keys that differ as text"),
    "a leaf of another type": (lambda: {"l1": [np.ones(2), "W"]}, r"params\[l1.1\] must be a NumPy array, got str"),
    "None": (lambda: [(np.ones(2), None)], r"params\[0.1\] must be a NumPy array, got NoneType"),
    "integers": (lambda: [(np.arange(2),)], r"params\[0.0\] must be float32 or float64, got int64"),
    "numbers": (lambda: {"l1": {"W": [[1.0, 2.0], [3.0, 4.0]]}}, r"params\[l1.W\] must be a NumPy array, got list"),
    "types that differ": (
        lambda: [(np.ones(2), np.ones(2, np.float32))], r"params\[0.1\] must be float64, got float32",
    ),
    "one array twice": (lambda: [[np.ones(2)] * 2], r"params\[0.\d\] and params\[0.\d\] must not overlap in memory"),
    "a transpose": (
        lambda: {"l1": {"W": np.ones((2, 3)).T}},
        r'params\[l1.W\] must be C-contiguous.*params\["l1"\]\["W"\] = np.ascontiguousarray\(params\["l1"\]\["W"\]\)',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_nests_that_are_refused(name, refuses):
    make, message = REFUSED[name]
    for cls in (fastopt.Adam, fastopt.Muon, fastopt.LBFGS, fastopt.EMA):
        if name in ("types that differ", "one array twice", "a transpose") and cls is fastopt.EMA:
            continue  # takes the arrays of an optimizer, which has looked at them
        refuses(lambda cls=cls: cls(make()), message)


# ---- Optimizers -------------------------------------------------------------------------------------------------

WITH_OPTIONS = {
    "plain": {},
    "clipped": {"clip_global_norm": 1.0, "clip_norm": 0.8, "weight_decay": 0.1},
    "a group": {"groups": [{"params": "{1}", "lr": 0.3}, {"params": ["{0}"], "frozen": True}]},
}


def with_names(options, names):
    """Options whose groups hold the second array, and the first."""
    groups = [
        each | {"params": names[1] if each["params"] == "{1}" else [names[0]]} for each in options.get("groups", ())
    ]
    return options | ({"groups": groups} if groups else {})


@pytest.mark.parametrize("options", WITH_OPTIONS)
@pytest.mark.parametrize("name", NESTS)
def test_a_nest_is_stepped_as_a_list(any_rule, name, options, rng, same_bits):
    if hasattr(any_rule.cls, "look_ahead"):
        pytest.skip("its steps go with look_ahead")
    nest, names = NESTS[name]
    arrays, others = draw(rng), None
    others = copied(arrays)
    params = nest(*arrays)
    nested = any_rule.cls(params, lr=0.1, **with_names(WITH_OPTIONS[options], names))
    plain = any_rule.cls(others, lr=0.1, **with_names(WITH_OPTIONS[options], [*"01234"]))
    for _ in range(3):
        grads = draw(rng)
        nested.step(nest(*grads), grad_scale=0.5)
        plain.step(grads, grad_scale=0.5)
    all_same(same_bits, arrays, others)
    assert nested.grad_norm == plain.grad_norm
    assert nested.params is params
    held = [name for name in names if options != "a group" or name != names[0]]
    assert list(nested.state) == held
    for one, other in zip(nested.state.values(), plain.state.values(), strict=True):
        all_same(same_bits, one.values(), other.values())


WRAPPERS = {
    "look-ahead": lambda params: fastopt.LookAhead(fastopt.Adam(params, lr=0.1), k=2),
    "ranger": lambda params: fastopt.Ranger(params, lr=0.1, k=2),
    "adafactor": lambda params: fastopt.Adafactor(params, lr=0.1),
    "muon": lambda params: fastopt.Muon(params, lr=0.1),
    "muon, look-ahead": lambda params: fastopt.LookAhead(fastopt.Muon(params, lr=0.1), k=2),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_so_do_optimizers_that_are_made_of_others(name, nest, rng, same_bits):
    arrays = draw(rng)
    others = copied(arrays)
    nested, plain = WRAPPERS[name](nest(*arrays)), WRAPPERS[name](others)
    for _ in range(3):
        grads = draw(rng)
        nested.step(nest(*grads))
        plain.step(grads)
    all_same(same_bits, arrays, others)
    if hasattr(nested, "slow"):
        all_same(same_bits, leaves(nested.slow), plain.slow)


def test_dicts_in_another_order(rng, same_bits):
    arrays, grads = draw(rng), draw(rng)
    others = copied(arrays)
    nest = NESTS["dicts"][0]
    optimizer = fastopt.Adam(nest(*arrays), lr=0.1)
    given = nest(*grads)
    for _ in range(2):
        optimizer.step({"scale": given["scale"], "l2": dict(reversed(given["l2"].items())), "l1": given["l1"]})
    plain = fastopt.Adam(others, lr=0.1)
    for _ in range(2):
        plain.step(grads)
    all_same(same_bits, arrays, others)


def wrong(change):
    """Gradients of `dicts` with a change."""

    def make(grads):
        given = NESTS["dicts"][0](*grads)
        change(given)
        return given

    return make


WRONG_GRADS = {
    "a key is missing": (wrong(lambda g: g["l1"].pop("b")), "grads must hold one array per parameter, but lacks l1.b"),
    "a nest is missing": (wrong(lambda g: g.pop("l2")), "grads must hold one array per .*, but lacks l2.W, l2.b"),
    "one too many": (wrong(lambda g: g["l1"].update(c=1)), "grads must hold one array per .*, but also has l1.c"),
    "a list for a dict": (
        wrong(lambda g: g.update(l1=[*g["l1"].values()])),
        r"grads\[l1\] must have the structure of params\[l1\], dict, got list",
    ),
    "a nest for an array": (
        wrong(lambda g: g.update(scale={"x": g["scale"]})),
        r"grads\[scale\] must be an array, as params\[scale\] is, got dict",
    ),
    "an array for a nest": (
        wrong(lambda g: g.update(l1=g["l1"]["W"])),
        r"grads\[l1\] must have the structure of params\[l1\], dict, got ndarray",
    ),
    "None": (wrong(lambda g: g["l2"].update(b=None)), r"grads\[l2.b\] must be a NumPy array, got NoneType"),
    "None for a nest": (
        wrong(lambda g: g.update(l2=None)), r"grads\[l2\] must have the structure of params\[l2\], dict, got NoneType",
    ),
    "a shape": (wrong(lambda g: g["l2"].update(b=np.ones(4))), r"grads\[l2.b\] must have shape \(3,\), got \(4,\)"),
    "a type": (
        wrong(lambda g: g["l2"].update(b=np.ones(3, np.float32))), r"grads\[l2.b\] must be float64, got float32",
    ),
    "a flat dict": (lambda grads: dict(zip("abcde", grads, strict=True)), "grads must hold one array per param"),
    "names for keys": (
        lambda grads: dict(zip(NESTS["dicts"][1], grads, strict=True)), "grads must hold one array per parameter, but",
    ),
    "a list": (lambda grads: grads, "grads must have the structure of params, dict, got list"),
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}], ids=str)
@pytest.mark.parametrize("name", WRONG_GRADS)
def test_gradients_of_another_structure(name, options, rng, refuses):
    arrays = draw(rng)
    optimizer = fastopt.Adam(NESTS["dicts"][0](*arrays), **options)
    optimizer.step(NESTS["dicts"][0](*draw(rng)))
    make, message = WRONG_GRADS[name]
    held = [a for state in optimizer.state.values() for a in state.values()]
    refuses(lambda: optimizer.step(make(draw(rng))), message, *arrays, *held)
    refuses(lambda: fastopt.gradients.Accumulator(optimizer.params).add(make(draw(rng))), message)
    refuses(lambda: fastopt.Muon(optimizer.params).step(make(draw(rng))), message, *arrays)
    assert optimizer.t == 1


def test_lists_in_a_nest_have_their_length(rng, refuses):
    arrays = draw(rng)
    optimizer = fastopt.SGD([(arrays[0], arrays[1]), [arrays[2]]], lr=0.1)
    ok = [(arrays[0] * 2, arrays[1] * 2), [arrays[2] * 2]]
    for strict in (True, False):
        call = lambda grads, strict=strict: lambda: optimizer.step(grads, strict=strict)  # noqa: E731
        refuses(call([ok[0][:1], ok[1]]), "grads must hold one array per parameter, but lacks 0.1", *arrays)
        refuses(call([ok[0], [*ok[1], ok[1][0]]]), "grads must hold one array per .*, but also has 1.1", *arrays)
        refuses(call(ok[:1]), "grads must hold one array per parameter, but lacks 1.0", *arrays)


def test_frozen_parts_need_no_gradients(nest, rng, same_bits):
    arrays = draw(rng)
    before = copied(arrays)
    params = {"backbone": nest(*arrays[:5]), "head": (np.ones(3), np.ones(2))}
    optimizer = fastopt.Adam(params, lr=0.1, groups=[{"params": "backbone.*", "frozen": True}])
    head = (np.ones(3), np.ones(2))
    for backbone in ({}, {"backbone": None}, {"backbone": nest(*[None] * 5)}, {"backbone": nest(*draw(rng))}):
        optimizer.step({"head": head} | backbone)
    all_same(same_bits, arrays, before)
    assert optimizer.t == 4
    assert list(optimizer.state) == ["head.0", "head.1"]
    assert (params["head"][0] < 1).all()


def test_an_entry_that_is_another_array_now(nest, rng, refuses):
    params = {"nest": nest(*draw(rng)), "rest": [np.ones(3)]}
    optimizer = fastopt.Adam(params)
    params["rest"][0] = np.ones(3)
    grads = checks.structured(params, copied(leaves(params)))
    refuses(
        lambda: optimizer.step(grads), r'params\["rest"\]\[0\] must be the array that the optimizer steps, but is ano'
    )
    params["rest"] = None
    refuses(
        lambda: optimizer.step(grads), r'params\["rest.0"\] must be the array that the optimizer steps, but is gone'
    )
    params["rest"] = [np.ones(3)]
    optimizer.rebind(params)
    optimizer.step(grads)
    assert (params["rest"][0] < 1).all()


@pytest.mark.parametrize("more", [{}, {"clip_norm": 1.0}], ids=str)
def test_rebinding_and_late_parameters(more, rng, same_bits, refuses):
    arrays, late = draw(rng), draw(rng)[:2]
    others, late_too = copied(arrays), copied(late)
    params = {"layers": [tuple(arrays[:2]), tuple(arrays[2:4])], "out": {"s": arrays[4]}}
    optimizer = fastopt.NAdam(params, lr=0.1, **more)
    flat = dict(zip(("layers.0.0", "layers.0.1", "layers.1.0", "layers.1.1", "out.s"), others, strict=True))
    plain = fastopt.NAdam(flat, lr=0.1, **more)

    def step(later=()):
        grads = draw(rng)
        of_late = [rng.standard_normal(a.shape) for a in later]
        given = {"layers": [tuple(grads[:2]), tuple(grads[2:4])], "out": {"s": grads[4]}}
        if later:
            given["layers"].append((of_late[0],))
            given["out"]["t"] = of_late[1]
        optimizer.step(given)
        plain.step(dict(zip(plain.params, [*grads, *of_late], strict=True)))

    step()
    optimizer.add_params({"layers": [(late[0],)], "out": {"t": late[1]}}, weight_decay=0.5)
    plain.add_params({"layers.2.0": late_too[0], "out.t": late_too[1]}, weight_decay=0.5)
    assert set(optimizer.state) == set(plain.state)
    step(late)
    moved = copy.deepcopy(optimizer.params)
    optimizer.rebind(moved)
    step(late)
    for name, array in checks.named("param", moved).items():
        same_bits(array, plain.params[name])
    refuses(lambda: optimizer.add_params({"out": {"s": np.ones(2)}}), "more must hold new parameters, but out.s is one")
    refuses(
        lambda: optimizer.add_params({"out": [np.ones(2)]}), r"more\[out\] must be a list or a dict, as params\[out\]"
    )
    moved["layers"][0] = [*moved["layers"][0], np.ones(2)]
    refuses(lambda: optimizer.rebind(moved), r"params\[layers.0\] must hold 2 arrays, got 3")
    moved["layers"][0] = {0: moved["layers"][0][0], 1: moved["layers"][0][1]}
    refuses(lambda: optimizer.rebind(moved), r"params\[layers.0\] must have the structure that .* tuple, got dict")


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_states_go_on(ending, nest, rng, tmp_path, same_bits):
    if ending == "safetensors":
        pytest.importorskip("safetensors")
    arrays, grads = draw(rng), [draw(rng) for _ in range(4)]
    optimizer = fastopt.AMSGrad(nest(*arrays), lr=0.1)
    for each in grads[:2]:
        optimizer.step(nest(*each))
    fastopt.save(optimizer, tmp_path / f"state.{ending}")
    again = fastopt.AMSGrad(nest(*copied(arrays)))
    fastopt.load(again, tmp_path / f"state.{ending}")
    others = [again, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    for each in grads[2:]:
        for one in (optimizer, *others):
            one.step(nest(*each))
    for other in others:
        all_same(same_bits, leaves(other.params), arrays)


def test_averages_of_nests(nest, rng, same_bits):
    arrays = draw(rng)
    params, others = nest(*arrays), copied(arrays)
    for make in (lambda p: fastopt.EMA(p, 0.9), fastopt.SWA):
        nested, plain = make(params), make(others)
        for _ in range(3):
            for one, other in zip(arrays, others, strict=True):
                other += 1
                one[...] = other
            nested.update()
            plain.update()
        all_same(same_bits, leaves(nested.averages), plain.averages)
        trained = copied(arrays)
        with nested.applied():
            all_same(same_bits, arrays, plain.averages)
        all_same(same_bits, arrays, trained)
        nested.load_state_dict(nested.state_dict())
        nested.rebind(copy.deepcopy(params))


def test_functions_of_gradients(nest, rng, same_bits):
    arrays = draw(rng)
    others = copied(arrays)
    grads = nest(*arrays)
    assert gradients.global_norm(grads) == gradients.global_norm(others)
    assert gradients.all_finite(grads)
    assert fastopt.penalty(grads, weight_decay=0.1, l1=0.2) == fastopt.penalty(others, weight_decay=0.1, l1=0.2)
    for change in (
        lambda g: gradients.add_noise(g, 3),
        gradients.centralize,
        lambda g: gradients.clip_by_norm(g, 1.0),
        lambda g: gradients.clip_by_global_norm(g, 1.0),
        lambda g: gradients.clip_by_value(g, 0.1),
    ):
        change(grads)
        change(others)
        all_same(same_bits, arrays, others)
    sums = gradients.Accumulator(grads)
    for _ in range(2):
        sums.add(grads, weight=0.5)
    all_same(same_bits, leaves(sums.grads), others)
    arrays[3][0] = np.nan
    assert not gradients.all_finite(grads)


def test_lbfgs_of_a_nest(rng):
    pytest.importorskip("scipy")
    a, b = rng.standard_normal((20, 3)), rng.standard_normal(20)
    params = [{"w": np.zeros(3)}, (np.zeros(1),)]

    def closure():
        residual = a @ params[0]["w"] + params[1][0] - b
        return float(residual @ residual), [{"w": 2 * a.T @ residual}, (2 * residual.sum(keepdims=True),)]

    fastopt.LBFGS(params, max_iter=100, tolerance_change=0.0).step(closure)
    solution = np.linalg.lstsq(np.column_stack([a, np.ones(20)]), b, rcond=None)[0]
    np.testing.assert_allclose([*params[0]["w"], *params[1][0]], solution, rtol=1e-6, atol=1e-7)


def test_the_origin_of_an_overflow_is_named(rng, refuses):
    arrays = draw(rng)
    optimizer = fastopt.SGD(NESTS["dicts"][0](*arrays), lr=0.1, clip_norm=1.0)
    grads = draw(rng)
    grads[2][0, 0] = np.inf
    refuses(lambda: optimizer.step(NESTS["dicts"][0](*grads)), r"grads must be finite .* \(of grads\[l2.W\]\)", *arrays)
    grads[2][0, 0] = 1e300  # whose square overflows
    optimizer.step(NESTS["dicts"][0](*grads))


# ---- Other programs ---------------------------------------------------------------------------------------------


def autograds_network(rng):
    """The network of autograd's examples, a list of (W, b), with its loss and gradients of that structure."""
    autograd = pytest.importorskip("autograd")
    anp = autograd.numpy
    x, y = rng.standard_normal((30, 6)), np.eye(4)[rng.integers(4, size=30)]
    sizes = (6, 9, 7, 4)
    params = [(0.5 * rng.standard_normal((m, n)), 0.1 * rng.standard_normal(n)) for m, n in itertools.pairwise(sizes)]

    def loss(params):
        h = x
        for w, b in params:
            outputs = anp.dot(h, w) + b
            h = anp.tanh(outputs)
        scores = outputs - anp.log(anp.sum(anp.exp(outputs), axis=1, keepdims=True))
        return -anp.mean(anp.sum(scores * y, axis=1))

    return params, loss, autograd.value_and_grad(loss), x, y


OF_TORCH = {
    "SGD": (lambda p: fastopt.SGD(p, lr=0.1), lambda t, p: t.optim.SGD(p, lr=0.1)),
    "Momentum": (lambda p: fastopt.Momentum(p, lr=0.1), lambda t, p: t.optim.SGD(p, lr=0.1, momentum=0.9)),
    "Adam": (lambda p: fastopt.Adam(p, 0.01, weight_decay=0.1), lambda t, p: t.optim.Adam(p, 0.01, weight_decay=0.1)),
    "RMSProp": (lambda p: fastopt.RMSProp(p, lr=0.01), lambda t, p: t.optim.RMSprop(p, lr=0.01)),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_TORCH)
def test_autograds_program_is_that_of_pytorch(name, rng):
    """Gradients by autograd and steps by fastopt, against both by PyTorch."""
    torch = pytest.importorskip("torch")
    params, _, value_and_grad, x, y = autograds_network(rng)
    theirs = [tuple(torch.tensor(a, requires_grad=True) for a in layer) for layer in params]
    ours, other = OF_TORCH[name]
    optimizer, peer = ours(params), other(torch, [a for layer in theirs for a in layer])
    for _ in range(6):
        value, grads = value_and_grad(params)
        optimizer.step(grads)
        peer.zero_grad()
        h = torch.tensor(x)
        for w, b in theirs:
            outputs = h @ w + b
            h = torch.tanh(outputs)
        loss = -(torch.log_softmax(outputs, 1) * torch.tensor(y)).sum(1).mean()
        loss.backward()
        peer.step()
        assert abs(value - loss.item()) <= 1e-12
    for mine, their in zip(leaves(params), (a for layer in theirs for a in layer), strict=True):
        np.testing.assert_allclose(mine, their.detach().numpy(), rtol=1e-10, atol=1e-12)


def test_autograds_program_with_the_old_weights_kept(rng):
    """What keeps references to weights takes steps out of place, and has the losses of plain NumPy."""
    params, loss, value_and_grad, *_ = autograds_network(rng)
    plain = copy.deepcopy(params)
    optimizer = fastopt.Momentum(params, lr=0.1)
    velocity = [(np.zeros_like(w), np.zeros_like(b)) for w, b in params]
    kept, losses = [], []
    for _ in range(15):
        kept.append(params)
        value, grads = value_and_grad(params)
        losses.append(value)
        params = optimizer.updated(params, grads)
        value, grads = value_and_grad(plain)
        assert abs(value - losses[-1]) <= 1e-12
        velocity = [
            tuple(0.9 * v + g for v, g in zip(*each, strict=True)) for each in zip(velocity, grads, strict=True)
        ]
        plain = [tuple(p - 0.1 * v for p, v in zip(*each, strict=True)) for each in zip(plain, velocity, strict=True)]
    np.testing.assert_allclose([loss(each) for each in kept], losses, rtol=0, atol=0)


# ---- Steps that are not of all parameters -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Adam", "NAdam", "Momentum", "LAMB", "Adafactor", "ScheduleFreeSGD"])
@pytest.mark.parametrize("more", [{}, {"clip_global_norm": 1.0, "weight_decay": 0.1}], ids=str)
def test_parameters_without_a_gradient_rest(name, more, nest, rng, same_bits):
    """They are where an optimizer of their own would be that has taken the other steps alone."""
    more = more | ({"decoupled": True} if more and name == "LAMB" else {})
    arrays = draw(rng)
    others = copied(arrays)
    make = getattr(fastopt, name)
    optimizer, apart = make(nest(*arrays), lr=0.1, **more), [make(a, lr=0.1, **more) for a in others]
    for absent in ((), (1,), (1,), (0, 3), (), (0, 1, 2, 3, 4), (2,)):
        grads = draw(rng)
        for each in () if more else range(5):
            if each not in absent:
                apart[each].step(grads[each])
        if more:
            norm = gradients.global_norm([g for i, g in enumerate(grads) if i not in absent])
            for each in range(5):
                if each not in absent:
                    apart[each].clip_global_norm = None
                    apart[each].step(grads[each], grad_scale=min(1.0, 1.0 / norm))
        optimizer.step(nest(*(None if i in absent else g for i, g in enumerate(grads))), strict=not absent)
    # But for the norm of all, which `global_norm` takes by another sum.
    same = functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13) if more else same_bits
    all_same(same, arrays, others)
    assert optimizer.t == 7
    for one, own in zip(optimizer.state.values(), apart, strict=True):
        all_same(same, one.values(), own.state["param"].values())


def test_it_is_what_pytorch_does_without_a_gradient(rng):
    torch = pytest.importorskip("torch")
    params = {"a": {"w": rng.standard_normal((3, 4))}, "b": rng.standard_normal(5)}
    theirs = [torch.tensor(a, requires_grad=True) for a in leaves(params)]
    optimizer, peer = fastopt.AdamW(params, lr=0.1), torch.optim.AdamW(theirs, lr=0.1)
    for step in range(9):
        grads = [rng.standard_normal(a.shape) for a in leaves(params)]
        present = [step % 2 == 0, step % 3 == 0]
        for tensor, grad, there in zip(theirs, grads, present, strict=True):
            tensor.grad = torch.tensor(grad) if there else None
        peer.step()
        given = {"other": 1} | ({"a": {"w": grads[0], "x": None}} if present[0] else {})
        optimizer.step(given | ({"b": grads[1]} if present[1] else {"b": None}), strict=False)
    for mine, their in zip(leaves(params), theirs, strict=True):
        np.testing.assert_allclose(mine, their.detach().numpy(), rtol=1e-12, atol=1e-13)
    taken = {name: optimizer.t - born for name, born in optimizer.state_dict()["born"].items()}
    assert taken == {"a.w": 5, "b": 3}


def test_states_of_resting_parameters_go_on(rng, same_bits):
    arrays = draw(rng)
    optimizer = fastopt.NAdam(arrays, lr=0.1)
    optimizer.step([*draw(rng)[:3], None, None], strict=False)
    again = fastopt.NAdam(copied(arrays))
    again.load_state_dict(optimizer.state_dict())
    twin = copy.deepcopy(optimizer)
    assert optimizer.frozen == frozenset()
    for strict in (True, False):
        grads = draw(rng)
        for each in (optimizer, again, twin):
            each.step(grads, strict=strict)
    all_same(same_bits, again.params, arrays)
    all_same(same_bits, twin.params, arrays)


def test_a_setting_acts_on_resting_parameters_later(rng, same_bits):
    arrays = draw(rng)
    others = copied(arrays)
    optimizer, alone = fastopt.Adam(arrays, lr=0.1), fastopt.Adam([others[4]], lr=0.1)
    optimizer.step([*draw(rng)[:4], None], strict=False)
    optimizer.lr = alone.lr = 0.5
    optimizer.weight_decay = alone.weight_decay = 0.5
    grads = draw(rng)
    optimizer.step(grads)
    alone.step([grads[4]])
    same_bits(arrays[4], others[4])


def test_extra_keys_alone_bind_nothing_anew(rng):
    params = {"w": np.ones(3), "b": np.ones(2)}
    optimizer = fastopt.Adam(params)
    plan = optimizer._plan
    optimizer.step({"x": object(), "w": np.ones(3), "b": np.ones(2)}, strict=False)
    assert optimizer._plan is plan
    optimizer.step({"w": np.ones(3)}, strict=False)
    rebound = optimizer._plan
    assert rebound is not plan
    optimizer.step({"w": np.ones(3), "b": None}, strict=False)
    assert optimizer._plan is rebound
    optimizer.step({"w": np.ones(3), "b": np.ones(2)})
    assert "step" in vars(optimizer)


def test_a_step_that_was_kept_from_before_is_refused(rng, refuses):
    arrays = draw(rng)
    optimizer = fastopt.Adam(arrays, lr=0.1)
    kept = optimizer.step
    kept([*draw(rng)[:4], None], strict=False)
    refuses(lambda: kept(draw(rng)), "the optimizer has been bound anew", *arrays, error=RuntimeError)
    optimizer.step(draw(rng))
    assert optimizer.t == 2
    alone = fastopt.Adam(draw(rng)).step
    gc.collect()
    alone(draw(rng))
    refuses(lambda: alone(draw(rng), strict=False), "a step that is not strict is the optimizer's", error=RuntimeError)


@pytest.mark.parametrize("make", [fastopt.Adam, fastopt.Muon, fastopt.Ranger])
def test_what_a_step_that_is_not_strict_refuses(make, refuses):
    params = {"l1": {"w": np.ones((2, 3))}, "b": np.ones(2)}
    optimizer, held = make(params), leaves(params)
    refuses(lambda: optimizer.step({"b": np.ones(3)}, strict=False), r"grads\[b\] must have shape", *held)
    refuses(lambda: optimizer.step([np.ones(2)], strict=False), "grads must have the structure of params", *held)
    refuses(lambda: optimizer.step(None, strict=False), "grads must have the structure of params", *held)
    refuses(lambda: optimizer.step({}, strict=1), "strict must be True or False, got 1", *held)
    refuses(lambda: optimizer.step({"l1": [1]}, strict=False), r"grads\[l1\] must have the structure", *held)
    optimizer.step({}, strict=False)
    assert optimizer.t == 1
    assert all((a == 1).all() for a in held)


def test_all_come_back_from_the_look_ahead_point(refuses):
    params = {"l1": {"w": np.ones((2, 3))}, "b": np.ones(2)}
    ahead = fastopt.LookAheadNesterov(params, lr=0.1)
    ahead.look_ahead()
    refuses(lambda: ahead.step({"b": np.ones(2)}, strict=False), "grads must hold one array .*, since", *leaves(params))
    ahead.step({"b": np.ones(2), "l1": {"w": np.ones((2, 3)), "x": 1}}, strict=False)


@pytest.mark.parametrize("name", WRAPPERS)
def test_optimizers_made_of_others_let_parameters_rest(name, nest, rng, same_bits):
    arrays = draw(rng)
    before = copied(arrays)
    optimizer = WRAPPERS[name](nest(*arrays))
    grads = draw(rng)
    for _ in range(2):
        optimizer.step(nest(grads[0], None, grads[2], grads[3], None), strict=False)
    for i in range(5):
        assert (arrays[i] == before[i]).all() == (i in (1, 4))
    optimizer.step(nest(*grads))
    assert not (arrays[1] == before[1]).all()


# ---- Out of place -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"clip_global_norm": 1.0}], ids=str)
def test_an_updated_nest_has_the_bits_of_a_step(any_rule, more, nest, dtype, rng, same_bits):
    if hasattr(any_rule.cls, "look_ahead"):
        pytest.skip("its steps go with look_ahead")
    arrays = draw(rng, dtype)
    others = copied(arrays)
    optimizer, plain = any_rule.cls(nest(*arrays), lr=0.1, **more), any_rule.cls(others, lr=0.1, **more)
    params = optimizer.params
    for step in range(4):
        grads = draw(rng, dtype)
        old, before = leaves(params), copied(leaves(params))
        if step == 2:  # the two may be mixed
            optimizer.step(nest(*grads), grad_scale=0.5)
        else:
            params = optimizer.updated(params, nest(*grads), grad_scale=0.5)
            all_same(same_bits, old, before)
            assert not any(np.shares_memory(a, b) for a in leaves(params) for b in old)
            assert isinstance(params, (type(nest(*grads)), dict))
        plain.step(grads, grad_scale=0.5)
        all_same(same_bits, leaves(params), others)
        assert optimizer.params is params
    assert optimizer.t == 4
    for one, other in zip(optimizer.state.values(), plain.state.values(), strict=True):
        all_same(same_bits, one.values(), other.values())


@pytest.mark.parametrize("name", WRAPPERS)
def test_so_do_those_made_of_others(name, nest, rng, same_bits):
    arrays = draw(rng)
    others = copied(arrays)
    optimizer, plain = WRAPPERS[name](nest(*arrays)), WRAPPERS[name](others)
    params = nest(*arrays)
    for absent in (None, None, 1, None):
        grads = draw(rng)
        if absent is not None:
            grads[absent] = None
        old, before = leaves(params), copied(leaves(params))
        params = optimizer.updated(params, nest(*grads), strict=absent is None)
        all_same(same_bits, old, before)
        plain.step(grads, strict=absent is None)
        all_same(same_bits, leaves(params), others)
    assert optimizer.params is params
    if hasattr(plain, "slow"):
        all_same(same_bits, leaves(optimizer.slow), plain.slow)


def test_an_update_may_begin_anywhere(rng, same_bits):
    w = rng.standard_normal(4)
    optimizer = fastopt.SGD(w, lr=0.5)
    start = np.asfortranarray(rng.standard_normal((4, 2)))[:, 0]
    start.flags.writeable = False
    same_bits(optimizer.updated(start, np.ones(4)), start - 0.5)
    same_bits(optimizer.updated(w, np.ones(4), grad_scale=2.0), w - 1.0)


@pytest.mark.parametrize("make", [fastopt.Adam, fastopt.Muon, fastopt.Ranger])
def test_updates_that_are_refused(make, refuses):
    params = {"l1": {"w": np.ones((2, 3))}, "b": np.ones(2)}
    good = checks.structured(params, copied(leaves(params)))
    optimizer = make(params)
    held = [*leaves(params), *(a for state in optimizer.state.values() for a in state.values())]
    refuses(lambda: optimizer.updated({"b": np.ones(2)}, good), r"params must have the keys \['l1', 'b'\]", *held)
    refuses(lambda: optimizer.updated(good | {"b": np.ones(3)}, good), r"params\[b\] must have shape", *held)
    refuses(lambda: optimizer.updated(good | {"b": [1.0, 2.0]}, good), r"params\[b\] must", *held)
    refuses(lambda: optimizer.updated(params, good | {"b": np.ones(3)}), r"grads\[b\] must have shape \(2,\)", *held)
    refuses(lambda: optimizer.updated(params, good, grad_scale="2"), "grad_scale must be a number", *held)
    assert optimizer.params is params
    assert optimizer.t == 0


def test_an_update_that_is_skipped():
    params = {"l1": {"w": np.ones((2, 3))}, "b": np.ones(2)}
    good = checks.structured(params, copied(leaves(params)))
    skipping = fastopt.Adam(params, skip_nonfinite=True)
    new = skipping.updated(params, good | {"b": np.array([np.nan, 0])})
    assert (skipping.t, skipping.skipped) == (0, 1)
    assert all((a == b).all() and a is not b for a, b in zip(leaves(new), leaves(params), strict=True))


def test_every_optimizer_is_among_these():
    assert {"Adam", "NAdam", "Momentum", "LAMB", "ScheduleFreeSGD"} <= {cls.__name__ for cls in OPTIMIZERS.values()}
