"""Data sets, readers of files, splitting, loading batches ahead, and `augment`.

>>> from fastopt import data
>>> x, y = data.digits()
>>> x.shape, x.dtype.name, y[:5].tolist()
((1797, 8, 8, 1), 'float32', [0, 1, 2, 3, 4])
"""

from fastopt.data import augment
from fastopt.data.datasets import digits, load
from fastopt.data.loader import Epoch, Loader, Source, rng_of
from fastopt.data.readers import (
    ImageFolder,
    Table,
    read_cifar10,
    read_cifar100,
    read_cifar_archive,
    read_csv,
    read_idx,
    read_npz,
)
from fastopt.data.splits import split

__all__ = [
    "Epoch",
    "ImageFolder",
    "Loader",
    "Source",
    "Table",
    "augment",
    "digits",
    "load",
    "read_cifar10",
    "read_cifar100",
    "read_cifar_archive",
    "read_csv",
    "read_idx",
    "read_npz",
    "rng_of",
    "split",
]
