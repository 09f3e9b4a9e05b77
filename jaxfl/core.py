"""The contract: what a learning system, a world and a node program are.

Notation of every docstring in jaxfl: `n` nodes, `c` cohort members, `k` neighbour slots, `d` parameters of the flat
model row, `m` numbers in a message, `N` samples. A `Vector` is `[d]`, `Rows` are `[n, d]`. Functions are pure and
take their random key first. Units are seconds and bits unless a name says otherwise.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.core import Tracer

from jaxfl.errors import InputError

Array = jax.Array
Tree = Any
ROUNDING = 5e-7  # an own weight below is what is left of 1 by the rounding of the others to float32
ALL_STEPS = 2**31 - 1  # no bound on a node's local steps
LEFT_OUT = "left out "  # begins the names, in traced rounds, of what a system knowingly makes nothing of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shards:
    """An index view that cuts one shared data set into one shard a node, without copying or padding a sample.

    Node `i` owns the samples `order[start[i] : start[i] + size[i]]`. `longest` is a static bound on `size`, which
    a pass over whole shards in one batch computes; `data.cut.bound` makes it, `dataclasses.replace` another.
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
    then needs no gather. `reach` promises that nobody hears a node more than `reach` places away round that circle:
    devices then exchange border rows alone. `column_stochastic` says that columns sum to one and rows need not, as in
    push-sum: models must not be mixed by such weights. `rev[i, s]` is the slot in which `nbr[i, s]` hears `i` (None
    where some edge has no reverse).
    """

    nbr: Array  # [n, k] int32
    weight: Array  # [n, k] float32
    rev: Array | None = None  # [n, k] int32
    shifts: tuple[int, ...] | None = dataclasses.field(default=None, metadata={"static": True})
    own: Array | None = None  # [n] float32
    reach: int | None = dataclasses.field(default=None, metadata={"static": True})
    column_stochastic: bool = dataclasses.field(default=False, metadata={"static": True})


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Strata:
    """A static promise: of `n` nodes in `count` equal blocks, block `b` holds the members in block `b` of the slots.

    It lets a device that owns whole blocks of nodes read and write their members' rows alone. With one block a node
    every node sits in the slot of its number. One block promises nothing. `everyone` promises that moreover nobody is
    absent but those who are down.
    """

    count: int = 1
    everyone: bool = False


class Cohort(NamedTuple):
    """Who acts in a round. All arrays are `[c]`, but for `total`, `waiting` and `updates`.

    It may leave nodes out, and what is not None of `age`, `steps`, `selected`, `total` and `updates` says how members
    differ from fresh ones who all do the same work: a system that would not notice is refused (`engine.heard`).
    """

    ids: Array  # int32, distinct node ids
    weight: Array  # float32, how much a member counts; 0 = absent
    age: Array | None = None  # int32, server versions since the member's model was read (None = all are fresh)
    steps: Array | None = None  # int32, local steps a member runs (None = all of them)
    selected: Array | None = None  # bool, who was handed the model, in time or not (None = those of weight > 0)
    strata: Strata = Strata()  # static
    total: Array | None = None  # float32 [] ([u] of updates), what a mean divides the weights by (None = their sum)
    waiting: Array | None = None  # int32 [], finished jobs that the round has no place for, logged (None = not counted)
    updates: Array | None = None  # bool [u]: u equal runs of members are each an update, if True, in turn (None = one)


PER_MEMBER = ("ids", "weight", "age", "steps", "selected")  # the fields of a cohort that are `[c]`


class Between(NamedTuple):
    """What lies between nodes, by their regions: `[r, r]` float32, from the row to the column."""

    region: Array  # [n] int32; where every edge differs, `arange(n)`
    latency: Array  # seconds, on top of the nodes' own
    rate: Array  # bits a second of one message, at most
    server: Array  # int32 [], the region of a server


class Trunk(NamedTuple):
    """Uplinks that nodes share: all that leaves a group at once goes through one of them."""

    group: Array  # [n] int32
    rate: Array  # [g] float32, bits a second


class Links(NamedTuple):
    """How fast the nodes are, `[n]` float32 each, and what lies between them."""

    up: Array  # bits a second
    down: Array  # bits a second
    latency: Array  # seconds until a message's first bit arrives
    step: Array  # seconds of one local step
    between: Between | None = None  # None: nothing
    trunk: Trunk | None = None  # None: every node has an uplink of its own


class Now(NamedTuple):
    """What the world decides about one round."""

    graph: Graph | None
    cohort: Cohort
    seconds: Array  # float32, how long the round takes, as far as the world knows
    alive: Array | None = None  # [n] bool, who is up (None = everyone)
    share: Array | None = None  # [n] float32, as in `Env`


class Env(NamedTuple):
    """What one round may look at. Arrays only."""

    t: Array  # int32, the round
    seconds: Array  # float32, simulated seconds of this round without the transfers over `links`
    data: Tree  # Shards, or whatever the task reads
    graph: Graph | None
    cohort: Cohort
    byz: Array  # [n] bool, the Byzantine nodes
    alive: Array | None = None  # [n] bool, who is up (None = everyone)
    links: Links | None = None  # None: transfers and local steps take no time
    share: Array | None = None  # [n] float32, how much each client counts in the objective, sum 1 (None = all alike)


class Mail(NamedTuple):
    """Memory of a network: error feedback and delay lines by node, what colluders or a collective know once."""

    nodes: Tree = ()  # leaves [n, ...]
    shared: Tree = ()


class State(NamedTuple):
    """What persists between rounds: `shared` once, `nodes` with a leading axis, mostly `[n]`, and the network's."""

    shared: Tree = ()
    nodes: Tree = ()
    mail: Mail = Mail()


@jax.tree_util.register_pytree_with_keys_class
class Log(dict):
    """What a round measured, by name. Joined by `|`, costs (`COSTS`) add up and all other names must differ."""

    def __or__(self, other: dict) -> "Log":  # noqa: D105
        return _joined(self, other)

    def __ror__(self, other: dict) -> "Log":  # noqa: D105
        return _joined(other, self)

    def __ior__(self, other: dict) -> "Log":  # type: ignore[override]  # noqa: D105
        return _joined(self, other)

    def tree_flatten_with_keys(self) -> tuple:
        """Names in order, as JAX flattens a dict."""
        names = sorted(self)
        return [(jax.tree_util.DictKey(name), self[name]) for name in names], names

    @classmethod
    def tree_unflatten(cls, names: list, values: Iterable) -> "Log":
        """The inverse."""
        return cls(zip(names, values, strict=True))


COSTS = ("seconds", "up_bits", "down_bits", "sent_bits", "received_bits", "messages", "gradients")


def _joined(a: dict, b: dict) -> Log:
    twice = [name for name in b if name in a and name not in COSTS]
    if twice:
        raise InputError(f"log has {', '.join(twice)} twice, but only costs ({', '.join(COSTS)}) add up: rename one.")
    return Log({**a, **{name: a[name] + v if name in a else v for name, v in b.items()}})


class Algorithm(NamedTuple):
    """A system. `round` returns what it measured as a dict of scalars or `[n]` arrays, mostly a `Log` of its verbs.

    Logged `seconds` are those of local steps and transfers, on top of the world's own `Env.seconds`. What the nodes
    keep, `State.nodes` and `Mail.nodes`, stays as it was for nodes that are down: the engine sees to that.
    """

    init: Callable  # (key, Env, Vector, or a tree of them) -> State
    round: Callable  # (key, Env, State) -> (State, dict)
    read: Callable  # (State) -> what is evaluated: [d], [n, d], a protocol's answer, or a tree of such


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
    step: Callable  # (key, arrays, S, t) -> (S, Now)
    arrays: Tree
    data: Tree
    byz: Array  # [n] bool
    links: Links | None = None


class Metric(NamedTuple):
    """What is evaluated between rounds: `measure(arrays, answer) -> dict`, `answer` as `Algorithm.read`.

    Each measurement is one number, or one a node `[n]` (NaN: this node has none, and is left out of the distribution).
    """

    measure: Callable
    arrays: Tree = ()


class Inbox(NamedTuple):
    """What ONE node of a protocol finds, slot by slot of its row in the graph's table."""

    message: Array  # [k, m], anything where nothing came
    came: Array  # [k] bool, a neighbour spoke over a live link
    link: Array  # [k] bool, the link is there this round
    weight: Array  # [k] mixing weight of the link, 0 where nothing came
    own: Array  # the node's own mixing weight


class Outbox(NamedTuple):
    """What one node says: `message` `[m]` to all who listen, or `[k, m]` with one message a slot."""

    message: Array
    speaks: Array | bool = True  # bool, or [k] bool: silence costs nothing
    busy: Array | bool = False  # bool, silent perhaps, but wants another step: nothing is at rest yet


class Program(NamedTuple):
    """ONE node of a protocol; `exchange.program.program` lifts it to an `Algorithm`.

    `begin` and `rest` are local steps in which nothing is heard (`Inbox.came` is False in every slot).
    """

    init: Callable  # (key, data, i, link [k] bool in the first round) -> (s, Outbox)
    step: Callable  # (key, s, Inbox) -> (s, Outbox)
    read: Callable  # (s) -> the node's answer
    begin: Callable | None = None  # (key, s, Inbox) -> (s, Outbox): a round begins, the links may have changed
    rest: Callable | None = None  # (key, s, Inbox) -> (s, Outbox): all are silent; who speaks now goes on


def n_nodes(env: Env) -> int:
    """Number of nodes of the world, static."""
    return env.byz.shape[0]


def shares(env: Env) -> Array:
    """How much each client counts in the objective, `[n]`, sum 1."""
    n = n_nodes(env)
    return jnp.full(n, 1 / n, jnp.float32) if env.share is None else env.share


def ages(c: Cohort) -> Array:
    """How old the model is that each member read, `[c]` int32, in versions of the server."""
    return jnp.zeros(c.ids.shape, jnp.int32) if c.age is None else c.age


def without(c: Cohort, *names: str) -> Cohort:
    """The cohort without the fields of these names, of which a system knows, and rightly makes nothing.

    It says so once a result depends on the `weight` of what is returned. Who reads a field need not say anything.
    """
    weight = c.weight
    for name in names:
        weight = checkpoint_name(weight, LEFT_OUT + name)
    return c._replace(weight=weight, **dict.fromkeys(names))


def counts(c: Cohort) -> Array:
    """How much each member counts in a mean, `[c]`: `weight` over its sum, or over `total` where that is given."""
    return c.weight / jnp.maximum(c.weight.sum() if c.total is None else c.total, 1e-12)


def heard_weight(graph: Graph) -> Array:
    """The sum `[n]` of the weights of what each node hears, in pairs: its rounding does not grow with the degree."""
    w = graph.weight
    while w.shape[1] > 1:
        w = jnp.pad(w, ((0, 0), (0, w.shape[1] % 2)))
        w = w[:, : w.shape[1] // 2] + w[:, w.shape[1] // 2 :]
    return w.sum(1)


def own_weight(graph: Graph) -> Array:
    """The weight `[n]` of each node's own message; what rounding leaves of `1 - 1` is 0, and no message."""
    if graph.own is not None:
        return graph.own
    own = 1.0 - heard_weight(graph)
    return own - jax.lax.stop_gradient(jnp.where(jnp.abs(own) < ROUNDING, own, 0))


def stream(key: Array, purpose: str) -> Array:
    """The key of one purpose, so that no two uses of a round's key ever share bits."""
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()) & 0x7FFFFFFF)


def node_keys(key: Array, ids: Array) -> Array:
    """One key a node id `[c]`: a node draws the same bits in any cohort slot and on any device."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)


def constant(values: Any, dtype: Any = None) -> Array:
    """Values of the host on the device, a copy, known inside a program too; traced values as they are.

    `jnp.array` compiles a program for every shape that it copies.
    """
    if isinstance(values, Tracer):
        return jnp.asarray(values, dtype)
    with jax.ensure_compile_time_eval():
        return jax.device_put(np.array(values, dtype))


def frozen(values: Any, dtype: Any = None) -> np.ndarray:
    """Values of the host that nobody can change, a copy: functions over equal ones are alike (`mapping.canonical`)."""
    made = np.array(values, dtype)
    made.setflags(write=False)
    return made


def is_key(a: Any) -> bool:
    """Whether an array holds typed keys."""
    return jnp.issubdtype(a.dtype, jax.dtypes.prng_key)


def tile(x: Tree, n: int) -> Tree:
    """Leaves `[...]` repeated to `[n, ...]`."""
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (n, *jnp.shape(a))), x)
