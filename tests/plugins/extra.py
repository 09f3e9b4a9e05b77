"""EXTRA: gossip that remembers one round, and so ends in the optimum itself, at a constant rate.

x^{t+1} = x^t + W x^t - (x^{t-1} + W x^{t-1}) / 2 - lr (g^t - g^{t-1}),   x^1 = W x^0 - lr g^0
"""

import jax.numpy as jnp

import jaxfl as fl

PAPER = fl.Paper("EXTRA: An Exact First-Order Algorithm for Decentralized Consensus Optimization", "Shi, Ling, Wu, Yin",
                 "SIAM J. Optim. 2015", "https://arxiv.org/abs/1404.6264", journal=True)  # fmt: skip


def extra(task, net=fl.Network(), *, lr=0.1, batch=None):
    gradient = fl.local_gradient(task, batch=batch)

    def init(key, env, x):
        rows = fl.tile(x, fl.n_nodes(env))
        return fl.State((), {"x": rows, "half": rows, "g": 0 * rows}, net.init(env, rows))

    def round(key, env, s):
        x, g = s.nodes["x"], fl.at(jnp.arange(fl.n_nodes(env)), gradient)(key, env, s.nodes["x"])
        mixed, mail, log = net.gossip(key, env, s.mail, x)
        new = x + mixed - s.nodes["half"] - lr * (g.rows - s.nodes["g"])
        return fl.State((), {"x": new, "half": (x + mixed) / 2, "g": g.rows}, mail), g.log | log

    return fl.Algorithm(init, round, read=lambda s: s.nodes["x"])


SYSTEMS = {"extra": fl.System(extra, PAPER, kind="gossip")}
