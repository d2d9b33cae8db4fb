"""What the system refuses: memory, threads, room on a disk, writing at all; and signals that come in storms.

Each fault leaves all of before or all of after, an error that says what it was, and a process that goes on. The figures
in docs/guarantees.md are of `make faults`, which does the same at length.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHIM = Path(__file__).parent / "faults" / "shim.c"
ROOT = Path(__file__).parents[1]
#: How many times more than in the suite.
MORE = int(os.environ.get("FASTOPT_FAULTS", "1"))

BEGIN = """
import ctypes, os, resource, sys
import numpy as np
import fastopt
from fastopt import functional as F, nn

def small(seed=0):
    return nn.Sequential([nn.Dense(4), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2), nn.Dense(2)], (3,), seed=seed)

def bits(value):
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [bits(item) for item in value]
    return value
"""


def run(code: str, *arguments: str, more: dict[str, str] | None = None) -> list[str]:
    """The words that a process of its own prints."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}  # which allocates
    environment = inherited | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)} | (more or {})
    ran = subprocess.run(
        [sys.executable, "-c", BEGIN + code, *arguments], env=environment, capture_output=True, text=True, timeout=1200
    )
    assert ran.returncode == 0, f"{ran.returncode}\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
    return ran.stdout.split()


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> dict[str, str]:
    """The environment of a process in which allocations fail, and threads are refused, on demand."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if platform.libc_ver()[0] != "glibc" or compiler is None:
        pytest.skip("needs glibc and a compiler")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SHIM, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "PYTHONMALLOC": "malloc", "SHIM": str(library)}


# ---- Memory -----------------------------------------------------------------------------------------------------

ALLOCATIONS = """
shim = ctypes.CDLL(os.environ["SHIM"])
rng = np.random.default_rng(0)
x, w, b = (rng.standard_normal(s).astype(np.float32) for s in ((9, 5), (5, 7), (7,)))
labels = np.arange(9) % 3

def arrays():
    again = np.random.default_rng(1)
    return {k: again.standard_normal(s).astype(np.float32) for k, s in (("w", (40, 7)), ("b", (7,)))}

def layer():
    return lambda: F.dense_forward(x, w, b, relu=True), lambda: None

def layer_in_place():
    y = x.copy()
    return lambda: (F.relu_forward(y, out=y), None)[1], lambda: y

def norm():
    y = np.zeros_like(x)
    def call():
        out, cache = F.batch_norm_forward(x, axis=-1)
        return F.batch_norm_backward(x, cache)
    return call, lambda: None

def loss():
    return lambda: F.softmax_cross_entropy(x, labels), lambda: None

def optimizer():
    params = arrays()
    return lambda: bits(fastopt.AdamW(params, lr=0.1, clip_global_norm=1.0).state_dict()["hyper"]), lambda: params

def step():
    params = arrays()
    adam = fastopt.NAdam(params, lr=0.1, clip_global_norm=1.0)
    grads = arrays()
    def state():
        return params, adam.t, adam.state_dict()["state"], adam.state_dict()["scalars"]
    return lambda: adam.step(grads), state

def functional_step():
    params, grad = arrays(), arrays()["w"]
    m, v = np.zeros((2, 40, 7), np.float32)
    return lambda: (F.adam(params["w"], grad, m, v, lr=0.1, t=1), None)[1], lambda: (params["w"], m, v)

def norms():
    params = arrays()
    return lambda: fastopt.gradients.global_norm(params), lambda: params

def program():
    model = small()
    x, y = np.eye(3, dtype=np.float32)[labels], labels % 2
    trainer = model.trainer(fastopt.Adam(model.params, lr=0.1), "softmax_cross_entropy")
    trainer(x, y)
    return lambda: trainer(x, y), lambda: (model.params, model.state)

def compiled():
    model = small()
    return lambda: len(str(model.compile(4, loss="softmax_cross_entropy"))), lambda: (model.params, model.state)

def saved():
    model, path = small(), os.path.join(sys.argv[1], "model.npz")
    small(1).save(path)
    return lambda: model.save(path), lambda: bits(nn.load(path).params)

def loaded():
    path = os.path.join(sys.argv[1], "model.npz")
    small(1).save(path)
    return lambda: bits(nn.load(path).params), lambda: None

def stopped():
    # whether an allocation has failed: perhaps the first one of this call
    while True:
        try:
            return shim.shim_stop()
        except MemoryError:
            pass

failures = 0
for make in [globals()[name] for name in sys.argv[3:]]:
    # Python's own modules say other things than MemoryError: of paths, locks and checksums that could not be made
    errors = Exception if make.__name__ in ("saved", "loaded") else MemoryError
    call, state = make()
    call()  # what is imported and memoised on the way
    call, state = make()
    before = bits(state())
    wanted, after = bits(call()), bits(state())
    stride = int(sys.argv[2])
    for number in range(0, 10**6):
        call, state = make()
        result = None
        try:
            shim.shim_fail_after(number * stride)
            result = call()
        except errors:
            result = MemoryError
        finally:
            failed = stopped()
        got = bits(state())
        if result is MemoryError:
            assert failed, "no allocation failed"
            assert got in (before, after), f"{make.__name__}: neither before nor after, at allocation {number * stride}"
        else:
            assert bits(result) == wanted, f"{make.__name__}: another result, at allocation {number * stride}"
            assert got == after
        if not failed:
            break
        failures += 1
    call, state = make()
    assert bits(call()) == wanted and bits(state()) == after, f"{make.__name__}: not as before"
print(failures)
"""
#: What is called with each of its allocations failing in turn; in the suite, some of those of longer calls.
SHORT = ("layer", "layer_in_place", "norm", "loss", "functional_step", "norms", "step")
LONG = ("saved", "loaded", "optimizer", "program", "compiled")


def test_each_allocation_fails(shim, tmp_path):
    (failures,) = map(int, run(ALLOCATIONS, str(tmp_path), "1", *SHORT, more=shim))
    print(failures, "allocations failed")
    assert failures >= 30


@pytest.mark.slow
def test_allocations_of_long_calls_fail(shim, tmp_path):
    (failures,) = map(int, run(ALLOCATIONS, str(tmp_path), "1" if MORE > 1 else "41", *LONG, more=shim))
    print(failures, "allocations failed")
    assert failures >= 30


# ---- Threads ----------------------------------------------------------------------------------------------------

NO_THREADS = """
shim = ctypes.CDLL(os.environ["SHIM"])
param, grad = np.ones((2, 700_001))
fastopt.set_num_threads(8)
def tasks():
    return len(os.listdir("/proc/self/task"))
before = tasks()
shim.shim_refuse_threads(1)
F.sgd(param, grad, lr=1.0)
assert (param == 0).all() and tasks() == before
shim.shim_refuse_threads(0)
F.sgd(param, grad, lr=1.0)
assert (param == -1).all()
print(tasks() - before)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc")
def test_threads_are_refused(shim):
    """One thread then does all the work; when they are granted again, they come."""
    assert run(NO_THREADS, more=shim) == ["7"]


# ---- Disks ------------------------------------------------------------------------------------------------------

FULL = """
import errno, json, shutil
folder, stride = sys.argv[1], int(sys.argv[2])
old, new = small(0), small(1)
x, y = np.eye(3), np.arange(3) % 2
adam = fastopt.Adam(new.params)

def writers():
    for ending in ("npz", "safetensors"):
        try:
            new.save(os.path.join(folder, "try." + ending))
        except ImportError:
            continue
        yield "model." + ending, new.save
        yield "optimizer." + ending, lambda path: fastopt.save(adam, path)
        yield "checkpoint." + ending, lambda path: new.fit(x, y, epochs=1, callbacks=[nn.ModelCheckpoint(path)])
    yield "history.json", nn.History(loss=[1.0] * 400).save

refused = 0
for name, write in list(writers()):
    path = os.path.join(folder, name)
    write(path)
    size = os.path.getsize(path)
    with open(path, "wb") as file:
        file.write(b"what was there before")
    for limit in range(0, size - 200, stride):  # seconds in a checkpoint have more digits or fewer
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            write(path)
        except OSError as error:
            assert error.errno == errno.EFBIG, error
        else:
            raise AssertionError(f"{name} was written to a disk of {limit} bytes")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert open(path, "rb").read() == b"what was there before", name
        left = [other for other in os.listdir(folder) if other.endswith(".part")]
        assert not left, left
        refused += 1
    write(path)
    assert os.path.getsize(path) >= size - 64
print(refused)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of files")
def test_a_disk_that_is_full_after_any_byte(tmp_path):
    """Where a file may have no more than so many bytes, the old one stays, and no part is left."""
    (refused,) = map(int, run(FULL, str(tmp_path), "11" if MORE > 1 else "701"))
    assert refused >= 20
    print(refused, "files were refused")


MOUNTED = """
import subprocess
folder, options, message = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "fastopt", folder], check=True)
try:
    path = os.path.join(folder, "model.npz")
    small(0).save(path)
    before = open(path, "rb").read()
    if options == "full":
        with open(os.path.join(folder, "filler"), "wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError:
                pass
    else:
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    x, y = np.eye(3), np.arange(3) % 2
    model = small(1)
    big = nn.Sequential([nn.Dense(500)], (3,))
    writes = [lambda: big.save(path), lambda: fastopt.save(fastopt.Adam(big.params), path)]
    if options != "full":
        writes += [lambda: model.fit(x, y, callbacks=[nn.ModelCheckpoint(path)])]
        writes += [lambda: model.fit(x, y, callbacks=[nn.CSVLogger(os.path.join(folder, "log.csv"))])]
        writes += [lambda: nn.History(loss=[1.0]).save(os.path.join(folder, "h.json"))]
    for write in writes:
        try:
            write()
        except OSError as error:
            assert any(each in str(error) for each in message.split("|")), error
        else:
            raise AssertionError("written")
        assert open(path, "rb").read() == before
        assert not [other for other in os.listdir(folder) if other.endswith(".part")]
    print(len(writes))
finally:
    subprocess.run(["umount", folder])
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize(
    ("options", "message", "writes"),
    [("full", "No space left", 2), ("read-only", "Read-only file system|may be written|must be writable", 5)],
)
def test_a_real_disk(tmp_path, options, message, writes):
    """A file system that is full, or may only be read."""
    probe = tmp_path / "probe"
    probe.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "fastopt", probe], capture_output=True).returncode:
        pytest.skip("may not mount here")
    subprocess.run(["umount", probe], check=True)
    folder = tmp_path / "disk"
    folder.mkdir()
    assert run(MOUNTED, str(folder), options, message) == [str(writes)]


# ---- Signals ----------------------------------------------------------------------------------------------------

STORM = """
import random, signal, time
wanted, what = int(sys.argv[1]), sys.argv[2]
params = {"w": np.ones((40, 7), np.float32), "b": np.ones(7, np.float32)}
x, y = np.eye(3, dtype=np.float32)[np.arange(60) % 3], np.arange(60) % 2

if what == "step":
    optimizer = fastopt.NAdam(params, lr=1e-3, clip_global_norm=1.0)
    arrays = params
    def go(steps):
        for _ in range(steps):
            grads = {k: np.full_like(p, 0.5 + optimizer.t % 5) for k, p in params.items()}
            optimizer.step(grads)
else:
    model = small()
    optimizer = fastopt.NAdam(model.params, lr=1e-3)
    trainer = model.trainer(optimizer, "softmax_cross_entropy")
    arrays = model.params
    def go(steps):
        for _ in range(steps):
            trainer(x, y)

def bits_now():
    state = optimizer.state_dict()
    return bits((arrays, state["state"], state["scalars"]))

class Storm:
    open = False
    caught = 0
    def __call__(self, number, frame):
        if self.open:
            self.open = False
            raise KeyboardInterrupt

storm = Storm()
signal.signal(signal.SIGINT, storm)
parent, chance = os.getpid(), random.Random(1)
pid = os.fork()
if pid == 0:  # the storm
    while os.getppid() == parent:
        time.sleep(chance.uniform(0.0002, 0.003))
        os.kill(parent, signal.SIGINT)
    os._exit(0)
moments = {optimizer.t: bits_now()}
interrupted = 0
try:
    while interrupted < wanted:
        before = optimizer.t
        try:
            storm.open = True
            go(10**9)
        except KeyboardInterrupt:
            pass
        storm.open = False
        go(1)  # or a storm that is faster than a step would let none end
        interrupted += 1
        moments[optimizer.t] = bits_now()
finally:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

# The same steps in calm: at each of those moments, the same bits.
if what == "step":
    for key in params:
        params[key][...] = 1
    optimizer = fastopt.NAdam(params, lr=1e-3, clip_global_norm=1.0)
else:
    model = small()
    optimizer = fastopt.NAdam(model.params, lr=1e-3)
    trainer = model.trainer(optimizer, "softmax_cross_entropy")
    arrays = model.params
last = max(moments)
for t in range(last + 1):
    if t in moments:
        assert bits_now() == moments[t], f"other bits after {t} steps"
    if t < last:
        go(1)
print(interrupted, len(moments))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("what", ["step", "program"])
def test_a_storm_of_interrupts(what):
    """Ctrl-C some hundred times a second: a step is taken or not, its counter and its bits agree."""
    interrupted, moments = map(int, run(STORM, str(20 * MORE), what))
    assert interrupted == 20 * MORE
    assert moments > 1
