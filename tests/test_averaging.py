"""Averages of weights: LookAhead, Ranger, EMA, SWA."""

import copy
import pickle

import numpy as np
import pytest

import fastopt
from fastopt.optimizers import OPTIMIZERS

INNER = [name for name, cls in OPTIMIZERS.items() if not hasattr(cls, "look_ahead")]


def draw(rng, dtype=np.float64):
    return {"w": rng.standard_normal((5, 7)).astype(dtype), "b": rng.standard_normal(33).astype(dtype)}


@pytest.mark.parametrize("name", INNER)
def test_look_ahead_by_hand(name, rng, close):
    params, start = draw(rng), {}
    plain = {key: p.copy() for key, p in params.items()}
    start.update({key: p.copy() for key, p in params.items()})
    optimizer = fastopt.LookAhead(OPTIMIZERS[name](params, lr=0.01), k=3, alpha=0.3)
    other = OPTIMIZERS[name](plain, lr=0.01)
    for t in range(1, 8):
        grads = draw(rng)
        optimizer.step(grads)
        other.step(grads)
        if t % 3 == 0:
            for key in plain:
                start[key] += 0.3 * (plain[key] - start[key])
                plain[key][...] = start[key]
        for key in plain:
            close(params[key], plain[key], 1e-10)
            close(optimizer.slow[key], start[key], 1e-10)
    assert optimizer.t == 7


def test_look_ahead_lets_through_what_is_the_optimizers():
    optimizer = fastopt.LookAhead(fastopt.Adam(np.ones(3), lr=0.5))
    optimizer.lr = 0.25
    assert optimizer.lr == optimizer.optimizer.lr == 0.25
    assert repr(optimizer).startswith("LookAhead(Adam(lr=0.25")
    with pytest.raises(AttributeError, match="no hyperparameter 'rate'"):
        optimizer.rate = 1
    with pytest.raises(ValueError, match="k must be at least 1"):
        fastopt.LookAhead(optimizer.optimizer, k=0)


def test_ranger_is_radam_ahead(rng, same_bits):
    params = draw(rng)
    other = {key: p.copy() for key, p in params.items()}
    ranger = fastopt.Ranger(params, 0.02, weight_decay=0.1)
    radam = fastopt.RAdam(other, 0.02, beta1=0.95, eps=1e-5, threshold=5, weight_decay=0.1)
    by_hand = fastopt.LookAhead(radam, k=6)
    for _ in range(13):
        grads = draw(rng)
        ranger.step(grads)
        by_hand.step(grads)
    for key, param in params.items():
        same_bits(param, other[key])


MAKERS = {
    "LookAhead": lambda params: fastopt.LookAhead(fastopt.Adam(params, lr=0.1), k=2),
    "Ranger": lambda params: fastopt.Ranger(params, 0.1, k=2),
    "Muon": lambda params: fastopt.Muon(params, 0.1),
    "Adafactor": lambda params: fastopt.Adafactor(params, 0.1),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_resume_has_the_same_bits(make, dtype, rng, same_bits):
    params, grads = draw(rng, dtype), [draw(rng, dtype) for _ in range(7)]
    straight = make(params)
    for grad in grads[:3]:
        straight.step(grad)
    state = pickle.loads(pickle.dumps(straight.state_dict()))
    resumed_params = {key: p.copy() for key, p in params.items()}
    resumed, twin = make(resumed_params), copy.deepcopy(straight)
    resumed.load_state_dict(state)
    for grad in grads[3:]:
        for optimizer in (straight, resumed, twin):
            optimizer.step(grad)
    for key, param in params.items():
        same_bits(resumed_params[key], param)
        same_bits(twin.params[key], param)
        assert not np.shares_memory(twin.params[key], param)
    with pytest.raises((KeyError, ValueError)):
        resumed.load_state_dict({**state, "optimizer": "Adam"})


@pytest.mark.parametrize("structure", [lambda d: d, lambda d: list(d.values()), lambda d: d["w"]])
def test_ema_by_hand(structure, rng, close):
    params = structure(draw(rng))
    ema, warm = fastopt.EMA(params, 0.9), fastopt.EMA(params, 0.9, warmup=True)
    named = fastopt.checks.named("param", params)
    wanted = {key: [p.copy(), p.copy()] for key, p in named.items()}
    for n in range(25):
        for key, param in named.items():
            param += rng.standard_normal(param.shape)
            for i, decay in enumerate((0.9, min(0.9, (1 + n) / (10 + n)))):
                wanted[key][i] = decay * wanted[key][i] + (1 - decay) * param
        ema.update()
        warm.update()
    for i, average in enumerate((ema, warm)):
        for key, a in fastopt.checks.named("param", average.averages).items():
            close(a, wanted[key][i])


def test_swa_is_the_mean(rng, close, same_bits):
    params = draw(rng)
    swa, seen = fastopt.SWA(params), []
    for _ in range(6):
        for param in params.values():
            param += rng.standard_normal(param.shape)
        seen.append({key: p.copy() for key, p in params.items()})
        swa.update()
        if swa.count == 1:
            same_bits(swa.averages["w"], params["w"])
    for key in params:
        close(swa.averages[key], np.mean([s[key] for s in seen], axis=0))


def test_averages_of_pytorch(rng, close):
    torch = pytest.importorskip("torch")
    utils = torch.optim.swa_utils
    params = draw(rng)
    module = torch.nn.Module()
    for key, param in params.items():
        module.register_parameter(key, torch.nn.Parameter(torch.tensor(param)))
    theirs = [
        utils.AveragedModel(module, multi_avg_fn=utils.get_ema_multi_avg_fn(0.8)),
        utils.AveragedModel(module),
    ]
    ours = [fastopt.EMA(params, 0.8), fastopt.SWA(params)]
    for step in range(9):
        for key, param in params.items():
            param += rng.standard_normal(param.shape) * (step > 0)  # PyTorch's first update is a copy
            getattr(module, key).data = torch.tensor(param)
        for average in theirs:
            average.update_parameters(module)
        for average in ours:
            average.update()
    for average, their in zip(ours, theirs, strict=True):
        for key, a in average.averages.items():
            close(a, getattr(their.module, key).detach().numpy(), 1e-12)


@pytest.mark.parametrize("make", [fastopt.EMA, fastopt.SWA])
def test_applied_is_undone_to_the_bit(make, rng, same_bits):
    params = draw(rng)
    average = make(params)
    for param in params.values():
        param += 1
    average.update()
    before = {key: p.copy() for key, p in params.items()}
    with average.applied():
        for key, param in params.items():
            same_bits(param, average.averages[key])
            param += 1  # is undone, too
    for key, param in params.items():
        same_bits(param, before[key])


@pytest.mark.parametrize("make", [fastopt.EMA, fastopt.SWA])
def test_an_average_is_saved(make, rng, same_bits):
    params = draw(rng)
    one, other = make(params), make({key: 0 * p for key, p in params.items()})
    for _ in range(3):
        params["w"] += 1
        one.update()
    other.load_state_dict(one.state_dict())
    assert other.count == 3
    for key in params:
        same_bits(other.averages[key], one.averages[key])
    state = one.state_dict()
    state["averages"]["b"] = np.ones(3)
    with pytest.raises(ValueError, match=r"averages\['b'\] must have shape"):
        other.load_state_dict(state)


def test_schedule_free_steps_are_validated_at_their_average(rng, same_bits):
    from fastopt import nn

    x, y = rng.standard_normal((40, 6)), rng.integers(3, size=40)
    model = nn.Sequential([nn.Dense(3)], (6,), dtype=np.float64)
    optimizer = fastopt.ScheduleFreeSGD(model.params, 0.5)
    history = model.fit(x, y, epochs=3, batch_size=8, optimizer=optimizer, validation_data=(x, y))
    assert model.evaluate(x, y)["loss"] == history["val_loss"][-1]
    optimizer.restore()
    held = {name: p.copy() for name, p in model.params.items()}
    with optimizer.applied():
        assert all(np.linalg.norm(held[name] - param) > 1e-6 for name, param in model.params.items())
        assert model.evaluate(x, y)["loss"] == history["val_loss"][-1]
    for name, param in model.params.items():
        same_bits(param, held[name])
