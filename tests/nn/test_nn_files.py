"""Files that are replaced at once or not at all."""

import os

import numpy as np
import pytest

from fastopt import files


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    files.replace(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"new")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        files.replace(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_parts_of_killed_processes_are_discarded_and_nothing_else(tmp_path):
    kept = {"a.npz", "a.npz.part", "a.npz.x.part", "b.npz.1.part", "a.npz.1.part.npz"}
    for name in kept | {"a.npz.1.part", "a.npz.234.part"}:
        (tmp_path / name).write_bytes(b"")
    files.discard_parts(tmp_path / "a.npz")
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_nested_values_come_back(tmp_path, rng):
    value = {
        "array": rng.normal(size=(2, 3)).astype(np.float32),
        "empty": {"": np.zeros(0, np.int64), "dict": {}},
        "plain": [None, True, "text", 1, 0.1, (1, (2.5,), [])],
        "huge": [2**63, float("inf")],
        "scalar": np.float32(0.1),
    }
    files.write_arrays(tmp_path / "file.npz", files.pack("value", value))
    with np.load(tmp_path / "file.npz", allow_pickle=False) as entries:
        back = files.unpack("value", entries)
    assert back["array"].dtype == np.float32
    np.testing.assert_array_equal(back.pop("array"), value.pop("array"))
    empty = back["empty"].pop("")
    assert (empty.dtype, empty.shape) == (np.int64, (0,))
    del value["empty"][""]
    assert back == value
    assert np.isnan(files.unpack("x", {k: np.array(v) for k, v in files.pack("x", [np.nan]).items()})[0])


def test_what_is_no_plain_value_is_refused():
    with pytest.raises(TypeError, match="not JSON serializable"):
        files.pack("value", {"a": object()})
