"""Functions on dicts ``parameters["W1"]`` and ``grads["dW1"]``, in the style of Coursera's exercises: samples are
columns, biases (n, 1), and among the gradients are those of activations."""

import math

import numpy as np

PORT = """
-import numpy as np
+import numpy as np
+import fastopt

-    v, s = initialize_adam(parameters)
+    adam = fastopt.Adam(parameters, learning_rate)

-            parameters, v, s = update_parameters_with_adam(parameters, grads, v, s, t, learning_rate)
+            adam.step({name[1:]: grad for name, grad in grads.items()}, strict=False)
"""
REPLACED = ["initialize_adam", "update_parameters_with_adam"]


def initialize_parameters(layer_dims, rng):
    parameters = {}
    for layer in range(1, len(layer_dims)):
        fan_out, fan_in = layer_dims[layer], layer_dims[layer - 1]
        parameters["W" + str(layer)] = rng.standard_normal((fan_out, fan_in)) * np.sqrt(2 / fan_in)
        parameters["b" + str(layer)] = np.zeros((fan_out, 1))
    return parameters


def forward_propagation(X, parameters):
    Z1 = np.dot(parameters["W1"], X) + parameters["b1"]
    A1 = np.maximum(0, Z1)
    Z2 = np.dot(parameters["W2"], A1) + parameters["b2"]
    A2 = np.maximum(0, Z2)
    Z3 = np.dot(parameters["W3"], A2) + parameters["b3"]
    A3 = 1 / (1 + np.exp(-Z3))
    return A3, (Z1, A1, Z2, A2, Z3, A3)


def compute_cost(A3, Y):
    logprobs = np.multiply(-np.log(A3), Y) + np.multiply(-np.log(1 - A3), 1 - Y)
    return float(np.sum(logprobs)) / Y.shape[1]


def backward_propagation(X, Y, cache, parameters):
    m = X.shape[1]
    _, A1, _, A2, _, A3 = cache
    dZ3 = 1.0 / m * (A3 - Y)
    dW3, db3 = np.dot(dZ3, A2.T), np.sum(dZ3, axis=1, keepdims=True)
    dA2 = np.dot(parameters["W3"].T, dZ3)
    dZ2 = np.multiply(dA2, A2 > 0)
    dW2, db2 = np.dot(dZ2, A1.T), np.sum(dZ2, axis=1, keepdims=True)
    dA1 = np.dot(parameters["W2"].T, dZ2)
    dZ1 = np.multiply(dA1, A1 > 0)
    dW1, db1 = np.dot(dZ1, X.T), np.sum(dZ1, axis=1, keepdims=True)
    return {
        "dZ3": dZ3, "dW3": dW3, "db3": db3, "dA2": dA2, "dZ2": dZ2, "dW2": dW2, "db2": db2, "dA1": dA1, "dZ1": dZ1,
        "dW1": dW1, "db1": db1,
    }  # fmt: skip


def initialize_adam(parameters):
    v = {"d" + name: np.zeros(param.shape) for name, param in parameters.items()}
    s = {"d" + name: np.zeros(param.shape) for name, param in parameters.items()}
    return v, s


def update_parameters_with_adam(parameters, grads, v, s, t, learning_rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
    for name in parameters:
        d = "d" + name
        v[d] = beta1 * v[d] + (1 - beta1) * grads[d]
        v_corrected = v[d] / (1 - beta1**t)
        s[d] = beta2 * s[d] + (1 - beta2) * np.power(grads[d], 2)
        s_corrected = s[d] / (1 - beta2**t)
        parameters[name] = parameters[name] - learning_rate * v_corrected / (np.sqrt(s_corrected) + epsilon)
    return parameters, v, s


def random_mini_batches(X, Y, mini_batch_size, rng):
    order = rng.permutation(X.shape[1])
    for k in range(math.ceil(X.shape[1] / mini_batch_size)):
        chosen = order[k * mini_batch_size : (k + 1) * mini_batch_size]
        yield X[:, chosen], Y[:, chosen]


def train(num_epochs=12, mini_batch_size=32, learning_rate=0.01):
    rng = np.random.default_rng(10)
    radius, angle = rng.uniform(0, 2, 200), rng.uniform(0, 2 * np.pi, 200)
    X = radius * np.array([np.cos(angle), np.sin(angle)])
    Y = (radius < 1.2).astype(np.float64).reshape(1, -1)
    parameters = initialize_parameters([2, 10, 5, 1], rng)
    v, s = initialize_adam(parameters)
    costs = []
    t = 0
    for _ in range(num_epochs):
        for minibatch_X, minibatch_Y in random_mini_batches(X, Y, mini_batch_size, rng):
            A3, cache = forward_propagation(minibatch_X, parameters)
            costs.append(compute_cost(A3, minibatch_Y))
            grads = backward_propagation(minibatch_X, minibatch_Y, cache, parameters)
            t = t + 1
            parameters, v, s = update_parameters_with_adam(parameters, grads, v, s, t, learning_rate)
    return costs
