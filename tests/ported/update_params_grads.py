"""A multi-layer perceptron whose optimizer is an object with ``update(params, grads)``, in the style of the programs of
"Deep Learning from Scratch": layers hold the arrays that the dict holds, and so the arrays are updated in place."""

from collections import OrderedDict

import numpy as np

PORT = """
-import numpy as np
+import numpy as np
+import fastopt

-    optimizer = Adam(lr=0.01)
+    optimizer = fastopt.Adam(network.params, lr=0.01, eps=1e-7, eps_mode="hat")

-        optimizer.update(network.params, grads)
+        optimizer.step(grads)
"""
REPLACED = ["Adam"]


class Affine:
    def __init__(self, W, b):
        self.W, self.b = W, b

    def forward(self, x):
        self.x = x
        return np.dot(x, self.W) + self.b

    def backward(self, dout):
        self.dW = np.dot(self.x.T, dout)
        self.db = np.sum(dout, axis=0)
        return np.dot(dout, self.W.T)


class Sigmoid:
    def forward(self, x):
        self.out = 1 / (1 + np.exp(-x))
        return self.out

    def backward(self, dout):
        return dout * (1.0 - self.out) * self.out


class SoftmaxWithLoss:
    def forward(self, x, t):
        x = x - np.max(x, axis=1, keepdims=True)
        self.y = np.exp(x) / np.sum(np.exp(x), axis=1, keepdims=True)
        self.t = t
        return -np.sum(t * np.log(self.y + 1e-7)) / len(x)

    def backward(self):
        return (self.y - self.t) / len(self.t)


class MultiLayerNet:
    def __init__(self, sizes, rng):
        self.params = {}
        self.layers = OrderedDict()
        self.depth = len(sizes) - 1
        for i in range(1, self.depth + 1):
            self.params[f"W{i}"] = rng.standard_normal((sizes[i - 1], sizes[i])) / np.sqrt(sizes[i - 1])
            self.params[f"b{i}"] = np.zeros(sizes[i])
            self.layers[f"Affine{i}"] = Affine(self.params[f"W{i}"], self.params[f"b{i}"])
            if i < self.depth:
                self.layers[f"Sigmoid{i}"] = Sigmoid()
        self.last_layer = SoftmaxWithLoss()

    def loss(self, x, t):
        for layer in self.layers.values():
            x = layer.forward(x)
        return self.last_layer.forward(x, t)

    def gradient(self, x, t):
        self.loss(x, t)
        dout = self.last_layer.backward()
        for layer in reversed(self.layers.values()):
            dout = layer.backward(dout)
        grads = {}
        for i in range(1, self.depth + 1):
            grads[f"W{i}"], grads[f"b{i}"] = self.layers[f"Affine{i}"].dW, self.layers[f"Affine{i}"].db
        return grads


class Adam:
    def __init__(self, lr=0.001, beta1=0.9, beta2=0.999):
        self.lr, self.beta1, self.beta2 = lr, beta1, beta2
        self.iter = 0
        self.m = None
        self.v = None

    def update(self, params, grads):
        if self.m is None:
            self.m = {key: np.zeros_like(val) for key, val in params.items()}
            self.v = {key: np.zeros_like(val) for key, val in params.items()}
        self.iter += 1
        lr_t = self.lr * np.sqrt(1.0 - self.beta2**self.iter) / (1.0 - self.beta1**self.iter)
        for key in params:
            self.m[key] += (1 - self.beta1) * (grads[key] - self.m[key])
            self.v[key] += (1 - self.beta2) * (grads[key] ** 2 - self.v[key])
            params[key] -= lr_t * self.m[key] / (np.sqrt(self.v[key]) + 1e-7)


def train(iters_num=120, batch_size=25):
    rng = np.random.default_rng(1)
    label = rng.integers(3, size=300)
    x_train = rng.standard_normal((300, 12)) + 1.5 * rng.standard_normal((3, 12))[label]
    t_train = np.eye(3)[label]
    network = MultiLayerNet([12, 20, 15, 3], rng)
    optimizer = Adam(lr=0.01)
    train_loss_list = []
    for _ in range(iters_num):
        batch_mask = rng.choice(len(x_train), batch_size)
        x_batch, t_batch = x_train[batch_mask], t_train[batch_mask]
        grads = network.gradient(x_batch, t_batch)
        optimizer.update(network.params, grads)
        train_loss_list.append(network.loss(x_batch, t_batch))
    return train_loss_list
