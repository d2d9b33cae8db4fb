"""The same training in fastopt, PyTorch, JAX, scikit-learn and NumPy: what `bench_training.py` measures.

A `Net` says what is trained. Each maker of `TRAINERS` returns a function that trains an epoch, given the indices of
its batches, and returns the mean loss; all begin with the same weights. Import `settings` before NumPy: libraries read
their number of threads when they load.
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np
import settings
from numpy.lib.stride_tricks import sliding_window_view

import fastopt
from fastopt import inplace, nn
from fastopt.nn import Shuffled

EPS = 1e-5


class Net(NamedTuple):
    """A network, and how it is trained.

    Its layers are ("dense", units), ("conv", filters) of 3 × 3 with padding 1, ("norm",), ("relu",), ("dropout", p),
    ("pool",) by 2 × 2, ("flatten",), ("block", filters, stride), which is a residual one, and ("mean",) over pixels.
    """

    shape: tuple[int, ...]
    layers: tuple[tuple, ...]
    batch: int = 64
    optimizer: str = "adam"
    samples: int = 4096
    classes: int = 10

    def data(self):
        """Standard normal inputs, and labels: the speed of training does not depend on them."""
        rng = np.random.default_rng(0)
        x = rng.normal(size=(self.samples, *self.shape)).astype(np.float32)
        return x, rng.integers(self.classes, size=self.samples)

    def model(self):
        """In fastopt; the others take their first weights from it."""
        make = {"dense": nn.Dense, "conv": nn.Conv2D, "norm": nn.BatchNorm, "relu": nn.ReLU, "dropout": nn.Dropout,
                "pool": nn.MaxPool2D, "flatten": nn.Flatten, "block": _residual,
                "mean": nn.GlobalAveragePool2D}  # fmt: skip
        return nn.Sequential([make[kind](*arguments) for kind, *arguments in self.layers], self.shape)

    def without_dropout(self):
        """Whose numbers do not depend on chance."""
        return self._replace(layers=tuple(layer for layer in self.layers if layer[0] != "dropout"))


LR = 1e-3


def _residual(filters, stride):
    body = [nn.Conv2D(filters, stride=stride), nn.BatchNorm(), nn.ReLU(), nn.Conv2D(filters), nn.BatchNorm()]
    shortcut = nn.Conv2D(filters, size=1, stride=stride) if stride > 1 else None
    return nn.Residual(nn.Sequential(body), shortcut)


def _hidden(units, norm=True, dropout=0.2):
    extra = (("norm",), ("relu",), ("dropout", dropout)) if norm else (("relu",),)
    return tuple(layer for n in units for layer in (("dense", n), *extra))


def _block(*filters):
    """Convolutions, each with batch norm and ReLU, and pooling behind them."""
    return (*(layer for n in filters for layer in (("conv", n), ("norm",), ("relu",))), ("pool",))


_CNN_28 = (*_block(16), *_block(32), ("flatten",), ("dense", 128), ("relu",), ("dropout", 0.5), ("dense", 10))
_CNN_32 = (*_block(32, 32), *_block(64, 64), ("flatten",), ("dense", 128), ("norm",), ("relu",), ("dense", 10))
_BLOCKS = tuple(("block", n, 1 + (n > 16 and not i)) for n in (16, 32, 64) for i in range(3))
_RESNET_20 = (("conv", 16), ("norm",), ("relu",), *_BLOCKS, ("mean",), ("dense", 10))
NETS = {
    "MLP, batch 64": Net((784,), (*_hidden((256, 128)), ("dense", 10))),
    "MLP, batch 128": Net((784,), (*_hidden((256, 128)), ("dense", 10)), batch=128),
    "plain MLP, batch 64": Net((784,), (*_hidden((256, 128), norm=False), ("dense", 10))),
    "CNN 28×28": Net((28, 28, 1), _CNN_28, samples=2048),
    "CNN 32×32×3": Net((32, 32, 3), _CNN_32, optimizer="nesterov", samples=512),
    "ResNet-20": Net((32, 32, 3), _RESNET_20, optimizer="nesterov", samples=256),
}


def epoch_batches(net, epoch):
    """The indices that `Sequential.fit` draws in an epoch with seed 0."""
    steps = -(-net.samples // net.batch)
    return list(Shuffled(net.samples, net.batch).epoch(np.random.default_rng([0, epoch * steps])))


# ---- fastopt ------------------------------------------------------------------------------------------------


def fastopt_trainer(net):
    """`Sequential.fit` itself, which draws the batches and counts right answers, too."""
    model, (x, y) = net.model(), net.data()
    if net.optimizer == "adam":
        optimizer = fastopt.Adam(model.params, lr=LR)
    else:
        optimizer = fastopt.Momentum(model.params, lr=LR, momentum=0.9, nesterov=True)
    return lambda _: model.fit(x, y, batch_size=net.batch, optimizer=optimizer, seed=0)["loss"][0]


# ---- PyTorch ------------------------------------------------------------------------------------------------


def torch_trainer(net, *, channels_last=False, compiled=False):
    """Adam fused; SGD, too. Compiled: forward, loss and backward."""
    import torch
    from torch.nn import functional as F  # noqa: N812

    torch.set_num_threads(settings.THREADS)
    torch.manual_seed(0)
    model = _torch_model(torch, net)
    x, y = (torch.from_numpy(array) for array in net.data())
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if x.ndim == 4:
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=layout)
        model = model.to(memory_format=layout)
    if net.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, nesterov=True, fused=True)

    def loss_of(x, y):
        return F.cross_entropy(model(x), y)

    if compiled:
        torch._dynamo.reset()
        loss_of = torch.compile(loss_of)

    def epoch(chosen):
        total = torch.zeros(())
        for index in chosen:
            index = torch.from_numpy(index)
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(x[index], y[index])
            loss.backward()
            optimizer.step()
            total += loss.detach()
        return float(total) / len(chosen)

    return epoch


def _torch_model(torch, net):
    model, own = [], net.model()
    for i, (kind, *arguments) in enumerate(net.layers):
        shape, params = own.shapes[i], own.layers[i].params
        layer = {
            "dense": lambda n: torch.nn.Linear(shape[0], n),  # noqa: B023
            "conv": lambda n: torch.nn.Conv2d(shape[2], n, 3, padding=1),  # noqa: B023
            "norm": lambda: (torch.nn.BatchNorm1d if len(shape) == 1 else torch.nn.BatchNorm2d)(shape[-1]),  # noqa: B023
            "relu": lambda: torch.nn.ReLU(inplace=True),
            "dropout": lambda p: torch.nn.Dropout(p),
            "pool": lambda: torch.nn.MaxPool2d(2),
            "flatten": lambda: torch.nn.Flatten(),
            "block": lambda n, stride: _torch_residual(torch, shape[2], n, stride),  # noqa: B023
            "mean": lambda: torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()),
        }[kind](*arguments)
        model.append(layer)
        if kind == "block":
            for theirs, ours in layer.named_convolutions():
                theirs.weight.data = torch.from_numpy(np.ascontiguousarray(params[ours].transpose(3, 2, 0, 1)))
                theirs.bias.data.zero_()
        if kind in ("dense", "conv"):
            weight = params["weight"]
            if kind == "conv":
                weight = weight.transpose(3, 2, 0, 1)
            elif i and net.layers[i - 1][0] == "flatten":  # of images whose channels come first
                images = own.shapes[i - 1]
                weight = weight.reshape(*images, -1).transpose(3, 2, 0, 1).reshape(weight.shape[1], -1)
            else:
                weight = weight.T
            layer.weight.data = torch.from_numpy(np.ascontiguousarray(weight))
            layer.bias.data.zero_()
    return torch.nn.Sequential(*model).train()


def _torch_residual(torch, channels, filters, stride):
    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Conv2d(channels, filters, 3, stride, padding=1)
            self.second = torch.nn.Conv2d(filters, filters, 3, padding=1)
            self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(filters) for _ in range(2))
            self.shortcut = torch.nn.Conv2d(channels, filters, 1, stride) if stride > 1 else None

        def named_convolutions(self):
            yield self.first, "body.0.weight"
            yield self.second, "body.3.weight"
            if self.shortcut is not None:
                yield self.shortcut, "shortcut.weight"

        def forward(self, x):
            y = self.norms[1](self.second(torch.relu_(self.norms[0](self.first(x)))))
            return torch.relu_(y.add_(x if self.shortcut is None else self.shortcut(x)))

    return Residual()


# ---- JAX ----------------------------------------------------------------------------------------------------


def jax_trainer(net):
    """One jitted function takes the whole step, from gathering the batch to Optax's update, in donated memory."""
    import jax
    import jax.numpy as jnp
    import optax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    own = net.model()
    x, y = map(jnp.asarray, net.data())
    params = [{name: jnp.array(a) for name, a in layer.params.items()} for layer in own.layers]
    state = [{name: jnp.array(a) for name, a in layer.state.items()} for layer in own.layers]
    transform = {"adam": optax.adam(LR), "nesterov": optax.sgd(LR, momentum=0.9, nesterov=True)}[net.optimizer]

    def forward(params, state, x, key):
        updated = []
        for i, (kind, *arguments) in enumerate(net.layers):
            p, s = params[i], state[i]
            match kind:
                case "dense":
                    x = x @ p["weight"] + p["bias"]
                case "conv":
                    numbers = ("NHWC", "HWIO", "NHWC")
                    x = jax.lax.conv_general_dilated(x, p["weight"], (1, 1), "SAME", dimension_numbers=numbers)
                    x = x + p["bias"]
                case "norm":
                    over = tuple(range(x.ndim - 1))
                    mean, var, n = x.mean(over), x.var(over), x.size / x.shape[-1]
                    x = (x - mean) * (jax.lax.rsqrt(var + EPS) * p["scale"]) + p["shift"]
                    s = {
                        "running_mean": 0.9 * s["running_mean"] + 0.1 * mean,
                        "running_var": 0.9 * s["running_var"] + 0.1 * var * (n / (n - 1)),
                    }
                case "relu":
                    x = jax.nn.relu(x)
                case "dropout":
                    keep = 1 - arguments[0]
                    x = jnp.where(jax.random.bernoulli(jax.random.fold_in(key, i), keep, x.shape), x / keep, 0)
                case "pool":
                    n, h, w, c = x.shape
                    x = x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
                case "flatten":
                    x = x.reshape(len(x), -1)
            updated.append(s)
        return x, updated

    def loss_of(params, state, x, y, key):
        logits, state = forward(params, state, x, key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), state

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, state, memory, x, y, index, count):
        key = jax.random.fold_in(jax.random.key(0), count)
        (loss, state), grads = jax.value_and_grad(loss_of, has_aux=True)(params, state, x[index], y[index], key)
        updates, memory = transform.update(grads, memory, params)
        return optax.apply_updates(params, updates), state, memory, loss

    memory, counts = transform.init(params), itertools.count()

    def epoch(chosen):
        nonlocal params, state, memory
        losses = []
        for index in chosen:
            params, state, memory, loss = step(params, state, memory, x, y, index, np.uint32(next(counts)))
            losses.append(loss)
        return float(np.mean(jax.block_until_ready(losses)))

    return epoch


# ---- scikit-learn -------------------------------------------------------------------------------------------


def sklearn_trainer(net):
    """`MLPClassifier.partial_fit` on the samples of an epoch, which takes them by batches in their order."""
    import sklearn
    from sklearn.neural_network import MLPClassifier

    units = [n for kind, *rest in net.layers if kind == "dense" for n in rest]
    own, (x, y) = net.model(), net.data()
    sklearn.set_config(assume_finite=True, skip_parameter_validation=True)
    model = MLPClassifier(units[:-1], batch_size=net.batch, learning_rate_init=LR, alpha=0.0, shuffle=False)
    classes = np.arange(net.classes)

    def epoch(chosen):
        order = np.concatenate(chosen)
        model.partial_fit(x[order], y[order], classes=classes)
        return model.loss_curve_[-1]

    # Its arrays are made in the first call, and then hold what that one learnt.
    epoch([np.arange(net.batch)])
    dense = [layer for layer in own.layers if isinstance(layer, nn.Dense)]
    for name, arrays in (("weight", model.coefs_), ("bias", model.intercepts_)):
        for array, layer in zip(arrays, dense, strict=True):
            array[...] = layer.params[name]
    for moment in model._optimizer.ms + model._optimizer.vs:
        moment[...] = 0
    model._optimizer.t = 0
    return epoch


# ---- NumPy --------------------------------------------------------------------------------------------------


def numpy_trainer(net):
    """Explicit passes in NumPy: im2col by a copy of sliding windows, pooling by blocks, the step in place."""
    own, (x, y) = net.model(), net.data()
    params = [{name: a.copy() for name, a in layer.params.items()} for layer in own.layers]
    count = {"adam": 2, "nesterov": 1}[net.optimizer]
    memory = [
        (p, i, name, [np.zeros_like(p) for _ in range(count)], np.empty_like(p), np.empty_like(p))
        for i, own_params in enumerate(params)
        for name, p in own_params.items()
    ]
    take, rng, counts = getattr(inplace, net.optimizer), np.random.default_rng(0), itertools.count(1)

    def forward(i, x):
        kind, *arguments = net.layers[i]
        p = params[i]
        match kind:
            case "dense":
                return x @ p["weight"] + p["bias"], x
            case "conv":
                n, h, w, c = x.shape
                padded = np.zeros((n, h + 2, w + 2, c), x.dtype)
                padded[:, 1:-1, 1:-1] = x
                windows = sliding_window_view(padded, (3, 3), axis=(1, 2)).transpose(0, 1, 2, 4, 5, 3)
                rows = np.ascontiguousarray(windows).reshape(n * h * w, 9 * c)
                y = rows @ p["weight"].reshape(9 * c, -1)
                y += p["bias"]
                return y.reshape(n, h, w, -1), (rows, padded)
            case "norm":
                rows = x.reshape(-1, x.shape[-1])
                centred = rows - rows.mean(axis=0)
                inv_std = 1 / np.sqrt(np.einsum("ij,ij->j", centred, centred) / len(rows) + np.float32(EPS))
                y = centred * (inv_std * p["scale"])
                y += p["shift"]
                return y.reshape(x.shape), (centred, inv_std)
            case "relu":
                return np.maximum(x, 0, out=x), x
            case "dropout":
                mask = rng.random(x.shape, np.float32) >= arguments[0]
                return np.multiply(x, mask * np.float32(1 / (1 - arguments[0]))), mask
            case "pool":
                n, h, w, c = x.shape
                y = x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))
                return y, (x, y)
            case "flatten":
                return x.reshape(len(x), -1), x.shape

    def backward(i, dy, cache):
        kind, *arguments = net.layers[i]
        p = params[i]
        match kind:
            case "dense":
                return dy @ p["weight"].T, {"weight": cache.T @ dy, "bias": dy.sum(axis=0)}
            case "conv":
                rows, padded = cache
                n, h, w, filters = dy.shape
                flat = dy.reshape(n * h * w, filters)
                grads = {"weight": (rows.T @ flat).reshape(p["weight"].shape), "bias": flat.sum(axis=0)}
                if i == 0:
                    return None, grads
                columns = (flat @ p["weight"].reshape(-1, filters).T).reshape(n, h, w, 3, 3, -1)
                return inplace.col2im(columns, padded), grads
            case "norm":
                centred, inv_std = cache
                rows = dy.reshape(centred.shape)
                dscale, dshift = np.einsum("ij,ij->j", rows, centred) * inv_std, rows.sum(axis=0)
                dx = centred * (-dscale * inv_std / len(rows))
                dx += rows
                dx -= dshift / len(rows)
                dx *= p["scale"] * inv_std
                return dx.reshape(dy.shape), {"scale": dscale, "shift": dshift}
            case "relu":
                return dy * (cache > 0), {}
            case "dropout":
                return dy * (cache * np.float32(1 / (1 - arguments[0]))), {}
            case "pool":
                dx = np.empty_like(cache[0])
                inplace.max_pool_backward(dy, *cache, dx)
                return dx, {}
            case "flatten":
                return dy.reshape(cache), {}

    def epoch(chosen):
        total = 0.0
        for index in chosen:
            signal, caches, grads = x[index], [], {}
            for i in range(len(net.layers)):
                signal, cache = forward(i, signal)
                caches.append(cache)
            dy = np.empty_like(signal)
            total += inplace.softmax_cross_entropy(signal, y[index], dy)
            for i in reversed(range(len(net.layers))):
                dy, grads[i] = backward(i, dy, caches[i])
            t = next(counts)
            for param, i, name, state, a, b in memory:
                take(param, grads[i][name], *state, t=t, a=a, b=b)
        return total / len(chosen)

    return epoch


# ---- All of them --------------------------------------------------------------------------------------------


def trainers(net, *, compiled=False):
    """Makers of all that can train a net, by name. One that lacks its library raises ImportError."""
    images = len(net.shape) == 3
    made = {"fastopt": fastopt_trainer, "PyTorch": torch_trainer}
    if images:
        made["PyTorch channels-last"] = functools.partial(torch_trainer, channels_last=True)
    if compiled:
        made["PyTorch compiled"] = functools.partial(torch_trainer, compiled=True)
        if images:
            made["PyTorch compiled channels-last"] = functools.partial(torch_trainer, compiled=True, channels_last=True)
    if "block" in {kind for kind, *_ in net.layers}:
        return {name: functools.partial(make, net) for name, make in made.items()}
    made["JAX"] = jax_trainer
    if not images and {kind for kind, *_ in net.layers} == {"dense", "relu"}:
        made["scikit-learn"] = sklearn_trainer
    made["NumPy"] = numpy_trainer
    return {name: functools.partial(make, net) for name, make in made.items()}
