"""FAVANO and QuAFL: the server looks in on clients that never stop, and takes whatever progress they have.

Every client i trains all the time, up to K local steps from w_i, the model it was left with. At the end of a round the
server contacts s clients S, who have done E_i steps since their last contact and are at y_i; it has x, and

    FAVANO: x' <- (x + sum_S (w_i + (y_i - w_i) / a_i)) / (s + 1),    w_i <- x'
    QuAFL:  x' <- (x + sum_S y_i) / (s + 1),                          w_i <- (x + s y_i) / (s + 1)

With a_i = E[E_i] (`deterministic`), or P(E_i > 0) E_i, and nothing where E_i is 0 (`stochastic`), a client's expected
progress is a mean gradient however fast it is; with a_i = 1 (`none`) fast clients draw x towards their own optimum.
Clients that count unlike p_i take part as s sum_S p_i (...) / sum_S p_i. The rounds are `world.slices.slices`: how many
steps a member has done is `Cohort.steps`.

The expectations are estimated for each client by its means over the contacts up to now, this one among them, as it
knows nothing else of its speed. Deviation of QuAFL: messages are coded as `net` says, relative to the server's model,
and not by a lattice. A client that is down when it is contacted loses the work since its last contact.
"""

import jax.numpy as jnp
import numpy as np
import optax

from jaxfl.core import Algorithm, Array, Process, State, ages, n_nodes, tile
from jaxfl.errors import InputError, nearest, require
from jaxfl.exchange.network import Network
from jaxfl.learn.local import local_sgd
from jaxfl.learn.task import Task
from jaxfl.mapping.nodes import put_rows, rows_of
from jaxfl.paper import Example, Paper, System, Workers
from jaxfl.world.cohort import uniform
from jaxfl.world.durations import settled
from jaxfl.world.slices import slices

PAPER = Paper(
    "FAVANO: Federated Averaging with Asynchronous Nodes",
    "Leconte, Nguyen, Moulines",
    "2023",
    "https://arxiv.org/abs/2305.16099",
    number="051",
)
QUAFL = Paper(
    "Communication-Efficient Federated Learning With Data and Client Heterogeneity",
    "Zakerinia, Talaei, Nadiradze, Alistarh",
    "AISTATS 2024",
    "https://arxiv.org/abs/2206.10032",
)
REWEIGHT = ("stochastic", "deterministic", "none")


def favano(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    reweight: str = "deterministic",
    steps: int = 10,
    batch: int | None = 16,
) -> Algorithm:
    """FAVANO with client rate `lr`, at most `steps` local steps between contacts. Memory: a model a client.

    `reweight` is one of stochastic, deterministic and none; `batch` None is the whole shard.

    Raises:
        InputError: another reweighting, or a network of sub-models.
    """
    if reweight not in REWEIGHT:
        raise InputError(f"reweight is {reweight!r}: {nearest(str(reweight), REWEIGHT)}")
    return _visited(task, net, lr, reweight, False, steps, batch)


def quafl(
    task: Task, net: Network = Network(), *, lr: float | Array = 0.1, steps: int = 10, batch: int | None = 16
) -> Algorithm:
    """QuAFL with client rate `lr`; as `favano` without reweighting, but clients average what they are handed."""
    return _visited(task, net, lr, "none", True, steps, batch)


def _visited(task: Task, net: Network, lr, reweight: str, averages: bool, steps: int, batch: int | None) -> Algorithm:
    """Both; `averages`: a client mixes the server's model into its own, and does not take it over."""
    require("lr", lr, above=0)
    if net.submodel is not None:
        raise InputError("net.submodel is set, but a client keeps a whole model from contact to contact.")
    train = local_sgd(task, optax.sgd(lr), steps=steps, batch=batch)

    def learn(key, data, i, x, *, gain, current, **arguments):
        y, log = train(key, data, i, x, **arguments)
        return gain[i] * (y - x) + (x - current), log | ({"model": y} if averages else {})

    def init(key, env, x):
        n = n_nodes(env)
        zero = jnp.zeros(n, jnp.int32)
        nodes = {"model": tile(x, n)}
        nodes |= {} if reweight == "none" else {"contacts": zero, "worked": zero, "steps": zero}
        return State(x, nodes, net.init(env, x))

    def round(key, env, s):
        x, c = s.shared, env.cohort
        here, old = c.weight > 0, rows_of(c, s.nodes)
        done = jnp.full(c.ids.shape, steps) if c.steps is None else jnp.minimum(c.steps, steps)
        new, gain = dict(old), jnp.ones(c.ids.shape)
        if reweight != "none":
            seen = {"contacts": jnp.ones_like(done), "worked": (done > 0).astype(jnp.int32), "steps": done}
            new |= {name: old[name] + jnp.where(here, more, 0) for name, more in seen.items()}
            each = done if reweight == "stochastic" else 1
            gain = _over(new["contacts"], new["worked" if reweight == "stochastic" else "steps"] * each)
        known = {"gain": jnp.zeros(n_nodes(env)).at[c.ids].set(gain), "current": x}
        got = net.collect(key, env, s.mail, learn, old["model"], known=known)
        m = here.sum()
        x_new = x + m / (m + 1) * got.mean
        left = (x + m * got.each["model"]) / (m + 1) if averages else x_new
        new["model"] = jnp.where(here[:, None], left, old["model"])
        age = jnp.where(here, ages(c), 0).sum() / jnp.maximum(m, 1)
        return State(x_new, put_rows(c, s.nodes, new), got.mail), got.log | {"age": age}

    return Algorithm(init, round, read=lambda s: s.shared)


def _over(a: Array, b: Array) -> Array:
    """`a / b`, and 0 where `b` is 0."""
    return jnp.where(b > 0, a / jnp.maximum(b, 1), 0.0)


def sliced(jobs: Workers) -> Process:
    """Slices of a second; a client whose job would take T seconds does 1 / T of its steps in each, in the mean.

    T is drawn once a client; of those who do a job in less than a second all are alike. `goal` clients are contacted.
    """
    steps, own = int(np.max(jobs.steps)), settled(jobs.seconds, jobs.nodes).arrays["seconds"]
    rate = 1 / np.maximum(np.asarray(own, np.float64), 1.0)
    return slices(uniform(jobs.nodes, jobs.goal), rate, steps, cap=steps)


SYSTEMS = {
    "favano": System(favano, PAPER, lambda given: Example(clock=sliced)),
    "quafl": System(quafl, QUAFL, lambda given: Example(clock=sliced)),
}
