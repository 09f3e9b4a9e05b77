"""FedAST: several unrelated models are trained at once on one pool of clients, each in a buffer of its own.

Task m of M has a model `x_m`, a buffer of `b_m` answers, and `R_m` requests that are always at clients, of `R` in all.
A client may have requests of several tasks, and works them off one after the other (`world.requests`). An answer is
`D = y - x_m`, y where local training from the model that the client was sent ended; when `b_m` of them are there,

    x_m <- x_m + server_lr / b_m sum D

and the buffer is empty; what is stale counts in full. Every `period R M` answers, once all tasks have made 8 versions,
requests move to the tasks whose answers vary most (`dynamic`): R_m in proportion to

    a_m = mean of |D - mean D|^2 / |mean D|^2  over the last 8 answers, averaged over the period

or to its root (`root`), in units of `R_m / b_m`, which stays as it is, a unit at least each.

Sync-ST, synchronous training of all tasks: in every round each task asks as many clients, of whom no two share one,
averages the answers of the first share `keep` of them, and the next round begins when all tasks are done.

Which requests are sent out depends on what was learned. So the clock is stepped inside the round, where the world's
cohort is not read: one version of one task a round, whose time is logged. Clients are drawn by the system, distinct
within a task and its buffer. Samples are `x` `[N, M, ...]`, `y` `[N, M, ...]`: of every task one, all of one shape.

Deviations: no task ends before the others. Of the last 8 answers the mean and the mean square are kept, weighed
exponentially, in place of the answers; a client sends `|D|^2` beside D for it. The authors' code halves a_m where their
text has its root. An answer of more than `longest` versions is taken as of that age.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfl.core import Algorithm, Array, Cohort, Env, Metric, Shards, State, frozen, n_nodes, stream
from jaxfl.errors import InputError, require
from jaxfl.exchange.network import Network
from jaxfl.exchange.slots import require_whole
from jaxfl.exchange.timing import transfer
from jaxfl.exchange.versions import push, recall, versions
from jaxfl.learn.local import local_sgd, steps_of
from jaxfl.learn.task import Task, require_task, scores
from jaxfl.paper import Example, Given, Paper, System
from jaxfl.world import requests
from jaxfl.world.cohort import everyone
from jaxfl.world.durations import Seconds, shifted_exponential
from jaxfl.world.links import to_server
from jaxfl.world.process import process

PAPER = Paper(
    "FedAST: Federated Asynchronous Simultaneous Training",
    "Askin, Sharma, Joe-Wong, Joshi",
    "UAI 2024",
    "https://arxiv.org/abs/2406.00302",
    number="117",
)
SEEN, BEFORE = 8, 8  # answers of which the variance is taken; versions of each task before requests move
TESTED, EXAMPLE = 500, 2  # test samples and tasks of the example


def fedast(
    task: Task,
    net: Network = Network(),
    *,
    tasks: int = EXAMPLE,
    lr: float | Array = 0.1,
    server_lr: float | Array = 1.0,
    sample: int = 30,
    buffer: int = 3,
    dynamic: bool = True,
    root: bool = False,
    period: float = 0.75,
    seconds: Seconds | None = None,
    work: Sequence[float] | None = None,
    longest: int = 32,
    steps: int = 10,
    epochs: int | None = None,
    batch: int | None = 16,
) -> Algorithm:
    """FedAST of `tasks` models of the shape of `task`, one row `[tasks * d]`. Memory: `longest + 1` such rows.

    A round is one version of one task. Logs the `task` it was of, its `age`, `requests` `[tasks]` and their `share`.

    Args:
        task: what each task learns.
        net: how messages travel.
        tasks: M.
        lr: rate of local SGD.
        server_lr: rate of the server.
        sample: requests of each task at first, `R = tasks * sample`.
        buffer: answers that make a version at first; 1 is FedAST without buffer.
        dynamic: requests move between tasks.
        root: by the root of the variance.
        period: answers between two moves, as a share of `R M`.
        seconds: how long a request takes; None: `shifted_exponential(0.5, 1)`. Over links, transfers and steps beside.
        work: how much longer those of each task take, None: all alike.
        longest: age from which on versions are forgotten.
        steps: local steps.
        epochs: replaces `steps` where given.
        batch: samples of a step; None is the whole shard.

    Raises:
        InputError: a bad number; fewer clients than `sample + buffer`; a personal part, or sub-models.
    """
    require("buffer", buffer, least=1, whole=True)
    require("period", period, above=0)
    require("longest", longest, least=0, whole=True)
    train = _member(task, net, tasks, lr, sample, steps, epochs, batch)
    draw = _draws(tasks, seconds, work, (steps, epochs, batch))
    require("server_lr", server_lr, above=0)
    units, room = tasks * buffer, tasks * buffer - tasks + 1
    places, d = tasks * sample, task.dim

    def asked(n: int, goals: Array) -> Array:
        return jnp.clip(goals * places // units, 1, n - goals)

    def init(key: Array, env: Env, x: Array) -> State:
        n, x = n_nodes(env), _rows(x, tasks, d)
        if n < sample + buffer:
            raise InputError(f"sample = {sample}: of {n} nodes at most {n - buffer} can be asked beside the buffer.")
        goals = jnp.full(tasks, buffer, jnp.int32)
        queue = requests.first(stream(key, "requests"), draw(env, d), n, asked(n, goals), places, room)
        zero = jnp.zeros(tasks)
        moments = {"mean": 0 * x, "square": zero, "score": zero, "seen": zero, "made": jnp.zeros(tasks, jnp.int32)}
        shared = {"x": x.ravel(), "past": jax.vmap(lambda row: versions(row, longest + 1))(x), "queue": queue}
        shared |= {"goals": goals, "answers": jnp.int32(0)} | moments
        return State(shared, (), net.init(env, jnp.zeros(d + 1)))

    def round(key: Array, env: Env, s: State) -> tuple[State, dict]:
        was, n = s.shared, n_nodes(env)
        targets = asked(n, was["goals"])
        queue, (m, ids, age, count), over, answers = requests.until_full(
            stream(key, "requests"), draw(env, d), was["queue"], targets, was["goals"]
        )
        past = jax.tree.map(lambda a: a[m], was["past"])
        here = jnp.arange(room) < count
        got = _collected(key, env, s.mail, net, train, ids, here, age, recall(past, age), m)
        delta, square = got.mean[:d], got.mean[d]
        x = _rows(was["x"], tasks, d).at[m].add(server_lr * delta)
        past = jax.tree.map(lambda a, row: a.at[m].set(row), was["past"], push(past, x[m]))

        fresh = jnp.where(was["made"][m] == 0, 1.0, jnp.minimum(count / SEEN, 1.0)) * got.present
        mean = was["mean"][m] + fresh * (delta - was["mean"][m])
        mean_square = was["square"][m] + fresh * (square - was["square"][m])
        size = mean @ mean
        a = jnp.maximum(mean_square - size, 0) / jnp.maximum(size, 1e-30)
        new = {
            "x": x.ravel(),
            "past": past,
            "queue": queue,
            "goals": was["goals"],
            "answers": was["answers"] + answers,
            "mean": was["mean"].at[m].set(mean),
            "square": was["square"].at[m].set(mean_square),
            "score": was["score"].at[m].add(a),
            "seen": was["seen"].at[m].add(1),
            "made": was["made"].at[m].add(1),
        }
        if dynamic:
            due = (new["answers"] >= period * places * tasks) & (new["made"] > BEFORE).all() & (new["seen"] > 0).all()
            new = jax.lax.cond(due, _moved, lambda new: new, new)
        ages = jnp.where(here, age, 0).sum() / jnp.maximum(count, 1)
        log = {"task": m, "age": ages, "requests": targets, "seconds": over}
        return State(new, (), got.mail), got.log | log

    def _moved(new: dict) -> dict:
        score = new["score"] / new["seen"]
        return new | {
            "goals": shares_of(jnp.sqrt(score) if root else score, units),
            "answers": jnp.int32(0),
            "score": 0 * score,
            "seen": 0 * score,
        }

    return Algorithm(init, round, read=lambda s: s.shared["x"])


def shares_of(score: Array, units: int) -> Array:
    """`units` dealt out to tasks in proportion to `score` `[M]`, one at least each: `[M]` int32, sum `units`.

    One after the other goes to the task that misses most of what is due to it.
    """
    due = units * score / jnp.maximum(score.sum(), 1e-30)
    give = lambda _, have: have.at[jnp.argmax(due - have)].add(1)
    return jax.lax.fori_loop(0, units - score.shape[0], give, jnp.ones(score.shape, jnp.int32))


def sync_st(
    task: Task,
    net: Network = Network(),
    *,
    tasks: int = EXAMPLE,
    lr: float | Array = 0.1,
    server_lr: float | Array = 1.0,
    sample: int = 30,
    keep: float = 1.0,
    seconds: Seconds | None = None,
    work: Sequence[float] | None = None,
    steps: int = 10,
    epochs: int | None = None,
    batch: int | None = 16,
) -> Algorithm:
    """Sync-ST: `sample` clients a task and round, of whom the first share `keep` count. Other arguments as in `fedast`.

    A round of jaxfl is that of one task, in turn; the time until all are done is logged with the first of them.

    Raises:
        InputError: as `fedast`, or fewer clients than all tasks ask.
    """
    require("keep", keep, above=0, most=1)
    train = _member(task, net, tasks, lr, sample, steps, epochs, batch)
    draw, d, least = _draws(tasks, seconds, work, (steps, epochs, batch)), task.dim, max(1, round(keep * sample))

    def init(key: Array, env: Env, x: Array) -> State:
        n = n_nodes(env)
        if n < tasks * sample:
            raise InputError(f"sample = {sample}: of {n} nodes {tasks} tasks can ask at most {n // tasks} each.")
        ids = jnp.zeros((tasks, sample), jnp.int32)
        shared = {"x": _rows(x, tasks, d).ravel(), "ids": ids, "here": ids > 0}
        return State(shared, (), net.init(env, jnp.zeros(d + 1)))

    def asked(key: Array, env: Env) -> tuple[Array, Array, Array]:
        who, lasts = jax.random.split(stream(key, "requests"))
        ids = jax.random.permutation(who, n_nodes(env))[: tasks * sample].reshape(tasks, sample).astype(jnp.int32)
        of = jnp.broadcast_to(jnp.arange(tasks)[:, None], ids.shape)
        keys = jax.random.split(lasts, ids.shape)
        spent = jax.vmap(jax.vmap(draw(env, d)))(keys, of, ids)
        rank = jnp.argsort(jnp.argsort(spent, 1), 1)
        return ids, rank < least, jnp.where(rank < least, spent, 0).max()

    def play(key: Array, env: Env, s: State) -> tuple[State, dict]:
        m, was = env.t % tasks, s.shared
        kept = lambda: (was["ids"], was["here"], jnp.float32(0))
        ids, here, over = jax.lax.cond(m == 0, lambda: asked(key, env), kept)
        x = _rows(was["x"], tasks, d)
        got = _collected(key, env, s.mail, net, train, ids[m], here[m], jnp.zeros(sample, jnp.int32), x[m], m)
        new = {"x": x.at[m].add(server_lr * got.mean[:d]).ravel(), "ids": ids, "here": here}
        return State(new, (), got.mail), got.log | {"task": m, "seconds": over}

    return Algorithm(init, play, read=lambda s: s.shared["x"])


def _member(
    task: Task, net: Network, tasks: int, lr: Any, sample: int, steps: int, epochs: Any, batch: Any
) -> Callable:
    """Local training of one of the tasks: what it moved, and the square of that, `[d + 1]`."""
    require_task(task)
    require("tasks", tasks, least=1, whole=True)
    require("sample", sample, least=1, whole=True)
    require("lr", lr, above=0)
    require_whole(net, "models here are of several tasks, whole and alike for all")
    train = local_sgd(task, optax.sgd(lr), steps=None if epochs else steps, epochs=epochs, batch=batch)

    def member(key: Array, data: Shards, i: Array, x: Array, *, which: Array, **more: Any) -> tuple[Array, dict]:
        if data.y.shape[1:2] != (tasks,):
            raise InputError(f"y has shape {list(data.y.shape)}, but samples of {tasks} tasks are [N, {tasks}, ...].")
        flat = lambda a: a.reshape(a.shape[0] * tasks, *a.shape[2:])  # of no features too
        order = data.order * tasks + which
        mine = dataclasses.replace(data, x=jax.tree.map(flat, data.x), y=flat(data.y), order=order)
        y, log = train(key, mine, i, x, **more)
        return jnp.append(y - x, (y - x) @ (y - x)), log

    return member


def _draws(tasks: int, seconds: Seconds | None, work: Sequence[float] | None, length: tuple) -> Callable:
    """`(env, d) -> (key, task, client) -> seconds`; `length` is `steps`, `epochs` and `batch`."""
    law = shifted_exponential(0.5, 1.0) if seconds is None else seconds
    longer = frozen(np.ones(tasks) if work is None else work, np.float32)
    if longer.shape != (tasks,) or not (np.isfinite(longer) & (longer > 0)).all():
        raise InputError(f"work is {work}, but must be a number above 0 for each of {tasks} tasks.")
    inner = law.draw

    def of(env: Env, d: int) -> Callable:
        ways = jnp.zeros(n_nodes(env))
        if env.links is not None:
            run = steps_of(env.data.size, *length)
            down, up = (jnp.float32(32 * numbers) for numbers in (d, d + 1))
            near = to_server(env.links)
            ways = transfer(near.down, near.latency, down) + transfer(near.up, near.latency, up) + run * near.step
        return lambda key, m, i: jnp.asarray(longer)[m] * inner(key, law.arrays, i) + ways[i]

    return of


def _rows(x: Array, tasks: int, d: int) -> Array:
    if x.shape != (tasks * d,):
        raise InputError(
            f"model has shape {list(x.shape)}, but one row of {tasks} models [{d}] is needed: [{tasks * d}]."
        )
    return x.reshape(tasks, d)


def _collected(key, env, mail, net, train, ids, here, age, x, m) -> Any:
    """What those `here` of a task answer; the world's time is that of the clock."""
    weight = here.astype(jnp.float32) * (1.0 if env.alive is None else env.alive[ids])
    c = Cohort(ids, weight, age, selected=here)
    return net.collect(key, env._replace(cohort=c, links=None), mail, train, x, known={"which": m})


def permuted(given: Given) -> Example:
    """The data set, and the same with its features in another order: two unrelated problems of one shape."""
    rng = np.random.default_rng(given.seed)
    size = math.prod(given.data.x.shape[1:])
    orders = [np.arange(size), *(rng.permutation(size) for _ in range(EXAMPLE - 1))]

    def both(x: Any) -> Array:
        flat = jnp.asarray(x).reshape(len(x), size)
        return jnp.stack([flat[:, order].reshape(x.shape) for order in orders], 1)

    twice = lambda y: jnp.stack([jnp.asarray(y)] * EXAMPLE, 1)
    x, y = given.dataset.tested(TESTED)
    data = dataclasses.replace(given.data, x=both(given.data.x), y=twice(given.data.y))
    return Example(
        data=data,
        model=models(given.task, EXAMPLE),
        metric=of_all(given.task, both(x), twice(y)),
        cohort=lambda members: timeless(everyone(given.nodes)),
    )


def timeless(members: Any) -> Any:
    """The process `members` in a world whose rounds take no time of their own."""
    inner = members.step

    def step(key: Array, arrays: dict, s: Any, t: Array) -> tuple:
        s, c = inner(key, arrays, s, t)
        return s, (c, jnp.float32(0))

    return process(step, members.arrays, members.init)


def models(task: Task, tasks: int) -> Callable:
    """`(key) -> [tasks * d]`, a fresh model of each task."""
    return lambda key: jax.lax.map(task.init, jax.random.split(key, tasks)).ravel()


def of_all(task: Task, x: Any, y: Array) -> Metric:
    """`test_loss` and, where there is one, `accuracy`, means over tasks, on samples `[N, M, ...]`."""
    tasks = y.shape[1]

    def measure(arrays: tuple, row: Array) -> dict:
        each = jax.vmap(lambda row, x, y: scores(task, row, x, y), (0, 1, 1))(row.reshape(tasks, -1), *arrays)
        return {("test_loss" if name == "loss" else name): value.mean() for name, value in each.items()}

    return Metric(measure, (x, y))


SYSTEMS = {"fedast": System(fedast, PAPER, permuted), "sync_st": System(sync_st, PAPER, permuted)}
