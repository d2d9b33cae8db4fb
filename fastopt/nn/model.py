"""A model: layers in a row, which can be trained, saved and loaded."""

from __future__ import annotations

import inspect
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastopt import checks
from fastopt.checks import Array
from fastopt.nn import training as loop
from fastopt.nn.config import decode, encode
from fastopt.nn.losses import Loss, softmax_cross_entropy
from fastopt.nn.stack import Stack
from fastopt.nn.training import Callback
from fastopt.optimizer import Optimizer


class Sequential(Stack):
    """Layers in a row, built for inputs of one shape: a model, or a part of another one.

    Parameters
    ----------
    layers : sequence of Layer
        A layer may stand in it more than once: it then shares its parameters, and its gradients add up.
    input_shape : tuple of int, optional
        The shape of one input, without the batch: ``(d,)`` or ``(h, w, c)``. Without it, the layers are built when the
        model that this one is a part of is, from that one's seed and in its type.
    seed : int, default 0
        All initial weights and dropout masks follow from it.
    dtype : {float32, float64}, default float32

    Attributes
    ----------
    params : dict of ndarray
        Every parameter once, as ``"<number of the layer>.<name>"``: what an optimizer takes. Those that are made with
        the model lie side by side in one block of memory, as `fastopt.flatten` lays them out.
    state : dict of ndarray
        Likewise what else a trained model holds (running means and variances).
    """

    #: Its passes are those of its layers and no more, so that they can be recorded; a subclass's may be more.
    calls_layers_alone = True

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
        sample_weight: Array | None = None,
        class_weight: Mapping[int, float] | Sequence[float] | Array | None = None,
        accumulate: int = 1,
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
            ``loss(output, targets) -> (mean loss, gradient)``; where there are weights,
            ``loss(output, targets, sample_weight=w)``, whose mean is ``Σ w·l / Σ w``.
        sample_weight : ndarray (n,), optional
            How much each sample counts, in [0, inf).
        class_weight : dict, sequence or ndarray (classes,), optional
            How much each sample of a class counts, in [0, inf); multiplies `sample_weight`.
        accumulate : int, default 1
            The batches per step of the optimizer. Their gradients are averaged, so that a step is that of one batch
            of all their samples (with rounding; but for batch norm and dropout, which see each batch alone). For
            callbacks, these are one batch.
        seed : int, optional
            Decides the order of samples; the model's own seed where absent.
        callbacks : sequence of Callback, optional
            See `fastopt.nn.callbacks`.

        Returns
        -------
        History
            Loss and accuracy per epoch. The same seed gives the same bits.

        Notes
        -----
        Ctrl-C ends the run after the step that is being taken: `History` has the epochs so far, the callbacks are
        told, such as `EarlyStopping`, which brings back the best weights, and ``history.stopped`` says what happened.
        A second Ctrl-C raises KeyboardInterrupt at once.
        """
        return loop.fit(
            self,
            x,
            y,
            epochs=epochs,
            batch_size=batch_size,
            accumulate=accumulate,
            optimizer=optimizer,
            validation_data=validation_data,
            loss=loss,
            sample_weight=sample_weight,
            class_weight=class_weight,
            seed=seed,
            callbacks=callbacks,
        )

    def copy(self, *, dtype: Any = None) -> Sequential:
        """A model of its own, alike in all, with the same values (rounded to another `dtype` where that is given)."""
        entries = self.entries()
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        del entries["config"]
        config = json.dumps(encode(self.config() | {"dtype": dtype.name}, []))
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
    config = decode(json.loads(str(file["config"])), [])
    model = Sequential(**{name: config[name] for name in inspect.signature(Sequential).parameters})
    for kind, own in (("params", model.params), ("state", model.state)):
        for name, array in own.items():
            given = file[f"{kind}/{name}"]
            array[...] = checks.array(f"{kind}/{name}", given, dtype=array.dtype, shape=array.shape)
    return model
