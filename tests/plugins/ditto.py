"""Ditto: beside the global model every client has a personal one, drawn to it.

v_k <- v_k - lr (grad F_k(v_k) + lam (v_k - x)),   x by FedAvg
"""

import jax
import optax

import jaxfl as fl

PAPER = fl.Paper("Ditto: Fair and Robust Federated Learning Through Personalization", "Li, Hu, Beirami, Smith",
                 "ICML 2021", "https://arxiv.org/abs/2012.04221")  # fmt: skip


def ditto(task, net=fl.Network(), *, lr=0.1, lam=0.1, steps=5, batch=8):
    """The answer is the global model `[d]` as `x`, and the personal ones `[n, d]`."""
    pull = lambda g, p, *, centre, **_: jax.tree.map(lambda g, p, c: g + lam * (p - c), g, p, centre)
    train = fl.local_sgd(task, optax.sgd(lr), steps=steps, batch=batch)
    adapt = fl.local_sgd(task, optax.chain(fl.hooks.stateless(pull), optax.sgd(lr)), steps=steps, batch=batch)

    def member(key, data, i, x, *, personal, **more):
        y, log = train(key, data, i, x, **more)
        v, own = adapt(fl.stream(key, "personal"), data, i, personal, centre=x, **more)
        both = {name: log[name] + own[name] for name in ("steps", "gradients")}
        return y - x, log | both | {"personal": v}

    def init(key, env, x):
        return fl.State({"x": x}, fl.tile(x, fl.n_nodes(env)), net.init(env, x))

    def round(key, env, s):
        got = net.collect(key, env, s.mail, member, s.shared["x"], memory={"personal": s.nodes})
        return fl.State({"x": s.shared["x"] + got.mean}, got.memory["personal"], got.mail), got.log

    return fl.Algorithm(init, round, read=lambda s: {"x": s.shared["x"], "personal": s.nodes})


SYSTEMS = {"ditto": fl.System(ditto, PAPER)}
