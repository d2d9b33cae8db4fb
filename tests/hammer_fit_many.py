"""Runs of `fit_many` for ThreadSanitizer: many models at once, in more threads than CPUs, with all that they share.

python tests/hammer_fit_many.py [race]    # by `make tsan`, with kernels and the bridge compiled with -fsanitize=thread

Arrays, kernels, the thread pool and the limits of threads are shared; beside the runs, another thread changes the
number of threads, evaluates a model that nobody trains, and trains one by itself. In the end, each model has the bits
that it has alone.
"""

import sys
import threading
import warnings

import numpy as np

import fastopt
from fastopt import nn

ROUNDS, MODELS = 6, 6


def mlp(seed: int) -> nn.Sequential:
    layers = [nn.Dense(64), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2), nn.Dense(10)]
    return nn.Sequential(layers, (40,), seed=seed)


def cnn(seed: int) -> nn.Sequential:
    layers = [nn.Reshape((10, 4, 1)), nn.Conv2D(8, 3), nn.ReLU(), nn.MaxPool2D(2), nn.Flatten(), nn.Dense(10)]
    return nn.Sequential(layers, (40,), seed=seed)


def transform(x, y, rng):
    return x + rng.normal(scale=0.01, size=x.shape).astype(x.dtype), y


def bits(model: nn.Sequential) -> bytes:
    return b"".join(array.tobytes() for array in (*model.params.values(), *model.state.values()))


def main() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(600, 40)).astype(np.float32), rng.integers(10, size=600)
    options = {"epochs": 2, "batch_size": 50, "validation_data": (x[:100], y[:100])}
    done, errors = threading.Event(), []

    def disturb() -> None:
        still, number = mlp(99), 0
        try:
            while not done.is_set():
                number = number % 4 + 1
                fastopt.set_num_threads(number)
                still.evaluate(x, y)
                mlp(98).fit(x[:200], y[:200], batch_size=200)
        except Exception as error:
            errors.append(error)

    for place in range(ROUNDS):
        make = (mlp, cnn)[place % 2]
        more = {"transform": transform} if place % 3 == 2 else {}
        models = [make(seed) for seed in range(MODELS)]
        done.clear()
        other = threading.Thread(target=disturb)
        other.start()
        nn.fit_many(models, x, y, threads=4, optimizer=lambda model: fastopt.Adam(model.params), **options, **more)
        done.set()
        other.join()
        assert not errors, errors
        alone = make(MODELS - 1)
        alone.fit(x, y, optimizer=fastopt.Adam(alone.params), **options, **more)
        assert bits(alone) == bits(models[-1])
    print(f"{ROUNDS} times {MODELS} models, with the bits that they have alone")


def race() -> None:
    """What nobody may do, so that ThreadSanitizer is seen to notice: two threads write to one array."""
    array = np.ones(10**6, np.float32)
    threads = [threading.Thread(target=fastopt.functional.relu_forward, args=(array,), kwargs={"out": array})
               for _ in range(2)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        race() if sys.argv[1:] == ["race"] else main()
