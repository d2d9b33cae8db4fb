"""What is chosen by CPU family: one set of bits whatever is chosen; how it is chosen."""

import numpy as np
import pytest
import test_bits
from test_dispatch import python

from fastopt import _kernels, cases, functional
from fastopt.optimizers import OPTIMIZERS

pytestmark = pytest.mark.bits


@pytest.mark.parametrize("exponent", [-60, -59, 0, 1, 118, 119])
def test_roots_of_all_mantissas(exponent, on_each_tuning, same_bits):
    """What has an exponent of its own is 4^k times something of exponent 0 or 1: so all floats of the range are tried.

    RMSProp divides a gradient by the root of its state, which does not change where the gradient's weight is 2^-53. One
    quotient in two or more tells neighbouring roots apart.
    """
    x = np.ldexp((np.arange(1 << 23, dtype=np.uint32) | 127 << 23).view(np.float32), exponent)
    root, eps = np.sqrt(x), np.float32(2.0**-126)
    for factor in (1, 1.25, 1.5):
        grad = np.full_like(x, factor * 2.0 ** (exponent // 2))

        def quotients(grad=grad):
            param, square_avg = np.zeros_like(x), x.copy()
            functional.rmsprop(param, grad, square_avg, lr=1, decay=np.nextafter(1, 0), eps=eps)
            same_bits(square_avg, x)
            return param

        for actual in on_each_tuning(quotients):
            same_bits(actual, -grad / root)


def test_steps_have_the_same_bits_on_every_tuning(rule, on_each_tuning, same_bits):
    """On long arrays, whose roots are taken by vectors, of numbers that are tame or hostile."""

    def steps(share):
        x, results = cases.hostile(np.float32, share), []
        for n in (511, 512, 1000, 5000):
            arrays = [x(n) for _ in ("param", *rule.states)]
            for t in (1, 2, 3):
                rule.step(arrays[0], x(n), *arrays[1:], t=t)
            results += arrays
        return results

    for share in (0, 0.003, 0.1):
        first, *others = on_each_tuning(lambda share=share: steps(share))
        assert np.isfinite(first[0]).any()
        for results in others:
            for actual, expected in zip(results, first, strict=True):
                same_bits(actual, expected)


def test_zeros_infinities_and_negative_numbers(on_each_tuning, same_bits):
    """Under the root, beside tame numbers: a vector with one of them takes the instruction."""
    x = np.random.default_rng(3).uniform(1, 2, (6, 512)).astype(np.float32)
    tiny = np.float32(2.0**-50)  # a gradient whose square is none
    x[np.arange(6), np.arange(6) * 77] = 0, np.inf, -1, np.nan, 2.0**-110, 2.0**125

    def step():
        param, square_avg = np.zeros_like(x), x.copy()
        functional.rmsprop(param, np.full_like(x, tiny), square_avg, lr=1, decay=np.nextafter(1, 0), eps=1e-8)
        return param

    with np.errstate(invalid="ignore"):
        expected = 0 - tiny / (np.sqrt(x) + np.float32(1e-8))
    for actual in on_each_tuning(step):
        same_bits(actual, expected)


@pytest.fixture(params=_kernels.tunings())
def tuning(request):
    before = _kernels.tuning()
    _kernels.use_tuning(request.param)
    yield request.param
    _kernels.use_tuning(before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hashes_of_optimizers(name, tuning):
    test_bits.check("optimizers", name, "float32")
    test_bits.check("optimizers with what is around", name, "float32")


def test_hashes_of_large_work(tuning):
    for name in ("adam", "lamb"):
        test_bits.check("large", name, "float32")


def test_hashes_of_nets(tuning):
    if test_bits.hashed(test_bits.orders()) != test_bits.recorded()["NumPy"]["orders"]:
        pytest.skip("this NumPy draws samples in another order")
    for name in test_bits.NETS:
        assert test_bits.hashed(test_bits.trained(name, "float32")) == test_bits.recorded()["nets"][f"{name} float32"]


@pytest.mark.skipif("avx512" not in _kernels.isas(), reason="other instruction sets have no estimate of the root")
def test_tunings_differ():
    """Or the tests above would compare a choice with itself."""
    isa, tuning = _kernels.isa(), _kernels.tuning()
    try:
        _kernels.use_isa("avx512")
        chosen = {}
        for name in _kernels.tunings():
            _kernels.use_tuning(name)
            chosen[name] = _kernels.roots_by_fma()
        assert chosen == {"golden-cove": True, "zen4": False, "zen5": False, "common": False}
        _kernels.use_tuning("golden-cove")
        _kernels.use_isa("avx2")
        assert not _kernels.roots_by_fma()
    finally:
        _kernels.use_isa(isa)
        _kernels.use_tuning(tuning)


# ---- The choice ----------------------------------------------------------------------------------


def cpu() -> tuple[str, int, int]:
    """Vendor, family and model of this CPU, as Linux says them."""
    try:
        with open("/proc/cpuinfo") as file:
            facts = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
    except OSError:
        pytest.skip("needs /proc/cpuinfo")
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    if "vendor_id" not in facts:
        pytest.skip("no x86")
    return facts["vendor_id"], int(facts["cpu family"]), int(facts["model"])


def test_the_default_is_that_of_this_cpu():
    match cpu():
        case "GenuineIntel", 6, 0x8F | 0xCF:
            expected = "golden-cove"
        case "AuthenticAMD", 0x19, _:
            expected = "zen4"
        case "AuthenticAMD", 0x1A, _:
            expected = "zen5"
        case _:
            expected = "common"
    code = "from fastopt import _kernels; print(_kernels.tuning())"
    assert python(code).stdout.split() == python(code, FASTOPT_TUNING="").stdout.split() == [expected]


@pytest.mark.slow
@pytest.mark.parametrize("name", _kernels.tunings())
def test_the_environment_chooses(name):
    code = "from fastopt import _kernels; print(_kernels.tuning())"
    assert python(code, FASTOPT_TUNING=name).stdout.split() == [name]


def test_the_environment_names_no_such_tuning():
    result = python("import fastopt", FASTOPT_TUNING="nonsense")
    assert result.returncode == 1
    message = "ImportError: FASTOPT_TUNING: the tuning must be one of golden-cove, zen4, zen5, common; got 'nonsense'"
    assert result.stderr.splitlines()[-1] == message


def test_an_unknown_tuning_is_refused_and_the_old_one_kept():
    before = _kernels.tuning()
    with pytest.raises(ValueError, match="nonsense"):
        _kernels.use_tuning("nonsense")
    assert _kernels.tuning() == before
