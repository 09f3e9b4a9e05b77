"""Attacks: what Byzantine senders say instead of the truth. The colluders see every message of the round."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxfl.core import Array, Tree
from jaxfl.errors import require
from jaxfl.exchange.rules import HIGHEST, all_finite, by_columns, sum_columns


class Attack(NamedTuple):
    """A lie in two stages: `plan` once a round, `lie` at every receiver, so that each may be told something else.

    At a server `k` is the cohort and `own` the server's reference; on a graph the receiver's own message is the first
    of those heard, with `bad` False. `bad` marks the liars among the senders; what an honest sender said must pass
    `lie` unchanged. Where a liar says the same to all (`alike`) `lie` may be asked once on a graph, of all nodes as
    senders and with `own` None: means and coordinate rules then cost what they do without an attack.
    """

    init: Callable  # (message [m]) -> memory
    plan: Callable  # (key, memory, sent [c, m], weight [c], bad [c]) -> (memory, known)
    lie: Callable  # (key, known, own [m], heard [k, m], weight [k], bad [k]) -> heard [k, m]
    alike: bool = False


def attack(lie: Callable, *, alike: bool = False) -> Attack:
    """An attack that plans nothing, from `lie(key, known, own, heard, weight, bad)`."""
    return Attack(lambda message: (), lambda key, memory, sent, weight, bad: (memory, ()), lie, alike)


def sign_flip(scale: float | Array = 1.0) -> Attack:
    """A liar sends its message times `-scale` ("bit flip" in the code of Karimireddy et al., ICML 2021)."""
    require("scale", scale)

    def lie(key, known, own, heard, weight, bad):
        return jnp.where(bad[:, None], -scale * heard, heard)

    return attack(lie, alike=True)


def gaussian(scale: float | Array = 1.0) -> Attack:
    """A liar sends `scale * N(0, I)`, drawn anew for every receiver (Blanchard et al., NeurIPS 2017)."""
    require("scale", scale)

    def lie(key, known, own, heard, weight, bad):
        return jnp.where(bad[:, None], scale * jax.random.normal(key, heard.shape, heard.dtype), heard)

    return attack(lie)


def alie(z: float | Array = 1.5, *, local: bool = False) -> Attack:
    """A little is enough: all liars send `mu - z * sd` of the honest messages (Baruch et al., NeurIPS 2019).

    Coordinate by coordinate; `sd` divides by the number of honest messages. `local`: the statistics are those of the
    honest messages that a receiver hears, its own included, and not of all. `alie_z(n, f)` is the paper's `z`.
    """
    require("z", z)
    return _colluding(lambda x, honest: _moments(x, honest, z), local)


def alie_z(n: int, f: int) -> float:
    """The largest `z` with which `f` liars of `n` still have the honest supporters that make a majority.

    `s = floor(n / 2 + 1) - f` supporters are needed; a share `(n - f - s) / (n - f)` of normal values lies below `z`.
    """
    require("n", n, least=3, whole=True)
    require("f", f, least=1, below=n / 2, whole=True)
    from scipy.special import ndtri

    return float(ndtri((n - (n // 2 + 1)) / (n - f)))


def ipm(epsilon: float | Array = 0.1, *, local: bool = False) -> Attack:
    """Inner product manipulation: all liars send `-epsilon * mu` (Xie, Koyejo, Gupta, UAI 2019).

    A small `epsilon` stops rules that pick among messages, `epsilon` above (honest / liars) reverses the mean. `mu` is
    the mean of all honest messages, or, where `local`, of those that a receiver hears.
    """
    require("epsilon", epsilon)
    return _colluding(lambda x, honest: -epsilon * _moments(x, honest, None), local)


def mimic(warmup: int = 1) -> Attack:
    """All liars repeat one honest sender, so that its peculiarity counts several times (Karimireddy, He, Jaggi 2022).

    In the first `warmup` rounds the colluders follow the direction `v` in which honest messages vary most (Oja's rule,
    as in the authors' code, whose default is one round),

        mean <- t / (1 + t) mean + avg / (1 + t),    u = sum_i (x_i - mean) <x_i - mean, v>
        v <- t / (1 + t) v + 1 / (1 + t) u / |u|, normalised,

    from a random `v`, and copy `argmax_i <x_i, v>` of the round; then they stay with the last choice. The choice is a
    place in the cohort: in every round another sender, unless everyone takes part. Where the chosen one is absent, the
    `argmax` of the round serves.
    """
    require("warmup", warmup, least=1, whole=True)

    def init(message: Array) -> tuple:
        return jnp.int32(0), jnp.zeros_like(message), jnp.zeros_like(message), jnp.int32(0)

    def plan(key, memory, sent, weight, bad):
        t, mean, v, chosen = memory
        honest = _honest(sent, weight, bad)
        learning = t < warmup
        old, new = t / (1 + t), 1 / (1 + t)

        def learn(mean: Array, v: Array) -> tuple[Array, Array]:
            v = jnp.where(t == 0, jax.random.normal(key, v.shape, v.dtype), v)
            mean = old * mean + new * _moments(sent, honest, None)
            off = lambda x, mean: jnp.where(honest[:, None], x - mean, 0)
            along = sum_columns(lambda x, mean, v: jnp.matmul(off(x, mean), v, precision=HIGHEST), sent, mean, v)
            along = _unit(along)  # the direction of u alone counts
            u = by_columns(lambda x, mean: jnp.matmul(along, off(x, mean), precision=HIGHEST), sent, mean)
            return mean, _unit(old * v + new * _unit(u))

        mean, v = jax.lax.cond(learning, learn, lambda mean, v: (mean, v), mean, v)
        height = sum_columns(lambda x, v: jnp.matmul(x, v, precision=HIGHEST), sent, v)
        highest = jnp.argmax(jnp.where(honest, height, -jnp.inf))
        chosen = jnp.where(learning, highest, chosen).astype(jnp.int32)
        copied = jnp.where(honest[chosen], chosen, highest)
        return (t + 1, mean, v, chosen), sent[copied]

    return Attack(init, plan, _say_known, alike=True)


def one_of(index: int | Array, *attacks: Attack) -> Attack:
    """The `index`-th of `attacks`. A traced index lets one compiled program serve all of them."""

    def at(i: int, values: tuple, value: Tree) -> tuple:
        return (*values[:i], value, *values[i + 1 :])

    def init(message: Array) -> tuple:
        return tuple(a.init(message) for a in attacks)

    def plan(key, memory, sent, weight, bad):
        def one(i: int) -> Callable:
            return lambda: attacks[i].plan(key, memory[i], sent, weight, bad)

        blank = [jax.eval_shape(one(i))[1] for i in range(len(attacks))]
        blank = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tuple(blank))

        def branch(i: int) -> tuple:
            mine, known = one(i)()
            return at(i, memory, mine), at(i, blank, known)

        return jax.lax.switch(jnp.asarray(index, jnp.int32), [partial(branch, i) for i in range(len(attacks))])

    def lie(key, known, own, heard, weight, bad):
        def branch(i: int) -> Array:
            return attacks[i].lie(key, known[i], own, heard, weight, bad)

        return jax.lax.switch(jnp.asarray(index, jnp.int32), [partial(branch, i) for i in range(len(attacks))])

    return Attack(init, plan, lie, all(a.alike for a in attacks))


def honesty() -> Attack:
    """No attack: those who may lie say what they are told."""
    return attack(lambda key, known, own, heard, weight, bad: heard, alike=True)


def _say_known(key, known, own, heard, weight, bad):
    return jnp.where(bad[:, None], known, heard)


def _colluding(message: Callable, local: bool) -> Attack:
    """All liars send `message(messages [c, m], honest [c]) -> [m]`, of everyone or of what a receiver hears."""
    if local:

        def lie(key, known, own, heard, weight, bad):
            return jnp.where(bad[:, None], message(heard, _honest(heard, weight, bad)), heard)

        return attack(lie)

    def plan(key, memory, sent, weight, bad):
        return memory, message(sent, _honest(sent, weight, bad))

    return Attack(lambda message: (), plan, _say_known, alike=True)


def _honest(x: Array, weight: Array, bad: Array) -> Array:
    """Who of the senders `[c]` is honest, present and finite."""
    return (weight > 0) & ~bad & all_finite(x)


def _moments(x: Array, honest: Array, z: float | Array | None) -> Array:
    """The honest messages' mean `[m]`, less `z` standard deviations (None: the mean)."""
    share = honest / jnp.maximum(honest.sum(), 1)

    def part(x: Array) -> Array:
        x = jnp.where(honest[:, None], x, 0)
        mu = jnp.matmul(share, x, precision=HIGHEST)
        if z is None:
            return mu
        off = jnp.where(honest[:, None], x - mu, 0)
        most = jnp.abs(off).max(0)  # of 1, squares neither overflow nor vanish
        off = off / jnp.where(most > 0, most, 1)
        return mu - z * most * jnp.sqrt(jnp.matmul(share, off**2, precision=HIGHEST))

    return by_columns(part, x)


def _unit(v: Array) -> Array:
    """`v / |v|`, of 0 itself; scaled first, as the square of 1e20 is no float32."""
    most = jnp.abs(v).max()
    v = v / jnp.where(most > 0, most, 1)
    return v / jnp.maximum(jnp.linalg.norm(v), 1e-30)
