"""The C kernels, one library per instruction set, and the one Cython module. All else is in pyproject.toml."""

import platform
from glob import glob

from setuptools import Extension, setup

# No contraction and no fast-math: results are the same bits on every instruction set. Sums of products fuse by
# themselves, explicitly (csrc/layers/fma.h).
# The two -fno- flags give up errno and floating-point traps, which no kernel uses, so that loops vectorise.
CFLAGS = ["-std=c11", "-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"]
CFLAGS += ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror=unused-function"]  # a kernel without a row
CFLAGS += ["-Wno-psabi"]  # helpers on vectors wider than registers are inlined, so no ABI matters

THREADS = [] if platform.system() == "Windows" else ["-pthread"]

ISA_FLAGS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma"]
    ISA_FLAGS["avx512"] = [*ISA_FLAGS["avx2"], *(f"-mavx512{part}" for part in ("f", "dq", "bw", "vl"))]
    ISA_FLAGS["avx512"] += ["-mprefer-vector-width=512"]

HEADERS = [f for pattern in ("csrc/*.[hdi]*", "csrc/steps/*", "csrc/layers/*") for f in glob(pattern)]

setup(
    libraries=[
        (
            f"fastopt_{isa}",
            {
                "sources": [f"csrc/isa/{isa}_float.c", f"csrc/isa/{isa}_double.c"],
                "cflags": CFLAGS + flags,
                "obj_deps": {"": HEADERS},
                "include_dirs": ["csrc"],
            },
        )
        for isa, flags in ISA_FLAGS.items()
    ],
    ext_modules=[
        Extension(
            "fastopt._kernels",
            ["fastopt/_kernels.pyx", "csrc/dispatch.c", "csrc/parallel.c", "csrc/program.c"],
            depends=HEADERS,
            include_dirs=["csrc"],
            define_macros=[("Py_LIMITED_API", "0x030B0000"), ("CYTHON_LIMITED_API", "1")],
            extra_compile_args=["-O3", "-g0", *THREADS],
            extra_link_args=THREADS,
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
