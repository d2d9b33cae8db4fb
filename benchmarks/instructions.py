"""Count the instructions of small calls, and compare them with recorded ones; no clock, so any machine will do.

python benchmarks/instructions.py           # needs valgrind; takes half a minute
python benchmarks/instructions.py --record  # writes instructions.json anew

On small arrays a call is all that a layer or a step costs. Callgrind counts loops of calls, each in two lengths; the
difference is free of what stands around a loop. All run in one process, on AVX2 where there is that:
valgrind does not know AVX-512, and baseline emulates the fused multiply-add.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from fastopt import _kernels

RECORD = Path(__file__).with_suffix(".json")
#: A call may take this many times what was recorded, …
MOST = 1.03
#: … where NumPy's own takes as many but for this share (builds of the same Python differ by a tenth), …
SAME = 0.01
#: … and a step of Adam this share of the instructions of one call of NumPy.
MOST_OF_NUMPY = 0.5
#: Where scalars are kept from step to step, a step of 1,000 parameters may take this many times Adam's.
MOST_OF_ADAM = 1.5

SETUP = """
import gc, os
import numpy as np
import fastopt
from fastopt import functional as F

a, b, c, m, v = np.ones((5, 8), np.float32)
step = fastopt.Adam(a, lr=1e-3).step
p, g = np.ones((2, 1000), np.float32)
optimizers = fastopt.Adam, fastopt.NAdam, fastopt.ScheduleFreeSGD, fastopt.ScheduleFreeAdamW
adam_1000, nadam_1000, free_sgd_1000, free_adamw_1000 = [optimizer(p, lr=1e-3).step for optimizer in optimizers]
multiply = np.multiply
mask = np.empty(1, np.uint8)
x, w, z, dw = (np.ones(shape, np.float32) for shape in ((32, 64), (64, 32), (32, 32), (64, 32)))
logits, labels = np.ones((32, 10), np.float32), np.arange(32) % 10
dlogits, losses = np.empty_like(logits), np.empty(32, np.float32)
rows, y = np.ones((2, 64, 512), np.float32)
vectors = np.ones((4, 512), np.float32)
mean, inv_std = np.ones((2, 512))
image, pooled = np.ones((1, 4, 4, 8), np.float32), np.empty((1, 2, 2, 8), np.float32)
winner = np.empty((1, 2, 2, 8), np.int32)
bias = np.ones(32, np.float32)
"""
ADAM, NUMPY = "Adam.step, 8 parameters", "np.multiply, 8 elements"
ADAM_1000 = "Adam.step, 1,000 parameters"
WITH_SCALARS = [f"{cls}.step, 1,000 parameters" for cls in ("NAdam", "ScheduleFreeSGD", "ScheduleFreeAdamW")]
#: What is counted, and how often the shorter loop calls it; the longer one, three times as often.
CALLS = {
    ADAM: ("step(b)", 500),
    ADAM_1000: ("adam_1000(g)", 100),
    **dict(zip(WITH_SCALARS, [(f"{step}_1000(g)", 100) for step in ("nadam", "free_sgd", "free_adamw")], strict=True)),
    "adam, 8 parameters": ("F.adam(a, b, m, v, t=3)", 100),
    "relu_forward, 8 elements": ("F.relu_forward(a, out=c)", 500),
    "relu_backward, 8 elements": ("F.relu_backward(a, b, out=c)", 500),
    "bias_relu_forward, 8 elements": ("F.bias_relu_forward(a, b, out=c)", 500),
    "dropout, 8 elements": ("F.dropout(a, 0.5, seed=1, counter=2, out=c, mask=mask)", 200),
    "batch_norm_forward, (64, 512)": ("F.batch_norm_forward(rows, *vectors, axis=-1)", 10),
    "batch_norm_forward, (64, 512), into buffers": (
        "F.batch_norm_forward(rows, *vectors, axis=-1, out=y, mean=mean, inv_std=inv_std)",
        10,
    ),
    "dense_forward, (32, 64, 32)": ("F.dense_forward(x, w, bias, relu=True, out=z)", 20),
    "dense_weight_grad, (32, 64, 32)": ("F.dense_weight_grad(x, z, out=dw, dbias=bias)", 20),
    "softmax_cross_entropy, (32, 10)": (
        "F.softmax_cross_entropy(logits, labels, out=dlogits, losses=losses)",
        50,
    ),
    "max_pool_forward, (1, 4, 4, 8)": ("F.max_pool_forward(image, 2, out=pooled, winner=winner)", 100),
    NUMPY: ("multiply(a, b, out=c)", 500),
}
ISA = "avx2" if "avx2" in _kernels.isas() else "baseline"
#: A function of the C library that nothing else calls: entering it ends a part of the count.
MARK = "getppid"
LOOPS = f"""
gc.disable()
def count(call, length):
    loop = compile("for _ in repeat: " + call, call, "exec")
    for repeat in (range(30), range(length), range(3 * length)):
        exec(loop, globals() | {{"repeat": repeat}})
        os.{MARK}()

os.{MARK}()
"""


def counts(valgrind: str) -> dict[str, int]:
    """The instructions of each call."""
    program = SETUP + LOOPS + "".join(f"count({call!r}, {length})\n" for call, length in CALLS.values())
    # What could differ from run to run: the order of sets, threads that wait for work, and what valgrind does not know.
    environment = os.environ | {
        "PYTHONHASHSEED": "0",
        "OPENBLAS_NUM_THREADS": "1",
        "FASTOPT_NUM_THREADS": "1",
        "FASTOPT_ISA": ISA,
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        options = ["--tool=callgrind", f"--callgrind-out-file={out}", f"--dump-before={MARK}", "--vgdb=no"]
        command = [valgrind, *options, sys.executable, "-P", "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"the program failed under valgrind:\n{done.stderr}")
        parts = [part(out.with_name(f"out.{number}")) for number in range(1, 3 * len(CALLS) + 2)]
    result = {}
    for i, (name, (_, length)) in enumerate(CALLS.items()):
        _, short, long = parts[1 + 3 * i : 4 + 3 * i]
        result[name] = round((long - short) / (2 * length))
    return result


def part(path: Path) -> int:
    """The instructions of a part of callgrind's count."""
    return int(re.search(r"^(?:summary|totals): (\d+)", path.read_text(), re.MULTILINE)[1])


def made_with() -> dict[str, str]:
    """On what counts depend, as far as it tells them apart."""
    library = Path(_kernels.__file__).read_bytes()
    compiler = re.search(rb"(GCC): \([^)]*\) (\d+)\.|(clang) version (\d+)\.", library)
    return {
        "machine": platform.machine(),
        "instruction set": ISA,
        "Python": "{}.{}".format(*sys.version_info),
        "NumPy": ".".join(np.__version__.split(".")[:2]),
        "compiler": b" ".join(group for group in compiler.groups() if group).decode() if compiler else "unknown",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name} anew")
    record = parser.parse_args().record
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        print("valgrind is not installed: nothing was counted")
        return 1
    measured, here = counts(valgrind), made_with()
    if record:
        RECORD.write_text(json.dumps({"made with": here, "instructions": measured}, indent=1) + "\n")
    recorded = json.loads(RECORD.read_text())
    comparable = recorded["made with"] == here
    if not comparable:
        print(f"recorded with {recorded['made with']}, here is {here}: counts are not compared")
    elif abs(measured[NUMPY] / recorded["instructions"][NUMPY] - 1) > SAME:
        comparable = False
        print("another build of Python or NumPy than that of the record, by NumPy's own call: counts are not compared")
    missed = []
    print(f"{'instructions of a call':<50} {'measured':>9} {'recorded':>9} {'ratio':>7}")
    for name, count in measured.items():
        before = recorded["instructions"].get(name) if comparable else None
        line = f"{name:<50} {count:9,}" + (f" {before:9,} {count / before:7.3f}" if before else "")
        if before and count > MOST * before:
            missed.append(name)
            line += f", must be ≤ {MOST}: MISSED"
        print(line)
    demands = [("Adam.step to np.multiply", ADAM, NUMPY, MOST_OF_NUMPY)]
    demands += [(f"{name} to Adam's", name, ADAM_1000, MOST_OF_ADAM) for name in WITH_SCALARS]
    for what, name, other, most in demands:
        ratio = measured[name] / measured[other]
        print(f"{what:<50} {ratio:9.2f}, must be ≤ {most}: {'holds' if ratio <= most else 'MISSED'}")
        missed += [what] if ratio > most else []
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
