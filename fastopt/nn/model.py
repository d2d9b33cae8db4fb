"""A model: a stack of layers that can be trained and loaded."""

from __future__ import annotations

import copy
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastopt import checks, dialects, files
from fastopt.checks import Array
from fastopt.dialects import spelled
from fastopt.nn import arguments, preprocessing
from fastopt.nn import training as loop
from fastopt.nn.config import decode, encode
from fastopt.nn.feed import Loader, Transform
from fastopt.nn.init import at_most
from fastopt.nn.layers import Layer
from fastopt.nn.losses import LossLike, named_loss, softmax_cross_entropy
from fastopt.nn.metrics import MetricsLike
from fastopt.nn.program import Compiled
from fastopt.nn.trainer import Trainer
from fastopt.nn.training import Callback
from fastopt.optimizer import OptimizerLike
from fastopt.schedules import Schedule

__all__ = ["Sequential", "load"]


class Sequential(Compiled):
    """A sequence of layers, built for inputs of one shape: a model, or a layer of another one.

    Parameters
    ----------
    layers : sequence of Layer
        A layer may occur more than once: its parameters are then shared, and its gradients add up.
    input_shape : tuple of int, optional
        The shape of one input, without the batch: ``(d,)`` or ``(h, w, c)``. Without it, the layers are built together
        with the model that this one is a layer of, from its seed and in its type.
    seed : int, default 0
        Decides all initial weights and dropout masks.
    dtype : {float32, float64}, default float32

    Attributes
    ----------
    params : dict of ndarray
        Every parameter once, as ``"<number of the layer>.<name>"``: what an optimizer takes. Those that are made with
        the model are contiguous, as `fastopt.flatten` lays them out.
    state : dict of ndarray
        The running means and variances, named likewise.
    shapes : list of tuple of int
        The shape of an input, and of the output of each layer, without the batch.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks its rule, or a layer does not take the outputs of the one before.

    Examples
    --------
    >>> from fastopt import data, nn
    >>> x, y = data.digits()
    >>> model = nn.Sequential([nn.Flatten(), nn.Dense(16, activation="relu"), nn.Dense(10)], (8, 8, 1))
    >>> history = model.fit(x, y, epochs=2, optimizer="adam")
    >>> sorted(history)
    ['accuracy', 'loss', 'samples_per_second']
    >>> sorted(model.evaluate(x, y)), model.predict(x).shape
    (['accuracy', 'loss'], (1797, 10))
    >>> print(model.summary())
    layer    output       parameters
    Flatten  (64,)                 0
    Dense    (16,)             1,040
    Dense    (10,)               170
    total    4,840 bytes       1,210
    >>> again = model.copy()
    >>> again.fit(x, y)["loss"][0] < history["loss"][0]
    True
    """

    @spelled
    def fit(
        self,
        x: Array | Loader,
        y: Array | None = None,
        *,
        epochs: int = 1,
        batch_size: int | None = None,
        optimizer: OptimizerLike | type[Any] | str = "adam",
        lr: float | Schedule | None = None,
        validation_data: tuple[Array, Array] | tuple[Array, Array, Array] | None = None,
        loss: LossLike = softmax_cross_entropy,
        sample_weight: Array | None = None,
        class_weight: Mapping[int, float] | Sequence[float] | Array | Literal["balanced"] | None = None,
        accumulate: int = 1,
        seed: int | None = None,
        callbacks: Callback | Sequence[Callback] | None = (),
        on_nonfinite: Literal["stop", "skip", "ignore"] | None = None,
        batches: Any = None,
        transform: Transform | None = None,
        metrics: MetricsLike | None = None,
        comm: Any = None,
    ) -> loop.History:
        """Train by mini-batches.

        Parameters
        ----------
        x : ndarray (n, …) or loader
            Inputs, finite; converted to the model's type. A loader, such as `fastopt.data.Loader`, has a length, that
            of an epoch, and a method ``epoch(number)`` that returns an iterator of batches ``(x, y)`` or
            ``(x, y, weights)``; it decides their order and size, and has the targets.
        y : ndarray (n,)
            Targets, finite; for softmax cross-entropy integer labels, also as bools, as whole floats or as a column
            (n, 1), or distributions (n, classes), one-hot say.
        epochs : int, default 1
        batch_size : int, optional
            32 where absent. Samples are shuffled in each epoch. A single last sample joins the batch before, since
            batch norm needs two.
        optimizer : Optimizer, str or class, default "adam"
            One that is bound to ``model.params``, with which a further `fit` continues; or the name or the class of a
            new one, with its defaults. With `fastopt.LBFGS` and `fastopt.Rprop`, a batch must hold all samples:
            ``batch_size=len(x)``.
        lr : float or Schedule, optional
            The learning rate of an optimizer that is given by its name or class; where absent, one with which small
            networks train, that of the class unless that has a `default_rate`.
        validation_data : (ndarray, ndarray) or (ndarray, ndarray, ndarray), optional
            Inputs and targets, and the weights of samples, to evaluate on after each epoch.
        loss : callable, str or class, default softmax_cross_entropy
            One of `fastopt.nn.losses`, or its name: ``"softmax_cross_entropy"``, ``"sigmoid_cross_entropy"``,
            ``"hinge"``, ``"squared_error"``, ``"l1"``, ``"huber"``, or one of Keras, PyTorch or scikit-learn, such as
            ``"categorical_crossentropy"``; or a function of your own,
            ``loss(output, targets) -> (mean loss, gradient)``; where there are weights,
            ``loss(output, targets, sample_weight=w)``, whose mean is ``Σ w·l / Σ w``.
        sample_weight : ndarray (n,), optional
            The weight of each sample, in [0, inf).
        class_weight : "balanced", dict, sequence or ndarray (classes,), optional
            The weight of each sample of a class, in [0, inf); multiplies `sample_weight`. ``"balanced"``: that of a
            class of k of n samples is ``n / (classes·k)``, so that all classes weigh the same.
        accumulate : int, default 1
            The batches per step of the optimizer. Their gradients are averaged, so that a step is that of one batch
            of all their samples (up to rounding, and except for batch norm and dropout, which act on each batch).
            Callbacks are told of them as one batch.
        seed : int, optional
            Decides the order of samples; the model's own seed where absent.
        callbacks : Callback or sequence of Callback, optional
            See `fastopt.nn.callbacks`.
        on_nonfinite : {"stop", "skip", "ignore"}, optional
            What happens where a loss or a gradient is NaN or infinite: the run ends with `NonFiniteError`, and the
            parameters are those before that step; or the step is skipped, and the metric ``skipped`` counts; or nothing
            is looked at, neither in the data. ``"stop"`` where absent, ``"skip"`` if the optimizer has
            ``skip_nonfinite``.
        batches : object, optional
            Which samples make each batch, and how many batches an epoch has: `Shuffled`, which is what `batch_size`
            alone means, `InOrder`, `Stratified`, or an object of your own with a length, that of an epoch, and either a
            method ``epoch(rng)`` or ``__iter__``, whose items are arrays of indices. `rng` follows from the seed and
            the number of steps that were taken.
        transform : callable, optional
            ``f(x, y, rng) -> (x, y)``, which changes each batch: as many samples, in new arrays or the same ones, not
            in place. `rng` is a `numpy.random.Generator` of the seed, the epoch and the number of the batch. A thread
            calls it ahead of the steps, for several small epochs at once, and perhaps again for a batch where it has
            raised for a later one; and it is called once before the run, to see what it returns.
        metrics : str, callable, or sequence or dict of these, optional
            Functions ``f(targets, scores)`` that return a number, such as those of `fastopt.nn.metrics`; ``"top_3"``
            and the like; or names of scikit-learn's scorers, such as ``"f1_macro"``, ``"roc_auc_ovr"`` or ``"r2"``
            (extra ``sklearn``). A dict has the names that the `History` and callbacks have for them; else it is their
            own. They get the targets and the outputs of the epoch's batches in training, and, with validation data,
            those of validation, as ``val_…``; of scorers more is better, and they score what the loss takes the outputs
            for: logits of classes, of yes and no, or numbers.
        comm : mpi4py.MPI.Intracomm, optional
            Processes that train the model together, each on its part of every batch, by the same call: what
            `fastopt.mpi.world` returns (extra ``mpi``). Losses and parameters are those of one process, up to rounding.

        Returns
        -------
        History
            Metrics per epoch. The same seed gives the same bits.

        Raises
        ------
        TypeError, ValueError
            Where an argument breaks its rule, or samples, targets or weights do not fit each other, the model or the
            loss, or hold NaN or infinity.
        NonFiniteError
            A ValueError that names the epoch, the batch, and the first layer and pass with a result that is not finite.
            At the end of each epoch, parameters and running statistics are looked at, too.

        Notes
        -----
        Ctrl-C ends the run after the current step: `History` has the epochs so far, callbacks get their
        ``on_train_end`` (`EarlyStopping` restores the best weights), and ``history.stopped`` says what happened.
        A second Ctrl-C raises KeyboardInterrupt at once.

        With a schedule-free optimizer, or a `fastopt.nn.WeightAverage` among the callbacks, the averages of the
        parameters are in their place in validation, in ``on_epoch_end``, in checkpoints, and after the run, so that
        `predict` agrees with the last validation. A further `fit` with the same optimizer, or a resumed one, goes on
        from the parameters that were trained.

        Examples
        --------
        >>> import numpy as np
        >>> import fastopt
        >>> from fastopt import nn
        >>> x = np.random.default_rng(0).normal(size=(64, 2))
        >>> y = x @ [[1.0], [-2.0]] + 0.5
        >>> model = nn.Sequential([nn.Dense(1)], (2,))
        >>> sgd = fastopt.SGD(model.params, lr=0.1)
        >>> history = model.fit(x, y, epochs=50, batch_size=16, optimizer=sgd, loss=nn.SquaredError())
        >>> model.params["0.weight"].ravel().round(3).tolist(), model.params["0.bias"].round(3).tolist()
        ([1.0, -2.0], [0.5])
        """
        return loop.fit(
            self,
            x,
            y,
            epochs=epochs,
            batch_size=batch_size,
            accumulate=accumulate,
            optimizer=optimizer,
            lr=lr,
            validation_data=validation_data,
            loss=loss,
            sample_weight=sample_weight,
            class_weight=class_weight,
            seed=seed,
            callbacks=callbacks,
            on_nonfinite=on_nonfinite,
            batches=batches,
            transform=transform,
            metrics=metrics,
            comm=comm,
        )

    @spelled
    def trainer(
        self,
        optimizer: OptimizerLike | type[Any] | str = "adam",
        loss: LossLike = softmax_cross_entropy,
        *,
        lr: float | Schedule | None = None,
        on_nonfinite: Literal["stop", "skip", "ignore"] = "stop",
    ) -> Trainer:
        """Steps of training for a loop of one's own: one call each, of C alone where `fit` has none but that, either.

        Parameters
        ----------
        optimizer : Optimizer, str or class, default "adam"
            As for `fit`; its ``t`` counts the calls, of which dropout masks are a function.
        loss : callable, str or class, default softmax_cross_entropy
            As for `fit`.
        lr : float or Schedule, optional
            As for `fit`.
        on_nonfinite : {"stop", "skip", "ignore"}, default "stop"
            As for `fit`: a step that is skipped returns NaN.

        Returns
        -------
        Trainer
            ``step(x, y, sample_weight=None)`` takes a step on one batch, and returns the mean loss before it; its
            attributes are `model`, `optimizer` and `loss`.

        Raises
        ------
        TypeError, ValueError
            Where an argument breaks its rule; of a step, where a batch does not fit the model or the loss.
        NonFiniteError
            Of a step, with the first layer and pass whose result is not finite; parameters are those of before.

        Examples
        --------
        >>> from fastopt import data, nn
        >>> x, y = data.digits()
        >>> model = nn.Sequential([nn.Flatten(), nn.Dense(16, activation="relu"), nn.Dense(10)], x.shape[1:])
        >>> step = model.trainer("adam")
        >>> for i in range(0, 320, 32):
        ...     loss = step(x[i : i + 32], y[i : i + 32])
        >>> loss < 2.3
        True
        """
        checks.choice("on_nonfinite", on_nonfinite, ("stop", "skip", "ignore"))
        if waiting := preprocessing.unadapted(self):
            raise ValueError(f"{waiting[0]!r} must adapt before steps are taken: call model.adapt(x_train)")
        made = arguments.bound(self, optimizer, lr)
        if getattr(made, "needs_closure", False):
            raise TypeError(
                f"optimizer must not need the loss more than once a step, as {type(made).__name__} does: fit"
            )
        return Trainer(self, made, named_loss(loss), on_nonfinite)

    def features(self, layer: int | str = -2) -> Sequential:
        """A model of the layers up to and with one of these, which it shares: what that layer sees in inputs.

        Parameters
        ----------
        layer : int or str, default -2
            Its index, or the name of its class, if there is one layer of it.

        Returns
        -------
        Sequential
            With the same parameters: training changes both.

        Raises
        ------
        TypeError, ValueError
            Where there is no such layer, or several.

        Examples
        --------
        >>> import numpy as np
        >>> from fastopt import nn
        >>> model = nn.Sequential([nn.Flatten(), nn.Dense(8), nn.ReLU(), nn.Dense(2)], (3, 3, 1))
        >>> model.features("ReLU").predict(np.ones((5, 3, 3, 1))).shape, model.features(0).shapes[-1]
        ((5, 8), (9,))
        """
        shape, last = self.check_built(), len(self.layers) - 1
        if isinstance(layer, str):
            found = [i for i, each in enumerate(self.layers) if type(each).__name__ == layer]
            if len(found) != 1:
                names = ", ".join(f"{i}: {type(each).__name__}" for i, each in enumerate(self.layers))
                places = f"layers {', '.join(map(str, found))} are: give the index" if found else "none is"
                raise ValueError(f"layer must be one of {names}; of {layer!r}, {places}")
            place = found[0]
        else:
            place = checks.integer("layer", layer, -last - 1, last) % len(self.layers)
        return Sequential(self.layers[: place + 1], shape, seed=self.seed, dtype=self.dtype)

    def with_head(self, layers: Sequence[Layer] | Layer, *, drop: int = 1, seed: int | None = None) -> Sequential:
        """A copy of the model with other layers in the place of the last one, for other classes, say.

        Parameters
        ----------
        layers : sequence of Layer, or Layer
            New ones, which are initialised.
        drop : int, default 1
            How many layers they take the place of.
        seed : int, optional
            Decides their weights; that of the model where absent.

        Returns
        -------
        Sequential
            With arrays of its own; what is frozen stays so.

        Raises
        ------
        TypeError, ValueError
            Where an argument breaks its rule, or the first of these layers does not take what the last one took.

        Examples
        --------
        >>> from fastopt import nn
        >>> trained = nn.Sequential([nn.Dense(8, activation="relu"), nn.Dense(5)], (4,))
        >>> model = trained.with_head([nn.Dense(3)])
        >>> model.freeze(slice(-1))
        ('0.weight', '0.bias')
        >>> model.shapes[-1], trained.shapes[-1]
        ((3,), (5,))
        """
        shape, new = self.check_built(), [layers] if isinstance(layers, Layer) else list(layers)
        keep = len(self.layers) - checks.integer("drop", drop, 0, len(self.layers))
        seed = self.seed if seed is None else checks.integer("seed", seed, 0)
        for i, layer in enumerate(new):
            if isinstance(layer, Layer) and layer.input_shape is not None:
                raise ValueError(f"layers[{i}] must be a new layer, but {layer!r} was built before")
        return Sequential([*copy.deepcopy(self.layers[:keep]), *new], shape, seed=seed, dtype=self.dtype)

    def adapt(self, x: Array) -> None:
        """Let `Center`, `Standardize` and `Whiten` among the layers learn from data, each from the outputs of the
        layers before it; `fit` does so for those that have not adapted yet.

        Parameters
        ----------
        x : ndarray (n, …)
            Inputs, of the training data alone: of others, evaluation would be told what it must not know.

        Raises
        ------
        TypeError, ValueError
            Where inputs do not fit the model or are not finite, no layer learns from data, or one is within another
            layer that is no `Sequential`.

        Examples
        --------
        >>> import numpy as np
        >>> from fastopt import nn
        >>> model = nn.Sequential([nn.Standardize(), nn.Dense(2)], (1,))
        >>> model.adapt(np.array([[1.0], [3.0]]))
        >>> model.state["0.mean"].tolist(), model.state["0.var"].tolist()
        ([2.0], [1.0])
        """
        x = self.rows("x", x)
        if not preprocessing.adapt(self, x):
            raise ValueError("the model must have a layer that adapts: nn.Center, nn.Standardize or nn.Whiten")

    if not TYPE_CHECKING:  # which knows what is there

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(dialects.no_attribute(type(self), name), name=name, obj=self)

    def copy(self, *, dtype: Any = None) -> Sequential:
        """An independent model with the same layers, options and values.

        Parameters
        ----------
        dtype : {float32, float64}, optional
            The type to convert the values to; that of the model where absent.

        Returns
        -------
        Sequential
        """
        entries = self.entries()
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        del entries["config"]
        config = json.dumps(encode(self.config() | {"dtype": dtype.name}, []))
        arrays = {name: a.astype(dtype) if a.dtype == self.dtype else a for name, a in entries.items()}
        twin = read({"config": np.array(config), **arrays})
        twin.params.mark("frozen", self.params.frozen)
        return twin


def load(path: str | os.PathLike[str]) -> Sequential:
    """The model in a file that `Sequential.save` or `ModelCheckpoint` wrote.

    Layers of your own can be loaded once their class is defined.

    Parameters
    ----------
    path : path

    Returns
    -------
    Sequential

    Raises
    ------
    ImportError
        Where it is a ``.safetensors`` file, and the package is missing: it is the extra ``safetensors``.
    FileNotFoundError, OSError
        Where there is no file, or it cannot be read.
    ValueError
        Where it is no such file, it is damaged, or its arrays do not fit its layers.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from fastopt import nn
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     nn.Sequential([nn.Dense(3)], (2,)).save(Path(folder) / "model.npz")
    ...     nn.load(Path(folder) / "model.npz").shapes
    [(2,), (3,)]
    """
    return files.read_arrays(path, "model", "checkpoint", take=read)


def read(file: Mapping[str, Any]) -> Sequential:
    """The model of the entries of a file."""
    config = decode(json.loads(str(file["config"])), [])
    with at_most(sum(array.size for name, array in file.items() if name.startswith("params/"))):
        model = Sequential(**{name: config[name] for name in inspect.signature(Sequential).parameters})
    for array, given in model.matched(file):
        array[...] = given
    return model
