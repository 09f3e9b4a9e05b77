"""Cohorts stratified by shard: their law, and that no row of a node then leaves its device."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import digits_world, quadratics
from scipy import stats

from jaxfl.algorithms.server.diloco import diloco
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.scaffold import scaffold
from jaxfl.core import Cohort, Strata
from jaxfl.engine.plan import counts, plan
from jaxfl.engine.run import run
from jaxfl.engine.sharding import node_mesh
from jaxfl.errors import InputError
from jaxfl.exchange import codecs
from jaxfl.exchange.network import Network
from jaxfl.exchange.staleness import FRESH, counted
from jaxfl.mapping import nodes
from jaxfl.world import cohort, durations, work
from jaxfl.world.churn import crash
from jaxfl.world.deadline import deadline
from jaxfl.world.scenario import scenario

KW = {"lr": 0.2, "steps": 2, "batch": 8}


def members(n, c, strata):
    """Who takes part: a cohort stratified into `strata` blocks, or a uniform one (None)."""
    return cohort.uniform(n, c) if strata is None else cohort.stratified(n, c, strata)


def world(n, c, strata, **kw):
    task, plain = digits_world(n=n)
    return task, scenario(plain.data, cohort=members(n, c, strata), **kw)


def small():
    task, here = world(16, 8, 8)
    feedback = Network(codec=codecs.error_feedback(codecs.top_k(20)))
    down = world(16, 8, 8, churn=cohort.availability(16, 0.8, 0.5))[1]
    return {
        "scaffold": (scaffold(task, **KW), here, task.init, 4),
        "error_feedback": (fedavg(task, feedback, **KW), down, task.init, 4),
        "diloco_everyone": (diloco(task, **KW), scenario(here.data), task.init, 2),
    }


def draws(process, count):
    """Ids `[count, c]` of independent cohorts."""
    draw = lambda key: process.step(key, process.arrays, (), 0)[1].ids
    return np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), count)))


@pytest.mark.parametrize(("n", "c", "strata"), [(24, 6, 3), (40, 32, 8), (12, 12, 4), (9, 3, 1), (4096, 64, 16)])
def test_every_block_of_slots_holds_distinct_nodes_of_its_own_block(n, c, strata):
    ids = draws(cohort.stratified(n, c, strata), 50)
    assert ids.dtype == np.int32
    assert (np.diff(ids, axis=1) > 0).all()
    np.testing.assert_array_equal(ids // (n // strata), np.tile(np.arange(c) // (c // strata), (50, 1)))


def test_every_choice_is_equally_likely_and_blocks_are_independent():
    pairs = list(itertools.combinations(range(4), 2))  # two of four nodes, in both blocks
    order = {(*a, *(i + 4 for i in b)): k for k, (a, b) in enumerate(itertools.product(pairs, pairs))}
    seen = np.bincount([order[tuple(row)] for row in draws(cohort.stratified(8, 4, 2), 7200).tolist()], minlength=36)
    assert stats.chisquare(seen).pvalue > 1e-3


def test_a_node_is_in_as_often_as_in_a_uniform_cohort():
    n, c, strata, count = 64, 16, 8, 4000
    seen = np.bincount(draws(cohort.stratified(n, c, strata), count).reshape(-1), minlength=n)
    assert seen.sum() == c * count
    assert np.abs(seen / count - c / n).max() < 4.5 * np.sqrt(c / n * (1 - c / n) / count)


def test_the_mean_move_of_fedavg_is_unbiased_and_varies_only_within_blocks():
    n, c, strata, seeds = 12, 6, 3, 600
    _, task, data = quadratics(n=n, d=3)
    algorithm = fedavg(task, lr=0.05, steps=3, batch=None)
    move = lambda who, **kw: run(algorithm, scenario(data, cohort=who), jnp.zeros(3), 1, **kw).state.shared["x"]
    got = np.asarray(move(cohort.stratified(n, c, strata), seeds=seeds), np.float64)  # [seeds, 3]
    alone = np.stack([move(cohort.everyone(n, weight=np.eye(n)[i])) for i in range(n)]).astype(np.float64)
    within = alone.reshape(strata, n // strata, 3).var(1, ddof=1).mean(0)
    variance = (1 - c / n) * within / c
    assert (np.abs(got.mean(0) - alone.mean(0)) < 4.5 * np.sqrt(variance / seeds)).all()
    np.testing.assert_allclose(got.var(0), variance, rtol=0.25)


def test_what_wraps_a_cohort_keeps_its_strata():
    who = cohort.stratified(16, 8, 4)
    wrapped = work.straggling(who, 0.5, 3)
    late = deadline(wrapped, durations.lognormal(), keep=6)
    shards = digits_world(n=16)[1].data
    here = work.skipping(scenario(shards, cohort=late, churn=crash(16, 0.1, 2)), 3, 1)
    key = jax.random.key(0)
    first = lambda key, arrays: here.step(key, arrays, here.init(key, arrays), jnp.int32(0))[1]
    now = jax.eval_shape(first, key, here.arrays)
    assert now.cohort.strata == Strata(4)
    assert jax.eval_shape(lambda c: counted(FRESH, c)[0], now.cohort).strata == Strata(4)
    assert cohort.everyone(5).step(key, cohort.everyone(5).arrays, (), 0)[1].strata == Strata(5, everyone=True)


def test_where_all_are_members_rows_are_neither_gathered_nor_scattered():
    who = Cohort(jnp.arange(6), jnp.ones(6), strata=Strata(6))
    rows, present = jnp.arange(12.0).reshape(6, 2), jnp.arange(6) % 2 == 0

    def change(rows, present):
        return nodes.map_memory(who, lambda _, k, mine: (k, 2 * mine), (), who.ids, rows, present=present)[1]

    text = jax.jit(change).lower(rows, present).compile().as_text() or ""
    assert re.findall(r"\b(gather|scatter|dynamic-update-slice|copy)\(", text) == []
    np.testing.assert_array_equal(change(rows, present), rows * np.where(present, 2, 1)[:, None])
    np.testing.assert_array_equal(nodes.put_rows(who, rows, -rows), -rows)


SHARDED = """
import json, sys, jax
jax.config.update("jax_num_cpu_devices", 8)
sys.path[:0] = sys.argv[1:]
import test_stratified
print(json.dumps(test_stratified.on_eight_devices()))
"""


def on_eight_devices():
    """Collective bytes a round by system, number of nodes and strata, and whether rows arrive where they should."""
    moved = {}
    for n, strata in ((32, None), (32, 4), (64, 16)):
        task, here = world(n, n // 2, strata)
        moved[f"scaffold {n} {strata}"] = plan(scaffold(task, **KW), here, task.init).collective_bytes
    task, here = world(32, 32, 1)
    moved["diloco"] = plan(diloco(task, **KW), scenario(here.data), task.init).collective_bytes
    return {"bytes": moved, "rows": rows_on_a_mesh()}


def rows_on_a_mesh():
    """Rows read, changed and put back by a stratified cohort on 8 devices, and the collectives that took."""
    process = cohort.stratified(32, 16, 8)
    who = process.step(jax.random.key(3), process.arrays, (), 0)[1]
    spread = jax.sharding.NamedSharding(node_mesh(), jax.sharding.PartitionSpec("nodes"))
    rows = {"a": jax.device_put(jnp.arange(64.0).reshape(32, 2), spread), "b": jax.device_put(jnp.arange(32), spread)}
    present = jnp.arange(16) % 3 > 0

    def change(who, rows, present):
        minus = lambda _, k, mine: (mine, jax.tree.map(lambda a: -a, mine))
        return nodes.map_memory(who, minus, (), who.ids, rows, present=present)

    with jax.set_mesh(node_mesh()):
        compiled = jax.jit(change).lower(who, rows, present).compile()
        got = compiled(who, rows, present)
    here = jax.tree.map(lambda a: jnp.array(np.asarray(a)), (rows, present))
    want = change(who._replace(strata=Strata(1)), *here)
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), got, want)
    return {"same": all(jax.tree.leaves(same)), "collectives": dict(counts(compiled.as_text() or "").collectives)}


def test_no_row_of_a_node_leaves_its_device():
    command = [sys.executable, "-W", "error", "-c", SHARDED, *map(str, Path(__file__).parents[:2])]
    got = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert got["rows"] == {"same": True, "collectives": {}}
    moved, message, row = got["bytes"], 2 * 650 * 4, 650 * 4
    # the sum of messages over devices, twice the model, and some scalars
    assert message <= moved["scaffold 64 16"] < message + 100
    for case in ("32 None", "32 4"):  # besides, the rows of a device's own two members read, those of all 16 written
        assert message + 18 * row <= moved[f"scaffold {case}"] < message + 18 * row + 100
    # the sum of messages, and once more where one is not finite, the dearer branch of which a plan counts
    assert row <= moved["diloco"] < 2 * row + 100


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((16, 8, 3), "strata = 3: a number that divides n = 16 and c = 8"),
        ((16, 6, 4), "strata = 4: a number that divides n = 16 and c = 6"),
        ((12, 8, 8), "strata = 8: a number that divides n = 12 and c = 8"),
        ((16, 8, 0), "strata = 0"),
        ((16, 17, 1), "c = 17"),
        ((16, 8, 8, np.ones(3)), r"weight has shape \[3\]"),
    ],
)
def test_bad_input_is_refused(args, says):
    with pytest.raises(InputError, match=says):
        cohort.stratified(*args)
