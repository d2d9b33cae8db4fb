"""Pooling, patches and convolutions: special values, lost digits, what does not fit."""

import numpy as np
import pytest

from fastopt import cases, functional, reference


def test_max_pool_of_nan(isa, dtype, rng):
    x = rng.standard_normal((2, 9, 9, 5)).astype(dtype)
    x[rng.random(x.shape) < 0.2] = np.nan
    x[rng.random(x.shape) < 0.2] = -np.inf
    expected, expected_winner = reference.max_pool_forward(x, (3, 3), (2, 2))
    y, winner = functional.max_pool_forward(x, 3, 2)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(winner, expected_winner)


def test_one_number_stands_for_height_and_width_and_the_stride_is_the_size(rng):
    x = rng.standard_normal((2, 7, 7, 3))
    expected = functional.max_pool_forward(x, (2, 2), (2, 2))
    for actual, wanted in zip(functional.max_pool_forward(x, 2), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)
    np.testing.assert_array_equal(functional.im2col(x, 3, 2, 1), functional.im2col(x, (3, 3), (2, 2), (1, 1)))


def test_col2im_is_the_transpose_of_im2col(dtype, edges, same_bits):
    case = cases.LAYERS["col2im"]
    for size in edges(case):
        arguments = case.values(dtype, size, {})
        columns, shape = arguments.pop("columns"), arguments.pop("shape")
        x = cases.whole(dtype)(*shape)
        assert columns.shape == functional.patches_shape(shape, **arguments)
        patches = functional.im2col(x, **arguments)
        assert np.vdot(patches, columns) == np.vdot(x, functional.col2im(columns, shape, **arguments))


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (2, 4, 4, 0)], ids=str)
def test_images_of_nothing(shape):
    y, winner = functional.max_pool_forward(np.empty(shape), 2)
    assert functional.max_pool_backward(y, winner, shape, 2).shape == shape
    columns = functional.im2col(np.empty(shape), 3, 1, 1)
    assert functional.col2im(columns, shape, 3, 1, 1).shape == shape


# ---- Convolutions ---------------------------------------------------------------------------------


def test_what_conv2d_takes_is_what_it_says(rng):
    for name in ("conv2d", "conv2d winograd"):
        for shape, size, filters, stride, padding in cases.LAYERS[name].edges:
            assert functional.conv2d_fits(shape, filters, size, stride, padding)
            assert functional.winograd_fits((*size, shape[3], filters), stride) or "winograd" not in name


def test_depthwise_without_the_gradient_of_its_input():
    case = cases.LAYERS["depthwise_backward"]
    arguments = case.arguments(cases.normal(), case.edges[1])
    dx, dweight = functional.depthwise_backward(**arguments, input_grad=False)
    assert dx is None
    np.testing.assert_array_equal(dweight, functional.depthwise_backward(**arguments)[1])


def test_winograd_loses_no_more_digits_than_sums_in_order(isa, rng):
    x, weight, dy = (
        rng.standard_normal(shape).astype(np.float64) for shape in ((4, 12, 12, 64), (3, 3, 64, 32), (4, 10, 10, 32))
    )
    x += 1
    own = [a.astype(np.float32) for a in (x, weight, dy)]
    for function, arrays in (
        (lambda x, w, dy, **o: functional.conv2d(x, w, **o), (x, weight, dy)),
        (lambda x, w, dy, **o: functional.conv2d_input_grad(dy, w, x.shape, **o), (x, weight, dy)),
        (lambda x, w, dy, **o: functional.conv2d_weight_grad(x, dy, 3, **o), (x, weight, dy)),
    ):
        exact = function(*arrays)
        for winograd in (False, True):
            off = np.abs(function(*own, winograd=winograd) - exact).max() / np.abs(exact).max()
            assert off < 3e-6


def test_conv2d_keeps_nan(isa, dtype):
    x, weight = np.ones((1, 9, 9, 2), dtype), np.ones((3, 3, 2, 16), dtype)
    x[0, 4, 4, 0] = np.nan
    y = functional.conv2d(x, weight, None, 1, 1, relu=True)
    reached = np.zeros((9, 9), bool)
    reached[3:6, 3:6] = True
    np.testing.assert_array_equal(np.isnan(y[0, :, :, 5]), reached)


def test_conv2d_refusals(rng):
    x, weight = rng.normal(size=(1, 5, 20, 64)), rng.normal(size=(3, 3, 64, 16))
    with pytest.raises(ValueError, match=r"weight must have shape \(kh, kw, 64, k\), got \(3, 3, 63, 16\)"):
        functional.conv2d(x, weight[:, :, 1:].copy(), None, 1, 1)
    for shape, stride in (((3, 3, 24, 16), 1), ((3, 2, 16, 16), 1), ((3, 3, 16, 16), 2), ((3, 3, 144, 16), 1)):
        with pytest.raises(ValueError, match="winograd must be False for a weight of shape"):
            functional.conv2d(np.ones((1, 5, 5, shape[2])), np.ones(shape), None, stride, winograd=True)
    with pytest.raises(ValueError, match="winograd must be False"):
        functional.conv2d_weight_grad(np.ones((1, 5, 5, 8)), np.ones((1, 3, 3, 16)), 3, winograd=True)
    with pytest.raises(ValueError, match="winograd must be False for a dilation of 2"):
        functional.conv2d(x, weight, dilation=2, winograd=True)
    with pytest.raises(ValueError, match="winograd must be False for a padding of more than 2"):
        functional.conv2d_input_grad(np.ones((1, 9, 9, 16)), np.ones((3, 3, 16, 16)), (1, 5, 5, 16), 3, winograd=True)


# ---- Depthwise convolutions -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (2, 4, 4, 0)], ids=str)
def test_depthwise_of_nothing(shape):
    x, weight = np.empty(shape), np.empty((3, 3, shape[3]))
    y = functional.depthwise_forward(x, weight)
    dx, dweight = functional.depthwise_backward(y, x, weight)
    assert dx.shape == shape
    assert not dweight.any()


def test_depthwise_refusals(refuses, rng):
    x, weight = rng.standard_normal((2, 5, 5, 4)), rng.standard_normal((3, 3, 4))
    forward, backward = functional.depthwise_forward, functional.depthwise_backward
    refuses(lambda: forward(x, weight[:, :, :3].copy()), "weight must have 4 channels, got shape")
    refuses(lambda: forward(x, weight[0]), "weight must have 3 dimensions")
    refuses(lambda: forward(x[0], weight), "x must have 4 dimensions")
    refuses(lambda: forward(x, weight, dilation=3), "size must be at most that of the padded image")
    refuses(lambda: backward(x, x, weight), r"dy must have shape \(2, 3, 3, 4\)", x)
    y = forward(x, weight)
    refuses(
        lambda: backward(y, x, weight, dweight=weight), "dweight and weight must not overlap|weight and dweight", weight
    )
