"""The state of an optax optimizer in a world of rounds, nodes and seeds: its schedules and its random keys.

optax counts the steps of one run and draws from one seed. Here a state may start anew every round: then a schedule
counts rounds, or it would restart with the state. And the state of every node, and of every seed of a run, is made by
the same code: then the keys in it are told apart, or all would draw the same noise.

What counts as a schedule: a state whose only field is `count` (a rate, a weight decay, a hyper-parameter injected by
`optax.inject_hyperparams`), the annealing of `optax.add_noise`, the condition of `optax.conditionally_transform` and
`conditionally_mask`, `every_k_schedule` of `optax.MultiSteps`, and `b3` and `alpha` of `optax.contrib.ademamix`.
Counts of bias correction are none. Optimizers of `optax.contrib` that use one count for both (prodigy, dadapt_adamw,
momo, momo_adam, madgrad, schedule_free, simplified_ademamix) count the steps since their state began, unless the rate
is injected: `optax.inject_hyperparams(optax.contrib.prodigy)(learning_rate=schedule)`. A stateful schedule, which has a
state of its own, is given `t` as any hook is.

>>> import optax, jaxfl as fl
>>> from jaxfl.algorithms.server.fedopt import fedopt
>>> digits, model = fl.data.digits(), fl.logistic_regression(64, 10)
>>> falling = optax.cosine_decay_schedule(0.3, 20)  # the rate of round t is falling(t)
>>> local = optax.chain(optax.add_noise(0.01, 0.55, key=0), optax.sgd(falling))
>>> world = fl.scenario(fl.partition.iid(digits, 4))
>>> fl.run(fedopt(model, local=local, steps=2, batch=8), world, model.init, 2).history["loss"].round(1).tolist()
[nan, 2.3, 2.1]
"""

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Array, Tree, node_keys, stream
from jaxfl.errors import InputError

_COUNTS = {
    optax.AddNoiseState: "count",
    optax.ConditionallyTransformState: "step",
    optax.ConditionallyMaskState: "step",
    optax.MultiStepsState: "gradient_step",
    optax.contrib.ScaleByAdemamixState: "count_m2",
}


def rate(value: float | Array | Callable, t: Array | int) -> float | Array:
    """A rate in round `t`, where it is used outside an optax optimizer: a number, or an optax schedule of the round."""
    return value(t) if callable(value) else value


def require_state(tx: optax.GradientTransformation) -> None:
    """Raise `InputError` for an optimizer that has no state to keep from round to round."""
    if not jax.tree.leaves(jax.eval_shape(tx.init, jnp.zeros(1))):
        raise InputError("keep_state is True, but this optimizer has no state to keep.")


def begin(tx: optax.GradientTransformation, params: Tree, key: Array, t: Array | int | None = None) -> Tree:
    """The first state of an optimizer, with keys of its own and, where a round `t` is given, its schedules at `t`.

    Equal keys give equal draws. A key or seed that the optimizer was made with still makes a difference.
    """
    state = _rekeyed(tx.init(params), key)
    return state if t is None else pinned(state, t)


def begin_nodes(tx: optax.GradientTransformation, params: Tree, n: int, key: Array) -> Tree:
    """The first states of `n` nodes' optimizers at the same `params`, leaves `[n, ...]`, each with keys of its own."""
    return jax.vmap(lambda key: begin(tx, params, key))(node_keys(stream(key, "nodes"), jnp.arange(n)))


def pinned(state: Tree, t: Array | int) -> Tree:
    """A state whose schedules are at `t`; as it was where it has none."""
    name = "count" if getattr(state, "_fields", ()) == ("count",) else _COUNTS.get(type(state))
    if name is not None:
        state = state._replace(**{name: jnp.full_like(getattr(state, name), t)})
    parts, structure = jax.tree.flatten(state, is_leaf=lambda part: part is not state)
    if jax.tree_util.treedef_is_leaf(structure):
        return state
    return structure.unflatten([pinned(part, t) for part in parts])


def _rekeyed(state: Tree, key: Array) -> Tree:
    """A state in which every random key is another one, made of itself, its place in the state and `key`."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)

    def new(position: int, path: tuple, a: Array) -> Array:
        if not _is_key(path, a, key):
            return a
        typed = jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
        mine = jax.random.fold_in(stream(key, "optimizer"), position)
        made = _mixed(mine, jax.random.key_data(a) if typed else a)
        return made if typed else jax.random.key_data(made)

    return structure.unflatten([new(position, path, a) for position, (path, a) in enumerate(leaves)])


def _is_key(path: tuple, a: Array, key: Array) -> bool:
    """Whether a leaf is a typed key, or the bare words of one in a field called so."""
    dtype = getattr(a, "dtype", None)
    if dtype is None or jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return dtype is not None
    words = jax.eval_shape(jax.random.key_data, key)
    name = jax.tree_util.keystr(path[-1:], simple=True)
    return dtype == words.dtype and a.shape == words.shape and ("key" in name or "rng" in name)


def _mixed(key: Array, words: Array) -> Array:
    """`key` with the words `[..., w]` of another folded in, `[...]`."""
    if words.ndim > 1:
        return jax.vmap(_mixed)(jax.random.split(key, len(words)), words)
    return reduce(jax.random.fold_in, list(words), key)
