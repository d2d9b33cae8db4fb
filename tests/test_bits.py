"""The bits of what users compute, against a table of hashes: none of them changes but on purpose.

python tests/test_bits.py    # writes tests/bits.json and docs/bits.md anew, prints what has changed: CHANGELOG says so

Inputs are integers of PCG64 times a power of two, products are fastopt's own, and nothing is hashed that NumPy has
summed up or taken the exponential of: what is left owes nothing to the versions of NumPy, BLAS and Python. Nets,
shuffles and initial weights also depend on what `numpy.random.Generator` draws; should NumPy draw other numbers, they
are skipped.
"""

import hashlib
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import cases, data, functional, nn
from fastopt.nn.init import INITIALIZERS
from fastopt.optimizers import OPTIMIZERS

pytestmark = pytest.mark.bits

TABLE = Path(__file__).with_name("bits.json")
#: The page that promises some of them, which ends with a table.
DOCS = Path(__file__).parents[1] / "docs" / "bits.md"
DOCS_HEAD = "| 50 steps of, or random numbers | float32 | float64 |\n|---|---|---|\n"
TYPES = ("float32", "float64")


class Numbers:
    """Draws arrays of a type, in (−4, 4): of all its digits, and the same wherever and whenever."""

    def __init__(self, name: str, dtype) -> None:
        self.bits, self.dtype = np.random.PCG64(zlib.crc32(name.encode())), np.dtype(dtype)

    def __call__(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        """`scale` must be a power of two."""
        digits = 24 if self.dtype == np.float32 else 53
        odd = 2 * (self.raw(*shape) >> (65 - digits)).astype(np.int64) + 1  # so that none is 0
        return ((odd - 2 ** (digits - 1)) * (scale * 2.0 ** (3 - digits))).astype(self.dtype)

    def below(self, limit: int, *shape: int) -> np.ndarray:
        return (self.raw(*shape) % limit).astype(np.int64)

    def raw(self, *shape: int) -> np.ndarray:
        return self.bits.random_raw(int(np.prod(shape, dtype=np.int64))).reshape(shape)


def hashed(arrays) -> str:
    """A hash of arrays: of types, shapes and bits."""
    sha = hashlib.sha256()
    for array in arrays:
        if array is not None:
            assert array.dtype.kind != "f" or not np.isnan(array).any()
            sha.update(f"{array.dtype.str} {array.shape} ".encode())
            sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]


# ---- Optimizers ---------------------------------------------------------------------------------------------

SHAPES = {"one": (1,), "vector": (33,), "matrix": (40, 25)}
#: What is done around a formula, by the kernel and by the class.
AROUND = {"weight_decay": 0.1, "l1": 0.01, "clip_value": 1.5, "max_norm": 4.0, "clip_global_norm": 50.0}


def optimized(name: str, dtype, shapes=SHAPES, steps: int = 50, **options):
    """Parameters and state after some steps."""
    x = Numbers(name, dtype)
    params = {key: x(*shape) for key, shape in shapes.items()}
    optimizer = OPTIMIZERS[name](params, lr=0.01, **options)
    for _ in range(steps):
        if hasattr(optimizer, "look_ahead"):
            optimizer.look_ahead()
        optimizer.step({key: x(*shape) for key, shape in shapes.items()})
    for key, param in params.items():
        yield param
        yield from (optimizer.state[key][state] for state in sorted(optimizer.state[key]))


# ---- Work that is shared out among threads ------------------------------------------------------------------


def large_step(name: str):
    return lambda x: optimized(name, x.dtype, {"long": (700_001,), "matrix": (700, 301)}, 2, clip_global_norm=50.0)


LARGE = {
    "adam": large_step("adam"),
    "lamb": large_step("lamb"),
    **{
        name: lambda x, case=cases.LAYERS[name]: of_case(case, x, case.threads[:1], case.options[:1])
        for name in (
            *("dense_forward", "dense_input_grad", "dense_weight_grad", "bias_relu_backward", "dropout"),
            *("batch_norm_forward", "batch_norm_backward", "group_norm_backward", "softmax_forward"),
            *("conv2d", "conv2d winograd", "conv2d_weight_grad", "conv2d_weight_grad winograd"),
        )
    },
}


# ---- Nets ---------------------------------------------------------------------------------------------------


def mlp(dtype):
    layers = [
        *(nn.Dense(64), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.3)),
        *(nn.Dense(33, activation="relu"), nn.Dropout(0.2)),
        nn.Dense(10),
    ]
    return nn.Sequential(layers, (37,), dtype=dtype)


def cnn(dtype):
    layers = [
        *(nn.Conv2D(16, 3, activation="relu"), nn.Conv2D(32, 3), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(2)),
        *(nn.Flatten(), nn.Dropout(0.3), nn.Dense(10)),
    ]
    return nn.Sequential(layers, (10, 11, 3), dtype=dtype)


NETS = {"mlp": mlp, "cnn": cnn}
SAMPLES, BATCH, EPOCHS = 160, 32, 10  # 50 steps


def trained(name: str, dtype):
    """The parameters and state of a net after `fit`."""
    model, x = NETS[name](dtype), Numbers(name, dtype)
    for key in sorted(model.params):
        if key.endswith("weight"):
            model.params[key][...] = x(*model.params[key].shape, scale=2.0**-4)
    for seed, layer in enumerate(model.layers):
        if isinstance(layer, nn.Dropout):
            layer.seed = seed
    labels = x.below(10, SAMPLES)
    samples = x(SAMPLES, *model.input_shape)
    model.fit(samples, labels, epochs=EPOCHS, batch_size=BATCH, optimizer=fastopt.Adam(model.params, lr=2.0**-8))
    arrays = model.params | model.state
    return [arrays[key] for key in sorted(arrays)]


def orders():
    """Drawn by NumPy as `fit` has them drawn."""
    return [np.random.default_rng([0, t]).permutation(SAMPLES) for t in range(0, 50, 5)]


# ---- Random streams -----------------------------------------------------------------------------------------


def masks(dtype):
    """Of dropout, by seed and counter."""
    x = np.ones(1003, dtype)
    yield from (functional.dropout(x, p, seed=seed, counter=7)[1] for p in (0.1, 0.5) for seed in (0, 2**63))


def shuffles(dtype):
    """The orders of samples in an epoch, and the parts of a data set."""
    y = np.arange(97) % 3
    for batches in (nn.Shuffled(97, 16), nn.Stratified(y, 16)):
        yield from batches.epoch(np.random.default_rng([0, 5]))
    yield from data.split(np.arange(97), y, test=0.25, stratify=True)


def initial_weights(dtype):
    """By each name but "orthogonal", which LAPACK computes; and of two nets, layer after layer."""
    for name in sorted(INITIALIZERS):
        if name != "orthogonal":
            yield nn.Sequential([nn.Dense(9, init=name)], (17,), dtype=dtype, seed=3).params["0.weight"]
    for net in NETS.values():
        params = net(dtype).params
        yield from (params[key] for key in sorted(params))


STREAMS = {"dropout masks": masks, "shuffles": shuffles, "initial weights": initial_weights}


def of_stream(name: str, dtype) -> str:
    return hashed(STREAMS[name](np.dtype(dtype)))


def draws():
    """What NumPy draws for them."""
    for draw in ("normal", "uniform", "permutation", "permuted", "random"):
        rng = np.random.default_rng([0, 1])
        arguments = {"normal": (0.0, 1.0, 97), "uniform": (0.0, 1.0, 97), "permuted": (np.arange(97),)}.get(draw, (97,))
        yield getattr(rng, draw)(*arguments)


def nets(threads: int) -> dict[str, str]:
    fastopt.set_num_threads(threads)
    return {f"{name} {dtype}": hashed(trained(name, dtype)) for name in NETS for dtype in TYPES}


def nets_elsewhere(isa: str, threads: int) -> dict[str, str]:
    """The hashes of a process of its own, whose products are fastopt's."""
    environment = os.environ | {"FASTOPT_PRODUCTS": "", "FASTOPT_ISA": isa}
    command = [sys.executable, __file__, "nets", str(threads)]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


# ---- The table ----------------------------------------------------------------------------------------------


#: What docs/bits.md has the hashes of, and the sections that they are in.
PROMISED = dict.fromkeys(NETS, "nets") | dict.fromkeys(OPTIMIZERS, "optimizers") | dict.fromkeys(STREAMS, "streams")


def of_case(case: cases.Case, x: Numbers, sizes, options) -> list[np.ndarray]:
    """What a layer kernel computes of such numbers; but for means over rows, which NumPy sums up."""
    each = [case.run(case.arguments(x, size, more)) for size in sizes for more in options]
    return [array for results in each for array in results if array.ndim]


def of_kernel(name: str, dtype) -> str:
    case = cases.LAYERS[name]
    return hashed(of_case(case, Numbers(name, dtype), case.edges, case.options))


def of_optimizer(name: str, dtype) -> str:
    return hashed(optimized(name, dtype))


def of_optimizer_and_around(name: str, dtype) -> str:
    return hashed(optimized(name, dtype, **AROUND))


def of_large(name: str, dtype) -> str:
    return hashed(LARGE[name](Numbers(name, dtype)))


IN_PROCESS = {
    "kernels": (of_kernel, cases.LAYERS),
    "optimizers": (of_optimizer, OPTIMIZERS),
    "optimizers with what is around": (of_optimizer_and_around, OPTIMIZERS),
    "large": (of_large, LARGE),
    "streams": (of_stream, STREAMS),
}


def table() -> dict[str, dict[str, str]]:
    """All hashes, computed anew."""
    sections = {
        section: {f"{name} {dtype}": function(name, dtype) for name in names for dtype in TYPES}
        for section, (function, names) in IN_PROCESS.items()
    }
    return sections | {
        "nets": nets_elsewhere(fastopt.isa(), 1),
        "NumPy": {"orders": hashed(orders()), "draws": hashed(draws())},
    }


def recorded() -> dict[str, dict[str, str]]:
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def docs_rows(hashes: dict[str, dict[str, str]]) -> Iterator[str]:
    """The rows of docs/bits.md."""
    for name, section in PROMISED.items():
        single, double = (hashes[section][f"{name} {dtype}"] for dtype in TYPES)
        yield f"| {name} | `{single}` | `{double}` |\n"


HINT = (
    "the bits have changed; if that is meant, `python tests/test_bits.py` writes the table anew, and CHANGELOG says so"
)


def check(section: str, name: str, dtype) -> None:
    function, _ = IN_PROCESS[section]
    wanted = recorded().get(section, {}).get(f"{name} {dtype}")
    assert wanted is not None, "no hash is recorded: run python tests/test_bits.py"
    assert function(name, dtype) == wanted, HINT


@pytest.mark.parametrize("name", cases.LAYERS)
def test_kernels(name, isa, dtype):
    check("kernels", name, dtype)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name, isa, dtype):
    check("optimizers", name, dtype)
    check("optimizers with what is around", name, dtype)


@pytest.fixture
def threads():
    before = fastopt.get_num_threads()
    yield fastopt.set_num_threads
    fastopt.set_num_threads(before)


@pytest.mark.parametrize("name", LARGE)
def test_threads(name, dtype, threads):
    for n in (1, 2, 3, 8):
        threads(n)
        check("large", name, dtype)


def test_large_work_on_each_instruction_set(isa, threads):
    threads(2)
    for name in LARGE:
        check("large", name, "float32")


@pytest.mark.parametrize("name", STREAMS)
def test_streams(name, isa, dtype):
    if name != "dropout masks" and hashed(draws()) != recorded()["NumPy"]["draws"]:
        pytest.skip("this NumPy draws other numbers")
    check("streams", name, dtype)


def test_nets(isa):
    if hashed(orders()) != recorded()["NumPy"]["orders"]:
        pytest.skip("this NumPy draws samples in another order")
    for n in (1, 2, 3, 8) if isa == fastopt.isas()[0] else (1,):
        assert nets_elsewhere(isa, n) == recorded()["nets"], f"on {n} threads: {HINT}"


def test_the_table_is_whole():
    """Each layer kernel, optimizer and large piece of work has hashes, and each hash what it is of."""
    for section, (_, names) in IN_PROCESS.items():
        assert set(recorded()[section]) == {f"{name} {dtype}" for name in names for dtype in TYPES}


def test_the_promise_is_the_table():
    """docs/bits.md has the hashes of nets and optimizers."""
    if not DOCS.parent.exists():
        pytest.skip("tested away from the repository")
    assert DOCS.read_text().partition(DOCS_HEAD)[2] == "".join(docs_rows(recorded()))


def test_other_numbers_have_other_hashes():
    """One bit of one number, the sign of a zero, the shape and the type."""
    x = np.arange(6.0)
    others = [np.nextafter(x, 9), np.where(x, x, -x), x.reshape(2, 3), x.view(np.int64)]
    assert len({hashed([each]) for each in (x, *others)}) == 5


def main() -> None:
    if sys.argv[1:2] == ["nets"]:
        print(json.dumps(nets(int(sys.argv[2]))))
        return
    before, now = recorded(), table()
    for section, hashes in now.items():
        for name in sorted({*hashes, *before.get(section, {})}):
            old, new = before.get(section, {}).get(name), hashes.get(name)
            if old != new:
                print(f"{section}: {name}: {'new' if old is None else 'gone' if new is None else 'other bits'}")
    TABLE.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    DOCS.write_text("".join([DOCS.read_text().partition(DOCS_HEAD)[0], DOCS_HEAD, *docs_rows(now)]))


if __name__ == "__main__":
    main()
