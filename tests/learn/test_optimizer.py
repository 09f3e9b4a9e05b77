"""Schedules over rounds against float64 and constant rates; noise by seed, node and round; the server's step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import one_sample_each, quadratics, same

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.core import Env
from jaxfl.engine.run import run
from jaxfl.learn import hooks, server, task
from jaxfl.learn.local import local_sgd, optimizer_state
from jaxfl.learn.optimizer import begin, begin_nodes, pinned, rate
from jaxfl.mapping.at import at
from jaxfl.world.cohort import uniform
from jaxfl.world.scenario import scenario

KEY = jax.random.key(0)
HALVES = optax.exponential_decay(0.1, 10, 0.5)
WARM = optax.warmup_cosine_decay_schedule(0.01, 0.2, 3, 12)
D = 900
NOISY = optax.chain(optax.add_noise(1.0, 0.0, key=3), optax.sgd(0.5))


def flat(n):
    """A task of `D` parameters whose gradient is 0, and its shards: a model moves by noise alone."""
    return task.linear_regression(D), one_sample_each(np.zeros((n, D), np.float32), np.zeros(n, np.float32))


def plain(tree):
    """A tree with the words of its keys."""
    typed = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda a: jax.random.key_data(a) if typed(a) else a, tree)


def apart(*draws):
    """Whether no two of some draws `[D]` are correlated, by six standard deviations."""
    rows = np.stack([np.ravel(d) for d in draws])
    return np.abs(np.corrcoef(rows) - np.eye(len(rows))).max() < 6 / np.sqrt(rows.shape[1])


def by_hand(q, i, y, rates):
    """Gradient steps on the quadratic of node `i`, in float64."""
    for lr in rates:
        y = y - lr * (q.A[i] @ (y - q.b[i]))
    return y


@pytest.mark.parametrize("schedule", [HALVES, WARM])
def test_every_step_of_a_round_has_the_rate_of_the_round(schedule):
    q, t, data = quadratics(n=3, d=4)
    learn = jax.jit(local_sgd(t, optax.sgd(schedule), steps=3, batch=1))
    for round in (0, 2, 9):
        y, _ = learn(KEY, data, 1, jnp.ones(4), t=jnp.int32(round))
        np.testing.assert_allclose(y, by_hand(q, 1, np.ones(4), [float(schedule(round))] * 3), rtol=1e-5)


def test_fedavg_with_a_decaying_rate_against_float64():
    q, t, data = quadratics(n=4, d=3)
    fast = optax.exponential_decay(0.2, 2, 0.5)
    got = run(fedavg(t, lr=fast, steps=2, batch=None), scenario(data), jnp.ones(3), 5)
    x = np.ones(3)
    for r in range(5):
        x = np.mean([by_hand(q, i, x, [0.2 * 0.5 ** (r / 2)] * 2) for i in range(4)], 0)
    np.testing.assert_allclose(got.state.shared["x"], x, rtol=1e-5)
    constant = run(fedavg(t, lr=0.2, steps=2, batch=None), scenario(data), jnp.ones(3), 5)
    assert not np.allclose(constant.state.shared["x"], x, rtol=1e-2)


def test_a_kept_state_counts_the_nodes_own_steps():
    q, t, data = quadratics(n=3, d=4)
    tx = optax.sgd(optax.exponential_decay(0.1, 2, 0.5))
    learn, env = local_sgd(t, tx, steps=3, batch=1, keep_state=True), Env(0, 0.0, data, None, None, jnp.zeros(3, bool))
    x, state, bound = jnp.ones((3, 4)), optimizer_state(t, tx, jnp.ones(4), 3, KEY), jnp.array([3, 2, 0])
    here = at(jnp.arange(3), learn)
    train = jax.jit(lambda r, x, memory: here(KEY, env._replace(t=r), x, memory=memory, steps=bound))
    for r in range(2):
        out = train(r + 5, x, {"state": state})
        x, state = out.rows, out.memory["state"]
    for i, ran in enumerate((3, 2, 0)):
        rates = [0.1 * 0.5 ** (k / 2) for k in range(2 * ran)]
        np.testing.assert_allclose(x[i], by_hand(q, i, np.ones(4), rates), rtol=1e-5)


SCHEDULED = {
    "rate": (optax.sgd, HALVES),
    "rate with momentum": (partial(optax.sgd, momentum=0.9), WARM),
    "rate of Adam, whose bias correction is left alone": (optax.adam, HALVES),
    "weight decay": (lambda decay: optax.adamw(0.1, weight_decay=decay), HALVES),
    "injected rate": (optax.inject_hyperparams(optax.adam), WARM),
    "injected momentum": (lambda b: optax.inject_hyperparams(optax.adam)(0.1, b1=b), HALVES),
    "injected where one count serves two": (optax.inject_hyperparams(optax.contrib.madgrad), HALVES),
    "rate of a part": (
        lambda lr: optax.partition({"a": optax.adam(lr), "b": optax.sgd(0.1)}, {"bias": "b", "kernel": "a"}),
        HALVES,
    ),
    "steps put together": (
        lambda k: optax.MultiSteps(optax.adam(0.1), k).gradient_transformation(),
        lambda t: 1 + t // 2,
    ),
    "mixture of moments": (lambda alpha: optax.contrib.ademamix(0.1, alpha=alpha), WARM),
    "rate in a mask in a chain": (lambda lr: optax.chain(optax.trace(0.5), optax.masked(optax.sgd(lr), True)), HALVES),
}


def test_a_schedule_is_its_value_in_the_round():
    rng = np.random.default_rng(0)
    data = one_sample_each(rng.normal(size=(2, 3)).astype(np.float32), rng.normal(size=2).astype(np.float32))
    t = task.linear_regression(3, bias=True)

    def moved(tx, r):
        return local_sgd(t, tx, steps=4, batch=1)(KEY, data, 1, jnp.zeros(4), t=r)[0]

    def all_of_them(r):
        return {name: (moved(make(f), r), moved(make(f(5)), r)) for name, (make, f) in SCHEDULED.items()}

    for name, (got, want) in jax.jit(all_of_them)(jnp.int32(5)).items():
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6, err_msg=name)
        assert np.abs(want).max() > 1e-3, name


def test_conditions_and_the_annealing_of_noise_count_rounds():
    t, data = flat(1)
    gate = optax.conditionally_transform(optax.scale(0.0), lambda step: step < 3)
    cooled = optax.chain(optax.add_noise(4.0, 1.0, key=3), optax.sgd(0.5))
    chains = NOISY, optax.chain(NOISY, gate), cooled
    moves = jax.jit(lambda r: [local_sgd(t, tx, steps=2, batch=1)(KEY, data, 0, jnp.zeros(D), t=r)[0] for tx in chains])
    plain, gated, _ = moves(2)
    assert np.any(plain)
    assert not np.any(gated)
    plain, gated, less = moves(15)
    np.testing.assert_array_equal(gated, plain)
    np.testing.assert_allclose(less, plain / 2, rtol=1e-5)  # variance 4 / 16


def test_a_schedule_with_a_state_of_its_own_is_given_the_round():
    class Slower:
        def init(self):
            return ()

        def update(self, state, **extra):
            return state

        def __call__(self, state, *, t=0, **extra):
            return 0.1 / (1 + jnp.asarray(t, jnp.float32))

    q, t, data = quadratics(n=3, d=4)
    tx = optax.inject_hyperparams(optax.sgd)(Slower())
    y, _ = local_sgd(t, tx, steps=2, batch=1)(KEY, data, 2, jnp.ones(4), t=3)
    np.testing.assert_allclose(y, by_hand(q, 2, np.ones(4), [0.025] * 2), rtol=1e-5)


def test_an_optimizer_without_schedules_and_keys_costs_what_it_cost():
    p = {"a": jnp.ones(3)}
    for tx in (optax.sgd(0.1), optax.adam(0.1), optax.chain(hooks.worker_momentum(0.9), optax.sgd(0.1, momentum=0.9))):
        plain = jax.make_jaxpr(lambda key, t, tx=tx: tx.init(p))(KEY, 3)
        assert str(jax.make_jaxpr(lambda key, t, tx=tx: begin(tx, p, key, t))(KEY, 3)) == str(plain)
        state = tx.init(p)
        assert all(a is b for a, b in zip(*map(jax.tree.leaves, (pinned(state, 3), state)), strict=True))


def test_noise_differs_by_seed_node_and_round_and_repeats():
    t, data = flat(4)
    env = Env(jnp.int32(0), 0.0, data, None, None, jnp.zeros(4, bool))
    learn = local_sgd(t, NOISY, steps=2, batch=1)

    @jax.jit
    def trained(key, ids):
        return at(ids, learn)(key, env, jnp.zeros(D)).rows

    def draws(seed, r, ids=(0, 1, 2)):
        return trained(jax.random.fold_in(jax.random.key(seed), r), jnp.array(ids))

    first = draws(0, 0)
    np.testing.assert_allclose(np.std(first), 0.5 * np.sqrt(2), rtol=0.1)
    assert apart(*first, *draws(0, 1), *draws(1, 0))
    assert same(first, draws(0, 0))
    np.testing.assert_allclose(draws(0, 0, (3, 2, 0))[1:], first[np.array([2, 0])], rtol=1e-6)  # in any slot


def test_kept_noise_differs_by_seed_and_node_and_goes_on():
    t, data = flat(3)
    learn = local_sgd(t, NOISY, steps=2, batch=1, keep_state=True)
    first, other = (optimizer_state(t, NOISY, jnp.zeros(D), 3, jax.random.key(seed)) for seed in (0, 1))
    step = jax.jit(jax.vmap(lambda state, k: learn(KEY, data, 0, jnp.zeros(D), state=state, steps=k)))
    all_of, none = jnp.full(3, 2), jnp.zeros(3, int)
    y, log = step(first, all_of)
    again, _ = step(log["state"], all_of)
    assert apart(*y, *again, *step(other, all_of)[0])
    assert same(y, step(first, all_of)[0])
    assert same(*map(plain, (step(first, none)[1]["state"], first)))
    more = optimizer_state(t, NOISY, jnp.zeros(D), 5, KEY)  # the world grows, a node's noise stays
    assert same(*map(plain, (jax.tree.map(lambda a: a[:3], more), first)))


def test_a_key_of_the_user_and_a_place_in_the_chain_matter():
    p = jnp.zeros(D)

    def noise(tx, key=KEY):
        return tx.update(p, begin(tx, p, key), p)[0]

    one, two = (optax.add_noise(1.0, 0.0, key=k) for k in (1, 2))
    assert apart(noise(one), noise(two), noise(one, jax.random.key(5)))
    np.testing.assert_array_equal(noise(one), noise(optax.add_noise(1.0, 0.0, key=jax.random.key(1))))
    assert np.std(noise(optax.chain(one, optax.scale(-1.0), one))) > 1.2  # two noises do not cancel


def test_raw_keys_are_keys_and_other_words_are_not():
    state = {"rng_key": jax.random.PRNGKey(4), "other": jnp.array([7, 8], jnp.uint32), "key": jnp.float32(1)}
    many = {"keys": jax.random.split(jax.random.key(2), 6)}
    tx = optax.GradientTransformation(lambda p: (state, many), lambda u, s, p=None: (u, s))
    got, keys = begin_nodes(tx, (), 2, KEY)
    assert got["rng_key"].shape == (2, 2)
    assert got["rng_key"].dtype == jnp.uint32
    assert len(np.unique(np.vstack([got["rng_key"], state["rng_key"]]), axis=0)) == 3
    np.testing.assert_array_equal(got["other"], [[7, 8]] * 2)
    np.testing.assert_array_equal(got["key"], [1, 1])
    words = jax.random.key_data(keys["keys"])
    assert words.shape == (2, 6, 2)
    assert len(np.unique(words.reshape(12, 2), axis=0)) == 12


@pytest.mark.parametrize("where", ["server", "clients"])
def test_seeds_of_a_run_draw_noise_of_their_own(where):
    t, data = flat(3)
    noisy = {"local": optax.sgd(0.1), "server": NOISY} if where == "server" else {"local": NOISY}
    x = run(fedopt(t, **noisy, steps=1, batch=1), scenario(data, cohort=uniform(3, 1)), jnp.zeros(D), 2, seeds=2).state
    assert apart(*x.shared["x"])
    np.testing.assert_allclose(np.std(x.shared["x"]), 0.5 * np.sqrt(2), rtol=0.1)  # of two rounds, not one drawn twice


def test_a_server_stays_where_nobody_is_present():
    tx = optax.chain(optax.add_noise(1.0, 0.5, key=0), optax.sgd(HALVES, momentum=0.9))
    x = jnp.ones(3)
    step = jax.jit(partial(server.step, tx))
    moved, opt = step(jnp.ones(3), server.first(tx, x, KEY), x, True)
    assert np.all(moved != x)
    for update in (jnp.zeros(3), jnp.full(3, jnp.nan)):
        assert same(*map(plain, (step(update, opt, moved, False), (moved, opt))))
    u, new = tx.update(2 * x, opt, moved)
    got = step(2 * x, opt, moved, True)
    np.testing.assert_allclose(got[0], moved + u, rtol=1e-6)
    assert int(got[1][1][1].count) == int(new[1][1].count) == 2


def test_hooks_are_given_the_round():
    t, data = flat(1)
    add = hooks.stateless(lambda g, p, *, t, **_: jax.tree.map(lambda a: a + t, g))
    learn = local_sgd(t, optax.chain(add, optax.sgd(1.0)), steps=2, batch=1)
    np.testing.assert_array_equal(learn(KEY, data, 0, jnp.zeros(D), t=jnp.int32(3))[0], np.full(D, -6))


def test_a_rate_outside_an_optimizer():
    assert rate(0.3, 5) == 0.3
    np.testing.assert_allclose(rate(HALVES, jnp.int32(10)), 0.05, rtol=1e-6)
