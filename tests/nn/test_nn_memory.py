"""Where results lie: new arrays, or the same ones in each step."""

import itertools
import tracemalloc

import numpy as np
import pytest

from fastopt import nn
from fastopt.nn.memory import FRESH, Workspace


def test_fresh_arrays_are_new_and_aligned():
    first, second = (FRESH.array("y", (3, 5), np.float32) for _ in range(2))
    assert not np.shares_memory(first, second)
    assert FRESH.child("0") is FRESH
    for array in (first, FRESH.grad("w", first)):
        assert array.shape == (3, 5)
        assert array.dtype == np.float32
        assert array.__array_interface__["data"][0] % 64 == 0


def test_a_workspace_has_an_array_for_each_name_shape_and_type():
    memory = Workspace()
    arrays = [
        space.array(name, shape, dtype)
        for space in (memory, memory.child("0"), memory.child("0").child("0"))
        for name in ("x", "y")
        for shape in ((2, 3), (3, 2))
        for dtype in (np.float32, np.float64)
    ]
    for i, array in enumerate(arrays):
        assert array.__array_interface__["data"][0] % 64 == 0
        assert not any(np.shares_memory(array, other) for other in arrays[:i])
    assert memory.child("0").array("x", (2, 3), np.float32) is arrays[8]
    assert memory.array("x", (2, 3), np.float32) is arrays[0]


def test_gradients_of_parts_are_those_of_the_whole():
    params = {"0.0.w": np.ones(3), "0.b": np.ones(2), "w": np.ones(4)}
    memory = Workspace(params)
    assert memory.grad("w", params["w"]) is params["w"]
    assert memory.child("0").grad("b", params["0.b"]) is params["0.b"]
    assert memory.child("0").child("0").grad("w", params["0.0.w"]) is params["0.0.w"]
    own = memory.child("1").grad("w", params["w"])
    assert own is memory.child("1").grad("w", params["w"]) is not params["w"]


def test_what_stages_hand_on_lies_in_two_blocks_by_turns():
    memory = Workspace()
    first, second = memory.stage("0"), memory.stage("1")
    arrays = [
        stage.array(name, (size, 2), np.float32)
        for size in (4, 4, 9, 3)
        for stage in (first, second)
        for name in ("dproduct", "dx")
    ]
    for one, following in itertools.pairwise(arrays):
        assert not np.shares_memory(one, following)
        assert following.__array_interface__["data"][0] % 64 == 0
    latest = arrays[-8:]  # since the blocks grew
    assert all(np.shares_memory(one, other) for one, other in zip(latest, latest[2:], strict=False))
    assert memory.child("0") is first
    others = [memory.array("dx", (9, 2), np.float32), first.array("y", (9, 2), np.float32)]
    others += [first.child("0").array("dx", (9, 2), np.float32), first.stage("1").array("dx", (9, 2), np.float32)]
    assert not any(np.shares_memory(one, other) for one, other in itertools.combinations([*others, arrays[-1]], 2))


def test_inference_needs_memory_for_two_outputs_alone(rng):
    """Not for those of all layers."""
    model = nn.Sequential([nn.Conv2D(16, activation="relu"), nn.BatchNorm()] * 8, (16, 16, 16))
    x = rng.normal(size=(32, 16, 16, 16)).astype(np.float32)
    model.predict(x)
    tracemalloc.start()
    try:
        model.predict(x)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * x.nbytes


class Peaks(nn.Callback):
    """How far above its beginning each step's memory rises."""

    def on_train_begin(self, run):
        self.peaks = []

    def on_batch_begin(self, batch):
        tracemalloc.reset_peak()
        self.before = tracemalloc.get_traced_memory()[0]

    def on_batch_end(self, batch, logs):
        self.peaks.append(tracemalloc.get_traced_memory()[1] - self.before)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Dense(64), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.3), nn.Dense(32), nn.ReLU(), nn.Dense(5)],
         (50,)),
        ([nn.Conv2D(16), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(), nn.Conv2D(32), nn.ReLU(), nn.Conv2D(16),
          nn.Conv2D(5, stride=2), nn.Flatten(), nn.Dense(20), nn.ReLU(), nn.Dropout(0.5), nn.Dense(5)], (8, 8, 1)),
    ],
    ids=["mlp", "cnn"],
)  # fmt: skip
def test_steps_allocate_no_arrays(layers, shape, rng):
    """In the steady state all that is made are small objects, though each array of the batch has 8 KB or more."""
    model = nn.Sequential(layers, shape)
    x, y = rng.normal(size=(64 * 5 + 7, *shape)), rng.integers(5, size=64 * 5 + 7)
    watch = Peaks()
    tracemalloc.start()
    try:
        model.fit(x, y, epochs=3, batch_size=64, callbacks=[watch])
    finally:
        tracemalloc.stop()
    first, *others = np.split(np.array(watch.peaks), 3)
    assert first.max() > 100_000
    # What is made once, such as an entry of a memo, may come late: in two of these twelve steps at most.
    assert np.count_nonzero(np.concatenate(others) >= 6_000) <= 2


class Asks(nn.Layer):
    """A layer that asks for an array of its own twice in a pass, by one name."""

    def __init__(self, second="dx"):
        super().__init__()
        self.second = second

    def forward(self, x, *, training=False, counter=0, memory=nn.FRESH):
        y = memory.array("y", x.shape, x.dtype)
        np.multiply(x, 3, out=y)
        return memory.array("y", x.shape, x.dtype) if memory is not nn.FRESH else y, None

    def backward(self, dy, cache, *, memory=nn.FRESH):
        dx = memory.array("dx", dy.shape, dy.dtype)
        dx.fill(0)
        np.add(dx, 3 * dy, out=memory.array(self.second, dy.shape, dy.dtype) if memory is not nn.FRESH else dx)
        return memory.array(self.second, dy.shape, dy.dtype) if memory is not nn.FRESH else dx, {}


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_one_name_is_one_array_within_a_pass(depth, rng, same_bits):
    model = nn.Sequential([nn.Dense(4), *(Asks() for _ in range(depth)), nn.Dense(3)], (5,), dtype=np.float64)
    x, dy, memory = rng.normal(size=(6, 5)), rng.normal(size=(6, 3)), model.workspace()
    wanted = model.backward(dy, model.forward(x, training=True)[1])[1]
    for _ in range(3):
        output, cache = model.forward(x, training=True, memory=memory)
        grads = model.backward(dy, cache, memory=memory)[1]
        for name, grad in wanted.items():
            same_bits(grads[name], grad)
    same_bits(model.predict(x), output)
    assert nn.debug.gradient_check(model, x, np.arange(6) % 3)


def test_one_name_in_two_shapes_is_two_arrays():
    memory = Workspace()
    stage, other = memory.stage("0"), memory.stage("1")
    dy = other.array("dx", (4, 2), np.float32)
    arrays = [stage.array("dx", shape, np.float32) for shape in ((4, 2), (8,), (4, 2))]
    assert arrays[0] is arrays[2]
    assert not any(np.shares_memory(one, another) for one, another in itertools.combinations([dy, *arrays[:2]], 2))
