"""A whole simulation as a pure function, to be differentiated, vmapped and jitted: the rounds that `run` runs."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr

from jaxfl.core import Algorithm, Array, Scenario, State, Tree
from jaxfl.engine import keys
from jaxfl.engine.arguments import whole
from jaxfl.engine.heard import require_heard
from jaxfl.engine.run import _first, _rounds


def rollout(
    algorithm: Algorithm | Callable[..., Algorithm],
    scenario: Scenario,
    model: Array,
    rounds: int,
    *,
    seed: int = 0,
    hyper: dict | None = None,
) -> tuple[State, dict]:
    """Final state and logs `[rounds, ...]`.

    It may be differentiated, vmapped and jitted, with respect to `model` `[d]`, `hyper`, or arrays inside `scenario`
    (mixing weights, data). It computes what `run` computes, of the same numbers (else InputError).
    """
    rounds = whole("rounds", rounds, 0)
    world = scenario.arrays, scenario.data, scenario.byz, scenario.links
    carry = _first(algorithm, scenario[:2], None, model, keys.run_key(seed), hyper or {}, *world)
    (_, (_, state)), logs = rollout_from(algorithm, scenario, (0, carry), rounds, seed=seed, hyper=hyper)
    return state, logs


def rollout_from(
    algorithm: Algorithm | Callable[..., Algorithm],
    scenario: Scenario,
    carry: Tree,
    rounds: int,
    *,
    seed: int | Array = 0,
    hyper: dict | None = None,
) -> tuple[Tree, dict]:
    """`rollout` from where a run stopped: the new carry and the logs `[rounds, ...]`.

    `carry` is `(t, (state of the world, State))`, such as `Result.carry` of a run without a seed axis, whose running
    totals are not read: the logs say what the rounds cost. A run with seeds is vmapped over the second part and `seed`.
    The world of the further rounds may differ from that of the run in its arrays, and the algorithm in what it logs.

    Raises:
        InputError: what a cohort says of its members and the algorithm does not read (`engine.heard`).
    """
    rounds, (t, carry) = whole("rounds", rounds, 0), carry[:2]
    world = scenario.arrays, scenario.data, scenario.byz, scenario.links
    given = jnp.int32(t), carry, keys.run_key(seed), hyper or {}, *world
    traced, shape = jax.make_jaxpr(partial(_rounds, algorithm, scenario.step, rounds), return_shape=True)(*given)
    require_heard(traced)
    made = eval_jaxpr(traced.jaxpr, traced.consts, *jax.tree.leaves(given))
    carry, logs = jax.tree.unflatten(jax.tree.structure(shape), made)
    return (t + rounds, carry), logs
