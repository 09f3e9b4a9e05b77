"""Noisy links: Gaussian noise is added to every number that crosses one, as on an analogue channel.

A message that a node sends bears the node's noise up, once, whoever hears it; what a node receives bears its noise
down, drawn anew for each message it hears. With a server that is what a member is handed (its model and all else that
travels) and what it sends; in gossip a neighbour's message bears both. Noise comes after the codec. What liars say, and
what a node knows without being told, has none.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxfl.core import Array, Tree, node_keys, stream
from jaxfl.mapping.nodes import map_nodes


class Noise(NamedTuple):
    """Standard deviations of the noise on each number, alike for all nodes or one a node `[n]`; may be traced."""

    up: float | Array = 0.0  # on what a node sends
    down: float | Array = 0.0  # on what a node receives


def silent(deviation: float | Array) -> bool:
    """Whether it is the number 0, for which nothing is drawn."""
    return isinstance(deviation, int | float) and deviation == 0


def of_node(deviation: float | Array, i: Array) -> Array:
    """The deviation of the node `i`, or of each of several `[c]`."""
    each = jnp.asarray(deviation, jnp.float32)
    return jnp.broadcast_to(each, jnp.shape(i)) if each.ndim == 0 else each[i]


def added(key: Array, deviation: Array, tree: Tree) -> Tree:
    """`tree` with noise on every float; `deviation` is one number."""
    leaves, structure = jax.tree.flatten(tree)

    def noisy(k: int, a: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(a), jnp.floating):
            return a
        return a + deviation * jax.random.normal(jax.random.fold_in(key, k), jnp.shape(a), jnp.result_type(a))

    return structure.unflatten([noisy(k, a) for k, a in enumerate(leaves)])


def sent(key: Array, ids: Array, messages: Array, noise: Noise) -> Array:
    """What arrives of the messages `[c, m]` of the nodes `ids` `[c]`."""
    if silent(noise.up):
        return messages
    rows = node_keys(stream(key, "noise"), ids), of_node(noise.up, ids), messages
    return map_nodes(lambda _, row: added(*row), (), rows)


def handed(learn: Callable, noise: Noise, names: frozenset[str]) -> Callable:
    """`learn` of ONE node that receives its model, and the arguments of these `names`, over its noisy link."""
    if silent(noise.down):
        return learn

    def member(key: Array, data: Any, i: Array, x: Array, **arguments: Tree) -> tuple[Array, dict]:
        heard = {"x": x} | {name: v for name, v in arguments.items() if name in names}
        heard = added(stream(key, "noise"), of_node(noise.down, i), heard)
        return learn(key, data, i, heard.pop("x"), **arguments | heard)

    return functools.wraps(learn)(member)  # it takes what `learn` takes
