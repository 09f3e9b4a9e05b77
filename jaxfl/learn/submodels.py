"""Sub-models: which numbers of the server's model ONE client holds, trains and sends (`Network.submodel`).

Each function makes a policy `(key, i, t, x) -> Sub` of node `i` in round `t` at the model `x` `[d]`; masks never exist
for all nodes at once (but in `fixed`). A profile says how large the nodes' models are: one number, a few (node `i` has
the entry `i % len`), or one a node.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxfl.core import Array, frozen
from jaxfl.errors import InputError, require
from jaxfl.learn.layers import layers, part
from jaxfl.learn.task import Task

Profile = float | Sequence[float] | Array
Policy = Callable[[Array, Array, Array, Array], "Sub"]


class Sub(NamedTuple):
    """What one client has of a model `[d]`."""

    held: Array  # [d] bool, what it is handed and trains
    sent: Array | None = None  # [d] bool, what it sends (None: what it holds); where it holds nothing that is `fill`
    fill: Array | float = 0.0  # [d], what stands in its model where it holds nothing
    counted: Array | None = None  # [d] bool, where it counts in the mean: as unmoved (0) where it sends nothing


def of_node(profile: Profile, i: Array) -> Array:
    """The entry of a profile that node `i` has."""
    entries = jnp.atleast_1d(jnp.asarray(profile))
    return entries[i % entries.shape[0]]


class Units(NamedTuple):
    """Between which units of a chain of layers each number of a row `[d]` stands."""

    reads: np.ndarray  # the number of the unit that it reads from
    writes: np.ndarray  # the number of the unit that it belongs to
    inputs: np.ndarray  # how many units there are to read from; 0: the data, which no sub-model cuts
    outputs: np.ndarray  # how many units its layer has; 0: the last layer, which no sub-model cuts


def units(task: Task) -> Units:
    """The units of a chain of layers, each a `kernel` `[..., inputs, outputs]` and perhaps a `bias` `[outputs]`.

    Dense layers and convolutions in the order of their paths, as in `networks.MLP`, `CNN` and `LeNet`. A dense layer
    behind convolutions reads their channels at every place.

    Raises:
        InputError: a model that is no such chain.
    """
    table = Units(*np.zeros((4, task.dim), np.int32))
    found = layers(task)
    kernels = [a for a in found if a.path.rpartition("/")[2] == "kernel"]
    for a in found:
        above = a.path.rpartition("/")[0]
        j = next((j for j, k in enumerate(kernels) if k.path.rpartition("/")[0] == above), None)
        if j is None or (a is not kernels[j] and a.shape != kernels[j].shape[-1:]):
            raise InputError(f"task is no chain of layers: {a.path} {list(a.shape)} belongs to no kernel.")
        span, last = slice(a.start, a.stop), j + 1 == len(kernels)
        table.writes[span] = np.broadcast_to(np.arange(a.shape[-1]), a.shape).ravel()
        table.outputs[span] = 0 if last else a.shape[-1]
        if a is kernels[j] and j:
            before = kernels[j - 1].shape[-1]
            if a.shape[-2] % before:
                raise InputError(f"task is no chain of layers: {a.path} has {a.shape[-2]} inputs after {before} units.")
            table.reads[span] = np.broadcast_to(np.arange(a.shape[-2])[:, None] % before, a.shape).ravel()
            table.inputs[span] = before
    return Units(*map(frozen, table))


def window(table: Units, share: Array, first: Array | int = 0) -> Array:
    """Which numbers `[d]` stand between units of a window: a `share` of each layer, from unit `first` on, around it."""

    def inside(unit: np.ndarray, of: np.ndarray) -> Array:
        place = unit if isinstance(first, int) and first == 0 else jnp.mod(unit - first, np.maximum(of, 1))
        return (place < jnp.maximum(_count(share, of), 1)) | (of == 0)

    return inside(table.reads, table.inputs) & inside(table.writes, table.outputs)


def width(task: Task, profile: Profile) -> Policy:
    """The first `share` of the units of each hidden layer (HeteroFL; Diao, Ding, Tarokh; ICLR 2021)."""
    table, shares = units(task), of_shares(profile)
    return lambda key, i, t, x: Sub(window(table, of_node(shares, i)))


def ordered(task: Task, profile: Profile, grid: Sequence[float] = (0.25, 0.5, 0.75, 1.0)) -> Policy:
    """As `width`, of a share drawn each round from those of `grid` that the node can (FjORD; Horvath et al., 2021)."""
    table, shares, steps = units(task), of_shares(profile), jnp.sort(of_shares(grid, "grid"))

    def policy(key, i, t, x):
        most = of_node(shares, i)
        able = jnp.maximum((steps <= most + 1e-6).sum(), 1)
        return Sub(window(table, jnp.minimum(steps[jax.random.randint(key, (), 0, able)], most)))

    return policy


def rolling(task: Task, profile: Profile, speed: int | Array = 1) -> Policy:
    """As `width`, of a window that moves `speed` units a round, around each layer (FedRolex; Alam et al., 2022)."""
    table, shares = units(task), of_shares(profile)
    require("speed", speed, least=0, whole=True)
    return lambda key, i, t, x: Sub(window(table, of_node(shares, i), speed * t))


def random(task: Task, profile: Profile) -> Policy:
    """Each number with the probability `share`, drawn anew by each node each round."""
    shares = of_shares(profile)
    return lambda key, i, t, x: Sub(jax.random.uniform(key, (task.dim,)) < of_node(shares, i))


def magnitude(task: Task, profile: Profile) -> Policy:
    """The `share` of the numbers of the model that are largest in magnitude, `ceil(share d)` and their equals."""
    shares = of_shares(profile)
    traced = isinstance(shares, Tracer)
    kinds, kind = (shares, np.arange(len(shares))) if traced else map(frozen, np.unique(shares, return_inverse=True))

    def policy(key, i, t, x):
        least = jax.vmap(lambda share: least_of(x, share))(jnp.asarray(kinds))  # once a round: no node is asked
        return Sub(jnp.abs(x) >= least[of_node(jnp.asarray(kind), i)])

    return policy


def _count(share: float | Array, of: Any) -> Array:
    """A share of so many, rounded up."""
    return jnp.ceil(share * of - 1e-4).astype(int)


def least_of(x: Array, share: float | Array) -> Array:
    """The least magnitude among the `ceil(share d)` numbers of `x` `[d]` that are largest in magnitude.

    Floats of one sign have the order of their bits: these are found one by one, which is quicker than to sort.
    """
    bits = jnp.finfo(x.dtype).bits
    size = jax.lax.bitcast_convert_type(jnp.abs(x), f"int{bits}")
    count = _count(share, x.shape[0])

    def longer(k, least):
        more = least | (jnp.ones_like(least) << (bits - 2 - k))
        return jnp.where((size >= more).sum() >= count, more, least)

    found = jax.lax.fori_loop(0, bits - 1, longer, jnp.zeros((), size.dtype))
    return jax.lax.bitcast_convert_type(found, x.dtype)


def pruned(task: Task, x: Array, share: float | Array) -> Array:
    """What pruning leaves of a model `[d]`: the largest of every matrix, and whatever is none (biases, norms)."""
    rows = [(x[a.start : a.stop], len(a.shape) > 1) for a in layers(task)]
    return jnp.concatenate([jnp.abs(r) >= (least_of(r, share) if matrix else 0) for r, matrix in rows])


def levels(task: Task, groups: Sequence[Sequence[str]]) -> np.ndarray:
    """The number `[d]` of the first of `groups`, each some patterns of paths (`learn.layers.part`), of each number.

    Raises:
        InputError: a layer that belongs to none of them.
    """
    level = np.full(task.dim, -1)
    for j, patterns in reversed(list(enumerate(groups))):
        level[part(task, *patterns).columns] = j
    if (level < 0).any():
        missing = next(a.path for a in layers(task) if (level[a.start : a.stop] < 0).any())
        raise InputError(f"groups leaves out {missing}, but every layer must belong to a group.")
    return frozen(level)


def by_level(level: np.ndarray, values: Array) -> Array:
    """`values[level]` `[d]`, written run by run, as levels are long runs: a gather would take longer than training."""
    ends = np.append(np.flatnonzero(np.diff(level)) + 1, len(level))
    runs = zip(level[ends - 1], np.diff(ends, prepend=0), strict=True)
    return jnp.concatenate([jnp.broadcast_to(values[j], (count,)) for j, count in runs])


def by_layer(task: Task) -> list[tuple[str]]:
    """A group (`levels`) a layer, a kernel with its bias, in the order of the row."""
    above = dict.fromkeys(a.path.rpartition("/")[0] for a in layers(task))
    return [(f"{name}/*" if name else "*",) for name in above]


def depth(task: Task, groups: Sequence[Sequence[str]], profile: Profile) -> Policy:
    """The groups of layers before `depth`, a whole number a node: group 0 alone for depth 1 (`levels`)."""
    level = levels(task, groups)
    return lambda key, i, t, x: Sub(by_level(level, jnp.arange(len(groups)) < of_node(profile, i)))


def stages(task: Task, count: int = 1, name: str = "blocks") -> tuple[tuple[str, ...], ...]:
    """The paths of the blocks `name/0`, `name/1`, ... in `count` stages of equally many.

    Raises:
        InputError: a model that has no such blocks, or not equally many a stage.
    """
    found = sorted({int(a.path.split("/")[1]) for a in layers(task) if re.match(rf"{re.escape(name)}/\d+/", a.path)})
    if not found or len(found) % count:
        raise InputError(f"task has {len(found)} blocks called {name}/..., which are not {count} stages of blocks.")
    each = len(found) // count
    return tuple(tuple(f"{name}/{i}" for i in found[s * each : (s + 1) * each]) for s in range(count))


def nested(task: Task, stacks: Sequence[Sequence[str]], profile: Profile) -> Policy:
    """The first `depth` blocks of each of the `stacks`, as `stages` gives them, and all layers that are in none.

    The profile holds whole numbers; at depth 0 a node holds nothing. A residual block of zeros hands on what comes in,
    so that what such a node trains is the shallower model.
    """
    most = max(map(len, stacks))
    for depth in profile if isinstance(profile, Sequence) else [profile]:
        require("profile", depth, least=0, most=most, whole=True)
    level = np.zeros(task.dim, np.int32)
    for stack in stacks:
        for j, block in enumerate(stack):
            level[part(task, f"{block}/*").columns] = j
    level = frozen(level)
    return lambda key, i, t, x: Sub(jnp.asarray(level) < of_node(profile, i))


def assigned(task: Task, groups: Sequence[Sequence[str]], table: Array) -> Policy:
    """The groups of layers (`levels`) where `table` `[n, groups]` is true."""
    level = levels(task, groups)
    return lambda key, i, t, x: Sub(by_level(level, jnp.asarray(table, bool)[i]))


def fixed(table: Array) -> Policy:
    """The numbers where `table` `[n, d]` of bool is true, the same in every round."""
    return lambda key, i, t, x: Sub(jnp.asarray(table, bool)[i])


def balanced(task: Task, count: int, of: int) -> Policy:
    """Each number is held by exactly `count` of `of` nodes: node `i` by those where `(j + i) % of` is below `count`."""
    require("count", count, least=0, most=of, whole=True)
    place = np.arange(task.dim)
    return lambda key, i, t, x: Sub((jnp.asarray(place) + i) % of < count)


def of_shares(profile: Profile, name: str = "profile") -> Array:
    """A profile of shares as an array. Raises `InputError` unless all are above 0 and at most 1."""
    shares = jnp.atleast_1d(jnp.asarray(profile, jnp.float32))
    require(name, shares, above=0, most=1)
    return shares
