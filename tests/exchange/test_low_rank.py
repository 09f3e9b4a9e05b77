"""Low-rank all-reduce: exact where the rank suffices, otherwise what is lost is remembered; bits by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lapack import stacks

from jaxfl.errors import InputError
from jaxfl.exchange.low_rank import effective_rank, low_rank

SHAPES = [(7,), (12, 9), (3,), (12, 9), (2, 3, 8), ()]
SIZE = 7 + 108 + 3 + 108 + 48 + 1
RNG = np.random.default_rng(0)


def start(collective, m, c):
    nodes, shared = collective.init(jnp.zeros(m))
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (c, *a.shape)), nodes), shared


def reduce(collective, messages, weight=None, memory=None):
    x = jnp.asarray(messages, jnp.float32)
    memory = start(collective, x.shape[1], len(x)) if memory is None else memory
    weight = jnp.asarray(np.full(len(x), 1 / len(x)) if weight is None else weight, jnp.float32)
    step = jax.jit(collective.reduce)
    out, nodes, shared, bits = step(jax.random.key(0), *memory, x, weight)
    return np.asarray(out, np.float64), (nodes, shared), np.asarray(bits)


@pytest.mark.parametrize(("c", "absent"), [(1, 0), (5, 2)])
def test_full_rank_in_floats_is_the_exact_mean(c, absent):
    x = RNG.normal(size=(c, SIZE))
    weight = RNG.uniform(0.5, 2, c) * (np.arange(c) >= absent)
    weight /= weight.sum()
    full = low_rank(SHAPES, 9, bits=None, least_saving=0.0)
    out, (nodes, _), bits = reduce(full, x, weight)
    np.testing.assert_allclose(out, weight @ x, atol=3e-6)
    np.testing.assert_allclose(weight @ np.asarray(nodes, np.float64), 0, atol=6e-6)
    assert (bits == 32 * (7 + 3 + 1) + 32 * (2 * 9 * 21 + 6 * 14)).all()


def test_a_mean_of_low_rank_is_found_after_one_step():
    """Messages that differ, but whose column spaces are those of a rank-2 mean."""
    left = np.linalg.qr(RNG.normal(size=(12, 2)))[0]
    x = np.stack([(left @ RNG.normal(size=(2, 9))).ravel() for _ in range(4)])
    out, memory, _ = reduce(low_rank([(12, 9)], 2, bits=None), x)
    np.testing.assert_allclose(out, x.mean(0), atol=2e-6)
    out, *_ = reduce(low_rank([(12, 9)], 2, bits=None), np.zeros((4, 108)), memory=memory)
    np.testing.assert_allclose(out, 0, atol=2e-6)  # nothing was left to send


def test_warm_started_iterations_find_the_best_approximation():
    u, _, v = np.linalg.svd(RNG.normal(size=(12, 9)), full_matrices=False)
    matrix = (u * 2.0 ** -np.arange(9)) @ v
    collective = low_rank([(12, 9)], 3, bits=None, feedback=False)
    x = np.tile(matrix.ravel(), (2, 1))
    memory: Any = None
    lost = []
    for _ in range(12):
        out, memory, _ = reduce(collective, x, memory=memory)
        lost.append(np.linalg.norm(out - x[0]))
    best = np.sqrt((4.0 ** -np.arange(3, 9)).sum())
    np.testing.assert_allclose(lost[-1], best, rtol=1e-4)
    assert lost[0] > 1.1 * best
    approximation = (u[:, :3] * 2.0 ** -np.arange(3)) @ v[:3]
    np.testing.assert_allclose(out.reshape(12, 9), approximation, atol=1e-3)
    basis = np.asarray(memory[1][12, 9][0], np.float64)  # [b, r]: D^T P, whose sizes are the singular values
    np.testing.assert_allclose(np.linalg.svd(basis)[1], 2.0 ** -np.arange(3), rtol=1e-4)
    assert memory[0] == ()


def test_the_aggregate_is_a_projection_of_the_mean():
    """P is orthonormal: the aggregate and what is lost are orthogonal."""
    x = RNG.normal(size=(3, 108))
    out, (nodes, _), _ = reduce(low_rank([(12, 9)], 4, bits=None), x)
    lost = np.asarray(nodes, np.float64).mean(0).reshape(12, 9)
    np.testing.assert_allclose(out + lost.ravel(), x.mean(0), atol=2e-6)
    np.testing.assert_allclose(out.reshape(12, 9).T @ lost, 0, atol=2e-5)
    assert np.linalg.matrix_rank(out.reshape(12, 9), tol=1e-4) == 4


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_feedback_loses_nothing(bits):
    """Sum of aggregates plus the mean memory is the sum of mean messages; an absent member keeps its memory."""
    collective = low_rank(SHAPES, 2, bits=bits)
    memory = start(collective, SIZE, 3)
    weight = np.array([0.5, 0.5, 0.0])
    total, given = 0.0, 0.0
    for _ in range(10):
        x = RNG.normal(size=(3, SIZE)).astype(np.float32)
        x[2] = np.nan
        out, memory, _ = reduce(collective, x, weight, memory)
        total, given = total + np.asarray(out, np.float64), given + x[:2].mean(0, dtype=np.float64)
    np.testing.assert_allclose(total + np.asarray(memory[0], np.float64)[:2].mean(0), given, atol=3e-5)
    np.testing.assert_array_equal(memory[0][2], 0)


def test_memory_stays_bounded_where_nodes_differ_for_good():
    """A node's own share is taken from its memory: with `e_i <- D_i - aggregate`, what it differs in would add up."""
    differ = RNG.normal(size=(4, 108))
    x = 0.1 * RNG.normal(size=108) + differ - differ.mean(0)
    memory: Any = None
    collective, sizes = low_rank([(12, 9)], 4), []
    for _ in range(60):
        _, memory, _ = reduce(collective, x, memory=memory)
        sizes.append(float(jnp.linalg.norm(memory[0])))
    adds_up = 60 * np.linalg.norm(x - x.mean(0))
    assert max(sizes[30:]) < 1.5 * max(sizes[:30])
    assert sizes[-1] < 0.1 * adds_up


def test_bits_by_hand():
    x = RNG.normal(size=(2, SIZE))
    _, _, bits = reduce(low_rank(SHAPES, 2), x)
    # two matrices and a convolution kernel in factors, three tensors whole
    by_hand = 4 * (2 * 2 * 21 + 2 * (6 + 8)) + 6 * 32 + 4 * (7 + 3 + 1) + 3 * 32
    assert bits.tolist() == [by_hand] * 2
    _, _, bits = reduce(low_rank(SHAPES, 2, scale_bits=0.0, bits=3), x)
    assert bits[0] == 3 * (2 * 2 * 21 + 2 * 14 + 11)
    _, _, bits = reduce(low_rank(SHAPES, 4), x)  # 6 x 8 in rank 4 is 56 numbers: it is sent whole
    assert bits[0] == 4 * (2 * 4 * 21 + 48 + 11) + (4 + 4) * 32
    _, _, bits = reduce(low_rank(SHAPES, 2, least_saving=2.0), x)
    assert bits[0] == 4 * (2 * 2 * 21 + 48 + 11) + (4 + 4) * 32
    _, _, bits = reduce(low_rank([(32, 32)], 8, scale_bits=0.0), RNG.normal(size=(1, 1024)))
    assert 32 * 1024 / bits[0] == 8 * 32 * 32 / (8 * (32 + 32)) == 16  # the card's compression


def test_a_traced_rank_is_the_static_one():
    x = RNG.normal(size=(3, SIZE))

    @jax.jit
    def traced(rank):
        collective = low_rank(SHAPES, rank, most=4)
        rest = jnp.float32(x), jnp.full(len(x), 1 / len(x))
        return collective.reduce(jax.random.key(0), *start(collective, SIZE, len(x)), *rest)

    for rank in (1, 3):
        got, nodes, _, paid = traced(jnp.int32(rank))
        out, memory, bits = reduce(low_rank(SHAPES, rank, most=4), x)
        np.testing.assert_allclose(got, out, atol=1e-5)
        np.testing.assert_allclose(nodes, memory[0], atol=1e-5)
        assert paid.tolist() == bits.tolist()
        assert np.linalg.matrix_rank(out[7:115].reshape(12, 9), tol=1e-4) == rank


def test_a_basis_that_vanished_recovers():
    collective = low_rank([(12, 9)], 3, bits=None)
    _, memory, _ = reduce(collective, np.zeros((2, 108)))
    x = np.tile(np.outer(RNG.normal(size=12), RNG.normal(size=9)).ravel(), (2, 1))
    total = 0.0
    for _ in range(12):
        out, memory, _ = reduce(collective, x, memory=memory)
        total = total + out
    np.testing.assert_allclose(total + np.asarray(memory[0]).mean(0), 12 * x[0], atol=1e-3)
    np.testing.assert_allclose(out, x[0], atol=1e-3)


def test_lapack_takes_one_matrix_a_call_also_for_several_seeds():
    """Two matrices of a size and two seeds: batched calls may wait for ever for their own thread pool."""
    collective, weight = low_rank(SHAPES, 2), jnp.full(3, 1 / 3)
    memory, rows = start(collective, SIZE, 3), jnp.zeros((2, 3, SIZE))

    def both(key, x):
        return collective.reduce(key, *memory, x, weight), effective_rank(SHAPES, x[0])

    assert stacks(jax.jit(jax.vmap(both)).lower(jax.random.split(jax.random.key(0)), rows)) == {1}


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_effective_rank_against_singular_values(rank):
    x = RNG.normal(size=SIZE).astype(np.float32)
    x[7:115] = (RNG.normal(size=(12, rank)) @ RNG.normal(size=(rank, 9))).ravel()
    want = []
    for m in (x[7:115].reshape(12, 9), x[118:226].reshape(12, 9), x[226:274].reshape(6, 8)):
        energy = np.linalg.svd(np.float64(m))[1] ** 2
        want.append(1 + (np.cumsum(energy) / energy.sum() < 0.8).sum())
    np.testing.assert_allclose(effective_rank(SHAPES, jnp.asarray(x), 0.8), np.mean(want), rtol=1e-6)


def test_effective_rank_at_its_ends():
    assert float(effective_rank([(4, 6)], jnp.zeros(24))) == 1
    assert float(effective_rank([(4, 6)], jnp.full(24, jnp.nan))) == 1
    assert float(effective_rank([(5, 5)], jnp.eye(5).ravel(), 1.0)) == 5
    assert float(effective_rank([(5, 5)], jnp.eye(5).ravel(), 0.6)) == 3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: low_rank(SHAPES, 0), "rank is 0"),
        (lambda: low_rank(SHAPES, 5, most=4), "rank is 5"),
        (lambda: low_rank(SHAPES, jnp.int32(2)), "most is None"),
        (lambda: low_rank(SHAPES, 2, bits=1), "bits is 1"),
        (lambda: low_rank(SHAPES, 2, scale_bits=-1), "scale_bits is -1"),
        (lambda: low_rank(SHAPES, 2, least_saving=-1), "least_saving is -1"),
        (lambda: low_rank(SHAPES, 2).init(jnp.zeros(9)), "shapes hold 275 numbers, but a message has 9"),
        (lambda: effective_rank([(4,)], jnp.ones(4)), "needs a matrix"),
        (lambda: effective_rank([(2, 2)], jnp.ones(4), 0.0), "share is 0.0"),
    ],
)
def test_bad_numbers(make, words):
    with pytest.raises(InputError, match=words):
        make()
