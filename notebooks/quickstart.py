# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # jaxfl: a thousand nodes in one notebook
#
# Federated averaging against gossip on 5,000 real handwritten digits, cut unevenly over a thousand nodes. It needs no
# accelerator and takes a few minutes on a CPU, seconds on a GPU.

# %%
import importlib.util

if importlib.util.find_spec("jaxfl") is None:
    # %pip install -q jaxfl
    pass

# %%
import jax

print(jax.devices())
if jax.default_backend() == "cpu":
    print("No accelerator: this runs on the CPU. In Colab: Runtime, Change runtime type, GPU.")

# %% [markdown]
# ## Small or large
# `JAXFL_SMALL=1` in the environment runs everything at a tenth of the size.

# %%
import os

SMALL = os.environ.get("JAXFL_SMALL") == "1"
NODES, ROUNDS, SEEDS = (100, 10, 2) if SMALL else (1000, 40, 3)

# %% [markdown]
# ## Data, cut over the nodes
# Each node gets its own mix of the ten digits: label shares are drawn from Dirichlet(0.3).

# %%
from functools import partial

import jax.numpy as jnp

from jaxfl import data
from jaxfl.data import partition
from jaxfl.learn import task
from jaxfl.models.networks import MLP
from jaxfl.report import plots

mnist = data.mnist5k()
shards = partition.dirichlet(mnist, NODES, alpha=0.3)
digit = task.classification(partial(MLP, (784, 16, 10)), jax.ShapeDtypeStruct((1, 784), jnp.float32))
plots.label_histogram(partition.label_histogram(shards, 10))

# %% [markdown]
# ## Two worlds
# A server that hears 100 clients a round, and a graph on which each node hears a few others.

# %%
from jaxfl.world import cohort, graph, mixing
from jaxfl.world.scenario import scenario

star = scenario(shards, cohort=cohort.uniform(NODES, NODES // 10, weight=shards.size))
network = mixing.uniform(graph.exponential(NODES))
peers = scenario(shards, topology=network)
print(f"spectral gap {mixing.spectral_gap(network):.3f}")
plots.topology(mixing.uniform(graph.exponential(32)))

# %% [markdown]
# ## Run
# Three seeds each, in one compiled program. `run` returns a pandas frame of one row a seed and round.

# %%
from jaxfl.algorithms.gossip.dfedsam import dfedsam
from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.engine.run import run
from jaxfl.measure.metrics import shared_test

metric = shared_test(digit, jnp.asarray(mnist.test_x[:500]), jnp.asarray(mnist.test_y[:500]))
local = {"lr": 0.1, "steps": 5, "batch": 4}
systems = {
    "FedAvg": (fedavg(digit, **local), star),
    "D-SGD": (dsgd(digit, **local), peers),
    "DFedSAM": (dfedsam(digit, rho=0.05, **local), peers),
}
histories = {
    name: run(algorithm, world, digit.init, ROUNDS, seeds=SEEDS, evaluate=metric).history
    for name, (algorithm, world) in systems.items()
}
histories["FedAvg"].tail(3)

# %% [markdown]
# ## Pictures and a table

# %%
plots.comparison(histories, NODES)

# %%
from jaxfl.report import tables

tables.summary(histories, NODES)

# %% [markdown]
# ## Theory over measurement
# Each round of gossip averaging shrinks a disagreement by the second eigenvalue of the mixing matrix:

# %%
import numpy as np

from jaxfl.measure.metrics import distance_to
from jaxfl.programs.gossip_averaging import gossip_averaging

small = mixing.metropolis(graph.ring(32))
values = jax.random.normal(jax.random.key(0), (32, 4))
world = scenario(values, nodes=32, topology=small)
history = run(
    gossip_averaging(), world, jnp.zeros(0), 200, every=5, evaluate=distance_to(values.mean(0))
).history.dropna(subset="consensus")
rounds = history["round"].to_numpy()
predicted = history["consensus"].iloc[-1] * mixing.second_eigenvalue(small) ** (rounds - rounds[-1])
plots.rate(
    {"ring of 32": history["consensus"].to_numpy()},
    {"ring of 32": np.asarray(predicted)},
    x=rounds,
    ylabel="consensus distance",
)

# %% [markdown]
# ## Your own method
# An algorithm is three pure functions. This one sends the sign of each client's move. `collect` hands the model to the
# cohort, trains and combines what comes back; bits and simulated seconds are in its log.

# %%
import optax

from jaxfl.core import Algorithm, State
from jaxfl.exchange.network import Network
from jaxfl.learn.local import local_sgd


def sign_fed(task, net=Network(), *, lr=0.1, server_lr=0.01, steps=5, batch=4):
    """x <- x + server_lr * mean_i sign(y_i - x)."""
    train = local_sgd(task, optax.sgd(lr), steps=steps, batch=batch)

    def member(key, data, i, x, **arguments):
        y, log = train(key, data, i, x, **arguments)
        return jnp.sign(y - x), log

    def init(key, env, x):
        return State({"x": x}, (), net.init(env, x))

    def round(key, env, s):
        got = net.collect(key, env, s.mail, member, s.shared["x"])
        return State({"x": s.shared["x"] + server_lr * got.mean}, (), got.mail), got.log

    return Algorithm(init, round, read=lambda s: s.shared["x"])


histories["sign"] = run(sign_fed(digit), star, digit.init, ROUNDS, seeds=SEEDS, evaluate=metric).history
plots.learning_curves(histories)
