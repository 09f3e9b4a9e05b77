"""What the verbs owe every system: seconds and bits by hand, the down stay, nobody moves nothing, slots are refused."""

import jax
import jax.numpy as jnp
import networkx
import numpy as np
import optax
import pytest
from common import one_sample_each, quadratics, ring

from jaxfl.algorithms.asynchronous import fedasync, fedbuff
from jaxfl.algorithms.gossip import clipped_gossip
from jaxfl.algorithms.gossip.dfedsam import dfedsam, dfedsam_mgs
from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.algorithms.gossip.gradient_tracking import gradient_tracking
from jaxfl.algorithms.reference.centralized import centralized
from jaxfl.algorithms.reference.local_only import local_only
from jaxfl.algorithms.server import diloco, dilocox, fedopt, robust_sgd
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.scaffold import scaffold
from jaxfl.core import Algorithm, State
from jaxfl.data.sets import digits
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange import attacks, codecs, rules
from jaxfl.exchange.network import Network
from jaxfl.learn import hooks
from jaxfl.learn.layers import part
from jaxfl.learn.local import local_sgd
from jaxfl.learn.submodels import width
from jaxfl.learn.task import logistic_regression
from jaxfl.mapping.at import at
from jaxfl.programs.gossip_averaging import gossip_averaging
from jaxfl.world import churn, clock, cohort, durations, graph, mixing, work
from jaxfl.world.links import links
from jaxfl.world.scenario import scenario

N, D = 8, 3
SOFTMAX = logistic_regression(3, 2)
FLOATS = 32.0 * D
SPEED = links(N, up=np.arange(1.0, N + 1), down=100.0, latency=0.5, step=np.linspace(0, 7, N))


def world(**kw):
    _, task, data = quadratics(n=N, d=D)
    return task, scenario(data, round_seconds=0.0, **kw)


def history(algorithm, w, rounds=1, model=None):
    return run(algorithm, w, jnp.ones(D) if model is None else model, rounds).history.iloc[-1]


@pytest.mark.parametrize(("make", "vectors"), [(fedavg, 1), (scaffold, 2)])
def test_a_round_with_a_server_takes_as_long_as_its_slowest_member(make, vectors):
    task, w = world(links=SPEED)
    got = history(make(task, lr=0.01, steps=2, batch=None), w)
    bits = vectors * FLOATS
    each = (0.5 + bits / 100) + 2 * np.linspace(0, 7, N) + (0.5 + bits / np.arange(1.0, N + 1))
    assert got["seconds"] == pytest.approx(each.max())
    assert got["up_bits"] == got["down_bits"] == N * bits


def test_what_members_know_without_being_told_does_not_travel():
    task, w = world(cohort=clock.buffered(N, 4, 2, durations.fixed()))
    got = history(fedasync.fedasync(task, lr=0.01, steps=1, batch=None), w, 3)
    assert got["down_bits"] == 2 * FLOATS


@pytest.mark.parametrize("repeats", [1, 4])
def test_exchanges_one_after_the_other_pay_their_latency_each(repeats):
    task, w = world(links=SPEED, topology=ring(N))
    kw = {"lr": 0.01, "steps": 3, "batch": None}
    got = history(dfedsam(task, **kw) if repeats == 1 else dfedsam_mgs(task, gossip_steps=repeats, **kw), w)
    slowest = 0.5 + 2 * FLOATS / 1.0  # node 0 sends two messages at 1 bit a second
    assert got["seconds"] == pytest.approx(3 * 7 + repeats * slowest)
    assert got["up_bits"] == repeats * 2 * N * FLOATS


def test_gradient_tracking_references_and_protocols_take_time_too():
    task, w = world(links=SPEED, topology=ring(N))
    two = history(gradient_tracking(task, lr=0.01), w)
    assert two["seconds"] == pytest.approx(7 + 0.5 + 2 * 2 * FLOATS)
    assert history(local_only(task, lr=0.01, steps=2, batch=None), w)["seconds"] == pytest.approx(14)
    assert history(centralized(task, lr=0.01, steps=2, batch=None), w)["seconds"] == pytest.approx(7)
    values = scenario(jnp.ones((N, D)), nodes=N, topology=ring(N), links=SPEED, round_seconds=0.0)
    talk = history(gossip_averaging(), values, model=jnp.zeros(0))
    assert talk["seconds"] == pytest.approx(0.5 + 2 * talk["up_bits"] / (2 * N))


def test_training_and_sending_apart_add_up():
    """Written with `at` and `aggregate`: the slowest step, then the slowest upload; nothing is said about cost."""
    task, w = world(links=SPEED)
    learn = local_sgd(task, optax.sgd(0.01), steps=2)

    def round(key, env, s):
        y = at(env.cohort, learn)(key, env, s.shared["x"])
        x, mail, log = Network().aggregate(key, env, s.mail, y.rows)
        return State({"x": x}, (), mail), y.log | log

    own = Algorithm(lambda key, env, x: State({"x": x}, (), Network().init(env, x)), round, lambda s: s.shared["x"])
    got = history(own, w)
    assert got["seconds"] == pytest.approx(14 + 0.5 + FLOATS)
    assert got["gradients"] == 2 * N


def test_a_system_that_counts_no_time_is_refused_where_links_are_given():
    _, w = world(links=SPEED)
    deaf = Algorithm(lambda key, env, x: State({"x": x}), lambda key, env, s: (s, {}), lambda s: s.shared["x"])
    with pytest.raises(InputError, match="logs no `seconds`"):
        history(deaf, w)

    def trains(learn):
        return deaf._replace(round=lambda key, env, s: (s, at(env.cohort, learn)(key, env, s.shared["x"]).log))

    with pytest.raises(InputError, match="must log `steps`"):
        history(trains(lambda key, data, i, x, **arguments: (x, {})), w)
    stubborn, crash = trains(lambda key, data, i, x: (x, {"steps": jnp.float32(1)})), churn.crash(N, 0.5, 0)
    with pytest.raises(InputError, match="takes no `steps`"):
        history(stubborn, world(churn=crash)[1])


def around(learn):
    """A member that hands its arguments on, which its signature does not show."""
    return lambda key, data, i, x, **arguments: learn(key, data, i, x, **arguments)


def knows_the_round(key, data, i, x, *, t):
    return x, {"steps": 1, "gradients": 1}


def knows_steps(key, data, i, x, *, t, steps=None):
    return x, {"steps": 1, "gradients": 1}


@pytest.mark.parametrize(
    ("learn", "bounds", "slots", "says"),
    [
        (knows_the_round, True, {}, "learn takes no `steps`, but this world bounds"),
        (knows_steps, False, {"submodel": width(SOFTMAX, 0.5)}, "net.submodel is set, .* trains whole models"),
        (knows_steps, False, {"personal": part(SOFTMAX, "*")}, "net.personal is set, .* keeps no part of a model"),
    ],
)
def test_what_a_function_inside_a_member_does_not_take_is_said_in_a_sentence(learn, bounds, slots, says):
    net, x = Network(**slots), np.ones((4, 3), np.float32)
    members = work.bounded(cohort.everyone(4), np.full(4, 2)) if bounds else None
    there = scenario(one_sample_each(x, np.arange(4) % 2), cohort=members)

    def server(member):
        def round(key, env, s):
            got = net.collect(key, env, s.mail, member, s.shared["x"])
            return State({"x": got.mean}, (), got.mail), got.log

        return Algorithm(lambda key, env, x: State({"x": x}, (), net.init(env, x)), round, lambda s: s.shared["x"])

    with pytest.raises(InputError, match=says):
        run(server(around(around(learn))), there, SOFTMAX.init, 1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):  # what is wrong besides is not hidden
        run(server(around(lambda *a, **named: knows_steps(*a, other=1))), there, SOFTMAX.init, 1)


LOSSY = Network(codec=codecs.error_feedback(codecs.top_k(1)))
SYSTEMS = {
    "gradient_tracking": lambda task: gradient_tracking(task, lr=0.01),
    "local_only": lambda task: local_only(task, lr=0.01, steps=3, batch=None),
    "dsgd": lambda task: dsgd(task, LOSSY, lr=0.01, steps=3, batch=None),
    "robust_gossip": lambda task: clipped_gossip.robust_gossip(task, lr=0.01, steps=3, batch=None),
    "protocol": lambda task: gossip_averaging(),
}


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_the_down_neither_train_nor_move_nor_forget(name):
    q, task, data = quadratics(n=N, d=D)
    up = churn.crash(N, 0.5, 2)
    dead = ~np.asarray(up.step(jax.random.key(0), up.arrays, (), jnp.int32(2))[1])
    assert dead.sum() == N / 2
    data = jnp.asarray(q.b) if name == "protocol" else data
    w = scenario(data, nodes=N, topology=ring(N), churn=up)
    x = jnp.zeros(0) if name == "protocol" else jnp.ones(D)
    system = SYSTEMS[name](task)
    before, after = (run(system, w, x, rounds) for rounds in (2, 5))
    memory = [(a.state.nodes, a.state.mail.nodes) for a in (before, after)]
    for old, new in zip(*map(jax.tree.leaves, memory), strict=True):
        np.testing.assert_array_equal(new[dead], old[dead])
    moved = zip(*(jax.tree.leaves(system.read(a.state)) for a in (before, after)), strict=True)
    assert all(not np.allclose(new[~dead], old[~dead]) for old, new in moved)
    if name != "protocol":
        each = after.history["gradients"].to_numpy()[1:]
        np.testing.assert_array_equal(each, each[0] * np.array([1, 1, 0.5, 0.5, 0.5]))


def nobody_in_round_two():
    everyone = cohort.everyone(N)

    def step(key, arrays, s, t):
        s, c = everyone.step(key, arrays, s, t)
        return s, c._replace(weight=jnp.where(t == 2, 0.0, c.weight))

    return everyone._replace(step=step)


STAY = {
    "fedadam": lambda task: fedopt.fedadam(task, lr=0.01, steps=2, batch=None),
    "fedyogi": lambda task: fedopt.fedyogi(task, lr=0.01, steps=2, batch=None),
    "diloco": lambda task: diloco.diloco(task, lr=0.01, steps=2, batch=None),
    "learning_from_history": lambda task: robust_sgd.learning_from_history(task, lr=0.01, batch=None),
    "kept": lambda task: fedopt.fedopt(
        task, local=optax.sgd(0.01, momentum=0.9), server=optax.adam(0.1), steps=2, batch=None, keep_state=True
    ),
}


@pytest.mark.parametrize("name", list(STAY))
def test_where_nobody_answers_nothing_moves_and_the_loss_is_unknown(name):
    task, w = world(cohort=nobody_in_round_two())
    two, three = (run(STAY[name](task), w, jnp.ones(D), rounds) for rounds in (2, 3))
    for old, new in zip(*(jax.tree.leaves(r.state) for r in (two, three)), strict=True):
        np.testing.assert_array_equal(new, old)
    assert np.isnan(three.history["loss"].iloc[-1])
    assert not three.history[["up_bits", "gradients"]].iloc[-1].any()


@pytest.mark.parametrize("make", [diloco.all_reduce, dilocox.cocktail_sgd])
def test_a_delayed_step_of_nobody_is_skipped_when_its_turn_comes(make):
    task, w = world(cohort=nobody_in_round_two())
    system = make(task, lr=0.01, batch=None, delay=1)
    x = [np.asarray(run(system, w, jnp.ones(D), rounds).state.shared["x"]) for rounds in (2, 3, 4)]
    assert not np.array_equal(x[0], x[1])  # what was measured in round 1
    np.testing.assert_array_equal(x[1], x[2])  # nobody was there in round 2


def test_who_runs_no_step_is_not_in_the_loss_and_sends_no_gradient():
    task, _ = world()
    _, _, data = quadratics(n=N, d=D)
    half = cohort.everyone(N)

    def step(key, arrays, s, t):
        s, c = half.step(key, arrays, s, t)
        return s, c._replace(steps=jnp.where(c.ids < N // 2, 0, 5))

    bounded, few = half._replace(step=step), cohort.everyone(N, weight=np.arange(N) >= N // 2)
    for system in (robust_sgd.robust_sgd(task, lr=0.01, batch=None), fedavg(task, lr=0.01, steps=2, batch=None)):
        a, b = (run(system, scenario(data, cohort=c), jnp.ones(D), 1) for c in (bounded, few))
        assert a.history["loss"].iloc[-1] == pytest.approx(b.history["loss"].iloc[-1])
        assert a.history["gradients"].iloc[-1] == b.history["gradients"].iloc[-1]
    robust = robust_sgd.robust_sgd(task, lr=0.01, batch=None)
    x, y = (run(robust, scenario(data, cohort=c), jnp.ones(D), 3).state for c in (bounded, few))
    np.testing.assert_allclose(x.shared["x"], y.shared["x"], atol=1e-6)


def test_weights_that_do_not_sum_to_one_at_a_receiver_are_refused():
    pushed = mixing.push_weights(graph.erdos_renyi(N, 0.5, seed=1))
    task, w = world(topology=pushed)
    with pytest.raises(InputError, match="column stochastic"):
        history(dsgd(task, lr=0.01, steps=1, batch=None), w)
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(N, D)), jnp.float32)

    def round(key, env, s):
        x, mail, log = Network().gossip(key, env, s.mail, s.nodes, column_stochastic=True)
        return State((), x, mail), log

    push = Algorithm(lambda key, env, x: State((), rows, Network().init(env, x)), round, lambda s: s.nodes)
    x = run(push, w, jnp.ones(D), 1).state.nodes
    np.testing.assert_allclose(x, mixing.matrix(pushed) @ np.asarray(rows), atol=1e-5)


MEDIAN, HALF = Network(rule=rules.median()), Network(codec=codecs.half())


@pytest.mark.parametrize(
    ("make", "net", "slot"),
    [
        (fedbuff.papaya, HALF, "codec"),
        (fedbuff.papaya, MEDIAN, "rule"),
        (clipped_gossip.clipped_gossip, MEDIAN, "rule"),
        (robust_sgd.learning_from_history, MEDIAN, "rule"),
        (diloco.open_diloco, HALF, "codec"),
        (dilocox.cocktail_sgd, HALF, "codec"),
        (dilocox.dilocox, HALF, "codec"),
        (dilocox.dilocox, MEDIAN, "rule"),
        (dfedsam_mgs, Network(repeats=2), "repeats"),
    ],
)
def test_a_slot_that_a_system_fills_itself_is_refused(make, net, slot):
    task, _ = world()
    with pytest.raises(InputError, match=rf"net\.{slot} is set, but {make.__name__} brings its own"):
        make(task, net)


@pytest.mark.parametrize("net", [HALF, MEDIAN, Network(attack=attacks.sign_flip()), Network(repeats=2)])
def test_messages_of_a_protocol_arrive_as_they_were_said(net):
    values = scenario(jnp.ones((N, D)), nodes=N, topology=ring(N), byz=1)
    with pytest.raises(InputError, match="messages of a protocol"):
        history(gossip_averaging(net), values, model=jnp.zeros(0))


def test_liars_lie_under_masked_sums_too():
    task, w = world(cohort=clock.buffered(N, 4, 2, durations.fixed()), byz=3)
    kw = {"lr": 0.01, "steps": 1, "batch": None}
    liars = Network(attack=attacks.sign_flip())
    honest, lied = (
        run(fedbuff.papaya(task, net, **kw), w, jnp.ones(D), 6).state.shared["x"] for net in (Network(), liars)
    )
    want = run(fedbuff.fedbuff(task, liars, **kw), w, jnp.ones(D), 6).state.shared["x"]
    np.testing.assert_allclose(lied, want, atol=1e-3)
    assert not np.allclose(lied, honest, atol=1e-3)


def test_what_a_node_keeps_must_come_back_and_must_be_something():
    task, w = world()
    learn = local_sgd(task, optax.sgd(0.01), steps=1)

    def round(key, env, s):
        forgets = lambda key, data, i, x, *, dual, **arguments: learn(key, data, i, x, **arguments)
        got = Network().collect(key, env, s.mail, forgets, s.shared["x"], memory={"dual": s.nodes})
        return s, got.log

    with pytest.raises(InputError, match="does not log dual"):
        history(Algorithm(lambda key, env, x: State({"x": x}, jnp.zeros((N, D))), round, lambda s: s.shared["x"]), w)
    with pytest.raises(InputError, match="no state to keep"):
        fedavg(task, lr=0.1, keep_state=True)
    with pytest.raises(InputError, match="but must be a number"):
        fedavg(task, lr="0.1")
    with pytest.raises(InputError, match="but must be a whole number"):
        fedavg(task, steps=2.5)


def test_a_hook_whose_vector_is_missing_is_named():
    task, w = world()
    with pytest.raises(InputError, match="a hook needs control, shared_control, but this system gives anchor, grad_fn"):
        history(fedopt.fedopt(task, local=optax.chain(hooks.drift(), optax.sgd(0.01)), steps=1, batch=None), w)


@pytest.mark.parametrize(
    ("data", "parts", "words"),
    [
        (digits(), {"nodes": 4}, "data is a Dataset with leaves of type .* but must be arrays or Shards"),
        (jnp.ones((4, 2)), {"nodes": 4, "topology": networkx.path_graph(5)}, "topology has 5 nodes"),
        (jnp.ones((4, 2)), {"nodes": 4, "topology": np.eye(4)}, "node 0 is isolated"),
        (jnp.ones((4, 2)), {"nodes": 4, "cohort": np.ones(4)}, "cohort is a numpy.ndarray, but must be a Process"),
        (jnp.ones((4, 2)), {"nodes": 4, "links": 3.0}, "links is a builtins.float, but must be world.links.links"),
    ],
)
def test_what_is_no_part_of_a_world_gets_a_sentence(data, parts, words):
    with pytest.raises(InputError, match=words):
        scenario(data, **parts)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Network(rule="median"), "rule is 'median'"),  # type: ignore[arg-type]
        (Network(codec=codecs.half), "codec is <function half"),  # type: ignore[arg-type]
        (Network(attack=attacks.sign_flip), "attack is <function sign_flip"),  # type: ignore[arg-type]
        (Network(repeats=0), "repeats is 0"),
        (Network(repeats=2), "net.repeats is 2, but a server hears its cohort once"),
        (Network(rule=rules.median), "rule is median, but must take"),
        (Network(attack=attacks.sign_flip()), "has an attack, but nobody lies"),
    ],
)
def test_what_is_no_slot_gets_a_sentence(net, words):
    task, w = world()
    with pytest.raises(InputError, match=words):
        history(fedavg(task, net, lr=0.01, steps=1, batch=None), w)
