"""What a system computes, in one word, without running it: an option that leaves the word as it is has no effect.

Two rounds are traced, not compiled; what reaches neither the answer nor the log is removed, and of what is left the
text is taken, with the contents of the arrays that are still used. It takes about a tenth of a second.

It cannot see a number that is computed and comes out the same, nor an effect in the wrong place.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.interpreters import partial_eval

from jaxfl.core import Algorithm, Scenario, Tree
from jaxfl.engine import keys
from jaxfl.engine.run import build, rollout
from jaxfl.mapping.canonical import canonical


class Known(NamedTuple):
    """What is remembered from call to call; it keeps alive what it has seen."""

    programs: dict  # text and use of a program, by the functions and the shapes it was traced from
    arrays: dict  # an array and its digest, by identity


def program(
    algorithm: Algorithm | Callable[..., Algorithm],
    scenario: Scenario,
    model: Tree | Callable,
    hyper: dict | None = None,
    known: Known | None = None,
) -> str:
    """A digest of what two rounds compute of the answer and the log, and of the arrays they use for it.

    Args:
        algorithm: an `Algorithm`, or a factory of one called with `hyper`.
        scenario: its world.
        model: the first model, or a function of a key that draws it.
        hyper: numbers the factory takes, as traced arguments.
        known: `Known({}, {})`, so that worlds which differ in arrays alone are traced once.

    Raises:
        InputError: what the system says to its world or network.
    """
    known = known or Known({}, {})
    algorithm, draw = canonical(algorithm), canonical(model) if callable(model) else None
    first = None if callable(model) else model
    given = hyper or {}, (scenario.arrays, scenario.data, scenario.byz, scenario.links), first

    def rounds(seed: Any, hyper: dict, world: tuple, x: Tree) -> tuple:
        arrays, data, byz, links = world
        there = scenario._replace(arrays=arrays, data=data, byz=byz, links=links)
        x = x if draw is None else draw(keys.model_key(keys.run_key(seed)))
        state, logs = rollout(algorithm, there, x, 2, seed=seed, hyper=hyper)
        return build(algorithm, hyper).read(state), logs

    like = algorithm, scenario.init, scenario.step, draw, shapes(given)
    if like not in known.programs:
        live, constants, used, result = alive(rounds, 0, *given)
        text = re.sub("0x[0-9a-f]+", "", str(live)) + str(jax.tree.structure(result))
        read = [_digest(c, known) for c in (*constants, *_inner(live))]
        known.programs[like] = "\n".join([text, *read]), used[1:]
    text, used = known.programs[like]
    read = [_digest(a, known) for a, u in zip(jax.tree.leaves(given), used, strict=True) if u]
    return hashlib.sha1("\n".join([text, *read]).encode()).hexdigest()


def shapes(tree: Tree) -> tuple:
    """What a trace sees of the arrays of a tree, hashable."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((np.shape(a), jax.dtypes.result_type(a)) for a in leaves)


def alive(f: Callable, *given: Any) -> tuple[Any, list, list[bool], Any]:
    """What `f(*given)` computes of its result: the program, its constants, which leaves of `given` it uses, the shape.

    The program is a jaxpr without what its result does not need, for `jax.core.eval_jaxpr`. `given` may be shapes.
    """
    traced, shape = jax.make_jaxpr(f, return_shape=True)(*given)
    live, used = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    constants = dict(zip(traced.jaxpr.constvars, traced.consts, strict=True))
    return live, [constants[v] for v in live.constvars], used, shape


def _inner(jaxpr: Any) -> Iterator[Any]:
    """Constants of the programs inside a program, which its text does not show."""
    for eqn in jaxpr.eqns:
        for part in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            if hasattr(part, "eqns"):
                yield from getattr(part, "consts", ())
                yield from _inner(getattr(part, "jaxpr", part))


def _digest(a: Any, known: Known) -> str:
    if id(a) not in known.arrays:
        keyed = jax.dtypes.issubdtype(getattr(a, "dtype", int), jax.dtypes.prng_key)
        host = np.asarray(jax.random.key_data(a) if keyed else a)
        word = hashlib.sha1(host.tobytes() + repr((host.shape, host.dtype)).encode()).hexdigest()
        known.arrays[id(a)] = a, word
    return known.arrays[id(a)][1]
