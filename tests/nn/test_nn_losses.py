"""Every loss: finite differences, PyTorch, weights, values at random, refusals."""

import math

import numpy as np
import pytest
from finite_differences import check_gradients

import fastopt
from fastopt import nn
from fastopt.nn import losses


def labels(rng, n, c):
    return rng.integers(c, size=n)


def one_hot(rng, n, c):
    return np.eye(c)[labels(rng, n, c)]


def soft(rng, n, c):
    t = rng.uniform(size=(n, c))
    return t / t.sum(axis=1, keepdims=True)


def numbers(rng, *shape):
    return rng.normal(size=shape)


def probabilities(rng, *shape):
    return rng.uniform(size=shape)


WEIGHTS = [0.5, 2.0, 0.0, 1.5]


def entropy(torch, x, t, w=None, smoothing=0.0):
    return torch.nn.functional.cross_entropy(
        x, t, weight=None if w is None else torch.tensor(w, dtype=x.dtype), label_smoothing=smoothing, reduction="none"
    )


#: Losses, the shape of an output, targets for it, and the loss of each sample by PyTorch.
CASES = [
    (nn.SoftmaxCrossEntropy(), (6, 4), labels, entropy),
    (nn.SoftmaxCrossEntropy(), (6, 4), one_hot, entropy),
    (nn.SoftmaxCrossEntropy(), (6, 4), soft, entropy),
    (nn.SoftmaxCrossEntropy(label_smoothing=0.1), (6, 4), labels, lambda *a: entropy(*a, smoothing=0.1)),
    (nn.SoftmaxCrossEntropy(label_smoothing=0.2), (6, 4), soft, lambda *a: entropy(*a, smoothing=0.2)),
    (nn.SoftmaxCrossEntropy(class_weight=WEIGHTS), (6, 4), labels, lambda *a: entropy(*a, w=WEIGHTS)),
    (nn.SoftmaxCrossEntropy(class_weight=WEIGHTS), (6, 4), one_hot, lambda *a: entropy(*a, w=WEIGHTS)),
    (nn.SoftmaxCrossEntropy(0.3, WEIGHTS), (6, 4), labels, lambda *a: entropy(*a, w=WEIGHTS, smoothing=0.3)),
    *(
        (nn.SigmoidCrossEntropy(), shape, probabilities,
         lambda torch, x, t: torch.nn.functional.binary_cross_entropy_with_logits(x, t, reduction="none"))
        for shape in ((7,), (5, 3))
    ),
    (nn.Hinge(), (6, 4), labels,
     lambda torch, x, t: 4 * torch.nn.functional.multi_margin_loss(x, t, reduction="none")),
    (nn.Hinge(margin=0.4), (6, 4), labels,
     lambda torch, x, t: 4 * torch.nn.functional.multi_margin_loss(x, t, margin=0.4, reduction="none")),
    *(
        (nn.SquaredError(), shape, numbers,
         lambda torch, x, t: torch.nn.functional.mse_loss(x, t, reduction="none"))
        for shape in ((7,), (5, 3), (4, 3, 2, 2))
    ),
    (nn.L1(), (5, 3), numbers, lambda torch, x, t: torch.nn.functional.l1_loss(x, t, reduction="none")),
    *(
        (nn.Huber(delta), (5, 3), numbers,
         lambda torch, x, t, d=delta: torch.nn.functional.huber_loss(x, t, delta=d, reduction="none"))
        for delta in (1.0, 0.3)
    ),
]  # fmt: skip


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]!r}-{case[2].__name__}-{case[1]}")
def case(request, rng):
    """A loss, an output, targets, and PyTorch's losses."""
    loss, shape, make, theirs = request.param
    return loss, 2 * rng.normal(size=shape), make(rng, *shape), theirs


@pytest.mark.parametrize("weigh", [False, True])
def test_gradients(case, weigh, rng):
    loss, output, targets, _ = case
    more = {"sample_weight": rng.uniform(size=len(output))} if weigh else {}
    _, gradient = loss(output, targets, **more)
    check_gradients(lambda: loss(output, targets, **more)[0], {"x": output}, {"x": gradient}, step=1e-4)


@pytest.mark.parametrize("weigh", [False, True])
def test_losses_of_pytorch(case, weigh, rng):
    torch = pytest.importorskip("torch")
    loss, output, targets, theirs = case
    weight = rng.uniform(size=len(output)) if weigh else np.ones(len(output))
    # What a sample counts: by the weight of its class, where there are such.
    mass = weight
    if getattr(loss, "class_weight", None):
        by_class = np.array(loss.class_weight)
        mass = weight * (by_class[targets] if targets.ndim == 1 else targets @ by_class)
    x = torch.tensor(output, requires_grad=True)
    each = theirs(torch, x, torch.tensor(targets)).reshape(len(output), -1).mean(dim=1)
    wanted = (each * torch.tensor(weight)).sum() / mass.sum()
    wanted.backward()
    value, gradient = loss(output, targets, **({"sample_weight": weight} if weigh else {}))
    assert value == pytest.approx(wanted.item(), rel=1e-10)
    np.testing.assert_allclose(gradient, x.grad, rtol=1e-10, atol=1e-10 * np.abs(x.grad.numpy()).max())


def test_float32(case):
    loss, output, targets, _ = case
    value, gradient = loss(output.astype(np.float32), targets)
    wanted, wanted_gradient = loss(output, targets)
    assert type(value) is float
    assert value == pytest.approx(wanted, rel=1e-5)
    assert gradient.dtype == np.float32
    np.testing.assert_allclose(gradient, wanted_gradient, atol=1e-6)


def test_a_weight_of_two_is_a_sample_twice(case):
    loss, output, targets, _ = case
    weight = np.array([2, 0, *[1] * (len(output) - 2)])
    value, gradient = loss(output, targets, sample_weight=weight)
    times = np.repeat(np.arange(len(output)), weight)
    wanted, repeated = loss(output[times], targets[times])
    assert value == pytest.approx(wanted, rel=1e-12)
    np.testing.assert_allclose(gradient[0], repeated[:2].sum(axis=0), atol=1e-15)
    assert not gradient[1].any()
    np.testing.assert_allclose(gradient[2:], repeated[2:], atol=1e-15)


def test_weights_of_zero(case):
    loss, output, targets, _ = case
    value, gradient = loss(output, targets, sample_weight=np.zeros(len(output)))
    assert value == 0.0
    assert not gradient.any()


@pytest.mark.parametrize(
    ("loss", "classes", "wanted"),
    [
        (nn.SoftmaxCrossEntropy(), 10, math.log(10)),
        (nn.SoftmaxCrossEntropy(label_smoothing=0.2), 10, math.log(10)),
        (nn.Hinge(), 10, 9.0),
        (nn.Hinge(0.5), 3, 1.0),
    ],
)
def test_values_at_random_of_classifiers(loss, classes, wanted, rng):
    output = 1e-4 * rng.normal(size=(1000, classes))
    assert loss(output, labels(rng, 1000, classes))[0] == pytest.approx(wanted, rel=1e-3)


def test_values_at_random_of_others(rng):
    output, targets = 1e-4 * rng.normal(size=(2, 1000, 3))
    targets *= 1e4
    assert nn.SquaredError()(output, targets)[0] == pytest.approx((targets**2).mean(), rel=1e-2)
    assert nn.L1()(output, targets)[0] == pytest.approx(np.abs(targets).mean(), rel=1e-2)
    assert nn.Huber()(output, targets)[0] <= nn.SquaredError()(output, targets)[0] / 2
    assert nn.SigmoidCrossEntropy()(output, targets > 0)[0] == pytest.approx(math.log(2), rel=1e-3)


def test_large_outputs_are_safe():
    output = np.array([[1e4, -1e4], [-1e4, 1e4]])
    assert nn.SoftmaxCrossEntropy(0.5)(output, np.array([0, 1]))[0] == pytest.approx(5000)
    value, gradient = nn.SigmoidCrossEntropy()(output, np.eye(2))
    assert value == 0.0
    assert not gradient.any()


@pytest.mark.parametrize("loss", [case[0] for case in CASES], ids=repr)
def test_repr_makes_the_same_loss(loss):
    assert repr(eval(repr(loss), vars(nn))) == repr(loss)


# ---- The kernel calls of a loss -------------------------------------------------------------------


def lowered(loss, output, targets, weight, out):
    """What the calls of a loss compute that are listed before there is any output."""
    given, result, calls = output.copy(), np.full(2, np.nan), []
    output[...] = np.nan
    lower = losses.lowering_of(loss)
    lower(
        lambda function, *arguments, **options: calls.append((function, arguments, options)),
        lambda shape, dtype: np.full(shape, np.nan, dtype),
        output,
        targets,
        weight,
        out=out,
        result=result,
    )
    for _ in range(2):  # as for batch after batch
        output[...] = given
        for function, arguments, options in calls:
            function(*arguments, **options)
    return result, out


@pytest.mark.parametrize("weigh", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_the_calls_of_a_loss_compute_the_same(case, dtype, weigh, in_place, rng, same_bits):
    loss, output, targets, _ = case
    output = output.astype(dtype)
    targets = targets if targets.dtype.kind == "i" else targets.astype(dtype)
    weight = rng.uniform(size=len(output)).astype(dtype) if weigh else None
    value, gradient = loss(output, targets, weight)
    result, out = lowered(loss, output.copy(), targets, weight, np.empty_like(output))
    assert result.tolist() == [value, pytest.approx(loss.total_weight(targets, weight), rel=1e-6)]
    same_bits(out, gradient)
    if in_place:
        own = output.copy()
        losses.lowering_of(loss)(call_now, np.empty, own, targets, weight, out=own, result=result)
        assert result[0] == value
        same_bits(own, gradient)


def call_now(function, *arguments, **options):
    function(*arguments, **options)


def test_the_calls_of_softmax_cross_entropy(rng, dtype, same_bits):
    output, targets = rng.standard_normal((70, 11)).astype(dtype), rng.integers(11, size=70)
    value, gradient = nn.softmax_cross_entropy(output, targets)
    result, out = lowered(nn.softmax_cross_entropy, output.copy(), targets, None, np.empty_like(output))
    assert result.tolist() == [value, 70]
    same_bits(out, gradient)
    weight = rng.uniform(size=70).astype(dtype)
    result, out = lowered(nn.softmax_cross_entropy, output.copy(), targets, weight, np.empty_like(output))
    value, gradient = nn.SoftmaxCrossEntropy()(output, targets, weight)
    assert result[0] == value
    same_bits(out, gradient)


def test_a_loss_of_ones_own_has_no_kernel_calls():
    class Doubled(nn.SquaredError):
        def __call__(self, *arguments, **options):
            loss, gradient = super().__call__(*arguments, **options)
            return 2 * loss, 2 * gradient

    assert losses.lowering_of(lambda output, targets: (0.0, output)) is None
    assert losses.lowering_of(Doubled()) is None


def test_numbers_that_are_not_finite_in_the_type_of_the_output():
    output = np.zeros((2, 1), np.float32)
    for loss, more, message in (
        (nn.L1(), {"targets": [[1e300], [0.0]]}, "targets must be finite as float32, got 1e\\+300"),
        (nn.L1(), {"targets": output, "sample_weight": [1e300, 1]}, "sample_weight must be finite as float32"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(output, **more)


# ---- Refusals -------------------------------------------------------------------------------------

OUTPUT = np.zeros((3, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.SoftmaxCrossEntropy(1.5), r"label_smoothing must be in \[0, 1\]"),
        (lambda: nn.SoftmaxCrossEntropy(class_weight=[1, -1]), r"class_weight must be in \[0, inf\)"),
        (lambda: nn.SoftmaxCrossEntropy(class_weight=[1, 1])(OUTPUT, np.arange(3)), "class_weight must hold 4 weights"),
        (lambda: nn.SoftmaxCrossEntropy(0.1)(OUTPUT, np.arange(3) + 2), r"targets must be in \[0, 4\), got 4"),
        (lambda: nn.SoftmaxCrossEntropy()(OUTPUT, OUTPUT + 0.3), "targets must sum up to 1 in each row, got 1.2"),
        (lambda: nn.SoftmaxCrossEntropy()(OUTPUT, OUTPUT - 1), r"targets must be in \[0, 1\]"),
        (lambda: nn.SoftmaxCrossEntropy()(OUTPUT, OUTPUT[:, :3]), r"targets must have shape \(3, 4\)"),
        (lambda: nn.SoftmaxCrossEntropy(0.1)(OUTPUT[0], np.arange(4)), r"output must have shape \(n, c\)"),
        (lambda: nn.SigmoidCrossEntropy()(OUTPUT, OUTPUT + 2), r"targets must be in \[0, 1\]"),
        (lambda: nn.SigmoidCrossEntropy()(OUTPUT, OUTPUT * np.nan), r"targets must be in \[0, 1\]"),
        (lambda: nn.Hinge(-1), "margin must be in"),
        (lambda: nn.Hinge()(OUTPUT, OUTPUT), r"targets must be an array of integers|targets must have shape"),
        (lambda: nn.Huber(0), r"delta must be in \(0, inf\)"),
        (lambda: nn.SquaredError()(OUTPUT, OUTPUT.T), r"targets must have shape \(3, 4\), got \(4, 3\)"),
        (lambda: nn.SquaredError()(OUTPUT, OUTPUT.astype(str)), "targets must be an array of numbers"),
        (lambda: nn.SquaredError()(OUTPUT.astype(int), OUTPUT), "output must be float32 or float64"),
        (lambda: nn.L1()(OUTPUT, OUTPUT, sample_weight=-np.ones(3)), r"sample_weight must be in \[0, inf\]"),
        (lambda: nn.L1()(OUTPUT, OUTPUT, sample_weight=np.ones(4)), r"sample_weight must have shape \(3,\)"),
    ],
)  # fmt: skip
def test_refusals(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (nn.SoftmaxCrossEntropy(label_smoothing=0.1), np.arange(40) % 3),
        (nn.Hinge(), np.arange(40) % 3),
        (nn.SoftmaxCrossEntropy(), np.eye(3)[np.arange(40) % 3]),
        (nn.SquaredError(), np.eye(3)[np.arange(40) % 3]),
        (nn.SigmoidCrossEntropy(), np.eye(3)[np.arange(40) % 3]),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_fit_lowers_every_loss(loss, targets, rng):
    x = np.eye(3)[np.arange(40) % 3] + 0.1 * rng.normal(size=(40, 3))
    model = nn.Sequential([nn.Dense(3)], (3,))
    before = model.evaluate(x, targets, loss=loss)["loss"]
    optimizer = fastopt.Adam(model.params, lr=0.05)
    history = model.fit(x, targets, epochs=20, loss=loss, optimizer=optimizer, sample_weight=rng.uniform(1, 2, 40))
    assert history["loss"][-1] < 0.9 * before
    with pytest.raises(ValueError, match="targets must "):
        model.fit(x, np.stack([targets] * 2, 1) if targets.ndim == 1 else targets[:, :2], loss=loss)
