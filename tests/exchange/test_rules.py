"""Every rule against float64 NumPy written from its definition: full, ragged, with lies and with rows of NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_definition import clipping, median, multi_krum, trimmed, weiszfeld
from hypothesis import given
from hypothesis import strategies as st

from jaxfl.core import Cohort, Env, Mail
from jaxfl.errors import InputError
from jaxfl.exchange import ranks, rules
from jaxfl.exchange.network import Network
from jaxfl.world import mixing

RNG = np.random.default_rng(0)
K, M = 11, 6


RULES = {
    "median": (rules.median(), median),
    "trimmed_mean": (rules.trimmed_mean(2), trimmed(2)),
    "krum": (rules.krum(2), multi_krum(2, 1)),
    "multi_krum": (rules.multi_krum(2), multi_krum(2)),
    "multi_krum, 3": (rules.multi_krum(2, 3), multi_krum(2, 3)),
    "geometric_median": (rules.geometric_median(5, 0.1), weiszfeld(5, 0.1)),
    "centered_clipping": (rules.centered_clipping(1.5), clipping(1.5, 1)),
    "centered_clipping, 3": (rules.centered_clipping(0.7, 3), clipping(0.7, 3)),
    "adaptive": (rules.centered_clipping(rules.adaptive_radius(0.3)), clipping("0.3", 1)),
}
JITTED = {name: jax.jit(rule) for name, (rule, _) in RULES.items()}
RADIUS = jax.jit(lambda distance, w, delta: rules.adaptive_radius(delta)(distance, w))
each_rule = pytest.mark.parametrize("name", RULES)


def draw(seed, k=K, m=M):
    rng = np.random.default_rng(seed)
    return rng.normal(size=m), rng.normal(size=(k, m)), rng.dirichlet(np.full(k, 3.0))


def apply(name, own, x, w):
    return np.asarray(JITTED[name](jnp.float32(own), jnp.float32(x), jnp.float32(w)))


@each_rule
@given(seed=st.integers(0, 2**16), came=st.lists(st.booleans(), min_size=K, max_size=K))
def test_a_ragged_row_is_the_short_list(name, seed, came):
    own, x, w = draw(seed)
    came = np.array(came)
    w = np.where(came, w, 0) / max(w[came].sum(), 1e-9)
    want = RULES[name][1](own, x[came], w[came]) if came.any() else own
    np.testing.assert_allclose(apply(name, own, x, w), want, atol=2e-4)


@each_rule
def test_a_message_that_is_not_finite_did_not_arrive(name):
    own, x, w = draw(1)
    for bad in (np.nan, np.inf, -np.inf):
        spoilt, rest = x.copy(), w.copy()
        spoilt[[2, 7], [0, 4]], rest[[2, 7]] = bad, 0
        np.testing.assert_allclose(apply(name, own, spoilt, w), apply(name, own, x, rest / rest.sum()), atol=1e-6)
        np.testing.assert_array_equal(apply(name, own, np.full_like(x, bad), w), jnp.float32(own))


@each_rule
@given(seed=st.integers(0, 2**16), shift=st.floats(-5, 5))
def test_order_does_not_matter_and_a_shift_shifts(name, seed, shift):
    own, x, w = draw(seed)
    order = np.random.default_rng(seed).permutation(K)
    plain = apply(name, own, x, w)
    np.testing.assert_allclose(apply(name, own, x[order], w[order]), plain, atol=1e-5)
    np.testing.assert_allclose(apply(name, own + shift, x + shift, w), plain + shift, atol=2e-4)


@each_rule
def test_equal_messages_are_what_comes_out(name):
    row = RNG.normal(size=M)
    np.testing.assert_allclose(apply(name, row, np.tile(row, (K, 1)), np.full(K, 1 / K)), row, atol=1e-6)


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum", "multi_krum, 3", "geometric_median"])
@given(
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([1.0, 10.0, 1e6, 1e15]),
    liars=st.sets(st.integers(0, K - 1), max_size=2),
)
def test_two_liars_among_eleven_do_not_get_through(name, seed, scale, liars):
    """Krum and its like give honest messages, the coordinate rules stay within them, RFA near them."""
    own, x, _ = draw(seed)
    liars = sorted(liars)
    x[liars] = scale * (1 + np.abs(x[liars])) * 10
    honest = np.delete(x, liars, axis=0)
    got = apply(name, own, x, np.full(K, 1 / K))
    if name == "krum":
        assert np.abs(honest - got).max(1).min() < 1e-6
    elif name == "geometric_median":  # Lemma of Minsker (2015): 2 (1 - d) / (1 - 2 d) radii, and five steps' remainder
        ball = np.linalg.norm(honest - honest.mean(0), axis=1).max()
        remainder = 0 if scale < 100 else scale * 100 * (2 / 9) ** 5
        assert np.linalg.norm(got - honest.mean(0)) <= 2 * (9 / 11) / (7 / 11) * ball + remainder
    else:
        assert (got >= honest.min(0) - 1e-5).all()
        assert (got <= honest.max(0) + 1e-5).all()


@given(seed=st.integers(0, 2**16), scale=st.sampled_from([1.0, 1e3, 1e12]))
def test_a_liar_moves_centered_clipping_by_no_more_than_its_weight_times_tau(seed, scale):
    own, x, w = draw(seed)
    lie = x.copy()
    lie[3] = scale * RNG.normal(size=M)
    moved = apply("centered_clipping", own, lie, w) - apply("centered_clipping", own, x, w)
    assert np.linalg.norm(moved) <= 2 * w[3] * 1.5 + 1e-5


@pytest.mark.parametrize(("name", "m"), [(name, M) for name in RULES] + [("krum", 1), ("geometric_median", 1)])
def test_equal_liars_of_any_size_are_not_chosen(name, m):
    """Squares that overflow made scores of NaN, which Krum took for the least."""
    own, x, _ = draw(2, m=m)
    for size in (1e-15, 1e15, 2e18, 6e18, 1.5e19, 1e20, 3e38):
        x[:2] = size / np.sqrt(m)
        got = apply(name, own, x, np.full(K, 1 / K))
        left = size * (2 / 9) ** 5 if name == "geometric_median" and size < 1e18 else 0  # five steps' remainder
        assert (np.abs(got) <= 2 * np.abs(x[2:]).max() + np.abs(own).max() + left).all()
        if name == "krum" and size > 1:
            np.testing.assert_array_equal(got, multi_krum(2, 1)(None, np.float64(np.float32(x)), None))


def test_an_own_row_that_diverged_does_not_hide_the_messages():
    own, x, w = draw(4)
    for size in (1e9, 1e25, np.inf):
        for name in ("krum", "multi_krum", "geometric_median"):
            want = RULES[name][1](own, x, w)
            np.testing.assert_allclose(apply(name, size * own, x, w), want, atol=2e-4)


def test_the_adaptive_radius_of_any_size():
    distance, w = np.float32([0, 1, 2, 3, 9]), np.full(5, 0.2, np.float32)
    for size in np.float32([1e-25, 1.0, 1e18]):
        got = RADIUS(distance * size, w, 0.01)
        np.testing.assert_allclose(got, size * np.sqrt(0.2 * 95 / 0.01), rtol=1e-6)


def test_distances_have_derivatives_though_their_centre_is_a_choice():
    """Against finite differences in float64, where the centre changes on the way, forwards and backwards."""
    own, x, w = draw(6)
    x, rule, along = own + 30 + x, rules.geometric_median(5, 0.1), RNG.normal(size=M)
    f = lambda x: jnp.vdot(jnp.float32(along), rule(jnp.float32(own), x, jnp.float32(w)))
    slope, push = jax.jit(jax.grad(f))(jnp.float32(x)), jax.jit(lambda x, d: jax.jvp(f, (x,), (d,))[1])
    for _ in range(3):
        d = RNG.normal(size=x.shape)
        want = along @ (weiszfeld(5, 0.1)(own, x + 1e-5 * d, w) - weiszfeld(5, 0.1)(own, x - 1e-5 * d, w)) / 2e-5
        np.testing.assert_allclose(np.vdot(slope, d), want, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(push(jnp.float32(x), jnp.float32(d)), want, rtol=1e-3, atol=1e-4)


def test_where_the_diagonal_is_zero_a_receiver_does_not_hear_itself():
    """Rounding of the weights to float32 left an own weight of 1e-7, and so a message to the median."""
    rng = np.random.default_rng(0)
    w = rng.random((9, 9)) * (1 - np.eye(9)) * (rng.random((9, 9)) < 0.7)
    g, x = mixing.from_matrix(w / w.sum(1, keepdims=True)), rng.normal(size=(9, 4))
    who = Cohort(jnp.arange(9), jnp.ones(9))
    env = Env(jnp.int32(0), jnp.float32(0), (), g, who, jnp.zeros(9, bool))
    got = jax.jit(lambda x: Network(rules.median()).gossip(jax.random.key(0), env, Mail(), x)[0])(jnp.float32(x))
    np.testing.assert_allclose(got, [np.median(x[row > 0], axis=0) for row in w], atol=1e-6)


@functools.cache
def traced():
    """Four rules whose numbers are arguments of one program."""

    def all_four(args, tau, cut, keep, nu):
        several = rules.trimmed_mean(cut), rules.multi_krum(cut, keep), rules.geometric_median(3, nu)
        return [rule(*args) for rule in (rules.centered_clipping(tau), *several)]

    return jax.jit(all_four)


def test_radius_and_counts_may_be_traced():
    args = draw(8)
    got = traced()(tuple(map(jnp.float32, args)), 0.8, 3, 4, 0.2)
    for a, rule in zip(got, (clipping(0.8, 1), trimmed(3), multi_krum(3, 4), weiszfeld(3, 0.2)), strict=True):
        np.testing.assert_allclose(a, rule(*args), atol=1e-5)


def test_identities_between_rules():
    own, x, _ = draw(3)
    args = jnp.float32(own), jnp.float32(x), jnp.full(K, 1 / K)
    mean, middle = x.mean(0), np.median(x, axis=0)
    for numbers, want in (
        ((jnp.inf, 0, K, 1e9), (mean, mean, mean, mean)),
        ((0.0, 5, K, 1e9), (own, middle, mean, mean)),  # 11 messages, 5 cut on each side
        ((0.0, 99, K, 1e9), (own, middle, mean, mean)),
    ):
        for a, b in zip(traced()(args, *numbers), want, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(jax.jit(rules.geometric_median(0))(*args), mean, atol=1e-5)


def test_the_geometric_median_on_a_line_is_the_median_and_weights_count():
    x = jnp.float32([0.0, 1.0, 2.0, 10.0, 100.0])[:, None]
    rule = jax.jit(rules.geometric_median(200, 1e-3))
    np.testing.assert_allclose(rule(jnp.zeros(1), x, jnp.full(5, 0.2)), [2.0], atol=0.01)
    heavy = jnp.float32([0.1, 0.1, 0.1, 0.6, 0.1])
    np.testing.assert_allclose(rule(jnp.zeros(1), x, heavy), [10.0], atol=0.01)


def test_the_adaptive_radius_by_hand():
    """Distances 1, 2, 3, 9 of weight 0.2 each, own 0.2: with delta = 0.25 the farthest alone may go."""
    distance, w = np.float32([0, 1, 2, 3, 9]), np.full(5, 0.2, np.float32)
    for delta, left in ((0.25, 1 + 4 + 9), (0.4, 1 + 4), (0.1, 14 + 81)):
        np.testing.assert_allclose(RADIUS(distance, w, delta), np.sqrt(0.2 * left / delta), rtol=1e-6)


@pytest.mark.parametrize("k", [0, 1, 2, 7, 13, 65])
def test_the_network_sorts(k):
    x = np.random.default_rng(k).integers(-3, 3, (k, 400)).astype(np.float32)
    x[x == 2] = np.inf
    got = jax.jit(ranks.ascend)(jnp.asarray(x))
    np.testing.assert_array_equal(got, np.sort(x, axis=0))
    assert ranks.ascend(jnp.zeros((k, 0))).shape == (k, 0)


@pytest.mark.parametrize("name", ["median", "krum", "geometric_median", "centered_clipping, 3", "adaptive"])
def test_chunks_of_coordinates_change_nothing(name, monkeypatch):
    own, x, w = draw(5, m=1000)
    monkeypatch.setattr(rules, "CACHE_BYTES", 4 * K * 300)  # three chunks and a rest
    parts = jax.jit(lambda *a: RULES[name][0](*a))(jnp.float32(own), jnp.float32(x), jnp.float32(w))
    np.testing.assert_allclose(parts, RULES[name][1](own, x, w), atol=2e-5)


@pytest.mark.parametrize("name", ["median", "geometric_median", "adaptive"])
def test_gradients_flow_and_are_finite_where_a_message_is_own(name):
    own, x, w = draw(7)
    x[0] = own
    slope = jax.jit(jax.grad(lambda x: (RULES[name][0](jnp.float32(own), x, jnp.float32(w)) ** 2).sum()))(
        jnp.float32(x)
    )
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() > 0


def test_one_of_several_rules_by_a_traced_number():
    args = draw(9)
    pick = jax.jit(lambda i, *a: rules.one_of(i, rules.mean, rules.median(), rules.krum(2))(*a))
    wants = lambda own, x, w: w @ x, median, multi_krum(2, 1)
    for i, want in enumerate(wants):
        np.testing.assert_allclose(pick(float(i), *map(jnp.float32, args)), want(*args), atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rules.trimmed_mean(-1),
        lambda: rules.krum(-1),
        lambda: rules.multi_krum(1, 0),
        lambda: rules.geometric_median(-1),
        lambda: rules.geometric_median(3, 0.0),
        lambda: rules.centered_clipping(-1.0),
        lambda: rules.centered_clipping(1.0, 0),
        lambda: rules.adaptive_radius(0.0),
        lambda: rules.adaptive_radius(1.0),
        lambda: rules.krum(np.int64(-1)),
        lambda: rules.krum(1.5),
        lambda: rules.trimmed_mean(None),
        lambda: rules.multi_krum(1, jnp.int32(0)),
        lambda: rules.centered_clipping(jnp.float32("nan")),
        lambda: rules.geometric_median(2.0),
    ],
)
def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(InputError, match="but must be"):
        make()


@pytest.mark.parametrize(
    ("make", "k", "says"),
    [
        (
            rules.krum,
            6,
            r"krum with f = 2 needs 2 f \+ 3 = 7 messages, but at most 6 are heard: its guarantee is void.",
        ),
        (rules.multi_krum, 6, "krum with f = 2 needs"),
        (rules.trimmed_mean, 4, r"trimmed_mean with f = 2 needs 2 f \+ 1 = 5 messages, but at most 4"),
    ],
)
def test_a_rule_says_that_its_guarantee_is_void(make, k, says):
    heard = lambda k: jax.eval_shape(make(2), jnp.zeros(3), jnp.zeros((k, 3)), jnp.full(k, 1 / k))
    with pytest.warns(UserWarning, match=says):
        heard(k)
    heard(k + 1)  # of as many as it needs there is none
