"""Where arrays live: node rows over the devices of a mesh, everything else on each of them."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxfl.core import Array, Mail, State, Tree, is_key
from jaxfl.errors import InputError
from jaxfl.mapping.shards import AXIS, by_rows, fill, full_shards, node_shards, shard_rows, unfill

BOUNDARY = 64  # bytes; an array of the host that starts on one is not copied to CPU devices


def node_mesh(devices: int | None = None) -> Mesh:
    """A mesh of the first `devices` devices (None: all) with the one axis `nodes`."""
    have = jax.device_count()
    if devices is not None and not 1 <= devices <= have:
        raise InputError(f"devices is {devices}, but this process sees {have}: allowed is 1 to {have}.")
    return jax.make_mesh((devices or have,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def mesh_for(n: int, devices: int | None = None) -> Mesh:
    """A mesh for `n` nodes: of all `devices`, but for those that would get none of the nodes."""
    return node_mesh(full_shards(n, devices or jax.device_count()))


def use_cores(count: int) -> None:
    """Let a CPU show `count` devices, one a core: the loop over nodes then uses all of them.

    Must come before JAX is first used.

    Raises:
        InputError: if JAX has started with another number of CPU devices.
    """
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        if jax.device_count() != count:
            raise InputError(f"use_cores({count}) came after JAX had started: call it first.") from None


def _put(a: Array | np.ndarray, where: NamedSharding) -> Array:
    """One array on the mesh, which may span processes that each hold all of it."""
    if where.is_fully_addressable:
        return jax.device_put(_seen_by_all(a) if where.is_fully_replicated else a, where)
    if not getattr(a, "is_fully_addressable", True):
        return jax.jit(lambda a: a, out_shardings=where)(a)
    if is_key(jnp.asarray(a)):
        return jax.random.wrap_key_data(_put(jax.random.key_data(a), where))
    host = np.asarray(a)
    return jax.make_array_from_callback(host.shape, where, lambda part: host[part])


def _seen_by_all(a: Array | np.ndarray) -> Array | np.ndarray:
    """A CPU device's array as host memory, which all CPU devices of the process share instead of copying it."""
    alone = isinstance(a, jax.Array) and len(a.devices()) == 1 and next(iter(a.devices())).platform == "cpu"
    return np.asarray(a) if alone and not jnp.issubdtype(a.dtype, jax.dtypes.extended) else a


def put(mesh: Mesh, tree: Tree, spec: P = P()) -> Tree:
    """The leaves of `tree` on the mesh, replicated unless `spec` says otherwise."""
    return jax.tree.map(lambda a: _put(a, NamedSharding(mesh, spec)), tree)


def to_host(tree: Tree) -> Tree:
    """The leaves of `tree` as NumPy arrays, whole in every process; they come together, not one after the other."""
    here = lambda a: getattr(a, "is_fully_addressable", True) or a.is_fully_replicated

    def whole(a):
        if here(a):
            return np.asarray(a)
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(a, tiled=True)

    for a in jax.tree.leaves(tree):
        if isinstance(a, jax.Array) and here(a):
            a.copy_to_host_async()
    return jax.tree.map(whole, tree)


def wait_for_all(what: str) -> None:
    """Go on when every process has come here; at once where there is one."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def placement(mesh: Mesh, state: State, several: bool, n: int) -> State:
    """Where each leaf of a state in whole shards lives on `mesh`: rows over its devices, shared parts on all.

    `several`: an axis of runs comes first, spread where the mesh is one of runs.
    """
    if AXIS not in mesh.shape:
        return jax.tree.map(lambda a: P(*mesh.axis_names), state)
    axis, rows = int(several), shard_rows(n, mesh.size) * mesh.size
    by_row = P(*[None] * axis, AXIS) if mesh.size > 1 else P()
    return _of_nodes(lambda a: by_row if a.ndim > axis and a.shape[axis] == rows else P(), state, lambda a: P())


def _of_nodes(f: Callable, state: State, otherwise: Callable = lambda a: a) -> State:
    """`f` of the leaves that nodes have, `otherwise` of the others."""
    (shared, nodes, mail), over = state, jax.tree.map
    return State(over(otherwise, shared), over(f, nodes), Mail(over(f, mail.nodes), over(otherwise, mail.shared)))


def put_state(mesh: Mesh, state: State, several: bool, n: int) -> State:
    """The leaves of a state in whole shards where `placement` says."""
    where = placement(mesh, state, several, n)
    return jax.tree.map(lambda a, spec: _put(a, NamedSharding(mesh, spec)), state, where)


class Border(NamedTuple):
    """Between compiled programs, which hand on whole shards, and all others, for whom a state has a row a node.

    A carry is `(state of the world, State)`; `several`: the state has an axis of runs first.
    """

    mesh: Mesh | None
    n: int
    several: bool

    @property
    def phantoms(self) -> bool:
        """Whether the devices do not divide the nodes."""
        return self.mesh is not None and AXIS in self.mesh.shape and self.n % self.mesh.size > 0

    def out(self, carry: tuple) -> tuple:
        """For others, on every device: by way of the host, whose memory CPU devices share."""
        if self.mesh is None or not self.phantoms:
            return carry
        axis, where = int(self.several), NamedSharding(self.mesh, P())
        rows = shard_rows(self.n, self.mesh.size) * self.mesh.size

        def one(a: Array) -> Array:
            if a.ndim <= axis or a.shape[axis] != rows:
                return a
            host = _first_rows(jax.random.key_data(a) if is_key(a) else a, self.n, axis)
            return _put(jax.random.wrap_key_data(jnp.asarray(host)) if is_key(a) else host, where)

        return carry[0], _of_nodes(one, carry[1])

    def back(self, carry: tuple) -> tuple:
        """For programs, which may take over its memory: a copy of what others still have."""
        world, state = carry
        if self.phantoms:
            return _copied(world), _filled(state, self.n, self.several)
        return _copied(carry)

    def shapes(self, carry: tuple) -> tuple:
        """Of what `out` gives."""
        if not self.phantoms:
            return carry
        one = partial(by_node, n=self.n)
        return carry[0], jax.eval_shape(jax.vmap(one) if self.several else one, carry[1])


def _first_rows(a: Array, n: int, axis: int) -> np.ndarray:
    """The first `n` of `a` along `axis`, in memory of the host that all CPU devices can share."""
    shape = (*a.shape[:axis], n, *a.shape[axis + 1 :])
    memory = np.empty(math.prod(shape) * a.dtype.itemsize + BOUNDARY, np.uint8)
    host = memory[-memory.ctypes.data % BOUNDARY :][: memory.size - BOUNDARY].view(a.dtype).reshape(shape)
    cut = lambda a, rows: a[:, :rows] if axis else a[:rows]
    if not a.is_fully_addressable:
        host[:] = cut(to_host(a), n)
        return host
    for shard in a.addressable_shards:
        into = cut(host, n)[shard.index]
        into[:] = cut(np.asarray(shard.data), into.shape[axis])
    return host


@jax.jit
def _copied(tree: Tree) -> Tree:
    return jax.tree.map(jnp.copy, tree)


@partial(jax.jit, static_argnames=("n", "several"))
def _filled(state: State, n: int, several: bool) -> State:
    one = lambda state: in_shards(jax.tree.map(jnp.copy, state), n)
    return (jax.vmap(one) if several else one)(state)


def everywhere(tree: Tree) -> Tree:
    """Inside a compiled round: every device has, and works out, all of `tree`.

    Left to itself XLA cuts the sorts and loops of small vectors in pieces and exchanges these at every step.
    """
    if AXIS not in jax.sharding.get_abstract_mesh().shape:
        return tree
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(jnp.asarray(a), P()), tree)


def in_shards(state: State, n: int) -> State:
    """Inside a compiled program: the state of `n` nodes as programs hand it on, so that every call finds it alike.

    It lives where `put_state` puts it, and its rows are filled up to shards of one length.

    Raises:
        InputError: while tracing, a leaf that nodes have, with as many rows as shards have in all.
    """
    if AXIS not in jax.sharding.get_abstract_mesh().shape:
        return state
    devices = node_shards()
    pad = -n % devices

    def one(a: Array) -> Array:
        rows = a.shape[0] if a.ndim else 0
        if pad and rows == n + pad:
            raise InputError(f"State.nodes has a leaf of {rows} rows, but nodes are {n}: put it into `shared`.")
        if rows != n or devices == 1:
            return everywhere(a)
        return fill(a) if pad else by_rows(a)

    return _of_nodes(one, jax.tree.map(jnp.asarray, state), everywhere)


def by_node(state: State, n: int) -> State:
    """Inside a compiled program: what `in_shards` was given, a row a node."""
    pad = -n % node_shards()
    if not pad:
        return state
    return _of_nodes(lambda a: unfill(a, n) if a.ndim and a.shape[0] == n + pad else a, state)
