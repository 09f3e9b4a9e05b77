"""Personal parts of a model: columns that stay with their node, neither sent nor counted (`Network.personal`).

A head of its own is FedPer (Arivazhagan et al., 2019, https://arxiv.org/abs/1912.00818), the norms with their
statistics FedBN (Li et al., ICLR 2021, https://arxiv.org/abs/2102.07623). A member starts from the server's model with
its own columns in it; to the server it says of them what it was handed, so they stay there as they were first.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Algorithm, Array, Cohort, Mail, State, Tree
from jaxfl.errors import InputError
from jaxfl.learn.layers import Part
from jaxfl.mapping.at import must_take
from jaxfl.mapping.nodes import map_nodes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Own:
    """What nodes keep of their models."""

    columns: Array  # [n, p]
    met: Array  # [n] bool, it has trained; before that its columns are the first model's
    part: Part = dataclasses.field(metadata={"static": True})


def none_yet(part: Part, n: int) -> Own:
    """Of `n` nodes that have not trained."""
    return Own(jnp.zeros((n, len(part.columns))), jnp.zeros(n, bool), part)


def split(part: Part, m: int) -> tuple[np.ndarray, np.ndarray]:
    """The columns of a message of `m` numbers that are personal, and those that are sent.

    A message begins with one or more vectors as long as a model, one after the other, and may end in a few numbers.

    Raises:
        InputError: it is shorter than a model.
    """
    if m < part.dim:
        raise InputError(f"net.personal is part of a row of {part.dim}, but this system's messages have {m} numbers.")
    starts = part.dim * np.arange(m // part.dim)
    mine = (starts[:, None] + part.columns).ravel()
    return mine, np.setdiff1d(np.arange(m), mine)


def keeping(learn: Callable, part: Part) -> Callable:
    """`learn` of ONE node that keeps its columns, as its memory `personal`; it logs `same`, see `handed_back`.

    Raises:
        InputError: while tracing, a `learn` that takes no `personal`, or logs none.
    """
    says = "net.personal is set, but what this system's nodes learn by keeps no part of a model."
    learn = must_take(learn, "personal", says)

    def member(key: Array, data: Any, i: Array, x: Array, *, personal: Own, **arguments: Tree) -> tuple[Array, dict]:
        at = part.columns
        mine = jnp.where(personal.met, personal.columns, x[at])
        row, log = learn(key, data, i, x, personal=(part, mine), **arguments)
        if "personal" not in log:
            raise InputError(says)
        said = row[split(part, row.shape[0])[0]].reshape(-1, len(at))
        same = jnp.stack([(said == 0).all(), (said == x[at]).all()])
        return row, log | {"personal": Own(log["personal"], jnp.bool_(True), part), "same": same}

    return member


def handed_back(part: Part, c: Cohort, x: Array, same: Array, m: int) -> Array:
    """What a cohort's messages of `m` numbers agree on in the personal columns: 0 or what it was handed in `x`.

    `same` `[c, 2]` says who said the one and who the other. Of a system that says something else, which would have to
    cross, it is NaN.
    """
    agreed = (same | ~(c.weight > 0)[:, None]).all(0)
    first = x if x.ndim == 1 else x[0]  # the server's never change
    times = m // part.dim
    handed = jnp.tile(first[part.columns], times) * (1.0 if c.total is None else c.weight.sum() / c.total)
    return jnp.where(agreed[0], 0.0, jnp.where(agreed[1], handed, jnp.nan))


def numbers(tree: Tree, axis: int, part: Part | None, model: tuple[int, int | Array]) -> int | Array:
    """Floats in one message that holds the leaves of `tree`, without their first axes and without what is personal.

    Of every `model[0]` numbers, a whole model, `model[1]` are there.
    """
    d, held = model
    floats = [
        math.prod(jnp.shape(a)[axis:])
        for a in jax.tree.leaves(tree)
        if jnp.ndim(a) > axis and jnp.issubdtype(jnp.result_type(a), jnp.floating)
    ]
    if part is not None:
        return sum(m if m < part.dim else len(split(part, m)[1]) for m in floats)
    return sum(m // d * held + m % d for m in floats)


def answer(algorithm: Algorithm, state: State) -> Tree:
    """What a system says in the state of a run without an axis of seeds, as it is evaluated: `algorithm.read(state)`.

    Where parts of a server's model are personal, it is each node's own model `[n, d]`, in place of the one `[d]`.
    """
    return own_models(state.mail, algorithm.read(state))


def own_models(mail: Mail, answer: Tree) -> Tree:
    """What a system answers; a server's one model `[d]` as each node's own `[n, d]` where parts of it are personal."""
    own = mail.nodes[-1] if isinstance(mail.nodes, tuple) and mail.nodes else None
    if not isinstance(own, Own) or getattr(answer, "shape", None) != (own.part.dim,):
        return answer
    at = own.part.columns
    return map_nodes(lambda x, own: x.at[at].set(jnp.where(own.met, own.columns, x[at])), answer, own)
