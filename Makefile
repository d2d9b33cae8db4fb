# The verbs of the day. All work in .venv, which `make dev` makes.
PYTHON = .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH)
C_FILES = $(shell git ls-files 'csrc/*.c' 'csrc/*.h' 'tests/*.c')

.PHONY: dev build test fast bench fuzz fuzz-build fuzz-kernels fuzz-readers kill faults accuracy coverage mutants memcheck \
  gallery hostile check alone format vec neon neon-test clang-test roots sanitize tsan wheel docs tutorial release clean

dev:  ## a virtual environment with everything for work on fastopt
	python3 -m venv .venv
	.venv/bin/pip install -q -e '.[dev,train,peers]'

build:  ## compile again what has changed in C or Cython
	.venv/bin/pip install -q -e .

test:  ## all tests
	$(PYTHON) -m pytest -q

fast: build  ## rebuild, and a cross-section of all tests
	$(PYTHON) -m pytest -q -x --quick

bench:  ## every kernel beside NumPy and every peer that is installed
	$(PYTHON) benchmarks/compare.py

# Executions of kernels, and seconds for the readers.
RUNS = 10000000
SECONDS = 3600
FUZZ_CC = clang
FUZZ_FLAGS = -O1 -w -gline-tables-only
FUZZ_SANITIZER = address
fuzz: fuzz-kernels fuzz-readers  ## kernels, readers, calls of the table of cases, and damaged files: for hours (RUNS, SECONDS)
	$(PYTHON) tests/fuzz/values.py 100000 $(or $(SEED),1)
	FASTOPT_FUZZ=500 $(PYTHON) -m pytest -q tests/test_files.py -k damage

fuzz-build:  # every instruction set, with what guides the fuzzer in it
	mkdir -p build/fuzz
	for isa in $(ISAS); do for real in float double; do \
	  $(FUZZ_CC) $(call flags,$$isa) $(FUZZ_FLAGS) -fsanitize=fuzzer-no-link,$(FUZZ_SANITIZER) -Icsrc \
	    -c -o build/fuzz/$${isa}_$$real.o csrc/isa/$${isa}_$$real.c || exit 1; done; done
	$(FUZZ_CC) $(call flags,baseline) $(FUZZ_FLAGS) -fsanitize=fuzzer-no-link,$(FUZZ_SANITIZER) -Icsrc \
	  -c -o build/fuzz/program.o csrc/program.c
	$(FUZZ_CC) $(call flags,baseline) $(FUZZ_FLAGS) -fsanitize=$(FUZZ_SANITIZER) -Icsrc \
	  -c -o build/fuzz/kernels.o tests/fuzz/kernels.c
	$(FUZZ_CC) -fsanitize=fuzzer,$(FUZZ_SANITIZER) -o build/fuzz/kernels build/fuzz/*.o -lm

fuzz-kernels: fuzz-build  ## the C interface under libFuzzer and AddressSanitizer: bits of instruction sets and of parts
	$(PYTHON) tests/fuzz/corpus.py unpack tests/fuzz/kernels.txt build/fuzz/corpus
	cd build/fuzz && nice -n 19 ./kernels -entropic=0 -use_counters=0 -reload=0 -max_len=48 -len_control=0 \
	  -print_final_stats=1 -runs=$(RUNS) corpus

fuzz-readers:  ## IDX, CIFAR, npz, safetensors, CSV, models, optimizers, checkpoints under atheris
	nice -n 19 $(PYTHON) tests/fuzz/readers.py build/fuzz/readers -timeout=20 -print_final_stats=1 \
	  -max_total_time=$(SECONDS)

kill:  ## two hundred runs that are killed at random moments, and resumed to the same bits
	FASTOPT_KILLS=200 $(PYTHON) -m pytest -q tests/test_files.py -k killed

check: alone  ## style, types, stubs
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/cython-lint fastopt/_kernels.pyx
	.venv/bin/clang-format --dry-run --Werror $(C_FILES)
	.venv/bin/mypy
	.venv/bin/pyright --pythonpath $(PYTHON)
	$(PYTHON) -m mypy.stubtest fastopt._kernels --mypy-config-file pyproject.toml

alone:  ## compile each C file by itself, as editors do: it includes what it uses
	@flags="$(call flags,baseline) -Wno-unused-function -Werror -x c -fsyntax-only"; for bits in 32 64; do \
	  for file in $(filter-out csrc/isa/%,$(filter csrc/%,$(C_FILES))); do \
	    $(CC) $$flags -DREAL_BITS=$$bits $$file || exit 1; done; done

format:  ## put Python and C into shape
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
	.venv/bin/clang-format -i $(C_FILES)

# The flags that setup.py compiles an instruction set with.
flags = $$(python3 -c "import runpy, setuptools; setuptools.setup = lambda **k: None; \
  s = runpy.run_path('setup.py'); print(*s['CFLAGS'] + s['ISA_FLAGS']['$(1)'])")

# Those that setup.py compiles here.
ISAS = $$(python3 -c "import runpy, setuptools; setuptools.setup = lambda **k: None; \
  print(*runpy.run_path('setup.py')['ISA_FLAGS'])")

vec:  ## which loops the compiler made vector loops of, and with how wide vectors
	@for real in float double; do $(foreach isa,baseline avx2 avx512,echo "== $(isa) $$real"; \
	  $(CC) $(call flags,$(isa)) -Icsrc -fopt-info-vec-optimized -c -o /dev/null csrc/isa/$(isa)_$$real.c 2>&1 \
	    | grep optimized | sort -u;) done

NEON_CC = aarch64-linux-gnu-gcc
neon:  ## compile the kernels for aarch64 (needs a cross compiler: NEON_CC)
	for file in csrc/isa/baseline_float.c csrc/isa/baseline_double.c csrc/dispatch.c csrc/parallel.c csrc/permutation.c csrc/program.c; do \
	  $(NEON_CC) $(call flags,baseline) -Werror -Icsrc -c -o /dev/null $$file || exit 1; done

neon-test:  ## the table of hashes and a cross-section of the kernel tests on an emulated aarch64 (see .ci/neon-test)
	NEON_CC='$(NEON_CC)' PYTHON=$(abspath $(PYTHON)) .ci/neon-test

CLANG = clang
clang-test:  ## the table of hashes, with kernels that clang compiles (CLANG)
	rm -rf build/clang && mkdir -p build/clang/source
	cp -r $$(git ls-files | cut -d/ -f1 | sort -u) build/clang/source
	cd build/clang/source && rm -rf build && CC='$(CLANG)' LDSHARED='$(CLANG) -shared' \
	  $(abspath $(PYTHON)) -m pip install -q --no-deps --target ../site .
	cd build/clang && PYTHONPATH=$(CURDIR)/build/clang/site $(abspath $(PYTHON)) -P -m pytest -q -p no:cacheprovider \
	  -c source/pyproject.toml --rootdir source source/tests/test_bits.py

roots:  ## square roots by fused multiply-add, for every estimate that a CPU may begin with (needs AVX-512; seconds)
	mkdir -p build
	$(CC) $(call flags,avx512) -o build/roots tests/roots.c -lm
	build/roots

faults:  ## memory, threads and room on a disk that are refused, file systems that may only be read, storms of Ctrl-C
	FASTOPT_FAULTS=10 $(PYTHON) -m pytest -q -s tests/test_faults.py

accuracy:  ## rounding errors of all kernels over a million inputs each, beside NumPy and PyTorch: writes docs/accuracy.md
	$(PYTHON) tests/accuracy.py

GCOV_FLAGS = -O1 -g1 --coverage -fprofile-update=atomic
coverage:  ## lines of Python that the tests reach, and of C on all instruction sets that this CPU has: build/coverage
	rm -rf build/coverage && mkdir -p build/coverage/source
	cp -r $$(git ls-files | cut -d/ -f1 | sort -u) build/coverage/source
	printf '#!/bin/sh\nexec %s\n' '$(CC) "$$@" $(GCOV_FLAGS)' > build/coverage/cc && chmod +x build/coverage/cc
	cd build/coverage/source && CC=$(CURDIR)/build/coverage/cc $(abspath $(PYTHON)) setup.py -q build_clib build_ext --inplace
	mkdir -p build/coverage/source/build/coverage/python
	cd build/coverage/source && PYTHONPATH=$$PWD $(abspath $(PYTHON)) -m coverage run -m pytest -q -p no:cacheprovider \
	  $(COVERAGE_TESTS)
	cd build/coverage/source && $(abspath $(PYTHON)) -m coverage combine -q && \
	  $(abspath $(PYTHON)) -m coverage report --skip-covered --fail-under=95
	cd build/coverage/source && $(abspath $(dir $(PYTHON)))/gcovr --gcov-ignore-errors=all --merge-lines --root . \
	  --filter csrc/ --print-summary --fail-under-line 95

mutants:  ## changes of checks, optimizers, a step and a layer kernel that a test must notice (see docs/guarantees.md)
	$(PYTHON) tests/mutants.py

memcheck:  ## the inputs of the kernels that a fuzzer has found worth keeping, under valgrind
	mkdir -p build/memcheck
	for isa in $(ISAS); do for real in float double; do \
	  $(CC) $(call flags,$$isa) -O1 -g1 -w -Icsrc -c -o build/memcheck/$${isa}_$$real.o csrc/isa/$${isa}_$$real.c || exit 1; \
	  done; done
	$(CC) $(call flags,baseline) -O1 -g1 -w -DUNDER_VALGRIND -Icsrc -o build/memcheck/replay tests/fuzz/replay.c tests/fuzz/kernels.c \
	  csrc/program.c build/memcheck/*.o -lm
	valgrind -q --error-exitcode=9 --leak-check=full build/memcheck/replay tests/fuzz/kernels.txt

gallery:  ## docs/gallery: every picture, and the page of their captions
	$(PYTHON) -m fastopt gallery --out docs/gallery --page

hostile:  ## a hundred thousand calls of all that is public, with wrong arguments (SEED=1)
	$(PYTHON) tests/hostile/run.py --calls 100000 --seed $(or $(SEED),1)

sanitize:  ## kernel tests and hostile calls under AddressSanitizer and UndefinedBehaviorSanitizer, and LeakSanitizer
	rm -rf build/sanitize && python3 -m venv build/sanitize && mkdir build/sanitize/source
	cp -r $$(git ls-files | cut -d/ -f1 | sort -u) build/sanitize/source  # or its objects would lie among ours
	printf '#!/bin/sh\nexec %s\n' '$(CC) "$$@" -O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=undefined' \
	  > build/sanitize/cc
	chmod +x build/sanitize/cc  # flags behind those of setup.py: with -O3, sanitizers take minutes to compile
	cd build/sanitize/source && CC=$(CURDIR)/build/sanitize/cc ../bin/pip install -q '.[test]'
	cd build/sanitize && export LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 FASTOPT_HOSTILE_CALLS=1500 && \
	  pytest="bin/python -m pytest -q -x -c source/pyproject.toml --rootdir source" && \
	  $$pytest $(addprefix source/tests/,hostile functional test_cases.py test_checks.py test_bridge.py test_kernel.py) && \
	  $$pytest --quick $(addprefix source/tests/,test_random.py test_plan.py test_arena.py test_threads.py) && \
	  bin/python source/tests/leaks.py

tsan:  ## the thread pool, programs and fit_many under ThreadSanitizer, and the pool with forks
	mkdir -p build
	for mode in tsan forks; do \
	  $(CC) $(call flags,baseline) -g $$([ $$mode = forks ] || echo -O1 -fsanitize=thread) -pthread -Icsrc \
	    -o build/hammer-$$mode csrc/parallel.c tests/hammer_parallel.c || exit 1; done
	$(CC) $(call flags,baseline) -g -O1 -fsanitize=thread -pthread -Icsrc -o build/hammer-programs csrc/parallel.c \
	  csrc/program.c csrc/dispatch.c csrc/isa/baseline_float.c tests/hammer_programs.c -lm
	TSAN_OPTIONS=halt_on_error=1 build/hammer-tsan
	TSAN_OPTIONS=halt_on_error=1 build/hammer-programs
	build/hammer-forks 500
	rm -rf build/tsan && mkdir -p build/tsan/source
	cp -r $$(git ls-files | cut -d/ -f1 | sort -u) build/tsan/source
	printf '#!/bin/sh\nexec %s\n' '$(CC) "$$@" -O1 -g1 -fsanitize=thread' > build/tsan/cc && chmod +x build/tsan/cc
	cd build/tsan/source && CC=$(CURDIR)/build/tsan/cc $(abspath $(PYTHON)) setup.py -q build_clib build_ext --inplace
	cd build/tsan/source && run="setarch -R env LD_PRELOAD=$$($(CC) -print-file-name=libtsan.so) PYTHONPATH=$$PWD \
	  TSAN_OPTIONS=halt_on_error=1:ignore_noninstrumented_modules=1 OPENBLAS_NUM_THREADS=1 \
	  $(abspath $(PYTHON)) tests/hammer_fit_many.py" && $$run && ! $$run race 2>/dev/null

wheel:  ## source distribution, and the wheel made from it
	rm -rf dist && $(PYTHON) -m build -q

release:  ## wheels for Linux and macOS, and the source distribution, from this machine: the same bytes twice
	.venv/bin/pip install -q -e '.[release]'
	$(PYTHON) .ci/release --twice

docs:  ## the documentation site, in build/site/index.html (extra docs); a warning is an error
	$(PYTHON) docs/site/build.py

tutorial:  ## run the tutorial: what it prints and draws, and its notebook (extra docs)
	$(PYTHON) docs/tutorial/make.py

clean:
	rm -rf build dist .venv *.egg-info fastopt/*.so fastopt/_kernels.c
