"""Aggregation rules: how ONE receiver combines what it heard.

A rule is `(own [m], heard [k, m], weight [k]) -> [m]` with weights that sum to one (weight 0: nothing came). At a
server `k` is the cohort; on a graph the receiver's own message is the first of those heard.
"""

import jax
import jax.numpy as jnp

from jaxfl.core import Array


def mean(own: Array, heard: Array, weight: Array) -> Array:
    """The weighted mean, `weight @ heard`. Written as a dot: XLA's sum over a leading axis is a scalar loop on CPU."""
    del own
    return jnp.matmul(weight, heard, precision=jax.lax.Precision.HIGHEST)
