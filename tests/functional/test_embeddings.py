"""Embeddings: entries of any type, numbers that are none."""

import numpy as np
import pytest

from fastopt import functional, reference
from fastopt.kernel import kernel


@pytest.mark.parametrize("entries", ["int8", "int16", "uint64"])
def test_entries_of_any_integer_type_and_shape(entries, rng, close):
    chosen, dy = rng.integers(9, size=(4, 11)), rng.standard_normal((4, 11, 7))
    dtable = functional.embedding_backward(dy, chosen.astype(entries), 9)
    close(dtable, reference.embedding_backward(dy, chosen, 9))


def test_embedding_refusals(refuses, rng):
    dy = rng.standard_normal((3, 2))
    refuses(lambda: functional.embedding_backward(dy, np.array([0, 5, 1]), 5), r"entries must be in \[0, 5\), got 5")
    refuses(lambda: functional.embedding_backward(dy, np.array([0, 1]), 5), r"entries must be an array of shape \(3,\)")
    refuses(lambda: functional.embedding_backward(dy, np.ones(3), 5), "entries must be an array of integers")


def test_numbers_that_are_no_entries(isa, dtype, guarded):
    weight = 1 + np.arange(12, dtype=dtype).reshape(4, 3)
    for number, message in (
        (4, r"x must be in \[0, 4\), got 4"),
        (-1, r"x must be in \[0, 4\), got -1"),
        (1e30, r"x must be in \[0, 4\), got 1e\+30|x must be in \[0, 4\), got 1"),
        (np.nan, r"x must be in \[0, 4\), got nan"),
        (np.inf, r"x must be in \[0, 4\), got inf"),
        (1.5, "x must be whole numbers, got 1.5"),
        (-0.5, r"x must be in \[0, 4\), got -0.5"),
    ):
        x, wrong = np.array([[2, number], [-0.0, number]], dtype), np.zeros(1, np.int64)
        out, entry = guarded(np.full((2, 2, 3), 7, dtype)), guarded(np.full((2, 2), 7))
        with pytest.raises(ValueError, match=message):
            functional.embedding_forward(x, weight, out, entry, wrong)
        assert wrong == 2
        assert (out == 7).all()
        assert (entry == 7).all()
        y, entries = kernel("embedding_forward")(x, weight, out, entry)  # as programs call it, without that check
        guarded.check()
        assert entries.tolist() == [[2, 0], [0, 0]]
        np.testing.assert_array_equal(y, np.array([[weight[2], 0 * weight[0]], [weight[0], 0 * weight[0]]]))
    functional.embedding_forward(np.zeros((2, 0), dtype), weight, wrong=wrong)
    assert wrong == 0


def test_shapes_of_entries(refuses, rng):
    weight = rng.standard_normal((4, 3))
    for shape in ((), (5,), (2, 3), (2, 0)):
        x = rng.integers(4, size=shape).astype(float)
        y, entry = functional.embedding_forward(x, weight)
        np.testing.assert_array_equal(y, weight[entry])
        np.testing.assert_array_equal(entry, x)
    refuses(
        lambda: functional.embedding_forward(np.zeros((2, 3)), weight, np.ones((6, 3))),
        r"out must have shape \(2, 3, 3\)",
    )
    refuses(
        lambda: functional.embedding_forward(np.zeros(2, np.float32), weight), "weight must be float32, got float64"
    )
    refuses(lambda: functional.embedding_forward(np.zeros(2, int), weight), "x must be float32 or float64, got int64")
    refuses(lambda: functional.embedding_forward(np.zeros(2), weight[0]), "weight must have 2 dimensions")
