"""`jaxfl sweep`: one system at every combination of values, all in one program."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxfl import plugins
from jaxfl.commands import process, results
from jaxfl.commands.experiment import check_state, result_of, same, say_interrupted
from jaxfl.commands.start import mesh_of
from jaxfl.engine import checkpoint
from jaxfl.engine import run as engine
from jaxfl.engine.arguments import check_scores
from jaxfl.engine.rollout import rollout
from jaxfl.engine.runs import grid
from jaxfl.errors import InputError
from jaxfl.options import fit, kept
from jaxfl.options.build import Arm, prepare
from jaxfl.options.commands import Sweep, name_of
from jaxfl.options.systems import grid_values, label_of, own_options
from jaxfl.report import plots, sweeps, tables


def main(command: Sweep) -> int:
    """Run every point; the best one is named, and `best.toml` runs it again.

    Raises:
        InputError: a bad option.
    """
    typed = name_of(command)
    label = label_of(typed)
    name, settings = plugins.split(label)
    is_new, path = command.resume is None, command.config
    earlier, before = (kept.load(path), kept.own(path)) if path else (None, {})
    if not is_new:
        earlier, before = same(command), kept.own(Path(str(command.resume)) / results.CONFIG)
    setup = own_options(command.setup, [label], earlier)
    values = grid_values(name, command.grid or before.get("grid", ()))
    asked = [f"{key}={','.join(map(repr, v))}" for key, v in values.items()]
    origin = {"system": label, **kept.deciding("sweep", [typed], setup, grid=asked)}
    if not is_new:  # before a world is built of what may have been changed
        checkpoint.check_origin(Path(str(command.resume)) / name, origin)
    world = prepare(setup, [name])
    given = (*setup.options, *settings.split(","))
    twice = [option for option in given if option.partition("=")[0].rpartition(".")[2].strip() in values]
    if twice:
        where = "set" if twice[0] in setup.options else "system"
        raise InputError(f"{where} is {twice[0]!r}, but --grid tries values of that option: give one of them.")
    points = grid(**values)
    arm = fit.arms(world, [label], setup, None if earlier is None else earlier[1], values)[label]
    judge = command.score or before.get("score")
    score = _score(judge, arm, {key: v[0] for key, v in points.items()})
    check_state(label, arm, setup.seeds, points)
    mesh = mesh_of(setup.devices, world.setup.nodes)
    with (
        results.new_folder(setup.out, f"sweep-{name}") if is_new else results.old_folder(str(command.resume)) as folder
    ):
        results.describe(world, {name: arm}, folder)
        if is_new:
            text = kept.saved("sweep", [typed], setup, world.setup, grid=asked, score=judge)
            results.write(folder / results.CONFIG, text)
        process.gently()
        how = {"checkpoints": setup.checkpoints, "resume": not is_new, "origin": origin}
        try:
            result = result_of(arm, setup, folder / name, mesh, hyper=points, **how)
        except KeyboardInterrupt:
            say_interrupted("sweep", folder, setup)
            return process.exit_code()
        if result.interrupted:
            say_interrupted("sweep", folder, setup, f" at round {result.carry.t} of all points")
        each = sweeps.points(result.history, list(values))
        results.write_history(folder, each, points)
        best, value = _best(each, score)
        says = f"no point has a finite {score}"
        if best is not None:
            says = f"best {score}: {value:.4g} at {best}; again: jaxfl run --config {folder / 'best.toml'}"
            at = {key: v[list(each).index(best)] for key, v in points.items()}
            chosen = dataclasses.replace(setup, options=(*setup.options, *(f"{key}={v!r}" for key, v in at.items())))
            results.write(folder / "best.toml", kept.saved("run", [typed], chosen, world.setup))
        columns = points | {"best": [label == best for label in each]}
        seconds = dict.fromkeys(each, result.seconds / len(each))
        results.conclude(world, each, seconds, folder, columns=columns, says=says, as_json=command.json)
        plots.save(sweeps.figure(result.history, list(values), score), folder / "sweep.png")
        return process.exit_code() if result.interrupted else 0


def _best(histories: dict[str, Any], score: str) -> tuple[str | None, float]:
    """The point with the best mean over seeds at the end; one with a seed that is not finite there is none."""
    ends = {point: h[h["round"] == h["round"].max()][score].mean(skipna=False) for point, h in histories.items()}
    ends = {point: value for point, value in ends.items() if jnp.isfinite(value)}
    if not ends:
        return None, float("nan")
    best = (max if score in tables.HIGHER else min)(ends, key=ends.__getitem__)
    return best, ends[best]


def _score(name: str | None, arm: Arm, point: dict[str, float]) -> str:
    """The column that judges the points, which is known without running them.

    Raises:
        InputError: the history will not have it.
    """
    key = jax.random.key(0)
    model = jax.eval_shape(arm.model, key) if callable(arm.model) else arm.model
    state, logs = jax.eval_shape(lambda x, hyper: rollout(arm.algorithm, arm.scenario, x, 1, hyper=hyper), model, point)
    read = engine.build(arm.algorithm, point).read
    scores = jax.eval_shape(
        lambda a, state: check_scores(arm.metric.measure(a, read(state)))[0], arm.metric.arrays, state
    )
    columns = [*scores, *(column for column, log in logs.items() if log.ndim == 1), "diverged"]
    if name is not None and name not in columns:
        raise InputError(f"score is {name!r}, but the history will have {', '.join(columns)}.")
    return name or next(column for column in ("accuracy", "test_loss", "error") if column in columns)
