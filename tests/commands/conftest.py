"""What several tests of the command line share."""

from functools import cache

import jax
import pytest

from jaxfl import data


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """JAX keeps the devices it has, as other tests share the process; the digits are read once."""
    memory = jax.config.jax_compilation_cache_dir
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_NUM_CPU_DEVICES", "1")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(data, "digits", cache(data.digits))
        yield
    jax.config.update("jax_compilation_cache_dir", memory)
