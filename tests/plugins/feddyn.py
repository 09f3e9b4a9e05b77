"""FedDyn: every client's objective bends by a dual vector until the local optima agree.

h_k(w; x) = F_k(w) - <dual_k, w> + a_k/2 |w - x|^2,   dual_k <- dual_k - a_k (y_k - x),   a_k = alpha / (n p_k)
h <- h - alpha/n sum_S (y_k - x),   x <- mean_S y_k - h / alpha,   so that h = sum_k p_k dual_k over all n clients
The paper has p_k = 1/n; with the a_k, as in its authors' code, the end is the optimum of sum_k p_k F_k for any p.
"""

import jax
import jax.numpy as jnp
import optax

import jaxfl as fl

PAPER = fl.Paper("Federated Learning Based on Dynamic Regularization", "Acar, Zhao, Navarro, Mattina, Whatmough, "
                 "Saligrama", "ICLR 2021", "https://arxiv.org/abs/2111.04263")  # fmt: skip


def feddyn(task, net=fl.Network(), *, lr=0.1, alpha=0.1, steps=5, batch=8):
    def member(key, data, i, x, *, dual, a, **more):
        hook = fl.hooks.stateless(lambda g, p, *, anchor, dual, **_: jax.tree.map(
            lambda g, p, x, d: g - d + a * (p - x), g, p, anchor, dual))  # fmt: skip
        train = fl.local_sgd(task, optax.chain(hook, optax.sgd(lr)), steps=steps, batch=batch)
        y, log = train(key, data, i, x, dual=dual, **more)
        return y - x, log | {"dual": dual - a * (y - x)}

    def init(key, env, x):
        return fl.State({"x": x, "h": 0 * x}, fl.tile(0 * x, fl.n_nodes(env)), net.init(env, x))

    def round(key, env, s):
        c, n, x, here = env.cohort, fl.n_nodes(env), s.shared["x"], env.cohort.weight > 0
        alike, a = c._replace(weight=1.0 * here, total=None), alpha / (n * fl.shares(env)[c.ids])  # the mean is plain
        got = net.collect(key, env._replace(cohort=alike), s.mail, member, x, memory={"dual": s.nodes}, a=a)
        h = s.shared["h"] - alpha * here.sum() / n * got.mean
        new = {"x": jnp.where(got.present, x + got.mean - h / alpha, x), "h": h}
        return fl.State(new, got.memory["dual"], got.mail), got.log

    return fl.Algorithm(init, round, read=lambda s: s.shared["x"])


SYSTEMS = {"feddyn": fl.System(feddyn, PAPER)}
