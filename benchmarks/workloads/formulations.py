"""Plain and fast ways of writing the same, side by side: convolution, mixing, robust rules; in 32 bits and in 16."""

from collections.abc import Callable, Iterator
from functools import partial

import bound
import bound_cnn
import bound_graph
import jax
import jax.numpy as jnp
import numpy as np
import timing

from jaxfl.core import Array
from jaxfl.exchange import rules
from jaxfl.exchange.mix import mix
from jaxfl.models import convolution
from jaxfl.models.conv_pool import ConvPool, conv_pool
from jaxfl.world import graph, mixing
from workloads import gossip
from workloads.work import Side

HALF = jnp.bfloat16


def beside(what: str, nodes: int, forms: dict[str, Callable], args: tuple, turns: int, repeat: int) -> Iterator[dict]:
    """Rows of all `forms` of `f(*args)`, of which `repeat` calls are timed together, in turns.

    `apart` is the largest difference from the first form over its largest value.
    """
    calls = {name: jax.jit(f) for name, f in forms.items()}

    def step(call: Callable) -> None:
        done = None
        for _ in range(repeat):
            done = call(*args)
        jax.block_until_ready(done)

    values, failed = {}, {}
    for name, call in calls.items():
        try:
            values[name] = jax.tree.map(lambda a: np.asarray(a, np.float32), jax.tree.leaves(call(*args)))
        except Exception as error:  # one form that does not run says so, and the others go on
            failed[name] = f"{type(error).__name__}: {error}"
    first = next(iter(values.values()), [])
    sides = {name: Side(partial(step, calls[name])) for name in values}
    found = timing.in_turns(sides.values(), turns)[..., 0] / repeat if sides else np.zeros((0, 0))
    for name in forms:
        row = {"workload": what, "formulation": name, "nodes": nodes}
        if name in failed:
            yield row | {"error": failed[name][:300]}
            continue
        times = found[:, list(sides).index(name)]
        pairs = zip(values[name], first, strict=True)
        row["apart"] = max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)) for a, b in pairs)
        yield row | {
            "seconds": float(np.median(times)),
            "seconds_low": float(times.min()),
            "seconds_high": float(times.max()),
        }


def convolutions(turns: int, tiny: bool) -> Iterator[dict]:
    """A step of W2's network of 50 clients, all at once."""
    clients, batch = (2, 2) if tiny else (50, 20)
    rng = np.random.default_rng(0)
    x, y = rng.random((clients, batch, 784), np.float32), rng.integers(0, 10, (clients, batch))
    models = jax.vmap(bound_cnn.init)(jax.random.split(jax.random.key(0), clients))
    step = lambda predict: lambda p, x, y: jax.vmap(partial(bound.sgd, lr=0.05, predict=predict))(p, x, y)

    def half(p: dict, x: Array) -> Array:
        return _plain(jax.tree.map(lambda a: a.astype(HALF), p), x.astype(HALF)).astype(jnp.float32)

    forms = {"lax.conv": step(_plain), "windows and a matmul": step(_windows), "jaxfl": step(_jaxfl)}
    forms |= {"sub-lattices": step(bound_cnn.predict), "lax.conv, bfloat16": step(half)}
    yield from beside("convolution", clients, forms, (models, x, y), turns, 1 if tiny else 5)


def _kernels(p: dict) -> tuple:
    return (p["k1"].reshape(3, 3, 1, 16), p["b1"]), (p["k2"].reshape(3, 3, 16, 32), p["b2"])


def _plain(p: dict, x: Array) -> Array:
    x, layout = x.reshape(-1, 28, 28, 1), ("NHWC", "HWIO", "NHWC")
    for kernel, bias in _kernels(p):
        x = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout) + bias)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return x.reshape(len(x), -1) @ p["w"] + p["b"]


def _windows(p: dict, x: Array) -> Array:
    x = x.reshape(-1, 28, 28, 1)
    for kernel, bias in _kernels(p):
        x = convolution.max_pool(jax.nn.relu(convolution.conv(x, kernel) + bias))
    return x.reshape(len(x), -1) @ p["w"] + p["b"]


def _jaxfl(p: dict, x: Array) -> Array:
    return conv_pool(x.reshape(-1, 28, 28, 1), [ConvPool(*layer) for layer in _kernels(p)], p["w"]) + p["b"]


def _by_scan(nbr: Array, weight: Array, own: Array, heard: Array) -> Array:
    add = lambda total, slot: (total + slot[1][:, None] * heard[slot[0]], None)
    return jax.lax.scan(add, (1 - weight.sum(1))[:, None] * own, (nbr.T, weight.T))[0]


def mixings(turns: int, tiny: bool) -> Iterator[dict]:
    """Mixing on W5's graph and on a ring, of rows of W5's model."""
    n, d = (32, 40) if tiny else (10_000, 2410)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((n, d), np.float32))
    found, repeat = gossip.regular(n), 1 if tiny else 10
    by = lambda f, at=found: lambda x: f(at.nbr, at.weight, x, x)
    once, half = bound_graph.RULES["mean"], x.astype(HALF)
    forms = {"jaxfl": lambda x: mix(found, x, x), "one loop of gathers": by(once), "a scan over slots": by(_by_scan)}
    forms["one loop of gathers, bfloat16"] = lambda x: by(once)(half)
    yield from beside("mixing, random 8-regular", n, forms, (x,), turns, repeat)
    ring = mixing.metropolis(graph.ring(n))
    forms = {"jaxfl": lambda x: mix(ring, x, x), "jnp.roll": lambda x: (x + jnp.roll(x, 1, 0) + jnp.roll(x, -1, 0)) / 3}
    forms["one loop of gathers"] = by(once, ring)
    yield from beside("mixing, ring", n, forms, (x,), turns, repeat)


def robust(turns: int, tiny: bool) -> Iterator[dict]:
    """Medians and trimmed means of W4's messages, medians on W5's graph."""
    k, d = (9, 50) if tiny else (64, 100_000)
    x, weight, own = np.random.default_rng(0).standard_normal((k, d), np.float32), jnp.full(k, 1 / k), jnp.zeros(d)
    cut, repeat = k // 8, 1 if tiny else 5
    given = (jnp.asarray(x),)
    forms = {"jaxfl": lambda x: rules.median()(own, x, weight), "jnp.median": lambda x: jnp.median(x, 0)}
    yield from beside("median at a server", k, forms, given, turns, repeat)
    forms = {"jaxfl": lambda x: rules.trimmed_mean(cut)(own, x, weight)}
    forms["jnp.sort"] = lambda x: jnp.sort(x, 0)[cut : k - cut].mean(0)
    yield from beside("trimmed mean at a server", k, forms, given, turns, repeat)
    n, d = (32, 40) if tiny else (10_000, 2410)
    rows, found = jnp.asarray(np.random.default_rng(0).standard_normal((n, d), np.float32)), gossip.regular(n)
    gathered = lambda x: jnp.median(jnp.concatenate([x[:, None], x[found.nbr]], 1), 1)
    forms = {"one loop, a sorting network": lambda x: bound_graph.RULES["median"](found.nbr, found.weight, x, x)}
    yield from beside("median of neighbours", n, forms | {"jnp.median": gathered}, (rows,), turns, repeat)
