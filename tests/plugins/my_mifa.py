"""MIFA: the last update of every client counts in every round, also of those that are away.

new_k <- y_k - x,  k in S,    v <- v + sum_S p_k (new_k - last_k),   last_k <- new_k,    x <- x + v
so that v = sum_k p_k last_k over all n clients: where it ends FedAvg would end if all took part in every round.
The paper has p_k = 1/n and all clients in its first round; here who was never there counts with an update of 0.
"""

import jax.numpy as jnp
import optax

import jaxfl as fl

PAPER = fl.Paper("Fast Federated Learning in the Presence of Arbitrary Device Unavailability",
                 "Gu, Huang, Zhang, Huang", "NeurIPS 2021", "https://arxiv.org/abs/2106.04159")  # fmt: skip


def my_mifa(task, net=fl.Network(), *, lr=0.1, steps=5, batch=8):
    train = fl.local_sgd(task, optax.sgd(lr), steps=steps, batch=batch)

    def member(key, data, i, x, *, last, **more):
        y, log = train(key, data, i, x, **more)
        new = jnp.where(log["steps"] > 0, y - x, last)  # who runs no step has no news
        return new - last, log | {"last": new}

    def init(key, env, x):
        return fl.State({"x": x, "v": 0 * x}, fl.tile(0 * x, fl.n_nodes(env)), net.init(env, x))

    def round(key, env, s):
        c, x = env.cohort, s.shared["x"]
        weight = jnp.where(c.weight > 0, fl.shares(env)[c.ids], 0)  # among all clients, not among the members
        counted = env._replace(cohort=fl.without(c._replace(weight=weight), "total"))
        got = net.collect(key, counted, s.mail, member, x, memory={"last": s.nodes})
        v = s.shared["v"] + weight.sum() * got.mean
        new = {"x": jnp.where(got.present, x + v, x), "v": v}
        return fl.State(new, got.memory["last"], got.mail), got.log

    return fl.Algorithm(init, round, read=lambda s: s.shared["x"])


SYSTEMS = {"my_mifa": fl.System(my_mifa, PAPER)}
