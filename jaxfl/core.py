"""The contract: what a learning system, a world and a node program are.

Notation of every docstring in jaxfl: `n` nodes, `c` cohort members, `k` neighbour slots, `d` parameters of the flat
model row, `m` numbers in a message, `N` samples. A `Vector` is `[d]`, `Rows` are `[n, d]`. Functions are pure and
take their random key first. Units are seconds and bits unless a name says otherwise.
"""

import dataclasses
import difflib
import operator
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Tree = Any


class InputError(ValueError):
    """A bad argument. The message is one sentence: the argument, its value, what is allowed."""


def require(name: str, value: Any, *, above=None, least=None, below=None, most=None) -> None:
    """Raise `InputError` if a Python number is outside its range; traced values, schedules and None pass."""
    if not isinstance(value, int | float):
        return
    bounds = (
        (above, "above", operator.gt),
        (least, "at least", operator.ge),
        (below, "below", operator.lt),
        (most, "at most", operator.le),
    )
    asked = [(word, bound, holds(value, bound)) for bound, word, holds in bounds if bound is not None]
    if not all(holds for *_, holds in asked):
        raise InputError(f"{name} is {value}, but must be {' and '.join(f'{w} {b}' for w, b, _ in asked)}.")


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say beside an unknown name: the nearest of the `known`, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known) or 'none'}."


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shards:
    """An index view that cuts one shared data set into one shard a node, without copying or padding a sample.

    Node `i` owns the samples `order[start[i] : start[i] + size[i]]`. `longest` is the static bound on `size`.
    """

    x: Tree  # inputs, leaves [N, ...]
    y: Array  # targets [N, ...]
    order: Array  # [N] int32, sample indices grouped by node
    start: Array  # [n] int32
    size: Array  # [n] int32
    longest: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Graph:
    """A padded neighbour table: in slot `s` node `i` hears node `nbr[i, s]` with mixing weight `weight[i, s]`.

    Weight 0 means no edge (a padded slot points at `i` itself). The own weight is `1 - weight[i].sum()` unless `own`
    gives it (column-stochastic matrices, whose rows do not sum to one). `shifts` promises that slot `s` of every node
    points `shifts[s]` places further round a circle, `nbr[i, s] == (i + shifts[s]) % n`, with no weight of 0: mixing
    then needs no gather. `rev[i, s]` is the slot in which `nbr[i, s]` hears `i` (None where some edge has no reverse).
    """

    nbr: Array  # [n, k] int32
    weight: Array  # [n, k] float32
    rev: Array | None = None  # [n, k] int32
    shifts: tuple[int, ...] | None = dataclasses.field(default=None, metadata={"static": True})
    own: Array | None = None  # [n] float32


class Cohort(NamedTuple):
    """Who acts in a round. All fields `[c]`."""

    ids: Array  # int32, distinct node ids
    weight: Array  # float32, how much a member counts; 0 = absent
    age: Array  # int32, server versions since the member's model was read (0 = fresh)
    steps: Array | None = None  # int32, local steps a member runs (None = all of them)


class Env(NamedTuple):
    """What one round may look at. Arrays only."""

    t: Array  # int32, the round
    time: Array  # float32, simulated seconds at the start of the round
    data: Tree  # Shards, or whatever the task reads
    graph: Graph | None
    cohort: Cohort
    byz: Array  # [n] bool, the Byzantine nodes


class State(NamedTuple):
    """What persists between rounds: `shared` once, `nodes` and `mail` with leading axis `[n]`."""

    shared: Tree = ()
    nodes: Tree = ()
    mail: Tree = ()  # memory of the network: error feedback, delay lines


class Algorithm(NamedTuple):
    """A system. `round` returns what it measured as a dict of scalars or `[n]` arrays."""

    init: Callable  # (key, Env, Vector) -> State
    round: Callable  # (key, Env, State) -> (State, dict)
    read: Callable  # (State) -> what is evaluated: [d], [n, d] or a protocol's answer


class Process(NamedTuple):
    """One part of the world (topology, participation, clock): a state machine over arrays.

    `arrays` are traced arguments of the compiled run, shared by all seeds; closing over large arrays instead would
    bake them into the program.
    """

    init: Callable  # (key, arrays) -> S
    step: Callable  # (key, arrays, S, t) -> (S, value)
    arrays: Tree = ()


class Scenario(NamedTuple):
    """The world: churn, topology, participation, clock. It learns nothing."""

    init: Callable  # (key, arrays) -> S
    step: Callable  # (key, arrays, S, t) -> (S, (Graph | None, Cohort, time))
    arrays: Tree
    data: Tree
    byz: Array  # [n] bool


class Metric(NamedTuple):
    """What is evaluated between rounds: `measure(arrays, answer) -> dict of scalars`, `answer` as `Algorithm.read`."""

    measure: Callable
    arrays: Tree = ()


class Program(NamedTuple):
    """ONE node of a protocol; `programs.program.program` lifts it to an `Algorithm`.

    An outbox is `[m]` (the same to all who listen) or `[k, m]` (one message a slot). In `step`, `weight` `[k]` is the
    mixing weight of each message heard, 0 where none came, and `own` the node's own weight.
    """

    init: Callable  # (key, data, i) -> (s, outbox)
    step: Callable  # (key, s, inbox [k, m], weight [k], own) -> (s, outbox)
    read: Callable  # (s) -> the node's answer


def canonical(f: Callable) -> Callable:
    """The one function with this code and these closed-over values, if they can be hashed.

    The compiled run is keyed by the identity of functions; two worlds of the same make then share one program.
    """
    try:
        return _known.setdefault((f.__code__, tuple(c.cell_contents for c in f.__closure__ or ())), f)
    except TypeError:
        return f


_known: dict = {}


def _nothing(key: Array, arrays: Tree) -> tuple:
    return ()


def process(step: Callable, arrays: Tree = (), init: Callable = _nothing) -> Process:
    """A `Process`, without state unless `init` is given. `step` should close over nothing but numbers and functions."""
    return Process(canonical(init), canonical(step), arrays)


def n_nodes(env: Env) -> int:
    """Number of nodes of the world, static."""
    return env.byz.shape[0]


def own_weight(graph: Graph) -> Array:
    """The weight `[n]` of each node's own message."""
    return 1.0 - graph.weight.sum(1) if graph.own is None else graph.own


def stream(key: Array, purpose: str) -> Array:
    """The key of one purpose, so that no two uses of a round's key ever share bits."""
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()) & 0x7FFFFFFF)


def node_keys(key: Array, ids: Array) -> Array:
    """One key a node id `[c]`: a node draws the same bits in any cohort slot and on any device."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)


def tile(x: Tree, n: int) -> Tree:
    """Leaves `[...]` repeated to `[n, ...]`."""
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (n, *jnp.shape(a))), x)
