"""Which options a system hears: one that it ignores is found alone and among others, and little is traced for it."""

from functools import cache

import jax.numpy as jnp
import pytest

from jaxfl import plugins
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.exchange import rules
from jaxfl.exchange.codecs import PLAIN
from jaxfl.options.build import prepare
from jaxfl.options.config import Setup
from jaxfl.options.fit import fit
from jaxfl.paper import System

REGIONS = "from,to,latency_ms,mbit\neu,eu,5,8\nus,us,9,8\neu,us,80,2\n"
OPTIONS = {
    "weights": "uniform", "lr": 0.01, "steps": 5, "batch": 1, "byzantine": 5, "attack": "ipm", "rule": "median",
    "codec": "top_k", "personal": "bias", "link_noise": 0.1, "mbit": 2.0, "latency_ms": 90.0, "step_ms": 9.0,
    "links": "",
}  # fmt: skip
OWN = {name: OPTIONS[name] for name in ("lr", "steps", "batch")}


@cache
def world_of(*names, folder=None):
    """A small world with these options off their defaults."""
    given = {name: OPTIONS[name] for name in names}
    if "links" in given:
        given["links"] = str(folder / "regions.csv")
        (folder / "regions.csv").write_text(REGIONS)
    setup = Setup(nodes=8, data="digits", model="logistic", rounds=4, seeds=1, cohort=4, **given)
    return prepare(setup, ["fedavg"])


def deaf(**stays):
    """FedAvg for which `lr`, `steps`, `batch`, fields of its network, or of its links, are always what is given."""
    own = {name: stays.pop(name) for name in OWN if name in stays}
    of_net = {name: stays.pop(name) for name in ("codec", "rule", "attack", "personal", "noise") if name in stays}
    weight = stays.pop("weight", None)

    def make(task, net, *, lr=0.1, steps=10, batch=16):
        inner = fedavg(task, net._replace(**of_net), **{"lr": lr, "steps": steps, "batch": batch} | own)

        def round(key, env, s):
            links = None if env.links is None else env.links._replace(**stays)
            c = env.cohort if weight is None else env.cohort._replace(weight=weight)
            return inner.round(key, env._replace(links=links, cohort=c), s)

        return inner._replace(round=round)

    return make


INFINITE, NONE = jnp.full(8, jnp.inf), jnp.zeros(8)
DEAF = {
    "weights": {"weight": jnp.ones(4)},
    "lr": {"lr": 0.1},
    "steps": {"steps": 10},
    "batch": {"batch": 16},
    "byzantine attack": {"attack": None},
    "rule": {"rule": rules.mean},
    "codec": {"codec": PLAIN},
    "personal": {"personal": None},
    "link_noise": {"noise": None},
    "mbit": {"up": INFINITE, "down": INFINITE},
    "latency_ms": {"latency": NONE},
    "step_ms": {"step": NONE},
    "links": {"between": None},
}


@pytest.fixture
def unheard(monkeypatch):
    def of(make, world):
        monkeypatch.setitem(plugins._registered["system"], "mine", System(make, kind="server"))
        return set(fit(world, "mine", {}).unheard)

    return of


def test_an_option_that_a_system_ignores_is_found_among_those_it_hears(unheard, tmp_path):
    found = {}
    for names, stays in DEAF.items():
        heard = ("mbit", "codec") if names == "lr" else ("lr", "mbit") if names == "latency_ms" else ("lr",)
        world = world_of(*names.split(), *heard, folder=tmp_path)
        found[names] = " ".join(sorted(unheard(deaf(**stays), world), key=list(OPTIONS).index))
        assert unheard(deaf(), world) == set(), names
    assert found == {names: names for names in DEAF}


def test_options_whose_effects_cancel_are_both_heard(unheard):
    """With both of them the system does what it does with neither."""

    def make(task, net, *, lr=0.1, steps=10, batch=16):
        inner = fedavg(task, net, lr=0.1 if (lr == OWN["lr"]) == (steps == OWN["steps"]) else 0.2, steps=4, batch=4)

        def round(key, env, s):
            s, log = inner.round(key, env, s)
            return s, log | {"batch": jnp.float32(batch)}

        return inner._replace(round=round)

    assert unheard(make, world_of("lr", "steps")) == set()
    assert unheard(make, world_of("lr", "steps", "batch", "mbit")) == set()


class Counter:
    """How often something was traced; a function that holds it is like any other that holds the same."""

    count = 0


def test_learning_is_traced_once_for_all_options_that_leave_it_alone(unheard):
    traced = Counter()

    def make(task, net, *, lr=0.1, steps=10, batch=16):
        def loss(p, x, y):
            traced.count += 1
            return task.loss(p, x, y)

        loss.__module__ = "jaxfl"  # as of the package: what a user wrote may read what has changed
        return fedavg(task._replace(loss=loss), net, lr=lr, steps=steps, batch=batch)

    def traces(*names):
        before = traced.count
        assert unheard(make, world_of(*names)) == set()
        return traced.count - before

    assert traces("lr", "codec") == 2  # with the usual rate and with another
    assert traces("codec", "weights", "byzantine", "attack", "rule", "mbit", "latency_ms", "step_ms") == 0
    assert traces("lr", "steps", "rule") == 1
