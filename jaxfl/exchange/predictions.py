"""Messages that are predictions: what nodes say about public examples, instead of parameters.

A node's message is its logits (and embeddings) on a public batch all nodes share. In a run they are computed once for
the node that says them and gathered by those who hear it; every hearing is counted as one message over a link.
"""

import jax
import jax.numpy as jnp

from jaxfl.core import Array, Env, Graph, Log, Tree, n_nodes, node_keys, stream
from jaxfl.exchange import timing
from jaxfl.exchange.codecs import PLAIN, Codec
from jaxfl.mapping.nodes import map_nodes


def public_batches(key: Array, public: Tree, steps: int, batch: int) -> tuple[Tree, Array]:
    """The public examples of `steps` batches, drawn with replacement and the same for all nodes.

    Returns `(images, index)`: step `k` shows `images[index[k]]`, with `index` `[steps, batch]`. `images` are all
    public examples or, where fewer are drawn than there are, the drawn ones: what must be predicted once.
    """
    total = jax.tree.leaves(public)[0].shape[0]
    index = jax.random.randint(stream(key, "public"), (steps, batch), 0, total)
    if total <= steps * batch:
        return public, index
    drawn = jax.tree.map(lambda a: a[index.reshape(-1)], public)
    return drawn, jnp.arange(steps * batch).reshape(steps, batch)


def draw_teachers(key: Array, graph: Graph, count: int, steps: int) -> tuple[Array, Array]:
    """In each step `count` distinct in-neighbours of every node, uniformly: ids and whether they are there.

    Both are `[n, steps, count]`; a node with fewer live in-neighbours hears all of them, the other places are not live.
    `count` must not exceed the slots of the graph.
    """

    def one(key, nbr, weight):
        rank = jnp.where(weight != 0, jax.random.uniform(key, (steps, nbr.shape[0])), -1.0)
        rank, slot = jax.lax.top_k(rank, count)
        return nbr[slot], rank >= 0

    keys = node_keys(stream(key, "teachers"), jnp.arange(graph.nbr.shape[0]))
    return jax.vmap(one)(keys, graph.nbr, graph.weight)


def send(key: Array, codec: Codec, said: Array) -> tuple[Array, Array]:
    """What arrives of every node's predictions `[n, ..., K, m]` on `K` examples, and its bits for one example `[n]`.

    The codec sees one message a node. Its memory starts anew each time: the examples change, so an error feedback
    would be that of other examples.
    """
    n, examples = said.shape[0], said.shape[-2]
    messages = said.reshape(n, -1)
    if codec is PLAIN:
        return said, jnp.full(n, 32.0 * messages.shape[1] / examples)
    keys = node_keys(stream(key, "codec"), jnp.arange(n))
    coded = lambda _, row: codec.send(row[0], codec.init(row[1]), row[1])
    sent, _, bits = map_nodes(coded, (), (keys, messages))
    return sent.reshape(said.shape), bits / examples


def cost(env: Env, teachers: Array, *messages: tuple[Array, Array]) -> Log:
    """`up_bits` and `down_bits` of all messages heard, and over links the seconds in which all are sent and received.

    `teachers` `[n, steps, a]` are the ids of those who spoke. Each of `messages` is `(heard, bits)`: whether they were
    heard (bool, same shape), and what such a message of each node takes `[n]`. One heard by two nodes is sent twice.
    """
    n = n_nodes(env)
    came = sum(jnp.where(heard, bits[teachers], 0) for heard, bits in messages).reshape(n, -1)  # type: ignore[union-attr]
    log = Log(up_bits=came.sum(), down_bits=came.sum())
    if env.links is not None:
        log["seconds"] = timing.over_edges(env, [(jnp.arange(n), Graph(teachers.reshape(n, -1), came), came)])
    return log
