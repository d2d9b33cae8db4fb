"""DeepSpeed: its Adam for the CPU, which it compiles when it is first asked for (some 40 seconds, once).

Where there is no compiler, or the compilation fails, it is absent.
"""

import contextlib
import io
import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")  # lest it tell on the way what it looks for

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from settings import THREADS

VERSION = deepspeed.__version__
torch.set_num_threads(THREADS)
STEPS = {"adam": {"adamw_mode": False}, "adamw": {"adamw_mode": True, "weight_decay": 0.01}}


def contenders(contest):
    """What DeepSpeed enters into a contest: a function, and where it leaves its result."""
    if contest.name not in STEPS:
        return {}
    params = [torch.from_numpy(param).clone().requires_grad_() for param in contest.params]
    for param, grad in zip(params, contest.grads, strict=True):
        param.grad = torch.from_numpy(grad)
    step = DeepSpeedCPUAdam(params, lr=1e-3, **STEPS[contest.name]).step
    return {"DeepSpeed": (step, [param.detach().numpy() for param in params])}


try:
    with contextlib.redirect_stdout(io.StringIO()):
        DeepSpeedCPUAdam([torch.zeros(1, requires_grad=True)])
except Exception as error:  # whatever a compiler may fail with
    raise RuntimeError(f"its Adam does not build ({type(error).__name__})") from error
