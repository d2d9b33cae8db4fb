"""Gradients by central differences, to test others by."""

import numpy as np


def differences(function, array, step=1e-5) -> np.ndarray:
    """The gradient of a function with respect to an array, which it reads where it is."""
    gradient = np.empty_like(array)
    for place in np.ndindex(array.shape):
        value = array[place]
        array[place] = value + step
        above = function()
        array[place] = value - step
        gradient[place] = (above - function()) / (2 * step)
        array[place] = value
    return gradient


def check_gradients(function, arrays, grads, step=1e-5) -> None:
    """Assert that `grads` are the gradients of a function of `arrays`, which it reads where they are."""
    assert set(arrays) == set(grads)
    for name, array in arrays.items():
        wanted = differences(function, array, step)
        assert grads[name].shape == array.shape
        scale = max(np.abs(wanted).max(), 1e-3)
        assert np.abs(grads[name] - wanted).max() <= 1e-7 * scale, name
