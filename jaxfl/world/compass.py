"""COMPASS: a clock that hands out unlike numbers of local steps, so that unlike clients answer in groups, at one time.

The scheduler of FedCompass (Li et al., ICLR 2024, https://arxiv.org/abs/2309.14675). All clients always work. The
server keeps an estimate of the seconds a local step takes each of them, `speed <- (1 - beta) speed + beta seen`, and
groups of clients who are expected together, at `T`, and are waited for until `L`. A client that is sent out at `t`

- joins the group for which it can run most steps, `q = floor((T - t) / speed)`, if `least <= q <= most`;
- else makes a group of its own, of `q = floor((L' + most * fastest' - t) / speed)` steps, `L'` and `fastest'` the
  latest time and the smallest speed of the group for which that is most and no more than `most` (so that it answers
  when that group, sent out again, will), at least `least`; where there is no such group, of `most` steps. Then
  `T = t + q speed` and `L = t + patience q speed`.

An answer by `L` waits until all of its group are there, or for `L`: then they make one version of the model, with all
that lies in the general buffer, and are sent out again, the fastest first. A later answer goes into the general buffer
and its client is sent out at once with the model that there is. The first answer of a client makes a version by itself.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import ALL_STEPS, Array, Cohort, Process, Strata, constant, node_keys, stream
from jaxfl.errors import require
from jaxfl.world.clock import require_by_node
from jaxfl.world.cohort import base_arrays
from jaxfl.world.durations import Seconds, drawing
from jaxfl.world.pace import smoothed
from jaxfl.world.process import process

GRAIN = 1e-3  # of a step: what is missed by less than this is missed by rounding
FIRST, CLOSED = -1, -2  # groups of who has not answered yet, and of who was not there when its group was closed


class Compass(NamedTuple):
    """Clients, groups and the general buffer. All fields `[n]`, times in seconds from the end of the last round."""

    left: Array  # float32, when the job of the client is done; inf: it has answered and waits for its group
    pace: Array  # float32, seconds that a step of this job takes
    speed: Array  # float32, seconds that a step is thought to take
    steps: Array  # int32, of this job
    age: Array  # int32, versions made since the client read the model
    group: Array  # int32, FIRST, CLOSED, or the number of its group
    kept: Array  # int32, steps of its answer in the general buffer; 0: none is there
    kept_age: Array  # int32, versions made since the model of that answer
    expected: Array  # float32, T, by number of the group
    latest: Array  # float32, L; -inf: there is no such group
    born: Array  # int32, order in which the groups were made


def compass(
    n: int,
    seconds: Seconds,
    *,
    least: int = 20,
    most: int = 100,
    patience: float = 1.2,
    beta: float = 0.9,
    weight: Any = None,
) -> Process:
    """The clock of FedCompass: a round is one version of the model, its members those whose answers made it.

    A cohort has a slot a node; who is not in a version has weight 0. Members say how old their model is (`age`) and how
    many local steps they ran (`steps`); `total` is the weight of all nodes, so that a mean over a group moves the model
    by the group's share alone, as in the paper. Times of one moment: answers come before groups are closed, the lower
    node before the higher, the older group before the younger; of equally fast ones the lower is sent out first; of
    groups for which `q` is the same the youngest is joined. An answer that still lies in the general buffer when its
    client answers again is replaced by the newer one, as in the authors' code.

    Exact, event by event, to `GRAIN` of a step. A round costs O(n) an event, and O(n^2) where all are sent out.

    Args:
        n: nodes.
        seconds: how long ONE local step of a job takes; a job of `q` steps takes `q` times as long.
        least: fewest steps of a job.
        most: most steps of a job, also those of the first; local training should run as many (`fedopt(steps=)`).
        patience: how much longer than expected a group is waited for, as a factor of its time.
        beta: weight of the newest observation of a speed.
        weight: base weights `[n]`, by default the number of samples (see `world.cohort`).

    Raises:
        InputError: a number out of range, numbers of `seconds` that are neither `[]` nor `[n]`, or bad base weights.
    """
    base = base_arrays(n, weight)
    require("most", most, least=1, whole=True)
    require("least", least, least=1, most=most, whole=True)
    require("patience", patience, above=1)
    require("beta", beta, above=0, most=1)
    require_by_node(seconds, n)
    own = {"least": constant(least, np.int32), "most": constant(most, np.int32)}
    own |= {"patience": constant(patience, np.float32), "beta": constant(beta, np.float32)}
    draw = drawing(seconds)

    def paces(key: Array, arrays: dict) -> Array:
        keys = node_keys(stream(key, "step seconds"), jnp.arange(n))
        return jax.vmap(lambda k, i: draw(k, arrays["seconds"], i))(keys, jnp.arange(n))

    def init(key: Array, arrays: dict) -> Compass:
        pace, none, steps = paces(key, arrays), jnp.zeros(n, jnp.int32), jnp.full(n, arrays["most"])
        never = jnp.full(n, -jnp.inf)
        return Compass(steps * pace, pace, 0 * pace, steps, none, none + FIRST, none, none, never, never, none)

    def step(key: Array, arrays: dict, s: Compass, t: Array) -> tuple[Compass, tuple[Cohort, Array]]:
        late, ids = stream(key, "step seconds of the late"), jnp.arange(n, dtype=jnp.int32)

        def answer(s: Compass, now: Array, event: Array) -> tuple[Compass, Array, Array]:
            i = jnp.argmin(s.left)
            first, k = s.group[i] == FIRST, s.group[i]
            s = s._replace(speed=s.speed.at[i].set(smoothed(s.speed[i], s.pace[i], first, arrays["beta"])))
            missed = (k == CLOSED) | ((k >= 0) & (now > s.latest[k]))

            def buffered(s: Compass) -> Compass:
                alone = (k >= 0) & ((s.group == k).sum() == 1)
                latest = s.latest.at[k].set(jnp.where(alone, -jnp.inf, s.latest[k]))
                kept, kept_age = s.kept.at[i].set(s.steps[i]), s.kept_age.at[i].set(s.age[i])
                s = s._replace(latest=latest, kept=kept, kept_age=kept_age, group=s.group.at[i].set(CLOSED))
                return _sent_out(arrays, s, i, now, draw(jax.random.fold_in(late, event), arrays["seconds"], i))

            s = jax.lax.cond(missed, buffered, lambda s: s._replace(left=s.left.at[i].set(jnp.inf)), s)
            whole = first | ~((s.group == k) & (s.left < jnp.inf)).any()
            return s, ~missed & whole, jnp.where(first, ids == i, s.group == k)

        def event(carry: tuple) -> tuple:
            s, _, number, _, _ = carry
            waits = (s.group[:, None] == ids) & (s.left == jnp.inf)[:, None]  # [node, group]
            limit = jnp.where(waits.any(0), s.latest, jnp.inf)
            answered, closed = s.left.min(), limit.min()
            now = jnp.minimum(answered, closed)
            oldest = jnp.argmin(jnp.where(limit == closed, s.born, ALL_STEPS))
            expired = lambda s: (s, jnp.bool_(True), s.group == oldest)
            s, done, of = jax.lax.cond(answered <= closed, lambda s: answer(s, now, number), expired, s)
            return s, now, number + 1, done, of

        start = s, jnp.float32(0), jnp.int32(0), jnp.bool_(False), jnp.zeros(n, bool)
        s, over, _, _, of = jax.lax.while_loop(lambda carry: ~carry[3], event, start)

        back = of & (s.left == jnp.inf)
        single = (back & (s.group == FIRST)).any()  # the buffer waits for a group
        kept = (s.kept > 0) & ~single & ~back
        taken = lambda mine, buffer: jnp.where(back, mine, jnp.where(kept, buffer, 0))
        weight = jnp.where(back | kept, arrays["weight"], 0)
        c = Cohort(
            ids, weight, taken(s.age, s.kept_age), taken(s.steps, s.kept), None, Strata(n), arrays["weight"].sum()
        )

        number = s.group[jnp.argmax(back)]
        s = s._replace(
            left=s.left - over,
            age=s.age + 1,
            group=jnp.where(of & ~back, CLOSED, jnp.where(back, CLOSED, s.group)),
            kept=jnp.where(single, s.kept, 0),
            kept_age=s.kept_age + 1,
            expected=s.expected - over,
            latest=jnp.where(ids == number, -jnp.inf, s.latest - over),
        )
        order, pace = jnp.argsort(jnp.where(back, s.speed, jnp.inf)), paces(key, arrays)
        again = lambda j, s: _sent_out(arrays, s, order[j], jnp.float32(0), pace[order[j]])
        return jax.lax.fori_loop(0, back.sum(), again, s), (c, over)

    return process(step, {**base, **own, "seconds": seconds.arrays}, init)


def _sent_out(arrays: dict, s: Compass, i: Array, now: Array, pace: Array) -> Compass:
    """Client `i`, who is in no group, reads the newest model and is given a group and a number of steps."""
    there, speed = s.latest > -jnp.inf, jnp.maximum(s.speed[i], 1e-30)
    least, most = arrays["least"], arrays["most"]
    fits = lambda time: jnp.floor((time - now) / speed + GRAIN)
    q = fits(s.expected)
    may = there & (q >= least) & (q <= most)
    q = jnp.where(may, q, 0)
    mine = jnp.argmax(jnp.where(may & (q == q.max()), s.born, -1))

    of = s.group[:, None] == jnp.arange(s.left.shape[0])
    fastest = jnp.where(of, s.speed[:, None], jnp.inf).min(0)
    after = jnp.where(there & (now < s.latest), fits(s.latest + fastest * most), jnp.inf)
    after = jnp.where(after <= most, after, -1).max()
    new = jnp.where(after < 0, most, jnp.maximum(after, least))
    free = jnp.argmin(there)

    joins = may.any()
    k, steps = jnp.where(joins, mine, free), jnp.where(joins, q.max(), new).astype(jnp.int32)
    put = lambda old, value: old.at[k].set(jnp.where(joins, old[k], value))
    return s._replace(
        left=s.left.at[i].set(now + steps * pace),
        pace=s.pace.at[i].set(pace),
        steps=s.steps.at[i].set(steps),
        age=s.age.at[i].set(0),
        group=s.group.at[i].set(k.astype(jnp.int32)),
        expected=put(s.expected, now + steps * s.speed[i]),
        latest=put(s.latest, now + arrays["patience"] * steps * s.speed[i]),
        born=put(s.born, 1 + jnp.where(there, s.born, -1).max()),
    )
