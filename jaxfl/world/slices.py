"""Time slices: everybody works all the time, and the server looks in on whom it likes, when it likes.

The clock of QuAFL and FAVANO. A round is a slice of fixed length in which every node runs as many local steps as it
gets to; then some are contacted, interrupted in the middle of their work, and begin anew. The progress of all others
goes on undisturbed. Between two contacts a node's work depends on nothing but the model it began with, so it need not
be computed before it is asked for: a contacted member runs, in one go, all the steps since its last contact
(`Cohort.steps`), from the model that it got then. A round costs the work of those contacted.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxfl.core import ALL_STEPS, Array, Cohort, Process, constant, stream
from jaxfl.errors import InputError, require
from jaxfl.world.cohort import base_of
from jaxfl.world.exponential import uniform
from jaxfl.world.process import process, yielded


class Work(NamedTuple):
    """What everybody is at. The first two `[n]`."""

    steps: Array  # int32, local steps since the last contact
    age: Array  # int32, server versions made since that contact
    members: Any  # state of who is contacted


def slices(members: Process, rate: Any, slots: int, *, cap: int = ALL_STEPS - 1, seconds: float = 1.0) -> Process:
    """Rounds of `seconds` in which node `i` runs Binomial(`slots`, `rate_i`) local steps, contacted or not.

    In each of `slots` equal moments a node completes a step with probability `rate_i`, so that a step takes a geometric
    number of moments, `1 / rate_i` in the mean. Who has `cap` steps waits. `steps` of a member are those since its last
    contact, of which it may have run none, and `age` the versions that the server made since. Costs O(n slots).

    Args:
        members: who is contacted at the end of a slice; a process of `world.cohort`.
        rate: probability of a step in a moment, from 0 to 1, one number or by node `[n]`. Traced, as are `cap` and
            `seconds`.
        slots: moments of a slice.
        cap: most steps between two contacts.
        seconds: how long a slice takes.

    Raises:
        InputError: a number out of range, or members of a clock, with steps of their own, or without base weights.
    """
    first, pick, _ = members
    base = base_of(members)
    value = yielded(members)
    if base is None or not isinstance(value, Cohort) or value.steps is not None:
        raise InputError("members must be a process of world.cohort, and neither a clock nor one that sets steps.")
    n, p = base.shape[0], np.asarray(rate, np.float64)
    require("slots", slots, least=1, whole=True)
    require("cap", cap, least=1, below=ALL_STEPS, whole=True)
    require("seconds", seconds, least=0)
    if p.shape not in ((), (n,)) or not ((p >= 0) & (p <= 1)).all():
        raise InputError(f"rate = {rate}: a probability from 0 to 1, or one a node [{n}], is needed.")

    def init(key: Array, arrays: dict) -> Work:
        zero = jnp.zeros(n, jnp.int32)
        return Work(zero, zero, first(key, arrays["members"]))

    def step(key: Array, arrays: dict, s: Work, t: Array) -> tuple[Work, tuple[Cohort, Array]]:
        inner, c = pick(key, arrays["members"], s.members, t)
        done = (uniform(stream(key, "steps of a slice"), (slots, n)) <= arrays["rate"]).sum(0, dtype=jnp.int32)
        steps = jnp.minimum(s.steps + done, arrays["cap"])
        c = c._replace(steps=steps[c.ids], age=s.age[c.ids])
        here = c.weight > 0  # who is asked for nothing is not interrupted
        keep = lambda a, kept: a.at[c.ids].set(jnp.where(here, 0, kept))
        steps, age = keep(steps, c.steps), keep(s.age + 1, c.age + 1)
        return Work(steps, age, inner), (c, arrays["seconds"])

    arrays = {"members": members.arrays, "rate": constant(p, np.float32)}
    arrays |= {"cap": constant(cap, np.int32), "seconds": constant(seconds, np.float32)}
    return process(step, arrays, init)
