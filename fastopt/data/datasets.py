"""Data sets, by name or from files. Images are float32 (n, h, w, c) in [0, 1], labels int64 (n,)."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt.data.readers import ImageFolder, read_cifar10, read_cifar100, read_cifar_archive, read_idx, read_npz
from fastopt.data.splits import split

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

    Examples
    --------
    >>> from fastopt import data
    >>> x, y = data.digits()
    >>> x.shape, y[:5].tolist(), float(x.min()), float(x.max())
    ((1797, 8, 8, 1), [0, 1, 2, 3, 4], 0.0, 1.0)
    """
    with resources.files("fastopt.data").joinpath("digits.npz").open("rb") as file, np.load(file) as arrays:
        return _images(arrays["images"][..., None], 16), arrays["labels"].astype(np.int64)


def _images(pixels: NDArray[np.uint8], white: int) -> Images:
    return np.ascontiguousarray(pixels, np.float32) / np.float32(white)


def load(source: str | os.PathLike[str]) -> tuple[Images, Labels, Images, Labels]:
    """Training and test data, by name or from files.

    Parameters
    ----------
    source : "digits" or path
        ``"digits"`` are `digits`, of which a fixed quarter of each class are test data. A folder has MNIST's four IDX
        files (``train-images-idx3-ubyte`` …, gzipped or not); the files of CIFAR-10 (``data_batch_1`` …,
        ``test_batch``) or CIFAR-100 (``train``, ``test``), binary (``.bin``) or Python's; or the folders ``train`` and
        ``test``, each as for `ImageFolder`. A file is an ``.npz`` with the entries x_train, y_train, x_test, y_test, or
        an archive as CIFAR is distributed (``cifar-10-python.tar.gz`` …).

    Returns
    -------
    x_train, y_train, x_test, y_test : ndarray
        Images (n, h, w, c), float32 in [0, 1], and labels (n,), int64; the arrays of an ``.npz`` as they are, but bytes
        (n, h, w) or (n, h, w, c), which are images, and integer labels.

    Raises
    ------
    FileNotFoundError
        Where the folder has none of these, or lacks a file.
    ImportError
        Where there are folders of images, and Pillow is missing.
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
        x_train, y_train, x_test, y_test = split(x, y, test=0.25)
        return x_train, y_train, x_test, y_test
    folder = Path(source)
    parts: list[tuple[NDArray[Any], NDArray[Any]]]
    if folder.suffix == ".npz":
        return _of_npz(folder)
    if folder.name.endswith((".tar.gz", ".tgz", ".tar")):
        arrays = read_cifar_archive(folder)
        parts = [arrays[:2], arrays[2:]]
    elif any(folder.glob("train-images*idx3-ubyte*")):
        parts = [_idx_pair(folder, "train"), _idx_pair(folder, "t10k")]
    elif files := sorted(folder.glob("data_batch_*")):
        batches = [read_cifar10(file) for file in files if file.suffix == files[0].suffix]
        images, labels = zip(*batches, strict=True)
        parts = [
            (np.concatenate(images), np.concatenate(labels)),
            read_cifar10(folder / f"test_batch{files[0].suffix}"),
        ]
    elif files := [file for file in (folder / "train.bin", folder / "train") if file.is_file()]:
        parts = [read_cifar100(files[0]), read_cifar100(files[0].with_stem("test"))]
    elif (folder / "train").is_dir():
        parts = _image_folders(folder)
    else:
        raise FileNotFoundError(
            "data must be 'digits', an .npz file, CIFAR's .tar.gz, or a folder with MNIST's or CIFAR's files, or with "
            f"folders train and test of images, got {str(source)!r}"
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


def _image_folders(folder: Path) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    train, test = ImageFolder(folder / "train"), ImageFolder(folder / "test")
    if train.classes != test.classes:
        raise ValueError(
            f"{str(folder)!r} must have the same classes in train and test, got {train.classes} and {test.classes}"
        )
    return [part.read(range(len(part))) for part in (train, test)]


def _of_npz(path: Path) -> tuple[Any, Any, Any, Any]:
    arrays, names = read_npz(path), ("x_train", "y_train", "x_test", "y_test")
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(f"{str(path)!r} must hold {', '.join(names)}, but lacks {missing[0]}; it has {list(arrays)}")
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
            raise ValueError(f"{str(path)!r} must hold one target per sample, got {x.shape} and {y.shape} in {part}")
        if x.dtype == np.uint8 and x.ndim in (3, 4):
            arrays[f"x_{part}"] = _images(x if x.ndim == 4 else x[..., None], 255)
        if y.dtype.kind in "iu":
            y = y[:, 0] if y.shape == (len(y), 1) else y  # as Keras has CIFAR's
            arrays[f"y_{part}"] = y.astype(np.int64)
    x_train, y_train, x_test, y_test = (arrays[name] for name in names)
    return x_train, y_train, x_test, y_test
