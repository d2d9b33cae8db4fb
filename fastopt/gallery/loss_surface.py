"""A network's loss surface in two random directions.

Two trained networks, of two and of ten hidden layers; around each (star), the loss along two random directions, whose
parts are as long as the weights of each unit (after H. Li et al., "Visualizing the loss landscape of neural nets",
2018). The line is the loss of guessing, log 10. Both have come to a minimum; that of the deep network is a narrow
hole, since a change of all layers multiplies.
"""

import numpy as np

from fastopt import data, nn
from fastopt.drawing import figure


def run(quick=False):
    x, y = data.digits()
    places, surfaces = np.linspace(-0.6, 0.6, 9 if quick else 31), {}
    for depth in (2, 10):
        layers = [nn.Dense(32, activation="relu") for _ in range(depth)]
        model, rng = nn.Sequential([nn.Flatten(), *layers, nn.Dense(10)], x.shape[1:]), np.random.default_rng(0)
        model.fit(x, y, epochs=5 if quick else 15)
        center = {name: param.copy() for name, param in model.params.items() if param.ndim > 1}
        a, b = ({name: rng.normal(size=param.shape) for name, param in center.items()} for _ in range(2))
        for way in (a, b):
            for name, w in way.items():
                w *= np.linalg.norm(center[name], axis=0) / np.linalg.norm(w, axis=0)
        surface = surfaces[f"{depth} hidden layers"] = np.zeros((len(places), len(places)))
        for i, j in np.ndindex(surface.shape):
            moved = {name: w + places[j] * a[name] + places[i] * b[name] for name, w in center.items()}
            model.params.update({name: w.astype(np.float32) for name, w in moved.items()})
            surface[i, j] = model.evaluate(x[::3], y[::3])["loss"]
    return places, surfaces


def draw(found):
    page = figure((9.5, 4.4))
    for axes, (name, z) in zip(page.subplots(1, 2), found[1].items()):
        drawn = axes.contourf(
            found[0], found[0], z, np.geomspace(0.01, 300, 18), norm="log", cmap="cividis", extend="both"
        )
        axes.contour(found[0], found[0], z, [np.log(10)], colors="white")
        axes.plot(0, 0, "*", color="white", markersize=14)
        axes.set(title=name, xlabel="first direction", ylabel="second direction", aspect="equal")
    page.colorbar(drawn, ax=page.axes, label="loss", ticks=[0.01, 0.1, 1, 10, 100], format="%g")
    return page


def claim(found):
    shallow, deep = (np.mean(z < np.log(10)) for z in found[1].values())
    assert deep < 0.5 * shallow
    assert all(z[len(z) // 2, len(z) // 2] < 2 * z.min() for z in found[1].values()), "a minimum in the middle"
