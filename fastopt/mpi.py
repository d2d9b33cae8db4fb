"""Processes that work together by MPI: the extra ``mpi``. docs/distributed.md shows how training uses them.

>>> from fastopt import mpi
>>> mpi.world() is None  # this process is alone
True
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from fastopt import threads
from fastopt.checks import Array

__all__ = ["Elsewhere", "Group", "world"]

T = TypeVar("T")

#: How launchers tell a process how many there are: MPICH's and Intel's, Open MPI's, and Slurm's for jobs of srun.
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
#: Seconds that a rank which fails waits for all others to fail likewise, before it ends them.
GRACE = 2.0


class Elsewhere(RuntimeError):
    """Another rank has failed, and says why; this one ends with it.

    Attributes
    ----------
    error : Exception or None
        Its exception, if that can be sent.

    Examples
    --------
    >>> from fastopt import mpi
    >>> error = mpi.Elsewhere("rank 1 has failed: the disk is full")
    >>> isinstance(error, RuntimeError), error.error
    (True, None)
    """

    error: Exception | None = None


def _mpi() -> Any:
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise ImportError("several processes need mpi4py: pip install 'fastopt[mpi]'", name="mpi4py") from error
    return MPI


def world() -> Any:
    """All processes that ``mpiexec`` has started with this one: what ``fit(comm=…)`` takes.

    Returns
    -------
    mpi4py.MPI.Intracomm or None
        None where this process is the only one.

    Raises
    ------
    ImportError
        Where several were started, and mpi4py is missing: the extra ``mpi``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import mpi, nn
    >>> model = nn.Sequential([nn.Dense(2)], (2,))
    >>> history = model.fit(np.eye(2), np.arange(2), comm=mpi.world())  # by one process, or by all that there are
    """
    if not any(os.environ.get(name, "1") not in ("", "0", "1") for name in _SIZES):
        return None
    comm = _mpi().COMM_WORLD
    return comm if comm.Get_size() > 1 else None


class Group:
    """Processes, the *ranks*, that do the same things at the same time.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        The processes, such as what `world` returns; it is duplicated.

    Attributes
    ----------
    rank, size : int
        The number of this process, and how many there are.

    Examples
    --------
    >>> import subprocess, sys
    >>> import mpi4py
    >>> code = '''
    ... import numpy as np
    ... from mpi4py import MPI
    ... from fastopt.mpi import Group
    ... group = Group(MPI.COMM_SELF)  # COMM_WORLD, where mpiexec has started several
    ... print(group.rank, group.size, group.rows(10), group.everyone("a"), group.of_first("b"))
    ... x = np.arange(3.0)
    ... group.copy_first(x)  # all ranks have what rank 0 had
    ... print(group.sum(x), group.gather(x))
    ... '''
    >>> print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    0 1 (0, 10) ['a'] b
    [0. 1. 2.] [[0. 1. 2.]]
    <BLANKLINE>
    """

    def __init__(self, comm: Any) -> None:
        self._mpi, self._comm, self._failed = _mpi(), comm.Dup(), comm.Dup()
        self.rank, self.size = int(comm.Get_rank()), int(comm.Get_size())

    # ---- Exchange --------------------------------------------------------------------------------------------

    def sum(self, array: Array) -> Array:
        """Add up an array over all ranks, in its place."""
        self._comm.Allreduce(self._mpi.IN_PLACE, array)
        return array

    def gather(self, array: Array) -> Array:
        """The arrays of all ranks, which have the same shape, along a new first axis."""
        gathered = np.empty((self.size, *array.shape), array.dtype)
        self._comm.Allgather(array, gathered)
        return gathered

    def everyone(self, value: T) -> list[T]:
        """The values of all ranks: whatever can be pickled."""
        gathered: list[T] = self._comm.allgather(value)
        return gathered

    def of_first(self, value: T) -> T:
        """The value that rank 0 has."""
        given: T = self._comm.bcast(value, 0)
        return given

    def copy_first(self, array: Array) -> None:
        """Copy what rank 0 has in a contiguous array."""
        self._comm.Bcast(array, 0)

    def rows(self, n: int) -> tuple[int, int]:
        """Where the part of this rank begins, and ends, of n rows."""
        return n * self.rank // self.size, n * (self.rank + 1) // self.size

    def together(self, function: Callable[[], T]) -> T:
        """Call a function on all ranks, or have it fail on all.

        Raises
        ------
        Elsewhere
            Where it failed on others alone; where it failed on this rank, its own exception.
        """
        try:
            value, error = function(), None
        except Exception as own:
            error = own
        told = self.everyone(None if error is None else (f"{type(error).__name__}: {error}", _sent(error)))
        if error is not None:
            raise error
        for rank, theirs in enumerate(told):
            if theirs is not None:
                other = Elsewhere(f"rank {rank} of {self.size} failed: {theirs[0]}")
                other.error = theirs[1]
                raise other
        return value

    # ---- Its end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the communicators, on all ranks."""
        self._failed.Free()
        self._comm.Free()

    def fail(self, error: BaseException) -> None:
        """Called where an exception leaves the group: return where all ranks have one, or else end all processes, as
        the others would wait for this one for ever."""
        with contextlib.suppress(Exception):  # a rank may be lost
            request, began = self._failed.Ibarrier(), time.monotonic()
            while time.monotonic() - began < GRACE:
                if request.Test():
                    return self.close()
                time.sleep(0.001)
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        told = f"fastopt: rank {self.rank} of {self.size} failed, so all end: {said}"
        with contextlib.suppress(OSError, ValueError):  # standard error may be closed; that of the process is meant
            print("".join(traceback.format_exception(error)), told, sep="", file=sys.__stderr__, flush=True)
        self._comm.Abort(1)


def _sent(error: Exception) -> Exception | None:
    """The exception, if it can be sent to other ranks."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        return None
    return error if isinstance(copy, type(error)) else None


@contextlib.contextmanager
def joined(comm: Any) -> Iterator[Group | None]:
    """A context in which the ranks of a communicator are a `Group`; None without one, or where it has one rank alone.

    An exception that leaves the context on all ranks is theirs to catch; one that leaves it on some ends all.
    Within it, the ranks of one machine share its CPUs, unless somebody has said how many threads kernels use.
    """
    if comm is None:
        yield None
        return
    if not callable(getattr(comm, "Allreduce", None)) or not isinstance(comm, _mpi().Intracomm):
        raise TypeError(f"comm must be a communicator of mpi4py, such as mpi4py.MPI.COMM_WORLD, got {comm!r:.80}")
    if comm.Get_size() == 1:
        yield None
        return
    group = Group(comm)
    try:
        with threads.limited(_threads(comm)):
            yield group
    except BaseException as error:
        group.fail(error)
        raise
    group.close()


def _threads(comm: Any) -> int:
    """The number of threads of a rank that shares CPUs with others."""
    node, own = comm.Split_type(_mpi().COMM_TYPE_SHARED), threads.cpus()
    sharing = sum(bool(own & other) for other in node.allgather(own))
    node.Free()
    return max(1, threads.available() // sharing) if threads.is_default() else threads.get_num_threads()
