"""The engine: scanned chunks of rounds, seeds and swept values in one program, evaluation, log, checkpoints."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxfl.core import Algorithm, Array, Env, Metric, Scenario, State, Tree
from jaxfl.engine import checkpoint, heard, identity, keys, programs, watch
from jaxfl.engine.arguments import (
    built,
    check_algorithm,
    check_carry,
    check_counts,
    check_names,
    check_parts,
    check_scores,
    whole,
)
from jaxfl.engine.callbacks import Callback, Calls, Progress
from jaxfl.engine.disk import held
from jaxfl.engine.history import LOG, Recorder
from jaxfl.engine.progress import bar
from jaxfl.engine.runs import Runs, lay_out, of_a_seed, over_runs, run_mesh, side_by_side
from jaxfl.engine.sharding import (
    Border,
    by_node,
    everywhere,
    in_shards,
    mesh_for,
    placement,
    put,
    put_state,
    to_host,
    wait_for_all,
)
from jaxfl.errors import InputError
from jaxfl.exchange.personal import answer
from jaxfl.exchange.rules import all_finite
from jaxfl.mapping.blocks import block_of
from jaxfl.mapping.canonical import canonical


class Carry(NamedTuple):
    """Where a run stands. A pytree; only `state` goes to the devices."""

    t: int  # rounds finished
    state: Tree  # (state of the world, State)
    spent: dict[str, np.ndarray]  # running totals of the history by column, [runs] float64; {}: nothing so far


class Result(NamedTuple):
    """What `run` returns; with `seeds` every array of `state` has a leading seed axis."""

    history: Any  # pandas frame, one row a seed and round
    # by node: what was logged, [s, rounds, n], of the rounds in the history; what the metric measured so,
    # [s, evaluations, n], and beside it "evaluated", [s, evaluations], the rounds after which that was
    nodes: dict[str, np.ndarray]
    state: State
    carry: Carry  # give it to `run(carry=...)` to go on
    interrupted: bool = False  # Ctrl-C ended it: all is of the rounds finished until then
    seconds: float = 0.0  # how long it took, with what a resumed run took up to its checkpoint


def build(algorithm: Algorithm | Callable[..., Algorithm], hyper: dict) -> Algorithm:
    """An `Algorithm` as it is, a factory called with the traced `hyper`.

    Raises:
        InputError: `hyper` for an algorithm that is built already, or that the factory does not take.
    """
    check_algorithm(algorithm, hyper)
    return algorithm if isinstance(algorithm, Algorithm) else built(algorithm, hyper)


def _env(t, now, data, byz, links):
    return Env(t, now.seconds, data, now.graph, heard.marked(now), byz, now.alive, links, now.share)


def _first(algorithm, scenario, draw, x, key, hyper, arrays, data, byz, links):
    world = scenario[0](keys.init_key(key, "world"), arrays)
    _, now = scenario[1](keys.round_key(key, jnp.int32(0), "world"), arrays, world, jnp.int32(0))
    if draw is not None:  # one at a time: some models draw by LAPACK (`jaxfl.mapping.linalg`), and runs are vmapped
        x = jax.custom_batching.sequential_vmap(draw)(keys.model_key(key))
    env = _env(jnp.int32(0), now, data, byz, links)
    carry = world, build(algorithm, hyper).init(keys.init_key(key, "algorithm"), env, x)
    world, state = jax.tree.map(_strong, carry)
    return everywhere(world), in_shards(state, byz.shape[0])


def _strong(a: Array) -> Array:
    """Without a weak type, which a round would strengthen: the next call would compile again."""
    return a if jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key) else jnp.asarray(a, jnp.result_type(a))


def _down_stay(alive: Array, old: State, new: State) -> State:
    """`new`, in which what nodes keep is `old` for those that are down: they neither learn, hear nor forget."""

    def stay(new: Array, old: Array) -> Array:
        by_node = new.ndim and new.shape[0] == alive.shape[0]
        return jnp.where(alive.reshape(-1, *[1] * (new.ndim - 1)), new, old) if by_node else new

    mail = new.mail._replace(nodes=jax.tree.map(stay, new.mail.nodes, old.mail.nodes))
    return new._replace(nodes=jax.tree.map(stay, new.nodes, old.nodes), mail=mail)


def _rounds(algorithm, step, count, t, carry, key, hyper, arrays, data, byz, links):
    algorithm, n = build(algorithm, hyper), byz.shape[0]

    def body(carry, t):
        world, state = carry[0], by_node(carry[1], n)
        world, now = everywhere(step(keys.round_key(key, t, "world"), arrays, world, t))
        new, log = algorithm.round(keys.round_key(key, t, "algorithm"), _env(t, now, data, byz, links), state)
        if links is not None and "seconds" not in log:
            raise InputError("links are given, but this system logs no `seconds`: train by `at`, send by net's verbs.")
        new = new if now.alive is None else _down_stay(now.alive, state, new)
        own = {"seconds": now.seconds + log.get("seconds", 0.0), "waiting": now.cohort.waiting}
        own["updates"] = None if now.cohort.updates is None else now.cohort.updates.sum()
        return (world, in_shards(new, n)), dict(log) | {name: v for name, v in own.items() if v is not None}

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


@partial(jax.jit, static_argnames=("algorithm", "measure", "runs", "block", "n"))
def _evaluate(algorithm, measure, runs, block, n, state, hyper, arrays):
    def one(arrays, _, hyper, state):
        found = answer(build(algorithm, hyper), by_node(state, n))
        scores, each = check_scores(measure(arrays, found))
        floats = [a for a in map(jnp.asarray, jax.tree.leaves(found)) if jnp.issubdtype(a.dtype, jnp.floating)]
        if floats:
            rows = [a.reshape(-1, a.shape[-1]) if a.ndim else a[None, None] for a in floats]
            scores = {"diverged": sum((~all_finite(r)).sum() for r in rows)} | scores
        return (), (scores, each)

    with block_of(block):
        return over_runs(one, runs, arrays, (), hyper, state)[1]


def _by_run(tree: Tree, runs: Runs | None) -> dict[str, np.ndarray]:
    """To the host, with a leading axis of runs in any case."""
    got = to_host(tree)
    return got if runs is not None else {name: np.asarray(a)[None] for name, a in got.items()}


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
        mesh = run_mesh(runs) or mesh_for(n)
    fixed = key, hyper, scenario.arrays, scenario.data, scenario.byz, scenario.links
    draw, x = (canonical(model), None) if callable(model) else (None, jax.tree.map(jnp.asarray, model))
    return mesh, labels, runs, draw, x, fixed


def shapes_on(mesh: Mesh | None, carry: tuple, runs: Runs | None, n: int) -> tuple:
    """Shapes of a carry where `run` would put it."""
    if mesh is None:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), carry)
    on = lambda a, spec: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))
    world, state = carry
    of_world = jax.tree.map(lambda a: on(a, of_a_seed(mesh, runs)), world)
    return of_world, jax.tree.map(on, state, placement(mesh, state, runs is not None, n))


def _foreseen(algorithm, scenario, evaluate, labels, count, how, model, fixed) -> tuple[tuple, Runs | None]:
    """Shapes of the carry, and the runs side by side, from tracing alone; columns that hide another are refused."""
    (runs, seed_block, block, mesh), (draw, x), n = how, model, scenario.byz.shape[0]
    carry = shapes_on(mesh, _start.eval_shape(algorithm, scenario[:2], draw, runs, x, *fixed), runs, n)
    runs = side_by_side(runs, carry[1], seed_block)
    traced = _chunk.trace(algorithm, scenario.step, count, runs, block, np.int32(0), carry, *fixed)
    heard.require_heard(traced.jaxpr)
    scores, logs = {}, traced.out_info[1]
    if evaluate is not None:
        scores, _ = _evaluate.eval_shape(
            algorithm, evaluate.measure, runs, block, n, carry[1], fixed[1], evaluate.arrays
        )
    check_names(labels[0], logs, scores)
    return carry, runs


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
    callback: Callback | Sequence[Callback] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Result:
    """Run `rounds` rounds; after Ctrl-C those of the chunk under way, and what is finished is returned.

    Args:
        algorithm: an `Algorithm`, or a factory of one called with `hyper`.
        scenario: the world and the data.
        model: the first model `[d]` (a tree of them for unlike architectures), or a function of a key that draws it
            (`task.init`): another one each seed.
        rounds: rounds in all, counted from the start also when resuming.
        seed: the first seed.
        seeds: run seeds `seed, seed + 1, ...` in one program; None is one seed without a seed axis.
        hyper: numbers the factory takes, none for an algorithm that is built. They are traced: other values compile
            nothing. A list of values makes one run a value (and seed), all in one program, and a column of the history;
            several lists go together value by value (`grid` makes lists of all combinations).
        every: rounds between evaluations, log lines and checkpoints (None: a tenth of `rounds`).
        evaluate: what is measured at the start and after every chunk, in columns of its own; what it measures by node
            is in `Result.nodes`, and in the columns its distribution (`engine.distribution`).
        out: folder for `log.jsonl`, what is logged by node (`nodes/`) and checkpoints; made if absent, and held by one
            run at a time.
        checkpoints: save after every chunk to `out`.
        resume: go on from the newest checkpoint in `out`; the result then is of all rounds. Where the run was cut off
            before its first checkpoint it begins anew.
        carry: go on from the `carry` of an earlier result. History and nodes are of the further rounds, totals of all.
        mesh: devices over which nodes (`sharding.node_mesh`) or runs (`runs.run_mesh`) are spread; None takes all there
            are for runs if they divide these, else for nodes; these they need not divide.
        block: nodes mapped at once on a device (None: chosen by bytes).
        seed_block: runs advanced side by side (None: chosen by bytes).
        progress: show a bar, or off a terminal and a notebook a line a tenth of the rounds (None: the bar only).
        callback: a function, or several, called with a `callbacks.Progress` at the start and after every chunk (what
            `out` gets is written by then); one that returns True ends the run.
        origin: words and numbers by name that a run must have in common with the checkpoint it goes on from, beside
            seeds, `hyper`, algorithm, world, data, model and metric.

    Raises:
        CallbackError: a callback raised an error. Its `result` is what `run` would have returned.
        InputError: for an argument of another kind or out of range, a measurement called as another column, a log that
            exists, a damaged or foreign checkpoint or carry, a folder that another run writes to.
    """
    rounds = whole("rounds", rounds)
    check_counts(seed, seeds, every=every, block=block, seed_block=seed_block)
    check_parts(algorithm, scenario, model, evaluate, hyper, mesh)
    if carry is not None and not isinstance(carry, Carry):
        raise InputError("carry must be `Result.carry`, or a `Carry` that says what was spent before.")
    calls = Calls(callback)
    every = max(1, rounds // 10) if every is None else int(every)
    folder = None if out is None else Path(out)
    if (checkpoints or resume) and folder is None:
        raise InputError("out is None, but checkpoints and resume need a folder.")
    if folder is not None:
        checkpoint.check_new(folder, resume)
        wait_for_all("folder checked")
    programs.bounded(_start, _chunk, _evaluate)
    given = hyper
    metric, algorithm, evaluate = evaluate, canonical(algorithm), shared_measure(evaluate)
    mesh, labels, runs, draw, x, fixed = inputs(scenario, model, seed, seeds, hyper, mesh)
    hyper = fixed[1]
    with contextlib.ExitStack() as during:
        if mesh is not None:
            during.enter_context(jax.set_mesh(mesh))
            fixed, x = put(mesh, (fixed, x))
            evaluate = None if evaluate is None else evaluate._replace(arrays=put(mesh, evaluate.arrays))
        t, spent = (0, {}) if carry is None else (carry.t, carry.spent)
        log = None if folder is None else folder / LOG
        recorder = Recorder(labels, log, jax.process_index() == 0, spent)
        count = min(every, max(1, rounds - t))
        how = runs, seed_block, block, mesh
        like, sides = _foreseen(algorithm, scenario, evaluate, labels, count, how, (draw, x), fixed)
        border = Border(mesh, scenario.byz.shape[0], runs is not None)
        if carry is not None:
            check_carry(carry, border.shapes(like), len(labels))
            carry = border.back(carry.state)
        else:
            carry = _start(algorithm, scenario[:2], draw, runs, x, *fixed)
        if mesh is not None:
            carry = put(mesh, carry[0], of_a_seed(mesh, runs)), put_state(mesh, carry[1], border.several, border.n)
        runs, own = sides, None
        if folder is not None:
            if jax.process_index() == 0:
                during.enter_context(held(folder))
            if checkpoints or resume:
                parts = {"algorithm": algorithm, "world": scenario._replace(data=()), "data": scenario.data}
                own = identity.of_run(labels, given, origin, **parts, model=model, metric=metric)
            like = border.out(carry) if resume else carry
            begun = checkpoint.begin(folder, recorder, like, own, resume=resume, keep=checkpoints)
            if begun is not None:
                t, carry = begun[0], border.back(begun[1]) if border.phantoms else begun[1]
        if t > rounds:
            raise InputError(f"rounds is {rounds}, but {t} are finished already.")
        out_of = lru_cache(1)(lambda t: border.out(carry))  # what others see of the carry, copied once a chunk

        def scores():
            if evaluate is None:
                return {}, {}
            got = _evaluate(algorithm, evaluate.measure, runs, block, border.n, carry[1], hyper, evaluate.arrays)
            return tuple(_by_run(part, runs) for part in got)

        def result():
            going_on, took = Carry(t, out_of(t), recorder.spent), recorder.seconds
            nodes = recorder.by_node()
            return Result(recorder.frame(), nodes, going_on.state[1], going_on, calls.interrupted, took)

        def tell(count):
            rows = recorder.rows[-count * (len(labels) - 1) - 1 :: count]  # the last of each run
            if calls.callbacks:
                calls.tell(Progress(t, rounds, list(map(dict, rows)), labels, out_of(t)[1]), result)

        with calls, bar(rounds, t, progress) as advance:
            if t == 0:
                with watch.over("the start"):
                    recorder.add(0, {}, *scores())
                tell(1)
            while t < rounds and not calls.over:
                count = min(every, rounds - t)
                out_of.cache_clear()
                with watch.over(f"rounds {t + 1} to {t + count}"):
                    carry, logs = _chunk(algorithm, scenario.step, count, runs, block, np.int32(t), carry, *fixed)
                    logs, measured = _by_run(logs, runs), scores()
                recorder.add(t, logs, *measured)
                t += count
                if checkpoints and folder is not None:
                    checkpoint.save(folder, t, out_of(t), recorder.mark() | {"identity": own})
                advance(t, measured[0])
                tell(count)
            calls.close(result)
        return result()
