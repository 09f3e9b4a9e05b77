"""Sub-models in the exchange (`Network.submodel`): who trains which numbers, and the mean over those who did.

A member starts from the numbers that it holds, moves them alone, and sends what it is to send of them. Of every number
the server hears a mean over the members who sent it,

    delta_j = sum_i w_i M_ij (y_ij - x_j) / sum_i w_i M_ij,      and 0 where nobody did,

so that a number which nobody trained stays as it was (Zhou, Lan, Venkataramani, Ding; NeurIPS 2023;
https://arxiv.org/abs/2310.08670). Who draws the sub-models, and how, is in `learn.submodels`. The server knows the
masks: they cost no bits.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxfl.core import Array, Cohort, Log, Tree, counts, stream
from jaxfl.errors import InputError
from jaxfl.learn.submodels import Sub
from jaxfl.mapping.at import must_take, takes
from jaxfl.mapping.sums import count

WHOLE = 1e-6  # a number is trained by all if the members who did not count less than this


def trimmed(learn: Callable, submodel: Callable, memory: tuple[str, ...]) -> Callable:
    """`learn` of ONE node that trains a sub-model; its message `[m]` is followed by what it covers, `[2 m]`.

    Of what the node keeps, by the names `memory`, an array like a model changes in the numbers that it holds; a tree,
    such as an optimizer's state, is as `learn` logs it. It logs `held`, how many numbers it holds, `said`, how many of
    these it sends, and `noise`, the share of `|x|^2` that it was not handed.

    Raises:
        InputError: while tracing, a `learn` that takes no `held` and so would train whole models.
    """
    knows = takes(learn)
    learn = must_take(learn, "held", "net.submodel is set, but what this system's nodes learn by trains whole models.")

    def member(key: Array, data: Any, i: Array, x: Array, *, t: Array, **arguments: Tree) -> tuple[Array, dict]:
        sub = submodel(stream(key, "submodel"), i, t, x)
        if not isinstance(sub, Sub):
            raise InputError(f"net.submodel gave {type(sub).__name__}, but must give a learn.submodels.Sub.")
        start = jnp.where(sub.held, x, sub.fill)
        row, log = learn(key, data, i, start, held=sub.held, **arguments, **({"t": t} if knows("t") else {}))
        for name in memory:
            log[name] = _where_held(sub.held, log[name], arguments[name])
        d, said = x.shape[0], sub.held if sub.sent is None else sub.sent
        if sub.sent is not None:
            if row.shape[0] != d:
                raise InputError(
                    f"net.submodel says what of a model of {d} numbers is sent, but a message of this system has "
                    f"{row.shape[0]}: leave `sent` out."
                )
            row = jnp.where(sub.held, row, start - x)
        counted = tiled(said if sub.counted is None else said | sub.counted, row.shape[0])
        # sums of whole numbers and dots are vectorized, sums of floats are not
        log |= {"held": jnp.float32(sub.held.sum()), "said": jnp.float32((said & sub.held).sum())}
        log["noise"] = jnp.dot(jnp.where(sub.held, 0, x), x) / jnp.maximum(jnp.dot(x, x), 1e-30)
        sent = jnp.where(tiled(said, row.shape[0]), row, 0)
        return jnp.concatenate([sent, counted.astype(row.dtype)]), log

    return member


def tiled(mask: Array, m: int) -> Array:
    """`mask` `[d]` of a model for a message `[m]`: vectors like a model, then a few numbers, which are all there."""
    d = mask.shape[0]
    return jnp.concatenate([jnp.tile(mask, m // d), jnp.ones(m % d, bool)])


def _where_held(held: Array, new: Any, old: Any) -> Any:
    return jnp.where(held, new, old) if getattr(new, "shape", None) == held.shape else new


def covered(total: Array, message: Array, covers: Array) -> Array:
    """The mean `[m]` over those who cover each number, from sums by weight; `total` is that of all weights.

    Where all cover a number it is the plain mean, to the last bit; 0 where nobody does.
    """
    all_do = covers >= total * (1 - WHOLE)
    return jnp.where(covers > 0, message * jnp.where(all_do, 1.0, total / jnp.maximum(covers, 1e-30)), 0.0)


def combined(
    c: Cohort, plain: bool, out: Array, covers: Array, bits: Array, each: dict, d: int
) -> tuple[Array, Array, Log]:
    """The mean over those who cover each number `[m]`, the bits of each member `[c]`, and what a round says of it.

    `out` `[m]` is a mean over all members, `covers` the same of what they cover if `plain`, or each one's `[c, m]`, and
    `bits` `[c]` those of whole messages. The log has `coverage_index`, how many members train the number that the
    fewest train (by weight), `reduction_noise`, the mean share of `|x|^2` that a member was not handed, and `work`, the
    gradients of whole models that the members' gradients amount to.
    """
    m, present = out.shape[-1], c.weight > 0
    if plain:
        total = counts(c).sum()
    else:
        total, weight = jnp.float32(1), counts(c._replace(total=None))
        covers = jnp.dot(weight, jnp.where(present[:, None], covers, 0), precision="highest")
    many = count(present)
    log = Log(
        coverage_index=many * covers[:d].min() / jnp.maximum(total, 1e-12),
        reduction_noise=jnp.where(present, each["noise"], 0).sum() / jnp.maximum(many, 1),
        work=jnp.where(present, each["gradients"] * each["held"] / d, 0).sum(),
    )
    return covered(total, out, covers), bits * (m // d * each["said"] + m % d) / m, log
