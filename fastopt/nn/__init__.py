"""A NumPy trainer for MLPs and CNNs on the kernels of fastopt.

>>> from fastopt import data, nn
>>> x, y = data.digits()
>>> model = nn.Sequential([nn.Flatten(), nn.Dense(64, activation="relu"), nn.Dense(10)], x.shape[1:])
>>> history = model.fit(x, y, epochs=3)
>>> model.evaluate(x, y)["accuracy"] > 0.9
True
"""

from fastopt.nn import monitor
from fastopt.nn.callbacks import (
    Callback,
    CSVLogger,
    EarlyStopping,
    LearningRateScheduler,
    Lines,
    ModelCheckpoint,
    ReduceLROnPlateau,
    TensorBoard,
)
from fastopt.nn.layers import Composite, Conv2D, Dense, Dropout, Flatten, Layer, MaxPool2D, ReLU
from fastopt.nn.losses import (
    L1,
    Hinge,
    Huber,
    Loss,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    SquaredError,
    softmax_cross_entropy,
)
from fastopt.nn.memory import FRESH, Workspace
from fastopt.nn.model import Sequential, load
from fastopt.nn.norms import BatchNorm
from fastopt.nn.training import History, Run, batches

__all__ = [
    "FRESH",
    "L1",
    "BatchNorm",
    "CSVLogger",
    "Callback",
    "Composite",
    "Conv2D",
    "Dense",
    "Dropout",
    "EarlyStopping",
    "Flatten",
    "Hinge",
    "History",
    "Huber",
    "Layer",
    "LearningRateScheduler",
    "Lines",
    "Loss",
    "MaxPool2D",
    "ModelCheckpoint",
    "ReLU",
    "ReduceLROnPlateau",
    "Run",
    "Sequential",
    "SigmoidCrossEntropy",
    "SoftmaxCrossEntropy",
    "SquaredError",
    "TensorBoard",
    "Workspace",
    "batches",
    "load",
    "monitor",
    "softmax_cross_entropy",
]
