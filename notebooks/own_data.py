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
# # Your own data, your own model: who gains and who loses
#
# A table of sixty shops, a network of our own, and the question that an average hides: is a shop better off with the
# common model, with a model of its own, or with something in between? It takes a minute or two on a CPU.

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
# ## A table
# Any pandas frame will do; here we make one. A row is a customer, `shop` says whose it is, `returns` is what we want to
# know. In most shops customers who pay a lot come back. In every fifth shop it is the other way round, and no column
# says which these are. Large shops have hundreds of customers, small ones a dozen.

# %%
import os

import numpy as np
import pandas as pd

SMALL = os.environ.get("JAXFL_SMALL") == "1"
SHOPS, ROUNDS, SEEDS = (20, 10, 2) if SMALL else (60, 100, 3)

rng = np.random.default_rng(0)
size = rng.integers(15, 60, SHOPS) * np.where(np.arange(SHOPS) % 3 == 0, 8, 1)
odd = np.arange(SHOPS) % 5 == 4
shop = np.repeat(np.arange(SHOPS), size)
frame = pd.DataFrame(
    {
        "shop": shop,
        "age": rng.integers(18, 80, shop.size),
        "paid": rng.lognormal(3, 0.8, shop.size).round(2),
        "minutes": rng.gamma(2.0, 10.0, shop.size).round(1),
        "channel": rng.choice(["app", "door", "phone"], shop.size),
        "first visit": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 700, shop.size), unit="D"),
    }
)
spends = (np.log(frame["paid"]) - 3) / 0.8 * np.where(odd[shop], -1, 1)
wish = 2.0 * spends + 1.5 * (frame["channel"] == "app") - 1.0 * (frame["minutes"] > 25) - 0.4
frame["returns"] = rng.random(shop.size) < 1 / (1 + np.exp(-2 * wish))
frame.head()

# %% [markdown]
# ## Nodes
# `from_pandas` turns numbers, categories and dates into columns of numbers; one shop becomes one node, and every shop
# keeps a third of its customers for a test of its own.

# %%
import jaxfl as fl

table = fl.data.from_pandas(frame, target="returns", clients="shop", name="shops")
train, test = fl.partition.hold_out(fl.partition.by_client(table), 0.34)
held = np.asarray(train.size)
print(f"{table.x.shape[1]} columns, {len(held)} shops of {held.min()} to {held.max()} customers to learn from")

# %% [markdown]
# ## A model
# Any flax module will do. This one has a body, and a head that decides.

# %%
from functools import partial

import jax.numpy as jnp
from flax import nnx


class Net(nnx.Module):
    def __init__(self, columns, classes, *, rngs):
        self.body = nnx.Linear(columns, 16, rngs=rngs)
        self.head = nnx.Linear(16, classes, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.body(x)))


columns = table.x.shape[1]
net = fl.classification(partial(Net, columns, 2), jax.ShapeDtypeStruct((1, columns), jnp.float32))

# %% [markdown]
# ## Three ways to learn
# - **one model** for all: FedAvg;
# - **on its own**: every shop trains alone, nothing is sent;
# - **own head**: the body is everybody's, the head stays in the shop and is never sent (FedPer).

# %%
from jaxfl.algorithms import fedavg, local_only

world = fl.scenario(train, cohort=fl.cohort.uniform(SHOPS, SHOPS // 2))
alone = fl.scenario(train)
local = {"lr": 0.1, "steps": 10, "batch": 16}
systems = {
    "one model": (fedavg(net, **local), world),
    "on its own": (local_only(net, **local), alone),
    "own head": (fedavg(net, fl.Network(personal=fl.part(net, "head/*")), **local), world),
}
measure = fl.metrics.local_test(net, test)
results = {
    name: fl.run(algorithm, where, net.init, ROUNDS, seeds=SEEDS, evaluate=measure)
    for name, (algorithm, where) in systems.items()
}
served = {name: result.nodes["local_accuracy"] for name, result in results.items()}

# %% [markdown]
# ## The average, and what it hides
# Every number is an accuracy on a shop's own held-out customers.

# %%
means = {name: result.history[result.history["round"] == ROUNDS].mean() for name, result in results.items()}
fairness = ["local_accuracy", "local_accuracy_worst_decile", "local_accuracy_spread", "local_accuracy_jain"]
pd.DataFrame(means).T[fairness].round(3)

# %%
fl.plots.per_node(served)

# %% [markdown]
# ## Who gains, who loses
# A point is a shop, its area the number of its customers. Above the line a shop is better off with its own head than
# with the common model.

# %%
fl.plots.gains(served["one model"], served["own head"], ("one model", "own head"), sizes=held)

# %% [markdown]
# The shops that differ gain what the common model took from them. Of the others many lose a little: a head learnt from
# a dozen customers is worth less than one learnt from thousands.

# %%
final = {name: values[:, -1].mean(0) for name, values in served.items()}
kinds = {"like most": ~odd, "the other way round": odd}
pd.DataFrame({name: {kind: v[which].mean() for kind, which in kinds.items()} for name, v in final.items()}).round(3)

# %% [markdown]
# ## Take it home
# A model is a row of numbers; `to_module` makes the flax module of it again, and `save_model` writes named layers.

# %%
row = results["one model"].state.shared["x"][0]  # of the first seed
fl.save_model("shops.npz", net, row)
module = fl.to_module(net, row)
nnx.softmax(module(table.test_x[:3])).round(2)
