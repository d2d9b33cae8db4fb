"""Images with channels second, against PyTorch; places for results; hints to those who forget to say so."""

import inspect
import warnings

import numpy as np
import pytest

import fastopt
from fastopt import cases, functional, nn
from fastopt.functional import images

TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-11}
NCHW = {"layout": "nchw"}


def test_all_functions_of_images_take_a_layout():
    for name in {*images.__all__, "group_norm_forward", "instance_norm_forward", "batch_norm_forward"} - {
        "winner_type"
    }:
        assert inspect.signature(getattr(functional, name)).parameters["layout"].default is None, name


# ---- PyTorch ----------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def near(ours, theirs):
    """With the type, the shape and the order in memory that NumPy's users expect."""
    theirs = theirs.detach().numpy()
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert ours.flags.c_contiguous
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE[ours.dtype] * np.abs(theirs).max(initial=0))


class Arrays:
    """Draws arrays for us, and tensors with gradients for PyTorch."""

    def __init__(self, torch, rng, dtype):
        self.torch, self.rng, self.dtype = torch, rng, dtype

    def __call__(self, *shape):
        array = self.rng.standard_normal(shape).astype(self.dtype)
        return array, self.torch.tensor(array, requires_grad=True)


@pytest.fixture
def draw(torch, rng, dtype):
    return Arrays(torch, rng, dtype)


# Shape, window, filters, stride, padding and dilation.
CONVOLUTIONS = [
    ((2, 3, 8, 9), (3, 3), 16, (1, 1), (1, 1), (1, 1)),
    ((2, 3, 9, 7), (3, 2), 5, (1, 1), (0, 1), (1, 1)),
    ((3, 5, 11, 8), (3, 3), 16, (2, 2), (1, 1), (1, 1)),
    ((1, 1, 13, 9), (5, 2), 7, (3, 1), (2, 0), (1, 1)),
    ((2, 4, 9, 11), (3, 2), 33, (2, 3), (3, 4), (2, 3)),
    ((2, 16, 6, 5), (1, 1), 48, (2, 1), (0, 0), (1, 1)),
    ((1, 16, 3, 400), (3, 3), 16, (1, 1), (1, 1), (1, 1)),
    ((0, 3, 5, 5), (3, 3), 4, (2, 2), (1, 1), (1, 1)),
]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("shape", "size", "k", "stride", "padding", "dilation"), CONVOLUTIONS, ids=str)
def test_convolutions_of_pytorch(shape, size, k, stride, padding, dilation, relu, draw, torch):
    (x, tx), (weight, tw), (bias, tb) = draw(*shape), draw(k, shape[1], *size), draw(k)
    how = {"stride": stride, "padding": padding, "dilation": dilation}
    expected = torch.nn.functional.conv2d(tx, tw, tb, **how)
    y = functional.conv2d(x, weight, bias, **how, **NCHW)
    near(y, expected)
    near(functional.conv2d(x, weight, bias, **how, relu=True, **NCHW), torch.relu(expected))
    if relu:
        return
    dy, tdy = draw(*y.shape)
    expected.backward(tdy)
    near(functional.conv2d_input_grad(dy, weight, x.shape, **how, **NCHW), tx.grad)
    dbias = np.empty_like(bias)
    near(functional.conv2d_weight_grad(x, dy, size, **how, dbias=dbias, **NCHW), tw.grad)
    near(dbias, tb.grad)


@pytest.mark.parametrize("at_a_time", [1, 2000, 1 << 22])
def test_some_images_at_a_time(at_a_time, draw, torch, monkeypatch):
    monkeypatch.setattr(images, "_AT_A_TIME", at_a_time)
    (x, tx), (weight, tw) = draw(7, 9, 8, 5), draw(3, 2, 5, 7)
    expected = torch.nn.functional.conv2d(tx.permute(0, 3, 1, 2), tw.permute(3, 2, 0, 1), stride=2, padding=1)
    y = functional.conv2d(x, weight, stride=2, padding=1)
    near(y, expected.permute(0, 2, 3, 1))
    dy, tdy = draw(*y.shape)
    expected.backward(tdy.permute(0, 3, 1, 2))
    near(functional.conv2d_input_grad(dy, weight, x.shape, 1, stride=2), tx.grad)
    dbias = np.empty(7, x.dtype)
    near(functional.conv2d_weight_grad(x, dy, (3, 2), 2, 1, dbias=dbias), tw.grad)
    near(dbias, tdy.sum(dim=(0, 1, 2)))


@pytest.mark.parametrize(
    ("shape", "size", "stride", "padding", "dilation"),
    [(shape, *how) for shape, *how in ((s, z, t, p, d) for s, z, _, t, p, d in CONVOLUTIONS[:-2])],
    ids=str,
)
def test_depthwise_convolutions_of_pytorch(shape, size, stride, padding, dilation, draw, torch):
    (x, tx), (weight, tw) = draw(*shape), draw(shape[1], 1, *size)
    how = {"stride": stride, "padding": padding, "dilation": dilation}
    expected = torch.nn.functional.conv2d(tx, tw, None, **how, groups=shape[1])
    y = functional.depthwise_forward(x, weight, **how, **NCHW)
    near(y, expected)
    dy, tdy = draw(*y.shape)
    expected.backward(tdy)
    dx, dweight = functional.depthwise_backward(dy, x, weight, **how, **NCHW)
    near(dx, tx.grad)
    near(dweight, tw.grad)
    nothing, dweight = functional.depthwise_backward(dy, x, weight, **how, input_grad=False, **NCHW)
    assert nothing is None
    near(dweight, tw.grad)


@pytest.mark.parametrize(("size", "stride"), [((2, 2), (2, 2)), ((3, 2), (2, 1)), ((1, 4), (1, 3))])
def test_pooling_of_pytorch(size, stride, draw, torch):
    x, tx = draw(2, 3, 9, 7)
    expected = torch.nn.functional.max_pool2d(tx, size, stride)
    y, winner = functional.max_pool_forward(x, size, stride, **NCHW)
    near(y, expected)
    assert winner.shape == y.shape
    dy, tdy = draw(*y.shape)
    expected.backward(tdy)
    near(functional.max_pool_backward(dy, winner, x.shape, size, stride, **NCHW), tx.grad)

    tx.grad = None
    expected = torch.nn.functional.avg_pool2d(tx, size, stride)
    near(functional.average_pool_forward(x, size, stride, **NCHW), expected)
    expected.backward(tdy)
    near(functional.average_pool_backward(dy, x.shape, size, stride, **NCHW), tx.grad)


@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation"),
    [((3, 3), 1, 1, 1), ((3, 2), (2, 1), (0, 2), 1), ((2, 3), (1, 2), 2, (3, 2)), (1, 1, 0, 1)],
)
def test_patches_of_pytorch(size, stride, padding, dilation, draw, torch):
    x, tx = draw(2, 5, 9, 7)
    how = {"stride": stride, "padding": padding, "dilation": dilation}
    expected = torch.nn.functional.unfold(tx, size, **how)
    columns = functional.im2col(x, size, **how, **NCHW)
    assert columns.shape == functional.patches_shape(x.shape, size, **how, **NCHW)
    n, oh, ow, *patch = columns.shape
    near(np.ascontiguousarray(columns.reshape(n, oh * ow, -1).transpose(0, 2, 1)), expected)
    d = draw(*columns.shape)[0]
    rows = torch.tensor(d.reshape(n, oh * ow, int(np.prod(patch))).transpose(0, 2, 1).copy())
    near(functional.col2im(d, x.shape, size, **how, **NCHW), torch.nn.functional.fold(rows, (9, 7), size, **how))


@pytest.mark.parametrize("shape", [(5, 6), (4, 6, 5), (3, 6, 7, 5), (2, 12, 1, 1), (2, 6, 3, 2, 4)], ids=str)
@pytest.mark.parametrize("groups", [1, 3, None])
def test_group_and_instance_norm_of_pytorch(shape, groups, draw, torch):
    (x, tx), (scale, ts), (shift, th) = draw(*shape), draw(shape[1]), draw(shape[1])
    # PyTorch has none of instances of one value: groups of one channel are the same.
    expected = torch.nn.functional.group_norm(tx, groups or shape[1], ts, th, eps=1e-3)
    if groups is None:
        y, cache = functional.instance_norm_forward(x, scale, shift, eps=1e-3, **NCHW)
    else:
        y, cache = functional.group_norm_forward(x, groups, scale, shift, eps=1e-3, **NCHW)
    near(y, expected)
    dy, tdy = draw(*shape)
    expected.backward(tdy)
    out = np.empty_like(x)
    gradients = functional.group_norm_backward(dy, cache, out=out)
    assert gradients[0] is out
    for gradient, tensor in zip(gradients, (tx, ts, th), strict=True):
        if groups is None and x[0, 0].size == 1:
            np.testing.assert_allclose(gradient, tensor.grad, atol=1e-3 if x.dtype == np.float32 else 1e-10)
        else:
            near(gradient, tensor.grad)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(8, 6), (4, 6, 5), (3, 6, 7, 5)], ids=str)
def test_batch_norm_of_pytorch(shape, training, draw, torch, rng):
    (x, tx), (scale, ts), (shift, th) = draw(*shape), draw(shape[1]), draw(shape[1])
    mean, var = rng.uniform(0.5, 2, (2, shape[1])).astype(x.dtype)
    running = torch.tensor(mean), torch.tensor(var)
    expected = torch.nn.functional.batch_norm(tx, *running, ts, th, training=training)
    y, cache = functional.batch_norm_forward(x, scale, shift, mean, var, training=training, **NCHW)
    near(y, expected)
    for ours, theirs in zip((mean, var), running, strict=True):
        near(ours, theirs)
    if training:
        dy, tdy = draw(*shape)
        expected.backward(tdy)
        for gradient, tensor in zip(functional.batch_norm_backward(dy, cache), (tx, ts, th), strict=True):
            near(gradient, tensor.grad)


# ---- The same by either layout ----------------------------------------------------------------------


#: Of each case that takes a layout, the axes of its arrays with channels second, in the order of channels last.
SECOND = {"x": (0, 3, 1, 2), "dy": (0, 3, 1, 2), "winner": (0, 3, 1, 2), "weight": (3, 2, 0, 1), "out": (0, 3, 1, 2),
          "columns": (0, 1, 2, 5, 3, 4)}  # fmt: skip
WITH_LAYOUT = [case for case in cases.LAYERS.values() if case.name.split()[0] in images.__all__]


def second(case, name, array):
    if name in ("weight", "dweight") and array.ndim == 3:
        return array.transpose(2, 0, 1)[:, None]
    order = SECOND.get(name)
    if name == "out":
        order = {"im2col": SECOND["columns"], "conv2d_weight_grad": SECOND["weight"]}.get(case.name.split()[0], order)
    return array if order is None or array.ndim != len(order) else array.transpose(order)


def by_layout(case, arguments, convert):
    given = {}
    for name, value in arguments.items():
        given[name] = convert(second(case, name, value)) if isinstance(value, np.ndarray) else value
    if "shape" in given:
        given["shape"] = tuple(given["shape"][axis] for axis in (0, 3, 1, 2))
    return given | NCHW


@pytest.mark.parametrize("case", WITH_LAYOUT, ids=str)
def test_either_layout_has_the_same_bits(case, edges, dtype, same_bits, guarded):
    """Into new arrays and into given ones; what is read may have any strides."""
    for size in edges(case):
        for options in case.options:
            arguments = case.values(dtype, size, options)
            results = case.run(cases.map_arrays(np.copy, arguments))
            expected = [second(case, name, a) for name, a in zip(case.outputs, results, strict=False)]
            stated = case.run(cases.map_arrays(np.copy, arguments) | {"layout": "nhwc"})
            for one, other in zip(stated, results, strict=True):
                same_bits(one, other)
            for convert in (np.ascontiguousarray, lambda a: a):
                given = by_layout(case, cases.map_arrays(np.copy, arguments), convert)
                given |= {
                    name: np.ascontiguousarray(given[name]) for name in case.updates if given.get(name) is not None
                }
                for one, other in zip(case.run(given), expected, strict=False):
                    same_bits(one, np.ascontiguousarray(other))
            out = {name: guarded(np.zeros_like(np.ascontiguousarray(a)), 1)
                   for name, a in zip(case.outputs, expected, strict=False)}  # fmt: skip
            for (name, place), one, other in zip(out.items(), case.run(given | out), expected, strict=False):
                assert one is place, name
                same_bits(one, np.ascontiguousarray(other))
            guarded.check()


def test_shapes_by_either_layout():
    shape, weight = (2, 5, 9, 7), (16, 5, 3, 2)
    for how in ((), ((2, 1), 1, 3)):
        last = functional.patches_shape((2, 9, 7, 5), (3, 2), *how)
        assert functional.patches_shape(shape, (3, 2), *how, **NCHW) == (*last[:3], 5, 3, 2)
        assert functional.patches_shape((2, 9, 7, 5), (3, 2), *how, layout="nhwc") == last
    assert functional.packed_shape(weight, **NCHW) == functional.packed_shape((3, 2, 5, 16))
    assert functional.winograd_fits((32, 16, 3, 3), **NCHW)
    assert not functional.winograd_fits((3, 3, 16, 32), **NCHW)
    assert functional.conv2d_fits((1, 16, 3, 300), 16, 3, **NCHW)
    assert not functional.conv2d_fits((1, 16, 3, 400), 16, 3, **NCHW)


def test_what_layouts_refuse(refuses):
    x, weight, y = np.ones((2, 3, 9, 8)), np.ones((5, 3, 2, 3)), np.zeros((2, 5, 8, 6))
    conv2d = functional.conv2d
    refuses(lambda: conv2d(x, weight, layout="NCHW"), "layout must be one of 'nhwc', 'nchw'; got 'NCHW'")
    refuses(lambda: conv2d(x[0], weight, **NCHW), r"x must have shape \(n, c, h, w\), got \(3, 9, 8\)")
    refuses(lambda: conv2d(x, weight[0], **NCHW), r"weight must have shape \(k, c, kh, kw\), got")
    refuses(lambda: conv2d(x.tolist(), weight, **NCHW), "x must be a NumPy array, got list")
    refuses(lambda: conv2d(x.astype(int), weight, **NCHW), "x must be float32 or float64, got int64")
    refuses(
        lambda: conv2d(x, weight[:, 1:], **NCHW), r"weight must have shape .* \(channels last, to which layout='nchw'"
    )
    refuses(lambda: conv2d(x, weight, out=y[:, :4].copy(), **NCHW), "out must have shape .*channels last")
    refuses(lambda: conv2d(x, weight, out=y.transpose(0, 1, 3, 2), **NCHW), "out must be C-contiguous")
    memory = np.ones(x.size + y.size)
    overlapping = {"x": memory[: x.size].reshape(x.shape), "out": memory[x.size - 8 : -8].reshape(y.shape)}
    refuses(lambda: conv2d(**overlapping, weight=weight, **NCHW), "out and x must not overlap in memory", memory)
    frozen = y.copy()
    frozen.flags.writeable = False
    refuses(lambda: conv2d(x, weight, out=frozen, **NCHW), "out must be writable")
    bias = np.ones(5)
    refuses(lambda: functional.conv2d_weight_grad(x, y, (2, 3), dbias=bias[:4], **NCHW), "dbias must", bias)
    refuses(
        lambda: functional.conv2d_input_grad(y, weight, (2, 3, 9), **NCHW), r"shape must be \(n, h, w, c\), got .*last"
    )
    refuses(lambda: functional.depthwise_forward(x, weight[:3, :2], **NCHW), r"weight must have shape \(c, 1, kh, kw\)")
    refuses(lambda: functional.group_norm_forward(x[0, 0, 0], 1, **NCHW), r"x must have shape \(n, c, …\), got \(8,\)")
    refuses(lambda: functional.batch_norm_forward(x, axis=-1, **NCHW), "axis must be 1 with layout='nchw', or absent")
    refuses(lambda: functional.batch_norm_forward(x, max_pool=2, **NCHW), "axis must be -1 with max_pool, got 1")
    refuses(lambda: functional.batch_norm_forward(x, layout=1), "layout must be one of")
    y, cache = functional.group_norm_forward(x, 3, **NCHW)
    refuses(lambda: functional.group_norm_backward(y, cache._replace(layout="last")), "layout must be one of")
    refuses(lambda: functional.group_norm_backward(y, cache, out=y), "out and dy must not overlap", y)


# ---- Hints ------------------------------------------------------------------------------------------


X = np.ones((2, 3, 32, 32), np.float32)
GRAY = np.ones((2, 1, 28, 28), np.float32)
W = np.ones((16, 3, 5, 5), np.float32)
LAST, V3 = np.ones((2, 8, 9, 5)), np.ones(3, np.float32)
HINTS = [
    (lambda: functional.conv2d(X, W), r"weight must have shape \(kh, kw, 32, k\).* write layout='nchw'"),
    (lambda: functional.conv2d(X, np.ones((5, 5, 3, 16), np.float32)), "weight .* write layout='nchw'"),
    (lambda: functional.conv2d(LAST, np.ones((7, 5, 3, 3))), r"weight .*write .*\(weight\.transpose\(2"),
    (lambda: functional.conv2d_input_grad(X, W, (2, 3, 36, 36)), "weight must have shape .* write layout='nchw'"),
    (lambda: functional.max_pool_forward(GRAY, 2), "size must be at most .* write layout='nchw'"),
    (lambda: functional.average_pool_forward(X, 4), "size must be at most .* write layout='nchw'"),
    (lambda: functional.im2col(X, 5), "size must be at most .* write layout='nchw'"),
    (lambda: functional.conv2d_weight_grad(X, X, 5), "size must be at most .* write layout='nchw'"),
    (lambda: functional.depthwise_forward(X, np.ones((3, 1, 3, 3), np.float32)), "weight .* write layout='nchw'"),
    (lambda: functional.depthwise_forward(np.ones((2, 3, 7, 8)), np.ones((3, 3, 3))), "weight .* write layout='nchw'"),
    (lambda: functional.group_norm_forward(X, 3), "groups must divide .* write layout='nchw'"),
    (lambda: functional.group_norm_forward(X, 1, V3, V3), r"scale must have shape \(32,\), got \(3,\).* layout='nchw'"),
    (lambda: functional.instance_norm_forward(X, None, V3), "shift must have .* layout='nchw'"),
    (lambda: functional.batch_norm_forward(X, V3, V3), "scale must have .* layout='nchw'"),
    (lambda: functional.batch_norm_forward(X, None, None, V3, V3), "running_mean must have .* layout='nchw'"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), HINTS)
@pytest.mark.filterwarnings("ignore:x of shape:UserWarning")
def test_refusals_say_what_to_write(call, message, refuses):
    refuses(call, message)


#: Calls with n images: what is looked at is memoised, so n is another one each time.
GUESSED = [
    lambda n, **how: functional.max_pool_forward(np.ones((n, 3, 32, 32)), 3, **how),
    lambda n, **how: functional.average_pool_forward(np.ones((n, 1, 28, 28)), (1, 2), **how),
    lambda n, **how: functional.im2col(np.ones((n, 3, 32, 32)), 3, 1, 1, **how),
    lambda n, **how: functional.patches_shape((n, 3, 32, 32), 2, **how),
    lambda n, **how: functional.group_norm_forward(np.ones((n, 3, 32, 32)), 1, **how),
    lambda n, **how: functional.instance_norm_forward(np.ones((n, 1, 28, 28)), **how),
    lambda n, **how: functional.batch_norm_forward(np.ones((n, 3, 32, 32)), **how),
    lambda n, **how: functional.conv2d(np.ones((n, 24, 20, 3)), np.ones((16, 3, 3, 3)), **how),
]


@pytest.mark.parametrize("number", range(len(GUESSED)))
def test_what_goes_through_by_accident_warns(number):
    """At the caller's line, and not where the layout is stated."""
    call, n = GUESSED[number], 10 + 2 * number
    with pytest.warns(fastopt.LayoutWarning, match=r"looks like \((n|k), c, .* write layout='nhwc'") as caught:
        call(n)
    assert {warning.filename for warning in caught} == {__file__}
    with warnings.catch_warnings(action="error"):
        call(n + 1, layout="nhwc")
        with pytest.raises(UserWarning, match="looks like"):
            call(n + 100)


def test_models_of_such_images_get_the_hint():
    for shape in ((3, 32, 32), (1, 28, 28)):
        with pytest.warns(UserWarning, match=r"x of shape \(1, ., .*\) looks like \(n, c, h, w\)"):
            nn.Sequential([nn.Conv2D(16, 3)], shape)
    with pytest.raises(ValueError, match=r"size must be at most .* if x is \(n, c, h, w\)"):
        nn.Sequential([nn.MaxPool2D(2)], (1, 28, 28))


def test_no_alarm_where_images_are_as_they_should_be():
    """Of usual shapes, and of those that conversions pass on."""
    with warnings.catch_warnings(action="error"):
        for shape in (
            (9, 28, 28, 1),
            (9, 32, 32, 3),
            (2, 1, 9, 16),
            (2, 3, 4, 4),
            (2, 3, 40, 16),
            (2, 4, 8, 8),
            (2, 1, 1, 64),
        ):
            functional.max_pool_forward(np.ones(shape), 1)
            functional.instance_norm_forward(np.ones(shape))
            functional.batch_norm_forward(np.ones(shape))
        functional.max_pool_forward(np.ones((2, 8, 3, 8)), 2, **NCHW)
        functional.conv2d(np.ones((2, 8, 3, 8)), np.ones((8, 8, 3, 3)), **NCHW)
        functional.group_norm_forward(np.ones((2, 3, 8, 8)), 2, np.ones(8))
        functional.batch_norm_forward(np.ones((2, 3, 8, 8)), axis=-1)
        functional.batch_norm_forward(np.ones((2, 3, 8)))
        functional.conv2d(np.ones((1, 24, 20, 3)), np.ones((3, 3, 3, 3)))
        nn.Sequential([nn.Conv2D(16, 3), nn.MaxPool2D()], (32, 32, 3))
