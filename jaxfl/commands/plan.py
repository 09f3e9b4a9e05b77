"""`jaxfl plan`: what a run will cost."""

import contextlib
import dataclasses
import io

from jaxfl import plugins, zoo
from jaxfl.commands.start import mesh_of
from jaxfl.engine import plan
from jaxfl.errors import InputError, require
from jaxfl.options import fit, kept
from jaxfl.options.build import prepare
from jaxfl.options.commands import Plan, name_of
from jaxfl.options.config import Setup
from jaxfl.options.systems import label_of, own_options
from jaxfl.options.topology import most_nodes
from jaxfl.report import tables

TRIED = 64  # numbers of nodes
ENOUGH = 2**25  # bytes of arrays, of which most are proportional to nodes


def main(command: Plan) -> int:
    """Compile the system and print what a round of it costs.

    Raises:
        InputError: a bad option.
    """
    require("memory_gb", command.memory_gb, above=0, none=True)
    name = label_of(name_of(command))
    earlier = kept.load(command.config) if command.config else None
    before = None if earlier is None else earlier[1]
    setup = own_options(command.setup, [name], earlier)
    fit.check_command("plan", setup, before)
    made = _planned(name, setup, before)
    row = made.describe()
    if command.memory_gb is not None:
        most = plan.largest(_sizes(name, setup, before, made), command.memory_gb * 1e9 - made.held)
        hears = zoo.find(plugins.split(name)[0]).kind in ("gossip", "protocol")
        row[f"nodes that fit {command.memory_gb:g} GB"] = most_nodes(setup, most) if hears else most
    for label, value in row.items():
        print(f"{label:>36}  {value:,.4g}" if isinstance(value, float) else f"{label:>36}  {value}")
    if command.json:
        print(tables.json_line(name, row))
    return 0


def _sizes(name: str, setup: Setup, earlier: Setup | None, made: plan.Plan) -> list[plan.Plan]:
    """This plan and others of more nodes, up to `ENOUGH` bytes, nodes ascending: in tiny worlds nodes hardly count.

    Raises:
        InputError: there is no other.
    """
    found = [made]
    while found[-1].arrays < ENOUGH:
        counts = (factor * found[-1].nodes for factor in (8, 2))
        larger = next(filter(None, (_tried(name, setup, earlier, n) for n in counts)), None)
        if larger is None:
            break
        found.append(larger)
    return found if len(found) > 1 else sorted([made, _other(name, setup, earlier, made.nodes)])


def _other(name: str, setup: Setup, earlier: Setup | None, nodes: int) -> plan.Plan:
    """A plan of another number of nodes that this setup can have: half as many, twice, or the next best.

    Raises:
        InputError: there is none.
    """
    fewer = sorted(range(1, nodes), key=lambda n: abs(2 * n - nodes))
    counts = [*fewer[:1], 2 * nodes, *fewer[1:TRIED]]
    found = next(filter(None, (_tried(name, setup, earlier, n) for n in counts)), None)
    if found is None:
        raise InputError("memory_gb needs a plan of another number of nodes, but there is none.")
    return found


def _tried(name: str, setup: Setup, earlier: Setup | None, nodes: int) -> plan.Plan | None:
    """The plan of so many nodes; None where this setup cannot have them, or, by a natural partition, has fewer."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            found = _planned(name, dataclasses.replace(setup, nodes=nodes), earlier)
    except InputError:
        return None
    return found if found.nodes == nodes else None


def _planned(name: str, setup: Setup, earlier: Setup | None) -> plan.Plan:
    world = prepare(setup, [plugins.split(name)[0]])
    arm = fit.arms(world, [name], setup, earlier)[name]
    mesh = mesh_of(setup.devices, world.setup.nodes)
    every = min(setup.rounds, setup.every or max(1, setup.rounds // 10))
    return plan.plan(
        arm.algorithm, arm.scenario, arm.model, seeds=setup.seeds, every=every, evaluate=arm.metric, mesh=mesh
    )
