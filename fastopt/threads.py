"""The number of threads that kernels use.

Work on large arrays is divided among a pool of threads, which start when they are first needed; results are the same
bits for any number of them. The environment variable ``FASTOPT_NUM_THREADS`` sets the number before import.

>>> import fastopt
>>> before = fastopt.get_num_threads()
>>> fastopt.set_num_threads(2)
>>> fastopt.get_num_threads()
2
>>> fastopt.set_num_threads(before)
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastopt import _kernels, checks


def get_num_threads() -> int:
    """The largest number of threads that a kernel uses, including the calling one."""
    return _kernels.get_num_threads()


def set_num_threads(n: int) -> None:
    """Use up to `n` threads from now on.

    Parameters
    ----------
    n : int
        In [1, 256]; 1 means the calling thread alone. The default is the number of CPUs that this process may use, by
        its affinity and by the quota of its container.

    Raises
    ------
    TypeError, ValueError
        Where `n` is not such a number.
    """
    _kernels.set_num_threads(checks.integer("n", n, 1, _kernels.MAX_THREADS))


class _Blas:
    """The state of `blas_on_one_thread`: the number of open contexts, and the limits that end with the last one."""

    lock = threading.Lock()
    contexts = 0
    limits: Any = None


@contextlib.contextmanager
def blas_on_one_thread() -> Iterator[None]:
    """A context in which NumPy's BLAS uses the calling thread alone, where threadpoolctl is installed.

    The threads of a BLAS stay awake for some time after each product (OpenBLAS's for up to 0.1 s), on the CPUs that the
    kernels then need. Contexts may overlap, in several threads: the end of the last one restores the limits.
    """
    with _Blas.lock:
        if not _Blas.contexts:
            with contextlib.suppress(ImportError):
                import threadpoolctl

                _Blas.limits = threadpoolctl.threadpool_limits(1, "blas")
        _Blas.contexts += 1
    try:
        yield
    finally:
        with _Blas.lock:
            _Blas.contexts -= 1
            if not _Blas.contexts and _Blas.limits is not None:
                _Blas.limits.restore_original_limits()
                _Blas.limits = None


def available() -> int:
    """The number of CPUs that this process may use, at most 256."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cpus, _quota(), _kernels.MAX_THREADS)))


def _quota() -> float:
    """The number of CPUs by the quota of the container's control group; infinity where there is no limit."""
    group = Path("/sys/fs/cgroup")
    try:
        quota, period = (group / "cpu.max").read_text().split()  # version 2
    except (OSError, ValueError):
        try:  # version 1
            quota, period = ((group / f"cpu/cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return math.inf
    try:
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (ValueError, ZeroDivisionError):  # "max"
        return math.inf


def _from_environment() -> int:
    text = os.environ.get("FASTOPT_NUM_THREADS", "").strip()
    if not text:
        return available()
    try:
        return checks.integer("FASTOPT_NUM_THREADS", int(text), 1, _kernels.MAX_THREADS)
    except ValueError:
        raise ImportError(
            f"FASTOPT_NUM_THREADS must be an integer in [1, {_kernels.MAX_THREADS}], got {text!r}"
        ) from None


set_num_threads(_from_environment())
