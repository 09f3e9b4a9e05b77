"""Where arrays live: node rows over the devices of a mesh, everything else on each of them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxfl.core import Array, Mail, State, Tree
from jaxfl.errors import InputError
from jaxfl.mapping.nodes import AXIS, node_shards


def node_mesh(devices: int | None = None) -> Mesh:
    """A mesh of the first `devices` devices (None: all) with the one axis `nodes`."""
    have = jax.device_count()
    if devices is not None and not 1 <= devices <= have:
        raise InputError(f"devices is {devices}, but this process sees {have}: allowed is 1 to {have}.")
    return jax.make_mesh((devices or have,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


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


def _put(a: Array, where: NamedSharding) -> Array:
    """One array on the mesh, which may span processes that each hold all of it."""
    if where.is_fully_addressable:
        return jax.device_put(_seen_by_all(a) if where.is_fully_replicated else a, where)
    if not getattr(a, "is_fully_addressable", True):
        return jax.jit(lambda a: a, out_shardings=where)(a)
    if jnp.issubdtype(jnp.asarray(a).dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(a), where))
    host = np.asarray(a)
    return jax.make_array_from_callback(host.shape, where, lambda part: host[part])


def _seen_by_all(a: Array) -> Array | np.ndarray:
    """A CPU device's array as host memory, which all CPU devices of the process share instead of copying it."""
    alone = isinstance(a, jax.Array) and len(a.devices()) == 1 and next(iter(a.devices())).platform == "cpu"
    return np.asarray(a) if alone and not jnp.issubdtype(a.dtype, jax.dtypes.extended) else a


def put(mesh: Mesh, tree: Tree, spec: P = P()) -> Tree:
    """The leaves of `tree` on the mesh, replicated unless `spec` says otherwise."""
    return jax.tree.map(lambda a: _put(a, NamedSharding(mesh, spec)), tree)


def to_host(tree: Tree) -> Tree:
    """The leaves of `tree` as NumPy arrays, whole in every process."""

    def whole(a):
        if getattr(a, "is_fully_addressable", True) or a.is_fully_replicated:
            return np.asarray(a)
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(a, tiled=True)

    return jax.tree.map(whole, tree)


def wait_for_all(what: str) -> None:
    """Go on when every process has come here; at once where there is one."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def specs(state: State, devices: int, axis: int = 0) -> State:
    """Where each leaf lives: rows over the devices if these divide them, the shared parts on every device."""

    def rows(a) -> P:
        split = devices > 1 and a.ndim > axis and a.shape[axis] and a.shape[axis] % devices == 0
        return P(*[None] * axis, AXIS) if split else P()

    whole = lambda tree: jax.tree.map(lambda a: P(), tree)
    by_row = lambda tree: jax.tree.map(rows, tree)
    return State(whole(state.shared), by_row(state.nodes), Mail(by_row(state.mail.nodes), whole(state.mail.shared)))


def placement(mesh: Mesh, state: State, several: bool) -> State:
    """Where each leaf lives on `mesh`; `several`: an axis of runs comes first, spread where the mesh is one of runs."""
    if AXIS in mesh.shape:
        return specs(state, mesh.size, int(several))
    return jax.tree.map(lambda a: P(*mesh.axis_names), state)


def put_state(mesh: Mesh, state: State, several: bool) -> State:
    """The leaves of `state` where `placement` says."""
    return jax.tree.map(lambda a, spec: _put(a, NamedSharding(mesh, spec)), state, placement(mesh, state, several))


def everywhere(tree: Tree) -> Tree:
    """Inside a compiled round: every device has, and works out, all of `tree`.

    Left to itself XLA cuts the sorts and loops of small vectors in pieces and exchanges these at every step.
    """
    if AXIS not in jax.sharding.get_abstract_mesh().shape:
        return tree
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(jnp.asarray(a), P()), tree)


def keep_sharding(state: State) -> State:
    """Inside a compiled round: hold the state where `put_state` put it, so that every call finds it alike."""
    devices = node_shards()
    if AXIS not in jax.sharding.get_abstract_mesh().shape:
        return state
    state = jax.tree.map(jnp.asarray, state)
    return jax.tree.map(jax.lax.with_sharding_constraint, state, specs(state, devices))
