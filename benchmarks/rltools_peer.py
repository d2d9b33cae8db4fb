"""RLtools: networks as C++ templates, compiled here for each of their sizes (some seconds).

Only the headers of its package are used, so that ``pip install --no-deps rltools`` will do. Where it or a compiler is
not there, or the compilation fails, it is absent.
"""

import ctypes
import importlib.util
import os
import pathlib
import subprocess
import tempfile

import numpy as np


def trainer(x, y, hidden, batch):
    """A function ``epoch(order)`` that takes a step on each batch of an order and returns the mean loss; ImportError
    where there is none."""
    found = importlib.util.find_spec("rltools")
    if found is None:
        raise ImportError("rltools is not installed")
    if len({*hidden}) != 1:
        raise ImportError("its MLPs have hidden layers of one width")
    headers = pathlib.Path(next(iter(found.submodule_search_locations)), "external", "rl_tools", "include")
    sizes = {"BATCH": batch, "INPUTS": x.shape[1], "OUTPUTS": 10, "HIDDEN": hidden[0], "HIDDEN_LAYERS": len(hidden)}
    defined = [f"-D{name}={size}" for name, size in sizes.items()]
    with tempfile.TemporaryDirectory() as folder:
        made = os.path.join(folder, "peer.so")
        flags = ["-std=c++17", "-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
        source = pathlib.Path(__file__).with_suffix(".cpp")
        try:
            command = [os.environ.get("CXX", "g++"), *flags, *defined, f"-I{headers}", source, "-o", made]
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ImportError(f"it does not compile ({error})") from error
        library = ctypes.CDLL(made)
    library.epoch.restype, labels = ctypes.c_double, y.astype(np.int64)
    library.begin()

    def epoch(order):
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (x, labels, order)]
        return library.epoch(*pointers, ctypes.c_int64(len(order) // batch))

    return epoch
