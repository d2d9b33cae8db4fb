from collections.abc import Callable, Sequence
from typing import Any, final

from fastopt.checks import Array, Arrays

__test__: dict[str, str]

STEPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
LAYERS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]]

class Misfit(TypeError): ...

def isas() -> list[str]: ...
def isa() -> str: ...
def use_isa(name: str | None) -> None: ...
def address(array: Array) -> int: ...

@final
class Plan:
    def __new__(
        cls,
        step: str,
        params: Arrays,
        states: Sequence[Sequence[Array]],
        hyper: Sequence[float],
        explain: Callable[[Plan, Any, Any], None] | None = None,
    ) -> Plan: ...
    def step(self, grads: Arrays, *, grad_scale: float = 1.0) -> None: ...
    def get_hyper(self, i: int) -> float: ...
    def set_hyper(self, i: int, value: float) -> None: ...

@final
class Layer:
    def __new__(cls, name: str) -> Layer: ...
    def __call__(
        self, arrays: tuple[Array | None, ...], sizes: tuple[int, ...], scalars: tuple[float, ...] = ()
    ) -> None: ...
