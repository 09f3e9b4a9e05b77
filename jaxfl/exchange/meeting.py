"""An exchange among a few nodes: each sends what it has to all the others, plain and at once, and all take the mean."""

import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Env, Graph, Log
from jaxfl.exchange import timing
from jaxfl.exchange.codecs import FLOAT
from jaxfl.exchange.rules import mean_of


def meeting(env: Env, ids: Array, rows: Array, weight: Array, when: Array | bool = True) -> tuple[Array, Log]:
    """What the nodes `ids` `[q]` have after it, `[q, d]`, and a log of its bits and, over links, its seconds.

    Args:
        env: the round.
        ids: who meets, distinct.
        rows: what they have, `[q, d]`.
        weight: what each counts in the mean, `[q]`.
        when: whether they meet in this round; else they keep what they have, and nothing is sent.
    """
    q, d = rows.shape
    others = jnp.asarray((np.arange(q)[:, None] + np.arange(1, q)) % q)
    bits = jnp.full(others.shape, FLOAT * d) * when
    log = Log(up_bits=bits.sum(), down_bits=bits.sum())
    if env.links is not None:
        log["seconds"] = timing.over_edges(env, [(ids, Graph(ids[others], jnp.ones(others.shape)), bits)])
    return jnp.where(when, mean_of(rows, weight), rows), log
