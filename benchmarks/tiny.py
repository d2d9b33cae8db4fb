"""Small networks on the digits: the time per step of a whole `fit`, shuffling and accuracy included.

It has as many epochs as these networks take to learn them; in a short one, what comes before it weighs more per step.

Rivals in their fastest form: JAX with each epoch as one jitted, donated `lax.scan` over batches that are permuted
outside of it, with one-hot labels, the best of unrolled and not, the loss alone; scikit-learn's `MLPClassifier.fit`;
PyTorch with fused Adam; RLtools, compiled for these very sizes, where hidden layers are of one width. For a single
sample, five lines of NumPy; PyTorch in inference mode; onnxruntime, on one thread, its input and output bound once.
"""

import itertools
import statistics
import time
import warnings

import numpy as np
from rltools_peer import trainer

import fastopt
from fastopt import data, nn

EPOCHS, FEW = 50, 10
#: Hidden layers, batch size, and what the project demands: how many times as long JAX, scikit-learn and PyTorch take.
NETWORKS = (
    ((32,), 32, (2.5, 25, 30)),
    ((100,), 32, (1.8, 13, 14)),
    ((100,), 200, (1.6, 6.5, 5.5)),
    ((64, 64), 16, (1.6, 16, 20)),
    ((256, 128), 64, (1.25, 5, 4.2)),
)


def samples(batch):
    x, y = data.digits()
    n = len(x) // batch * batch
    return x.reshape(len(x), -1)[:n].astype(np.float32), y[:n]


def ours(x, y, hidden, batch, epochs=EPOCHS):
    model = nn.Sequential([*(nn.Dense(units, activation="relu") for units in hidden), nn.Dense(10)], x.shape[1:])
    optimizer = fastopt.Adam(model.params)
    return lambda: model.fit(x, y, epochs=epochs, batch_size=batch, optimizer=optimizer)


def jax_scan(x, y, hidden, batch, unroll):
    import jax
    import jax.numpy as jnp

    widths, key, params = [x.shape[1], *hidden, 10], jax.random.PRNGKey(0), []
    for inputs, outputs in itertools.pairwise(widths):
        key, own = jax.random.split(key)
        params.append((jax.random.normal(own, (inputs, outputs)) * np.sqrt(2 / inputs), jnp.zeros(outputs)))
    images, labels = jnp.asarray(x), jax.nn.one_hot(jnp.asarray(y), 10)

    def loss(params, x, onehot):
        for weight, bias in params[:-1]:
            x = jax.nn.relu(x @ weight + bias)
        logits = x @ params[-1][0] + params[-1][1]
        return jnp.mean(jax.nn.logsumexp(logits, 1) - jnp.sum(logits * onehot, 1))

    def step(carry, batch):
        params, m, v, t = carry
        value, grads = jax.value_and_grad(loss)(params, *batch)
        t = t + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
        rate = 1e-3 * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        params = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + 1e-8), params, m, v)
        return (params, m, v, t), value

    def epoch(carry, order):
        batches = (images[order].reshape(-1, batch, x.shape[1]), labels[order].reshape(-1, batch, 10))
        carry, values = jax.lax.scan(step, carry, batches, unroll=unroll)
        return carry, values.mean()

    compiled, rng = jax.jit(epoch, donate_argnums=0), np.random.default_rng(0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    held = [(params, zeros, jax.tree.map(jnp.copy, zeros), jnp.float32(0))]

    def run():
        for _ in range(EPOCHS):
            held[0], _ = compiled(held[0], rng.permutation(len(x)))
        jax.block_until_ready(held[0])

    return run


def scikit_learn(x, y, hidden, batch):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    def run():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            MLPClassifier(hidden, batch_size=batch, max_iter=EPOCHS, alpha=0.0, n_iter_no_change=EPOCHS).fit(x, y)

    return run


def pytorch(x, y, hidden, batch):
    import torch

    widths, layers = [x.shape[1], *hidden, 10], []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    images, labels = torch.from_numpy(x), torch.from_numpy(y)

    def run():
        for _ in range(EPOCHS):
            order = torch.randperm(len(x))
            for begin in range(0, len(x), batch):
                chosen = order[begin : begin + batch]
                loss = torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

    return run


def rltools(x, y, hidden, batch):
    epoch, rng = trainer(x, y, hidden, batch), np.random.default_rng(0)
    return lambda: [epoch(rng.permutation(len(x))) for _ in range(EPOCHS)]


def contenders(hidden, batch):
    x, y = samples(batch)
    makers = {
        "fastopt": ours,
        "fastopt, few epochs": lambda *args: ours(*args, FEW),
        "JAX": lambda *args: jax_scan(*args, 1),
        "JAX, unrolled": lambda *args: jax_scan(*args, 4),
        "scikit-learn": scikit_learn,
        "PyTorch": pytorch,
        "RLtools": rltools,
    }
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make(x, y, hidden, batch)
            found[name]()
        except ImportError:
            continue
    return found, EPOCHS * (len(x) // batch)


def race(runs, rounds):
    """The median time of each, by turns."""
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}


def around(hidden, batch, per_step):
    """The share of a step that is not spent in kernels and the optimizer's step, each timed over many batches."""
    x, y = samples(batch)
    model = nn.Sequential([*(nn.Dense(units, activation="relu") for units in hidden), nn.Dense(10)], x.shape[1:])
    optimizer = fastopt.Adam(model.params)
    targets = nn.program.Targets(y, model.dtype, False)
    order, batches, inside = np.random.default_rng(0).permutation(len(x)), len(x) // batch, 0.0
    with model.program(batch, nn.softmax_cross_entropy, targets) as program:
        program.feed(x, y)
        options = {"plan": optimizer.upcoming(1).options["plan"], "grads": program.grads}
        program.calls.run(order, batch, batches, **options)
        others = ("gather", "copy", "stop unless finite", "stop unless zero")
        for i, (name, _, _) in enumerate(program.calls.list()):
            if name not in others:
                own = options if name == "step" else {}
                times = []
                for _ in range(15):
                    started = time.perf_counter()
                    program.calls.run(order, batch, batches, begin=i, end=i + 1, **own)
                    times.append(time.perf_counter() - started)
                inside += statistics.median(times) / batches
    return 1 - inside / per_step


def one_sample(rounds):
    """`predict` of one sample by an MLP 784-256-128-10."""
    model = nn.Sequential([nn.Dense(256, activation="relu"), nn.Dense(128, activation="relu"), nn.Dense(10)], (784,))
    x = np.random.default_rng(0).normal(size=(1, 784)).astype(np.float32)
    params = [model.params[f"{i}.{kind}"] for i in range(3) for kind in ("weight", "bias")]

    def numpy():
        h = np.maximum(x @ params[0] + params[1], 0)
        h = np.maximum(h @ params[2] + params[3], 0)
        return h @ params[4] + params[5]

    runs = {"fastopt": lambda: model.predict(x), "NumPy": numpy}
    try:
        import torch

        net = torch.nn.Sequential(
            torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 128), torch.nn.ReLU(),
            torch.nn.Linear(128, 10),
        )  # fmt: skip
        tensor = torch.from_numpy(x)

        def inference():
            with torch.inference_mode():
                return net(tensor)

        runs["PyTorch"] = inference
    except ImportError:
        pass
    try:
        runs["onnxruntime"] = onnxruntime_of_one(model, x)
        np.testing.assert_allclose(runs["onnxruntime"](), model.predict(x), rtol=1e-4, atol=1e-5)
    except ImportError:
        pass
    return race({name: lambda run=run: [run() for _ in range(200)] for name, run in runs.items()}, rounds), 200


def onnxruntime_of_one(model, x):
    """A function that runs the exported model for a sample; what it writes to is always the same."""
    import onnxruntime

    from fastopt.onnx import export

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(export(model).SerializeToString(), options, ["CPUExecutionProvider"])
    output = np.empty((1, 10), np.float32)
    bound, run = session.io_binding(), session.run_with_iobinding
    for bind, array, put in (
        (bound.bind_input, x, session.get_inputs()[0]),
        (bound.bind_output, output, session.get_outputs()[0]),
    ):
        bind(put.name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def once():
        run(bound)
        return output

    return once


def main(rounds, markdown=False):
    names = ("JAX", "scikit-learn", "PyTorch")
    demanded = [f"× {name} (demanded)" for name in names]
    rows = [["network, batch", "µs a step", f"of {FEW} epochs", "around kernels", *demanded, "× RLtools"]]
    for hidden, batch, wanted in NETWORKS:
        runs, steps = contenders(hidden, batch)
        times = race(runs, rounds)
        if "JAX" in times:
            times["JAX"] = min(times["JAX"], times.pop("JAX, unrolled"))
        per_step = times["fastopt"] / steps
        cells = [f"{'-'.join(map(str, (64, *hidden, 10)))}, {batch}", f"{per_step * 1e6:.1f}"]
        cells.append(f"{times['fastopt, few epochs'] / steps * EPOCHS / FEW * 1e6:.1f}")
        cells.append(f"{around(hidden, batch, per_step):.0%}")
        for name, least in zip(names, wanted, strict=True):
            cells.append(f"{times[name] / times['fastopt']:.2f} ({least})" if name in times else "–")
        cells.append(f"{times['RLtools'] / times['fastopt']:.2f}" if "RLtools" in times else "–")
        rows.append(cells)
        print("  ".join(cells), flush=True)
    times, count = one_sample(rounds)
    cells = ["predict of one, 784-256-128-10", f"{times['fastopt'] / count * 1e6:.1f}", "–", "–"]
    others = [f"{name} {times[name] / times['fastopt']:.2f}" for name in times if name != "fastopt"]
    rows.append([*cells, f"{', '.join(others)} (NumPy 1.3, PyTorch 3)", "", "", ""])
    if markdown:
        rows.insert(1, ["---", *["---:"] * (len(rows[0]) - 1)])
    print("\n".join(f"| {' | '.join(cells)} |" for cells in rows))
