"""Threads: how many there are, and that results do not show it, across forks and from several threads of Python.

How work is cut does not depend on the instruction set: what takes long is tested on the one in use, and CI uses each.
"""

import math
import multiprocessing
import os
import signal
import sys
import threading
import traceback

import numpy as np
import pytest
from test_dispatch import python

import fastopt
from fastopt import _kernels, cases, functional, nn, threads
from fastopt.cases import LARGE, PER_THREAD
from fastopt.optimizers import OPTIMIZERS

COUNTS = (1, 2, 3, 5, 8)
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
of_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="the system does not list threads")
# Python, and JAX where another test has imported it, warn of forks in a process of several threads: these are what is
# tested.
fork_is_meant = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded.*:DeprecationWarning", "ignore:.*JAX is multithreaded.*:RuntimeWarning"
)


@pytest.fixture(autouse=True)
def number_is_put_back():
    before = fastopt.get_num_threads()
    yield
    fastopt.set_num_threads(before)


def with_each_number(function, counts=COUNTS):
    """The results of a function with each number of threads, and once more with the last: when all have started."""
    results = []
    for count in (*counts, counts[-1]):
        fastopt.set_num_threads(count)
        results.append(function())
    return results


def check_alike(results, same_bits):
    first, *others = results
    for arrays in others:
        for actual, expected in zip(arrays, first, strict=True):
            same_bits(actual, expected)


@pytest.mark.parametrize("outlier", [0, 1e5], ids=["", "sums are taken twice"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    ("rows", "channels"), [(150_001, 1), (45_007, 3), (9_000, 24), (8_192, 16), (4_301, 31), (5_000, 40), (2_111, 96)]
)
def test_batch_norm_of_few_channels(rows, channels, dropout, outlier, dtype, rng, same_bits):
    """Whose rows are shared out."""
    x, dy = rng.normal(size=(2, rows, channels)).astype(dtype)
    x[[i * rows // 8 for i in range(8)]] += outlier  # where a value near the mean is looked for
    scale, shift = rng.normal(size=(2, channels)).astype(dtype)

    def both():
        running = np.zeros(channels, dtype), np.ones(channels, dtype)
        how = {"axis": -1, "relu": True, "dropout": dropout, "counter": 5}
        y, cache = functional.batch_norm_forward(x, scale, shift, *running, **how)
        return y, cache.mean, cache.inv_std, *running, *functional.batch_norm_backward(dy, cache)

    fastopt.set_num_threads(1)
    assert functional.batch_norm_sums_shape(x.shape, -1) is None
    fastopt.set_num_threads(8)
    blocks, two, lanes = functional.batch_norm_sums_shape(x.shape, -1)
    assert (two, lanes % channels if channels < 32 else lanes % 32) == (2, 0)
    assert blocks > (8 if channels < 31 else 1)  # or some threads have none
    check_alike(with_each_number(both), same_bits)


def test_the_sums_of_batch_norm_must_fit(rng, refuses):
    fastopt.set_num_threads(2)
    x = rng.normal(size=(5_000, 32))
    shape = functional.batch_norm_sums_shape(x.shape, -1)
    assert shape == (40, 2, 32)
    inside = x.reshape(-1)[: math.prod(shape)].reshape(shape)
    _, cache = functional.batch_norm_forward(x, axis=-1, sums=np.empty(shape))
    for sums, message in ((np.empty((1, 2, 3)), r"sums must have shape \(40, 2, 32\)"), (inside, ".*must not overlap")):
        refuses(lambda sums=sums: functional.batch_norm_forward(x, axis=-1, sums=sums), message, x)
        refuses(lambda sums=sums: functional.batch_norm_backward(x, cache, sums=sums), message, x)


# ---- The number ----------------------------------------------------------------------------------


def test_the_number_is_what_was_set():
    for n in (1, 2, 7, 256, np.int64(3)):
        fastopt.set_num_threads(n)
        assert fastopt.get_num_threads() == n
        assert type(fastopt.get_num_threads()) is int


@pytest.mark.parametrize("n", [0, -1, 257, 2**32 + 1, 10**30, False])
def test_a_number_that_is_refused(n, refuses):
    fastopt.set_num_threads(3)
    refuses(lambda: fastopt.set_num_threads(n), rf"n must be in \[1, 256\], got {n}", error=ValueError)
    assert fastopt.get_num_threads() == 3


@pytest.mark.parametrize("n", [1.5, 2.0, "2", None, [2], np.array([1, 2])], ids=str)
def test_no_number(n, refuses):
    fastopt.set_num_threads(3)
    refuses(lambda: fastopt.set_num_threads(n), "n must be an integer, got ", error=TypeError)
    assert fastopt.get_num_threads() == 3


COUNT = "import fastopt; print(fastopt.get_num_threads())"


@pytest.mark.parametrize(("text", "count"), [("1", 1), ("4", 4), (" 4 ", 4), ("256", 256)])
def test_the_environment_says_how_many(text, count):
    assert python(COUNT, FASTOPT_NUM_THREADS=text).stdout.split() == [str(count)]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["0", "-1", "257", "abc", "1.5", "4 4", "0x4"])
def test_the_environment_says_nonsense(text):
    result = python(COUNT, FASTOPT_NUM_THREADS=text)
    assert result.returncode == 1
    message = f"ImportError: FASTOPT_NUM_THREADS must be an integer in [1, 256], got {text!r}"
    assert result.stderr.splitlines()[-1] == message


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, {"FASTOPT_NUM_THREADS": ""}, {"FASTOPT_NUM_THREADS": " "}], ids=str)
def test_by_default_as_many_as_may_run(environment, monkeypatch):
    monkeypatch.delenv("FASTOPT_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert python(COUNT, **environment).stdout.split() == [str(threads.available())]


@pytest.mark.parametrize(
    ("text", "count"),
    [("1", 1), ("2", 2), ("2,1", 2), ("4096", 6), ("", 6), ("0", 6), ("-1", 6), ("many", 6)],
)
def test_the_number_of_joblib_counts(text, count, monkeypatch):
    """Which sets OMP_NUM_THREADS for its processes; it never raises the number."""
    monkeypatch.setattr(threads, "available", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert threads._by_default() == count


def test_ones_own_number_comes_first():
    assert python(COUNT, FASTOPT_NUM_THREADS="3", OMP_NUM_THREADS="1").stdout.split() == ["3"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize(("given", "number"), [({}, 1), ({"FASTOPT_NUM_THREADS": "3"}, 3)], ids=str)
def test_processes_of_multiprocessing_have_one_thread(method, given, number, tmp_path):
    """Unless a number was set: there are usually as many of them as CPUs."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("the system has no such method")
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing\nimport sys\n"
        "def count(_):\n    import fastopt\n    return fastopt.get_num_threads()\n"
        "if __name__ == '__main__':\n"
        "    import fastopt\n"
        f"    with multiprocessing.get_context({method!r}).Pool(2) as pool:\n"
        "        print(*pool.map(count, range(2)))\n"
    )
    code = f"import runpy; runpy.run_path({str(program)!r}, run_name='__main__')"
    if method != "fork":  # children import the program
        code = f"import subprocess, sys; print(subprocess.check_output([sys.executable, {str(program)!r}], text=True))"
    assert python(code, **given).stdout.split() == [str(number)] * 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_the_affinity_counts(monkeypatch):
    monkeypatch.delenv("FASTOPT_NUM_THREADS", raising=False)
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" + COUNT
    assert python(code).stdout.split() == ["1"]


V1, V2 = "sys/fs/cgroup/cpu/{}cpu.cfs_{}_us", "sys/fs/cgroup/{}cpu.max"


def of_v1(quota, period, group=""):
    return {V1.format(group, "quota"): f"{quota}\n", V1.format(group, "period"): f"{period}\n"}


@pytest.mark.parametrize(
    ("files", "cpus", "count"),
    [
        ({}, 6, 6),
        ({V2.format(""): "max 100000\n"}, 6, 6),
        ({V2.format(""): "200000 100000\n"}, 6, 2),
        ({V2.format(""): "250000 100000\n"}, 6, 2),
        ({V2.format(""): "20000 100000\n"}, 6, 1),
        ({V2.format(""): "800000 100000\n"}, 6, 6),
        ({V2.format(""): "max 100000\n"}, 1000, 256),
        ({V2.format(""): ""}, 6, 6),
        ({V2.format(""): "100000 0\n"}, 6, 6),
        ({V2.format(""): "much 100000\n"}, 6, 6),
        (of_v1(150000, 50000), 6, 3),
        (of_v1(-1, 100000), 6, 6),
        ({V1.format("", "quota"): "100000\n"}, 6, 6),
        (of_v1(100000, 0), 6, 6),
        # Of the group that the process is in, and of those around it, the least.
        ({"proc/self/cgroup": "0::/a/b\n", V2.format("a/b/"): "300000 100000\n"}, 6, 3),
        ({"proc/self/cgroup": "0::/a/b\n", V2.format("a/"): "300000 100000\n", V2.format("a/b/"): "max 100\n"}, 6, 3),
        ({"proc/self/cgroup": "0::/a/b\n", V2.format("a/"): "200 100\n", V2.format("a/b/"): "400 100\n"}, 6, 2),
        ({"proc/self/cgroup": "0::/a\n", V2.format("b/"): "100000 100000\n"}, 6, 6),
        ({"proc/self/cgroup": "3:cpu,cpuacct:/a\n2:memory:/c\n", **of_v1(400000, 100000, "a/")}, 6, 4),
        ({"proc/self/cgroup": "3:cpuset:/a\n", **of_v1(400000, 100000, "a/")}, 6, 6),
        ({"proc/self/cgroup": "nonsense\n", V2.format(""): "200000 100000\n"}, 6, 2),
    ],
    ids=str,
)  # fmt: skip
def test_affinity_and_quota(files, cpus, count, tmp_path, monkeypatch):
    """The lesser of the two, whole CPUs, at least 1 and at most 256; files that say nothing set no limit."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    quota = threads._quota
    monkeypatch.setattr(threads, "_quota", lambda _: quota(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)), raising=False)
    assert threads.available() == count
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    assert threads.available() == count
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert threads.available() == 1


# ---- Where threads are used ----------------------------------------------------------------------

TASKS = """
import os
import numpy as np
import fastopt
from fastopt import functional
def tasks(): return set(os.listdir("/proc/self/task"))
before = tasks()
"""


@pytest.mark.slow
@of_proc
@pytest.mark.parametrize(("bytes_", "limit", "started"), [
    (PER_THREAD - 8, 8, 0), (PER_THREAD, 8, 1), (3 * PER_THREAD - 8, 8, 2), (3 * PER_THREAD, 8, 3),
    (20 * PER_THREAD, 8, 7), (20 * PER_THREAD, 1, 0), (20 * PER_THREAD, 2, 1),
])  # fmt: skip
def test_threads_start_for_large_work_alone(bytes_, limit, started):
    """Import starts none; a kernel starts as many as its bytes pay for, and those stay."""
    for run in ("functional.sgd(*np.ones((2, n)), lr=0.1)", "functional.relu_forward(np.ones(n))"):
        code = f"{TASKS}fastopt.set_num_threads({limit})\nn = {bytes_ // 16}\n{run}\nprint(len(tasks() - before))\n"
        again = f"{run}\nprint(len(tasks() - before))\n"
        assert python(code + again).stdout.split() == [str(started)] * 2


@of_proc
def test_signals_are_for_the_threads_of_python():
    """Threads of the pool block them all; that which started them blocks none."""
    code = f"""{TASKS}
import signal
fastopt.set_num_threads(4)
functional.relu_forward(np.ones(200_000))
for task in tasks() - before:
    status = open(f"/proc/self/task/{{task}}/status").read()
    blocked = int(status.split("SigBlk:")[1].split()[0], 16)
    print(all(blocked >> number - 1 & 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD)))
print(*signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""
    assert python(code).stdout.split("\n") == ["True"] * 3 + ["", ""]


@of_proc
def test_as_many_threads_as_the_system_grants():
    """Where memory for their stacks runs out, the others do all the work; and later there may be more."""
    code = f"""{TASKS}
import resource
param, grad = np.ones((2, 500_000))
fastopt.set_num_threads(100)
limits = resource.getrlimit(resource.RLIMIT_AS)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 23), limits[1]))
functional.sgd(param, grad, lr=1.0)
few = len(tasks() - before)
functional.sgd(param, grad, lr=1.0)
resource.setrlimit(resource.RLIMIT_AS, limits)
functional.sgd(param, grad, lr=1.0)
print((param == -2).all(), few < {8_000_000 // PER_THREAD}, len(tasks() - before))
"""
    assert python(code).stdout.split() == ["True", "True", str(8_000_000 // PER_THREAD)]


# ---- The same bits -------------------------------------------------------------------------------

# Sizes of the tensors of a model: borders of shares fall within and between them, beside empty and tiny ones.
MODELS = {
    "one": (LARGE // 8 + 5,),
    "several": (0, 70_001, 3, 0, 1, 131_072, 17, 63_333, 0, 1),
    "many": (*range(300), 100_000, *range(300, 0, -1), 40_000, 0),
}


def place(values, offset):
    """A copy that begins so many elements past where NumPy puts arrays."""
    return np.concatenate([np.zeros(offset, values.dtype), np.ravel(values)])[offset:].reshape(np.shape(values))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_steps_have_the_same_bits(any_rule, dtype, model, rng, same_bits):
    params, *grads = ([rng.standard_normal(n).astype(dtype) for n in MODELS[model]] for _ in range(3))
    grads = [[place(g, i % 4) for i, g in enumerate(grad)] for grad in grads]

    def train():
        own = [place(param, 1 + i % 3) for i, param in enumerate(params)]
        optimizer = any_rule.make(own)
        for grad in grads:
            optimizer.step(grad)
        return [*own, *(a for state in optimizer.state.values() for a in state.values())]

    check_alike(with_each_number(train), same_bits)


def test_a_step_of_many_threads_stays_within_its_arrays(any_rule, rng, guarded, same_bits):
    values = rng.standard_normal((2 + len(any_rule.states), LARGE // 16 + 3))
    arrays = [guarded(abs(a), i + 1) for i, a in enumerate(values)]
    expected = [abs(a) for a in values]
    fastopt.set_num_threads(1)
    any_rule.step(*expected, t=3)
    fastopt.set_num_threads(8)
    any_rule.step(*arrays, t=3)
    check_alike([arrays, expected], same_bits)


def works(case):
    """Each size for threads and each option at least once."""
    for i in range(max(len(case.threads), len(case.options))):
        yield case.threads[i % len(case.threads)], case.options[i % len(case.options)]


@pytest.mark.bits
@pytest.mark.slow
def test_layers_have_the_same_bits(case, dtype, guarded, same_bits):
    """Of unaligned arrays, with nothing written beside them."""
    for i, (size, options) in enumerate(works(case)):
        arguments = case.arguments(cases.normal(dtype), size, options)

        def run(arguments=arguments, i=i):
            number = iter(range(1 + i, 30 + i))
            results = case.run(cases.map_arrays(lambda a: guarded(a, next(number) % 16), arguments))
            guarded.check()
            return results

        check_alike(with_each_number(run), same_bits)


@pytest.mark.slow
def test_many_more_threads_than_cores():
    """In a process of its own, which then has them; each finds its work or finds it done."""
    classes = [cls.__name__ for cls in OPTIMIZERS.values() if not hasattr(cls, "look_ahead")]  # has momentum's kernel
    code = f"""
import numpy as np
import fastopt
rng = np.random.default_rng(1)
param, *grads = rng.standard_normal((4, {255 * PER_THREAD // 16 + 11}), dtype=np.float32)
for name in {classes}:
    results = []
    for count in (1, 256, 100, 256):
        fastopt.set_num_threads(count)
        own = param.copy()
        optimizer = getattr(fastopt, name)(own, lr=0.1)
        for grad in grads:
            optimizer.step(grad)
        results.append(own)
    if all(np.array_equal(own, results[0]) for own in results):
        print(name)
"""
    result = python(code)
    assert (result.stdout.split(), result.stderr) == (classes, "")


# ---- Denormals -----------------------------------------------------------------------------------


def test_denormals_are_zero_on_every_thread(isa, dtype, rng, same_bits):
    """Many times, as a part of a work is done by whoever comes first; and they work again afterwards."""
    tiny = np.finfo(dtype).tiny
    x = rng.standard_normal(LARGE // 8).astype(dtype)
    x[::3] = tiny / 4
    expected = np.where(np.abs(x) < tiny, 0, x)
    for count in (1, 8):
        fastopt.set_num_threads(count)
        for _ in range(30):
            own = x.copy()
            functional.sgd(own, np.zeros_like(own), lr=0.5)
            same_bits(own, expected)
            same_bits(functional.relu_forward(x), np.maximum(expected, 0))
            assert x[0] / dtype.type(2) > 0, "the calling thread keeps a mode that is the kernels'"
            # Nor do sums of NumPy, which run on this thread, or on those that a BLAS has.
            assert (x[::3] + x[::3])[0] == tiny / 2


@pytest.mark.bits
@pytest.mark.slow
def test_denormals_do_not_tell_threads_apart(case, dtype, same_bits):
    normal = cases.normal(dtype)
    size, options = next(works(case))
    with np.errstate(all="ignore"):
        arguments = case.arguments(lambda *shape: normal(*shape) * dtype.type(4) * np.finfo(dtype).tiny, size, options)
        run = lambda: case.run(cases.map_arrays(np.copy, arguments))  # noqa: E731
        check_alike(with_each_number(run, (1, 8)), same_bits)


# ---- Forks ---------------------------------------------------------------------------------------


def work(seed=0, n=100_003):
    """Some steps and layers that are cut."""
    rng = np.random.default_rng(seed)
    param, *grads = rng.standard_normal((4, n))
    optimizer = fastopt.Adam([param[: n // 2], param[n // 2 :]], lr=0.1)
    for grad in grads:
        optimizer.step([grad[: n // 2], grad[n // 2 :]])
    return functional.dropout(param, 0.5, seed=seed, counter=0)[0]


def in_child(function) -> None:
    """Runs a function in a forked child, which must come through it."""
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.slow
@forks
@fork_is_meant
@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_child_and_its_parent_go_on(count, same_bits):
    """The child has no threads but its own, and starts others, as does a child of it."""
    fastopt.set_num_threads(count)
    expected = work()

    def check():
        assert fastopt.get_num_threads() == count
        for _ in range(3):
            same_bits(work(), expected)

    def check_and_fork():
        check()
        in_child(check)
        check()

    for _ in range(5):
        in_child(check_and_fork)
        check()


@forks
@fork_is_meant
def test_an_optimizer_goes_on_in_parent_and_child(any_rule, rng, same_bits):
    fastopt.set_num_threads(8)
    param, *grads = rng.standard_normal((4, 200_001))
    straight = param.copy()
    optimizer = any_rule.make(straight)
    for grad in grads:
        optimizer.step(grad)
    optimizer = any_rule.make(param)
    optimizer.step(grads[0])

    def go_on():
        for grad in grads[1:]:
            optimizer.step(grad)
        same_bits(param, straight)

    in_child(go_on)
    go_on()


@of_proc
@forks
def test_a_child_starts_threads_of_its_own():
    code = f"""{TASKS}
fastopt.set_num_threads(4)
functional.relu_forward(np.ones(200_000))
if (child := os.fork()) == 0:
    alone = tasks()
    functional.relu_forward(np.ones(200_000))
    print(len(alone), len(tasks()), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
    assert python(code).stdout.split() == ["1", "4"]


@forks
@fork_is_meant
def test_processes_of_multiprocessing(same_bits):
    fastopt.set_num_threads(3)
    expected = [work(seed) for seed in range(6)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        check_alike([pool.map(work, range(6)), expected], same_bits)
    check_alike([[work(seed) for seed in range(6)], expected], same_bits)


class Busy:
    """While this is entered, another thread works, and leaves its results."""

    def __enter__(self):
        self.results, self.stop, first = [], False, threading.Event()

        def go():
            while not self.stop:
                self.results.append(work(1))
                first.set()

        self.thread = threading.Thread(target=go)
        self.thread.start()
        first.wait()
        return self

    def __exit__(self, *exception):
        self.stop = True
        self.thread.join()


@pytest.mark.slow
@forks
@fork_is_meant
def test_a_fork_in_the_midst_of_another_threads_step(same_bits):
    fastopt.set_num_threads(4)
    mine, others = work(0), work(1)

    def check():
        for _ in range(3):
            same_bits(work(0), mine)

    with Busy() as busy:
        for _ in range(12):
            in_child(check)
            check()
    check_alike([[others], *([result] for result in busy.results)], same_bits)


# ---- Threads of Python ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 8])
def test_python_threads_share_the_pool(any_rule, count, rng, same_bits):
    """Who finds it in use does all parts alone: to the same bits, many times over."""
    fastopt.set_num_threads(count)
    start, grads = rng.standard_normal((3, 100_003)), rng.standard_normal((10, 100_003))
    ready = threading.Barrier(3)

    def train(param, wait=lambda: None):
        optimizer = any_rule.make([param[:30_000], param[30_000:30_001], param[30_001:]])
        wait()
        for grad in grads:
            optimizer.step([grad[:30_000], grad[30_000:30_001], grad[30_001:]])

    alone = start.copy()
    for param in alone:
        train(param)
    for _ in range(5):
        together = start.copy()
        trainers = [threading.Thread(target=train, args=(param, ready.wait)) for param in together]
        for thread in trainers:
            thread.start()
        for thread in trainers:
            thread.join()
        same_bits(together, alone)


def test_the_number_may_change_while_others_work(same_bits):
    expected = work(1)
    with Busy() as busy:
        for i in range(100):
            fastopt.set_num_threads(1 + i % 9)
            functional.relu_forward(np.ones(100_000))
    check_alike([[expected], *([result] for result in busy.results)], same_bits)


def test_a_thread_that_ends_leaves_the_pool_as_it_was(same_bits):
    fastopt.set_num_threads(4)
    expected, results = work(), []
    for _ in range(20):
        thread = threading.Thread(target=lambda: results.append(work()))
        thread.start()
        thread.join()
    check_alike([[expected], *([result] for result in results), [work()]], same_bits)


@pytest.mark.skipif(sys.platform == "win32", reason="the system sends no signals")
def test_signals_reach_python_between_steps(same_bits):
    """Sent from another thread at no certain time, each is handled, and no step is the worse for it."""
    fastopt.set_num_threads(4)
    expected, handled = work(), threading.Semaphore(0)
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.release())
    done = threading.Event()

    def send():
        for _ in range(20):
            os.kill(os.getpid(), signal.SIGUSR1)
            handled.acquire()
        done.set()

    sender = threading.Thread(target=send)
    sender.start()
    try:
        while not done.is_set():
            same_bits(work(), expected)
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def blas():
    """How many threads a BLAS may use; two to begin with."""
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def now():
        return {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}

    with threadpoolctl.threadpool_limits(2, "blas"):
        if now() != {2}:
            pytest.skip("the BLAS takes no second thread")
        yield now


@pytest.mark.parametrize(("convolutional", "count", "during"), [(True, 2, 1), (True, 1, 2), (False, 2, 2)])
def test_a_blas_keeps_to_one_thread_beside_convolutions_of_several(blas, convolutional, count, during):
    fastopt.set_num_threads(count)

    class Look(nn.Flatten):
        def forward(self, x, **options):
            seen.append(blas())
            return super().forward(x, **options)

    layers = [nn.Residual(nn.Conv2D(1))] if convolutional else []
    model, seen = nn.Sequential([*layers, Look(), nn.Dense(2)], (3, 3, 1)), []
    model.fit(np.ones((4, 3, 3, 1)), np.zeros(4, int), epochs=1)
    model.predict(np.ones((4, 3, 3, 1)), batch_size=2)
    model.predict(np.ones((4, 3, 3, 1)))
    assert seen == [{during}] * 3 + [{2}]
    assert blas() == {2}


def test_the_last_to_end_brings_a_blas_its_threads_back(blas):
    first, second = threads.blas_on_one_thread(), threads.blas_on_one_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert blas() == {1}
    second.__exit__(None, None, None)
    assert blas() == {2}
    with pytest.raises(KeyError), threads.blas_on_one_thread():
        raise KeyError
    assert blas() == {2}


def test_without_threadpoolctl_a_blas_keeps_its_threads(blas, monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with threads.blas_on_one_thread():
        monkeypatch.undo()
        assert blas() == {2}
    assert blas() == {2}


# ---- Sharing ----------------------------------------------------------------------------------------------------

SHARED = """
import os, threading
import numpy as np
import fastopt
from fastopt import functional, threads
fastopt.set_num_threads(4)
def started(): return len(os.listdir("/proc/self/task"))
"""


@of_proc
@pytest.mark.parametrize(("limit", "workers"), [(1, 0), (2, 1), (256, 3)])
def test_a_thread_may_have_a_limit(limit, workers):
    """Its kernels start as many workers as that; the number of the process, and other threads, are as before."""
    code = f"""
x = np.ones({PER_THREAD // 4})
with threads.limited({limit}):
    before = started()
    functional.relu_forward(x)
    print(started() - before, fastopt.get_num_threads())
functional.relu_forward(x)
print(started() - before)
"""
    assert python(SHARED + code).stdout.split() == [str(workers), "4", "3"]


def test_limits_nest_and_end_with_an_exception():
    with threads.limited(5):
        with pytest.raises(ZeroDivisionError), threads.limited(2):
            raise ZeroDivisionError
        assert _kernels.limit_threads(5) == 5
    assert _kernels.limit_threads(256) == 256


def test_threads_at_once_have_the_bits_of_one(same_bits, rng):
    x, y = rng.normal(size=(300, 40)).astype(np.float32), rng.integers(0, 5, 300)

    def trained():
        model = nn.Sequential([nn.Dense(600, activation="relu"), nn.BatchNorm(), nn.Dense(5)], (40,))
        model.fit(x, y, epochs=3, batch_size=100)
        return [*model.params.values(), *model.state.values()]

    fastopt.set_num_threads(4)
    alone = trained()
    results = [None] * 4

    def one(i):
        results[i] = trained()

    workers = [threading.Thread(target=one, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    check_alike([alone, *results], same_bits)


@forks
@fork_is_meant
def test_a_forked_child_has_one_thread_by_default(monkeypatch):
    code = """
import os
import fastopt
from fastopt import threads
{}
if os.fork() == 0:
    print(fastopt.get_num_threads(), flush=True)
    os._exit(0)
os.wait()
"""
    monkeypatch.delenv("FASTOPT_NUM_THREADS", raising=False)
    assert python(code.format("")).stdout.split() == ["1"]
    assert python(code.format("fastopt.set_num_threads(2)")).stdout.split() == ["2"]
    assert python(code.format(""), FASTOPT_NUM_THREADS="2").stdout.split() == ["2"]
