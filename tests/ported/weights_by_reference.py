"""Layers with optimizers of their own, whose ``update(w, grad)`` returns new weights, in the style of ML-From-Scratch:
the backward pass of a layer takes the weights of its forward pass, after they were updated."""

import copy

import numpy as np

PORT = """
-import numpy as np
+import numpy as np
+import fastopt

-        self.W_opt, self.w0_opt = copy.copy(optimizer), copy.copy(optimizer)
+        self.opt = fastopt.Adam([self.W, self.w0], optimizer.learning_rate)

-        self.W, self.w0 = self.W_opt.update(self.W, grad_w), self.w0_opt.update(self.w0, grad_w0)
+        self.W, self.w0 = self.opt.updated([self.W, self.w0], [grad_w, grad_w0])
"""
REPLACED = ["copy"]


class Adam:
    def __init__(self, learning_rate=0.001, b1=0.9, b2=0.999):
        self.learning_rate, self.b1, self.b2, self.eps = learning_rate, b1, b2, 1e-8
        self.m = None
        self.t = 0

    def update(self, w, grad_wrt_w):
        if self.m is None:
            self.m, self.v = np.zeros(np.shape(grad_wrt_w)), np.zeros(np.shape(grad_wrt_w))
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * grad_wrt_w
        self.v = self.b2 * self.v + (1 - self.b2) * np.power(grad_wrt_w, 2)
        m_hat, v_hat = self.m / (1 - self.b1**self.t), self.v / (1 - self.b2**self.t)
        return w - self.learning_rate * m_hat / (np.sqrt(v_hat) + self.eps)


class Dense:
    def __init__(self, n_units, n_inputs):
        self.n_units, self.n_inputs = n_units, n_inputs

    def initialize(self, optimizer, rng):
        limit = 1 / np.sqrt(self.n_inputs)
        self.W = rng.uniform(-limit, limit, (self.n_inputs, self.n_units))
        self.w0 = np.zeros((1, self.n_units))
        self.W_opt, self.w0_opt = copy.copy(optimizer), copy.copy(optimizer)

    def forward_pass(self, X):
        self.layer_input = X
        return X.dot(self.W) + self.w0

    def backward_pass(self, accum_grad):
        W = self.W  # that of the forward pass, for the gradient below
        grad_w = self.layer_input.T.dot(accum_grad)
        grad_w0 = np.sum(accum_grad, axis=0, keepdims=True)
        self.W, self.w0 = self.W_opt.update(self.W, grad_w), self.w0_opt.update(self.w0, grad_w0)
        return accum_grad.dot(W.T)


class TanH:
    def initialize(self, optimizer, rng):
        pass

    def forward_pass(self, X):
        self.output = np.tanh(X)
        return self.output

    def backward_pass(self, accum_grad):
        return accum_grad * (1 - self.output**2)


class NeuralNetwork:
    def __init__(self, optimizer, rng):
        self.optimizer, self.rng, self.layers = optimizer, rng, []

    def add(self, layer):
        layer.initialize(self.optimizer, self.rng)
        self.layers.append(layer)

    def train_on_batch(self, X, y):
        output = X
        for layer in self.layers:
            output = layer.forward_pass(output)
        loss_grad = (output - y) / len(X)
        for layer in reversed(self.layers):
            loss_grad = layer.backward_pass(loss_grad)
        return np.mean(0.5 * (y - output) ** 2)


def train(n_epochs=15, batch_size=20):
    rng = np.random.default_rng(3)
    X = rng.standard_normal((160, 6))
    y = np.tanh(X @ rng.standard_normal((6, 2))) + 0.05 * rng.standard_normal((160, 2))
    clf = NeuralNetwork(Adam(learning_rate=0.01), rng)
    for layer in (Dense(16, 6), TanH(), Dense(12, 16), TanH(), Dense(2, 12)):
        clf.add(layer)
    losses = []
    for _ in range(n_epochs):
        for i in range(0, len(X), batch_size):
            losses.append(clf.train_on_batch(X[i : i + batch_size], y[i : i + batch_size]))
    return losses
