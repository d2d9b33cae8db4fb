"""PyTorch, eager, on one thread: its optimizers, and the operators beneath its layers.

The operators are called below autograd, and write to tensors that are given where they can. Images are in PyTorch's
fastest layout: channels-last for pooling, channels second for batch norm, unfold and fold.
"""

import torch
from torch.nn import functional as F  # noqa: N812

VERSION = torch.__version__
torch.set_num_threads(1)

LR = 1e-3
STEPS = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.99, "eps": 1e-8}),
    "adagrad": (torch.optim.Adagrad, {"eps": 1e-10}),
    "adam": (torch.optim.Adam, {"eps": 1e-8}),
    "adamw": (torch.optim.AdamW, {"eps": 1e-8, "weight_decay": 0.01}),
}
FORMS = {"PyTorch": {"foreach": False}, "PyTorch foreach": {"foreach": True}, "PyTorch fused": {"fused": True}}
aten = torch.ops.aten


def contenders(contest):
    """What PyTorch enters into a contest, by name: a function, and the array that it leaves its result in."""
    # In memory of PyTorch, which is aligned to cache lines.
    tensors = {name: torch.from_numpy(array).clone() for name, array in contest.arrays.items()}
    if "param" not in tensors:
        call, result = _layer(contest.name, **tensors)
        return {"PyTorch": (call, None if result is None else result.numpy())}
    if contest.name not in STEPS:
        return {}
    optimizer, hyper = STEPS[contest.name]
    contest.arrays["grad of PyTorch"] = tensors["grad"].numpy()
    entered = {}
    for name, form in FORMS.items():
        if "fused" in form and optimizer is torch.optim.RMSprop:
            continue  # has none
        param = tensors["param"].clone().requires_grad_()
        param.grad = tensors["grad"]
        step = optimizer([param], lr=LR, **hyper, **form).step
        if name == "PyTorch foreach" and contest.name == "nesterov":
            step = _refilled(step, param)
        entered[name] = step, param.detach().numpy()
    return entered


def _refilled(step, param):
    """A step that spoils the gradient, as Nesterov's does with foreach: it gets a copy, which it must be granted."""
    grad = param.grad
    param.grad = own = grad.clone()

    def call():
        own.copy_(grad)
        step()

    return call


def _layer(name, x=None, dy=None, y=None, mask=None, scale=None, shift=None, bias=None, labels=None, columns=None):
    """The operator, and the tensor that it leaves its result in, seen as fastopt lays it out."""
    out = None if x is None and dy is None else torch.empty_like(dy if x is None else x)
    match name:
        case "relu_forward":
            return lambda: torch.clamp_min(x, 0, out=out), out
        case "relu_backward":
            return lambda: aten.threshold_backward.grad_input(dy, y, 0, grad_input=out), out
        case "dropout":
            return lambda: F.dropout(x, 0.5), None
        case "dropout_backward":
            return lambda: aten.native_dropout_backward.default(dy, mask, 2.0), None
        case "bias_relu_forward":
            return lambda: torch.add(x, bias, out=out).clamp_min_(0), out
        case "bias_relu_backward":
            dbias = torch.empty(dy.shape[1])

            def call():
                torch.sum(aten.threshold_backward.grad_input(dy, y, 0, grad_input=out), 0, out=dbias)

            return call, out
        case "batch_norm_forward":
            mean, var = torch.zeros_like(scale), torch.ones_like(scale)
            outs = out, torch.empty_like(scale), torch.empty_like(scale)
            return lambda: torch.native_batch_norm(x, scale, shift, mean, var, True, 0.1, 1e-5, out=outs), out
        case "batch_norm_backward":
            _, mean, inv_std = torch.native_batch_norm(x, scale, None, None, None, True, 0.1, 1e-5)
            backward, all_three = aten.native_batch_norm_backward.default, [True, True, True]
            return lambda: backward(dy, x, scale, None, None, mean, inv_std, True, 1e-5, all_three), None
        case "softmax_cross_entropy":
            return _cross_entropy(x, labels, out), out
        case "max_pool_forward" | "max_pool_backward":
            return _max_pool(x, dy)
        case "im2col":
            n, h, w, c = x.shape
            x = x.permute(0, 3, 1, 2).contiguous()
            out = torch.empty(n, 9 * c, h * w)
            im2col = aten.im2col.out
            call = lambda: im2col(x, [3, 3], [1, 1], [1, 1], [1, 1], out=out)  # noqa: E731
            return call, out.view(n, c, 3, 3, h, w).permute(0, 4, 5, 2, 3, 1)
        case "col2im":
            n, h, w, _, _, c = columns.shape
            columns = columns.permute(0, 5, 3, 4, 1, 2).reshape(n, 9 * c, h * w)
            out = torch.empty(n, c, h, w)
            col2im = aten.col2im.out
            call = lambda: col2im(columns, [h, w], [3, 3], [1, 1], [1, 1], [1, 1], out=out)  # noqa: E731
            return call, out.permute(0, 2, 3, 1)
    raise ValueError(f"nothing is entered for {name}")


def _cross_entropy(x, labels, out):
    """Forward and backward of `F.cross_entropy`: the operators that it consists of."""
    log_softmax, d_log = torch.empty_like(x), torch.empty_like(x)
    loss, weight, one = torch.empty(()), torch.empty(()), torch.ones(())
    mean, ignored = 1, -100

    def call():
        aten._log_softmax.out(x, 1, False, out=log_softmax)
        aten.nll_loss_forward.output(log_softmax, labels, None, mean, ignored, output=loss, total_weight=weight)
        aten.nll_loss_backward.grad_input(
            one, log_softmax, labels, None, mean, ignored, weight, grad_input=d_log.zero_()
        )
        aten._log_softmax_backward_data.out(d_log, log_softmax, 1, x.dtype, out=out)

    return call


def _max_pool(x, dy):
    """Windows of 2 × 2: forward, or where there is a dy backward."""
    x = x.permute(0, 3, 1, 2)  # which is channels-last to PyTorch
    y, winner = aten.max_pool2d_with_indices.default(x, [2, 2])
    if dy is None:
        forward = aten.max_pool2d_with_indices.out
        return lambda: forward(x, [2, 2], out=y, indices=winner), y.permute(0, 2, 3, 1)
    dy, dx = dy.permute(0, 3, 1, 2), torch.empty_like(x)
    backward, two, zero, one = aten.max_pool2d_with_indices_backward.grad_input, [2, 2], [0, 0], [1, 1]
    return lambda: backward(dy, x, two, two, zero, one, False, winner, grad_input=dx), dx.permute(0, 2, 3, 1)
