"""Files in CIFAR's binary and Python formats, to test readers with."""

import io
import struct
import tarfile

import numpy as np

PIXELS = 3072


def images(n, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(n, 32, 32, 3), dtype=np.uint8)


def binary(pictures, *labels) -> bytes:
    """Records of a byte for each kind of labels, and all red, green and blue values."""
    records = []
    for i, picture in enumerate(pictures):
        planes = b"".join(picture[..., channel].tobytes() for channel in range(3))
        records.append(bytes(kind[i] for kind in labels) + planes)
    return b"".join(records)


def _text(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def _put(number: int) -> bytes:
    return b"q" + bytes([number])


def python(pictures, fortran=False, rows=None, **labels) -> bytes:
    """A pickle as Python 2 wrote the archives: protocol 2, byte strings, an array of NumPy's with its state."""
    pixels = np.stack([picture.transpose(2, 0, 1).ravel() for picture in pictures])
    raw = pixels.tobytes("F" if fortran else "C")
    n = len(pixels) if rows is None else rows
    content = (
        b"\x80\x02}" + _put(1) + b"(" + _text(b"batch_label") + _put(2) + _text(b"training batch 1 of 5") + _put(3)
    )
    for name, values in labels.items():
        numbers = b"".join(
            b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value) for value in values
        )
        content += _text(name.encode()) + _put(4) + b"]" + _put(5) + b"(" + numbers + b"e"
    content += _text(b"data") + _put(6)
    content += b"cnumpy.core.multiarray\n_reconstruct\n" + _put(7) + b"cnumpy\nndarray\n" + _put(8)
    content += b"K\0\x85" + _put(9) + b"U\x01b" + _put(10) + b"\x87" + _put(11) + b"R" + _put(12)
    content += b"(K\x01M" + struct.pack("<H", n) + b"M" + struct.pack("<H", PIXELS) + b"\x86" + _put(13)
    content += b"cnumpy\ndtype\n" + _put(14) + b"U\x02u1" + _put(15) + b"K\0K\x01\x87" + _put(16) + b"R" + _put(17)
    content += b"(K\x03U\x01|" + _put(18) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0t" + _put(19) + b"b"
    content += (b"\x88" if fortran else b"\x89") + b"T" + struct.pack("<i", len(raw)) + raw + _put(20) + b"t" + _put(21)
    return content + b"bu."


def write_cifar(target, ending, kind, labels=([1, 2], [3], [4, 5, 6]), names=None):
    """An archive as CIFAR is distributed, of few images, in a file or as bytes: two files to train on where the classes
    are ten, one where they are a hundred."""
    names = names or (("data_batch_1", "data_batch_2", "test_batch") if kind == "10" else ("train", "train", "test"))
    parts = [(name, images(len(own), i), own) for i, (name, own) in enumerate(zip(names, labels, strict=False))]
    if kind == "100" and names[:2] == ("train", "train"):
        (name, first, own), (_, second, more), test = parts
        parts = [(name, np.concatenate([first, second]), [*own, *more]), test]
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, pictures, own in parts:
            coarse = [0] * len(own)
            if ending:
                content = binary(pictures, own) if kind == "10" else binary(pictures, coarse, own)
            elif kind == "10":
                content = python(pictures, labels=own)
            else:
                content = python(pictures, fine_labels=own, coarse_labels=coarse)
            info = tarfile.TarInfo(f"cifar/{name}{ending}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    if target is not None:
        target.write_bytes(file.getvalue())
    return file.getvalue()
