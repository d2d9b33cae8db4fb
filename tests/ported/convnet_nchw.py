"""A two-layer network on images (n, c, h, w), in the style of cs231n: convolution, ReLU, pooling, affine, softmax."""

import numpy as np

PORT = """
-import numpy as np
+import numpy as np
+from fastopt import functional as F

-    a1, cache1 = conv_forward(x, w1, b1, conv_param)
+    a1, cache1 = F.conv2d(x, w1, b1, 1, conv_param["pad"], layout="nchw"), x

-    grads["w1"], grads["b1"] = conv_backward(da1, cache1)
+    grads["w1"], grads["b1"] = F.conv2d_weight_grad(x, da1, 3, 1, 1, layout="nchw"), da1.sum(axis=(0, 2, 3))
"""
REPLACED = ["conv_forward", "conv_backward"]


def conv_forward(x, w, b, conv_param):
    """Stride 1, by loops over the pixels of the filters."""
    pad = conv_param["pad"]
    n, _, height, width = x.shape
    f, _, hh, ww = w.shape
    x_pad = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    h_out, w_out = height + 2 * pad - hh + 1, width + 2 * pad - ww + 1
    out = np.zeros((n, f, h_out, w_out)) + b[:, None, None]
    for i in range(hh):
        for j in range(ww):
            out += np.einsum("nchw,fc->nfhw", x_pad[:, :, i : i + h_out, j : j + w_out], w[:, :, i, j])
    return out, (x_pad, w)


def conv_backward(dout, cache):
    x_pad, w = cache
    dw = np.zeros_like(w)
    _, _, h_out, w_out = dout.shape
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            dw[:, :, i, j] = np.einsum("nfhw,nchw->fc", dout, x_pad[:, :, i : i + h_out, j : j + w_out])
    return dw, dout.sum(axis=(0, 2, 3))


def max_pool_forward(x):
    """Windows of 2 × 2."""
    n, c, height, width = x.shape
    windows = x.reshape(n, c, height // 2, 2, width // 2, 2)
    out = windows.max(axis=(3, 5))
    return out, (windows, out)


def max_pool_backward(dout, cache):
    windows, out = cache
    mask = windows == out[:, :, :, None, :, None]
    return (mask * dout[:, :, :, None, :, None] / mask.sum(axis=(3, 5), keepdims=True)).reshape(
        *dout.shape[:2], 2 * dout.shape[2], 2 * dout.shape[3]
    )


def softmax_loss(scores, y):
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    n = len(scores)
    dscores = np.exp(log_probs)
    dscores[np.arange(n), y] -= 1
    return -log_probs[np.arange(n), y].sum() / n, dscores / n


def loss_and_grads(params, x, y, reg, conv_param):
    w1, b1, w2, b2 = params["w1"], params["b1"], params["w2"], params["b2"]
    a1, cache1 = conv_forward(x, w1, b1, conv_param)
    r1 = np.maximum(a1, 0)
    p1, pool_cache = max_pool_forward(r1)
    scores = p1.reshape(len(x), -1) @ w2 + b2
    loss, dscores = softmax_loss(scores, y)
    loss += 0.5 * reg * (np.sum(w1 * w1) + np.sum(w2 * w2))

    grads = {"w2": p1.reshape(len(x), -1).T @ dscores + reg * w2, "b2": dscores.sum(axis=0)}
    dr1 = max_pool_backward((dscores @ w2.T).reshape(p1.shape), pool_cache)
    da1 = dr1 * (a1 > 0)
    grads["w1"], grads["b1"] = conv_backward(da1, cache1)
    grads["w1"] = grads["w1"] + reg * w1
    return loss, grads


def train(num_iters=40, batch_size=20, learning_rate=0.05, momentum=0.9, reg=1e-3):
    rng = np.random.default_rng(231)
    y_train = rng.integers(4, size=200)
    patterns = rng.standard_normal((4, 3, 8, 8))
    x_train = patterns[y_train] + 0.8 * rng.standard_normal((200, 3, 8, 8))
    params = {
        "w1": 0.1 * rng.standard_normal((6, 3, 3, 3)),
        "b1": np.zeros(6),
        "w2": 0.05 * rng.standard_normal((6 * 4 * 4, 4)),
        "b2": np.zeros(4),
    }
    conv_param = {"stride": 1, "pad": 1}
    velocity = {name: np.zeros_like(param) for name, param in params.items()}
    loss_history = []
    for _ in range(num_iters):
        batch = rng.choice(len(x_train), batch_size)
        loss, grads = loss_and_grads(params, x_train[batch], y_train[batch], reg, conv_param)
        loss_history.append(loss)
        for name in params:
            velocity[name] = momentum * velocity[name] - learning_rate * grads[name]
            params[name] += velocity[name]
    return loss_history
