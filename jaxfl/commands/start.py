"""How JAX starts: devices, and the folder in which compiled programs outlive the process."""

import contextlib
import os
from pathlib import Path
from typing import Any

import platformdirs

MOST_DEVICES = max(64, os.cpu_count() or 1)  # that a CPU is split into, each with its threads
WORTH_KEEPING = 0.1  # seconds of compilation


def start_jax(devices: int | None) -> None:
    """Devices and the persistent compilation cache, before JAX compiles anything. JAX's own variables outweigh."""
    # XLA:CPU warns of every program it reads back, wrongly (jax-ml/jax#38445): the key of a program has the CPU in it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _start_devices(devices)
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(_platform_folder()))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_KEEPING)


def cache_folder() -> Path | None:
    """Where compiled programs are kept; None where the environment says nowhere."""
    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "1").lower() in ("0", "false", "off", "no", "n", "f"):
        return None
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(folder) if folder else _platform_folder()


def _platform_folder() -> Path:
    return Path(platformdirs.user_cache_dir("jaxfl")) / "xla"


def _start_devices(count: int | None) -> None:
    """Before JAX starts: one CPU device a core, or `count`, unless the environment says how many there are."""
    if "JAX_NUM_CPU_DEVICES" in os.environ or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    from jaxfl.engine import sharding
    from jaxfl.errors import InputError

    if count is None or count > MOST_DEVICES:
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        with contextlib.suppress(InputError):  # a process in which JAX runs already keeps its devices
            sharding.use_cores(cores)
    elif count >= 1:
        with contextlib.suppress(InputError):  # `mesh_of` refuses more devices than there are
            sharding.use_cores(count)


def mesh_of(devices: int | None, nodes: int) -> Any:
    """A mesh of the devices asked for, as far as there are nodes for them; None, all of them, leaves it to the engine.

    Raises:
        InputError: there are fewer devices.
    """
    if devices is None:
        return None
    import jax

    from jaxfl.engine.sharding import mesh_for, node_mesh

    node_mesh(devices)
    if devices == jax.device_count():
        return None
    return mesh_for(nodes, devices)
