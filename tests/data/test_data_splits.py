"""Samples in parts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fastopt import data

LABELS = arrays(np.int64, st.integers(1, 80), elements=st.integers(-2, 5))
FRACTION = st.floats(0.01, 0.6)


@given(y=LABELS, validation=FRACTION, test=FRACTION, seed=st.integers(0, 2**70))
def test_each_class_in_each_part(y, validation, test, seed):
    counts = {label: np.count_nonzero(y == label) for label in set(y.tolist())}
    wanted = {
        label: (n - round(validation * n) - round(test * n), round(validation * n), round(test * n))
        for label, n in counts.items()
    }
    fractions = {"validation": validation, "test": test, "seed": seed}
    if validation + test >= 1 - 1e-9:
        with pytest.raises(ValueError, match=r"^validation, test must sum up to less than 1, got "):
            data.split(y, y, **fractions)
    elif min(map(min, wanted.values())) < 1:
        with pytest.raises(ValueError, match=r"must get a sample or more of the \d+ samples of class -?\d, got none"):
            data.split(y, y, **fractions)
    else:
        x = np.arange(len(y))
        parts = data.split(x, y, **fractions)
        assert sorted(np.concatenate(parts[::2])) == x.tolist()  # every sample once
        for i, (chosen, labels) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
            np.testing.assert_array_equal(y[chosen], labels)
            assert (np.diff(chosen) > 0).all()
            assert {label: np.count_nonzero(labels == label) for label in counts} == {
                k: v[i] for k, v in wanted.items()
            }
        again = data.split(x, y.tolist(), **fractions)
        assert [part.tolist() for part in again] == [part.tolist() for part in parts]


@given(n=st.integers(1, 60), fraction=FRACTION, seed=st.integers(0, 2**70))
def test_without_regard_to_classes(n, fraction, seed):
    count = round(fraction * n)
    if not 0 < count < n:
        with pytest.raises(ValueError, match=r"must get a sample or more of \d+ samples, got none"):
            data.split(np.arange(n), test=fraction, stratify=False, seed=seed)
        return
    first, second = data.split(np.arange(n), test=fraction, stratify=False, seed=seed)
    assert len(second) == count
    assert sorted([*first, *second]) == list(range(n))


def test_what_used_to_be_a_hundred_to_none_in_silence():
    y = np.repeat(np.arange(100), 2)
    with pytest.raises(
        ValueError, match=r"^validation must get .* of the 2 samples of class 0, got none .* stratify=F"
    ):
        data.split(y, y, validation=0.2)
    assert len(data.split(y, y, validation=0.2, stratify=False)[2]) == 40


def test_parts_that_leave_samples_out():
    x = np.arange(100)
    train, test = data.split(x, train=0.3, test=0.1, stratify=False)
    assert (len(train), len(test), len({*train, *test})) == (30, 10, 40)
    train, _, test, _ = data.split(x, x % 2, train=0.3, test=0.1)
    assert [np.bincount(part % 2).tolist() for part in (train, test)] == [[15, 15], [5, 5]]


def test_fractions_that_leave_nothing_out_in_spite_of_rounding():
    parts = data.split(np.arange(7), train=0.4, validation=0.3, test=0.3, stratify=False)
    assert sum(map(len, parts)) == 7


def test_by_other_labels():
    groups = np.array(["a", "b"] * 10)
    x, y = np.arange(20), np.linspace(0, 1, 20)
    _, _, test, targets = data.split(x, y, test=0.2, stratify=groups)
    assert sorted(groups[test]) == ["a", "a", "b", "b"]
    np.testing.assert_array_equal(targets, y[test])


def test_another_seed_splits_otherwise():
    y = np.arange(100) % 2
    first, second = (data.split(np.arange(100), y, test=0.5, seed=seed)[2] for seed in (0, 1))
    assert set(first) != set(second)


def test_images_keep_their_axes(rng):
    x = rng.normal(size=(10, 2, 3, 1)).astype(np.float32)
    train, _, test, _ = data.split(x, np.arange(10) % 2, test=0.4)
    assert (train.shape, test.shape, test.dtype) == ((6, 2, 3, 1), (4, 2, 3, 1), np.float32)
    assert not np.shares_memory(train, x)


Y = np.arange(20) % 2
WRONG = {
    "neither": ({}, "validation or test must be given"),
    "all": ({"test": 1.0}, r"test must be in \(0, 1\), got 1.0"),
    "none": ({"test": 0}, r"test must be in \(0, 1\), got 0"),
    "NaN": ({"test": float("nan")}, "test must be in"),
    "too much": ({"train": 0.9, "test": 0.2}, "train, test must sum up to at most 1, got 1.1"),
    "text": ({"test": "half"}, "test must be a number"),
    "no seed": ({"test": 0.5, "seed": -1}, "seed must be at least 0"),
    "half a seed": ({"test": 0.5, "seed": 0.5}, "seed must be an integer"),
    "no labels": ({"y": None, "test": 0.5}, "y must be given to stratify by; stratify=False"),
    "real": ({"y": np.linspace(0, 1, 20), "test": 0.5}, "y must be integer labels, got float64; stratify=False"),
    "two axes": ({"y": np.zeros((20, 2), int), "test": 0.5}, r"y must be labels of shape \(20,\), got \(20, 2\)"),
    "another length": ({"y": Y[1:], "test": 0.5}, "y must have as many samples as x, 20, got 19"),
    "one of each": ({"y": np.arange(20), "test": 0.25}, "test must get a sample or more of the 1 samples of class 0"),
    "other labels": ({"test": 0.5, "stratify": Y[1:]}, r"stratify must be labels of shape \(20,\)"),
    "no array": ({"x": 5, "test": 0.5}, r"x must be an array \(n, …\), got int"),
    "nothing": ({"x": np.zeros(0), "y": np.zeros(0, int), "test": 0.5}, "x must hold samples, got none"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_splits(arguments, message):
    arguments = {"x": np.arange(20), "y": Y, **arguments}
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        data.split(arguments.pop("x"), arguments.pop("y"), **arguments)


def test_folders_of_images(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(4):
            pillow.new("L", (2, 2), i).save(tmp_path / name / f"{i}.png")
    folder = data.ImageFolder(tmp_path, mode="L")
    train, test = data.split(folder, test=0.25)
    assert (len(train), len(test), test.labels.tolist(), train.classes) == (6, 2, [0, 1], ("a", "b"))
    assert {*train.files, *test.files} == {*folder.files}
    with pytest.raises(TypeError, match=r"^y must be left out where x is an ImageFolder"):
        data.split(folder, folder.labels, test=0.25)
