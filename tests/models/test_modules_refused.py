"""Flax modules that would not do in a task what they say."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx
from flax_modules import Adapted, Dropped, LinenNormed, Normed, X

from jaxfl.errors import InputError
from jaxfl.learn import task as T
from jaxfl.learn.distill import distilled_sgd
from jaxfl.learn.local import local_gradient
from jaxfl.models.modules import along


class Penalised(linen.Module):
    @linen.compact
    def __call__(self, x):
        self.sow("losses", "penalty", (x**2).mean())
        return linen.Dense(3)(x)


class TwoOutputs(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(x), x


class Noisy(nnx.Module):
    def __init__(self, *, rngs):
        self.dense, self.rngs = nnx.Linear(4, 3, rngs=rngs), rngs

    def __call__(self, x):
        return self.dense(x) + jax.random.normal(self.rngs.noise(), (3,))


class LinenNoisy(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(x) + jax.random.normal(self.make_rng("noise"), (3,))


class NeverDrops(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(linen.Dropout(0.5, deterministic=True)(x))


class NeverRenews(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(linen.BatchNorm(use_running_average=True)(x))


class Counts(nnx.Module):
    def __init__(self, *, rngs):
        self.dense, self.calls = nnx.Linear(4, 3, rngs=rngs), nnx.BatchStat(jnp.int32(0))

    def __call__(self, x):
        return self.dense(x)


class NeedsMore(linen.Module):
    @linen.compact
    def __call__(self, x, temperature):
        return linen.Dense(3)(x) / temperature


class Sized(nnx.Module):
    def __init__(self, width, *, rngs):
        self.dense = nnx.Linear(4, width, rngs=rngs)

    def __call__(self, x):
        return self.dense(x)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: T.classification(Noisy, X), "draws random numbers when it is used"),
        (lambda: T.classification(LinenNoisy(), X), "draws random numbers when it is used"),
        (
            lambda: T.classification(NeverDrops(), X),
            "Dropout with a dropout rate of 0.5, but drops nothing in training",
        ),
        (lambda: T.classification(NeverRenews(), X), "never renews batch_stats/BatchNorm_0/mean"),
        (lambda: T.classification(Penalised(), X), "keeps losses/penalty/1, which training makes larger"),
        (lambda: along(jnp.ones(6), jnp.zeros((4, 6))), "4 rows of 6 examples"),
        (lambda: T.classification(TwoOutputs(), X), "returns a tuple, must return one array"),
        (
            lambda: T.classification(Normed, X, trained="out/*"),
            "trained leaves out norm/mean, norm/var, which training renews",
        ),
        (lambda: T.classification(Counts, X), "keeps calls, which are no floats"),
        (lambda: T.classification(NeedsMore(), X), "called with x and temperature"),
        (lambda: T.classification(LinenNormed, X), r"the class LinenNormed, must be an instance of it: LinenNormed\("),
        (lambda: T.classification(Sized, X), "must be a function of `rngs` alone"),
        (lambda: T.classification(lambda rngs: 3, X), "returns something else"),
        (lambda: T.classification(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), X), "function of `rngs`"),
        (lambda: T.classification(3, X), "function of `rngs`"),
        (
            lambda: T.classification(Normed, X[:, :2]),
            r"cannot be called with inputs \[\[10, 2\]\] \(TypeError: dot_gen",
        ),
        (
            lambda: T.classification(Adapted, X, trained="*adapter*"),
            "matches no part of the model, its parts are body/",
        ),
        (lambda: local_gradient(T.classification(Normed, X)), "sends gradients, which renew none"),
        (
            lambda: distilled_sgd(T.classification(Dropped, X), optax.sgd(0.1), steps=1, batch=1),
            "distillation does not",
        ),
        (lambda: T.to_module(T.logistic_regression(4, 3), jnp.zeros(15)), "made of functions"),
        (lambda: T.from_functions(lambda key: jnp.zeros(2), lambda p, x, y: y, untrained=(True,)), "needs `train`"),
    ],
)
def test_a_module_that_would_not_do_what_it_says_is_refused(build, words):
    with pytest.raises(InputError, match=words):
        build()
