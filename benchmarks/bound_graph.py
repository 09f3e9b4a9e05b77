"""W5 of the bound: gossip on a graph without structure, by a table of neighbours, written by hand.

The step is that of all nodes at once, with gradients by hand: those of the weights are sums of outer products over the
few samples of a batch, which XLA joins with the update, so that weights are read and written once. What neighbours sent
is a gather for each of the `k` slots, written out one after the other: XLA makes one loop of all of them, whose result
is the only array that is written. So is the median: a sorting network of whole arrays, of which XLA keeps the
comparisons that the middle depends on.
"""

from functools import partial

import bound
import jax
import jax.numpy as jnp
import numpy as np
from bound import AXIS
from jax.sharding import PartitionSpec as P


def network(n):
    """Comparisons (low, high) that sort `n` values: Batcher's merge of odd and even."""
    pairs, p = [], 1
    while p < n:
        k = p
        while k:
            for j in range(k % p, n - k, 2 * k):
                for i in range(j, j + min(k, n - j - k)):
                    if i // (2 * p) == (i + k) // (2 * p):
                        pairs.append((i, i + k))
            k //= 2
        p *= 2
    return pairs


def _mean(nbr, weight, own, heard):
    each = lambda a: a.reshape(-1, *[1] * (own.ndim - 1))
    total = each(1 - weight.sum(1)) * own
    for slot in range(nbr.shape[1]):
        w = each(weight[:, slot])
        total = total + jnp.where(w != 0, w * heard[nbr[:, slot]], 0)
    return total


def _median(nbr, weight, own, heard):
    found = [own, *(heard[nbr[:, slot]] for slot in range(nbr.shape[1]))]
    for a, b in network(len(found)):
        found[a], found[b] = jnp.minimum(found[a], found[b]), jnp.maximum(found[a], found[b])
    half = len(found) // 2
    return found[half] if len(found) % 2 else (found[half - 1] + found[half]) / 2


RULES = {"mean": _mean, "median": _median}


def step(p, x, y, lr):
    """A step of every node on the mean cross-entropy of its batch: leaves `[n, ...]`, `x` `[n, b, inputs]`."""
    batch = x.shape[1]
    before = jnp.einsum("nbi,nij->nbj", x, p["w1"]) + p["b1"][:, None]
    hidden = jax.nn.relu(before)
    logits = jnp.einsum("nbj,njo->nbo", hidden, p["w2"]) + p["b2"][:, None]
    out = (jax.nn.softmax(logits) - jax.nn.one_hot(y, logits.shape[-1])) / batch
    back = jnp.where(before > 0, jnp.einsum("nbo,njo->nbj", out, p["w2"]), 0)
    outer = lambda a, g: sum(a[:, b, :, None] * g[:, b, None, :] for b in range(batch))
    gradient = {"w1": outer(x, back), "b1": back.sum(1), "w2": outer(hidden, out), "b2": out.sum(1)}
    return jax.tree.map(lambda p, g: p - lr * g, p, gradient)


def table_gossip(*, nbr, weight, samples, batch, lr, rounds, rule="mean"):
    """W5: `run(stacked params, t, x, y)` after `rounds` rounds of one local step and mixing with neighbours `[n, k]`.

    `weight` `[n, k]` is that of neighbours; the rest to 1 is a node's own. The rule "median" takes that of the own and
    the neighbours' models. Rows are the nodes and spare ones behind them, as many as make them divide.
    """
    nodes, devices = len(nbr), jax.device_count()
    spare = -nodes % devices
    table = bound.by_row(tuple(np.pad(np.asarray(a), ((0, spare), (0, 0))) for a in (nbr, weight)))
    ids = jnp.minimum(jnp.arange(nodes + spare), nodes - 1)

    def share(p, keys, ids, nbr, weight, x, y):
        draw = lambda key, i: bound.first(i, samples, y) + jax.random.randint(key, (batch,), 0, samples)
        j = jax.vmap(draw)(keys, ids)
        p = jax.lax.optimization_barrier(step(p, x[j], y[j], lr))  # or each gather would take the step again
        everyone = lambda a: a if devices == 1 else jax.lax.all_gather(a, AXIS, tiled=True)
        return jax.tree.map(lambda a: RULES[rule](nbr, weight, a, everyone(a)), p)

    rows = P(AXIS)
    where = (*[rows] * 5, P(), P())
    spread = jax.shard_map(share, mesh=bound.mesh(), in_specs=where, out_specs=rows, check_vma=False)

    def run(table, p, t, x, y):
        def one(p, t):
            key = jax.random.fold_in(jax.random.key(0), t)
            keys = jax.vmap(partial(jax.random.fold_in, key))(ids)
            nbr, weight = table
            return spread(p, keys, ids, nbr, weight, x, y), None

        return jax.lax.scan(one, p, t + jnp.arange(rounds))[0]

    return partial(jax.jit(run, donate_argnums=1), table)
