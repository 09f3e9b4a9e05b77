"""FedP3: a client has a few layers whole and the others pruned, trains all of it, and sends the few layers alone.

With `L_i` the layers of client i, the last layer (the head) always among them, `P(x)` the largest `keep` of every
matrix in magnitude and all biases, and `Q_i` what local pruning leaves,

    M_i = (L_i or P(x)) and Q_i,       y_i <- local training from M_i * x, moving M_i alone,        i in S
    x_j <- sum_S p_i y_ij / sum_S p_i  over those who send j, in L_i and Q_i,   and as it was where nobody does,

so that traffic shrinks, and the server never sees a whole model of a client. `p_i` is the cohort's weight.

`layers` of the model's C layers but for the head are a client's own: those from `i % C` on, or, if `drawn`, others at
random each round. In the paper's words 1 is LowerB, 2 and 3 are OPU2 and OPU3, drawn OPR2 and OPR3; C is FedAvg with
pruned downloads, 0 federates the head alone. What `keep` prunes is 0 at the client and is not trained; `Q_i` is drawn
once a round, in the paper at every step. Noise for local privacy (LDP-FedP3) is left out.
"""

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Algorithm, Array, State, n_nodes, stream, tile
from jaxfl.errors import InputError, require
from jaxfl.exchange.network import Network
from jaxfl.learn import submodels
from jaxfl.learn.local import local_sgd
from jaxfl.learn.submodels import Policy, Sub
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "FedP3: Federated Personalized and Privacy-friendly Network Pruning under Model Heterogeneity",
    "Yi, Gazagnadou, Richtarik, Lyu",
    "ICLR 2024",
    "https://arxiv.org/abs/2404.09816",
    number="106",
)
LOCAL = ("fixed", "uniform", "ordered")


def fedp3(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    layers: int | Array = 2,
    drawn: bool = False,
    keep: float | Array = 0.9,
    local: str = "fixed",
    least: float | Array | None = None,
    steps: int = 10,
    epochs: int | None = None,
    batch: int | None = 16,
    keep_models: bool = False,
) -> Algorithm:
    """FedP3 with client rate `lr`, so many `layers` of its own a client beside the head, and a share `keep` of others.

    `local` is "fixed" (no local pruning), "uniform" (independent numbers) or "ordered" (the first units, as in FjORD),
    of a share drawn from `least` (None: 0.5) to 1 each round. `epochs` replaces `steps` where given; `batch` None is
    the whole shard. With `keep_models` clients keep what they trained last, `State.nodes`, and are tested on that.

    Raises:
        InputError: numbers out of range, another `local`, `least` beside "fixed"; "ordered" with a model that is no
            chain of layers (`submodels.units`).
    """
    require("lr", lr, above=0)
    policy = layered(task, layers, drawn, keep, local, least)
    net = net.fill("fedp3", submodel=policy)
    train = local_sgd(task, optax.sgd(lr), steps=None if epochs else steps, epochs=epochs, batch=batch)

    def member(key, data, i, x, **arguments):
        arguments.pop("own", None)
        y, log = train(key, data, i, x, **arguments)
        return y - x, log | ({"own": {"model": y}} if keep_models else {})

    def init(key, env, x):
        return State({"x": x}, tile(x, n_nodes(env)) if keep_models else (), net.init(env, x))

    def round(key, env, s):
        memory = {"own": {"model": s.nodes}} if keep_models else None
        got = net.collect(key, env, s.mail, member, s.shared["x"], memory=memory)
        nodes = got.memory["own"]["model"] if keep_models else ()
        return State({"x": s.shared["x"] + got.mean}, nodes, got.mail), got.log

    read = lambda s: {"x": s.shared["x"], "personal": s.nodes} if keep_models else s.shared["x"]
    return Algorithm(init, round, read)


def layered(
    task: Task,
    count: int | Array,
    drawn: bool = False,
    keep: float | Array = 0.9,
    local: str = "fixed",
    least: float | Array | None = None,
) -> Policy:
    """The paper's sub-models: what is held and what of it is sent; arguments as in `fedp3`."""
    require("layers", count, least=0, whole=True)
    require("keep", keep, above=0, most=1)
    require("least", least, above=0, most=1, none=True)
    if local not in LOCAL:
        raise InputError(f"local is {local!r}, but must be one of {', '.join(LOCAL)}.")
    if local == "fixed" and least is not None:
        raise InputError("least is set, but local pruning is 'fixed', which prunes nothing.")
    groups = submodels.by_layer(task)
    level, inner = submodels.levels(task, groups), len(groups) - 1
    table = submodels.units(task) if local == "ordered" else None
    least = 0.5 if least is None else least

    def policy(key, i, t, x):
        place = jnp.mod(jnp.arange(inner) - i, max(inner, 1))
        if drawn:
            place = jax.random.permutation(stream(key, "layers"), inner)
        own = submodels.by_level(level, jnp.append(place < count, True))
        held = own | submodels.pruned(task, x, keep)
        if local == "fixed":
            return Sub(held, sent=own)
        share = jax.random.uniform(stream(key, "share"), minval=least, maxval=1.0)
        if table is None:
            left = jax.random.uniform(stream(key, "left"), (task.dim,)) < share
        else:
            left = submodels.window(table, share)
        return Sub(held & left, sent=own & left)

    return policy


SYSTEMS = {"fedp3": System(fedp3, PAPER)}
