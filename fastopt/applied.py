"""Parameters that give way to averages of theirs for a while: what schedule-free optimizers, EMA and SWA share."""

from __future__ import annotations

import contextlib
import hashlib
import operator
from collections.abc import Iterator, Mapping
from typing import Any

from fastopt import _kernels, checks
from fastopt.checks import Array


class Applied:
    """The base of classes whose averages can take the place of the parameters that are trained."""

    #: The values that are trained, while the parameters hold averages.
    _trained: dict[str, Array] | None = None
    #: A digest of the parameters when `note` was called.
    _digest = b""

    def _live(self) -> dict[str, Array]:
        """The parameters by name."""
        raise TypeError("a subclass says what its parameters are")

    def averaged(self) -> dict[str, Array]:
        """The averages by the names of the parameters, as new arrays."""
        raise TypeError("a subclass says what its averages are")

    @property
    def is_ready(self) -> bool:
        """Whether there are averages yet."""
        return True

    @property
    def is_applied(self) -> bool:
        """Whether the parameters hold the averages: within `applied`, and from `apply` to `restore`."""
        return self._trained is not None

    def apply(self) -> None:
        """Let the parameters hold the averages, until `restore`.

        Raises
        ------
        ValueError
            Where they do already.
        """
        self._refuse_if_applied()
        averages, live = self.averaged(), self._live()
        trained = {name: param.copy() for name, param in live.items()}
        _kernels.uninterrupted(self._exchanging(averages, trained))

    def restore(self) -> None:
        """Give the parameters the values back that are trained, to the bit; what was written to them since is lost.

        Raises
        ------
        ValueError
            Where they hold them already.
        """
        if self._trained is None:
            raise ValueError("the parameters must hold averages to be restored: call apply() first")
        _kernels.uninterrupted(self._exchanging(self._trained, None))

    def _exchanging(self, values: Mapping[str, Array], trained: dict[str, Array] | None) -> list[Any]:
        """The calls that copy values to the parameters, while the values that are trained are kept: see
        `fastopt._kernels.uninterrupted`."""
        copying = [(operator.setitem, (param, ..., values[name])) for name, param in self._live().items()]
        return [*copying, (vars(self).update, ({"_trained": trained},))]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block, the parameters hold the averages: to evaluate or to save. Then they are what they were."""
        if self.is_applied:
            yield
            return
        self.apply()
        try:
            yield
        finally:
            self.restore()

    def note(self) -> None:
        """Note the bits of the parameters, for `is_noted`."""
        self._digest = self._digested()

    def is_noted(self) -> bool:
        """Whether the parameters have the same bits as when `note` was called."""
        return self._digest == self._digested()

    def _digested(self) -> bytes:
        digest = hashlib.blake2b()
        for param in self._live().values():
            digest.update(param.data)
        return digest.digest()

    def _refuse_if_applied(self) -> None:
        if self.is_applied:
            raise ValueError("the parameters must be those that are trained, but hold averages: call restore() first")

    def _applied_state(self) -> dict[str, Any]:
        """What a state dict must have in addition, so that training can go on from it: nothing, unless applied."""
        return {} if self._trained is None else {"trained": {name: a.copy() for name, a in self._trained.items()}}

    def _checked_state(self, state_dict: Mapping[str, Any]) -> dict[str, Array] | None:
        """The inverse of `_applied_state`, checked."""
        if "trained" not in state_dict:
            return None
        given, live = state_dict["trained"], self._live()
        if set(given) != set(live):
            raise ValueError(f"trained must have the keys {sorted(live)}, got {sorted(given)}")
        return {
            name: checks.array(f"trained[{name!r}]", given[name], dtype=param.dtype, shape=param.shape).copy()
            for name, param in live.items()
        }
