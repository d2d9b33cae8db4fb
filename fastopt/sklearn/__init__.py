"""Estimators with scikit-learn's interface (extra ``sklearn``): its MLPs trained by fastopt, and networks of one's own.

>>> from fastopt.sklearn import MLPClassifier  # in place of: from sklearn.neural_network import MLPClassifier
>>> MLPClassifier(dropout=0.2)
MLPClassifier(dropout=0.2)
"""

from __future__ import annotations

from fastopt.sklearn.layers import CNNClassifier, SequentialClassifier
from fastopt.sklearn.mlp import ConvergenceWarning, MLPClassifier, MLPRegressor
from fastopt.sklearn.patches import patch, patched, unpatch
from fastopt.sklearn.search import SearchCV

__all__ = [
    "CNNClassifier",
    "ConvergenceWarning",
    "MLPClassifier",
    "MLPRegressor",
    "SearchCV",
    "SequentialClassifier",
    "patch",
    "patched",
    "unpatch",
]
