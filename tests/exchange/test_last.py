"""A server's memory of last messages: it is what arrived, its mean is exact, and a round costs what its members do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import one_sample_each, quadratics

from jaxfl.algorithms.server.fedstale import fedstale
from jaxfl.core import Algorithm, Cohort, Env, State
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange import attacks, codecs, last, rules
from jaxfl.exchange.network import Collected, Network
from jaxfl.exchange.noise import Noise
from jaxfl.exchange.secure import enclave
from jaxfl.learn import task as tasks
from jaxfl.learn.layers import part
from jaxfl.world import cohort
from jaxfl.world.process import process
from jaxfl.world.scenario import scenario

N, WEIGHT = 6, np.array([1.0, 2, 4, 8, 3, 5])
IDS = np.array([[0, 2, 3, 5], [4, 1, 0, 2], [2, 3, 4, 1], [1, 0, 5, 2], [5, 4, 3, 0]])
FLIP = attacks.sign_flip()
STEPS = np.array([0, 1, 2, 2])  # of the four members; the third is absent


def asked(key, arrays, s, t):
    """Four of six, one of them absent, another one idle."""
    ids = jnp.asarray(IDS, jnp.int32)[t % len(IDS)]
    weight = arrays["weight"][ids].at[2].set(0)
    return s, Cohort(ids, weight, steps=jnp.asarray(STEPS, jnp.int32))


def world():
    _, _, data = quadratics(n=N, d=3)
    return scenario(data, cohort=process(asked, cohort.base_arrays(N, WEIGHT)))


def teller(net, d=3):
    """Members say which they are and in which round; the server remembers it, and counts who was heard."""

    def member(key, data, i, x, *, t, steps=None):
        ran = jnp.float32(1) if steps is None else (steps > 0).astype(jnp.float32)
        return jnp.stack([i.astype(jnp.float32), t.astype(jnp.float32), 1.0])[:d], {"steps": ran}

    def init(key, env, x):
        return State({"x": x, "mean": x, "heard": x}, last.table(env, x), net.init(env, x))

    def round(key, env, s):
        got = net.collect(key, env, s.mail, member, s.shared["x"], hear=True)
        new = last.renew(env, s.nodes, s.shared["mean"], got)
        heard = s.shared["heard"] + got.heard.sum(0)
        return State({"x": s.shared["x"], "mean": new.mean, "heard": heard}, new.table, got.mail), got.log

    return Algorithm(init, round, read=lambda s: s.shared["x"])


def told(count):
    """The table after so many rounds, by a loop over members."""
    rows, heard = np.zeros((N, 3)), np.zeros(3)
    for t in range(count):
        for i, k, w in zip(IDS[t % len(IDS)], STEPS, (1, 1, 0, 1), strict=True):
            if w > 0:
                heard += [i, t, 1]
                if k > 0:
                    rows[i] = i, t, 1
    return rows, heard


def test_the_absent_and_the_idle_keep_what_they_said():
    s = run(teller(Network()), world(), jnp.zeros(3), 5, every=5).state
    rows, heard = told(5)
    np.testing.assert_array_equal(s.nodes, rows)
    np.testing.assert_array_equal(s.shared["heard"], heard)
    np.testing.assert_allclose(s.shared["mean"], WEIGHT / WEIGHT.sum() @ rows, atol=1e-6)


@pytest.mark.parametrize(
    "net",
    [
        Network(codec=codecs.top_k(1)),
        Network(attack=attacks.gaussian(10.0), noise=Noise(up=1.0)),
        Network(attack=FLIP),
    ],
)
def test_what_arrived_is_remembered_and_its_mean_is_that_of_the_table(net):
    lying = world()._replace(byz=jnp.arange(N) < 2)
    s = run(teller(net), lying, jnp.zeros(3), 20, every=20).state
    rows, honest = np.asarray(s.nodes), told(20)[0]
    np.testing.assert_allclose(s.shared["mean"], WEIGHT / WEIGHT.sum() @ rows, atol=1e-4)
    assert not np.allclose(rows, honest)
    if net.attack is FLIP:
        np.testing.assert_array_equal(rows, honest * np.where(np.arange(N) < 2, -1, 1)[:, None])


def test_hearing_each_changes_neither_the_mean_nor_the_costs():
    w = world()
    net, env_of = Network(), lambda c: Env(jnp.int32(0), jnp.float32(0), w.data, None, c, w.byz)
    c = Cohort(jnp.arange(4), jnp.array([1.0, 2, 0, 3]))
    member = lambda key, data, i, x: (data.y[i] * (1 + i), {"steps": jnp.float32(1), "gradients": jnp.float32(1)})

    def collect(hear):
        env = env_of(c)
        got = net.collect(jax.random.key(0), env, net.init(env, jnp.zeros(3)), member, jnp.zeros(3), hear=hear)
        return got.mean, got.log, got.heard

    (a, log, none), (b, same, heard) = jax.jit(lambda: (collect(False), collect(True)))()
    assert none is None
    np.testing.assert_allclose(a, b, rtol=1e-6)
    assert log == same
    np.testing.assert_allclose(heard, np.asarray(w.data.y[:4]) * np.array([1, 2, 0, 4])[:, None], rtol=1e-6)


def test_a_round_touches_the_rows_of_its_members_alone():
    """No operation but the writing itself gives anything of `n` rows."""
    n, c = 1000, 3
    who = Cohort(jnp.arange(c), jnp.ones(c))
    share, byz = jnp.full(n, 1 / n), jnp.zeros(n, bool)
    env = Env(jnp.int32(0), jnp.float32(0), (), None, who, byz, share=share)

    def renew(rows, mean, heard):
        got = Collected(mean, jnp.bool_(True), {}, env, {}, {"steps": jnp.ones(c)}, mean, heard)  # type: ignore[arg-type]
        return last.renew(env, rows, mean, got)

    text = jax.make_jaxpr(renew)(jnp.zeros((n, 5)), jnp.zeros(5), jnp.ones((c, 5)))
    large = [eqn.primitive.name for eqn in text.jaxpr.eqns if any(v.aval.shape[:1] == (n,) for v in eqn.outvars)]
    assert large == ["scatter"]


def test_who_hears_each_refuses_what_hides_them():
    w = world()
    cut = Network(submodel=lambda key, i, t, x: None)
    for net, slot in ((Network(collective=enclave(0.01, 8)), "collective"), (cut, "submodel")):
        with pytest.raises(InputError, match=rf"^net\.{slot} is set"):
            run(teller(net), w, jnp.zeros(3), 1)
    with pytest.raises(InputError, match=r"^net\.rule is set"):
        last.require_mean(Network(rule=rules.median()))
    last.require_mean(Network())


def test_personal_columns_are_neither_heard_nor_moved():
    task, rng = tasks.logistic_regression(2, 2), np.random.default_rng(0)
    data = one_sample_each(rng.normal(size=(N, 2)).astype(np.float32), np.arange(N) % 2)
    net = Network(personal=part(task, "bias"))
    w, first = scenario(data, cohort=cohort.uniform(N, 3)), jnp.arange(1.0, 7)
    s = run(fedstale(task, net, lr=0.5, steps=2, batch=None), w, first, 4, every=4).state
    mine = part(task, "bias").mask
    np.testing.assert_array_equal(s.shared["x"][mine], first[mine])
    np.testing.assert_array_equal(np.asarray(s.nodes)[:, mine], 0)
    assert np.abs(np.asarray(s.nodes)[:, ~mine]).max() > 0
