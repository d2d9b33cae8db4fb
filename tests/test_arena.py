"""Memory at a known place in the cache lines, and models laid out flat in it."""

import numpy as np
import pytest

import fastopt
from fastopt import _kernels, arena
from fastopt.optimizers import OPTIMIZERS

SHAPES = [(3, 4), (), (17,), (0, 5), (16,), (2, 3, 4), (1,), (20_001,), (0,)]
STRUCTURES = {
    "list": lambda arrays: arrays,
    "dict": lambda arrays: {f"w{i}": a for i, a in enumerate(arrays)},
    "dict in another order": lambda arrays: {f"w{i}": arrays[i] for i in reversed(range(len(arrays)))},
    "dict of odd keys": lambda arrays: {(i, "w"): a for i, a in enumerate(arrays)},
}


@pytest.fixture(params=STRUCTURES)
def structure(request):
    return STRUCTURES[request.param]


def model(rng, dtype=np.float64):
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]


def members(structured):
    return list(structured.values()) if isinstance(structured, dict) else list(structured)


def gaps(block, views):
    """Where a block belongs to no view."""
    free = np.ones(block.size, bool)
    for view in views:
        start = (arena.address(view) - arena.address(block)) // block.itemsize
        free[start : start + view.size] = False
    return block[free]


# ---- One array -----------------------------------------------------------------------------------


@pytest.mark.parametrize("past_line", [0, 8, 16, 48, 56])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 0, 2), (30, 40)], ids=str)
def test_an_array_begins_where_it_is_told(shape, past_line, dtype):
    for _ in range(5):
        array = arena.empty(shape, dtype, past_line)
        assert (array.shape, array.dtype) == (shape, dtype)
        assert array.size == 0 or arena.address(array) % arena.LINE == past_line
        assert array.flags.carray
        array.fill(1)


def test_an_array_beside_another(dtype):
    for offset in range(20):
        like = np.zeros(100, dtype)[offset:]
        array = arena.beside(like, 0.5)
        assert (arena.address(array) - arena.address(like)) % arena.LINE == 0
        assert not np.shares_memory(array, like)
        np.testing.assert_array_equal(array, np.full_like(like, 0.5))


# ---- A flat model --------------------------------------------------------------------------------


def test_flat_keeps_structure_and_values(structure, dtype, rng, same_bits):
    params = structure(model(rng, dtype))
    flat = fastopt.flatten(params)
    for structured in (flat.params, flat.grads):
        assert type(structured) is type(params)
        if isinstance(params, dict):
            assert list(structured) == list(params)
    for param, given, grad in zip(*map(members, (flat.params, params, flat.grads)), strict=True):
        same_bits(param, given)
        same_bits(grad, np.zeros_like(given))
        assert not np.shares_memory(param, given)


def test_a_nest_keeps_its_structure(rng, same_bits):
    w, b, *rest = model(rng)
    flat = fastopt.flatten({"layers": [(w, b)], "rest": tuple(rest)})
    for nest in (flat.params, flat.grads):
        assert [type(part) for part in (nest, nest["layers"], nest["layers"][0], nest["rest"])] == [
            dict, list, tuple, tuple,
        ]  # fmt: skip
    same_bits(flat.params["layers"][0][1], b)
    by_list = fastopt.flatten([w, b, *rest])
    same_bits(flat.param, by_list.param)
    flat.grad[:] = 1
    fastopt.SGD(flat.params, lr=0.5).step(flat.grads)
    same_bits(flat.params["rest"][-1], by_list.params[-1] - by_list.param.dtype.type(0.5))


def test_views_begin_at_lines_in_order_and_apart(structure, dtype, rng):
    flat = fastopt.flatten(structure(model(rng, dtype)))
    for block, views in ((flat.param, members(flat.params)), (flat.grad, members(flat.grads))):
        assert (block.dtype, block.ndim, block.flags.carray) == (dtype, 1, True)
        assert arena.address(block) % 64 == 0
        assert block.nbytes % 64 == 0
        end = arena.address(block)
        for view in views:
            assert view.flags.carray
            assert arena.address(view) % 64 == 0
            assert view.size == 0 or arena.address(view) == end  # NumPy puts an empty view anywhere
            end += -(-view.nbytes // 64) * 64
        assert end == arena.address(block) + block.nbytes
    assert flat.param.shape == flat.grad.shape
    assert not np.shares_memory(flat.param, flat.grad)


def test_views_are_the_block(structure, dtype, rng):
    flat = fastopt.flatten(structure(model(rng, dtype)))
    for block, views in ((flat.param, members(flat.params)), (flat.grad, members(flat.grads))):
        for i, view in enumerate(views):
            assert np.shares_memory(view, block) == (view.size > 0)
            view[...] = i + 1
        np.testing.assert_array_equal([(block == i + 1).sum() for i in range(len(views))], [v.size for v in views])
        block[...] = 7
        assert all((view == 7).all() for view in views)


def test_a_norm_over_all_gradients(rng):
    flat, grads = fastopt.flatten(model(rng)), model(rng)
    for view, grad in zip(flat.grads, grads, strict=True):
        view[...] = grad
    np.testing.assert_allclose(np.linalg.norm(flat.grad), np.sqrt(sum(np.square(g).sum() for g in grads)))


def train(optimizer, flat, all_grads, grads_of):
    for grads in all_grads:
        for view, grad in zip(members(flat.grads), grads, strict=True):
            view[...] = grad
        optimizer.step(grads_of(flat))


def test_steps_have_the_same_bits_flat_or_not(any_rule, isa, dtype, rng, same_bits):
    """On the views, on the block, and on the arrays that were flattened; and the gaps stay zero."""
    if any_rule.name == "lamb":
        pytest.skip("its rates go by the norms of arrays")
    params, all_grads = model(rng, dtype), [model(rng, dtype) for _ in range(5)]
    views, block = fastopt.flatten(params), fastopt.flatten(params)
    train(any_rule.make(views.params), views, all_grads, lambda flat: flat.grads)
    train(any_rule.make(block.param), block, all_grads, lambda flat: flat.grad)
    optimizer = any_rule.make(params)
    for grads in all_grads:
        optimizer.step(grads)
    same_bits(block.param, views.param)
    for param, view in zip(params, views.params, strict=True):
        same_bits(view, param)
    for flat in (views, block):
        assert not gaps(flat.param, flat.params).any()
        assert not gaps(flat.grad, flat.grads).any()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gaps_stay_zero_for_long(name, dtype, rng):
    """So that a norm over the block remains one over the model, at the defaults of each optimizer."""
    flat = fastopt.flatten(model(rng, dtype))
    optimizer = OPTIMIZERS[name](flat.param, lr=0.01)
    for _ in range(1000):
        for grad in flat.grads:
            grad[...] = 1
        if hasattr(optimizer, "look_ahead"):
            optimizer.look_ahead()
        optimizer.step(flat.grad)
    assert not gaps(flat.param, flat.params).any()
    assert all(not gaps(a, [a[: flat.param.size]]).any() for a in optimizer.state["param"].values())
    assert np.isfinite(flat.param).all()


def test_a_dict_of_flat_gradients_goes_with_its_parameters(rng, same_bits):
    """Whatever the order, an optimizer pairs them by name."""
    params = STRUCTURES["dict in another order"](model(rng))
    flat = fastopt.flatten(params)
    for grad, param in zip(flat.grads.values(), params.values(), strict=True):
        grad[...] = param
    fastopt.SGD(flat.params, lr=1.0).step(flat.grads)
    assert not flat.param.any()


def test_nothing_to_flatten():
    for empty in ([], {}, ()):
        flat = fastopt.flatten(empty)
        assert len(flat.params) == len(flat.grads) == 0
        assert flat.param.shape == flat.grad.shape == (0,)
        optimizer = fastopt.Adam(flat.params)
        optimizer.step(flat.grads)
        assert optimizer.t == 1


def test_empty_arrays_alone(dtype):
    flat = fastopt.flatten([np.empty((0, 3), dtype), np.empty(0, dtype)])
    assert [param.shape for param in flat.params] == [(0, 3), (0,)]
    assert (flat.param.shape, flat.param.dtype) == ((0,), dtype)


def test_read_only_arrays_are_copied(rng):
    param = rng.standard_normal(5)
    param.flags.writeable = False
    flat = fastopt.flatten([param])
    flat.params[0][...] = 0
    assert param.any()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (np.ones(3), "params must be a list or a dict of arrays, got ndarray: one array is flat already"),
        (None, "param must be an array, or a list or a dict of arrays, got NoneType"),
        ("w", "param must be an array, or a list or a dict of arrays, got str"),
        ([[1.0]], r"params\[0\] must be a NumPy array, got list"),
        ([np.ones(3), np.ones(3, int)], r"params\[1\] must be float64, got int"),
        ([np.ones(3), np.ones(3, np.float32)], r"params\[1\] must be float64, got float32"),
        ({"w": np.ones(3, np.float32), "b": np.ones(3)}, r"params\[b\] must be float32, got float64"),
        ([np.ones(3, np.float16)], r"params\[0\] must be float32 or float64, got float16"),
        ([np.ones((2, 3)).T], r"params\[0\] must be C-contiguous"),
        ({"w": np.ones(3), "b": np.ones(6)[::2]}, r"params\[b\] must be C-contiguous"),
        ([np.ones(3).astype(">f8")], r"params\[0\] must be in native byte order"),
        ([np.ma.masked_array(np.ones(3), [1, 0, 0])], r"params\[0\] must be a plain array, got a masked one"),
        ({1: np.ones(3), "1": np.ones(3)}, "param must have keys that differ as text"),
    ],
)
def test_what_cannot_be_flattened(params, message, refuses):
    refuses(lambda: fastopt.flatten(params), message)


@pytest.mark.parametrize("offset", [0, 4, 16])
def test_the_state_of_a_model_lies_in_one_block_as_its_parameters_lie(offset):
    params = [arena.empty((n,), np.float32, offset) for n in (5, 1000, 0, 33)]
    for param in params:
        param.fill(1)
    optimizer = fastopt.Adam(params)
    for key in ("m", "v"):
        states = [optimizer.state[str(i)][key] for i in range(len(params))]
        places = [_kernels.address(state) for state in states if state.size]
        assert [place % 64 for place in places] == [offset] * 3
        assert places == sorted(places)
        assert places[-1] - places[0] < 4 * (5 + 1000) + 4 * 64
        assert not any(state.any() for state in states)
