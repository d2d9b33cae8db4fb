"""Data sets by name and from files, which the tests write themselves."""

import gzip

import numpy as np
import pytest
from cifar_files import binary, images, python, write_cifar
from idx_files import idx, write_mnist

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


# ---- Folders --------------------------------------------------------------------------------------------


def check_loaded(source, pictures, labels, test_pictures, test_labels):
    x, y, x_test, y_test = data.load(str(source))
    for read, pixels in ((x, pictures), (x_test, test_pictures)):
        assert (read.dtype, read.flags.c_contiguous) == (np.float32, True)
        np.testing.assert_allclose(read, pixels / 255, rtol=1e-6)
    for read, wanted in ((y, labels), (y_test, test_labels)):
        assert read.dtype == np.int64
        np.testing.assert_array_equal(read, wanted)


@pytest.mark.parametrize(("pack", "ending"), [(bytes, ""), (gzip.compress, ".gz")])
def test_load_a_folder_of_idx_files(pack, ending, tmp_path):
    x, y, x_test, y_test = write_mnist(tmp_path, pack, ending)
    check_loaded(tmp_path, x[..., None], y, x_test[..., None], y_test)


@pytest.mark.parametrize("ending", [".bin", ""])
def test_load_a_folder_of_cifar10_files(ending, tmp_path):
    parts = []
    for i, (name, labels) in enumerate((("data_batch_1", [1, 2]), ("data_batch_2", [3]), ("test_batch", [4, 5, 6]))):
        parts.append(images(len(labels), i))
        content = binary(parts[-1], labels) if ending else python(parts[-1], labels=labels)
        (tmp_path / f"{name}{ending}").write_bytes(content)
    check_loaded(tmp_path, np.concatenate(parts[:2]), [1, 2, 3], parts[2], [4, 5, 6])


@pytest.mark.parametrize("ending", [".bin", ""])
def test_load_a_folder_of_cifar100_files(ending, tmp_path):
    for name, labels in (("train", [1, 99]), ("test", [4, 5, 6])):
        pictures, coarse = images(len(labels)), [0] * len(labels)
        content = binary(pictures, coarse, labels)
        if not ending:
            content = python(pictures, fine_labels=labels, coarse_labels=coarse)
        (tmp_path / f"{name}{ending}").write_bytes(content)
    check_loaded(tmp_path, images(2), [1, 99], images(3), [4, 5, 6])


@pytest.mark.parametrize("kind", ["10", "100"])
@pytest.mark.parametrize("ending", [".bin", ""])
def test_load_an_archive_of_cifar(ending, kind, tmp_path):
    path = tmp_path / "cifar.tar.gz"
    write_cifar(path, ending, kind)
    check_loaded(path, np.concatenate([images(2, 0), images(1, 1)]), [1, 2, 3], images(3, 2), [4, 5, 6])


def test_load_folders_of_images(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    for part, label in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
        (tmp_path / part / label).mkdir(parents=True)
        pillow.fromarray(images(1, len(part))[0]).save(tmp_path / part / label / "1.png")
    check_loaded(tmp_path, images(1, 5).repeat(2, 0), [0, 1], images(1, 4).repeat(2, 0), [0, 1])
    (tmp_path / "test" / "b").rename(tmp_path / "test" / "c")
    with pytest.raises(ValueError, match=r"the same classes in train and test, got \('a', 'b'\) and \('a', 'c'\)"):
        data.load(tmp_path)


def test_load_an_npz_file(tmp_path):
    path = tmp_path / "file.npz"
    x, y = images(3)[..., 0], np.array([[1], [0], [1]], np.uint8)
    np.savez(path, x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    check_loaded(path, x[..., None], y[:, 0], x[:2, ..., None], y[:2, 0])
    numbers = np.linspace(0, 1, 3)
    np.savez(path, x_train=numbers, y_train=numbers, x_test=numbers, y_test=numbers)
    for read in data.load(path):
        np.testing.assert_array_equal(read, numbers)
    np.savez(path, x_train=x, y_train=y[:2], x_test=x, y_test=y)
    with pytest.raises(ValueError, match=r"must hold one target per sample, got \(3, 32, 32\) and \(2, 1\) in train"):
        data.load(path)
    np.savez(path, x_train=x, y_train=y, x_test=x)
    with pytest.raises(ValueError, match=r"must hold x_train, y_train, x_test, y_test, but lacks y_test"):
        data.load(path)


@pytest.mark.parametrize(
    "missing",
    ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"],
)
def test_a_missing_idx_file(missing, tmp_path):
    write_mnist(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match="data must be" if "train-images" in missing else "no file"):
        data.load(tmp_path)


def test_a_missing_cifar10_file(tmp_path):
    (tmp_path / "data_batch_1.bin").write_bytes(binary(images(1), [1]))
    with pytest.raises(FileNotFoundError, match=r"test_batch\.bin"):
        data.load(tmp_path)


@pytest.mark.parametrize("name", ["nothing-here", "."])
def test_a_folder_without_data(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"data must be 'digits', an .npz file, .*got '{name}'"):
        data.load(name)


def test_as_many_labels_as_images(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx([1, 2, 3]))
    with pytest.raises(ValueError, match=r"t10k must hold images .* got \(4, 5, 4\) and \(3,\)"):
        data.load(tmp_path)
