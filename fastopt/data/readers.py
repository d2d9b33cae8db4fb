"""Readers of files. A file that is cut, damaged or of another format is refused, with what was found where."""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
import pickletools
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastopt import checks

PathLike = str | os.PathLike[str]
Bytes = NDArray[np.uint8]
_T = TypeVar("_T")

#: How many bytes may come of one that deflate has packed.
_DEFLATED = 1032


# ---- IDX ----------------------------------------------------------------------------------------------------


def read_idx(path: PathLike) -> NDArray[Any]:
    """The array in an IDX file, the format of MNIST and Fashion-MNIST, gzipped or not.

    Parameters
    ----------
    path : path
        Of a file such as ``train-images-idx3-ubyte.gz``.

    Returns
    -------
    ndarray
        Of the file's shape and type (images: uint8 (n, 28, 28); labels: uint8 (n,)).

    Raises
    ------
    ValueError
        Where the file is not of that format, or is shorter or longer than it says.

    Examples
    --------
    >>> from pathlib import Path
    >>> from fastopt import data
    >>> _ = Path("labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3]) + bytes([7, 2, 1]))
    >>> data.read_idx("labels-idx1-ubyte")
    array([7, 2, 1], dtype=uint8)
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            return _read_idx(name, gzip.GzipFile(fileobj=file) if packed else file, size, packed)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"path must name an IDX file, got {name!r}: {error}") from error


def _read_idx(name: Any, file: Any, size: int, packed: bool) -> NDArray[Any]:
    """The array in a file of `size` bytes on the disk, which is being unpacked where it is packed. A shape that cannot
    have come of these is refused before memory is taken for it."""
    most, limit = (size * _DEFLATED, "at most ") if packed else (size, "")
    types = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    start = file.read(4)
    ndim = start[3] if len(start) == 4 else 0
    lengths = file.read(4 * ndim)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in types or len(lengths) < 4 * ndim:
        raise ValueError(f"path must name an IDX file, got {name!r}, which begins with {start!r}")
    dtype, begin = np.dtype(types[start[2]]), 4 + 4 * ndim
    shape = tuple(int(length) for length in np.frombuffer(lengths, ">u4"))
    wanted = begin + math.prod(shape) * dtype.itemsize
    if wanted > most:
        raise ValueError(f"{name!r} must hold {wanted} bytes for shape {shape}, got {limit}{most}")
    raw = file.read(wanted - begin)
    got = begin + len(raw)
    while more := file.read(2**20):
        got += len(more)
    if got != wanted:
        raise ValueError(f"{name!r} must hold {wanted} bytes for shape {shape}, got {got}")
    try:
        return np.frombuffer(raw, dtype).reshape(shape).astype(dtype.newbyteorder("="))
    except ValueError as error:  # a shape that no array can have
        raise ValueError(f"path must name an IDX file, got {name!r}: {error}") from error


# ---- CIFAR --------------------------------------------------------------------------------------------------

#: Of an image 32×32×3.
_PIXELS = 3072
#: The labels of a file, in the order of its records, and how many classes they have.
_TENS, _HUNDREDS = {"labels": 10}, {"coarse_labels": 20, "fine_labels": 100}
#: The files of an archive that hold images.
_MEMBER = re.compile(r"(data_batch_\d+|test_batch|train|test)(\.bin)?")


def read_cifar10(path: PathLike) -> tuple[Bytes, Bytes]:
    """Images and labels in one file of CIFAR-10's binary or Python version.

    Parameters
    ----------
    path : path
        Of a file such as ``data_batch_1.bin`` (binary) or ``data_batch_1`` (Python).

    Returns
    -------
    images : ndarray (n, 32, 32, 3), uint8
    labels : ndarray (n,), uint8

    Raises
    ------
    ValueError
        Where the file is neither a whole number of records of 3073 bytes nor a pickle as those archives hold (nothing
        in it is called or imported), or a label is above 9.

    Examples
    --------
    >>> from pathlib import Path
    >>> from fastopt import data
    >>> _ = Path("data_batch_1.bin").write_bytes(bytes([6]) + bytes(3072))  # a record: label, red, green, blue
    >>> images, labels = data.read_cifar10("data_batch_1.bin")
    >>> images.shape, labels
    ((1, 32, 32, 3), array([6], dtype=uint8))
    """
    return _cifar(os.fspath(path), _content(path), _TENS, "labels")


def read_cifar100(path: PathLike, labels: str = "fine") -> tuple[Bytes, Bytes]:
    """Images and labels in one file of CIFAR-100's binary or Python version.

    Parameters
    ----------
    path : path
        Of a file such as ``train.bin`` (binary) or ``train`` (Python).
    labels : "fine" or "coarse", default "fine"
        The 100 classes, or the 20 superclasses.

    Returns
    -------
    images : ndarray (n, 32, 32, 3), uint8
    labels : ndarray (n,), uint8

    Raises
    ------
    ValueError
        Where the file is neither a whole number of records of 3074 bytes nor a pickle as those archives hold (nothing
        in it is called or imported), or a label is too large.

    Examples
    --------
    >>> from pathlib import Path
    >>> from fastopt import data
    >>> _ = Path("train.bin").write_bytes(bytes([11, 49]) + bytes(3072))  # a record: coarse label, fine label, pixels
    >>> data.read_cifar100("train.bin")[1], data.read_cifar100("train.bin", "coarse")[1]
    (array([49], dtype=uint8), array([11], dtype=uint8))
    """
    chosen = checks.choice("labels", labels, ("fine", "coarse"))
    return _cifar(os.fspath(path), _content(path), _HUNDREDS, f"{chosen}_labels")


def read_cifar_archive(path: PathLike) -> tuple[Bytes, Bytes, Bytes, Bytes]:
    """Training and test data in one of the archives that CIFAR-10 and CIFAR-100 are distributed as.

    Parameters
    ----------
    path : path
        Of ``cifar-10-binary.tar.gz``, ``cifar-100-python.tar.gz`` or the like. Nothing is unpacked to the disk.

    Returns
    -------
    x_train, y_train, x_test, y_test : ndarray, uint8
        Images (n, 32, 32, 3) and labels (n,), of CIFAR-100 the fine ones.

    Raises
    ------
    ValueError
        Where the archive is damaged, lacks a file, or one of its files is not of its format.

    Examples
    --------
    >>> import io, tarfile
    >>> from fastopt import data
    >>> with tarfile.open("cifar-10-binary.tar.gz", "w:gz") as archive:  # a small one of that form
    ...     for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
    ...         member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
    ...         member.size = 2 * 3073
    ...         archive.addfile(member, io.BytesIO(bytes(2 * 3073)))
    >>> x, y, x_test, y_test = data.read_cifar_archive("cifar-10-binary.tar.gz")
    >>> x.shape, x_test.shape
    ((10, 32, 32, 3), (2, 32, 32, 3))
    """
    name = os.fspath(path)
    parts: dict[str, list[tuple[str, Bytes, Bytes]]] = {"train": [], "test": []}
    try:
        with open(name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            unpacked: Any = gzip.GzipFile(fileobj=file) if packed else file
            with tarfile.open(fileobj=unpacked, mode="r:") as archive:
                for member in archive:
                    if found := _MEMBER.fullmatch(member.name.rpartition("/")[2]):
                        kinds = (_TENS, "labels") if "batch" in found[1] else (_HUNDREDS, "fine_labels")
                        content = _member(archive, member, size * _DEFLATED)
                        part = "test" if "test" in found[1] else "train"
                        parts[part].append((member.name, *_cifar(member.name, content, *kinds)))
            while unpacked.read(2**20):  # to the end, where the checksum is compared
                pass
    except (ValueError, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{name!r} is not an archive of CIFAR's: {error}") from error
    arrays: list[Bytes] = []
    for part, read in parts.items():
        if not read:
            raise ValueError(f"{name!r} must hold CIFAR's files, but has none of the {part} data")
        read.sort(key=lambda each: each[0])
        arrays += [np.concatenate([each[1] for each in read]), np.concatenate([each[2] for each in read])]
    x_train, y_train, x_test, y_test = arrays
    return x_train, y_train, x_test, y_test


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    """A file of an archive from which so many bytes may come."""
    file = archive.extractfile(member) if member.isfile() else None
    if file is None or member.size > most:
        raise ValueError(f"{member.name!r} must be a file of at most {most} bytes, got {member.size}")
    content = file.read()
    if len(content) != member.size:
        raise ValueError(f"{member.name!r} ends after {len(content)} of {member.size} bytes")
    return content


def _content(path: PathLike) -> bytes:
    with open(os.fspath(path), "rb") as file:
        return file.read()


def _cifar(name: Any, content: bytes, classes: dict[str, int], wanted: str) -> tuple[Bytes, Bytes]:
    """Images and labels of a file whose records are a byte per kind of labels, and the pixels."""
    by_kind: dict[str, Bytes]
    if content[:1] == b"\x80":  # the first byte of a pickle; in the binary version it is a label
        pixels, by_kind = _cifar_of_pickle(name, content, tuple(classes))
    else:
        length = len(classes) + _PIXELS
        if not content or len(content) % length:
            whole, rest = divmod(len(content), length)
            more = f": {whole} records and {rest} bytes" if content else ""
            raise ValueError(f"{name!r} must hold records of {length} bytes, got {len(content)} bytes{more}")
        records = np.frombuffer(content, np.uint8).reshape(-1, length)
        by_kind = {kind: records[:, i].copy() for i, kind in enumerate(classes)}
        pixels = records[:, len(classes) :]
    for kind, labels in by_kind.items():
        if labels.max() >= classes[kind]:
            at, called = int(np.argmax(labels)), kind.replace("_", " ")
            raise ValueError(f"{name!r} must hold {called} in [0, {classes[kind]}), got {labels[at]} in record {at}")
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), by_kind[wanted]


def _cifar_of_pickle(name: Any, content: bytes, kinds: Sequence[str]) -> tuple[Bytes, dict[str, Bytes]]:
    """Pixels (n, 3072), and labels of each kind."""
    try:
        held = _unpickled(content)
        if not isinstance(held, dict) or not {"data", *kinds} <= held.keys():
            keys = ", ".join(map(repr, held)) if isinstance(held, dict) else type(held).__name__
            raise ValueError(f"it must hold a dict with 'data' and {', '.join(map(repr, kinds))}, got {keys:.200}")
        pixels = _array_of(held["data"])
        if pixels.ndim != 2 or pixels.shape[1] != _PIXELS or not len(pixels):
            raise ValueError(f"'data' must have shape (n, {_PIXELS}), got {pixels.shape}")
        by_kind = {}
        for kind in kinds:
            labels = held[kind]
            if not isinstance(labels, list) or len(labels) != len(pixels):
                got = f"{len(labels)}" if isinstance(labels, list) else type(labels).__name__
                raise ValueError(f"{kind!r} must be a list of {len(pixels)} labels, got {got}")
            for i, label in enumerate(labels):
                if type(label) is not int or not 0 <= label < 256:
                    got = str(label) if type(label) is int else type(label).__name__
                    raise ValueError(f"{kind!r} must hold integers in [0, 256), got {got} at {i}")
            by_kind[kind] = np.array(labels, np.uint8)
    except ValueError as error:
        raise ValueError(f"{name!r} is not an archive of CIFAR's Python version: {error}") from error
    return pixels, by_kind


class _Call(list[Any]):
    """What is to be made by a call: [the callable's name, its arguments, the state set afterwards]."""


class _Mark:
    """Where a list of arguments begins on the stack."""


#: The callables whose calls are kept as they are written, and none of which is called.
_NAMES = {
    **{f"{module} _reconstruct": "array" for module in ("numpy.core.multiarray", "numpy._core.multiarray")},
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
}
_PUSHED = (
    *("BININT", "BININT1", "BININT2", "LONG1", "SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINBYTES8", "BINUNICODE8"),
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def _unpickled(content: bytes) -> Any:
    """What a pickle holds: numbers, text, lists, tuples, dicts, and `_Call` for what is to be made by NumPy.

    A machine for the few opcodes that the archives need. Nothing is imported or called; byte strings are text in
    Latin-1, as Python 2 wrote them.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def marked() -> list[Any]:
        """The values above the last mark, which are taken off the stack with it."""
        start = max(i for i, value in enumerate(stack) if value is _Mark)
        values = stack[start + 1 :]
        del stack[start:]
        return values

    at = 0
    try:
        for opcode, argument, position in pickletools.genops(content):
            name, at = opcode.name, position or 0
            if name in _PUSHED:
                stack.append(argument.decode("latin-1") if isinstance(argument, bytes) else argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "MARK"):
                stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": (), "MARK": _Mark}[name])
            elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if argument is None else argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[int(str(argument))])
            elif name in ("APPEND", "APPENDS"):
                values = [stack.pop()] if name == "APPEND" else marked()
                _of_type(list, stack[-1]).extend(values)
            elif name in ("SETITEM", "SETITEMS"):
                values = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else marked()
                keys = [_of_type(str, key) for key in values[::2]]
                _of_type(dict, stack[-1]).update(zip(keys, values[1::2], strict=True))
            elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
                count = 0 if name == "TUPLE" else int(name[-1])
                stack.append(tuple([stack.pop() for _ in range(count)][::-1]) if count else tuple(marked()))
            elif name in ("GLOBAL", "STACK_GLOBAL"):
                named = str(argument) if name == "GLOBAL" else " ".join([stack.pop(), stack.pop()][::-1])
                if named not in _NAMES:
                    raise ValueError(f"it asks for {named.replace(' ', '.')!r:.80}, which no such archive does")
                stack.append(_Call([_NAMES[named], None, None]))
            elif name == "REDUCE":
                arguments, function = _of_type(tuple, stack.pop()), _of_type(_Call, stack.pop())
                is_text = function[0] == "encode" and len(arguments) == 2 and arguments[1] == "latin1"
                stack.append(_of_type(str, arguments[0]) if is_text else _Call([function[0], arguments, None]))
            elif name == "BUILD":
                state = stack.pop()
                _of_type(_Call, stack[-1])[2] = state
            elif name == "STOP":
                (held,) = stack
                if position != len(content) - 1:
                    raise ValueError(f"{len(content) - 1 - (position or 0)} bytes follow its end")
                return held
            elif name not in ("PROTO", "FRAME"):
                raise ValueError(f"it has the opcode {name}, which no such archive has")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the pickle is wrong at byte {at} of {len(content)}: {error}") from error
    raise ValueError(f"the pickle ends at byte {at} of {len(content)} without a STOP")


def _of_type(kind: type[_T], value: Any) -> _T:
    if not isinstance(value, kind):
        raise ValueError(f"there must be a {kind.__name__.strip('_').lower()}, got {type(value).__name__}")
    return value


def _array_of(call: Any) -> Bytes:
    """The array of bytes that NumPy wrote to a pickle: (version, shape, type, Fortran order, bytes)."""
    try:
        kind, _, (_, shape, (dtype, (code, *_), _), fortran, raw) = _of_type(_Call, call)
        if (kind, dtype) != ("array", "dtype") or code not in ("u1", "|u1"):
            raise ValueError("it is of another type")
        sizes = tuple(checks.integer("length", length, 0) for length in shape)
        if math.prod(sizes) != len(raw):
            raise ValueError(f"shape {sizes} needs {math.prod(sizes)} bytes, got {len(raw)}")
        array = np.frombuffer(raw.encode("latin-1"), np.uint8)
        return array.reshape(sizes[::-1]).T if fortran is True else array.reshape(sizes)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"'data' must be an array of bytes: {error}") from error


# ---- npz ----------------------------------------------------------------------------------------------------

#: Of the header of a member, in bytes.
_LONGEST_HEADER = 10_000


def read_npz(path: PathLike) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file, compressed or not, by name. Objects, which need pickle, are refused.

    Parameters
    ----------
    path : path
        Of a file that `numpy.savez` or `numpy.savez_compressed` wrote.

    Returns
    -------
    dict
        An array for each name, in the order of the file.

    Raises
    ------
    ValueError
        Where the file is not of that format, or is damaged: each entry is compared with its checksum.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import data
    >>> np.savez("data.npz", x=np.zeros((3, 2)), y=np.arange(3))
    >>> {name: array.shape for name, array in data.read_npz("data.npz").items()}
    {'x': (3, 2), 'y': (3,)}
    """
    name = os.fspath(path)
    with open(name, "rb") as file:
        try:
            with zipfile.ZipFile(file) as members:
                infos = members.infolist()
                names = [info.filename.removesuffix(".npy") for info in infos]
                if len({*names}) < len(names):
                    raise ValueError("two entries have one name")
                return {each: _npy(members, info) for each, info in zip(names, infos, strict=True)}
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, OSError, RuntimeError) as error:
            # Among them are an offset before the beginning of the file, and a compression that zipfile does not know.
            raise ValueError(f"{name!r} is not an npz file as NumPy writes them: {error}") from error


def _npy(members: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    """One entry; its size is compared with what its header says before memory is taken for it."""
    where = f"entry {info.filename!r}"
    if info.file_size > info.compress_size * _DEFLATED + 64:
        raise ValueError(f"{where} cannot have {info.file_size} bytes in {info.compress_size} packed ones")
    with members.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{where} is of version {version} of NumPy's format")
        read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        shape, fortran, dtype = read_header(file, max_header_size=_LONGEST_HEADER)
        if dtype.hasobject:
            raise ValueError(f"{where} holds objects, which need pickle")
        wanted, given = math.prod(shape) * dtype.itemsize, info.file_size - file.tell()
        if wanted != given or any(length < 0 for length in shape):
            raise ValueError(f"{where} of shape {shape} and type {dtype} needs {wanted} bytes, got {given}")
        raw = file.read(wanted) + file.read(1)  # the end is where the checksum is compared
        if len(raw) != wanted:
            raise ValueError(f"{where} ends after {len(raw)} of {wanted} bytes")
    array = np.frombuffer(raw, dtype) if wanted else np.empty(0, dtype)
    array = array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
    return array.astype(dtype.newbyteorder("="))


# ---- CSV ----------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """A table of numbers, as `read_csv` returns it.

    Attributes
    ----------
    x : ndarray (n, d), float64
    y : ndarray (n,) or None
        The targets: float64, or int64 where they are integers or text; None where there is no target column.
    names : tuple of str
        Of the columns of `x`; empty where the file has no header.
    classes : tuple of str
        The texts that the labels in `y` stand for, sorted; empty where the targets are numbers.

    Examples
    --------
    >>> from pathlib import Path
    >>> from fastopt import data
    >>> _ = Path("table.csv").write_text("width,height,area\\n2,3,6\\n4,5,20\\n")
    >>> table = data.read_csv("table.csv", target="area")
    >>> table.names, table.x.shape, table.y.tolist(), table.classes
    (('width', 'height'), (2, 2), [6, 20], ())
    """

    x: NDArray[np.float64]
    y: NDArray[Any] | None
    names: tuple[str, ...]
    classes: tuple[str, ...]


def read_csv(
    path: PathLike,
    target: int | str | None = None,
    *,
    delimiter: str = ",",
    header: bool | None = None,
    missing: float | None = None,
) -> Table:
    """A table of numbers in a CSV file (UTF-8, gzipped or not), one sample per line.

    Parameters
    ----------
    path : path
    target : int or str, optional
        The column of the targets, by number (-1 is the last one) or by its name in the header. Its text becomes labels.
    delimiter : str, default ","
        One character.
    header : bool, optional
        Whether the first line has the names of the columns. By default, it does where none of its fields is a number.
    missing : float, optional
        What stands for an empty field, ``nan`` say; by default they are refused.

    Returns
    -------
    Table
        x, y, names, classes.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, a field is not a number, or a line is longer or shorter than the first one.

    Examples
    --------
    >>> from pathlib import Path
    >>> from fastopt import data
    >>> _ = Path("flowers.csv").write_text("length,width,kind\\n5.1,3.5,setosa\\n6.2,2.9,virginica\\n")
    >>> x, y, names, classes = data.read_csv("flowers.csv", target="kind")
    >>> x.tolist(), y.tolist(), names, classes
    ([[5.1, 3.5], [6.2, 2.9]], [0, 1], ('length', 'width'), ('setosa', 'virginica'))
    """
    name = os.fspath(path)
    if not (isinstance(delimiter, str) and len(delimiter) == 1 and delimiter not in '\r\n"'):
        raise ValueError(f"delimiter must be one character, got {delimiter!r}")
    if header is not None:
        header = checks.flag("header", header)
    if missing is not None:
        missing = checks.real("missing", missing)
    if target is not None and not isinstance(target, str):
        target = checks.integer("target", target, -(2**31), 2**31)
    try:
        with _text(name) as file:
            lines = list(_lines(name, file, delimiter))
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error, csv.Error) as error:
        raise ValueError(f"{name!r} is not a CSV file: {error}") from error
    if header is None:
        header = bool(lines) and all(_number(field) is None for field in lines[0][1])
    titles = [field.strip() for field in lines.pop(0)[1]] if header and lines else []
    if not lines:
        raise ValueError(f"{name!r} must hold a line of numbers or more, got none")
    width = len(titles or lines[0][1])
    for number, fields in lines:
        if len(fields) != width:
            raise ValueError(f"{name!r} must hold {width} fields in each line, got {len(fields)} in line {number}")
    place = _column(name, target, titles, width)
    features = [column for column in range(width) if column != place]
    x = np.empty((len(lines), len(features)))
    for row, (number, fields) in enumerate(lines):
        for i, column in enumerate(features):
            field = fields[column].strip()
            value = missing if not field else _number(field)
            if value is None:
                hint = "" if field else "; missing=nan, say, takes empty fields"
                raise ValueError(
                    f"{name!r} must hold numbers, got {field!r:.40} in line {number}, column {column}{hint}"
                )
            x[row, i] = value
    y: NDArray[Any] | None = None
    classes: tuple[str, ...] = ()
    if place is not None:
        y, classes = _targets(name, [(number, fields[place].strip()) for number, fields in lines], place)
    return Table(x, y, tuple(titles[column] for column in features) if titles else (), classes)


def _text(name: Any) -> IO[str]:
    """A file that is being unpacked where it is packed, as text."""
    file = open(name, "rb")  # noqa: SIM115, closed by what is returned
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if packed:
        file.close()
        return gzip.open(name, "rt", encoding="utf-8-sig", newline="")
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="")


def _lines(name: Any, file: IO[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not empty, with their numbers, counted from 1."""
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    for fields in reader:
        if fields and any(field.strip() for field in fields):
            yield reader.line_num, fields


def _number(field: str) -> float | None:
    """A number; Python's own underscores are none."""
    try:
        return float(field) if "_" not in field else None
    except ValueError:
        return None


def _column(name: Any, target: int | str | None, titles: list[str], width: int) -> int | None:
    if target is None:
        return None
    if isinstance(target, str):
        if titles.count(target) != 1:
            have = f"columns {', '.join(titles)}" if titles else "no header"
            raise ValueError(f"target must name a column of {name!r}, got {target!r}; it has {have:.200}")
        return titles.index(target)
    if not -width <= target < width:
        raise ValueError(f"target must be in [{-width}, {width}), got {target}")
    return target % width


def _targets(name: Any, fields: list[tuple[int, str]], column: int) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Numbers, or labels of the sorted texts."""
    for number, field in fields:
        if not field:
            raise ValueError(f"{name!r} must hold a target in each line, got none in line {number}, column {column}")
    numbers = [_number(field) for _, field in fields]
    if any(value is None for value in numbers):
        texts = sorted({field for _, field in fields})
        place = {text: i for i, text in enumerate(texts)}
        return np.array([place[field] for _, field in fields], np.int64), tuple(texts)
    values = np.array(numbers, np.float64)
    whole = all(field.lstrip("+-").isdecimal() for _, field in fields) and (np.abs(values) < 2**53).all()
    return values.astype(np.int64) if whole else values, ()


# ---- Folders of images --------------------------------------------------------------------------------------

#: Endings of files that Pillow reads as images.
ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageFolder:
    """Images in a folder with a folder for each class, read when they are asked for. Needs the extra ``images``.

    A source for `Loader`; `split` takes it in the place of x.

    Parameters
    ----------
    path : path
        Of the folder. Files without an ending of images, and hidden ones, are passed over.
    size : int or (int, int), optional
        Height and width: each image is scaled to cover them, and what juts out is cut off on both sides alike. By
        default, all images must have the size of the first one.
    mode : "RGB" or "L", default "RGB"
        Three channels, or one of grey values. Transparency is left out.

    Attributes
    ----------
    files : tuple of Path
        Sorted by class, then by name.
    labels : ndarray (n,), int64
    classes : tuple of str
        The names of the folders, sorted: label i is ``classes[i]``.
    shape : (int, int, int)
        Of an image: height, width, channels.

    Raises
    ------
    FileNotFoundError
        Where there is no folder, or no image in it or in one of its folders.
    ImportError
        Where Pillow is missing.
    ValueError
        Where an image is damaged, or of another size, with its path.

    Examples
    --------
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from fastopt import data
    >>> for name in ("cat", "dog"):
    ...     Path("pets", name).mkdir(parents=True)
    ...     Image.new("RGB", (6, 4)).save(f"pets/{name}/1.png")
    >>> folder = data.ImageFolder("pets")
    >>> folder
    ImageFolder('pets', 2 images (4, 6, 3) in 2 classes)
    >>> x, y = folder.read([1, 0])
    >>> x.shape, x.dtype.name, y.tolist()
    ((2, 4, 6, 3), 'uint8', [1, 0])
    >>> len(folder.take([1]))  # a folder of some of them
    1
    """

    def __init__(self, path: PathLike, size: checks.Pair | None = None, mode: str = "RGB") -> None:
        _pillow()
        self.path = Path(path)
        self.mode = checks.choice("mode", mode, ("RGB", "L"))
        wanted = None if size is None else checks.pair("size", size, 1)
        if not self.path.is_dir():
            raise FileNotFoundError(f"path must name a folder, got {str(self.path)!r}")
        folders = sorted(each for each in self.path.iterdir() if each.is_dir() and each.name[0] != ".")
        self.classes = tuple(folder.name for folder in folders)
        files: list[Path] = []
        labels: list[int] = []
        for label, folder in enumerate(folders):
            found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS and file.name[0] != ".")
            if not found:
                raise FileNotFoundError(f"{str(folder)!r} must hold images of a class, got none ({', '.join(ENDINGS)})")
            files += found
            labels += [label] * len(found)
        if not files:
            raise FileNotFoundError(f"{str(self.path)!r} must hold a folder of images for each class, got none")
        self.files, self.labels = tuple(files), np.array(labels, np.int64)
        self._fitted = wanted is not None
        self.shape = (*(wanted or self._image(self.files[0]).shape[:2]), len(self.mode))

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: Any) -> tuple[Bytes, NDArray[np.int64]]:
        """Some images and their labels.

        Parameters
        ----------
        indices : sequence of int (k,)

        Returns
        -------
        x : ndarray (k, h, w, c), uint8
        y : ndarray (k,), int64

        Raises
        ------
        ValueError
            Where an image is damaged, or of another size.
        """
        chosen = _indices(indices, len(self))
        x = np.empty((len(chosen), *self.shape), np.uint8)
        for i, number in enumerate(chosen):
            image = self._image(self.files[number])
            if image.shape != self.shape:
                raise ValueError(
                    f"{str(self.files[number])!r} must have shape {self.shape}, got {image.shape}; size=(height, "
                    "width) scales images to one size"
                )
            x[i] = image
        return x, self.labels[chosen]

    def take(self, indices: Any) -> ImageFolder:
        """The same folder with some of its images.

        Parameters
        ----------
        indices : sequence of int (k,)

        Returns
        -------
        ImageFolder
            All classes stay, so that a label means the same.
        """
        chosen = _indices(indices, len(self))
        part = object.__new__(ImageFolder)
        part.__dict__.update(self.__dict__)
        part.files, part.labels = tuple(self.files[i] for i in chosen), self.labels[chosen]
        return part

    def _image(self, path: Path) -> Bytes:
        pillow = _pillow()
        try:
            with pillow.Image.open(path) as file:
                if file.mode[0] in "IF":  # which Pillow would cut off at 255
                    raise ValueError(f"it has more than 8 bits per channel, mode {file.mode}")
                image = pillow.ImageOps.exif_transpose(file).convert(self.mode)
        except Exception as error:  # damaged files raise almost anything
            if isinstance(error, OSError) and error.errno is not None:  # not of the image, but of the file system
                raise
            raise ValueError(f"{str(path)!r} must be an image: {error}") from error
        if self._fitted:
            height, width, _ = self.shape
            image = pillow.ImageOps.fit(image, (width, height), pillow.Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        return pixels if pixels.ndim == 3 else pixels[..., None]

    def __repr__(self) -> str:
        return f"ImageFolder({str(self.path)!r}, {len(self)} images {self.shape} in {len(self.classes)} classes)"


def _indices(indices: Any, n: int) -> NDArray[np.int64]:
    """Indices in [0, n), as int64."""
    chosen = np.asarray(indices)
    if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
        raise TypeError(f"indices must be integers (k,), got {chosen.dtype} {chosen.shape}")
    return checks.labels("indices", chosen.astype(np.int64), len(chosen), n)


def _pillow() -> Any:
    """The package, which is an extra."""
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise ImportError("images need Pillow: pip install 'fastopt[images]'") from error
    return PIL
