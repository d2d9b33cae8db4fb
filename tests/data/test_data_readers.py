"""Readers of files, which the tests write themselves, whole and damaged."""

import collections
import gzip
import io
import itertools
import os
import pickle
import re
import tracemalloc

import numpy as np
import pytest
from cifar_files import binary, images, python, write_cifar
from idx_files import IDX_TYPES, idx

from fastopt import data

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


# ---- CIFAR ----------------------------------------------------------------------------------------------

PICTURES = images(3)
TENS, FINE, COARSE = [3, 0, 9], [99, 0, 50], [19, 0, 5]
#: The contents of files, and how they are read.
CIFAR = {
    "10, binary": (binary(PICTURES, TENS), data.read_cifar10, TENS),
    "10, Python": (python(PICTURES, labels=TENS, filenames=[1, 2, 3]), data.read_cifar10, TENS),
    "10, Fortran order": (python(PICTURES, fortran=True, labels=TENS), data.read_cifar10, TENS),
    "100, binary": (binary(PICTURES, COARSE, FINE), data.read_cifar100, FINE),
    "100, binary, coarse": (binary(PICTURES, COARSE, FINE), lambda p: data.read_cifar100(p, "coarse"), COARSE),
    "100, Python": (python(PICTURES, coarse_labels=COARSE, fine_labels=FINE), data.read_cifar100, FINE),
}


@pytest.mark.parametrize(("content", "read", "wanted"), CIFAR.values(), ids=CIFAR)
def test_cifar_files(content, read, wanted, tmp_path):
    (tmp_path / "file").write_bytes(content)
    pictures, labels = read(tmp_path / "file")
    assert (pictures.dtype, labels.dtype, pictures.flags.c_contiguous) == (np.uint8, np.uint8, True)
    np.testing.assert_array_equal(pictures, PICTURES)
    np.testing.assert_array_equal(labels, wanted)
    pictures[...], labels[...] = 0, 0  # they are the caller's own


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_archives_that_python_3_has_written(protocol, tmp_path):
    pixels = np.ascontiguousarray(PICTURES.transpose(0, 3, 1, 2).reshape(3, -1))
    held = {b"data": pixels, b"labels": TENS, b"filenames": [b"a.png", "b.png", None], "more": (True, False, ())}
    (tmp_path / "file").write_bytes(pickle.dumps(held, protocol))
    np.testing.assert_array_equal(data.read_cifar10(tmp_path / "file")[0], PICTURES)
    assert pickle.loads(python(PICTURES, labels=TENS), encoding="bytes")[b"data"].tobytes() == pixels.tobytes()


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _deep(depth: int) -> bytes:
    return b"\x80\x02}(" + b"U\x04data)" + b"\x85" * depth + b"u."


PIXELS = np.zeros((1, 3072), np.uint8)
WRONG_CIFAR = {
    "empty": (b"", "must hold records of 3073 bytes, got 0 bytes"),
    "short": (bytes(3072), "must hold records of 3073 bytes, got 3072 bytes: 0 records and 3072 bytes"),
    "a label too large": (bytes(3073) + b"\n" + bytes(3072), r"must hold labels in \[0, 10\), got 10 in record 1"),
    "in Python, too": (python(PICTURES, labels=[1, 2, 10]), r"must hold labels in \[0, 10\), got 10 in record 2"),
    "a call": (pickle.dumps(Hostile(os.mkdir, "made"), 2), "it asks for 'posix.mkdir'"),
    "a call, named late": (pickle.dumps(Hostile(os.mkdir, "made"), 4), "it asks for 'posix.mkdir'"),
    "eval": (pickle.dumps({"labels": Hostile(eval, "1")}, 2), "it asks for '__builtin__.eval'"),
    "a class": (pickle.dumps({"labels": collections.OrderedDict()}, 2), "it asks for 'collections.OrderedDict'"),
    "persistent": (b"\x80\x02Px\n.", "it has the opcode PERSID"),
    "text protocol": (b"\x80\x02(lp0\n.", "it has the opcode LIST"),
    "objects": (pickle.dumps({"data": np.array([[None]]), "labels": []}, 2), "it is of another type"),
    "floats": (pickle.dumps({"data": np.ones((1, 3072)), "labels": [1]}, 2), "it is of another type"),
    "no array": (pickle.dumps({"data": [1], "labels": [1]}, 2), "'data' must be an array of bytes"),
    "no dict": (pickle.dumps([1], 2), "it must hold a dict with 'data' and 'labels', got list"),
    "another archive": (pickle.dumps({"data": 1, "fine_labels": 2}, 2), "got 'data', 'fine_labels'"),
    "no images": (pickle.dumps({"data": PIXELS[:0], "labels": []}, 4), r"'data' must have shape \(n, 3072\)"),
    "other images": (pickle.dumps({"data": PIXELS[:, 1:], "labels": [1]}, 2), r"'data' must have shape .*\(1, 3071\)"),
    "other labels": (pickle.dumps({"data": PIXELS, "labels": [1, 2]}, 2), "'labels' must be a list of 1 labels, got 2"),
    "labels no list": (pickle.dumps({"data": PIXELS, "labels": "a"}, 2), "'labels' must be a list .* got str"),
    "half a label": (pickle.dumps({"data": PIXELS, "labels": [0.5]}, 2), "it has the opcode BINFLOAT"),
    "text as a label": (pickle.dumps({"data": PIXELS, "labels": ["a"]}, 2), "must hold integers .* got str at 0"),
    "a large label": (pickle.dumps({"data": PIXELS, "labels": [2**40]}, 2), f"must hold integers .* got {2**40} at 0"),
    "a lie about rows": (python(PICTURES, rows=2, labels=[1, 2]), "shape .* needs 6144 bytes, got 9216"),
    "more behind": (python(PICTURES, labels=TENS) + b"more", "4 bytes follow its end"),
    "nested": (_deep(20_000), "it must hold a dict with 'data' and 'labels', got 'data'"),
    "a nested key": (b"\x80\x02})" + b"\x85" * 20_000 + b"Ns.", "there must be a str, got tuple"),
    "itself": (b"\x80\x02}q\x01U\x04datah\x01U\x06labelsh\x01(u.", "the pickle is wrong at byte"),
    "a vast memo": (b"\x80\x02}r\xff\xff\xff\x7f.", "it must hold a dict"),
    "a vast string": (b"\x80\x02T\xff\xff\xff\x7f", "the pickle is wrong at byte"),
}


@pytest.mark.parametrize(("content", "message"), WRONG_CIFAR.values(), ids=WRONG_CIFAR)
def test_wrong_cifar_files(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=re.escape(repr(str(tmp_path / "file"))) + f" .*{message}"):
        data.read_cifar10(tmp_path / "file")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_which_labels():
    with pytest.raises(ValueError, match=r"^labels must be one of 'fine', 'coarse'; got 'all'"):
        data.read_cifar100("none", "all")
    with pytest.raises(FileNotFoundError):
        data.read_cifar100("none")


def test_wrong_archives(tmp_path):
    path = tmp_path / "cifar.tar.gz"
    for content, message in ((b"", "is not an archive of CIFAR's"), (b"no archive", "is not an archive of CIFAR's")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"^{re.escape(repr(str(path)))} {message}"):
            data.read_cifar_archive(path)
    write_cifar(path, ".bin", "10", names=("data_batch_1", "readme"))
    with pytest.raises(ValueError, match=r"must hold CIFAR's files, but has none of the test data"):
        data.read_cifar_archive(path)
    write_cifar(path, ".bin", "10", labels=([1], [10], [3]))
    with pytest.raises(
        ValueError, match=r"not an archive of CIFAR's: 'cifar/data_batch_2\.bin' must hold labels in \[0, 10"
    ):
        data.read_cifar_archive(path)


# ---- npz ------------------------------------------------------------------------------------------------

ARRAYS = {
    "x": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "y": np.arange(2, dtype=">i2"),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "number": np.array(3.5),
    "none": np.zeros((0, 5), np.uint8),
    "text": np.array(["a", "bcd"]),
}


def npz(save=np.savez, **arrays) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files(save, tmp_path, same_bits):
    (tmp_path / "file.npz").write_bytes(npz(save, **ARRAYS))
    read = data.read_npz(tmp_path / "file.npz")
    assert list(read) == list(ARRAYS)
    for name, array in ARRAYS.items():
        same_bits(read[name], array.astype(array.dtype.newbyteorder("=")))
        assert read[name].flags.writeable


def test_wrong_npz_files(tmp_path):
    huge = npz(x=np.zeros(4)).replace(b"(4,)", b"(9,)")
    for content, message in (
        (b"", "is not an npz file"),
        (b"PK\3\4", "is not an npz file"),
        (npz(x=np.array([None])), "holds objects, which need pickle"),
        (huge, "is not an npz file"),
        (npz(np.savez_compressed, x=np.zeros(10**6)), None),
    ):
        (tmp_path / "file").write_bytes(content)
        if message is None:
            assert data.read_npz(tmp_path / "file")["x"].shape == (10**6,)
            continue
        with pytest.raises(ValueError, match=f"^{re.escape(repr(str(tmp_path / 'file')))} .*{message}"):
            data.read_npz(tmp_path / "file")


# ---- CSV ------------------------------------------------------------------------------------------------


def table(tmp_path, text, *arguments, **options):
    (tmp_path / "file.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return data.read_csv(tmp_path / "file.csv", *arguments, **options)


def test_numbers(tmp_path):
    x, y, names, classes = table(tmp_path, "1,2.5,-3e2\n4,5,6\n")
    np.testing.assert_array_equal(x, [[1, 2.5, -300], [4, 5, 6]])
    assert (x.dtype, y, names, classes) == (np.float64, None, (), ())


@pytest.mark.parametrize("target", ["kind", 1, -2])
def test_a_header_and_labels_of_text(target, tmp_path):
    text = 'length,kind,"wide, in cm"\n1,b,2\n3,a,4\n\n 5 , b ,6'
    for content in (text, "\ufeff" + text, text.replace("\n", "\r\n"), gzip.compress(text.encode())):
        x, y, names, classes = table(tmp_path, content, target)
        np.testing.assert_array_equal(x, [[1, 2], [3, 4], [5, 6]])
        assert (y.tolist(), y.dtype, names, classes) == ([1, 0, 1], np.int64, ("length", "wide, in cm"), ("a", "b"))


@pytest.mark.parametrize(("fields", "dtype"), [("1 0 2", np.int64), ("1.5 0 2", np.float64), ("1e20 0 1", np.float64)])
def test_targets_that_are_numbers(fields, dtype, tmp_path):
    y = table(tmp_path, "".join(f"{field};0.5\n" for field in fields.split()), 0, delimiter=";").y
    assert (y.dtype, y.tolist()) == (dtype, [float(field) for field in fields.split()])


def test_headers_that_are_said(tmp_path):
    assert table(tmp_path, "2001,2002\n1,2\n", header=True).names == ("2001", "2002")
    with pytest.raises(ValueError, match="must hold numbers, got 'a' in line 1, column 0"):
        table(tmp_path, "a,b\n1,2\n", header=False)


def test_missing_fields(tmp_path):
    x = table(tmp_path, "1,\n,2\n", missing=float("nan")).x
    np.testing.assert_array_equal(x, [[1, np.nan], [np.nan, 2]])
    assert table(tmp_path, "1,\n,2\n", missing=-1).x.tolist() == [[1, -1], [-1, 2]]


WRONG_CSV = {
    "empty": ("", {}, "must hold a line of numbers or more, got none"),
    "a header alone": ("a,b\n", {}, "must hold a line of numbers or more, got none"),
    "no number": ("1,2\n3,x\n", {}, "must hold numbers, got 'x' in line 2, column 1"),
    "missing": ("1,2\n3,\n", {}, "got '' in line 2, column 1; missing=nan, say, takes empty fields"),
    "Python's underscores": ("1,2\n3,1_0\n", {}, "must hold numbers, got '1_0'"),
    "long": ("1,2\n\n3,4,5\n", {}, "must hold 2 fields in each line, got 3 in line 3"),
    "short": ("a,b\n1,2\n3\n", {}, "must hold 2 fields in each line, got 1 in line 3"),
    "a quote that is open": ('1,"2\n3,4\n', {}, "is not a CSV file: unexpected end of data"),
    "no text": (b"1,2\n\xff,3\n", {}, "is not a CSV file: 'utf-8' codec"),
    "a cut gzip file": (gzip.compress(b"1,2\n" * 100)[:-12], {}, "is not a CSV file: "),
    "no target": ("a,b\n1,\n", {"target": "b"}, "must hold a target in each line, got none in line 2, column 1"),
    "no such column": ("a,b\n1,2\n", {"target": "c"}, "target must name a column of .* got 'c'; it has columns a, b"),
    "no header": ("1,2\n", {"target": "c"}, "target must name a column of .* it has no header"),
    "beyond": ("1,2\n", {"target": 2}, r"target must be in \[-2, 2\), got 2"),
    "half a column": ("1,2\n", {"target": 0.5}, "target must be an integer"),
    "delimiter": ("1,2\n", {"delimiter": ", "}, "delimiter must be one character, got ', '"),
    "header": ("1,2\n", {"header": 1}, "header must be True or False"),
    "missing by text": ("1,2\n", {"missing": "x"}, "missing must be a number"),
}


@pytest.mark.parametrize(("text", "options", "message"), WRONG_CSV.values(), ids=WRONG_CSV)
def test_wrong_csv_files(text, options, message, tmp_path):
    with pytest.raises((TypeError, ValueError), match=message):
        table(tmp_path, text, **options)


# ---- Folders of images ----------------------------------------------------------------------------------


@pytest.fixture
def pillow():
    return pytest.importorskip("PIL.Image")


@pytest.fixture
def pets(tmp_path, pillow, rng):
    """A folder with three cats and two dogs, and what is in them."""
    pictures = rng.integers(256, size=(5, 4, 6, 3), dtype=np.uint8)
    for i, name in enumerate(("cat/b.png", "cat/more/a.BMP", "cat/c.png", "dog/1.png", "dog/2.png")):
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        pillow.fromarray(pictures[i]).save(tmp_path / "pets" / name)
    (tmp_path / "pets" / ".hidden").mkdir()
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("no image")
    return tmp_path / "pets", pictures[[0, 2, 1, 3, 4]]


def test_a_folder_of_images(pets):
    path, pictures = pets
    folder = data.ImageFolder(path)
    assert [file.name for file in folder.files] == ["b.png", "c.png", "a.BMP", "1.png", "2.png"]
    assert (len(folder), folder.classes, folder.labels.tolist()) == (5, ("cat", "dog"), [0, 0, 0, 1, 1])
    x, y = folder.read([4, 0, 0, 2])
    np.testing.assert_array_equal(x, pictures[[4, 0, 0, 2]])
    assert (x.dtype, y.tolist()) == (np.uint8, [1, 0, 0, 0])
    part = folder.take([3, 1])
    np.testing.assert_array_equal(part.read([0, 1])[0], pictures[[3, 1]])
    assert (len(part), part.labels.tolist(), len(folder)) == (2, [1, 0], 5)
    assert repr(folder).endswith("5 images (4, 6, 3) in 2 classes)")
    assert folder.read([])[0].shape == (0, 4, 6, 3)


def test_grey_and_other_sizes(pets, pillow):
    path, pictures = pets
    grey = data.ImageFolder(path, mode="L")
    x, _ = grey.read(range(5))
    luma = pictures @ [0.299, 0.587, 0.114]
    assert np.abs(x[..., 0] - luma).max() <= 1
    x, _ = data.ImageFolder(path, size=2).read(range(5))
    for image, picture in zip(x, pictures, strict=True):
        middle = (1, 0, 5, 4)  # of 4×6, what is cut to a square
        wanted = np.asarray(pillow.fromarray(picture).resize((2, 2), pillow.Resampling.BILINEAR, middle))
        np.testing.assert_array_equal(image, wanted)
    assert data.ImageFolder(path, size=(3, 5)).shape == (3, 5, 3)


def test_images_that_say_how_to_be_turned(tmp_path, pillow, rng):
    (tmp_path / "a").mkdir()
    picture = rng.integers(256, size=(3, 5, 3), dtype=np.uint8)
    turned = pillow.fromarray(picture)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    turned.save(tmp_path / "a" / "1.png", exif=exif)
    np.testing.assert_array_equal(data.ImageFolder(tmp_path).read([0])[0][0], np.rot90(picture, -1))


def test_wrong_folders(pets, pillow, tmp_path):
    path, _ = pets
    for wrong, message in (
        (path / "none", "path must name a folder"),
        (path / "dog", "must hold a folder of images for each class, got none"),
        (path.parent, None),
    ):
        if message:
            with pytest.raises(FileNotFoundError, match=message):
                data.ImageFolder(wrong)
    (path / "eel").mkdir()
    with pytest.raises(FileNotFoundError, match=r"eel' must hold images of a class, got none \(\.bmp"):
        data.ImageFolder(path)
    pillow.new("RGB", (6, 5)).save(path / "eel" / "1.png")
    folder = data.ImageFolder(path)
    with pytest.raises(ValueError, match=r"eel/1\.png' must have shape \(4, 6, 3\), got \(5, 6, 3\); size="):
        folder.read([0, 5])
    (path / "eel" / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"eel/1\.png' must be an image: "):
        folder.read([5])
    (path / "eel" / "1.png").unlink()
    with pytest.raises(FileNotFoundError):
        folder.read([5])
    for wrong in ([6], [-1], [0.5], 0, [[0]]):
        with pytest.raises((TypeError, ValueError), match=r"^indices must be"):
            folder.read(wrong)
    for options, message in (({"mode": "P"}, "mode must be one of"), ({"size": 0}, "size must be at least 1")):
        with pytest.raises(ValueError, match=message):
            data.ImageFolder(path, **options)


def test_images_of_more_bits(tmp_path, pillow):
    (tmp_path / "a").mkdir()
    pillow.fromarray(np.full((2, 2), 1000, np.uint16)).save(tmp_path / "a" / "1.png")
    with pytest.raises(ValueError, match=r"1\.png' must be an image: it has more than 8 bits per channel, mode I"):
        data.ImageFolder(tmp_path)


def test_without_pillow(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ImportError, match=r"^images need Pillow: pip install 'fastopt\[images\]'"):
        data.ImageFolder(".")


# ---- Damaged files --------------------------------------------------------------------------------------


def _png() -> bytes:
    image = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    image.fromarray(images(1)[0, :5, :7]).save(file, "png")
    return file.getvalue()


def _read_image(path):
    """As one of a folder."""
    folder = data.ImageFolder(path.parent.parent)
    return folder.read([0])


#: Small files, each with its reader, and whether a cut one can be told from a whole one.
SMALL = {
    "IDX": (lambda: idx(np.arange(6).reshape(2, 3)), data.read_idx, True),
    "IDX, gzip": (lambda: gzip.compress(idx(np.arange(6).reshape(2, 3)), mtime=0), data.read_idx, True),
    "CIFAR-10, binary": (lambda: binary(PICTURES[:1], [3]), data.read_cifar10, True),
    "CIFAR-10, Python": (lambda: python(PICTURES[:1], labels=[3]), data.read_cifar10, True),
    "CIFAR-100, Python": (lambda: python(PICTURES[:1], fine_labels=[3], coarse_labels=[1]), data.read_cifar100, True),
    "CIFAR, archive": (
        lambda: write_cifar(None, ".bin", "10", labels=([1], [2], [3])),
        data.read_cifar_archive,
        True,
    ),
    "npz": (lambda: npz(x=np.arange(6), y=np.arange(2)), data.read_npz, True),
    "npz, compressed": (lambda: npz(np.savez_compressed, x=np.zeros((5, 2))), data.read_npz, True),
    "CSV": (lambda: b"a,b,kind\n1,2.5,x\n3,4,y\n", lambda path: data.read_csv(path, "kind"), False),
    "CSV, gzip": (lambda: gzip.compress(b"a,b\n1,2.5\n3,4\n", mtime=0), data.read_csv, True),
    "PNG": (_png, _read_image, False),
}


def places(content):
    """All places in a small file; of a larger one those next to its ends, and some of the pixels between."""
    if len(content) < 1000:
        return range(len(content))
    return sorted({*range(250), *range(0, len(content), 41), *range(len(content) - 150, len(content))})


@pytest.fixture(params=SMALL.values(), ids=SMALL)
def small(request, tmp_path):
    make, read, is_told = request.param
    path = tmp_path / "pets" / "cat" / "file.png"
    path.parent.mkdir(parents=True)
    return make(), read, is_told, path


def test_each_prefix_of_a_file(small):
    content, read, is_told, path = small
    path.write_bytes(content)
    read(path)
    for length in places(content):
        path.write_bytes(content[:length])
        if is_told:
            with pytest.raises(ValueError, match=re.escape(str(path))):
                read(path)
        else:
            try:
                read(path)
            except ValueError as error:
                assert str(path) in str(error)  # noqa: PT017, it may also succeed


def test_each_byte_of_a_file_changed(small):
    """It is refused by a ValueError that names it, or it is read: many bytes are pixels, or say nothing."""
    content, read, _, path = small
    for place, flipped in itertools.product(places(content), (1, 0x80)):
        path.write_bytes(content[:place] + bytes([content[place] ^ flipped]) + content[place + 1 :])
        try:
            read(path)
        except ValueError as error:
            assert str(path) in str(error), place  # noqa: PT017, it may also succeed
