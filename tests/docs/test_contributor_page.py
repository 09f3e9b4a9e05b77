"""The templates of the contributor page run, and the files it names exist."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from common import quadratics, ring

import jaxfl as fl

HERE = Path(fl.__file__).parent
TEXT = (HERE / "algorithms" / "README.md").read_text()


def test_its_templates_are_systems():
    server, gossip = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    _, task, data = quadratics(n=4)
    found: dict = {}
    for block in (server, gossip):
        exec(block, found)  # our own page
        found |= {"all": found.get("all", {}) | found["SYSTEMS"]}
    worlds = {"feddyn": fl.scenario(data, cohort=fl.cohort.uniform(4, 2)), "extra": fl.scenario(data, topology=ring(4))}
    for name, world in worlds.items():
        system = found["all"][name]
        assert system.paper.bibtex
        run = fl.run(system.make(task, lr=0.02, batch=None), world, jnp.ones(3), 4)
        assert np.isfinite(run.history["loss"].iloc[1:]).all(), name
        assert (run.history["up_bits"].iloc[1:] > 0).all(), name


def test_the_files_it_names_exist():
    named = set(re.findall(r"`((?:learn|exchange|world|gossip|programs)/\w+\.py|jaxfl/\w+\.py)`", TEXT))
    assert len(named) > 8
    for name in named:
        places = (HERE.parent / name, HERE / name, HERE / "algorithms" / name)
        assert any(place.is_file() for place in places), name
