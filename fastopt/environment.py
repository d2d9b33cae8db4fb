"""What results depend on beside the program: the record that files, histories and benchmarks hold.

`fastopt info` prints it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import sys
from pathlib import Path

import numpy as np

from fastopt import _kernels, checks

#: Whose products dense layers are made of: fastopt's own, or those of NumPy's BLAS, whose bits are other ones.
try:
    PRODUCTS = checks.choice("it", os.environ.get("FASTOPT_PRODUCTS") or "own", ("own", "blas"))
except ValueError as error:
    raise ImportError(f"FASTOPT_PRODUCTS: {error}") from None


def record() -> dict[str, str]:
    """Versions, CPU, instruction set, micro-kernel, threads and BLAS of this process.

    Returns
    -------
    dict
        The same from call to call, unless the number of threads, the instruction set or the tuning is changed.

    Examples
    --------
    >>> import fastopt
    >>> record()["fastopt"] == fastopt.__version__
    True
    """
    roots = "fused multiply-add" if _kernels.roots_by_fma() else "the divider"
    return {
        "fastopt": sys.modules["fastopt"].__version__,
        "instruction set": f"{_kernels.isa()} (of {', '.join(_kernels.isas())})",
        "kernel threads": str(_kernels.get_num_threads()),
        **_software(),
        "dense layers": "products of fastopt's" if PRODUCTS == "own" else "products of the BLAS",
        "micro-kernel": "{} × {} float32".format(*_kernels.tile()),
        "tuning": f"{_kernels.tuning()} (roots by {roots})",
        **_machine(),
    }


@functools.cache
def _software() -> dict[str, str]:
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "BLAS": f"{blas['name']} {blas['version']}",
    }


@functools.cache
def _machine() -> dict[str, str]:
    listed = ""
    with contextlib.suppress(OSError):
        listed = Path("/proc/cpuinfo").read_text()
    return {"CPU": cpu_name(listed), "machine": platform.machine(), "system": platform.system()}


def cpu_name(listed: str) -> str:
    """The name of the CPU in the contents of ``/proc/cpuinfo``; where there is none, what Python has for it.

    >>> cpu_name("processor\\t: 0\\nmodel name\\t: AMD EPYC 9B14\\n")
    'AMD EPYC 9B14'
    >>> cpu_name("processor\\t: 0\\nCPU implementer\\t: 0x41\\nCPU part\\t: 0xd4f\\n")  # of ARM, which has numbers
    'CPU implementer 0x41, CPU part 0xd4f'
    """
    pairs = [line.partition(":")[::2] for line in listed.splitlines()]
    fields = {name.strip(): value.strip() for name, value in reversed(pairs)}  # those of the first CPU
    if name := fields.get("model name"):
        return name
    parts = [f"{name} {fields[name]}" for name in ("CPU implementer", "CPU part") if name in fields]
    return ", ".join(parts) or platform.processor() or platform.machine()
