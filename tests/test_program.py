"""`_kernels.Program` by itself: what it does with batches, and what it refuses."""

import threading

import numpy as np
import pytest

import fastopt
from fastopt import _kernels
from fastopt import functional as F  # noqa: N812
from fastopt.schedules import Schedule, exponential


def gathering(rows=2, width=3, source=None, dtype=np.float32):
    """A program that copies the rows of a batch to its output."""
    program = _kernels.Program()
    x = np.zeros((rows, width), dtype)
    program.gather(x)
    program.copy(np.zeros_like(x), x)
    if source is not None:
        program.feed(0, source)
    return program, x


def run_all(program, source, rows, order=None):
    batches = (len(source) if order is None else len(order)) // rows
    out = np.full((batches * rows, *source.shape[1:]), -1, np.float32)
    program.feed(0, source)
    program.aim(1, out)
    assert program.run(order, rows, batches)[:2] == (batches, -1)
    return out


KINDS = [
    *("uint8", "bool", "int32", "int64", "float32", "float64"),
    *("int8", "int16", "uint16", "uint32", "uint64", "float16"),
]

# ---- What it does -------------------------------------------------------------------------------------------


def numbers_of(kind, target):
    """Numbers of a type, those at its edges among them, that NumPy converts to another: all of an integer type of at
    most two bytes, and of float16."""
    kind = np.dtype(kind)
    if kind.itemsize <= 2:
        every = np.arange(2 ** (8 * kind.itemsize), dtype=f"u{kind.itemsize}").view(kind)
        every = every[np.isfinite(every)] if target == np.int64 else every
        return every[:2] if kind.kind == "b" else every
    rng = np.random.default_rng(0)
    if kind.kind in "iu":
        edge = np.iinfo(kind)
        near = [edge.min, edge.max, edge.max - 1, edge.max // 2, 2**24 - 1, 2**24 + 1, 2**24 + 3, 0, 1]
        more = [2**53 + 1, 2**53 + 3, 2**40 + 1, 2**62 - 1, 2**63 - 513] if kind.itemsize == 8 else []
        return np.array([*near, *more, *rng.integers(edge.min, edge.max, 99, kind)], kind)
    real = np.finfo(kind)
    near = [real.max, real.min, real.tiny, real.eps, 0.0, -0.0, 1 + 2**-24, 0.1, 16777217.0]
    wild = [] if target == np.int64 else [np.inf, -np.inf, np.nan]
    whole = rng.normal(size=99) * 1e6
    return np.array([*near, *wild, *whole], kind) if target != np.int64 else whole.astype(kind)


@pytest.mark.parametrize("order", ["native", "swapped", "misaligned"])
@pytest.mark.parametrize("target", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("kind", KINDS)
def test_edges_become_what_numpy_makes_of_them(kind, target, order):
    source = numbers_of(kind, target)[None]
    with np.errstate(all="ignore"):
        expected = source.astype(target)
    if order == "swapped":
        source = source.astype(source.dtype.newbyteorder())
    elif order == "misaligned":
        whole = np.zeros(source.nbytes + 1, np.uint8)
        whole[1:] = source.view(np.uint8).ravel()
        source = whole[1:].view(source.dtype)[None]
    program, x = gathering(1, source.shape[1], source, target)
    assert program.run(None, 1, 1, end=1)[:2] == (1, -1)
    np.testing.assert_array_equal(x, expected, strict=True)
    np.testing.assert_array_equal(np.signbit(x), np.signbit(expected))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [np.float32, np.float64, np.int64])
def test_rows_become_what_numpy_makes_of_them(kind, target, rng):
    source = (100 * rng.random(size=(6, 3))).astype(np.int64).astype(kind)
    if kind in ("int64", "float64") and target != np.int64:
        source = source + np.asarray(2**40 + 1, kind)  # which float32 rounds
    program, x = gathering(source=source, dtype=target)
    for batch, order in enumerate((None, np.array([5, 0, 0, 3, 2, 1]))):
        chosen = source if order is None else source[order]
        for i in range(3):
            assert program.run(order, 2, 1, first_batch=i)[:2] == (1, -1)
            np.testing.assert_array_equal(x, chosen[2 * i : 2 * i + 2].astype(target), strict=True)
        assert batch < 2


def test_rows_are_read_where_they_lie(rng):
    base = rng.normal(size=(12, 6)).astype(np.float32)
    program, _ = gathering(3, 3)
    for source in (base[:, :3], base[::2, 1:4], base[::-1, :3], np.broadcast_to(base[0, :3], (12, 3)), base[3:6, 3:]):
        np.testing.assert_array_equal(run_all(program, source, 3), source)


def test_orders(rng):
    source = rng.normal(size=(9, 3)).astype(np.float32)
    order = rng.permutation(9)[:8]
    program, _ = gathering()
    np.testing.assert_array_equal(run_all(program, source, 2, order), source[order])


def test_each_batch_has_its_counter_and_its_place(rng):
    """A counter is that of the pass, as called one by one; results move on by batches."""
    x = rng.normal(size=128).astype(np.float32)
    program, y, totals = _kernels.Program(), np.empty_like(x), np.zeros((5, 1), np.int64)
    mask = np.empty(16, np.uint8)
    program.call(F.dropout, (x, 0.5), {"seed": 3, "counter": 7, "out": y, "mask": mask}, 11)
    labels = np.array([1, 0, 1], np.int64)
    outputs = np.eye(2, dtype=np.float32)[[1, 1, 1]]
    program.call(F.count_right, (outputs, labels, totals[0]), {}, moving=totals[0], stride=totals.strides[0])
    for batch in range(5):
        assert program.run(None, 0, 1, 2 + batch, first_batch=batch)[:2] == (1, -1)
        np.testing.assert_array_equal(y, F.dropout(x, 0.5, seed=3, counter=7 + 11 * (2 + batch))[0])
        assert totals.ravel().tolist() == [2] * (batch + 1) + [0] * (4 - batch)
    totals[...] = 0
    assert program.run(None, 0, 5, 2)[:2] == (5, -1)
    np.testing.assert_array_equal(y, F.dropout(x, 0.5, seed=3, counter=7 + 11 * 6)[0])
    assert totals.ravel().tolist() == [2] * 5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_it_stops_at_the_first_batch_that_is_not_finite(bad, dtype):
    source = np.ones((8, 3), dtype)
    source[5, 1] = bad
    program, x = gathering(dtype=dtype)
    program.finite(x)
    out = np.zeros_like(source)
    program.feed(0, source)
    program.aim(1, out)
    assert program.run(None, 2, 4)[:2] == (2, 2)
    np.testing.assert_array_equal(out[6:], 0)
    source[5, 1] = np.finfo(dtype).max
    assert program.run(None, 2, 4)[:2] == (4, -1)


def test_it_stops_where_an_integer_is_not_zero():
    program, flag = _kernels.Program(), np.zeros(1, np.int64)
    program.zero(flag)
    assert program.run(None, 0, 3)[:2] == (3, -1)
    flag[0] = -5
    assert program.run(None, 0, 3)[:2] == (0, 0)


def stepping():
    params = {"w": np.zeros(3, np.float32)}
    optimizer = fastopt.SGD(params, lr=0.5)
    program, grads = _kernels.Program(), {"w": np.ones(3, np.float32)}
    program.step()
    return program, optimizer, grads


def test_steps_count_and_follow_their_values():
    program, optimizer, grads = stepping()
    assert program.run(None, 0, 4, plan=optimizer._plan, grads=grads)[:2] == (4, -1)
    assert optimizer.t == 4
    np.testing.assert_array_equal(optimizer.params["w"], -2)
    halving = Schedule(exponential, peak=2.0, gamma=0.5)
    upcoming = fastopt.SGD(optimizer.params, lr=halving).upcoming(3)
    assert program.run(None, 0, 3, grads=grads, **upcoming.options)[:2] == (3, -1)
    np.testing.assert_array_equal(optimizer.params["w"], -2 - 3.5)


def summing(x, total, source):
    """A program that adds up the rows of a step, and takes the step along their sum."""
    program = _kernels.Program()
    program.gather(x)
    program.copy(total, x)
    program.only(1, "first")
    program.call(F.add, (total, x), {"out": total})
    program.only(2, "later")
    program.step()
    program.only(3, "last")
    program.feed(0, source)
    return program


@pytest.mark.parametrize(
    ("every", "before", "after"), [(1, 0, 0), (2, 0, 0), (3, 0, 0), (3, 2, 0), (3, 1, 4), (9, 0, 0)]
)
def test_items_for_some_batches_of_a_step(every, before, after, dtype):
    """Sums begin with the first batch of a step, go on with later ones, and are written where it ends."""
    source = np.arange(1.0, 8.0, dtype=dtype)[:, None]
    x, total = np.zeros((1, 1), dtype), np.zeros((1, 1), dtype)
    params, sums, program = {"w": np.zeros((1, 1), dtype)}, {"w": total}, summing(x, total, source)
    optimizer, expected, own, steps = fastopt.SGD(params, lr=1.0), 0.0, 0.0, 0
    for i, value in enumerate(source.ravel()):
        own = value if (before + i) % every == 0 else own + value
        if (before + i + 1) % every == 0 or (i == 6 and not after):
            expected, steps = expected - own, steps + 1
    if before:
        total[...] = 0
    run = {"plan": optimizer._plan, "grads": sums, "part": (before, every, after)}
    assert program.run(None, 1, 7, **run)[:2] == (7, -1)
    assert (optimizer.t, params["w"].item()) == (steps, expected)


def test_steps_over_several_programs(dtype):
    """Batches of a round are counted over all of its legs, and those of the next round anew."""
    x, total = np.zeros((1, 1), dtype), np.zeros((1, 1), dtype)
    source, legs = np.arange(1.0, 13.0, dtype=dtype)[:, None], []
    for rows, batches in (([0, 1, 2, 6, 7, 8], 3), ([3, 4, 9, 10], 2), ([5, 11], 1)):
        legs.append((summing(x, total, source), np.array(rows), 1, batches))
    for every, totals in ((1, source.ravel()), (2, [3, 7, 11, 15, 19, 23]), (4, [10, 11, 34, 23]), (6, [21, 57])):
        params, taken = {"w": np.zeros((1, 1), dtype)}, Schedule(exponential, peak=1.0, gamma=0.5)
        optimizer = fastopt.SGD(params, lr=taken)
        upcoming = optimizer.upcoming(len(totals))
        ran = _kernels.run_rounds(legs, 2, 0, every=every, grads={"w": total}, **upcoming.options)
        assert ran[0] == 2
        assert optimizer.t == len(totals)
        assert params["w"].item() == pytest.approx(-sum(0.5**i * one for i, one in enumerate(totals)), rel=1e-6)


def test_arrays_are_scaled_by_the_number_of_the_batch(dtype):
    source, factors = np.ones((4, 3), dtype), np.array([0.1, -2.0, 0.0, 1.0])
    program, x = gathering(1, source=source, dtype=dtype)
    program.aim(1, np.zeros_like(source))
    program.scale(x, factors)
    for i, factor in enumerate(factors):
        assert program.run(None, 1, 1, first_batch=i)[:2] == (1, -1)
        np.testing.assert_array_equal(x, np.full((1, 3), factor, dtype), strict=True)
    with pytest.raises(ValueError, match="room"):
        program.run(None, 1, 1, first_batch=4)


def test_seconds_add_up_by_name_and_change_no_bit(rng):
    source = rng.normal(size=(8, 3)).astype(np.float32)
    program, x = gathering(source=source)
    program.call(F.relu_forward, (x,), {"out": x})
    out, again, seconds = np.zeros_like(source), np.zeros_like(source), {}
    for target, more in ((out, {}), (again, {"seconds": seconds})):
        program.aim(1, target)
        assert program.run(None, 2, 4, **more)[:2] == (4, -1)
    np.testing.assert_array_equal(out, again)
    assert seconds.keys() == {"gather", "copy", "relu_forward"}
    assert min(seconds.values()) >= 0


def test_the_list():
    program, x = gathering()
    y = np.empty_like(x)
    assert program.call(F.relu_forward, (x,), {"out": y}) is y
    names, reads, writes = zip(*program.list(), strict=True)
    assert names == ("gather", "copy", "relu_forward")
    assert reads[2][0] is x
    assert writes[2][0] is y
    assert len(program) == 3


# ---- What it refuses ----------------------------------------------------------------------------------------


@pytest.fixture
def fed(rng):
    source = rng.normal(size=(8, 3)).astype(np.float32)
    program, x = gathering(source=source)
    program.aim(1, np.zeros((8, 3), np.float32))
    before = x.copy()
    yield program
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    "order",
    [
        np.array([0, 8]),
        np.array([-1, 0]),
        np.array([2**62, 0]),
        np.array([0]),
        np.array([0, 1], np.int32),
        np.array([0, 1], np.uint64),
        np.array([0.0, 1.0]),
        np.arange(4)[::2],
        np.array([0, 1], ">i8"),
        [0, 1],
    ],
    ids=repr,
)
def test_orders_that_are_none(fed, order):
    with pytest.raises(_kernels.Misfit):
        fed.run(order, 2, 1)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((None, 2, 5), {}),
        ((None, 2, 1), {"first_batch": 4}),
        ((None, 3, 1), {}),
        ((None, 1, 1), {}),
        ((None, -2, 1), {}),
        ((None, 2, -1), {}),
        ((None, 2, 1), {"first_batch": -1}),
        ((None, 2, 2**62), {}),
        ((None, 2, 1), {"first_batch": 2**62}),
        ((None, 2, 1), {"begin": -1}),
        ((None, 2, 1), {"end": 3}),
        ((None, 2, 1), {"begin": 2, "end": 1}),
        ((None, 2, 1), {"part": (0, 0, 0)}),
        ((None, 2, 1), {"part": (-1, 1, 0)}),
        ((None, 2, 1), {"part": (0, 2, -1)}),
        ((None, 2, 1), {"part": (2**63 - 1, 2, 0)}),
    ],
    ids=repr,
)
def test_runs_that_are_none(fed, arguments, options):
    with pytest.raises((_kernels.Misfit, ValueError)):
        fed.run(*arguments, **options)


@pytest.mark.parametrize(
    "source",
    [
        np.ones((4, 2), np.float32),
        np.ones((4, 3, 1), np.float32),
        np.ones(4, np.float32),
        np.ones((4, 3), np.longdouble),
        np.ones((4, 3), complex),
        np.ones((4, 6), np.float32)[:, ::2],
        np.ones((3, 4), np.float32).T,
        np.full((4, 3), "1"),
        np.ma.ones((4, 3), np.float32),
        [[1.0, 2.0, 3.0]],
        None,
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}-{getattr(value, 'shape', '')}",
)
def test_feeds_that_are_none(source):
    program, _ = gathering()
    with pytest.raises(_kernels.Misfit):
        program.feed(0, source)


def test_items_that_are_others():
    program, x = gathering()
    for place in (-1, 1, 2):
        with pytest.raises(ValueError, match=f"item {place} must gather rows"):
            program.feed(place, x)
    for place in (-1, 0, 2):
        with pytest.raises(ValueError, match=f"item {place} must copy"):
            program.aim(place, x)
    with pytest.raises(ValueError, match="item 0 must be fed"):
        program.run(None, 2, 1)
    assert program.run(None, 2, 1, begin=1)[:2] == (1, -1)


def test_items_that_are_none():
    program, x = gathering()
    read_only = np.zeros((2, 3), np.float32)
    read_only.flags.writeable = False
    for make in (
        lambda: program.gather(read_only),
        lambda: program.gather(np.zeros((2, 6), np.float32)[:, ::2]),
        lambda: program.copy(np.zeros(5, np.float32), x),
        lambda: program.copy(read_only, x),
        lambda: program.finite(np.zeros(3, np.int64)),
        lambda: program.finite(x, 7),
        lambda: program.finite(x, -1),
        lambda: program.finite(x, stride=-4),
        lambda: program.zero(np.zeros(1, np.float64)),
        lambda: program.zero(np.zeros(2, np.int64)),
        lambda: program.scale(read_only, np.ones(1)),
        lambda: program.scale(x, np.ones(1, np.float32)),
        lambda: program.scale(x, np.ones(0)),
        lambda: program.call(lambda: 1, (), {}),
        lambda: program.call(F.relu_forward, ([1.0],), {}),
    ):
        with pytest.raises((TypeError, ValueError)):
            make()
    assert len(program) == len(program.list()) == 2


def test_a_call_that_fails_leaves_no_part_of_it():
    program, x = gathering()

    def half(x):
        F.relu_forward(x)
        raise KeyError(x.shape)

    with pytest.raises(KeyError):
        program.call(half, (x,), {})
    assert [name for name, *_ in program.list()] == ["gather", "copy"]
    y = F.relu_forward(x - 1)  # is not recorded
    assert len(program) == 2
    np.testing.assert_array_equal(y, 0)


def test_results_have_room_for_so_many_batches():
    for add in (
        lambda program, rows: program.finite(rows[0], stride=rows.strides[0]),
        lambda program, rows: program.call(
            F.relu_forward, (np.ones(2, np.float32),), {"out": rows[0]}, moving=rows[0], stride=rows.strides[0]
        ),
    ):
        program = _kernels.Program()
        add(program, np.zeros((3, 2), np.float32))
        assert program.run(None, 0, 3)[:2] == (3, -1)
        assert program.run(None, 0, 1, first_batch=2)[:2] == (1, -1)
        for batches, first in ((4, 0), (1, 3), (3, 1)):
            with pytest.raises(ValueError, match="room"):
                program.run(None, 0, batches, first_batch=first)


def test_no_room_for_outputs():
    program, _ = gathering(source=np.ones((8, 3), np.float32))
    program.aim(1, np.zeros((4, 3), np.float32))
    with pytest.raises(_kernels.Misfit, match="room"):
        program.run(None, 2, 3)


def test_steps_without_a_plan():
    program, _, grads = stepping()
    with pytest.raises(ValueError, match="a program with a step must be given a plan"):
        program.run(None, 0, 1)
    with pytest.raises(ValueError, match="a program with a step must be given a plan"):
        program.run(None, 0, 1, grads=grads)


def test_gradients_that_are_none():
    program, optimizer, grads = stepping()
    for wrong in ({}, {"w": np.ones(4, np.float32)}, {"w": np.ones(3)}, {"v": grads["w"]}, optimizer.params):
        with pytest.raises((TypeError, ValueError)):
            program.run(None, 0, 1, plan=optimizer._plan, grads=wrong)
    assert optimizer.t == 0
    np.testing.assert_array_equal(optimizer.params["w"], 0)


@pytest.mark.parametrize(
    ("places", "values"),
    [
        ([(2, 0)], np.ones(1)),
        ([(2, 0)], np.ones(2, np.float32)),
        ([(2, 0), (2, 0)], np.ones((2, 1))),
        ([(2, 1)], np.ones(2)),
        ([(99, 0)], np.ones(2)),
        ([(-1, 0)], np.ones(2)),
        ([(2, -1)], np.ones(2)),
    ],
    ids=repr,
)
def test_hyperparameters_that_are_none(places, values):
    program, optimizer, grads = stepping()
    with pytest.raises((TypeError, ValueError, IndexError)):
        program.run(None, 0, 2, plan=optimizer._plan, grads=grads, places=places, values=values)
    assert optimizer.t == 0
    np.testing.assert_array_equal(optimizer.params["w"], 0)


def test_the_last_step():
    program, optimizer, grads = stepping()
    optimizer.load_state_dict(optimizer.state_dict() | {"t": 2**53 - 2})
    for batches in (3, 10**6):
        with pytest.raises(ValueError, match=r"t must be below 2\*\*53 before a step"):
            program.run(None, 0, batches, plan=optimizer._plan, grads=grads)
    assert optimizer.t == 2**53 - 2
    assert program.run(None, 0, 2, plan=optimizer._plan, grads=grads)[:2] == (2, -1)
    assert optimizer.t == 2**53
    with pytest.raises(ValueError, match=r"2\*\*53"):
        program.run(None, 0, 1, plan=optimizer._plan, grads=grads)


def test_passes_wrap_around():
    x = np.linspace(-1, 1, 128, dtype=np.float32)
    program, y = _kernels.Program(), np.empty_like(x)
    program.call(F.dropout, (x, 0.5), {"seed": 0, "counter": 1, "out": y, "mask": np.empty(16, np.uint8)}, 3)
    program.run(None, 0, 1, 2**64 - 1)
    np.testing.assert_array_equal(y, F.dropout(x, 0.5, seed=0, counter=2**64 - 2)[0])


def test_one_run_at_once():
    """While one thread runs it without the lock, another is refused: the run ends when what it looks at changes."""
    source = np.zeros((2, 1 << 20), np.float32)
    program, x = gathering(1, 1 << 20, source)
    wait = np.zeros(1, np.int64)
    program.zero(wait)
    order, refused, ended = np.zeros(1 << 20, np.int64), [], []

    def run():
        ended.append(program.run(order, 1, len(order)))

    thread = threading.Thread(target=run)
    thread.start()
    tries = (
        lambda: program.run(None, 1, 1),
        lambda: program.feed(0, source),
        lambda: program.aim(1, x),
        lambda: program.gather(x),
        lambda: program.call(F.relu_forward, (x,), {}),
    )
    while thread.is_alive() and not refused:
        try:
            program.run(None, 1, 0)
        except RuntimeError:
            for attempt in tries:
                with pytest.raises(RuntimeError, match="twice at once"):
                    attempt()
                refused.append(attempt)
            wait[0] = 1
    thread.join()
    assert len(refused) == len(tries)
    assert ended[0][1] == 2  # stopped by the flag
    assert len(program) == 3
    wait[0] = 0
    assert program.run(None, 1, 2)[:2] == (2, -1)


# ---- Several programs in rounds -----------------------------------------------------------------------------


def test_rounds_are_programs_one_after_the_other(rng):
    """Each takes its batches of its own order, and has the passes of the model and the steps that it has by itself."""
    source = rng.normal(size=(9, 128)).astype(np.float32)
    long, short = rng.permutation(np.tile(np.arange(9), 2))[:12], rng.integers(9, size=3)
    params = {"w": np.zeros(128, np.float32)}
    optimizer = fastopt.SGD(params, lr=Schedule(exponential, peak=1.0, gamma=0.5))
    grads, outs, programs = {"w": np.ones(128, np.float32)}, [], []
    for rows, count in ((2, 6), (1, 3)):
        program, x = gathering(rows, 128, source)
        y = np.empty_like(x)
        program.call(F.dropout, (x, 0.5), {"seed": 3, "counter": 0, "out": y, "mask": np.empty(16 * rows, np.uint8)}, 1)
        program.copy(np.zeros_like(y), y)
        program.step()
        outs.append(np.zeros((2, count * rows, 128), np.float32))
        program.aim(1, outs[-1][0])
        program.aim(3, outs[-1][1])
        programs.append(program)
    check = _kernels.Program()
    check.finite(params["w"])
    legs = [(programs[0], long, 2, 2), (programs[1], short, 1, 1), (check, None, 0, 1)]
    upcoming = optimizer.upcoming(9)
    assert _kernels.run_rounds(legs, 3, 7, grads=grads, **upcoming.options)[:1] == (3,)
    assert optimizer.t == 9
    np.testing.assert_allclose(params["w"], -sum(0.5**t for t in range(9)), rtol=1e-6)
    for k, (order, rows, each) in enumerate(((long, 2, 2), (short, 1, 1))):
        np.testing.assert_array_equal(outs[k][0], source[order])
        for batch in range(len(order) // rows):
            chosen = slice(batch * rows, (batch + 1) * rows)
            counter = 7 + 3 * (batch // each) + 2 * k + batch % each
            wanted = F.dropout(source[order[chosen]], 0.5, seed=3, counter=counter)[0]
            np.testing.assert_array_equal(outs[k][1][chosen], wanted)


def test_rounds_stop_where_an_item_does():
    flags = [np.zeros(1, np.int64) for _ in range(2)]
    program, optimizer, grads = stepping()
    stops = [_kernels.Program() for _ in flags]
    for stop, flag in zip(stops, flags, strict=True):
        stop.zero(flag)
    legs = [(stops[0], None, 0, 1), (program, None, 0, 2), (stops[1], None, 0, 1)]
    given = {"plan": optimizer._plan, "grads": grads}
    assert _kernels.run_rounds(legs, 2, 0, **given)[0] == 2
    assert optimizer.t == 4
    flags[1][0] = 1
    assert _kernels.run_rounds(legs, 2, 0, **given)[:4] == (0, 2, 0, 0)
    assert optimizer.t == 6
    flags[0][0] = 1
    assert _kernels.run_rounds(legs, 2, 0, **given)[:4] == (0, 0, 0, 0)
    assert optimizer.t == 6
    assert _kernels.run_rounds(legs, 0, 0, **given)[0] == 0
    source = np.array([[1], [2], [np.inf], [3]], np.float32)
    rows, x = gathering(1, 1, source)
    rows.finite(x)
    order = np.array([0, 1, 3, 0, 1, 0, 1, 2], np.int64)
    assert _kernels.run_rounds([(rows, order, 1, 4)], 2, 0, plan=None, grads=None)[:4] == (1, 0, 3, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"legs": []}, "1 to 4 legs"),
        ({"copies": 4}, "1 to 4 legs"),
        ({"copies": 1}, "twice at once"),
        ({"rounds": -1}, "rounds"),
        ({"batches": -1}, "rounds and batches"),
        ({"rounds": 2**62, "batches": 4}, "rounds and batches"),
        ({"rounds": 3}, "order must hold an int64 for each row"),
        ({"order": np.array([0, 1, 2, 4])}, "order must hold the numbers of rows"),
        ({"rows": 1}, "a batch must have the 2 rows"),
        ({"plan": None}, "must be given a plan"),
        ({"grads": {}}, "grads"),
        ({"places": [(2, 0)], "values": np.ones(1)}, "one for each place and step"),
    ],
    ids=str,
)
def test_rounds_that_are_none(change, message):
    """Nothing has been done, and all can run again."""
    params, grads = {"w": np.zeros(3, np.float32)}, {"w": np.ones(3, np.float32)}
    optimizer = fastopt.SGD(params, lr=0.5)
    program, _ = gathering(2, 3, np.ones((4, 3), np.float32))
    program.step()
    given = {"order": np.arange(4), "rows": 2, "batches": 1, "rounds": 2, "plan": optimizer._plan, "grads": grads}
    now = given | change
    leg = program, now["order"], now["rows"], now["batches"]
    legs = now.get("legs", [leg] * (1 + now.get("copies", 0)))
    options = {key: now[key] for key in ("plan", "grads", "places", "values") if key in now}
    with pytest.raises((_kernels.Misfit, ValueError, RuntimeError, TypeError), match=message):
        _kernels.run_rounds(legs, now["rounds"], 0, **options)
    assert optimizer.t == 0
    assert not params["w"].any()
    assert _kernels.run_rounds([(program, np.arange(4), 2, 1)], 2, 0, plan=optimizer._plan, grads=grads)[0] == 2
    assert optimizer.t == 2
