"""The hooks of the loop: the order of batches, transforms, loaders, metrics, weighted evaluation."""

import inspect
import itertools
import threading

import numpy as np
import pytest

import fastopt
from fastopt import data, nn
from fastopt.nn import feed, orders, trainer, training
from fastopt.nn.trainer import Steps

N, D, C = 131, 5, 3


@pytest.fixture
def samples(rng):
    centres = 2 * rng.normal(size=(C, D))
    y = rng.integers(0, C, N)
    return (centres[y] + rng.normal(size=(N, D))).astype(np.float32), y


def mlp(seed=0, layers=()):
    nn.program._seconds.clear()  # nothing shows how long its steps take
    return nn.Sequential(
        [nn.Dense(8), nn.BatchNorm(), nn.ReLU(), *layers, nn.Dropout(0.3), nn.Dense(C)], (D,), seed=seed
    )


def bits(model):
    return {name: array.tobytes() for name, array in {**model.params, **model.state}.items()}


def metrics(history):
    return {name: values for name, values in history.items() if name != "samples_per_second"}


class Doubled(nn.Layer):
    """A layer that Python calls."""

    def forward(self, x, *, training=False, counter=0):
        return x * 2, None

    def backward(self, dy, cache):
        return dy * 2, {}


# ---- The order of batches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 34, 64, 65, 100])
@pytest.mark.parametrize("size", [1, 2, 32, 200])
@pytest.mark.parametrize("make", [nn.Shuffled, nn.InOrder, lambda n, size: nn.Stratified(np.arange(n) % 3, size)])
def test_each_sample_once(n, size, make, rng):
    batches = make(n, size)
    parts = list(batches.epoch(rng))
    assert len(parts) == len(batches)
    assert sorted(np.concatenate(parts)) == list(range(n))
    assert {len(part) for part in parts[:-1]} <= {size}
    assert len(parts[-1]) <= size + 1
    assert n == 1 or size == 1 or min(map(len, parts)) > 1


def test_orders(rng):
    first, again = (list(nn.Shuffled(50, 8).epoch(np.random.default_rng(3))) for _ in range(2))
    assert [list(part) for part in first] == [list(part) for part in again]
    assert list(np.concatenate(first)) == list(np.random.default_rng(3).permutation(50))
    assert list(np.concatenate(list(nn.InOrder(50, 8).epoch(rng)))) == list(range(50))


@pytest.mark.parametrize("kind", [int, str, bool])
def test_strata(kind, rng):
    """Each batch has of each class its share, up to one or two; and orders differ from epoch to epoch."""
    labels = rng.permutation(np.repeat([0, 1, 2, 3], [300, 150, 40, 10]))
    if kind is bool:
        labels = labels > 1
    labels = labels.astype(kind)
    batches = nn.Stratified(labels, 50)
    epochs = [list(batches.epoch(rng)) for _ in range(20)]
    for value, count in zip(*np.unique(labels, return_counts=True), strict=True):
        for parts in epochs:
            for part in parts:
                assert abs((labels[part] == value).sum() - count / 10) < 2
    assert len({tuple(np.concatenate(parts)) for parts in epochs}) == 20
    plain = [np.abs((labels[part] == labels[0]).sum() - (labels == labels[0]).mean() * 50) for part in
             nn.Shuffled(500, 50).epoch(rng)]  # fmt: skip
    assert max(plain) >= 2  # which a plain order does not have


def test_the_default_is_shuffled(samples):
    one, other = mlp(), mlp()
    history = one.fit(*samples, epochs=3, batch_size=16)
    assert metrics(other.fit(*samples, epochs=3, batches=nn.Shuffled(N, 16))) == metrics(history)
    assert bits(one) == bits(other)


def textbook(model, x, y, parts, optimizer):
    """Steps on batches, layer by layer."""
    for number, chosen in enumerate(parts):
        output, cache = model.forward(x[chosen], training=True, counter=number)
        _, grads = model.backward(nn.softmax_cross_entropy(output, y[chosen])[1], cache)
        optimizer.step(grads)


@pytest.mark.parametrize("hooked", [False, True])
def test_batches_of_ones_own(samples, hooked):
    """A list of arrays, of whatever sizes, in which samples may be left out or occur again; C and Python alike."""
    parts = [[0, 1, 2], [5, 6, 7], np.array([9, 9, 1], np.uint8), range(20, 60), [4, 3]]
    model, other = mlp(), mlp()
    callbacks = [type("Watch", (nn.Callback,), {"on_gradients": lambda *_: None})()] if hooked else []
    optimizer = fastopt.SGD(model.params, lr=0.1)
    history = model.fit(*samples, epochs=2, batches=parts, optimizer=optimizer, callbacks=callbacks)
    textbook(other, *samples, [*parts, *parts], fastopt.SGD(other.params, lr=0.1))
    for name, array in model.params.items():
        np.testing.assert_allclose(array, other.params[name], rtol=2e-4, atol=1e-5)
    assert len(history["loss"]) == 2


def test_a_method_gets_the_generator_of_the_epoch(samples):
    drawn = []

    class Drawn:
        def __len__(self):
            return 2

        def epoch(self, rng):
            order = rng.permutation(N)
            drawn.append(order)
            yield order[:50]
            yield order[50:]

    model = mlp(seed=4)
    model.fit(*samples, epochs=3, batches=Drawn())
    assert [list(order) for order in drawn] == [
        list(np.random.default_rng([4, 2 * epoch]).permutation(N)) for epoch in range(3)
    ]


@pytest.mark.parametrize("epochs", [1, 2])
def test_batches_resume(samples, epochs, tmp_path):
    whole, path = mlp(), tmp_path / "run.npz"
    options = {"batches": nn.Stratified(samples[1], 20)}
    history = whole.fit(*samples, epochs=3, **options)
    for count in (epochs, 3):
        model = mlp()
        resumed = model.fit(*samples, epochs=count, callbacks=[nn.ModelCheckpoint(path, resume=True)], **options)
    assert bits(model) == bits(whole)
    assert metrics(resumed) == metrics(history)
    with pytest.raises(ValueError, match=r"batch_size must be 'Stratified\(20\)' as in .*, got 'InOrder\(20\)'"):
        mlp().fit(*samples, epochs=3, batches=nn.InOrder(N, 20), callbacks=[nn.ModelCheckpoint(path, resume=True)])


class Odd(list):
    def epoch(self, rng):
        return iter([[0, 1]])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (nn.Shuffled, "batches must be an object with a length, got the class Shuffled: call it"),
        (32, r"batches must be an object with a length, .* such as nn.Stratified\(y, 32\), got int"),
        (iter([[0]]), "batches must be an object with a length"),
        ([], "batches must have at least one batch, got none"),
        (nn.Shuffled(N + 1), rf"batches must be of as many samples as x has, {N}, got Shuffled\({N + 1}, 32\)"),
        ([[0, N]], rf"batches must yield indices in \[0, {N}\), got {N} for batch 0"),
        ([[0], [-1]], rf"batches must yield indices in \[0, {N}\), got -1 for batch 1"),
        ([[]], "batches must yield"),
        ([np.zeros(0, int)], "batches must yield batches of at least one sample, got none for batch 0"),
        ([[0.5]], r"batches must yield arrays of indices \(k,\), got float64 \(1,\) for batch 0"),
        ([np.ones((2, 2), int)], r"batches must yield arrays of indices \(k,\), got int64 \(2, 2\)"),
        (Odd([1, 2]), "batches must yield as many as its length says, 2, got 1"),
    ],
)
def test_batches_that_are_refused(samples, batches, message):
    model = mlp()
    before = bits(model)
    with pytest.raises((TypeError, ValueError), match=message):
        model.fit(*samples, batches=batches)
    assert bits(model) == before


def test_either_a_size_or_batches(samples):
    with pytest.raises(ValueError, match="batch_size must not be given beside batches, which have their own, got 8"):
        mlp().fit(*samples, batch_size=8, batches=nn.InOrder(N))


def test_labels_of_strata():
    with pytest.raises(ValueError, match=r"y must be labels \(n,\), got shape \(3, 1\)"):
        nn.Stratified(np.ones((3, 1)))


@pytest.mark.parametrize("sizes", [[3, 3, 2, 2, 2, 5], [4], [1, 2, 3], [7, 7, 7]])
def test_runs_of_batches_of_one_size(sizes):
    bounds = np.cumsum([0, *sizes])
    each = orders.Uneven([np.arange(a, b) for a, b in itertools.pairwise(bounds)])
    for i, size in enumerate(sizes):
        alike = each.alike(i)
        assert sizes[i : i + alike] == [size] * alike
        assert i + alike == len(sizes) or sizes[i + alike] != size
        part = each.part(i, len(sizes))
        assert [len(chosen) for chosen in part] == sizes[i:]
        assert list(part.order) == list(range(sum(sizes[i:])))


# ---- Transforms -----------------------------------------------------------------------------------------------------


def prepared(model, x, y, **given):
    """The run that `fit` makes."""
    parameters = inspect.signature(nn.Sequential.fit).parameters.values()
    usual = {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in ("y", "comm")}
    return training.prepare(model, x, y, **usual | given)


def test_the_identity_changes_no_bits(samples):
    one, other = mlp(), mlp()
    history = one.fit(*samples, epochs=4, batch_size=8)
    same = other.fit(*samples, epochs=4, batch_size=8, transform=lambda x, y, rng: (x, y))
    assert bits(one) == bits(other)
    assert metrics(history) == metrics(same)


@pytest.mark.parametrize("ahead", [None, True, False], ids=["no transform", "ahead", "not ahead"])
@pytest.mark.parametrize("patience", [0, 1, 4])
def test_epochs_that_cannot_be_the_last_are_one_call(patience, ahead, samples, several):
    """A callback that says so is told of them later, and the run ends where it does otherwise."""

    class EachByItself(nn.EarlyStopping):
        def epochs_ahead(self):
            return 1

    ended = []
    for kind in (EachByItself, nn.EarlyStopping):
        model = mlp()
        several.clear()
        stopping = kind("loss", patience=patience, min_delta=0.05, restore_best=False)
        how = {} if ahead is None else {"transform": noisy, "ahead": ahead}
        history = prepared(model, *samples, epochs=40, callbacks=[stopping], batch_size=7, **how).go()
        assert 0 < len(history["loss"]) < 40
        ended.append((bits(model), metrics(history), history.stopped))
        if kind is EachByItself or not patience:
            assert max(several) == 1
        else:
            assert max(several) == patience + 1
    assert ended[0] == ended[1]


def test_a_subclass_is_told_of_each_epoch_before_the_next(samples, several):
    class Looking(nn.EarlyStopping):
        def on_epoch_end(self, epoch, logs):
            super().on_epoch_end(epoch, logs)
            seen.append(self._run.optimizer.t)

    seen = []
    mlp().fit(*samples, epochs=5, batch_size=7, callbacks=[Looking("loss", patience=9, restore_best=False)])
    steps = len(nn.Shuffled(N, 7))
    assert seen == [steps * epoch for epoch in range(1, 6)]
    assert max(several) == 1


def test_epochs_ahead_must_be_a_number_of_them(samples):
    class Hasty(nn.Callback):
        def on_epoch_end(self, epoch, logs):
            pass

        def epochs_ahead(self):
            return 0

    with pytest.raises(ValueError, match=r"^Hasty\.epochs_ahead\(\) must be at least 1, got 0"):
        mlp().fit(*samples, epochs=3, callbacks=[Hasty()])


def noisy(x, y, rng):
    return x + rng.normal(0, 0.1, x.shape).astype(np.float32), y


@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 3}, {"accumulate": 3, "batch_size": 7}, {"weighted": True}], ids=str
)
@pytest.mark.parametrize("layers", [(), (Doubled(),)], ids=["C", "Python"])
def test_a_transform_is_of_seed_epoch_and_batch(samples, options, layers):
    """With and without a thread, and as if each epoch were a run on arrays that are changed before."""
    x, y = samples
    options = dict(options)
    if options.pop("weighted", False):
        options["sample_weight"] = np.arange(N) % 3 + 0.5
    models = [mlp(layers=[type(layer)() for layer in layers]) for _ in range(3)]
    for model, ahead in zip(models[:2], (True, False), strict=True):
        prepared(model, x, y, epochs=3, transform=noisy, seed=9, ahead=ahead, **options).go()
    assert bits(models[0]) == bits(models[1])

    model, adam = models[2], fastopt.Adam(models[2].params)
    size = options.get("batch_size", 32)
    for epoch in range(3):
        parts = list(nn.Shuffled(N, size).epoch(np.random.default_rng([9, adam.t])))
        changed = x.copy()
        for i, part in enumerate(parts):
            rng = np.random.default_rng(np.random.SeedSequence(9, spawn_key=(epoch, i)))
            changed[part] = noisy(x[part], y[part], rng)[0]
        model.fit(changed, y, batches=parts, optimizer=adam, **{k: v for k, v in options.items() if k != "batch_size"})
    assert bits(models[0]) == bits(model)


def test_epochs_of_accumulated_steps_are_made_ahead(samples):
    """One by one, as something is done between them, in the orders of the steps before them; none in vain."""
    ended, calls = [], []

    def counted(x, y, rng):
        calls.append(len(x))
        return noisy(x, y, rng)

    for callbacks in ([], [type("Between", (nn.Callback,), {"on_epoch_end": lambda *_: None})()]):
        model = mlp()
        model.fit(*samples, epochs=6, batch_size=7, accumulate=3, transform=counted, callbacks=callbacks)
        ended.append(bits(model))
        assert sum(calls) == 6 * N + 2 * 32  # the first ones, to see what they become
        calls.clear()
    assert ended[0] == ended[1]


def test_a_thread_works_ahead(samples):
    """While a batch is trained on, later ones are transformed, by one thread, in order."""
    seen, names = [], set()

    def watched(x, y, rng):
        seen.append(len(x))
        names.add(threading.current_thread().name)
        return x, y

    class Last(nn.Callback):
        def on_train_begin(self, run):
            seen.clear()  # the call that shows what it returns

        def on_batch_begin(self, batch):
            if batch == 0:
                while len(seen) < feed.FIRST + 1:  # until the thread has begun with the second block
                    threading.Event().wait(0.001)

    mlp().fit(*samples, batch_size=2, transform=watched, callbacks=[Last()])
    assert len(seen) == 65
    assert names == {"MainThread", "fastopt-transform"}


@pytest.fixture
def several(monkeypatch):
    """After the first epoch, as many go into one call as a block has room for: how many, is noted."""
    counts, of_epochs = [], Steps.epochs

    def epochs(self, *args):
        taken = of_epochs(self, *args)
        counts.append(len(taken))
        return taken

    def fitting(epoch, left, part):
        return left if all(program.native and program.seconds for program, _ in epoch) else 0

    monkeypatch.setattr(Steps, "epochs", epochs)
    monkeypatch.setattr(trainer, "fitting", fitting)
    return counts


class EachBatch(nn.Callback):
    def on_batch_end(self, batch, logs):
        pass


class EachEpoch(nn.Callback):
    def on_epoch_end(self, epoch, logs):
        pass


def spoiling(x, y, rng):
    """A batch of the third epoch has no numbers."""
    key = rng.bit_generator.seed_seq.spawn_key
    return (x * np.float32(np.nan) if key == (2, 9) else x + np.float32(key[0])), y


def widening(x, y, rng):
    """Types that differ from epoch to epoch."""
    return (x.astype(np.float64) if rng.bit_generator.seed_seq.spawn_key[0] % 2 else x), y


@pytest.mark.parametrize("transform", [noisy, spoiling, widening, lambda x, y, rng: (x, y)])
@pytest.mark.parametrize("options", [{}, {"weighted": True}, {"batches": nn.InOrder(N, 7)}], ids=str)
@pytest.mark.parametrize("ahead", [True, False])
def test_epochs_that_are_transformed_are_one_call(transform, options, ahead, samples, several, monkeypatch):
    x, y = samples
    monkeypatch.setattr(feed, "MOST_BYTES", 3 * x.nbytes)
    options = dict(options)
    if options.pop("weighted", False):
        options["sample_weight"] = np.arange(N) % 3 + 0.5
    if "batches" not in options:
        options["batch_size"] = 7
    ended = []
    for callbacks in ((), (EachEpoch(),), (EachBatch(),)):
        model = mlp()
        several.clear()
        how = {"epochs": 6, "transform": transform, "on_nonfinite": "skip", "callbacks": callbacks, "ahead": ahead}
        history = prepared(model, x, y, **how, **options).go()
        ended.append((bits(model), metrics(history)))
        if not callbacks:
            assert several == ([0, 2, 3] if transform is spoiling else [0, 3, 2])
        if any(isinstance(each, EachEpoch) for each in callbacks):
            assert several == [0, 1, 1, 1, 1, 1]
    assert ended[0] == ended[1] == ended[2]


@pytest.mark.parametrize("ahead", [True, False])
def test_an_exception_comes_out_at_its_epoch(ahead, samples, several):
    """Those before it are trained on, also where they would have been in one call with it."""

    def late(x, y, rng):
        if rng.bit_generator.seed_seq.spawn_key == (4, 3):
            raise ZeroDivisionError("no reason")
        return x, y

    model, twin = mlp(), mlp()
    run = prepared(model, *samples, epochs=8, batch_size=8, transform=late, ahead=ahead)
    with pytest.raises(ZeroDivisionError) as caught:
        run.go()
    assert caught.value.__notes__ == ["in the transform of batch 4 of epoch 5"]
    assert len(run.history["loss"]) == 4
    twin.fit(*samples, epochs=4, batch_size=8)
    assert bits(model) == bits(twin)


def test_nothing_is_transformed_after_the_end(samples, several):
    """Where a run is stopped, the thread has ended what it was at."""
    seen = []

    class Stop(nn.Callback):
        def on_train_begin(self, run):
            self.run = run
            seen.clear()

        def on_epoch_end(self, epoch, logs):
            if epoch == 2:
                self.run.stop("enough")

    def watched(x, y, rng):
        seen.append(rng.bit_generator.seed_seq.spawn_key)
        return x, y

    history = mlp().fit(*samples, epochs=9, batch_size=8, transform=watched, callbacks=[Stop()])
    assert len(history["loss"]) == 3
    each = -(-N // 8)
    assert sorted(seen) == [(epoch, batch) for epoch in range(4) for batch in range(each)]


def test_targets_may_change(samples):
    """Labels become distributions, as Mixup makes them: there is then no accuracy."""
    x, y = samples

    def mixed(x, y, rng):
        share, other = rng.beta(0.4, 0.4), rng.permutation(len(x))
        hot = np.eye(C, dtype=np.float32)[y]
        return (share * x + (1 - share) * x[other]).astype(np.float32), share * hot + (1 - share) * hot[other]

    model = mlp()
    options = {"loss": nn.SoftmaxCrossEntropy(), "optimizer": fastopt.Adam(model.params, lr=0.02)}
    history = model.fit(x, y, epochs=20, transform=mixed, validation_data=samples, **options)
    assert "accuracy" not in history
    assert history["val_accuracy"][-1] > 0.7


def test_types_may_change(rng):
    """Bytes become floats, and come to the same as floats that are made before."""
    x, y = rng.integers(0, 256, (40, 4, 4, 1), np.uint8), rng.integers(0, 3, 40)
    one, other = (nn.Sequential([nn.Conv2D(3), nn.Flatten(), nn.Dense(3)], (4, 4, 1)) for _ in range(2))
    one.fit(x, y, epochs=2, transform=lambda x, y, rng: ((x / 255).astype(np.float32), y))
    other.fit((x / 255).astype(np.float32), y, epochs=2)
    assert bits(one) == bits(other)


def test_the_generator_is_one(samples):
    def check(x, y, rng):
        assert type(rng) is np.random.Generator
        assert np.random.default_rng(rng) is rng
        rng.random()
        return x, y

    mlp().fit(*samples, transform=check)


def test_a_generator_that_is_used_at_times(samples):
    """It is made when it is used, and is the same one."""

    def at_times(x, y, rng):
        assert isinstance(rng, np.random.Generator)
        return noisy(x, y, rng) if len(x) != 32 else (x, y)

    wanted, own = feed.rng_of(5, 2, 7), feed.Rng(5, 2, 7)
    assert own.bit_generator.state == wanted.bit_generator.state
    assert own.integers(0, 99, 5).tolist() == wanted.integers(0, 99, 5).tolist()
    one, other = mlp(), mlp()
    one.fit(*samples, epochs=2, transform=at_times)
    x, parts = samples[0].copy(), list(nn.Shuffled(N).epoch(np.random.default_rng([0, 0])))
    x[parts[-1]] = noisy(x[parts[-1]], None, np.random.default_rng(np.random.SeedSequence(0, spawn_key=(0, 4))))[0]
    other.fit(x, samples[1], batches=parts)
    assert bits(other) != bits(one)
    one = mlp()
    one.fit(*samples, transform=at_times)
    assert bits(other) == bits(one)


def fails(x, y, rng):
    if rng.bit_generator.seed_seq.spawn_key == (1, 11):
        raise ZeroDivisionError("no reason")
    return x, y


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (3, r"transform must be a function \(x, y, rng\) -> \(x, y\), got 3"),
        (dict, "transform must be a function"),
        (lambda x, y, rng: x, r"transform must return \(x, y\), got ndarray"),
        (lambda x, y, rng: (x, y, y), r"transform must return \(x, y\), got 3 values"),
        (lambda x, y, rng: (x[1:], y), r"transform must return 32 samples for 32, got x of shape \(31, 5\)"),
        (lambda x, y, rng: (x, y[1:]), r"transform must return 32 samples for 32, got y of shape \(31,\)"),
        (lambda x, y, rng: (x[:, 1:], y), r"transformed x must have shape \(n, 5\), got \(32, 4\)"),
        (lambda x, y, rng: (x, y + C), r"labels|y must be in \[0, 3\)|targets"),
    ],
)
def test_transforms_that_are_refused(samples, transform, message):
    model = mlp()
    before = bits(model)
    with pytest.raises((TypeError, ValueError), match=message):
        model.fit(*samples, transform=transform)
    assert bits(model) == before


def test_an_exception_in_the_thread_comes_out(samples):
    model = mlp()
    with pytest.raises(ZeroDivisionError, match="no reason") as caught:
        model.fit(*samples, epochs=3, batch_size=8, transform=fails)
    assert caught.value.__notes__ == ["in the transform of batch 12 of epoch 2"]
    model.fit(*samples)


def test_numbers_gone_bad_are_named(samples):
    def spoils(x, y, rng):
        return (x * np.float32(np.nan) if rng.bit_generator.seed_seq.spawn_key == (0, 3) else x), y

    with pytest.raises(nn.NonFiniteError, match="epoch 1, batch 4"):
        mlp().fit(*samples, transform=spoils, batch_size=20)
    history = mlp().fit(*samples, transform=spoils, batch_size=20, on_nonfinite="skip", epochs=2)
    assert history["skipped"] == [1, 0]


# ---- Loaders --------------------------------------------------------------------------------------------------------


class Loader:
    """Batches as `fastopt.data.Loader` makes them."""

    def __init__(self, parts, weighted=False):
        self.parts, self.weighted, self.closed, self.epochs = parts, weighted, 0, []

    def __len__(self):
        return len(self.parts)

    def epoch(self, number):
        self.epochs.append(number)
        try:
            for x, y in self.parts:
                yield (x, y, np.arange(len(x)) + 1.0) if self.weighted else (x, y)
        finally:
            self.closed += 1


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_loader(samples, weighted, accumulate):
    x, y = samples
    bounds = [0, 20, 40, 50, 90, N]
    parts = [np.arange(a, b) for a, b in itertools.pairwise(bounds)]
    loader = Loader([(x[part], y[part]) for part in parts], weighted)
    one, other = mlp(), mlp()
    history = one.fit(loader, epochs=3, accumulate=accumulate, validation_data=samples)
    weight = np.concatenate([np.arange(len(part)) + 1.0 for part in parts]) if weighted else None
    options = {"sample_weight": weight, "accumulate": accumulate, "validation_data": samples}
    same = other.fit(x, y, epochs=3, batches=parts, **options)
    assert bits(one) == bits(other)
    assert metrics(history) == metrics(same)
    assert loader.epochs == [0, 0, 1, 2]  # the first shows what it has
    assert loader.closed == 4


def test_a_loader_is_closed_in_the_end(samples):
    loader = Loader([(samples[0][:20], samples[1][:20])] * 3)

    class Stop(nn.Callback):
        def on_train_begin(self, run):
            self.run = run

        def on_batch_end(self, batch, logs):
            self.run.stop("enough")

    mlp().fit(loader, callbacks=[Stop()])
    assert loader.closed == len(loader.epochs) == 2


class Short(Loader):
    def __len__(self):
        return 9


@pytest.mark.parametrize(
    ("loader", "options", "message"),
    [
        (Loader, {"batch_size": 3}, "batch_size must not be given beside a loader, which has its own, got 3"),
        (Loader, {"batches": [[0]]}, "batches must not be given beside a loader"),
        (Loader, {"transform": noisy}, "transform must not be given beside a loader"),
        (Loader, {"seed": 3}, "seed must not be given beside a loader"),
        (Loader, {"y": np.ones(3)}, "y must not be given beside a loader"),
        (Loader, {"class_weight": [1, 2, 3]}, "class_weight must not be given beside a loader"),
        (Short, {}, "x must be a loader of as many batches as its length says, 9, got 1"),
        (lambda parts: Loader([]), {}, "x must be a loader of at least one batch"),
        (lambda parts: Loader([(parts[0][0][:, 1:], parts[0][1])]), {}, r"a loader's x must have shape \(n, 5\)"),
    ],
)  # fmt: skip
def test_loaders_that_are_refused(samples, loader, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        mlp().fit(loader([samples]), **options)


# ---- Metrics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [(), (Doubled(),)], ids=["C", "Python"])
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"transform": noisy}, {"hooked": True}], ids=str)
def test_metrics_are_of_the_epochs_outputs(samples, layers, options):
    """By an accuracy of one's own, which must be that of `fit`; they change no bits."""
    options = dict(options)
    if options.pop("hooked", False):
        options["callbacks"] = [type("Watch", (nn.Callback,), {"on_gradients": lambda *_: None})()]
    seen = []

    def accuracy(targets, scores):
        seen.append((len(targets), scores.shape))
        return (scores.argmax(axis=1) == targets).mean()

    one, other = mlp(layers=layers), mlp(layers=[type(layer)() for layer in layers])
    history = one.fit(*samples, epochs=3, metrics={"own": accuracy}, validation_data=(samples[0][:40], samples[1][:40]),
                      **options)  # fmt: skip
    assert history["own"] == history["accuracy"]
    assert history["val_own"] == history["val_accuracy"]
    assert seen == [(N, (N, C)), (40, (40, C))] * 3
    assert list(history) == ["loss", "accuracy", "own", "samples_per_second", "val_loss", "val_accuracy", "val_own"]
    other.fit(*samples, epochs=3, **options)
    assert bits(one) == bits(other)


def test_callbacks_watch_metrics(samples):
    values = iter([3.0, 2.0, 5.0, 1.0, 4.0, 9.0])
    history = mlp().fit(
        *samples,
        epochs=6,
        metrics={"own": lambda targets, scores: next(values)},
        callbacks=[nn.EarlyStopping("own", mode="max", patience=1)],
    )
    assert history["own"] == [3.0, 2.0, 5.0, 1.0, 4.0]
    assert history.stopped == "own has not got better since epoch 3; stopped after epoch 5"


def test_metrics_leave_skipped_steps_out(samples):
    x, y = samples
    counted = []

    def spoils(x, y, rng):
        return (x * np.float32(np.nan) if rng.bit_generator.seed_seq.spawn_key[1] in (1, 4) else x), y

    def count(targets, scores):
        assert np.isfinite(scores).all()
        counted.append(len(targets))
        return (scores.argmax(axis=1) == targets).mean()

    history = mlp().fit(x, y, batch_size=20, epochs=2, transform=spoils, on_nonfinite="skip", metrics={"own": count})
    assert counted == [N - 40] * 2
    assert history["own"] == history["accuracy"]
    assert history["skipped"] == [2, 2]


def test_metrics_with_lbfgs(samples):
    """Of the outputs that the step begins with."""
    pytest.importorskip("scipy")
    one = nn.Sequential([nn.Dense(C)], (D,))
    before = one.predict(samples[0])
    sums = []
    history = one.fit(
        *samples,
        batch_size=N,
        optimizer=fastopt.LBFGS(one.params),
        metrics={"total": lambda targets, scores: sums.append(np.sort(scores.ravel())) or 0.0},
    )
    np.testing.assert_allclose(sums[0], np.sort(before.ravel()), rtol=1e-5, atol=1e-6)
    assert history["total"] == [0.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "metrics must be names, functions, or a sequence or dict of these, got int"),
        ([3], "metrics must have names, as in {'mine': 3}, where they are not of theirs"),
        ([len, len], "metrics must have different names, got 'len' twice"),
        ({3: len}, "metrics must have names, got 3"),
        ({"own": dict}, "metrics must be functions"),
        ({"loss": len}, "metrics must have names that are identifiers, .* got 'loss'"),
        ({"val_own": len}, "metrics must have names that .* got 'val_own'"),
        ({"my own": len}, "metrics must have names that are identifiers, .* got 'my own'"),
    ],
)
def test_metrics_that_are_refused(samples, given, message):
    model = mlp()
    for call in (model.fit, model.evaluate):
        with pytest.raises((TypeError, ValueError), match=message):
            call(*samples, metrics=given)


def test_a_metric_whose_name_is_nearly_one(samples):
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match=r"metrics must be functions .* got 'auc': is it 'roc_auc'"):
        mlp().fit(*samples, metrics={"own": "auc"})


def test_metrics_that_are_no_numbers(samples):
    with pytest.raises(TypeError, match="metrics must return numbers, got str of 'own'"):
        mlp().fit(*samples, metrics={"own": lambda targets, scores: "good"})
    with pytest.raises(ZeroDivisionError) as caught:
        mlp().evaluate(*samples, metrics={"own": lambda targets, scores: 1 / 0})
    assert caught.value.__notes__ == ["in the metric 'own', of targets int64 (131,) and scores float32 (131, 3)"]


# ---- Weighted evaluation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [nn.softmax_cross_entropy, nn.SoftmaxCrossEntropy(0.1), nn.Hinge()], ids=repr)
def test_evaluate_with_weights(samples, loss, rng):
    """A weight of k is the sample k times; the accuracy is without."""
    x, y = samples
    model, weight = mlp(), rng.integers(0, 4, N)
    again = np.repeat(np.arange(N), weight)
    measured = model.evaluate(x, y, weight, loss=loss)
    np.testing.assert_allclose(measured["loss"], model.evaluate(x[again], y[again], loss=loss)["loss"], rtol=1e-5)
    assert measured["accuracy"] == model.evaluate(x, y)["accuracy"]


def test_validation_with_weights(samples):
    model, weight = mlp(), np.arange(N) % 5 * 1.0
    history = model.fit(*samples, epochs=2, validation_data=(*samples, weight))
    assert history["val_loss"][-1] == model.evaluate(*samples, weight)["loss"]
    with pytest.raises(ValueError, match=r"sample_weight must have shape \(131,\), got \(130,\)"):
        model.fit(*samples, validation_data=(*samples, weight[1:]))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_loader_of_data(samples, workers):
    """By its own order and transforms, whatever the number of its threads."""
    loader = data.Loader(samples, 16, noisy, workers=workers, seed=5)
    one, other = mlp(), mlp()
    history = one.fit(loader, epochs=2)
    parts = [[np.concatenate(arrays) for arrays in zip(*loader.epoch(epoch), strict=True)] for epoch in range(2)]
    bounds = [0, *itertools.accumulate(len(x) for x, _ in loader.epoch(0))]
    batches = [np.arange(a, b) for a, b in itertools.pairwise(bounds)]
    adam = fastopt.Adam(other.params)
    losses = [other.fit(x, y, batches=batches, optimizer=adam)["loss"][0] for x, y in parts]
    assert bits(one) == bits(other)
    assert history["loss"] == losses
