"""Unlike architectures side by side: one stacked group of nodes for each.

A group is a task and the ids of the nodes that have its architecture. What differs in shape between groups (rows,
optimizer states) travels as a tuple with one tree a group, leaves `[n_g, ...]` in the order of its ids; what leaves the
groups (losses, predictions, scores) is put back into the order of the nodes, leaves `[n, ...]`. Ids are static, so a
group costs what a world of its size would cost, and random numbers follow the node, not its group.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Env, Tree, node_keys, tile
from jaxfl.errors import InputError
from jaxfl.learn.task import Task
from jaxfl.mapping.at import Trained, lift, timed
from jaxfl.mapping.nodes import map_nodes


class Group(NamedTuple):
    """The nodes `ids` that learn `task`: one architecture."""

    task: Task
    ids: tuple[int, ...]


Groups = tuple[Group, ...]


def require_groups(groups: Any, n: int | None = None) -> None:
    """Raise `InputError` unless every node from 0 on (up to `n`, where given) is in exactly one group."""
    if not isinstance(groups, tuple) or not groups or not all(isinstance(g, Group) and len(g.ids) for g in groups):
        raise InputError("groups must be a tuple of one or more Group(task, ids), each with at least one node.")
    ids = sorted(i for g in groups for i in g.ids)
    want = len(ids) if n is None else n
    if ids != list(range(want)):
        raise InputError(f"groups hold the nodes {ids}, but every node from 0 to {want - 1} must be in one group.")


def in_node_order(groups: Groups, parts: Sequence[Tree]) -> Tree:
    """Leaves `[n, ...]` by node from one tree a group, leaves `[n_g, ...]`, all of one structure."""
    position = np.argsort(np.concatenate([g.ids for g in groups]))
    straight = np.array_equal(position, np.arange(position.size))

    def join(*leaves: Array) -> Array:
        whole = leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)
        return whole if straight else whole[position]

    return jax.tree.map(join, *parts)


def by_group(groups: Groups, tree: Tree) -> tuple[Tree, ...]:
    """The nodes of each group, leaves `[n_g, ...]`, out of leaves `[n, ...]`: the inverse of `in_node_order`."""
    return tuple(jax.tree.map(lambda a, g=g: a[np.asarray(g.ids)], tree) for g in groups)


def draw(groups: Groups) -> Callable[[Array], Tree]:
    """`(key) -> rows`: a first model of its own for every node, `[n_g, d_g]` a group; hand it to `run` as `model`."""
    # a loop, as XLA takes several times as long to compile the same draws of one more axis
    return lambda key: tuple(jax.lax.map(g.task.init, node_keys(key, jnp.asarray(g.ids))) for g in groups)


def first_rows(groups: Groups, x: Any) -> tuple[Array, ...]:
    """Rows `[n_g, d_g]` from one model `[d_g]` a group that all its nodes start from, or from such rows.

    Raises:
        InputError: not one model a group, or of another shape.
    """
    given = x if isinstance(x, tuple | list) else [x]
    found = [jnp.shape(a) for a in given]
    shapes = [((g.task.dim,), (len(g.ids), g.task.dim)) for g in groups]
    if len(found) != len(groups) or any(a not in b for a, b in zip(found, shapes, strict=True)):
        raise InputError(f"model has the shapes {found}, but must have, group by group, one of {shapes}.")
    return tuple(
        tile(a, len(g.ids)) if jnp.ndim(a) == 1 else jnp.asarray(a) for g, a in zip(groups, given, strict=True)
    )


def map_groups(
    groups: Groups, f: Callable, shared: Tree, stacked: Sequence[Tree], *, bytes_each: int = 0
) -> tuple[Tree, ...]:
    """`f(task, shared, row)` at every node, results stacked by group, leaves `[n_g, ...]`.

    `stacked` has one tree a group; `bytes_each` as in `mapping.map_nodes`.
    """

    def one(group: Group, rows: Tree) -> Tree:
        return map_nodes(lambda s, row: f(group.task, s, row), shared, rows, bytes_each=bytes_each)

    return tuple(one(g, rows) for g, rows in zip(groups, stacked, strict=True))


def at_groups(groups: Groups, make: Callable[[Task], Callable]) -> Callable:
    """`mapping.at` over groups: `make(task)` is the `learn` of ONE node with that architecture.

    The lifted function is `(key, env, rows, shared=None, memory=None, **own) -> Trained`. `rows`, each of `own` and of
    `memory` are tuples with one array or tree a group, leaves `[n_g, ...]`; `shared` is seen alike by all nodes of all
    groups. Of the result, `rows` and `memory` are such tuples too; what each node logged is in the order of the nodes.
    """
    lifted = [lift(jnp.asarray(g.ids), make(g.task)) for g in groups]

    def train(key: Array, env: Env, rows: Sequence[Array], shared: dict | None = None, memory: Any = None, **own: Any):
        one = lambda given, i: {name: v[i] for name, v in (given or {}).items() if v is not None}
        out = [f(key, env, rows[i], shared, one(memory, i), **one(own, i)) for i, f in enumerate(lifted)]
        each = in_node_order(groups, [each for *_, each in out])
        new = {name: tuple(mine[name] for _, mine, _ in out) for name in memory or {}}
        log = timed(env, jnp.arange(each["steps"].shape[0]), each)
        return Trained(tuple(x for x, *_ in out), log, new, each)

    return train
