"""The engine: one number however a run is cut, spread, seeded or taken up again."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import digits_world, quadratics, ring, same

from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.scaffold import scaffold
from jaxfl.core import Env, Metric
from jaxfl.data import partition
from jaxfl.data.sets import from_arrays
from jaxfl.engine import run as engine
from jaxfl.engine.rollout import rollout
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.learn.local import local_sgd
from jaxfl.learn.task import logistic_regression
from jaxfl.mapping.at import at
from jaxfl.mapping.blocks import block_of
from jaxfl.world import cohort, topology
from jaxfl.world.scenario import scenario

KW = {"lr": 0.2, "steps": 2, "batch": 8}


@pytest.fixture(scope="module")
def fed():
    task, world = digits_world(c=5)
    return task, world, scaffold(task, **KW)


@pytest.fixture(scope="module")
def gossip():
    """Quadratics on random graphs: programs that compile sooner; each node logs the norm of its model."""
    _, task, data = quadratics(n=12)
    world, plain = scenario(data, topology=topology.edge_drop(ring(12), 0.4)), dsgd(task, lr=0.1, steps=2, batch=1)
    task = task._replace(init=lambda key: jax.random.normal(key, (3,)))

    def round(key, env, s):
        s, log = plain.round(key, env, s)
        return s, log | {"norm": jnp.linalg.norm(s.nodes, axis=1)}

    return task, world, plain._replace(round=round)


def go(which, request, rounds, **kw):
    """A run of one server's clients, or of two seeds of gossip."""
    task, world, algorithm = request.getfixturevalue(which)
    return run(algorithm, world, task.init, rounds, seeds=2 if which == "gossip" else None, **kw)


@pytest.fixture(scope="module", params=["fed", "gossip"])
def six(request):
    """Which runs, and six rounds of them by two."""
    return request.param, go(request.param, request, 6, every=2)


def test_chunk_length_changes_no_bit(six, request):
    which, whole = six
    odd = go(which, request, 6, every=4)
    assert same(whole.state, odd.state)
    np.testing.assert_array_equal(whole.history["loss"], odd.history["loss"])


def test_going_on_from_a_carry_or_a_checkpoint_changes_no_bit(six, request, tmp_path):
    which, whole = six
    again = partial(go, which, request, every=2)
    half = again(4, out=tmp_path / "a", checkpoints=True)
    assert same(whole.state, again(6, carry=half.carry).state)
    with (tmp_path / "a" / "log.jsonl").open("a") as log:  # the machine died in the middle of the next chunk
        log.write(json.dumps({"seed": 0, "round": 5, "loss": 1.0}) + '\n{"seed": 0, "rou')
    resumed = again(6, out=tmp_path / "a", resume=True)
    assert same(whole.state, resumed.state)
    np.testing.assert_array_equal(whole.history.fillna(-1), resumed.history.fillna(-1))
    rows = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert sorted((r["seed"], r["round"]) for r in rows) == list(
        zip(whole.history["seed"], whole.history["round"], strict=True)
    )


def test_a_client_trains_alike_in_any_cohort_slot_and_block():
    task, rng = logistic_regression(3, 2), np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)).astype(np.float32), rng.integers(0, 2, 60)
    shards = partition.iid(from_arrays(x, y, x[:1], y[:1], classes=2), 12)
    learn = local_sgd(task, optax.sgd(0.5), steps=3, batch=2)
    env = Env(jnp.int32(0), 0.0, shards, None, None, jnp.zeros(12, bool))

    @partial(jax.jit, static_argnums=1)
    def train(ids, block):
        with block_of(block):
            return at(ids, learn)(jax.random.key(3), env, jnp.ones(8)).rows

    base = np.asarray(train(jnp.array([2, 5, 7, 11]), None))
    assert len(np.unique(base, axis=0)) == 4
    np.testing.assert_array_equal(train(jnp.array([11, 7, 2, 5]), None), base[[3, 2, 0, 1]])
    np.testing.assert_allclose(train(jnp.array([2, 5, 7, 11]), 1), base, atol=1e-6)
    np.testing.assert_allclose(train(jnp.array([2, 5, 7, 11]), 3), base, atol=1e-6)


def test_seeds_side_by_side_or_in_turn_are_the_single_runs(gossip):
    task, world, algorithm = gossip
    singles = [run(algorithm, world, task.init, 3, seed=s).state.nodes for s in (4, 5, 6)]
    for together in (1, 2, 3):
        state = run(algorithm, world, task.init, 3, seed=4, seeds=3, seed_block=together)
        np.testing.assert_allclose(state.state.nodes, np.stack(singles), atol=1e-6)
    assert sorted(set(state.history["seed"])) == [4, 5, 6]
    assert not np.allclose(singles[0], singles[1])


def test_a_second_run_more_rounds_another_seed_or_rate_compiles_nothing_and_is_billed_exactly():
    _, task, data = quadratics(n=12)
    world = scenario(data, cohort=cohort.uniform(12, 5), round_seconds=2.5)
    factory = partial(fedavg, task, steps=2, batch=1)
    kw = {"every": 2, "evaluate": Metric(lambda arrays, x: {"size": jnp.linalg.norm(x)})}
    run(factory, world, jnp.ones(3), 2, hyper={"lr": 0.1}, **kw)
    before = [f._cache_size() for f in (engine._start, engine._chunk, engine._evaluate)]
    a = run(factory, world, jnp.ones(3), 4, hyper={"lr": 0.3}, **kw)
    run(factory, world, jnp.ones(3), 8, seed=3, hyper={"lr": 0.1}, **kw)
    assert [f._cache_size() for f in (engine._start, engine._chunk, engine._evaluate)] == before
    b = run(fedavg(task, lr=0.3, steps=2, batch=1), world, jnp.ones(3), 4, every=2)
    np.testing.assert_allclose(a.state.shared["x"], b.state.shared["x"], atol=1e-6)
    for table in (a.history, b.history):
        assert list(table["round"]) == [0, 1, 2, 3, 4]
        assert list(table["time"][1:]) == [2.5, 5.0, 7.5, 10.0]
        assert list(table["total_up_bits"]) == [t * 5 * 32 * 3 for t in range(5)]
        assert list(table["total_down_bits"]) == [t * 5 * 32 * 3 for t in range(5)]
        assert list(table["total_gradients"]) == [t * 5 * 2 for t in range(5)]


def test_worlds_of_the_same_make_share_one_program():
    """A mask, a rate, a graph of the same shape: arms of a comparison."""
    _, task, data = quadratics(n=12)
    algorithm = dsgd(task, lr=0.1, steps=2, batch=1)
    run(algorithm, scenario(data, topology=topology.edge_drop(ring(12), 0.1)), jnp.ones(3), 2, every=2)
    before = engine._chunk._cache_size()
    run(algorithm, scenario(data, topology=topology.edge_drop(ring(12), 0.7), byz=3), jnp.ones(3), 2, every=2)
    assert engine._chunk._cache_size() == before


def test_rollout_is_run(gossip):
    _, world, algorithm = gossip
    x = jnp.ones(3)
    state, logs = jax.jit(lambda x: rollout(algorithm, world, x, 4, seed=2))(x)
    result = run(algorithm, world, x, 4, seed=2)
    np.testing.assert_allclose(state.nodes, result.state.nodes, atol=1e-6)
    np.testing.assert_allclose(logs["loss"], result.history["loss"][1:], rtol=1e-5)


def test_diverged_nodes_are_counted():
    _, task, data = quadratics(n=4, d=3)
    world = scenario(data, topology=ring(4))
    result = run(
        dsgd(task, lr=1e20, steps=3, batch=1), world, jnp.ones(3), 2, every=1, evaluate=Metric(lambda a, x: {})
    )
    assert list(result.history["diverged"]) == [0, 4, 4]


def test_what_is_logged_by_node_is_kept_by_node(gossip):
    task, world, algorithm = gossip
    result = run(algorithm, world, task.init, 4, every=2, seeds=2)
    assert result.nodes["norm"].shape == (2, 4, 12)
    np.testing.assert_allclose(result.nodes["norm"][:, -1], np.linalg.norm(result.state.nodes, axis=2), rtol=1e-6)


@pytest.mark.parametrize(
    ("kw", "words"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"every": 0}, "every is 0"),
        ({"seeds": 0}, "seeds is 0"),
        ({"seed_block": 0}, "seed_block is 0"),
        ({"checkpoints": True}, "out is None"),
    ],
)
def test_bad_arguments_get_one_sentence(gossip, kw, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task, world, algorithm = gossip
    with pytest.raises(InputError, match=words):
        run(algorithm, world, task.init, **({"rounds": 2} | kw))


def test_a_full_disk_is_a_sentence_and_keeps_what_was_written(gossip, tmp_path, monkeypatch):
    import errno

    task, world, algorithm = gossip
    opened, real = [], Path.open

    def full(self, mode="r", *args, **kw):
        opened.append(self)
        if len(opened) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, mode, *args, **kw)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match="disk"):
        run(algorithm, world, task.init, 2, every=1, out=tmp_path)
    monkeypatch.undo()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


def test_gossip_refuses_a_cohort_and_a_missing_graph():
    task, world = digits_world(c=5)
    with pytest.raises(InputError, match="all 12 nodes"):
        run(dsgd(task, **KW), scenario(world.data, topology=ring(12), cohort=cohort.uniform(12, 5)), task.init, 2)
    with pytest.raises(InputError, match="needs a graph"):
        run(dsgd(task, **KW), scenario(world.data), task.init, 2)
