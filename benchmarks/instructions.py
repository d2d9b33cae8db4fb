"""Count the instructions of one small step beside those of one NumPy call; no clock, so any machine will do.

python benchmarks/instructions.py           # needs valgrind; takes half a minute

On small tensors a call is all that a step costs. Callgrind counts a loop of calls in two lengths; the difference is
free of Python's start and of imports.
"""

import os
import re
import shutil
import subprocess
import sys

#: A step may take this share of the instructions of one call of NumPy.
MOST = 0.5

SETUP = """
import sys
import numpy as np
import fastopt

a, b, c = np.ones((3, 8), np.float32)
step = fastopt.Adam(a, lr=1e-3).step
multiply = np.multiply
repeat = range(int(sys.argv[1]))
"""
LOOPS = {
    "fastopt.Adam.step, 8 parameters": "for _ in repeat: step(b)",
    "np.multiply(a, b, out=c), 8 elements": "for _ in repeat: multiply(a, b, out=c)",
}
SHORT, LONG = 1_000, 3_000


def main() -> int:
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        print("valgrind is not installed: nothing was counted")
        return 1
    counts = {}
    for name, loop in LOOPS.items():
        total = {length: count(valgrind, SETUP + loop, length) for length in (SHORT, LONG)}
        counts[name] = (total[LONG] - total[SHORT]) / (LONG - SHORT)
        print(f"{name:<38} {counts[name]:7,.0f} instructions", flush=True)
    ours, numpys = counts.values()
    verdict = "holds" if ours <= MOST * numpys else "MISSED"
    print(f"{'ratio':<38} {ours / numpys:7.2f}, must be ≤ {MOST}: {verdict}")
    return 0 if verdict == "holds" else 1


def count(valgrind: str, program: str, length: int) -> int:
    """The instructions of a Python program that is told a length."""
    command = [valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, "-P", "-c", program]
    # What could differ from run to run: the order of sets, and threads that wait for work.
    environment = os.environ | {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "FASTOPT_NUM_THREADS": "1"}
    result = subprocess.run([*command, str(length)], env=environment, capture_output=True, text=True, check=True)
    return int(re.search(r"Collected : (\d+)", result.stderr)[1])


if __name__ == "__main__":
    sys.exit(main())
