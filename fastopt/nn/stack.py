"""A stack of layers: forward and backward passes over all of them, prediction, evaluation, and its file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fastopt import _kernels, arena, checks, files
from fastopt.checks import Array
from fastopt.nn.config import encode
from fastopt.nn.layers import Composite, Conv2D, Grads, Layer, Shape
from fastopt.optimizer import chosen_names
from fastopt.threads import blas_on_one_thread, get_num_threads


class Stack(Composite, loadable=False):
    """All of `fastopt.nn.Sequential` but its training, so that the loop can be written in terms of it: see there."""

    def __init__(
        self, layers: Sequence[Layer], input_shape: Shape | None = None, *, seed: int = 0, dtype: Any = np.float32
    ) -> None:
        if isinstance(layers, Layer):
            raise TypeError(f"layers must be a sequence of Layer, got {type(layers).__name__}: write them in a list")
        self.layers = list(layers)
        for i, layer in enumerate(self.layers):
            if isinstance(layer, type):
                raise TypeError(f"layers[{i}] must be a Layer, got the class {layer.__name__}: call it")
            if not isinstance(layer, Layer):
                raise TypeError(f"layers[{i}] must be a Layer, got {type(layer).__name__}")
        # The arrays of a layer that occurs more than once are named by its first place.
        self.first = [next(i for i, other in enumerate(self.layers) if other is layer) for layer in self.layers]
        super().__init__({str(i): self.layers[i] for i in sorted({*self.first})})
        self._made: dict[bool, Grads] = {}
        #: Programs that are not in use, by what they depend on: see `fastopt.nn.program`.
        self.programs: dict[Any, list[Any]] = {}
        self._calls = [0]  # in training that were given no counter; a list, as programs hold while options are alike
        self.seed = checks.integer("seed", seed, 0)
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise TypeError(f"dtype must be float32 or float64, got {self.dtype}")
        self._whole = input_shape is not None
        if input_shape is not None:
            elsewhere = {id(param) for layer in self.walk() for param in layer.params.values()}
            if not isinstance(input_shape, Iterable):
                raise TypeError(f"input_shape must be a tuple of int, got {input_shape!r}: write ({input_shape!r},)")
            shape = tuple(checks.integer("input_shape", length, 1) for length in input_shape)
            self.build(shape, np.random.default_rng(self.seed), self.dtype)
            # The arrays of layers that were built before stay where they are: an optimizer may be bound to them.
            own = {name: param for name, param in self.params.items() if id(param) not in elsewhere}
            self.adopt(arena.flatten(own).params)

    def __getstate__(self) -> dict[str, Any]:
        """The model without programs, which hold addresses."""
        return vars(self) | {"_made": {}, "programs": {}}

    def _build(self, input_shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.shapes = [input_shape]
        for layer in self.layers:
            self.shapes.append(layer.build(self.shapes[-1], rng, dtype))

    def output_shape(self, input_shape: Shape) -> Shape:
        for layer in self.layers:
            input_shape = layer.output_shape(input_shape)
        return input_shape

    # ---- Frozen parameters ----------------------------------------------------------------------------------

    def freeze(self, which: Any) -> tuple[str, ...]:
        """Take parameters out of training: optimizers that are made of `params` from now on leave them as they are.

        Where all parameters of a batch norm are frozen, so are its running statistics, by which it then also normalises
        in training. Backward passes end at the lowest layer that learns. An optimizer that was made before does not
        know of it, and is refused by `fit`.

        Parameters
        ----------
        which : str, int, slice, function, or list of str, int and slice
            A name, a pattern such as ``"0.*"`` or ``"*bias"``, the index of a layer, a slice of layers such as
            ``slice(-1)`` for all but the last, or a function ``(name, array) -> bool`` such as `fastopt.vectors`.

        Returns
        -------
        tuple of str
            The names that were meant.

        Raises
        ------
        TypeError, ValueError
            Where it means no parameter.

        Examples
        --------
        >>> import fastopt
        >>> from fastopt import nn
        >>> model = nn.Sequential([nn.Dense(4), nn.BatchNorm(), nn.ReLU(), nn.Dense(2)], (3,))
        >>> model.freeze([0, 1])
        ('0.weight', '0.bias', '1.scale', '1.shift')
        >>> model.freeze(slice(-1)) == model.freeze([0, 1])
        True
        >>> model.unfreeze("1.*")
        ('1.scale', '1.shift')
        >>> fastopt.Adam(model.params).groups
        (Group(0.weight, 0.bias, frozen=True),)
        """
        chosen = self._chosen(which)
        self.params.mark("frozen", self.params.frozen.union(chosen))
        return chosen

    def unfreeze(self, which: Any = "*") -> tuple[str, ...]:
        """Take frozen parameters back into training: the inverse of `freeze`.

        An optimizer that was made meanwhile still leaves them out: set ``optimizer.groups[0].frozen = False``, or make
        a new one.

        Parameters
        ----------
        which : str, int, slice, function, or list of str, int and slice, default "*"
            As for `freeze`; all where absent.

        Returns
        -------
        tuple of str
            The names that were meant.
        """
        chosen = self._chosen(which)
        self.params.mark("frozen", self.params.frozen.difference(chosen))
        return chosen

    def _chosen(self, which: Any) -> tuple[str, ...]:
        if callable(which):
            chosen = chosen_names(which, self.params)
            if not chosen:
                raise ValueError(f"which must choose parameters among {', '.join(self.params)}; it chose none")
            return chosen
        patterns = []
        for each in which if isinstance(which, (list, tuple, set, frozenset)) else [which]:
            if isinstance(each, str):
                patterns.append(each)
                continue
            if isinstance(each, slice):
                places = [i for i in range(len(self.layers))[each] if self.layers[i].params]
                if not places:
                    raise ValueError(f"which must be layers with parameters, but {each} has none")
                patterns += [f"{self.first[i]}.*" for i in places]
                continue
            last = len(self.layers) - 1
            place = checks.integer("which", each, -last - 1, last) % len(self.layers)
            if not self.layers[place].params:
                raise ValueError(f"which must be a layer with parameters, but layer {place} is {self.layers[place]!r}")
            patterns.append(f"{self.first[place]}.*")
        return chosen_names(patterns, self.params, "which")

    # ---- Passes ---------------------------------------------------------------------------------------------

    def count(self, counter: Any) -> int:
        """The counter of the first layer in the call of that number, checked; those of the others follow."""
        layers = len(self.layers)
        return checks.integer("counter", counter, 0, 2**64 // max(1, layers) - 1) * layers

    @property
    def lowest(self) -> int:
        """The index of the first layer that learns, below which no gradient is needed."""
        return next(
            (i for i, layer in enumerate(self.layers) if layer.params and not layer.params.rest), len(self.layers)
        )

    def forward(self, x: Array, *, training: bool = False, counter: int | None = None) -> tuple[Array, list[Any]]:
        """The forward pass, layer by layer.

        Parameters
        ----------
        x : ndarray (n, …)
            Inputs of the model's shape and type: see `inputs`.
        training : bool, default False
        counter : int, optional
            The number of the call in training, of which dropout masks are a function. Where absent, the model counts
            its calls in training itself, from 0, those with a counter aside.

        Returns
        -------
        y : ndarray (n, …)
        cache : list
            The caches of all layers, which `backward` takes.
        """
        caches: list[Any] = []
        if counter is None:
            counter = self._calls[0] if training else 0
            self._calls[0] += training
        count = self.count(counter)
        for i, layer in enumerate(self.layers):
            x, cache = layer.forward(x, training=training, counter=count + i)
            caches.append(cache)
        return x, caches

    def backward(self, dy: Array, cache: list[Any]) -> tuple[Array, Grads]:
        """The backward pass, layer by layer.

        Parameters
        ----------
        dy : ndarray (n, …)
            The gradient of the loss with respect to the output.
        cache : list
            What `forward` returned.

        Returns
        -------
        dx : ndarray (n, …)
        grads : dict of ndarray
            The gradients with respect to each of `params`.
        """
        grads: Grads = {}
        for i in reversed(range(len(self.layers))):
            dy, own = self.layers[i].backward(dy, cache[i])
            for name, grad in own.items():
                key = f"{self.first[i]}.{name}"
                grads[key] = grads[key] + grad if key in grads else grad
        return dy, grads

    # ---- Use ------------------------------------------------------------------------------------------------

    def check_built(self) -> Shape:
        """The input shape, without which a model cannot be used."""
        if self.input_shape is None:
            raise ValueError("the model must have an input_shape, got None")
        return self.input_shape

    def rows(self, name: str, x: Any) -> Array:
        """Inputs, checked: of the model's shape, with rows that programs can gather, in whatever type."""
        if type(x) is np.ndarray and x.dtype is self.dtype and x.shape[1:] == self.input_shape and x.ndim:
            flags = x.flags
            if flags.c_contiguous and flags.aligned:  # as is usual, in less time
                return x
        checks.plain(name, x)
        x = np.asarray(x)
        if x.dtype.kind not in "fiub":
            raise TypeError(f"{name} must be an array of numbers, got {x.dtype}")
        shape = self.check_built()
        if x.shape[1:] != shape or x.ndim == 0:
            raise ValueError(f"{name} must have shape (n, {', '.join(map(str, shape))}), got {x.shape}")
        return x if _kernels.gathers(x) else self.converted(x)

    def converted(self, x: Array) -> Array:
        """Inputs as layers take them: C-contiguous, of the model's type."""
        return checks.contiguous(x, self.dtype)

    def inputs(self, name: str, x: Any) -> Array:
        """Both."""
        return self.converted(self.rows(name, x))

    def gradients(self, summed: bool = False) -> Grads:
        """The arrays that programs write the gradients of `params` to, or add up those of several batches in: in one
        block, in that order."""
        if summed not in self._made:
            made = arena.all_beside([*self.params.values()], [0.0] * len(self.params))
            self._made[summed] = dict(zip(self.params, made, strict=True))
        return self._made[summed]

    def summary(self) -> str:
        """A table of the layers with the shapes of their outputs, their parameters and bytes."""
        rows = [("layer", "output", "parameters")]
        for i, (layer, shape) in enumerate(zip(self.layers, self.shapes[1:], strict=True)):
            shared = "" if self.first[i] == i else f" (layer {self.first[i]} again)"
            count = 0 if shared else sum(a.size for a in layer.params.values())
            rows.append((type(layer).__name__ + shared, str(shape), f"{count:,}"))
        total = sum(a.size for a in self.params.values())
        size = sum(a.nbytes for a in self.params.values())
        rows.append(("total", f"{size:,} bytes", f"{total:,}"))
        wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(f"{a:<{wide[0]}}  {b:<{wide[1]}}  {c:>{wide[2]}}" for a, b, c in rows)

    def __repr__(self) -> str:
        layers = "".join(f"    {line}\n" for layer in self.layers for line in f"{layer!r},".split("\n"))
        options = f", {self.input_shape}, seed={self.seed}, dtype={self.dtype}" if self._whole else ""
        return f"Sequential([\n{layers}]{options})"

    # ---- Files ----------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a file, without pickle; `fastopt.nn.load` reads it.

        Parameters
        ----------
        path : path
            A file that is replaced at once or not at all: in the format of safetensors where its name ends in
            ``.safetensors`` (the extra ``safetensors``), npz where it ends in ``.npz`` or has no ending.

        Raises
        ------
        ImportError
            Where the format is that of safetensors, and the package is missing.
        ValueError
            Where the name has another ending.
        OSError
            Where the file cannot be written.
        """
        files.write_arrays(path, self.entries(), "model")

    def entries(self) -> dict[str, Any]:
        """The entries of the model's file: its ``config`` as JSON, and its arrays."""
        arrays = {f"params/{name}": a for name, a in self.params.items()}
        arrays |= {f"state/{name}": a for name, a in self.state.items()}
        return {"config": json.dumps(encode(self.config(), [])), **arrays}

    def matched(self, entries: Mapping[str, Any]) -> list[tuple[Array, Array]]:
        """Each array of the model with the one in the entries of a file, once all are seen to fit."""
        live = {f"params/{name}": a for name, a in self.params.items()}
        live |= {f"state/{name}": a for name, a in self.state.items()}
        given = {name: a for name, a in entries.items() if name.startswith(("params/", "state/"))}
        if extra := given.keys() - live.keys():
            raise ValueError(f"{min(extra)} must belong to the model, which has {', '.join(live) or 'no arrays'}")
        return [(a, checks.array(name, given[name], dtype=a.dtype, shape=a.shape)) for name, a in live.items()]

    def config(self) -> dict[str, Any]:
        own = {"input_shape": self.input_shape, "seed": self.seed, "dtype": self.dtype.name} if self._whole else {}
        return {"layers": self.layers, **own}


def room_for_convolutions(model: Stack) -> contextlib.AbstractContextManager[None]:
    """A context in which a BLAS keeps to one thread, if fastopt has several threads and convolutions for them."""
    if get_num_threads() > 1 and any(isinstance(layer, Conv2D) for layer in model.walk()):
        return blas_on_one_thread()
    return contextlib.nullcontext()
