"""Fuzzes the readers of files: whatever the bytes, a file is read, or refused with an error that says so.

python tests/fuzz/readers.py FOLDER [libFuzzer's options]    # guided by coverage; needs the package `atheris`

The first byte of an input says which reader, the rest is the file. Files with checksums, which random changes would
never get past, are also made of an input whose parts are the entries: an archive around it, sums and all, is made here.
FOLDER begins with one file of each kind, written by the tests' own writers.
"""

import atexit
import gzip
import io
import json
import os
import resource
import shutil
import struct
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import cifar_files
import idx_files

import fastopt
from fastopt import data, files, nn

#: What a file may be refused with.
REFUSED = (ValueError, OSError)
#: The memory that a reader may take beside what the interpreter has, whatever a header says. A model from strangers may
#: ask for more (docs/files.md): that is refused, too.
ROOM = 1 << 30
PARTS = b"\0--\0"  #: between the entries of an archive that is made here

_FOLDER = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
_PATH = Path(_FOLDER) / "file"


def _small() -> nn.Sequential:
    layers = [nn.Conv2D(2, 3), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(2), nn.Flatten(), nn.Dropout(0.1), nn.Dense(2)]
    return nn.Sequential(layers, (6, 6, 1))


def _optimizer() -> fastopt.Optimizer:
    model = nn.Sequential([nn.Dense(2)], (2,))
    return fastopt.Adam(model.params)


def _load_optimizer(path: Path) -> None:
    fastopt.load(_optimizer(), path)


def _resume(path: Path) -> None:
    model = nn.Sequential([nn.Dense(2)], (2,))
    model.fit(np.eye(2), np.arange(2), epochs=1, callbacks=[nn.ModelCheckpoint(path, resume=True)])


def _npz(path: Path) -> None:
    data.readers.read_npz(path)


def _csv(path: Path) -> None:
    data.read_csv(path, "label")


#: By the first byte of an input.
READERS: list[Callable[[Path], object]] = [
    *(data.read_idx, data.read_cifar10, data.read_cifar100, data.read_cifar_archive, _npz, _csv),
    *(nn.load, _load_optimizer, _resume),
]


def archive(content: bytes) -> bytes:
    """A model's file in format 1, without checksums but those of the archive: a configuration, and arrays by name, each
    with its header and its bytes."""
    config, *parts = content.split(PARTS)
    held = {"config": np.array(config.decode("latin-1"))}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as into:
        text = io.BytesIO()
        np.save(text, held["config"])
        into.writestr("config.npy", text.getvalue())
        for name, array in zip(parts[::2], parts[1::2], strict=False):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of names that come twice
                into.writestr(name.decode("latin-1").replace("\0", "") + ".npy", array)
    return out.getvalue()


def unpacked(path: Path) -> bytes:
    """The input of which `archive` makes a file like this one."""
    with zipfile.ZipFile(path) as entries:
        config = np.load(io.BytesIO(entries.read("config.npy")))
        content = str(config).encode("latin-1")
        for name in entries.namelist():
            if name not in ("config.npy", "fastopt.npy"):
                content += PARTS + name.removesuffix(".npy").encode() + PARTS + entries.read(name)
    return content


def signed(content: bytes) -> bytes:
    """The same as a file of format 2, with right sums over whatever the entries are."""
    with zipfile.ZipFile(io.BytesIO(archive(content))) as entries:
        held = {name.removesuffix(".npy"): np.load(io.BytesIO(entries.read(name))) for name in entries.namelist()}
    out = io.BytesIO()
    files.write_arrays(_PATH, {k: str(v) if v.dtype.kind == "U" else v for k, v in held.items()}, "model")
    out.write(_PATH.read_bytes())
    return out.getvalue()


def check(content: bytes) -> bool:
    """Read an input; returns whether it was read. Raises what no file may be refused with."""
    if not content:
        return False
    kind = content[0] % (len(READERS) + 2)
    read, body = (READERS[kind], content[1:]) if kind < len(READERS) else (nn.load, content[1:])
    if kind >= len(READERS):
        try:
            body = (archive if kind == len(READERS) else signed)(body)
        except Exception:  # what is no entry that could be written
            return False
    _PATH.write_bytes(body)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(_PATH)
    except REFUSED:
        return False
    except MemoryError:
        if read is not nn.load:
            raise
        return False
    finally:
        for other in os.listdir(_FOLDER):
            os.unlink(os.path.join(_FOLDER, other))
    return True


def seeds() -> dict[str, bytes]:
    """One input of each kind."""
    made: dict[str, bytes] = {}

    def add(name: str, number: int, content: bytes) -> None:
        made[name] = bytes([number]) + content

    pictures = cifar_files.images(2)
    add("idx", 0, idx_files.idx(np.arange(6).reshape(2, 3)))
    add("idx-float", 0, idx_files.idx(np.arange(4.0), 13))
    add("idx-gzip", 0, gzip.compress(idx_files.idx(range(5)), mtime=0))
    add("cifar10", 1, cifar_files.binary(pictures, [1, 2]))
    add("cifar10-python", 1, cifar_files.python(pictures, labels=[1, 2]))
    add("cifar100", 2, cifar_files.binary(pictures, [1, 2], [3, 4]))
    arrays = {"x_train": np.ones((2, 2)), "y_train": np.arange(2), "x_test": np.ones((1, 2)), "y_test": np.arange(1)}
    for name, save in (("npz", np.savez), ("npz-packed", np.savez_compressed)):
        out = io.BytesIO()
        save(out, **arrays)
        add(name, 4, out.getvalue())
    add("csv", 5, b"a,b,label\n1,2.5,cat\n3,-4e2,dog\n")
    model = _small()
    for ending in ("npz", "safetensors"):
        path = _PATH.with_suffix(f".{ending}")
        try:
            model.save(path)
        except ImportError:
            continue
        add(f"model-{ending}", 6, path.read_bytes())
        if ending == "npz":
            add("model-entries", 9, unpacked(path))
            add("model-signed", 10, unpacked(path))
        fastopt.save(_optimizer(), path)
        add(f"optimizer-{ending}", 7, path.read_bytes())
        small = nn.Sequential([nn.Dense(2)], (2,))
        path.unlink()
        small.fit(np.eye(2), np.arange(2), epochs=1, callbacks=[nn.ModelCheckpoint(path)])
        add(f"checkpoint-{ending}", 8, path.read_bytes())
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    add("safetensors", 6, struct.pack("<Q", len(header)) + header + bytes(8))
    return made


def main() -> None:
    import atheris

    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in seeds().items():
        (folder / name).write_bytes(content)
    with open("/proc/self/statm") as sizes:
        taken = int(sizes.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, resource.RLIM_INFINITY))
    for module in (data.readers, files, nn.model, nn.config, fastopt.interchange):
        for name, value in list(vars(module).items()):
            if getattr(value, "__module__", None) == module.__name__ and callable(value) and hasattr(value, "__code__"):
                setattr(module, name, atheris.instrument_func(value))
    atheris.Setup([sys.argv[0], *sys.argv[2:], str(folder)], lambda content: (check(content), None)[1])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
