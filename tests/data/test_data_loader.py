"""Batches made ahead in threads: the same for any number of them, and no thread stays behind."""

import _thread
import gc
import itertools
import signal
import sys
import threading

import numpy as np
import pytest

from fastopt import data
from fastopt.data import augment

WORKERS = (0, 1, 4)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastopt-loader")]


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    gc.collect()
    for thread in threads():  # of an epoch that was left: they are told to end, and not waited for
        thread.join(60)
    assert not threads()


def pictures(n=50):
    x = np.random.default_rng(0).integers(256, size=(n, 8, 8, 3), dtype=np.uint8)
    return x, np.arange(n) % 5


def all_of(loader, epochs=(0, 1)):
    return [[[np.array(part) for part in batch] for batch in loader.epoch(epoch)] for epoch in epochs]


def check_equal(first, second):
    assert [len(epoch) for epoch in first] == [len(epoch) for epoch in second]
    for a, b in zip(itertools.chain(*first), itertools.chain(*second), strict=True):
        for one, other in zip(a, b, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


# ---- Batches ------------------------------------------------------------------------------------------------

USUAL = augment.Compose(
    [
        augment.HorizontalFlip(),
        augment.RandomCrop(2),
        augment.Affine(rotate=10),
        augment.ColorJitter(0.2, 0.2, 0.2, 0.1),
        augment.Noise(0.1),
        augment.OneOf([augment.CutMix(classes=5), augment.CowMix(classes=5, sigma=2)]),
    ]
)


@pytest.mark.parametrize("workers", WORKERS[1:])
def test_the_same_numbers_for_any_number_of_workers(workers):
    wanted = all_of(data.Loader(pictures(), 8, USUAL, workers=0, seed=3))
    check_equal(all_of(data.Loader(pictures(), 8, USUAL, workers=workers, seed=3)), wanted)
    assert wanted[0][0][0].tobytes() != wanted[1][0][0].tobytes()


@pytest.mark.parametrize("workers", WORKERS)
def test_each_sample_once_in_the_order_said(workers):
    x = np.arange(23)
    loader = data.Loader((x, -x, x / 2), 5, workers=workers, seed=1)
    for epoch in (0, 1, 7):
        batches = list(loader.epoch(epoch))
        assert [len(batch[0]) for batch in batches] == [5, 5, 5, 5, 3]
        joined, targets, weights = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        np.testing.assert_array_equal(joined, loader.order(epoch))
        np.testing.assert_array_equal(sorted(joined), x)
        np.testing.assert_array_equal(targets, -joined)
        np.testing.assert_array_equal(weights, joined / 2)
    assert loader.order(0).tolist() != loader.order(1).tolist()
    assert data.Loader((x, x), 5, seed=2).order(0).tolist() != loader.order(0).tolist()
    check_equal([list(data.Loader((x, -x), 5, workers=workers, shuffle=False).epoch(3))], [
        [(x[start : start + 5], -x[start : start + 5]) for start in range(0, 23, 5)]
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("n", "size", "wanted"),
    [(9, 4, [4, 5]), (9, 8, [9]), (8, 4, [4, 4]), (1, 4, [1]), (3, 1, [1, 1, 1]), (2, 1, [1, 1]), (10, 32, [10])],
)
def test_a_single_sample_joins_the_batch_before(n, size, wanted):
    loader = data.Loader((np.arange(n), np.arange(n)), size)
    lengths = [len(x) for x, _ in loader.epoch(0)]
    assert sum(lengths) == n
    assert len(lengths) == len(loader)
    if size > 1:
        assert lengths == wanted


def test_iteration_counts_epochs():
    x = np.arange(10)
    loader = data.Loader((x, x), 4)
    rounds = [[x.tolist() for x, _ in loader] for _ in range(3)]
    assert rounds == [[x.tolist() for x, _ in loader.epoch(epoch)] for epoch in range(3)]


def test_the_length_of_what_is_to_come():
    batches = data.Loader((np.arange(10), np.arange(10)), 4, workers=2).epoch(0)
    lengths = [len(batches)]
    for _ in batches:
        lengths.append(len(batches))
    assert lengths == [3, 2, 1, 0]
    assert list(batches) == []


def test_randomness_is_that_of_the_batch():
    drawn = []

    def transform(x, y, rng):
        drawn.append(rng.random())
        return x, y

    for _ in data.Loader((np.arange(10), np.arange(10)), 4, transform, seed=2**70, workers=0).epoch(5):
        pass
    wanted = [data.rng_of(2**70, 5, batch).random() for batch in range(3)]
    assert drawn == wanted
    cases = [(seed, epoch, batch) for seed in (0, 1, 2**32) for epoch in (0, 1, 2**32) for batch in (0, 1)]
    assert len({data.rng_of(*case).random() for case in cases}) == len(cases)


# ---- Sources ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", WORKERS)
def test_memory_maps_are_read_by_batches(workers, tmp_path):
    x, y = pictures()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    batches = all_of(data.Loader((mapped, y), 8, workers=workers))
    check_equal(batches, all_of(data.Loader((x, y), 8, workers=0)))
    assert type(batches[0][0][0]) is np.ndarray
    assert batches[0][0][0].flags.writeable


@pytest.mark.parametrize("workers", WORKERS)
def test_folders_of_images(workers, tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    x, y = pictures(10)
    for i in range(10):
        (tmp_path / str(y[i])).mkdir(exist_ok=True)
        pillow.fromarray(x[i]).save(tmp_path / str(y[i]) / f"{i}.png")
    order = np.argsort(y, kind="stable")
    loader = data.Loader(data.ImageFolder(tmp_path), 4, workers=workers)
    check_equal(all_of(loader), all_of(data.Loader((x[order], y[order]), 4, workers=0)))
    assert repr(loader).startswith("Loader(ImageFolder(")


class Squares:
    """A source of one's own."""

    def __len__(self):
        return 10

    def read(self, indices):
        return indices**2, indices


def test_a_source_of_ones_own():
    batches = list(data.Loader(Squares(), 4, workers=2).epoch(0))
    assert all((x == y**2).all() for x, y in batches)
    assert isinstance(Squares(), data.Source)


def test_what_a_batch_holds_is_the_callers_own():
    x = np.zeros(10)
    for batch in data.Loader((x, x), 10, shuffle=False).epoch(0):
        batch[0][...] = 1
    assert not x.any()


# ---- Threads ------------------------------------------------------------------------------------------------


def test_batches_are_made_beside_each_other():
    """Each waits until four are being made."""
    meeting = threading.Barrier(4)

    def transform(x, y, rng):
        meeting.wait(60)
        return x, y

    assert len(list(data.Loader(pictures(64), 8, transform, workers=4).epoch(0))) == 8


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, None), (2, 3), (1, 6)])
def test_so_many_batches_wait_and_no_more(workers, ahead):
    begun = []
    loader = data.Loader(pictures(), 2, lambda x, y, rng: begun.append(0) or (x, y), workers=workers, ahead=ahead)
    with loader.epoch(0) as batches:
        for used in range(1, 20):
            next(batches)
            assert len(begun) <= used + loader.ahead
    assert loader.ahead == (2 * workers if ahead is None else ahead)


class Fault(Exception):
    pass


@pytest.mark.parametrize("workers", WORKERS)
def test_errors_come_with_the_number_of_the_batch(workers):
    calls = itertools.count()

    def transform(x, y, rng):
        next(calls)
        if 17 in x:
            raise Fault("a fault")
        return x, y

    x = np.arange(100)
    loader = data.Loader((x, x), 10, transform, workers=workers)
    at = int(np.flatnonzero(loader.order(2) == 17)[0]) // 10
    batches = loader.epoch(2)
    for _ in range(at):
        next(batches)
    with pytest.raises(Fault, match=r"^a fault") as caught:
        next(batches)
    assert any(note.startswith(f"in batch {at} of epoch 2 ") for note in caught.value.__notes__)
    assert not threads()
    assert list(batches) == []
    assert next(calls) <= at + 1 + loader.ahead + 1


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("way", ["close", "with", "break", "error in the loop"])
def test_threads_end_with_the_loop(way, workers):
    loader = data.Loader(pictures(), 4, workers=workers)
    batches = loader.epoch(0)
    next(batches)
    if way == "close":
        batches.close()
        assert not threads()
        batches.close()
        assert list(batches) == []
    elif way == "with":
        with batches:
            pass
        assert not threads()
    elif way == "break":
        del batches
        for _ in loader:
            break
    else:
        with pytest.raises(Fault), batches:  # noqa: PT012
            next(batches)
            raise Fault


@pytest.fixture
def ctrl_c():
    """SIGINT as a terminal has it: in a process that was started in the background, it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("workers", WORKERS)
def test_ctrl_c_while_batches_are_made(workers):
    def transform(x, y, rng):
        if 30 in x:
            _thread.interrupt_main()
        return x, y

    x = np.arange(2000)
    loader = data.Loader((x, x), 2, transform, workers=workers, shuffle=False)
    with pytest.raises(KeyboardInterrupt), loader.epoch(0) as batches:
        for _ in batches:
            pass
    gc.collect()
    assert not threads()


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_a_batch_is_waited_for():
    """The main thread is where a result is waited for when the signal comes: the worker sends it until that is so."""
    main = threading.main_thread().ident

    def transform(x, y, rng):
        frame = sys._current_frames()[main]
        names = set()
        while frame:
            names.add(frame.f_code.co_name)
            frame = frame.f_back
        if "result" in names:
            _thread.interrupt_main()
        return x, y

    x = np.arange(100_000)
    batches = data.Loader((x, x), 2, transform).epoch(0)
    with pytest.raises(KeyboardInterrupt):
        for _ in batches:
            pass
    assert not threads()
    assert list(batches) == []


def test_two_epochs_at_once():
    loader = data.Loader(pictures(), 8, USUAL, workers=2)
    wanted = all_of(loader)
    with loader.epoch(0) as first, loader.epoch(1) as second:
        pairs = list(zip(first, second, strict=True))
    check_equal([[pair[0] for pair in pairs], [pair[1] for pair in pairs]], wanted)


# ---- Refusals -----------------------------------------------------------------------------------------------

X = np.arange(10)
WRONG = {
    "x alone": ({"source": X}, r"source must be \(x, y\), or an object with len and read\(indices\), got ndarray"),
    "one array": ({"source": (X,)}, r"source must be \(x, y\) or \(x, y, weights\), got 1 values"),
    "lists": ({"source": (X, list(X))}, "source must hold NumPy arrays, got list for y"),
    "a number": ({"source": (X, np.array(1))}, r"source must hold arrays \(n, …\), got shape \(\) for y"),
    "lengths": ({"source": (X, X[1:])}, "source must hold arrays of one length, got 10 and 9"),
    "masked": ({"source": (X, np.ma.masked_array(X))}, "y must be a plain array"),
    "nothing": ({"source": (X[:0], X[:0])}, "source must hold at least one sample, got none"),
    "a class": ({"source": Squares}, "source must be .* got the class Squares"),
    "no batch": ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    "a class of transforms": ({"transform": augment.Noise}, r"transform must be callable as \(x, y, rng\), got <class"),
    "workers": ({"workers": -1}, "workers must be at least 0|workers must be in"),
    "half a worker": ({"workers": 0.5}, "workers must be an integer"),
    "shuffle": ({"shuffle": 1}, "shuffle must be True or False"),
    "seed": ({"seed": -1}, "seed must be at least 0"),
    "ahead": ({"workers": 3, "ahead": 2}, "ahead must be in|ahead must be at least 3"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(options, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        data.Loader(**{"source": (X, X), **options})


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda x, y, rng: x, r"transform must return \(x, y\), got ndarray"),
        (lambda x, y, rng: (x[1:], y), r"transform must return 4 samples for 4, got shapes \(3,\) and \(4,\)"),
        (lambda x, y, rng: (x, 3), "transform must return 4 samples for 4"),
    ],
)
def test_transforms_that_return_no_batch(transform, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}") as caught:
        next(data.Loader((X, X), 4, transform).epoch(0))
    assert "in batch 0 of epoch 0" in caught.value.__notes__[0]


def test_wrong_numbers():
    loader = data.Loader((X, X), 4)
    for call, message in (
        (lambda: loader.epoch(-1), "epoch must be"),
        (lambda: loader.order(0.5), "epoch must be an integer"),
        (lambda: loader.batch(0, 3), "batch must be in"),
        (lambda: data.rng_of(-1, 0, 0), "seed must be at least 0"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{message}"):
            call()


def test_a_source_that_returns_no_batch():
    class Wrong(Squares):
        def read(self, indices):
            return indices

    with pytest.raises(TypeError, match=r"^source.read must return \(x, y\) or \(x, y, weights\), got ndarray"):
        next(data.Loader(Wrong(), 4).epoch(0))
