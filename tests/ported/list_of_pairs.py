"""A network whose parameters are a list of (W, b), with gradients by autograd, in the style of its examples."""

from itertools import pairwise

import autograd.numpy as np
import autograd.numpy.random as npr
from autograd import grad
from autograd.scipy.special import logsumexp

PORT = """
-import autograd.numpy as np
+import autograd.numpy as np
+import fastopt

-    state = [tuple((np.zeros(p.shape), np.zeros(p.shape)) for p in pair) for pair in params]
+    optimizer = fastopt.Adam(params, step_size)

-        params, state = adam(params, gradient, state, i, step_size)
+        optimizer.step(gradient)
"""
REPLACED = ["adam"]


def init_random_params(scale, layer_sizes, rs):
    """A list of (weights, biases) tuples, one for each layer."""
    return [(scale * rs.randn(m, n), scale * rs.randn(n)) for m, n in pairwise(layer_sizes)]


def neural_net_predict(params, inputs):
    """Logits, normalised."""
    for W, b in params:
        outputs = np.dot(inputs, W) + b
        inputs = np.tanh(outputs)
    return outputs - logsumexp(outputs, axis=1, keepdims=True)


def log_posterior(params, inputs, targets, L2_reg):
    squares = sum(np.sum(W**2) + np.sum(b**2) for W, b in params)
    return np.sum(neural_net_predict(params, inputs) * targets) - L2_reg * squares


def adam(params, gradient, state, i, step_size, b1=0.9, b2=0.999, eps=10**-8):
    new_params, new_state = [], []
    for pair, gradients, states in zip(params, gradient, state, strict=True):
        moved, kept = [], []
        for x, g, (m, v) in zip(pair, gradients, states, strict=True):
            m = (1 - b1) * g + b1 * m
            v = (1 - b2) * (g**2) + b2 * v
            mhat = m / (1 - b1 ** (i + 1))
            vhat = v / (1 - b2 ** (i + 1))
            moved.append(x - step_size * mhat / (np.sqrt(vhat) + eps))
            kept.append((m, v))
        new_params.append(tuple(moved))
        new_state.append(tuple(kept))
    return new_params, new_state


def train(num_epochs=8, batch_size=32, step_size=0.01, L2_reg=0.1):
    rs = npr.RandomState(0)
    labels = rs.randint(5, size=192)
    images = rs.randn(192, 16) + 1.2 * rs.randn(5, 16)[labels]
    targets = np.eye(5)[labels]
    params = init_random_params(0.2, [16, 24, 12, 5], rs)
    num_batches = len(images) // batch_size

    def objective(params, i):
        rows = slice(i % num_batches * batch_size, (i % num_batches + 1) * batch_size)
        return -log_posterior(params, images[rows], targets[rows], L2_reg) / batch_size

    objective_grad = grad(objective)
    state = [tuple((np.zeros(p.shape), np.zeros(p.shape)) for p in pair) for pair in params]
    losses = []
    for i in range(num_epochs * num_batches):
        gradient = objective_grad(params, i)
        params, state = adam(params, gradient, state, i, step_size)
        losses.append(float(objective(params, i)))
    return losses
