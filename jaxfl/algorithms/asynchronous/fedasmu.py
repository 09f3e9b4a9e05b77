"""FedASMU: what a late model counts is learned by client, and clients pull the newest model while they train.

Client i reads version o, runs the first `l` of L slots of its local steps, and pulls the model w_g, version g, that the
server has at that moment. If it is newer, g > o,

    w_i <- (1 - beta) w_i + beta w_g,   beta = mu phi / (1 + mu phi),
    phi = gamma_i / sqrt(g) (1 - nu_i / sqrt(g - o + 1))

and it runs the other slots. When it answers, the server has version t and mixes, at once,

    x <- (1 - alpha) x + alpha w_i,   alpha = mu xi / (1 + mu xi),   xi = lambda_i / (sqrt(t) s^(sigma_i / 2)) + iota_i

with s = t - o + 1. All five controls are the client's own, at least 0, and follow its loss F_i on one mini-batch:
lambda, sigma, iota that at the new x, gamma and nu that at the merged w_i, each by its gradient through alpha or beta.
The slot l is found by Q-learning: from job to job it is one earlier, the same, or one later, epsilon-greedy, and the
reward is the loss before the merge minus that after it.

Two events of a job are one piece of data: a job lasts from when its version was made until it answers, so that the time
of slot l, and who had made a version by then, follow from the seconds of the last rounds. That is exact where every
answer makes a version (`world.clock.buffered` with `goal = 1`); where several make one, a job counts as begun when the
version it read was made, and the server mixes in their weighted mean, `x + sum p_i alpha_i (w_i - x) / sum p_i`.

Deviations: versions are counted from 1. A slot begins in the middle, where the paper's server has an LSTM that proposes
the first. Clients are at work all the time, not triggered by periods. The client finds out itself what the new x will
be: for that it downloads x once more (`adapt`). An answer older than `longest` versions is dropped.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Algorithm, Array, Env, Shards, State, ages, n_nodes, node_keys, stream, tile
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.exchange.slots import require_whole
from jaxfl.exchange.staleness import Staleness, weighed
from jaxfl.exchange.versions import push, recall, versions
from jaxfl.learn.local import batch_loss, local_sgd, one_batch
from jaxfl.learn.task import Task
from jaxfl.mapping.nodes import rows_of
from jaxfl.paper import Paper, System

PAPER = Paper(
    "FedASMU: Efficient Asynchronous Federated Learning with Dynamic Staleness-aware Model Update",
    "Liu, Jia, Che, Huo, Ren, Peng, Dai, Dou",
    "AAAI 2024",
    "https://arxiv.org/abs/2312.05770",
    number="030",
)
Q_RATE, DISCOUNT = 0.1, 0.9
GRAIN = 1e-5  # of a job's time: versions made so shortly after the pull count as made before it


def fedasmu(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    merge: bool = True,
    adapt: bool = True,
    controls: float | Array = 1e-3,
    lam: float | Array = 1.0,
    sigma: float | Array = 1.0,
    iota: float | Array = 0.05,
    gamma: float | Array = 1.0,
    nu: float | Array = 0.1,
    mu: float | Array = 1.0,
    slots: int = 4,
    explore: float | Array = 0.1,
    longest: int = 32,
    steps: int = 8,
    batch: int | None = 16,
) -> Algorithm:
    """FedASMU with client rate `lr`. Memory: `longest + 1` models, and a few numbers a node.

    Logs the mean `age` of those who answered, how many were `dropped`, the mean `alpha` and `beta`, and the mean
    `pulled`, how many versions newer than the one read the pulled one was.

    Args:
        task: what is learned.
        net: how messages travel.
        lr: rate of local SGD.
        merge: clients pull; False is the server's part alone.
        adapt: the controls, and the slot, are learned; False keeps them.
        controls: rate of the controls.
        lam: lambda at first.
        sigma: sigma at first.
        iota: iota at first.
        gamma: gamma at first.
        nu: nu at first.
        mu: of alpha and beta.
        slots: L, parts of a job between which it may pull; at least 2.
        explore: epsilon.
        longest: age in versions above which an answer is dropped.
        steps: local steps of a job; `l steps // slots` of them come before a pull in slot l.
        batch: samples of a step; None is the whole shard.

    Raises:
        InputError: a number out of range; a personal part, or sub-models.
    """
    require("lr", lr, above=0)
    require("controls", controls, least=0)
    for name, value in (("lam", lam), ("sigma", sigma), ("iota", iota), ("gamma", gamma), ("nu", nu), ("mu", mu)):
        require(name, value, least=0)
    require("explore", explore, least=0, most=1)
    require("slots", slots, least=2, whole=True)
    require("longest", longest, least=0, whole=True)
    require("steps", steps, least=1, whole=True)
    require_whole(net, "here whole models are mixed")
    train, learns = local_sgd(task, optax.sgd(lr), steps=steps, batch=batch), merge and adapt
    share = lambda xi: jnp.clip(mu * xi / (1 + mu * xi), 0, 1)

    def alpha_of(control: Array, t: Array, age: Array) -> Array:
        return share(control[0] / (jnp.sqrt(t) * (1.0 + age) ** (control[1] / 2)) + control[2])

    def beta_of(control: Array, t: Array, age: Array, newer: Array) -> Array:
        return share(jnp.maximum(control[3] / jnp.sqrt(t - age + newer) * (1 - control[4] / jnp.sqrt(1.0 + newer)), 0))

    def member(
        key, data, i, x, *, t, age, control, now, slot: Any = None, newer: Any = None, fresh: Any = None,
        q: Any = None, at: Any = None, move: Any = None, steps: Any = None,
    ):  # fmt: skip
        t, most = jnp.float32(t + 1), jnp.int32(count if steps is None else steps)
        one, two, look = jax.random.split(key, 3)
        loss, kept, log = _loss(task, look, data, i, batch), {}, {}
        if not merge:
            y, log = train(one, data, i, x, steps=most)
            slope = 0 * control
        else:
            first = jnp.minimum(slot * count // slots, most)
            y, begun = train(one, data, i, x, steps=first)
            merged = lambda control: y + jnp.where(newer > 0, beta_of(control, t, age, newer), 0) * (fresh - y)
            met, back = jax.vjp(merged, control)
            slope = 0 * control
            if adapt:
                after, g = jax.value_and_grad(loss)(met)
                (slope,), gain = back(g), loss(y) - after
                s, new, a = move
                learned = q.at[s, a].add(Q_RATE * (gain + DISCOUNT * q[new].max() - q[s, a]))
                kept = {"q": jnp.where(newer > 0, learned, q), "at": slot}
            y, rest = train(two, data, i, met, steps=most - first)
            log = {name: begun[name] + rest[name] for name in ("steps", "gradients")}
            total = begun["loss"] * begun["steps"] + rest["loss"] * rest["steps"]
            log["loss"] = total / jnp.maximum(log["steps"], 1)
        if adapt:
            mixed, back = jax.vjp(lambda control: now + alpha_of(control, t, age) * (y - now), control)
            slope += back(jax.grad(loss)(mixed))[0]
            log |= {"gradients": log["gradients"] + (2 if merge else 1)}
            control = jnp.maximum(control - controls * slope, 0)
        return y - now, log | kept | {"control": control}

    count = steps

    def init(key: Array, env: Env, x: Array) -> State:
        n = n_nodes(env)
        first = jnp.stack([jnp.asarray(v, jnp.float32) for v in (lam, sigma, iota, gamma, nu)])
        nodes = {"control": tile(first, n)}
        nodes |= {"q": jnp.zeros((n, slots - 1, 3)), "at": jnp.full(n, slots // 2, jnp.int32)} if learns else {}
        shared = {"x": x, "past": versions(x, longest + 1), "since": jnp.zeros(longest + 1)}
        return State(shared, nodes, net.init(env, x))

    def round(key: Array, env: Env, s: State) -> tuple[State, dict]:
        x, past, c, mine = s.shared["x"], s.shared["past"], env.cohort, rows_of(env.cohort, s.nodes)
        since = s.shared["since"] + env.seconds  # how long ago each version was made, when the answers come
        t, age = jnp.float32(env.t + 1), jnp.minimum(ages(c), longest)
        alpha = jax.vmap(alpha_of, (0, None, 0))(mine["control"], t, age)
        counts, scale, log = weighed(Staleness(longest, lambda age: alpha), c)
        here = (c.weight > 0) & (ages(c) <= longest)
        mean = lambda v: jnp.where(here, v, 0).sum() / jnp.maximum(here.sum(), 1)
        log |= {"alpha": mean(alpha)}
        own: dict[str, Any] = {"age": age}
        if merge:
            slot = jnp.full(age.shape, slots // 2)
            if adapt:
                slot, own["move"] = jax.vmap(chosen)(node_keys(stream(key, "slot"), c.ids), mine["q"], mine["at"])
            pulled = _pulled(since, age, slot * count // slots / count)
            own |= {"slot": slot, "newer": age - pulled, "fresh": recall(past, pulled)}
            beta = jax.vmap(beta_of, (0, None, 0, 0))(mine["control"], t, age, age - pulled)
            log |= {"pulled": mean(age - pulled), "beta": mean(jnp.where(age > pulled, beta, 0))}
        env = env._replace(cohort=counts)
        travels, known = ({"now": x}, {}) if adapt else (None, {"now": x})
        got = net.collect(key, env, s.mail, member, recall(past, age), travels, known=known, memory=s.nodes, **own)
        x = jnp.where(got.present, x + (got.mean if scale is None else scale * got.mean), x)
        shared = {"x": x, "past": push(past, x), "since": jnp.concatenate([jnp.zeros(1), since[:-1]])}
        return State(shared, got.memory, got.mail), got.log | log

    def chosen(key: Array, q: Array, at: Array) -> tuple[Array, Array]:
        """The next slot, and its state `[3]`: where it was, where it is, by which action."""
        whether, which = jax.random.split(key)
        best = jnp.argmax(q[at - 1] + jnp.array([0.0, 1e-12, 0.0]))  # to stay, if all are alike
        a = jnp.where(jax.random.uniform(whether) < explore, jax.random.randint(which, (), 0, 3), best)
        new = jnp.clip(at + a - 1, 1, slots - 1)
        return new, jnp.stack([at - 1, new - 1, a])

    return Algorithm(init, round, read=lambda s: s.shared["x"])


def _pulled(since: Array, age: Array, share: Array) -> Array:
    """How old, in versions, the newest model is that a client has pulled after a `share` of its job, all `[c]` but it.

    `since` `[h]` are the seconds since the version of each age was made, at the end of the job.
    """
    left = (1 - share - GRAIN) * since[age]
    return jnp.minimum((since < left[:, None]).sum(1), age).astype(jnp.int32)


def _loss(task: Task, key: Array, data: Shards, i: Array, batch: int | None) -> Any:
    """The mean loss of one mini-batch of node `i`, of a row `[d]`."""
    loss = batch_loss(task, data, *one_batch(key, data, i, batch), stream(key, "loss"))
    return lambda row: loss(task.unravel(row))[0]


SYSTEMS = {"fedasmu": System(fedasmu, PAPER)}
