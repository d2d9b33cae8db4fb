"""Every layer that PyTorch has, beside PyTorch in float64: outputs, and all gradients. And a whole ResNet-20."""

import copy

import numpy as np
import pytest

import fastopt
from fastopt import cases, nn


@pytest.fixture(autouse=True)
def torch():
    """PyTorch on one thread: more are no faster on arrays this small, and slow where others use the cores."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(before)


BESIDE = [case for case in cases.NN if case[2] is not None]
#: Of these, PyTorch has no layer: dropout draws other numbers, and the others only call layers, or reshape.
WITHOUT = {"Dropout", "VanillaDropout", "SpatialDropout", "Flatten", "Sequential", "Composite"}


def test_every_layer_class_has_a_case():
    ours = {name for name, cls in nn.Layer.classes.items() if cls.__module__.startswith("fastopt.") and name[0] != "_"}
    assert ours - WITHOUT == {type(layer).__name__ for layer, *_ in BESIDE}


@pytest.mark.parametrize(("layer", "shape", "theirs"), BESIDE, ids=[f"{case[0]!r}-{case[1]}" for case in BESIDE])
def test_beside_torch(torch, layer, shape, theirs, rng):
    layer = copy.deepcopy(layer)
    layer.build(shape, rng, np.dtype(np.float64))
    for param in layer.params.values():
        param[...] = rng.normal(size=param.shape)
    is_table = isinstance(layer, nn.Embedding)
    x = rng.integers(9, size=(8, *shape)).astype(float) if is_table else 2 * rng.normal(size=(8, *shape))
    given = torch.tensor(x, requires_grad=not is_table)
    params = {name: torch.tensor(param, requires_grad=True) for name, param in layer.params.items()}
    wanted = theirs(torch, given, params)
    dy = rng.normal(size=wanted.shape)
    wanted.backward(torch.tensor(dy))

    y, cache = layer.forward(x, training=True)
    dx, grads = layer.backward(dy, cache)
    pairs = {"y": (y, wanted.detach()), **{name: (grads[name], p.grad) for name, p in params.items()}}
    if not is_table:
        pairs["x"] = dx, given.grad
    for name, (actual, expected) in pairs.items():
        expected = np.asarray(expected)
        assert actual.shape == expected.shape, name
        assert np.abs(actual - expected).max() <= 1e-10 * np.abs(expected).max(), name


# ---- ResNet-20 ------------------------------------------------------------------------------------------


def resnet20():
    """He et al. 2015, section 4.2, for images (32, 32, 3), with projections where the shape changes."""

    def conv_norm(filters, stride=1, size=3):
        return [nn.Conv2D(filters, size, stride), nn.BatchNorm()]

    def block(filters, stride):
        body = nn.Sequential([*conv_norm(filters, stride), nn.ReLU(), *conv_norm(filters)])
        return nn.Residual(body, nn.Sequential(conv_norm(filters, stride, size=1)) if stride > 1 else None)

    stages = [(16, 1), (16, 1), (16, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1)]
    layers = [*conv_norm(16), nn.ReLU(), *(block(*stage) for stage in stages)]
    layers += [nn.GlobalAveragePool2D(), nn.Dense(10, init="xavier")]
    return nn.Sequential(layers, (32, 32, 3), dtype=np.float64, seed=4)


def torch_resnet20(torch):
    """The same as modules of PyTorch, whose parameters come in the same order."""
    layers = torch.nn

    def conv_norm(before, filters, stride=1, size=3):
        return [layers.Conv2d(before, filters, size, stride, size // 2), layers.BatchNorm2d(filters)]

    class Block(layers.Module):
        def __init__(self, before, filters, stride):
            super().__init__()
            self.body = layers.Sequential(
                *conv_norm(before, filters, stride), layers.ReLU(), *conv_norm(filters, filters)
            )
            self.shortcut = layers.Sequential(*(conv_norm(before, filters, stride, size=1) if stride > 1 else ()))

        def forward(self, x):
            return torch.relu(self.body(x) + self.shortcut(x))

    blocks, before = [], 16
    for filters, stride in [(16, 1)] * 3 + [(32, 2)] + [(32, 1)] * 2 + [(64, 2)] + [(64, 1)] * 2:
        blocks.append(Block(before, filters, stride))
        before = filters
    tail = [layers.AdaptiveAvgPool2d(1), layers.Flatten(), layers.Linear(64, 10)]
    return layers.Sequential(*conv_norm(3, 16), layers.ReLU(), *blocks, *tail).double()


@pytest.mark.slow
def test_a_resnet_beside_torch(torch, rng):
    """Twenty steps of SGD with Nesterov momentum and weight decay, from the same weights on the same batches."""
    model, other = resnet20(), torch_resnet20(torch)
    theirs = list(other.parameters())
    assert len(theirs) == len(model.params)
    with torch.no_grad():
        for param, tensor in zip(model.params.values(), theirs, strict=True):
            axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[param.ndim]
            tensor.copy_(torch.tensor(param.transpose(axes)))
    options = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
    optimizer, their_optimizer = fastopt.Momentum(model.params, **options), torch.optim.SGD(theirs, **options)
    x, y = rng.normal(size=(4, 32, 32, 3)), rng.integers(10, size=4)
    losses, step_of_program = [], model.trainer(optimizer)
    for step in range(20):
        chosen = np.arange(2) + 2 * (step % 2)
        loss = step_of_program(x[chosen], y[chosen])

        their_optimizer.zero_grad()
        images = torch.tensor(x[chosen].transpose(0, 3, 1, 2))
        wanted = torch.nn.functional.cross_entropy(other(images), torch.tensor(y[chosen]))
        wanted.backward()
        their_optimizer.step()
        losses.append(loss)
        assert loss == pytest.approx(wanted.item(), abs=1e-6), step
    assert np.mean(losses[-4:]) < np.mean(losses[:4])  # it learns
    other.eval()
    with torch.no_grad():
        wanted = other(torch.tensor(x.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(model.predict(x), wanted, atol=1e-5)
