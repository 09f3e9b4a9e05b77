"""Who pays: the bits of a round by node, where an algorithm logs their sums."""

import jax.numpy as jnp

from jaxfl.core import Algorithm, n_nodes


def by_member(algorithm: Algorithm) -> Algorithm:
    """`algorithm` of a server that also logs `sent_bits` and `received_bits` `[n]` of each node.

    The members present share `up_bits` evenly, those asked `down_bits`, so the sums over nodes are those of the log.
    """

    def round(key, env, s):
        s, log = algorithm.round(key, env, s)
        c = env.cohort
        present = c.weight > 0

        def by_node(name, who):
            return jnp.zeros(n_nodes(env)).at[c.ids].add(who / jnp.maximum(who.sum(), 1) * log[name])

        received = by_node("down_bits", present if c.selected is None else c.selected)
        return s, log | {"sent_bits": by_node("up_bits", present), "received_bits": received}

    return algorithm._replace(round=round)
