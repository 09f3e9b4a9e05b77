"""What a system computes, in one word, without running it: an option that leaves the word as it is has no effect.

Two rounds are traced, not compiled, and what reaches neither the answer nor the log is removed. Every number that is
left gets a word, made of the operation and the words of what it is computed from, at last of the contents of arrays; a
system's word is made of those of its answer and its log. So neither an order of what does not depend on one another
nor a program inside a program makes another word. What a system and its world do is traced once for all worlds in
which it is asked the same: that takes a tenth of a second, and a fraction of it for a further option.

It cannot see a number that is computed and comes out the same, nor an effect in the wrong place.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Literal
from jax.interpreters import partial_eval

from jaxfl.core import Algorithm, Scenario, Tree
from jaxfl.engine import keys
from jaxfl.engine.rollout import rollout
from jaxfl.engine.run import build
from jaxfl.mapping.canonical import canonical


class Known(NamedTuple):
    """What is remembered from call to call; it keeps alive what it has seen."""

    programs: dict  # a live program, its constants and its use of arrays, by the functions and shapes it is traced from
    arrays: dict  # an array and its digest, by identity
    parts: dict  # a function, and itself such that it is traced once for arguments of some shapes, by identity
    words: dict  # words of the results of a program within a program, by it and the words of what it is given


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
        known: `Known({}, {}, {}, {})`, so that what several worlds have in common is traced once.

    Raises:
        InputError: what the system says to its world or network.
    """
    known = known or Known({}, {}, {}, {})
    algorithm, draw = canonical(algorithm), canonical(model) if callable(model) else None
    first = None if callable(model) else model
    given = 0, hyper or {}, (scenario.arrays, scenario.data, scenario.byz, scenario.links), first

    def rounds(seed: Any, hyper: dict, world: tuple, x: Tree) -> tuple:
        arrays, data, byz, links = world
        there = Scenario(part(scenario.init), part(scenario.step), arrays, data, byz, links)
        system = build(algorithm, hyper)
        x = x if draw is None else part(draw)(keys.model_key(keys.run_key(seed)))
        parted = system._replace(init=part(system.init), round=part(system.round))
        state, logs = rollout(parted, there, x, 2, seed=seed)
        return system.read(state), logs

    def part(f: Callable) -> Callable:
        if hyper:  # functions over traced numbers are others in every trace
            return f
        return known.parts.setdefault(id(f), (f, jax.jit(lambda *args: f(*args))))[1]

    like = algorithm, scenario.init, scenario.step, draw, shapes(given)
    if like not in known.programs:
        live, constants, used, result = alive(rounds, *given)
        known.programs[like] = live, constants, used, str(jax.tree.structure(result))
    live, constants, used, structure = known.programs[like]
    read = [_digest(a, known) for a, u in zip(jax.tree.leaves(given), used, strict=True) if u]
    return _word(structure, *_words(live, constants, read, known))


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


def _word(*parts: Any) -> str:
    return hashlib.sha1(repr(parts).encode()).hexdigest()


def _words(jaxpr: Any, constants: Sequence[Any], given: Sequence[str], known: Known) -> list[str]:
    """Words of the results of a program, from its constants and the words of its arguments."""
    constants = [_digest(c, known) for c in constants]
    like = id(jaxpr), *constants, *given
    if like not in known.words:
        word_of = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *given), strict=True))
        read = lambda v: _word(np.asarray(v.val).tobytes(), str(v.aval)) if isinstance(v, Literal) else word_of[v]
        for eqn in jaxpr.eqns:
            word_of.update(zip(eqn.outvars, _results(eqn, list(map(read, eqn.invars)), known), strict=True))
        known.words[like] = jaxpr, list(map(read, jaxpr.outvars))
    return known.words[like][1]


def _results(eqn: Any, given: list[str], known: Known) -> list[str]:
    """Words of the results of one operation, from those of its arguments."""
    if eqn.primitive.name in ("jit", "pjit"):
        inner = eqn.params["jaxpr"]
        return _words(inner.jaxpr, inner.consts, given, known)
    told = []
    for key, value in sorted(eqn.params.items()):
        for part in value if isinstance(value, tuple | list) else [value]:
            if hasattr(part, "eqns"):  # of arguments that are known inside by their places
                inner = getattr(part, "jaxpr", part)
                places = [f"argument {i}" for i in range(len(inner.invars))]
                part = _words(inner, getattr(part, "consts", ()), places, known)
            told.append((key, re.sub("0x[0-9a-f]+", "", str(part))))
    word = _word(eqn.primitive.name, told, given)
    return [_word(word, i) for i in range(len(eqn.outvars))]


def _digest(a: Any, known: Known) -> str:
    if id(a) not in known.arrays:
        keyed = jax.dtypes.issubdtype(getattr(a, "dtype", int), jax.dtypes.prng_key)
        host = np.asarray(jax.random.key_data(a) if keyed else a)
        word = hashlib.sha1(host.tobytes() + repr((host.shape, host.dtype)).encode()).hexdigest()
        known.arrays[id(a)] = a, word
    return known.arrays[id(a)][1]
