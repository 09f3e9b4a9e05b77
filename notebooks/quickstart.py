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
SOURCE = "jaxfl"  # where jaxfl comes from, and only here: a name on the package index, a wheel, or git+https://...

import importlib.metadata
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("jaxfl") is None:
    there = {found.name: found.version for found in importlib.metadata.distributions()}
    # The jax that is there stays: in Colab it is built for the accelerator.
    keep = [f"{name}=={there[name]}" for name in ("jax", "jaxlib") if name in there]
    pip = [sys.executable, "-m", "pip", "install", "-q", SOURCE, *keep]
    got = subprocess.run(pip, capture_output=True, text=True)
    if got.returncode:
        why = (got.stderr.strip() or "pip says nothing").splitlines()[-1]
        raise SystemExit(f"jaxfl cannot be installed from {SOURCE!r} beside {' and '.join(keep) or 'no jax'}: {why}")

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

import jaxfl as fl
from jaxfl.algorithms import dfedsam, dsgd, fedavg

mnist = fl.data.mnist5k()
shards = fl.partition.dirichlet(mnist, NODES, alpha=0.3)
digit = fl.classification(partial(fl.networks.MLP, (784, 16, 10)), jax.ShapeDtypeStruct((1, 784), jnp.float32))
fl.plots.label_histogram(fl.partition.label_histogram(shards, 10))

# %% [markdown]
# ## Two worlds
# A server that hears 100 clients a round, and a graph on which each node hears a few others.

# %%
star = fl.scenario(shards, cohort=fl.cohort.uniform(NODES, NODES // 10))
network = fl.mixing.uniform(fl.graph.exponential(NODES))
peers = fl.scenario(shards, topology=network)
print(f"spectral gap {fl.mixing.spectral_gap(network):.3f}")
fl.plots.topology(fl.mixing.uniform(fl.graph.exponential(32)))

# %% [markdown]
# ## Run
# Three seeds each, in one compiled program. `run` returns a pandas frame of one row a seed and round.

# %%
metric = fl.shared_test(digit, jnp.asarray(mnist.test_x[:500]), jnp.asarray(mnist.test_y[:500]))
local = {"lr": 0.1, "steps": 5, "batch": 4}
systems = {
    "FedAvg": (fedavg(digit, **local), star),
    "D-SGD": (dsgd(digit, **local), peers),
    "DFedSAM": (dfedsam(digit, rho=0.05, **local), peers),
}
histories = {
    name: fl.run(algorithm, world, digit.init, ROUNDS, seeds=SEEDS, evaluate=metric).history
    for name, (algorithm, world) in systems.items()
}
histories["FedAvg"].tail(3)

# %% [markdown]
# ## Pictures and a table

# %%
fl.plots.comparison(histories, NODES)

# %%
fl.summary(histories, NODES)

# %% [markdown]
# ## Theory over measurement
# Each round of gossip averaging shrinks a disagreement by the second eigenvalue of the mixing matrix:

# %%
import numpy as np

from jaxfl.programs.gossip_averaging import gossip_averaging

small = fl.mixing.metropolis(fl.graph.ring(32))
values = jax.random.normal(jax.random.key(0), (32, 4))
world = fl.scenario(values, nodes=32, topology=small)
history = fl.run(
    gossip_averaging(), world, jnp.zeros(0), 200, every=5, evaluate=fl.metrics.distance_to(values.mean(0))
).history.dropna(subset="consensus")
rounds = history["round"].to_numpy()
predicted = history["consensus"].iloc[-1] * fl.mixing.second_eigenvalue(small) ** (rounds - rounds[-1])
fl.plots.rate(
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


def sign_fed(task, net=fl.Network(), *, lr=0.1, server_lr=0.01, steps=5, batch=4):
    """x <- x + server_lr * mean_i sign(y_i - x)."""
    train = fl.local_sgd(task, optax.sgd(lr), steps=steps, batch=batch)

    def member(key, data, i, x, **more):
        y, log = train(key, data, i, x, **more)
        return jnp.sign(y - x), log

    def init(key, env, x):
        return fl.State({"x": x}, (), net.init(env, x))

    def round(key, env, s):
        got = net.collect(key, env, s.mail, member, s.shared["x"])
        return fl.State({"x": s.shared["x"] + server_lr * got.mean}, (), got.mail), got.log

    return fl.Algorithm(init, round, read=lambda s: s.shared["x"])


histories["sign"] = fl.run(sign_fed(digit), star, digit.init, ROUNDS, seeds=SEEDS, evaluate=metric).history
fl.plots.learning_curves(histories)
