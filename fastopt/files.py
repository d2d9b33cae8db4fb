"""Files that are replaced at once or not at all; arrays and nested values in npz and safetensors, with checksums.

docs/files.md has the formats, and what is promised of files that are damaged or foreign.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from fastopt import environment
from fastopt.checks import Array

try:
    import fcntl
except ImportError:  # Windows, which does not remove files that are open
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")
#: An entry of a file.
Entry = Array | str

# ---- Replacing a file -------------------------------------------------------------------------------------------

_PART = re.compile(r"\.[0-9a-f]{1,16}\.part")


def replace(path: str | os.PathLike[str], write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file beside `path`, flush it to the disk, and rename it to `path`.

    A process that is killed meanwhile leaves `path` as it was, and a file ``<path>.<random>.part`` beside it, which
    `discard_parts` removes. Where `path` is a symbolic link, its target is replaced. An existing file keeps its
    permission bits, and its owner as far as the process may give it away.

    Parameters
    ----------
    path : path
    write : callable
        ``write(file)`` writes the contents to a binary file.

    Raises
    ------
    TypeError
        Where `path` is no path.
    OSError
        Where the file cannot be written; FIFOs, sockets and devices are refused.
    """
    target, old = _target(path)
    file, part, lock = _new_part(target, old)
    try:
        with file:
            write(file)
            file.flush()
            if old is not None:
                _take_after(file.fileno(), old)
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)
    _flush_folder(target.parent)


def check(path: str | os.PathLike[str]) -> None:
    """See whether `replace` could write there, as far as can be seen before.

    Raises
    ------
    TypeError, OSError
        As in `replace`.
    """
    target, _ = _target(path)
    if not os.path.isdir(target.parent):
        raise FileNotFoundError(errno.ENOENT, "no such folder", os.fspath(target.parent))
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "the folder must be writable", os.fspath(target.parent))


def discard_parts(path: str | os.PathLike[str]) -> None:
    """Remove the files of processes that were killed while they replaced `path`, and no file that is being written."""
    target, _ = _target(path)
    stem = _stem(target)
    for other in target.parent.iterdir():
        if other.name.startswith(stem) and _PART.fullmatch(other.name, len(stem)):
            with contextlib.suppress(OSError):  # it is in use, or another process was quicker
                lock = _locked(os.open(other, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)))
                try:
                    other.unlink()
                finally:
                    os.close(lock)


def _path(path: Any) -> Path:
    try:
        return Path(os.fsdecode(path))
    except TypeError:
        raise TypeError(f"path must be text or a path, got {type(path).__name__}") from None


def _found(path: Path) -> os.stat_result | None:
    """What stands at a path, behind symbolic links; None where nothing does."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "path must name a file, got a folder", os.fspath(path))
    if not stat.S_ISREG(found.st_mode):
        mode = found.st_mode
        kind = "a FIFO" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise OSError(errno.EINVAL, f"path must name a regular file, got {kind}", os.fspath(path))
    return found


def _target(path: Any) -> tuple[Path, os.stat_result | None]:
    """The file that a path names, and what is there so far."""
    named = _path(path)
    old = _found(named)
    if old is not None and not os.access(named, os.W_OK):
        raise PermissionError(errno.EACCES, "path must name a file that may be written", os.fspath(named))
    return (Path(os.path.realpath(named)) if named.is_symlink() else named), old


def _stem(target: Path) -> str:
    """The beginning of the names of `target`'s parts: its own name, as much as leaves room for the rest."""
    try:
        longest = os.pathconf(target.parent, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        longest = 255
    room = longest - len(".0123456789abcdef.part")
    name = os.fsencode(target.name)
    return target.name if len(name) <= room else name[:room].decode(errors="ignore")


def _new_part(target: Path, old: os.stat_result | None) -> tuple[IO[bytes], Path, int | None]:
    """A new file beside `target`, its path, and a descriptor that keeps it locked while it is open."""
    stem = _stem(target)
    mode = 0o666 if old is None else 0o600
    while True:
        part = target.with_name(f"{stem}.{secrets.token_hex(8)}.part")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        except FileExistsError:
            continue
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(target)) from None
        if fcntl is None:
            return os.fdopen(descriptor, "wb"), part, None
        try:
            lock = _locked(os.dup(descriptor))
        except BlockingIOError:  # `discard_parts` has come between the two
            os.close(descriptor)
            continue
        except OSError:  # a file system without locks, on which no parts are discarded
            return os.fdopen(descriptor, "wb"), part, None
        if os.fstat(descriptor).st_nlink:
            return os.fdopen(descriptor, "wb"), part, lock
        os.close(lock)  # it has been discarded
        os.close(descriptor)


def _locked(descriptor: int) -> int:
    """The descriptor of a file, locked until it and all its copies are closed: other threads, processes and containers
    see that the file is in use. Where it cannot be locked, it is closed."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _take_after(descriptor: int, old: os.stat_result) -> None:
    """Give a new file the owner and the permissions of an old one."""
    if hasattr(os, "fchown"):
        with contextlib.suppress(OSError):
            os.fchown(descriptor, old.st_uid, old.st_gid)
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, stat.S_IMODE(old.st_mode))


def _flush_folder(folder: Path) -> None:
    """Flush a new name to the disk."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may not be listed; Windows cannot open any
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that does not flush folders
            raise
    finally:
        os.close(descriptor)


# ---- Entries in a file ------------------------------------------------------------------------------------------

#: The format that is written. Files of format 1, those of fastopt 0.1, have neither a header nor a checksum.
FORMAT = 2
#: The entry that says so.
HEADER = "fastopt"
#: What files hold, in the words of the functions that ask for it, and of those that were given another one.
_WANTED = {
    "model": "a model that Sequential.save wrote",
    "optimizer": "a file that fastopt.save wrote",
    "checkpoint": "a checkpoint of a run",
    "ensemble": "an ensemble that Ensemble.save wrote",
    "arrays": "arrays that fastopt wrote",
    "any": "a file that fastopt wrote",
}
_HELD = {
    "model": "a model, which fastopt.nn.load reads",
    "optimizer": "the state of an optimizer, which fastopt.load reads",
    "checkpoint": "a checkpoint, which ModelCheckpoint(path, resume=True) and fastopt.nn.load read",
    "ensemble": "an ensemble, which fastopt.nn.Ensemble.load reads",
    "arrays": "arrays",
}
_NPZ, _SAFETENSORS = "npz", "safetensors"
#: Numbers and text: no objects, which would be pickled.
_KINDS = "biufcSU"
#: The longest header of an array in an npz file; NumPy writes some 100 bytes, and up to 1,000 for 64 dimensions.
_LONGEST_HEADER = 2000


def ending(path: str | os.PathLike[str], kind: str = "arrays") -> str:
    """The format that a name asks for: ``"npz"`` or ``"safetensors"``; npz where it has no ending.

    >>> ending("model.npz"), ending("run-3.safetensors"), ending("best-0.25")
    ('npz', 'safetensors', 'npz')

    Raises
    ------
    ValueError
        Where it is the ending of another format.
    """
    name = _path(path).name
    found = re.search(r"\.([A-Za-z][^.]*)\Z", name, re.DOTALL)
    if found is None:
        return _NPZ
    if (word := found[1].lower()) in (_NPZ, _SAFETENSORS):
        return word
    hint = ""
    if word in ("pt", "pth"):
        hint = "; for PyTorch, " + (
            "give fastopt.to_torch(optimizer) to torch.save"
            if kind == "optimizer"
            else "give the arrays of model.params to torch.from_numpy, and those tensors to torch.save"
        )
    raise ValueError(f"path must end in .npz or .safetensors, got {os.fspath(path)!r}{hint}")


def write_arrays(path: str | os.PathLike[str], entries: Mapping[str, Any], kind: str = "arrays") -> None:
    """Replace a file by one with these entries, in the format of its ending.

    Parameters
    ----------
    path : path
    entries : dict of ndarray or str
    kind : str
        What the file holds.

    Raises
    ------
    ImportError
        Where the format is that of safetensors, and the package is missing.
    TypeError, ValueError, OSError
        Where an entry has no place in the format, the ending is another one, or as in `replace`.
    """
    format_ = ending(path, kind)
    own = {name: _entry(name, value) for name, value in entries.items()}
    digests = {name: _digest(value) for name, value in own.items()}
    header = json.dumps(_header(kind, digests, environment.record()))
    if format_ == _SAFETENSORS:
        arrays = {name: value for name, value in own.items() if not isinstance(value, str)}
        for name, array in arrays.items():
            if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
                raise TypeError(f"{name} must be an array of real numbers in a .safetensors file, got {array.dtype}")
        texts = {name: value for name, value in own.items() if isinstance(value, str)}
        parts = _sorted(safetensors().numpy.save(arrays, metadata={HEADER: header, **texts}))
        replace(path, lambda file: file.writelines(parts))
    else:
        members: dict[str, Any] = {HEADER: header, **own}
        replace(path, lambda file: np.savez(file, **members))


def read_arrays(path: str | os.PathLike[str], *kinds: str, take: Callable[[dict[str, Entry]], T]) -> T:
    """What `take` makes of the entries of a file.

    Parameters
    ----------
    path : path
    *kinds : str
        What the file may hold.
    take : callable
        ``take(entries)``; what it raises says that the file is none of those.

    Raises
    ------
    ImportError
        As in `write_arrays`.
    OSError
        Where the file cannot be read.
    ValueError
        Where it is of a later version, foreign, damaged, or holds something else.
    """
    named = _path(path)
    if named.suffix.lower() == ".safetensors":
        safetensors()
    found = _found(named)
    with _saying(named, kinds[0]):
        header, entries = _entries(named, 0 if found is None else found.st_size)
        if header["kind"] not in kinds:
            raise ValueError(f"it holds {_HELD.get(header['kind'], header['kind'])}")
        return take(entries)


def read_any(path: str | os.PathLike[str], *, take: Callable[[dict[str, Any], Any], T]) -> T:
    """What `take` makes of a file of any kind.

    Parameters
    ----------
    path : path
    take : callable
        ``take(header, entries)``: the header has ``kind`` and ``format``, and, unless the file is older, the
        ``environment`` that it was written in. Of a file in JSON, the kind is ``"json"``, and its contents come in the
        place of entries. What it raises says that the file is none of fastopt's.

    Raises
    ------
    ImportError, OSError, ValueError
        As in `read_arrays`.
    """
    named = _path(path)
    found = _found(named)
    with _saying(named, "any"):
        with open(named, "rb") as file:
            if file.read(1) in (b"{", b"["):
                file.seek(0)
                return take({"kind": "json"}, json.load(file))
        header, entries = _entries(named, 0 if found is None else found.st_size)
        return take({name: header[name] for name in ("kind", "format", "environment") if name in header}, entries)


@contextlib.contextmanager
def _saying(path: Path, kind: str) -> Iterator[None]:
    """Let an error say which file it is about. Damage comes to light as errors of all sorts in the libraries."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        said = f"it lacks the entry {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise ValueError(f"path must name {_WANTED[kind]}, got {os.fspath(path)!r}: {said}") from error


def _entries(path: Path, size: int) -> tuple[dict[str, Any], dict[str, Entry]]:
    """The header of a file, which has been checked, and its other entries."""
    with open(path, "rb") as file:
        start = file.read(16)
        length = int.from_bytes(start[:8], "little")
        if start[:2] == b"PK":
            entries = _of_npz(file, size)
        elif start[8:9] != b"{":
            raise ValueError(f"it begins with {start!r}" if start else "it is empty")
        elif length > size - 8:
            raise ValueError(
                f"its header should have {length} bytes, and the file has {size}: it was cut, or is foreign"
            )
        else:
            entries = _of_safetensors(path)
    header = entries.pop(HEADER, None)
    if header is None:
        return {"format": 1, "kind": _kind_of_format_1(entries)}, entries
    return _checked(header, entries), entries


def _checked(header: Entry, entries: Mapping[str, Entry]) -> dict[str, Any]:
    """The header of a file, once it and the checksums are seen to be right."""
    said = json.loads(str(header))
    version = said["format"]
    if type(version) is not int or version < FORMAT:
        raise ValueError(f"its format must be at least {FORMAT}, got {version!r}")
    if version > FORMAT:
        raise ValueError(f"it is of format {version}, of a later version of fastopt; this one reads up to {FORMAT}")
    digests = said["entries"]
    if said != _header(said["kind"], digests, said.get("environment")):
        raise ValueError("its header does not have the checksum that was written: the file is damaged")
    if not isinstance(said.get("environment", {}), dict):
        raise ValueError(f"its environment must be a table, got {said['environment']!r:.80}")
    if odd := digests.keys() ^ entries.keys():
        verb = "lacks" if min(odd) in digests else "was given"
        raise ValueError(f"it {verb} the entry {min(odd)}: the file is damaged")
    for name, value in entries.items():
        if _digest(value) != digests[name]:
            raise ValueError(f"its entry {name} does not have the checksum that was written: the file is damaged")
    said["kind"] = str(said["kind"])
    return dict(said)


def _kind_of_format_1(entries: Mapping[str, Entry]) -> str:
    """What a file of fastopt 0.1 holds."""
    texts = {name for name, value in entries.items() if isinstance(value, str)}
    for kind, own, parts in (
        ("checkpoint", {"config", "run"}, ("params/", "state/", "run/")),
        ("model", {"config"}, ("params/", "state/")),
        ("optimizer", {"optimizer"}, ("optimizer/",)),
    ):
        if own <= texts and all(name in own or name.startswith(parts) for name in entries):
            return kind
    shown = ", ".join(sorted(entries)[:5]) + (", …" if len(entries) > 5 else "")
    raise ValueError(f"it is not of fastopt, and holds {shown or 'nothing'}")


def _entry(name: str, value: Any) -> Entry:
    """An entry as it is read again."""
    if isinstance(value, str):
        return value
    array = np.asarray(value, order="C")  # safetensors would write the bytes of others in another order
    if array.dtype.kind not in _KINDS:
        raise TypeError(f"{name} must be an array of numbers or text, got {array.dtype}")
    if array.dtype.kind == "U" and array.ndim == 0:
        return str(array)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _header(kind: str, digests: Mapping[str, str], written_in: Mapping[str, str] | None) -> dict[str, Any]:
    """What a file says about itself: format, kind, environment, the checksum of each entry, and that of all this."""
    said = {"format": FORMAT, "kind": kind, "entries": digests}
    if written_in is not None:  # which older files have not
        said["environment"] = written_in
    return {**said, "sha256": hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()}


def _digest(value: Entry) -> str:
    """SHA-256 over the type and shape of an entry, and its bytes, the least significant first."""
    if isinstance(value, str):
        return hashlib.sha256(b'["text"]' + value.encode()).hexdigest()
    little = value.astype(value.dtype.newbyteorder("<"), copy=False)
    whole = hashlib.sha256(json.dumps([little.dtype.str, list(little.shape)]).encode())
    if little.nbytes:
        whole.update(np.ravel(little).view(np.uint8).data)
    return whole.hexdigest()


# ---- The two formats --------------------------------------------------------------------------------------------


def safetensors() -> Any:
    """The package, which is an extra."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("*.safetensors needs safetensors: pip install 'fastopt[safetensors]'") from error
    return safetensors


def _sorted(data: bytes) -> tuple[bytes, memoryview]:
    """A file of safetensors with its metadata in order, which the package writes in another order each time."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, memoryview(data)[end:]


def _of_safetensors(path: Path) -> dict[str, Entry]:
    """Its header is checked against the size of the file by the package."""
    with safetensors().safe_open(os.fspath(path), framework="np") as file:
        names = list(file.keys())
        texts = file.metadata() or {}
        if both := texts.keys() & set(names):
            raise ValueError(f"it has more than one entry {min(both)}")
        return {**texts, **{name: file.get_tensor(name) for name in names}}


def _of_npz(file: IO[bytes], size: int) -> dict[str, Entry]:
    """Entries are not compressed, so that together they are smaller than the file: that is seen to before memory is
    taken for any."""
    with zipfile.ZipFile(file) as members:
        infos = members.infolist()
        names = [info.filename.removesuffix(".npy") for info in infos]
        seen: set[str] = set()
        for name, info in zip(names, infos, strict=True):
            if name in seen:
                raise ValueError(f"it has more than one entry {name}")
            seen.add(name)
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or name == info.filename:
                raise ValueError(f"its entry {name} is not one that NumPy has written uncompressed")
            if info.compress_size != info.file_size:
                raise ValueError(f"its entry {name} has two sizes, {info.file_size} and {info.compress_size} bytes")
        if (total := sum(info.file_size for info in infos)) > size:
            raise ValueError(f"its entries should have {total} bytes, and the file has {size}")
        return {name: _member(members, info) for name, info in zip(names, infos, strict=True)}


def _member(members: zipfile.ZipFile, info: zipfile.ZipInfo) -> Entry:
    """One entry of an npz file."""
    with members.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"its entry {info.filename} is of version {version} of NumPy's format")
        read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        shape, fortran_order, dtype = read_header(file, max_header_size=_LONGEST_HEADER)
        if dtype.kind not in _KINDS:
            raise ValueError(f"its entry {info.filename} must hold numbers or text, got {dtype}")
        wanted, given = math.prod(shape) * dtype.itemsize, info.file_size - file.tell()
        if wanted != given or any(length < 0 for length in shape):
            raise ValueError(f"its entry {info.filename} of shape {shape} needs {wanted} bytes, and has {given}")
        array = np.empty(shape[::-1] if fortran_order else shape, dtype)
        if wanted:
            view = array.reshape(-1).view(np.uint8).data
            done = 0
            while done < wanted:
                read = file.readinto(view[done : done + 2**20])  # type: ignore[attr-defined]
                if not read:
                    raise ValueError(f"its entry {info.filename} ends after {done} of {wanted} bytes")
                done += read
        if file.read(1):  # which also compares the checksum of the archive
            raise ValueError(f"its entry {info.filename} does not end where it should")
    return _entry(info.filename, array.T if fortran_order else array)


# ---- Nested values ----------------------------------------------------------------------------------------------


def pack(name: str, value: Any) -> dict[str, Any]:
    """Entries of a file for a nested value: its JSON under `name`, and arrays under ``"<name>/<number>"``.

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
        Where a value or a key is of another type.

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
            for key in item:
                if not isinstance(key, str):
                    raise TypeError(f"keys of {name} must be text, got {key!r}")
            return {"dict": {key: plain(inner) for key, inner in item.items()}}
        if isinstance(item, tuple):
            return {"tuple": [plain(inner) for inner in item]}
        if isinstance(item, list):
            return [plain(inner) for inner in item]
        return item

    text = json.dumps(plain(value))
    return {name: text} | {f"{name}/{number}": array for number, array in enumerate(arrays)}


def unpack(name: str, entries: Mapping[str, Any]) -> Any:
    """The inverse of `pack`."""

    def restored(item: Any) -> Any:
        if isinstance(item, list):
            return [restored(inner) for inner in item]
        if not isinstance(item, dict):
            return item
        if "array" in item:
            return np.asarray(entries[f"{name}/{item['array']}"])
        if "tuple" in item:
            return tuple(restored(inner) for inner in item["tuple"])
        return {key: restored(inner) for key, inner in item["dict"].items()}

    return restored(json.loads(str(entries[name])))
