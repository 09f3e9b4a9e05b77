"""W4: robust rules at a server, each alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array
from jaxfl.exchange import rules
from workloads.work import Cost, Matmul, Program, Side, Stream, Work

CALLS = 5  # aggregations of a timed block
RULES = {
    "mean": lambda f: rules.mean,
    "median": lambda f: rules.median(),
    "trimmed mean": rules.trimmed_mean,
    "krum": rules.krum,
    "geometric median, 3 steps": lambda f: rules.geometric_median(3),
    "centered clipping": lambda f: rules.centered_clipping(10.0),
}


class Messages(NamedTuple):
    """What a rule is given."""

    own: Array  # [d]
    x: Array  # [k, d]
    weight: Array  # [k]
    name: str = "normal numbers"


def w4(k: int, d: int, name: str) -> Work:
    """The rule `name` on `k` messages of `d` numbers, f = k / 8."""

    def build():
        x = jnp.asarray(np.random.default_rng(0).standard_normal((k, d), np.float32))
        return Program(jax.jit(RULES[name](k // 8)), None, None, Messages(jnp.zeros(d), x, jnp.full(k, 1 / k)))

    def aggregate(program, times):
        for _ in range(times):
            done = jax.block_until_ready(program.algorithm(*program.data[:3]))
        return done

    def cost(program):
        gram = (Matmul(k, d, k // 2, 1),) if name == "krum" else ()  # half of it: a Gram matrix is symmetric
        return Cost(gram, (Stream(4.0 * k * d, 4.0 * k * d),))  # one pass over the messages

    ours, held = lambda program: Side(lambda: aggregate(program, CALLS)), lambda program: program.data[:3]
    return Work(f"W4 {name}", k, None, CALLS, build, cost, ours=ours, afresh=aggregate, held=held)
