"""Datasets: one that comes with the package, and readers for files that you have."""

from fastopt.data.datasets import digits, load, read_cifar10, read_idx, stratified_split

__all__ = ["digits", "load", "read_cifar10", "read_idx", "stratified_split"]
