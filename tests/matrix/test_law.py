"""The law of slots: every option changes what a system computes, or is refused in one sentence. No system is listed."""

import dataclasses
import inspect
import tempfile
from functools import cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl import data, plugins, zoo
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.core import Cohort
from jaxfl.engine import law
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.options.build import build, prepare
from jaxfl.options.config import KINDS, SLOTS, Setup, usual
from jaxfl.options.fit import fit
from jaxfl.options.systems import accepted, takes
from jaxfl.paper import System

JOBS = Path(tempfile.mkdtemp()) / "jobs.csv"
JOBS.write_text("node,seconds\n" + "".join(f"{i},{1 + i % 3}\n{i},0.5\n" for i in range(16)))
REGIONS = JOBS.with_name("regions.csv")
REGIONS.write_text("from,to,latency_ms,mbit\neu,eu,5,8\nus,us,9,8\neu,us,80,2\n")
SMALL = Setup(nodes=16, data="digits", model="logistic", rounds=4, seeds=1)
OTHER = {
    "topology": "regular", "degree": 4, "mixing": "lazy", "cohort": 4, "strata": 2, "concurrency": 6, "goal": 3,
    "weights": "uniform", "lr": 0.01, "steps": 5, "batch": 1, "byzantine": 5, "attack": "ipm", "rule": "median",
    "codec": "top_k", "personal": "bias", "link_noise": 0.1, "crash": 0.5, "mbit": 2.0, "latency_ms": 90.0,
    "step_ms": 9.0, "trace": str(JOBS), "durations": "trace:samples=1", "deadline": "2.5",
    "links": str(REGIONS), "availability": "diurnal",
}  # fmt: skip
WORK = {"lr", "steps", "batch"}  # where the system takes them
TALK = {"byzantine", "attack", "rule", "codec", "personal", "link_noise", "mbit", "latency_ms", "links"}
LASTS = {"trace", "durations", "crash", "availability", "step_ms"}
HEARS = {  # what a system of this kind hears, or refuses itself for a reason of its own
    "server": {"cohort", "strata", "weights", "deadline"} | LASTS | TALK | WORK,
    "asynchronous": {"concurrency", "goal", "weights"} | LASTS | TALK | WORK,
    "gossip": {"topology", "degree", "mixing"} | LASTS | TALK | WORK,
    "reference": {"step_ms"} | WORK,
    "protocol": {"topology", "degree", "mixing", "crash", "availability"}
    | TALK - {"personal", "link_noise"},  # exact messages of no model
}
TIMED = {"mbit": 2.0, "latency_ms": 90.0, "step_ms": 9.0}
SYSTEMS = list(zoo.systems())


@pytest.fixture(scope="module", autouse=True)
def digits():
    """The digits are read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "digits", cache(data.digits))
        yield


@cache
def world_of(kind, **options):
    """A world for systems of a kind; all kinds that learn share one."""
    return prepare(dataclasses.replace(SMALL, **options), ["push_sum" if kind == "protocol" else "dsgd"])


def broken(name):
    """The options that a system ignores although systems of its kind hear them; all others have their sentence."""
    system = zoo.find(name)
    known = accepted(system.make)
    must = {n for n in HEARS[system.kind] if n not in WORK or n in known}
    must -= {"strata", "weights"} if "sample" in known else set()  # it draws its own sample of the cohort's size
    through_net = {"byzantine", "attack", "rule", "codec", "personal", "link_noise"}
    must -= set() if "net" in inspect.signature(system.make).parameters else through_net
    if system.kind in ("gossip", "protocol"):  # some bring a topology of their own
        usual_world = world_of(system.kind)
        own = build(usual_world, name, {}).topology is not usual_world.topology
        must -= {"topology", "degree", "mixing"} if own else set()
    world = world_of(system.kind, **OTHER)
    unheard = fit(world, name, {}).unheard
    assert set(unheard) <= set(SLOTS) | set(KINDS)
    for option, says in unheard.items():
        assert option in says or (option == "attack" and "byzantine" in says), f"{name} {option}: {says}"
        assert says.endswith(".")
        assert ". " not in says
    return {n for n in must & set(unheard) if "changes nothing" in unheard[n] and "clock decides" not in unheard[n]}


def test_the_matrix_moves_every_option_off_its_default():
    assert set(OTHER) == set(SLOTS)
    assert set(HEARS) == {system.kind for system in zoo.systems().values()}
    usually = usual(SMALL)
    assert all(value != usually[name] for name, value in OTHER.items())


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_option_has_an_effect_or_a_sentence(name):
    assert broken(name) == set()


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_with_local_steps_take_epochs_and_every_option_they_show(name):
    known = takes(zoo.find(name).make)
    assert ("epochs" in known) <= ("steps" in known)
    own = {key: option.default for key, option in known.items() if option.default is not None and key != "sample"}
    build(world_of(zoo.find(name).kind), name, own)


def deaf_to(spent=None, **fields):
    """FedAvg that sees some fields of its world otherwise than they are, and may say that all took `spent` seconds."""

    def make(task, net, *, lr=0.1, steps=10, epochs=None, batch=16):
        inner = fedavg(task, net, lr=lr, steps=steps, epochs=epochs, batch=batch)

        def round(key, env, s):
            s, log = inner.round(key, env._replace(**{name: of(env) for name, of in fields.items()}), s)
            return s, dict(log) | ({} if spent is None else {"seconds": jnp.float32(spent)})

        return inner._replace(round=round)

    return System(make, kind="server")


def always_the_first(env):
    """The members that every round has: the first nodes, all of them up."""
    c = env.cohort.ids.shape[0]
    return Cohort(jnp.arange(c), jnp.ones(c))


def test_a_deaf_system_breaks_the_law_by_itself(monkeypatch):
    deaf = {
        "no_links": (deaf_to(0.0, links=lambda env: None), {"links", "mbit", "latency_ms", "step_ms"}),
        "no_liars": (deaf_to(byz=lambda env: jnp.zeros_like(env.byz)), {"byzantine", "attack"}),
    }
    mute = {"no_seconds": deaf_to(links=lambda env: None), "no_cohort": deaf_to(cohort=always_the_first)}
    for name, system in ({name: entry for name, (entry, _) in deaf.items()} | mute).items():
        monkeypatch.setitem(plugins._registered["system"], name, system)
    assert {name: broken(name) for name in deaf} == {name: options for name, (_, options) in deaf.items()}
    with pytest.raises(InputError, match="logs no `seconds`"):
        broken("no_seconds")
    with pytest.raises(InputError, match="who takes part"):
        broken("no_cohort")


def test_a_topology_is_judged_in_its_own_degree():
    """With 8 nodes a regular graph has no 8 neighbours a node, which is the usual degree."""
    setup = dataclasses.replace(SMALL, nodes=8, topology="regular", degree=4, mixing="lazy")
    assert fit(prepare(setup, ["dsgd"]), "dsgd", {}).unheard == {}


def test_the_word_of_a_system_follows_what_it_uses_and_nothing_else():
    task = world_of("server", **TIMED).task
    word = lambda arm: law.program(arm.algorithm, arm.scenario, arm.model)
    arm = build(world_of("server", **TIMED), "fedavg", {})
    assert word(arm) == word(build(world_of("server", **TIMED), "fedavg", {}))
    assert word(arm) != word(build(world_of("server", **TIMED), "fedavg", {"server_momentum": 0.5}))
    assert word(arm) != word(arm._replace(model=lambda key: task.init(key) + 1))
    assert word(arm) != word(arm._replace(model=jnp.zeros(task.dim)))
    slower = arm.scenario.links._replace(step=2 * arm.scenario.links.step)
    assert word(arm) != word(arm._replace(scenario=arm.scenario._replace(links=slower)))
    unused = arm.scenario._replace(arrays=arm.scenario.arrays | {"more": jnp.ones(3)})
    assert word(arm) == word(arm._replace(scenario=unused))


def seconds_of(name, options=None, **changes):
    setup = dataclasses.replace(SMALL, nodes=8, **changes)
    arm = build(prepare(setup, [name]), name, options or {})
    return run(arm.algorithm, arm.scenario, arm.model, 2, every=2).history["seconds"].to_numpy()[1:]


def test_a_federated_round_takes_download_steps_and_upload_of_the_slowest():
    setup = dataclasses.replace(SMALL, nodes=8)
    longest = int(np.max(prepare(setup, ["fedavg"]).data.size))
    links = {"mbit": 1.0, "latency_ms": 30.0, "step_ms": 5.0}
    got = seconds_of("fedavg", {"epochs": 1}, cohort=8, **links)
    way = 0.03 + 650 * 32 / 1e6  # 64 * 10 weights and 10 offsets
    np.testing.assert_allclose(got, 2 * way + np.ceil(longest / 4) * 0.005, rtol=1e-5)


def test_a_gossip_round_takes_steps_and_the_messages_of_the_busiest():
    got = seconds_of("dsgd", topology="star", mbit=1.0, latency_ms=30.0, step_ms=5.0)
    np.testing.assert_allclose(got, 3 * 0.005 + 0.03 + 7 * 650 * 32 / 1e6, rtol=1e-5)


def test_a_protocol_takes_the_time_of_its_messages():
    got = seconds_of("gossip_averaging", topology="ring", mbit=1.0, latency_ms=30.0, data="mnist5k", model=None)
    np.testing.assert_allclose(got, 0.03 + 2 * 8 * 32 / 1e6, rtol=1e-5)


def test_one_world_one_number_of_liars():
    """What a node hears on a graph does not depend on a server's cohort."""
    options = {"nodes": 40, "topology": "regular", "byzantine": 4, "attack": "alie", "rule": "multi_krum"}

    def word(cohort):
        setup = dataclasses.replace(SMALL, cohort=cohort, **options)
        arm = build(prepare(setup, ["dsgd"]), "dsgd", {})
        return law.program(arm.algorithm, arm.scenario, arm.model)

    assert word(5) == word(40)
