"""Influence in gossip systems: how one node's local step in one round changes what is seen later, anywhere.

Node `j` either takes its local step in round `t` or skips it; graphs, batches and random draws stay the same. The
difference this makes to anything that can be observed of the models `[n, d]` (each node's loss, the models
themselves) spreads with every round of gossip: after `s` rounds it has travelled `s` hops. `effect` measures it by
replaying the rounds without the step; `first_order` estimates it without replaying them for every node, as the
derivative of the simulation: with `alpha_j` the share of its step that node `j` takes in round `t`,

    influence of j  =  d observe(models after round t + s - 1) / d alpha_j   at alpha = 1.

JAX differentiates the very rounds that ran, local steps, batches, graphs and mixing, so no path through the graph is
enumerated and no Hessian is formed. Forward mode (`first_order`) tells where the influence of each node goes, reverse
mode (`totals`) its sum for all nodes from one backward pass.

All functions are pure and may be jitted and vmapped (over seeds, rates, data). They take adapt-then-combine systems
whose `State.nodes` are the models `[n, d]`: what crosses the links is the trained model, as in `algorithms.dsgd`.
A carry is what `run` returns: `(t, (state of the world, State))`, without a seed axis.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxfl.core import Algorithm, Array, Env, Graph, Scenario, State, Tree
from jaxfl.engine.rollout import rollout_from
from jaxfl.engine.run import build
from jaxfl.errors import InputError, require
from jaxfl.world.work import skipping


def halves(algorithm: Algorithm) -> tuple[Callable, Callable]:
    """The two halves of an adapt-then-combine round, each that same round in another world.

    Returns:
        `adapt(key, env, state) -> rows [n, d]`, the trained models: the round with all links cut, and
        `combine(key, env, state) -> (state, log)`: the round in which nobody takes a local step.
    """

    def adapt(key: Array, env: Env, s: State) -> Array:
        alone = dataclasses.replace(_graph(env), weight=jnp.zeros_like(_graph(env).weight), own=None, shifts=None)
        return _rows(algorithm.round(key, env._replace(graph=alone), s)[0])

    def combine(key: Array, env: Env, s: State) -> tuple[State, dict]:
        idle = env.cohort._replace(steps=jnp.zeros_like(env.cohort.ids))
        return algorithm.round(key, env._replace(cohort=idle), s)

    return adapt, combine


def effect(
    algorithm: Algorithm | Callable[..., Algorithm],
    scenario: Scenario,
    carry: Tree,
    observe: Callable[[Array], Array],
    hops: int,
    *,
    nodes: Array | None = None,
    seed: int | Array = 0,
    hyper: dict | None = None,
    chunk: int | None = None,
) -> Array:
    """Ground truth: what is observed with a node's step in the carry's round, minus what is observed without it.

    Costs `hops` rounds for every probed node.

    Args:
        algorithm: the system, or a factory of it called with `hyper`.
        scenario: its world.
        carry: where the run stands; the step is that of the round to come.
        observe: function of the models `[n, d]` of any result `[...]`.
        hops: rounds that are played, at least 1.
        nodes: the probed nodes `[j]` (None: all).
        seed: the run's.
        hyper: the factory's numbers.
        chunk: nodes probed at once (None: all).

    Returns:
        `[j, hops + 1, ...]`. Entry `s` holds the difference after `s` rounds; entry 0 that of the trained model in
        the node's own hands, before it is mixed.

    Raises:
        InputError: `hops` or `chunk` below 1, or nodes whose state is not one array `[n, d]`.
    """
    algorithm, x, nodes = _probe(algorithm, carry, hops, nodes, hyper, chunk)
    adapt, _ = halves(algorithm)
    local = algorithm._replace(round=lambda key, env, s: (s, {"trained": adapt(key, env, s)}))
    y = rollout_from(local, scenario, carry, 1, seed=seed)[1]["trained"][0]
    before = observe(x)

    def replay(j: Array) -> tuple[Array, Array]:
        world = skipping(scenario, j, carry[0])
        seen = rollout_from(_logged(algorithm, observe), world, carry, hops, seed=seed)[1]["seen"]
        return observe(x.at[j].set(y[j])) - before, seen

    own, seen = _map(replay, jnp.concatenate([jnp.array([-1], nodes.dtype), nodes]), chunk)
    return jnp.concatenate([own[1:, None], seen[:1] - seen[1:]], 1)


def first_order(
    algorithm: Algorithm | Callable[..., Algorithm],
    scenario: Scenario,
    carry: Tree,
    observe: Callable[[Array], Array],
    hops: int,
    *,
    curvature: bool = True,
    nodes: Array | None = None,
    seed: int | Array = 0,
    hyper: dict | None = None,
    chunk: int | None = None,
) -> Array:
    """The estimate of `effect` to first order in the step, `[j, hops + 1, ...]`; arguments as there.

    A perturbation of the models `[n, d]` is pushed through the rounds by `jax.linearize`, one product a hop and probed
    node. Memory: the linearised rounds once, and `chunk` perturbations.

    Args:
        curvature: False stops it at the local steps, so that it is mixed and never bent (no Hessian factor).
    """
    algorithm, x, nodes = _probe(algorithm, carry, hops, nodes, hyper, chunk)
    share = jnp.ones(x.shape[0], x.dtype)
    after = _after(algorithm, scenario, carry, observe, hops, seed, curvature)
    _, push, y = jax.linearize(after, share, has_aux=True)

    def tangent(e: Array) -> Array:
        own = jax.jvp(observe, (x,), (e[:, None] * (y - x),))[1]
        return jnp.concatenate([own[None], push(e)])

    return _map(tangent, jnp.eye(share.size, dtype=share.dtype)[nodes], chunk)


def totals(
    algorithm: Algorithm | Callable[..., Algorithm],
    scenario: Scenario,
    carry: Tree,
    observe: Callable[[Array], Array],
    hops: int,
    *,
    seed: int | Array = 0,
    hyper: dict | None = None,
) -> Array:
    """`first_order` of every node, summed over hops and over what is observed, `[n]`; arguments as in `effect`.

    One backward pass through the rounds, whose cost does not grow with the number of nodes that are probed.
    """
    algorithm, x, _ = _probe(algorithm, carry, hops, None, hyper, None)
    share = jnp.ones(x.shape[0], x.dtype)
    after = _after(algorithm, scenario, carry, observe, hops, seed, True)

    def total(share: Array) -> tuple[Array, Array]:
        seen, y = after(share)
        return seen.sum(), y

    later, y = jax.grad(total, has_aux=True)(share)
    own = jax.grad(lambda x: observe(x).sum())(x)
    return later + (own * (y - x)).sum(1)


def proximal(graph: Graph, gradients: Array, moves: Array) -> Array:
    """What each neighbour's step does to a node's loss, to first order and before weights: `[n, k]`.

    Entry `i, s` is `<gradients[i], moves[nbr[i, s]]>`; padded slots hold the node's own. With `moves` the mini-batch
    gradients instead, its negative (over the rate) is the proximal influence by which DICE compares neighbours.

    Args:
        graph: who hears whom.
        gradients: `[n, d]`, of each node's evaluation loss at its own model.
        moves: `[n, d]`, what each node's local step adds to its model.
    """
    return jax.lax.map(lambda nbr: (gradients * moves[nbr]).sum(1), graph.nbr.T).T


def watched(algorithm: Algorithm, loss: Callable[[Array], Array], weight: Array | None = None) -> Algorithm:
    """`algorithm` that also logs `influence` `[n]`: what each node's step did to the losses of those who hear it.

    To first order, over one hop and without itself: `sum_(k != j) q_k w_kj <grad loss(x_k new), y_j - x_j>`. A node
    whose batches harm its listeners is positive on average over rounds. Costs one more local training a round and a
    gradient of the loss a node. Mixing must be one exchange of the mean rule.

    Args:
        algorithm: adapt-then-combine.
        loss: function of one model `[d]`; examples it closes over are compiled in, so keep them few.
        weight: `q [n]`, how much a node's loss counts (None: all alike, `1 / n`).
    """
    adapt, _ = halves(algorithm)

    def round(key: Array, env: Env, s: State) -> tuple[State, dict]:
        graph, n = _graph(env), env.byz.shape[0]
        new, log = algorithm.round(key, env, s)
        each = proximal(graph, jax.vmap(jax.grad(loss))(_rows(new)), adapt(key, env, s) - s.nodes)
        q = jnp.full(n, 1 / n, each.dtype) if weight is None else weight
        each = jnp.where(graph.weight != 0, q[:, None] * graph.weight * each, 0)
        return new, log | {"influence": jnp.zeros(n, each.dtype).at[graph.nbr].add(each)}

    return algorithm._replace(round=round)


def _probe(algorithm, carry, hops, nodes, hyper, chunk) -> tuple[Algorithm, Array, Array]:
    """The algorithm, the models `[n, d]` before the round, the probed nodes `[j]`."""
    require("hops", hops, least=1, whole=True)
    require("chunk", chunk, least=1, whole=True, none=True)
    x = _rows(carry[1][1])
    return build(algorithm, hyper or {}), x, jnp.arange(x.shape[0]) if nodes is None else jnp.asarray(nodes)


def _map(f: Callable, rows: Array, chunk: int | None) -> Tree:
    return jax.vmap(f)(rows) if chunk is None else jax.lax.map(f, rows, batch_size=chunk)


def _after(algorithm, scenario, carry, observe, hops, seed, curvature) -> Callable[[Array], tuple[Array, Array]]:
    """Function of the shares `[n]` of its step that each node takes in round `t`.

    It returns what is seen after each of `hops` rounds, `[hops, ...]`, and the models that round `t` trains, `[n, d]`.
    """
    adapt, combine = halves(algorithm)

    def after(share: Array) -> tuple[Array, Array]:
        def first(key: Array, env: Env, s: State) -> tuple[State, dict]:
            y = adapt(key, env, s)
            new, _ = combine(key, env, s._replace(nodes=y + (share - 1)[:, None] * (y - s.nodes)))
            return new, {"seen": observe(new.nodes), "trained": y}

        def flat(key: Array, env: Env, s: State) -> tuple[State, dict]:
            move = jax.lax.stop_gradient(adapt(key, env, s) - s.nodes)
            return combine(key, env, s._replace(nodes=s.nodes + move))

        later = algorithm if curvature else algorithm._replace(round=flat)
        then, one = rollout_from(algorithm._replace(round=first), scenario, carry, 1, seed=seed)
        _, more = rollout_from(_logged(later, observe), scenario, then, hops - 1, seed=seed)
        return jnp.concatenate([one["seen"], more["seen"]]), one["trained"][0]

    return after


def _logged(algorithm: Algorithm, observe: Callable[[Array], Array]) -> Algorithm:
    def round(key: Array, env: Env, s: State) -> tuple[State, dict]:
        s, _ = algorithm.round(key, env, s)
        return s, {"seen": observe(s.nodes)}

    return algorithm._replace(round=round)


def _rows(s: State) -> Array:
    if not isinstance(s.nodes, jax.Array) or s.nodes.ndim != 2:
        shapes = jax.tree.map(jnp.shape, s.nodes)
        raise InputError(f"algorithm keeps {shapes} a node, but influence needs its models alone, one array [n, d].")
    return s.nodes


def _graph(env: Env) -> Graph:
    if env.graph is None:
        raise InputError("topology is None, but influence spreads over a graph.")
    return env.graph
