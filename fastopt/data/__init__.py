"""Data sets: one that comes with the package, and readers for the files of others.

>>> from fastopt import data
>>> x, y = data.digits()
>>> x.shape, x.dtype.name, y[:5].tolist()
((1797, 8, 8, 1), 'float32', [0, 1, 2, 3, 4])
"""

from fastopt.data.datasets import digits, load, read_cifar10, read_idx, split, stratified_split

__all__ = ["digits", "load", "read_cifar10", "read_idx", "split", "stratified_split"]
