"""What a run will cost, from its compiled programs, without running them.

Memory is XLA's own account of the programs that `run` starts: arguments and results, what they share, and temporaries.
On a CPU all devices live in this process, so what it holds beside them (interpreter, compiler, data on the host) is
measured here and added. Arithmetic is counted in the traced program, traffic and collectives in the compiled one
(`engine.hlo`), and the time predicted at rates measured on this machine (`engine.rates`).
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxfl.core import Algorithm, Array, Metric, Scenario, Tree
from jaxfl.engine import rates
from jaxfl.engine.arguments import check_counts, check_names, check_parts
from jaxfl.engine.heard import require_heard
from jaxfl.engine.hlo import Work, counts, works
from jaxfl.engine.run import _chunk, _evaluate, _start, inputs, shapes_on, shared_measure
from jaxfl.engine.runs import side_by_side
from jaxfl.engine.sharding import node_mesh
from jaxfl.mapping.canonical import canonical
from jaxfl.mapping.nodes import programs_in

MOVES = ("broadcast_in_dim", "reshape", "transpose", "squeeze", "slice", "dynamic_slice", "dynamic_update_slice")
STEP = 2**26
SAFE = 1.05  # so much more than they are taken to need must fit, as arrays are not quite linear in nodes
MOVES += ("gather", "scatter", "concatenate", "pad", "convert_element_type", "select_n", "copy", "split", "rev")


class Plan(NamedTuple):
    """What one device holds, and what a round of the whole run costs on one device."""

    nodes: int
    devices: int
    state_bytes: int  # the carry: world, models, memories
    data_bytes: int  # data, graph, test set and what else does not change, on every device
    temporary_bytes: int  # the most that a program needs beside them
    process_bytes: int | None  # most memory of the whole process, on a CPU where the system tells what it holds
    flops: float
    bytes: float
    collectives: Mapping[str, float]  # how often each is started
    collective_bytes: float
    instructions: float
    compile_seconds: float
    rounds: int  # of a chunk
    works: tuple[Work, ...]  # what a chunk starts

    def __repr__(self) -> str:
        """Without the hundreds of operations."""
        text = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items() if name != "works")
        return f"Plan({text}, works=<{len(self.works)} operations>)"

    @property
    def memory(self) -> int:
        """Bytes one device needs."""
        return self.state_bytes + self.data_bytes + self.temporary_bytes

    @property
    def arrays(self) -> int:
        """Bytes of all arrays: of one device, and on a CPU of all, which hold unchanging data in common."""
        here = self.devices if jax.default_backend() == "cpu" else 1
        return here * (self.state_bytes + self.temporary_bytes) + self.data_bytes

    @property
    def held(self) -> int:
        """Bytes the process holds beside arrays, up to the next 64 MiB, as they differ from start to start; else 0."""
        beside = 0 if self.process_bytes is None else self.process_bytes - self.arrays
        return -(-beside // STEP) * STEP

    def seconds(self) -> float:
        """Predicted seconds of a round on this machine; the first call measures its rates, which takes seconds."""
        return rates.seconds(self.works, self.devices) / self.rounds

    def describe(self) -> dict[str, Any]:
        """A flat table for people."""
        whole = {} if self.process_bytes is None else {"memory MB of the process": self.process_bytes / 1e6}
        return {
            "nodes": self.nodes,
            "devices": self.devices,
            "memory MB a device": self.memory / 1e6,
            "  state MB": self.state_bytes / 1e6,
            "  data MB": self.data_bytes / 1e6,
            "  temporaries MB": self.temporary_bytes / 1e6,
            **whole,
            "GFLOP a round": self.flops / 1e9,
            "GB moved a round": self.bytes / 1e9,
            "collectives a round": ", ".join(f"{n:g} {name}" for name, n in self.collectives.items()) or "none",
            "collective MB a round": self.collective_bytes / 1e6,
            "compile seconds": self.compile_seconds,
            "predicted seconds a round": self.seconds(),
        }


def largest(plans: Sequence[Plan], memory: float) -> int:
    """Nodes whose arrays fit into `memory` bytes, with `SAFE` to spare; more memory never gives fewer.

    Args:
        plans: of one setup, two or more, nodes ascending. Between two of them arrays are linear in nodes; beyond the
            last they go on as between the last two.
        memory: of a device, on a CPU of the process without what it holds beside arrays, `Plan.held`.
    """
    memory /= SAFE
    small, large = next((pair for pair in pairwise(plans) if memory <= pair[1].arrays), plans[-2:])
    each, more = (large.arrays - small.arrays) / (large.nodes - small.nodes), memory - large.arrays
    if each <= 0:
        return large.nodes if more < 0 else 2**31 - 1
    return int(min(max(0.0, large.nodes + more / each), 2**31 - 1))


def plan(
    algorithm: Algorithm | Callable[..., Algorithm],
    scenario: Scenario,
    model: Tree | Callable[[Array], Tree],
    *,
    seeds: int | None = None,
    hyper: dict | None = None,
    every: int = 10,
    evaluate: Metric | None = None,
    mesh: Mesh | None = None,
    block: int | None = None,
) -> Plan:
    """Compile what `run` with these arguments would start, chunks of `every` rounds, and account for it.

    Nothing is run and no model is drawn; the arguments are those of `engine.run.run`. One that goes on from a given
    `carry` holds that beside its own: `state_bytes` more.

    Raises:
        InputError: for an argument that `run` refuses.
    """
    check_counts(0, seeds, every=every, block=block)
    check_parts(algorithm, scenario, model, evaluate, hyper, mesh)
    algorithm, evaluate = canonical(algorithm), shared_measure(evaluate)
    mesh, labels, runs, draw, x, fixed = inputs(scenario, model, 0, seeds, hyper, mesh)
    devices = 1 if mesh is None else mesh.size
    test = () if evaluate is None else evaluate.arrays
    began = time.perf_counter()
    with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
        if mesh is not None:
            fixed, x, test = _shapes(mesh, (fixed, x, test))
        start = _start.trace(algorithm, scenario[:2], draw, runs, x, *fixed)
        n = scenario.byz.shape[0]
        carry = shapes_on(mesh, start.out_info, runs, n)
        runs = side_by_side(runs, carry[1])
        traced = _chunk.trace(algorithm, scenario.step, every, runs, block, np.int32(0), carry, *fixed)
        require_heard(traced.jaxpr)
        scored = None
        if evaluate is not None:
            scored = _evaluate.trace(algorithm, evaluate.measure, runs, block, n, carry[1], fixed[1], test)
        check_names(labels[0], traced.out_info[1], scored.out_info[0] if scored else {})
        first, compiled = start.lower().compile(), traced.lower().compile()
        beside = max(_beside(first, held=_bytes(carry)), _beside(compiled))
        if scored is not None:
            beside = max(beside, _beside(scored.lower().compile()))
    took = time.perf_counter() - began
    text = compiled.as_text() or ""
    met = counts(text)
    made = Plan(
        nodes=n,
        devices=devices,
        state_bytes=_bytes(carry),
        data_bytes=_bytes((fixed, test)),
        temporary_bytes=beside,
        process_bytes=None,
        flops=_flops(traced.jaxpr.jaxpr) / devices / every,
        bytes=met.bytes / every,
        collectives={name: often / every for name, often in met.collectives.items()},
        collective_bytes=met.collective_bytes / every,
        instructions=met.instructions / every,
        compile_seconds=took,
        rounds=every,
        works=tuple(works(text)),
    )
    return made._replace(process_bytes=_process_bytes(made.arrays - made.data_bytes))


def state_bytes(algorithm: Any, scenario: Scenario, model: Any, seeds: int | None, hyper: dict | None = None) -> int:
    """Bytes of the state of all runs on all devices, from its shapes alone; arguments as of `plan`."""
    _, _, runs, draw, x, fixed = inputs(scenario, model, 0, seeds, hyper, node_mesh(1))
    return _bytes(_start.eval_shape(canonical(algorithm), scenario[:2], draw, runs, x, *fixed))


def _beside(compiled: Any, held: int = 0) -> int:
    """Bytes of a program's temporaries, and of results that take new memory and are not yet `held` elsewhere.

    0 where the backend keeps no account.
    """
    account = compiled.memory_analysis()
    if account is None:
        return 0
    new = account.output_size_in_bytes - account.alias_size_in_bytes
    return max(0, account.temp_size_in_bytes + new - held)


def _process_bytes(more: int) -> int | None:
    """Most memory of this process on a CPU, if it is to hold `more` bytes than now; None where that is not known."""
    if jax.default_backend() != "cpu":
        return None
    now, most = resident()
    return max(most, now + more) if now else None


def resident() -> tuple[int, int]:
    """Bytes of memory this process holds now, and the most it ever held; zeros where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0, 0
    size = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return size.get("VmRSS", 0), size.get("VmHWM", 0)


def _shapes(mesh: Mesh, tree: Tree) -> Tree:
    """Shapes on every device of the mesh."""
    where = NamedSharding(mesh, P())
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a), sharding=where), tree)


def _leaf_bytes(a: Any) -> int:
    """Bytes of an array, or of its part on one device."""
    shape, dtype = jnp.shape(a), a.dtype
    sharding = getattr(a, "sharding", None)
    if sharding is not None:
        shape = sharding.shard_shape(shape)
    width = 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize
    return math.prod(shape) * width


def _bytes(tree: Tree) -> int:
    return sum(_leaf_bytes(a) for a in jax.tree.leaves(tree))


def _flops(jaxpr: Any) -> float:
    """FLOPs of a traced program: products and sums of its dots, one for every element of anything else."""
    total = 0.0
    for eqn in jaxpr.eqns:
        inner = [_flops(program) for program in programs_in(eqn)]
        if eqn.primitive.name == "scan":
            total += eqn.params["length"] * sum(inner)
        elif eqn.primitive.name == "cond":
            total += max(inner)
        elif eqn.primitive.name == "shard_map":
            total += math.prod(eqn.params["mesh"].shape.values()) * sum(inner)
        elif inner:
            total += sum(inner)
        elif eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[i] for i in contract)
            total += 2.0 * depth * math.prod(eqn.outvars[0].aval.shape)
        elif eqn.primitive.name not in MOVES:
            total += sum(math.prod(v.aval.shape) for v in eqn.outvars if jnp.issubdtype(v.aval.dtype, jnp.floating))
    return total
