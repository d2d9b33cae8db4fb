"""The C kernels, one library per instruction set, and the one Cython module. All else is in pyproject.toml."""

import os
import platform
import re
import shutil
import sysconfig
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext

# The target's, which is another than this machine's where _PYTHON_HOST_PLATFORM says so.
SYSTEM, _, MACHINE = sysconfig.get_platform().replace("-", "_").partition("_")
if MACHINE.endswith("universal2"):  # instruction sets have flags of their own: one of the two
    MACHINE = platform.machine()
    os.environ.setdefault("ARCHFLAGS", f"-arch {MACHINE}")

# Of all C: no contraction and no fast-math, so that results are the same bits on every instruction set. Sums of
# products fuse by themselves, explicitly (csrc/layers/fma.h).
EXACT = ["-ffp-contract=off"]
# The two -fno- flags give up errno and floating-point traps, which no kernel uses, so that loops vectorise. (The bridge
# to Python goes without them: with them, a step of Adam takes 45 ns more on AMD Zen 5.)
CFLAGS = ["-std=c11", "-O3", "-g0", *EXACT, "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"]
CFLAGS += ["-fno-unroll-loops"]  # gcc's default: a fifth less of clang's code; what must be unrolled says so
CFLAGS += ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror=unused-function"]  # a kernel without a row
CFLAGS += ["-Wno-psabi"]  # helpers on vectors wider than registers are inlined, so no ABI matters

HIDDEN = [] if SYSTEM == "win" else ["-fvisibility=hidden"]  # all but the module's entry
THREADS = [] if SYSTEM in ("win", "emscripten", "pyodide") else ["-pthread"]

SMALL = ["-Os"] if os.environ.get("FASTOPT_SMALL") else []  # for wheels
ISA_FLAGS = {"baseline": ["-msimd128"] if MACHINE.endswith("wasm32") else []}
if MACHINE.endswith(("x86_64", "amd64")):
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma"]
    ISA_FLAGS["avx512"] = [*ISA_FLAGS["avx2"], *(f"-mavx512{part}" for part in ("f", "dq", "bw", "vl"))]
    ISA_FLAGS["avx512"] += ["-mprefer-vector-width=512"]
    ISA_FLAGS["baseline"] += SMALL  # what only CPUs without AVX2 and FMA run; steps keep their vectors (variant.h)

HEADERS = [f for pattern in ("csrc/*.[hdi]*", "csrc/steps/*", "csrc/layers/*") for f in glob(pattern)]

# The limited API: one module for every CPython from 3.11 on. Free-threaded ones have none before 3.15.
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")
LIMITS = [("Py_LIMITED_API", "0x030B0000"), ("CYTHON_LIMITED_API", "1")]


def for_msvc(flags: list[str]) -> list[str]:
    """The flags for clang-cl: those of its own driver as they are, gcc's spelled for it."""
    own = ("-O", "-m", "-W")
    return [f if f.startswith(own) else f"/clang:{f}" for f in flags if f not in ("-g0", "-fvisibility=hidden")]


def clang_cl(compiler) -> None:
    """Have Visual Studio's compiler be clang-cl, which comes with it: its own, cl, has no vectors as a type."""
    compiler.initialize()
    compiler.cc = shutil.which("clang-cl")
    if compiler.cc is None:
        raise SystemExit("fastopt's C needs clang-cl on Windows: install Visual Studio's component Clang")


class Libraries(build_clib):
    def build_libraries(self, libraries) -> None:
        if self.compiler.compiler_type == "msvc":
            clang_cl(self.compiler)
            for _, info in libraries:
                info["cflags"] = for_msvc(info["cflags"])
        super().build_libraries(libraries)


class Module(build_ext):
    def build_extensions(self) -> None:
        if self.compiler.compiler_type == "msvc":
            clang_cl(self.compiler)
            for extension in self.extensions:
                extension.extra_compile_args = for_msvc(extension.extra_compile_args)
        super().build_extensions()


def readme() -> str:
    """README.md as an index shows it: without pictures, and without links to files, which it has not."""
    text = re.sub(r"^!\[[^]]*\]\((?!https?:)[^)]*\)\n+", "", Path("README.md").read_text(encoding="utf-8"), flags=re.M)
    return re.sub(r"\[([^]]+)\]\((?!https?:)[^)]*\)", r"\1", text)


def library(name: str, sources: list[str], flags: list[str]) -> tuple[str, dict]:
    """A library that the module is linked with, before those that it needs itself."""
    options = {"cflags": CFLAGS + HIDDEN + flags, "obj_deps": {"": HEADERS}, "include_dirs": ["csrc"]}
    return name, {"sources": sources, **options}


setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    libraries=[
        library("fastopt", [f"csrc/{name}.c" for name in ("dispatch", "parallel", "permutation", "program")], THREADS),
        *(library(f"fastopt_{isa}", sorted(glob(f"csrc/isa/{isa}_*.c")), flags) for isa, flags in ISA_FLAGS.items()),
    ],
    ext_modules=[
        Extension(
            "fastopt._kernels",
            ["fastopt/_kernels.pyx"],
            depends=HEADERS,
            include_dirs=["csrc"],
            define_macros=LIMITS if LIMITED else [],
            extra_compile_args=["-O3", "-g0", *SMALL, *EXACT, *HIDDEN, *THREADS],
            extra_link_args=THREADS,
            py_limited_api=LIMITED,
        )
    ],
    cmdclass={"build_clib": Libraries, "build_ext": Module},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED else {},
)
