"""A graph that breaks what `core.Graph` promises is refused when a world is built of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.core import Graph, Shards
from jaxfl.errors import InputError
from jaxfl.world import graph as G
from jaxfl.world import mixing, topology
from jaxfl.world.promises import require_weights
from jaxfl.world.scenario import scenario

N = 6
RING, STAR = mixing.metropolis(G.ring(N)), mixing.metropolis(G.star(N))
DATA = Shards(jnp.zeros((N, 1)), jnp.zeros(N), *(jnp.arange(N),) * 2, jnp.ones(N, jnp.int32), 1)


def put(a, i, s, value):
    a = np.array(a)
    a[i, s] = value
    return a


BROKEN = {
    "sum above 1": (
        {"weight": put(RING.weight, 2, 0, 0.8)},
        "weights of node 2 sum to 1.13333, but must sum to at most",
    ),
    "bare": ({"weight": np.ones((N, 2), np.float32)}, "give the graph mixing weights first"),
    "nan": ({"weight": put(RING.weight, 4, 1, np.nan)}, "node 4 hears with the weight nan, but weights must be finite"),
    "inf": ({"weight": put(RING.weight, 4, 1, np.inf)}, "node 4 hears with the weight inf"),
    "negative": ({"weight": put(RING.weight, 1, 1, -0.5)}, "node 1 hears with the weight -0.5, but weights must be"),
    "no table": ({"weight": RING.weight[:, :1]}, r"nbr is int32\[6, 2\] and weight float32\[6, 1\]"),
    "float nbr": ({"nbr": np.asarray(RING.nbr, float)}, r"nbr is float64\[6, 2\]"),
    "nbr too large": ({"nbr": put(RING.nbr, 0, 0, N)}, "nbr holds 6, but must hold numbers from 0 to 5"),
    "nbr negative": ({"nbr": put(RING.nbr, 0, 0, -1)}, "nbr holds -1, but must hold numbers from 0 to 5"),
    "rev too large": ({"rev": put(RING.rev, 0, 0, 2)}, "rev holds 2, but must hold numbers from 0 to 1"),
    "rev elsewhere": ({"rev": put(RING.rev, 3, 0, 0)}, "rev of node 3 is 0 in slot 0, but there node 4 hears node 5"),
    "rev of another": ({"rev": np.zeros((N, 3), int)}, r"rev has shape \[6, 3\], but must be \[6, 2\]"),
    "own of another": ({"own": np.full(N - 1, 1 / 3)}, r"own has shape \[5\], but must be \[6\]"),
    "own nan": ({"own": np.full(N, np.nan)}, "own of node 0 is nan, but must be finite and at least 0"),
    "own negative": ({"own": np.full(N, -0.1)}, "own of node 0 is -0.1"),
    "own off 1": ({"own": np.full(N, 0.5)}, "its own included, sum to 1.16667, but must sum to 1"),
    "push own nan": ({"own": np.full(N, np.nan), "column_stochastic": True}, "own of node 0 is nan"),
    "shifts of another": ({"shifts": (1,)}, r"shifts is \(1,\), but must be 2, one a slot of nbr"),
    "shifts off": ({"shifts": (1, 4)}, "in slot 1 node 0 hears node 5 with the weight 0.333333: it must hear node 4"),
    "shifts of no edge": ({"weight": put(RING.weight, 2, 0, 0)}, "in slot 0 node 2 hears node 3 with the weight 0"),
    "reach": ({"reach": 0}, "reach is 0, but node 0 hears node 1, farther away"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_said_in_one_sentence(name):
    change, says = BROKEN[name]
    broken = dataclasses.replace(RING, **change)
    with pytest.raises(InputError, match=says) as caught:
        scenario(DATA, topology=broken)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=rf"graphs\[1\]: .*{says}"):
        topology.by_round([RING, broken])


@pytest.mark.parametrize(
    "sound",
    [
        RING,
        STAR,
        mixing.uniform(G.exponential(N)),
        mixing.metropolis(G.complete(N)),
        mixing.push_weights(G.exponential(N)),
        mixing.lazy(RING),
        mixing.from_matrix(np.full((N, N), 1 / N)),
        Graph(np.asarray(RING.nbr), np.asarray(RING.weight), own=np.full(N, 1 / 3)),
        Graph(jnp.zeros((N, 0), jnp.int32), jnp.zeros((N, 0))),
    ],
)
def test_what_is_sound_passes(sound):
    scenario(DATA, topology=sound)


def test_a_traced_graph_passes():
    jax.eval_shape(lambda w: require_weights(dataclasses.replace(RING, weight=-w)), RING.weight)
