"""All trainers train alike: from the same weights, on the same batches, to the same losses."""

import numpy as np
import pytest
import trainers

EPOCHS = 2


@pytest.mark.parametrize("name", trainers.NETS)
def test_losses_agree(name):
    net = trainers.NETS[name].without_dropout()
    net = net._replace(samples=4 * 16, batch=16)
    ours = losses(net, "fastopt")
    assert ours[0] > ours[-1]
    others = [other for other in trainers.trainers(net) if other != "fastopt"]
    if name == "CNN 32×32×3":
        others.remove("JAX")  # which compiles for long, and has shown what it does on the smaller one
    compared = 0
    for other in others:
        try:
            theirs = losses(net, other)
        except ImportError:
            continue
        compared += 1
        np.testing.assert_allclose(theirs, ours, rtol=2e-3, err_msg=other)
    assert compared  # NumPy at least


def test_all_draw_dropout():
    """With it, the losses are others than without, and none is far from ours."""
    net = trainers.NETS["MLP, batch 64"]._replace(samples=4 * 64)
    without, ours = losses(net.without_dropout(), "fastopt"), losses(net, "fastopt")
    for other in trainers.trainers(net):
        try:
            theirs = losses(net, other)
        except ImportError:
            continue
        assert abs(theirs[0] - without[0]) > 1e-3, other
        np.testing.assert_allclose(theirs, ours, rtol=0.3, err_msg=other)


def losses(net, name):
    epoch = trainers.trainers(net)[name]()
    return [epoch(trainers.epoch_batches(net, number)) for number in range(EPOCHS)]
