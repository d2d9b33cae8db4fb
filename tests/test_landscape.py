"""Optimizers on surfaces: the surfaces, the runs, the choice of rates, and the pictures."""

import re
import sys

import numpy as np
import pytest

from fastopt import drawing, landscape
from fastopt.cli import main
from fastopt.landscape import RATES, SURFACES, best, descend, draw
from fastopt.optimizers import OPTIMIZERS

# ---- Surfaces -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)
def test_gradients(surface):
    left, right, bottom, top = surface.limits
    x, y = np.random.default_rng(0).uniform((left, bottom), (right, top), (200, 2)).T
    h = 1e-5
    for grad, dx, dy in zip(surface.gradient(x, y), (h, 0), (0, h), strict=True):
        wanted = (surface.function(x + dx, y + dy) - surface.function(x - dx, y - dy)) / (2 * h)
        np.testing.assert_allclose(grad, wanted, rtol=1e-6, atol=1e-8 * np.abs(wanted).max())


@pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)
def test_minima(surface):
    left, right, bottom, top = surface.limits
    values = [surface.function(*point) for point in surface.minima]
    assert values == sorted(values)
    for point, value in zip(surface.minima, values, strict=True):
        np.testing.assert_allclose(surface.gradient(*point), 0, atol=1e-12)
        angles = np.linspace(0, 2 * np.pi, 100)
        assert np.all(surface.function(point[0] + 1e-3 * np.cos(angles), point[1] + 1e-3 * np.sin(angles)) > value)
    x, y = np.meshgrid(np.linspace(left, right, 201), np.linspace(bottom, top, 201))
    assert np.all(surface.excess(x, y) >= 0)  # the first is the lowest far and wide
    for x, y in (surface.start, surface.minima[0]):
        assert left < x < right
        assert bottom < y < top
    assert set(surface.optimizers) <= set(OPTIMIZERS)


# ---- Runs ---------------------------------------------------------------------------------------------------


def test_descend_is_the_recurrence():
    run = descend("momentum", "ravine", 0.01, steps=30)
    point, velocity = np.array(SURFACES["ravine"].start), np.zeros(2)
    wanted = [point]
    for _ in range(30):
        velocity = 0.9 * velocity + SURFACES["ravine"].gradient(*point)
        point = point - 0.01 * velocity
        wanted.append(point)
    np.testing.assert_allclose(run.points, wanted, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(run.losses, [SURFACES["ravine"].function(*point) for point in run.points])
    assert (run.optimizer, run.lr) == ("momentum", 0.01)


def test_nesterov_looks_ahead():
    run = descend("look_ahead_nesterov", "beale", 0.001, steps=30)
    point, velocity = np.array(SURFACES["beale"].start), np.zeros(2)
    for _ in range(30):
        velocity = 0.9 * velocity - 0.001 * np.array(SURFACES["beale"].gradient(*(point + 0.9 * velocity)))
        point = point + velocity
    np.testing.assert_allclose(run.points[-1], point, rtol=1e-12)


def test_schedule_free_shows_the_average():
    run = descend("schedule_free_sgd", "ravine", 0.01, steps=30)
    z = average = np.array(SURFACES["ravine"].start)
    for t in range(1, 31):
        z = z - 0.01 * np.array(SURFACES["ravine"].gradient(*(0.1 * z + 0.9 * average)))
        average = average + (z - average) / t
        np.testing.assert_allclose(run.points[t], average, rtol=1e-10)


def test_noise_is_seeded_and_shared():
    one, twin, other = (descend("sgd", "noisy-bowl", 0.01, steps=20, seed=seed).points for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, twin)
    assert not np.any(one[1:] == other[1:])
    first = {name: descend(name, "noisy-bowl", 0.01, steps=1, seed=3).points[1] for name in ("sgd", "momentum")}
    np.testing.assert_array_equal(first["sgd"], first["momentum"])
    np.testing.assert_array_equal(descend("sgd", "ravine", 0.01, seed=3).points, descend("sgd", "ravine", 0.01).points)


def test_what_diverges_is_no_error():
    assert not np.isfinite(descend("sgd", "rosenbrock", 10.0).losses[-1])


def test_hyperparameters():
    run = descend("momentum", "ravine", 0.01, steps=30, momentum=0.5)
    point, velocity = np.array(SURFACES["ravine"].start), np.zeros(2)
    for _ in range(30):
        velocity = 0.5 * velocity + SURFACES["ravine"].gradient(*point)
        point = point - 0.01 * velocity
    np.testing.assert_allclose(run.points[-1], point, rtol=1e-12)
    assert (run.label, run.is_best) == ("momentum, 0.01, momentum 0.5", False)
    found = best("momentum", "ravine", steps=30, rates=[0.02, 0.01], momentum=0.5)
    assert found.is_best
    assert found.hyper == {"momentum": 0.5}
    np.testing.assert_array_equal(found.points, descend("momentum", "ravine", found.lr, steps=30, momentum=0.5).points)
    with pytest.raises(ValueError, match="rates must hold at least one learning rate"):
        best("sgd", "ravine", rates=[])
    with pytest.raises(TypeError, match="Momentum has no keyword 'beta'"):
        descend("momentum", "ravine", 0.01, beta=0.5)


# ---- Surfaces of your own -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rosenbrock", "beale", "two-minima", "plateau"])
def test_surface_finds_gradient_and_minimum(name):
    known = SURFACES[name]
    own = landscape.surface(known.function, start=known.start, limits=known.limits)
    np.testing.assert_allclose(own.minima[0], known.minima[0], atol=1e-6)
    x, y = np.random.default_rng(0).uniform(known.limits[::2], known.limits[1::2], (50, 2)).T
    wanted = np.array(known.gradient(x, y))
    np.testing.assert_allclose(own.gradient(x, y), wanted, rtol=1e-7, atol=1e-8 * np.abs(wanted).max())
    np.testing.assert_allclose(
        descend("sgd", own, 0.001, steps=5).points, descend("sgd", name, 0.001, steps=5).points, rtol=1e-6
    )


def test_a_minimum_on_the_edge_is_none():
    slope = landscape.surface(lambda x, y: x + y**2, start=(0, 1), limits=(-1, 1, -1, 1))
    assert slope.minima == ()
    np.testing.assert_allclose(slope.excess(0.0, 0.0), 1, atol=1e-9)


def test_expression():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 4))
    for text, wanted in {
        "x**2 + 10*y**2": x**2 + 10 * y**2,
        " -sin(3*x) * exp(-y/2) + pi ": -np.sin(3 * x) * np.exp(-y / 2) + np.pi,
        "maximum(abs(x), y) % 2": np.maximum(abs(x), y) % 2,
        "2": np.full((3, 4), 2.0),
    }.items():
        f = landscape.expression(text)
        np.testing.assert_array_equal(f(x, y), wanted)
        assert f(x[0, 0], y[0, 0]) == wanted[0, 0]


@pytest.mark.parametrize(
    "text",
    [
        "", "x +", "z", "x.real", "__import__('os')", "x if y else 1", "[x]", "lambda: x", "x == y", "'x'", "1j*x",
        "sin(x, y)", "sin()", "sin(*x)", "sin(x, out=y)", "x(y)", "(sin)(cos)", "x @ y", "x; y", "True", "(" * 300,
        "x := 1", "sin + x",
    ],
)  # fmt: skip
def test_no_expression(text):
    with pytest.raises(ValueError, match="function must be"):
        landscape.expression(text)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"function": 3}, "function must be callable"),
        ({"function": lambda x, y: np.log(x)}, "function must return a finite number"),
        ({"function": lambda x, y: 1.0}, "function must return a finite number"),
        ({"function": landscape.expression("9**9**9 + x")}, "function must return a finite number"),
        ({"function": lambda x, y: 0 * x}, "start must be higher than the lowest point"),
        ({"limits": (2, -2, -2, 2)}, "limits must be left < right, bottom < top"),
        ({"limits": (-2, 2)}, "limits must be 4 numbers"),
        ({"limits": (-2, 2, -2, np.inf)}, "limits must be in"),
        ({"start": (3, 0)}, "start must lie within the limits"),
        ({"start": "ab"}, "start must be 2 numbers"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"noise": -1}, "noise must be in"),
        ({"optimizers": ("fly",)}, "optimizers must be one of"),
    ],
)
def test_no_surface(changed, message):
    options = {"function": lambda x, y: x**2 + y**2, "start": (1, 1), "limits": (-2, 2, -2, 2)} | changed
    with pytest.raises((TypeError, ValueError), match=message):
        landscape.surface(**options)


# ---- The best rate ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_goes_down(optimizer):
    for surface, ground in SURFACES.items():
        run = best(optimizer, surface, steps=60)
        left, right, bottom, top = ground.limits
        assert run.points.shape == (61, 2)
        assert np.all(run.points >= (left, bottom))
        assert np.all(run.points <= (right, top))
        assert ground.excess(*run.points[-1]) < 0.5 * ground.excess(*ground.start)


def test_best_is_the_best():
    run = best("sgd", "ravine")
    losses = {lr: descend("sgd", "ravine", lr).losses for lr in RATES}
    assert losses[run.lr][-1] == min(loss[-1] for loss in losses.values())  # of a quadratic, falling steadily
    higher = RATES[RATES.index(run.lr) + 1]
    assert not losses[higher][-1] < losses[higher][0]


def test_a_late_leap_is_no_good():
    """A rate on the edge of stability, where the loss is lower for long, and then explodes for a moment."""
    ground = SURFACES["rosenbrock"]
    steady, leaping = best("look_ahead_nesterov", "rosenbrock"), descend("look_ahead_nesterov", "rosenbrock", 0.002)
    assert np.log(leaping.losses).mean() < np.log(steady.losses).mean()
    assert leaping.losses[100:].max() > 10 * steady.losses[100:].max()
    assert landscape._badness(steady, ground) < landscape._badness(leaping, ground)


def test_what_the_pictures_tell():
    crossed = {name: best(name, "two-minima").points[-1, 0] < 0 for name in SURFACES["two-minima"].optimizers}
    rolling = {"momentum", "look_ahead_nesterov", "adam"}
    assert {name for name, across in crossed.items() if across} == rolling
    sgd, momentum = (best(name, "ravine").losses[-1] for name in ("sgd", "momentum"))
    assert momentum < 0.1 * sgd
    after = {name: best(name, "saddle").losses[20] for name in ("sgd", "rmsprop")}
    assert after["sgd"] > SURFACES["saddle"].function(0, 0) - 0.01  # still there
    assert after["rmsprop"] < SURFACES["saddle"].function(*SURFACES["saddle"].minima[0]) + 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fly", "beale"), "optimizer must be one of 'sgd', .*; got 'fly'"),
        (("sgd", "moon"), "surface must be one of 'saddle', .*; got 'moon'"),
    ],
)
def test_wrong_names(arguments, message):
    for function in (best, lambda *names: descend(*names, lr=0.1)):
        with pytest.raises(ValueError, match=message):
            function(*arguments)


# ---- Pictures -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("surface", SURFACES)
def test_picture(surface, tmp_path):
    pytest.importorskip("matplotlib")
    runs = [best(name, surface, steps=10) for name in ("sgd", "adam")]
    draw(surface, runs, tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    for text in (
        SURFACES[surface].title,
        "10 steps, each optimizer",
        *(f"{run.optimizer}, {run.lr:g}" for run in runs),
    ):
        assert f"<!-- {text}" in drawn


@pytest.mark.slow
def test_every_optimizer_in_one_picture(tmp_path):
    pytest.importorskip("matplotlib")
    draw("ravine", [descend(name, "ravine", 1e-3, steps=3) for name in OPTIMIZERS], tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert all(f"<!-- {name}, 0.001 -->" in drawn for name in OPTIMIZERS)


@pytest.mark.slow
def test_film(tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    draw("beale", [best("adam", "beale", steps=12)], tmp_path / "a.gif")
    with image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 13
        pictures = []
        for frame in range(13):
            film.seek(frame)
            pictures.append(film.convert("RGB").tobytes())
        assert film.info["duration"] > 1000  # that of the last
    assert len(set(pictures)) == 13


def test_what_diverges_can_be_read(tmp_path, monkeypatch):
    """It leaves the plot, and the others keep their scale."""
    pytest.importorskip("matplotlib")
    pages = []
    monkeypatch.setattr(landscape, "figure", lambda size: pages.append(drawing.figure(size)) or pages[-1])
    wild, tame = descend("sgd", "rosenbrock", 10.0), best("adam", "rosenbrock", steps=300)
    for runs, summary in (([wild, tame], "adam ends lowest"), ([wild], "it diverges"), ([wild, wild], "all diverge")):
        draw("rosenbrock", runs, tmp_path / "a.png")
        page = pages.pop()
        assert page.get_suptitle().endswith(summary)
        assert page.legends[0].texts[0].get_text() == "sgd, 10: diverges"
        low, high = page.axes[1].get_ylim()
        assert 1e-8 <= low < 1 < high <= 1e6


def test_who_ends_lowest():
    sgd, same, slow = (
        descend(name, "ravine", lr, steps=1) for name, lr in (("sgd", 0.01), ("momentum", 0.01), ("sgd", 0))
    )
    for runs, who in (
        ([slow, same], "momentum ends lowest"),
        ([sgd, same], "sgd and momentum end lowest"),
        ([slow, sgd, same], "sgd, 0.01 and momentum, 0.01 end lowest"),
    ):
        assert landscape._summary(runs, [run.losses for run in runs]).endswith(f": {who}")


def test_no_line_is_hidden():
    """Of lines that lie on each other, each has another style; all others are drawn through."""
    ground = SURFACES["saddle"]
    runs = [descend("sgd", "saddle", 0.05), descend("momentum", "saddle", 0.05, momentum=0.0), best("adam", "saddle")]
    losses = [landscape._relative(run, ground) for run in runs]
    np.testing.assert_allclose(losses[0], losses[1])
    one, other, apart = landscape._styles(ground, runs, losses)
    assert one["linestyle"] == "-" == apart["linestyle"]
    (_, (on, off)), width = other["linestyle"], other["linewidth"]
    assert off * width >= 3  # points, through which the other is seen
    assert on > off
    assert width < one["linewidth"]
    assert other["zorder"] > one["zorder"]
    assert len({style["color"] for style in (one, other, apart)}) == 3


def test_axes_are_equal(monkeypatch):
    pytest.importorskip("matplotlib")
    page = landscape.picture("ravine", [descend("sgd", "ravine", 0.01, steps=3)])
    assert page.axes[0].get_aspect() == 1
    with pytest.raises(ValueError, match="runs must be at least one, all of the same number of steps"):
        landscape.picture("ravine", [])


def test_running_mean():
    loss = np.random.default_rng(0).random(50)
    wanted = [loss[max(0, i - 19) : i + 1].mean() for i in range(50)]
    np.testing.assert_allclose(landscape._running_mean(loss), wanted, rtol=1e-12)


# ---- The command --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "a.png"
    assert (
        main(["landscape", "--surface", "beale", "--optimizers", "sgd, Lion", "--steps", "9", "--out", str(out)]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["sgd", "lion", "wrote"]
    run = best("lion", "beale", steps=9)
    assert float(re.search(r"lr (\S+)", lines[1])[1]) == run.lr
    assert float(re.search(r"(\S+) above", lines[1])[1]) == pytest.approx(run.losses[-1], rel=0.05)
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_command_on_your_own_function(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "a.png"
    arguments = ["--function", "x**2 + 10*y**2", "--start=-2,1", "--limits=-3,3,-2,2", "--steps", "9"]
    chosen = ["--optimizers", "momentum:momentum=0.5,adam:beta1=0.8:lr=0.1,sgd", "--rates", "0.01,0.02"]
    assert main(["landscape", *arguments, *chosen, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    own = landscape.surface(landscape.expression("x**2 + 10*y**2"), start=(-2, 1), limits=(-3, 3, -2, 2))
    wanted = [
        *(descend("momentum", own, rate, steps=9, momentum=0.5) for rate in (0.01, 0.02)),
        descend("adam", own, 0.1, steps=9, beta1=0.8),
        *(descend("sgd", own, rate, steps=9) for rate in (0.01, 0.02)),
    ]
    assert len(lines) == 6
    for line, run in zip(lines, wanted, strict=False):
        assert line.split()[0].rstrip(",") == run.optimizer
        x, y = (float(each) for each in re.search(r"\((\S+), (\S+)\)", line).groups())
        np.testing.assert_allclose((x, y), run.points[-1], atol=6e-5)
    assert (
        main(
            ["landscape", "--surface", "ravine", "--start=-1,-1", "--rates", "0.01", "--steps", "3", "--out", str(out)]
        )
        == 0
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--function", "x**2 + z"], "--function needs --start"),
        (["--function", "x**2 + z", "--start=1,1"], "--function needs --limits"),
        (["--function", "x**2 + z", "--start=1,1", "--limits=-2,2,-2,2"], "function must be made of .*; got 'z'"),
        (["--start=1"], "start must be 2 numbers"),
        (["--optimizers", "sgd,adam:beta=3"], "Adam has no keyword 'beta'"),
        (["--optimizers", "adam:beta1=3"], r"beta1 must be in \[0, 1\), got 3"),
        (["--rates=-1"], "lr must be in"),
        (["--noise=-1"], "noise must be in"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--out", "a.txt"], "the ending of path must be one of .* got '.txt'"),
        (["--out", "picture.xyz"], "the ending of path must be one of .* got '.xyz'"),
        (["--out", "picture"], "the ending of path must be one of .* got ''"),
        (["--out", "nowhere/a.png"], "no such folder: 'nowhere'"),
        (["--out", "."], "path must name a file, got a folder"),
    ],
)
def test_wrong_values(arguments, message, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(landscape, "_badness", lambda *run: pytest.fail("computed before the refusal"))
    assert main(["landscape", "--out", "a.png", "--optimizers", "adam", "--steps", "5", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastopt: ")
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert not list(tmp_path.iterdir())


def test_wrong_words(capsys):
    with pytest.raises(SystemExit):
        main(["landscape", "--surface", "moon", "--out", "a.png"])
    assert "invalid choice: 'moon'" in capsys.readouterr().err
    for names, wrong in (("adam,fly", "fly"), ("adam,", "")):
        with pytest.raises(SystemExit) as caught:
            main(["landscape", "--optimizers", names, "--out", "a.png"])
        assert caught.value.code == 2
        assert re.search(
            f"error: argument --optimizers: optimizer must be one of .* got '{wrong}'\n$", capsys.readouterr().err
        )


def test_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("fastopt.cli.best", lambda *run: pytest.fail("computed before the refusal"))
    assert main(["landscape", "--steps", "5", "--out", str(tmp_path / "a.png")]) == 2
    assert "pip install 'fastopt[plot]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
