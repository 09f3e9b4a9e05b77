"""Who hears whom, by the names of topology and mixing."""

import math
from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp

from jaxfl import plugins
from jaxfl.core import Graph, Process
from jaxfl.errors import InputError
from jaxfl.options.config import Setup
from jaxfl.world import graph, mixing, topology
from jaxfl.world.graph_files import read, union, weighted
from jaxfl.world.tiers import Tiers, degrees

REWIRED = 0.1  # share of edges a Watts-Strogatz graph rewires


def topology_of(setup: Setup) -> Graph | Process:
    """A graph with its mixing weights, checked, or a process that draws one every round; asked again, the same one."""
    own = ("nodes", "seed", "topology", "degree", "mixing")
    return _drawn(Setup(**{name: getattr(setup, name) for name in own}))


@lru_cache(maxsize=4)
def _drawn(setup: Setup) -> Graph | Process:
    n, k, name = setup.nodes, setup.degree, setup.topology
    if plugins.is_graph_file(name):
        return _from_file(setup)
    varying = {
        "one_peer": lambda: topology.one_peer_exponential(n),
        "matching": lambda: topology.random_matching(n),
        "el_oracle": lambda: topology.random_k_out(n, k),
        "el_local": lambda: topology.random_k_local(n, k),
    }
    if name in varying:
        return varying[name]()
    seed = setup.seed
    fixed = {
        "ring": lambda: graph.ring(n),
        "torus": lambda: graph.torus(*_sides(setup)),
        "grid": lambda: graph.grid(*_sides(setup)),
        "hypercube": lambda: graph.hypercube(n),
        "exponential": lambda: graph.exponential(n),
        "complete": lambda: graph.complete(n),
        "star": lambda: graph.star(n),
        "regular": lambda: graph.random_regular(n, k, seed),
        "erdos_renyi": lambda: graph.erdos_renyi(n, k / (n - 1), seed),
        "barabasi_albert": lambda: graph.barabasi_albert(n, max(1, k // 2), seed),
        "watts_strogatz": lambda: graph.watts_strogatz(n, k, REWIRED, seed),
        "geometric": lambda: graph.random_geometric(n, math.sqrt(k / (math.pi * n)), seed),
        "caveman": lambda: graph.caveman(_groups(setup), k),
        "two_level": lambda: graph.two_level(_groups(setup), k),
    }
    try:
        return _weighed(setup)(graph.require_connected(fixed[name]()))
    except InputError as error:
        weights = f" with mixing {setup.mixing}" if setup.mixing else ""
        raise InputError(f"topology is {name}{weights}: {error}") from error


def _weighed(setup: Setup) -> Callable[[Graph], Graph]:
    """How a graph gets its mixing weights, which are checked."""
    weigh = {
        None: mixing.usual,
        "metropolis": mixing.metropolis,
        "uniform": mixing.uniform,
        "lazy": lambda g: mixing.lazy(mixing.metropolis(g)),
        "max_degree": mixing.max_degree,
        "optimal": mixing.optimal_constant,
    }[setup.mixing]
    # Uniform weights promise no column sums, so who asks for them may have them on any graph.
    return lambda g: mixing.check(weigh(g), doubly=setup.mixing != "uniform")


def _from_file(setup: Setup) -> Graph | Process:
    """What a file has, with its own weights as they are, or else those of the option `mixing`."""
    path = setup.topology
    found = read(path, setup.nodes)
    directed = [t for t, g in enumerate(found.graphs) if graph.directed(g)]
    if directed and not found.weighted and setup.mixing is None:
        where = f"round {directed[0]} of {path}" if len(found.graphs) > 1 else path
        raise InputError(
            f"topology: {where} is directed, and uniform weights would not keep the mean of the models: give every "
            "edge in both directions, weights in the file, or --mixing uniform."
        )
    try:
        graph.require_connected(union(found))
    except InputError as error:
        raise InputError(f"topology is {path}: {error}") from error
    return weighted(found, path, _weighed(setup) if setup.mixing else None)


def _sides(setup: Setup) -> tuple[int, int]:
    """Rows and columns of the squarest lattice with so many nodes."""
    n = setup.nodes
    rows = max(r for r in range(1, math.isqrt(n) + 1) if n % r == 0)
    if rows == 1 and n > 3:
        raise InputError(f"nodes = {n}: a {setup.topology} needs a number that is no prime.")
    return rows, n // rows


def _groups(setup: Setup) -> int:
    if setup.nodes % setup.degree:
        raise InputError(
            f"nodes = {setup.nodes}: a multiple of the size of a group, degree = {setup.degree}, is needed."
        )
    return setup.nodes // setup.degree


def most_nodes(setup: Setup, most: int) -> int:
    """The largest number of nodes up to `most` that the topology can have; 0 where there is none."""
    name, degree = setup.topology, setup.degree
    if name == "hypercube":
        return 1 << most.bit_length() - 1 if most else 0
    fits = {
        "torus": lambda n: n <= 3 or any(n % r == 0 for r in range(2, math.isqrt(n) + 1)),
        "regular": lambda n: n * degree % 2 == 0,
        "caveman": lambda n: n % degree == 0,
    }
    fit = fits.get({"grid": "torus", "two_level": "caveman"}.get(name, name), lambda n: True)
    return next((n for n in range(most, 0, -1) if fit(n)), 0)


def in_degree(where: Graph | Process) -> int:
    """How many neighbours a node hears, the mean over nodes rounded up; slots where the graph changes."""
    if isinstance(where, Graph | Tiers):
        return math.ceil(degrees(where).mean())
    return jax.eval_shape(lambda: first_graph(where)).nbr.shape[1]


def first_graph(where: Graph | Process) -> Graph:
    """The graph of round 0, for a picture."""
    p, key = topology.as_process(where), jax.random.key(0)
    return p.step(key, p.arrays, p.init(key, p.arrays), jnp.int32(0))[1]
