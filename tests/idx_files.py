"""Files in the format of MNIST, to test readers with."""

import struct

import numpy as np

IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def idx(values, code=8, shape=None) -> bytes:
    """A file of that format, which may lie about its shape."""
    values = np.asarray(values)
    shape = values.shape if shape is None else shape
    head = struct.pack(f">HBB{len(shape)}I", 0, code, len(shape), *shape)
    return head + values.astype(IDX_TYPES[code]).tobytes()


def write_mnist(folder, pack=bytes, ending="", n=6, n_test=4) -> list[np.ndarray]:
    """Write files like those of MNIST, of small images in three classes that differ; returns their arrays."""
    rng = np.random.default_rng(0)
    made = []
    for part, count in (("train", n), ("t10k", n_test)):
        labels = np.arange(count) % 3
        images = rng.integers(70, size=(count, 5, 4)) + 90 * labels[:, None, None]
        (folder / f"{part}-images-idx3-ubyte{ending}").write_bytes(pack(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte{ending}").write_bytes(pack(idx(labels)))
        made += [images, labels]
    return made
