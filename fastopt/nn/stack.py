"""A stack of layers: forward and backward passes over all of them, prediction, evaluation, and its file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fastopt import arena, checks, files
from fastopt.checks import Array
from fastopt.dialects import spelled
from fastopt.nn.arguments import samples, weights
from fastopt.nn.config import encode
from fastopt.nn.layers import Composite, Conv2D, Grads, Layer, Shape
from fastopt.nn.losses import LossLike, loss_of, softmax_cross_entropy
from fastopt.nn.memory import FRESH, OUTPUTS, Memory, Workspace
from fastopt.nn.targets import accuracy, are_labels
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
        self._first = [next(i for i, other in enumerate(self.layers) if other is layer) for layer in self.layers]
        super().__init__({str(i): self.layers[i] for i in sorted({*self._first})})
        self._stages = _stages(self.layers)
        self._calls = [
            0
        ]  # in training that were given no counter; a list, as passes are replayed while options are alike
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

    may_skip_input_grad = True

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
        which : str, int, function, or list of str and int
            A name, a pattern such as ``"0.*"`` or ``"*bias"``, the index of a layer, or a function
            ``(name, array) -> bool`` such as `fastopt.vectors`.

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
        which : str, int, function, or list of str and int, default "*"
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
            last = len(self.layers) - 1
            place = checks.integer("which", each, -last - 1, last) % len(self.layers)
            if not self.layers[place].params:
                raise ValueError(f"which must be a layer with parameters, but layer {place} is {self.layers[place]!r}")
            patterns.append(f"{self._first[place]}.*")
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

    def workspace(self) -> Workspace:
        """Arrays for passes over this model, which each pass reuses, so that its results are overwritten by the next.

        Gradients are contiguous, in the order of `params`. The cache of a forward pass serves one backward pass.

        Returns
        -------
        Workspace
        """
        return Workspace(arena.flatten(self.params).grads)

    def forward(
        self, x: Array, *, training: bool = False, counter: int | None = None, memory: Memory = FRESH
    ) -> tuple[Array, list[Any]]:
        """The forward pass.

        Parameters
        ----------
        x : ndarray (n, …)
            Inputs of the model's shape and type: see `inputs`.
        training : bool, default False
        counter : int, optional
            The number of the call in training, of which dropout masks are a function. Where absent, the model counts
            its calls in training itself, from 0, those with a counter aside.
        memory : Memory, default FRESH
            Provides the arrays that are written: see `workspace`.

        Returns
        -------
        y : ndarray (n, …)
        cache : list
            The caches of all layers, which `backward` takes.
        """
        caches: list[Any] = [None] * len(self.layers)
        if counter is None:
            counter = self._calls[0] if training else 0
            self._calls[0] += training
        count = self.count(counter)
        for i, key, options, _ in self._stages:
            x, caches[i] = self.layers[i].forward(
                x, training=training, counter=count + i, memory=memory.stage(key), **options
            )
        return x, caches

    def backward(
        self, dy: Array, cache: list[Any], *, memory: Memory = FRESH, input_grad: bool = True
    ) -> tuple[Array | None, Grads]:
        """The backward pass.

        Parameters
        ----------
        dy : ndarray (n, …)
            The gradient of the loss with respect to the output.
        cache : list
            What `forward` returned.
        memory : Memory, default FRESH
            As for `forward`.
        input_grad : bool, default True
            Whether to compute the gradient with respect to the input.

        Returns
        -------
        dx : ndarray (n, …) or None
        grads : dict of ndarray
            The gradients with respect to each of `params`.
        """
        grads: Grads = {}
        last = 0 if input_grad else self.lowest
        for i, place, _, options in reversed(self._stages):
            if i < last:
                break
            layer = self.layers[i]
            skip = {"input_grad": False} if i == last and not input_grad and layer.may_skip_input_grad else {}
            dy, own = layer.backward(dy, cache[i], memory=memory.stage(place), **options, **skip)
            if options and memory is not FRESH:
                cache[i] = None  # its arrays may be overwritten
            for name, grad in own.items():
                key = f"{self._first[i]}.{name}"
                grads[key] = np.add(grads[key], grad, out=grad) if key in grads else grad
        return (dy if input_grad else None), grads

    # ---- Use ------------------------------------------------------------------------------------------------

    @spelled
    def evaluate(
        self,
        x: Array,
        y: Array,
        sample_weight: Array | None = None,
        *,
        batch_size: int = 256,
        loss: LossLike = softmax_cross_entropy,
    ) -> dict[str, float]:
        """Loss and accuracy in inference.

        Parameters
        ----------
        x : ndarray (n, …)
            Inputs; converted to the model's type.
        y : ndarray (n, …)
            Targets.
        sample_weight : ndarray (n,), optional
            The weight of each sample in the mean loss, in [0, inf). The accuracy is without.
        batch_size : int, default 256
        loss : callable or str, default softmax_cross_entropy
            As for `fit`.

        Returns
        -------
        dict of float
            ``"loss"``; and ``"accuracy"``, the share of right labels, where `y` are integer labels.

        Raises
        ------
        TypeError, ValueError
            Where inputs or targets do not fit the model or the loss.
        """
        x, y, loss = samples(self, x, y, loss)
        weight = weights(sample_weight, None, y, loss, self.dtype)
        output = self.predict(x, batch_size=batch_size)
        measured = {"loss": loss_of(loss, output, y, weight)[0]}
        if are_labels(y):
            measured["accuracy"] = accuracy(output, y)
        return measured

    @spelled
    def predict(self, x: Array, *, batch_size: int = 256) -> Array:
        """The outputs in inference.

        Parameters
        ----------
        x : ndarray (n, …)
            Inputs; converted to the model's type.
        batch_size : int, default 256

        Returns
        -------
        ndarray (n, …)
            A new array; for a classifier the logits, whose ``argmax(axis=1)`` is the class.

        Raises
        ------
        TypeError, ValueError
            Where inputs do not fit the model.
        """
        x = self.inputs("x", x)
        batch_size = checks.integer("batch_size", batch_size, 1)
        output, memory = np.empty((len(x), *self.shapes[-1]), self.dtype), Workspace(handed_on=OUTPUTS)
        # In a single batch, a BLAS's threads do not stay awake into the convolutions of a next one.
        with room_for_convolutions(self) if len(x) > batch_size else contextlib.nullcontext():
            for i in range(0, len(x), batch_size):
                output[i : i + batch_size] = self.forward(x[i : i + batch_size], memory=memory)[0]
        return output

    def inputs(self, name: str, x: Any) -> Array:
        """Inputs, checked: of the model's shape, converted to its type, C-contiguous."""
        x = np.asarray(x)
        if x.dtype.kind not in "fiub":
            raise TypeError(f"{name} must be an array of numbers, got {x.dtype}")
        if self.input_shape is None:
            raise ValueError("the model must have an input_shape, got None")
        if x.shape[1:] != self.input_shape or x.ndim == 0:
            raise ValueError(f"{name} must have shape (n, {', '.join(map(str, self.input_shape))}), got {x.shape}")
        return np.ascontiguousarray(x, self.dtype)

    def summary(self) -> str:
        """A table of the layers with the shapes of their outputs, their parameters and bytes."""
        rows = [("layer", "output", "parameters")]
        for i, (layer, shape) in enumerate(zip(self.layers, self.shapes[1:], strict=True)):
            shared = "" if self._first[i] == i else f" (layer {self._first[i]} again)"
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


def _stages(layers: Sequence[Layer]) -> list[tuple[int, str, dict[str, Any], dict[str, Any]]]:
    """For each layer that is called: its place, as a number and as text, and the options of its forward and backward
    passes. Layers that are fused with one before are not called; backward may overwrite an output that is not read
    any more."""
    stages, i, kept = [], 0, True
    while i < len(layers):
        layer, count = layers[i], layers[i].fuses(layers[i + 1 :])
        fused = tuple(layers[i + 1 : i + 1 + count])
        overwrite = not kept and layer.may_overwrite_input(fused)
        stages.append((i, str(i), {"fused": fused} if fused else {}, {"overwrite": True} if overwrite else {}))
        kept = layer.keeps_output(fused)
        i += 1 + count
    return stages


def room_for_convolutions(model: Stack) -> contextlib.AbstractContextManager[None]:
    """A context in which a BLAS keeps to one thread, if fastopt has several threads and convolutions for them."""
    if get_num_threads() > 1 and any(isinstance(layer, Conv2D) for layer in model.walk()):
        return blas_on_one_thread()
    return contextlib.nullcontext()
