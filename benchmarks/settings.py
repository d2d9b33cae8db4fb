"""How the peers are to run, told by the environment. Import this before NumPy: libraries read it when they load."""

import os

#: The threads that every contender may use.
THREADS = int(os.environ.setdefault("FASTOPT_BENCH_THREADS", "1"))
#: Whether torch.compile, which takes some seconds for each contest, is among the contenders.
COMPILED = os.environ.get("FASTOPT_BENCH_COMPILED", "0") == "1"

for _library in ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMEXPR", "NUMBA"):
    os.environ[f"{_library}_NUM_THREADS"] = str(THREADS)
os.environ["NPROC"] = str(THREADS)  # XLA's; the flags that are told of elsewhere leave it two threads
