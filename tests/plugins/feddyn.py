"""FedDyn: every client's objective bends by a dual vector until the local optima agree.

h_k(w; x) = F_k(w) - <dual_k, w> + alpha/2 |w - x|^2,   dual_k <- dual_k - alpha (y_k - x)
h <- h - alpha/n sum_S (y_k - x),   x <- mean_S y_k - h / alpha
"""

import jax
import optax

import jaxfl as fl

PAPER = fl.Paper("Federated Learning Based on Dynamic Regularization",
                 "Acar, Zhao, Navarro, Mattina, Whatmough, Saligrama",
                 "ICLR 2021", "https://arxiv.org/abs/2111.04263")  # fmt: skip


def feddyn(task, net=fl.Network(), *, lr=0.1, alpha=0.1, steps=5, batch=8):
    hook = fl.hooks.stateless(lambda g, p, *, anchor, dual, **_: jax.tree.map(
        lambda g, p, a, d: g - d + alpha * (p - a), g, p, anchor, dual))  # fmt: skip
    train = fl.local_sgd(task, optax.chain(hook, optax.sgd(lr)), steps=steps, batch=batch)

    def member(key, data, i, x, *, dual, **more):
        y, log = train(key, data, i, x, dual=dual, **more)
        return y - x, log | {"dual": dual - alpha * (y - x)}

    def init(key, env, x):
        return fl.State({"x": x, "h": 0 * x}, fl.tile(0 * x, fl.n_nodes(env)), net.init(env, x))

    def round(key, env, s):
        x, present = s.shared["x"], (env.cohort.weight > 0).sum()
        got = net.collect(key, env, s.mail, member, x, memory={"dual": s.nodes})
        h = s.shared["h"] - alpha * present / fl.n_nodes(env) * got.mean
        return fl.State({"x": x + got.mean - h / alpha, "h": h}, got.memory["dual"], got.mail), got.log

    return fl.Algorithm(init, round, read=lambda s: s.shared["x"])


SYSTEMS = {"feddyn": fl.System(feddyn, PAPER)}
