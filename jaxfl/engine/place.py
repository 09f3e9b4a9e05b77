"""Where arrays live: node rows over the devices of a mesh, everything else on each of them."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxfl.core import InputError, State, Tree
from jaxfl.mapping import AXIS


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


def _lead(seeds: bool) -> P:
    return P(None, AXIS) if seeds else P(AXIS)


def place(mesh: Mesh, tree: Tree, spec: P = P()) -> Tree:
    """The leaves of `tree` on the mesh, replicated unless `spec` says otherwise."""
    return jax.device_put(tree, NamedSharding(mesh, spec))


def place_state(mesh: Mesh, state: State, seeds: bool) -> State:
    """`nodes` and `mail` over the mesh by node, `shared` on every device; `seeds`: a seed axis comes first."""
    return State(
        place(mesh, state.shared), place(mesh, state.nodes, _lead(seeds)), place(mesh, state.mail, _lead(seeds))
    )


def keep_place(state: State) -> State:
    """Inside a compiled round: hold the state where `place_state` put it, so that every call finds it alike."""
    if AXIS not in jax.sharding.get_abstract_mesh().shape:
        return state
    fix = lambda tree, spec: jax.tree.map(lambda a: jax.lax.with_sharding_constraint(jnp.asarray(a), spec), tree)
    return State(fix(state.shared, P()), fix(state.nodes, P(AXIS)), fix(state.mail, P(AXIS)))
