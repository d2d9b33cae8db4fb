"""PyTorch: its optimizers, and the operators beneath its layers; some of both also as torch.compile has them.

The operators are called below autograd, and write to tensors that are given where they can. Pooling is channels-last,
unfold and fold have channels second; batch norm enters in both layouts.
"""

import itertools
import math
import shutil

import torch
from settings import COMPILED, THREADS
from torch.nn import functional as F  # noqa: N812

COMPILER = shutil.which("g++") or shutil.which("clang++")
VERSION = torch.__version__ + ("" if COMPILER else ", compiled absent: there is no C++ compiler")
torch.set_num_threads(THREADS)

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
#: The layers that are also compiled, which takes some seconds for each.
TO_COMPILE = (
    ("dropout", "1,048,576"), ("batch_norm_forward", "(4096, 1024)"), ("batch_norm_forward", "(64, 64, 28, 28)"),
)  # fmt: skip
aten = torch.ops.aten


def contenders(contest):
    """What PyTorch enters into a contest, by name: a function, and where it leaves its result."""
    if contest.params:
        return _steps(contest) if contest.name in STEPS else {}
    compile_too = COMPILED and COMPILER and (contest.name, contest.size) in TO_COMPILE
    # In memory of PyTorch, which is aligned to cache lines.
    tensors = {name: torch.from_numpy(array).clone() for name, array in contest.arrays.items()}
    if contest.name in ("batch_norm_forward", "batch_norm_backward"):
        return _batch_norm(contest, tensors, compile_too)
    made = _layer(contest.name, **tensors)
    if made is None:
        return {}
    call, result = made
    entered = {"PyTorch": (call, None if result is None else result.numpy())}
    if compile_too and contest.name == "dropout":
        entered["PyTorch compiled"] = torch.compile(call), None
    return entered


# ---- Optimizer steps ----------------------------------------------------------------------------------------


def _steps(contest):
    optimizer, hyper = STEPS[contest.name]
    theirs = [torch.from_numpy(grad) for grad in contest.grads]
    grads = [grad.clone() for grad in theirs]
    contest.refresh.append(lambda: torch._foreach_copy_(grads, theirs))
    entered = {}
    for name, form in FORMS.items():
        if "fused" in form and optimizer is torch.optim.RMSprop:
            continue  # has none
        params = [torch.from_numpy(param).clone().requires_grad_() for param in contest.params]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        step = optimizer(params, lr=LR, **hyper, **form).step
        if name == "PyTorch foreach" and contest.name == "nesterov":
            step = _refilled(step, params)
        entered[name] = step, [param.detach().numpy() for param in params]
    if COMPILED and COMPILER and contest.name == "adam":
        params = [torch.from_numpy(param).clone() for param in contest.params]
        entered["PyTorch compiled"] = _compiled_adam(params, grads), [param.numpy() for param in params]
    return entered


def _compiled_adam(params, grads):
    """The formula, not `Adam.step`: compiled, that computes the powers of beta anew for each element."""

    @torch.compile
    def adam(params, grads, ms, vs, size, eps):
        for p, g, m, v in zip(params, grads, ms, vs, strict=True):
            m.mul_(0.9).add_(g, alpha=0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            p.sub_(size * m / (v.sqrt() + eps))

    arrays = params, grads, *([torch.zeros_like(param) for param in params] for _ in "mv")
    size, eps, number = torch.empty(()), torch.empty(()), itertools.count(1)

    def step():
        t = next(number)
        root = math.sqrt(1 - 0.999**t)
        adam(*arrays, size.fill_(LR * root / (1 - 0.9**t)), eps.fill_(1e-8 * root))

    return step


def _refilled(step, params):
    """A step that spoils the gradients, as Nesterov's does with foreach: it gets copies, which it must be granted."""
    grads, own = [param.grad for param in params], [param.grad.clone() for param in params]
    for param, copy in zip(params, own, strict=True):
        param.grad = copy

    def call():
        torch._foreach_copy_(own, grads)
        step()

    return call


# ---- Layers -------------------------------------------------------------------------------------------------


def _batch_norm(contest, tensors, compile_too):
    """In the contest's layout; images also in the other, where the same numbers lie in another order."""
    x = tensors["x"]
    entered = {}
    for name, axis in ("PyTorch", contest.axis), ("PyTorch, other layout", -contest.axis):
        if x.ndim == 2 and axis != contest.axis:
            continue
        layout = torch.channels_last if axis == -1 else torch.contiguous_format
        inputs = {
            key: tensor if tensor.ndim == 1 else tensor.movedim(contest.axis, 1).contiguous(memory_format=layout)
            for key, tensor in tensors.items()
        }
        call, out = (_norm_backward if "dy" in inputs else _norm_forward)(**inputs)
        entered[name] = call, out.movedim(1, contest.axis).numpy()
        if compile_too and axis == contest.axis:
            entered["PyTorch compiled"] = _compiled_norm(**inputs), None
    return entered


def _norm_forward(x, scale, shift):
    mean, var, out = torch.zeros_like(scale), torch.ones_like(scale), torch.empty_like(x)
    outs = out, torch.empty_like(scale), torch.empty_like(scale)
    return lambda: torch.native_batch_norm(x, scale, shift, mean, var, True, 0.1, 1e-5, out=outs), out


def _norm_backward(x, scale, dy):
    _, mean, inv_std = torch.native_batch_norm(x, scale, None, None, None, True, 0.1, 1e-5)
    outs = torch.empty_like(x), torch.empty_like(scale), torch.empty_like(scale)
    backward, all_three = aten.native_batch_norm_backward.out, [True, True, True]
    out0, out1, out2 = outs
    return lambda: backward(
        dy, x, scale, None, None, mean, inv_std, True, 1e-5, all_three, out0=out0, out1=out1, out2=out2
    ), out0  # fmt: skip


def _compiled_norm(x, scale, shift):
    mean, var = torch.zeros_like(scale), torch.ones_like(scale)
    norm = torch.compile(lambda: F.batch_norm(x, mean, var, scale, shift, training=True))
    return norm


def _layer(name, x=None, dy=None, y=None, mask=None, bias=None, labels=None, columns=None, scale=None, shift=None):
    """The operator, and the tensor that it leaves its result in, seen as fastopt lays it out; None for a layer that has
    no entry."""
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
        case "bias_relu_dropout_forward":
            return lambda: F.dropout(torch.add(x, bias, out=out).clamp_min_(0), 0.5), None
        case "bias_relu_backward":
            dbias = torch.empty(dy.shape[1])

            def call():
                torch.sum(aten.threshold_backward.grad_input(dy, y, 0, grad_input=out), 0, out=dbias)

            return call, out
        case "activation_forward":
            return lambda: aten.gelu.out(x, approximate="tanh", out=out), out
        case "activation_backward":
            return lambda: aten.gelu_backward.grad_input(dy, x, approximate="tanh", grad_input=out), out
        case "group_norm_forward" if x.ndim == 2:
            return lambda: aten.native_layer_norm.default(x, x.shape[1:], scale, shift, 1e-5)[0], None
        case "softmax_forward":
            return lambda: aten._softmax.out(x, 1, False, out=out), out
        case "softmax_backward":
            return lambda: aten._softmax_backward_data.out(dy, y, 1, torch.float32, grad_input=out), out
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
    return None


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
