"""From options to what the engine runs: the world that systems share, and every system in it.

All checks come before anything is compiled. What the names of options stand for is in the files beside this one.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxfl import plugins, zoo
from jaxfl.core import Algorithm, Graph, Links, Metric, Process, Scenario, Shards, constant
from jaxfl.data.hold_out import hold_out
from jaxfl.data.holdings import label_discrepancy
from jaxfl.data.sets import Dataset
from jaxfl.errors import InputError
from jaxfl.learn.task import Task
from jaxfl.measure.metrics import distance_to, together
from jaxfl.options import memory
from jaxfl.options.availability import availability
from jaxfl.options.config import TIMES, Setup, check, filled
from jaxfl.options.data import dataset_of, shards_of, suited
from jaxfl.options.jobs import Law, barrier, clock_of, law_of, steps_of, timed
from jaxfl.options.learning import local_metric_of, metric_of, task_of
from jaxfl.options.network import network_of
from jaxfl.options.systems import accepted
from jaxfl.options.topology import in_degree, topology_of
from jaxfl.options.weights import spelt
from jaxfl.paper import Example, Given
from jaxfl.world import churn, weights
from jaxfl.world.cohort import everyone, stratified, uniform
from jaxfl.world.links import links
from jaxfl.world.regions import links_from_csv
from jaxfl.world.scenario import scenario
from jaxfl.world.traces import Trace, load_trace
from jaxfl.world.weights import Weights

VALUES = 8  # numbers a node averages in a protocol


class World(NamedTuple):
    """What all systems of a comparison share, built once. For protocols `dataset` and `task` are None."""

    setup: Setup  # with partition, model, nodes and all of `config.filled` filled in
    dataset: Dataset | None
    data: Shards | np.ndarray  # shards, or the values [n, VALUES] of a protocol
    task: Task | None
    metric: Metric
    topology: Graph | Process | None  # None where no system needs one
    linked: bool  # transfers and steps take time
    held_out: Shards | None = None  # what nodes keep for their own test
    trace: Trace | None = None  # durations of jobs that were measured


class Arm(NamedTuple):
    """One system, ready for `engine.run`."""

    algorithm: Algorithm | Callable[..., Algorithm]
    scenario: Scenario
    model: Any
    metric: Metric
    topology: Graph | Process | None  # who hears whom, where the system asks


def prepare(setup: Setup, systems: Sequence[str]) -> World:
    """Check the setup and build what the systems share.

    Raises:
        InputError: a bad option, files that are missing, a comparison of protocols with learning systems.
    """
    check(setup)
    linked = any(getattr(setup, name) for name in TIMES)
    kinds = {zoo.find(name).kind for name in systems}
    memory.check(setup, kinds)
    if "protocol" in kinds:
        if len(kinds) > 1:
            raise InputError(f"systems {', '.join(systems)} cannot be compared: some learn, some are protocols.")
        setup = filled(setup)
        _churn(setup)
        values = np.random.default_rng(setup.seed).standard_normal((setup.nodes, VALUES), np.float32)
        metric = distance_to(constant(values.mean(0, dtype=np.float64), np.float32))
        return World(setup, None, values, None, metric, topology_of(setup), linked)
    dataset = dataset_of(setup)
    setup = suited(setup, dataset)
    task, shards = task_of(setup, dataset), shards_of(setup, dataset)
    shards, held_out = hold_out(shards, setup.hold_out, setup.seed) if setup.hold_out else (shards, None)
    setup = filled(dataclasses.replace(setup, nodes=shards.size.shape[0]))
    check(setup)  # again, as a natural partition may have fewer nodes
    _churn(setup)
    where = topology_of(setup) if "gossip" in kinds else None
    if setup.links is not None:
        _links(setup)
    trace = load_trace(setup.trace, setup.nodes) if setup.trace is not None else None
    law = law_of(setup, trace, shards, lambda: setup.steps)
    if "server" in kinds:
        barrier(setup, _participation(setup, "", None), law, lambda: setup.steps)
    return World(setup, dataset, shards, task, metric_of(setup, task, dataset), where, linked, held_out, trace)


def build(
    world: World,
    name: str,
    options: Mapping[str, Any],
    swept: Mapping[str, Sequence[float]] = {},
    own: Example | None = None,
) -> Arm:
    """One system in its world. It gets the setup's lr, steps and batch as far as it takes them; `options` outweigh.

    With `swept` options its algorithm is a factory that takes them. `own` is `example_of(world, name)`, if known.

    Raises:
        InputError: an option the system refuses.
    """
    system, setup = zoo.find(name), world.setup
    own = example_of(world, name) if own is None else own
    task, data = world.task, world.data if own.data is None else own.data
    where = own.topology or (world.topology if system.kind in ("gossip", "protocol") else None)
    takes = accepted(system.make)
    common = {"steps": setup.steps, "batch": setup.batch or None, "sample": setup.cohort}
    common |= {} if setup.lr is None else {"lr": setup.lr}
    chosen = {k: v for k, v in common.items() if k in takes} | dict(options)
    first = own.arguments if own.arguments is not None else () if task is None else (task,)
    parameters = inspect.signature(system.make).parameters
    if {"net", "codec"} & set(parameters):
        net = network_of(setup, _heard(setup, system.kind, where, chosen), task)
        first += (net if "net" in parameters else net.codec,)
    with plugins.making("system", name):
        built, *_ = [system.make(*first, **chosen | point) for point in _tried(swept)]
    fixed = {k: v for k, v in chosen.items() if k not in swept}
    algorithm = partial(system.make, *first, **fixed) if swept else built
    parts: dict[str, Any] = {"byz": setup.byzantine}
    parts["churn"] = _churn(setup)
    speeds = _links(setup) if world.linked else None
    law = law_of(setup, world.trace, data, partial(steps_of, data, chosen)) if task is not None else None
    if law is not None and task is not None and system.kind == "asynchronous":
        parts["cohort"] = clock_of(setup, speeds, built, data, task.dim, chosen, law, own.clock)
    elif speeds is not None:
        parts |= {"links": speeds, "round_seconds": 0.0}
    if system.kind == "server" and ("sample" not in takes or own.cohort is not None):
        parts["cohort"] = _participation(setup, name, own.cohort)
    if law is not None and system.kind in ("server", "gossip") and timed(setup):
        parts["cohort"] = _barrier(setup, name, takes, parts.get("cohort"), law, partial(steps_of, data, chosen))
    if where is not None:
        parts["topology"] = where
    if system.kind in ("server", "asynchronous"):
        parts["weights"] = _weights(world, data, name, own.weights)
    if not isinstance(data, Shards):
        parts["nodes"] = setup.nodes
    model = own.model if own.model is not None else jnp.zeros(1) if task is None else task.init
    metric = own.metric or world.metric
    if world.held_out is not None and world.task is not None and own.data is None:
        metric = together(metric, local_metric_of(setup, world.task, world.held_out))
    return Arm(algorithm, scenario(data, **parts), model, metric, where)


def example_of(world: World, name: str) -> Example:
    """What a system brings of its own world; of the setup only nodes, rounds, seed and topology are asked."""
    system = zoo.find(name)
    if system.example is None:
        return Example()
    setup = world.setup
    given = Given(setup.nodes, setup.rounds, setup.seed, world.dataset, world.data, world.task, world.topology)
    return system.example(given)


def changed(world: World, **options: Any) -> World:
    """The same world with other `config.SLOTS`; what None stands for is filled in again."""
    setup = filled(dataclasses.replace(world.setup, **options))
    return world._replace(setup=setup, topology=None if world.topology is None else topology_of(setup))


def _tried(swept: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Every value of a sweep, so that what a system refuses is known at once."""
    return [{key: value} for key, values in swept.items() for value in values] or [{}]


def _heard(setup: Setup, kind: str, where: Graph | Process | None, chosen: Mapping[str, Any]) -> int:
    """Messages that a receiver combines in a round, its own included."""
    if where is not None:
        return 1 + in_degree(where)
    of_cohort = chosen.get("sample", setup.cohort)
    return {"server": of_cohort, "asynchronous": setup.goal}.get(kind, setup.nodes)


def _participation(setup: Setup, name: str, own: Callable[[int], Process] | None) -> Process:
    """Who takes part in a round; the scenario counts them by their samples."""
    if own is not None:
        if setup.strata != 1:
            raise InputError(f"strata is {setup.strata}, but {name} brings its own cohort.")
        return own(setup.cohort or 1)
    if setup.strata == 1:
        return uniform(setup.nodes, setup.cohort or 1)
    return stratified(setup.nodes, setup.cohort or 1, setup.strata)


def _barrier(
    setup: Setup, name: str, takes: Mapping, members: Process | None, law: Law, steps: Callable[[], Any]
) -> Process:
    """Rounds that last as long as their members take, all nodes where no others are named."""
    if "sample" in takes:
        said = next(f"{n} is {v}" for n in ("deadline", "trace", "durations") if (v := getattr(setup, n)) is not None)
        raise InputError(f"{said}, but {name} draws its own sample, whose members the clock does not know.")
    return barrier(setup, everyone(setup.nodes) if members is None else members, law, steps)


def _churn(setup: Setup) -> Process | None:
    """Who is up, by the options crash and availability."""
    n, gone, here = setup.nodes, None, None
    if setup.crash:
        gone = churn.crash(n, setup.crash, setup.rounds // 2, setup.seed)
    if setup.availability is not None:
        here = availability(setup.availability, n)
    return churn.both(here, gone) if here is not None and gone is not None else here or gone


def _weights(world: World, data: Any, name: str, own: str | None) -> Weights | None:
    """How much members count, by the option, or by the rule that the system brings."""
    rule, numbers = spelt(world.setup.weights)
    if own not in (None, rule):
        if rule != "size":
            raise InputError(f"weights is {world.setup.weights}, but {name} brings its own rule, {own}.")
        rule, numbers = spelt(own)
    if rule == "disco":
        classes = None if world.dataset is None else world.dataset.classes
        if classes is None or not isinstance(data, Shards):
            raise InputError(f"weights is {rule}, but data {world.setup.data} has no labels by node.")
        measure = numbers.pop("measure")
        return weights.disco(label_discrepancy(data, classes, measure), **numbers)
    return weights.uniform() if rule == "uniform" else None


def _links(setup: Setup) -> Links:
    """How fast links and nodes are."""
    rate = math.inf if setup.mbit is None else 1e6 * setup.mbit
    if setup.links is not None:
        own = {"up": rate, "access": setup.latency_ms / 1e3, "step": setup.step_ms / 1e3}
        return links_from_csv(setup.links, setup.nodes, **own)
    return links(setup.nodes, up=rate, latency=setup.latency_ms / 1e3, step=setup.step_ms / 1e3)
