"""`jaxfl run` and `jaxfl compare`: systems in one world, one after the other."""

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

from jaxfl import plugins, zoo
from jaxfl.commands import results
from jaxfl.commands.start import mesh_of
from jaxfl.engine import run as engine
from jaxfl.errors import InputError
from jaxfl.options import config, fit
from jaxfl.options.build import Arm, prepare
from jaxfl.options.commands import Compare, Run
from jaxfl.options.config import Setup
from jaxfl.options.systems import own_options


def main(command: Run | Compare) -> int:
    """Run the systems; what is finished is written and shown also after an interrupt, exit code 130.

    Raises:
        InputError: a bad option.
    """
    setup = command.setup
    word, typed = ("run", [command.name]) if isinstance(command, Run) else ("compare", list(command.names))
    systems = [name if plugins.is_place(name) else plugins.spelt(name) for name in typed if name]
    names = [zoo.adopt(name) for name in systems]
    if not names:
        raise InputError(f"name is missing: {word} needs a system of `jaxfl list`, or a config that names it.")
    if len(set(names)) < len(names):
        raise InputError(f"systems {', '.join(names)} name one twice, but each can be compared once.")
    earlier = config.load(command.config) if command.config else None
    if command.resume is not None:
        earlier = _same(command)
    setup = own_options(setup, names, earlier)
    world = prepare(setup, names)
    arms = fit.arms(world, names, setup, None if earlier is None else earlier[1])
    mesh = mesh_of(setup.devices, world.setup.nodes)
    if command.resume is None:
        folder = results.new_folder(setup.out, f"{word}-{'-'.join(names)[:60]}")
        results.write(folder / "config.toml", config.saved(word, systems, setup, world.setup))
        results.describe(world, arms, folder)
    else:
        folder = Path(command.resume)
    histories, seconds, code = {}, {}, 0
    with contextlib.suppress(KeyboardInterrupt):
        code = 130
        for i, (name, arm) in enumerate(arms.items()):
            began = time.perf_counter()
            print(f"{i + 1}/{len(arms)} {name} ...", file=sys.stderr, flush=True)
            resume = (folder / name / "log.jsonl").exists()
            histories[name] = history_of(arm, setup, folder / name, mesh, checkpoints=setup.checkpoints, resume=resume)
            seconds[name] = time.perf_counter() - began
            results.write_history(folder, histories)
            print(f"{i + 1}/{len(arms)} {name} {seconds[name]:.1f} s", file=sys.stderr, flush=True)
        code = 0
    if code:
        print(f"jaxfl: interrupted; what was computed is in {folder}.", file=sys.stderr)
    if seconds:
        finished = {name: histories[name] for name in seconds}
        results.conclude(world, finished, seconds, folder, as_json=command.json)
    return code


def history_of(arm: Arm, setup: Setup, out: Path, mesh: Any, **arguments: Any) -> Any:
    """The history of one system as long and as often as the setup says; `arguments` go to `engine.run.run`."""
    return engine.run(
        arm.algorithm,
        arm.scenario,
        arm.model,
        setup.rounds,
        seed=setup.seed,
        seeds=setup.seeds,
        every=setup.every,
        evaluate=arm.metric,
        out=out,
        mesh=mesh,
        **arguments,
    ).history


def _same(command: Run | Compare) -> tuple[list[str], Setup]:
    """The systems and the setup of a run that goes on, which can only be as it began."""
    systems, setup = config.load(Path(str(command.resume)) / "config.toml")
    asked = [command.name] if isinstance(command, Run) else list(command.names)
    if command.config is not None or command.setup != setup or asked != systems:
        raise InputError("resume goes on with a run's own systems and options, but others are given beside it.")
    return systems, setup
