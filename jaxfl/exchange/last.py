"""The last message of every node, remembered at the server, and the mean of them all.

Of the members S of a round, node i counting p_i among all n (`core.shares`),

    mean <- mean + sum_S p_i (new_i - last_i),    last_i <- new_i,  i in S,

so that mean = sum_i p_i last_i, whoever takes part. A round reads and writes the rows of its members alone: it costs
as much with a million nodes as with a hundred. The table of SAG (Le Roux, Schmidt, Bach, 2012) at a server: MIFA,
FedVARP, FedStale, AFA-CS. The server remembers what arrived, after codec, noise and lies, so the sum holds under all.
"""

from typing import NamedTuple

import jax.numpy as jnp

from jaxfl.core import Array, Env, n_nodes, shares, tile, without
from jaxfl.errors import InputError
from jaxfl.exchange import rules
from jaxfl.exchange.network import Collected, Network
from jaxfl.mapping.nodes import put_rows, rows_of


class Renewed(NamedTuple):
    """What a round made of the table."""

    table: Array  # [n, m]; part of `State.nodes`
    mean: Array  # [m]; part of `State.shared`
    last: Array  # [c, m], what the table had of the members before
    new: Array  # [c, m], what they said now, 0 of those without news
    news: Array  # [c] bool, the members whose message it has now


def table(env: Env, message: Array) -> Array:
    """A table `[n, m]` for messages like `message` `[m]`, of nodes that have sent nothing: zeros."""
    return tile(jnp.zeros_like(message), n_nodes(env))


def renew(env: Env, rows: Array, mean: Array, got: Collected) -> Renewed:
    """The table `rows` `[n, m]` and its `mean` `[m]` after a round: `got` of `collect(..., hear=True)`.

    The absent, and who ran no step, have no news: of them it keeps what it had.

    Raises:
        InputError: it was not asked to `hear` each message.
    """
    c, heard = env.cohort, got.heard
    if heard is None:
        raise InputError("got has no message of each member: collect them with hear=True.")
    news = (without(c, "total").weight > 0) & (got.each["steps"] > 0)
    last = rows_of(c, rows)
    new = jnp.where(news[:, None], heard, last)
    mean = mean + rules.mean(mean, new - last, jnp.where(news, shares(env)[c.ids], 0))
    return Renewed(put_rows(c, rows, new), mean, last, jnp.where(news[:, None], heard, 0), news)


def require_mean(net: Network) -> None:
    """Raise `InputError` for a rule: it would have to look at all n rows in every round."""
    if net.rule is not rules.mean:
        raise InputError("net.rule is set, but this server takes the mean of what all nodes sent last: leave it out.")
