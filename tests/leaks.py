"""Memory that nothing points to any more, by LeakSanitizer: kernels, optimizers, programs, fits, files, refused calls.

python tests/leaks.py    # by `make sanitize`, with the bridge and the kernels compiled with -fsanitize=address

A second process does all that; reports whose stack goes through the bridge or C count. It also loses a block on
purpose, whose report must be there.
"""

import contextlib
import ctypes
import gc
import os
import re
import subprocess
import sys
import tempfile

LOST = 123_457  # bytes, on purpose


def exercise() -> None:
    """Each kernel, each optimizer; programs of several sizes; many fits in threads; files; refusals."""
    import numpy as np

    import fastopt
    from fastopt import cases, nn
    from fastopt.optimizers import OPTIMIZERS

    x = cases.normal(np.float32)
    for case in cases.CASES.values():
        arguments = case.arguments(x, case.edges[-1], case.options[0])
        case.run(arguments)
    params = {"w": np.ones((7, 5), np.float32), "b": np.ones(5, np.float32)}
    grads = {name: np.full_like(array, 0.1) for name, array in params.items()}
    for make in OPTIMIZERS.values():
        if not make.full_batch:
            optimizer = make(params, lr=1e-3)
            getattr(optimizer, "look_ahead", gc.collect)()  # which some want before a step
            optimizer.step(grads)
            again = make(params, lr=1e-3)
            again.load_state_dict(optimizer.state_dict())
    for _ in range(3):
        for wrong in (np.ones(3), np.ones((7, 5), np.int32), "text", None):
            for call in (
                lambda a: fastopt.functional.relu_forward(a, out=a),
                lambda a: fastopt.Adam({"w": a}).step({}),
            ):
                with contextlib.suppress(TypeError, ValueError):
                    call(wrong)
    inputs, labels = x(120, 12), np.arange(120) % 3
    for _ in range(2):
        layers = [nn.Dense(8), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.1), nn.Dense(3)]
        models = [nn.Sequential(layers if not i else [nn.Dense(3)], (12,), seed=i) for i in range(3)]
        nn.fit_many(models, inputs, labels, epochs=2, threads=2, validation_data=(inputs, labels))
        fastopt.set_num_threads(1 + fastopt.get_num_threads() % 3)
        models[0].fit(inputs, labels, batch_size=50)
        models[0].predict(inputs[:7])
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.npz")
        models[0].save(path)
        nn.load(path)


def child() -> None:
    exercise()
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc(ctypes.c_size_t(LOST))
    gc.collect()
    libc.__lsan_do_recoverable_leak_check()  # while all that is in use can be reached
    sys.stderr.flush()
    os._exit(0)


def main() -> int:
    """Run the child, and print what it has lost."""
    options = {
        "detect_leaks": "1",
        "fast_unwind_on_malloc": "0",
        "allocator_may_return_null": "1",
        "malloc_context_size": "40",
    }
    told = ":".join(f"{name}={value}" for name, value in options.items())
    environment = os.environ | {"ASAN_OPTIONS": told, "PYTHONMALLOC": "malloc"}
    ran = subprocess.run([sys.executable, __file__, "child"], env=environment, stderr=subprocess.PIPE, text=True)
    reports = re.split(r"\n\n+", ran.stderr)
    leaks = [report for report in reports if re.match(r"(Direct|Indirect) leak", report)]
    own = [report for report in leaks if re.search(r"_kernels|csrc/|parallel\.c|program\.c", report)]
    if ran.returncode or not any(f"{LOST} byte(s)" in report for report in leaks):
        print(ran.stderr[-3000:], "\nLeakSanitizer did not find the block that was lost on purpose")
        return 2
    print(*own, sep="\n\n")
    print(f"{len(leaks)} reports, {len(own)} of them of fastopt")
    return int(bool(own))


if __name__ == "__main__":
    child() if sys.argv[1:] == ["child"] else sys.exit(main())
