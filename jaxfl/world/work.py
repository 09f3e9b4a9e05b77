"""How much a member of a cohort works, and how late: wraps a process of `world.cohort`, or a world."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxfl.core import ALL_STEPS, Array, Cohort, Now, Process, Scenario, constant, node_keys, stream
from jaxfl.errors import InputError, require
from jaxfl.mapping.canonical import canonical
from jaxfl.world.cohort import base_of, thinned
from jaxfl.world.process import process


def _share(name: str, value: Any) -> Array:
    if np.shape(value) != () or not 0 <= value <= 1:
        raise InputError(f"{name} = {value}: a number from 0 to 1 is needed.")
    return jnp.float32(value)


def straggling(members: Process, fraction: float, epochs: int, steps: int = 1, *, drop: float = 0.0) -> Process:
    """Some members of each cohort are too slow: a straggler ends after a uniform 1 to `epochs - 1` epochs.

    Of `p` members present `round((1 - fraction) * p)`, drawn uniformly, run all `epochs`; the others are stragglers.
    Section 5.2 of FedProx (Li et al., MLSys 2020, https://arxiv.org/abs/1812.06127) and its code. Who straggles and
    for how long depends on the key alone, not on `drop`, so systems that keep partial work and systems that do not
    can be compared on the same cohorts. `fraction` and `drop` are traced: other values
    (`world.arrays["cohort"] | {"drop": jnp.float32(1)}`) compile nothing.

    Args:
        members: who takes part; says nothing about steps.
        fraction: share of stragglers among the members, 0 to 1.
        epochs: epochs of a full member, at least 2.
        steps: local steps of one epoch, at least 1. Where shards are of unequal size it is that of the longest,
            `ceil(size.max() / batch)`: `local_sgd` then ends every shard at the same epoch.
        drop: 1 takes stragglers' weight away (FedAvg waits for nobody), 0 keeps it; between, the weight is scaled
            by `1 - drop`.

    Raises:
        InputError: a number out of range, or `members` already sets steps.
    """
    for name, value, least in (("epochs", epochs, 2), ("steps", steps, 1)):
        if not isinstance(value, int | np.integer) or value < least:
            raise InputError(f"{name} = {value}: a whole number of at least {least} is needed.")
    arrays = {"members": members.arrays, "fraction": _share("fraction", fraction), "drop": _share("drop", drop)}

    first, draw, _ = members

    def step(key: Array, arrays: dict, s: Any, t: Array) -> tuple[Any, Cohort]:
        s, c = draw(key, arrays["members"], s, t)
        if c.steps is not None:
            raise InputError("members sets Cohort.steps, but straggling does that: give a cohort without steps.")
        who, how_long = jax.random.split(stream(key, "stragglers"))
        present = c.weight > 0
        position = jnp.where(present, jax.random.uniform(who, c.weight.shape), 2.0)
        rank = jnp.argsort(jnp.argsort(position))  # the absent last
        slow = rank >= jnp.round((1 - arrays["fraction"]) * present.sum())
        part = jax.random.randint(how_long, c.weight.shape, 1, epochs)
        c = thinned(c, jnp.where(slow, 1 - arrays["drop"], 1))
        return s, c._replace(steps=steps * jnp.where(slow, part, epochs).astype(jnp.int32))

    return process(step, arrays, lambda key, arrays: first(key, arrays["members"]))


def dynamic_steps(speed: Any, steps: int) -> np.ndarray:
    """Local steps `[n]` in proportion to speed, the fastest `steps`: `max(1, floor(v_i / max v * steps))`.

    Dynamic Local Updates of asynchronous Local-SGD (Liu et al., 2024, https://arxiv.org/abs/2401.09135): all jobs then
    take about as long, and are about as stale. A job of node `i` lasts its steps over `v_i`.

    Args:
        speed: steps a second, positive, `[n]`.
        steps: of the fastest.

    Raises:
        InputError: a speed that is not finite and above 0, or steps below 1.
    """
    v = np.asarray(speed, np.float64)
    if v.ndim != 1 or not v.size or not np.isfinite(v).all() or v.min() <= 0:
        raise InputError(f"speed = {speed}: steps a second, finite and above 0, of each node [n] are needed.")
    require("steps", steps, least=1, whole=True)
    return np.maximum(np.floor(v / v.max() * steps * (1 + 1e-9)), 1).astype(np.int32)


def bounded(members: Process, steps: Any) -> Process:
    """Each node runs at most its own number of local steps.

    Args:
        members: who takes part, or a clock; says nothing about steps.
        steps: `[n]`, whole numbers of at least 1. Traced.

    Raises:
        InputError: other numbers, or `members` already sets steps.
    """
    most, base = np.asarray(steps), base_of(members)
    if (
        most.ndim != 1
        or most.dtype.kind not in "iu"
        or most.min(initial=1) < 1
        or (base is not None and base.shape != most.shape)
    ):
        raise InputError(f"steps = {steps}: a whole number of at least 1 for each node [n] is needed.")

    def change(key: Array, arrays: dict, c: Cohort) -> Cohort:
        del key
        if c.steps is not None:
            raise InputError("members sets Cohort.steps, but bounded does that: give a cohort without steps.")
        return c._replace(steps=arrays["steps"][c.ids])

    return wrapped(members, change, {"steps": constant(most, np.int32)})


def skipping(world: Scenario, nodes: Any, round: Any) -> Scenario:
    """The counterfactual world in which `nodes` run no local step in one `round`, and all else happens as in `world`.

    Draws, batches, graphs and the shape of its state are those of `world`, so a run may leave either for the other.
    `nodes` and `round` are traced: all counterfactuals share one program, and may be vmapped.

    Args:
        world: any scenario.
        nodes: a node id, or several `[m]`; -1 is nobody.
        round: the round, from 0.

    Raises:
        InputError: a node that the world does not have, or a negative round.
    """
    n = world.byz.shape[0]
    for name, value, least, most in (("nodes", nodes, -1, n - 1), ("round", round, 0, ALL_STEPS)):
        given = np.zeros(0) if isinstance(value, Tracer) else np.asarray(value)
        if given.size and not (least <= given.min() and given.max() <= most):
            raise InputError(f"{name} = {value}: whole numbers from {least} to {most} are needed.")
    first, draw = world.init, world.step

    def init(key: Array, arrays: dict) -> Any:
        return first(key, arrays["world"])

    def step(key: Array, arrays: dict, s: Any, t: Array) -> tuple[Any, Now]:
        s, now = draw(key, arrays["world"], s, t)
        c = now.cohort
        idle = (c.ids[:, None] == arrays["nodes"]).any(1) & (t == arrays["round"])
        steps = jnp.where(idle, 0, ALL_STEPS if c.steps is None else c.steps).astype(jnp.int32)
        return s, now._replace(cohort=c._replace(steps=steps))

    which, when = jnp.atleast_1d(constant(nodes, np.int32)), constant(round, np.int32)
    arrays = {"world": world.arrays, "nodes": which, "round": when}
    return world._replace(init=canonical(init), step=canonical(step), arrays=arrays)


def random_steps(members: Process, most: int, least: int = 1) -> Process:
    """Each member runs as many local steps as it likes: uniformly `least` to `most`, anew in every round.

    As in the experiments of Anarchic Federated Learning (Yang, Zhang, Khanduri, Liu, ICML 2022,
    https://arxiv.org/abs/2108.09875). A node draws the same in any slot. `members` may be a clock (`world.clock`),
    whose durations then do not follow the steps.

    Args:
        members: who takes part; says nothing about steps.
        most: the most steps.
        least: the fewest, at least 0: who runs none has no news.

    Raises:
        InputError: numbers that are not whole, or `most` below `least`; while tracing, `members` that set steps.
    """
    require("least", least, least=0, whole=True)
    require("most", most, least=least, whole=True)

    def change(key: Array, arrays: dict, c: Cohort) -> Cohort:
        if c.steps is not None:
            raise InputError("members sets Cohort.steps, but random_steps does that: give a cohort without steps.")
        keys = node_keys(stream(key, "random steps"), c.ids)
        low, high = arrays["least"], arrays["most"] + 1
        return c._replace(steps=jax.vmap(lambda k: jax.random.randint(k, (), low, high))(keys))

    return wrapped(members, change, {"least": constant(least, np.int32), "most": constant(most, np.int32)})


def delayed(members: Process, longest: int) -> Process:
    """Each member's work comes late: it started from the model of uniformly 0 to `longest` versions ago.

    The delays of Anarchic Federated Learning (see `random_steps`), drawn anew in every round, whatever came of a
    member's last job; before there are as many versions, of the first model. For systems that remember versions.

    Args:
        members: who takes part.
        longest: the longest delay, in versions of the server.

    Raises:
        InputError: `longest` is not a whole number of at least 0.
    """
    require("longest", longest, least=0, whole=True)

    def change(key: Array, arrays: dict, c: Cohort) -> Cohort:
        keys = node_keys(stream(key, "delays"), c.ids)
        return c._replace(age=jax.vmap(lambda k: jax.random.randint(k, (), 0, arrays["longest"] + 1))(keys))

    return wrapped(members, change, {"longest": constant(longest, np.int32)})


def wrapped(members: Process, change: Callable, arrays: dict) -> Process:
    """The process whose cohorts are `change(key, arrays, cohort)`; of a clock, with its seconds."""
    first, draw, _ = members

    def step(key: Array, arrays: dict, s: Any, t: Array) -> tuple[Any, Any]:
        s, value = draw(key, arrays["members"], s, t)
        if isinstance(value, Cohort):
            return s, change(key, arrays, value)
        return s, (change(key, arrays, value[0]), *value[1:])

    return process(step, {"members": members.arrays} | arrays, lambda key, arrays: first(key, arrays["members"]))
