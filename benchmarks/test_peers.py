"""All contenders of a contest compute the same numbers, else a race between them says nothing."""

import peers
import pytest

from fastopt import bench

#: What fits into memory and patience.
CONTESTS = {name: make for name, make in bench.catalogue().items() if bench.extent(make) <= 5_000_000}


NEWER_LAYERS = (
    "activation_",
    "batch_norm_max_pool",
    "bias_forward",
    "bias_backward",
    "conv2d",
    "dense_",
    "group_norm_",
    "softmax_forward",
    "softmax_backward",
    "average_pool_",
    "depthwise_",
    "embedding_",
    "square_sums",
)


@pytest.mark.parametrize("name", CONTESTS)
def test_agree(name):
    peers.agree(peers.add(CONTESTS[name]()))


def test_agree_finds_another_step():
    contest, other = bench.step_contest("momentum", 100), bench.step_contest("nesterov", 100)
    contest.contenders["other"], contest.results["other"] = other.contenders["fastopt"], other.results["fastopt"]
    with pytest.raises(AssertionError, match="momentum 100: other is another result in"):
        peers.agree(contest)


def test_agree_finds_another_layer():
    contest = bench.layer_contest("relu_forward", (100,))
    contest.contenders["other"] = lambda: abs(contest.arrays["x"])
    with pytest.raises(AssertionError, match="relu_forward 100: other is another result in"):
        peers.agree(contest)


def test_agree_finds_that_inputs_change():
    contest = bench.step_contest("sgd", 100)
    step = contest.contenders["fastopt"]

    def other():
        step()
        contest.grads[0] *= 2

    contest.contenders["fastopt"] = other
    with pytest.raises(AssertionError, match="sgd 100: fastopt changes gradient 0"):
        peers.agree(contest)


def test_every_kernel_has_a_peer_of_each_library():
    """What numba and PyTorch can do, they do; thinc has little. A kernel that is newer than its peers may lack them."""
    no_torch = {"adabound", "amsbound", "yogi", "adabelief", "lion", "lamb", "schedule_free_sgd", "schedule_free_adamw"}
    for name, make in CONTESTS.items():
        contest = peers.add(make())
        is_newer = "NumPy in place" not in contest.contenders or contest.name.startswith(NEWER_LAYERS)
        if is_newer or contest.name == "denormals":
            continue
        for library, contender in (("numba", "numba"), ("torch", "PyTorch")):
            lacks = library == "torch" and contest.name in no_torch
            assert lacks or not peers.installed(library) or contender in contest.contenders, name
