"""Files that are replaced atomically, and nested values in npz files, without pickle."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from fastopt.checks import Array


def replace(path: str | os.PathLike[str], write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file beside `path`, flush it to the disk, and rename it to `path`.

    A process that is killed meanwhile leaves `path` as it was, and a file ``<path>.<process>.part`` beside it, which
    `discard_parts` removes.

    Parameters
    ----------
    path : path
    write : callable
        ``write(file)`` writes the contents to a binary file.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # Windows cannot open folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too
        finally:
            os.close(folder)


def discard_parts(path: str | os.PathLike[str]) -> None:
    """Remove the files of processes that were killed while they replaced `path`."""
    path = Path(path)
    for other in path.parent.iterdir():
        process = other.name.removeprefix(f"{path.name}.").removesuffix(".part")
        if process.isdecimal() and other.name == f"{path.name}.{process}.part":
            other.unlink(missing_ok=True)


def write_arrays(path: str | os.PathLike[str], entries: Mapping[str, Any]) -> None:
    """Replace an npz file; text is written as a zero-dimensional array."""
    replace(path, lambda file: np.savez(file, **entries))


def pack(name: str, value: Any) -> dict[str, Any]:
    """Entries of an npz file for a nested value: its JSON under `name`, and arrays under ``"<name>/<number>"``.

    Parameters
    ----------
    name : str
    value : dict with keys of text, list, tuple, ndarray, or a value that JSON has
        NaN and infinity are such values here.

    Returns
    -------
    dict

    Raises
    ------
    TypeError
        Where a value is of another type.

    Examples
    --------
    >>> entries = pack("run", {"epoch": 3, "weights": [np.ones(2)]})
    >>> sorted(entries)
    ['run', 'run/0']
    >>> unpack("run", entries)
    {'epoch': 3, 'weights': [array([1., 1.])]}
    """
    arrays: list[Array] = []

    def plain(item: Any) -> Any:
        if isinstance(item, np.ndarray):
            arrays.append(item)
            return {"array": len(arrays) - 1}
        if isinstance(item, np.generic):
            return item.item()
        if isinstance(item, Mapping):
            return {"dict": {key: plain(inner) for key, inner in item.items()}}
        if isinstance(item, tuple):
            return {"tuple": [plain(inner) for inner in item]}
        if isinstance(item, list):
            return [plain(inner) for inner in item]
        return item

    text = json.dumps(plain(value))
    return {name: text} | {f"{name}/{number}": array for number, array in enumerate(arrays)}


def unpack(name: str, entries: Mapping[str, Array]) -> Any:
    """The inverse of `pack`."""

    def restored(item: Any) -> Any:
        if isinstance(item, list):
            return [restored(inner) for inner in item]
        if not isinstance(item, dict):
            return item
        if "array" in item:
            return entries[f"{name}/{item['array']}"]
        if "tuple" in item:
            return tuple(restored(inner) for inner in item["tuple"])
        return {key: restored(inner) for key, inner in item["dict"].items()}

    return restored(json.loads(str(entries[name])))
