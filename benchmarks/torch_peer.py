"""PyTorch: its optimizers, and the operators beneath its layers; some of both also as torch.compile has them.

The operators are called below autograd, and write to tensors that are given where they can. Pooling is channels-last,
unfold and fold have channels second; batch norm enters in both layouts.
"""

import functools
import itertools
import math
import shutil

import torch
from settings import COMPILED, THREADS
from torch.nn import functional as F  # noqa: N812

from fastopt import inplace

COMPILER = shutil.which("g++") or shutil.which("clang++")
VERSION = torch.__version__ + ("" if COMPILER else ", compiled absent: there is no C++ compiler")
torch.set_num_threads(THREADS)

LR = 1e-3
ADAM = {"eps": 1e-8}
STEPS = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.99, "eps": 1e-8}),
    "rmsprop_momentum": (torch.optim.RMSprop, {"alpha": 0.99, "eps": 1e-8, "momentum": 0.9}),
    "centered_rmsprop": (torch.optim.RMSprop, {"alpha": 0.99, "eps": 1e-8, "momentum": 0.9, "centered": True}),
    "adagrad": (torch.optim.Adagrad, {"eps": 1e-10}),
    "adadelta": (torch.optim.Adadelta, {"lr": 1.0, "rho": 0.9, "eps": 1e-6}),
    "rprop": (torch.optim.Rprop, {"etas": (0.5, 1.2), "step_sizes": (1e-6, 50)}),
    "adam": (torch.optim.Adam, ADAM),
    "clipped_adam": (torch.optim.Adam, ADAM),
    "adamw": (torch.optim.AdamW, ADAM | {"weight_decay": 0.01}),
    "amsgrad": (torch.optim.Adam, ADAM | {"amsgrad": True}),
    "adamax": (torch.optim.Adamax, ADAM),
    "nadam": (torch.optim.NAdam, ADAM | {"momentum_decay": 4e-3}),
    "radam": (torch.optim.RAdam, ADAM),
}
FUSED = (torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adam, torch.optim.AdamW)
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
    refill = functools.partial(torch._foreach_copy_, grads, theirs)
    contest.refresh.append(refill)
    entered = {}
    for name, form in FORMS.items():
        if "fused" in form and optimizer not in FUSED:
            continue
        params = [torch.from_numpy(param).clone().requires_grad_() for param in contest.params]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        step = optimizer(params, **{"lr": LR, **hyper, **form}).step
        if name == "PyTorch foreach" and contest.name == "nesterov":
            step = _refilled(step, params)
        if contest.name == "clipped_adam":
            step = _clipped(step, params)
            contest.before[name] = refill  # since it is the gradient itself that is scaled down
        entered[name] = step, [param.detach().numpy() for param in params]
    if COMPILED and COMPILER and contest.name in FORMULAS:
        params = [torch.from_numpy(param).clone() for param in contest.params]
        entered["PyTorch compiled"] = _compiled(contest, params, grads), [param.numpy() for param in params]
    return entered


def _clipped(step, params):
    def call():
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        step()

    return call


def rmsprop(p, g, s):
    s.mul_(0.99).addcmul_(g, g, value=0.01)
    p.sub_(LR * g / (s.sqrt() + 1e-8))


def adadelta(p, g, s, d):
    s.mul_(0.9).addcmul_(g, g, value=0.1)
    step = (d + 1e-6).sqrt() / (s + 1e-6).sqrt() * g
    p.sub_(step)
    d.mul_(0.9).addcmul_(step, step, value=0.1)


def adam(p, g, m, v, size, eps):
    m.mul_(0.9).add_(g, alpha=0.1)
    v.mul_(0.999).addcmul_(g, g, value=0.001)
    p.sub_(size * m / (v.sqrt() + eps))


def amsgrad(p, g, m, v, largest, size, eps):
    m.mul_(0.9).add_(g, alpha=0.1)
    v.mul_(0.999).addcmul_(g, g, value=0.001)
    largest.copy_(torch.maximum(largest, v))
    p.sub_(size * m / (largest.sqrt() + eps))


def adamax(p, g, m, u, size):
    m.mul_(0.9).add_(g, alpha=0.1)
    u.copy_(torch.maximum(0.999 * u, g.abs()))
    p.sub_(size * m / (u + 1e-8))


def nadam(p, g, m, v, of_m, of_g, eps):
    m.mul_(0.9).add_(g, alpha=0.1)
    v.mul_(0.999).addcmul_(g, g, value=0.001)
    p.sub_((of_m * m + of_g * g) / (v.sqrt() + eps))


def radam(p, g, m, v, size, eps=None):
    m.mul_(0.9).add_(g, alpha=0.1)
    v.mul_(0.999).addcmul_(g, g, value=0.001)
    p.sub_(size * m if eps is None else size * m / (v.sqrt() + eps))


def _adams(t):
    root = math.sqrt(1 - 0.999**t)
    return LR * root / (1 - 0.9**t), 1e-8 * root


def _nadams(t):
    root, before, now, after = math.sqrt(1 - 0.999**t), *(inplace.mu_product(i) for i in (t - 1, t, t + 1))
    return LR * root * after / now / (1 - after), LR * root * (1 - now / before) / (1 - now), 1e-8 * root


def _radams(t):
    limit = 2 / (1 - 0.999) - 1
    rho = limit - 2 * t * 0.999**t / (1 - 0.999**t)
    if rho <= inplace.RADAM_THRESHOLD:
        return (LR / (1 - 0.9**t),)
    size, eps = _adams(t)
    return size * math.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)), eps


#: What is compiled, and what it is given in step t beside arrays.
FORMULAS = {
    "rmsprop": (rmsprop, lambda t: ()), "adadelta": (adadelta, lambda t: ()),
    "adam": (adam, _adams), "amsgrad": (amsgrad, _adams), "adamax": (adamax, lambda t: (LR / (1 - 0.9**t),)),
    "nadam": (nadam, _nadams), "radam": (radam, _radams),
}  # fmt: skip


def _compiled(contest, params, grads):
    """The formula, not the optimizer's `step`: that of Adam, compiled, computes the powers of beta for each element."""
    formula, scalars = FORMULAS[contest.name]
    torch.compiler.reset()  # else the second size would be compiled for any

    @functools.partial(torch.compile, dynamic=False)
    def compiled(params, grads, states, given):
        for p, g, *held in zip(params, grads, *states, strict=True):
            formula(p, g, *held, *given)

    states = [list(map(torch.from_numpy, arrays)) for arrays in zip(*contest.states(), strict=True)]
    given, number = [torch.empty(()) for _ in range(3)], itertools.count(1)

    def step():
        compiled(params, grads, states, [held.fill_(x) for held, x in zip(given, scalars(next(number)), strict=False)])

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


def _layer(
    name, x=None, dy=None, y=None, mask=None, bias=None, labels=None, columns=None, scale=None, shift=None, weight=None,
    **_of_layers_without_an_entry
):  # fmt: skip
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
        case "batch_norm_max_pool_forward":
            x = x.permute(0, 3, 1, 2)
            normal = lambda: F.batch_norm(x, None, None, scale, shift, training=True)  # noqa: E731
            return lambda: F.max_pool2d(normal().relu_(), 2).permute(0, 2, 3, 1), None
        case "conv2d":
            x, weight = x.permute(0, 3, 1, 2), _channels_last(weight.permute(3, 2, 0, 1))
            return lambda: F.conv2d(x, weight, padding=1).permute(0, 2, 3, 1), None
        case "conv2d_weight_grad":
            x, dy = x.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2)
            shape = dy.shape[1], x.shape[1], 3, 3
            return lambda: torch.nn.grad.conv2d_weight(x, shape, dy, padding=1).permute(2, 3, 1, 0), None
        case "dense_forward":
            out = torch.empty(x.shape[0], weight.shape[1])
            return lambda: torch.addmm(bias, x, weight, out=out).clamp_min_(0), out
        case "dense_input_grad":
            out = torch.empty(dy.shape[0], weight.shape[0])
            return lambda: torch.mm(dy, weight.t(), out=out), out
        case "dense_weight_grad":
            out = torch.empty(x.shape[1], dy.shape[1])
            return lambda: torch.mm(x.t(), dy, out=out), out
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


def _channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


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
