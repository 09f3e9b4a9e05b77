"""q-FedAvg against its equations in float64: unequal weights, a partial cohort, one who runs no step, one absent."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from members import cohorts, idle, slope, world

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.qfedavg import qfedavg
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange import codecs
from jaxfl.exchange.network import Network

LR, KW = 0.03, {"lr": 0.03, "steps": 2, "batch": None}


def go(task, w, q, rounds=3, net=Network()):
    return run(partial(qfedavg, task, net, **KW), w, jnp.ones(3), rounds, every=1, hyper={"q": q})


def test_three_rounds_from_the_equations_and_q_0_is_fedavg():
    quadratic, task, w = world(idle)
    x, q = np.ones(3), 1.5
    for members in cohorts(w, 3):
        above, below = np.zeros(3), 0.0
        for i, p, steps in members:
            y, e = x.copy(), x - quadratic.b[i]
            for _ in range(steps):
                y -= LR * slope(quadratic, i, y)
            move, f = (x - y) / LR, e @ quadratic.A[i].astype(float) @ e / 2
            above, below = above + p * f**q * move, below + p * (q * f ** (q - 1) * move @ move + f**q / LR)
        x = x - above / below
    got = go(task, w, q)
    np.testing.assert_allclose(got.state.shared["x"], x, rtol=1e-4)
    plain = run(fedavg(task, **KW), w, jnp.ones(3), 3, every=1)
    np.testing.assert_allclose(go(task, w, 0.0).state.shared["x"], plain.state.shared["x"], atol=1e-5)
    log, beside = got.history.iloc[-1], plain.history.iloc[-1]
    assert log["up_bits"] / beside["up_bits"] == pytest.approx(4 / 3)  # h beside three numbers
    assert log["gradients"] == beside["gradients"] + 3


def test_nobody_and_a_codec_that_leaves_h_out_move_nothing_that_is_not_finite():
    nobody = lambda c, t: c._replace(weight=jnp.where(t == 1, 0.0, c.weight))
    _, task, w = world(nobody)
    one, two = (go(task, w, 1.0, rounds).state.shared["x"] for rounds in (1, 2))
    np.testing.assert_array_equal(one, two)
    sparse = go(task, w, 1.0, 4, Network(codec=codecs.random_k(1)))
    assert np.isfinite(sparse.state.shared["x"]).all()


def test_a_larger_q_evens_the_losses_out():
    """The largest loss among clients falls, their spread too; the mean rises."""
    quadratic, task, w = world(lambda c, t: c, c=6, weight=np.ones(6))
    found = []
    for q in (0.0, 2.0):
        x = np.asarray(go(task, w, q, 300).state.shared["x"], float)
        e = x - quadratic.b
        found.append(np.einsum("ni,nij,nj->n", e, quadratic.A, e) / 2)
    fair, even = found
    assert even.max() < fair.max()
    assert even.std() < fair.std()
    assert even.mean() > fair.mean()


def test_a_negative_q_is_refused():
    _, task, _ = world()
    with pytest.raises(InputError, match="q"):
        qfedavg(task, q=-1.0)
