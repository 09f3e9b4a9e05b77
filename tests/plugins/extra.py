"""EXTRA: gossip that remembers one round, and so ends in the optimum itself, at a constant rate.

x <- x + W x - lr g - old,   old <- (x + W x) / 2 - lr g,   old = x at first: g = grad F_i(x_i), all at the old x
Algorithm 1 of the paper, x'' = (I + W) x' - (I + W)/2 x - lr (g' - g), where what is subtracted is kept as `old`.
"""

import jax.numpy as jnp

import jaxfl as fl

PAPER = fl.Paper("EXTRA: An Exact First-Order Algorithm for Decentralized Consensus Optimization", "Shi, Ling, Wu, Yin",
                 "SIAM J. Optim. 2015", "https://arxiv.org/abs/1404.6264", journal=True)  # fmt: skip


def extra(task, net=fl.Network(), *, lr=0.1, batch=None):
    gradient = fl.local_gradient(task, batch=batch)

    def init(key, env, x):
        rows = fl.tile(x, fl.n_nodes(env))
        return fl.State((), {"x": rows, "old": rows}, net.init(env, x))

    def round(key, env, s):
        x, old = s.nodes["x"], s.nodes["old"]
        g = fl.at(jnp.arange(fl.n_nodes(env)), gradient)(key, env, x)
        mixed, mail, log = net.gossip(key, env, s.mail, x)
        both, step = x + mixed, lr * g.rows
        return fl.State((), {"x": both - step - old, "old": both / 2 - step}, mail), g.log | log

    return fl.Algorithm(init, round, read=lambda s: s.nodes["x"])


SYSTEMS = {"extra": fl.System(extra, PAPER, kind="gossip")}
