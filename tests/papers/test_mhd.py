"""Multi-headed distillation between two unlike architectures."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import same

from jaxfl.algorithms.gossip.mhd import mhd, mutual_distillation
from jaxfl.claims import mhd as claim
from jaxfl.core import Algorithm, State
from jaxfl.data import partition
from jaxfl.data.sets import from_arrays
from jaxfl.engine.keys import round_key, run_key
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange.codecs import half
from jaxfl.exchange.predictions import public_batches
from jaxfl.learn import distill
from jaxfl.learn.groups import Group, at_groups, draw, in_node_order
from jaxfl.learn.heads import multi_head
from jaxfl.learn.local import local_sgd
from jaxfl.learn.task import classification, logistic_regression
from jaxfl.measure.personal import head_accuracy, one_head, personal_accuracy
from jaxfl.models.networks import MLP
from jaxfl.world import cohort, graph, mixing
from jaxfl.world.cohort import availability
from jaxfl.world.links import links
from jaxfl.world.scenario import scenario

N, FEATURES, CLASSES, HEADS = 8, 6, 3, 3
QUICK = {"lr": 0.1, "momentum": 0.5, "steps": 3, "batch": 4, "public_batch": 5}

SCHEDULE = optax.piecewise_constant_schedule(0.1, {3: 0.0})  # nothing moves after the first round


def blobs(seed=0, count=160):
    rng = np.random.default_rng(seed)
    y = np.arange(count) % CLASSES
    x = (rng.normal(size=(count, FEATURES)) + 2 * np.eye(CLASSES, FEATURES)[y]).astype(np.float32)
    return from_arrays(x, y, x[:30], y[:30], classes=CLASSES)


PUBLIC, DATA = distill.hold_out(blobs(), 12)


def model(width):
    x = jax.ShapeDtypeStruct((1, FEATURES), jnp.float32)
    return multi_head(classification(partial(MLP, (FEATURES, width)), x), x, CLASSES, HEADS)


NARROW, WIDE = model(4), model(7)
TWO = Group(NARROW, (0, 3, 5, 6)), Group(WIDE, (1, 2, 4, 7))
ONE = (Group(NARROW, tuple(range(N))),)


def world(g=None, shards=None, **kw):
    shards = partition.primary_labels(DATA, N, 2, 20.0, min_size=4) if shards is None else shards
    where = mixing.uniform(graph.complete(N) if g is None else g)
    return scenario(distill.Public(shards, jnp.asarray(PUBLIC)), nodes=N, topology=where, **kw)


def rows_of(groups, seed=0):
    """First models without the cost of compiling a draw."""
    rng = np.random.default_rng(seed)
    by_node = [rng.normal(size=200).astype(np.float32) / 2 for _ in range(N)]
    return tuple(jnp.stack([by_node[i][: g.task.dim] for i in g.ids]) for g in groups)


def small():
    tiny = dict(QUICK, steps=2)
    return {
        "mhd": (mhd(TWO, teachers=2, **tiny), world(), draw(TWO), 4),
        "mhd_embedding": (mhd(TWO, nu_emb=1.0, refresh=2, **tiny), world(graph.ring(N)), rows_of(TWO), 4),
        "mutual_distillation": (mutual_distillation(TWO, **tiny), world(), rows_of(TWO), 4),
    }


@functools.cache
def local(own_head=False, **kw):
    """One factory for the same arguments, so that it compiles once; what is traced comes by `hyper`."""
    return partial(mhd, TWO, own_head=own_head, **QUICK | kw)


@functools.cache
def line():
    """Node 0 hears nobody, every other its predecessor, over slow links."""
    g = graph.from_edges(N, range(1, N), range(N - 1))
    return world(g, links=links(N, up=1000.0, latency=0.5, step=0.1), round_seconds=2.0)


def of_rows(groups, rows):
    return in_node_order(groups, [jnp.pad(r, ((0, 0), (0, 200 - r.shape[1]))) for r in rows])


def answers(groups, result):
    return of_rows(groups, result.state.nodes["rows"])


def isolated(groups):
    """Local training alone, of blocks that know nothing of distillation."""
    tx = optax.sgd(QUICK["lr"], momentum=QUICK["momentum"])
    make = partial(local_sgd, optimizer=tx, steps=QUICK["steps"], batch=QUICK["batch"], keep_state=True)
    train = at_groups(groups, make)

    def init(key, env, x):
        opt = tuple(jax.vmap(lambda r, t=g.task: tx.init(t.unravel(r)))(r) for g, r in zip(groups, x, strict=True))
        return State((), {"rows": x, "opt": opt})

    def round(key, env, s):
        alone = env._replace(data=env.data.private)
        new = train(key, alone, s.nodes["rows"], memory={"state": s.nodes["opt"]})
        return State((), {"rows": new.rows, "opt": new.memory["state"]}), {}

    return Algorithm(init, round, lambda s: s.nodes["rows"])


@functools.cache
def alone(rounds):
    return run(isolated(TWO), world(), rows_of(TWO), rounds, every=1).state.nodes


RANDOM = QUICK | {"teachers": 2, "choose": distill.at_random()}


def weighted(groups, nu_aux, nu_emb):
    hyper = {"nu_aux": nu_aux, "nu_emb": nu_emb}
    return run(partial(mhd, groups, **RANDOM), world(), rows_of(groups), 2, every=1, hyper=hyper)


def test_without_distillation_it_is_isolated_training_bit_for_bit():
    off = weighted(TWO, 0.0, 0.0)
    assert same(off.state.nodes["rows"], alone(2)["rows"])
    assert same(off.state.nodes["opt"], alone(2)["opt"])
    assert off.history["total_up_bits"].iloc[-1] == 0
    for weights in ((1.0, 0.0), (0.0, 1.0)):
        on = weighted(TWO, *weights)
        assert not same(on.state.nodes["rows"][0], alone(2)["rows"][0])
        assert on.history["total_up_bits"].iloc[-1] > 0


def test_two_groups_of_one_architecture_are_one_group():
    split = Group(NARROW, (3, 0)), TWO[1], Group(NARROW, (5, 6))
    a, b = (weighted(groups, 3.0, 0.5) for groups in (split, TWO))
    np.testing.assert_allclose(answers(split, a), answers(TWO, b), atol=2e-6)
    for name in ("loss", "aux_loss", "up_bits"):
        np.testing.assert_allclose(a.history[name].dropna(), b.history[name].dropna(), rtol=1e-5)


WHOLE = QUICK | {"momentum": 0.0, "steps": 1, "batch": None, "teachers": N - 1, "public_batch": 6, "nu_aux": 2.0}


@functools.cache
def everyone_teaches(rounds, nu_emb):
    return run(partial(mhd, TWO, **WHOLE), world(), rows_of(TWO), rounds, every=1, hyper={"nu_emb": nu_emb})


def test_permuting_the_nodes_permutes_the_result():
    shards = partition.primary_labels(DATA, N, 2, 20.0, min_size=4)
    order = np.random.default_rng(1).permutation(N)  # new node i is old node order[i]
    back = np.argsort(order)
    owner = np.empty(len(shards.y), int)
    owner[np.asarray(shards.order)] = np.repeat(np.arange(N), shards.size)
    moved_shards = partition.shards(DATA, back[owner], N)
    moved = tuple(Group(g.task, tuple(int(back[i]) for i in g.ids)) for g in TWO)
    f = partial(mhd, moved, **WHOLE)
    b = run(f, world(shards=moved_shards), rows_of(TWO), 2, every=1, hyper={"nu_emb": 0.3})
    np.testing.assert_allclose(answers(moved, b), answers(TWO, everyone_teaches(2, 0.3))[order], atol=2e-5)


def test_one_step_of_every_head_by_hand():
    """The biases of the heads after one step, in float64 from the equations: lr * nu * mean(own - target)."""
    first = rows_of(TWO)
    after = everyone_teaches(1, 0.0).state.nodes["rows"]
    images, index = public_batches(round_key(run_key(0), jnp.int32(0), "algorithm"), jnp.asarray(PUBLIC), 1, 6)
    batch = np.asarray(images[index[0]], np.float64)
    at = {i: (g.task, k, p) for k, g in enumerate(TWO) for p, i in enumerate(g.ids)}
    soft = lambda a: np.exp(a) / np.exp(a).sum(-1, keepdims=True)

    def tree(rows, i):
        task, k, p = at[i]
        return jax.tree.map(lambda a: np.asarray(a, np.float64), task.unravel(rows[k][p]))

    def logits(i, x):
        p = tree(first, i)
        layer = next(iter(p["backbone"]["layers"].values()))
        e = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
        return np.einsum("be,hec->hbc", e, p["kernel"]) + p["bias"][:, None]

    said = np.stack([logits(i, batch) for i in range(N)])  # [n, heads, b, classes]
    shards = world().data.private
    for i in range(N):
        mine = np.asarray(shards.order[shards.start[i] : shards.start[i] + shards.size[i]])
        x, y = np.asarray(shards.x[mine], np.float64), np.asarray(shards.y[mine])
        slope = [(soft(logits(i, x)[0]) - np.eye(CLASSES)[y]).mean(0)]
        for k in range(1, HEADS):
            p = soft(said[:, k - 1])  # everyone's, own included
            target = np.take_along_axis(p, p.max(-1).argmax(0)[None, :, None], 0)[0]
            slope.append(2.0 * (soft(said[i, k]) - target).mean(0))
        np.testing.assert_allclose(tree(after, i)["bias"] - tree(first, i)["bias"], -0.1 * np.array(slope), atol=1e-6)


def test_bits_and_seconds_are_those_of_the_predictions_heard():
    """Seven clients hear one teacher in each of three steps, five public examples a step."""
    one = 5 * CLASSES  # numbers in one head's message
    rich = partial(mutual_distillation, TWO, codec=half(), nu_emb=1.0, **QUICK | {"lr": SCHEDULE})
    for f, bits in ((local(refresh=2), 32 * one * (HEADS - 1)), (rich, 16 * one)):
        last = run(f, line(), rows_of(TWO), 1, every=1).history.iloc[-1]
        total, most = 3 * (N - 1) * bits, 3 * bits
        if f is rich:  # embeddings only go from 1 to 2 (width 7) and from 5 to 6 (width 4)
            total, most = total + 3 * 16 * 5 * (7 + 4), most + 3 * 16 * 5 * 7
        assert last["up_bits"] == last["down_bits"] == total
        assert last["seconds"] == pytest.approx(2.0 + 3 * 0.1 + 0.5 + most / 1000)


def test_who_hears_nobody_trains_alone():
    got = answers(TWO, run(local(refresh=2), line(), rows_of(TWO), 2, every=1))
    lone = of_rows(TWO, alone(2)["rows"])
    np.testing.assert_array_equal(got[0], lone[0])
    assert (np.abs(got[1:] - lone[1:]).max(1) > 1e-4).all()


def test_knowledge_travels_one_hop_a_refresh():
    """Another model at node 0 of the line is felt as many hops away as checkpoints were taken, every second round."""
    first = rows_of(TWO)
    other = (first[0].at[0].add(1.0), first[1])
    taken = {}
    for rounds in (1, 2, 3, 4):
        a, b = (run(local(refresh=2), line(), x, rounds, every=1) for x in (first, other))
        felt = np.abs(answers(TWO, a) - answers(TWO, b)).max(1) > 0
        assert felt.tolist() == [i <= -(-rounds // 2) for i in range(N)]
        assert same(a.state.nodes["old"], taken[2] if rounds > 2 else first)
        taken[rounds] = a.state.nodes["rows"]


def test_a_client_that_is_down_neither_learns_nor_speaks():
    down = world(churn=availability(N, 0.0, 0.0))  # everybody changes sides each round
    result = run(local(refresh=2), down, rows_of(TWO), 1, every=1)
    first, now = (in_node_order(TWO, [r[:, :40] for r in rows]) for rows in (rows_of(TWO), result.state.nodes["rows"]))
    still = (np.asarray(first) == np.asarray(now)).all(1)
    up = N - still.sum()
    heard = 0 if up < 2 else up
    assert result.history["total_up_bits"].iloc[-1] == heard * 3 * 32 * 5 * CLASSES * (HEADS - 1)
    assert result.history["gradients"].iloc[-1] == up * 3


def test_accuracy_by_head_and_node_against_loops():
    rng = np.random.default_rng(5)
    counts, x, y = rng.integers(1, 9, (N, CLASSES)), DATA.test_x, DATA.test_y
    share = counts / counts.sum(1, keepdims=True)
    rows = rows_of(TWO)
    private, shared = head_accuracy(TWO, rows, jnp.asarray(x), jnp.asarray(y), jnp.asarray(share, jnp.float32))
    for g, group in enumerate(TWO):
        for p, i in enumerate(group.ids):
            guess = np.asarray(group.task.predict(group.task.unravel(rows[g][p]), x).logits.argmax(-1))
            right = np.array([[(guess[h][y == c] == c).mean() for c in range(CLASSES)] for h in range(HEADS)])
            np.testing.assert_allclose(private[i], right @ share[i], atol=1e-6)
            np.testing.assert_allclose(shared[i], right.mean(1), atol=1e-6)
    metric = personal_accuracy(TWO, x, y, counts)
    out = metric.measure(metric.arrays, rows)
    np.testing.assert_allclose(out["private_1"], private[:, 1].mean(), rtol=1e-6)
    np.testing.assert_allclose(out["shared_2_spread"], shared[:, 2].std(), rtol=1e-5)
    np.testing.assert_allclose(out["shared_0_group_1"], shared[np.array(TWO[1].ids), 0].mean(), rtol=1e-6)
    plain = logistic_regression(FEATURES, CLASSES)
    metric = personal_accuracy((Group(plain, tuple(range(N))),), x, y, counts, logits=one_head)
    row = jnp.asarray(rng.normal(size=(N, plain.dim)), jnp.float32)
    out = metric.measure(metric.arrays, row)
    hits = np.stack([np.asarray(plain.predict(plain.unravel(r), x).argmax(-1)) == y for r in row])
    by_class = np.stack([hits[:, y == c].mean(1) for c in range(CLASSES)], 1)
    np.testing.assert_allclose(out["private_0"], (by_class * share).sum(1).mean(), rtol=1e-5)
    assert set(out) == {"private_0", "private_0_spread", "shared_0", "shared_0_spread"}
    for bad in ((x, y, counts[:3]), (x[y > 0], y[y > 0], counts), (x, y, counts * 0)):
        with pytest.raises(InputError):
            personal_accuracy(TWO, *bad)


def test_the_claim_s_worlds_differ_in_what_they_say():
    """On a cycle a client hears the next one alone; pooled, each has all private samples; shapes and types stay."""
    world, metric = claim.settings(1, groups := claim.crowd())[""]
    cycle, whole = claim.on_a_cycle(world), claim.everything(world)
    heard = np.asarray(cycle.arrays["topology"].weight) > 0
    np.testing.assert_array_equal(
        np.asarray(cycle.arrays["topology"].nbr)[heard], (np.arange(claim.CLIENTS) + 1) % claim.CLIENTS
    )
    own, shared = world.data.private, whole.data.private
    assert int(own.size.sum()) == int(shared.size.max()) == int(shared.size.min()) == len(own.y)
    for other in (cycle, whole):
        like = [jax.tree.map(lambda a: (jnp.shape(a), a.dtype, a.weak_type), w[2:4]) for w in (world, other)]
        assert like[0] == like[1]
    rows = (jnp.zeros((claim.CLIENTS, groups[0].task.dim)),)
    assert float(metric.measure(metric.arrays, rows)["shared"]) == pytest.approx(0.1)
    assert claim.first_lesson(4) == distill.chain(2)


@pytest.mark.parametrize(
    "bad",
    [{"lr": 0.0}, {"momentum": 1.0}, {"nu_aux": -1.0}, {"nu_emb": -1.0}, {"teachers": 0}, {"steps": 0}, {"refresh": 0}]
    + [{"public_batch": 0}, {"batch": 0}],
)
def test_bad_numbers_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        mhd(TWO, **bad)


def test_worlds_it_cannot_live_in_are_refused():
    data = world().data
    plain = scenario(data.private, topology=mixing.uniform(graph.complete(N)))
    some = scenario(data, nodes=N, topology=mixing.uniform(graph.complete(N)), cohort=cohort.uniform(N, 3))
    for bad, word in ((plain, "data"), (scenario(data, nodes=N), "topology"), (some, "cohort")):
        with pytest.raises(InputError, match=word):
            run(mhd(TWO, **QUICK), bad, rows_of(TWO), 1)
    with pytest.raises(InputError, match="teachers is 3"):
        run(mhd(TWO, teachers=3, **QUICK), world(graph.ring(N)), rows_of(TWO), 1)
    with pytest.raises(InputError, match="groups"):
        run(mhd(TWO[:1] + (Group(WIDE, (1, 2, 4)),), **QUICK), world(), rows_of(TWO), 1)
    with pytest.raises(InputError, match="model"):
        run(mhd(TWO, **QUICK), world(), rows_of(ONE), 1)
