"""JAX and Optax: every contender one jitted function on arrays of JAX, waited for until it is done.

Steps give up their old parameters and state (donated buffers), so XLA updates them in place. Dispatch is synchronous:
waiting for another thread costs more than it gains.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

VERSION = f"{jax.__version__}, Optax {optax.__version__}"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_cpu_enable_async_dispatch", False)

LR = 1e-3
STEPS = {
    "sgd": optax.sgd(LR),
    "momentum": optax.sgd(LR, momentum=0.9),
    "nesterov": optax.sgd(LR, momentum=0.9, nesterov=True),
    "rmsprop": optax.rmsprop(LR, decay=0.99, eps=1e-8, eps_in_sqrt=False),
    # Within the root, where Optax has it, this is the 1e-10 of the others.
    "rmsprop_momentum": optax.rmsprop(LR, decay=0.99, eps=1e-8, eps_in_sqrt=False, momentum=0.9),
    "centered_rmsprop": optax.rmsprop(LR, decay=0.99, eps=1e-8, eps_in_sqrt=False, centered=True, momentum=0.9),
    "adagrad": optax.adagrad(LR, initial_accumulator_value=0.0, eps=1e-20),
    "adadelta": optax.adadelta(1.0),
    "adam": optax.adam(LR),
    "clipped_adam": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LR)),
    "adamw": optax.adamw(LR, weight_decay=0.01),
    "adamax": optax.adamax(LR),
    "radam": optax.radam(LR),
    "yogi": optax.yogi(LR),
    "adabelief": optax.adabelief(LR),
    "lion": optax.lion(LR, weight_decay=0.0),
    "lamb": optax.lamb(LR),
    "schedule_free_sgd": optax.contrib.schedule_free_sgd(LR),
    "schedule_free_adamw": optax.contrib.schedule_free_adamw(LR),
}


def contenders(contest):
    """What JAX enters into a contest: a function that returns its result."""
    if contest.name in STEPS:
        return {"JAX": (_step(contest), None)}
    if contest.name not in LAYERS:
        return {}
    make = LAYERS[contest.name]
    arrays = {name: jnp.array(array) for name, array in contest.arrays.items()}
    return {"JAX": (make(contest.axis, **arrays), None)}


def _waiting(function, *arguments):
    return lambda: jax.block_until_ready(function(*arguments))


# ---- Optimizer steps ----------------------------------------------------------------------------------------


def _step(contest):
    transform = STEPS[contest.name]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def updated(params, state, grads):
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = [jnp.array(param) for param in contest.params]
    state = transform.init(params)
    grads = []

    def refresh():
        grads[:] = [jnp.array(grad) for grad in contest.grads]

    def step():
        nonlocal params, state
        params, state = jax.block_until_ready(updated(params, state, grads))
        return params

    refresh()
    contest.refresh.append(refresh)
    return step


# ---- Layers -------------------------------------------------------------------------------------------------


def dropout(axis, x):
    """By threefry, which on a CPU is the fastest of JAX's generators."""
    key = jax.random.key(0)

    @jax.jit
    def function(x, counter):
        mask = jax.random.bernoulli(jax.random.fold_in(key, counter), 0.5, x.shape)
        return jnp.where(mask, 2 * x, 0), mask

    counter = np.uint32(0)

    def call():
        nonlocal counter
        counter += np.uint32(1)
        return jax.block_until_ready(function(x, counter))

    return call


def dropout_backward(axis, dy, mask):
    return _waiting(jax.jit(lambda dy, mask: jnp.where(mask, 2 * dy, 0)), dy, mask)


def _sums(x, axis):
    """The axes to sum over, and the shape in which a channel's value meets x."""
    axis %= x.ndim
    return tuple(i for i in range(x.ndim) if i != axis), [-1 if i == axis else 1 for i in range(x.ndim)]


def _norm(x, scale, shift, axis):
    over, wide = _sums(x, axis)
    mean, var = x.mean(over), x.var(over)
    factor = scale * jax.lax.rsqrt(var + 1e-5)
    return factor.reshape(wide) * (x - mean.reshape(wide)) + shift.reshape(wide), mean, var


def batch_norm_forward(axis, x, scale, shift):
    count = x.size / scale.size

    @functools.partial(jax.jit, donate_argnums=(3, 4))
    def function(x, scale, shift, running_mean, running_var):
        y, mean, var = _norm(x, scale, shift, axis)
        running_var = 0.9 * running_var + 0.1 * var * (count / (count - 1))
        return y, 0.9 * running_mean + 0.1 * mean, running_var

    running = jnp.zeros_like(scale), jnp.ones_like(scale)

    def call():
        nonlocal running
        y, *running = jax.block_until_ready(function(x, scale, shift, *running))
        return y

    return call


def batch_norm_backward(axis, dy, x, scale):
    over, wide = _sums(x, axis)
    mean = x.mean(over)
    inv_std = jax.lax.rsqrt(x.var(over) + 1e-5)

    @jax.jit
    def function(dy, x, scale, mean, inv_std):
        x_hat = (x - mean.reshape(wide)) * inv_std.reshape(wide)
        dscale, dshift = (dy * x_hat).sum(over), dy.sum(over)
        count = x.size / scale.size
        inner = dy - (dshift / count).reshape(wide) - x_hat * (dscale / count).reshape(wide)
        return (scale * inv_std).reshape(wide) * inner, dscale, dshift

    return _waiting(function, dy, x, scale, mean, inv_std)


def softmax_cross_entropy(axis, x, labels):
    def loss(x, labels):
        return optax.softmax_cross_entropy_with_integer_labels(x, labels).mean()

    function = jax.jit(lambda x, labels: jax.value_and_grad(loss)(x, labels)[::-1])
    return _waiting(function, x, labels)


LAYERS = {
    make.__name__: make
    for make in (dropout, dropout_backward, batch_norm_forward, batch_norm_backward, softmax_cross_entropy)
}
