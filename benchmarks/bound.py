"""The bound: W1, W2 and W3 written by hand in plain JAX, as fast as we know how. Nothing of jaxfl is used.

All are one jitted scan over rounds. W1 and W2 scan over the clients of a device and accumulate the mean, so nothing
is stacked. W3 keeps a stacked tree of layers, takes the step under vmap and mixes a ring by its two borders. All spread
nodes over all devices with shard_map; where they do not divide, a device has a client of weight 0 or a spare row. W2's
network is in `bound_cnn.py`, W5 in `bound_graph.py`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
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


def init(key, sizes=(784, 64, 10)):
    """An MLP as a dict of layers."""
    a, b = jax.random.split(key)
    inputs, hidden, outputs = sizes
    return {
        "w1": jax.random.normal(a, (inputs, hidden)) / inputs**0.5,
        "b1": jnp.zeros(hidden),
        "w2": jax.random.normal(b, (hidden, outputs)) / hidden**0.5,
        "b2": jnp.zeros(outputs),
    }


def mlp(p, x):
    """Logits of a batch."""
    return jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]


def sgd(p, x, y, lr, predict=mlp):
    """A step on the mean cross-entropy of a batch."""

    def loss(p):
        logits = predict(p, x)
        return (jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, y[:, None], 1)[:, 0]).mean()

    return jax.tree.map(lambda p, g: p - lr * g, p, jax.grad(loss)(p))


def first(i, samples, y):
    """Where node `i`'s samples begin; shards overlap where there are more of them than data."""
    return i * samples % (y.shape[0] - samples + 1)


def fedavg(*, clients, samples, cohort, steps, batch, lr, rounds, predict=mlp, together=1):
    """W1, W2: `run(params, t, x, y) -> params` after `rounds` rounds of FedAvg with `cohort` of `clients` clients.

    A device scans over its clients, or over blocks of at most `together` of them, which an accelerator needs to be
    busy. Clients of weight 0 fill the last block of all.
    """
    devices = jax.device_count()
    blocks = -(-cohort // (devices * together))  # of a device
    together = -(-cohort // (devices * blocks))
    spare = devices * blocks * together - cohort

    def client(p, key, i, x, y):
        index = first(i, samples, y) + jax.random.randint(key, (steps, batch), 0, samples)
        return jax.lax.scan(lambda p, j: (sgd(p, x[j], y[j], lr, predict), None), p, index)[0]

    def share(weight, ids, keys, p, x, y):
        def add(total, one):
            weight, ids, keys = one
            if together == 1:
                new = client(p, keys, ids, x, y)
                return jax.tree.map(lambda s, a, b: s + weight * (a - b), total, new, p), None
            new = jax.vmap(client, (None, 0, 0, None, None))(p, keys, ids, x, y)
            moved = lambda a, b: (weight.reshape(-1, *[1] * b.ndim) * (a - b)).sum(0)
            return jax.tree.map(lambda s, a, b: s + moved(a, b), total, new, p), None

        own = (weight, ids, keys)
        if together > 1:
            own = jax.tree.map(lambda a: a.reshape(blocks, together), own)
        return jax.lax.psum(jax.lax.scan(add, jax.tree.map(jnp.zeros_like, p), own)[0], AXIS)

    rows = P(AXIS)
    spread = jax.shard_map(
        share, mesh=mesh(), in_specs=(rows, rows, rows, P(), P(), P()), out_specs=P(), check_vma=False
    )
    weight = jnp.where(jnp.arange(cohort + spare) < cohort, 1 / cohort, 0)

    def run(p, t, x, y):
        def one(p, t):
            key = jax.random.fold_in(jax.random.key(0), t)
            ids = jnp.pad(jax.random.permutation(key, clients)[:cohort], (0, spare))
            keys = jax.vmap(partial(jax.random.fold_in, key))(ids)
            return jax.tree.map(jnp.add, p, spread(weight, ids, keys, p, x, y)), None

        return jax.lax.scan(one, p, t + jnp.arange(rounds))[0]

    return jax.jit(run, donate_argnums=0)


def seats(nodes):
    """The node of each row when rows are spread over the devices, `[devices, rows]`; -1: the row is spare.

    Devices differ by a node at most, and the spare row of those with one less is their last.
    """
    devices = jax.device_count()
    count = nodes // devices + (np.arange(devices) < nodes % devices)
    row = np.arange(count.max())
    return np.where(row < count[:, None], (np.cumsum(count) - count)[:, None] + row, -1)


def ring_gossip(*, nodes, samples, batch, lr, rounds):
    """W3: `run(stacked params, t, x, y)` after `rounds` rounds of one local step and ring mixing with weights 1/3.

    Rows are those of `seats(nodes)`; at least one node a device.
    """
    devices = jax.device_count()
    ahead = [((r + 1) % devices, r) for r in range(devices)]
    behind = [(r, (r + 1) % devices) for r in range(devices)]
    table = seats(nodes)
    count, even = jnp.asarray((table >= 0).sum(1)), nodes % devices == 0
    ids = jnp.asarray(np.maximum(table, 0).reshape(-1))

    def step(p, key, i, x, y):
        j = first(i, samples, y) + jax.random.randint(key, (batch,), 0, samples)
        return sgd(p, x[j], y[j], lr)

    def share(p, keys, ids, count, x, y):
        p = jax.vmap(step, (0, 0, 0, None, None))(p, keys, ids, x, y)

        def mix(a):
            at = lambda i: jax.lax.dynamic_slice_in_dim(a, i, 1)
            last = a[-1:] if even else at(count[0] - 1)
            left, right = jax.lax.ppermute(last, AXIS, behind), jax.lax.ppermute(a[:1], AXIS, ahead)
            wide = jnp.concatenate([left, a, right])
            mixed = (wide[1:-1] + wide[:-2] + wide[2:]) / 3
            if even:
                return mixed
            before = jnp.where(count[0] > 1, at(jnp.maximum(count[0] - 2, 0)), left)  # the row behind the last is spare
            return jax.lax.dynamic_update_slice_in_dim(mixed, (last + before + right) / 3, count[0] - 1, 0)

        return jax.tree.map(mix, p)

    rows = P(AXIS)
    where = (rows, rows, rows, rows, P(), P())
    spread = jax.shard_map(share, mesh=mesh(), in_specs=where, out_specs=rows, check_vma=False)

    def run(p, t, x, y):
        def one(p, t):
            key = jax.random.fold_in(jax.random.key(0), t)
            keys = jax.vmap(partial(jax.random.fold_in, key))(ids)
            return spread(p, keys, ids, count, x, y), None

        return jax.lax.scan(one, p, t + jnp.arange(rounds))[0]

    return jax.jit(run, donate_argnums=0)
