"""`jaxfl plan`: what a run will cost."""

import dataclasses

from jaxfl import plugins
from jaxfl.commands.start import mesh_of
from jaxfl.engine import plan
from jaxfl.errors import InputError
from jaxfl.options import config, fit
from jaxfl.options.build import prepare
from jaxfl.options.commands import Plan, name_of
from jaxfl.options.config import Setup
from jaxfl.options.systems import label_of, own_options
from jaxfl.report import tables


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
        half = _planned(name, dataclasses.replace(setup, nodes=made.nodes // 2), before)
        row[f"nodes that fit {command.memory_gb:g} GB"] = plan.largest(half, made, command.memory_gb * 1e9)
    for label, value in row.items():
        print(f"{label:>36}  {value:,.4g}" if isinstance(value, float) else f"{label:>36}  {value}")
    if command.json:
        print(tables.json_line(name, row))
    return 0


def _planned(name: str, setup: Setup, earlier: Setup | None) -> plan.Plan:
    world = prepare(setup, [plugins.split(name)[0]])
    arm = fit.arms(world, [name], setup, earlier)[name]
    mesh = mesh_of(setup.devices, world.setup.nodes)
    every = min(setup.rounds, setup.every or max(1, setup.rounds // 10))
    return plan.plan(
        arm.algorithm, arm.scenario, arm.model, seeds=setup.seeds, every=every, evaluate=arm.metric, mesh=mesh
    )
