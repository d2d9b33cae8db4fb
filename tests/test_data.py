"""The dataset that comes with the package, and readers of files, which the tests write themselves."""

import gzip
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from idx_files import IDX_TYPES, idx, write_mnist

from fastopt import data

# ---- Digits ---------------------------------------------------------------------------------------------


def test_digits():
    x, y = data.digits()
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((1797, 8, 8, 1), np.float32, (1797,), np.int64)
    assert (x.min(), x.max()) == (0, 1)
    np.testing.assert_array_equal(x * 16, np.rint(x * 16))
    assert np.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_are_those_of_scikit_learn():
    wanted = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = data.digits()
    np.testing.assert_array_equal(16 * x[..., 0], wanted.images)
    np.testing.assert_array_equal(y, wanted.target)


def test_load_digits():
    x, y, x_test, y_test = data.load("digits")
    assert (len(x), len(x_test)) == (len(y), len(y_test)) == (1347, 450)
    every, labels = data.digits()
    np.testing.assert_allclose(np.bincount(y_test), np.bincount(labels) / 4, atol=0.5)
    assert sorted(image.tobytes() for image in (*x, *x_test)) == sorted(image.tobytes() for image in every)
    assert all((a == b).all() for a, b in zip(data.load("digits"), (x, y, x_test, y_test), strict=True))


# ---- IDX files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (4, 0, 2), (2, 3, 4, 5)])
@pytest.mark.parametrize("code", IDX_TYPES)
def test_idx_files(code, shape, pack, tmp_path, rng):
    native = np.dtype(IDX_TYPES[code]).newbyteorder("=")
    wanted = rng.normal(50, 20, shape)
    wanted = wanted.astype(native) if native.kind == "f" else np.clip(wanted, 0, 120).astype(native)
    (tmp_path / "file").write_bytes(pack(idx(wanted, code)))
    read = data.read_idx(str(tmp_path / "file"))
    assert (read.dtype, read.shape) == (native, shape)
    np.testing.assert_array_equal(read, wanted)
    read[...] = 0  # it is the caller's own


ZIPPED = gzip.compress(idx(range(50)), mtime=0)
WRONG_IDX = {
    "empty": (b"", "must name an IDX file"),
    "no head": (b"\0\0\10", "must name an IDX file"),
    "another format": (b"P5 28 28", "must name an IDX file"),
    "no such type": (b"\0\0\7\1\0\0\0\1\0", "must name an IDX file"),
    "half a shape": (idx(np.zeros((2, 3)))[:7], "must name an IDX file"),
    "one length of two": (idx(np.zeros((2, 3)))[:8], "must name an IDX file"),
    "short": (idx(range(5))[:-1], r"must hold 13 bytes for shape \(5,\), got 12"),
    "long": (idx(range(5)) + b"\0", r"must hold 13 bytes for shape \(5,\), got 14"),
    "huge": (idx([], shape=(2**31, 2**31, 4)), f"must hold {2**64 + 16} bytes"),
    "huge, as far as it goes": (idx([], shape=(2**31,)) + bytes(100), f"must hold {2**31 + 8} bytes .*, got 108"),
    "gzip, huge": (gzip.compress(idx([], shape=(2**31,))), rf"must hold {2**31 + 8} bytes .*, got at most \d+"),
    "gzip, long": (gzip.compress(idx(range(5)) + bytes(10**6)), r"must hold 13 bytes .*, got 1000013"),
    "none of much": (idx([], shape=(0, 2**32 - 1, 2**32 - 1, 2**32 - 1)), "."),
    "too many lengths": (b"\0\0\10\xff" + bytes(4 * 255), "."),
    "gzip, short": (ZIPPED[:-9], "must name an IDX file"),
    "gzip, half a head": (ZIPPED[:5], "must name an IDX file"),
    "gzip, wrong checksum": (ZIPPED[:-8] + b"checksum", "must name an IDX file"),
    "gzip, nonsense": (ZIPPED[:10] + b"\xff" * 20, "must name an IDX file"),
}


@pytest.mark.parametrize(("content", "message"), WRONG_IDX.values(), ids=WRONG_IDX)
def test_wrong_idx_files(content, message, tmp_path):
    (tmp_path / "file").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as caught:
        data.read_idx(tmp_path / "file")
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()
    assert repr(str(tmp_path / "file")) in str(caught.value)


# ---- CIFAR-10 -------------------------------------------------------------------------------------------


def cifar(labels, rng) -> tuple[bytes, np.ndarray]:
    """A file with random images, and the images."""
    images = rng.integers(256, size=(len(labels), 32, 32, 3), dtype=np.uint8)
    records = (
        bytes([label]) + b"".join(image[..., channel].tobytes() for channel in range(3))
        for label, image in zip(labels, images, strict=True)
    )
    return b"".join(records), images


def test_cifar10_files(tmp_path, rng):
    content, wanted = cifar([3, 0, 9], rng)
    (tmp_path / "file.bin").write_bytes(content)
    images, labels = data.read_cifar10(tmp_path / "file.bin")
    assert (images.dtype, labels.dtype) == (np.uint8, np.uint8)
    np.testing.assert_array_equal(images, wanted)
    np.testing.assert_array_equal(labels, [3, 0, 9])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold records of 3073 bytes, got 0 bytes"),
        (bytes(3072), "must hold records of 3073 bytes, got 3072 bytes"),
        (bytes(3073) + b"\n" + bytes(3072), r"must hold labels in \[0, 10\), got 10"),
    ],
    ids=["empty", "short", "a label too large"],
)
def test_wrong_cifar10_files(content, message, tmp_path):
    (tmp_path / "file.bin").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(repr(str(tmp_path / "file.bin"))) + " " + message):
        data.read_cifar10(tmp_path / "file.bin")


# ---- Folders --------------------------------------------------------------------------------------------


def check_loaded(folder, images, labels, test_images, test_labels):
    x, y, x_test, y_test = data.load(str(folder))
    for read, pixels in ((x, images), (x_test, test_images)):
        assert (read.dtype, read.flags.c_contiguous) == (np.float32, True)
        np.testing.assert_allclose(read, pixels / 255, rtol=1e-6)
    for read, wanted in ((y, labels), (y_test, test_labels)):
        assert read.dtype == np.int64
        np.testing.assert_array_equal(read, wanted)


@pytest.mark.parametrize(("pack", "ending"), [(bytes, ""), (gzip.compress, ".gz")])
def test_load_a_folder_of_idx_files(pack, ending, tmp_path):
    images, labels, test_images, test_labels = write_mnist(tmp_path, pack, ending)
    check_loaded(tmp_path, images[..., None], labels, test_images[..., None], test_labels)


def test_load_a_folder_of_cifar10_files(tmp_path, rng):
    parts = []
    for name, labels in (("data_batch_1", [1, 2]), ("data_batch_2", [3]), ("test_batch", [4, 5, 6])):
        content, images = cifar(labels, rng)
        (tmp_path / f"{name}.bin").write_bytes(content)
        parts.append(images)
    check_loaded(tmp_path, np.concatenate(parts[:2]), [1, 2, 3], parts[2], [4, 5, 6])


@pytest.mark.parametrize(
    "missing",
    ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"],
)
def test_a_missing_idx_file(missing, tmp_path):
    write_mnist(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match="data must be" if "train-images" in missing else "no file"):
        data.load(tmp_path)


def test_a_missing_cifar10_file(tmp_path, rng):
    (tmp_path / "data_batch_1.bin").write_bytes(cifar([1], rng)[0])
    with pytest.raises(FileNotFoundError, match=r"test_batch\.bin"):
        data.load(tmp_path)


@pytest.mark.parametrize("name", ["nothing-here", "."])
def test_a_folder_without_data(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"data must be 'digits' or a folder .*got '{name}'"):
        data.load(name)


def test_as_many_labels_as_images(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx([1, 2, 3]))
    with pytest.raises(ValueError, match=r"t10k must hold images .* got \(4, 5, 4\) and \(3,\)"):
        data.load(tmp_path)


# ---- Splitting ------------------------------------------------------------------------------------------

LABELS = arrays(np.int64, st.integers(0, 60), elements=st.integers(-2, 5))


@settings(deadline=None)
@given(y=LABELS, fraction=st.floats(0, 1), seed=st.integers(0, 2**70))
def test_stratified_split(y, fraction, seed):
    lone = [label for label in set(y) if np.count_nonzero(y == label) == 1]
    if lone:
        with pytest.raises(ValueError, match=r"^y must have two members of each class or more"):
            data.stratified_split(y, fraction, seed=seed)
        y = y[~np.isin(y, lone)]
    first, second = data.stratified_split(y, fraction, seed=seed)
    assert sorted([*first, *second]) == list(range(len(y)))  # every sample once
    for part in (first, second):
        assert list(part) == sorted(part)
    for label in set(y):
        assert np.count_nonzero(y[second] == label) == round(fraction * np.count_nonzero(y == label))
    again = data.stratified_split(list(y), fraction, seed=seed)
    assert [part.tolist() for part in again] == [first.tolist(), second.tolist()]


def test_another_seed_splits_otherwise():
    y = np.arange(100) % 2
    assert set(data.stratified_split(y, 0.5, seed=0)[1]) != set(data.stratified_split(y, 0.5, seed=1)[1])


@pytest.mark.parametrize(
    ("fraction", "seed"), [(1.5, 0), (-0.1, 0), (float("nan"), 0), ("half", 0), (0.5, -1), (0.5, 0.5)]
)
def test_wrong_splits(fraction, seed):
    with pytest.raises((TypeError, ValueError), match=r"^(fraction|seed) must be"):
        data.stratified_split(np.arange(4), fraction, seed=seed)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.linspace(0, 1, 100), r"y must be integer labels, got float64; for .* use data.split\(len\(y\), …\)"),
        (np.zeros((4, 2), int), r"y must have shape \(n,\), got \(4, 2\)"),
        (np.arange(4), "y must have two members of each class or more, but has one of 0 alone"),
    ],
)
def test_what_has_no_classes_is_not_stratified(y, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        data.stratified_split(y, 0.25, seed=0)


@given(n=st.integers(0, 60), fraction=st.floats(0, 1), seed=st.integers(0, 2**70))
def test_split(n, fraction, seed):
    first, second = data.split(n, fraction, seed=seed)
    assert len(second) == round(fraction * n)
    assert sorted([*first, *second]) == list(range(n))
    assert all(list(part) == sorted(part) for part in (first, second))
    assert [part.tolist() for part in data.split(n, fraction, seed=seed)] == [first.tolist(), second.tolist()]
    with pytest.raises(ValueError, match=r"^n must be at least 0"):
        data.split(-1, fraction, seed=seed)
