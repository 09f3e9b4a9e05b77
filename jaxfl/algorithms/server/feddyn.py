"""FedDyn: every client's objective bends by a dual vector until the local optima agree.

Of the n clients k counts p_k among all, and the members S of a round train from x on

    h_k(w; x) = F_k(w) - <dual_k, w> + a_k / 2 |w - x|^2,    a_k = alpha / (n p_k)
    dual_k <- dual_k - a_k (y_k - x)
    h <- h - alpha / n sum_S (y_k - x),    x <- 1 / |S| sum_S y_k - h / alpha

so that h = sum_k p_k dual_k over all clients, present or not, without a look at them. All duals start at 0. The paper
has p_k = 1 / n. With the a_k, as in its authors' code, the end is the optimum of sum_k p_k F_k for any p: there y_k = x
and dual_k = grad F_k(x), and x stays where h = 0.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import optax

from jaxfl.core import Algorithm, Array, State, counts, n_nodes, shares, tile, without
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.learn import server as servers
from jaxfl.learn.hooks import Hook, lagrangian
from jaxfl.learn.local import local_sgd
from jaxfl.learn.server import parameters_alone
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Federated Learning Based on Dynamic Regularization",
    "Acar, Zhao, Navarro, Mattina, Whatmough, Saligrama",
    "ICLR 2021",
    "https://arxiv.org/abs/2111.04263",
)


def feddyn(
    task: Task, net: Network = Network(), *, lr: float | Array = 0.1, alpha: float | Array = 0.1, **kw
) -> Algorithm:
    """FedDyn with client rate `lr` and regularisation `alpha`; `steps`, `epochs`, `batch` of `kw` as in `fedopt`.

    `weighted` and `transform` are as in `with_duals`.
    """
    return with_duals(task, net, lr=lr, alpha=alpha, **kw)


def with_duals(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array,
    alpha: float | Array,
    hooks: Sequence[Hook] = (),
    present_alone: bool = False,
    weighted: bool = False,
    transform: optax.GradientTransformation | None = None,
    steps: int = 10,
    epochs: int | None = None,
    batch: int | None = 16,
) -> Algorithm:
    """The round of FedDyn, with `hooks` before its own in every local step.

    `present_alone`: the server knows nothing of the absent, `x <- 1 / |S| sum_S (y_k - dual_k / a_k)` with the new
    duals. With all clients in every round that is the same. `weighted`: the mean of the y_k is by the cohort's weights
    (`world.weights`) instead of plain, that of h is not; where all y_k agree, at the end, it makes no difference.
    `transform` is what becomes of the mean of the messages in
    the server's step, an optax transformation (`learn.cross_layer`); `h` is exact.
    """
    require("lr", lr, above=0)
    require("alpha", alpha, above=0)
    trained, most = parameters_alone(task), None if epochs else steps
    twice = weighted and not present_alone  # a mean by weight, and one that is plain

    def member(key, data, i, x, *, dual, a, factor=None, **more):
        local = optax.chain(*hooks, lagrangian(a), optax.sgd(lr))
        y, log = local_sgd(task, local, steps=most, epochs=epochs, batch=batch)(key, data, i, x, dual=dual, **more)
        new = dual - a * trained(y - x)
        move = y - x - new / a if present_alone else y - x
        return move if factor is None else jnp.concatenate([move, factor * move]), log | {"dual": new}

    def init(key, env, x):
        zero = jnp.zeros_like(x)
        shared = {"x": x} if present_alone else {"x": x, "h": zero}
        if transform is not None:
            shared["transform"] = servers.first(transform, x, key)
        return State(shared, tile(zero, n_nodes(env)), net.init(env, jnp.concatenate([x, x]) if twice else x))

    def round(key, env, s):
        c, n, x = env.cohort, n_nodes(env), s.shared["x"]
        here = (c.weight > 0).astype(jnp.float32)
        if not weighted:
            env = env._replace(cohort=without(c._replace(weight=here), "total"))  # a plain mean: p is in the a_k
        own, more = {"a": alpha / (n * shares(env)[c.ids])}, {}
        if twice:
            own["factor"] = here / jnp.where(here > 0, here.sum() * counts(c), 1)
            more["crosses"] = (1.0, 0.5)  # both means are of one upload
        got = net.collect(key, env, s.mail, member, x, memory={"dual": s.nodes}, **own, **more)
        move, opt = servers.transformed(transform, got.mean[: x.size], s.shared.get("transform", ()), x, got.present)
        shared = {} if transform is None else {"transform": opt}
        if not present_alone:
            shared["h"] = s.shared["h"] - alpha * here.sum() / n * trained(got.filled[-x.size :])
            move = move - shared["h"] / alpha
        return State({"x": jnp.where(got.present, x + move, x)} | shared, got.memory["dual"], got.mail), got.log

    return Algorithm(init, round, read=lambda s: s.shared["x"])


SYSTEMS = {"feddyn": System(feddyn, PAPER)}
