"""What fastopt is measured beside: the same work in other libraries.

`add` enters into a contest what each installed library can do of it, and `agree` makes sure that all contenders
compute the same numbers. Import this module before NumPy: libraries read their number of threads when they load.
"""

import importlib

import numpy as np
import settings  # noqa: F401

from fastopt.bench import OF_OTHER_NUMBERS, Contest

#: The version of each peer, or why it is absent.
PEERS: dict[str, str] = {}
_modules = []

for _name in ("numba", "torch", "jax", "numexpr", "sklearn", "thinc", "deepspeed", "mkl"):
    try:
        _modules.append(importlib.import_module(f"{_name}_peer"))
        PEERS[_name] = _modules[-1].VERSION
    except ModuleNotFoundError as _error:
        if _error.name == f"{_name}_peer":
            raise
        PEERS[_name] = f"absent: {_error.name} is not installed"
    except RuntimeError as _error:
        PEERS[_name] = f"absent: {_error}"


def installed(name: str) -> bool:
    """Whether a peer takes part."""
    return not PEERS[name].startswith("absent")


def describe() -> str:
    """The peers, a line each."""
    width = max(map(len, PEERS))
    return "\n".join(f"{name:<{width}}  {version}" for name, version in PEERS.items())


def add(contest: Contest) -> Contest:
    """Enter every peer. A peer writes to memory of its own; a gradient of its own is among the contest's arrays."""
    for module in _modules:
        for name, (call, result) in module.contenders(contest).items():
            contest.contenders[name] = call
            if result is not None:
                contest.results[name] = result
    return contest


# ---- Agreement ----------------------------------------------------------------------------------------------

#: What the gradient is multiplied by from step to step; at the end it is what it was.
_FACTORS = (1, -0.5, -4, 0.5)


def agree(contest: Contest) -> Contest:
    """Raise an AssertionError where contenders of a new contest do not compute the same numbers."""
    names = [name for name in contest.contenders if name not in OF_OTHER_NUMBERS]
    if contest.params:
        factors = _FACTORS * (2 if contest.name == "radam" else 1)  # which is but momentum in its first five steps
        for factor in factors:
            for grad in contest.grads:
                grad *= factor
            for refresh in contest.refresh:
                refresh()
            results = {name: _result(contest, name) for name in names}
        ours = results["fastopt"]
        start = _joined(contest.params)
        # The rounding of each step, and some of how far they go.
        allowed = 0.75e-6 * len(factors) + 1e-3 * np.abs(ours - start)
    else:
        results = {}
        for name in names:
            if name in contest.results:
                contest.results[name].fill(np.nan)  # lest it be another contender's
            results[name] = _result(contest, name).copy()
        if contest.undropped is not None:
            results = {name: _without_chance(contest.undropped, y) for name, y in results.items()}
        ours = results["fastopt"]
        allowed = 5e-6 * np.abs(ours).max(initial=0) + 1e-3 * np.abs(ours)  # naive sums of 131,072 float32
    for name, theirs in results.items():
        label = f"{contest.name} {contest.size}: {name}"
        assert theirs.size == ours.size, f"{label} has shape {theirs.shape}, fastopt {ours.shape}"
        theirs = theirs.reshape(ours.shape)
        wrong = ~(np.abs(theirs - ours) <= allowed)
        # Of ten million gradients a few are so close to zero that it counts where ε stands.
        assert wrong.mean() <= 1e-6, (
            f"{label} is another result in {wrong.sum()} of {wrong.size} places, such as "
            f"{theirs[wrong][0]} for {ours[wrong][0]}"
        )
    return contest


def _result(contest: Contest, name: str) -> np.ndarray:
    inputs = contest.arrays | {f"gradient {i}": grad for i, grad in enumerate(contest.grads)}
    copies = {key: array.copy() for key, array in inputs.items()}
    if name in contest.before:
        contest.before[name]()
    returned = contest.contenders[name]()
    for key, array in inputs.items():
        same = np.array_equal(array, copies[key])
        assert same, f"{contest.name} {contest.size}: {name} changes {key}, which the others read"
    if contest.params:
        return _joined(contest.results.get(name, returned))
    if name in contest.results:
        return contest.results[name]
    values = returned if isinstance(returned, tuple) else (returned,)
    return next(np.asarray(value) for value in values if getattr(value, "ndim", 0))


def _joined(arrays) -> np.ndarray:
    """All parameters in one."""
    arrays = arrays if isinstance(arrays, list) else [arrays]
    return np.concatenate([np.ravel(array) for array in arrays])


def _without_chance(undropped: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Dropout at 1/2 as all must agree on it: the dropped are as many as they should be, and here as if kept."""
    dropped = (y == 0) & (undropped != 0)
    share = dropped.sum() / np.count_nonzero(undropped)
    assert abs(share - 0.5) < 3 / np.sqrt(y.size), f"{share} of the elements are dropped"
    return np.where(dropped, undropped, y)
