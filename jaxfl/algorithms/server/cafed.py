"""CA-Fed and its baselines: how clients count who are there unlike often, and in bursts.

Client k counts alpha_k among all (sum 1), and is there for a share pi_k of the rounds with memory lambda_k, the
second eigenvalue of its Markov chain (`world.availability.markov`). With A the clients there in a round,

    x <- x + server_lr sum_A q_k (y_k - x),        which ends where sum_k p_k F_k is least, p_k ~ pi_k q_k

    Unbiased   q_k = alpha_k / pi_k
    AdaFed     that of Unbiased over its sum in A
    F3AST      that of Unbiased for the m clients in A for whom it is largest, 0 for the others (as CA-Fed's authors
               have it: pi_k is the share of rounds in which k is there, not that in which it is chosen)
    CA-Fed     that of Unbiased, but 0 for those whom the server is better off without

CA-Fed asks all in A for their loss at x (F_k, remembered; of those who are not there at first the mean of the others),
then leaves clients out one by one, first in the order of falling |lambda_k|, then in that of rising pi_k, each for good
if that makes

    e(q) = sum_k p_k (F_k - F_k*) + kappa max_k (F_k - F_k*) TV(alpha, p)^2,    TV = 1/2 sum_k |alpha_k - p_k|

smaller by `tolerance` or more. Who is left out runs no step. F_k* is the least loss of client k, as far as it is known
(`optimum`; 0 is never above it). pi and lambda are estimated (`availability.chain_seen`, with the share of nodes in a
cohort as prior) unless given. Who is there is who answers: the weights of a cohort say nothing else here.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfl.core import Algorithm, Array, State, n_nodes, shares, stream, without
from jaxfl.errors import require
from jaxfl.exchange import rules
from jaxfl.exchange.codecs import PLAIN
from jaxfl.exchange.network import Network
from jaxfl.exchange.slots import require_whole
from jaxfl.learn.local import displacement, local_gradient, local_sgd
from jaxfl.learn.task import Task
from jaxfl.mapping.sums import count
from jaxfl.paper import Example, Paper, System
from jaxfl.world.availability import chain_seen, look, nothing_seen

PAPER = Paper(
    "Federated Learning under Heterogeneous and Correlated Client Availability",
    "Rodio, Faticanti, Marfoq, Neglia, Leonardi",
    "IEEE INFOCOM 2023",
    "https://arxiv.org/abs/2301.04632",
    number="100",
)
ADAFED = Paper(
    "AdaFed: Optimizing Participation-Aware Federated Learning with Adaptive Aggregation Weights",
    "Tan, Zhang, Zhou, Che, Hu, Chen, Wu",
    "IEEE TNSE 2022",
    "https://doi.org/10.1109/TNSE.2022.3168969",
    journal=True,
)
F3AST = Paper(
    "Federated Learning under Intermittent Client Availability and Time-Varying Communication Constraints",
    "Ribero, Vikalo, de Veciana",
    "IEEE JSTSP 2023",
    "https://arxiv.org/abs/2205.06730",
    journal=True,
)


def allocated(
    task: Task,
    net: Network,
    allocate: Callable,
    *,
    lr: float | Array = 0.1,
    server_lr: float | Array = 1.0,
    strength: float | Array = 10.0,
    up: Any = None,
    memory: Any = None,
    asks: bool = False,
    renormalised: bool = False,
    steps: int = 2,
    epochs: int | None = None,
    batch: int | None = 16,
) -> Algorithm:
    """Any rule `allocate(alpha, pi, lambda, loss, there) -> q`, all `[n]`.

    With `asks` clients are asked for their losses first; `renormalised` divides by the sum of those there. `up` and
    `memory` `[n]` are pi and lambda where they are known; None: estimated, the prior counting for `strength` rounds.
    """
    require("lr", lr, above=0)
    require("server_lr", server_lr, above=0)
    require("strength", strength, above=0)
    require("up", np.ones(1) if up is None else up, above=0, most=1)
    require("memory", np.zeros(1) if memory is None else memory, least=-1, most=1)
    if asks:
        require_whole(net, "this system asks for the loss of the server's whole model")
    learn = displacement(local_sgd(task, optax.sgd(lr), steps=None if epochs else steps, epochs=epochs, batch=batch))
    gradient = local_gradient(task)
    exact = net._replace(codec=PLAIN, rule=rules.mean, attack=None, collective=None, noise=None)

    def loss(key, data, i, x, *, steps=None):
        _, log = gradient(key, data, i, x, steps=steps)  # of which nothing but the loss is computed
        return log["loss"][None], {"steps": 0 * log["steps"], "value": log["loss"]}

    def init(key, env, x):
        n = n_nodes(env)
        known = {"loss": jnp.zeros(n), "asked": jnp.bool_(False)} if asks else {}
        return State({"x": x, "seen": nothing_seen(n), "q": jnp.zeros(n)} | known, (), net.init(env, x))

    def round(key, env, s):
        c, n, x = env.cohort, n_nodes(env), s.shared["x"]
        there = jnp.zeros(n, bool).at[c.ids].set(c.weight > 0)
        new: dict[str, Any] = {"seen": look(s.shared["seen"], there)}
        share, kept = chain_seen(new["seen"], c.ids.shape[0] / n, 0.0, strength)
        share, kept = share if up is None else jnp.asarray(up), kept if memory is None else jnp.asarray(memory)
        known, cost = None, {}
        if asks:
            before, first = s.shared["loss"], ~s.shared["asked"]
            said = exact.collect(stream(key, "losses"), env, exact.init(env, before[:1]), loss, x)
            value, cost = said.each["value"], said.log
            mean = jnp.where(c.weight > 0, value, 0.0).sum() / jnp.maximum(count(c.weight > 0), 1)
            known = jnp.where(first & said.present, mean, before)
            known = known.at[c.ids].set(jnp.where(c.weight > 0, value, known[c.ids]))
            new |= {"loss": known, "asked": ~first | said.present}
        q = new["q"] = allocate(shares(env), share, kept, known, there)
        weight = jnp.where(c.weight > 0, q[c.ids], 0)
        counted = without(c._replace(weight=weight), "total")
        counted = env._replace(cohort=counted._replace(total=None if renormalised else jnp.float32(1)))
        got = net.collect(key, counted, s.mail, learn, x, crosses=(0.0 if asks else 1.0, 1.0))
        new["x"] = jnp.where(got.present, x + server_lr * got.mean, x)
        return State(new, (), got.mail), got.log | cost | {"left_out": (q == 0).sum()}

    return Algorithm(init, round, read=lambda s: s.shared["x"])


def unbiased_fedavg(task: Task, net: Network = Network(), **kw) -> Algorithm:
    """Whoever is there counts the more the less often that is; `kw` as in `allocated`."""
    return allocated(task, net, _inverse, asks=False, renormalised=False, **kw)


def adafed(task: Task, net: Network = Network(), **kw) -> Algorithm:
    """As `unbiased_fedavg`, over the sum of the weights of those there: a mean; `kw` as in `allocated`."""
    return allocated(task, net, _inverse, asks=False, renormalised=True, **kw)


def f3ast(task: Task, net: Network = Network(), *, most: int = 8, **kw) -> Algorithm:
    """As `unbiased_fedavg`, of the `most` clients of those there who count most; `kw` as in `allocated`."""
    require("most", most, least=1, whole=True)

    def allocate(alpha: Array, up: Array, memory: Array, loss: None, there: Array) -> Array:
        q = alpha / up
        first = jax.lax.top_k(jnp.where(there, q, -1.0), min(most, q.size))[1]
        return jnp.zeros_like(q).at[first].set(q[first])

    return allocated(task, net, allocate, asks=False, renormalised=False, **kw)


def cafed(task: Task, net: Network = Network(), *, kappa=1.0, tolerance=0.0, optimum: Any = None, **kw) -> Algorithm:
    """CA-Fed, for which a bias costs `kappa`; `kw` as in `allocated`. A round costs O(n^2) small operations.

    `optimum` `[n]` is the least loss of each client (None: 0).
    """
    require("kappa", kappa, least=0)
    require("tolerance", tolerance, least=0)
    require("optimum", optimum, none=True)
    return allocated(task, net, greedy(kappa, tolerance, optimum), asks=True, renormalised=False, **kw)


def _inverse(alpha: Array, up: Array, memory: Array, loss: Array | None, there: Array) -> Array:
    return alpha / up


def greedy(kappa: float | Array, tolerance: float | Array, optimum: Any = None) -> Callable:
    """The allocation of CA-Fed: the unbiased one without those who cost more than they bring."""

    def allocate(alpha: Array, up: Array, memory: Array, loss: Array, there: Array) -> Array:
        gap = loss - (0 if optimum is None else jnp.asarray(optimum, jnp.float32))

        def error(q: Array) -> Array:
            p = up * q / jnp.maximum((up * q).sum(), 1e-12)
            return (p * gap).sum() + kappa * gap.max() * (jnp.abs(alpha - p).sum() / 2) ** 2

        def consider(carry: tuple, k: Array) -> tuple[tuple, None]:
            q, least = carry
            without = q.at[k].set(0)
            e = error(without)
            better = (least - e >= tolerance) & (without.sum() > 0)
            return (jnp.where(better, without, q), jnp.where(better, e, least)), None

        order = jnp.concatenate([jnp.argsort(-jnp.abs(memory)), jnp.argsort(up)])
        q = alpha / up
        return jax.lax.scan(consider, (q, error(q)), order)[0][0]

    return allocate


def by_size(given: Any) -> Example:
    """Members count by the rule of the system alone."""
    del given
    return Example(weights="size")


SYSTEMS = {
    "cafed": System(cafed, PAPER, by_size),
    "unbiased_fedavg": System(unbiased_fedavg, PAPER, by_size),
    "adafed": System(adafed, ADAFED, by_size),
    "f3ast": System(f3ast, F3AST, by_size),
}
