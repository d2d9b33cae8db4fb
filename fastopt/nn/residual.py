"""Residual blocks."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from fastopt import checks
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.nn.layers import Composite, Grads, Layer, Shape

__all__ = ["Residual"]


class Residual(Composite):
    """A residual block: ``y = relu(body(x) + shortcut(x))`` (He et al. 2015, eq. 1 and 2).

    Parameters
    ----------
    body : Layer
        Usually a `Sequential`.
    shortcut : Layer, optional
        A projection to the shape of the body's output, such as a convolution of size 1. Where absent, x itself, whose
        shape the body then must keep.
    activation : "relu" or None, default "relu"
        None leaves the sum as it is (He et al. 2016, with the activations in the body).

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or, when the layer is built, the outputs of both differ in shape.

    Examples
    --------
    >>> from fastopt import nn
    >>> body = nn.Sequential([nn.Conv2D(8, stride=2), nn.BatchNorm(), nn.ReLU(), nn.Conv2D(8), nn.BatchNorm()])
    >>> nn.Sequential([nn.Residual(body, shortcut=nn.Conv2D(8, size=1, stride=2))], (16, 16, 3)).shapes[-1]
    (8, 8, 8)
    """

    def __init__(self, body: Layer, shortcut: Layer | None = None, activation: Literal["relu"] | None = "relu") -> None:
        for name, part in (("body", body), ("shortcut", shortcut)):
            if not isinstance(part, Layer) and not (name == "shortcut" and part is None):
                raise TypeError(f"{name} must be a Layer, got {type(part).__name__}")
        super().__init__({"body": body} | ({} if shortcut is None else {"shortcut": shortcut}))
        self.body, self.shortcut = body, shortcut
        self.activation = None if activation is None else checks.word("activation", activation, ("relu",))

    def _build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
        shapes = [part.build(input_shape, rng, dtype) for part in self.parts.values()]
        beside = input_shape if self.shortcut is None else shapes[1]
        if beside != shapes[0]:
            raise ValueError(f"body and shortcut must have outputs of one shape, got {shapes[0]} and {beside}")

    def output_shape(self, input_shape: Shape) -> Shape:
        return self.body.output_shape(input_shape)

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, Any]:
        caches, terms = {}, [x]
        for i, (name, part) in enumerate(self.parts.items()):
            term, caches[name] = part.forward(x, training=training, counter=2 * counter + i)
            terms.append(term)
        y = terms[-2] + terms[-1]
        if self.activation:
            F.relu_forward(y, out=y)
        return y, (caches, y)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        caches, y = cache
        if self.activation:
            dy = F.relu_backward(dy, y)
        grads: Grads = {}
        terms = [dy]
        for name, part in self.parts.items():
            term, own = part.backward(dy, caches[name])
            grads |= {f"{name}.{key}": grad for key, grad in own.items()}
            terms.append(term)
        return terms[-2] + terms[-1], grads
