"""How much the members of a cohort count, where their size is not all that says so.

A rule sees what is known before a round: the share of each member among those present, by its base weight, and numbers
of its own. It decides `Cohort.weight`, so that every system with a cohort obeys it; what the system is to minimise,
`Env.share`, stays as it is. What members only know after their work (a loss) travels with their messages instead:
`algorithms/server/qfedavg.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Cohort, Strata, Tree, constant
from jaxfl.errors import InputError, require


class Weights(NamedTuple):
    """A rule. Its `arrays` are traced: other values compile nothing."""

    of: Callable  # (share [c] of those present, sum 1, 0 of the absent; ids [c]; arrays) -> [c], of any scale
    arrays: Tree = ()


def uniform() -> Weights:
    """All members present count alike."""
    return Weights(lambda share, ids, arrays: jnp.ones_like(share))


def disco(discrepancy: Any, a: float | Array = 0.5, b: float | Array = 0.1) -> Weights:
    """FedDisco: `p_k = max(0, n_k - a d_k + b)`, members unlike the whole count less.

    `n_k` are shares and `d_k` the discrepancies of the members present, divided by their sum (all 0: 0). Ye et al.,
    ICML 2023, https://arxiv.org/abs/2305.19229. a = b = 0 counts by size; b flattens.

    Args:
        discrepancy: `[n]`, at least 0 (`partition.label_discrepancy`).
        a: what the discrepancy takes away, at least 0.
        b: what everyone is given, at least 0.

    Raises:
        InputError: a discrepancy that is no row of finite numbers of at least 0, or a bad number.
    """
    d = np.asarray(discrepancy, np.float64)
    if d.ndim != 1 or not np.isfinite(d).all() or d.min(initial=0) < 0:
        raise InputError(f"discrepancy has shape {list(d.shape)}: one finite number of at least 0 a node is needed.")
    require("a", a, least=0)
    require("b", b, least=0)

    def of(share: Array, ids: Array, arrays: dict) -> Array:
        d = jnp.where(share > 0, arrays["discrepancy"][ids], 0)
        return share - arrays["a"] * d / jnp.maximum(d.sum(), 1e-12) + arrays["b"]

    numbers = {"a": constant(a, np.float32), "b": constant(b, np.float32)}
    return Weights(of, {"discrepancy": constant(d, np.float32)} | numbers)


def reweighed(cohort: Cohort, of: Callable, arrays: Tree) -> Cohort:
    """The cohort whose members count as the rule says.

    What it makes negative is 0, and that member is absent: it is not asked, as the server knows that beforehand. Where
    nobody is left, members count as they did.

    Raises:
        InputError: weights that are to be unbiased (`Cohort.total`), which a rule of shares would undo.
    """
    if cohort.total is not None:
        raise InputError("weights are given, but the cohort has its own, unbiased ones (importance): leave one out.")
    here, total = cohort.weight > 0, cohort.weight.sum()
    share = cohort.weight / jnp.where(total > 0, total, 1)
    new = jnp.where(here, jnp.maximum(of(share, cohort.ids, arrays), 0), 0)
    return cohort._replace(weight=jnp.where(new.sum() > 0, new, share), strata=Strata(cohort.strata.count))
