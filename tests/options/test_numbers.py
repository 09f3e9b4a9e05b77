"""Numbers of a world and of data are seen of whatever kind: one sentence, no traceback of a comparison."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.data import partition, synthetic
from jaxfl.data.sets import digits
from jaxfl.errors import InputError
from jaxfl.measure.curvature import extreme_eigenvalues
from jaxfl.world import churn, cohort, graph, mixing, topology
from jaxfl.world.scenario import scenario

RING = mixing.metropolis(graph.ring(4))
WHOLE = {
    "n of ring": lambda v: graph.ring(v),
    "n of matching": lambda v: topology.random_matching(v),
    "n of cohort": lambda v: cohort.uniform(v, 1),
    "c of cohort": lambda v: cohort.uniform(4, v),
    "nodes": lambda v: scenario((), nodes=v),
    "n of crash": lambda v: churn.crash(v, 0.5, 1),
    "seed": lambda v: partition.iid(digits(), 4, seed=v),
    "n of quadratics": lambda v: synthetic.gaussian_quadratics(v, 2),
    "steps of curvature": lambda v: extreme_eigenvalues(lambda x: x, 3, v),
}
NUMBERS = {
    "p of edges": lambda v: graph.erdos_renyi(6, v, seed=0),
    "own": lambda v: mixing.lazy(RING, v),
    "alpha": lambda v: partition.dirichlet(digits(), 4, v),
    "spread": lambda v: synthetic.gaussian_quadratics(4, 2, spread=v),
    "share": lambda v: churn.crash(4, v, 1),
}
CASES = [(name, v) for name in WHOLE for v in (None, True, 2.5, np.float64("nan"), "2", np.int64(-1), jnp.int32(-1))]
CASES += [(name, v) for name in NUMBERS for v in (None, True, np.float32("nan"), "0.1", float("inf"), jnp.float32(-1))]


@pytest.mark.parametrize(("name", "value"), CASES)
def test_one_sentence(name, value):
    if name == "nodes" and value is None:
        value = "four"  # None there says that the data know
    with pytest.raises(InputError) as caught:
        (WHOLE | NUMBERS)[name](value)
    assert "\n" not in str(caught.value)
