"""Weights to and from PyTorch: the same numbers from the same weights."""

import numpy as np
import pytest

from fastopt import nn

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def alive(module):
    """A module in inference, with no norm at its initial values."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor))
    return module.eval()


def outputs(module, x):
    """Of inputs as ours."""
    with torch.no_grad():
        y = module(torch.tensor(np.moveaxis(x, -1, 1) if x.ndim > 2 else x)).numpy()
    return np.moveaxis(y, 1, -1) if y.ndim > 2 else y


def check(model, module, rng, atol=1e-6):
    """Both ways: what PyTorch has comes out of the model, and what the model has out of PyTorch."""
    x = rng.normal(size=(5, *model.input_shape)).astype(model.dtype)
    wanted = outputs(module, x)
    scale = max(1.0, np.abs(wanted).max())
    found = nn.load_torch(model, module.state_dict())
    np.testing.assert_allclose(model.predict(x) / scale, wanted / scale, rtol=0, atol=atol)
    for array in (*model.params.values(), *model.state.values()):
        array *= rng.uniform(0.9, 1.1, array.shape).astype(array.dtype)
    module.load_state_dict(nn.to_torch_state(model, like=module.state_dict()))
    wanted = outputs(module, x)
    scale = max(1.0, np.abs(wanted).max())
    np.testing.assert_allclose(model.predict(x) / scale, wanted / scale, rtol=0, atol=atol)
    return found


def mlp():
    return torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 8, bias=False),
        torch.nn.LayerNorm(8), torch.nn.GELU(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3),
    )  # fmt: skip


def our_mlp():
    dense = [nn.Dense(16), nn.BatchNorm(), nn.ReLU(), nn.Dense(8), nn.LayerNorm(), nn.GELU(), nn.Dense(3)]
    return nn.Sequential([nn.Standardize(), *dense], (6,))


def test_an_mlp(rng):
    module, model = alive(mlp()), our_mlp()
    x = rng.normal(size=(5, 6)).astype(np.float32)
    found = nn.load_torch(model, module.state_dict())
    np.testing.assert_allclose(model.predict(x), outputs(module, x), atol=1e-6)
    assert found == {"1": "0", "2": "1", "4": "3", "5": "4", "7": "7"}
    assert not model.params["4.bias"].any()
    module.load_state_dict(nn.to_torch_state(model, like=module.state_dict()))
    model.params["4.bias"] += 1
    with pytest.raises(ValueError, match="layer 4 Dense and 3 must both have bias, got weight"):
        nn.to_torch_state(model, like=module.state_dict())


def cnn():
    t = torch.nn
    return t.Sequential(
        t.Conv2d(3, 8, 3, padding=1), t.BatchNorm2d(8), t.ReLU(), t.MaxPool2d(3, 2, 1), t.Conv2d(8, 16, 3, groups=2),
        t.PReLU(16), t.GroupNorm(4, 16), t.ConvTranspose2d(16, 6, 3, 2, 1, 1), t.InstanceNorm2d(6, affine=True),
        t.Flatten(), t.BatchNorm1d(600), t.Linear(600, 10),
    )  # fmt: skip


def our_cnn():
    layers = [
        nn.Conv2D(8), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(3, 2, 1), nn.Conv2D(16, 3, padding="valid", groups=2),
        nn.PReLU(), nn.GroupNorm(4), nn.Conv2DTranspose(6, 3, 2, 1, 1), nn.InstanceNorm(),
        nn.Flatten(), nn.BatchNorm(), nn.Dense(10),
    ]  # fmt: skip
    return nn.Sequential(layers, (14, 14, 3))


def test_a_cnn(rng):
    check(our_cnn(), alive(cnn()), rng)


def test_a_convolution_of_sequences(rng):
    module = torch.nn.Sequential(torch.nn.Conv1d(3, 4, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(28, 2))
    check(nn.Sequential([nn.Conv1D(4), nn.Flatten(), nn.Dense(2)], (7, 3)), alive(module), rng)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_weight_norm_by_both_names(rng):
    def ours():
        return nn.Sequential([nn.WeightNorm(nn.Conv2D(4)), nn.Flatten(), nn.WeightNorm(nn.Dense(2))], (3, 3, 2))

    modern = torch.nn.utils.parametrizations.weight_norm
    for norm in (modern, torch.nn.utils.weight_norm):
        conv, linear = torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.Linear(36, 2)
        check(ours(), alive(torch.nn.Sequential(norm(conv), torch.nn.Flatten(), norm(linear))), rng)


def test_layer_norm_of_images_and_a_table(rng):
    module = torch.nn.Sequential(torch.nn.LayerNorm((3, 4, 5)), torch.nn.Flatten(), torch.nn.Linear(60, 2))
    check(nn.Sequential([nn.LayerNorm(axes=3), nn.Flatten(), nn.Dense(2)], (4, 5, 3)), alive(module), rng)
    table, model = torch.nn.Embedding(7, 3), nn.Sequential([nn.Embedding(7, 3)], (2,))
    nn.load_torch(model, table.state_dict())
    np.testing.assert_array_equal(model.predict(np.array([[1, 6]]))[0], table.weight.detach().numpy()[[1, 6]])


class Block(torch.nn.Module):
    def __init__(self, before, filters, stride):
        super().__init__()
        t = torch.nn
        self.conv1, self.bn1 = t.Conv2d(before, filters, 3, stride, 1, bias=False), t.BatchNorm2d(filters)
        self.conv2, self.bn2 = t.Conv2d(filters, filters, 3, 1, 1, bias=False), t.BatchNorm2d(filters)
        self.downsample = None
        if stride > 1:
            self.downsample = t.Sequential(t.Conv2d(before, filters, 1, stride, bias=False), t.BatchNorm2d(filters))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet20(torch.nn.Module):
    """With the names of torchvision, of which a file keeps no order."""

    def __init__(self):
        super().__init__()
        t = torch.nn
        self.conv1, self.bn1 = t.Conv2d(3, 16, 3, 1, 1, bias=False), t.BatchNorm2d(16)
        self.layer1 = t.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = t.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = t.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.fc = t.Linear(64, 10)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3)))


def our_resnet20():
    def conv(filters, stride=1, size=3):
        return [nn.Conv2D(filters, size, stride), nn.BatchNorm()]

    def block(filters, stride):
        body = nn.Sequential([*conv(filters, stride), nn.ReLU(), *conv(filters)])
        return nn.Residual(body, nn.Sequential(conv(filters, stride, 1)) if stride > 1 else None)

    stages = [(16, 1)] * 3 + [(32, 2)] + [(32, 1)] * 2 + [(64, 2)] + [(64, 1)] * 2
    layers = [*conv(16), nn.ReLU(), *(block(*stage) for stage in stages), nn.GlobalAveragePool2D(), nn.Dense(10)]
    return nn.Sequential(layers, (32, 32, 3))


@pytest.mark.parametrize("form", ["state", "file"])
def test_a_resnet20(form, rng, tmp_path):
    module, model = alive(ResNet20()), our_resnet20()
    state = module.state_dict()
    if form == "file":
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_file(state, tmp_path / "resnet.safetensors")
        state = tmp_path / "resnet.safetensors"
    found = nn.load_torch(model, state)
    assert found["6.shortcut.0"] == "layer2.0.downsample.0"
    assert found["6.body.1"] == "layer2.0.bn1"
    x = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
    wanted = outputs(module, x)
    np.testing.assert_allclose(model.predict(x), wanted, rtol=0, atol=1e-6 * max(1, np.abs(wanted).max()))


def test_a_file_that_pytorch_reads(rng, tmp_path):
    numpy, theirs = pytest.importorskip("safetensors.numpy"), pytest.importorskip("safetensors.torch")
    model, module = our_cnn(), alive(cnn())
    numpy.save_file(nn.to_torch_state(model), tmp_path / "model.safetensors")
    module.load_state_dict(theirs.load_file(tmp_path / "model.safetensors"), strict=False)
    x = rng.normal(size=(3, 14, 14, 3)).astype(np.float32)
    np.testing.assert_allclose(model.predict(x), outputs(module, x), atol=1e-5)


def test_shared_layers(rng):
    linear = torch.nn.Linear(4, 4)
    module = torch.nn.Sequential(linear, torch.nn.Tanh(), linear, torch.nn.Linear(4, 2))
    dense = nn.Dense(4)
    found = check(nn.Sequential([dense, nn.Tanh(), dense, nn.Dense(2)], (4,)), module, rng)
    assert found == {"0": "0", "3": "3"}


def test_names_where_order_does_not_tell(rng):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.last(torch.relu(self.first(x)))

    module, model = Net(), nn.Sequential([nn.Dense(4, activation="relu"), nn.Dense(4)], (4,))
    x = rng.normal(size=(3, 4)).astype(np.float32)
    nn.load_torch(model, module.state_dict())
    assert np.abs(model.predict(x) - outputs(module, x)).max() > 1e-3
    assert nn.load_torch(model, module.state_dict(), names={"0": "first"}) == {"0": "first", "1": "last"}
    np.testing.assert_allclose(model.predict(x), outputs(module, x), atol=1e-6)


def test_half_precision_and_double(rng):
    module = torch.nn.Linear(4, 3)
    model = nn.Sequential([nn.Dense(3)], (4,), dtype=np.float64)
    nn.load_torch(model, {"weight": module.weight.bfloat16(), "bias": module.bias.double()})
    np.testing.assert_array_equal(model.params["0.weight"], module.weight.bfloat16().float().detach().numpy().T)


# ---- Refusals ---------------------------------------------------------------------------------------------------


def _dense(*units):
    return nn.Sequential([nn.Dense(count) for count in units], (4,))


STATE = {"a.weight": np.ones((3, 4)), "a.bias": np.ones(3)}


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda: nn.load_torch(_dense(3, 2), STATE),
            r"as many matrices as the model, 2 \(0 Dense, 1 Dense\), got 1 \(a\)",
        ),
        (
            lambda: nn.load_torch(_dense(2), STATE),
            r"layer 0 Dense and a must fit: weight must have shape \(2, 4\), got",
        ),
        (
            lambda: nn.load_torch(_dense(3), STATE | {"a.mask": np.ones(1)}),
            "layer 0 Dense must have a place .* for mask",
        ),
        (lambda: nn.load_torch(_dense(3), STATE | {"n.weight": np.ones(3)}), "as many norms or slopes as the model, 0"),
        (
            lambda: nn.load_torch(_dense(3), STATE | {"x": np.ones(3)}),
            r"as many others as the model, 0 \(none\), got 1",
        ),
        (lambda: nn.load_torch(_dense(3), STATE, names={"1": "a"}), "names must be of layers among 0; got '1'"),
        (lambda: nn.load_torch(_dense(3), STATE, names={"0": "b"}), "names must give modules among a; got 'b' for '0'"),
        (lambda: nn.load_torch(_dense(3), {"a.weight": [1]}), "must be a tensor or an array of numbers, got list"),
        (lambda: nn.load_torch(_dense(3), 3), "state must be a state_dict or the path of a .safetensors file, got int"),
        (lambda: nn.load_torch(_dense(3), "model.pt"), r"write torch.load\(path, weights_only=True\)"),
        (lambda: nn.load_torch(nn.Dense(3), STATE), "model must be a Sequential, got Dense"),
        (lambda: nn.load_torch(nn.Sequential([nn.Dense(3)]), STATE), "must have an input_shape"),
        (
            lambda: nn.to_torch_state(nn.Sequential([nn.DecorrelatedBatchNorm()], (4,))),
            "0 Decorrelated.* no counterpart",
        ),
        (lambda: nn.to_torch_state(nn.Sequential([nn.Reshape((2, 2, 1))], (4,))), "0 Reshape.* no counterpart"),
    ],
)
def test_refusals(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act()


def test_nothing_is_changed_where_something_does_not_fit(rng, same_bits):
    model = _dense(3, 2)
    before = {name: array.copy() for name, array in model.params.items()}
    with pytest.raises(ValueError, match="layer 1 Dense and b must fit"):
        nn.load_torch(model, STATE | {"b.weight": np.ones((2, 4))})
    for name, array in model.params.items():
        same_bits(array, before[name])


def test_a_file_that_is_damaged(tmp_path):
    pytest.importorskip("safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"must be a .safetensors file"):
        nn.load_torch(_dense(3), tmp_path / "model.safetensors")
