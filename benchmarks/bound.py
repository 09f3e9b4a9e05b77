"""The bound: W1, W2 and W3 written by hand in plain JAX, as fast as we know how. Nothing of jaxfl is used.

All are one jitted scan over rounds. W1 and W2 scan over the clients of a device and accumulate the mean, so nothing
is stacked; W2 writes its convolutions as nine shifted copies and a matmul. W3 keeps a stacked tree of layers, takes the
step under vmap and mixes a ring by its two borders. All spread nodes over all devices with shard_map.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "nodes"


def mesh():
    """All devices in a row."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def everywhere(tree):
    """Arrays on every device."""
    return jax.device_put(tree, NamedSharding(mesh(), P()))


def by_row(tree):
    """Arrays with their rows over the devices."""
    return jax.device_put(tree, NamedSharding(mesh(), P(AXIS)))


def init(key):
    """An MLP 784-64-10 as a dict of layers."""
    a, b = jax.random.split(key)
    return {
        "w1": jax.random.normal(a, (784, 64)) / 28,
        "b1": jnp.zeros(64),
        "w2": jax.random.normal(b, (64, 10)) / 8,
        "b2": jnp.zeros(10),
    }


def mlp(p, x):
    """Logits of a batch."""
    return jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]


def init_cnn(key):
    """Convolutions 3 x 3 x 16 and 3 x 3 x 32, each pooled, and a dense layer, on 28 x 28 pixels."""
    a, b, c = jax.random.split(key, 3)
    return {
        "k1": jax.random.normal(a, (9, 16)) / 3,
        "b1": jnp.zeros(16),
        "k2": jax.random.normal(b, (144, 32)) / 12,
        "b2": jnp.zeros(32),
        "w": jax.random.normal(c, (1568, 10)) / 40,
        "b": jnp.zeros(10),
    }


def _windows(x):
    """The 3 x 3 windows of `[b, h, w, c]`, `[b, h, w, 9 c]`."""
    h, w = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate([x[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], -1)


def _pool(x):
    """Largest of each 2 x 2 window, by comparisons, whose gradient is elementwise."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)
    larger = lambda a, b: jnp.where(a >= b, a, b)
    return larger(larger(x[:, :, 0, :, 0], x[:, :, 0, :, 1]), larger(x[:, :, 1, :, 0], x[:, :, 1, :, 1]))


def cnn(p, x):
    """Logits of a batch of flat images."""
    x = x.reshape(-1, 28, 28, 1)
    x = _pool(jax.nn.relu(_windows(x) @ p["k1"] + p["b1"]))
    x = _pool(jax.nn.relu(_windows(x) @ p["k2"] + p["b2"]))
    return x.reshape(x.shape[0], -1) @ p["w"] + p["b"]


def _sgd(p, x, y, lr, predict=mlp):
    """A step on the mean cross-entropy of a batch."""

    def loss(p):
        logits = predict(p, x)
        return (jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, y[:, None], 1)[:, 0]).mean()

    return jax.tree.map(lambda p, g: p - lr * g, p, jax.grad(loss)(p))


def _first(i, samples, y):
    """Where node `i`'s samples begin; shards overlap where there are more of them than data."""
    return i * samples % (y.shape[0] - samples + 1)


def fedavg(*, clients, samples, cohort, steps, batch, lr, rounds, predict=mlp, together=1):
    """W1, W2: `run(params, t, x, y) -> params` after `rounds` rounds of FedAvg with `cohort` of `clients` clients.

    A device scans over its clients, or over blocks of `together` of them, which an accelerator needs to be busy.
    """

    def client(p, key, i, x, y):
        index = _first(i, samples, y) + jax.random.randint(key, (steps, batch), 0, samples)
        return jax.lax.scan(lambda p, j: (_sgd(p, x[j], y[j], lr, predict), None), p, index)[0]

    def share(ids, keys, p, x, y):
        def add(total, one):
            if together == 1:
                new = client(p, one[1], one[0], x, y)
                return jax.tree.map(lambda s, a, b: s + (a - b) / cohort, total, new, p), None
            new = jax.vmap(client, (None, 0, 0, None, None))(p, one[1], one[0], x, y)
            return jax.tree.map(lambda s, a, b: s + (a - b).sum(0) / cohort, total, new, p), None

        blocks = (ids, keys)
        if together > 1:
            blocks = jax.tree.map(lambda a: a.reshape(-1, together), blocks)
        return jax.lax.psum(jax.lax.scan(add, jax.tree.map(jnp.zeros_like, p), blocks)[0], AXIS)

    spread = jax.shard_map(
        share, mesh=mesh(), in_specs=(P(AXIS), P(AXIS), P(), P(), P()), out_specs=P(), check_vma=False
    )

    def run(p, t, x, y):
        def one(p, t):
            key = jax.random.fold_in(jax.random.key(0), t)
            ids = jax.random.permutation(key, clients)[:cohort]
            keys = jax.vmap(partial(jax.random.fold_in, key))(ids)
            return jax.tree.map(jnp.add, p, spread(ids, keys, p, x, y)), None

        return jax.lax.scan(one, p, t + jnp.arange(rounds))[0]

    return jax.jit(run, donate_argnums=0)


def ring_gossip(*, nodes, samples, batch, lr, rounds):
    """W3: `run(stacked params, t, x, y)` after `rounds` rounds of one local step and ring mixing with weights 1/3."""
    devices = jax.device_count()
    ahead = [((r + 1) % devices, r) for r in range(devices)]
    behind = [(r, (r + 1) % devices) for r in range(devices)]

    def step(p, key, i, x, y):
        j = _first(i, samples, y) + jax.random.randint(key, (batch,), 0, samples)
        return _sgd(p, x[j], y[j], lr)

    def share(p, keys, ids, x, y):
        p = jax.vmap(step, (0, 0, 0, None, None))(p, keys, ids, x, y)

        def mix(a):
            left, right = jax.lax.ppermute(a[-1:], AXIS, behind), jax.lax.ppermute(a[:1], AXIS, ahead)
            wide = jnp.concatenate([left, a, right])
            return (wide[1:-1] + wide[:-2] + wide[2:]) / 3

        return jax.tree.map(mix, p)

    rows = P(AXIS)
    spread = jax.shard_map(share, mesh=mesh(), in_specs=(rows, rows, rows, P(), P()), out_specs=rows, check_vma=False)

    def run(p, t, x, y):
        def one(p, t):
            key, ids = jax.random.fold_in(jax.random.key(0), t), jnp.arange(nodes)
            keys = jax.vmap(partial(jax.random.fold_in, key))(ids)
            return spread(p, keys, ids, x, y), None

        return jax.lax.scan(one, p, t + jnp.arange(rounds))[0]

    return jax.jit(run, donate_argnums=0)
