"""The kernels as plain functions on arrays that you own.

**Optimizer steps** update a parameter and its state in place. There is one per class of `fastopt.optimizers`, with
the class's name in lower case, its keywords and its defaults::

    adam(param, grad, m, v, *, t, lr=0.001, beta1=0.9, beta2=0.999, …, grad_scale=1.0)

State arrays begin at zero (but for those of which the docstring says otherwise), and `t` counts steps from 1.
`help(fastopt.functional.adam)` shows the whole. Adafactor's and Muon's steps are in `fastopt.matrices`.

Every function checks all of its arguments before it writes anything, and raises TypeError or ValueError with the
argument's name, the rule, and the value.

**Layer kernels** return new arrays, or fill the `out` that they are given. All arrays are float32 or float64, of one
type per call, and C-contiguous. Images are channels-last, (n, h, w, c); with ``layout="nchw"``, functions of images
take and return (n, c, h, w), by copies.

>>> import numpy as np
>>> import fastopt.functional as F
>>> w, m, v = np.ones(3), np.zeros(3), np.zeros(3)
>>> F.adam(w, np.full(3, 0.5), m, v, t=1, lr=0.1)  # in place
>>> w.round(6), m.round(6)
(array([0.9, 0.9, 0.9]), array([0.05, 0.05, 0.05]))
>>> F.relu_forward(np.array([-1.0, 2.0]))
array([0., 2.])
"""

from typing import TYPE_CHECKING

from fastopt.checks import Pair as Pair
from fastopt.functional import activations, arithmetic, dense, dropouts, embeddings, images, losses, norms, steps
from fastopt.functional.activations import *
from fastopt.functional.activations import Activation as Activation
from fastopt.functional.arithmetic import *
from fastopt.functional.dense import *
from fastopt.functional.dropouts import *
from fastopt.functional.dropouts import PIs as PIs
from fastopt.functional.embeddings import *
from fastopt.functional.images import *
from fastopt.functional.layouts import Layout as Layout
from fastopt.functional.losses import *
from fastopt.functional.losses import ElementLoss as ElementLoss
from fastopt.functional.norms import *
from fastopt.functional.steps import *

if TYPE_CHECKING:
    from fastopt.functional.steps import Step

    def __getattr__(name: str) -> Step: ...


__all__ = [
    *activations.__all__,
    *arithmetic.__all__,
    *dense.__all__,
    *dropouts.__all__,
    *embeddings.__all__,
    *images.__all__,
    *losses.__all__,
    *norms.__all__,
    *steps.__all__,
]
