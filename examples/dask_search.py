"""A search over hyperparameters by the workers of a Dask cluster, through joblib.

Without an address, a cluster of this machine's CPUs is started, one worker for each. With one, workers elsewhere do the
same: only the line that connects differs. They need the same versions of Python, scikit-learn and fastopt.

    python examples/dask_search.py
    python examples/dask_search.py --scheduler tcp://192.168.0.1:8786
"""

from __future__ import annotations

import argparse

import joblib
from distributed import Client, LocalCluster
from scipy.stats import loguniform
from sklearn.model_selection import RandomizedSearchCV

from fastopt import data, threads
from fastopt.sklearn import MLPClassifier

SPACE = {
    "learning_rate_init": loguniform(1e-4, 1e-1),
    "alpha": loguniform(1e-6, 1e-1),
    "dropout": [0.0, 0.2, 0.4],
    "hidden_layer_sizes": [(32,), (64,), (64, 32)],
}


def search(client, candidates=20, samples=1797, epochs=30):
    """The search, done: each fit is a task of some worker."""
    x, y = data.digits()
    x, y = x[:samples].reshape(samples, -1), y[:samples]
    estimator = MLPClassifier(max_iter=epochs, early_stopping=True, random_state=0)
    found = RandomizedSearchCV(estimator, SPACE, n_iter=candidates, cv=3, random_state=0)
    with joblib.parallel_config("dask", scatter=[x, y]):  # which sends the data to each worker once
        return found.fit(x, y)


def cluster(workers):
    """Workers on this machine: processes of one thread each, as candidates are many, and small."""
    return LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scheduler", help="the address of a cluster (default: one of this machine)")
    parser.add_argument("--candidates", type=int, default=20)
    arguments = parser.parse_args()
    with Client(arguments.scheduler or cluster(threads.available())) as client:
        found = search(client, arguments.candidates)
    print(f"{len(found.cv_results_['params'])} candidates; the best has accuracy {found.best_score_:.4f}:")
    for name, value in found.best_params_.items():
        print(f"  {name:<20} {value if isinstance(value, tuple) else f'{value:.3g}'}")


if __name__ == "__main__":
    main()
