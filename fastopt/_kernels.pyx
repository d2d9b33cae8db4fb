# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: binding=False
"""The only bridge to C: buffers become pointers, and kernels run without the GIL.

No arithmetic and no policy, but for a few loops over small arrays, in the place of which Python would take longer. An
array either fits exactly (its format, shape, order in memory, writable where it is written, apart from the others) or
the call refuses with `Misfit`, nothing written; `checks.py` then says why.
"""
import os
import re
from time import perf_counter

import numpy

cimport cython
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Realloc
from libc.float cimport FLT_MAX
from libc.math cimport fabs
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.string cimport memcpy


cdef extern from "Python.h":
    # Cython's own declaration makes `obj` a Python object; here it is only compared, and may be null.
    ctypedef struct buffer "Py_buffer":
        void *buf
        void *obj
        Py_ssize_t len
        Py_ssize_t itemsize
        const char *format
        int ndim
        Py_ssize_t *shape
    int PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE
    int PyObject_GetBuffer(object exporter, buffer *view, int flags) noexcept
    void PyBuffer_Release(buffer *view)
    void PyErr_Clear()
    unsigned long PyThread_get_thread_ident()
    unsigned long long PyLong_AsUnsignedLongLongMask(object number) except? 0xFFFFFFFFFFFFFFFF

cdef extern from "fastopt.h" nogil:
    enum:
        FASTOPT_MAX_STATES
        FASTOPT_MAX_HYPERS
        FASTOPT_MAX_ARRAYS
        FASTOPT_MAX_THREADS
        FASTOPT_SUMS
    enum fastopt_sums:
        FASTOPT_SUMS_squares
    enum fastopt_real:
        FASTOPT_FLOAT
        FASTOPT_DOUBLE
    struct fastopt_tensor:
        size_t n
        void *param
        const void *grad
        void *state[FASTOPT_MAX_STATES]
        size_t columns
        double grad_scale
        double sums[FASTOPT_SUMS]
    struct fastopt_step_row:
        const char *name
        const char *states
        const char *hypers
    struct fastopt_layer_row:
        const char *name
        const char *arrays
        const char *sizes
        const char *scalars
    struct fastopt_variant:
        const char *name
        int (*supported)() noexcept
    const char fastopt_every_step[]
    const fastopt_step_row fastopt_step_rows[]
    const fastopt_layer_row fastopt_layer_rows[]
    const fastopt_variant fastopt_variants[]
    const char *fastopt_use(const char *name)
    int fastopt_product_vectors, fastopt_products_pay
    void fastopt_run_step(size_t row, fastopt_real real, fastopt_tensor *tensors, size_t count, const double *hyper,
                          double *scratch)
    void fastopt_run_sums(fastopt_sums row, fastopt_real real, fastopt_tensor *tensors, size_t count,
                          const double *hyper, double *scratch)
    size_t fastopt_blocks(size_t n)
    void fastopt_run_layer(size_t row, fastopt_real real, void **array, const int64_t *size, const double *scalar,
                           size_t bytes)
    unsigned fastopt_get_num_threads()
    void fastopt_set_num_threads(unsigned count)


cdef object ndarray = numpy.ndarray


class Misfit(TypeError):
    """An array that a kernel cannot take as it is."""


# Below this many bytes a kernel is done before another thread could make use of the GIL.
cdef enum:
    KEEP_GIL_BELOW = 1 << 16


# ---- Instruction sets ----------------------------------------------------------------------------------------------

def isas():
    """The instruction sets that this machine supports, the strongest first."""
    cdef const fastopt_variant *variant = fastopt_variants
    names = []
    while variant.name != NULL:
        if variant.supported():
            names.append(variant.name.decode())
        variant += 1
    return names


_isa = None


def isa():
    """The instruction set in use."""
    return _isa


def use_isa(name):
    """Use an instruction set from now on; None means the strongest that this machine supports."""
    global _isa
    cdef const char *chosen
    if name is None:
        chosen = fastopt_use(NULL)
    else:
        encoded = name.encode()
        chosen = fastopt_use(encoded)
    if chosen == NULL:
        raise ValueError(f"the instruction set must be one that this machine supports: "
                         f"{', '.join(isas())}; got {name!r}")
    _isa = chosen.decode()


try:
    use_isa(os.environ.get("FASTOPT_ISA") or None)
except ValueError as error:
    raise ImportError(f"FASTOPT_ISA: {error}") from None


def products_pay():
    """Whether products are as fast as those of a BLAS on this CPU."""
    return fastopt_products_pay != 0


def use_product_vectors(int count):
    """Multiply this many vectors by a number at once, 1 or 2; for tests: `use_isa` chooses what is faster."""
    global fastopt_product_vectors
    if count not in (1, 2):
        raise ValueError(f"count must be 1 or 2, got {count}")
    fastopt_product_vectors = count


# ---- Threads -------------------------------------------------------------------------------------------------------

MAX_THREADS = <int>FASTOPT_MAX_THREADS


def get_num_threads():
    return fastopt_get_num_threads()


def set_num_threads(unsigned count):
    """The caller has checked the number: see `fastopt.threads`."""
    fastopt_set_num_threads(count)


# ---- Buffers -------------------------------------------------------------------------------------------------------

cdef inline bint get(object array, buffer *view, bint writable) noexcept:
    """Get the buffer of an array, or return False where it is not C-contiguous, or not writable where it must be."""
    if type(array) is not ndarray and hasattr(array, "mask"):  # which would be passed over
        return False
    if PyObject_GetBuffer(array, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0)) < 0:
        PyErr_Clear()
        return False
    return True


cdef int take(object array, buffer *view, bint writable) except -1:
    """Get the buffer of an array, or raise Misfit."""
    if not get(array, view, writable):
        raise Misfit("buffer")
    return 0


def address(array):
    """Where the memory of a C-contiguous array begins."""
    cdef buffer view
    take(array, &view, False)
    cdef uintptr_t start = <uintptr_t>view.buf
    PyBuffer_Release(&view)
    return start


def all_below(array, int64_t limit):
    """Whether the elements of an int64 array are all in [0, limit)."""
    cdef buffer view
    cdef Py_ssize_t i
    cdef bint below = True
    take(array, &view, False)
    for i in range(view.len // <Py_ssize_t>sizeof(int64_t)):
        below &= 0 <= (<const int64_t *>view.buf)[i] < limit
    PyBuffer_Release(&view)
    return below


ctypedef fused real_number:
    float
    double


cdef int64_t count_largest(const real_number *row, const int64_t *label, Py_ssize_t rows,
                           Py_ssize_t columns) noexcept nogil:
    cdef int64_t right = 0
    cdef Py_ssize_t i, k, at
    for i in range(rows):
        at = 0
        for k in range(1, columns):
            if not row[k] <= row[at] and row[at] == row[at]:  # NaN is the largest, as NumPy has it
                at = k
        right += at == label[i]
        row += columns
    return right


def count_right(scores, labels):
    """How many rows of real scores have their (first) largest number at the row's int64 label."""
    cdef buffer number, label
    cdef int64_t right
    take(scores, &number, False)
    try:
        take(labels, &label, False)
    except Misfit:
        PyBuffer_Release(&number)
        raise
    try:
        if (number.ndim != 2 or number.shape[1] < 1 or label.ndim != 1 or label.shape[0] != number.shape[0]
                or real_of(&number) < 0 or not has_type(&label, INT64, FASTOPT_FLOAT)):
            raise Misfit("scores")
        if real_of(&number) == FASTOPT_FLOAT:
            right = count_largest(<const float *>number.buf, <const int64_t *>label.buf, number.shape[0],
                                  number.shape[1])
        else:
            right = count_largest(<const double *>number.buf, <const int64_t *>label.buf, number.shape[0],
                                  number.shape[1])
    finally:
        PyBuffer_Release(&number)
        PyBuffer_Release(&label)
    return right


cdef inline int real_of(const buffer *view) noexcept:
    """Which real type a buffer holds, or -1."""
    if view.format[0] == c'f' and view.format[1] == 0:
        return FASTOPT_FLOAT
    if view.format[0] == c'd' and view.format[1] == 0:
        return FASTOPT_DOUBLE
    return -1


cdef inline bint same_shape(const buffer *a, const buffer *b) noexcept:
    cdef int axis
    if a.ndim != b.ndim:
        return False
    for axis in range(a.ndim):
        if a.shape[axis] != b.shape[axis]:
            return False
    return True


cdef struct span:
    uintptr_t start, end


# What kernels.def says of an array of a layer: the numbers of other arrays and of sizes, or -1.
cdef enum:
    REAL, BYTE, UINT32, INT64, DOUBLE, INDEX

cdef struct array_rule:
    bint optional, in_place
    int type, length, like


cdef inline bint has_type(const buffer *view, int type, int real) noexcept:
    cdef char code = view.format[0]
    if view.format[1] != 0:
        return False
    if type == REAL:
        return real_of(view) == real
    if type == BYTE:
        return code == c'B'
    if type == DOUBLE:
        return code == c'd'
    if type == UINT32:
        return (code == c'I' or code == c'L') and view.itemsize == 4
    return ((code == c'i' or code == c'l' or code == c'q')
            and view.itemsize == (4 if type == INDEX and real == FASTOPT_FLOAT else 8))


# ---- The tables of kernels.def -------------------------------------------------------------------------------------

cdef words(str cell):
    """What stands between the commas in a cell of the table."""
    return tuple(re.findall(r"[^,\s]+", cell))


cdef read_steps():
    cdef const fastopt_step_row *row = fastopt_step_rows
    every = words((<const char *>fastopt_every_step).decode().strip("()"))
    steps = {}
    while row.name != NULL:
        steps[row.name.decode()] = (words(row.states.decode().strip("()")),
                                    (*every, *words(row.hypers.decode().strip("()"))))
        row += 1
    return steps


cdef read_layers():
    cdef const fastopt_layer_row *row = fastopt_layer_rows
    layers = {}
    while row.name != NULL:
        inputs, outputs = row.arrays.decode().split("->")
        layers[row.name.decode()] = (words(inputs), words(outputs), words(row.sizes.decode()),
                                     words(row.scalars.decode()))
        row += 1
    return layers


cdef array_rule rule_of(text, names, sizes) except *:
    """What the table says of an array."""
    optional, type_, length, relation, other = re.fullmatch(
        r"\w+(\??)(?::(\w+))?(?:\((\w+)\))?(?:([=~])(\w+))?", text).groups()
    cdef array_rule rule
    rule.optional = bool(optional)
    rule.type = ("real", "byte", "uint32", "int64", "double", "index").index(type_ or "real")
    rule.length = sizes.index(length) if length else -1
    rule.like = names.index(other) if other else -1
    rule.in_place = relation == "="
    return rule


#: Optimizer steps: name -> (names of state arrays, names of hyperparameters).
STEPS = read_steps()
#: Other kernels: name -> (arrays read, arrays written, sizes, scalars), all names.
LAYERS = {
    name: (*(tuple(re.match(r"\w+", array)[0] for array in arrays) for arrays in row[:2]), *row[2:])
    for name, row in read_layers().items()
}
cdef dict STEP_NUMBER = {name: number for number, name in enumerate(STEPS)}
cdef dict LAYER_NUMBER = {name: number for number, name in enumerate(LAYERS)}


@cython.auto_pickle(False)
@cython.final
cdef class Plan:
    """Parameters and state arrays of one optimizer, bound to a step kernel once and for all steps to come.

    It holds the buffers of all arrays, so that these can neither be freed nor resized meanwhile (but for
    ``ndarray.resize(refcheck=False)``, which asks for trouble), and checks each array once: one whose type or flags are
    changed after it was bound is used as it was. Buffers of gradients are held until another array takes their place.

    Parameters
    ----------
    step : str
        A name of `STEPS`.
    params : ndarray, list, or dict of ndarray
        What `step` will also expect of its gradients.
    states : list of tuple of ndarray
        For each parameter, its state arrays in the order of the table.
    hypers : list of sequence of float
        For each bucket (parameters that share hyperparameters and step counter) its hyperparameters, in the order of
        the table.
    bucket_of : sequence of int, optional
        For each parameter the number of its bucket; -1 where it is frozen: neither it nor its gradient is accessed.
    explain : callable, optional
        Called with the plan and the arguments of a `step` that do not fit.
    """
    cdef size_t row
    cdef int real
    cdef Py_ssize_t total, count, buckets, width, bytes
    cdef object keys, explain
    cdef bint single, busy
    cdef Py_ssize_t *place      # of a parameter among the tensors, which are sorted by bucket; -1 where it is frozen
    cdef Py_ssize_t *first      # the first tensor of each bucket, and their number
    cdef fastopt_tensor *tensors
    cdef buffer *bound
    cdef buffer *grads
    cdef span *spans
    cdef double *hypers         # FASTOPT_MAX_HYPERS for each bucket
    cdef double *running        # the same, of a step in progress
    cdef double *scratch

    def __cinit__(self, step, params, list states, list hypers, bucket_of=None, explain=None):
        cdef Py_ssize_t i, k, bucket, blocks = 0
        cdef buffer *param
        cdef buffer *view
        self.row = STEP_NUMBER[step]
        self.explain = explain
        self.single = not isinstance(params, (list, tuple, dict))
        self.keys = tuple(params) if isinstance(params, dict) else None
        cdef list arrays = [params] if self.single else list(params.values() if self.keys is not None else params)
        cdef list numbers = [0] * len(arrays) if bucket_of is None else list(bucket_of)
        self.total, self.buckets = len(arrays), len(hypers)
        self.width = 1 + len(STEPS[step][0])
        if (len(states) != self.total or len(numbers) != self.total or self.width > 1 + FASTOPT_MAX_STATES
                or any(len(hyper) != len(STEPS[step][1]) for hyper in hypers)):
            raise Misfit("structure")
        self.real = -1
        self.place = <Py_ssize_t *>PyMem_Calloc(self.total + 1, sizeof(Py_ssize_t))
        self.first = <Py_ssize_t *>PyMem_Calloc(self.buckets + 1, sizeof(Py_ssize_t))
        self.tensors = <fastopt_tensor *>PyMem_Calloc(self.total + 1, sizeof(fastopt_tensor))
        self.bound = <buffer *>PyMem_Calloc(self.total * self.width + 1, sizeof(buffer))
        self.grads = <buffer *>PyMem_Calloc(self.total + 1, sizeof(buffer))
        self.spans = <span *>PyMem_Calloc(self.total * self.width + 1, sizeof(span))
        self.hypers = <double *>PyMem_Calloc(self.buckets + 1, FASTOPT_MAX_HYPERS * sizeof(double))
        self.running = <double *>PyMem_Calloc(self.buckets + 1, FASTOPT_MAX_HYPERS * sizeof(double))
        if not (self.place and self.first and self.tensors and self.bound and self.grads and self.spans
                and self.hypers and self.running):
            raise MemoryError
        for bucket in range(self.buckets):
            for k, value in enumerate(hypers[bucket]):
                self.hypers[bucket * FASTOPT_MAX_HYPERS + k] = value
        for i in range(self.total):
            self.place[i] = -1
        for bucket in range(self.buckets):
            self.first[bucket] = self.count
            for i in range(self.total):
                if numbers[i] == bucket:
                    self.place[i] = self.count
                    self.count += 1
        self.first[self.buckets] = self.count
        for i in range(self.total):
            if self.place[i] < 0:
                continue
            param = &self.bound[self.place[i] * self.width]
            take(arrays[i], param, True)
            if self.real < 0:
                self.real = real_of(param)
            if self.real < 0 or real_of(param) != self.real:
                raise Misfit("type")
            self.tensors[self.place[i]].n = param.len // param.itemsize
            self.tensors[self.place[i]].param = param.buf
            self.tensors[self.place[i]].columns = param.shape[param.ndim - 1] if param.ndim > 1 else 0
            self.tensors[self.place[i]].grad_scale = 1
            self.bytes += param.len
            blocks += fastopt_blocks(self.tensors[self.place[i]].n)
            for k in range(self.width - 1):
                view = param + 1 + k
                take(states[i][k], view, True)
                if real_of(view) != self.real or not same_shape(view, param):
                    raise Misfit("state")
                self.tensors[self.place[i]].state[k] = view.buf
        self.scratch = <double *>PyMem_Calloc(blocks + 1, FASTOPT_SUMS * sizeof(double))
        if not self.scratch:
            raise MemoryError
        for i in range(self.count * self.width):
            self.insert_span(i, &self.bound[i])

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self.bound:
            for i in range(self.total * self.width):
                PyBuffer_Release(&self.bound[i])
        if self.grads:
            for i in range(self.total):
                PyBuffer_Release(&self.grads[i])
        for memory in (<uintptr_t>self.place, <uintptr_t>self.first, <uintptr_t>self.tensors, <uintptr_t>self.bound,
                       <uintptr_t>self.grads, <uintptr_t>self.spans, <uintptr_t>self.hypers, <uintptr_t>self.running,
                       <uintptr_t>self.scratch):
            PyMem_Free(<void *><uintptr_t>memory)

    cdef int insert_span(self, Py_ssize_t filled, const buffer *view) except -1:
        """Put the memory of a bound array among the `filled` sorted spans."""
        cdef span new = span(<uintptr_t>view.buf, <uintptr_t>view.buf + view.len)
        if self.overlaps(filled, new):
            raise Misfit("overlap")
        while filled > 0 and self.spans[filled - 1].start > new.start:
            self.spans[filled] = self.spans[filled - 1]
            filled -= 1
        self.spans[filled] = new
        return 0

    cdef bint overlaps(self, Py_ssize_t filled, span new) noexcept:
        """Whether memory overlaps one of the first `filled` spans, which are sorted and apart."""
        cdef Py_ssize_t low = 0, high = filled, middle
        if new.start == new.end:
            return False
        while low < high:
            middle = (low + high) // 2
            if self.spans[middle].start < new.end:
                low = middle + 1
            else:
                high = middle
        while low > 0 and self.spans[low - 1].start == self.spans[low - 1].end:  # empty arrays
            low -= 1
        return low > 0 and self.spans[low - 1].end > new.start

    cdef bint bind(self, Py_ssize_t i, object grad) noexcept:
        """Take the buffer of a gradient, unless it is held already; return whether it fits."""
        cdef buffer *held = &self.grads[i]
        cdef buffer view
        if held.obj == <void *>grad:
            return True
        if not get(grad, &view, False):
            return False
        if (real_of(&view) != self.real or not same_shape(&view, &self.bound[i * self.width])
                or self.overlaps(self.count * self.width,
                                 span(<uintptr_t>view.buf, <uintptr_t>view.buf + view.len))):
            PyBuffer_Release(&view)
            return False
        PyBuffer_Release(held)
        held[0] = view
        self.tensors[i].grad = view.buf
        return True

    cdef bint bind_all(self, object grads):
        """Take the buffers of all gradients; return whether they fit."""
        cdef Py_ssize_t i, others = 0
        if self.single:
            return self.count == 0 or self.bind(0, grads)
        if self.keys is not None:
            if not isinstance(grads, dict):
                return False
            for i in range(self.total):
                if self.place[i] >= 0:
                    if not self.bind(self.place[i], (<dict>grads).get(self.keys[i])):
                        return False
                elif self.keys[i] in <dict>grads:
                    others += 1
            return len(<dict>grads) == self.count + others
        if not isinstance(grads, (list, tuple)) or len(grads) != self.total:
            return False
        for i in range(self.total):
            if self.place[i] >= 0 and not self.bind(self.place[i], grads[i]):
                return False
        return True

    cpdef int claim(self) except -1:
        """Raise RuntimeError where another thread is in the middle of a step."""
        if self.busy:
            raise RuntimeError("one optimizer cannot take two steps at once: another thread is in the middle of one")
        return 0

    def step(self, grads, *, grad_scale=1.0):
        """Raise the step counters and update all parameters, or have `explain` raise, with nothing changed."""
        cdef Py_ssize_t bucket
        self.claim()
        if type(grad_scale) is not float or not fabs(<double>grad_scale) <= FLT_MAX or not self.bind_all(grads):
            if self.explain is None:
                raise Misfit("step")
            return self.explain(self, grads, grad_scale)
        for bucket in range(self.buckets):
            self.hypers[bucket * FASTOPT_MAX_HYPERS] += 1
            self.hypers[bucket * FASTOPT_MAX_HYPERS + 1] = <double>grad_scale
        self.run()

    def check(self, grads):
        """Have `explain` raise where gradients do not fit."""
        self.claim()
        if not self.bind_all(grads):
            if self.explain is None:
                raise Misfit("step")
            self.explain(self, grads, 1.0)

    def squares(self, grads):
        """The sum of each gradient's squares, 0 for frozen parameters; or have `explain` raise."""
        self.check(grads)
        if self.count:
            if self.bytes < KEEP_GIL_BELOW:
                fastopt_run_sums(FASTOPT_SUMS_squares, <fastopt_real>self.real, self.tensors, self.count, self.hypers,
                                 self.scratch)
            else:
                self.busy = True
                with nogil:
                    fastopt_run_sums(FASTOPT_SUMS_squares, <fastopt_real>self.real, self.tensors, self.count,
                                     self.hypers, self.scratch)
                self.busy = False
        return [self.tensors[self.place[i]].sums[0] if self.place[i] >= 0 else 0.0 for i in range(self.total)]

    def scale_each(self, factors):
        """Multiply each gradient by a factor of its own from now on."""
        cdef Py_ssize_t i
        for i in range(self.total):
            if self.place[i] >= 0:
                self.tensors[self.place[i]].grad_scale = factors[i]

    cdef int run(self) except -1:
        cdef Py_ssize_t bucket
        if self.count == 0:
            return 0
        if self.bytes < KEEP_GIL_BELOW:
            for bucket in range(self.buckets):
                self.run_bucket(bucket, self.hypers)
        else:
            self.busy = True
            # which another thread may change meanwhile
            memcpy(self.running, self.hypers, self.buckets * FASTOPT_MAX_HYPERS * sizeof(double))
            with nogil:
                for bucket in range(self.buckets):
                    self.run_bucket(bucket, self.running)
            self.busy = False
        return 0

    cdef inline void run_bucket(self, Py_ssize_t bucket, const double *hypers) noexcept nogil:
        fastopt_run_step(self.row, <fastopt_real>self.real, self.tensors + self.first[bucket],
                         self.first[bucket + 1] - self.first[bucket], hypers + bucket * FASTOPT_MAX_HYPERS, self.scratch)

    def get_hyper(self, int i, Py_ssize_t bucket=0):
        return self.hypers[bucket * FASTOPT_MAX_HYPERS + i]

    def set_hyper(self, int i, double value, Py_ssize_t bucket=0):
        self.hypers[bucket * FASTOPT_MAX_HYPERS + i] = value


@cython.auto_pickle(False)
@cython.final
cdef class PreparedStep:
    """A step of a plan whose gradient is bound, too. It is called with the hyperparameters that change.

    Parameters
    ----------
    plan : Plan
    grads
        As in `Plan.step`.
    encoders : dict
        For each hyperparameter's name its place in the table, the type of its values, and the function that makes a
        checked double of one.
    """
    cdef Plan plan
    cdef dict encoders

    def __cinit__(self, Plan plan, grads, dict encoders):
        if not plan.bind_all(grads):
            raise Misfit("step")
        self.plan = plan
        self.encoders = encoders

    def __call__(self, **changes):
        cdef double hyper[FASTOPT_MAX_HYPERS]
        cdef Py_ssize_t place
        memcpy(hyper, self.plan.hypers, sizeof(hyper))
        hyper[0] += 1
        for name, value in changes.items():
            if name not in self.encoders:
                raise TypeError(f"{name} is no keyword of this step; it takes {', '.join(self.encoders)}")
            place, kind, encode = <tuple>self.encoders[name]
            if type(value) is kind and value == hyper[place]:
                continue  # as it was, or for t as it would be: that has been checked
            hyper[place] = encode(value)
        self.plan.claim()
        memcpy(self.plan.hypers, hyper, sizeof(hyper))
        self.plan.run()


# ---- What checks need not do twice ---------------------------------------------------------------------------------

cdef frozenset PLAIN = frozenset((bool, float, int, str, tuple, type(None)))


@cython.auto_pickle(False)
@cython.final
cdef class Remembered:
    """A function of a few plain numbers that is called once for the same numbers of the same types: a small kernel
    should not wait for its checks. Other numbers may change and stay the same object; they are not remembered."""
    cdef object function
    cdef dict known

    def __cinit__(self, function):
        self.function, self.known = function, {}

    def __call__(self, *values):
        cdef tuple kinds, entry
        cdef Py_ssize_t i
        try:
            entry = self.known.get(values)
        except TypeError:  # has no hash
            return self.function(*values)
        if entry is not None:
            kinds = entry[0]
            for i in range(len(values)):
                if type(values[i]) is not kinds[i]:  # 1 is not True
                    return self.function(*values)
            return entry[1]
        result = self.function(*values)
        kinds = tuple([type(value) for value in values])
        if PLAIN.issuperset(kinds):
            if len(self.known) >= 64:
                self.known.clear()
            self.known[values] = (kinds, result)
        return result


# ---- Recorded calls ------------------------------------------------------------------------------------------------

cdef struct recorded:
    size_t row
    fastopt_real real
    void *array[FASTOPT_MAX_ARRAYS]
    int64_t size[FASTOPT_MAX_ARRAYS]
    double scalar[FASTOPT_MAX_ARRAYS]
    size_t bytes
    Py_ssize_t counter      # which size that is, or -1


cdef dict _recording = {}   # the tape of each thread that records


@cython.auto_pickle(False)
@cython.final
cdef class Tape:
    """Calls of layer kernels by this thread, recorded within ``with tape:`` as they are made, to be played again.

    It keeps their arrays, which are not looked at again: their memory must stay where it is.
    """
    cdef recorded *calls
    cdef Py_ssize_t count, room
    cdef size_t bytes
    cdef list arrays
    cdef object outer

    def __cinit__(self):
        self.arrays = []

    def __dealloc__(self):
        PyMem_Free(self.calls)

    def __len__(self):
        return self.count

    def __enter__(self):
        self.outer = _recording.get(PyThread_get_thread_ident())
        _recording[PyThread_get_thread_ident()] = self
        return self

    def __exit__(self, *error):
        _recording.pop(PyThread_get_thread_ident())
        if self.outer is not None:
            _recording[PyThread_get_thread_ident()] = self.outer
            self.outer = None

    cdef int add(self, recorded *call, tuple arrays) except -1:
        cdef recorded *more
        if self.count == self.room:
            more = <recorded *>PyMem_Realloc(self.calls, (2 * self.room + 8) * sizeof(recorded))
            if not more:
                raise MemoryError
            self.calls, self.room = more, 2 * self.room + 8
        self.calls[self.count] = call[0]
        self.count += 1
        self.bytes += call.bytes
        self.arrays.append(arrays)
        return 0

    cdef inline void play_one(self, Py_ssize_t i, uint64_t later) noexcept nogil:
        cdef int64_t size[FASTOPT_MAX_ARRAYS]
        cdef recorded *call = &self.calls[i]
        memcpy(size, call.size, sizeof(size))
        if call.counter >= 0:
            size[call.counter] = <int64_t>(<uint64_t>size[call.counter] + later)
        fastopt_run_layer(call.row, call.real, call.array, size, call.scalar, call.bytes)

    def play(self, higher=0, dict seconds=None):
        """Make all calls again, with counters that are so much higher. To `seconds`, if given, what each kernel took is
        added, by its name."""
        cdef uint64_t later = PyLong_AsUnsignedLongLongMask(higher)
        cdef Py_ssize_t i
        if seconds is not None:
            names = list(LAYERS)
            for i in range(self.count):
                start = perf_counter()
                self.play_one(i, later)
                name = names[self.calls[i].row]
                seconds[name] = seconds.get(name, 0.0) + perf_counter() - start
        elif self.bytes < KEEP_GIL_BELOW:
            for i in range(self.count):
                self.play_one(i, later)
        else:
            with nogil:
                for i in range(self.count):
                    self.play_one(i, later)


@cython.auto_pickle(False)
@cython.final
cdef class Snapshot:
    """Which objects some dicts hold."""
    cdef list dicts, copies

    def __cinit__(self, dicts):
        self.dicts = list(dicts)
        self.copies = [dict(each) for each in self.dicts]

    def holds(self):
        """Whether each still holds the same objects."""
        cdef dict now, then
        for now, then in zip(self.dicts, self.copies):
            if len(now) != len(then):
                return False
            for key, value in then.items():
                if now.get(key, self) is not value:
                    return False
        return True


# ---- Everything else -----------------------------------------------------------------------------------------------

@cython.auto_pickle(False)
@cython.final
cdef class Layer:
    """A kernel that is no optimizer step, by its name in `LAYERS`.

    Called with the arrays (read, then written; None where one may be absent), the sizes and the scalars, all in the
    order of the table. Raises Misfit, with nothing written, where an array is not what the table says of it; the caller
    answers for the sizes.
    """
    cdef size_t row
    cdef Py_ssize_t inputs, arrays, sizes, scalars, counter
    cdef array_rule rules[FASTOPT_MAX_ARRAYS]

    def __cinit__(self, name):
        self.row = LAYER_NUMBER[name]
        inputs, outputs, sizes, scalars = read_layers()[name]
        self.inputs, self.arrays = len(inputs), len(inputs) + len(outputs)
        self.sizes, self.scalars = len(sizes), len(scalars)
        self.counter = sizes.index("counter") if "counter" in sizes else -1
        if max(self.arrays, self.sizes, self.scalars) > FASTOPT_MAX_ARRAYS:
            raise Misfit("table")
        names = LAYERS[name][0] + LAYERS[name][1]
        for i, text in enumerate(inputs + outputs):
            self.rules[i] = rule_of(text, names, sizes)

    cdef bint fit(self, const buffer *view, const int64_t *size, int real) noexcept:
        """Whether all arrays are what the table says."""
        cdef Py_ssize_t i, k
        cdef const buffer *a
        cdef const buffer *b
        for i in range(self.arrays):
            a = &view[i]
            if a.obj == NULL:
                continue
            if not has_type(a, self.rules[i].type, real):
                return False
            if self.rules[i].length >= 0 and (a.ndim != 1 or a.shape[0] != size[self.rules[i].length]):
                return False
            if self.rules[i].like >= 0 and not same_shape(a, &view[self.rules[i].like]):
                return False
            for k in range(self.arrays if i >= self.inputs else 0):
                b = &view[k]
                if (k != i and b.obj != NULL and <char *>a.buf < <char *>b.buf + b.len
                        and <char *>b.buf < <char *>a.buf + a.len
                        and not (self.rules[i].in_place and self.rules[i].like == k and a.buf == b.buf)):
                    return False
        return True

    def __call__(self, tuple arrays, tuple sizes, tuple scalars=()):
        self.use(arrays, sizes, scalars, True)

    def check(self, tuple arrays, tuple sizes, tuple scalars=()):
        """Raise Misfit where a call would, and do nothing else."""
        self.use(arrays, sizes, scalars, False)

    cdef int use(self, tuple arrays, tuple sizes, tuple scalars, bint run) except -1:
        cdef buffer view[FASTOPT_MAX_ARRAYS]
        cdef recorded call
        cdef Py_ssize_t i, taken = 0
        cdef int real = -1
        call.row, call.bytes, call.counter = self.row, 0, self.counter
        if len(arrays) != self.arrays or len(sizes) != self.sizes or len(scalars) != self.scalars:
            raise TypeError("a layer kernel takes its arrays, sizes and scalars as the table says")
        for i in range(self.sizes):
            call.size[i] = <int64_t>PyLong_AsUnsignedLongLongMask(sizes[i])
        for i in range(self.scalars):
            call.scalar[i] = scalars[i]
        try:
            for i in range(self.arrays):
                view[i].obj = NULL
                call.array[i] = NULL
                taken = i + 1
                if arrays[i] is not None:
                    take(arrays[i], &view[i], i >= self.inputs)
                    call.array[i] = view[i].buf
                    call.bytes += view[i].len
                    if real < 0 and self.rules[i].type == REAL:
                        real = real_of(&view[i])
                elif not self.rules[i].optional:
                    raise Misfit("absent")
            if real < 0:
                real = FASTOPT_FLOAT
            call.real = <fastopt_real>real
            if not self.fit(view, call.size, real):
                raise Misfit("layer")
            if not run:
                return 0
            if _recording:
                tape = _recording.get(PyThread_get_thread_ident())
                if tape is not None:
                    (<Tape>tape).add(&call, arrays)
            if call.bytes < KEEP_GIL_BELOW:
                fastopt_run_layer(call.row, call.real, call.array, call.size, call.scalar, call.bytes)
            else:
                with nogil:
                    fastopt_run_layer(call.row, call.real, call.array, call.size, call.scalar, call.bytes)
        finally:
            for i in range(taken):
                PyBuffer_Release(&view[i])
