"""What a world says of members: a system reads it or is refused, and who reads it computes the right value."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import quadratics, ring, same

from jaxfl.algorithms.asynchronous.cdfl import cdfl
from jaxfl.algorithms.asynchronous.fedbuff import fedbuff
from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.algorithms.reference.centralized import centralized
from jaxfl.algorithms.server.fedamd import fedamd
from jaxfl.algorithms.server.fedast import fedast
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.fedstale import fedstale, mifa
from jaxfl.algorithms.server.modest import modest
from jaxfl.algorithms.server.scaffold import scaffold
from jaxfl.core import Algorithm, State, ages, n_nodes, without
from jaxfl.engine import run as engine
from jaxfl.engine.plan import plan
from jaxfl.engine.rollout import rollout
from jaxfl.engine.run import run
from jaxfl.engine.schedule import schedule
from jaxfl.errors import InputError
from jaxfl.exchange.network import Network
from jaxfl.exchange.staleness import Staleness, counted, polynomial
from jaxfl.exchange.versions import push, recall, versions
from jaxfl.learn.local import displacement, local_sgd
from jaxfl.world import churn, cohort, weights, work
from jaxfl.world.clock import buffered
from jaxfl.world.deadline import barrier, deadline
from jaxfl.world.delivery import groups, quorum, ticks
from jaxfl.world.durations import exponential, fixed, lognormal
from jaxfl.world.scenario import scenario
from jaxfl.world.slices import slices
from jaxfl.world.uneven import independent
from jaxfl.world.waves import waves

N, RATE, ROUNDS = 6, 0.1, 5
Q, TASK, DATA = quadratics(n=N, d=3)
KW = {"lr": RATE, "steps": 1, "batch": None}
WEIGHT = np.array([1.0, 2, 4, 8, 3, 5])
LATE = buffered(N, 3, 2, exponential(), weight=WEIGHT)
SOME = cohort.uniform(N, 3, weight=WEIGHT)
TALK = {"topology": ring(N)}
ONE_TASK = dataclasses.replace(DATA, x=DATA.x[:, None], y=DATA.y[:, None])
ASKS = fedast(TASK, tasks=1, sample=2, buffer=1, steps=2, batch=None)


def world(members, data=DATA, **kw):
    return scenario(data, cohort=members, **kw)


@pytest.mark.parametrize(
    ("system", "there", "field"),
    [
        (scaffold(TASK, **KW), world(LATE), "age"),
        (fedstale(TASK, **KW), world(ticks(N, 1.0, lognormal())), "age"),
        (mifa(TASK, **KW), world(quorum(N, 1, lognormal())), "age"),
        (scaffold(TASK, **KW), world(groups([0, 0, 1, 1, 2, 2], lognormal())), "age"),
        (scaffold(TASK, **KW), world(slices(SOME, 0.5, 4)), "age"),
        (scaffold(TASK, **KW), world(work.delayed(SOME, 3)), "age"),
        (dsgd(TASK, **KW), world(ticks(N, 1.0, fixed()), **TALK), "weight"),
        (dsgd(TASK, **KW), world(independent(N, 0.5), **TALK), "weight"),
        (dsgd(TASK, **KW), world(cohort.markov(N, N, 0.5, 0.5), **TALK), "weight"),
        (dsgd(TASK, **KW), world(deadline(cohort.everyone(N), lognormal(), 0.5), **TALK), "weight"),
        (dsgd(TASK, **KW), world(cohort.everyone(N), weights=weights.uniform(), **TALK), "weight"),
        (centralized(TASK, **KW), world(SOME), "weight"),
        (modest(TASK, sample=3, aggregators=1, **KW), world(SOME), "weight"),
        (ASKS, world(work.bounded(cohort.everyone(N), np.arange(1, N + 1)), ONE_TASK), "steps"),
        (ASKS, world(SOME, ONE_TASK), "weight"),
        (fedamd(TASK, lr=RATE, steps=2), world(independent(N, 0.5)), "total"),
    ],
)
def test_who_does_not_read_what_members_are_is_refused_before_anything_is_compiled(system, there, field):
    before = engine._chunk._cache_size(), engine._start._cache_size()
    said = rf"^cohort says .* \({field}\), but this system does not read it: leave it out\.$"
    for start in (run, rollout, plan):
        with pytest.raises(InputError, match=said):
            start(system, there, jnp.ones(3), *([] if start is plan else [2]))
    assert (engine._chunk._cache_size(), engine._start._cache_size()) <= before


def test_members_that_only_learned_elsewhere_are_no_news():
    """A barrier has no late members, churn and clocks of pairs say steps elsewhere, and all nodes are no choice."""
    law = fixed(np.arange(1.0, N + 1))
    for system, there in (
        (scaffold(TASK, **KW), world(barrier(SOME, law))),
        (dsgd(TASK, **KW), world(barrier(cohort.everyone(N), law), **TALK)),
        (dsgd(TASK, **KW), world(None, churn=churn.crash(N, 0.5, 1), **TALK)),
        (dsgd(TASK, **KW), world(work.bounded(cohort.everyone(N), np.full(N, 3)), **TALK)),
        (centralized(TASK, **KW), world(None)),
        (ASKS, world(None, ONE_TASK)),
    ):
        run(system, there, jnp.ones(3), 1)


def test_a_barrier_lasts_as_long_as_its_slowest_member_and_changes_nothing_else():
    law = fixed(np.arange(1.0, N + 1))
    for system, members, kw in (
        (scaffold(TASK, **KW), SOME, {}),
        (dsgd(TASK, **KW), cohort.everyone(N), TALK),
    ):
        timed, plain = world(barrier(members, law), **kw), world(members, **kw)
        got = run(system, timed, jnp.ones(3), ROUNDS, every=1)
        assert same(got.state, run(system, plain, jnp.ones(3), ROUNDS).state)
        ids = schedule(plain, ROUNDS).cohort.ids
        np.testing.assert_array_equal(got.history["seconds"][1:], 1.0 + ids.max(1))


def remembering(task, net, read, longest=8):
    """A user's own asynchronous server, that says nothing of ages; `read` makes the model a member starts from."""
    train = displacement(local_sgd(task, optax.sgd(RATE), steps=1, batch=None))

    def round(key, env, s):
        c, scale, _ = counted(Staleness(longest, polynomial(0.5)), env.cohort)
        start = read(s.shared["past"], env.cohort)
        got = net.collect(key, env._replace(cohort=c), s.mail, train, start)
        x = s.shared["x"] + (1.0 if scale is None else scale) * got.mean
        return State({"x": x, "past": push(s.shared["past"], x)}, (), got.mail), got.log

    first = lambda key, env, x: State({"x": x, "past": versions(x, longest + 1)}, (), net.init(env, x))
    return Algorithm(first, round, lambda s: s.shared["x"])


def test_who_remembers_versions_is_heard_by_itself_and_trains_from_the_model_a_member_read():
    """Three systems in float64: one by the blocks alone, FedBuff, and FedAvg, which drops what is old."""
    A, b = np.asarray(Q.A, np.float64), np.asarray(Q.b, np.float64)
    members = schedule(world(LATE), 12).cohort
    assert members.age.max() > 1

    def by_hand(longest):
        past = [np.ones(3)]
        for ids, weight, age in zip(members.ids, members.weight.astype(float), members.age, strict=True):
            weight = np.where(age > longest, 0, weight)
            move = np.zeros(3)
            for i, p, a in zip(ids, weight, age, strict=True):
                x = past[max(len(past) - 1 - a, 0)]
                move += p / np.sqrt(1 + a) * -RATE * (A[i] @ (x - b[i]))
            past.append(past[-1] + (move / weight.sum() if weight.sum() else 0))
        return past[-1]

    mine = remembering(TASK, Network(), lambda past, c: recall(past, ages(c)))
    for system, want in (
        (mine, by_hand(8)),
        (fedbuff(TASK, longest=8, **KW), by_hand(8)),
        (fedavg(TASK, **KW), by_hand(0)),
    ):
        got = system.read(run(system, world(LATE), jnp.ones(3), 12).state)
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


def test_who_uses_the_weight_of_a_cohort_without_a_field_knows_of_it():
    """Of means by weights of its own a system need not divide as the world says, but it has to say so."""

    def average(take):
        train = displacement(local_sgd(TASK, optax.sgd(RATE), steps=1, batch=None))
        net = Network()

        def round(key, env, s):
            c = take(env.cohort._replace(weight=(env.cohort.weight > 0) / n_nodes(env)))
            got = net.collect(key, env._replace(cohort=c), s.mail, train, s.shared["x"])
            return State({"x": s.shared["x"] + got.mean}, (), got.mail), got.log

        return Algorithm(lambda key, env, x: State({"x": x}, (), net.init(env, x)), round, lambda s: s.shared["x"])

    there = world(independent(N, 0.5, weight=WEIGHT))
    with pytest.raises(InputError, match="total"):
        run(average(lambda c: c._replace(total=None)), there, jnp.ones(3), 2)
    x, A, b = np.ones(3), np.asarray(Q.A, np.float64), np.asarray(Q.b, np.float64)
    for here in schedule(there, ROUNDS).cohort.weight > 0:
        moves = [-RATE * (A[i] @ (x - b[i])) for i in np.flatnonzero(here)]
        x = x + (np.mean(moves, 0) if moves else 0)
    got = run(average(lambda c: without(c, "total")), there, jnp.ones(3), ROUNDS).state.shared["x"]
    np.testing.assert_allclose(got, x, rtol=2e-5, atol=1e-6)


def test_clients_who_call_come_from_the_model_they_have_and_waves_are_one_call_after_the_other():
    system = cdfl(TASK, lr=0.05, clusters=2, warmup=5, steps=2, batch=None)
    many = run(system, world(waves(buffered(N, 3, 1, exponential()), 4)), jnp.ones(3), 6, every=1)
    made = int(many.history["updates"].sum())
    assert made > 8
    one = run(system, world(waves(buffered(N, 3, 1, exponential()), 1)), jnp.ones(3), made)
    leaves = (
        jax.tree.leaves((many.state.shared, many.state.nodes)),
        jax.tree.leaves((one.state.shared, one.state.nodes)),
    )
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    assert int(many.state.shared["contacts"]) == made
