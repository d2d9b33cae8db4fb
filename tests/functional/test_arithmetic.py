"""Sums, products and axes: in place of either array, special values."""

import numpy as np
import pytest

from fastopt import functional


@pytest.mark.parametrize("relu", [False, True])
def test_a_sum_in_the_place_of_either_array(isa, dtype, relu, rng, same_bits):
    a, b = rng.standard_normal((2, 3, 41)).astype(dtype)
    wanted = functional.add(a, b, relu=relu)
    for place in (0, 1):
        own = [a.copy(), b.copy()]
        assert functional.add(*own, relu=relu, out=own[place]) is own[place]
        same_bits(own[place], wanted)
        same_bits(own[1 - place], (a, b)[1 - place])


def test_nan_passes_a_relu_after_a_sum(isa, dtype):
    y = functional.add(np.array([np.nan, -np.inf, np.inf], dtype), np.ones(3, dtype), relu=True)
    np.testing.assert_array_equal(y, [np.nan, 0, np.inf])


def test_arithmetic_refusals(refuses, rng):
    a, b = rng.standard_normal((2, 3, 4))
    refuses(lambda: functional.add(a, b[:2]), r"b must have shape \(3, 4\), got \(2, 4\)", a)
    refuses(lambda: functional.add(a, b, relu=2), "relu must be True or False", a)
    refuses(lambda: functional.scale(a, np.nan), "factor must be ", a)
    refuses(lambda: functional.scale(a, "2"), "factor must be ", a)
    refuses(lambda: functional.scale_channels(a, b[0]), r"factor must have shape \(3, 4\)", a)
    refuses(lambda: functional.swap_axes(a), r"x must have shape \(n, m, width\), got \(3, 4\)", a)
