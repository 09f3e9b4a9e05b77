"""Every rule against float64 NumPy written from its definition: full, ragged, with lies and with rows of NaN."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import QUICK
from hypothesis import given
from hypothesis import strategies as st

from jaxfl.core import Cohort, Env, Mail
from jaxfl.errors import InputError
from jaxfl.exchange import rules
from jaxfl.exchange.network import Network
from jaxfl.world import mixing

RNG = np.random.default_rng(0)
K, M = 11, 6


def median(own, x, w):
    return np.median(x, axis=0)


def trimmed(f):
    def rule(own, x, w):
        cut = min(f, (len(x) - 1) // 2)
        return np.sort(x, axis=0)[cut : len(x) - cut].mean(0)

    return rule


def multi_krum(f, keep=None):
    def rule(own, x, w):
        c = len(x)
        apart = ((x[:, None] - x) ** 2).sum(-1)
        near = [np.sort(np.delete(apart[i], i))[: min(max(c - f - 2, 1), c - 1)].sum() for i in range(c)]
        best = np.argsort(near, kind="stable")
        return x[best[: max(1, min(c, c - f if keep is None else keep))]].mean(0)

    return rule


def weiszfeld(steps, nu):
    def rule(own, x, w):
        z = w @ x
        for _ in range(steps):
            b = w / np.maximum(nu, np.linalg.norm(z - x, axis=1))
            z = b @ x / b.sum()
        return z

    return rule


def clipping(tau, steps):
    def rule(own, x, w):
        v = own
        for _ in range(steps):
            move = x - v
            size = np.maximum(np.linalg.norm(move, axis=1), 1e-300)
            r = radius(tau, size, w) if isinstance(tau, str) else tau
            v = v + (w * np.minimum(1, r / size)) @ move
        return v

    return rule


def radius(delta, distance, w):
    total, memory = 0.0, np.ones(len(w), bool)
    for j in np.argsort(-distance, kind="stable"):  # the farthest first
        total += w[j]
        memory[j] = total > float(delta) * (1 + 1e-6)
    return np.sqrt((w * distance**2)[memory].sum() / float(delta))


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
quick = functools.partial(jax.jit, compiler_options=QUICK)
JITTED = {name: quick(rule) for name, (rule, _) in RULES.items()}
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


def test_krum_is_exact_far_from_zero_where_own_is_near():
    """Distances of 0.01 between messages of norm 1,000: their squares around zero would be lost to rounding."""
    x = 1000 + 0.01 * RNG.normal(size=(K, M)).astype(np.float32)
    x = x.astype(np.float32)
    want = multi_krum(2, 1)(None, x.astype(np.float64), None)
    np.testing.assert_array_equal(apply("krum", x[0], x, np.full(K, 1 / K)), want.astype(np.float32))


FAR = 64, 50  # draws, numbers
FAR_RULES = {"krum": rules.krum(2), "multi_krum": rules.multi_krum(2), "rfa": rules.geometric_median(60, 1e-12)}


@functools.cache
def far_from_own(spread, lie):
    """Draws `[draws, K, m]` around a point of norm 1; the first two lie, one coordinate or all, equal or not."""
    rng = np.random.default_rng(0)
    point = rng.normal(size=(FAR[0], 1, FAR[1]))
    point /= np.linalg.norm(point, axis=2, keepdims=True)
    x = point + spread * rng.normal(size=(FAR[0], K, FAR[1])) / np.sqrt(FAR[1])
    if lie:
        x[:, :2] = point + spread * lie * rng.normal(size=(FAR[0], 2, FAR[1]))
        x[::2, :2, 1:] = point[::2, :, 1:]
        x[::4, 1] = x[::4, 0]
    return x.astype(np.float32)


each_far = pytest.mark.parametrize("spread", [0.1, 1e-3, 1e-4, 1e-6])
each_lie = pytest.mark.parametrize("lie", [0, 1e6, 1e15])


@functools.cache
def of_draws(name):
    """The rule with `own` 0 of one draw, as at a server, and of all, as on a graph."""
    one = lambda x: FAR_RULES[name](jnp.zeros(FAR[1]), x, jnp.full(K, 1 / K))
    return quick(one), quick(jax.vmap(one))


def over_draws(name, x):
    one, many = of_draws(name)
    got = np.asarray(many(x))
    np.testing.assert_allclose(got[:4], [one(x) for x in x[:4]], rtol=1e-5, atol=2e-7)
    return got


@each_far
@each_lie
def test_krum_is_exact_far_from_own(spread, lie):
    """Around `own`, Krum picked another message in a third of all draws at 1e-3 and in nearly all at 1e-4."""
    x = far_from_own(spread, lie)
    want = np.stack([multi_krum(2, 1)(None, x, None) for x in x.astype(np.float64)])
    np.testing.assert_array_equal(over_draws("krum", x), want.astype(np.float32))
    want = np.stack([multi_krum(2)(None, x, None) for x in x.astype(np.float64)])
    np.testing.assert_allclose(over_draws("multi_krum", x), want, atol=1e-7)


@each_far
@each_lie
def test_the_geometric_median_is_exact_far_from_own(spread, lie):
    """Around `own`, it was a whole spread off at 1e-4; what is left are roundings of messages of norm 1."""
    x, w = far_from_own(spread, lie), np.full(K, 1 / K)
    want = np.stack([weiszfeld(60, 1e-12)(None, x, w) for x in x.astype(np.float64)])
    got = over_draws("rfa", x)
    assert np.linalg.norm(got - want, axis=1).max() < 1e-5 * spread + 2e-7


@each_rule
@pytest.mark.parametrize("size", [1e-15, 1e15, 2e18, 6e18, 1.5e19, 1e20, 3e38])
@pytest.mark.parametrize("m", [1, M])
def test_equal_liars_of_any_size_are_not_chosen(name, size, m):
    """Squares that overflow made scores of NaN, which Krum took for the least."""
    own, x, _ = draw(2, m=m)
    x[:2] = size / np.sqrt(m)
    got = apply(name, own, x, np.full(K, 1 / K))
    left = size * (2 / 9) ** 5 if name == "geometric_median" and size < 1e18 else 0  # five steps' remainder
    assert (np.abs(got) <= 2 * np.abs(x[2:]).max() + np.abs(own).max() + left).all()
    if name == "krum":
        eager = rules.krum(2)(
            jnp.float32(own), jnp.float32(x), jnp.full(K, 1 / K)
        )  # fused, inf - inf is another number
        np.testing.assert_array_equal(got, eager)
        assert (np.abs(got - x[2:]).max(1) < 1e-6).any() or size < 1


def test_an_own_row_that_diverged_does_not_hide_the_messages():
    own, x, w = draw(4)
    for size in (1e9, 1e25, np.inf):
        for name in ("krum", "multi_krum", "geometric_median"):
            want = RULES[name][1](own, x, w)
            np.testing.assert_allclose(apply(name, size * own, x, w), want, atol=2e-4)


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e18])
def test_the_adaptive_radius_of_any_size(size):
    distance, w = jnp.float32([0, 1, 2, 3, 9]), jnp.full(5, 0.2)
    got = rules.adaptive_radius(0.01)(distance * size, w)
    np.testing.assert_allclose(got, size * np.sqrt(0.2 * 95 / 0.01), rtol=1e-6)


def test_distances_have_derivatives_though_their_centre_is_a_choice():
    """Against finite differences in float64, where the centre changes on the way, forwards and backwards."""
    own, x, w = draw(6)
    x, rule, along = own + 30 + x, rules.geometric_median(5, 0.1), RNG.normal(size=M)
    f = lambda x: jnp.vdot(jnp.float32(along), rule(jnp.float32(own), x, jnp.float32(w)))
    slope, push = quick(jax.grad(f))(jnp.float32(x)), quick(lambda x, d: jax.jvp(f, (x,), (d,))[1])
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
    who = Cohort(jnp.arange(9), jnp.ones(9), jnp.zeros(9, jnp.int32))
    env = Env(jnp.int32(0), jnp.float32(0), (), g, who, jnp.zeros(9, bool))
    got, *_ = Network(rules.median()).gossip(jax.random.key(0), env, Mail(), jnp.float32(x))
    np.testing.assert_allclose(got, [np.median(x[row > 0], axis=0) for row in w], atol=1e-6)


def test_identities_between_rules():
    own, x, _ = draw(3)
    args = jnp.float32(own), jnp.float32(x), jnp.full(K, 1 / K, jnp.float32)
    close = lambda a, b: np.testing.assert_allclose(*quick(lambda *x: (a(*x), b(*x)))(*args), atol=1e-5)
    close(rules.trimmed_mean(0), rules.mean)
    close(rules.trimmed_mean(5), rules.median())  # 11 messages, 5 cut on each side
    close(rules.trimmed_mean(99), rules.median())
    close(rules.multi_krum(0, K), rules.mean)
    close(rules.geometric_median(0), rules.mean)
    close(rules.geometric_median(3, 1e9), rules.mean)
    close(rules.centered_clipping(jnp.inf), rules.mean)
    close(rules.centered_clipping(0.0), lambda own, heard, weight: own)


def test_the_geometric_median_on_a_line_is_the_median_and_weights_count():
    x = np.array([0.0, 1.0, 2.0, 10.0, 100.0])[:, None]
    got = rules.geometric_median(200, 1e-3)(jnp.zeros(1), jnp.float32(x), jnp.full(5, 0.2))
    np.testing.assert_allclose(got, [2.0], atol=0.01)
    heavy = jnp.float32([0.1, 0.1, 0.1, 0.6, 0.1])
    np.testing.assert_allclose(
        rules.geometric_median(200, 1e-3)(jnp.zeros(1), jnp.float32(x), heavy), [10.0], atol=0.01
    )


def test_the_adaptive_radius_by_hand():
    """Distances 1, 2, 3, 9 of weight 0.2 each, own 0.2: with delta = 0.25 the farthest alone may go."""
    distance, w = jnp.float32([0, 1, 2, 3, 9]), jnp.full(5, 0.2)
    np.testing.assert_allclose(rules.adaptive_radius(0.25)(distance, w), np.sqrt(0.2 * (1 + 4 + 9) / 0.25), rtol=1e-6)
    np.testing.assert_allclose(rules.adaptive_radius(0.4)(distance, w), np.sqrt(0.2 * (1 + 4) / 0.4), rtol=1e-6)
    np.testing.assert_allclose(rules.adaptive_radius(0.1)(distance, w), np.sqrt(0.2 * (14 + 81) / 0.1), rtol=1e-6)


@pytest.mark.parametrize("k", [0, 1, 2, 3, 7, 13])
def test_the_network_sorts(k):
    x = np.random.default_rng(k).integers(-3, 3, (k, 400)).astype(np.float32)
    x[x == 2] = np.inf
    got = quick(rules.ascend)(jnp.asarray(x))
    np.testing.assert_array_equal(got, np.sort(x, axis=0))
    assert rules.ascend(jnp.zeros((k, 0))).shape == (k, 0)


@each_rule
def test_chunks_of_coordinates_change_nothing(name, monkeypatch):
    own, x, w = draw(5, m=1000)
    whole = apply(name, own, x, w)
    monkeypatch.setattr(rules, "CACHE_BYTES", 4 * K * 300)  # three chunks and a rest
    parts = quick(lambda *a: RULES[name][0](*a))(jnp.float32(own), jnp.float32(x), jnp.float32(w))
    np.testing.assert_allclose(parts, whole, atol=1e-5)


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "geometric_median", "centered_clipping", "adaptive"])
def test_gradients_flow_and_are_finite_where_a_message_is_own(name):
    own, x, w = draw(7)
    x[0] = own
    slope = jax.jit(
        jax.grad(lambda x: (RULES[name][0](jnp.float32(own), x, jnp.float32(w)) ** 2).sum()), compiler_options=QUICK
    )(jnp.float32(x))
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() > 0


def test_one_of_several_rules_by_a_traced_number():
    own, x, w = (jnp.float32(a) for a in draw(9))
    several = (rules.mean, rules.median(), rules.krum(2))
    pick = quick(lambda i: rules.one_of(i, *several)(own, x, w))
    for i, rule in enumerate(several):
        np.testing.assert_allclose(pick(float(i)), quick(rule)(own, x, w), atol=1e-6)


def test_radius_and_counts_may_be_traced():
    own, x, w = (jnp.float32(a) for a in draw(8))
    f = quick(
        lambda tau, cut, nu: (
            [
                r(own, x, w)
                for r in (rules.centered_clipping(tau), rules.trimmed_mean(cut), rules.multi_krum(cut, cut + 1))
            ]
            + [rules.geometric_median(3, nu)(own, x, w)]
        )
    )
    for got, rule in zip(
        f(0.8, 3, 0.2),
        (rules.centered_clipping(0.8), rules.trimmed_mean(3), rules.multi_krum(3, 4), rules.geometric_median(3, 0.2)),
        strict=True,
    ):
        np.testing.assert_allclose(got, quick(rule)(own, x, w), atol=1e-6)


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
    ],
)
def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(InputError, match="but must be"):
        make()


MEMORY = """
import sys
import jax, jax.numpy as jnp
from jaxfl.core import Cohort, Env, Mail
from jaxfl.exchange import attacks, rules
from jaxfl.exchange.network import Network
from jaxfl.world import graph, mixing

n, m = 1000, 20_000
who = Cohort(jnp.arange(n), jnp.ones(n), jnp.zeros(n, jnp.int32))
rows = jax.ShapeDtypeStruct((n, m), jnp.float32)
g = mixing.metropolis(graph.barabasi_albert(n, 3, seed=0))

def temp(f, *args):
    compiled = jax.jit(f).lower(*args).compile({"xla_backend_optimization_level": 0})
    return compiled.memory_analysis().temp_size_in_bytes / (4 * n * m)

for name, rule in (("krum", rules.krum(2)), ("median", rules.median()), ("clip", rules.centered_clipping(1.0)),
                   ("rfa", rules.geometric_median()))[: int(sys.argv[1])]:
    net = Network(rule, attack=attacks.alie())
    env = Env(jnp.int32(0), jnp.float32(0), (), None, who, jnp.arange(n) < 9)
    server = temp(lambda x, v: net.aggregate(jax.random.key(0), env, net.init(env, x[0]), x, v)[0], rows,
                  jax.ShapeDtypeStruct((m,), jnp.float32))
    gossip = temp(lambda x: net.gossip(jax.random.key(0), env._replace(graph=g), net.init(env, x[0]), x)[0], rows)
    print(name, server, gossip, g.nbr.shape[1])
"""


def test_a_thousand_nodes_fit_beside_their_messages():
    """Temporary memory in units of all messages `[n, m]`; `[n, k, m]` would be some hundred."""
    out = subprocess.run([sys.executable, "-c", MEMORY, "3"], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr[-2000:]
    print(out.stdout)
    for line in out.stdout.splitlines():
        _, server, gossip, k = line.split()
        assert int(k) > 60
        assert float(server) < 1.5, line
        assert float(gossip) < 0.5, line
