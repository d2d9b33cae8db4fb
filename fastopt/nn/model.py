"""A model: layers in a row, with what is done to them as a whole."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastopt import checks
from fastopt.checks import Array
from fastopt.nn import files
from fastopt.nn import training as loop
from fastopt.nn.callbacks import Callback
from fastopt.nn.layers import Grads, Layer, Shape
from fastopt.nn.losses import Loss, softmax_cross_entropy
from fastopt.optimizers import Optimizer


class Sequential:
    """Layers in a row, built for inputs of one shape.

    Parameters
    ----------
    layers : sequence of Layer
        A layer may stand in it more than once: it then shares its parameters, and its gradients add up.
    input_shape : tuple of int
        The shape of one input, without the batch: ``(d,)`` or ``(h, w, c)``.
    seed : int, default 0
        All initial weights and dropout masks follow from it.
    dtype : {float32, float64}, default float32

    Attributes
    ----------
    params : dict of ndarray
        Every parameter once, as ``"<number of the layer>.<name>"``: what an optimizer takes.
    state : dict of ndarray
        Likewise what else a trained model holds (running means and variances).
    """

    def __init__(self, layers: Sequence[Layer], input_shape: Shape, *, seed: int = 0, dtype: Any = np.float32) -> None:
        self.layers = list(layers)
        for i, layer in enumerate(self.layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"layers[{i}] must be a Layer, got {type(layer).__name__}")
        self.input_shape = tuple(checks.integer("input_shape", length, 1) for length in input_shape)
        self.seed = checks.integer("seed", seed, 0)
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise TypeError(f"dtype must be float32 or float64, got {self.dtype}")
        rng = np.random.default_rng(self.seed)
        self.shapes = [self.input_shape]
        for layer in self.layers:
            self.shapes.append(layer.build(self.shapes[-1], rng, self.dtype))
        # Where a layer stands more than once, its first place names its arrays.
        self._first = [next(i for i, other in enumerate(self.layers) if other is layer) for layer in self.layers]
        self.params = self._named("params")
        self.state = self._named("state")

    def _named(self, attribute: str) -> dict[str, Array]:
        return {
            f"{i}.{name}": array
            for i, layer in enumerate(self.layers)
            if self._first[i] == i
            for name, array in getattr(layer, attribute).items()
        }

    # ---- Passes ---------------------------------------------------------------------------------------------

    def forward(self, x: Array, *, training: bool = False, counter: int = 0) -> tuple[Array, list[Any]]:
        """The output, and the caches of all layers.

        `counter` is the number of the call in training: another one, other dropout masks.
        """
        caches = []
        for i, layer in enumerate(self.layers):
            x, cache = layer.forward(x, training=training, counter=counter * len(self.layers) + i)
            caches.append(cache)
        return x, caches

    def backward(self, dy: Array, caches: list[Any]) -> tuple[Array, Grads]:
        """The gradients with respect to the input, and to each of `params`."""
        grads: Grads = {}
        for i in reversed(range(len(self.layers))):
            dy, own = self.layers[i].backward(dy, caches[i])
            for name, grad in own.items():
                key = f"{self._first[i]}.{name}"
                grads[key] = grads[key] + grad if key in grads else grad
        return dy, grads

    # ---- Use ------------------------------------------------------------------------------------------------

    def fit(
        self,
        x: Array,
        y: Array,
        *,
        epochs: int = 1,
        batch_size: int = 32,
        optimizer: Optimizer | str = "adam",
        validation_data: tuple[Array, Array] | None = None,
        loss: Loss = softmax_cross_entropy,
        seed: int | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> loop.History:
        """Train by minibatches.

        Parameters
        ----------
        x : ndarray (n, …)
            Inputs; converted to the model's type.
        y : ndarray (n,)
            Targets, for softmax cross-entropy integer labels.
        epochs : int, default 1
        batch_size : int, default 32
            Samples are drawn anew each epoch. A lone last sample joins the batch before, for batch norm's sake.
        optimizer : Optimizer or str, default "adam"
            One that is bound to ``model.params``, with which a further `fit` goes on where this one ends; or the
            name of one to begin with, with its defaults.
        validation_data : (ndarray, ndarray), optional
            Inputs and labels to evaluate on after each epoch.
        loss : callable, default softmax_cross_entropy
            ``loss(output, targets) -> (mean loss, gradient)``.
        seed : int, optional
            Decides the order of samples; the model's own seed where absent.
        callbacks : sequence of Callback, optional

        Returns
        -------
        History
            Loss and accuracy per epoch. The same seed gives the same bits.
        """
        return loop.fit(self, x, y, epochs, batch_size, optimizer, validation_data, loss, seed, callbacks)

    def evaluate(
        self, x: Array, y: Array, *, batch_size: int = 256, loss: Loss = softmax_cross_entropy
    ) -> dict[str, float]:
        """``{"loss": …, "accuracy": …}`` in inference; accuracy, the share of right labels, where `y` are labels."""
        x, y = loop.samples(self, x, y, loss)
        output = self.predict(x, batch_size=batch_size)
        measured = {"loss": loss(output, y)[0]}
        if loop.are_labels(y):
            measured["accuracy"] = loop.accuracy(output, y)
        return measured

    def predict(self, x: Array, *, batch_size: int = 256) -> Array:
        """The outputs in inference (for a classifier the logits, whose ``argmax(axis=1)`` is the class)."""
        x = self.inputs("x", x)
        batch_size = checks.integer("batch_size", batch_size, 1)
        parts = [self.forward(x[i : i + batch_size])[0] for i in range(0, len(x), batch_size)]
        return np.concatenate(parts) if parts else np.empty((0, *self.shapes[-1]), self.dtype)

    def inputs(self, name: str, x: Any) -> Array:
        """Inputs of the model's shape, in its type and C-contiguous."""
        x = np.asarray(x)
        if x.dtype.kind not in "fiub":
            raise TypeError(f"{name} must be an array of numbers, got {x.dtype}")
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
        layers = "".join(f"    {layer!r},\n" for layer in self.layers)
        return f"Sequential([\n{layers}], {self.input_shape}, seed={self.seed}, dtype={self.dtype})"

    # ---- Files ----------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole model to one npz file, without pickle. An existing file is replaced at once or not at all."""
        files.write_arrays(path, self.entries())

    def entries(self) -> dict[str, Any]:
        """What the file of a model holds, by name: its ``config`` as JSON, and arrays."""
        layers: list[Any] = [
            {"class": type(layer).__name__, **layer.config()} if self._first[i] == i else self._first[i]
            for i, layer in enumerate(self.layers)
        ]
        config = {"layers": layers, "input_shape": self.input_shape, "seed": self.seed, "dtype": self.dtype.name}
        arrays = {f"params/{name}": a for name, a in self.params.items()}
        arrays |= {f"state/{name}": a for name, a in self.state.items()}
        return {"config": json.dumps(config), **arrays}

    def copy(self, *, dtype: Any = None) -> Sequential:
        """A model of its own, alike in all, with the same values (rounded to another `dtype` where that is given)."""
        entries = self.entries()
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        config = json.dumps(json.loads(entries.pop("config")) | {"dtype": dtype.name})
        arrays = {name: a.astype(dtype) if a.dtype == self.dtype else a for name, a in entries.items()}
        return _read({"config": np.array(config), **arrays})


def load(path: str | os.PathLike[str]) -> Sequential:
    """The model in a file that `Sequential.save` wrote.

    Layers of your own can be loaded once their class is defined.

    Raises
    ------
    ValueError
        Where the file is no such file, or its arrays do not fit its layers.
    """
    try:
        with open(path, "rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as entries:
            return _read(entries)
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"path must name a model that Sequential.save wrote, got {os.fspath(path)!r}: {error}"
        ) from error


def _read(file: Mapping[str, Array]) -> Sequential:
    config = json.loads(str(file["config"]))
    layers: list[Layer] = []
    for entry in config["layers"]:
        if isinstance(entry, int):
            layers.append(layers[entry])
        else:
            name = checks.choice("class of a layer", entry.pop("class"), tuple(Layer.classes))
            layers.append(Layer.classes[name](**entry))
    model = Sequential(layers, config["input_shape"], seed=config["seed"], dtype=config["dtype"])
    for kind, own in (("params", model.params), ("state", model.state)):
        for name, array in own.items():
            given = file[f"{kind}/{name}"]
            array[...] = checks.array(f"{kind}/{name}", given, dtype=array.dtype, shape=array.shape)
    return model
