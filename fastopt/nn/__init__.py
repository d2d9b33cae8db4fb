"""A NumPy trainer for MLPs and CNNs on the kernels of fastopt.

>>> from fastopt import data, nn
>>> x, y = data.digits()
>>> model = nn.Sequential([nn.Flatten(), nn.Dense(64, activation="relu"), nn.Dense(10)], x.shape[1:])
>>> history = model.fit(x, y, epochs=3)
>>> model.evaluate(x, y)["accuracy"] > 0.9
True
"""

from fastopt.nn import curvature, debug, monitor
from fastopt.nn.activations import ELU, GELU, LeakyReLU, Sigmoid, SiLU, Softmax, Softplus, Tanh
from fastopt.nn.callbacks import (
    CSVLogger,
    EarlyStopping,
    LearningRateScheduler,
    Lines,
    ModelCheckpoint,
    ReduceLROnPlateau,
    TensorBoard,
)
from fastopt.nn.dropouts import SpatialDropout, VanillaDropout
from fastopt.nn.embedding import Embedding
from fastopt.nn.init import Constant, He, Initializer, Normal, Orthogonal, Sparse, Xavier
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
from fastopt.nn.lr_range import LRRange, lr_find
from fastopt.nn.lsuv import lsuv
from fastopt.nn.memory import FRESH, Workspace
from fastopt.nn.model import Sequential, load
from fastopt.nn.norms import BatchNorm, DecorrelatedBatchNorm, GroupNorm, InstanceNorm, LayerNorm, WeightNorm
from fastopt.nn.playback import Passes
from fastopt.nn.pooling import AveragePool2D, GlobalAveragePool2D
from fastopt.nn.residual import Residual
from fastopt.nn.training import Callback, History, Run, batches

__all__ = [
    "ELU",
    "FRESH",
    "GELU",
    "L1",
    "AveragePool2D",
    "BatchNorm",
    "CSVLogger",
    "Callback",
    "Composite",
    "Constant",
    "Conv2D",
    "DecorrelatedBatchNorm",
    "Dense",
    "Dropout",
    "EarlyStopping",
    "Embedding",
    "Flatten",
    "GlobalAveragePool2D",
    "GroupNorm",
    "He",
    "Hinge",
    "History",
    "Huber",
    "Initializer",
    "InstanceNorm",
    "LRRange",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "LearningRateScheduler",
    "Lines",
    "Loss",
    "MaxPool2D",
    "ModelCheckpoint",
    "Normal",
    "Orthogonal",
    "Passes",
    "ReLU",
    "ReduceLROnPlateau",
    "Residual",
    "Run",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SigmoidCrossEntropy",
    "Softmax",
    "SoftmaxCrossEntropy",
    "Softplus",
    "Sparse",
    "SpatialDropout",
    "SquaredError",
    "Tanh",
    "TensorBoard",
    "VanillaDropout",
    "WeightNorm",
    "Workspace",
    "Xavier",
    "batches",
    "curvature",
    "debug",
    "load",
    "lr_find",
    "lsuv",
    "monitor",
    "softmax_cross_entropy",
]
