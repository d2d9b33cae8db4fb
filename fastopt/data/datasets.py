"""Readers of data sets. Images are float32 (n, h, w, c) in [0, 1], labels int64 (n,)."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import checks

Images = NDArray[np.float32]
Labels = NDArray[np.int64]


def digits() -> tuple[Images, Labels]:
    """The UCI handwritten digits that come with the package.

    Returns
    -------
    x : ndarray (1797, 8, 8, 1), float32
        Each pixel is the share of set points in a 4×4 block of the scanned digit.
    y : ndarray (1797,), int64
        The digits 0 … 9.

    References
    ----------
    .. [1] E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
       1998, doi 10.24432/C50P49, licence CC BY 4.0: the part named ``optdigits.tes``.
    """
    with resources.files("fastopt.data").joinpath("digits.npz").open("rb") as file, np.load(file) as arrays:
        return _images(arrays["images"][..., None], 16), arrays["labels"].astype(np.int64)


def _images(pixels: NDArray[np.uint8], white: int) -> Images:
    return np.ascontiguousarray(pixels, np.float32) / np.float32(white)


def read_idx(path: str | os.PathLike[str]) -> NDArray[Any]:
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


#: How many bytes may come of one that deflate has packed.
_DEFLATED = 1032


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


def read_cifar10(path: str | os.PathLike[str]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images and labels in one file of CIFAR-10's binary version.

    Parameters
    ----------
    path : path
        Of a file such as ``data_batch_1.bin``.

    Returns
    -------
    images : ndarray (n, 32, 32, 3), uint8
    labels : ndarray (n,), uint8

    Raises
    ------
    ValueError
        Where the file is not a whole number of records of 3073 bytes, or a label is above 9.
    """
    size = os.path.getsize(os.fspath(path))
    if size == 0 or size % 3073:
        raise ValueError(f"{os.fspath(path)!r} must hold records of 3073 bytes, got {size} bytes")
    records = np.fromfile(path, np.uint8).reshape(-1, 3073)
    if records[:, 0].max() > 9:
        raise ValueError(f"{os.fspath(path)!r} must hold labels in [0, 10), got {records[:, 0].max()}")
    return np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), records[:, 0].copy()


def load(source: str | os.PathLike[str]) -> tuple[Images, Labels, Images, Labels]:
    """Training and test data, by name or from a folder of files.

    Parameters
    ----------
    source : "digits" or path of a folder
        ``"digits"`` are `digits`, of which a fixed quarter of each class are test data. The folder has MNIST's four IDX
        files (``train-images-idx3-ubyte`` …, gzipped or not), or CIFAR-10's six binary files (``data_batch_1.bin`` …).

    Returns
    -------
    x_train, y_train, x_test, y_test : ndarray
        Images (n, h, w, c) and labels (n,).

    Raises
    ------
    FileNotFoundError
        Where the folder has neither, or lacks a file.
    ValueError
        Where a file is not of its format.

    Examples
    --------
    >>> from fastopt import data
    >>> [array.shape for array in data.load("digits")]
    [(1347, 8, 8, 1), (1347,), (450, 8, 8, 1), (450,)]
    """
    if source == "digits":
        x, y = digits()
        train, test = stratified_split(y, 0.25, seed=0)
        return x[train], y[train], x[test], y[test]
    folder = Path(source)
    parts: list[tuple[NDArray[Any], NDArray[Any]]]
    if any(folder.glob("train-images*idx3-ubyte*")):
        parts = [_idx_pair(folder, "train"), _idx_pair(folder, "t10k")]
    elif any(folder.glob("data_batch_*.bin")):
        batches = [read_cifar10(file) for file in sorted(folder.glob("data_batch_*.bin"))]
        images, labels = zip(*batches, strict=True)
        parts = [(np.concatenate(images), np.concatenate(labels)), read_cifar10(folder / "test_batch.bin")]
    else:
        raise FileNotFoundError(
            f"data must be 'digits' or a folder with MNIST's IDX files or CIFAR-10's binary files, got {str(source)!r}"
        )
    (x_train, y_train), (x_test, y_test) = parts
    return _images(x_train, 255), y_train.astype(np.int64), _images(x_test, 255), y_test.astype(np.int64)


def _idx_pair(folder: Path, part: str) -> tuple[NDArray[Any], NDArray[Any]]:
    arrays = []
    for pattern in (f"{part}-images*idx3-ubyte*", f"{part}-labels*idx1-ubyte*"):
        found = sorted(folder.glob(pattern))
        if not found:
            raise FileNotFoundError(f"no file {pattern} in {str(folder)!r}")
        arrays.append(read_idx(found[0]))
    images, labels = arrays
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(f"{part} must hold images (n, h, w) and labels (n,), got {images.shape} and {labels.shape}")
    return images[..., None], labels


def split(n: int, fraction: float, *, seed: int) -> tuple[Labels, Labels]:
    """Indices of two parts of samples, the second with `fraction` of them (rounded), at random.

    Parameters
    ----------
    n : int
        The number of samples.
    fraction : float
        In [0, 1].
    seed : int

    Returns
    -------
    first, second : ndarray of int
        Each sorted.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> from fastopt import data
    >>> [len(part) for part in data.split(10, 0.3, seed=0)]
    [7, 3]
    """
    n, fraction = checks.integer("n", n, 0), checks.number("fraction", fraction, "[0, 1]")
    order = np.random.default_rng(checks.integer("seed", seed, 0)).permutation(n)
    second = round(fraction * n)
    return np.sort(order[second:]), np.sort(order[:second])


def stratified_split(y: Labels, fraction: float, *, seed: int) -> tuple[Labels, Labels]:
    """Indices of two parts, the second with `fraction` of each class (rounded).

    Parameters
    ----------
    y : integer ndarray (n,)
        Labels, at least two of each class. For targets that are real numbers, see `split`.
    fraction : float
        In [0, 1].
    seed : int

    Returns
    -------
    first, second : ndarray of int
        Each sorted.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import data
    >>> y = np.array([0, 0, 0, 0, 1, 1])
    >>> first, second = data.stratified_split(y, 0.5, seed=0)
    >>> y[second].tolist()
    [0, 0, 1]
    """
    fraction = checks.number("fraction", fraction, "[0, 1]")
    y = np.asarray(y)
    if y.ndim != 1:
        raise ValueError(f"y must have one dimension, got shape {y.shape}")
    rng = np.random.default_rng(checks.integer("seed", seed, 0))
    y = np.asarray(y)
    if y.size and y.dtype.kind not in "iubUS":
        raise TypeError(
            f"y must be integer labels, got {y.dtype}; for targets that are no classes, use data.split(len(y), …)"
        )
    if y.ndim != 1:
        raise ValueError(f"y must have shape (n,), got {y.shape}")
    second = np.zeros(len(y), bool)
    labels, counts = np.unique(y, return_counts=True)
    if len(y) and counts.min() < 2:
        raise ValueError(
            f"y must have two members of each class or more, but has one of {labels[counts.argmin()]} alone; for "
            "targets that are no classes, use data.split(len(y), …)"
        )
    for label in labels:
        members = np.flatnonzero(y == label)
        second[rng.permutation(members)[: round(fraction * len(members))]] = True
    return np.flatnonzero(~second), np.flatnonzero(second)
