"""Files are whole, or refused: replaced at once, by many at a time; damaged, foreign, of later versions, or crafted."""

import errno
import functools
import json
import os
import re
import shutil
import socket
import stat
import struct
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import files, nn

OLD = Path(__file__).parent / "fixtures" / "0.1"
ENDINGS = ["npz", "safetensors"]
#: Damaged files of each kind and ending; a thousand and more find what is rare.
FUZZ = int(os.environ.get("FASTOPT_FUZZ", "60"))
#: Processes that are killed.
KILLS = int(os.environ.get("FASTOPT_KILLS", "20"))


@pytest.fixture(params=ENDINGS)
def ending(request):
    if request.param == "safetensors":
        pytest.importorskip("safetensors")
    return request.param


def small(seed=0):
    return nn.Sequential([nn.Dense(4), nn.BatchNorm(), nn.ReLU(), nn.Dense(2)], (3,), seed=seed)


def arrays_of(model):
    return {name: array.tobytes() for name, array in (model.params | model.state).items()}


# ---- Replacing --------------------------------------------------------------------------------------------------


def at_once(*calls):
    """Calls in threads, as nearly at once as can be; what they raise, if anything."""
    start, raised = threading.Barrier(len(calls)), []

    def run(call):
        start.wait()
        try:
            call()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_threads_save_to_one_path(tmp_path, ending):
    """One of the files is there in the end, whole."""
    path, models = tmp_path / f"model.{ending}", [small(seed) for seed in range(4)]
    for _ in range(15):
        assert at_once(*(functools.partial(model.save, path) for model in models)) == []
        assert arrays_of(nn.load(path)) in [arrays_of(model) for model in models]
        assert os.listdir(tmp_path) == [path.name]


def test_equal_process_ids(tmp_path, monkeypatch):
    """Two containers on one disk."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    inner, path = small(1), tmp_path / "model.npz"

    def write(file):
        inner.save(path)
        file.write(b"outer")

    files.replace(path, write)
    assert path.read_bytes() == b"outer"


def test_what_is_being_written_is_not_discarded(tmp_path):
    path = tmp_path / "file"
    abandoned = tmp_path / "file.0123456789abcdef.part"
    abandoned.write_bytes(b"")

    def write(file):
        files.discard_parts(path)
        file.write(b"whole")

    files.replace(path, write)
    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["file"]


def test_saving_and_resuming_at_once(tmp_path):
    """Who discards parts does not take those of others, however the two fall together."""
    path, models = tmp_path / "model.npz", [small(seed) for seed in range(3)]
    calls = [functools.partial(model.save, path) for model in models] + [functools.partial(files.discard_parts, path)]
    for _ in range(30):
        assert at_once(*calls) == []
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_permissions_are_kept(tmp_path, mode):
    path = tmp_path / "model.npz"
    path.touch()
    path.chmod(mode)
    small().save(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_follows_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        small().save(tmp_path / "model.npz")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.npz").stat().st_mode) == 0o666 & ~mask


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_is_protected_is_not_replaced(tmp_path):
    path = tmp_path / "model.npz"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match="may be written"):
        small().save(path)
    assert path.read_bytes() == b"old"


def test_symbolic_links_are_written_through(tmp_path):
    (tmp_path / "disk").mkdir()
    target, link, further = tmp_path / "disk" / "a.npz", tmp_path / "link.npz", tmp_path / "further.npz"
    link.symlink_to(target)
    further.symlink_to("link.npz")
    for seed in (0, 1):  # at first it leads nowhere
        small(seed).save(further)
        assert link.is_symlink()
        assert further.is_symlink()
        assert not target.is_symlink()
        assert arrays_of(nn.load(target)) == arrays_of(small(seed))
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "link.npz", "further.npz"}
    assert os.listdir(tmp_path / "disk") == ["a.npz"]


def test_links_in_a_circle(tmp_path):
    (tmp_path / "a.npz").symlink_to("b.npz")
    (tmp_path / "b.npz").symlink_to("a.npz")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        small().save(tmp_path / "a.npz")


@pytest.mark.parametrize("what", ["a FIFO", "a socket", "a device", "a folder"])
def test_what_is_no_file_is_neither_replaced_nor_read(tmp_path, what):
    path = tmp_path / "odd"
    with socket.socket(socket.AF_UNIX) as unix:
        if what == "a FIFO":
            os.mkfifo(path)
        elif what == "a socket":
            unix.bind(os.path.relpath(path))
        elif what == "a device":
            path.symlink_to(os.devnull)
        else:
            path.mkdir()
        before = os.stat(path)
        adam = fastopt.Adam(np.ones(2))
        calls = [small().save, functools.partial(fastopt.save, adam), nn.load, functools.partial(fastopt.load, adam)]
        calls += [nn.History().save]
        for call in calls:
            with pytest.raises(OSError, match=f"got {what}") as caught:
                call(path)
            assert str(path) in str(caught.value)
        after = os.stat(path)
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert os.listdir(tmp_path) == ["odd"]


@pytest.mark.parametrize("letter", ["a", "ü", "語"])
def test_names_of_any_length(tmp_path, letter, ending):
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    for length in range(longest - 30, longest + 1):
        room = length - len(ending) - 1
        name = letter * (room // len(letter.encode())) + "b" * (room % len(letter.encode())) + f".{ending}"
        assert len(os.fsencode(name)) == length
        (tmp_path / name).touch()  # a name that can be
        model = small(length)
        model.save(tmp_path / name)
        assert arrays_of(nn.load(tmp_path / name)) == arrays_of(model)
        files.discard_parts(tmp_path / name)
        (tmp_path / name).unlink()
    assert os.listdir(tmp_path) == []


def test_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "model.npz"
    small(0).save(path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        small(1).save(path)
    assert arrays_of(nn.load(path)) == arrays_of(small(0))
    assert os.listdir(tmp_path) == ["model.npz"]


def test_file_and_folder_are_flushed(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (flushed.append(stat.S_IFMT(os.fstat(fd).st_mode)), fsync(fd)))
    small().save(tmp_path / "model.npz")
    assert flushed == [stat.S_IFREG, stat.S_IFDIR]


@pytest.mark.parametrize("path", [3, None, b"a\0b.npz", "a\0b.npz", object()])
def test_what_is_no_path(path):
    with pytest.raises((TypeError, ValueError), match=r"path must be text or a path, got|null"):
        small().save(path)
    with pytest.raises((TypeError, ValueError), match=r"path must be text or a path, got|null"):
        nn.load(path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none/model\.npz'$"):
        small().save(tmp_path / "none" / "model.npz")


def test_a_history_is_replaced_at_once(tmp_path, monkeypatch):
    history = nn.History(loss=[1.0])
    history.save(tmp_path / "history.json")
    history.add({"loss": float("nan")})
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        history.save(tmp_path / "history.json")
    assert json.loads((tmp_path / "history.json").read_text()) == {"loss": [1.0]}
    assert os.listdir(tmp_path) == ["history.json"]


# ---- Endings ----------------------------------------------------------------------------------------------------


def start(path, format_):
    return path.read_bytes()[:2] == b"PK" if format_ == "npz" else path.read_bytes()[8:9] == b"{"


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("m.npz", "npz"),
        ("m.NPZ", "npz"),
        ("m", "npz"),
        ("best-3-0.25", "npz"),
        ("m.safetensors", "safetensors"),
        ("m.SafeTensors", "safetensors"),
        (".safetensors", "safetensors"),
        ("a.b/m.safetensors", "safetensors"),
    ],
)
def test_the_ending_decides_the_format(tmp_path, name, format_):
    if format_ == "safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    model, x, y = small(), np.eye(3), np.arange(3) % 2
    model.save(path)
    assert start(path, format_)
    assert arrays_of(nn.load(path)) == arrays_of(model)
    assert repr(nn.load(path)) == repr(model)
    adam = fastopt.Adam(model.params)
    fastopt.save(adam, path)
    assert start(path, format_)
    fastopt.load(adam, path)
    model.fit(x, y, epochs=2, callbacks=[nn.ModelCheckpoint(path)])
    assert start(path, format_)
    assert arrays_of(nn.load(path)) == arrays_of(model)


@pytest.mark.parametrize("name", ["m.onnx", "o.pt", "o.pth", "m.h5", "m.npz.gz", "m.npy", "m.pkl", "m.json", "m.npz "])
def test_other_endings_are_refused(tmp_path, name):
    model = small()
    wanted = r"^path must end in \.npz or \.safetensors, got "
    for save in (model.save, lambda path: fastopt.save(fastopt.SGD(model.params, lr=0.1), path), nn.ModelCheckpoint):
        with pytest.raises(ValueError, match=wanted):
            save(tmp_path / name)
    assert os.listdir(tmp_path) == []
    if name[-3:] in (".pt", "pth"):
        with pytest.raises(ValueError, match=r"give fastopt\.to_torch\(optimizer\) to torch\.save$"):
            fastopt.save(fastopt.SGD(model.params, lr=0.1), tmp_path / name)
        with pytest.raises(ValueError, match=r"model\.params to torch\.from_numpy"):
            model.save(tmp_path / name)


def test_a_checkpoint_refuses_before_it_trains(tmp_path):
    model = small()
    before = arrays_of(model)
    for path, error, message in (
        ("none/a.npz", FileNotFoundError, "no such folder"),
        ("{nonsense}.npz", ValueError, "path may have epoch, loss, accuracy, samples_per_second in braces, .*nonsense"),
        ("{loss:d}.npz", ValueError, "path may have epoch, loss"),
        ("{loss:.1f}.onnx", ValueError, r"path must end in \.npz or \.safetensors"),
    ):
        with pytest.raises(error, match=message):
            model.fit(np.eye(3), np.arange(3) % 2, callbacks=[nn.ModelCheckpoint(tmp_path / path)])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        model.fit(np.eye(3), np.arange(3) % 2, callbacks=[nn.CSVLogger(tmp_path / "none" / "log.csv")])
    assert arrays_of(model) == before
    assert os.listdir(tmp_path) == []


def test_what_old_versions_wrote_by_another_name_is_read(tmp_path):
    """0.1 wrote an archive whatever the ending."""
    pytest.importorskip("safetensors")
    for name in ("m.safetensors", "m.onnx", "m.pt"):
        shutil.copy(OLD / "mlp.npz", tmp_path / name)
        assert arrays_of(nn.load(tmp_path / name)) == arrays_of(nn.load(OLD / "mlp.npz"))


# ---- What is in a file ------------------------------------------------------------------------------------------


def test_what_has_no_place_in_a_file(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    for entries, message in (
        ({"x": np.array([object()])}, "x must be an array of numbers or text, got object"),
        ({"x": np.zeros(2, [("a", "f4")])}, "x must be an array of numbers or text, got"),
        ({"x": np.zeros(2, "M8[s]")}, "x must be an array of numbers or text, got datetime64"),
    ):
        with pytest.raises(TypeError, match=message):
            files.write_arrays(path, entries)
    if ending == "safetensors":
        for array in (np.ones(2, complex), np.array(["a"])):
            with pytest.raises(TypeError, match=r"x must be an array of real numbers in a \.safetensors file"):
                files.write_arrays(path, {"x": array})
    with pytest.raises(TypeError, match="keys of run must be text, got 1"):
        files.pack("run", {"a": {1: 2}})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3).T,
        np.arange(12.0)[::2],
        np.arange(3, dtype=">i4"),
        np.zeros((0, 3)),
        np.float64(2.5),
        np.array([True, False]),
        np.arange(3, dtype=np.float16),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_arrays_come_back(tmp_path, ending, array):
    path = tmp_path / f"a.{ending}"
    files.write_arrays(path, {"x": array, "text": "ü\n"})
    back = files.read_arrays(path, "arrays", take=dict)
    assert back["text"] == "ü\n"
    assert back["x"].dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(back["x"], array)
    assert back["x"].shape == array.shape


def test_numpy_reads_it(tmp_path):
    small().save(tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz", allow_pickle=False) as arrays:
        for name, param in small().params.items():
            np.testing.assert_array_equal(arrays[f"params/{name}"], param)
        header = json.loads(str(arrays["fastopt"]))
    assert (header["format"], header["kind"]) == (2, "model")
    assert set(header["entries"]) == {
        "config",
        *(f"params/{n}" for n in small().params),
        *(f"state/{n}" for n in small().state),
    }


def test_one_kind_is_not_taken_for_another(tmp_path, ending):
    model = small()
    adam = fastopt.Adam(model.params)
    paths = {kind: tmp_path / f"{kind}.{ending}" for kind in ("model", "optimizer", "checkpoint")}
    model.save(paths["model"])
    fastopt.save(adam, paths["optimizer"])
    resume = nn.ModelCheckpoint(paths["checkpoint"])
    model.fit(np.eye(3), np.arange(3) % 2, optimizer=adam, callbacks=[resume])
    for path, message in (
        (paths["model"], "a model, which fastopt.nn.load reads"),
        (paths["checkpoint"], "a checkpoint"),
    ):
        with pytest.raises(
            ValueError, match=rf"^path must name a file that fastopt\.save wrote, got .*: it holds {message}"
        ):
            fastopt.load(adam, path)
    with pytest.raises(
        ValueError, match=r"^path must name a model .*: it holds the state of an optimizer, which fastopt\.load"
    ):
        nn.load(paths["optimizer"])
    for kind in ("model", "optimizer"):
        with pytest.raises(ValueError, match=r"^path must name a checkpoint of a run, got .*: it holds "):
            model.fit(np.eye(3), np.arange(3) % 2, callbacks=[nn.ModelCheckpoint(paths[kind], resume=True)])


def test_a_model_is_not_an_optimizer(tmp_path):
    for call in (fastopt.save, fastopt.load):
        with pytest.raises(TypeError, match=r"optimizer must have a state_dict, got Sequential; a model is written by"):
            call(small(), tmp_path / "m.npz")
        with pytest.raises(TypeError, match=r"optimizer must have a state_dict, got dict$"):
            call({}, tmp_path / "m.npz")


def header_of(path):
    with np.load(path, allow_pickle=False) as entries:
        entries = dict(entries)
    return json.loads(str(entries["fastopt"])), entries


def rewrite(path, entries, header=None):
    if header is not None:
        entries = entries | {"fastopt": json.dumps(header)}
    with open(path, "wb") as file:
        np.savez(file, **entries)


def test_a_later_version(tmp_path):
    path = tmp_path / "m.npz"
    small().save(path)
    _, entries = header_of(path)
    rewrite(path, entries, {"format": 3, "anything": []})
    with pytest.raises(
        ValueError, match=r"m\.npz': it is of format 3, of a later version of fastopt; this one reads up to 2$"
    ):
        nn.load(path)


FOREIGN = {
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "text": b"epoch,loss\n1,0.5\n",
    "JSON": b'{"loss": [1, 2, 3], "accuracy": [1, 2]}',
    "empty": b"",
    "one byte": b"P",
    "zeros": bytes(1000),
    "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94.",
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(64),
    "gzip": b"\x1f\x8b\x08\0" + bytes(20),
    "empty archive": b"PK\5\6" + bytes(18),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_foreign_files(tmp_path, content, ending):
    path, adam = tmp_path / f"a.{ending}", fastopt.Adam(np.ones(2))
    path.write_bytes(content)
    model = small()
    resume = nn.ModelCheckpoint(path, resume=True)
    for wanted, call in (
        ("a model", lambda: nn.load(path)),
        ("a file that fastopt.save wrote", lambda: fastopt.load(adam, path)),
        ("a checkpoint", lambda: model.fit(np.eye(3), np.arange(3) % 2, callbacks=[resume])),
    ):
        with pytest.raises(ValueError, match=rf"^path must name {wanted}.*, got {re.escape(repr(str(path)))}: \w"):
            call()


def test_foreign_arrays_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", weights=np.ones(3), bias=np.ones(2))
    with pytest.raises(ValueError, match=r"it is not of fastopt, and holds bias, weights$"):
        nn.load(tmp_path / "a.npz")


def test_objects_are_not_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "evil"),))

    with open(tmp_path / "a.npz", "wb") as file:
        np.savez(file, config=np.array([Evil()], object))
    with pytest.raises(ValueError, match="must hold numbers or text, got object"):
        nn.load(tmp_path / "a.npz")
    assert not (tmp_path / "evil").exists()


# ---- Damage -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    """Files of each kind and ending, with the function that reads one to something that can be compared."""
    folder = tmp_path_factory.mktemp("whole")
    model = small()
    adam = fastopt.Adam(model.params, lr=fastopt.schedules.bind(fastopt.schedules.cosine, peak=0.1, steps=9))
    made = {}
    x, y = np.eye(3), np.arange(3) % 2

    def train(path, **options):
        other = small()
        callbacks = [nn.ModelCheckpoint(path, resume=True), nn.EarlyStopping("loss")]
        history = other.fit(x, y, epochs=2, callbacks=callbacks, **options)
        return other, history

    def of_model(path):
        loaded = nn.load(path)
        return repr(loaded), arrays_of(loaded)

    def of_optimizer(path):
        other = fastopt.Adam(model.params)
        fastopt.load(other, path)
        state = other.state_dict()
        arrays = {(n, k): a.tobytes() for n, each in state.pop("state").items() for k, a in each.items()}
        return json.dumps(state), arrays

    def of_checkpoint(path):
        other, history = train(path)
        assert history["samples_per_second"]
        return history, history.stopped, arrays_of(other)

    for ending in ENDINGS:
        try:
            fastopt.save(adam, folder / f"optimizer.{ending}")
        except ImportError:
            continue
        model.fit(x, y, epochs=2, optimizer=adam)
        fastopt.save(adam, folder / f"optimizer.{ending}")
        model.save(folder / f"model.{ending}")
        train(folder / f"checkpoint.{ending}")
        for kind, read in (("model", of_model), ("optimizer", of_optimizer), ("checkpoint", of_checkpoint)):
            made[kind, ending] = (folder / f"{kind}.{ending}").read_bytes(), read
    return made


def flip(content, rng):
    content = bytearray(content)
    for place in rng.integers(len(content), size=rng.integers(1, 4)):
        content[place] ^= 1 << rng.integers(8)
    return bytes(content)


def cut(content, rng):
    return content[: rng.integers(len(content))]


def cut_inside(content, rng):
    begin, end = sorted(rng.integers(len(content) + 1, size=2))
    return content[:begin] + content[end:]


def zero(content, rng):
    begin = int(rng.integers(len(content)))
    length = int(min(2 ** rng.integers(10), len(content) - begin))
    return content[:begin] + bytes(length) + content[begin + length :]


def noise(content, rng):
    begin = int(rng.integers(len(content)))
    length = int(min(2 ** rng.integers(7), len(content) - begin))
    return content[:begin] + rng.bytes(length) + content[begin + length :]


def swap_blocks(content, rng):
    length = int(2 ** rng.integers(2, 9))
    a, b = sorted(int(place) for place in rng.integers(max(len(content) - 2 * length, 1), size=2))
    b += length
    return (
        content[:a]
        + content[b : b + length]
        + content[a + length : b]
        + content[a : a + length]
        + content[b + length :]
    )


def repeat(content, rng):
    begin, end = sorted(rng.integers(len(content) + 1, size=2))
    return content[:end] + content[begin:]


def huge_number(content, rng):
    """A size of something, maybe, becomes enormous."""
    form = ["<H", "<I", "<Q"][rng.integers(3)]
    size = struct.calcsize(form)
    place = int(rng.integers(len(content) - size))
    number = [2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 2)][rng.integers(3)]
    return content[:place] + struct.pack(form, number) + content[place + size :]


def other_digits(content, rng):
    """A number in the headers of arrays, or in JSON."""
    places = [match.start() for match in re.finditer(rb"\d", content)]
    place = places[rng.integers(len(places))]
    return content[:place] + b"9" * int(rng.integers(1, 15)) + content[place + int(rng.integers(2)) :]


DAMAGE = [flip, cut, cut_inside, zero, noise, swap_blocks, repeat, huge_number, other_digits]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("kind", ["model", "optimizer", "checkpoint"])
def test_damage_is_told_or_harmless(whole_files, kind, damage, ending, tmp_path, monkeypatch):
    """Either it is refused, or what is read is what was written; no memory is taken for what is not there."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    content, read = whole_files[kind, ending]
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content)
    wanted = read(path)
    rng, messages = np.random.default_rng(DAMAGE.index(damage)), []
    count = FUZZ // 3 if kind == "checkpoint" else FUZZ
    tracemalloc.start()
    try:
        for i in range(count):
            path.write_bytes(damage(content, rng))
            try:
                assert read(path) == wanted, f"other values, in silence: {damage.__name__}, number {i}"
            except ValueError as error:
                messages.append(str(error))
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
    assert all(message.startswith("path must name ") and str(path) in message for message in messages)
    assert len(messages) >= count // 3


def members_of(content, tmp_path):
    (tmp_path / "members.npz").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "members.npz") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive(path, members):
    """An archive with right checksums of its own; the same name may be in it twice."""
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members:
            file.writestr(zipfile.ZipInfo(name), data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_of_an_archive(whole_files, tmp_path):
    content, read = whole_files["model", "npz"]
    members, path = members_of(content, tmp_path), tmp_path / "a.npz"
    archive(path, members.items())
    wanted = read(path)
    shift, running = "params/1.shift.npy", "state/1.running_mean.npy"
    assert len(members[shift]) == len(members[running])
    for message, other in (
        ("more than one entry params/1.shift", [*members.items(), (shift, members[running])]),
        ("entry params/1.s.* does not have the checksum", (members | {shift: members["params/1.scale.npy"]}).items()),
        ("lacks the entry params/1.shift", [item for item in members.items() if item[0] != shift]),
        ("was given the entry params/9", [*members.items(), ("params/9.npy", members[shift])]),
        ("not one that NumPy has written", [*members.items(), ("note.txt", b"hello")]),
        ("params/1.shift must|lacks", [item for item in members.items() if item[0] not in ("fastopt.npy", shift)]),
    ):
        archive(path, other)
        with pytest.raises(ValueError, match=message):
            read(path)
    archive(path, reversed(members.items()))
    assert read(path) == wanted


def test_swapped_arrays_of_safetensors(tmp_path):
    """The format has no checksum of its own."""
    numpy = pytest.importorskip("safetensors.numpy")
    from safetensors import safe_open

    path = tmp_path / "a.safetensors"
    small().save(path)
    with safe_open(path, "np") as file:
        texts, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    swapped = arrays | {"params/1.scale": arrays["params/1.shift"], "params/1.shift": arrays["params/1.scale"]}
    path.write_bytes(numpy.save(swapped, metadata=texts))
    with pytest.raises(ValueError, match=r"params/1\.s\w+ does not have the checksum"):
        nn.load(path)
    path.write_bytes(numpy.save(arrays, metadata=texts | {"more": "text"}))
    with pytest.raises(ValueError, match="was given the entry more"):
        nn.load(path)


# ---- Promises of memory -----------------------------------------------------------------------------------------


def npy(shape, data=b""):
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + data


def refused_without_memory(path, message):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            nn.load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_arrays_that_are_not_there(whole_files, tmp_path):
    members, path = members_of(whole_files["model", "npz"][0], tmp_path), tmp_path / "a.npz"
    for shape in ((10**13 // 4,), (2**62, 2**62), (-1, -1), (2**40, 0, 2**40)):
        archive(path, (members | {"params/1.shift.npy": npy(shape)}).items())
        refused_without_memory(path, "params/1.shift|array is too big")


def test_compressed_entries_are_refused(whole_files, tmp_path):
    """A hundred megabytes in a hundred kilobytes."""
    members, path = members_of(whole_files["model", "npz"][0], tmp_path), tmp_path / "a.npz"
    archive(path, members.items())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("params/big.npy", npy((25 * 2**20,), bytes(100 * 2**20)))
    refused_without_memory(path, "params/big is not one that NumPy has written uncompressed")


def test_entries_that_share_their_bytes(whole_files, tmp_path):
    """Many entries of the directory that name one member of a megabyte."""
    path = tmp_path / "a.npz"
    archive(path, [("params/a.npy", npy((2**18,), bytes(2**20)))])
    content = path.read_bytes()
    begin, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    entries = [content[begin:end].replace(b"params/a", b"params/%c" % letter) for letter in range(97, 120)]
    tail = bytearray(content[end:])
    struct.pack_into("<HHI", tail, 8, len(entries), len(entries), len(b"".join(entries)))
    path.write_bytes(content[:begin] + b"".join(entries) + tail)
    refused_without_memory(path, r"its entries should have \d+ bytes, and the file has")


@pytest.mark.parametrize("length", [2**30, 10**13, 2**63, 2**64 - 1])
def test_a_header_that_is_not_there(tmp_path, length):
    pytest.importorskip("safetensors")
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", length) + b'{"a": 1}')
    refused_without_memory(tmp_path / "a.safetensors", f"its header should have {length} bytes, and the file has 16")


def test_tensors_that_are_not_there(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    for begin, end, shape in ((0, 10**13, [10**13 // 4]), (0, 2**64, [2**62]), (8, 4, [1])):
        head = json.dumps({"params/a": {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}}).encode()
        path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(16))
        refused_without_memory(path, "path must name a model")


@pytest.mark.parametrize("change", [{"units": 10**12}, {"units": 10**6}])
def test_layers_larger_than_the_file(tmp_path, change):
    path = tmp_path / "a.npz"
    small().save(path)
    _, entries = header_of(path)
    config = json.loads(str(entries["config"]))
    config["layers"][0] |= change
    del entries["fastopt"]
    rewrite(path, entries | {"config": json.dumps(config)})
    refused_without_memory(path, r"the weight must have at most 34 elements, got shape \(3, 10+\)")


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "1" * 10**4, "-" * 10**4])
def test_deep_and_long_text(tmp_path, text):
    with open(tmp_path / "a.npz", "wb") as file:
        np.savez(file, config=np.array(text))
    with pytest.raises(ValueError, match=r"^path must name a model"):
        nn.load(tmp_path / "a.npz")
    with open(tmp_path / "a.npz", "wb") as file:
        np.savez(file, fastopt=np.array(text), config=np.array("{}"))
    with pytest.raises(ValueError, match=r"^path must name a model"):
        nn.load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "text",
    [
        "-" * 9000 + "1",
        "(" * 9000,
        "[" * 1500,
        "{'descr': '<f4'}",
        "{'descr': '|O', 'shape': (1,), 'fortran_order': 0}",
    ],
)
def test_odd_headers_of_arrays(tmp_path, text):
    head = text.encode().ljust(117) + b"\n"
    archive(tmp_path / "a.npz", [("config.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head)])
    with pytest.raises(ValueError, match=r"^path must name a model"):
        nn.load(tmp_path / "a.npz")


# ---- A run that is killed ---------------------------------------------------------------------------------------

PROGRAM = """
import os, random, signal, sys, time
import numpy as np
import fastopt
from fastopt import files, nn

folder, kills, ending = sys.argv[1], int(sys.argv[2]), sys.argv[3]
rng = np.random.default_rng(0)
y = np.arange(40) % 3
x = rng.normal(size=(40, 5)) + y[:, None]

def run(path):
    model = nn.Sequential([nn.Dense(8), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2), nn.Dense(3)], (5,))
    optimizer = fastopt.Adam(model.params, lr=0.01)
    callbacks = [nn.ReduceLROnPlateau("loss", patience=1), nn.ModelCheckpoint(path, resume=True)]
    history = model.fit(x, y, epochs=8, optimizer=optimizer, callbacks=callbacks)
    model.save(path + ".end." + ending)
    fastopt.save(optimizer, path + ".optimizer." + ending)

def child(path):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run(path)
            status = 0
        finally:
            os._exit(status)
    return pid

def whole(path):
    entries = files.read_arrays(path + ".end." + ending, "model", take=dict)
    entries |= files.read_arrays(path + ".optimizer." + ending, "optimizer", take=dict)
    return {name: value if isinstance(value, str) else value.tobytes() for name, value in entries.items()}

def finish(path):
    pid, status = os.waitpid(child(path), 0)
    assert status == 0, status
    return whole(path)

def name(i):
    return os.path.join(folder, f"{i}.{ending}")

begun = time.monotonic()
wanted = finish(name("wanted"))
seconds = time.monotonic() - begun
chance = random.Random(0)

def killed(path):  # returns whether a run died of a kill at a random moment, and how many seconds it had until then
    pid, wait = child(path), chance.uniform(0, seconds)
    time.sleep(wait)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL), status
    if os.path.exists(path):
        nn.load(path)
    return status != 0, wait

def remove(path):
    for other in os.listdir(folder):
        if other.startswith(os.path.basename(path)):
            os.unlink(os.path.join(folder, other))

for i in range(kills):
    path = name(i)
    while True:
        dead, wait = killed(path)
        if dead:
            break
        seconds = min(seconds, wait)  # a run takes no longer, on a machine that is less busy by now
        remove(path)
    killed(path)  # what was resumed, if a checkpoint was there
    assert finish(path) == wanted, f"other bits after kill {i}"
    for other in os.listdir(folder):
        if other.endswith(".part"):  # of the files that are written in the end, by a run that was killed just then
            assert other.startswith((f"{i}.{ending}.end.", f"{i}.{ending}.optimizer.")), other
    remove(path)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_killed_at_any_moment(tmp_path, ending):
    """A run that is killed, and once more when resumed, leaves whole checkpoints and ends with the same bits."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(KILLS // 2), ending],
        capture_output=True,
        text=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "FASTOPT_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
