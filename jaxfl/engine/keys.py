"""Where a run's random numbers come from: keyed by (seed, purpose, round), then by node in `mapping.at`.

The same bits come out for any chunk length, cohort slot, device mesh and resume.
"""

import jax

from jaxfl.core import Array, stream
from jaxfl.errors import InputError, require


def run_key(seed: int | Array) -> Array:
    """The key of one run.

    Raises:
        InputError: a seed of more than 32 bits, whose upper ones JAX would drop; a key type whose vmap does not draw
            independent numbers.
    """
    require("seed", seed, least=-(2**31), below=2**31, whole=True)
    key = jax.random.key(seed)
    if "fry" not in str(key.dtype):
        raise InputError(f"jax_default_prng_impl gives keys {key.dtype}, but must be threefry2x32.")
    return key


def model_key(key: Array) -> Array:
    """Key of the first model."""
    return stream(key, "model")


def init_key(key: Array, part: str) -> Array:
    """Key with which `part` (`world` or `algorithm`) is initialised."""
    return stream(stream(key, "init"), part)


def round_key(key: Array, t: Array, part: str) -> Array:
    """Key of round `t` for `part` (`world` or `algorithm`)."""
    return jax.random.fold_in(stream(key, part), t)
