"""Local work: what ONE node learns, lifted to the members of a cohort or to the nodes of given ids.

The round's bounds reach every node by themselves: who may run fewer steps (`Cohort.steps`), who is down, what round it
is. What the work cost is in the log.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxfl.core import ALL_STEPS, Array, Cohort, Env, Log, Tree, n_nodes, node_keys, stream
from jaxfl.errors import InputError
from jaxfl.mapping.nodes import map_memory, map_nodes
from jaxfl.mapping.sums import count

Who = Cohort | Array


class Trained(NamedTuple):
    """What local work gave."""

    rows: Tree  # [c, d], or with a weight the sum [d]
    log: Log  # `loss`, mean of those present who ran a step; `gradients`, sum; `seconds`, of the slowest, if timed
    memory: dict  # what nodes keep now, by name: leaves [n, ...] of all nodes for a cohort, [c, ...] for ids
    each: dict  # what each logged, leaves [c, ...]: `loss`, `steps`, `gradients`, ...


def at(who: Who, learn: Callable, weight: Array | None = None) -> Callable:
    """Lift `learn(key, data, i, x, *, steps, t, **named) -> (row, log)` of ONE node to a cohort or ids `[c]`.

    The lifted function is `(key, env, x, shared=None, memory=None, **own) -> Trained`. `x` is one row for all (`[d]`)
    or one row a node (`[c, d]`). The dict `shared` holds named arguments that all nodes see alike, `own` those with a
    leading axis `[c]`, each an array or a tree; what is None is left out. With a `weight` `[c]` only the nodes' sum by
    weight is made, `[d]` (`mapping.map_nodes`).

    The dict `memory` holds what nodes keep from round to round, leaves `[n, ...]` of all nodes for a cohort and
    `[c, ...]` for ids: `learn` takes a member's row by its name and logs the new one under the same name. The absent
    (`cohort.weight` 0) and who runs no step keep what they had.

    `learn` is given the round `t` if it takes it, and `steps`, the most that this node may run, where the world bounds
    them; a bound among `own` holds as well. It must log the `steps` it ran.

    Raises:
        InputError: while tracing, a world that bounds steps and a `learn` that takes none, or logs none.
    """
    lifted = lift(who, learn, weight)

    def train(key: Array, env: Env, x: Array, shared: dict | None = None, memory: dict | None = None, **own: Tree):
        rows, new, each = lifted(key, env, x, shared, memory, **own)
        return Trained(rows, timed(env, who, each), new, each)

    return train


def lift(who: Who, learn: Callable, weight: Array | None = None) -> Callable:
    """`at` without the log: `(rows, memory, each)`, for verbs that count time themselves."""
    c, ids = (who, who.ids) if isinstance(who, Cohort) else (None, who)
    knows = takes(learn)
    says = "learn takes no `steps`, but this world bounds the steps of nodes (stragglers, churn)."
    learn = must_take(learn, "steps", says)

    def lifted(key: Array, env: Env, x: Array, shared: dict | None = None, memory: dict | None = None, **own: Tree):
        keys = node_keys(stream(key, "learn"), ids)
        common = dict(shared or {}) | ({"t": env.t} if knows("t") else {})
        bound = _bound(who, env, own.pop("steps", None))
        own = {name: v for name, v in {**own, "steps": bound}.items() if v is not None}
        stays = c is None and bound is not None
        (common if x.ndim == 1 else own)["x"] = x

        def one(shared, row, mine):
            (data, common), (key, i, own) = shared, row
            args = common | own | mine
            y, log = learn(key, data, i, args.pop("x"), **args)
            if "steps" not in log:
                raise InputError(f"learn logs {', '.join(log) or 'nothing'}, but must log `steps`: how many it ran.")
            forgotten = [name for name in mine if name not in log]
            if forgotten:
                raise InputError(f"learn does not log {', '.join(forgotten)}, but must: it is what a node keeps now.")
            new = {name: log[name] for name in mine}
            if stays:
                new = jax.tree.map(lambda a, b: jnp.where(args["steps"] > 0, a, b), new, mine)
            return (y, {name: v for name, v in log.items() if name not in mine}), new

        rows, how = (keys, ids, own), {"bytes_each": 4 * x.shape[-1], "weight": weight}
        if c is None or not memory:
            (y, each), new = map_nodes(one, (env.data, common), rows, memory=memory or {}, **how)
        else:
            working = c.weight > 0 if bound is None else (c.weight > 0) & (bound > 0)
            (y, each), new = map_memory(c, one, (env.data, common), rows, memory, present=working, **how)
        return y, new or {}, each

    return lifted


def reported(who: Who, each: dict) -> Log:
    """The log of a round from what its nodes logged `[c]`: `loss` and `gradients`, as far as they did.

    The loss is the mean of those present who ran a step, NaN where nobody did. Who was asked but came too late has
    worked all the same: its gradients count.
    """
    log, present = Log(), _present(who, each)
    if "loss" in each:
        ran = present & (each["steps"] > 0)
        many = count(ran)
        mean = jnp.where(ran, each["loss"], 0.0).sum() / jnp.maximum(many, 1)
        log["loss"] = jnp.where(many > 0, mean, jnp.nan)
    if "gradients" in each:
        selected = who.selected if isinstance(who, Cohort) else None
        log["gradients"] = jnp.where(present if selected is None else selected, each["gradients"], 0.0).sum()
    return log


def timed(env: Env, who: Who, each: dict) -> Log:
    """`reported`, and over links the `seconds` of the slowest who is present."""
    log = reported(who, each)
    if env.links is not None:
        ids = who.ids if isinstance(who, Cohort) else who
        log["seconds"] = slowest(each["steps"] * env.links.step[ids], _present(who, each))
    return log


def slowest(seconds: Array, present: Array) -> Array:
    """The longest of the `seconds` of those `present`; 0 where nobody is."""
    return jnp.max(jnp.where(present, seconds, 0.0), initial=0.0)


def _present(who: Who, each: dict) -> Array:
    return who.weight > 0 if isinstance(who, Cohort) else jnp.ones(each["steps"].shape, bool)


def _bound(who: Who, env: Env, own: Array | None) -> Array | None:
    """The most steps `[c]` each may run, by its author, the cohort and who is up; None: all of them."""
    ids = who.ids if isinstance(who, Cohort) else who
    c = who if isinstance(who, Cohort) else env.cohort
    bounds = [] if own is None else [own]
    if c is not None and c.steps is not None:
        if isinstance(who, Cohort):
            bounds.append(c.steps)
        elif c.strata.count == n_nodes(env):  # everyone, in order
            bounds.append(c.steps[ids])
        else:
            bounds.append(jnp.full(n_nodes(env), ALL_STEPS).at[c.ids].set(c.steps)[ids])
    if env.alive is not None and not isinstance(who, Cohort):
        bounds.append(jnp.where(env.alive[ids], ALL_STEPS, 0))
    if not bounds:
        return None
    return jnp.broadcast_to(jnp.min(jnp.stack(jnp.broadcast_arrays(*bounds)), 0), ids.shape)


def takes(learn: Callable) -> Callable[[str], bool]:
    """Whether `learn` takes an argument of a name."""
    parameters = inspect.signature(learn).parameters
    more, names = any(p.kind is p.VAR_KEYWORD for p in parameters.values()), frozenset(parameters)
    return lambda name: more or name in names


def must_take(learn: Callable, name: str, says: str) -> Callable:
    """`learn`; if it is given an argument `name` that it, or what it hands its arguments on to, does not take, `says`.

    Raises:
        InputError: when called, with the sentence `says`.
    """

    @functools.wraps(learn)
    def called(*arguments: Any, **named: Any) -> tuple:
        try:
            return learn(*arguments, **named)
        except TypeError as error:
            if f"unexpected keyword argument '{name}'" not in str(error):
                raise
            raise InputError(says) from error

    return called
