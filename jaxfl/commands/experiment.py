"""`jaxfl run` and `jaxfl compare`: systems in one world, one after the other."""

import contextlib
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxfl import plugins
from jaxfl.commands import process, results
from jaxfl.commands.start import mesh_of
from jaxfl.engine import checkpoint, plan
from jaxfl.engine import run as engine
from jaxfl.engine.run import Result
from jaxfl.errors import InputError
from jaxfl.options import fit, kept, memory
from jaxfl.options.build import Arm, World, prepare
from jaxfl.options.commands import Compare, Run, Sweep, name_of
from jaxfl.options.config import Setup
from jaxfl.options.systems import label_of, own_options, settings_of


def main(command: Run | Compare) -> int:
    """Run the systems; what is finished is written and shown also after a failure and an interrupt.

    Raises:
        InputError: a bad option.
    """
    setup = command.setup
    word, typed = ("run", [name_of(command)]) if isinstance(command, Run) else ("compare", list(command.names))
    systems = [_spelt(name) for name in typed]
    names = [label_of(name) for name in systems]
    if not names:
        raise InputError(f"name is missing: {word} needs a system of `jaxfl list`, or a config that names it.")
    for i, name in enumerate(names):
        if any(_alike(name, other) for other in names[:i]):
            raise InputError(f"systems {', '.join(names)} name one twice: give it other options, NAME:KEY=VALUE.")
    earlier = kept.load(command.config) if command.config else None
    if command.resume is not None:
        earlier = same(command)
    setup = own_options(setup, names, earlier)
    origins = {name: {"system": name, **kept.deciding(word, systems, setup)} for name in names}
    if command.resume is not None:  # before a world is built of what may have been changed
        for name, origin in origins.items():
            checkpoint.check_origin(Path(command.resume) / results.file_name(name), origin)
    world = prepare(setup, [plugins.split(name)[0] for name in names])
    arms = fit.arms(world, names, setup, None if earlier is None else earlier[1])
    for name, arm in arms.items():
        check_state(name, arm, setup.seeds)
    mesh = mesh_of(setup.devices, world.setup.nodes)
    label = f"{word}-{'-'.join(map(results.file_name, names))[:60]}"
    is_new = command.resume is None
    with results.new_folder(setup.out, label) if is_new else results.old_folder(str(command.resume)) as folder:
        results.describe(world, arms, folder)
        if is_new:
            results.write(folder / results.CONFIG, kept.saved(word, systems, setup, world.setup))
        return _run_all(command, world, arms, folder, mesh, setup, origins)


def _run_all(
    command: Run | Compare,
    world: World,
    arms: Mapping[str, Arm],
    folder: Path,
    mesh: Any,
    setup: Setup,
    origins: Mapping[str, Mapping[str, Any]],
) -> int:
    """Run the systems one after the other; what is finished is written after each."""
    histories, nodes, seconds, ended, failed, at = {}, {}, {}, False, None, ""
    process.gently()
    try:
        for i, (name, arm) in enumerate(arms.items()):
            print(f"{i + 1}/{len(arms)} {name} ...", file=sys.stderr, flush=True)
            own = folder / results.file_name(name)
            resumed = {"checkpoints": setup.checkpoints, "resume": command.resume is not None}
            result = result_of(arm, setup, own, mesh, origin=origins[name], **resumed)
            histories[name], nodes[name], seconds[name] = result.history, result.nodes, result.seconds
            results.write_history(folder, histories)
            results.keep_models(own, name, arm, result, world)
            print(f"{i + 1}/{len(arms)} {name} {seconds[name]:.1f} s", file=sys.stderr, flush=True)
            if result.interrupted:
                at = f" at round {result.carry.t} of {name}"
                break
        else:
            ended = True
    except KeyboardInterrupt:
        pass
    except InputError as error:
        failed = error
    code = 0 if ended or failed else process.exit_code()
    if code:
        say_interrupted("run" if isinstance(command, Run) else "compare", folder, setup, at)
    with contextlib.suppress(InputError) if failed else contextlib.nullcontext():
        if seconds:
            results.conclude(world, histories, seconds, folder, nodes=nodes, as_json=command.json)
    if failed:
        raise failed
    return code


def say_interrupted(word: str, folder: Path, setup: Setup, at: str = "") -> None:
    """The line after Ctrl-C and SIGTERM, with the command that goes on."""
    again = f"`jaxfl {word} --resume {shlex.quote(str(folder))}`"
    on = f"{again} goes on" if setup.checkpoints else "with --checkpoints it could go on"
    print(f"jaxfl: interrupted{at}; what was computed is in {folder}; {on}.", file=sys.stderr)


def _spelt(typed: str) -> str:
    name, settings = plugins.split(typed)
    return plugins.join(name if plugins.is_place(name) else plugins.spelt(name), settings)


def _alike(a: str, b: str) -> bool:
    """Whether two labels are of one system with the same settings, in whatever order and spelling."""
    return plugins.split(a)[0] == plugins.split(b)[0] and settings_of(a) == settings_of(b)


def check_state(name: str, arm: Arm, seeds: int, hyper: dict[str, Any] | None = None) -> None:
    """Raise InputError for a system whose state has no place on this machine; accelerators have their own memory."""
    if jax.default_backend() == "cpu":
        needed = plan.state_bytes(arm.algorithm, arm.scenario, arm.model, seeds, hyper)
        memory.require(f"system {name}: its state", needed)


def result_of(arm: Arm, setup: Setup, out: Path, mesh: Any, **arguments: Any) -> Result:
    """The result of one system as long and as often as the setup says; `arguments` go to `engine.run.run`."""
    with memory.said():
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
            progress=True,
            **arguments,
        )


def same(command: Run | Compare | Sweep) -> tuple[list[str], Setup]:
    """The systems and the setup of a run that goes on, which can only be as it began.

    Raises:
        InputError: it is of another command, has no checkpoints, or other options are given beside it.
    """
    where, word = str(command.resume), type(command).__name__.lower()
    path = Path(where) / results.CONFIG
    (systems, setup), own = kept.load(path), kept.own(path)
    if (began := own.get("command", word)) != word:
        raise InputError(f"resume: {where} is of `jaxfl {began}`, so type `jaxfl {began} --resume {where}`.")
    asked = list(command.names) if isinstance(command, Compare) else [command.name]
    others = command.config is not None or command.setup != setup or asked != systems
    if isinstance(command, Sweep):
        others |= command.grid not in ((), own.get("grid")) or command.score not in (None, own.get("score"))
    if others:
        raise InputError("resume goes on with a run's own systems and options, but others are given beside it.")
    if not setup.checkpoints:
        again = f"`--config {path}` runs it again"
        raise InputError(f"resume: {where} was run without --checkpoints, so there is nothing to go on from; {again}.")
    return systems, setup
