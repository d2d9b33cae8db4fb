"""Layers against other libraries: PyTorch, autograd. Each is looked for, and may be absent."""

import numpy as np
import pytest

from fastopt import functional

# ---- PyTorch ----------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def assert_near(actual, expected, tolerance):
    """The relative error of the whole array, and of each element beside the largest."""
    expected = expected.detach().numpy() if hasattr(expected, "detach") else np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.linalg.norm(actual - expected) <= tolerance * np.linalg.norm(expected)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max(initial=0))


@pytest.mark.parametrize("shape", [(8, 3), (64, 40), (5, 7, 6), (4, 3, 5, 7), (2, 33, 8, 8)], ids=str)
@pytest.mark.parametrize("momentum", [0.1, 0.7])
def test_batch_norm_of_pytorch(dtype, shape, momentum, torch, rng):
    x, dy = rng.standard_normal((2, *shape)).astype(dtype)
    scale, shift, mean, var = rng.uniform(0.5, 2, (4, shape[1])).astype(dtype)
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, scale, shift)]
    running = [torch.tensor(a) for a in (mean, var)]

    def theirs(training):
        return torch.nn.functional.batch_norm(
            tensors[0], *running, *tensors[1:], training=training, momentum=momentum, eps=1e-4
        )

    tolerance = 1e-10 if dtype == np.float64 else 1e-5
    y, cache = functional.batch_norm_forward(x, scale, shift, mean, var, momentum=momentum, eps=1e-4, axis=1)
    expected = theirs(training=True)
    expected.backward(torch.tensor(dy))
    assert_near(y, expected, tolerance)
    for ours, tensor in zip((mean, var), running, strict=True):
        assert_near(ours, tensor, tolerance)
    for gradient, tensor in zip(functional.batch_norm_backward(dy, cache), tensors, strict=True):
        assert_near(gradient, tensor.grad, tolerance)
    y, _ = functional.batch_norm_forward(x, scale, shift, mean, var, training=False, eps=1e-4, axis=1)
    assert_near(y, theirs(training=False), tolerance)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(5, 4, 6, 3), (4, 9, 7, 16), (2, 8, 8, 33), (3, 5, 5, 64)], ids=str)
def test_batch_norm_of_pytorch_with_channels_last(dtype, shape, relu, torch, rng):
    """PyTorch in its channels-last format, the same bytes; its ReLU comes after."""
    x, dy = rng.standard_normal((2, *shape)).astype(dtype)
    scale, shift, mean, var = rng.uniform(0.5, 2, (4, shape[-1])).astype(dtype)
    images = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    assert images.is_contiguous(memory_format=torch.channels_last)
    tensors = [images, *(torch.tensor(a, requires_grad=True) for a in (scale, shift))]
    running = [torch.tensor(a) for a in (mean, var)]
    expected = torch.nn.functional.batch_norm(images, *running, *tensors[1:], training=True)
    expected = torch.relu(expected) if relu else expected
    expected.backward(torch.tensor(dy).permute(0, 3, 1, 2))
    y, cache = functional.batch_norm_forward(x, scale, shift, mean, var, axis=-1, relu=relu)
    gradients = functional.batch_norm_backward(dy, cache)
    tolerance = 1e-10 if dtype == np.float64 else 1e-5
    assert_near(y, expected.permute(0, 2, 3, 1), tolerance)
    assert_near(gradients[0], images.grad.permute(0, 2, 3, 1), tolerance)
    for ours, theirs in ((gradients[1], tensors[1].grad), (gradients[2], tensors[2].grad), (mean, running[0])):
        assert_near(ours, theirs, tolerance)


@pytest.mark.parametrize(("rows", "classes", "spread"), [(1, 2, 1), (64, 10, 3), (7, 1000, 20), (50, 33, 100)])
def test_cross_entropy_of_pytorch(dtype, rows, classes, spread, torch, rng):
    logits = (spread * rng.standard_normal((rows, classes))).astype(dtype)
    labels = rng.integers(classes, size=rows)
    tensor = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(tensor, torch.tensor(labels))
    expected.backward()
    loss, dlogits = functional.softmax_cross_entropy(logits, labels)
    tolerance = 1e-10 if dtype == np.float64 else 1e-5
    assert loss == pytest.approx(expected.item(), rel=tolerance)
    assert_near(dlogits, tensor.grad, tolerance)


@pytest.mark.parametrize(("size", "stride"), [((2, 2), (2, 2)), ((3, 3), (2, 2)), ((3, 2), (1, 2)), ((2, 2), (3, 3))])
def test_max_pool_of_pytorch(dtype, size, stride, torch, rng):
    x = rng.standard_normal((2, 9, 11, 5)).astype(dtype)
    tensor = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    expected = torch.nn.functional.max_pool2d(tensor, size, stride)
    y, winner = functional.max_pool_forward(x, size, stride)
    np.testing.assert_array_equal(y.transpose(0, 3, 1, 2), expected.detach())
    dy = rng.standard_normal(y.shape).astype(dtype)
    expected.backward(torch.tensor(dy.transpose(0, 3, 1, 2)))
    dx = functional.max_pool_backward(dy, winner, x.shape, size, stride)
    assert_near(dx.transpose(0, 3, 1, 2), tensor.grad, 1e-10 if dtype == np.float64 else 1e-6)


@pytest.mark.parametrize("size", [(2, 2), (3, 2)])
def test_batch_norm_relu_and_max_pool_of_pytorch(dtype, size, torch, rng):
    x, scale, shift = (rng.standard_normal(shape).astype(dtype) for shape in ((3, 9, 8, 21), 21, 21))
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, scale, shift)]
    normal = torch.nn.functional.batch_norm(tensors[0].permute(0, 3, 1, 2), None, None, *tensors[1:], training=True)
    expected = torch.nn.functional.max_pool2d(torch.relu(normal), size).permute(0, 2, 3, 1)
    y, cache = functional.batch_norm_forward(x, scale, shift, axis=-1, relu=True, max_pool=size)
    tolerance = 1e-10 if dtype == np.float64 else 1e-5
    assert_near(y, expected.detach(), tolerance)
    dy = rng.standard_normal(y.shape).astype(dtype)
    expected.backward(torch.tensor(dy))
    for gradient, tensor in zip(functional.batch_norm_backward(dy, cache), tensors, strict=True):
        assert_near(gradient, tensor.grad, tolerance)


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [((3, 3), (1, 1), (1, 1)), ((3, 2), (2, 1), (0, 2)), ((1, 1), (1, 1), (0, 0))]
)
def test_im2col_of_pytorch(dtype, size, stride, padding, torch, rng):
    x = rng.standard_normal((2, 9, 7, 5)).astype(dtype)
    columns = functional.im2col(x, size, stride, padding)
    n, out_h, out_w, _, _, c = columns.shape

    def as_unfolded(a):  # n, (c, kh, kw), (oh, ow)
        return a.transpose(0, 5, 3, 4, 1, 2).reshape(n, c * size[0] * size[1], out_h * out_w)

    unfolded = torch.nn.functional.unfold(torch.tensor(x.transpose(0, 3, 1, 2)), size, stride=stride, padding=padding)
    np.testing.assert_array_equal(as_unfolded(columns), unfolded)

    dy = rng.standard_normal(columns.shape).astype(dtype)
    folded = torch.nn.functional.fold(torch.tensor(as_unfolded(dy)), x.shape[1:3], size, stride=stride, padding=padding)
    image = functional.col2im(dy, x.shape, size, stride, padding)
    assert_near(image.transpose(0, 3, 1, 2), folded, 1e-10 if dtype == np.float64 else 1e-6)


def test_relu_of_pytorch(dtype, torch, rng):
    x, dy = rng.standard_normal((2, 1000)).astype(dtype)
    x[:3] = 0, -0.0, np.nan
    tensor = torch.tensor(x, requires_grad=True)
    expected = torch.relu(tensor)
    expected.backward(torch.tensor(dy))
    y = functional.relu_forward(x)
    np.testing.assert_array_equal(y, expected.detach())
    np.testing.assert_array_equal(functional.relu_backward(dy, y), tensor.grad)


# ---- autograd ---------------------------------------------------------------------------------------


@pytest.fixture
def autograd():
    return pytest.importorskip("autograd")


@pytest.mark.parametrize("shape", [(6, 3), (20, 40), (4, 3, 5, 5)], ids=str)
def test_batch_norm_by_autograd(shape, autograd, rng):
    numpy = autograd.numpy
    axes, per_channel = (0, *range(2, len(shape))), (1, -1, *[1] * (len(shape) - 2))
    x, dy = rng.standard_normal((2, *shape))
    scale, shift = rng.standard_normal((2, shape[1]))

    def formula(x, scale, shift):
        mean = numpy.mean(x, axis=axes, keepdims=True)
        var = numpy.mean((x - mean) ** 2, axis=axes, keepdims=True)
        y = (x - mean) / numpy.sqrt(var + 1e-5)
        return numpy.sum(dy * (y * scale.reshape(per_channel) + shift.reshape(per_channel)))

    _, cache = functional.batch_norm_forward(x, scale, shift, axis=1)
    wanted = autograd.grad(formula, (0, 1, 2))(x, scale, shift)
    for gradient, expected in zip(functional.batch_norm_backward(dy, cache), wanted, strict=True):
        assert_near(gradient, expected, 1e-10)


@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (13, 10), (3, 100)])
def test_softmax_cross_entropy_by_autograd(rows, classes, autograd, rng):
    numpy = autograd.numpy
    logits, labels = rng.standard_normal((rows, classes)), rng.integers(classes, size=rows)

    def formula(logits):
        log_sum = numpy.log(numpy.sum(numpy.exp(logits), axis=1))
        return numpy.mean(log_sum - logits[np.arange(rows), labels])

    loss, dlogits = functional.softmax_cross_entropy(logits, labels)
    assert loss == pytest.approx(formula(logits), rel=1e-12)
    assert_near(dlogits, autograd.grad(formula)(logits), 1e-10)
