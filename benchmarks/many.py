"""Many small models at once: `bench_training.py --many`.

Digits (1,792 of them, whole batches), 64-32-10, batch 32, float32, Adam. Each contender trains all models for some
epochs in its turn, round after round; a ratio is that of the medians. JAX and scikit-learn have two processes of one
thread each: those of JAX stay, have compiled before, and time nothing but training.
"""

import contextlib
import multiprocessing
import statistics
import time

MODELS, EPOCHS, BATCH, SAMPLES, HIDDEN = 32, 20, 32, 1792, 32

#: What is to be shown: the work, what it is measured against, and how many times its speed.
DEMANDS = (
    ("two threads", "one thread", 1.85),
    ("two threads", "JAX, two processes", 2.3),
    ("two threads", "scikit-learn, two processes", 26.0),
    ("mixed, two threads", "mixed, ideal", 0.9),
    ("transform", "no transform", 1 / 1.05),
)


def digits():
    import numpy as np

    from fastopt import data

    x, y = data.digits()
    return np.ascontiguousarray(x.reshape(len(x), -1)[:SAMPLES], np.float32), y[:SAMPLES]


def mlp(seed=0, *hidden):
    from fastopt import nn

    widths = hidden or (HIDDEN,)
    return nn.Sequential([*(nn.Dense(n, activation="relu") for n in widths), nn.Dense(10)], (64,), seed=seed)


# ---- Contenders: each returns the seconds of one round --------------------------------------------------------------


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def many(count, models, epochs):
    """`fit_many` on so many threads; models are made before."""
    from fastopt import nn

    x, y = digits()

    def run():
        made = [mlp(seed) for seed in range(models)]
        return timed(lambda: nn.fit_many(made, x, y, epochs=epochs, batch_size=BATCH, threads=count))

    return run


#: Hidden widths and epochs of models of different sizes and lengths, whose costs differ by a factor of a hundred.
MIXED = [
    ((8,), 40),
    ((256, 128), 3),
    ((32,), 20),
    ((16,), 5),
    ((128,), 12),
    ((64, 64), 10),
    ((32,), 60),
    ((512,), 2),
    ((24,), 9),
]


def mixed(count, scale):
    """The seconds of models of different sizes on so many threads."""
    from fastopt import nn

    x, y = digits()

    def run():
        made = [mlp(seed, *hidden) for seed, (hidden, _) in enumerate(MIXED)]
        each = [{"epochs": max(1, round(epochs * scale))} for _, epochs in MIXED]
        return timed(lambda: nn.fit_many(made, x, y, each=each, batch_size=BATCH, threads=count))

    return run


def mixed_alone(scale):
    """Half of the sum of what each takes alone: the ideal of two threads."""
    x, y = digits()

    def run():
        made = [mlp(seed, *hidden) for seed, (hidden, _) in enumerate(MIXED)]
        lengths = [max(1, round(epochs * scale)) for _, epochs in MIXED]
        each = zip(made, lengths, strict=True)
        return timed(lambda: [model.fit(x, y, epochs=epochs, batch_size=BATCH) for model, epochs in each]) / 2

    return run


def transformed(transform, epochs):
    x, y = digits()

    def run():
        model = mlp()
        return timed(lambda: model.fit(x, y, epochs=epochs, batch_size=BATCH, transform=transform))

    return run


def identity(x, y, rng):
    return x, y


def jax_worker(pipe, x, y, models, epochs):
    """Trains models one after the other, each by a jitted, donated scan of an epoch, when it is told to."""
    import os

    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["NPROC"] = "1"
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng, steps, targets = np.random.default_rng(0), len(x) // BATCH, jax.nn.one_hot(jnp.asarray(y), 10)
    inputs = jnp.asarray(x)

    def fresh(seed):
        keys = jax.random.split(jax.random.PRNGKey(seed), 2)
        shapes = (64, HIDDEN), (HIDDEN, 10)
        params = [
            (jax.random.normal(key, shape) * np.sqrt(2 / shape[0]), jnp.zeros(shape[1]))
            for key, shape in zip(keys, shapes, strict=True)
        ]
        zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(2)]
        return params, *zeros, jnp.float32(0)

    def loss(params, x, hot):
        (w1, b1), (w2, b2) = params
        logits = jax.nn.relu(x @ w1 + b1) @ w2 + b2
        return jnp.mean(jax.nn.logsumexp(logits, 1) - jnp.sum(logits * hot, 1))

    def step(carry, batch):
        params, m, v, t = carry
        value, grads = jax.value_and_grad(loss)(params, *batch)
        t = t + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
        rate = 1e-3 * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        params = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + 1e-8), params, m, v)
        return (params, m, v, t), value

    def compiled(unroll):
        def epoch(carry, order):
            batches = inputs[order].reshape(steps, BATCH, 64), targets[order].reshape(steps, BATCH, 10)
            carry, values = jax.lax.scan(step, carry, batches, unroll=unroll)
            return carry, values.mean()

        return jax.jit(epoch, donate_argnums=0)

    def train(epoch, count):
        for seed in range(count):
            carry = fresh(seed)
            for _ in range(epochs):
                carry, _ = epoch(carry, rng.permutation(len(x)))
            jax.block_until_ready(carry)

    candidates = [compiled(1), compiled(4)]
    for epoch in candidates:
        train(epoch, 1)
    best = min(candidates, key=lambda epoch: min(timed(lambda: train(epoch, 1)) for _ in range(3)))
    pipe.send("ready")
    while pipe.recv() == "go":
        train(best, models)
        pipe.send("done")


@contextlib.contextmanager
def jax_processes(models, epochs):
    """Two processes, each with half of the models."""
    context, (x, y) = multiprocessing.get_context("spawn"), digits()
    pipes, workers = [], []
    for half in (models // 2, models - models // 2):
        ours, theirs = context.Pipe()
        worker = context.Process(target=jax_worker, args=(theirs, x, y, half, epochs), daemon=True)
        worker.start()
        theirs.close()
        pipes.append(ours)
        workers.append(worker)

    def run():
        for pipe in pipes:
            pipe.send("go")
        for pipe in pipes:
            pipe.recv()

    try:
        for pipe in pipes:
            pipe.recv()
        yield lambda: timed(run)
    finally:
        for pipe, worker in zip(pipes, workers, strict=True):
            with contextlib.suppress(OSError):
                pipe.send("end")
            worker.join(10)


def sklearn_one(seed, x, y, epochs):
    import warnings

    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier(
        (HIDDEN,), alpha=0.0, batch_size=BATCH, max_iter=epochs, random_state=seed, tol=0.0, n_iter_no_change=epochs
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged
        model.fit(x, y)


def sklearn_processes(models, epochs):
    """By joblib, on two processes, which it keeps."""
    import joblib
    import sklearn  # noqa: F401

    x, y = digits()
    pool = joblib.Parallel(n_jobs=2)
    pool(joblib.delayed(sklearn_one)(seed, x, y, 1) for seed in range(2))
    return lambda: timed(lambda: pool(joblib.delayed(sklearn_one)(seed, x, y, epochs) for seed in range(models)))


# ---- The race -------------------------------------------------------------------------------------------------------


def race(rounds, *, models=MODELS, epochs=EPOCHS, peers=True):
    """The median seconds of each contender, and why others are absent."""
    scale = epochs / EPOCHS
    absent = {}
    with contextlib.ExitStack() as stack:
        contenders = {
            "two threads": many(2, models, epochs),
            "one thread": many(1, models, epochs),
            "mixed, two threads": mixed(2, scale),
            "mixed, ideal": mixed_alone(scale),
            "transform": transformed(identity, 10 * epochs),
            "no transform": transformed(None, 10 * epochs),
        }
        if peers:
            try:
                import jax  # noqa: F401

                contenders["JAX, two processes"] = stack.enter_context(jax_processes(models, epochs))
            except ImportError as error:
                absent["JAX, two processes"] = str(error)
            try:
                contenders["scikit-learn, two processes"] = sklearn_processes(models, epochs)
            except ImportError as error:
                absent["scikit-learn, two processes"] = str(error)
        times = {name: [] for name in contenders}
        for number in range(rounds + 1):  # the first warms up
            for name, run in contenders.items():
                seconds = run()
                if number:
                    times[name].append(seconds)
    return {name: statistics.median(taken) for name, taken in times.items()}, absent


def same_bits(models=8, epochs=3):
    """Whether each of some models has in `fit_many` the bits that it has alone."""
    from fastopt import nn

    x, y = digits()
    together, alone = [mlp(seed) for seed in range(models)], [mlp(seed) for seed in range(models)]
    nn.fit_many(together, x, y, epochs=epochs, threads=2)
    for model in alone:
        model.fit(x, y, epochs=epochs)
    pairs = zip(together, alone, strict=True)
    return all(a.params[name].tobytes() == b.params[name].tobytes() for a, b in pairs for name in a.params)


def judge(seconds):
    """A line for each demand on what was measured."""
    lines = []
    for name, against, wanted in DEMANDS:
        if name in seconds and against in seconds:
            ratio = seconds[against] / seconds[name]
            met = "yes" if ratio >= wanted else "NO "
            lines.append(f"{met:<4} {name}: {ratio:.2f} × the speed of {against} (at least {wanted:.2f})")
    return lines


def report(rounds, *, models=MODELS, epochs=EPOCHS, peers=True):
    """Measure, and print."""
    seconds, absent = race(rounds, models=models, epochs=epochs, peers=peers)
    steps = models * epochs * SAMPLES // BATCH
    for name, value in seconds.items():
        own = name.startswith(("mixed", "transform", "no transform"))
        each = "" if own else f"  {1e6 * value / steps:8.2f} µs a step of a model"
        print(f"{name:<28} {value:8.3f} s{each}")
    for name, why in absent.items():
        print(f"{name:<28} absent ({why})")
    equal = same_bits()
    print("\nMust show" + "".join(f"\n{line}" for line in judge(seconds)))
    print(f"{'yes' if equal else 'NO ':<4} the bits of each model are those that it has alone")
    return seconds | {"same bits": equal}
