"""Max-min fair shares, against a float64 simulation of its own and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.exchange import fair_share


def filled(bound, path, capacity, active, dt=2**-12):
    """Water-filling in float64, by the definition: raise the rates of all who can rise, bottleneck after bottleneck."""
    f, rate, free = len(bound), np.zeros(len(bound)), active.copy()
    while free.any():
        rises = []
        for link in range(len(capacity)):
            crossing = sum(int(free[i]) * (path[i] == link).sum() for i in range(f))
            if crossing:
                used = sum(rate[i] * (path[i] == link).sum() for i in range(f) if active[i])
                rises.append((capacity[link] - used) / crossing)
        rises += [bound[i] - rate[i] for i in range(f) if free[i]]
        rate[free] += min(rises)
        for i in np.flatnonzero(free):
            tight = [
                sum(rate[k] * (path[k] == link).sum() for k in range(f) if active[k]) >= capacity[link] * (1 - 1e-12)
                for link in path[i]
            ]
            free[i] = not (any(tight) or rate[i] >= bound[i] * (1 - 1e-12))
    return rate


def simulated(start, bits, bound, path, capacity):
    """Ends of the flows, event by event, in float64."""
    now, left, end = 0.0, bits.copy(), start.copy()
    while (left > 0).any():
        active = (start <= now) & (left > 0)
        later = start[(start > now) & (left > 0)]
        rate = filled(bound, path, capacity, active)
        ends = np.where(active, now + left / np.where(active, rate, 1), np.inf)
        then = min([*later, ends.min()])
        done = active & (ends <= then * (1 + 1e-13))
        left = np.where(done, 0, np.where(active, left - rate * (then - now), left))
        end = np.where(done, then, end)
        now = then
    return end


def drawn(seed, f=7, links=4, hops=2):
    rng = np.random.default_rng(seed)
    path = np.array([rng.choice(links, hops, replace=False) for _ in range(f)])
    return rng.uniform(0.5, 3, f), path, rng.uniform(1, 5, links), rng


@pytest.mark.parametrize("seed", range(6))
def test_shares_are_max_min_fair(seed):
    bound, path, capacity, rng = drawn(seed)
    active = rng.random(7) < 0.8
    got = jax.jit(fair_share.shares)(*map(jnp.asarray, (bound, path, capacity, active)))
    np.testing.assert_allclose(got, filled(bound, path, capacity, active), rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_ends_are_those_of_an_event_simulation(seed):
    bound, path, capacity, rng = drawn(seed + 10)
    start, bits = rng.choice([0.0, 0.0, 1.0, 2.5], 7), rng.uniform(0, 4, 7) * (rng.random(7) < 0.9)
    got = jax.jit(fair_share.finish)(*map(jnp.asarray, (start, bits, bound, path, capacity)))
    np.testing.assert_allclose(got, simulated(start, bits, bound, path, capacity), rtol=1e-5)


def test_by_hand():
    one = jnp.zeros((3, 1), jnp.int32)
    everyone, wide = jnp.ones(3, bool), jnp.full(3, jnp.inf)
    assert fair_share.shares(jnp.asarray([1.0, 9, 9]), one, jnp.asarray([7.0]), everyone).tolist() == [1, 3, 3]
    assert fair_share.shares(wide, one, jnp.asarray([jnp.inf]), everyone).tolist() == [jnp.inf] * 3
    # at 6 bits a second: 2 each until 3, when the first is through; then 3 each; the last alone has all
    got = fair_share.finish(jnp.zeros(3), jnp.asarray([6.0, 12, 24]), wide, one, jnp.asarray([6.0]))
    assert got.tolist() == [3, 5, 7]
    assert fair_share.finish(jnp.ones(3), jnp.ones(3), wide, one, jnp.asarray([jnp.inf])).tolist() == [1, 1, 1]
