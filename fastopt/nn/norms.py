"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from fastopt import checks
from fastopt import functional as F  # noqa: N812
from fastopt.checks import Array
from fastopt.nn.layers import Grads, Layer, ReLU, Shape
from fastopt.nn.memory import FRESH, Memory


class BatchNorm(Layer):
    """Batch normalisation over all axes but the last: of (n, d) per feature, of (n, h, w, c) per channel.

    Parameters
    ----------
    eps, momentum, momentum_of, unbiased
        As in `fastopt.functional.batch_norm_forward`. `params`: ``scale`` (c,) from 1 and ``shift`` (c,) from 0;
        `state`: ``running_mean`` from 0 and ``running_var`` from 1.
    """

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float = 0.1,
        momentum_of: Literal["new", "old"] = "new",
        unbiased: bool = True,
    ) -> None:
        super().__init__()
        self.eps = checks.number("eps", eps, "[0, inf)")
        self.momentum = checks.number("momentum", momentum, "[0, 1]")
        checks.choice("momentum_of", momentum_of, ("new", "old"))
        self.momentum_of = momentum_of
        self.unbiased = checks.flag("unbiased", unbiased)

    def _build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
        channels = input_shape[-1]
        self.params.update(scale=np.ones(channels, dtype), shift=np.zeros(channels, dtype))
        self.state.update(running_mean=np.zeros(channels, dtype), running_var=np.ones(channels, dtype))

    def fuses(self, behind: Sequence[Layer]) -> int:
        return int(len(behind) > 0 and type(behind[0]) is ReLU)

    def forward(
        self,
        x: Array,
        *,
        training: bool = False,
        counter: int = 0,
        memory: Memory = FRESH,
        fused: tuple[Layer, ...] = (),
    ) -> tuple[Array, Any]:
        return F.batch_norm_forward(
            x,
            self.params["scale"],
            self.params["shift"],
            self.state["running_mean"],
            self.state["running_var"],
            axis=-1,
            training=training,
            eps=self.eps,
            momentum=self.momentum,
            momentum_of=self.momentum_of,
            unbiased=self.unbiased,
            relu=len(fused) > 0,
            out=memory.array("y", x.shape, x.dtype),
            mean=memory.array("mean", x.shape[-1:], np.float64),
            inv_std=memory.array("inv_std", x.shape[-1:], np.float64),
        )

    def backward(self, dy: Array, cache: Any, *, memory: Memory = FRESH) -> tuple[Array, Grads]:
        if cache is None:
            raise ValueError("BatchNorm.backward needs the cache of forward(…, training=True)")
        dx, dscale, dshift = F.batch_norm_backward(
            dy,
            cache,
            out=memory.array("dx", dy.shape, dy.dtype),
            dscale=memory.grad("scale", self.params["scale"]),
            dshift=memory.grad("shift", self.params["shift"]),
        )
        return dx, {"scale": dscale, "shift": dshift}
