"""q-FedAvg: clients with a high loss count more, the more so the larger q.

D_k = (x - y_k) / lr,   h_k = q F_k^(q-1) |D_k|^2 + F_k^q / lr,   x <- x - sum_S p_k F_k^q D_k / sum_S p_k h_k
"""

import jax.numpy as jnp
import optax

import jaxfl as fl

PAPER = fl.Paper("Fair Resource Allocation in Federated Learning", "Li, Sanjabi, Beirami, Smith",
                 "ICLR 2020", "https://arxiv.org/abs/1905.10497")  # fmt: skip


def qfedavg(task, net=fl.Network(), *, lr=0.1, q=1.0, steps=5, batch=8):
    train, loss_at = fl.local_sgd(task, optax.sgd(lr), steps=steps, batch=batch), fl.local_gradient(task)

    def member(key, data, i, x, **more):
        y, log = train(key, data, i, x, **more)
        _, there = loss_at(key, data, i, x)
        move, loss = (x - y) / lr, there["loss"] + 1e-10
        h = q * loss ** (q - 1) * (move @ move) + loss**q / lr
        return jnp.append(loss**q * move, h), log | {"gradients": log["gradients"] + there["gradients"]}

    def init(key, env, x):
        return fl.State({"x": x}, (), net.init(env, jnp.append(x, 0.0)))

    def round(key, env, s):
        got = net.collect(key, env, s.mail, member, s.shared["x"])
        above, below = got.mean[:-1], got.mean[-1]  # 0 where nobody answers, or a sparse codec leaves it out
        step = jnp.where(below > 0, above / jnp.where(below > 0, below, 1), 0)
        return fl.State({"x": s.shared["x"] - step}, (), got.mail), got.log

    return fl.Algorithm(init, round, read=lambda s: s.shared["x"])


SYSTEMS = {"qfedavg": fl.System(qfedavg, PAPER)}
