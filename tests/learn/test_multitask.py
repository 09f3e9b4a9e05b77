"""Several tasks on one encoder: the joint loss, affinities and partitions against their definitions."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.errors import InputError
from jaxfl.learn import multitask
from jaxfl.learn.multitask import joint, multi_task
from jaxfl.learn.task import classification, linear_regression, regression
from jaxfl.models.networks import MLP

X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 2, (5, 3))


def tasks(unlike=False):
    """Three questions, of decoders that are alike or not."""
    encoder = regression(partial(MLP, (4, 6, 3)), X)
    small, deep = (classification(partial(MLP, sizes), X[:, :3]) for sizes in ((3, 2), (3, 4, 2)))
    return multi_task(encoder, [small, deep if unlike else small, small], X)


@pytest.mark.parametrize("unlike", [False, True])
def test_the_joint_loss_is_the_weighted_sum_over_tasks_of_their_own_encoders(unlike):
    multi, u = tasks(unlike), jnp.array([1.0, 0.5, 2.0])
    assert multitask.alike(multi) is not unlike
    task = joint(multi, 2, u)

    @jax.jit
    def both(row):
        params = task.unravel(row) | {"group": jnp.array([1.0, 0.0, 1.2])}
        own = [jax.tree.map(lambda a, g=g: a[g], params["encoder"]) for g in (1, 0, 1)]
        heads = params["decoders"]
        heads = heads if unlike else [jax.tree.map(lambda a, i=i: a[i], heads) for i in range(3)]
        seen = [multi.encoder.predict(e, X) for e in own]
        each = [f.loss(h, e, Y[:, i]) for i, (f, h, e) in enumerate(zip(multi.decoders, heads, seen, strict=True))]
        told = [f.predict(h, e).argmax(-1) for f, h, e in zip(multi.decoders, heads, seen, strict=True)]
        g = jax.grad(lambda p: task.loss(p, X, Y).sum())(params)
        # of the first encoder the gradient is that of the one task that uses it
        alone = jax.grad(lambda e: multi.decoders[1].loss(heads[1], multi.encoder.predict(e, X), Y[:, 1]).sum())(own[1])
        back = multitask.shared(multitask.parted(params, 2, jnp.zeros(3)))
        mine = multitask.losses(multi, params, X, Y), task.loss(params, X, Y), task.correct(task.predict(params, X), Y)
        mine += jax.tree.map(lambda a: a[0], g["encoder"]), g["group"], back
        hits = jnp.stack([t == Y[:, i] for i, t in enumerate(told)])
        wanted = jnp.stack(each, 1), jnp.stack(each, 1) @ u, hits.mean(0), jax.tree.map(lambda a: a * u[1], alone)
        return mine, (*wanted, jnp.zeros(3), multitask.shared(params))

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *both(task.init(jax.random.key(0))))


def test_a_look_ahead_is_a_step_of_the_encoder_alone():
    multi, lr, mask = tasks(), 0.3, jnp.array([1.0, 1, 0, 1, 0])
    task = joint(multi)

    @jax.jit
    def both(row):
        params = task.unravel(row)
        means = lambda e: (multitask.losses(multi, params | {"encoder": e}, X, Y)[np.array([0, 1, 3])]).mean(0)
        rows = []
        for i in range(3):
            g = jax.grad(lambda e, i=i: means(e)[i])(params["encoder"])
            ahead = means(jax.tree.map(lambda e, g: e - lr * g, params["encoder"], g))
            rows.append((1 - ahead / means(params["encoder"])) / lr)
        perfect = {"decoders": {"kernel": jnp.zeros((2, 3))}, "encoder": params["encoder"]}
        linear = multi_task(multi.encoder, [linear_regression(3)] * 2, X)
        none = multitask.look_ahead(linear, perfect, X, jnp.zeros((5, 2)), lr)
        return multitask.look_ahead(multi, params, X, Y, lr, mask), jnp.stack(rows), none

    got, wanted, none = both(task.init(jax.random.key(3)))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(none, 0)


@pytest.mark.parametrize(("count", "groups", "known"), [(4, 2, 7), (5, 3, 25), (9, 3, 3025), (3, 3, 1), (3, 1, 1)])
def test_partitions_are_those_that_stirling_counts(count, groups, known):
    table = multitask.partitions(count, groups)
    assert table.shape == (known, count)
    sets = {frozenset(frozenset(np.flatnonzero(row == k)) for k in range(groups)) for row in table}
    assert len(sets) == known


def test_the_best_split_is_that_of_a_search_by_hand():
    rng = np.random.default_rng(0)
    for _ in range(5):
        s, found = rng.normal(size=(5, 5)), {}
        for row in product(range(2), repeat=5):
            if row[0] == 0 and max(row) == 1:
                each = []
                for j in range(5):
                    others = [i for i in range(5) if i != j and row[i] == row[j]]
                    rest = [i for i in range(5) if i != j]
                    each.append(np.mean([s[i, j] for i in others] or [*s[rest, j], *s[j, rest]]))
                found[row] = np.mean(each)
        assert tuple(np.asarray(multitask.best_split(jnp.asarray(s), 2))) == max(found, key=found.get)


def test_what_does_not_fit_is_refused():
    encoder, head = regression(partial(MLP, (4, 3)), X), linear_regression(3)
    multi = multi_task(encoder, [head] * 2, X)
    for call, words in (
        (lambda: multi_task(encoder, [head], X), "number of decoders"),
        (lambda: multi_task(encoder, [linear_regression(5)] * 2, X), "3 features|5 features"),
        (lambda: multi_task(encoder._replace(predict=None), [head] * 2, X), "predicts nothing"),
        (lambda: joint(multi, weights=jnp.ones(3)), "there are 2 tasks"),
        (
            lambda: multitask.losses(multi, joint(multi).unravel(jnp.zeros(joint(multi).dim)), X, Y),
            "targets of 2 tasks",
        ),
        (lambda: multitask.partitions(11, 2), "tasks"),
        (lambda: multitask.partitions(3, 4), "groups"),
        (lambda: multitask.split_of([(0, 1), (1,)], 2), "exactly one group"),
    ):
        with pytest.raises(InputError, match=words):
            call()
