"""Distillation: losses against float64, selectors by hand, public batches, teachers and their bits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import one_sample_each, same

from jaxfl.core import Env
from jaxfl.data import partition
from jaxfl.data.sets import digits, from_arrays
from jaxfl.errors import InputError
from jaxfl.exchange import predictions
from jaxfl.exchange.codecs import PLAIN, half
from jaxfl.learn import distill, hooks
from jaxfl.learn.distill import Lesson
from jaxfl.learn.groups import Group
from jaxfl.learn.heads import multi_head, outputs, unit, widths
from jaxfl.learn.local import local_sgd
from jaxfl.learn.task import classification, quadratic
from jaxfl.models.networks import MLP
from jaxfl.world import graph, mixing

KEY = jax.random.key(0)


def soft(a):
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_loops(lessons, own, heard, live, own_head):
    """The chain's losses in float64, example by example."""
    own, heard = np.asarray(own, np.float64), np.asarray(heard, np.float64)
    names = sorted({level for _, levels in lessons for level in levels})
    found = []
    for student, levels in lessons:
        total = 0.0
        for u in range(own.shape[1]):
            options = [h[names.index(level), u] for h, ok in zip(heard, live, strict=True) if ok for level in levels]
            options += [own[level, u] for level in levels] if own_head else []
            if options:
                best = max(options, key=lambda o: soft(o).max())
                total -= (soft(best) * np.log(soft(own[student, u]))).sum()
        found.append(total / own.shape[1])
    return found


@pytest.mark.parametrize("own_head", [True, False])
@pytest.mark.parametrize("plan", [distill.chain, distill.same_level, distill.main_head])
@pytest.mark.parametrize("live", [(True, True, True), (False, True, False), (False, False, False)])
def test_lesson_losses_against_float64(plan, live, own_head):
    rng, lessons = np.random.default_rng(1), plan(4)
    own = jnp.asarray(rng.normal(size=(4, 6, 5)), jnp.float32)
    heard = jnp.asarray(rng.normal(size=(3, len(distill.taught(lessons)), 6, 5)), jnp.float32)
    choose = distill.most_confident()
    got = distill.lesson_losses(KEY, lessons, choose, own, heard, jnp.array(live), own_head=own_head)
    np.testing.assert_allclose(got, by_loops(lessons, own, heard, live, own_head), rtol=1e-5, atol=1e-7)


def test_plans():
    assert distill.chain(3) == (Lesson(1, (0,)), Lesson(2, (1,)))
    assert distill.chain(1) == ()
    assert distill.same_level(2) == (Lesson(1, (0, 1)),)
    assert distill.taught(distill.chain(4)) == (0, 1, 2)
    assert distill.taught(distill.same_level(4)) == (0, 1, 2, 3)
    assert distill.taught(distill.main_head(4)) == (0,)


def test_only_the_student_head_has_a_gradient():
    rng = np.random.default_rng(2)
    own, heard = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 4, 5), (2, 1, 4, 5)))
    lessons, live = (Lesson(2, (1,)),), jnp.ones(2, bool)
    f = lambda own, heard: distill.lesson_losses(KEY, lessons, distill.most_confident(), own, heard, live).sum()
    to_own, to_heard = jax.grad(f, (0, 1))(own, heard)
    assert not np.any(to_heard)
    assert not np.any(to_own[:2])
    assert np.any(to_own[2])


def test_confidence_by_hand():
    logits = jnp.log(jnp.array([[[0.5, 0.5], [0.9, 0.1]], [[0.2, 0.8], [0.3, 0.7]]]))  # [candidates, b, classes]
    np.testing.assert_allclose(distill.confidence(logits), [[0.5, 0.9], [0.8, 0.7]], rtol=1e-6)
    target, weight = distill.most_confident()(KEY, logits, jnp.array([True, True]))
    np.testing.assert_array_equal(target, jnp.stack([logits[1, 0], logits[0, 1]]))
    assert weight.tolist() == [1, 1]
    target, weight = distill.most_confident(0.75)(KEY, logits, jnp.array([False, True]))
    np.testing.assert_array_equal(target, logits[1])
    assert weight.tolist() == [1, 0]
    with pytest.raises(InputError, match="least is 2"):
        distill.most_confident(2)


def test_random_choice_is_uniform_over_the_live():
    logits = jnp.broadcast_to(jnp.arange(4.0)[:, None, None], (4, 3000, 2))
    target, weight = distill.at_random()(KEY, logits, jnp.array([True, False, True, True]))
    count = np.bincount(np.asarray(target[:, 0], int), minlength=4)
    assert count[1] == 0
    assert weight.all()
    assert np.abs(count[[0, 2, 3]] - 1000).max() < 5 * np.sqrt(3000 * 2 / 9)
    assert not distill.at_random()(KEY, logits, jnp.zeros(4, bool))[1].any()


def test_embedding_loss_against_float64():
    rng = np.random.default_rng(3)
    own, heard = rng.normal(size=(6, 4)), rng.normal(size=(3, 6, 7))
    heard[..., 4:] = 0  # padding
    norm = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)
    each = ((norm(own) - norm(heard[..., :4])) ** 2).sum(-1).mean(-1)
    as_float = [jnp.asarray(a, jnp.float32) for a in (own, heard)]
    got = distill.embedding_loss(*as_float, jnp.array([True, False, True]))
    np.testing.assert_allclose(got, each[[0, 2]].mean(), rtol=1e-5)
    assert distill.embedding_loss(*as_float, jnp.zeros(3, bool)) == 0
    np.testing.assert_allclose(distill.embedding_loss(as_float[0], 3 * as_float[0][None], jnp.ones(1)), 0, atol=1e-6)
    slope = jax.grad(lambda e: unit(e).sum())(jnp.zeros((2, 3)))  # a dead layer
    assert np.isfinite(slope).all()


def test_a_model_with_heads_trains_its_main_head():
    x, y = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32), jnp.array([0, 1, 2, 0, 1])
    task = multi_head(classification(partial(MLP, (6, 4)), x), x, 3, 2)
    assert task.dim == 6 * 4 + 4 + 2 * (4 * 3 + 3)
    row = task.init(KEY)
    p = task.unravel(row)
    assert np.std(p["kernel"]) == pytest.approx(0.5, rel=0.35)  # 1 / sqrt(width)
    assert not np.any(p["bias"])
    p |= {"bias": jnp.arange(6.0).reshape(2, 3)}
    first = p["backbone"]["layers"]
    first = first[0] if 0 in first else first["0"]
    e = np.maximum(np.asarray(x, np.float64) @ np.asarray(first["kernel"]) + np.asarray(first["bias"]), 0)
    logits = np.stack([e @ np.asarray(p["kernel"])[h] + np.asarray(p["bias"])[h] for h in range(2)])
    out = task.predict(p, x)
    np.testing.assert_allclose(out.embedding, e, atol=1e-6)
    np.testing.assert_allclose(out.logits, logits, atol=1e-5)
    np.testing.assert_allclose(task.loss(p, x, y), -np.log(soft(logits[0]))[np.arange(5), y], rtol=1e-5)
    np.testing.assert_array_equal(task.correct(out, y), logits[0].argmax(-1) == y)
    slope = jax.grad(lambda p: task.loss(p, x, y).sum())(p)
    assert not np.any(slope["kernel"][1])
    for bad in ({"classes": 1}, {"heads": 0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            multi_head(classification(partial(MLP, (6, 4)), x), x, **({"classes": 3, "heads": 2} | bad))
    with pytest.raises(InputError, match="backbone"):
        multi_head(quadratic(3), x, 3, 2)


def test_outputs_of_unlike_models_in_node_order():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)), jnp.float32)
    narrow, wide = (multi_head(classification(partial(MLP, (6, w)), x), x, 3, 2) for w in (2, 5))
    groups = Group(wide, (1,)), Group(narrow, (2, 0))
    rows = wide.init(KEY)[None], jnp.stack([narrow.init(jax.random.key(k)) for k in (1, 2)])
    said = outputs(groups, rows, x)
    assert said.logits.shape == (3, 2, 3, 3)
    assert widths(groups, x).tolist() == [2, 5, 2]
    for node, (task, row) in enumerate([(narrow, rows[1][1]), (wide, rows[0][0]), (narrow, rows[1][0])]):
        alone = task.predict(task.unravel(row), x)
        width = alone.embedding.shape[1]
        np.testing.assert_allclose(said.logits[node], alone.logits, atol=1e-6)
        np.testing.assert_allclose(said.embedding[node, :, :width], alone.embedding, atol=1e-6)
        assert not np.any(said.embedding[node, :, width:])
    other = multi_head(classification(partial(MLP, (6, 2)), x), x, 4, 2)
    with pytest.raises(InputError, match="same heads and classes"):
        outputs((Group(wide, (0,)), Group(other, (1,))), (rows[0], other.init(KEY)[None]), x)


def test_held_out_examples_are_nobodys():
    data = digits()
    public, rest = distill.hold_out(data, 300, seed=4)
    assert public.shape == (300, 64)
    assert rest.x.shape == (1137, 64)
    both = np.concatenate([public, rest.x])
    np.testing.assert_array_equal(np.unique(both, axis=0), np.unique(data.x, axis=0))
    assert len(rest.y) == 1137
    assert not np.array_equal(public, distill.hold_out(data, 300, seed=5)[0])
    with pytest.raises(InputError, match="count is 1437"):
        distill.hold_out(data, 1437)


@pytest.mark.parametrize(("primary", "skew"), [(1, 9.0), (2, 4.0), (3, 0.0)])
def test_primary_labels_are_so_much_more_likely(primary, skew):
    y = np.arange(40_000) % 4
    data = from_arrays(np.zeros((len(y), 1), np.float32), y, np.zeros((1, 1), np.float32), np.zeros(1, int), classes=4)
    counts = partition.label_histogram(partition.primary_labels(data, 5, primary, skew, seed=2), 4)
    assert (counts.sum(0) == 10_000).all()
    holders = np.zeros((5, 4), bool)
    for label in range(4):  # which nodes have this label as a primary one: the split that explains the counts best
        options = [np.array([b >> i & 1 for i in range(5)], bool) for b in range(32)]
        expected = [10_000 * (1 + skew * o) / (1 + skew * o).sum() for o in options]
        errors = [np.abs(counts[:, label] - e).max() for e in expected]
        holders[:, label] = options[int(np.argmin(errors))]
        assert min(errors) < 5 * np.sqrt(10_000 / 4)
    if skew:
        assert (holders.sum(1) == primary).all()


def test_bad_primary_labels_are_refused_and_small_nodes_filled():
    data = digits()
    for bad in ({"primary": 0}, {"primary": 11}, {"skew": -1.0}, {"skew": np.inf}, {"min_size": 2000}):
        with pytest.raises(InputError, match=next(iter(bad))):
            partition.primary_labels(data, 4, **bad)
    shards = partition.primary_labels(data, 100, 1, 1000.0, seed=1, min_size=9)
    assert int(shards.size.min()) >= 9
    assert int(shards.size.sum()) == 1437
    again = partition.primary_labels(data, 100, 1, 1000.0, seed=1, min_size=9)
    assert same(shards, again)


@pytest.mark.parametrize(("steps", "batch"), [(2, 3), (10, 4)])
def test_public_batches_are_public_examples(steps, batch):
    public = jnp.arange(20.0).reshape(10, 2)
    images, index = predictions.public_batches(KEY, public, steps, batch)
    assert index.shape == (steps, batch)
    assert images.shape == (min(10, steps * batch), 2)
    seen = np.asarray(images[index])
    assert set(map(tuple, seen.reshape(-1, 2))) <= set(map(tuple, np.asarray(public)))
    other = predictions.public_batches(jax.random.key(1), public, steps, batch)
    assert not np.array_equal(seen, other[0][other[1]])


def test_teachers_are_distinct_live_neighbours_drawn_uniformly():
    g = graph.from_edges(5, [0, 0, 0, 1, 2, 2], [1, 2, 3, 0, 1, 4])  # nodes 3 and 4 hear nobody
    who, live = predictions.draw_teachers(KEY, mixing.uniform(g), 2, 3000)
    assert who.shape == live.shape == (5, 3000, 2)
    assert live.sum((1, 2)).tolist() == [6000, 3000, 6000, 0, 0]
    assert (np.asarray(who[0, :, 0]) != np.asarray(who[0, :, 1])).all()
    count = np.bincount(np.asarray(who[0]).ravel(), minlength=5)
    assert np.abs(count[1:4] - 2000).max() < 5 * np.sqrt(3000 * 2 / 9)
    assert set(np.asarray(who[1][live[1]]).ravel().tolist()) == {0}
    assert set(np.asarray(who[2]).ravel().tolist()) == {1, 4}


def test_bits_of_predictions():
    said = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 5, 4)), jnp.float32)  # [n, heads, K, classes]
    same_, bits = predictions.send(KEY, PLAIN, said)
    assert same_ is said
    assert bits.tolist() == [32 * 8] * 3
    rounded, bits = predictions.send(KEY, half(), said)
    assert bits.tolist() == [16 * 8] * 3
    np.testing.assert_array_equal(rounded, said.astype(jnp.bfloat16).astype(jnp.float32))
    teachers = jnp.array([[[1], [2]], [[0], [0]], [[1], [0]]])  # [n, steps, a]
    heard = jnp.array([[[True], [True]], [[True], [False]], [[True], [True]]])
    env = Env(jnp.int32(0), jnp.float32(0), (), None, None, jnp.zeros(3, bool))
    cost = predictions.cost(env, teachers, (heard, jnp.array([1.0, 10.0, 100.0])))
    assert cost == {"up_bits": 122, "down_bits": 122}  # node 0 heard twice, node 1 twice, node 2 once


def test_the_optimizer_is_given_what_local_training_gives():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)
    task = multi_head(classification(partial(MLP, (5, 4)), x), x, 3, 2)
    data = one_sample_each(x, np.array([0, 1, 2, 0, 1, 2]))
    row = task.init(KEY)
    push = hooks.stateless(
        lambda g, p, *, key, t, **_: jax.tree.map(lambda a: a + 0.01 * t * jax.random.normal(key, a.shape), g)
    )
    tx = optax.chain(hooks.prox(0.3), hooks.sam(0.1), push, optax.sgd(optax.exponential_decay(0.2, 1, 0.5)))
    state = tx.init(task.unravel(row))
    said = outputs((Group(task, (0, 1)),), (jnp.stack([row, row]),), x)
    said = said._replace(logits=said.logits[:, :1])
    index, teachers = jnp.zeros((3, 2), jnp.int32), jnp.ones((3, 1), jnp.int32)
    heard = {"images": x, "index": index, "said": said, "teachers": teachers, "live": jnp.ones((3, 1), bool)}
    taught = distill.distilled_sgd(task, tx, steps=3, batch=1)
    local = local_sgd(task, tx, steps=3, batch=1, keep_state=True)

    with_all = jax.jit(lambda now: taught(KEY, distill.Public(data, x), 1, row, nu_aux=0.0, **heard, **now))
    alone = jax.jit(lambda now: local(KEY, data, 1, row, **now))
    for bound in (3, 2):
        now = {"state": state, "t": jnp.int32(4), "steps": jnp.int32(bound)}
        y, log = with_all(now)
        want, log_alone = alone(now)
        np.testing.assert_allclose(y, want, atol=1e-6)
        for name in ("loss", "steps", "gradients"):
            np.testing.assert_allclose(log[name], log_alone[name], rtol=1e-5)
        assert same(log["state"], log_alone["state"])
        assert np.abs(want - alone(now | {"t": jnp.int32(0)})[0]).max() > 1e-3
