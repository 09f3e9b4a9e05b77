"""CPU seconds until the first round of a system is done, less those of a second run: every system of the zoo."""

from collections.abc import Iterator

import jax
import timing
from child import run_child

from jaxfl import zoo
from jaxfl.engine.run import run
from jaxfl.options import build
from jaxfl.options.config import Setup


def rows(turns: int, tiny: bool) -> Iterator[dict]:
    """Every system the command line can run, each in a process of its own."""
    systems = list(zoo.systems())
    for name in systems[:2] if tiny else systems:
        yield from run_child("compile", name)


def system(name: str) -> dict:
    """One of them: 8 nodes, digits, MLP 64-16-10."""
    setup = Setup(nodes=8, data="digits", topology="ring", cohort=4, rounds=2, every=1, seeds=1)
    arm = build.build(build.prepare(setup, [name]), name, {})
    spent = []
    for _ in range(2):
        cpu = timing.cpu_seconds()
        jax.block_until_ready(run(arm.algorithm, arm.scenario, arm.model, 2, every=1).state)
        spent.append(timing.cpu_seconds() - cpu)
    return {"compile": name, "cpu_seconds": spent[0] - spent[1]}
