"""The engine: scanned chunks of rounds, seeds and swept values in one program, evaluation, log, checkpoints."""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxfl.blocks import block_of
from jaxfl.canonical import canonical
from jaxfl.core import Algorithm, Array, Env, InputError, Metric, Scenario, State, Tree
from jaxfl.engine import checkpoint, keys
from jaxfl.engine.history import Recorder
from jaxfl.engine.place import everywhere, keep_place, node_mesh, place, place_state, to_host, wait_for_all
from jaxfl.engine.progress import bar
from jaxfl.engine.runs import Runs, lay_out, of_a_seed, over_runs, run_mesh, side_by_side


class Result(NamedTuple):
    """What `run` returns; with `seeds` every array of `state` has a leading seed axis."""

    history: Any  # pandas frame, one row a seed and round
    nodes: dict[str, np.ndarray]  # what was logged by node, [s, rounds, n]
    state: State
    carry: Tree  # give it to `run(carry=...)` to go on


def build(algorithm: Algorithm | Callable[..., Algorithm], hyper: dict) -> Algorithm:
    """An `Algorithm` as it is, a factory called with the traced `hyper`."""
    return algorithm(**hyper) if callable(algorithm) else algorithm


def _env(t, now, data, byz, links):
    return Env(t, now.seconds, data, now.graph, now.cohort, byz, now.alive, links)


def _first(algorithm, scenario, draw, x, key, hyper, arrays, data, byz, links):
    world = scenario[0](keys.init_key(key, "world"), arrays)
    _, now = scenario[1](keys.round_key(key, jnp.int32(0), "world"), arrays, world, jnp.int32(0))
    x = x if draw is None else draw(keys.model_key(key))
    env = _env(jnp.int32(0), now, data, byz, links)
    carry = world, build(algorithm, hyper).init(keys.init_key(key, "algorithm"), env, x)
    world, state = jax.tree.map(_strong, carry)
    return everywhere(world), keep_place(state)


def _strong(a: Array) -> Array:
    """Without a weak type, which a round would strengthen: the next call would compile again."""
    return a if jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key) else jnp.asarray(a, jnp.result_type(a))


def _rounds(algorithm, step, count, t, carry, key, hyper, arrays, data, byz, links):
    algorithm = build(algorithm, hyper)

    def body(carry, t):
        world, state = carry
        world, now = everywhere(step(keys.round_key(key, t, "world"), arrays, world, t))
        env = _env(t, now, data, byz, links)
        state, log = algorithm.round(keys.round_key(key, t, "algorithm"), env, state)
        return (world, keep_place(state)), {"seconds": env.seconds} | log

    return jax.lax.scan(body, carry, t + jnp.arange(count))


@partial(jax.jit, static_argnames=("algorithm", "scenario", "draw", "runs"))
def _start(algorithm, scenario, draw, runs, x, key, hyper, *rest):
    first = lambda common, k, h, _: _first(algorithm, scenario, draw, common[0], k, h, *common[1])
    return over_runs(first, runs, (x, rest), key, hyper, ())


@partial(jax.jit, static_argnames=("algorithm", "step", "count", "runs", "block"), donate_argnames=("carry",))
def _chunk(algorithm, step, count, runs, block, t, carry, key, hyper, *rest):
    def advance(common, of_seed, h, state):
        (t, rest), (k, world) = common, of_seed
        (world, state), logs = _rounds(algorithm, step, count, t, (world, state), k, h, *rest)
        return world, (state, logs)

    world, state = carry
    with block_of(block):
        world, (state, logs) = over_runs(advance, runs, (t, rest), (key, world), hyper, state)
    return (world, state), logs


@partial(jax.jit, static_argnames=("algorithm", "measure", "runs", "block"))
def _evaluate(algorithm, measure, runs, block, state, hyper, arrays):
    def one(arrays, _, hyper, state):
        answer = build(algorithm, hyper).read(state)
        scores = measure(arrays, answer)
        floats = [a for a in map(jnp.asarray, jax.tree.leaves(answer)) if jnp.issubdtype(a.dtype, jnp.floating)]
        if floats:
            rows = [a.reshape(-1, a.shape[-1]) if a.ndim else a[None, None] for a in floats]
            scores = {"diverged": sum((~jnp.isfinite(r).all(1)).sum() for r in rows)} | scores
        return (), scores

    with block_of(block):
        return over_runs(one, runs, arrays, (), hyper, state)[1]


def _by_run(tree: Tree, runs: Runs | None) -> dict[str, np.ndarray]:
    """To the host, with a leading axis of runs in any case."""
    got = to_host(tree)
    return got if runs is not None else {name: np.asarray(a)[None] for name, a in got.items()}


def rollout(
    algorithm: Algorithm | Callable[..., Algorithm],
    scenario: Scenario,
    model: Array,
    rounds: int,
    *,
    seed: int = 0,
    hyper: dict | None = None,
) -> tuple[State, dict]:
    """A whole simulation as a pure function: final state and logs `[rounds, ...]`.

    It may be differentiated, vmapped and jitted, with respect to `model` `[d]`, `hyper`, or arrays inside `scenario`
    (mixing weights, data). It computes what `run` computes.
    """
    world = scenario.arrays, scenario.data, scenario.byz, scenario.links
    carry = _first(algorithm, scenario[:2], None, model, keys.run_key(seed), hyper or {}, *world)
    (_, (_, state)), logs = rollout_from(algorithm, scenario, (0, carry), rounds, seed=seed, hyper=hyper)
    return state, logs


def rollout_from(
    algorithm: Algorithm | Callable[..., Algorithm],
    scenario: Scenario,
    carry: Tree,
    rounds: int,
    *,
    seed: int | Array = 0,
    hyper: dict | None = None,
) -> tuple[Tree, dict]:
    """`rollout` from where a run stopped: the new carry and the logs `[rounds, ...]`.

    `carry` is `(t, (state of the world, State))`, as in `Result.carry` of a run without a seed axis; a run with seeds
    is vmapped over the second part and `seed`. The world of the further rounds may differ from that of the run in its
    arrays, and the algorithm in what it logs.
    """
    t, carry = carry
    world = scenario.arrays, scenario.data, scenario.byz, scenario.links
    carry, logs = _rounds(
        algorithm, scenario.step, rounds, jnp.int32(t), carry, keys.run_key(seed), hyper or {}, *world
    )
    return (t + rounds, carry), logs


def shared_measure(evaluate: Metric | None) -> Metric | None:
    """The metric with the one function of its make, of which there is a compiled program perhaps."""
    return None if evaluate is None else evaluate._replace(measure=canonical(evaluate.measure))


def inputs(scenario: Scenario, model, seed: int, seeds: int | None, hyper: dict | None, mesh: Mesh | None) -> tuple:
    """What the compiled programs of a run are called with, not yet placed.

    Returns the mesh, the runs' labels, the runs (None: one without an axis of runs), the function that draws a model or
    None, a given model or None, and what does not change: `(key, hyper, arrays, data, byz, links)`.
    """
    n = scenario.byz.shape[0]
    labels, runs, key, hyper = lay_out(seed, seeds, hyper or {})
    if mesh is None and jax.device_count() > 1:
        mesh = run_mesh(runs) or node_mesh(max(k for k in range(1, jax.device_count() + 1) if n % k == 0))
    fixed = key, hyper, scenario.arrays, scenario.data, scenario.byz, scenario.links
    draw, x = (canonical(model), None) if callable(model) else (None, jax.tree.map(jnp.asarray, model))
    return mesh, labels, runs, draw, x, fixed


def run(
    algorithm: Algorithm | Callable[..., Algorithm],
    scenario: Scenario,
    model: Tree | Callable[[Array], Tree],
    rounds: int,
    *,
    seed: int = 0,
    seeds: int | None = None,
    hyper: dict | None = None,
    every: int | None = None,
    evaluate: Metric | None = None,
    out: str | Path | None = None,
    checkpoints: bool = False,
    resume: bool = False,
    carry: Tree = None,
    mesh: Mesh | None = None,
    block: int | None = None,
    seed_block: int | None = None,
    progress: bool | None = None,
) -> Result:
    """Run `rounds` rounds.

    Args:
        algorithm: an `Algorithm`, or a factory of one called with `hyper`.
        scenario: the world and the data.
        model: the first model `[d]` (a tree of them for unlike architectures), or a function of a key that draws it
            (`task.init`): another one each seed.
        rounds: rounds in all, counted from the start also when resuming.
        seed: the first seed.
        seeds: run seeds `seed, seed + 1, ...` in one program; None is one seed without a seed axis.
        hyper: numbers the factory takes. They are traced: other values compile nothing. A list of values makes one
            run a value (and seed), all in one program, and a column of the history; several lists go together value
            by value (`grid` makes lists of all combinations).
        every: rounds between evaluations, log lines and checkpoints (None: a tenth of `rounds`).
        evaluate: what is measured at the start and after every chunk.
        out: folder for `log.jsonl` and checkpoints; made if absent.
        checkpoints: save after every chunk to `out`.
        resume: go on from the newest checkpoint in `out`.
        carry: go on from the `carry` of an earlier result.
        mesh: devices over which nodes (`place.node_mesh`) or runs (`runs.run_mesh`) are spread; None takes all there
            are for runs if they divide these, else for nodes as many as divide them.
        block: nodes mapped at once on a device (None: chosen by bytes).
        seed_block: runs advanced side by side (None: chosen by bytes).
        progress: show a bar (None: on a terminal).

    Raises:
        InputError: for an argument out of range, a log that exists, a damaged or foreign checkpoint.
    """
    folder = None if out is None else Path(out)
    for name, value in (("rounds", rounds), ("every", every), ("seeds", seeds), ("seed_block", seed_block)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}, but must be a whole number of at least 1.")
    every = max(1, rounds // 10) if every is None else every
    if (checkpoints or resume) and folder is None:
        raise InputError("out is None, but checkpoints and resume need a folder.")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "log.jsonl").exists() and not resume:
            raise InputError(f"out: {folder} holds a run already; choose another folder or resume it.")
        wait_for_all("folder checked")

    algorithm, evaluate = canonical(algorithm), shared_measure(evaluate)
    mesh, labels, runs, draw, x, fixed = inputs(scenario, model, seed, seeds, hyper, mesh)
    hyper = fixed[1]
    with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
        if mesh is not None:
            fixed, x = place(mesh, (fixed, x))
            evaluate = None if evaluate is None else evaluate._replace(arrays=place(mesh, evaluate.arrays))
        t = 0
        if carry is not None:
            t, carry = carry
            carry = jax.tree.map(jnp.copy, carry)
        else:
            carry = _start(algorithm, scenario[:2], draw, runs, x, *fixed)
            if mesh is not None:
                carry = place(mesh, carry[0], of_a_seed(mesh, runs)), place_state(mesh, carry[1], runs is not None)
        runs = side_by_side(runs, carry[1], seed_block)
        recorder = Recorder(labels, None if folder is None else folder / "log.jsonl", jax.process_index() == 0)
        if resume and folder is not None:
            t, carry = checkpoint.load(folder, carry)
            recorder.go_on(t)

        def scores():
            if evaluate is None:
                return {}
            got = _evaluate(algorithm, evaluate.measure, runs, block, carry[1], hyper, evaluate.arrays)
            return _by_run(got, runs)

        if t == 0:
            recorder.add(0, {}, scores())
        with bar(rounds, t, progress) as advance:
            while t < rounds:
                count = min(every, rounds - t)
                carry, logs = _chunk(algorithm, scenario.step, count, runs, block, np.int32(t), carry, *fixed)
                logs, measured = _by_run(logs, runs), scores()
                recorder.add(t, logs, measured)
                t += count
                if checkpoints and folder is not None:
                    checkpoint.save(folder, t, carry)
                advance(t, measured)
    nodes = {name: np.concatenate(parts, 1) for name, parts in recorder.nodes.items()}
    return Result(recorder.frame(), nodes, carry[1], (t, carry))
