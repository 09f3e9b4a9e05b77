"""`jaxfl plan`: what a run will cost."""

import contextlib
import dataclasses
import io

from jaxfl import plugins, zoo
from jaxfl.commands.start import mesh_of
from jaxfl.engine import plan
from jaxfl.errors import InputError
from jaxfl.options import config, fit
from jaxfl.options.build import prepare
from jaxfl.options.commands import Plan, name_of
from jaxfl.options.config import Setup
from jaxfl.options.systems import label_of, own_options
from jaxfl.options.topology import most_nodes
from jaxfl.report import tables

TRIED = 64  # numbers of nodes


def main(command: Plan) -> int:
    """Compile the system and print what a round of it costs.

    Raises:
        InputError: a bad option.
    """
    if command.memory_gb is not None and command.memory_gb <= 0:
        raise InputError(f"memory_gb is {command.memory_gb}, but must be above 0.")
    name = label_of(name_of(command))
    earlier = config.load(command.config) if command.config else None
    before = None if earlier is None else earlier[1]
    setup = own_options(command.setup, [name], earlier)
    fit.check_command("plan", setup, before)
    made = _planned(name, setup, before)
    row = made.describe()
    if command.memory_gb is not None:
        other = _other(name, setup, before, made.nodes)
        most = plan.largest(other, made, command.memory_gb * 1e9)
        hears = zoo.find(plugins.split(name)[0]).kind in ("gossip", "protocol")
        row[f"nodes that fit {command.memory_gb:g} GB"] = most_nodes(setup, most) if hears else most
    for label, value in row.items():
        print(f"{label:>36}  {value:,.4g}" if isinstance(value, float) else f"{label:>36}  {value}")
    if command.json:
        print(tables.json_line(name, row))
    return 0


def _other(name: str, setup: Setup, earlier: Setup | None, nodes: int) -> plan.Plan:
    """A plan of another number of nodes that this setup can have: half as many, twice, or the next best.

    Raises:
        InputError: there is none.
    """
    error = InputError("memory_gb needs a plan of another number of nodes, but there is none.")
    fewer = sorted(range(1, nodes), key=lambda n: abs(2 * n - nodes))
    for other in [*fewer[:1], 2 * nodes, *fewer[1:TRIED]]:
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                found = _planned(name, dataclasses.replace(setup, nodes=other), earlier)
        except InputError as refused:
            error = refused
        else:
            if found.nodes != nodes:  # a natural partition may have no more
                return found
    raise error


def _planned(name: str, setup: Setup, earlier: Setup | None) -> plan.Plan:
    world = prepare(setup, [plugins.split(name)[0]])
    arm = fit.arms(world, [name], setup, earlier)[name]
    mesh = mesh_of(setup.devices, world.setup.nodes)
    every = min(setup.rounds, setup.every or max(1, setup.rounds // 10))
    return plan.plan(
        arm.algorithm, arm.scenario, arm.model, seeds=setup.seeds, every=every, evaluate=arm.metric, mesh=mesh
    )
