"""A NumPy trainer for MLPs and CNNs on the kernels of fastopt.

>>> from fastopt import data, nn
>>> x, y = data.digits()
>>> model = nn.Sequential([nn.Flatten(), nn.Dense(64, activation="relu"), nn.Dense(10)], x.shape[1:])
>>> history = model.fit(x, y, epochs=3)
>>> model.evaluate(x, y)["accuracy"] > 0.9
True
"""

from fastopt.nn import (
    activations,
    callbacks,
    convolutions,
    curvature,
    debug,
    dropouts,
    embedding,
    exchange,
    init,
    keras,
    layers,
    losses,
    lr_range,
    many,
    metrics,
    model,
    monitor,
    norms,
    orders,
    pooling,
    preprocessing,
    residual,
    shapes,
    snapshots,
    trace,
    training,
    transfer,
)
from fastopt.nn.activations import *
from fastopt.nn.callbacks import *
from fastopt.nn.convolutions import *
from fastopt.nn.dropouts import *
from fastopt.nn.embedding import *
from fastopt.nn.exchange import *
from fastopt.nn.init import *
from fastopt.nn.keras import *
from fastopt.nn.layers import *
from fastopt.nn.losses import *
from fastopt.nn.lr_range import *
from fastopt.nn.lsuv import lsuv
from fastopt.nn.many import *
from fastopt.nn.model import *
from fastopt.nn.norms import *
from fastopt.nn.orders import *
from fastopt.nn.pooling import *
from fastopt.nn.preprocessing import *
from fastopt.nn.program import Program
from fastopt.nn.residual import *
from fastopt.nn.shapes import *
from fastopt.nn.snapshots import *
from fastopt.nn.trace import *
from fastopt.nn.training import *
from fastopt.nn.transfer import *

__all__ = [
    *activations.__all__,
    *orders.__all__,
    *callbacks.__all__,
    *convolutions.__all__,
    *dropouts.__all__,
    *embedding.__all__,
    *exchange.__all__,
    *init.__all__,
    *keras.__all__,
    *layers.__all__,
    *losses.__all__,
    *lr_range.__all__,
    *many.__all__,
    *model.__all__,
    *norms.__all__,
    *pooling.__all__,
    *preprocessing.__all__,
    *residual.__all__,
    *shapes.__all__,
    *snapshots.__all__,
    *trace.__all__,
    *training.__all__,
    *transfer.__all__,
    "Program",
    "curvature",
    "debug",
    "lsuv",
    "metrics",
    "monitor",
]
