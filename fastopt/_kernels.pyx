# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: binding=False
"""The only bridge to C: buffers become pointers, and kernels run without the GIL.

No arithmetic and no policy, but for a few loops over small arrays, in the place of which Python would take longer. Nor
list comprehensions while calls are made: where there is no memory, Cython 3.3 releases what it cannot append twice. An
array either fits exactly (its format, shape, order in memory, writable where it is written, apart from the others) or
the call refuses with `Misfit`, nothing written; then `kernel.Signature.explain` says why of a layer kernel, and
`checks.py` of an optimizer's step.
"""
import os
import re
from time import perf_counter

import numpy

cimport cython
from cpython.dict cimport PyDict_Size
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from libc.float cimport FLT_MAX
from libc.math cimport fabs
from libc.stdint cimport INT64_MAX, UINT32_MAX, int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset


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
        Py_ssize_t *strides
    int PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE
    int PyObject_GetBuffer(object exporter, buffer *view, int flags) noexcept
    void PyBuffer_Release(buffer *view)
    void PyErr_Clear()
    int PyErr_ExceptionMatches(object type) noexcept
    ctypedef struct PyObject:
        pass
    # Without references: what they return is compared, or used while its owner holds it.
    PyObject *borrowed_item "PyDict_GetItemWithError"(object mapping, object key) except? NULL
    int PyDict_Next(object mapping, Py_ssize_t *position, PyObject **key, PyObject **value) noexcept
    PyObject *list_item "PyList_GetItem"(object sequence, Py_ssize_t i) except NULL
    PyObject *tuple_item "PyTuple_GetItem"(object sequence, Py_ssize_t i) except NULL
    long long PyLong_AsLongLong(object number) except? -1
    unsigned long PyThread_get_thread_ident()
    unsigned long long PyLong_AsUnsignedLongLongMask(object number) except? 0xFFFFFFFFFFFFFFFF

cdef extern from "fastopt.h" nogil:
    enum:
        FASTOPT_MAX_STATES
        FASTOPT_MAX_HYPERS
        FASTOPT_MAX_ARRAYS
        FASTOPT_MAX_NUMBERS
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
    struct fastopt_scalars_row:
        const char *name
        const char *scalars
    struct fastopt_layer_row:
        const char *name
        const char *arguments
    struct fastopt_limit:
        const char *name
        int64_t value
    struct fastopt_choice_row:
        const char *name
        const char *words
    struct fastopt_dimension_row:
        const char *name
        const char *parameters
        const char *expression
    struct fastopt_variant:
        const char *name
        int (*supported)() noexcept
    const char fastopt_every_step[]
    const fastopt_step_row fastopt_step_rows[]
    const fastopt_scalars_row fastopt_scalars_rows[]
    const fastopt_layer_row fastopt_layer_rows[]
    const fastopt_limit fastopt_limits[]
    const fastopt_choice_row fastopt_choice_rows[]
    const fastopt_dimension_row fastopt_dimension_rows[]
    const fastopt_variant fastopt_variants[]
    const char *fastopt_use(const char *name)
    struct fastopt_tuning:
        const char *name
    const fastopt_tuning fastopt_tunings[]
    const fastopt_tuning *fastopt_tune(const char *name)
    int fastopt_roots_by_fma()
    struct fastopt_kernels:
        int tile_rows
        int tile_columns
    const fastopt_kernels *fastopt_active(fastopt_real real)
    void fastopt_run_step(size_t row, fastopt_real real, fastopt_tensor *tensors, size_t count, const double *hyper,
                          double *scratch)
    void fastopt_run_sums(fastopt_sums row, fastopt_real real, fastopt_tensor *tensors, size_t count,
                          const double *hyper, double *scratch)
    int fastopt_next_scalars(size_t row, double *hyper)
    size_t fastopt_blocks(size_t n)
    void fastopt_run_layer(size_t row, fastopt_real real, const void *arguments, size_t bytes)
    unsigned fastopt_get_num_threads()
    void fastopt_set_num_threads(unsigned count)
    unsigned fastopt_limit_threads(unsigned count)


cdef extern from "program.h" nogil:
    enum:
        FASTOPT_FROM_UINT8, FASTOPT_FROM_UINT16, FASTOPT_FROM_UINT32, FASTOPT_FROM_UINT64
        FASTOPT_FROM_INT8, FASTOPT_FROM_INT16, FASTOPT_FROM_INT32, FASTOPT_FROM_INT64
        FASTOPT_FROM_HALF, FASTOPT_FROM_FLOAT, FASTOPT_FROM_DOUBLE
        FASTOPT_TO_FLOAT, FASTOPT_TO_DOUBLE, FASTOPT_TO_INT64
    enum fastopt_kind:
        FASTOPT_CALL
        FASTOPT_GATHER
        FASTOPT_COPY
        FASTOPT_FINITE
        FASTOPT_ZERO
        FASTOPT_STEP
        FASTOPT_SCALE
    enum:
        FASTOPT_FIRST, FASTOPT_LATER, FASTOPT_LAST, FASTOPT_EACH
    struct fastopt_plan:
        size_t row
        fastopt_real real
        fastopt_tensor *tensors
        size_t params
        const Py_ssize_t *place
        size_t buckets
        const Py_ssize_t *first
        double *hypers
        double *next
        double *scratch
        int scalars
        double *norms
        double clip_norm
        double clip_global_norm
        double clip_eps
        double norm
        size_t changes
        const size_t *places
        const double *values
        size_t steps
    ctypedef void fastopt_convert_fn(const void *source, void *target, size_t n) noexcept
    fastopt_convert_fn *const fastopt_convert[][3]
    struct fastopt_item:
        fastopt_kind kind
        unsigned when
        fastopt_real real
        size_t row
        size_t bytes
        Py_ssize_t moving
        int counts
        int64_t start
        int64_t stride
        int64_t *arguments
        void *to
        const void *source "from"
        size_t elements
        int64_t row_stride
        int64_t to_stride
        fastopt_convert_fn *convert
        size_t source_bytes
        bint swapped
        fastopt_plan *plan
    struct fastopt_leg:
        fastopt_item *items
        size_t begin
        size_t end
        const int64_t *order
        size_t rows
        size_t batches
        size_t first_batch
        uint64_t pass_ "pass"
        size_t every
        size_t before
        size_t after
    struct fastopt_stop:
        size_t round
        size_t leg
        size_t batch
        size_t item
    bint fastopt_run_program(const fastopt_leg *legs, size_t count, size_t rounds, uint64_t passes, fastopt_stop *stop)
    int fastopt_finite(fastopt_real real, const void *numbers, size_t n)
    double fastopt_norm(const double *numbers, size_t n)


cdef extern from "permutation.h" nogil:
    int fastopt_permutation(const uint32_t *entropy, size_t words, int64_t n, int64_t *order)


# What NumPy's headers let every extension read of an array: the struct that is part of its ABI.
cdef extern from *:
    """
    struct array_head {
        PyObject_HEAD
        char *data;
        int nd;
        Py_ssize_t *dimensions, *strides;
        PyObject *base, *descr;
        int flags;
    };
    """
    struct array_head:
        void *data
        int nd
        Py_ssize_t *dimensions
        void *descr
        int flags
    enum:
        CONTIGUOUS "1"
        OWNS_DATA "0x4"
        ALIGNED "0x100"
        WRITABLE "0x400"


cdef object ndarray = numpy.ndarray
cdef object float32 = numpy.dtype(numpy.float32), float64 = numpy.dtype(numpy.float64)


cdef double LAST_STEP = 2.0 ** 53


class Misfit(TypeError):
    """An array that a kernel cannot take as it is."""


# Below this many bytes a kernel is done before another thread could make use of the GIL.
cdef enum:
    KEEP_GIL_BELOW = 1 << 16


# ---- Instruction sets ----------------------------------------------------------------------------------------------

def isas():
    """The instruction sets that this machine supports, the strongest first.

    Returns
    -------
    list of str

    Examples
    --------
    >>> import fastopt
    >>> set(fastopt.isas()) <= {"avx512", "avx2", "baseline", "neon"}
    True
    """
    cdef const fastopt_variant *variant = fastopt_variants
    names = []
    while variant.name != NULL:
        if variant.supported():
            names.append(variant.name.decode())
        variant += 1
    return names


_isa = None


def isa():
    """The instruction set in use: the strongest, or what the environment variable ``FASTOPT_ISA`` says.

    Returns
    -------
    str

    Examples
    --------
    >>> import fastopt
    >>> fastopt.isa() in fastopt.isas()
    True
    """
    return _isa


def tile():
    """Rows and columns of the micro-kernel that products of float32 matrices are made of."""
    cdef const fastopt_kernels *kernels = fastopt_active(FASTOPT_FLOAT)
    return kernels.tile_rows, kernels.tile_columns


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


def tunings():
    """The rows of the table of tunings, of which the first one that fits this CPU is its own."""
    names = []
    cdef const fastopt_tuning *row = fastopt_tunings
    while row.name != NULL:
        names.append(row.name.decode())
        row += 1
    return names


_tuning = None


def tuning():
    """The tuning in use: that of this CPU's family, or what the environment variable ``FASTOPT_TUNING`` says."""
    return _tuning


def roots_by_fma():
    """Whether float32 steps take their roots by fused multiply-add, and not by the divider."""
    return fastopt_roots_by_fma() != 0


def use_tuning(name):
    """Use a tuning from now on; None means that of this CPU's family."""
    global _tuning
    cdef const fastopt_tuning *chosen
    if name is None:
        chosen = fastopt_tune(NULL)
    else:
        encoded = name.encode()
        chosen = fastopt_tune(encoded)
    if chosen == NULL:
        raise ValueError(f"the tuning must be one of {', '.join(tunings())}; got {name!r}")
    _tuning = chosen.name.decode()


try:
    use_tuning(os.environ.get("FASTOPT_TUNING") or None)
except ValueError as error:
    raise ImportError(f"FASTOPT_TUNING: {error}") from None


# ---- Threads -------------------------------------------------------------------------------------------------------

MAX_THREADS = <int>FASTOPT_MAX_THREADS


def get_num_threads():
    return fastopt_get_num_threads()


def set_num_threads(unsigned count):
    """The caller has checked the number: see `fastopt.threads`."""
    fastopt_set_num_threads(count)


def limit_threads(unsigned count):
    """Let kernels that this thread calls use so many threads at most; the limit of before is returned."""
    return fastopt_limit_threads(count)


# ---- Buffers -------------------------------------------------------------------------------------------------------

cdef inline bint get(object array, buffer *view, bint writable) except -1:
    """Get the buffer of an array; return False where it is none, not C-contiguous, or not writable where it must be."""
    if type(array) is not ndarray and (not isinstance(array, ndarray) or hasattr(array, "mask")):  # passed over
        return False
    if PyObject_GetBuffer(array, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0)) < 0:
        if PyErr_ExceptionMatches(MemoryError):
            return -1
        PyErr_Clear()
        return False
    return True


cdef int take(object array, buffer *view, bint writable) except -1:
    """Get the buffer of an array, or raise Misfit."""
    if not get(array, view, writable):
        raise Misfit("an array must be plain and C-contiguous, and writable where it is written")
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
    if not has_type(&view, INT64, FASTOPT_FLOAT):
        PyBuffer_Release(&view)
        raise Misfit("labels must be int64")
    for i in range(view.len // <Py_ssize_t>sizeof(int64_t)):
        below &= 0 <= (<const int64_t *>view.buf)[i] < limit
    PyBuffer_Release(&view)
    return below


def all_finite(arrays):
    """Whether no element of some real arrays is NaN or an infinity."""
    cdef buffer view
    cdef bint every
    for array in arrays:
        take(array, &view, False)
        if real_of(&view) < 0:
            PyBuffer_Release(&view)
            raise Misfit("type")
        every = fastopt_finite(<fastopt_real>real_of(&view), view.buf, view.len // view.itemsize)
        PyBuffer_Release(&view)
        if not every:
            return False
    return True


cdef inline char code_of(const buffer *view) noexcept:
    """The letter of the type of a buffer's native, aligned numbers; 0 where they are none. A format without a byte
    order says so itself; with one, as NumPy's `newbyteorder` leaves it, it says nothing of alignment."""
    cdef const char *format = view.format
    if format[0] == c'<':  # that of the machines that kernels run on
        if <uintptr_t>view.buf % <uintptr_t>view.itemsize:
            return 0
        format += 1
    return format[0] if format[0] and format[1] == 0 else 0


cdef inline int real_of(const buffer *view) noexcept:
    """Which real type a buffer holds, or -1."""
    cdef char code = code_of(view)
    return FASTOPT_FLOAT if code == c'f' else FASTOPT_DOUBLE if code == c'd' else -1


cdef inline bint same_shape(const buffer *a, const buffer *b) noexcept:
    cdef int axis
    if a.ndim != b.ndim:
        return False
    for axis in range(a.ndim):
        if a.shape[axis] != b.shape[axis]:
            return False
    return True


cdef struct watched:
    const array_head *array
    const buffer *held      # its buffer, as it was taken
    const void *type        # null where the layout of arrays is not known
    int flags               # that it must have


cdef inline bint unchanged(const watched *it) noexcept:
    """Whether an array is still laid out as when its buffer was taken. What only looks changed, such as a type that is
    equal but another object, is no: a new buffer then tells."""
    cdef const array_head *now = it.array
    cdef const buffer *held = it.held
    cdef int axis
    if now.data != held.buf or now.descr != it.type or now.nd != held.ndim or (now.flags & it.flags) != it.flags:
        return False
    for axis in range(now.nd):
        if now.dimensions[axis] != held.shape[axis]:
            return False
    return True


cdef enum:
    MAX_NOTED_AXES = 8

cdef struct layout:
    const array_head *array
    array_head then
    Py_ssize_t shape[MAX_NOTED_AXES]


cdef inline void note(const array_head *array, layout *it) noexcept:
    """Take down how an array lies in memory."""
    cdef int axis
    it.array, it.then = array, array[0]
    for axis in range(array.nd):
        it.shape[axis] = array.dimensions[axis]


cdef inline bint stays(const layout *it) noexcept:
    """Whether it still lies so: there, with that type, shape and order, and as writable."""
    cdef const array_head *now = it.array
    cdef int axis
    if (now.data != it.then.data or now.descr != it.then.descr or now.nd != it.then.nd
            or (now.flags ^ it.then.flags) & (CONTIGUOUS | WRITABLE)):
        return False
    for axis in range(now.nd):
        if now.dimensions[axis] != it.shape[axis]:
            return False
    return True


cdef inline bint has_rows_of(const array_head *source, const array_head *target) noexcept:
    """Whether the rows of an array are those of another: plain, one after the other, and of the same type."""
    cdef int axis
    if (source.descr != target.descr or source.nd != target.nd or not source.flags & CONTIGUOUS
            or not source.flags & ALIGNED):
        return False
    for axis in range(1, source.nd):
        if source.dimensions[axis] != target.dimensions[axis]:
            return False
    return True


cdef bint layout_is_known():
    """Whether arrays are laid out as `array_head` says, which another NumPy might do otherwise."""
    cdef buffer view
    cdef watched it
    cdef bint known = True
    for array, wanted in ((numpy.zeros((2, 3), float32), True), (numpy.zeros((4, 1, 2)), True),
                          (numpy.zeros((2, 3), float32).T, False)):
        if PyObject_GetBuffer(array, &view, PyBUF_STRIDES) < 0:
            PyErr_Clear()
            return False
        it = watched(<const array_head *>array, &view, <void *>array.dtype, CONTIGUOUS | WRITABLE)
        known &= unchanged(&it) == wanted
        array.flags.writeable = False
        known &= not unchanged(&it)
        it.flags = CONTIGUOUS
        known &= unchanged(&it) == wanted
        PyBuffer_Release(&view)
    return known


# Else all buffers are taken anew in each step.
cdef bint layout_known = layout_is_known()
cdef object one = 1.0


def read_array_heads(bint wanted):
    """Have plans that are made from now on read the heads of arrays, or take new buffers; for tests: by default it
    depends on whether the layout is known."""
    global layout_known
    layout_known = wanted and layout_is_known()


# By how much this process is a child of the one that imported: a step that another thread had begun when a process was
# forked goes on in the parent alone.
cdef long generation = 1


def _in_child():
    global generation
    generation += 1
    _recording.clear()  # of threads that the child has not


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def norm(list numbers):
    """The Euclidean norm of numbers that are not negative."""
    cdef double few[64]
    cdef double *all_ = few
    cdef Py_ssize_t i, n = len(numbers)
    if n > 64:
        all_ = <double *>PyMem_Calloc(n, sizeof(double))
        if not all_:
            raise MemoryError
    try:
        for i in range(n):
            all_[i] = numbers[i]
        return fastopt_norm(all_, n)
    finally:
        if n > 64:
            PyMem_Free(all_)


def uninterrupted(calls):
    """Call functions one after the other, from a list of (function, tuple of arguments). They are to be builtin: then
    no bytecode runs from the first to the last, and it is there that Python raises what signals ask for, such as
    KeyboardInterrupt."""
    for function, arguments in calls:
        function(*arguments)


cdef struct span:
    uintptr_t start, end


# The types of a layer's arrays.
cdef enum:
    REAL, BYTE, UINT32, INT64, DOUBLE, SIGNED_WORD
#: The same as C calls them.
TYPES = ("real", "uint8_t", "uint32_t", "int64_t", "double", "signed_word")


cdef inline bint has_type(const buffer *view, int type, int real) noexcept:
    cdef char code = code_of(view)
    if type == REAL:
        return code == (c'f' if real == FASTOPT_FLOAT else c'd')
    if type == BYTE:
        return code == c'B'
    if type == DOUBLE:
        return code == c'd'
    if type == UINT32:
        return (code == c'I' or code == c'L') and view.itemsize == 4
    return ((code == c'i' or code == c'l' or code == c'q')
            and view.itemsize == (4 if type == SIGNED_WORD and real == FASTOPT_FLOAT else 8))


# ---- The tables of kernels.def -------------------------------------------------------------------------------------

cdef words(str cell):
    """What stands between the commas in a cell of the table."""
    return tuple(re.findall(r"[^,\s]+", cell))


cdef read_steps():
    cdef const fastopt_step_row *row = fastopt_step_rows
    cdef const fastopt_scalars_row *scalars = fastopt_scalars_rows
    every = words((<const char *>fastopt_every_step).decode().strip("()"))
    beside = {}
    while scalars.name != NULL:
        beside[scalars.name.decode()] = words(scalars.scalars.decode().strip("()"))
        scalars += 1
    steps = {}
    while row.name != NULL:
        steps[row.name.decode()] = (words(row.states.decode().strip("()")),
                                    (*every, *words(row.hypers.decode().strip("()"))),
                                    beside.get(row.name.decode(), ()))
        row += 1
    return steps


cdef read_layers():
    cdef const fastopt_layer_row *row = fastopt_layer_rows
    layers = {}
    while row.name != NULL:
        layers[row.name.decode()] = row.arguments.decode()
        row += 1
    return layers


cdef read_limits():
    cdef const fastopt_limit *row = fastopt_limits
    limits = {}
    while row.name != NULL:
        limits[row.name.decode()] = row.value
        row += 1
    return limits


cdef read_choices():
    cdef const fastopt_choice_row *row = fastopt_choice_rows
    choices = {}
    while row.name != NULL:
        found = words(row.words.decode().lower())
        first, last = min(found), max(found)  # what these two begin with, all do
        start = 0
        for i in range(min(len(first), len(last))):
            if first[i] != last[i]:
                break
            if first[i] == "_":
                start = i + 1
        choices[row.name.decode()] = tuple([word[start:] for word in found])
        row += 1
    return choices


cdef read_dimensions():
    cdef const fastopt_dimension_row *row = fastopt_dimension_rows
    dimensions = {}
    while row.name != NULL:
        parameters = words(row.parameters.decode().strip("()").replace("int64_t", ""))
        dimensions[row.name.decode()] = (parameters, row.expression.decode())
        row += 1
    return dimensions


#: Optimizer steps: name -> (names of state arrays, of hyperparameters, of scalars).
STEPS = read_steps()
#: Other kernels: name -> members of the struct of its arguments, as text: see `fastopt.kernel`.
LAYERS = read_layers()
#: Constants of C by name.
LIMITS = read_limits()
#: The words that an option may be, in the order of their numbers, without a prefix that all have in C.
CHOICES = read_choices()
#: How lengths follow from others: name -> (parameters, expression).
DIMENSIONS = read_dimensions()
cdef dict STEP_NUMBER = {name: number for number, name in enumerate(STEPS)}
cdef dict LAYER_NUMBER = {name: number for number, name in enumerate(LAYERS)}


cdef bint gather(object nest, object given, list leaves, bint grown) except -1:
    """Append what stands in the places of the leaves of a nest, which are None, to a list: None for those that a dict
    lacks, or that None stands for. Return whether it is of the same structure; a list may have `grown`, as may a dict.
    """
    cdef Py_ssize_t i, there = 0
    if nest is None:
        leaves.append(given)
        return True
    if isinstance(nest, dict):
        if given is not None and not isinstance(given, dict):
            return False
        for key, part in (<dict>nest).items():
            value = None if given is None else (<dict>given).get(key, nest)
            there += value is not nest
            if not gather(part, None if value is nest else value, leaves, grown):
                return False
        return given is None or grown or there == len(<dict>given)
    if given is not None and (not isinstance(given, (list, tuple)) or len(given) < len(nest)
                              or (len(given) > len(nest) and not grown)):
        return False
    for i in range(len(nest)):
        if not gather(nest[i], None if given is None else given[i], leaves, grown):
            return False
    return True


@cython.auto_pickle(False)
@cython.final
cdef class Plan:
    """Parameters and state arrays of one optimizer, bound to a step kernel once and for all steps to come.

    It holds the buffers of all arrays, so that these can neither be freed nor, but by force, resized meanwhile. Before
    each step it compares where an array lies, its type, shape and flags with what they were, and the entries of the
    user's list or dict with the arrays that are bound. Buffers of gradients are held until another array takes their
    place; one with gaps is copied to an array of the plan's in each step.

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
        the table. Where its scalars stand behind them, each step works out the hyperparameters that follow from those.
    bucket_of : sequence of int, optional
        For each parameter the number of its bucket; -1 where it is frozen: neither it nor its gradient is accessed.
    explain : callable, optional
        Called with the plan and the arguments of a `step` that do not fit.
    owner : list or dict of ndarray, optional
        The user's, whose entries must stay those of `params`.
    nest : dict, list or tuple, optional
        The structure of `owner` and of gradients where it is nested: the same with None for each array, of which
        `params` is then a list.
    """
    cdef size_t row
    cdef int real
    cdef const void *type
    cdef watched *watch         # the arrays of the user: parameters, and state that is not the optimizer's
    cdef Py_ssize_t watches
    cdef long busy              # the generation of the process in which a thread is in the middle of a step, or 0
    cdef list copies            # of gradients with gaps, where there are any
    cdef Py_ssize_t total, count, buckets, width, bytes
    cdef Py_ssize_t scalars     # where those of a bucket begin among its hyperparameters, or 0
    cdef tuple scalar_names
    cdef object keys, explain, owner, nest
    cdef list arrays
    cdef bint single
    cdef Py_ssize_t *place      # of a parameter among the tensors, which are sorted by bucket; -1 where it is frozen
    cdef Py_ssize_t *first      # the first tensor of each bucket, and their number
    cdef fastopt_tensor *tensors
    cdef buffer *bound
    cdef buffer *grads
    cdef span *spans
    cdef double *hypers         # FASTOPT_MAX_HYPERS for each bucket
    cdef double *running        # the same, of a step in progress
    cdef double *scratch

    def __cinit__(self, step, params, list states, list hypers, bucket_of=None, explain=None, owner=None,
                  nest=None):
        cdef Py_ssize_t i, k, bucket, blocks = 0
        cdef buffer *param
        cdef buffer *view
        self.row = STEP_NUMBER[step]
        self.explain = explain
        self.single = not isinstance(params, (list, tuple, dict))
        self.keys = tuple(params) if isinstance(params, dict) else None
        cdef list arrays = [params] if self.single else list(params.values() if self.keys is not None else params)
        self.arrays, self.nest = arrays, nest
        self.owner = owner if isinstance(owner, (list, dict)) or nest is not None else None
        # Integers of Python's own, which equal themselves alone.
        cdef list numbers = [0] * len(arrays) if bucket_of is None else list(map(int, bucket_of))
        self.total, self.buckets = len(arrays), len(hypers)
        cdef tuple names = STEPS[step]
        self.width, self.scalar_names = 1 + len(<tuple>names[0]), names[2]
        cdef Py_ssize_t known = len(<tuple>names[1])
        if hypers and self.scalar_names and len(hypers[0]) > known:
            self.scalars = known
            known += len(self.scalar_names)
        if (len(states) != self.total or len(numbers) != self.total or self.width > 1 + FASTOPT_MAX_STATES
                or any(len(hyper) != known for hyper in hypers)):
            raise Misfit("a plan must have the state arrays, groups and hyperparameters of its step")
        self.real = -1
        self.place = <Py_ssize_t *>PyMem_Calloc(self.total + 1, sizeof(Py_ssize_t))
        self.first = <Py_ssize_t *>PyMem_Calloc(self.buckets + 1, sizeof(Py_ssize_t))
        self.tensors = <fastopt_tensor *>PyMem_Calloc(self.total + 1, sizeof(fastopt_tensor))
        self.bound = <buffer *>PyMem_Calloc(self.total * self.width + 1, sizeof(buffer))
        self.grads = <buffer *>PyMem_Calloc(self.total + 1, sizeof(buffer))
        self.watch = <watched *>PyMem_Calloc(self.total * self.width + 1, sizeof(watched))
        self.spans = <span *>PyMem_Calloc(self.total * self.width + 1, sizeof(span))
        self.hypers = <double *>PyMem_Calloc(self.buckets + 1, FASTOPT_MAX_HYPERS * sizeof(double))
        self.running = <double *>PyMem_Calloc(self.buckets + 1, FASTOPT_MAX_HYPERS * sizeof(double))
        if not (self.place and self.first and self.tensors and self.bound and self.grads and self.watch
                and self.spans and self.hypers and self.running):
            raise MemoryError
        for bucket in range(self.buckets):
            for k, value in enumerate(hypers[bucket]):
                if k == FASTOPT_MAX_HYPERS:
                    raise Misfit("hyperparameters must be as many as they say")
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
                raise Misfit("parameters must be float32 or float64, all alike, and what their attributes say")
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
                    raise Misfit("a state array must have the type and shape of its parameter")
                self.tensors[self.place[i]].state[k] = view.buf
        if layout_known:
            self.type = <void *>(float32 if self.real == FASTOPT_FLOAT else float64)
        for i in range(self.count * self.width):
            # Only memory of its own can be taken from an array.
            if i % self.width == 0 or not layout_known or (<array_head *>self.bound[i].obj).flags & OWNS_DATA:
                self.watch[self.watches] = watched(<array_head *>self.bound[i].obj, &self.bound[i], self.type,
                                                   CONTIGUOUS | WRITABLE)
                self.watches += 1
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
        PyMem_Free(self.place)
        PyMem_Free(self.first)
        PyMem_Free(self.tensors)
        PyMem_Free(self.bound)
        PyMem_Free(self.grads)
        PyMem_Free(self.watch)
        PyMem_Free(self.spans)
        PyMem_Free(self.hypers)
        PyMem_Free(self.running)
        PyMem_Free(self.scratch)

    cdef int insert_span(self, Py_ssize_t filled, const buffer *view) except -1:
        """Put the memory of a bound array among the `filled` sorted spans."""
        cdef span new = span(<uintptr_t>view.buf, <uintptr_t>view.buf + view.len)
        if self.overlaps(filled, new):
            raise Misfit("no two arrays of a plan may overlap")
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

    cdef bint fits(self, const buffer *view, Py_ssize_t i) noexcept:
        """Whether a buffer has the type and the shape of a parameter."""
        return real_of(view) == self.real and same_shape(view, &self.bound[i * self.width])

    cdef inline bint intact(self) noexcept:
        """Whether parameters and state are laid out as they were, and still writable."""
        cdef Py_ssize_t i
        for i in range(self.watches):
            if not unchanged(&self.watch[i]) and not self.alike(&self.watch[i]):
                return False
        return True

    cdef bint alike(self, const watched *it) noexcept:
        """The same by a new buffer."""
        cdef buffer view
        cdef bint same
        if not get(<object>it.array, &view, True):
            return False
        same = view.buf == it.held.buf and real_of(&view) == self.real and same_shape(&view, it.held)
        PyBuffer_Release(&view)
        return same

    cdef int owned(self) except -1:
        """Whether the user's list or dict still holds the arrays that are bound."""
        cdef Py_ssize_t i, position = 0
        cdef PyObject *key
        cdef PyObject *value
        cdef list leaves
        if self.nest is not None:
            leaves = []
            if not gather(self.nest, self.owner, leaves, True):
                return False
            for i in range(self.total):
                if list_item(leaves, i) != list_item(self.arrays, i):
                    return False
            return True
        if isinstance(self.owner, dict):
            for i in range(self.total):
                if not PyDict_Next(self.owner, &position, &key, &value) or value != list_item(self.arrays, i):
                    break
            else:
                return True
            for i in range(self.total):  # the entries of a dict may have changed their order
                if borrowed_item(self.owner, self.keys[i]) != list_item(self.arrays, i):
                    return False
            return True
        if len(<list>self.owner) < self.total:
            return False
        for i in range(self.total):
            if list_item(self.owner, i) != list_item(self.arrays, i):
                return False
        return True

    cdef object without_gaps(self, Py_ssize_t i, object grad):
        """A copy of a gradient that would fit but for its order in memory, in an array of the plan's own; else None."""
        cdef buffer *param = &self.bound[i * self.width]
        if (not isinstance(grad, ndarray) or hasattr(grad, "mask")
                or grad.dtype != (float32 if self.real == FASTOPT_FLOAT else float64) or not grad.flags.aligned
                or grad.flags.c_contiguous or grad.shape != tuple([param.shape[k] for k in range(param.ndim)])):
            return None
        if self.copies is None:
            self.copies = [None] * self.count
        if self.copies[i] is None:
            self.copies[i] = numpy.empty(grad.shape, grad.dtype)
        self.copies[i][...] = grad
        return self.copies[i]

    cdef inline int bind(self, Py_ssize_t i, PyObject *grad) except -1:
        """Take the buffer of a gradient, unless it is held already; return whether it fits."""
        cdef watched it = watched(<array_head *>grad, &self.grads[i], self.type, CONTIGUOUS)
        if self.grads[i].obj == grad and unchanged(&it):
            return True
        return self.bind_anew(i, <object>grad)

    cdef int bind_anew(self, Py_ssize_t i, object grad) except -1:
        cdef buffer *held = &self.grads[i]
        cdef buffer view
        if not get(grad, &view, False):
            grad = self.without_gaps(i, grad)
            if grad is None or not get(grad, &view, False):
                return False
        if (not self.fits(&view, i)
                or self.overlaps(self.count * self.width,
                                 span(<uintptr_t>view.buf, <uintptr_t>view.buf + view.len))):
            PyBuffer_Release(&view)
            return False
        PyBuffer_Release(held)
        held[0] = view
        self.tensors[i].grad = view.buf
        return True

    cdef inline int bind_all(self, object grads) except -1:
        """Take the buffers of all gradients; return whether they fit, and all else is as it was bound."""
        if not self.intact():
            return False
        if self.single:
            return self.count == 0 or self.bind(0, <PyObject *>grads)
        return self.bind_several(grads)

    cdef int bind_several(self, object grads) except -1:
        cdef Py_ssize_t i, others = 0, position = 0
        cdef PyObject *key
        cdef PyObject *grad
        cdef bint in_order = True, of_list
        cdef list leaves
        if self.owner is not None and not self.owned():
            return False
        if self.nest is not None:
            leaves = []
            if not gather(self.nest, grads, leaves, False):
                return False
            for i in range(self.total):
                if self.place[i] >= 0 and not self.bind(self.place[i], list_item(leaves, i)):
                    return False
            return True
        if self.keys is not None:
            if not isinstance(grads, dict):
                return False
            for i in range(self.total):
                if in_order:  # as most are: then no key need be looked up
                    in_order = PyDict_Next(grads, &position, &key, &grad) and key == tuple_item(self.keys, i)
                if not in_order:
                    grad = borrowed_item(grads, self.keys[i])
                if self.place[i] >= 0:
                    if not grad or not self.bind(self.place[i], grad):
                        return False
                elif grad:
                    others += 1
            return len(<dict>grads) == self.count + others
        of_list = isinstance(grads, list)
        if not (of_list or isinstance(grads, tuple)) or len(grads) != self.total:
            return False
        for i in range(self.total):
            if self.place[i] >= 0:
                if not self.bind(self.place[i], list_item(grads, i) if of_list else tuple_item(grads, i)):
                    return False
        return True

    cpdef int claim(self, bint forked=False) except -1:
        """Raise RuntimeError where another thread is in the middle of a step, or, but for `forked`, was so when this
        process was forked: the child has what was done by then."""
        if self.busy:
            if self.busy == -1:
                raise RuntimeError("the optimizer has been bound anew since this step was taken from it: call "
                                   "optimizer.step(grads), which finds the new one")
            if self.busy == generation:
                raise RuntimeError(
                    "one optimizer cannot take two steps at once: another thread is in the middle of one")
            if not forked:
                raise RuntimeError(
                    "this process was forked while another thread was in the middle of a step, so parameters and state "
                    "here are a mixture of before and after: give the parameters their values, and the optimizer a "
                    "state by load_state_dict; or make a new one")
        return 0

    cdef inline int count_step(self, double grad_scale) except -1:
        """Raise all step counters; they are doubles, whose integers end at 2**53, and none is above the first."""
        cdef Py_ssize_t bucket
        if not self.hypers[0] < LAST_STEP:
            raise ValueError(f"t must be below 2**53 before a step, got {self.hypers[0]:.0f}")
        if self.scalars:
            return self.count_scalars(grad_scale, ())
        for bucket in range(self.buckets):
            self.hypers[bucket * FASTOPT_MAX_HYPERS] += 1
            self.hypers[bucket * FASTOPT_MAX_HYPERS + 1] = grad_scale
        return 0

    cdef int count_scalars(self, double grad_scale, changes) except -1:
        """The same with changes as in `assign`, where scalars follow from them; with nothing changed where one would
        not be finite."""
        cdef Py_ssize_t bucket, size = self.buckets * FASTOPT_MAX_HYPERS * sizeof(double)
        cdef double *next
        cdef double value
        memcpy(self.running, self.hypers, size)
        for i, value, bucket in changes:
            self.running[bucket * FASTOPT_MAX_HYPERS + <Py_ssize_t>i] = value
        for bucket in range(self.buckets):
            next = self.running + bucket * FASTOPT_MAX_HYPERS
            next[0] += 1
            next[1] = grad_scale
            if not fastopt_next_scalars(self.row, next):
                values = [f"{name}={next[self.scalars + k]}" for k, name in enumerate(self.scalar_names)]
                raise ValueError(f"step {next[0]:.0f} must leave all scalars finite, got {', '.join(values)} before it")
        memcpy(self.hypers, self.running, size)
        return 0

    def retire(self):
        """Have every further step raise: another plan has taken the place of this one."""
        self.busy = -1

    def step(self, grads, *, grad_scale=1.0, strict=True):
        """Raise the step counters and update all parameters, or have `explain` raise, with nothing changed; it also
        has the steps that are not `strict`."""
        cdef double scale
        if self.busy:
            self.claim()
        if strict is not True and self.explain is not None:
            return self.explain(self, grads, grad_scale, strict)
        if type(grad_scale) is float:
            scale = 1.0 if grad_scale is one else <double>grad_scale  # the default without a call
            if fabs(scale) <= FLT_MAX and self.bind_all(grads):
                self.count_step(scale)
                self.run()
                return
        if self.explain is None:
            raise Misfit("gradients must be like the parameters, and overlap no array of the plan")
        self.explain(self, grads, grad_scale)

    def advance(self, grads, double grad_scale, factors, changes, Py_ssize_t t):
        """The same with the number of steps taken, a factor for each gradient, and new hyperparameters as in `assign`:
        what was worked out for the step after `t`."""
        self.check(grads)
        self.be_after(t)
        if len(factors) != self.total:
            raise Misfit("there must be a factor for each gradient")
        self.check_places(changes)
        if self.scalars and self.hypers[0] < LAST_STEP:
            self.count_scalars(grad_scale, changes)
        else:
            self.count_step(grad_scale)
            self.assign(changes)
        self.scale_each(factors)
        self.run()

    def count_alone(self, double grad_scale, changes, Py_ssize_t t):
        """Raise the step counters and set hyperparameters alone, for the step after `t` that is taken elsewhere."""
        self.claim()
        self.be_after(t)
        self.check_places(changes)
        self.count_step(grad_scale)
        self.assign(changes)

    cdef int be_after(self, Py_ssize_t t) except -1:
        if self.hypers[0] != t:
            raise RuntimeError("one optimizer cannot take two steps at once: another thread has taken one meanwhile")
        return 0

    def check(self, grads):
        """Have `explain` raise where gradients do not fit."""
        self.claim()
        if not self.bind_all(grads):
            if self.explain is None:
                raise Misfit("gradients must be like the parameters, and overlap no array of the plan")
            self.explain(self, grads, 1.0)

    def squares(self, grads):
        """The sum of each gradient's squares, 0 for frozen parameters; or have `explain` raise."""
        cdef Py_ssize_t i
        self.check(grads)
        if self.count:
            if self.bytes < KEEP_GIL_BELOW:
                fastopt_run_sums(FASTOPT_SUMS_squares, <fastopt_real>self.real, self.tensors, self.count, self.hypers,
                                 self.scratch)
            else:
                self.busy = generation
                with nogil:
                    fastopt_run_sums(FASTOPT_SUMS_squares, <fastopt_real>self.real, self.tensors, self.count,
                                     self.hypers, self.scratch)
                self.busy = 0
        cdef list sums = [0.0] * self.total
        for i in range(self.total):
            if self.place[i] >= 0:
                sums[i] = self.tensors[self.place[i]].sums[0]
        return sums

    def scale_each(self, factors):
        """Multiply each gradient by a factor of its own from now on."""
        cdef Py_ssize_t i
        for i in range(self.total):
            if self.place[i] >= 0:
                self.tensors[self.place[i]].grad_scale = factors[i]

    cdef inline void run(self) noexcept:
        cdef Py_ssize_t bucket
        if self.bytes < KEEP_GIL_BELOW:
            if self.count:
                for bucket in range(self.buckets):
                    self.run_bucket(bucket, self.hypers)
        else:
            self.run_without_gil()

    cdef void run_without_gil(self) noexcept:
        cdef Py_ssize_t bucket
        self.busy = generation
        # which another thread may change meanwhile
        memcpy(self.running, self.hypers, self.buckets * FASTOPT_MAX_HYPERS * sizeof(double))
        with nogil:
            for bucket in range(self.buckets):
                self.run_bucket(bucket, self.running)
        self.busy = 0

    cdef inline void run_bucket(self, Py_ssize_t bucket, const double *hypers) noexcept nogil:
        cdef size_t count = self.first[bucket + 1] - self.first[bucket]
        fastopt_run_step(self.row, <fastopt_real>self.real, self.tensors + self.first[bucket], count,
                         hypers + bucket * FASTOPT_MAX_HYPERS, self.scratch)

    cdef double *hyper(self, Py_ssize_t i, Py_ssize_t bucket) except NULL:
        if not (0 <= i < FASTOPT_MAX_HYPERS and 0 <= bucket < self.buckets):
            raise ValueError(f"hyperparameter {i} of bucket {bucket} must be one of {self.buckets} buckets")
        return &self.hypers[bucket * FASTOPT_MAX_HYPERS + i]

    cdef int check_places(self, changes) except -1:
        for i, _, bucket in changes:
            self.hyper(i, bucket)
        return 0

    def get_hyper(self, Py_ssize_t i, Py_ssize_t bucket=0):
        return self.hyper(i, bucket)[0]

    def set_hyper(self, Py_ssize_t i, double value, Py_ssize_t bucket=0):
        self.hyper(i, bucket)[0] = value

    def assign(self, changes):
        """Set hyperparameters, from a list of (place in the table, value, bucket)."""
        cdef double value
        self.check_places(changes)
        for i, value, bucket in changes:
            self.hyper(i, bucket)[0] = value


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
    cdef object grads
    cdef dict encoders

    def __cinit__(self, Plan plan, grads, dict encoders):
        plan.check(grads)
        self.plan = plan
        self.grads = grads
        self.encoders = encoders

    def __call__(self, **changes):
        cdef double hyper[FASTOPT_MAX_HYPERS]
        cdef Py_ssize_t place
        memcpy(hyper, self.plan.hypers, sizeof(hyper))
        cdef bint over = not hyper[0] < LAST_STEP
        hyper[0] += 1
        for name, value in changes.items():
            if name not in self.encoders:
                raise TypeError(f"{name} is no keyword of this step; it takes {', '.join(self.encoders)}")
            place, kind, encode = <tuple>self.encoders[name]
            if not 0 <= place < FASTOPT_MAX_HYPERS:
                raise ValueError(f"{name} must have a place in the table, got {place}")
            over = over and place != 0
            if type(value) is kind and value == hyper[place]:
                continue  # as it was, or for t as it would be: that has been checked
            hyper[place] = encode(value)
        self.plan.claim()
        if not self.plan.bind_all(self.grads):
            self.plan.check(self.grads)
        if over:
            raise ValueError("t must be at most 2**53, and the last step was that one")
        memcpy(self.plan.hypers, hyper, sizeof(hyper))
        self.plan.run()


# ---- Memoised checks -------------------------------------------------------------------------------------------------

cdef bint is_plain(object value):
    """Whether it is a number or a word, or a tuple of integers: what equals it, and has its type, is the same."""
    if type(value) is tuple:
        for each in <tuple>value:
            if type(each) is not int:
                return False
        return True
    return type(value) in (bool, float, int, str, type(None))


cdef bint are_plain(tuple values):
    for value in values:
        if not is_plain(value):
            return False
    return True


@cython.auto_pickle(False)
@cython.final
cdef class Memoised:
    """A function of a few plain numbers that is called once for the same numbers of the same types: a small kernel
    should not wait for its checks. Other numbers may change and stay the same object; they are not memoised."""
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
                if type(values[i]) is not kinds[i] or (kinds[i] is tuple and not is_plain(values[i])):  # 1 is not True
                    return self.function(*values)
            return entry[1]
        result = self.function(*values)
        kinds = tuple(map(type, values))
        if are_plain(values):
            if len(self.known) >= 64:
                self.known.clear()
            self.known[values] = (kinds, result)
        return result


# ---- Programs ------------------------------------------------------------------------------------------------------

# A struct of arguments: pointers, then numbers, each at a multiple of eight bytes.
cdef enum:
    MAX_ARGUMENTS = FASTOPT_MAX_ARRAYS + FASTOPT_MAX_NUMBERS

# A call of a layer kernel, as it was checked.
cdef struct checked_call:
    size_t row
    fastopt_real real
    int64_t arguments[MAX_ARGUMENTS]
    size_t bytes
    Py_ssize_t counter      # which of the arguments that is, or -1


cdef dict _recording = {}   # the program to which each thread adds its calls, instead of making them

cdef dict SOURCES = {numpy.dtype(name): source for name, source in (
    ("bool", FASTOPT_FROM_UINT8), ("uint8", FASTOPT_FROM_UINT8), ("uint16", FASTOPT_FROM_UINT16),
    ("uint32", FASTOPT_FROM_UINT32), ("uint64", FASTOPT_FROM_UINT64), ("int8", FASTOPT_FROM_INT8),
    ("int16", FASTOPT_FROM_INT16), ("int32", FASTOPT_FROM_INT32), ("int64", FASTOPT_FROM_INT64),
    ("float16", FASTOPT_FROM_HALF), ("float32", FASTOPT_FROM_FLOAT), ("float64", FASTOPT_FROM_DOUBLE))}
cdef dict TARGETS = {numpy.dtype(name): target for name, target in (
    ("float32", FASTOPT_TO_FLOAT), ("float64", FASTOPT_TO_DOUBLE), ("int64", FASTOPT_TO_INT64))}


def permutations(seed, steps, Py_ssize_t n):
    """``numpy.random.default_rng([seed, step]).permutation(n)`` for each of some steps (steps, n); None where C cannot
    draw them."""
    cdef Py_ssize_t i, words
    cdef uint32_t entropy[64]
    cdef buffer view
    cdef bint drawn = 0 <= n <= UINT32_MAX
    orders = numpy.empty((len(steps), n), numpy.int64)
    take(orders, &view, True)
    PyBuffer_Release(&view)
    for i in range(len(steps)):
        words = 0
        for number in (seed, steps[i]):
            while drawn:
                if words == 64:
                    return None
                entropy[words] = number & 0xffffffff
                words, number = words + 1, number >> 32
                if not number:
                    break
        if drawn:
            with nogil:
                drawn = fastopt_permutation(entropy, words, n, <int64_t *>view.buf + i * n)
    return orders if drawn else None


def gathers(array):
    """Whether the rows of an array can be gathered as they lie: each contiguous, of numbers of a known type."""
    if type(array) is not ndarray and (not isinstance(array, ndarray) or hasattr(array, "mask")):
        return False
    return (array.dtype.newbyteorder("=") in SOURCES and array.ndim > 0
            and (array.flags.c_contiguous or array[:1].flags.c_contiguous))


@cython.auto_pickle(False)
@cython.final
cdef class Program:
    """What is done with each batch, as a list of items that C runs for many batches (csrc/program.c).

    Items are added in the order in which they are to run. It holds the arrays of all; their memory must stay where it
    is. A *batch* is counted from the beginning of a run, a *pass* from that of the model.
    """
    cdef fastopt_item *items
    cdef Py_ssize_t count, room
    cdef size_t bytes           # that a batch moves
    cdef int64_t most           # batches of a run, for which there is room
    cdef list arrays            # of each item, those that it reads, and those that it writes
    cdef dict fed, aimed        # what rows are gathered of, and where copies go, by item
    cdef bint running
    # While calls are recorded:
    cdef int64_t counts
    cdef const char *moving     # where an array that moves on begins
    cdef int64_t stride
    cdef object outer

    def __cinit__(self):
        self.arrays, self.fed, self.aimed, self.most = [], {}, {}, INT64_MAX

    def __dealloc__(self):
        PyMem_Free(self.items)

    def __len__(self):
        return self.count

    cdef fastopt_item *new(self, fastopt_kind kind, tuple reads, tuple writes) except NULL:
        cdef fastopt_item *more
        self.must_rest()
        if self.count == self.room:
            more = <fastopt_item *>PyMem_Realloc(self.items, (2 * self.room + 16) * sizeof(fastopt_item))
            if not more:
                raise MemoryError
            self.items, self.room = more, 2 * self.room + 16
        cdef fastopt_item *item = &self.items[self.count]
        memset(item, 0, sizeof(fastopt_item))
        item.kind, item.when, item.moving = kind, FASTOPT_EACH, -1
        self.arrays.append((reads, writes))
        self.count += 1
        return item

    cdef int must_rest(self) except -1:
        if self.running:
            raise RuntimeError("one program cannot run twice at once, or be changed meanwhile: another thread runs it")
        return 0

    cdef int moves_on(self, array, int64_t stride) except -1:
        """Take note that an array is followed by as many as its base has room for."""
        base = array
        while isinstance(base.base, ndarray):
            base = base.base
        if stride < 0:
            raise ValueError(f"stride must be at least 0, got {stride}")
        if stride:
            end = address(base) + base.nbytes
            self.most = min(self.most, (end - address(array) - array.nbytes) // stride + 1)
        return 0

    # ---- Adding items ----------------------------------------------------------------------------------------

    def call(self, function, tuple arguments, dict options, counts=0, moving=None, stride=0):
        """Add the kernel calls that a function makes; no kernel runs. What it returns is returned.

        Parameters
        ----------
        function : callable
        arguments, options : tuple, dict
        counts : int
            What is added to a kernel's counter from pass to pass; the call has that of pass 0.
        moving : ndarray, optional
            An array among the arguments in whose place, for batch i, is what lies i times `stride` bytes further.
        stride : int

        Raises
        ------
        ValueError
            Where the function calls no kernel; as what it raises itself, that leaves the list as it was.
        """
        cdef Py_ssize_t before = self.count
        self.must_rest()
        self.counts, self.moving, self.stride = <int64_t>PyLong_AsUnsignedLongLongMask(counts), NULL, stride
        if moving is not None:
            self.moves_on(moving, stride)
            self.moving = <const char *><uintptr_t>address(moving)
        try:
            with self:
                made = function(*arguments, **options)
        except BaseException:
            self.count = before
            del self.arrays[before:]
            raise
        if self.count == before:
            raise ValueError(f"{getattr(function, '__name__', function)} must call a kernel")
        return made

    def __enter__(self):
        self.outer = _recording.get(PyThread_get_thread_ident())
        _recording[PyThread_get_thread_ident()] = self
        return self

    def __exit__(self, *error):
        _recording.pop(PyThread_get_thread_ident())
        if self.outer is not None:
            _recording[PyThread_get_thread_ident()] = self.outer
            self.outer = None

    cdef int add(self, const checked_call *call, tuple arrays, int first) except -1:
        cdef fastopt_item *item = self.new(FASTOPT_CALL, arrays[:first], arrays[first:])
        cdef int k
        item.row, item.real, item.bytes = call.row, call.real, call.bytes
        memcpy(item.arguments, call.arguments, sizeof(call.arguments))
        if call.counter >= 0:
            item.moving, item.counts = call.counter, 1
            item.start, item.stride = call.arguments[call.counter], self.counts
        if self.moving:
            for k in range(FASTOPT_MAX_ARRAYS):
                if k < len(arrays) and <const char *>call.arguments[k] == self.moving:
                    item.moving, item.counts, item.start, item.stride = k, 0, call.arguments[k], self.stride
        self.bytes += call.bytes
        return 0

    def gather(self, target):
        """Add the gathering of a batch's rows in an array; `feed` says of which."""
        cdef buffer view
        take(target, &view, True)
        PyBuffer_Release(&view)
        cdef fastopt_item *item = self.new(FASTOPT_GATHER, (), (target,))
        item.to, item.to_stride = view.buf, view.len // max(1, len(target))
        self.bytes += 2 * view.len
        return self.count - 1

    def copy(self, target, source):
        """Add the copying of an array to another of its size; `aim` gives it a target with room for all batches."""
        cdef buffer view, other
        take(target, &view, True)
        PyBuffer_Release(&view)
        take(source, &other, False)
        PyBuffer_Release(&other)
        if view.len != other.len:
            raise Misfit("arrays must have the same size")
        cdef fastopt_item *item = self.new(FASTOPT_COPY, (source,), (target,))
        item.to, item.source, item.bytes = view.buf, other.buf, view.len
        return self.count - 1

    def finite(self, array, elements=None, stride=0):
        """Add a stop where some real numbers, for batch i those `stride` bytes times i further, are not finite: the
        first so many of an array, or all."""
        cdef buffer view
        take(array, &view, False)
        PyBuffer_Release(&view)
        if real_of(&view) < 0:
            raise Misfit("type")
        if elements is not None and not 0 <= elements <= view.len // view.itemsize:
            raise ValueError(f"elements must be in [0, {view.len // view.itemsize}], got {elements}")
        self.moves_on(array, stride)
        cdef fastopt_item *item = self.new(FASTOPT_FINITE, (array,), ())
        item.real, item.source, item.stride = <fastopt_real>real_of(&view), view.buf, stride
        item.elements = view.len // view.itemsize if elements is None else elements

    def zero(self, array):
        """Add a stop where an int64 is not 0."""
        cdef buffer view
        take(array, &view, False)
        PyBuffer_Release(&view)
        if not has_type(&view, INT64, FASTOPT_FLOAT) or view.len != 8:
            raise Misfit("there must be one int64")
        self.new(FASTOPT_ZERO, (array,), ()).source = <const void *><uintptr_t>address(array)

    def scale(self, array, factors):
        """Add the scaling of an array, for batch i by the float64 that lies i places behind the first of an array."""
        cdef buffer view, other
        take(array, &view, True)
        PyBuffer_Release(&view)
        take(factors, &other, False)
        PyBuffer_Release(&other)
        if real_of(&view) < 0 or real_of(&other) != FASTOPT_DOUBLE or other.len < <Py_ssize_t>sizeof(double):
            raise Misfit("type")
        self.most = min(self.most, other.len // <Py_ssize_t>sizeof(double))
        cdef fastopt_item *item = self.new(FASTOPT_SCALE, (array, factors), (array,))
        item.real, item.to, item.elements = <fastopt_real>real_of(&view), view.buf, view.len // view.itemsize
        item.source, item.stride = other.buf, sizeof(double)

    def step(self):
        """Add the step of an optimizer, which `run` is given."""
        self.new(FASTOPT_STEP, (), ())

    def only(self, Py_ssize_t begin, str when):
        """Run the items from one on for some batches of a step alone: the "first", those "later", or the "last"."""
        cdef Py_ssize_t i
        self.must_rest()
        for i in range(begin, self.count):
            self.items[i].when = {"first": FASTOPT_FIRST, "later": FASTOPT_LATER, "last": FASTOPT_LAST}[when]

    def list(self):
        """For each item its name, of the kernel or of what else it does, and the arrays that it reads and writes."""
        layers = tuple(LAYERS)
        others = {FASTOPT_GATHER: "gather", FASTOPT_COPY: "copy", FASTOPT_FINITE: "stop unless finite",
                  FASTOPT_ZERO: "stop unless zero", FASTOPT_SCALE: "scale", FASTOPT_STEP: "step"}
        return [(layers[self.items[i].row] if self.items[i].kind == FASTOPT_CALL else others[self.items[i].kind],
                 *self.arrays[i]) for i in range(self.count)]

    # ---- Running ---------------------------------------------------------------------------------------------

    def feed(self, Py_ssize_t place, source):
        """Gather the rows of an array from now on, at the item of that number."""
        cdef fastopt_item *item
        cdef buffer view
        if not (0 <= place < self.count and self.items[place].kind == FASTOPT_GATHER):
            raise ValueError(f"item {place} must gather rows")
        self.must_rest()
        item, target = &self.items[place], self.arrays[place][1][0]
        if layout_known and type(source) is ndarray and has_rows_of(<const array_head *>source,
                                                                    <const array_head *>target):
            item.source, item.row_stride = (<const array_head *>source).data, item.to_stride
            item.elements, item.convert = item.to_stride // <Py_ssize_t>target.itemsize, NULL
            item.source_bytes = 0
            self.fed[place] = source
            return
        if not gathers(source):
            raise Misfit("rows must be contiguous, of numbers of a type that is known")
        kind, wanted = source.dtype.newbyteorder("="), target.dtype
        if source.shape[1:] != target.shape[1:]:
            raise Misfit("rows must have the shape of those that they become")
        if PyObject_GetBuffer(source, &view, PyBUF_STRIDES) < 0:
            if PyErr_ExceptionMatches(MemoryError):
                PyErr_Clear()
                raise MemoryError
            PyErr_Clear()
            raise Misfit("rows must be those of a plain array")
        item.source, item.row_stride = view.buf, view.strides[0] if view.shape[0] > 1 else 0
        PyBuffer_Release(&view)
        item.elements, item.convert = item.to_stride // <Py_ssize_t>wanted.itemsize, NULL
        item.swapped = not source.dtype.isnative
        item.source_bytes = source.itemsize if item.elements and (item.swapped or not source.flags.aligned) else 0
        if item.source_bytes or kind != wanted:
            item.convert = fastopt_convert[<int>SOURCES[kind]][<int>TARGETS[wanted]]
        self.fed[place] = source

    def aim(self, Py_ssize_t place, target):
        """Copy to an array from now on, at the item of that number, to what is one copy further for each batch."""
        cdef buffer view
        if not (0 <= place < self.count and self.items[place].kind == FASTOPT_COPY):
            raise ValueError(f"item {place} must copy")
        self.must_rest()
        take(target, &view, True)
        PyBuffer_Release(&view)
        self.items[place].to, self.items[place].to_stride = view.buf, self.items[place].bytes
        self.aimed[place] = target

    def rest(self):
        """Let go of what it was fed with and aimed at, which it must be again before it runs."""
        self.must_rest()
        for place in self.aimed:
            self.items[place].to = <void *><uintptr_t>address(self.arrays[place][1][0])
            self.items[place].to_stride = 0
        self.fed.clear()
        self.aimed.clear()

    def once(self, Py_ssize_t gather, source, Py_ssize_t copy, target):
        """Run all for one batch, of the rows of an array, with a copy to another: the item that stopped it, or -1."""
        self.feed(gather, source)
        self.aim(copy, target)
        cdef fastopt_stop stop
        leg = self, None, len(source), 1, 0, self.count, 0, 0, 0
        try:
            run_legs([leg], 1, 0, 1, None, None, None, None, None, None, &stop)
        finally:
            self.rest()
        return -1 if stop.round else <Py_ssize_t>stop.item

    cdef bint lies(self, Py_ssize_t place) except -1:
        """Whether rows to gather are where they were when they were fed."""
        source = self.fed[place]
        return ((not layout_known or (<const array_head *>source).data == self.items[place].source)
                and source.shape[1:] == self.arrays[place][1][0].shape[1:])

    def run(self, order, Py_ssize_t rows, Py_ssize_t batches, passes=0, *, Py_ssize_t begin=0, end=None,
            Py_ssize_t first_batch=0, tuple part=(0, 1, 0), Plan plan=None, grads=None, places=None, values=None,
            clips=None, dict seconds=None):
        """Run items for some batches.

        Parameters
        ----------
        order : int64 ndarray, optional
            The numbers of the rows of all batches, in the range of what `feed` was given; 0, 1, 2, … where absent.
        rows : int
            Of each batch.
        batches : int
        passes : int
            The number of the first pass.
        begin, end : int, optional
            The items; all where absent.
        first_batch : int
            The number of the first batch of this run.
        part : tuple of int
            Batches whose gradients are added up: those that come before, how many make a step, and those that follow.
        plan, grads
            What steps, and along which gradients.
        places, values : list of (int, int), float64 ndarray (batches, places)
            Hyperparameters that change from step to step, as (place in the table, bucket), and their values.
        clips : tuple of float, optional
            The largest norm of a gradient, and of all together, and what is added to a norm that is divided by.
        seconds : dict, optional
            To which the time of each item is added, by its name.

        Raises
        ------
        Misfit, ValueError, RuntimeError
            Where these do not fit the items, or the program runs already; nothing has been done then.

        Returns
        -------
        completed : int
            The number of batches.
        stopped : int
            The item that stopped the next batch, or -1.
        norm : float
            Of all gradients of the last step, where they are clipped by norms.
        """
        cdef fastopt_stop stop
        before, every, after = part
        leg = self, order, rows, batches, begin, self.count if end is None else end, first_batch, before, after
        norm = run_legs([leg], 1, passes, every, plan, grads, places, values, clips, seconds, &stop)
        return (batches, -1, norm) if stop.round else (<Py_ssize_t>stop.batch, <Py_ssize_t>stop.item, norm)

    cdef int check(self, fastopt_leg *leg, buffer *numbers, order, Py_ssize_t rows, Py_ssize_t batches) except -1:
        """Let the items of a leg be run for so many batches in all, or say what is wrong."""
        cdef Py_ssize_t i, first = leg.first_batch
        cdef int64_t most = INT64_MAX
        if not 0 <= leg.begin <= leg.end <= <size_t>self.count:
            raise ValueError("items must be those of the program")
        if rows < 0 or not 0 <= batches <= self.most or not 0 <= first <= self.most - batches:
            raise ValueError(f"there must be rows and batches, those that there is room for, got {batches} of {rows}, "
                             f"from {first}")
        if rows and first + batches > INT64_MAX // rows:
            raise ValueError(f"there must be rows for all batches, got {batches} of {rows}")
        for i in range(<Py_ssize_t>leg.begin, <Py_ssize_t>leg.end):
            if self.items[i].kind == FASTOPT_GATHER:
                if i not in self.fed:
                    raise ValueError(f"item {i} must be fed before it gathers rows")
                if len(self.arrays[i][1][0]) != rows:
                    raise Misfit(f"a batch must have the {len(self.arrays[i][1][0])} rows of its array, got {rows}")
                if not self.lies(i):
                    raise Misfit("inputs, targets and weights must not be moved or reshaped in place while in use")
        leg.items, leg.rows, leg.order = self.items, rows, NULL
        for source in self.fed.values():
            most = min(most, <int64_t>len(source))
        if order is not None:
            take(order, numbers, False)
            if not has_type(numbers, INT64, FASTOPT_FLOAT) or numbers.len // 8 < (first + batches) * rows:
                raise Misfit("order must hold an int64 for each row")
            leg.order = <const int64_t *>numbers.buf
            for i in range(first * rows, (first + batches) * rows):
                if not 0 <= leg.order[i] < most:
                    raise Misfit("order must hold the numbers of rows")
        elif self.fed and (first + batches) * rows > most:
            raise Misfit("there must be rows for all batches")
        for i, target in self.aimed.items():
            if (first + batches) * <Py_ssize_t>self.items[i].bytes > target.nbytes:
                raise Misfit("there must be room for all batches")
        return 0

    cdef int timed(self, const fastopt_leg *leg, dict seconds, fastopt_stop *stop) except -1:
        """Run a leg for one round, and add the time of each item by its name."""
        cdef fastopt_leg one = leg[0]
        cdef size_t batch, i
        names = [item[0] for item in self.list()]
        one.batches = 1
        for batch in range(leg.batches):
            one.first_batch, one.pass_ = leg.first_batch + batch, leg.pass_ + batch
            one.before, one.after = leg.before + batch, leg.after + leg.batches - batch - 1
            for i in range(leg.begin, leg.end):
                one.begin, one.end = i, i + 1
                start = perf_counter()
                if not fastopt_run_program(&one, 1, 1, 1, stop):
                    stop.batch = batch
                    return 0
                seconds[names[i]] = seconds.get(names[i], 0.0) + perf_counter() - start
        stop.round = 1
        return 0


cdef enum:
    MOST_LEGS = 4


def run_rounds(list legs, Py_ssize_t rounds, passes, *, every=1, Plan plan, grads, places=None, values=None,
               clips=None):
    """Run several programs one after the other, round after round, such as those of an epoch.

    Parameters
    ----------
    legs : list of (Program, int64 ndarray or None, int, int)
        At most 4 different programs, each with the numbers of the rows of all its batches, round after round; the rows
        of each batch; and the batches of each round.
    rounds : int
    passes : int
        The number of the first pass, which those of programs with rows are.
    every : int
        The batches of a step, whatever legs they are of; the last step of a round may have fewer.
    plan, grads, places, values, clips
        As for `Program.run`.

    Returns
    -------
    rounds, leg, batches, item : int
        The number of rounds that were completed, and, if fewer than all, the leg that was stopped, its batches of that
        round that were completed, and the item that stopped the next.
    norm : float
        As of `Program.run`.
    """
    cdef fastopt_stop stop
    given, before, after = [], 0, sum([batches for _, _, rows, batches in legs if rows])
    for program, order, rows, batches in legs:
        after -= batches if rows else 0
        around = (before, after) if rows else (0, 0)
        given.append((program, order, rows, batches, 0, len(program), 0, *around))
        before += batches if rows else 0
    norm = run_legs(given, rounds, passes, every, plan, grads, places, values, clips, None, &stop)
    return stop.round, stop.leg, stop.batch, stop.item, norm


cdef object run_legs(list given, Py_ssize_t rounds, passes, Py_ssize_t every, Plan plan, grads, places, values, clips,
                     dict seconds, fastopt_stop *stop):
    """Check all and run it, and return the norm; legs as in `run_rounds`, with their items, their first batch, and the
    batches of a round before them and after them."""
    cdef fastopt_leg legs[MOST_LEGS]
    cdef buffer numbers[MOST_LEGS]
    cdef buffer table
    cdef fastopt_plan step
    cdef Program program
    cdef Py_ssize_t count = len(given), i, k, batches, begin, end, first_batch, running = 0, steps = 0
    cdef Py_ssize_t before, after, ended
    cdef uint64_t first = PyLong_AsUnsignedLongLongMask(passes), each = 0
    cdef size_t moved = 0
    if every < 1:
        raise ValueError(f"a step must be of at least one batch, got {every}")
    if not 0 < count <= MOST_LEGS or rounds < 0:
        raise ValueError(f"there must be 1 to {MOST_LEGS} legs, and rounds, got {count} and {rounds}")
    memset(&step, 0, sizeof(step))
    memset(numbers, 0, sizeof(numbers))
    table.obj = NULL
    stop.round = stop.leg = stop.batch = stop.item = 0
    try:
        for i in range(count):
            program, order, rows, batches, begin, end, first_batch, before, after = given[i]
            program.must_rest()
            program.running = True
            running += 1
            if batches < 0 or (batches and rounds > INT64_MAX // batches):
                raise ValueError(f"there must be rounds and batches, got {rounds} of {batches}")
            if before < 0 or after < 0 or before > INT64_MAX - batches:
                raise ValueError(f"there must be batches before and after, got {before} and {after}")
            ended = (before + batches) // every - before // every  # steps
            if batches and not after and (before + batches) % every:
                ended += 1
            legs[i].every, legs[i].before, legs[i].after = every, before, after
            legs[i].begin, legs[i].end, legs[i].batches = begin, end, batches
            legs[i].first_batch, legs[i].pass_ = first_batch, first + each
            program.check(&legs[i], &numbers[i], order, rows, rounds * batches)
            if rows:
                each += batches
            for k in range(<Py_ssize_t>legs[i].begin, <Py_ssize_t>legs[i].end):
                if program.items[k].kind == FASTOPT_STEP:
                    if plan is None:
                        raise ValueError("a program with a step must be given a plan")
                    program.items[k].plan = &step
                    moved += 4 * plan.bytes * ended
                    steps += ended
            moved += program.bytes * batches
        each += <uint64_t>((every - <Py_ssize_t>each % every) % every)
        if plan is not None:
            bind_step(&step, &table, plan, grads, places, values, clips, rounds * steps)
        if seconds is not None:
            (<Program>given[0][0]).timed(legs, seconds, stop)
        elif moved * rounds < KEEP_GIL_BELOW:
            fastopt_run_program(legs, count, rounds, each, stop)
        else:
            if plan is not None:
                plan.busy = generation
            with nogil:
                fastopt_run_program(legs, count, rounds, each, stop)
            if plan is not None:
                plan.busy = 0
    finally:
        for i in range(running):
            (<Program>given[i][0]).running = False
            PyBuffer_Release(&numbers[i])
        PyMem_Free(<void *>step.places)
        PyMem_Free(step.norms)
        PyBuffer_Release(&table)
    return step.norm


cdef int bind_step(fastopt_plan *step, buffer *table, Plan plan, grads, places, values, clips,
                   Py_ssize_t steps) except -1:
    """What so many steps along gradients are, each with a row of values at places of the table of hyperparameters."""
    cdef size_t *changed
    cdef Py_ssize_t i
    plan.check(grads)
    if not steps <= LAST_STEP - plan.hypers[0]:
        raise ValueError(f"t must be below 2**53 before a step, got {plan.hypers[0]:.0f}")
    step.row, step.real, step.tensors = plan.row, <fastopt_real>plan.real, plan.tensors
    step.buckets, step.first = plan.buckets, plan.first
    step.hypers, step.next = plan.hypers, plan.running
    step.scratch, step.scalars = plan.scratch, plan.scalars > 0
    step.params, step.place = plan.total, plan.place
    if clips is not None:
        step.clip_norm, step.clip_global_norm, step.clip_eps = clips
        step.norms = <double *>PyMem_Calloc(plan.total + 1, sizeof(double))
        if not step.norms:
            raise MemoryError
    if places:
        take(values, table, False)
        if real_of(table) != FASTOPT_DOUBLE or table.len < <Py_ssize_t>sizeof(double) * len(places) * steps:
            raise Misfit("values must be float64, one for each place and step")
        changed = <size_t *>PyMem_Malloc(len(places) * sizeof(size_t))
        if not changed:
            raise MemoryError
        step.places = changed
        for i, (place, bucket) in enumerate(places):
            plan.hyper(place, bucket)
            changed[i] = <size_t>(bucket * FASTOPT_MAX_HYPERS + place)
        step.changes, step.values = len(places), <const double *>table.buf
    return 0


@cython.auto_pickle(False)
@cython.final
cdef class Snapshot:
    """Which objects some dicts hold, and where the arrays among them lie."""
    cdef list dicts, copies
    cdef layout *layouts
    cdef Py_ssize_t count

    def __cinit__(self, dicts):
        self.dicts = list({id(each): each for each in dicts}.values())
        self.copies = [dict(each) for each in self.dicts]
        arrays = {id(value): value for each in self.copies for value in each.values() if isinstance(value, ndarray)}
        self.layouts = <layout *>PyMem_Calloc(len(arrays) + 1, sizeof(layout))
        if not self.layouts:
            raise MemoryError
        for array in arrays.values():
            if layout_known and array.ndim <= MAX_NOTED_AXES:
                note(<const array_head *>array, &self.layouts[self.count])
                self.count += 1

    def __dealloc__(self):
        PyMem_Free(self.layouts)

    def holds(self):
        """Whether each still holds the same objects, and arrays lie where they did."""
        cdef Py_ssize_t i, position, other
        cdef PyObject *now_key
        cdef PyObject *now_value
        cdef PyObject *now  # a dict, or of a class that is made of it
        cdef PyObject *then
        cdef PyObject *key
        cdef PyObject *value
        for i in range(self.count):  # the copies keep them
            if not stays(&self.layouts[i]):
                return False
        for i in range(len(self.dicts)):
            now, then, position = list_item(self.dicts, i), list_item(self.copies, i), 0
            if PyDict_Size(<object>now) != PyDict_Size(<object>then):
                return False
            other = 0
            while PyDict_Next(<object>then, &position, &key, &value):  # in the same order, as nothing has changed
                if not PyDict_Next(<object>now, &other, &now_key, &now_value) or now_key != key or now_value != value:
                    return False
        return True


# ---- Layer kernels -------------------------------------------------------------------------------------------------

# What an axis of an array is: one axis, or in a fold any number of them, of a length that is a number of the call or
# an expression. What an array is: its axes among those of all arrays, and the first array with the same list of axes.
cdef enum:
    MAX_AXES = 64           # of all arrays of a layer
    MAX_OPERATIONS = 256    # of all expressions of a layer
    MAX_DEPTH = 16          # of an expression's stack

cdef enum:
    LITERAL, NUMBER, ADD, SUBTRACT, MULTIPLY, DIVIDE    # "nN+-*/" to __cinit__

cdef struct operation:
    int code
    int64_t value           # of a literal, or which number

cdef struct axis_rule:
    bint fold
    int number              # of the call, or -1 where the length is an expression
    int first, end          # operations of the expression

cdef struct array_rule:
    bint optional, written
    int type, in_place, alike   # in_place, alike: other arrays, or -1
    int first, end, folds       # axes, and how many of them are folds


cdef inline int64_t checked(int code, int64_t a, int64_t b) noexcept nogil:
    """The result of an operation on numbers that are not negative; -1 where it would be, or is too large, or one is."""
    if a < 0 or b < 0:
        return -1
    if code == ADD:
        return a + b if a <= INT64_MAX - b else -1
    if code == SUBTRACT:
        return a - b if a >= b else -1
    if code == MULTIPLY:
        return a * b if (a | b) >> 31 == 0 or b == 0 or a <= INT64_MAX // b else -1
    return a // b if b > 0 else -1


cdef list declared_arrays(str members):
    """For each array of a layer its type's number, whether it is optional, and whether it is written."""
    return [(TYPES.index(type_), "OPTIONAL" in array, not const)
            for const, type_, rest in re.findall(r"(const )?(\w+) (\*[^;]*)", members)
            for array in re.findall(r"\*\w+ (OPTIONAL )?", rest)]


cdef list declared_numbers(str members):
    """For each number of a layer its type."""
    return [type_ for type_, rest in re.findall(r"(?:^|;)\s*(\w+) ([^*;]+)(?=;|$)", members) for _ in rest.split(",")]


@cython.auto_pickle(False)
@cython.final
cdef class Layer:
    """A kernel that is no optimizer step; `fastopt.kernel.kernel` makes one of a row of the table.

    Called with its arrays (those that are read, then those that are written; None where one may be absent, or is to be
    made) and its options, in the order of the table, it returns what was written: one array, or a tuple of them, with
    None where an optional one is absent. Where an argument is not what the table says of it, `explain` is called with
    all arguments, nothing having been written, and must raise.

    Parameters
    ----------
    name : str
        Of a row.
    arrays : list of tuple
        For each array its type's place in `TYPES`, whether it is optional, whether it is written, the arrays that
        it may be and whose shape it has (or -1), and its axes: whether that is a fold, which number of the call is its
        length (or -1), and the expression of its length as (code, value) in postfix order.
    numbers : list of str
        The kind of each number: ``"extent"``, ``"int64_t"``, ``"uint64_t"``, ``"double"``.
    counter : int
        Which number counts the steps, or -1.
    explain : callable

    Raises
    ------
    ValueError
        Where the arguments are others than the table's, or refer to what is not there.
    """
    cdef readonly str name
    cdef object explain
    cdef size_t row
    cdef int array_count, number_count, option_count, counter
    cdef int first, only    # array that is written; the only one, or -1
    cdef size_t numbers_at  # in arguments
    cdef array_rule arrays[FASTOPT_MAX_ARRAYS]
    cdef char kinds[FASTOPT_MAX_NUMBERS]
    cdef axis_rule axes[MAX_AXES]
    cdef operation operations[MAX_OPERATIONS]

    def __cinit__(self, str name, list arrays, list numbers, int counter, explain):
        cdef int axis = 0, place = 0, written = 0
        if name not in LAYER_NUMBER:
            raise ValueError(f"name must be that of a layer, got {name!r}")
        self.name, self.row, self.explain = name, LAYER_NUMBER[name], explain
        self.array_count, self.number_count = len(arrays), len(numbers)
        self.numbers_at = (self.array_count * sizeof(void *) + 7) // 8
        self.counter = counter
        operations = sum([len(expression) for rule in arrays for _, _, expression in rule[5]])
        if (self.array_count > FASTOPT_MAX_ARRAYS or self.number_count > FASTOPT_MAX_NUMBERS
                or sum([len(rule[5]) for rule in arrays]) > MAX_AXES or operations > MAX_OPERATIONS):
            raise ValueError(f"{name} has more arguments than the bridge has room for")
        if (not -1 <= counter < self.number_count
                or [(rule[0], rule[1], rule[2]) for rule in arrays] != declared_arrays(LAYERS[name])
                or numbers != declared_numbers(LAYERS[name])):
            raise ValueError(f"{name} must have the arguments that the table says")
        for i, kind in enumerate(numbers):
            self.kinds[i] = {"extent": b"e", "int64_t": b"i", "uint64_t": b"u", "double": b"d"}[kind][0]
            self.option_count += kind != "extent"
        self.only = -1
        for i, (type_, optional, is_written, in_place, alike, axes) in enumerate(arrays):
            self.arrays[i] = array_rule(optional, is_written, type_, in_place, alike, axis, axis + len(axes),
                                        sum([fold for fold, _, _ in axes]))
            if not (-1 <= in_place < self.array_count and -1 <= alike < i):
                raise ValueError(f"array {i} of {name} must be like one before it")
            if is_written:
                self.only, written = i, written + 1
            elif written:
                raise ValueError(f"{name} must have the arrays that are written behind those that are read")
            for fold, number, expression in axes:
                self.axes[axis] = axis_rule(fold, number, place, place + len(expression))
                axis += 1
                for code, value in expression:
                    self.operations[place] = operation("nN+-*/".index(code), value)
                    place += 1
        for i in range(self.array_count):
            self.check_rule(&self.arrays[i])
        self.first = self.array_count - written
        if written != 1 or self.arrays[self.only].optional:
            self.only = -1

    cdef int check_rule(self, const array_rule *rule) except -1:
        """Raise where a rule names an array or a number that is none, or where an expression has no value."""
        cdef int axis, place, depth, most
        if rule.alike >= 0 and (self.arrays[rule.alike].optional or self.arrays[rule.alike].written):
            raise ValueError(f"an array of {self.name} must be like one that is always given")
        for axis in range(rule.first, rule.end):
            depth = most = 0
            for place in range(self.axes[axis].first, self.axes[axis].end):
                if self.operations[place].code == NUMBER and not 0 <= self.operations[place].value < self.number_count:
                    most = MAX_DEPTH + 1
                depth += 1 if self.operations[place].code in (LITERAL, NUMBER) else -1
                most = max(most, depth) if depth > 0 else MAX_DEPTH + 1
            if not (0 <= self.axes[axis].number < self.number_count
                    or (self.axes[axis].number == -1 and rule.folds != 1 and depth == 1 and most <= MAX_DEPTH)):
                raise ValueError(f"an axis of {self.name} must be a number's, or have an expression of numbers")
        return 0

    def __call__(self, *arguments):
        return self.use(arguments, True)

    def check(self, *arguments):
        """Do all that a call does, but for the kernel's work."""
        return self.use(arguments, False)

    cdef inline int64_t length(self, const axis_rule *axis, const int64_t *numbers) noexcept:
        """What an axis is long, or -1."""
        cdef int64_t stack[MAX_DEPTH]
        cdef int i, top = 0
        cdef operation *at
        if axis.number >= 0:
            return numbers[axis.number]
        for i in range(axis.first, axis.end):
            at = &self.operations[i]
            if at.code == LITERAL or at.code == NUMBER:
                if top == MAX_DEPTH:
                    return -1
                stack[top] = at.value if at.code == LITERAL else numbers[at.value]
                top += 1
            else:
                top -= 1
                stack[top - 1] = checked(at.code, stack[top - 1], stack[top])
            if stack[top - 1] < 0:
                return -1
        return stack[0]

    cdef inline bint bind(self, const array_rule *rule, const buffer *view, int64_t *numbers) noexcept:
        """Note the extents that an array tells; return whether it has as many axes, and agrees with what was noted."""
        cdef int axis, end, at = 0, more = view.ndim - (rule.end - rule.first)
        cdef int64_t length, product
        if rule.folds == 0:
            if more != 0:
                return False
            for axis in range(rule.first, rule.end):
                if self.axes[axis].number >= 0:
                    length = numbers[self.axes[axis].number]
                    if length != view.shape[at]:
                        if length >= 0:
                            return False
                        numbers[self.axes[axis].number] = view.shape[at]
                at += 1
            return True
        if rule.folds > 1:
            return True
        if more < -1:
            return False
        for axis in range(rule.first, rule.end):
            product, end = 1, at + (more + 1 if self.axes[axis].fold else 1)
            while at < end:
                product = checked(MULTIPLY, product, view.shape[at])
                at += 1
            if product < 0:
                return False
            length = numbers[self.axes[axis].number]
            if length != product:
                if length >= 0:
                    return False
                numbers[self.axes[axis].number] = product
        return True

    cdef inline bint fits(self, const array_rule *rule, const buffer *views, const buffer *view,
                          const int64_t *numbers) noexcept:
        """Whether an array has the shape that follows from all numbers."""
        cdef int axis, at = 0
        cdef int64_t product = 1
        if rule.alike >= 0:
            return same_shape(view, &views[rule.alike])
        if rule.folds > 1:
            for axis in range(rule.first, rule.end):
                product = checked(MULTIPLY, product, self.length(&self.axes[axis], numbers))
            return product >= 0 and product * view.itemsize == view.len
        if rule.folds == 0:
            for axis in range(rule.first, rule.end):
                if self.axes[axis].number < 0 and self.length(&self.axes[axis], numbers) != view.shape[at]:
                    return False
                at += 1
        return True

    cdef inline bint is_apart(self, int i, const buffer *views) noexcept:
        """Whether an array that is written shares no memory with another, but for that in whose place it may be."""
        cdef const buffer *a = &views[i]
        cdef const buffer *b
        cdef int k
        for k in range(self.array_count):
            b = &views[k]
            if (k != i and b.obj != NULL and a.len > 0 and b.len > 0 and <char *>a.buf < <char *>b.buf + b.len
                    and <char *>b.buf < <char *>a.buf + a.len
                    and not (self.arrays[i].in_place == k and a.buf == b.buf)):
                return False
        return True

    cdef bint take_options(self, tuple arguments, int64_t *numbers) except -1:
        """Note the options, and that extents are not known; return whether they are numbers of their kinds."""
        cdef int i, at = self.array_count
        for i in range(self.number_count):
            if self.kinds[i] == c'e':
                numbers[i] = -1
                continue
            option = arguments[at]
            at += 1
            if self.kinds[i] == c'd':
                (<double *>numbers)[i] = option
            elif self.kinds[i] == c'u':
                numbers[i] = <int64_t>PyLong_AsUnsignedLongLongMask(option)
            else:
                try:
                    numbers[i] = PyLong_AsLongLong(option)
                except (OverflowError, TypeError):
                    return False
                if numbers[i] < 0:
                    return False
        return True

    cdef bint take_arrays(self, tuple arguments, buffer *views, checked_call *call, int *real,
                          size_t *written) except -1:
        """Get the buffers of all arrays that are given; return whether they are what the table says."""
        cdef int i
        cdef int64_t *numbers = call.arguments + self.numbers_at
        cdef array_rule *rule
        cdef buffer *view
        for i in range(self.array_count):
            rule, view = &self.arrays[i], &views[i]
            array = arguments[i]
            if array is None:
                if not (rule.optional or rule.written):
                    return False
                continue
            if not get(array, view, rule.written):
                return False
            (<void **>call.arguments)[i] = view.buf
            call.bytes += view.len
            if rule.written:
                written[0] += view.len
            if real[0] < 0 and rule.type == REAL:
                real[0] = real_of(view)
            if not has_type(view, rule.type, real[0]) or not self.bind(rule, view, numbers):
                return False
        for i in range(self.array_count):
            if views[i].obj != NULL:
                if not self.fits(&self.arrays[i], views, &views[i], numbers):
                    return False
                if self.arrays[i].written and not self.is_apart(i, views):
                    return False
        return True

    cdef object make(self, int i, const buffer *views, const int64_t *numbers, int real):
        """A new array that is to be written, or None where its shape does not follow."""
        cdef array_rule *rule = &self.arrays[i]
        cdef const buffer *other
        cdef int64_t length, product = 1
        cdef int axis
        cdef list shape = []
        if rule.alike >= 0:
            other = &views[rule.alike]
            for axis in range(other.ndim):
                shape.append(other.shape[axis])
        elif rule.folds:
            return None
        else:
            for axis in range(rule.first, rule.end):
                length = self.length(&self.axes[axis], numbers)
                product = checked(MULTIPLY, product, length)
                if product < 0 or product >= 1 << 60:  # which no memory holds
                    return None
                shape.append(length)
        if len(shape) == 1:
            return new_array(shape[0], DTYPES[real][rule.type])
        return new_array(tuple(shape), DTYPES[real][rule.type])

    cdef object use(self, tuple arguments, bint run):
        cdef buffer views[FASTOPT_MAX_ARRAYS]
        cdef checked_call call
        cdef int i, real = -1
        cdef size_t written = 0
        cdef int64_t *numbers = call.arguments + self.numbers_at
        cdef bint fit
        cdef list made = None
        if len(arguments) != self.array_count + self.option_count:
            raise TypeError(f"{self.name} takes {self.array_count} arrays and {self.option_count} options")
        call.row, call.bytes = self.row, 0
        call.counter = -1 if self.counter < 0 else <Py_ssize_t>self.numbers_at + self.counter
        for i in range(self.array_count):
            views[i].obj = NULL
            (<void **>call.arguments)[i] = NULL
        try:
            fit = self.take_options(arguments, numbers) and self.take_arrays(arguments, views, &call, &real, &written)
            if fit:
                if real < 0:
                    real = FASTOPT_FLOAT
                call.real = <fastopt_real>real
                for i in range(self.array_count):
                    if self.arrays[i].written and not self.arrays[i].optional and arguments[i] is None:
                        array = self.make(i, views, numbers, real)
                        if array is None:
                            fit = False
                            break
                        if made is None:
                            made = list(arguments[:self.array_count])
                        made[i] = array
                        take(array, &views[i], True)
                        (<void **>call.arguments)[i] = views[i].buf
                        call.bytes += views[i].len
                        written += views[i].len
            if fit and run and written:  # or loops that do nothing could take forever: (2³¹, 2³¹, 0) is small
                if _recording and (program := _recording.get(PyThread_get_thread_ident())) is not None:
                    (<Program>program).add(&call, (tuple(made) if made else arguments)[:self.array_count], self.first)
                elif call.bytes < KEEP_GIL_BELOW:
                    fastopt_run_layer(call.row, call.real, call.arguments, call.bytes)
                else:
                    with nogil:
                        fastopt_run_layer(call.row, call.real, call.arguments, call.bytes)
        finally:
            for i in range(self.array_count):
                PyBuffer_Release(&views[i])
        if not fit:
            return self.explain(*arguments)
        if self.only >= 0:
            return arguments[self.only] if made is None else made[self.only]
        return arguments[self.first:self.array_count] if made is None else tuple(made[self.first:])


cdef object new_array = numpy.empty
#: By real type, in the order of TYPES.
cdef tuple DTYPES = tuple([tuple([numpy.dtype(name) for name in (real, "uint8", "uint32", "int64", "float64", word)])
                           for real, word in (("float32", "int32"), ("float64", "int64"))])
