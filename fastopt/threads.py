"""The number of threads that kernels use.

Work on large arrays is divided among a pool of threads, which start when they are first needed; results are the same
bits for any number of them. Several threads of Python that train at the same time have the number divided among them.

The environment variable ``FASTOPT_NUM_THREADS`` sets the number before import. By default, it is the number of CPUs
that this process may use, by its affinity and by the quota of its control group; or ``OMP_NUM_THREADS`` where that is
fewer, which joblib sets for its processes. Processes that multiprocessing starts, and forked ones, have one thread by
default: there are usually as many of them as CPUs.

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
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastopt import _kernels, checks


def get_num_threads() -> int:
    """The largest number of threads that a kernel uses, including the calling one.

    Examples
    --------
    >>> import fastopt
    >>> 1 <= fastopt.get_num_threads() <= 256
    True
    """
    return _kernels.get_num_threads()


def set_num_threads(n: int) -> None:
    """Use up to `n` threads from now on.

    Parameters
    ----------
    n : int
        In [1, 256]; 1 means the calling thread alone. `fastopt.threads` has the default.

    Raises
    ------
    TypeError, ValueError
        Where `n` is not such a number.

    Examples
    --------
    >>> import fastopt
    >>> before = fastopt.get_num_threads()
    >>> fastopt.set_num_threads(1)
    >>> fastopt.get_num_threads()
    1
    >>> fastopt.set_num_threads(before)
    """
    _kernels.set_num_threads(checks.integer("n", n, 1, _kernels.MAX_THREADS))
    _Default.holds = False


class _Default:
    """Whether the number of threads is that of import, which nobody has set."""

    holds = False


@contextlib.contextmanager
def limited(n: int) -> Iterator[None]:
    """A context in which kernels that the calling thread calls use at most n threads."""
    before = _kernels.limit_threads(n)
    try:
        yield
    finally:
        _kernels.limit_threads(before)


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


def cpus() -> set[int]:
    """The numbers of the CPUs that this process may use by its affinity."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def available() -> int:
    """The number of CPUs that this process may use, at least 1 and at most 256."""
    return max(1, math.floor(min(len(cpus()), _quota(Path("/")), _kernels.MAX_THREADS)))


def is_default() -> bool:
    """Whether nobody has said how many threads kernels use."""
    return _Default.holds


#: Where a control group of version 2, and one of version 1, has its quota and its period.
_FILES = (("", ("cpu.max",)), ("cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us")))


def _quota(root: Path) -> float:
    """The number of CPUs by the quotas of the process's control group and those around it; infinity without any."""
    mounted, paths = root / "sys/fs/cgroup", {"": "/", "cpu": "/"}
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" or "cpu" in controllers.split(","):
                paths["cpu" if controllers else ""] = path
    quota = math.inf
    for hierarchy, names in _FILES:
        group = Path(paths[hierarchy].lstrip("/"))
        for each in (group, *group.parents):
            folder = mounted / hierarchy / each
            try:
                numbers = " ".join((folder / name).read_text() for name in names).split()
                most, period = int(numbers[0]), int(numbers[1])
            except (OSError, ValueError, IndexError):  # "max" is none
                continue
            if most > 0 and period > 0:
                quota = min(quota, most / period)
    return quota


def _is_child() -> bool:
    """Whether multiprocessing has started this process."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


def _by_default() -> int:
    """The number of threads where nobody has said one."""
    if _is_child():
        return 1
    number = available()
    with contextlib.suppress(ValueError):  # a list, of nested regions: the first is the outermost
        asked = int(os.environ.get("OMP_NUM_THREADS", "").split(",")[0])
        number = min(number, asked) if asked > 0 else number
    return number


def _from_environment() -> int:
    """The number that FASTOPT_NUM_THREADS says; 0 for none."""
    text = os.environ.get("FASTOPT_NUM_THREADS", "").strip()
    if not text:
        return 0
    try:
        return checks.integer("FASTOPT_NUM_THREADS", int(text), 1, _kernels.MAX_THREADS)
    except ValueError:
        raise ImportError(
            f"FASTOPT_NUM_THREADS must be an integer in [1, {_kernels.MAX_THREADS}], got {text!r}"
        ) from None


def _in_child() -> None:
    """In a forked child, whose parent and siblings have the other CPUs."""
    if _Default.holds:
        _kernels.set_num_threads(1)
    _kernels.limit_threads(_kernels.MAX_THREADS)


_kernels.set_num_threads(_from_environment() or _by_default())
_Default.holds = not _from_environment()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
