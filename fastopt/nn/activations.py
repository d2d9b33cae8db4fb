"""Activations other than ReLU, by `fastopt.functional.activation_forward`; and softmax."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from fastopt import checks
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.nn.layers import Grads, Layer, Shape

__all__ = ["ELU", "GELU", "LeakyReLU", "PReLU", "SiLU", "Sigmoid", "Softmax", "Softplus", "Tanh"]


class _Activation(Layer):
    """One kind of `fastopt.functional.activation_forward`."""

    kind: F.Activation
    #: Whether backward takes y, instead of x.
    from_output = False

    def alpha_of_kind(self) -> float | None:
        return None

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        y = F.activation_forward(x, self.kind, alpha=self.alpha_of_kind())
        return y, y if self.from_output else x

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        return F.activation_backward(dy, cache, self.kind, alpha=self.alpha_of_kind()), {}


class LeakyReLU(_Activation):
    """``y = x``, and ``slope·x`` where x < 0.

    Parameters
    ----------
    slope : float, default 0.01
        In [0, inf).

    Raises
    ------
    TypeError, ValueError
        Where `slope` breaks its rule.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> nn.LeakyReLU(0.25).forward(np.array([-2.0, 2.0]))[0]
    array([-0.5,  2. ])
    """

    kind, from_output = "leaky_relu", True

    def __init__(self, slope: float = 0.01) -> None:
        super().__init__()
        self.slope = checks.number("slope", slope, "[0, inf)")

    def alpha_of_kind(self) -> float:
        return self.slope


class PReLU(Layer):
    """``y = x``, and ``slope·x`` where x < 0, with a slope that is learnt (He et al. 2015, eq. 1).

    Parameters
    ----------
    initial : float, default 0.25
        The slope to begin with.
    shared : bool, default False
        Whether there is one slope for all channels, as PyTorch has it, or one for each.

    Attributes
    ----------
    params : dict of ndarray
        ``slope`` (c,), or (1,) where it is shared.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule.

    Notes
    -----
    Weight decay pulls the slope to 0, which makes it a ReLU: leave it out of it by a parameter group.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> layer = nn.PReLU()
    >>> layer.build((2,), np.random.default_rng(0), np.float64)
    (2,)
    >>> layer.forward(np.array([[-2.0, 2.0]]))[0]
    array([[-0.5,  2. ]])
    """

    def __init__(self, initial: float = 0.25, shared: bool = False) -> None:
        super().__init__()
        self.initial = checks.number("initial", initial)
        self.shared = checks.flag("shared", shared)

    def _build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
        self.params["slope"] = np.full(1 if self.shared else input_shape[-1], self.initial, dtype)

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        return F.prelu_forward(x, self._slopes(x)), x

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        dx, terms = F.prelu_backward(dy, cache, self._slopes(cache))
        dslope = F.bias_backward(terms)
        if self.shared:
            dslope = F.bias_backward(dslope.reshape(-1, 1))
        return dx, {"slope": dslope}

    def _slopes(self, x: Array) -> Array:
        """The slope of each channel."""
        slope = self.params["slope"]
        return np.repeat(slope, x.shape[-1]) if self.shared else slope


class ELU(_Activation):
    """``y = x``, and ``alpha·(eˣ − 1)`` where x < 0 (Clevert et al. 2016).

    Parameters
    ----------
    alpha : float, default 1.0
        In [0, inf).

    Raises
    ------
    TypeError, ValueError
        Where `alpha` breaks its rule.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> nn.ELU().forward(np.array([-1.0, 2.0]))[0].round(4)
    array([-0.6321,  2.    ])
    """

    kind, from_output = "elu", True

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = checks.number("alpha", alpha, "[0, inf)")

    def alpha_of_kind(self) -> float:
        return self.alpha


class GELU(_Activation):
    """``y = x·Φ(x)``, Φ being the normal distribution (Hendrycks & Gimpel 2016).

    Parameters
    ----------
    approximation : "tanh" or None, default None
        ``"tanh"``: ``x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))``, in half the time.

    Raises
    ------
    ValueError
        Where `approximation` is another value.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> x = np.array([-1.0, 2.0])
    >>> nn.GELU().forward(x)[0].round(4), nn.GELU("tanh").forward(x)[0].round(4)
    (array([-0.1587,  1.9545]), array([-0.1588,  1.9546]))
    """

    def __init__(self, approximation: Literal["tanh"] | None = None) -> None:
        super().__init__()
        if approximation is not None:
            checks.choice("approximation", approximation, ("tanh",))
        self.approximation = approximation
        self.kind = "gelu_tanh" if approximation else "gelu"


class SiLU(_Activation):
    """``y = x / (1 + e⁻ˣ)``, also called swish (Hendrycks & Gimpel 2016).

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> nn.SiLU().forward(np.array([-1.0, 2.0]))[0].round(4)
    array([-0.2689,  1.7616])
    """

    kind = "silu"


class Tanh(_Activation):
    """``y = tanh(x)``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> nn.Tanh().forward(np.array([-1.0, 2.0]))[0].round(4)
    array([-0.7616,  0.964 ])
    """

    kind, from_output = "tanh", True


class Sigmoid(_Activation):
    """``y = 1 / (1 + e⁻ˣ)``. Before a cross-entropy, leave it to `fastopt.nn.SigmoidCrossEntropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> nn.Sigmoid().forward(np.array([-1.0, 2.0]))[0].round(4)
    array([0.2689, 0.8808])
    """

    kind, from_output = "sigmoid", True


class Softplus(_Activation):
    """``y = log(1 + eˣ)``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> nn.Softplus().forward(np.array([-1.0, 2.0]))[0].round(4)
    array([0.3133, 2.1269])
    """

    kind = "softplus"


class Softmax(Layer):
    """``y = exp(x) / Σ exp(x)`` over the last axis. Before a cross-entropy, leave it to the loss.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import nn
    >>> nn.Softmax().forward(np.array([[1.0, 1.0, 0.0]]))[0].round(4)
    array([[0.4223, 0.4223, 0.1554]])
    """

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        y = F.softmax_forward(x)
        return y, y

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        return F.softmax_backward(dy, cache), {}
